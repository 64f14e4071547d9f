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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from millstream.show.progress.last_rows import LAST_CHANCE, in_foreground, takes, write_summary
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
    """A display that some library draws, in one line. There is one at a time, since libraries know no more."""

    beat = 0.1

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def draw(self, state: State) -> None:
        """Draw a state, if the terminal takes it."""
        fd = self._stream.fileno()
        if takes(self._stream) and in_foreground(fd):
            columns = os.get_terminal_size(fd).columns
            self._show(state, cut(state.name, columns // 4), columns)

    def end(self, state: State | None, status: Status) -> None:
        """Take away what is drawn, and say how the run ended; if the terminal takes nothing, say nothing."""
        heard = takes(self._stream, LAST_CHANCE)  # the library would be stuck, with the stream's lock held
        try:
            self._hide(heard)
        finally:
            _give_back(self)
        if state is not None and heard:
            write_summary(self._stream, state, status)

    def _show(self, state: State, name: str, columns: int) -> None:
        raise NotImplementedError

    def _hide(self, heard: bool) -> None:
        raise NotImplementedError


class Rich(Library):
    """A bar of rich. What the process itself prints on the terminal goes through rich meanwhile."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        super().__init__(stream)
        self._console = Console(file=stream)
        said = [TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[said]")]
        self._live = Progress(
            said[0],
            BarColumn(bar_width=20),
            said[1],
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=_same_terminal(sys.stdout, stream),
            redirect_stderr=_same_terminal(sys.stderr, stream),
        )
        self._live.add_task("", total=None, said="")

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
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "rich_proxied_file"):  # rich would forget a line that is not ended
                stream.flush()
        self._live.stop()


class Tqdm(Library):
    """A bar of tqdm. What the process itself prints on the terminal goes through tqdm meanwhile, line by line."""

    def __init__(self, stream: TextIO) -> None:
        from tqdm import tqdm
        from tqdm.contrib import DummyTqdmFile

        class Bar(tqdm):  # type: ignore[misc]  # it has no types
            monitor_interval = 0  # without a thread of its own

        super().__init__(stream)
        self._made: Callable[..., Any] = Bar
        self._through: Callable[[TextIO], TextIO] = DummyTqdmFile
        self._bar: Any = None
        self._taken: dict[str, tuple[TextIO, TextIO]] = {}  # streams of sys: what was there, and what stands for it

    def _show(self, state: State, name: str, columns: int) -> None:
        if self._bar is None:
            options = {"mininterval": 0, "miniters": 0, "unit": " runs", "initial": state.tally.ended}
            for stream in ("stdout", "stderr"):
                there = getattr(sys, stream)
                if _same_terminal(there, self._stream):
                    there.flush()
                    # To the stream of the bar, since tqdm moves away no bar for another one.
                    self._taken[stream] = there, self._through(self._stream)
                    setattr(sys, stream, self._taken[stream][1])
            self._bar = self._made(desc=name, file=self._stream, dynamic_ncols=True, leave=False, **options)
        said = ", ".join(counts(state.tally))
        self._bar.total = state.tally.total
        self._bar.set_postfix_str(with_tasks(said, state.tally.progress, columns - width(name) - 55), refresh=False)
        self._bar.update(state.tally.ended - self._bar.n)

    def _hide(self, heard: bool) -> None:
        if self._bar is not None:
            self._bar.disable = self._bar.disable or not heard
            self._bar.close()
        self.give_streams_back()

    def give_streams_back(self) -> None:
        """What is printed goes to the terminal again; a line that is not ended is written now."""
        while self._taken:
            stream, (there, instead) = self._taken.popitem()
            if getattr(sys, stream) is instead:  # else somebody else has put something in its place
                setattr(sys, stream, there)
            del instead


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
    if isinstance(_library, Tqdm):
        _library.give_streams_back()
    elif isinstance(_library, Rich):
        sys.stdout = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
        sys.stderr = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    _library = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
