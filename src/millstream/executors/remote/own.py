"""Worker processes of our own: how they are started, and how they end.

A process is started when there is a task for it and all others are busy, by ``forkserver`` on Linux and
``spawn`` elsewhere: a plain fork copies locks that other threads hold. One that is lost is replaced when it
is needed. May import: calls, places, wire, worker, errors.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import multiprocessing.util
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from itertools import count
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from millstream.executors.places import JOIN
from millstream.executors.remote.calls import Lost
from millstream.executors.remote.places import Channel, Link, RemotePlaces
from millstream.executors.remote.wire import Back, Closed, Wire, decode_error, read_from_input
from millstream.executors.remote.worker import main

#: How often a process that was killed while it started is started again: by somebody else (as it seems), or by a
#: fault of its own.
STARTS, FAULTS = 50, 3
#: What ``multiprocessing`` says of a process whose exit code somebody else has read before.
UNKNOWN = 255
KILLED = frozenset({-signal.SIGKILL, -signal.SIGTERM, UNKNOWN})

_numbers = count(1)


class ProcessLink(Link):
    """A worker process of ours."""

    def __init__(self, wire: Wire, process: BaseProcess, watcher: Watcher) -> None:
        super().__init__(wire)
        self._process, self._watcher = process, watcher
        self._joining = threading.Lock()
        # Guarded by _joining: what becomes of the process.
        self.exitcode: int | None = None

    def kill(self, channel: Channel | None = None) -> None:
        try:
            self._process.kill()
        except ValueError:  # it has ended, and was closed
            pass

    def join(self, timeout: float) -> bool:
        with self._joining:
            if self.exitcode is None:
                self._process.join(timeout)
                self.exitcode = self._process.exitcode
                if self.exitcode is not None:
                    self._watcher.forget(self._process)
                    if not _leaving:  # else ``multiprocessing`` is about to wait for it
                        self._process.close()  # its files would stay until it is garbage
            ended = self.exitcode is not None
        if ended:
            self.has_ended()
        return ended

    def watch(self, channel: Channel, when_ended: Callable[[], object]) -> None:
        super().watch(channel, when_ended)
        with self._joining:
            if self.exitcode is None:
                self._watcher.watch(self._process, self.has_ended)
                return
        self.has_ended()

    def unwatch(self, channel: Channel) -> None:
        super().unwatch(channel)
        if not self._watched:
            self._watcher.forget(self._process)

    def reason(self, channel: Channel) -> str:
        if self.ended:
            return self.ended
        if not self.join(JOIN):
            self.kill()  # it has closed its wire, and can do nothing any more
        return f"its worker process {said_of(self.exitcode)}"


def said_of(exitcode: int | None) -> str:
    """Return how a process has ended."""
    if exitcode is None:
        return "has stopped to answer"
    if exitcode == UNKNOWN:
        return "was killed, or ended with exit code 255"
    if exitcode >= 0:
        return f"ended with exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    return f"was killed by {name}" + (" (is there enough memory?)" if name == "SIGKILL" else "")


class Watcher:
    """Sees processes end whose tasks wait, so that nobody receives from them.

    Its thread is there while there is something to watch.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guarded by _lock: everything below.
        self._watched: dict[BaseProcess, Callable[[], object]] = {}
        self._bell: tuple[socket.socket, socket.socket] | None = None  # wakes the thread, which is there if this is

    def watch(self, process: BaseProcess, when_ended: Callable[[], object]) -> None:
        with self._lock:
            if process in self._watched:
                return
            self._watched[process] = when_ended
            if self._bell is None:
                self._bell = socket.socketpair()
                threading.Thread(target=self._serve, args=self._bell, name="millstream-watch", daemon=True).start()
            else:
                self._bell[1].send(b"!")

    def forget(self, process: BaseProcess) -> None:
        """Nobody waits for the end of a process any more."""
        with self._lock:
            if self._watched.pop(process, None) is not None and self._bell is not None:
                self._bell[1].send(b"!")

    def _serve(self, bell: socket.socket, rings: socket.socket) -> None:
        while True:
            with self._lock:
                processes = {process.sentinel: process for process in self._watched}
                if not processes:
                    self._bell = None
                    break
            for ready in wait([bell, *processes]):
                if ready is bell:
                    bell.recv(4096)
                    continue
                with self._lock:
                    when_ended = self._watched.pop(processes[ready], None)  # type: ignore[index]
                if when_ended is not None:
                    when_ended()
        bell.close()
        rings.close()


class ProcessPlaces(RemotePlaces):
    """The places of one process executor, and its processes."""

    def __init__(
        self,
        capacity: int,
        mp_context: BaseContext | None,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        max_calls: int | None,
    ) -> None:
        super().__init__(capacity, "millstream-process", max_calls)
        if mp_context is None:
            mp_context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        self._context = mp_context
        self.imports_main = mp_context.get_start_method() != "fork"
        self._initializer = initializer, initargs
        self._starts = threading.Lock()  # one at a time: a fork must not copy sockets that others are about to close
        self._watcher = Watcher()
        self._beginners: set[ProcessLink] = set()  # processes that are not ready yet; added to under _starts
        close_before_multiprocessing(self)

    def start_link(self) -> Link:
        killed = 0
        while True:
            link, wire = self._start()
            try:
                kind, *told = wire.receive()
            except Closed:
                link.close()
                if not link.join(JOIN):
                    link.kill()
                killed += 1
                code = UNKNOWN if link.exitcode is None else link.exitcode
                most = STARTS if code in KILLED else FAULTS if code < 0 else 0
                if killed < most and not self.closed:
                    continue
                raise Lost(_never_ready(code), final=True) from None
            finally:
                self._beginners.discard(link)
            if kind == Back.READY:
                return link
            link.close()
            link.join(JOIN)
            error = decode_error(told[0], "initializer")
            raise Lost(f"its initializer raised {error!r}", final=True, cause=error)

    def _start(self) -> tuple[ProcessLink, Wire]:
        if self.imports_main and read_from_input():
            problem = "worker processes cannot import a program that is read from standard input: put it in a file"
            raise Lost(problem, final=True)
        levels = {name: logging.getLogger(name).level for name in ("", "millstream")}
        with self._starts:
            if self.closed:
                raise Lost(f"{self.name} is shut down", final=True)
            ours, theirs = socket.socketpair()
            try:
                process: BaseProcess = self._context.Process(  # type: ignore[attr-defined]  # every context has it
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
            wire = Wire(ours)
            link = ProcessLink(wire, process, self._watcher)
            self._beginners.add(link)
        return link, wire

    def shutdown(self, wait: bool = True) -> None:
        with self._lock:
            self.closed = True
        with self._starts:  # from here on nothing is started
            beginners = list(self._beginners)
        for link in beginners:
            link.kill()
        super().shutdown(wait)


def _never_ready(exitcode: int) -> str:
    return (
        f"a worker process {said_of(exitcode)} before it was ready; what it printed says more, and what a "
        "program does must stand below 'if __name__ == \"__main__\":', since workers import it, too"
    )


_open: weakref.WeakSet[ProcessPlaces] = weakref.WeakSet()
_registered: list[bool] = []
_leaving: list[bool] = []  # the interpreter exits


def close_before_multiprocessing(places: ProcessPlaces) -> None:
    """See to it that processes end at exit before ``multiprocessing`` waits for them.

    It does so in a function that it registers with ``atexit`` when it is imported; the newest ones go first.
    """
    _open.add(places)
    if not _registered:
        _registered.append(True)
        atexit.register(_close_all)


def _close_all() -> None:
    _leaving.append(True)
    for places in list(_open):
        places.shutdown(False)
