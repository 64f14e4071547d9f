"""Running flows: the five ways to run, nesting, limits of time and number, cancel, Ctrl-C, the end."""

# ruff: noqa: PT012 - loops and blocks are what is said to raise here

import asyncio
import contextvars
import functools
import logging
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from millstream import (
    AsyncioExecutor,
    Flow,
    InlineExecutor,
    NextTask,
    PoolExecutor,
    RunCancelledError,
    RunTimeoutError,
    Status,
    TaskCancelledError,
    TaskFailedError,
    TaskOutput,
    TaskRunLimitError,
    TaskTimeoutError,
    ThreadExecutor,
    current_task,
)
from tests.conftest import EACH_KIND, WATCHDOG, engine_threads, executors, run_snippet, until, wait_for

executor = executors(EACH_KIND)


def until_told():
    """Work until told to stop, as a well-behaved long task does."""
    limit = time.monotonic() + WATCHDOG
    while time.monotonic() < limit:
        current_task().raise_if_cancelled()
        time.sleep(0.001)


# ---- run, start, arun -----------------------------------------------------------------------------


def add_orders(flow):
    """Register a small flow with lists, joins and a coroutine."""

    @flow.task
    def split(n):
        parts = [NextTask("part", {"n": i}, spawn_another=True) for i in range(n)]
        return [*parts, NextTask("merge", join=True)]

    @flow.task
    async def part(n):
        await asyncio.sleep(0)
        return n * n

    @flow.task
    def merge(upstream):
        return sum(upstream)


def test_run_start_and_arun_give_the_same(flow):
    """The results are the outputs of the terminal task runs, by id."""
    add_orders(flow)
    assert flow.run("split", {"n": 5}) == {"merge": 30}
    assert flow.start("split", {"n": 5}).result(WATCHDOG) == {"merge": 30}

    async def main():
        run = flow.start("split", {"n": 5})
        return await flow.arun("split", {"n": 5}), await run

    assert asyncio.run(main()) == ({"merge": 30}, {"merge": 30})


def test_several_starts(flow):
    """Each of several tasks gets the inputs; one may be named more than once."""
    flow.add_task("a", lambda x: x + 1)
    flow.add_task("b", lambda x: x * 10)
    assert flow.run(["a", "b", "a"], {"x": 5}) == {"a": 6, "b": 50, "a#2": 6}
    assert flow.run(("b",), {"x": 1}) == {"b": 10}
    assert flow.run((name for name in "ab"), {"x": 1}) == {"a": 2, "b": 10}


def test_the_entry_and_the_only_task():
    """Without a start the declared entry is used, else the only task."""
    with Flow("inline", entry="second") as flow:
        flow.add_task("first", lambda: 1)
        flow.add_task("second", lambda: 2)
        assert flow.entry == "second"
        assert flow.run() == {"second": 2}
        assert flow.run("first") == {"first": 1}
        assert list(flow.stream()) == [("second", 2)]
    with Flow("inline") as flow:
        flow.add_task("only", lambda: 1)
        assert flow.entry is None
        assert flow.run() == {"only": 1}


def test_a_run_sees_the_registry_as_of_its_start():
    """Tasks registered or replaced meanwhile are for later runs, except by name in a fresh one."""
    started, go = threading.Event(), threading.Event()
    with Flow() as flow:

        @flow.task
        def first():
            started.set()
            wait_for(go)
            return NextTask("second")

        flow.add_task("second", lambda: "old")
        run = flow.start("first")
        wait_for(started)
        flow.add_task("second", lambda: "new", replace=True)
        flow.add_task("third", lambda: 3)
        go.set()
        assert run.result(WATCHDOG) == {"second": "old"}
        assert flow.run("second") == {"second": "new"}


def test_result_may_be_asked_again_and_by_many(executor):
    """result returns or raises the same, in any thread, as often as it is asked."""
    go = threading.Event()
    with Flow(executor) as flow, ThreadPoolExecutor(3) as pool:
        flow.add_task("a", lambda: "output")
        flow.add_task("b", lambda: 1 / 0)
        run, failing = flow.start("a"), flow.start("b")
        go.set()
        asked = [pool.submit(run.result, WATCHDOG) for _ in range(3)]
        assert [each.result() for each in asked] == [{"a": "output"}] * 3
        asked = [pool.submit(failing.result, WATCHDOG) for _ in range(3)]
        assert [type(each.exception()) for each in asked] == [ZeroDivisionError] * 3


def test_result_with_a_timeout_leaves_the_run_going():
    """result(timeout) and wait(timeout) give up waiting, and nothing else."""
    go = threading.Event()
    with Flow() as flow:
        flow.add_task("slow", lambda: go.wait(WATCHDOG))
        run = flow.start(run_id="orders-7")
        with pytest.raises(TimeoutError, match="orders-7") as caught:
            run.result(timeout=0.01)
        assert not isinstance(caught.value, RunTimeoutError)
        with pytest.raises(TimeoutError):
            run.result(timeout=0)
        assert run.wait(0.01) is False
        assert run.status is Status.RUNNING
        go.set()
        assert run.wait() is True
        assert run.wait(0) is True
        assert run.result() == {"slow": True}


def test_wait_does_not_raise_what_failed(flow):
    """It says that the run has ended; result raises."""
    flow.add_task("fails", lambda: 1 / 0)
    run = flow.start()
    assert run.wait(WATCHDOG) is True
    assert run.status is Status.FAILED
    with pytest.raises(ZeroDivisionError):
        run.result()


def test_an_inline_run_has_ended_when_start_returns():
    """Its errors wait for result."""
    with Flow("inline") as flow:
        flow.add_task("a", lambda: 1)
        flow.add_task("b", lambda: 1 / 0)
        assert flow.start("a").status is Status.SUCCESS
        assert flow.start("b").status is Status.FAILED


def test_a_run_can_be_awaited(flow):
    """await run gives what result gives, also twice and after the end."""
    add_orders(flow)
    flow.add_task("fails", lambda: 1 / 0)

    async def main():
        run = flow.start("split", {"n": 3})
        assert await run == await run == {"merge": 5}
        with pytest.raises(ZeroDivisionError):
            await flow.start("fails")

    asyncio.run(main())


def test_arun_never_blocks_the_loop(executor):
    """While tasks run on their executor the caller's loop does other things."""

    async def main():
        go = threading.Event()
        async with Flow(executor) as flow:
            flow.add_task("slow", lambda: go.wait(WATCHDOG))
            running = asyncio.create_task(flow.arun())
            await asyncio.sleep(0)
            go.set()
            return await running

    assert asyncio.run(main()) == {"slow": True}


