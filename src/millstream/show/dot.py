"""A flow in the language of Graphviz. May import: task.

Source: "DOT Language", https://graphviz.org/doc/info/lang.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from millstream.task import Task

Names = Mapping[str, Sequence[str]]


def drawn(flow: str, tasks: Mapping[str, Task[..., Any]], dependencies: Names, routes: Names) -> str:
    """Return a digraph: a router is a diamond, a task that is mapped has a double edge, a route is dashed."""
    lines = [f"digraph {_text(flow)} {{", "    rankdir=LR;", "    node [shape=box];"]
    for name, task in tasks.items():
        shape = "shape=diamond" if routes.get(name) else "peripheries=2" if task.for_each is not None else ""
        lines.append(f"    {_text(name)}{f' [{shape}]' if shape else ''};")
    for name, needs in dependencies.items():
        lines += [f"    {_text(need)} -> {_text(name)};" for need in needs if need in tasks]
    for name, targets in routes.items():
        lines += [f"    {_text(name)} -> {_text(target)} [style=dashed];" for target in targets if target in tasks]
    return "\n".join([*lines, "}"])


def _text(name: str) -> str:
    """Return a text in quotes: a backslash stands for itself, and only a quote needs one before it."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
