"""``FlowRun``: drives the state machine of one run; status, result, cancel, stream, report.

Everything that changes the state of a run is a *step* done under the monitor of its context: a
worker reports an outcome, a timer fires, somebody cancels. A step asks the scheduler, stores what a
task gave, shows the observer what happened, and puts off to after the lock whatever might block or
run a user's code. The loops that workers run are in ``lane``, waiting is in ``waiting``. May import:
everything in engine but session, executors.base, task, context, graph, events, report, values, interrupts,
errors; never the flow.
"""

from __future__ import annotations

import logging
import math
import os.path
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from millstream.context import Context
from millstream.engine.clock import Clock, Timer
from millstream.engine.lane import Feed, Item, Lane, RunTask, close_unawaited
from millstream.engine.limits import Limits
from millstream.engine.observe import Observer
from millstream.engine.ready import Ready
from millstream.engine.record import Failure, RunRecord
from millstream.engine.scheduler import Scheduler
from millstream.engine.states import Call, Coalesced, Counts, Place, RunTerms, Scope, Settled, Spread, TaskRun
from millstream.engine.stream import Chunks, Stream
from millstream.engine.tell import END, Teller
from millstream.engine.waiting import GRACE, Waiting, waits_somewhere
from millstream.engine.waits import Blocked, Idle, call_in
from millstream.errors import (
    CheckpointError,
    ConfigError,
    DeadlockError,
    DependencyFailedError,
    ExecutorLostError,
    FlowClosedError,
    FlowError,
    RouteError,
    RunCancelledError,
    RunTimeoutError,
    StateError,
    TaskCancelledError,
    TaskFailedError,
    TaskTimeoutError,
)
from millstream.events import shown
from millstream.executors.base import Worker, Workers
from millstream.graph import Graph
from millstream.interrupts import struck
from millstream.report import RunReport, Tally, TaskProgress
from millstream.task import check_wait
from millstream.values import NextTask, Status, StreamChunk

if TYPE_CHECKING:
    from millstream.diagram import Diagram
    from millstream.engine.enter import Entrance
    from millstream.engine.journal import Journal, Reader
    from millstream.engine.keep import Keeper
    from millstream.engine.recall import Recall
    from millstream.executors.remote.calls import Caller
    from millstream.stores.base import Entry, Store, StoredRun

RUNNING, SUCCESS, ABANDONED = Status.RUNNING, Status.SUCCESS, Status.ABANDONED
FAILED, CANCELLED, SKIPPED = Status.FAILED, Status.CANCELLED, Status.SKIPPED

_PACKAGE = os.path.dirname(os.path.dirname(__file__))

#: What so many task runs said of themselves is looked through for those that have ended.
MOST_TOLD = 1000

OnError = Literal["raise", "continue", "log"]


class Plan(Protocol):
    """What a run needs to know of its flow, as of the start of the run."""

    flow: str
    clock: Clock
    logger: logging.Logger
    max_task_runs: int | None
    max_parallel: int | None
    on_error: OnError
    limits: Limits
    teller: Teller
    graph: Graph | None

    @property
    def known_terms(self) -> Sequence[RunTerms | None]: ...
    def terms(self, name: str) -> RunTerms | None: ...
    def payload(self, run: Any) -> Any: ...
    def known(self) -> Iterable[str]: ...
    def has(self, name: str) -> bool: ...
    def workers(self, executor: Any, is_async: bool, loop: Any) -> Workers: ...
    def submit(self, run: Any, fn: Any, args: Any, kwargs: Any, depends_on: Any, call_key: str | None) -> Any: ...
    def ended(self, run: FlowRun) -> None: ...
    def diagram(self) -> Diagram: ...
    def executor_of(self, terms: Any) -> str: ...
    def show(self, run: FlowRun) -> None: ...
    def hide(self, run: FlowRun) -> None: ...


