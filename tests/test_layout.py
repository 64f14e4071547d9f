"""``show.layout``: whatever the graph, boxes stand apart and lines lead from box to box without touching others.

Everything is measured in what ``laid_out`` returns; how it was found does not matter.
"""

import random
from collections import Counter
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.show.layout.heights import apart
from millstream.show.layout.layers import GAP, ROOM, Layout, laid_out

#: What a number may be off by, from adding up.
ERROR = 0.01

sides = st.floats(4, 300, allow_nan=False).map(lambda side: round(side, 1))


@st.composite
def graphs(draw):
    """Give sizes and edges: with circles, loops, doubles, and parts that are not joined."""
    names = [f"t{number}" for number in range(draw(st.integers(0, 14)))]
    sizes = {name: (draw(sides), draw(sides)) for name in names}
    one = st.sampled_from(names) if names else st.nothing()
    edges = draw(st.lists(st.tuples(one, one), max_size=2 * len(names))) if names else []
    return sizes, edges


def chain(count):
    """Make a chain of boxes of one size."""
    names = [f"t{number}" for number in range(count)]
    return dict.fromkeys(names, (100.0, 40.0)), list(pairwise(names))


def assert_sound(sizes, edges, layout: Layout):
    """Everything that a drawing must be."""
    assert list(layout.boxes) == list(sizes)
    assert {name: (box.width, box.height) for name, box in layout.boxes.items()} == sizes
    for one, other in combinations(layout.boxes.values(), 2):
        beside = max(one.x - other.x - other.width, other.x - one.x - one.width)
        below = max(one.y - other.y - other.height, other.y - one.y - one.height)
        assert max(beside, below) >= ROOM - ERROR, "too near to each other"
    for box in layout.boxes.values():
        assert min(box.x, box.y) >= 0
        assert box.x + box.width <= layout.width
        assert box.y + box.height <= layout.height
    assert len(layout.lines) == len(edges)
    for (source, target), line in zip(edges, layout.lines, strict=True):
        assert len(line) >= 2
        assert on_border(line[0], layout.boxes[source])
        assert on_border(line[-1], layout.boxes[target])
        for point in line:
            assert 0 <= point.x <= layout.width
            assert 0 <= point.y <= layout.height
        for name, box in layout.boxes.items():
            if name not in (source, target):
                assert not any(passes(one, other, box) for one, other in pairwise(line)), f"through {name}"


def on_border(point, box):
    """Whether a point is on the border of a box."""
    x, y = (point.x - box.x, box.x + box.width - point.x), (point.y - box.y, box.y + box.height - point.y)
    return min(*x, *y) >= -ERROR and min(map(abs, (*x, *y))) <= ERROR


def passes(one, other, box):
    """Whether a straight line goes through the inside of a box (Liang and Barsky: what is left when it is clipped)."""
    begin, end = 0.0, 1.0
    for at, to, low, high in (
        (one.x, other.x, box.x + ERROR, box.x + box.width - ERROR),
        (one.y, other.y, box.y + ERROR, box.y + box.height - ERROR),
    ):
        if at == to:
            if not low < at < high:
                return False
            continue
        enters, leaves = sorted(((low - at) / (to - at), (high - at) / (to - at)))
        begin, end = max(begin, enters), min(end, leaves)
    return begin < end


def reachable(edges, start):
    """Return the boxes that can be reached from one, in at least one step."""
    found, way = set(), [start]
    while way:
        new = {target for source, target in edges if source == way[-1]} - found
        way.pop()
        found |= new
        way += new
    return found


@given(graphs())
@settings(max_examples=200, deadline=None)
def test_any_graph_is_drawn(graph):
    """Boxes keep their distance, lines end at their boxes and pass through no other, and all is within the size."""
    assert_sound(*graph, laid_out(*graph))


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_the_same_graph_is_drawn_in_the_same_way(graph):
    """A drawing depends on nothing but what it is of."""
    assert laid_out(*graph) == laid_out(*graph)


