"""A lane: the work of one run for one executor, and the loops in which workers do it.

A worker takes a task run from the lane's ready queue, calls it and reports the outcome into the
scheduler itself, then takes the next one: no job, no future and no change of thread per task run.
``Lane.work`` is the hot loop of the library. May import: scheduler, binding's result, values,
errors, executors.base, task.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator, Mapping
from contextvars import Context as Variables
from contextvars import copy_context
from itertools import chain
from threading import current_thread
from typing import TYPE_CHECKING, Any, cast

from millstream.engine.clock import Timer
from millstream.engine.ready import Ready
from millstream.engine.states import NO_WATCHES, RunTerms, Scope, TaskRun, TaskState
from millstream.errors import TaskCancelledError
from millstream.executors.base import Worker, Workers
from millstream.task import current_run
from millstream.values import Items, NextTask, Status, StreamChunk, TaskOutput

if TYPE_CHECKING:
    from millstream.engine.record import Failure
    from millstream.engine.run import FlowRun
    from millstream.engine.session import TaskHandle
    from millstream.executors.remote.calls import Caller

PENDING, RUNNING = Status.PENDING, Status.RUNNING
ABANDONED, CANCELLED = Status.ABANDONED, Status.CANCELLED

#: How long one worker pulls a list of requests before it serves what it has, in seconds, and how
#: many requests at most: together they keep the number of requests pulled ahead small.
PULL_TIME = 0.001
PULL_MOST = 64

ASYNC_GENERATOR, COROUTINE = types.AsyncGeneratorType, types.CoroutineType

#: Types that mean nothing but themselves as a task's return value, tested first.
PLAIN = frozenset({type(None), bool, int, float, str, bytes, dict, set})
#: Types of next tasks that are taken as they are.
LISTED = frozenset({type(None), list})


class RunTask(TaskState):
    """A task of one run: the scheduler's state, the lane of its task runs, and what the report tells of them."""

    __slots__ = ("attempt", "began", "ended", "failure", "lane", "output", "pace", "watched")

    terms: RunTerms

    def __init__(self, lane: Lane, name: str, terms: RunTerms, node: int | None, watched: bool) -> None:
        # There is one for every task of a graph, and in every run: so no call of ``super``.
        self.name, self.queue, self.terms, self.node = name, lane.ready, terms, node
        self.each = self.worst = self.inputs = None
        self.watches = NO_WATCHES
        self.live = self.runs = self.count = self.static = 0
        if terms.gated:
            self.held, self.busy, self.blocked = [], 0, 0
        self.lane = lane
        #: The driver must be told when an attempt begins, and has more to do when it ends.
        self.watched = watched
        # For the report:
        self.attempt = 1  #: of the newest run, once one has begun
        self.began: float | None = None  #: when the first run began
        self.ended: float | None = None  #: when the newest run that is over ended
        self.output: Any = None  #: of the newest run that succeeded
        self.failure: Failure | None = None  #: the first one
        self.pace: float | None = None  #: how long a call takes elsewhere, in seconds


