"""Regressions R21, R31 to R33, R41 and R44: joins, retries, what is refused, limits under load, hooks."""

import asyncio
import math
import random
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from itertools import count, pairwise

import pytest

from millstream import (
    Context,
    Flow,
    Hook,
    NextTask,
    Rate,
    Retry,
    RunCancelledError,
    RunTimeoutError,
    Status,
    Task,
    TaskBase,
    TaskOutput,
    TaskTimeoutError,
    current_task,
    fn_hook,
    task,
)
from tests.conftest import WATCHDOG, JumpingClock, Log, VirtualClock, set_clock

on_three = pytest.mark.parametrize("executor", ["inline", "thread", "asyncio"], indirect=True)
on_two = pytest.mark.parametrize("executor", ["thread", "asyncio"], indirect=True)


# ---- R21 --------------------------------------------------------------------------------------------


def mapper(ctx: Context, n: int, jitter: float) -> int:
    time.sleep(jitter)
    ctx.append("shared", n)
    return n * n


async def mapper_async(ctx: Context, n: int, jitter: float) -> int:
    await asyncio.sleep(jitter)
    ctx.append("shared", n)
    return n * n


@pytest.mark.parametrize("body", [mapper, mapper_async])
def test_r21_a_join_over_mappers_with_jitter_is_complete(body):
    """In 200 runs of 200 a reducer that copies finds what all mappers gave, and starts once."""
    draw = random.Random(21)
    reduced = Log()
    with Flow("thread", max_workers=32) as flow:

        @flow.task
        def split():
            mappers = [NextTask("map", {"n": n, "jitter": draw.uniform(0, 0.01)}, spawn_another=True) for n in range(8)]
            return [NextTask("reduce", join=True), *mappers]

        @flow.task("reduce")
        def reducer(ctx: Context, upstream):
            reduced.add(current_task().run_id)
            return list(upstream), sorted(ctx["shared"])

        flow.add_task("map", body)
        runs = [flow.start("split") for _ in range(200)]
        results = [run.result(WATCHDOG) for run in runs]
    assert results == [{"reduce": ([n * n for n in range(8)], list(range(8)))}] * 200
    assert sorted(reduced) == sorted(run.id for run in runs)


def test_r21_a_reducer_behind_edges_is_complete():
    """The same with declared dependencies: the reducer starts once, with the output of every mapper."""
    draw = random.Random(21)
    reduced = Log()
    with Flow("thread", max_workers=32) as flow:
        names = [f"map {n}" for n in range(8)]
        for n, name in enumerate(names):
            flow.add_task(name, lambda n=n: time.sleep(draw.uniform(0, 0.01)) or n * n)

        @flow.task(depends_on=names)
        def reduce(upstream):
            reduced.add(current_task().run_id)
            return dict(upstream)

        runs = [flow.start() for _ in range(200)]
        results = [run.result(WATCHDOG) for run in runs]
    assert results == [{"reduce": {name: n * n for n, name in enumerate(names)}}] * 200
    assert sorted(reduced) == sorted(run.id for run in runs)


# ---- R31 --------------------------------------------------------------------------------------------


@on_three
@pytest.mark.parametrize("on", [Exception, TimeoutError, OSError, (KeyError, TimeoutError)], ids=str)
def test_r31_a_tasks_own_timeout_error_is_tried_again_like_any_error(executor, on):
    """A task's own TimeoutError is tried again, also with a timeout on the task; the last one keeps its traceback."""
    attempts = []

    def asks_a_server():
        attempts.append(current_task().attempt)
        raise TimeoutError(f"no answer to question {len(attempts)}")

    async def asks_later():
        await asyncio.sleep(0)
        asks_a_server()

    with Flow(executor) as flow:
        for body in (asks_a_server, asks_later):
            attempts.clear()
            flow.add_task("ask", body, retries=2, retry_on=on, timeout=WATCHDOG, replace=True)
            with pytest.raises(TimeoutError, match="no answer to question 3") as caught:
                flow.run("ask")
            assert type(caught.value) is TimeoutError
            assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "asks_a_server"
            assert attempts == [1, 2, 3]
            error = flow.report().tasks["ask"].error
            assert (error.type, error.message) == ("TimeoutError", "no answer to question 3")
            assert "asks_a_server" in error.traceback


