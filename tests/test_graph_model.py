"""Any graph on a real flow, beside a slow and plain reference that says what must become of it.

A graph is drawn first: tasks with dependencies and routes, what each returns or chooses, who fails how
often, what it does when something before it failed, maps, limits, priorities. Every edge leads from a
lower number to a higher one, so the reference walks over the tasks once, in that order, and asks for each:
was it asked for, did something lead to it, did something before it fail? The order of registration is
another one. Whatever the executor, all must end as the reference says.

What would depend on timing is not drawn: a task asks by name only for what could not have run before.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, given, settings

from millstream import (
    AsyncioExecutor,
    BindingError,
    Flow,
    NextTask,
    Rate,
    TaskOutput,
    TaskRunLimitError,
    ThreadExecutor,
    current_task,
)

#: A run that takes longer than this, in seconds, hangs.
WATCHDOG = 10.0
#: What tasks give and send: much that is easily taken for nothing, or for something else.
VALUES = [None, 0, "", False, (), [], {}, (1, 2), ("t1", 5), ["t2"], {"t3": 4}, "word", 7]
NOTHING = object()
#: Thousands of failures that are meant to happen: nobody needs to read of them.
QUIET = logging.getLogger("test_graph_model")
QUIET.setLevel(logging.CRITICAL)


class Boom(Exception):
    """What a failing task raises, with its name."""


# ---- what is drawn -----------------------------------------------------------------------------------


@dataclass(eq=False)
class Ask:
    """One request that a task makes: for which task, how often, and what it sends along."""

    task: int
    payload: Any = NOTHING  #: NOTHING: its own payload goes on (of a router), or nothing is sent
    spawns: int = 0  #: 0: a plain request; else so many with spawn_another
    joins: bool = False

    def __repr__(self) -> str:
        sent = "" if self.payload is NOTHING else f", {self.payload!r}"
        return f"t{self.task}{sent}{f' ×{self.spawns}' if self.spawns else ''}"


@dataclass(eq=False)
class Node:
    """One task: its edges, what it does, and its options."""

    number: int
    needs: list[int] = field(default_factory=list)
    routes: list[int] = field(default_factory=list)
    form: str = "value"  #: how it says what comes next; "value": it does not
    value: Any = None  #: its output, unless its form has another one
    asks: list[Ask] = field(default_factory=list)
    items: list[Any] | None = None  #: it is mapped over these
    over: int | None = None  #: it is mapped over the output of this dependency
    bad_items: tuple[int, ...] = ()  #: places of items that fail
    fails: int = 0  #: so many attempts fail
    retries: int | None = None
    on_dep_failure: str = "fail"
    uses: list[str] = field(default_factory=list)
    max_parallel: int | None = None
    priority: int = 0
    is_async: bool = False

    @property
    def name(self) -> str:
        return f"t{self.number}"

    @property
    def is_map(self) -> bool:
        return self.items is not None or self.over is not None

    def __repr__(self) -> str:
        said = [f"{self.name} {self.form}"]
        for key, default in vars(Node(0)).items():
            now = getattr(self, key)
            if key not in ("number", "form") and now != default and repr(now) != repr(default):
                said.append(f"{key}={now!r}")
        return f"<{' '.join(said)}>"


@dataclass(eq=False)
class Graph:
    """The tasks, in the order in which edges lead, and how a run of them is asked for."""

    nodes: list[Node]
    registered: list[int]  #: the order of registration
    starts: list[int] | None = None
    targets: list[int] | None = None
    inputs: dict[str, Any] | None = None
    limits: dict[str, int | Rate] = field(default_factory=dict)
    max_parallel: int | None = None

    def before(self, number: int) -> set[int]:
        """What an edge leads from, to this task."""
        routers = {node.number for node in self.nodes if number in node.routes}
        return routers | set(self.nodes[number].needs)

    def routers(self, number: int) -> list[int]:
        return [node.number for node in self.nodes if number in node.routes]

    def after(self, numbers: Any) -> set[int]:
        """These and all that edges lead to from them."""
        found = set(numbers)
        for node in self.nodes:
            if self.before(node.number) & found:
                found.add(node.number)
        return found

    def roots(self) -> list[int]:
        return [node.number for node in self.nodes if not self.before(node.number)]

    def inside(self) -> set[int]:
        """Which tasks are part of the run."""
        if self.targets is None:
            return self.after(self.roots() if self.starts is None else self.starts)
        found = set(self.targets)
        for node in reversed(self.nodes):
            if node.number in found:
                found |= self.before(node.number)
        return found


PLAIN = ("value",)
CHOICES = ("name", "names", "mapping", "none")  #: what only a task with routes may return
REQUESTS = ("one", "list", "tuple", "output", "generator")  #: NextTasks, of any task


@st.composite
def graphs(draw: Any, *, rated: bool = False) -> Graph:
    """Draw a graph of at most 12 tasks."""
    count = draw(st.integers(3, 12))
    nodes = [Node(number) for number in range(count)]
    graph = Graph(nodes, draw(st.permutations(range(count))))
    flag = st.integers(0, 3).map(lambda number: number == 3)
    for node in nodes:
        earlier = st.integers(0, max(0, node.number - 1))
        node.needs = draw(st.lists(earlier, max_size=min(3, node.number), unique=True))
        later = range(node.number + 1, count)
        if later and draw(st.sampled_from([False, True, False])):
            node.routes = draw(st.lists(st.sampled_from(later), min_size=1, max_size=3, unique=True))
        node.value = draw(st.sampled_from([f"v{node.number}", *VALUES]))
    for node in nodes:
        _draw_form(draw, graph, node, flag)
        _draw_options(draw, node, flag, rated)
    for node in nodes:
        _draw_asks(draw, graph, node)
    graph.limits = {"db": draw(st.integers(1, 2)), "api": Rate(2, per=0.02)}
    graph.max_parallel = draw(st.sampled_from([None, None, 1, 2]))
    _draw_start(draw, graph)
    return graph


def _draw_form(draw: Any, graph: Graph, node: Node, flag: Any) -> None:
    """What a task returns: a value, a choice among its routes, requests, or the outputs of a map."""
    nodes, number = graph.nodes, node.number
    if node.routes:
        node.form = draw(st.sampled_from([*PLAIN, *CHOICES, *REQUESTS]))
        if node.form == "value":
            node.value = draw(st.sampled_from([0, 7, False]))  # neither name, names nor mapping
        if node.form == "none":
            node.value = None
    elif not graph.routers(number) and draw(st.booleans()) and any(_gives_list(nodes[need]) for need in node.needs):
        node.over = draw(st.sampled_from([need for need in node.needs if _gives_list(nodes[need])]))
        node.needs = [node.over]
    elif draw(flag):
        node.form = draw(st.sampled_from(REQUESTS))
    elif draw(flag):
        node.items = draw(st.lists(st.sampled_from(VALUES), max_size=4))
    if node.items and draw(flag):
        node.bad_items = tuple(
            draw(st.lists(st.sampled_from(range(len(node.items))), min_size=1, max_size=2, unique=True))
        )


def _draw_asks(draw: Any, graph: Graph, node: Node) -> None:
    """Whom it chooses or asks for."""
    if node.form in PLAIN or node.form == "none":
        return
    may = _askable(graph, node)
    least = min(len(may), draw(st.integers(0, 2)))
    most = 1 if node.form in ("name", "one") else 3
    for other in draw(
        st.lists(st.sampled_from(may), min_size=min(least, most), max_size=most, unique=True) if may else st.just([])
    ):
        node.asks.append(_draw_ask(draw, graph, node, other))
    if not node.asks and node.form != "generator":
        node.form = draw(st.sampled_from(["names", "mapping"])) if node.routes else "output"


def _askable(graph: Graph, node: Node) -> list[int]:
    """Which tasks may be chosen or asked for without that timing decides what becomes of them."""
    if node.form == "generator" and node.routes:
        # What it yields is asked for at once, however many others may choose the same later.
        return [route for route in node.routes if graph.routers(route) == [node.number]]
    if node.routes:
        return node.routes
    # These cannot have run yet: they wait for this very task, and nobody may choose them.
    later = sorted(graph.after([node.number]) - {node.number})
    return [other for other in later if not graph.routers(other) and graph.nodes[other].over is None]


def _gives_list(node: Node) -> bool:
    return node.is_map or (node.form == "value" and isinstance(node.value, list))


def _draw_ask(draw: Any, graph: Graph, node: Node, other: int) -> Ask:
    ask = Ask(other)
    if node.form == "mapping" or (node.form in REQUESTS and draw(st.booleans())):
        ask.payload = draw(st.sampled_from([f"p{node.number}", *VALUES]))
    if node.form in REQUESTS and node.form != "one" and node.routes and len(graph.routers(other)) == 1:
        ask.spawns = draw(st.sampled_from([3, 0, 1]))
        if ask.spawns:
            ask.payload = f"s{node.number}"
    return ask


def _draw_options(draw: Any, node: Node, flag: Any, rated: bool) -> None:
    node.fails = draw(st.sampled_from([1, 2] if node.bad_items else [0, 0, 0, 0, 0, 1, 2]))
    node.retries = draw(st.sampled_from([None, None, 0, 1, 3]))
    node.on_dep_failure = draw(st.sampled_from(["fail", "skip", "run-anyway"]))
    if node.over is not None and node.on_dep_failure == "run-anyway":
        node.on_dep_failure = "skip"  # there would be nothing to map over
    if draw(flag):
        node.uses = ["db"]
    if rated and draw(st.sampled_from([True, True, False])):
        node.uses = [*node.uses, "api"]
    if draw(flag):
        node.max_parallel = draw(st.integers(1, 2))
    node.priority = draw(st.sampled_from([0, 0, 0, 1, -1]))
    node.is_async = draw(st.booleans())


def _draw_start(draw: Any, graph: Graph) -> None:
    """How the run is asked for: all of it, from some tasks on, or up to some."""
    how = draw(st.sampled_from(["all", "starts", "targets"]))
    numbers = st.lists(st.sampled_from(range(len(graph.nodes))), min_size=1, max_size=3, unique=True)
    if how == "starts":
        # Not what may be chosen as well, and not a map that would miss what it is mapped over.
        starts = [number for number in draw(numbers) if graph.nodes[number].over is None]
        graph.starts = [n for n in starts if not set(graph.routers(n)) & graph.after(starts)] or None
    if how == "targets":
        graph.targets = draw(numbers)
        for node in graph.nodes:
            if not node.routes:  # a route that is left out may be chosen
                node.asks = [ask for ask in node.asks if ask.task in graph.inside()]
                if node.form in REQUESTS and not node.asks:
                    node.form = "output"
    if graph.starts is None and graph.targets is None and len(graph.roots()) == len(graph.nodes):
        graph.starts = list(range(len(graph.nodes)))  # without edges, the starts must be named
    sent = draw(st.sampled_from(["nothing", "nothing", "payload", "other"]))
    if sent != "nothing":
        graph.inputs = {"payload": draw(st.sampled_from(VALUES))} if sent == "payload" else {"seed": 3}


# ---- the reference -----------------------------------------------------------------------------------


@dataclass
class Fate:
    """What must become of one task."""

    status: str
    breaks: bool = False  #: what depends on it sees a failure
    runs: int = 0  #: so many task runs of it are called
    payloads: list[list[Any]] = field(default_factory=list)  #: for each of them, what its payload may be
    upstream: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    own: bool = False  #: its own code fails

    @property
    def ran(self) -> bool:
        return self.status == "SUCCESS"


def predict(graph: Graph) -> dict[int, Fate]:
    """Say what must become of every task that is part of the run, when failures do not end it."""
    inside = graph.inside()
    fates: dict[int, Fate] = {}
    for node in graph.nodes:
        if node.number in inside:
            fates[node.number] = fate_of(graph, node, fates)
    return fates


def fate_of(graph: Graph, node: Node, fates: dict[int, Fate]) -> Fate:
    """Say what must become of one task; ``fates`` has all that comes before it."""
    needs = [need for need in node.needs if need in fates]
    routers = [router for router in graph.routers(node.number) if router in fates]
    failed = any(fates[each].breaks for each in [*needs, *routers])
    led_to = any(fates[need].ran and follows(graph.nodes[need]) for need in needs)
    upstream = {graph.nodes[need].name: fates[need].output for need in needs if fates[need].ran}
    default = default_payload(node, bool(needs), upstream)
    asked = payloads_asked(graph, node, fates, default)

    if not asked and routers and not any(fates[router].breaks for router in routers):
        return Fate("SKIPPED")  # it was not chosen
    if failed and node.on_dep_failure == "fail":
        return Fate("FAILED", breaks=True)
    if failed and node.on_dep_failure == "skip":
        return Fate("SKIPPED", breaks=True)
    if not asked and not led_to and not failed:
        return Fate("SKIPPED")  # it cannot be reached
    payloads = asked or [[default]]
    return called(node, len(payloads), payloads, upstream)


def called(node: Node, runs: int, payloads: list[list[Any]], upstream: dict[str, Any]) -> Fate:
    items = node.items if node.over is None else upstream[f"t{node.over}"]
    tries = 1 + (node.retries or 0)
    fails = node.fails >= tries and (bool(node.bad_items) if node.is_map else True)
    if fails:
        return Fate("FAILED", True, runs, payloads, upstream, own=True)
    output = output_of(node)
    if items is not None:
        output = [(node.name, index, item) for index, item in enumerate(items)]
    return Fate("SUCCESS", False, runs, payloads, upstream, output)


def default_payload(node: Node, any_inside: bool, upstream: dict[str, Any]) -> Any:
    """What arrives when nothing was sent along."""
    if not any_inside:
        return None
    return upstream.get(f"t{node.needs[0]}") if len(node.needs) == 1 else upstream


def payloads_asked(graph: Graph, node: Node, fates: dict[int, Fate], default: Any) -> list[list[Any]]:
    """For each task run that was asked for by name: what its payload may be. No list: nobody asked."""
    starts = graph.roots() if graph.starts is None else graph.starts
    if node.number in starts:
        if graph.inputs is None:
            return [[default]]
        if "payload" in graph.inputs:
            return [[graph.inputs["payload"]]]
        return [[default if any(need in fates for need in node.needs) else graph.inputs]]
    once: list[Any] = []
    spawned: list[list[Any]] = []
    for other, fate in fates.items():
        for ask in graph.nodes[other].asks if fate.ran else []:
            if ask.task != node.number:
                continue
            if ask.spawns:
                spawned += [[(ask.payload, turn)] for turn in range(ask.spawns)] * fate.runs
            elif ask.payload is not NOTHING:
                once.append(ask.payload)
            elif graph.nodes[other].form in ("name", "names"):
                once += [payload for payloads in fate.payloads for payload in payloads]
            else:
                once.append(default)
    return spawned or ([once] if once else [])


def follows(node: Node) -> bool:
    """Whether a task that succeeded follows its static edges."""
    return node.form in ("value", "none")


def output_of(node: Node) -> Any:
    """What a task that is no map gives."""
    names = [f"t{ask.task}" for ask in node.asks]
    if node.form == "name":
        return names[0]
    if node.form == "names":
        return names
    if node.form == "mapping":
        return {f"t{ask.task}": ask.payload for ask in node.asks}
    return None if node.form in ("one", "tuple", "list") else node.value


def results_of(graph: Graph, fates: dict[int, Fate]) -> dict[str, Any]:
    """What the run returns: the outputs of terminal task runs that succeeded."""
    results = {}
    for number, fate in fates.items():
        node = graph.nodes[number]
        leads_on = any(number in graph.nodes[other].needs for other in fates)
        asks = [ask for ask in node.asks if ask.task in fates]
        if fate.ran and not asks and not (leads_on and follows(node)):
            for turn in range(fate.runs):
                results[node.name if not turn else f"{node.name}#{turn + 1}"] = fate.output
    return results


# ---- the flow ----------------------------------------------------------------------------------------


class Seen:
    """What was seen of one run."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str, str]] = []  #: begun or ended, task, id; appending is atomic
        self.payloads: dict[str, list[str]] = defaultdict(list)
        self.upstreams: dict[str, list[Any]] = defaultdict(list)
        self.attempts: Counter[str] = Counter()  #: by the key of the task run


