"""Graphs of dependencies and routes through the public API: declared, checked, started, cut out, replaced, run."""

import asyncio
import functools
import gc
import itertools
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass

import pytest

from millstream import (
    BindingError,
    ConfigError,
    Context,
    ContextKeyError,
    CycleError,
    DeadlockError,
    DependencyFailedError,
    Flow,
    FlowClosedError,
    FlowError,
    NextTask,
    RouteError,
    RunCancelledError,
    RunTimeoutError,
    Status,
    StreamChunk,
    TaskBase,
    TaskCancelledError,
    TaskNotFoundError,
    TaskOutput,
    TaskRunLimitError,
    UnknownRunError,
    current_task,
    fn_hook,
    task,
)
from millstream.graph import Graph
from tests.conftest import WATCHDOG, run_snippet

SUCCESS, FAILED, SKIPPED = Status.SUCCESS, Status.FAILED, Status.SKIPPED
CANCELLED, RUNNING, PENDING = Status.CANCELLED, Status.RUNNING, Status.PENDING


@pytest.fixture
def inline():
    """A flow in the caller's thread, where behaviour cannot depend on the executor."""
    with Flow("inline") as flow:
        yield flow


@pytest.fixture(params=["inline", "thread"])
def either(request):
    """A flow in the caller's thread, and one on threads."""
    with Flow(request.param) as flow:
        yield flow


def states(run):
    """Return the status of every task that the report of a run knows."""
    return {name: row.status for name, row in run.report().tasks.items()}


def outcome(flow, *args, **options):
    """Run to the end; return the results and the status of every task."""
    run = flow.start(*args, **options)
    return run.result(WATCHDOG), states(run)


def problems(flow):
    """Return what ``validate`` has to say, sorted by its text."""
    with pytest.raises(ExceptionGroup) as caught:
        flow.validate()
    return sorted(caught.value.exceptions, key=str)


def wait_for(event):
    """Wait for an event that is sure to come."""
    assert event.wait(WATCHDOG), "the event did not come"


def add_etl(flow):
    """Register an extract, two steps after it and a load, from the last to the first."""
    flow.add_task("load", lambda clean, enrich: [clean, enrich])
    flow.add_task("clean", lambda extract: [row.strip() for row in extract])
    flow.add_task("enrich", lambda extract: len(extract))
    flow.add_task("extract", lambda: [" a", "b "])


ETL = {"load": ("clean", "enrich"), "clean": ("extract",), "enrich": ("extract",), "extract": ()}


# ---- declaring dependencies -------------------------------------------------------------------------


def test_a_diamond_runs_each_task_once_and_gives_its_end(flow):
    """Dependencies inferred from parameters run in order, once each, and the last output comes back."""
    add_etl(flow)

    assert flow.run() == {"load": [["a", "b"], 2]}
    assert {name: row.runs for name, row in flow.report().tasks.items()} == dict.fromkeys(ETL, 1)
    assert flow.run() == {"load": [["a", "b"], 2]}


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_dependencies_are_inferred_in_any_order_of_registration(inline, order):
    """Whatever is registered first, parameters that bear the names of tasks are dependencies."""
    functions = [
        ("extract", lambda: 5),
        ("clean", lambda extract: extract + 1),
        ("enrich", lambda extract: extract * 2),
        ("load", lambda clean, enrich: (clean, enrich)),
    ]
    for place in order:
        inline.add_task(*functions[place])

    assert dict(inline.dependencies) == {functions[place][0]: ETL[functions[place][0]] for place in order}
    assert inline.run() == {"load": (6, 10)}


@task
def fetch():
    """A module-level task."""
    return "raw"


class Parse(TaskBase):
    """A task written as a class, which depends on a module-level one."""

    name = "parse"
    depends_on = (fetch,)

    def run(self, fetch):
        """Parse what was fetched."""
        return f"parsed {fetch}"


def test_depends_on_takes_names_functions_and_tasks(inline):
    """A name, the decorated function, a ``Task``, a ``TaskBase`` object and ``flow[name]`` all name a task."""
    parse = Parse()

    @inline.task("first one")
    def first():
        return 1

    inline.add(fetch)
    inline.add(parse)
    inline.add_task("by name", lambda upstream: upstream, depends_on=["first one"])
    inline.add_task("by function", lambda upstream: upstream, depends_on=[first])
    inline.add_task("by task", lambda upstream: upstream, depends_on=[fetch])
    inline.add_task("by class", lambda upstream: upstream, depends_on=[parse])
    inline.add_task("by item", lambda upstream: upstream, depends_on=[inline["first one"]])
    inline.add_task("mixed", lambda upstream: upstream, depends_on=(first, "parse", "first one", parse))

    assert inline.dependencies["mixed"] == ("first one", "parse")
    assert inline.run() == {
        "by name": {"first one": 1},
        "by function": {"first one": 1},
        "by task": {"fetch": "raw"},
        "by class": {"parse": "parsed raw"},
        "by item": {"first one": 1},
        "mixed": {"first one": 1, "parse": "parsed raw"},
    }


def test_a_function_under_two_names_has_to_be_named(inline):
    """A function that is registered twice, under neither name its own, is refused as a dependency."""

    def load():
        return 1

    inline.add_task("load-a", load)
    inline.add_task("load-b", load)
    inline.add_task("sum", lambda upstream: upstream, depends_on=[load])

    [problem] = problems(inline)
    assert "load-a, load-b" in str(problem)
    assert "sum" in str(problem)
    with pytest.raises(FlowError, match="load-a, load-b"):
        inline.run()

    inline.add_task("load", load)  # now one of them bears its name
    assert inline.dependencies["sum"] == ("load",)


def test_bound_methods_can_be_named(inline):
    """A method is the same dependency, route and target each time it is taken from its object."""

    class Etl:
        def __init__(self, flow):
            flow.add_task("load", self.load, depends_on=[self.extract])
            flow.add_task("extract", self.extract, routes=[self.mail])
            flow.add_task("mail", self.mail)

        def extract(self):
            return 5

        def load(self, extract):
            return f"loads {extract}"

        def mail(self):
            return "mailed"

    etl = Etl(inline)
    assert dict(inline.dependencies) == {"load": ("extract",), "extract": (), "mail": ()}
    assert dict(inline.routes) == {"extract": ("mail",)}
    assert inline.run(targets=[etl.load]) == {"load": "loads 5"}


def test_an_empty_list_turns_inference_off(inline):
    """``depends_on=[]`` means no dependencies, whatever the parameters are called."""
    inline.add_task("rows", lambda: [1, 2])
    inline.add_task("count", lambda rows: len(rows), depends_on=[])

    assert dict(inline.dependencies) == {"rows": (), "count": ()}
    assert inline.run("count", {"rows": "abc"}) == {"count": 3}


def test_a_list_turns_inference_off_too(inline):
    """What ``depends_on`` does not name is no dependency, even if a parameter bears its name."""
    inline.add_task("rows", lambda: [1, 2])
    inline.add_task("scale", lambda: 3)
    inline.add_task("count", lambda scale, rows=(): (scale, rows), depends_on=["scale"])

    assert inline.dependencies["count"] == ("scale",)
    assert inline.run(targets=["count"]) == {"count": (3, ())}


def test_names_with_a_meaning_are_never_inferred(inline):
    """``ctx context inputs payload upstream item index`` mean what they mean, also when tasks are called so."""
    names = ("ctx", "context", "inputs", "payload", "upstream", "item", "index")
    for name in names:
        inline.add_task(name, lambda: 1)
    inline.add_task("start", lambda ctx, context, inputs, payload, upstream: upstream)
    inline.add_task("each", lambda item, index: (item, index), for_each="$ctx.rows")

    assert not any(inline.dependencies.values())
    assert inline.run("start", {"payload": 5}) == {"start": {}}
    assert inline.run("each", context={"rows": ["a", "b"]}) == {"each": [("a", 0), ("b", 1)]}


def test_a_name_with_a_meaning_can_be_a_declared_dependency(inline):
    """What is never inferred can still be named: then the parameter is its output."""
    inline.add_task("item", lambda: "a book")
    inline.add_task("ship", lambda item: f"ships {item}", depends_on=["item"])

    assert inline.run() == {"ship": "ships a book"}


def test_defaults_are_no_dependencies_unless_declared(inline):
    """Only required parameters are inferred; a declared dependency fills a parameter with a default, too."""
    inline.add_task("size", lambda: 5)
    inline.add_task("plain", lambda ctx, size=1: size)
    inline.add_task("declared", lambda size=1: size, depends_on=["size"])

    assert dict(inline.dependencies) == {"size": (), "plain": (), "declared": ("size",)}
    assert inline.run() == {"plain": 1, "declared": 5}


def test_keyword_only_and_positional_only_parameters_are_inferred(inline):
    """It does not matter how a parameter is passed."""

    def total(price, /, amount, *, rate):
        return price * amount * rate

    for name, value in {"price": 2, "amount": 3, "rate": 5}.items():
        inline.add_task(name, lambda value=value: value)
    inline.add_task("total", total)

    assert inline.dependencies["total"] == ("price", "amount", "rate")
    assert inline.run() == {"total": 30}


def test_postponed_and_broken_annotations_hinder_nothing(inline):
    """Annotations as text, also such that nobody can evaluate, leave inference and the context alone."""

    def report(rows: "list[Row]", flow_context: "Context[Settings]", size: "no.such.Type"):  # noqa: F821
        return rows, type(flow_context).__name__, size

    inline.add_task("rows", lambda: [1])
    inline.add_task("size", lambda: 2)
    inline.add_task("report", report)

    assert inline.dependencies["report"] == ("rows", "size")
    assert inline.run() == {"report": ([1], "Context", 2)}


def test_any_callable_can_have_dependencies(inline):
    """Methods, callable objects, partials, classes, wrapped functions and builtins are looked through."""

    class Shop:
        def price(self, goods):
            return len(goods)

        def __call__(self, goods):
            return goods[0]

    class Parcel:
        def __init__(self, goods):
            self.goods = goods

    @functools.wraps(Shop.price)
    def wrapped(*args):
        return Shop.price(*args)

    shop = Shop()
    inline.add_task("goods", lambda: ["a", "b"])
    inline.add_task("method", shop.price)
    inline.add_task("object", shop)
    inline.add_task("partial", functools.partial(lambda rate, goods: rate * len(goods), 3))
    inline.add_task("class", Parcel)
    inline.add_task("wrapped", functools.partial(wrapped, shop))
    inline.add_task("obj", lambda: [1, 2, 3])
    inline.add_task("builtin", len)  # its parameter is called obj

    assert {name for name, needs in inline.dependencies.items() if needs == ("goods",)} == {
        "method", "object", "partial", "class", "wrapped",
    }  # fmt: skip
    results = inline.run()
    assert results.pop("class").goods == ["a", "b"]
    assert results == {"method": 2, "object": "a", "partial": 6, "wrapped": 2, "builtin": 3}


def test_a_parameter_that_bears_its_own_task_s_name_is_no_dependency(inline):
    """A task does not depend on itself by inference."""
    inline.add_task("size", lambda size: size + 1)

    assert dict(inline.dependencies) == {"size": ()}
    assert inline.run("size", {"size": 2}) == {"size": 3}


def test_a_reset_may_forget_the_graph(inline):
    """``reset(keep_tasks=False)`` forgets tasks and edges, ``reset()`` neither."""
    add_etl(inline)
    inline.connect("clean >> enrich")
    inline.reset()
    assert inline.dependencies["enrich"] == ("extract", "clean")
    inline.reset(keep_tasks=False)
    assert not inline.tasks
    assert not inline.dependencies
    add_etl(inline)
    assert dict(inline.dependencies) == ETL


def test_the_registry_may_change_between_runs(inline):
    """A task registered later makes a parameter a dependency; a run under way keeps what it began with."""
    inline.add_task("load", lambda ctx, rows=None: rows)
    assert inline.run() == {"load": None}

    inline.add_task("load", lambda rows: rows, replace=True)
    inline.add_task("rows", lambda: inline.add_task("late", lambda load: "late") or [1])
    assert inline.run() == {"load": [1]}
    assert inline.dependencies["late"] == ("load",)
    assert inline.run() == {"late": "late"}


@pytest.mark.parametrize("bad", ["rows", b"rows", 5, {"rows": 1}, [5], [None], len])
@pytest.mark.parametrize("option", ["depends_on", "routes"])
def test_edges_that_are_no_list_of_names_are_refused(inline, option, bad):
    """A bare name, a mapping or a number is refused where the task is registered, and nothing is registered."""
    with pytest.raises(TypeError, match=f"{option} of task load is a list of names or functions"):
        inline.add_task("load", lambda: 1, **{option: bad})
    assert "load" not in inline.tasks


def test_edges_may_be_given_as_any_iterable(inline):
    """A set, a generator or the keys of a mapping are read once, at registration."""
    inline.add_task("a", lambda: 1)
    inline.add_task("b", lambda: 2)
    inline.add_task("c", lambda upstream: sum(upstream.values()), depends_on=(name for name in "ab"))
    inline.add_task("d", lambda upstream: sum(upstream.values()), depends_on={"a": 0, "b": 0}.keys())

    assert inline.run() == {"c": 3, "d": 3}
    assert inline.run() == {"c": 3, "d": 3}


# ---- connect, >>, & and | ---------------------------------------------------------------------------


def add_steps(flow, names="abcde"):
    """Register tasks that give their names with what came before them."""
    for name in names:
        flow.add_task(name, lambda upstream, name=name: name + "".join(sorted(map(str, upstream.values()))))


def test_connect_takes_text(inline):
    """``>>`` is a dependency, ``&`` is both, and what was declared stays."""
    add_steps(inline, "abcd")
    inline.add_task("e", lambda d, c: (d, c))

    assert inline.connect("a >> (b & c) >> d") is None

    expected = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ("d", "c")}
    assert dict(inline.dependencies) == expected
    assert inline.run() == {"e": ("dbaca", "ca")}


def test_connect_takes_pairs_and_lists(inline):
    """A list of texts and of pairs, several lists at once, and any number of calls add up, each edge once."""
    add_steps(inline)
    inline.connect([("a", "b"), "b >> c", ["c", "d"]], "a >> c", [("a", "b")])
    inline.connect("b >> c")
    inline.connect(pair for pair in [("d", "e")])

    expected = {"a": (), "b": ("a",), "c": ("b", "a"), "d": ("c",), "e": ("d",)}
    assert {name: set(needs) for name, needs in inline.dependencies.items()} == {
        name: set(needs) for name, needs in expected.items()
    }
    assert all(len(needs) == len(set(needs)) for needs in inline.dependencies.values())


