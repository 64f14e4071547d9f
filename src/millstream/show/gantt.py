"""The timeline of a run as one self-contained SVG text, for documents and notebooks.

Every worker is a row, so is every map, and every attempt a bar. What is too small to be seen, or too much to be read,
is put together or left out, and the drawing says so: its size has a limit, whatever the run was. May import: report,
values, timeline, markup, status.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from millstream.report import RunReport, TaskTrace
from millstream.show.markup import escaped, number, opened, shortened, style, text_width
from millstream.show.status import GLYPHS
from millstream.show.timeline import Timeline, earliest
from millstream.values import Status

_WIDTH = 960.0  #: of the whole, in pixels
_LABELS = 190.0  #: the names of the workers take at most so much of it
_TOP = 40.0  #: where the first row begins
_ROW, _BAR = 26.0, 18.0  #: height of a row, and of a bar in it
_SIZE = 11.0  #: of the letters
_SECOND = 1_000_000_000
_MOST_ROWS = 40
_MOST_COLOURS = 12

_SIGNS = {status: GLYPHS[status] for status in (Status.FAILED, Status.CANCELLED, Status.ABANDONED)}
_KINDS = {Status.FAILED: "ms-failed", Status.CANCELLED: "ms-stopped", Status.ABANDONED: "ms-stopped"}
#: From the finest to the coarsest: nanoseconds, and the unit in which they are told.
_UNITS = ((1_000, "µs"), (1_000_000, "ms"), (1_000_000_000, "s"), (60_000_000_000, "min"), (3_600_000_000_000, "h"))

#: Hues that can be told apart, without the red of a failure and the orange of a stop; light, then dark.
_HUES = (
    ("#9ec5f4", "#2f5f9e"), ("#a8dcb5", "#2c7345"), ("#d7bdf2", "#6b46a3"), ("#f3e08a", "#7d6a14"),
    ("#8fdcd9", "#1f7573"), ("#f5bfe0", "#93407a"), ("#f7cfa8", "#8a5a2b"), ("#c5e384", "#56741c"),
    ("#b9b9f7", "#4a4ab0"), ("#c9b8a0", "#665540"), ("#a5d8ee", "#2b6f8c"), ("#e9c9cf", "#855560"),
)  # fmt: skip

_PLAIN = {
    "": "font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif",
    "text": f"font-size:{_SIZE}px",
    ".ms-grid": "stroke-width:1",
    ".ms-inside": "pointer-events:none",
}


def _colours(
    ground: str, ink: str, faint: str, grid: str, mixed: str, failed: str, stopped: str, place: int
) -> dict[str, str]:
    """Return the rules of one theme; ``place`` is that of its colours in the table of hues."""
    return {
        ".ms-ground": f"fill:{ground}",
        "text": f"fill:{ink}",
        ".ms-faint": f"fill:{faint}",
        ".ms-grid": f"stroke:{grid}",
        **{f".ms-hue-{at}": f"fill:{hue[place]}" for at, hue in enumerate(_HUES)},
        ".ms-mixed": f"fill:{mixed}",
        ".ms-failed": f"fill:{failed}",
        ".ms-stopped": f"fill:{stopped}",
    }


#: The style of drawings with ``embedded=True``, which the page must bring.
TIMELINE_STYLE = style(
    "ms-timeline",
    _PLAIN,
    _colours("#ffffff", "#1f2328", "#636c76", "#e4e8ec", "#b3bac3", "#ee5a5f", "#f0a04b", 0),
    _colours("#0d1117", "#e6edf3", "#9198a1", "#262c34", "#4a525c", "#c93c40", "#b26a1c", 1),
)


class _Piece(NamedTuple):
    """What is drawn as one bar: one attempt, or several that ended alike and are too short to be told apart."""

    attempt: TaskTrace  #: the first one
    attempts: int  #: how many
    is_mixed: bool  #: they are of several tasks
    begin: int
    end: int
    row: int


def timeline_drawn(report: RunReport, *, most: int = 2000, embedded: bool = False) -> str:
    """Return the attempts of a run as bars over time, one row for each worker.

    Args:
        report: of a run with ``trace=True``.
        most: how many bars are drawn. Of more, short ones that are close become one; then only failures and the
            longest are left.
        embedded: leave out the style, which the page has once for all drawings, and the ground.

    Raises:
        ValueError: the run kept no trace.
    """
    if report.trace is None:
        raise ValueError(f"Run {report.run_id} kept no trace: run it with trace=True.")
    timeline = Timeline(earliest(report), report.trace)
    rows = timeline.rows[:_MOST_ROWS]
    finished = 0 if report.finished_at is None else round((report.finished_at - timeline.origin) * 1e9)
    end = max([1, finished, *(bar.end for bar in timeline.bars)])
    left = max([40.0, *(text_width(shortened(name, _SIZE, _LABELS), _SIZE) for name in rows)]) + 24
    scale = (_WIDTH - left - 24) / end
    pieces, shown = _chosen(timeline, 1 / scale, most)
    hues = {name: at for at, name in enumerate(dict.fromkeys(bar.attempt.task for bar in timeline.bars))}
    bottom = _TOP + _ROW * len(rows)
    lines, height = _below(_left_out(timeline, pieces, shown), hues, bottom)
    title = f"{report.flow}, run {report.run_id}: {report.status}"
    return "\n".join(
        [
            *opened("ms-timeline", title, _WIDTH, height, None if embedded else TIMELINE_STYLE),
            *_axis(end, left, scale, bottom),
            *(_label(name, row, left) for row, name in enumerate(rows)),
            *(_bar(piece, left, scale, hues[piece.attempt.task]) for piece in sorted(shown, key=_layer)),
            *lines,
            "</svg>\n",
        ]
    )


def _chosen(timeline: Timeline, pixel: float, most: int) -> tuple[list[_Piece], list[_Piece]]:
    """Return all bars, and those that are drawn: if they are too many, more become one; at last, only the longest."""
    pieces: list[_Piece] = []
    visible: list[_Piece] = []
    for wide in (1, 2, 4, 8, 16):
        pieces = _together(timeline, wide * pixel)
        visible = [piece for piece in pieces if piece.row < _MOST_ROWS]
        if len(visible) <= most:
            return pieces, visible
    visible.sort(key=lambda piece: (piece.attempt.status not in _SIGNS, piece.begin - piece.end))
    return pieces, visible[: max(0, most)]


def _layer(piece: _Piece) -> tuple[bool, int, int]:
    """Return by what bars are sorted: those that failed are drawn over the others."""
    return piece.attempt.status in _SIGNS, piece.row, piece.begin


def _together(timeline: Timeline, room: float) -> list[_Piece]:
    """Return the bars: what fits, with one before it in its row that ended alike, in a little room is one with it."""
    pieces: list[_Piece] = []
    newest: dict[tuple[int, str | None], int] = {}
    for bar in timeline.bars:
        key = bar.row, _KINDS.get(bar.attempt.status)
        at = newest.get(key)
        if at is not None and bar.end - pieces[at].begin < room:
            one = pieces[at]
            mixed = one.is_mixed or one.attempt.task != bar.attempt.task
            pieces[at] = one._replace(attempts=one.attempts + 1, is_mixed=mixed, end=max(one.end, bar.end))
        else:
            newest[key] = len(pieces)
            pieces.append(_Piece(bar.attempt, 1, False, bar.begin, bar.end, bar.row))
    return pieces


def _left_out(timeline: Timeline, pieces: Sequence[_Piece], shown: Sequence[_Piece]) -> str:
    """Return what the drawing does not show, in words; "" when it shows everything."""
    said = []
    if len(timeline.rows) > _MOST_ROWS:
        said.append(f"{_counted(len(timeline.rows) - _MOST_ROWS, 'row')} not shown")
    if missing := sum([piece.attempts for piece in pieces]) - sum([piece.attempts for piece in shown]):
        said.append(f"{_counted(missing, 'attempt')} not shown")
    if merged := sum([piece.attempts for piece in shown if piece.attempts > 1]):
        said.append(f"{_counted(merged, 'attempt')} too short to be drawn apart")
    return ", ".join(said)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


# ---- parts of the drawing -------------------------------------------------------------------------


def _axis(end: int, left: float, scale: float, bottom: float) -> Iterable[str]:
    """Return lines at round times, and what time that is."""
    step = tick_step(end)
    size, unit = [(size, unit) for size, unit in _UNITS if size <= (step if size > _SECOND else max(end, 1_000))][-1]
    for at in range(0, end + 1, step):
        x = number(left + at * scale)
        yield (
            f'<path class="ms-grid" d="M{x} {number(_TOP - 6)}V{number(bottom)}"/>'
            f'<text class="ms-faint" x="{x}" y="{number(_TOP - 13)}" text-anchor="middle">{at / size:g} {unit}</text>'
        )


def tick_step(end: int) -> int:
    """Return the nanoseconds between two ticks, of which 4 to 10 fit in ``end``: 1, 2 or 5 of a unit, or 10, 15, 30."""
    fine = [10**power * digit for power in range(10) for digit in (1, 2, 5)]
    coarse = [_SECOND * each for each in (10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 18_000)]
    steps = [*(step for step in fine if step < 10 * _SECOND), *coarse]
    return next((step for step in steps if end <= 10 * step), 3600 * _SECOND * -(-end // (36_000 * _SECOND)))


def _label(name: str, row: int, left: float) -> str:
    """Return the name of a row, and the line below it."""
    y = _TOP + _ROW * row
    return (
        f'<path class="ms-grid" d="M12 {number(y + _ROW)}H{number(_WIDTH - 12)}"/>'
        f'<text class="ms-row" x="{number(left - 12)}" y="{number(y + _ROW / 2 + 4)}" text-anchor="end">'
        f"<title>{escaped(name)}</title>{escaped(shortened(name, _SIZE, _LABELS))}</text>"
    )


def _bar(piece: _Piece, left: float, scale: float, hue: int) -> str:
    """Return a bar; in it, as far as that fits, how the attempt failed and the name of the task."""
    attempt = piece.attempt
    x, y = left + piece.begin * scale, _TOP + _ROW * piece.row + (_ROW - _BAR) / 2
    width = max(1.0, (piece.end - piece.begin) * scale)
    plain = "ms-mixed" if piece.is_mixed else f"ms-hue-{hue % len(_HUES)}"
    kind, sign = _KINDS.get(attempt.status, plain), _SIGNS.get(attempt.status, "")
    said = f"{attempt.id}, attempt {attempt.attempt}"
    if piece.attempts > 1:
        said = f"{piece.attempts} attempts, such as {attempt.id}"
    bar = (
        f'<rect class="ms-bar {kind}" data-task="{escaped(attempt.task)}" x="{number(x)}" y="{number(y)}" '
        f'width="{number(width)}" height="{number(_BAR)}" rx="{number(min(3.0, width / 3))}"><title>'
        f"{escaped(f'{said}: {attempt.status}, {_time(piece.end - piece.begin)}')}</title></rect>"
    )
    text = shortened(f"{sign} {attempt.task}", _SIZE, 1000.0)
    if piece.attempts == 1 and text_width(text, _SIZE) + 10 <= width:
        return bar + _inside(x + 5, y + _BAR / 2 + 4, text)
    if not sign:
        return bar
    if width >= 14:
        return bar + _inside(x + width / 2 - 5, y + _BAR / 2 + 4, sign)
    return f'{bar}<path class="{kind}" d="M{number(x + width / 2 - 3)} {number(y - 4)}h6l-3 5z"/>'  # a flag on it


def _inside(x: float, y: float, text: str) -> str:
    return f'<text class="ms-inside" x="{number(x)}" y="{number(y)}">{escaped(text)}</text>'


def _time(nanoseconds: int) -> str:
    """Return a duration as people say it."""
    size, unit = [(size, unit) for size, unit in _UNITS if size <= max(nanoseconds, 1_000)][-1]
    return f"{nanoseconds / size:.3g} {unit}"


def _below(said: str, hues: dict[str, int], y: float) -> tuple[list[str], float]:
    """Return what stands below the rows, and where the drawing ends."""
    lines = []
    x, y = 16.0, y + 24
    for name, hue in hues.items() if len(hues) <= _MOST_COLOURS else ():
        label = shortened(name, _SIZE, _LABELS)
        wide = 16 + text_width(label, _SIZE) + 20
        if x > 16.0 and x + wide > _WIDTH:
            x, y = 16.0, y + 20
        lines.append(
            f'<g class="ms-legend"><rect class="ms-hue-{hue}" x="{number(x)}" y="{number(y - 9.5)}" width="11" '
            f'height="11" rx="2"/><text x="{number(x + 16)}" y="{number(y)}">{escaped(label)}</text></g>'
        )
        x += wide
    if lines:
        y += 22
    if said:
        lines.append(f'<text class="ms-faint ms-left-out" x="16" y="{number(y)}">{escaped(said)}</text>')
        y += 22
    return lines, y - 8
