"""Submitted calls: handles as futures and awaitables, sessions and how they end, cancelling, waiting, deadlocks."""

# ruff: noqa: PT012 - blocks and their ends are what is said to raise here

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import logging
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Future,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from typing import Any

import pytest

from millstream import (
    AsyncioExecutor,
    BlockingGetError,
    Context,
    ContextKeyError,
    DeadlockError,
    DependencyFailedError,
    Flow,
    FlowClosedError,
    FlowError,
    NextTask,
    Rate,
    Retry,
    RunCancelledError,
    RunTimeoutError,
    Status,
    StreamChunk,
    StreamError,
    Task,
    TaskBase,
    TaskCancelledError,
    TaskFailedError,
    TaskHandle,
    TaskNotFoundError,
    TaskOutput,
    TaskRunLimitError,
    TaskTimeoutError,
    ThreadExecutor,
    current_task,
    fn_hook,
    task,
)
from tests.conftest import WATCHDOG, assert_gone, engine_threads, on_one_worker, on_several_workers, opened

two = pytest.mark.parametrize("executor", ["inline", "thread"], indirect=True)
three = pytest.mark.parametrize("executor", ["inline", "thread", "asyncio"], indirect=True)

#: For tests with thousands of failures, which nobody wants to read about.
QUIET = logging.getLogger("quiet")
QUIET.disabled = True

VAR: contextvars.ContextVar[str] = contextvars.ContextVar("VAR", default="nothing")


def until(true):
    """Wait until something is so that no event tells."""
    limit = time.monotonic() + WATCHDOG
    while not true():
        assert time.monotonic() < limit, "it did not become so"
        time.sleep(0.001)


def double(x):
    return 2 * x


def add(a, b=0):
    return a + b


def fails(*_):
    raise ValueError("mine")


async def double_later(x):
    await asyncio.sleep(0)
    return 2 * x


class Gate:
    """A call that says when it has begun, and ends when it is let go."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Event(), threading.Event()

    def __call__(self, value: Any = "through") -> Any:
        self.begun.set()
        assert self.open.wait(WATCHDOG), "nobody opened the gate"
        if isinstance(value, BaseException):
            raise value
        return value


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is open at the end, whatever happened."""
    gate = Gate()
    yield gate
    gate.open.set()


def begun(flow: Flow, gate: Gate, *args: Any) -> TaskHandle[Any]:
    """Return the handle of a call that stands at the gate."""
    handle = flow.submit(gate, *args)
    assert gate.begun.wait(WATCHDOG)
    return handle


def run_threads(*targets) -> None:
    """Call each in a thread of its own, all at once, and wait for them."""
    barrier, errors = threading.Barrier(len(targets)), []

    def run(target):
        barrier.wait(WATCHDOG)
        try:
            target()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


@task
def square(x: int) -> int:
    return x * x


class Cube(TaskBase):
    """A task written as a class."""

    name = "cube-it"

    def run(self, x: int) -> int:
        return x**3


cube = Cube()


# ---- submitting and asking --------------------------------------------------------------------------


def test_a_call_gives_its_result(flow):
    """submit calls a function with the arguments that it is given; the handle has what it returned."""
    with flow:
        assert flow.submit(add, 2, b=3).result() == 5
        assert flow.submit(add, 2).result() == 2
        assert flow.submit(double_later, 4).result() == 8
        assert flow.submit(fails, 1).exception().args == ("mine",)


def test_the_readme_example(flow):
    """Tasks are submitted inside the block, handles as arguments are waited for, and the values are there."""
    with flow:
        five = square.submit(5)
        total = flow.submit(add, five, 7, depends_on=[cube.submit(2)])
        assert total.result() == 32
    assert square(3) == 9
    assert cube(2) == 8


def test_a_handle_is_a_future(flow):
    """It passes for one wherever a concurrent.futures.Future is asked for."""
    with flow:
        handle = flow.submit(double, 1)
        assert isinstance(handle, Future)
        assert wait([handle], WATCHDOG).done == {handle}
        assert handle.done()
        assert not handle.running()
        assert not handle.cancelled()
        assert handle.exception() is None


@pytest.mark.parametrize("executor", ["thread", "asyncio", "pool"], indirect=True)
def test_a_handle_stays_pending_until_its_call_has_ended(flow, gate):
    """In the Future's sense it is neither done nor running, while its status tells of the call."""
    with flow:
        handle = begun(flow, gate, 3)
        assert handle.status is Status.RUNNING
        assert not handle.done()
        assert not handle.running()
        assert not handle.cancelled()
        assert handle.wait(0) is False
        after = flow.submit(double, handle)
        assert after.status is Status.PENDING
        assert repr(after) == "<TaskHandle double: PENDING>"
        assert repr(handle) == "<TaskHandle Gate: RUNNING>"
        gate.open.set()
        assert after.result() == 6
        assert repr(handle) == "<TaskHandle Gate: SUCCESS>"
        assert handle.wait(0) is handle.wait() is True


@two
def test_names_and_ids(flow):
    """The name is the task's, or the function's; ids of one name are numbered in the order of submission."""

    class Named:
        def __call__(self):
            return 1

    with flow:
        handles = [
            flow.submit(double, 1),
            flow.submit(double, 2),
            flow.submit(lambda: 1),
            flow.submit(functools.partial(add, 1), 2),
            flow.submit(Named()),
            cube.submit(1),
            flow.submit(cube, 1),
            flow.submit([3, 1].index, 1),
        ]
        assert [handle.name for handle in handles] == [
            "double", "double", "lambda", "add", "Named", "cube-it", "cube-it", "index",
        ]  # fmt: skip
        assert [handle.id for handle in handles[:2] + handles[5:7]] == ["double", "double#2", "cube-it", "cube-it#2"]
        assert handles[7].result() == 1


@two
def test_every_other_keyword_reaches_the_function(flow):
    """Only depends_on and call_key are submit's own."""

    def takes(**names):
        return names

    names = {"fn": 1, "self": 2, "timeout": 3, "name": 4, "args": 5, "kwargs": 6, "priority": 7, "inputs": 8}
    with flow:
        assert flow.submit(takes, **names).result() == names
        with flow.session() as session:
            assert session.submit(takes, **names).result() == names
        assert flow.submit(Task("takes", takes), **names).result() == names
        del names["fn"]
        flow.add_task("takes", takes)
        assert flow["takes"].submit(**names).result() == names
        assert Task("takes", takes).submit(**names).result() == names


@two
def test_arguments_arrive_as_they_are(flow):
    """What has no handle in it is passed on itself, not copied."""
    things = [[1], {"a": [2]}, (3,), {4}, object()]
    with flow:
        handle = flow.submit(lambda *args, **kwargs: (args, kwargs), *things, key=things[0])
        args, kwargs = handle.result()
        assert all(got is given for got, given in zip(args, things, strict=True))
        assert kwargs["key"] is things[0]


@two
def test_a_builtin_is_called_with_the_arguments_alone(flow):
    """A callable that tells no signature is not given a context that nobody mentioned."""
    with flow:
        assert flow.submit(int).result() == 0
        assert flow.submit(int, "5").result() == 5
        assert flow.submit(max, 1, 3, 2).result() == 3
        assert flow.submit(dict, a=1).result() == {"a": 1}
        assert flow.submit(getattr, 3j, "imag").result() == 3.0


@two
def test_functions_that_share_code_stay_apart(flow):
    """A decorator makes many functions of one code object, and each has its own name and parameters."""

    def shouted(fn):
        @functools.wraps(fn)
        def wrapper(*args, **kwargs):
            return fn(*args, **kwargs)

        return wrapper

    @shouted
    def one(ctx, x):
        return "one", type(ctx), x

    @shouted
    def other(x):
        return "other", x

    @shouted
    async def third(x):
        return "third", x

    with flow:
        handles = [flow.submit(fn, 1) for fn in (one, other, third)]
        assert [handle.name for handle in handles] == ["one", "other", "third"]
        assert [handle.result() for handle in handles] == [("one", Context, 1), ("other", 1), ("third", 1)]


@two
def test_methods_bound_and_unbound(flow):
    """A method and its function share code, but not the first parameter; objects are not mixed up."""

    class Adder:
        def __init__(self, n):
            self.n = n

        def add(self, ctx, x):
            return type(ctx), self.n + x

    one, two = Adder(1), Adder(2)
    with flow:
        assert flow.submit(one.add, 10).result() == (Context, 11)
        assert flow.submit(two.add, 10).result() == (Context, 12)
        assert flow.submit(Adder.add, one, x=20).result() == (Context, 21)


@two
def test_closures_keep_their_own_values(flow):
    """Many functions made by one def are each called as themselves."""
    with flow:
        handles = [flow.submit(lambda i=i: (i, len(handles_of))) for handles_of in ([], [1]) for i in range(3)]
        assert [handle.result()[0] for handle in handles] == [0, 1, 2, 0, 1, 2]

        def make(n):
            return lambda: n

        assert [flow.submit(make(n)).result() for n in range(5)] == list(range(5))


@two
def test_the_options_of_a_task_hold(flow):
    """A Task that is submitted is retried and timed as it says, whether it is registered or not."""
    tries = []

    def flaky(x):
        tries.append(current_task().attempt)
        if len(tries) < 3:
            raise LookupError
        return x

    with flow:
        assert flow.submit(Task("flaky", flaky, retries=2), 5).result() == 5
        assert tries == [1, 2, 3]
        tries.clear()
        flow.add_task("flaky", flaky, retries=1)
        with pytest.raises(LookupError):
            flow["flaky"].submit(5).result()
        assert tries == [1, 2]


@pytest.mark.parametrize(
    ("fn", "error"),
    [(None, TypeError), ("double", TypeError), (3, TypeError), ([double], TypeError)],
)
def test_what_cannot_be_called_is_refused(fn, error):
    """Only tasks and callables are submitted."""
    with Flow("inline") as flow, pytest.raises(error, match="submit"):
        flow.submit(fn)


def test_bad_dependencies_are_refused():
    """depends_on takes handles in a list, and says so."""
    with Flow("inline") as flow:
        handle = flow.submit(double, 1)
        for bad in (handle, "double", None, 3, [1], ["double"], [Future()], [square]):
            with pytest.raises(TypeError, match="depends_on of a submitted call"):
                flow.submit(double, 1, depends_on=bad)
        assert flow.submit(double, 1, depends_on=iter([handle])).result() == 2
        assert flow.submit(double, 1, depends_on={handle: 1}).result() == 2


def test_a_call_key_needs_a_store():
    """Without a store it would silently do nothing, so it is refused."""
    with Flow("inline") as flow, pytest.raises(ValueError, match="store"):
        flow.submit(double, 1, call_key="k")


def test_wrong_arguments_fail_the_call():
    """A call with the wrong arguments raises what Python raises, where its result is asked for."""
    with Flow("inline") as flow:
        with pytest.raises(TypeError, match="positional"):
            flow.submit(double, 1, 2).result()
        with pytest.raises(TypeError, match="unexpected keyword"):
            flow.submit(double, y=2).result()


@pytest.mark.parametrize("timeout", ["1", True, -1, float("nan"), 1e30])
def test_bad_timeouts_are_refused(timeout):
    """A time to wait is a number of seconds from 0 on."""
    with Flow("inline") as flow:
        handle = flow.submit(double, 1)
        for ask in (handle.result, handle.exception, handle.wait):
            with pytest.raises((TypeError, ValueError), match="timeout"):
                ask(timeout)


@on_several_workers
def test_asking_with_a_timeout(flow, gate):
    """result and exception raise TimeoutError when the call takes longer, wait says so; the call goes on."""
    with flow:
        handle = begun(flow, gate, 5)
        for ask in (handle.result, handle.exception):
            with pytest.raises(TimeoutError, match="Gate") as caught:
                ask(0.001)
            assert not isinstance(caught.value, TaskTimeoutError)
            with pytest.raises(TimeoutError):
                ask(timeout=0)
        assert handle.wait(0.001) is False
        gate.open.set()
        assert handle.result(WATCHDOG) == handle.result(0) == 5
        assert handle.exception(timeout=0) is None


def test_a_failure_is_raised_as_itself(flow):
    """result raises the very exception each time, with a note that names the call; exception returns it."""
    mine = ValueError("mine")

    def fail():
        raise mine

    with flow:
        handle = flow.submit(fail)
        for _ in range(3):
            with pytest.raises(ValueError, match="mine") as caught:
                handle.result()
            assert caught.value is mine
        assert handle.exception() is mine
        assert len(mine.__notes__) == 1
        assert "fail" in mine.__notes__[0]
        assert handle.status is Status.FAILED
        assert not handle.cancelled()


