"""Process pools of the user's: tasks in a ``ProcessPoolExecutor`` have all that those in our own processes have."""

import asyncio
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

from millstream import (
    ContextKeyError,
    DeadlockError,
    ExecutorLostError,
    Flow,
    FlowError,
    NextTask,
    PoolExecutor,
    RunCancelledError,
    Status,
    TaskFailedError,
    TaskTimeoutError,
    TransferError,
    WorkerLostError,
)
from tests import process_tasks as tasks
from tests.conftest import WATCHDOG, assert_gone, engine_threads, until
from tests.elsewhere import run, run_one, with_tasks

KINDS = ("spawn", "forkserver", "loky")


def opened(kind, workers):
    if kind == "loky":
        return pytest.importorskip("loky").ProcessPoolExecutor(workers)
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(kind))


@pytest.fixture(scope="module", params=KINDS)
def pool(request):
    """A pool of two processes, of each kind in turn."""
    before = engine_threads()
    with opened(request.param, 2) as pool:
        yield pool
        assert pool.submit(abs, -1).result(WATCHDOG) == 1  # no flow has shut it down
    assert_gone(engine_threads() - before)


@pytest.fixture(scope="module")
def single():
    """A pool of one process."""
    with opened("forkserver", 1) as pool:
        yield pool
        assert pool.submit(abs, -1).result(WATCHDOG) == 1


@pytest.fixture
def executor(pool):
    return pool


def spread(flow, requests):
    """Add a task ``split``, called here, that asks for these."""
    flow.add_task("split", lambda: requests, executor="thread", replace=True)


# ---- what works -----------------------------------------------------------------------------------


def test_tasks_are_called_in_the_processes_of_the_pool(flow, pool):
    """The processes are those that the pool has, and never this one."""
    with_tasks(flow, tasks.process_id)
    spread(flow, [NextTask("process_id", spawn_another=True)] * 50)
    pids = set(run(flow, "split").values())
    assert os.getpid() not in pids
    assert pids <= set(pool._processes)


def test_r38_tasks_get_set_and_update_the_context(flow):
    """The context works on a pool that was passed in: no lock is pickled."""
    seen = run_one(flow, tasks.use_context)
    values = {"a": 2, "c": ["first"], "d": 11, "e": 5, "f": 6}
    assert seen["to_dict"] == values
    assert (seen["in"], seen["default"], seen["update"]) == ((True, False, False), 5, 2)
    context = flow.context.to_dict()
    assert {key: context[key] for key in values} == values


def test_r38_no_write_is_lost(flow):
    """Updates and appends from all processes of a pool, and from a thread, add up."""
    with_tasks(flow, tasks.increment)
    flow.add_task("here", tasks.increment, executor="thread")
    spread(flow, [NextTask(name, {"n": 25}, spawn_another=True) for name in ("increment", "here") * 4])
    run(flow, "split")
    assert flow.context["count"] == 200
    assert len(flow.context["all"]) == 200


def test_a_fan_out_is_joined(flow):
    """300 task runs and their join are complete."""
    with_tasks(flow, tasks.fan_out_and_join, tasks.square, tasks.total)
    assert run(flow, "fan_out_and_join", {"n": 300}) == {"total": sum(n * n for n in range(300))}


def test_a_graph_and_a_map(flow):
    """Dependencies and ``for_each`` work on a pool of processes."""
    flow.add_task("first", tasks.add)
    flow.add_task("rows", tasks.square_item, for_each="$inputs.numbers")
    flow.add_task("all", tasks.listed, depends_on=["first", "rows"])
    assert run(flow, inputs={"a": 1, "numbers": [1, 2, 3]}) == {"all": {"first": 11, "rows": [1, 4, 9]}}


def test_streaming(flow):
    """A generator's values and requests go out at once, in order."""
    with_tasks(flow, tasks.bake_one_at_a_time, tasks.yield_requests, tasks.square)
    seen = []
    flow_run = flow.start("bake_one_at_a_time")
    for chunk in flow_run.stream():
        seen.append(chunk.value)
        if chunk.value != "done":
            flow_run.context.set(f"eaten-{chunk.value}", True)
    assert seen == [0, 1, 2, "done"]
    chunks = list(flow.stream("yield_requests", {"n": 5}))
    assert sorted(chunk.value for chunk in chunks if chunk.task_id.startswith("square")) == [0, 1, 4, 9, 16]


def test_coroutines(pool):
    """A coroutine function that names the pool is awaited in one of its processes."""
    with Flow() as flow:
        flow.add_task("coroutine", tasks.coroutine, executor=pool)
        assert run(flow, "coroutine", {"n": 5})["coroutine"][1] != os.getpid()
        flow.add_task("bake", tasks.async_bake, executor=pool)
        assert [chunk.value for chunk in flow.stream("bake", {"loaves": 2})] == ["loaf 0", "loaf 1", None]


