"""``flow.to_mermaid`` and ``flow.to_dot``: everything is drawn once, and no name breaks the drawing.

What is drawn is read back by the rules of the two languages: the entities of Mermaid, the quoted texts of DOT.
"""

import re
import shutil
import subprocess
from collections import Counter
from itertools import pairwise
from typing import NamedTuple

import pytest

from millstream import Flow
from tests.conftest import WATCHDOG

#: Names with every sign that means something in one of the two languages, or in HTML; no task has a # in its name.
NAMES = [
    "plain",
    "two words",
    'in "quotes"',
    "it's",
    "a\\b",
    "ends with \\",
    '\\"',
    "a\\nb",
    "two\nlines",
    "return\rto the left",
    "tab\there",
    "[box]",
    "{rhombus}",
    "(round)",
    "a]b}c)d>e",
    "a --> b",
    "a -> b",
    "a; b",
    "a & b | c",
    "%% remark",
    "// remark /* and */",
    "<b>bold</b> &amp; &lt;",
    "<script>alert(1)</script>",
    "\\N",
    "\\G",
    "end",
    "subgraph",
    "digraph",
    "node",
    "t0",
    "`code`",
    "**bold**",
    "größe",
    "東京",
    "😀",
    "مرحبا",
    "$ctx.a",
    "a:b:c",
    "-1.5",
    ".",
    " ",
]


class Drawn(NamedTuple):
    """What a drawing says, in its order."""

    tasks: list
    edges: list
    routes: list


def read_mermaid(text):
    """Read a flowchart: its tasks as (name, shape), its edges and routes as pairs of names."""
    head, *lines = text.split("\n")
    assert head == "flowchart LR"
    names, drawn = {}, Drawn([], [], [])
    for line in lines:
        node = re.fullmatch(r'    (t\d+)(\[\[|\[|\{)"([^"\n]*)"(\]\]|\]|\})', line)
        if node:
            number, begin, label, end = node.groups()
            assert begin + end in ("[]", "[[]]", "{}")
            assert number not in names
            assert not re.search(r"[^\w #;.-]", label), f"{label!r} has a sign that is no entity"
            names[number] = re.sub(r"#(\d+);", lambda entity: chr(int(entity[1])), label)
            drawn.tasks.append((names[number], begin))
            continue
        edge = re.fullmatch(r"    (t\d+) (-->|-\.->) (t\d+)", line)
        assert edge, f"{line!r} is neither a task nor an edge"
        begin, arrow, end = edge.groups()
        (drawn.edges if arrow == "-->" else drawn.routes).append((names[begin], names[end]))
    return drawn


def read_dot(text):
    """Read a digraph as ``read_mermaid`` does; returns its name, too.

    In quotes, the language itself knows only the escaped quote. What then is drawn has more escapes: a backslash
    stands for itself when there are two of it, and \\n is a new line.
    """
    quoted = r'"((?:[^"\\]|\\.)*)"'
    head = re.match(rf"digraph {quoted} \{{\n    rankdir=LR;\n    node \[shape=box\];\n", text, re.DOTALL)
    assert head
    assert text.endswith("}")
    drawn = Drawn([], [], [])
    place, end = head.end(), len(text) - 1
    statement = re.compile(rf"    {quoted}(?: -> {quoted})?(?: \[([a-z=0-9]+)\])?;\n", re.DOTALL)
    while place < end:
        found = statement.match(text, place)
        assert found, text[place : place + 80]
        first, second, style = found.groups()
        place = found.end()
        if second is None:
            drawn.tasks.append((said(first), style))
        elif style is None:
            drawn.edges.append((said(first), said(second)))
        else:
            assert style == "style=dashed"
            drawn.routes.append((said(first), said(second)))
    return said(head[1]), drawn


def said(quoted):
    """Return the text that a quoted one of DOT is drawn as."""
    escapes = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
    assert set(re.findall(r"\\.", quoted, re.DOTALL)) <= set(escapes), quoted
    return re.sub(r"\\.", lambda escape: escapes[escape[0]], quoted)


def all_kinds():
    """Make a flow with a chain, a join, a fan-out, a router, a loop and a map."""
    flow = Flow("inline", name="kinds")
    for name in ("start", "left", "right", "join", "yes", "no", "again"):
        flow.add_task(name, lambda: None)
    flow.add_task("each", lambda item: item, for_each="yes")
    flow.connect("start >> (left & right) >> join >> (yes | no | again)", "again >> (left | no)", "yes >> each")
    return flow