class Item(TaskRun):
    """A task run as the driver sees it; also what ``current_task()`` reads."""

    __slots__ = ("blocked", "call_keys", "calls", "chose", "limit", "seen", "since", "timer", "variables")

    blocked: int  #: how many of its waits are on: at any, it does not count for ``max_parallel``; not set before
    #: What a submitted call is called in, or a task whose hooks have set something up; set only for these, while
    #: they are called.
    variables: Variables | None
    chose: bool  #: a generator with routes has chosen what its run leaves out; not set before
    calls: int  #: how many calls it has submitted without a key; not set before the first
    call_keys: dict[int, int]  #: numbers of the keys of the others, and how many came before; not set before the first

    limit: float | None  #: when the time of this attempt is up; set only for a task with a timeout
    timer: Timer  #: what will say so
    since: float  #: when the attempt began; set only for a task that is watched
    seen: tuple[str, str]  #: its id, and the thread or loop that calls it; set as ``since`` is

    @property
    def run(self) -> FlowRun:
        return self.task.lane.run  # type: ignore[no-any-return]

    @property
    def name(self) -> str:
        return self.task.name  # type: ignore[no-any-return]

    @property
    def run_id(self) -> str:
        return self.run.id

    @property
    def key(self) -> str:
        return f"{self.run.id}:{self.path & 0xFFFFFFFFFFFFFFFF:016x}"

    @property
    def given_up(self) -> bool:
        """Whether what it does from now on must change nothing."""
        return self.status is ABANDONED or self.status is CANCELLED or self.run.finished

    @property
    def cancelled(self) -> bool:
        """Whether it was told to stop."""
        return self.status is ABANDONED or self.status is CANCELLED or self.run.stopping

    @property
    def deadline(self) -> float | None:
        limits = [self.run.deadline, getattr(self, "limit", None)]
        return min((limit for limit in limits if limit is not None), default=None)

    def now(self) -> float:
        return self.run.clock.now()

    def emit(self, chunk: StreamChunk) -> None:
        self.run.emit(self, chunk)

    def progress(self, done: float, total: float | None) -> None:
        self.run.monitor.post(self.run.progressed, self, done, total)

    def submit(
        self, fn: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], depends_on: Any, call_key: str | None
    ) -> TaskHandle[Any]:
        return self.run.plan.submit(self.run, fn, args, kwargs, depends_on, call_key)  # type: ignore[no-any-return]


class HandedOn(Exception):  # noqa: N818 - it is no error, and never leaves this module
    """A task run goes on elsewhere (a coroutine, on a loop) or later (a generator at rest)."""


def close_unawaited(awaitable: Any) -> None:
    """Close a coroutine that nobody will await; an asynchronous generator has not begun."""
    close = getattr(awaitable, "close", None)
    if close is not None:
        close()


class Steps:
    """A generator task under way, with the context variables that it runs in."""

    __slots__ = ("generator", "variables")

    def __init__(self, generator: Generator[Any, None, Any], variables: Variables) -> None:
        self.generator = generator
        self.variables = variables

    def close(self) -> None:
        """Let the generator run its ``finally``."""
        self.variables.run(self.generator.close)


class Feed:
    """A list of requests that is pulled as workers become free."""

    __slots__ = ("ahead", "batch", "iterator", "owner", "pages", "pulled_at", "scope", "variables")

    def __init__(
        self,
        owner: Item,
        scope: Scope,
        iterator: Iterator[Any],
        first: Any,
        variables: Variables,
        pages: str | None = None,
    ) -> None:
        self.owner = owner
        self.scope = scope
        self.variables = variables  #: what it is pulled in
        self.iterator = iterator
        self.ahead = [first]  #: pulled already: a list that is empty must be known at once
        self.batch = 1
        self.pulled_at = 0.0
        self.pages = pages  #: the name of the list in the journal, if it is there

    def pull(self, now: Callable[[], float]) -> tuple[list[Any], bool, BaseException | None]:
        """Return the next requests, whether the list has ended, and the error that ended it.

        One at a time when workers are busy; more at once, up to ``PULL_MOST``, while they come back
        faster than they could be woken.
        """
        began = now()
        self.batch = min(self.batch * 2, PULL_MOST) if began - self.pulled_at < PULL_TIME else 1
        pulled, self.ahead = self.ahead, []
        try:
            while len(pulled) < self.batch:
                pulled.append(next(self.iterator))
                if now() - began > PULL_TIME:
                    break
        except StopIteration:
            return pulled, True, None
        except BaseException as error:  # reported as the failure of the task that made the list
            return pulled, True, error
        self.pulled_at = now()
        return pulled, False, None

    def close(self) -> None:
        """Let a generator run its ``finally``."""
        close = getattr(self.iterator, "close", None)
        if close is not None:
            close()