def test_connect_takes_one_pair(inline):
    """``flow.connect(("a", "b"))`` is an edge from a to b, never nothing."""
    add_steps(inline, "ab")
    inline.connect(("a", "b"))

    assert dict(inline.dependencies) == {"a": (), "b": ("a",)}


def test_connect_makes_routes(either):
    """``a >> (b | c)`` makes b and c routes of a, which chooses by what it returns."""
    either.add_task("check", lambda amount: "approve" if amount < 100 else "reject")
    either.add_task("approve", lambda: "yes")
    either.add_task("reject", lambda: "no")
    either.connect("check >> (approve | reject)")

    assert dict(either.routes) == {"check": ("approve", "reject")}
    assert not any(either.dependencies.values())
    assert either.run(inputs={"amount": 5}) == {"approve": "yes"}
    assert either.run(inputs={"amount": 500}) == {"reject": "no"}


def test_names_that_are_no_words_are_quoted_or_given_in_pairs(inline):
    """Any task can be connected, whatever it is called."""
    inline.add_task("my task", lambda: 1)
    inline.add_task("a >> b", lambda upstream: upstream)
    inline.add_task("c", lambda upstream: upstream)
    inline.connect([("my task", "a >> b")])
    inline.connect("'my task' >> c")

    assert inline.run() == {"a >> b": {"my task": 1}, "c": {"my task": 1}}


@pytest.mark.parametrize(
    "bad", ["a >>", ">> a", "a & & b", "(a", "a -> b", [("a", "b", "c")], [5], [("a", "")], 5, {"a": "b"}]
)
def test_connect_refuses_what_are_no_edges(inline, bad):
    """Text that is none of the grammar, and pairs that are none, are a ConfigError, and nothing is added."""
    add_steps(inline, "ab")
    with pytest.raises(ConfigError):
        inline.connect(bad)
    assert not any(inline.dependencies.values())


def test_connected_names_are_looked_up_when_the_flow_runs(inline):
    """Edges may be added before their tasks; a name that never comes is an error that tells it."""
    inline.connect("extract >> laod")
    inline.add_task("extract", lambda: 1)

    with pytest.raises(TaskNotFoundError, match="Task laod not found"):
        inline.run()
    inline.add_task("laod", lambda extract: extract)
    assert inline.run() == {"laod": 1}


def test_operators_add_edges(inline):
    """``flow[a] >> (flow[b] & flow[c]) >> flow[d]`` adds the edges of the text of the same form."""
    add_steps(inline)
    a, b, c, d, e = (inline[name] for name in "abcde")

    a >> (b & c) >> d
    (b & c & d) >> e

    assert dict(inline.dependencies) == {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ("b", "c", "d")}
    assert inline.run() == {"e": "ebacadbaca"}


def test_operators_make_routes(inline):
    """``a >> (b | c) >> d`` makes routes of a, and d depends on both."""
    add_steps(inline, "bcd")
    inline.add_task("a", lambda: "c")
    inline["a"] >> (inline["b"] | inline["c"]) >> inline["d"]

    assert dict(inline.routes) == {"a": ("b", "c")}
    assert inline.dependencies["d"] == ("b", "c")
    assert outcome(inline) == ({"d": "dc"}, {"a": SUCCESS, "b": SKIPPED, "c": SUCCESS, "d": SUCCESS})


def test_groups_join_and_fan_out(inline):
    """``(a & b) >> (c & d)`` is every edge from the left to the right."""
    add_steps(inline)
    (inline["a"] & inline["b"]) >> (inline["c"] & inline["d"])

    assert dict(inline.dependencies) == {"a": (), "b": (), "c": ("a", "b"), "d": ("a", "b"), "e": ()}


def test_a_group_of_groups_is_one_group(inline):
    """Groups of one sign are put together with the same sign, on either side."""
    add_steps(inline)
    a, b, c, d, e = (inline[name] for name in "abcde")
    ((a & (b & c)) & d) >> e

    assert inline.dependencies["e"] == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    "text",
    [
        "a >> (b >> c) >> d",
        "(a >> b) >> c",
        "(a >> (b & c)) >> d",
        "a >> ((b & c) | d) >> e",
        "a >> ((b >> c) | d) >> e",
        "a >> (b >> (c & d)) >> e",
        "((a >> b) & (c >> d)) >> e",
    ],
)
def test_operators_say_what_the_text_says(text):
    """A term of tasks makes the edges of the text of the same form, also with chains; in Python >> binds tightest."""
    written, combined = Flow("inline"), Flow("inline")
    for flow in (written, combined):
        add_steps(flow)
    written.connect(text)
    eval(text, {name: combined[name] for name in "abcde"})

    assert written.dependencies == combined.dependencies
    assert written.routes == combined.routes


def test_operators_refuse_what_makes_no_sense(inline):
    """Tasks of another flow, and what is no task, are refused, and add nothing."""
    add_steps(inline, "abc")
    a = inline["a"]
    with Flow("inline") as other:
        add_steps(other, "abc")

        for foreign in (other["b"], other["b"] & other["c"]):
            with pytest.raises(ValueError, match="one flow"):
                a >> foreign
            with pytest.raises(ValueError, match="one flow"):
                a & foreign
        for nothing in ("b", fetch, None, ["b"]):
            with pytest.raises(TypeError, match="flow\\[name\\]"):
                a >> nothing
        with pytest.raises(TaskNotFoundError, match="Task nope not found"):
            inline["nope"]

        assert not any(inline.dependencies.values())
        assert not any(other.dependencies.values())


def test_a_closed_flow_takes_no_edges(inline):
    """After close neither connect nor ``>>`` add anything."""
    add_steps(inline, "ab")
    a, b = inline["a"], inline["b"]
    inline.close()

    with pytest.raises(FlowClosedError):
        inline.connect("a >> b")
    with pytest.raises(FlowClosedError):
        a >> b
    assert not any(inline.dependencies.values())


def test_an_item_of_a_flow_is_its_task(inline):
    """``flow[name]`` is called as the function, and can be registered on another flow, where it is that flow's."""

    @inline.task(timeout=5)
    def double(n):
        return 2 * n

    item = inline["double"]
    assert item(4) == 8
    assert (item.name, item.fn, item.timeout) == ("double", double, 5)
    with Flow("inline") as other:
        other.add(item)
        assert other.run("double", {"n": 2}) == {"double": 4}
        assert other["double"].flow is other


# ---- validate ---------------------------------------------------------------------------------------


def test_validate_is_silent_when_all_is_well(inline):
    """A flow that can run passes, and running nothing is left behind."""
    add_etl(inline)
    assert inline.validate() is None
    with pytest.raises(UnknownRunError):
        inline.report()


def test_validate_tells_every_problem_at_once(inline):
    """Missing tasks, circles, functions of another flow and unfilled parameters come in one group."""
    with Flow("inline") as other:

        @other.task
        def stranger():
            return 1

    inline.add_task("a", lambda c: 1)
    inline.add_task("b", lambda a: 1)
    inline.add_task("c", lambda b: 1)
    inline.add_task("lost", lambda: 1, depends_on=["nope"], routes=["nowhere"])
    inline.add_task("foreign", lambda: 1, depends_on=[stranger])
    inline.add_task("rows", lambda: 1)
    inline.add_task("unfilled", lambda rows, column: 1)

    found = problems(inline)

    assert Counter(map(type, found)) == {TaskNotFoundError: 3, CycleError: 1, BindingError: 1}
    assert {error.name for error in found if isinstance(error, TaskNotFoundError)} == {"nope", "nowhere", "stranger"}
    [unfilled] = [error for error in found if isinstance(error, BindingError)]
    assert (unfilled.task, unfilled.parameter) == ("unfilled", "column")


def test_validate_of_an_empty_flow_says_so(inline):
    """A flow without tasks cannot run, and says how to register one."""
    [problem] = problems(inline)
    assert "has no tasks" in str(problem)
    with pytest.raises(FlowError, match="has no tasks"):
        inline.run()


def test_a_missing_name_comes_with_the_nearest(inline):
    """The error of a misspelt name suggests what was meant, and a note says who wrote it."""
    inline.add_task("extract", lambda: 1)
    inline.add_task("load", lambda: 1, depends_on=["extrct"])

    [problem] = problems(inline)
    assert "Did you mean extract?" in str(problem)
    assert "load" in "".join(problem.__notes__)
    with pytest.raises(TaskNotFoundError, match="Did you mean extract") as caught:
        inline.run()
    assert "load" in "".join(caught.value.__notes__)


def test_a_function_of_another_flow_is_not_found(inline):
    """A function that only another flow knows is a TaskNotFoundError with a hint, a new one for each run."""
    with Flow("inline") as other:

        @other.task
        def extract():
            return 1

    inline.add_task("load", lambda: 1, depends_on=[extract])
    [problem] = problems(inline)
    assert isinstance(problem, TaskNotFoundError)
    assert "another flow" in "".join(problem.__notes__)
    caught = []
    for _ in range(2):
        with pytest.raises(TaskNotFoundError) as each:
            inline.run()
        caught.append((each.value, len(each.traceback), each.value.__notes__))
    assert caught[0][0] is not caught[1][0]
    assert caught[0][1:] == caught[1][1:]


@pytest.mark.parametrize(
    ("edges", "path"),
    [
        ("a >> a", "aa"),
        ("a >> b >> a", "aba"),
        ("e >> a >> b >> c >> a", "abca"),
        ("a >> b >> c >> d >> e >> c", "cdec"),
    ],
)
def test_a_cycle_shows_its_path(inline, edges, path):
    """The path of a CycleError is the circle itself, first member last again, and no way into it."""
    add_steps(inline)
    inline.connect(edges)

    [problem] = problems(inline)
    assert isinstance(problem, CycleError)
    turns = {(*path[n:-1], *path[:n], path[n]) for n in range(len(path) - 1)}
    assert problem.path in turns
    assert " >> ".join(problem.path) in str(problem)
    with pytest.raises(CycleError):
        inline.run("a")
    with pytest.raises(CycleError):
        inline.run()


def test_each_of_several_circles_is_told(inline):
    """Circles that have nothing to do with each other are problems of their own; a run raises both in a group."""
    add_steps(inline)
    inline.connect(["a >> b >> a", "c >> d >> c", "d >> e"])

    assert [type(problem) for problem in problems(inline)] == [CycleError, CycleError]
    with pytest.raises(ExceptionGroup) as caught:
        inline.run()
    assert {frozenset(error.path) for error in caught.value.exceptions} == {frozenset("ab"), frozenset("cd")}


def test_a_run_raises_a_single_problem_as_itself_and_starts_nothing(inline):
    """One missing name is raised as TaskNotFoundError, with no run of it in any report."""
    called = []
    inline.add_task("a", lambda: called.append(1))
    inline.add_task("b", lambda: 1, depends_on=["nope"])

    for start in (inline.run, inline.start, inline.stream):
        with pytest.raises(TaskNotFoundError, match="nope"):
            start("a")
    assert called == []
    with pytest.raises(UnknownRunError):
        inline.report()


def test_a_missing_name_is_told_once(inline):
    """However many edges lead to it and from it."""
    inline.add_task("a", lambda: 1)
    inline.add_task("c", lambda: 1)
    inline.connect("a >> b >> c")

    [problem] = problems(inline)
    assert (type(problem), problem.name) == (TaskNotFoundError, "b")


def test_a_loop_through_routes_is_valid(inline):
    """Routes may lead back; only a circle of dependencies alone is refused."""
    inline.add_task("work", lambda: 1)
    inline.add_task("check", lambda work: [], routes=["work"])
    inline.add_task("again", list, routes=["again"])
    inline.validate()


def test_parameters_that_nothing_fills_are_problems(inline):
    """A required parameter of a dependant that is no dependency is told with what was on offer."""
    inline.add_task("rows", lambda: 1)
    inline.add_task("load", lambda rows, table, *, mode: 1)

    found = problems(inline)
    assert [(error.task, error.parameter) for error in found] == [("load", "mode"), ("load", "table")]
    assert "rows" in str(found[0])
    with pytest.raises(BindingError, match="table"):
        inline.run()


def test_parameters_that_something_may_fill_are_none(inline):
    """Inputs of a start, payloads of routes, defaults, items and the context are no problems."""
    inline.add_task("start", lambda path: [], routes=["routed"])
    inline.add_task("routed", lambda payload, extra: payload)
    inline.add_task("after", lambda first_is_context, start, size=5, *rest, **more: start)
    inline.add_task("each", lambda item, index, payload: item, for_each="start")
    inline.add_task("all", lambda upstream, payload, inputs, ctx: upstream, depends_on=["after", "each"])
    inline.validate()


# ---- starts -----------------------------------------------------------------------------------------


def test_without_a_start_every_root_starts(flow):
    """What depends on nothing and is nobody's route starts, a task without any edge too."""
    flow.add_task("left", lambda: 1)
    flow.add_task("right", list, routes=["routed"])
    flow.add_task("routed", lambda: 3)
    flow.add_task("after", lambda left: left + 1)
    flow.add_task("alone", lambda: "alone")

    assert flow.run() == {"right": [], "after": 2, "alone": "alone"}
    assert flow.report().tasks["routed"].status is SKIPPED


def test_roots_start_in_the_order_of_registration(inline):
    """On one worker the order of starts is that of registration, and dependants follow in it."""
    order = []
    for name in "dbca":
        inline.add_task(name, lambda name=name: order.append(name))
    inline.add_task("z", lambda: order.append("z"), depends_on=["a"])
    inline.add_task("y", lambda: order.append("y"), depends_on=["d"])
    inline.run()

    assert order[:4] == list("dbca")
    assert set(order[4:]) == set("zy")


def test_the_entry_comes_first():
    """A declared entry is the start, also when there are other roots; the rest of the graph stays out."""
    with Flow("inline", entry="clean") as flow:
        flow.add_task("extract", lambda: [1])
        flow.add_task("clean", lambda: [2])
        flow.add_task("load", lambda clean: clean)
        flow.add_task("count", lambda upstream: upstream, depends_on=["extract", "load"])

        assert flow.entry == "clean"
        results, after = outcome(flow)
        assert results == {"count": {"load": [2]}}
        assert after == {"clean": SUCCESS, "load": SUCCESS, "count": SUCCESS}
        assert flow.run("extract") == {"count": {"extract": [1]}}


def test_an_entry_that_is_no_task_is_an_error():
    """The entry is looked up when the flow runs."""
    with Flow("inline", entry="strat") as flow:
        flow.add_task("start", lambda: 1)
        with pytest.raises(TaskNotFoundError, match="Did you mean start"):
            flow.run()


