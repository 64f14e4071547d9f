"""Regressions R29, R31 and R33 to R37: limits of time, cancelling and closing, and what is left behind: nothing."""

import asyncio
import gc
import math
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from millstream import (
    AsyncioExecutor,
    Context,
    Flow,
    FlowClosedError,
    NextTask,
    RunCancelledError,
    RunTimeoutError,
    Status,
    Task,
    TaskCancelledError,
    TaskOutput,
    TaskTimeoutError,
    ThreadExecutor,
    current_task,
)
from tests.conftest import (
    WATCHDOG,
    assert_gone,
    engine_threads,
    on_one_worker,
    on_several_workers,
    opened,
    run_snippet,
    until,
)

ALL_BUT_INLINE = ("thread", "thread-1", "asyncio", "asyncio-1", "pool", "pool-1")
on_all_but_inline = pytest.mark.parametrize("executor", ALL_BUT_INLINE, indirect=True)

# ---- R29 --------------------------------------------------------------------------------------------


@on_all_but_inline
def test_r29_a_body_past_its_timeout_is_left_behind(executor):
    """A body past its timeout: run raises, the flow works on at once on one worker too, and close does not wait."""
    release, ended = threading.Event(), threading.Event()
    flow = Flow(executor)

    def stuck(ctx: Context) -> str:
        release.wait(WATCHDOG)
        ended.set()
        return "late"

    flow.add_task("stuck", stuck, timeout=0.03)
    flow.add_task("probe", lambda ctx: "fine")

    with pytest.raises(TaskTimeoutError, match=r"stuck took longer than its timeout of 0\.03 s"):
        flow.run("stuck")
    assert "stuck" not in flow.context
    for _ in range(3):
        assert flow.run("probe", timeout=WATCHDOG) == {"probe": "fine"}
    flow.close()
    assert not ended.is_set()

    release.set()
    assert ended.wait(WATCHDOG)


def test_r29_a_body_is_told_that_its_time_is_up(flow):
    """A body past its timeout sees ``current_task().cancelled``, on the inline executor too, and is discarded."""
    told = threading.Event()

    def polite() -> str:
        assert current_task().time_remaining() <= 0.03
        until(lambda: current_task().cancelled)
        assert current_task().time_remaining() == 0
        told.set()
        current_task().raise_if_cancelled()
        return "late"

    flow.add_task("polite", polite, timeout=0.03)

    with pytest.raises(TaskTimeoutError, match="polite"):
        flow.run("polite")
    assert told.wait(WATCHDOG)
    assert "polite" not in flow.context


def test_r29_a_coroutine_past_its_timeout_is_cancelled(flow):
    """A coroutine past its timeout is cancelled where it awaits, and its clean-up is done when run raises."""
    cleaned = []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(current_task().id)

    flow.add_task("slow", slow, timeout=0.03)

    with pytest.raises(TaskTimeoutError, match="slow"):
        flow.run("slow")
    assert cleaned == ["slow"]


@on_one_worker
def test_r29_a_task_that_waits_for_a_worker_does_not_time_out(flow):
    """The time of a task begins when it starts, however long it stood behind another one."""
    flow.add_task("split", lambda ctx: [NextTask("long"), NextTask("queued")])
    flow.add_task("long", lambda ctx: time.sleep(0.15))
    flow.add_task("queued", lambda ctx: "fine", timeout=0.1)

    assert flow.run("split") == {"long": None, "queued": "fine"}


@on_several_workers
def test_r29_nothing_queued_starts_after_the_run_has_failed(executor):
    """A task that stood behind one past its timeout is never started once the run has raised."""
    started = []
    release = threading.Event()
    with Flow(executor, max_parallel=1) as flow:
        flow.add_task("split", lambda ctx: [NextTask("stuck"), NextTask("queued")])
        flow.add_task("stuck", lambda ctx: release.wait(WATCHDOG), timeout=0.03)
        flow.add_task("queued", lambda ctx: started.append("queued"))
        flow.add_task("probe", lambda ctx: "fine")

        with pytest.raises(TaskTimeoutError, match="stuck"):
            flow.run("split")
        release.set()
        assert flow.run("probe") == {"probe": "fine"}
    assert started == []


