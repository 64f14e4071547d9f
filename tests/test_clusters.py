"""The executors of clusters: what works in threads works as jobs of Ray and Dask, and what goes wrong there ends well.

One Ray and one Dask cluster on this machine serve nearly all tests, one after the other, as each takes long to start.
"""

import asyncio
import functools
import gc
import importlib
import itertools
import os
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from millstream import (
    Context,
    ContextKeyError,
    DaskExecutor,
    DeadlockError,
    ExecutorLostError,
    Flow,
    FlowClosedError,
    FlowError,
    NextTask,
    ProcessExecutor,
    RayExecutor,
    RunCancelledError,
    Status,
    TaskTimeoutError,
    TransferError,
    WorkerLostError,
    fn_hook,
)
from tests import cluster_tasks as jobs
from tests import conftest, elsewhere
from tests import process_tasks as tasks
from tests.conftest import Log, assert_gone, engine_threads
from tests.elsewhere import IMPORTABLE, SECOND, assert_ends, lines_of, split_into, status_of, with_tasks

#: One process of a test run in parallel does all of these: they share the clusters of a machine.
pytestmark = pytest.mark.xdist_group("clusters")

#: Seconds after which whatever waits gives up: clusters start new workers, which takes a few on a busy machine.
WATCHDOG = 30.0
pid_of = functools.partial(elsewhere.pid_of, limit=WATCHDOG)
run = functools.partial(elsewhere.run, limit=WATCHDOG)
run_one = functools.partial(elsewhere.run_one, limit=WATCHDOG)
run_script = functools.partial(elsewhere.run_script, limit=WATCHDOG, **IMPORTABLE)
until = functools.partial(conftest.until, limit=WATCHDOG)

#: The package that each kind of cluster needs.
PACKAGES = {"ray": "ray", "dask": "distributed"}


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


@pytest.fixture(scope="module", params=PACKAGES)
def cluster(request):
    """A cluster of each kind in turn, which most tests share, and which ends with its executor."""
    kind = request.param
    package = needed(kind)
    before = engine_threads()
    others = descendants()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", IMPORTABLE["PYTHONPATH"])
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


# ---- values and arguments -------------------------------------------------------------------------


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


def test_a_thread_and_a_job_wait_for_each_other_in_turn(cluster):
    """A value goes to and fro between a job and a thread that wait for what the other one sets."""
    hops = 6
    with Flow() as flow:
        for n in range(hops):
            options = {"executor": cluster.executor} if n % 2 else {}
            with_wants = functools.partial(jobs.get_and_set, wants=f"key-{n}", gives=f"key-{n + 1}")
            flow.add_task(f"hop-{n}", with_wants, **options)
        flow.add_task("first", lambda ctx: ctx.set("key-0", "x"), executor=cluster.executor)
        run(flow, [*(f"hop-{n}" for n in reversed(range(hops))), "first"])
        assert flow.context[f"key-{hops}"] == "x" + "+" * hops


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


def test_threads_of_a_task_emit_at_once(flow):
    """What four threads of one task emit arrives complete, and in the order of each."""
    with_tasks(flow, jobs.emit_from_threads)
    chunks = [chunk.value for chunk in flow.stream("emit_from_threads", {"size": 100}, timeout=WATCHDOG)]
    assert chunks.pop() == 400
    for first in range(4):
        assert [number for thread, number in chunks if thread == first] == [*range(100)]


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


def test_a_slow_reader_slows_a_generator_down(flow):
    """A generator in a job is no more than its buffers ahead of its reader."""
    with_tasks(flow, tasks.count_ahead)
    stream = flow.stream("count_ahead", {"size": 1000, "most": 50_000}, buffer=10)
    for _ in range(5):
        next(stream)
    time.sleep(0.3)  # long enough for one that nobody holds back
    given = flow.context.get("given", 0)
    stream.close()
    assert given < 50_000, "the generator ran to its end"


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


