"""The pool executor: tasks on any ``concurrent.futures.Executor`` of the user's.

A worker is one job on the pool that calls many task runs, and gives the pool back after ``SLICE``
seconds, so that other users of the pool get their turn. Never more jobs are handed to it than it can
run at once. While a task waits, a spare thread of our own stands in for the pool's thread, so a flow
with waiting tasks ends even on a pool of one. The pool itself is never shut down from here.

A pool of processes is another matter: see ``remote/pool.py``. May import: base, places, remote.pool, errors.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from millstream.errors import FlowClosedError
from millstream.executors.base import Executor, Lane, Workers, here
from millstream.executors.places import Places, ThreadWorker

if TYPE_CHECKING:
    from millstream.executors.remote.pool import ProcessPoolPlaces

#: How long a worker keeps a thread of somebody else's pool without a break, in seconds.
SLICE = 0.05


class PoolExecutor(Executor):
    """Wraps a ``concurrent.futures.Executor``; a flow does so by itself with one that it is given.

    Of a ``ProcessPoolExecutor``, and of a pool of ``loky``, tasks are called in its processes, and have the
    context there. What runs in them cannot be stopped: after a timeout it goes on, as in a thread.

    Args:
        executor: the pool. You shut it down, the flow does not.

    Raises:
        TypeError: it is no ``concurrent.futures.Executor``.
    """

    def __init__(self, executor: concurrent.futures.Executor) -> None:
        if not isinstance(executor, concurrent.futures.Executor):
            raise TypeError(f"PoolExecutor wraps a concurrent.futures.Executor, not {executor!r}.")
        self._pool = executor
        self.remote = is_process_pool(executor)
        self._places = places_of(executor)
        self._closed = False

    def serve(self, *, is_async: bool, loop: Any = None, driven: bool = False) -> Workers | None:
        if self._closed:
            raise FlowClosedError("The pool executor")
        self._places.warm_up()
        return None if is_async else self._places

    def shutdown(self, wait: bool = True) -> None:
        """Refuse further runs. The pool stays open; spare threads end as soon as they have no work."""
        self._closed = True
        if wait:
            self._places.join_leavers()

    def __repr__(self) -> str:
        return f"<PoolExecutor: {type(self._pool).__name__}, {self._places.capacity} workers>"


class PoolWorker(ThreadWorker):
    """A worker whose thread is the pool's, or a spare one in its stead."""

    def __init__(self, places: Places) -> None:
        super().__init__(places)
        self.queue = (True,)  # whether others wait for the pool cannot be seen: ask after each task run

    def overstays(self) -> bool:
        return bool(self.places.returning) or time.monotonic() - self.since > SLICE


class Job:
    """A worker that was asked of the pool."""

    __slots__ = ("cancel", "lane")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.cancel: Callable[[], bool] = bool


class PoolPlaces(Places):
    """The places of one pool, for all flows that use it; their threads are the pool's where possible."""

    def __init__(self, pool: concurrent.futures.Executor, capacity: int) -> None:
        super().__init__(capacity, "millstream-pool")
        self.sleepers = 0  # the pool keeps threads; a spare one that is not needed ends
        self._pool = weakref.ref(pool)
        # Guarded by _lock, too:
        self._jobs = 0  #: jobs that the pool has of us
        self._queued: set[Job] = set()  #: those that have not begun
        self._callers = 0  #: threads of the pool that are no workers, and wait for a run

    def warm_up(self) -> None:
        """A run is about to begin, in this thread."""

    def _bring(self, lane: Lane) -> None:
        pool = self._pool()
        with self._lock:
            # A thread of the pool that asks is about to wait for the answer: it is not free.
            taken = self._jobs + self._callers + self._is_caller()
            room = pool is not None and taken < self.capacity
            job = Job(lane)
            if room:
                self._jobs += 1
                self._queued.add(job)
        if pool is None or not room:
            super()._bring(lane)
            return
        try:
            future = pool.submit(self._job, job)
        except RuntimeError as error:  # shut down, or broken
            self._never_ran(job, str(error))
            return
        with self._lock:
            if job in self._queued:
                job.cancel = future.cancel
        future.add_done_callback(partial(self._check, job))

    def _is_caller(self) -> bool:
        threads = getattr(self._pool(), "_threads", ())
        return here.worker is None and threading.current_thread() in threads

    @contextmanager
    def caller_waits(self) -> Generator[None, None, None]:
        if not self._is_caller():
            yield
            return
        with self._lock:
            self._callers += 1
            taken_back = list(self._queued) if self._jobs + self._callers > self.capacity else []
            self._queued.difference_update(taken_back)
            self._jobs -= len(taken_back)
        # This thread may be the one that was to do what is queued: spare threads do it.
        for job in taken_back:
            job.cancel()
            super()._bring(job.lane)
        try:
            yield
        finally:
            with self._lock:
                self._callers -= 1

    def _job(self, job: Job) -> None:
        """Run in the pool: one worker's stay."""
        with self._lock:
            if job not in self._queued:
                return  # a spare thread has done it
            self._queued.discard(job)
            job.cancel = bool  # its future refers to the job: no circle
        worker = PoolWorker(self)
        worker.since = time.monotonic()
        before, here.worker = here.worker, worker
        try:
            job.lane.work(worker)
        finally:
            here.worker = before
            self._job_ended(worker)

    def _job_ended(self, worker: ThreadWorker | None = None) -> None:
        with self._lock:
            self._jobs -= 1
            if worker is None or not worker.dismissed:
                self.free += 1
            granted = self._grant()
        self._send(granted)

    def _check(self, job: Job, future: concurrent.futures.Future[None]) -> None:
        """Find out whether a job that the pool is done with has run at all."""
        if future.cancelled():
            self._never_ran(job, "its pool was shut down and cancelled what was queued")
        elif (error := future.exception()) is not None:
            self._never_ran(job, f"its pool broke: {error!r}")

    def _never_ran(self, job: Job, reason: str) -> None:
        with self._lock:
            if job not in self._queued:
                return
            self._queued.discard(job)
        self._job_ended()
        job.lane.lost(reason)


_places: weakref.WeakKeyDictionary[concurrent.futures.Executor, PoolPlaces | ProcessPoolPlaces] = (
    weakref.WeakKeyDictionary()
)
_places_lock = threading.Lock()


def places_of(pool: concurrent.futures.Executor) -> PoolPlaces | ProcessPoolPlaces:
    """Return the places of a pool: the same ones for all who use it, so that they know of each other."""
    with _places_lock:
        places = _places.get(pool)
        if places is None:
            size = getattr(pool, "_max_workers", None) or os.cpu_count() or 1
            places = _places[pool] = _process_places(pool, size) if is_process_pool(pool) else PoolPlaces(pool, size)
        return places


def _process_places(pool: concurrent.futures.Executor, size: int) -> ProcessPoolPlaces:
    from millstream.executors.remote.pool import ProcessPoolPlaces

    return ProcessPoolPlaces(pool, size)


#: Pools that call in other processes, by the module of their class.
PROCESS_POOLS = frozenset({"concurrent.futures.process", "loky.process_executor", "loky.reusable_executor"})


def is_process_pool(executor: object) -> bool:
    """Whether ``executor`` calls in other processes; imports nothing to find out."""
    return any(kind.__module__ in PROCESS_POOLS for kind in type(executor).__mro__)
