"""Hooks, logging and traces of real runs: what is told, in which order, and that telling harms nobody."""

import asyncio
import dataclasses
import gc
import io
import json
import logging
import pickle
import sys
import threading
import time
import weakref

import pytest

from millstream import (
    Context,
    DependencyFailedError,
    Flow,
    Hook,
    NextTask,
    Retry,
    RouteError,
    RunCancelledError,
    RunEndEvent,
    RunStartEvent,
    RunTimeoutError,
    Status,
    TaskCancelEvent,
    TaskCancelledError,
    TaskCoalescedEvent,
    TaskFailedError,
    TaskFailureEvent,
    TaskOutput,
    TaskProgressEvent,
    TaskRetryEvent,
    TaskSkipEvent,
    TaskStartEvent,
    TaskSuccessEvent,
    TaskTimeoutError,
    ThreadExecutor,
    current_task,
    fn_hook,
    task,
)
from tests.conftest import (
    WATCHDOG,
    JumpingClock,
    Log,
    VirtualClock,
    assert_gone,
    engine_threads,
    on_one_worker,
    run_snippet,
    set_clock,
)

on_three = pytest.mark.parametrize("executor", ["inline", "thread", "asyncio"], indirect=True)
on_two = pytest.mark.parametrize("executor", ["thread", "asyncio"], indirect=True)

METHODS = {
    "on_run_start": RunStartEvent,
    "on_run_end": RunEndEvent,
    "on_task_start": TaskStartEvent,
    "on_task_success": TaskSuccessEvent,
    "on_task_failure": TaskFailureEvent,
    "on_task_retry": TaskRetryEvent,
    "on_task_skip": TaskSkipEvent,
    "on_task_cancel": TaskCancelEvent,
    "on_task_coalesced": TaskCoalescedEvent,
    "on_task_progress": TaskProgressEvent,
}


def wait(event):
    assert event.wait(WATCHDOG)


def told(event):
    """Return one line for an event."""
    match event:
        case RunStartEvent():
            return "run starts"
        case RunEndEvent():
            return f"run ends: {event.status}"
        case TaskStartEvent():
            return f"{event.id} starts ({event.attempt})"
        case TaskSuccessEvent():
            return f"{event.id} succeeds ({event.attempt})"
        case TaskFailureEvent():
            return f"{event.id} fails ({event.attempt}{', tried again' if event.will_retry else ''})"
        case TaskRetryEvent():
            return f"{event.id} is tried again ({event.attempt})"
        case TaskSkipEvent():
            return f"{event.id} is skipped"
        case TaskCancelEvent():
            return f"{event.id} is cancelled ({event.attempt})"
        case TaskCoalescedEvent():
            return f"{event.id} coalesces"
        case TaskProgressEvent():
            return f"{event.id} has done {event.done} of {event.total} ({event.attempt})"
    raise AssertionError(event)


class Down:
    """A service that is down for its first calls."""

    def __init__(self, failures, answer):
        self.left, self.answer = failures, answer

    def __call__(self):
        if self.left:
            self.left -= 1
            raise OSError("it is down")
        return self.answer


class Recorder(Hook):
    """Keeps every event."""

    def __init__(self):
        self.events, self.ends = Log(), Log()

    def keep(self, event):
        self.events.add(event)

    on_run_start = on_task_start = on_task_success = on_task_failure = keep
    on_task_retry = on_task_skip = on_task_coalesced = keep

    def on_run_end(self, event):
        self.keep(event)
        self.ends.add(event)

    def ended(self, runs=1):
        """Wait until so many runs have ended; return all events."""
        self.ends.wait_for(runs)
        return list(self.events)

    def story(self, runs=1):
        """The same as one line each."""
        return [told(event) for event in self.ended(runs)]

    def of(self, kind):
        return [event for event in self.events if type(event) is kind]


@pytest.fixture
def recorder():
    """A hook that keeps every event."""
    return Recorder()


@pytest.fixture
def flow(executor, recorder):
    """A flow on each executor in turn, whose events are kept."""
    with Flow(executor, hooks=[recorder], name="shop") as flow:
        yield flow


# ---- what is told, in which order -----------------------------------------------------------------


def test_a_task_that_succeeds(flow, recorder):
    """Start of the run, start and success of the task, end of the run, with their fields."""
    flow.add_task("count", lambda words: len(words.split()))
    assert flow.run("count", inputs={"words": "a b c"}, run_id="run-7") == {"count": 3}
    assert recorder.story() == ["run starts", "count starts (1)", "count succeeds (1)", "run ends: SUCCESS"]
    begin, start, success, end = recorder.events
    assert {(event.run_id, event.flow) for event in recorder.events} == {("run-7", "shop")}
    assert begin.at <= start.at <= success.at <= end.at <= time.time() + 1
    assert (start.task, start.id, start.attempt) == ("count", "count", 1)
    assert (success.task, success.id, success.attempt, success.output) == ("count", "count", 1, 3)
    assert (end.status, end.error) == (Status.SUCCESS, None)
    assert 0 <= success.duration <= end.duration


@on_three
def test_durations_are_those_of_the_clock(executor, recorder):
    """The duration of an attempt is its own time, that of the run its whole."""
    clock = VirtualClock()
    with set_clock(Flow(executor, hooks=[recorder]), clock) as flow:

        @flow.task(retries=1)
        def work():
            clock.advance(2.5)
            if current_task().attempt == 1:
                raise OSError

        flow.run("work")
        recorder.ended()
    assert recorder.of(TaskFailureEvent)[0].duration == 2.5
    assert recorder.of(TaskSuccessEvent)[0].duration == 2.5
    assert recorder.of(RunEndEvent)[0].duration == 5.0
    instants = [event.at - recorder.events[0].at for event in recorder.events]
    assert instants == pytest.approx([0, 0, 2.5, 2.5, 2.5, 5.0, 5.0], abs=1e-5)


def test_the_duration_of_every_failure_is_known_to_a_hook_for_failures_alone():
    """A hook that is told of nothing else learns how long each attempt took, also from the second run of a task on."""
    clock, lasted = VirtualClock(), []
    with set_clock(
        Flow(
            "inline", on_error="continue", hooks=[fn_hook(on_task_failure=lambda event: lasted.append(event.duration))]
        ),
        clock,
    ) as flow:

        @flow.task
        def slow(seconds):
            clock.advance(seconds)
            raise ValueError(seconds)

        flow.add_task("all", lambda _: TaskOutput(None, [NextTask("slow", {"seconds": n}, True) for n in (2, 3, 4)]))
        flow.run("all")
    assert lasted == [2.0, 3.0, 4.0]


@on_three
def test_a_task_that_is_tried_again(executor, recorder):
    """Each failed attempt is told with its error and the wait, then that it is tried again, then its start."""
    clock, errors = JumpingClock(), [OSError("first"), OSError("second")]
    with set_clock(Flow(executor, hooks=[recorder]), clock) as flow:
        failures = iter(errors)

        @flow.task(retry=Retry(3, base=4.0))
        def fetch():
            for error in failures:
                raise error
            return "fetched"

        flow.run("fetch")
        story = recorder.story()
    assert story == [
        "run starts",
        "fetch starts (1)",
        "fetch fails (1, tried again)",
        "fetch is tried again (2)",
        "fetch starts (2)",
        "fetch fails (2, tried again)",
        "fetch is tried again (3)",
        "fetch starts (3)",
        "fetch succeeds (3)",
        "run ends: SUCCESS",
    ]
    failed, again = recorder.of(TaskFailureEvent), recorder.of(TaskRetryEvent)
    assert [(event.error, event.delay, event.will_retry) for event in failed] == [
        (errors[0], 4.0, True),
        (errors[1], 8.0, True),
    ]
    assert [(event.error, event.delay) for event in again] == [(errors[0], 4.0), (errors[1], 8.0)]