@pytest.mark.parametrize("executor", ["'thread'", "'asyncio'"])
def test_r29_the_interpreter_does_not_wait_for_a_stuck_body(executor):
    """The interpreter exits although a body past its timeout is stuck for ever."""
    program = f"""
        import threading
        from millstream import Flow, TaskTimeoutError

        flow = Flow({executor})
        flow.add_task("stuck", lambda ctx: threading.Event().wait(), timeout=0.05)
        try:
            flow.run("stuck")
        except TaskTimeoutError as error:
            print(error)
        """
    assert run_snippet(program) == "Task run stuck took longer than its timeout of 0.05 s.\n"


# ---- R31 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, WATCHDOG])
@pytest.mark.parametrize("colour", ["plain", "async"])
def test_r31_a_tasks_own_timeout_error_is_its_own(flow, colour, timeout):
    """A TimeoutError that a task raises keeps type, text and traceback, whether or not the task has a timeout."""

    def asks_a_server() -> None:
        raise TimeoutError("the server did not answer")

    async def asks_later() -> None:
        await asyncio.sleep(0)
        asks_a_server()

    flow.add_task("work", asks_a_server if colour == "plain" else asks_later, timeout=timeout)

    with pytest.raises(TimeoutError, match="the server did not answer") as caught:
        flow.run("work", timeout=timeout)
    assert (type(caught.value), str(caught.value)) == (TimeoutError, "the server did not answer")
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "asks_a_server"


def test_r31_a_timeout_inside_a_coroutine_is_its_own(flow):
    """``asyncio.timeout`` and ``aget(timeout=)`` in a coroutine with a longer timeout work as everywhere."""

    async def work(ctx: Context) -> list:
        said = []
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            said.append("timeout")
        try:
            await ctx.aget("never", timeout=0.01, external=True)
        except TimeoutError:
            said.append("aget")
        return said

    flow.add_task("work", work, timeout=WATCHDOG)

    assert flow.run("work") == {"work": ["timeout", "aget"]}


@pytest.mark.parametrize("colour", ["plain", "async"])
def test_r31_after_a_runs_deadline_no_further_task_starts(flow, colour):
    """A run past its timeout raises RunTimeoutError, and nothing of it starts any more."""
    starts = []

    def endless(ctx: Context) -> NextTask:
        starts.append(1)
        return NextTask("endless")

    async def endless_async(ctx: Context) -> NextTask:
        return endless(ctx)

    flow.add_task("endless", endless if colour == "plain" else endless_async)
    flow.add_task("probe", lambda ctx: "fine")

    with pytest.raises(RunTimeoutError):
        flow.run("endless", timeout=0.05)
    count = len(starts)
    assert count > 0
    assert flow.run("probe") == {"probe": "fine"}
    assert len(starts) == count


@on_all_but_inline
def test_r31_after_a_cancel_no_further_task_starts(flow):
    """After cancel nothing of the run starts any more, and what runs is told."""
    starts = []
    running = threading.Event()

    @flow.task
    def endless(ctx: Context) -> NextTask:
        starts.append(1)
        if len(starts) == 100:
            running.set()
        return NextTask("endless")

    flow.add_task("probe", lambda ctx: "fine")

    run = flow.start("endless")
    assert running.wait(WATCHDOG)
    run.cancel()
    with pytest.raises(RunCancelledError):
        run.result(WATCHDOG)
    count = len(starts)
    assert flow.run("probe") == {"probe": "fine"}
    assert len(starts) == count


# ---- R33 --------------------------------------------------------------------------------------------

