"""What worker processes got wrong once: each test failed before its mend."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import random
import signal
import threading
import weakref

import pytest

from millstream import Flow, ProcessExecutor, Status, TaskTimeoutError, TransferError
from tests import regression_tasks as tasks

LIMIT = 20  # seconds that no run here ever takes


@pytest.fixture(scope="module")
def one():
    """An executor with one worker process."""
    with ProcessExecutor(1) as executor:
        yield executor


def flow_on(executor, *functions, **options):
    """Return a flow with these tasks on an executor, and a fan-out in a thread."""
    flow = Flow(executor, **options)
    flow.add_task("fan", tasks.fan, executor="thread")
    for function in functions:
        flow.add_task(function.__name__, function)
    return flow


def fan_out(flow, name, inputs_of, **options):
    """Run a task with each of these inputs; return the results in their order."""
    run = flow.start("fan", {"task": name, "inputs_of": inputs_of}, **options)
    results = run.result(LIMIT)
    return [results[name if place == 0 else f"{name}#{place + 1}"] for place in range(len(inputs_of))]


def test_messages_that_came_together_are_all_seen_to(one):
    """A task that waits, and what was given back behind it, may come in one piece: nobody loops."""
    with flow_on(one, tasks.get_or_set) as flow:
        stop, numbers = threading.Event(), [random.random() for _ in range(60_000)]

        def hog():  # keeps the interpreter busy, so that messages pile up
            while not stop.wait(0.001):
                sorted(numbers)

        thread = threading.Thread(target=hog)
        thread.start()
        try:
            for _ in range(8):
                fan_out(flow, "get_or_set", [{"i": i} for i in range(300)])
        finally:
            stop.set()
            thread.join()


def test_an_update_of_a_missing_key_lends_its_process(one):
    """``update`` without a default waits as ``get`` does: who sets the key may stand behind it."""
    with flow_on(one, tasks.update_or_set) as flow:
        results = fan_out(flow, "update_or_set", [{"i": i} for i in range(200)])
    assert results[100] == 2


@pytest.mark.parametrize("mode", ["get", "set"])
def test_a_thread_that_a_task_leaves_behind_speaks_for_nobody_else(one, mode):
    """What a task's thread does after its end neither reaches nor disturbs the next task."""
    with flow_on(one, tasks.leave_a_thread, tasks.number_and_set) as flow:
        for _ in range(4):
            flow.start(["leave_a_thread", "number_and_set"], {"mode": mode, "i": 0}).result(LIMIT)
            numbers = [{"i": i} for i in range(40)]
            assert fan_out(flow, "number_and_set", numbers) == list(range(40))


@pytest.mark.parametrize("keys", [1, 4])
def test_updates_by_threads_of_one_task_do_not_mix(one, keys):
    """No update is lost when several threads of a task make them."""
    with flow_on(one, tasks.update_in_threads) as flow:
        run = flow.start("update_in_threads", {"keys": keys})
        run.result(LIMIT)
    assert sum(run.context.get(f"k{key}") for key in range(keys)) == 200


def test_a_log_handler_that_raises_disturbs_nobody(one, caplog):
    """A handler of the program's that raises costs a log record, and no result of this or another run."""

    class Broken(logging.Handler):
        def emit(self, record):
            if record.name == "millstream.task":
                raise ValueError("broken handler")

    handler = Broken()
    logging.getLogger("millstream.task").addHandler(handler)
    try:
        with flow_on(one, tasks.say_bad_record, tasks.number) as flow:
            assert flow.run("say_bad_record", {"i": 3}) == {"say_bad_record": 3}
            assert [flow.run("number", {"i": i})["number"] for i in (10, 11, 12)] == [10, 11, 12]
    finally:
        logging.getLogger("millstream.task").removeHandler(handler)


@pytest.mark.parametrize("give", [tasks.give_what_exits, tasks.raise_unspeakable])
def test_what_raises_on_its_arrival_is_that_tasks_failure(one, give):
    """A value or an error that raises ``SystemExit`` here, or when it is looked at, fails its task run alone."""
    with flow_on(one, give, tasks.number) as flow:
        with pytest.raises(TransferError, match=f"Task run {give.__name__} "):
            flow.start(give.__name__).result(LIMIT)
        assert flow.start("number", {"i": 1}).result(LIMIT) == {"number": 1}


def test_what_was_given_up_before_it_was_called_is_never_called(tmp_path):
    """A time limit that is over while a lost process is replaced: the call is not made, and the place is not lost."""
    with ProcessExecutor(1, initializer=tasks.slow_start) as executor, flow_on(executor, tasks.own_pid) as flow:
        flow.add_task("go_on", tasks.tell_and_go_on, timeout=0.2)
        pid = flow.run("own_pid")["own_pid"]
        (worker,) = (child for child in multiprocessing.active_children() if child.pid == pid)
        os.kill(pid, signal.SIGKILL)
        worker.join(LIMIT)
        with pytest.raises(TaskTimeoutError):
            flow.start("go_on", {"path": str(tmp_path / "log")}).result(LIMIT)
        assert flow.start("own_pid").result(LIMIT)["own_pid"] > 0
    assert not (tmp_path / "log").exists()


def test_whoever_waited_is_forgotten(one):
    """A run whose task waited is garbage when it has ended, also while its process lives."""
    with flow_on(one, tasks.wait_for) as flow:
        run = flow.start("wait_for", {"key": "later"})
        run.context.set("later", 1)
        assert run.result(LIMIT) == {"wait_for": 1}
        gone = weakref.ref(run)
        flow.run("wait_for", {"key": "x", "x": 2})
        del run
        gc.collect()
        assert gone() is None


def test_cancelling_a_call_hits_that_one_alone(one):
    """Calls that stand behind one which is cancelled in the moment of its end are not lost."""
    with flow_on(one) as flow:
        for _ in range(20):
            with flow.session() as session:
                handles = [session.submit(tasks.number, i) for i in range(20)]
                for handle in handles[::3]:
                    handle.cancel()
                kept = [handle for place, handle in enumerate(handles) if place % 3]
                assert [handle.result(LIMIT) for handle in kept] == [i for i in range(20) if i % 3]


def test_the_timeout_of_one_that_waits_hits_that_one_alone(one):
    """A task that waits has lent its process: its timeout ends its waiting, and nobody else's work."""
    with flow_on(one, tasks.take_a_while, on_error="continue") as flow:
        flow.add_task("wait_for", tasks.wait_for, timeout=0.3)
        run = flow.start(
            ["wait_for", "fan"], {"key": "never", "task": "take_a_while", "inputs_of": [{"i": i} for i in range(6)]}
        )
        assert run.wait(LIMIT)
        rows = run.report().tasks
    assert isinstance(rows["wait_for"].status, Status)
    assert (rows["wait_for"].status, rows["take_a_while"].status) == (Status.FAILED, Status.SUCCESS)
    assert rows["take_a_while"].runs == 6