def test_r34_cancelling_the_awaiter_of_arun_stops_the_job(flow):
    """A coroutine that awaits ``arun`` is cancelled; so is the run, and its process is dead within a second."""
    with_tasks(flow, tasks.sleep_forever)
    context = Context()

    async def main():
        awaiter = asyncio.create_task(flow.arun("sleep_forever", context=context))
        async with asyncio.timeout(WATCHDOG):
            while "pid" not in context:
                await asyncio.sleep(0.005)
        began = time.monotonic()
        awaiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaiter
        return time.monotonic() - began

    assert asyncio.run(main()) < SECOND
    assert_ends(context["pid"])


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


@pytest.mark.parametrize("function", [tasks.sleep_forever, tasks.wait_and_forever])
def test_r30_a_cancelled_call_is_stopped(flow, function):
    """``handle.cancel`` settles the handle at once and stops the work within a second; the cluster works on."""
    with flow.session() as session:
        handle = session.submit(function)
        pid = pid_of(session)
        began = time.monotonic()
        assert handle.cancel()
        assert handle.cancelled()
        assert time.monotonic() - began < 0.5
        if function is not tasks.wait_and_forever:
            assert_ends(pid)
        assert session.submit(tasks.square, 5).result(WATCHDOG) == 25


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
        assert set(run(flow, "split").values()) == {42}


def test_r15_jobs_wait_for_one_that_needs_other_resources(cluster, flow):
    """Jobs that fill the cluster and wait do not hinder one with needs that they wait for."""
    if cluster.kind != "ray":
        pytest.skip("the workers of this Dask cluster have no resources")
    consumers_and_producer(flow, 6)
    flow.add_task("producer", tasks.producer, resources={"num_cpus": 1}, replace=True)
    assert set(run(flow, "split").values()) == {42}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_r15_a_chain_of_waits_needs_no_more_jobs(cluster, workers):
    """Each of 20 tasks waits for the next one, and only the last has anything to give."""
    with cluster.another(max_workers=workers) as executor, Flow(executor) as flow:
        with_tasks(flow, tasks.link)
        split_into(flow, "link", [{"n": n} for n in range(10, 30)])
        assert sorted(run(flow, "split").values()) == [*range(20)]


@pytest.mark.parametrize("workers", [1, 4])
def test_r15_a_generator_waits_for_what_it_asked_for(cluster, workers):
    """Each of eight nested generators waits for the one that it asked for while it was under way."""
    with cluster.another(max_workers=workers) as executor, Flow(executor) as flow:
        with_tasks(flow, jobs.ask_and_get)
        run(flow, "ask_and_get", {"n": 8})
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


def test_a_value_from_outside(flow):
    """``get(external=True)`` waits in a job for a value that this process sets."""
    with_tasks(flow, tasks.get_external)
    flow_run = flow.start("get_external")
    until(lambda: "waits" in flow_run.context)
    flow_run.context.set("outside", [1, 2])
    assert flow_run.result(WATCHDOG) == {"get_external": [1, 2]}


def test_r17_a_key_that_nobody_can_set(flow):
    """``get`` of such a key raises ``ContextKeyError`` within a second, and says who waited."""
    flow.add_task("get_key", functools.partial(jobs.say_and_get, says="waits", key="nowhere"))
    flow_run = flow.start("get_key")
    until(lambda: "waits" in flow_run.context)
    began = time.monotonic()
    with pytest.raises(ContextKeyError, match="Key nowhere not found in context") as caught:
        flow_run.result(WATCHDOG)
    assert time.monotonic() - began < SECOND
    assert "get_key" in str(caught.value)


def test_r17_a_deadlock_is_found_out(flow, one_at_a_time):
    """Two jobs that wait for each other raise ``DeadlockError`` with the names of both, within a second."""
    with Flow(one_at_a_time) as other:
        for each in (flow, other):
            each.add_task("hen", functools.partial(jobs.say_and_get, says="hen waits", key="egg"))
            each.add_task("egg", functools.partial(jobs.say_and_get, says="egg waits", key="hen"))
            flow_run = each.start(["hen", "egg"])
            until(lambda context=flow_run.context: "hen waits" in context and "egg waits" in context)
            began = time.monotonic()
            with pytest.raises(DeadlockError) as caught:
                flow_run.result(WATCHDOG)
            assert time.monotonic() - began < SECOND
            assert "hen waits for 'egg'" in str(caught.value)
            assert "egg waits for 'hen'" in str(caught.value)


