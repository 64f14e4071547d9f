"""The rows about memory, idle cost and import: each in a fresh interpreter."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.measure import Row, in_subprocess

PEAK = """
import resource, sys
from millstream import Flow, NextTask, TaskOutput

def peak() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1 << 20 if sys.platform == "darwin" else 1 << 10)  # bytes there, KiB here

flow = Flow(max_workers=4)
left = 0

@flow.task
def step(_):
    global left
    left -= 1
    return TaskOutput(left, [NextTask("step")] if left else None)

@flow.task
def fan(n):
    return TaskOutput(None, (NextTask("none", spawn_another=True) for _ in range(n)))

@flow.task
def each(n):
    yield from range(n)

flow.add_task("none", lambda _: TaskOutput(None, [NextTask("end")]))
flow.add_task("end", lambda _: None)

def chain(n):
    global left
    left = n
    flow.run("step")

def fan_out(n):
    flow.run("fan", {"n": n})

def stream(n):
    assert sum(1 for _ in flow.stream("each", {"n": n})) == n + 1
"""

KEPT = """
import gc, tracemalloc
from millstream import Flow, NextTask, TaskOutput

n = 100_000
flow = Flow(max_workers=4)
flow.add_task("one", lambda _: None)
flow.add_task("fan", lambda _: TaskOutput(None, [NextTask("one", spawn_another=True) for _ in range(n)]))
flow.run("fan")
gc.collect()
tracemalloc.start()
results = flow.run("fan")
gc.collect()
print(tracemalloc.get_traced_memory()[0] / len(results))
"""

IDLE = """
import time
from concurrent.futures import ThreadPoolExecutor
from millstream import Flow

def cpu(work):
    began = time.process_time()
    work()
    return time.process_time() - began

with Flow(max_workers=4) as flow, ThreadPoolExecutor(4) as pool:
    flow.add_task("sleep", lambda _: time.sleep(2))
    flow.add_task("warm", lambda _: None)
    flow.run("warm"), pool.submit(int).result()
    ours = cpu(lambda: flow.run("sleep"))
    theirs = cpu(lambda: pool.submit(time.sleep, 2).result())
print((ours - theirs) * 1000)
"""

IMPORT = """
import time
import concurrent.futures.thread
began = time.perf_counter()
import millstream
took = time.perf_counter() - began
import sys
assert "asyncio" not in sys.modules and "multiprocessing" not in sys.modules
print(took * 1000)
"""


def rows() -> Iterator[Row]:
    """Measure and yield every row."""
    for work, name in (("chain", "chain"), ("fan_out", "lazily pulled fan-out"), ("stream", "stream")):
        more = in_subprocess(f"{PEAK}\n{work}(100_000)\nbefore = peak()\n{work}(1_000_000)\nprint(peak() - before)")
        yield _row(f"memory: {name} of 1,000,000", "its own peak at 100,000", more, "MiB more", 5, 20)
    yield _row("memory: fan-out, results kept", "-", in_subprocess(KEPT), "bytes a task run", 400, 700)
    yield _row("idle, one task sleeps 2 s", "CPU of a bare pool", in_subprocess(IDLE), "ms more", 5, 20)
    took = sorted(in_subprocess(IMPORT) for _ in range(7))[3]
    yield _row("import", "beyond concurrent.futures.thread", took, "ms", 15, 30)


def _row(work: str, against: str, value: float, unit: str, goal: float, limit: float) -> Row:
    return Row(work, against, "", "", f"{value:.1f} {unit}", f"{goal:g}", f"{limit:g}", value <= limit)
