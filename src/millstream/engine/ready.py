"""The ready queue of a lane: task runs that wait for nothing but a worker.

While all priorities are 0 it is a plain deque, from which workers take in one step of C. With the
first other priority it changes for good: one deque for each priority, the highest is taken from first.
Only the holder of the run's monitor puts; anybody may take at any time, without a lock, since each
single step on a deque is atomic. May import: the standard library.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any


class Ready:
    """A queue with priorities that costs nothing without them."""

    __slots__ = ("_order", "_ranks", "plain")

    def __init__(self) -> None:
        self.plain: deque[Any] = deque()  #: everything, while there are no priorities
        self._ranks: dict[int, deque[Any]] | None = None
        self._order: list[int] = []  #: the priorities there are, the highest first

    def put(self, run: Any) -> None:
        """Append a task run behind those of its priority."""
        if self._ranks is None:
            if not run.priority:
                self.plain.append(run)
                return
            self._rank()
        self._rank_of(run.priority).append(run)

    def popleft(self) -> Any:
        """Take the first one.

        Raises:
            IndexError: there is none.
        """
        run = self.plain.popleft() if self._ranks is None else self.take()
        if run is None:
            raise IndexError("nothing is ready")
        return run

    def take(self) -> Any:
        """Take the first of those that have priorities, after ``plain`` was found empty; None without one."""
        ranks = self._ranks
        if ranks is not None:
            for priority in tuple(self._order):
                try:
                    return ranks[priority].popleft()
                except IndexError:
                    pass
        return None

    def appendleft(self, run: Any) -> None:
        """Put back what was taken, before all others of its priority."""
        (self.plain if self._ranks is None else self._rank_of(run.priority)).appendleft(run)

    def remove(self, run: Any) -> bool:
        """Take out one task run; False when a worker was quicker."""
        queues = [self.plain, *(self._ranks or {}).values()]
        for queue in queues:
            try:
                queue.remove(run)
            except ValueError:
                continue
            return True
        return False

    def __len__(self) -> int:
        return len(self.plain) + sum(map(len, (self._ranks or {}).values()))

    def __iter__(self) -> Iterator[Any]:
        yield from tuple(self.plain)
        for queue in tuple((self._ranks or {}).values()):
            yield from tuple(queue)

    def _rank(self) -> None:
        """Give up the plain deque. Its workers find it empty, and look here then."""
        waiting = []
        while True:
            try:
                waiting.append(self.plain.popleft())
            except IndexError:
                break
        self._order = [0]
        self._ranks = {0: deque(waiting)}

    def _rank_of(self, priority: int) -> deque[Any]:
        assert self._ranks is not None, "the queue was ranked by the first priority"
        if priority not in self._ranks:
            self._ranks[priority] = deque()
            self._order = sorted(self._ranks, reverse=True)
        return self._ranks[priority]
