"""``OpenTelemetryHook``: spans and metrics as the SDK of OpenTelemetry exports them, on every executor."""

import asyncio
import contextlib
import gc
import pickle
import subprocess
import sys
import threading
import weakref
from itertools import pairwise

import pytest

from millstream import Context, Flow, FlowError, Hook, NextTask, RunCancelledError, TaskOutput, current_task
from tests.conftest import WATCHDOG, needs, until

needs("opentelemetry.sdk", "opentelemetry-sdk")

from opentelemetry import baggage, context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from millstream.telemetry import OpenTelemetryHook
from tests import telemetry_tasks as tasks

#: Each of these calls a task in another place, and all of them but the last in this process.
EVERY = ("inline", "thread", "asyncio", "process")


class Telemetry:
    """What was exported, and a hook that exports it."""

    def __init__(self):
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.hook = OpenTelemetryHook(self.provider, MeterProvider([self.reader]))
        self.tracer = self.provider.get_tracer("test")

    @property
    def spans(self):
        """All spans that have ended, in the order of their ends."""
        return list(self.exporter.get_finished_spans())

    def named(self, name):
        """Return the spans of a name, in the order in which they began."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start_time)

    def one(self, name):
        """Return the only span of a name."""
        (span,) = self.named(name)
        return span

    def metrics(self):
        """Return by the name of each metric its unit, and by its attributes the count or the value."""
        found = {}
        data = self.reader.get_metrics_data()
        for resource in [] if data is None else data.resource_metrics:
            for scope in resource.scope_metrics:
                assert scope.scope.name == "millstream"
                for metric in scope.metrics:
                    points = {
                        tuple(sorted(point.attributes.items())): getattr(point, "count", None) or point.value
                        for point in metric.data.data_points
                    }
                    found[metric.name] = (metric.unit, points)
        return found


@pytest.fixture
def telemetry():
    made = Telemetry()
    yield made
    made.provider.shutdown()


def parent_of(span):
    return None if span.parent is None else span.parent.span_id


def current_span():
    """A task that says which span it runs in."""
    return trace.get_current_span().get_span_context().span_id


@pytest.mark.parametrize("executor", EVERY)
def test_a_run_and_its_task_runs_are_spans(telemetry, executor):
    """There is a span for the run, below the caller's, and one below that for each task run, wherever it was."""
    with Flow(executor, name="shop", hooks=[telemetry.hook]) as flow:
        flow.add_task("fan", tasks.fan)
        flow.add_task("leaf", tasks.leaf)
        with telemetry.tracer.start_as_current_span("request") as outer:
            result = flow.run("fan", run_id="monday")
    run, fan, leaves = telemetry.one("flow shop"), telemetry.one("task fan"), telemetry.named("task leaf")
    assert parent_of(run) == outer.get_span_context().span_id
    assert {parent_of(span) for span in (fan, *leaves)} == {run.context.span_id}
    assert len({span.context.trace_id for span in telemetry.spans}) == 1
    assert {span.kind for span in telemetry.spans} == {SpanKind.INTERNAL}
    assert sorted(span.attributes["millstream.task.id"] for span in leaves) == ["leaf", "leaf#2", "leaf#3"]
    # What a task finds as the current span is its own.
    said = {span.attributes["millstream.task.id"]: span.context.span_id for span in leaves}
    assert {name: value[0] for name, value in result.items()} == said
    assert {value[1] for value in result.values()} == {run.context.trace_id}


def test_attributes_and_times_of_spans(telemetry):
    """A span says what it is of, begins when that began, and ends when that ended."""
    with Flow("thread", name="shop", hooks=[telemetry.hook]) as flow:
        flow.add_task("work", lambda: "done")
        assert flow.run("work", run_id="monday") == {"work": "done"}
        report = flow.report()
    run, task = telemetry.one("flow shop"), telemetry.one("task work")
    assert dict(run.attributes) == {
        "millstream.flow.name": "shop", "millstream.run.id": "monday", "millstream.run.status": "SUCCESS",
    }  # fmt: skip
    assert dict(task.attributes) == {
        "millstream.flow.name": "shop", "millstream.run.id": "monday", "millstream.task.name": "work",
        "millstream.task.id": "work", "millstream.task.attempt": 1, "millstream.task.status": "SUCCESS",
    }  # fmt: skip
    assert run.status.status_code is task.status.status_code is StatusCode.UNSET
    assert run.start_time <= task.start_time <= task.end_time <= run.end_time
    assert run.start_time == pytest.approx(report.created_at * 1e9, abs=2e3)
    assert task.end_time == pytest.approx(report.tasks["work"].finished_at * 1e9, abs=2e3)
    assert run.instrumentation_scope.name == "millstream"