@on_two
@pytest.mark.parametrize("how", ["deadline", "cancel"])
@pytest.mark.parametrize("waits", [0.0, 8.0], ids=["no back-off", "back-off"])
def test_r31_after_a_deadline_or_a_cancel_nothing_is_tried_again(executor, how, waits):
    """After a run's deadline or cancel no further attempt starts, whether one waits or one is just failing."""
    clock, starts, begun, go_on = VirtualClock(), Log(), threading.Event(), threading.Event()
    with set_clock(Flow(executor), clock) as flow:

        @flow.task(retry=Retry(100, base=waits))
        def work():
            starts.add(1)
            if waits == 0.0 and len(starts) == 5:
                begun.set()
                assert go_on.wait(WATCHDOG)
            raise OSError("again")

        flow.add_task("probe", lambda: "fine")
        run = flow.start("work", timeout=4.0 if how == "deadline" else None)
        if waits:
            clock.wait_for(waits)
        else:
            assert begun.wait(WATCHDOG)
        before = len(starts)
        clock.advance(4.0) if how == "deadline" else run.cancel()
        go_on.set()
        with pytest.raises(RunTimeoutError if how == "deadline" else RunCancelledError):
            run.result(WATCHDOG)
        clock.advance(100.0)
        assert flow.run("probe") == {"probe": "fine"}
    assert len(starts) == before


@on_two
def test_r31_a_timeout_of_ours_is_not_tried_again_unasked(executor):
    """TaskTimeoutError is tried again only when retry_on names that very class."""
    for on, attempts in ((Exception, 1), (TimeoutError, 1), (TaskTimeoutError, 3)):
        clock, starts = VirtualClock(), Log()
        with set_clock(Flow(executor), clock) as flow:

            @flow.task(retries=2, retry_on=on, timeout=2.0)
            async def work():
                starts.add(current_task().attempt)
                await asyncio.Event().wait()

            run = flow.start("work")
            for number in range(1, attempts + 1):
                starts.wait_for(number)
                clock.wait_for(2.0)
                clock.advance(2.0)
            with pytest.raises(TaskTimeoutError):
                run.result(WATCHDOG)
        assert starts == list(range(1, attempts + 1))


# ---- R32 --------------------------------------------------------------------------------------------


def test_r32_retries_wait_their_back_off_without_a_worker():
    """With one worker and two hundred tasks that wait for their next attempts, that worker serves others."""
    clock, calls, lock = VirtualClock(), count(), threading.Lock()

    def fetch():
        with lock:
            if next(calls) < 200:
                raise OSError

    with ThreadPoolExecutor(1) as pool, set_clock(Flow(pool), clock) as flow:
        flow.add_task("fetch", fetch, retry=Retry(2, base=4.0))
        flow.add_task("go", lambda: [NextTask("fetch", spawn_another=True) for _ in range(200)])
        flow.add_task("probe", lambda: "fine")
        run = flow.start("go")
        clock.wait_for(*[4.0] * 200)
        assert pool.submit(lambda: "the pool is free").result(WATCHDOG) == "the pool is free"
        assert flow.run("probe") == {"probe": "fine"}
        clock.advance(3.75)
        assert flow.run("probe") == {"probe": "fine"}
        assert next(calls) == 200
        clock.advance(0.25)
        assert len(run.result(WATCHDOG)) == 200


def test_r32_attempt_two_thousand_waits_max_delay():
    """Two thousand attempts in a run: the waits double up to max_delay and stay there; nothing overflows."""
    clock, at = JumpingClock(), []
    with set_clock(Flow("inline"), clock) as flow:

        @flow.task(retry=Retry(2001, base=1.0, max_delay=32.0))
        def fetch():
            at.append(clock.now())
            if len(at) < 2001:
                raise OSError

        flow.run("fetch")
        assert flow.report().tasks["fetch"].attempt == 2001
    waits = [after - before for before, after in pairwise(at)]
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0] + [32.0] * 1995


# ---- R33 --------------------------------------------------------------------------------------------

