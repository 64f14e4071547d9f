"""What became of a run, as values: ``RunReport``, its rows, and the trace of its attempts.

The engine makes them, once, from what it knows of a run; whoever has one may keep it, compare it and write
it down, long after the run and its flow are gone.

Rule 1: an error is kept without its frames, so that a report keeps no locals alive.
Rule 2: results, messages and names come from others. Nothing here fails because they cannot be shown.

May import: values, events, diagram; and show, for drawings, when one is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from millstream.events import Record, shown

if TYPE_CHECKING:
    from os import PathLike

    from millstream.diagram import Diagram
    from millstream.values import Status

#: Messages are cut to this many characters where they stand in a table.
_WIDEST = 120


class ErrorReport(Record):
    """An exception as text; unlike the exception itself it can be pickled, stored and sent."""

    __slots__ = ("message", "traceback", "type")

    def __init__(self, type: str, message: str, traceback: str) -> None:
        self.type = type  #: name of the class, with its module unless that is ``builtins`` or ``__main__``
        self.message = message  #: what ``str`` says of it; may be empty
        self.traceback = traceback  #: what Python would print of it, with its causes and notes

    @classmethod
    def of(cls, error: BaseException) -> ErrorReport:
        """Describe an exception. This never raises, whatever the exception's own methods do."""
        return Digest(error).report()

    def to_dict(self) -> dict[str, str]:
        """Return ``{"type", "message", "traceback"}``."""
        return {"type": self.type, "message": self.message, "traceback": self.traceback}

    def first_line(self) -> str:
        """Return the message on one line that fits a table; the type where it says nothing."""
        lines = self.message.strip().splitlines() or [self.type]
        return lines[0] if len(lines[0]) <= _WIDEST else f"{lines[0][: _WIDEST - 1]}…"


class Digest:
    """An exception without its frames: enough to make text of it later, which takes much longer."""

    __slots__ = ("_message", "_name", "_stack")

    def __init__(self, error: BaseException) -> None:
        self._name, self._message = _class_name(error), shown(error, str)
        self._stack: Any = _stack_of(error)

    def report(self) -> ErrorReport:
        """Return the text."""
        last_line = f"{self._name}: {self._message}" if self._message else self._name
        try:
            traceback = "".join(self._stack.format())
        except BaseException:  # its notes, its causes or its fields raised, and they may raise anything
            traceback = f"{last_line}\n"
            if isinstance(self._stack, list) and self._stack:
                traceback = f"Traceback (most recent call last):\n{''.join(self._stack)}{traceback}"
        return ErrorReport(self._name, self._message, traceback)