def test_the_only_task_starts_by_itself(inline):
    """Without edges the only task is the start; several are an error that lists them."""
    inline.add_task("load", lambda: 1)
    assert inline.run() == {"load": 1}

    inline.add_task("save", lambda: 2)
    with pytest.raises(FlowError, match="load, save"):
        inline.run()


def test_a_task_that_may_choose_itself_alone_starts_by_itself(inline):
    """Without dependency edges the only task is the start, although it is its own route."""
    inline.add_task(
        "poll", lambda ctx: "poll" if ctx.update("n", lambda n: n + 1, default=0) < 3 else [], routes=["poll"]
    )

    assert inline.run() == {"poll": []}
    assert inline.report().tasks["poll"].runs == 3


def test_a_graph_without_a_root_lists_the_choices(inline):
    """When every task is behind another, a run has to be told where to start."""
    inline.add_task("work", lambda: 1)
    inline.add_task("check", lambda work: [], routes=["work"])

    with pytest.raises(FlowError, match="work, check"):
        inline.run()
    assert inline.run("work") == {"check": []}


def test_a_list_starts_several_tasks_with_the_same_inputs(flow):
    """Each task of the list gets the inputs; a dependant in it waits for the others."""
    flow.add_task("left", lambda n: n + 1)
    flow.add_task("right", lambda n: n + 2)
    flow.add_task("both", lambda left, right, n=0: (left, right, n))

    assert flow.run(["both", "right", "left"], {"n": 1}) == {"both": (2, 3, 1)}
    assert {name: row.runs for name, row in flow.report().tasks.items()} == {"both": 1, "right": 1, "left": 1}


def test_a_start_in_the_middle_waits_for_nothing(either):
    """What the start depends on is no part of the run: inputs stand in, and defaults."""
    either.add_task("extract", lambda: 1)
    either.add_task("clean", lambda extract: extract + 1)
    either.add_task("load", lambda clean, extract=0: (clean, extract))

    assert either.run("clean", {"extract": 5}) == {"load": (6, 0)}
    assert either.run("load", {"clean": 7}) == {"load": (7, 0)}
    assert either.report().tasks.keys() == {"load"}


def test_a_start_whose_dependency_is_no_part_of_the_run_is_refused(inline):
    """A required parameter that neither inputs nor a dependency in this run fill is a BindingError at once."""
    called = []
    inline.add_task("extract", lambda: 1)
    inline.add_task("clean", lambda extract: extract)
    inline.add_task("other", lambda: called.append(1))

    with pytest.raises(BindingError) as caught:
        inline.run(["other", "clean"])
    assert (caught.value.task, caught.value.parameter) == ("clean", "extract")
    assert called == []


def test_a_join_whose_other_branch_is_no_part_of_the_run_is_refused_when_it_is_scheduled(either):
    """A dependant that the run reaches, one required dependency of which it does not, fails with BindingError."""
    either.add_task("left", lambda: 1)
    either.add_task("right", lambda: 2)
    either.add_task("both", lambda left, right: (left, right))

    run = either.start("left")
    with pytest.raises(BindingError) as caught:
        run.result(WATCHDOG)
    assert (caught.value.task, caught.value.parameter) == ("both", "right")
    assert states(run) == {"left": SUCCESS, "both": FAILED}


@pytest.mark.parametrize("bad", [5, b"a", [5], [None]])
def test_a_start_is_a_name_or_a_list_of_names(inline, bad):
    """Anything else is refused."""
    add_steps(inline, "ab")
    with pytest.raises(TypeError, match="starts with the name of a task"):
        inline.run(bad)


def test_an_empty_list_of_starts_is_refused(inline):
    """A run needs something to start with."""
    add_steps(inline, "ab")
    with pytest.raises(ValueError, match="at least one"):
        inline.run([])


def test_an_unknown_start_is_refused_and_the_next_run_works(inline):
    """``Task nope not found``, also in a list, where nothing of it starts."""
    add_etl(inline)
    for start in ("nope", ["extract", "nope"]):
        with pytest.raises(TaskNotFoundError, match="Task nope not found"):
            inline.run(start)
    assert inline.run() == {"load": [["a", "b"], 2]}


# ---- targets and subgraphs --------------------------------------------------------------------------


def add_reports(flow):
    """Register two reports with a common step, and a step that only one of them needs."""
    called = Counter()

    def step(name, fn):
        @functools.wraps(fn)
        def counted(*args, **kwargs):
            called[name] += 1
            return fn(*args, **kwargs)

        flow.add_task(name, counted)

    step("rows", lambda: [1, 2, 3])
    step("total", lambda rows: sum(rows))
    step("mean", lambda rows, total: total / len(rows))
    step("chart", lambda total: f"chart of {total}")
    step("mail", lambda chart, mean: (chart, mean))
    return called


def test_targets_run_what_they_depend_on_and_no_more(flow):
    """Nothing beyond the targets is called; a target is terminal."""
    called = add_reports(flow)

    assert flow.run(targets=["mean"]) == {"mean": 2}
    assert called == {"rows": 1, "total": 1, "mean": 1}
    assert flow.report().tasks.keys() == {"rows", "total", "mean"}
    assert flow.run(targets=["total", "chart"]) == {"chart": "chart of 6"}


def test_targets_may_be_functions_tasks_and_items(inline):
    """A target is named as a dependency is."""

    @inline.task
    def rows():
        return [1]

    inline.add(fetch)
    inline.add_task("both", lambda rows, fetch: 1)

    assert inline.run(targets=[rows]) == {"rows": [1]}
    assert inline.run(targets=[fetch]) == {"fetch": "raw"}
    assert inline.run(targets=[inline["rows"], "fetch"]) == {"rows": [1], "fetch": "raw"}


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (["nope"], TaskNotFoundError),
        (["rows", "nope"], TaskNotFoundError),
        ([fetch], TaskNotFoundError),
        ([], ValueError),
        ("rows", TypeError),
        ([5], TypeError),
    ],
)
def test_bad_targets_are_refused(inline, bad, error):
    """Names of no task, no names at all and no list are refused, by targets and by subgraph, and nothing runs."""
    called = add_reports(inline)
    with pytest.raises(error):
        inline.run(targets=bad)
    with pytest.raises(error):
        inline.subgraph(bad)
    assert not called


def test_targets_and_a_start(inline):
    """A start within the targets starts there; one that they do not depend on is refused."""
    called = add_reports(inline)

    assert inline.run("total", {"rows": [5]}, targets=["chart"]) == {"chart": "chart of 5"}
    assert called == {"total": 1, "chart": 1}
    with pytest.raises(ValueError, match="none of its targets"):
        inline.run("mail", targets=["chart"])
    with pytest.raises(TaskNotFoundError):
        inline.run("nope", targets=["chart"])


def test_targets_overrule_the_entry():
    """With targets the roots among what they need start, also when the entry is not among them."""
    with Flow("inline", entry="mail") as flow:
        add_reports(flow)
        assert flow.run(targets=["total"]) == {"total": 6}


def test_a_graph_without_edges_takes_targets(inline):
    """Targets of independent tasks are simply those tasks."""
    inline.add_task("a", lambda: 1)
    inline.add_task("b", lambda: 2)
    inline.add_task("c", lambda: 3)

    assert inline.run(targets=["c", "a"]) == {"a": 1, "c": 3}


def add_routes(flow, choice):
    """Register a router with two branches, one of which has a further step."""
    flow.add_task("order", lambda: 5)
    flow.add_task("check", lambda order: choice, routes=["approve", "reject"])
    flow.add_task("approve", lambda: "approved")
    flow.add_task("reject", lambda: "rejected")
    flow.add_task("ship", lambda approve: f"ships, {approve}")


@pytest.mark.parametrize("cut", ["targets", "subgraph"])
@pytest.mark.parametrize("choice", ["reject", {"reject": 5}, [NextTask("reject")], NextTask("reject")])
def test_a_route_that_leads_out_may_be_chosen_and_does_not_run(either, choice, cut):
    """A router is needed by its routes; what it chooses outside of the targets is left alone, named or requested."""
    add_routes(either, choice)

    if cut == "targets":
        _, after = outcome(either, targets=["ship"])
    else:
        _, after = outcome(either.subgraph(["ship"]))
    assert after == {"order": SUCCESS, "check": SUCCESS, "approve": SKIPPED, "ship": SKIPPED}


@pytest.mark.parametrize("cut", ["targets", "subgraph"])
def test_a_route_inside_runs_when_it_is_chosen(either, cut):
    """What is chosen inside of the targets runs, with all that is needed."""
    add_routes(either, ["approve", "reject"])

    flow, options = (either, {"targets": ["ship"]}) if cut == "targets" else (either.subgraph(["ship"]), {})
    assert flow.run(**options) == {"ship": "ships, approved"}


def test_a_wrong_choice_in_a_subgraph_is_still_an_error(inline):
    """Only what the whole flow has as routes may be chosen."""
    add_routes(inline, "nope")
    with pytest.raises(RouteError, match="nope"):
        inline.subgraph(["ship"]).run()
    with pytest.raises(RouteError, match="nope"):
        inline.run(targets=["ship"])


def test_a_subgraph_is_a_flow_of_its_own(inline):
    """It has the tasks, edges and options of what the targets need, and the original does not change."""
    add_reports(inline)
    inline.connect("rows >> chart")
    before = dict(inline.dependencies)

    part = inline.subgraph(["chart"])

    assert list(part.tasks) == ["rows", "total", "chart"]
    assert dict(part.dependencies) == {"rows": (), "total": ("rows",), "chart": ("total", "rows")}
    part.validate()
    part.add_task("late", lambda chart: f"late {chart}")
    assert part.run() == {"late": "late chart of 6"}
    assert dict(inline.dependencies) == before
    assert "late" not in inline.tasks
    assert part.name == inline.name


def test_a_subgraph_keeps_options_and_settings():
    """Retries, limits, hooks and on_error are those of the original; an entry that is left out is none."""
    attempts = []

    def flaky(rows):
        attempts.append(rows)
        if len(attempts) < 3:
            raise OSError("not yet")
        return rows

    seen = []
    hook = fn_hook(on_task_success=lambda event: seen.append(event.id))
    with Flow("inline", entry="other", limits={"db": 1}, hooks=[hook], on_error="continue") as flow:
        flow.add_task("rows", lambda: [1], uses=["db"])
        flow.add_task("load", flaky, retries=2)
        flow.add_task("bad", lambda rows: rows / 0)
        flow.add_task("other", lambda: 1)
        with flow.subgraph(["load", "bad"]) as part:
            assert part.entry is None
            assert part.run() == {"load": [1]}
            assert part.report().tasks["load"].attempt == 3
    assert seen == ["rows", "load"]


def test_a_subgraph_of_a_subgraph(inline):
    """Cutting twice is cutting once, routes to outside included."""
    add_routes(inline, "reject")
    part = inline.subgraph(["ship", "reject"]).subgraph(["approve"])

    assert list(part.tasks) == ["order", "check", "approve"]
    part.validate()
    assert outcome(part)[1] == {"order": SUCCESS, "check": SUCCESS, "approve": SKIPPED}


def test_a_subgraph_runs_on_a_pool_that_was_passed_in():
    """The new flow uses the pool of the user, and closing it does not shut that down."""
    with ThreadPoolExecutor(1) as pool, Flow(pool) as flow:
        add_reports(flow)
        with flow.subgraph(["total"]) as part:
            assert part.run() == {"total": 6}
        assert flow.run(targets=["chart"]) == {"chart": "chart of 6"}


# ---- override ---------------------------------------------------------------------------------------


def test_override_puts_constants_and_callables_in_place_of_tasks(flow):
    """Edges and options stay, and the original is as it was."""
    add_etl(flow)
    with flow.override(extract=["x"], enrich=lambda extract: f"{len(extract)} rows") as faked:
        assert faked.run() == {"load": [["x"], "1 rows"]}
        assert dict(faked.dependencies) == ETL
    assert flow.run() == {"load": [["a", "b"], 2]}


@pytest.mark.parametrize("constant", [None, 0, "", (), [], {}, ("a", 1), [1, 2], {"a": 1}, Status.SUCCESS, 1.5])
def test_any_constant_stands_in_for_a_task(inline, constant):
    """Falsy ones, pairs and lists are outputs as they are."""
    inline.add_task("rows", lambda: 1 / 0)
    inline.add_task("load", lambda rows: ("loaded", rows))

    assert inline.override(rows=constant).run() == {"load": ("loaded", constant)}


def test_names_that_are_no_identifiers_are_overridden_by_a_mapping(inline):
    """A mapping comes first, keywords may come with it; a task called ``tasks`` is a keyword like any other."""
    inline.add_task("my rows", lambda: 1)
    inline.add_task("tasks", lambda: 2)
    inline.add_task("load", lambda upstream: upstream, depends_on=["my rows", "tasks"])

    assert inline.override({"my rows": 5}).run() == {"load": {"my rows": 5, "tasks": 2}}
    assert inline.override({"my rows": 5}, tasks=6).run() == {"load": {"my rows": 5, "tasks": 6}}
    assert inline.override().run() == {"load": {"my rows": 1, "tasks": 2}}


def test_unknown_names_are_refused_by_override(inline):
    """A stand-in for no task is a mistake, and the nearest name is told."""
    add_etl(inline)
    with pytest.raises(TaskNotFoundError, match="Did you mean extract"):
        inline.override(extrct=5)
    with pytest.raises(TaskNotFoundError):
        inline.override({"nope": 5})


def test_coroutines_and_generators_stand_in(either):
    """An ``async def`` and a generator work as they do when registered."""
    add_etl(either)

    async def fetched():
        await asyncio.sleep(0)
        return ["async"]

    def streamed(clean, enrich):
        yield clean
        yield enrich
        return "done"

    async def streamed_too(clean, enrich):
        yield clean
        yield enrich

    with either.override(extract=fetched, load=streamed) as faked:
        chunks = [chunk for chunk in faked.stream() if chunk.task_id == "load"]
    assert chunks == [StreamChunk("load", value) for value in (["async"], 1, "done")]
    with either.override(load=streamed_too) as faked:
        chunks = [chunk for chunk in faked.stream() if chunk.task_id == "load"]
    assert chunks == [StreamChunk("load", value) for value in (["a", "b"], 2, None)]


def test_a_synchronous_stand_in_for_a_coroutine(either):
    """What replaces an async task may be a plain function or a constant."""

    @either.task
    async def price():
        raise AssertionError("never called")

    either.add_task("total", lambda price: price * 2)
    assert either.override(price=4).run() == {"total": 8}
    assert either.override(price=lambda: 5).run() == {"total": 10}