def test_r17_a_thread_and_a_job_that_wait_for_each_other(flow):
    """A deadlock is found out across executors."""
    flow.add_task("hen", tasks.hen)
    flow.add_task("egg", tasks.egg, executor="thread")
    with pytest.raises(DeadlockError):
        run(flow, ["hen", "egg"])


def test_an_update_waits_for_its_key(one_at_a_time):
    """``update`` without a default waits for the key, and gives its place back meanwhile."""
    with Flow(one_at_a_time) as flow:
        with_tasks(flow, tasks.update_missing, tasks.producer)
        assert run(flow, ["update_missing", "producer"])["update_missing"] == 43


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


def test_a_task_sees_that_it_was_cancelled(flow, tmp_path):
    """``current_task().cancelled`` becomes true in a job soon after ``run.cancel()``."""
    log = tmp_path / "log"
    with_tasks(flow, jobs.until_told_or_stopped)
    flow_run = flow.start("until_told_or_stopped", {"log": str(log)})
    pid_of(flow_run)
    flow_run.cancel()
    assert flow_run.wait(WATCHDOG)
    assert lines_of(log) == ["told"]


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


def test_what_cannot_be_unpickled_is_an_error_of_its_task(flow):
    """Values that can be made in one process only fail the task at either end, and nothing hangs."""
    for function in (tasks.return_only_here, tasks.set_only_here):
        with pytest.raises(TransferError):
            run_one(flow, function)
    with pytest.raises(TransferError, match="argument"):
        run_one(flow, tasks.identity, {"value": tasks.OnlyHere()})
    assert run_one(flow, tasks.add, {"a": 1}) == 11


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


def test_r29_tasks_that_stand_in_line_do_not_time_out(flow):
    """Of six tasks on two workers, each far from its timeout, none times out before it has begun."""
    with_tasks(flow, tasks.spin, timeout=2.2)
    split_into(flow, "spin", [{"seconds": 1.2, "n": n} for n in range(6)])
    assert sorted(run(flow, "split").values()) == [*range(6)]


def test_r29_a_timeout_does_not_begin_in_the_queue_of_the_cluster(cluster, tmp_path):
    """Jobs that stand in line behind others of the cluster do not time out before they begin."""
    log = tmp_path / "log"
    with cluster.another(max_workers=12) as executor, Flow(executor) as flow:
        flow.add_task("overlap", jobs.overlap, timeout=1.0)
        with_tasks(flow, tasks.spin)
        busy = [NextTask("spin", {"seconds": 0.4, "n": n}, spawn_another=True) for n in range(6)]
        timed = [NextTask("overlap", {"log": str(log), "n": n}, spawn_another=True) for n in range(4)]
        flow.add_task("split", lambda: [*busy, *timed], executor="thread")
        assert len(run(flow, "split")) == 10


def test_a_waiting_neighbour_survives_a_kill(one_at_a_time):
    """Of two tasks in one lent process the one that overruns is stopped; the other is told the truth or lives."""
    with Flow(one_at_a_time, on_error="continue") as flow:
        flow.add_task("waits", tasks.get_external, retries=2)
        flow.add_task("slow", tasks.sleep_forever, timeout=0.2)
        flow_run = flow.start(["waits", "slow"])
        until(lambda: flow_run.report().tasks["slow"].status is Status.FAILED)
        flow_run.context.set("outside", 5)
        assert flow_run.result(WATCHDOG) == {"waits": 5}
        assert flow_run.report().tasks["slow"].error.type.endswith("TaskTimeoutError")