@three
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration, StopAsyncIteration])
def test_what_would_end_more_than_the_call(flow, error):
    """What cannot be raised as it is arrives as TaskFailedError from it, and the session goes on."""

    def fail():
        raise error("mine")

    with flow:
        handle = flow.submit(fail)
        with pytest.raises(TaskFailedError) as caught:
            handle.result()
        assert type(caught.value.__cause__) is error
        assert flow.submit(double, 1).result() == 2


# ---- concurrent.futures ----------------------------------------------------------------------------


@three
def test_wait_and_as_completed_take_many(flow):
    """A thousand handles are waited for by the standard library's own functions."""
    with flow:
        handles = [flow.submit(double, i) for i in range(1000)]
        assert sum(handle.result() for handle in as_completed(handles, WATCHDOG)) == 999_000
        done, left = wait(handles, WATCHDOG)
        assert (len(done), len(left)) == (1000, 0)
        more = [flow.submit(double_later, i) for i in range(100)]
        assert sum(handle.result() for handle in as_completed([*more, *more], WATCHDOG)) == 9900


@on_several_workers
def test_as_completed_gives_what_is_done(flow, gate):
    """What has ended comes first, and the time that it may take is kept."""
    with flow:
        slow = begun(flow, gate)
        quick = [flow.submit(double, i) for i in range(5)]
        wait(quick, WATCHDOG)
        order = as_completed([slow, *quick], timeout=0.01)
        assert {next(order) for _ in range(5)} == set(quick)
        with pytest.raises(TimeoutError):
            next(order)
        gate.open.set()
        assert list(as_completed([slow, *quick], WATCHDOG))[-1] in {slow, *quick}


@on_several_workers
def test_wait_returns_when_it_is_told_to(flow, gate):
    """FIRST_COMPLETED, FIRST_EXCEPTION and a timeout of wait mean what they mean for any future."""
    with flow:
        slow, good = begun(flow, gate), flow.submit(double, 1)
        assert wait([slow, good], WATCHDOG, FIRST_COMPLETED).done == {good}
        bad = flow.submit(fails)
        assert bad in wait([slow, bad], WATCHDOG, FIRST_EXCEPTION).done
        assert wait([slow, bad], 0.001, ALL_COMPLETED).not_done == {slow}
        waiting = flow.submit(double, slow)
        cancelled = threading.Thread(target=waiting.cancel)
        cancelled.start()
        assert wait([waiting], WATCHDOG, FIRST_COMPLETED).done == {waiting}
        cancelled.join()
        assert bad.exception() is not None
        gate.open.set()


def test_callbacks_are_called_once_each_in_order(flow):
    """add_done_callback calls with the handle that is done, also when it is done already."""
    seen = []
    with flow:
        handle = flow.submit(double, 1)
        for n in range(3):
            handle.add_done_callback(lambda h, n=n: seen.append((n, h, h.done(), h.result())))
        handle.result()
        until(lambda: len(seen) == 3)
        handle.add_done_callback(lambda h: seen.append(h))
    assert seen == [*((n, handle, True, 2) for n in range(3)), handle]


@on_several_workers
def test_callbacks_of_every_end(flow, gate):
    """A callback comes after success, failure, cancelling, and for what depends on them."""
    seen = {}
    called = threading.Semaphore(0)

    def note(name):
        def callback(handle):
            seen[name] = handle.status
            called.release()

        return callback

    with flow:
        handles = {"good": begun(flow, gate)}
        handles["bad"] = flow.submit(fails, handles["good"])
        handles["after"] = flow.submit(double, handles["bad"])
        handles["cancelled"] = flow.submit(double, handles["good"])
        handles["after cancelled"] = flow.submit(double, handles["cancelled"])
        for name, handle in handles.items():
            handle.add_done_callback(note(name))
        handles["cancelled"].cancel()
        gate.open.set()
        assert handles["bad"].exception() is not None
        for _ in handles:
            assert called.acquire(timeout=WATCHDOG)
    assert seen == {
        "good": Status.SUCCESS,
        "bad": Status.FAILED,
        "after": Status.FAILED,
        "cancelled": Status.CANCELLED,
        "after cancelled": Status.FAILED,
    }


@three
def test_a_callback_that_raises_harms_nobody(flow, caplog):
    """It is logged, the other callbacks are called, and the calls after it as well."""
    seen = []

    def raises(_):
        raise ValueError("in a callback")

    with flow, caplog.at_level(logging.ERROR):
        first = flow.submit(double, 1)
        first.add_done_callback(raises)
        second = flow.submit(double, first)
        second.add_done_callback(raises)
        second.add_done_callback(seen.append)
        assert second.result() == 4
        until(lambda: seen == [second])
        assert flow.submit(double, 5).result() == 10
    assert "in a callback" in caplog.text


@pytest.mark.parametrize("executor", ["thread-1", "pool-1"], indirect=True)
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_callback_that_would_end_its_thread_does_not(flow, gate, error):
    """Not even SystemExit from a callback costs the only worker there is."""

    def raises(_):
        raise error

    with flow:
        handle = begun(flow, gate, 1)
        handle.add_done_callback(raises)
        seen = []
        handle.add_done_callback(seen.append)

        def opens():
            until(lambda: waiting.is_set())
            gate.open.set()

        def asks():
            waiting.set()
            assert handle.result() == 1
            assert flow.submit(double, 5).result() == 10

        waiting = threading.Event()
        run_threads(asks, opens)
        until(lambda: seen == [handle])


@on_several_workers
def test_callbacks_hold_no_lock(flow, gate):
    """A callback may submit, cancel, set, report and ask, in whatever thread it is called."""
    seen, called = [], threading.Event()
    with flow:
        slow = begun(flow, gate, "slow")
        victim = flow.submit(double, slow)

        def callback(handle):
            flow.context.set("key", handle.result())
            seen.append(victim.cancel())
            seen.append(flow.report().status)
            seen.append(flow.submit(double, handle))
            called.set()

        trigger = threading.Event()
        quick = flow.submit(lambda: trigger.wait(WATCHDOG) and 1)
        quick.add_done_callback(callback)
        trigger.set()
        assert called.wait(WATCHDOG)
        assert seen[:2] == [True, Status.RUNNING]
        assert seen[2].result() == 2
        assert flow.context.get("key") == 1
        gate.open.set()


@pytest.mark.parametrize("executor", ["thread", "asyncio"], indirect=True)
def test_a_callback_may_wait_for_another_call(flow, gate):
    """The call whose end it tells of is over: nobody takes it for one that is blocked."""
    got, trigger = [], threading.Event()
    with flow:
        slow = begun(flow, gate, "slow")
        quick = flow.submit(trigger.wait, WATCHDOG)
        entered = threading.Event()

        def callback(_):
            entered.set()
            got.append(slow.exception() or slow.result())

        quick.add_done_callback(callback)
        trigger.set()
        assert entered.wait(WATCHDOG)
        assert quick.result()
        third = flow.submit(double, 4)
        assert third.result() == 8
        gate.open.set()
        until(lambda: got)
    assert got == ["slow"]


# ---- asyncio ----------------------------------------------------------------------------------------


def test_handles_are_awaited(executor):
    """await gives the result or raises the failure, also twice, of plain and async calls."""

    async def main():
        async with Flow(executor) as flow:
            for fn in (double, double_later):
                handle = flow.submit(fn, 4)
                assert await handle == await handle == 8
            bad = flow.submit(fails)
            for _ in range(2):
                with pytest.raises(ValueError, match="mine"):
                    await bad

    asyncio.run(main())


@three
def test_handles_in_gather_and_friends(executor):
    """gather, wait, as_completed, shield, TaskGroup and wrap_future take handles."""

    async def main():
        async with Flow(executor) as flow:
            assert await asyncio.gather(*[flow.submit(double, i) for i in range(50)]) == [2 * i for i in range(50)]
            results = await asyncio.gather(flow.submit(fails), flow.submit(double, 1), return_exceptions=True)
            assert [type(result) for result in results] == [ValueError, int]
            tasks = [asyncio.ensure_future(flow.submit(double_later, i)) for i in range(5)]
            done, _ = await asyncio.wait(tasks)
            assert {each.result() for each in done} == {0, 2, 4, 6, 8}
            assert {await each for each in asyncio.as_completed([flow.submit(double, i) for i in range(5)])} == {
                0, 2, 4, 6, 8,
            }  # fmt: skip
            assert await asyncio.shield(flow.submit(double, 3)) == 6
            assert await asyncio.wrap_future(flow.submit(double, 3)) == 6
            with pytest.raises(ValueError, match="mine"):
                await asyncio.wrap_future(flow.submit(fails))

            async def ask(handle):
                return await handle

            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(ask(flow.submit(double, i))) for i in range(3)]
            assert [each.result() for each in asked] == [0, 2, 4]

    asyncio.run(main())


@on_several_workers
def test_awaiting_does_not_block_the_loop(executor, gate):
    """While a handle is awaited the loop does other things: here it opens the gate."""

    async def main():
        async with Flow(executor) as flow:
            waiting = asyncio.ensure_future(flow.submit(gate, 1))
            await asyncio.sleep(0)
            gate.open.set()
            assert await waiting == 1

    asyncio.run(main())


@on_several_workers
def test_cancelling_the_awaiter_leaves_the_call_alone(executor, gate):
    """Others may wait for the same call: a timeout of one awaiter, or its end, is its own affair."""

    async def main():
        async with Flow(executor) as flow:
            handle = flow.submit(gate, 7)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(handle, 0.001)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await handle
            awaiter = asyncio.ensure_future(handle)
            await asyncio.sleep(0)
            awaiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await awaiter
            assert not handle.done()
            gate.open.set()
            assert await handle == 7

    asyncio.run(main())


@on_several_workers
def test_cancelling_a_wrapped_handle_cancels_the_call(executor, gate):
    """asyncio.wrap_future ties both together, as it does for any future."""

    async def main():
        async with Flow(executor) as flow:
            running = flow.submit(gate)
            waiting = flow.submit(double, running)
            for handle in (waiting, running):
                wrapped = asyncio.wrap_future(handle)
                wrapped.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await wrapped
                await asyncio.sleep(0)  # it is passed on by a callback of the loop
                assert handle.cancelled()
            gate.open.set()

    asyncio.run(main())


@on_several_workers
def test_a_cancelled_handle_raises_where_it_is_awaited(executor, gate):
    """The awaiter gets TaskCancelledError, which is no cancellation of the awaiter itself."""

    async def main():
        async with Flow(executor) as flow:
            handle = flow.submit(gate)
            awaiter = asyncio.ensure_future(handle)
            await asyncio.sleep(0)
            handle.cancel()
            with pytest.raises(TaskCancelledError):
                await awaiter
            with pytest.raises(TaskCancelledError):
                await handle
            gate.open.set()

    asyncio.run(main())


@three
def test_async_calls_await_others(flow):
    """A coroutine that was submitted submits and awaits, at any depth."""

    async def fib(n):
        if n < 2:
            return n
        one, two = flow.submit(fib, n - 1), flow.submit(fib, n - 2)
        return sum(await asyncio.gather(one, two))

    with flow:
        assert flow.submit(fib, 8).result() == 21


@pytest.mark.parametrize("limited", ["flow", "task"])
def test_a_coroutine_whose_children_wait_gives_its_place_back(limited):
    """gather and a TaskGroup wait for handles on its behalf: it does not count for max_parallel then."""
    flow = Flow(max_parallel=1 if limited == "flow" else None)
    results = []

    async def gathers(n):
        if n == 0:
            return 1
        return sum(await asyncio.gather(*[flow.submit(gathering, n - 1) for _ in range(2)]))

    async def groups(n):
        async def ask(handle):
            return await handle

        if n == 0:
            return 1
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(flow.submit(grouping, n - 1))) for _ in range(2)]
        return sum(each.result() for each in asked)

    most = 1 if limited == "task" else None
    gathering = Task("gathering", gathers, max_parallel=most)
    grouping = Task("grouping", groups, max_parallel=most)

    def block():
        with flow.session() as session:
            results.extend(session.submit(each, 3).result() for each in (gathering, grouping))

    try:
        run_threads(block)
    finally:
        flow.close()
    assert results == [8, 8]


@on_several_workers
def test_a_task_whose_helper_thread_waits_leaves_room(executor):
    """to_thread waits for a handle, or for a key, on a task's behalf: others run although max_parallel is 1."""
    results = []
    with Flow(executor, max_parallel=1) as flow:

        async def asks():
            return await asyncio.to_thread(flow.submit(double, 4).result)

        @flow.task
        async def reads(context: Context):
            return await asyncio.to_thread(context.get, "made")

        @flow.task
        def made():
            return 5

        def block():
            results.append(flow.submit(asks).result())
            results.append(flow.run(["reads", "made"])["reads"])

        run_threads(block)
    assert results == [8, 5]


