"""Policies at work: retries and what they wait, failures of a run, max_parallel, named limits, priorities."""

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections import Counter
from itertools import count, pairwise

import pytest

from millstream import (
    Context,
    DeadlockError,
    DependencyFailedError,
    Flow,
    NextTask,
    Rate,
    Retry,
    RunCancelledError,
    RunTimeoutError,
    Status,
    TaskCancelledError,
    TaskFailedError,
    TaskTimeoutError,
    ThreadExecutor,
    current_task,
    task,
)
from millstream.engine.clock import Clock
from tests.conftest import (
    ONE_WORKER,
    WATCHDOG,
    JumpingClock,
    Log,
    assert_gone,
    engine_threads,
    on_one_worker,
    on_several_workers,
    set_clock,
)

on_three = pytest.mark.parametrize("executor", ["inline", "thread", "asyncio"], indirect=True)
on_one_thread = pytest.mark.parametrize("executor", [kind for kind in ONE_WORKER if kind != "inline"], indirect=True)
on_two = pytest.mark.parametrize("executor", ["thread", "asyncio"], indirect=True)


@contextlib.contextmanager
def opened_flow(clock, executor="thread", **options):
    """Give a flow that goes by the clock of the test."""
    with Flow(executor, **options) as flow:
        yield set_clock(flow, clock)


class Flaky:
    """A service that is down for its first calls."""

    def __init__(self, failures, error=OSError, now=None):
        self.left, self.error, self.now = failures, error, now
        self.calls = 0
        self.at = []  #: when it was called

    def __call__(self):
        self.calls += 1
        if self.now is not None:
            self.at.append(self.now())
        if self.left:
            self.left -= 1
            raise self.error(f"call {self.calls} failed")
        return f"answered call {self.calls}"


class Peak:
    """Counts who is inside at once."""

    def __init__(self):
        self._lock = threading.Lock()
        self.now = self.most = self.entered = 0

    def __enter__(self):
        with self._lock:
            self.entered += 1
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *error):
        with self._lock:
            self.now -= 1


def wait(event):
    assert event.wait(WATCHDOG)


# ---- retries: how often ---------------------------------------------------------------------------


def test_a_task_is_tried_again_until_it_succeeds(flow):
    """A task with retries is called until it succeeds; the report says how often, and has no error."""
    service, seen = Flaky(2), []

    @flow.task(retries=3)
    def fetch():
        seen.append((current_task().id, current_task().attempt))
        return service()

    assert flow.run("fetch") == {"fetch": "answered call 3"}
    assert seen == [("fetch", 1), ("fetch", 2), ("fetch", 3)]
    row = flow.report().tasks["fetch"]
    assert (row.status, row.attempt, row.runs, row.error) == (Status.SUCCESS, 3, 1, None)


def fetch_plain(service):
    return service()


async def fetch_async(service):
    await asyncio.sleep(0)
    return service()


def fetch_generator(service):
    yield "asking"
    return service()


async def fetch_async_generator(service):
    yield "asking"
    yield service()


@on_three
@pytest.mark.parametrize(
    ("body", "chunks"),
    [
        (fetch_plain, ["answered call 3"]),
        (fetch_async, ["answered call 3"]),
        (fetch_generator, ["asking", "asking", "asking", "answered call 3"]),
        (fetch_async_generator, ["asking", "asking", "asking", "answered call 3", None]),
    ],
    ids=["function", "coroutine", "generator", "asynchronous generator"],
)
def test_every_kind_of_task_is_tried_again(flow, body, chunks):
    """Functions, coroutines and generators are tried again; what a failed attempt sent stays sent."""
    flow.add_task("fetch", body, max_attempts=3)
    streamed = list(flow.stream("fetch", inputs={"service": Flaky(2)}))
    assert [chunk.value for chunk in streamed] == chunks
    assert {chunk.task_id for chunk in streamed} == {"fetch"}


@on_three
def test_the_error_of_the_last_attempt_is_raised(flow):
    """When the attempts run out, the last error is raised itself, with a note of the task, run and attempt."""
    service = Flaky(9)
    flow.add_task("fetch", service, retries=2)
    with pytest.raises(OSError, match="call 3 failed") as caught:
        flow.run("fetch", run_id="night-7")
    assert service.calls == 3
    (note,) = caught.value.__notes__
    assert "fetch" in note
    assert "night-7" in note
    assert "attempt 3" in note
    row = flow.report().tasks["fetch"]
    assert (row.status, row.attempt, row.runs, row.error.message) == (Status.FAILED, 3, 1, "call 3 failed")
    assert "attempt 3" in row.error.traceback


@on_three
@pytest.mark.parametrize("options", [{}, {"retries": 0}, {"max_attempts": 1}, {"retry": Retry(1)}], ids=str)
def test_a_task_is_not_tried_again_unasked(flow, options):
    """Without retries there is one attempt."""
    service = Flaky(1)
    flow.add_task("fetch", service, **options)
    with pytest.raises(OSError, match="call 1 failed"):
        flow.run("fetch")
    assert service.calls == 1


@pytest.mark.parametrize(
    ("raised", "on", "calls"),
    [
        (OSError, OSError, 2),
        (ConnectionError, OSError, 2),
        (ConnectionError, (KeyError, OSError), 2),
        (KeyError, OSError, 1),
        (OSError, ConnectionError, 1),
        (TimeoutError, Exception, 2),
        (TimeoutError, TimeoutError, 2),
        (StopIteration, Exception, 2),
        (ExceptionGroup, Exception, 2),
        (SystemExit, Exception, 1),
        (KeyboardInterrupt, Exception, 1),
        (SystemExit, SystemExit, 2),
        (SystemExit, BaseException, 2),
        (asyncio.CancelledError, Exception, 1),
    ],
    ids=str,
)
def test_only_the_errors_that_are_named_are_tried_again(raised, on, calls):
    """retry_on names the errors, with their subclasses, after which a task is tried again."""

    def error(text):
        return raised(text, [ValueError()]) if raised is ExceptionGroup else raised(text)

    service = Flaky(1, error)
    with Flow("inline") as flow:
        flow.add_task("fetch", service, retries=4, retry_on=on)
        if calls == 2:
            assert flow.run("fetch") == {"fetch": "answered call 2"}
        else:
            with pytest.raises(raised if issubclass(raised, Exception) else TaskFailedError):
                flow.run("fetch")
    assert service.calls == calls


@on_three
def test_a_base_exception_that_is_tried_again_in_vain_is_the_cause(flow):
    """A SystemExit that was tried again is raised in the end as TaskFailedError from it, once."""
    service = Flaky(9, SystemExit)
    flow.add_task("fetch", service, retries=1, retry_on=SystemExit)
    with pytest.raises(TaskFailedError) as caught:
        flow.run("fetch")
    assert repr(caught.value.__cause__) == "SystemExit('call 2 failed')"
    assert service.calls == 2


@on_three
def test_who_depends_on_a_task_waits_for_its_retries(flow):
    """Dependants and joins start after the attempt that succeeded, once, with its output."""
    service, seen = Flaky(2), []
    flow.add_task("load", service, retries=2)
    flow.add_task("store", lambda load: seen.append(load), depends_on=["load"])
    flow.run(targets=["store"])
    assert seen == ["answered call 3"]

    seen.clear()
    siblings = [NextTask("call"), NextTask("sum", join=True), NextTask("other")]
    flow.add_task("go", lambda: siblings)
    flow.add_task("call", Flaky(2), retries=2)
    flow.add_task("other", lambda: "at once")
    flow.add_task("sum", lambda upstream: seen.append(list(upstream)))
    flow.run("go")
    assert seen == [["answered call 3", "at once"]]


@on_three
def test_items_of_a_map_are_tried_again_each_for_itself(flow):
    """Each item of a map has attempts of its own, and the map one output."""
    services = [Flaky(0), Flaky(2), Flaky(1)]
    seen = Counter()

    @flow.task(for_each="$inputs.services", retries=2)
    def fetch(item, index):
        seen[index] += 1
        return item()

    assert flow.run("fetch", inputs={"services": services}) == {
        "fetch": ["answered call 1", "answered call 3", "answered call 2"]
    }
    assert seen == {0: 1, 1: 3, 2: 2}


def test_items_of_a_failed_map_are_not_tried_again():
    """When an item has failed for good, the map has: others that fail later are not tried again."""
    both, failed, attempts = threading.Barrier(2), threading.Event(), Log()
    with Flow("thread", max_workers=2, on_error="continue") as flow:
        flow.add_task("after", failed.set, depends_on=["fetch"], on_dep_failure="run-anyway")

        @flow.task(for_each="$inputs.rows", retries=3, retry_on=OSError)
        def fetch(index):
            attempts.add(index)
            if len(attempts) <= 2:
                both.wait(WATCHDOG)
            if index == 0:
                raise ValueError("for good")
            wait(failed)
            raise OSError("once more?")

        flow.start(inputs={"rows": ["a", "b"]}).result(WATCHDOG)
        row = flow.report().tasks["fetch"]
    assert sorted(attempts) == [0, 1]
    assert (row.status, row.error.message) == (Status.FAILED, "for good")
    assert None not in (row.started_at, row.finished_at)