@pytest.mark.parametrize("function", [tasks.stubborn, tasks.wait_and_forever, tasks.until_told])
def test_r30_a_cancelled_run_stops_its_jobs(flow, function):
    """``run.cancel`` ends the run and its work within a second, with status CANCELLED; the cluster works on."""
    with_tasks(flow, function)
    flow_run = flow.start(function.__name__)
    pid = pid_of(flow_run)
    began = time.monotonic()
    flow_run.cancel()
    with pytest.raises(RunCancelledError):
        flow_run.result(WATCHDOG)
    assert time.monotonic() - began < SECOND
    if function is tasks.stubborn:
        assert_ends(pid)
    assert flow_run.status is Status.CANCELLED
    assert flow_run.report().tasks[function.__name__].status in (Status.CANCELLED, Status.SUCCESS)
    assert run_one(flow, tasks.add, {"a": 1}) == 11


def test_r31_after_a_cancel_no_further_task_starts(flow, tmp_path):
    """Of many jobs that are under way or in line, none begins once the run that was cancelled has ended."""
    log = tmp_path / "log"
    with_tasks(flow, jobs.slow_square)
    split_into(flow, "slow_square", [{"log": str(log), "n": n} for n in range(200)])
    flow_run = flow.start("split")
    until(lambda: len(lines_of(log)) > 4)
    flow_run.cancel()
    assert flow_run.wait(WATCHDOG)
    count = len(lines_of(log))
    assert run_one(flow, tasks.add, {"a": 1}) == 11
    time.sleep(0.3)  # for jobs that somebody forgot in the cluster
    assert len(lines_of(log)) == count < 100


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


def test_r39_what_ran_elsewhere_is_not_lost(cluster, tmp_path):
    """One task run ends its worker; the others have results, or were with it, and no body was called twice."""
    log = tmp_path / "log"
    with Flow(cluster.executor, on_error="continue") as flow:
        with_tasks(flow, jobs.die_at_number)
        split_into(flow, "die_at_number", [{"log": str(log), "n": n, "deadly": 20} for n in range(100)])
        flow_run = flow.start("split")
        results = flow_run.result(WATCHDOG)
        bodies = Counter(map(int, lines_of(log)))
        assert set(bodies.values()) == {1}
        missing = set(range(100)) - set(results.values())
        assert 20 in missing
        assert len(missing) < 100
        assert flow_run.report().tasks["die_at_number"].error.type.endswith("WorkerLostError")
        assert set(results.values()) <= set(bodies)


@pytest.mark.parametrize("function", [tasks.die_while_waiting, tasks.die_while_yielding])
def test_r39_a_worker_that_dies_in_the_middle_is_noticed(flow, function):
    """A process that ends while its task is blocked in ``get``, or between two chunks, is a loss and no hang."""
    with pytest.raises(WorkerLostError):
        run_one(flow, function)
    assert run_one(flow, tasks.add, {"a": 1}) == 11


def test_r39_neighbours_that_wait_in_a_process_that_dies_are_told(one_at_a_time):
    """Three tasks wait in the process that a fourth one kills: all of them end, and with retries they succeed."""
    with Flow(one_at_a_time, on_error="continue") as flow:
        flow.add_task("wait_beside", jobs.wait_beside, retries=3)
        flow.add_task("die_while_others_wait", jobs.die_while_others_wait)
        requests = [NextTask("wait_beside", spawn_another=True)] * 3
        flow.add_task("split", lambda: [*requests, NextTask("die_while_others_wait")], executor="thread")
        flow_run = flow.start("split")
        until(lambda: flow_run.report().tasks["die_while_others_wait"].status is Status.FAILED)
        flow_run.context.set("outside", 5)
        assert list(flow_run.result(WATCHDOG).values()) == [5, 5, 5]
        assert flow_run.report().tasks["die_while_others_wait"].error.type.endswith("WorkerLostError")


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
            for _ in range(20):  # a cluster may take its time until a second worker is there
                times = [(began, ended) for began, ended, _ in run(flow, "split").values()]
                at_once = max(sum(begun <= began < ended for begun, ended in times) for began, _ in times)
                assert at_once <= most
                if at_once == most:
                    break
            assert at_once == most