def test_a_coroutine_that_blocks_on_a_handle_is_refused():
    """result() would block the loop that the call may need: the error says to await."""
    with Flow() as flow:

        async def blocks():
            handle = flow.submit(asyncio.sleep, WATCHDOG)
            try:
                handle.result()
            finally:
                handle.cancel()

        with pytest.raises(BlockingGetError, match="await"):
            flow.submit(blocks).result()

        async def asks_what_is_done():
            handle = flow.submit(double, 2)
            await handle
            return handle.result(), handle.exception(), handle.wait()

        assert flow.submit(asks_what_is_done).result() == (4, None, True)


def test_a_thread_of_a_coroutine_may_block():
    """asyncio.to_thread carries the context variables along, and blocks no loop."""
    with Flow() as flow:

        async def asks():
            handle = flow.submit(double_later, 2)
            return await asyncio.to_thread(handle.result)

        assert flow.submit(asks).result() == 4


def test_waiting_in_a_loop_of_ones_own():
    """A call that runs a loop of its own awaits handles there."""
    with Flow() as flow:

        async def ask(handle):
            return await handle

        def inner(handle):
            return asyncio.run(ask(handle))

        assert flow.submit(lambda: inner(flow.submit(double, 3))).result() == 6
        assert inner(flow.submit(double, 4)) == 8
        assert asyncio.run(ask(flow.submit(double_later, 5))) == 10


def test_awaiting_several_at_once_leaves_the_session_open():
    """After a gather the block can go on and submit what an earlier call waits for."""

    async def main():
        async with Flow() as flow:
            gates = [Gate(), Gate()]
            waiting = asyncio.gather(*[flow.submit(gate) for gate in gates])
            await asyncio.sleep(0)
            for gate in gates:
                gate.open.set()
            await waiting
            async with flow.session() as session:
                await asyncio.gather(session.submit(double_later, 1), session.submit(double_later, 2))
                asking = session.submit(lambda ctx: ctx.get("key"))
                until(lambda: "waiting for 'key'" in repr(session) or asking.done())
                session.submit(lambda ctx: ctx.set("key", 7))
                assert await asking == 7

    asyncio.run(main())


def test_one_coroutine_awaits_what_another_makes_possible():
    """An await does not stop the loop: another coroutine there may still submit what is waited for."""

    async def main():
        async with Flow() as flow, flow.session() as session:
            asking = session.submit(lambda ctx: ctx.get("key"))

            async def provide():
                until(lambda: "waiting for 'key'" in repr(session) or asking.done())
                session.submit(lambda ctx: ctx.set("key", 7))

            providing = asyncio.create_task(provide())
            assert await asking == 7
            await providing

    asyncio.run(main())


# ---- handles as arguments ---------------------------------------------------------------------------


def test_handles_in_arguments_become_values(flow):
    """A handle is replaced by its value: as an argument, in a list, a tuple or a dict, by position and name."""

    def takes(*args, **kwargs):
        return args, kwargs

    with flow:
        one, two, three = (flow.submit(double_later if n % 2 else double, n) for n in (1, 2, 3))
        handle = flow.submit(takes, one, [two, "x"], (three, one), {"a": two}, name=three, names=[one, one])
        args, kwargs = handle.result()
        assert args == (2, [4, "x"], (6, 2), {"a": 4})
        assert kwargs == {"name": 6, "names": [2, 2]}
        assert type(args[2]) is tuple


@on_several_workers
def test_a_call_waits_for_every_handle_it_is_given(flow, gate):
    """It stays pending until the last of them has ended."""
    with flow:
        slow, quick = begun(flow, gate, 3), flow.submit(double, 1)
        waiting = [
            flow.submit(lambda x: x, slow),
            flow.submit(lambda x: x, [quick, slow]),
            flow.submit(lambda x: x, (slow, quick)),
            flow.submit(lambda x: x, {"a": slow}),
            flow.submit(lambda **x: x, x=slow),
            flow.submit(lambda: "after", depends_on=[quick, slow]),
            flow.submit(lambda x: x, quick, depends_on=[slow]),
        ]
        quick.result()
        assert {handle.status for handle in waiting} == {Status.PENDING}
        gate.open.set()
        assert [handle.result() for handle in waiting] == [3, [2, 3], (3, 2), {"a": 3}, {"x": 3}, "after", 2]


def test_a_handle_deeper_down_is_not_half_replaced(gate):
    """What is not waited for is not replaced either: a nested handle is itself, or its value, never None."""
    with Flow() as flow:
        done, slow = flow.submit(double, 1), begun(flow, gate, 5)
        handle = flow.submit(lambda parts: parts, [done, [slow], {"a": slow}])
        if not handle.wait(0.05):
            gate.open.set()
        assert handle.result() in ([2, [slow], {"a": slow}], [2, [5], {"a": 5}])
        gate.open.set()


@two
def test_the_same_handle_many_times(flow):
    """A diamond: one call is waited for by many, and each runs once."""
    calls = []
    with flow:
        top = flow.submit(lambda: calls.append(1) or 5)
        sides = [flow.submit(add, top, top) for _ in range(5)]
        assert flow.submit(lambda xs: sum(xs), sides, depends_on=[top, *sides, top]).result() == 50
    assert calls == [1]


@two
def test_falsy_values_arrive(flow):
    """None, 0 and empty values are values like any other."""
    with flow:
        for value in (None, 0, "", [], False):
            handle = flow.submit(lambda value=value: value)
            assert flow.submit(lambda x: [x], handle).result() == [value]


def test_handles_of_another_run_are_refused():
    """A handle belongs to its session: the error names both runs and says what to do."""
    with Flow("inline") as flow:
        with flow.session("one") as one:
            first = one.submit(double, 1)
        with flow.session("two") as two:
            for args, kwargs in [
                ((first,), {}),
                (([first],), {}),
                (((first,),), {}),
                (({"a": first},), {}),
                ((), {"x": first}),
                ((1,), {"depends_on": [first]}),
            ]:
                with pytest.raises(FlowError, match=r"run one, not to two.*result"):
                    two.submit(double, *args, **kwargs)
            assert two.submit(double, first.result()).result() == 4
        assert two.result() == {"double": 4}


@pytest.mark.parametrize(("kind", "links"), [("inline", 3000), ("thread", 10_000)])
def test_a_chain_of_ten_thousand(kind, links):
    """Calls that each wait for the one before are as deep as you like."""
    with Flow(kind) as flow:
        handle = flow.submit(lambda: 0)
        for _ in range(links):
            handle = flow.submit(add, handle, 1)
        assert handle.result() == links


@pytest.mark.parametrize(("how", "links"), [("fails", 10_000), ("cancelled", 3000)])
def test_a_long_chain_falls_without_recursion(gate, how, links):
    """When the first link fails or is cancelled, each of thousands after it fails by the one before."""
    with Flow(logger=QUIET) as flow:
        first = begun(flow, gate, ValueError("mine"))
        chain = [first]
        for _ in range(links):
            chain.append(flow.submit(double, chain[-1]))
        if how == "cancelled":
            assert first.cancel()
        gate.open.set()
        with pytest.raises(DependencyFailedError, match=f"double#{links - 1}"):
            chain[-1].result()
        assert all(handle.status is Status.FAILED for handle in chain[1:])
        if how == "fails":
            assert str(first.exception()) == "mine"


# ---- what depends on a failure -------------------------------------------------------------------


@two
def test_a_failure_cancels_only_what_depends_on_it(flow):
    """What depends on it fails by name, what does not goes on; the failure itself is told once."""
    ran = []
    with pytest.raises(ValueError, match="mine") as caught, flow:
        bad = flow.submit(fails)
        direct, listed = flow.submit(ran.append, bad), flow.submit(ran.append, [bad])
        after = flow.submit(ran.append, direct)
        ordered = flow.submit(ran.append, 1, depends_on=[bad])
        free = flow.submit(double, 4)
        for handle, by in ((direct, "fails"), (listed, "fails"), (ordered, "fails"), (after, "append")):
            with pytest.raises(DependencyFailedError, match=by):
                handle.result()
            assert handle.status is Status.FAILED
        assert free.result() == 8
    assert ran == []
    assert not isinstance(caught.value, ExceptionGroup)


@two
def test_policies_of_what_depends_on_a_failure(flow):
    """A skipped call raises DependencyFailedError and counts as a failure for others; one that runs anyway runs."""
    with flow:
        bad = flow.submit(fails)
        skip = flow.submit(Task("skip", double, on_dep_failure="skip"), bad)
        after = flow.submit(double, skip)
        anyway = flow.submit(Task("anyway", lambda x, y: (x, y), on_dep_failure="run-anyway"), bad, 5)
        chained = flow.submit(Task("chained", lambda x: x, on_dep_failure="run-anyway"), after)
        with pytest.raises(DependencyFailedError, match="fails"):
            skip.result()
        assert isinstance(skip.exception(), DependencyFailedError)
        assert skip.status is Status.SKIPPED
        with pytest.raises(DependencyFailedError, match="skip"):
            after.result()
        assert anyway.result() == (None, 5)
        assert chained.result() is None
        assert bad.exception() is not None
        tasks = flow.report().tasks
    assert {name: tasks[name].status for name in ("fails", "skip", "double", "anyway")} == {
        "fails": Status.FAILED,
        "skip": Status.SKIPPED,
        "double": Status.FAILED,
        "anyway": Status.SUCCESS,
    }


@two
def test_running_anyway_takes_the_default(flow):
    """The parameter of what failed is its default, None without one, however the handle was given."""

    def shows(a="default", *, b="default", c=None):
        return a, b, c

    with flow:
        bad = flow.submit(fails)
        shown = flow.submit(Task("shows", shows, on_dep_failure="run-anyway"), bad, b=bad, c=bad)
        assert shown.result() == ("default", "default", None)
        within = flow.submit(Task("shows", shows, on_dep_failure="run-anyway"), [bad, 1], b={"x": bad})
        assert within.result() == ([None, 1], {"x": None}, None)
        assert bad.exception() is not None


@two
def test_a_call_that_is_submitted_after_the_failure(flow):
    """It makes no difference whether the failure came before or after the call was submitted."""
    with flow:
        bad = flow.submit(fails)
        assert bad.exception() is not None
        for policy, status in (("fail", Status.FAILED), ("skip", Status.SKIPPED), ("run-anyway", Status.SUCCESS)):
            handle = flow.submit(Task(policy, lambda x: x, on_dep_failure=policy), bad)
            handle.wait()
            assert handle.status is status


@two
def test_those_that_pass_on_a_failure(executor):
    """Calls that ask for the result of a failed one fail by the same exception, which is raised once."""
    mine = ValueError("mine")

    def raises():
        raise mine

    with pytest.raises(ValueError, match="mine") as caught, Flow(executor) as flow:
        bad = flow.submit(raises)
        passing = [flow.submit(lambda: bad.result()) for _ in range(3)]
        wait(passing)
    assert caught.value is mine
    assert {handle.status for handle in passing} == {Status.FAILED}


# ---- cancelling -------------------------------------------------------------------------------------


@on_several_workers
def test_cancelling_a_call_that_waits_for_another(flow, gate):
    """It never starts, has ended at once, and what depends on it fails."""
    ran = []
    with flow:
        slow = begun(flow, gate)
        waiting = flow.submit(ran.append, slow)
        after = flow.submit(ran.append, waiting)
        assert waiting.cancel() is True
        assert waiting.done()
        assert waiting.cancelled()
        assert waiting.status is Status.CANCELLED
        assert repr(waiting) == "<TaskHandle append: CANCELLED>"
        with pytest.raises(TaskCancelledError, match="append") as caught:
            waiting.result()
        assert isinstance(caught.value, CancelledError)
        with pytest.raises(CancelledError):
            waiting.exception()
        with pytest.raises(DependencyFailedError):
            after.result()
        gate.open.set()
        assert slow.result() == "through"
    assert ran == []


@pytest.mark.parametrize("executor", ["thread-1", "asyncio-1", "pool-1"], indirect=True)
def test_cancelling_a_call_that_waits_for_a_worker(flow, gate):
    """It never starts, and the others do."""
    ran = []
    with flow:
        begun(flow, gate)
        ready = [flow.submit(ran.append, n) for n in range(5)]
        assert [handle.cancel() for handle in ready[::2]] == [True] * 3
        gate.open.set()
        assert [handle.wait(WATCHDOG) for handle in ready] == [True] * 5
    assert ran == [1, 3]