@on_three
def test_submitted_calls_are_tried_again(flow):
    """A submitted call has the retries of its task; its handle ends with the last attempt."""
    service = Flaky(2)
    fetch = task("fetch", retries=2)(lambda: service())
    with flow.session() as session:
        assert session.submit(fetch).result(WATCHDOG) == "answered call 3"
        service.left = 9
        with pytest.raises(OSError, match="call 6 failed"):
            session.submit(fetch).result(WATCHDOG)


def test_a_key_is_the_same_in_every_attempt():
    """current_task().key is an idempotency key: each attempt of a task run has the same one."""
    keys = []
    with Flow("inline") as flow:

        @flow.task(retries=2)
        def pay(times):
            keys.append(current_task().key)
            if len(keys) < times:
                raise OSError

        flow.run("pay", inputs={"times": 3})
    assert len(keys) == 3
    assert len(set(keys)) == 1


# ---- retries: how long they wait ------------------------------------------------------------------


@on_three
@pytest.mark.parametrize(
    ("policy", "waits"),
    [
        ({"retries": 3}, [0, 0, 0]),
        ({"retries": 3, "backoff": "linear"}, [1, 2, 3]),
        ({"retries": 3, "backoff": "exponential"}, [1, 2, 4]),
        ({"retries": 3, "backoff_base": 0.5}, [0.5, 1, 2]),
        ({"max_attempts": 4, "backoff": "linear", "backoff_base": 3, "backoff_max": 7}, [3, 6, 7]),
        ({"retry": Retry(4)}, [1, 2, 4]),
        ({"retry": Retry(8)}, [1, 2, 4, 8, 16, 30, 30]),
        ({"retry": Retry(4, "none", base=9)}, [0, 0, 0]),
        ({"retry": Retry(4, base=0)}, [0, 0, 0]),
    ],
    ids=str,
)
def test_retries_wait_their_back_off(executor, policy, waits):
    """The waits between the attempts of a run are those of the policy's formula, to the second."""
    clock = JumpingClock()
    with opened_flow(clock, executor) as flow:
        service = Flaky(len(waits), now=clock.now)
        flow.add_task("fetch", service, **policy)
        flow.run("fetch")
    assert [after - before for before, after in pairwise(service.at)] == waits


def test_jitter_draws_from_the_random_module():
    """With jitter the waits are drawn as the formula says, so that a seed repeats them."""
    clock, policy = JumpingClock(), Retry(6, base=64.0, max_delay=10_000.0, jitter=0.5)
    service = Flaky(5, now=clock.now)
    with opened_flow(clock, "inline") as flow:
        flow.add_task("fetch", service, retry=policy)
        random.seed(7)
        flow.run("fetch")
    draw = random.Random(7).random
    waits = [after - before for before, after in pairwise(service.at)]
    assert waits == pytest.approx([policy.delay(failed, draw) for failed in range(1, 6)])
    assert all(64 * 2**n * 0.5 <= wait <= 64 * 2**n * 1.5 for n, wait in enumerate(waits))


def test_tasks_that_failed_together_come_back_apart_with_jitter(clock):
    """Jitter spreads the waits of tasks that failed at the same time."""
    with opened_flow(clock) as flow:
        flow.add_task("go", lambda: [NextTask("fetch", spawn_another=True) for _ in range(20)])
        flow.add_task("fetch", Flaky(20), retry=Retry(2, base=8.0, jitter=1.0))
        run = flow.start("go")
        clock.wait_for()
        while len(clock.waiting) < 20:
            assert not run.wait(0.001)
        due = clock.waiting
        assert len(set(due)) > 10
        assert all(0 <= wait <= 16 for wait in due)
        clock.advance(16)
        run.result(WATCHDOG)


@on_one_thread
def test_a_task_that_waits_for_its_next_attempt_holds_no_worker(executor, clock):
    """While tasks wait for their next attempts, the only worker is there for others."""
    service = Flaky(50)
    with opened_flow(clock, executor) as flow:
        flow.add_task("go", lambda: [NextTask("fetch", spawn_another=True) for _ in range(50)])
        flow.add_task("fetch", service, retry=Retry(2, base=8.0))
        flow.add_task("probe", lambda: "fine")
        run = flow.start("go")
        clock.wait_for(*[8.0] * 50)
        assert flow.run("probe", timeout=1000.0) == {"probe": "fine"}
        clock.advance(7.5)
        assert flow.run("probe", timeout=1000.0) == {"probe": "fine"}
        assert service.calls == 50
        clock.advance(0.5)
        assert len(run.result(WATCHDOG)) == 50
    assert service.calls == 100


def test_on_the_inline_executor_others_run_while_one_waits():
    """Inline, too, what is ready runs before the thread sleeps for a retry."""
    clock, order = JumpingClock(), []
    service = Flaky(1)

    def fetch():
        order.append("fetch")
        return service()

    with opened_flow(clock, "inline") as flow:
        flow.add_task("go", lambda: [NextTask("fetch"), NextTask("a"), NextTask("b")])
        flow.add_task("fetch", fetch, retry=Retry(2, base=8.0))
        flow.add_task("a", lambda: order.append("a"))
        flow.add_task("b", lambda: order.append("b"))
        flow.run("go")
    assert sorted(order) == ["a", "b", "fetch", "fetch"]
    assert order[0] == "fetch"


@on_two
@pytest.mark.parametrize("where", ["flow", "task"])
def test_a_task_that_waits_for_its_next_attempt_does_not_count_for_max_parallel(executor, clock, where):
    """With one task run at a time allowed, another one runs while the first waits for its retry."""
    limit = {"max_parallel": 1}
    with opened_flow(clock, executor, **(limit if where == "flow" else {})) as flow:
        services = {"bad": Flaky(1), "good": Flaky(0)}
        flow.add_task("go", lambda: [NextTask("fetch", {"name": n}, spawn_another=True) for n in services])
        done = Log()

        @flow.task(retry=Retry(2, base=8.0), **(limit if where == "task" else {}))
        def fetch(name):
            services[name]()
            done.add(name)

        run = flow.start("go")
        clock.wait_for(8.0)
        done.wait_for(1)
        assert done == ["good"]
        clock.advance(8.0)
        run.result(WATCHDOG)
    assert done == ["good", "bad"]


class ShiftedClock(Clock):
    """The real clock with its real thread, which a test can set forward."""

    def __init__(self):
        super().__init__()
        self.ahead = 0.0
        self.asked = Log()

    def now(self):
        return time.monotonic() + self.ahead

    def call_at(self, when, call):
        timer = super().call_at(when, call)
        self.asked.add(when)
        return timer

    def shift(self, seconds):
        with self._changed:
            self.ahead += seconds
            self._changed.notify()


def cpu_of(wait):
    """Return the seconds of CPU that this process uses during a wait."""
    before = time.process_time()
    wait()
    return time.process_time() - before


def test_ten_thousand_tasks_that_wait_for_a_retry_hold_no_thread_and_no_cpu(caplog):
    """10,000 task runs that wait at the same time hold the clock's thread alone, and use no CPU."""
    caplog.set_level(logging.ERROR, logger="millstream")
    clock, attempts = ShiftedClock(), count()
    before = engine_threads()
    with ThreadExecutor(2) as executor, Flow(executor) as flow:
        set_clock(flow, clock)

        @flow.task("fetch", retry=Retry(2, base=3600.0, max_delay=3600.0))
        def fetch():
            if next(attempts) < 10_000:
                raise OSError

        flow.add_task("go", lambda: [NextTask("fetch", spawn_another=True)] * 10_000)
        run = flow.start("go")
        clock.asked.wait_for(10_000)
        assert any(cpu_of(lambda: run.wait(0.05)) < 0.005 for _ in range(20))  # once the last attempt is wound up
        assert len(engine_threads() - before) <= 3  # two workers, which sleep, and the clock
        assert run.status is Status.RUNNING
        clock.shift(3600.0)
        assert len(run.result(WATCHDOG)) == 10_000
    assert next(attempts) == 20_000
    assert_gone(engine_threads() - before)


