"""The scheduler with a graph, beside references that are plainly right.

Two references. ``verdicts`` tells from the fate of each task alone what becomes of a run: it walks the
graph once, in order, and knows no time. ``Model`` follows a run event by event, with anything asked for
at any time: it keeps the task runs that are live and what has happened since a task was last decided,
and looks at all that comes before a task to find out whether it still has to wait.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, given, settings

from millstream.engine.ready import Ready
from millstream.engine.scheduler import Scheduler
from millstream.engine.states import Coalesced, Settled, TaskRun, TaskState, Terms
from millstream.errors import DependencyFailedError, StateError, TaskNotFoundError
from millstream.graph import Graph
from millstream.values import NextTask, Status
from tests.test_scheduler import everything

SUCCESS, FAILED, SKIPPED, CANCELLED = Status.SUCCESS, Status.FAILED, Status.SKIPPED, Status.CANCELLED
PENDING, RUNNING, ABANDONED = Status.PENDING, Status.RUNNING, Status.ABANDONED

# Reducing a failure takes long; add Phase.shrink to see the shortest story.
checked = settings(
    phases=[Phase.explicit, Phase.generate], deadline=None, derandomize=True, database=None, report_multiple_bugs=False
)


# ---- any graph ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The edges of a flow and the options of its tasks. Every edge leads to a later name, save loops."""

    needs: dict[str, list[str]]
    routes: dict[str, list[str]]
    options: dict[str, dict[str, Any]]
    max_parallel: int | None

    @property
    def names(self) -> list[str]:
        return list(self.needs)

    def routers(self, name: str) -> list[str]:
        return [router for router, routes in self.routes.items() if name in routes]

    def before(self, name: str) -> list[str]:
        return [*self.needs[name], *self.routers(name)]

    def after(self, name: str) -> list[str]:
        return [each for each in self.names if name in self.needs[each]]

    def all_after(self, starts: list[str]) -> set[str]:
        found = set(starts)
        for name in self.names:  # what leads to it stands before it
            if found.intersection(self.before(name)):
                found.add(name)
        return found

    def policy(self, name: str) -> str:
        return self.options[name]["on_dep_failure"]

    def reads(self, name: str) -> bool:
        return bool(self.options[name]["reads_upstream"])


def options_of(names: list[str], draw: Any, gates: bool, bare: bool) -> dict[str, dict[str, Any]]:
    option = st.fixed_dictionaries(
        {
            "on_dep_failure": st.sampled_from(["fail", "skip", "run-anyway"]),
            "reads_upstream": st.just(False) if bare else st.booleans(),
            "max_parallel": st.sampled_from([None, None, 1, 2] if gates else [None]),
            "uses": st.sampled_from([(), (), ("db",)] if gates else [()]),
            "priority": st.sampled_from([0] if bare else [0, 0, 1, -1]),
        }
    )
    return {name: draw(option) for name in names}


@st.composite
def shapes(draw: Any, *, loops: bool = False) -> Shape:
    """Draw a few tasks with dependencies and routes among them; some have no edge. Loops are routes that lead back.

    One in three has dependencies alone, and tasks that need nothing but a worker.
    """
    names = list("abcdefg"[: draw(st.integers(2, 7))])
    plain = not loops and draw(st.integers(0, 2)) == 0
    kinds = st.sampled_from(["", "", "need", "need", "need" if plain else "route"])
    needs: dict[str, list[str]] = {name: [] for name in names}
    routes: dict[str, list[str]] = {}
    for place, name in enumerate(names):
        for earlier in names[:place]:
            kind = draw(kinds)
            if kind == "need":
                needs[name].append(earlier)
            elif kind == "route":
                routes.setdefault(earlier, []).append(name)
    for _ in range(draw(st.integers(0, 2)) if loops else 0):
        place = draw(st.integers(0, len(names) - 1))
        back, chosen = draw(st.sampled_from(names[: place + 1])), routes.setdefault(names[place], [])
        chosen += [back] if back not in chosen else []
    gates = not plain and draw(st.booleans())
    options = options_of(names, draw, gates, plain)
    return Shape(needs, routes, options, None if plain else draw(st.sampled_from([None, None, 1, 2, 3])))