COUNTS = [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("3", TypeError), (True, TypeError)]
SECONDS = [(-1, ValueError), (math.nan, ValueError), (math.inf, ValueError), ("1", TypeError), (True, TypeError)]
NO_LISTS = ["db", b"db", 5, {"db": 1}, [5], [None], [["db"]]]
WORDS = [("fast", ValueError), (2, TypeError), ("Linear", ValueError), ("", ValueError)]
SHARES = [*SECONDS, (1.5, ValueError)]
CLASSES = [("OSError", TypeError), (OSError(), TypeError), (int, TypeError), ([OSError], TypeError), ((), ValueError)]

BAD_OPTIONS = [
    *[({"max_attempts": value}, kind, "max_attempts") for value, kind in COUNTS],
    *[({"retries": value}, kind, "retries") for value, kind in COUNTS if value != 0],
    *[({"max_parallel": value}, kind, "max_parallel") for value, kind in COUNTS],
    *[({"retry": value}, TypeError, "retry") for value in (3, "twice", Retry, {"attempts": 3}, True)],
    *[({"retries": 1, "backoff": value}, kind, "backoff") for value, kind in WORDS],
    *[({"retries": 1, "backoff_base": value}, kind, "backoff_base") for value, kind in SECONDS],
    *[({"retries": 1, "backoff_max": value}, kind, "backoff_max") for value, kind in SECONDS],
    *[({"retries": 1, "retry_on": value}, kind, "retry_on") for value, kind in CLASSES],
    ({"retries": 1, "max_attempts": 2}, ValueError, "max_attempts"),
    ({"retry": Retry(2), "retries": 1}, ValueError, "retries"),
    ({"retry": Retry(2), "backoff": "none"}, ValueError, "backoff"),
    ({"backoff": "linear"}, ValueError, "retries"),
    ({"retry_on": OSError}, ValueError, "retries"),
    *[({"priority": value}, TypeError, "priority") for value in ("high", 1.0, True, [1])],
    *[({"uses": value}, TypeError, "uses") for value in NO_LISTS],
    ({"on_dep_failure": "ignore"}, ValueError, "on_dep_failure"),
    ({"on_dep_failure": True}, ValueError, "on_dep_failure"),
    *[({"for_each": value}, TypeError, "for_each") for value in (5, ["rows"], len)],
    *[({"depends_on": value}, TypeError, "depends_on") for value in ("load", 5, [5], {"load": 1})],
    *[({"routes": value}, TypeError, "routes") for value in ("load", 5, [5], {"load": 1})],
    ({"retires": 2}, TypeError, "retries"),
    ({"max_atempts": 2}, TypeError, "max_attempts"),
    ({"priorty": 2}, TypeError, "priority"),
    ({"limits": ["db"]}, TypeError, "uses"),
    ({"deps": ["load"]}, TypeError, "depends_on"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "kind", "word"), BAD_OPTIONS, ids=str)
def test_r33_a_bad_option_of_a_task_is_refused_where_it_enters(options, kind, word):
    """A bad value, or a bad combination, is refused by its name by every way to make a task."""
    with Flow("inline", limits={"db": 1}) as flow:
        for enters in (
            lambda: flow.add_task("bad", lambda ctx: None, **options),
            lambda: flow.task("bad", **options)(lambda ctx: None),
            lambda: Task("bad", lambda ctx: None, **options),
            lambda: task("bad", **options)(lambda ctx: None),
            lambda: type("Bad", (TaskBase,), {**options, "run": lambda self: None})(),
        ):
            with pytest.raises(kind, match=word) as caught:
                enters()
            assert "\n" not in str(caught.value)
        assert dict(flow.tasks) == {}


@pytest.mark.parametrize(
    ("options", "kind", "word"),
    [
        *[({"limits": {"db": value}}, kind, "db") for value, kind in COUNTS],
        *[({"limits": {"db": value}}, TypeError, "db") for value in (None, [2], Rate, Retry(2), 2.0)],
        *[({"limits": value}, TypeError, "limits") for value in (5, "db", ["db"], [("db", 2)])],
        ({"limits": {5: 1}}, TypeError, "5"),
        ({"limits": {"": 1}}, ValueError, "limit"),
        *[({"on_error": value}, ValueError, "on_error") for value in ("ignore", True, "Raise", "")],
        *[({"on_error": value}, (TypeError, ValueError), "on_error") for value in (5, ["raise"], None)],
        ({"limit": {"db": 1}}, TypeError, "limits"),
        ({"hook": []}, TypeError, "hooks"),
        ({"retries": 2}, TypeError, "retries"),
    ],
    ids=str,
)
def test_r33_a_bad_option_of_a_flow_is_refused_where_it_enters(options, kind, word):
    """Bad limits, rates, hooks and words for on_error are refused by Flow itself."""
    with pytest.raises(kind, match=word):
        Flow("inline", **options)


