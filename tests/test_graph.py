"""The edges as a graph: what is wrong with them, their parts, and how a run sees their circles."""

from __future__ import annotations

import graphlib
import inspect
import sys
from contextlib import contextmanager
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from millstream.errors import CycleError, TaskNotFoundError
from millstream.graph import Graph, back_edges, circles, cycles, missing, reach, reverse

checked = settings(max_examples=60, deadline=None, derandomize=True, database=None)
LONG = 100_000


def graph(needs, **routes):
    """Make a graph of ``{"c": "ab"}``, where every letter is a task, and of routes in the same form."""
    return Graph(
        {task: list(ends) for task, ends in needs.items()}, {task: list(ends) for task, ends in routes.items()}
    )


def named(graph, tasks):
    """Return tasks by name, as one word in the order of registration."""
    return "".join(graph.names[task] for task in sorted(tasks))


def edges_of(graph):
    """Return all dependencies and all routes, by name."""
    return tuple(
        {f"{graph.names[a]}{graph.names[b]}" for a, ends in enumerate(side) for b in ends}
        for side in (graph.followers, graph.routes)
    )


@contextmanager
def little_stack():
    """Leave hardly any room for calls within calls."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 40)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


# ---- the graph itself --------------------------------------------------------------------------------


def test_a_graph_has_its_edges_in_both_directions():
    """Every task has the number of its registration, and knows what is before and behind it in declared order."""
    made = graph({"a": "", "b": "", "c": "ba", "d": "c", "e": ""}, d="ae")

    assert made.names == list("abcde")
    assert made.number == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}
    assert [*map(list, made.needs)] == [[], [], [1, 0], [2], []]
    assert made.followers == [[2], [2], [3], [], []]
    assert made.routes == [[], [], [], [0, 4], []]
    assert made.routers == [[3], [], [], [], [3]]
    assert dict(made.loops) == {}


def test_roots_are_what_no_edge_leads_to():
    """A run without a start begins with the tasks that depend on nothing and are nobody's route."""
    made = graph({"a": "", "b": "a", "c": "", "d": "", "e": ""}, d="e", e="c")

    assert named(made, made.roots) == "ad"


def test_tasks_without_edges():
    """A task that no edge touches has none, and a graph of such tasks has no edges at all."""
    made = graph({"a": "", "b": "a", "c": "", "d": "", "e": ""}, d="e")

    assert [name for name in "abcde" if made.node(name) is None] == ["c"]
    assert made.any_edges
    assert not graph({"a": "", "b": ""}).any_edges
    assert graph({"a": "", "b": ""}, a="b").any_edges
    assert not Graph({}, {}).any_edges


def test_everything_before_and_after():
    """What leads to tasks, and what they lead to, is found along dependencies and routes, themselves included."""
    made = graph({"a": "", "b": "a", "c": "b", "d": "", "e": "d", "x": ""}, c="d")

    assert named(made, made.after([1])) == "bcde"
    assert named(made, made.before([4])) == "abcde"
    assert named(made, made.before([1, 5])) == "abx"
    assert made.after([]) == []
    assert graph({"a": "", "b": "a"}).after([0]) == [0, 1], "from all roots, too"


def test_what_no_root_leads_to_is_not_after_the_roots():
    """Tasks that choose each other in a circle come after none of the roots; nor does what a part leaves out."""
    made = graph({"a": "", "b": "a", "x": "", "y": ""}, x="y", y="x")

    assert named(made, made.roots) == "a"
    assert named(made, made.after(made.roots)) == "ab"
    alone = graph({"a": "", "b": "a", "z": ""})
    assert (named(alone, alone.after([0])), named(alone, alone.after([0, 2]))) == ("ab", "abz")
    part = graph({"a": "", "b": "a", "c": "", "d": "c"}).part({0, 1})
    assert named(part, part.after(part.roots)) == "ab"


