"""The ready queue of a lane: task runs that wait for nothing but a worker.

While all priorities are 0 it is a plain deque, from which workers take in one step of C. With the
first other priority it changes for good: then it is a heap behind a lock, the highest priority first,
and those of one priority in their order. Only the holder of the run's monitor puts; anybody may take.
May import: the standard library.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Any


class Ready:
    """A queue with priorities that costs nothing without them."""

    __slots__ = ("_first", "_heap", "_last", "_lock", "plain")

    def __init__(self) -> None:
        self.plain: deque[Any] = deque()  #: everything, while there are no priorities
        self._heap: list[tuple[int, int, Any]] | None = None  # guarded by _lock, with the two numbers
        self._lock = threading.Lock()
        self._first = self._last = 0

    def put(self, run: Any) -> None:
        """Append a task run behind those of its priority."""
        if self._heap is None and not run.priority:
            self.plain.append(run)
            return
        with self._lock:
            heap = self._rank() if self._heap is None else self._heap
            self._last += 1
            heappush(heap, (-run.priority, self._last, run))

    def popleft(self) -> Any:
        """Take the first one.

        Raises:
            IndexError: there is none.
        """
        run = self.plain.popleft() if self._heap is None else self.take()
        if run is None:
            raise IndexError("nothing is ready")
        return run

    def take(self) -> Any:
        """Take the first of those that have priorities, after ``plain`` was found empty; None without one."""
        if not self._heap:
            return None
        with self._lock:
            return heappop(self._heap)[2] if self._heap else None

    def appendleft(self, run: Any) -> None:
        """Put back what was taken, before all others of its priority."""
        if self._heap is None:
            self.plain.appendleft(run)
            return
        with self._lock:
            self._first -= 1
            heappush(self._heap, (-run.priority, self._first, run))

    def remove(self, run: Any) -> bool:
        """Take out one task run; False when a worker was quicker."""
        try:
            self.plain.remove(run)
        except ValueError:
            return self._heap is not None and self._remove_ranked(run)
        return True

    def __len__(self) -> int:
        return len(self.plain) + len(self._heap or ())

    def __iter__(self) -> Iterator[Any]:
        yield from tuple(self.plain)
        with self._lock:
            ranked = sorted(self._heap or ())
        yield from (entry[2] for entry in ranked)

    def _rank(self) -> list[tuple[int, int, Any]]:
        """Give up the plain deque. Its workers find it empty, and look at the heap then."""
        heap = self._heap = []
        while True:
            try:
                run = self.plain.popleft()
            except IndexError:
                return heap
            self._last += 1
            heap.append((0, self._last, run))  # in order, so it is a heap

    def _remove_ranked(self, run: Any) -> bool:
        with self._lock:
            for place, entry in enumerate(self._heap or ()):
                if entry[2] is run:
                    assert self._heap is not None, "it was found there"
                    del self._heap[place]
                    heapify(self._heap)
                    return True
        return False