@pytest.mark.parametrize(
    ("make", "kind", "word"),
    [
        *[(lambda value=value: Rate(value), kind, "count") for value, kind in COUNTS],
        *[(lambda value=value: Rate(1, per=value), kind, "per") for value, kind in [*SECONDS, (0, ValueError)]],
        *[(lambda value=value: Retry(value), kind, "attempts") for value, kind in COUNTS],
        *[(lambda value=value: Retry(2, jitter=value), kind, "jitter") for value, kind in SHARES],
        *[(lambda value=value: NextTask("a", priority=value), TypeError, "priority") for value in ("1", 1.0, True)],
    ],
)  # fmt: skip
def test_r33_a_bad_policy_is_refused_where_it_is_made(make, kind, word):
    """Rate, Retry and NextTask check their fields themselves."""
    with pytest.raises(kind, match=word):
        make()


@pytest.mark.parametrize("how", ["add_task", "task", "add", "submit"])
def test_r33_an_unknown_limit_is_refused_where_it_enters(how):
    """A task that uses a limit which the flow does not have is refused with those that it has, and with the mend."""
    with Flow("inline", limits={"db": 2, "api": Rate(3)}, name="shop") as flow:
        work = task("work", uses=["disk"])(lambda: None)
        enters = {
            "add_task": lambda: flow.add_task("work", lambda: None, uses=["disk"]),
            "task": lambda: flow.task("work", uses=["db", "disk"])(lambda: None),
            "add": lambda: flow.add(work),
            "submit": lambda: flow.submit(work),
        }[how]
        with pytest.raises(ValueError, match=r"work uses the limit disk.*shop.*db, api.*'disk': 2"):
            enters()
        assert dict(flow.tasks) == {}
    with Flow("inline") as flow, pytest.raises(ValueError, match="disk"):
        flow.add_task("work", lambda: None, uses=["disk"])


def test_r33_what_the_options_allow_at_their_ends():
    """The ends of the ranges are allowed, and short forms may be numbers of any real kind."""
    with Flow("inline", limits={"db": 1, "api": Rate(1, per=1e-6)}, max_parallel=1) as flow:
        flow.add_task("a", lambda: 1, max_attempts=1, max_parallel=1, priority=-(10**9), uses=())
        flow.add_task("b", lambda: 1, retries=0, uses=("db", "db"), priority=10**9)
        flow.add_task("c", lambda: 1, retries=3, backoff="none", backoff_base=0, backoff_max=0, retry_on=(OSError,))
        flow.add_task("d", lambda: 1, retry=Retry(1, jitter=1, max_delay=0), uses=iter(["api"]))
        assert flow.run(["a", "b", "c", "d"]) == {"a": 1, "b": 1, "c": 1, "d": 1}
        assert flow["b"].uses == ("db",)


# ---- R41 --------------------------------------------------------------------------------------------


class Count:
    """Who is inside at once: under each of several names, and how many at the most."""

    def __init__(self):
        self._lock = threading.Lock()
        self.now, self.most = {}, {}

    def __call__(self, *names):
        with self._lock:
            for name in names:
                self.now[name] = self.now.get(name, 0) + 1
                self.most[name] = max(self.most.get(name, 0), self.now[name])

    def leave(self, *names):
        with self._lock:
            for name in names:
                self.now[name] -= 1


