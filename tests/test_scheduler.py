"""Stories for the pure state machine of a run: events go in, the whole visible state is compared."""

from __future__ import annotations

import inspect
import sys
from collections import deque
from operator import itemgetter

import pytest

from millstream.engine.edges import Edges
from millstream.engine.ready import Ready
from millstream.engine.scheduler import Scheduler
from millstream.engine.states import Call, Coalesced, Scope, Settled, Spread, TaskRun, TaskState, Terms, Watch
from millstream.errors import BindingError, DependencyFailedError, StateError, TaskNotFoundError, TaskRunLimitError
from millstream.graph import Graph
from millstream.values import NextTask, Status


class Story:
    """A scheduler with tasks a to z on one ready queue, and a driver that does what a worker does.

    Every event returns ``seen()``: all that can be seen of the run, without what is empty. The task
    ``sum`` collects the outputs of its siblings when it is a join; ``picky`` refuses to be called
    without inputs. ``edges`` and ``routes`` make a graph, ``tasks`` gives options of tasks by name.
    """

    def __init__(self, *, edges=None, routes=None, tasks=None, **options):
        if edges is not None:
            options["graph"] = Graph(edges, routes or {})
        self.graph, self.tasks = options.get("graph"), tasks or {}
        self.queue = Ready()
        self.running: dict[str, TaskRun] = {}
        self.begun: list[TaskRun] = []
        self.terminal: dict[str, object] = {}
        self.scheduler = Scheduler(self.find, known=lambda: ("a", "b"), **options)

    def find(self, name, node):
        if name == "nope":
            return None
        facts = {"collects": name == "sum", "required": ("number",) if name == "picky" else ()}
        return TaskState(name, self.queue, Terms(**facts | self.tasks.get(name, {})), node)

    def start(self, *names):
        self.scheduler.start(listed(names))
        return self.seen()

    def begin(self, *ids):
        for wanted in ids or [run.id for run in self.queue]:
            run = next(run for run in self.queue if run.id == wanted)
            self.queue.remove(run)
            run.begin()
            self.running[wanted] = run
            self.begun.append(run)
        return self.seen()

    def finish(self, id, *requests, output=None, none=False):
        """Finish a task run, which begins now if it has not yet; as FlowRun.settle does.

        Without requests it follows its edges, or with ``none`` it has chosen to go nowhere.
        """
        if id not in self.running:
            self.begin(id)
        run, asked = self.running[id], listed(requests) if requests or none else None
        joins = self.scheduler.check(asked, run) if asked else False
        if self.scheduler.finished(run, output, asked, joins):
            self.terminal[id] = output
        del self.running[id]
        return self.seen()

    def fail(self, id, status=Status.FAILED):
        if id not in self.running:
            self.begin(id)
        self.scheduler.failed(self.running.pop(id), status)
        return self.seen()

    def retry(self, id, status=Status.FAILED):
        """An attempt fails, and is to be tried again: return the next one."""
        if id not in self.running:
            self.begin(id)
        return self.scheduler.retry(self.running.pop(id), status)

    def due(self, run):
        self.scheduler.due(run)
        return self.seen()

    def grant(self, *ids):
        """Give all who have asked for their limits, or some of them, what they want."""
        for run in [run for run in self.told(TaskRun) if not ids or run.id in ids]:
            self.scheduler.granted(run)
        return self.seen()

    def cancel(self, run):
        return self.scheduler.cancel(run), self.seen()

    def blocked(self, id):
        self.scheduler.blocked(self.running[id].task)

    def unblocked(self, id):
        self.scheduler.unblocked(self.running[id].task)

    def told(self, kind):
        """Return what the driver has been told of one kind so far."""
        return [entry for entry in self.scheduler.outbox if isinstance(entry, kind)]

    def ended(self):
        """Return what ended without a worker: who, how and why."""
        return [
            (entry.task.name if entry.run is None else entry.run.id, str(entry.status), entry.reason)
            for entry in self.told(Settled)
        ]

    def dropped(self):
        """Return the requests that coalesced: the task, the inputs that are kept, and those that were dropped."""
        return [(entry.task.name, entry.kept, entry.dropped) for entry in self.told(Coalesced)]

    def open(self, id):
        if id not in self.running:
            self.begin(id)
        return self.scheduler.open_list(self.running[id])

    def ask(self, scope, *requests):
        for request in listed(requests):
            self.scheduler.request(scope, request)
        return self.seen()

    def close(self, scope):
        self.scheduler.close_list(scope)
        return self.seen()

    def upstream(self, id):
        """Return what a ready join will be called with."""
        return next(run for run in self.queue if run.id == id).upstream

    def stop(self):
        """Return the ids of what was cancelled, and what is seen then."""
        cancelled = self.scheduler.stop()
        assert {run.status for run in cancelled} <= {Status.CANCELLED}
        return sorted(run.id for run in cancelled), self.seen()

    def expected(self):
        edges = self.scheduler.edges
        return [name for name, is_so in zip(self.graph.names, edges.expected, strict=True) if is_so] if edges else []

    def seen(self):
        scheduler = self.scheduler
        mapped = sum(run in scheduler.pending for run in self.running.values())
        assert scheduler.under_way == len(self.queue) + len(self.running) - mapped, "what is dispatched is counted"
        assert all(run.status is Status.RUNNING for run in self.running.values())
        everything = {
            "ready": [run.id for run in self.queue],
            "running": sorted(self.running),
            "held": held_by(scheduler),
            "held by task": [each for task in scheduler.tasks.values() if task.terms.gated for each in held_by(task)],
            "limited": sorted(run.id for run in scheduler.limited),
            "delayed": sorted(run.id for run in scheduler.delayed),
            "pending": sorted(run.id for run in scheduler.pending),
            "parked": sorted(run.id for run in scheduler.edges.parked()) if scheduler.edges else [],
            "expected": self.expected(),
            "lists": scheduler.feeds,
            "stopped": scheduler.stopped,
            "done": scheduler.done,
        }
        return {what: value for what, value in everything.items() if value}


def held_by(gate):
    """Return who is held back at a gate, in the order in which they will be let through."""
    return [run.id for _, _, run in sorted(gate.held, key=itemgetter(0, 1))]


def listed(requests):
    return [NextTask(each) if isinstance(each, str) else each for each in requests]


def more(name, **inputs):
    return NextTask(name, inputs or None, spawn_another=True)


def join(name, **options):
    return NextTask(name, join=True, **options)


def everything(value, names=None):
    """Return all that can be reached from a scheduler as plain values, to compare before and after."""
    names = {} if names is None else names
    if isinstance(value, TaskState) and not value.count:
        return "never scheduled"  # tasks are met when they are first looked at, which decides nothing
    if isinstance(value, Scheduler | TaskState | TaskRun | Scope | Edges | Ready | Watch | Call | Spread):
        if id(value) in names:
            return names[id(value)]
        names[id(value)] = f"{type(value).__name__} {len(names)}"
        slots = ["tasks", *vars(value)] if isinstance(value, Scheduler) else value.__slots__
        # ``asked`` and ``_nodes`` are ways to find what is in ``tasks``.
        slots = [slot for slot in slots if slot not in ("handle", "asked", "_nodes") and hasattr(value, slot)]
        return {slot: everything(getattr(value, slot), names) for slot in slots}
    if isinstance(value, dict):
        found = {key: everything(each, names) for key, each in value.items()}
        return {key: each for key, each in found.items() if each != "never scheduled"}
    if isinstance(value, list | tuple | deque | bytearray):
        return [everything(each, names) for each in value]
    if isinstance(value, set | frozenset):
        return [everything(each, names) for each in sorted(value, key=lambda each: getattr(each, "id", each))]
    return value


# ---- requests ----------------------------------------------------------------------------------------


def test_a_chain_is_one_task_run_after_the_other():
    """What a task run asks for is ready the moment it has finished, and at the end nothing is left."""
    story = Story()

    assert story.start("a") == {"ready": ["a"]}
    assert story.begin("a") == {"running": ["a"]}
    assert story.finish("a", "b") == {"ready": ["b"]}
    assert story.finish("b", "c") == {"ready": ["c"]}
    assert story.finish("c") == {"done": True}
    assert story.terminal == {"c": None}
    assert story.scheduler.scheduled == 3


def test_several_starts_are_ready_in_their_order():
    """The first task runs are ready in the order they were asked for, and what they ask for comes behind."""
    story = Story()

    assert story.start("c", "a", "b") == {"ready": ["c", "a", "b"]}
    assert story.finish("a", "z", "y") == {"ready": ["c", "b", "z", "y"]}


def test_a_loop_keeps_its_bare_name():
    """A task that asks for itself runs again as itself, since it is not under way any more."""
    story = Story()
    story.start("a")

    for _ in range(3):
        assert story.finish("a", "a") == {"ready": ["a"]}
    assert story.finish("a", output="last") == {"done": True}
    assert story.terminal == {"a": "last"}
    assert len({id(run) for run in story.begun}) == 4


def test_a_request_for_what_is_ready_or_running_coalesces():
    """A task that is ready or running is not scheduled again; without inputs nobody needs to know."""
    story = Story()
    story.start("a", "b", "c")

    assert story.finish("a", "b", "d", "d") == {"ready": ["b", "c", "d"]}
    story.begin("b")
    assert story.finish("c", "b", "d") == {"ready": ["d"], "running": ["b"]}
    assert story.scheduler.scheduled == 4
    assert story.told(Coalesced) == []


def test_a_dropped_request_with_inputs_is_recorded():
    """What coalesces is recorded with the inputs that are kept and those that are dropped, if there are any."""
    story = Story()
    story.start("a", "b")

    story.finish("a", NextTask("c", {"x": 1}), NextTask("c", {"x": 2}), "c", NextTask("b", {"y": 3}), "b")
    assert story.dropped() == [("c", {"x": 1}, {"x": 2}), ("c", {"x": 1}, None), ("b", None, {"y": 3})]


def test_dropped_inputs_are_compared_with_the_newest_ones():
    """The inputs that are kept are those of the newest task run, so that an older loop turn does not count."""
    story = Story()
    story.start(NextTask("a", {"turn": 1}))

    story.finish("a", NextTask("a", {"turn": 2}), NextTask("a", {"turn": 3}))
    assert story.dropped() == [("a", {"turn": 2}, {"turn": 3})]


