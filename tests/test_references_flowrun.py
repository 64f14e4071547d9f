"""What the document of flowrun promises, in our names and in examples of our own, section by section.

Its stores and its resume are not here: they are tested where stores are.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import importlib.metadata
import importlib.resources
import itertools
import json
import logging
import re
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest

import millstream
from millstream import (
    BindingError,
    Context,
    CycleError,
    DependencyFailedError,
    DuplicateTaskWarning,
    Flow,
    FlowClosedError,
    FlowError,
    Hook,
    NextTask,
    Retry,
    RunCancelledError,
    RunEndEvent,
    RunStartEvent,
    RunTimeoutError,
    Status,
    Task,
    TaskCancelledError,
    TaskFailureEvent,
    TaskNotFoundError,
    TaskRetryEvent,
    TaskSkipEvent,
    TaskStartEvent,
    TaskSuccessEvent,
    TaskTimeoutError,
    UnknownRunError,
    current_task,
    fn_hook,
    task,
)
from tests.conftest import WATCHDOG

on_two = pytest.mark.parametrize("executor", ["inline", "thread"], indirect=True)
on_three = pytest.mark.parametrize("executor", ["inline", "thread", "asyncio"], indirect=True)
in_background = pytest.mark.parametrize("executor", ["thread", "asyncio"], indirect=True)

Rows = list[dict[str, int]]
ROWS: Rows = [{"station": 7, "mm": 4}, {"station": 9, "mm": 11}]


@dataclass(frozen=True)
class Station:
    """What the tasks of these flows need beside data."""

    url: str = "rain.example"
    shelf: dict[str, Any] = field(default_factory=dict)


StationContext = Context[Station]


def rain_flow(executor: Any = "inline", **options: Any) -> Flow:
    """Three tasks in a row: read, sum up, save."""
    flow = Flow(executor, name="rain", **options)

    @flow.task
    def read(context: Context[Station]) -> Rows:
        assert context.deps.url == "rain.example"
        return ROWS

    @flow.task(depends_on=[read])
    def sum_up(read: Rows) -> dict[str, int]:
        return {"rows": len(read), "mm": sum(row["mm"] for row in read)}

    @flow.task(depends_on=[sum_up])
    def save(sum_up: dict[str, int], context: Context[Station]) -> str:
        context.deps.shelf["day"] = sum_up
        return f"{sum_up['mm']} mm from {context.deps.url}"

    return flow


def problems_of(flow: Flow) -> list[Exception]:
    """Return what validation says is wrong with a flow."""
    with pytest.raises(ExceptionGroup) as caught:
        flow.validate()
    return list(caught.value.exceptions)


def statuses(report: Any) -> dict[str, str]:
    """Return the status of every row of a report."""
    return {name: str(row.status) for name, row in report.tasks.items()}


class Tally:
    """Counts how many are inside at once, and the most that ever were."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = self.total = 0

    def __enter__(self) -> Tally:
        with self.lock:
            self.now += 1
            self.total += 1
            self.most = max(self.most, self.now)
        return self

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.now -= 1


# ---- quick start ------------------------------------------------------------------------------------


def test_quick_start(executor):
    """Three tasks in a row run inside ``async with``, and the report has the status and each result."""
    station = Station()
    flow = rain_flow(executor, max_parallel=3)

    async def main() -> dict[str, Any]:
        async with flow:
            run = flow.start(deps=station, metadata={"source": "rain", "batch": "2026-05-28"})
            assert await run == {"save": "15 mm from rain.example"}
            return run.report().to_dict()

    report = asyncio.run(main())
    assert report["status"] == "SUCCESS"
    assert report["tasks"]["save"]["result"] == "15 mm from rain.example"
    assert report["tasks"]["sum_up"]["result"] == {"rows": 2, "mm": 15}
    assert report["metadata"] == {"source": "rain", "batch": "2026-05-28"}
    assert station.shelf == {"day": {"rows": 2, "mm": 15}}


@on_three
@pytest.mark.parametrize("how", ["run", "start", "stream", "arun", "astream"])
def test_every_way_to_run_gives_the_same(executor, how):
    """The same graph gives the same result by each way to run it."""

    async def awaited(flow: Flow) -> Any:
        if how == "arun":
            return await flow.arun(deps=Station())
        return [tuple(chunk) async for chunk in flow.astream(deps=Station())]

    with rain_flow(executor) as flow:
        if how == "run":
            given = flow.run(deps=Station())
        elif how == "start":
            given = flow.start(deps=Station()).result(WATCHDOG)
        elif how == "stream":
            given = [tuple(chunk) for chunk in flow.stream(deps=Station())]
        else:
            given = asyncio.run(awaited(flow))
        assert statuses(flow.report()) == {"read": "SUCCESS", "sum_up": "SUCCESS", "save": "SUCCESS"}
    last = ("save", "15 mm from rain.example")
    if "stream" in how:
        assert given == [("read", ROWS), ("sum_up", {"rows": 2, "mm": 15}), last]
    else:
        assert given == dict([last])


# ---- the flow: settings and what it tells of itself -------------------------------------------------


def test_a_flow_takes_every_setting_at_once():
    """Name, pool, limits, logger and hooks are given to the constructor, and a run obeys them."""
    told: list[str] = []
    logger = logging.getLogger("tests.flowrun.settings")
    with ThreadPoolExecutor(2) as pool:
        hook = fn_hook(on_run_start=lambda event: told.append(event.flow))
        with Flow(pool, name="nightly", max_parallel=4, logger=logger, hooks=[hook]) as flow:
            flow.add_task("tick", lambda: "tock")
            assert flow.name == "nightly"
            assert flow.run() == {"tick": "tock"}
        assert pool.submit(lambda: "still open").result(WATCHDOG) == "still open"
    assert told == ["nightly"]


def test_max_workers_holds_over_all_runs_of_a_flow():
    """With one worker the task runs of two runs never overlap."""
    inside = Tally()

    def work() -> None:
        with inside:
            threading.Event().wait(0.002)

    with Flow("thread", max_workers=1) as flow:
        for name in ("a", "b", "c"):
            flow.add_task(name, work)
        runs = [flow.start(["a", "b", "c"]) for _ in range(2)]
        for run in runs:
            run.result(WATCHDOG)
    assert (inside.most, inside.total) == (1, 6)


def test_max_parallel_is_for_each_run():
    """Two runs with ``max_parallel=1`` go on side by side, and each has one task under way."""
    both = threading.Barrier(2)
    inside = {"one": Tally(), "two": Tally()}

    def work(ctx: Context) -> None:
        with inside[ctx.metadata["run"]]:
            both.wait(WATCHDOG)

    with Flow("thread", max_workers=4, max_parallel=1) as flow:
        for name in ("a", "b", "c"):
            flow.add_task(name, work)
        for run in [flow.start(["a", "b", "c"], metadata={"run": run}) for run in inside]:
            run.result(WATCHDOG)
    assert {name: (tally.most, tally.total) for name, tally in inside.items()} == {"one": (1, 3), "two": (1, 3)}


@pytest.mark.parametrize("option", ["max_workers", "max_parallel"])
@pytest.mark.parametrize("value", [0, -1])
def test_limits_below_one_are_refused(option, value):
    """A number of workers or of parallel task runs below 1 is refused where it is given."""
    with pytest.raises(ValueError, match=option):
        Flow("thread", **{option: value})


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("deps", "depends_on"), ("timeout_s", "timeout"), ("backend", "executor"), ("time_out", "timeout")],
)
def test_an_unknown_task_option_names_ours(theirs, ours):
    """An option of another library is a TypeError that names the one of ours."""
    with pytest.raises(TypeError, match=rf"{theirs}.*\b{ours}\b"):
        Flow().task(**{theirs: 1})(lambda: None)


def test_an_unknown_flow_option_names_ours():
    """A misspelt setting of the flow is a TypeError that names the nearest."""
    with pytest.raises(TypeError, match="max_parallel"):
        Flow(max_paralel=4)


def test_a_flow_lists_its_tasks_in_the_order_of_registration():
    """``tasks`` and ``dependencies`` tell what was registered, in that order, and cannot be changed."""
    flow = rain_flow()
    assert list(flow.tasks) == ["read", "sum_up", "save"]
    assert all(isinstance(each, Task) and each.name == name for name, each in flow.tasks.items())
    assert flow.dependencies == {"read": (), "sum_up": ("read",), "save": ("sum_up",)}
    assert list(flow.dependencies) == list(flow.tasks)
    for mapping in (flow.tasks, flow.dependencies):
        with pytest.raises(TypeError):
            mapping["other"] = None  # type: ignore[index]


@pytest.mark.skipif(not hasattr(Flow, "to_text"), reason="drawings are not built yet")
def test_a_flow_shows_itself_as_text(capsys):
    """``to_text`` returns a drawing that names every task, and prints nothing."""
    text = rain_flow().to_text()
    assert all(name in text for name in ("read", "sum_up", "save"))
    assert text.index("read") < text.index("sum_up") < text.index("save")
    assert capsys.readouterr().out == ""


def test_a_closed_flow_is_not_used():
    """Everything that would run, after the block is over, is one clear error."""
    with rain_flow("thread") as flow:
        flow.run(deps=Station())
    for use in (flow.run, flow.start, flow.stream):
        with pytest.raises(FlowClosedError, match="rain"):
            use(deps=Station())
    with pytest.raises(FlowClosedError):
        list(flow.run_many([None]))
    with pytest.raises(FlowClosedError):
        flow.add_task("more", lambda: None)
    assert flow.report().status is Status.SUCCESS


# ---- registration -----------------------------------------------------------------------------------


@on_three
def test_a_task_is_a_plain_or_an_async_function(executor):
    """Plain and ``async def`` functions are tasks of one graph, by their own names or by given ones."""
    with Flow(executor) as flow:

        @flow.task(name="fetch", retries=2, timeout=WATCHDOG)
        async def fetch_orders(context: Context[Station]) -> list[int]:
            await asyncio.sleep(0)
            return [len(context.deps.url), 3]

        @flow.task()
        def total(fetch: list[int]) -> int:
            return sum(fetch)

        assert list(flow.tasks) == ["fetch", "total"]
        assert flow.run(deps=Station()) == {"total": 15}


@pytest.mark.parametrize("decorate", [lambda flow: flow.task, lambda flow: flow.task(), lambda flow: flow.task("name")])
def test_the_decorator_gives_the_function_back(decorate):
    """A decorated function is the same object, and is called as before."""

    def double(n: int) -> int:
        return 2 * n

    assert decorate(Flow())(double) is double
    assert double(4) == 8


@on_two
def test_retries_count_the_attempts_after_the_first(executor):
    """``retries=2`` allows three calls; the report and ``current_task`` count them."""
    attempts: list[int] = []

    def flaky() -> str:
        attempts.append(current_task().attempt)
        if len(attempts) < 3:
            raise ConnectionError("try later")
        return "ok"

    with Flow(executor) as flow:
        flow.add_task("flaky", flaky, retries=2)
        assert flow.run() == {"flaky": "ok"}
        assert attempts == [1, 2, 3]
        row = flow.report().tasks["flaky"]
    assert (row.status, row.attempt, row.runs, row.error) == (Status.SUCCESS, 3, 1, None)