def test_a_part_keeps_the_edges_inside_and_the_numbers():
    """The part of a graph has the edges among its tasks alone, with roots of its own; the whole stays as it was."""
    made = graph({"a": "", "b": "a", "c": "b", "d": "", "e": "c"}, b="d", d="e")
    before = edges_of(made)

    part = made.part({1, 2, 3})
    assert edges_of(part) == ({"bc"}, {"bd"})
    assert part.number == made.number
    assert named(part, part.roots) == "b"
    assert part.needs == [[], [], [1], [], []]
    assert part.routers == [[], [], [], [1], []]
    assert edges_of(made) == before
    assert named(made, made.roots) == "a"


def test_a_part_of_a_loop_is_no_loop():
    """Whether a part has circles is found out anew."""
    made = graph({"a": "", "b": "a"}, b="a")
    assert made.rooted([0]) is not made

    part = made.part({0})
    assert part.rooted([0]) is part


# ---- what is wrong -----------------------------------------------------------------------------------


def test_names_of_no_task_are_all_told():
    """Every name that no task has is an error of its own, which knows who names it and what there is."""
    found = missing({"a": ["x"], "b": ["a", "y"]}, {"a": ["b", "z"]})

    assert [type(error) for error in found] == [TaskNotFoundError] * 3
    assert [error.name for error in found] == ["x", "y", "z"]
    assert [list(error.known) for error in found] == [["a", "b"]] * 3
    assert ["Task a " in error.__notes__[0] for error in found] == [True, False, True]
    assert missing({"a": ["b"], "b": []}, {"b": ["a"]}) == []


@pytest.mark.parametrize(
    ("needs", "path"),
    [
        ({"a": "a"}, "aa"),
        ({"a": "b", "b": "a"}, "aba"),
        ({"a": "c", "b": "a", "c": "b"}, "abca"),
        ({"x": "", "a": "xb", "b": "a", "y": "b"}, "aba"),
        ({"in": "", "a": ["in", "c"], "b": "a", "c": "b", "out": "c"}, "abca"),
    ],
)
def test_a_circle_of_dependencies_shows_its_path(needs, path):
    """The error shows the way round, from a task to the one that depends on it and on to itself, and nothing else."""
    (error,) = cycles(graph(needs))

    assert isinstance(error, CycleError)
    assert "".join(error.path) == path


def test_circles_that_have_nothing_in_common_are_all_told():
    """Each of several separate circles is an error of its own."""
    found = cycles(graph({"a": "b", "b": "a", "c": "", "d": "f", "e": "d", "f": "e", "g": "g"}))

    assert ["".join(error.path) for error in found] == ["aba", "defd", "gg"]


def test_a_circle_behind_a_circle_hides_neither():
    """Of two circles where one leads to the other both are told, in whatever order their tasks are registered."""
    for order in ("abcd", "acdb", "cdab", "bdca"):
        needs = {"a": "b", "b": "a", "c": "ad", "d": "c"}
        found = cycles(graph({task: needs[task] for task in order}))
        assert {frozenset(error.path) for error in found} == {frozenset("ab"), frozenset("cd")}, order


def test_a_graph_without_circles_has_no_errors():
    """A diamond is no circle, nor is a route that leads back."""
    assert cycles(graph({"a": "", "b": "a", "c": "a", "d": "bc"}, d="a")) == []


# ---- how a run sees circles --------------------------------------------------------------------------


def test_without_circles_a_run_sees_the_graph_itself():
    """Dependencies alone, and routes that lead on, are left as they are."""
    for made in (graph({"a": "", "b": "a"}), graph({"a": "", "b": "a", "c": ""}, b="c")):
        assert made.rooted([0]) is made
        assert made.rooted([]) is made


def test_a_route_that_leads_back_is_not_waited_for():
    """Seen from its start, the route that closes a circle is taken out; choosing it is a plain request."""
    made = graph({"a": "", "b": "a", "c": ""}, b="ac")

    seen = made.rooted([0])
    assert edges_of(seen) == ({"ab"}, {"bc"})
    assert dict(seen.loops) == {}
    assert seen.routers[0] == []
    assert edges_of(made) == ({"ab"}, {"ba", "bc"})


