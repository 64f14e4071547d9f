"""Regressions R15 to R20 and R22: waiting costs no worker, ends always, polls never and loses nothing."""

import asyncio
import contextvars
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from millstream import (
    AsyncioExecutor,
    Context,
    ContextKeyError,
    DeadlockError,
    Flow,
    FlowRun,
    InlineExecutor,
    NextTask,
    PoolExecutor,
    State,
    StreamChunk,
    TaskOutput,
    ThreadExecutor,
)
from tests.conftest import WATCHDOG, on_several_workers

# ---- R15 --------------------------------------------------------------------------------------------


def test_r15_a_hundred_consumers_wait_for_one_producer(flow):
    """100 tasks that wait for a task behind them finish, on one worker too."""
    flow.add_task("split", lambda ctx: [*[NextTask("consumer", spawn_another=True)] * 100, NextTask("producer")])
    flow.add_task("consumer", lambda ctx: ctx.get("producer") + 1)
    flow.add_task("producer", lambda ctx: 41)

    results = flow.run("split")

    assert results.pop("producer") == 41
    assert list(results.values()) == [42] * 100


def test_r15_a_chain_of_waits_needs_no_more_workers(flow):
    """Each of 50 tasks waits for the next one, and only the last has anything to give."""
    flow.add_task("split", lambda ctx: [NextTask("link", {"n": n}, spawn_another=True) for n in range(50)])

    @flow.task
    def link(ctx: Context, n: int) -> int:
        value = 0 if n == 49 else ctx.get(f"value-{n + 1}")
        ctx.set(f"value-{n}", value + 1)
        return value

    assert sorted(flow.run("split").values()) == list(range(50))


def test_r15_coroutines_wait_for_a_plain_task_and_the_other_way_round(flow):
    """Coroutines that await a value of a plain task finish, and so does a plain task that waits for theirs."""
    flow.add_task("split", lambda ctx: [*[NextTask("waiter", spawn_another=True)] * 20, NextTask("last")])
    flow.add_task("first", lambda ctx: 1)

    @flow.task
    async def waiter(ctx: Context) -> int:
        return await ctx.aget("first") + 1

    @flow.task
    def last(ctx: Context) -> TaskOutput:
        return TaskOutput("asked", [NextTask("end"), NextTask("first")])

    flow.add_task("end", lambda ctx: ctx.get("waiter") + 1)

    results = flow.run("split")

    assert results.pop("end") == 3
    assert results.pop("first") == 1
    assert list(results.values()) == [2] * 20


def nested(flow: Flow) -> dict:
    """Ways for a task to run its own flow and wait for that."""
    return {
        "run": lambda name, inputs: flow.run(name, inputs)[name],
        "result": lambda name, inputs: flow.start(name, inputs).result()[name],
        "wait": lambda name, inputs: waited(flow.start(name, inputs)).context[name],
        "stream": lambda name, inputs: [chunk.value for chunk in flow.stream(name, inputs)][-1],
    }


def waited(run: FlowRun) -> FlowRun:
    assert run.wait(WATCHDOG)
    return run


@pytest.mark.parametrize("how", ["run", "result", "wait", "stream"])
def test_r15_nested_runs_finish(flow, how):
    """Runs that are nested five deep finish, on one worker too, however the outer one waits."""
    run = nested(flow)[how]
    flow.add_task("factorial", lambda ctx, n: 1 if n == 0 else n * run("factorial", {"n": n - 1}))

    for _ in range(5):
        assert flow.run("factorial", {"n": 5}) == {"factorial": 120}


def test_r15_all_workers_in_nested_runs(flow):
    """Twelve tasks that each run the flow again, on fewer workers than that, finish."""
    flow.add_task("split", lambda ctx: [NextTask("outer", {"n": n}, spawn_another=True) for n in range(12)])
    flow.add_task("outer", lambda ctx, n: flow.run("inner", {"n": n})["inner"])
    flow.add_task("inner", lambda ctx, n: n * n)

    for _ in range(5):
        assert sorted(flow.run("split").values()) == [n * n for n in range(12)]


def test_r15_flows_that_share_an_executor_nest(executor):
    """A task that runs another flow on the same executor finishes, and so does that flow's task which waits."""
    with Flow(executor) as outer, Flow(executor) as inner:
        outer.add_task("outer", lambda ctx: inner.run("split", timeout=WATCHDOG)["consumer"])
        inner.add_task("split", lambda ctx: [NextTask("consumer"), NextTask("producer")])
        inner.add_task("consumer", lambda ctx: ctx.get("producer") + 1)
        inner.add_task("producer", lambda ctx: 41)

        for _ in range(20):
            assert outer.run("outer") == {"outer": 42}