@on_two
def test_when_all_retries_fail_the_tasks_own_error_is_raised(executor):
    """After the last attempt the task's own exception arrives, with a note of task and attempts."""
    calls = []

    def broken() -> None:
        calls.append(1)
        raise ConnectionError("no route")

    with Flow(executor) as flow:
        flow.add_task("broken", broken, retries=1)
        with pytest.raises(ConnectionError, match="no route") as caught:
            flow.run()
        assert len(calls) == 2
        notes = " ".join(caught.value.__notes__)
        assert "broken" in notes
        assert "2" in notes
        assert flow.report().tasks["broken"].attempt == 2


@in_background
def test_a_timeout_of_an_async_task_is_for_each_attempt(executor):
    """An attempt that takes too long is cancelled; the next one, with a timeout of its own, may succeed."""
    ended: list[str] = []

    async def slow_once() -> str:
        if current_task().attempt == 1:
            try:
                await asyncio.sleep(WATCHDOG)
            finally:
                ended.append("first attempt")
        return "quick"

    with Flow(executor) as flow:
        retry = Retry(2, backoff="none", on=(Exception, TaskTimeoutError))
        flow.add_task("slow_once", slow_once, timeout=0.02, retry=retry)
        assert flow.run() == {"slow_once": "quick"}
    assert ended == ["first attempt"]


def test_a_timeout_is_final_unless_it_is_named():
    """Plain ``retries`` do not try a timeout again."""
    calls: list[int] = []

    async def slow() -> None:
        calls.append(1)
        await asyncio.sleep(WATCHDOG)

    with Flow() as flow:
        flow.add_task("slow", slow, timeout=0.01, retries=3)
        with pytest.raises(TaskTimeoutError, match="slow"):
            flow.run()
    assert calls == [1]


def test_plain_functions_have_timeouts_too():
    """A plain function that takes too long fails its task with TaskTimeoutError, and is told to stop."""
    told = threading.Event()

    def slow() -> None:
        while not current_task().cancelled:
            told.wait(0.001)
        told.set()

    with Flow("thread") as flow:
        flow.add_task("slow", slow, timeout=0.02)
        with pytest.raises(TaskTimeoutError):
            flow.run()
        assert told.wait(WATCHDOG)
        assert flow.report().tasks["slow"].status is Status.ABANDONED


@on_two
def test_required_parameters_that_bear_the_name_of_a_task_are_dependencies(executor):
    """Without ``depends_on`` the names of required parameters are looked up, whichever was registered first."""
    with Flow(executor) as flow:
        flow.add_task("total", lambda numbers: sum(numbers))
        flow.add_task("numbers", lambda: [1, 2, 3])
        assert flow.dependencies == {"total": ("numbers",), "numbers": ()}
        assert flow.run() == {"total": 6}


def test_a_parameter_with_a_default_is_not_inferred():
    """A parameter that has a default needs nobody, also when a task bears its name."""
    flow = Flow("inline")

    @flow.task
    def numbers() -> list[int]:
        return [1, 2, 3]

    @flow.task
    def total(numbers: tuple[int, ...] = (10,)) -> int:
        return sum(numbers)

    assert flow.dependencies["total"] == ()
    assert flow.run("total") == {"total": 10}


def test_an_empty_list_turns_inference_off():
    """``depends_on=[]`` means none: the parameter is an input."""
    flow = Flow("inline")
    flow.add_task("numbers", lambda: [1, 2, 3])
    flow.add_task("total", lambda *, numbers: sum(numbers), depends_on=[])
    assert flow.dependencies["total"] == ()
    assert flow.run("total", inputs={"numbers": [5]}) == {"total": 5}


@pytest.mark.parametrize("name", ["ctx", "context", "inputs", "payload", "upstream", "item", "index"])
def test_parameters_with_a_meaning_are_never_inferred(name):
    """A task that is called as one of our own parameters makes nobody depend on it."""
    flow = Flow("inline")
    flow.add_task(name, lambda: 1)
    flow.add_task("user", eval(f"lambda {name}: None"))
    assert flow.dependencies["user"] == ()


@on_two
def test_dependencies_are_names_or_functions(executor):
    """``depends_on`` takes names, decorated functions and tasks of the flow, mixed."""
    with Flow(executor) as flow:

        @flow.task
        def left() -> str:
            return "l"

        @flow.task("the-middle")
        def middle() -> str:
            return "m"

        flow.add_task("right", lambda: "r")
        flow.add_task("all", lambda upstream: upstream, depends_on=[left, middle, flow["right"]])
        assert flow.dependencies["all"] == ("left", "the-middle", "right")
        assert flow.run() == {"all": {"left": "l", "the-middle": "m", "right": "r"}}


def test_an_alias_leaves_the_functions_name_free():
    """A task may have another name than its function; a function in ``depends_on`` means the task's name."""
    flow = Flow("inline")

    @flow.task(name="orders")
    def load_orders() -> list[int]:
        return [20, 22]

    @flow.task(name="answer", depends_on=[load_orders])
    def add_up(orders: list[int]) -> int:
        return sum(orders)

    assert flow.dependencies == {"orders": (), "answer": ("orders",)}
    assert flow.run() == {"answer": 42}


def test_a_name_may_be_registered_after_it_is_named():
    """``depends_on`` may name a task that comes later."""
    flow = Flow("inline")
    flow.add_task("report of the day", lambda payload: f"<{payload}>", depends_on=["raw/rain.csv"])
    flow.add_task("raw/rain.csv", lambda: "4,11")
    flow.validate()
    assert flow.run() == {"report of the day": "<4,11>"}


def test_a_function_with_two_names_must_be_named():
    """A function that was registered twice is no clear dependency: the error asks for the name."""
    flow = Flow("inline")

    def load() -> int:
        return 1

    flow.add_task("east", load)
    flow.add_task("west", load)
    flow.add_task("use", lambda upstream: upstream, depends_on=[load])
    (problem,) = problems_of(flow)
    assert isinstance(problem, FlowError)
    assert "east, west" in str(problem)


@on_two
def test_names_are_local_to_a_flow(executor):
    """Two flows use one name for two tasks, and one function may be in both."""

    def shout(extract: str) -> str:
        return extract.upper()

    users, orders = Flow(executor, name="users"), Flow(executor, name="orders")
    for flow, value in ((users, "ada"), (orders, "a book")):
        flow.add_task("extract", lambda value=value: value)
        flow.add_task("shout", shout)
    with users, orders:
        assert users.run() == {"shout": "ADA"}
        assert orders.run() == {"shout": "A BOOK"}
        assert (users.report().flow, orders.report().flow) == ("users", "orders")


# ---- many modules -----------------------------------------------------------------------------------


Package = Callable[[dict[str, str]], Callable[[str], ModuleType]]


@pytest.fixture
def package(tmp_path, monkeypatch) -> Iterator[Package]:
    """Write the modules of a package ``rainapp``; what is returned imports one of them."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(modules: dict[str, str]) -> Callable[[str], ModuleType]:
        folder = tmp_path / "rainapp"
        folder.mkdir()
        for name, source in {"__init__": "", **modules}.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        importlib.invalidate_caches()
        return lambda name: importlib.import_module(f"rainapp.{name}")

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "rainapp"]:
        del sys.modules[name]


RUNTIME = """
    from millstream import Flow

    flow = Flow(name="rain", max_workers=4, max_parallel=3)
    task = flow.task
"""
GAUGES = """
    from .runtime import task

    @task()
    def gauges() -> list[dict[str, int]]:
        return [{"station": 7, "mm": 4}, {"station": 9, "mm": 11}]
"""
SUMS = """
    from .runtime import task

    @task(depends_on=["gauges"])
    def sums(gauges: list[dict[str, int]]) -> dict[str, int]:
        return {"rows": len(gauges), "mm": sum(row["mm"] for row in gauges)}
"""
PRINTOUT = """
    from .runtime import task

    @task
    def printout(sums) -> str:
        return f"{sums['rows']} stations, {sums['mm']} mm"
