"""The executors of clusters: what works in threads works as jobs of Ray and Dask, and what goes wrong there ends well.

One Ray and one Dask cluster on this machine serve nearly all tests, one after the other, as each takes long to start.
"""

import asyncio
import gc
import importlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from millstream import (
    ContextKeyError,
    DaskExecutor,
    DeadlockError,
    Flow,
    FlowClosedError,
    NextTask,
    ProcessExecutor,
    RayExecutor,
    Status,
    TaskTimeoutError,
    TransferError,
    WorkerLostError,
)
from tests import cluster_tasks as jobs
from tests import process_tasks as tasks
from tests.conftest import assert_gone, engine_threads

#: Seconds after which whatever waits gives up: clusters start new workers, which takes a few on a busy machine.
WATCHDOG = 30.0
#: A second, and as much again for a busy machine.
SECOND = 2.0

#: The package that each kind of cluster needs.
PACKAGES = {"ray": "ray", "dask": "distributed"}
ROOT = str(Path(__file__).parent.parent)


#: Jobs that stand in line in the cluster do not use the places of those that wait.

# ---- the clusters ---------------------------------------------------------------------------------


def needed(kind):
    """Import what a kind of cluster needs; skip the test without it, but not where everything has to be there."""
    if os.environ.get("CI") == "true":
        try:
            return importlib.import_module(PACKAGES[kind])
        except ImportError as error:
            pytest.fail(f"With CI=true the extra millstream[{kind}] has to be installed: {error}")
    return pytest.importorskip(PACKAGES[kind], reason=f"it needs the extra millstream[{kind}]")


class Cluster(NamedTuple):
    """A cluster that is running, and the executor that has started it."""

    kind: str
    executor: object
    address: str

    def another(self, **options):
        """Return another executor for the same cluster."""
        return RayExecutor(**options) if self.kind == "ray" else DaskExecutor(self.address, **options)


def importable(**env):
    """The environment for processes that are to import the tests."""
    paths = [ROOT, os.environ.get("PYTHONPATH", ""), env.pop("PYTHONPATH", "")]
    return {**os.environ, **env, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.fixture(scope="module", params=PACKAGES)
def cluster(request):
    """A cluster of each kind in turn, which most tests share, and which ends with its executor."""
    kind = request.param
    package = needed(kind)
    before = engine_threads()
    others = descendants()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", importable()["PYTHONPATH"])
        executor = RayExecutor(num_cpus=2) if kind == "ray" else DaskExecutor()
        with executor:
            with Flow(executor) as flow:
                if kind == "ray":
                    assert run_one(flow, tasks.add, {"a": 1}) == 11
                    address = package.get_runtime_context().gcs_address
                else:
                    address = run_one(flow, jobs.of_this_cluster)[0]
            started = descendants() - others
            assert started
            yield Cluster(kind, executor, address)
            started |= descendants() - others
        assert_gone(engine_threads() - before)
        for pid in started:
            assert_ends(pid, WATCHDOG)
    gc.collect()  # what a cluster forgets to close is reported here, and not in some other test


@pytest.fixture
def executor(cluster):
    return cluster.executor


@pytest.fixture
def flow(executor):
    with Flow(executor) as flow:
        yield flow


@pytest.fixture
def one_at_a_time(cluster):
    """An executor that has one job at a time in the cluster."""
    with cluster.another(max_workers=1) as executor:
        yield executor


def with_tasks(flow, *functions, **options):
    for function in functions:
        flow.add_task(getattr(function, "__name__", "task"), function, **options)
    return flow


def run(flow, *args, limit=WATCHDOG, **options):
    """Run a flow as ``flow.run`` does, but do not wait for ever, nor leave anything behind in the cluster."""
    flow_run = flow.start(*args, **options)
    try:
        return flow_run.result(limit)
    finally:
        flow_run.cancel()
        assert flow_run.wait(limit), "not even cancelling ends it"


def run_one(flow, function, inputs=None, **options):
    """Run a flow of one task, and return what that gives."""
    with_tasks(flow, function)
    return run(flow, function.__name__, inputs, **options)[function.__name__]


def split_into(flow, name, many, **replace):
    """Add a task ``split`` that asks for a task once for each of these inputs, from a thread of this process."""
    requests = [NextTask(name, inputs, spawn_another=True) for inputs in many]
    flow.add_task("split", lambda: requests, executor="thread", **replace)
    return flow


def until(true, limit=WATCHDOG):
    """Wait until something is so that no event tells."""
    end = time.monotonic() + limit
    while not true():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.005)


