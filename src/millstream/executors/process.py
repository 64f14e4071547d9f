"""The process executor: tasks in worker processes of its own, for work that keeps a core busy.

A process is started when there is a task for it and all others are busy, by ``forkserver`` on Linux and
``spawn`` elsewhere: a plain fork copies locks that other threads hold. One that is lost is replaced when it
is needed. ``multiprocessing`` itself is imported with the first process. May import: base, remote, thread,
worker, wire, task, errors.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from itertools import count
from typing import TYPE_CHECKING, Any

from millstream.errors import FlowClosedError
from millstream.executors.base import Executor, Lost, Workers
from millstream.executors.places import JOIN, end_at_exit
from millstream.executors.remote import Link, RemotePlaces
from millstream.executors.wire import Back, Closed, Wire, decode_error, encode
from millstream.task import check_count

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

#: How often a process that was killed while it started is started again.
STARTS = 3

_numbers = count(1)


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
        if mp_context is not None and not isinstance(mp_context, str) and not hasattr(mp_context, "Process"):
            raise TypeError(
                f"mp_context is a context of multiprocessing or the name of a start method, not {mp_context!r}."
            )
        initargs = tuple(initargs)
        if initializer is not None:
            check_initializer(initializer, initargs)
        self._places = ProcessPlaces(workers, mp_context, initializer, initargs, limit)
        self._end = end_at_exit(self, self._places)

    @property
    def max_workers(self) -> int:
        """Tasks that are under way at once."""
        return self._places.capacity

    def serve(self, *, is_async: bool, loop: Any = None, driven: bool = False) -> Workers | None:
        if self._places.closed:
            raise FlowClosedError("The process executor")
        return None if is_async else self._places

    def shutdown(self, wait: bool = True) -> None:
        """End its processes and threads; waits at most a second or two. Tasks that are still running are killed."""
        self._places.shutdown(wait)

    def __repr__(self) -> str:
        return f"<ProcessExecutor: {self.max_workers} workers{', closed' if self._places.closed else ''}>"


def check_initializer(initializer: object, initargs: tuple[Any, ...]) -> None:
    """Refuse what cannot be called, or cannot travel to the process that is to call it."""
    if not callable(initializer):
        raise TypeError(f"The initializer of worker processes is a callable, not {initializer!r}.")
    try:
        encode((initializer, initargs))
    except Exception as error:
        raise TypeError(f"The initializer {initializer!r} and its initargs cannot be pickled: {error}.") from error


class ProcessLink(Link):
    """A worker process of ours."""

    def __init__(self, wire: Wire, process: BaseProcess) -> None:
        super().__init__(wire)
        self.process = process

    def kill(self) -> None:
        try:
            self.process.kill()
        except ValueError:  # it has ended, and was closed
            pass

    def join(self, timeout: float) -> bool:
        self.process.join(timeout)
        return self.process.exitcode is not None

    def reason(self) -> str:
        if self.ended:
            return self.ended
        if not self.join(JOIN):
            self.kill()  # it has closed its wire, and can do nothing any more
        return f"its worker process {said_of(self.process.exitcode)}"


def said_of(exitcode: int | None) -> str:
    """Return how a process has ended."""
    if exitcode is None:
        return "has stopped to answer"
    if exitcode >= 0:
        return f"ended with exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    return f"was killed by {name}" + (" (is there enough memory?)" if name == "SIGKILL" else "")


class ProcessPlaces(RemotePlaces):
    """The places of one process executor, and its processes."""

    def __init__(
        self,
        capacity: int,
        mp_context: BaseContext | str | None,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        max_calls: int | None,
    ) -> None:
        super().__init__(capacity, "millstream-process", max_calls)
        self._given = mp_context
        self._initializer = initializer, initargs
        self._starts = threading.Lock()  # one at a time: a fork must not copy sockets that others are about to close
        self._context: BaseContext | None = None
        if isinstance(mp_context, str):
            self.context()

    def context(self) -> BaseContext:
        """Return how processes are started."""
        import multiprocessing

        if self._context is None:
            given = self._given
            if given is None:
                given = "forkserver" if sys.platform == "linux" else "spawn"
            self._context = multiprocessing.get_context(given) if isinstance(given, str) else given
            self.imports_main = self._context.get_start_method() != "fork"
            _close_before_multiprocessing(self)
        return self._context

    def start_link(self) -> Link:
        killed = 0
        while True:
            process, wire = self._start()
            try:
                kind, *told = wire.receive()
            except Closed:
                wire.close()
                process.join(JOIN)
                killed += 1
                if killed < STARTS and (process.exitcode or 0) < 0 and not self.closed:
                    continue
                raise Lost(_never_ready(process), final=True) from None
            if kind == Back.READY:
                return ProcessLink(wire, process)
            wire.close()
            process.join(JOIN)
            error = decode_error(told[0], "initializer")
            raise Lost(f"its initializer raised {error!r}", final=True, cause=error)

    def _start(self) -> tuple[BaseProcess, Wire]:
        from millstream.executors.worker import main

        context = self.context()
        levels = {name: logging.getLogger(name).level for name in ("", "millstream")}
        with self._starts:
            ours, theirs = socket.socketpair()
            try:
                process: BaseProcess = context.Process(  # type: ignore[attr-defined]  # every context has it
                    target=main,
                    args=(theirs, *self._initializer, levels),
                    name=f"{self.name}-{next(_numbers)}",
                    daemon=False,  # tasks may have processes of their own
                )
                process.start()
            except Exception as error:  # no more processes, or the interpreter is shutting down
                ours.close()
                raise Lost(f"no worker process could be started: {error}", final=True, cause=error) from error
            finally:
                theirs.close()
        return process, Wire(ours)


def _never_ready(process: BaseProcess) -> str:
    return (
        f"a worker process {said_of(process.exitcode)} before it was ready; what it printed says more, and what a "
        "program does must stand below 'if __name__ == \"__main__\":', since workers import it, too"
    )


_open: weakref.WeakSet[ProcessPlaces] = weakref.WeakSet()
_registered: list[bool] = []


def _close_before_multiprocessing(places: ProcessPlaces) -> None:
    """See to it that processes end at exit before ``multiprocessing`` waits for them.

    It does so in a function that it registers with ``atexit`` when it is imported; the newest ones go first.
    """
    import multiprocessing.util  # noqa: F401 - before we register

    _open.add(places)
    if not _registered:
        _registered.append(True)
        atexit.register(_close_all)


def _close_all() -> None:
    for places in list(_open):
        places.shutdown(False)