class FlowRun(Waiting):
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
        trace: bool = False,
        progress: bool = False,
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
            graph=plan.graph,
            max_task_runs=plan.max_task_runs,
            max_parallel=plan.max_parallel,
            make=Item,
        )
        self.stream_buffer = stream
        self.has_reader = False
        self.deadline: float | None = None
        self.stopping = False  #: nothing new starts, and what runs is told
        self.finished = False  #: nothing changes any more
        self.announced = False  #: everybody who waits for the end was told
        self.open = False  #: calls can still be submitted from outside
        self.is_session = False  #: calls are submitted from outside: one that fails stops no other one
        self.unasked: dict[Any, BaseException] = {}  #: failures of calls that nobody asked for yet
        self.owner: threading.Thread | None = None  #: whose work that is
        self.failures = 0  #: task runs that failed and did not end the run
        self.first_failures: list[Failure] = []  #: of each task that has failed
        self._first: BaseException | None = None  # what the first of them raised
        self.record: RunRecord | None = None  #: what became of it, after the end
        self.observer = Observer(id, plan.flow, plan.teller, self.clock, self.monitor, trace)
        self._entrance = entrance_of(plan.teller, self.observer)
        self._loop = loop
        self._lanes: dict[tuple[int, bool], Lane] = {}
        self._only_lane: Any = NO_LANE
        self._results: dict[str, Any] | None = {} if keep_results else None
        self._errors: list[BaseException] = []
        self._error: BaseException | None = None
        self._status = self._status_at_end = RUNNING
        self._known_terms, self._observed = plan.known_terms, not self.observer.times_unseen
        self._newest_lane: Any = None  # that of ``_newest_terms``
        self._newest_terms: RunTerms | None = None
        self._calls = 0  # submitted from outside
        self._called: dict[RunTerms, RunTask] = {}  # tasks of submitted calls
        self._driven: list[Workers] = []  # those that work in the thread that waits
        self._timers: list[Timer] = []
        self.idle_readers: list[Idle] = []  # tasks that wait for a chunk of this run
        self.idle_waiters: list[Idle] = []  # tasks that wait for its end
        self.nested: set[FlowRun] = set()  #: runs that tasks of this one wait for
        self.waited_by: set[Any] = set()  #: task runs, of other runs, that wait for this one
        self._growing: dict[TaskRun, Scope] = {}  # lists of generator tasks that have not ended
        self._delays: dict[TaskRun, Timer] = {}  # what ends the wait for the next attempt
        self._late: dict[TaskRun, tuple[TaskRun, float]] = {}  # attempts that wait for the code of the one before
        self._comparing = 0  # requests that coalesced, whose inputs are still to be compared
        self._compared: threading.Event | None = None  # after the end: there are none any more
        self._done = threading.Event()
        self._callbacks: list[Callable[[], object]] = []
        self.journal: Journal | None = None  #: of a durable run
        self.keeper: Keeper | None = None  #: the same
        self.recall: Recall | None = None  #: of one that goes on from its journal
        self.resumed_from: str | None = None  #: the run that this one was made from
        self.created_at: float | None = None  #: of one that goes on: when it began at first, since the epoch
        self._progress: dict[Item, TaskProgress] | None = {} if progress else None  # what tasks told; None: nobody asks
        self._most_told = MOST_TOLD
        self._last_counts: Counts | None = None  # at the end, for the same
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
        return self.announced or self.sleep(self._on_end, self.idle_waiters, timeout)

    def wait_for_result(self) -> dict[str, Any]:
        """Wait for the end, and return or raise the result, for the only one who will ask; Ctrl-C cancels the run."""
        try:
            self.wait()
        except KeyboardInterrupt:
            self.interrupt()
            raise
        return self.take_result()

    def report(self) -> RunReport:
        """Return what the run has done so far, one row a task; readable at any time, also after the end."""
        with self.monitor:
            record = RunRecord(self, self.scheduler.states(), None) if self.record is None else self.record
        return record.report()

    def tally(self) -> Tally:
        """Return how far the run is, for a display; only of one that was made with ``progress=True``."""
        with self.monitor:
            counts, told = self._last_counts, self._progress
            assert told is not None, "only a run with a display is asked how far it is"
            if counts is None:
                counts = self.scheduler.counts()
            self._forget_told()
            # A worker keeps the item that it had last; a map that waits for its items has no worker.
            items: list[Any] = [worker.item for lane in self._lanes.values() for worker in lane.crew]
            under_way = [item for item in items if item is not None and type(item.extra) is not Spread]
            running = sum(item.status is RUNNING for item in under_way)
            progress = tuple(told.values())
        failed = counts.in_vain + counts.never - counts.skipped
        done = counts.ended - counts.in_vain
        grows = counts.may_grow or (self.open and not self.finished)
        total = None if grows else done + failed + counts.skipped + counts.live + counts.expected
        waiting = max(0, counts.live - running)
        return Tally(done, failed, counts.skipped, running, waiting, total, progress)

    def add_done_callback(self, fn: Callable[[FlowRun], object]) -> None:
        """Call ``fn(run)`` when the run has ended, in the thread that ends it; at once if it has.

        What it raises is logged.
        """

        def call() -> None:
            try:
                fn(self)
            except Exception:
                self.plan.logger.exception("A callback of run %s failed", self.id)

        with self.monitor:
            waits = self._on_end(call)
        if not waits:
            call()

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

    async def _await_result(self) -> dict[str, Any]:
        await self.ended()
        return self.result()

    def take_error(self, *, keep: bool = False) -> BaseException | None:
        """Return what the end of the run raises, or None; forget it unless it is to be kept."""
        error = self._error
        if not keep:
            self._error = None
        return error

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """What a notebook shows: the report, as things stand."""
        return {**self.report()._repr_mimebundle_(), "text/plain": repr(self)}

    def __repr__(self) -> str:
        scheduler = self.scheduler
        state = str(self._status).lower()
        if not self.finished:
            state += f", {scheduler.under_way} under way, {len(scheduler.pending)} pending"
            waits = sorted(key if isinstance(key, str) else key.id for key in self.blocked.waiting)
            if waits:
                state += f", waiting for {', '.join(map(repr, waits[:3]))}"
        return f"<FlowRun {self.id}: {state}>"

    # ---- starting and waiting -------------------------------------------------------------------

    def begin(self, requests: Sequence[NextTask], timeout: float | None, more: Mapping[str, Any] | None = None) -> None:
        """Schedule the first task runs and send for workers.

        Args:
            requests: the first ones.
            timeout: seconds for the run.
            more: values for the context of one that goes on.

        Raises:
            FlowError: they cannot be scheduled; the run has ended then.
        """
        self.expect()
        with self.monitor:
            if self.stopping:  # it was cancelled before it began
                if self._entrance is not None:
                    self.observer.never_began_run()
                return
            self.observer.run_began()
            try:
                self.scheduler.start(requests)
                if self.recall is not None:
                    self.recall.replay()
                    for key, value in (more or {}).items():
                        self.recall.set(key, value)
                    self.recall.go_on()
            except BaseException as error:
                if self.recall is None:
                    self._end_early(Status.FAILED, error)
                    raise
                self.recall.refused()
                self._end_early(Status.FAILED, error)
                if not self.finished:  # nothing of it is called, nor in a queue
                    self._finish()
                if isinstance(error, FlowError) and not isinstance(error, CheckpointError):
                    raise CheckpointError(f"Run {self.id} cannot go on with the tasks of now: {error}") from error
                raise
            if timeout is not None:
                self.deadline = self.clock.now() + timeout
                expire = partial(self._end_early, Status.FAILED, RunTimeoutError(self.id, timeout))
                self._timers.append(self.clock.call_at(self.deadline, partial(self.monitor.post, expire)))
            self._after()

    def expect(self) -> None:
        """The run is about to begin: those who watch it shall be there. No lock held."""
        self.observer.expect()
        if self._progress is not None:
            self.plan.show(self)
        if self._entrance is not None:
            self.variables.run(self._entrance.run)

    # ---- steps: every method from here on is called under the monitor, unless it says otherwise --

    def settle(self, item: Item, output: Any, requests: Any, lane: Lane | None, at: float | None = None) -> None:
        """A task run gave its output: store it, make its successors ready.

        ``lane`` is that of a worker that is going to look for work there next; ``at``: when it ended, if not now.
        """
        if item.status is not RUNNING:
            self._came_late(item)  # it was given up: what comes late changes nothing
            return
        scheduler, task = self.scheduler, item.task
        joins, feed, changed = False, None, None
        if requests or task.terms.says_more:
            try:
                if task.terms.outputs is not None:
                    changed = self._changed_by(task, output)
                if task.terms.routes is not None:
                    requests = self._routed(item, output, requests)
                if type(requests) is list:
                    joins = scheduler.check(requests, item)
                elif requests:
                    feed, requests = requests, ()
                    scheduler.check(feed.ahead, item)
            except Exception as error:  # what the flow cannot serve is the failure of who asked
                self._explain(item, error)
                self._fail(item, error, FAILED)
                return
        extra = item.extra
        if extra is not None and type(extra) is Place:
            self._settle_part(item, output, requests, joins, feed, at)
            return
        name = task.name
        self.context._values[name] = output
        blocked = self.blocked
        if blocked.waiting and name in blocked.waiting:
            blocked.satisfy(name, output)
        if changed is not None:
            for key, value in changed.items():
                self.context._put(key, value)
        if self.stream_buffer is not None and (self.keeper is None or item.path not in self.keeper.delivered):
            self._push(StreamChunk(item.id, output))
        task.output = output
        task.ended = now = self.clock.now() if at is None else at
        if task.watched:
            if extra is not None or not task.terms.unseen or self._entrance is not None:
                self._attempt_over(item, output)
            self.observer.attempt_succeeded(item, output, now)
        if feed is not None:
            feed.scope = scheduler.open_list(item)
            scheduler.finished(item, output, (), False)
            self.fed(feed, [], False, None)
        elif scheduler.finished(item, output, requests, joins) and self._results is not None:
            self._results[name if item.number == 1 else f"{name}#{item.number}"] = output
        if extra is not None:
            extra.forget()  # a submitted call
        if self._growing:
            self._close_list(item)
        if scheduler.outbox:
            self._see_to_outbox()
        if lane is not self._only_lane:
            self.dispatch(lane)
        elif (
            lane.wanted < lane.burst
            and lane.active + lane.wanted < lane.capacity
            and (len(lane.ready) > 1 or lane.feeds)
        ):
            self._send_for(lane, 1)
        if scheduler.under_way <= blocked.count:
            self._quiet()

    def _settle_part(
        self, item: Item, output: Any, requests: Any, joins: bool, feed: Feed | None, at: float | None
    ) -> None:
        """An item of a map gave its output; the last one finishes the map."""
        parent = item.extra.parent
        self._attempt_over(item, output)
        self.observer.attempt_succeeded(item, output, self.clock.now() if at is None else at)
        if feed is not None:
            feed.scope = self.scheduler.open_list(item)
        self.scheduler.finished(item, output, requests, joins)
        if feed is not None:
            self.fed(feed, [], False, None)
        if self._growing:
            self._close_list(item)
        outputs = self.scheduler.mapped(parent)
        if outputs is not None:
            self.settle(parent, outputs, None, None)
        else:
            self._after()

    def _routed(self, item: Item, output: Any, requests: Any) -> Any:
        """Return the requests of a task with routes: those that it made, or what its output says.

        Raises:
            RouteError: it chose what is none of its routes.
        """
        task = item.task
        if requests is None and getattr(item, "chose", False):
            return []
        if requests is None and not item.requested:
            chosen = choice_of(task.name, output, task.terms.routes)
            if chosen is None:
                return None
            payload = self.plan.payload(item)
            # What a run of ``targets=`` leaves out may be chosen, and does not run.
            return [
                NextTask(name, {"payload": payload if sent is NOTHING else sent})
                for name, sent in chosen.items()
                if self.plan.has(name)
            ]
        for request in requests if type(requests) is list else getattr(requests, "ahead", ()):
            self._refuse_no_route(item, request)
        return [each for each in requests if self.plan.has(each.id)] if type(requests) is list else requests

    def _changed_by(self, task: RunTask, output: Any) -> dict[str, Any]:
        """Return the keys of the context that a task writes its output to, with their new values.

        Raises:
            ConfigError: it cannot be written there.
        """
        try:
            return task.terms.outputs.written(self.context._values, output)  # type: ignore[no-any-return]
        except LookupError as error:
            raise ConfigError(f"outputs of task {task.name}", str(error)) from error

    def _refuse_no_route(self, item: Item, request: Any) -> None:
        routes = item.task.terms.routes
        if routes is not None and isinstance(request, NextTask) and request.id not in routes:
            raise RouteError(item.task.name, request.id, routes)

    def spread(self, item: Item, items: list[Any]) -> bool:
        """A task is mapped over items; False when there are none. Called with no lock held."""
        with self.monitor:
            if item.status is not RUNNING or self.stopping:
                raise TaskCancelledError(item.id)
            spread = self.scheduler.spread(item, items)
            if self.scheduler.outbox:
                self._see_to_outbox()
            self.dispatch(None)
        return spread

    def request(self, item: Item, request: NextTask) -> None:
        """A generator task yields a request. Called with no lock held; raises what refuses it."""
        with self.monitor:
            if item.status is not RUNNING or self.stopping:
                return
            self._refuse_no_route(item, request)
            if item.task.terms.routes is not None and not self.plan.has(request.id):
                item.chose = True  # something that this run leaves out
                return
            scope = self._growing.get(item)
            if scope is None:
                self.scheduler.check((request,))
            keep = None if self.journal is None else self.journal.asking(item, request)
            if scope is None:
                scope = self._growing[item] = self.scheduler.open_list(item)
            self.scheduler.request(scope, request)
            if keep is not None:
                keep()
            if self.scheduler.outbox:
                self._see_to_outbox()
            self.dispatch(None)

    def _close_list(self, item: TaskRun) -> None:
        """A task run that made requests one by one has ended: its list is complete."""
        scope = self._growing.pop(item, None)
        if scope is not None:
            self.scheduler.close_list(scope)

    def fed(self, feed: Feed, requests: Sequence[Any], ended: bool, error: BaseException | None) -> None:
        """Requests of a list were pulled."""
        scheduler = self.scheduler
        lane, made = None, 0
        try:
            for request in requests:
                self._refuse_no_route(feed.owner, request)
                scheduler.request(feed.scope, request)
                lane = scheduler.asked[request.id].lane  # type: ignore[attr-defined]
                made += 1
        except Exception as refused:  # what the flow cannot serve is the failure of who asked
            error = refused
        if isinstance(error, KeyboardInterrupt) and struck():  # as in ``report_failure``
            ended, error = True, None
            self._end_early(CANCELLED, RunCancelledError(self.id))
        if error is not None:
            add_note(error, f"While the next tasks of task run {feed.owner.id} were pulled (flow run {self.id}).")
            plain = isinstance(error, Exception) and not isinstance(error, SILENT)
            failure = error if plain else as_failure(feed.owner.id, error)
            self._note_failure(feed.owner.task, failure)
            self._blame_task(feed.owner, failure)
        elif self.journal is not None:
            self.journal.pulled(feed.owner, made, ended)
        if ended or error is not None or self.stopping:
            self.monitor.later.append((feed.close, ()))
            scheduler.close_list(feed.scope)
        else:
            # The next pull is for whoever is free where the newest task run goes.
            (lane or self._lane_of(feed)).feeds.append(feed)
        self._after()

    # ---- attempts that fail ---------------------------------------------------------------------

    def failed(self, item: Item, error: BaseException) -> None:
        """A task run raised. It is tried again, or has failed."""
        if item.status is not RUNNING:
            self._came_late(item)
            return
        timer = getattr(item, "timer", None)  # it may have been stopped before it was called
        if timer is not None:
            timer.cancel()
            if item.limit is None:  # its time was up, and it was cancelled for that
                error = TaskTimeoutError(item.id, item.task.terms.timeout)
                self._explain(item, error)
        withdrawn = isinstance(item.extra, Call) and item.extra.withdrawn
        if (self.stopping or withdrawn) and isinstance(error, TaskCancelledError | RunCancelledError):
            self._fail(item, error, CANCELLED)
        elif not self._tries_again(item, error, FAILED):
            self._fail(item, error, FAILED)

    def _tries_again(self, item: Item, error: BaseException, status: Status, *, goes_on: bool = False) -> bool:
        """Schedule the next attempt, if there is one; not before the code of this one, which ``goes_on``, has ended."""
        retry = item.task.terms.retry
        raised = error.__cause__ if type(error) is TaskFailedError and error.__cause__ is not None else error
        if retry is None or self.stopping or not retry.again(raised, item.attempt):
            return False
        if type(item.extra) is Place and item.extra.parent.status is not RUNNING:
            return False  # its map has failed
        delay = retry.delay(item.attempt)
        self._attempt_failed(item, error, delay, status)
        again: Any = self.scheduler.retry(item, status)
        self._close_list(item)
        if hasattr(item, "calls"):
            again.calls = item.calls  # as for requests: calls of another attempt are others
        if hasattr(item, "call_keys"):
            again.call_keys = item.call_keys
        self.observer.retried(again, delay, error)
        due = self.clock.now() + delay
        if self.keeper is not None:
            self.keeper.retried(item, due, error)
        if goes_on:
            self._late[item] = (again, due)  # attempts never overlap
        else:
            self._delay(again, due)
        self._after()
        return True

    def _delay(self, item: TaskRun, due: float) -> None:
        """An attempt waits for its time, with no worker."""
        if due <= self.clock.now():
            self.scheduler.due(item)
        else:
            self._delays[item] = self.clock.call_at(due, partial(self.monitor.post, self._due, item))

    def _due(self, item: TaskRun) -> None:
        self._delays.pop(item, None)
        if not self.stopping:
            self.scheduler.due(item)
            self._after()

    def _came_late(self, item: Item) -> None:
        """The code of an attempt that was given up has ended after all."""
        waiting = self._late.pop(item, None)
        if waiting is not None and not self.stopping:
            self._delay(*waiting)
            self._after()

    def _fail(self, item: Item, error: BaseException, status: Status) -> None:
        """A task run has failed for good, or was cancelled or given up; and the map that it is an item of."""
        self._attempt_failed(item, error, None, status)
        if self.keeper is not None and status is not CANCELLED:
            self.keeper.failed(item, status, error)
        mapped: Any = item.extra.parent if type(item.extra) is Place else None
        parent = None if mapped is None else self._unmap(mapped)
        if status is not CANCELLED:
            self._note_failure((parent or item).task, error)
            self._blame_task(parent or item, error)  # before anything could start because of its end
        for ended in (item, parent):
            if ended is not None and ended.status is RUNNING:
                ended.task.ended = self.clock.now()
                self.scheduler.failed(ended, FAILED if ended is parent and status is ABANDONED else status)
                self._close_list(ended)
        if isinstance(item.extra, Call):
            item.extra.fail(self, error, cancelled=status is CANCELLED)
            item.extra.forget()
        self._after()

    def _unmap(self, item: Item) -> Item | None:
        """An item of a map failed, so the map does: those that have not begun never do. None: it had failed before."""
        if item.status is not RUNNING:
            return None
        self._give_back([part for part in self.scheduler.unmap(item) if self.scheduler.cancel(part)])
        return item

    def _note_failure(self, task: RunTask, error: BaseException) -> None:
        """Keep the first failure of a task for the report."""
        if task.failure is None:
            task.failure = Failure(error)
            self.first_failures.append(task.failure)
            if task.node is None:  # else what depends on it will have the error as its cause
                self.monitor.later.append((task.failure.digest, ()))

    def _blame_task(self, item: Item, error: BaseException) -> None:
        """A task run has failed for good, by itself: what that means for the run."""
        called = isinstance(item.extra, Call)
        if called and self.keeper is not None:
            self.keeper.call_failed(item.extra)
        if self.plan.on_error == "raise" and not called and not self.is_session:
            self._blame(error)
            return
        self.failures += 1
        if self._first is None:  # its own truth may be broken
            self._first = error
        if self.plan.on_error == "log":
            self.monitor.later.append((self.plan.teller.log_failure, (self.id, item.id, error)))
        elif self.plan.on_error == "raise":
            # Raised at the end of the run, unless somebody asks for it before.
            self.unasked[item.extra.handle if called else item] = error

    def _see_to_outbox(self) -> None:
        """Do what the scheduler leaves to the driver."""
        scheduler, plan = self.scheduler, self.plan
        while scheduler.outbox:
            said, scheduler.outbox = scheduler.outbox, []
            wanting = [entry for entry in said if isinstance(entry, TaskRun)]
            if self.recall is not None:
                for each in [each for each in wanting if self.recall.is_done(each)]:
                    wanting.remove(each)
                    scheduler.granted(each)
            if wanting:
                self.monitor.later.append((plan.limits.ask, (wanting,)))
            for entry in said:
                if isinstance(entry, TaskRun):
                    continue
                if isinstance(entry, Settled):
                    self._settled_early(entry)
                elif isinstance(entry, Coalesced):
                    self._comparing += 1
                    self.monitor.later.append((self._warn_coalesced, (entry,)))
                else:
                    self._blame(entry)

    def granted(self, item: Item) -> None:
        """The limits that a task run uses were taken for it."""
        if self.scheduler.granted(item):
            self._after()
        else:
            self._give_back([item])

    def _give_back(self, items: Iterable[TaskRun]) -> None:
        """Attempts are over, or will never be: the limits that they have, or wait for, are for others."""
        users = [item for item in items if item.task.terms.uses]
        if users:
            self.monitor.later.append((self.plan.limits.give_back, (users,)))

    def _settled_early(self, entry: Settled) -> None:
        """A task run, or a task that was expected, ended without a worker."""
        task: Any = entry.task
        run: Any = entry.run
        run_id = task.name if run is None else run.id
        task.ended = self.clock.now()
        if entry.status is SKIPPED:
            self.observer.skipped(task.name, run_id, entry.reason)
        elif entry.error is not None:
            self.observer.never_began(task.name, run_id, entry.error)
        if isinstance(entry.error, DependencyFailedError):
            entry.error.__cause__ = self._cause_of(entry.error, run)
        if self.keeper is not None:
            self.keeper.settled(entry)
        if entry.error is not None:
            self._note_failure(task, entry.error)
            if isinstance(entry.error, DependencyFailedError):
                self.failures += 1  # what failed has been told already
            else:
                self._blame_task(run, entry.error)
            if run is not None and isinstance(run.extra, Call):
                run.extra.fail(self, entry.error, cancelled=False)
                run.extra.forget()

    def _cause_of(self, error: DependencyFailedError, run: Any) -> BaseException | None:
        """Return the failure at the root of another one: the whole chain would be told again in each of its links."""
        cause: BaseException | None = None
        if run is not None and isinstance(run.extra, Call) and run.extra.because is not None:
            cause = run.extra.because.error
        elif error.failed:
            task: Any = self.scheduler.state(error.failed[0].partition("#")[0])
            cause = None if task is None or task.failure is None else task.failure.error
        return cause.__cause__ if isinstance(cause, DependencyFailedError) else cause

    # ---- what a durable run keeps ---------------------------------------------------------------

    def keep_in(self, store: Store) -> None:
        """It has been created, or claimed, in a store, and has not begun: keep there what happens."""
        from millstream.engine.journal import Journal
        from millstream.engine.keep import Keeper

        fails = partial(self.monitor.post, self._end_early, FAILED)
        self.journal = Journal(store, self.id, self.observer.wall, fails)
        self.keeper = Keeper(self, self.journal, self.settle)
        self.settle = self.keeper.settle  # type: ignore[method-assign]  # a question less for all others
        self.context._journals = (*self.context._journals, self.journal)

    def go_on_from(
        self, reader: Reader, entries: Iterable[Entry], keys: Sequence[int], known: Iterable[str], was: StoredRun | None
    ) -> None:
        """It goes on from a journal, and has not begun; see ``Recall``. ``keys`` are those of its scheduler."""
        from millstream.engine.recall import Recall

        self.scheduler.keys, self.scheduler.recalls = keys, True
        self.recall = Recall(self, reader, entries, known, was)
        self.created_at = None if was is None else was.created_at

    # ---- submitted calls ------------------------------------------------------------------------

    def submit_call(
        self,
        name: str,
        call: Call,
        terms: RunTerms,
        needs: Iterable[Call],
        parent: Item | None,
        key: str | None = None,
    ) -> int:
        """A call is submitted, from inside of the task run ``parent`` or from outside; return the path of its task run.

        Raises:
            FlowError: it cannot be, since the run has ended or ends; nothing has changed.
            CheckpointError: the run goes on, and another call was in this place.
        """
        given_up = parent is not None and parent.given_up
        if parent is not None and parent.status is not RUNNING:
            parent = None  # a callback, or a thread that the task has left behind
        if given_up or self.stopping or (parent is None and not self.open):
            raise FlowClosedError(f"Run {self.id}")
        task = self._called.get(terms)
        if task is None:
            lane = self._lane(terms.executor, terms.is_async)
            task = self._called[terms] = RunTask(lane, name, terms, None, True)
            if self._entrance is not None:
                self._entrance.stand_at(task)
            self.scheduler.called.append(task)
        if key is not None:
            from millstream.engine.journal import stable

            number = stable(key)
            path = hash((0 if parent is None else parent.path, 5, number))
            if parent is not None:
                if not hasattr(parent, "call_keys"):
                    parent.call_keys = {}
                parent.call_keys.setdefault(number, getattr(parent, "calls", 0))
        elif parent is None:
            self._calls += 1
            path = hash((2, self._calls))
        else:
            parent.calls = getattr(parent, "calls", 0) + 1
            path = hash((parent.path, 3, parent.calls))
        if self.recall is not None:
            self.recall.check_call(name, path, getattr(call, "digest", None))
        needs = list(needs)
        if self.keeper is not None:
            self.keeper.submitted(call, path, needs, parent)
        self.scheduler.submit(task, path, call, needs, None if parent is None else parent.scope)
        if self._results:
            for need in needs:  # what another call takes is no result of the run
                self._results.pop(need.id, None)
        if self.scheduler.outbox:
            self._see_to_outbox()
        self.dispatch(None)
        return path

    def submit_known(self, name: str, path: int, call: Call, scope: Scope | None) -> None:
        """A call that has finished had been submitted by a task run that has finished; its callable is not needed."""
        terms = self.plan.terms(name) or RunTerms(None, _never, is_async=False)
        lane = self._lane(terms.executor, terms.is_async)
        task = RunTask(lane, name, terms, None, True)
        self.scheduler.called.append(task)
        self.scheduler.submit(task, path, call, (), scope)

    def cancel_call(self, call: Call) -> None:
        """A submitted call is cancelled: it has ended, whatever its code still does."""
        item: Any = call.run
        later = self.monitor.later
        if item.status is RUNNING:
            if item.handle is None:
                self._dismiss(item)
            elif hasattr(item.handle, "task"):
                later.append((cancel_pump, (item.handle, item)))
                self.blocked.give_up(item)
            else:  # a coroutine that no loop has got to yet, or a generator at rest
                later.append((close_unawaited, (item.handle,)))
            self._attempt_failed(item, TaskCancelledError(item.id), None, CANCELLED)
            self.scheduler.failed(item, CANCELLED)
            self._close_list(item)
        elif self.scheduler.cancel(item):
            delay = self._delays.pop(item, None)
            if delay is not None:
                delay.cancel()
                later.append((self.clock.tidy, ()))
            self._give_back([item])
        # Else a worker has just taken it, and finds that it has no handle any more.
        call.fail(self, TaskCancelledError(item.id), cancelled=True)
        call.forget()
        if self.keeper is not None:
            self.keeper.call_ended(call)
        self._after()

    # ---- attempts that begin and end ------------------------------------------------------------

    def began(self, item: Item) -> None:
        """An attempt of a task begins that has a timeout, or uses limits. Called by its worker, no lock held."""
        terms = item.task.terms
        if terms.timeout is not None:
            self.start_time(item)
        if terms.uses:
            self.plan.limits.began(item, item.since)

    def progressed(self, item: Item, done: float, total: float | None) -> None:
        """A task run says how far it has got."""
        if not item.given_up:
            self.observer.progressed(item, done, total)
            if self._progress is not None:
                self._progress.pop(item, None)  # the one that told last comes last
                self._progress[item] = TaskProgress(item.id, done, total)
                if len(self._progress) > self._most_told:  # nobody looks: the display has ended
                    self._forget_told()
                    self._most_told = max(MOST_TOLD, 2 * len(self._progress))

    def _forget_told(self) -> None:
        """What task runs that have ended said of themselves is of no use any more."""
        told = self._progress or {}
        for item in [item for item in told if item.status is not RUNNING]:
            del told[item]

    def start_time(self, item: Item) -> None:
        """The time of an attempt begins."""
        if not item.given_up:
            item.limit = self.clock.now() + item.task.terms.timeout
            item.timer = self.clock.call_at(item.limit, partial(self.monitor.post, self._expire, item))

    def stop_time(self, item: Item) -> None:
        """The code of an attempt stands in line somewhere: its time has not begun after all."""
        item.timer.cancel()
        item.limit = math.inf

    def _attempt_over(self, item: Item, output: Any) -> None:
        """An attempt succeeded that has a timeout, limits or variables of its own, or is that of a submitted call."""
        terms = item.task.terms
        if terms.timeout is not None:
            item.timer.cancel()
        if terms.uses:
            self._give_back([item])
        if isinstance(item.extra, Call):
            item.extra.succeed(self, output)
        if getattr(item, "variables", None) is not None:
            item.variables = None  # they have the task run as the current one: no circle

    def _attempt_failed(self, item: Item, error: BaseException, delay: float | None, status: Status) -> None:
        """An attempt failed, or was cancelled or given up while it ran."""
        task, timer = item.task, getattr(item, "timer", None)
        if timer is not None:
            timer.cancel()
        if delay is None:
            task.ended = self.clock.now()
        if getattr(item, "variables", None) is not None:
            item.variables = None  # as above
        self._give_back([item])
        # What was given up since the run ends is no failure of its own.
        at_end = self.stopping and isinstance(error, TaskCancelledError)
        self.observer.attempt_failed(item, error, delay, status, silent=at_end)

    # ---- workers that wait, and workers that are missing ----------------------------------------

    def suspend(self, worker: Worker) -> None:
        """The task of ``worker`` waits: it does not count as active, and another one may come."""
        item: Any = worker.item
        lane = item.task.lane
        if worker.counted:
            worker.counted = False
            lane.active -= 1
        self.wait_in(item)

    def resume(self, worker: Worker) -> None:
        """The task of ``worker`` goes on."""
        self.go_on_in(worker.item)
        if not worker.dismissed and worker in worker.item.task.lane.crew:
            worker.counted = True
            worker.item.task.lane.active += 1

    def wait_in(self, item: Any) -> None:
        """A task run waits, in its own code or in a coroutine that it made: it leaves room for others."""
        if item.status is RUNNING:  # else it is a callback, or late code, that waits
            waits = item.blocked = getattr(item, "blocked", 0) + 1
            if waits == 1:
                self.scheduler.blocked(item.task)
        self._see_to_outbox()
        self.dispatch(None)

    def go_on_in(self, item: Any) -> None:
        """One of its waits is over."""
        if getattr(item, "blocked", 0):
            item.blocked -= 1
            if not item.blocked:
                self.scheduler.unblocked(item.task)

    def lost(self, lane: Lane, reason: str, cause: BaseException | None = None) -> None:
        """The executor of a lane sends nobody any more."""
        lane.wanted = 0
        error = ExecutorLostError(self.id, reason)
        error.__cause__ = cause
        if not any(isinstance(known, ExecutorLostError) for known in self._errors):  # each worker finds out
            self._blame(error)
        self._after()

    def dispatch(self, lane: Lane | None) -> None:
        """Send for workers wherever there is more ready than they will take."""
        if self.recall is not None:
            self.recall.serve()
            while self.scheduler.outbox:
                self._see_to_outbox()
                self.recall.serve()
        for each in self._lanes.values():
            if each.feeds or len(each.ready):
                self._send_for(each, each is lane)

    @property
    def movers(self) -> int:
        """Everything that could still set a value: task runs under way, lists to be pulled, what waits for its time."""
        scheduler = self.scheduler
        movers = scheduler.under_way + scheduler.feeds + len(scheduler.delayed)
        if self.open and not waits_somewhere(self.owner):
            movers += 1  # somebody outside may submit calls, or set values
        if scheduler.limited:
            movers += self.plan.limits.may_move(scheduler.limited, self.blocked.runs)
        return movers

    # ---- time -----------------------------------------------------------------------------------

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
        error = TaskTimeoutError(item.id, item.task.terms.timeout)
        self._explain(item, error)
        self._dismiss(item)
        status = FAILED if item.task.lane.workers.kills else ABANDONED
        if not self._tries_again(item, error, status, goes_on=True):
            self._fail(item, error, status)

    def _dismiss(self, item: Item) -> None:
        """The worker of an attempt goes on without it."""
        lane = item.task.lane
        for worker in lane.crew:
            if worker.item is item:
                if worker.counted:
                    worker.counted = False
                    lane.active -= 1
                self.monitor.later.append((worker.dismiss, (item,)))
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
        stopped: list[Any] = self.scheduler.stop()
        for item in stopped:
            self._close_list(item)
            if isinstance(item.extra, Call):
                item.extra.fail(self, TaskCancelledError(item.id), cancelled=True)
                item.extra.forget()
            if item.handle is not None:  # a coroutine that no loop has got to yet, or a generator at rest
                later.append((close_unawaited, (item.handle,)))
        self._give_back(stopped)
        self._late.clear()
        for delay in self._delays.values():
            delay.cancel()
        self._timers += self._delays.values()  # to be tidied away at the end
        self._delays.clear()
        self.open = False
        for lane in self._lanes.values():
            while lane.feeds:
                feed = lane.feeds.popleft()
                self.scheduler.close_list(feed.scope)
                later.append((feed.close, ()))
            for worker in lane.crew:  # a cancelled call has ended, whatever its code still gives
                called: Any = worker.item
                if called is not None and called.status is RUNNING and isinstance(called.extra, Call):
                    called.extra.fail(self, TaskCancelledError(called.id), cancelled=True)
            if lane.on_loop:
                later.extend((cancel_pump, (worker, worker.item)) for worker in lane.crew)
            elif lane.workers.remote:
                later.extend((cast("Caller", worker).stop, (worker.item,)) for worker in lane.crew)
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
                item: Any = worker.item
                if item is not None and item.status is RUNNING:
                    status = CANCELLED if lane.workers.kills else ABANDONED
                    self._attempt_failed(item, TaskCancelledError(item.id), None, status)
                    self.scheduler.failed(item, status)
                    self._close_list(item)
                    if isinstance(item.extra, Call):
                        item.extra.fail(self, TaskCancelledError(item.id), cancelled=True)
                    self._dismiss(item)
        self._finish()

    def _after(self) -> None:
        """Something has changed beside a success: look at everything."""
        if self.scheduler.outbox:
            self._see_to_outbox()
        self.dispatch(None)
        if self.scheduler.under_way <= self.blocked.count:
            self._quiet()

    def _quiet(self) -> None:
        """Nothing is under way that could move: the run has ended, or somebody waits in vain."""
        scheduler = self.scheduler
        if self.finished or (self.recall is not None and self.recall.replaying and not self.stopping):
            return
        if scheduler.done:
            if not self.open:
                self._finish()
        elif self.blocked.count:
            self.blocked.check()
        elif not self.movers:
            self._blame(DeadlockError(scheduler.structural_waits()))
            if scheduler.done:
                self._finish()

    def _finish(self) -> None:
        """The end: from here on nothing changes."""
        self._error = self._final_error()
        self._errors = []
        why = self._first if self._error is None else self._error
        self._first = None
        self._status = self._status_at_end if self.stopping else FAILED if self.failures else SUCCESS
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
        if self.stream_buffer is not None and not self._ends_late:
            later.extend((wake, ()) for wake in self.stream_buffer.close())
        self.observer.run_ended(self._status, why)
        if self._comparing:
            self._compared = threading.Event()
        if self.journal is not None:
            self.context._journals = tuple(each for each in self.context._journals if each is not self.journal)
        later.append((self._deliver, (why,)))
        if self._progress is not None:
            self._last_counts = self.scheduler.counts()
        self.record = RunRecord(self, self.scheduler.states(), why)
        self.scheduler.forget()
        later.append((self.record.let_go, ()))
        self._lanes, self._only_lane, self._newest_lane, self._called = {}, NO_LANE, None, {}

    def announce(self) -> None:
        """Tell everybody who waits for the end; no lock held."""
        with self.monitor:
            if self.announced or not self.finished:
                return
            self.announced = True
            callbacks, self._callbacks = self._callbacks, []
        self.plan.ended(self)
        self._done.set()
        self.nudge()
        for callback in callbacks:
            callback()

    def _final_error(self) -> BaseException | None:
        if not self.is_session:  # that raises them itself
            known = set(map(id, self._errors))
            self._errors += [error for error in self.unasked.values() if id(error) not in known]
        if not self._errors:
            return None
        first, *others = self._errors
        if not others:
            return first
        if isinstance(first, RunCancelledError | RunTimeoutError):
            for error in others:
                self.monitor.later.append((self.plan.teller.log_failure, (self.id, None, error)))
            return first
        failures = [error for error in self._errors if isinstance(error, Exception)]
        return ExceptionGroup(f"{len(failures)} failures in run {self.id}", failures)

    # ---- inside ---------------------------------------------------------------------------------

    @property
    def _ends_late(self) -> bool:
        """Whether the stream ends after what the journal and the display say last."""
        return self.journal is not None or self._progress is not None

    @property
    def enters(self) -> bool:
        """Whether hooks set up what tasks find."""
        return self._entrance is not None

    def expects(self, task: RunTask) -> bool:
        """Whether edges may still lead to a task."""
        edges = self.scheduler.edges
        return edges is not None and task.node is not None and bool(edges.expected[task.node])

    def _attach(self) -> Blocked:
        """Make blocking gets of the context wait, for as long as this run lasts."""
        with self.monitor:
            waits = self.context._waits
            if waits is None:
                waits = self.context._waits = Blocked(self.context)
            assert isinstance(waits, Blocked), "only runs attach waits"
            waits.runs.add(self)
        return waits

    def _meet(self, name: str, node: int | None) -> RunTask | None:
        """The scheduler meets a task: find out how it is called, and in which lane."""
        terms = (None if node is None else self._known_terms[node]) or self.plan.terms(name)
        if terms is None:
            return None
        lane = self._newest_lane if terms is self._newest_terms else self._lane_for(terms)
        task = RunTask(lane, name, terms, node, self._observed or not terms.unseen)
        if terms.each is not None:
            task.each = RunTask(lane, name, terms.each, None, True)
        if self._entrance is not None:
            self._entrance.stand_at(task)
        return task

    def _lane_for(self, terms: RunTerms) -> Lane:
        """Return the lane of tasks of a kind; most tasks of a flow are of one kind."""
        lane = self._newest_lane = self._lane(terms.executor, terms.is_async)
        self._newest_terms = terms
        return lane

    def _lane(self, executor: Any, is_async: bool) -> Lane:
        key = (id(executor), is_async)
        lane = self._lanes.get(key)
        if lane is None:
            workers = self.plan.workers(executor, is_async, self._loop)
            ready = Ready() if self.recall is None else self.recall.queue()
            lane = self._lanes[key] = Lane(self, workers, ready, on_loop=is_async)
            self._only_lane = lane if len(self._lanes) == 1 and self.recall is None else NO_LANE
            if workers.driven:
                self._driven.append(workers)
        return lane

    def _lane_of(self, feed: Feed) -> Lane:
        return feed.owner.task.lane  # type: ignore[no-any-return]

    def asked_for(self, handle: Any) -> None:
        """Somebody knows of the failure of a call. No lock held."""
        self.unasked.pop(handle, None)
        if self.keeper is not None:
            self.monitor.post(self.keeper.call_asked_for, handle)

    def adopt(self, item: Item, awaitable: Any) -> None:
        """A plain function gave a coroutine: a loop awaits and reports it. Called with no lock held."""
        item.handle = awaitable  # what the loop finds there instead of calling the task
        try:
            with self.monitor:
                if self.stopping:
                    raise TaskCancelledError(item.id)
                ready = self._lane(None, True).ready
                (ready.rank if item.priority else ready.put)(item)
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

    def _warn_coalesced(self, entry: Coalesced) -> None:
        """Comparing inputs is a user's code: no lock held."""
        kept, dropped, name = entry.kept, entry.dropped, entry.task.name
        try:
            if kept is not dropped and not surely_equal(kept, dropped):
                self.monitor.post(self.observer.coalesced, name, kept or {}, dropped or {})
        finally:
            self.monitor.post(self._has_compared)

    def _has_compared(self) -> None:
        self._comparing -= 1
        if not self._comparing and self._compared is not None:
            self._compared.set()

    def _deliver(self, why: BaseException | None) -> None:
        """The run has ended: what other threads are about to tell of it comes first, unless that takes too long."""
        if self.keeper is not None:
            error = self.keeper.end(why)
            if error is not None and self._error is None:
                self._error, self._results, self._status = error, None, FAILED
        if self._progress is not None:
            self.plan.hide(self)
        if self.stream_buffer is not None and self._ends_late:
            with self.monitor:
                wakes = self.stream_buffer.close()
            for wake in wakes:
                wake()
        if self._compared is not None:
            self._compared.wait(END)
        self.observer.deliver(self.announce)

    def _explain(self, item: Item, error: BaseException) -> None:
        """Note on a failure where it comes from."""
        tried = "" if item.task.terms.retry is None else f", attempt {item.attempt}"
        note = f"In task run {item.id}{tried} of flow run {self.id} ({self.plan.flow})."
        add_note(error, note)

    def broke(self, lane: Lane, worker: Worker, error: Exception) -> None:
        """Something of ours raised in a worker. Called with no lock held."""
        with self.monitor:
            lane.leave(worker)
        self.monitor.post(self._end_early, FAILED, error)

    def give_up(self) -> None:
        """The flow closes, and with it the clock: what is to happen later happens now. No lock held."""
        self.monitor.post(self._abandon_rest)
        self.announce()

    def look(self) -> None:
        """Something has been tried in vain: see whether anything can move still."""
        if self.scheduler.under_way <= self.blocked.count:
            self._quiet()

    def coroutine_failed(self, worker: Any, item: Item, error: BaseException) -> bool:
        """A coroutine raised. Return False when that was the end of its worker as well."""
        import asyncio

        cancelled = isinstance(error, asyncio.CancelledError) and bool(worker.task.cancelling())
        self.report_failure(item, TaskCancelledError(item.id) if cancelled else error)
        return not cancelled

    def report_failure(self, item: Item, error: BaseException) -> None:
        """A task raised. Called by its worker, no lock held."""
        BaseException.with_traceback(error, outside_tracebacks(error))  # a class may forbid to set attributes
        if isinstance(error, KeyboardInterrupt) and struck():  # Ctrl-C in the code of a task: no failure of that
            error = TaskCancelledError(item.id)
            self.cancel()
        plain = isinstance(error, Exception) and not isinstance(error, SILENT)
        failure = error if plain else as_failure(item.id, error)
        if not isinstance(failure, TaskCancelledError):
            self._explain(item, failure)
        self.monitor.post(self.failed, item, failure)