@pytest.mark.parametrize("executor", EVERY)
def test_spans_of_a_task_come_below_its_own(telemetry, executor):
    """What a task traces itself has the span of the task run as its parent, in a worker process as well."""
    with Flow(executor, name="shop", hooks=[telemetry.hook]) as flow:
        flow.add_task("work", tasks.traces)
        trace_id, parents = flow.run("work")["work"]
    task = telemetry.one("task work")
    assert trace_id == task.context.trace_id
    assert parents == [task.context.span_id]


def test_a_nested_run_comes_below_its_task(telemetry):
    """A run that a task starts is part of the same trace."""
    with Flow("thread", name="inner", hooks=[telemetry.hook]) as inner, Flow("thread", hooks=[telemetry.hook]) as flow:
        inner.add_task("leaf", lambda: 1)
        flow.add_task("outer", lambda: inner.run("leaf"))
        flow.run("outer")
    assert parent_of(telemetry.one("flow inner")) == telemetry.one("task outer").context.span_id
    assert parent_of(telemetry.one("task leaf")) == telemetry.one("flow inner").context.span_id


def test_every_attempt_is_a_span(telemetry):
    """An attempt that fails ends with its error, and the next one is a span of its own."""
    calls = []

    def flaky():
        calls.append(current_span())
        if len(calls) < 3:
            raise ValueError("not yet")
        return "done"

    with Flow("thread", name="shop", hooks=[telemetry.hook]) as flow:
        flow.add_task("flaky", flaky, retries=2)
        assert flow.run("flaky") == {"flaky": "done"}
    spans = telemetry.named("task flaky")
    assert [span.context.span_id for span in spans] == calls
    assert [span.attributes["millstream.task.attempt"] for span in spans] == [1, 2, 3]
    assert [span.attributes["millstream.task.status"] for span in spans] == ["FAILED", "FAILED", "SUCCESS"]
    assert [span.status.status_code for span in spans] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]
    assert spans[0].status.description == "ValueError: not yet"
    assert spans[0].attributes["error.type"] == "ValueError"
    (event,) = spans[0].events
    assert event.name == "exception"
    assert event.attributes["exception.message"] == "not yet"
    assert "in flaky" in event.attributes["exception.stacktrace"]
    retries = [event for event in telemetry.one("flow shop").events if event.name == "task retry"]
    assert [event.attributes["millstream.task.attempt"] for event in retries] == [2, 3]


def test_a_run_that_fails_ends_with_its_error(telemetry):
    """The span of the run has the error that is raised, and its full type."""
    with Flow("thread", name="shop", hooks=[telemetry.hook]) as flow:
        flow.add_task("work", tasks.fails)
        with pytest.raises(tasks.OddError):
            flow.run("work")
    run = telemetry.one("flow shop")
    assert run.status.status_code is StatusCode.ERROR
    assert run.attributes["error.type"] == "tests.telemetry_tasks.OddError"
    assert run.attributes["millstream.run.status"] == "FAILED"


def test_what_is_cancelled_ends_with_the_run(telemetry):
    """A task run that was under way when its run was cancelled leaves no span open."""
    begun = threading.Event()

    async def waits():
        begun.set()
        await asyncio.Event().wait()

    with Flow("asyncio", name="shop", hooks=[telemetry.hook]) as flow:
        flow.add_task("waits", waits)
        run = flow.start("waits")
        assert begun.wait(WATCHDOG)
        run.cancel()
        assert run.wait(WATCHDOG)
    assert telemetry.one("task waits").attributes["millstream.task.status"] == "CANCELLED"
    assert telemetry.one("flow shop").attributes["millstream.run.status"] == "CANCELLED"
    assert not telemetry.hook._runs