"""


@pytest.mark.parametrize("order", list(itertools.permutations(["gauges", "sums", "printout"])), ids="-".join)
def test_modules_that_share_one_decorator(package, order):
    """``task = flow.task`` is exported by one module and used by others, imported in any order."""
    load = package({"runtime": RUNTIME, "gauges": GAUGES, "sums": SUMS, "printout": PRINTOUT})
    for name in order:
        load(name)

    async def main() -> tuple[Any, str]:
        async with load("runtime").flow as flow:
            run = flow.start()
            return await run, run.report().to_dict()["status"]

    assert asyncio.run(main()) == ({"printout": "2 stations, 15 mm"}, "SUCCESS")


def test_a_module_that_was_not_imported_is_a_missing_dependency(package):
    """Where a module of tasks was forgotten, the error names the task that is not there."""
    load = package({"runtime": RUNTIME, "gauges": GAUGES, "sums": SUMS, "printout": PRINTOUT})
    load("sums")
    with load("runtime").flow as flow:
        (problem,) = problems_of(flow)
        assert isinstance(problem, TaskNotFoundError)
        assert problem.name == "gauges"
        with pytest.raises(TaskNotFoundError, match="gauges"):
            flow.run()


def test_modules_with_functions_that_register(package):
    """Functions ``register(task)`` make a fresh flow each time, and importing them registers nothing."""
    load = package(
        {
            "users": """
                def register(task):
                    @task(name="users")
                    def extract() -> list[str]:
                        return ["ada", "bob"]
            """,
            "orders": """
                def register(task):
                    @task(name="orders")
                    async def extract() -> list[int]:
                        return [3]

                    @task("both", depends_on=["users", "orders"])
                    def combine(upstream: dict[str, object]) -> tuple[object, object]:
                        return upstream["users"], upstream["orders"]
            """,
            "build": """
                from millstream import Flow

                from . import orders, users


                def build() -> Flow:
                    flow = Flow(name="sales", max_workers=4, max_parallel=3)
                    orders.register(flow.task)
                    users.register(flow.task)
                    return flow
            """,
        }
    )
    build = load("build").build
    with build() as first, build() as second:
        second.add_task("users", list, replace=True)
        assert first.run() == {"both": (["ada", "bob"], [3])}
        assert second.run() == {"both": ([], [3])}
        assert list(first.tasks) == ["orders", "both", "users"]


def test_modules_with_module_level_tasks(package):
    """``@task`` needs no flow: several flows add what they want of another module, and it stays callable."""
    load = package(
        {
            "steps": """
                from millstream import task

                @task
                def read(path: str = "rain.csv") -> str:
                    return f"rows of {path}"

                @task("shout", depends_on=[read], retries=1)
                def upper(read: str) -> str:
                    return read.upper()
            """
        }
    )
    steps = load("steps")
    for executor in ("inline", "thread"):
        with Flow(executor) as flow:
            flow.add(steps.upper)
            flow.add(steps.read)
            assert flow.run() == {"shout": "ROWS OF RAIN.CSV"}
    assert steps.read(path="x") == "rows of x"


# ---- named parameters and upstream ------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 0, "", (), (1, 2), [], {}, False, ("a", [NextTask])])
def test_a_named_parameter_is_the_output_as_it_was_returned(value):
    """Falsy values, tuples and pairs arrive as the very object that was returned."""
    flow = Flow("inline")
    flow.add_task("source", lambda: value)
    flow.add_task("sink", lambda source: (source is value, source))
    assert flow.run() == {"sink": (True, value)}


def test_named_parameters_in_every_position():
    """Outputs fill positional-only, plain and keyword-only parameters, beside inputs and defaults."""
    flow = Flow("inline")
    for name in ("a", "b", "c"):
        flow.add_task(name, lambda name=name: name)

    @flow.task(depends_on=["a", "b", "c"])
    def last(a, /, b, *, c, scale=1, unit="mm"):
        return f"{a}{b}{c}" * scale + unit

    assert flow.run() == {"last": "abcmm"}
    assert flow.run(inputs={"scale": 2}) == {"last": "abcmm"}, "inputs go to the tasks that a run starts with"


def test_a_declared_dependency_may_go_unread():
    """What a task depends on need not be a parameter: it only has to finish first."""
    done: list[str] = []
    flow = Flow("inline")
    flow.add_task("prepare", lambda: done.append("prepare"))
    flow.add_task("work", lambda: done.append("work"), depends_on=["prepare"])
    flow.run("prepare")
    assert done == ["prepare", "work"]


@on_three
def test_upstream_has_every_dependency_by_name(executor):
    """``upstream`` maps names to outputs, in the order of ``depends_on``, also for names that are no identifiers."""
    with Flow(executor) as flow:
        flow.add_task("orders-2026", lambda: [1])
        flow.add_task("users", lambda: ["ada"])

        @flow.task(depends_on=["users", "orders-2026"])
        def combine(upstream: dict[str, object]) -> list[object]:
            return [*upstream.items()]

        assert flow.run() == {"combine": [("users", ["ada"]), ("orders-2026", [1])]}


def test_upstream_and_named_parameters_work_together():
    """A task may take one output by name and have all of them in ``upstream``."""
    flow = Flow("inline")
    flow.add_task("users", lambda: 2)
    flow.add_task("orders", lambda: 3)
    flow.add_task("both", lambda users, upstream, ctx: (users, upstream), depends_on=["users", "orders"])
    assert flow.run() == {"both": (2, {"users": 2, "orders": 3})}


def test_upstream_is_nobody_elses():
    """What one task does to its ``upstream`` mapping, another one with the same dependency does not see."""
    flow = Flow("inline")
    flow.add_task("source", lambda: 1)
    flow.add_task("careless", lambda upstream: upstream.clear(), depends_on=["source"])
    flow.add_task("careful", lambda upstream: dict(upstream), depends_on=["source"])
    assert flow.run()["careful"] == {"source": 1}


@on_two
def test_a_diamond_runs_each_task_once(executor):
    """Two branches and a join: every task is called once, the join last."""
    calls: list[str] = []
    with Flow(executor) as flow:

        def add(name: str, needs: list[str]) -> None:
            flow.add_task(name, lambda upstream: calls.append(name) or len(upstream), depends_on=needs)

        add("join", ["left", "right"])
        add("left", ["top"])
        add("right", ["top"])
        add("top", [])
        assert flow.run() == {"join": 2}
    assert sorted(calls) == ["join", "left", "right", "top"]
    assert (calls[0], calls[-1]) == ("top", "join")


# ---- typed context ----------------------------------------------------------------------------------


@on_two
def test_deps_are_given_to_every_task_of_the_run(executor):
    """``run(deps=...)`` reaches each task as ``ctx.deps``, the object itself, and another run has its own."""
    with Flow(executor) as flow:

        @flow.task
        def pull(context: Context[Station]) -> Station:
            return context.deps

        @flow.task
        def push(pull: Station, ctx: Context[Station]) -> bool:
            return pull is ctx.deps

        east, west = Station("east"), Station("west")
        runs = [flow.start(deps=deps) for deps in (east, west)]
        for run, deps in zip(runs, (east, west), strict=True):
            assert run.result(WATCHDOG) == {"push": True}
            assert run.report().tasks["pull"].result is deps
            assert run.context.deps is deps


def test_a_context_by_its_annotation_in_any_position():
    """A parameter that is annotated ``Context`` is the context, whatever its name and place."""
    flow = Flow("inline")

    @flow.task
    def rows() -> list[int]:
        return [1, 2]

    @flow.task
    def first(env: Context[Station], rows: list[int]) -> str:
        return f"{env.deps.url} {rows}"

    @flow.task
    def last(rows: list[int], env: Context[Station]) -> str:
        return f"{env.deps.url} {rows}"

    @flow.task
    def named(rows: list[int], *, env: Context[Station]) -> str:
        return f"{env.deps.url} {rows}"

    @flow.task
    def maybe(rows: list[int], env: Context[Station] | None = None) -> str:
        assert env is not None
        return f"{env.deps.url} {rows}"

    said = "rain.example [1, 2]"
    assert flow.run(deps=Station()) == {"first": said, "last": said, "named": said, "maybe": said}


POSTPONED = """
    from __future__ import annotations

    import typing as t
    from dataclasses import dataclass
    from typing import TYPE_CHECKING

    import millstream
    import millstream as ms
    from millstream import Context, Flow

    if TYPE_CHECKING:
        from warehouse import Frame


    @dataclass
    class Deps:
        base: str


    flow = Flow("inline")


    @flow.task
    def pull(run: Context[Deps]) -> dict[str, str]:
        return {"base": run.deps.base}


    @flow.task
    def dotted(pull: dict[str, str], run: millstream.Context[Deps]) -> str:
        return f"{pull['base']} {run.deps.base}"


    @flow.task
    def short(run: ms.Context["Deps"], pull: Frame) -> str:
        return f"{pull['base']} {run.deps.base}"


    @flow.task
    def optional(pull: Frame[nowhere.At.All], run: t.Optional[Context[Deps]] = None) -> str:
        return f"{pull['base']} {run.deps.base}"


    @flow.task
    def annotated(pull: "Frame | None", *, run: t.Annotated[Context[Deps], "of the day"]) -> str:
        return f"{pull['base']} {run.deps.base}"


    def build(flow):
        @dataclass
        class Local:
            base: str

        @flow.task
        def inner(pull: list[Local], run: Context[Local]) -> str:
            return f"{pull['base']} {run.deps.base}"


    build(flow)
"""


def test_postponed_annotations(package):
    """Under ``from __future__ import annotations`` the context is found, and an unresolvable one spoils no other."""
    module = package({"tasks": POSTPONED})("tasks")
    results = module.flow.run(deps=module.Deps("b"))
    assert results == dict.fromkeys(["dotted", "short", "optional", "annotated", "inner"], "b b")
    assert set(module.flow.dependencies["short"]) == {"pull"}


def test_annotations_that_are_not_postponed(package):
    """The same without the future import, and with quotes."""
    module = package(
        {
            "tasks": """
                from millstream import Context, Flow

                class Deps:
                    base = "b"

                flow = Flow("inline")

                @flow.task
                def pull(run: Context[Deps]) -> str:
                    return run.deps.base

                @flow.task
                def quoted(pull: "Nowhere", run: "Context[Deps]") -> str:
                    return pull + run.deps.base

                @flow.task
                def half(pull: str, run: Context["Deps"]) -> str:
                    return pull + run.deps.base
            """
        }
    )("tasks")
    assert module.flow.run(deps=module.Deps()) == {"quoted": "bb", "half": "bb"}


def test_an_alias_of_the_typed_context():
    """A name for ``Context[Deps]`` in an annotation is as good as the thing itself."""
    flow = Flow("inline")
    flow.add_task("rows", lambda: [1])

    def postponed(rows: list[int], env: StationContext) -> str:
        return f"{env.deps.url} {rows}"

    def given(rows: list[int], env: Any) -> str:
        return f"{env.deps.url} {rows}"

    given.__annotations__["env"] = StationContext
    flow.add_task("postponed", postponed)
    flow.add_task("given", given)
    assert flow.run(deps=Station()) == dict.fromkeys(["postponed", "given"], "rain.example [1]")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the statement is new in Python 3.12")
def test_an_alias_made_by_the_type_statement():
    """An alias that ``type`` makes is seen through, too."""
    scope: dict[str, Any] = {"Context": Context}
    exec("type Env = Context[str]\ndef use(rows: list[int], env: Env) -> str:\n    return env.deps", scope)
    flow = Flow("inline")
    flow.add_task("rows", lambda: [1])
    flow.add_task("use", scope["use"])
    assert flow.run(deps="rain.example") == {"use": "rain.example"}


def test_deps_and_metadata_of_a_context_that_is_given():
    """A ``Context`` brings its deps and metadata along; giving them twice is refused."""
    flow = rain_flow()
    station = Station()
    run = flow.start(context=Context({"day": 3}, deps=station, metadata={"batch": 1}))
    assert run.result(WATCHDOG) == {"save": "15 mm from rain.example"}
    assert run.context["day"] == 3
    assert dict(run.report().metadata) == {"batch": 1}
    with pytest.raises(ValueError, match="metadata"):
        flow.run(context=Context(deps=station), metadata={"batch": 2})


# ---- metadata ---------------------------------------------------------------------------------------


@on_two
def test_metadata_is_in_the_report_and_no_parameter(executor):
    """Metadata of a run are in its report, and tasks see them only in ``ctx.metadata``."""
    with Flow(executor) as flow:
        flow.add_task("plain", lambda: "no parameters")
        flow.add_task("asks", lambda ctx, batch_id="a default": (ctx.metadata["batch_id"], batch_id))
        run = flow.start(["plain", "asks"], metadata={"batch_id": 42, "source": "users_api"})
        assert run.result(WATCHDOG) == {"plain": "no parameters", "asks": (42, "a default")}
        assert run.report().to_dict()["metadata"] == {"batch_id": 42, "source": "users_api"}
        assert "batch_id" not in run.context
        flow.run(["plain"])
        assert flow.report().to_dict()["metadata"] == {}


def test_metadata_are_fixed_for_the_run():
    """Neither the caller's mapping nor a task changes the metadata of a run that has begun."""
    given = {"batch": 1}
    flow = Flow("inline")

    def meddle(ctx: Context) -> None:
        given["batch"] = 2
        with pytest.raises(TypeError):
            ctx.metadata["batch"] = 3  # type: ignore[index]

    flow.add_task("meddle", meddle)
    flow.run(metadata=given)
    report = flow.report().to_dict()
    assert report["metadata"] == {"batch": 1}
    report["metadata"]["batch"] = 4
    assert flow.report().to_dict()["metadata"] == {"batch": 1}


def test_metadata_must_be_a_mapping():
    """What is no mapping is refused, before anything runs."""
    flow = rain_flow()
    with pytest.raises(TypeError, match="metadata"):
        flow.run(metadata=[("batch", 1)])


# ---- deadlines and cooperative cancelling -----------------------------------------------------------


