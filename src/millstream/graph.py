"""The edges of a flow as a graph: checking, order, parts of it. Pure functions over names and numbers.

There are two kinds of edges. A *dependency* says that one task must finish before another starts; a
*route* says that one task may choose another. Dependencies must not go in a circle. Routes may: a route
that leads back is a loop, and choosing it is a request like any other. Nothing here recurses, and
everything is linear in the number of edges. May import: errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress
from operator import or_

from millstream.errors import CycleError, TaskNotFoundError

Names = Mapping[str, Sequence[str]]
Numbers = Sequence[Sequence[int]]


class Graph:
    """The edges of a flow, compiled: every task has a number, in the order of registration.

    Args:
        dependencies: for each task, in order, what it depends on.
        routes: for the tasks that choose, what they may choose.

    Every name must be a key of ``dependencies``; see ``missing``. What ``cycles`` finds must be mended first.
    """

    __slots__ = (
        "_after",
        "_counts",
        "_declared",
        "_given",
        "_has_circles",
        "_in_order",
        "_needs",
        "_rooted",
        "_whole",
        "followers",
        "loops",
        "names",
        "number",
        "roots",
        "routers",
        "routes",
        "special",
    )

    def __init__(self, dependencies: Names, routes: Names) -> None:
        self.names: Sequence[str] = list(dependencies)
        self._given = dependencies
        self._counts = [*map(len, dependencies.values())]
        self._needs: Numbers | None = None  # until somebody asks
        self._declared: Numbers | None = None
        self.number, self.followers, self._in_order = numbered(dependencies)
        number = self.number
        none: Numbers = [()] * len(self.names)
        self.routes: Numbers = [[number[n] for n in routes.get(task, ())] for task in self.names] if routes else none
        self.routers: Numbers = reverse(self.routes) if routes else none
        #: Whether there is more than dependencies: routes, or circles of them.
        self.special = any(self.routes)
        #: Edges that close a circle, seen from where a run starts: nobody waits for anything along them.
        self.loops: Mapping[int, Sequence[int]] = {}
        given = enumerate(dependencies.values())
        self.roots = [task for task, names in given if not names and not self.routers[task]]
        self._whole: Graph | None = None  #: of which this is a part, or a view
        self._after: tuple[tuple[int, ...], list[int]] | None = None  # of the newest starts
        #: None: not known yet. There are none without routes, since dependencies are refused then.
        self._has_circles: bool | None = None if any(self.routes) else False
        self._rooted: tuple[object, Graph] | None = None

    @property
    def needs(self) -> Numbers:
        """What each task waits for."""
        if self._needs is None:
            number = self.number
            self._needs = [[number[name] for name in names] for names in self._given.values()]
        return self._needs

    @property
    def declared(self) -> Numbers:
        """The same, also along edges that ``rooted`` takes out: outputs come along them."""
        return self.needs if self._declared is None else self._declared

    def count_needs(self) -> list[int]:
        """Return how many tasks each task waits for."""
        return [*self._counts] if self._needs is None else [*map(len, self._needs)]

    def depends(self, task: int) -> bool:
        """Whether a task depends on anything, in the flow as a whole."""
        return self._counts[task] > 0

    @property
    def any_edges(self) -> bool:
        """Whether there is any edge at all."""
        return any(self.followers) or any(self.routes)

    def node(self, name: str) -> int | None:
        """Return the number of a task, None for one at which no edge of the flow begins or ends."""
        task, whole = self.number.get(name), self._whole or self
        if task is None or not (
            whole.followers[task] or whole.depends(task) or whole.routes[task] or whole.routers[task]
        ):
            return None
        return task

    def entries(self) -> list[int]:
        """Return those of the roots from which an edge leads on."""
        return [task for task in self.roots if self.followers[task] or self.routes[task]]

    def linked(self) -> bytes:
        """Return, for each task, 1 if a dependency begins or ends there, else 0."""
        return bytes(map(bool, map(or_, self.count_needs(), map(len, self.followers))))

    def after(self, tasks: Iterable[int]) -> list[int]:
        """Return these tasks and all that edges lead to from them, in order."""
        starts, newest = tuple(tasks), self._after
        if newest is None or newest[0] != starts:
            known = set(starts)
            if self._in_order and not self.special and known.issuperset(self.entries()):  # each way begins there
                known.update(compress(range(len(self.names)), self.linked()))
            else:
                known = reach(starts, self.followers, self.routes)
            newest = self._after = starts, sorted(known)
        return newest[1]

    def before(self, tasks: Iterable[int]) -> set[int]:
        """Return these tasks and all that they depend on, or that chooses them."""
        return reach(tasks, self.needs, self.routers)

    def part(self, tasks: set[int]) -> Graph:
        """Return the graph with the edges among ``tasks`` alone; the numbers stay."""
        part = self._copy()
        for side in ("_needs", "followers", "routes", "routers", "_declared"):
            edges = getattr(self, side.removeprefix("_"))
            setattr(part, side, [[b for b in edges[a] if b in tasks] if a in tasks else [] for a in range(len(edges))])
        part.roots = [task for task in sorted(tasks) if not part.needs[task] and not part.routers[task]]
        return part

    def rooted(self, starts: Sequence[int]) -> Graph:
        """Return the graph without circles as a run sees it that begins at ``starts``.

        An edge that leads back to where it came from is taken out and noted in ``loops``.
        """
        if self._has_circles is None:
            self._has_circles = next(circles(self._edges()), None) is not None
        if not self._has_circles:
            return self
        key = tuple(starts)
        if self._rooted is None or self._rooted[0] != key:
            every = range(len(self.names))
            self._rooted = (key, self._without(back_edges(self._edges(), [*starts, *self.roots, *every])))
        return self._rooted[1]

    def _edges(self) -> list[list[int]]:
        return [[*after, *routes] for after, routes in zip(self.followers, self.routes, strict=True)]

    def _without(self, back: set[tuple[int, int]]) -> Graph:
        graph = self._copy()
        graph._declared = self.declared
        for side, turned in (("followers", False), ("routes", False), ("_needs", True), ("routers", True)):
            kept = [
                [b for b in ends if ((b, a) if turned else (a, b)) not in back]
                for a, ends in enumerate(getattr(self, side.removeprefix("_")))
            ]
            setattr(graph, side, kept)
        loops: dict[int, list[int]] = {}
        for a, b in sorted(back):
            if b in self.followers[a]:
                loops.setdefault(a, []).append(b)
        graph.loops, graph.special = loops, True
        return graph

    def _copy(self) -> Graph:
        copy = object.__new__(Graph)
        for slot in Graph.__slots__:
            setattr(copy, slot, getattr(self, slot))
        copy._rooted = copy._after = None
        copy._whole = self._whole or self
        copy._has_circles = self._has_circles and None  # fewer edges have no more circles
        return copy


def numbered(dependencies: Names) -> tuple[dict[str, int], Numbers, bool]:
    """Return the numbers of tasks, what follows each, and whether each follows only what comes before it.

    Raises:
        KeyError: something depends on a name of no task.
    """
    number: dict[str, int] = {}
    followers: list[list[int]] = [[] for _ in dependencies]
    try:
        for task, (name, needs) in enumerate(dependencies.items()):
            for need in needs:
                followers[number[need]].append(task)
            number[name] = task
    except KeyError:  # registered later, or never
        number = {name: task for task, name in enumerate(dependencies)}
        return number, reverse([[number[need] for need in needs] for needs in dependencies.values()]), False
    return number, followers, True


def missing(dependencies: Names, routes: Names) -> list[Exception]:
    """Return an error for each name in these edges that is no task."""
    found: list[Exception] = []
    for task, ends in [*dependencies.items(), *routes.items()]:
        for name in ends:
            if name not in dependencies:
                error = TaskNotFoundError(name, dependencies)
                error.add_note(f"Task {task} names it in its depends_on or routes.")
                found.append(error)
    return found


def cycles(graph: Graph) -> list[Exception]:
    """Return an error for circles of dependencies."""
    if graph._in_order:  # what goes in a circle leads back at least once
        return []
    return [CycleError([graph.names[task] for task in circle]) for circle in circles(graph.followers)]


def reverse(edges: Numbers) -> list[list[int]]:
    """Return the edges turned round."""
    turned: list[list[int]] = [[] for _ in edges]
    for a, ends in enumerate(edges):
        for b in ends:
            turned[b].append(a)
    return turned


def reach(starts: Iterable[int], *edges: Numbers) -> set[int]:
    """Return what can be reached along any of ``edges``, the starts included."""
    found = set(starts)
    open_ends = list(found)
    while open_ends:
        a = open_ends.pop()
        for side in edges:
            for b in side[a]:
                if b not in found:
                    found.add(b)
                    open_ends.append(b)
    return found


def circles(edges: Numbers) -> Iterator[list[int]]:
    """Yield a path that goes in a circle for each knot of circles: its last member is its first again.

    Whatever has nothing before it is taken away, again and again (Kahn's algorithm), and then whatever
    has nothing after it: knots are left, and what lies between them. A knot is what can be reached from
    each of its members (a strongly connected component).
    """
    left = _peeled(set(range(len(edges))), edges)
    if left:
        left = _peeled(left, reverse(edges))
    for knot in sorted(_knots(left, edges), key=min):
        start = min(knot)
        if len(knot) == 1 and start not in edges[start]:
            continue  # between two knots
        path, seen = [start], {start: 0}
        while True:
            following = next(b for b in edges[path[-1]] if b in knot)
            if following in seen:
                yield [*path[seen[following] :], following]
                break
            seen[following] = len(path)
            path.append(following)


def _knots(tasks: set[int], edges: Numbers) -> list[set[int]]:
    """Return the strongly connected components of some tasks (Kosaraju's algorithm, without recursion)."""
    order: list[int] = []  # by the end of a walk, depth first
    seen: set[int] = set()
    for start in sorted(tasks):
        if start in seen:
            continue
        seen.add(start)
        way = [(start, iter(edges[start]))]
        while way:
            here, ends = way[-1]
            for there in ends:
                if there in tasks and there not in seen:
                    seen.add(there)
                    way.append((there, iter(edges[there])))
                    break
            else:
                order.append(here)
                way.pop()
    back = reverse(edges) if order else []
    knots: list[set[int]] = []
    while order:
        start = order.pop()
        if start not in seen:
            continue
        seen.discard(start)
        knot, open_ends = {start}, [start]
        while open_ends:
            for there in back[open_ends.pop()]:
                if there in seen:
                    seen.discard(there)
                    knot.add(there)
                    open_ends.append(there)
        knots.append(knot)
    return knots


def _peeled(tasks: set[int], edges: Numbers) -> set[int]:
    """Take away what no edge from another of ``tasks`` leads to, until there is no such task."""
    before = [0] * len(edges)
    for a in tasks:
        for b in edges[a]:
            before[b] += 1
    free = [task for task in tasks if not before[task]]
    left = set(tasks)
    while free:
        a = free.pop()
        left.discard(a)
        for b in edges[a]:
            before[b] -= 1
            if not before[b] and b in tasks:
                free.append(b)
    return left


def back_edges(edges: Numbers, starts: Iterable[int]) -> set[tuple[int, int]]:
    """Return the edges that lead back to where a walk from ``starts``, depth first, is on its way from."""
    back: set[tuple[int, int]] = set()
    seen: set[int] = set()
    for start in starts:
        if start in seen:
            continue
        seen.add(start)
        way, here = [(start, iter(edges[start]))], {start}
        while way:
            a, ends = way[-1]
            for b in ends:
                if b in here:
                    back.add((a, b))
                elif b not in seen:
                    seen.add(b)
                    here.add(b)
                    way.append((b, iter(edges[b])))
                    break
            else:
                here.discard(a)
                way.pop()
    return back
