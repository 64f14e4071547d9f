"""Random programs of tasks that set and get keys, beside a model that computes which gets can succeed.

Values are only ever set, never deleted, so the order in which tasks are called cannot change what is
reachable: advancing whatever can advance until nothing can is the whole truth about a program.
"""

from __future__ import annotations

import random
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from millstream import (
    Context,
    ContextKeyError,
    DeadlockError,
    Flow,
    InlineExecutor,
    NextTask,
    TaskOutput,
    ThreadExecutor,
)
from millstream.executors.inline import InlinePlace

#: A run that takes longer than this, in seconds, hangs.
WATCHDOG = 20.0
#: Programs for each kind of executor with each kind of switching.
PROGRAMS = 300
KEYS = "uvwxyz"


@dataclass
class Program:
    """What one task does, step by step, and whom it asks for at its end."""

    name: str
    steps: list[tuple[str, str]]  #: ("set", key), ("get", key), or ("try", key): a get with a default and a timeout
    children: list[str] = field(default_factory=list)
    join: str | None = None  #: asked for together with the children


@dataclass
class Programs:
    """What a flow run is made of."""

    tasks: dict[str, Program]
    start: list[str]


def drawn(rng: random.Random, *, tolerant: bool) -> Programs:
    """Draw two to seven tasks; each is asked for once, by the start or by another one."""
    names = [f"t{number}" for number in range(rng.randint(2, 7))]
    keys = rng.sample(KEYS, rng.randint(1, len(KEYS)))
    # With few gets for each set most programs can end; with many, most cannot.
    eager = rng.choice([0.3, 0.5, 0.7])
    tasks: dict[str, Program] = {}
    start: list[str] = []
    for name in names:
        steps = []
        for _ in range(rng.randint(0, 4)):
            if rng.random() > eager:
                steps.append(("set", rng.choice(keys)))
            else:
                kind = "try" if tolerant and rng.random() < 0.4 else "get"
                steps.append((kind, rng.choice(keys) if rng.random() < 0.8 else rng.choice(names)))
        parent = rng.choice(list(tasks.values())) if tasks and rng.random() < 0.5 else None
        if parent is None:
            start.append(name)
        elif parent.children and parent.join is None and rng.random() < 0.3:
            parent.join = name
        else:
            parent.children.append(name)
        tasks[name] = Program(name, steps)
    return Programs(tasks, start)


# ---- the model ---------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What the fixed point of a program is."""

    ended: set[str]
    values: set[str]  #: keys that are set
    waits: dict[str, str]  #: tasks that wait for ever, and for which key
    joins: set[str]  #: joins that wait for ever

    @property
    def expected(self) -> type[Exception] | None:
        """The verdict: nothing, or the error of one who waits in vain."""
        if not self.waits:
            return None
        live = self.waits.keys() | self.joins
        return ContextKeyError if set(self.waits.values()) - live else DeadlockError


def below(programs: Programs, name: str) -> Iterator[str]:
    """A task and all that it schedules in turn."""
    task = programs.tasks[name]
    yield name
    for child in [*task.children, *filter(None, [task.join])]:
        yield from below(programs, child)


def fixed_point(programs: Programs) -> Outcome:
    """Advance every task as far as it goes, until none of them moves."""
    at = dict.fromkeys(programs.start, 0)
    values: set[str] = set()
    ended: set[str] = set()
    joins: set[str] = set()
    moved = True
    while moved:
        moved = False
        for name in [name for name in at if name not in ended]:
            task = programs.tasks[name]
            while at[name] < len(task.steps):
                kind, key = task.steps[at[name]]
                if kind == "set":
                    values.add(key)
                elif key not in values:
                    break
                at[name] += 1
                moved = True
            else:
                ended.add(name)
                values.add(name)
                at.update(dict.fromkeys(task.children, 0))
                joins.update(filter(None, [task.join]))
                moved = True
        for name in list(joins):
            parent = next(task for task in programs.tasks.values() if task.join == name)
            if all(each in ended for child in parent.children for each in below(programs, child)):
                joins.discard(name)
                at[name] = 0
                moved = True
    waits = {name: programs.tasks[name].steps[at[name]][1] for name in at if name not in ended}
    return Outcome(ended, values, waits, joins)


# ---- the flow ----------------------------------------------------------------------------------------


def action(task: Program) -> Any:
    def call(ctx: Context) -> TaskOutput[str]:
        for kind, key in task.steps:
            if kind == "set":
                ctx.set(key, key)
            elif kind == "get":
                assert ctx.get(key) == key
            else:
                assert ctx.get(key, None, timeout=WATCHDOG) in (key, None)
        requests = [NextTask(child) for child in task.children]
        if task.join is not None:
            requests.append(NextTask(task.join, join=True))
        return TaskOutput(task.name, requests)

    return call