@on_three
def test_time_remaining(executor):
    """A task sees what is left of its timeout, and of the run's when that is nearer; None without a limit."""
    left: dict[str, float | None] = {}

    async def limited() -> None:
        left[current_task().name] = current_task().time_remaining()

    def unlimited() -> None:
        left[current_task().name] = current_task().time_remaining()

    with Flow(executor) as flow:
        flow.add_task("limited", limited, timeout=30.0)
        flow.add_task("unlimited", unlimited)
        flow.run(["limited", "unlimited"])
        assert left["unlimited"] is None
        assert left["limited"] is not None
        assert 0 < left["limited"] <= 30
        flow.run(["limited", "unlimited"], timeout=20.0)
        assert all(remaining is not None and 0 < remaining <= 20 for remaining in left.values())


def test_outside_a_run_a_task_function_still_works():
    """A task's function that asks for the time left, or whether it should stop, can be called directly."""

    def pull() -> float:
        current_task().raise_if_cancelled()
        return current_task().time_remaining() or 10.0

    assert pull() == 10.0


@in_background
def test_a_cancelled_run_tells_its_tasks(executor):
    """After ``cancel`` a task that asks gets TaskCancelledError, nothing further starts, the run raises its own."""
    began, seen, later = threading.Event(), [], []

    def poll() -> None:
        task_now = current_task()
        began.set()
        try:
            while True:
                task_now.raise_if_cancelled()
                threading.Event().wait(0.001)
        except TaskCancelledError as error:
            seen.append(error)
            raise

    with Flow(executor) as flow:
        flow.add_task("poll", poll)
        flow.add_task("after", lambda poll: later.append(poll))
        run = flow.start()
        assert began.wait(WATCHDOG)
        run.cancel()
        with pytest.raises(RunCancelledError) as caught:
            run.result(WATCHDOG)
        assert isinstance(caught.value, CancelledError)
        assert [error.task_id for error in seen] == ["poll"]
        assert later == []
        assert run.status is Status.CANCELLED
        assert statuses(run.report()) == {"poll": "CANCELLED", "after": "CANCELLED"}
        assert run.report().to_dict()["status"] == "CANCELLED"


@in_background
@pytest.mark.parametrize("is_async", [False, True])
def test_a_run_that_takes_too_long(executor, is_async):
    """``run(timeout=)`` ends plain and async tasks alike: RunTimeoutError, and nothing further starts."""
    later: list[int] = []

    def plain() -> None:
        while not current_task().cancelled:
            threading.Event().wait(0.001)

    async def awaits() -> None:
        await asyncio.sleep(WATCHDOG)

    with Flow(executor) as flow:
        flow.add_task("slow", awaits if is_async else plain)
        flow.add_task("after", later.append, depends_on=["slow"])
        with pytest.raises(RunTimeoutError) as caught:
            flow.run(timeout=0.02)
        assert isinstance(caught.value, TimeoutError)
        assert later == []
        report = flow.report()
        assert report.status is Status.FAILED
        assert report.tasks["after"].status is Status.CANCELLED
        assert report.error is not None
        assert report.error.type.endswith("RunTimeoutError")


def test_cancelling_the_awaiter_ends_the_run():
    """A cancelled ``arun`` cancels its run: async tasks get CancelledError, and the report is final."""
    ended: list[str] = []
    flow = Flow("asyncio")

    async def main() -> None:
        began = asyncio.Event()

        async def endless() -> None:
            began.set()
            try:
                await asyncio.sleep(WATCHDOG)
            except asyncio.CancelledError:
                ended.append("endless")
                raise

        flow.add_task("endless", endless)
        flow.add_task("after", lambda endless: ended.append("after"))
        awaiter = asyncio.create_task(flow.arun())
        await asyncio.wait_for(began.wait(), WATCHDOG)
        awaiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaiter

    with flow:
        asyncio.run(main())
        assert ended == ["endless"]
        assert flow.report().status is Status.CANCELLED


# ---- reports ----------------------------------------------------------------------------------------


ROW_KEYS = ["status", "attempt", "runs", "started_at", "finished_at", "error", "result"]
REPORT_KEYS = ["run_id", "flow", "metadata", "created_at", "finished_at", "status", "tasks"]


def test_the_keys_of_a_report(executor):
    """A report as a dict has exactly the keys that are written down, and so has each row."""
    with rain_flow(executor) as flow:
        run = flow.start(deps=Station(), metadata={"batch": 42}, run_id="rain-1")
        run.wait(WATCHDOG)
        report = run.report().to_dict()

    assert sorted(report) == sorted(REPORT_KEYS)
    assert (report["run_id"], report["flow"], report["metadata"]) == ("rain-1", "rain", {"batch": 42})
    assert report["status"] == "SUCCESS"
    assert list(report["tasks"]) == ["read", "sum_up", "save"]
    for row in report["tasks"].values():
        assert sorted(row) == sorted(ROW_KEYS)
        assert (row["status"], row["attempt"], row["runs"], row["error"]) == ("SUCCESS", 1, 1, None)
        assert report["created_at"] <= row["started_at"] <= row["finished_at"] <= report["finished_at"]
    assert report["tasks"]["read"]["result"] == ROWS
    assert json.loads(json.dumps(report)) == report


@on_two
def test_the_row_of_a_failure(executor):
    """A failed row keeps type, message and traceback of the error as text; its result is None."""

    def parse(read: str) -> int:
        return int(read)

    with Flow(executor, on_error="continue") as flow:
        flow.add_task("read", lambda: "ten")
        flow.add_task("parse", parse)
        assert flow.run() == {}
        row = flow.report().to_dict()["tasks"]["parse"]
        assert (row["status"], row["attempt"], row["runs"], row["result"]) == ("FAILED", 1, 1, None)
        assert sorted(row["error"]) == ["message", "traceback", "type"]
        assert row["error"]["type"] == "ValueError"
        assert "'ten'" in row["error"]["message"]
        assert "return int(read)" in row["error"]["traceback"]
        assert json.dumps(row)


def test_a_report_of_a_run_that_is_under_way():
    """While a run goes on its report says RUNNING, and what is pending, running and done."""
    began, go = threading.Event(), threading.Event()
    with Flow("thread") as flow:
        flow.add_task("first", lambda: "done")
        flow.add_task("second", lambda first: (began.set(), go.wait(WATCHDOG)) and first)
        flow.add_task("third", lambda second: second + "!")
        run = flow.start()
        assert began.wait(WATCHDOG)
        report = run.report().to_dict()
        go.set()
        assert run.result(WATCHDOG) == {"third": "done!"}
    assert (report["status"], report["finished_at"]) == ("RUNNING", None)
    rows = report["tasks"]
    assert {name: row["status"] for name, row in rows.items()} == {
        "first": "SUCCESS",
        "second": "RUNNING",
        "third": "PENDING",
    }
    assert (rows["second"]["attempt"], rows["second"]["runs"], rows["second"]["finished_at"]) == (1, 0, None)
    assert (rows["third"]["attempt"], rows["third"]["started_at"], rows["third"]["result"]) == (0, None, None)
    assert run.report().to_dict()["status"] == "SUCCESS"


def test_a_report_is_readable_whatever_a_result_is():
    """A result that cannot be shown spoils neither the report nor its text."""

    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    shy = Shy()
    flow = Flow("inline")
    flow.add_task("make", lambda: shy)
    flow.run()
    assert flow.report().to_dict()["tasks"]["make"]["result"] is shy
    assert "make" in flow.report().to_text()
    assert "SUCCESS" in repr(flow.report())


def test_a_report_by_its_run_id():
    """``flow.report`` gives that of the newest run, or by id; an id that nobody knows is named in the error."""
    flow = rain_flow()
    with pytest.raises(UnknownRunError, match="rain"):
        flow.report()
    flow.run(deps=Station(), run_id="monday")
    flow.run(deps=Station(), run_id="tuesday")
    assert flow.report().run_id == "tuesday"
    assert flow.report("tuesday") == flow.report()
    with pytest.raises(UnknownRunError, match="sunday") as caught:
        flow.report("sunday")
    assert isinstance(caught.value, LookupError)


def test_a_report_does_not_change_after_the_run():
    """A report that was taken is a value: a later run of the flow leaves it as it was."""
    values = iter([1, 2])
    flow = Flow("inline")
    flow.add_task("next", lambda: next(values))
    flow.run()
    first = flow.report()
    flow.run()
    assert (first.tasks["next"].result, flow.report().tasks["next"].result) == (1, 2)
    assert first.run_id != flow.report().run_id


# ---- the status of a run ----------------------------------------------------------------------------


def branches(executor: Any, **options: Any) -> Flow:
    """Two branches: ``bad >> after >> last`` fails at its begin, ``good >> fine`` does not."""
    flow = Flow(executor, on_error="continue", **options)

    def bad() -> None:
        raise OSError("disk")

    flow.add_task("bad", bad)
    flow.add_task("after", lambda bad: "after", on_dep_failure="skip")
    flow.add_task("last", lambda after: "last", on_dep_failure="skip")
    flow.add_task("good", lambda: "good")
    flow.add_task("fine", lambda good: good + " and fine")
    return flow


@on_three
def test_other_branches_go_on_and_dependants_are_skipped(executor):
    """With ``continue`` and ``skip`` a failure raises nothing, its dependants are SKIPPED, other branches finish."""
    with branches(executor) as flow:
        assert flow.run() == {"fine": "good and fine"}
        report = flow.report()
        assert statuses(report) == {
            "bad": "FAILED",
            "after": "SKIPPED",
            "last": "SKIPPED",
            "good": "SUCCESS",
            "fine": "SUCCESS",
        }
        assert report.status is Status.FAILED
        row = report.to_dict()["tasks"]["after"]
        assert (row["attempt"], row["runs"], row["started_at"], row["result"]) == (0, 0, None, None)


@on_two
def test_a_run_is_success_when_every_task_is(executor):
    """SUCCESS when nothing failed."""
    with rain_flow(executor, on_error="continue") as flow:
        flow.run(deps=Station())
        assert flow.report().status is Status.SUCCESS


@on_two
def test_a_run_is_failed_when_a_task_is(executor):
    """FAILED when a task failed, whether the run raised it or not."""
    with branches(executor) as flow:
        run = flow.start()
        run.wait(WATCHDOG)
        assert run.status is Status.FAILED
    with Flow(executor) as flow:
        flow.add_task("bad", lambda: 1 / 0)
        flow.add_task("after", lambda bad: bad)
        with pytest.raises(ZeroDivisionError):
            flow.run()
        report = flow.report()
        assert report.status is Status.FAILED
        assert statuses(report) == {"bad": "FAILED", "after": "CANCELLED"}
        assert report.error is not None
        assert report.error.type == "ZeroDivisionError"


@on_two
def test_a_branch_that_was_not_chosen_fails_no_run(executor):
    """What a router did not choose is SKIPPED, with all behind it, and the run is SUCCESS."""
    with Flow(executor, on_error="continue") as flow:
        flow.add_task("grade", lambda mm: "flood" if mm > 10 else "calm", routes=["flood", "calm"])
        flow.add_task("flood", lambda payload: "sandbags")
        flow.add_task("calm", lambda payload: "tea")
        flow.add_task("biscuits", lambda calm: f"{calm} and biscuits")
        assert flow.run(inputs={"mm": 11}) == {"flood": "sandbags"}
        report = flow.report()
        assert report.status is Status.SUCCESS
        assert statuses(report) == {
            "grade": "SUCCESS",
            "flood": "SUCCESS",
            "calm": "SKIPPED",
            "biscuits": "SKIPPED",
        }