def test_r15_coroutines_nest_runs(flow):
    """A coroutine that awaits runs of its own flow, or of a ``FlowRun``, finishes."""

    @flow.task
    async def factorial(n: int) -> int:
        if n == 0:
            return 1
        if n % 2:
            return n * (await flow.arun("factorial", {"n": n - 1}))["factorial"]
        return n * (await flow.start("factorial", {"n": n - 1}))["factorial"]

    for _ in range(5):
        assert flow.run("factorial", {"n": 5}) == {"factorial": 120}


def test_r15_a_coroutine_that_waits_blocking_for_a_run_of_coroutines(flow):
    """A sync ``run`` inside a coroutine of the flow finishes, although the loop that it blocks is the flow's."""

    @flow.task
    async def outer() -> int:
        return flow.run("inner", timeout=WATCHDOG)["inner"] + 1

    @flow.task
    async def inner() -> int:
        await asyncio.sleep(0)
        return 41

    for _ in range(5):
        assert flow.run("outer") == {"outer": 42}


def test_r15_a_sync_run_inside_a_running_event_loop(flow):
    """``run`` also works where an event loop runs already, as in a notebook."""

    @flow.task
    async def later() -> str:
        await asyncio.sleep(0)
        return "done"

    flow.add_task("plain", lambda ctx: NextTask("later"))

    async def cell() -> dict:
        return flow.run("plain")

    assert asyncio.run(cell()) == {"later": "done"}


@pytest.mark.parametrize("workers", [1, 2])
def test_r15_a_run_started_by_a_job_of_the_same_pool(workers):
    """Jobs of the user's pool that fill it and each run a flow on that pool finish."""
    with ThreadPoolExecutor(workers) as pool, Flow(pool) as flow:
        flow.add_task("split", lambda ctx: [NextTask("consumer"), NextTask("producer")])
        flow.add_task("consumer", lambda ctx: ctx.get("producer") + 1)
        flow.add_task("producer", lambda ctx: 41)

        jobs = [pool.submit(flow.run, "split", timeout=WATCHDOG) for _ in range(4)]
        assert [job.result() for job in jobs] == [{"consumer": 42, "producer": 41}] * 4


@pytest.mark.parametrize("workers", [1, 2])
def test_r15_a_task_that_waits_for_a_job_of_the_same_pool(workers):
    """A pool that tasks wait in still does other jobs: a blocked ``get`` gives its thread's place back."""
    with ThreadPoolExecutor(workers) as pool, Flow(PoolExecutor(pool)) as flow:
        flow.add_task("split", lambda ctx: [*[NextTask("waiter", spawn_another=True)] * 4, NextTask("setter")])
        flow.add_task("waiter", lambda ctx: ctx.get("value"))
        flow.add_task("setter", lambda ctx: ctx.set("value", 7))

        assert sorted(flow.run("split").items()) == [
            ("setter", None), ("waiter", 7), ("waiter#2", 7), ("waiter#3", 7), ("waiter#4", 7),
        ]  # fmt: skip


# ---- R16 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [1, 1024])
def test_r16_a_stream_delivers_everything(flow, buffer):
    """A stream delivers every interim value and every output, on one worker and with a buffer of one too."""

    @flow.task
    def split(ctx: Context):
        for n in range(20):
            yield n
            ctx.emit(f"emitted {n}")
            ctx.get_stream().put(StreamChunk("other", n))
            yield NextTask("worker", {"n": n}, spawn_another=True)
        return "split"

    flow.add_task("worker", lambda ctx, n: n)

    chunks = list(flow.stream("split", buffer=buffer))

    of_split = [chunk.value for chunk in chunks if chunk.task_id == "split"]
    assert of_split == [value for n in range(20) for value in (n, f"emitted {n}")] + ["split"]
    assert [chunk.value for chunk in chunks if chunk.task_id == "other"] == list(range(20))
    assert sorted(chunk.value for chunk in chunks if chunk.task_id.startswith("worker")) == list(range(20))


def test_r16_a_stream_of_coroutines_delivers_everything(flow):
    """The same with an asynchronous generator, read on the caller's loop."""

    @flow.task
    async def split(ctx: Context):
        for n in range(50):
            yield n
            ctx.emit(f"emitted {n}")
            await asyncio.sleep(0)

    async def read() -> list:
        return [chunk.value async for chunk in flow.astream("split", buffer=1)]

    assert asyncio.run(read()) == [value for n in range(50) for value in (n, f"emitted {n}")] + [None]


