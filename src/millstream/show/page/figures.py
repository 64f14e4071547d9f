"""What a run comes to, counted from its report: figures of the whole, of each task, and its failures in groups.

Rule 1: nothing here knows how a figure is shown; ``html`` does.
Rule 2: what the report cannot say is None, never a guess. Attempts are known from a trace alone.

May import: report, values, timeline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from millstream.report import ErrorReport, RunReport, TaskReport, TaskTrace
from millstream.show.timeline import Bar, Timeline
from millstream.values import Status

#: So many ids of task runs stand beside a group of failures.
_FIRST_FEW = 5


class TaskFigures:
    """What the attempts of one task come to."""

    __slots__ = ("durations", "failures", "retries")

    def __init__(self) -> None:
        self.durations: list[float] = []  #: in seconds, of each attempt
        self.failures = 0  #: attempts that failed
        self.retries = 0  #: attempts after the first one of their task run


class Failure:
    """Failed attempts of one task with the same error."""

    __slots__ = ("count", "error", "ids", "task")

    def __init__(self, task: str, error: ErrorReport) -> None:
        self.task = task
        self.error = error
        self.count = 0
        self.ids: list[str] = []  #: of the first few task runs

    def add(self, id: str) -> None:
        """One more attempt has failed like this."""
        self.count += 1
        if len(self.ids) < _FIRST_FEW and id not in self.ids:
            self.ids.append(id)


class Figures:
    """What is counted once for a page.

    Args:
        report: the run, finished or not.
    """

    def __init__(self, report: RunReport) -> None:
        self.traced = report.trace is not None
        self.timeline = Timeline(report.created_at, stand_ins(report) if report.trace is None else report.trace)
        self.length = length(report, self.timeline.bars)  #: seconds that the timeline covers
        self.tasks: dict[str, TaskFigures] = {name: TaskFigures() for name in report.tasks}
        self.failures: list[Failure] = []  #: in the order in which they came up
        self.group: dict[int, int] = {}  #: number of a bar that failed -> number of its group
        self._count()
        self._group(report)

    def _count(self) -> None:
        for bar in self.timeline.bars:
            attempt = bar.attempt
            task = self.tasks.get(attempt.task)
            if task is None:
                task = self.tasks[attempt.task] = TaskFigures()
            task.durations.append(attempt.duration)
            task.failures += attempt.status is Status.FAILED
            task.retries += attempt.attempt > 1

    def _group(self, report: RunReport) -> None:
        """Group the errors of the bars; then come those of tasks that have none there, then that of the run."""
        known: dict[tuple[str, str, str], int] = {}
        for number, bar in enumerate(self.timeline.bars):
            attempt = bar.attempt
            if attempt.error is not None:
                key = (attempt.task, attempt.error.type, attempt.error.traceback)
                if key not in known:
                    known[key] = self._new_group(attempt.task, attempt.error)
                self.group[number] = known[key]
                self.failures[known[key]].add(attempt.id)
        shown = {task for task, _, _ in known}
        for name, row in report.tasks.items():
            if row.error is not None and name not in shown:
                self.failures[self._new_group(name, row.error)].count = 1
        if report.error is not None and not self.failures:
            self.failures[self._new_group("", report.error)].count = 1

    def _new_group(self, task: str, error: ErrorReport) -> int:
        self.failures.append(Failure(task, error))
        return len(self.failures) - 1

    @property
    def workers(self) -> set[str]:
        """The names of all workers that called anything."""
        return {bar.attempt.worker for bar in self.timeline.bars}

    def busiest(self) -> tuple[str, float] | None:
        """Return the worker that was busy for longest, and for how many seconds; None when nobody was."""
        busy: dict[str, float] = {}
        for bar in self.timeline.bars:
            busy[bar.attempt.worker] = busy.get(bar.attempt.worker, 0.0) + bar.attempt.duration
        return max(busy.items(), key=lambda pair: pair[1], default=None)

    def mean_parallelism(self) -> float | None:
        """Return how many attempts were under way on average; None when the timeline has no length."""
        busy = sum(sum(task.durations) for task in self.tasks.values())
        return busy / self.length if self.length else None


def stand_ins(report: RunReport) -> Iterable[TaskTrace]:
    """Yield one bar for each task that has begun, from its row, in place of the attempts that nobody kept."""
    instants = [report.created_at, report.finished_at]
    for row in report.tasks.values():
        instants += [row.started_at, row.finished_at]
    newest = max(instant for instant in instants if instant is not None)
    for name, row in report.tasks.items():
        if row.started_at is not None:
            end = newest if row.finished_at is None else row.finished_at
            yield TaskTrace(name, name, row.attempt, row.status, row.started_at, end, name, row.error)


def length(report: RunReport, bars: Sequence[Bar]) -> float:
    """Return how many seconds there are from the start of a run to its end, or to that of its last bar."""
    ran = 0.0 if report.finished_at is None else report.finished_at - report.created_at
    return max([ran, 0.0, *(bar.end / 1e9 for bar in bars)])


def peak(bars: Iterable[Bar]) -> int:
    """Return how many bars there are at the same time at most. One that ends makes room for one that begins."""
    changes = [change for bar in bars for change in ((bar.begin, 1), (max(bar.end, bar.begin + 1), -1))]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def percentile(ordered: Sequence[float], percent: int) -> float | None:
    """Return the smallest of some numbers that so many percent of them do not exceed; None when there are none.

    The number at rank ``ceil(percent / 100 * n)``, counted from 1: always one of the numbers, never one between.

    Source: the nearest-rank method, https://en.wikipedia.org/wiki/Percentile#The_nearest-rank_method

    Args:
        ordered: the numbers, the smallest first.
        percent: 1 to 100.
    """
    if not ordered:
        return None
    return ordered[-(-percent * len(ordered) // 100) - 1]


def offsets(report: RunReport, row: TaskReport | None) -> tuple[float | None, float | None]:
    """Return when the first run of a task began and the last one ended, in seconds after the start of the run."""
    if row is None:
        return None, None
    began, ended = (
        None if instant is None else max(0.0, instant - report.created_at)
        for instant in (row.started_at, row.finished_at)
    )
    return began, ended
