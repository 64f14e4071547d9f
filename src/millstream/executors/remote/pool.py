"""Worker processes that belong to a pool of the user's, for a while each.

A job of ours is submitted to the pool. It calls back through a socket, and is a worker process until it is sent
away: after ``SLICE`` seconds at the latest, so that other users of the pool get their turn. May import: calls,
places, wire, worker.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import selectors
import socket
import tempfile
import time
import weakref
from typing import Any

from millstream.executors.places import ThreadWorker
from millstream.executors.remote.calls import Lost
from millstream.executors.remote.places import Link, RemotePlaces, RemoteWorker
from millstream.executors.remote.wire import Closed, To, Wire
from millstream.executors.remote.worker import attend

#: How long a worker keeps a process of the pool without a break, in seconds.
SLICE = 0.05


class ProcessPoolWorker(RemoteWorker):
    """A thread of ours that has task runs called in a process of the pool, for a while."""

    def __init__(self, places: RemotePlaces) -> None:
        super().__init__(places)
        self.queue = (True,)

    def overstays(self) -> bool:
        return bool(self.places.returning) or time.monotonic() - self.since > SLICE


class PoolLink(Link):
    """A process of the pool, for as long as one job of ours takes."""

    kills = False

    def __init__(self, wire: Wire, job: concurrent.futures.Future[None]) -> None:
        super().__init__(wire)
        job.add_done_callback(lambda _: self.has_ended())

    def close(self) -> None:
        for channel in self.free:
            try:
                channel.wire.send((To.LEAVE,))
            except Closed:
                pass
            channel.wire.close()


class ProcessPoolPlaces(RemotePlaces):
    """The places of one pool of processes, for all flows that use it."""

    kills = False
    borrows = True

    def __init__(self, pool: concurrent.futures.Executor, capacity: int) -> None:
        super().__init__(capacity, "millstream-pool")
        self.sleepers = 0  # a thread of ours that is not needed ends
        self._pool = weakref.ref(pool)
        self._warm = False
        start_method = getattr(getattr(pool, "_mp_context", None), "get_start_method", lambda: None)()
        self.imports_main = start_method != "fork"

    def new_worker(self) -> ThreadWorker:
        return ProcessPoolWorker(self)

    def warm_up(self) -> None:
        """Submit something in the caller's thread: a pool that forks does so now, and not in a thread of ours."""
        pool = self._pool()
        with self._lock:
            warm, self._warm = self._warm, True
        if not warm and pool is not None:
            try:
                pool.submit(int)
            except RuntimeError:  # it is shut down, or broken: runs are told when they ask for workers
                pass

    def start_link(self) -> Link:
        pool = self._pool()
        if pool is None:
            raise Lost("its pool is gone", final=True)
        with tempfile.TemporaryDirectory(prefix="millstream-") as folder:  # for this user alone
            path = os.path.join(folder, "s")
            listener = socket.socket(socket.AF_UNIX)
            ended, ends = socket.socketpair()
            try:
                listener.bind(path)
                listener.listen(1)
                try:
                    job = pool.submit(attend, path, logging.getLogger("millstream").level)
                except RuntimeError as error:  # it is shut down, or broken
                    ends.close()
                    raise Lost(str(error), final=True) from None
                job.add_done_callback(lambda _: ends.close())
                return PoolLink(self._accepted(listener, ended, job), job)
            finally:
                listener.close()
                ended.close()

    def _accepted(self, listener: socket.socket, ended: socket.socket, job: Any) -> Wire:
        """Wait until the job of ours has begun, and has called; or has ended without that."""
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(ended, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select()]
        if listener not in ready:
            problem = "was cancelled" if job.cancelled() else f"broke: {job.exception()!r}"
            raise Lost(f"its pool {problem}", final=True)
        wire = Wire(listener.accept()[0])
        try:
            wire.receive()
        except Closed:
            raise Lost("its pool ended the process that was to call it", final=True) from None
        return wire