def test_r16_a_slow_reader_slows_a_generator(flow):
    """A reader that takes three chunks and leaves has made a generator go on no further than the buffer allows."""
    made = []

    @flow.task
    def count():
        for n in range(10_000):
            made.append(n)
            yield n

    for chunk in flow.stream("count", buffer=8):
        if chunk.value == 2:
            break
    assert len(made) <= 3 + 8 + 2


def test_r16_a_reader_inside_a_task_of_the_same_worker(flow):
    """A task that streams its own flow, with a buffer of one, gets everything."""
    flow.add_task("split", lambda ctx: [NextTask("leaf", {"n": n}, spawn_another=True) for n in range(20)])
    flow.add_task("leaf", lambda ctx, n: n)

    @flow.task
    def read() -> list:
        chunks = flow.stream("split", buffer=1, timeout=WATCHDOG / 2)
        return sorted(chunk.value for chunk in chunks if chunk.task_id != "split")

    assert flow.run("read") == {"read": list(range(20))}


# ---- R17 --------------------------------------------------------------------------------------------


def waits_for(key: str):
    def plain(ctx: Context):
        return ctx.get(key)

    async def coroutine(ctx: Context):
        return await ctx.aget(key)

    return {"plain": plain, "async": coroutine}


@pytest.mark.parametrize("colours", [("plain", "plain"), ("async", "async"), ("plain", "async")], ids="-".join)
def test_r17_two_tasks_that_wait_for_each_other(flow, colours):
    """Two tasks that wait for each other raise DeadlockError, which names both."""
    flow.add_task("split", lambda ctx: [NextTask("hen"), NextTask("egg")])
    flow.add_task("hen", waits_for("egg")[colours[0]])
    flow.add_task("egg", waits_for("hen")[colours[1]])

    for _ in range(20):
        with pytest.raises(DeadlockError) as caught:
            flow.run("split", timeout=WATCHDOG)
        assert "hen waits for 'egg'" in str(caught.value)
        assert "egg waits for 'hen'" in str(caught.value)


def test_r17_a_ring_beside_others_that_finish(flow):
    """Three tasks in a ring raise DeadlockError as soon as all that could still help has finished."""
    flow.add_task("split", lambda ctx: [NextTask(name) for name in ("a", "helper", "b", "c", "other")])
    flow.add_task("helper", lambda ctx: NextTask("second helper"))
    flow.add_task("second helper", lambda ctx: "done")
    flow.add_task("other", lambda ctx: ctx.get("second helper"))
    for name, key in ("ab", "bc", "ca"):
        flow.add_task(name, waits_for(key)["plain"])

    for _ in range(20):
        with pytest.raises(DeadlockError) as caught:
            flow.run("split", timeout=WATCHDOG)
        assert sorted(caught.value.waits) == [("a", "'b'"), ("b", "'c'"), ("c", "'a'")]


@pytest.mark.parametrize("colour", ["plain", "async"])
def test_r17_a_key_that_nobody_can_set(flow, colour):
    """A key that nobody can set any more raises ContextKeyError, which names key and task."""
    flow.add_task("split", lambda ctx: [NextTask("reader"), NextTask("other")])
    flow.add_task("reader", waits_for("price")[colour])
    flow.add_task("other", lambda ctx: "other")

    for _ in range(20):
        with pytest.raises(ContextKeyError, match="Key price not found in context") as caught:
            flow.run("split", timeout=WATCHDOG)
        assert "reader" in str(caught.value)


def test_r17_who_is_told_can_break_the_deadlock(flow):
    """A task that is told of the deadlock may handle it, and the other one has its value."""
    flow.add_task("split", lambda ctx: [NextTask("hen"), NextTask("egg")])

    def either(key: str):
        def action(ctx: Context) -> str:
            try:
                return f"after {ctx.get(key)}"
            except DeadlockError:
                return "first"

        return action

    flow.add_task("hen", either("egg"))
    flow.add_task("egg", either("hen"))

    for _ in range(50):
        assert flow.run("split", timeout=WATCHDOG) in (
            {"hen": "first", "egg": "after first"},
            {"hen": "after first", "egg": "first"},
        )