def test_a_dependency_that_leads_back_is_noted_as_a_loop():
    """A run that begins in the middle of a circle follows the dependency behind it, and waits for nothing along it."""
    made = graph({"a": "", "b": "a"}, b="a")

    seen = made.rooted([1])
    assert edges_of(seen) == (set(), {"ba"})
    assert seen.loops == {0: [1]}
    assert seen.needs[1] == []
    assert seen.declared[1] == [0], "its output comes along all the same"


def test_a_task_that_may_choose_itself():
    """A route from a task to itself is a loop of one, and the task is no root."""
    made = graph({"a": ""}, a="a")

    assert edges_of(made.rooted([0])) == (set(), set())
    assert made.roots == []


def test_what_a_run_sees_depends_on_its_start():
    """The same flow may be started anywhere, and looked at again from where it was started before."""
    made = graph({"a": "", "b": "a", "c": "b"}, c="a")

    first, second = made.rooted([0]), made.rooted([2])
    assert edges_of(first) == ({"ab", "bc"}, set())
    assert edges_of(second) == ({"ab"}, {"ca"})
    assert second.loops == {1: [2]}
    assert edges_of(made.rooted([0])) == edges_of(first)
    assert made.rooted([0]) is made.rooted([0])


def test_circles_that_the_start_does_not_reach_are_opened_too():
    """What a dynamic request may bring into the run later has no circles either."""
    made = graph({"s": "", "a": "", "b": "a"}, b="a")

    seen = made.rooted([0])
    assert next(circles(seen._edges()), None) is None


# ---- any graph ---------------------------------------------------------------------------------------


@st.composite
def any_edges(draw):
    """Draw edges between up to eight tasks, in any direction."""
    size = draw(st.integers(1, 8))
    ends = st.lists(st.integers(0, size - 1), max_size=3, unique=True)
    return [draw(ends) for _ in range(size)]


@st.composite
def any_graph(draw):
    """Draw a graph with dependencies that lead to later tasks, routes that lead anywhere, and starts."""
    size = draw(st.integers(1, 8))
    names = list("abcdefgh"[:size])
    earlier = [st.lists(st.sampled_from(names[:place]), max_size=3, unique=True) for place in range(1, size)]
    needs = {names[0]: [], **{name: draw(some) for name, some in zip(names[1:], earlier, strict=True)}}
    routes = {name: draw(st.lists(st.sampled_from(names), max_size=2, unique=True)) for name in names}
    starts = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=3, unique=True))
    return Graph(needs, routes), starts


def goes_round(edges):
    """Whether the standard library finds a circle."""
    try:
        graphlib.TopologicalSorter(dict(enumerate(edges))).prepare()
    except graphlib.CycleError:
        return True
    return False


@checked
@given(any_edges())
def test_circles_are_what_they_are_said_to_be(edges):
    """Each path is one, comes back to its first task and to no other; every knot of circles has at least one."""
    found = list(circles(edges))

    for path in found:
        assert path[0] == path[-1]
        assert len(set(path)) == len(path) - 1
        assert all(b in edges[a] for a, b in pairwise(path))
    assert bool(found) == goes_round(edges)
    told = [task for path in found for task in path[1:]]
    assert len(set(told)) == len(told), "circles that are told have nothing in common"
    for task in range(len(edges)):
        after = reach(edges[task], edges)
        if task in after:  # it is in a knot: it can be reached from itself
            knot = {other for other in after if task in reach(edges[other], edges)}
            assert any(set(path) <= knot for path in found)


@checked
@given(any_graph())
def test_a_run_sees_no_circles_and_misses_nothing(drawn):
    """From any starts the graph of a run has no circle, lacks only edges of circles, and reaches what was reached."""
    whole, starts = drawn
    seen = whole.rooted(starts)

    assert not goes_round(seen._edges())
    assert seen.after(starts) == whole.after(starts)
    back = {
        (a, b)
        for side in ("followers", "routes")
        for a, ends in enumerate(getattr(whole, side))
        for b in ends
        if b not in getattr(seen, side)[a]
    }
    assert all(a in whole.after([b]) for a, b in back), "what is left out closes a circle"
    assert seen.loops == {a: ends for a, ends in seen.loops.items() if ends}
    assert {(a, b) for a, ends in seen.loops.items() for b in ends} == {
        (a, b) for a, b in back if b in whole.followers[a]
    }
    assert [sorted(ends) for ends in seen.needs] == reverse(seen.followers)
    assert [sorted(ends) for ends in seen.routers] == reverse(seen.routes)