def status_of(pid):
    """Return the state of a process and the process id of its parent; ``X`` if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
            return state, int(parent)
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0


def alive(pid):
    """Whether a process has not ended; one that nobody has asked for its end has."""
    return status_of(pid)[0] not in "ZX"


def assert_ends(pid, within=SECOND):
    until(lambda: not alive(pid), within)


def descendants(of=None):
    """Return the process ids of all live processes that another one has started, directly or not."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            state, parent = status_of(name)
            if state not in "ZX":
                parents[int(name)] = parent
    found, new = set(), {of or os.getpid()}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new}
        found |= new
    return {pid for pid in found if not serves_multiprocessing(pid)}


def serves_multiprocessing(pid):
    """Whether a process is one that ``multiprocessing`` keeps for as long as the program."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return b"multiprocessing.resource_tracker" in command or b"multiprocessing.forkserver" in command


def pid_of(flow_run):
    """Wait for the process id that a task sets in the context, and return it."""
    until(lambda: "pid" in flow_run.context)
    return flow_run.context["pid"]


def lines_of(path):
    """What tasks have written down."""
    try:
        return path.read_text().split()
    except FileNotFoundError:
        return []


def run_script(tmp_path, source, limit=WATCHDOG, **env):
    """Run a program as a script; return what it printed on stdout and on stderr."""
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(source))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        capture_output=True, text=True, timeout=limit, check=False, cwd=tmp_path, env=importable(**env),
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


# ---- values and arguments -------------------------------------------------------------------------


VALUES = [
    5, -(2**70), 1.5, True, None, "text", "\ud800", b"bytes", (1, 2), (), [1, [2]], {"a": {1, 2}}, {}, {1: "one"}, 0,
    "", ("a", None), frozenset({1}), tasks.Point(1, 2), range(5), 3j, Status.FAILED, int, len, tasks.square, ...,
    bytearray(b"ab"),
]  # fmt: skip


def test_tasks_run_in_other_processes(flow):
    """Fifty task runs are called by processes that are not this one."""
    with_tasks(flow, tasks.process_id)
    split_into(flow, "process_id", [{}] * 50)
    assert os.getpid() not in set(run(flow, "split").values())


def test_parameters_are_bound_as_anywhere(flow):
    """Context, inputs, single inputs, defaults, keyword-only and left-over ones are filled in a job, too."""
    got = run_one(flow, tasks.everything, {"size": 3, "last": [1], "more": "rest"})
    assert got == (3, ["last", "more", "size"], 3, "red", [1], {"more": "rest"})


def test_lambdas_and_closures_are_called(flow):
    """Functions that have no name to be imported by travel as a whole, with what they have closed over."""
    price = 3

    def total(n):
        return price * n, os.getpid()

    class Till:
        def __init__(self, more):
            self.more = more

        def __call__(self, n):
            return self.more + price + n

    @flow.task
    def decorated(n):
        return -n

    flow.add_task("total", total)
    flow.add_task("lambda", lambda n: n + price)
    flow.add_task("local object", Till(100))
    results = run(flow, ["total", "lambda", "local object", "decorated"], {"n": 4})
    assert results["total"][0] == 12
    assert results["total"][1] != os.getpid()
    assert (results["lambda"], results["local object"], results["decorated"]) == (7, 107, -4)


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "block"])
def test_large_values_travel(flow, kind):
    """Megabytes arrive whole as arguments, as outputs and through the context."""
    size = 3 << 20
    flow.add_task("made", tasks.make, depends_on=[])
    flow.add_task("seen", lambda made: tasks.length_and_last(made), depends_on=["made"])
    assert run(flow, inputs={"kind": kind, "size": size})["seen"][1:] == (size, 255)
    value = tasks.make(kind, size)
    assert run_one(flow, tasks.length_and_last, {"value": value})[1:] == (size, 255)


# ---- graphs, joins, routes, maps ------------------------------------------------------------------


def test_dependencies_are_awaited_and_passed_on(flow):
    """A graph of four tasks gives each the outputs that it depends on, by name and as ``upstream``."""
    flow.add_task("first", tasks.add, depends_on=[])
    flow.add_task("second", tasks.payload_of, depends_on=["first"])
    flow.add_task("both", tasks.sum_of)
    flow.add_task("all", tasks.listed, depends_on=["first", "second", "both"])
    assert run(flow, inputs={"a": 1}) == {"all": {"first": 11, "second": 11, "both": 22}}


def test_a_fan_out_is_joined(flow):
    """A join starts once, with the outputs of all its siblings in list order."""
    with_tasks(flow, tasks.fan_out_and_join, tasks.square, tasks.total)
    assert run(flow, "fan_out_and_join", {"n": 300}) == {"total": sum(n * n for n in range(300))}
    assert flow.report().tasks["total"].runs == 1


@pytest.mark.parametrize(("number", "chosen"), [(4, "even"), (5, "odd")])
def test_r25_a_router_chooses(flow, number, chosen):
    """Of two routes the chosen one runs, the other is skipped, and the join behind them runs once."""
    flow.add_task("choose", tasks.choose, routes=["even", "odd"])
    flow.add_task("even", tasks.payload_of)
    flow.add_task("odd", tasks.payload_of)
    flow.add_task("joined", tasks.listed, depends_on=["even", "odd"], on_dep_failure="run-anyway")
    assert list(run(flow, "choose", {"number": number})["joined"]) == [chosen]
    report = flow.report()
    assert report.status is Status.SUCCESS
    assert report.tasks["even" if chosen == "odd" else "odd"].status is Status.SKIPPED
    assert report.tasks["joined"].runs == 1


def test_r26_a_map_pairs_items_with_their_places(flow):
    """``for_each`` calls for each item with its place, in jobs, and the output is the list in order."""
    flow.add_task("items", tasks.item_and_index, for_each="$inputs.rows")
    got = run(flow, "items", {"rows": list(range(40, 140))})["items"]
    assert [(item, index) for item, index, _ in got] == [(n + 40, n) for n in range(100)]
    assert os.getpid() not in {pid for _, _, pid in got}
    assert run(flow, "items", {"rows": []}) == {"items": []}


def test_an_iterator_of_requests_is_drained(flow):
    """Next tasks that come from a generator are all scheduled, more than a page of them and none at all."""
    with_tasks(flow, tasks.from_iterator, tasks.square)
    assert sorted(run(flow, "from_iterator", {"n": 600}).values()) == [n * n for n in range(600)]
    assert run(flow, "from_iterator", {"n": 0}) == {"from_iterator": "asked"}


# ---- threads of this process beside jobs ----------------------------------------------------------


def test_threads_and_jobs_take_turns_in_one_graph(cluster):
    """In a flow of threads some tasks name the cluster, and values pass from here to there and back."""
    with Flow() as flow:

        @flow.task
        def numbers(count):
            return list(range(count)), os.getpid()

        @flow.task(executor=cluster.executor)
        def squares(numbers):
            return [n * n for n in numbers[0]], os.getpid()

        @flow.task
        async def shifted(squares):
            await asyncio.sleep(0)
            return [n + 1 for n in squares[0]], os.getpid()

        @flow.task
        def all_of_it(numbers, squares, shifted):
            return sum(shifted[0]), [pid == os.getpid() for _, pid in (numbers, squares, shifted)]

        assert run(flow, inputs={"count": 10}) == {"all_of_it": (295, [True, False, True])}


def test_r22_threads_and_jobs_share_the_context(cluster):
    """Jobs and threads that update one counter and append to one list lose nothing."""
    with Flow() as flow:
        flow.add_task("increment", tasks.increment, executor=cluster.executor)
        flow.add_task("count_lists", tasks.count_lists, executor=cluster.executor)
        flow.add_task("increment_here", tasks.increment)

        @flow.task
        def split():
            spread = [NextTask(name, {"n": 25}, spawn_another=True) for name in ("increment", "increment_here") * 4]
            return [*spread, *[NextTask("count_lists", spawn_another=True)] * 12]

        results = run(flow, "split")
        assert flow.context["count"] == 200
        assert len(flow.context["all"]) == 200
        counts = sorted(value for name, value in results.items() if name.startswith("count_lists"))
        assert counts == [*range(1, 13)]


def test_jobs_and_processes_in_one_flow(cluster):
    """A flow may use worker processes of its own beside a cluster, in one run."""
    with ProcessExecutor(1) as processes, Flow(cluster.executor) as flow:
        flow.add_task("there", tasks.process_id)
        flow.add_task("beside", tasks.process_id, executor=processes)
        flow.add_task("here", lambda there, beside: len({there, beside, os.getpid()}), executor="thread")
        assert run(flow) == {"here": 3}


# ---- generators and streams -----------------------------------------------------------------------


def test_what_a_generator_yields_streams_and_its_return_value_is_the_output(flow):
    """Each value goes out under the id of the task run, the output last."""
    with_tasks(flow, tasks.bake)
    chunks = [(chunk.task_id, chunk.value) for chunk in flow.stream("bake", {"loaves": 3})]
    assert chunks == [("bake", "loaf 0"), ("bake", "loaf 1"), ("bake", "loaf 2"), ("bake", "done")]
    assert run(flow, "bake", {"loaves": 2}) == {"bake": "done"}


@pytest.mark.parametrize("function", [jobs.count_up, jobs.emit_up])
def test_r16_streams_are_complete_and_in_order(cluster, function):
    """Thousands of values of three task runs arrive in order, none of them twice, also with one job at a time."""
    size = 2000
    for options in ({}, {"max_workers": 1}):
        with cluster.another(**options) as executor, Flow(executor) as flow:
            with_tasks(flow, function)
            split_into(flow, function.__name__, [{"size": size}] * 3)
            seen = {}
            for chunk in flow.stream("split", timeout=WATCHDOG):
                if chunk.task_id != "split":
                    seen.setdefault(chunk.task_id, []).append(chunk.value)
            assert list(seen.values()) == [[*range(size), "done"]] * 3


def test_emit_and_get_stream(flow):
    """``ctx.emit`` sends under the task's id, ``get_stream().put`` under any, both before the output."""
    with_tasks(flow, tasks.emit_some)
    chunks = [(chunk.task_id, chunk.value) for chunk in flow.stream("emit_some")]
    assert chunks == [("emit_some", "one"), ("somebody", "two"), ("emit_some", "three")]
    assert run(flow, "emit_some") == {"emit_some": "three"}  # nobody streams: they are dropped


