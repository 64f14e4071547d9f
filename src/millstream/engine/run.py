"""``FlowRun``: drives the state machine of one run; status, result, cancel, stream.

Everything that changes the state of a run is a *step* done under the monitor of its context: a
worker reports an outcome, a timer fires, somebody cancels. A step asks the scheduler, stores what a
task gave, and puts off to after the lock whatever might block or run a user's code. The loops that
workers run are in ``lane``. May import: everything in engine, executors.base, task, binding, context,
values, errors; never the flow.
"""

from __future__ import annotations

import logging
import os.path
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, Protocol

from millstream.context import Context
from millstream.engine.clock import Clock, Timer
from millstream.engine.lane import Feed, Item, Lane, RunTask, close_unawaited
from millstream.engine.scheduler import Scheduler, Scope, TaskRun
from millstream.engine.stream import Chunks, Stream
from millstream.engine.waits import Blocked, Idle, call_in
from millstream.errors import (
    DeadlockError,
    ExecutorLostError,
    FlowError,
    RunCancelledError,
    RunTimeoutError,
    TaskCancelledError,
    TaskFailedError,
    TaskTimeoutError,
)
from millstream.executors.base import Worker, Workers, here
from millstream.task import check_wait, current_run
from millstream.values import NextTask, Status, StreamChunk

RUNNING, ABANDONED = Status.RUNNING, Status.ABANDONED

#: How long a run that is ending waits for the code of its tasks to stop, in seconds. What has not
#: stopped by then is abandoned: it cannot change anything any more.
GRACE = 0.5

_PACKAGE = os.path.dirname(os.path.dirname(__file__))


class Planned(Protocol):
    """What a run needs to know of a task."""

    name: str
    timeout: float | None
    is_async: bool
    invoke: Callable[[Any, Any], Any]
    refuse: Callable[[NextTask], None] | None
    collects: bool
    executor: Any  #: an executor of ``executors.base``


class Plan(Protocol):
    """What a run needs to know of its flow, as of the start of the run."""

    flow: str
    clock: Clock
    logger: logging.Logger
    max_task_runs: int | None
    max_parallel: int | None

    def find(self, name: str) -> Planned | None: ...
    def known(self) -> Iterable[str]: ...
    def workers(self, executor: Any, is_async: bool, loop: Any) -> Workers: ...
    def ended(self, run: FlowRun) -> None: ...


