"""The process executor: what works in threads works in worker processes, and what goes wrong there ends well."""

# ruff: noqa: PT012 - loops and blocks are what is said to raise here

import asyncio
import contextlib
import functools
import gc
import logging
import multiprocessing
import operator
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from millstream import (
    Context,
    ContextKeyError,
    DeadlockError,
    ExecutorLostError,
    Flow,
    FlowClosedError,
    FlowError,
    NextTask,
    ProcessExecutor,
    RunCancelledError,
    RunTimeoutError,
    State,
    Status,
    TaskFailedError,
    TaskNotFoundError,
    TaskTimeoutError,
    TransferError,
    WorkerLostError,
    fn_hook,
)
from tests import process_tasks as tasks
from tests.conftest import WATCHDOG, Log, assert_gone, engine_threads, named, until
from tests.elsewhere import SECOND, alive, assert_ends, pid_of, run, run_one, run_script, with_tasks

MIB = 1 << 20


@pytest.fixture(scope="module")
def workers():
    """Two worker processes, which most tests share."""
    before = engine_threads()
    with ProcessExecutor(2) as executor:
        yield executor
    assert_gone(engine_threads() - before)
    assert_ended()


@pytest.fixture(scope="module")
def one_worker():
    """A single worker process."""
    with ProcessExecutor(1) as executor:
        yield executor


@pytest.fixture
def executor(workers):
    return workers


def assert_ended(before=()):
    """No worker process is left."""
    until(lambda: not {p for p in multiprocessing.active_children() if p.name.startswith("millstream")} - set(before))


def workers_now():
    return {p for p in multiprocessing.active_children() if p.name.startswith("millstream")}


# ---- values and arguments -------------------------------------------------------------------------


VALUES = [
    5, -(2**70), 1.5, True, None, "text", "\ud800", b"bytes", (1, 2), (), [1, [2]], {"a": {1, 2}}, {}, {1: "one"},
    frozenset({1}), tasks.Point(1, 2), range(5), 3j, Status.FAILED, int, len, tasks.square, ..., bytearray(b"ab"),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=named)
def test_values_arrive_as_they_went_both_ways(flow, value):
    """What a task gets is equal to the input, of the same type, and so is the output."""
    got = run_one(flow, tasks.identity, {"value": value})
    assert got == value
    assert type(got) is type(value)


def test_tasks_run_in_other_processes_and_no_more_than_there_are_workers(flow):
    """Fifty task runs use at most as many processes as the executor has workers, and none of them is this one."""
    with_tasks(flow, tasks.process_id)
    flow.add_task("fan_out", lambda: [NextTask("process_id", spawn_another=True)] * 50, executor="thread")
    pids = set(run(flow, "fan_out").values())
    assert os.getpid() not in pids
    assert len(pids) <= 2


def test_parameters_are_bound_as_anywhere(flow):
    """Context, inputs, single inputs, defaults, keyword-only and left-over ones are filled in a worker process, too."""
    got = run_one(flow, tasks.everything, {"size": 3, "last": [1], "more": "rest"})
    assert got == (3, ["last", "more", "size"], 3, "red", [1], {"more": "rest"})


def test_a_task_gets_copies(flow):
    """What a task does to its arguments changes nothing in this process."""
    rows = ["kept"]
    assert run_one(flow, tasks.spoil, {"rows": rows}) == ["kept", "spoilt"]
    assert rows == ["kept"]
    assert flow.context["rows"] == ["kept"]


def test_callables_of_every_kind_are_called(flow):
    """Bound methods, callable objects, partials, builtins, ``@task`` functions and ``TaskBase`` objects work."""
    flow.add_task("method", tasks.Shop(3).sell)
    flow.add_task("object", tasks.Shop(3))
    flow.add_task("partial", functools.partial(tasks.add, 5))
    flow.add_task("named", tasks.triple)
    flow.add_task("builtin", operator.neg)
    flow.add(tasks.cube)
    flow.add(tasks.doubled)
    inputs = {"n": 2, "x": 4}
    names = ["method", "object", "partial", "named", "cube", "doubled"]
    expected = {"method": 6, "object": 5, "partial": 15, "named": 9, "cube": 64, "doubled": 8}
    assert run(flow, names, inputs) == expected
    with flow.session() as session:
        assert session.submit(operator.neg, 5).result(WATCHDOG) == -5


def test_a_task_names_the_process_executor_itself():
    """``executor="process"`` on one task is enough; the others run where the flow's do."""
    before = workers_now()
    with Flow(max_workers=1) as flow:
        flow.add_task("here", tasks.process_id)
        flow.add_task("there", tasks.process_id, executor="process")
        flow.add(tasks.cube_there)
        results = run(flow, ["here", "there", "cube-there"], {"x": 2})
        assert results["here"] == os.getpid()
        assert results["there"] != os.getpid()
        assert results["cube-there"] == (8, results["there"])  # the flow has one such executor
    assert_ended(before)


# ---- graphs, joins, routes, maps ------------------------------------------------------------------


def test_dependencies_are_awaited_and_passed_on(flow):
    """A graph of four tasks gives each the outputs that it depends on, by name and as ``upstream``."""
    flow.add_task("first", tasks.add, depends_on=[])
    flow.add_task("second", tasks.payload_of, depends_on=["first"])
    flow.add_task("both", tasks.sum_of)
    flow.add_task("all", tasks.listed, depends_on=["first", "second", "both"])
    assert run(flow, inputs={"a": 1}) == {"all": {"first": 11, "second": 11, "both": 22}}


def test_threads_and_processes_take_turns_in_one_graph(flow):
    """Values pass from thread to process and back along the edges."""

    @flow.task(executor="thread")
    def numbers(count):
        return list(range(count))

    flow.add_task("squares", tasks.square_item, for_each="numbers")

    @flow.task(executor="thread")
    def total(squares):
        return sum(squares), os.getpid()

    assert run(flow, inputs={"count": 10}) == {"total": (285, os.getpid())}


def test_a_fan_out_is_joined(flow):
    """A join starts once, with the outputs of all its siblings in list order."""
    with_tasks(flow, tasks.fan_out_and_join, tasks.square, tasks.total)
    assert run(flow, "fan_out_and_join", {"n": 300}) == {"total": sum(n * n for n in range(300))}
    assert flow.report().tasks["total"].runs == 1


def test_ids_and_results_are_those_of_the_requests(flow):
    """Each of 500 spawned task runs has the result of its own number under its own id."""
    with_tasks(flow, tasks.fan_out, tasks.square)
    results = run(flow, "fan_out", {"n": 500})
    assert results == {"square" if n == 0 else f"square#{n + 1}": n * n for n in range(500)}


def test_a_task_schedules_itself(flow):
    """A loop runs until it stops, and its result stands under the bare name."""
    assert run_one(flow, tasks.count_down, {"n": 30}) == "landed"


@pytest.mark.parametrize(("number", "chosen"), [(4, "even"), (5, "odd")])
def test_a_router_chooses(flow, number, chosen):
    """Of two routes the chosen one runs, the other is skipped."""
    flow.add_task("choose", tasks.choose, routes=["even", "odd"])
    flow.add_task("even", tasks.payload_of)
    flow.add_task("odd", tasks.payload_of)
    assert list(run(flow, "choose", {"number": number})) == [chosen]
    rows = flow.report().tasks
    assert rows["even" if chosen == "odd" else "odd"].status is Status.SKIPPED


def test_a_router_sends_payloads(flow):
    """What a router sends along arrives as the payload of each that it chose."""
    flow.add_task("choose", tasks.choose_with, routes=["even", "odd"])
    flow.add_task("even", tasks.payload_of)
    flow.add_task("odd", tasks.payload_of)
    assert run(flow, "choose", {"number": 5}) == {"odd": 5, "even": -5}


def test_an_unknown_request_fails_its_task(flow):
    """A list with an unknown name in it raises, and nothing of it was scheduled."""
    with_tasks(flow, tasks.ask_nobody, tasks.square)
    with pytest.raises(TaskNotFoundError, match="Task nobody not found"):
        run(flow, "ask_nobody")
    assert flow.report().tasks["square"].runs == 0 if "square" in flow.report().tasks else True


def test_a_map_runs_its_items_in_processes(flow):
    """``for_each`` calls for each item with its place, in worker processes, and the output is the list in order."""
    flow.add_task("items", tasks.item_and_index, for_each="$inputs.rows")
    got = run(flow, "items", {"rows": list(range(40, 100))})["items"]
    assert [(item, index) for item, index, _ in got] == [(n + 40, n) for n in range(60)]
    assert os.getpid() not in {pid for _, _, pid in got}
    assert run(flow, "items", {"rows": []}) == {"items": []}


def test_an_item_that_fails_fails_the_map(flow):
    """The exception of an item is raised, and says which it was."""
    flow.add_task("items", tasks.item_and_index, for_each="$inputs.rows")
    with pytest.raises(ValueError, match="item -1 is below zero"):
        run(flow, "items", {"rows": [1, 2, -1]})


# ---- generators and streams -----------------------------------------------------------------------


def test_what_a_generator_yields_streams_and_its_return_value_is_the_output(flow):
    """Each value goes out under the id of the task run, the output last."""
    with_tasks(flow, tasks.bake)
    chunks = [(chunk.task_id, chunk.value) for chunk in flow.stream("bake", {"loaves": 3})]
    assert chunks == [("bake", "loaf 0"), ("bake", "loaf 1"), ("bake", "loaf 2"), ("bake", "done")]
    assert run(flow, "bake", {"loaves": 2}) == {"bake": "done"}


def test_what_a_generator_yields_goes_out_at_once(flow):
    """The reader has a value while the generator that gave it waits to be told to go on."""
    with_tasks(flow, tasks.bake_one_at_a_time)
    seen = []
    flow_run = flow.start("bake_one_at_a_time")
    for chunk in flow_run.stream():
        seen.append(chunk.value)
        if chunk.value != "done":
            flow_run.context.set(f"eaten-{chunk.value}", True)
    assert seen == [0, 1, 2, "done"]


def test_a_generator_requests_tasks(flow):
    """A yielded NextTask is scheduled, between the values before and after it."""
    with_tasks(flow, tasks.yield_requests, tasks.square)
    chunks = list(flow.stream("yield_requests", {"n": 5}))
    assert sorted(chunk.value for chunk in chunks if chunk.task_id.startswith("square")) == [0, 1, 4, 9, 16]
    assert [chunk.value for chunk in chunks if chunk.task_id == "yield_requests"] == ["before", "after", 5]


