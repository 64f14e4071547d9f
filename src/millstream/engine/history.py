"""The report of a run that is in a store, read off its journal.

May import: journal, record, report, stores.base, values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from millstream.engine.journal import Reader
from millstream.engine.record import ORDER
from millstream.report import ErrorReport, RunReport, TaskReport
from millstream.stores.base import Entry, StoredRun
from millstream.values import Status


class Task:
    """What the journal says of the runs of one task."""

    def __init__(self) -> None:
        self.open: dict[Any, Status] = {}  #: what became of those that did not succeed in the end
        self.attempt = self.runs = 0
        self.began: float | None = None
        self.ended: float | None = None
        self.error: ErrorReport | None = None
        self.errors: dict[Any, ErrorReport] = {}
        self.result: Any = None

    def report(self) -> TaskReport:
        status = min((*self.open.values(), Status.SUCCESS), key=ORDER.index)
        error = next((self.errors[path] for path in self.errors if path in self.open), None)
        runs = self.runs + sum(status in (Status.FAILED, Status.ABANDONED) for status in self.open.values())
        return TaskReport(status, self.attempt, runs, self.began, self.ended, error, self.result)


def report_of(
    head: StoredRun, metadata: Mapping[str, Any], resumed_from: str | None, reader: Reader, entries: Iterable[Entry]
) -> RunReport:
    """Return the report of a run, of which ``entries`` is the journal."""
    tasks: dict[str, Task] = {}
    error: ErrorReport | None = None
    for entry in entries:
        if entry.kind in ("finished", "failed", "settled", "retry"):
            facts, values = reader.facts(entry)
            task = tasks.setdefault(facts[0], Task())
            _see(task, entry, facts, values)
        elif entry.kind == "resumed":  # what had not succeeded begins anew
            for task in tasks.values():
                task.open, task.errors = {}, {}
        elif entry.kind == "end":
            (_, _, said, others), _ = reader.facts(entry)
            error = None if said is None else ErrorReport(*said)
            for name, status in others:
                tasks.setdefault(name, Task()).open["end"] = Status(status)
    rows = {name: task.report() for name, task in tasks.items()}
    if head.status is Status.SUCCESS:
        error = None
    times = head.created_at, head.finished_at
    return RunReport(
        head.id, head.flow, dict(metadata), *times, head.status, rows, None, error, resumed_from=resumed_from
    )


def _see(task: Task, entry: Entry, facts: Any, values: list[Any]) -> None:
    path = entry.key
    if entry.kind == "finished":
        _, _, place, task.attempt, began, task.ended, *_ = facts
        task.began = task.began if task.began is not None else began
        task.runs += 1
        task.open.pop(path, None)
        if place is None:
            task.result = values[0]
    elif entry.kind == "failed":
        _, _, task.attempt, status, began, task.ended, *said = facts
        task.began = task.began if task.began is not None else began
        task.open[path] = Status(status)
        task.errors.setdefault(path, ErrorReport(*said))
    elif entry.kind == "retry":
        _, _, task.attempt, *_ = facts
        task.open[path] = Status.PENDING
    else:
        _, task_id, status, task.ended, reason = facts
        task.open[task_id] = Status(status)
        if Status(status) is Status.FAILED:
            task.errors[task_id] = ErrorReport("DependencyFailedError", reason, "")