@on_three
def test_a_task_that_fails_for_good(flow, recorder):
    """The last failure is told as final, and the end of the run has the error that is raised."""
    flow.add_task("fetch", lambda: {}["nothing"], retries=1)
    with pytest.raises(KeyError) as caught:
        flow.run("fetch")
    assert recorder.story() == [
        "run starts",
        "fetch starts (1)",
        "fetch fails (1, tried again)",
        "fetch is tried again (2)",
        "fetch starts (2)",
        "fetch fails (2)",
        "run ends: FAILED",
    ]
    last, end = recorder.of(TaskFailureEvent)[-1], recorder.events[-1]
    assert (last.will_retry, last.delay, last.error) == (False, None, caught.value)
    assert end.error is caught.value


def test_a_chain_a_fan_out_and_a_join(flow, recorder):
    """Each task run is told of in an order that respects what caused it."""
    flow.add_task("go", lambda: [*(NextTask("part", spawn_another=True) for _ in range(5)), NextTask("sum", join=True)])
    flow.add_task("part", lambda: 1)
    flow.add_task("sum", lambda upstream: NextTask("last") if len(upstream) == 5 else None)
    flow.add_task("last", lambda: "done")
    flow.run("go")
    story = recorder.story()
    parts = ["part", *(f"part#{n}" for n in range(2, 6))]
    assert story[:3] == ["run starts", "go starts (1)", "go succeeds (1)"]
    assert sorted(story[3:13]) == sorted([f"{p} {what} (1)" for p in parts for what in ("starts", "succeeds")])
    assert all(story.index(f"{part} starts (1)") < story.index(f"{part} succeeds (1)") for part in parts)
    assert story[13:] == [
        "sum starts (1)",
        "sum succeeds (1)",
        "last starts (1)",
        "last succeeds (1)",
        "run ends: SUCCESS",
    ]


@on_three
def test_what_is_not_chosen_is_told_as_skipped(flow, recorder):
    """Routes not taken, and what only they lead to, are skipped with a reason."""
    flow.add_task("check", lambda: "approve", routes=["approve", "reject"])
    flow.add_task("approve", lambda: "approved")
    flow.add_task("reject", lambda: "rejected")
    flow.add_task("mail", lambda: "sent", depends_on=["reject"])
    assert flow.run() == {"approve": "approved"}
    story = recorder.story()
    assert sorted(story) == sorted(
        [
            "run starts",
            "check starts (1)",
            "check succeeds (1)",
            "approve starts (1)",
            "approve succeeds (1)",
            "reject is skipped",
            "mail is skipped",
            "run ends: SUCCESS",
        ]
    )
    assert story.index("check succeeds (1)") < story.index("reject is skipped") < story.index("mail is skipped")
    assert all(event.reason for event in recorder.of(TaskSkipEvent))
    assert {event.task for event in recorder.of(TaskSkipEvent)} == {"reject", "mail"}


@on_three
def test_what_a_failure_leads_to_is_told(executor, recorder):
    """A dependant of a failed task fails without an attempt, or is skipped; both say what failed."""
    with Flow(executor, hooks=[recorder], on_error="continue") as flow:
        flow.add_task("load", lambda: {}["nothing"])
        flow.add_task("store", lambda: None, depends_on=["load"])
        flow.add_task("mail", lambda: None, depends_on=["load"], on_dep_failure="skip")
        flow.add_task("clean", lambda: "cleaned", depends_on=["load"], on_dep_failure="run-anyway")
        assert flow.run() == {"clean": "cleaned"}
        story = recorder.story()
    assert sorted(story) == sorted(
        [
            "run starts",
            "load starts (1)",
            "load fails (1)",
            "store fails (0)",
            "mail is skipped",
            "clean starts (1)",
            "clean succeeds (1)",
            "run ends: FAILED",
        ]
    )
    (store,) = [event for event in recorder.of(TaskFailureEvent) if event.task == "store"]
    assert isinstance(store.error, DependencyFailedError)
    assert store.will_retry is False
    (skip,) = recorder.of(TaskSkipEvent)
    assert "load" in skip.reason


def test_a_run_that_is_cancelled(recorder):
    """A cancel is told by the end of the run; what was cancelled has not failed, what was pending not started."""
    begun = threading.Event()
    with Flow("thread", hooks=[recorder]) as flow:

        async def work():
            begun.set()
            await asyncio.Event().wait()

        flow.add_task("work", work, retries=3)
        flow.add_task("after", lambda: None, depends_on=["work"])
        run = flow.start()
        wait(begun)
        run.cancel()
        with pytest.raises(RunCancelledError) as caught:
            run.result(WATCHDOG)
        story = recorder.story()
    assert story == ["run starts", "work starts (1)", "run ends: CANCELLED"]
    assert recorder.events[-1].error is caught.value


@on_two
def test_a_task_that_takes_too_long(executor, recorder):
    """A timeout of a task is a failure with a TaskTimeoutError, told once."""
    clock, release = VirtualClock(), threading.Event()
    with set_clock(Flow(executor, hooks=[recorder]), clock) as flow:

        @flow.task(timeout=2.0)
        def work():
            release.wait(WATCHDOG)

        run = flow.start("work")
        clock.wait_for(2.0)
        clock.advance(2.0)
        with pytest.raises(TaskTimeoutError) as caught:
            run.result(WATCHDOG)
        release.set()
        story = recorder.story()
    assert story == ["run starts", "work starts (1)", "work fails (1)", "run ends: FAILED"]
    (failed,) = recorder.of(TaskFailureEvent)
    assert failed.error is caught.value
    assert failed.duration == 2.0


def test_a_coroutine_that_takes_too_long_and_succeeds_later(recorder):
    """A timeout that is tried again is told as every failure is."""
    clock = VirtualClock()
    with set_clock(Flow("asyncio", hooks=[recorder]), clock) as flow:

        @flow.task(timeout=2.0, retries=1, retry_on=TaskTimeoutError)
        async def work():
            if current_task().attempt == 1:
                await asyncio.Event().wait()
            return "in time"

        run = flow.start("work")
        clock.wait_for(2.0)
        clock.advance(2.0)
        assert run.result(WATCHDOG) == {"work": "in time"}
        story = recorder.story()
    assert story == [
        "run starts",
        "work starts (1)",
        "work fails (1, tried again)",
        "work is tried again (2)",
        "work starts (2)",
        "work succeeds (2)",
        "run ends: SUCCESS",
    ]