@pytest.mark.parametrize("number", [1, 2])
def test_a_generator_gets_what_it_asked_for(number, workers, one_worker):
    """A yielded request runs while the generator that waits for its output is under way, with one worker, too."""
    with Flow(one_worker if number == 1 else workers) as flow:
        with_tasks(flow, tasks.yield_and_wait, tasks.square)
        assert run(flow, "yield_and_wait") == {"square": 49}
        assert flow.context["yield_and_wait"] == 49


def test_a_generator_cannot_yield_an_output(flow):
    """A yielded TaskOutput is refused with the mend."""
    with pytest.raises(TypeError, match="A generator task yields values and NextTask requests"):
        run_one(flow, tasks.yield_output)


@pytest.mark.parametrize("n", [0, 1, 256, 600])
def test_an_iterator_of_requests_is_drained(flow, n):
    """Next tasks that come from a generator are all scheduled, whatever the size of a page."""
    with_tasks(flow, tasks.from_iterator, tasks.square)
    results = run(flow, "from_iterator", {"n": n})
    assert sorted(results.values(), key=str) == sorted([n * n for n in range(n)] if n else ["asked"], key=str)


def test_an_iterator_without_requests_ends_the_branch(flow):
    """An empty iterator replaces the static edges, as an empty list does."""
    flow.add_task("first", tasks.from_empty_iterator)
    flow.add_task("behind", tasks.nothing, depends_on=["first"])
    assert run(flow, "first") == {"first": "none"}


def test_an_iterator_that_fails_fails_its_task(flow):
    """What an iterator of next tasks raises is the failure of the task that returned it."""
    with_tasks(flow, tasks.from_failing_iterator, tasks.square)
    with pytest.raises(LookupError, match="no more to ask for"):
        run(flow, "from_failing_iterator")


def test_an_endless_iterator_is_left_early(flow):
    """Leaving the loop ends a task that asks for ever, and its process goes on to serve."""
    with_tasks(flow, tasks.from_endless_iterator, tasks.square)
    flow_run = flow.start("from_endless_iterator")
    for chunk in flow_run.stream():
        if chunk.value == 9:
            break
    assert flow_run.wait(WATCHDOG)
    assert flow_run.status is Status.CANCELLED
    assert run_one(flow, tasks.add, {"a": 1}) == 11


def test_leaving_a_stream_early_stops_the_process(flow):
    """A generator that never ends is stopped within a second when its reader leaves."""
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


def test_a_slow_reader_slows_a_generator_down(flow):
    """A generator in a worker is no more than its buffers ahead of its reader."""
    with_tasks(flow, tasks.count_ahead)
    stream = flow.stream("count_ahead", {"size": 1000, "most": 20_000}, buffer=10)
    for _ in range(5):
        next(stream)
    time.sleep(0.3)  # long enough for one that nobody holds back
    given = flow.context.get("given", 0)
    stream.close()
    assert given < 20_000, "the generator ran to its end"


# ---- coroutines -----------------------------------------------------------------------------------


def test_a_coroutine_function_that_names_the_process_executor_runs_there(workers):
    """``async def`` with ``executor="process"`` is awaited on a loop in the worker."""
    with Flow() as flow:
        for function in (tasks.coroutine, tasks.coroutines_at_once, tasks.await_value):
            flow.add_task(function.__name__, function, executor=workers)
        flow.add_task("producer", tasks.producer)
        n, pid = run(flow, "coroutine", {"n": 5})["coroutine"]
        assert (n, pid == os.getpid()) == (5, False)
        assert run(flow, "coroutines_at_once")["coroutines_at_once"] == [0, 1, 2, 3, 4]
        value, pid = run(flow, ["await_value", "producer"])["await_value"]
        assert (value, pid == os.getpid()) == (42, False)


def test_a_named_process_executor_takes_coroutine_functions():
    """The name ``"process"`` will do for a coroutine function."""
    with Flow(max_workers=1) as flow:
        flow.add_task("coroutine", tasks.coroutine, executor="process")
        assert run(flow, "coroutine", {"n": 5})["coroutine"][1] != os.getpid()


def test_coroutine_functions_of_a_process_flow_run_here(flow):
    """Without an executor of its own, an ``async def`` task is awaited on a loop of this process."""
    assert run_one(flow, tasks.coroutine, {"n": 5}) == (5, os.getpid())


def test_an_async_generator_streams_from_a_worker(workers):
    """What an asynchronous generator yields in a worker goes out under its id."""
    with Flow() as flow:
        flow.add_task("bake", tasks.async_bake, executor=workers)
        values = [chunk.value for chunk in flow.stream("bake", {"loaves": 3})]
        assert values == ["loaf 0", "loaf 1", "loaf 2", None]


def test_a_get_that_would_block_a_loop_in_a_worker_is_refused(workers):
    """In a coroutine ``ctx.get`` of a missing key says to await ``aget``, in a worker, too."""
    with Flow() as flow:
        flow.add_task("get_in_coroutine", tasks.get_in_coroutine, executor=workers)
        flow.add_task("producer", tasks.sleep_forever, executor=workers)
        with pytest.raises(FlowError, match=r"await ctx\.aget"):
            run(flow, ["producer", "get_in_coroutine"])


def test_arun_and_astream_use_processes(flow):
    """The twins of run and stream await worker processes without blocking the loop."""
    with_tasks(flow, tasks.fan_out_and_join, tasks.square, tasks.total, tasks.bake)

    async def main():
        results, ticks = await asyncio.gather(flow.arun("fan_out_and_join", {"n": 50}), tick())
        values = [chunk.value async for chunk in flow.astream("bake", {"loaves": 2})]
        return results, ticks, values

    async def tick():
        for _ in range(5):
            await asyncio.sleep(0)
        return 5

    results, ticks, values = asyncio.run(main())
    assert (results, ticks, values) == ({"total": 40425}, 5, ["loaf 0", "loaf 1", "done"])


# ---- submitted calls ------------------------------------------------------------------------------


def test_calls_are_submitted_to_processes(workers):
    """Handles give results, are arguments of other calls, and stand for calls of ``@task`` functions, too."""
    with Flow(workers) as flow:
        one, two = flow.submit(tasks.square, 3), tasks.cube.submit(2)
        both = flow.submit(tasks.add, one, b=two)
        assert both.result(WATCHDOG) == 17
        assert flow.submit(sum, [one, two, 1]).result(WATCHDOG) == 18
        assert tasks.doubled.submit(4).result(WATCHDOG) == 8
        assert flow.submit(tasks.process_id).result(WATCHDOG) != os.getpid()


def test_a_session_has_a_context_and_a_report(flow):
    """Calls of a session share its context, and its report counts them."""
    with flow.session("night", context={"price": 3}) as session:
        assert session.submit(tasks.get_key, key="price").result(WATCHDOG) == 3
        handles = [session.submit(tasks.square, n) for n in range(100)]
        assert [handle.result(WATCHDOG) for handle in handles] == [n * n for n in range(100)]
    assert session.status is Status.SUCCESS
    assert session.report().tasks["square"].runs == 100


def test_a_failed_call_raises_from_its_handle(flow):
    """The exception of a call is the handle's, and cancels no other call."""
    with flow.session() as session:
        bad, good = session.submit(tasks.fail, "two"), session.submit(tasks.square, 2)
        assert isinstance(bad.exception(WATCHDOG), tasks.TwoArguments)
        assert good.result(WATCHDOG) == 4


@pytest.mark.parametrize("function", [tasks.sleep_forever, tasks.spin_forever, tasks.stubborn, tasks.wait_and_forever])
def test_r30_a_cancelled_call_is_stopped(flow, function):
    """``handle.cancel`` settles the handle at once and stops the process within a second; the pool works on."""
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
        assert time.monotonic() - began < SECOND


def test_a_cancelled_call_that_had_not_begun_never_begins(one_worker):
    """A call that waits behind another is cancelled without a process."""
    with Flow(one_worker) as flow, flow.session() as session:
        first = session.submit(tasks.until_told)
        pid = pid_of(session)
        second = session.submit(tasks.producer)
        assert second.cancel()
        assert first.cancel()
        assert second.cancelled()
    assert "producer" not in session.context
    assert_ends(pid, WATCHDOG) if not alive(pid) else None


def test_a_call_inside_a_process_task_is_refused(flow):
    """``submit`` in a worker process raises a sentence that says what to do instead."""
    with pytest.raises(FlowError, match=r"runs in another process, where calls cannot be submitted.*executor='thread'"):
        run_one(flow, tasks.submit_one)


# ---- the context ----------------------------------------------------------------------------------


def test_r38_the_context_works_in_a_worker(flow):
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
    """What a run was given as ``deps`` and ``metadata`` a process task reads, and metadata stays read-only."""
    with_tasks(flow, tasks.read_facts, tasks.change_metadata)
    facts = {"deps": tasks.Point(1, 2), "metadata": {"batch": 4}}
    assert run(flow, "read_facts", **facts)["read_facts"] == (tasks.Point(1, 2), {"batch": 4})
    with pytest.raises(TypeError):
        run(flow, "change_metadata", **facts)


def test_set_state_in_a_worker(flow):
    """A State that a process task puts in the context is one with its key."""
    assert run_one(flow, tasks.set_state) == 6
    assert flow.context["cell"] == 6


def test_a_state_of_this_process_is_shared(flow):
    """A cell that was put in the context here sees what a worker sets."""
    context, cell = Context(), State(0)
    context.set_state("count", cell)
    with_tasks(flow, tasks.increment)
    run(flow, "increment", {"n": 5}, context=context)
    assert cell.get_value() == 5


def test_emit_and_get_stream(flow):
    """``ctx.emit`` sends under the task's id, ``get_stream().put`` under any, both before the output."""
    with_tasks(flow, tasks.emit_some)
    chunks = [(chunk.task_id, chunk.value) for chunk in flow.stream("emit_some")]
    assert chunks == [("emit_some", "one"), ("somebody", "two"), ("emit_some", "three")]
    assert run(flow, "emit_some") == {"emit_some": "three"}  # nobody streams: they are dropped


def test_r15_a_hundred_consumers_wait_with_one_worker(one_worker):
    """A blocked ``get`` gives its place back, so that one worker process is enough."""
    with Flow(one_worker) as flow:
        with_tasks(flow, tasks.consumer, tasks.producer)
        requests = [*[NextTask("consumer", spawn_another=True)] * 100, NextTask("producer")]
        flow.add_task("split", lambda: requests, executor="thread")
        results = run(flow, "split")
        assert results.pop("producer") == 42
        assert list(results.values()) == [42] * 100