BAD_TIMES = [(0, ValueError), (-1, ValueError), (math.nan, ValueError), (math.inf, ValueError), ("5", TypeError),
             (True, TypeError), ([], TypeError)]  # fmt: skip
BAD_COUNTS = [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("5", TypeError), (True, TypeError)]


@pytest.mark.parametrize(("value", "error"), BAD_TIMES)
def test_r33_a_bad_timeout_is_refused_where_it_enters(value, error):
    """A timeout of 0, below 0 or of a wrong type is refused where it is written, with its value."""
    called = []
    with Flow("inline") as flow:
        flow.add_task("work", lambda ctx: called.append(1))
        for enters in (
            lambda: flow.add_task("bad", lambda ctx: None, timeout=value),
            lambda: flow.task("bad", timeout=value)(lambda ctx: None),
            lambda: Task("bad", lambda ctx: None, timeout=value),
            lambda: flow.run("work", timeout=value),
            lambda: flow.stream("work", timeout=value),
            lambda: flow.start("work", timeout=value),
            lambda: asyncio.run(flow.arun("work", timeout=value)),
        ):
            with pytest.raises(error, match="timeout") as caught:
                enters()
            assert repr(value) in str(caught.value)
        assert list(flow.tasks) == ["work"]
        assert called == []


@pytest.mark.parametrize(("value", "error"), BAD_COUNTS)
def test_r33_a_bad_number_is_refused_where_it_enters(value, error):
    """A number of workers, task runs or chunks below 1 or of a wrong type is refused where it is written."""
    with Flow("inline") as flow:
        flow.add_task("work", lambda ctx: None)
        for enters, option in (
            (lambda: Flow(max_workers=value), "max_workers"),
            (lambda: ThreadExecutor(value), "max_workers"),
            (lambda: AsyncioExecutor(value), "max_workers"),
            (lambda: Flow(max_parallel=value), "max_parallel"),
            (lambda: Flow(max_task_runs=value), "max_task_runs"),
            (lambda: flow.stream("work", buffer=value), "buffer"),
        ):
            with pytest.raises(error, match=option):
                enters()


def test_r33_an_unknown_option_is_refused_with_ours():
    """An unknown or foreign option is refused with the nearest of ours."""
    with Flow("inline") as flow:
        flow.add_task("work", lambda ctx: None)
        for enters, ours in (
            (lambda: flow.add_task("bad", lambda ctx: None, timeuot=1), "timeout"),
            (lambda: flow.add_task("bad", lambda ctx: None, timeout_s=1), "timeout"),
            (lambda: flow.add_task("bad", lambda ctx: None, backend="thread"), "executor"),
            (lambda: Flow(max_worker=1), "max_workers"),
            (lambda: flow.run("work", timout=1), "timeout"),
        ):
            with pytest.raises(TypeError, match=f"did you mean {ours}"):
                enters()


# ---- R34 --------------------------------------------------------------------------------------------


def test_r34_leaving_a_stream_loop_cancels_the_run(flow):
    """Leaving a stream loop early, by break or by an exception, cancels the run: no further task starts."""
    starts = []

    @flow.task
    def endless(ctx: Context) -> TaskOutput:
        starts.append(1)
        return TaskOutput(len(starts), [NextTask("endless")])

    flow.add_task("probe", lambda ctx: "fine")

    def read(until: int, leave) -> None:
        for chunk in flow.stream("endless"):
            if chunk.value >= until:
                if leave is None:
                    break
                raise leave

    read(5, None)
    count = len(starts)
    assert flow.run("probe") == {"probe": "fine"}
    assert len(starts) == count >= 5

    with pytest.raises(LookupError, match="enough") as caught:
        read(count + 5, LookupError("enough"))
    del caught  # its traceback held the loop's iterator
    gc.collect()
    count = len(starts)
    assert flow.run("probe") == {"probe": "fine"}
    assert len(starts) == count