def test_spawned_task_runs_are_numbered_in_the_order_of_the_requests():
    """The first spawned one has the bare name, and every further one a new number."""
    story = Story()
    story.start("a")

    assert story.finish("a", more("b"), more("c"), more("b"), more("b")) == {"ready": ["b", "c", "b#2", "b#3"]}
    assert story.finish("b#2", more("b")) == {"ready": ["b", "c", "b#3", "b#4"]}


def test_numbers_are_never_used_twice():
    """A spawned task run gets a new number also when all earlier ones are over."""
    story = Story()
    story.start("a")

    story.finish("a", more("b"), more("b"))
    story.finish("b")
    assert story.finish("b#2", more("b")) == {"ready": ["b#3"]}


def test_spawning_after_a_bare_request_counts_from_two():
    """A bare task run is the first of its name, so the next spawned one is name#2, and a bare one is bare again."""
    story = Story()
    story.start("a")

    assert story.finish("a", "b", more("b")) == {"ready": ["b", "b#2"]}
    story.finish("b")
    assert story.finish("b#2", "b", more("b")) == {"ready": ["b", "b#3"]}


def test_a_bare_request_coalesces_with_a_spawned_task_run():
    """A bare request is dropped while any task run of that task is under way."""
    story = Story()
    story.start("a")
    story.finish("a", more("b"), more("b"), "c")
    story.finish("b")

    assert story.finish("c", "b") == {"ready": ["b#2"]}


def test_terminal_is_what_asked_for_nothing():
    """A task run is terminal when it made no request; one that coalesced is a request."""
    story = Story()
    story.start("a", "b", "c")

    story.finish("a", "b", output="not the end")
    story.finish("b", output="end")
    story.finish("c", "d", output="not the end")
    story.finish("d", output="end")
    assert story.terminal == {"b": "end", "d": "end"}


# ---- joins -------------------------------------------------------------------------------------------


def test_a_join_starts_once_and_last():
    """A join starts when the last of its siblings has finished, once, with their outputs in list order."""
    story = Story()
    story.start("a")

    assert story.finish("a", more("w"), join("sum"), more("w")) == {"ready": ["w", "w#2"], "pending": ["sum"]}
    assert story.finish("w#2", output="second") == {"ready": ["w"], "pending": ["sum"]}
    assert story.finish("w", output="first") == {"ready": ["sum"]}
    assert story.upstream("sum") == ["first", "second"]
    assert story.finish("sum") == {"done": True}
    assert story.terminal == {"sum": None}  # a join took the outputs of the others


def test_a_join_waits_for_what_its_siblings_schedule():
    """The scope of a join is its siblings and everything that they schedule in turn; it takes its siblings' outputs."""
    story = Story()
    story.start("a")

    story.finish("a", "b", join("sum"))
    assert story.finish("b", "c", "d", output="of b") == {"ready": ["c", "d"], "pending": ["sum"]}
    assert story.finish("c", "e", output="of c") == {"ready": ["d", "e"], "pending": ["sum"]}
    assert story.finish("e") == {"ready": ["d"], "pending": ["sum"]}
    assert story.finish("d") == {"ready": ["sum"]}
    assert story.upstream("sum") == ["of b"]


def test_a_join_waits_for_what_its_siblings_spawn():
    """Task runs that a sibling spawns count in its scope as well, as many as there are."""
    story = Story(tasks={"c": {"reads_upstream": False}})
    story.start("a")

    story.finish("a", "b", join("sum"))
    assert story.finish("b", more("c"), more("c"), more("d")) == {"ready": ["c", "c#2", "d"], "pending": ["sum"]}
    story.finish("c")
    story.finish("d")
    assert story.finish("c#2") == {"ready": ["sum"]}


def test_a_join_does_not_wait_for_others():
    """What was scheduled outside of its list is no business of a join."""
    story = Story()
    story.start("a", "other")

    story.finish("a", "b", join("sum"))
    assert story.finish("b") == {"ready": ["other", "sum"]}


def test_joins_nest():
    """A join inside the scope of another one comes first, and what it schedules still belongs to the outer scope."""
    story = Story()
    story.start("a")

    story.finish("a", "b", join("outer"))
    assert story.finish("b", "c", join("inner")) == {"ready": ["c"], "pending": ["inner", "outer"]}
    assert story.finish("c", output=1) == {"ready": ["inner"], "pending": ["outer"]}
    assert story.upstream("inner") == [1]
    assert story.finish("inner", "d", output=2) == {"ready": ["d"], "pending": ["outer"]}
    assert story.finish("d") == {"ready": ["outer"]}
    assert story.upstream("outer") == [None]
    assert story.finish("outer") == {"done": True}


def test_a_deep_nest_unwinds_one_join_at_a_time():
    """With joins nested 50 deep, the innermost is the first to start and the outermost the last."""
    story = Story()
    story.start("s")
    for depth in range(50):
        story.finish("s", "s", join("j", spawn_another=True))
        assert len(story.scheduler.pending) == depth + 1

    story.finish("s")
    for number in range(50, 0, -1):
        name = "j" if number == 1 else f"j#{number}"
        assert [run.id for run in story.queue] == [name]
        story.finish(name)
    assert story.seen() == {"done": True}


def test_a_join_without_siblings_is_a_plain_request():
    """A join alone in its list runs at once, and so do several; like a plain request it coalesces."""
    story = Story()
    story.start("a", "b", "c")

    assert story.finish("a", join("d"), join("e")) == {"ready": ["b", "c", "d", "e"]}
    assert story.finish("b", join("c")) == {"ready": ["c", "d", "e"]}
    assert story.terminal == {}


def test_a_join_without_siblings_belongs_to_the_scope_around_it():
    """A lone join counts in the scope of the task run that asked for it."""
    story = Story()
    story.start("a")
    story.finish("a", "b", join("outer"))

    assert story.finish("b", join("alone")) == {"ready": ["alone"], "pending": ["outer"]}
    assert story.finish("alone") == {"ready": ["outer"]}


def test_several_joins_wait_for_the_siblings_that_are_none():
    """The joins of one list do not wait for each other: all start together, in list order, with the same outputs."""
    story = Story()
    story.start("a")

    assert story.finish("a", join("j"), "b", join("k")) == {"ready": ["b"], "pending": ["j", "k"]}
    assert story.finish("b", output=1) == {"ready": ["j", "k"]}
    assert story.upstream("j") == story.upstream("k") == [1]


def test_the_scope_around_waits_for_joins_too():
    """A join counts in the scope around its list until it has finished."""
    story = Story()
    story.start("a")
    story.finish("a", "b", join("outer"))
    story.finish("b", "c", join("j"), join("k"))
    story.finish("c")

    assert story.finish("k") == {"ready": ["j"], "pending": ["outer"]}
    assert story.finish("j") == {"ready": ["outer"]}


def test_a_join_never_coalesces():
    """Two lists with a join of the same task give two task runs, since each has outputs of its own to take."""
    story = Story()
    story.start("a", "b")

    story.finish("a", "c", join("sum"))
    assert story.finish("b", "d", join("sum")) == {"ready": ["c", "d"], "pending": ["sum", "sum#2"]}
    assert story.finish("d", output="of d") == {"ready": ["c", "sum#2"], "pending": ["sum"]}
    assert story.upstream("sum#2") == ["of d"]
    assert story.finish("c", output="of c") == {"ready": ["sum#2", "sum"]}
    assert story.upstream("sum") == ["of c"]


def test_a_failed_sibling_settles_with_no_output():
    """For a join that runs anyway a sibling that failed, was cancelled or given up gives None."""
    story = Story(tasks={"sum": {"on_dep_failure": "run-anyway"}})
    story.start("a")
    story.finish("a", "b", "c", "d", "e", join("sum"))

    story.fail("b")
    story.fail("c", Status.CANCELLED)
    story.finish("d", output="of d")
    assert story.fail("e", Status.ABANDONED) == {"ready": ["sum"]}
    assert story.upstream("sum") == [None, None, "of d", None]


@pytest.mark.parametrize(("policy", "status"), [("fail", Status.FAILED), ("skip", Status.SKIPPED)])
def test_a_join_of_which_a_sibling_failed_does_not_start(policy, status):
    """When the last of its list is over a join fails, or is skipped, and the error names every sibling that failed."""
    story = Story(tasks={"sum": {"on_dep_failure": policy}})
    story.start("a")
    story.finish("a", "b", more("b"), "c", join("sum"))

    story.fail("b#2")
    assert story.fail("b") == {"ready": ["c"], "pending": ["sum"]}
    assert story.ended() == []
    assert story.finish("c") == {"done": True}
    (settled,) = story.told(Settled)
    assert (settled.run.id, settled.run.status, settled.status) == ("sum", status, status)
    assert isinstance(settled.error, DependencyFailedError)
    assert set(settled.error.failed) == {"b", "b#2"}


def test_what_a_sibling_scheduled_may_fail():
    """A join waits for all that its siblings scheduled, and fails for its siblings alone."""
    story = Story()
    story.start("a")
    story.finish("a", "b", join("sum"))
    story.finish("b", "c", output="of b")

    assert story.fail("c") == {"ready": ["sum"]}
    assert story.upstream("sum") == ["of b"]


def test_a_join_takes_the_output_of_what_a_sibling_coalesced_with():
    """A sibling that is under way elsewhere is waited for like the others, and its output has its place."""
    story = Story()
    story.start("b", "a")
    story.begin("b")

    assert story.finish("a", "c", "b", join("sum")) == {"ready": ["c"], "running": ["b"], "pending": ["sum"]}
    assert story.finish("c", output="of c") == {"running": ["b"], "pending": ["sum"]}
    assert story.finish("b", output="of b") == {"ready": ["sum"]}
    assert story.upstream("sum") == ["of c", "of b"]


def test_a_coalesced_sibling_that_fails_gives_nothing():
    """A join that runs anyway is released also when what its sibling coalesced with fails."""
    story = Story(tasks={"sum": {"on_dep_failure": "run-anyway"}})
    story.start("b", "a")

    story.finish("a", "b", join("sum"))
    assert story.fail("b") == {"ready": ["sum"]}
    assert story.upstream("sum") == [None]


def test_an_output_that_a_join_takes_by_coalescing_is_not_terminal():
    """A task run whose output a join takes is no terminal one, wherever it was scheduled."""
    story = Story()
    story.start("b", "a")
    story.finish("a", "b", join("sum"))

    story.finish("b", output="taken")
    assert story.upstream("sum") == ["taken"]
    assert story.terminal == {}