@checked
@given(any_graph(), st.data())
def test_a_part_is_what_it_is_said_to_be(drawn, data):
    """A part has exactly the edges both ends of which are in it, in both directions."""
    whole, starts = drawn
    tasks = whole.before(starts)
    part = whole.part(tasks)

    for there, back in (("followers", "needs"), ("routes", "routers")):
        expected = [[b for b in ends if a in tasks and b in tasks] for a, ends in enumerate(getattr(whole, there))]
        assert getattr(part, there) == expected
        assert [sorted(ends) for ends in getattr(part, back)] == reverse(expected)
    assert part.before(starts) == tasks


# ---- size --------------------------------------------------------------------------------------------


def chain(size):
    """Return the dependencies of a chain: each task depends on the one before it."""
    return {str(task): [str(task - 1)] if task else [] for task in range(size)}


def test_a_long_chain_needs_no_stack():
    """A chain of 100,000 dependencies is made, checked, walked and cut, with hardly any stack."""
    needs = chain(LONG)
    with little_stack():
        made = Graph(needs, {})
        assert cycles(made) == []
        assert made.roots == [0]
        assert len(made.after([0])) == LONG
        part = made.part(made.before([LONG // 8]))
        assert len(part.before([LONG // 8])) == LONG // 8 + 1
        assert part.followers[LONG // 8] == []


def test_a_long_circle_needs_no_stack():
    """A long circle of dependencies is found and shown; one through a route is opened where the run starts."""
    size = LONG // 8
    needs = chain(size)
    with little_stack():
        loop = Graph(needs, {str(size - 1): ["0"]})
        assert back_edges(loop._edges(), [0]) == {(size - 1, 0)}
        seen = loop.rooted([size // 2])
        assert dict(seen.loops) == {size // 2 - 1: [size // 2]}
        needs["0"] = [str(size - 1)]
        (error,) = cycles(Graph(needs, {}))
    assert len(error.path) == size + 1


@pytest.mark.parametrize("shape", ["fan", "join", "pairs", "ladder"])
def test_wide_graphs_are_checked_in_no_time(shape):
    """Fans, joins, ladders and very many circles are checked in linear time: otherwise this would take minutes."""
    tasks = range(LONG // 4)
    made = {
        "fan": lambda: Graph({str(task): ["0"] if task else [] for task in tasks}, {}),
        "join": lambda: Graph({str(task): list(map(str, tasks[1:])) if not task else [] for task in tasks}, {}),
        "pairs": lambda: Graph({str(task): [str(task ^ 1)] for task in tasks}, {}),
        "ladder": lambda: Graph({str(task): [str(task - by) for by in (1, 2) if task >= by] for task in tasks}, {}),
    }[shape]()
    found = list(circles(made.followers))

    assert len(found) == (len(tasks) // 2 if shape == "pairs" else 0)
    assert made.rooted([0]) is made
    assert len(made.after([0])) == {"join": 1, "pairs": 2}.get(shape, len(tasks))


def test_a_long_way_into_a_circle_is_walked_once():
    """What leads from one circle to the next is not walked again for each of them."""
    size = LONG // 10
    needs = {}
    for place in range(size):  # a chain of circles of two tasks each
        needs[f"a{place}"] = [f"b{place}", *([f"b{place - 1}"] if place else [])]
        needs[f"b{place}"] = [f"a{place}"]
    with little_stack():
        found = list(circles(Graph(needs, {}).followers))
    assert found
    assert len({task for path in found for task in path[1:]}) == sum(len(path) - 1 for path in found)