def test_r17_a_task_that_waits_for_the_join_around_it(flow):
    """A task that waits for a join which waits for that task raises DeadlockError, which names both."""
    flow.add_task("split", lambda ctx: [NextTask("mapper"), NextTask("reducer", join=True)])
    flow.add_task("mapper", waits_for("reducer")["plain"])
    flow.add_task("reducer", lambda upstream: upstream)

    with pytest.raises(DeadlockError) as caught:
        flow.run("split", timeout=WATCHDOG)
    assert {who for who, _ in caught.value.waits} == {"mapper", "reducer"}


def test_r17_a_task_that_waits_for_itself(flow):
    """A task that waits for its own output is told so."""
    flow.add_task("selfish", waits_for("selfish")["plain"])

    with pytest.raises(DeadlockError, match="selfish waits for 'selfish'"):
        flow.run("selfish", timeout=WATCHDOG)


def test_r17_a_nested_run_that_waits_for_the_task_that_runs_it(executor):
    """A nested run on the same context that waits for the outer task's output cannot move: it is told."""
    with Flow(executor, context=Context()) as flow:
        flow.add_task("outer", lambda ctx: flow.run("inner"))
        flow.add_task("inner", waits_for("outer")["plain"])

        with pytest.raises((DeadlockError, ContextKeyError)) as caught:
            flow.run("outer", timeout=2.0)  # a watchdog: RunTimeoutError means that nobody was told
        assert "inner" in str(caught.value)


def test_r17_a_value_that_is_set_after_waiting_began_never_ends_in_an_error(flow, often):
    """A producer that sets the last moment before it ends is no deadlock, 200 times of 200."""
    flow.add_task("split", lambda ctx: [*[NextTask("reader", spawn_another=True)] * 3, NextTask("writer")])
    flow.add_task("reader", lambda ctx: ctx.get("value"))
    flow.add_task("writer", lambda ctx: ctx.set("value", 1))

    for _ in range(often):
        assert sum(value or 0 for value in flow.run("split").values()) == 3


def test_r17_outside_a_run_a_missing_key_raises_at_once():
    """Outside a run nobody could set the key, so nobody waits."""
    with pytest.raises(ContextKeyError, match="Key price not found in context"):
        Context().get("price")
    with pytest.raises(KeyError):
        Context()["price"]


# ---- R18 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["plain", "async"])
def test_r18_a_default_never_waits(flow, colour):
    """``get(key, None)`` gives None and ``get(task_not_run_yet, 5)`` gives 5, although that task is pending."""
    flow.add_task("split", lambda ctx: [NextTask("peek"), NextTask("later", join=True)])
    flow.add_task("later", lambda ctx: "later")  # a join: it cannot run while ``peek`` does

    def peek(ctx: Context) -> tuple:
        return ctx.get("nothing", None), ctx.get("later", 5), ctx.get("later", default=""), "later" in ctx

    async def peek_async(ctx: Context) -> tuple:
        return await ctx.aget("nothing", None), await ctx.aget("later", 5), ctx.get("later", ""), "later" in ctx

    flow.add_task("peek", peek if colour == "plain" else peek_async)

    assert flow.run("split", timeout=WATCHDOG) == {"later": "later"}
    assert flow.context["peek"] == (None, 5, "", False)


def test_r18_none_is_a_value_like_any_other(flow):
    """A key whose value is None is there: its getter neither waits nor gets the default."""
    flow.add_task("empty", lambda ctx: NextTask("read"))
    flow.add_task("read", lambda ctx: (ctx.get("empty"), ctx.get("empty", 5), ctx.get("given"), "given" in ctx))

    assert flow.run("empty", {"given": None}) == {"read": (None, None, None, True)}


def test_r18_a_state_holds_its_value_at_once():
    """``State(5)`` and ``State(None)`` hold a value, an empty one does not, and peeking never waits."""
    assert State(5).get_value() == 5
    assert State(None).get_value() is None
    assert State(None).is_set
    assert not State.empty().is_set
    with pytest.raises(TimeoutError):
        State.empty().get_value(timeout=0)

    context = Context()
    context.set_state("cell", State(None))
    context.set_state("empty", State.empty())
    assert context.to_dict() == {"cell": None}
    assert context.get("empty", 5) == 5


# ---- R19 --------------------------------------------------------------------------------------------