def test_r15_a_chain_of_waits_needs_no_more_workers(one_worker):
    """Each of 30 tasks waits for the next one, and only the last has anything to give."""
    with Flow(one_worker) as flow:
        with_tasks(flow, tasks.link)
        links = [NextTask("link", {"n": n}, spawn_another=True) for n in range(30)]
        flow.add_task("split", lambda: links, executor="thread")
        assert sorted(run(flow, "split").values()) == [*range(30)]


def test_waiting_ends_no_process(one_worker):
    """After many waits the worker process is still the same one, and has no more threads than before."""
    with Flow(one_worker) as flow:
        with_tasks(flow, tasks.consumer, tasks.producer, tasks.thread_count)
        requests = [*[NextTask("consumer", spawn_another=True)] * 20, NextTask("producer")]
        flow.add_task("split", lambda: requests, executor="thread")
        run(flow, "split")
        pid, few = run(flow, "thread_count")["thread_count"]
        for _ in range(3):
            run(flow, "split")
        until(lambda: run(flow, "thread_count")["thread_count"][1] <= few + 2)
        assert run(flow, "thread_count")["thread_count"][0] == pid


def test_get_with_a_timeout(flow):
    """A timed ``get`` raises ``TimeoutError`` after that time, or gives its default, as long as the key could come."""
    with_tasks(flow, tasks.get_with, tasks.until_told)
    for options, expected in (({"timeout": 0.05}, None), ({"timeout": 0.05, "default": 7}, 7)):
        flow_run = flow.start(["until_told", "get_with"], {"options": options})
        if expected is None:
            with pytest.raises(TimeoutError):
                flow_run.result(WATCHDOG)
        else:
            until(lambda: "get_with" in flow_run.context)
            assert flow_run.context["get_with"] == expected
            flow_run.cancel()
            flow_run.wait(WATCHDOG)


def test_bad_arguments_of_get_are_refused(flow):
    """A timeout below 0 and a key that is no string are errors at once."""
    with pytest.raises((ValueError, TypeError)):
        run_one(flow, tasks.get_with, {"options": {"timeout": -1}})
    with pytest.raises(TypeError):
        run_one(flow, tasks.bad_key)


def test_a_value_from_outside(flow):
    """``get(external=True)`` waits for a value that this process sets, in a worker."""
    with_tasks(flow, tasks.get_external)
    flow_run = flow.start("get_external")
    until(lambda: "waits" in flow_run.context)
    flow_run.context.set("outside", [1, 2])
    assert flow_run.result(WATCHDOG) == {"get_external": [1, 2]}


def test_r17_a_key_that_nobody_can_set(flow):
    """``get`` of such a key raises ``ContextKeyError`` within a second, and says who waited."""
    began = time.monotonic()
    with_tasks(flow, tasks.get_key)
    with pytest.raises(ContextKeyError, match="Key nowhere not found in context") as caught:
        run(flow, "get_key", {"key": "nowhere"})
    assert "get_key" in str(caught.value)
    assert time.monotonic() - began < SECOND


def test_r17_a_deadlock_is_found_out(flow, one_worker):
    """Two process tasks that wait for each other raise ``DeadlockError`` with the names of both."""
    for executor in (flow, Flow(one_worker)):
        with_tasks(executor, tasks.hen, tasks.egg)
        with pytest.raises(DeadlockError) as caught:
            run(executor, ["hen", "egg"])
        assert "hen waits for 'egg'" in str(caught.value)
        assert "egg waits for 'hen'" in str(caught.value)


def test_a_thread_and_a_process_that_wait_for_each_other(flow):
    """A deadlock is found out across executors."""
    flow.add_task("hen", tasks.hen)
    flow.add_task("egg", tasks.egg, executor="thread")
    with pytest.raises(DeadlockError):
        run(flow, ["hen", "egg"])


@pytest.mark.parametrize(
    ("function", "error"),
    [(tasks.append_to_number, TypeError), (tasks.delete_missing, ContextKeyError), (tasks.failing_update, ValueError)],
)
def test_errors_of_the_context_are_raised_in_the_task(flow, function, error):
    """What a context refuses is raised where the task called it."""
    kind = ZeroDivisionError if function is tasks.failing_update else error
    with pytest.raises(kind) as caught:
        run_one(flow, function)
    assert function.__name__ in "".join(traceback.format_tb(caught.value.__traceback__))


def test_r22_no_update_is_lost():
    """Four processes and a thread that update one counter and one list lose nothing."""
    with ProcessExecutor(4) as executor, Flow(executor) as flow:
        with_tasks(flow, tasks.increment, tasks.count_lists)
        flow.add_task("increment_here", tasks.increment, executor="thread")

        @flow.task(executor="thread")
        def split():
            spread = [NextTask(name, {"n": 50}, spawn_another=True) for name in ("increment", "increment_here") * 4]
            return [*spread, *[NextTask("count_lists", spawn_another=True)] * 20]

        results = run(flow, "split")
        assert flow.context["count"] == 400
        assert len(flow.context["all"]) == 400
        counts = sorted(value for name, value in results.items() if name.startswith("count_lists"))
        assert counts == [*range(1, 21)]


def test_an_update_waits_for_its_key(one_worker):
    """``update`` without a default waits for the key, and gives its place back meanwhile."""
    with Flow(one_worker) as flow:
        with_tasks(flow, tasks.update_missing, tasks.producer)
        assert run(flow, ["update_missing", "producer"])["update_missing"] == 43


def test_threads_of_a_task_share_its_context(flow):
    """A task may use its context from threads that it starts itself."""
    assert run_one(flow, tasks.keep_context) == {"rows": [*range(20)]}


def test_a_context_inside_a_value_arrives_as_the_context(flow):
    """The run's own context travels inside an argument, and is the same one there."""
    with_tasks(flow, tasks.use_inner)
    flow.add_task("send", lambda ctx: NextTask("use_inner", {"box": {"ctx": ctx}}), executor="thread")
    assert run(flow, "send", {"size": 3})["use_inner"] == (7, 3)
    assert flow.context["inner"] == 7


def test_what_an_ended_task_sets_later_changes_nothing(one_worker):
    """A thread that a task left behind in its worker cannot write any more."""
    with Flow(one_worker) as flow:
        with_tasks(flow, tasks.late_setter, tasks.end_late_setter)
        flow.add_task("both", tasks.end_late_setter, depends_on=["late_setter"])
        assert run(flow, inputs={}, targets=["both"]) == {"both": True}
        assert "late" not in flow.context


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
    assert 20 < limited["left"] <= 30


def test_keys_are_those_of_threads(flow):
    """The idempotency key of a task run does not depend on where it is called."""

    def split():
        return [NextTask("about_me", {"n": n}, spawn_another=True) for n in range(5)]

    with_tasks(flow, tasks.about_me)
    flow.add_task("split", split, executor="thread")
    keys = {name: facts["key"] for name, facts in run(flow, "split", run_id="r8").items()}
    with Flow() as other:
        with_tasks(other, tasks.about_me)
        other.add_task("split", split, executor="thread")
        assert {name: facts["key"] for name, facts in run(other, "split", run_id="r8").items()} == keys


def test_the_limit_of_a_run_is_known(flow):
    """The time that a run has left is the time that its tasks have left."""
    with_tasks(flow, tasks.about_me)
    left = run(flow, "about_me", timeout=30.0)["about_me"]["left"]
    assert 20 < left <= 30


def test_outside_its_context_variables_a_task_is_nobody(flow):
    """A bare thread of a task sees the inert one, and the task itself is still itself."""
    assert run_one(flow, tasks.about_nobody) == ("", "about_nobody")


def test_log_records_arrive_with_their_facts(flow, caplog):
    """What a process task logs is handled by this process's loggers, with run, task and attempt."""
    run_one(flow, tasks.log_some, run_id="r9")
    task_line, shop_line, failure = [r for r in caplog.records if r.name in ("millstream.task", "shop")]
    assert (task_line.getMessage(), task_line.name) == ("half done", "millstream.task")
    assert (task_line.run_id, task_line.task, task_line.attempt) == ("r9", "log_some", 1)
    assert (shop_line.getMessage(), shop_line.name, shop_line.levelname) == ("sold 3", "shop", "WARNING")
    assert shop_line.process != os.getpid()
    assert "ValueError: no tea" in failure.exc_text
    assert "failed with" in failure.getMessage()


def test_log_levels_hold_in_workers(caplog):
    """A level that is set before the workers start is that of their records."""
    with caplog.at_level(logging.DEBUG, logger="millstream"), Flow("process", max_workers=1) as flow:
        run_one(flow, tasks.log_some, {"level": logging.DEBUG})
    assert "half done" in caplog.messages
    assert "sold 3" not in caplog.messages


def test_a_level_that_is_raised_later_holds(flow, caplog):
    """A record that this process's logger is not enabled for is dropped, whenever that was decided."""
    with caplog.at_level(logging.ERROR, logger="millstream"):
        run_one(flow, tasks.log_some)
    assert "half done" not in caplog.messages


def test_a_flow_runs_inside_a_process_task(flow):
    """A task may run a flow of threads, and one of processes, in its worker process."""
    assert run_one(flow, tasks.nested_run, {"n": 4}) == {"square": 16}
    square, other = run_one(flow, tasks.nested_process_run, {"n": 5})
    assert (square, other) == ({"square": 25}, True)


def test_a_task_opens_a_session_of_a_flow_of_its_own(flow):
    """Calls can be submitted inside a process task to a flow that the task has made."""
    assert run_one(flow, tasks.nested_session, {"n": 5}) == 25


# ---- retries, timeouts, cancelling ----------------------------------------------------------------


def test_a_failed_attempt_is_tried_again(flow):
    """A task that fails twice succeeds in its third attempt, which knows its number."""
    flow.add_task("flaky", tasks.flaky, retries=2)
    assert run(flow, "flaky", {"fails": 2}) == {"flaky": 3}
    assert flow.report().tasks["flaky"].attempt == 3


