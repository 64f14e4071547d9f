"""What became of a run: one row a task, read off what the run knows of its tasks, and the report of it.

May import: lane, scheduler, report, values; and the run for its types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from millstream.engine.lane import RunTask
from millstream.engine.states import WORSE
from millstream.report import Digest, RunReport, TaskReport
from millstream.values import Status

if TYPE_CHECKING:
    from millstream.engine.run import FlowRun

#: From the worst on, for a row that speaks of several runs.
ORDER = (*WORSE, Status.RUNNING, Status.PENDING, Status.SUCCESS)


class Failure:
    """An error until there is time to make a digest of it.

    The error itself would keep all frames alive that it went through.
    """

    __slots__ = ("_kept",)

    def __init__(self, error: BaseException) -> None:
        self._kept: BaseException | Digest = error

    @property
    def error(self) -> BaseException | None:
        """The error itself, as long as it is kept."""
        return None if isinstance(self._kept, Digest) else self._kept

    def digest(self) -> Digest:
        """Let go of the error. This runs its own code, so no lock may be held."""
        kept = self._kept
        if not isinstance(kept, Digest):
            kept = self._kept = Digest(kept)
        return kept


class Row:
    """What is to be told of all runs of a task; nothing in it leads back to the run."""

    __slots__ = ("attempt", "began", "ended", "failure", "output", "runs", "status")

    def __init__(self, task: RunTask, status: Status) -> None:
        self.status = status
        self.attempt, self.runs = task.attempt, task.runs
        self.began, self.ended = task.began, task.ended
        self.output, self.failure = task.output, task.failure

    def add(self, other: Row) -> None:
        """Two functions of one name were called: they share a row."""
        self.status = min(self.status, other.status, key=ORDER.index)
        self.runs += other.runs
        self.failure = self.failure or other.failure
        if other.began is not None and (self.began is None or other.began < self.began):
            self.began = other.began
        if other.ended is not None and (self.ended is None or other.ended >= self.ended):
            self.ended, self.output, self.attempt = other.ended, other.output, other.attempt


class RunRecord:
    """What a report is made of, as things stand; after the end of a run, all that is kept of it."""

    def __init__(self, run: FlowRun, rows: dict[str, Row], error: BaseException | None) -> None:
        self.id, self.flow, self.metadata = run.id, run.plan.flow, dict(run.context.metadata)
        seen = run.observer
        self.began, self.ended, self.status = seen.began_at, seen.ended_at, run.status
        self.rows = rows
        self.trace = None if seen.trace is None else tuple(seen.trace)
        same = (row.failure for row in rows.values() if row.failure is not None and row.failure.error is error)
        self.failure = None if error is None else next(same, None) or Failure(error)
        self._wall = seen.wall(0.0)
        self._known = run.plan.known()

    def let_go(self) -> None:
        """Let go of the errors themselves. No lock held."""
        for failure in [self.failure, *(row.failure for row in self.rows.values())]:
            if failure is not None:
                failure.digest()

    def report(self) -> RunReport:
        """Return the report. No lock held."""

        def wall(at: float | None) -> float | None:
            return None if at is None else self._wall + at

        place = {name: place for place, name in enumerate(self._known)}
        tasks = {
            name: TaskReport(
                row.status,
                row.attempt,
                row.runs,
                wall(row.began),
                wall(row.ended),
                None if row.failure is None else row.failure.digest().report(),
                row.output,
            )
            for name, row in sorted(self.rows.items(), key=lambda entry: place.get(entry[0], len(place)))
        }
        error = None if self.failure is None else self.failure.digest().report()
        created, finished = self._wall + self.began, wall(self.ended)
        return RunReport(self.id, self.flow, self.metadata, created, finished, self.status, tasks, self.trace, error)


def record_of(run: FlowRun, error: BaseException | None) -> RunRecord:
    """Return what became of a run so far. Under its monitor."""
    rows: dict[str, Row] = {}
    for task in run.met:
        status = _status(run, task)
        if status is None:
            continue
        row = Row(task, status)
        if task.name in rows:
            rows[task.name].add(row)
        else:
            rows[task.name] = row
    return RunRecord(run, rows, error)


def _status(run: FlowRun, task: RunTask) -> Status | None:
    """Return what is to be said of all runs of a task; None: it has no part in this run."""
    if task.live and not run.finished:
        return Status.RUNNING if task.began is not None else Status.PENDING
    if task.worst is not None and (task.worst is not Status.SKIPPED or not task.runs):
        return task.worst
    if task.runs:
        return Status.SUCCESS
    return Status.PENDING if run.expects(task) else None