class Lane:
    """The work of one run for one group of workers."""

    __slots__ = ("active", "burst", "capacity", "crew", "feeds", "on_loop", "ready", "run", "wanted", "workers")

    def __init__(self, run: FlowRun, workers: Workers, ready: Ready, *, on_loop: bool) -> None:
        self.run = run
        self.workers = workers
        self.capacity, self.burst = workers.capacity, workers.burst
        self.on_loop = on_loop
        self.ready = ready  #: filled by the scheduler, taken from without a lock
        self.feeds: deque[Feed] = deque()  #: lists to be pulled when nothing is ready
        # Guarded by the monitor of the run: active, wanted, crew.
        self.active = 0  #: workers that are here and not waiting
        self.wanted = 0  #: workers that were asked for and have not come
        self.crew: set[Worker] = set()  #: all that are here

    # ---- under the monitor ----------------------------------------------------------------------

    def shortage(self, soon: int) -> int:
        """Return how many more workers are needed; ``soon`` are about to look for work anyway."""
        return min(
            len(self.ready) + len(self.feeds) - soon - self.wanted,
            self.burst - self.wanted,
            self.capacity - self.active - self.wanted,
        )

    def come(self, worker: Worker) -> None:
        self.wanted -= 1
        self.active += 1
        self.crew.add(worker)
        worker.counted = True

    def leave(self, worker: Worker) -> None:
        """``worker`` goes; it does not count any more."""
        self.crew.discard(worker)
        worker.item = None
        if worker.counted:
            worker.counted = False
            self.active -= 1

    def variables(self) -> Variables:
        """Return the caller's context variables, as a copy that one worker alone enters."""
        return self.run.variables.copy()

    def lost(self, reason: str) -> None:
        self.run.monitor.post(self.run.lost, self, reason)

    # ---- the work -------------------------------------------------------------------------------

    def work(self, worker: Worker) -> None:
        """Call task runs in this thread until there are none left or others want the place."""
        self.run.monitor.ask(self.come, worker)
        try:
            if self.workers.remote:
                from millstream.engine.remote import work_remote  # only then

                self.variables().run(work_remote, self, cast("Caller", worker))
            else:
                self.variables().run(self._work, worker)
        except Exception as error:  # a bug of ours: better a run that ends with it than one that never ends
            self.run.broke(self, worker, error)
        finally:
            del self  # see ``_work``

    def _work(self, worker: Worker) -> None:
        # The hot loop. It holds the monitor once per task run, to report, and never waits for it.
        run = self.run
        context, report, enter, now = run.context, run.settle, current_run.set, run.clock.now
        ready, monitor, queue = self.ready, run.monitor, worker.queue
        take, observe, where = ready.plain.popleft, run.observer.attempt_began, current_thread().name
        locked, unlock, posted, later = monitor.lock.acquire, monitor.lock.release, monitor.posted, monitor.later
        stream = run.stream_buffer
        item = task = result = output = requests = None
        try:
            while True:
                try:
                    item = take()
                except IndexError:
                    item = ready.take()
                    if item is None:
                        if self._pull() or self._stay(worker):
                            continue
                        return
                worker.item = item
                task = item.task
                enter(item)
                try:
                    if item.handle is None:
                        if item.status is not PENDING:
                            item.begin()  # which raises
                        item.status = RUNNING  # as ``begin`` does: a call less for each task run
                        if run.stopping:
                            raise TaskCancelledError(item.id)
                        if task.watched:
                            observe(item, where)
                            if not task.terms.unseen:
                                run.began(item)
                        elif task.began is None:
                            task.began = now()
                        # What a task does to context variables must not be seen by the next one.
                        result = copy_context().run(task.terms.invoke, item, context)
                    else:
                        result, item.handle = item.handle, None
                    if type(result) in PLAIN:
                        output, requests = result, None
                    elif type(result) is TaskOutput and type(result.next_tasks) in LISTED:
                        output, requests = result.output, result.next_tasks
                    else:
                        output, requests = self._unwrap(item, result)
                except HandedOn:
                    pass
                except BaseException as error:  # whatever a task raises is an outcome of it
                    run.report_failure(item, error)
                else:
                    if stream is not None and stream.full:
                        run.wait_for_room()
                    if not posted and locked(False):  # what was posted comes first
                        try:
                            report(item, output, requests, self)
                        finally:  # on the inline executor Ctrl-C can strike anywhere
                            if posted or later:
                                monitor.leave()
                            else:
                                unlock()
                                if posted and locked(False):  # left by somebody who found it locked
                                    monitor.leave()
                    else:
                        monitor.post(report, item, output, requests, None, now())
                if worker.dismissed or (queue and worker.overstays()):
                    self._go(worker)
                    return
        finally:
            # The traceback of a task's error keeps the task's frame, that frame keeps this one, and
            # this one would keep the run, which keeps the error: a circle.
            del self, run, context, report, now, ready, monitor, take, observe, locked, unlock, posted, later, stream
            del item, task, result, output, requests

    def _stay(self, worker: Worker) -> bool:
        """Nothing is ready. Look again under the lock, and leave only if that is still so."""
        return self.run.monitor.ask(self._look_again, worker)

    def _look_again(self, worker: Worker) -> bool:
        if (len(self.ready) or self.feeds) and not worker.dismissed:
            return True
        self.leave(worker)
        return False

    def _go(self, worker: Worker) -> None:
        """Leave although there may be work: another worker is asked for."""
        with self.run.monitor:
            self.leave(worker)
            self.run.dispatch(None)

    def _pull(self) -> bool:
        """Pull the next requests of a list that waits for free workers; False: there is none."""
        try:
            feed = self.feeds.popleft()
        except IndexError:
            return False
        run = self.run
        feed.variables.run(current_run.set, feed.owner)
        pulled, ended, error = feed.variables.run(feed.pull, run.clock.now)
        run.monitor.post(run.fed, feed, pulled, ended, error)
        return True

    # ---- what a task returned -------------------------------------------------------------------

    def _unwrap(self, item: Item, result: Any) -> tuple[Any, Any]:
        """Return output and requests of what a task returned.

        Raises:
            HandedOn: the task run goes on elsewhere, or later.
        """
        if isinstance(result, types.GeneratorType):
            result = Steps(result, variables_of(item))
        if isinstance(result, Steps):
            result = self._iterate(item, result)
        if isinstance(result, (types.AsyncGeneratorType, Coroutine)):
            self.run.adopt(item, result)
            raise HandedOn
        return self.outcome(item, result)

    def outcome(self, item: Item, result: Any) -> tuple[Any, Any]:
        """Return output and requests of a value. An iterable is pulled once, to know if it is empty.

        Raises:
            HandedOn: it is mapped over items, which go on.
        """
        if type(result) is Items:
            if self.run.spread(item, result.items):
                raise HandedOn
            return [], None
        if isinstance(result, TaskOutput):
            output, requests = result.output, result.next_tasks
        elif isinstance(result, NextTask):
            output, requests = None, [result]
        elif type(result) in (list, tuple) and NextTask in map(type, result):
            output, requests = None, list(result)
        else:
            return result, None
        if requests is None or isinstance(requests, list):
            return output, requests
        if isinstance(requests, tuple):
            return output, list(requests)
        return output, self._open_feed(item, requests)

    def _open_feed(self, item: Item, requests: Any) -> Feed | list[NextTask]:
        if isinstance(requests, str | bytes | dict):
            raise TypeError(f"next_tasks takes NextTask values, not {requests!r}.")
        try:
            iterator = iter(requests)
        except TypeError:
            raise TypeError(f"next_tasks takes a list or another iterable of NextTask, not {requests!r}.") from None
        routes, has = item.task.terms.routes, self.run.plan.has
        if routes is not None and not all(map(has, routes)):  # a run of ``targets=`` leaves some out
            left_out = {name for name in routes if not has(name)}
            iterator = (each for each in iterator if not isinstance(each, NextTask) or each.id not in left_out)
        own = variables_of(item)
        try:
            first = own.run(next, iterator)
        except StopIteration:
            return []
        if self.run.journal is None:
            return Feed(item, Scope(item, None), iterator, first, own)
        # What is to come must not be lost with this process, nor be held in memory.
        pages = own.run(self.run.journal.drained, item, chain((first,), iterator))
        iterator = self.run.journal.reader().pages(item.path, pages)
        return Feed(item, Scope(item, None), iterator, next(iterator), own, pages)

    def _iterate(self, item: Item, steps: Steps) -> Any:
        """Run a generator task to its end; return its return value."""
        stream = self.run.stream_buffer
        try:
            while True:
                try:
                    value = steps.variables.run(next, steps.generator)
                except StopIteration as end:
                    return end.value
                self._yielded(item, value)
                if item.cancelled:
                    raise TaskCancelledError(item.id)
                if stream is not None and stream.full and self.run.reads_itself():
                    # Only this very thread could make room: rest here, and go on when it is back.
                    item.handle = steps
                    self.ready.appendleft(item)
                    raise HandedOn
        finally:
            if item.handle is None:
                steps.close()

    def _yielded(self, item: Item, value: Any) -> None:
        """Send an interim value, or schedule a request at once."""
        if isinstance(value, NextTask):
            self.run.request(item, value)
            return
        if isinstance(value, TaskOutput):
            raise TypeError(f"A generator task yields values and NextTask requests; return {value!r} instead.")
        self.run.emit(item, value if isinstance(value, StreamChunk) else StreamChunk(item.id, value))

    # ---- the same on an event loop --------------------------------------------------------------

    async def work_async(self, worker: Worker) -> None:
        """Await task runs until there are none left."""
        run = self.run
        context, report, enter, now = run.context, run.settle, current_run.set, run.clock.now
        ready, monitor, stream = self.ready, run.monitor, run.stream_buffer
        take, observe, where = ready.plain.popleft, run.observer.attempt_began, place_of(worker)
        locked, unlock, posted, later = monitor.lock.acquire, monitor.lock.release, monitor.posted, monitor.later
        with monitor:
            self.come(worker)
        item = task = result = coroutine = variables = awaited = output = requests = drive = None
        driver: Any = None
        box: list[Any] = [None]
        try:
            while True:
                try:
                    item = take()
                except IndexError:
                    item = ready.take()
                    if item is None:
                        if self._pull() or self._stay(worker):
                            continue
                        return
                if not self.wanted and (len(self.ready) or self.feeds):
                    # Should what we await suspend, another pump takes the next one meanwhile.
                    monitor.post(run.dispatch, None)
                task = item.task
                enter(item)
                try:
                    worker.item, result, item.handle = item, item.handle, worker
                    if result is None:  # else a plain function was called elsewhere and gave a coroutine
                        if item.status is not PENDING:
                            item.begin()  # which raises
                        item.status = RUNNING  # as ``begin`` does: a call less for each task run
                        if run.stopping:
                            raise TaskCancelledError(item.id)
                        if task.watched:
                            observe(item, where)
                            if not task.terms.unseen:
                                run.began(item)
                        elif task.began is None:
                            task.began = now()
                        result = task.terms.invoke(item, context)
                    elif run.stopping or item.given_up:
                        close_unawaited(result)
                        raise TaskCancelledError(item.id)
                    coroutine = result if type(result) is COROUTINE else self._coroutine_of(item, result)
                    if coroutine is not None:
                        # What a task does to context variables must not be seen by the next one.
                        variables = copy_context() if item.extra is None else variables_of(item)
                        if drive is None:
                            driver = driving(box)
                            drive = driver.send
                            drive(None)
                        awaited = variables.run(drive, coroutine)
                        if awaited is not ENDED:
                            await resume(run, variables, driver, awaited)
                        result = box[0]
                    if type(result) in PLAIN:
                        output, requests = result, None
                    elif type(result) is TaskOutput and type(result.next_tasks) in LISTED:
                        output, requests = result.output, result.next_tasks
                    else:
                        output, requests = self.outcome(item, result)
                    if stream is not None and stream.full:
                        await run.wait_for_room_async()
                except HandedOn:
                    pass
                except BaseException as error:  # whatever a task raises is an outcome of it
                    drive = driver = None  # it has ended with the coroutine
                    if not run.coroutine_failed(worker, item, error):
                        self._go(worker)
                        return
                else:
                    if not posted and locked(False):  # as in ``_work``
                        report(item, output, requests, self)
                        if posted or later:
                            monitor.leave()
                        else:
                            unlock()
                            if posted and locked(False):
                                monitor.leave()
                    else:
                        monitor.post(report, item, output, requests, None, now())
        finally:
            # As in ``_work``: the traceback of a task's error keeps this frame.
            del self, run, context, report, now, ready, monitor, take, observe, locked, unlock, posted, later, stream
            del item, task, result, coroutine, variables, awaited, output, requests, drive, driver, box

    def _coroutine_of(self, item: Item, result: Any) -> Any:
        """Return what is to be driven to get the result of a task, None if that is there already."""
        if type(result) is ASYNC_GENERATOR:
            return self._iterate_async(item, result)
        return result.__await__() if isinstance(result, Coroutine) else None

    async def _iterate_async(self, item: Item, generator: AsyncGenerator[Any, None]) -> None:
        run = self.run
        try:
            async for value in generator:
                self._yielded(item, value)
                if run.stream_buffer is not None and run.stream_buffer.full:
                    await run.wait_for_room_async()
        finally:
            await generator.aclose()