def test_async_tasks_of_arun_run_on_the_callers_loop(executor):
    """They share the loop, its objects and its tasks; under run they have a loop of the flow's."""

    async def where():
        return asyncio.get_running_loop()

    async def main():
        async with Flow(executor) as flow:
            flow.add_task("where", where)
            mine = asyncio.get_running_loop()
            assert (await flow.arun())["where"] is mine
            assert flow.run()["where"] is not mine

    asyncio.run(main())


def test_a_cancelled_arun_cancels_the_run():
    """The awaiter is through only when the tasks have stopped."""

    async def main():
        started, stopped = asyncio.Event(), []
        async with Flow() as flow:

            @flow.task
            async def slow():
                started.set()
                try:
                    await asyncio.sleep(60)
                finally:
                    stopped.append(1)

            running = asyncio.create_task(flow.arun())
            await started.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert stopped == [1]

    asyncio.run(main())


def test_async_with_closes_after_the_runs_in_the_background():
    """async with waits for started runs, and cancels them after an exception."""

    async def main():
        seen = []
        async with Flow() as flow:
            flow.add_task("a", lambda: seen.append(1))
            flow.start()
        assert seen == [1]
        with pytest.raises(ZeroDivisionError):
            async with Flow() as flow:
                flow.add_task("b", until_told)
                run = flow.start()
                raise ZeroDivisionError
        assert run.status is Status.CANCELLED

    asyncio.run(main())


def test_with_closes_after_the_runs_in_the_background(executor):
    """with waits for started runs after a normal end, and cancels them after an exception."""
    seen = []
    with Flow(executor) as flow:
        flow.add_task("a", lambda: seen.append(1))
        run = flow.start()
    assert seen == [1]
    assert run.status is Status.SUCCESS
    if executor != "inline":
        with pytest.raises(ZeroDivisionError), Flow(executor) as flow:
            flow.add_task("b", until_told)
            run = flow.start()
            raise ZeroDivisionError
        assert run.status is Status.CANCELLED


def test_repr_tells_the_state_in_words():
    """A run says its id, state, what is under way and what it waits for."""
    go, started = threading.Event(), threading.Event()
    with Flow(name="orders", max_workers=2) as flow:

        @flow.task
        def slow():
            started.set()
            wait_for(go)

        flow.add_task("waits", lambda ctx: ctx.get("slow"))
        run = flow.start(["waits", "slow"], run_id="orders-7")
        wait_for(started)
        until(lambda: "waiting" in repr(run))
        assert repr(run) == "<FlowRun orders-7: running, 2 under way, 0 pending, waiting for 'slow'>"
        go.set()
        run.wait(WATCHDOG)
        assert repr(run) == "<FlowRun orders-7: success>"
        assert repr(flow) == "<Flow orders: 2 tasks>"
    assert repr(flow) == "<Flow orders: 2 tasks, closed>"


def test_run_ids():
    """A run's id is the one given, else made up and different each time."""
    with Flow("inline", name="orders") as flow:
        flow.add_task("a", lambda: current_task().run_id)
        assert flow.run(run_id="mine") == {"a": "mine"}
        one, two = flow.start(), flow.start()
        assert one.id != two.id
        assert one.id.startswith("orders-")
        assert one.result() == {"a": one.id}


# ---- nesting --------------------------------------------------------------------------------------


def add_nested(flow):
    """Register a task that runs the flow in itself, to some depth, on every second level async."""

    @flow.task
    def plain(depth):
        if depth == 0:
            return 0
        (value,) = flow.run("plain", {"depth": depth - 1}).values()
        return value + 1

    @flow.task
    async def coroutine(depth):
        if depth == 0:
            return 0
        (value,) = (await flow.arun("coroutine", {"depth": depth - 1})).values()
        return value + 1


def test_nested_runs(flow):
    """A run inside a task of the same flow, several levels deep."""
    add_nested(flow)
    assert flow.run("plain", {"depth": 5}) == {"plain": 5}
    assert flow.run("coroutine", {"depth": 5}) == {"coroutine": 5}


@pytest.mark.parametrize("kind", ["inline", "thread", "asyncio", "pool", "wrapped pool", "shared thread"])
def test_nested_runs_on_one_worker(kind):
    """Waiting gives the place back: many nested runs at once end with one worker."""
    with ThreadPoolExecutor(1) as pool, ThreadExecutor(1) as shared:
        where = {"pool": pool, "wrapped pool": PoolExecutor(pool), "shared thread": shared}.get(kind, kind)
        with Flow(where, **({"max_workers": 1} if where in ("thread", "asyncio") else {})) as flow:
            add_nested(flow)
            run = flow.start(["plain"] * 5, {"depth": 4})
            assert set(run.result(5).values()) == {4}


@functools.cache
def said_of(code):
    """Run code that prints one line for each kind of executor in a fresh interpreter; return each kind's lines."""
    said = {}
    for line in run_snippet(code).splitlines():
        kind, _, rest = line.partition(": ")
        said.setdefault(kind, []).append(rest)
    return said


NESTED_FLOWS = """
    from concurrent.futures import ThreadPoolExecutor
    from millstream import Flow, PoolExecutor, ThreadExecutor

    pools = [ThreadPoolExecutor(1), ThreadPoolExecutor(1)]
    kinds = {"pool": pools[0], "one PoolExecutor": PoolExecutor(pools[1]), "thread executor": ThreadExecutor(1)}
    for kind, where in kinds.items():
        one, two = Flow(where), Flow(where)
        one.add_task("a", lambda: two.run("b")["b"])
        two.add_task("b", lambda: one.run("c")["c"])
        one.add_task("c", lambda: "inside")
        print(f"{kind}: {one.run('a')}")
        print(f"{kind}: {list(two.stream('b'))}")
    """


@pytest.mark.parametrize("kind", ["pool", "one PoolExecutor", "thread executor"])
def test_flows_that_nest_each_other_on_one_worker(kind):
    """Two flows on one executor of one worker: a task of one runs the other, which runs the first."""
    said = said_of(NESTED_FLOWS)
    assert said[kind] == ["{'a': 'inside'}", "[StreamChunk(task_id='b', value='inside')]"]


BLOCKED_LOOP = """
    from concurrent.futures import ThreadPoolExecutor
    from millstream import Flow

    for kind in "inline", "thread", "asyncio", "pool":
        flow = Flow(ThreadPoolExecutor(1) if kind == "pool" else kind)

        @flow.task
        async def outer(depth):
            return flow.run("inner", {"depth": depth})["inner"]

        @flow.task
        async def inner(depth):
            return depth and flow.run("inner", {"depth": depth - 1})["inner"] + 1

        print(f"{kind}: {flow.run('outer', {'depth': 3})}")
    """