def test_a_generator_requests_tasks(flow):
    """A yielded NextTask is scheduled, between the values before and after it."""
    with_tasks(flow, tasks.yield_requests, tasks.square)
    chunks = list(flow.stream("yield_requests", {"n": 5}, timeout=WATCHDOG))
    assert sorted(chunk.value for chunk in chunks if chunk.task_id.startswith("square")) == [0, 1, 4, 9, 16]
    assert [chunk.value for chunk in chunks if chunk.task_id == "yield_requests"] == ["before", "after", 5]


def test_r34_leaving_a_stream_early_stops_the_process(cluster, flow):
    """A generator that never ends is stopped within a second when its reader leaves, and no task starts after that."""
    with_tasks(flow, tasks.yield_forever)
    flow_run = flow.start("yield_forever")
    for chunk in flow_run.stream():
        if chunk.value >= 5:
            break
    began = time.monotonic()
    assert flow_run.wait(WATCHDOG)
    assert time.monotonic() - began < SECOND
    assert flow_run.status is Status.CANCELLED
    assert run_one(flow, tasks.add, {"a": 1}) == 11


# ---- coroutines -----------------------------------------------------------------------------------


def test_a_coroutine_function_that_names_the_cluster_runs_there(cluster):
    """``async def`` with the cluster as its executor is awaited on a loop over there."""
    with Flow() as flow:
        for function in (tasks.coroutine, tasks.coroutines_at_once, tasks.await_value):
            flow.add_task(function.__name__, function, executor=cluster.executor)
        flow.add_task("producer", tasks.producer)
        n, pid = run(flow, "coroutine", {"n": 5})["coroutine"]
        assert (n, pid == os.getpid()) == (5, False)
        assert run(flow, "coroutines_at_once")["coroutines_at_once"] == [0, 1, 2, 3, 4]
        value, pid = run(flow, ["await_value", "producer"])["await_value"]
        assert (value, pid == os.getpid()) == (42, False)


