"""The ready queue of a lane: task runs that wait for nothing but a worker.

While all priorities are 0 it is a plain deque, in which both ends are one step of C. With the first
other priority it changes for good: then it is a heap behind a lock, the highest priority first, and
those of one priority in their order. Only the holder of the run's monitor puts; anybody may take.
May import: the standard library.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any


class Ready:
    """A queue with priorities that costs nothing without them."""

    __slots__ = ("_ranked", "plain", "put")

    put: Callable[[Any], None]  #: append a task run of priority 0 behind the others of its priority

    def __init__(self) -> None:
        self.plain: deque[Any] = deque()  #: everything, while there are no priorities
        self._ranked: Ranked | None = None
        self.put = self.plain.append

    def rank(self, run: Any) -> None:
        """Append a task run of any priority behind those of its priority."""
        if self._ranked is None:
            self._ranked = Ranked()
            # Workers find the deque empty from here on, and look at the heap then.
            self._ranked.extend(_drained(self.plain))
            self.put = self._ranked.put
        self._ranked.put(run)

    def popleft(self) -> Any:
        """Take the first one.

        Raises:
            IndexError: there is none.
        """
        run = self.plain.popleft() if self._ranked is None else self._ranked.take()
        if run is None:
            raise IndexError("nothing is ready")
        return run

    def take(self) -> Any:
        """Take the first of those that have priorities, after ``plain`` was found empty; None without one."""
        return None if self._ranked is None else self._ranked.take()

    def appendleft(self, run: Any) -> None:
        """Put back what was taken, before all others of its priority."""
        if self._ranked is None:
            self.plain.appendleft(run)
        else:
            self._ranked.put_back(run)

    def remove(self, run: Any) -> bool:
        """Take out one task run; False when a worker was quicker."""
        try:
            self.plain.remove(run)
        except ValueError:
            return self._ranked is not None and self._ranked.remove(run)
        return True

    def __len__(self) -> int:
        return len(self.plain) if self._ranked is None else len(self.plain) + len(self._ranked.heap)

    def __iter__(self) -> Iterator[Any]:
        yield from tuple(self.plain)
        if self._ranked is not None:
            yield from self._ranked.in_order()


class Ranked:
    """A heap of task runs, the highest priority first, behind a lock."""

    __slots__ = ("_first", "_last", "_lock", "heap")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guarded by _lock: everything below.
        self.heap: list[tuple[int, int, Any]] = []
        self._first = self._last = 0

    def extend(self, runs: Iterable[Any]) -> None:
        for run in runs:
            self.put(run)

    def put(self, run: Any) -> None:
        with self._lock:
            self._last += 1
            heappush(self.heap, (-run.priority, self._last, run))

    def put_back(self, run: Any) -> None:
        with self._lock:
            self._first -= 1
            heappush(self.heap, (-run.priority, self._first, run))

    def take(self) -> Any:
        if not self.heap:  # seen without the lock: who puts sends for workers after that
            return None
        with self._lock:
            return heappop(self.heap)[2] if self.heap else None

    def remove(self, run: Any) -> bool:
        with self._lock:
            for place, entry in enumerate(self.heap):
                if entry[2] is run:
                    del self.heap[place]
                    heapify(self.heap)
                    return True
        return False

    def in_order(self) -> list[Any]:
        with self._lock:
            return [entry[2] for entry in sorted(self.heap)]


def _drained(queue: deque[Any]) -> Iterator[Any]:
    while True:
        try:
            yield queue.popleft()
        except IndexError:
            return
