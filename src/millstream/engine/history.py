"""The report of a run that is in a store, read off its journal.

May import: diagram, journal, record, report, stores.base, values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from millstream.diagram import Diagram, EdgeKind
from millstream.engine.journal import Reader
from millstream.engine.record import ORDER
from millstream.report import ErrorReport, RunReport, TaskReport
from millstream.stores.base import Entry, StoredRun
from millstream.values import Status

#: In place of a task run: what the end of the run says of a task.
END = "the end"


class Task:
    """What the journal says of the runs of one task."""

    def __init__(self) -> None:
        self.open: dict[Any, Status] = {}  #: what became of those that did not succeed in the end
        self.errors: dict[Any, ErrorReport] = {}  #: why, in the same order
        self.failed: set[Any] = set()  #: of these, those that had begun
        self.returned: set[Any] = set()  #: those that succeeded, but for a call that they had submitted
        self.attempt = self.runs = 0
        self.began: float | None = None
        self.ended: float | None = None
        self.result: Any = None
        self.last: tuple[int, int] | None = None  #: runs and attempt, as they were at the end

    def begins_anew(self) -> None:
        """The run is resumed: what had not succeeded runs again, but for what was skipped."""
        self.open = {who: status for who, status in self.open.items() if status is Status.SKIPPED and who != END}
        self.errors, self.failed, self.returned, self.last = {}, set(), set(), None

    def report(self) -> TaskReport:
        """Return the row."""
        status = min((*self.open.values(), Status.SUCCESS), key=ORDER.index)
        error = next(iter(self.errors.values()), None)
        runs, attempt = self.last or (self.runs + len(self.failed) + len(self.returned), self.attempt)
        return TaskReport(status, attempt, runs, self.began, self.ended, error, self.result)


class Requests:
    """What asked for what, by name. Some requests are in the journal before the name of who made them is."""

    def __init__(self) -> None:
        self.links: set[tuple[str, str, EdgeKind]] = set()
        self._made: dict[int | None, dict[str, bool]] = {}  # by path: what was asked for, and whether as a join

    def made(self, path: int | None, shapes: Iterable[Any]) -> None:
        """A task run has asked for these."""
        made = self._made.setdefault(path, {})
        for name, _, joins, *_ in shapes:
            made[name] = made.get(name, False) or joins

    def by(self, path: int | None, asker: str) -> None:
        """That was a run of this task."""
        made = self._made.pop(path, {})
        self.links |= {(asker, name, EdgeKind.REQUEST) for name in made}
        joins = [name for name, is_join in made.items() if is_join]
        self.links |= {(name, join, EdgeKind.JOIN) for name in made if not made[name] for join in joins}


def report_of(
    head: StoredRun,
    metadata: Mapping[str, Any],
    resumed_from: str | None,
    order: Iterable[str],
    reader: Reader,
    entries: Iterable[Entry],
    declared: Diagram,
) -> RunReport:
    """Return the report of a run.

    Args:
        head: of the run.
        metadata: of the run.
        resumed_from: the id of the run that it was made from.
        order: the names of the flow's tasks.
        reader: of the journal.
        entries: of the journal, after its beginning.
        declared: the picture of the flow as it is now.
    """
    tasks: dict[str, Task] = {}
    requests = Requests()
    error: ErrorReport | None = None
    for entry in entries:
        if entry.kind in ("finished", "returned", "failed", "settled", "retry"):
            facts, values = reader.facts(entry)
            task = tasks.setdefault(facts[0], Task())
            _see(task, entry, facts, values)
            if entry.kind in ("finished", "returned") and isinstance(facts[6], list):
                requests.made(entry.key, facts[6])
            requests.by(entry.key, facts[0])
        elif entry.kind == "asked":
            requests.made(entry.key, [reader.facts(entry)[0]])
        elif entry.kind == "page":
            requests.made(entry.key, reader.facts(entry)[0][1])
        elif entry.kind == "resumed":  # what had not succeeded begins anew
            for task in tasks.values():
                task.begins_anew()
        elif entry.kind == "end":
            (_, _, said, others), _ = reader.facts(entry)
            error = None if said is None else ErrorReport(*said)
            for name, status, runs, attempt in others:
                task = tasks.setdefault(name, Task())
                task.open[END] = Status(status)
                task.last = runs, attempt
    place = {name: place for place, name in enumerate(order)}
    names = sorted(tasks, key=lambda name: place.get(name, len(place)))
    rows = {name: tasks[name].report() for name in names}
    if head.status is Status.SUCCESS:
        error = None
    times = head.created_at, head.finished_at
    diagram = declared.after({name: (row.status, row.runs) for name, row in rows.items()}, requests.links)
    return RunReport(head.id, head.flow, dict(metadata), *times, head.status, rows, None, error, resumed_from, diagram)


def _see(task: Task, entry: Entry, facts: Any, values: list[Any]) -> None:
    path = entry.key
    if entry.kind in ("finished", "returned"):
        name, number, place, attempt, began, ended, *_ = facts
        for who in (path, name if number == 1 else f"{name}#{number}"):
            task.open.pop(who, None)
            task.errors.pop(who, None)
        if place is not None:  # an item: the map has an entry of its own
            return
        task.attempt, task.ended = attempt, ended
        task.began = task.began if task.began is not None else began
        task.returned.discard(path)
        if entry.kind == "finished":
            task.runs += 1
        else:
            task.returned.add(path)
        task.result = values[0]
    elif entry.kind == "failed":
        _, _, task.attempt, status, began, task.ended, *said = facts
        task.began = task.began if task.began is not None else began
        task.open[path] = Status(status)
        task.failed.add(path)
        task.errors.setdefault(path, ErrorReport(*said))
    elif entry.kind == "retry":
        _, _, task.attempt, *_ = facts
        task.open[path] = Status.PENDING
    else:
        _, task_id, status, task.ended, said = facts
        task.open[task_id] = Status(status)
        if said is not None:
            task.errors[task_id] = ErrorReport(*said)