# ---- submitted calls ------------------------------------------------------------------------------


def test_calls_are_submitted_to_the_cluster(cluster):
    """Handles give results, are arguments of other calls, and stand for calls of ``@task`` functions, too."""
    with Flow(cluster.executor) as flow:
        one, two = flow.submit(tasks.square, 3), tasks.cube.submit(2)
        both = flow.submit(tasks.add, one, b=two)
        assert both.result(WATCHDOG) == 17
        assert flow.submit(sum, [one, two, 1]).result(WATCHDOG) == 18
        assert tasks.doubled.submit(4).result(WATCHDOG) == 8
        assert flow.submit(tasks.process_id).result(WATCHDOG) != os.getpid()


# ---- the context ----------------------------------------------------------------------------------


def test_r38_the_context_works_in_a_job(flow):
    """Get, set, update, append, delete, in, len, iteration and to_dict do what they do in a thread."""
    seen = run_one(flow, tasks.use_context)
    values = {"a": 2, "c": ["first"], "d": 11, "e": 5, "f": 6}
    assert seen.pop("to_dict") == values
    assert seen == {
        "get": 1,
        "default": 5,
        "none": None,
        "in": (True, False, False),
        "len": 3,
        "iter": ["a", "b", "c"],
        "update": 2,
        "update default": 11,
    }
    context = flow.context.to_dict()
    assert {key: context[key] for key in values} == values


def test_deps_and_metadata_are_there(flow):
    """What a run was given as ``deps`` and ``metadata`` a job reads, and metadata stays read-only."""
    with_tasks(flow, tasks.read_facts, tasks.change_metadata)
    facts = {"deps": tasks.Point(1, 2), "metadata": {"batch": 4}}
    assert run(flow, "read_facts", **facts)["read_facts"] == (tasks.Point(1, 2), {"batch": 4})
    with pytest.raises(TypeError):
        run(flow, "change_metadata", **facts)


def consumers_and_producer(flow, consumers, **options):
    """Add a task ``split`` that asks for many that wait for a value, and then for the one that gives it."""
    with_tasks(flow, tasks.consumer, tasks.producer, **options)
    requests = [*[NextTask("consumer", spawn_another=True)] * consumers, NextTask("producer")]
    flow.add_task("split", lambda: requests, executor="thread", **options)
    return flow


