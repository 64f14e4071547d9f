"""Runs drawn by rich or tqdm, where those are installed. They are imported when a display is made.

They draw where the cursor is. So a line has to stay one line: what is printed past them, by child processes or by
logging handlers that were made before, is then mixed with it at worst, and nothing of it is erased.

Rule: they write to the stream itself, with its lock held. So they are not called while it takes no output.

May import: values, status_line, last_rows.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from millstream.show.progress import last_rows
from millstream.show.progress.last_rows import LAST_CHANCE, end_row, in_foreground, takes, write_summary
from millstream.show.progress.status_line import State, body, counts, cut, width, with_tasks

if TYPE_CHECKING:
    from millstream.values import Status


def display(stream: TextIO) -> Library | None:
    """Return the display of a library, if there is one that works and draws no other run."""
    global _library
    for kind in (Rich, Tqdm):
        try:
            made = kind(stream)
        except BaseException:  # it is not there, or broken
            continue
        with _guard:
            if _library is None:
                _library = made
                return made
        return None
    return None


def _give_back(display: Library) -> None:
    global _library
    with _guard:
        if _library is display:
            _library = None


class Library:
    """A display that some library draws, in one line. There is one at a time, since libraries know no more.

    Meanwhile, what the process itself prints on that terminal goes through the library, line by line.
    """

    beat = 0.1

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stands_in: list[tuple[str, StandIn]] = []

    def draw(self, state: State) -> None:
        """Draw a state, if the terminal takes it."""
        fd = self._stream.fileno()
        if takes(self._stream) and in_foreground(fd):
            columns = os.get_terminal_size(fd).columns
            if last_rows.speaker is None:
                end_row(self._stream)  # what was printed without an end keeps its row
                self._take_streams()
                last_rows.speaker = self.say
            self._show(state, cut(state.name, columns // 4), columns)

    def end(self, state: State | None, status: Status) -> None:
        """Take away what is drawn, and say how the run ended; if the terminal takes nothing, say nothing."""
        heard = takes(self._stream, LAST_CHANCE)  # the library would be stuck, with the stream's lock held
        try:
            self._hide(heard)
        finally:
            _give_back(self)
            self.give_streams_back()
        if state is not None and heard:
            write_summary(self._stream, state, status)

    def say(self, text: str) -> None:
        """Print a line above what is drawn."""
        raise NotImplementedError

    def _take_streams(self) -> None:
        for name in ("stdout", "stderr"):
            there = getattr(sys, name)
            if _same_terminal(there, self._stream):
                there.flush()
                self._stands_in.append((name, StandIn(there, self)))
                setattr(sys, name, self._stands_in[-1][1])

    def give_streams_back(self) -> None:
        """What is printed goes to the terminal again, also by who has kept what stood in for it."""
        last_rows.speaker = None
        while self._stands_in:
            name, stand_in = self._stands_in.pop()
            if getattr(sys, name) is stand_in:  # else somebody else has put something in its place
                setattr(sys, name, stand_in.there)
            stand_in.step_down()

    def let_go_in_child(self) -> None:
        """In a forked child nobody is here who held a lock, and what was begun is the parent's to print."""
        for _, stand_in in self._stands_in:
            stand_in.forget()
        self.give_streams_back()

    def _show(self, state: State, name: str, columns: int) -> None:
        raise NotImplementedError

    def _hide(self, heard: bool) -> None:
        raise NotImplementedError


class StandIn:
    """In place of a stream of ``sys`` while a library draws: whole lines go through the library.

    A line that is not ended waits for its end. When the display is over, everything goes to the stream itself.
    """

    def __init__(self, there: TextIO, library: Library) -> None:
        self.there = there
        self._library: Library | None = library
        self._begun = ""
        self._lock = threading.RLock()  # a print may be interrupted by a signal handler that prints

    def write(self, text: str) -> int:
        with self._lock:
            if self._library is None:
                return self.there.write(text)
            if not isinstance(text, str):
                raise TypeError(f"write() argument must be str, not {type(text).__name__}")
            lines, end, self._begun = (self._begun + text).rpartition("\n")
            if end:
                self._library.say(lines)
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for each in lines:
            self.write(each)

    def flush(self) -> None:
        with self._lock:
            if self._library is None:
                self.there.flush()

    def step_down(self) -> None:
        """The display is over."""
        with self._lock:
            self._library = None
            if self._begun:
                self.there.write(self._begun)
                self.there.flush()
            self._begun = ""

    def forget(self) -> None:
        """In a forked child: there is nothing to print, and nobody to wait for."""
        self._lock, self._begun = threading.RLock(), ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.there, name)


class Rich(Library):
    """A bar of rich."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.text import Text

        super().__init__(stream)
        self._console, self._text = Console(file=stream), Text
        said = [TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[said]")]
        self._live = Progress(
            said[0],
            BarColumn(bar_width=20),
            said[1],
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.add_task("", total=None, said="")

    def say(self, text: str) -> None:
        """Print a line above the bar, as it is."""
        self._console.print(self._text.from_ansi(text), soft_wrap=True)

    def _show(self, state: State, name: str, columns: int) -> None:
        self._console.size = os.get_terminal_size(self._stream.fileno())
        task = self._live.tasks[0]
        task.description, task.total, task.completed = name, state.tally.total, state.tally.ended
        task.fields["said"] = body(state, columns - width(name) - 24)
        self._live.start()  # at the first time only
        self._live.refresh()

    def _hide(self, heard: bool) -> None:
        if not heard:
            self._console.file = io.StringIO()
        self._live.stop()


class Tqdm(Library):
    """A bar of tqdm."""

    def __init__(self, stream: TextIO) -> None:
        from tqdm import tqdm

        class Bar(tqdm):  # type: ignore[misc]  # it has no types
            monitor_interval = 0  # without a thread of its own

        super().__init__(stream)
        self._made: Any = Bar
        self._bar: Any = None

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._made.write(text, file=self._stream)

    def _show(self, state: State, name: str, columns: int) -> None:
        if self._bar is None:
            options = {"mininterval": 0, "miniters": 0, "unit": " runs", "initial": state.tally.ended}
            self._bar = self._made(desc=name, file=self._stream, dynamic_ncols=True, leave=False, **options)
        said = ", ".join(counts(state.tally))
        self._bar.total = state.tally.total
        self._bar.set_postfix_str(with_tasks(said, state.tally.progress, columns - width(name) - 55), refresh=False)
        self._bar.update(state.tally.ended - self._bar.n)

    def _hide(self, heard: bool) -> None:
        if self._bar is not None:
            self._bar.disable = self._bar.disable or not heard
            self._bar.close()


def _same_terminal(one: TextIO | None, other: TextIO) -> bool:
    """Whether two streams go to one terminal."""
    try:
        return one is not None and os.fstat(one.fileno()).st_rdev == os.fstat(other.fileno()).st_rdev
    except (OSError, ValueError, AttributeError):  # no file, or closed
        return False


# Held for a few steps, never while anything is written. Guards _library.
_guard = threading.Lock()
_library: Library | None = None  # the one that draws


def _after_fork() -> None:
    """What a child prints goes to its terminal, not through its parent's display."""
    global _guard, _library
    _guard = threading.Lock()
    if _library is not None:
        _library.let_go_in_child()
    _library = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
