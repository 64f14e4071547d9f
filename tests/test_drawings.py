"""``flow.to_mermaid`` and ``flow.to_dot``: everything is drawn once, and no name breaks the drawing.

What is drawn is read back by the rules of the two languages: the entities of Mermaid, the quoted texts of DOT.
"""

import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import pytest

from millstream import Flow, NextTask, ProcessExecutor, RunReport, Status, TaskOutput, ThreadExecutor
from millstream.executors.owned import name_of_class
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
    requests: list
    joins: list
    looks: dict  #: by label, what became of it

    @classmethod
    def nothing(cls):
        return cls([], [], [], [], [], {})


#: Of a task in Mermaid: inline, thread, asyncio, process, elsewhere, a router, a map.
SHAPES = ("[]", "()", "([])", "{{}}", "[()]", "{}", "[[]]")


def read_mermaid(text):
    """Read a flowchart: its tasks as (name, shape), its edges and routes as pairs of names."""
    head, *lines = text.split("\n")
    assert head == "flowchart LR"
    names, drawn = {}, Drawn.nothing()
    for line in lines:
        node = re.fullmatch(r'    (t\d+)([\[({]+)"([^"\n]*)"([\])}]+)', line)
        if node:
            number, begin, label, end = node.groups()
            assert begin + end in SHAPES
            assert number not in names
            assert not re.search(r"[^\w #;.-]", label), f"{label!r} has a sign that is no entity"
            names[number] = re.sub(r"#(\d+);", lambda entity: chr(int(entity[1])), label)
            drawn.tasks.append((names[number], begin))
            continue
        if re.fullmatch(r"    classDef [a-z]+ fill:#\w{6},stroke:#\w{6},color:#\w{6}", line):
            continue
        many = re.fullmatch(r"    class ([t\d,]+) ([a-z]+)", line)
        if many:
            drawn.looks.update({names[number]: many[2] for number in many[1].split(",")})
            continue
        edge = re.fullmatch(r"    (t\d+) (-->|-\.->|-->\|next\||==>) (t\d+)", line)
        assert edge, f"{line!r} is neither a task nor an edge"
        begin, arrow, end = edge.groups()
        kinds = {"-->": drawn.edges, "-.->": drawn.routes, "-->|next|": drawn.requests, "==>": drawn.joins}
        kinds[arrow].append((names[begin], names[end]))
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
    drawn = Drawn.nothing()
    place, end = head.end(), len(text) - 1
    statement = re.compile(rf"    {quoted}(?: -> {quoted})?(?: \[((?:[^\]\"]|{quoted})*)\])?;\n", re.DOTALL)
    while place < end:
        found = statement.match(text, place)
        assert found, text[place : place + 80]
        first, second, style, _ = found.groups()
        place = found.end()
        if second is None:
            drawn.tasks.append((said(first), style))
        elif style is None:
            drawn.edges.append((said(first), said(second)))
        else:
            kinds = {"style=dashed": drawn.routes, "arrowhead=empty": drawn.requests, "penwidth=2": drawn.joins}
            kinds[style].append((said(first), said(second)))
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
    assert read_mermaid(flow.to_mermaid()) == Drawn.nothing()
    assert read_dot(flow.to_dot()) == ("empty", Drawn.nothing())


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


# ---- executors, and what became of tasks ----------------------------------------------------------


