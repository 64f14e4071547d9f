"""What became of a run: one row a task, read off what the run knows of its tasks, and the report of it.

May import: states, report, diagram, values; and the run for its types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.engine.states import WORSE
from millstream.report import Digest, RunReport, TaskReport, TaskTrace
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


#: An attempt as it is kept for the trace, by the clock of the run: task, id, attempt, status, when it began and
#: ended, worker, failure.
Traced = tuple[str, str, int, Status, float, float, str, Failure | None]

#: What is told of all runs of a task, as they are kept: name, live, worst, runs, attempt, began, ended,
#: output, failure. Nothing in it leads back to the run.
Kept = tuple[str, int, Status | None, int, int, float | None, float | None, Any, Failure | None]


class Row:
    """What is to be told of all runs of a task."""

    __slots__ = ("attempt", "began", "ended", "failure", "output", "runs", "status")

    def __init__(self, kept: Kept, status: Status) -> None:
        self.status = status
        _, _, _, self.runs, attempt, self.began, self.ended, self.output, self.failure = kept
        self.attempt = 0 if self.began is None else attempt

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

    def __init__(self, run: FlowRun, tasks: list[Any], error: BaseException | None) -> None:
        """``tasks`` is a list of ``RunTask``s, which is used up."""
        self.id, self.flow, self.metadata = run.id, run.plan.flow, dict(run.context.metadata)
        seen = run.observer
        self.began, self.ended, self.status = seen.began_at, seen.ended_at, run.status
        self._trace = None if seen.trace is None else tuple(seen.trace)
        self._finished = run.finished
        self._maps = frozenset(task.name for task in tasks if task.each is not None)
        self._expected = set() if run.finished else {task.name for task in tasks if run.expects(task)}
        # Rows are made of these when somebody asks for a report. One object goes as one comes: else the
        # garbage collector would look through everything once more.
        for place, t in enumerate(tasks):
            tasks[place] = (t.name, t.live, t.worst, t.runs, t.attempt, t.began, t.ended, t.output, t.failure)
        self._kept: list[Kept] = tasks
        self._failures = list(run.first_failures)
        same = (failure for failure in self._failures if failure.error is error)
        self.failure = None if error is None else next(same, None) or Failure(error)
        self._wall, self._resumed_from, self._created = seen.wall(0.0), run.resumed_from, run.created_at
        self._known, self._declared = run.plan.known(), run.plan.diagram
        self._links = frozenset(run.scheduler.links)
        self._executors = {task.name: run.plan.executor_of(task.terms) for task in run.scheduler.called}

    def let_go(self) -> None:
        """Let go of the errors themselves. No lock held."""
        for failure in self._failures:
            failure.digest()
        if self.failure is not None:
            self.failure.digest()

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
            for name, row in sorted(self._rows().items(), key=lambda entry: place.get(entry[0], len(place)))
        }
        error = None if self.failure is None else self.failure.digest().report()
        created = self._wall + self.began if self._created is None else self._created
        finished = wall(self.ended)
        ids = self.id, self.flow, self.metadata
        diagram = self._declared().after(
            {name: (row.status, row.runs) for name, row in tasks.items()}, self._links, self._executors
        )
        return RunReport(
            *ids, created, finished, self.status, tasks, self._traces(), error, self._resumed_from, diagram
        )

    def _traces(self) -> tuple[TaskTrace, ...] | None:
        if self._trace is None:
            return None
        wall = self._wall
        said: list[TaskTrace] = []
        for task, task_id, attempt, status, began, ended, worker, failure in self._trace:
            error = None if failure is None else failure.digest().report()
            if task in self._maps and (task_id == task or task_id.removeprefix(f"{task}#").isdigit()):
                worker = ""  # the map itself: its items have workers
            said.append(TaskTrace(task, task_id, attempt, status, wall + began, wall + ended, worker, error))
        return tuple(said)

    def _rows(self) -> dict[str, Row]:
        rows: dict[str, Row] = {}
        for kept in self._kept:
            name, status = kept[0], self._status(kept)
            if status is None:
                continue
            row = Row(kept, status)
            if name in rows:
                rows[name].add(row)
            else:
                rows[name] = row
        return rows

    def _status(self, kept: Kept) -> Status | None:
        """Return what is to be said of all runs of a task; None: it has no part in this run."""
        name, live, worst, runs, _, began, *_ = kept
        if live and not self._finished:
            return Status.RUNNING if began is not None else Status.PENDING
        if worst is not None and (worst is not Status.SKIPPED or not runs):
            return worst
        if runs:
            return Status.SUCCESS
        return Status.PENDING if name in self._expected else None
