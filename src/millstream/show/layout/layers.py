"""Where the boxes and lines of a layered drawing go: columns from left to right. Pure geometry, over names and sizes.

``columns`` says which box stands in which column, and in what order, ``heights`` how high. Here columns get their
width and lines their ways, from border to border. Parts of a graph that are not joined stand side by side.

Rule 1: a line changes its height only in the gaps between columns. Within a column it is level, at its own place
        or on its way to its own box: that is why no line passes through a foreign box.
Rule 2: the same input gives the same output, and everything is about linear in what is drawn.

A drawing that is much wider than high is wrapped, as lines of text are: nobody can read a chain of 200 tasks that is
30,000 pixels wide. A band is a range of columns, moved as it is; a line to the next band leads around both, in
tracks of its own. So only the last step knows of bands.

Source: K. Sugiyama, S. Tagawa, M. Toda, "Methods for Visual Understanding of Hierarchical System Structures", IEEE
Transactions on Systems, Man, and Cybernetics 11(2), 1981; see ``columns`` and ``heights`` for those of their steps.

May import: columns, heights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import sqrt
from typing import NamedTuple

from millstream.show.layout.columns import Columns
from millstream.show.layout.heights import TRACK, Heights

ROOM = 24.0  #: between two boxes of one column, at least
GAP = 56.0  #: between two columns, at least
_STUB = 12.0  #: what a line is level for before it ends: room for an arrow head
_UNSEEN = 0.3  #: a bend of less is none
_LOOP = 18.0  #: how far an edge from a box to itself leads away from it
_MARGIN = 20.0  #: around the whole; more than _LOOP
_PAGE = 2400.0  #: what is not wider than this is never wrapped
_SLOPE = 80.0  #: what a gap is wider at most, where lines climb
_SHAPE = 1.7  #: width by height of what fits a screen


class Point(NamedTuple):
    """A point; x grows to the right, y downwards."""

    x: float
    y: float


class Box(NamedTuple):
    """A rectangle, by its top left corner."""

    x: float
    y: float
    width: float
    height: float


class Layout(NamedTuple):
    """Where everything goes. ``lines[i]`` is the way of ``edges[i]``, from the border of a box to that of another."""

    boxes: dict[str, Box]
    lines: list[list[Point]]
    width: float
    height: float


class _Picture(NamedTuple):
    """The drawing of some of the boxes, from (0, 0) on."""

    boxes: list[Box]
    lines: list[list[Point]]
    width: float
    height: float


Ends = list[tuple[int, int]]
Sizes = Sequence[tuple[float, float]]


def laid_out(sizes: Mapping[str, tuple[float, float]], edges: Sequence[tuple[str, str]]) -> Layout:
    """Return a drawing of a graph: a place for each box, and a way for each edge.

    Args:
        sizes: width and height of every box, by name.
        edges: from one box to another, or to itself, as often as wanted; both must be in ``sizes``.
    """
    number = {name: place for place, name in enumerate(sizes)}
    ends = [(number[source], number[target]) for source, target in edges]
    extents = list(sizes.values())
    parts = _parts(len(sizes), ends)
    joined = [part for part in parts if part[1]]
    pictures = [_picture([extents[node] for node in nodes], nodes, [ends[e] for e in links]) for nodes, links in joined]
    lone = [nodes[0] for nodes, links in parts if not links]
    area = sum([(picture.width + GAP) * (picture.height + GAP) for picture in pictures])
    area += max([extents[node][0] + ROOM for node in lone], default=0) * sum([extents[node][1] + ROOM for node in lone])
    widest = max([sqrt(area * _SHAPE), *(picture.width for picture in pictures)])
    if lone:
        joined.append((lone, []))
        pictures.append(_block([extents[node] for node in lone], widest))
    return _together(list(sizes), len(edges), joined, pictures, widest)


def _parts(count: int, ends: Ends) -> list[tuple[list[int], list[int]]]:
    """Return the nodes and the edges, by number, of every part of the graph that is not joined to the others."""
    near: list[list[int]] = [[] for _ in range(count)]
    for source, target in ends:
        near[source].append(target)
        near[target].append(source)
    part = [-1] * count
    parts: list[tuple[list[int], list[int]]] = []
    for first in range(count):
        found = [first] if part[first] < 0 else []
        for node in found:  # grows on the way; a node may come twice
            if part[node] < 0:
                part[node] = len(parts)
                found += [other for other in near[node] if part[other] < 0]
        if found:
            parts.append((sorted(set(found)), []))
    for edge, (source, _) in enumerate(ends):
        parts[part[source]][1].append(edge)
    return parts


def _picture(sizes: Sizes, nodes: Sequence[int], ends: Ends) -> _Picture:
    """Return the drawing of a part of the graph."""
    local = {node: place for place, node in enumerate(nodes)}
    return _Part(sizes, [(local[source], local[target]) for source, target in ends]).picture()


def _block(sizes: Sizes, width: float) -> _Picture:
    """Return boxes without edges in rows, one below another, as many in a row as there is room for."""
    wide = max([size[0] for size in sizes]) + ROOM
    columns = max(1, min(len(sizes), int((width + ROOM) / wide)))
    x = [0.0]
    for column in range(columns):
        x.append(x[-1] + ROOM + max([size[0] for size in sizes[column::columns]]))
    boxes: list[Box] = []
    y = 0.0
    for first in range(0, len(sizes), columns):
        row = sizes[first : first + columns]
        boxes += [Box(x[column], y, *size) for column, size in enumerate(row)]
        y += max([size[1] for size in row]) + ROOM
    return _Picture(boxes, [], x[-1] - ROOM, y - ROOM)


def _together(
    names: Sequence[str],
    edges: int,
    parts: Sequence[tuple[list[int], list[int]]],
    pictures: Sequence[_Picture],
    widest: float,
) -> Layout:
    """Return the pictures side by side on shelves, the high ones first."""
    boxes: dict[str, Box] = dict.fromkeys(names, Box(0.0, 0.0, 0.0, 0.0))  # in their order
    lines: list[list[Point]] = [[] for _ in range(edges)]
    x = y = _MARGIN
    width = bottom = 0.0
    for (nodes, links), picture in sorted(zip(parts, pictures, strict=True), key=lambda part: -part[1].height):
        if x > _MARGIN and x + picture.width > widest + _MARGIN:
            x, y = _MARGIN, bottom + GAP
        for node, box in zip(nodes, picture.boxes, strict=True):
            boxes[names[node]] = Box(box.x + x, box.y + y, box.width, box.height)
        for link, line in zip(links, picture.lines, strict=True):
            lines[link] = [Point(point.x + x, point.y + y) for point in line]
        width, bottom = max(width, x + picture.width), max(bottom, y + picture.height)
        x += picture.width + GAP
    return Layout(boxes, lines, width + _MARGIN, bottom + _MARGIN)


class _Part:
    """The drawing of a connected graph, in one band or in several."""

    def __init__(self, sizes: Sizes, ends: Ends) -> None:
        self.sizes, self.ends = sizes, ends
        self.loops: dict[int, dict[int, int]] = {}  #: by box, the edges from it to itself, with a number from 1 on
        for edge, (source, target) in enumerate(ends):
            if source == target:
                loops = self.loops.setdefault(source, {})
                loops[edge] = len(loops) + 1
        self.plan = Columns(len(sizes), ends)
        slots = [height + ROOM + 2 * _LOOP * (box in self.loops) for box, (_, height) in enumerate(sizes)]
        self.heights = Heights(self.plan, [height for _, height in sizes], slots)
        columns = self.plan.columns
        self.widths = [max([sizes[place][0] for place in column if place < len(sizes)]) for column in columns]
        self.gaps = [self._gap(column) for column in columns]
        self.bands = self._broken()
        self.band = [number for number, band in enumerate(self.bands) for _ in band]  #: by column
        self.wrapped = self._wrapped()
        #: Room for lines that go around all columns.
        self.outside = 2 * TRACK if self.plan.around else 0.0
        tracks = max(map(len, self.wrapped))
        self.indent = max(self.outside, (tracks + 1) * TRACK + _STUB if tracks else 0.0)
        self.x: list[float] = []  #: by column, its left side
        self.tops: list[float] = []  #: by band, where it begins, below the tracks that lead to it
        self.shift: list[float] = []  #: by band, how much lower it is than its heights say
        self.width = self.height = 0.0
        self._stack()

    def _gap(self, column: Sequence[int]) -> float:
        """Return the room to the right of a column: more where lines must climb."""
        y = self.heights.y
        climb = max([abs(y[place] - y[other]) for place in column for other in self.plan.right[place]], default=0.0)
        return GAP + min(_SLOPE, climb / 8)

    def _extent(self, columns: Iterable[int]) -> tuple[float, float]:
        """Return the height of the highest and of the lowest point of some columns."""
        y, slots = self.heights.y, self.heights.slots
        ends = [(self.plan.columns[number][0], self.plan.columns[number][-1]) for number in columns]
        room = ROOM / 2  # is outside
        return min([y[a] - slots[a] / 2 for a, _ in ends]) + room, max([y[b] + slots[b] / 2 for _, b in ends]) - room

    def _broken(self) -> list[range]:
        """Return the bands, as ranges of columns: broken where few lines are, so that the whole fits a screen."""
        count = len(self.widths)
        steps = [width + gap for width, gap in zip(self.widths, self.gaps, strict=True)]
        top, bottom = self._extent(range(count))
        rows = int(sqrt(sum(steps) / _SHAPE / (bottom - top + ROOM + 2 * TRACK)))
        if sum(steps) <= _PAGE or rows < 2:
            return [range(count)]
        most = max(_PAGE / 2, sum(steps) / rows)
        lines = [sum([len(self.plan.right[place]) for place in column]) for column in self.plan.columns]
        bands, first, wide = [], 0, 0.0
        for column, step in enumerate(steps):
            wide += step
            if wide > most and column > first:
                last = min(range(first + (column - first) * 3 // 4, column), key=lambda at: (lines[at], -at))
                bands.append(range(first, last + 1))
                first, wide = last + 1, sum(steps[last + 1 : column + 1])
        return [*bands, range(first, count)]

    def _wrapped(self) -> list[dict[tuple[int, int], int]]:
        """Return for each band the lines to the next one: by edge and place, the number of the track."""
        breaks: list[list[tuple[int, float, int, int]]] = [[] for _ in self.bands]
        last = {band[-1]: number for number, band in enumerate(self.bands[:-1])}
        for edge, chain in self.plan.chains.items() if last else ():
            for place in chain[:-1]:
                if (number := last.get(self.plan.layer[place])) is not None:
                    breaks[number].append((self.plan.rank[place], self.heights.ports[edge][0], edge, place))
        return [{(edge, place): at for at, (_, _, edge, place) in enumerate(sorted(found))} for found in breaks]

    def _stack(self) -> None:
        """Put the bands below each other."""
        y = self.outside
        for number, band in enumerate(self.bands):
            top, bottom = self._extent(band)
            self.tops.append(y)
            self.shift.append(y - top)
            x = self.indent
            for column in band:
                self.x.append(x)
                x += self.widths[column] + self.gaps[column]
            tracks = len(self.wrapped[number])
            right = x - self.gaps[band[-1]] + (_STUB + tracks * TRACK if tracks else self.outside)
            self.width, self.height = max(self.width, right), y + bottom - top
            y = self.height + ROOM + (tracks + 1) * TRACK + self.outside

    def picture(self) -> _Picture:
        """Return all of it."""
        boxes = [self._box(number) for number in range(len(self.sizes))]
        lines = [self._line(edge, boxes) for edge in range(len(self.ends))]
        return _Picture(boxes, lines, self.width, self.height)

    def _box(self, number: int) -> Box:
        width, height = self.sizes[number]
        column = self.plan.layer[number]
        x = self.x[column] + (self.widths[column] - width) / 2
        return Box(x, self.heights.y[number] + self.shift[self.band[column]] - height / 2, width, height)

    def _line(self, edge: int, boxes: Sequence[Box]) -> list[Point]:
        source, target = self.ends[edge]
        if source == target:
            return _loop(boxes[source], self.loops[source][edge], len(self.loops[source]))
        way = _straight(self._chain(edge, boxes) if edge in self.plan.chains else self._around(edge, boxes))
        return way[::-1] if self.plan.against[edge] else way

    def _ends(self, edge: int, left: Box, right: Box) -> tuple[Point, Point]:
        """Return where an edge leaves its left box and enters its right one."""
        leaves, enters = self.heights.ports[edge]
        return (
            Point(left.x + left.width, left.y + left.height / 2 + leaves),
            Point(right.x, right.y + right.height / 2 + enters),
        )

    def _chain(self, edge: int, boxes: Sequence[Box]) -> list[Point]:
        """Return the way of an edge through its places."""
        chain = self.plan.chains[edge]
        first, last = self._ends(edge, boxes[chain[0]], boxes[chain[-1]])
        points = [first]
        for place, after in pairwise(chain):
            column = self.plan.layer[place]
            band, next_band = self.band[column], self.band[column + 1]
            at = Point(self.x[column] + self.widths[column], points[-1].y)
            level = last.y if after == chain[-1] else self.heights.y[after] + self.shift[next_band]
            if abs(level - at.y) < _UNSEEN and after != chain[-1]:
                level = at.y
            to = Point(self.x[column + 1] - _STUB, level)
            points.append(at)
            if band != next_band:
                points += self._margin(band, self.wrapped[band][edge, place], at, to)
            points.append(to)
        return [*points, last]

    def _margin(self, band: int, track: int, at: Point, to: Point) -> list[Point]:
        """Return the way from the end of a band to the begin of the next: the uppermost line is the outermost."""
        inner = len(self.wrapped[band]) - track
        right, left = at.x + _STUB + inner * TRACK, to.x - (track + 1) * TRACK
        y = self.tops[band + 1] - ROOM / 2 - (track + 1) * TRACK
        return [Point(right, at.y), Point(right, y), Point(left, y), Point(left, to.y)]

    def _around(self, edge: int, boxes: Sequence[Box]) -> list[Point]:
        """Return a way in the gaps between columns and above the bands: where nobody can follow all lines any more."""
        left, right = self.plan.around[edge]
        first, last = self._ends(edge, boxes[left], boxes[right])
        column, end = self.plan.layer[left], self.plan.layer[right]
        one, other = self.band[column], self.band[end]
        x, x2 = self.x[column] + self.widths[column] + TRACK, self.x[end] - TRACK
        y, y2 = self.tops[one] - TRACK, self.tops[other] - TRACK
        between = [Point(x, y), Point(0.0, y), Point(0.0, y2)] if one != other else [Point(x, y)]
        return [first, Point(x, first.y), *between, Point(x2, y2), Point(x2, last.y), last]


def _loop(box: Box, number: int, count: int) -> list[Point]:
    """Return the way of an edge from a box to itself, around its upper right corner; one lies within another."""
    part = (number + 1) / (count + 1)
    corner = box.x + box.width
    left, right = corner - part * min(1.5 * _LOOP, box.width / 2), corner + part * _LOOP
    top, low = box.y - part * _LOOP, box.y + part * 0.2 * box.height
    return [Point(left, box.y), Point(left, top), Point(right, top), Point(right, low), Point(corner, low)]


def _straight(points: Sequence[Point]) -> list[Point]:
    """Return a way without the points at which it goes on straight."""
    way: list[Point] = []
    for point in points:
        while len(way) > 1 and (way[-2].y == way[-1].y == point.y or way[-2].x == way[-1].x == point.x):
            way.pop()
        way.append(point)
    return way