def test_the_last_failure_is_raised(flow):
    """When all attempts fail, the last one's exception comes with a note of the attempt."""
    flow.add_task("flaky", tasks.flaky, retries=1)
    with pytest.raises(ConnectionError, match="attempt 2") as caught:
        run(flow, "flaky", {"fails": 5}, run_id="r10")
    assert any("In task run flaky, attempt 2 of flow run r10" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("function", [tasks.sleep_forever, tasks.spin_forever, tasks.stubborn, tasks.wait_forever])
def test_r30_a_task_that_times_out_is_stopped(flow, function):
    """The process of an attempt that takes too long is dead within a second, the task FAILED, and the pool works on."""
    flow.add_task("slow", function, timeout=0.1, executor=flow_executor(flow))
    flow_run = flow.start("slow")
    pid = pid_of(flow_run)
    with pytest.raises(TaskTimeoutError, match=r"Task run slow took longer than its timeout of 0\.1 s"):
        flow_run.result(WATCHDOG)
    assert_ends(pid)
    assert flow_run.status is Status.FAILED
    assert flow_run.report().tasks["slow"].status is Status.FAILED
    assert run_one(flow, tasks.add, {"a": 1}) == 11


def flow_executor(flow):
    """The executor that a flow was given, to name it in a task: coroutine functions run there then."""
    return flow._executors._default


def test_r30_others_live_on_when_one_times_out(flow):
    """A timeout costs nobody else an attempt, and the run goes on under ``on_error="continue"``."""
    with Flow(flow_executor(flow), on_error="continue") as going_on:
        going_on.add_task("slow", tasks.sleep_forever, timeout=0.2)
        with_tasks(going_on, tasks.square)
        going_on.add_task(
            "split",
            lambda: [NextTask("slow"), *[NextTask("square", {"n": n}, spawn_another=True) for n in range(300)]],
            executor="thread",
        )
        flow_run = going_on.start("split")
        assert sorted(flow_run.result(WATCHDOG).values()) == [n * n for n in range(300)]
        rows = flow_run.report().tasks
        assert (rows["slow"].status, rows["square"].status) == (Status.FAILED, Status.SUCCESS)
        assert rows["square"].runs == 300


def test_a_timeout_is_tried_again_if_it_is_named(flow):
    """With ``retry_on`` naming it, an attempt that took too long is followed by another, in another process."""
    flow.add_task("slow_first", tasks.slow_first, timeout=0.3, retries=1, retry_on=TaskTimeoutError)
    assert run(flow, "slow_first") == {"slow_first": 2}
    first, second = flow.context["pids"]
    assert first != second
    assert not alive(first)


def test_a_task_that_waits_can_time_out(one_worker):
    """A timeout ends a task that is blocked in ``get``, and the worker works on."""
    with Flow(one_worker) as flow:
        flow.add_task("waits", tasks.wait_and_forever, timeout=0.1)
        with pytest.raises(TaskTimeoutError):
            run(flow, "waits")
        assert run_one(flow, tasks.add, {"a": 1}) == 11


def test_a_waiting_neighbour_survives_a_kill(one_worker):
    """Of two tasks in one lent process the one that overruns is stopped; the other is told the truth or lives."""
    with Flow(one_worker, on_error="continue") as flow:
        flow.add_task("waits", tasks.get_external, retries=2)
        flow.add_task("slow", tasks.sleep_forever, timeout=0.2)
        flow_run = flow.start(["waits", "slow"])
        until(lambda: flow_run.report().tasks["slow"].status is Status.FAILED)
        flow_run.context.set("outside", 5)
        assert flow_run.result(WATCHDOG) == {"waits": 5}
        errors = flow_run.report().tasks["slow"].error
        assert errors.type.endswith("TaskTimeoutError")


def test_the_time_limit_of_a_run_stops_its_processes(flow):
    """``run(timeout=)`` raises ``RunTimeoutError``, and the process is dead within a second."""
    with_tasks(flow, tasks.stubborn)
    flow_run = flow.start("stubborn", timeout=0.3)
    pid = pid_of(flow_run)
    with pytest.raises(RunTimeoutError):
        flow_run.result(WATCHDOG)
    assert_ends(pid)


@pytest.mark.parametrize(
    "function", [tasks.sleep_forever, tasks.spin_forever, tasks.stubborn, tasks.wait_and_forever, tasks.until_told]
)
def test_r30_a_cancelled_run_stops_its_processes(flow, function):
    """``run.cancel`` ends the run and its process within a second, with status CANCELLED; the pool works on."""
    with_tasks(flow, function)
    flow_run = flow.start(function.__name__)
    pid = pid_of(flow_run)
    began = time.monotonic()
    flow_run.cancel()
    with pytest.raises(RunCancelledError):
        flow_run.result(WATCHDOG)
    assert time.monotonic() - began < SECOND
    if function in (tasks.sleep_forever, tasks.spin_forever, tasks.stubborn):
        assert_ends(pid)
    assert flow_run.status is Status.CANCELLED
    assert flow_run.report().tasks[function.__name__].status in (Status.CANCELLED, Status.SUCCESS)
    assert run_one(flow, tasks.add, {"a": 1}) == 11


def test_a_task_that_obeys_keeps_its_process(one_worker):
    """A task that ends when it is told costs no process."""
    with Flow(one_worker) as flow:
        with_tasks(flow, tasks.raise_when_told, tasks.process_id)
        flow_run = flow.start("raise_when_told")
        pid = pid_of(flow_run)
        flow_run.cancel()
        with pytest.raises(RunCancelledError):
            flow_run.result(WATCHDOG)
        assert run(flow, "process_id")["process_id"] == pid


def test_cancel_all_stops_every_process(flow):
    """``flow.cancel_all()`` ends all runs of the flow and their processes."""
    with_tasks(flow, tasks.sleep_forever)
    runs = [flow.start("sleep_forever") for _ in range(2)]
    pids = [pid_of(flow_run) for flow_run in runs]
    flow.cancel_all()
    for flow_run, pid in zip(runs, pids, strict=True):
        with pytest.raises(RunCancelledError):
            flow_run.result(WATCHDOG)
        assert_ends(pid)


def test_a_failure_stops_what_runs_beside_it(flow):
    """After the first failure the other process task is told, and then stopped."""
    with_tasks(flow, tasks.stubborn)
    flow.add_task("fails", tasks.fail, executor="thread")
    flow_run = flow.start("stubborn", {"how": "value"})
    pid = pid_of(flow_run)
    flow_run.cancel()
    flow_run.wait(WATCHDOG)
    assert_ends(pid)
    began = time.monotonic()
    with pytest.raises(tasks.TwoArguments):
        run(flow, ["stubborn", "fails"], {"how": "two"})
    assert time.monotonic() - began < SECOND


# ---- how processes are made -----------------------------------------------------------------------


def test_an_initializer_is_called_in_each_process():
    """A task sees what the initializer did, which was given ``initargs``."""
    with ProcessExecutor(1, initializer=tasks.greet, initargs=("hello",)) as executor, Flow(executor) as flow:
        assert run_one(flow, tasks.greeted) == "hello"


def test_an_initializer_that_fails_ends_the_run():
    """What an initializer raises is the cause of ``ExecutorLostError``, with the traceback of the child."""
    with ProcessExecutor(2, initializer=tasks.bad_initializer, initargs=("tea",)) as executor, Flow(executor) as flow:
        with_tasks(flow, tasks.square)
        with pytest.raises(ExecutorLostError, match="initializer raised ValueError\\('cannot begin: tea'\\)") as caught:
            run(flow, "square", {"n": 1})
        cause = caught.value.__cause__
        assert isinstance(cause, ValueError)
        assert "bad_initializer" in "".join(traceback.format_tb(cause.__traceback__))


@pytest.mark.parametrize("initializer", [tasks.deadly_initializer, tasks.exiting_initializer])
def test_an_initializer_that_ends_the_process_ends_the_run(initializer):
    """A process that ends before it was ready is an error, not a loop of new processes."""
    with ProcessExecutor(1, initializer=initializer) as executor, Flow(executor) as flow:
        with_tasks(flow, tasks.square)
        with pytest.raises(ExecutorLostError):
            run(flow, "square", {"n": 1})


def test_a_process_is_replaced_after_so_many_calls():
    """With ``max_tasks_per_child=3`` no process is given a fourth call, and all calls are done."""
    before = workers_now()
    with ProcessExecutor(2, max_tasks_per_child=3) as executor, Flow(executor) as flow:
        with_tasks(flow, tasks.process_id)
        flow.add_task("split", lambda: [NextTask("process_id", spawn_another=True)] * 20, executor="thread")
        counts = Counter(run(flow, "split").values())
        assert counts.total() == 20
        assert max(counts.values()) <= 3
        assert len(counts) >= 7
    assert_ended(before)


@pytest.mark.parametrize("calls", [1, 2])
def test_r15_tasks_wait_in_processes_that_are_to_be_replaced(calls):
    """Tasks that wait with one worker finish, also where a process may have one or two calls only."""
    with ProcessExecutor(1, max_tasks_per_child=calls) as executor, Flow(executor) as flow:
        with_tasks(flow, tasks.consumer, tasks.producer)
        requests = [*[NextTask("consumer", spawn_another=True)] * 10, NextTask("producer")]
        flow.add_task("split", lambda: requests, executor="thread")
        assert sorted(run(flow, "split").values()) == [42] * 11


def test_r29_a_timeout_begins_with_the_call():
    """Neither the start of a process nor the wait for a place counts for a timeout."""
    with ProcessExecutor(1, initializer=time.sleep, initargs=(1.2,)) as executor, Flow(executor) as flow:
        flow.add_task("spin", tasks.spin, timeout=1.0)  # a busy machine may take many times the 60 ms of a call
        requests = [NextTask("spin", {"seconds": 0.06, "n": n}, spawn_another=True) for n in range(20)]
        flow.add_task("split", lambda: requests, executor="thread")
        assert sorted(run(flow, "split").values()) == [*range(20)]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("as_object", [False, True])
def test_the_start_method_is_the_given_one(method, as_object):
    """``mp_context`` takes the name of a start method, or a context of multiprocessing."""
    context = multiprocessing.get_context(method) if as_object else method
    with ProcessExecutor(1, mp_context=context) as executor, Flow(executor) as flow:
        assert run_one(flow, tasks.process_id) != os.getpid()


def test_fork_is_there_for_those_who_ask_for_it(tmp_path):
    """With ``mp_context="fork"`` a worker has what this process has, and a closure by its name, too."""
    out, _ = run_script(
        tmp_path,
        """
        import warnings
        warnings.simplefilter("ignore")  # Python warns of fork in a process with threads
        from millstream import Flow, ProcessExecutor

        seen = []

        def look():
            return seen

        with ProcessExecutor(2, mp_context="fork") as executor, Flow(executor) as flow:
            seen.append("before")
            flow.add_task("look", look)
            print(flow.run("look"))
        """,
    )
    assert out == "{'look': ['before']}\n"


BAD = [
    ({"max_workers": 0}, ValueError),
    ({"max_workers": -1}, ValueError),
    ({"max_workers": 1.5}, TypeError),
    ({"max_workers": True}, TypeError),
    ({"max_workers": "2"}, TypeError),
    ({"max_tasks_per_child": 0}, ValueError),
    ({"max_tasks_per_child": 2.0}, TypeError),
    ({"mp_context": "threads"}, ValueError),
    ({"mp_context": 5}, TypeError),
    ({"initializer": 5}, TypeError),
    ({"initializer": tasks.Holder().work}, TypeError),
    ({"initializer": tasks.greet, "initargs": (threading.Lock(),)}, TypeError),
    ({"initargs": 5}, TypeError),
]


@pytest.mark.parametrize(("options", "error"), BAD, ids=lambda value: named(value)[:40])
def test_bad_options_are_refused(options, error):
    """An executor that could not work is refused where it is made, and starts nothing."""
    before = workers_now()
    with pytest.raises(error):
        ProcessExecutor(**options)
    assert workers_now() <= before


def test_no_process_starts_before_the_first_task(tmp_path):
    """Making an executor and a flow starts nothing; tasks start only as many processes as they can use."""
    before = workers_now()
    with ProcessExecutor(4) as executor, Flow(executor) as flow:
        with_tasks(flow, tasks.square, tasks.meet)
        assert workers_now() == before
        assert run(flow, "square", {"n": 3}) == {"square": 9}
        assert len(workers_now() - before) == 1
        inputs = {"folder": str(tmp_path), "several": 4}
        flow.add_task(
            "split",
            lambda: [NextTask("meet", {"n": n, **inputs}, spawn_another=True) for n in range(4)],
            executor="thread",
        )
        assert len(set(run(flow, "split").values())) == 4
        assert len(workers_now() - before) == 4
        for _ in range(3):
            run(flow, "square", {"n": 3})
        assert len(workers_now() - before) == 4


def test_max_workers_bounds_what_is_under_way(tmp_path):
    """An executor of two never has three processes, however many tasks there are."""
    before = workers_now()
    with Flow("process", max_workers=2) as flow:
        with_tasks(flow, tasks.spin, tasks.process_id)
        flow.add_task(
            "split", lambda: [NextTask("spin", {"seconds": 0.01}, spawn_another=True)] * 30, executor="thread"
        )
        most = 0
        for _ in flow.stream("split"):
            most = max(most, len(workers_now() - before))
        assert most == 2


def test_closing_leaves_no_thread_and_no_process():
    """When a flow that made its executor is closed, everything of it is gone."""
    before, processes = engine_threads(), workers_now()
    flow = Flow("process", max_workers=2)
    run_one(flow, tasks.process_id)
    flow.close()
    assert_gone(engine_threads() - before)
    assert_ended(processes)
    with pytest.raises(FlowClosedError):
        flow.run("process_id")


def test_closing_leaves_no_file():
    """A closed process flow has given back its files, without the garbage collector."""
    with Flow("process", max_workers=1) as flow:
        run_one(flow, tasks.process_id)  # starts what multiprocessing keeps
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    gc.disable()
    try:
        for _ in range(2):
            with Flow("process", max_workers=1) as flow:
                run_one(flow, tasks.process_id)
        after = len(os.listdir("/proc/self/fd"))
    finally:
        gc.enable()
    assert after <= before


def test_closing_stops_what_runs():
    """``close`` and ``shutdown`` return within two seconds although a task never ends, and its process is dead."""
    with ProcessExecutor(1) as executor:
        flow = with_tasks(Flow(executor), tasks.stubborn)
        flow_run = flow.start("stubborn")
        pid = pid_of(flow_run)
        began = time.monotonic()
        flow.close()
        assert time.monotonic() - began < SECOND
        assert_ends(pid)
        with pytest.raises(FlowError):
            flow_run.result(WATCHDOG)


def test_shutting_down_an_executor_under_a_run_ends_the_run():
    """A run whose executor is shut down gets an error, and its process is dead."""
    executor = ProcessExecutor(1)
    with Flow(executor) as flow:
        with_tasks(flow, tasks.sleep_forever)
        flow_run = flow.start("sleep_forever")
        pid = pid_of(flow_run)
        executor.shutdown()
        with pytest.raises(FlowError):
            flow_run.result(WATCHDOG)
        assert_ends(pid)
        with pytest.raises(FlowClosedError):
            run(flow, "sleep_forever")
    executor.shutdown()


def test_shutting_down_ends_a_process_that_is_still_starting():
    """``shutdown`` stops a worker whose initializer has not ended, and a run that waits for it gets an error."""
    before = workers_now()
    executor = ProcessExecutor(1, initializer=time.sleep, initargs=(60,))
    try:
        with Flow(executor) as flow:
            with_tasks(flow, tasks.square)
            flow_run = flow.start("square", {"n": 1})
            until(lambda: workers_now() - before)
            flow_run.cancel()
            with pytest.raises(RunCancelledError):
                flow_run.result(SECOND)
            executor.shutdown()
            assert not workers_now() - before
    finally:
        for process in workers_now() - before:
            process.kill()


def test_an_idle_executor_that_is_garbage_leaves_nothing():
    """A flow that is only dropped takes its processes with it."""
    before = workers_now()
    flow = Flow("process", max_workers=1)
    run_one(flow, tasks.process_id)
    assert len(workers_now() - before) == 1
    del flow
    gc.collect()
    assert_ended(before)


# ---- the death of processes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "said"), [("kill", "SIGKILL"), ("exit", "exit code 3"), ("crash", "SIGSEGV"), ("stop", "SIGTERM")]
)
def test_r39_a_process_that_dies_fails_what_it_ran(flow, how, said):
    """A task whose process is killed, exits or crashes fails with ``WorkerLostError`` that says how; later ones run."""
    with_tasks(flow, tasks.die)
    with pytest.raises(WorkerLostError, match=f"Task run die was lost.*{said}"):
        run(flow, "die", {"how": how})
    assert flow.report().tasks["die"].status is Status.FAILED
    assert run_one(flow, tasks.add, {"a": 1}) == 11


