"""``show.svg`` and ``show.gantt``: drawings are well-formed, say everything in words too, and need nothing else.

Every drawing is read back with expat, as a browser would.
"""

import re
from itertools import combinations
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.diagram import Diagram, EdgeKind, TaskEdge, TaskNode
from millstream.report import RunReport, TaskTrace
from millstream.show import gantt, svg
from millstream.show.gantt import timeline_drawn
from millstream.show.markup import shortened, text_width
from millstream.show.svg import drawn
from millstream.values import Status

SVG = "{http://www.w3.org/2000/svg}"
MS = 1_000_000
SECOND = 1_000_000_000

#: Names that mean something in XML or HTML, or that may not stand there at all.
NAMES = [
    "plain",
    "<script>alert(1)</script>",
    "</title></svg>",
    "in \"quotes\" and 'others'",
    "a & b &amp; &lt; &#0;",
    "]]>",
    "<!-- -->",
    "two\nlines\tand\rmore",
    "nul\x00 esc\x1b del\x7f",
    "lone \ud800 surrogate \udfff",
    "\ufffe\uffff",
    "größe",
    "東京データを読み込むタスク",
    "مرحبا",
    "e\u0301\u0301\u0301",
    "😀" * 40,
    "x" * 5000,
    " ",
    "",
    "url(#x)",
    "}*{display:none}",
]


def read(text):
    """Parse a drawing; check what holds for each: its size, its class and its title."""
    root = ElementTree.fromstring(text.encode("utf-8"))
    assert root.tag == f"{SVG}svg"
    assert "ms-graph" in root.get("class").split()
    assert root.get("role") in ("img", "group")
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    assert root[0].tag == f"{SVG}title"
    assert root[0].text
    return root


def tasks(root):
    """Return the groups of tasks by name."""
    return {group.get("data-task"): group for group in root.iter(f"{SVG}g") if group.get("data-task") is not None}


def edges(root):
    """Return source, target and class of each edge."""
    return [
        (group.get("data-source"), group.get("data-target"), group.get("class"))
        for group in root.iter(f"{SVG}g")
        if group.get("data-source") is not None
    ]


def diagram(*nodes, links=()):
    """Make a diagram of nodes, or of names."""
    return Diagram("flow", [node if isinstance(node, TaskNode) else TaskNode(node) for node in nodes], links)


def numbers(path):
    """Return the numbers in a path."""
    return [float(each) for each in re.findall(r"-?\d+(?:\.\d+)?", path)]


def outline(group):
    """Return left, top, right and bottom of the box of a task."""
    box = next(each for each in group if each.get("class") == "ms-box")
    if box.tag == f"{SVG}rect":
        x, y, width, height = (float(box.get(key)) for key in ("x", "y", "width", "height"))
        return x, y, x + width, y + height
    x, y, _, right, corner, _, _, bottom = numbers(box.get("d"))[:8]
    return x - (corner - y), y, right, bottom


def run(*attempts, finished_at=None, status=Status.SUCCESS):
    """Make the report of a run from (task, status, begin, end, worker), in seconds."""
    trace = tuple(
        TaskTrace(task, f"{task}#{number}", 1, Status(how), 1000.0 + begin, 1000.0 + end, worker)
        for number, (task, how, begin, end, worker) in enumerate(attempts)
    )
    return RunReport("orders-7", "orders", {}, 1000.0, finished_at, status, {}, trace)


def bars(root):
    """Return the bars of a timeline."""
    return [each for each in root.iter(f"{SVG}rect") if "ms-bar" in each.get("class", "")]


def texts(root):
    """Return all text that is drawn."""
    return ["".join(each.itertext()) for each in root.iter(f"{SVG}text")]


# ---- diagrams -------------------------------------------------------------------------------------


def test_every_task_and_edge_is_drawn_once():
    """Tasks and edges can be found by name, in their order, and a kind of edge is a class."""
    links = [TaskEdge("a", "b", kind) for kind in EdgeKind] + [TaskEdge("b", "b", EdgeKind.ROUTE), TaskEdge("b", "a")]
    root = read(drawn(diagram("a", "b", "c", links=links)))
    assert list(tasks(root)) == ["a", "b", "c"]
    assert edges(root) == [(link.source, link.target, f"ms-edge ms-{link.kind}") for link in links]
    paths = [group.find(f"{SVG}path").get("d") for group in root.iter(f"{SVG}g") if group.get("data-source")]
    assert len(set(paths)) == len(links), "no two lines are the same"


def test_an_empty_diagram():
    """A flow without tasks is a drawing without anything in it."""
    root = read(drawn(diagram()))
    assert (tasks(root), edges(root), root[0].text) == ({}, [], "flow: 0 tasks")


