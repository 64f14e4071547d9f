"""A flow as a Mermaid flowchart, for Markdown pages and documents. May import: task.

Source: "Flowcharts - Basic Syntax", https://mermaid.js.org/syntax/flowchart.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from millstream.task import Task

Names = Mapping[str, Sequence[str]]


def drawn(tasks: Mapping[str, Task[..., Any]], dependencies: Names, routes: Names) -> str:
    """Return a flowchart: a router is a rhombus, a task that is mapped has a double edge, a route is dotted."""
    number = {name: f"t{place}" for place, name in enumerate(tasks)}
    lines = ["flowchart LR"]
    for name, task in tasks.items():
        begin, end = ("{", "}") if routes.get(name) else ("[[", "]]") if task.for_each is not None else ("[", "]")
        lines.append(f"    {number[name]}{begin}{_text(name)}{end}")
    for name, needs in dependencies.items():
        lines += [f"    {number[need]} --> {number[name]}" for need in needs if need in number]
    for name, targets in routes.items():
        lines += [f"    {number[name]} -.-> {number[target]}" for target in targets if target in number]
    return "\n".join(lines)


def _text(name: str) -> str:
    """Return a text in quotes, with everything in it that may mean something as an entity: labels are Markdown."""
    inner = range(1, len(name) - 1)
    plain = [
        each.isalnum()
        or (each in " -_." and place in inner and name[place - 1].isalnum() and name[place + 1].isalnum())
        for place, each in enumerate(name)
    ]
    if name[:1].isdigit():  # "1. load" would be a list
        plain = [good and each not in " ." for good, each in zip(plain, name, strict=True)]
    return '"' + "".join(each if good else f"#{ord(each)};" for good, each in zip(plain, name, strict=True)) + '"'
