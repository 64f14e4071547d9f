"""Typical code of users, checked by ``mypy --strict`` in ``test_typing.py``; it is never run.

``assert_type`` says what the checker must infer. ``# type: ignore[code]`` stands on calls that it must
refuse: an ignore that is not needed is an error as well, so each line here can fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, ClassVar, assert_type

from millstream import (
    AsyncioExecutor,
    Context,
    Flow,
    FlowRun,
    Hook,
    InlineExecutor,
    NextTask,
    PoolExecutor,
    Rate,
    Retry,
    RunEndEvent,
    RunReport,
    RunStartEvent,
    Session,
    State,
    Status,
    StreamChunk,
    Task,
    TaskBase,
    TaskFailureEvent,
    TaskHandle,
    TaskOutput,
    TaskReport,
    TaskRetryEvent,
    TaskSkipEvent,
    TaskStartEvent,
    TaskSuccessEvent,
    TaskTimeoutError,
    ThreadExecutor,
    current_task,
    fn_hook,
    task,
)
from millstream.flow import FlowTask, TaskGroup


@dataclass
class Deps:
    """What the tasks of this file depend on."""

    table: str
    retries: int = 3


flow = Flow()
Flow("thread", max_workers=4, name="orders", max_parallel=2, max_task_runs=1000, entry="split")
Flow(ThreadPoolExecutor(4), Context({"a": 1}))
Flow(InlineExecutor())
Flow(PoolExecutor(ThreadPoolExecutor(4)))
Flow(limits={"db": 2, "api": Rate(10, per=1.0)}, on_error="continue", hooks=[Hook()])
Flow(5)  # type: ignore[arg-type]
Flow("thread", None, "orders")  # type: ignore[call-arg]
Flow(max_workers="4")  # type: ignore[arg-type]
Flow(on_error="ignore")  # type: ignore[arg-type]
Flow(limits={"db": "2"})  # type: ignore[dict-item]
Flow(limits={"db": 0.5})  # type: ignore[dict-item]
Flow(hooks=[Hook])  # type: ignore[list-item]
Flow(hooks=Hook())  # type: ignore[arg-type]


# ---- decorators keep signatures -------------------------------------------------------------------


@flow.task
def bare(path: str, size: int = 0) -> int:
    """Registered bare."""
    return len(path) + size


@flow.task("named")
def named(ctx: Context, n: int) -> TaskOutput[str]:
    """Registered with a name."""
    assert_type(ctx.get("a"), Any)
    return TaskOutput("a" * n, [NextTask("bare", {"path": "x"})])


@flow.task
def unparametrised(ctx: Context) -> TaskOutput:
    """Context and TaskOutput may be written without what they hold, also under --strict."""
    return TaskOutput(ctx.get("a"), [])


@flow.task(timeout=5.0, executor="asyncio", description="awaits")
async def later(n: int) -> str:
    """Registered with options."""
    return str(n)


@flow.task
def streams(n: int) -> Iterator[int]:
    """A generator task."""
    yield from range(n)


@flow.task("astreams", replace=True)
async def astreams(n: int) -> AsyncIterator[int]:
    """An asynchronous generator task."""
    yield n


@flow.task("fetch", retries=2, backoff="exponential", backoff_base=0.5, retry_on=(OSError, ValueError), uses=["db"])
def fetch(url: str, *, depth: int = 0) -> bytes:
    """Registered with a name and the options of policies."""
    return url.encode() * depth


@flow.task(depends_on=[fetch, "bare"], routes=["approve", fetch], on_dep_failure="run-anyway", priority=5)
def decide(fetch: bytes, bare: int) -> dict[str, bytes]:
    """A router; what it depends on is given as functions and names."""
    return {"approve": fetch * bare}


@flow.task(for_each="$ctx.rows", max_parallel=4, retry=Retry(4, base=0.1, on=TaskTimeoutError), timeout=2)
def clean(item: dict[str, Any], index: int) -> int:
    """Mapped over rows."""
    return len(item) + index


assert_type(fetch("x", depth=2), bytes)
assert_type(decide(b"x", 2), dict[str, bytes])
assert_type(clean({}, 1), int)
fetch("x", 2)  # type: ignore[call-arg]
decide(bare=2)  # type: ignore[call-arg]
clean("x", 1)  # type: ignore[arg-type]
flow.task(on_dep_failure="ignore")  # type: ignore[call-overload]
flow.task(backoff="quadratic")  # type: ignore[call-overload]
flow.task(depends_on="fetch", retries=2)
flow.task(depends_on=[5])  # type: ignore[list-item]
flow.task(routes=[None])  # type: ignore[list-item]
flow.task(retries="2")  # type: ignore[call-overload]
flow.task(retry=3)  # type: ignore[call-overload]
flow.task(retry_on=[OSError])  # type: ignore[call-overload]
flow.task(retry_on=OSError())  # type: ignore[call-overload]
flow.task(for_each=["a"])  # type: ignore[call-overload]
flow.task(priority=0.5)  # type: ignore[call-overload]
flow.task(max_parallel="2")  # type: ignore[call-overload]
flow.task(uses=[5])  # type: ignore[list-item]
flow.task(timeout_s=5)  # type: ignore[call-overload]
flow.task(deps=["a"])  # type: ignore[call-overload]

assert_type(bare("x"), int)
assert_type(bare("x", size=2), int)
assert_type(named(Context(), 5), TaskOutput[str])
assert_type(streams(5), Iterator[int])
assert_type(astreams(5), AsyncIterator[int])
bare(5)  # type: ignore[arg-type]
bare()  # type: ignore[call-arg]
bare("x", sise=2)  # type: ignore[call-arg]
named(Context(), "5")  # type: ignore[arg-type]


async def awaits() -> None:
    """A coroutine function keeps what it gives."""
    assert_type(await later(5), str)
    await later("5")  # type: ignore[arg-type]


# ---- Task and TaskBase ----------------------------------------------------------------------------


@task
def square(n: int) -> int:
    """A module-level task."""
    return n * n


@task("root", timeout=5)
def root(n: float, *, digits: int = 2) -> str:
    """One with a name and options."""
    return f"{n**0.5:.{digits}f}"


@task(name="cube", retries=1)
def cube(n: int) -> int:
    """One with a name by keyword."""
    return n**3


@task("report", depends_on=[square, "root"], retries=2, on_dep_failure="skip", executor="thread")
def report(square: int, *, root: str = "") -> list[str]:
    """One with the options of graphs and policies."""
    return [root] * square


@task(executor="asyncio")
async def download(url: str) -> bytes:
    """A module-level coroutine function."""
    return url.encode()


@task
def numbers(n: int) -> Iterator[int]:
    """A module-level generator."""
    yield from range(n)


@task
def sends(n: int) -> TaskOutput[int]:
    """One that says what comes next."""
    return TaskOutput(n, [])


assert_type(square(5), int)
assert_type(root(5.0, digits=3), str)
assert_type(cube(5), int)
assert_type(report(2, root="a"), list[str])
assert_type(numbers(3), Iterator[int])
assert_type(sends(3), TaskOutput[int])
task("cube", on_dep_failure="ignore")  # type: ignore[call-overload]
task(backoff="quadratic")  # type: ignore[call-overload]
task(retries=2, max_attempt=3)  # type: ignore[call-overload]
task(5)  # type: ignore[call-overload]
report("2")  # type: ignore[arg-type]
report(2, "a")  # type: ignore[call-arg]
assert_type(square.name, str)
assert_type(square.fn(5), int)
square("5")  # type: ignore[arg-type]
root(5.0, 3)  # type: ignore[call-arg]
root(5.0, digit=3)  # type: ignore[call-arg]
typed: Task[[int], int] = square
function: Callable[[int], int] = square
wrong: Callable[[str], int] = square  # type: ignore[assignment]


class FetchUser(TaskBase):
    """A task written as a class."""

    name = "fetch-user"
    timeout = 5.0
    retries: ClassVar[int] = 2
    depends_on = ("square", root)

    def run(self, user_id: int) -> dict[str, Any]:
        """Fetch the user."""
        return {"id": user_id}


flow.add(square)
flow.add(root, replace=True)
flow.add(FetchUser())
flow.add(bare)  # type: ignore[arg-type]
flow.add("square")  # type: ignore[arg-type]
flow.add_task("lambda", lambda ctx: ctx.get("a"), timeout=5)
flow.add_task("bare", 5)  # type: ignore[arg-type]
flow.add_task(5, bare)  # type: ignore[arg-type]
flow.add_task("s", bare, on_dep_failure="never")  # type: ignore[arg-type]
assert_type(flow.tasks, Mapping[str, Task[..., Any]])


# ---- graphs ---------------------------------------------------------------------------------------

assert_type(flow["square"], FlowTask[..., Any])
of_this_flow: Task[..., Any] = flow["square"]
flow["a"] >> flow["b"] >> flow["c"]
flow["a"] >> (flow["b"] & flow["c"]) >> flow["d"]
(flow["a"] & flow["b"]) >> (flow["c"] | flow["d"])
assert_type(flow["a"] & flow["b"], TaskGroup)
assert_type(flow["a"] | flow["b"] | flow["c"], TaskGroup)
flow["a"] >> "b"  # type: ignore[operator]
flow["a"] & square  # type: ignore[operator]
square >> root  # type: ignore[operator]
flow[5]  # type: ignore[index]
flow.connect("a >> (b & c) >> d", [("d", "e"), "e >> f"])
flow.connect(5)  # type: ignore[arg-type]
flow.validate()
assert_type(flow.subgraph(["square", root, bare]), Flow)
flow.subgraph("square")
flow.subgraph([5])  # type: ignore[list-item]
assert_type(flow.override({"fetch-user": {"id": 5}}, square=5, root=lambda n: "2"), Flow)
flow.override({5: 5})  # type: ignore[dict-item]
flow.override(["square"])  # type: ignore[arg-type]
assert_type(flow.dependencies, Mapping[str, tuple[str, ...]])
assert_type(flow.routes, Mapping[str, tuple[str, ...]])
flow.dependencies["a"] = ()  # type: ignore[index]
flow.tasks = {}  # type: ignore[misc]
flow.entry = "a"  # type: ignore[misc]


# ---- policies -------------------------------------------------------------------------------------

retry = Retry(5, "linear", base=0.5, max_delay=10, jitter=0.1, on=(OSError, TaskTimeoutError))
assert_type(retry.delay(1), float)
assert_type(retry.attempts, int)
assert_type(retry.on, tuple[type[BaseException], ...])
assert_type(retry.again(OSError(), 1), bool)
Retry("5")  # type: ignore[arg-type]
Retry(5, "quadratic")  # type: ignore[arg-type]
Retry(5, "linear", 0.5)  # type: ignore[call-arg]
Retry(on=[OSError])  # type: ignore[arg-type]
Retry(tries=5)  # type: ignore[call-arg]
rate = Rate(10, per=0.5)
assert_type(rate.count, int)
assert_type(rate.per, float)
Rate("10")  # type: ignore[arg-type]
Rate()  # type: ignore[call-arg]


# ---- submitted calls ------------------------------------------------------------------------------


async def fetch_all(urls: list[str]) -> dict[str, bytes]:
    """A coroutine function that is no task."""
    return dict.fromkeys(urls, b"")


assert_type(square.submit(5), TaskHandle[int])
assert_type(root.submit(5.0, digits=3), TaskHandle[str])
assert_type(report.submit(2), TaskHandle[list[str]])
assert_type(download.submit("x"), TaskHandle[bytes])
assert_type(flow.submit(square, 5), TaskHandle[int])
assert_type(flow.submit(download, "x"), TaskHandle[bytes])
assert_type(flow.submit(bare, "x", size=2), TaskHandle[int])
assert_type(flow.submit(fetch_all, ["x"]), TaskHandle[dict[str, bytes]])
assert_type(flow.submit(len, [1, 2]), TaskHandle[int])
assert_type(flow["square"].submit(5), TaskHandle[Any])

first = square.submit(5)
second = report.submit(first, root=root.submit(first), depends_on=[download.submit("x")], call_key="second")
assert_type(second, TaskHandle[list[str]])
assert_type(second.result(), list[str])
assert_type(second.result(timeout=1.0), list[str])
assert_type(second.exception(), BaseException | None)
assert_type(second.wait(1.0), bool)
assert_type(second.cancel(), bool)
assert_type(second.done(), bool)
assert_type(second.status, Status)
assert_type(second.id, str)
assert_type(second.name, str)
future: Future[int] = first
for done in as_completed([first, flow.submit(square, 6)]):
    assert_type(done.result(), int)
first.status = Status.SUCCESS  # type: ignore[misc]
text: str = first.result()  # type: ignore[assignment]
square.submit(5, depends_on=["first"])  # type: ignore[list-item]
square.submit(5, depends_on=first)  # type: ignore[arg-type]
square.submit(5, call_key=5)  # type: ignore[arg-type]
flow.submit("square", 5)  # type: ignore[call-overload]


async def handles() -> None:
    """A handle is awaited as what its call gives."""
    assert_type(await square.submit(5), int)
    assert_type(await download.submit("x"), bytes)
    assert_type(await flow.submit(fetch_all, ["x"]), dict[str, bytes])
    one, other = await asyncio.gather(square.submit(5), root.submit(5.0))
    assert_type(one, int)
    assert_type(other, str)
    async with flow.session() as session:
        assert_type(session, Session)
        assert_type(await session.submit(square, 5), int)


with flow.session("orders-7", context={"a": 1}, deps=Deps("x"), metadata={"b": 1}, timeout=5, trace=True) as session:
    assert_type(session, Session)
    assert_type(session.submit(square, 5), TaskHandle[int])
    assert_type(session.submit(bare, "x"), TaskHandle[int])
    assert_type(session.submit(download, "x"), TaskHandle[bytes])
    as_run: FlowRun = session
flow.session(5)  # type: ignore[arg-type]
flow.session("orders-7", {"a": 1})  # type: ignore[call-arg]
flow.session(targets=["a"])  # type: ignore[call-arg]


# ---- hooks ----------------------------------------------------------------------------------------


class Told(Hook):
    """Overrides what it wants to know of."""

    def on_run_start(self, event: RunStartEvent) -> None:
        """A run starts."""
        assert_type(event.run_id, str)
        assert_type(event.at, float)

    def on_run_end(self, event: RunEndEvent) -> None:
        """A run has ended."""
        assert_type(event.status, Status)
        assert_type(event.error, BaseException | None)

    def on_task_success(self, event: TaskSuccessEvent) -> None:
        """A task run gave its output."""
        assert_type(event.output, Any)
        event.outptu  # type: ignore[attr-defined]

    def on_task_retry(self, event: TaskRetryEvent) -> None:
        """A task run is tried again."""
        assert_type((event.attempt, event.delay), tuple[int, float])

    def on_task_skip(self, event: RunEndEvent) -> None:  # type: ignore[override]
        """Not the event that it is given."""

    async def on_task_start(self, event: TaskStartEvent) -> None:  # type: ignore[override]
        """Not a plain function."""


def on_failure(event: TaskFailureEvent) -> None:
    """An attempt has failed."""
    assert_type((event.will_retry, event.delay), tuple[bool, float | None])


def on_skip(event: TaskSkipEvent) -> str:
    """What it returns is ignored."""
    return event.reason


Flow(hooks=[Told(), fn_hook(on_task_failure=on_failure, on_task_skip=on_skip)])
assert_type(fn_hook(on_task_failure=on_failure), Hook)
fn_hook(on_task_start=lambda event: print(event.id, event.attempt))
fn_hook(on_task_retry=on_skip)  # type: ignore[arg-type]
fn_hook(on_task_failed=on_failure)  # type: ignore[call-arg]
fn_hook(on_failure)  # type: ignore[call-arg, arg-type]


# ---- Context --------------------------------------------------------------------------------------


@flow.task
def with_deps(ctx: Context[Deps], n: int) -> str:
    """What is given as deps is typed."""
    assert_type(ctx.deps, Deps)
    assert_type(ctx.deps.table, str)
    ctx.deps.tables  # type: ignore[attr-defined]
    ctx.set("n", n)
    ctx["n"] = n
    ctx.set(5, n)  # type: ignore[arg-type]
    ctx.emit(n)
    ctx.get_stream().put(StreamChunk("with_deps", n))
    ctx.get_stream().put(n)  # type: ignore[arg-type]
    ctx.get("n", 5, 1.0)  # type: ignore[call-arg]
    ctx.set_state("cell", State(5))
    ctx.set_state("cell", 5)  # type: ignore[arg-type]
    assert_type("n" in ctx, bool)
    assert_type(ctx.to_dict(), dict[str, Any])
    assert_type(ctx.metadata, Mapping[str, Any])
    return ctx.deps.table * n


async def coroutine(ctx: Context[Deps]) -> None:
    """The asynchronous side."""
    assert_type(await ctx.aget("n", timeout=1.0), Any)
    assert_type(await ctx.aget("n", external=True), Any)


assert_type(Context(deps=Deps("orders")), Context[Deps])
assert_type(Context({"a": 1}, deps=Deps("orders"), metadata={"user": "ann"}).deps.table, str)
empty = Context()
assert_type(empty.to_dict(), dict[str, Any])


# ---- running --------------------------------------------------------------------------------------

assert_type(flow.run("bare", {"path": "x"}), dict[str, Any])
flow.run(["bare", "named"], inputs={"path": "x"}, deps=Deps("x"), metadata={"a": 1}, timeout=5, run_id="r")
flow.run("bare", context={"a": 1})
flow.run("bare", context=Context({"a": 1}))
flow.run(5)  # type: ignore[arg-type]
flow.run("bare", ["x"])  # type: ignore[arg-type]
flow.run("bare", {"path": "x"}, 5.0)  # type: ignore[call-arg, arg-type]
flow.run("bare", timout=5)  # type: ignore[call-arg]
flow.run("bare", timeout="5")  # type: ignore[arg-type]
flow.run("bare", buffer=5)  # type: ignore[call-arg]
flow.run(targets=["bare"], trace=True)
flow.run(targets=[5])  # type: ignore[list-item]
flow.run(trace="yes")  # type: ignore[arg-type]

run = flow.start("bare", {"path": "x"})
assert_type(run, FlowRun)
assert_type(run.result(timeout=1.0), dict[str, Any])
assert_type(run.wait(), bool)
assert_type(run.status, Status)
assert_type(run.id, str)
assert_type(run.context.get("a"), Any)
run.status = Status.SUCCESS  # type: ignore[misc]
assert_type(run.report(), RunReport)
assert_type(flow.report("r"), RunReport)
assert_type(run.report().tasks, dict[str, TaskReport])
assert_type(run.report().tasks["bare"].status, Status)
assert_type(run.report().to_dict(), dict[str, Any])
assert_type(run.report().to_chrome_trace(), str)
for each in flow.run_many([{"path": "x"}, Context({"path": "y"}), None], "bare", max_concurrent=2, timeout=5):
    assert_type(each, FlowRun)
flow.run_many(["x"])  # type: ignore[list-item]
flow.run_many([{}], max_concurrent="2")  # type: ignore[arg-type]

for chunk in flow.stream("bare", {"path": "x"}, buffer=10):
    assert_type(chunk, StreamChunk)
    assert_type(chunk.task_id, str)
    task_id, value = chunk
    assert_type(task_id, str)
for chunk in run.stream():
    assert_type(chunk, StreamChunk)
with flow.stream("bare") as stream:
    assert_type(next(stream), StreamChunk)
flow.stream("bare", buffer="5")  # type: ignore[arg-type]


async def main() -> None:
    """The asynchronous twins."""
    assert_type(await flow.arun("bare", timeout=5), dict[str, Any])
    assert_type(await flow.start("bare"), dict[str, Any])
    async for chunk in flow.astream("bare", {"path": "x"}, buffer=10):
        assert_type(chunk, StreamChunk)
    async with flow.astream("bare") as chunks:
        assert_type(await anext(chunks), StreamChunk)
    async with Flow() as other:
        assert_type(other, Flow)
    async for each in flow.arun_many([{"path": "x"}], "bare", max_concurrent=2):
        assert_type(each, FlowRun)
    for chunk in flow.astream("bare"):  # type: ignore[attr-defined]
        pass


with Flow() as opened:
    assert_type(opened, Flow)
with ThreadExecutor(4) as threads:
    assert_type(threads, ThreadExecutor)
    assert_type(threads.max_workers, int)
with AsyncioExecutor() as loop:
    assert_type(loop, AsyncioExecutor)

flow.name = "other"  # type: ignore[misc]


# ---- values ---------------------------------------------------------------------------------------

assert_type(TaskOutput(5).output, int)
assert_type(TaskOutput("a", [NextTask("bare")]), TaskOutput[str])
TaskOutput(5, NextTask("bare"))
TaskOutput(5, (NextTask("bare", {"n": n}, spawn_another=True) for n in range(5)))
TaskOutput(5, ["bare"])  # type: ignore[list-item]
NextTask("bare", {"path": "x"}, True)
NextTask("bare", {"path": "x"}, True, True)  # type: ignore[call-arg]
NextTask(5)  # type: ignore[arg-type]
NextTask("bare", ["x"])  # type: ignore[arg-type]

me = current_task()
assert_type(me.id, str)
assert_type(me.cancelled, bool)
assert_type(me.deadline, float | None)
assert_type(me.time_remaining(), float | None)
me.logger.info("typed")
me.cancelled = True  # type: ignore[misc]