def test_short_tasks_do_not_wait_behind_a_long_one(flow, tmp_path):
    """Calls that were batched behind one that takes long are handed to others: all short ones end before it does."""
    with_tasks(flow, tasks.first_waits)
    split_into(flow, "first_waits", [{"n": n, "folder": ""} for n in range(1, 200)])
    run(flow, "split")  # now the engine expects these calls to be short
    numbers = [*range(1, 50), 0, *range(50, 400)]
    split_into(flow, "first_waits", [{"n": n, "folder": str(tmp_path)} for n in numbers], replace=True)
    seen = []
    for chunk in flow.stream("split", timeout=WATCHDOG):
        if chunk.task_id != "split":
            seen.append(chunk.value)
        if len(seen) == 399:
            (tmp_path / "end").touch()
    assert seen[-1] == 0
    assert sorted(seen) == [*range(400)]


def test_hooks_hear_of_jobs(executor):
    """Start, success, failure and retry are told as for a thread, with durations and outputs."""
    heard = Log()
    hook = fn_hook(
        on_task_start=lambda event: heard.add(("start", event.id, event.attempt)),
        on_task_success=lambda event: heard.add(("success", event.id, event.output, event.duration >= 0)),
        on_task_failure=lambda event: heard.add(("failure", event.id, str(event.error), event.will_retry)),
        on_task_retry=lambda event: heard.add(("retry", event.id, event.attempt)),
        on_run_end=lambda event: heard.add(("end", event.status)),
    )
    with Flow(executor, hooks=[hook]) as flow:
        flow.add_task("flaky", tasks.flaky, retries=1)
        run(flow, "flaky", {"fails": 1})
        heard.wait_for(6)
    assert heard == [
        ("start", "flaky", 1),
        ("failure", "flaky", "attempt 1", True),
        ("retry", "flaky", 2),
        ("start", "flaky", 2),
        ("success", "flaky", 2, True),
        ("end", Status.SUCCESS),
    ]


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


def test_a_shutdown_ends_what_is_under_way(cluster, tmp_path):
    """When its executor is shut down a run ends with an error within seconds, and the process of its job is dead."""
    executor = cluster.another()
    with Flow(executor) as flow:
        with_tasks(flow, tasks.sleep_forever)
        flow_run = flow.start("sleep_forever")
        pid = pid_of(flow_run)
        executor.shutdown()
        with pytest.raises((ExecutorLostError, WorkerLostError, FlowClosedError)):
            flow_run.result(WATCHDOG)
        assert_ends(pid, 5.0)


def test_r36_a_flow_that_is_closed_leaves_the_executor_open(cluster):
    """A flow closes no executor that it was given, and an executor that is closed leaves no thread."""
    before = engine_threads()
    with cluster.another() as executor:
        for _ in range(2):
            with Flow(executor) as flow:
                assert run_one(flow, tasks.add, {"a": 1}) == 11
    assert_gone(engine_threads() - before)


def test_r36_an_executor_that_nobody_closes_is_collected(cluster):
    """An executor that is garbage leaves no thread."""
    before = engine_threads()
    executor = cluster.another()
    with Flow(executor) as flow:
        assert run_one(flow, tasks.add, {"a": 1}) == 11
    del flow, executor

    def collected():
        gc.collect()  # again and again: a thread may hold on to something for a moment
        return not engine_threads() - before

    until(collected)


def test_a_running_ray_takes_no_options(cluster):
    """With Ray running in this process already, an address or options are refused, as they would have no effect."""
    if cluster.kind != "ray":
        pytest.skip("it is about Ray")
    for executor in (RayExecutor(cluster.address), RayExecutor(num_cpus=1)):
        with executor, Flow(executor) as flow, pytest.raises(FlowError, match="Ray runs in this process already"):
            run_one(flow, tasks.nothing)


def test_an_asynchronous_client_is_refused():
    """A client that belongs to an event loop cannot be waited for in threads."""
    distributed = needed("dask")

    async def main():
        async with distributed.Client(processes=False, dashboard_address="127.0.0.1:0", asynchronous=True) as client:
            with pytest.raises(TypeError, match="not asynchronous"):
                DaskExecutor(client)

    asyncio.run(main())


# ---- programs -------------------------------------------------------------------------------------


CONNECT = {"ray": "RayExecutor(address)", "dask": "DaskExecutor(address)"}


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
