"""Which of a run's entries still hold when some of its tasks, and all that came after them, run again.

After a task run come: what it asked for; joins that waited for it, or for something that came after it; what edges
lead to; and items and calls of its own. Pure: entries in, entries out. May import: journal, graph, stores.base.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from millstream.engine.journal import Reader, call_paths
from millstream.graph import Graph
from millstream.stores.base import Entry


class Child(NamedTuple):
    """Something that a task run has asked for."""

    path: int
    name: str | None  #: of its task; None for an item or a call
    joins: bool


class Lineage:
    """Who came after whom in a run."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}  # of those that have finished
        self.begun: dict[int, str] = {}  # of those that have failed, once at least
        self.children: dict[int, list[Child]] = {}
        self.parents: dict[int, int] = {}

    def add(self, path: int, name: str, shapes: Sequence[Any], items: int, calls: Sequence[Any]) -> None:
        """A task run has finished, and had asked for these, in this order."""
        self.names[path] = name
        children = [Child(hash((path, place)), shape[0], shape[2]) for place, shape in enumerate(shapes)]
        children += [Child(hash((path, place)), None, False) for place in range(len(shapes), items)]
        children += [Child(each, None, False) for each in call_paths(path, calls)]
        self.children[path] = children
        for child in children:
            self.parents[child.path] = path

    def after(self, names: Iterable[str], graph: Graph | None) -> set[int]:
        """Return the paths of all task runs of these tasks, and of all that came after them."""
        by_name: dict[str, list[int]] = {}
        for path, name in {**self.begun, **self.names}.items():
            by_name.setdefault(name, []).append(path)
        # Requests that coalesced: joins beside them have waited for what was under way of that task.
        beside: dict[str, list[int]] = {}
        for asker, children in self.children.items():
            if any(child.joins for child in children):
                for child in children:
                    if child.name is not None and child.path not in self.names and not child.joins:
                        beside.setdefault(child.name, []).append(asker)
        found: set[int] = set()
        seen: set[str] = set()
        todo: list[int] = []

        def reach(name: str) -> None:
            """Edges lead on from a task, to all of its task runs."""
            if graph is None or name in seen or name not in graph.number:
                return
            seen.add(name)
            for node in graph.after([graph.number[name]]):
                if graph.names[node] != name:
                    todo.extend(by_name.get(graph.names[node], ()))

        for name in names:
            todo.extend(by_name.get(name, ()))
            reach(name)
        while todo:
            path = todo.pop()
            if path in found:
                continue
            found.add(path)
            if path in self.names:
                reach(self.names[path])
                for asker in beside.get(self.names[path], ()):
                    todo.extend(child.path for child in self.children[asker] if child.joins)
            todo.extend(child.path for child in self.children.get(path, ()))
            while path in self.parents:  # joins of each list around it waited for it
                path = self.parents[path]
                todo.extend(child.path for child in self.children[path] if child.joins)
        return found


def rewound(reader: Reader, entries: Iterable[Entry], names: Iterable[str], graph: Graph | None) -> list[Entry]:
    """Return the entries that still hold when these tasks, and all that came after them, run again.

    Raises:
        CheckpointError: the journal cannot be read.
        ValueError: one of the tasks has no finished task run, so there is nothing to run again.
    """
    kept = list(entries)
    lineage = Lineage()
    asked: dict[int | None, list[Any]] = {}
    whole: dict[int | None, int] = {}  # how many of these belong to attempts that were not interrupted
    pages: dict[tuple[int | None, str], list[Any]] = {}
    with reader.reading():
        for entry in kept:
            if entry.kind == "asked":
                asked.setdefault(entry.key, []).append(reader.facts(entry)[0])
            elif entry.kind in ("retry", "failed"):
                assert entry.key is not None, "it is about a task run"
                lineage.begun[entry.key] = reader.facts(entry)[0][0]
                if entry.kind == "retry":
                    whole[entry.key] = len(asked.get(entry.key, ()))
            elif entry.kind == "resumed":  # what an attempt had asked for that was interrupted it asks for again
                for path, made in asked.items():
                    if path not in lineage.names:
                        del made[whole.get(path, 0) :]
            elif entry.kind == "page":
                name, shapes = reader.facts(entry)[0]
                pages.setdefault((entry.key, name), []).extend(shapes)
            elif entry.kind == "finished":
                assert entry.key is not None, "it is about a task run"
                facts, values = reader.facts(entry)
                name, _, _, _, _, _, given, calls, *_ = facts
                shapes = [
                    *asked.get(entry.key, ()),
                    *(pages.get((entry.key, given), ()) if isinstance(given, str) else given or ()),
                ]
                items = len(values[0]) if isinstance(values[0], list) else 0
                lineage.add(entry.key, name, shapes, items, calls)
    known = set(lineage.names.values())
    for name in names:
        if name not in known:
            raise ValueError(
                f"Task {name} has not finished in this run, so it runs anyway: leave it out of from_tasks."
            )
    after = lineage.after(names, graph)
    return [entry for entry in kept if entry.kind != "end" and (entry.key is None or entry.key not in after)]
