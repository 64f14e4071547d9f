"""A diagram as a Mermaid flowchart, for Markdown pages and documents. May import: diagram, status.

Source: "Flowcharts - Basic Syntax", https://mermaid.js.org/syntax/flowchart.html
"""

from __future__ import annotations

from millstream.diagram import Diagram, EdgeKind, TaskNode
from millstream.show.status import GLYPHS, LOOKS, Look

#: Where a task is called: the signs around its name. What is not here is a cylinder.
SHAPES = {"inline": ("[", "]"), "thread": ("(", ")"), "asyncio": ("([", "])"), "process": ("{{", "}}")}
ROUTER, MAPPED, ELSEWHERE = ("{", "}"), ("[[", "]]"), ("[(", ")]")

ARROWS = {EdgeKind.DEPENDENCY: "-->", EdgeKind.ROUTE: "-.->", EdgeKind.REQUEST: "-->|next|", EdgeKind.JOIN: "==>"}


def drawn(diagram: Diagram) -> str:
    """Return a flowchart.

    A router is a rhombus, a task that is mapped has double sides, and any other one has the shape of its
    executor. A route is dotted, a request says ``next``, and what a join has waited for is thick. In the picture of
    a run, what became of a task is a sign and a colour.
    """
    number = {name: f"t{place}" for place, name in enumerate(diagram.nodes)}
    lines = ["flowchart LR"]
    for node in diagram.nodes.values():
        begin, end = _shape(node)
        lines.append(f'    {number[node.name]}{begin}"{_label(node)}"{end}')
    lines += [f"    {number[edge.source]} {ARROWS[edge.kind]} {number[edge.target]}" for edge in diagram.edges]
    for status, look in LOOKS.items():
        here = [number[node.name] for node in diagram.nodes.values() if node.status is status]
        if here:
            lines += [_class(status.lower(), look), f"    class {','.join(here)} {status.lower()}"]
    return "\n".join(lines)


def _shape(node: TaskNode) -> tuple[str, str]:
    return ROUTER if node.is_router else MAPPED if node.is_mapped else SHAPES.get(node.executor, ELSEWHERE)


def _class(name: str, look: Look) -> str:
    return f"    classDef {name} fill:{look.fill},stroke:{look.stroke},color:{look.text}"


def _label(node: TaskNode) -> str:
    label = _text(node.name)
    if node.runs > 1:
        label += f" #{ord('×')}; {node.runs}"
    if node.status is not None:
        label += f" #{ord(GLYPHS[node.status])};"
    return label


def _text(name: str) -> str:
    """Return a text with everything in it that may mean something as an entity: labels are Markdown."""
    inner = range(1, len(name) - 1)
    plain = [
        each.isalnum()
        or (each in " -_." and place in inner and name[place - 1].isalnum() and name[place + 1].isalnum())
        for place, each in enumerate(name)
    ]
    if name[:1].isdigit():  # "1. load" would be a list
        plain = [good and each not in " ." for good, each in zip(plain, name, strict=True)]
    return "".join(each if good else f"#{ord(each)};" for good, each in zip(plain, name, strict=True))