def place_of(worker: Worker) -> str:
    """Return the name of the thread that a worker works in, and of its place on an event loop there."""
    thread, number = current_thread().name, getattr(worker, "number", None)
    return thread if number is None else f"{thread} {number}"


def variables_of(item: Item) -> Variables:
    """Return the context variables that a task run goes on in: those of its worker, or of who submitted it."""
    submitted: Variables | None = getattr(item, "variables", None)
    return copy_context() if submitted is None else submitted


#: What a driver yields when a coroutine has ended.
ENDED = object()


@types.coroutine
def driving(box: list[Any]) -> Generator[Any, Any, None]:
    """Run one coroutine after another, each as it is sent; what one returns is in the box when ENDED comes.

    From outside, the end of a coroutine is an exception, which takes longer than all the rest of a short one.
    """
    coroutine = yield
    while True:
        box[0] = yield from coroutine
        coroutine = yield ENDED


@types.coroutine
def resume(
    run: FlowRun, variables: Variables, driver: Generator[Any, Any, None], awaited: Any
) -> Generator[Any, Any, None]:
    """Await the rest of what ``driver`` runs, whose first step gave ``awaited``; each step in ``variables``.

    It is stopped wherever it awaits something while the stream is full: its ``ctx.emit`` cannot wait
    for room itself, since that would block the event loop.
    """
    stream = run.stream_buffer
    step: Callable[[Any], Any]
    try:
        while awaited is not ENDED:
            try:
                if stream is not None and stream.full:
                    yield from run.wait_for_room_async().__await__()
                argument = yield awaited
                step = driver.send
            except GeneratorExit:
                driver.close()
                raise
            except BaseException as error:  # a cancellation, which is the coroutine's to handle
                step, argument = driver.throw, error
            awaited = variables.run(step, argument)
    finally:  # as in ``Lane.work_async``
        del run, variables, driver, awaited, stream