def test_r41_limits_hold_under_load():
    """Four runs at once never run more than limits or max_workers allow, nor one of them more than its max_parallel."""
    inside = Count()
    with Flow("thread", max_workers=5, max_parallel=3, limits={"db": 2, "disk": 1}) as flow:

        def work(*limits):
            names = ("all", f"run {current_task().run_id}", *limits)
            inside(*names)
            time.sleep(random.random() / 2000)
            inside.leave(*names)

        flow.add_task("plain", lambda: work("plain"), max_parallel=2)
        flow.add_task("query", lambda: work("db"), uses=["db"])
        flow.add_task("write", lambda: work("db", "disk"), uses=["disk", "db"], priority=1)
        flow.add_task("go", lambda: [NextTask(n, spawn_another=True) for n in ["plain", "query", "write"] * 20])
        runs = [flow.start("go") for _ in range(4)]
        assert [len(run.result(WATCHDOG)) for run in runs] == [60] * 4
    assert inside.most["all"] <= 5
    assert inside.most["db"] == 2
    assert inside.most["disk"] == 1
    assert all(inside.most[f"run {run.id}"] <= 3 for run in runs)
    assert inside.most["plain"] <= 2 * 4
    assert set(inside.now.values()) == {0}


def test_r41_limits_hold_under_load_with_coroutines_and_failures():
    """The same with coroutines that fail, are tried again, time out and are cancelled."""
    inside, numbers = Count(), count()

    async def work(ctx: Context, limit):
        name = f"run {current_task().run_id}"
        inside(limit, name)
        try:
            await asyncio.sleep(0)
            number = next(numbers)
            if number % 5 == 0:
                raise OSError
            if number % 50 == 1:
                await asyncio.sleep(60)
            await asyncio.sleep(0)
        finally:
            inside.leave(limit, name)

    limits = {"db": 2, "api": 3}
    with Flow("asyncio", max_parallel=4, limits=limits, on_error="continue") as flow:
        for name in limits:
            flow.add_task(name, work, uses=[name], retries=2, timeout=0.02)
        names = [*limits] * 30
        flow.add_task("go", lambda: [NextTask(name, {"limit": name}, spawn_another=True) for name in names])
        runs = [flow.start("go") for _ in range(4)]
        runs[0].cancel()
        assert all(run.wait(WATCHDOG) for run in runs)
        assert flow.start(["db", "api"], inputs={"limit": "db"}).wait(WATCHDOG)
    assert inside.most["db"] <= 2 + 1  # the probe's own
    assert inside.most["api"] <= 3
    assert all(inside.most.get(f"run {run.id}", 0) <= 4 for run in runs)
    assert set(inside.now.values()) == {0}


