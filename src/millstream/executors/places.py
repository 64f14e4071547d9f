"""Threads that share a number of places: the common part of the thread, inline and pool executors.

A *claim* is somebody who wants a place: a lane that needs a worker, or a worker whose task waited
and goes on. Claims are served in order, those that go on first. Whoever frees a place grants it to
the next claim in the same locked step, so no place is idle while somebody wants it.

Threads are our own daemons: a stuck task never keeps the interpreter alive, and they are told to end
when the executor is shut down, is garbage, or the interpreter exits. May import: base, errors.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from millstream.executors.base import Lane, Worker, Workers, here

#: How long a worker stays with one lane while others want its place, in seconds: long against the
#: cost of a change of thread (15 µs and more), short against what a person notices.
SLICE = 0.005

#: How long ``shutdown`` waits for a thread to end, in seconds.
JOIN = 1.0

_numbers = count(1)


class ThreadWorker(Worker):
    """A thread's side of a place."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.queue: Any = places.claims
        self.item: Any = None
        self.dismissed = False
        self.counted = False
        self.away = False  #: its task waits, and it has given its place back; guarded by the places
        self.since = 0.0  #: when it came to its lane
        self.mail: Lane | None = None  #: the lane it is sent to while it sleeps
        self.gate: threading.Lock | None = None  #: held while its task is to go on and has no place
        self.wake = threading.Lock()  #: held while it sleeps
        self.wake.acquire()

    def overstays(self) -> bool:
        return bool(self.places.returning) or time.monotonic() - self.since > SLICE

    def give_back(self) -> None:
        self.places.lend(self)

    def take_back(self) -> None:
        self.places.regain(self)

    def stall(self) -> None:
        self.places.stall(1)

    def go_on(self) -> None:
        self.places.stall(-1)

    def dismiss(self, item: object) -> None:
        self.places.replace(self, item)