def test_a_run_that_takes_too_long(recorder):
    """The timeout of a run is told by its end, which has the RunTimeoutError."""
    clock, begun = VirtualClock(), threading.Event()
    with set_clock(Flow("thread", hooks=[recorder]), clock) as flow:

        @flow.task
        async def work():
            begun.set()
            await asyncio.Event().wait()

        run = flow.start("work", timeout=3.0)
        wait(begun)
        clock.advance(3.0)
        with pytest.raises(RunTimeoutError) as caught:
            run.result(WATCHDOG)
        story = recorder.story()
    assert story == ["run starts", "work starts (1)", "run ends: FAILED"]
    assert recorder.events[-1].error is caught.value
    assert recorder.events[-1].duration == 3.0


@on_three
def test_a_session(flow, recorder):
    """A session is a run: it starts with the block and ends after it, with an event for each call's steps."""
    service = Down(1, 9)
    square = task("square", retries=1)(lambda n: service())
    plus = task("plus")(lambda n: n + 1)
    with flow.session(run_id="day-1") as session:
        nine = session.submit(square, 3)
        assert nine.result(WATCHDOG) == 9
        assert session.submit(plus, nine).result(WATCHDOG) == 10
    assert [line.replace("<lambda>", "plus") for line in recorder.story()] == [
        "run starts",
        "square starts (1)",
        "square fails (1, tried again)",
        "square is tried again (2)",
        "square starts (2)",
        "square succeeds (2)",
        "plus starts (1)",
        "plus succeeds (1)",
        "run ends: SUCCESS",
    ]
    assert {event.run_id for event in recorder.events} == {"day-1"}


@on_three
def test_calls_that_fail(flow, recorder):
    """A failed call, and what depends on it, is told when it happens; the end of the run says FAILED."""
    session = flow.session()
    bad = session.submit(task("bad")(lambda: {}["nothing"]))
    session.submit(task("after")(lambda value: value), bad)
    with pytest.raises(KeyError):
        session.close()
    assert recorder.story() == [
        "run starts",
        "bad starts (1)",
        "bad fails (1)",
        "after fails (0)",
        "run ends: FAILED",
    ]


@on_one_worker
def test_a_map(flow, recorder):
    """A map is told of, and each of its items with an id of its own."""
    tries = []

    @flow.task(for_each="$inputs.rows", retries=1)
    def double(item, index):
        tries.append(index)
        return 2 * item if tries.count(1) != 1 or index != 1 else {}[item]

    assert flow.run("double", inputs={"rows": [4, 5]}) == {"double": [8, 10]}
    assert recorder.story() == [
        "run starts",
        "double starts (1)",
        "double[0] starts (1)",
        "double[0] succeeds (1)",
        "double[1] starts (1)",
        "double[1] fails (1, tried again)",
        "double[1] is tried again (2)",
        "double[1] starts (2)",
        "double[1] succeeds (2)",
        "double succeeds (1)",
        "run ends: SUCCESS",
    ]
    assert [event.output for event in recorder.of(TaskSuccessEvent)] == [8, 10, [8, 10]]
    assert {event.task for event in recorder.of(TaskStartEvent)} == {"double"}


@on_one_worker
def test_a_map_of_which_an_item_fails(flow, recorder):
    """The first failing item fails the map, and the run ends with its error."""

    @flow.task(for_each="$inputs.rows", max_parallel=1)
    def double(item):
        return 2 * item if item else {}[item]

    with pytest.raises(KeyError) as caught:
        flow.run("double", inputs={"rows": [4, 0, 5]})
    story = recorder.story()
    assert story[:6] == [
        "run starts",
        "double starts (1)",
        "double[0] starts (1)",
        "double[0] succeeds (1)",
        "double[1] starts (1)",
        "double[1] fails (1)",
    ]
    assert "double[2] starts (1)" not in story
    assert story[-1] == "run ends: FAILED"
    assert recorder.events[-1].error is caught.value


@on_three
def test_a_request_that_coalesces(flow, recorder):
    """A request that was dropped although its inputs differ is told, with both."""
    flow.add_task("go", lambda: [NextTask("work", {"n": 1}), NextTask("work", {"n": 2}), NextTask("work", {"n": 1})])
    flow.add_task("work", lambda n: n)
    flow.run("go")
    story = recorder.story()
    assert story.count("work coalesces") == 1
    (event,) = recorder.of(TaskCoalescedEvent)
    assert (dict(event.kept), dict(event.dropped)) == ({"n": 1}, {"n": 2})


@on_three
def test_a_task_that_asks_for_the_impossible_fails(flow, recorder):
    """What is refused after the body has returned is one failure of that attempt, not a success as well."""
    flow.add_task("check", lambda: "nowhere", routes=["somewhere"])
    flow.add_task("somewhere", lambda: None)
    with pytest.raises(RouteError):
        flow.run("check")
    story = recorder.story()
    assert story[:3] == ["run starts", "check starts (1)", "check fails (1)"]
    assert "check succeeds (1)" not in story


def test_a_run_that_cannot_begin_is_not_told(recorder):
    """A start that is refused is no run: no hook hears of it."""
    with Flow("inline", hooks=[recorder]) as flow:
        flow.add_task("work", lambda ctx: None)
        with pytest.raises(LookupError):
            flow.run("wrok")
        flow.run("work")
        assert recorder.story() == ["run starts", "work starts (1)", "work succeeds (1)", "run ends: SUCCESS"]


@on_three
def test_runs_at_the_same_time_are_told_apart(flow, recorder):
    """Each run's own events come in their order, whatever comes between."""
    flow.add_task("go", lambda: NextTask("work"))
    flow.add_task("work", lambda: "done")
    runs = [flow.start("go") for _ in range(20)]
    for run in runs:
        run.result(WATCHDOG)
    recorder.ended(20)
    for run in runs:
        assert [told(event) for event in recorder.events if event.run_id == run.id] == [
            "run starts",
            "go starts (1)",
            "go succeeds (1)",
            "work starts (1)",
            "work succeeds (1)",
            "run ends: SUCCESS",
        ]


def test_run_many_tells_of_every_run(recorder):
    """Each run of run_many has a start and an end."""
    with Flow("thread", hooks=[recorder]) as flow:
        flow.add_task("double", lambda n: 2 * n)
        runs = list(flow.run_many(({"n": n} for n in range(10)), max_concurrent=3))
        recorder.ended(10)
    assert [event.run_id for event in recorder.of(RunEndEvent)] != []
    assert {event.run_id for event in recorder.of(RunEndEvent)} == {run.id for run in runs}


def test_astream_and_arun_tell_the_same(recorder):
    """The asynchronous ways to run tell the same story."""

    async def main(flow):
        await flow.arun("work")
        async for _ in flow.astream("work"):
            pass

    with Flow("asyncio", hooks=[recorder]) as flow:

        @flow.task
        async def work():
            await asyncio.sleep(0)

        asyncio.run(main(flow))
        assert recorder.story(2) == ["run starts", "work starts (1)", "work succeeds (1)", "run ends: SUCCESS"] * 2


# ---- who is told, and where -----------------------------------------------------------------------