def test_r41_a_rate_holds_under_load():
    """Four runs at once on the real clock: no window of the rate has more starts than it allows."""
    per, most, starts = 0.02, 4, Log()
    with Flow("thread", max_workers=4, limits={"api": Rate(most, per=per)}) as flow:

        @flow.task(uses=["api"])
        def call():
            starts.add(time.monotonic())

        flow.add_task("go", lambda: [NextTask("call", spawn_another=True) for _ in range(10)])
        begin = time.monotonic()
        runs = [flow.start("go") for _ in range(4)]
        assert [len(run.result(WATCHDOG)) for run in runs] == [10] * 4
    # The k-th start cannot be earlier than k // most windows after the begin, however late others were seen.
    assert all(at - begin >= number // most * per for number, at in enumerate(sorted(starts)))


@pytest.mark.parametrize("max_workers", [1, 3])
def test_r41_max_workers_is_over_all_runs(max_workers):
    """max_workers bounds what is under way at once over all runs of the flow."""
    inside = Count()
    with Flow("thread", max_workers=max_workers) as flow:

        def work():
            inside("all")
            time.sleep(0)
            inside.leave("all")

        flow.add_task("work", work)
        flow.add_task("go", lambda: [NextTask("work", spawn_another=True) for _ in range(50)])
        runs = [flow.start("go") for _ in range(4)]
        assert [len(run.result(WATCHDOG)) for run in runs] == [50] * 4
    assert inside.most["all"] <= max_workers


# ---- R44 --------------------------------------------------------------------------------------------


@on_three
def test_r44_a_hook_that_raises_harms_no_run(executor):
    """A hook whose every method raises changes neither results nor errors, and other hooks are told everything."""
    calls, others = Log(), Log()

    class Broken(Hook):
        def fail(self, event):
            calls.add(type(event).__name__)
            raise RuntimeError("broken hook")

        on_run_start = on_run_end = on_task_start = on_task_success = fail
        on_task_failure = on_task_retry = on_task_skip = on_task_coalesced = fail

    with Flow(executor, hooks=[Broken(), fn_hook(on_run_end=others.add)]) as flow:
        flow.add_task("go", lambda: [NextTask("work", {"n": 1}), NextTask("work", {"n": 2})])
        flow.add_task("work", lambda n: n)
        flow.add_task("bad", lambda: {}["nothing"], retries=1)
        assert flow.run("go") == {"work": 1}
        with pytest.raises(KeyError, match="nothing"):
            flow.run("bad")
        assert [chunk.value for chunk in flow.stream("work", inputs={"n": 3})] == [3]
        others.wait_for(3)
        calls.wait_for(18)
    assert [event.status for event in others] == [Status.SUCCESS, Status.FAILED, Status.SUCCESS]


@on_three
def test_r44_a_slow_hook_harms_no_run(executor):
    """A hook that is stuck with its first event keeps no task waiting; the run ends, and later it has all events."""
    clock, gate, ran, got = VirtualClock(), threading.Event(), Log(), Log()

    def slow(event):
        assert gate.wait(WATCHDOG)
        got.add(type(event).__name__)

    with set_clock(Flow(executor, hooks=[fn_hook(on_task_start=slow, on_run_end=slow)]), clock) as flow:
        flow.add_task("go", lambda: [NextTask("work", spawn_another=True) for _ in range(20)])
        flow.add_task("work", lambda: ran.add(1))
        runs = []
        thread = threading.Thread(target=lambda: runs.append(flow.run("go")))
        thread.start()
        clock.wait_for(0.5)
        assert len(ran) == 20
        clock.advance(0.5)
        thread.join(WATCHDOG)
        assert len(runs[0]) == 20
        assert got == []
        gate.set()
        got.wait_for(22)
    assert got == ["TaskStartEvent"] * 21 + ["RunEndEvent"]


def test_r44_a_hook_that_cannot_work_is_refused():
    """An ``async def`` or a generator as a hook's method is refused, never ignored in silence."""

    async def coroutine(event):
        raise AssertionError

    def generator(event):
        yield event

    async def async_generator(event):
        yield event

    for function in (coroutine, generator, async_generator):
        with pytest.raises(TypeError, match="on_run_end"):
            fn_hook(on_run_end=function)
        with pytest.raises(TypeError, match="on_run_end"):
            type("Watch", (Hook,), {"on_run_end": function})
        hook = Hook()
        hook.on_run_end = function
        with pytest.raises(TypeError, match="on_run_end"):
            Flow(hooks=[hook])


@on_two
def test_r44_a_hook_that_works_with_its_flow_harms_no_run(executor):
    """A hook that starts runs of the very flow, and cancels or reads others, ends with them."""
    results = Log()

    def on_success(event):
        if event.task == "work":
            results.add(flow.run("follow_up", inputs={"after": event.id}))

    with Flow(executor, hooks=[fn_hook(on_task_success=on_success)]) as flow:
        flow.add_task("work", lambda: TaskOutput("done"))
        flow.add_task("follow_up", lambda after: f"after {after}")
        assert flow.run("work") == {"work": "done"}
        results.wait_for(1)
    assert results == [{"follow_up": "after work"}]


def test_a_coroutine_that_a_plain_function_gives_keeps_its_priority():
    """It goes to the loop as what it is: a task run of that priority."""
    order, asked = [], threading.Event()

    async def body(number):
        order.append(number)

    with Flow(max_workers=4) as flow:

        @flow.task
        async def blocker():
            asked.wait(WATCHDOG)  # the loop is busy until all three stand in line

        @flow.task
        def give(number):
            return body(number)

        @flow.task
        def go():
            for number in (1, 3, 9):
                yield NextTask("give", {"number": number}, spawn_another=True, priority=number)

        lane = []
        run = flow.start(["blocker", "go"])
        deadline = time.monotonic() + WATCHDOG
        while len(lane) < 3 and time.monotonic() < deadline:
            lane = [item for each in list(run._lanes.values()) if each.on_loop for item in each.ready]
            time.sleep(0.001)
        asked.set()
        run.result(WATCHDOG)
    assert order == [9, 3, 1]