# ---- what drives the scheduler -----------------------------------------------------------------------


class Bench:
    """A scheduler on a graph, the workers of two lanes, and whatever must be true between any two events."""

    def __init__(self, shape: Shape, starts: list[str]) -> None:
        self.shape = shape
        self.queues = [Ready(), Ready()]
        whole = Graph(shape.needs, shape.routes)
        self.graph = whole.rooted([whole.number[name] for name in starts])
        self.scheduler = Scheduler(self.find, graph=self.graph, max_parallel=shape.max_parallel)
        self.running: list[TaskRun] = []
        self.waiting: list[TaskRun] = []  #: those of them that are blocked
        self.growing: list[Any] = []
        self.begun: list[TaskRun] = []
        self.settled: list[Settled] = []
        self.want: list[TaskRun] = []  #: they have asked for their limits
        self.free: set[TaskRun] = set()  #: as of the last look: those that wait for no other task run
        self.let_on: set[TaskRun] = set()  #: of these, those whom the gate of their task has let on
        self.dispatched: set[TaskRun] = set()  #: and those whom the gate of the run has let on

    def find(self, name: str, node: int | None) -> TaskState | None:
        number = self.graph.number.get(name)
        if number is None:
            return None
        return TaskState(name, self.queues[number % 2], Terms(**self.shape.options[name]), node)

    def before(self, name: str, *, routers: bool = True) -> list[str]:
        """Return what a task waits for: its dependencies, and what may choose it."""
        graph, number = self.graph, self.graph.number[name]
        return [graph.names[each] for each in [*graph.needs[number], *(graph.routers[number] if routers else [])]]

    def ready(self) -> list[TaskRun]:
        return [run for queue in self.queues for run in queue]

    # what workers do

    def begin(self, queue: Ready) -> TaskRun:
        run = queue.popleft()
        run.begin()
        self.running.append(run)
        self.begun.append(run)
        return run

    def leave(self, run: TaskRun) -> None:
        self.running.remove(run)
        self.unblock(run)

    def block(self, run: TaskRun) -> None:
        self.waiting.append(run)
        self.scheduler.blocked(run.task)

    def unblock(self, run: TaskRun) -> None:
        if run in self.waiting:
            self.waiting.remove(run)
            self.scheduler.unblocked(run.task)

    def finish(self, run: TaskRun, output: Any, requests: list[NextTask] | None) -> bool:
        joins = self.scheduler.check(requests, run) if requests else False
        self.leave(run)
        return self.scheduler.finished(run, output, requests, joins)

    def grant(self, run: TaskRun) -> None:
        self.want.remove(run)
        assert self.scheduler.granted(run)

    # what must be true between two events

    def look(self) -> None:
        """Take what the scheduler has to say, and look at all that it keeps."""
        scheduler = self.scheduler
        for entry in scheduler.outbox:
            if isinstance(entry, TaskRun):
                self.want.append(entry)
            elif isinstance(entry, Settled):
                self.settled.append(entry)
            else:
                assert isinstance(entry, Coalesced)
        scheduler.outbox.clear()
        assert set(self.want) == scheduler.limited
        assert set(self.waiting) <= set(self.running)

        tasks = scheduler.tasks
        at_gate = [run for task in tasks.values() if task.terms.gated for _, _, run in task.held]
        held = [run for _, _, run in scheduler.held]
        parked = scheduler.edges.parked()
        ready = self.ready()
        live = [*ready, *self.running, *held, *at_gate, *scheduler.limited, *scheduler.delayed]
        live += [*scheduler.pending, *parked]
        assert len(set(live)) == len(live), "each task run is in one place"
        assert all(run.status is (RUNNING if run in self.running else PENDING) for run in live)
        assert len({run.id for run in live}) == len(live), "no two live task runs have the same id"
        self.counts_agree(live, ready, held)
        self.edges_agree(live, parked)
        self.gates_agree(ready, held, at_gate)
        free = set(live) - set(parked) - scheduler.pending
        for run in free - self.free:
            before = self.before(run.task.name, routers=False)
            assert run.attempt > 1 or not self.active_among(before, live), "it had to wait"
        self.free = free
        assert scheduler.done == (not live and not self.growing)

    def counts_agree(self, live: list[TaskRun], ready: list[TaskRun], held: list[TaskRun]) -> None:
        scheduler = self.scheduler
        assert scheduler.under_way == len(ready) + len(self.running)
        count = Counter(run.task.name for run in live)
        passed = Counter(run.task.name for run in [*ready, *self.running, *held, *scheduler.limited])
        blocked = Counter(run.task.name for run in self.waiting)
        for name, task in scheduler.tasks.items():
            assert task.live == count[name]
            if task.terms.gated and not scheduler.stopped:
                assert (task.busy, task.blocked) == (passed[name], blocked[name])
        assert scheduler.feeds == len(self.growing)
        edges = scheduler.edges
        assert min(*edges.open_needs, *edges._open_routers, 0) == 0, "no counter is negative"

    def gates_agree(self, ready: list[TaskRun], held: list[TaskRun], at_gate: list[TaskRun]) -> None:
        """Nobody is let through a gate beyond its limit, and nobody is held back without need."""
        scheduler, limit = self.scheduler, self.shape.max_parallel
        dispatched = {*ready, *self.running}
        active = scheduler.under_way - len(self.waiting)
        if limit is not None:
            assert not dispatched - self.dispatched or active <= limit
            assert not held or active >= limit
        else:
            assert not held
        let_on = {*dispatched, *held, *scheduler.limited}
        for task in scheduler.tasks.values():
            news = any(run.task is task for run in let_on - self.let_on)
            most = task.terms.max_parallel
            if most is not None:
                assert not news or task.busy - task.blocked <= most
                assert not task.held or task.busy - task.blocked >= most
        self.let_on, self.dispatched = let_on, dispatched

    def active_among(self, names: list[str], live: list[TaskRun]) -> set[str]:
        """Return those that are pending or running, or that something before them may still lead to."""
        alive = {run.task.name for run in live}
        return {name for name in names if alive & self.all_before(name)}

    def all_before(self, name: str) -> set[str]:
        found, more = {name}, [name]
        while more:
            new = set(self.before(more.pop())) - found
            found |= new
            more += new
        return found

    def edges_agree(self, live: list[TaskRun], parked: list[TaskRun]) -> None:
        """A task is expected while something before it is live, and parked while something it asked to wait for is."""
        edges, names = self.scheduler.edges, self.shape.names
        expected = {name for name, is_so in zip(names, edges.expected, strict=True) if is_so}
        alive = {run.task.name for run in live}
        if not self.scheduler.stopped:
            assert expected == {name for name in self.active_among(names, live) if name not in alive}
            assert all(self.active_among(self.before(run.task.name), live) for run in parked)