def test_r39_only_the_deadly_call_of_a_batch_fails(flow):
    """Of 400 calls exactly the one that kills its process fails; all others give their results."""
    with Flow(flow_executor(flow), on_error="continue") as going_on:
        with_tasks(going_on, tasks.die_at)
        going_on.add_task(
            "split",
            lambda: [NextTask("die_at", {"n": n, "deadly": 200}, spawn_another=True) for n in range(400)],
            executor="thread",
        )
        flow_run = going_on.start("split")
        results = flow_run.result(WATCHDOG)
        assert sorted(results.values()) == [n * n for n in range(400) if n != 200]
        row = flow_run.report().tasks["die_at"]
        assert (row.status, row.runs) == (Status.FAILED, 400)
        assert row.error.type.endswith("WorkerLostError")
        assert "die_at#201" in row.error.message


def test_r39_a_lost_attempt_is_tried_again(flow, tmp_path):
    """With retries the next attempt runs in another process."""
    flow.add_task("die_first", tasks.die_first, retries=1)
    assert run(flow, "die_first", {"folder": str(tmp_path)}) == {"die_first": 2}


def test_a_process_that_dies_while_its_task_waits(flow):
    """A worker that is lost in ``get`` fails that task, and its wait is over."""
    with_tasks(flow, tasks.die_while_waiting)
    with pytest.raises(WorkerLostError):
        flow.start("die_while_waiting").result(2 * SECOND)


def test_a_process_that_dies_while_it_yields(flow):
    """What was yielded before the end comes first, then the error."""
    with_tasks(flow, tasks.die_while_yielding)
    values = []
    with pytest.raises(WorkerLostError):
        for chunk in flow.stream("die_while_yielding"):
            values.append(chunk.value)
    assert values == [1, 2]


def test_r39_a_dead_process_with_a_living_child(tmp_path):
    """A task that has forked a child, and is killed, is lost at once: the child has copies of all its files."""
    with Flow("process", max_workers=1) as flow:
        with_tasks(flow, tasks.fork_and_die)
        try:
            with pytest.raises(WorkerLostError):
                flow.start("fork_and_die", {"folder": str(tmp_path)}).result(SECOND)
            assert run_one(flow, tasks.add, {"a": 1}) == 11
        finally:
            end_children(tmp_path)


def test_r30_a_stopped_process_with_a_living_child(tmp_path):
    """When an attempt that has forked a child takes too long, the pool works on while the child lives."""
    with Flow("process", max_workers=1) as flow:
        flow.add_task("slow", tasks.fork_and_sleep, timeout=0.3)
        with_tasks(flow, tasks.add)
        try:
            with pytest.raises(TaskTimeoutError):
                flow.start("slow", {"folder": str(tmp_path)}).result(SECOND)
            assert flow.start("add", {"a": 1}).result(SECOND) == {"add": 11}
        finally:
            end_children(tmp_path)


def end_children(folder):
    """End what tasks have left behind."""
    for name in os.listdir(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(name.removeprefix("child-")), signal.SIGKILL)


def test_an_idle_process_that_dies_is_replaced(flow):
    """A worker that is killed between two runs costs nothing."""
    with_tasks(flow, tasks.process_id)
    pid = run(flow, "process_id")["process_id"]
    for process in workers_now():
        if process.pid == pid:
            os.kill(pid, signal.SIGKILL)
            process.join(WATCHDOG)
    assert run(flow, "process_id")["process_id"] != pid


@pytest.mark.parametrize("what", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "other"])
def test_r5_a_base_exception_fails_its_task_and_no_process(one_worker, what):
    """``SystemExit`` and its kin raised by a task arrive as ``TaskFailedError``; the process lives on."""
    with Flow(one_worker) as flow:
        with_tasks(flow, tasks.exit_by, tasks.process_id)
        pid = run(flow, "process_id")["process_id"]
        with pytest.raises(TaskFailedError) as caught:
            run(flow, "exit_by", {"what": what})
        name = "BaseException" if what == "other" else what
        assert type(caught.value.__cause__).__name__ == name
        assert flow.report().tasks["exit_by"].status is Status.FAILED
        assert run(flow, "process_id")["process_id"] == pid