def odd_names():
    """Make a flow in which each of the names comes after the one before, and may choose the one after."""
    flow = Flow("inline", name='"all" \\ #1 <names>\n')
    for name in NAMES:
        flow.add_task(name, lambda: None, replace=True)
    flow.connect(*pairwise(NAMES))
    flow.add_task("chooses", dict, routes=NAMES)
    return flow


EDGES = {("start", "left"), ("start", "right"), ("left", "join"), ("right", "join"), ("yes", "each")}
ROUTES = {("join", "yes"), ("join", "no"), ("join", "again"), ("again", "left"), ("again", "no")}


def test_mermaid_draws_every_task_and_edge_once():
    """Routers are rhombs, a mapped task has a double edge, routes are dotted, and nothing comes twice."""
    drawn = read_mermaid(all_kinds().to_mermaid())
    assert drawn.tasks == [
        ("start", "["), ("left", "["), ("right", "["), ("join", "{"), ("yes", "["), ("no", "["), ("again", "{"),
        ("each", "[["),
    ]  # fmt: skip
    assert Counter(drawn.edges) == Counter(EDGES)
    assert Counter(drawn.routes) == Counter(ROUTES)


def test_dot_draws_every_task_and_edge_once():
    """Routers are diamonds, a mapped task has a double edge, routes are dashed, and nothing comes twice."""
    name, drawn = read_dot(all_kinds().to_dot())
    assert name == "kinds"
    assert drawn.tasks == [
        ("start", None), ("left", None), ("right", None), ("join", "shape=diamond"), ("yes", None), ("no", None),
        ("again", "shape=diamond"), ("each", "peripheries=2"),
    ]  # fmt: skip
    assert Counter(drawn.edges) == Counter(EDGES)
    assert Counter(drawn.routes) == Counter(ROUTES)


def test_dependencies_that_follow_from_parameters_are_drawn():
    """A parameter that bears the name of a task is an edge like any other."""
    flow = Flow("inline", name="byname")
    flow.add_task("price", lambda: 1)
    flow.add_task("offer", lambda price: price)
    flow.add_task("letter", lambda offer, price: offer, depends_on=["offer"])
    flow.connect("price >> offer")
    expected = {("price", "offer"), ("offer", "letter"), ("price", "letter")}
    for drawn in (read_mermaid(flow.to_mermaid()), read_dot(flow.to_dot())[1]):
        assert Counter(drawn.edges) == Counter(set(drawn.edges))
        assert set(drawn.edges) <= expected
        assert set(drawn.edges) == {(need, name) for name, needs in flow.dependencies.items() for need in needs}


def test_a_task_that_follows_and_may_be_chosen_has_both_edges():
    """A dependency and a route between the same two are two things."""
    flow = Flow("inline", name="both")
    flow.add_task("a", dict, routes=["b", "a"])
    flow.add_task("b", lambda: 1)
    flow.add_task("c", lambda: 1, depends_on=["b"])
    for drawn in (read_mermaid(flow.to_mermaid()), read_dot(flow.to_dot())[1]):
        assert drawn.edges == [("b", "c")]
        assert drawn.routes == [("a", "b"), ("a", "a")]


def test_a_flow_without_tasks():
    """A flow without tasks is a drawing without anything in it."""
    flow = Flow("inline", name="empty")
    assert read_mermaid(flow.to_mermaid()) == Drawn([], [], [])
    assert read_dot(flow.to_dot()) == ("empty", Drawn([], [], []))


def test_mermaid_keeps_every_name():
    """A name comes out as it is: what means something in Mermaid or HTML is an entity."""
    drawn = read_mermaid(odd_names().to_mermaid())
    assert [name for name, _ in drawn.tasks] == [*NAMES, "chooses"]
    assert drawn.edges == list(pairwise(NAMES))
    assert drawn.routes == [("chooses", name) for name in NAMES]


def test_dot_keeps_every_name():
    """A name comes out as it is, and so does that of the flow."""
    flow = odd_names()
    name, drawn = read_dot(flow.to_dot())
    assert name == flow.name
    assert [name for name, _ in drawn.tasks] == [*NAMES, "chooses"]
    assert drawn.edges == list(pairwise(NAMES))
    assert drawn.routes == [("chooses", name) for name in NAMES]


