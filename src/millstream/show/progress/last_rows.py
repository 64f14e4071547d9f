"""The last rows of a terminal, kept for runs: whatever anybody prints scrolls above them.

A terminal scrolls a region of its rows (DECSTBM, "set top and bottom margins"), which is made to end above the rows
of the runs. So what is printed, by this process, by its children or by code in C, is never overwritten and never
mixed with them, and nothing has to be redirected. Each drawing is one write, which the system does not mix with
another: it saves the cursor (ESC 7), sets the region, for that heals what others did to it, draws, and puts the cursor
back (ESC 8).

Rule 1: a terminal that takes no output (Ctrl-S) is skipped. Only a display's own thread ever waits for one, with
    ``_writing`` held, which nobody but other displays' threads waits for.
Rule 2: it writes to the file itself, since a thread that is stuck in a stream would hold the stream's lock.

What is left: a process that is killed or suspended leaves the region behind; ``reset`` mends that. In the moment
between a resize and the next drawing the old rows may be mixed with what is printed then.

May import: status_line.

Source: "XTerm Control Sequences", https://invisible-island.net/xterm/ctlseqs/ctlseqs.html
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TextIO

from millstream.show.progress.status_line import State, line, summary

if TYPE_CHECKING:
    from millstream.values import Status

_SAVE, _RESTORE = "\x1b7", "\x1b8"  # the cursor, and its colours
_ALL = "\x1b[r"  # the whole screen is the region; moves the cursor
_FORGOTTEN = f"{_SAVE}{_ALL}{_RESTORE}\x1b[J"  # no region, and nothing behind and below the cursor
_DOWN = "\x1bD"  # in the same column; scrolls at the end of the region

#: How long a display waits at its end for a stream that takes no output, in seconds.
LAST_CHANCE = 0.3

#: A terminal with fewer rows has none to spare.
FEWEST = 3


def takes(stream: TextIO, wait: float = 0.0) -> bool:
    """Whether a stream takes output within so many seconds, as far as is known."""
    try:
        return bool(select.select([], [stream.fileno()], [], wait)[1])
    except (OSError, ValueError, AttributeError):  # no file, or none that can be asked; closed, which writing tells
        return True


def in_foreground(fd: int) -> bool:
    """Whether this process is not one that its shell has put in the background."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:  # it is not the terminal that controls us
        return True


def write(stream: TextIO, text: str) -> None:
    """Write to a stream's file, past the stream; usually in one piece."""
    fd = stream.fileno()  # asked for each time: a closed file's number may be another file's by now
    data = text.encode(getattr(stream, "encoding", None) or "utf-8", "replace")
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # somebody has told the terminal not to block
            select.select([], [fd], [])


def write_summary(stream: TextIO, state: State, status: Status) -> None:
    """Write how a run ended on a terminal, as a line of its own."""
    text = summary(state, status, os.get_terminal_size(stream.fileno()).columns - 1)
    if speaker is not None:
        speaker(text)
    else:
        end_row(stream)
        write(stream, f"{text}\n")


#: Prints a line by way of a library that draws where the cursor is, while one does.
speaker: Callable[[str], object] | None = None


def end_row(stream: TextIO) -> None:
    """Go to the beginning of a row, a new one if something is in the cursor's row already.

    As shells do it: a row of spaces ends in a new row only then.
    """
    columns = os.get_terminal_size(stream.fileno()).columns
    write(stream, f"{' ' * columns}\r")


class Line:
    """The display that needs no library: one row for a run."""

    beat = 0.1

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._rows: LastRows | None = None

    def draw(self, state: State) -> None:
        """Draw a state, if the terminal takes it."""
        if self._rows is None:
            self._rows = LastRows.joined(self)
        self._rows.draw(self, lambda columns: line(state, columns - 1, bar=True))

    def end(self, state: State | None, status: Status) -> None:
        """Give the row back, and say how the run ended."""
        rows, self._rows = self._rows, None
        if rows is not None:
            rows.leave(self)
        if state is not None:
            write_summary(self.stream, state, status)


class _Drawn(NamedTuple):
    """What a terminal looked like when it was last drawn on."""

    size: tuple[int, int]
    reserved: int


class LastRows:
    """The rows of all runs on one terminal: up to a third of its rows. Further runs are not drawn."""

    def __init__(self) -> None:
        self._lines: list[Line] = []  # guarded by _guard
        self._writing = threading.Lock()  # the terminal takes one drawing after another
        self._drawn = _Drawn((0, 0), 0)  # guarded by _writing

    @staticmethod
    def joined(line: Line) -> LastRows:
        """Return the rows of a terminal, among which there is one for this line now."""
        key = os.fstat(line.stream.fileno()).st_rdev
        with _guard:
            rows = _terminals.setdefault(key, LastRows())
            rows._lines.append(line)
        return rows

    def draw(self, line: Line, text: Callable[[int], str]) -> None:
        """Draw ``text(columns)`` in the row of a line."""
        with self._writing:
            fd = line.stream.fileno()
            size = columns, rows = os.get_terminal_size(fd)
            with _guard:
                place, reserved = self._lines.index(line), self._reserved(rows)
            if place < reserved and takes(line.stream) and in_foreground(fd):
                row = f"\x1b[{rows - reserved + 1 + place};1H\x1b[m\x1b[2K{text(columns)}"
                room = self._room(size, reserved)
                write(line.stream, f"{room}{_SAVE}{_region(rows, reserved)}{row}{_RESTORE}")

    def leave(self, line: Line) -> None:
        """Give back the row of a line; the last one gives back the region."""
        with self._writing:
            try:
                size = _, rows = os.get_terminal_size(line.stream.fileno())
                with _guard:
                    self._lines.remove(line)
                    reserved = self._reserved(rows)
                before, self._drawn = self._drawn, _Drawn(size, reserved)
                erased = "".join(f"\x1b[{rows - back};1H\x1b[m\x1b[2K" for back in range(before.reserved))
                text = f"{_SAVE}{_region(rows, reserved)}{erased}{_RESTORE}"
                if before.size != size:  # nobody knows where the rows are now, but that they are below the cursor
                    text, self._drawn = _FORGOTTEN, _Drawn(size, 0)
                if before.reserved:
                    write(line.stream, text)
            finally:
                self._forget(line)

    def _reserved(self, rows: int) -> int:
        return min(len(self._lines), rows // FEWEST)

    def _room(self, size: tuple[int, int], reserved: int) -> str:
        """Move what is printed out of the rows to be drawn, and the cursor with it."""
        before, self._drawn = self._drawn, _Drawn(size, reserved)
        resized = before.size != size
        more = reserved if resized else reserved - before.reserved
        old = _FORGOTTEN if resized and before.reserved else ""
        return f"{old}{_DOWN * more}\x1b[{more}A" if more > 0 else old

    def _forget(self, line: Line) -> None:
        """Drop a line, and the rows of a terminal that has none any more."""
        with _guard:
            if line in self._lines:
                self._lines.remove(line)
            if not self._lines:
                for key in [key for key, rows in _terminals.items() if rows is self]:
                    del _terminals[key]


def _region(rows: int, reserved: int) -> str:
    return f"\x1b[1;{rows - reserved}r" if reserved else _ALL


# Held for a few steps, never while anything is written. Guards _terminals and the lines of each.
_guard = threading.Lock()
_terminals: dict[int, LastRows] = {}


def _after_fork() -> None:
    """A child has none of the displays' threads: what they hold is not its own."""
    global _guard
    _guard = threading.Lock()
    _terminals.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