@on_several_workers
def test_cancelling_a_call_that_runs(flow, gate):
    """The handle has ended at once; the code is told, and what it still does changes nothing."""
    told, ended = [], threading.Event()

    def runs(ctx):
        gate()
        told.append(current_task().cancelled)
        ctx.set("late", 1)
        try:
            flow.submit(double, 1)
        except FlowError:
            told.append("refused")
        ended.set()
        return "late"

    with flow, flow.session() as session:
        handle = session.submit(runs)
        assert gate.begun.wait(WATCHDOG)
        assert handle.cancel() is True
        assert handle.status is Status.CANCELLED
        assert session.submit(double, 2).result() == 4
        gate.open.set()
        assert ended.wait(WATCHDOG)
        assert session.submit(double, 3).result() == 6
        assert handle.status is Status.CANCELLED
        assert "late" not in session.context
        assert "runs" not in session.context
    assert told == [True, "refused"]
    assert "runs" not in session.result()


@three
def test_cancelling_a_coroutine_that_runs(flow):
    """It is cancelled where it awaits; what it returns after swallowing that is dropped."""
    begun, stopped = threading.Event(), threading.Event()

    async def stubborn():
        begun.set()
        try:
            await asyncio.sleep(WATCHDOG)
        except asyncio.CancelledError:
            stopped.set()
        return "late"

    @flow.task
    def submits():
        handle = flow.submit(stubborn)
        assert begun.wait(WATCHDOG)
        assert handle.cancel() is True
        assert stopped.wait(WATCHDOG)
        return handle.status, flow.submit(double_later, 2).result()

    with flow:
        assert flow.run("submits")["submits"] == (Status.CANCELLED, 4)


def test_cancelling_a_call_that_blocks_the_loop(gate):
    """It has ended for everybody else at once."""
    with Flow() as flow:

        async def blocks():
            return gate()

        handle = flow.submit(blocks)
        assert gate.begun.wait(WATCHDOG)
        assert handle.cancel() is True
        assert handle.cancelled()
        gate.open.set()
        assert flow.submit(double_later, 1).result() == 2


def test_cancelling_a_coroutine_that_a_plain_function_gave(gate):
    """Before the loop has got to it, it is cancelled like any other, and closed unawaited."""
    with ThreadExecutor(1) as executor, Flow(executor) as flow:

        async def blocks():
            return gate()

        blocking = flow.submit(blocks)
        assert gate.begun.wait(WATCHDOG)
        ran = []

        async def never():
            ran.append(1)

        handle = flow.submit(lambda: never())
        assert flow.submit(double, 1).result() == 2  # the only thread has been through with it
        assert handle.cancel() is True
        assert handle.status is Status.CANCELLED
        gate.open.set()
        assert blocking.result() == "through"
        assert flow.submit(double_later, 1).result() == 2
    assert ran == []


def test_cancelling_a_call_in_back_off(gate):
    """It never starts again, and leaves no timer behind."""
    before = engine_threads()
    flow = Flow()
    tries = []

    def flaky():
        tries.append(1)
        raise OSError

    with flow.session() as session:
        handle = session.submit(Task("flaky", flaky, retry=Retry(attempts=3, base=60.0, max_delay=60.0)))
        until(lambda: tries and handle.status is Status.PENDING)
        assert handle.cancel() is True
        assert handle.status is Status.CANCELLED
        after = session.submit(double, handle)
        assert isinstance(after.exception(), DependencyFailedError)
    assert tries == [1]
    until(lambda: not {t for t in engine_threads() - before if "clock" in t.name})
    flow.close()
    assert_gone(engine_threads() - before)


@pytest.mark.parametrize("limit", [1, Rate(1, per=60.0)])
def test_cancelling_a_call_that_waits_for_a_limit(limit, gate):
    """It never starts; the limit is there for the next one."""
    ran = []
    with Flow(limits={"db": limit}) as flow:
        first = begun(flow, gate) if limit == 1 else None
        holder = flow.submit(Task("holder", gate, uses=["db"]))
        assert gate.begun.wait(WATCHDOG)
        waiting = flow.submit(Task("waits", ran.append, uses=["db"]), 1)
        later = flow.submit(Task("later", ran.append, uses=["db"]), 2)
        assert waiting.status is Status.PENDING
        assert waiting.cancel() is True
        gate.open.set()
        assert holder.result() == "through"
        if limit == 1:
            assert later.result() is None
            assert first.result() == "through"
        else:
            assert later.cancel() is True
    assert ran == ([2] if limit == 1 else [])


def test_cancelling_a_call_held_back_by_max_parallel(gate):
    """The flow's limit and the task's hold calls back, and both let them be cancelled."""
    ran = []
    note = Task("note", ran.append, max_parallel=1)
    with Flow(max_parallel=2) as flow:
        slow = begun(flow, gate)
        own = Gate()
        one = flow.submit(Task("own", own, max_parallel=1))
        assert own.begun.wait(WATCHDOG)
        waiting = [flow.submit(note, n) for n in range(6)]
        assert [handle.cancel() for handle in waiting[1:4]] == [True] * 3
        own.open.set()
        gate.open.set()
        assert [slow.result(), one.result()] == ["through"] * 2
        for handle in (waiting[0], *waiting[4:]):
            assert handle.result() is None
    assert sorted(ran) == [0, 4, 5]


@on_several_workers
def test_cancelling_twice_and_too_late(flow, gate):
    """The second cancel, and one of what has ended, says False for what ended otherwise and changes nothing."""
    with flow:
        done, bad = flow.submit(double, 1), flow.submit(fails)
        done.result()
        bad.exception()
        assert done.cancel() is False
        assert bad.cancel() is False
        assert done.result() == 2
        assert bad.status is Status.FAILED
        waiting = flow.submit(double, begun(flow, gate))
        assert waiting.cancel() is True
        waiting.cancel()
        assert waiting.cancelled()
        gate.open.set()


@on_several_workers
def test_cancelling_from_a_callback(flow, gate):
    """A callback cancels others, and itself in vain."""
    seen, second = [], Gate()
    with flow:
        slow, slower = begun(flow, gate, 1), begun(flow, second, 2)
        others = [flow.submit(double, slower) for _ in range(3)]
        slow.add_done_callback(lambda handle: seen.extend([handle.cancel(), *(other.cancel() for other in others)]))
        gate.open.set()
        assert wait(others, WATCHDOG).not_done == set()
        until(lambda: len(seen) == 4)
        second.open.set()
    assert seen == [False, True, True, True]


@three
def test_a_call_that_cancels_others_and_itself(flow):
    """A call may cancel a sibling, and its own handle: then its result is dropped."""
    box = []

    def suicidal():
        until(lambda: box)
        return box[0].cancel()

    @flow.task
    def submits():
        box.append(flow.submit(suicidal))
        sibling = flow.submit(double, box[0])
        sibling.wait()
        return box[0].status, sibling.status

    with flow:
        assert flow.run("submits") == {"submits": (Status.CANCELLED, Status.FAILED)}


def test_cancelling_wakes_who_waits_for_it(gate):
    """A call that waits for a cancelled one gets TaskCancelledError; it has failed, and was not cancelled itself."""
    with Flow() as flow:
        victim = begun(flow, gate)
        waits = threading.Event()

        def asks():
            waits.set()
            return victim.result()

        asking = flow.submit(asks)
        assert waits.wait(WATCHDOG)
        assert victim.cancel()
        with pytest.raises(TaskCancelledError, match="Gate"):
            asking.result()
        assert asking.status is Status.FAILED
        assert not asking.cancelled()
        assert asking.exception().task_id == victim.id
        gate.open.set()


def test_a_call_that_raises_cancelled_by_itself():
    """Nobody has cancelled it: it has failed with what it raised."""
    with Flow("inline") as flow:
        for error in (TaskCancelledError("x"), CancelledError("x"), asyncio.CancelledError("x")):

            def raises(error=error):
                raise error

            handle = flow.submit(raises)
            raised = handle.exception()
            assert raised is error or raised.__cause__ is error
            assert handle.status is Status.FAILED
            assert not handle.cancelled()


def test_what_was_cancelled_lets_go_of_its_arguments():
    """Arguments of a call that has ended are not kept by its handle."""

    class Big:
        pass

    with Flow("inline") as flow:
        big = Big()
        gone = weakref.ref(big)
        handle = flow.submit(lambda big, other: 1, big, other=[big])
        assert handle.result() == 1
        del big
        gc.collect()
        assert gone() is None