class World:
    """What the tasks tell of themselves, over all runs of a flow."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.lock = threading.Lock()
        self.runs: dict[str, Seen] = defaultdict(Seen)
        self.at_once: Counter[Any] = Counter()
        self.most: Counter[Any] = Counter()
        self.wrong: list[str] = []

    def keys(self, node: Node) -> list[Any]:
        run_id = current_task().run_id
        return [*node.uses, ("run", run_id), (node.name, run_id)]

    def begin(self, node: Node, payload: Any, upstream: Any, index: int | None) -> None:
        me = current_task()
        with self.lock:
            seen = self.runs[me.run_id]
            seen.steps.append(("begun", node.name, me.id))
            seen.attempts[me.key] += 1
            if seen.attempts[me.key] != me.attempt:
                self.wrong.append(f"attempt {me.attempt} of {me.id} came too early or twice, or two have one key")
            if me.attempt == 1:
                seen.payloads[node.name].append(repr(payload))
            seen.upstreams[node.name].append(upstream)
            for key in self.keys(node):
                self.at_once[key] += 1
                self.most[key] = max(self.most[key], self.at_once[key])
        if index in (None, *node.bad_items) and me.attempt <= node.fails:
            raise Boom(node.name)

    def end(self, node: Node) -> None:
        me = current_task()
        with self.lock:
            self.runs[me.run_id].steps.append(("ended", node.name, me.id))
            for key in self.keys(node):
                self.at_once[key] -= 1


def requests(node: Node) -> list[NextTask]:
    made = []
    for ask in node.asks:
        sent = None if ask.payload is NOTHING else {"payload": ask.payload}
        if not ask.spawns:
            made.append(NextTask(f"t{ask.task}", sent, join=ask.joins))
        made += [NextTask(f"t{ask.task}", {"payload": (ask.payload, n)}, True) for n in range(ask.spawns)]
    return made


def returned(node: Node) -> Any:
    if node.form == "output":
        return TaskOutput(node.value, requests(node))
    if node.form in ("one", "list", "tuple"):
        made = requests(node)
        return made[0] if node.form == "one" else tuple(made) if node.form == "tuple" else made
    return output_of(node)


def function(node: Node, world: World, *, is_async: bool) -> Callable[..., Any]:
    """Return what a user would have written for a node."""

    def body(upstream, payload=None):
        try:
            world.begin(node, payload, upstream, None)
            time.sleep(0)  # let others in
            return returned(node)
        finally:
            world.end(node)

    def generator(upstream, payload=None):
        try:
            world.begin(node, payload, upstream, None)
            yield from requests(node)
            if not node.asks:
                return TaskOutput(node.value, [])
            return node.value
        finally:
            world.end(node)

    def each(upstream, item, index):
        try:
            world.begin(node, item, upstream, index)
            time.sleep(0)
            return (node.name, index, item)
        finally:
            world.end(node)

    async def body_async(upstream, payload=None):
        try:
            world.begin(node, payload, upstream, None)
            await asyncio.sleep(0)
            return returned(node)
        finally:
            world.end(node)

    async def each_async(upstream, item, index):
        try:
            world.begin(node, item, upstream, index)
            await asyncio.sleep(0)
            return (node.name, index, item)
        finally:
            world.end(node)

    if node.is_map:
        return each_async if is_async else each
    if node.form == "generator":
        return generator
    return body_async if is_async else body


def flow_of(
    graph: Graph, world: World, executor: Any, *, on_error: Any = "continue", asyncs: bool = False, **options: Any
) -> Flow:
    """Build the flow as a user would."""
    options |= {"limits": graph.limits, "max_parallel": graph.max_parallel}
    flow = Flow(executor, on_error=on_error, logger=QUIET, **options)
    for number in graph.registered:
        node = graph.nodes[number]
        said: dict[str, Any] = {"depends_on": [f"t{need}" for need in node.needs]}
        if node.routes:
            said["routes"] = [f"t{route}" for route in node.routes]
        if node.over is not None:
            said["for_each"] = f"t{node.over}"
        elif node.items is not None:
            said["for_each"] = f"$ctx.rows.{node.name}"
        if node.retries is not None:
            said["retries"] = node.retries
        if node.max_parallel is not None:
            said["max_parallel"] = node.max_parallel
        said |= {"on_dep_failure": node.on_dep_failure, "uses": node.uses, "priority": node.priority}
        flow.add_task(node.name, function(node, world, is_async=asyncs and node.is_async), **said)
    return flow


def arguments(graph: Graph) -> dict[str, Any]:
    """Return what ``run`` is called with."""
    named: dict[str, Any] = {"timeout": WATCHDOG, "inputs": graph.inputs}
    named["context"] = {"rows": {node.name: node.items for node in graph.nodes if node.items is not None}}
    if graph.starts is not None:
        named["start_task_id"] = [f"t{number}" for number in graph.starts]
    if graph.targets is not None:
        named["targets"] = [f"t{number}" for number in graph.targets]
    return named


EXECUTORS = ("inline", "thread", "asyncio")


@pytest.fixture(params=EXECUTORS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def executor(kind: str) -> Iterator[Any]:
    """One executor for all flows of a test."""
    if kind == "inline":
        yield kind
    else:
        with ThreadExecutor(3) if kind == "thread" else AsyncioExecutor(3) as executor:
            yield executor


#: Graphs are small as drawn. Making a failing one smaller takes minutes, and a test has one of them.
checked = settings(deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])


# ---- checks ------------------------------------------------------------------------------------------


def check_run(graph: Graph, world: World, run: Any) -> None:
    """Everything that a run has done and says is as the reference says."""
    fates = predict(graph)
    seen = world.runs[run.id]
    report = run.report()
    nodes = graph.nodes
    assert {name: str(row.status) for name, row in report.tasks.items()} == {
        nodes[number].name: fate.status for number, fate in fates.items()
    }
    assert run.status == report.status == ("FAILED" if any(fate.breaks for fate in fates.values()) else "SUCCESS")
    assert {name: row.runs for name, row in report.tasks.items() if row.status != "FAILED" or row.attempt} == {
        nodes[number].name: fate.runs for number, fate in fates.items() if fate.status != "FAILED" or fate.own
    }
    assert {name: row.attempt for name, row in report.tasks.items() if not nodes[int(name[1:])].is_map} == {
        nodes[number].name: min(nodes[number].fails, nodes[number].retries or 0) + 1 if fate.runs else 0
        for number, fate in fates.items()
        if not nodes[number].is_map
    }
    assert run.result() == results_of(graph, fates)
    assert {name: repr(row.result) for name, row in report.tasks.items() if row.status == "SUCCESS"} == {
        nodes[number].name: repr(fate.output) for number, fate in fates.items() if fate.ran
    }
    check_calls(graph, fates, seen)
    check_order(graph, fates, seen)
    check_limits(graph, world, run.id)


def check_calls(graph: Graph, fates: dict[int, Fate], seen: Seen) -> None:
    """Each task was called so often, with these values."""
    for number, fate in fates.items():
        node = graph.nodes[number]
        got = seen.payloads[node.name]
        assert all(upstream == fate.upstream for upstream in seen.upstreams[node.name]), f"upstream of {node}"
        if node.is_map:
            items = fate.runs * (node.items if node.over is None else fate.upstream.get(f"t{node.over}", []))
            if fate.own:
                assert not Counter(got) - Counter(map(repr, items)), f"items of {node}"
            else:
                assert Counter(got) == Counter(map(repr, items)), f"items of {node}"
        elif fate.runs == 1:
            assert len(got) == 1, f"{node} was called {got}"
            assert got[0] in map(repr, fate.payloads[0]), f"payload of {node}"
        else:
            assert Counter(got) == Counter(repr(each) for [each] in fate.payloads), f"payloads of {node}"
    names = {graph.nodes[number].name for number in fates}
    assert {name for _, name, _ in seen.steps} <= names


def check_order(graph: Graph, fates: dict[int, Fate], seen: Seen) -> None:
    """No task starts before whatever leads to it has ended."""
    ends: dict[str, int] = {}
    starts: dict[str, int] = {}
    for place, (step, name, _) in enumerate(seen.steps):
        if step == "ended":
            ends[name] = place
        else:
            starts.setdefault(name, place)
    for number in fates:
        for before in graph.before(number) & fates.keys():
            if graph.nodes[before].is_map and not fates[before].ran:
                continue  # it has failed with its first item, while others go on
            if graph.nodes[before].form == "generator" and number in graph.nodes[before].routes:
                continue  # what it chooses starts while it goes on
            here, there = graph.nodes[number].name, graph.nodes[before].name
            if here in starts and there in ends:
                assert ends[there] < starts[here], f"{here} started before {there} ended"


def check_limits(graph: Graph, world: World, run_id: str) -> None:
    """Never more at once than allowed, and each attempt once."""
    assert not world.wrong
    most = world.most
    assert most["db"] <= graph.limits["db"]
    assert graph.max_parallel is None or most["run", run_id] <= graph.max_parallel
    for node in graph.nodes:
        assert node.max_parallel is None or most[node.name, run_id] <= node.max_parallel


# ---- the tests ---------------------------------------------------------------------------------------


def test_any_graph_ends_as_the_reference_says(kind, executor):
    """Statuses, runs, attempts, results and what each task received are as predicted; so they are a second time."""

    @settings(checked, max_examples=70)
    @given(graphs())
    def check(graph):
        world = World(graph)
        with flow_of(graph, world, executor, asyncs=kind == "asyncio") as flow:
            for _ in range(2):
                run = flow.start(**arguments(graph))
                assert run.wait(WATCHDOG)
                check_run(graph, world, run)

    check()


@st.composite
def wild_graphs(draw: Any) -> Graph:
    """Draw a graph in which tasks ask for anything at any time: for themselves, for what has run, in circles."""
    graph = draw(graphs())
    numbers = range(len(graph.nodes))
    graph.nodes.append(Node(len(graph.nodes), value="joined"))  # no edge leads here: a join of it waits for all
    graph.registered = [*graph.registered, len(numbers)]
    for node in graph.nodes[:-1]:
        if node.is_map or draw(st.booleans()):
            continue
        node.routes = draw(st.lists(st.sampled_from(numbers), max_size=3, unique=True))
        node.form = draw(st.sampled_from(["names", "list", "output", "generator"] if node.routes else REQUESTS[1:]))
        node.asks = [Ask(other) for other in draw(st.lists(st.sampled_from(node.routes or numbers), max_size=3))]
        for ask in node.asks if node.form in REQUESTS else []:
            ask.spawns = draw(st.sampled_from([0, 0, 1, 2]))
        if node.form in REQUESTS and not node.routes and draw(st.booleans()):
            node.asks.insert(0, Ask(len(numbers), joins=True))
    graph.starts = draw(st.lists(st.sampled_from(numbers), min_size=1, max_size=3, unique=True))
    graph.targets = None
    return graph


def test_whatever_is_asked_for_a_run_ends(kind, executor):
    """However tasks ask for each other, a run ends: with results, a failure, or the limit; and every row is final."""

    @settings(checked, max_examples=30)
    @given(wild_graphs(), st.sampled_from(["continue", "raise"]))
    def check(graph, on_error):
        world = World(graph)
        with flow_of(graph, world, executor, on_error=on_error, asyncs=kind == "asyncio", max_task_runs=40) as flow:
            run = flow.start(**arguments(graph))
            assert run.wait(WATCHDOG)
            report = run.report()
            errors = errors_of(run)
            assert all(type(error) in (Boom, TaskRunLimitError, BindingError) for error in errors), errors
            assert run.status == "FAILED" or not errors
            called = {name for step, name, _ in world.runs[run.id].steps if step == "begun"}
            for name, row in report.tasks.items():
                assert row.status in ("SUCCESS", "FAILED", "SKIPPED", "CANCELLED")
                assert row.status != "SKIPPED" or (name not in called and not row.runs)
                assert (name in called) <= (row.attempt > 0)
            assert not any(world.at_once.values())
            check_limits(graph, world, run.id)

    check()


def errors_of(run: Any) -> list[BaseException]:
    """Return what a run raises: nothing, its one error, or those of its group."""
    try:
        run.result()
    except ExceptionGroup as group:
        return list(group.exceptions)
    except Exception as error:
        return [error]
    return []


def test_calls_of_one_task_have_keys_of_their_own():
    """Every call that a task submits has a key of its own, and the same one in a run of the same id."""

    def work() -> str:
        return current_task().key

    with Flow("inline") as flow:
        flow.add_task("parent", lambda: [flow.submit(work).result() for _ in range(5)])
        first, second = (flow.run("parent", run_id="same")["parent"] for _ in range(2))
    assert len(set(first)) == 5
    assert first == second


def test_any_graph_ends_with_its_first_failure(kind, executor):
    """Under on_error="raise" nothing else differs, except that nothing starts after the first failure."""

    @settings(checked, max_examples=40)
    @given(graphs())
    def check(graph):
        world = World(graph)
        with flow_of(graph, world, executor, on_error="raise", asyncs=kind == "asyncio") as flow:
            run = flow.start(**arguments(graph))
            assert run.wait(WATCHDOG)
            if any(fate.own for fate in predict(graph).values()):
                check_failed_run(graph, world, run, alone=kind == "inline")
            else:
                check_run(graph, world, run)

    check()


def check_failed_run(graph: Graph, world: World, run: Any, *, alone: bool) -> None:
    """What had begun before the first failure is as predicted, and nothing else began."""
    fates = predict(graph)
    named = {graph.nodes[number].name: fate for number, fate in fates.items()}
    with pytest.raises((Boom, ExceptionGroup)) as caught:
        run.result()
    errors = caught.value.exceptions if isinstance(caught.value, ExceptionGroup) else [caught.value]
    assert len(errors) > 1 or not isinstance(caught.value, ExceptionGroup)
    assert not alone or len(errors) == 1
    report = run.report()
    assert run.status == report.status == "FAILED"
    assert report.tasks.keys() == named.keys()
    assert {name for name, row in report.tasks.items() if row.status == "FAILED"} == {e.args[0] for e in errors}
    for name, row in report.tasks.items():
        fate = named[name]
        assert row.status in ("SUCCESS", "FAILED", "SKIPPED", "CANCELLED"), f"{name} is {row.status}"
        assert row.status != "SUCCESS" or (fate.ran and repr(row.result) == repr(fate.output)), name
        assert row.status != "FAILED" or fate.own, name
        assert row.status != "SKIPPED" or (fate.status == "SKIPPED" and not fate.breaks), name
    seen = world.runs[run.id]
    for name, payloads in seen.payloads.items():
        node, fate = graph.nodes[int(name[1:])], named[name]
        assert all(upstream == fate.upstream for upstream in seen.upstreams[name])
        if not node.is_map:
            assert len(payloads) <= fate.runs
            assert set(payloads) <= {repr(each) for may in fate.payloads for each in may}
    check_order(graph, fates, seen)
    check_limits(graph, world, run.id)


def test_any_graph_streams_what_it_did(kind, executor):
    """A stream gives one chunk for each task run that succeeded, after those of everything that led to it."""

    @settings(checked, max_examples=30)
    @given(graphs())
    def check(graph):
        fates = predict(graph)
        with flow_of(graph, World(graph), executor, asyncs=kind == "asyncio") as flow:
            chunks = list(flow.stream(**arguments(graph)))
        names = [chunk.task_id.partition("#")[0] for chunk in chunks]
        assert Counter(names) == Counter(
            {graph.nodes[number].name: fate.runs for number, fate in fates.items() if fate.ran}
        )
        for number in fates:
            for before in graph.before(number) & fates.keys():
                node, other = graph.nodes[number], graph.nodes[before]
                started_early = other.form == "generator" and number in other.routes
                if node.name in names and other.name in names and not started_early:
                    last = len(names) - 1 - names[::-1].index(other.name)
                    assert last < names.index(node.name), f"{node.name} came before {other.name}"

    check()


def test_any_graph_runs_several_times_at_once():
    """Runs of one flow at the same time, from several threads, do not disturb each other; they share its limits."""

    @settings(checked, max_examples=15)
    @given(graphs())
    def check(graph):
        world = World(graph)
        together = threading.Barrier(4)

        def start() -> Any:
            together.wait(WATCHDOG)
            run = flow.start(**arguments(graph))
            assert run.wait(WATCHDOG)
            return run

        with flow_of(graph, world, executor) as flow, ThreadPoolExecutor(4) as callers:
            for future in [callers.submit(start) for _ in range(4)]:
                check_run(graph, world, future.result(WATCHDOG))

    with ThreadExecutor(3) as executor:
        check()


def test_a_rate_is_never_exceeded(kind, executor):
    """In no window of its length do more attempts begin than a rate allows, whatever else happens."""

    @settings(checked, max_examples=8)
    @given(graphs(rated=True))
    def check(graph):
        world = World(graph)
        with flow_of(graph, world, executor, asyncs=kind == "asyncio") as flow:
            run = flow.start(**arguments(graph), trace=True)
            assert run.wait(WATCHDOG)
            check_run(graph, world, run)
        rated = {node.name for node in graph.nodes if "api" in node.uses}
        maps = {node.name for node in graph.nodes if node.is_map}  # their items hold what they use
        trace = [attempt for attempt in run.report().trace if attempt.task in rated and attempt.id not in maps]
        began = sorted(attempt.started_at for attempt in trace)
        # The trace has the instants by which the rate was kept, rounded to what a time of day can tell.
        assert all(later - earlier > 0.02 - 1e-5 for earlier, later in zip(began, began[2:], strict=False))

    check()


@pytest.mark.parametrize("kind", ["inline", "thread-1", "thread, one at a time"])
def test_the_order_on_one_worker(kind):
    """What is ready starts by priority; then in the order in which it became ready, and in that of registration."""

    @settings(checked, max_examples=40)
    @given(graphs())
    def check(graph):
        for node in graph.nodes:
            copy = Node(node.number, node.needs, value=1, priority=node.priority)
            graph.nodes[node.number] = copy
        graph.starts = graph.targets = graph.inputs = None
        graph.max_parallel = 1 if kind.endswith("one at a time") else None
        if len(graph.roots()) == len(graph.nodes):
            graph.starts = graph.registered  # without edges, the starts must be named
        world = World(graph)
        with flow_of(graph, world, executor) as flow:
            run = flow.start(**arguments(graph))
            assert run.wait(WATCHDOG)
        assert [name for step, name, _ in world.runs[run.id].steps if step == "begun"] == order_of(graph)

    if kind == "inline":
        executor: Any = kind
        check()
    else:
        with ThreadExecutor(1 if kind == "thread-1" else 3) as executor:
            check()


def order_of(graph: Graph) -> list[str]:
    """Walk over a graph of plain tasks as one worker does that takes the oldest of the highest priority."""
    ready = [number for number in graph.registered if not graph.nodes[number].needs]
    done: list[int] = []
    while ready:
        number = max(ready, key=lambda each: graph.nodes[each].priority)  # the first of them
        ready.remove(number)
        done.append(number)
        for other in graph.registered:
            needs = graph.nodes[other].needs
            if number in needs and set(needs) <= set(done):
                ready.append(other)
    return [graph.nodes[number].name for number in done]


@st.composite
def loops(draw: Any) -> tuple[list[list[int]], int]:
    """Draw the body of a loop, as what each of its tasks depends on, and how often it goes round."""
    count = draw(st.integers(1, 5))
    body: list[list[int]] = [[]]
    for number in range(1, count):
        body.append(draw(st.lists(st.integers(0, number - 1), min_size=1, max_size=3, unique=True)))
    return body, draw(st.integers(1, 4))


def test_any_loop_goes_round_as_often_as_its_router_says(kind, executor):
    """Each turn runs every task of the body once, with the outputs of that very turn, and the loop ends in its exit."""

    @settings(checked, max_examples=25)
    @given(loops())
    def check(drawn):
        body, turns = drawn
        seen: list[tuple[str, int, list[int]]] = []  # appending is atomic

        def member(name: str) -> Any:
            def call(upstream, payload):
                turn = payload if name == "t0" else max(upstream.values())
                seen.append((name, turn, sorted(upstream.values())))
                return turn

            async def call_async(upstream, payload):
                await asyncio.sleep(0)
                return call(upstream, payload)

            return call_async if kind == "asyncio" else call

        def choose(upstream):
            turn = max(upstream.values())
            seen.append(("choose", turn, sorted(upstream.values())))
            return {"t0": turn + 1} if turn < turns else {"exit": ("left", turn)}

        with Flow(executor, entry="t0") as flow:
            sinks = {number for number in range(len(body)) if not any(number in needs for needs in body)}
            flow.add_task("choose", choose, routes=["t0", "exit"], depends_on=[f"t{sink}" for sink in sorted(sinks)])
            flow.add_task("exit", lambda payload: payload)
            for number, needs in enumerate(body):
                flow.add_task(f"t{number}", member(f"t{number}"), depends_on=[f"t{need}" for need in needs])
            run = flow.start(inputs={"payload": 1}, timeout=WATCHDOG)
            assert run.result(WATCHDOG) == {"exit": ("left", turns)}
        needs_of = {f"t{number}": needs for number, needs in enumerate(body)} | {"choose": list(sinks)}
        assert sorted(seen) == sorted(
            (name, turn, [turn] * len(needs)) for name, needs in needs_of.items() for turn in range(1, turns + 1)
        )
        rows = {name: (str(row.status), row.runs) for name, row in run.report().tasks.items()}
        assert rows == dict.fromkeys(needs_of, ("SUCCESS", turns)) | {"exit": ("SUCCESS", 1)}

    check()


@st.composite
def rounds(draw: Any) -> tuple[list[list[int]], list[int], list[int]]:
    """Draw what each task depends on, the order of registration, and which tasks are asked for again, one by one."""
    count = draw(st.integers(2, 7))
    needs: list[list[int]] = [[]]
    for number in range(1, count):
        needs.append(draw(st.lists(st.integers(0, number - 1), max_size=3, unique=True)))
    again = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=3))
    return needs, draw(st.permutations(range(count))), again


def test_any_task_that_is_asked_for_again_takes_what_follows_along(kind, executor):
    """A later request runs the task and all that depends on it once more, with the newest outputs of all others."""

    @settings(checked, max_examples=25)
    @given(rounds())
    def check(drawn):
        needs, registered, again = drawn
        seen: list[tuple[str, int, dict[str, int]]] = []  # appending is atomic
        left = list(again)

        def member(number: int) -> Any:
            def call(upstream):
                turn = sum(name == f"t{number}" for name, _, _ in seen)
                seen.append((f"t{number}", turn, dict(upstream)))
                return turn

            async def call_async(upstream):
                await asyncio.sleep(0)
                return call(upstream)

            return call_async if kind == "asyncio" else call

        with Flow(executor) as flow:
            flow.add_task("last", lambda: NextTask(f"t{left.pop(0)}") if left else "end", depends_on=all_of(needs))
            for number in registered:
                flow.add_task(f"t{number}", member(number), depends_on=[f"t{need}" for need in needs[number]])
            run = flow.start(timeout=WATCHDOG)
            assert run.result(WATCHDOG) == {"last": "end"}
        assert sorted(seen, key=repr) == sorted(turns_of(needs, again), key=repr)
        rows = {name: (str(row.status), row.runs) for name, row in run.report().tasks.items()}
        calls = Counter(name for name, _, _ in seen)
        assert rows == {name: ("SUCCESS", runs) for name, runs in calls.items()} | {"last": ("SUCCESS", 1 + len(again))}

    check()


def all_of(needs: list[list[int]]) -> list[str]:
    return [f"t{number}" for number in range(len(needs))]


def turns_of(needs: list[list[int]], again: list[int]) -> list[tuple[str, int, dict[str, int]]]:
    """Say who is called for which time, with which turns of those before it."""
    turn = dict.fromkeys(range(len(needs)), -1)
    called = []
    for asked in [None, *again]:
        moved = set()
        for number, before in enumerate(needs):
            if asked is None or number == asked or moved & set(before):
                moved.add(number)
                turn[number] += 1
                called.append((f"t{number}", turn[number], {f"t{need}": turn[need] for need in before}))
    return called