def test_r15_many_consumers_wait_for_one_producer(flow):
    """Sixty jobs that are blocked in ``get`` finish on two workers of the cluster."""
    results = run(consumers_and_producer(flow, 60), "split")
    assert results.pop("producer") == 42
    assert list(results.values()) == [42] * 60


def test_r15_many_consumers_wait_with_one_job_at_a_time(one_at_a_time):
    """A blocked ``get`` gives its place back, so that one job at a time is enough, again and again."""
    with Flow(one_at_a_time) as flow:
        consumers_and_producer(flow, 40)
        for _ in range(3):
            results = run(flow, "split")
            assert results.pop("producer") == 42
            assert list(results.values()) == [42] * 40


def test_r15_few_consumers_wait_for_one_producer(flow):
    """A few jobs that wait, whether they fill the cluster or not, do not hinder the one that they wait for."""
    for consumers in (1, 2, 3, 4, 5):
        consumers_and_producer(flow, consumers, replace=True)
        assert set(run(flow, "split", limit=10.0).values()) == {42}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_r15_a_chain_of_waits_needs_no_more_jobs(cluster, workers):
    """Each of 20 tasks waits for the next one, and only the last has anything to give."""
    with cluster.another(max_workers=workers) as executor, Flow(executor) as flow:
        with_tasks(flow, tasks.link)
        split_into(flow, "link", [{"n": n} for n in range(10, 30)])
        assert sorted(run(flow, "split", limit=10.0).values()) == [*range(20)]


@pytest.mark.parametrize("workers", [1, 4])
def test_r15_a_generator_waits_for_what_it_asked_for(cluster, workers):
    """Each of eight nested generators waits for the one that it asked for while it was under way."""
    with cluster.another(max_workers=workers) as executor, Flow(executor) as flow:
        with_tasks(flow, jobs.ask_and_get)
        run(flow, "ask_and_get", {"n": 8}, limit=10.0)
        assert flow.context["level-8"] == 8


def test_get_with_a_timeout(flow):
    """A timed ``get`` raises ``TimeoutError`` after that time, or gives its default, as long as the key could come."""
    with_tasks(flow, tasks.get_with, tasks.until_told)
    for options, expected in (({"timeout": 0.05}, None), ({"timeout": 0.05, "default": 7}, 7)):
        flow_run = flow.start(["until_told", "get_with"], {"options": options})
        if expected is None:
            with pytest.raises(TimeoutError):
                flow_run.result(WATCHDOG)
        else:
            until(lambda flow_run=flow_run: "get_with" in flow_run.context)
            assert flow_run.context["get_with"] == expected
            flow_run.cancel()
            assert flow_run.wait(WATCHDOG)


def test_r17_a_key_that_nobody_can_set(flow):
    """``get`` of such a key raises ``ContextKeyError`` within a second, and says who waited."""
    began = time.monotonic()
    with_tasks(flow, tasks.get_key)
    with pytest.raises(ContextKeyError, match="Key nowhere not found in context") as caught:
        run(flow, "get_key", {"key": "nowhere"})
    assert "get_key" in str(caught.value)
    assert time.monotonic() - began < SECOND


def test_r17_a_deadlock_is_found_out(flow, one_at_a_time):
    """Two jobs that wait for each other raise ``DeadlockError`` with the names of both, within a second."""
    with Flow(one_at_a_time) as other:
        for each in (flow, other):
            with_tasks(each, tasks.hen, tasks.egg)
            began = time.monotonic()
            with pytest.raises(DeadlockError) as caught:
                run(each, ["hen", "egg"])
            assert time.monotonic() - began < SECOND
            assert "hen waits for 'egg'" in str(caught.value)
            assert "egg waits for 'hen'" in str(caught.value)


# ---- current_task() -------------------------------------------------------------------------------


def test_a_task_knows_its_task_run(flow):
    """``current_task()`` has the facts of the attempt, with a limit and without."""
    flow.add_task("about_me", tasks.about_me)
    flow.add_task("limited", tasks.about_me, timeout=30.0)
    flow_run = flow.start(["about_me", "limited"], run_id="r7")
    seen = flow_run.result(WATCHDOG)
    me, limited = seen["about_me"], seen["limited"]
    assert (me["name"], me["id"], me["run_id"], me["attempt"]) == ("about_me", "about_me", "r7", 1)
    assert (me["deadline"], me["left"], me["cancelled"]) == (None, None, False)
    assert me["key"].startswith("r7:")
    assert me["key"] != limited["key"]
    assert 15 < limited["left"] <= 30


def test_log_records_arrive_with_their_facts(flow, caplog):
    """What a job logs with the logger of its task is handled by this process's loggers, with run, task and attempt."""
    run_one(flow, tasks.log_some, run_id="r9")
    (line,) = [record for record in caplog.records if record.name == "millstream.task"]
    assert (line.getMessage(), line.levelname) == ("half done", "WARNING")
    assert (line.run_id, line.task, line.attempt) == ("r9", "log_some", 1)
    assert line.process != os.getpid()