@on_all_but_inline  # there the reader's own thread is in the body
def test_r34_closing_a_stream_waits_for_what_runs(flow):
    """Closing a stream tells what runs to stop, waits for that, and leaves the run CANCELLED."""
    stopped = []

    @flow.task
    def split(ctx: Context):
        yield "first"
        yield from [NextTask("polite"), NextTask("coroutine")]

    @flow.task
    def polite(ctx: Context) -> None:
        ctx.emit("polite")
        try:
            ctx.get("never", external=True)
        finally:
            stopped.append("polite")

    @flow.task
    async def coroutine(ctx: Context) -> None:
        ctx.emit("coroutine")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            stopped.append("coroutine")

    with flow.stream("split") as chunks:
        seen = {next(chunks).value for _ in range(4)}
    assert seen == {"first", None, "polite", "coroutine"}
    assert sorted(stopped) == ["coroutine", "polite"]
    assert chunks.run.status is Status.CANCELLED


@on_several_workers
def test_r34_a_body_that_ignores_it_is_fenced(executor, short_grace):
    """Leaving a stream does not wait for a body that will not stop; what it does later changes nothing."""
    release, ended = threading.Event(), threading.Event()
    with Flow(executor) as flow:

        @flow.task
        def stubborn(ctx: Context) -> None:
            ctx.emit("started")
            release.wait(WATCHDOG)
            ctx.set("late", 1)
            ended.set()

        for chunk in flow.stream("stubborn"):
            assert chunk.value == "started"
            break
        assert not ended.is_set()
        release.set()
        assert ended.wait(WATCHDOG)
        assert "late" not in flow.context


@pytest.mark.parametrize("how", ["arun", "astream"])
def test_r34_cancelling_the_awaiter_cancels_and_awaits_what_runs(flow, how):
    """Cancelling who awaits ``arun`` or reads ``astream`` cancels the run and waits for its clean-up."""
    stopped = []
    started = []

    @flow.task
    def split(ctx: Context) -> list[NextTask]:
        return [NextTask("polite"), NextTask("coroutine")]

    @flow.task
    def polite(ctx: Context) -> None:
        try:
            ctx.get("never", external=True)
        finally:
            stopped.append("polite")

    @flow.task
    async def coroutine(ctx: Context) -> NextTask:
        started.append("coroutine")
        try:
            await ctx.aget("never", external=True)
        finally:
            await asyncio.sleep(0)
            stopped.append("coroutine")
        return NextTask("split")

    async def read() -> None:
        async for _ in flow.astream("split"):
            pass

    async def main() -> None:
        awaiter = asyncio.ensure_future(flow.arun("split") if how == "arun" else read())
        async with asyncio.timeout(WATCHDOG):
            while not started:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
        awaiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaiter
        assert "coroutine" in stopped
        assert flow.context.get("coroutine", None) is None

    for _ in range(5):
        started.clear()
        stopped.clear()
        asyncio.run(main())
    assert started == ["coroutine"]


# ---- R35 --------------------------------------------------------------------------------------------


@on_all_but_inline
def test_r35_a_cancelled_run_never_ends_as_success(flow):
    """A run cancelled while a body is under way is CANCELLED, although the body then succeeds; cancel is idempotent."""
    started, release = threading.Event(), threading.Event()

    @flow.task
    def work(ctx: Context) -> str:
        started.set()
        assert release.wait(WATCHDOG)
        return "done"

    for _ in range(10):
        started.clear()
        release.clear()
        run = flow.start("work")
        assert started.wait(WATCHDOG)
        run.cancel()
        run.cancel()
        release.set()
        with pytest.raises(RunCancelledError) as caught:
            run.result(WATCHDOG)
        assert isinstance(caught.value, CancelledError)
        assert run.status is Status.CANCELLED