def test_arun(flow):
    """``arun`` awaits the processes of a pool."""
    with_tasks(flow, tasks.fan_out_and_join, tasks.square, tasks.total)
    assert asyncio.run(flow.arun("fan_out_and_join", {"n": 20})) == {"total": sum(n * n for n in range(20))}


def test_submitted_calls(flow):
    """Calls of a session run in the pool, and pass values on."""
    with flow.session() as session:
        one = session.submit(tasks.square, 3)
        assert session.submit(tasks.add, one, b=1).result(WATCHDOG) == 10


def test_retries(flow):
    """A task that fails twice succeeds in its third attempt."""
    flow.add_task("flaky", tasks.flaky, retries=2)
    assert run(flow, "flaky", {"fails": 2}) == {"flaky": 3}


def test_a_task_knows_its_task_run(flow):
    """``current_task()`` has its facts in a process of the pool."""
    facts = run_one(flow, tasks.about_me, run_id="r1")
    assert (facts["name"], facts["run_id"], facts["attempt"]) == ("about_me", "r1", 1)


def test_log_records_arrive(flow, caplog):
    """What a task logs in a process of the pool is handled by this process's loggers, with its facts."""
    run_one(flow, tasks.log_some, run_id="r2")
    (line,) = [record for record in caplog.records if record.name == "millstream.task"]
    assert (line.getMessage(), line.run_id, line.task, line.attempt) == ("half done", "r2", "log_some", 1)


def test_r4_the_tasks_own_exception_arrives(flow):
    """A two-argument exception comes with its attributes and the lines of its traceback."""
    with pytest.raises(tasks.TwoArguments) as caught:
        run_one(flow, tasks.fail, {"how": "two"})
    assert (caught.value.code, caught.value.reason) == (404, "no such page")
    assert "in fail\n" in "".join(traceback.format_tb(caught.value.__traceback__))


@pytest.mark.parametrize("what", ["SystemExit", "KeyboardInterrupt"])
def test_r5_base_exceptions_fail_their_task_and_spare_the_pool(flow, pool, what):
    """``SystemExit`` and ``KeyboardInterrupt`` of a task leave the pool as it was."""
    with pytest.raises(TaskFailedError):
        run_one(flow, tasks.exit_by, {"what": what})
    assert run_one(flow, tasks.add, {"a": 1}) == 11
    assert pool.submit(abs, -2).result(WATCHDOG) == 2


def test_what_cannot_travel_is_named(flow):
    """Arguments, results and functions that cannot be pickled are errors that name the culprit."""
    import threading

    with pytest.raises(TransferError, match=r"its argument value\[0\] \(lock\)"):
        run_one(flow, tasks.identity, {"value": [threading.Lock()]})
    with pytest.raises(TransferError, match="its result"):
        run_one(flow, tasks.return_lock)
    assert run_one(flow, tasks.add, {"a": 1}) == 11


def test_large_values(flow):
    """Some MiB travel both ways."""
    value = bytes(range(256)) * (1 << 15)
    assert run_one(flow, tasks.identity, {"value": value}) == value
    assert run_one(flow, tasks.identity, {"value": [bytearray(value)]}) == [bytearray(value)]


# ---- waiting --------------------------------------------------------------------------------------


def test_r15_a_hundred_consumers_wait_on_one_process(single):
    """A blocked ``get`` gives its place back, also on a pool of one process that was passed in."""
    with Flow(single) as flow:
        with_tasks(flow, tasks.consumer, tasks.producer)
        spread(flow, [*[NextTask("consumer", spawn_another=True)] * 100, NextTask("producer")])
        results = run(flow, "split")
        assert results.pop("producer") == 42
        assert list(results.values()) == [42] * 100


def test_r15_a_chain_of_waits_on_one_process(single):
    """Each of 30 tasks waits for the next one."""
    with Flow(single) as flow:
        with_tasks(flow, tasks.link)
        spread(flow, [NextTask("link", {"n": n}, spawn_another=True) for n in range(30)])
        assert sorted(run(flow, "split").values()) == [*range(30)]


def test_r17_verdicts_on_one_process(single):
    """A deadlock, and a key that nobody can set, are found out on a pool of one process."""
    with Flow(single) as flow:
        with_tasks(flow, tasks.hen, tasks.egg, tasks.get_key)
        with pytest.raises(DeadlockError):
            run(flow, ["hen", "egg"])
        with pytest.raises(ContextKeyError, match="Key nowhere not found"):
            run(flow, "get_key", {"key": "nowhere"})