def test_a_sibling_does_not_coalesce_with_who_asks():
    """A task that asks for its own task waits for the others of that name which are under way, not for itself."""
    story = Story()
    story.start("a", more("a"))

    assert story.finish("a", "a", join("sum"), output="asks") == {"ready": ["a#2"], "pending": ["sum"]}
    assert story.finish("a#2", output="of a#2") == {"ready": ["sum"]}
    assert story.upstream("sum") == ["of a#2"]


def test_one_sibling_requested_twice_gives_its_output_twice():
    """The second request for a task in one list coalesces with the first, and both places get its output."""
    story = Story()
    story.start("a")

    assert story.finish("a", "b", "b", join("sum")) == {"ready": ["b"], "pending": ["sum"]}
    assert story.finish("b", output=1) == {"ready": ["sum"]}
    assert story.upstream("sum") == [1, 1]


def test_a_join_waits_for_every_task_run_of_what_its_sibling_coalesced_with():
    """With several task runs of that task under way, the join waits for all and takes the last output."""
    story = Story()
    story.start("s", "a")
    story.finish("s", more("b"), more("b"))

    assert story.finish("a", "b", join("sum")) == {"ready": ["b", "b#2"], "pending": ["sum"]}
    assert story.finish("b#2", output=2) == {"ready": ["b"], "pending": ["sum"]}
    assert story.finish("b", output=1) == {"ready": ["sum"]}
    assert story.upstream("sum") == [1]


def test_a_join_does_not_wait_for_a_join_around_it():
    """A sibling that coalesced with an enclosing join is not waited for: they would wait for each other."""
    story = Story()
    story.start("a")
    story.finish("a", "b", join("outer"))
    story.finish("b", "c", join("middle"))

    story.finish("c", "outer", "d", "middle", join("sum"))
    assert story.seen() == {"ready": ["d"], "pending": ["middle", "outer", "sum"]}
    assert story.finish("d", output="of d") == {"ready": ["sum"], "pending": ["middle", "outer"]}
    assert story.upstream("sum") == [None, "of d", None]
    assert story.finish("sum") == {"ready": ["middle"], "pending": ["outer"]}
    assert story.finish("middle") == {"ready": ["outer"]}


def test_a_join_of_the_task_that_a_sibling_coalesced_with_is_not_waited_for():
    """A join waits for the task run that its sibling coalesced with, not for itself when it is of the same task."""
    story = Story()
    story.start("b", "a")

    assert story.finish("a", "b", "c", join("b")) == {"ready": ["b", "c"], "pending": ["b#2"]}
    assert story.finish("c", output="of c") == {"ready": ["b"], "pending": ["b#2"]}
    assert story.finish("b", output="of b") == {"ready": ["b#2"]}
    assert story.upstream("b#2") == ["of b", "of c"]


def test_a_coalesced_sibling_that_joins_on_is_not_waited_for_twice():
    """What a sibling coalesced with may ask for its own task again as a join, without waiting in a circle."""
    story = Story()
    story.start("b", "a")
    assert story.finish("a", "b", join("j")) == {"ready": ["b"], "pending": ["j"]}

    assert story.finish("b", "j", join("b"), output="of b") == {"ready": ["j"], "pending": ["b"]}
    assert story.upstream("j") == ["of b"]
    assert story.finish("j") == {"ready": ["b"]}
    assert story.finish("b") == {"done": True}


def test_a_join_in_a_loop():
    """A task that fans out and joins on itself runs again and again, each time with new outputs."""
    story = Story()
    story.start("a")

    for turn in range(1, 4):
        requests = [more("w"), more("w"), join("a")]
        assert story.finish("a", *requests)["pending"] == ["a"]
        for run in list(story.queue):
            story.finish(run.id, output=turn)
        assert story.seen() == {"ready": ["a"]}
        assert story.upstream("a") == [turn, turn]
    assert story.finish("a") == {"done": True}
    assert [run.id for run in story.begun] == ["a", "w", "w#2", "a", "w#3", "w#4", "a", "w#5", "w#6", "a"]


# ---- lists that grow while they are served -----------------------------------------------------------


def test_a_growing_list_with_its_join_first():
    """A join that comes first collects every sibling of a growing list, and starts when the list is complete."""
    story = Story()
    story.start("g")

    scope = story.open("g")
    assert story.ask(scope, join("sum")) == {"running": ["g"], "pending": ["sum"], "lists": 1}
    assert story.ask(scope, "b") == {"ready": ["b"], "running": ["g"], "pending": ["sum"], "lists": 1}
    assert story.finish("b", output=1) == {"running": ["g"], "pending": ["sum"], "lists": 1}
    assert story.ask(scope, "b") == {"ready": ["b"], "running": ["g"], "pending": ["sum"], "lists": 1}
    assert story.close(scope) == {"ready": ["b"], "running": ["g"], "pending": ["sum"]}
    assert story.finish("b", output=2) == {"ready": ["sum"], "running": ["g"]}
    assert story.upstream("sum") == [1, 2]
    story.finish("sum")
    assert story.finish("g") == {"done": True}
    assert story.terminal == {"sum": None}  # siblings have been taken, g has requested


def test_a_growing_list_with_its_join_last():
    """A join that needs no outputs may come last; its siblings are terminal then, as no join takes their outputs."""
    story = Story()
    story.start("g")

    scope = story.open("g")
    story.finish("g")
    story.ask(scope, "b", "c")
    story.finish("b", output=1)
    assert story.ask(scope, join("j")) == {"ready": ["c"], "pending": ["j"], "lists": 1}
    assert story.finish("c", output=2) == {"pending": ["j"], "lists": 1}
    assert story.close(scope) == {"ready": ["j"]}
    assert story.upstream("j") is None
    assert story.terminal == {"g": None, "b": 1, "c": 2}


def test_a_join_that_collects_must_come_first():
    """Nothing is kept of siblings that went before: a join that wants their outputs is refused and changes nothing."""
    story = Story()
    story.start("g")
    scope = story.open("g")
    story.ask(scope, "b")

    before = everything(story.scheduler)
    with pytest.raises(BindingError, match="before its siblings"):
        story.ask(scope, join("sum"))
    assert everything(story.scheduler) == before
    assert story.close(scope) == {"ready": ["b"], "running": ["g"]}


def test_several_joins_may_come_first():
    """All joins at the head of a growing list collect the same outputs."""
    story = Story()
    story.start("g")
    scope = story.open("g")

    story.ask(scope, join("j"), join("sum"), join("sum"), "b")
    story.close(scope)
    assert story.finish("b", output=1) == {"ready": ["j", "sum", "sum#2"], "running": ["g"]}
    assert story.upstream("j") == story.upstream("sum") == story.upstream("sum#2") == [1]


def test_a_growing_list_of_joins_alone():
    """Without siblings the joins of a growing list start when it is complete, with no outputs."""
    story = Story()
    story.start("g")
    scope = story.open("g")

    assert story.ask(scope, join("sum")) == {"running": ["g"], "pending": ["sum"], "lists": 1}
    assert story.close(scope) == {"ready": ["sum"], "running": ["g"]}
    assert story.upstream("sum") == []


def test_an_empty_growing_list_changes_nothing():
    """A list that is opened and closed again leaves its owner terminal."""
    story = Story()
    story.start("g")

    scope = story.open("g")
    assert story.seen() == {"running": ["g"], "lists": 1}
    assert story.close(scope) == {"running": ["g"]}
    story.finish("g")
    assert story.terminal == {"g": None}


def test_a_run_is_not_done_while_a_list_grows():
    """A list that may still grow keeps the run open, and the scope around it as well."""
    story = Story()
    story.start("a")
    story.finish("a", "g", join("outer"))

    scope = story.open("g")
    assert story.finish("g", output=1) == {"pending": ["outer"], "lists": 1}
    story.ask(scope, "b")
    assert story.finish("b") == {"pending": ["outer"], "lists": 1}
    assert story.close(scope) == {"ready": ["outer"]}
    assert story.upstream("outer") == [1]


def test_a_second_list_of_one_task_run_has_joins_of_its_own():
    """A task that yielded requests may still return a growing list that begins with a join which collects."""
    story = Story()
    story.start("g")
    first = story.open("g")
    story.ask(first, "b")
    story.close(first)

    second = story.open("g")
    story.finish("g")
    assert story.ask(second, join("sum"), "c") == {"ready": ["b", "c"], "pending": ["sum"], "lists": 1}
    story.close(second)
    assert story.finish("c", output=3) == {"ready": ["b", "sum"]}
    assert story.upstream("sum") == [3]


def test_a_list_may_follow_a_growing_one():
    """A task that yielded requests may return a list with a join, which waits for that list alone."""
    story = Story()
    story.start("g")
    scope = story.open("g")
    story.ask(scope, "b")
    story.close(scope)

    assert story.finish("g", "c", join("sum")) == {"ready": ["b", "c"], "pending": ["sum"]}
    assert story.finish("c", output=3) == {"ready": ["b", "sum"]}
    assert story.upstream("sum") == [3]
    assert len({run.path for run in [*story.queue, *story.begun]}) == 4


# ---- what is refused changes nothing (Rule 3) --------------------------------------------------------