@pytest.mark.parametrize("kind", EACH_KIND)
def test_a_sync_run_inside_a_coroutine_task(kind):
    """flow.run works in a coroutine task although it blocks the loop that the task is on."""
    assert said_of(BLOCKED_LOOP)[kind] == ["{'outer': 3}"]


COROUTINE_PLAIN_COROUTINE = """
    from concurrent.futures import ThreadPoolExecutor
    from millstream import Flow

    for kind in "inline", "thread", "asyncio", "pool":
        flow = Flow(ThreadPoolExecutor(1) if kind == "pool" else kind)

        @flow.task
        async def outer():
            return flow.run("middle")["middle"]

        @flow.task
        def middle():
            return flow.run("inner")["inner"]

        @flow.task
        async def inner():
            return "inside"

        print(f"{kind}: {flow.run('outer')}")
    """


@pytest.mark.parametrize("kind", EACH_KIND)
def test_coroutine_plain_coroutine(kind):
    """A coroutine task runs a plain task, which runs a coroutine task, all by the blocking run."""
    assert said_of(COROUTINE_PLAIN_COROUTINE)[kind] == ["{'outer': 'inside'}"]


def test_a_run_inside_a_thread_of_the_same_pool():
    """Code on a pool of one that runs a flow on that pool: a spare thread does the work."""
    done = run_snippet("""
        from concurrent.futures import ThreadPoolExecutor
        from millstream import Flow

        pool = ThreadPoolExecutor(1)
        flow = Flow(pool)
        flow.add_task("a", lambda: 1)
        flow.add_task("b", lambda ctx: ctx.get("a"))
        print(pool.submit(lambda: flow.run(["b", "a"])).result())
        print(pool.submit(lambda: len(list(flow.stream(["b", "a"], buffer=1)))).result())
        print(pool.submit(lambda: flow.start("a").result()).result())
        """)
    assert done.splitlines() == ["{'a': 1, 'b': 1}", "2", "{'a': 1}"]


def test_run_and_stream_in_a_running_loop(flow):
    """As in a notebook: the blocking calls work while a loop runs in this very thread."""
    add_orders(flow)

    async def main():
        assert flow.run("split", {"n": 3}) == {"merge": 5}
        assert flow.start("split", {"n": 3}).result(WATCHDOG) == {"merge": 5}
        assert len(list(flow.stream("split", {"n": 3}))) == 5

    asyncio.run(main())


def test_a_nested_run_that_fails(flow):
    """Its exception passes through the task that waits for it, as itself."""
    mine = ZeroDivisionError("mine")

    def fails():
        raise mine

    flow.add_task("inner", fails)
    flow.add_task("outer", lambda: flow.run("inner"))
    with pytest.raises(ZeroDivisionError) as caught:
        flow.run("outer")
    assert caught.value is mine
    assert [note.split(" of ")[0] for note in mine.__notes__] == ["In task run inner", "In task run outer"]


# ---- limits of time -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["run", "start", "arun"])
def test_the_timeout_of_a_run(executor, how):
    """run(timeout=) raises RunTimeoutError, a TimeoutError that names run and limit; tasks are told."""
    told = threading.Event()

    def slow():
        try:
            until_told()
        finally:
            told.set()

    with Flow(executor) as flow:
        flow.add_task("slow", slow)
        options = {"timeout": 0.03, "run_id": "orders-7"}
        with pytest.raises(RunTimeoutError, match=r"Run orders-7 took longer than its timeout of 0.03 s") as caught:
            if how == "run":
                flow.run(**options)
            elif how == "start":
                flow.start(**options).result(WATCHDOG)
            else:
                asyncio.run(flow.arun(**options))
        assert isinstance(caught.value, TimeoutError)
        wait_for(told)


def test_a_run_that_is_quick_enough(flow):
    """A generous limit changes nothing, and its timer is gone afterwards."""
    before = engine_threads("millstream-clock")
    flow.add_task("a", lambda: 1, timeout=60)
    assert flow.run(timeout=60) == {"a": 1}
    until(lambda: not engine_threads("millstream-clock") - before)


def test_the_timeout_of_a_task(executor):
    """A thread's attempt is told and given up; the error names the task run; its worker is replaced."""
    told = []

    def slow():
        try:
            until_told()
        except TaskCancelledError as error:
            told.append(str(error))
            raise

    with Flow(executor) as flow:
        flow.add_task("slow", slow, timeout=0.03)
        flow.add_task("quick", lambda: 1, timeout=60)
        with pytest.raises(TaskTimeoutError, match=r"Task run slow took longer than its timeout of 0.03 s") as caught:
            flow.run("slow")
        assert isinstance(caught.value, TimeoutError)
        until(lambda: told == ["Task run slow was told to stop."])
        assert flow.run("quick") == {"quick": 1}


def test_a_task_that_is_stuck_does_not_hold_up_the_run():
    """The caller has the error while the task is still inside; one worker stays usable."""
    go, done = threading.Event(), threading.Event()
    with Flow(max_workers=1) as flow:

        @flow.task(timeout=0.03)
        def stuck():
            wait_for(go)
            done.set()

        flow.add_task("quick", lambda: 1)
        for _ in range(3):
            with pytest.raises(TaskTimeoutError):
                flow.run("stuck")
            assert not done.is_set()
            assert flow.run("quick") == {"quick": 1}
        go.set()
        wait_for(done)


def test_the_timeout_of_a_coroutine_cancels_it(flow):
    """It is cancelled where it awaits, and its finally runs before the run ends."""
    ended = []

    @flow.task(timeout=0.03)
    async def slow():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(current_task().cancelled is not None)

    with pytest.raises(TaskTimeoutError, match="slow"):
        flow.run()
    assert ended == [True]


def test_a_coroutine_that_ignores_cancel_is_given_up(flow, short_grace):
    """It is left behind after a moment, and the flow goes on."""
    stop = threading.Event()
    over = threading.Event()

    @flow.task(timeout=0.03)
    async def stubborn():
        while not stop.is_set():
            try:
                await asyncio.sleep(0.005)
            except asyncio.CancelledError:
                pass
        over.set()

    async def quick():
        return 1

    flow.add_task("quick", quick)
    with pytest.raises(TaskTimeoutError):
        flow.run("stubborn")
    assert not over.is_set()
    assert flow.run("quick") == {"quick": 1}
    stop.set()
    wait_for(over)


def test_a_coroutine_that_blocks_its_loop_is_given_up():
    """Even a loop that cannot be reached any more does not hold up the caller."""
    go = threading.Event()
    with Flow() as flow:

        @flow.task(timeout=0.03)
        async def blocking():
            go.wait(WATCHDOG)

        with pytest.raises(TaskTimeoutError):
            flow.run()
        go.set()