def test_a_value_from_outside(flow):
    """``get(external=True)`` waits in a process of the pool."""
    with_tasks(flow, tasks.get_external)
    flow_run = flow.start("get_external")
    until(lambda: "waits" in flow_run.context)
    flow_run.context.set("outside", 5)
    assert flow_run.result(WATCHDOG) == {"get_external": 5}


# ---- sharing --------------------------------------------------------------------------------------


def test_the_users_own_calls_get_their_turn(single):
    """What the user submits to the pool of one process is done while the flow still has much to do."""
    with Flow(single) as flow:
        with_tasks(flow, tasks.spin)
        spread(flow, [NextTask("spin", {"seconds": 0.005}, spawn_another=True)] * 200)
        flow_run = flow.start("split")
        until(lambda: "spin" in flow_run.context)
        assert single.submit(abs, -3).result(WATCHDOG) == 3
        assert flow_run.status is Status.RUNNING
        assert len(flow_run.result(WATCHDOG)) == 200


def test_a_pool_that_is_busy_with_other_things(single, tmp_path):
    """A flow whose pool does something else waits for its turn, and is told to stop meanwhile."""
    other = single.submit(tasks.here_until, str(tmp_path))
    with Flow(single) as flow:
        with_tasks(flow, tasks.square)
        flow_run = flow.start("square", {"n": 2})
        until((tmp_path / "begun-0").exists)
        assert not flow_run.wait(0.05)
        (tmp_path / "end").touch()
        assert flow_run.result(WATCHDOG) == {"square": 4}
    other.result(WATCHDOG)


def test_a_run_on_a_busy_pool_is_cancelled(single, tmp_path):
    """Cancelling a run whose pool has no process for it ends the run."""
    other = single.submit(tasks.here_until, str(tmp_path))
    try:
        with Flow(single) as flow:
            with_tasks(flow, tasks.square)
            flow_run = flow.start("square", {"n": 2})
            until((tmp_path / "begun-0").exists)
            flow_run.cancel()
            with pytest.raises(RunCancelledError):
                flow_run.result(WATCHDOG)
    finally:
        (tmp_path / "end").touch()
    other.result(WATCHDOG)
    with Flow(single) as flow:
        assert run_one(flow, tasks.add, {"a": 1}) == 11


def test_two_flows_share_a_pool(pool):
    """Two flows with many tasks on one pool get their own results."""
    with Flow(pool) as first, Flow(PoolExecutor(pool)) as second:
        for flow in (first, second):
            with_tasks(flow, tasks.fan_out_and_join, tasks.square, tasks.total)
        runs = [flow.start("fan_out_and_join", {"n": n}) for n, flow in ((200, first), (300, second)) * 2]
        for flow_run, n in zip(runs, (200, 300) * 2, strict=True):
            assert flow_run.result(WATCHDOG) == {"total": sum(i * i for i in range(n))}


def test_a_pool_beside_threads_and_processes_of_ours(pool):
    """One flow has tasks in threads, in our own processes and in a pool."""
    with Flow(max_workers=1) as flow:
        flow.add_task("numbers", lambda: [1, 2, 3])
        flow.add_task("squares", tasks.square_item, for_each="numbers", executor=pool)
        flow.add_task("all", tasks.listed, depends_on=["numbers", "squares"], executor="process")
        assert run(flow) == {"all": {"numbers": [1, 2, 3], "squares": [1, 4, 9]}}


# ---- stopping and breaking ------------------------------------------------------------------------


def test_a_task_is_told_to_stop(flow):
    """A cancelled task sees ``current_task().cancelled``, and its process goes on to serve."""
    with_tasks(flow, tasks.until_told)
    flow_run = flow.start("until_told")
    until(lambda: "pid" in flow_run.context)
    flow_run.cancel()
    with pytest.raises(RunCancelledError):
        flow_run.result(WATCHDOG)
    assert flow_run.status is Status.CANCELLED
    assert run_one(flow, tasks.add, {"a": 1}) == 11


