"""Stories for the pure state machine of a run: events go in, the whole visible state is compared."""

from __future__ import annotations

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

    def find(self, name):
        if name == "nope":
            return None
        node = None if self.graph is None else self.graph.number.get(name)
        terms = Terms(**{"collects": name == "sum"} | self.tasks.get(name, {}))
        return TaskState(name, self.queue, terms, node, ("number",) if name == "picky" else ())

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
            "held by task": [each for task in scheduler.tasks.values() if task.gated for each in held_by(task)],
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
        slots = vars(value) if isinstance(value, Scheduler) else value.__slots__
        slots = [slot for slot in slots if slot != "handle" and hasattr(value, slot)]
        return {slot: everything(getattr(value, slot), names) for slot in slots}
    if isinstance(value, dict):
        found = {key: everything(each, names) for key, each in value.items()}
        return {key: each for key, each in found.items() if each != "never scheduled"}
    if isinstance(value, list | tuple | deque | bytearray):
        return [everything(each, names) for each in value]
    if isinstance(value, set | frozenset):
        return [everything(each, names) for each in sorted(value, key=lambda run: run.id)]
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


@pytest.mark.parametrize("what", set(REFUSED) - {"too many"})
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
