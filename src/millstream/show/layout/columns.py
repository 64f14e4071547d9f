"""Which column a box of a drawing stands in, and in what order: the part of a layout that needs no geometry.

The method is that of Sugiyama: circles are cut, every box gets a column, and the columns are put in an order with
few crossings. A line that passes a column has a place of its own in it, like a box without height.

Rule 1: the same input gives the same output. Nothing depends on a hash, on chance or on the time.
Rule 2: nothing recurses, and nothing is quadratic. A large graph gets fewer rounds, not more time.

Sources:
    K. Sugiyama, S. Tagawa, M. Toda, "Methods for Visual Understanding of Hierarchical System Structures", IEEE
    Transactions on Systems, Man, and Cybernetics 11(2), 1981: the steps, and the order by barycentres.
    E. R. Gansner, E. Koutsofios, S. C. North, K.-P. Vo, "A Technique for Drawing Directed Graphs", IEEE
    Transactions on Software Engineering 19(3), 1993: circles are cut depth-first, the order is kept when it was
    the best, those that are equal change places.

May import: nothing of millstream.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from itertools import pairwise

Ends = Sequence[tuple[int, int]]

#: For lines that pass a column; lines beyond that have none.
_MOST_PLACES = 40_000
#: Visits of an end of a line while crossings are taken out: a guess, about a second.
_MOST_VISITS = 600_000
#: Rounds for a small graph.
_MOST_ROUNDS = 24


class Columns:
    """Boxes in columns. A place is a box, by number, or, after those, where a line passes a column.

    Args:
        count: number of boxes.
        ends: the edges, from box to box, as often as wanted.
    """

    def __init__(self, count: int, ends: Ends) -> None:
        self.against, order = _cut(count, ends)  #: by edge: it is drawn from right to left
        onward = [(t, s) if against else (s, t) for (s, t), against in zip(ends, self.against, strict=True)]
        self.layer = _layers(order, [(source, target) for source, target in onward if source != target])  #: by place
        self.chains: dict[int, list[int]] = {}  #: by edge, its places from left to right
        self.around: dict[int, tuple[int, int]] = {}  #: by edge, its left and right box: it has no places between
        self._lead(count, onward)
        self.left: list[list[int]] = [[] for _ in self.layer]  #: by place, those in the column before that it leads to
        self.right: list[list[int]] = [[] for _ in self.layer]  #: the same in the column after
        for chain in self.chains.values():
            for one, other in pairwise(chain):
                self.right[one].append(other)
                self.left[other].append(one)
        self.rank = [0] * len(self.layer)  #: by place, its number in its column from above
        self.columns = self._planted()  #: from left to right, and each from above
        self._untangle()

    def _lead(self, count: int, onward: Ends) -> None:
        """Give each edge a place in every column that it passes, the short ones first."""
        spans = {edge: self.layer[t] - self.layer[s] for edge, (s, t) in enumerate(onward) if s != t}
        for edge in sorted(spans, key=spans.__getitem__):
            source, target = onward[edge]
            first, passed = len(self.layer), range(self.layer[source] + 1, self.layer[target])
            if first + len(passed) > count + _MOST_PLACES:
                self.around[edge] = onward[edge]
                continue
            self.layer += passed
            self.chains[edge] = [source, *range(first, len(self.layer)), target]

    def _planted(self) -> list[list[int]]:
        """Return the columns in the order of a search in depth, which draws a tree without crossings."""
        columns: list[list[int]] = [[] for _ in range(max(self.layer) + 1)]
        seen = [False] * len(self.layer)
        for root in sorted(range(len(self.layer)), key=self.layer.__getitem__):
            way = [root]
            while way:
                place = way.pop()
                if not seen[place]:
                    seen[place] = True
                    columns[self.layer[place]].append(place)
                    way += reversed(self.right[place])
        return columns

    def _untangle(self) -> None:
        """Sort each column by the mean rank of what it leads to, back and forth; keep the best order."""
        best, fewest = self.columns, self._crossings()
        visits = 3 * sum(map(len, self.right)) + len(self.layer)
        patience = rounds = max(4, min(_MOST_ROUNDS, _MOST_VISITS // visits))
        for turn in range(rounds):
            if not fewest or not patience:
                break
            self._sweep(turn)
            crossings = self._crossings()
            patience -= 1
            if crossings < fewest:
                best, fewest, patience = self.columns, crossings, max(4, rounds // 3)
        self.columns = best
        self._crossings()

    def _sweep(self, turn: int) -> None:
        """Sort the columns from the left or the right; every second time, those that are equal change places."""
        onward = turn % 2 == 0
        near, rank, columns = self.left if onward else self.right, self.rank, [*self.columns]
        for number in range(len(columns)) if onward else reversed(range(len(columns))):
            column = columns[number][::-1] if turn % 4 < 2 else columns[number]
            beside = number - 1 if onward else number + 1
            scale = len(columns[beside]) / len(column) if 0 <= beside < len(columns) else 1.0
            mean = {
                place: sum([rank[other] for other in near[place]]) / len(near[place])
                if near[place]
                else rank[place] * scale
                for place in column
            }
            columns[number] = column = sorted(column, key=mean.__getitem__)
            for place, it in enumerate(column):
                rank[it] = place
        self.columns = columns

    def _crossings(self) -> int:
        """Set the ranks, and return how many pairs of lines cross in them."""
        for column in self.columns:
            for place, it in enumerate(column):
                self.rank[it] = place
        crossings = 0
        for column in self.columns[1:]:
            ends: list[int] = []  # of the lines so far, in the column before: those that are lower are crossed
            for place in column:
                ranks = sorted([self.rank[other] for other in self.left[place]])
                for end in ranks:
                    crossings += len(ends) - bisect_right(ends, end)
                for end in ranks:
                    insort(ends, end)
        return crossings


def _cut(count: int, ends: Ends) -> tuple[list[bool], list[int]]:
    """Return which edges close a circle, and the nodes in an order in which all others lead onward.

    A circle is cut where a search in depth comes back to where it is, seen from the boxes that nothing leads to.
    """
    after: list[list[int]] = [[] for _ in range(count)]
    entered = [False] * count
    for edge, (source, target) in enumerate(ends):
        if source != target:
            after[source].append(edge)
            entered[target] = True
    closes = [False] * len(ends)
    done: list[bool | None] = [None] * count  # False: the search is in there
    order: list[int] = []
    for root in sorted(range(count), key=entered.__getitem__):
        way = [(root, iter(after[root]))] if done[root] is None else []
        while way:
            node, edges = way[-1]
            done[node] = False
            for edge in edges:
                target = ends[edge][1]
                if done[target] is None:
                    way.append((target, iter(after[target])))
                    break
                closes[edge] = done[target] is False
            else:
                done[node] = True
                order.append(way.pop()[0])
    return closes, order[::-1]


def _layers(order: Sequence[int], ends: Ends) -> list[int]:
    """Return a column for each node: as far left as can be, then nearer to where most of its edges are.

    The nodes of the longest path stay, so that no column is empty.
    """
    before: list[list[int]] = [[] for _ in order]
    after: list[list[int]] = [[] for _ in order]
    for source, target in ends:
        before[target].append(source)
        after[source].append(target)
    layer = [0] * len(order)
    for node in order:
        layer[node] = max([layer[other] + 1 for other in before[node]], default=0)
    for _ in range(2):  # a tie goes to the right and back again, so that a chain moves as a whole
        for node in reversed(order):
            if after[node] and len(after[node]) >= len(before[node]):
                layer[node] = min([layer[other] for other in after[node]]) - 1
        for node in order:
            if before[node] and len(before[node]) >= len(after[node]):
                layer[node] = max([layer[other] for other in before[node]]) + 1
    return layer