# ---- exceptions -----------------------------------------------------------------------------------


def caught_from(flow, function, inputs=None):
    """Return what a flow of one task raises."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - the caller looks at it
        run_one(flow, function, inputs)
    return caught.value


def test_r4_the_own_exception_of_a_task_is_raised(flow):
    """Type, arguments, attributes and notes are those of the task, also of constructors that take something else."""
    with_tasks(flow, tasks.fail)
    errors = {how: caught_from(flow, tasks.fail, {"how": how}) for how in ("two", "keyword", "os", "note")}
    two = errors["two"]
    assert (type(two), two.args, two.code, two.reason) == (
        tasks.TwoArguments,
        ("404: no such page",),
        404,
        "no such page",
    )
    assert (type(errors["keyword"]), str(errors["keyword"])) == (tasks.KeywordOnly, "code 5")
    assert (type(errors["os"]), errors["os"].filename) == (FileNotFoundError, "/nowhere/at/all")
    assert (type(errors["note"]), errors["note"].__notes__[0]) == (ValueError, "look at line 3")
    assert any("In task run fail" in note for note in two.__notes__)


def test_r4_cause_and_context_come_along(flow):
    """``raise from``, an error while handling another, and ``from None`` look as they did in the job."""
    error = caught_from(flow, tasks.fail_from)
    assert (type(error), type(error.__cause__), error.__cause__.code) == (LookupError, tasks.TwoArguments, 404)
    error = caught_from(flow, tasks.fail_while)
    assert (error.__cause__, type(error.__context__)) == (None, KeyError)
    error = caught_from(flow, tasks.fail_from_none)
    assert (error.__cause__, error.__suppress_context__) == (None, True)
    group = caught_from(flow, tasks.fail_in_group)
    assert [type(each) for each in group.exceptions] == [tasks.TwoArguments, KeyError, ExceptionGroup]


def test_r4_the_traceback_shows_the_lines_of_the_task(flow):
    """The traceback has the very line that raised in the job, and no line of Ray or Dask."""
    error = caught_from(flow, tasks.fail_deep)
    shown = "".join(traceback.format_exception(error))
    assert "the line to see" in shown
    assert "in fail_deep" in shown
    frames = traceback.extract_tb(error.__traceback__)
    assert not [frame.filename for frame in frames if "site-packages" in frame.filename]
    row = flow.report().tasks["fail_deep"]
    assert (row.status, row.error.type, row.error.message) == (Status.FAILED, "ValueError", "from the depth")
    assert "the line to see" in row.error.traceback


@pytest.mark.parametrize(
    "what", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "CancelledError", "StopIteration", "BaseException"]
)
def test_r5_whatever_a_body_raises_fails_its_task(flow, what):
    """Exceptions that are not an ``Exception`` fail the task, end the run, and cost no process."""
    with_tasks(flow, tasks.exit_by, tasks.process_id)
    with pytest.raises(BaseException):  # noqa: PT011 - it differs, and the report is what counts
        run(flow, "exit_by", {"what": what})
    row = flow.report().tasks["exit_by"]
    assert row.status is Status.FAILED
    assert "WorkerLost" not in row.error.type
    assert run_one(flow, tasks.add, {"a": 1}) == 11


# ---- what cannot travel ---------------------------------------------------------------------------


def test_a_function_that_cannot_travel_is_named(flow):
    """A closure over a lock, and a method of an object that has one, are refused with the task's name."""
    lock = threading.Lock()
    flow.add_task("locking", lambda: lock.locked())
    flow.add_task("method", tasks.Holder().work)
    for name in ("locking", "method"):
        with pytest.raises(TransferError, match=f"^Task run {name} .*its function"):
            run(flow, name)


def test_a_task_survives_what_cannot_travel(flow):
    """The error is raised in the task, at the line that tried, and can be caught there."""
    assert run_one(flow, tasks.survive_lock) == "TransferError"


# ---- retries, timeouts, cancelling ----------------------------------------------------------------


def test_a_failed_attempt_is_tried_again(flow):
    """A task that fails twice succeeds in its third attempt, which knows its number."""
    flow.add_task("flaky", tasks.flaky, retries=2)
    assert run(flow, "flaky", {"fails": 2}) == {"flaky": 3}
    assert flow.report().tasks["flaky"].attempt == 3


@pytest.mark.parametrize("function", [tasks.spin_forever, tasks.stubborn, tasks.wait_forever])
def test_r30_a_task_that_times_out_is_stopped(cluster, function):
    """The process of an attempt that takes too long is dead within a second, the task FAILED, the cluster works on."""
    with Flow(cluster.executor) as flow:
        flow.add_task("slow", function, timeout=0.3, executor=cluster.executor)
        flow_run = flow.start("slow")
        pid = pid_of(flow_run)
        with pytest.raises(TaskTimeoutError, match=r"Task run slow took longer than its timeout of 0\.3 s"):
            flow_run.result(WATCHDOG)
        assert_ends(pid)
        assert flow_run.status is Status.FAILED
        assert flow_run.report().tasks["slow"].status is Status.FAILED
        assert run_one(flow, tasks.add, {"a": 1}) == 11