@given(graphs())
@settings(max_examples=100, deadline=None)
def test_an_edge_that_is_in_no_circle_leads_to_the_right(graph):
    """Where it comes from stands in a column before, with the gap between them."""
    sizes, edges = graph
    layout = laid_out({name: (min(width, 90), height) for name, (width, height) in sizes.items()}, edges)
    for source, target in edges:
        if source not in reachable(edges, target):
            assert layout.boxes[source].x + layout.boxes[source].width + GAP - ERROR <= layout.boxes[target].x


@given(graphs())
@settings(max_examples=100, deadline=None)
def test_no_two_lines_between_the_same_boxes_are_the_same(graph):
    """Edges that come more than once, or there and back, or from a box to itself, can be told apart."""
    sizes, edges = graph
    layout = laid_out(sizes, edges)
    ways = [(frozenset(edge), tuple(sorted(line))) for edge, line in zip(edges, layout.lines, strict=True)]
    assert max(Counter(ways).values(), default=1) == 1


@given(st.lists(st.tuples(st.floats(-500, 500), st.sampled_from([0.001, 1, 2, 64]), st.floats(1, 60)), max_size=30))
def test_heights_are_the_nearest_that_do_not_overlap(rows):
    """Slots keep apart; what wishes nothing impossible gets it, and no pool as a whole would rather be elsewhere."""
    wishes, slots = [(wish, weight) for wish, weight, _ in rows], [slot for _, _, slot in rows]
    heights = apart(wishes, slots)
    pools, force = 0, 0.0
    for at, height in enumerate(heights):
        distance = height - heights[at - 1] - (slots[at] + slots[at - 1]) / 2 if at else ERROR
        assert distance >= -ERROR
        if distance > ERROR or not at:
            assert abs(force) <= ERROR * 1000, "a pool is at the mean of its wishes"
            pools, force = pools + 1, 0.0
        force += (height - wishes[at][0]) * wishes[at][1]
    if all(
        later[0] - earlier[0] >= (one + other) / 2
        for (earlier, later), (one, other) in zip(pairwise(wishes), pairwise(slots), strict=True)
    ):
        assert heights == pytest.approx([wish for wish, _ in wishes])


def test_nothing():
    """A graph without boxes is a small empty drawing."""
    layout = laid_out({}, [])
    assert (layout.boxes, layout.lines) == ({}, [])
    assert 0 < layout.width < 100


def test_a_short_chain_is_straight():
    """Its lines are level, of two points each."""
    sizes, edges = chain(6)
    layout = laid_out(sizes, edges)
    assert len({box.y for box in layout.boxes.values()}) == 1
    assert [len(line) for line in layout.lines] == [2] * 5


def test_a_long_edge_is_straight_between_its_bends():
    """An edge past ten boxes has one bend on each side, not one at each column."""
    sizes, edges = chain(12)
    line = laid_out(sizes, [*edges, ("t0", "t11")]).lines[-1]
    assert len({round(point.y) for point in line}) <= 3


def test_lone_boxes_are_a_block():
    """200 boxes without edges fill a screen, not a column."""
    sizes, _ = chain(200)
    layout = laid_out(sizes, [])
    assert_sound(sizes, [], layout)
    assert 1 < layout.width / layout.height < 3


def test_many_parts_are_side_by_side():
    """So do parts that are not joined."""
    sizes, edges = chain(120)
    layout = laid_out(sizes, edges[::2])
    assert_sound(sizes, edges[::2], layout)
    assert 0.5 < layout.width / layout.height < 4