EXECUTORS = {
    "inline": InlineExecutor,
    "thread-1": lambda: ThreadExecutor(1),
    "thread-2": lambda: ThreadExecutor(2),
    "thread-4": lambda: ThreadExecutor(4),
}


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An executor that all programs share."""
    executor = EXECUTORS[request.param]()
    yield executor
    executor.shutdown()


SWITCHING = ["switching", "switching often"]


@pytest.fixture(params=SWITCHING)
def switching(request: pytest.FixtureRequest) -> Iterator[None]:
    """Threads switch as they do by default, and a thousand times as often."""
    before = sys.getswitchinterval()
    if request.param == "switching often":
        sys.setswitchinterval(before / 1000)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def numbers(request: pytest.FixtureRequest) -> range:
    """The programs of one kind of executor with one kind of switching: no other has the same ones."""
    kind = request.node.callspec.params
    nth = list(EXECUTORS).index(kind["executor"]) * len(SWITCHING) + SWITCHING.index(kind["switching"])
    return range(nth * PROGRAMS, (nth + 1) * PROGRAMS)


def ran(programs: Programs, executor: Any, number: int) -> tuple[dict[str, Any] | None, Context[Any], Exception | None]:
    """Run a program by one of the ways to run; return its results, its context, its error."""
    with Flow(executor, max_parallel=(None, 1, 2)[number % 3]) as flow:
        for task in programs.tasks.values():
            flow.add_task(task.name, action(task))
        context = flow.context
        try:
            if number % 2:
                return flow.start(programs.start, timeout=WATCHDOG).result(2 * WATCHDOG), context, None
            return flow.run(programs.start, timeout=WATCHDOG), context, None
        except Exception as error:
            return None, context, error


def errors(error: Exception | None) -> list[Exception]:
    if error is None:
        return []
    return list(error.exceptions) if isinstance(error, ExceptionGroup) else [error]


def test_programs_end_as_the_fixed_point_says(executor, switching, numbers):
    """A run succeeds when every get can be satisfied; else one who waits in vain is told, by the right error."""
    for number in numbers:
        programs = drawn(random.Random(number), tolerant=False)
        outcome = fixed_point(programs)
        results, context, error = ran(programs, executor, number)
        said = f"program {number}: {programs}\nmodel: {outcome}\nraised: {error!r}"

        if outcome.expected is None:
            assert error is None, said
            assert set(context) == outcome.values, said
            assert outcome.ended == set(programs.tasks), said
            assert set(results) <= set(programs.tasks), said
        else:
            assert type(error) is outcome.expected, said
            if isinstance(error, ContextKeyError):
                assert outcome.waits[error.waiting] == error.key, said
            # What could run did run before anybody was told; what could not has changed nothing.
            assert set(context) == outcome.values, said


def test_programs_with_defaults_always_end(executor, switching, numbers):
    """With gets that have a default a run ends, and succeeds at once where every get can be satisfied."""
    for number in numbers[: PROGRAMS // 2]:
        programs = drawn(random.Random(-1 - number), tolerant=True)
        outcome = fixed_point(programs)
        _, context, error = ran(programs, executor, number)
        said = f"program {number}: {programs}\nmodel: {outcome}\nraised: {error!r}"

        assert all(type(each) in (ContextKeyError, DeadlockError) for each in errors(error)), said
        assert outcome.values <= set(context), said
        if outcome.expected is None:
            assert error is None, said
            assert set(context) == outcome.values, said


def test_the_programs_are_of_every_kind():
    """Among the programs that are drawn many can end, many lack a key, and many wait in a circle."""
    for first in range(0, len(EXECUTORS) * len(SWITCHING) * PROGRAMS, PROGRAMS):
        drawn_here = [drawn(random.Random(first + number), tolerant=False) for number in range(PROGRAMS)]
        kinds = [fixed_point(programs).expected for programs in drawn_here]
        assert min(kinds.count(kind) for kind in (None, ContextKeyError, DeadlockError)) > PROGRAMS // 20


def test_the_inline_place_goes_to_one_who_can_take_it(monkeypatch):
    """The caller's thread goes on just when its place was granted to another task: that one still starts."""
    send, regain = InlinePlace._send, InlinePlace.regain
    granted, going_on = threading.Event(), threading.Event()
    main = threading.current_thread()

    # The order that is forced:
    #   1. "first" waits in the caller's thread; a helper has the place and calls "second", which sets the key
    #   2. "second" waits: its place is granted to "third" while the caller's thread is still away
    #   3. the caller's thread wakes and wants its place back
    #   4. only now does the helper send somebody for "third"
    def late_send(places, grants):
        if threading.current_thread() is not main and any(lane is not None for _, lane in grants):
            granted.set()
            assert going_on.wait(WATCHDOG)
        send(places, grants)

    class Watched(deque):
        def insert(self, place, claim):
            super().insert(place, claim)
            going_on.set()

    def late_regain(places, worker):
        if worker is places.driver:
            places.claims = Watched(places.claims)
            assert granted.wait(WATCHDOG)
        regain(places, worker)

    monkeypatch.setattr(InlinePlace, "_send", late_send)
    monkeypatch.setattr(InlinePlace, "regain", late_regain)
    with Flow("inline") as flow:
        flow.add_task("first", lambda ctx: ctx.get("one"))
        flow.add_task("second", lambda ctx: [ctx.set("one", 1), ctx.get("two")])
        flow.add_task("third", lambda ctx: ctx.set("two", 2))
        assert flow.run(["first", "second", "third"], timeout=2.0) == {"first": 1, "second": [None, 2], "third": None}