@pytest.mark.parametrize("executor", ["thread", "asyncio", "pool"], indirect=True)
def test_cancelling_at_any_moment(flow):
    """However submit, cancel and the worker meet, the handle has ended when cancel returns, and nothing else fails."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with flow:
            for n in range(400):
                handle = flow.submit(add if n % 2 else double_later, n)
                assert handle.cancel() is (handle.status is Status.CANCELLED)
                assert handle.done()
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("executor", ["thread", "asyncio"], indirect=True)
def test_cancelling_a_generator_runs_its_finally(flow):
    """A generator that was told to stop is closed, sync or async."""

    def steps(begun, closed):
        try:
            while True:
                yield
                begun.set()
        finally:
            closed.set()

    async def steps_later(begun, closed):
        try:
            while True:
                yield
                begun.set()
                await asyncio.sleep(0)
        finally:
            closed.set()

    with flow:
        for fn in (steps, steps_later):
            begun, closed = threading.Event(), threading.Event()
            handle = flow.submit(fn, begun, closed)
            assert begun.wait(WATCHDOG)
            assert handle.cancel() is True
            assert closed.wait(WATCHDOG)


@pytest.mark.parametrize("executor", ["thread-1", "asyncio-1", "pool-1"], indirect=True)
def test_cancelling_a_call_that_waits_for_a_value(flow):
    """Its wait ends, and its place is free for others."""

    async def gets_later(ctx):
        await ctx.aget("never", external=True)

    box = []
    with flow, flow.session() as session:
        for fn in (lambda ctx: ctx.get("never", external=True), gets_later, lambda: box[0].result()):
            box[:] = [session.submit(asyncio.sleep, WATCHDOG)]
            handle = session.submit(fn)
            until(lambda: "waiting for" in repr(session))
            assert handle.cancel() is True
            until(lambda: "waiting for" not in repr(session))
            assert session.submit(double, 1).result() == 2
            box[0].cancel()


def test_cancelling_one_that_waits_harms_no_other(gate):
    """A call that was cancelled while it waited is not taken for a part of a deadlock."""
    with Flow(max_workers=3) as flow, flow.session() as session:
        slow = session.submit(gate, 5)
        asking = session.submit(lambda: slow.result())
        until(lambda: "waiting for" in repr(session))
        awaits = threading.Event()

        async def asks_later():
            awaits.set()
            return await slow

        awaiting = session.submit(asks_later)
        assert awaits.wait(WATCHDOG)
        assert session.submit(double_later, 1).result() == 2  # on the same loop, so that one is at its await
        assert awaiting.cancel() is True
        gate.open.set()
        assert asking.result() == 5


@pytest.mark.parametrize("how", ["runs", "waits"])
def test_a_cancelled_call_gives_its_limit_back(how, gate):
    """Whether it runs or waits, the next one may have what it held or stood in line for."""
    with Flow(limits={"db": 1}) as flow:
        holder = flow.submit(Task("holder", gate, uses=["db"]))
        assert gate.begun.wait(WATCHDOG)
        waiting = [flow.submit(Task("waits", double, uses=["db"]), n) for n in range(3)]
        if how == "runs":
            assert holder.cancel() is True
        else:
            assert waiting[0].cancel() is True
            gate.open.set()
        assert [handle.result() for handle in waiting[how == "waits" :]] == [0, 2, 4][how == "waits" :]
        gate.open.set()


# ---- timeouts -----------------------------------------------------------------------------------------


def test_a_call_that_takes_too_long(gate):
    """Its handle raises TaskTimeoutError; a thread is abandoned, a coroutine cancelled."""
    with Flow() as flow:
        slow = flow.submit(Task("slow", gate, timeout=0.01))
        sleepy = flow.submit(Task("sleepy", asyncio.sleep, timeout=0.01), WATCHDOG)
        for handle in (slow, sleepy):
            with pytest.raises(TaskTimeoutError, match=handle.id):
                handle.result()
        assert slow.status is Status.ABANDONED
        assert sleepy.status is Status.FAILED
        gate.open.set()


# ---- context and context variables --------------------------------------------------------------------


def test_the_context_is_passed_to_who_asks_for_it(flow):
    """By name, by annotation, as a keyword-only parameter, wherever it stands; never to others."""

    def first(ctx, x, y=0):
        return type(ctx), x, y

    def middle(x, given: Context, y=0):
        return type(given), x, y

    def only_by_name(x, *, context, y=0):
        return type(context), x, y

    def last(x, y=0, ctx=None):
        return type(ctx), x, y

    async def later(ctx: Context[Any], x, y=0):
        return type(ctx), x, y

    with flow:
        for fn in (first, middle, only_by_name, last, later):
            assert flow.submit(fn, 1).result() == (Context, 1, 0)
            assert flow.submit(fn, x=1, y=2).result() == (Context, 1, 2)
        assert flow.submit(lambda x: x, 1).result() == 1
        assert flow.submit(lambda *args: args, 1, 2).result() == (1, 2)
        assert flow.submit(lambda **names: names, a=1).result() == {"a": 1}


@two
def test_a_context_that_is_given_is_taken(flow):
    """An argument for that parameter, by name or by position, is what the function gets."""
    mine = Context({"mine": 1})

    def asks(x, ctx):
        return x, ctx

    with flow:
        assert flow.submit(asks, 1, ctx=mine).result() == (1, mine)
        assert flow.submit(asks, 1, mine).result() == (1, mine)
        assert flow.submit(asks, ctx=None, x=1).result() == (1, None)


@two
def test_calls_share_the_context_of_their_session(flow):
    """They set and get there, and their outputs are there under their names, as in any run."""
    with flow:
        with flow.session(context={"a": 1}) as session:
            session.submit(lambda ctx: ctx.set("b", ctx.get("a") + 1)).result()
            assert session.context.get("b") == 2
            session.submit(double, 5).result()
            assert session.context.get("double") == 10
        with flow.session() as other:
            assert "b" not in other.context


@three
def test_a_call_waits_for_what_another_sets(flow):
    """A blocked get of one call is served by another, with one worker as well."""
    with flow:
        getter = Task("getter", lambda ctx: ctx.get("key"))
        with flow.session() as session:
            session.submit(lambda ctx: ctx.set("key", 1))
            assert session.submit(getter).result() == 1
    if flow._settings["executor"] == "inline":
        return
    with Flow(max_workers=1) as one, one.session() as session:
        asking = session.submit(getter)
        until(lambda: "waiting for 'key'" in repr(session))
        session.submit(lambda ctx: ctx.set("key", 2))
        assert asking.result() == 2


@two
def test_a_get_in_vain_fails_the_call(flow):
    """When the block waits and nothing can set the key, the call is told so."""
    with flow:
        handle = flow.submit(lambda ctx: ctx.get("never"))
        with pytest.raises(ContextKeyError, match="never"):
            handle.result()


@on_several_workers
def test_a_get_waits_while_the_block_may_still_submit(executor):
    """The block itself can bring what is waited for, so nobody is told before it waits or ends."""
    with Flow(executor) as flow, flow.session() as session:
        asking = session.submit(lambda ctx: ctx.get("key"))
        until(lambda: "waiting for 'key'" in repr(session) or asking.done())
        assert session.submit(double, 1).wait(WATCHDOG)
        assert not asking.done()
        session.submit(lambda ctx: ctx.set("key", 3))
        assert asking.result() == 3


@three
def test_a_call_sees_the_variables_of_its_submitter(flow):
    """As they were when it was submitted: plain functions, generators and coroutines, and all that they await."""

    def plain():
        return VAR.get()

    def steps():
        yield VAR.get()
        return VAR.get()

    async def later():
        seen = VAR.get()
        await asyncio.sleep(0)
        return seen if seen == VAR.get() else "changed"

    async def stepping():
        await asyncio.sleep(0)
        yield VAR.get()

    with flow:
        for name in ("one", "two"):
            token = VAR.set(name)
            handles = [flow.submit(fn) for fn in (plain, steps, later)]
            chunks = flow.submit(stepping)
            VAR.reset(token)
            assert [handle.result() for handle in handles] == [name] * 3
            assert chunks.result() is None
        assert flow.submit(plain).result() == "nothing"


@three
def test_what_a_call_does_to_variables_stays_with_it(flow):
    """Neither the block nor another call sees it, nor the next attempt of the same call."""
    seen = []

    def sets(name):
        seen.append(VAR.get())
        VAR.set(name)
        return VAR.get()

    async def sets_later(name):
        seen.append(VAR.get())
        VAR.set(name)
        await asyncio.sleep(0)
        return VAR.get()

    def flaky():
        sets("flaky")
        raise OSError

    with flow:
        assert [flow.submit(fn, "x").result() for fn in (sets, sets, sets_later, sets_later)] == ["x"] * 4
        assert isinstance(flow.submit(Task("flaky", flaky, retries=1)).exception(), OSError)
    assert VAR.get() == "nothing"
    assert seen == ["nothing"] * 6


@three
def test_a_call_submitted_in_a_task_sees_the_variables_of_that_task(flow):
    """Also when a coroutine submits it, in whatever step."""

    def inner():
        return VAR.get(), current_task().name

    @flow.task
    def outer():
        VAR.set("task")
        return flow.submit(inner).result()

    @flow.task
    async def outer_later():
        await asyncio.sleep(0)
        VAR.set("later")
        await asyncio.sleep(0)
        return await flow.submit(inner)

    with flow:
        assert flow.run("outer")["outer"] == ("task", "inner")
        assert flow.run("outer_later")["outer_later"] == ("later", "inner")
        assert flow.submit(outer).result() == ("task", "inner")


@three
def test_a_call_knows_who_it_is(flow):
    """current_task tells id, run, attempt, and a key that differs from call to call."""

    def who():
        me = current_task()
        return me.id, me.run_id, me.attempt, me.key

    with flow, flow.session("orders-7") as session:
        one, two = session.submit(who).result(), session.submit(who).result()
        assert one[:3] == ("who", "orders-7", 1)
        assert two[:3] == ("who#2", "orders-7", 1)
        assert one[3] != two[3]
        assert len({session.submit(lambda: flow.submit(who).result()).result()[3] for _ in range(5)}) == 5


@two
def test_hostile_arguments_and_errors(executor):
    """Nobody compares, hashes, shows or asks the truth of what is passed through."""

    class Hostile(Exception):
        def refuse(self, *_):
            raise RuntimeError("do not touch")

        __eq__ = __bool__ = __len__ = __str__ = __repr__ = refuse
        __hash__ = refuse

    mine = Hostile()

    def raises():
        raise Hostile

    with Flow(executor) as flow:
        assert flow.submit(lambda x: x, mine).result() is mine
        assert flow.submit(lambda x: x, [mine, flow.submit(double, 1)]).result()[0] is mine
        assert flow.submit(lambda x, **names: names["y"], 1, y={"a": mine}).result()["a"] is mine
        assert type(flow.submit(raises).exception()) is Hostile
    with pytest.raises(ExceptionGroup) as caught, Flow(executor) as flow:
        flow.submit(raises)
        flow.submit(raises)
    assert [type(error) for error in caught.value.exceptions] == [Hostile] * 2


@two
def test_a_registered_task_that_is_submitted_stands_alone(flow):
    """It is called with the arguments that it is given, whatever its edges are."""
    flow.add_task("first", lambda: 5)
    flow.add_task("second", lambda first: first + 1)
    with flow:
        assert flow["second"].submit(1).result() == 2
        assert flow["second"].submit(flow["first"].submit()).result() == 6
        with pytest.raises(TypeError, match="first"):
            flow["second"].submit().result()


def test_the_results_of_a_session_do_not_depend_on_timing(gate):
    """Whether a call had ended when another one took its handle makes no difference to what the session gives."""
    results = []
    with Flow() as flow:
        for late in (False, True):
            with flow.session() as session:
                first = session.submit(gate, 3)
                if late:
                    first.result()
                second = session.submit(double, first)
                gate.open.set()
                assert second.result() == 6
            results.append(session.result())
    assert results[0] == results[1]
    assert results[0]["double"] == 6


def test_a_task_chooses_its_executor():
    """A call of a Task goes where its executor option says; async ones go to a loop."""

    async def where_later():
        return threading.current_thread()

    with Flow("inline") as flow:
        main = threading.main_thread()
        assert flow.submit(threading.current_thread).result() is main
        assert flow.submit(Task("where", threading.current_thread, executor="thread")).result() is not main
        assert flow.submit(where_later).result() is not main


def test_a_higher_priority_starts_earlier(gate):
    """Among calls that are ready, the order of submission decides only between equals."""
    order = []
    with Flow(max_workers=1) as flow:
        begun(flow, gate)
        for n, priority in enumerate([0, 2, 1, 2, 0]):
            flow.submit(Task(f"task-{n}", order.append, priority=priority), n)
        gate.open.set()
    assert order == [1, 3, 2, 0, 4]


# ---- generators and requests ----------------------------------------------------------------------


@three
def test_a_generator_that_is_submitted(flow):
    """Its return value is the result; what it yields is streamed under its id."""

    def steps(n):
        yield from range(n)
        return "end"

    async def steps_later(n):
        for i in range(n):
            await asyncio.sleep(0)
            yield i

    with flow:
        with flow.session() as session:
            assert session.submit(steps, 2).result() == "end"
            assert session.submit(steps_later, 2).result() is None
        chunks = list(session.stream())
    assert [chunk for chunk in chunks if chunk.task_id == "steps"] == [
        StreamChunk("steps", 0), StreamChunk("steps", 1), StreamChunk("steps", "end"),
    ]  # fmt: skip
    assert [chunk.value for chunk in chunks if chunk.task_id == "steps_later"] == [0, 1, None]


def test_requests_of_a_call_are_run(flow):
    """NextTask values that a call returns or yields start tasks of the flow in the same run."""
    flow.add_task("leaf", lambda x: x + 1)
    flow.add_task("join", lambda upstream: sum(upstream))

    def returns():
        return [NextTask("leaf", {"x": x}, spawn_another=True) for x in range(3)] + [NextTask("join", join=True)]

    def yields():
        yield NextTask("leaf", {"x": 10}, spawn_another=True)
        return "yielded"

    with flow:
        with flow.session() as session:
            handle = session.submit(returns)
            assert handle.result() is None
        assert session.result()["join"] == 6
        with flow.session() as session:
            assert session.submit(lambda: TaskOutput(5, [NextTask("leaf", {"x": 5})])).result() == 5
            assert session.submit(yields).result() == "yielded"
        assert sorted(value for name, value in session.result().items() if name.startswith("leaf")) == [6, 11]


@two
def test_a_request_for_nothing_fails_the_call(flow):
    """An unknown task fails the call that asked for it, also when a function of that name was submitted."""
    flow.add_task("known", lambda: 1)
    with flow:
        assert flow.submit(double, 1).result() == 2
        for name in ("nope", "double"):
            with pytest.raises(TaskNotFoundError, match=f"Task {name} not found"):
                flow.submit(lambda name=name: NextTask(name)).result()


@two
def test_a_request_of_a_call_follows_edges(flow):
    """A task that a call asks for goes on along its edges, as everywhere."""
    flow.add_task("a", lambda: 1)
    flow.add_task("b", lambda a: a + 1)
    with flow:
        with flow.session() as session:
            assert session.submit(lambda: NextTask("a")).result() is None
        assert session.result() == {"b": 2}
        assert session.status is Status.SUCCESS


@two
def test_tasks_and_calls_of_one_name_share_their_numbers(flow):
    """Ids are unique in a run: a call of a function named as a task takes the next number."""

    def leaf(x):
        return x

    flow.add_task("leaf", lambda x: -x)
    with flow:
        with flow.session() as session:
            first = session.submit(leaf, 1)
            session.submit(lambda: NextTask("leaf", {"x": 2}, spawn_another=True)).result()
            third = session.submit(leaf, 3)
        values = session.result()
        assert (first.id, third.id) == ("leaf", "leaf#3")
        assert values == {"leaf": 1, "leaf#2": -2, "leaf#3": 3}


# ---- calls of tasks ---------------------------------------------------------------------------------


def test_tasks_of_ordinary_runs_submit_calls(flow):
    """They belong to that run: their results are among its results, and it ends when they have."""

    @flow.task
    def start(ctx):
        handles = [flow.submit(double, n) for n in range(3)]
        square.submit(3)
        return sum(handle.result() for handle in handles)

    with flow:
        assert flow.run("start") == {"start": 6, "double": 0, "double#2": 2, "double#3": 4, "square": 9}


@on_several_workers
def test_a_run_does_not_end_before_its_calls(flow, gate):
    """Also when the task that submitted them has long ended."""
    done = threading.Event()

    @flow.task
    def start():
        flow.submit(gate, "late").add_done_callback(lambda _: done.set())
        return "early"

    with flow:
        run = flow.start("start")
        assert gate.begun.wait(WATCHDOG)
        assert run.wait(0.001) is False
        gate.open.set()
        assert run.result() == {"start": "early", "Gate": "late"}
        assert done.wait(WATCHDOG)


@three
def test_failures_of_calls_in_tasks(flow):
    """One that is asked for is the asker's to handle; one that nobody asked for is raised at the run's end."""

    @flow.task
    def asks():
        return type(flow.submit(fails).exception())

    @flow.task
    def forgets():
        flow.submit(fails)
        return 1

    with flow:
        assert flow.run("asks") == {"asks": ValueError}
        with pytest.raises(ValueError, match="mine"):
            flow.run("forgets")


@three
def test_a_join_waits_for_the_calls_of_its_siblings(flow):
    """What a task submits counts as scheduled by it."""
    order = []

    @flow.task
    def start():
        return [NextTask("sibling"), NextTask("join", join=True)]

    @flow.task
    def sibling():
        flow.submit(lambda: flow.submit(lambda: order.append("call")))
        return 1

    @flow.task
    def join(upstream):
        order.append("join")
        return upstream

    with flow:
        assert flow.run("start")["join"] == [1]
    assert order == ["call", "join"]


def test_a_late_call_of_an_ended_task_starts_no_join_twice(gate):
    """A thread that a task has left behind may be refused, but whatever it does the join fires once."""
    joins, said = [], []
    tried = threading.Event()
    flow = Flow(max_workers=4)

    @flow.task
    def start():
        return [NextTask("sibling"), NextTask("join", join=True)]

    @flow.task
    def sibling():
        mine = contextvars.copy_context()

        def late():
            assert gate.open.wait(WATCHDOG)
            try:
                said.append(mine.run(flow.submit, double, 5).result())
            except FlowError as error:
                said.append(error)
            tried.set()

        threading.Thread(target=late).start()
        return 1

    @flow.task
    def join(upstream):
        joins.append(upstream)
        gate.open.set()
        assert tried.wait(WATCHDOG)
        return upstream

    with flow:
        assert flow.run("start")["join"] == [1]
    assert joins == [[1]]
    assert said == [10] or isinstance(said[0], FlowError)


@three
def test_calls_nest(flow):
    """A call submits calls that submit calls, and each belongs to the same run."""

    def nest(depth):
        return current_task().run_id if depth == 0 else flow.submit(nest, depth - 1).result()

    with flow, flow.session("deep") as session:
        assert session.submit(nest, 20).result() == "deep"


def test_a_helper_thread_of_a_task_submits():
    """With the task's context variables it belongs to the task's run; without any to the block, or nowhere."""
    flow = Flow()
    said = []

    @flow.task
    def helped():
        mine = contextvars.copy_context()
        with ThreadPoolExecutor(1) as helper:
            inside = helper.submit(mine.run, lambda: flow.submit(lambda: current_task().run_id).result()).result()
            try:
                said.append(helper.submit(lambda: flow.submit(lambda: current_task().run_id).result()).result())
            except FlowError as error:
                said.append(error)
        return inside, current_task().run_id

    inside, own = flow.run("helped")["helped"]
    assert inside == own
    assert isinstance(said.pop(), FlowError)
    with flow:
        inside, own = flow.run("helped")["helped"]
        assert inside == own != said[0]


@three
def test_calls_are_streamed_with_their_run(flow):
    """The chunk of a call comes before that of the task that asked for it."""

    @flow.task
    def start():
        return flow.submit(double, 1).result()

    with flow:
        assert [chunk.task_id for chunk in flow.stream("start")] == ["double", "start"]


@on_several_workers
def test_leaving_a_stream_cancels_calls(flow):
    """They belong to the run whose stream it was; their handles tell, also after the run."""
    handles = []

    with flow:

        @flow.task
        def endless(ctx):
            handles.append(flow.submit(lambda ctx: ctx.get("never", external=True)))
            ctx.emit("begun")
            return handles[-1].result()

        for chunk in flow.stream("endless"):
            assert chunk.value == "begun"
            break
        assert handles[-1].cancelled()


@three
def test_sessions_and_flows_inside_calls(flow):
    """A call may open a session, and a flow of its own; waiting there gives its place back."""

    def opens_session(n):
        with flow.session() as session:
            return session.submit(double, n).result()

    def opens_flow(n):
        with Flow(max_workers=1) as inner:
            return inner.submit(double, inner.submit(square, n)).result()

    async def opens_later(n):
        async with flow.session() as session:
            return await session.submit(double_later, n)

    with flow:
        assert [flow.submit(fn, 3).result() for fn in (opens_session, opens_flow, opens_later)] == [6, 18, 6]


@three
def test_a_task_of_a_run_that_has_failed_cannot_submit(flow):
    """Nothing new starts after the first failure: the task is told so."""
    said = []

    @flow.task
    async def goes_on():
        submitter.set()
        while not current_task().cancelled:
            await asyncio.sleep(0)
        try:
            flow.submit(double, 1)
        except FlowError as error:
            said.append(error)

    @flow.task
    def breaks():
        assert submitter.wait(WATCHDOG)
        raise ValueError("mine")

    submitter = threading.Event()
    with flow, pytest.raises(ValueError, match="mine"):
        flow.run(["goes_on", "breaks"])
    assert len(said) <= 1  # a coroutine may have been cancelled before it could ask


def test_max_task_runs_counts_calls():
    """A run that submits without end is ended."""
    with Flow("inline", max_task_runs=5) as flow:

        @flow.task
        def endless():
            while True:
                flow.submit(double, 1)

        with pytest.raises(TaskRunLimitError, match="double"):
            flow.run("endless")
        with pytest.raises(TaskRunLimitError), flow.session() as session:
            for _ in range(6):
                session.submit(double, 1)


# ---- waiting inside calls, and waiting in vain ---------------------------------------------------


@on_one_worker
def test_calls_wait_for_calls_with_one_worker(flow):
    """Whoever waits gives the place back, so one worker is enough for any depth and width."""

    def fib(n):
        if n < 2:
            return n
        one, two = flow.submit(fib, n - 1), flow.submit(fib, n - 2)
        return one.result() + two.result()

    with flow:
        assert flow.submit(fib, 6).result() == 8

        @flow.task
        def start():
            asked = [flow.submit(fib, 3) for _ in range(5)]
            done = [handle.result() for handle in as_completed(asked)] if False else [h.result() for h in asked]
            return sum(done)

        assert flow.run("start")["start"] == 10


@on_one_worker
def test_many_wait_for_one_with_one_worker(flow):
    """Fifty calls wait for one that comes last."""
    box = []

    def waits():
        return box[0].result()

    @flow.task
    def start():
        ready = flow.submit(double, 1)
        box.append(flow.submit(lambda x: x, ready))
        return [handle.result() for handle in [flow.submit(waits) for _ in range(50)]]

    with flow:
        assert flow.run("start")["start"] == [2] * 50


@on_one_worker
def test_waiting_with_a_timeout_inside_a_call(flow):
    """The time is up for who waits, with one worker as well; the call that it waited for is not touched."""

    @flow.task
    def start(ctx):
        never = flow.submit(lambda ctx: ctx.get("key", external=True))
        until(lambda: never.status is not Status.PENDING or never.wait(0.001) or True)
        with pytest.raises(TimeoutError):
            never.result(0.01)
        assert never.wait(0) is False
        ctx.set("key", 5)
        return never.result()

    with flow:
        assert flow.run("start")["start"] == 5


@pytest.mark.parametrize("executor", ["thread", "thread-1", "asyncio", "pool-1"], indirect=True)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_calls_that_wait_for_each_other(flow, size):
    """A circle of results, also one of a call with itself, is a DeadlockError and no hang."""
    box, ready = [], threading.Event()

    def asks(n):
        assert ready.wait(WATCHDOG)
        return box[n].result()

    with flow:
        box += [flow.submit(asks, (n + 1) % size) for n in range(size)]
        ready.set()
        for handle in box:
            with pytest.raises(DeadlockError, match="asks"):
                handle.result()


@three
def test_coroutines_that_wait_for_each_other(flow):
    """The same for calls that await: the run that has them ends."""
    box = []

    async def asks(n):
        while len(box) < 2:
            await asyncio.sleep(0)
        return await box[n]

    @flow.task
    def start():
        box.extend(flow.submit(asks, n) for n in (1, 0))

    with flow:
        with pytest.raises(DeadlockError, match="asks"):
            flow.run("start")
        assert all(isinstance(handle.exception(), DeadlockError) for handle in box)


@three
def test_a_call_that_waits_for_what_depends_on_it(flow):
    """A call waits for the result of another one that starts only when the first has ended."""
    box = []

    def first():
        until(lambda: box)
        try:
            return box[0].result()
        except DeadlockError:
            return 5

    @flow.task
    def start():
        box.append(flow.submit(double, flow.submit(first)))

    with flow:
        assert flow.run("start")["double"] == 10


@pytest.mark.parametrize("executor", ["thread", "pool-1"], indirect=True)
def test_a_deadlock_is_found_when_the_block_ends(flow):
    """Nobody has asked: the DeadlockError is raised at the end of the block."""
    box, ready = [], threading.Event()

    def asks(n):
        assert ready.wait(WATCHDOG)
        return box[n].result()

    with pytest.raises(DeadlockError), flow:
        box += [flow.submit(asks, n) for n in (1, 0)]
        ready.set()


def test_one_of_a_circle_may_handle_it():
    """Only one is told: when it goes on, so do the others."""
    with Flow() as flow:
        box, ready = [], threading.Event()

        def asks(n):
            assert ready.wait(WATCHDOG)
            try:
                return box[n].result()
            except DeadlockError:
                return "broken"

        box += [flow.submit(asks, n) for n in (1, 2, 0)]
        ready.set()
        assert [handle.result() for handle in box] == ["broken"] * 3


def test_sessions_that_share_a_context_and_wait_for_each_other():
    """The proof is over all runs of a context: calls of two sessions that wait for each other are told."""
    flow = Flow(context=Context())
    errors = []

    def block():
        with flow.session() as one, flow.session() as two:
            box, ready = [], threading.Event()

            def asks(n):
                assert ready.wait(WATCHDOG)
                return box[n].result()

            box += [one.submit(asks, 1), two.submit(asks, 0)]
            ready.set()
            errors.extend(handle.exception() for handle in box)

    try:
        run_threads(block)
    finally:
        flow.close()
    assert [type(error) for error in errors] == [DeadlockError] * 2


def test_a_key_and_a_handle_that_wait_for_each_other():
    """One call waits for a key that only the other sets, which waits for the first one's result."""
    with Flow() as flow:
        box, ready = [], threading.Event()

        def gets(ctx):
            return ctx.get("key")

        def sets(ctx):
            assert ready.wait(WATCHDOG)
            ctx.set("key", box[0].result())

        box += [flow.submit(gets), flow.submit(sets)]
        ready.set()
        errors = [handle.exception() for handle in box]
        assert any(isinstance(error, ContextKeyError | DeadlockError) for error in errors)
        assert all(errors)