@on_three
@pytest.mark.parametrize("method", METHODS)
def test_a_hook_with_one_method_gets_those_events_alone(executor, method):
    """A hook hears only of what it has a method for, and of each of these."""
    got = Log()
    ended = threading.Event()

    def quits():
        for run in list(flow._runs):
            run.cancel()
        raise TaskCancelledError(current_task().id)

    hooks = [fn_hook(**{method: got.add}), fn_hook(on_run_end=lambda event: ended.set())]
    with Flow(executor, hooks=hooks) as flow:
        flow.add_task("go", lambda: [NextTask("work", {"n": 1}), NextTask("work", {"n": 2}), NextTask("flaky")])
        flow.add_task("work", lambda n: None)
        flow.add_task("flaky", Down(1, None), retries=1)
        flow.add_task("choose", lambda: "a", routes=["a", "b"])
        flow.add_task("a", lambda: current_task().progress(1, 2))
        flow.add_task("b", lambda: None)
        flow.add_task("quits", quits)
        flow.run(["go", "choose"])
        with pytest.raises(RunCancelledError):
            flow.run("quits")
        wait(ended)
        got.wait_for(1)
    assert {type(event) for event in got} == {METHODS[method]}


def test_hooks_are_called_by_a_thread_of_their_own(recorder):
    """One thread calls all methods of a hook, one after the other; it is nobody's who runs tasks."""
    inside, callers, workers = threading.Lock(), set(), set()

    def called(event):
        assert inside.acquire(blocking=False)
        callers.add(threading.current_thread())
        inside.release()

    with Flow("thread", max_workers=4, hooks=[fn_hook(**dict.fromkeys(METHODS, called)), recorder]) as flow:
        flow.add_task("work", lambda: workers.add(threading.current_thread()))
        flow.add_task("go", lambda: [NextTask("work", spawn_another=True) for _ in range(50)])
        flow.run("go")
        recorder.ended()
    assert len(callers) == 1
    assert callers.isdisjoint(workers | {threading.current_thread()})


def test_every_hook_is_told(recorder):
    """Several hooks are all told everything; the same one twice is told twice."""
    other = Recorder()
    with Flow("inline", hooks=[recorder, other, other]) as flow:
        flow.add_task("work", lambda ctx: None)
        flow.run("work")
        other.ends.wait_for(2)
        story = recorder.story()
    assert sorted(other.story()) == sorted(story * 2)


def test_flows_made_of_a_flow_have_its_hooks(recorder):
    """subgraph and override keep the hooks of their flow."""
    with Flow("inline", hooks=[recorder], name="shop") as flow:
        flow.add_task("load", lambda: 1)
        flow.add_task("store", lambda load: load + 1)
        flow.override(load=41).run()
        flow.subgraph(["load"]).run()
        flows = {event.flow for event in recorder.ended(2)}
    assert flows == {"shop"}
    assert [event.output for event in recorder.of(TaskSuccessEvent)] == [41, 42, 1]


def test_a_run_has_told_its_hooks_when_it_returns():
    """A hook that keeps up has had all events when run returns."""
    seen = []
    with Flow("thread", hooks=[fn_hook(on_run_end=lambda event: seen.append(event.run_id))]) as flow:
        flow.add_task("work", lambda ctx: None)
        for number in range(20):
            flow.run("work", run_id=str(number))
            assert seen[-1] == str(number)


def test_the_thread_of_a_hook_ends_with_its_run(recorder):
    """Between runs no thread is left for hooks, also of a flow that is not closed."""
    before = engine_threads()
    flow = Flow("inline", hooks=[recorder])
    flow.add_task("work", lambda ctx: None)
    for number in range(1, 4):
        flow.run("work")
        recorder.ended(number)
        assert_gone(engine_threads() - before)


def test_hooks_keep_no_output_alive(recorder):
    """When an output was told of and is not used any more, it is gone."""

    class Big:
        pass

    weak, told_of = [], threading.Event()
    hook = fn_hook(on_task_success=lambda event: weak.append(weakref.ref(event.output)), on_run_end=lambda _: None)
    with Flow("thread", hooks=[hook, fn_hook(on_run_end=lambda event: told_of.set())]) as flow:
        flow.add_task("work", lambda ctx: Big())
        assert len(list(flow.stream("work"))) == 1
        wait(told_of)
        flow.reset()
        flow.run("work")
        flow.reset()
        gc.collect()
        assert weak[0]() is None


class StoppingClock(VirtualClock):
    """A clock that stops the first worker who asks for the time, until somebody else holds the lock of the run."""

    def __init__(self):
        super().__init__()
        self.asked, self.held = threading.Event(), threading.Event()

    def now(self):
        if threading.current_thread().name.startswith("millstream-thread") and not self.asked.is_set():
            self.asked.set()
            wait(self.held)
        return super().now()


def test_a_start_is_told_at_once_whoever_holds_the_lock(recorder):
    """A worker tells that a task begins without asking for the lock of the run, so the start comes first."""
    context, clock, free = Context(), StoppingClock(), threading.Event()
    with set_clock(Flow("thread", hooks=[recorder]), clock) as flow:
        flow.add_task("work", lambda: free.wait(WATCHDOG) and "done")
        run = flow.start("work", context=context)
        wait(clock.asked)
        with context._monitor:
            clock.held.set()
            recorder.events.wait_for(2)
            assert list(map(type, recorder.events)) == [RunStartEvent, TaskStartEvent]
        free.set()
        assert run.result(WATCHDOG) == {"work": "done"}
        recorder.events.wait_for(4)
        assert recorder.story() == ["run starts", "work starts (1)", "work succeeds (1)", "run ends: SUCCESS"]


# ---- hooks that misbehave -------------------------------------------------------------------------


@on_three
@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, StopIteration])
def test_a_hook_that_raises_harms_nothing(executor, recorder, kind, caplog):
    """Whatever a hook raises is logged with the method and the run; it is called again, and others are told."""
    caplog.set_level(logging.ERROR, logger="millstream")
    calls = Log()

    def broken(event):
        calls.add(told(event))
        raise kind("broken hook")

    with Flow(executor, hooks=[fn_hook(**dict.fromkeys(METHODS, broken)), recorder]) as flow:
        flow.add_task("work", lambda: "done")
        assert flow.run("work", run_id="run-7") == {"work": "done"}
        story = recorder.story()
        calls.wait_for(4)
        assert calls == story == ["run starts", "work starts (1)", "work succeeds (1)", "run ends: SUCCESS"]
        assert flow.run("work") == {"work": "done"}
    errors = [record for record in caplog.records if record.run_id == "run-7"]
    assert [record.levelname for record in errors] == ["ERROR"] * 4
    assert "on_run_start" in errors[0].getMessage()
    assert "run-7" in errors[0].getMessage()
    assert "broken hook" in errors[0].getMessage() + (errors[0].exc_text or "")


@on_three
def test_a_hook_that_blocks_for_ever_harms_nothing(executor):
    """A hook that never returns delays the end of a run by half a second of its clock, and nothing else."""
    never, entered, clock = threading.Event(), threading.Event(), VirtualClock()

    def blocks(event):
        entered.set()
        never.wait(WATCHDOG)

    runs = []
    try:
        with set_clock(Flow(executor, hooks=[fn_hook(on_run_start=blocks)]), clock) as flow:
            flow.add_task("work", lambda: "done")
            for _ in range(2):
                thread = threading.Thread(target=lambda: runs.append(flow.run("work")))
                thread.start()
                wait(entered)
                clock.wait_for(0.5)
                assert thread.is_alive()
                clock.advance(0.5)
                thread.join(WATCHDOG)
                assert not thread.is_alive()
    finally:
        never.set()
    assert runs == [{"work": "done"}] * 2