def test_a_task_that_overruns_is_left_behind(pool, tmp_path):
    """After a timeout the run ends at once; the process is the user's, goes on, and serves again when it is done."""
    with Flow(pool) as flow:
        flow.add_task("here_until", tasks.here_until, timeout=0.3)
        began = time.monotonic()
        with pytest.raises(TaskTimeoutError):
            run(flow, "here_until", {"folder": str(tmp_path)})
        assert time.monotonic() - began < 2.0
        (tmp_path / "end").touch()
        assert run_one(flow, tasks.add, {"a": 1}) == 11


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_a_process_that_dies_breaks_the_pool_and_not_the_program(how):
    """A task that ends its process is an error, and so is every later run on the broken pool: no hang."""
    with opened("forkserver", 2) as pool, Flow(pool) as flow:
        with_tasks(flow, tasks.die)
        with pytest.raises((WorkerLostError, ExecutorLostError)):
            run(flow, "die", {"how": how})
        with pytest.raises(FlowError):
            run_one(flow, tasks.add, {"a": 1})
        with pytest.raises(BrokenProcessPool):
            pool.submit(abs, -1).result(WATCHDOG)


def test_a_pool_that_breaks_while_tasks_wait():
    """A task that dies while others wait for values ends the run with an error."""
    with opened("forkserver", 2) as pool, Flow(pool) as flow:
        with_tasks(flow, tasks.wait_and_forever, tasks.die)
        flow_run = flow.start("wait_and_forever")
        until(lambda: "pid" in flow_run.context)
        os.kill(flow_run.context["pid"], 9)
        with pytest.raises((WorkerLostError, ExecutorLostError)):
            flow_run.result(4.0)


def test_a_pool_that_was_shut_down():
    """A pool that its owner has shut down is an error of the run."""
    pool = opened("spawn", 1)
    pool.shutdown()
    with Flow(pool) as flow, pytest.raises(ExecutorLostError):
        run_one(flow, tasks.add, {"a": 1})


def test_a_pool_that_is_shut_down_under_a_run():
    """A run whose pool is shut down while it has much to do ends with an error or with its results."""
    pool = opened("forkserver", 1)
    with Flow(pool) as flow:
        with_tasks(flow, tasks.spin)
        spread(flow, [NextTask("spin", {"seconds": 0.005}, spawn_another=True)] * 60)
        flow_run = flow.start("split")
        until(lambda: "spin" in flow_run.context)
        pool.shutdown(wait=False, cancel_futures=True)
        try:
            assert len(flow_run.result(WATCHDOG)) == 60
        except ExecutorLostError:
            pass


def test_an_initializer_of_the_pool_that_fails_ends_the_run():
    """A pool that breaks before its first task is an error of the run."""
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=tasks.deadly_initializer)
    with pool, Flow(pool) as flow, pytest.raises(ExecutorLostError):
        run_one(flow, tasks.add, {"a": 1})


def test_a_pool_with_max_tasks_per_child():
    """A pool that replaces its processes goes on to serve."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=2) as pool, Flow(pool) as flow:
        with_tasks(flow, tasks.spin)
        spread(flow, [NextTask("spin", {"seconds": 0.02}, spawn_another=True)] * 15)
        assert len(run(flow, "split")) == 15


def test_closing_the_flow_leaves_the_pool(pool):
    """A flow that is closed leaves no thread of ours, and the pool serves its owner and other flows."""
    before = engine_threads()
    with Flow(pool) as flow:
        assert run_one(flow, tasks.add, {"a": 1}) == 11
    until(lambda: not (engine_threads() - before))
    assert pool.submit(abs, -4).result(WATCHDOG) == 4
    with Flow(pool) as flow:
        assert run_one(flow, tasks.add, {"a": 2}) == 12


def test_a_pool_of_the_default_kind(tmp_path):
    """A pool made without a context works as a user writes it, and the program ends."""
    path = tmp_path / "program.py"
    path.write_text(
        textwrap.dedent(
            """
            import os
            from concurrent.futures import ProcessPoolExecutor
            from millstream import Context, Flow, NextTask

            def split(n):
                counts = [NextTask("count", {"n": i}, spawn_another=True) for i in range(n)]
                return [*counts, NextTask("total", join=True)]

            def count(ctx: Context, n):
                ctx.update("sum", add(n), default=0)
                return n

            class add:
                def __init__(self, n):
                    self.n = n

                def __call__(self, value):
                    return value + self.n

            def total(ctx, upstream):
                return sum(upstream), ctx["sum"]

            if __name__ == "__main__":
                with ProcessPoolExecutor(2) as pool, Flow(pool) as flow:
                    for function in (split, count, total):
                        flow.add_task(function.__name__, function)
                    print(flow.run("split", {"n": 100}))
                pool = ProcessPoolExecutor(2)
                flow = Flow(pool)
                flow.add_task("pid", os.getpid)
                print(flow.run("pid")["pid"] != os.getpid())  # and nothing is closed
            """
        )
    )
    program = [sys.executable, str(path)]  # with its warnings: such a pool forks a program with threads
    done = subprocess.run(program, capture_output=True, text=True, timeout=20, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "{'total': (4950, 4950)}\nTrue\n"), done.stderr
