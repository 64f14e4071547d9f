"""A diagram as one self-contained SVG text. May import: diagram, values, layout, markup, status.

The shape of a box says where its task is called, its colour and a sign what became of it, and nothing is said by
colour alone. Arrow heads are paths, not markers: a marker has an id, and pages hold more than one drawing.

Source: "Scalable Vector Graphics (SVG) 2", W3C, https://www.w3.org/TR/SVG2/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import hypot, sqrt

from millstream.diagram import Diagram, EdgeKind, TaskEdge, TaskNode
from millstream.show.layout.layers import Box, Layout, Point, laid_out
from millstream.show.markup import escaped, number, opened, shortened, style, text_width
from millstream.show.status import GLYPHS
from millstream.values import Status

_SIZE, _SMALL = 13.0, 10.5  #: of the letters, in pixels
_WIDEST = 200.0  #: a name is cut to this
_PAD = 14.0  #: between the text and the border
_SIGN = 17.0  #: room for the sign of the status, left of the name
_STACK = 4.0  #: how far the second outline of a mapped task is off
_CUT = 9.0  #: the corners of a process
_ROUND = 9.0  #: the bends of a line, and the corners of a thread
_HEAD = 7.0  #: length of an arrow head
_LEGEND = 30.0

#: By status, the class of a box.
_KINDS = {
    Status.SUCCESS: "ms-success",
    Status.FAILED: "ms-failed",
    Status.RUNNING: "ms-running",
    Status.PENDING: "ms-pending",
    Status.SKIPPED: "ms-skipped",
    Status.CANCELLED: "ms-stopped",
    Status.ABANDONED: "ms-stopped",
}
_UNTOUCHED = ("ms-skipped", "")  #: had no part in a run
_DECLARED = ("ms-declared", "")  #: of a flow, not of a run

#: By kind of edge, what it means in words.
_MEANINGS = {
    EdgeKind.DEPENDENCY: "{1} needs {0}",
    EdgeKind.ROUTE: "{0} may choose {1}",
    EdgeKind.REQUEST: "{0} asked for {1}",
    EdgeKind.JOIN: "{1}, a join, waited for {0}",
}

_PLAIN = {
    "": "font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif",
    "text": f"font-size:{_SIZE}px;font-weight:500",
    ".ms-facts": f"font-size:{_SMALL}px;font-weight:400",
    ".ms-sign": "font-weight:700;text-anchor:middle",
    ".ms-box,.ms-behind": "stroke-width:1.4",
    ".ms-side": "fill:none;stroke-width:1.4",
    ".ms-task": "outline:none",
    ".ms-task:focus .ms-box": "stroke-width:3",
    ".ms-skipped .ms-box,.ms-skipped .ms-behind": "stroke-dasharray:4 3",
    ".ms-line": "fill:none;stroke-width:1.4",
    ".ms-route .ms-line": "stroke-dasharray:6 4",
    ".ms-request .ms-line": "stroke-width:1.1",
    ".ms-join .ms-line": "stroke-width:3",
    ".ms-request .ms-head": "fill:none;stroke-width:1.3",
}


def _colours(ground: str, ink: str, faint: str, line: str, boxes: Mapping[str, tuple[str, str, str]]) -> dict[str, str]:
    """Return the rules of one theme; ``boxes`` has fill, border and sign by class."""
    rules = {
        ".ms-ground": f"fill:{ground}",
        "text": f"fill:{ink}",
        ".ms-facts,.ms-skipped text": f"fill:{faint}",
        ".ms-line": f"stroke:{line}",
        ".ms-head": f"fill:{line};stroke:{line}",
        ".ms-request .ms-head": "fill:none",
    }
    for kind, (fill, border, sign) in boxes.items():
        rules[f".{kind} .ms-box,.{kind} .ms-behind"] = f"fill:{fill};stroke:{border}"
        rules[f".{kind} .ms-side"] = f"stroke:{border}"
        rules[f".{kind} .ms-mark"] = f"fill:{border}"
        rules[f".{kind} .ms-sign"] = f"fill:{sign}"
    return rules


_LIGHT = _colours(
    "#ffffff", "#1f2328", "#636c76", "#818b98",
    {
        "ms-declared": ("#f6f8fa", "#8c96a3", "#57606a"),
        "ms-success": ("#e7f6ec", "#2f9e52", "#1a7f37"),
        "ms-failed": ("#ffebe9", "#cf222e", "#cf222e"),
        "ms-running": ("#e1f0ff", "#0969da", "#0969da"),
        "ms-pending": ("#eff3f8", "#8797ab", "#5b6b80"),
        "ms-skipped": ("#fcfcfd", "#b4bcc6", "#818b98"),
        "ms-stopped": ("#fff3e6", "#d0730f", "#b35c00"),
    },
)  # fmt: skip
_DARK = _colours(
    "#0d1117", "#e6edf3", "#9198a1", "#7d8590",
    {
        "ms-declared": ("#161b22", "#6e7681", "#9198a1"),
        "ms-success": ("#12291a", "#3fb950", "#56d364"),
        "ms-failed": ("#3a1618", "#f85149", "#ff7b72"),
        "ms-running": ("#0f2747", "#4493f8", "#79c0ff"),
        "ms-pending": ("#1b2430", "#71839a", "#a3b3c7"),
        "ms-skipped": ("#10151c", "#4b535d", "#7d8590"),
        "ms-stopped": ("#33200b", "#db8b32", "#f0a95b"),
    },
)  # fmt: skip

#: The style of drawings with ``embedded=True``, which the page must bring.
STYLE = style("ms-diagram", _PLAIN, _LIGHT, _DARK)


def drawn(diagram: Diagram, *, embedded: bool = False) -> str:
    """Return a diagram as SVG.

    Every task is a ``<g class="ms-task" data-task="NAME">``, every edge a ``<g class="ms-edge" data-source="NAME"
    data-target="NAME">``, so that a page can find them.

    Args:
        diagram: what is drawn. Its tasks are told apart by their keys in ``diagram.nodes``; where that is not the
            name, which two may share once names are cut, ``data-key`` of an embedded drawing tells.
        embedded: leave out the style, which the page has once for all drawings, and the ground.
    """
    is_run = any(node.status is not None for node in diagram.nodes.values())
    facts = {name: _facts(node) for name, node in diagram.nodes.items()}
    height = 50.0 if any(facts.values()) else 38.0  # the same for all: rows are calmer
    sizes = {name: _size(node, facts[name], height) for name, node in diagram.nodes.items()}
    layout = laid_out(sizes, [(edge.source, edge.target) for edge in diagram.edges])
    legend = _legend(diagram.edges, layout.height)
    width, height = max(layout.width, legend[1]), layout.height + (_LEGEND if legend[0] else 0)
    count = len(diagram.nodes)
    title = f"{diagram.flow}: {count} task{'' if count == 1 else 's'}"
    return "\n".join(
        [
            *opened("ms-diagram", title, width, height, None if embedded else STYLE),
            *(_edge(edge, line, diagram, layout) for edge, line in zip(diagram.edges, layout.lines, strict=True)),
            *(
                _task(node, facts[key], layout.boxes[key], is_run, key if embedded else None)
                for key, node in diagram.nodes.items()
            ),
            *legend[0],
            "</svg>\n",
        ]
    )


def _facts(node: TaskNode) -> str:
    """Return what stands below the name: what is not usual."""
    facts = [node.executor] if node.executor != "thread" else []
    if node.runs > 1:
        facts.append(f"{node.runs} runs")
    return shortened(" · ".join(facts), _SMALL, _WIDEST)


def _size(node: TaskNode, facts: str, height: float) -> tuple[float, float]:
    """Return how large a box must be for its text."""
    sign = _SIGN if node.status is not None else 0.0
    text = max(text_width(shortened(node.name, _SIZE, _WIDEST), _SIZE), text_width(facts, _SMALL))
    stack = _STACK if node.is_mapped else 0.0
    return max(84.0, 2 * _PAD + sign + text) + stack, height + stack


# ---- tasks ----------------------------------------------------------------------------------------


def _task(node: TaskNode, facts: str, box: Box, is_run: bool, key: str | None) -> str:
    """Return a box with its text."""
    untold = _UNTOUCHED if is_run else _DECLARED
    kind, sign = untold if node.status is None else (_KINDS[node.status], GLYPHS[node.status])
    said = _said(node, is_run)
    front = box
    if node.is_mapped:
        front = box._replace(width=box.width - _STACK, height=box.height - _STACK)
    own = "" if key is None else f'data-key="{escaped(key)}" '
    lines = [
        f'<g class="ms-task {kind}" data-task="{escaped(node.name)}" {own}tabindex="0" role="img" '
        f'aria-label="{escaped(said)}">',
        f"<title>{escaped(said if not node.description else f'{said}{chr(10)}{node.description}')}</title>",
    ]
    if node.is_mapped:
        lines.append(_shape("ms-behind", node.executor, front._replace(x=box.x + _STACK, y=box.y + _STACK)))
    lines.append(_shape("ms-box", node.executor, front))
    if node.is_router:
        x, y = box.x + box.width, box.y + box.height / 2
        lines.append(f'<path class="ms-mark" d="M{number(x - 6)} {number(y)}l6 -7l6 7l-6 7z"/>')
    middle = front.y + front.height / 2
    x = front.x + front.width / 2 + (_SIGN / 2 if sign else 0.0)
    name = shortened(node.name, _SIZE, _WIDEST)
    base = middle - 2.5 if facts else middle + 4.5
    if sign:
        wide = max(text_width(name, _SIZE), text_width(facts, _SMALL))
        lines.append(_text("ms-sign", x - wide / 2 - _SIGN / 2 - 1, middle + 4.5, sign))
    lines.append(_text("ms-name", x, base, name, ' text-anchor="middle"'))
    if facts:
        lines.append(_text("ms-facts", x, middle + 13.0, facts, ' text-anchor="middle"'))
    return "".join([*lines, "</g>"])


def _said(node: TaskNode, is_run: bool) -> str:
    """Return all that the drawing says of a task, in words."""
    status = "" if not is_run else "not part of the run" if node.status is None else str(node.status)
    facts = [
        status,
        "router" if node.is_router else "",
        "once for each item" if node.is_mapped else "",
        f"on {node.executor}",
        f"{node.runs} runs" if node.runs > 1 else "",
    ]
    return f"{node.name}: {', '.join(filter(None, facts))}"


def _text(kind: str, x: float, y: float, text: str, more: str = "") -> str:
    return f'<text class="{kind}" x="{number(x)}" y="{number(y)}"{more}>{escaped(text)}</text>'


def _shape(kind: str, executor: str, box: Box) -> str:
    """Return the outline of a task: it says where the task is called."""
    x, y, right, bottom = box.x, box.y, box.x + box.width, box.y + box.height
    if executor == "process":
        return (
            f'<path class="{kind}" d="M{number(x + _CUT)} {number(y)}H{number(right - _CUT)}L{number(right)} '
            f"{number(y + _CUT)}V{number(bottom - _CUT)}L{number(right - _CUT)} {number(bottom)}H{number(x + _CUT)}"
            f'L{number(x)} {number(bottom - _CUT)}V{number(y + _CUT)}z"/>'
        )
    bend = {"thread": _ROUND, "inline": 0.0, "asyncio": box.height / 2}.get(executor, 2.0)
    shape = (
        f'<rect class="{kind}" x="{number(x)}" y="{number(y)}" width="{number(box.width)}" '
        f'height="{number(box.height)}" rx="{number(bend)}"/>'
    )
    if executor not in ("thread", "inline", "asyncio") and kind == "ms-box":
        shape += (
            f'<path class="ms-side" d="M{number(x + 5)} {number(y)}V{number(bottom)}'
            f'M{number(right - 5)} {number(y)}V{number(bottom)}"/>'
        )
    return shape


# ---- edges ----------------------------------------------------------------------------------------


def _edge(edge: TaskEdge, line: Sequence[Point], diagram: Diagram, layout: Layout) -> str:
    """Return a line with its arrow head."""
    ends = {name: (diagram.nodes[name], layout.boxes[name]) for name in (edge.source, edge.target)}
    line = [_inside(line[0], *ends[edge.source]), *line[1:-1], _inside(line[-1], *ends[edge.target])]
    source, target = (diagram.nodes[name].name for name in (edge.source, edge.target))
    said = _MEANINGS[edge.kind].format(source, target)
    return (
        f'<g class="ms-edge ms-{edge.kind}" data-source="{escaped(source)}" '
        f'data-target="{escaped(target)}"><title>{escaped(said)}</title>{_arrow(line, edge.kind)}</g>'
    )


def _inside(point: Point, node: TaskNode, box: Box) -> Point:
    """Return the end of a line, moved to where the outline is that has no right corners."""
    off = abs(point.y - box.y - box.height / 2)
    if point.x not in (box.x, box.x + box.width):
        return point
    inset = 0.0
    if node.executor == "asyncio":
        half = box.height / 2
        inset = half - sqrt(max(0.0, half * half - off * off))
    elif node.executor == "process":
        inset = max(0.0, off - box.height / 2 + _CUT)
    return point._replace(x=point.x + inset if point.x == box.x else point.x - inset)


def _arrow(line: Sequence[Point], kind: EdgeKind) -> str:
    """Return the path of a line and that of its head."""
    before, tip = line[-2], line[-1]
    length = hypot(tip.x - before.x, tip.y - before.y) or 1.0
    dx, dy = (tip.x - before.x) / length, (tip.y - before.y) / length
    base = Point(tip.x - dx * _HEAD, tip.y - dy * _HEAD)
    side = 4.5 if kind is EdgeKind.JOIN else 3.5
    head = (
        f"M{number(base.x - dy * side)} {number(base.y + dx * side)}L{number(tip.x)} {number(tip.y)}"
        f"L{number(base.x + dy * side)} {number(base.y - dx * side)}"
    )
    if kind is EdgeKind.REQUEST:
        return f'<path class="ms-line" d="{_curve(line)}"/><path class="ms-head" d="{head}"/>'
    return f'<path class="ms-line" d="{_curve([*line[:-1], base])}"/><path class="ms-head" d="{head}z"/>'


def _curve(line: Sequence[Point]) -> str:
    """Return a smooth path along a way: between two heights an S, and where it turns at a right angle a bend.

    An S begins and ends level, and stays between its two points, so it touches nothing that the way does not touch.
    """
    path = [f"M{number(line[0].x)} {number(line[0].y)}"]
    last = line[0]
    for place, (one, other) in enumerate(pairwise(line), 1):
        if one.x != other.x and one.y != other.y:
            middle = number((one.x + other.x) / 2)
            path.append(f"C{middle} {number(one.y)} {middle} {number(other.y)} {number(other.x)} {number(other.y)}")
            last = other
            continue
        after = line[place + 1] if place + 1 < len(line) else other
        if (one.x == other.x) == (other.x == after.x) or (other.x != after.x and other.y != after.y):
            path.append(f"L{number(other.x)} {number(other.y)}")
            last = other
            continue
        begin, end = _toward(other, last), _toward(other, after)
        path.append(
            f"L{number(begin.x)} {number(begin.y)}Q{number(other.x)} {number(other.y)} {number(end.x)} {number(end.y)}"
        )
        last = end
    return "".join(path)


def _toward(corner: Point, other: Point) -> Point:
    """Return where a bend begins: some way from the corner, at most half of what there is."""
    length = abs(other.x - corner.x) + abs(other.y - corner.y)
    part = min(_ROUND, length / 2) / length if length else 0.0
    return Point(corner.x + (other.x - corner.x) * part, corner.y + (other.y - corner.y) * part)


def _legend(edges: Sequence[TaskEdge], y: float) -> tuple[list[str], float]:
    """Return a line that tells the kinds of edges apart, where there are several, and its width."""
    kinds = [kind for kind in EdgeKind if any(edge.kind is kind for edge in edges)]
    if len(kinds) < 2:
        return [], 0.0
    x, y = 20.0, y + _LEGEND / 2 - 6
    lines = ['<g class="ms-legend">']
    for kind in kinds:
        arrow = _arrow([Point(x, y), Point(x + 34, y)], kind)
        lines.append(f'<g class="ms-edge ms-{kind}">{arrow}{_text("ms-facts", x + 42, y + 3.5, kind)}</g>')
        x += 42 + text_width(kind, _SMALL) + 22
    return ["".join([*lines, "</g>"])], x