def test_r29_a_timeout_begins_with_the_call(cluster, one_at_a_time):
    """The wait for a place in the cluster does not count for a timeout."""
    with Flow(one_at_a_time) as flow:
        flow.add_task("spin", tasks.spin, timeout=1.0)
        split_into(flow, "spin", [{"seconds": 0.1, "n": n} for n in range(15)])
        assert sorted(run(flow, "split").values()) == [*range(15)]


def test_r29_a_timeout_does_not_begin_in_the_queue_of_the_cluster(cluster, tmp_path):
    """Jobs that stand in line behind others of the cluster do not time out before they begin."""
    log = tmp_path / "log"
    with cluster.another(max_workers=12) as executor, Flow(executor) as flow:
        flow.add_task("overlap", jobs.overlap, timeout=0.5)
        with_tasks(flow, tasks.spin)
        busy = [NextTask("spin", {"seconds": 0.4, "n": n}, spawn_another=True) for n in range(6)]
        timed = [NextTask("overlap", {"log": str(log), "n": n}, spawn_another=True) for n in range(4)]
        flow.add_task("split", lambda: [*busy, *timed], executor="thread")
        assert len(run(flow, "split")) == 10


# ---- workers that end -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_r39_a_worker_that_dies_fails_what_it_ran(cluster, flow, how):
    """``os._exit`` and SIGKILL are a ``WorkerLostError`` that names the task run; later tasks run."""
    with_tasks(flow, tasks.die)
    with pytest.raises(WorkerLostError, match=r"^Task run die was lost: .*Give the task retries"):
        run(flow, "die", {"how": how})
    assert flow.report().tasks["die"].status is Status.FAILED
    assert run_one(flow, tasks.add, {"a": 1}) == 11


def test_r39_a_lost_attempt_is_tried_again(cluster, flow, tmp_path):
    """With retries, the attempt after one whose worker has died succeeds."""
    flow.add_task("die_first", tasks.die_first, retries=2)
    assert run(flow, "die_first", {"folder": str(tmp_path)}) == {"die_first": 2}


@contextmanager
def killer(log, times, pause):
    """Kill the process that has last written its id down, so many times; give the list of those."""
    end, killed = threading.Event(), []

    def kill():
        while len(killed) < times and not end.wait(pause):
            for line in reversed(lines_of(log)):
                if int(line) not in killed and alive(int(line)):
                    os.kill(int(line), signal.SIGKILL)
                    killed.append(int(line))
                    break

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        end.set()
        thread.join(WATCHDOG)


# ---- many, and at once ----------------------------------------------------------------------------


def test_r9_of_2000_small_tasks_each_body_runs_once(flow, tmp_path):
    """Two thousand calls that do nothing but say so complete, and each was called exactly once."""
    log = tmp_path / "log"
    with_tasks(flow, jobs.recorded)
    split_into(flow, "recorded", [{"log": str(log), "n": n} for n in range(2000)])
    assert sorted(run(flow, "split").values()) == [*range(2000)]
    assert Counter(map(int, lines_of(log))) == Counter(range(2000))
    assert flow.report().tasks["recorded"].runs == 2000


def test_one_executor_serves_two_flows_at_once(executor):
    """Two flows with many tasks share the cluster, and each gets its own results."""
    with Flow(executor) as first, Flow(executor) as second:
        for flow in (first, second):
            with_tasks(flow, tasks.fan_out_and_join, tasks.square, tasks.total)
        runs = [flow.start("fan_out_and_join", {"n": n}) for n, flow in ((200, first), (300, second)) * 3]
        for flow_run, n in zip(runs, (200, 300) * 3, strict=True):
            assert flow_run.result(WATCHDOG) == {"total": sum(i * i for i in range(n))}


def test_max_workers_bounds_what_is_under_way(cluster, tmp_path):
    """An executor of one has one job at a time in the cluster; one of two has two, and both do something."""
    for workers, most in ((1, 1), (2, 2)):
        with cluster.another(max_workers=workers) as executor, Flow(executor) as flow:
            with_tasks(flow, jobs.overlap)
            split_into(flow, "overlap", [{"log": str(tmp_path / "log"), "n": n} for n in range(8)])
            times = [(began, ended) for began, ended, _ in run(flow, "split").values()]
            at_once = [sum(begun <= began < ended for begun, ended in times) for began, _ in times]
            assert max(at_once) <= most
            assert workers == 1 or max(at_once) == 2


# ---- resources ------------------------------------------------------------------------------------


