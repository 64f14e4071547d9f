"""What a picture of a flow, or of one of its runs, shows: tasks and the edges between them, as values.

A flow makes one of what is declared, a report one of what a run did; the drawings in ``show`` know nothing else.
May import: events, values.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    JOIN = "join"  #: the second one, a join that was asked for, has waited for the first


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
