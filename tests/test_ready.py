"""The ready queue: order, priorities, and the switch from the plain queue to priorities while workers take."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from millstream.engine.ready import Ready
from tests.conftest import WATCHDOG

checked = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@dataclass(eq=False)
class Run:
    """Something to stand in a queue; as task runs do, it equals nothing but itself."""

    name: str
    priority: int = 0


def put(queue, run):
    """Append a task run, as the scheduler does."""
    if run.priority and isinstance(queue, Ready):
        queue.rank(run)
    else:
        queue.put(run)


def filled(*runs):
    """Return a queue with runs, given as ``name`` or ``name:priority``, and the runs by name."""
    ready, named = Ready(), {}
    for run in runs:
        name, _, priority = run.partition(":")
        named[name] = Run(name, int(priority or 0))
        put(ready, named[name])
    return ready, named


def taken(ready):
    """Take everything, and return it as one word."""
    names = []
    while len(ready):
        names.append(ready.popleft().name)
    return "".join(names)


# ---- order -------------------------------------------------------------------------------------------


def test_first_come_first_served():
    """Without priorities what was put first is taken first."""
    ready, _ = filled("a", "b", "c")

    assert [run.name for run in ready] == ["a", "b", "c"]
    assert len(ready) == 3
    assert taken(ready) == "abc"


def test_without_priorities_it_is_a_plain_deque():
    """Workers take in one step of C while nobody has a priority."""
    ready, runs = filled("a", "b")

    assert type(ready.plain) is deque
    assert list(ready.plain) == [runs["a"], runs["b"]]
    assert ready.take() is None


@pytest.mark.parametrize(
    ("runs", "order"),
    [
        (["a", "b:1", "c"], "bac"),
        (["a:1", "b:2", "c:3"], "cba"),
        (["a:-1", "b", "c:-1", "d:1"], "dbac"),
        (["a:5", "b:5", "c:5"], "abc"),
        (["a", "b", "c:-2", "d", "e:-3", "f:-2"], "abdcfe"),
        (["a:0", "b:-1", "c:0"], "acb"),
    ],
)
def test_the_highest_priority_goes_first(runs, order):
    """A higher priority goes before a lower one, and among equals first come, first served."""
    ready, _ = filled(*runs)

    assert len(ready) == len(order)
    assert sorted(run.name for run in ready) == sorted(order)
    assert taken(ready) == order


def test_what_stood_there_keeps_its_order_when_priorities_come():
    """The first priority changes the queue for good, and nothing of what waits is lost or turned round."""
    ready, _ = filled("a", "b", "c")
    put(ready, Run("x", -1))
    put(ready, Run("d"))

    assert taken(ready) == "abcdx"
    put(ready, Run("e"))
    put(ready, Run("y", 1))
    assert taken(ready) == "ye"


def test_nothing_is_ready():
    """Taking from an empty queue raises IndexError, with priorities as without."""
    ready = Ready()
    with pytest.raises(IndexError):
        ready.popleft()
    assert ready.take() is None

    put(ready, Run("a", 1))
    assert ready.popleft().name == "a"
    with pytest.raises(IndexError):
        ready.popleft()
    assert ready.take() is None
    assert len(ready) == 0
    assert list(ready) == []


@pytest.mark.parametrize("runs", [["a", "b"], ["a", "b", "z:-1"], ["a:2", "b:2", "z"]])
def test_what_is_put_back_is_the_next_one_of_its_priority(runs):
    """A task run that was taken and put back goes before all others of its priority, and after higher ones."""
    ready, _ = filled(*runs)
    first = ready.popleft()

    ready.appendleft(first)
    assert ready.popleft() is first
    ready.appendleft(first)
    put(ready, Run("h", 9))
    assert ready.popleft().name == "h"
    assert taken(ready).startswith("ab")


def test_putting_back_after_priorities_came():
    """What is put back after priorities came finds its place among them."""
    ready, runs = filled("a", "b", "c:1")
    assert [ready.popleft().name for _ in range(3)] == ["c", "a", "b"]

    ready.appendleft(runs["a"])
    ready.appendleft(runs["c"])
    assert taken(ready) == "ca"


def test_several_that_are_put_back_come_in_the_opposite_order():
    """What is put back last is taken first, with priorities as without."""
    for runs in (["a", "b", "c"], ["a", "b", "c", "z:-1"]):
        ready, _ = filled(*runs)
        some = [ready.popleft() for _ in range(3)]
        for run in some:
            ready.appendleft(run)
        assert taken(ready).startswith("cba")


# ---- removing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list("abc"))
@pytest.mark.parametrize("runs", [["a", "b", "c"], ["a:1", "b:1", "c:1"], ["a", "b:1", "c:-1"]])
def test_one_can_be_taken_out(runs, name):
    """A task run is taken out from wherever it stands, once, and the others keep their order."""
    ready, named = filled(*runs)
    expected = taken(filled(*runs)[0]).replace(name, "")

    assert ready.remove(named[name]) is True
    assert ready.remove(named[name]) is False
    assert len(ready) == 2
    assert taken(ready) == expected


def test_the_order_survives_removals():
    """However many are taken out of the middle, the highest priority that is left goes first."""
    letters = "abcdefghijklmnopqrst"
    runs = [f"{name}:{place * 7 % 11}" for place, name in enumerate(letters)]
    for removed in itertools.combinations(letters[::3], 3):
        ready, named = filled(*runs)
        for name in removed:
            assert ready.remove(named[name])
        left = [named[name] for name in letters if name not in removed]
        assert taken(ready) == "".join(run.name for run in sorted(left, key=lambda run: -run.priority))


def test_a_worker_was_quicker():
    """What has been taken cannot be taken out."""
    ready, named = filled("a", "b:1")

    ready.popleft()
    assert ready.remove(named["b"]) is False
    assert ready.remove(Run("a")) is False, "it equals nothing but itself"
    assert taken(ready) == "a"


# ---- beside a model ----------------------------------------------------------------------------------


class Listed:
    """The same, plainly: a list in which the highest priority is looked for."""

    def __init__(self):
        self.runs = []

    def put(self, run):
        self.runs.append(run)

    def appendleft(self, run):
        self.runs.insert(0, run)

    def popleft(self):
        first = max(self.runs, key=lambda run: run.priority)  # the first of equals
        self.runs.remove(first)
        return first


@checked
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "put", "put", "take", "back", "remove"]), st.integers(0, 40)),
        min_size=20,
        max_size=50,
    ),
    priorities=st.sampled_from([(0,), (0, 0, 1), (0, 1, -1), (3, 2, 1)]),
)
def test_any_steps_in_any_order(steps, priorities):
    """Whatever is put, taken, put back and taken out: the queue agrees with the list."""
    ready, listed, gone = Ready(), Listed(), []
    for step, number in steps:
        if step == "put":
            run = Run(str(number), priorities[number % len(priorities)])
            put(ready, run)
            put(listed, run)
        elif step == "take" and listed.runs:
            gone.append(listed.popleft())
            assert ready.popleft() is gone[-1]
        elif step == "back" and gone:
            ready.appendleft(gone[-1])
            listed.appendleft(gone.pop())
        elif step == "remove" and listed.runs:
            run = listed.runs.pop(number % len(listed.runs))
            assert ready.remove(run)
            assert not ready.remove(run)
            gone.append(run)
        assert len(ready) == len(listed.runs)
        assert set(ready) == set(listed.runs)
    while listed.runs:
        assert ready.popleft() is listed.popleft()


# ---- taking while priorities come --------------------------------------------------------------------


class Interrupted(deque):
    """A plain queue in which priorities come at the very moment of a step."""

    before = after = None

    def popleft(self):
        self.before, act = None, self.before
        if act is not None:
            act()
        try:
            return super().popleft()
        finally:
            self.after, act = None, self.after
            if act is not None:
                act()


def interrupted(*names):
    ready = Ready()
    ready.plain = Interrupted()
    ready.put = ready.plain.append
    for name in names:
        put(ready, Run(name))
    return ready


@pytest.mark.parametrize("take", ["plain", "popleft"])
def test_priorities_come_just_before_a_worker_takes(take):
    """A worker that finds the plain queue emptied under its hands finds everything where it looks next."""
    ready = interrupted("a", "b")
    ready.plain.before = lambda: put(ready, Run("x", 1))

    with pytest.raises(IndexError):
        ready.plain.popleft() if take == "plain" else ready.popleft()
    assert ready.take().name == "x"
    assert taken(ready) == "ab"


def test_a_worker_takes_while_priorities_come():
    """What a worker takes in the middle of the change is taken once, and the rest is there."""
    ready = interrupted("a", "b", "c", "d")
    got = []
    # The change takes "a" out; a worker takes "b" then; the change goes on with "c".
    ready.plain.after = lambda: got.append(ready.plain.popleft().name)

    put(ready, Run("x", 1))
    assert got == ["b"]
    assert taken(ready) == "xacd"


@pytest.mark.parametrize("first", [0, 500])
def test_workers_take_while_priorities_come(first):
    """With three workers that take all the time, everything that is put is taken, and once."""
    ready, got, ended = Ready(), [[], [], []], threading.Event()
    start = threading.Barrier(4, timeout=WATCHDOG)

    def work(mine):
        take = ready.plain.popleft  # as the hot loop of a worker does
        start.wait()
        while True:
            over = ended.is_set()
            try:
                mine.append(take())
            except IndexError:
                run = ready.take()
                if run is not None:
                    mine.append(run)
                elif over:
                    return

    workers = [threading.Thread(target=work, args=(mine,)) for mine in got]
    for worker in workers:
        worker.start()
    start.wait()
    runs = [Run(str(number), 0 if number < first else number % 3) for number in range(1000)]
    try:
        for run in runs:
            put(ready, run)
    finally:
        ended.set()
        for worker in workers:
            worker.join(WATCHDOG)
    assert not any(worker.is_alive() for worker in workers)
    everything = [run for mine in got for run in mine]
    assert len(everything) == len(runs)
    assert set(everything) == set(runs)


def test_either_a_worker_takes_it_or_it_is_taken_out():
    """Of a worker that takes and a driver that takes out at once, exactly one gets each task run."""
    ready, got, start = Ready(), [], threading.Barrier(2, timeout=WATCHDOG)
    runs = [Run(str(number), number % 2) for number in range(500)]
    for run in runs:
        put(ready, run)

    def work():
        start.wait()
        while True:
            try:
                got.append(ready.popleft())
            except IndexError:
                return

    worker = threading.Thread(target=work)
    worker.start()
    start.wait()
    removed = [run for run in reversed(runs) if ready.remove(run)]
    worker.join(WATCHDOG)
    assert not worker.is_alive()
    assert len(got) + len(removed) == len(runs)
    assert {*got, *removed} == set(runs)