@on_two
@pytest.mark.parametrize("how", ["cancel", "failure", "timeout"])
def test_a_run_that_ends_waits_for_no_retry(executor, clock, how):
    """A cancel, another failure or the run's timeout ends a run whose task waits for its next attempt."""
    service, stop = Flaky(9), threading.Event()
    with opened_flow(clock, executor) as flow:
        flow.add_task("go", lambda: [NextTask("fetch"), NextTask("other")])
        flow.add_task("fetch", service, retry=Retry(9, base=30.0))

        @flow.task
        def other():
            if how == "failure":
                wait(stop)
                raise KeyError("other")

        run = flow.start("go", timeout=16.0 if how == "timeout" else None)
        clock.wait_for(30.0)
        assert run.status is Status.RUNNING
        if how == "cancel":
            run.cancel()
        elif how == "failure":
            stop.set()
        else:
            clock.advance(16.0)
        kind = {"cancel": RunCancelledError, "failure": KeyError, "timeout": RunTimeoutError}[how]
        with pytest.raises(kind):
            run.result(WATCHDOG)
        assert run.report().tasks["fetch"].status is Status.CANCELLED
        clock.advance(100.0)
        assert flow.run("other") == {"other": None} if how != "failure" else True
        assert service.calls == 1


def test_a_run_that_was_cancelled_leaves_no_timer_of_its_retries(clock):
    """What a finished run leaves behind has no timer in it: a retry that was waited for is called off."""
    with opened_flow(clock) as flow:
        flow.add_task("fetch", Flaky(9), retry=Retry(9, base=30.0))
        run = flow.start("fetch")
        clock.wait_for(30.0)
        run.cancel()
        assert run.wait(WATCHDOG)
        assert clock.waiting == []


def test_the_clocks_thread_ends_with_the_run_whose_retries_it_had_to_time():
    """After the end of a run no thread of the engine is left for a retry that will not come."""
    before = engine_threads()
    clock = ShiftedClock()
    with Flow("inline") as flow:
        set_clock(flow, clock)
        flow.add_task("fetch", Flaky(9), retry=Retry(2, base=3600.0, max_delay=3600.0))
        runs = []
        thread = threading.Thread(target=lambda: runs.append(flow.start("fetch", run_id="night-7")))
        thread.start()
        clock.asked.wait_for(1)
        flow.cancel_all()
        thread.join(WATCHDOG)
        assert runs[0].status is Status.CANCELLED
        assert_gone(engine_threads() - before)


def test_a_call_that_is_cancelled_while_it_waits_for_its_retry(clock):
    """handle.cancel() ends a call that waits for its next attempt at once, and no attempt follows."""
    service = Flaky(9)
    with opened_flow(clock) as flow, flow.session() as session:
        handle = session.submit(task("fetch", retry=Retry(9, base=8.0))(lambda: service()))
        clock.wait_for(8.0)
        assert not handle.done()
        assert handle.cancel()
        assert handle.cancelled()
        clock.advance(100.0)
        assert session.submit(lambda: "fine").result(WATCHDOG) == "fine"
        assert service.calls == 1
        assert session.report().tasks["fetch"].status is Status.CANCELLED


def test_a_report_shows_a_task_that_waits_for_its_retry(clock):
    """While a task waits for its next attempt it is under way, and its row counts the attempts so far."""
    with opened_flow(clock) as flow:
        flow.add_task("fetch", Flaky(1), retry=Retry(2, base=8.0))
        run = flow.start("fetch")
        clock.wait_for(8.0)
        row = run.report().tasks["fetch"]
        assert (row.status, row.attempt, row.runs, row.finished_at is None) == (Status.RUNNING, 1, 0, True)
        clock.advance(8.0)
        run.result(WATCHDOG)


# ---- retries and timeouts -------------------------------------------------------------------------


def test_a_timeout_is_not_tried_again_unless_it_is_named(clock):
    """TaskTimeoutError is final for retry_on=Exception and TimeoutError; its notes name task, run and attempt."""
    release, calls = threading.Event(), Log()
    for on in (Exception, TimeoutError, OSError):
        with opened_flow(clock) as flow:

            @flow.task(retries=3, retry_on=on, timeout=2.0)
            def fetch():
                calls.add(current_task().attempt)
                release.wait(WATCHDOG)

            run = flow.start("fetch", run_id="night-7")
            clock.wait_for(2.0)
            clock.advance(2.0)
            with pytest.raises(TaskTimeoutError, match=r"fetch took longer than its timeout of 2 s") as caught:
                run.result(WATCHDOG)
            said = "\n".join(caught.value.__notes__)
            assert all(word in said for word in ("fetch", "night-7", "attempt 1"))
            assert run.report().tasks["fetch"].status is Status.ABANDONED
            set_clock(flow, clock := type(clock)())
    release.set()
    assert calls == [1, 1, 1]


def test_attempts_of_a_task_run_never_overlap(clock):
    """An attempt that took too long and goes on is tried again only after its code has returned."""
    release, begun, inside = threading.Event(), Log(), Peak()
    with opened_flow(clock, ThreadExecutor(2)) as flow:

        @flow.task(retries=1, retry_on=TaskTimeoutError, timeout=2.0)
        def fetch():
            with inside:
                begun.add(current_task().attempt)
                if current_task().attempt == 1:
                    wait(release)
                    assert current_task().cancelled
                    return "late"
                return "in time"

        flow.add_task("probe", lambda: "fine")
        run = flow.start("fetch")
        clock.wait_for(2.0)
        clock.advance(2.0)
        for _ in range(3):
            assert flow.run("probe") == {"probe": "fine"}
        clock.advance(60.0)
        assert begun == [1]
        release.set()
        begun.wait_for(2)
        assert run.result(WATCHDOG) == {"fetch": "in time"}
    assert begun == [1, 2]
    assert inside.most == 1


def test_a_late_attempt_waits_for_its_back_off_too(clock):
    """The code of a timed out attempt returns early: the next one still waits its back-off, from the timeout on."""
    release, begun = threading.Event(), Log()
    with opened_flow(clock) as flow:

        @flow.task(retry=Retry(2, base=8.0, on=TaskTimeoutError), timeout=2.0)
        def fetch():
            begun.add(clock.now())
            if len(begun) == 1:
                wait(release)
            return "in time"

        run = flow.start("fetch")
        clock.wait_for(2.0)
        clock.advance(2.0)
        release.set()
        clock.wait_for(8.0)
        clock.advance(8.0)
        assert run.result(WATCHDOG) == {"fetch": "in time"}
    assert begun[1] - begun[0] == 10.0


@on_two
def test_a_coroutine_that_timed_out_is_cancelled_and_tried_again(executor, clock):
    """A coroutine past its timeout is cancelled, and its next attempt begins after it has ended."""
    story = []
    with opened_flow(clock, executor) as flow:

        @flow.task(retries=1, retry_on=(OSError, TaskTimeoutError), timeout=2.0)
        async def fetch():
            attempt = current_task().attempt
            story.append(f"begin {attempt}")
            try:
                if attempt == 1:
                    await asyncio.Event().wait()
                return "in time"
            finally:
                story.append(f"end {attempt}")

        run = flow.start("fetch")
        clock.wait_for(2.0)
        clock.advance(2.0)
        assert run.result(WATCHDOG) == {"fetch": "in time"}
    assert story == ["begin 1", "end 1", "begin 2", "end 2"]


@on_two
def test_each_attempt_has_the_whole_timeout(executor, clock):
    """The timeout is one of attempts: the second one has all of it, whatever the first one and the wait took."""
    remaining, service = [], Flaky(1)
    with opened_flow(clock, executor) as flow:

        @flow.task(retry=Retry(2, base=8.0), timeout=4.0)
        def fetch():
            clock.advance(1.0)
            remaining.append(current_task().time_remaining())
            return service()

        run = flow.start("fetch")
        clock.wait_for(8.0)
        clock.advance(8.0)
        run.result(WATCHDOG)
        assert clock.waiting == []
    assert remaining == [3.0, 3.0]


def test_a_tasks_own_timeout_error_is_tried_again_like_any_other():
    """A TimeoutError that the task itself raised is an error like any other, also beside a timeout."""
    service = Flaky(2, TimeoutError)
    with Flow("inline") as flow:
        flow.add_task("fetch", service, retries=2, timeout=60.0)
        assert flow.run("fetch") == {"fetch": "answered call 3"}
        service.left = 9
        with pytest.raises(TimeoutError, match="call 6 failed") as caught:
            flow.run("fetch")
    assert type(caught.value) is TimeoutError


def test_the_deadline_of_the_run_bounds_every_attempt(clock):
    """time_remaining is what the run's deadline leaves, when that comes before the attempt's timeout."""
    remaining, service = [], Flaky(1)
    with opened_flow(clock) as flow:

        @flow.task(retry=Retry(2, base=8.0), timeout=4.0)
        def fetch():
            remaining.append(current_task().time_remaining())
            return service()

        run = flow.start("fetch", timeout=10.0)
        clock.wait_for(8.0)
        clock.advance(8.0)
        run.result(WATCHDOG)
    assert remaining == [4.0, 2.0]


