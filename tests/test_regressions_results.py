"""Regressions R1 to R9: results are complete, errors are the task's own, and every run ends."""

import asyncio
import concurrent.futures
import threading
import traceback
from collections import Counter

import pytest

from millstream import Context, Flow, NextTask, Status, StreamChunk, TaskFailedError, TaskNotFoundError, TaskOutput
from tests.conftest import WATCHDOG, on_several_workers


class PairError(Exception):
    """An exception that cannot be made from its ``args`` alone."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code, self.reason = code, reason


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", ()))


# ---- R1 ---------------------------------------------------------------------------------------------


def test_r01_the_failure_in_a_fan_out_is_what_run_raises(flow, often):
    """One of a fan-out raises and its siblings succeed: run raises that exception, 200 times of 200."""

    @flow.task
    def split(bad: int) -> list[NextTask]:
        return [NextTask("broken" if n == bad else "sibling", {"n": n}, spawn_another=True) for n in range(5)]

    @flow.task
    def sibling(ctx: Context, n: int) -> int:
        ctx.set(f"key-{n}", n)
        return n

    @flow.task
    def broken(n: int) -> None:
        raise LookupError("broken", n)

    for attempt in range(often):
        with pytest.raises(LookupError) as caught:
            flow.run("split", {"bad": attempt % 5})
        assert caught.value.args == ("broken", attempt % 5)
        assert "broken" in notes(caught.value)
        assert "sibling" not in notes(caught.value)


@on_several_workers
def test_r01_siblings_that_are_running_are_not_blamed(flow):
    """A sibling under way when another one raises changes nothing: its result is not run's, nor its end an error."""

    @flow.task
    def split() -> list[NextTask]:
        return [NextTask(name) for name in ("sibling", "broken", "other", "another")]

    @flow.task
    def broken(ctx: Context) -> None:
        assert ctx["running"].wait(WATCHDOG)
        ctx["raising"].set()
        raise LookupError("broken")

    @flow.task
    def sibling(ctx: Context) -> str:
        ctx["running"].set()
        assert ctx["raising"].wait(WATCHDOG)
        return "fine"

    flow.add_task("other", lambda ctx: "fine")
    flow.add_task("another", lambda ctx: "fine")
    for _ in range(50):
        with pytest.raises(LookupError, match="broken"):
            flow.run("split", {"running": threading.Event(), "raising": threading.Event()})


def test_r01_siblings_that_wait_for_a_value_are_not_blamed(flow):
    """Siblings that wait for a value when another one raises are a consequence, never an error of their own."""

    @flow.task
    def split() -> list[NextTask]:
        waiters = [NextTask("waiter", spawn_another=True)] * 2
        return [*waiters, NextTask("broken"), *waiters]

    flow.add_task("waiter", lambda ctx: ctx.get("never"))

    @flow.task
    def broken() -> None:
        raise LookupError("broken")

    for _ in range(50):
        with pytest.raises(LookupError, match="broken"):
            flow.run("split")


def test_r01_coroutines_beside_a_failing_one_are_not_blamed(flow):
    """Coroutines that are cancelled because another one raised are a consequence: run raises the failure."""
    names = ("sleeper", "broken", "sleeper")
    flow.add_task("split", lambda ctx: [NextTask(name, spawn_another=True) for name in names])

    @flow.task
    async def sleeper() -> None:
        await asyncio.Event().wait()

    @flow.task
    async def broken() -> None:
        await asyncio.sleep(0)
        raise LookupError("broken")

    for _ in range(50):
        with pytest.raises(LookupError, match="broken"):
            flow.run("split")