class FlowRun:
    """One execution of a flow. Made by ``flow.start``; awaitable.

    Attributes:
        id: the name of the run.
        context: the context that its task runs share.
    """

    def __init__(
        self,
        id: str,
        plan: Plan,
        context: Context[Any],
        *,
        stream: Stream | None = None,
        keep_results: bool = True,
        loop: Any = None,
    ) -> None:
        self.id = id
        self.context = context
        self.plan = plan
        self.clock = plan.clock
        self.monitor = context._monitor
        self.variables = copy_context()  # what the caller's context variables are, for every task run
        self.scheduler = Scheduler(
            self._meet,
            known=plan.known,
            max_task_runs=plan.max_task_runs,
            max_parallel=plan.max_parallel,
            make=Item,
        )
        self.stream_buffer = stream
        self.has_reader = False
        self.deadline: float | None = None
        self.stopping = False  #: nothing new starts, and what runs is told
        self.finished = False  #: nothing changes any more
        self._loop = loop
        self._lanes: dict[tuple[int, bool], Lane] = {}
        self._results: dict[str, Any] | None = {} if keep_results else None
        self._errors: list[BaseException] = []
        self._error: BaseException | None = None
        self._status = self._status_at_end = RUNNING
        self._driven: list[Workers] = []  # those that work in the thread that waits
        self._timers: list[Timer] = []
        self.idle_readers: list[Idle] = []  # tasks that wait for a chunk of this run
        self.idle_waiters: list[Idle] = []  # tasks that wait for its end
        self.nested: set[FlowRun] = set()  #: runs that tasks of this one wait for
        self._growing: dict[TaskRun, Scope] = {}  # lists of generator tasks that have not ended
        self._done = threading.Event()
        self._callbacks: list[Callable[[], object]] = []
        self.blocked = self._attach()

    # ---- what users call ------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """RUNNING, then SUCCESS, FAILED or CANCELLED."""
        return self._status

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the end; return the outputs of the terminal task runs by id.

        Args:
            timeout: wait for this many seconds at the longest; the run goes on.

        Raises:
            TimeoutError: it has not ended in time.
            RunCancelledError: it was cancelled.
            RunTimeoutError: it took longer than its own timeout.
            Exception: what failed, as the task raised it.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"Run {self.id} has not ended within {timeout:g} s.")
        if self._error is not None:
            try:
                raise self._error
            finally:
                del self  # no circle between the error and the frame that raises it
        return {} if self._results is None else self._results

    def take_result(self) -> dict[str, Any]:
        """Return or raise the result of a run that has ended, for the only one who will ask.

        The run forgets its error: a task's frame, which the error's traceback keeps, knows the run.
        """
        error = self.take_error()
        if error is not None:
            try:
                raise error
            finally:
                del error, self
        return {} if self._results is None else self._results

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end, without raising what failed; return whether it has ended.

        Args:
            timeout: seconds; None waits without limit.
        """
        check_wait(timeout, f"run {self.id}")
        if timeout is None:
            self.drive(lambda: self.finished, self.idle_waiters)
        return self.finished or self.sleep(self._on_end, self.idle_waiters, timeout)

    def cancel(self) -> None:
        """Stop: what is pending never starts, what runs is told. Returns at once; idempotent."""
        self.monitor.post(self._end_early, Status.CANCELLED, RunCancelledError(self.id))

    def stream(self) -> Chunks:
        """Return an iterator of ``StreamChunk``s, for one reader; leaving it early cancels the run.

        Chunks from before this call are kept up to a limit.

        Raises:
            StreamError: more chunks than that went by, or there is a reader already.
        """
        return Chunks(self, owns=False)

    def __await__(self) -> Generator[Any, None, dict[str, Any]]:
        return self._await_result().__await__()

    def __repr__(self) -> str:
        scheduler = self.scheduler
        state = str(self._status).lower()
        if not self.finished:
            state += f", {scheduler.under_way} under way, {len(scheduler.pending)} pending"
            waits = sorted(self.blocked.waiting)
            if waits:
                state += f", waiting for {', '.join(map(repr, waits[:3]))}"
        return f"<FlowRun {self.id}: {state}>"

    # ---- starting and waiting -------------------------------------------------------------------

    def begin(self, requests: Sequence[NextTask], timeout: float | None) -> None:
        """Schedule the first task runs and send for workers.

        Raises:
            FlowError: they cannot be scheduled; the run has ended then.
        """
        with self.monitor:
            if self.stopping:
                return  # it was cancelled before it began
            try:
                self.scheduler.start(requests)
            except BaseException as error:
                self._end_early(Status.FAILED, error)
                raise
            if timeout is not None:
                self.deadline = self.clock.now() + timeout
                expire = partial(self._end_early, Status.FAILED, RunTimeoutError(self.id, timeout))
                self._timers.append(self.clock.call_at(self.deadline, partial(self.monitor.post, expire)))
            self.dispatch(None)

    def drive(self, until: Callable[[], bool], idle_list: list[Idle]) -> None:
        """Do the work that belongs to the waiting thread (the inline executor's), until ``until()``.

        A task that waits so counts as idle in ``idle_list``, and lends its place when nothing is to
        be done in this thread.
        """
        if not self._driven or until():
            return
        worker, item = self._place()
        with self.monitor:
            idle = None if until() else self._idle(item, idle_list)
        try:
            for workers in self._driven:
                workers.drive(until, partial(self._lend, worker, item, None))
        finally:
            if idle is not None:
                with self.monitor:
                    self.blocked.active(idle)

    def sleep(
        self, register: Callable[[Callable[[], object]], bool], idle_list: list[Idle], timeout: float | None = None
    ) -> bool:
        """Sleep until the callable given to ``register`` is called; return False when time is up first.

        ``register`` is called under the monitor and returns False to not sleep at all. A task that
        sleeps here gives its place back, and counts as idle in ``idle_list``.
        """
        worker, item = self._place()
        signal = threading.Lock()
        signal.acquire()
        with self.monitor:
            if not register(signal.release):
                return True
            idle = self._idle(item, idle_list)
        with self._lend(worker, item, idle):
            return signal.acquire(timeout=-1 if timeout is None else timeout)

    def _place(self) -> tuple[Worker | None, Any]:
        """Return the worker whose thread this is and its task run, if the call comes from a task."""
        self._refuse_own_task()
        worker, item = here.worker, current_run.get()
        return (worker, item) if worker is not None and worker.item is item else (None, None)

    def _refuse_own_task(self) -> None:
        """Raise when a task of this very run would wait for its end."""
        item: Any = current_run.get()
        if item is not None and item.run is self and not item.given_up:
            raise DeadlockError([(item.id, f"the end of its own run {self.id}")])

    def _idle(self, item: Item | None, idle_list: list[Idle]) -> Idle | None:
        """Count a task run that waits for this run, if both use one context. Under the monitor."""
        if item is None or item.run.blocked is not self.blocked or self.finished:
            return None
        idle = self.blocked.idle(item)
        idle_list.append(idle)
        self.blocked.check()
        return idle

    def _wake_idle(self, idle_list: list[Idle]) -> None:
        """What they waited for is there. Under the monitor, in the step that brings it."""
        for idle in idle_list:
            self.blocked.active(idle)
        idle_list.clear()

    @contextmanager
    def _lend(self, worker: Worker | None, item: Any, idle: Idle | None) -> Generator[None, None, None]:
        """While a thread sleeps, others have its place: that of the task it calls, or in its pool."""
        if worker is None:
            with ExitStack() as stack:
                for lane in list(self._lanes.values()):
                    stack.enter_context(lane.workers.caller_waits())
                yield
            return
        outer = item.run
        with outer.monitor:
            outer.suspend(worker)
            outer.nested.add(self)
        if outer.stopping:
            self.cancel()
        worker.give_back()
        try:
            yield
        finally:
            outer.nested.discard(self)
            worker.take_back()
            with item.run.monitor:
                item.run.resume(worker)
                if idle is not None:
                    self.blocked.active(idle)

    def take_error(self, *, keep: bool = False) -> BaseException | None:
        """Return what the end of the run raises, or None; forget it unless it is to be kept."""
        error = self._error
        if not keep:
            self._error = None
        return error

    def abandon(self) -> None:
        """Cancel and wait for the end; for a reader that leaves. Never waits for long."""
        if not self.finished:
            self.cancel()
            item: Any = current_run.get()
            if item is not None and item.run is self:
                return  # called by a task of this run, which ends when that task does
            self.drive(lambda: self.finished, self.idle_waiters)
            self._done.wait(2 * GRACE)  # not for ever: a destructor may be called anywhere

    def interrupt(self) -> None:
        """Ctrl-C: cancel and wait for the end; a second Ctrl-C ends the waiting at once."""
        self.cancel()
        self._done.wait(2 * GRACE)

    # ---- the same on an event loop --------------------------------------------------------------

    async def _await_result(self) -> dict[str, Any]:
        await self.ended()
        return self.result()

    async def ended(self) -> None:
        """Wait for the end without blocking the event loop."""
        if not self.finished:
            self._refuse_own_task()
            await self.sleep_async(self._on_end)

    def _on_end(self, wake: Callable[[], object]) -> bool:
        if self.finished:
            return False
        self._callbacks.append(wake)
        return True

    async def sleep_async(self, register: Callable[[Callable[[], object]], bool]) -> None:
        """Sleep until the callable given to ``register`` is called; it returns False to not sleep."""
        import asyncio

        loop = asyncio.get_running_loop()
        signal = asyncio.Event()
        with self.monitor:
            sleeps = register(lambda: call_in(loop, signal.set))
        if sleeps:
            await signal.wait()

    # ---- steps: every method from here on is called under the monitor, unless it says otherwise --

    def settle(self, item: Item, output: Any, requests: Any, lane: Lane | None) -> None:
        """A task run gave its output: store it, make its successors ready.

        ``lane`` is that of a worker that is going to look for work there next.
        """
        if item.status is not RUNNING:
            return  # it was given up: what comes late changes nothing
        scheduler, task = self.scheduler, item.task
        if task.timeout is not None:
            item.timer.cancel()
        joins, feed = False, None
        if requests:
            try:
                if type(requests) is list:
                    joins = scheduler.check(requests, item)
                else:
                    feed, requests = requests, None
                    scheduler.check(feed.ahead, item)
            except Exception as error:  # what the flow cannot serve is the failure of who asked
                self._explain(item, error)
                self.failed(item, error)
                return
        name = task.name
        self.context._values[name] = output
        blocked = self.blocked
        if blocked.waiting and name in blocked.waiting:
            blocked.satisfy(name, output)
        if self.stream_buffer is not None:
            self._push(StreamChunk(item.id, output))
        if feed is not None:
            feed.scope = scheduler.open_list(item)
            scheduler.finished(item, output, None, False)
            self.fed(feed, [], False, None)
        elif scheduler.finished(item, output, requests, joins) and self._results is not None:
            self._results[name if item.number == 1 else f"{name}#{item.number}"] = output
        if self._growing:
            self._close_list(item)
        if scheduler.coalesced:
            self._tell_coalesced()
        if lane is None or len(self._lanes) > 1:
            self.dispatch(lane)
        elif (
            lane.wanted < lane.burst
            and lane.active + lane.wanted < lane.capacity
            and (len(lane.ready) > 1 or lane.feeds)
        ):
            self._send_for(lane, 1)
        if scheduler.under_way <= blocked.count:
            self._quiet()

    def failed(self, item: Item, error: BaseException) -> None:
        """A task run raised. The first failure ends the run."""
        if item.status is not RUNNING:
            return
        timer = getattr(item, "timer", None)  # it may have been stopped before it was called
        if timer is not None:
            timer.cancel()
            if item.limit is None:  # its time was up, and it was cancelled for that
                error = TaskTimeoutError(item.id, item.task.timeout)
        consequence = self.stopping and isinstance(error, TaskCancelledError | RunCancelledError)
        if not consequence:
            self._blame(error)
        self.scheduler.failed(item, Status.CANCELLED if consequence else Status.FAILED)
        self._close_list(item)
        self._after()

    def request(self, item: Item, request: NextTask) -> None:
        """A generator task yields a request. Called with no lock held; raises what refuses it."""
        with self.monitor:
            if item.status is not RUNNING or self.stopping:
                return
            scope = self._growing.get(item)
            if scope is None:
                self.scheduler.check((request,))
                scope = self._growing[item] = self.scheduler.open_list(item)
            self.scheduler.request(scope, request)
            if self.scheduler.coalesced:
                self._tell_coalesced()
            self.dispatch(None)

    def _close_list(self, item: TaskRun) -> None:
        """A task run that made requests one by one has ended: its list is complete."""
        scope = self._growing.pop(item, None)
        if scope is not None:
            self.scheduler.close_list(scope)

    def fed(self, feed: Feed, requests: Sequence[Any], ended: bool, error: BaseException | None) -> None:
        """Requests of a list were pulled."""
        scheduler = self.scheduler
        lane = None
        try:
            for request in requests:
                scheduler.request(feed.scope, request)
                lane = scheduler.tasks[request.id].lane  # type: ignore[attr-defined]
        except Exception as refused:  # what the flow cannot serve is the failure of who asked
            error = refused
        if scheduler.coalesced:
            self._tell_coalesced()
        if error is not None:
            error.add_note(f"While the next tasks of task run {feed.owner.id} were pulled (flow run {self.id}).")
            plain = isinstance(error, Exception) and not isinstance(error, SILENT)
            self._blame(error if plain else as_failure(feed.owner.id, error))
        if ended or error is not None or self.stopping:
            self.monitor.later.append((feed.close, ()))
            scheduler.close_list(feed.scope)
        else:
            # The next pull is for whoever is free where the newest task run goes.
            (lane or self._lane_of(feed)).feeds.append(feed)
        self._after()

    def suspend(self, worker: Worker) -> None:
        """The task of ``worker`` waits: it does not count as active, and another one may come."""
        lane = worker.item.task.lane
        if worker.counted:
            worker.counted = False
            lane.active -= 1
        self.scheduler.blocked()
        self.dispatch(None)

    def resume(self, worker: Worker) -> None:
        """The task of ``worker`` goes on."""
        self.scheduler.unblocked()
        if not worker.dismissed and worker in worker.item.task.lane.crew:
            worker.counted = True
            worker.item.task.lane.active += 1

    def lost(self, lane: Lane, reason: str) -> None:
        """The executor of a lane sends nobody any more."""
        lane.wanted = 0
        self._blame(ExecutorLostError(self.id, reason))
        self._after()

    def dispatch(self, lane: Lane | None) -> None:
        """Send for workers wherever there is more ready than they will take."""
        for each in self._lanes.values():
            if each.ready or each.feeds:
                self._send_for(each, each is lane)

    @property
    def movers(self) -> int:
        """Everything that could still set a value: task runs under way and lists to be pulled."""
        return self.scheduler.under_way + self.scheduler.feeds

    # ---- time -----------------------------------------------------------------------------------

    def arm(self, item: Item) -> None:
        """Start the clock of an attempt. Called by its worker, no lock held."""
        item.limit = self.clock.now() + item.task.timeout
        item.timer = self.clock.call_at(item.limit, partial(self.monitor.post, self._expire, item))

    def _expire(self, item: Item) -> None:
        """The time of an attempt is up."""
        if item.status is not RUNNING:
            return
        if item.handle is not None:  # a coroutine: cancel it, and take that for the timeout
            item.limit = None
            self.monitor.later.append((cancel_pump, (item.handle, item)))
            self._timers.append(
                self.clock.call_at(self.clock.now() + GRACE, partial(self.monitor.post, self._give_up, item))
            )
        else:
            self._give_up(item)

    def _give_up(self, item: Item) -> None:
        """The code of an attempt does not stop: go on without it."""
        if item.status is not RUNNING:
            return
        self._blame(TaskTimeoutError(item.id, item.task.timeout))
        self._dismiss(item)
        self._after()

    def _dismiss(self, item: Item) -> None:
        self.scheduler.failed(item, ABANDONED)
        self._close_list(item)
        lane = item.task.lane
        for worker in lane.crew:
            if worker.item is item:
                if worker.counted:
                    worker.counted = False
                    lane.active -= 1
                self.monitor.later.append((worker.dismiss, ()))
        self.blocked.give_up(item)

    # ---- ending ---------------------------------------------------------------------------------

    def _blame(self, error: BaseException) -> None:
        """Record a failure. The first one ends the run."""
        if not any(error is known for known in self._errors):
            self._errors.append(error)
        if not self.stopping:
            self._stop(Status.FAILED)

    def _end_early(self, status: Status, error: BaseException) -> None:
        if self.finished or self.stopping:
            return
        self._errors.append(error)
        self._stop(status)
        self._after()

    def _stop(self, status: Status) -> None:
        """Nothing starts any more, and what runs is told."""
        self.stopping = True
        self._status_at_end = status
        later = self.monitor.later
        for item in self.scheduler.stop():
            self._close_list(item)
            if item.handle is not None:  # a coroutine that no loop has got to yet, or a generator at rest
                later.append((close_unawaited, (item.handle,)))
        for lane in self._lanes.values():
            while lane.feeds:
                feed = lane.feeds.popleft()
                self.scheduler.close_list(feed.scope)
                later.append((feed.close, ()))
            if lane.on_loop:
                later.extend((cancel_pump, (worker, worker.item)) for worker in lane.crew)
        self.blocked.cancel(self)
        later.extend((nested.cancel, ()) for nested in list(self.nested))  # they leave it without the lock
        if self.stream_buffer is not None:
            # Nobody waits for room any more; chunks from before are still read.
            self.stream_buffer.attached = False
            later.extend((wake, ()) for wake in self.stream_buffer.make_room())
        self._timers.append(
            self.clock.call_at(self.clock.now() + GRACE, partial(self.monitor.post, self._abandon_rest))
        )

    def _abandon_rest(self) -> None:
        """The time to stop is over: go on without what has not stopped."""
        if self.finished:
            return
        for lane in self._lanes.values():
            for worker in list(lane.crew):
                if worker.item is not None and worker.item.status is RUNNING:
                    self._dismiss(worker.item)
        self._finish()

    def _after(self) -> None:
        """Something has changed beside a success: look at everything."""
        self.dispatch(None)
        if self.scheduler.under_way <= self.blocked.count:
            self._quiet()

    def _quiet(self) -> None:
        """Nothing is under way that could move: the run has ended, or somebody waits in vain."""
        scheduler = self.scheduler
        if self.finished:
            return
        if scheduler.done:
            self._finish()
        elif self.blocked.count:
            self.blocked.check()
        elif not scheduler.under_way and not scheduler.feeds:
            self._blame(DeadlockError(scheduler.structural_waits()))
            if scheduler.done:
                self._finish()

    def _finish(self) -> None:
        """The end: from here on nothing changes."""
        self._error = self._final_error()
        self._errors = []
        self._status = self._status_at_end if self.stopping else Status.SUCCESS
        self.finished = True
        if self._error is not None:
            self._results = None
        self._wake_idle(self.idle_readers)
        self._wake_idle(self.idle_waiters)
        later = self.monitor.later
        for timer in self._timers:
            timer.cancel()
        if self._timers:
            later.append((self.clock.tidy, ()))
        self.blocked.detach(self)
        if self.stream_buffer is not None:
            later.extend((wake, ()) for wake in self.stream_buffer.close())
        later.append((self._announce, ()))
        self._lanes = {}
        self.scheduler.forget()

    def _announce(self) -> None:
        """Tell everybody who waits for the end; no lock held."""
        self.plan.ended(self)
        self._done.set()
        for workers in self._driven:
            workers.nudge()
        for callback in self._callbacks:
            callback()

    def _final_error(self) -> BaseException | None:
        if not self._errors:
            return None
        first, *others = self._errors
        if not others:
            return first
        if isinstance(first, RunCancelledError):
            for error in others:
                self.plan.logger.warning("A task failed while run %s was cancelled", self.id, exc_info=error)
            return first
        failures = [error for error in self._errors if isinstance(error, Exception)]
        return ExceptionGroup(f"{len(failures)} failures in run {self.id}", failures)

    # ---- chunks: no lock held -------------------------------------------------------------------

    def emit(self, item: Item, chunk: StreamChunk) -> None:
        """Send an interim value of a task run; waits for room, unless that would block a loop."""
        stream = self.stream_buffer
        if stream is None or item.given_up:
            return
        if stream.full and item.handle is None:
            self.wait_for_room()
        with self.monitor:
            if not item.given_up:
                self._push(chunk)

    def wait_for_room(self) -> None:
        """Block until the reader has made room."""
        signal = threading.Lock()
        signal.acquire()
        stream = self.stream_buffer
        assert stream is not None, "only who has a chunk to send waits for room"
        if self.reads_itself():
            return  # the reader is this very thread, and cannot make room
        with self.monitor:
            sleeps = stream.wait_for_room(signal.release)
        if sleeps:
            worker = here.worker
            if worker is not None:
                worker.stall()
            signal.acquire()
            if worker is not None:
                worker.go_on()

    async def wait_for_room_async(self) -> None:
        """The same without blocking the event loop."""
        assert self.stream_buffer is not None, "only who has a chunk to send waits for room"
        await self.sleep_async(self.stream_buffer.wait_for_room)

    def wake_writers(self) -> None:
        """The reader has made room."""
        assert self.stream_buffer is not None, "only the reader of a stream calls this"
        with self.monitor:
            wakes = self.stream_buffer.make_room()
        for wake in wakes:
            wake()

    def reads_itself(self) -> bool:
        """Whether this thread is the reader's, which works while it waits."""
        return any(workers.driven_here() for workers in self._driven)

    # ---- inside ---------------------------------------------------------------------------------

    def _attach(self) -> Blocked:
        """Make blocking gets of the context wait, for as long as this run lasts."""
        with self.monitor:
            waits = self.context._waits
            if waits is None:
                waits = self.context._waits = Blocked(self.context)
            assert isinstance(waits, Blocked), "only runs attach waits"
            waits.runs.add(self)
        return waits

    def _meet(self, name: str) -> RunTask | None:
        """The scheduler meets a task: find out how it is called, and in which lane."""
        planned = self.plan.find(name)
        if planned is None:
            return None
        lane = self._lane(planned.executor, planned.is_async)
        task = RunTask(name, lane.ready, refuse=planned.refuse, collects=planned.collects)  # type: ignore[arg-type]
        task.run, task.lane, task.invoke, task.timeout = self, lane, planned.invoke, planned.timeout
        return task

    def _lane(self, executor: Any, is_async: bool) -> Lane:
        key = (id(executor), is_async)
        lane = self._lanes.get(key)
        if lane is None:
            workers = self.plan.workers(executor, is_async, self._loop)
            lane = self._lanes[key] = Lane(self, workers, on_loop=is_async)
            if workers.driven:
                self._driven.append(workers)
        return lane

    def _lane_of(self, feed: Feed) -> Lane:
        return feed.owner.task.lane  # type: ignore[no-any-return]

    def adopt(self, item: Item, awaitable: Any) -> None:
        """A plain function gave a coroutine: a loop awaits and reports it. Called with no lock held."""
        item.handle = awaitable  # what the loop finds there instead of calling the task
        try:
            with self.monitor:
                if self.stopping:
                    raise TaskCancelledError(item.id)
                self._lane(None, True).ready.append(item)
                self.dispatch(None)
        except BaseException:
            close_unawaited(awaitable)
            raise

    def _send_for(self, lane: Lane, soon: int) -> None:
        needed = lane.shortage(soon)
        if needed > 0 and not self.stopping:
            lane.wanted += needed
            self.monitor.later.extend([(lane.workers.request, (lane,))] * needed)

    def _push(self, chunk: StreamChunk) -> None:
        assert self.stream_buffer is not None, "only runs with a stream push chunks"
        if not self.stopping:
            wake = self.stream_buffer.push(chunk)
            self._wake_idle(self.idle_readers)
            if wake is not None:
                self.monitor.later.append((wake, ()))
            for workers in self._driven:
                self.monitor.later.append((workers.nudge, ()))

    def _tell_coalesced(self) -> None:
        said, self.scheduler.coalesced = self.scheduler.coalesced, []
        self.monitor.later.append((self._warn_coalesced, (said,)))

    def _warn_coalesced(self, said: list[tuple[str, Mapping[str, Any] | None, Mapping[str, Any] | None]]) -> None:
        """Comparing inputs is a user's code: no lock held."""
        for name, kept, dropped in said:
            if kept is not dropped and not surely_equal(kept, dropped):
                self.plan.logger.warning(
                    "A request for task %s was dropped, since one with other inputs is pending or running; "
                    "use spawn_another=True to run both. Dropped inputs: %r",
                    name,
                    dropped,
                    extra={"run_id": self.id, "task": name, "attempt": 1},
                )

    def _explain(self, item: Item, error: BaseException) -> None:
        """Note on a failure where it comes from."""
        note = f"In task run {item.id} of flow run {self.id} ({self.plan.flow})."
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)

    def coroutine_failed(self, worker: Any, item: Item, error: BaseException) -> bool:
        """A coroutine raised. Return False when that was the end of its worker as well."""
        import asyncio

        cancelled = isinstance(error, asyncio.CancelledError) and bool(worker.task.cancelling())
        self.report_failure(item, TaskCancelledError(item.id) if cancelled else error)
        return not cancelled

    def report_failure(self, item: Item, error: BaseException) -> None:
        """A task raised. Called by its worker, no lock held."""
        error.__traceback__ = outside_tracebacks(error)
        plain = isinstance(error, Exception) and not isinstance(error, SILENT)
        failure = error if plain else as_failure(item.id, error)
        if not isinstance(failure, TaskCancelledError):
            self._explain(item, failure)
        self.monitor.post(self.failed, item, failure)


#: What would not arrive as an error: it ends loops instead.
SILENT = (StopIteration, StopAsyncIteration)


def as_failure(task_id: str, error: BaseException) -> FlowError:
    """Return the failure that stands for one which cannot be raised as it is."""
    try:
        said = repr(error)
    except Exception:  # its own code is broken as well
        said = f"a {type(error).__name__} that cannot be shown"
    failure = TaskFailedError(task_id, said)
    failure.__cause__ = error
    return failure


def outside_tracebacks(error: BaseException) -> Any:
    """Return the traceback of a task's error without the frames of the engine that called it."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        traceback = traceback.tb_next
    return traceback if traceback is not None else error.__traceback__


def surely_equal(one: Any, other: Any) -> bool:
    """Whether two values are equal, as far as they can tell."""
    try:
        return bool(one == other)
    except Exception:  # an array says that its truth is ambiguous
        return False


def cancel_pump(worker: Any, item: Item | None) -> None:
    """Cancel what an asyncio worker awaits. Called with no lock held, from any thread."""

    def cancel() -> None:
        if worker.item is item:  # else it has gone on to another task run
            worker.task.cancel()

    if item is not None:
        call_in(worker.task.get_loop(), cancel)