def test_nothing_in_a_mermaid_drawing_is_html():
    """No name puts a tag, or an entity of HTML, into the page that the drawing is part of."""
    labels = "".join(re.findall(r'"([^"]*)"', odd_names().to_mermaid()))
    assert not set("<>&`\\%") & set(labels)


@pytest.mark.parametrize("name", ["1. load", "- load", "    load", "__main__", "_load_"])
def test_no_name_is_markdown(name):
    """Mermaid takes any label for Markdown, and refuses some: what Markdown would read something into is an entity.

    Source: "Node with text renders by default as Markdown", https://github.com/mermaid-js/mermaid/issues/5824
    """
    flow = Flow("inline")
    flow.add_task(name, lambda: None)
    drawing = flow.to_mermaid()
    assert read_mermaid(drawing).tasks == [(name, "[")]
    label = re.search(r'"(.*)"', drawing)[1]
    assert not re.match(r"\d+[.)] |[-+*] | {4}", label)
    assert not re.search(r"(?<!\w)_|_(?!\w)|__", label)


def test_equal_flows_have_equal_drawings():
    """Two flows that were made in the same way are drawn in the same way, as often as one asks."""
    for made in (all_kinds, odd_names):
        one, other = made(), made()
        assert one.to_mermaid() == other.to_mermaid() == one.to_mermaid()
        assert one.to_dot() == other.to_dot() == one.to_dot()
        assert one.to_text() == other.to_text() == one.to_text()


def test_a_drawing_does_not_depend_on_how_a_flow_was_written():
    """Edges as text, as pairs and as options are the same drawing."""
    texts, pairs, options = (Flow("inline", name="same") for _ in range(3))
    for flow in (texts, pairs):
        for name in "abc":
            flow.add_task(name, lambda: None)
    texts.connect("a >> b >> c")
    pairs.connect(("a", "b"), ("b", "c"))
    options.add_task("a", lambda: None)
    options.add_task("b", lambda: None, depends_on=["a"])
    options.add_task("c", lambda: None, depends_on=["b"])
    assert texts.to_mermaid() == pairs.to_mermaid() == options.to_mermaid()
    assert texts.to_dot() == pairs.to_dot() == options.to_dot()


def test_drawing_does_not_change_a_flow():
    """A flow can be drawn at any time, and goes on as before: a task that comes later is in the next drawing."""
    flow = Flow("inline", name="grows")
    flow.add_task("a", lambda: 1)
    assert len(read_mermaid(flow.to_mermaid()).tasks) == 1
    assert flow.run() == {"a": 1}
    flow.add_task("b", lambda a: a + 1)
    assert read_mermaid(flow.to_mermaid()).edges == read_dot(flow.to_dot())[1].edges == [("a", "b")]
    assert flow.run() == {"b": 2}


def test_a_name_that_is_no_task_is_not_drawn():
    """An edge from something that is not registered is left out, so that the drawing can be read."""
    flow = Flow("inline", name="half")
    flow.add_task("a", lambda: 1, depends_on=["nowhere"])
    flow.add_task("b", dict, routes=["gone", "a"])
    for drawn in (read_mermaid(flow.to_mermaid()), read_dot(flow.to_dot())[1]):
        assert ([name for name, _ in drawn.tasks], drawn.edges, drawn.routes) == (["a", "b"], [], [("b", "a")])


@pytest.mark.parametrize("made", [all_kinds, odd_names], ids=lambda made: made.__name__)
def test_graphviz_reads_the_drawing(made):
    """Graphviz accepts the drawing, and finds as many tasks and edges in it."""
    if shutil.which("dot") is None:
        pytest.skip("dot is not installed: it is part of Graphviz")
    flow = made()
    _, drawn = read_dot(flow.to_dot())
    done = subprocess.run(
        ["dot", "-Tplain"], input=flow.to_dot(), capture_output=True, encoding="utf-8", timeout=WATCHDOG, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    kinds = Counter(line.split(" ", 1)[0] for line in done.stdout.splitlines())
    assert kinds["node"] == len(drawn.tasks)
    assert kinds["edge"] == len(drawn.edges) + len(drawn.routes)
