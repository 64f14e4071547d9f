"""Blocked gets: who waits for what, and the proof that nothing can move.

One ``Blocked`` belongs to one context and serves all runs that use it. Rule: who is blocked is
counted by the one who sets the value, in the same locked step that sets it. Counting by the one who
is woken gives wrong verdicts: in between, a value is there and its getter still counts as blocked.

The verdict. Let *movers* be the task runs under way and the lists still being pulled, over all runs
of the context. When all of them are blocked, no value can come any more from inside, so one of those
who wait is told: first somebody whose key is no task that is still live (``ContextKeyError``); if
there is none, each waits for another one and the oldest breaks the circle (``DeadlockError``). Only
one is told at a time, since it may handle the error and set what the others wait for.
Timeouts do not count as a way out: who waits in vain is told at once.

May import: values, errors, context, task, interrupts, executors.base.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from millstream.context import MISSING, Context
from millstream.errors import BlockingGetError, ContextKeyError, DeadlockError, FlowError, TaskCancelledError
from millstream.executors.base import Worker, here
from millstream.interrupts import rest
from millstream.task import current_run
from millstream.values import Status

if TYPE_CHECKING:
    import asyncio

    from millstream.engine.run import FlowRun


class Waiter:
    """One blocked get."""

    __slots__ = ("counted", "error", "external", "item", "key", "settled", "value", "wake")

    def __init__(self, key: Any, item: Any, external: bool) -> None:
        self.key = key
        self.item = item  #: the task run that waits; None for code outside of any run
        self.external = external
        self.counted = False  #: whether it counts as blocked in the verdict
        self.settled = False
        self.value: Any = None
        self.error: FlowError | None = None
        self.wake: Any = None  #: what ends the wait: ``release`` of a lock, or a call into a loop


class Idle:
    """A task run that waits for the end, or a chunk, of another run that uses the same context."""

    __slots__ = ("counted", "item")

    def __init__(self, item: Any) -> None:
        self.item = item
        self.counted = True


class Blocked:
    """Everybody who waits for a key of one context, or for a submitted call (whose handle is the key then)."""

    def __init__(self, context: Context[Any]) -> None:
        self.monitor = context._monitor  # not the context itself: that would be a circle
        self.values = context._values
        # Guarded by the monitor: everything below.
        self.runs: set[FlowRun] = set()  #: the runs under way that use the context
        self.waiting: dict[Any, list[Waiter]] = {}
        self.count = 0  #: waiters that are task runs of these runs, and not external; and the idle

    # ---- what a getter does ---------------------------------------------------------------------

    def wait(self, key: Any, default: Any, timeout: float | None, external: bool) -> Any:
        """Block this thread until ``key`` is set; see ``Context.get``."""
        item: Any = current_run.get()
        if here.worker is None:
            refuse_to_block_loop(key)
        signal = threading.Lock()
        signal.acquire()
        waiter = Waiter(key, item, external)
        waiter.wake = signal.release
        worker = here.worker if here.worker is not None and here.worker.item is item else None
        if not self._enter(waiter, worker):
            return self._outcome(waiter, default)
        if worker is not None:
            worker.give_back()
        try:
            with leaves_room(item if worker is None else None):
                if not rest(signal.acquire, timeout):
                    self._time_out(waiter, timeout)
        except BaseException:  # Ctrl-C
            self._withdraw(waiter)
            raise
        finally:
            if worker is not None:
                worker.take_back()
                self._resume(waiter, worker)
        return self._outcome(waiter, default)

    async def await_(self, key: Any, default: Any, timeout: float | None, external: bool) -> Any:
        """Wait for ``key`` without blocking the event loop; see ``Context.aget``."""
        import asyncio

        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        waiter = Waiter(key, current_run.get(), external)
        waiter.wake = lambda: call_in(loop, _finish, future)
        worker = None if waiter.item is None else waiter.item.handle
        if worker is not None and worker.task is not asyncio.current_task():
            worker = None  # a child of the task's coroutine waits: the task itself goes on
        if not self._enter(waiter, worker):
            return self._outcome(waiter, default)
        try:
            with leaves_room(waiter.item if worker is None else None):
                async with asyncio.timeout(timeout):
                    await future
        except TimeoutError:
            self._time_out(waiter, timeout)
        except asyncio.CancelledError:
            self._withdraw(waiter)
            raise
        finally:
            if worker is not None:
                self._resume(waiter, worker)
        return self._outcome(waiter, default)

    def _enter(self, waiter: Waiter, worker: Worker | None) -> bool:
        """Register ``waiter``; return False when there is nothing to wait for."""
        item = waiter.item
        waits = ours = False
        with self.monitor:
            if waiter.key in self.values:
                waiter.value, waiter.settled = self.values[waiter.key], True
            elif not isinstance(waiter.key, str) and waiter.key.done():
                waiter.settled = True
            elif item is not None and (item.given_up or item.cancelled):
                waiter.error = TaskCancelledError(item.id)
            elif not self.runs:
                waiter.error = ContextKeyError(waiter.key)
            else:
                waits = True  # from here on it may be told at any moment
                self.waiting.setdefault(waiter.key, []).append(waiter)
                ours = item is not None and item.run in self.runs
                # A thread or coroutine that the task made itself does not stop the task; and what a
                # callback or a late piece of code does is not the task's any more.
                if ours and item.status is Status.RUNNING and worker is not None and not waiter.external:
                    waiter.counted = True
                    self.count += 1
                if worker is not None and ours:
                    item.run.suspend(worker)
                self.check()
        if not waits:
            return False
        if worker is not None and not ours:  # a task of another run, which has a monitor of its own
            with item.run.monitor:
                item.run.suspend(worker)
        return True

    def _resume(self, waiter: Waiter, worker: Worker) -> None:
        with waiter.item.run.monitor:
            waiter.item.run.resume(worker)

    def _time_out(self, waiter: Waiter, timeout: float | None) -> None:
        """The time is up, unless the value came in the last moment."""
        with self.monitor:
            if not waiter.settled and waiter.error is None:
                self._remove(waiter)
                waiter.error = _GetTimeoutError(waiter.key, timeout)

    def _withdraw(self, waiter: Waiter) -> None:
        with self.monitor:
            if not waiter.settled and waiter.error is None:
                self._remove(waiter)

    def _outcome(self, waiter: Waiter, default: Any) -> Any:
        error = waiter.error
        if error is None:
            return waiter.value
        if default is not MISSING and not isinstance(error, TaskCancelledError):
            return default
        try:
            if isinstance(error, _GetTimeoutError):
                raise TimeoutError(str(error))
            raise error
        finally:
            del error, waiter  # the traceback keeps this frame, and the frame would keep the error

    # ---- what the engine does, under the monitor ------------------------------------------------

    def satisfy(self, key: Any, value: Any) -> None:
        """``key`` was set: everybody who waits for it has the value, and is blocked no more."""
        for waiter in self.waiting.pop(key, ()):
            waiter.value, waiter.settled = value, True
            self._release(waiter)

    def idle(self, item: Any) -> Idle:
        """A task run waits for another run of this context: it cannot set anything meanwhile."""
        idle = Idle(item)
        self.count += 1
        return idle

    def active(self, idle: Idle) -> None:
        """What it waited for is there; counted by the one who brings it."""
        if idle.counted:
            idle.counted = False
            self.count -= 1

    def check(self) -> None:
        """Tell somebody when nothing can move any more."""
        if self.count and sum(run.movers for run in self.runs) <= self.count:
            victim = self._victim()
            if victim is not None:
                self._remove(victim[0])
                victim[0].error = victim[1]
                self.monitor.later.append((victim[0].wake, ()))

    def give_up(self, item: Any) -> None:
        """An attempt was given up: if it waits, it ends."""
        for waiter in list(self._waiters()):
            if waiter.item is item:
                self._fail(waiter, TaskCancelledError(item.id))

    def cancel(self, run: FlowRun) -> None:
        """``run`` is ending: none of its task runs waits any longer."""
        for waiter in list(self._waiters()):
            if waiter.item is not None and waiter.item.run is run:
                self._fail(waiter, TaskCancelledError(waiter.item.id))

    def detach(self, run: FlowRun) -> None:
        """``run`` has ended: without any other one, nobody can set what is waited for."""
        self.runs.discard(run)
        if not self.runs:
            for waiter in list(self._waiters()):
                self._fail(waiter, ContextKeyError(waiter.key))
        else:
            self.check()

    # ---- inside -----------------------------------------------------------------------------------

    def _waiters(self) -> Iterator[Waiter]:
        for waiters in self.waiting.values():
            yield from waiters

    def _fail(self, waiter: Waiter, error: FlowError) -> None:
        self._remove(waiter)
        waiter.error = error
        self.monitor.later.append((waiter.wake, ()))

    def _remove(self, waiter: Waiter) -> None:
        """Take one waiter out. Its run counts it as blocked no more."""
        waiters = self.waiting[waiter.key]
        waiters.remove(waiter)
        if not waiters:
            del self.waiting[waiter.key]
        if waiter.counted:
            waiter.counted = False
            self.count -= 1

    def _release(self, waiter: Waiter) -> None:
        if waiter.counted:
            waiter.counted = False
            self.count -= 1
        self.monitor.later.append((waiter.wake, ()))

    def _victim(self) -> tuple[Waiter, FlowError] | None:
        """Choose who is told, and what."""
        waiters = [waiter for waiter in self._waiters() if waiter.counted]
        live = {name for run in self.runs for name, task in run.scheduler.tasks.items() if task.live}
        for run in self.runs:
            edges = run.scheduler.edges
            if edges is not None:
                live.update(edges.graph.names[task] for task in edges.awaited())
        limited = any(run.scheduler.limited for run in self.runs)  # one of those might set anything
        for waiter in waiters:
            if isinstance(waiter.key, str) and waiter.key not in live and not limited:
                return waiter, ContextKeyError(waiter.key, waiter.item.id)
        if not waiters:
            return None
        waits = [(w.item.id, repr(w.key) if isinstance(w.key, str) else f"the call {w.key.id}") for w in waiters]
        for run in self.runs:
            waits += run.scheduler.structural_waits()
        return waiters[0], DeadlockError(waits)


class _GetTimeoutError(FlowError):
    """Internal: becomes a ``TimeoutError``, or the default."""

    def __init__(self, key: str, seconds: float | None) -> None:
        super().__init__(key, seconds)
        self.key, self.seconds = key, seconds

    def __str__(self) -> str:
        return f"Key {self.key} was not set within {self.seconds:g} s."


@contextmanager
def leaves_room(item: Any) -> Generator[None, None, None]:
    """A thread or coroutine that a task made waits: that may be all that the task itself waits for.

    ``asyncio.gather`` and ``asyncio.to_thread`` are such cases, and we cannot see what the task does.
    So it leaves room for others, as if it waited itself. None: nobody's wait, or the task's own.
    """
    if item is None:
        yield
        return
    with item.run.monitor:
        item.run.wait_in(item)
    try:
        yield
    finally:
        with item.run.monitor:
            item.run.go_on_in(item)


def refuse_to_block_loop(key: str) -> None:
    """Raise when this thread runs an event loop, which a blocking get would stop."""
    if blocks_loop():
        raise BlockingGetError(key)


def blocks_loop() -> bool:
    """Whether this thread runs an event loop, which waiting would stop."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


def call_in(loop: Any, call: Any, *args: Any) -> None:
    """Call in the loop's thread; a loop that is closed has nobody left to tell."""
    try:
        loop.call_soon_threadsafe(call, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
