"""``OpenTelemetryHook``: a span for every run and every attempt of a task, and metrics of them.

The span of a run is a child of the span that is current where the run is started, those of its tasks are its
children, and what a task does itself, in whatever thread, coroutine or worker process, comes below the span of the
task. In another process that takes a tracer there: give the executor an ``initializer`` which sets one up.

The library used is the API of OpenTelemetry (the extra ``otel``), so it is up to the application what becomes of the
spans. Values of tasks, inputs and the context are never recorded. May import: events, values.

Sources: "Semantic conventions for recording errors" and "... for exceptions in traces",
https://opentelemetry.io/docs/specs/semconv/general/recording-errors/; "General metric semantic conventions", which has
the seconds and the names of units. There are no conventions for tasks yet, so what is particular to them is below
``millstream.``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from millstream.events import (
    Hook,
    RunEndEvent,
    RunStartEvent,
    TaskCancelEvent,
    TaskFailureEvent,
    TaskProgressEvent,
    TaskRetryEvent,
    TaskSkipEvent,
    TaskStartEvent,
    TaskSuccessEvent,
    shown,
)
from millstream.values import Status

try:
    from opentelemetry import context, metrics, propagate, trace
    from opentelemetry.trace import Span, StatusCode
except ImportError as missing:
    raise ImportError('OpenTelemetryHook needs OpenTelemetry: pip install "millstream[otel]"') from missing

__all__ = ["OpenTelemetryHook"]

#: Whose spans and metrics these are; also the name of the distribution.
SCOPE = "millstream"


class OpenTelemetryHook(Hook):
    """Tells OpenTelemetry of runs and of their tasks.

    ::

        flow = Flow(hooks=[OpenTelemetryHook()])

    Spans: ``flow NAME`` for a run and ``task NAME`` for each attempt of a task run, with ``millstream.flow.name``,
    ``millstream.run.id``, ``millstream.run.status``, ``millstream.task.name``, ``millstream.task.id``,
    ``millstream.task.attempt`` and ``millstream.task.status``. A failure sets the span's status, ``error.type``, and
    records the exception; a retry, progress and a skip are events on spans.

    Metrics: ``millstream.run.duration`` and ``millstream.task.duration`` (histograms, in seconds, with
    ``error.type`` where it failed), ``millstream.task.failures`` and ``millstream.task.retries`` (counters).

    Args:
        tracer_provider: makes the tracer; the global one of OpenTelemetry by default.
        meter_provider: the same for metrics.
    """

    def __init__(
        self, tracer_provider: trace.TracerProvider | None = None, meter_provider: metrics.MeterProvider | None = None
    ) -> None:
        self._tracer = trace.get_tracer(SCOPE, version(SCOPE), tracer_provider)
        meter = metrics.get_meter(SCOPE, version(SCOPE), meter_provider)
        self._run_seconds = meter.create_histogram("millstream.run.duration", "s", "Duration of runs.")
        self._task_seconds = meter.create_histogram("millstream.task.duration", "s", "Duration of attempts of tasks.")
        self._failures = meter.create_counter("millstream.task.failures", "{failure}", "Attempts that failed.")
        self._retries = meter.create_counter("millstream.task.retries", "{retry}", "Attempts beyond the first.")
        # Guarded by _lock: by flow and run id, those that have begun and whose end was not told. A run may go on under
        # the id that it had, and its first end is told late; but all that is told is told of the oldest.
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, str], deque[Run]] = {}

    # ---- where the work is done -----------------------------------------------------------------

    def enter_run(self, event: RunStartEvent) -> Callable[[], object]:
        """Begin the span of a run, below the one that is current here, and make it the current one of its tasks."""
        facts = {"millstream.flow.name": event.flow, "millstream.run.id": event.run_id}
        span = self._tracer.start_span(f"flow {event.flow}", attributes=facts, start_time=nanoseconds(event.at))
        with self._lock:
            self._runs.setdefault((event.flow, event.run_id), deque()).append(Run(span))
        return Current(span)

    def enter_task(self, event: TaskStartEvent) -> Callable[[], object] | None:
        """Begin the span of an attempt, below the current one; else, for a call from outside, below that of its run."""
        with self._lock:
            runs = self._runs.get((event.flow, event.run_id))
            run = runs[-1] if runs else None
        if run is None:
            return None  # the run has ended without waiting for it
        inside = trace.get_current_span().get_span_context().is_valid
        facts: dict[str, str | int] = {
            "millstream.flow.name": event.flow,
            "millstream.run.id": event.run_id,
            "millstream.task.name": event.task,
            "millstream.task.id": event.id,
            "millstream.task.attempt": event.attempt,
        }
        span = self._tracer.start_span(
            f"task {event.task}",
            context=None if inside else trace.set_span_in_context(run.span),
            attributes=facts,
            start_time=nanoseconds(event.at),
        )
        with self._lock:
            run.attempts[event.id, event.attempt] = span
        return Current(span)

    # ---- what has happened ----------------------------------------------------------------------

    def on_task_success(self, event: TaskSuccessEvent) -> None:
        """End the span of an attempt."""
        self._task_seconds.record(event.duration, self._names(event))
        self._ended(event, Status.SUCCESS, None)

    def on_task_failure(self, event: TaskFailureEvent) -> None:
        """End the span of an attempt with its error. One that failed without an attempt is told on the run's."""
        names = self._names(event) | {"error.type": type_of(event.error)}
        self._failures.add(1, names)
        if event.attempt:
            self._task_seconds.record(event.duration, names)
            self._ended(event, Status.FAILED, event.error)
        else:
            self._tell(event, "task failed", {"error.type": type_of(event.error)})

    def on_task_cancel(self, event: TaskCancelEvent) -> None:
        """End the span of an attempt."""
        self._ended(event, Status.CANCELLED, None)

    def on_task_retry(self, event: TaskRetryEvent) -> None:
        """Count it, and tell of it on the span of the run."""
        self._retries.add(1, self._names(event))
        self._tell(event, "task retry", {"millstream.task.attempt": event.attempt, "millstream.delay": event.delay})

    def on_task_skip(self, event: TaskSkipEvent) -> None:
        """Tell of it on the span of the run."""
        self._tell(event, "task skipped", {"millstream.reason": event.reason})

    def on_task_progress(self, event: TaskProgressEvent) -> None:
        """Tell of it on the span of the attempt."""
        run = self._run(event)
        span = None if run is None else run.attempts.get((event.id, event.attempt))
        if span is not None:
            facts: dict[str, float] = {"millstream.progress.done": event.done}
            if event.total is not None:
                facts["millstream.progress.total"] = event.total
            span.add_event("progress", facts, nanoseconds(event.at))

    def on_run_end(self, event: RunEndEvent) -> None:
        """End the span of a run, and of what nobody told the end of."""
        key = event.flow, event.run_id
        with self._lock:
            runs = self._runs.get(key, deque())
            run = runs.popleft() if runs else None
            if not runs:
                self._runs.pop(key, None)
        facts = {"millstream.flow.name": event.flow, "millstream.run.status": str(event.status)}
        if event.error is not None:
            facts["error.type"] = type_of(event.error)
        self._run_seconds.record(event.duration, facts)
        if run is not None:
            for each in run.attempts.values():
                each.end(nanoseconds(event.at))
            end(run.span, event.status, "millstream.run.status", event.error, event.at)

    # ---- inside ---------------------------------------------------------------------------------

    def _run(self, event: Any) -> Run | None:
        """Return the run that an event tells of: the oldest, since those of a later one come after its end."""
        with self._lock:
            runs = self._runs.get((event.flow, event.run_id))
            return runs[0] if runs else None

    def _names(self, event: Any) -> dict[str, str]:
        """Return what metrics are told apart by: names alone, of which there are few."""
        return {"millstream.flow.name": event.flow, "millstream.task.name": event.task}

    def _ended(self, event: Any, status: Status, error: BaseException | None) -> None:
        run = self._run(event)
        with self._lock:
            span = None if run is None else run.attempts.pop((event.id, event.attempt), None)
        if span is not None:
            end(span, status, "millstream.task.status", error, event.at)

    def _tell(self, event: Any, name: str, facts: Mapping[str, str | int | float]) -> None:
        run = self._run(event)
        if run is not None:
            names = {"millstream.task.name": event.task, "millstream.task.id": event.id}
            run.span.add_event(name, names | dict(facts), nanoseconds(event.at))


