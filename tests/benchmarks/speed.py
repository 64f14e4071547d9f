"""The speed rows. Every pair does the same work; the other side is what one would write without us."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import redirect_stderr
from graphlib import TopologicalSorter
from queue import SimpleQueue
from typing import Any

from millstream import Context, Flow, Hook, NextTask, TaskOutput, TaskStartEvent, TaskSuccessEvent
from tests.benchmarks.measure import Row, compare

WORKERS = 4
STEPS = 10_000


def nothing(_: object = None) -> None:
    """A task that does nothing."""


def rows() -> Iterator[Row]:
    """Measure and yield every row."""
    with Flow(max_workers=WORKERS) as flow, ThreadPoolExecutor(WORKERS) as pool:
        yield from chains(flow, pool)
        yield from fan_outs(flow, pool)
        yield observed(flow)
        yield from streams(flow, pool)
    yield layers(100)
    yield layers(1000, rounds=5)
    yield from coroutines()
    yield sleeps()


def chains(flow: Flow, pool: ThreadPoolExecutor) -> Iterator[Row]:
    left = 0

    @flow.task
    def step(ctx: Context) -> TaskOutput[int]:
        nonlocal left
        left -= 1
        return TaskOutput(left, [NextTask("step")] if left else None)

    def ours() -> None:
        nonlocal left
        left = STEPS
        flow.run("step")

    def one_by_one() -> None:
        for _ in range(STEPS):
            pool.submit(nothing).result()

    def tasks() -> None:
        async def chain(left: int, done: asyncio.Future[None]) -> None:
            if left:
                keep.append(asyncio.create_task(chain(left - 1, done)))
            else:
                done.set_result(None)

        async def main() -> None:
            done = asyncio.get_running_loop().create_future()
            keep.append(asyncio.create_task(chain(STEPS, done)))
            await done

        keep: list[Any] = []
        asyncio.run(main())

    name = f"dynamic chain, {STEPS:,} steps"
    yield compare(name, "submit(f).result() on a pool of 4", ours, one_by_one, per=STEPS, goal=0.08, limit=0.12)
    yield compare("the same", "a chain of asyncio.create_task", ours, tasks, per=STEPS, goal=0.7, limit=1.0)


def fan_outs(flow: Flow, pool: ThreadPoolExecutor) -> Iterator[Row]:
    flow.add_task("nothing", nothing)

    @flow.task
    def fan(n: int) -> TaskOutput[None]:
        return TaskOutput(None, [NextTask("nothing", spawn_another=True) for _ in range(n)])

    @flow.task
    def fan_join(n: int) -> TaskOutput[None]:
        return TaskOutput(
            None, [*(NextTask("nothing", spawn_another=True) for _ in range(n)), NextTask("reduce", join=True)]
        )

    @flow.task
    def reduce(upstream: list[None]) -> int:
        return len(upstream)

    def collected(n: int) -> int:
        return len([f.result() for f in as_completed([pool.submit(nothing) for _ in range(n)])])

    for n in (STEPS, 10 * STEPS):
        yield compare(
            f"dynamic fan-out, {n:,} no-ops",
            "submit + as_completed",
            lambda n=n: flow.run("fan", {"n": n}),
            lambda n=n: collected(n),
            per=n,
            goal=0.30,
            limit=0.45,
            rounds=7 if n == STEPS else 3,
        )
    yield compare(
        f"fan-out and join, {STEPS:,}",
        "the same, then a call",
        lambda: flow.run("fan_join", {"n": STEPS}),
        lambda: nothing(collected(STEPS)),
        per=STEPS,
        goal=0.40,
        limit=0.60,
    )


def observed(flow: Flow) -> Row:
    """The fan-out with everybody watching: a hook that hears of every start and every end, a trace, and a display."""

    class Counts(Hook):
        starts = ends = 0

        def on_task_start(self, event: TaskStartEvent) -> None:
            self.starts += 1

        def on_task_success(self, event: TaskSuccessEvent) -> None:
            self.ends += 1

    watched = Flow(max_workers=WORKERS, hooks=[Counts()])
    for name in ("nothing", "fan"):
        watched.add_task(name, flow.tasks[name].fn)

    def ours() -> None:
        with open(os.devnull, "w") as log, redirect_stderr(log):
            watched.run("fan", {"n": STEPS}, trace=True, progress=True)

    with watched:
        return compare(
            f"dynamic fan-out, {STEPS:,} no-ops, with a hook, a trace and progress",
            "the same without",
            ours,
            lambda: flow.run("fan", {"n": STEPS}),
            per=STEPS,
            goal=1.80,
            limit=2.00,
            rounds=15,
        )


def streams(flow: Flow, pool: ThreadPoolExecutor) -> Iterator[Row]:
    n = 1_000

    def ours() -> None:
        for _ in flow.stream("fan", {"n": n}):
            pass

    def theirs() -> None:
        for future in as_completed([pool.submit(nothing) for _ in range(n)]):
            future.result()

    def first(results: Callable[[], Any]) -> Callable[[], float]:
        def measure() -> float:
            began = time.perf_counter()
            took = 0.0
            for _ in results():
                took = took or time.perf_counter() - began
            return took

        return measure

    def futures() -> Any:
        return as_completed([pool.submit(nothing) for _ in range(n)])

    yield compare(f"streaming {n:,} results: each", "as_completed", ours, theirs, per=n, goal=0.45, limit=0.7)
    yield compare(
        "streaming: the first result",
        "as_completed",
        first(lambda: flow.stream("fan", {"n": n})),
        first(futures),
        per=1,
        goal=0.5,
        limit=1.0,
        rounds=15,
    )


def layers(depth: int, rounds: int = 7) -> Row:
    """A graph of layers of 100 tasks with three dependencies each: built, and run."""
    width = 100
    graph = {
        f"{layer}-{place}": [f"{layer - 1}-{(place + step) % width}" for step in range(3)] if layer else []
        for layer in range(depth)
        for place in range(width)
    }

    def ours() -> None:
        with Flow(max_workers=WORKERS) as flow:
            for name, needs in graph.items():
                flow.add_task(name, nothing, depends_on=needs)
            flow.run()

    def theirs() -> None:
        done: SimpleQueue[str] = SimpleQueue()

        def call(name: str) -> None:
            nothing()
            done.put(name)

        with ThreadPoolExecutor(WORKERS) as pool:
            sorter = TopologicalSorter(graph)
            sorter.prepare()
            while sorter.is_active():
                for name in sorter.get_ready():
                    pool.submit(call, name)
                sorter.done(done.get())

    name = f"static layers {depth:,} × {width}, built and run"
    against = "graphlib + pool loop"
    return compare(name, against, ours, theirs, per=width * depth, goal=0.45, limit=0.70, rounds=rounds)


def coroutines() -> Iterator[Row]:
    async def suspends() -> None:
        await asyncio.sleep(0)

    async def never_suspends() -> None:
        pass

    with asyncio.Runner() as runner:
        for name, coroutine, goal, limit in (
            (f"asyncio, {STEPS:,} × sleep(0)", suspends, 1.3, 1.6),
            (f"asyncio, {STEPS:,} that never suspend", never_suspends, 0.5, 0.8),
        ):
            flow = Flow("asyncio")
            flow.add_task("call", coroutine)

            @flow.task
            async def fan() -> TaskOutput[None]:
                return TaskOutput(None, [NextTask("call", spawn_another=True) for _ in range(STEPS)])

            async def group(coroutine: Callable[[], Any] = coroutine) -> None:
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(STEPS):
                        tasks.create_task(coroutine())

            yield compare(
                name,
                "TaskGroup.create_task",
                lambda flow=flow: runner.run(flow.arun("fan")),
                lambda group=group: runner.run(group()),
                per=STEPS,
                goal=goal,
                limit=limit,
            )
            flow.close()


def sleeps() -> Row:
    n, threads, seconds = 200, 8, 0.005
    with Flow(max_workers=threads) as flow, ThreadPoolExecutor(threads) as pool:
        flow.add_task("sleep", lambda _: time.sleep(seconds))
        flow.add_task("fan", lambda _: TaskOutput(None, [NextTask("sleep", spawn_another=True) for _ in range(n)]))
        return compare(
            f"{n} × 5 ms sleeps, {threads} threads",
            "pool.map",
            lambda: flow.run("fan"),
            lambda: list(pool.map(time.sleep, [seconds] * n)),
            per=n,
            goal=1.03,
            limit=1.06,
        )