# ---- what a failure means for the run -------------------------------------------------------------


def shop(flow):
    """Register an order of which one branch fails: fetch -> (price -> bill, pack -> ship)."""
    flow.add_task("fetch", lambda: "order")
    flow.add_task("price", lambda fetch: {}["unknown"], depends_on=["fetch"])
    flow.add_task("bill", lambda price: "bill", depends_on=["price"])
    flow.add_task("pack", lambda fetch: "parcel", depends_on=["fetch"])
    flow.add_task("ship", lambda pack: f"{pack} shipped", depends_on=["pack"])


def statuses(report):
    return {name: str(row.status) for name, row in report.tasks.items()}


SHOP = {"fetch": "SUCCESS", "price": "FAILED", "bill": "FAILED", "pack": "SUCCESS", "ship": "SUCCESS"}


def test_on_error_raise_starts_nothing_after_the_first_failure():
    """With "raise", the default, the failure is raised, and what had not begun is cancelled."""
    with Flow("inline") as flow:
        shop(flow)
        with pytest.raises(KeyError, match="unknown"):
            flow.run()
        found = statuses(flow.report())
        assert flow.report().status is Status.FAILED
    assert found["fetch"] == "SUCCESS"
    assert found["price"] == "FAILED"
    assert found["bill"] == "CANCELLED"
    assert found["ship"] == "CANCELLED"


@on_three
@pytest.mark.parametrize("on_error", ["continue", "log"])
def test_on_error_continue_goes_on_with_what_does_not_depend_on_the_failure(executor, on_error, caplog):
    """With "continue" and "log" the results of what succeeded come back, and the report tells the rest."""
    caplog.set_level(logging.ERROR, logger="millstream")
    with Flow(executor, on_error=on_error) as flow:
        shop(flow)
        assert flow.run() == {"ship": "parcel shipped"}
        report = flow.report()
        assert report.status is Status.FAILED
        assert statuses(report) == SHOP
        assert report.tasks["price"].error.type == "KeyError"
        assert report.tasks["bill"].error.type.endswith("DependencyFailedError")
        assert "price" in report.tasks["bill"].error.message
        run = flow.start()
        assert (run.result(WATCHDOG), run.status) == ({"ship": "parcel shipped"}, Status.FAILED)
    told = [record for record in caplog.records if record.levelno == logging.ERROR]
    if on_error == "log":
        assert [record.task for record in told] == ["price", "price"]
        assert told[0].run_id == report.run_id
        assert told[0].name == "millstream"
        assert "KeyError: 'unknown'" in told[0].getMessage() + (told[0].exc_text or "")
        assert "Traceback" in told[0].getMessage() + (told[0].exc_text or "")
    else:
        assert told == []


@on_three
def test_on_error_continue_streams_what_succeeds(executor):
    """A stream of a flow that continues gives the chunks of what succeeded, and raises nothing."""
    with Flow(executor, on_error="continue") as flow:
        shop(flow)
        assert {chunk.task_id for chunk in flow.stream()} == {"fetch", "pack", "ship"}


@on_three
def test_on_error_continue_with_next_tasks(executor):
    """Task runs that were asked for fail each for itself: the others come back under their ids."""
    with Flow(executor, on_error="continue") as flow:
        flow.add_task("go", lambda: [NextTask("half", {"n": n}, spawn_another=True) for n in range(6)])

        @flow.task
        def half(n):
            if n % 2:
                raise ValueError(f"{n} is odd")
            return n // 2

        assert flow.run("go") == {"half": 0, "half#3": 1, "half#5": 2}
        row = flow.report().tasks["half"]
        assert (row.status, row.runs, row.error.message in {"1 is odd", "3 is odd", "5 is odd"}) == (
            Status.FAILED,
            6,
            True,
        )


def test_on_error_continue_with_a_start_that_fails():
    """When nothing succeeds there are no results, and still no error."""
    with Flow("inline", on_error="continue") as flow:
        flow.add_task("bad", Flaky(9), retries=1)
        assert flow.run("bad") == {}
        assert flow.report().tasks["bad"].attempt == 2


def test_on_error_continue_with_an_unknown_next_task():
    """A request for a task that there is not fails who asked for it, and the run goes on."""
    with Flow("inline", on_error="continue") as flow:
        flow.add_task("go", lambda: [NextTask("bad"), NextTask("good")])
        flow.add_task("bad", lambda: NextTask("nope"))
        flow.add_task("good", lambda: "fine")
        assert flow.run("go") == {"good": "fine"}
        assert "Task nope not found" in flow.report().tasks["bad"].error.message


def test_on_error_continue_in_a_session():
    """A failed call is raised by its handle alone, not by the end of the session."""
    with Flow("inline", on_error="continue") as flow:
        with flow.session() as session:
            handle = session.submit(Flaky(9))
            after = session.submit(lambda value: value, handle)
        assert session.status is Status.FAILED
        with pytest.raises(OSError, match="call 1 failed"):
            handle.result()
        with pytest.raises(DependencyFailedError):
            after.result()


@pytest.mark.parametrize("on_error", ["continue", "log"])
def test_a_cancel_is_raised_whatever_on_error_says(on_error, clock):
    """Cancelling and the run's own timeout are no failures of tasks: they are raised."""
    begun = threading.Event()
    with opened_flow(clock, on_error=on_error) as flow:

        @flow.task
        async def sleep():
            begun.set()
            await asyncio.Event().wait()

        run = flow.start("sleep")
        wait(begun)
        run.cancel()
        with pytest.raises(RunCancelledError):
            run.result(WATCHDOG)
        begun.clear()
        run = flow.start("sleep", timeout=2.0)
        wait(begun)
        clock.advance(2.0)
        with pytest.raises(RunTimeoutError):
            run.result(WATCHDOG)


# ---- max_parallel ---------------------------------------------------------------------------------


def crowd(flow, peak, **options):
    """Register ``go``, which asks for 20 runs of ``work``; two of these wait to be inside together."""
    together = threading.Barrier(2)
    numbers = count()

    @flow.task(**options)
    def work():
        with peak:
            if next(numbers) < 2:
                together.wait(WATCHDOG)
        return "done"

    flow.add_task("go", lambda: [NextTask("work", spawn_another=True) for _ in range(20)])


@pytest.mark.parametrize("where", ["flow", "task"])
def test_max_parallel_bounds_what_is_under_way_at_once(where):
    """Two at once are allowed, and two at once there are, never more."""
    peak, limit = Peak(), {"max_parallel": 2}
    with Flow("thread", max_workers=6, **(limit if where == "flow" else {})) as flow:
        crowd(flow, peak, **(limit if where == "task" else {}))
        assert len(flow.run("go")) == 20
    assert (peak.most, peak.entered) == (2, 20)


@pytest.mark.parametrize("where", ["flow", "task"])
def test_max_parallel_bounds_coroutines(where):
    """The same for coroutines on one loop."""
    peak, limit = Peak(), {"max_parallel": 2}
    with Flow("asyncio", **(limit if where == "flow" else {})) as flow:

        @flow.task(**(limit if where == "task" else {}))
        async def work():
            with peak:
                await asyncio.sleep(0)
                await asyncio.sleep(0)

        flow.add_task("go", lambda: [NextTask("work", spawn_another=True) for _ in range(20)])
        assert len(flow.run("go")) == 20
    assert (peak.most, peak.entered) == (2, 20)


def test_max_parallel_of_a_flow_is_over_all_its_executors():
    """Threads, coroutines and the inline place count together."""
    peak = Peak()
    with Flow("thread", max_workers=4, max_parallel=2) as flow:

        def plain():
            with peak:
                time.sleep(0)

        async def coroutine():
            with peak:
                await asyncio.sleep(0)

        flow.add_task("plain", plain)
        flow.add_task("coroutine", coroutine)
        flow.add_task("other", plain, executor="asyncio")
        names = ["plain", "coroutine", "other"] * 10
        flow.add_task("go", lambda: [NextTask(name, spawn_another=True) for name in names])
        assert len(flow.run("go")) == 30
    assert peak.most <= 2
    assert peak.entered == 30


def test_max_parallel_of_a_task_leaves_others_alone():
    """A task at its limit keeps no worker from another task."""
    release, begun = threading.Event(), Log()
    with Flow("thread", max_workers=3) as flow:

        @flow.task(max_parallel=1)
        def slow():
            begun.add("slow")
            wait(release)

        flow.add_task("quick", lambda: begun.add("quick"))
        flow.add_task("go", lambda: [NextTask(n, spawn_another=True) for n in ["slow"] * 3 + ["quick"] * 3])
        run = flow.start("go")
        begun.wait_for(4)
        assert sorted(begun) == ["quick", "quick", "quick", "slow"]
        release.set()
        run.result(WATCHDOG)
    assert Counter(begun) == {"slow": 3, "quick": 3}


