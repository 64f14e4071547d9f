"""How high everything in a drawing stands: places of columns apart from each other, and where lines end at a box.

Rule: the same input gives the same output, and everything is about linear in what is drawn.

Sources:
    E. R. Gansner, E. Koutsofios, S. C. North, K.-P. Vo, "A Technique for Drawing Directed Graphs", IEEE
    Transactions on Software Engineering 19(3), 1993: long lines weigh more, so that they are straight.
    M. J. Best, N. Chakravarti, "Active set algorithms for isotonic regression; A unifying framework",
    Mathematical Programming 47, 1990: adjacent violators are pooled, which gives the heights of a column.

May import: columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from millstream.show.layout.columns import Columns

TRACK = 10.0  #: between two lines side by side
_TURNS = 10  #: rounds in which heights are found; more change nothing that can be seen
_STIFF = 1000.0  #: how much more a long line resists to being bent than a box to being moved
_SNAP = 9.0  #: a line that would have to bend by less is straight

#: What a place wishes to be level with: another place, how much lower, and how much it wishes that.
_Pull = tuple[int, float, float]


class Heights:
    """The middle of every place, from above, and the ends of the lines.

    Args:
        plan: the columns.
        sizes: of each box, the height.
        slots: of each box, the height that is kept free for it.
    """

    def __init__(self, plan: Columns, sizes: Sequence[float], slots: Sequence[float]) -> None:
        self._plan = plan
        #: By place, the height that is kept free for it.
        self.slots = [*slots, *[TRACK] * (len(plan.layer) - len(slots))]
        #: By edge, how far below the middle of its left and of its right box it ends.
        self.ports: Mapping[int, list[float]] = {edge: [0.0, 0.0] for edge in (*plan.chains, *plan.around)}
        self._spread(sizes)
        self._left, self._right = self._pulls()
        self.y = [0.0] * len(self.slots)  #: by place, its middle
        for turn in range(_TURNS):
            self._sweep(onward=turn % 2 == 1)

    def _spread(self, sizes: Sequence[float]) -> None:
        """Let the lines at one side of a box end beside each other, in the order in which they come."""
        rank = self._plan.rank
        sides: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for edge, chain in self._plan.chains.items():
            sides.setdefault((chain[0], 0), []).append((rank[chain[1]], edge))
            sides.setdefault((chain[-1], 1), []).append((rank[chain[-2]], edge))
        for edge, boxes in self._plan.around.items():
            for side, box in enumerate(boxes):
                sides.setdefault((box, side), []).append((-1, edge))
        for (box, side), lines in sides.items():
            step = min(TRACK, 0.6 * sizes[box] / len(lines))
            for place, (_, edge) in enumerate(sorted(lines)):
                self.ports[edge][side] = (place - (len(lines) - 1) / 2) * step

    def _pulls(self) -> tuple[list[list[_Pull]], list[list[_Pull]]]:
        """Return for each place what it wishes to be level with on its left, and on its right."""
        left: list[list[_Pull]] = [[] for _ in self.slots]
        right: list[list[_Pull]] = [[] for _ in self.slots]
        for edge, chain in self._plan.chains.items():
            leaves, enters = self.ports[edge]
            for one, other in pairwise(chain):
                lower = (leaves if one == chain[0] else 0.0) - (enters if other == chain[-1] else 0.0)
                left[other].append((one, lower, _STIFF if other != chain[-1] else 1.0))
                right[one].append((other, -lower, _STIFF if one != chain[0] else 1.0))
        return left, right

    def _sweep(self, *, onward: bool) -> None:
        """Put each column level with the one before it, or, from right to left, with the one after it."""
        near, other = (self._left, self._right) if onward else (self._right, self._left)
        for column in self._plan.columns if onward else reversed(self._plan.columns):
            wishes = [self._wish(near[place] or other[place]) for place in column]
            for place, height in zip(column, apart(wishes, [self.slots[place] for place in column]), strict=True):
                self.y[place] = height

    def _wish(self, pulls: Sequence[_Pull]) -> tuple[float, float]:
        """Return where a place wishes to be, and how much: at the mean, or quite level with one that is near that."""
        if not pulls:
            return 0.0, 0.001  # it goes where there is room
        levels = [self.y[place] + lower for place, lower, _ in pulls]
        mean = sum(levels) / len(levels)
        best = min(levels, key=lambda level: abs(level - mean))
        return best if abs(best - mean) < _SNAP else mean, sum([weight for _, _, weight in pulls])


def apart(wishes: Sequence[tuple[float, float]], slots: Sequence[float]) -> list[float]:
    """Return the heights nearest to the wishes, by weighted squares, at which no two slots overlap.

    With all slots above it taken off, the height of a slot must not be less than that of the one before. So those
    that wish otherwise are pooled at the mean of their wishes (Best and Chakravarti).

    Args:
        wishes: height and weight, from above.
        slots: how high each is.
    """
    pools: list[tuple[float, float, int]] = []  # height, weight, how many
    offsets = []
    end = 0.0
    for (wish, weight), slot in zip(wishes, slots, strict=True):
        offsets.append(end + slot / 2)
        end += slot
        height, count = wish - offsets[-1], 1
        while pools and pools[-1][0] > height:
            above, more, others = pools.pop()
            height = (height * weight + above * more) / (weight + more)
            weight, count = weight + more, count + others
        pools.append((height, weight, count))
    heights = [height for height, _, count in pools for _ in range(count)]
    return [height + offset for height, offset in zip(heights, offsets, strict=True)]
