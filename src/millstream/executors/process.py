"""The process executor: tasks in worker processes of its own, for work that keeps a core busy.

What it takes is loaded with the first run. May import: base, remote.own, remote.wire, task, errors.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from millstream.errors import FlowClosedError
from millstream.executors.base import Executor, Workers
from millstream.executors.places import end_with
from millstream.task import check_count

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

    from millstream.executors.remote.own import ProcessPlaces


class ProcessExecutor(Executor):
    """Calls tasks in worker processes, which are started when they are needed and kept.

    Functions, arguments and results travel by ``pickle``; with ``cloudpickle`` installed also functions that
    are defined inside others. Where worker processes are started by ``spawn`` or ``forkserver``, a program's
    main module is imported again in each, so what it does must stand below ``if __name__ == "__main__":``.

    Args:
        max_workers: tasks that are under way at once, and processes; those that wait for a value do not
            count. Without it the number of cores.
        mp_context: how processes are started: a context of ``multiprocessing``, or ``"spawn"``,
            ``"forkserver"`` or ``"fork"``. Without it ``forkserver`` on Linux, ``spawn`` elsewhere.
        initializer: called in each new process before its first task. If it fails, the run ends with
            ``ExecutorLostError`` from what it raised.
        initargs: what it is called with.
        max_tasks_per_child: a process is replaced after so many calls.

    Raises:
        TypeError, ValueError: a number that is no whole number from 1 on, no such context, an initializer
            that cannot be called or does not pickle.
    """

    remote = True

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        max_tasks_per_child: int | None = None,
    ) -> None:
        workers = (os.cpu_count() or 1) if max_workers is None else check_count(max_workers, "max_workers")
        limit = None if max_tasks_per_child is None else check_count(max_tasks_per_child, "max_tasks_per_child")
        initargs = tuple(initargs)
        if initializer is not None:
            check_initializer(initializer, initargs)
        self._workers = workers
        self._given = checked_context(mp_context), initializer, initargs, limit
        self._lock = threading.Lock()
        # Guarded by _lock: everything below.
        self._places: ProcessPlaces | None = None
        self._closed = False

    @property
    def max_workers(self) -> int:
        """Tasks that are under way at once."""
        return self._workers

    def serve(self, *, is_async: bool, loop: Any = None, driven: bool = False) -> Workers | None:
        with self._lock:
            if self._closed:
                raise FlowClosedError("The process executor")
            if is_async:
                return None
            if self._places is None:
                from millstream.executors.remote.own import ProcessPlaces

                self._places = ProcessPlaces(self._workers, *self._given)
                end_with(self, partial(self._places.shutdown, False))
            return self._places

    def shutdown(self, wait: bool = True) -> None:
        """End its processes and threads; waits at most a second or two. Tasks that are still running are killed."""
        with self._lock:
            self._closed = True
        if self._places is not None:
            self._places.shutdown(wait)

    def __repr__(self) -> str:
        return f"<ProcessExecutor: {self.max_workers} workers{', closed' if self._closed else ''}>"


def checked_context(context: BaseContext | str | None) -> BaseContext | None:
    """Return how processes are to be started; None: as it is usual here.

    Raises:
        TypeError, ValueError: it is no context, or the name of no start method.
    """
    if isinstance(context, str):
        from multiprocessing import get_context

        return get_context(context)
    if context is not None and not hasattr(context, "Process"):
        raise TypeError(f"mp_context is a context of multiprocessing or the name of a start method, not {context!r}.")
    return context


def check_initializer(initializer: object, initargs: tuple[Any, ...]) -> None:
    """Refuse what cannot be called, or cannot travel to the process that is to call it."""
    if not callable(initializer):
        raise TypeError(f"The initializer of worker processes is a callable, not {initializer!r}.")
    from millstream.executors.remote.wire import encode

    try:
        encode((initializer, initargs))
    except Exception as error:
        raise TypeError(f"The initializer {initializer!r} and its initargs cannot be pickled: {error}.") from error
