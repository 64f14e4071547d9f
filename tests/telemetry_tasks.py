"""Tasks for the tests of telemetry that can be called in another process."""

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from millstream import NextTask, TaskOutput, current_task


class OddError(Exception):
    """An error with a module of its own."""


def fan():
    return TaskOutput(None, [NextTask("leaf", spawn_another=True) for _ in range(3)])


def leaf():
    """Return the ids of the current span and of its trace."""
    seen = trace.get_current_span().get_span_context()
    return seen.span_id, seen.trace_id


def traces():
    """Trace something, as a library that a task uses would; return the trace, and the parents of what was traced."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("query").start_as_current_span("query"):
        pass
    spans = exporter.get_finished_spans()
    return spans[0].context.trace_id, [span.parent.span_id for span in spans]


def fails():
    raise OddError("broken")


def first_attempt_fails():
    if current_task().attempt == 1:
        raise OddError("not yet")
    return current_task().attempt


def item(item):
    return item


def steps():
    seen = []
    for _ in range(3):
        seen.append(leaf()[0])
        yield len(seen)
    return seen


def one():
    return 1


def raises():
    raise ValueError("broken hook")


def after(each):
    return len(each)