def test_tasks_stand_in(inline):
    """A module-level task and a ``TaskBase`` object are the callables that they hold."""
    inline.add_task("fetch", lambda: "slow")
    inline.add_task("parse", lambda fetch: fetch)

    assert inline.override(fetch=fetch).run() == {"parse": "raw"}
    assert inline.override(parse=Parse()).run() == {"parse": "parsed slow"}


def test_a_map_is_overridden_item_by_item_or_as_a_whole(inline):
    """A callable is called for each item; a constant is the whole output."""
    inline.add_task("rows", lambda: [1, 2, 3])
    inline.add_task("double", lambda item: item * 2, for_each="rows")
    inline.add_task("total", lambda double: sum(double))

    assert inline.run() == {"total": 12}
    assert inline.override(double=lambda item, index: item * 100 + index).run() == {"total": 603}
    assert inline.override(double=[7]).run() == {"total": 7}
    assert inline.override(rows=[5]).run() == {"total": 10}


def test_an_overridden_task_keeps_its_options(inline):
    """Retries and routes hold for the stand-in, which may choose by constant."""
    failures = [OSError("first"), OSError("second")]

    def flaky():
        if failures:
            raise failures.pop()
        return 5

    inline.add_task("order", lambda: 1 / 0, retries=2)
    inline.add_task("check", lambda order: [], routes=["approve", "reject"])
    inline.add_task("approve", lambda payload: ("approved", payload))
    inline.add_task("reject", lambda payload: ("rejected", payload))

    assert inline.override(order=flaky, check="approve").run() == {"approve": ("approved", 5)}
    assert inline.override(order=5, check={"reject": "late"}).run() == {"reject": ("rejected", "late")}
    with pytest.raises(RouteError, match="aprove"):
        inline.override(order=5, check="aprove").run()


def test_an_overridden_flow_keeps_its_entry_and_settings():
    """Entry, name and the context that all runs share are those of the original."""
    with Flow("inline", Context({"rate": 3}), name="orders", entry="b") as flow:
        flow.add_task("a", lambda: 1)
        flow.add_task("b", lambda ctx: ctx["rate"])
        faked = flow.override(b=lambda ctx: ctx["rate"] * 2)
        assert (faked.name, faked.entry) == ("orders", "b")
        assert faked.run() == {"b": 6}
        assert flow.run() == {"b": 3}


def test_a_stand_in_that_lacks_a_parameter_is_told(inline):
    """Dependencies are those of the task that is replaced, so another parameter is a BindingError."""
    add_etl(inline)
    faked = inline.override(load=lambda clean, *, table: 1)
    [problem] = problems(faked)
    assert (problem.task, problem.parameter) == ("load", "table")


def test_what_was_overridden_can_be_overridden_and_cut_out(inline):
    """The new flow is a flow like any other."""
    add_etl(inline)
    faked = inline.override(extract=["x "]).override(enrich=7)

    assert faked.run() == {"load": [["x"], 7]}
    assert faked.subgraph(["clean"]).run() == {"clean": ["x"]}
    assert faked.run(targets=["enrich"]) == {"enrich": 7}


def test_a_flow_may_be_overridden_while_it_runs(inline):
    """A task that overrides its own flow gets a flow that runs beside it."""
    inline.add_task("rows", lambda: [1])
    inline.add_task("load", lambda rows: rows)
    inline.add_task("compare", lambda load: (load, inline.override(rows=[2]).run(targets=["load"])["load"]))

    assert inline.run() == {"compare": ([1], [2])}


# ---- what a flow shows of itself --------------------------------------------------------------------


def test_tasks_dependencies_and_routes_are_read_only(inline):
    """They can neither be changed nor set, and are in the order of registration."""
    add_etl(inline)
    inline.add_task("check", lambda load: [], routes=["extract"])

    assert list(inline.tasks) == list(inline.dependencies) == [*ETL, "check"]
    assert dict(inline.dependencies) == {**ETL, "check": ("load",)}
    assert dict(inline.routes) == {"check": ("extract",)}
    for shown in (inline.tasks, inline.dependencies, inline.routes):
        with pytest.raises(TypeError):
            shown["a"] = ()
        with pytest.raises(TypeError):
            del shown["check"]
    for name in ("tasks", "dependencies", "routes", "entry", "name"):
        with pytest.raises(AttributeError):
            setattr(inline, name, {})


def test_what_was_shown_does_not_change_later(inline):
    """Each look is a copy of that moment."""
    inline.add_task("a", lambda: 1)
    tasks, dependencies, routes = inline.tasks, inline.dependencies, inline.routes
    inline.add_task("b", lambda a: 1, routes=["a"])

    assert (list(tasks), dict(dependencies), dict(routes)) == (["a"], {"a": ()}, {})
    assert (list(inline.tasks), dict(inline.dependencies)) == (["a", "b"], {"a": (), "b": ("a",)})


# ---- many runs --------------------------------------------------------------------------------------


def test_run_many_yields_finished_runs_in_order(flow):
    """A run for each item, in the order of the items, each with its own context."""
    flow.add_task("clean", lambda n: n * 10)
    flow.add_task("load", lambda clean: clean + 1)

    runs = list(flow.run_many(({"n": n} for n in range(5)), "clean", max_concurrent=2))

    assert [run.result(0) for run in runs] == [{"load": 10 * n + 1} for n in range(5)]
    assert all(run.status is SUCCESS for run in runs)
    assert [run.context["n"] for run in runs] == list(range(5))
    assert len({run.id for run in runs}) == 5


def test_run_many_takes_contexts_mappings_and_nothing(inline):
    """An item is the inputs of a run, its context, or None; the options are those of every run."""
    inline.add_task("total", lambda ctx: (ctx.get("price", 1), ctx.deps, dict(ctx.metadata)))

    items = [{"price": 2}, None]
    runs = inline.run_many(items, deps="shop", metadata={"batch": 7}, targets=["total"], trace=True)
    assert [run.result() for run in runs] == [
        {"total": (2, "shop", {"batch": 7})},
        {"total": (1, "shop", {"batch": 7})},
    ]

    given = [Context({"price": 3}, deps="a"), Context({"price": 4}, metadata={"b": 1})]
    runs = list(inline.run_many(given))
    assert [run.context for run in runs] == given
    assert [run.result() for run in runs] == [{"total": (3, "a", {})}, {"total": (4, None, {"b": 1})}]


def test_run_many_pulls_items_as_runs_are_taken(either):
    """No more than max_concurrent items are taken ahead of what was handed out."""
    pulled = []

    def items():
        for n in itertools.count():
            pulled.append(n)
            yield {"n": n}

    either.add_task("double", lambda n: 2 * n)
    runs = either.run_many(items(), max_concurrent=3)
    assert pulled == []
    for taken in range(1, 6):
        assert next(runs).result() == {"double": 2 * (taken - 1)}
        assert len(pulled) <= taken + 2
    runs.close()


def test_run_many_runs_max_concurrent_at_once():
    """Three at once meet at a barrier of three, and a fourth never does."""
    barrier = threading.Barrier(3)
    inside, most = Counter(), []

    def meet(n):
        inside["now"] += 1
        most.append(inside["now"])
        barrier.wait(WATCHDOG)
        inside["now"] -= 1
        barrier.wait(WATCHDOG)
        return n

    with Flow("thread", max_workers=4) as flow:
        flow.add_task("meet", meet)
        runs = flow.run_many(({"n": n} for n in range(9)), max_concurrent=3)
        assert [run.result()["meet"] for run in runs] == list(range(9))
    assert max(most) == 3


def test_an_endless_source_costs_constant_memory(inline):
    """Runs that the caller has let go of are gone, with their contexts and outputs."""

    class Big:
        pass

    alive = weakref.WeakSet()

    def make(n):
        big = Big()
        alive.add(big)
        return big

    inline.add_task("make", make)
    known = weakref.WeakSet()
    most = 0
    for number, run in enumerate(inline.run_many(({"n": n} for n in itertools.count()), max_concurrent=2)):
        known.add(run)
        if number % 100 == 99:
            del run
            gc.collect()
            most = max(most, len(known), len(alive))
        if number == 499:
            break
    assert most <= 4


def test_failures_of_run_many_are_raised_by_the_runs(either):
    """A run that failed is handed out like the others; its result raises, and the next ones go on."""

    def load(n):
        if n % 2:
            raise ValueError(f"bad row {n}")
        return n

    either.add_task("load", load)
    runs = list(either.run_many(({"n": n} for n in range(4)), max_concurrent=2))

    assert [run.status for run in runs] == [SUCCESS, FAILED, SUCCESS, FAILED]
    assert runs[2].result() == {"load": 2}
    for _ in range(2):  # as often as it is asked
        with pytest.raises(ValueError, match="bad row 1"):
            runs[1].result()


def test_leaving_run_many_early_cancels_what_is_under_way():
    """Runs that were started and not handed out are cancelled, and have ended when the loop has been left."""
    began, stopped = threading.Semaphore(0), threading.Semaphore(0)

    def work(n):
        if n == 0:
            return n
        began.release()
        try:
            while True:
                current_task().raise_if_cancelled()
        finally:
            stopped.release()

    ended = []
    hook = fn_hook(on_run_end=lambda event: ended.append(event.status))
    with Flow("thread", max_workers=4, hooks=[hook]) as flow:
        flow.add_task("work", work)
        for run in flow.run_many(({"n": n} for n in itertools.count()), max_concurrent=3):
            assert run.result() == {"work": 0}
            assert began.acquire(timeout=WATCHDOG)
            assert began.acquire(timeout=WATCHDOG)
            break
        del run
        gc.collect()
        assert stopped.acquire(timeout=WATCHDOG)
        assert stopped.acquire(timeout=WATCHDOG)
        assert flow.report().status is CANCELLED
    assert Counter(ended) == {SUCCESS: 1, CANCELLED: 2}


def test_a_source_that_fails_ends_run_many(inline):
    """What the source raises comes out of the loop after the runs before it."""

    def items():
        yield {"n": 1}
        raise OSError("the source is gone")

    inline.add_task("load", lambda n: n)
    runs = inline.run_many(items())
    assert next(runs).result() == {"load": 1}
    with pytest.raises(OSError, match="the source is gone"):
        next(runs)


@pytest.mark.parametrize("bad", [5, "n", ["n"], [("n", 1)]])
def test_items_that_are_no_inputs_are_refused(inline, bad):
    """An item is a mapping, a Context or None."""
    inline.add_task("load", lambda: 1)
    with pytest.raises(TypeError, match="takes mappings of inputs, or contexts"):
        list(inline.run_many([bad]))