def test_a_tasks_own_timeout_error_is_its_own(flow):
    """It is never taken for ours."""

    def fails():
        raise TimeoutError("mine")

    async def waits():
        async with asyncio.timeout(0.001):
            await asyncio.sleep(60)

    flow.add_task("fails", fails, timeout=60)
    flow.add_task("waits", waits, timeout=60)
    for name in ("fails", "waits"):
        with pytest.raises(TimeoutError) as caught:
            flow.run(name)
        assert type(caught.value) is TimeoutError


def test_a_timeout_is_for_each_task_run(flow):
    """A chain that takes longer than the limit of one task is fine."""

    @flow.task(timeout=60)
    def step(n):
        return [NextTask("step", {"n": n - 1}, spawn_another=True)] if n else current_task().time_remaining() > 30

    assert flow.run("step", {"n": 200}) == {"step#201": True}


def test_a_task_with_a_timeout_that_is_taken_while_its_run_ends(monkeypatch):
    """A worker that takes a task run just as the run stops reports it as cancelled, and comes back."""
    from millstream.engine import lane

    class Late:
        """What a worker sets when it has taken a task run, and before it begins that."""

        def set(self, item):
            current_run.set(item)
            if item.name == "timed":
                runs[0].cancel()

    current_run, runs = lane.current_run, []
    monkeypatch.setattr(lane, "current_run", Late())
    ran, go = [], threading.Event()
    with Flow(max_workers=1) as flow:

        @flow.task
        def first():
            wait_for(go)
            return NextTask("timed")

        flow.add_task("timed", lambda: ran.append(1), timeout=60)
        flow.add_task("after", lambda: "after")
        runs.append(flow.start("first"))
        go.set()
        with pytest.raises(RunCancelledError):
            runs[0].result(WATCHDOG)
        assert ran == []
        assert flow.start("after").result(5) == {"after": "after"}


# ---- cancel ---------------------------------------------------------------------------------------


def test_cancel(executor):
    """What runs is told, what is pending never starts, result raises RunCancelledError."""
    if executor == "inline":
        pytest.skip("an inline run has ended when start returns")
    started, told, ran = threading.Event(), [], []
    with Flow(executor, max_parallel=1) as flow:

        @flow.task
        def slow():
            started.set()
            try:
                until_told()
            except TaskCancelledError:
                told.append(current_task().cancelled)
                raise

        flow.add_task("never", lambda: ran.append(1))
        run = flow.start(["slow", "never"], run_id="orders-7")
        wait_for(started)
        run.cancel()
        run.cancel()
        with pytest.raises(RunCancelledError, match="Run orders-7 was cancelled") as caught:
            run.result(WATCHDOG)
        assert isinstance(caught.value, CancelledError)
        assert (told, ran, run.status) == ([True], [], Status.CANCELLED)


def test_cancel_from_inside_a_task(flow):
    """A task may cancel its own run; it learns so at once."""

    @flow.task
    def a():
        flow.cancel_all()
        assert current_task().cancelled
        current_task().raise_if_cancelled()

    run = flow.start()
    with pytest.raises(RunCancelledError):
        run.result(WATCHDOG)


def test_cancel_after_the_end_changes_nothing(flow):
    """A run that has ended keeps its result."""
    flow.add_task("a", lambda: 1)
    run = flow.start()
    run.wait(WATCHDOG)
    run.cancel()
    flow.cancel_all()
    assert run.result() == {"a": 1}
    assert run.status is Status.SUCCESS


def test_cancel_wakes_who_waits_for_a_value(executor):
    """A blocked get raises TaskCancelledError in a task that was told to stop."""
    if executor == "inline":
        pytest.skip("an inline run has ended when start returns")
    raised, waits = [], threading.Event()

    def wait(ctx):
        waits.set()
        try:
            ctx.get("never", external=True)
        except BaseException as error:
            raised.append(type(error))
            raise

    with Flow(executor) as flow:
        flow.add_task("wait", wait)
        run = flow.start()
        wait_for(waits)
        run.cancel()
        with pytest.raises(RunCancelledError):
            run.result(WATCHDOG)
        assert raised == [TaskCancelledError]


def test_cancel_all_ends_every_run_of_the_flow():
    """And of no other flow."""
    with Flow() as flow, Flow() as other:
        go = threading.Event()
        flow.add_task("slow", until_told)
        other.add_task("slow", lambda: go.wait(WATCHDOG))
        runs, spared = [flow.start() for _ in range(3)], other.start()
        flow.cancel_all()
        for run in runs:
            with pytest.raises(RunCancelledError):
                run.result(WATCHDOG)
        go.set()
        assert spared.result(WATCHDOG) == {"slow": True}


def test_a_coroutine_returned_by_a_plain_function_of_a_cancelled_run():
    """It is never begun and closed in order: no `never awaited` warning, no hang."""

    async def later():
        return 1

    with Flow() as flow:

        @flow.task
        def plain():
            flow.cancel_all()
            return later()

        run = flow.start()
        with pytest.raises(RunCancelledError):
            run.result(WATCHDOG)


def test_a_task_that_cleans_up_after_cancel_may_take_its_time():
    """A short clean-up is waited for; its errors are logged and not lost."""
    cleaned = []
    with Flow() as flow:
        started = threading.Event()

        @flow.task
        def slow():
            started.set()
            try:
                until_told()
            finally:
                time.sleep(0.02)
                cleaned.append(1)

        run = flow.start()
        wait_for(started)
        run.cancel()
        run.wait(WATCHDOG)
        assert cleaned == [1]


# ---- Ctrl-C ---------------------------------------------------------------------------------------


