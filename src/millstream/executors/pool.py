"""The pool executor: tasks on any ``concurrent.futures.Executor`` of the user's.

A worker is one job on the pool that calls many task runs, and gives the pool back after ``SLICE``
seconds, so that other users of the pool get their turn. Never more jobs are handed to it than it can
run at once. While a task waits, a spare thread of our own stands in for the pool's thread, so a flow
with waiting tasks ends even on a pool of one. The pool itself is never shut down from here.
May import: base, places, errors, thread.
"""

from __future__ import annotations

import concurrent.futures
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from millstream.errors import FlowError
from millstream.executors.base import Executor, Lane, Workers, here
from millstream.executors.places import Places, ThreadWorker, end_at_exit

#: How long a worker keeps a thread of somebody else's pool without a break, in seconds.
SLICE = 0.05


class PoolExecutor(Executor):
    """Wraps a ``concurrent.futures.Executor``; a flow does so by itself with one that it is given.

    A ``ProcessPoolExecutor`` calls plain functions in its processes; tasks that take the context are
    refused there.

    Args:
        executor: the pool. You shut it down, the flow does not.

    Raises:
        TypeError: it is no ``concurrent.futures.Executor``.
    """

    def __init__(self, executor: concurrent.futures.Executor) -> None:
        if not isinstance(executor, concurrent.futures.Executor):
            raise TypeError(f"PoolExecutor wraps a concurrent.futures.Executor, not {executor!r}.")
        self._pool = executor
        self._remote = is_process_pool(executor)
        size = getattr(executor, "_max_workers", None) or os.cpu_count() or 1
        self._places: Places = Places(size, "millstream-pool") if self._remote else PoolPlaces(executor, size)
        self._end = end_at_exit(self, self._places)

    def serve(self, *, is_async: bool, loop: Any = None, driven: bool = False) -> Workers | None:
        return None if is_async else self._places

    def adapt(self, name: str, fn: Callable[..., Any], takes_context: bool) -> Callable[..., Any]:
        """Return what is to be called for ``fn``: itself, or a call in one of the pool's processes."""
        if not self._remote:
            return fn
        if takes_context:
            raise FlowError(
                f"Task {name} takes the context, which a ProcessPoolExecutor cannot give it: pass what it "
                "needs as inputs, or give the task executor='thread'."
            )
        pool = self._pool
        return lambda *args, **kwargs: pool.submit(fn, *args, **kwargs).result()

    def shutdown(self, wait: bool = True) -> None:
        """End the spare threads. The pool that was passed in stays open."""
        self._places.shutdown(wait)

    def __repr__(self) -> str:
        return f"<PoolExecutor: {type(self._pool).__name__}, {self._places.capacity} workers>"


class PoolWorker(ThreadWorker):
    """A worker whose thread is the pool's, or a spare one in its stead."""

    def __init__(self, places: Places) -> None:
        super().__init__(places)
        self.queue = (True,)  # whether others wait for the pool cannot be seen: ask after each task run

    def overstays(self) -> bool:
        return bool(self.places.returning) or time.monotonic() - self.since > SLICE


class PoolPlaces(Places):
    """Places whose threads come from a pool, as far as it has any."""

    def __init__(self, pool: concurrent.futures.Executor, capacity: int) -> None:
        super().__init__(capacity, "millstream-pool")
        self.sleepers = 0  # the pool keeps threads; a spare one that is not needed ends
        self._pool = pool
        self._jobs = 0  # jobs that the pool has of us; guarded by _lock

    def _bring(self, lane: Lane) -> None:
        with self._lock:
            # A thread of the pool that asks is about to wait for the answer: it is not free.
            room = self._jobs < self.capacity and not self._asks_itself()
            if room:
                self._jobs += 1
        if not room:
            return super()._bring(lane)
        try:
            future = self._pool.submit(self._job, lane)
        except RuntimeError as error:  # shut down, or broken
            self._job_ended()
            lane.lost(str(error))
            return None
        future.add_done_callback(lambda job: self._check(job, lane))
        return None

    def _asks_itself(self) -> bool:
        threads = getattr(self._pool, "_threads", ())
        return here.worker is None and threading.current_thread() in threads

    def _job(self, lane: Lane) -> None:
        """Run in the pool: one worker's stay."""
        worker = PoolWorker(self)
        worker.since = time.monotonic()
        before, here.worker = here.worker, worker
        try:
            lane.work(worker)
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

    def _check(self, job: concurrent.futures.Future[None], lane: Lane) -> None:
        """Find out whether a job that the pool is done with has run at all."""
        if job.cancelled():
            self._job_ended()
            lane.lost("its pool was shut down and cancelled what was queued")
        elif (error := job.exception()) is not None:
            lane.lost(f"its pool broke: {error!r}")


def is_process_pool(executor: object) -> bool:
    """Whether ``executor`` calls in other processes; imports nothing to find out."""
    module = sys.modules.get("concurrent.futures.process")
    return module is not None and isinstance(executor, module.ProcessPoolExecutor)
