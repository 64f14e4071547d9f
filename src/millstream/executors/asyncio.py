"""The asyncio executor: ``async`` tasks on an event loop, plain functions in threads beside it.

A *pump* is an asyncio task that calls task runs one after another. When the coroutine that it awaits
suspends, another pump, asked for before, takes the next task run. So coroutines that never suspend
share one asyncio task, and those that do have one each, as ``asyncio.timeout`` and friends expect.
asyncio itself is imported when the first loop is needed. May import: base, places, thread, errors.
"""

from __future__ import annotations

import sys
import threading
from contextvars import Context as Variables
from typing import TYPE_CHECKING, Any

from millstream.errors import FlowClosedError
from millstream.executors.base import Executor, Lane, Worker, Workers, blocked_loops
from millstream.executors.places import JOIN, end_with
from millstream.executors.thread import ThreadExecutor

if TYPE_CHECKING:
    import asyncio


class AsyncioExecutor(Executor):
    """Calls ``async`` tasks on an event loop of its own, in a thread of its own.

    Under ``arun`` and ``astream`` they run on the caller's loop instead. Plain functions never block
    the loop: they are called in threads.

    Args:
        max_workers: threads for plain functions; as ``ThreadExecutor``. Coroutines are not limited.
    """

    def __init__(self, max_workers: int | None = None) -> None:
        self._threads = ThreadExecutor(max_workers)
        self._own = OwnLoop()
        self._ended = end_with(self, self._own.stop)

    def serve(self, *, is_async: bool, loop: Any = None, driven: bool = False) -> Workers | None:
        if not is_async:
            return self._threads.serve(is_async=False)
        return LoopWorkers(self._own.loop() if loop is None else loop)

    @property
    def is_blocked(self) -> bool:
        """Whether a coroutine on its loop waits, blocking, for a run: then no other one gets on there."""
        return any(self._own.is_loop(loop) for loop in blocked_loops)

    def shutdown(self, wait: bool = True) -> None:
        """Cancel what runs on its loop, end the loop and its threads; waits at most a second."""
        self._threads.shutdown(wait)
        self._own.stop(wait)
        self._ended()

    def __repr__(self) -> str:
        return "<AsyncioExecutor>"


class OwnLoop:
    """An event loop in a daemon thread, started when first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def loop(self) -> asyncio.AbstractEventLoop:
        import asyncio

        with self._lock:
            if self._closed:
                raise FlowClosedError("The asyncio executor")
            if self._loop is None:
                # A loop keeps the context variables that it was made with.
                loop = Variables().run(asyncio.new_event_loop)
                thread = threading.Thread(target=_run_loop, args=(loop,), name="millstream-loop", daemon=True)
                try:
                    thread.start()
                except BaseException:  # Ctrl-C: nobody will know of it
                    loop.call_soon_threadsafe(loop.stop)
                    raise
                self._loop, self._thread = loop, thread
            return self._loop

    def is_loop(self, loop: object) -> bool:
        return loop is not None and loop is self._loop

    def stop(self, wait: bool = True) -> None:
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._thread = None
        if loop is None or thread is None:
            return
        try:
            loop.call_soon_threadsafe(loop.stop)
        except RuntimeError:  # it is closed already
            return
        if wait and thread is not threading.current_thread():
            thread.join(JOIN)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    import asyncio

    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left, timeout=JOIN) if left else asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


class LoopWorker(Worker):
    """An asyncio task's side of things: on a loop there are no places."""

    def __init__(self) -> None:
        self.item: Any = None
        self.dismissed = False
        self.counted = False
        self.queue: Any = ()
        self.task: asyncio.Task[Any] | None = None  #: the pump; the engine cancels what it awaits

    def ended(self, _: object) -> None:
        """The pump is over. Its context variables know the last task run, which knows this worker: no circle."""
        self.task = None

    def overstays(self) -> bool:
        return False

    def give_back(self) -> None:
        pass

    def take_back(self) -> None:
        pass

    def stall(self) -> None:
        pass

    def go_on(self) -> None:
        pass

    def dismiss(self, item: object) -> None:
        self.dismissed = self.item is item


class LoopWorkers(Workers):
    """The pumps of one event loop."""

    burst = 1  # one pump is asked for at a time: it asks for the next when it has something to await

    def __init__(self, loop: asyncio.AbstractEventLoop, capacity: int = sys.maxsize) -> None:
        self.loop = loop
        self.capacity = capacity
        self._pumps: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references

    def request(self, lane: Lane) -> None:
        try:
            # Without the caller's context variables, which the loop would keep alive.
            self.loop.call_soon_threadsafe(self._start, lane, context=Variables())
        except RuntimeError as error:  # the loop is closed
            lane.lost(str(error))

    def _start(self, lane: Lane) -> None:
        worker = LoopWorker()
        worker.task = pump = self.loop.create_task(lane.work_async(worker), context=lane.variables())
        self._pumps.add(pump)
        pump.add_done_callback(self._pumps.discard)
        pump.add_done_callback(worker.ended)