class Run:
    """A run whose end was not told yet."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.attempts: dict[tuple[str, int], Span] = {}  #: that are under way, by id and number


class Current:
    """Makes a span the current one, here; as a pickle, its context in another process."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def __call__(self) -> None:
        # For as long as these context variables last, so nothing is to be detached.
        context.attach(trace.set_span_in_context(self._span))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[dict[str, str]]]:
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(self._span))
        return Carried, (carrier,)


class Carried:
    """The same in another process, where the span itself is not."""

    def __init__(self, carrier: dict[str, str]) -> None:
        self._carrier = carrier

    def __call__(self) -> None:
        context.attach(propagate.extract(self._carrier))


def nanoseconds(at: float) -> int:
    """Return an instant as OpenTelemetry has it, from seconds since the epoch."""
    return round(at * 1e9)


def type_of(error: BaseException) -> str:
    """Return what ``error.type`` is to be: the full name of the class, but for those of Python itself."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def end(span: Span, status: Status, attribute: str, error: BaseException | None, at: float) -> None:
    """End a span with what became of what it stands for."""
    try:
        span.set_attribute(attribute, str(status))
        if error is not None:
            span.set_attribute("error.type", type_of(error))
            span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {shown(error, str)}")
            span.record_exception(error, timestamp=nanoseconds(at))
    finally:  # an error may be broken itself
        span.end(nanoseconds(at))