def test_skips_progress_and_failures_without_an_attempt_are_events(telemetry):
    """What is no attempt is told on the span of the run, progress on that of the task run."""

    def works():
        current_task().progress(1, 2)
        current_task().progress(2)
        raise ValueError("broken")

    with Flow("inline", name="shop", hooks=[telemetry.hook], on_error="continue") as flow:
        flow.add_task("works", works)
        flow.add_task("skipped", lambda works: 1, on_dep_failure="skip")
        flow.add_task("fails", lambda works: 1)
        flow.run()
    (done, later, _) = telemetry.one("task works").events
    assert dict(done.attributes) == {"millstream.progress.done": 1, "millstream.progress.total": 2}
    assert dict(later.attributes) == {"millstream.progress.done": 2}
    events = {event.name: event.attributes for event in telemetry.one("flow shop").events}
    assert events["task skipped"]["millstream.task.id"] == "skipped"
    assert events["task failed"]["error.type"] == "millstream.errors.DependencyFailedError"


def test_metrics_tell_durations_failures_and_retries(telemetry):
    """Durations are histograms in seconds, failures and retries are counted, by flow and task."""
    calls = []

    def flaky():
        calls.append(1)
        if len(calls) < 2:
            raise ValueError("not yet")

    with Flow("thread", name="shop", hooks=[telemetry.hook]) as flow:
        flow.add_task("fan", tasks.fan)
        flow.add_task("leaf", tasks.leaf)
        flow.add_task("flaky", flaky, retries=1)
        flow.run("fan")
        flow.run("flaky")
    ours, leaf = ("millstream.flow.name", "shop"), ("millstream.task.name", "leaf")
    found = telemetry.metrics()
    assert set(found) == {
        "millstream.run.duration", "millstream.task.duration", "millstream.task.failures", "millstream.task.retries",
    }  # fmt: skip
    unit, counts = found["millstream.task.duration"]
    assert unit == "s"
    assert counts[ours, leaf] == 3
    flaky_task = ("millstream.task.name", "flaky")
    assert counts[ours, flaky_task] == 1
    assert counts[("error.type", "ValueError"), ours, flaky_task] == 1
    assert found["millstream.run.duration"] == ("s", {(ours, ("millstream.run.status", "SUCCESS")): 2})
    failure = (("error.type", "ValueError"), ours, flaky_task)
    assert found["millstream.task.failures"] == ("{failure}", {failure: 1})
    assert found["millstream.task.retries"] == ("{retry}", {(ours, flaky_task): 1})


@pytest.mark.parametrize("executor", ["thread", "asyncio"])
def test_submitted_calls_come_below_who_submits_them(telemetry, executor):
    """The span of a call is below that of the caller: a span of the program, or the task that has submitted it."""
    with Flow(executor, name="shop", hooks=[telemetry.hook]) as flow:
        flow.add_task("boss", lambda: flow.submit(current_span).result(WATCHDOG))
        with flow.session() as session:
            with telemetry.tracer.start_as_current_span("request") as outer:
                seen = session.submit(current_span).result(WATCHDOG)
            plain = session.submit(current_span).result(WATCHDOG)
        inner = flow.run("boss")["boss"]
    calls = {span.context.span_id: span for span in telemetry.named("task current_span")}
    assert set(calls) == {seen, plain, inner}
    assert parent_of(calls[seen]) == outer.get_span_context().span_id
    run = next(span for span in telemetry.named("flow shop") if span.context.span_id == parent_of(calls[plain]))
    assert run.context.trace_id != outer.get_span_context().trace_id
    assert parent_of(calls[inner]) == telemetry.one("task boss").context.span_id


@pytest.mark.parametrize("executor", ["thread", "asyncio", "process"])
def test_a_call_is_tried_again_in_a_span_of_its_own(telemetry, executor):
    """Each attempt of a submitted call is below the caller, and none below another one."""
    from millstream import task

    with Flow(executor, name="shop", hooks=[telemetry.hook]) as flow, flow.session() as session:
        handle = session.submit(task(retries=1)(tasks.first_attempt_fails))
        assert handle.result(WATCHDOG) == 2
    spans = telemetry.named("task first_attempt_fails")
    assert [span.attributes["millstream.task.attempt"] for span in spans] == [1, 2]
    assert parent_of(spans[0]) == parent_of(spans[1]) == telemetry.one("flow shop").context.span_id