def test_max_parallel_is_one_of_each_run():
    """Two runs at once have a max_parallel each."""
    together = threading.Barrier(2)
    with Flow("thread", max_workers=2, max_parallel=1) as flow:
        flow.add_task("work", lambda: together.wait(WATCHDOG) >= 0, max_parallel=1)
        runs = [flow.start("work") for _ in range(2)]
        assert [run.result(WATCHDOG) for run in runs] == [{"work": True}] * 2


@pytest.mark.parametrize("where", ["flow", "task"])
@pytest.mark.parametrize("executor", ["inline", "thread", "thread-1", "asyncio"], indirect=True)
def test_a_blocked_task_run_does_not_count_for_max_parallel(executor, where):
    """Twenty consumers wait for one producer although only one task run at a time is allowed."""
    limit = {"max_parallel": 1}
    with Flow(executor, **(limit if where == "flow" else {})) as flow:

        @flow.task(**(limit if where == "task" else {}))
        def work(ctx: Context, role):
            if role == "consumer":
                return ctx.get("goods")
            ctx.set("goods", 7)
            return "sent"

        roles = ["consumer"] * 20 + ["producer"]
        flow.add_task("go", lambda: [NextTask("work", {"role": role}, spawn_another=True) for role in roles])
        outputs = flow.run("go")
    assert Counter(outputs.values()) == {7: 20, "sent": 1}


@pytest.mark.parametrize("where", ["flow", "task"])
def test_a_blocked_coroutine_does_not_count_for_max_parallel(where):
    """The same for coroutines that await a value."""
    limit = {"max_parallel": 1}
    with Flow("asyncio", **(limit if where == "flow" else {})) as flow:

        @flow.task(**(limit if where == "task" else {}))
        async def work(ctx: Context, role):
            if role == "consumer":
                return await ctx.aget("goods")
            ctx.set("goods", 7)
            return "sent"

        roles = ["consumer"] * 20 + ["producer"]
        flow.add_task("go", lambda: [NextTask("work", {"role": role}, spawn_another=True) for role in roles])
        outputs = flow.run("go")
    assert Counter(outputs.values()) == {7: 20, "sent": 1}


def test_a_task_run_that_goes_on_counts_again():
    """Once its value has come, a task run counts again: nothing further starts beside it."""
    blocked, release, begun = threading.Event(), threading.Event(), Log()
    with Flow("thread", max_workers=4, max_parallel=1) as flow:

        @flow.task
        def waiter(ctx: Context):
            blocked.set()
            ctx.get("go on")
            begun.add("waiter goes on")
            wait(release)
            begun.add("waiter ends")

        @flow.task
        def setter(ctx: Context):
            ctx.set("go on", True)
            begun.wait_for(1)

        flow.add_task("third", lambda: begun.add("third"))
        flow.add_task("go", lambda: [NextTask("waiter"), NextTask("setter"), NextTask("third")])
        run = flow.start("go")
        begun.wait_for(1)
        while run.report().tasks["setter"].status is not Status.SUCCESS:
            assert not run.wait(0.001)
        assert begun == ["waiter goes on"]
        release.set()
        run.result(WATCHDOG)
    assert begun == ["waiter goes on", "waiter ends", "third"]


def test_a_task_that_waits_for_a_nested_run_does_not_count_for_max_parallel(executor):
    """A task that runs its own flow again, with one task run at a time allowed, does not wait for itself."""
    with Flow(executor, max_parallel=1) as flow:
        flow.add_task("outer", lambda: flow.run("inner"))
        flow.add_task("inner", lambda: "fine")
        assert flow.run("outer") == {"outer": {"inner": "fine"}}


def test_max_parallel_of_a_map_is_over_its_items():
    """With for_each, max_parallel bounds the items that are under way at once."""
    peak, together, numbers = Peak(), threading.Barrier(2), count()
    with Flow("thread", max_workers=6) as flow:

        @flow.task(for_each="$inputs.rows", max_parallel=2)
        def work(item):
            with peak:
                if next(numbers) < 2:
                    together.wait(WATCHDOG)
            return item * item

        assert flow.run("work", inputs={"rows": range(12)}) == {"work": [n * n for n in range(12)]}
    assert (peak.most, peak.entered) == (2, 12)


def test_a_failure_gives_its_place_back():
    """Whoever fails, is cancelled or takes too long leaves room for the next one at its gate."""
    with Flow("thread", max_workers=2, on_error="continue") as flow:

        @flow.task(max_parallel=1)
        def work(n):
            if n % 2:
                raise ValueError(n)
            return n

        flow.add_task("go", lambda: [NextTask("work", {"n": n}, spawn_another=True) for n in range(10)])
        assert sorted(flow.run("go").values()) == [0, 2, 4, 6, 8]


# ---- named limits: how many at once ---------------------------------------------------------------


@pytest.mark.parametrize("executor", ["inline", "thread", "thread-1", "asyncio", "pool"], indirect=True)
def test_a_task_that_uses_a_limit_runs(executor):
    """A limit that nobody holds is no obstacle, on any executor."""
    with Flow(executor, limits={"db": 1, "api": Rate(100, per=1.0)}) as flow:
        flow.add_task("load", lambda: "loaded", uses=["db", "api"])
        for _ in range(3):
            assert flow.run("load") == {"load": "loaded"}


def test_a_limit_holds_over_several_runs_at_once():
    """Four runs at once: never more than two task runs hold the limit, and two do."""
    peak, together, numbers = Peak(), threading.Barrier(2), count()
    with Flow("thread", max_workers=8, limits={"db": 2}) as flow:

        @flow.task(uses=["db"])
        def query():
            with peak:
                if next(numbers) < 2:
                    together.wait(WATCHDOG)

        flow.add_task("go", lambda: [NextTask("query", spawn_another=True) for _ in range(10)])
        runs = [flow.start("go") for _ in range(4)]
        assert [len(run.result(WATCHDOG)) for run in runs] == [10] * 4
    assert (peak.most, peak.entered) == (2, 40)


def test_a_limit_is_shared_by_all_tasks_that_use_it():
    """Functions, coroutines and items of a map that use one limit hold it together."""
    peak = Peak()
    with Flow("thread", max_workers=4, limits={"db": 1}) as flow:

        def plain():
            with peak:
                time.sleep(0)

        async def coroutine():
            with peak:
                await asyncio.sleep(0)

        def each(item):
            plain()

        flow.add_task("plain", plain, uses=["db"])
        flow.add_task("coroutine", coroutine, uses=["db"])
        flow.add_task("each", each, uses=["db"], for_each="$inputs.rows")
        names = ["plain", "coroutine"] * 5
        nexts = [NextTask(name, spawn_another=True) for name in names] + [NextTask("each", {"rows": range(5)})]
        flow.add_task("go", lambda: nexts)
        flow.run("go")
    assert (peak.most, peak.entered) == (1, 15)


def test_who_waits_for_a_limit_holds_no_worker():
    """Twenty task runs wait for a limit, and the second worker is there for others all the time."""
    held, release = threading.Event(), threading.Event()
    with Flow("thread", max_workers=2, max_parallel=2, limits={"db": 1}) as flow:

        @flow.task(uses=["db"])
        def query():
            held.set()
            wait(release)

        flow.add_task("probe", lambda: "fine")
        flow.add_task("go", lambda: [NextTask("query", spawn_another=True) for _ in range(20)] + [NextTask("probe")])
        run = flow.start("go")
        wait(held)
        while "probe" not in run.context:
            assert not run.wait(0.001)
        assert flow.run("probe") == {"probe": "fine"}
        release.set()
        assert len(run.result(WATCHDOG)) == 21


def test_opposite_orders_of_limits_never_lock():
    """All limits of a task run are taken at once, so it does not matter in which order they are named."""
    with Flow("thread", max_workers=4, limits={"a": 1, "b": 1}) as flow:
        flow.add_task("ab", lambda: "ab", uses=["a", "b"])
        flow.add_task("ba", lambda: "ba", uses=["b", "a"])
        names = ["ab", "ba"] * 50
        flow.add_task("go", lambda: [NextTask(name, spawn_another=True) for name in names])
        assert Counter(flow.run("go").values()) == {"ab": 50, "ba": 50}


@pytest.mark.parametrize("limit", [1, Rate(5000, per=3600.0)], ids=str)
@on_three
def test_two_thousand_task_runs_that_use_a_limit(executor, limit):
    """A long queue at a limit takes no deep stack, and no more time for each than a short one."""
    with Flow(executor, limits={"db": limit}) as flow:
        flow.add_task("query", lambda n: n, uses=["db"])
        flow.add_task("go", lambda: [NextTask("query", {"n": n}, spawn_another=True) for n in range(2000)])
        outputs = flow.run("go", timeout=WATCHDOG)
    assert sorted(outputs.values()) == list(range(2000))