@pytest.mark.parametrize("what", ["CancelledError", "StopIteration"])
@pytest.mark.parametrize("kind", ["plain", "async"])
def test_r5_exceptions_of_the_machinery_fail_their_task(flow, what, kind):
    """``asyncio.CancelledError`` and ``StopIteration`` from a task's body end the run with an error, as in a thread."""
    function = tasks.exit_by if kind == "plain" else tasks.async_exit_by
    flow.add_task("task", function, executor=flow_executor(flow))
    with pytest.raises(Exception) as there:  # noqa: PT011 - which one is compared below
        run(flow, "task", {"what": what})
    with Flow() as threads:
        threads.add_task("task", function)
        with pytest.raises(Exception) as here:  # noqa: PT011
            run(threads, "task", {"what": what})
    assert type(there.value) is type(here.value)
    assert flow.report().tasks["task"].status is Status.FAILED


@pytest.mark.parametrize("what", ["SystemExit", "KeyboardInterrupt"])
def test_r5_base_exceptions_of_coroutines_in_workers(flow, what):
    """The same from a coroutine on a worker's loop, and the loop lives on."""
    flow.add_task("task", tasks.async_exit_by, executor=flow_executor(flow))
    flow.add_task("coroutine", tasks.coroutine, executor=flow_executor(flow))
    for _ in range(2):
        with pytest.raises(TaskFailedError):
            run(flow, "task", {"what": what})
        assert run(flow, "coroutine", {"n": 3})["coroutine"][0] == 3


def test_out_of_memory_is_the_tasks_own_failure(flow):
    """A ``MemoryError`` is raised as itself."""
    with pytest.raises(MemoryError, match="not really"):
        run_one(flow, tasks.out_of_memory)


def test_a_tasks_own_timeout_error_is_its_own(flow):
    """A ``TimeoutError`` that a task raises is not taken for ours."""
    with pytest.raises(TimeoutError, match="the server was slow") as caught:
        run_one(flow, tasks.own_timeout)
    assert type(caught.value) is TimeoutError


def test_endless_recursion_is_an_error(flow):
    """A ``RecursionError`` arrives as itself, and the process lives on."""
    with pytest.raises(RecursionError):
        run_one(flow, tasks.overlong_recursion)


# ---- exceptions -----------------------------------------------------------------------------------


def raised(flow, function, inputs=None):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the tests look at it
        run_one(flow, function, inputs)
    return caught.value


def test_r4_a_two_argument_exception_arrives_as_itself(flow):
    """Type, attributes, text and ``args`` are those of the exception that was raised."""
    error = raised(flow, tasks.fail, {"how": "two"})
    assert type(error) is tasks.TwoArguments
    assert (error.code, error.reason, str(error)) == (404, "no such page", "404: no such page")
    assert error.args == ("404: no such page",)


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("keyword", tasks.KeywordOnly, "code 5"),
        ("os", FileNotFoundError, "[Errno 2] No such file or directory: '/nowhere/at/all'"),
        ("unicode", UnicodeDecodeError, "'utf-8' codec can't decode byte 0xff"),
        ("key", KeyError, "'colour'"),
        ("lock", tasks.WithLock, "locked"),
        ("value", ValueError, "value"),
    ],
)
def test_r4_exceptions_of_every_make(flow, how, kind, said):
    """Exceptions with keyword-only constructors, of the system, of the library and with odd attributes arrive."""
    error = raised(flow, tasks.fail, {"how": how})
    assert type(error) is kind
    assert said in str(error)
    if how == "os":
        assert (error.errno, error.filename) == (2, "/nowhere/at/all")
    if how == "lock":
        assert error.code == 7


def test_r4_notes_and_the_note_of_the_task_run(flow):
    """A note of the task's is kept, before ours."""
    error = raised(flow, tasks.fail, {"how": "note"})
    assert error.__notes__[0] == "look at line 3"
    assert "In task run fail" in error.__notes__[-1]


def test_r4_the_lines_of_the_traceback(flow):
    """A printed traceback shows file, function and source line of every frame of the task, and none of the worker's."""
    error = raised(flow, tasks.fail_deep)
    printed = "".join(traceback.format_exception(error))
    assert 'raise ValueError("from the depth")  # the line to see' in printed
    assert "in fail_deep" in printed
    assert "in inner" in printed
    frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert frames[-2:] == ["fail_deep", "inner"]
    assert "worker.py" not in printed


def test_r4_the_cause(flow):
    """What an exception was raised from comes with it, with attributes and traceback."""
    error = raised(flow, tasks.fail_from)
    assert type(error) is LookupError
    assert type(error.__cause__) is tasks.TwoArguments
    assert error.__cause__.code == 404
    assert error.__suppress_context__
    assert "in fail\n" in "".join(traceback.format_tb(error.__cause__.__traceback__))


def test_r4_the_context_of_an_exception(flow):
    """What was being handled comes with an exception, unless that was suppressed."""
    error = raised(flow, tasks.fail_while)
    assert type(error.__context__) is KeyError
    assert not error.__suppress_context__
    assert "During handling of the above exception" in "".join(traceback.format_exception(error))
    error = raised(flow, tasks.fail_from_none)
    assert error.__suppress_context__
    assert "During handling" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("kind", [ExceptionGroup, tasks.ManyErrors])
def test_r4_exception_groups(flow, kind):
    """A group arrives with its class, message, notes and all that is in it."""
    group = raised(flow, tasks.fail_in_group, {"kind": kind})
    assert type(group) is kind
    assert group.message == "three problems"
    assert group.__notes__[0] == "a note of the group"
    two, key, inner = group.exceptions
    assert (type(two), two.code, type(key)) == (tasks.TwoArguments, 404, KeyError)
    assert [type(each) for each in inner.exceptions] == [ValueError, tasks.WithLock]
    assert "in fail\n" in "".join(traceback.format_tb(two.__traceback__))


def test_r4_a_chain_that_goes_in_a_circle_ends(flow):
    """Exceptions that are the causes of each other arrive, and the run ends."""
    error = raised(flow, tasks.fail_with_endless_chain)
    assert (str(error), str(error.__cause__)) == ("first", "second")


def test_r4_a_chain_that_branches_does_not_multiply(flow):
    """Exceptions that have two ways to each other, over and over, arrive in about a second."""
    with_tasks(flow, tasks.fail_with_branching_chain)
    with pytest.raises(ValueError, match="the last"):
        flow.start("fail_with_branching_chain", {"levels": 18}).result(SECOND)


def test_an_exception_is_a_value_like_any_other(flow):
    """An exception that a task returns arrives, or its task is told that it cannot."""
    value = run_one(flow, tasks.return_exception, {"kind": ValueError})
    assert (type(value), value.args) == (ValueError, ("a value",))
    refused(flow, tasks.return_exception, "its result", {"kind": tasks.TwoArguments})  # its pickle cannot be undone


@pytest.mark.parametrize("how", ["lock argument", "local"])
def test_an_exception_that_cannot_travel_is_named(flow, how):
    """An exception that cannot be made again here becomes a ``TransferError`` with its name and text."""
    error = raised(flow, tasks.fail, {"how": how})
    if how == "local" and type(error).__name__ == "Local":
        return  # cloudpickle is installed
    assert type(error) is TransferError
    assert error.task_id == "fail"
    name = {"lock argument": "LockArgument", "local": "Local"}[how]
    assert name in str(error)
    if how == "local":
        assert "nobody can import me" in str(error)
    printed = "".join(traceback.format_exception(error))
    assert "in fail" in printed
    assert run_one(flow, tasks.add, {"a": 1}) == 11


def test_r4_an_exception_that_cannot_be_pickled_is_made_of_its_parts(flow):
    """An exception whose ``__reduce__`` raises, or gives something else over here, arrives as what it is."""
    assert type(raised(flow, tasks.fail, {"how": "bad str"})) is tasks.BadStr
    assert type(raised(flow, tasks.raise_only_here)) is tasks.OnlyHereError


def test_failures_of_several_processes_come_in_a_group(flow, tmp_path):
    """Two tasks that fail side by side are raised together, the first one first; one alone as itself."""
    flow.add_task("first", tasks.meet_and_fail)
    flow.add_task("second", tasks.meet_and_fail)
    with pytest.raises((ExceptionGroup, ValueError)) as caught:
        run(flow, ["first", "second"], {"folder": str(tmp_path)})
    errors = getattr(caught.value, "exceptions", (caught.value,))
    assert {str(error) for error in errors} <= {"first fails", "second fails"}


# ---- what cannot travel ---------------------------------------------------------------------------


def refused(flow, function, said, inputs=None, **options):
    """Assert that a task fails with a TransferError of these words, and that the flow goes on being usable."""
    name = getattr(function, "__name__", "task").strip("<>")
    with pytest.raises(TransferError) as caught:
        flow.add_task(name, function)
        run(flow, name, inputs, **options)
    assert said in str(caught.value), str(caught.value)
    assert caught.value.task_id == name
    assert flow.report().tasks[name].status in (Status.FAILED, Status.SUCCESS)
    assert flow.report().status is Status.FAILED
    assert run_one(flow, tasks.add, {"a": 1}) == 11
    return caught.value


@pytest.fixture
def no_cloudpickle(monkeypatch):
    """As if it was not installed."""
    monkeypatch.setitem(sys.modules, "cloudpickle", None)


def test_a_function_that_cannot_travel(flow, no_cloudpickle):
    """A lambda, a closure and a method of what cannot be pickled are refused by name, in the task that they are."""
    refused(flow, lambda: 1, "its function (")

    def closure():
        return flow

    refused(flow, closure, "its function (")
    refused(flow, tasks.Holder().work, "its function.__self__.lock (lock)")
    refused(flow, functools.partial(tasks.identity, threading.Lock()), "its function")


def test_cloudpickle_carries_closures(flow):
    """With cloudpickle installed lambdas and closures are tasks, and values."""
    pytest.importorskip("cloudpickle")
    offset = 5
    flow.add_task("closure", lambda n: n + offset)
    assert run(flow, "closure", {"n": 2}) == {"closure": 7}
    assert run_one(flow, tasks.return_function)() == 1


def test_an_argument_that_cannot_travel(flow):
    """The error names the task run, the parameter, and the way to the culprit inside its value."""
    error = refused(
        flow, tasks.identity, "its argument value[1]['lock'] (lock)", {"value": [1, {"lock": threading.Lock()}]}
    )
    assert error.task_id == "identity"
    assert "executor='thread'" in str(error)