def test_nasty_names_are_text():
    """No name is markup: each is in its task's attribute and title, but for what XML forbids."""
    flow = Diagram("<flow> & \x00", [TaskNode(name, "<&\x01>", description=name) for name in NAMES], [])
    root = read(drawn(flow))
    allowed = [re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", name) for name in NAMES]
    assert list(tasks(root)) == allowed
    for name, group in tasks(root).items():
        assert group[0].text.replace("\r", "\n").startswith(name.replace("\r", "\n"))
    assert not [each for each in root.iter() if each.tag.endswith("script")]


@given(st.lists(st.text(st.characters(codec=None)), unique=True, max_size=6))
@settings(max_examples=60, deadline=None)
def test_any_names_are_well_formed(names):
    """Whatever characters a name has, lone surrogates too, the drawing can be written and parsed."""
    links = [TaskEdge(one, other) for one in names for other in names[:2]]
    root = read(drawn(diagram(*names, links=links)))
    assert len(edges(root)) == len(links)


@pytest.mark.parametrize("status", list(Status))
def test_a_status_is_told_by_class_sign_and_words(status):
    """Nobody needs to see colours."""
    group = tasks(read(drawn(diagram(TaskNode("a", status=status)))))["a"]
    assert re.search("ms-(success|failed|running|pending|skipped|stopped)", group.get("class"))
    assert str(status) in group[0].text
    assert str(status) in group.get("aria-label")
    assert next(each.text for each in group if each.get("class") == "ms-sign").strip()


def test_each_status_looks_different():
    """Class and sign together tell any two of them apart."""
    nodes = [TaskNode(str(status), status=status) for status in Status]
    groups = tasks(read(drawn(diagram(*nodes)))).values()
    looks = {(group.get("class"), next(x.text for x in group if x.get("class") == "ms-sign")) for group in groups}
    assert len(looks) == len(Status)


def test_a_task_without_part_in_a_run_is_pale():
    """Where others have a status, one without had no part; in a declared flow, that is nothing special."""
    ran = tasks(read(drawn(diagram(TaskNode("a", status=Status.SUCCESS), "b"))))
    assert ran["b"].get("class") == "ms-task ms-skipped"
    assert "not part of the run" in ran["b"][0].text
    declared = tasks(read(drawn(diagram("a", "b"))))
    assert {group.get("class") for group in declared.values()} == {"ms-task ms-declared"}
    assert "part of the run" not in declared["a"][0].text


def test_facts_that_are_not_usual_stand_below_the_name():
    """Where it is called, unless in a thread; how often, if more than once."""
    nodes = [TaskNode("a", runs=1), TaskNode("b", "process", runs=120), TaskNode("c", runs=2), TaskNode("d", "ray")]
    groups = tasks(read(drawn(diagram(*nodes))))
    facts = {n: [x.text for x in group if x.get("class") == "ms-facts"] for n, group in groups.items()}
    assert facts == {"a": [], "b": ["process · 120 runs"], "c": ["2 runs"], "d": ["ray"]}


def test_the_shape_says_where_a_task_is_called():
    """Each usual executor has a shape of its own, and all others share one."""

    def shape(executor):
        group = tasks(read(drawn(diagram(TaskNode("a", executor), TaskNode("b", "process")))))["a"]
        return [(each.tag, each.get("class"), each.get("rx")) for each in group if each.tag != f"{SVG}text"]

    shapes = [str(shape(executor)) for executor in ("thread", "inline", "asyncio", "process", "dask")]
    assert len(set(shapes)) == 5
    assert shape("ray") == shape("dask") == shape("a pool of mine")


def test_routers_and_mapped_tasks_are_marked():
    """A router has a mark where its edges leave, a mapped task a second outline."""
    nodes = [TaskNode("plain"), TaskNode("router", is_router=True), TaskNode("mapped", is_mapped=True)]
    groups = tasks(read(drawn(diagram(*nodes))))
    classes = {name: {each.get("class") for each in group} for name, group in groups.items()}
    assert "ms-mark" in classes["router"] - classes["plain"] - classes["mapped"]
    assert "ms-behind" in classes["mapped"] - classes["plain"] - classes["router"]


def test_a_long_name_is_cut_and_told_in_the_title():
    """A drawing does not grow with the length of a name."""
    name = "a very long name " * 30
    group = tasks(read(drawn(diagram(name))))[name]
    label = next(each.text for each in group if each.get("class") == "ms-name")
    assert label.endswith("…")
    assert name in group[0].text
    left, _, right, _ = outline(group)
    assert right - left < 300


def test_wide_characters_count_double():
    """A text of East Asian characters gets about twice the room; marks on a letter get none."""
    assert text_width("東京東京", 10) > 1.7 * text_width("abcd", 10)
    assert text_width("e\u0301", 10) == text_width("e", 10)


@given(st.text(max_size=80), st.integers(20, 300))
def test_a_shortened_text_fits(text, most):
    """It is at most as wide as asked for, and only ever the begin of the text."""
    short = shortened(text, 10, most)
    assert text_width(short.removesuffix("…"), 10) <= most
    assert " ".join(text.split()).startswith(short.removesuffix("…"))


@pytest.mark.parametrize("count", [5, 60])
def test_boxes_do_not_overlap(count):
    """Measured in the drawing: no box covers another, and all are inside it."""
    kinds = ("thread", "inline", "asyncio", "process", "ray")
    nodes = [TaskNode(f"task {at}" * (at % 4 + 1), kinds[at % 5], is_mapped=at % 3 == 0) for at in range(count)]
    names = [node.name for node in nodes]
    links = [TaskEdge(names[at * at % (count // 2)], names[at]) for at in range(count) if at % 7]
    root = read(drawn(diagram(*nodes, links=links)))
    boxes = [outline(group) for group in tasks(root).values()]
    for one, other in combinations(boxes, 2):
        assert max(one[0] - other[2], other[0] - one[2], one[1] - other[3], other[1] - one[3]) > 0
    assert all(min(x, y) >= 0 and right <= float(root.get("width")) for x, y, right, _ in boxes)
    assert all(bottom <= float(root.get("height")) for _, _, _, bottom in boxes)


def test_a_text_is_within_its_box():
    """The sign and the name stand between the borders."""
    root = read(drawn(diagram(TaskNode("a long enough name", "process", status=Status.FAILED, runs=3))))
    (group,) = tasks(root).values()
    left, top, right, bottom = outline(group)
    for each in group.iter(f"{SVG}text"):
        assert left < float(each.get("x")) < right
        assert top < float(each.get("y")) < bottom


@pytest.mark.parametrize("embedded", [False, True])
def test_a_drawing_needs_nothing_from_elsewhere(embedded):
    """No addresses, no scripts, and no ids that could be those of another drawing in the page."""
    links = [TaskEdge("a", "b", kind) for kind in EdgeKind]
    trace = run(("a", "SUCCESS", 0, 1, "w"), ("b", "FAILED", 1, 2, "w"))
    for text in (drawn(diagram("a", "b", links=links), embedded=embedded), timeline_drawn(trace, embedded=embedded)):
        assert not re.search(r"href|url\(|@import|<script|\bid=|\bon\w+=", text)
        assert (f"{SVG}style" in {each.tag for each in read(text).iter()}) is not embedded


@pytest.mark.parametrize(("style", "kind"), [(svg.STYLE, "ms-diagram"), (gantt.TIMELINE_STYLE, "ms-timeline")])
def test_all_rules_are_for_drawings_of_one_kind(style, kind):
    """Every selector begins with that of the drawing: the page around, and drawings of the other kind, stay as is."""
    assert style.count("{") == style.count("}")
    plain = style.replace("@media(prefers-color-scheme:dark){", "").replace("}}", "}")
    selectors = [each for rule in plain.split("}") if rule for each in rule.split("{")[0].split(",")]
    own = re.compile(rf"(:root\[data-theme=dark\] )?svg\.ms-graph\.{kind}(:not\(\[data-theme=light\] \*\))?( |$)")
    assert [each for each in selectors if not own.match(each)] == []


# ---- timelines ------------------------------------------------------------------------------------


def test_every_attempt_is_a_bar_in_the_row_of_its_worker():
    """Bars are as long as the attempts took, and stand where their worker's name does."""
    root = read(
        timeline_drawn(run(("a", "SUCCESS", 0, 2, "w1"), ("b", "SUCCESS", 1, 2, "w2"), ("a", "SUCCESS", 2, 4, "w1")))
    )
    first, second, third = sorted(bars(root), key=lambda bar: (float(bar.get("x")), float(bar.get("y"))))
    assert [bar.get("data-task") for bar in (first, second, third)] == ["a", "b", "a"]
    assert first.get("y") == third.get("y") != second.get("y")
    assert float(first.get("width")) == pytest.approx(2 * float(second.get("width")), abs=0.2)
    assert {"w1", "w2"} <= {text[: len(text) // 2] for text in texts(root)}, "a title, and the label itself"


def test_a_failed_attempt_is_red_and_marked():
    """Its class and its title say so, and a mark, even when the bar is a line."""
    root = read(
        timeline_drawn(
            run(("a", "FAILED", 0, 100, "w"), ("b", "FAILED", 100, 100.2, "w"), ("c", "SUCCESS", 101, 200, "w"))
        )
    )
    found = {bar.get("data-task"): bar for bar in bars(root)}
    assert ["ms-failed" in found[name].get("class") for name in "abc"] == [True, True, False]
    assert "FAILED" in found["a"][0].text
    assert "✗ a" in texts(root)
    assert [each.get("class") for each in root.iter(f"{SVG}path") if "ms-failed" in each.get("class", "")]


def test_tasks_have_a_colour_and_a_legend():
    """Up to twelve tasks are told apart by colour, in a legend; more are not."""
    for count, legend in ((12, 12), (13, 0)):
        root = read(timeline_drawn(run(*((f"t{at}", "SUCCESS", at, at + 1, "w") for at in range(count)))))
        groups = [each for each in root.iter(f"{SVG}g") if each.get("class") == "ms-legend"]
        assert len(groups) == legend
        assert len({bar.get("class") for bar in bars(root)}) == 12


@pytest.mark.parametrize(
    ("end", "step"),
    [(1, 1), (10 * MS, MS), (11 * MS, 2 * MS), (900 * MS, 100 * MS), (SECOND * 5, SECOND // 2),
     (SECOND * 90, SECOND * 10), (SECOND * 200, SECOND * 30),
     (SECOND * 3600, SECOND * 600), (SECOND * 3600 * 24 * 30, SECOND * 3600 * 72)],
)  # fmt: skip
def test_ticks_are_round(end, step):
    """There are at most ten steps, of 1, 2 or 5, or of what is round in minutes and hours."""
    assert gantt.tick_step(end) == step


@pytest.mark.parametrize(
    ("end", "said"), [(0.5, "100 ms"), (1.5, "0.2 s"), (90, "20 s"), (900, "2 min"), (0.0005, "50 µs")]
)
def test_ticks_are_told_in_a_unit_that_fits(end, said):
    """Milliseconds, seconds, minutes: what the whole is best told in."""
    assert said in texts(read(timeline_drawn(run(("a", "SUCCESS", 0, end, "w")))))


def test_a_timeline_has_a_limit():
    """50 workers with 20,000 attempts are a small drawing that says what it does not show."""
    attempts = [
        (f"t{at % 20}", "FAILED" if at % 50 == 0 else "SUCCESS", at // 50, at // 50 + 0.9, f"w{at % 50}")
        for at in range(20_000)
    ]
    text = timeline_drawn(run(*attempts))
    root = read(text)
    assert 100 < len(bars(root)) <= 2000
    assert len([each for each in root.iter(f"{SVG}text") if each.get("class") == "ms-row"]) == 40
    assert len(text) < 600_000
    (said,) = (each.text for each in root.iter(f"{SVG}text") if "ms-left-out" in each.get("class", ""))
    assert re.match(r"10 rows not shown, [\d,]+ attempts not shown, [\d,]+ attempts too short to be drawn apart", said)


def test_at_most_so_many_bars_are_drawn():
    """What is left are failures, then the longest."""
    attempts = [("a", "SUCCESS", 10 * at, 10 * at + 5 + at / 10, "w") for at in range(20)] + [
        ("b", "FAILED", 3.0, 4.0, "v")
    ]
    root = read(timeline_drawn(run(*attempts), most=3))
    assert len(bars(root)) == 3
    assert {bar.get("data-task") for bar in bars(root)} == {"a", "b"}
    assert "18 attempts not shown" in texts(root)
    assert bars(read(timeline_drawn(run(*attempts), most=0))) == []


def test_short_attempts_are_one_bar():
    """What is shorter than a pixel is put together, and counted in words."""
    attempts = [("a", "SUCCESS", at / 1e6, (at + 0.5) / 1e6, "w") for at in range(500)] + [("b", "SUCCESS", 1, 2, "w")]
    root = read(timeline_drawn(run(*attempts)))
    assert len(bars(root)) == 2
    assert "500 attempts too short to be drawn apart" in texts(root)


def test_a_timeline_of_nothing():
    """A run that has not called anything has an axis, and a run without a trace has no timeline."""
    assert bars(read(timeline_drawn(run(status=Status.RUNNING)))) == []
    with pytest.raises(ValueError, match="trace=True"):
        timeline_drawn(RunReport("orders-7", "orders", {}, 1000.0, None, Status.RUNNING, {}))


def test_nasty_names_are_text_in_a_timeline():
    """Names of tasks and of workers are escaped."""
    root = read(timeline_drawn(run(*((name, "SUCCESS", at, at + 1, name) for at, name in enumerate(NAMES)))))
    assert len(bars(root)) == len(NAMES)


@pytest.mark.parametrize("text", ["ÄÖÜЖШ", "WWWW", "mmmm", "——", "…"])
def test_wide_letters_are_known_to_be_wide(text):
    """Capitals of any alphabet, dashes, m and W take more room than others, so a box is wide enough for them."""
    assert text_width(text, 10) >= 7.9 * len(text)


def test_an_embedded_drawing_is_a_group():
    """A page makes buttons of the tasks: those may not be within what is said to be one picture."""
    assert read(drawn(diagram("a", "b"), embedded=True)).get("role") == "group"
    assert read(drawn(diagram("a", "b"))).get("role") == "img"