def test_the_repr_of_a_session_that_waits(gate):
    """It shows what is waited for: keys and calls, beside each other."""
    with Flow(max_workers=2) as flow, flow.session("orders-7") as session:
        slow = session.submit(gate)
        session.submit(lambda: slow.result())
        asking = session.submit(lambda ctx: ctx.get("key", external=True))
        session.submit(lambda: asking.result())
        until(lambda: repr(session).count("Gate") + repr(session).count("'key'") >= 2)
        assert repr(session).startswith("<FlowRun orders-7: running")
        session.context.set("key", 1)
        gate.open.set()
    assert repr(session) == "<FlowRun orders-7: success>"


def test_a_block_asks_while_a_call_needs_it():
    """A call that waits for what comes from outside is left alone."""
    with Flow() as flow, flow.session() as session:
        asking = session.submit(lambda ctx: ctx.get("key", external=True))
        with pytest.raises(TimeoutError):
            asking.result(0.01)
        session.context.set("key", 4)
        assert asking.result() == 4


# ---- the end of a block --------------------------------------------------------------------------------


def test_leaving_the_block_waits_for_the_calls(flow):
    """All of them, those that calls submit in turn as well."""
    ran = []

    def call(n):
        ran.append(n)
        if n:
            flow.submit(call, n - 1)

    with flow:
        for _ in range(3):
            flow.submit(call, 3)
    assert sorted(ran) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


@on_several_workers
def test_an_exception_in_the_block_cancels(executor, gate):
    """It is raised as it is; what waits never starts, what runs is told, and handles raise that."""
    told = []

    def runs():
        gate.begun.set()
        until(lambda: current_task().cancelled)
        told.append(1)

    mine = LookupError("mine")
    handles = []
    with pytest.raises(LookupError) as caught, Flow(executor) as flow:
        handles.append(flow.submit(runs))
        assert gate.begun.wait(WATCHDOG)
        handles += [flow.submit(double, handles[0]), flow.submit(double_later, handles[0])]
        handles.append(flow.submit(fails, handles[0]))
        raise mine
    assert caught.value is mine
    assert told == [1]
    assert all(handle.done() for handle in handles)
    assert {handle.status for handle in handles[1:]} == {Status.CANCELLED}
    with pytest.raises(TaskCancelledError):
        handles[1].result()