@pytest.mark.parametrize("executor", EVERY)
def test_maps_and_generators(telemetry, executor):
    """A map and each of its items are spans; a generator is in its span for all of its steps."""
    with Flow(executor, max_workers=None if executor == "inline" else 1, name="shop", hooks=[telemetry.hook]) as flow:
        flow.add_task("items", lambda: TaskOutput([1, 2]), executor="inline")
        flow.add_task("each", tasks.item, for_each="items")
        flow.add_task("after", tasks.after)
        flow.add_task("steps", tasks.steps)
        flow.run("items")
        (run,) = telemetry.named("flow shop")
        assert set(flow.run("steps")["steps"]) == {telemetry.one("task steps").context.span_id}
    spans = telemetry.named("task each")
    assert sorted(span.attributes["millstream.task.id"] for span in spans) == ["each", "each[0]", "each[1]"]
    assert {parent_of(span) for span in (*spans, telemetry.one("task after"))} == {run.context.span_id}


@pytest.mark.parametrize("kind", ["generator", "coroutine"])
def test_coroutines_that_plain_functions_give(telemetry, kind):
    """A coroutine of a lambda, and an asynchronous generator, run in the span of their task run."""

    async def fetch():
        await asyncio.sleep(0)
        return current_span()

    async def generate():
        await asyncio.sleep(0)
        yield current_span()
        yield current_span()

    with Flow("thread", hooks=[telemetry.hook]) as flow:
        flow.add_task("work", (lambda: fetch()) if kind == "coroutine" else generate)
        seen = {chunk.value for chunk in flow.stream("work") if chunk.value is not None}
    assert seen == {telemetry.one("task work").context.span_id}


def test_lists_are_pulled_in_the_span_of_their_task(telemetry):
    """An iterable of next tasks is part of the task that has returned it, until its end."""
    seen = []

    def requests():
        for _ in range(5):
            seen.append(current_span())
            yield NextTask("one", spawn_another=True)

    with Flow("thread", hooks=[telemetry.hook]) as flow:
        flow.add_task("fan", lambda: TaskOutput(None, requests()))
        flow.add_task("one", tasks.one)
        flow.run("fan")
    assert set(seen) == {telemetry.one("task fan").context.span_id}


def test_what_a_task_returns_is_the_same_with_a_hook_that_enters(telemetry):
    """Only coroutines are awaited: an awaitable object, or a run, is a value."""

    class Awaitable:
        def __await__(self):
            yield

    value = Awaitable()
    with Flow("thread") as inner, Flow("thread", hooks=[telemetry.hook]) as flow:
        inner.add_task("leaf", lambda: 1)
        flow.add_task("object", lambda: value)
        flow.add_task("run", lambda: inner.start("leaf"))
        assert flow.run("object")["object"] is value
        assert flow.run("run")["run"].result(WATCHDOG) == {"leaf": 1}


def test_a_cancelled_call_ends_its_span_at_once(telemetry):
    """In a session that stays open nothing is kept of calls that were cancelled."""
    begun = threading.Event()

    async def waits():
        begun.set()
        await asyncio.Event().wait()

    with Flow("asyncio", hooks=[telemetry.hook]) as flow, flow.session() as session:
        call = session.submit(waits)
        assert begun.wait(WATCHDOG)
        call.cancel()
        until(lambda: telemetry.named("task waits"))
        (runs,) = telemetry.hook._runs.values()
        assert not runs[0].attempts
    assert telemetry.one("task waits").attributes["millstream.task.status"] == "CANCELLED"


def test_runs_of_one_id_do_not_mix(telemetry):
    """Two flows may share a hook and an id, and a run may go on while the end of its first part is still to be told."""
    slow = threading.Event()

    class Slow(OpenTelemetryHook):
        def on_task_success(self, event):
            assert slow.wait(WATCHDOG)
            super().on_task_success(event)

    hook = Slow(telemetry.provider)
    with Flow("thread", name="one", hooks=[hook]) as one, Flow("thread", name="two", hooks=[hook]) as two:
        for flow in (one, two):
            flow.add_task("work", tasks.one)
        runs = [flow.start("work", run_id="nightly") for flow in (one, two, one, two)]
        slow.set()
        for run in runs:
            run.result(WATCHDOG)
    until(lambda: len(telemetry.spans) == 8)
    assert not hook._runs
    parents = {span.context.span_id: span.name for span in telemetry.spans if span.name.startswith("flow")}
    for span in telemetry.named("task work"):
        assert parents[parent_of(span)] == f"flow {span.attributes['millstream.flow.name']}"