@on_several_workers
def test_r01_two_failures_at_once_are_both_told(flow):
    """Two siblings that both were running and both fail arrive in one group, the first failure first."""
    flow.add_task("split", lambda ctx: [NextTask("first"), NextTask("second")])
    both = threading.Barrier(2)

    @flow.task
    def first() -> None:
        both.wait(WATCHDOG)
        raise LookupError("first")

    @flow.task
    def second(ctx: Context) -> None:
        both.wait(WATCHDOG)
        try:
            ctx.get("never", external=True)
        except concurrent.futures.CancelledError:  # the run ends, so ``first`` has failed
            raise OSError("second") from None

    for _ in range(20):
        with pytest.raises(ExceptionGroup) as caught:
            flow.run("split")
        assert [repr(error) for error in caught.value.exceptions] == ["LookupError('first')", "OSError('second')"]


# ---- R2 ---------------------------------------------------------------------------------------------


def test_r02_a_thousand_task_runs_give_a_thousand_results(flow):
    """1,000 spawned task runs give 1,000 results while they add context keys and others read the context."""

    @flow.task
    def split() -> TaskOutput:
        return TaskOutput("started", [NextTask("worker", {"n": n}, spawn_another=True) for n in range(1000)])

    @flow.task
    def worker(ctx: Context, n: int) -> int:
        ctx.set(f"key-{n}", n)
        if n % 50 == 0:
            assert ctx.to_dict()[f"key-{n}"] == n
            assert f"key-{n}" in list(ctx)
        return n

    results = flow.run("split")

    assert results == {"worker" if n == 0 else f"worker#{n + 1}": n for n in range(1000)}
    assert {key: value for key, value in flow.context.to_dict().items() if key.startswith("key-")} == {
        f"key-{n}": n for n in range(1000)
    }


def test_r02_a_thousand_coroutines_give_a_thousand_results(flow):
    """The same with ``async def`` tasks that suspend."""
    flow.add_task("split", lambda ctx: [NextTask("worker", {"n": n}, spawn_another=True) for n in range(1000)])

    @flow.task
    async def worker(ctx: Context, n: int) -> int:
        await asyncio.sleep(0)
        ctx.set(f"key-{n}", n)
        return n

    assert sorted(flow.run("split").values()) == list(range(1000))
    assert sum(key.startswith("key-") for key in flow.context) == 1000


def test_r02_a_stream_delivers_a_thousand_results(flow):
    """A stream has one chunk for each of 1,000 task runs, each with its own id, after the one that asked for them."""
    flow.add_task("split", lambda ctx: [NextTask("worker", {"n": n}, spawn_another=True) for n in range(1000)])
    flow.add_task("worker", lambda ctx, n: n)

    chunks = list(flow.stream("split"))

    assert chunks[0] == StreamChunk("split", None)
    assert Counter(chunk.task_id for chunk in chunks[1:]) == Counter(
        ["worker", *(f"worker#{n}" for n in range(2, 1001))]
    )
    assert sorted(chunk.value for chunk in chunks[1:]) == list(range(1000))


# ---- R3 ---------------------------------------------------------------------------------------------


def test_r03_a_stream_raises_after_the_chunks_before_the_error(flow):
    """A stream gives every chunk that came before an error, then raises it."""

    @flow.task
    def first(ctx: Context) -> TaskOutput:
        ctx.emit("interim")
        return TaskOutput("first", [NextTask("second")])

    @flow.task
    def second(ctx: Context):
        yield "half"
        raise LookupError("broken")

    seen = []
    for _ in range(50):
        seen.clear()
        with pytest.raises(LookupError, match="broken"):
            seen.extend(flow.stream("first"))  # extend keeps what came before the error
        assert seen == [StreamChunk("first", "interim"), StreamChunk("first", "first"), StreamChunk("second", "half")]


def test_r03_a_stream_of_coroutines_raises_after_the_chunks_before_the_error(flow):
    """The same with an ``async def`` task and an asynchronous generator, read by ``async for``."""

    @flow.task
    async def first(ctx: Context) -> TaskOutput:
        ctx.emit("interim")
        return TaskOutput("first", [NextTask("second")])

    @flow.task
    async def second(ctx: Context):
        yield "half"
        raise LookupError("broken")

    seen = []

    async def read() -> None:
        async for chunk in flow.astream("first"):
            seen.append(chunk)

    for _ in range(20):
        seen.clear()
        with pytest.raises(LookupError, match="broken"):
            asyncio.run(read())
        assert seen == [StreamChunk("first", "interim"), StreamChunk("first", "first"), StreamChunk("second", "half")]