def test_r19_nothing_polls():
    """While tasks sleep, wait for values and are waited for on every executor, no CPU is spent."""
    quiet = threading.Event()
    with ThreadPoolExecutor(2) as pool, ThreadPoolExecutor(10) as users:
        flows = [Flow("inline"), Flow("thread"), Flow("asyncio"), Flow(pool)]
        started = [threading.Semaphore(0) for _ in flows]
        users_wait = []
        for flow, semaphore in zip(flows, started, strict=True):

            def sleeper(semaphore=semaphore) -> str:
                semaphore.release()
                assert quiet.wait(WATCHDOG)
                return "awake"

            async def waiter(ctx: Context, semaphore=semaphore) -> str:
                semaphore.release()
                return await ctx.aget("sleeper")

            flow.add_task("sleeper", sleeper, timeout=WATCHDOG)  # with a timer under way
            flow.add_task("waiter", waiter)
            flow.add_task("getter", lambda ctx: ctx.get("sleeper", timeout=WATCHDOG))
            flow.add_task("split", lambda ctx: [NextTask("waiter"), NextTask("getter"), NextTask("sleeper")])
            users_wait.append(users.submit(flow.run, "split", timeout=WATCHDOG))
            users_wait.append(users.submit(lambda flow=flow: list(flow.stream("split"))))
        for semaphore in started:
            for _ in range(4):
                assert semaphore.acquire(timeout=WATCHDOG)
        threading.Event().wait(0.1)  # whoever is about to wait, waits

        before = time.process_time()
        threading.Event().wait(0.5)
        spent = time.process_time() - before

        quiet.set()
        for waits in users_wait:
            waits.result(WATCHDOG)
        for flow in flows:
            flow.close()
    assert spent < 0.01


# ---- R20 --------------------------------------------------------------------------------------------


def test_r20_twelve_coroutines_that_await_one_thread_call(flow):
    """Twelve coroutines that await what one call in a thread gives finish."""
    flow.add_task("split", lambda ctx: [*[NextTask("waiter", spawn_another=True)] * 12, NextTask("call")])
    flow.add_task("call", lambda ctx: 7, executor="thread")

    @flow.task
    async def waiter(ctx: Context) -> int:
        return await ctx.aget("call")

    assert sum(flow.run("split").values()) == 13 * 7


def test_r20_twelve_coroutines_that_block_in_threads_of_asyncio(flow):
    """Twelve coroutines that await ``asyncio.to_thread`` finish, whatever the executor's number of workers."""
    flow.add_task("split", lambda ctx: [NextTask("worker", {"n": n}, spawn_another=True) for n in range(12)])

    @flow.task
    async def worker(n: int) -> int:
        return await asyncio.to_thread(lambda: n)

    assert sorted(flow.run("split").values()) == list(range(12))


@pytest.mark.parametrize(
    "make",
    [ThreadExecutor, AsyncioExecutor, ThreadPoolExecutor, lambda n: PoolExecutor(ThreadPoolExecutor(n))],
    ids=["thread", "asyncio", "pool", "wrapped pool"],
)
def test_r20_thirty_two_workers_run_thirty_two_bodies_at_once(make):
    """An executor with 32 workers runs 32 bodies at once, whatever the number of cores."""
    executor = make(32)
    together = threading.Barrier(32)
    flow = Flow(executor)
    flow.add_task("split", lambda ctx: [NextTask("body", spawn_another=True)] * 32)
    flow.add_task("body", lambda ctx: together.wait(WATCHDOG))

    assert sorted(flow.run("split").values()) == list(range(32))

    flow.close()
    (executor._pool if isinstance(executor, PoolExecutor) else executor).shutdown()


def test_r20_max_workers_of_a_flow_is_what_runs_at_once():
    """``Flow(max_workers=n)`` runs n bodies at once."""
    for kind in ("thread", "asyncio"):
        together = threading.Barrier(12)
        with Flow(kind, max_workers=12) as flow:
            flow.add_task("split", lambda ctx: [NextTask("body", spawn_another=True)] * 12)
            flow.add_task("body", lambda ctx, together=together: together.wait(WATCHDOG))
            assert sorted(flow.run("split").values()) == list(range(12))


who = contextvars.ContextVar("who", default="nobody")


@pytest.mark.parametrize("how", ["run", "start", "stream", "arun"])
def test_r20_tasks_see_the_callers_context_variables(flow, how):
    """A task sees the context variables of whoever started its run, a coroutine too, and changes them for nobody."""

    @flow.task
    def plain(ctx: Context) -> NextTask:
        ctx.set("seen", [who.get()])
        who.set("plain")
        return NextTask("coroutine")

    @flow.task
    async def coroutine(ctx: Context) -> NextTask:
        ctx.append("seen", who.get())
        who.set("coroutine")
        await asyncio.sleep(0)
        return NextTask("last")

    @flow.task
    def last(ctx: Context) -> list:
        return [*ctx["seen"], who.get()]

    def call() -> list:
        who.set("caller")
        if how == "arun":
            return asyncio.run(flow.arun("plain"))["last"]
        if how == "stream":
            return list(flow.stream("plain"))[-1].value
        return (flow.run("plain") if how == "run" else flow.start("plain").result())["last"]

    for _ in range(10):
        assert contextvars.copy_context().run(call) == ["caller"] * 3
    assert who.get() == "nobody"