@on_all_but_inline
def test_r35_a_cancel_at_any_moment_has_one_outcome(flow, often):
    """A cancel that races with the end of a run: either all results, or RunCancelledError, and the status agrees."""
    flow.add_task("split", lambda ctx: [NextTask("leaf", spawn_another=True)] * 3)
    flow.add_task("leaf", lambda ctx: 1)
    outcomes = set()
    for attempt in range(0, 200, 200 // often):
        run = flow.start("split")
        for _ in range(attempt * 5):
            pass
        run.cancel()
        try:
            assert run.result(WATCHDOG) == {"leaf": 1, "leaf#2": 1, "leaf#3": 1}
            assert run.status is Status.SUCCESS
        except RunCancelledError:
            assert run.status is Status.CANCELLED
        outcomes.add(run.status)
        run.cancel()
        assert run.status in outcomes
    assert outcomes <= {Status.SUCCESS, Status.CANCELLED}


@on_all_but_inline
@pytest.mark.parametrize("colour", ["plain", "async"])
def test_r35_a_task_that_waits_is_ended_at_once(flow, colour):
    """A cancel ends a task that waits for a value, and a nested run, at once, with TaskCancelledError."""
    met = []
    waiting = threading.Event()

    def plain(ctx: Context) -> None:
        waiting.set()
        try:
            ctx.get("never", external=True)
        except TaskCancelledError as error:
            met.append(str(error))
            raise

    async def coroutine(ctx: Context) -> None:
        waiting.set()
        try:
            await ctx.aget("never", external=True)
        except (TaskCancelledError, asyncio.CancelledError):
            met.append("Task run waiter was told to stop.")
            raise

    flow.add_task("waiter", plain if colour == "plain" else coroutine)
    flow.add_task("after", lambda ctx: met.append("after"))
    flow.add_task("split", lambda ctx: [NextTask("waiter"), NextTask("after", join=True)])

    run = flow.start("split")
    assert waiting.wait(WATCHDOG)
    flow.cancel_all()
    with pytest.raises(RunCancelledError):
        run.result(WATCHDOG)
    assert met == ["Task run waiter was told to stop."]


# ---- R36 --------------------------------------------------------------------------------------------

KINDS = ["inline", "thread", "asyncio", "pool", "pool-1"]


def mixed(flow: Flow) -> None:
    """Tasks of every kind: one plain, one that waits, a coroutine, a timer."""
    flow.add_task("split", lambda ctx: [NextTask(name) for name in ("waiter", "coroutine", "plain")])
    flow.add_task("waiter", lambda ctx: ctx.get("plain"))
    flow.add_task("plain", lambda ctx: 1, timeout=WATCHDOG)

    @flow.task
    async def coroutine(ctx: Context) -> int:
        return await ctx.aget("plain")


@pytest.mark.parametrize("kind", KINDS)
def test_r36_a_closed_flow_leaves_no_thread(kind):
    """After close there is no thread of the library left."""
    before = engine_threads()
    with opened(kind) as executor:
        flow = Flow(executor)
        mixed(flow)
        for _ in range(20):
            assert flow.run("split") == {"waiter": 1, "coroutine": 1, "plain": 1}
        flow.close()
        flow.close()
        assert_gone(engine_threads() - before)


@pytest.mark.parametrize("kind", KINDS)
def test_r36_closing_right_after_a_run_or_in_the_midst_of_one(kind):
    """Close at any moment returns without an error, and leaves no thread."""
    before = engine_threads()
    with opened(kind) as executor:
        for attempt in range(60):
            flow = Flow(executor)
            mixed(flow)
            if attempt % 2:
                flow.run("split")
            elif kind != "inline":
                flow.start("split")
            flow.close()
        assert_gone(engine_threads() - before)


@pytest.mark.parametrize("kind", KINDS)
def test_r36_a_flow_that_is_dropped_leaves_no_thread(kind):
    """A flow that nobody closed, and an abandoned stream, leave no thread once they are garbage."""
    before = engine_threads()
    with opened(kind) as executor:
        flow = Flow(executor)
        mixed(flow)
        flow.run("split")
        chunks = flow.stream("split")
        next(chunks)
        del chunks
        gone = weakref.ref(flow)
        del flow
        until(lambda: gc.collect() >= 0 and gone() is None)  # a worker may still be on its way to sleep
        assert_gone(engine_threads() - before)


@pytest.mark.parametrize("kind", KINDS)
def test_r36_a_finished_run_leaves_no_timer(kind):
    """A run whose limits of time were not needed leaves no timer, and no clock that waits for one."""
    with opened(kind) as executor, Flow(executor) as flow:
        mixed(flow)
        before = engine_threads("millstream-clock")
        for _ in range(5):
            flow.run("split", timeout=3600.0)
        assert_gone(engine_threads("millstream-clock") - before)


@pytest.mark.parametrize(
    "executor", ["'inline'", "'thread'", "'asyncio'", "ThreadPoolExecutor(2)", "PoolExecutor(ThreadPoolExecutor(3))"]
)
def test_r36_the_interpreter_exits_without_a_close(executor):
    """A flow never closed, an abandoned stream and a run that waits for ever do not keep the interpreter alive."""
    program = f"""
        import asyncio, threading
        from concurrent.futures import ThreadPoolExecutor
        from millstream import Flow, NextTask, PoolExecutor

        flow = Flow({executor})

        async def sleeper(ctx):
            started.release()
            await asyncio.Event().wait()

        def waiter(ctx):
            started.release()
            ctx.get("never", external=True)

        def many(ctx):
            yield from range(5000)  # more than the buffer holds

        started = threading.Semaphore(0)
        flow.add_task("sleeper", sleeper)
        flow.add_task("waiter", waiter)
        flow.add_task("many", many)
        flow.add_task("quick", lambda ctx: 1)
        flow.run("quick")
        chunks = flow.stream("many")
        next(chunks)
        if {executor!r} != "'inline'":
            run = flow.start(["sleeper", "waiter"])
            assert started.acquire(timeout=10) and started.acquire(timeout=10)
        print("end")
        """
    assert run_snippet(program) == "end\n"


def test_r36_use_after_close_is_one_sentence():
    """Whatever is asked of a closed flow is refused with one sentence."""
    flow = Flow("thread", name="orders")
    flow.add_task("work", lambda ctx: 1)
    flow.run("work")
    flow.close()

    async def read() -> None:
        async for _ in flow.astream("work"):
            pass

    for use in (
        lambda: flow.run("work"),
        lambda: flow.start("work"),
        lambda: flow.stream("work"),
        lambda: asyncio.run(flow.arun("work")),
        lambda: asyncio.run(read()),
        lambda: flow.add_task("other", lambda ctx: 1),
        flow.__enter__,
    ):
        with pytest.raises(FlowClosedError) as caught:
            use()
        assert str(caught.value) == "Flow orders is closed: make a new one, or close it later."
    assert flow.context.get("work") == 1  # what it has left can be read


@pytest.mark.parametrize("make", [ThreadExecutor, AsyncioExecutor, lambda: ThreadPoolExecutor(1)])
def test_r36_an_executor_that_was_shut_down_is_an_error(make):
    """A run on an executor that its owner has shut down raises; it does not wait for ever."""
    executor = make()
    with Flow(executor) as flow:
        flow.add_task("work", lambda ctx: 1)
        flow.add_task("later", later)
        assert flow.run("work") == {"work": 1}
        executor.shutdown()

        with pytest.raises(Exception, match=r"closed|shut ?down"):
            flow.run("work", timeout=WATCHDOG)
        if isinstance(executor, AsyncioExecutor):
            with pytest.raises(Exception, match=r"closed|shut ?down"):
                flow.run("later", timeout=WATCHDOG)


async def later() -> int:
    return 1


# ---- R37 --------------------------------------------------------------------------------------------

MANY = 100_000
on_the_plain_ones = pytest.mark.parametrize("executor", ["inline", "thread"], indirect=True)


@on_the_plain_ones
def test_r37_a_hundred_thousand_task_runs_in_a_fan_out(flow):
    """100,000 spawned task runs finish, and so does the join behind them."""
    flow.add_task("leaf", lambda: 1)
    flow.add_task("sum", lambda upstream: sum(upstream))
    flow.add_task("split", lambda ctx: [*[NextTask("leaf", spawn_another=True)] * MANY, NextTask("sum", join=True)])

    assert flow.run("split") == {"sum": MANY}


@on_the_plain_ones
def test_r37_a_chain_and_nested_joins_need_no_recursion(flow):
    """A chain of 20,000 steps, and joins nested 20,000 deep, finish under the usual recursion limit."""
    assert sys.getrecursionlimit() <= 1000
    deep = 20_000

    @flow.task
    def nest(n: int):
        if n == deep:
            return "bottom"
        return [NextTask("nest", {"n": n + 1}), NextTask("join", join=True, spawn_another=True)]

    flow.add_task("join", lambda ctx: ctx.update("joined", lambda n: n + 1))
    flow.add_task("step", lambda n: NextTask("step", {"n": n + 1}) if n < deep else n)

    assert flow.run("step", {"n": 0}) == {"step": deep}
    flow.run("nest", {"n": 0}, context={"joined": 0})
    assert flow.context["joined"] == deep


class Big:
    """Something whose end can be seen."""


@pytest.fixture
def alive() -> Iterator[weakref.WeakSet]:
    """The ``Big`` values that exist, while the garbage collector is off."""
    gc.collect()
    gc.disable()
    yield weakref.WeakSet()
    gc.enable()


def big(alive: weakref.WeakSet) -> Big:
    value = Big()
    alive.add(value)
    return value


def assert_freed(flow: Flow, alive: weakref.WeakSet) -> None:
    flow.reset()
    flow.run("probe")
    until(lambda: not alive)  # a worker may still be on its way to sleep


def test_r37_memory_is_given_back(flow, alive):
    """What a run held is freed with its context and its result, at once and without the garbage collector."""
    flow.add_task("split", lambda ctx: [NextTask("leaf", {"big": big(alive)}, spawn_another=True) for _ in range(10)])
    flow.add_task("leaf", lambda ctx, big: (ctx.set("kept", big), big)[1])
    flow.add_task("probe", lambda ctx: 1)

    results = flow.run("split")
    assert len(results) == len(alive) == 10
    del results
    assert len(list(flow.stream("split"))) == 11
    assert_freed(flow, alive)


def test_r37_memory_of_a_failed_run_is_given_back(flow, alive):
    """The same for a run that failed, once its error is gone: no circle runs through the traceback."""
    flow.add_task("split", lambda ctx: [NextTask("leaf", {"big": big(alive)}, spawn_another=True) for _ in range(10)])
    flow.add_task("leaf", lambda ctx, big: big)
    flow.add_task("probe", lambda ctx: 1)

    @flow.task
    def broken(ctx: Context) -> None:
        raise LookupError("broken")

    for start in ("broken", ["split", "broken"]):
        try:
            flow.run(start, {"big": big(alive)})
        except LookupError:
            pass
    assert_freed(flow, alive)


def test_r37_what_is_pending_is_what_costs_memory(flow):
    """While a long run is under way, what its finished task runs held is gone."""
    alive = weakref.WeakSet()
    most = []

    @flow.task
    def step(ctx: Context, n: int = 0, before: object = None):
        value = Big()
        alive.add(value)
        most.append(len(alive))
        return TaskOutput(value, [NextTask("step", {"n": n + 1, "before": value})] if n < 1000 else None)

    flow.run("step")

    assert len(most) == 1001
    assert max(most) <= 6