def test_r03_a_broken_fan_out_never_looks_like_a_finished_loop(flow, often):
    """One of a fan-out raises: the loop raises that exception, 200 times of 200."""
    flow.add_task("split", lambda ctx: [NextTask("worker", {"n": n}, spawn_another=True) for n in range(5)])

    @flow.task
    def worker(ctx: Context, n: int) -> int:
        if n == ctx["bad"]:
            raise LookupError("broken", n)
        return n

    for attempt in range(often):
        with pytest.raises(LookupError) as caught:
            list(flow.stream("split", {"bad": attempt % 5}))
        assert caught.value.args == ("broken", attempt % 5)


def test_r03_a_stop_iteration_in_a_task_does_not_end_the_loop_quietly(flow):
    """A task whose code lets a StopIteration escape has failed: the loop over its stream raises."""
    flow.add_task("broken", lambda ctx: next(iter([])))

    with pytest.raises(Exception) as caught:  # noqa: PT011  # which one is free: a loop cannot raise StopIteration
        list(flow.stream("broken"))

    assert isinstance(caught.value.__cause__, StopIteration)


def test_r03_a_stop_async_iteration_in_a_task_does_not_end_the_loop_quietly(flow):
    """A task whose code lets a StopAsyncIteration escape has failed: the ``async for`` over its stream raises."""

    @flow.task
    def broken() -> None:
        raise StopAsyncIteration

    async def read() -> None:
        async for chunk in flow.astream("broken"):
            pytest.fail(f"nothing was to come, but {chunk} did")

    with pytest.raises(Exception) as caught:  # noqa: PT011  # as above
        asyncio.run(read())

    assert isinstance(caught.value.__cause__, StopAsyncIteration)


# ---- R4 ---------------------------------------------------------------------------------------------


def fail() -> None:
    try:
        int("x")
    except ValueError as error:
        raise PairError(7, "seven") from error


async def fail_later() -> None:
    await asyncio.sleep(0)
    fail()


def calls(flow: Flow) -> dict:
    """Every way to run a flow, each as a function that raises what failed."""
    return {
        "run": lambda: flow.run("broken"),
        "stream": lambda: list(flow.stream("broken")),
        "start": lambda: flow.start("broken").result(),
        "arun": lambda: asyncio.run(flow.arun("broken")),
    }


@pytest.mark.parametrize("how", ["run", "stream", "start", "arun"])
@pytest.mark.parametrize("body", [fail, fail_later], ids=["plain", "async"])
def test_r04_what_is_raised_is_the_tasks_own_exception(flow, body, how):
    """Type, arguments, cause and traceback of a task's exception reach the caller, one with two arguments too."""
    flow.add_task("broken", body)

    with pytest.raises(PairError) as caught:
        calls(flow)[how]()

    error = caught.value
    assert type(error) is PairError
    assert (str(error), error.code, error.reason) == ("7: seven", 7, "seven")
    assert isinstance(error.__cause__, ValueError)
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)][-1] == "fail"
    assert "broken" in notes(error)


# ---- R5 ---------------------------------------------------------------------------------------------

FATAL = [SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit]


@pytest.mark.parametrize("kind", FATAL)
@pytest.mark.parametrize("colour", ["plain", "async"])
def test_r05_a_base_exception_fails_only_its_task(flow, colour, kind):
    """SystemExit and its like, raised by a body, fail that task: run and stream end, and the flow works on."""

    def plain() -> None:
        raise kind("enough")

    async def coroutine() -> None:
        await asyncio.sleep(0)
        raise kind("enough")

    flow.add_task("fatal", plain if colour == "plain" else coroutine)
    flow.add_task("start", lambda ctx: TaskOutput("first", [NextTask("fatal")]))
    flow.add_task("fine", lambda ctx: "fine")

    with pytest.raises(TaskFailedError, match="fatal") as caught:
        flow.run("start")
    assert type(caught.value.__cause__) is kind

    chunks = flow.stream("start")
    assert next(chunks) == StreamChunk("start", "first")
    with pytest.raises(TaskFailedError, match="fatal"):
        next(chunks)

    run = flow.start("start")
    assert run.wait(WATCHDOG)
    assert run.status is Status.FAILED
    assert flow.run("fine") == {"fine": "fine"}