def hold(flow, name, release, begun, **options):
    """Register a task that says that it has begun, and goes on until it is released."""

    def body():
        begun.add(name)
        wait(release)
        return name

    flow.add_task(name, body, **options)


def test_who_needs_several_limits_is_not_starved():
    """A task that waits for two limits is served before those that asked later for one of them."""
    release, begun = {name: threading.Event() for name in ("a", "b", "both")}, Log()
    with Flow("thread", max_workers=8, limits={"a": 1, "b": 1}) as flow:
        hold(flow, "a", release["a"], begun, uses=["a"])
        hold(flow, "b", release["b"], begun, uses=["b"])
        hold(flow, "both", release["both"], begun, uses=["a", "b"])
        flow.add_task("late", lambda limit: begun.add(f"late {limit}"))
        for name in "ab":
            flow.add_task(f"late {name}", lambda name=name: begun.add(f"late {name}"), uses=[name])
        runs = [flow.start("a"), flow.start("b")]
        begun.wait_for(2)
        runs.append(flow.start("both"))
        runs += [flow.start(f"late {name}") for name in "aabb"]
        release["a"].set()
        assert runs[0].result(WATCHDOG) == {"a": "a"}
        assert sorted(begun) == ["a", "b"]  # the place of a is kept for the one that waits for both
        release["b"].set()
        begun.wait_for(3)
        assert begun[2] == "both"
        release["both"].set()
        for run in runs:
            run.result(WATCHDOG)
    assert Counter(begun[3:]) == {"late a": 2, "late b": 2}


def test_who_waits_behind_others_is_in_no_deadlock():
    """A run of which everything waits behind another run's turn goes on when that has had it."""
    release, begun = threading.Event(), Log()
    with Flow("thread", max_workers=4, limits={"a": 1, "b": 1}) as flow:
        hold(flow, "b", release, begun, uses=["b"])
        flow.add_task("both", lambda: "both", uses=["a", "b"])
        flow.add_task("a", lambda: "a", uses=["a"])
        first = flow.start("b")
        begun.wait_for(1)
        second, third = flow.start("both"), flow.start("a")
        assert not third.wait(0.02)
        release.set()
        assert first.result(WATCHDOG) == {"b": "b"}
        assert second.result(WATCHDOG) == {"both": "both"}
        assert third.result(WATCHDOG) == {"a": "a"}


def test_a_higher_priority_is_served_first_over_several_runs():
    """Who waits for a limit is served by priority, then in the order of asking, whatever run it belongs to."""
    release, begun = threading.Event(), Log()
    with Flow("thread", max_workers=4, limits={"db": 1}) as flow:
        hold(flow, "holder", release, begun, uses=["db"])
        for name, priority in (("low", -1), ("normal", 0), ("high", 5)):
            flow.add_task(name, lambda name=name: begun.add(name), uses=["db"], priority=priority)
        flow.add_task("also", lambda: begun.add("also"), uses=["db"])
        runs = [flow.start("holder")]
        begun.wait_for(1)
        runs += [flow.start(name) for name in ("normal", "low", "also", "high")]
        flow.add_task("go", lambda: [NextTask("low", priority=9)])
        runs.append(flow.start("go"))
        assert runs[-1].wait(0.02) is False
        release.set()
        for run in runs:
            run.result(WATCHDOG)
    assert begun == ["holder", "low", "high", "normal", "also", "low"]


@pytest.mark.parametrize("how", ["call", "run", "timeout"])
def test_who_is_cancelled_while_it_waits_for_a_limit(how, clock):
    """A call, or a run, that ends while it waits for a limit never starts, and holds up nobody."""
    release, begun = threading.Event(), Log()
    with opened_flow(clock, max_workers=4, limits={"db": 1}) as flow:
        hold(flow, "holder", release, begun, uses=["db"])
        flow.add_task("query", lambda: begun.add("query"), uses=["db"])
        flow.add_task("last", lambda: begun.add("last"), uses=["db"])
        holder = flow.start("holder")
        begun.wait_for(1)
        if how == "call":
            with flow.session() as session:
                query = task("query", uses=["db"])(lambda: begun.add("query"))
                handles = [session.submit(query) for _ in range(3)]
                last = flow.start("last")
                assert all(handle.cancel() for handle in handles)
                assert all(handle.cancelled() for handle in handles)
        else:
            run = flow.start("query", timeout=4.0 if how == "timeout" else None)
            last = flow.start("last")
            clock.advance(4.0) if how == "timeout" else run.cancel()
            with pytest.raises(RunTimeoutError if how == "timeout" else RunCancelledError):
                run.result(WATCHDOG)
        release.set()
        holder.result(WATCHDOG)
        last.result(WATCHDOG)
    assert begun == ["holder", "last"]


def fails():
    raise ValueError("no rows")


async def sleeps():
    await asyncio.Event().wait()


@pytest.mark.parametrize("executor", ["thread", "asyncio"], indirect=True)
@pytest.mark.parametrize("how", ["success", "failure", "cancelled", "timed out", "stuck", "abandoned"])
def test_a_limit_is_given_back_however_an_attempt_ends(executor, clock, how):
    """After success, failure, cancel and timeout, also of code that never stops, the limit is free again."""
    release, begun = threading.Event(), threading.Event()

    def stuck():
        begun.set()
        release.wait(WATCHDOG)

    async def waits():
        begun.set()
        await sleeps()

    bodies = {"success": lambda: "fine", "failure": fails, "cancelled": waits, "timed out": waits}
    with opened_flow(clock, executor, limits={"db": 1}) as flow:
        timeout = 2.0 if how in ("timed out", "stuck") else None
        flow.add_task("query", bodies.get(how, stuck), uses=["db"], timeout=timeout)
        flow.add_task("probe", lambda: "fine", uses=["db"])
        for _ in range(2):
            begun.clear()
            run = flow.start("query")
            if how in ("cancelled", "abandoned"):
                wait(begun)
                run.cancel()
            if how in ("timed out", "stuck"):
                wait(begun)
                clock.wait_for(2.0)
                clock.advance(2.0)
            if how == "abandoned":
                clock.wait_for(0.5)
                clock.advance(0.5)
            assert run.wait(WATCHDOG)
            assert flow.start("probe").result(WATCHDOG) == {"probe": "fine"}
        release.set()


def test_a_limit_is_free_while_its_task_waits_for_a_retry(clock):
    """Limits are held by attempts, not by the wait between them."""
    with opened_flow(clock, limits={"db": 1}) as flow:
        flow.add_task("query", Flaky(1), uses=["db"], retry=Retry(2, base=8.0))
        flow.add_task("probe", lambda: "fine", uses=["db"])
        run = flow.start("query")
        clock.wait_for(8.0)
        assert flow.start("probe").result(WATCHDOG) == {"probe": "fine"}
        clock.advance(8.0)
        assert run.result(WATCHDOG) == {"query": "answered call 2"}


def test_items_of_a_failed_map_give_their_limits_back():
    """When an item fails, those that wait for a limit are cancelled, and the limit is free for others."""
    with Flow("thread", max_workers=2, limits={"db": 1}, on_error="continue") as flow:

        @flow.task(for_each="$inputs.rows", uses=["db"])
        def work(item):
            raise ValueError(item)

        flow.add_task("probe", lambda: "fine", uses=["db"])
        flow.run("work", inputs={"rows": range(50)})
        assert flow.report().tasks["work"].status is Status.FAILED
        assert flow.start("probe").result(WATCHDOG) == {"probe": "fine"}


# ---- named limits: deadlocks are proven -----------------------------------------------------------


def waits_and_sets(flow):
    """Register a task that waits for a key, and one that sets it; both hold the limit."""
    flow.add_task("waiter", lambda ctx: ctx.get("key"), uses=["db"])
    flow.add_task("setter", lambda ctx: ctx.set("key", 1), uses=["db"])
    flow.add_task("go", lambda: [NextTask("waiter"), NextTask("setter")])


@pytest.mark.parametrize("executor", ["inline", "thread", "thread-1", "asyncio"], indirect=True)
def test_a_blocked_task_run_keeps_its_limit_and_the_proof_counts_it(executor):
    """Who waits for a value holds the limit that its setter needs: a DeadlockError says who waits for what."""
    with Flow(executor, limits={"db": 1}) as flow:
        waits_and_sets(flow)
        run = flow.start("go")
        with pytest.raises(DeadlockError) as caught:
            run.result(WATCHDOG)
        assert "waiter" in str(caught.value)
        assert "db" in str(caught.value)
        assert flow.start("setter").result(WATCHDOG) == {"setter": None}


def test_a_limit_with_room_for_both_is_no_deadlock(flow):
    """The same with two places: the setter gets one, and both end."""
    with Flow("thread", limits={"db": 2}) as flow:
        waits_and_sets(flow)
        assert flow.run("go") == {"waiter": 1, "setter": None}


