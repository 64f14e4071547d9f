"""Any tree of task runs on a real flow, beside a model that reads off the tree what must come out.

A tree is drawn first: who asks for whom, by a list, a lazy iterable or a generator, with or without
joins, and who fails. Every executor must then give the same results, whatever the order was.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from millstream import Flow, NextTask, StreamChunk, TaskOutput, ThreadExecutor

#: A run that takes longer than this, in seconds, hangs.
WATCHDOG = 30.0
#: Names for task runs that are asked for without spawn_another: each only once in a tree.
BARE = [f"n{number}" for number in range(60)]


class Boom(Exception):
    """What a failing node raises, with its number."""


@dataclass(eq=False)
class Node:
    """One task run: how it asks, for whom, and whether it fails."""

    number: int
    name: str
    kind: str  #: leaf, list, tuple, lazy, generator, or both: it yields some and returns a list
    spawned: bool = False
    joins: bool = False  #: it is requested as a join
    twice: bool = False  #: it is requested twice, and the second request coalesces
    children: list[Node] = field(default_factory=list)  #: in the order of the list
    returned: list[Node] = field(default_factory=list)  #: the second list, of kind both
    fails: bool = False

    def __repr__(self) -> str:
        said = [f"{self.number} {self.name} {self.kind}"]
        said += [flag for flag in ("spawned", "joins", "twice", "fails") if getattr(self, flag)]
        return f"<{' '.join(said)} {self.children or ''}{self.returned or ''}>"

    def requests(self) -> list[tuple[str, list[Node]]]:
        """Return its lists, each with how it is made."""
        if self.kind == "both":
            return [("generator", self.children), ("list", self.returned)]
        return [(self.kind, self.children)]

    def __iter__(self) -> Iterator[Node]:
        """It and everybody below it."""
        yield self
        for child in [*self.children, *self.returned]:
            yield from child


# ---- drawing -----------------------------------------------------------------------------------------


@st.composite
def trees(draw: Any, failing: bool = False) -> Node:
    """Draw a tree of at most 40 nodes."""
    count = 0

    def node(depth: int, *, join: bool = False, collects: bool = True) -> Node:
        nonlocal count
        count += 1
        kinds = ["leaf", "list", "lazy", "generator", "tuple", "both"] if depth and count < 30 else ["leaf"]
        kind = draw(st.sampled_from(kinds))
        spawned = draw(st.booleans())
        shared = ("sum" if collects else "tail") if join else draw(st.sampled_from("ab"))
        bare = ("sum-" if collects else "tail-") + BARE[count] if join else BARE[count]
        made = Node(count, shared if spawned else bare, kind, spawned, join)
        if kind != "leaf":
            made.children = listed(depth - 1, "generator" if kind == "both" else kind)
        if kind == "both":
            made.returned = listed(depth - 1, "list")
        return made

    def listed(depth: int, kind: str) -> list[Node]:
        nodes = [node(depth) for _ in range(draw(st.integers(0, 3)))]
        complete = kind in ("list", "tuple")
        for child in nodes:
            child.twice = complete and not child.spawned and draw(st.booleans())
        for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
            # In a list that is complete a join may stand anywhere. In one that grows it collects when it comes first.
            last = not complete and draw(st.booleans())
            join = node(depth, join=True, collects=not last)
            nodes.insert(len(nodes) if last else draw(st.integers(0, len(nodes))) if complete else 0, join)
        return nodes

    root = node(3)
    root.spawned, root.name = True, "a"
    if failing:
        for unlucky in draw(st.lists(st.sampled_from(list(root)), min_size=1, max_size=2)):
            unlucky.fails = True
    return root


# ---- the model ---------------------------------------------------------------------------------------


def siblings(nodes: list[Node]) -> list[Node]:
    """Those of a list that are no joins, one for each request."""
    return [node for node in nodes if not node.joins for _ in range(1 + node.twice)]


def taken(kind: str, nodes: list[Node]) -> bool:
    """Whether joins take the outputs of a list."""
    if not siblings(nodes) or all(not node.joins for node in nodes):
        return False
    return kind in ("list", "tuple") or nodes[0].joins


def results(root: Node) -> Counter[tuple[str, int]]:
    """What a run must return: name and output of every terminal task run."""
    used = {node for each in root for kind, nodes in each.requests() if taken(kind, nodes) for node in siblings(nodes)}
    return Counter(
        (each.name, each.number) for each in root if each not in used and not (each.children or each.returned)
    )


def upstreams(root: Node) -> dict[int, list[int]]:
    """What every join must get that takes outputs."""
    return {
        join.number: [node.number for node in siblings(nodes)] if taken(kind, nodes) else []
        for each in root
        for kind, nodes in each.requests()
        for join in nodes
        if join.joins and join.name.startswith("sum")
    }


def befores(root: Node) -> Iterator[tuple[int, int, bool]]:
    """Pairs of numbers: the first must have finished before the second began; or only begun (True)."""
    for each in root:
        for kind, nodes in each.requests():
            for child in nodes:
                yield each.number, child.number, kind == "generator"
                if child.joins:
                    for before in siblings(nodes):
                        yield from ((below.number, child.number, False) for below in before)


# ---- the flow ----------------------------------------------------------------------------------------


class Log:
    """What was seen of one run. Appending is atomic."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.upstreams: list[tuple[int, list[int]]] = []