def test_a_result_that_cannot_travel(flow):
    """The error names the task run and the way to the culprit in its result."""
    refused(flow, tasks.return_lock, "its result['rows'][1][1] (lock)")
    if find_spec("cloudpickle") is None:  # in the worker, too
        refused(flow, tasks.return_function, "its result (")


def test_a_yielded_value_that_cannot_travel(flow):
    """What came before it streams, then the error names what was yielded."""
    with_tasks(flow, tasks.yield_lock)
    values = []
    with pytest.raises(TransferError, match=r"what it yields.*\[0\] \(lock\)") as caught:
        for chunk in flow.stream("yield_lock"):
            values.append(chunk.value)
    assert values == [1]
    assert caught.value.task_id == "yield_lock"


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (tasks.set_lock, "'box'['lock'] (lock)"),
        (tasks.append_lock, "'box' (lock)"),
        (tasks.update_to_lock, "'box' (lock)"),
        (tasks.emit_lock, "(lock)"),
        (tasks.yield_request_of_lock, "(lock)"),
    ],
)
def test_a_value_for_the_context_that_cannot_travel(flow, function, said):
    """What is set, appended, computed, emitted or requested and cannot travel is named with its key."""
    refused(flow, function, said)
    assert "box" not in flow.context


def test_a_request_that_cannot_travel(flow):
    """A NextTask with inputs that cannot travel is the failure of the task that returned it."""
    error = refused(flow, tasks.request_lock, "its result")
    assert error.task_id == "request_lock"


def test_a_task_may_catch_what_cannot_travel(flow):
    """A ``TransferError`` is raised where the value was set, and the task may go on."""
    assert run_one(flow, tasks.survive_lock) == "TransferError"


@pytest.mark.parametrize(
    ("function", "said"), [(tasks.consumer_of_lock, "'lock'"), (tasks.to_dict_of, "lock"), (tasks.deps_of, "deps")]
)
def test_a_value_of_this_process_that_cannot_travel(flow, function, said):
    """Reading a value that cannot travel to the worker raises there, with the name of the task run and of the value."""
    with_tasks(flow, function)
    lock = threading.Lock()
    flow.add_task("start", lambda ctx: ctx.set("lock", [lock]) or NextTask(function.__name__), executor="thread")
    with pytest.raises(TransferError) as caught:
        run(flow, "start", deps={"lock": lock})
    assert caught.value.task_id == function.__name__
    assert said in str(caught.value)
    assert run_one(flow, tasks.add, {"a": 1}) == 11


def test_an_argument_that_cannot_be_made_again(flow):
    """What cannot be unpickled in the worker is an error of its task."""
    error = refused(flow, tasks.identity, "it belongs to another process", {"value": tasks.OnlyHere()})
    assert "argument" in str(error)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (tasks.return_only_here, "its result"),
        (tasks.set_only_here, "box"),
        (tasks.emit_only_here, "emit"),
    ],
)
def test_what_cannot_be_made_again_here(flow, function, said):
    """What this process cannot unpickle is an error that names the task run and what it was."""
    error = refused(flow, function, said)
    assert error.task_id == function.__name__


def test_the_errors_survive_pickling():
    """``WorkerLostError`` and ``TransferError`` come back with their fields."""
    for error in (WorkerLostError("a#2", "its worker process ended"), TransferError("a#2", "its result", "no way")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.task_id) == (type(error), str(error), "a#2")


def test_a_context_of_elsewhere_cannot_travel(flow):
    """A context of another run is refused, and the error says to pass its values."""
    refused(flow, tasks.identity, "pickle its to_dict()", {"value": Context({"a": 1})})


# ---- large values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "block"])
def test_large_values_both_ways(flow, kind):
    """Tens of MiB travel there and back, as bytes, as a bytearray and as an object with a buffer."""
    value = tasks.make(kind, 24 * MIB)
    assert run_one(flow, tasks.length_and_last, {"value": value}) == (type(value).__name__, 24 * MIB, 255)
    back = run_one(flow, tasks.make, {"kind": kind, "size": 24 * MIB})
    assert type(back) is type(value)
    assert bytes(getattr(back, "data", back)[-512:]) == bytes(range(256)) * 2
    assert len(getattr(back, "data", back)) == 24 * MIB


def test_large_text_and_large_context_values(flow):
    """Text of tens of MiB in a list, and values of the context and of the stream, travel, too."""
    assert [len(text) for text in run_one(flow, tasks.make_text, {"size": 10 * MIB})] == [10 * MIB] * 2
    with_tasks(flow, tasks.large_to_context)
    chunks = list(flow.stream("large_to_context", {"size": 20 * MIB}))
    assert [len(chunks[0].value), chunks[1].value] == [20 * MIB, 20 * MIB]
    assert len(flow.context["large"]) == 20 * MIB


def test_many_large_results_at_once(flow):
    """Several processes send and are sent large values at the same time, without standing in each other's way."""
    with_tasks(flow, tasks.identity)
    block = bytes(MIB)
    flow.add_task("split", lambda: [NextTask("identity", {"value": block}, spawn_another=True)] * 20, executor="thread")
    assert list(run(flow, "split").values()) == [block] * 20


def test_large_chunks_stream(flow):
    """A generator that yields large values streams each of them, in order."""
    with_tasks(flow, tasks.yield_large)
    values = [chunk.value for chunk in flow.stream("yield_large", {"size": 4 * MIB, "n": 5})]
    assert [(value[0], len(value)) for value in values[:-1]] == [(i, 4 * MIB) for i in range(5)]