def interrupted(code, times=1):
    """Run code until it prints ``ready``, send Ctrl-C, each further one after ``again``; return its lines."""
    command = [sys.executable, "-u", "-c", textwrap.dedent(code)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    watchdog = threading.Timer(15, process.kill)
    watchdog.start()
    try:
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if lines[-1] in ("ready", "again"):
                time.sleep(0.05)  # until its main thread waits, which nothing tells
                process.send_signal(signal.SIGINT)
        process.wait()
    finally:
        watchdog.cancel()
        process.stdout.close()
    assert process.returncode != -signal.SIGKILL, ["it did not end", *lines]
    return [line for line in lines if line not in ("ready", "again")]


@pytest.mark.parametrize("way", ["run", "stream"])
@pytest.mark.parametrize("kind", ["thread", "asyncio", "pool"])
def test_ctrl_c_cancels_the_run(way, kind):
    """KeyboardInterrupt reaches the caller, the task is told, pending ones never start, the flow ends."""
    lines = interrupted(f"""
        import threading, time
        from concurrent.futures import ThreadPoolExecutor
        from millstream import Flow, current_task

        with Flow(ThreadPoolExecutor(2) if {kind!r} == "pool" else {kind!r}, max_parallel=1) as flow:
            @flow.task
            def slow(ctx):
                ctx.emit("ready")
                print("ready")
                while not current_task().cancelled:
                    time.sleep(0.001)
                print("told")

            flow.add_task("never", lambda: print("started"))
            try:
                if {way!r} == "run":
                    flow.run(["slow", "never"])
                else:
                    for chunk in flow.stream(["slow", "never"]):
                        pass
            except KeyboardInterrupt:
                print("interrupted")
            flow.add_task("good", lambda: "works")
            print(flow.run("good"))
        print(sum(thread.name.startswith("millstream") for thread in threading.enumerate()))
        """)
    assert lines == ["told", "interrupted", "{'good': 'works'}", "0"]


@pytest.mark.parametrize("way", ["run", "stream", "start"])
def test_ctrl_c_while_a_run_is_started(way, monkeypatch):
    """KeyboardInterrupt on the way into a run leaves no run behind that nobody knows of.

    A part that lies forces it: the interrupt comes when the first worker was sent for.
    """
    from millstream.executors.places import Places

    request, main, told = Places.request, threading.current_thread(), threading.Event()

    def interrupted_request(places, lane):
        request(places, lane)
        if threading.current_thread() is main:
            monkeypatch.setattr(Places, "request", request)
            raise KeyboardInterrupt

    def slow():
        try:
            until_told()
        finally:
            told.set()

    with Flow() as flow:
        flow.add_task("slow", slow)
        monkeypatch.setattr(Places, "request", interrupted_request)
        with pytest.raises(KeyboardInterrupt):
            getattr(flow, way)()
        assert told.wait(5), "the run goes on"


def test_ctrl_c_in_a_coroutine_task():
    """Async tasks are cancelled, and their finally runs before run raises."""
    lines = interrupted("""
        import asyncio
        from millstream import Flow

        with Flow() as flow:
            @flow.task
            async def slow():
                print("ready")
                try:
                    await asyncio.sleep(60)
                finally:
                    print("finally")

            try:
                flow.run()
            except KeyboardInterrupt:
                print("interrupted")
        """)
    assert lines == ["finally", "interrupted"]


def test_ctrl_c_in_an_inline_run():
    """It hits the task's own code: KeyboardInterrupt, or TaskFailedError from it; the flow goes on."""
    lines = interrupted("""
        import time
        from millstream import Flow

        with Flow("inline") as flow:
            @flow.task
            def slow():
                print("ready")
                time.sleep(60)

            try:
                flow.run()
            except BaseException as error:
                print(type(error.__cause__ or error).__name__)
            flow.add_task("good", lambda: "works")
            print(flow.run("good"))
        """)
    assert lines == ["KeyboardInterrupt", "{'good': 'works'}"]


@pytest.mark.parametrize("way", ["run", "stream"])
def test_a_second_ctrl_c_ends_the_waiting_at_once(way):
    """While a stuck task is given a moment to stop, another Ctrl-C gets through."""
    lines = interrupted(f"""
        import threading, time
        from millstream import Flow, current_task
        from millstream.engine import run
        run.GRACE = 5

        flow = Flow()

        @flow.task
        def stuck(ctx):
            ctx.emit(1)
            print("ready")
            while not current_task().cancelled:
                time.sleep(0.001)
            time.sleep(0.2)  # the main thread is in its wait for the end now
            print("again")
            time.sleep(60)

        began = time.monotonic()
        try:
            if {way!r} == "run":
                flow.run()
            else:
                for chunk in flow.stream():
                    pass
        except KeyboardInterrupt:
            print("interrupted")
        print("at once", time.monotonic() - began < 4)
        """)
    assert lines == ["interrupted", "at once True"]


def test_ctrl_c_while_the_loop_body_runs():
    """The loop is left as by any exception: the run is cancelled."""
    lines = interrupted("""
        import time
        from millstream import Flow, current_task

        with Flow() as flow:
            @flow.task
            def endless():
                try:
                    while True:
                        yield 1
                finally:
                    print("ended")

            def read():
                for chunk in flow.stream(buffer=1):
                    print("ready")
                    time.sleep(60)

            try:
                read()
            except KeyboardInterrupt:
                print("interrupted")
        """)
    assert sorted(lines) == ["ended", "interrupted"]


def test_ctrl_c_in_asyncio_run():
    """asyncio.run turns it into a cancel of arun, which cancels the run."""
    lines = interrupted("""
        import asyncio, time
        from millstream import Flow, current_task

        async def main():
            async with Flow() as flow:
                @flow.task
                def slow():
                    print("ready")
                    while not current_task().cancelled:
                        time.sleep(0.001)
                    print("told")

                await flow.arun()

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted")
        """)
    assert lines == ["told", "interrupted"]


# ---- current_task ---------------------------------------------------------------------------------


def test_current_task_is_inert_outside_a_run():
    """Empty names, no limits, never cancelled, a logger that works."""
    me = current_task()
    assert (me.name, me.id, me.key, me.run_id, me.attempt) == ("", "", "", "", 1)
    assert me.deadline is None
    assert me.time_remaining() is None
    assert me.cancelled is False
    assert me.raise_if_cancelled() is None
    me.logger.debug("nobody hears it")
    assert "outside" in repr(me)


def test_current_task_knows_its_task_run(flow):
    """Name, id and run id, in functions, generators and coroutines, and inert again afterwards."""

    def facts():
        me = current_task()
        return me.name, me.id, me.run_id, me.attempt

    def generator():
        yield facts()
        return facts()

    async def coroutine():
        await asyncio.sleep(0)
        return facts()

    flow.add_task("plain", facts)
    flow.add_task("generator", generator)
    flow.add_task("coroutine", coroutine)
    for name in ("plain", "generator", "coroutine"):
        assert flow.run([name] * 2, run_id="r") == {
            name: (name, name, "r", 1),
            f"{name}#2": (name, f"{name}#2", "r", 1),
        }
    assert current_task().id == ""


def test_current_task_reaches_helpers_and_copies_of_the_context(flow):
    """Functions that a task calls, tasks that a coroutine starts, threads with its variables."""

    def helper():
        return current_task().id

    @flow.task
    async def coroutine():
        inner = await asyncio.create_task(asyncio.to_thread(helper))
        return helper(), inner

    assert flow.run() == {"coroutine": ("coroutine", "coroutine")}


def test_keys_are_the_same_in_two_equal_runs(executor):
    """Keys come from run id and path, not from timing: two runs with one id have the same."""

    def keys(run_id, seed):
        found = {}
        with Flow(executor) as flow:

            @flow.task
            def grow(depth, name):
                time.sleep((hash((seed, name)) % 3) / 10_000)  # another order each time
                found[name] = current_task().key
                return [
                    NextTask("grow", {"depth": depth - 1, "name": f"{name}.{n}"}, spawn_another=True)
                    for n in range(3 if depth else 0)
                ]

            @flow.task
            def stream():
                for n in range(3):
                    yield NextTask("grow", {"depth": 1, "name": f"stream.{n}"}, spawn_another=True)

            @flow.task
            def lazy():
                return TaskOutput(
                    None, (NextTask("grow", {"depth": 0, "name": f"lazy.{n}"}, spawn_another=True) for n in range(20))
                )

            flow.add_task("root", lambda: NextTask("grow", {"depth": 2, "name": "root"}, spawn_another=True))
            flow.run(["root", "stream", "lazy"], run_id=run_id)
        return found

    one, two, other = keys("r", 1), keys("r", 2), keys("s", 1)
    assert one == two
    assert len(one) == 13 + 12 + 20
    assert len(set(one.values())) == len(one)
    assert not set(one.values()) & set(other.values())
    assert all(key.startswith("r:") for key in one.values())


def test_keys_are_the_same_in_another_process():
    """They depend on no hash seed."""
    code = """
        from millstream import Flow, NextTask, current_task

        with Flow("inline") as flow:
            flow.add_task("a", lambda: [NextTask("b", {"n": n}, True) for n in range(3)])
            flow.add_task("b", lambda n: current_task().key)
            print(flow.run("a", run_id="r"))
        """
    assert run_snippet(code) == run_snippet(code)


def test_deadline_and_time_remaining(flow):
    """The nearer one of the task's and the run's limit, in seconds; None without any."""

    def remaining():
        me = current_task()
        return me.time_remaining(), me.deadline is not None

    flow.add_task("timed", remaining, timeout=100)
    flow.add_task("free", remaining)
    assert flow.run("free") == {"free": (None, False)}
    nearer = [("timed", None, 60, 100), ("timed", 50, 20, 50), ("free", 50, 20, 50), ("timed", 500, 60, 100)]
    for name, limit, low, high in nearer:
        seconds, has_deadline = flow.run(name, timeout=limit)[name]
        assert low < seconds <= high
        assert has_deadline


def test_the_logger_of_a_task_carries_facts(flow, caplog):
    """Its records have run_id, task and attempt, below the logger millstream."""

    @flow.task
    def a():
        current_task().logger.warning("hello")

    with caplog.at_level(logging.WARNING, "millstream"):
        flow.run(["a", "a"], run_id="r")
    said = sorted((r.getMessage(), r.run_id, r.task, r.attempt) for r in caplog.records)
    assert said == [("hello", "r", "a", 1), ("hello", "r", "a#2", 1)]
    assert all(record.name.startswith("millstream") for record in caplog.records)


# ---- context variables ----------------------------------------------------------------------------

VARIABLE = contextvars.ContextVar("VARIABLE", default="default")


def test_tasks_see_the_context_variables_of_the_caller(flow):
    """As of the start of the run, in every kind of task, however deep."""

    async def coroutine():
        return VARIABLE.get()

    def generator():
        yield VARIABLE.get()
        return VARIABLE.get()

    flow.add_task("plain", lambda: [NextTask("coroutine"), NextTask("generator"), NextTask("leaf")])
    flow.add_task("leaf", lambda: VARIABLE.get())
    flow.add_task("coroutine", coroutine)
    flow.add_task("generator", generator)
    for value in ("one", "two"):
        token = VARIABLE.set(value)
        try:
            assert flow.run("plain") == {"coroutine": value, "generator": value, "leaf": value}
            assert asyncio.run(flow.arun("plain")) == {"coroutine": value, "generator": value, "leaf": value}
        finally:
            VARIABLE.reset(token)
    assert set(flow.run("plain").values()) == {"default"}


def test_what_a_task_sets_is_not_seen_by_other_tasks(flow):
    """Neither by those that it asks for, nor by the next on its worker, nor by the caller."""

    @flow.task
    def plain(n):
        before = VARIABLE.get()
        VARIABLE.set(f"plain {n}")
        return TaskOutput(before, [NextTask("coroutine", {"n": n}, spawn_another=True)] if n else [])

    @flow.task
    async def coroutine(n):
        before = VARIABLE.get()
        VARIABLE.set(f"coroutine {n}")
        await asyncio.sleep(0)
        assert VARIABLE.get() == f"coroutine {n}"
        return TaskOutput(before, [NextTask("generator", {"n": n}, spawn_another=True)])

    @flow.task
    def generator(n):
        yield VARIABLE.get()
        VARIABLE.set(f"generator {n}")
        yield NextTask("plain", {"n": n - 1}, spawn_another=True)

    token = VARIABLE.set("caller")
    try:
        chunks = list(flow.stream(["plain"] * 4, {"n": 10}))
        assert {chunk.value for chunk in chunks} == {"caller", None}
        assert VARIABLE.get() == "caller"
    finally:
        VARIABLE.reset(token)


def test_a_task_that_waits_leaks_nothing_into_what_it_waits_for(flow):
    """What starts because a task waits does not see that task's context variables."""

    async def value():
        return VARIABLE.get(), current_task().id

    def waits(ctx):
        VARIABLE.set("leak")
        return ctx.get("value")

    with Flow(max_parallel=1, max_workers=1) as flow:
        flow.add_task("waits", waits)
        flow.add_task("value", value)
        flow.add_task("after", lambda: VARIABLE.get())
        assert flow.run(["waits", "value", "after"])["value"] == ("default", "value")


def test_an_equal_value_is_not_the_same_value():
    """A coroutine task that sets a variable to something equal leaks it to nobody either."""
    variable = contextvars.ContextVar("variable")
    mine = []
    variable.set(mine)

    with Flow("asyncio") as flow:

        @flow.task
        async def sets():
            variable.set([])

        @flow.task
        async def reads():
            return variable.get() is mine

        assert flow.run(["sets", "reads"])["reads"] is True


# ---- failures -------------------------------------------------------------------------------------


def test_the_first_failure_is_raised_as_itself(flow):
    """The very exception of the task, with its traceback and a note of where it was."""
    mine = KeyError("mine")

    @flow.task
    def fails():
        raise mine

    with pytest.raises(KeyError) as caught:
        flow.run("fails", run_id="r")
    assert caught.value is mine
    assert mine.__notes__ == [f"In task run fails of flow run r ({flow.name})."]
    frames = []
    traceback = mine.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert frames[-1] == "fails"
    assert "_work" not in frames


def test_failures_at_the_same_time_are_a_group():
    """Independent failures of tasks that were already running come together, the first one first."""
    second_runs = threading.Event()
    with Flow(max_workers=3) as flow:

        @flow.task
        def first():
            wait_for(second_runs)
            raise ValueError("first")

        @flow.task
        def second():
            second_runs.set()
            until(lambda: current_task().cancelled)
            raise KeyError("second")

        @flow.task
        def consequence():
            until_told()

        with pytest.raises(ExceptionGroup, match="2 failures in run r") as caught:
            flow.run(["first", "second", "consequence"], run_id="r")
        assert [str(error) for error in caught.value.exceptions] == ["first", "'second'"]
        assert all("flow run r" in error.__notes__[0] for error in caught.value.exceptions)


def test_one_exception_of_two_tasks_is_raised_once(flow):
    """The same object raised by several tasks is one failure."""
    mine = ValueError("mine")
    barrier = threading.Barrier(2)

    def fails():
        barrier.wait(WATCHDOG)
        raise mine

    with Flow(max_workers=2) as flow:
        flow.add_task("fails", fails)
        with pytest.raises(ValueError, match="mine"):
            flow.run(["fails", "fails"])


def test_after_the_first_failure_nothing_new_starts(executor):
    """What was pending is cancelled."""
    ran = []
    with Flow(executor, max_parallel=1) as flow:
        flow.add_task("fails", lambda: 1 / 0)
        flow.add_task("after", lambda: ran.append(1))
        with pytest.raises(ZeroDivisionError):
            flow.run(["fails", "after", "after"])
        assert ran == []


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt("mine"), GeneratorExit(), asyncio.CancelledError("mine")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("kind", ["plain", "generator", "coroutine", "async generator"])
def test_a_base_exception_is_a_failure_of_its_task(flow, error, kind):
    """What is no Exception becomes a TaskFailedError from it; the process and the flow go on."""

    def plain():
        raise error

    def generator():
        yield 1
        raise error

    async def coroutine():
        raise error

    async def agenerator():
        yield 1
        raise error

    flow.add_task(
        "bad", {"plain": plain, "generator": generator, "coroutine": coroutine, "async generator": agenerator}[kind]
    )
    flow.add_task("good", lambda: 1)
    with pytest.raises(TaskFailedError, match="Task run bad raised") as caught:
        flow.run("bad")
    assert caught.value.__cause__ is error
    assert flow.run("good") == {"good": 1}


def test_a_task_that_cancels_itself_is_a_failure(flow):
    """concurrent.futures.CancelledError, an Exception, is raised as itself."""

    def fails():
        raise CancelledError("mine")

    flow.add_task("fails", fails)
    with pytest.raises(CancelledError, match="mine"):
        flow.run()


def test_a_group_raised_by_a_task_is_one_failure(flow):
    """An ExceptionGroup of the task's own passes as it is."""
    mine = ExceptionGroup("mine", [ValueError(1), KeyError(2)])

    def fails():
        raise mine

    flow.add_task("fails", fails)
    with pytest.raises(ExceptionGroup) as caught:
        flow.run()
    assert caught.value is mine


def test_errors_keep_nothing_alive():
    """What a failed run held is gone with its error, without the garbage collector."""
    import gc
    import weakref

    class Big:
        pass

    kept = []
    with Flow(max_workers=1) as flow:

        @flow.task
        def fails():
            big = Big()
            kept.append(weakref.ref(big))
            raise ValueError

        def attempt():
            try:
                flow.run()
            except ValueError:
                pass

        gc.collect()
        gc.disable()
        try:
            attempt()
            until(lambda: kept[0]() is None)
        finally:
            gc.enable()


# ---- limits of number -----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("is_async", [False, True])
def test_max_parallel_bounds_what_is_under_way(executor, limit, is_async):
    """Never more than so many task runs of one run at once, over all executors."""
    lock, now, most = threading.Lock(), 0, 0

    def enter(by):
        nonlocal now, most
        with lock:
            now += by
            most = max(most, now)

    def plain():
        enter(1)
        time.sleep(0.001)
        enter(-1)

    async def coroutine():
        enter(1)
        await asyncio.sleep(0.001)
        enter(-1)

    with Flow(executor, max_parallel=limit) as flow:
        flow.add_task("plain", plain)
        flow.add_task("other", coroutine if is_async else plain)
        flow.run(["plain", "other"] * 10)
    assert most <= limit


def test_those_that_wait_do_not_count_for_max_parallel(executor):
    """Blocked task runs make room."""
    with Flow(executor, max_parallel=1) as flow:
        flow.add_task("waits", lambda ctx: ctx.get("value"))
        flow.add_task("value", lambda: 5)
        assert set(flow.run(["waits"] * 10 + ["value"]).values()) == {5}


def test_a_nested_run_counts_for_itself(executor):
    """max_parallel is for one run: a task that waits for a nested run does not hold it up."""
    with Flow(executor, max_parallel=1) as flow:
        add_nested(flow)
        assert flow.run("plain", {"depth": 3}) == {"plain": 3}
        assert flow.run("coroutine", {"depth": 3}) == {"coroutine": 3}


def test_max_task_runs(executor):
    """A run may have exactly so many task runs; one more is a TaskRunLimitError."""
    with Flow(executor, max_task_runs=10) as flow:

        @flow.task
        def step(n):
            return [NextTask("step", {"n": n - 1}, spawn_another=True)] if n else "done"

        assert flow.run("step", {"n": 9}) == {"step#10": "done"}
        with pytest.raises(TaskRunLimitError, match="10 task runs"):
            flow.run("step", {"n": 10})
        assert flow.run("step", {"n": 9}) == {"step#10": "done"}


# ---- executors and flows --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [InlineExecutor, lambda: ThreadExecutor(2), lambda: AsyncioExecutor(2)])
def test_many_flows_on_one_executor(make):
    """One executor serves many flows and runs at once, and outlives them all."""
    with make() as executor:
        flows = []
        for n in range(5):
            flow = Flow(executor)
            flow.add_task("a", lambda n=n: n)
            flow.add_task("b", lambda ctx: ctx.get("a"))
            flows.append(flow)
        runs = [flow.start(["b", "a"]) for flow in flows for _ in range(3)]
        assert [run.result(WATCHDOG)["b"] for run in runs] == [n for n in range(5) for _ in range(3)]
        for flow in flows:
            flow.close()
        with Flow(executor) as flow:
            flow.add_task("a", lambda: "still open")
            assert flow.run() == {"a": "still open"}


def test_a_flow_does_not_close_a_pool_it_was_given():
    """The user's pool works on after the flow was closed."""
    with ThreadPoolExecutor(1, thread_name_prefix="mine") as pool:
        for where in (pool, PoolExecutor(pool)):
            with Flow(where) as flow:
                flow.add_task("a", lambda: threading.current_thread().name)
                assert flow.run() == {"a": "mine_0"}
        assert pool.submit(int, 5).result() == 5


def test_a_task_chooses_its_executor():
    """executor= of a task, by name or by object, beside the flow's default."""
    with ThreadPoolExecutor(1, thread_name_prefix="mine") as pool, Flow("inline") as flow:

        def where():
            return threading.current_thread().name

        flow.add_task("inline", where)
        flow.add_task("thread", where, executor="thread")
        flow.add_task("pool", where, executor=pool)
        results = flow.run(["inline", "thread", "pool"])
        assert results["inline"] == threading.current_thread().name
        assert results["thread"].startswith("millstream-thread")
        assert results["pool"].startswith("mine")


def test_a_pool_is_given_back_between_task_runs():
    """Other users of the pool get their turn while a long run goes on."""
    with ThreadPoolExecutor(1) as pool, Flow(pool) as flow:
        began = threading.Event()

        @flow.task
        def again(ctx):
            began.set()
            return [] if "stop" in ctx else NextTask("again")

        run = flow.start()
        wait_for(began)
        assert pool.submit(int, 5).result(WATCHDOG) == 5
        run.context.set("stop", 1)
        run.result(WATCHDOG)


def test_no_thread_is_left_after_close(executor):
    """After close there is no thread of the engine, whatever the flow did."""
    before = engine_threads()
    flow = Flow(executor)
    add_orders(flow)
    add_nested(flow)
    flow.add_task("waits", lambda ctx: ctx.get("never", 1, timeout=0.001))
    flow.add_task("slow", until_told, timeout=0.01)
    flow.run("split", {"n": 10})
    flow.run("plain", {"depth": 3})
    flow.run(["waits"] * 3, timeout=60)
    with pytest.raises(TimeoutError):
        flow.run("slow")
    flow.close()
    until(lambda: not engine_threads() - before)


def test_a_flow_that_is_dropped_leaves_no_thread():
    """Without close too: threads end when nobody can use the flow any more."""
    import gc

    before = engine_threads()

    def use():
        for where in ("inline", "thread", "asyncio"):
            flow = Flow(where)
            add_orders(flow)
            flow.run("split", {"n": 5})

    use()
    until(lambda: not gc.collect() and not engine_threads() - before)


def test_close_cancels_what_runs(executor):
    """close tells running tasks and returns soon; their runs are cancelled."""
    if executor == "inline":
        pytest.skip("an inline run has ended when start returns")
    flow = Flow(executor)
    flow.add_task("slow", until_told)
    run = flow.start()
    flow.close()
    assert run.status is Status.CANCELLED
    with pytest.raises(RunCancelledError):
        run.result(0)


def test_close_inside_a_task(executor):
    """A task may close its own flow: the run is cancelled, and nothing hangs."""
    before, flow, closed = engine_threads(), Flow(executor), []
    flow.add_task("closes", lambda: closed.append(flow.close()))
    run = flow.start()
    with pytest.raises(RunCancelledError):
        run.result(WATCHDOG)
    until(lambda: closed == [None])
    until(lambda: not engine_threads() - before)


# ---- the end of the interpreter -------------------------------------------------------------------

EXIT = """
import asyncio, sys, time
from concurrent.futures import ThreadPoolExecutor
from millstream import Flow, NextTask, PoolExecutor

pool = ThreadPoolExecutor(2)
flow = Flow({where})

@flow.task
def quick():
    return 1

@flow.task
async def aquick():
    return 1

@flow.task(executor={task_executor})
def endless():
    while True:
        yield 1

@flow.task(executor={task_executor})
def waits(ctx):
    return ctx.get("never", external=True)

@flow.task
async def awaits(ctx):
    return await ctx.aget("never", external=True)

@flow.task
def stuck(ctx):
    ctx.set("begun", True)
    time.sleep(60)

@flow.task
async def astuck(ctx):
    ctx.set("begun", True)
    await asyncio.sleep(60)

@flow.task
async def blocked(ctx):
    ctx.set("begun", True)
    time.sleep(60)
"""
WHERE = {"thread": "'thread'", "asyncio": "'asyncio'", "pool": "pool", "wrapped pool": "PoolExecutor(pool)"}
ENDS = {
    "never closed": "print(flow.run('quick'), flow.run('aquick'))",
    "stream abandoned": "stream = flow.stream('endless', buffer=1); next(stream)",
    "waiting for ever": "run = flow.start(['waits', 'awaits'])",
    "coroutine asleep": "run = flow.start('astuck'); run.context.get('begun')",
    "exception": "run = flow.start(['waits', 'astuck']); sys.exit(0)",
}
ENDS_OF_A_TASK = ["stream abandoned", "waiting for ever"]
TASK_EXECUTORS = ["pool", "PoolExecutor(pool)"]
LOOPS = ["thread", "asyncio"]
STUCK = {task: f"run = flow.start('{task}'); run.context.get('begun')" for task in ("blocked", "stuck")}


def ending(code, where="thread", task_executor=None):
    """Return a program that ends with this code."""
    return EXIT.format(where=WHERE[where], task_executor=task_executor) + code


PROGRAMS = {  # those that take longest come first
    **{(task, where): ending(STUCK[task], where) for task in STUCK for where in LOOPS},
    **{(end, where): ending(ENDS[end], where) for end in ENDS for where in WHERE},
    **{(of, end): ending(ENDS[end], task_executor=of) for of in TASK_EXECUTORS for end in ENDS_OF_A_TASK},
}


@pytest.fixture(scope="module")
def programs():
    """What becomes of all these programs, each in a fresh interpreter, a few of them at a time."""
    with ThreadPoolExecutor(4) as pool:
        yield {key: pool.submit(run_snippet, program, quiet=False) for key, program in PROGRAMS.items()}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("end", ENDS)
def test_the_interpreter_exits_at_once(programs, where, end):
    """A flow that was never closed, a stream that nobody reads, a task that waits: none keeps it alive."""
    programs[end, where].result()


@pytest.mark.parametrize("end", ENDS_OF_A_TASK)
@pytest.mark.parametrize("task_executor", TASK_EXECUTORS)
def test_the_interpreter_exits_at_once_with_a_pool_of_one_task(programs, task_executor, end):
    """The same when only a task, not the flow, was given the user's pool."""
    programs[task_executor, end].result()


@pytest.mark.parametrize("where", LOOPS)
@pytest.mark.parametrize("task", STUCK)
def test_the_interpreter_exits_with_a_task_that_is_stuck(programs, where, task):
    """A task in sleep(60), in a thread or on the loop, does not keep the interpreter alive."""
    programs[task, where].result()


def test_with_ends_soon_with_a_task_that_is_stuck():
    """Leaving the flow block by an exception gives a stuck task up after a moment."""
    leave = """
try:
    with flow:
        run = flow.start("stuck")
        run.context.get("begun")
        raise ValueError
except ValueError:
    print(run.status)
"""
    assert run_snippet(ending(leave)) == "CANCELLED\n"