def test_a_run_that_is_cancelled_before_it_begins_ends_its_span(telemetry):
    """Whoever has heard that a run begins hears of its end, also if nothing of it ever ran."""

    class Cancels(Hook):
        def enter_run(self, event):
            for run in list(flow._runs):
                run.cancel()

    with Flow("thread", name="shop", hooks=[telemetry.hook, Cancels()]) as flow:
        flow.add_task("work", tasks.one)
        with pytest.raises(RunCancelledError):
            flow.run("work")
    until(lambda: telemetry.named("flow shop"))
    assert telemetry.one("flow shop").attributes["millstream.run.status"] == "CANCELLED"
    assert not telemetry.hook._runs


def test_tasks_side_by_side_have_spans_of_their_own(telemetry):
    """A hundred coroutines on one loop do not see each other's spans."""

    async def work(n):
        mine = current_span()
        await asyncio.sleep(0)
        return mine == current_span(), mine

    def fan():
        return TaskOutput(None, [NextTask("work", {"n": n}, spawn_another=True) for n in range(100)])

    with Flow("asyncio", hooks=[telemetry.hook]) as flow:
        flow.add_task("fan", fan)
        flow.add_task("work", work)
        result = flow.run("fan")
    assert all(same for same, _ in result.values())
    assert len({mine for _, mine in result.values()}) == 100
    assert len({parent_of(span) for span in telemetry.named("task work")}) == 1


def test_spans_of_small_calls_begin_when_these_do(telemetry):
    """Calls that would travel together in a message have no spans that wait with them."""
    with Flow("process", max_workers=1, hooks=[telemetry.hook]) as flow:
        flow.add_task("fan", lambda: [NextTask("one", spawn_another=True) for _ in range(20)], executor="inline")
        flow.add_task("one", tasks.one)
        flow.run("fan")
    spans = telemetry.named("task one")
    assert len(spans) == 20
    assert all(before.end_time <= after.start_time for before, after in pairwise(spans))


def test_baggage_reaches_tasks(telemetry):
    """What the caller's context holds is there in a task, as any context variable."""
    token = context.attach(baggage.set_baggage("tenant", "blue"))
    try:
        with Flow("thread", hooks=[telemetry.hook]) as flow:
            flow.add_task("work", lambda: baggage.get_baggage("tenant"))
            assert flow.run("work") == {"work": "blue"}
    finally:
        context.detach(token)


def test_values_are_never_recorded(telemetry):
    """Nothing of what a task is given, returns or sets is in a span or a metric."""
    with Flow("thread", hooks=[telemetry.hook]) as flow:
        flow.add_task("work", lambda ctx, password: ctx.set("key", "hunter2") or password)
        flow.run("work", {"password": "hunter2"}, metadata={"who": "hunter2"})
    assert "hunter2" not in "".join(span.to_json() for span in telemetry.spans)
    assert "hunter2" not in str(telemetry.metrics())


def test_one_hook_serves_many_runs_at_once(telemetry):
    """Runs that are under way at the same time do not mix."""
    with Flow("thread", name="shop", hooks=[telemetry.hook]) as flow:
        flow.add_task("work", lambda: 1)
        for run in [flow.start("work", run_id=f"run-{n}") for n in range(20)]:
            run.result(WATCHDOG)
    runs = {span.context.span_id: span.attributes["millstream.run.id"] for span in telemetry.named("flow shop")}
    assert len(runs) == 20
    for span in telemetry.named("task work"):
        assert runs[parent_of(span)] == span.attributes["millstream.run.id"]


# ---- what hooks in general may do: set up what tasks find -------------------------------------------


def test_what_enters_in_another_process_is_a_pickle(telemetry):
    """A span travels as its context: what comes out of the pickle makes that the current one."""
    with telemetry.tracer.start_as_current_span("far") as span:
        from millstream.telemetry import Current

        arrived = pickle.loads(pickle.dumps(Current(span)))
    import contextvars

    def look():
        arrived()
        return trace.get_current_span().get_span_context()

    seen = contextvars.Context().run(look)
    assert (seen.trace_id, seen.span_id) == (span.get_span_context().trace_id, span.get_span_context().span_id)
    assert seen.is_remote