# ---- one wave: the reference is the graph itself ---------------------------------------------------------


@dataclass
class Fate:
    """What a task will do if it is called."""

    failures: int = 0  #: attempts that fail before it succeeds
    retries: int = 0
    choice: list[str] | None = None  #: None follows the static edges

    @property
    def fails(self) -> bool:
        return self.failures > self.retries


@dataclass
class Verdict:
    """What became of a task."""

    status: Status
    ran: bool = False
    told: bool = False  #: it ended without a worker, and that was said
    bad: bool = False  #: a failure for what comes after it
    needs: dict[str, Any] | None = None  #: the outputs that it was called with
    failed: set[str] = field(default_factory=set)


def verdicts(shape: Shape, starts: list[str], fates: dict[str, Fate]) -> dict[str, Verdict]:
    """Return what becomes of every task that has a part in a run, from the first to the last."""
    part = shape.all_after(starts)
    found: dict[str, Verdict] = {}
    for name in shape.names:
        if name in part:
            found[name] = verdict(shape, name, name in starts, fates, found)
    return found


def verdict(shape: Shape, name: str, asked: bool, fates: dict[str, Fate], found: dict[str, Verdict]) -> Verdict:
    needs = {each: found[each] for each in shape.needs[name] if each in found}
    routers = {each: found[each] for each in shape.routers(name) if each in found}
    failed = {each for each, verdict in {**needs, **routers}.items() if verdict.bad}
    led = any(verdict.status is SUCCESS and fates[each].choice is None for each, verdict in needs.items())
    chosen = asked or any(
        verdict.status is SUCCESS and name in (fates[each].choice or ()) for each, verdict in routers.items()
    )
    if not chosen and routers and not failed.intersection(routers):
        return Verdict(SKIPPED, told=True)  # nobody chose it: no matter of on_dep_failure
    if failed and shape.policy(name) != "run-anyway":
        status = FAILED if shape.policy(name) == "fail" else SKIPPED
        return Verdict(status, told=True, bad=True, failed=failed)
    if not (chosen or led or failed):
        return Verdict(SKIPPED, told=True)
    outputs = {each: f"{each} gave this" for each, verdict in needs.items() if verdict.status is SUCCESS}
    status = FAILED if fates[name].fails else SUCCESS
    return Verdict(status, ran=True, bad=fates[name].fails, needs=outputs if needs else None)


