"""The rows about other processes: our own, and jobs of Ray and Dask, each beside its bare use; and a soak test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.util import find_spec
from multiprocessing import active_children, get_context
from typing import Any

from millstream import DaskExecutor, Flow, NextTask, RayExecutor, TaskOutput
from tests.benchmarks.measure import Row, compare

WORKERS = 4


def nothing() -> None:
    """A task that does nothing."""


def spin(seconds: float) -> None:
    """Keep a core busy for so many seconds of its time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def fan(task: str, n: int, given: dict[str, Any] | None = None) -> TaskOutput[None]:
    """Ask for ``n`` runs of a task."""
    return TaskOutput(None, [NextTask(task, given, spawn_another=True) for _ in range(n)])


def fan_out(executor: Any, **options: Any) -> Flow:
    """Return a flow whose task ``fan``, in a thread, asks for runs of the others on ``executor``."""
    flow = Flow(executor, **options)
    flow.add_task("nothing", nothing)
    flow.add_task("spin", spin)
    flow.add_task("fan", fan, executor="thread")
    return flow


def rows() -> Iterator[Row]:
    """Measure and yield every row."""
    yield from own()
    if find_spec("ray"):
        yield from on_ray()
    if find_spec("distributed"):
        yield from on_dask()
    yield from soak()


def own() -> Iterator[Row]:
    start = get_context("forkserver")
    with fan_out("process", max_workers=WORKERS) as flow, ProcessPoolExecutor(WORKERS, mp_context=start) as pool:
        for work, n, inputs, goal, limit in (
            ("process, no-op tasks", 5_000, None, 0.15, 0.30),
            ("process, 1 ms of CPU each", 1_000, {"seconds": 0.001}, 1.0, 1.1),
        ):
            task = "spin" if inputs else "nothing"

            def theirs(n: int = n, inputs: Any = inputs) -> None:
                calls = [pool.submit(spin, **inputs) if inputs else pool.submit(nothing) for _ in range(n)]
                for future in as_completed(calls):
                    future.result()

            yield compare(
                f"{work}, {n:,}",
                "one ProcessPoolExecutor.submit each",
                lambda n=n, task=task, inputs=inputs: flow.run("fan", {"task": task, "n": n, "given": inputs}),
                theirs,
                per=n,
                goal=goal,
                limit=limit,
                rounds=5,
            )


def cluster_rows(flow: Flow, name: str, bare: Callable[[int], Any], busy: Callable[[int], Any]) -> Iterator[Row]:
    """Ours must add at most a fifth to the bare use of a cluster, for tasks that do nothing and for such that work."""
    for work, n, theirs, inputs in (
        ("no-op tasks", 1_000, bare, None),
        ("5 ms of CPU each", 300, busy, {"seconds": 0.005}),
    ):
        task = "spin" if inputs else "nothing"
        yield compare(
            f"{name}, {work}, {n:,}",
            "bare",
            lambda n=n, task=task, inputs=inputs: flow.run("fan", {"task": task, "n": n, "given": inputs}),
            lambda n=n, theirs=theirs: theirs(n),
            per=n,
            goal=1.0,
            limit=1.2,
            rounds=5,
        )


def on_ray() -> Iterator[Row]:
    import ray

    with RayExecutor(num_cpus=2) as executor, fan_out(executor) as flow:
        flow.run("nothing")  # connects
        remote, works = ray.remote(nothing), ray.remote(spin)
        yield from cluster_rows(
            flow,
            "ray",
            lambda n: ray.get([remote.remote() for _ in range(n)]),
            lambda n: ray.get([works.remote(0.005) for _ in range(n)]),
        )


def on_dask() -> Iterator[Row]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
        DaskExecutor(client) as executor,
        fan_out(executor) as flow,
    ):
        yield from cluster_rows(
            flow,
            "dask",
            lambda n: client.gather([client.submit(nothing, pure=False) for _ in range(n)]),
            lambda n: client.gather([client.submit(spin, 0.005, pure=False) for _ in range(n)]),
        )


def soak() -> Iterator[Row]:
    """100,000 task runs in processes: neither the parent nor the workers grow."""
    with Flow("process", max_workers=WORKERS) as flow:
        flow.add_task("nothing", nothing)
        flow.add_task("fan", lazily, executor="thread")
        for _ in flow.stream("fan", {"n": 20_000}):
            pass
        before = sizes()
        for _ in flow.stream("fan", {"n": 100_000}):
            pass
        grown = [after - size for size, after in zip(before, sizes(), strict=True)]
        for whose, more in (("the parent", grown[0]), ("the worker that grew most", max(grown[1:]))):
            yield Row(
                f"memory: 100,000 process tasks, {whose}", "after 20,000", "", "", f"{more:.1f} MiB more", "2", "10",
                more <= 10,
            )  # fmt: skip


def lazily(n: int) -> TaskOutput[None]:
    """Ask for ``n`` runs of the task that does nothing, as workers become free."""
    return TaskOutput(None, (NextTask("nothing", spawn_another=True) for _ in range(n)))


def sizes() -> list[float]:
    """Return the resident sizes of this process and its worker processes, in MiB."""
    import os

    pids = [os.getpid(), *sorted(child.pid or 0 for child in active_children())]
    return [resident(pid) for pid in pids]


def resident(pid: int) -> float:
    """Return the resident size of a process, in MiB."""
    import subprocess

    said = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(said.stdout) / 1024


if __name__ == "__main__":
    for row in rows():
        print(row, flush=True)