@on_two
def test_a_flow_can_be_closed_while_its_hook_blocks(executor):
    """close returns, and so does who waits for a run of which only the hooks are not through."""
    never, entered = threading.Event(), threading.Event()

    def blocks(event):
        entered.set()
        never.wait(WATCHDOG)

    clock = VirtualClock()
    try:
        flow = set_clock(Flow(executor, hooks=[fn_hook(on_run_end=blocks)]), clock)
        flow.add_task("work", lambda: "done")
        run = flow.start("work")
        wait(entered)
        flow.close()
        assert run.wait(WATCHDOG / 5)
        assert run.result(0) == {"work": "done"}
    finally:
        never.set()


def test_a_program_whose_hook_blocks_ends():
    """A hook that blocks for ever does not keep the interpreter alive, nor does it print anything."""
    assert (
        run_snippet("""
        import threading
        from millstream import Flow, fn_hook

        flow = Flow(hooks=[fn_hook(on_task_success=lambda event: threading.Event().wait())])
        flow.add_task("work", lambda: "done")
        print(flow.run("work"))
    """)
        == "{'work': 'done'}\n"
    )


def test_a_slow_hook_gets_everything_later(recorder):
    """A hook that is slow gets the events that a run has left, in their order, also after the run has returned."""
    gate, got, clock = threading.Event(), Log(), VirtualClock()

    def slow(event):
        wait(gate)
        got.add(told(event))

    with set_clock(Flow("thread", hooks=[fn_hook(**dict.fromkeys(METHODS, slow)), recorder]), clock) as flow:
        flow.add_task("work", lambda: "done")
        run = flow.start("work")
        clock.wait_for(0.5)
        clock.advance(0.5)
        assert run.result(WATCHDOG) == {"work": "done"}
        assert got == []
        story = recorder.story()
        gate.set()
        got.wait_for(4)
    assert got == story


def test_a_slow_hook_slows_no_task():
    """While a hook is stuck with the first event, a thousand task runs go on."""
    gate, ran, clock = threading.Event(), Log(), VirtualClock()
    try:
        with set_clock(Flow("thread", hooks=[fn_hook(on_task_start=lambda event: wait(gate))]), clock) as flow:
            flow.add_task("go", lambda: [NextTask("work", spawn_another=True) for _ in range(1000)])
            flow.add_task("work", lambda: ran.add(1))
            run = flow.start("go")
            ran.wait_for(1000)
            gate.set()
            assert run.wait(WATCHDOG)
    finally:
        gate.set()


def test_what_waits_for_a_stuck_hook_is_bounded(monkeypatch, caplog):
    """Events beyond a bound are dropped for a hook that is stuck, and a log line says so when it goes on."""
    caplog.set_level(logging.WARNING, logger="millstream")
    monkeypatch.setattr("millstream.engine.tell.MOST", 10)
    gate, entered, got, clock = threading.Event(), threading.Event(), Log(), VirtualClock()

    def stuck(event):
        entered.set()
        wait(gate)
        got.add(event)

    with set_clock(Flow("thread", hooks=[fn_hook(on_task_success=stuck)]), clock) as flow:
        flow.add_task("go", lambda: (wait(entered), [NextTask("work", spawn_another=True)] * 100)[1])
        flow.add_task("work", lambda: None)
        flow.add_task("first", lambda: NextTask("go"))
        run = flow.start("first")
        clock.wait_for(0.5)
        clock.advance(0.5)
        assert len(run.result(WATCHDOG)) == 100
        gate.set()
        got.wait_for(5)
        assert flow.run("work") == {"work": None}
        assert flow.run("work") == {"work": None}
    assert len(got) <= 1 + 10 + 2
    assert any("dropped" in record.getMessage() for record in caplog.records)


@on_three
def test_a_hook_that_starts_runs_itself(executor, recorder):
    """A hook may run its own flow and others, and wait for them."""
    with Flow(executor, name="audit") as audit:
        audit.add_task("note", lambda text: text.upper())
        notes = Log()

        class Auditing(Hook):
            def on_task_success(self, event):
                notes.add(audit.run("note", inputs={"text": event.id})["note"])
                if event.task == "work":
                    notes.add(flow.run("own")["own"])

        with Flow(executor, hooks=[Auditing(), recorder], name="shop") as flow:
            flow.add_task("work", lambda: "done")
            flow.add_task("own", lambda: "hook's own")
            assert flow.run("work") == {"work": "done"}
            notes.wait_for(3)
            recorder.ended(2)
    assert sorted(notes) == ["OWN", "WORK", "hook's own"]


@on_two
def test_a_hook_may_look_at_its_run_and_cancel_it(executor):
    """In a hook, report(), cancel() and cancel_all() of the run work, and close() of the flow returns."""
    seen = Log()

    def act(event):
        seen.add(str(flow.report(event.run_id).status))
        runs[0].cancel()
        flow.cancel_all()

    begun, runs = threading.Event(), []
    with Flow(executor, hooks=[fn_hook(on_task_start=lambda event: (wait(begun), act(event)))]) as flow:

        @flow.task
        async def work():
            await asyncio.Event().wait()

        runs.append(flow.start("work"))
        begun.set()
        with pytest.raises(RunCancelledError):
            runs[0].result(WATCHDOG)
        seen.wait_for(1)
    assert seen == ["RUNNING"]


def test_a_hook_may_close_its_flow():
    """close() called by a hook returns, and the run ends as cancelled or finished."""
    closed = threading.Event()
    flow = Flow("thread", hooks=[fn_hook(on_task_success=lambda event: (flow.close(), closed.set()))])
    flow.add_task("work", lambda: "done")
    run = flow.start("work")
    wait(closed)
    assert run.wait(WATCHDOG)


def test_a_hook_may_wait_for_its_run():
    """result() called by a hook for the very run returns once what the run waits for hooks is over."""
    got, clock, runs, begun = Log(), VirtualClock(), [], threading.Event()

    def waits(event):
        wait(begun)
        got.add(runs[0].result(WATCHDOG))

    with set_clock(Flow("thread", hooks=[fn_hook(on_task_success=waits)]), clock) as flow:
        flow.add_task("work", lambda: "done")
        runs.append(flow.start("work"))
        begun.set()
        clock.wait_for(0.5)
        clock.advance(0.5)
        got.wait_for(1)
    assert got == [{"work": "done"}]


@pytest.mark.parametrize(
    "make",
    [
        lambda hook: Flow(hooks=hook),
        lambda hook: Flow(hooks=[hook, print]),
        lambda hook: Flow(hooks=[type(hook)]),
        lambda hook: Flow(hooks=5),
    ],
    ids=["not in a list", "a function", "a class", "a number"],
)
def test_what_is_no_hook_is_refused_by_the_flow(make):
    """A flow takes a list of Hook instances alone."""
    with pytest.raises(TypeError, match="hooks"):
        make(Recorder())


