"""The thread executor: plain functions on daemon threads of our own, for blocking I/O.

May import: base, places, task, errors.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from millstream.errors import FlowClosedError
from millstream.executors.base import Executor, Workers
from millstream.executors.places import Places, end_with
from millstream.task import check_count


class ThreadExecutor(Executor):
    """Calls tasks in threads of its own, started when first needed.

    Args:
        max_workers: tasks that are under way at once; those that wait for a value do not count.
            Without it the standard library's number for thread pools: the cores plus 4, at most 32.

    Raises:
        TypeError, ValueError: ``max_workers`` is no whole number from 1 on.
    """

    def __init__(self, max_workers: int | None = None) -> None:
        self._places = Places(worker_count(max_workers), "millstream-thread")
        self._ended = end_with(self, partial(self._places.shutdown, False))

    @property
    def max_workers(self) -> int:
        """How many tasks can be under way at once."""
        return self._places.capacity

    def serve(self, *, is_async: bool, loop: Any = None, driven: bool = False) -> Workers | None:
        if self._places.closed:
            raise FlowClosedError("The thread executor")
        return None if is_async else self._places

    def shutdown(self, wait: bool = True) -> None:
        """End its threads; waits at most a second for tasks that are still running."""
        self._places.shutdown(wait)
        self._ended()

    def __repr__(self) -> str:
        return f"<ThreadExecutor: {self.max_workers} workers{', closed' if self._places.closed else ''}>"


def worker_count(max_workers: object) -> int:
    """Return a checked number of workers; the standard library's default for None."""
    if max_workers is None:
        return min(32, (os.cpu_count() or 1) + 4)
    return check_count(max_workers, "max_workers")
