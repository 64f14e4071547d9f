"""What a run comes to, counted from its report: figures of the whole, of each task, and its failures in groups.

Rule 1: nothing here knows how a figure is shown; ``html`` does.
Rule 2: what the report cannot say is None, never a guess. Attempts are known from a trace alone.
Rule 3: ``kind_of`` alone decides what is a failure.

May import: report, values, timeline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from millstream.report import ErrorReport, RunReport, TaskTrace
from millstream.show.timeline import Bar, Timeline, earliest
from millstream.values import Status

MOST_FAILURES = 200  #: groups that are shown

#: So many ids of task runs stand beside a group of failures.
_FIRST_FEW = 5

#: What has not ended is drawn for this part of the whole beyond the latest instant: else it might not be seen.
_BEYOND = 0.05

#: In what ways something can end, and what it means for a status.
KINDS = {
    "succeeded": {Status.SUCCESS},
    "failed": {Status.FAILED},
    "cancelled": {Status.CANCELLED, Status.ABANDONED},
    "skipped": {Status.SKIPPED},
    "unfinished": {Status.PENDING, Status.RUNNING},
}
_KIND = {status: kind for kind, states in KINDS.items() for status in states}

#: Who was told to stop has not failed.
_STOPS = ("millstream.errors.TaskCancelledError", "millstream.errors.RunCancelledError")


def kind_of(status: Status, error: ErrorReport | None) -> str:
    """Return how something ended, as one of ``KINDS``. What was abandoned because of its timeout has failed."""
    abandoned = status is Status.ABANDONED and error is not None and error.type not in _STOPS
    return "failed" if abandoned else _KIND[status]


class TaskFigures:
    """What the attempts of one task come to."""

    __slots__ = ("durations", "failures", "items", "retries", "was_seen")

    def __init__(self) -> None:
        self.durations: list[float] = []  #: in seconds, of each attempt
        self.failures = 0  #: attempts that failed
        self.retries = 0  #: attempts after the first one of their task run
        self.items: set[str] = set()  #: ids of the items of a map
        self.was_seen = False  #: it has a bar


class Failure:
    """Failed attempts of one task with the same error."""

    __slots__ = ("count", "error", "ids", "task")

    def __init__(self, task: str, error: ErrorReport, count: int = 0) -> None:
        self.task = task
        self.error = error
        self.count = count
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
        self.timeline = Timeline(earliest(report), _shown(report))
        self.origin = self.timeline.origin  #: seconds since the epoch
        self.length = length(report, self.timeline)  #: seconds that the timeline covers
        #: The same, as far as anything is known: without what bars reach beyond that.
        self.known = min(self.length, latest(report) - self.origin)
        #: How each bar ended.
        self.kinds = [kind_of(bar.attempt.status, bar.attempt.error) for bar in self.timeline.bars]
        self.attempts = [bar for bar in self.timeline.bars if bar.counts]
        self.tasks: dict[str, TaskFigures] = {name: TaskFigures() for name in report.tasks}
        self._count()
        #: In the order in which they came up, but those that are more than ``MOST_FAILURES`` at the end.
        self.failures: list[Failure] = []
        self.group: dict[int, int] = {}  #: number of a bar that failed -> number of its group
        self._group(report)
        self._others(report)
        self._choose()

    def _count(self) -> None:
        for bar, kind in zip(self.timeline.bars, self.kinds, strict=True):
            attempt = bar.attempt
            task = self.tasks.setdefault(attempt.task, TaskFigures())
            task.was_seen = True
            if bar.counts:
                task.durations.append(attempt.duration)
                task.failures += kind == "failed"
                task.retries += attempt.attempt > 1
                if attempt.id.endswith("]"):
                    task.items.add(attempt.id)

    def _group(self, report: RunReport) -> None:
        """Group the errors of the bars that failed; a map has that of one of its items."""
        known: dict[tuple[str, str, str], int] = {}
        key_of = _key_of(report)
        for number, (bar, kind) in enumerate(zip(self.timeline.bars, self.kinds, strict=True)):
            attempt = bar.attempt
            if attempt.error is None or kind != "failed":
                continue
            key = key_of(attempt, attempt.error)
            if bar.counts:
                if key not in known:
                    known[key] = len(self.failures)
                    self.failures.append(Failure(attempt.task, attempt.error))
                self.failures[known[key]].add(attempt.id)
            if key in known:
                self.group[number] = known[key]

    def _others(self, report: RunReport) -> None:
        """Add the errors of tasks that have no group; where there is none at all, that of the run."""
        shown = {failure.task for failure in self.failures}
        for name, row in report.tasks.items():
            if row.error is not None and name not in shown and kind_of(row.status, row.error) == "failed":
                self.failures.append(Failure(name, row.error, 1))
        if report.error is not None and not self.failures and report.error.type not in _STOPS:
            self.failures.append(Failure("", report.error, 1))

    def _choose(self) -> None:
        """Let those groups come first that are shown: of each task and type one, then the others."""
        firsts: dict[tuple[str, str], int] = {}
        for number, failure in enumerate(self.failures):
            firsts.setdefault((failure.task, failure.error.type), number)
        urgent = set(firsts.values())
        shown = sorted(sorted(range(len(self.failures)), key=lambda number: number not in urgent)[:MOST_FAILURES])
        order = [*shown, *sorted(set(range(len(self.failures))).difference(shown))]
        place = {number: at for at, number in enumerate(order)}
        self.failures = [self.failures[number] for number in order]
        self.group = {bar: place[number] for bar, number in self.group.items()}

    @property
    def workers(self) -> set[str]:
        """The names of all workers that called anything."""
        return {bar.attempt.worker for bar in self.attempts} - {""}

    def busiest(self) -> tuple[str, float] | None:
        """Return the worker that was busy for longest, and for how many seconds; None when nobody was."""
        busy = dict.fromkeys(sorted(self.workers), 0.0)
        for bar in self.attempts:
            if bar.attempt.worker:
                busy[bar.attempt.worker] += bar.attempt.duration
        return max(busy.items(), key=lambda pair: pair[1], default=None)

    def mean_parallelism(self) -> float | None:
        """Return how many attempts were under way on average; None when the run took no time."""
        busy = sum(sum(task.durations) for task in self.tasks.values())
        return busy / self.known if self.known else None

    def offset(self, instant: float | None) -> float | None:
        """Return how many seconds after the begin of the timeline something was."""
        return None if instant is None else instant - self.origin


#: How notes of ours begin on what a task has raised.
_NOTES = ("In task run ", "While the next tasks of task run ")


def _key_of(report: RunReport) -> Callable[[TaskTrace, ErrorReport], tuple[str, str, str]]:
    """Return what tells by what the failures of a run are grouped: task, type, and the traceback.

    Each traceback ends with notes of ours that name the task run, also inside of exception groups, and so do our own
    errors: these are left out, or no two would be alike.
    """
    # Lines are compared, not matched: a pattern that is made of a name of megabytes takes minutes.
    ends = (f" of flow run {report.run_id} ({report.flow}).", f" were pulled (flow run {report.run_id}).")

    def is_ours(line: str) -> bool:
        return line.endswith(ends) and line.lstrip(" |").startswith(_NOTES)

    def key(attempt: TaskTrace, error: ErrorReport) -> tuple[str, str, str]:
        text = "\n".join(line for line in error.traceback.split("\n") if not is_ours(line))
        return attempt.task, error.type, text.replace(attempt.id, "") if error.type.startswith("millstream.") else text

    return key


def _shown(report: RunReport) -> Iterable[TaskTrace]:
    """Yield what has a bar: the attempts, and the tasks of which none is known though they began and go on.

    Without a trace these are all tasks that have begun. A bar of what has not ended leads somewhat beyond the latest
    instant that the report knows of: when that was made it does not say.
    """
    traced = None if report.trace is None else {attempt.task for attempt in report.trace}
    yield from report.trace or ()
    now = latest(report)
    if report.finished_at is None:
        now += max(0.001, (now - earliest(report)) * _BEYOND)
    for name, row in report.tasks.items():
        goes_on = row.status is Status.RUNNING
        if row.started_at is None or (traced is not None and (name in traced or not goes_on)):
            continue
        end = now if row.finished_at is None or goes_on else row.finished_at
        worker = "" if traced is not None else name or "–"
        yield TaskTrace(name, name, row.attempt, row.status, row.started_at, end, worker, row.error)


def latest(report: RunReport) -> float:
    """Return the latest instant that a report knows of."""
    instants = [report.created_at, report.finished_at, *(attempt.finished_at for attempt in report.trace or ())]
    for row in report.tasks.values():
        instants += [row.started_at, row.finished_at]
    return max(instant for instant in instants if instant is not None)


def length(report: RunReport, timeline: Timeline) -> float:
    """Return how many seconds there are from the begin of a timeline to the end of the run, or to that of a bar."""
    ran = 0.0 if report.finished_at is None else report.finished_at - timeline.origin
    return max([ran, 0.0, *(bar.end / 1e9 for bar in timeline.bars)])


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