def test_an_async_hook_is_refused_by_the_flow():
    """A hook whose method cannot work is refused where it enters, also when that was set on the instance."""

    async def on_task_start(event):
        raise AssertionError("it is never called")

    hook = Recorder()
    hook.on_task_start = on_task_start
    with pytest.raises(TypeError, match="async def"):
        Flow(hooks=[hook])
    with pytest.raises(TypeError, match="async def"):
        fn_hook(on_task_start=on_task_start)
    with pytest.raises(TypeError, match="async def"):
        type("Watch", (Hook,), {"on_task_start": lambda self, event: None, "on_run_end": on_task_start})


# ---- values and exceptions that misbehave ---------------------------------------------------------


class Hostile:
    """An output that can be passed on, and nothing else."""

    def _refuse(self, *args):
        raise RuntimeError("hands off")

    __repr__ = __str__ = __eq__ = __bool__ = __len__ = __iter__ = __hash__ = __format__ = __reduce_ex__ = _refuse
    __contains__ = __getitem__ = __lt__ = __copy__ = __deepcopy__ = _refuse


@on_three
def test_an_output_that_nobody_can_look_at(executor, recorder, caplog):
    """An output without a repr, an equality or a truth goes its way: to dependants, chunks, hooks and report."""
    caplog.set_level(logging.DEBUG, logger="millstream")
    output = Hostile()
    with Flow(executor, hooks=[recorder]) as flow:
        flow.add_task("make", lambda: output)
        flow.add_task("pass_on", lambda make: make)
        flow.add_task("go", lambda: [NextTask("make", {"x": output}), NextTask("make", {"x": output})])
        (result,) = flow.run(targets=["pass_on"], metadata={"odd": output}).values()
        assert result is output
        report = flow.report()
        assert report.tasks["pass_on"].result is output
        assert "pass_on" in report.to_text()
        assert "SUCCESS" in repr(report)
        assert report.to_dict()["metadata"]["odd"] is output
        assert [chunk.value is output for chunk in flow.stream(targets=["pass_on"])] == [True, True]
        flow.run("go")
        recorder.ended(3)
    assert all(event.output is output for event in recorder.of(TaskSuccessEvent) if event.task != "go")
    assert "cannot be shown" in repr(recorder.of(TaskSuccessEvent)[0])


@dataclasses.dataclass(frozen=True)
class NotFoundError(Exception):
    """What many write: an exception as a frozen dataclass, which refuses to be changed."""

    key: str