class TaskReport(Record):
    """All task runs of one task in one row, so that a report does not grow with their number."""

    __slots__ = ("attempt", "error", "finished_at", "result", "runs", "started_at", "status")

    def __init__(
        self,
        status: Status,
        attempt: int,
        runs: int,
        started_at: float | None,
        finished_at: float | None,
        error: ErrorReport | None = None,
        result: Any = None,
    ) -> None:
        self.status = status  #: the worst of them
        self.attempt = attempt  #: the number of the newest attempt, 0 before the first
        self.runs = runs  #: how many task runs have ended
        self.started_at = started_at  #: when the first one began, in seconds since the epoch; None before that
        self.finished_at = finished_at  #: when the last one ended; None before that
        self.error = error  #: why the first one failed that did
        self.result = result  #: the newest output, the object itself

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name: the status as a string, the error as a dict, the result as it is."""
        return self._fields() | {"status": str(self.status), "error": self.error and self.error.to_dict()}


class TaskTrace(Record):
    """One attempt of a task run, kept when a run is made with ``trace=True``."""

    __slots__ = ("attempt", "error", "finished_at", "id", "started_at", "status", "task", "worker")

    def __init__(
        self,
        task: str,
        id: str,
        attempt: int,
        status: Status,
        started_at: float,
        finished_at: float,
        worker: str,
        error: ErrorReport | None = None,
    ) -> None:
        self.task = task  #: name of the task
        self.id = id  #: id of the task run, such as ``count#2``
        self.attempt = attempt  #: 1 for the first
        self.status = status  #: how the attempt ended
        self.started_at = started_at  #: in seconds since the epoch
        self.finished_at = finished_at  #: in seconds since the epoch
        #: Name of the thread or event loop that it ran in; empty for a map, whose items have one, and for what failed
        #: before a worker had it.
        self.worker = worker
        self.error = error  #: why it failed, if it did

    @property
    def duration(self) -> float:
        """Seconds that the attempt took, at least 0.0 (somebody may have set the clock back)."""
        return max(0.0, self.finished_at - self.started_at)


class TaskProgress(Record):
    """How far a task run that is under way has got, as it says itself with ``current_task().progress``."""

    __slots__ = ("done", "id", "total")

    def __init__(self, id: str, done: float, total: float | None) -> None:
        self.id = id  #: of the task run, such as ``count#2``
        self.done = done  #: in units of the task's choice
        self.total = total  #: of the same; None when the task does not know


class Tally(Record):
    """How far a run is: numbers of task runs."""

    __slots__ = ("done", "failed", "progress", "running", "skipped", "total", "waiting")

    def __init__(
        self,
        done: int,
        failed: int,
        skipped: int,
        running: int,
        waiting: int,
        total: int | None,
        progress: tuple[TaskProgress, ...] = (),
    ) -> None:
        self.done = done  #: have succeeded
        self.failed = failed  #: have failed, were cancelled or given up
        self.skipped = skipped
        self.running = running  #: are under way
        self.waiting = waiting  #: are ready, or wait for others, or for their next attempt
        self.total = total  #: all that there will be, as far as is known; None while a list still grows
        self.progress = progress  #: of those under way that tell, the one that told last at the end

    @property
    def ended(self) -> int:
        """How many have ended, however they did."""
        return self.done + self.failed + self.skipped


class RunReport(Record):
    """What became of a run and of its tasks; see ``FlowRun.report``."""

    __slots__ = (
        "created_at", "diagram", "error", "finished_at", "flow", "metadata", "resumed_from", "run_id", "status",
        "tasks", "trace",
    )  # fmt: skip

    def __init__(
        self,
        run_id: str,
        flow: str,
        metadata: Mapping[str, Any],
        created_at: float,
        finished_at: float | None,
        status: Status,
        tasks: dict[str, TaskReport],
        trace: tuple[TaskTrace, ...] | None = None,
        error: ErrorReport | None = None,
        resumed_from: str | None = None,
        diagram: Diagram | None = None,
    ) -> None:
        self.run_id = run_id
        self.flow = flow  #: name of the flow
        self.metadata = metadata  #: what the run was given as ``metadata``
        self.created_at = created_at  #: in seconds since the epoch
        self.finished_at = finished_at  #: in seconds since the epoch; None while it runs
        self.status = status  #: ``RUNNING``, ``SUCCESS``, ``FAILED`` or ``CANCELLED``
        self.tasks = tasks  #: one row for each task, by name
        self.trace = trace  #: every attempt of every task run; None without ``trace=True``
        self.error = error  #: why the run ended, None when it succeeded or runs
        self.resumed_from = resumed_from  #: the run that this one was made from, by ``resume(from_tasks=)``
        self.diagram = diagram  #: its tasks and what led from one to another; None where nobody knows

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"run_id", "flow", "metadata", "created_at", "finished_at", "status", "tasks"}``.

        ``tasks`` has ``TaskReport.to_dict()`` by name. Results and metadata are the objects themselves, so
        whether the whole can be written as JSON is up to them.
        """
        return {
            "run_id": self.run_id,
            "flow": self.flow,
            "metadata": dict(self.metadata),
            "created_at": self.created_at,
            "finished_at": self.finished_at,
            "status": str(self.status),
            "tasks": {name: task.to_dict() for name, task in self.tasks.items()},
        }

    def to_text(self, *, state: str | None = None) -> str:
        """Return the report as a table for people: status, runs, attempt, seconds and error of each task.

        Args:
            state: said of the run in place of its status, by who knows more of it.
        """
        said = [f"Run {self.run_id} of {self.flow}: {state or self.status}"]
        if self.finished_at is not None:
            said[0] += f" after {_seconds(self.created_at, self.finished_at)} s"
        if self.error is not None:
            said.append(f"{self.error.type}: {self.error.first_line()}")
        if self.tasks:
            head = ("task", "status", "runs", "attempt", "seconds", "error")
            said += ["", *_table([head, *(_row(name, task) for name, task in self.tasks.items())])]
        return "\n".join(said)

    def to_mermaid(self) -> str:
        """Return a drawing of the run as a Mermaid flowchart: its tasks, what led to them, what became of them.

        Raises:
            ValueError: nobody knows what led from one task to another; see ``diagram``.
        """
        from millstream.show.mermaid import drawn

        return drawn(self._diagram())

    def to_dot(self) -> str:
        """Return the same in the language of Graphviz.

        Raises:
            ValueError: as ``to_mermaid``.
        """
        from millstream.show.dot import drawn

        return drawn(self._diagram())

    def to_svg(self, path: str | PathLike[str] | None = None) -> str:
        """Return the same as SVG, which needs no other program; write it to ``path`` too if given.

        Raises:
            ValueError: as ``to_mermaid``.
            OSError: ``path`` cannot be written.
        """
        from millstream.show.svg import drawn

        return written(drawn(self._diagram()), path)

    def to_timeline(self, path: str | PathLike[str] | None = None) -> str:
        """Return when the attempts of the run were under way, and in which worker, as SVG; write it to ``path`` too.

        What is too small to be seen, or too much for one picture, is left out, and the picture says so; the page
        (``to_html``) has all of it.

        Raises:
            ValueError: the run kept no trace.
            OSError: ``path`` cannot be written.
        """
        from millstream.show.gantt import timeline_drawn

        self._traced()
        return written(timeline_drawn(self), path)

    def _traced(self) -> tuple[TaskTrace, ...]:
        if self.trace is None:
            raise ValueError(f"Run {self.run_id} kept no trace: run it with trace=True.")
        return self.trace

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """What a notebook shows: the drawing, and the table."""
        from millstream.show.notebook import shown

        return {"text/plain": repr(self), "text/html": shown(self)}

    def _diagram(self) -> Diagram:
        if self.diagram is None:
            raise ValueError(f"The tasks of run {self.run_id} are not known here, so there is nothing to draw.")
        return self.diagram

    def to_chrome_trace(self, path: str | PathLike[str] | None = None) -> str:
        """Return the trace as JSON for ``chrome://tracing`` and Perfetto; write it to ``path`` too if given.

        Every attempt is one bar, in microseconds since the start of the run, and every worker is one row.
        A worker whose attempts overlap, as coroutines do, has as many rows as that takes: the format knows
        no overlap in one row.

        Source: "Trace Event Format", JSON object format, with complete events ("X") and metadata events
        ("M"), https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU

        Raises:
            ValueError: the run kept no trace.
            OSError: ``path`` cannot be written.
        """
        from millstream.show.timeline import chrome_trace

        return written(chrome_trace(self.flow, self.created_at, self._traced()), path)

    def to_html(self, path: str | PathLike[str] | None = None) -> str:
        """Return the report as a page for a browser, in one file; write it to ``path`` too if given.

        It shows the figures of the run, its graph, a timeline of the attempts, a row for each task, and the
        failures in groups. The file needs nothing else: it loads nothing, and sends nothing anywhere. Without
        a trace the timeline has one bar for each task.

        Results and metadata are shown as ``repr`` gives them, cut to 300 characters: look at what they hold
        before you pass the page on.

        Raises:
            OSError: ``path`` cannot be written.
        """
        from millstream.show.page.html import page

        return written(page(self), path)

    def __repr__(self) -> str:
        states = [str(task.status) for task in self.tasks.values()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        said = f"{len(states)} task{'' if len(states) == 1 else 's'}{': ' if states else ''}{counts}"
        return f"<RunReport {self.run_id}: {self.status}, {said}>"


def written(text: str, path: str | PathLike[str] | None) -> str:
    """Return a drawing; write it to ``path`` too if given."""
    if path is not None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    return text


def _class_name(error: BaseException) -> str:
    """Return the name of an exception's class as a traceback gives it."""
    kind = type(error)
    module = kind.__module__
    return kind.__qualname__ if module in ("builtins", "__main__") else f"{module}.{kind.__qualname__}"


def _stack_of(error: BaseException) -> Any:
    """Return the traceback of an exception without its frames; as lines, when its own code is broken; else None."""
    try:
        import traceback  # only for errors, and not small; an interpreter that shuts down imports nothing

        return traceback.TracebackException(type(error), error, error.__traceback__, lookup_lines=False, compact=True)
    except BaseException:
        return _lines_of(error)


def _lines_of(error: BaseException) -> list[str]:
    try:
        import traceback

        return traceback.format_tb(error.__traceback__)
    except BaseException:  # no better is to be had
        return []


def _seconds(begin: float | None, end: float | None) -> str:
    """Return the seconds between two instants for a table."""
    return "-" if begin is None or end is None else f"{max(0.0, end - begin):.3f}"


def _row(name: str, task: TaskReport) -> tuple[str, ...]:
    """Return the cells of one task."""
    error = "" if task.error is None else task.error.first_line()
    seconds = _seconds(task.started_at, task.finished_at)
    return name, str(task.status), str(task.runs), str(task.attempt), seconds, error


def _table(rows: list[tuple[str, ...]]) -> Iterable[str]:
    """Return rows of six cells as lines: words to the left, the three numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, strict=True)
        yield "  ".join(
            cell.rjust(width) if 2 <= at <= 4 else cell.ljust(width) for at, (cell, width) in enumerate(cells)
        ).rstrip()