def test_ray_gives_a_task_what_it_needs(cluster):
    """Of Ray a task gets both CPUs, so that no two such tasks overlap, and one that needs none runs beside others."""
    if cluster.kind != "ray":
        pytest.skip("CPUs are a resource of Ray")
    with Flow(cluster.executor) as flow:
        flow.add_task("alone", lambda n: jobs.overlap(os.devnull, n), resources={"num_cpus": 2})
        flow.add_task("for nothing", tasks.process_id, resources={"num_cpus": 0.5})
        flow.add_task("with memory", tasks.process_id, resources={"memory": 1 << 20, "num_cpus": 1})
        split_into(flow, "alone", [{"n": n} for n in range(5)])
        flow.add_task("rest", lambda: [NextTask("for nothing"), NextTask("with memory")], executor="thread")
        results = run(flow, ["split", "rest"])
        times = sorted(value[:2] for name, value in results.items() if name.startswith("alone"))
        assert len(times) == 5
        assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(times))
        assert os.getpid() not in (results["for nothing"], results["with memory"])


def test_what_the_cluster_can_never_give_is_refused_at_once(cluster):
    """A task that needs more than there is raises ``ValueError`` that names it, and the next run works."""
    impossible = [{"num_cpus": 99}, {"abacus": 1}] if cluster.kind == "ray" else [{"GPU": 1}, {"abacus": 0.5}]
    for resources in impossible:
        with Flow(cluster.executor) as flow:
            flow.add_task("greedy", tasks.nothing, resources=resources)
            began = time.monotonic()
            with pytest.raises(ValueError, match=next(iter(resources))):
                run(flow, "greedy")
            assert time.monotonic() - began < SECOND
            assert run_one(flow, tasks.add, {"a": 1}) == 11


# ---- beginning and end ----------------------------------------------------------------------------


def test_an_executor_that_was_shut_down_is_refused(cluster):
    """After ``shutdown``, which may be called twice, a run raises ``FlowClosedError``; the cluster lives."""
    executor = cluster.another()
    with Flow(executor) as flow:
        assert run_one(flow, tasks.add, {"a": 1}) == 11
        executor.shutdown()
        executor.shutdown()
        with pytest.raises(FlowClosedError):
            run(flow, "add", {"a": 1})
    with Flow(cluster.executor) as flow:
        assert run_one(flow, tasks.add, {"a": 1}) == 11


def test_r36_a_flow_that_is_closed_leaves_the_executor_open(cluster):
    """A flow closes no executor that it was given, and an executor that is closed leaves no thread."""
    before = engine_threads()
    with cluster.another() as executor:
        for _ in range(2):
            with Flow(executor) as flow:
                assert run_one(flow, tasks.add, {"a": 1}) == 11
    assert_gone(engine_threads() - before)


# ---- Dask without processes of its own ------------------------------------------------------------


# ---- programs -------------------------------------------------------------------------------------


CONNECT = {"ray": "RayExecutor(address)", "dask": "DaskExecutor(address)"}
START = {"ray": "RayExecutor(num_cpus=1)", "dask": "DaskExecutor()"}


def test_functions_of_a_script_travel(cluster, tmp_path):
    """Functions, classes and exceptions of a main program travel both ways; it connects to a cluster by its address."""
    out, err = run_script(
        tmp_path,
        f"""
        import functools
        from dataclasses import dataclass
        from millstream import DaskExecutor, Flow, NextTask, RayExecutor, task

        @dataclass
        class Point:
            x: int

        class Odd(Exception):
            def __init__(self, point, code):
                super().__init__(f"odd {{point}}")
                self.code = code

        def moved(point, by):
            return Point(point.x + by)

        @task
        def move(point, by):
            if by < 0:
                raise Odd(point, 5)
            return moved(point, by)

        def walk(ctx, steps):
            for step in range(steps):
                yield Point(step)
            ctx["last"] = Point(steps)

        if __name__ == "__main__":
            address = {cluster.address!r}
            with {CONNECT[cluster.kind]} as executor, Flow(executor) as flow:
                flow.add(move)
                flow.add_task("walk", walk)
                print(flow.run("move", {{"point": Point(1), "by": 2}}))
                try:
                    flow.run("move", {{"point": Point(1), "by": -2}})
                except Odd as error:
                    print(type(error), error, error.code, error.__traceback__.tb_next is not None)
                flow_run = flow.start("walk", {{"steps": 2}})
                print([chunk.value for chunk in flow_run.stream()], flow_run.context["last"])
                print(flow.submit(functools.partial(moved, by=1), Point(5)).result())
        """,
    )
    assert out.splitlines() == [
        "{'move': Point(x=3)}",
        "<class '__main__.Odd'> odd Point(x=1) 5 True",
        "[Point(x=0), Point(x=1), None] Point(x=2)",
        "Point(x=6)",
    ]
    assert err == ""
