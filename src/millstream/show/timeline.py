"""When the attempts of a run were under way, and in which worker: rows of bars that do not overlap.

May import: report.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from heapq import heappush, heapreplace
from typing import Any

from millstream.report import TaskTrace


class Bar:
    """One attempt on the timeline."""

    __slots__ = ("attempt", "begin", "end", "row")

    def __init__(self, attempt: TaskTrace, begin: int, end: int, row: int) -> None:
        self.attempt = attempt
        self.begin = begin  #: in nanoseconds since the start of the run, at least 0
        self.end = end  #: the same
        self.row = row  #: number of its row, 0 for the first


class Timeline:
    """The bars of a run in the order in which they begin, and the names of their rows.

    Every worker is one row. A worker whose attempts overlap, as coroutines do, has as many rows as that takes.

    Args:
        created_at: the start of the run, in seconds since the epoch.
        trace: its attempts.
    """

    def __init__(self, created_at: float, trace: Iterable[TaskTrace]) -> None:
        rows = _Rows()
        self.bars: list[Bar] = []
        for attempt in sorted(trace, key=lambda attempt: attempt.started_at):
            begin = round(max(0.0, attempt.started_at - created_at) * 1e9)
            end = begin + round(attempt.duration * 1e9)
            self.bars.append(Bar(attempt, begin, end, rows.take(attempt.worker, begin, end)))
        self.rows: Sequence[str] = rows.names


class _Rows:
    """As few rows for each worker as show its attempts without overlap."""

    def __init__(self) -> None:
        self.names: list[str] = []  #: of the rows
        self._free: dict[str, list[tuple[int, int]]] = {}  #: by worker, a heap: when each row is free again, its number

    def take(self, worker: str, begin: int, end: int) -> int:
        """Return the number of a row that is free from ``begin`` on, and take it until ``end``.

        Calls come in the order of ``begin``.
        """
        rows = self._free.setdefault(worker, [])
        if rows and rows[0][0] <= begin:
            number = rows[0][1]
            heapreplace(rows, (end, number))
            return number
        number = len(self.names)
        self.names.append(f"{worker} ({len(rows) + 1})" if rows else worker)
        heappush(rows, (end, number))
        return number


def chrome_trace(flow: str, created_at: float, trace: Iterable[TaskTrace]) -> str:
    """Return the trace as JSON for ``chrome://tracing``; see ``RunReport.to_chrome_trace``."""
    timeline = Timeline(created_at, trace)
    events = [_name("process_name", 0, flow)]
    events += [_name("thread_name", number, name) for number, name in enumerate(timeline.rows, 1)]
    for bar in timeline.bars:
        attempt = bar.attempt
        events.append(
            {
                "name": attempt.task,
                "cat": "task",
                "ph": "X",
                "ts": bar.begin / 1000,
                "dur": (bar.end - bar.begin) / 1000,
                "pid": 1,
                "tid": bar.row + 1,
                "args": {"id": attempt.id, "attempt": attempt.attempt, "status": str(attempt.status)},
            }
        )
    return json.dumps({"traceEvents": events})


def _name(what: str, tid: int, name: str) -> dict[str, Any]:
    """Return the metadata event that names a process or one of its rows."""
    return {"name": what, "ph": "M", "pid": 1, "tid": tid, "args": {"name": name}}
