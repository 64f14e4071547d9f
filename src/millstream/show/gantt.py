"""The timeline of a run as one self-contained SVG text, for documents and notebooks.

Every worker is a row, every attempt a bar. What is too small to be seen, or too much to be read, is put together or
left out, and the drawing says so: its size has a limit, whatever the run was. May import: report, values, timeline,
markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from millstream.report import RunReport, TaskTrace
from millstream.show.markup import escaped, number, opened, shortened, style, text_width
from millstream.show.timeline import Timeline
from millstream.values import Status

_WIDTH = 960.0  #: of the whole, in pixels
_LABELS = 190.0  #: the names of the workers take at most so much of it
_TOP = 40.0  #: where the first row begins
_ROW, _BAR = 26.0, 18.0  #: height of a row, and of a bar in it
_SIZE = 11.0  #: of the letters
_MOST_ROWS = 40
_MOST_COLOURS = 12

_SIGNS = {Status.FAILED: "✗", Status.CANCELLED: "■", Status.ABANDONED: "!"}
_KINDS = {Status.FAILED: "ms-failed", Status.CANCELLED: "ms-stopped", Status.ABANDONED: "ms-stopped"}
#: From the finest to the coarsest: nanoseconds, and the unit in which they are told.
_UNITS = ((1_000, "µs"), (1_000_000, "ms"), (1_000_000_000, "s"), (60_000_000_000, "min"), (3_600_000_000_000, "h"))

#: Hues that can be told apart, without the red of a failure and the orange of a stop; light, then dark.
_HUES = (
    ("#9ec5f4", "#2f5f9e"), ("#a8dcb5", "#2c7345"), ("#d7bdf2", "#6b46a3"), ("#f3e08a", "#7d6a14"),
    ("#8fdcd9", "#1f7573"), ("#f5bfe0", "#93407a"), ("#c9ccd3", "#575e69"), ("#c5e384", "#56741c"),
    ("#b9b9f7", "#4a4ab0"), ("#dcc3a5", "#775a3a"), ("#a5d8ee", "#2b6f8c"), ("#e9c9cf", "#855560"),
)  # fmt: skip

_PLAIN = {
    "": "font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif",
    "text": f"font-size:{_SIZE}px",
    ".ms-grid": "stroke-width:1",
    ".ms-inside": "pointer-events:none",
}


def _colours(ground: str, ink: str, faint: str, grid: str, failed: str, stopped: str, place: int) -> dict[str, str]:
    """Return the rules of one theme; ``place`` is that of its colours in the table of hues."""
    return {
        ".ms-ground": f"fill:{ground}",
        "text": f"fill:{ink}",
        ".ms-faint": f"fill:{faint}",
        ".ms-grid": f"stroke:{grid}",
        **{f".ms-hue-{at}": f"fill:{hue[place]}" for at, hue in enumerate(_HUES)},
        ".ms-failed": f"fill:{failed}",
        ".ms-stopped": f"fill:{stopped}",
    }


#: The style of drawings with ``embedded=True``, which the page must bring.
TIMELINE_STYLE = style(
    _PLAIN,
    _colours("#ffffff", "#1f2328", "#636c76", "#e4e8ec", "#ee5a5f", "#f0a04b", 0),
    _colours("#0d1117", "#e6edf3", "#9198a1", "#262c34", "#c93c40", "#b26a1c", 1),
)


class _Piece(NamedTuple):
    """What is drawn as one bar: one attempt, or several that are too short to be told apart."""

    attempt: TaskTrace  #: the first one, or the first that failed
    count: int
    begin: int
    end: int
    row: int


def timeline_drawn(report: RunReport, *, most: int = 2000, embedded: bool = False) -> str:
    """Return the attempts of a run as bars over time, one row for each worker.

    Args:
        report: of a run with ``trace=True``.
        most: how many bars are drawn; of more, those that failed and the longest.
        embedded: leave out the style, which the page has once for all drawings, and the ground.

    Raises:
        ValueError: the run kept no trace.
    """
    if report.trace is None:
        raise ValueError(f"Run {report.run_id} kept no trace: run it with trace=True.")
    timeline = Timeline(report.created_at, report.trace)
    rows = timeline.rows[:_MOST_ROWS]
    finished = 0 if report.finished_at is None else round((report.finished_at - report.created_at) * 1e9)
    end = max([1, finished, *(bar.end for bar in timeline.bars)])
    left = max([40.0, *(text_width(shortened(name, _SIZE, _LABELS), _SIZE) for name in rows)]) + 24
    scale = (_WIDTH - left - 24) / end
    pieces = _together(timeline, 1 / scale)
    shown = _chosen(pieces, most)
    hues = {name: at for at, name in enumerate(dict.fromkeys(bar.attempt.task for bar in timeline.bars))}
    bottom = _TOP + _ROW * len(rows)
    lines, height = _below(_left_out(timeline, pieces, shown), hues, bottom)
    title = f"{report.flow}, run {report.run_id}: {report.status}"
    return "\n".join(
        [
            *opened("ms-timeline", title, _WIDTH, height, None if embedded else TIMELINE_STYLE),
            *_axis(end, left, scale, bottom),
            *(_label(name, row, left) for row, name in enumerate(rows)),
            *(_bar(piece, left, scale, hues[piece.attempt.task]) for piece in shown),
            *lines,
            "</svg>\n",
        ]
    )


def _together(timeline: Timeline, pixel: float) -> list[_Piece]:
    """Return what is drawn: bars that end within a pixel of the begin of the one before become one with it."""
    pieces: list[_Piece] = []
    newest: dict[int, int] = {}  # by row
    for bar in timeline.bars:
        at = newest.get(bar.row)
        if at is not None and bar.end - pieces[at].begin < pixel:
            before = pieces[at]
            attempt = before.attempt if before.attempt.status in _SIGNS else bar.attempt
            pieces[at] = _Piece(attempt, before.count + 1, before.begin, max(before.end, bar.end), bar.row)
            continue
        newest[bar.row] = len(pieces)
        pieces.append(_Piece(bar.attempt, 1, bar.begin, bar.end, bar.row))
    return pieces


def _chosen(pieces: Sequence[_Piece], most: int) -> list[_Piece]:
    """Return those that are drawn, in their order: the ones that failed first of all, then the longest."""
    visible = [piece for piece in pieces if piece.row < _MOST_ROWS]
    if len(visible) <= most:
        return visible
    weights = [(piece.attempt.status not in _SIGNS, piece.begin - piece.end) for piece in visible]
    return [visible[at] for at in sorted(sorted(range(len(visible)), key=weights.__getitem__)[: max(0, most)])]


def _left_out(timeline: Timeline, pieces: Sequence[_Piece], shown: Sequence[_Piece]) -> str:
    """Return what the drawing does not show, in words; "" when it shows everything."""
    said = []
    if len(timeline.rows) > _MOST_ROWS:
        said.append(f"{_counted(len(timeline.rows) - _MOST_ROWS, 'row')} not shown")
    if missing := sum([piece.count for piece in pieces]) - sum([piece.count for piece in shown]):
        said.append(f"{_counted(missing, 'attempt')} not shown")
    if merged := sum([piece.count for piece in shown if piece.count > 1]):
        said.append(f"{_counted(merged, 'attempt')} too short to be drawn apart")
    return ", ".join(said)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


# ---- parts of the drawing -------------------------------------------------------------------------


def _axis(end: int, left: float, scale: float, bottom: float) -> Iterable[str]:
    """Return lines at round times, and what time that is."""
    step = tick_step(end)
    size, unit = [(size, unit) for size, unit in _UNITS if size <= max(step, 1_000)][-1]
    for at in range(0, end + 1, step):
        x = number(left + at * scale)
        yield (
            f'<path class="ms-grid" d="M{x} {number(_TOP - 6)}V{number(bottom)}"/>'
            f'<text class="ms-faint" x="{x}" y="{number(_TOP - 13)}" text-anchor="middle">{at / size:g} {unit}</text>'
        )


def tick_step(end: int) -> int:
    """Return the nanoseconds between two ticks, of which 4 to 10 fit in ``end``: 1, 2 or 5 of a unit, or 10, 15, 30."""
    fine = [10**power * digit for power in range(10) for digit in (1, 2, 5)]
    second = 1_000_000_000
    coarse = [second * each for each in (10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 18_000)]
    steps = [*(step for step in fine if step < 10 * second), *coarse]
    return next((step for step in steps if end <= 10 * step), 3600 * second * -(-end // (36_000 * second)))


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
    kind, sign = _KINDS.get(attempt.status, f"ms-hue-{hue % len(_HUES)}"), _SIGNS.get(attempt.status, "")
    said = (
        f"{piece.count} attempts, such as {attempt.id}"
        if piece.count > 1
        else f"{attempt.id}, attempt {attempt.attempt}"
    )
    said += f": {attempt.status}, {_time(piece.end - piece.begin)}"
    rect = (
        f'<rect class="ms-bar {kind}" data-task="{escaped(attempt.task)}" x="{number(x)}" y="{number(y)}" '
        f'width="{number(width)}" height="{number(_BAR)}" rx="{number(min(3.0, width / 3))}">'
        f"<title>{escaped(said)}</title></rect>"
    )
    text = shortened(f"{sign} {attempt.task}", _SIZE, 1000.0)
    text = text if text_width(text, _SIZE) + 8 <= width else sign
    if not text or text_width(text, _SIZE) > width:
        return rect if not sign else rect + _inside(x + width / 2, y - 1.5, sign, "middle")  # a mark above it
    return rect + _inside(
        x + 5 if len(text) > 1 else x + width / 2, y + _BAR / 2 + 4, text, "" if len(text) > 1 else "middle"
    )


def _inside(x: float, y: float, text: str, anchor: str) -> str:
    where = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text class="ms-inside" x="{number(x)}" y="{number(y)}"{where}>{escaped(text)}</text>'


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