class NoTextError(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class NoTextAtAllError(Exception):
    def __str__(self):
        return 5

    __repr__ = __str__


class NoEqualityError(Exception):
    def __eq__(self, other):
        raise RuntimeError("no equality")

    def __hash__(self):
        raise RuntimeError("no hash")

    def __bool__(self):
        raise RuntimeError("no truth")


class NoNotesError(Exception):
    def add_note(self, note):
        raise RuntimeError("no notes")


class OddNotesError(Exception):
    __notes__ = None


class NoNotesAttributeError(Exception):
    @property
    def __notes__(self):
        raise RuntimeError("no notes")


class UnpicklableError(Exception):
    def __init__(self, left, right):
        super().__init__(f"{left} and {right}")
        self.lock = threading.Lock()

    def __reduce__(self):
        raise RuntimeError("no pickle")


class SlottedError(Exception):
    __slots__ = ()

    def __setattr__(self, name, value):
        raise AttributeError(f"{name} cannot be set")


HOSTILE = [
    NotFoundError("key"),
    NoTextError(),
    NoTextAtAllError(),
    NoEqualityError("odd"),
    NoNotesError("odd"),
    OddNotesError("odd"),
    NoNotesAttributeError("odd"),
    UnpicklableError(1, 2),
    SlottedError("odd"),
]

each_hostile = pytest.mark.parametrize("error", HOSTILE, ids=lambda error: type(error).__name__)


def raises(error):
    raise error


async def raises_async(error):
    await asyncio.sleep(0)
    raise error


def raises_late(error):
    yield 1
    raise error


def outcome(flow, start, **options):
    """Run in a thread of its own, so that a run that hangs fails this test alone; return what was raised."""
    run = flow.start(start, **options)
    assert run.wait(WATCHDOG / 4), "it hangs"
    return run.take_error()


@each_hostile
@pytest.mark.parametrize("body", [raises, raises_async, raises_late])
@pytest.mark.parametrize("executor", ["thread", "asyncio"], indirect=True)
def test_an_exception_that_makes_trouble_fails_its_task_alone(executor, recorder, body, error, caplog):
    """Whatever is odd about an exception, it is raised itself; hooks, log and report tell of it, and others run."""
    caplog.set_level(logging.DEBUG, logger="millstream")
    with Flow(executor, hooks=[recorder]) as flow:
        flow.add_task("bad", body, retries=1)
        flow.add_task("good", lambda: "fine")
        assert outcome(flow, "bad", inputs={"error": error}) is error
        report = flow.report()
        row = report.tasks["bad"]
        assert (report.status, row.status, row.attempt) == (Status.FAILED, Status.FAILED, 2)
        assert type(error).__name__ in row.error.type
        assert isinstance(row.error.message, str)
        assert type(error).__name__ in row.error.traceback
        assert "bad" in report.to_text()
        pickle.dumps(report.tasks["bad"].error)
        story = recorder.story()
        assert flow.start("good").result(WATCHDOG) == {"good": "fine"}
    assert story == [
        "run starts",
        "bad starts (1)",
        "bad fails (1, tried again)",
        "bad is tried again (2)",
        "bad starts (2)",
        "bad fails (2)",
        "run ends: FAILED",
    ]


@each_hostile
def test_an_exception_that_makes_trouble_on_the_inline_executor(error, recorder):
    """The same in the caller's own thread."""
    with Flow("inline", hooks=[recorder]) as flow:
        flow.add_task("bad", lambda: raises(error))
        with pytest.raises(type(error)) as caught:
            flow.run("bad")
        assert caught.value is error
        assert recorder.story()[-1] == "run ends: FAILED"


@each_hostile
@pytest.mark.parametrize("on_error", ["raise", "continue", "log"])
def test_exceptions_that_make_trouble_beside_others(error, on_error, caplog):
    """Several failures of calls at once are grouped, cancelled or logged, whatever is odd about them."""
    caplog.set_level(logging.ERROR, logger="millstream")
    with Flow("thread", on_error=on_error) as flow:
        session = flow.session()
        handles = [session.submit(raises, error), session.submit(raises, ValueError("other"))]
        after = session.submit(lambda value: value, handles[0])
        assert [handle.wait(WATCHDOG) for handle in [*handles, after]] == [True] * 3
        session.cancel()
        assert session.wait(WATCHDOG / 4), "it hangs"
        assert handles[0].exception(0) is error
        assert isinstance(after.exception(0), DependencyFailedError)
        assert session.status is Status.CANCELLED


@each_hostile
def test_an_exception_that_makes_trouble_in_a_list_that_is_pulled(error):
    """The same when an iterable of next tasks raises it."""

    def nexts():
        yield NextTask("good")
        raise error

    with Flow("thread") as flow:
        flow.add_task("bad", lambda: TaskOutput(None, nexts()))
        flow.add_task("good", lambda: "fine")
        assert outcome(flow, "bad") is error


@on_three
def test_a_base_exception_that_makes_trouble(executor, recorder):
    """A BaseException that cannot even be shown is the cause of the TaskFailedError that is raised."""

    class OddExit(SystemExit):
        def __repr__(self):
            raise RuntimeError("no text")

        __str__ = __repr__

    odd = OddExit()
    with Flow(executor, hooks=[recorder]) as flow:
        flow.add_task("bad", lambda: raises(odd))
        error = outcome(flow, "bad")
        assert isinstance(error, TaskFailedError)
        assert error.__cause__ is odd
        assert recorder.story()[-1] == "run ends: FAILED"
        assert flow.report().tasks["bad"].error.type.endswith("TaskFailedError")


def test_a_report_of_a_run_is_readable_whatever_failed():
    """The message of an exception that has none says so; its traceback still has the line that raised it."""
    with Flow("thread") as flow:
        flow.add_task("bad", lambda: raises(NoTextError()))
        assert isinstance(outcome(flow, "bad"), NoTextError)
        error = flow.report().to_dict()["tasks"]["bad"]["error"]
    assert error["message"] == "<a NoTextError that cannot be shown>"
    assert "in raises" in error["traceback"]
    json.dumps(error)


# ---- logging --------------------------------------------------------------------------------------


@on_three
def test_a_run_is_logged(executor, caplog):
    """Start, end, success, retry and skip are INFO, failures WARNING, starts of tasks DEBUG, each with its facts."""
    caplog.set_level(logging.DEBUG, logger="millstream")
    with Flow(executor, name="shop") as flow:
        service = Down(1, "yes")
        flow.add_task("check", service, retries=1, routes=["yes", "no"])
        flow.add_task("yes", lambda: None)
        flow.add_task("no", lambda: None)
        flow.run(run_id="run-7")
    records = [record for record in caplog.records if record.name == "millstream"]
    assert {record.run_id for record in records} == {"run-7"}
    found = [(record.levelname, record.task, record.attempt) for record in records]
    assert sorted(found, key=str) == sorted(
        [
            ("INFO", None, None),
            ("DEBUG", "check", 1),
            ("WARNING", "check", 1),
            ("INFO", "check", 2),
            ("DEBUG", "check", 2),
            ("INFO", "check", 2),
            ("DEBUG", "yes", 1),
            ("INFO", "yes", 1),
            ("INFO", "no", None),
            ("INFO", None, None),
        ],
        key=str,
    )
    texts = [record.getMessage() for record in records]
    assert "shop" in texts[0]
    assert "SUCCESS" in texts[-1]
    assert all(record.task is None or record.task in record.getMessage() for record in records)


def test_a_flow_logs_where_it_is_told():
    """logger= takes the place of the logger millstream, for everything that the flow says."""
    said = io.StringIO()
    logger = logging.getLogger("test_hooks.own")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler(said)
    handler.setFormatter(logging.Formatter("%(levelname)s %(run_id)s %(task)s %(message)s"))
    logger.addHandler(handler)
    try:
        with Flow("inline", logger=logger, hooks=[fn_hook(on_run_end=lambda event: {}["broken hook"])]) as flow:
            flow.add_task("work", lambda ctx: None)
            flow.run("work", run_id="run-7")
    finally:
        logger.removeHandler(handler)
    lines = said.getvalue().splitlines()
    assert lines[0].startswith("INFO run-7 None ")
    assert lines[1].startswith("INFO run-7 work ")
    assert "KeyError: 'broken hook'" in lines


def test_a_logger_adapter_keeps_the_facts_of_both():
    """A LoggerAdapter as logger= adds its own facts to those of run, task and attempt."""
    got = []

    class Keep(logging.Handler):
        def emit(self, record):
            got.append((record.app, record.run_id, record.task, record.attempt))

    logger = logging.getLogger("test_hooks.adapter")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    handler = Keep()
    logger.addHandler(handler)
    try:
        with Flow("inline", logger=logging.LoggerAdapter(logger, {"app": "shop"})) as flow:
            flow.add_task("work", lambda ctx: None)
            flow.run("work", run_id="run-7")
    finally:
        logger.removeHandler(handler)
    assert got[1:3] == [("shop", "run-7", "work", 1)] * 2


class Broken(logging.Handler):
    """A handler that fails for every record."""

    def __init__(self):
        super().__init__()
        self.calls = Log()

    def emit(self, record):
        self.calls.add(record)
        raise OSError("the disk is full")


@pytest.fixture
def broken_logger():
    """A logger that hears everything, and whose handler raises."""
    logger = logging.getLogger("test_hooks.broken")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    handler = Broken()
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


@pytest.mark.parametrize("executor", ["inline", "thread", "asyncio"], indirect=True)
@pytest.mark.parametrize("on_error", ["raise", "log"])
def test_a_log_handler_that_raises_harms_no_run(executor, on_error, broken_logger, recorder):
    """What a log handler raises ends no run and no worker: results come, failures are raised as ever."""

    def broken(event):
        raise ValueError("and the hook as well")

    hooks = [fn_hook(on_task_success=broken), recorder]
    with Flow(executor, logger=broken_logger, on_error=on_error, hooks=hooks) as flow:
        flow.add_task("go", lambda: [NextTask("work", {"n": n}) for n in (1, 2)] + [NextTask("choose")])
        flow.add_task("work", lambda n: n)
        flow.add_task("choose", lambda: "a", routes=["a", "b"])
        flow.add_task("a", lambda: None)
        flow.add_task("b", lambda: None)
        flow.add_task("bad", lambda: {}["nothing"], retries=1)
        for _ in range(2):
            assert flow.start("go").result(WATCHDOG) == {"work": 1, "a": None}
        error = outcome(flow, "bad")
        assert (error is None) == (on_error == "log")
        recorder.ended(3)
    assert len(broken_logger.handlers[0].calls) > 10


def test_the_logger_of_a_task_carries_its_facts(caplog):
    """Records of current_task().logger have the run, the task run and the attempt."""
    caplog.set_level(logging.INFO, logger="millstream")
    with Flow("inline") as flow:
        flow.add_task("go", lambda: [NextTask("work", spawn_another=True) for _ in range(2)])

        @flow.task(retries=1)
        def work():
            current_task().logger.info("hello")
            if current_task().attempt == 1 and current_task().id == "work#2":
                raise OSError

        flow.run("go", run_id="run-7")
    hellos = [(r.run_id, r.task, r.attempt) for r in caplog.records if r.getMessage() == "hello"]
    assert sorted(hellos) == [("run-7", "work", 1), ("run-7", "work#2", 1), ("run-7", "work#2", 2)]


def test_nothing_is_printed_unasked():
    """Without any set-up of logging, a run with failures, retries and a broken hook prints nothing."""
    assert (
        run_snippet("""
        from millstream import Flow, fn_hook

        flow = Flow("inline", on_error="log", hooks=[fn_hook(on_task_start=lambda event: {}["broken hook"])])
        flow.add_task("bad", lambda: {}["nothing"], retries=1)
        flow.run("bad")
        print(flow.report().status)
    """)
        == "FAILED\n"
    )


# ---- traces ---------------------------------------------------------------------------------------


def test_a_trace_has_every_attempt(flow):
    """With trace=True the report has each attempt of each task run, with its times, worker and end."""
    flow.add_task("go", lambda: [NextTask("work", spawn_another=True) for _ in range(3)])

    @flow.task(retries=1)
    def work():
        if current_task().attempt == 1 and current_task().id == "work#2":
            raise OSError

    flow.run("go", trace=True)
    report = flow.report()
    found = [(attempt.task, attempt.id, attempt.attempt, attempt.status) for attempt in report.trace]
    assert sorted(found) == [
        ("go", "go", 1, Status.SUCCESS),
        ("work", "work", 1, Status.SUCCESS),
        ("work", "work#2", 1, Status.FAILED),
        ("work", "work#2", 2, Status.SUCCESS),
        ("work", "work#3", 1, Status.SUCCESS),
    ]
    for attempt in report.trace:
        assert report.created_at <= attempt.started_at <= attempt.finished_at <= report.finished_at
        assert attempt.worker
    assert flow.run("go") is not None
    assert flow.report().trace is None


@on_three
def test_a_trace_names_workers(executor):
    """The worker of an attempt is the thread that called it; coroutines on one loop are told apart."""
    names = {}
    with Flow(executor) as flow:

        @flow.task
        def plain():
            names["plain"] = threading.current_thread().name

        @flow.task
        async def coroutine():
            names["coroutine"] = threading.current_thread().name
            await asyncio.sleep(0)

        flow.run(["plain", "coroutine"], trace=True)
        workers = {attempt.task: attempt.worker for attempt in flow.report().trace}
    assert workers["plain"].startswith(names["plain"])
    assert workers["coroutine"].startswith(names["coroutine"])


@pytest.mark.parametrize("how", ["timeout", "cancel", "abandoned"])
def test_a_trace_tells_how_attempts_ended(how):
    """An attempt that was given up is ABANDONED in the trace, one that obeyed a cancel CANCELLED."""
    clock, release, begun = VirtualClock(), threading.Event(), threading.Event()

    def stuck():
        begun.set()
        release.wait(WATCHDOG)

    async def obeys():
        begun.set()
        await asyncio.Event().wait()

    with set_clock(Flow("thread"), clock) as flow:
        body = obeys if how == "cancel" else stuck
        flow.add_task("work", body, timeout=2.0 if how == "timeout" else None)
        run = flow.start("work", trace=True)
        wait(begun)
        if how == "timeout":
            clock.wait_for(2.0)
            clock.advance(2.0)
        else:
            run.cancel()
        if how == "abandoned":
            clock.wait_for(0.5)
            clock.advance(0.5)
        assert run.wait(WATCHDOG)
        release.set()
        report = run.report()
    status = Status.CANCELLED if how == "cancel" else Status.ABANDONED
    assert [attempt.status for attempt in report.trace] == [status]
    assert report.tasks["work"].status is status


@on_three
def test_a_trace_of_a_session_and_of_a_map(executor):
    """Sessions have traces too, and the items of a map are attempts of their own."""
    with Flow(executor) as flow:
        with flow.session(trace=True) as session:
            session.submit(task("square")(lambda n: n * n), 3)
        assert [(a.task, a.status) for a in session.report().trace] == [("square", Status.SUCCESS)]
        flow.add_task("each", lambda item: item, for_each="$inputs.rows")
        flow.run("each", inputs={"rows": [1, 2]}, trace=True)
        ids = [attempt.id for attempt in flow.report().trace]
    assert {"each[0]", "each[1]"} <= set(ids)
    assert len(ids) == len(set(ids))


@on_three
def test_the_chrome_trace_of_a_run(executor, tmp_path):
    """to_chrome_trace gives JSON with one bar for each attempt, in microseconds, and a row for each worker."""
    clock = VirtualClock()
    with set_clock(Flow(executor, name="shop"), clock) as flow:

        @flow.task(retries=1)
        def work():
            clock.advance(2.0)
            if current_task().attempt == 1:
                raise OSError

        flow.run("work", trace=True)
        report = flow.report()
    path = tmp_path / "trace.json"
    text = report.to_chrome_trace(path)
    assert path.read_text() == text
    events = json.loads(text)["traceEvents"]
    bars = [event for event in events if event["ph"] == "X"]
    assert [(bar["name"], bar["args"]["attempt"], bar["args"]["status"]) for bar in bars] == [
        ("work", 1, "FAILED"),
        ("work", 2, "SUCCESS"),
    ]
    assert [bar["ts"] for bar in bars] == pytest.approx([0, 2e6], abs=10)
    assert [bar["dur"] for bar in bars] == pytest.approx([2e6, 2e6], abs=10)
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} >= {"shop"}