def entrance_of(teller: Teller, observer: Observer) -> Entrance | None:
    """Return what hooks do before tasks are called; loaded only for those that do."""
    if not teller.entering:
        return None
    from millstream.engine.enter import Entrance

    return Entrance(teller.entering, observer, teller.log)


#: In place of the only lane of a run that has none, or several.
NO_LANE = object()

#: What a router that gives only a name sends along.
NOTHING = object()


def choice_of(task: str, output: Any, routes: tuple[str, ...]) -> dict[str, Any] | None:
    """Return what a task with routes chooses by its output: names, and what is sent to each; None: nothing.

    Raises:
        RouteError: what it gave names something that is none of its routes.
    """
    chosen: dict[Any, Any]
    if isinstance(output, dict):
        chosen = dict(output)
    elif isinstance(output, str):
        chosen = {output: NOTHING}
    elif type(output) in (list, tuple):
        chosen = {name if isinstance(name, str) else shown(name): NOTHING for name in output}
    else:
        return None
    for name in chosen:
        if name not in routes:
            raise RouteError(task, name if isinstance(name, str) else shown(name), routes)
    return chosen


def _never(*_: Any) -> None:
    raise StateError("a call that had finished is not called")


#: What would not arrive as an error: it ends loops instead.
SILENT = (StopIteration, StopAsyncIteration)