@pytest.mark.parametrize(("bad", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_bad_max_concurrent_is_refused(inline, bad, error):
    """It is a whole number from 1 on, and anything else is refused at once, before the first item is asked for."""
    inline.add_task("load", lambda: 1)
    with pytest.raises(error, match="max_concurrent"):
        inline.run_many([None], max_concurrent=bad)


def test_run_many_of_an_empty_source_runs_nothing(inline):
    """No items, no runs."""
    inline.add_task("load", lambda: 1)
    assert list(inline.run_many([])) == []


def test_run_many_raises_what_a_run_would(inline):
    """A wrong start, option or input is raised from the loop."""
    inline.add_task("load", lambda *, n: n)
    with pytest.raises(TaskNotFoundError):
        list(inline.run_many([None], "nope"))
    with pytest.raises(BindingError):
        list(inline.run_many([{"m": 1}]))
    with pytest.raises(TypeError, match="no option"):
        list(inline.run_many([None], timout=5))


@pytest.mark.parametrize("kind", ["inline", "thread", "asyncio"])
def test_arun_many_takes_plain_and_asynchronous_sources(kind):
    """The asynchronous twin gives the same, for both kinds of iterables."""

    async def source():
        for n in range(4):
            await asyncio.sleep(0)
            yield {"n": n}

    async def main(flow):
        streamed = [run.result() async for run in flow.arun_many(source(), "double", max_concurrent=2)]
        plain = [await run async for run in flow.arun_many(({"n": n} for n in range(4)), "double")]
        return streamed, plain

    with Flow(kind) as flow:

        @flow.task
        async def double(n):
            await asyncio.sleep(0)
            return 2 * n

        flow.add_task("load", lambda double: double)
        expected = [{"load": 2 * n} for n in range(4)]
        assert asyncio.run(main(flow)) == (expected, expected)


def test_leaving_arun_many_early_cancels_what_is_under_way():
    """Closing the asynchronous generator cancels and awaits the other runs."""

    async def main():
        stopped = 0
        began = asyncio.Semaphore(0)

        async def work(n):
            nonlocal stopped
            if n == 0:
                return n
            began.release()
            try:
                await asyncio.sleep(WATCHDOG)
            finally:
                stopped += 1
            return None

        async with Flow("asyncio") as flow:
            flow.add_task("work", work)
            async with aclosing(flow.arun_many(({"n": n} for n in itertools.count()), max_concurrent=3)) as runs:
                async for run in runs:
                    assert run.result() == {"work": 0}
                    await began.acquire()
                    await began.acquire()
                    break
            return stopped

    assert asyncio.run(main()) == 2


# ---- choosing what comes next -----------------------------------------------------------------------


@pytest.mark.parametrize("requests", [[], (), iter(())], ids=["list", "tuple", "iterator"])
def test_an_empty_choice_stops_and_that_spreads(either, requests):
    """A task that asks for nothing replaces its static successors: they and what is behind them are SKIPPED."""
    either.add_task("check", lambda: TaskOutput("checked", requests))
    either.add_task("load", lambda check: 1)
    either.add_task("mail", lambda load: 1)

    assert outcome(either) == ({"check": "checked"}, {"check": SUCCESS, "load": SKIPPED, "mail": SKIPPED})
    assert either.report().status is SUCCESS
    row = either.report().tasks["mail"]
    assert (row.runs, row.attempt, row.error, row.result, row.started_at) == (0, 0, None, None, None)


def test_none_follows_the_static_edges(either):
    """``TaskOutput(value)`` and a plain value leave the graph as it is."""
    either.add_task("plain", lambda: 1)
    either.add_task("output", lambda plain: TaskOutput(plain + 1))
    either.add_task("none", lambda output: TaskOutput(output + 1, None))
    either.add_task("last", lambda none: none + 1)

    assert either.run() == {"last": 4}


@pytest.mark.parametrize(
    "answer",
    [NextTask("repair"), [NextTask("repair")], TaskOutput(None, [NextTask("repair")])],
    ids=["request", "list", "output"],
)
def test_a_choice_replaces_the_static_successors(flow, answer):
    """What a task asks for runs, and what only its edge leads to does not."""
    flow.add_task("check", lambda: answer)
    flow.add_task("load", lambda check: "loaded")
    flow.add_task("report", lambda load: "reported")
    flow.add_task("repair", lambda: "repaired", depends_on=["nothing"])
    flow.add_task("nothing", lambda ctx: 1 / 0)

    results, after = outcome(flow, "check")
    assert results == {"repair": "repaired"}
    assert after == {"check": SUCCESS, "repair": SUCCESS, "load": SKIPPED, "report": SKIPPED}


def test_a_choice_may_ask_for_one_of_the_static_successors(either):
    """Asked for by name a successor runs once, with the output of the one who asked; the other is skipped."""
    either.add_task("check", lambda: TaskOutput(5, [NextTask("load", {"table": "orders"})]))
    either.add_task("load", lambda check, table="none": (check, table))
    either.add_task("mail", lambda check: check)

    assert outcome(either) == (
        {"load": (5, "orders")},
        {"check": SUCCESS, "load": SUCCESS, "mail": SKIPPED},
    )
    assert either.report().tasks["load"].runs == 1


def test_a_task_behind_several_branches_runs_when_one_of_them_ran(flow):
    """A join gets None for the branch that was skipped, and upstream leaves it out."""
    flow.add_task("check", lambda: "left", routes=["left", "right"])
    flow.add_task("left", lambda: 1)
    flow.add_task("right", lambda: 2)
    flow.add_task("behind", lambda right: right)
    flow.add_task("join", lambda left, behind, upstream: (left, behind, upstream))

    assert outcome(flow) == (
        {"join": (1, None, {"left": 1})},
        {"check": SUCCESS, "left": SUCCESS, "right": SKIPPED, "behind": SKIPPED, "join": SUCCESS},
    )


def test_a_join_behind_branches_none_of_which_ran_is_skipped(either):
    """When nothing leads to it any more a join is skipped, however far away the choice was."""
    either.add_task("check", list, routes=["left", "right"])
    either.add_task("left", lambda: 1)
    either.add_task("right", lambda: 2)
    either.add_task("join", lambda left, right: 1)
    either.add_task("other", lambda: 5)
    either.add_task("end", lambda join, other: (join, other))

    assert outcome(either) == (
        {"check": [], "end": (None, 5)},
        {"check": SUCCESS, "left": SKIPPED, "right": SKIPPED, "join": SKIPPED, "other": SUCCESS, "end": SUCCESS},
    )


def test_a_skip_waits_until_nothing_can_choose_any_more():
    """A branch that was not chosen may still be asked for by what was; only then it is decided."""
    with Flow("thread") as flow:
        seen = []

        def left():
            seen.append(states(flow)["right"])
            return NextTask("right")

        flow.add_task("check", lambda: "left", routes=["left", "right"])
        flow.add_task("left", left)
        flow.add_task("right", lambda: "right")
        flow.add_task("join", lambda right: f"join {right}")

        assert flow.run() == {"join": "join right"}
        assert states(flow) == dict.fromkeys(["check", "left", "right", "join"], SUCCESS)


def test_a_later_request_runs_what_was_skipped(either):
    """What was not chosen runs when it is asked for after it was decided, and what is behind it follows."""
    either.add_task("check", lambda: "left", routes=["left", "right"])
    either.add_task("left", lambda: 1)
    either.add_task("last", lambda left: NextTask("right"))
    either.add_task("right", lambda: "right")
    either.add_task("behind", lambda right: f"behind {right}")

    results, after = outcome(either)
    assert results == {"behind": "behind right"}
    assert after == dict.fromkeys(["check", "left", "last", "right", "behind"], SUCCESS)


def test_what_depends_on_a_skipped_task_can_be_asked_for(either):
    """It gets None for the dependency that did not run."""
    either.add_task("check", lambda: "left", routes=["left", "right"])
    either.add_task("left", lambda: NextTask("behind"))
    either.add_task("right", lambda: 1)
    either.add_task("behind", lambda right, upstream: (right, upstream))

    assert outcome(either)[0] == {"behind": (None, {})}


def test_a_requested_task_waits_for_dependencies_that_are_under_way():
    """A request for a task with dependencies waits for those that are pending or running in this run."""
    release, order = threading.Event(), []

    def slow():
        wait_for(release)
        order.append("slow")
        return "slow"

    with Flow("thread") as flow:
        flow.add_task("slow", slow)
        flow.add_task("unused", lambda: 1 / 0)
        flow.add_task("ask", lambda: [NextTask("load", {"n": 1}), NextTask("free")])
        flow.add_task("free", lambda: release.set() or order.append("free"))
        flow.add_task("load", lambda slow, n, unused=None: order.append("load") or (slow, n, unused))
        flow.connect("unused >> load")

        results = flow.run(["slow", "ask"])
        assert results == {"free": None, "load": ("slow", 1, None)}
        assert order == ["free", "slow", "load"]
        assert flow.report().tasks["load"].runs == 1


def test_a_requested_task_waits_for_a_dependency_of_its_own_list(either):
    """A list that asks for a task and for what it depends on starts them in the right order."""
    either.add_task("ask", lambda: [NextTask("load"), NextTask("rows")])
    either.add_task("rows", lambda: [1])
    either.add_task("load", lambda rows: rows)

    assert either.run("ask") == {"load": [1]}
    assert either.report().tasks["load"].runs == 1


def test_a_request_whose_dependency_is_no_part_of_the_run_fails_who_asked(either):
    """A required parameter that nothing fills in this run is a BindingError, and nothing of the list starts."""
    called = []
    either.add_task("ask", lambda: [NextTask("other"), NextTask("load")])
    either.add_task("other", lambda: called.append(1))
    either.add_task("rows", lambda: [1])
    either.add_task("load", lambda rows: rows)

    with pytest.raises(BindingError) as caught:
        either.run("ask")
    assert (caught.value.task, caught.value.parameter) == ("load", "rows")
    assert called == []


def test_dependants_of_spawned_runs_wait_for_all_of_them(flow):
    """A task that was spawned many times is one dependency: its dependant runs once, with the newest output."""
    flow.add_task("split", lambda: [NextTask("part", {"n": n}, spawn_another=True) for n in range(5)])
    flow.add_task("part", lambda n: n)
    flow.add_task("merge", lambda part, ctx: part)

    results = flow.run("split")
    assert results.keys() == {"merge"}
    assert results["merge"] in range(5)
    assert {name: row.runs for name, row in flow.report().tasks.items()} == {"split": 1, "part": 5, "merge": 1}


def test_a_dependant_of_spawned_runs_sees_the_newest_output():
    """The newest output is that of the run which ended last, whatever its number is."""
    with Flow("thread", max_workers=2) as flow:
        second = threading.Event()

        def part(n):
            if n == 0:
                wait_for(second)
            else:
                second.set()
            return n

        flow.add_task("split", lambda: [NextTask("part", {"n": n}, spawn_another=True) for n in range(2)])
        flow.add_task("part", part)
        flow.add_task("merge", lambda part: part)
        run = flow.start("split")
        merged = run.result(WATCHDOG)["merge"]
        assert merged == run.context["part"]


def test_dependants_wait_for_a_task_that_asks_for_itself(flow):
    """As long as a task goes on with itself its dependants wait; they run once, when it has stopped."""
    flow.add_task("poll", lambda ctx: NextTask("poll") if ctx.update("n", lambda n: n + 1, default=0) < 5 else ctx["n"])
    flow.add_task("load", lambda poll: f"after {poll}")

    assert flow.run() == {"load": "after 5"}
    assert {name: row.runs for name, row in flow.report().tasks.items()} == {"poll": 5, "load": 1}


def test_one_spawned_run_that_follows_its_edges_is_enough(flow):
    """When some runs of a task stopped and others did not, what is behind them runs."""
    flow.add_task("split", lambda: [NextTask("part", {"n": n}, spawn_another=True) for n in range(4)])
    flow.add_task("part", lambda n: TaskOutput(n, None if n == 2 else []))
    flow.add_task("merge", lambda part: "merged")

    results, after = outcome(flow, "split")
    assert results == {"part": 0, "part#2": 1, "part#4": 3, "merge": "merged"}
    assert after == dict.fromkeys(["split", "part", "merge"], SUCCESS)
    assert flow.report().tasks["merge"].runs == 1


def test_each_wave_follows_the_static_edges_anew(either):
    """A task that is asked for again later leads to its successors again, with the newest outputs."""
    either.add_task("base", lambda: 100)
    either.add_task("work", lambda n: n)
    either.add_task("total", lambda base, work: base + work)
    either.add_task("again", lambda total: NextTask("work", {"n": total}) if total < 400 else None)

    results = either.run(["base", "work"], {"n": 1})
    assert results == {"again": None}
    assert either.context["total"] == 401
    assert either.report().tasks["total"].runs == 4
    assert either.report().tasks["base"].runs == 1


def test_a_loop_through_routes_goes_on_until_nothing_is_chosen(flow):
    """A route that leads back runs what is behind it again, under the bare name."""
    flow.add_task("work", lambda ctx: ctx.update("n", lambda n: n + 1, default=0))
    flow.add_task("check", lambda work: "work" if work < 5 else "done", routes=["work", "done"])
    flow.add_task("done", lambda payload, ctx: (payload, ctx["n"]))

    results, after = outcome(flow, "work")
    assert results == {"done": (5, 5)}
    assert after == {"work": SUCCESS, "check": SUCCESS, "done": SUCCESS}
    assert {name: row.runs for name, row in flow.report().tasks.items()} == {"work": 5, "check": 5, "done": 1}


def test_a_loop_closed_by_a_dependency_passes_the_output_on():
    """A dependency that leads back is not waited for at first; once it has run, its output arrives."""
    with Flow("inline", max_task_runs=50) as flow:
        flow.add_task("guess", lambda measure=0: "measure" if measure < 3 else "done", routes=["measure", "done"])
        flow.add_task("measure", lambda ctx: ctx.update("n", lambda n: n + 1, default=0))
        flow.add_task("done", lambda ctx: ctx["n"])
        flow.connect("measure >> guess")

        assert flow.run("measure") == {"done": 3}
        assert flow.run("guess") == {"done": 3}


def test_a_loop_that_never_ends_meets_the_limit():
    """``max_task_runs`` raises, and its error names the task."""
    with Flow("inline", max_task_runs=100) as flow:
        flow.add_task("work", lambda: 1)
        flow.add_task("check", lambda work: "work", routes=["work"])
        with pytest.raises(TaskRunLimitError, match="100"):
            flow.run("work")
        assert sum(row.runs for row in flow.report().tasks.values()) <= 101


def test_a_static_successor_beyond_the_limit_is_refused():
    """Task runs that come along edges count for ``max_task_runs``."""
    called = []
    with Flow("inline", max_task_runs=2) as flow:
        flow.add_task("a", lambda: 1)
        flow.add_task("b", lambda a: 1)
        flow.add_task("c", lambda b: called.append(1))
        with pytest.raises(TaskRunLimitError) as caught:
            flow.run()
    assert (caught.value.limit, caught.value.task) == (2, "c")
    assert called == []


def test_a_join_waits_for_static_successors(flow):
    """A dynamic join waits for what the edges of its siblings lead to, however far."""
    order = []
    flow.add_task("split", lambda: [NextTask("left"), NextTask("right"), NextTask("merge", join=True)])
    flow.add_task("left", lambda: 1)
    flow.add_task("after", lambda left: left + 1)
    flow.add_task("later", lambda after: order.append("later"))
    flow.add_task("right", lambda: 2)
    flow.add_task("merge", lambda upstream: order.append("merge") or upstream)

    assert flow.run("split") == {"later": None, "merge": [1, 2]}
    assert order == ["later", "merge"]


def test_nested_joins_around_static_successors(flow):
    """Joins nest around what static edges lead to as around anything else."""
    order = []

    def note(name, value=None):
        order.append(name)
        return value

    flow.add_task("outer", lambda: [NextTask("inner"), NextTask("other"), NextTask("end", join=True)])
    flow.add_task("inner", lambda: [NextTask("part"), NextTask("middle", join=True)])
    flow.add_task("part", lambda: note("part", 1))
    flow.add_task("after part", lambda payload: note("after part"), depends_on=["part"])
    flow.add_task("middle", lambda upstream: note("middle", upstream))
    flow.add_task("after middle", lambda payload: note("after middle"), depends_on=["middle"])
    flow.add_task("other", lambda: 5)
    flow.add_task("end", lambda upstream: note("end", upstream))

    results = flow.run("outer")
    assert order == ["part", "after part", "middle", "after middle", "end"]
    assert results["end"] == [None, 5]


def test_a_join_of_a_skipped_branch_waits_no_longer(either):
    """What a sibling's choice skips holds no join up."""
    either.add_task("split", lambda: [NextTask("check"), NextTask("merge", join=True)])
    either.add_task("check", lambda: TaskOutput("nothing", []))
    either.add_task("load", lambda check: 1 / 0)
    either.add_task("merge", lambda upstream: upstream)

    results, after = outcome(either, "split")
    assert results["merge"] == ["nothing"]
    assert after == {"split": SUCCESS, "check": SUCCESS, "merge": SUCCESS, "load": SKIPPED}


def test_a_join_s_parameters_are_filled_by_dependencies_too(either):
    """A join that depends on a task of its list gets the list as upstream and the output by name."""
    either.add_task("split", lambda: [NextTask("rows"), NextTask("size"), NextTask("merge", join=True)])
    either.add_task("rows", lambda: [1])
    either.add_task("size", lambda: 2)
    either.add_task("merge", lambda rows, upstream: (rows, upstream))

    assert either.run("split") == {"merge": ([1], [[1], 2])}
    assert either.report().tasks["merge"].runs == 1


@pytest.mark.parametrize("lazy", [False, True])
def test_a_join_of_a_growing_list_waits_for_static_successors(flow, lazy):
    """A generator task, and a list that is pulled, may ask for the join first: it still comes last."""
    order = []

    def requests():
        yield NextTask("merge", join=True)
        yield from (NextTask("part", {"n": n}, spawn_another=True) for n in range(3))

    flow.add_task("split", (lambda: TaskOutput(None, requests())) if lazy else requests)
    flow.add_task("part", lambda n: n)
    flow.add_task("after", lambda part: order.append("after"))
    flow.add_task("merge", lambda upstream: order.append("merge") or upstream)

    assert flow.run("split") == {"after": None, "merge": [0, 1, 2]}
    assert order[-1] == "merge"
    assert set(order[:-1]) == {"after"}


def test_a_join_leads_to_its_static_successors(either):
    """A join follows its edges as any task does."""
    either.add_task(
        "split",
        lambda: [NextTask("part", {"n": n}, spawn_another=True) for n in (1, 2)] + [NextTask("merge", join=True)],
    )
    either.add_task("part", lambda n: n)
    either.add_task("merge", lambda upstream: sum(upstream))
    either.add_task("report", lambda merge: f"total {merge}")

    assert either.run("split") == {"report": "total 3"}


def test_a_generator_that_yields_values_follows_its_edges(flow):
    """Interim values are no choice: what depends on the generator runs, with what it returned."""

    def read():
        yield "first"
        yield "second"
        return "both"

    flow.add_task("read", read)
    flow.add_task("load", lambda read: f"loads {read}")

    assert list(flow.stream()) == [
        StreamChunk("read", "first"),
        StreamChunk("read", "second"),
        StreamChunk("read", "both"),
        StreamChunk("load", "loads both"),
    ]


def test_a_generator_that_yields_requests_has_chosen(flow):
    """A generator task that asked for anything replaces its static successors."""

    def read():
        for n in range(3):
            yield NextTask("part", {"n": n}, spawn_another=True)
        return "read"

    flow.add_task("read", read)
    flow.add_task("part", lambda n: n)
    flow.add_task("load", lambda read: 1 / 0)

    results, after = outcome(flow, "read")
    assert results == {"part": 0, "part#2": 1, "part#3": 2}
    assert after == {"read": SUCCESS, "part": SUCCESS, "load": SKIPPED}


def test_a_coroutine_and_an_async_generator_have_edges(either):
    """``async def`` tasks depend, choose and follow like all others."""

    @either.task
    async def fetch():
        await asyncio.sleep(0)
        return 1

    @either.task
    async def parse(fetch):
        yield fetch
        yield NextTask("load", {"rows": fetch + 1})

    either.add_task("load", lambda rows: rows)
    either.add_task("never", lambda parse: 1 / 0)

    results, after = outcome(either, "fetch")
    assert results == {"load": 2}
    assert after["never"] is SKIPPED


def test_a_lazily_pulled_list_is_a_choice(flow):
    """An iterator of requests replaces the static successors, which are skipped."""
    flow.add_task(
        "split", lambda: TaskOutput("split", (NextTask("part", {"n": n}, spawn_another=True) for n in range(10)))
    )
    flow.add_task("part", lambda n: n)
    flow.add_task("merge", lambda split: 1 / 0)

    results, after = outcome(flow, "split")
    assert sorted(results.values()) == list(range(10))
    assert after == {"split": SUCCESS, "part": SUCCESS, "merge": SKIPPED}


def test_what_a_lazily_pulled_list_asks_for_follows_its_edges(flow):
    """Successors of what was pulled run after it; the newest output is the last that they get."""
    flow.add_task(
        "split", lambda: TaskOutput(None, iter([NextTask("part", {"n": n}, spawn_another=True) for n in range(10)]))
    )
    flow.add_task("part", lambda n: n)
    flow.add_task("merge", lambda part: part)

    results, after = outcome(flow, "split")
    assert results.keys() == {"merge"}
    assert after == dict.fromkeys(["split", "part", "merge"], SUCCESS)
    assert flow.report().tasks["part"].runs == 10


def test_tasks_without_edges_are_requested_as_ever(flow):
    """In a flow with a graph, dynamic chains and fan-outs beside it work unchanged."""
    flow.add_task("rows", lambda: 3)
    flow.add_task("split", lambda rows: [NextTask("part", {"n": n}, spawn_another=True) for n in range(rows)])
    flow.add_task("part", lambda n: NextTask("last", {"n": n}, spawn_another=True))
    flow.add_task("last", lambda n: n * n)

    assert sorted(flow.run("rows").values()) == [0, 1, 4]


def test_unknown_ids_fail_their_task_and_nothing_of_the_list_runs(either):
    """Also in a graph: ``Task nope not found``, and what the task leads to is not run."""
    called = []
    either.add_task("ask", lambda: [NextTask("other"), NextTask("nope")])
    either.add_task("other", lambda: called.append(1))
    either.add_task("after", lambda ask: called.append(2))

    run = either.start("ask")
    with pytest.raises(TaskNotFoundError, match="Task nope not found"):
        run.result(WATCHDOG)
    assert called == []
    assert states(run) == {"ask": FAILED, "after": CANCELLED}


def test_a_failure_in_a_graph_cancels_what_had_not_begun(flow):
    """Under ``on_error="raise"`` the failure is raised as itself, and nothing starts after it."""
    called = []

    def clean(extract):
        raise ValueError("bad row")

    flow.add_task("extract", lambda: 1)
    flow.add_task("clean", clean)
    flow.add_task("load", lambda clean: called.append(1))
    flow.add_task("mail", lambda load: called.append(1))

    run = flow.start()
    with pytest.raises(ValueError, match="bad row"):
        run.result(WATCHDOG)
    assert states(run) == {"extract": SUCCESS, "clean": FAILED, "load": CANCELLED, "mail": CANCELLED}
    assert called == []


def test_a_failed_dependency_is_passed_on_as_a_policy_says():
    """With ``on_error="continue"`` dependants fail, are skipped or run anyway, and those behind them in turn."""

    def clean(extract):
        raise ValueError("bad row")

    with Flow("inline", on_error="continue") as flow:
        flow.add_task("extract", lambda: 1)
        flow.add_task("clean", clean)
        flow.add_task("fails", lambda clean: 1)
        flow.add_task("skips", lambda clean: 1, on_dep_failure="skip")
        flow.add_task("runs", lambda clean, upstream: (clean, upstream), on_dep_failure="run-anyway")
        flow.add_task("default", lambda extract, clean="none": (extract, clean), on_dep_failure="run-anyway")
        flow.connect("clean >> default")
        flow.connect("extract >> default")
        flow.add_task("behind", lambda skips: 1)
        flow.add_task("far", lambda behind: behind, on_dep_failure="run-anyway")
        results, after = outcome(flow)

        assert results == {"runs": (None, {}), "default": (1, "none"), "far": None}
        assert after == {
            "extract": SUCCESS, "clean": FAILED, "fails": FAILED, "skips": SKIPPED, "runs": SUCCESS,
            "default": SUCCESS, "behind": FAILED, "far": SUCCESS,
        }  # fmt: skip
        report = flow.report()
        assert report.status is FAILED
        assert report.tasks["fails"].error.type == f"{DependencyFailedError.__module__}.DependencyFailedError"
        assert "clean" in report.tasks["fails"].error.message
        assert (report.tasks["fails"].runs, report.tasks["skips"].runs) == (0, 0)


@pytest.mark.parametrize(("policy", "state"), [("fail", FAILED), ("skip", SKIPPED), ("run-anyway", SUCCESS)])
def test_a_requested_task_whose_dependency_fails_meanwhile(policy, state):
    """A request that waited for a dependency ends by its policy; what was skipped has no run."""
    release = threading.Event()

    def rows():
        wait_for(release)
        raise OSError("gone")

    with Flow("thread", on_error="continue") as flow:
        flow.add_task("rows", rows)
        flow.add_task("ask", lambda: [NextTask("load"), NextTask("open")])
        flow.add_task("open", release.set)
        flow.add_task("load", lambda rows: rows, on_dep_failure=policy)
        run = flow.start(["rows", "ask"])
        results = run.result(WATCHDOG)

        assert states(run) == {"rows": FAILED, "ask": SUCCESS, "open": SUCCESS, "load": state}
        assert results == ({"open": None} if policy != "run-anyway" else {"open": None, "load": None})
        if policy == "skip":
            assert run.report().tasks["load"].runs == 0


def test_routes_send_payloads(flow):
    """A name takes the router's own payload along, a mapping sends its values, also falsy ones."""
    flow.add_task("order", lambda: {"amount": 5})
    flow.add_task("check", lambda order: ["keep", "count"], routes=["keep", "count"])
    flow.add_task("keep", lambda payload: payload)
    flow.add_task("count", lambda: {"zero": 0, "none": None, "pair": (1, 2)}, routes=["zero", "none", "pair"])
    for name in ("zero", "none", "pair"):
        flow.add_task(name, lambda payload: payload)

    assert flow.run() == {"keep": {"amount": 5}, "zero": 0, "none": None, "pair": (1, 2)}


@pytest.mark.parametrize("answer", ["aprove", ["approve", "aprove"], {"aprove": 1}, NextTask("other"), ["approve", 5]])
def test_a_choice_that_is_no_route_is_refused(either, answer):
    """A RouteError names it, nothing of the choice runs, and the static successors do not either."""
    called = []
    either.add_task("check", lambda: answer, routes=["approve", "reject"])
    for name in ("approve", "reject", "other"):
        either.add_task(name, lambda: called.append(1))

    with pytest.raises(RouteError) as caught:
        either.run("check")
    assert caught.value.task == "check"
    assert caught.value.routes == ("approve", "reject")
    assert called == []


@pytest.mark.parametrize("answer", [None, 42, 1.5, TaskOutput(None), object()], ids=type)
def test_a_router_that_chooses_nothing_follows_its_edges(either, answer):
    """Outputs that name nothing choose no route; the static successors run."""
    either.add_task("check", lambda: answer, routes=["approve"])
    either.add_task("approve", lambda: 1 / 0)
    either.add_task("log", lambda check: "logged")

    assert outcome(either) == ({"log": "logged"}, {"check": SUCCESS, "approve": SKIPPED, "log": SUCCESS})


@pytest.mark.parametrize(
    "answer", ["approve", ["approve"], ("approve",), {"approve": None}, TaskOutput("approve"), [NextTask("approve")]]
)
def test_a_choice_of_a_router_replaces_its_static_successors(either, answer):
    """However a route is chosen, what the router's edges lead to is skipped."""
    either.add_task("check", lambda: answer, routes=["approve", "reject"])
    either.add_task("approve", lambda: "approved")
    either.add_task("reject", lambda: 1 / 0)
    either.add_task("log", lambda check: 1 / 0)

    results, after = outcome(either)
    assert results == {"approve": "approved"}
    assert after == {"check": SUCCESS, "approve": SUCCESS, "reject": SKIPPED, "log": SKIPPED}


def test_a_route_with_dependencies_waits_for_them(either):
    """A chosen task still needs what it depends on; not chosen, its dependencies do not choose it."""
    either.add_task("check", lambda approve: "ship" if approve else [], routes=["ship"], depends_on=[])
    either.add_task("address", lambda: "here")
    either.add_task("ship", lambda address: f"ships {address}")

    results, _ = outcome(either, ["check", "address"], {"approve": True})
    assert results == {"ship": "ships here"}
    results, after = outcome(either, ["check", "address"], {"approve": False})
    assert after == {"check": SUCCESS, "address": SUCCESS, "ship": SKIPPED}


def test_two_routers_may_choose_one_task(either):
    """A task that several routers may choose runs once when both do, and when only one does."""
    either.add_task("first", lambda one: ["ship"] if one else [], routes=["ship"])
    either.add_task("second", lambda two: ["ship"] if two else [], routes=["ship"])
    either.add_task("ship", lambda: "shipped")

    for one, two, runs in [(True, True, 1), (True, False, 1), (False, True, 1), (False, False, 0)]:
        results, after = outcome(either, ["first", "second"], {"one": one, "two": two})
        assert after["ship"] is (SUCCESS if runs else SKIPPED)
        assert either.report().tasks["ship"].runs == runs
        assert results.get("ship") == ("shipped" if runs else None)


def test_a_stream_has_no_chunk_of_what_was_skipped(flow):
    """A chunk comes for each task run that finished, after everything that caused it."""
    flow.add_task("check", lambda: "left", routes=["left", "right"])
    flow.add_task("left", lambda: 1)
    flow.add_task("right", lambda: 2)
    flow.add_task("end", lambda left, right: (left, right))

    assert list(flow.stream()) == [StreamChunk("check", "left"), StreamChunk("left", 1), StreamChunk("end", (1, None))]


def test_a_graph_runs_on_the_loop_of_the_caller():
    """``arun`` and ``astream`` run coroutines of a graph on the running loop."""

    async def main():
        loop = asyncio.get_running_loop()
        async with Flow("asyncio") as flow:

            @flow.task
            async def extract():
                return asyncio.get_running_loop() is loop

            flow.add_task("clean", lambda extract: extract)
            flow.add_task("load", lambda clean, extract: [clean, extract])
            chunks = [chunk.task_id async for chunk in flow.astream()]
            return await flow.arun(), chunks

    assert asyncio.run(main()) == ({"load": [True, True]}, ["extract", "clean", "load"])


def test_many_runs_of_one_graph_at_once(executor):
    """Runs from several threads share the graph and nothing else."""
    with Flow(executor) as flow:
        flow.add_task("start", lambda n: n)
        flow.add_task("left", lambda start: start + 1)
        flow.add_task("right", lambda start: [] if start % 2 else "other", routes=["other"])
        flow.add_task("other", lambda payload: payload)
        flow.add_task("end", lambda left, other: (left, other))

        def run(n):
            return flow.run("start", {"n": n})["end"]

        with ThreadPoolExecutor(4) as callers:
            assert list(callers.map(run, range(40))) == [(n + 1, None if n % 2 else n) for n in range(40)]


def test_a_request_from_a_submitted_call_may_lead_into_the_graph(either):
    """A call of a session that asks for a task with edges starts it, and its successors follow."""
    add_etl(either)
    with either.session() as session:
        handle = session.submit(lambda: NextTask("extract"))
        assert handle.result(WATCHDOG) is None
    assert session.result() == {"load": [["a", "b"], 2]}


# ---- what parameters are filled with ----------------------------------------------------------------


@dataclass
class Shop:
    """What the tasks of an order depend on."""

    currency: str


def add_prices(flow):
    """Register two tasks that others depend on."""
    flow.add_task("price", lambda: 5)
    flow.add_task("amount", lambda: 3)


@pytest.mark.parametrize(
    ("needs", "fn", "given"),
    [
        (None, lambda price, amount: (price, amount), (5, 3)),
        (["price", "amount"], lambda upstream: upstream, {"price": 5, "amount": 3}),
        (["price", "amount"], lambda payload: payload, {"price": 5, "amount": 3}),
        (["price"], lambda payload: payload, 5),
        (["price"], lambda payload, upstream, price: (payload, upstream, price), (5, {"price": 5}, 5)),
        (["price"], lambda *, payload=None: payload, 5),
        (["price"], lambda price=0, amount=0: (price, amount), (5, 0)),
        (["price"], lambda **rest: rest, {}),
        (["price"], lambda price, *args, **rest: (price, args, rest), (5, (), {})),
        (["price"], lambda price, inputs: (price, inputs), (5, None)),
        (["price"], lambda price, /, inputs=7: (price, inputs), (5, 7)),
        (["price"], lambda some, price: (type(some), price), (Context, 5)),
        (["price"], lambda ctx, price: (ctx["price"], price), (5, 5)),
        ([], lambda upstream: upstream, {}),
    ],
)
def test_parameters_of_a_dependant(inline, needs, fn, given):
    """Results by name, all of them as upstream, and the payload: one dependency's output, or the mapping."""
    add_prices(inline)
    inline.add_task("total", fn, depends_on=needs)

    assert inline.run(["price", "amount", "total"])["total"] == given


def test_outputs_arrive_as_they_were_returned(flow):
    """None, falsy values and pairs are passed on unchanged, and None is not replaced by a default."""
    values = {"none": None, "zero": 0, "empty": "", "pair": ("a", 1), "list": [], "task": [1, "NextTask"]}
    for name, value in values.items():
        flow.add_task(name, lambda value=value: value)
        flow.add_task(f"after {name}", lambda payload, upstream: (payload, upstream), depends_on=[name])
    flow.add_task("default", lambda none=5: none, depends_on=["none"])

    results = flow.run()
    assert results.pop("default") is None
    assert results == {f"after {name}": (value, {name: value}) for name, value in values.items()}


def test_the_payload_at_the_entry_is_the_inputs(inline):
    """A start gets the inputs as payload, or the input of that name."""
    inline.add_task("start", lambda payload: payload)
    inline.add_task("after", lambda start: start)

    assert inline.run("start", {"a": 1}) == {"after": {"a": 1}}
    assert inline.run("start", {"payload": 5}) == {"after": 5}
    assert inline.run("start", {"payload": None, "a": 1}) == {"after": None}
    with pytest.raises(BindingError, match="payload"):
        inline.run("start")


def test_a_get_waits_for_a_task_further_on(flow):
    """A key that a later task of another branch sets arrives; waiting for an output waits for its task."""
    flow.add_task("early", lambda ctx: (ctx.get("found"), ctx.get("last")))
    flow.add_task("first", lambda: 1)
    flow.add_task("middle", lambda first, ctx: ctx.set("found", first + 1))
    flow.add_task("last", lambda middle: "last")
    flow.add_task("end", lambda early: early)

    assert flow.run() == {"last": "last", "end": (2, "last")}


def test_a_get_of_what_was_not_chosen_is_told(either):
    """The output of a skipped task can never come: ContextKeyError, as soon as that is certain."""
    either.add_task("early", lambda ctx: ctx.get("reject"))
    either.add_task("check", lambda: "approve", routes=["approve", "reject"])
    either.add_task("approve", lambda: 1)
    either.add_task("reject", lambda: 2)

    with pytest.raises(ContextKeyError, match="Key reject not found in context"):
        either.run()


def test_a_task_that_waits_for_what_comes_behind_it_is_a_deadlock(either):
    """Who waits for the output of its own dependant is told who waits for what."""
    either.add_task("first", lambda ctx: ctx.get("last"))
    either.add_task("middle", lambda first: first)
    either.add_task("last", lambda middle: middle)

    with pytest.raises(DeadlockError, match="first waits for 'last'") as caught:
        either.run()
    assert ("middle", "first") in caught.value.waits
    assert ("last", "middle") in caught.value.waits


def test_inputs_are_for_the_start_alone(inline):
    """What comes along an edge has no inputs, but finds them in the context."""
    inline.add_task("start", lambda n: n)
    inline.add_task("after", lambda start, inputs, ctx: (start, inputs, ctx["n"]))

    assert inline.run("start", {"n": 1}) == {"after": (1, None, 1)}


def test_inputs_of_a_request_win_over_dependencies(inline):
    """A key of the inputs comes before the dependency of that name, by name and as payload."""
    inline.add_task("price", lambda: TaskOutput(5, [NextTask("total", {"price": 7}), NextTask("pay", {"payload": 8})]))
    inline.add_task("total", lambda price: price)
    inline.add_task("pay", lambda payload, price: (payload, price), depends_on=["price"])

    assert inline.run("price") == {"total": 7, "pay": (8, 5)}


def test_dependencies_that_did_not_run_are_none_or_the_default(either):
    """Skipped, not chosen or failed, they are left out of upstream, and their parameter is None or its default."""
    either.add_task("check", lambda: "yes", routes=["yes", "no"])
    either.add_task("yes", lambda: 1)
    either.add_task("no", lambda: 2)
    either.add_task("end", lambda yes, no, upstream: (yes, no, upstream))
    either.add_task("also", lambda yes, no=9: (yes, no), depends_on=["yes", "no"])
    either.add_task("one", lambda payload: payload, depends_on=["yes", "no"])

    assert either.run() == {"end": (1, None, {"yes": 1}), "also": (1, 9), "one": {"yes": 1}}


def test_a_payload_whose_single_dependency_did_not_run_is_none(inline):
    """A task that is asked for although its only dependency was skipped gets None, or its default."""
    inline.add_task("check", lambda: "yes", routes=["yes", "no"])
    inline.add_task("yes", lambda: [NextTask("end"), NextTask("other")])
    inline.add_task("no", lambda: 2)
    inline.add_task("end", lambda payload: payload, depends_on=["no"])
    inline.add_task("other", lambda payload=4: payload, depends_on=["no"])

    assert inline.run() == {"end": None, "other": 4}


def test_a_dependency_skipped_by_policy_is_none():
    """A dependency that failed is None for who runs anyway, whatever skips in between."""
    with Flow("inline", on_error="continue") as flow:
        flow.add_task("rows", lambda ctx: 1 / 0)
        flow.add_task("clean", lambda rows: rows, on_dep_failure="skip")
        flow.add_task("end", lambda rows, clean, payload: (rows, clean, payload), on_dep_failure="run-anyway")
        assert flow.run() == {"end": (None, None, {})}


def test_deps_and_metadata_reach_every_task(flow):
    """``ctx.deps`` is the object that was given, typed by the annotation; metadata is that of the run."""

    def price(ctx: Context[Shop]):
        return f"5 {ctx.deps.currency}"

    def label(price, settings: "Context[Shop]"):
        return f"{price} {settings.metadata['user']} {settings.deps.currency}"

    flow.add_task("price", price)
    flow.add_task("label", label)

    assert flow.run(deps=Shop("EUR"), metadata={"user": "ann"}) == {"label": "5 EUR ann EUR"}
    assert flow.report().metadata == {"user": "ann"}
    assert flow.run(deps=Shop("SEK"), metadata={"user": "bob"}) == {"label": "5 SEK bob SEK"}


def test_a_task_of_a_graph_knows_itself(either):
    """``current_task`` has the name, the run and a key of its own for every task of a graph."""

    def who(upstream):
        me = current_task()
        return me.name, me.id, me.run_id, me.attempt

    keys = set()
    either.add_task("a", lambda: keys.add(current_task().key))
    either.add_task("b", who, depends_on=["a"])
    either.add_task("c", lambda b: keys.add(current_task().key) or b)

    assert either.run(run_id="orders-7") == {"c": ("b", "b", "orders-7", 1)}
    assert len(keys) == 2


def test_keys_in_a_graph_do_not_depend_on_the_run_before():
    """The same run id gives the tasks of a graph the same keys, and different tasks different ones."""
    keys = []
    for _ in range(2):
        with Flow("thread") as flow:
            flow.add_task("a", lambda: current_task().key)
            flow.add_task("b", lambda a: (a, current_task().key))
            flow.add_task("c", lambda a: (a, current_task().key))
            flow.add_task("d", lambda b, c: {*b, *c, current_task().key})
            keys.append(flow.run(run_id="orders-7")["d"])
    assert keys[0] == keys[1]
    assert len(keys[0]) == 4


def test_the_time_of_a_run_holds_for_its_tasks(either):
    """``time_remaining`` counts down to the run's timeout, and is None without a limit."""
    either.add_task("first", lambda: current_task().time_remaining())
    either.add_task("second", lambda first: (first, current_task().time_remaining()))

    first, second = either.run(timeout=60)["second"]
    assert 0 < second <= first <= 60
    assert either.run() == {"second": (None, None)}


def test_a_task_that_asks_stops_when_its_run_ends():
    """``raise_if_cancelled`` raises when the run was cancelled or its time is up; dependants never start."""
    for end, error in (("cancel", RunCancelledError), ("timeout", RunTimeoutError)):
        began, told, called = threading.Event(), [], []

        def work(began=began, told=told):
            began.set()
            try:
                while True:
                    current_task().raise_if_cancelled()
            except TaskCancelledError as raised:
                told.append(raised)
                raise

        with Flow("thread") as flow:
            flow.add_task("work", work)
            flow.add_task("after", lambda work, called=called: called.append(1))
            run = flow.start(timeout=0.05 if end == "timeout" else None)
            wait_for(began)
            if end == "cancel":
                run.cancel()
            with pytest.raises(error):
                run.result(WATCHDOG)
            assert states(run) == {"work": CANCELLED, "after": CANCELLED}
        assert len(told) == 1
        assert called == []


# ---- large graphs -----------------------------------------------------------------------------------

LARGE = 100_000


def test_a_large_graph_registered_leaf_first():
    """100,000 tasks, each behind the one that is registered after it, are checked and run without recursion."""
    called = itertools.count()

    def step():
        return next(called)

    with Flow("inline") as flow:
        for n in range(LARGE - 1, 0, -1):
            flow.add_task(f"step {n}", step, depends_on=[f"step {n - 1}"])
        flow.add_task("step 0", step, depends_on=[])

        flow.validate()
        assert flow.run() == {f"step {LARGE - 1}": LARGE - 1}
        assert len(flow.report().tasks) == LARGE


def test_a_large_circle_is_told():
    """A circle of 30,000 tasks is one CycleError with its whole path."""
    size = 30_000
    with Flow("inline") as flow:
        for n in range(size):
            flow.add_task(f"step {n}", print, depends_on=[f"step {(n + 1) % size}"])
        with pytest.raises(CycleError) as caught:
            flow.run()
    assert len(caught.value.path) == size + 1


def add_chain(flow, name, size):
    """Register a task and a chain behind it."""
    flow.connect([(name, f"{name} 0"), *((f"{name} {n}", f"{name} {n + 1}") for n in range(size - 1))])
    for n in range(size):
        flow.add_task(f"{name} {n}", print)


def test_a_skip_spreads_along_a_long_chain():
    """5,000 tasks are skipped, and cut out, without recursion."""
    with Flow("inline") as flow:
        add_chain(flow, "check", 5_000)
        flow.add_task("check", lambda: TaskOutput(1, []))

        results, after = outcome(flow)
        assert results == {"check": 1}
        assert Counter(after.values()) == {SUCCESS: 1, SKIPPED: 5_000}
        assert len(flow.subgraph(["check 4998"]).tasks) == 5_000
        assert outcome(flow, targets=["check 10"])[1].keys() == {"check", *(f"check {n}" for n in range(11))}


def test_a_failure_spreads_along_a_long_chain():
    """What is kept of a failure does not grow with the number of tasks before it, and nothing recurses."""
    for size in (300, 5_000):
        with Flow("inline", on_error="continue") as flow:
            add_chain(flow, "rows", size)
            flow.add_task("rows", lambda ctx: 1 / 0)
            run = flow.start()
            assert run.result(WATCHDOG) == {}
            rows = run.report().tasks.values()
            assert Counter(row.status for row in rows) == {FAILED: size + 1}
            assert sum(len(row.error.traceback) for row in rows) <= 5_000 * size


def test_edges_are_added_one_by_one_in_linear_time():
    """Twice as many edges take no four times as many comparisons of edges."""

    class Name(str):
        """A name that counts how often it is compared."""

        __slots__ = ()
        compared = 0

        def __eq__(self, other):
            Name.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    with Flow("inline") as flow:
        for n in range(2_000):
            flow.connect([(Name("a"), Name(f"b{n}"))])
    assert Name.compared <= 20_000


# ---- what is terminal -------------------------------------------------------------------------------


def test_only_ends_of_a_graph_are_results(flow):
    """What leads on to a task that ran is no result; what leads nowhere is."""
    flow.add_task("a", lambda: 1)
    flow.add_task("b", lambda a: 2)
    flow.add_task("c", lambda a: 3)
    flow.add_task("d", lambda c: 4)

    assert flow.run() == {"b": 2, "d": 4}


def test_a_task_that_stopped_is_terminal(either):
    """An empty choice follows no static edge, so its output is a result."""
    either.add_task("a", lambda: TaskOutput("stop", []))
    either.add_task("b", lambda a: 2)

    assert either.run() == {"a": "stop"}


@pytest.mark.parametrize("nothing", [[], {}, ()])
def test_a_router_that_chose_nothing_is_terminal(either, nothing):
    """Its output is what it returned."""
    either.add_task("check", lambda: nothing, routes=["approve"])
    either.add_task("approve", lambda: 1)

    assert either.run() == {"check": nothing}


def test_a_router_that_chose_is_not_terminal(either):
    """Its output is in the context all the same: what it returned."""
    either.add_task("check", lambda: {"approve": 5}, routes=["approve", "reject"])
    either.add_task("approve", lambda payload: payload)
    either.add_task("reject", lambda: 1)

    assert either.run() == {"approve": 5}
    assert either.context["check"] == {"approve": 5}


def test_a_target_is_terminal(either):
    """Edges that lead out of the targets are not followed."""
    add_etl(either)
    assert either.run(targets=["clean"]) == {"clean": ["a", "b"]}


def test_an_end_that_asked_is_not_terminal():
    """A task that requested something is no result, also when the request coalesced."""
    with Flow("inline") as flow:
        flow.add_task("a", lambda: [NextTask("c"), NextTask("b")])
        flow.add_task("b", lambda: NextTask("c"))
        flow.add_task("wait", lambda: 1)
        flow.add_task("c", lambda: "c")
        assert flow.run("a") == {"c": "c"}

    release = threading.Event()
    with Flow("thread") as flow:
        flow.add_task("rows", lambda: wait_for(release))
        flow.add_task("load", lambda rows: "loaded")
        flow.add_task("ask", lambda: NextTask("load"))
        flow.add_task("end", lambda ctx: ctx.get("ask") or release.set())
        assert flow.run(["rows", "ask", "end"]) == {"load": "loaded", "end": None}


def test_what_a_join_takes_is_not_terminal(either):
    """Siblings of a join are no results, whether they have edges or not."""
    either.add_task("split", lambda: [NextTask("left"), NextTask("right"), NextTask("merge", join=True)])
    either.add_task("left", lambda: 1)
    either.add_task("after", lambda left: left + 1)
    either.add_task("right", lambda other=None: 2, depends_on=["other"])
    either.add_task("other", lambda: 5)
    either.add_task("merge", lambda upstream: upstream)

    assert either.run("split") == {"after": 2, "merge": [1, 2]}


def test_a_map_is_one_result(either):
    """The items of a map are no results, the list is."""
    either.add_task("rows", lambda: [1, 2])
    either.add_task("double", lambda item: 2 * item, for_each="rows")

    assert either.run() == {"double": [2, 4]}


# ---- reports ----------------------------------------------------------------------------------------


def test_the_report_of_a_run_under_way():
    """It tells what has ended, what runs and what may still come, and has no end yet."""
    began, release = threading.Event(), threading.Event()

    def clean(extract):
        began.set()
        wait_for(release)
        return "clean"

    with Flow("thread") as flow:
        flow.add_task("extract", lambda: "raw")
        flow.add_task("clean", clean)
        flow.add_task("check", lambda clean: [], routes=["approve"])
        flow.add_task("approve", lambda: 1)
        flow.add_task("apart", lambda: 1, depends_on=[])
        run = flow.start("extract", metadata={"user": "ann"}, run_id="orders-7")
        wait_for(began)

        report = run.report()
        assert flow.report() == report
        assert flow.report("orders-7").run_id == "orders-7"
        assert (report.status, report.finished_at, report.error) == (RUNNING, None, None)
        assert report.metadata == {"user": "ann"}
        assert {name: row.status for name, row in report.tasks.items()} == {
            "extract": SUCCESS, "clean": RUNNING, "check": PENDING, "approve": PENDING,
        }  # fmt: skip
        rows = report.tasks
        assert (rows["extract"].result, rows["extract"].runs, rows["clean"].runs) == ("raw", 1, 0)
        assert (rows["clean"].attempt, rows["check"].attempt) == (1, 0)
        assert rows["clean"].started_at >= rows["extract"].finished_at
        assert (rows["clean"].finished_at, rows["check"].started_at) == (None, None)
        assert report.to_dict()["tasks"]["check"] == {
            "status": "PENDING", "attempt": 0, "runs": 0, "started_at": None, "finished_at": None, "error": None,
            "result": None,
        }  # fmt: skip

        release.set()
        run.result(WATCHDOG)
        assert states(run) == {"extract": SUCCESS, "clean": SUCCESS, "check": SUCCESS, "approve": SKIPPED}
        assert report.tasks["clean"].status is RUNNING  # a report is of its moment


def test_flow_report_is_that_of_the_newest_run(inline):
    """Newest is what was started last; older ones are known only to who kept their FlowRun."""
    inline.add_task("a", lambda: 1)
    with pytest.raises(UnknownRunError, match="has not been run yet"):
        inline.report()
    first = inline.start(run_id="first")
    assert inline.report().run_id == "first"
    inline.run(run_id="second")

    assert inline.report().run_id == inline.report("second").run_id == "second"
    with pytest.raises(UnknownRunError, match="Run first of"):
        inline.report("first")
    assert first.report().run_id == "first"
    with pytest.raises(UnknownRunError, match="Run nope of"):
        inline.report("nope")


def test_flow_report_finds_runs_under_way_by_id():
    """While several runs go on each is found by its id, whichever is the newest."""
    release = threading.Event()
    with Flow("thread") as flow:
        flow.add_task("a", lambda: wait_for(release))
        older, newer = flow.start(run_id="older"), flow.start(run_id="newer")

        assert flow.report().run_id == "newer"
        assert flow.report("older").status is RUNNING
        release.set()
        older.result(WATCHDOG)
        newer.result(WATCHDOG)
        assert flow.report().run_id == "newer"
        with pytest.raises(UnknownRunError):
            flow.report("older")


def test_flow_report_of_runs_that_failed_and_that_were_refused(inline):
    """A run that failed has a report; one that was refused at the start leaves that of the one before."""
    inline.add_task("a", lambda ctx: ctx["n"])
    assert inline.run(inputs={"n": 1}, run_id="good") == {"a": 1}
    with pytest.raises(TaskNotFoundError):
        inline.run("nope")
    assert inline.report().run_id == "good"

    with pytest.raises(KeyError):
        inline.run(run_id="bad")
    report = inline.report()
    assert (report.run_id, report.status, report.tasks["a"].status) == ("bad", FAILED, FAILED)
    assert report.error.type.endswith("ContextKeyError")
    assert "ContextKeyError" in report.tasks["a"].error.traceback


def test_a_report_outlives_its_flow():
    """After close, and when the run is gone, the report is there."""
    flow = Flow("thread")
    add_etl(flow)
    flow.run(run_id="orders-7")
    flow.close()
    gc.collect()

    assert flow.report("orders-7").tasks["load"].result == [["a", "b"], 2]


def test_a_report_has_one_row_a_task():
    """However many runs a task had: the worst status, the newest output and how many."""

    def part(n):
        if n == 1:
            raise ValueError("bad row")
        return n

    with Flow("inline", on_error="continue") as flow:
        flow.add_task("split", lambda: [NextTask("part", {"n": n}, spawn_another=True) for n in range(4)])
        flow.add_task("part", part)
        flow.run("split")
        row = flow.report().tasks["part"]
    assert (row.status, row.runs, row.result, row.error.message) == (FAILED, 4, 3, "bad row")
    assert flow.report().tasks.keys() == {"split", "part"}


# ---- with -------------------------------------------------------------------------------------------


def test_a_with_block_waits_for_runs_in_the_background():
    """Leaving the block normally lets a graph that was started finish."""
    release = threading.Event()
    with Flow("thread") as flow:
        flow.add_task("rows", lambda: wait_for(release))
        flow.add_task("load", lambda rows: "loaded")
        run = flow.start()
        release.set()
    assert run.status is SUCCESS
    assert run.result() == {"load": "loaded"}
    with pytest.raises(FlowClosedError):
        flow.run()


def test_an_exception_in_a_with_block_cancels_what_runs():
    """The exception comes out as itself, what ran was told to stop, and dependants never start."""
    began, called = threading.Event(), []

    def work():
        began.set()
        while True:
            current_task().raise_if_cancelled()

    with pytest.raises(KeyError, match="of the block"), Flow("thread") as flow:  # noqa: PT012 - the block is what raises
        flow.add_task("work", work)
        flow.add_task("after", lambda work: called.append(1))
        run = flow.start()
        wait_for(began)
        raise KeyError("of the block")
    assert run.status is CANCELLED
    assert called == []
    with pytest.raises(RunCancelledError):
        run.result()


def test_a_flow_can_be_entered_by_async_with():
    """The asynchronous block waits for background runs without blocking its loop."""

    async def main():
        async with Flow("thread") as flow:

            @flow.task
            async def rows(ctx):
                return await ctx.aget("given", external=True)

            flow.add_task("load", lambda rows: rows)
            run = flow.start()
            assert await flow.arun(targets=["rows"], context={"given": [2]}) == {"rows": [2]}
            asyncio.get_running_loop().call_soon(run.context.set, "given", [1])
        return run

    assert asyncio.run(main()).result() == {"load": [1]}


def test_an_unclosed_flow_with_a_graph_leaves_nothing_behind():
    """A program that neither closes its flow nor waits for its run ends by itself."""
    said = run_snippet(
        """
        import threading
        from millstream import Flow
        flow = Flow("thread")
        flow.add_task("a", lambda: 1)
        flow.add_task("b", lambda a: a + 1)
        print(flow.run())
        flow.add_task("c", lambda b: threading.Event().wait())
        flow.start()
        """
    )
    assert said == "{'b': 2}\n"


# ---- tasks that share a function ---------------------------------------------------------------------


@pytest.mark.parametrize("order", [["other", "first"], ["first", "other"]])
def test_only_one_of_two_tasks_of_a_function_chooses(order):
    """An edge that was connected makes a router of the one task, and not of another of the same function."""

    def pick():
        return "x"

    with Flow("inline") as flow:
        for name in order:
            flow.add_task(name, pick)
        flow.add_task("x", lambda: "ran")
        flow.add_task("y", lambda: "ran")
        flow.connect("other >> first >> (x | y)")

        assert flow.run() == {"x": "ran"}
        rows = flow.report().tasks
        assert (rows["other"].result, rows["first"].result) == ("x", "x")
        assert (rows["x"].status, rows["y"].status) == ("SUCCESS", "SKIPPED")


@pytest.mark.parametrize("order", [["reads", "default"], ["default", "reads"]])
def test_a_function_takes_the_output_of_the_one_dependency_that_it_names(order):
    """Of two tasks of one function, that one which depends on the task of a parameter's name is given its output."""

    def show(number=0):
        return number

    with Flow("inline") as flow:
        flow.add_task("number", lambda: 7)
        flow.add_task("another", lambda: 8)
        for name in order:
            flow.add_task(name, show, depends_on=["number" if name == "reads" else "another"])

        assert flow.run() == {"reads": 7, "default": 0}


def test_one_of_two_tasks_of_a_function_has_options():
    """What is said of the one task is not said of the other."""
    calls = []

    def fails_once(ctx):
        calls.append(current_task().name)
        if calls.count(current_task().name) < 2:
            raise OSError
        return "done"

    with Flow("inline", on_error="continue") as flow:
        flow.add_task("start", lambda: None)
        flow.add_task("once", fails_once, depends_on=["start"])
        flow.add_task("twice", fails_once, depends_on=["start"], retries=1)
        flow.add_task("too", fails_once, depends_on=["start"])

        assert flow.run() == {"twice": "done"}
    assert sorted(calls) == ["once", "too", "twice", "twice"]


def test_a_task_that_is_replaced_between_runs_is_called_as_the_new_one():
    """Neither the function nor its parameters of the older task are left."""
    with Flow("inline") as flow:
        flow.add_task("number", lambda: 7)
        flow.add_task("show", lambda number: number)
        assert flow.run() == {"show": 7}

        flow.add_task("show", lambda ctx: ctx.get("number") + 1, replace=True, depends_on=["number"])
        assert flow.run() == {"show": 8}
        flow.add_task("number", lambda: 1, replace=True)
        assert flow.run() == {"show": 2}


# ---- what comes in the middle of something -----------------------------------------------------------


def test_a_dependant_that_cannot_be_called_leaves_its_siblings_alone():
    """When one of those that a task leads to lacks a parameter, each of the others still runs once."""
    ran = []

    def lacks(x: int):
        return x

    with Flow("inline", on_error="continue") as flow:
        flow.add_task("a", lambda: 1)
        flow.add_task("b", lacks, depends_on=["a"])
        flow.add_task("c", lambda: ran.append("c"), depends_on=["a"])
        flow.add_task("d", lambda: ran.append("d"), depends_on=["c", "a"])

        flow.run()
        rows = flow.report().tasks
    assert ran == ["c", "d"]
    assert [(name, row.status, row.runs) for name, row in rows.items()] == [
        ("a", "SUCCESS", 1), ("b", "FAILED", 0), ("c", "SUCCESS", 1), ("d", "SUCCESS", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("plain", [True, False])
def test_the_limit_of_task_runs_is_one_error_in_a_graph(plain):
    """What the limit leaves out is cancelled, not decided; and there is one error, whatever it would have led to."""
    with Flow("inline", max_task_runs=4) as flow:
        flow.add_task("x", lambda: TaskOutput(0, None if plain else []))
        for name, needs in {"z": [], "a": [], "b": ["a"], "c": ["a"], "d": ["b", "z"], "e": ["c"]}.items():
            flow.add_task(name, lambda: 1, depends_on=needs)
        flow.add_task("y", lambda: 1, depends_on=["x", "e"])
        run = flow.start()

        with pytest.raises(TaskRunLimitError):
            run.result()
        rows = run.report().tasks
    assert {name: str(row.status) for name, row in rows.items()} == {
        "x": "SUCCESS", "z": "SUCCESS", "a": "SUCCESS", "b": "CANCELLED", "c": "CANCELLED", "d": "CANCELLED",
        "e": "CANCELLED", "y": "CANCELLED",
    }  # fmt: skip


def test_what_depends_on_a_failure_is_told_in_no_time():
    """Thousands of tasks that fail since another one did cost little more than to run them."""

    def fails():
        raise OSError

    with Flow("inline", on_error="continue") as flow:
        flow.add_task("0", fails)
        for number in range(1, 20_000):
            flow.add_task(str(number), lambda: None, depends_on=["0"])
        began = time.monotonic()
        flow.run()
        assert time.monotonic() - began < WATCHDOG
        assert type(flow.report().tasks["19999"].error) is not None
        assert flow.report().tasks["19999"].status == "FAILED"


def test_sessions_while_tasks_are_registered():
    """A session sees the tasks of one moment, whatever another thread registers meanwhile."""

    def ask():
        return NextTask("a")

    over = threading.Event()
    with Flow() as flow:
        flow.add_task("a", lambda: 1)
        flow.add_task("b", lambda: 2, depends_on=["a"])

        def register():
            while not over.is_set():
                flow.add_task("x", ask, replace=True)

        thread = threading.Thread(target=register)
        thread.start()
        try:
            for _ in range(100):
                with flow.session() as session:
                    session.submit(ask).result(WATCHDOG)
        finally:
            over.set()
            thread.join(WATCHDOG)


def test_a_function_may_be_a_target_as_soon_as_it_is_registered():
    """To have asked for it in vain before makes no difference."""

    def late():
        return 2

    with Flow("inline") as flow:
        flow.add_task("a", lambda: 1)
        with pytest.raises(TaskNotFoundError):
            flow.run(targets=[late])
        flow.add_task("late", late)
        assert flow.run(targets=[late]) == {"late": 2}


def test_a_flow_that_is_dropped_leaves_no_circle():
    """Its graph goes with it, without the garbage collector."""

    def once():
        with Flow("inline") as flow:
            flow.add_task("a", lambda: 1)
            flow.add_task("b", lambda: 2, depends_on=["a"])
            flow.run()
            flow.run(targets=["a"])

    def graphs():
        return [found for found in gc.get_objects() if isinstance(found, Graph)]

    once()
    gc.collect()
    gc.disable()
    try:
        before = graphs()
        once()
        assert [graph for graph in graphs() if not any(graph is known for known in before)] == []
    finally:
        gc.enable()


def test_tasks_are_looked_at_while_others_are_registered():
    """``flow.tasks`` is a copy of one moment; a task that is looked at by several threads is one object."""
    with Flow("inline") as flow:
        flow.add_task("0", lambda: 0)
        ready = threading.Barrier(4, timeout=WATCHDOG)
        seen = []

        def look():
            ready.wait()
            for _ in range(200):
                tasks = flow.tasks
                assert list(tasks) == [str(number) for number in range(len(tasks))]
                seen.append(tasks["0"])

        def register():
            ready.wait()
            for number in range(1, 500):
                flow.add_task(str(number), lambda: 0, depends_on=[str(number - 1)])

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(register), *(pool.submit(look) for _ in range(3))]:
                done.result(WATCHDOG)
        assert all(task is flow["0"].origin for task in seen)
        assert len(flow.tasks) == 500
