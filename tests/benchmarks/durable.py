"""The rows about durable runs: what keeping a run costs, beside bare commits of the same bytes, and its memory."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from itertools import count
from statistics import median

from millstream import Flow, NextTask, SQLiteStore, TaskOutput
from tests.benchmarks.measure import Row, compare, in_subprocess, timed

N = 3_000
ROUNDS = 7

MEMORY = """
import os, resource, sys, tempfile
from millstream import Flow, NextTask, SQLiteStore, TaskOutput

def peak() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1 << 20 if sys.platform == "darwin" else 1 << 10)  # bytes there, KiB here

with tempfile.TemporaryDirectory() as folder, SQLiteStore(os.path.join(folder, "runs.db"), sync="group") as store:
    flow = Flow(store=store, max_workers=4)
    flow.add_task("chain", lambda n: TaskOutput(n, [NextTask("chain", {"n": n - 1})] if n else None))
    flow.add_task("none", lambda n: n)
    flow.add_task("fan", lambda n: TaskOutput(None, (NextTask("none", {"n": i}, spawn_another=True) for i in range(n))))

    def run(n):
        for _ in flow.stream("WHAT", {"n": n}):
            pass

    run(20_000)
    before = peak()
    run(100_000)
    print(peak() - before)
    flow.close()
"""


def flow_with(store: SQLiteStore | None) -> Flow:
    """Return a flow with a chain and a fan-out of tasks that do nothing."""
    flow = Flow(store=store, max_workers=4)
    flow.add_task("chain", lambda n: NextTask("chain", {"n": n - 1}) if n else None)
    flow.add_task("none", lambda n: n)
    flow.add_task("fan", lambda n: TaskOutput(None, [NextTask("none", {"n": i}, spawn_another=True) for i in range(n)]))
    return flow


def rows() -> Iterator[Row]:
    """Measure and yield every row."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "runs.db")
        for work in ("chain", "fan"):
            with SQLiteStore(path, sync="group") as store, flow_with(store) as kept, flow_with(None) as bare:
                yield added(work, kept, bare)
        for work in ("chain", "fan"):
            with SQLiteStore(path, sync="each") as store, flow_with(store) as flow:
                flow.run(work, {"n": N}, run_id="sample")
                texts = [entry.text for entry in store.entries("sample", ["finished"])]
                flow.forget("sample")
                with commits(os.path.join(folder, "bare.db"), texts) as bare_side:
                    yield compare(
                        f"durable {work}, each, {N:,}",
                        "a bare commit of the same bytes each",
                        lambda flow=flow, work=work: flow.run(work, {"n": N}),
                        bare_side.commit_all,
                        per=N,
                        goal=2.0,
                        limit=2.5,
                        rounds=ROUNDS,
                    )
    for what, work in (("chain", "chain"), ("lazily pulled fan-out", "fan")):
        more = in_subprocess(MEMORY.replace("WHAT", work))
        yield Row(
            f"memory: durable {what} of 100,000", "its own peak at 20,000", "", "", f"{more:.1f} MiB more", "5", "20",
            more <= 20,
        )  # fmt: skip


def added(work: str, kept: Flow, bare: Flow) -> Row:
    """Return the row about what ``sync="group"`` adds to each task run."""
    kept.run(work, {"n": N}), bare.run(work, {"n": N})
    pairs = [(timed(lambda: kept.run(work, {"n": N})), timed(lambda: bare.run(work, {"n": N}))) for _ in range(ROUNDS)]
    mine, other = (median(side) / N * 1e6 for side in zip(*pairs, strict=True))
    more = median(a - b for a, b in pairs) / N * 1e6
    return Row(
        f"durable {work}, group, {N:,}", "without a store", f"{mine:.2f} µs", f"{other:.2f} µs", f"{more:.1f} µs more",
        "20", "40", more <= 40,
    )  # fmt: skip


class commits:
    """The plain way: one SQLite commit for each text."""

    def __init__(self, path: str, texts: list[str]) -> None:
        self._texts, self._numbers = texts, count(1)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS journal (number INTEGER PRIMARY KEY, text TEXT NOT NULL)")
        self._db.execute("DELETE FROM journal")

    def commit_all(self) -> None:
        """Commit each."""
        for text in self._texts:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("INSERT INTO journal VALUES (?, ?)", (next(self._numbers), text))
            self._db.execute("COMMIT")

    def __enter__(self) -> commits:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()


if __name__ == "__main__":
    for row in rows():
        print(row, flush=True)