@pytest.mark.parametrize("kind", FATAL)
def test_r05_the_callers_event_loop_lives_on(flow, kind):
    """A coroutine that raises SystemExit and its like on the caller's loop does not end that loop."""

    @flow.task
    async def fatal() -> None:
        raise kind("enough")

    flow.add_task("fine", lambda ctx: "fine")

    async def main() -> dict:
        with pytest.raises(TaskFailedError, match="fatal"):
            await flow.arun("fatal")
        return await flow.arun("fine")

    assert asyncio.run(main()) == {"fine": "fine"}


def test_r05_a_cancelled_error_of_a_future_is_an_error_like_any_other(flow):
    """A body that meets the CancelledError of somebody's future fails with it."""

    @flow.task
    def broken() -> None:
        future = concurrent.futures.Future()
        future.cancel()
        future.result()

    with pytest.raises(concurrent.futures.CancelledError) as caught:
        flow.run("broken")
    assert type(caught.value) is concurrent.futures.CancelledError


# ---- R6 ---------------------------------------------------------------------------------------------


def test_r06_an_unknown_start_is_refused_by_name(flow):
    """An unknown start raises ``Task nope not found``, and the next run works."""
    flow.add_task("fine", lambda ctx: "fine")

    for call in (flow.run, flow.stream, flow.start):
        with pytest.raises(TaskNotFoundError, match="Task nope not found"):
            call("nope")
        with pytest.raises(TaskNotFoundError, match="Task nope not found"):
            call(["fine", "nope"])

    assert flow.run("fine") == {"fine": "fine"}


def requests(*names: str) -> list[NextTask]:
    return [NextTask(name) for name in names]


@pytest.mark.parametrize(
    "answer",
    [
        lambda ctx: TaskOutput("out", requests("known", "nope", "known")),
        lambda ctx: TaskOutput("out", tuple(requests("known", "nope"))),
        lambda ctx: requests("known", "nope"),
        lambda ctx: [NextTask("known"), NextTask("nope", join=True)],
        lambda ctx: NextTask("nope"),
    ],
    ids=["output", "tuple", "list", "join", "single"],
)
def test_r06_an_unknown_id_in_a_list_schedules_nothing_of_it(flow, answer):
    """An unknown id fails the task that returned it, nothing of its list is scheduled, and the next run works."""
    known = []
    flow.add_task("start", answer)
    flow.add_task("known", lambda ctx: known.append("ran"))

    with pytest.raises(TaskNotFoundError, match="Task nope not found"):
        flow.run("start")

    assert "start" not in flow.context  # it failed, so it has no output
    assert known == []
    assert flow.run("known") == {"known": None}
    assert known == ["ran"]


def test_r06_the_error_for_an_unknown_id_tells_who_asked_for_it(flow):
    """The error for an unknown id has the note of every failure: which task run of which run it was."""
    flow.add_task("start", lambda ctx: NextTask("asker"))
    flow.add_task("asker", lambda ctx: NextTask("nope"))

    with pytest.raises(TaskNotFoundError, match="Task nope not found") as caught:
        flow.run("start", run_id="orders-7")

    assert "asker" in notes(caught.value)
    assert "orders-7" in notes(caught.value)


# ---- R7 ---------------------------------------------------------------------------------------------