@on_two
def test_without_skip_a_dependant_fails(executor):
    """The default of ``on_dep_failure``: FAILED with DependencyFailedError, which names what failed."""
    with Flow(executor, on_error="continue") as flow:
        flow.add_task("bad", lambda: 1 / 0)
        flow.add_task("after", lambda bad: bad)
        assert flow.run() == {}
        report = flow.report()
        assert statuses(report) == {"bad": "FAILED", "after": "FAILED"}
        error = report.tasks["after"].error
        assert error is not None
        assert error.type.endswith(DependencyFailedError.__name__)
        assert "bad" in error.message


# ---- subgraphs --------------------------------------------------------------------------------------


def forked(executor: Any = "inline", **options: Any) -> tuple[Flow, list[str]]:
    """``read`` feeds ``clean`` and ``audit``; ``clean`` feeds ``load`` and ``mail``. Returns what was called, too."""
    flow = Flow(executor, name="forked", **options)
    called: list[str] = []

    @flow.task
    def read() -> int:
        called.append("read")
        return 2

    @flow.task
    def clean(read: int) -> int:
        called.append("clean")
        return read * 10

    @flow.task
    def audit(read: int) -> str:
        called.append("audit")
        return f"audited {read}"

    @flow.task
    def load(clean: int, ctx: Context) -> str:
        called.append("load")
        return f"loaded {clean}"

    @flow.task
    def mail(clean: int) -> str:
        called.append("mail")
        return f"mailed {clean}"

    return flow, called


@on_three
def test_targets_run_one_branch_and_what_it_needs(executor):
    """``targets`` runs these tasks and their dependencies, also indirect ones, and the report has no other row."""
    flow, called = forked(executor)
    with flow:
        assert flow.run(targets=["load"], metadata={"part": True}) == {"load": "loaded 20"}
        assert called == ["read", "clean", "load"]
        assert statuses(flow.report()) == dict.fromkeys(called, "SUCCESS")
        assert flow.report().status is Status.SUCCESS
        assert dict(flow.report().metadata) == {"part": True}


def test_targets_of_every_way_to_run():
    """``start``, ``stream``, ``arun``, ``astream`` and ``run_many`` take targets, too."""
    flow, called = forked()

    async def awaited() -> list[Any]:
        return [
            await flow.arun(targets=["audit"]),
            dict([tuple(chunk) async for chunk in flow.astream(targets=["audit"])]),
        ]

    with flow:
        assert flow.start(targets=["audit"]).result() == {"audit": "audited 2"}
        assert dict(flow.stream(targets=["audit"])) == {"read": 2, "audit": "audited 2"}
        assert asyncio.run(awaited()) == [{"audit": "audited 2"}, {"read": 2, "audit": "audited 2"}]
        assert [run.result() for run in flow.run_many([None], targets=["audit"])] == [{"audit": "audited 2"}]
    assert set(called) == {"read", "audit"}


def test_several_targets_and_targets_as_functions():
    """Several targets share what they need; a target in the middle is a result; functions will do as names."""
    flow, called = forked()
    assert flow.run(targets=["load", "audit"]) == {"load": "loaded 20", "audit": "audited 2"}
    assert sorted(called) == ["audit", "clean", "load", "read"]
    called.clear()
    assert flow.run(targets=["clean"]) == {"clean": 20}
    assert flow.run(targets=["clean", "load"]) == {"load": "loaded 20"}
    assert flow.run(targets=[flow.tasks["audit"].fn]) == {"audit": "audited 2"}
    assert flow.run(targets=[flow["audit"]]) == {"audit": "audited 2"}


def test_a_failure_outside_of_the_targets_does_not_matter():
    """What is not needed for the targets is neither called nor waited for, and asks for no inputs."""
    with branches("inline") as flow:
        flow.add_task("asks", lambda *, path: path)
        assert flow.run(targets=["fine"]) == {"fine": "good and fine"}
        assert flow.report().status is Status.SUCCESS


@pytest.mark.parametrize("how", [lambda flow, names: flow.run(targets=names), lambda flow, names: flow.subgraph(names)])
def test_unknown_targets_are_refused(how):
    """A target that is no task is refused before anything runs, and the error helps."""
    flow, called = forked()
    with pytest.raises(TaskNotFoundError, match="Did you mean load"):
        how(flow, ["audit", "laod"])
    with pytest.raises(ValueError, match="empty"):
        how(flow, [])
    with pytest.raises(TypeError, match="list"):
        how(flow, "load")
    with pytest.raises(TaskNotFoundError):
        how(flow, [rain_flow().tasks["read"].fn])
    assert called == []


@on_two
def test_a_subgraph_is_a_flow_of_its_own(executor):
    """``subgraph`` gives a new flow with the targets and what they need; the original is unchanged."""
    flow, called = forked(executor)
    with flow, flow.subgraph(["load"]) as part:
        assert (part.name, list(part.tasks)) == ("forked", ["read", "clean", "load"])
        assert part.dependencies == {"read": (), "clean": ("read",), "load": ("clean",)}
        part.validate()
        assert part.run() == {"load": "loaded 20"}
        assert called == ["read", "clean", "load"]
        part.add_task("read", lambda: 3, replace=True)
        assert part.run() == {"load": "loaded 30"}
        assert len(flow.tasks) == 5
        assert flow.run(targets=["load"]) == {"load": "loaded 20"}


def test_a_subgraph_keeps_options_and_settings():
    """Retries of its tasks, hooks and ``on_error`` of the flow hold in a subgraph."""
    told: list[str] = []
    hook = fn_hook(on_task_failure=lambda event: told.append(f"{event.task} {event.attempt}"))
    flow = Flow("inline", on_error="continue", hooks=[hook])

    def broken() -> None:
        raise OSError("disk")

    flow.add_task("broken", broken, retries=1)
    flow.add_task("other", lambda: None)
    with flow.subgraph(["broken"]) as part:
        run = part.start()
        assert run.result() == {}
        assert run.report().tasks["broken"].attempt == 2
    assert told == ["broken 1", "broken 2"]


# ---- overrides --------------------------------------------------------------------------------------


@on_three
def test_override_replaces_with_constants_and_callables(executor):
    """A new flow has other functions or values in place of some tasks, and the same graph."""
    station = Station()
    with rain_flow(executor) as flow:
        fake = flow.override(
            read=[{"station": 1, "mm": 1}],
            save=lambda sum_up, ctx: f"would save {sum_up['mm']} of {ctx.deps.url}",
        )
        with fake:
            assert fake.run(deps=station) == {"save": "would save 1 of rain.example"}
            assert station.shelf == {}
            assert fake.report().tasks["read"].result == [{"station": 1, "mm": 1}]
            assert (fake.name, fake.dependencies, list(fake.tasks)) == (flow.name, flow.dependencies, list(flow.tasks))
        assert flow.run(deps=station) == {"save": "15 mm from rain.example"}, "the original is unchanged"


@pytest.mark.parametrize("value", [None, 0, "", (), (1, 2), [1], {"a": 1}, False])
def test_any_value_is_a_constant(value):
    """A constant is the task's output as it is, whatever it is."""
    with rain_flow().override(read=value, sum_up=lambda read: read is value, save=lambda sum_up: sum_up) as flow:
        assert flow.run() == {"save": True}


@on_two
def test_override_between_plain_and_async(executor):
    """An async task may be replaced by a plain function or a constant, and the other way round."""

    async def slow() -> int:
        raise AssertionError("the real one was called")

    async def awaits() -> int:
        await asyncio.sleep(0)
        return 2

    with Flow(executor) as flow:
        flow.add_task("a", slow)
        flow.add_task("b", lambda: 0)
        flow.add_task("both", lambda a, b: (a, b))
        for value in (1, lambda: 1):
            with flow.override(a=value, b=awaits) as fake:
                assert fake.run() == {"both": (1, 2)}


def test_override_with_a_mapping_for_other_names():
    """Names that are no identifiers are overridden by a mapping, mixed with keywords."""
    flow = Flow("inline")
    flow.add_task("raw/rain.csv", lambda: 1 / 0)
    flow.add_task("tasks", lambda: 1 / 0)
    flow.add_task("use", lambda upstream: upstream, depends_on=["raw/rain.csv", "tasks"])
    fake = flow.override({"raw/rain.csv": 4}, tasks=5)
    assert fake.run() == {"use": {"raw/rain.csv": 4, "tasks": 5}}


def test_override_with_a_callable_as_the_value():
    """Where the output shall be a function, a function that returns it is given."""
    flow = Flow("inline")
    flow.add_task("parser", lambda: int)
    flow.add_task("parse", lambda parser: parser("12.5"))
    assert flow.override(parser=lambda: float).run() == {"parse": 12.5}


def test_override_refuses_unknown_names():
    """A name that is no task is refused, with the nearest."""
    with pytest.raises(TaskNotFoundError, match="Did you mean read"):
        rain_flow().override(raed=[])
    with pytest.raises(TaskNotFoundError):
        rain_flow().override({"read ": []})


def test_override_keeps_options_edges_and_settings():
    """Retries, names of dependencies and the flow's policies stay when functions are replaced."""
    calls: list[int] = []

    def flaky(anything) -> str:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError
        return "third time"

    flow = Flow("inline", on_error="continue")
    flow.add_task("source", lambda: "s")
    flow.add_task("call", lambda source: source, retries=2)
    flow.add_task("end", lambda call: call, on_dep_failure="skip")
    fake = flow.override(call=lambda source: flaky(source))
    assert fake.run() == {"end": "third time"}
    failing = flow.override(call=lambda: 1 / 0)
    assert failing.run() == {}
    assert statuses(failing.report()) == {"source": "SUCCESS", "call": "FAILED", "end": "SKIPPED"}


def test_a_stand_in_infers_no_new_dependencies():
    """A replacement whose parameter bears another task's name does not change the graph."""
    flow, _ = forked()
    fake = flow.override(load=lambda clean, audit="no audit": (clean, audit))
    assert fake.dependencies == flow.dependencies
    assert fake.run()["load"] == (20, "no audit")


def test_a_router_is_overridden_by_its_choice():
    """A constant in place of a router chooses, so that a test can go either way."""
    flow = Flow("inline")
    flow.add_task("grade", lambda mm: "flood" if mm > 10 else "calm", routes=["flood", "calm"])
    flow.add_task("flood", lambda payload: f"sandbags {payload}")
    flow.add_task("calm", lambda payload: f"tea {payload}")
    assert flow.override(grade="calm").run() == {"calm": "tea None"}
    assert flow.override(grade={"flood": 12}).run() == {"flood": "sandbags 12"}