def test_executors_are_shapes():
    """Where a task is called is its shape, also when nothing has ever run: no executor is started for it."""
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    flow = Flow(name="places")
    for name in ("inline", "thread", "process", "asyncio"):
        flow.add_task(name, lambda: None, executor=name)
    flow.add_task("pool", lambda: None, executor=pool)
    flow.add_task("plain", lambda: None)

    async def coroutine():
        pass

    flow.add_task("coroutine", coroutine)
    drawn = read_mermaid(flow.to_mermaid())
    assert drawn.tasks == [
        ("inline", "["), ("thread", "("), ("process", "{{"), ("asyncio", "(["), ("pool", "[("), ("plain", "("),
        ("coroutine", "(["),
    ]  # fmt: skip
    assert read_dot(flow.to_dot())[1].tasks == [
        ("inline", None), ("thread", "style=rounded"), ("process", "shape=octagon"), ("asyncio", "shape=ellipse"),
        ("pool", "shape=cylinder"), ("plain", "style=rounded"), ("coroutine", "shape=ellipse"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("executor", "name"),
    [("inline", "inline"), ("process", "process"), (None, "thread"), (ThreadExecutor(1), "thread"),
     (ThreadPoolExecutor(1), "thread pool"), (ProcessExecutor(1), "process")],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_the_names_of_executors(executor, name):
    """An executor of the user's is called by the words of its class."""
    flow = Flow(executor)
    flow.add_task("work", lambda: 1)
    assert flow._diagram().nodes["work"].executor == name


def fan():
    return TaskOutput(None, [NextTask("table", join=True), *(NextTask("leaf", spawn_another=True) for _ in range(3))])


def census():
    """Make a flow without edges: what leads to what is known when it has run."""
    flow = Flow("inline", name="census")
    flow.add_task("walk", fan)
    flow.add_task("leaf", lambda: 1)
    flow.add_task("table", lambda upstream: sum(upstream))
    flow.add_task("idle", lambda: 1)
    return flow


def test_what_a_run_asked_for_is_drawn():
    """A request is an edge, and so is what a join has waited for; a task without a part in the run is left out."""
    flow = census()
    assert flow.run("walk") == {"table": 3}
    report = flow.report()
    drawn = read_mermaid(report.to_mermaid())
    assert drawn.tasks == [("walk ✓", "["), ("leaf × 3 ✓", "["), ("table ✓", "[")]
    assert drawn.requests == [("walk ✓", "leaf × 3 ✓"), ("walk ✓", "table ✓")]
    assert drawn.joins == [("leaf × 3 ✓", "table ✓")]
    assert drawn.looks == dict.fromkeys(["walk ✓", "leaf × 3 ✓", "table ✓"], "success")
    name, dot = read_dot(report.to_dot())
    assert name == "census"
    assert dot.requests == [("walk", "leaf"), ("walk", "table")]
    assert dot.joins == [("leaf", "table")]
    assert 'label="leaf × 3 ✓"' in dict(dot.tasks)["leaf"]


def join_last():
    return TaskOutput(None, [*(NextTask("leaf", spawn_another=True) for _ in range(3)), NextTask("table", join=True)])


def lazily():
    return TaskOutput(None, iter(fan().next_tasks))


def one_by_one():
    yield from fan().next_tasks


@pytest.mark.parametrize("asks", [fan, join_last, lazily, one_by_one], ids=lambda asks: asks.__name__)
@pytest.mark.parametrize("stored", [False, True], ids=["", "from the store"])
def test_every_way_to_ask_is_drawn_alike(asks, stored, tmp_path):
    """A list, an iterable that is pulled, and a generator lead to the same drawing; the journal of a run, too."""
    flow = Flow("inline", name="census", store=tmp_path / "runs.db")
    flow.add_task("walk", asks)
    flow.add_task("leaf", lambda: 1)
    flow.add_task("table", lambda upstream: sum(upstream))
    flow.run("walk", run_id="monday")
    if stored:
        flow.run("leaf")
    drawn = flow.report("monday").diagram
    assert {(edge.source, edge.target, edge.kind) for edge in drawn.edges} == {
        ("walk", "leaf", "request"), ("walk", "table", "request"), ("leaf", "table", "join"),
    }  # fmt: skip
    assert {name: node.runs for name, node in drawn.nodes.items()} == {"walk": 1, "leaf": 3, "table": 1}


def test_declared_edges_are_drawn_as_declared():
    """A route that was chosen is no second edge; what was not chosen is drawn as skipped."""
    flow = Flow("inline", name="routes")
    flow.add_task("choose", lambda: "left", routes=["left", "right"])
    flow.add_task("left", lambda: 1)
    flow.add_task("right", lambda: 2)
    flow.add_task("after", lambda left: left)
    flow.run()
    drawn = read_mermaid(flow.report().to_mermaid())
    assert drawn.routes == [("choose ✓", "left ✓"), ("choose ✓", "right –")]
    assert drawn.edges == [("left ✓", "after ✓")]
    assert drawn.requests == drawn.joins == []
    assert drawn.looks["right –"] == "skipped"


def test_a_failed_run_is_drawn():
    """What failed, what was cancelled because of it, and what has no part in it look different."""
    flow = Flow("inline", name="fails")
    flow.add_task("a", lambda: 1 / 0)
    flow.add_task("b", lambda a: a)
    flow.add_task("c", lambda: 1)
    flow.add_task("d", lambda c: c)
    with pytest.raises(ZeroDivisionError):
        flow.run(targets=["b"])
    drawn = read_mermaid(flow.report().to_mermaid())
    assert drawn.looks["a ✗"] == "failed"
    assert {"c", "d"} <= {name for name, _ in drawn.tasks}
    assert not {"c", "d"} & set(drawn.looks)


def test_no_request_is_taken_for_another_one():
    """Who asks for what somebody else has asked for just before has an edge of its own."""

    def a(n):
        return (
            [NextTask("y", spawn_another=True)] if n else [NextTask("b"), NextTask("a", {"n": 1}, spawn_another=True)]
        )

    flow = Flow("inline")
    flow.add_task("a", a)
    flow.add_task("b", lambda: [NextTask("j", join=True), NextTask("y", spawn_another=True)])
    flow.add_task("y", lambda: 1)
    flow.add_task("j", lambda: 1)
    flow.run("a", {"n": 0})
    requests = {(edge.source, edge.target) for edge in flow.report().diagram.edges if edge.kind == "request"}
    assert requests == {("a", "a"), ("a", "b"), ("a", "y"), ("b", "j"), ("b", "y")}


def test_a_chain_that_asks_for_itself_is_a_loop():
    """A task that asks for itself has an edge to itself."""
    flow = Flow("inline")
    flow.add_task("step", lambda n: TaskOutput(n, [NextTask("step", {"n": n - 1})] if n else None))
    flow.run("step", {"n": 3})
    assert read_mermaid(flow.report().to_mermaid()).requests == [("step × 4 ✓", "step × 4 ✓")]


def test_submitted_calls_are_drawn_with_what_they_depend_on():
    """A call that takes the handle of another one depends on it; one that a task makes was asked for by it."""

    def double(x):
        return 2 * x

    def add(x, y):
        return x + y

    with Flow("thread") as flow, flow.session() as session:
        one = session.submit(double, 1)
        assert session.submit(add, one, session.submit(double, 2)).result(WATCHDOG) == 6
        drawn = session.report().diagram
    assert [(edge.source, edge.target, edge.kind) for edge in drawn.edges] == [("double", "add", "dependency")]
    assert {node.executor for node in drawn.nodes.values()} == {"thread"}


@pytest.mark.parametrize("executor", ["inline", "asyncio", "process"])
def test_submitted_calls_are_drawn_where_they_were_called(executor):
    """A function that no flow has registered has the shape of the executor that called it."""
    with Flow(executor) as flow, flow.session() as session:
        assert session.submit(len, "abc").result(WATCHDOG) == 3
    assert {node.executor for node in session.report().diagram.nodes.values()} == {executor}


def test_the_words_of_a_class_name():
    """Abbreviations stay one word."""
    names = {"URLExecutor": "url", "MyHTTPThreadExecutor": "my http thread", "_ReusablePoolExecutor": "reusable pool"}
    assert {name: name_of_class(type(name, (), {})) for name in names} == names


def test_notebooks_show_drawings():
    """A flow is shown as its drawing, a run and its report as a page without one."""
    flow = census()
    assert set(flow._repr_mimebundle_()) == {"text/plain", "image/svg+xml"}
    run = flow.start("walk")
    run.wait(WATCHDOG)
    for shown in (run._repr_mimebundle_(), run.report()._repr_mimebundle_()):
        assert set(shown) == {"text/plain", "text/html"}
        assert "SUCCESS" in shown["text/plain"].upper()
        assert "<svg" in shown["text/html"]
        assert "leaf" in shown["text/html"]


def test_a_report_without_a_diagram_says_so():
    """A report that was made by hand has nothing to draw."""
    report = RunReport("monday", "shop", {}, 0.0, 1.0, Status.SUCCESS, {})
    for draw in (report.to_mermaid, report.to_dot, report.to_svg):
        with pytest.raises(ValueError, match="run monday are not known here"):
            draw()


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