@pytest.mark.parametrize("value", [1, "yes", None, 0])
def test_trace_is_true_or_false(value):
    """Anything else is refused by name."""
    with Flow("inline") as flow:
        flow.add_task("work", lambda ctx: None)
        with pytest.raises(TypeError, match="trace"):
            flow.run("work", trace=value)


def test_a_run_without_a_trace_says_how_to_get_one():
    """to_chrome_trace of a run that kept none names the option."""
    with Flow("inline") as flow:
        flow.add_task("work", lambda ctx: None)
        flow.run("work")
        with pytest.raises(ValueError, match="trace=True"):
            flow.report().to_chrome_trace()


def test_events_under_load_are_complete_and_in_order(recorder):
    """Two thousand task runs on four workers, switched as often as can be: every start before its success."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadExecutor(4) as executor, Flow(executor, hooks=[recorder]) as flow:
            flow.add_task("go", lambda: [NextTask("work", spawn_another=True) for _ in range(2000)])
            flow.add_task("work", lambda: None)
            flow.run("go")
            events = recorder.ended()
    finally:
        sys.setswitchinterval(interval)
    started, ended = set(), set()
    for event in events[1:-1]:
        if type(event) is TaskStartEvent:
            started.add(event.id)
        else:
            assert event.id in started
            ended.add(event.id)
    assert len(ended) == 2001
    assert (told(events[0]), told(events[-1])) == ("run starts", "run ends: SUCCESS")


# ---- progress -------------------------------------------------------------------------------------


def works(parts):
    """A task that says how far it has got."""
    for part in range(parts):
        current_task().progress(part + 1, parts)
    current_task().progress(0.5)


async def works_async(parts):
    """The same as a coroutine."""
    works(parts)


@pytest.mark.parametrize("executor", ["inline", "thread", "asyncio", "process"])
def test_a_hook_is_told_how_far_a_task_has_got(executor):
    """Each call of ``progress`` is an event, in order, from threads, loops and processes."""
    said = []
    with Flow(executor, hooks=[fn_hook(on_task_progress=lambda event: said.append(told(event)))]) as flow:
        flow.add_task("work", works_async if executor == "asyncio" else works)
        flow.run("work", {"parts": 2})
    assert said == ["work has done 1 of 2 (1)", "work has done 2 of 2 (1)", "work has done 0.5 of None (1)"]


def test_progress_outside_of_a_run_tells_nobody():
    """A task that says how far it has got can be called as a plain function."""
    works(3)


@pytest.mark.parametrize(
    ("amounts", "error"), [(("a",), TypeError), ((1, "b"), TypeError), ((True,), TypeError), ((-1,), ValueError),
                           ((1, -2), ValueError), ((float("nan"),), ValueError), ((None,), TypeError)]
)  # fmt: skip
def test_progress_takes_numbers(amounts, error):
    """What is no number from 0 on is refused."""
    with pytest.raises(error, match=r"progress\(done, total\) takes numbers"):
        current_task().progress(*amounts)
