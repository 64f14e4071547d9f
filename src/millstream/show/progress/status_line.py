"""How far a run is, in words: one line while it is under way, and one at its end.

Rule 1: no clock, no stream, no thread. Time and width come in as numbers.
Rule 2: names are others' texts. Whatever is in them, a line has no control characters, and is never too wide.

May import: report, values.
"""

from __future__ import annotations

import unicodedata
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from millstream.report import Tally, TaskProgress
    from millstream.values import Status

#: The rate is that of the last so many seconds, so that it is calm.
WINDOW = 10.0

#: Before so many seconds there is none: one task run in the first moment says nothing about those to come.
SOON = 0.5

_BAR = 10  # signs
_LONGEST = 1e9  # seconds; more is said as that


class State(NamedTuple):
    """How far a run is at one moment."""

    name: str
    tally: Tally
    elapsed: float  #: seconds
    rate: float  #: task runs that end in a second, as of late

    @property
    def share(self) -> float | None:
        """How much of the run has ended, from 0 to 1; None when nobody knows the total."""
        return share(self.tally.ended, self.tally.total)

    @property
    def left(self) -> float | None:
        """Seconds until the end, if it goes on like this; None when that cannot be known."""
        total = self.tally.total
        return None if total is None or self.rate <= 0 else max(0, total - self.tally.ended) / self.rate


class Rate:
    """How many task runs ended in a second, over the last ten seconds or so."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, now: float, ended: int) -> float:
        """Return the rate, given that so many have ended by now."""
        self._seen.append((now, ended))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW:  # the first one is where the window begins
            self._seen.popleft()
        since, before = self._seen[0]
        return max(0, ended - before) / (now - since) if now - since >= SOON else 0.0


def duration(seconds: float) -> str:
    """Return seconds as ``4 s``, ``1:05`` or ``2:03:10``."""
    whole = int(min(max(0.0, seconds), _LONGEST))
    minutes, rest = divmod(whole, 60)
    if whole < 60:
        return f"{whole} s"
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def share(done: float, total: float | None) -> float | None:
    """Return ``done / total`` if that is from 0 to 1, and None if it is anything else."""
    part = done / total if total else -1.0
    return part if 0.0 <= part <= 1.0 else None


def percent(part: float) -> str:
    """Return a share as ``45 %``, rounded down: 100 % is all."""
    return f"{int(100 * part)} %"


def printable(text: str) -> str:
    """Return a text without anything that would move a cursor."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def width(text: str) -> int:
    """Return how many columns a printable text takes."""
    return sum(map(_columns, text))


def cut(text: str, most: int) -> str:
    """Return a printable text in at most so many columns; a cut one ends with ``…`` if there is room for that."""
    text = printable(text[: 4 * max(0, most) + 4])  # signs that take no column are many in no name
    if width(text) <= most:
        return text
    taken, kept = 1, []  # one column for the mark
    for char in text:
        taken += _columns(char)
        if taken > most:
            break
        kept.append(char)
    return "".join(kept) + ("…" if most > 0 else "")


def _columns(char: str) -> int:
    if unicodedata.east_asian_width(char) in "WF":
        return 2
    return 0 if unicodedata.category(char) in ("Mn", "Me") else 1


def counts(tally: Tally) -> list[str]:
    """Return the numbers of task runs; failed and skipped ones only where there are any."""
    return [f"{tally.running} running", *_ended(tally), f"{tally.waiting} waiting"]


def _ended(tally: Tally) -> list[str]:
    failed, skipped = f"{tally.failed} failed", f"{tally.skipped} skipped"
    return [f"{tally.done} done"] + [failed] * (tally.failed > 0) + [skipped] * (tally.skipped > 0)


def times(state: State) -> list[str]:
    """Return the rate, the time that the run has taken, and the time that it will take yet."""
    rate = f"{state.rate:.1f}/s" if state.rate < 10 else f"{state.rate:.0f}/s"
    left = [] if state.left is None else [f"{duration(state.left)} left"]
    return [rate, duration(state.elapsed), *left]


def tasks(progress: Iterable[TaskProgress], most: int) -> str:
    """Return what tasks say of themselves, the newest first, as many whole ones as fit."""
    said = ""
    for task in reversed(tuple(progress)):
        longer = f"{said}, {_task(task)}" if said else _task(task)
        if width(longer) > most:
            break
        said = longer
    return said


def _task(task: TaskProgress) -> str:
    part = share(task.done, task.total)
    of = "" if task.total is None else f"/{_number(task.total)}"
    return f"{cut(task.id, 40)} {_number(task.done)}{of}{'' if part is None else f' ({percent(part)})'}"


def _number(value: float) -> str:
    return str(int(value)) if value % 1 == 0 else f"{value:.2f}"


def with_tasks(said: str, progress: Iterable[TaskProgress], most: int) -> str:
    """Return a text, cut, with what tasks say behind it where there is room."""
    more = tasks(progress, most - width(said) - 3)
    return cut(f"{said} | {more}" if more else said, most)


def body(state: State, most: int) -> str:
    """Return all that a line says but the name of the run and its bar, in at most so many columns."""
    part = [] if state.share is None else [percent(state.share)]
    return with_tasks(", ".join([*part, *counts(state.tally), *times(state)]), state.tally.progress, most)


def line(state: State, most: int, *, bar: bool = False) -> str:
    """Return the line of a run under way, in at most so many columns."""
    begin = f"{_name(state, most)}: "
    if bar and state.share is not None:
        full = int(_BAR * state.share)
        begin += f"[{'#' * full}{'-' * (_BAR - full)}] "
    return cut(begin + body(state, most - width(begin)), most)


def summary(state: State, status: Status, most: int) -> str:
    """Return the line of a run that has ended, in at most so many columns."""
    tally = state.tally
    under_way = [
        f"{number} {what}" for number, what in ((tally.running, "running"), (tally.waiting, "waiting")) if number
    ]
    said = [f"{_name(state, most)}: {status} after {duration(state.elapsed)}", *_ended(tally), *under_way]
    return cut(", ".join(said), most)


def _name(state: State, most: int) -> str:
    return cut(state.name, max(8, most // 4))