def test_r20_a_run_inside_a_task_sees_the_tasks_context_variables(flow):
    """A run started inside a task runs and sees the task's context variables."""
    flow.add_task("inner", lambda ctx: who.get())

    @flow.task
    def outer(ctx: Context) -> str:
        who.set("outer")
        return flow.run("inner")["inner"]

    for _ in range(10):
        assert flow.run("outer", timeout=WATCHDOG) == {"outer": "outer"}


@on_several_workers
def test_r20_a_run_in_a_thread_of_a_task_sees_its_context_variables(flow):
    """A run started in a thread that a task started with a copy of its variables runs and sees these."""
    flow.add_task("inner", lambda ctx: who.get())

    @flow.task
    def outer(ctx: Context) -> str:
        who.set("outer")
        own = contextvars.copy_context()
        results = []
        thread = threading.Thread(target=own.run, args=(lambda: results.append(flow.run("inner")["inner"]),))
        thread.start()
        thread.join(WATCHDOG)
        return results.pop()

    for _ in range(10):
        assert flow.run("outer", timeout=WATCHDOG) == {"outer": "outer"}


def test_r20_inline_has_no_thread_of_its_own():
    """An ``InlineExecutor`` that several flows share runs each of them in the thread that waits for it."""
    with InlineExecutor() as executor, Flow(executor) as one, Flow(executor) as two:
        for flow in (one, two):
            flow.add_task("where", lambda ctx: threading.current_thread())
        assert one.run("where") == two.run("where") == {"where": threading.current_thread()}


# ---- R22 --------------------------------------------------------------------------------------------


def test_r22_updates_and_appends_lose_nothing(flow):
    """Eight tasks that each update a counter and append to a list make as many as they did."""
    flow.add_task("split", lambda ctx: [NextTask("worker", spawn_another=True)] * 8)

    @flow.task
    def worker(ctx: Context) -> None:
        for _ in range(100):
            ctx.update("counter", lambda n: n + 1, default=0)
            ctx.append("list", 1)

    for _ in range(5):
        flow.run("split")
        assert (flow.context["counter"], len(flow.context["list"])) == (800, 800)


def test_r22_updates_of_coroutines_lose_nothing(flow):
    """The same in coroutines."""
    flow.add_task("split", lambda ctx: [NextTask("worker", spawn_another=True)] * 8)

    @flow.task
    async def worker(ctx: Context) -> None:
        for _ in range(20):
            ctx.update("counter", lambda n: n + 1, default=0)
            ctx.append("list", 1)
            await asyncio.sleep(0)

    flow.run("split")
    assert (flow.context["counter"], len(flow.context["list"])) == (160, 160)


@on_several_workers
def test_r22_an_update_that_was_overtaken_is_computed_again(flow):
    """An update whose function was computing while another update came in is computed anew: both count."""
    flow.add_task("split", lambda ctx: [NextTask("slow"), NextTask("quick")])

    @flow.task
    def slow(ctx: Context) -> None:
        def add(n: int) -> int:
            ctx["computing"].set()
            assert ctx["overtaken"].wait(WATCHDOG)
            return n + 1

        ctx.update("counter", add)

    @flow.task
    def quick(ctx: Context) -> None:
        assert ctx["computing"].wait(WATCHDOG)
        ctx.update("counter", lambda n: n + 1)
        ctx["overtaken"].set()

    for _ in range(20):
        flow.run("split", {"counter": 0, "computing": threading.Event(), "overtaken": threading.Event()})
        assert flow.context["counter"] == 2


def test_r22_an_update_without_a_default_waits_for_the_first_value(flow):
    """An update of a key that another task sets later waits for it."""
    flow.add_task("split", lambda ctx: [NextTask("add"), NextTask("first")])
    flow.add_task("add", lambda ctx: ctx.update("counter", lambda n: n + 1))
    flow.add_task("first", lambda ctx: ctx.set("counter", 10))

    for _ in range(20):
        assert flow.run("split")["add"] == 11
