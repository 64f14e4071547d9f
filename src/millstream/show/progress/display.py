"""How far a run is, shown while it is under way: on a terminal ten times a second, in a log once a second at most.

A display has a thread of its own, which looks at the run and draws: no task run takes longer for it. Whatever happens
to the display, a terminal that is gone or a library that is broken, it ends silently, and the run goes on.

Rule 1: only that thread writes. ``close`` waits for it a moment, so a terminal that takes nothing holds up nobody.
Rule 2: optional libraries are imported by that thread, when a display on a terminal begins.

On a terminal it is drawn by rich, or else by tqdm, or else in the last row of the terminal (``last_rows``). With a
library, what child processes and code in C print may be mixed with it; in the last row nothing ever is. If the
process is killed or suspended, the terminal is left as it is then.

May import: report, values, status_line, last_rows, libraries.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from millstream.show.progress import libraries
from millstream.show.progress.last_rows import FEWEST, LAST_CHANCE, Line, takes
from millstream.show.progress.status_line import Rate, State, line, summary
from millstream.values import Status

if TYPE_CHECKING:
    from millstream.report import Tally

#: How long ``close`` waits for the last drawing, in seconds.
PATIENCE = 0.5

#: How long a fork waits for a drawing, in seconds. One that takes longer is on a terminal that takes nothing.
_FORK = 0.1

_LOG_WIDTH = 200  # a log has no width, but a line of it should be read


class Progress:
    """Shows how far a run is, until it is closed.

    Args:
        name: of the run.
        tally: gives how far it is; called by the display's own thread.
        stream: where to; ``sys.stderr``, as it is at ``begin``, when None.
        clock: returns seconds since some fixed instant.
    """

    def __init__(
        self,
        name: str,
        tally: Callable[[], Tally],
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._tally = tally
        self._stream = stream
        self._clock = clock
        self._began = 0.0
        self._rate = Rate()
        self._drawing = threading.Lock()  # held by the display's thread, and while this process forks
        self._closing = threading.Event()
        self._status = Status.ABANDONED  # of a run that nobody has ended when the interpreter exits
        self._thread: threading.Thread | None = None
        self._pid = 0

    def begin(self) -> None:
        """Show it from now on. Once only; without a stream, or a thread to be had, nothing is shown."""
        stream = sys.stderr if self._stream is None else self._stream
        if stream is None or self._thread is not None or self._closing.is_set() or sys.is_finalizing():
            return
        self._pid = os.getpid()
        self._began = self._clock()
        self._thread = threading.Thread(target=self._serve, args=(stream,), name="millstream-progress", daemon=True)
        _remember(self)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads
            self._thread = None
            _forget(self)

    def close(self, status: Status) -> None:
        """Draw the last state, and give the terminal back. Idempotent; takes half a second at the longest.

        The thread ends with it; on a terminal that takes no output, as soon as it does.
        """
        thread = self._thread
        if thread is not None and self._pid != os.getpid():  # a forked child has no display, but locks that are stuck
            return
        if not self._closing.is_set():
            self._status = status
            self._closing.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(PATIENCE)

    def _serve(self, stream: TextIO) -> None:
        display: _Display | None = None
        try:
            self._look()  # what the rate is counted from
            display = _simple(stream)
            if isinstance(display, Line) and not self._closing.wait(display.beat):  # a short run has its end only
                with self._drawing:
                    display = libraries.display(stream) or display
                self._draw(display)
            while not self._closing.wait(display.beat):
                self._draw(display)
            state = self._look()
            with self._drawing:
                display.end(state, self._status)
        except BaseException:  # whatever others' code raises: a display is not worth a run
            _end_silently(display)
        finally:
            _forget(self)

    def _draw(self, display: _Display) -> None:
        state = self._look()
        with self._drawing:
            display.draw(state)

    def _look(self) -> State:
        tally, now = self._tally(), self._clock()
        return State(self._name, tally, now - self._began, self._rate.at(now, tally.ended))


# ---- displays ---------------------------------------------------------------------------------------


class Log:
    """The display for what is no terminal: a line a second at most, when there is something new."""

    beat = 1.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._said: Tally | None = None
        self._at = float("-inf")

    def draw(self, state: State) -> None:
        """Write a line, unless there is nothing new or the last one is not a second old."""
        if state.elapsed - self._at >= 1.0 and state.tally != self._said and takes(self._stream):
            self._said, self._at = state.tally, state.elapsed
            _write_line(self._stream, line(state, _LOG_WIDTH))

    def end(self, state: State | None, status: Status) -> None:
        """Write the last line."""
        if state is not None and takes(self._stream, LAST_CHANCE):
            _write_line(self._stream, summary(state, status, _LOG_WIDTH))


_Display = Log | Line | libraries.Library


def _simple(stream: TextIO) -> Log | Line:
    """Return the display that needs no library."""
    if not getattr(stream, "isatty", bool)() or os.environ.get("TERM", "dumb") in ("dumb", ""):
        return Log(stream)
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except OSError:  # no terminal of the system's
        return Log(stream)
    return Line(stream) if columns > 0 and rows >= FEWEST else Log(stream)


def _end_silently(display: _Display | None) -> None:
    try:
        if display is not None:
            display.end(None, Status.ABANDONED)
    except BaseException:  # the terminal is gone
        pass


def _write_line(stream: TextIO, text: str) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(f"{text}\n".encode(encoding, "replace").decode(encoding))
    stream.flush()


# ---- what the displays of a process share -----------------------------------------------------------

# Held for a few steps, never while anything is written. Guards _open.
_guard = threading.Lock()
_open: set[Progress] = set()
_held: list[threading.Lock] = []  # by whoever forks


def _remember(progress: Progress) -> None:
    with _guard:
        if not _open:
            atexit.register(_at_exit)
        _open.add(progress)


def _forget(progress: Progress) -> None:
    with _guard:
        _open.discard(progress)
        if not _open:
            atexit.unregister(_at_exit)


def _at_exit() -> None:
    """Give every terminal back."""
    with _guard:
        left = tuple(_open)
    for progress in left:
        progress.close(Status.ABANDONED)


def _before_fork() -> None:
    """Let no display be in the midst of writing: the lock of its stream would never be let go in the child."""
    for progress in tuple(_open):
        if progress._drawing.acquire(timeout=_FORK):
            _held.append(progress._drawing)


def _after_fork_here() -> None:
    while _held:
        _held.pop().release()


def _after_fork() -> None:
    """A child has none of the displays: its output goes to its terminal, and its exit gives nothing back."""
    global _guard
    _guard = threading.Lock()
    _open.clear()
    _held.clear()
    atexit.unregister(_at_exit)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_here, after_in_child=_after_fork)
