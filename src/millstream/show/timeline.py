"""When the attempts of a run were under way, and in which worker: rows of bars that do not overlap.

A trace has one attempt for each item of a map, and one without a worker for the map itself, which spans them all.
That one is on a row of its own, and counts as no attempt.

May import: report, values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from heapq import heappush, heapreplace
from typing import Any

from millstream.report import RunReport, TaskTrace
from millstream.values import Status


class Bar:
    """One attempt on the timeline."""

    __slots__ = ("attempt", "begin", "counts", "end", "row")

    def __init__(self, attempt: TaskTrace, begin: int, end: int, row: int, *, counts: bool) -> None:
        self.attempt = attempt
        self.begin = begin  #: in nanoseconds since the origin of the timeline, at least 0
        self.end = end  #: the same
        self.row = row  #: number of its row, 0 for the first
        self.counts = counts  #: it is an attempt, not a map, nor a task of which no attempt is known yet


class Timeline:
    """The bars of a run in the order in which they begin, and the names of their rows.

    Every worker is one row. A worker whose attempts overlap, as coroutines do, has as many rows as that takes.

    Args:
        since: an instant in seconds since the epoch. The timeline begins there, or with the first attempt where that
            was before: so is one of a run that was resumed, and a clock may have been set back.
        trace: the attempts.
    """

    def __init__(self, since: float, trace: Iterable[TaskTrace]) -> None:
        attempts = sorted(trace, key=lambda attempt: attempt.started_at)
        self.origin = min([since, *(attempt.started_at for attempt in attempts[:1])])  #: in seconds since the epoch
        rows, maps = _Rows(), _maps(attempts)
        self.bars: list[Bar] = []
        for attempt in attempts:
            begin = round((attempt.started_at - self.origin) * 1e9)
            end = begin + round(attempt.duration * 1e9)
            aside = _aside(attempt, maps)
            whose = (attempt.task, aside) if aside else (attempt.worker, "")
            self.bars.append(Bar(attempt, begin, end, rows.take(whose, begin, end), counts=not aside))
        self.rows: Sequence[str] = rows.names


def _maps(attempts: Iterable[TaskTrace]) -> set[str]:
    """Return the ids of task runs that have items, such as ``size`` where there is ``size[0]``."""
    return {attempt.id.rpartition("[")[0] for attempt in attempts if attempt.id.endswith("]")}


def _aside(attempt: TaskTrace, maps: set[str]) -> str:
    """Return what stands after the task in the name of a row that no worker has; "" for an attempt in a worker.

    What failed before a worker had it has none either, and is an attempt. A map without items has succeeded.
    """
    if attempt.worker:
        return ""
    if attempt.status is Status.RUNNING:
        return " (running)"
    return " (map)" if attempt.status is Status.SUCCESS or attempt.id in maps else ""


def earliest(report: RunReport) -> float:
    """Return the first instant that a report knows of; a resumed run has rows from before it was resumed."""
    began = (row.started_at for row in report.tasks.values())
    return min([report.created_at, *(at for at in began if at is not None)])


class _Rows:
    """As few rows for each worker as show its attempts without overlap; the same for each map."""

    def __init__(self) -> None:
        self.names: list[str] = []  #: of the rows
        #: By whose rows they are, a heap: when each row is free again, its number.
        self._free: dict[tuple[str, str], list[tuple[int, int]]] = {}

    def take(self, whose: tuple[str, str], begin: int, end: int) -> int:
        """Return the number of a row that is free from ``begin`` on, and take it until ``end``.

        Calls come in the order of ``begin``.
        """
        rows = self._free.setdefault(whose, [])
        if rows and rows[0][0] <= begin:
            number = rows[0][1]
            heapreplace(rows, (end, number))
            return number
        number = len(self.names)
        name = "".join(whose)
        self.names.append(f"{name} ({len(rows) + 1})" if rows else name)
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