@pytest.mark.parametrize("size", [0, 1, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 200_000])
def test_values_around_the_size_of_a_read(flow, size):
    """Values as large as a read of the socket, and one byte more or less, arrive whole, in batches, too."""
    value = bytes(range(256)) * (size // 256) + bytes(size % 256)
    with_tasks(flow, tasks.identity)
    flow.add_task("split", lambda: [NextTask("identity", {"value": value}, spawn_another=True)] * 30, executor="thread")
    assert list(run(flow, "split").values()) == [value] * 30
    assert run(flow, "identity", {"value": [value, bytearray(value)]})["identity"] == [value, bytearray(value)]


# ---- the end of programs --------------------------------------------------------------------------

PROGRAM = """
    import os, sys, threading, time
    from millstream import Flow, NextTask, ProcessExecutor

    def pid():
        return os.getpid()

    def forever(folder):
        open(os.path.join(folder, f"pid-{os.getpid()}"), "w").close()
        while True:
            time.sleep(60)
"""


def program(main):
    return textwrap.dedent(PROGRAM) + '\nif __name__ == "__main__":\n' + textwrap.indent(textwrap.dedent(main), "    ")


def pids_in(folder, count):
    found = []

    def there():
        found[:] = [int(name[4:]) for name in os.listdir(folder) if name.startswith("pid-")]
        return len(found) >= count

    until(there)
    return found


def test_r36_a_program_ends_without_closing_its_flow(tmp_path):
    """A flow that nobody closes keeps no interpreter alive, and leaves no process."""
    out, err = run_script(
        tmp_path,
        program(
            """
            flow = Flow("process", max_workers=2)
            flow.add_task("pid", pid)
            print(flow.run("pid")["pid"])
            """
        ),
    )
    assert err == ""
    assert_ends(int(out))


def test_r36_a_program_ends_while_a_task_runs(tmp_path):
    """A task that never ends keeps no interpreter alive: its process is stopped."""
    began = time.monotonic()
    run_script(
        tmp_path,
        program(
            """
            flow = Flow("process", max_workers=2)
            flow.add_task("forever", forever)
            flow.start("forever", {"folder": sys.argv[1] if len(sys.argv) > 1 else "."})
            while not [name for name in os.listdir(".") if name.startswith("pid-")]:
                time.sleep(0.01)
            """
        ),
    )
    assert time.monotonic() - began < 10
    (pid,) = pids_in(tmp_path, 1)
    assert_ends(pid)


def test_r36_a_program_ends_while_a_process_starts(tmp_path):
    """An initializer that never ends keeps no interpreter alive."""
    run_script(
        tmp_path,
        program(
            """
            import multiprocessing
            flow = Flow(ProcessExecutor(1, initializer=time.sleep, initargs=(60,)))
            flow.add_task("pid", pid)
            flow.start("pid")
            while not multiprocessing.active_children():
                time.sleep(0.01)
            """
        ),
        limit=5.0,
    )


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_no_orphan_when_the_parent_is_killed(tmp_path, method):
    """When this process is killed by SIGKILL, its worker processes end, whatever they do."""
    path = tmp_path / "program.py"
    path.write_text(
        program(
            f"""
            executor = ProcessExecutor(2, mp_context="{method}")
            flow = Flow(executor)
            flow.add_task("forever", forever)
            requests = [NextTask("forever", {{"folder": "."}}, spawn_another=True)] * 2
            flow.add_task("split", lambda: requests, executor="thread")
            flow.run("split")
            """
        )
    )
    child = subprocess.Popen([sys.executable, str(path)], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        pids = pids_in(tmp_path, 2)
        assert all(alive(pid) for pid in pids)
    finally:
        child.kill()
        child.wait()
    for pid in pids:
        assert_ends(pid, 5.0)


def test_ctrl_c_stops_the_processes(tmp_path):
    """Ctrl-C in ``run`` raises ``KeyboardInterrupt`` at once, and the workers print nothing."""
    path = tmp_path / "program.py"
    path.write_text(
        program(
            """
            flow = Flow("process", max_workers=2)
            flow.add_task("forever", forever)
            try:
                flow.run("forever", {"folder": "."})
            except KeyboardInterrupt:
                print("interrupted")
            flow.close()
            """
        )
    )
    child = subprocess.Popen(
        [sys.executable, str(path)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        (pid,) = pids_in(tmp_path, 1)
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to all of them
        out, err = child.communicate(timeout=WATCHDOG)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert (out, err) == ("interrupted\n", "")
    assert_ends(pid)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_script_without_a_main_guard_gets_an_error(tmp_path, method):
    """A program that would start itself again in each worker ends with an error that says what to write."""
    _, err = run_script(
        tmp_path,
        f"""
        from millstream import Flow, ProcessExecutor

        def one():
            return 1

        flow = Flow(ProcessExecutor(2, mp_context="{method}"))
        flow.add_task("one", one)
        print(flow.run("one"))
        """,
        code=1,
    )
    assert "if __name__ == " in err


def test_functions_of_a_prompt_get_a_clear_error(tmp_path):
    """What was defined by ``python -c`` cannot be imported by a worker, and the error says so; other tasks work."""
    out, err = run_script(
        tmp_path,
        """
        import sys

        from millstream import Flow, TransferError

        sys.modules["cloudpickle"] = None  # as if it was not installed

        def one():
            return 1

        with Flow("process", max_workers=1) as flow:
            flow.add_task("one", one)
            try:
                flow.run("one")
            except TransferError as error:
                print(error)
            print(flow.submit(abs, -5).result())
        """,
        file=False,
    )
    said, number = out.splitlines()
    assert "was defined at a prompt" in said
    assert "cloudpickle" in said
    assert (number, err) == ("5", "")


def test_a_program_from_standard_input_gets_a_clear_error(tmp_path):
    """Workers cannot import a program that is read from standard input: the error says to put it in a file."""
    source = """
from millstream import ExecutorLostError, Flow

def one():
    return 1

with Flow("process", max_workers=1) as flow:
    flow.add_task("one", one)
    try:
        flow.run("one")
    except ExecutorLostError as error:
        print(error)
"""
    program = [sys.executable, "-"]
    done = subprocess.run(program, input=source, capture_output=True, text=True, timeout=20, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "standard input" in done.stdout
    assert "in a file" in done.stdout


def test_functions_of_a_script_are_found_by_its_workers(tmp_path):
    """Functions, classes and exceptions of the main program travel both ways, as ``__main__``'s."""
    out, err = run_script(
        tmp_path,
        """
        from dataclasses import dataclass
        from millstream import Flow, task

        @dataclass
        class Point:
            x: int

        class Odd(Exception):
            pass

        @task
        def move(point, by):
            if by < 0:
                raise Odd(point)
            return Point(point.x + by)

        if __name__ == "__main__":
            with Flow("process", max_workers=1) as flow:
                flow.add(move)
                print(flow.run("move", {"point": Point(1), "by": 2}))
                try:
                    flow.run("move", {"point": Point(1), "by": -2})
                except Odd as error:
                    print(type(error), error)
        """,
    )
    assert out == "{'move': Point(x=3)}\n<class '__main__.Odd'> Point(x=1)\n"
    assert err == ""


def test_workers_leave_stdout_and_stderr_alone(tmp_path):
    """A thousand process tasks print nothing."""
    out, err = run_script(
        tmp_path,
        """
        import operator
        from millstream import Flow, NextTask

        def square(n):
            return n * n

        if __name__ == "__main__":
            with Flow("process", max_workers=2) as flow:
                flow.add_task("square", square)
                requests = [NextTask("square", {"n": n}, spawn_another=True) for n in range(1000)]
                flow.add_task("split", lambda: requests, executor="thread")
                assert sum(flow.run("split").values()) == sum(n * n for n in range(1000))
        """,
    )
    assert (out, err) == ("", "")


def test_millstream_imports_no_multiprocessing_until_it_is_needed(tmp_path):
    """Making a process flow imports nothing of multiprocessing."""
    out, _ = run_script(
        tmp_path,
        """
        import sys
        from millstream import Flow, ProcessExecutor
        flow = Flow("process")
        executor = ProcessExecutor(2)
        flow.add_task("abs", abs)
        print("multiprocessing" in sys.modules)
        """,
    )
    assert out == "False\n"


# ---- several flows, batches, observers ------------------------------------------------------------


def test_one_executor_serves_two_flows_at_once(workers):
    """Two flows with many tasks share the workers, and each gets its own results."""
    with Flow(workers) as first, Flow(workers) as second:
        for flow in (first, second):
            with_tasks(flow, tasks.fan_out_and_join, tasks.square, tasks.total)
        runs = [flow.start("fan_out_and_join", {"n": n}) for n, flow in ((200, first), (300, second)) * 3]
        for flow_run, n in zip(runs, (200, 300) * 3, strict=True):
            assert flow_run.result(WATCHDOG) == {"total": sum(i * i for i in range(n))}


def test_a_flow_does_not_close_an_executor_that_it_was_given(workers):
    """After a flow was closed its executor serves the next one, with the same processes."""
    with Flow(workers) as flow:
        run_one(flow, tasks.process_id)
    before = workers_now()
    with Flow(workers) as flow:
        assert run_one(flow, tasks.process_id) in {process.pid for process in before}


def test_short_tasks_do_not_wait_behind_a_long_one(flow, tmp_path):
    """Calls that were batched behind one that takes long are handed to others: all short ones end before it does."""
    with_tasks(flow, tasks.first_waits)
    warm = [NextTask("first_waits", {"n": n, "folder": ""}, spawn_another=True) for n in range(1, 200)]
    flow.add_task("split", lambda: warm, executor="thread")
    run(flow, "split")  # now the engine expects these calls to be short
    numbers = [*range(1, 50), 0, *range(50, 400)]
    mixed = [NextTask("first_waits", {"n": n, "folder": str(tmp_path)}, spawn_another=True) for n in numbers]
    flow.add_task("mix", lambda: mixed, executor="thread")
    seen = []
    for chunk in flow.stream("mix"):
        if chunk.task_id != "mix":
            seen.append(chunk.value)
        if len(seen) == 399:
            (tmp_path / "end").touch()
    assert seen[-1] == 0
    assert sorted(seen) == [*range(400)]


def test_a_short_task_is_not_batched_behind_one_that_waits(one_worker):
    """Calls behind one that waits for a value run meanwhile, in the same process, on a single worker."""
    with Flow(one_worker) as flow:
        with_tasks(flow, tasks.maybe_wait)
        for n_waiting in (0, 25):
            numbers = [NextTask("maybe_wait", {"n": n, "waiting": n_waiting}, spawn_another=True) for n in range(50)]
            flow.add_task("split", lambda numbers=numbers: numbers, executor="thread", replace=True)
            assert sorted(run(flow, "split").values()) == [*range(50)]


def test_limits_hold_in_processes(flow, tmp_path):
    """``max_parallel=1`` of a task holds over all worker processes."""
    flow.add_task("alone", tasks.alone, max_parallel=1)
    flow.add_task(
        "split",
        lambda: [NextTask("alone", {"folder": str(tmp_path), "n": n}, spawn_another=True) for n in range(40)],
        executor="thread",
    )
    assert sorted(run(flow, "split").values()) == [*range(40)]


def test_hooks_hear_of_process_tasks(workers):
    """Start, success, failure and retry are told as for a thread, with durations and outputs."""
    heard = Log()
    hook = fn_hook(
        on_task_start=lambda event: heard.add(("start", event.id, event.attempt)),
        on_task_success=lambda event: heard.add(("success", event.id, event.output, event.duration >= 0)),
        on_task_failure=lambda event: heard.add(("failure", event.id, str(event.error), event.will_retry)),
        on_task_retry=lambda event: heard.add(("retry", event.id, event.attempt)),
        on_run_end=lambda event: heard.add(("end", event.status)),
    )
    with Flow(workers, hooks=[hook]) as flow:
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


def test_events_of_a_fan_out_are_complete(workers):
    """Of 300 task runs each has one start and one success, the start first."""
    heard = Log()
    hook = fn_hook(
        on_task_start=lambda event: heard.add(("start", event.id)),
        on_task_success=lambda event: heard.add(("success", event.id)),
        on_run_end=lambda event: heard.add(("end", "")),
    )
    with Flow(workers, hooks=[hook]) as flow:
        with_tasks(flow, tasks.fan_out, tasks.square)
        run(flow, "fan_out", {"n": 300})
        heard.wait_for(603)
    assert heard[-1] == ("end", "")
    assert len(set(heard)) == 603
    for n in range(1, 301):
        name = "square" if n == 1 else f"square#{n}"
        assert heard.index(("start", name)) < heard.index(("success", name))


def test_the_trace_has_a_row_for_each_attempt(flow):
    """With ``trace=True`` each attempt has its times and its worker, one after another in each worker."""
    with_tasks(flow, tasks.fan_out, tasks.square)
    flow_run = flow.start("fan_out", {"n": 50}, trace=True)
    flow_run.result(WATCHDOG)
    rows = flow_run.report().trace
    assert len(rows) == 51
    assert {str(row.status) for row in rows} == {"SUCCESS"}
    assert all(row.started_at <= row.finished_at for row in rows)
    assert all(row.worker for row in rows)
    assert flow_run.report().to_chrome_trace()


def test_a_report_of_a_failure_has_the_traceback_of_the_worker(flow):
    """The error of a report row shows the line that raised in the other process."""
    with_tasks(flow, tasks.fail_deep)
    with pytest.raises(ValueError, match="from the depth"):
        run(flow, "fail_deep")
    row = flow.report().tasks["fail_deep"]
    assert (row.status, row.error.type, row.error.message) == (Status.FAILED, "ValueError", "from the depth")
    assert "the line to see" in row.error.traceback


def test_every_report_row_is_final_after_a_failure(flow):
    """When a run has failed while others were under way or pending, no row is left RUNNING or PENDING."""
    with_tasks(flow, tasks.spin)
    flow.add_task("fails", tasks.fail)
    flow.add_task(
        "split",
        lambda: [*[NextTask("spin", {"seconds": 0.02}, spawn_another=True)] * 20, NextTask("fails", {"how": "two"})],
        executor="thread",
    )
    with pytest.raises(tasks.TwoArguments):
        run(flow, "split")
    statuses = {row.status for row in flow.report().tasks.values()}
    assert not statuses & {Status.RUNNING, Status.PENDING}


def test_r1_the_exception_that_is_raised_is_that_of_the_task_that_failed(flow):
    """Again and again one of 30 fails while its siblings go on, and that failure is what is raised."""
    with_tasks(flow, tasks.fail_at)
    for deadly in range(20):
        flow.add_task(
            "split",
            lambda deadly=deadly: [NextTask("fail_at", {"n": n, "bad": deadly}, spawn_another=True) for n in range(30)],
            executor="thread",
            replace=True,
        )
        with pytest.raises(ValueError, match=f"number {deadly} is bad"):
            run(flow, "split")


def test_r10_runs_at_once_do_not_mix(flow):
    """Forty runs of one flow at once give each its own result."""
    with_tasks(flow, tasks.add)
    runs = [flow.start("add", {"a": n}) for n in range(40)]
    assert [flow_run.result(WATCHDOG)["add"] for flow_run in runs] == [n + 10 for n in range(40)]


def test_workers_are_in_the_folder_of_the_program(flow):
    """Relative paths mean the same in a worker process."""
    assert run_one(flow, tasks.working_folder) == str(Path.cwd())