@three
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_in_the_block(executor, kind):
    """It cancels what the block has submitted and comes out as it is."""
    with pytest.raises(kind), Flow(executor) as flow, flow.session() as session:
        handle = session.submit(double, 1)
        handle.result()
        raise kind
    assert session.status is Status.CANCELLED
    assert flow.report().status is Status.CANCELLED


def interrupt_main() -> None:
    """Send Ctrl-C to the main thread."""
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


@pytest.mark.parametrize("executor", ["thread", "asyncio"], indirect=True)
def test_ctrl_c_while_a_result_is_awaited(executor):
    """It strikes in result(), leaves the block, and tells what runs."""
    told = threading.Event()

    def runs():
        interrupt_main()
        until(lambda: current_task().cancelled)
        told.set()

    with pytest.raises(KeyboardInterrupt), Flow(executor) as flow:
        flow.submit(runs).result()
    assert told.wait(WATCHDOG)


@pytest.mark.parametrize("opener", ["flow", "session"])
def test_ctrl_c_while_the_block_waits_for_its_calls(opener):
    """At the end of the block it cancels as well: what runs is told, nothing is left running."""
    told = threading.Event()
    before = engine_threads()
    flow = Flow()
    block = flow if opener == "flow" else flow.session()

    def submit(fn):
        return flow.submit(fn) if opener == "flow" else block.submit(fn)

    def runs():
        until(lambda: refused(double))
        interrupt_main()
        until(lambda: current_task().cancelled)
        told.set()

    def refused(fn):
        """Whether the block does not take calls from outside any more."""
        try:
            contextvars.Context().run(submit, lambda: fn(1))
        except FlowError:
            return True
        return False

    try:
        with pytest.raises(KeyboardInterrupt), block:
            submit(runs)
        assert told.wait(WATCHDOG)
    finally:
        flow.close()
    assert_gone(engine_threads() - before)


@three
def test_a_failure_that_nobody_asked_for_is_raised_at_the_end(executor):
    """One as itself, several in a group in the order they came, consequences never."""
    with pytest.raises(ValueError, match="mine") as caught, Flow(executor) as flow:
        bad = flow.submit(fails)
        flow.submit(double, bad)
    assert type(caught.value) is ValueError

    with pytest.raises(ExceptionGroup) as caught, Flow(executor) as flow:
        for n in range(3):
            bad = flow.submit(int, f"x{n}")
            flow.submit(double, bad)
    assert sorted(str(error)[-3:] for error in caught.value.exceptions) == ["x0'", "x1'", "x2'"]


@three
def test_a_failure_that_was_asked_for_is_not_raised_again(executor):
    """By result, by exception, by await or by a wrapped future: whoever asked has had it."""

    async def awaits(handle):
        try:
            await handle
        except ValueError:
            return 1

    async def awaits_wrapped(handle):
        try:
            await asyncio.wrap_future(handle)
        except ValueError:
            return 1

    with Flow(executor) as flow:
        with pytest.raises(ValueError, match="mine"):
            flow.submit(fails).result()
        assert flow.submit(fails).exception() is not None
        assert asyncio.run(awaits(flow.submit(fails))) == 1
        assert asyncio.run(awaits_wrapped(flow.submit(fails))) == 1
        assert flow.submit(lambda: flow.submit(fails).exception()).result() is not None


@three
def test_waiting_is_not_asking(executor):
    """wait and concurrent.futures.wait tell that it has ended, not how: the failure is still raised."""
    with pytest.raises(ValueError, match="mine"), Flow(executor) as flow:
        handle = flow.submit(fails)
        handle.wait()
        wait([handle])
        assert handle.done()


def test_a_callback_that_asks_has_asked(gate):
    """The failure that a done-callback takes is not raised a second time, even if it is the last thing to happen."""
    seen = []
    with Flow() as flow:
        handle = begun(flow, gate, ValueError("mine"))
        handle.add_done_callback(lambda handle: seen.append(handle.exception()))
        gate.open.set()
    assert [str(error) for error in seen] == ["mine"]


def test_who_awaits_while_the_block_ends_has_asked(gate):
    """A failure that somebody is waiting for goes to him alone."""

    async def main():
        async with Flow() as flow:
            handle = begun(flow, gate, ValueError("mine"))
            asking = asyncio.ensure_future(handle)
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(gate.open.set)
        with pytest.raises(ValueError, match="mine"):
            await asking

    asyncio.run(main())


@two
@pytest.mark.parametrize("on_error", ["continue", "log"])
def test_failures_in_the_other_modes(executor, on_error, caplog):
    """Nothing is raised at the end; the status and the report tell, and log logs each one with its traceback."""
    with caplog.at_level(logging.ERROR, "millstream"), Flow(executor, on_error=on_error) as flow:
        with flow.session() as session:
            bad, good = session.submit(fails), session.submit(double, 1)
            session.submit(double, bad)
            with pytest.raises(ValueError, match="mine"):
                bad.result()
        assert session.status is Status.FAILED
        assert session.result() == {good.id: 2}
        assert session.report().tasks["fails"].error.message == "mine"
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == (1 if on_error == "log" else 0)
    if errors:
        assert "Traceback" in caplog.text
        assert errors[0].task == "fails"


@two
def test_a_session_is_a_run(executor):
    """It has id, status, context, result, report and stream, and is the flow's newest run."""
    with Flow(executor, name="shop") as flow:
        with flow.session("orders-7", context={"a": 1}, metadata={"who": "me"}, deps=[1], trace=True) as session:
            assert session.id == "orders-7"
            assert session.status is Status.RUNNING
            assert flow.report().run_id == "orders-7"
            assert flow.context is session.context
            assert session.submit(lambda ctx: (ctx.deps, ctx.metadata["who"])).result() == ([1], "me")
            session.submit(double, 4)
        assert session.status is Status.SUCCESS
        assert session.result() == session.result(0) == {"lambda": ([1], "me"), "double": 8}
        assert session.wait() is True
        report = session.report()
        assert (report.run_id, report.flow, report.status) == ("orders-7", "shop", Status.SUCCESS)
        assert report.metadata == {"who": "me"}
        assert report.tasks["double"].result == 8
        assert len(report.trace) == 2
        assert [chunk.task_id for chunk in session.stream()] == ["lambda", "double"]
        assert repr(session) == "<FlowRun orders-7: success>"


@two
def test_bad_options_of_a_session(executor):
    """What a run refuses a session refuses, before anything has begun."""
    with Flow(executor) as flow:
        for options in ({"run_id": 3}, {"run_id": ""}, {"context": 3}, {"timeout": 0}, {"timeout": "1"}, {"trace": 1}):
            with pytest.raises((TypeError, ValueError)):
                flow.session(**options)
        with flow.session() as session:
            assert session.submit(double, 1).result() == 2


@three
def test_the_result_of_a_session_that_failed(executor):
    """Whoever asks the session itself gets what the block raised."""
    with Flow(executor) as flow:
        with pytest.raises(ValueError, match="mine"), flow.session() as session:
            session.submit(fails)
        assert session.status is Status.FAILED
        with pytest.raises(ValueError, match="mine"):
            session.result()


@pytest.mark.parametrize("executor", ["inline", "thread"], indirect=True)
def test_asking_an_open_session_for_its_end_does_not_hang(executor):
    """The block would wait for its own end: it is told so, or the calls are waited for; never a hang."""
    answers = []

    def asks():
        with Flow(executor) as flow, flow.session() as session:
            session.submit(double, 1)
            try:
                answers.append(session.result())
            except FlowError as error:
                answers.append(error)

    run_threads(asks)
    assert answers[0] == {"double": 2} or isinstance(answers[0], FlowError)


@pytest.mark.parametrize("executor", ["inline", "thread"], indirect=True)
def test_streaming_an_open_session_does_not_hang(executor):
    """The loop ends, or raises, when all calls are done and only its own thread could submit more."""
    answers = []

    def asks():
        with Flow(executor) as flow, flow.session() as session:
            session.submit(double, 1)
            try:
                for chunk in session.stream():
                    answers.append(chunk)
            except FlowError as error:
                answers.append(error)

    run_threads(asks)
    assert answers[0] == StreamChunk("double", 2) or isinstance(answers[0], FlowError)


def test_a_session_that_was_never_closed():
    """Leaving the flow's block ends it: no more calls can come."""
    answers = []

    def leaves():
        with Flow() as flow:
            session = flow.session()
            handle = session.submit(double, 1)
        answers.append((handle.result(), session.status))

    run_threads(leaves)
    assert answers in ([(2, Status.SUCCESS)], [(2, Status.CANCELLED)])


def test_a_session_that_nobody_reads():
    """Thousands of calls without a reader slow nobody down; who reads too late is told so."""
    with Flow("inline") as flow:
        with flow.session() as session:
            for n in range(1500):
                session.submit(double, n)
        with pytest.raises(StreamError, match="more chunks"):
            session.stream()
        assert len(session.result()) == 1500


def test_reading_the_stream_of_a_session(gate):
    """Another thread reads chunks while the block submits; the loop ends with the session."""
    with Flow() as flow:
        chunks = []
        with flow.session() as session:
            reader = threading.Thread(target=lambda: chunks.extend(session.stream()))
            reader.start()
            assert session.submit(double, 1).result() == 2
            until(lambda: chunks)
            session.submit(double, 2)
        reader.join(WATCHDOG)
        assert chunks == [StreamChunk("double", 2), StreamChunk("double#2", 4)]


@on_several_workers
def test_a_session_that_takes_too_long(executor):
    """Its timeout ends it: calls are cancelled, and the block raises RunTimeoutError."""
    with Flow(executor) as flow:
        with pytest.raises(RunTimeoutError), flow.session(timeout=0.02) as session:
            running = session.submit(lambda ctx: ctx.get("never", external=True))
            waiting = session.submit(double, running)
            assert running.wait()
            assert waiting.wait()
        assert session.status is Status.FAILED
        for handle in (running, waiting):
            with pytest.raises(TaskCancelledError):
                handle.result()


@on_several_workers
@pytest.mark.parametrize("how", ["session", "flow"])
def test_cancelling_a_session(executor, how):
    """session.cancel and flow.cancel_all end its calls and refuse new ones; the block raises RunCancelledError."""
    with Flow(executor) as flow:
        with pytest.raises(RunCancelledError), flow.session() as session:
            running = session.submit(lambda ctx: ctx.get("never", external=True))
            (session.cancel if how == "session" else flow.cancel_all)()
            assert running.wait(WATCHDOG)
            with pytest.raises(FlowClosedError):
                session.submit(double, 1)
        assert session.status is Status.CANCELLED
        assert running.cancelled()
        with flow.session() as another:
            assert another.submit(double, 1).result() == 2


@on_several_workers
def test_closing_the_flow_under_an_open_session(executor):
    """close cancels it; submitting is refused from then on."""
    flow = Flow(executor)
    with pytest.raises(RunCancelledError), flow.session() as session:
        running = session.submit(lambda ctx: ctx.get("never", external=True))
        flow.close()
        assert running.cancelled()
        for submit in (session.submit, flow.submit):
            with pytest.raises(FlowError):
                submit(double, 1)
    with pytest.raises(FlowClosedError):
        flow.session()
    with pytest.raises(FlowError):
        flow.submit(double, 1)


@two
def test_after_the_end_nothing_is_submitted(executor):
    """A session that has ended, a block that was left, and a closed flow refuse calls; handles still answer."""
    flow = Flow(executor)
    with pytest.raises(FlowError, match="with"):
        flow.submit(double, 1)
    with pytest.raises(FlowError, match="with"):
        square.submit(1)
    with flow.session() as session:
        handle = session.submit(double, 1)
        assert session.submit(double, 2).result() == 4
    with pytest.raises(FlowClosedError, match=session.id):
        session.submit(double, 1)
    with pytest.raises(FlowError):
        flow.submit(double, 1)
    with flow:
        assert flow.submit(double, 1).result() == 2
    for submit in (flow.submit, session.submit):
        with pytest.raises(FlowError):
            submit(double, 1)
    with pytest.raises(FlowError):
        square.submit(1)
    assert handle.result() == 2
    assert handle.cancel() is False
    with pytest.raises(FlowClosedError), flow:
        pass
    session.close()
    session.cancel()
    assert session.status is Status.SUCCESS


@two
def test_closing_a_session_by_hand(executor):
    """Without a with block close waits and raises; inside one it may come early."""
    with Flow(executor) as flow:
        session = flow.session()
        session.submit(fails)
        with pytest.raises(ValueError, match="mine"):
            session.close()
        with flow.session() as session:
            handle = session.submit(double, 1)
            session.close()
            assert handle.done()
            with pytest.raises(FlowClosedError):
                session.submit(double, 1)


