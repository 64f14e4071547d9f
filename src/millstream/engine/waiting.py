"""How threads and coroutines wait for a run: for its end, for its next chunk, for room in its stream.

A thread that waits and is a worker itself lends its place to others for that time. Where the run is
worked on in the waiting thread (the inline executor), waiting is working. May import: lane, stream,
waits, executors.base, task, interrupts, errors; and the run for its types.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from millstream.context import MISSING
from millstream.engine.waits import Blocked, Idle, blocks_loop, call_in, leaves_room
from millstream.errors import BlockingGetError, DeadlockError
from millstream.executors.base import Worker, Workers, here
from millstream.interrupts import dealt_with, rest, shield, struck, tell
from millstream.task import current_run
from millstream.values import StreamChunk

if TYPE_CHECKING:
    from millstream.engine.clock import Clock
    from millstream.engine.keep import Keeper
    from millstream.engine.lane import Item, Lane
    from millstream.engine.stream import Stream
    from millstream.monitor import Monitor

#: How long a run that is ending waits for the code of its tasks to stop, in seconds. What has not
#: stopped by then is abandoned: it cannot change anything any more.
GRACE = 0.5


#: The threads that wait for a call of a session that they have opened, and how often (waits can nest).
_waiting: dict[threading.Thread, int] = {}


def waits_somewhere(owner: threading.Thread | None) -> bool:
    """Whether the thread that may submit calls to a session waits for one, of this session or of another."""
    return owner in _waiting


class Waiting:
    """The waiting half of a run."""

    id: str
    monitor: Monitor
    clock: Clock
    blocked: Blocked
    finished: bool
    announced: bool
    stopping: bool
    stream_buffer: Stream | None
    idle_waiters: list[Idle]
    nested: set[Any]
    waited_by: set[Any]
    open: bool
    owner: threading.Thread | None
    keeper: Keeper | None
    _driven: list[Workers]
    _lanes: dict[tuple[int, bool], Lane]
    _done: threading.Event
    _callbacks: list[Callable[[], object]]

    def cancel(self) -> None:
        raise NotImplementedError("a run can be cancelled")

    def nudge(self) -> None:
        """Whoever works in the thread that waits may have what it waits for. No lock held."""
        for workers in self._driven:
            workers.nudge()

    def look(self) -> None:
        raise NotImplementedError("a run can be looked at")

    def _push(self, chunk: StreamChunk) -> None:
        raise NotImplementedError("a run sends chunks")

    def drive(self, until: Callable[[], bool], idle_list: list[Idle], *, own: bool = False) -> None:
        """Do the work that belongs to the waiting thread (the inline executor's), until ``until()``.

        A task that waits so counts as idle in ``idle_list``, and lends its place when nothing is to
        be done in this thread.
        """
        if not self._driven or until():
            return
        worker, item = self._place(own)
        with shield():
            with self.monitor:
                idle = None if until() else self._idle(item, idle_list)
            try:
                for workers in self._driven:
                    workers.drive(lambda: until() or struck(), partial(self._lend, worker, item, None))
            finally:
                if idle is not None:
                    with self.monitor:
                        self.blocked.active(idle)
            tell()

    def sleep(
        self,
        register: Callable[[Callable[[], object]], bool],
        idle_list: list[Idle],
        timeout: float | None = None,
        *,
        own: bool = False,
    ) -> bool:
        """Sleep until the callable given to ``register`` is called; return False when time is up first.

        ``register`` is called under the monitor and returns False to not sleep at all. A task that
        sleeps here gives its place back, and counts as idle in ``idle_list``.
        """
        worker, item = self._place(own)
        signal = threading.Lock()
        signal.acquire()
        with shield():
            with self.monitor:
                if not register(signal.release):
                    return True
                idle = self._idle(item, idle_list)
            with self._lend(worker, item, idle):
                return rest(signal.acquire, timeout)

    def wait_for(self, handle: Any, timeout: float | None) -> None:
        """Wait until a submitted call of this run has ended, at the longest for ``timeout`` seconds.

        Raises:
            DeadlockError: it can never end, since it waits for the one who asks.
            BlockingGetError: waiting would block an event loop; await the handle.
        """
        item: Any = current_run.get()
        if item is not None and item.handle is not None and blocks_loop():
            raise BlockingGetError(handle.id, of_call=True)
        own = here.worker is not None and here.worker.item is item
        if item is not None and own and item.run.blocked is self.blocked:
            try:
                self.blocked.wait(handle, MISSING, timeout, False)
            except TimeoutError:
                pass
            return
        with self._owner_waits(), leaves_room(None if own else item):
            if timeout is None:
                self.drive(handle.done, self.idle_waiters, own=True)
            elif self._driven:  # work in this thread cannot be interrupted, but no further one is begun
                end = self.clock.now() + timeout
                timer = self.clock.call_at(end, self.nudge)
                self.drive(lambda: handle.done() or self.clock.now() >= end, self.idle_waiters, own=True)
                timer.cancel()
                return
            if not handle.done():
                self.sleep(partial(_when_done, handle), self.idle_waiters, timeout, own=True)

    async def wait_for_async(self, handle: Any) -> None:
        """The same without blocking the event loop."""
        item: Any = current_run.get()
        if item is not None and item.run.blocked is self.blocked:
            await self.blocked.await_(handle, MISSING, None, False)
        else:  # other coroutines of this loop go on, so the run may still be fed
            await self.sleep_async(partial(_when_done, handle))

    def work_on(self, handle: Any) -> None:
        """Where the run is worked on in this very thread, a call that was submitted is called now."""
        if self._driven and here.worker is None:
            # A list at once: another thread may send a call to a new lane right now.
            lanes = [lane for lane in list(self._lanes.values()) if lane.workers.driven]
            with self._owner_waits():
                self.drive(lambda: handle.done() or not any(map(_has_work, lanes)), self.idle_waiters, own=True)

    @contextmanager
    def _owner_waits(self) -> Generator[None, None, None]:
        """While the thread that submits calls waits, nobody feeds the run from outside."""
        if self.owner is None or threading.current_thread() is not self.owner:
            yield
            return
        _waiting[self.owner] = _waiting.get(self.owner, 0) + 1  # only this very thread changes that
        with self.monitor:
            self.blocked.check()
        try:
            yield
        finally:
            _waiting[self.owner] -= 1
            if not _waiting[self.owner]:
                del _waiting[self.owner]

    def _place(self, own: bool = False) -> tuple[Worker | None, Any]:
        """Return the worker whose thread this is and its task run, if the call comes from a task."""
        if not own:
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
            self.waited_by.add(item)
        if outer.stopping:
            self.cancel()
        self.monitor.post(self.look)
        worker.give_back()
        try:
            yield
        finally:
            outer.nested.discard(self)
            self.waited_by.discard(item)
            worker.take_back()
            with item.run.monitor:
                item.run.resume(worker)
                if idle is not None:
                    self.blocked.active(idle)

    def abandon(self) -> None:
        """Cancel and wait for the end; for a reader that leaves. Never waits for long."""
        if not self.finished:
            self.cancel()
            item: Any = current_run.get()
            if item is not None and item.run is self:
                return  # called by a task of this run, which ends when that task does
            self.drive(lambda: self.finished, self.idle_waiters)
            rest(self._done.wait, 2 * GRACE)  # not for ever: a destructor may be called anywhere

    def interrupt(self) -> None:
        """Ctrl-C: cancel and wait for the end; a second Ctrl-C ends the waiting at once."""
        dealt_with()
        with shield():
            self.cancel()
            rest(self._done.wait, 2 * GRACE)

    # ---- the same on an event loop --------------------------------------------------------------

    async def ended(self) -> None:
        """Wait for the end without blocking the event loop."""
        if not self.announced:
            self._refuse_own_task()
            await self.sleep_async(self._on_end)

    def _on_end(self, wake: Callable[[], object]) -> bool:
        if self.announced:
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

    # ---- chunks: no lock held -------------------------------------------------------------------

    def emit(self, item: Item, chunk: StreamChunk) -> None:
        """Send an interim value of a task run; waits for room, unless that would block a loop."""
        stream = self.stream_buffer
        if stream is None or item.given_up:
            return
        if stream.full and item.handle is None:
            self.wait_for_room()
        with self.monitor:
            if not item.given_up and (self.keeper is None or self.keeper.emits(item)):
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
            rest(signal.acquire)
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


def _has_work(lane: Lane) -> bool:
    return bool(lane.feeds) or len(lane.ready) > 0


def _when_done(handle: Any, wake: Callable[[], object]) -> bool:
    """Register ``wake`` for the end of a call; False when it has ended. Under the monitor of its run."""
    if handle.done():
        return False
    handle.add_done_callback(lambda _: wake())
    return True
