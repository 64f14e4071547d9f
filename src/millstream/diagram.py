"""What a picture of a flow, or of one of its runs, shows: tasks and the edges between them, as values.

A flow makes one of what is declared, a report one of what a run did; the drawings in ``show`` know nothing else.
May import: events, values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

from millstream.events import Record

if TYPE_CHECKING:
    from millstream.values import Status


class EdgeKind(StrEnum):
    """What an edge between two tasks means."""

    DEPENDENCY = "dependency"  #: the second one needs the first
    ROUTE = "route"  #: the first one may choose the second
    REQUEST = "request"  #: the first one has asked for the second, with a ``NextTask``
    JOIN = "join"  #: the second one is a join, and has waited for the first, a sibling in the same list


class TaskNode(Record):
    """A task in a picture."""

    __slots__ = ("description", "executor", "is_mapped", "is_router", "name", "runs", "status")

    def __init__(
        self,
        name: str,
        executor: str = "thread",
        *,
        is_router: bool = False,
        is_mapped: bool = False,
        description: str | None = None,
        status: Status | None = None,
        runs: int = 0,
    ) -> None:
        self.name = name
        self.executor = executor  #: where it is called, such as ``thread`` or ``process``
        self.is_router = is_router  #: it chooses what comes next
        self.is_mapped = is_mapped  #: it runs once for each of a list of items
        self.description = description
        self.status = status  #: what became of it in a run, the worst of all task runs; None: it had no part
        self.runs = runs  #: how many of its task runs have ended


class TaskEdge(Record):
    """An edge in a picture, from one task to another, or to itself."""

    __slots__ = ("kind", "source", "target")

    def __init__(self, source: str, target: str, kind: EdgeKind = EdgeKind.DEPENDENCY) -> None:
        self.source = source
        self.target = target
        self.kind = kind


class Diagram(Record):
    """Tasks and edges. Every edge is between two of the tasks, and no two edges are the same."""

    __slots__ = ("edges", "flow", "nodes")

    def __init__(self, flow: str, nodes: Iterable[TaskNode], edges: Iterable[TaskEdge]) -> None:
        self.flow = flow  #: its name
        self.nodes = {node.name: node for node in nodes}  #: by name, in the order in which they were registered
        self.edges = tuple(edge for edge in edges if edge.source in self.nodes and edge.target in self.nodes)

    def after(
        self,
        rows: Mapping[str, tuple[Status, int]],
        links: Iterable[tuple[str, str, EdgeKind]],
        executors: Mapping[str, str] = {},
    ) -> Diagram:
        """Return the picture of a run.

        Args:
            rows: by the names of the tasks that had a part in it, the worst status and how many runs have ended.
            links: what led from one task to another, in any order: their names, and how.
            executors: where tasks were called that are not declared, by their names.

        Returns:
            What is declared and what ran: a task that has neither a part in it nor an edge is left out.
        """
        linked = {name for edge in self.edges for name in (edge.source, edge.target)}
        nodes = [
            TaskNode(
                node.name,
                node.executor,
                is_router=node.is_router,
                is_mapped=node.is_mapped,
                description=node.description,
                status=rows[node.name][0] if node.name in rows else None,
                runs=rows[node.name][1] if node.name in rows else 0,
            )
            for node in self.nodes.values()
            if node.name in rows or node.name in linked
        ]
        nodes += [
            TaskNode(name, executors.get(name, "thread"), status=row[0], runs=row[1])
            for name, row in rows.items()
            if name not in self.nodes
        ]
        links = tuple(links)
        declared = {(edge.source, edge.target) for edge in self.edges} if links else set()
        place = {node.name: place for place, node in enumerate(nodes)}
        more = [link for link in links if link[:2] not in declared and link[0] in place and link[1] in place]
        more.sort(key=lambda link: (place[link[0]], place[link[1]], link[2]))
        return Diagram(self.flow, nodes, (*self.edges, *(TaskEdge(*link) for link in more)))