@on_several_workers
def test_two_sessions_at_once(executor, gate):
    """Each has its own calls, context and end; one that is cancelled leaves the other alone."""
    with Flow(executor) as flow:
        with flow.session("one") as one:
            with pytest.raises(RunCancelledError), flow.session("two") as two:
                slow = one.submit(gate, 1)
                other = two.submit(lambda ctx: ctx.get("never", external=True))
                one.context.set("key", 1)
                assert "key" not in two.context
                two.cancel()
                assert other.wait(WATCHDOG)
            assert not slow.done()
            gate.open.set()
            assert slow.result() == 1
        assert (one.status, two.status) == (Status.SUCCESS, Status.CANCELLED)
        assert flow.report("two" if flow.report().run_id == "two" else "one").run_id


@on_several_workers
def test_a_session_and_runs_side_by_side(flow):
    """A run inside the block, and one inside a call, belong to themselves."""

    @flow.task
    def start():
        return flow.submit(lambda: current_task().run_id).result()

    with flow, flow.session("session") as session:
        ours = flow.run("start", run_id="run")["start"]
        nested = session.submit(lambda: flow.run("start", run_id="nested")["start"]).result()
        mine = session.submit(lambda: current_task().run_id).result()
    assert (ours, nested, mine) == ("run", "nested", "session")
    assert session.result().keys() == {"lambda", "lambda#2"}


def test_calls_that_wait_for_another_session():
    """A call may wait for a call of another session; its place is lent meanwhile."""
    with ThreadExecutor(1) as executor, Flow(executor) as flow, flow.session() as one, flow.session() as two:
        first = one.submit(lambda ctx: ctx.get("key", external=True))
        second = two.submit(lambda: first.result())
        third = two.submit(lambda: one.context.set("key", 3))
        assert second.result(WATCHDOG) == 3
        assert third.result() is None


def test_async_blocks(executor):
    """async with flow and async with flow.session() wait for calls without blocking the loop, and raise."""

    async def main():
        async with Flow(executor) as flow:
            flow.submit(double_later, 1)
            late = square.submit(3)
            async with flow.session() as session:
                inner = session.submit(double, 5)
                session.submit(gate_later, asyncio.get_running_loop(), opened)
                asyncio.get_running_loop().call_soon(opened.set)
            assert inner.done()
            assert session.result() == {"double": 10, "gate_later": True}
        assert late.result() == 9
        with pytest.raises(ValueError, match="mine"):
            async with Flow(executor) as flow:
                flow.submit(fails)
        with pytest.raises(LookupError, match="block"):
            async with Flow(executor) as flow, flow.session() as session:
                waiting = session.submit(asyncio.sleep, WATCHDOG) if not is_inline(flow) else session.submit(double, 1)
                raise LookupError("block")
        assert waiting.done()
        assert session.status is Status.CANCELLED

    async def gate_later(loop, opened):
        while not opened.is_set():  # which the caller's loop sees to
            await asyncio.sleep(0.001)
        return True

    opened = threading.Event()
    asyncio.run(main())


def is_inline(flow: Flow) -> bool:
    return flow._settings["executor"] == "inline"


@pytest.mark.parametrize("executor", ["thread", "asyncio"], indirect=True)
def test_cancelling_who_waits_at_the_end_of_an_async_block(executor):
    """The session is cancelled with him, and its calls are told."""
    stopped = threading.Event()

    async def main():
        entered = asyncio.Event()

        async def block():
            async with Flow(executor) as flow, flow.session() as session:

                async def sleeps():
                    try:
                        await asyncio.sleep(WATCHDOG)
                    finally:
                        stopped.set()

                handle = session.submit(sleeps)
                until(lambda: handle.status is Status.RUNNING)
                asyncio.get_running_loop().call_soon(entered.set)
                sessions.append(session)

        sessions = []
        blocking = asyncio.create_task(block())
        await entered.wait()
        blocking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await blocking
        assert sessions[0].status is Status.CANCELLED
        assert stopped.wait(WATCHDOG)

    asyncio.run(main())


def test_an_awaited_session_gives_its_result():
    """A session is awaitable as any run is."""

    async def main():
        async with Flow() as flow:
            async with flow.session() as session:
                session.submit(double, 1)
            assert await session == {"double": 2}

    asyncio.run(main())


def test_hooks_are_told_of_sessions_and_calls():
    """A session is a run for hooks, and each call a task of it."""
    told = []
    hook = fn_hook(
        on_run_start=lambda event: told.append(("start", event.run_id)),
        on_task_start=lambda event: told.append(("begins", event.id)),
        on_task_success=lambda event: told.append(("good", event.id, event.output)),
        on_task_failure=lambda event: told.append(("bad", event.id, type(event.error))),
        on_run_end=lambda event: told.append(("end", str(event.status))),
    )
    with Flow("inline", hooks=[hook]) as flow:
        with flow.session("s") as session:
            session.submit(double, 1)
            assert session.submit(fails).exception() is not None
        assert told == [
            ("start", "s"),
            ("begins", "double"),
            ("good", "double", 2),
            ("begins", "fails"),
            ("bad", "fails", ValueError),
            ("end", "FAILED"),
        ]


# ---- many threads, many flows -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["inline", "thread", "asyncio", "pool-1"])
def test_eight_threads_submit_at_once(kind):
    """The first call opens one session, whoever makes it; all calls end up there, and nothing hangs."""
    starts = []
    with opened(kind) as executor:
        for hooks in ([], [fn_hook(on_run_start=lambda event: starts.append(event.run_id))]):
            handles = []
            with Flow(executor, hooks=hooks) as flow:

                def submits(flow=flow, handles=handles):
                    mine = [flow.submit(double, n) for n in range(20)]
                    assert [handle.result() for handle in mine] == [2 * n for n in range(20)]
                    handles.extend(mine)

                run_threads(*[submits] * 8)
            report = flow.report()
            assert len({handle.id for handle in handles}) == 160
            assert report.tasks["double"].runs == 160
    assert starts == [report.run_id]


@pytest.mark.parametrize("kind", ["inline", "thread", "asyncio"])
def test_leaving_while_others_are_busy(kind):
    """Whatever workers and other threads do at that moment, the end of a block is the same."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(25):
            handles = []

            def busy(flow, handles):
                for n in range(10):
                    handles.append(flow.submit(double_later if n % 3 else double, n))
                    if n % 2:
                        handles[n // 2].cancel()

            with Flow(kind, max_parallel=3) as flow:
                flow.submit(double, 1)
                run_threads(*[functools.partial(busy, flow, handles)] * 3)
            assert all(handle.done() for handle in handles)
    finally:
        sys.setswitchinterval(before)


def test_a_thread_submits_inline_while_another_works():
    """The inline executor works in the thread that waits: a call that another thread kept from it is not lost."""
    gate = Gate()
    results = []
    with Flow("inline") as flow, flow.session() as session:

        def first():
            results.append(session.submit(gate, 1).result())

        def second():
            assert gate.begun.wait(WATCHDOG)
            results.append(session.submit(double, 1).result())

        def third():
            assert gate.begun.wait(WATCHDOG)
            results.append(session.submit(double, 2).result(WATCHDOG))

        def fourth():
            assert gate.begun.wait(WATCHDOG)
            until(lambda: "3 under way" in repr(session))
            gate.open.set()

        run_threads(first, second, third, fourth)
    assert sorted(results) == [1, 2, 4]


@two
def test_the_ambient_flow(executor):
    """task.submit means the innermost block around, in order of nesting; the outer one is back after the inner."""
    with Flow(executor, name="outer") as outer:
        ran = [square.submit(1)]
        with Flow(executor, name="inner") as inner:
            ran.append(square.submit(2))
            assert outer.submit(double, 1).result() == 2
        ran.append(square.submit(3))
    assert [handle.result() for handle in ran] == [1, 4, 9]
    assert outer.report().tasks["square"].runs == 2
    assert inner.report().tasks["square"].runs == 1
    with pytest.raises(FlowError, match="square"):
        square.submit(4)


def test_the_ambient_flow_across_threads():
    """A thread of one's own knows it with a copy of the context variables; without it says what is missing."""
    with Flow() as flow, ThreadPoolExecutor(1) as helper:
        with pytest.raises(FlowError, match="with Flow"):
            helper.submit(square.submit, 3).result()
        mine = contextvars.copy_context()
        assert helper.submit(mine.run, square.submit, 3).result().result() == 9
        assert helper.submit(flow.submit, square, 4).result().result() == 16


@three
def test_task_submit_inside_a_task_means_its_run(executor):
    """Not the block around: a task of a flow submits to its own run, also from a nested block's task."""
    other = Flow(executor)

    @other.task
    def start():
        square.submit(3)

    with Flow(executor) as flow:
        square.submit(2)
        assert other.run("start")["square"] == 9
    assert flow.report().tasks["square"].runs == 1
    other.close()


@three
def test_a_block_inside_a_task(executor):
    """Inside a block that a task has entered, task.submit means that block."""

    def opens():
        with Flow("inline") as inner:
            return inner.submit(double, square.submit(3)).result()

    with Flow(executor) as flow:
        assert flow.submit(opens).result() == 18


def test_two_flows_on_a_pool_of_one():
    """A pool of one worker serves two flows whose calls wait, one inside the other."""
    with ThreadPoolExecutor(1) as pool, Flow(pool) as outer, Flow(pool) as inner:
        inner.submit(double, 0).result()

        def asks():
            return inner.submit(double, outer.submit(double, 1).result()).result()

        assert outer.submit(asks).result(WATCHDOG) == 4
        assert pool.submit(lambda: outer.submit(asks).result(WATCHDOG)).result(WATCHDOG) == 4


def test_an_executor_that_outlives_its_flows():
    """An executor passed in serves flow after flow, and a pool's own jobs get their turn."""
    with ThreadPoolExecutor(1) as pool, AsyncioExecutor(1) as loop:
        for executor in (pool, loop, pool):
            with Flow(executor) as flow:
                assert [flow.submit(fn, 1).result() for fn in (double, double_later)] == [2, 2]
        assert pool.submit(double, 4).result() == 8


def test_a_pool_that_is_shut_down():
    """A session on it ends with an error that says so; nothing hangs."""
    pool = ThreadPoolExecutor(1)
    with pytest.raises(FlowError, match="executor"), Flow(pool) as flow:
        assert flow.submit(double, 1).result() == 2
        pool.shutdown()
        handle = flow.submit(double, 1)
        assert handle.wait(WATCHDOG)


# ---- nothing is left behind -------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["inline", "thread", "asyncio", "pool-1"], indirect=True)
def test_what_calls_held_is_freed(executor):
    """Arguments and functions of calls that have ended are gone with their handles, in an open session."""

    class Big:
        pass

    alive = weakref.WeakSet()

    def big():
        value = Big()
        alive.add(value)
        return value

    with Flow(executor) as flow, flow.session() as session:
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                mine = big()
                session.submit(lambda mine=mine: None).result()
                session.submit(functools.partial(double, 2)).result()
                session.submit(lambda x: None, mine).result()
                session.submit(lambda x, y: None, session.submit(lambda: 1), [mine]).result()
                del mine
            until(lambda: not alive)
        finally:
            gc.enable()


@pytest.mark.parametrize("kind", ["thread", "asyncio"])  # inline, an error has the frames of who waits behind its own
def test_no_circles_are_left(kind, gate):
    """When sessions, their handles and errors are dropped, the garbage collector finds nothing of ours."""

    def session_with_everything(flow):
        async def later():
            await asyncio.sleep(0)
            raise ValueError("later")

        with flow.session() as session:
            good = session.submit(double, 1)
            bad = session.submit(fails)
            after = [session.submit(double, bad), session.submit(add, good, 1), session.submit(later)]
            bad.exception()  # raised through this frame, it would keep the frame, and so itself, as every future's does
            after[2].exception()
            after[0].exception()
            good.add_done_callback(lambda handle: None)
            session.submit(lambda: flow.submit(double, 3).result()).result()

    flow = Flow(kind)
    session_with_everything(flow)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        session_with_everything(flow)
        flow.close()
        gc.collect()
        ours = {type(each).__name__ for each in gc.garbage if type(each).__module__.startswith("millstream")}
        assert ours == set()
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("kind", ["inline", "thread", "asyncio"])
def test_nothing_runs_on_after_the_block(kind):
    """No thread of the engine is left when the flow is closed, whatever its calls did."""
    before = engine_threads()
    with pytest.raises(ExceptionGroup), Flow(kind) as flow:
        flow.submit(fails)
        flow.submit(double, flow.submit(double_later, 1))
        flow.submit(fails)
        flow.submit(Task("flaky", fails, retries=2))
    assert_gone(engine_threads() - before)