def test_r07_three_spawned_calls_are_three_results(flow):
    """Three spawned calls of one task are three results with ids of their own."""
    flow.add_task("split", lambda ctx: [NextTask("worker", {"n": n}, spawn_another=True) for n in (1, 2, 3)])
    flow.add_task("worker", lambda ctx, n: n * 10)

    for _ in range(50):
        assert flow.run("split") == {"worker": 10, "worker#2": 20, "worker#3": 30}


def test_r07_a_call_asked_for_after_the_last_one_ended_has_its_own_result(flow):
    """The same when each call has ended before the next one is asked for."""

    @flow.task
    def split(ctx: Context):
        for n in (1, 2, 3):
            yield NextTask("worker", {"n": n}, spawn_another=True)
            assert ctx.get("worker") == n * 10
            ctx.delete("worker")

    flow.add_task("worker", lambda ctx, n: n * 10)

    for _ in range(20):
        assert flow.run("split") == {"worker": 10, "worker#2": 20, "worker#3": 30}


def test_r07_the_same_on_an_event_loop(flow):
    """The same with an asynchronous generator and coroutines."""

    @flow.task
    async def split(ctx: Context):
        for n in (1, 2, 3):
            yield NextTask("worker", {"n": n}, spawn_another=True)
            assert await ctx.aget("worker") == n * 10
            ctx.delete("worker")

    @flow.task
    async def worker(n: int) -> int:
        return n * 10

    for _ in range(20):
        assert flow.run("split") == {"worker": 10, "worker#2": 20, "worker#3": 30}


# ---- R8 ---------------------------------------------------------------------------------------------


def test_r08_a_run_that_has_raised_is_final(flow):
    """Once result has raised, the run is final: result raises the same again at once, to whoever asks."""
    flow.add_task("split", lambda ctx: [NextTask("broken"), NextTask("waiter", join=True)])
    flow.add_task("waiter", lambda ctx: "never")

    @flow.task
    def broken() -> None:
        raise LookupError("broken")

    run = flow.start("split")
    with pytest.raises(LookupError) as first:
        run.result(WATCHDOG)

    assert run.status is Status.FAILED
    assert run.wait(0)
    with pytest.raises(LookupError) as again:
        run.result(0)
    assert again.value is first.value
    assert "waiter" not in run.context


# ---- R9 ---------------------------------------------------------------------------------------------


def test_r09_a_type_error_inside_a_body_is_not_answered_by_a_second_call(flow):
    """A body that raises a TypeError is called once, whatever its parameters look like."""
    called = []

    def context_only(ctx):
        called.append("ctx")
        raise TypeError("context_only() takes 1 positional argument but 2 were given")

    def both(ctx, inputs=None):
        called.append("both")
        raise TypeError("both() takes 1 positional argument but 2 were given")

    def nothing():
        called.append("nothing")
        raise TypeError("nothing() missing 1 required positional argument: 'ctx'")

    async def coroutine(any_name):
        called.append("coroutine")
        raise TypeError("coroutine() missing 1 required positional argument: 'ctx'")

    for body in (context_only, both, nothing, coroutine):
        flow.add_task("broken", body, replace=True)
        with pytest.raises(TypeError, match="positional argument"):
            flow.run("broken", {"some": 1})
    assert called == ["ctx", "both", "nothing", "coroutine"]


def test_r09_two_threads_that_wait_for_one_run_do_not_run_it_twice(flow):
    """Two threads that wait for the same run get the same result of one call."""
    called = []
    go = threading.Event()

    @flow.task
    def work(ctx: Context) -> int:
        called.append(1)
        return len(called)

    @flow.task
    def gate(ctx: Context) -> NextTask:
        assert go.wait(WATCHDOG)
        return NextTask("work")

    with concurrent.futures.ThreadPoolExecutor(3) as others:
        starting = others.submit(flow.start, "gate")  # on the inline executor start does the work
        go.set()
        run = starting.result(WATCHDOG)
        results = [others.submit(run.result, WATCHDOG) for _ in range(2)]
        assert [result.result(WATCHDOG) for result in results] == [{"work": 1}, {"work": 1}]
    assert called == [1]
