"""The scheduler beside a model that is plainly right: any requests, finished in any order.

The model keeps every task run and every list of requests as a tree, and walks that tree to find out
what may start. It knows no counters, no scopes and no queues: what it says is slow and easy to check.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from millstream.engine.ready import Ready
from millstream.engine.scheduler import Scheduler
from millstream.engine.states import Coalesced, Settled, TaskRun, TaskState, Terms
from millstream.errors import BindingError, StateError, TaskNotFoundError, TaskRunLimitError
from millstream.values import NextTask, Status

NAMES = ("a", "b", "c", "sum")
COLLECTS = {"sum"}
POLICIES = {"a": "fail", "b": "fail", "c": "skip", "sum": "run-anyway"}
SUCCESS, FAILED, CANCELLED, ABANDONED = Status.SUCCESS, Status.FAILED, Status.CANCELLED, Status.ABANDONED
SKIPPED = Status.SKIPPED


# ---- the model ---------------------------------------------------------------------------------------


@dataclass(eq=False)
class Made:
    """A list of requests, and what became of it."""

    owner: Run | None
    joined: bool  #: it has joins, or it grows and may have some
    closed: bool = True
    asked: int = 0  #: requests served so far that are no joins
    members: list[Run] = field(default_factory=list)
    joins: list[Run] = field(default_factory=list)
    fired: bool = False
    outputs: list[Any] | None = None  #: what its joins take; None: nothing
    watches: list[Watch] = field(default_factory=list)


@dataclass(eq=False)
class Run:
    """A task run."""

    id: str
    name: str
    inputs: Any
    born: Made
    is_join: bool = False
    place: int | None = None  #: its place among the outputs that a join takes
    status: Status = Status.PENDING
    waits: bool = False  #: for the others of its list
    requests: int = 0
    upstream: Any = None
    output: Any = None
    ended: int = 0  #: how many had ended before it
    lists: list[Made] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.status not in (Status.PENDING, Status.RUNNING)


@dataclass(eq=False)
class Watch:
    """A request that coalesced with ``runs``: its place in the list takes the output of the last one."""

    place: int
    runs: list[Run]
    settled: bool = False

    @property
    def last(self) -> Run:
        return max(self.runs, key=lambda run: run.ended)


def settled(run: Run) -> bool:
    """A task run and all that it scheduled in turn is over."""
    return run.over and all(may_join(made) and all(map(settled, made.joins)) for made in run.lists)


def may_join(made: Made) -> bool:
    """The siblings of a list, all that they scheduled, and what they coalesced with is over."""
    return made.closed and all(map(settled, made.members)) and all(watch.settled for watch in made.watches)


def failed(made: Made) -> bool:
    """A sibling, or what it coalesced with, ended without an output."""
    ends = [*made.members, *(watch.last for watch in made.watches)]
    return any(run.status is not SUCCESS for run in ends)


def enclosing(made: Made) -> list[Made]:
    """The list itself, and every list around it whose joins wait for it."""
    found = [made]
    owner = made.owner
    while owner is not None:
        if not owner.is_join:  # a join is waited for by the lists around its own
            found.append(owner.born)
        owner = owner.born.owner
    return found


class Model:
    """What a run is, without any cleverness."""

    def __init__(self, limit: int | None, max_parallel: int | None) -> None:
        self.limit, self.max_parallel = limit, max_parallel
        self.runs: list[Run] = []
        self.lists: list[Made] = []
        self.counts = dict.fromkeys(NAMES, 0)
        self.coalesced: list[Any] = []
        self.dropped: list[Run] = []  #: joins that did not start
        self.held = self.under_way = self.blocked = self.ended = 0
        self.stopped = False

    def live(self, name: str | None = None) -> list[Run]:
        return [run for run in self.runs if not run.over and name in (None, run.name)]

    def refuses(self, requests: list[NextTask], asker: Run | None, growing: Made | None = None) -> Any:
        """Return the class of the error that a list must meet, or None."""
        if any(request.id not in NAMES for request in requests):
            return TaskNotFoundError
        taken = {run.name for run in self.live() if run is not asker}
        alone = growing is None and all(request.join for request in requests)
        made = len(self.runs)
        for request in requests:
            if request.id not in taken or request.spawn_another or (request.join and not alone):
                made += 1
                if self.limit is not None and made > self.limit:
                    return TaskRunLimitError
            taken.add(request.id)
        if growing is not None and requests[0].join and requests[0].id in COLLECTS:
            return BindingError if growing.asked and growing.outputs is None else None
        return None

    # events

    def serve(self, owner: Run | None, requests: list[NextTask]) -> None:
        """A complete list of requests."""
        joins = [request.join for request in requests]
        made = self.new_list(owner, any(joins) and not all(joins))
        if made.joined:
            made.outputs = []
        for request in requests:
            self.ask(made, request)

    def new_list(self, owner: Run | None, joined: bool, closed: bool = True) -> Made:
        made = Made(owner, joined, closed)
        self.lists.append(made)
        if owner is not None:
            owner.lists.append(made)
        return made

    def ask(self, made: Made, request: NextTask) -> None:
        if made.owner is not None:
            made.owner.requests += 1
        if request.join and made.joined:
            if not made.asked and made.outputs is None:
                made.outputs = []
            spawn = request.spawn_another or self.live(request.id)
            made.joins.append(self.make(made, request, spawn, waits=True))
            return
        made.asked += 1
        place = None
        if made.outputs is not None:
            place = len(made.outputs)
            made.outputs.append(None)
        live = self.live(request.id)
        if request.spawn_another or not live:
            made.members.append(self.make(made, request, request.spawn_another, place=place))
            return
        newest = [run for run in self.runs if run.name == request.id][-1]
        if request.inputs is not None or newest.inputs is not None:
            self.coalesced.append((request.id, newest.inputs, request.inputs))
        around = [join for each in enclosing(made) for join in each.joins]
        live = [run for run in live if run not in around]
        if place is not None and live:
            made.watches.append(Watch(place, live))

    def make(self, made: Made, request: NextTask, spawn: Any, waits: bool = False, place: int | None = None) -> Run:
        name = request.id
        if spawn:
            self.counts[name] += 1
            number = self.counts[name]
        else:
            number, self.counts[name] = 1, max(self.counts[name], 1)
        run = Run(name if number == 1 else f"{name}#{number}", name, request.inputs, made, waits, place, waits=waits)
        self.runs.append(run)
        if not waits:
            self.held += 1
        return run

    def may_start(self, run: Run, upstream: Any, failed: bool) -> None:
        """A join has nothing more to wait for: it starts, unless a failure keeps it from that."""
        run.waits, run.upstream = False, upstream
        policy = POLICIES[run.name]
        if failed and policy != "run-anyway":
            self.over(run, FAILED if policy == "fail" else SKIPPED)
            self.dropped.append(run)
        else:
            self.held += 1

    def over(self, run: Run, status: Status, output: Any = None) -> None:
        self.ended += 1
        run.status, run.output, run.ended = status, output, self.ended

    def end(self, run: Run, status: Status, output: Any) -> bool:
        """A task run is over; return whether a join takes its output because a request coalesced with it."""
        self.over(run, status, output)
        self.under_way -= 1
        if run.place is not None and run.born.outputs is not None:
            run.born.outputs[run.place] = output
        return any(
            not watch.settled and run in watch.runs and all(each.over for each in watch.runs)
            for made in self.lists
            for watch in made.watches
        )

    def after(self) -> None:
        """Settle everything that an event has released, and what that releases in turn."""
        more = not self.stopped
        while more:
            more = False
            for made in self.lists:
                for watch in made.watches:
                    if not watch.settled and all(each.over for each in watch.runs):
                        watch.settled = more = True
                        made.outputs[watch.place] = watch.last.output
            for made in self.lists:
                if made.joins and not made.fired and may_join(made):
                    made.fired = more = True
                    for join in made.joins:
                        self.may_start(join, made.outputs, failed(made))
        while self.held and (self.max_parallel is None or self.under_way - self.blocked < self.max_parallel):
            self.held -= 1
            self.under_way += 1

    def stop(self) -> list[Run]:
        self.stopped = True
        cancelled = [run for run in self.runs if run.status is Status.PENDING]
        self.under_way -= sum(not run.waits for run in cancelled) - self.held
        self.held = 0
        for run in cancelled:
            run.status = CANCELLED
        return cancelled

    @property
    def done(self) -> bool:
        return not self.live() and all(made.closed for made in self.lists)


# ---- both, side by side ------------------------------------------------------------------------------

requests = st.builds(
    lambda name, inputs, spawn, join: NextTask(name, inputs, spawn, join=join),
    st.sampled_from(NAMES),
    st.sampled_from([None, None, None, {"x": 1}, {"x": 2}]),
    st.sampled_from([False, False, True]),
    st.sampled_from([False, False, True]),
)
lists = st.one_of(st.none(), st.lists(requests, max_size=5))
joined = st.builds(
    lambda some, join, place: [*some[:place], join, *some[place:]],
    st.lists(requests, min_size=1, max_size=4),
    st.builds(lambda name, spawn: NextTask(name, None, spawn, join=True), st.sampled_from(NAMES), st.booleans()),
    st.integers(0, 4),
)
#: A name that the flow does not have, behind others that it has.
faulty = st.builds(lambda before: [*before, NextTask("nope")], st.lists(requests, max_size=2))


class AnyOrder(RuleBasedStateMachine):
    """Any requests, finished in any order."""

    @initialize(
        first=st.lists(requests, min_size=1, max_size=3),
        limit=st.sampled_from([None, None, 3, 6, 12]),
        parallel=st.sampled_from([None, None, 1, 2, 4]),
    )
    def start(self, first, limit, parallel):
        queues = {name: Ready() for name in ("a", "c")}  # two lanes: a and b, c and sum
        self.queues = list(queues.values())

        def find(name, node):
            if name not in NAMES:
                return None
            terms = Terms(collects=name in COLLECTS, on_dep_failure=POLICIES[name])
            return TaskState(name, queues["a" if name < "c" else "c"], terms)

        self.scheduler = Scheduler(find, max_task_runs=limit, max_parallel=parallel)
        self.model = Model(limit, parallel)
        self.running: dict[str, TaskRun] = {}
        self.waiting: set[str] = set()  #: running ones that are blocked
        self.growing: list[tuple[Any, Made]] = []
        self.seen: set[TaskRun] = set()  # holds them, so that no identity is used twice
        self.outputs = 0
        self.held: set[int] = set()  #: the orders of those that were held back before this step
        self.scheduler.start([NextTask(each.id, each.inputs, True) for each in first])
        self.model.serve(None, [NextTask(each.id, each.inputs, True) for each in first])
        self.model.after()

    # rules

    @rule(data=st.data())
    def begin_one(self, data):
        """A worker takes whatever is first in one of the queues."""
        filled = [queue for queue in self.queues if queue]
        if filled:
            self._begin(data.draw(st.sampled_from(filled), label="queue"))

    @rule(data=st.data(), wanted=lists)
    def finish_one(self, data, wanted):
        self._finish(self._pick(data), wanted)

    @rule(data=st.data(), wanted=joined)
    def finish_one_with_a_join(self, data, wanted):
        self._finish(self._pick(data), wanted)

    @rule(data=st.data(), status=st.sampled_from([FAILED, CANCELLED, ABANDONED]), wanted=faulty)
    def fail_one(self, data, status, wanted):
        """A task run asks for what is not there, which is refused, and fails."""
        run = self._pick(data)
        if run is not None:
            self._finish(run, wanted)
            self._unblock(run)
            self.scheduler.failed(run, status)
            twin = self._twin(run)
            self.model.end(twin, status, None)
            self.model.after()

    @rule(data=st.data(), block=st.booleans())
    def block_or_unblock_one(self, data, block):
        some = sorted(self.running.keys() - self.waiting if block else self.waiting)
        if some:
            run = self.running[data.draw(st.sampled_from(some), label="run")]
            if block:
                self.waiting.add(run.id)
                self.scheduler.blocked(run.task)
                self.model.blocked += 1
                self.model.after()
            else:
                self._unblock(run)

    @rule(data=st.data(), before=lists, wanted=st.lists(requests, max_size=3))
    def open_one(self, data, before, wanted):
        """A running task begins a list that grows. It has one at a time, but may have one after the other."""
        busy = {made.owner.id for _, made in self.growing if not made.owner.over}
        run = self._pick(data, busy)
        if run is not None:
            if before is not None:
                self._close(self._open(run, before))
            self._open(run, wanted)

    @rule(data=st.data(), wanted=st.lists(requests, min_size=1, max_size=3))
    def request_some(self, data, wanted):
        if self.growing:
            scope, made = data.draw(st.sampled_from(self.growing), label="list")
            for request in wanted:
                self._request(scope, made, request)
            self._request(scope, made, NextTask("nope"))

    @rule(data=st.data())
    def close_one(self, data):
        if self.growing:
            self._close(data.draw(st.sampled_from(self.growing), label="list"))

    @rule(data=st.data())
    def end_what_is_over(self, data):
        """A step that the state machine forbids is refused."""
        over = [run for run in self.seen if run.status is not Status.RUNNING]
        if over:
            run = data.draw(st.sampled_from(sorted(over, key=lambda run: run.path)), label="over")
            with pytest.raises(StateError):
                run.begin()
            with pytest.raises(StateError):
                self.scheduler.finished(run, 1, None, False)
            with pytest.raises(StateError):
                self.scheduler.failed(run)

    @precondition(lambda self: len(self.seen) > 5 and not self.model.stopped)
    @rule(sure=st.integers(0, 3))
    def stop(self, sure):
        if sure == 3:
            cancelled = self.scheduler.stop()
            assert sorted(run.id for run in cancelled) == sorted(run.id for run in self.model.stop())
            assert all(run.status is CANCELLED for run in cancelled)

    def teardown(self):
        """Drain: close every list, run everything. Nothing may be left but joins that wait in a circle."""
        if not hasattr(self, "scheduler"):
            return
        while any(self.queues) or self.running or self.growing:
            for open_list in list(self.growing):
                self._close(open_list)
            for queue in self.queues:
                while queue:
                    self._begin(queue)
            for run in list(self.running.values()):
                self._finish(run, None)
            self.both_agree()
        scheduler, model = self.scheduler, self.model
        assert scheduler.under_way == scheduler.feeds == len(scheduler.held) == 0
        assert scheduler.done == model.done
        assert all(run.over or run.waits for run in model.runs)
        if not model.stopped:  # every task run started, and started once
            began = [run.id for run in model.runs if not run.waits and run not in model.dropped]
            assert sorted(run.id for run in self.seen) == sorted(began)
            assert len(self.seen) + len(scheduler.pending) + len(model.dropped) == len(model.runs)

    # the two must agree

    @invariant()
    def both_agree(self):
        scheduler, model = self.scheduler, self.model
        ready = [run for queue in self.queues for run in queue]
        live = model.live()
        assert len({run.id for run in live}) == len(live), "no two live task runs have the same id"
        free = {run.id for run in live if run.status is Status.PENDING and not run.waits}
        held = [run for _, _, run in scheduler.held]
        assert {run.id for run in [*ready, *held]} == free
        assert len(ready) + len(scheduler.held) == len(free)
        assert {run.id for run in scheduler.pending} == {run.id for run in live if run.waits}
        assert set(self.running) == {run.id for run in live if run.status is Status.RUNNING}
        assert (scheduler.under_way, len(scheduler.held)) == (model.under_way, model.held)
        assert scheduler.under_way == len(ready) + len(self.running)
        assert scheduler.feeds == len(self.growing)
        assert scheduler.scheduled == len(model.runs)
        told = [entry for entry in scheduler.outbox if isinstance(entry, Coalesced)]
        assert [(entry.task.name, entry.kept, entry.dropped) for entry in told] == model.coalesced
        ended = [(entry.run.id, entry.status) for entry in scheduler.outbox if isinstance(entry, Settled)]
        assert sorted(ended) == sorted((run.id, run.status) for run in model.dropped)
        assert len(ended) + len(told) == len(scheduler.outbox)
        assert scheduler.done == model.done
        assert scheduler.stopped == model.stopped
        for name, task in scheduler.tasks.items():
            assert (task.live, task.count) == (len(model.live(name)), model.counts[name])

    @invariant()
    def first_come_first_served(self):
        """Of those that were held back together, those that were requested first have gone on."""
        held = {run.order for _, _, run in self.scheduler.held}
        went_on, stayed = self.held - held, self.held & held
        assert not went_on or not stayed or max(went_on) < min(stayed)
        self.held = held

    # inside

    def _begin(self, queue):
        run = queue.popleft()
        run.begin()
        (twin,) = (each for each in self.model.live(run.task.name) if each.id == run.id)
        assert twin.status is Status.PENDING, "it starts once"
        assert not twin.waits, "it waits for nobody"
        assert run not in self.seen
        assert run.inputs == twin.inputs
        if run.upstream or twin.is_join:  # a plain request takes nothing, which may be None or an empty list
            assert run.upstream == twin.upstream
        if twin.is_join:
            assert all(map(settled, twin.born.members)), "a join starts after its scope"
        twin.status = Status.RUNNING
        self.seen.add(run)
        self.running[run.id] = run

    def _pick(self, data, busy=frozenset()):
        """Return a running task run; with none, one begins."""
        if not self.running:
            self.begin_one(data)
        some = sorted(self.running.keys() - busy)
        return self.running[data.draw(st.sampled_from(some), label="run")] if some else None

    def _twin(self, run):
        """Return what the model has for a task run that ends now or goes on."""
        (twin,) = (each for each in self.model.live(run.task.name) if each.id == run.id)
        if run.status is not Status.RUNNING:
            del self.running[run.id]
        return twin

    def _unblock(self, run):
        if run.id in self.waiting:
            self.waiting.discard(run.id)
            self.scheduler.unblocked(run.task)
            self.model.blocked -= 1

    def _finish(self, run, wanted):
        if run is None:
            return
        scheduler, model = self.scheduler, self.model
        (twin,) = (each for each in model.live(run.task.name) if each.id == run.id)
        expected = model.refuses(wanted, twin) if wanted else None
        if expected is not None:
            with pytest.raises(expected):
                scheduler.check(wanted, run)
            return
        joins = scheduler.check(wanted or (), run)
        self._unblock(run)
        self.outputs += 1
        terminal = scheduler.finished(run, self.outputs, wanted, joins)
        taken = model.end(self._twin(run), SUCCESS, self.outputs)
        if wanted and not model.stopped:
            model.serve(twin, wanted)
        if not (taken and model.stopped):  # after stop no join takes anything, so either will do
            assert terminal == (twin.place is None and not wanted and not twin.requests and not taken)
        model.after()

    def _open(self, run, wanted):
        scope, made = self.scheduler.open_list(run), self.model.new_list(self._twin(run), True, False)
        self.growing.append((scope, made))
        for request in wanted:
            self._request(scope, made, request)
        return scope, made

    def _request(self, scope, made, request):
        expected = self.model.refuses([request], None, made)
        if expected is not None:
            with pytest.raises(expected):
                self.scheduler.request(scope, request)
            return
        self.scheduler.request(scope, request)
        if not self.model.stopped:
            self.model.ask(made, request)
            self.model.after()

    def _close(self, open_list):
        scope, made = open_list
        self.growing.remove(open_list)
        self.scheduler.close_list(scope)
        made.closed = True
        self.model.after()


def test_any_requests_finished_in_any_order():
    """Whatever tasks ask for and in whatever order they finish, the scheduler agrees with the model."""
    # Reducing a failure may take longer than a test may; add Phase.shrink to see the shortest story.
    run_state_machine_as_test(
        AnyOrder,
        settings=settings(
            max_examples=80,
            stateful_step_count=50,
            phases=[Phase.explicit, Phase.generate],
            deadline=None,
            derandomize=True,
            database=None,
            report_multiple_bugs=False,
        ),
    )