def test_a_mapped_task_is_overridden():
    """A constant replaces the whole output of a mapped task, a function what is done for each item."""
    flow = Flow("inline")
    flow.add_task("rows", lambda: [1, 2, 3])
    flow.add_task("square", lambda item: item * item, for_each="rows")
    flow.add_task("total", lambda square: sum(square))
    assert flow.run() == {"total": 14}
    assert flow.override(square=[5]).run() == {"total": 5}
    assert flow.override(square=lambda index: index).run() == {"total": 3}


def test_overriding_hides_no_problem():
    """What is wrong with the edges of a flow is wrong in what ``override`` makes of it."""
    flow = Flow("inline")
    flow.add_task("read", lambda: 1)
    flow.add_task("use", lambda upstream: upstream, depends_on=["read", rain_flow().tasks["save"].fn])
    with pytest.raises(TaskNotFoundError, match="save"):
        flow.run()
    with pytest.raises(TaskNotFoundError, match="save"):
        flow.override(read=2).run()


def test_overrides_of_overrides_and_of_subgraphs():
    """What ``override`` and ``subgraph`` return is a flow like any other."""
    flow, called = forked()
    fake = flow.override(read=7).override(clean=lambda read: read + 1).subgraph(["load"])
    assert fake.run() == {"load": "loaded 8"}
    assert flow.subgraph(["mail"]).override(clean=1).run() == {"mail": "mailed 1"}
    assert flow.override(read=3).run(targets=["audit"]) == {"audit": "audited 3"}
    assert called == ["load", "read", "mail", "audit"]


# ---- hooks ------------------------------------------------------------------------------------------