@st.composite
def waves(draw: Any) -> tuple[Shape, list[str], dict[str, Fate]]:
    """Draw a graph, tasks to start with that nobody will choose, and what each task does when it is called."""
    shape = draw(shapes())
    fates = {}
    for name in shape.names:
        fates[name] = Fate(draw(st.sampled_from([0, 0, 0, 1, 2])), draw(st.sampled_from([0, 0, 1])))
        options = shape.routes.get(name, [])
        fates[name].choice = draw(
            st.one_of(st.none(), st.lists(st.sampled_from(options), max_size=3) if options else st.just([]))
        )
    starts = draw(st.lists(st.sampled_from(shape.names), min_size=1, max_size=3, unique=True))
    if draw(st.booleans()):
        starts = [name for name in shape.names if not shape.before(name)]
    part = shape.all_after(starts)
    return shape, [name for name in starts if not part.intersection(shape.routers(name))] or ["a"], fates


def step(bench: Bench, random: Any, fates: dict[str, Fate]) -> None:
    """Let one thing happen, whatever it is."""
    scheduler = bench.scheduler
    steps: list[Any] = [(bench.begin, queue) for queue in bench.queues if queue]
    steps += [(bench.grant, run) for run in bench.want]
    steps += [(scheduler.due, run) for run in sorted(scheduler.delayed, key=lambda run: run.id)]
    for run in bench.running:
        steps += [(lambda run: end(bench, run, fates[run.task.name]), run)] * 2
        steps.append((bench.unblock if run in bench.waiting else bench.block, run))
    doing, subject = random.choice(steps)
    doing(subject)


def end(bench: Bench, run: TaskRun, fate: Fate) -> None:
    if run.attempt > fate.failures:
        requests = None if fate.choice is None else [NextTask(name) for name in fate.choice]
        bench.finish(run, f"{run.task.name} gave this", requests)
        return
    bench.leave(run)
    if run.attempt <= fate.retries:
        bench.scheduler.retry(run)
    else:
        bench.scheduler.failed(run)


@settings(checked, max_examples=150)
@given(wave=waves(), random=st.randoms(use_true_random=False))
def test_a_wave_ends_as_its_graph_says(wave, random):
    """Whatever the graph, the choices, the failures and the order: each task ends once, as the reference says."""
    shape, starts, fates = wave
    bench = Bench(shape, starts)
    bench.scheduler.start([NextTask(name) for name in starts])
    bench.look()
    while not bench.scheduler.done:
        step(bench, random, fates)
        bench.look()

    expected = verdicts(shape, starts, fates)
    ran = [run for run in bench.begun if run.attempt == 1]
    assert sorted(run.id for run in ran) == sorted(name for name, verdict in expected.items() if verdict.ran)
    for run in bench.begun:
        if shape.reads(run.task.name):
            assert run.needs == expected[run.task.name].needs
    ends = {run.task.name: run.status for run in bench.begun}
    assert ends == {name: verdict.status for name, verdict in expected.items() if verdict.ran}
    told = {entry.task.name: entry for entry in bench.settled}
    assert len(told) == len(bench.settled), "each was decided once"
    assert {name: entry.status for name, entry in told.items()} == {
        name: verdict.status for name, verdict in expected.items() if verdict.told
    }
    for name, entry in told.items():
        failed = expected[name].failed
        assert (set(entry.error.failed) if isinstance(entry.error, DependencyFailedError) else set()) == failed
        assert entry.reason
    worst = {name: task.worst for name, task in bench.scheduler.tasks.items() if name in expected}
    assert worst == {name: None if verdict.status is SUCCESS else verdict.status for name, verdict in expected.items()}