def serve(node: Node, log: Log) -> Any:
    log.calls.append(node.number)
    if node.kind in ("generator", "both"):
        return generate(node, log)
    if node.kind == "lazy":
        return TaskOutput(node.number, lazily(node, log))
    if node.fails:
        raise Boom(node.number)
    if node.kind == "leaf":
        return node.number
    wanted = list(requested(node.children, log))
    return TaskOutput(node.number, tuple(wanted) if node.kind == "tuple" else wanted)


def requested(nodes: list[Node], log: Log) -> Iterator[NextTask]:
    for node in nodes:
        for _ in range(1 + node.twice):
            yield NextTask(node.name, {"node": node, "log": log}, node.spawned, join=node.joins)


def lazily(node: Node, log: Log) -> Iterator[NextTask]:
    yield from requested(node.children, log)
    if node.fails:
        raise Boom(node.number)


def generate(node: Node, log: Log) -> Iterator[Any]:
    yield StreamChunk("begun", node.number)
    yield from lazily(node, log)
    if node.kind == "both":
        return TaskOutput(node.number, list(requested(node.returned, log)))
    return node.number


def collect(node: Node, log: Log, upstream: Any) -> Any:
    log.upstreams.append((node.number, list(upstream)))
    return serve(node, log)


EXECUTORS = ("inline", "thread-2", "thread-4", "thread-4, 2 at once")


@pytest.fixture(params=EXECUTORS)
def flow(request: pytest.FixtureRequest) -> Iterator[Flow]:
    """A flow with every task that a tree can name."""
    kind, _, at_once = request.param.partition(",")
    executor: Any = kind if kind == "inline" else ThreadExecutor(int(kind[-1]))
    with Flow(executor, max_parallel=2 if at_once else None) as flow:
        for name in ("a", "b", "tail", *BARE, *(f"tail-{bare}" for bare in BARE)):
            flow.add_task(name, serve)
        for name in ("sum", *(f"sum-{bare}" for bare in BARE)):
            flow.add_task(name, collect)
        yield flow
    if kind != "inline":
        executor.shutdown()


generated = settings(max_examples=120, deadline=None, derandomize=True, database=None)


@functools.cache
def drawn(failing: bool) -> list[Node]:
    """Draw the trees that all tests run on all executors: drawing one takes far longer than running it."""
    found: list[Node] = []

    @generated
    @given(trees(failing))
    def keep(root: Node) -> None:
        found.append(root)

    keep()
    return found


def holds_for_each_tree(check: Callable[[Node], None], failing: bool = False) -> None:
    """Check every tree that was drawn; where one fails, look for the smallest that does."""
    for root in drawn(failing):
        try:
            check(root)
        except (Exception, pytest.fail.Exception) as error:
            error.add_note(f"The tree: {root}")
            generated(given(trees(failing))(check))()
            raise


def named(task_id: str) -> str:
    return task_id.partition("#")[0]


def inputs(root: Node, log: Log) -> dict[str, Any]:
    return {"node": root, "log": log}


# ---- the tests ---------------------------------------------------------------------------------------


def test_any_tree_gives_its_results(flow):
    """Each node is called once, each join gets its siblings' outputs in list order, the terminal outputs come back."""

    def check(root):
        log = Log()
        found = flow.run("a", inputs(root, log), timeout=WATCHDOG)
        assert Counter((named(task_id), value) for task_id, value in found.items()) == results(root)
        assert Counter(log.calls) == Counter(node.number for node in root)
        assert sorted(log.upstreams) == sorted(upstreams(root).items())

    holds_for_each_tree(check)


def test_any_tree_is_called_in_its_order(flow):
    """A node is called after who asked for it, and a join after all of its scope."""

    def check(root):
        log = Log()
        flow.run("a", inputs(root, log), timeout=WATCHDOG)
        at = {number: place for place, number in enumerate(log.calls)}
        assert all(at[before] < at[after] for before, after, _ in befores(root))

    holds_for_each_tree(check)