class Recorder(Hook):
    """Keeps every event; ``of`` waits for the end of a run and gives its events."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.ended = threading.Semaphore(0)

    def keep(self, event: Any) -> None:
        self.events.append(event)

    on_run_start = on_task_start = on_task_success = on_task_failure = on_task_retry = on_task_skip = keep

    def on_run_end(self, event: RunEndEvent) -> None:
        self.events.append(event)
        self.ended.release()

    def of(self, run_id: str) -> list[Any]:
        assert self.ended.acquire(timeout=WATCHDOG)
        return [event for event in self.events if event.run_id == run_id]


@on_three
def test_every_event(executor):
    """A run with success, retry, failure and skip tells of each step, in the order of what causes what."""
    recorder = Recorder()
    tries = itertools.count(1)

    def flaky() -> str:
        if next(tries) == 1:
            raise ConnectionError("later")
        return "rows"

    def parse(flaky: str) -> None:
        raise ValueError(flaky)

    with Flow(executor, name="eventful", hooks=[recorder], on_error="continue") as flow:
        flow.add_task("flaky", flaky, retries=1)
        flow.add_task("parse", parse)
        flow.add_task("save", lambda parse: parse, on_dep_failure="skip")
        run = flow.start()
        assert run.result(WATCHDOG) == {}
        events = recorder.of(run.id)

    assert [(type(event), getattr(event, "task", None)) for event in events] == [
        (RunStartEvent, None),
        (TaskStartEvent, "flaky"),
        (TaskFailureEvent, "flaky"),
        (TaskRetryEvent, "flaky"),
        (TaskStartEvent, "flaky"),
        (TaskSuccessEvent, "flaky"),
        (TaskStartEvent, "parse"),
        (TaskFailureEvent, "parse"),
        (TaskSkipEvent, "save"),
        (RunEndEvent, None),
    ]
    assert {event.flow for event in events} == {"eventful"}
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert [event.id for event in events[1:-1]] == [event.task for event in events[1:-1]]
    _, start, failure, retry, again, success, _, final, skip, end = events

    assert (start.attempt, failure.attempt, retry.attempt, again.attempt, success.attempt) == (1, 1, 2, 2, 2)
    assert isinstance(failure.error, ConnectionError)
    assert retry.error is failure.error
    assert (failure.will_retry, failure.delay, retry.delay) == (True, 0, 0)
    assert (final.will_retry, final.delay, final.attempt, str(final.error)) == (False, None, 1, "rows")
    assert success.output == "rows"
    assert all(event.duration >= 0 for event in (failure, success, final, end))
    assert "parse" in skip.reason
    assert end.status is Status.FAILED


def test_the_end_of_a_run_that_raises():
    """RunEndEvent carries the status and the very error that the run raises; of a good run None."""
    recorder = Recorder()
    with Flow("thread", hooks=[recorder]) as flow:
        flow.add_task("bad", lambda: 1 / 0)
        flow.add_task("good", lambda: 1)
        with pytest.raises(ZeroDivisionError) as caught:
            flow.run("bad", run_id="one")
        end = recorder.of("one")[-1]
        assert (end.status, end.error) == (Status.FAILED, caught.value)
        flow.run("good", run_id="two")
        end = recorder.of("two")[-1]
        assert (end.status, end.error) == (Status.SUCCESS, None)


def test_the_end_of_a_run_that_was_cancelled():
    """A cancelled run ends with its status, and tells so."""
    recorder, began = Recorder(), threading.Event()

    async def endless() -> None:
        began.set()
        await asyncio.sleep(WATCHDOG)

    with Flow(hooks=[recorder]) as flow:
        flow.add_task("endless", endless)
        run = flow.start()
        assert began.wait(WATCHDOG)
        run.cancel()
        run.wait(WATCHDOG)
        end = recorder.of(run.id)[-1]
    assert isinstance(end, RunEndEvent)
    assert end.status is Status.CANCELLED
    assert isinstance(end.error, RunCancelledError)


def test_a_timeout_is_a_failure_event():
    """An attempt that took too long is told as a failure, with TaskTimeoutError."""
    recorder = Recorder()

    async def slow() -> None:
        await asyncio.sleep(WATCHDOG)

    with Flow(hooks=[recorder], on_error="continue") as flow:
        flow.add_task("slow", slow, timeout=0.01)
        flow.run(run_id="one")
        (failure,) = [event for event in recorder.of("one") if isinstance(event, TaskFailureEvent)]
    assert isinstance(failure.error, TaskTimeoutError)
    assert (failure.task, failure.will_retry) == ("slow", False)


def test_what_was_not_chosen_is_told():
    """A branch that a router did not choose is a skip event for each of its tasks, with the reason."""
    recorder = Recorder()
    with Flow("inline", hooks=[recorder]) as flow:
        flow.add_task("grade", lambda: "flood", routes=["flood", "calm"])
        flow.add_task("flood", lambda payload: payload)
        flow.add_task("calm", lambda payload: payload)
        flow.add_task("biscuits", lambda calm: calm)
        flow.run(run_id="one")
        skips = [event for event in recorder.of("one") if isinstance(event, TaskSkipEvent)]
    assert [event.task for event in skips] == ["calm", "biscuits"]
    assert all(event.reason for event in skips)


def test_functions_as_hooks():
    """``fn_hook`` makes a hook of any of the callbacks; only those are called."""
    said: list[str] = []
    hook = fn_hook(
        on_task_failure=lambda event: said.append(f"FAIL {event.task}: {event.error}"),
        on_run_end=lambda event: said.append(f"DONE {event.flow}"),
    )
    with branches("inline", name="etl", hooks=[hook]) as flow:
        flow.run()
    assert said == ["FAIL bad: disk", "DONE etl"]


def test_several_hooks_are_each_told():
    """Each hook of a flow gets all events, of every run of that flow, and of no other flow."""
    first, second = Recorder(), Recorder()
    with rain_flow(hooks=[first, second]) as flow, rain_flow() as other:
        flow.run(deps=Station(), run_id="one")
        other.run(deps=Station(), run_id="two")
        flow.run(deps=Station(), run_id="three")
        for recorder in (first, second):
            assert len(recorder.of("one")) == len(recorder.of("three")) == 8
            assert {event.run_id for event in recorder.events} == {"one", "three"}


@on_two
@pytest.mark.parametrize("error", [ValueError("broken hook"), SystemExit(3)])
def test_a_hook_that_raises_harms_nothing(executor, error, caplog):
    """What a hook raises is logged with the name of the method; the run and other hooks go on."""

    class Broken(Hook):
        def on_task_success(self, event: TaskSuccessEvent) -> None:
            raise error

    recorder = Recorder()
    with rain_flow(executor, hooks=[Broken(), recorder]) as flow:
        assert flow.run(deps=Station(), run_id="one") == {"save": "15 mm from rain.example"}
        assert flow.report().status is Status.SUCCESS
        assert len(recorder.of("one")) == 8
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.run_id for record in logged] == ["one"] * 3
    for record in logged:
        assert "on_task_success" in record.getMessage()
        assert type(error).__name__ in record.getMessage()
        assert "raise error" in record.getMessage(), "the traceback is there"


def test_an_async_hook_is_refused():
    """A hook that a call would not run is refused where it is made."""

    async def notify(event: object) -> None: ...

    with pytest.raises(TypeError, match="async"):
        fn_hook(on_run_end=notify)
    with pytest.raises(TypeError, match="async"):

        class Notify(Hook):
            async def on_run_end(self, event: RunEndEvent) -> None: ...


def test_the_old_names_of_callbacks_are_refused():
    """Callbacks that are no methods of a hook are refused, with those that there are."""
    with pytest.raises(TypeError, match="on_run_end"):
        fn_hook(on_dag_end=print)
    with pytest.raises(TypeError, match="on_run_start"):

        class Started(Hook):
            def on_dag_start(self, event: object) -> None: ...


# ---- practical patterns -----------------------------------------------------------------------------


def test_validation_and_quarantine():
    """Async extraction, pure transforms, accepted and rejected rows, a sink for each, and a join of both."""
    shelf: dict[str, Any] = {}

    async def fetch(page: int) -> list[dict[str, Any]]:
        await asyncio.sleep(0)
        return [{"id": page, "mm": "4"}, {"id": page, "mm": "four"}]

    def parted(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return [row for row in rows if row["mm"].isdigit()], [row for row in rows if not row["mm"].isdigit()]

    def add_sink(flow: Flow, name: str, part: int) -> None:
        @flow.task(name, depends_on=["check"])
        def sink(check, ctx: Context[dict[str, Any]]) -> int:
            ctx.deps[name] = check[part]
            return len(check[part])

    with Flow("thread", name="quarantine") as flow:

        @flow.task(retries=2, timeout=WATCHDOG)
        async def extract() -> list[dict[str, Any]]:
            pages = await asyncio.gather(fetch(1), fetch(2))
            return [row for page in pages for row in page]

        @flow.task
        def check(extract: list[dict[str, Any]]) -> Any:
            return parted(extract)

        add_sink(flow, "accepted", 0)
        add_sink(flow, "rejected", 1)

        @flow.task
        def summary(accepted: int, rejected: int) -> str:
            return f"{accepted} accepted, {rejected} rejected"

        assert flow.run(deps=shelf) == {"summary": "2 accepted, 2 rejected"}
    assert [row["mm"] for row in shelf["accepted"]] == ["4", "4"]
    assert [row["mm"] for row in shelf["rejected"]] == ["four", "four"]


@dataclass(frozen=True)
class Chunk:
    """What the tasks of a micro-batch need."""

    number: int
    rows: list[dict[str, int]]


def batch_flow(executor: Any = "thread") -> tuple[Flow, list[str]]:
    """A flow of two tasks over a chunk; the list tells what was done when."""
    flow = Flow(executor, name="batches")
    log: list[str] = []

    @flow.task
    def extract(context: Context[Chunk]) -> list[int]:
        log.append(f"begin {context.deps.number}")
        return [row["value"] for row in context.deps.rows]

    @flow.task
    def total(extract: list[int], context: Context[Chunk]) -> int:
        log.append(f"end {context.deps.number}")
        return sum(extract)

    return flow, log


def chunk_context(number: int) -> Context[Chunk]:
    """Return the context of one micro-batch."""
    rows = [{"value": number * 10 + offset} for offset in range(3)]
    return Context(deps=Chunk(number, rows), metadata={"batch_id": number, "source": "users_api"})


def test_micro_batches_one_after_another(executor):
    """``arun_many`` runs the flow once for each context of an async generator, in turn, as they come."""
    flow, log = batch_flow(executor)

    async def contexts() -> AsyncIterator[Context[Chunk]]:
        for number in range(3):
            await asyncio.sleep(0)
            log.append(f"made {number}")
            yield chunk_context(number)

    async def main() -> list[Any]:
        async with flow:
            return [run async for run in flow.arun_many(contexts())]

    runs = asyncio.run(main())
    assert log == [f"{step} {number}" for number in range(3) for step in ("made", "begin", "end")]
    assert [run.result() for run in runs] == [{"total": 3}, {"total": 33}, {"total": 63}]
    assert len({run.id for run in runs}) == 3
    for number, run in enumerate(runs):
        report = run.report().to_dict()
        assert report["metadata"] == {"batch_id": number, "source": "users_api"}
        assert report["status"] == "SUCCESS"
        assert run.context.to_dict() == {
            "extract": [number * 10, number * 10 + 1, number * 10 + 2],
            "total": number * 30 + 3,
        }


@on_two
def test_micro_batches_without_asyncio(executor):
    """``run_many`` takes any iterable, of contexts and of inputs, and gives the runs in order as they have ended."""
    flow, log = batch_flow(executor)
    with flow:
        runs = flow.run_many(chunk_context(number) for number in range(3))
        assert [run.result()["total"] for run in runs] == [3, 33, 63]
        assert log == [f"{step} {number}" for number in range(3) for step in ("begin", "end")]
    with Flow(executor) as flow:
        flow.add_task("square", lambda n=7: n * n)
        runs = flow.run_many([{"n": 2}, {"n": 3}, None, Context({"n": 5})])
        assert [run.result()["square"] for run in runs] == [4, 9, 49, 49]


def test_micro_batches_take_the_options_of_a_run():
    """A start, targets, deps and metadata for all batches are given beside the items."""
    flow = Flow("inline")
    flow.add_task("first", lambda n, ctx: (n, ctx.deps, ctx.metadata["day"]))
    flow.add_task("second", lambda first: first)
    many = flow.run_many([{"n": 1}, {"n": 2}], "first", targets=["first"], deps="d", metadata={"day": "mon"})
    assert [run.result() for run in many] == [{"first": (1, "d", "mon")}, {"first": (2, "d", "mon")}]


@on_two
def test_an_endless_source_of_batches(executor):
    """Items are pulled as the runs are taken, so a source may be endless; nothing of old runs is kept."""
    pulled: list[int] = []

    def source() -> Iterator[dict[str, int]]:
        for number in itertools.count():
            pulled.append(number)
            yield {"n": number}

    with Flow(executor) as flow:
        flow.add_task("square", lambda n: n * n)
        runs = flow.run_many(source())
        assert [next(runs).result()["square"] for _ in range(50)] == [n * n for n in range(50)]
        assert len(pulled) == 50
        runs.close()
        gc.collect()
        kept = [each for each in gc.get_objects() if isinstance(each, millstream.FlowRun) and each.plan.owner() is flow]
        assert len(kept) <= 2
        del kept


def test_a_batch_that_fails_stops_no_other():
    """What failed is raised by ``result()`` of that run; the following batches run."""
    with Flow("thread") as flow:
        flow.add_task("invert", lambda n: 1 / n)
        runs = list(flow.run_many([{"n": 1}, {"n": 0}, {"n": 2}]))
        assert [run.status for run in runs] == [Status.SUCCESS, Status.FAILED, Status.SUCCESS]
        with pytest.raises(ZeroDivisionError):
            runs[1].result()
        assert runs[2].result() == {"invert": 0.5}


def test_batches_side_by_side_come_out_in_order():
    """``max_concurrent=2`` has two runs under way, and yields them in the order of the items."""
    second_began = threading.Event()
    inside = Tally()

    def work(n: int) -> int:
        with inside:
            if n == 0:
                assert second_began.wait(WATCHDOG)
            else:
                second_began.set()
        return n

    with Flow("thread", max_workers=8) as flow:
        flow.add_task("work", work)
        runs = list(flow.run_many(({"n": n} for n in range(6)), max_concurrent=2))
        assert [run.result()["work"] for run in runs] == list(range(6))
        with pytest.raises(ValueError, match="max_concurrent"):
            next(flow.run_many([None], max_concurrent=0))
    assert inside.most <= 2


def test_leaving_the_batches_early():
    """Leaving the loop pulls no further item, and cancels what is under way."""
    pulled: list[int] = []
    began = threading.Event()

    async def endless(n: int) -> int:
        if n:
            began.set()
            await asyncio.sleep(WATCHDOG)
        return n

    async def items() -> AsyncIterator[dict[str, int]]:
        for n in range(5):
            pulled.append(n)
            yield {"n": n}

    async def main(flow: Flow) -> None:
        async with contextlib.aclosing(flow.arun_many(items(), max_concurrent=2)) as runs:
            async for run in runs:
                assert run.result() == {"endless": 0}
                break

    with Flow("thread") as flow:
        flow.add_task("endless", endless)
        asyncio.run(main(flow))
        assert pulled == [0, 1]
        assert flow.report().status is Status.CANCELLED


def test_batches_inside_a_task():
    """A task may drive batches of its own flow, also when there is one worker."""
    with Flow("thread", max_workers=1) as flow:
        flow.add_task("double", lambda n: 2 * n)
        flow.add_task("all", lambda: [run.result()["double"] for run in flow.run_many([{"n": 1}, {"n": 2}], "double")])
        assert flow.run("all") == {"all": [2, 4]}


def test_one_id_is_not_for_many_runs():
    """``run_id`` names one run: many runs do not share it."""
    flow = Flow("inline")
    flow.add_task("n", lambda: 1)
    with pytest.raises((TypeError, ValueError), match="run_id"):
        list(flow.run_many([None, None], run_id="same"))


def test_a_source_of_batches_that_fails():
    """What the source of items raises comes out of the loop, after the runs before it."""

    def source() -> Iterator[dict[str, int]]:
        yield {"n": 1}
        raise EOFError("no more chunks")

    with Flow("inline") as flow:
        flow.add_task("n", lambda n: n, depends_on=[])
        runs = flow.run_many(source())
        assert next(runs).result() == {"n": 1}
        with pytest.raises(EOFError):
            next(runs)


def test_what_is_no_batch_is_refused():
    """An item that is neither a mapping nor a context is refused by type."""
    flow = Flow("inline")
    flow.add_task("n", lambda: 1)
    with pytest.raises(TypeError, match="run_many"):
        list(flow.run_many([7]))


# ---- validation -------------------------------------------------------------------------------------


def test_a_sound_flow_is_valid():
    """``validate`` says nothing when there is nothing to say, and calls no task."""
    flow, called = forked()
    assert flow.validate() is None
    assert rain_flow().validate() is None
    assert called == []


def test_an_empty_flow():
    """A flow without tasks is refused, by ``validate`` and by ``run``."""
    flow = Flow("inline", name="nothing")
    (problem,) = problems_of(flow)
    assert isinstance(problem, FlowError)
    assert "nothing" in str(problem)
    with pytest.raises(FlowError, match="no tasks"):
        flow.run()


def test_missing_dependencies():
    """A dependency that is no task is named, with who asks for it; a run calls nothing."""
    called: list[int] = []
    flow = Flow("inline")
    flow.add_task("fine", lambda: called.append(1))
    flow.add_task("load", lambda: None, depends_on=["transfrom"])
    flow.add_task("transform", lambda fine: None)
    (problem,) = problems_of(flow)
    assert isinstance(problem, TaskNotFoundError)
    assert problem.name == "transfrom"
    assert "transform" in str(problem)
    assert any("load" in note for note in problem.__notes__)
    with pytest.raises(TaskNotFoundError, match="transfrom"):
        flow.run()
    assert called == []


def test_dependencies_of_another_flow():
    """A function of another flow is a TaskNotFoundError that says where to look."""
    there, here = rain_flow(), Flow("inline")
    here.add_task("use", lambda upstream: upstream, depends_on=[there.tasks["sum_up"].fn])
    here.add_task("use_task", lambda upstream: upstream, depends_on=[there["save"]])
    problems = problems_of(here)
    assert [type(problem) for problem in problems] == [TaskNotFoundError, TaskNotFoundError]
    assert [problem.name for problem in problems] == ["sum_up", "save"]
    assert all("another flow" in " ".join(problem.__notes__) for problem in problems)
    with pytest.raises(ExceptionGroup):
        here.run()


def test_a_function_of_another_flow_with_the_name_of_a_task_here():
    """That this flow has a task of the same name does not make the function one of its own."""
    there, here = rain_flow(), rain_flow()
    here.add_task("use", lambda upstream: upstream, depends_on=[there.tasks["read"].fn])
    (problem,) = problems_of(here)
    assert isinstance(problem, TaskNotFoundError)
    assert "Did you mean read?" not in str(problem), "that is what was asked for"


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_a_circle_shows_its_path(size):
    """A circle of dependencies is a CycleError with the path; the run calls nothing."""
    called: list[int] = []
    flow = Flow("inline")
    flow.add_task("start", lambda: called.append(1))
    for number in range(size):
        before = ["start", f"t{(number - 1) % size}"]
        flow.add_task(f"t{number}", lambda: called.append(1), depends_on=before)
    (problem,) = problems_of(flow)
    assert isinstance(problem, CycleError)
    assert problem.path[0] == problem.path[-1]
    assert sorted(problem.path[1:]) == sorted(f"t{number}" for number in range(size))
    for before, after in itertools.pairwise(problem.path):
        assert before in flow.dependencies[after]
    assert " >> ".join(problem.path) in str(problem)
    for way in (flow.run, flow.stream, flow.start):
        with pytest.raises(CycleError):
            way("start")
    assert called == []


def test_a_circle_of_inferred_dependencies():
    """A circle that only parameters make is found, too."""
    flow = Flow("inline")
    flow.add_task("hen", lambda egg: egg)
    flow.add_task("egg", lambda hen: hen)
    (problem,) = problems_of(flow)
    assert isinstance(problem, CycleError)
    assert set(problem.path) == {"hen", "egg"}


@pytest.mark.parametrize("closed", [False, True])
def test_a_graph_of_any_depth(closed):
    """A chain of 20,000 tasks is checked without recursion, sound or not."""
    flow = Flow("inline")
    size = 20_000
    for number in reversed(range(size)):
        before = [f"t{number - 1}"] if number else ([f"t{size - 1}"] if closed else [])
        flow.add_task(f"t{number}", int, depends_on=before)
    if closed:
        (problem,) = problems_of(flow)
        assert isinstance(problem, CycleError)
        assert len(problem.path) == size + 1
    else:
        flow.validate()


def test_a_name_registered_again():
    """A second task of a name replaces the first with a warning; the same function, or ``replace``, is silent."""
    flow = Flow("inline", name="twice")
    flow.add_task("read", lambda: 1)
    with pytest.warns(DuplicateTaskWarning, match=r"read.*twice"):
        flow.add_task("read", lambda: 2)
    assert flow.run() == {"read": 2}
    flow.add_task("read", lambda: 3, replace=True)
    flow.add_task("read", flow.tasks["read"].fn)
    assert flow.run() == {"read": 3}
    assert list(flow.tasks) == ["read"]


def test_a_parameter_that_nothing_fills():
    """A required parameter of a dependant that is no dependency is a BindingError of validation."""
    flow = Flow("inline")
    flow.add_task("read", lambda: 1)

    @flow.task(depends_on=["read"])
    def load(read: int, table: str) -> None: ...

    (problem,) = problems_of(flow)
    assert isinstance(problem, BindingError)
    assert (problem.task, problem.parameter) == ("load", "table")
    assert "table" in str(problem)


def test_an_input_that_a_run_lacks():
    """A task at the begin may take inputs; a run that does not give them calls nothing."""
    called: list[str] = []
    flow = Flow("inline")

    @flow.task
    def other() -> None:
        called.append("other")

    @flow.task(depends_on=[])
    def read(path: str) -> str:
        called.append("read")
        return path

    flow.add_task("load", lambda read, other: read)
    flow.validate()
    with pytest.raises(BindingError, match="path"):
        flow.run()
    assert called == []
    assert flow.run(inputs={"path": "x"}) == {"load": "x"}


def test_all_problems_are_told_at_once():
    """Missing and foreign names, several circles and parameters that nothing fills are one ExceptionGroup."""
    flow = Flow("inline", name="messy")
    flow.add_task("read", lambda: 1)
    flow.add_task("lost", lambda: None, depends_on=["nowhere"])
    flow.add_task("stranger", lambda: None, depends_on=[rain_flow().tasks["save"].fn])
    flow.add_task("a", lambda: None, depends_on=["b"])
    flow.add_task("b", lambda: None, depends_on=["a"])
    flow.add_task("self", lambda: None, depends_on=["self"])
    flow.add_task("starved", lambda read, *, table: None, depends_on=["read"])
    with pytest.raises(ExceptionGroup, match="messy") as caught:
        flow.validate()
    found = {
        (type(error), getattr(error, "name", None) or getattr(error, "parameter", None) or frozenset(error.path))
        for error in caught.value.exceptions
    }
    assert found == {
        (TaskNotFoundError, "nowhere"),
        (TaskNotFoundError, "save"),
        (CycleError, frozenset({"a", "b"})),
        (CycleError, frozenset({"self"})),
        (BindingError, "table"),
    }
    assert len(caught.value.exceptions) == 5


def test_a_run_tells_several_problems_in_a_group_and_one_as_itself():
    """What validation finds wrong with the edges, a run raises before it calls anything."""
    flow = Flow("inline")
    flow.add_task("read", lambda: pytest.fail("it was called"))
    flow.add_task("one", lambda: None, depends_on=["nowhere"])
    with pytest.raises(TaskNotFoundError):
        flow.run()
    flow.add_task("two", lambda: None, depends_on=["two"])
    with pytest.raises(ExceptionGroup) as caught:
        flow.run()
    assert {type(error) for error in caught.value.exceptions} == {TaskNotFoundError, CycleError}


def test_a_mended_flow_runs():
    """After a problem is mended the same flow is valid."""
    flow = Flow("inline")
    flow.add_task("load", lambda read: f"<{read}>", depends_on=["read"])
    assert len(problems_of(flow)) == 1
    flow.add_task("read", lambda: 1)
    flow.validate()
    assert flow.run() == {"load": "<1>"}


# ---- public names -----------------------------------------------------------------------------------


def test_what_can_be_imported():
    """For every public name of flowrun that is not about stores there is one here, at the top."""
    ours = {
        "Flow", "Context", "RunCancelledError", "Task", "Hook", "fn_hook", "RunStartEvent", "RunEndEvent",
        "TaskStartEvent", "TaskSuccessEvent", "TaskFailureEvent", "TaskRetryEvent", "TaskSkipEvent",
    }  # fmt: skip
    assert ours <= set(millstream.__all__)
    assert all(hasattr(millstream, name) for name in ours)


def test_the_package_is_typed_and_needs_nothing():
    """The marker for type checkers is shipped, and no other package is required."""
    assert (importlib.resources.files("millstream") / "py.typed").is_file()
    needed = importlib.metadata.requires("millstream") or []
    assert [line for line in needed if "extra ==" not in line] == []


# ---- logging ----------------------------------------------------------------------------------------


def test_the_levels_of_the_log(executor, caplog):
    """INFO tells of the run, of successes, retries and skips, WARNING of failures, DEBUG of the rest."""
    caplog.set_level(logging.DEBUG, logger="millstream")
    tries = itertools.count(1)

    def flaky() -> str:
        if next(tries) == 1:
            raise ConnectionError("later")
        return "rows"

    def parse(flaky: str) -> None:
        raise ValueError(flaky)

    with Flow(executor, name="logged", on_error="continue") as flow:
        flow.add_task("flaky", flaky, retries=1)
        flow.add_task("parse", parse)
        flow.add_task("save", lambda parse: parse, on_dep_failure="skip")
        flow.run(run_id="run-1")

    records = [record for record in caplog.records if record.name == "millstream"]
    told = [(record.levelname, record.task, record.attempt) for record in records]
    assert told == [
        ("INFO", None, None),
        ("DEBUG", "flaky", 1),
        ("WARNING", "flaky", 1),
        ("INFO", "flaky", 2),
        ("DEBUG", "flaky", 2),
        ("INFO", "flaky", 2),
        ("DEBUG", "parse", 1),
        ("WARNING", "parse", 1),
        ("INFO", "save", None),
        ("INFO", None, None),
    ]
    assert {record.run_id for record in records} == {"run-1"}
    messages = [record.getMessage() for record in records]
    assert all(re.search(word, line) for word, line in zip(
        ["starts", "starts", "failed.*later", "again", "starts", "succeeded", "starts", "failed.*rows", "skipped",
         "FAILED"], messages, strict=True,
    ))  # fmt: skip
    assert "run-1" in messages[0]
    assert "run-1" in messages[-1]


def test_a_timeout_is_a_warning(caplog):
    """An attempt that took too long is logged as a warning that names the task."""
    caplog.set_level(logging.INFO, logger="millstream")

    async def slow() -> None:
        await asyncio.sleep(WATCHDOG)

    with Flow(on_error="continue") as flow:
        flow.add_task("slow", slow, timeout=0.01)
        flow.run()
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert (warning.task, warning.attempt) == ("slow", 1)
    assert "timeout" in warning.getMessage().lower()


@pytest.mark.parametrize("adapted", [False, True])
def test_a_logger_of_your_own(caplog, adapted):
    """``Flow(logger=...)`` takes a logger or an adapter, and nothing goes to ours then."""
    logger = logging.getLogger("tests.flowrun.own")
    caplog.set_level(logging.DEBUG)
    with rain_flow(logger=logging.LoggerAdapter(logger, {"team": "rain"}) if adapted else logger) as flow:
        flow.run(deps=Station(), run_id="mine")
    mine = [record for record in caplog.records if record.name == "tests.flowrun.own"]
    assert len(mine) == 8
    assert {record.run_id for record in mine} == {"mine"}
    assert [record for record in caplog.records if record.name == "millstream"] == []


def test_nothing_is_logged_below_the_level(caplog):
    """At WARNING a run that goes well logs nothing."""
    caplog.set_level(logging.WARNING, logger="millstream")
    with rain_flow() as flow:
        flow.run(deps=Station())
    assert caplog.records == []


def test_on_error_log_tells_the_traceback(caplog):
    """With ``on_error="log"`` a failure is logged as ERROR with its traceback, and raises nothing."""
    with Flow("inline", on_error="log") as flow:
        flow.add_task("bad", lambda: 1 / 0)
        flow.add_task("good", lambda: 1)
        assert flow.run(["bad", "good"]) == {"good": 1}
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "Traceback" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert error.task == "bad"


# ---- testing your flows -----------------------------------------------------------------------------


def test_business_functions_are_tested_directly():
    """What a task does is a plain function, called with plain values."""
    flow = rain_flow()
    sum_up = flow.tasks["sum_up"].fn
    assert sum_up([{"station": 1, "mm": 2}]) == {"rows": 1, "mm": 2}
    assert flow.tasks["sum_up"](ROWS) == {"rows": 2, "mm": 15}
    station = Station()
    save = flow.tasks["save"].fn
    assert save({"mm": 3}, Context(deps=station)) == "3 mm from rain.example"
    assert station.shelf == {"day": {"mm": 3}}


def test_a_graph_is_asserted_without_running_it():
    """Names and dependencies can be compared, and asking for them calls nothing."""
    flow, called = forked()
    assert set(flow.tasks) == {"read", "clean", "audit", "load", "mail"}
    assert flow.dependencies["load"] == ("clean",)
    assert called == []


@on_two
def test_an_end_to_end_test_with_overrides_and_the_report(executor):
    """A controlled run: sources replaced, the rest real, and the report tells what happened."""
    station = Station()
    with rain_flow(executor) as flow, flow.override(read=list) as fake:
        assert fake.run(deps=station) == {"save": "0 mm from rain.example"}
        report = fake.report().to_dict()
        assert {name: row["status"] for name, row in report["tasks"].items()} == {
            "read": "SUCCESS",
            "sum_up": "SUCCESS",
            "save": "SUCCESS",
        }
        assert report["tasks"]["sum_up"]["result"] == {"rows": 0, "mm": 0}
        with pytest.raises(UnknownRunError):
            flow.report(report["run_id"])


def test_a_failure_is_asserted_by_its_own_class():
    """A test names the exception that the business code raises, not one of the engine."""

    class RainGaugeError(Exception):
        pass

    def broken(ctx: Context[Station]) -> Rows:
        raise RainGaugeError("frozen", ctx.deps.url)

    with rain_flow().override(read=broken) as flow, pytest.raises(RainGaugeError) as caught:
        flow.run(deps=Station())
    assert caught.value.args == ("frozen", "rain.example")


@task(retries=1)
def module_level(n: int) -> int:
    """Double a number."""
    return 2 * n


def test_a_module_level_task_is_a_function():
    """``@task`` keeps name, docstring and call of the function."""
    assert module_level(4) == 8
    assert (module_level.name, module_level.__name__, module_level.__doc__) == (
        "module_level",
        "module_level",
        "Double a number.",
    )
    with Flow("inline") as flow:
        flow.add(module_level)
        assert flow.run(inputs={"n": 5}) == {"module_level": 10}