class Places(Workers):
    """A number of places, the threads that hold them, and who wants one.

    Args:
        capacity: number of places.
        name: what its threads are called.
    """

    burst = 1_000_000  # a lane may ask for as many workers as it has task runs

    def __init__(self, capacity: int, name: str) -> None:
        self.capacity = capacity
        self.sleepers = capacity  #: threads kept for later while there is nothing to do
        self.name = name
        # Guarded by _lock: everything below. It is never held while anything else is waited for.
        self._lock = threading.Lock()
        self.claims: deque[Lane | ThreadWorker] = deque()  #: workers that go on first, then lanes
        self.returning = 0  #: how many of the claims are workers that go on
        self.free = capacity
        #: Workers whose task waits for a reader. They keep their places, but a worker that goes on
        #: (its task may be the reader) does not wait for these: ``free`` can fall as far below zero.
        self.stalled = 0
        self.idle: list[ThreadWorker] = []
        self.crew: dict[ThreadWorker, threading.Thread] = {}  #: every thread that has not ended
        self.closed = False

    # ---- the engine's side --------------------------------------------------------------------

    def request(self, lane: Lane) -> None:
        with self._lock:
            closed = self.closed
            if not closed:
                self.claims.append(lane)
                granted = self._grant()
        if closed:
            lane.lost(f"{self.name} is shut down")
        else:
            self._send(granted)

    def free_place(self) -> None:
        """A place is free: grant it to whoever wants it."""
        with self._lock:
            self.free += 1
            granted = self._grant()
        self._send(granted)

    def lend(self, worker: ThreadWorker) -> None:
        """The task of ``worker`` waits: its place is free for as long."""
        with self._lock:
            if worker.dismissed or worker.away:
                return
            worker.away = True
            self.free += 1
            granted = self._grant()
        self._send(granted)

    def regain(self, worker: ThreadWorker) -> None:
        """Wait until ``worker``, whose task goes on, has a place again."""
        with self._lock:
            if not worker.away:
                return
            worker.away = False
            if worker.dismissed:
                return
            if self.free + self.stalled > 0 and not self.returning:
                self.free -= 1
                return
            worker.gate = gate = threading.Lock()
            gate.acquire()
            self.claims.insert(self.returning, worker)
            self.returning += 1
        gate.acquire()

    def replace(self, worker: ThreadWorker, item: object) -> None:
        """The task of ``worker`` may never return: its place is free, and it has none; unless it has returned."""
        with self._lock:
            # A worker has no item before it gives its place back here, so one that has this item has a place.
            if worker.dismissed or worker.item is not item:
                return
            worker.dismissed = True
            self.free += not worker.away
            granted = self._grant()
        self._send(granted)

    def stall(self, by: int) -> None:
        """One more, or one fewer, worker waits for a reader."""
        with self._lock:
            self.stalled += by
            granted = self._grant()
        self._send(granted)

    def shutdown(self, wait: bool = True) -> None:
        """Send every sleeping thread home; the others end when their task does."""
        with self._lock:
            self.closed = True
            lanes = [claim for claim in self.claims if not isinstance(claim, ThreadWorker)]
            for lane in lanes:
                self.claims.remove(lane)
            idle, self.idle = self.idle, []
            threads = [thread for worker, thread in self.crew.items() if not worker.dismissed]
        for lane in lanes:
            lane.lost(f"{self.name} is shut down")
        for worker in idle:
            worker.mail = None
            worker.wake.release()
        if wait:
            limit = time.monotonic() + JOIN
            for thread in threads:
                if thread is not threading.current_thread():
                    thread.join(max(0.0, limit - time.monotonic()))

    def join_leavers(self) -> None:
        """Wait until spare threads that have nothing to do have ended."""
        with self._lock:
            leavers = [thread for worker, thread in self.crew.items() if worker.item is None and worker.mail is None]
        for thread in leavers:
            if thread is not threading.current_thread():
                thread.join(JOIN)

    # ---- inside -------------------------------------------------------------------------------

    def _grant(self) -> list[tuple[ThreadWorker | None, Lane | None]]:
        """Give free places to claims; return who must be woken, and with what, after the lock."""
        granted: list[tuple[ThreadWorker | None, Lane | None]] = []
        while self.claims:
            claim = self.claims[0]
            if self.free + (self.stalled if isinstance(claim, ThreadWorker) else 0) <= 0:
                break
            self.claims.popleft()
            self.free -= 1
            if isinstance(claim, ThreadWorker):
                self.returning -= 1
                granted.append((claim, None))
            else:
                granted.append((self.idle.pop() if self.idle else None, claim))
        return granted

    def _send(self, granted: list[tuple[ThreadWorker | None, Lane | None]]) -> None:
        for worker, lane in granted:
            if lane is None:
                _let_on(worker)
            elif worker is None:
                self._bring(lane)
            else:
                worker.mail = lane
                worker.wake.release()

    def _bring(self, lane: Lane) -> None:
        """Start a thread for ``lane``, which has a place already."""
        worker = self.new_worker()
        worker.mail = lane
        thread = threading.Thread(target=_run, args=(worker,), name=f"{self.name}-{next(_numbers)}", daemon=True)
        error = None
        with self._lock:
            self.crew[worker] = thread
            try:
                if sys.is_finalizing():  # it would never run, and ``start`` would wait for it
                    raise RuntimeError("the interpreter is shutting down")
                thread.start()  # in here, so that ``shutdown`` joins only what was started
            except RuntimeError as refused:  # no more threads, or the interpreter is shutting down
                error = refused
        if error is not None:
            self.ended(worker)
            self.free_place()
            lane.lost(str(error))

    def new_worker(self) -> ThreadWorker:
        """Return the side of a place that a new thread is to have."""
        return ThreadWorker(self)

    def ended(self, worker: ThreadWorker) -> None:
        """The thread of ``worker`` is about to end."""
        with self._lock:
            self.crew.pop(worker, None)

    def next_lane(self, worker: ThreadWorker) -> Lane | None:
        """``worker`` has left its lane: return the next one, sleeping until there is one.

        None: it is not needed any more, and its thread ends.
        """
        with self._lock:
            if worker.dismissed:
                worker.dismissed = False
            else:
                self.free += 1
            granted = self._grant_to(worker)
            mine = worker.mail
            sleeps = mine is None and not self.closed and len(self.idle) < self.sleepers
            if sleeps:
                self.idle.append(worker)
        self._send(granted)
        if not sleeps:
            return mine
        worker.wake.acquire()
        return worker.mail

    def _grant_to(self, worker: ThreadWorker) -> list[tuple[ThreadWorker | None, Lane | None]]:
        """Grant as usual, but let ``worker`` itself take the first lane."""
        worker.mail = None
        granted: list[tuple[ThreadWorker | None, Lane | None]] = []
        for other, lane in self._grant():
            if lane is not None and worker.mail is None:
                worker.mail = lane
                if other is not None and other is not getattr(self, "driver", None):
                    self.idle.append(other)
            else:
                granted.append((other, lane))
        return granted


def _let_on(worker: ThreadWorker | None) -> None:
    assert worker is not None, "a claim without a lane is a worker"
    assert worker.gate is not None, "and one that goes on"
    worker.gate.release()


def _run(worker: ThreadWorker) -> None:
    """The life of a thread: it holds its places, and no executor, so that one may become garbage."""
    here.worker = worker
    lane = worker.mail
    while lane is not None:
        worker.since = time.monotonic()
        worker.mail = None
        lane.work(worker)
        lane = None  # a sleeping thread keeps no run alive
        lane = worker.places.next_lane(worker)
    worker.places.ended(worker)


def end_with(owner: object, end: Callable[[], object]) -> Callable[[], object]:
    """Call ``end`` when ``owner`` is garbage, or when the interpreter exits; return what calls that off."""
    return weakref.finalize(owner, _end, end).detach


def _end(end: Callable[[], object]) -> None:
    # Garbage is collected in any thread, also in one that holds the lock of these very places, or runs an event loop.
    if threading.main_thread().is_alive():
        threading.Thread(target=end, name="millstream-end", daemon=True).start()
    else:  # the interpreter exits, and would end such a thread in the middle
        end()
