"""Typical code of users, checked by ``mypy --strict`` in ``test_typing.py``; it is never run.

``assert_type`` says what the checker must infer. ``# type: ignore[code]`` stands on calls that it must
refuse: an ignore that is not needed is an error as well, so each line here can fail.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, assert_type

from millstream import (
    AsyncioExecutor,
    Context,
    Flow,
    FlowRun,
    InlineExecutor,
    NextTask,
    PoolExecutor,
    State,
    Status,
    StreamChunk,
    Task,
    TaskBase,
    TaskOutput,
    ThreadExecutor,
    current_task,
    task,
)


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
Flow(5)  # type: ignore[arg-type]
Flow("thread", None, "orders")  # type: ignore[call-arg]
Flow(max_workers="4")  # type: ignore[arg-type]


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


@task(name="cube")
def cube(n: int) -> int:
    """One with a name by keyword."""
    return n**3


assert_type(square(5), int)
assert_type(root(5.0, digits=3), str)
assert_type(cube(5), int)
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
assert_type(flow["square"], Task[..., Any])
assert_type(flow.tasks, Mapping[str, Task[..., Any]])


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

run = flow.start("bare", {"path": "x"})
assert_type(run, FlowRun)
assert_type(run.result(timeout=1.0), dict[str, Any])
assert_type(run.wait(), bool)
assert_type(run.status, Status)
assert_type(run.id, str)
assert_type(run.context.get("a"), Any)
run.status = Status.SUCCESS  # type: ignore[misc]

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