@pytest.mark.parametrize("method", ["enter_run", "enter_task"])
@pytest.mark.parametrize("how", ["raises", "exits", "returns what raises", "returns what does not travel"])
@pytest.mark.parametrize("executor", EVERY)
def test_a_hook_that_fails_to_enter_harms_nothing(executor, how, method, caplog):
    """It is logged, and the task runs."""

    def broken(self, event):
        if how == "raises":
            raise ValueError("broken hook")
        if how == "exits":
            raise SystemExit(3)
        if how == "returns what raises":
            return tasks.raises
        return lambda: None

    hook = type("Broken", (Hook,), {method: broken})()
    with Flow(executor, hooks=[hook]) as flow:
        flow.add_task("work", tasks.one)
        assert flow.run("work", run_id="monday") == {"work": 1}
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    travels = how == "returns what does not travel" and (executor != "process" or method == "enter_run")
    assert bool(said) is not travels
    assert all("monday" in text or "work" in text for text in said)


def test_a_hook_that_enters_is_asked_in_the_context_of_the_run():
    """``enter_run`` is called in the caller's thread and may set what ``enter_task`` and every task find."""
    from contextvars import ContextVar

    who = ContextVar("who", default="nobody")
    asked = []

    class Names(Hook):
        def enter_run(self, event):
            asked.append((threading.current_thread(), event.run_id))
            return lambda: who.set("run")

        def enter_task(self, event):
            asked.append(who.get())
            return lambda: who.set(f"{who.get()} {event.id}")

    with Flow("thread", hooks=[Names()]) as flow:
        flow.add_task("a", lambda: TaskOutput(who.get(), [NextTask("b")]))
        flow.add_task("b", lambda ctx: (ctx.get("a"), who.get()))
        assert flow.run("a", run_id="monday") == {"b": ("run a", "run b")}
    assert asked == [(threading.current_thread(), "monday"), "run", "run"]
    assert who.get() == "nobody"


def test_without_the_library_the_error_names_the_extra():
    """A missing extra is an ImportError that says what to install."""
    code = "import sys; sys.modules['opentelemetry'] = None; import millstream.telemetry"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=3 * WATCHDOG, check=False
    )
    assert done.returncode == 1
    assert 'ImportError: OpenTelemetryHook needs OpenTelemetry: pip install "millstream[otel]"' in done.stderr


def test_importing_millstream_does_not_import_it():
    """The library is loaded by who asks for the hook, and by nothing else."""
    code = "import sys, millstream; millstream.Flow('inline'); print('opentelemetry' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=3 * WATCHDOG, check=True
    )
    assert done.stdout == "False\n"


def test_a_broken_error_ends_its_span(telemetry, caplog):
    """An exception that cannot be shown ends the span all the same."""

    class BrokenError(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    def work(ctx: Context):
        raise BrokenError

    with Flow("thread", name="shop", hooks=[telemetry.hook]) as flow:
        flow.add_task("work", work)
        with pytest.raises((BrokenError, FlowError)):
            flow.run("work")
    assert telemetry.one("task work").attributes["millstream.task.status"] == "FAILED"
    assert telemetry.one("flow shop").attributes["millstream.run.status"] == "FAILED"


@pytest.mark.parametrize("executor", EVERY[:3])
def test_hooks_that_enter_keep_nothing(telemetry, executor):
    """What a run held is freed at once, also with context variables that hooks have set up."""

    class Big:
        pass

    alive = weakref.WeakSet()

    def make(ctx):
        value = Big()
        alive.add(value)
        ctx.set("kept", value)
        return value

    def steps(ctx):
        yield make(ctx)
        return make(ctx)

    def asks(ctx):
        return TaskOutput(make(ctx), (NextTask("make") for _ in range(1)))

    async def waits(ctx):
        await asyncio.sleep(0)
        return make(ctx)

    def fails(ctx):
        raise ValueError(make(ctx))

    gc.collect()
    gc.disable()
    try:
        with Flow(executor, hooks=[telemetry.hook]) as flow:
            for task in (make, steps, asks, waits, fails):
                flow.add_task(task.__name__, task)
            flow.add_task("probe", lambda: 1)
            for name in ("make", "steps", "asks", "waits"):
                flow.run(name)
            with contextlib.suppress(ValueError):
                flow.run("fails")
            with flow.session() as session:
                session.submit(make, Context()).result(WATCHDOG)
            flow.reset()
            del session
            flow.run("probe")
            until(lambda: not alive)
    finally:
        gc.enable()