def test_a_nested_run_that_needs_the_limit_of_its_task_is_a_deadlock():
    """A task that holds the only place and runs a flow that needs it would wait for ever: it is told."""
    with Flow("thread", max_workers=4, limits={"db": 1}) as flow:
        flow.add_task("outer", lambda: flow.run("inner"), uses=["db"])
        flow.add_task("inner", lambda: "fine", uses=["db"])
        run = flow.start("outer")
        ended = run.wait(WATCHDOG / 5)
        run.cancel()
        assert ended
        with pytest.raises(DeadlockError):
            run.result(WATCHDOG)


def test_a_call_that_needs_the_limit_of_who_waits_for_it_is_a_deadlock():
    """A task that holds the only place and waits for a call that needs it is told."""
    query = task("query", uses=["db"])(lambda: "rows")
    with Flow("thread", max_workers=4, limits={"db": 1}) as flow:
        flow.add_task("outer", lambda: query.submit().result(), uses=["db"])
        with pytest.raises(DeadlockError, match="db"):
            flow.start("outer").result(WATCHDOG)


def test_a_rate_is_never_a_deadlock(clock):
    """Who waits for a rate goes on with time, although everybody else waits for its value."""
    with opened_flow(clock, limits={"api": Rate(1, per=8.0)}) as flow:
        flow.add_task("waiter", lambda ctx: ctx.get("key"), uses=["api"])
        flow.add_task("setter", lambda ctx: ctx.set("key", 1), uses=["api"])
        flow.add_task("go", lambda: [NextTask("waiter"), NextTask("setter")])
        run = flow.start("go")
        clock.wait_for(8.0)
        assert run.status is Status.RUNNING
        clock.advance(8.0)
        assert run.result(WATCHDOG) == {"waiter": 1, "setter": None}


def test_who_waits_for_a_limit_of_another_run_is_no_deadlock():
    """Everybody in a run waits for a value whose setter waits for a limit that another run will give back."""
    release, begun = threading.Event(), Log()
    with Flow("thread", max_workers=4, limits={"db": 1}) as flow:
        hold(flow, "holder", release, begun, uses=["db"])
        flow.add_task("waiter", lambda ctx: ctx.get("key"))
        flow.add_task("setter", lambda ctx: ctx.set("key", 1), uses=["db"])
        flow.add_task("go", lambda: [NextTask("waiter"), NextTask("setter")])
        holder = flow.start("holder")
        begun.wait_for(1)
        run = flow.start("go")
        assert not run.wait(0.02)
        release.set()
        assert holder.result(WATCHDOG) == {"holder": "holder"}
        assert run.result(WATCHDOG) == {"waiter": 1, "setter": None}


# ---- named limits: how many in a time -------------------------------------------------------------


def test_a_rate_holds_over_several_runs_at_once(clock):
    """Four runs at once start two task runs in any second, in the order of asking, and all of them start."""
    starts = Log()
    with opened_flow(clock, max_workers=8, limits={"api": Rate(2, per=1.0)}) as flow:
        flow.add_task("call", lambda: starts.add(clock.now()), uses=["api"])
        flow.add_task("go", lambda: [NextTask("call", spawn_another=True) for _ in range(3)])
        begin = clock.now()
        runs = [flow.start("go") for _ in range(4)]
        for second in range(6):
            starts.wait_for(2 * second + 2)
            clock.wait_for(*[1.0] if second < 5 else [])
            clock.advance(0.75)
            assert len(starts) == 2 * second + 2
            clock.advance(0.25)
        assert [len(run.result(WATCHDOG)) for run in runs] == [3] * 4
    assert starts == [begin + second for second in range(6) for _ in range(2)]


def test_a_rate_counts_starts_in_a_window_that_slides(clock):
    """A start frees its place exactly ``per`` seconds after it began, not at the turn of some period."""
    starts = Log()
    with opened_flow(clock, limits={"api": Rate(2, per=4.0)}) as flow:
        flow.add_task("call", lambda: starts.add(clock.now()), uses=["api"])
        begin = clock.now()
        flow.run("call")
        clock.advance(3.0)
        flow.run("call")
        runs = [flow.start("call") for _ in range(3)]
        clock.wait_for(1.0)
        clock.advance(1.0)
        starts.wait_for(3)
        clock.wait_for(3.0)
        clock.advance(3.0)
        starts.wait_for(4)
        clock.wait_for(1.0)
        clock.advance(1.0)
        for run in runs:
            run.result(WATCHDOG)
    assert [start - begin for start in starts] == [0.0, 3.0, 4.0, 7.0, 8.0]


def test_a_rate_counts_attempts_and_not_how_long_they_take(clock):
    """Each attempt is a start, the ones that fail too; a start that goes on holds nothing."""
    release, begun = threading.Event(), Log()
    with opened_flow(clock, max_workers=4, limits={"api": Rate(1, per=4.0)}) as flow:

        @flow.task(uses=["api"], retries=1)
        def call():
            begun.add((clock.now() - begin, current_task().attempt))
            if current_task().attempt == 1:
                raise OSError
            wait(release)

        begin = clock.now()
        runs = [flow.start("call")]
        clock.wait_for(4.0)
        clock.advance(4.0)
        begun.wait_for(2)
        runs.append(flow.start("call"))
        clock.wait_for(4.0)
        clock.advance(4.0)
        begun.wait_for(3)
        clock.wait_for(4.0)
        clock.advance(4.0)
        begun.wait_for(4)
        release.set()
        for run in runs:
            run.result(WATCHDOG)
    assert begun == [(0.0, 1), (4.0, 2), (8.0, 1), (12.0, 2)]


def test_a_rate_with_priorities(clock):
    """When a rate allows the next start, the highest priority that waits has it."""
    order = Log()
    with opened_flow(clock, limits={"api": Rate(1, per=1.0)}) as flow:
        flow.add_task("call", lambda name: order.add(name), uses=["api"])
        asked = [("first", 0), ("low", -1), ("high", 3), ("mid", 1)]
        nexts = [NextTask("call", {"name": name}, spawn_another=True, priority=rank) for name, rank in asked]
        flow.run("call", inputs={"name": "before"})
        flow.add_task("go", lambda: nexts)
        run = flow.start("go")
        for started in range(1, 5):
            order.wait_for(started)
            clock.wait_for(1.0)
            clock.advance(1.0)
        run.result(WATCHDOG)
    assert order == ["before", "high", "mid", "first", "low"]


def test_a_rate_beside_a_count(clock):
    """A task that uses both waits until both allow it, and takes neither before."""
    release, begun = threading.Event(), Log()
    with opened_flow(clock, max_workers=4, limits={"db": 1, "api": Rate(1, per=4.0)}) as flow:
        hold(flow, "holder", release, begun, uses=["db"])
        flow.add_task("both", lambda: begun.add("both"), uses=["db", "api"])
        flow.add_task("call", lambda: begun.add("call"), uses=["api"])
        holder = flow.start("holder")
        begun.wait_for(1)
        both = flow.start("both")
        call = flow.start("call")
        assert not both.wait(0.02)
        release.set()
        holder.result(WATCHDOG)
        both.result(WATCHDOG)
        clock.wait_for(4.0)
        assert begun == ["holder", "both"]
        clock.advance(4.0)
        call.result(WATCHDOG)
    assert begun == ["holder", "both", "call"]


def test_a_start_that_was_cancelled_before_it_began_is_no_start(clock):
    """Who is cancelled while it waits for a rate takes no start from others."""
    starts = Log()
    with opened_flow(clock, limits={"api": Rate(1, per=4.0)}) as flow:
        flow.add_task("call", lambda: starts.add(clock.now()), uses=["api"])
        begin = clock.now()
        flow.run("call")
        cancelled = [flow.start("call") for _ in range(3)]
        last = flow.start("call")
        clock.wait_for(4.0)
        for run in cancelled:
            run.cancel()
            assert run.wait(WATCHDOG)
        clock.advance(4.0)
        last.result(WATCHDOG)
    assert [start - begin for start in starts] == [0.0, 4.0]


@pytest.mark.parametrize("how", ["ends", "is refused", "raises", "is cancelled"])
def test_an_attempt_leaves_no_timer_behind(clock, how):
    """However an attempt with a timeout ends, its timer is called off at once, while the run goes on."""
    with opened_flow(clock, on_error="continue") as flow:

        @flow.task(timeout=100.0)
        def work():
            if how == "raises":
                raise OSError
            while how == "is cancelled" and not current_task().cancelled:
                time.sleep(0.001)
            return NextTask("nobody") if how == "is refused" else None

        with flow.session() as session:
            goes_on = threading.Event()
            session.submit(goes_on.wait, WATCHDOG)
            if how == "is cancelled":
                call = session.submit(flow["work"])
                clock.wait_for(100.0)
                call.cancel()
            else:
                session.submit(lambda: flow.start("work").wait(WATCHDOG)).result(WATCHDOG)
            assert clock.waiting == []
            goes_on.set()


