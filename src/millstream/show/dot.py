"""A diagram in the language of Graphviz. May import: diagram, status.

Source: "DOT Language", https://graphviz.org/doc/info/lang.html
"""

from __future__ import annotations

from millstream.diagram import Diagram, EdgeKind, TaskNode
from millstream.show.status import GLYPHS, LOOKS

#: Where a task is called: its shape. What is not here is a cylinder.
SHAPES = {"inline": "", "thread": "style=rounded", "asyncio": "shape=ellipse", "process": "shape=octagon"}
ROUTER, MAPPED, ELSEWHERE = "shape=diamond", "peripheries=2", "shape=cylinder"

LINES = {
    EdgeKind.DEPENDENCY: "",
    EdgeKind.ROUTE: " [style=dashed]",
    EdgeKind.REQUEST: " [arrowhead=empty]",
    EdgeKind.JOIN: " [penwidth=2]",
}


def drawn(diagram: Diagram) -> str:
    """Return a digraph.

    A router is a diamond, a task that is mapped has a double edge, and any other one has the shape of its executor. A
    route is dashed, a request has an empty arrow head, and what a join has waited for is thick. In the picture of a
    run, what became of a task is a sign and a colour.
    """
    lines = [f"digraph {_text(diagram.flow)} {{", "    rankdir=LR;", "    node [shape=box];"]
    lines += [f"    {_text(node.name)}{_attributes(node)};" for node in diagram.nodes.values()]
    lines += [f"    {_text(edge.source)} -> {_text(edge.target)}{LINES[edge.kind]};" for edge in diagram.edges]
    return "\n".join([*lines, "}"])


def _attributes(node: TaskNode) -> str:
    shape = ROUTER if node.is_router else MAPPED if node.is_mapped else SHAPES.get(node.executor, ELSEWHERE)
    said = [shape] if shape else []
    if node.status is not None:
        look = LOOKS[node.status]
        style = '"filled,rounded"' if "style=rounded" in said else "filled"
        said = [each for each in said if each != "style=rounded"]
        said += [f"style={style}", f'fillcolor="{look.fill}"', f'color="{look.stroke}"', f'fontcolor="{look.text}"']
        runs = f" × {node.runs}" if node.runs > 1 else ""
        said.append(f"label={_text(f'{node.name}{runs} {GLYPHS[node.status]}')}")
    return f" [{', '.join(said)}]" if said else ""


def _text(name: str) -> str:
    """Return a text in quotes: a backslash stands for itself, and only a quote needs one before it."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