# ---- anything asked for at any time: the reference is a model beside it ----------------------------------


@dataclass(eq=False)
class Run:
    """A task run that is pending or under way."""

    id: str
    name: str
    waits: bool = True  #: for something before it
    needs: dict[str, Any] | None = None  #: the outputs that it will be called with


class Model:
    """The task runs that are live, and for each task what has happened before it since it was last decided."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.live: dict[str, Run] = {}
        self.met: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.outputs: dict[str, Any] = {}  #: of the newest run of each task, if it succeeded
        self.bad: set[str] = set()  #: one of their runs has failed in this wave
        self.led: set[str] = set()  #: a success has led to it since it was last decided
        self.failed: dict[str, set[str]] = {name: set() for name in shape.names}  #: and these have failed
        self.expected: set[str] = set()
        self.settled: Counter[tuple[str, Status]] = Counter()
        self.ways = {name: self.all_before(name) for name in shape.names}

    def all_before(self, name: str) -> set[str]:
        """Return all that may lead to a task, without itself."""
        before = set(self.shape.before(name))
        return before.union(*(self.all_before(each) for each in before))

    def runs_of(self, name: str) -> list[Run]:
        return [run for run in self.live.values() if run.name == name]

    def active(self, name: str) -> bool:
        """Whether a task is pending or under way, or may still become so by what is before it."""
        alive = {run.name for run in self.live.values()}
        return name in alive or bool(alive & self.ways[name])

    # events

    def ask(self, requests: list[NextTask], asker: str = "") -> None:
        """Serve a list. As long as that lasts who asks, and all that is asked for, counts as pending."""
        names = [request.id for request in requests]
        for name in self.shape.all_after(names):
            self.met.add(name)
            if not self.runs_of(name):
                self.expected.add(name)
            if asker not in {name, *self.ways[name]} and not self.active(name):  # a new wave begins
                self.outputs.pop(name, None)
                self.bad.discard(name)
        for request in requests:
            name = request.id
            if not request.spawn_another and self.runs_of(name):
                continue
            self.counts[name] = max(self.counts[name] + request.spawn_another, 1)
            spawned = request.spawn_another and self.counts[name] > 1
            run = Run(f"{name}#{self.counts[name]}" if spawned else name, name)
            self.live[run.id] = run
            self.expected.discard(name)
            if not self.ways[name].intersection([asker, *names]) and not any(map(self.active, self.shape.before(name))):
                self.release(run)  # there is nothing to wait for

    def succeed(self, id: str, output: Any, requests: list[NextTask] | None, *, follow: bool) -> None:
        name = self.live.pop(id).name
        self.ended[name] += 1
        self.ask(requests or [], asker=name)
        self.outputs[name] = output
        if follow:
            self.led.update(self.shape.after(name))

    def fail(self, id: str) -> None:
        name = self.live.pop(id).name
        self.ended[name] += 1
        self.fell(name)

    def fell(self, name: str) -> None:
        self.outputs.pop(name, None)
        self.bad.add(name)
        for there in [*self.shape.after(name), *self.shape.routes.get(name, [])]:
            self.failed[there].add(name)

    def settle(self) -> None:
        """Decide whatever waits for nothing any more; what stands earlier is decided first."""
        for name in self.shape.names:
            needs = any(map(self.active, self.shape.needs[name]))
            routers = any(map(self.active, self.shape.routers(name)))
            if needs or routers:
                continue
            free = [run for run in self.runs_of(name) if run.waits]
            for run in free:
                self.release(run)
            if free:
                self.failed[name] = set()  # they have been told
            if not self.runs_of(name):
                if name in self.expected or name in self.led or self.failed[name]:
                    self.decide(name)
                self.failed[name] = set()
        alive = {run.name for run in self.live.values()}
        self.expected = {name for name in self.shape.names if name not in alive and alive & self.ways[name]}

    def release(self, run: Run) -> None:
        """A task run that was asked for by name waits for nothing before it any more."""
        self.led.discard(run.name)
        if self.bad.intersection(self.shape.before(run.name)) and self.shape.policy(run.name) != "run-anyway":
            self.drop(run.name, run.id)
            self.fell(run.name)
            del self.live[run.id]
        else:
            self.start(run)

    def start(self, run: Run) -> None:
        run.waits = False
        needs = self.shape.needs[run.name]
        if self.met.intersection(needs):
            run.needs = {need: self.outputs[need] for need in needs if need in self.outputs}

    def decide(self, name: str) -> None:
        """A task that nobody asked for by name: does it run?"""
        led, failed = name in self.led, self.failed[name]
        self.led.discard(name)
        routers = self.met.intersection(self.shape.routers(name))
        if routers and not failed.intersection(routers):
            self.skip(name)
        elif failed and self.shape.policy(name) != "run-anyway":
            self.drop(name, name)
            self.fell(name)
        elif led or failed:
            self.counts[name] = max(self.counts[name], 1)
            self.live[name] = Run(name, name)
            self.start(self.live[name])
        else:
            self.skip(name)

    def skip(self, name: str) -> None:
        if not self.ended[name]:
            self.settled[name, SKIPPED] += 1

    def drop(self, name: str, id: str) -> None:
        status = FAILED if self.shape.policy(name) == "fail" else SKIPPED
        self.settled[id, status] += 1


class Pair:
    """A scheduler and its model: each event happens to both, and then they are compared."""

    def __init__(self, shape: Shape, random: Any) -> None:
        self.bench, self.model, self.random = Bench(shape, []), Model(shape), random
        self.outputs = 0
        self.lists: dict[TaskRun, Any] = {}  #: lists that grow, by who makes them

    def start(self) -> None:
        requests = [NextTask(name) for name in self.some(self.choices(None), 1, 3)]
        self.bench.scheduler.start(requests)
        self.model.ask(requests)
        self.compare()

    def some(self, names: list[str], least: int, most: int) -> list[str]:
        return [self.random.choice(names) for _ in range(self.random.randint(least, most))]

    def choices(self, asker: str | None) -> list[str]:
        """Return what may be asked for: what has routers is chosen by them alone."""
        shape = self.bench.shape
        return [name for name in shape.names if not shape.routers(name) or asker in shape.routers(name)]

    def requests(self, asker: str) -> list[NextTask]:
        chosen = self.some(self.choices(asker), 1, 3)
        return [NextTask(name, None, self.random.random() < 0.3) for name in chosen]

    def step(self) -> None:
        """Let one thing happen, whatever it is."""
        bench, scheduler = self.bench, self.bench.scheduler
        steps: list[Any] = [(self.begin, queue) for queue in bench.queues if queue]
        steps += [(bench.grant, run) for run in bench.want]
        steps += [(scheduler.due, run) for run in sorted(scheduler.delayed, key=lambda run: run.id)]
        for run in bench.running:
            steps += [(self.finish, run), (self.finish, run), (self.fail, run), (self.retry, run), (self.grow, run)]
            steps.append((bench.unblock if run in bench.waiting else bench.block, run))
        doing, subject = self.random.choice(steps)
        doing(subject)
        self.compare()

    def begin(self, queue: Ready) -> None:
        run = self.bench.begin(queue)
        twin = self.model.live[run.id]
        assert not twin.waits, "nothing begins before its dependencies are over"
        assert run.needs == twin.needs or not self.bench.shape.reads(run.task.name)

    def finish(self, run: TaskRun) -> None:
        requests = self.random.choice([None, None, []])
        if self.random.random() < 0.5:
            requests = self.requests(run.task.name)
        self.outputs += 1
        follow = requests is None and not run.requested
        terminal = self.bench.finish(run, self.outputs, requests)
        if run in self.lists:
            self.close(run)
        self.model.succeed(run.id, self.outputs, requests, follow=follow)
        followed = follow and bool(self.bench.shape.after(run.task.name))
        assert terminal == (not requests and not followed and not run.requested)

    def fail(self, run: TaskRun) -> None:
        self.bench.leave(run)
        self.bench.scheduler.failed(run, self.random.choice([FAILED, CANCELLED, ABANDONED]))
        if run in self.lists:
            self.close(run)
        self.model.fail(run.id)

    def retry(self, run: TaskRun) -> None:
        if run.attempt < 3 and run not in self.lists:
            self.bench.leave(run)
            again = self.bench.scheduler.retry(run)
            assert (again.id, again.attempt, again.needs) == (run.id, run.attempt + 1, run.needs)

    def grow(self, run: TaskRun) -> None:
        """A task that runs makes one more request."""
        if run not in self.lists:
            self.lists[run] = self.bench.scheduler.open_list(run)
            self.bench.growing.append(run)
        requests = [NextTask(self.random.choice(self.choices(None)), None, self.random.random() < 0.3)]
        self.bench.scheduler.request(self.lists[run], requests[0])
        self.model.ask(requests)

    def close(self, run: TaskRun) -> None:
        self.bench.scheduler.close_list(self.lists.pop(run))
        self.bench.growing.remove(run)

    def compare(self) -> None:
        self.model.settle()
        bench, model = self.bench, self.model
        bench.look()
        waits = {run.id for run in bench.scheduler.edges.parked()}
        live = waits | {run.id for run in bench.free}
        assert live == set(model.live)
        assert waits == {run.id for run in model.live.values() if run.waits}
        told = [(entry.task.name if entry.run is None else entry.run.id, entry.status) for entry in bench.settled]
        assert Counter(told) == model.settled

    def drain(self) -> None:
        """Let everything end that is there, without further requests."""
        bench = self.bench
        while not bench.scheduler.done:
            for run in list(bench.scheduler.delayed):
                bench.scheduler.due(run)
                self.compare()
            for run in list(bench.want):
                bench.grant(run)
                self.compare()
            for queue in bench.queues:
                while queue:
                    self.begin(queue)
            for run in list(bench.running):
                self.outputs += 1
                follow = not run.requested
                bench.finish(run, self.outputs, None)
                if run in self.lists:
                    self.close(run)
                self.model.succeed(run.id, self.outputs, None, follow=follow)
                self.compare()
            self.compare()


@settings(checked, max_examples=100)
@given(shape=shapes(), random=st.randoms(use_true_random=False))
def test_any_requests_on_any_graph(shape, random):
    """Whatever tasks ask for while others are led to by edges, the scheduler agrees with the model at every step."""
    pair = Pair(shape, random)
    pair.start()
    for _ in range(30):
        if pair.bench.scheduler.done:
            break
        pair.step()
    pair.drain()
    assert not pair.model.live
    assert not pair.model.expected


# ---- and whatever else may happen: what must be true between any two events -------------------------------


class Wild:
    """Anything at any time, also joins, names that are not there, and the end; no model, but ``Bench.look``."""

    def __init__(self, shape: Shape, random: Any) -> None:
        self.starts = [random.choice(shape.names), shape.names[0]]
        self.bench, self.random = Bench(shape, self.starts), random
        self.lists: dict[TaskRun, Any] = {}

    def requests(self) -> list[NextTask]:
        return [self.request() for _ in range(self.random.randint(1, 3))]

    def request(self) -> NextTask:
        name = self.random.choice([*self.bench.shape.names, "nope"] if self.often(0.1) else self.bench.shape.names)
        return NextTask(name, None, self.often(0.3), join=self.often(0.2), priority=self.random.choice([None, None, 3]))

    def often(self, share: float) -> bool:
        return self.random.random() < share

    def refused(self, requests: list[NextTask], call: Any, *args: Any) -> bool:
        """Make a call; whether it was refused, which must have changed nothing."""
        if all(request.id != "nope" for request in requests):
            call(*args)
            return False
        before = everything(self.bench.scheduler)
        with pytest.raises(TaskNotFoundError):
            call(*args)
        assert everything(self.bench.scheduler) == before
        return True

    def step(self) -> None:
        bench, scheduler = self.bench, self.bench.scheduler
        steps: list[Any] = [(bench.begin, queue) for queue in bench.queues if queue]
        steps += [(bench.grant, run) for run in bench.want]
        steps += [(scheduler.due, run) for run in sorted(scheduler.delayed, key=lambda run: run.id)]
        for run in bench.running:
            steps += [(self.finish, run), (self.finish, run), (self.fail, run), (self.retry, run), (self.grow, run)]
            steps.append((bench.unblock if run in bench.waiting else bench.block, run))
        doing, subject = self.random.choice(steps)
        doing(subject)
        bench.look()

    def finish(self, run: TaskRun) -> None:
        requests = self.requests() if self.often(0.5) else self.random.choice([None, None, []])
        if requests and self.refused(requests, self.bench.scheduler.check, requests, run):
            return
        self.bench.finish(run, run.id, requests)
        self.close(run)

    def fail(self, run: TaskRun) -> None:
        self.bench.leave(run)
        self.bench.scheduler.failed(run, self.random.choice([FAILED, CANCELLED, ABANDONED]))
        self.close(run)

    def retry(self, run: TaskRun) -> None:
        if not self.bench.scheduler.stopped:
            self.bench.leave(run)
            again = self.bench.scheduler.retry(run)
            assert (again.id, again.attempt, again.path) == (run.id, run.attempt + 1, run.path)
            self.close(run)

    def grow(self, run: TaskRun) -> None:
        if run not in self.lists:
            self.lists[run] = self.bench.scheduler.open_list(run)
            self.bench.growing.append(run)
        request = self.request()
        self.refused([request], self.bench.scheduler.request, self.lists[run], request)

    def close(self, run: TaskRun) -> None:
        if run in self.lists:
            self.bench.scheduler.close_list(self.lists.pop(run))
            self.bench.growing.remove(run)

    def stop(self) -> None:
        bench = self.bench
        running, free = set(bench.running), bench.free
        cancelled = bench.scheduler.stop()
        assert {run.status for run in cancelled} <= {CANCELLED}
        assert free - running <= set(cancelled)
        assert not running.intersection(cancelled)
        bench.want.clear()
        bench.look()
        assert bench.free == running

    def over(self) -> bool:
        bench = self.bench
        return not (bench.running or bench.ready() or bench.want or bench.scheduler.delayed)

    def drain(self) -> None:
        """Let everything end that can."""
        bench = self.bench
        while not self.over():
            for run in list(bench.scheduler.delayed):
                bench.scheduler.due(run)
            bench.look()
            for run in list(bench.want):
                bench.grant(run)
            for queue in bench.queues:
                while queue:
                    bench.begin(queue)
            bench.look()
            for run in list(bench.running):
                bench.finish(run, run.id, None)
                self.close(run)
                bench.look()


@settings(checked, max_examples=100)
@given(shape=shapes(loops=True), random=st.randoms(use_true_random=False), stops=st.sampled_from([False, False, True]))
def test_anything_on_any_graph(shape, random, stops):
    """Whatever happens, nothing begins too early, no limit is exceeded, no count is wrong, and nothing is left."""
    wild = Wild(shape, random)
    bench, scheduler = wild.bench, wild.bench.scheduler
    scheduler.start([NextTask(name) for name in wild.starts])
    bench.look()
    for _ in range(25):
        if wild.over():
            break
        wild.step()
    if stops:
        wild.stop()
    wild.drain()
    # Only joins can wait for each other, in a circle: a list asks for what depends on its own join.
    assert scheduler.done or (scheduler.pending and not stops)
    assert scheduler.under_way == scheduler.feeds == len(scheduler.held) == 0
    for run in bench.begun:
        with pytest.raises(StateError):
            run.begin()