def test_a_rate_leaves_no_timer_behind(clock):
    """When nobody waits for a rate any more, nothing is timed."""
    with opened_flow(clock, limits={"api": Rate(1, per=4.0)}) as flow:
        flow.add_task("call", lambda: None, uses=["api"])
        flow.run("call")
        run = flow.start("call")
        clock.wait_for(4.0)
        run.cancel()
        assert run.wait(WATCHDOG)
        assert clock.waiting == []


@on_three
def test_a_rate_in_real_time(executor):
    """On the real clock never more than five task runs start in any 20 ms, and all of them start."""
    starts = []
    with Flow(executor, limits={"api": Rate(5, per=0.02)}) as flow:
        flow.add_task("call", lambda: starts.append(time.monotonic()), uses=["api"])
        flow.add_task("go", lambda: [NextTask("call", spawn_another=True) for _ in range(30)])
        assert len(flow.run("go")) == 30
    starts.sort()
    # The engine counts from just before the call, so a call that comes late may look too near to the next ones.
    assert starts[-1] - starts[0] > 0.02 * 4


# ---- priorities -----------------------------------------------------------------------------------

PRIORITIES = [("first", 0), ("low", -5), ("high", 9), ("second", 0), ("mid", 3), ("also high", 9)]
IN_ORDER = ["high", "also high", "mid", "first", "second", "low"]


@on_one_worker
def test_a_higher_priority_starts_earlier_on_one_worker(flow):
    """What is ready at once starts by priority, then in the order of the requests."""
    order = []
    for name, priority in PRIORITIES:
        flow.add_task(name, lambda name=name: order.append(name), priority=priority)
    flow.add_task("go", lambda: [NextTask(name) for name, _ in PRIORITIES])
    flow.run("go")
    assert order == IN_ORDER


@on_one_worker
def test_a_request_has_a_priority_of_its_own(flow):
    """NextTask(priority=) stands above that of its task, for this task run alone."""
    order = []
    flow.add_task("work", lambda name: order.append(name), priority=100)
    flow.add_task("go", lambda: [NextTask("work", {"name": n}, spawn_another=True, priority=p) for n, p in PRIORITIES])
    flow.run("go")
    assert order == IN_ORDER
    order.clear()
    requests = [
        NextTask("work", {"name": "tasks own"}, spawn_another=True),
        NextTask("work", {"name": "more"}, spawn_another=True, priority=101),
        NextTask("work", {"name": "none"}, spawn_another=True, priority=0),
    ]
    flow.add_task("go", lambda: requests, replace=True)
    flow.run("go")
    assert order == ["more", "tasks own", "none"]


@on_one_worker
def test_priorities_of_coroutines(executor):
    """Coroutines start by priority too, one at a time."""
    order = []
    with Flow(executor, max_parallel=1) as flow:

        @flow.task
        async def work(name):
            order.append(name)
            await asyncio.sleep(0)

        flow.add_task(
            "go", lambda: [NextTask("work", {"name": n}, spawn_another=True, priority=p) for n, p in PRIORITIES]
        )
        flow.run("go")
    assert order == IN_ORDER


@on_one_worker
def test_priorities_of_a_graph(flow):
    """Of the roots of a graph, and of what one task unlocks, the highest priority starts first."""
    order = []
    for name, priority in PRIORITIES:
        flow.add_task(name, lambda name=name: order.append(name), priority=priority)
        flow.add_task(f"after {name}", lambda: None, depends_on=[name])
    flow.run()
    assert order == IN_ORDER

    order.clear()
    flow.reset(keep_tasks=False)
    flow.add_task("root", lambda: None)
    for name, priority in PRIORITIES:
        flow.add_task(name, lambda name=name: order.append(name), priority=priority, depends_on=["root"])
    flow.run()
    assert order == IN_ORDER


@pytest.mark.parametrize("where", ["flow", "task"])
def test_priorities_at_max_parallel(where):
    """What max_parallel holds back goes on by priority, on however many workers."""
    order, limit = [], {"max_parallel": 1}
    with Flow("thread", max_workers=4, **(limit if where == "flow" else {})) as flow:
        flow.add_task("work", lambda name: order.append(name), **(limit if where == "task" else {}))
        requests = [NextTask("work", {"name": n}, spawn_another=True, priority=p) for n, p in PRIORITIES]
        flow.add_task("go", lambda: requests)
        flow.run("go")
    assert order == IN_ORDER


@on_one_thread
def test_a_priority_goes_before_what_waits_already(executor):
    """A task run of a higher priority that comes later starts before those that wait already."""
    begun, release, order = threading.Event(), threading.Event(), []
    with Flow(executor) as flow, flow.session() as session:

        def blocker():
            begun.set()
            wait(release)

        session.submit(blocker)
        wait(begun)
        for name, priority in PRIORITIES:
            session.submit(task(name, priority=priority)(lambda name=name: order.append(name)))
        release.set()
    assert order == IN_ORDER


def test_a_retry_keeps_its_priority():
    """The next attempt of an urgent task goes before everything less urgent."""
    order, service = [], Flaky(2)

    def urgent():
        order.append("urgent")
        service()

    with Flow("inline") as flow:
        flow.add_task("urgent", urgent, retries=2, priority=5)
        flow.add_task("calm", lambda: order.append("calm"))
        flow.add_task("go", lambda: [NextTask("calm"), NextTask("urgent")])
        flow.run("go")
        assert order == ["urgent", "urgent", "urgent", "calm"]
        order.clear()
        service.left = 2
        flow.add_task("urgent", urgent, retries=2, replace=True)
        flow.add_task("go", lambda: [NextTask("calm"), NextTask("urgent", priority=1)], replace=True)
        flow.run("go")
    assert order == ["urgent", "urgent", "urgent", "calm"]


@on_several_workers
def test_priorities_lose_nothing_under_load(executor):
    """Two thousand task runs of mixed priorities on several workers all run, once."""
    with Flow(executor) as flow:
        flow.add_task("work", lambda n: n)
        requests = [NextTask("work", {"n": n}, spawn_another=True, priority=n % 7) for n in range(2000)]
        flow.add_task("go", lambda: requests)
        assert sorted(flow.run("go").values()) == list(range(2000))


@pytest.mark.parametrize("executor", ["inline", "thread-1"], indirect=True)
def test_as_many_priorities_as_task_runs(executor):
    """A thousand task runs with a priority each, such as a time or a size, run in that order."""
    order, priorities = [], list(range(1000))
    random.Random(7).shuffle(priorities)
    with Flow(executor) as flow:
        flow.add_task("work", lambda n: order.append(n))
        requests = [NextTask("work", {"n": n}, spawn_another=True, priority=n) for n in priorities]
        flow.add_task("go", lambda: requests)
        flow.run("go")
    assert order == sorted(priorities, reverse=True)


def test_limits_retries_and_cancels_under_load():
    """Whatever mixture of failures, retries, limits and cancelled runs: the limits are whole in the end."""
    peak, numbers = Peak(), count()
    with Flow("thread", max_workers=4, limits={"a": 2, "b": 1}, on_error="continue", max_parallel=5) as flow:

        def work():
            with peak:
                if next(numbers) % 3 == 0:
                    raise OSError

        flow.add_task("a", work, uses=["a"], retries=1)
        flow.add_task("ab", work, uses=["a", "b"], priority=1)
        names = ["a", "ab"] * 10
        flow.add_task("go", lambda: [NextTask(name, spawn_another=True) for name in names])
        runs = [flow.start("go") for _ in range(20)]
        for run in runs[::3]:
            run.cancel()
        assert all(run.wait(WATCHDOG) for run in runs)
        assert peak.most <= 2
        assert [flow.start("ab").wait(WATCHDOG) for _ in range(2)] == [True, True]


def test_a_task_cancelled_error_is_final():
    """A task that obeys raise_if_cancelled is not tried again."""
    calls = Log()
    begun = threading.Event()
    with Flow("thread") as flow:

        @flow.task(retries=9, retry_on=BaseException)
        def work():
            calls.add(1)
            begun.set()
            while True:
                current_task().raise_if_cancelled()
                time.sleep(0)

        run = flow.start("work")
        wait(begun)
        run.cancel()
        with pytest.raises(RunCancelledError):
            run.result(WATCHDOG)
        assert calls == [1]

        @flow.task(retries=9, retry_on=BaseException)
        def gives_up():
            calls.add(2)
            raise TaskCancelledError("gives_up")

        with pytest.raises(TaskCancelledError):
            flow.start("gives_up").result(WATCHDOG)
    assert calls == [1, 2]