def as_failure(task_id: str, error: BaseException) -> FlowError:
    """Return the failure that stands for one which cannot be raised as it is."""
    failure = TaskFailedError(task_id, shown(error))
    failure.__cause__ = error
    return failure


def outside_tracebacks(error: BaseException) -> Any:
    """Return the traceback of a task's error without the frames of the engine that called it."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        traceback = traceback.tb_next
    return traceback if traceback is not None else error.__traceback__


def add_note(error: BaseException, note: str) -> None:
    """Note on an error where it comes from, unless its class forbids it."""
    try:
        if note not in (getattr(error, "__notes__", None) or ()):
            BaseException.add_note(error, note)
    except Exception:  # a note is not worth a run
        pass


def surely_equal(one: Any, other: Any) -> bool:
    """Whether two values are equal, as far as they can tell."""
    try:
        return bool(one == other)
    except Exception:  # an array says that its truth is ambiguous
        return False


def cancel_pump(worker: Any, item: Item | None) -> None:
    """Cancel what an asyncio worker awaits. Called with no lock held, from any thread."""

    def cancel() -> None:
        if worker.item is item and worker.task is not None:  # else it has gone on to another task run
            worker.task.cancel()

    task = worker.task
    if item is not None and task is not None:
        call_in(task.get_loop(), cancel)
