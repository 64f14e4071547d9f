"""A flow as text: one line a task. May import: task, graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from millstream.task import Task

Names = Mapping[str, Sequence[str]]


def drawn(flow: str, tasks: Mapping[str, Task[..., Any]], dependencies: Names, routes: Names) -> str:
    """Return the lines of a flow, indented by how deep in the graph a task stands."""
    depth = depths(dependencies, routes)
    lines = [f"{flow}: {len(tasks)} task{'' if len(tasks) == 1 else 's'}"]
    for name in sorted(tasks, key=lambda name: depth[name]):  # tasks of one depth stay in their order
        line = f"{'  ' * (depth[name] + 1)}{name}"
        if dependencies.get(name):
            line += f" << {', '.join(dependencies[name])}"
        if routes.get(name):
            line += f" ? {' | '.join(routes[name])}"
        description = tasks[name].description
        lines.append(line if description is None else f"{line}  ({description})")
    return "\n".join(lines)


def depths(dependencies: Names, routes: Names) -> dict[str, int]:
    """Return for each task the length of the longest way to it; of a circle, that of its first task."""
    before: dict[str, set[str]] = {
        name: {n for n in needs if n in dependencies} for name, needs in dependencies.items()
    }
    for router, targets in routes.items():
        for target in targets:
            if target in before and target != router:
                before[target].add(router)
    after: dict[str, list[str]] = {name: [] for name in before}
    for name, ends in before.items():
        for end in ends:
            after[end].append(name)
    depth = dict.fromkeys(before, 0)
    left = {name: len(ends) for name, ends in before.items()}
    free = [name for name, count in left.items() if not count]
    while left:
        if not free:  # a circle: go on with its first task as if nothing stood before it
            free.append(next(iter(left)))
        name = free.pop()
        if left.pop(name, None) is None:
            continue
        for following in after[name]:
            if following in left:
                depth[following] = max(depth[following], depth[name] + 1)
                left[following] -= 1
                if left[following] <= 0:
                    free.append(following)
    return depth