REFUSED = {
    "unknown": (["a", "nope"], TaskNotFoundError, "Task nope not found"),
    "unknown join": (["b", join("nope")], TaskNotFoundError, "Task nope not found"),
    "no request": (["b", object()], TypeError, "not <object object"),
    "lacks an input": (["b", "picky"], BindingError, "parameter number"),
    "too many": ([more("b"), more("b"), more("b")], TaskRunLimitError, "b would be one more"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_list_changes_nothing(what):
    """A list that cannot be served raises before anything of it is scheduled, and its task run still runs."""
    requests, error, message = REFUSED[what]
    story = Story(max_task_runs=5)
    story.start("a")
    story.finish("a", "w", join("sum"))
    story.begin("w")

    before = everything(story.scheduler)
    with pytest.raises(error, match=message):
        story.finish("w", *requests)
    assert everything(story.scheduler) == before
    assert story.finish("w") == {"ready": ["sum"]}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_start_changes_nothing(what):
    """A start that cannot be served raises before anything is scheduled."""
    requests, error, message = REFUSED[what]
    story = Story(max_task_runs=2)

    before = everything(story.scheduler)
    with pytest.raises(error, match=message):
        story.start(*requests)
    assert everything(story.scheduler) == before
    assert story.seen() == {"done": True}


@pytest.mark.parametrize("what", [what for what in REFUSED if what != "too many"])
def test_a_refused_request_of_a_growing_list_changes_nothing(what):
    """A growing list goes on after a request that was refused, as though it had not been made."""
    requests, error, message = REFUSED[what]
    story = Story(max_task_runs=2)
    story.start("g")
    scope = story.open("g")

    before = everything(story.scheduler)
    with pytest.raises(error, match=message):
        story.ask(scope, requests[-1])
    assert everything(story.scheduler) == before
    assert story.ask(scope, "b") == {"ready": ["b"], "running": ["g"], "lists": 1}


def test_the_error_for_an_unknown_task_lists_the_known_ones():
    """Who asks for a task that is not there is told which ones are."""
    story = Story()

    with pytest.raises(TaskNotFoundError) as caught:
        story.start("nope")
    assert caught.value.known == ("a", "b")


# ---- max_task_runs -----------------------------------------------------------------------------------


def test_the_limit_ends_a_loop():
    """A task that asks for itself for ever is refused when the run has had its number of task runs."""
    story = Story(max_task_runs=3)
    story.start("a")
    story.finish("a", "a")
    story.finish("a", "a")

    with pytest.raises(TaskRunLimitError) as caught:
        story.finish("a", "a")
    assert caught.value.limit == 3
    assert story.scheduler.scheduled == 3
    assert story.finish("a") == {"done": True}


def test_the_limit_counts_only_what_does_not_coalesce():
    """Requests that will be dropped are free, also within their own list."""
    story = Story(max_task_runs=4)
    story.start("a", "b")

    assert story.finish("a", "b", "c", "c", "b", "d", "c") == {"ready": ["b", "c", "d"]}
    assert story.scheduler.scheduled == 4
    assert story.finish("c", "b", "d") == {"ready": ["b", "d"]}
    with pytest.raises(TaskRunLimitError):
        story.finish("b", "b")


def test_the_limit_counts_joins():
    """A join never coalesces, so it counts also when its task is under way."""
    story = Story(max_task_runs=2)
    story.start("a")

    with pytest.raises(TaskRunLimitError):
        story.finish("a", "b", join("b"))
    assert story.scheduler.scheduled == 1


def test_the_limit_counts_the_joins_of_a_growing_list():
    """A join of a growing list counts also when its task is under way."""
    story = Story(max_task_runs=2)
    story.start("g")
    scope = story.open("g")
    story.ask(scope, "b")

    with pytest.raises(TaskRunLimitError):
        story.ask(scope, join("b"))
    assert story.scheduler.scheduled == 2


def test_a_lone_join_within_the_limit_coalesces():
    """A join without siblings is a plain request, also for the limit."""
    story = Story(max_task_runs=2)
    story.start("a", "b")

    assert story.finish("a", join("b")) == {"ready": ["b"]}


# ---- max_parallel ------------------------------------------------------------------------------------


def test_max_parallel_holds_the_rest_back_in_order():
    """No more than max_parallel are dispatched at once; the others follow first come, first served."""
    story = Story(max_parallel=2)

    assert story.start("a", "b", "c", "d") == {"ready": ["a", "b"], "held": ["c", "d"]}
    assert story.finish("b", "e") == {"ready": ["a", "c"], "held": ["d", "e"]}
    assert story.fail("a") == {"ready": ["c", "d"], "held": ["e"]}
    story.finish("d")
    assert story.finish("c") == {"ready": ["e"]}
    assert story.finish("e") == {"done": True}


def test_what_is_held_coalesces_too():
    """A task run that is held back is pending: a bare request for it is dropped."""
    story = Story(max_parallel=1)
    story.start("a", "b")

    assert story.finish("a", "b") == {"ready": ["b"]}


def test_max_parallel_holds_joins_back():
    """A join that has waited for its siblings still waits for its turn."""
    story = Story(max_parallel=1)
    story.start("a", "b")
    assert story.finish("a", "c", join("sum")) == {"ready": ["b"], "held": ["c"], "pending": ["sum"]}

    assert story.finish("b", "d") == {"ready": ["c"], "held": ["d"], "pending": ["sum"]}
    assert story.begin("c") == {"running": ["c"], "held": ["d"], "pending": ["sum"]}
    story.blocked("c")
    assert story.seen() == {"ready": ["d"], "running": ["c"], "pending": ["sum"]}
    story.unblocked("c")
    assert story.finish("c", output=1) == {"ready": ["d"], "held": ["sum"]}
    assert story.finish("d") == {"ready": ["sum"]}
    assert story.upstream("sum") == [1]


def test_what_was_requested_first_goes_first():
    """What is held back goes on in the order of the requests: a join that was asked for before others goes before."""
    story = Story(max_parallel=1)
    story.start("a", "b")
    story.finish("a", "c", join("sum"))
    story.finish("b", "d")

    assert story.seen() == {"ready": ["c"], "held": ["d"], "pending": ["sum"]}
    assert story.finish("c") == {"ready": ["sum"], "held": ["d"]}


def test_blocked_task_runs_do_not_count_for_max_parallel():
    """A task run that waits for a value lets another one come, and goes on without waiting for a place."""
    story = Story(max_parallel=1)
    story.start("a", "b", "c", "d")
    story.begin("a")

    story.blocked("a")
    assert story.seen() == {"ready": ["b"], "running": ["a"], "held": ["c", "d"]}
    story.unblocked("a")
    assert story.seen() == {"ready": ["b"], "running": ["a"], "held": ["c", "d"]}
    assert story.finish("a") == {"ready": ["b"], "held": ["c", "d"]}
    assert story.finish("b") == {"ready": ["c"], "held": ["d"]}


def test_a_growing_list_under_max_parallel():
    """Requests of a growing list are held back like all others, and admitted when its owner ends."""
    story = Story(max_parallel=1)
    story.start("g")
    scope = story.open("g")

    assert story.ask(scope, join("sum"), "b") == {"running": ["g"], "held": ["b"], "pending": ["sum"], "lists": 1}
    assert story.finish("g") == {"ready": ["b"], "pending": ["sum"], "lists": 1}
    assert story.close(scope) == {"ready": ["b"], "pending": ["sum"]}
    assert story.finish("b") == {"ready": ["sum"]}


# ---- edges -------------------------------------------------------------------------------------------

DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


def needs(story, id):
    """Return the outputs of its dependencies that a ready task run will be called with."""
    return next(run for run in story.queue if run.id == id).needs


def test_a_finish_follows_the_edges():
    """What depends on several tasks starts once, when the last of them has finished, with all outputs by name."""
    story = Story(edges=DIAMOND)

    assert story.start("a") == {"ready": ["a"], "expected": ["b", "c", "d"]}
    assert story.finish("a", output=1) == {"ready": ["b", "c"], "expected": ["d"]}
    assert needs(story, "b") == needs(story, "c") == {"a": 1}
    assert story.finish("c", output=3) == {"ready": ["b"], "expected": ["d"]}
    assert story.finish("b", output=2) == {"ready": ["d"]}
    assert needs(story, "d") == {"b": 2, "c": 3}
    assert story.finish("d", output=4) == {"done": True}
    assert story.terminal == {"d": 4}


def test_a_choice_replaces_the_edges():
    """A list, even an empty one, is the task's own choice: what it did not lead to is skipped, with a reason."""
    story = Story(edges=DIAMOND)
    story.start("a")
    story.finish("a")

    story.finish("b", none=True, output="nowhere")
    assert story.finish("c", "z") == {"ready": ["z"]}
    assert story.ended() == [("d", "SKIPPED", "nothing that leads to it ran")]
    assert story.scheduler.tasks["d"].worst is Status.SKIPPED
    story.finish("z")
    assert story.terminal == {"b": "nowhere", "z": None}


def test_one_branch_is_enough():
    """A task behind several branches runs when at least one of them led to it."""
    story = Story(edges=DIAMOND)
    story.start("a")
    story.finish("a")

    story.finish("b", none=True, output=2)
    assert story.finish("c", output=3) == {"ready": ["d"]}
    assert needs(story, "d") == {"b": 2, "c": 3}


def test_what_was_not_chosen_is_skipped_with_all_behind_it():
    """A router runs what it chose; the rest is skipped, and so is what cannot be reached any more."""
    story = Story(edges={"r": [], "b": [], "c": [], "d": ["c"], "e": ["b", "d"]}, routes={"r": ["b", "c"]})

    assert story.start("r") == {"ready": ["r"], "expected": ["b", "c", "d", "e"]}
    assert story.finish("r", "b") == {"ready": ["b"], "expected": ["e"]}
    assert story.ended() == [
        ("c", "SKIPPED", "it was not chosen"),
        ("d", "SKIPPED", "nothing that leads to it ran"),
    ]
    assert story.finish("b", output=1) == {"ready": ["e"]}
    assert needs(story, "e") == {"b": 1}


def test_what_is_asked_for_waits_for_its_dependencies():
    """A requested task waits for those of its dependencies that are pending or running, and for no others."""
    story = Story(edges={"a": [], "b": [], "c": ["a", "b"], "z": []})
    story.start("z", "a")

    assert story.finish("z", "c") == {"ready": ["a"], "parked": ["c"]}
    assert story.finish("a", output=1, none=True) == {"ready": ["c"]}
    assert needs(story, "c") == {"a": 1}
    assert story.finish("c", "b", "c") == {"ready": ["b"], "parked": ["c"]}
    assert story.scheduler.structural_waits() == [("c", "b")]
    assert story.finish("b", output=2) == {"ready": ["c"]}
    assert needs(story, "c") == {"b": 2, "a": 1}


def test_a_spawning_dependency_is_waited_for_as_a_whole():
    """With several runs of one task under way its dependants wait for all, run once, and get the newest output."""
    story = Story(edges={"z": [], "a": [], "b": ["a"]})
    story.start("z")

    story.finish("z", more("a"), more("a"), more("a"))
    assert story.finish("a#2", output=2) == {"ready": ["a", "a#3"], "expected": ["b"]}
    story.finish("a#3", output=3)
    assert story.finish("a", output=1) == {"ready": ["b"]}
    assert needs(story, "b") == {"a": 1}
    assert story.finish("b") == {"done": True}


def test_each_wave_follows_the_edges_anew():
    """A task that is asked for again leads to what depends on it again, and that waits while it may come again."""
    story = Story(edges={"a": [], "b": ["a"], "c": ["b"]})
    story.start("a")
    story.finish("a", output=1)
    story.begin("b")

    assert story.finish("b", "a") == {"ready": ["a"], "expected": ["b", "c"]}
    assert story.finish("a", output=2) == {"ready": ["b"], "expected": ["c"]}
    assert needs(story, "b") == {"a": 2}
    assert story.finish("b") == {"ready": ["c"]}
    assert story.finish("c") == {"done": True}
    assert story.ended() == []


@pytest.mark.parametrize(
    ("policy", "seen", "ended"),
    [
        ("fail", {"done": True}, ["b FAILED", "c FAILED"]),
        ("skip", {"done": True}, ["b SKIPPED", "c FAILED"]),
        ("run-anyway", {"ready": ["b"], "expected": ["c"]}, []),
    ],
)
def test_a_failed_dependency(policy, seen, ended):
    """What depends on a failure fails, is skipped (a failure for what comes next), or runs, as its policy says."""
    story = Story(edges={"a": [], "b": ["a"], "c": ["b"]}, tasks={"b": {"on_dep_failure": policy}})
    story.start("a")

    assert story.fail("a") == seen
    assert [f"{who} {how}" for who, how, _ in story.ended()] == ended
    if not ended:
        assert needs(story, "b") == {}
        assert story.finish("b", output=2) == {"ready": ["c"]}


def test_a_failed_router_is_a_failed_dependency():
    """A route counts as a dependency on its router: what it might have chosen fails by its policy."""
    story = Story(edges={"r": [], "b": [], "c": []}, routes={"r": "bc"}, tasks={"c": {"on_dep_failure": "run-anyway"}})
    story.start("r")

    assert story.fail("r") == {"ready": ["c"]}
    assert [(who, how) for who, how, _ in story.ended()] == [("b", "FAILED")]


def test_a_failure_is_named_once():
    """The error of what did not start names each dependency that failed once, however often it failed."""
    story = Story(edges={"z": [], "a": [], "b": [], "c": ["a", "b"]})
    story.start("z")
    story.finish("z", more("a"), more("a"), "b")

    for each in ("a", "a#2", "b"):
        story.fail(each)
    (settled,) = story.told(Settled)
    assert sorted(settled.error.failed) == ["a", "b"]


@pytest.mark.parametrize(("policy", "status"), [("fail", "FAILED"), ("skip", "SKIPPED")])
def test_a_request_that_was_dropped_is_not_run_by_the_other_edges(policy, status):
    """What was asked for by name and has a failed dependency ends once, though another one led to it."""
    story = Story(edges={"a": [], "b": [], "d": ["a", "b"]}, tasks={"d": {"on_dep_failure": policy}})
    story.start("d", "a", "b")
    story.finish("a")

    assert story.fail("b") == {"done": True}
    assert [(who, how) for who, how, _ in story.ended()] == [("d", status)]


@pytest.mark.parametrize("how", ["list", "generator"])
@pytest.mark.parametrize("mended", [False, True])
def test_a_request_meets_what_has_failed(how, mended):
    """A task that is asked for after its dependency failed meets its policy, unless that has run again since."""
    story = Story(edges={"a": [], "b": ["a"], "c": [], "x": [], "y": []})
    story.start("b", "c", "x", "y")
    story.begin("b")
    story.finish("x", "a")
    story.fail("a")
    if mended:
        story.finish("y", "a")
        story.finish("a", none=True)
    else:
        story.finish("y")

    if how == "list":
        seen = story.finish("c", more("b"), more("b"))
    else:
        seen = story.ask(story.open("c"), more("b"), more("b"))
    assert seen.get("ready", []) == (["b#2", "b#3"] if mended else [])
    assert [(who, how) for who, how, _ in story.ended()] == ([] if mended else [("b#2", "FAILED"), ("b#3", "FAILED")])


def test_what_fails_while_its_dependant_runs_is_decided_when_that_ends():
    """A second wave that fails is decided by policy whether the first run of the dependant has ended before or not."""
    ends = []
    for first in ("a", "b"):
        story = Story(edges={"x": [], "a": [], "b": ["a"]})
        story.start("b", "x")
        story.begin("b")
        story.finish("x", "a")
        if first == "a":
            story.fail("a")
            story.finish("b")
        else:
            story.finish("b")
            story.fail("a")
        assert story.seen() == {"done": True}
        ends.append(story.ended())
    assert [(who, how) for who, how, _ in ends[0]] == [("b", "FAILED")]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("asked", [True, False])
def test_the_order_in_which_runs_of_a_dependency_end_decides_nothing(asked):
    """Of two runs of a dependency one fails: what becomes of the dependant is the same whichever ends first."""
    ends = []
    for first, then in (("a", "a#2"), ("a#2", "a")):
        story = Story(edges={"s": [], "x": [], "a": [], "b": ["a"]})
        story.start("s", "x")
        story.finish("s", more("a"), more("a"))
        if asked:
            story.finish("x", "b")
        for each in (first, then):
            if each == "a":
                story.fail(each)
            else:
                story.finish(each)
        ends.append([(who, how) for who, how, _ in story.ended()])
    assert ends[0] == ends[1]


def test_a_join_waits_for_what_edges_lead_to():
    """What a sibling leads to along its edges was scheduled by it, so the join of the list waits for that too."""
    story = Story(edges={"s": [], "b": [], "c": ["b"], "sum": []})
    story.start("s")

    assert story.finish("s", "b", join("sum")) == {"ready": ["b"], "pending": ["sum"], "expected": ["c"]}
    assert story.finish("b", output=2) == {"ready": ["c"], "pending": ["sum"]}
    assert story.finish("c") == {"ready": ["sum"]}
    assert story.upstream("sum") == [2]


@pytest.mark.parametrize("order", ["bx", "xb"])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_join_does_not_wait_for_what_others_lead_to_as_well(order, earlier):
    """What also depends on a task outside of the list is no part of the list, whatever lists there were before."""
    edges = {"p": [], "q": [], "s": [], "x": [], "b": [], "c": ["b", "x"], "j": [], "sum": []}
    story = Story(edges=edges)
    story.start("s", "x", "p")
    if earlier:
        story.finish("p", "q", join("j"))
        story.finish("q")
        story.finish("j")
    else:
        story.finish("p")
    story.finish("s", "b", join("sum"))

    for each in order:
        story.finish(each)
    assert sorted(story.seen()["ready"]) == ["c", "sum"]
    story.finish("c")
    assert story.finish("sum") == {"done": True}


@pytest.mark.parametrize("wave", ["along its edges", "by name", "skipped"])
def test_a_second_list_is_not_misled_by_a_first_one(wave):
    """A join waits for what its sibling leads to, whatever became of that when an earlier list led to it."""
    story = Story(edges={"s": [], "t": [], "b": [], "c": ["b"], "sum": []})
    story.start("s", "t")
    story.finish("s", *(["b", "c"] if wave == "by name" else ["b"]), join("sum"))
    story.finish("b", none=wave == "skipped")
    if wave != "skipped":
        story.finish("c")
    assert story.finish("sum") == {"ready": ["t"]}

    story.finish("t", "b", join("sum"))
    assert story.finish("b") == {"ready": ["c"], "pending": ["sum"]}
    assert story.finish("c") == {"ready": ["sum"]}
    assert story.finish("sum") == {"done": True}


def test_a_join_fires_once_though_its_sibling_leads_on_later():
    """What a sibling has led to may start after the join, when something outside kept it waiting: the join is over."""
    story = Story(edges={"r": [], "a": [], "d": [], "f": ["d"], "j": []}, routes={"r": ["d"]})
    story.start("r", "a")
    story.begin("r")
    story.finish("a", "d", join("j"))

    assert story.finish("d") == {"ready": ["j"], "running": ["r"], "expected": ["d", "f"]}
    story.finish("j")
    assert story.finish("r", none=True) == {"ready": ["f"]}
    assert story.finish("f") == {"done": True}


def test_a_skipped_sibling_gives_none():
    """A sibling that was skipped by its policy gives None to the join, which starts."""
    story = Story(edges={"x": [], "b": ["x"], "a": [], "sum": []}, tasks={"b": {"on_dep_failure": "skip"}})
    story.start("x", "a")
    story.finish("a", "b", "c", join("sum"))
    story.finish("c", output=3)

    assert story.fail("x") == {"ready": ["sum"]}
    assert story.upstream("sum") == [None, 3]


def test_a_loop_along_a_dependency_is_a_request():
    """A circle that a run enters in the middle is gone round by requests, and nobody waits for anything along it."""
    graph = Graph({"a": [], "b": ["a"]}, {"b": ["a"]})
    story = Story(graph=graph.rooted([graph.number["b"]]))

    assert story.start("b") == {"ready": ["b"], "expected": ["a"]}
    assert story.finish("b", "a") == {"ready": ["a"]}
    assert story.finish("a", output=1) == {"ready": ["b"], "expected": ["a"]}
    assert story.finish("b", none=True) == {"done": True}
    assert story.terminal == {"b": None}


def test_a_start_that_reads_a_dependency_needs_it_in_the_run():
    """A start with a parameter that nothing can fill is refused, unless a dependency that fills it starts as well."""
    story = Story(edges={"number": [], "picky": ["number"]})
    before = everything(story.scheduler)
    with pytest.raises(BindingError):
        story.start("picky")
    assert everything(story.scheduler) == before

    assert story.start("picky", "number") == {"ready": ["number"], "parked": ["picky"]}
    assert story.finish("number", output=7) == {"ready": ["picky"]}
    assert needs(story, "picky") == {"number": 7}


def test_what_edges_lead_to_without_its_inputs_fails():
    """A task that edges lead to and that cannot be called fails by itself, with what was on offer."""
    story = Story(edges={"a": [], "picky": ["a"]})
    story.start("a")

    assert story.finish("a") == {"done": True}
    (settled,) = story.told(Settled)
    assert (settled.run.id, settled.run.status, type(settled.error)) == ("picky", Status.FAILED, BindingError)


def test_edges_beyond_the_limit_are_told():
    """When the edges lead beyond max_task_runs the driver is told, and nothing more is made."""
    story = Story(edges={"a": [], "b": ["a"], "c": ["b"]}, max_task_runs=2)
    story.start("a")
    story.finish("a")

    story.finish("b")
    (error,) = story.told(TaskRunLimitError)
    assert (error.limit, story.scheduler.scheduled) == (2, 2)
    story.stop()
    assert story.seen() == {"stopped": True, "done": True}


def bare(*names):
    """Return options for tasks whose runs need nothing but a worker: the short way of plain graphs."""
    return {name: {"reads_upstream": False} for name in names}


@pytest.mark.parametrize("policy", ["fail", "skip", "run-anyway"])
def test_a_plain_graph_in_which_one_task_fails(policy):
    """What had succeeded before the failure, and what succeeds after it, leads on; the failure counts."""
    edges = {"a": [], "b": [], "c": [], "d": ["a", "b"], "e": ["a", "c"]}
    options = bare(*edges)
    options["d"]["on_dep_failure"] = policy
    story = Story(edges=edges, tasks=options)
    story.start("a", "b", "c")

    story.finish("a")
    assert story.fail("b")["ready"] == (["c", "d"] if policy == "run-anyway" else ["c"])
    assert story.finish("c")["ready"] == (["d", "e"] if policy == "run-anyway" else ["e"])
    assert [name for name, _, _ in story.ended()] == ([] if policy == "run-anyway" else ["d"])


@pytest.mark.parametrize("first", ["a", "b"])
def test_a_plain_graph_in_which_one_task_chooses(first):
    """A task that one dependency leads to runs, although the other has chosen to go nowhere, in either order."""
    story = Story(edges={"a": [], "b": [], "c": ["a", "b"]}, tasks=bare("a", "b", "c"))
    story.start("a", "b")

    story.finish(first, none=first == "b")
    other = "b" if first == "a" else "a"
    assert story.finish(other, none=other == "b") == {"ready": ["c"]}


def test_a_failure_before_the_others_succeed():
    """A task of which a dependency has failed does not run when the others have succeeded."""
    story = Story(edges={"a": [], "b": [], "c": ["a", "b"]}, tasks=bare("a", "b", "c"))
    story.start("a", "b")

    assert story.fail("b") == {"ready": ["a"], "expected": ["c"]}
    assert story.finish("a") == {"done": True}
    assert story.ended() == [("c", "FAILED", story.ended()[0][2])]


def test_a_plain_graph_in_which_a_task_is_spawned_again():
    """What follows a task waits for all its runs."""
    story = Story(edges={"a": [], "c": ["a"]}, tasks=bare("a", "c"))
    story.start("a", "x")
    story.begin("a")
    story.finish("x", more("a"))

    assert story.finish("a") == {"ready": ["a#2"], "expected": ["c"]}
    assert story.finish("a#2") == {"ready": ["c"]}


def test_a_plain_graph_in_which_an_expected_task_joins():
    """A task that is asked for as a join runs once: as that, when its siblings and its dependencies have ended."""
    story = Story(edges={"a": [], "c": ["a"]}, tasks=bare("a", "c"))
    story.start("a", "x")

    story.finish("x", "y", join("c"))
    assert story.finish("a") == {"ready": ["y"], "pending": ["c"]}
    assert story.finish("y") == {"ready": ["c"]}
    assert story.finish("c") == {"done": True}


def test_a_plain_graph_stops_at_the_limit_of_task_runs():
    """An edge beyond ``max_task_runs`` is told, and makes nothing."""
    story = Story(edges={"a": [], "b": ["a"], "c": ["b"]}, tasks=bare("a", "b", "c"), max_task_runs=2)
    story.start("a")

    story.finish("a")
    assert story.finish("b") == {"expected": ["c"]}
    assert [(error.limit, error.task) for error in story.told(TaskRunLimitError)] == [(2, "c")]


@pytest.mark.parametrize("reads", [True, False])
def test_nothing_follows_an_edge_after_a_stop(reads):
    """What ends after the stop leads to nothing, whether its run was plain until then or not."""
    story = Story(edges=DIAMOND, tasks={name: {"reads_upstream": reads} for name in DIAMOND})
    story.start("a")
    story.begin("a")
    story.scheduler.stop()

    assert story.finish("a") == {"stopped": True, "done": True}


def test_stop_cancels_what_was_expected():
    """After stop no edge is followed, and what was expected or waited for its dependencies is CANCELLED."""
    story = Story(edges=DIAMOND)
    story.start("a", "d")
    story.begin("a")

    assert story.stop() == (["d"], {"running": ["a"], "stopped": True})
    assert story.finish("a") == {"stopped": True, "done": True}
    worst = {name: task.worst for name, task in story.scheduler.tasks.items()}
    assert worst == {"a": None, "b": Status.CANCELLED, "c": Status.CANCELLED, "d": Status.CANCELLED}


@pytest.mark.parametrize("shape", ["chain", "fan"])
def test_a_failure_at_the_head_of_very_many(shape):
    """A failure passes through 10,000 tasks with hardly any stack, and each of them is told once."""
    size, limit = 10_000, sys.getrecursionlimit()
    edges = {str(each): [str(each - 1 if shape == "chain" else 0)] if each else [] for each in range(size)}
    story = Story(edges=edges)
    story.scheduler.start([NextTask("0")])
    sys.setrecursionlimit(len(inspect.stack(0)) + 40)
    try:
        story.fail("0")
    finally:
        sys.setrecursionlimit(limit)
    assert len(story.ended()) == size - 1
    assert story.seen() == {"done": True}


# ---- priorities --------------------------------------------------------------------------------------


def urgent(name, priority=5, **options):
    return NextTask(name, priority=priority, **options)


def test_a_higher_priority_is_taken_first():
    """Among what is ready a higher priority goes first; a request may have its own, else it has its task's."""
    story = Story(tasks={"c": {"priority": 3}, "d": {"priority": 3}})

    story.start("a", "b", "c", urgent("d", -1), urgent("e", 9))
    assert [story.queue.popleft().id for _ in range(5)] == ["e", "c", "a", "b", "d"]


@pytest.mark.parametrize("gate", ["run", "task"])
def test_of_one_list_the_highest_priority_passes_a_gate_first(gate):
    """Where max_parallel leaves one place, of all that one list asks for the highest priority gets it."""
    story = Story(max_parallel=1) if gate == "run" else Story(tasks={"b": {"max_parallel": 1}})
    held = "held" if gate == "run" else "held by task"
    story.start("a")

    seen = story.finish("a", more("b"), urgent("b", 5, spawn_another=True), urgent("b", 7, spawn_another=True))
    assert seen == {"ready": ["b#3"], held: ["b#2", "b"]}
    assert story.finish("b#3") == {"ready": ["b#2"], held: ["b"]}


def test_of_what_edges_lead_to_the_highest_priority_passes_a_gate_first():
    """Where max_parallel leaves one place, of all that one finish leads to the highest priority gets it."""
    story = Story(edges=DIAMOND, tasks={"c": {"priority": 1}}, max_parallel=1)
    story.start("a")

    assert story.finish("a") == {"ready": ["c"], "held": ["b"], "expected": ["d"]}


def test_a_start_lets_the_highest_priority_go_first():
    """Where max_parallel leaves one place, of all starts the highest priority gets it."""
    assert Story(max_parallel=1).start("a", urgent("c"), "b") == {"ready": ["c"], "held": ["a", "b"]}


def test_a_join_may_be_urgent():
    """The priority of a join counts when it starts."""
    story = Story(max_parallel=1)
    story.start("a", "b")
    story.finish("a", "c", urgent("sum", join=True))
    story.finish("b", "d")

    assert story.finish("c") == {"ready": ["sum"], "held": ["d"]}


# ---- max_parallel of a task, and limits --------------------------------------------------------------


def test_max_parallel_of_a_task_holds_that_task_back():
    """No more than max_parallel runs of one task are let on at once; others do not wait for it."""
    story = Story(tasks={"b": {"max_parallel": 2}})
    story.start("a")

    assert story.finish("a", "c", more("b"), more("b"), more("b")) == {
        "ready": ["c", "b", "b#2"], "held by task": ["b#3"],
    }  # fmt: skip
    assert story.fail("b") == {"ready": ["c", "b#2", "b#3"]}


def test_a_blocked_run_lets_another_of_its_task_on():
    """A run that waits for a value does not count for max_parallel of its task."""
    story = Story(tasks={"b": {"max_parallel": 1}})
    story.start("a")
    story.finish("a", more("b"), more("b"), more("b"))
    story.begin("b")

    story.blocked("b")
    assert story.seen() == {"ready": ["b#2"], "running": ["b"], "held by task": ["b#3"]}
    story.unblocked("b")
    assert story.finish("b#2") == {"running": ["b"], "held by task": ["b#3"]}
    assert story.finish("b") == {"ready": ["b#3"]}


def test_both_gates():
    """A task run passes the gate of its task first, and then waits for its turn in the run."""
    story = Story(tasks={"b": {"max_parallel": 1}}, max_parallel=1)
    story.start("a")

    assert story.finish("a", more("b"), more("b"), "c") == {"ready": ["b"], "held": ["c"], "held by task": ["b#2"]}
    assert story.finish("b") == {"ready": ["b#2"], "held": ["c"]}


def test_limits_are_asked_for_and_granted():
    """What uses limits asks the driver for them, and is ready when it has them."""
    story = Story(tasks={"b": {"uses": ("db",)}})

    assert story.start("a", "b", more("b")) == {"ready": ["a"], "limited": ["b", "b#2"]}
    assert [run.id for run in story.told(TaskRun)] == ["b", "b#2"]
    assert sorted(story.scheduler.structural_waits()) == [("b", "a limit (db)"), ("b#2", "a limit (db)")]
    assert story.grant("b#2") == {"ready": ["a", "b#2"], "limited": ["b"]}
    (late,) = (run for run in story.told(TaskRun) if run.id == "b")
    assert story.stop() == (["a", "b", "b#2"], {"stopped": True, "done": True})
    assert story.scheduler.granted(late) is False


def test_a_task_asks_for_its_limits_when_its_gate_lets_it_on():
    """Limits are asked for by no more runs of a task than may run at once."""
    story = Story(tasks={"b": {"uses": ("db",), "max_parallel": 1}})

    assert story.start(more("b"), more("b")) == {"limited": ["b"], "held by task": ["b#2"]}
    assert story.grant() == {"ready": ["b"], "held by task": ["b#2"]}
    assert story.finish("b") == {"limited": ["b#2"]}


# ---- retries -----------------------------------------------------------------------------------------


def test_an_attempt_that_is_tried_again():
    """The next attempt is a new object with the same id and path; it waits for its time and holds no worker."""
    story = Story()
    story.start("a", "b")
    story.begin("a")
    first = story.running["a"]

    again = story.retry("a")
    assert (first.status, again.status, again.attempt) == (Status.FAILED, Status.PENDING, 2)
    assert (again.id, again.path, again.inputs) == (first.id, first.path, first.inputs)
    assert story.seen() == {"ready": ["b"], "delayed": ["a"]}
    assert story.due(again) == {"ready": ["b", "a"]}
    assert story.due(again) == {"ready": ["b", "a"]}, "its time comes once"
    story.finish("a", output=1)
    story.finish("b")
    assert story.seen() == {"done": True}
    assert story.terminal == {"a": 1, "b": None}
    assert story.scheduler.scheduled == 2
    assert story.scheduler.tasks["a"].runs == 1


def test_what_waits_for_an_attempt_waits_for_the_last():
    """A join and a dependant wait until the last attempt is over, and a retry alone is no failure for them."""
    story = Story(edges={"s": [], "b": [], "c": ["b"], "sum": []})
    story.start("s")
    story.finish("s", "b", join("sum"))

    again = story.retry("b")
    assert story.seen() == {"delayed": ["b"], "pending": ["sum"], "expected": ["c"]}
    story.due(again)
    assert story.finish("b", output=2) == {"ready": ["c"], "pending": ["sum"]}
    assert story.finish("c") == {"ready": ["sum"]}
    assert story.upstream("sum") == [2]


def test_an_attempt_that_waits_is_pending():
    """A bare request coalesces with an attempt that waits for its time; stop cancels that attempt."""
    story = Story()
    story.start("a", "b")
    story.retry("a")

    assert story.finish("b", "a") == {"delayed": ["a"]}
    assert story.stop() == (["a"], {"stopped": True, "done": True})


def test_a_retry_gives_its_places_back():
    """While an attempt waits others have its place at every gate, and it asks for its limits again."""
    story = Story(tasks={"b": {"max_parallel": 1, "uses": ("db",)}}, max_parallel=1)
    story.start(more("b"), more("b"))
    story.grant("b")

    again = story.retry("b")
    assert story.seen() == {"limited": ["b#2"], "delayed": ["b"]}
    assert story.due(again) == {"limited": ["b#2"], "held by task": ["b"]}
    story.grant("b#2")
    assert story.finish("b#2") == {"limited": ["b"]}
    assert [run.attempt for run in story.told(TaskRun)] == [1, 1, 2]
    story.scheduler.granted(again)
    assert story.finish("b") == {"done": True}


@pytest.mark.parametrize("status", [Status.PENDING, Status.SUCCESS, Status.SKIPPED])
def test_only_an_attempt_that_failed_is_tried_again(status):
    """What has not begun, or has succeeded, is not tried again; the attempt to do so changes nothing."""
    story = Story()
    story.start("a", "b")
    story.begin("a")
    (waits,) = story.queue
    before = everything(story.scheduler)

    with pytest.raises(StateError):
        story.scheduler.retry(story.running["a"], status)
    with pytest.raises(StateError):
        story.scheduler.retry(waits)
    assert everything(story.scheduler) == before


# ---- cancelling one ----------------------------------------------------------------------------------


def test_one_task_run_is_cancelled_wherever_it_waits():
    """A task run that has not begun is cancelled at any gate, and what it held back goes on."""
    story = Story(tasks={"b": {"max_parallel": 1, "uses": ("db",)}}, max_parallel=2)
    story.start("a", "c", "d", more("b"), more("b"), more("b"))
    runs = {run.id: run for run in [*story.queue, *story.scheduler.limited]}
    runs |= {run.id: run for _, _, run in [*story.scheduler.held, *story.scheduler.tasks["b"].held]}
    assert story.seen() == {
        "ready": ["a", "c"], "held": ["d"], "limited": ["b"], "held by task": ["b#2", "b#3"],
    }  # fmt: skip

    assert story.cancel(runs["b#2"])[0]
    assert story.cancel(runs["b"]) == (True, {"ready": ["a", "c"], "held": ["d"], "limited": ["b#3"]})
    assert story.cancel(runs["a"]) == (True, {"ready": ["c", "d"], "limited": ["b#3"]})
    story.begin("c")
    assert story.cancel(runs["c"]) == (False, {"ready": ["d"], "running": ["c"], "limited": ["b#3"]})
    assert story.cancel(runs["a"])[0] is False, "it is cancelled already"
    again = story.retry("c")
    assert story.cancel(again) == (True, {"ready": ["d"], "limited": ["b#3"]})
    story.queue.popleft()
    assert story.scheduler.cancel(runs["d"]) is False, "a worker has just taken it"


def test_a_cancelled_sibling_releases_its_join():
    """A sibling that was cancelled has failed for the join of its list."""
    story = Story()
    story.start("a")
    story.finish("a", "b", join("sum"))
    (run,) = story.queue

    assert story.cancel(run) == (True, {"done": True})
    assert [(who, how) for who, how, _ in story.ended()] == [("sum", "FAILED")]


# ---- submitted calls ---------------------------------------------------------------------------------


class Calls(Story):
    """A story with submitted calls of one task each."""

    def submit(self, name, *needs, **terms):
        task, call = TaskState(name, self.queue, Terms(**terms)), Call()
        self.scheduler.called.append(task)
        self.scheduler.submit(task, hash(name), call, needs, None)
        return call


def test_calls_wait_for_the_calls_they_need():
    """A call starts when all that it needs have ended, and a need that has ended is not waited for."""
    story = Calls()
    a, b = story.submit("a"), story.submit("b")
    c = story.submit("c", a, b, a)

    assert story.seen() == {"ready": ["a", "b"], "pending": ["c"]}
    assert story.scheduler.structural_waits() == [("c", "the calls that it depends on")]
    story.finish("a")
    assert story.finish("b") == {"ready": ["c"]}
    story.submit("d", a)
    assert story.seen() == {"ready": ["c", "d"]}
    story.finish("c")
    assert story.finish("d") == {"done": True}
    assert [call.settled for call in (a, b, c)] == [Status.SUCCESS] * 3
    assert story.terminal == {"c": None, "d": None}


def test_calls_of_one_name_are_numbered():
    """Every call has an id of its own, also beside the task runs of that name."""
    story = Calls()
    story.start("a")
    calls = [story.submit("a"), story.submit("b"), story.submit("b")]

    assert [call.id for call in calls] == ["a#2", "b", "b#2"]
    assert story.finish("a", more("b")) == {"ready": ["a#2", "b", "b#2", "b#3"]}


def test_a_failed_call_ends_what_needs_it_and_nothing_else():
    """What depends on a failed call, however indirectly, ends by its policy; others go on."""
    story = Calls()
    a, x = story.submit("a"), story.submit("x")
    b = story.submit("b", a)
    c, d = story.submit("c", b, on_dep_failure="skip"), story.submit("d", b, x, on_dep_failure="run-anyway")
    e = story.submit("e", c)

    assert story.fail("a") == {"ready": ["x"], "pending": ["d"]}
    assert [(who, how) for who, how, _ in story.ended()] == [("b", "FAILED"), ("c", "SKIPPED"), ("e", "FAILED")]
    assert [entry.error.failed for entry in story.told(Settled)] == [("a",), ("b",), ("c",)]
    assert [call.settled for call in (a, b, c, e)] == ["FAILED", "FAILED", "SKIPPED", "FAILED"]
    assert story.finish("x") == {"ready": ["d"]}
    late = story.submit("z", e)
    assert (late.settled, story.seen()) == (Status.FAILED, {"ready": ["d"]})
    story.finish("d")
    assert d.settled is Status.SUCCESS


def test_a_call_that_is_cancelled_or_tried_again():
    """What needs a call waits for its last attempt, and fails when it is cancelled."""
    story = Calls()
    a = story.submit("a")
    story.submit("b", a)

    again = story.retry("a")
    assert story.seen() == {"delayed": ["a"], "pending": ["b"]}
    assert story.cancel(again) == (True, {"done": True})
    assert a.settled is Status.CANCELLED
    assert [(who, how) for who, how, _ in story.ended()] == [("b", "FAILED")]


def test_too_many_calls_change_nothing():
    """A call beyond max_task_runs is refused, and nothing has changed."""
    story = Calls(max_task_runs=1)
    a = story.submit("a")
    before = everything(story.scheduler)

    task = TaskState("b", story.queue, Terms())
    with pytest.raises(TaskRunLimitError):
        story.scheduler.submit(task, 0, Call(), [a], None)
    assert everything(story.scheduler) == before
    assert a.followers == []
    assert task.live == 0


def test_a_chain_of_very_many_calls_that_fails():
    """A failure passes through a chain of 10,000 calls with hardly any stack."""
    story, limit = Calls(), sys.getrecursionlimit()
    task = TaskState("c", story.queue, Terms())
    calls = [Call()]
    story.scheduler.submit(task, 0, calls[0], [], None)
    for _ in range(10_000):
        calls.append(Call())
        story.scheduler.submit(task, 0, calls[-1], calls[-2:-1], None)
    sys.setrecursionlimit(len(inspect.stack(0)) + 40)
    try:
        story.fail("c")
    finally:
        sys.setrecursionlimit(limit)
    assert story.seen() == {"done": True}
    assert {call.settled for call in calls} == {Status.FAILED}


def test_a_task_run_is_waited_for_with_its_calls():
    """Calls that are submitted inside a task run count in its scope: a join behind it waits for them."""
    story = Story()
    story.start("s")
    story.finish("s", "a", join("sum"))
    story.begin("a")
    task, call = TaskState("call", story.queue, Terms()), Call()
    story.scheduler.submit(task, 0, call, [], story.running["a"].scope)

    assert story.finish("a", output=1) == {"ready": ["call"], "pending": ["sum"]}
    assert story.finish("call", output=2) == {"ready": ["sum"]}
    assert story.upstream("sum") == [1]


# ---- maps --------------------------------------------------------------------------------------------


class Maps(Story):
    """A story in which the task ``m`` is mapped over items, with options of its own for these."""

    def __init__(self, *, items=None, **options):
        self.items = items or {}
        super().__init__(**options)

    def find(self, name, node):
        task = super().find(name, node)
        if name == "m":
            task.each = TaskState(name, self.queue, Terms(**self.items))
        return task

    def spread(self, id, *items):
        if id not in self.running:
            self.begin(id)
        return self.scheduler.spread(self.running[id], items), self.seen()

    def map(self, id):
        return self.running[id]


def test_a_map_is_over_when_its_items_are():
    """Every item is a task run; the last one completes the map, whose output is theirs in order."""
    story = Maps(edges={"m": [], "z": ["m"]})
    story.start("m")

    spread = story.spread("m", "x", "y", "z")
    assert spread == (True, {"ready": ["m[0]", "m[1]", "m[2]"], "running": ["m"], "pending": ["m"], "expected": ["z"]})
    assert [(run.extra.index, run.extra.item) for run in story.queue] == [(0, "x"), (1, "y"), (2, "z")]
    assert len({run.path for run in story.queue}) == 3
    assert story.scheduler.structural_waits() == [("m", "its items"), ("z", "m")]
    story.finish("m[1]", output=1)
    story.finish("m[2]", output=2)
    assert story.scheduler.mapped(story.map("m")) is None
    story.finish("m[0]", output=0)
    assert story.scheduler.mapped(story.map("m")) == [0, 1, 2]
    assert story.scheduler.mapped(story.map("m")) is None
    assert story.finish("m", output=[0, 1, 2]) == {"ready": ["z"]}
    assert needs(story, "z") == {"m": [0, 1, 2]}
    story.finish("z")
    assert story.terminal == {"z": None}


def test_a_map_over_nothing():
    """With no items there is nothing to wait for: the driver finishes the map as any task run."""
    story = Maps()
    story.start("m")

    assert story.spread("m") == (False, {"running": ["m"]})
    assert story.finish("m", output=[]) == {"done": True}


def test_items_pass_gates_of_their_own():
    """max_parallel of a map is that of its items, which are tried again one by one."""
    story = Maps(items={"max_parallel": 2})
    story.start("m")

    _, seen = story.spread("m", *range(4))
    assert seen["ready"] == ["m[0]", "m[1]"]
    again = story.retry("m[0]")
    assert [run.id for run in story.queue] == ["m[1]", "m[2]"]
    story.finish("m[1]")
    story.finish("m[2]")
    story.due(again)
    for part in ("m[0]", "m[3]"):
        story.finish(part)
    assert story.scheduler.mapped(story.map("m")) == [None] * 4


def test_a_map_fails_with_its_first_item():
    """When an item fails the items that have not begun are handed out to be cancelled, and those that run go on."""
    story = Maps(items={"max_parallel": 3})
    story.start("m")
    story.spread("m", *range(5))
    story.begin("m[1]")

    story.fail("m[0]")
    parts = story.scheduler.unmap(story.map("m"))
    assert {part.id for part in parts} == {"m[2]", "m[3]", "m[4]"}
    assert all(story.scheduler.cancel(part) for part in parts)
    assert story.scheduler.unmap(story.map("m")) == [], "it has failed already"
    assert story.fail("m") == {"running": ["m[1]"]}
    assert story.finish("m[1]") == {"done": True}
    assert story.terminal == {}


def test_too_many_items_change_nothing():
    """A map with more items than max_task_runs allows is refused, and goes on running."""
    story = Maps(max_task_runs=3)
    story.start("m")
    story.begin("m")
    before = everything(story.scheduler)

    with pytest.raises(TaskRunLimitError):
        story.spread("m", 1, 2, 3)
    assert everything(story.scheduler) == before
    assert story.fail("m") == {"done": True}


def test_stop_cancels_a_map_and_its_items():
    """After stop a map whose items still run is CANCELLED, and what they give changes nothing."""
    story = Maps()
    story.start("m")
    story.spread("m", 1, 2)
    story.begin("m[0]")
    run = story.running.pop("m")

    cancelled = story.scheduler.stop()
    assert sorted(each.id for each in cancelled) == ["m", "m[1]"]
    assert run.status is Status.CANCELLED
    assert story.finish("m[0]") == {"stopped": True, "done": True}
    assert story.scheduler.mapped(run) is None
    assert story.scheduler.unmap(run) == []


# ---- the end -----------------------------------------------------------------------------------------


def test_stop_cancels_whatever_has_not_begun():
    """What is ready, held or pending is cancelled; what runs is left to its worker; nothing more starts."""
    story = Story(max_parallel=3)
    story.start("a", "b", "c", "d")
    story.finish("a", "e", join("sum"))
    story.begin("b")
    assert story.seen() == {"ready": ["c", "d"], "running": ["b"], "held": ["e"], "pending": ["sum"]}

    assert story.stop() == (["c", "d", "e", "sum"], {"running": ["b"], "stopped": True})
    assert story.finish("b", "f", "g", output=1) == {"stopped": True, "done": True}
    assert story.terminal == {}
    assert story.scheduler.scheduled == 6


def test_stop_is_idempotent():
    """A second stop finds nothing to cancel."""
    story = Story()
    story.start("a", "b")

    assert story.stop() == (["a", "b"], {"stopped": True, "done": True})
    assert story.stop() == ([], {"stopped": True, "done": True})


def test_a_growing_list_ends_quietly_after_stop():
    """After stop a growing list takes requests and drops them, until its driver closes it; its join never starts."""
    story = Story()
    story.start("g")
    scope = story.open("g")
    story.ask(scope, join("sum"), "b")
    story.begin("b")

    assert story.stop() == (["sum"], {"running": ["b", "g"], "lists": 1, "stopped": True})
    assert story.ask(scope, "c") == {"running": ["b", "g"], "lists": 1, "stopped": True}
    story.finish("b")
    story.close(scope)
    assert story.finish("g") == {"stopped": True, "done": True}


def test_a_scope_that_settles_after_stop_starts_nothing():
    """The last sibling of a join that was cancelled finishes, and the join does not start after all."""
    story = Story()
    story.start("a")
    story.finish("a", "b", join("sum"))
    story.begin("b")
    story.scheduler.stop()

    assert story.finish("b") == {"stopped": True, "done": True}


def test_what_was_cancelled_cannot_begin():
    """A worker that looks at a task run which stop has cancelled is told so."""
    story = Story()
    story.start("a")
    (run,) = story.queue
    story.scheduler.stop()

    with pytest.raises(StateError, match="a cannot begin: it is CANCELLED"):
        run.begin()


def test_structural_waits_name_the_joins():
    """Who waits by the shape of the run can be told for a deadlock message."""
    story = Story()
    story.start("a")
    story.finish("a", "b", join("sum"))

    assert story.scheduler.structural_waits() == [("sum", "the other task runs of its list")]


# ---- illegal moves -----------------------------------------------------------------------------------

ILLEGAL = {
    "succeed": lambda scheduler, run: scheduler.finished(run, None, None, False),
    "ask": lambda scheduler, run: scheduler.finished(run, None, [NextTask("a")], False),
    "fail": lambda scheduler, run: scheduler.failed(run),
    "give up": lambda scheduler, run: scheduler.failed(run, Status.ABANDONED),
}
ENDS = {
    "succeeded": lambda story: story.finish("w"),
    "failed": lambda story: story.fail("w"),
    "was given up": lambda story: story.fail("w", Status.ABANDONED),
    "never began": lambda story: None,
}


@pytest.mark.parametrize("move", ILLEGAL)
@pytest.mark.parametrize("end", ENDS)
def test_only_what_runs_can_end(move, end):
    """A task run that has ended, or not begun, cannot end (again); the attempt changes nothing."""
    story = Story()
    story.start("a")
    story.finish("a", "w", "x", join("sum"))
    (run,) = (run for run in story.queue if run.id == "w")
    ENDS[end](story)

    before = everything(story.scheduler)
    with pytest.raises(StateError):
        ILLEGAL[move](story.scheduler, run)
    assert everything(story.scheduler) == before


@pytest.mark.parametrize("status", [Status.PENDING, Status.RUNNING, Status.SKIPPED, Status.SUCCESS])
def test_a_failure_is_no_other_move(status):
    """What did not succeed is FAILED, CANCELLED or ABANDONED, nothing else."""
    story = Story()
    story.start("a")
    story.begin("a")

    before = everything(story.scheduler)
    with pytest.raises(StateError):
        story.scheduler.failed(story.running["a"], status)
    assert everything(story.scheduler) == before


def test_a_task_run_begins_once():
    """A second worker cannot begin what has begun, nor what has ended."""
    story = Story()
    story.start("a")
    story.begin("a")
    (run,) = story.begun

    with pytest.raises(StateError, match="a cannot begin: it is RUNNING"):
        run.begin()
    story.finish("a")
    with pytest.raises(StateError, match="a cannot begin: it is SUCCESS"):
        run.begin()


# ---- paths -------------------------------------------------------------------------------------------


def everywhere(order):
    """Run one story, its workers finishing in some order, and return the path of every task run."""
    story = Story()
    story.start("a", more("a"), "g")
    scope = story.open("g")
    story.ask(scope, join("sum"), "b", "b", more("b"))
    story.close(scope)
    story.finish("g", "c", join("j"), more("c"))
    story.finish("a", "d", "d", more("d"))
    story.finish("a#2", join("e"))
    while story.queue:
        story.finish(order(run.id for run in story.queue))
    assert story.seen() == {"done": True}
    return {run.id: run.path for run in story.begun}


def test_paths_are_the_same_in_every_run_and_tell_task_runs_apart():
    """A path depends on the requests that led to a task run alone, not on which worker was quicker."""
    first, second = everywhere(min), everywhere(max)

    assert first == second
    assert len(set(first.values())) == len(first) == 12


def test_turns_of_a_loop_have_different_paths():
    """Task runs of the same id are told apart by their paths."""
    story = Story()
    story.start("a")
    for _ in range(100):
        story.finish("a", "a")

    assert len({run.path for run in story.begun}) == 100


def test_a_request_that_coalesces_has_a_position_too():
    """Whether an earlier request coalesced depends on timing, so it must not move the paths of later ones."""
    quick, slow = Story(), Story()
    for story in (quick, slow):
        story.start("b", "a")
    quick.finish("b")

    assert quick.finish("a", "b", "c") == {"ready": ["b", "c"]}
    assert slow.finish("a", "b", "c") == {"ready": ["b", "c"]}
    assert [run.path for run in quick.queue if run.id == "c"] == [run.path for run in slow.queue if run.id == "c"]


# ---- memory ------------------------------------------------------------------------------------------


def test_a_run_that_has_ended_lets_go():
    """After forget nothing refers to tasks or to the driver any more."""
    story = Story()
    story.start("a")
    story.finish("a")

    story.scheduler.forget()
    assert story.scheduler.tasks == {}
    with pytest.raises(TaskNotFoundError):
        story.scheduler.check([NextTask("a")])


def test_task_runs_show_their_state_in_words():
    """The repr of a task run is its id and its state."""
    story = Story()
    story.start("a", more("a"))
    story.begin("a#2")

    assert [repr(run) for run in (*story.queue, *story.begun)] == ["<TaskRun a: PENDING>", "<TaskRun a#2: RUNNING>"]