@pytest.mark.parametrize("ways", [[], [("t150", "t20")], [("t3", "t9"), ("t40", "t90"), ("t0", "t199"), ("t9", "t9")]])
def test_a_long_chain_is_wrapped(ways):
    """200 tasks in a row are bands below each other, each from left to right, however far other edges lead."""
    sizes, edges = chain(200)
    layout = laid_out(sizes, edges + ways)
    assert_sound(sizes, edges + ways, layout)
    assert layout.width < 5000
    assert layout.width / layout.height < 4
    for source, target in edges:
        one, other = layout.boxes[source], layout.boxes[target]
        assert one.x < other.x or one.y + one.height < other.y


@pytest.mark.parametrize("seed", range(3))
def test_a_wide_net_is_wrapped_soundly(seed):
    """Bands with several lines from each to the next keep all the rules."""
    pick = random.Random(seed)
    sizes = {f"t{number}": (pick.choice((90.0, 140.0)), 40.0) for number in range(120)}
    edges = [(f"t{at}", f"t{min(119, at + pick.randrange(1, 4))}") for at in range(119) for _ in range(2)]
    edges += [(f"t{pick.randrange(120)}", f"t{pick.randrange(120)}") for _ in range(4)]
    layout = laid_out(sizes, edges)
    assert_sound(sizes, edges, layout)


def test_a_tree_has_no_crossings():
    """A tree of four levels is drawn as one would draw it: the children of each in one run, in its order."""
    sizes = {f"t{number}": (80.0, 30.0) for number in range(40)}
    edges = [(f"t{(number - 1) // 3}", f"t{number}") for number in range(1, 40)]
    boxes = laid_out(sizes, edges).boxes
    leaves = sorted((f"t{number}" for number in range(13, 40)), key=lambda name: boxes[name].y)
    parents = [(int(name[1:]) - 1) // 3 for name in leaves]
    assert len([one for one, other in pairwise(parents) if one != other]) == 8


@pytest.mark.parametrize("seed", range(4))
def test_a_net_without_crossings_is_drawn_with_few(seed):
    """A net that can be drawn flat comes out about flat, in whatever order its boxes and edges are given."""
    spots = [(column, row) for column in range(5) for row in range(5)]
    random.Random(seed).shuffle(spots)
    ways = [
        ((column, row), (column + 1, to)) for column, row in spots for to in (row, row + 1) if (column + 1, to) in spots
    ]
    layout = laid_out({f"{spot}": (80.0, 30.0) for spot in spots}, [(f"{one}", f"{other}") for one, other in ways])
    crossings = sum(
        (one[0].y - other[0].y) * (one[-1].y - other[-1].y) < 0
        for one, other in combinations(layout.lines, 2)
        if one[0].x == other[0].x
    )
    assert crossings <= 4


def test_a_line_ends_level():
    """There is room for the head of an arrow."""
    sizes, edges = chain(12)
    for line in laid_out(sizes, [*edges, ("t0", "t5"), ("t0", "t7"), ("t3", "t11"), ("t9", "t2")]).lines[:-1]:
        assert line[-1].y == line[-2].y
        assert line[-1].x - line[-2].x >= 10


def test_a_chain_of_ten_thousand():
    """Nothing recurses, and nothing takes the square of the time: with an edge back over all of it, too."""
    sizes, edges = chain(10_000)
    layout = laid_out(sizes, [*edges, ("t9999", "t0")])
    assert len(layout.boxes) == 10_000
    assert layout.width < 60_000


def test_more_long_edges_than_can_be_followed_go_around():
    """Beyond what has a place in each column, lines lead above everything, and still through no box."""
    sizes, edges = chain(400)
    edges += [("t0", f"t{number}") for number in range(150, 400)] + [("t399", "t1")]
    layout = laid_out(sizes, edges)
    assert len(layout.lines) == len(edges)
    boxes = list(layout.boxes.items())[::7]
    for (source, target), line in list(zip(edges, layout.lines, strict=True))[::5]:
        assert on_border(line[0], layout.boxes[source])
        assert on_border(line[-1], layout.boxes[target])
        for name, box in boxes:
            assert name in (source, target) or not any(passes(*ends, box) for ends in pairwise(line))