def test_any_tree_streams_a_chunk_for_every_task_run(flow):
    """A stream gives one chunk for each task run, after everything that caused it."""

    def check(root):
        buffer = (1, 2, 1024)[len(list(root)) % 3]
        chunks = list(flow.stream("a", inputs(root, Log()), buffer=buffer, timeout=WATCHDOG))
        check_chunks(root, chunks)
        ended = [chunk for chunk in chunks if chunk.task_id != "begun"]
        assert len({chunk.task_id for chunk in ended}) == len(ended)
        assert Counter((named(chunk.task_id), chunk.value) for chunk in ended) == Counter(
            (node.name, node.number) for node in root
        )
        generators = sorted(node.number for node in root if node.kind in ("generator", "both"))
        assert sorted(chunk.value for chunk in chunks if chunk.task_id == "begun") == generators

    holds_for_each_tree(check)


def test_any_tree_with_a_failing_node_raises_its_error(flow):
    """What a node raised comes out of run; nobody is called twice, or after a join's scope was broken."""

    def check(root):
        log = Log()
        with pytest.raises((Boom, ExceptionGroup)) as caught:
            flow.run("a", inputs(root, log), timeout=WATCHDOG)
        check_error(root, caught.value)
        at = {number: place for place, number in enumerate(log.calls)}
        assert len(at) == len(log.calls)
        assert all(at[before] < at[after] for before, after, _ in befores(root) if after in at)

    holds_for_each_tree(check, failing=True)


def test_any_tree_with_a_failing_node_raises_from_its_stream(flow):
    """The chunks of what finished come first, in their order, then the error is raised from the loop."""

    def check(root):
        chunks: list[StreamChunk] = []
        with pytest.raises((Boom, ExceptionGroup)) as caught:
            read(flow.stream("a", inputs(root, Log()), timeout=WATCHDOG), chunks)
        check_error(root, caught.value)
        check_chunks(root, chunks)
        assert len(set(chunks)) == len(chunks)

    holds_for_each_tree(check, failing=True)


def read(stream: Iterator[StreamChunk], chunks: list[StreamChunk]) -> None:
    for chunk in stream:
        chunks.append(chunk)  # one by one, to keep those that came before an error


def check_error(root: Node, error: BaseException) -> None:
    """One failure is raised as itself, several that were running as a group."""
    errors = error.exceptions if isinstance(error, ExceptionGroup) else [error]
    assert len(errors) > 1 or not isinstance(error, ExceptionGroup)
    assert all(type(each) is Boom for each in errors)
    numbers = [each.args[0] for each in errors]
    assert len(set(numbers)) == len(numbers)
    assert set(numbers) <= {node.number for node in root if node.fails}


def check_chunks(root: Node, chunks: list[StreamChunk]) -> None:
    """Whatever came, came after what caused it."""
    ended = {chunk.value: place for place, chunk in enumerate(chunks) if chunk.task_id != "begun"}
    begun = {chunk.value: place for place, chunk in enumerate(chunks) if chunk.task_id == "begun"}
    for before, after, while_running in befores(root):
        for place in (each[after] for each in (ended, begun) if after in each):
            assert (begun if while_running else ended)[before] < place


def test_a_join_without_siblings_has_no_outputs_to_take():
    """A join that stands alone in its list gets an empty list, as one with siblings gets their list."""
    with Flow("inline") as flow:
        flow.add_task("a", lambda: TaskOutput(None, [NextTask("sum", join=True)]))
        flow.add_task("sum", lambda upstream: upstream)
        assert flow.run("a") == {"sum": []}


def test_a_join_without_siblings_has_an_empty_payload():
    """The payload of a join is what its upstream is, also when it stands alone in its list."""
    with Flow("inline") as flow:
        flow.add_task("a", lambda: TaskOutput(None, [NextTask("sum", join=True)]))
        flow.add_task("sum", lambda payload: payload)
        assert flow.run("a") == {"sum": []}


def test_a_join_waits_for_the_running_task_of_its_own_name():
    """A list of a task that is under way elsewhere and of a join of the same task is no deadlock."""
    with Flow("inline") as flow:
        flow.add_task("b", lambda upstream: ["joined", *upstream])
        flow.add_task("a", lambda: TaskOutput(None, [NextTask("b"), NextTask("b", join=True)]))
        assert flow.run(["a", "b"], timeout=WATCHDOG)["b#2"] == ["joined", ["joined"]]
