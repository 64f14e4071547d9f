"""What once went wrong, or could, with clusters of one's own: ends of workers, of programs and of whole clusters."""

# ruff: noqa: PT012 - adding the task and running it is what is said to raise

import itertools
import logging
import operator
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from contextlib import contextmanager

import pytest

from millstream import (
    DaskExecutor,
    ExecutorLostError,
    Flow,
    FlowError,
    NextTask,
    RayExecutor,
    TaskTimeoutError,
    WorkerLostError,
)
from millstream.executors.remote.mail import MailHome
from millstream.executors.remote.wire import Back, To
from tests import cluster_tasks as jobs
from tests import process_tasks as tasks
from tests.conftest import engine_threads
from tests.elsewhere import IMPORTABLE, alive, assert_ends, lines_of, split_into, with_tasks
from tests.test_clusters import PACKAGES, WATCHDOG, needed, run, run_one, run_script, until

#: One process of a test run in parallel does all of these and those of test_clusters: they share the machine.
pytestmark = pytest.mark.xdist_group("clusters")

#: How each kind of cluster is started by a program.
START = {"ray": "RayExecutor(num_cpus=1)", "dask": "DaskExecutor()"}


@contextmanager
def local_dask(**options):
    """Give a client of a Dask cluster of two processes on this machine."""
    distributed = needed("dask")
    usual = {
        "n_workers": 2,
        "threads_per_worker": 1,
        "dashboard_address": "127.0.0.1:0",
        "silence_logs": logging.CRITICAL,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", IMPORTABLE["PYTHONPATH"])
        with (
            distributed.LocalCluster(**(usual | options)) as cluster,
            distributed.Client(cluster, set_as_default=False) as client,
        ):
            yield client


def workers_of(client):
    return set(client.scheduler_info(n_workers=-1)["workers"])


# ---- workers of Dask that end ---------------------------------------------------------------------


def test_r9_no_job_is_done_again_when_its_worker_ends_later(tmp_path):
    """After all results have arrived the workers are killed: no body is called a second time, and no place is lost."""
    log = tmp_path / "log"
    with local_dask() as client, DaskExecutor(client) as executor, Flow(executor) as flow:
        with_tasks(flow, jobs.recorded, tasks.consumer, tasks.producer)
        split_into(flow, "recorded", [{"log": str(log), "n": n} for n in range(12)])
        run(flow, "split")
        flow.add_task("waits", lambda: [*[NextTask("consumer", spawn_another=True)] * 6, NextTask("producer")])
        run(flow, "waits")
        for pid in client.run(os.getpid).values():
            before = workers_of(client)
            os.kill(pid, signal.SIGKILL)
            until(lambda before=before: len(workers_of(client)) == 2 and workers_of(client) != before)
        assert set(run(flow, "waits").values()) == {42}
        assert Counter(map(int, lines_of(log))) == Counter(range(12))


def test_r39_with_retries_every_result_arrives_while_workers_are_killed(tmp_path):
    """Workers are killed by SIGKILL three times during sixty task runs, and each result arrives once, and is right."""
    log = tmp_path / "log"
    with local_dask() as client, DaskExecutor(client) as executor, Flow(executor) as flow:
        with_tasks(flow, jobs.slow_square, retries=10)
        split_into(flow, "slow_square", [{"log": str(log), "n": n} for n in range(60)])
        arrived, killed = Counter(), set()
        for chunk in flow.stream("split", timeout=20.0):
            if chunk.task_id != "split":
                arrived[chunk.value] += 1
                newest = int(lines_of(log)[-1])
                if arrived.total() in (5, 20, 35) and alive(newest):
                    os.kill(newest, signal.SIGKILL)
                    killed.add(newest)
        assert killed
        assert arrived == Counter(n * n for n in range(60))
        assert flow.report().tasks["slow_square"].runs == 60


def test_a_worker_of_our_own_cluster_is_never_given_up(monkeypatch):
    """Workers that are killed again and again come back, also when Dask would give up those that are missing soon."""
    needed("dask")
    import dask

    monkeypatch.setenv("PYTHONPATH", IMPORTABLE["PYTHONPATH"])
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1ms"}),
        DaskExecutor() as executor,
        Flow(executor) as flow,
    ):
        with_tasks(flow, tasks.process_id)
        for _ in range(3):
            pid = run(flow, "process_id")["process_id"]
            client = executor._cluster._client
            before = workers_of(client)
            os.kill(pid, signal.SIGKILL)
            until(lambda before=before: not before <= workers_of(client))
            until(lambda before=before: len(workers_of(client)) == len(before))
            assert len(executor._cluster._cluster.workers) == len(before)


def test_what_the_scheduler_keeps_of_jobs_is_bounded():
    """After three hundred jobs, one after the other, the scheduler keeps next to nothing of them."""
    with local_dask(n_workers=1) as client, DaskExecutor(client) as executor, Flow(executor) as flow:
        with flow.session() as session:
            for n in range(300):
                assert session.submit(tasks.square, n).result(WATCHDOG) == n * n
        until(lambda: max(client.run_on_scheduler(jobs.kept_of_jobs)) < 10)
        assert len(client.run_on_scheduler(jobs.kept_of_jobs)) == 2


def test_executors_that_come_and_go_cost_the_cluster_no_worker():
    """Ten executors, one after the other, on one Dask cluster leave its workers, and its client, as they were."""
    with local_dask() as client:
        before = workers_of(client)
        for _ in range(10):
            with DaskExecutor(client, max_workers=3) as executor, Flow(executor) as flow:
                with_tasks(flow, tasks.link)
                split_into(flow, "link", [{"n": n} for n in range(20, 30)])
                assert sorted(run(flow, "split").values()) == [*range(10)]
        assert client.submit(operator.neg, 5).result(WATCHDOG) == -5
        assert workers_of(client) == before


def test_dask_gives_a_task_what_it_needs():
    """Tasks that need the one GPU of a Dask worker never overlap, others do; what it does not have is refused."""
    with local_dask(n_workers=1, threads_per_worker=2, resources={"GPU": 1}) as client:
        with DaskExecutor(client) as executor, Flow(executor) as flow:
            for name, options in (("alone", {"GPU": 1}), ("half", {"GPU": 0.5}), ("other", {})):
                flow.add_task(name, lambda n: jobs.overlap(os.devnull, n), resources=options)
                split_into(flow, name, [{"n": n} for n in range(6)], replace=True)
                times = [value[:2] for value in run(flow, "split").values()]
                most = max(sum(begun <= began < ended for begun, ended in times) for began, _ in times)
                assert most == (1 if name == "alone" else 2)
            flow.add_task("greedy", tasks.nothing, resources={"GPU": 2})
            with pytest.raises(ValueError, match="GPU"):
                run(flow, "greedy")
        assert client.status == "running"
    assert not engine_threads("millstream-dask")


def test_a_worker_in_this_process_is_not_killed(tmp_path):
    """With a Dask worker in a thread of this process a task that overruns is told, and left behind; all lives on."""
    log = tmp_path / "log"
    with local_dask(n_workers=1, processes=False) as client, DaskExecutor(client) as executor, Flow(executor) as flow:
        flow.add_task("slow", jobs.until_told_or_stopped, timeout=0.2)
        began = time.monotonic()
        with pytest.raises(TaskTimeoutError):
            run(flow, "slow", {"log": str(log)})
        assert time.monotonic() - began < 5
        until(lambda: lines_of(log) == ["told"])
        assert run_one(flow, tasks.process_id) == os.getpid()


def test_the_log_of_a_worker_in_this_process_is_written_once(caplog, capfd):
    """With a Dask worker in a thread of this process a log record comes once, and loggers are as before."""
    logger = logging.getLogger("millstream")
    handlers = list(logger.handlers)
    with local_dask(n_workers=1, processes=False) as client, DaskExecutor(client) as executor, Flow(executor) as flow:
        flow.add_task("says", jobs.says)
        run(flow, "says")
    assert [record.getMessage() for record in caplog.records if record.name.startswith("millstream")] == ["said"]
    assert logger.handlers == handlers
    assert capfd.readouterr().err == ""


def test_a_dask_cluster_that_ends_ends_the_run():
    """When the cluster of a client is closed while a job is under way, the run raises within seconds."""
    with local_dask(n_workers=1) as client, DaskExecutor(client) as executor, Flow(executor) as flow:
        with_tasks(flow, tasks.sleep_forever)
        flow_run = flow.start("sleep_forever")
        until(lambda: "pid" in flow_run.context)
        client.close(timeout=2)
        client.cluster.close(timeout=5)
        with pytest.raises((ExecutorLostError, WorkerLostError)):
            flow_run.result(WATCHDOG)
        assert_ends(flow_run.context["pid"], 5.0)


def test_a_run_on_a_client_that_was_closed_raises_one_error():
    """When a client is closed, a further run raises one error that says so, and no group."""
    with local_dask(n_workers=1) as client, DaskExecutor(client) as executor, Flow(executor) as flow:
        assert run_one(flow, tasks.add, {"a": 1}) == 11
        client.close(timeout=2)
        with pytest.raises(FlowError, match="closed"):
            run(flow, "add", {"a": 1})


def test_r4_an_exception_of_python_keeps_what_it_says():
    """A ``UnicodeDecodeError`` of a Dask job, whose text is made of its attributes, says the same here."""
    with (
        local_dask(n_workers=1) as client,
        DaskExecutor(client) as executor,
        Flow(executor) as flow,
        pytest.raises(UnicodeDecodeError, match="can't decode byte 0xff"),
    ):
        run_one(flow, tasks.fail, {"how": "unicode"})


# ---- messages of jobs -----------------------------------------------------------------------------


def test_a_message_of_a_job_is_never_empty_by_accident():
    """While three threads emit and a fourth one sends what there is, no frame is empty, and nothing is lost."""
    frames, told = [], threading.Event()

    def deliver(number, frame):
        frames.append(pickle.loads(frame))
        return pickle.dumps((To.ANSWER, None))

    home = MailHome(1, deliver, lambda number: False, None)

    def tell(thread):
        for n in range(3000):
            home.tell((Back.SENT, "yield", thread, n))

    def flush():
        while not told.is_set():
            home.flush()

    threads = [threading.Thread(target=tell, args=(thread,)) for thread in range(3)]
    flusher = threading.Thread(target=flush)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in (*threads, flusher):
            thread.start()
        for thread in threads:
            thread.join(WATCHDOG)
    finally:
        told.set()
        flusher.join(WATCHDOG)
        sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in (*threads, flusher))
    assert all(frames)
    numbers = {thread: [] for thread in range(3)}
    for _, _, thread, n in (*itertools.chain.from_iterable(frames), *pickle.loads(home.rest())):
        numbers[thread].append(n)
    assert numbers == {thread: [*range(3000)] for thread in range(3)}


# ---- addresses and extras -------------------------------------------------------------------------


def test_a_wrong_address_of_dask_raises_soon():
    """Where nobody listens, the first run raises within seconds, and says what address it was."""
    needed("dask")
    address, began = "tcp://127.0.0.1:1", time.monotonic()
    with DaskExecutor(address) as executor, Flow(executor) as flow, pytest.raises(FlowError, match=address):
        run_one(flow, tasks.nothing)
    assert time.monotonic() - began < 10


def test_a_wrong_address_of_ray_raises_soon(tmp_path):
    """Where nobody listens, the first run raises within seconds, and says what address it was."""
    needed("ray")
    out, err = run_script(
        tmp_path,
        """
        import time
        from millstream import Flow, FlowError, RayExecutor

        for address in ("127.0.0.1:1", "127.0.0.1:none"):
            began = time.monotonic()
            with RayExecutor(address) as executor, Flow(executor) as flow:
                flow.add_task("abs", abs)
                try:
                    flow.run("abs")
                except FlowError as error:
                    print(f"There is no Ray cluster at {address}" in str(error), time.monotonic() - began < 10)
        """,
    )
    assert (out, err) == ("True True\nTrue True\n", "")


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_missing_extra_is_named(tmp_path, kind):
    """Without its package an executor raises ``ImportError`` with the command that installs it."""
    out, err = run_script(
        tmp_path,
        f"""
        import sys
        sys.modules["{PACKAGES[kind]}"] = None
        from millstream import DaskExecutor, RayExecutor
        try:
            {"RayExecutor" if kind == "ray" else "DaskExecutor"}()
        except ImportError as error:
            print(error)
        """,
    )
    assert (f'pip install "millstream[{kind}]"' in out, err) == (True, "")


def test_what_is_no_cluster_is_refused():
    """Numbers of workers, addresses and clients that are none are refused where they enter."""
    needed("ray")
    needed("dask")
    for kind in (RayExecutor, DaskExecutor):
        for workers, error in (
            (0, ValueError),
            (-1, ValueError),
            (1.5, TypeError),
            ("2", TypeError),
            (True, TypeError),
        ):
            with pytest.raises(error):
                kind(max_workers=workers)
        for client in (5, object(), print, b"tcp://127.0.0.1:1"):
            with pytest.raises(TypeError):
                kind(client)
    with pytest.raises(ValueError, match="Ray Client"):
        RayExecutor("ray://localhost:10001")


def test_nothing_of_a_cluster_is_imported_before_it_is_needed(tmp_path):
    """Making executors and flows imports neither Ray nor Dask."""
    for kind in PACKAGES:
        needed(kind)
    out, _ = run_script(
        tmp_path,
        """
        import sys
        from millstream import DaskExecutor, Flow, RayExecutor
        for executor in (DaskExecutor(), RayExecutor()):
            Flow(executor).add_task("abs", abs)
        print({"ray", "dask", "distributed"} & set(sys.modules))
        """,
    )
    assert out == "set()\n"


@pytest.mark.parametrize(
    ("resources", "error"),
    [
        ({"num_cpus": 0}, ValueError),
        ({"num_cpus": -1}, ValueError),
        ({"num_cpus": float("nan")}, ValueError),
        ({"num_cpus": "2"}, TypeError),
        ({"num_cpus": True}, TypeError),
        ({5: 1}, TypeError),
        (["num_cpus"], TypeError),
    ],
    ids=repr,
)
def test_bad_resources_are_refused_where_they_enter(resources, error):
    """Amounts that are none, or not above 0, are refused when the task is added."""
    with Flow() as flow, pytest.raises(error):
        flow.add_task("task", tasks.nothing, resources=resources)


@pytest.mark.parametrize("kind", ["thread", "process", "inline", "asyncio"])
def test_other_executors_refuse_resources(kind):
    """Only clusters have resources: with another executor the error says what to use instead."""
    with Flow(kind) as flow, pytest.raises(TypeError, match="max_parallel or uses"):
        flow.add_task("task", tasks.nothing, resources={"num_cpus": 1})
        run(flow, "task")


# ---- programs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PACKAGES)
def test_r36_a_program_that_closes_nothing_ends(tmp_path, kind):
    """A program ends by itself, quietly, though its flow and executor are open and a job runs; no worker is left."""
    needed(kind)
    log = tmp_path / "log"
    out, err = run_script(
        tmp_path,
        f"""
        import os, time
        from millstream import DaskExecutor, Flow, RayExecutor
        from tests.cluster_tasks import forever

        if __name__ == "__main__":
            flow = Flow({START[kind]})
            flow.add_task("forever", forever)
            flow_run = flow.start("forever", {{"log": {str(log)!r}}})
            while not os.path.exists({str(log)!r}):
                time.sleep(0.01)
        """,
    )
    for pid in map(int, lines_of(log)):
        assert_ends(pid, WATCHDOG)
    assert (out, err) == ("", "")


@pytest.mark.parametrize("kind", PACKAGES)
def test_no_orphan_when_the_program_is_killed(tmp_path, kind):
    """When a program that has started a cluster is killed by SIGKILL, its workers end within seconds."""
    needed(kind)
    log = tmp_path / "log"
    path = tmp_path / "program.py"
    path.write_text(
        textwrap.dedent(
            f"""
            from millstream import DaskExecutor, Flow, RayExecutor
            from tests.cluster_tasks import forever

            if __name__ == "__main__":
                flow = Flow({START[kind]})
                flow.add_task("forever", forever)
                flow.run("forever", {{"log": {str(log)!r}}})
            """
        )
    )
    child = subprocess.Popen(
        [sys.executable, str(path)], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, **IMPORTABLE},
    )  # fmt: skip
    try:
        until(lambda: lines_of(log) or child.poll() is not None)
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()
    for pid in map(int, lines_of(log)):
        assert_ends(pid, 10.0)


def test_a_ray_of_somebody_else_is_left_open_and_its_end_is_noticed(tmp_path):
    """A running Ray survives ``shutdown``; when its owner ends it, runs end with an error, and nothing starts it."""
    needed("ray")
    out, err = run_script(
        tmp_path,
        """
        import logging, threading, time
        import ray
        from millstream import Flow, FlowError, RayExecutor
        from tests import process_tasks as tasks

        def ours():
            return [thread.name for thread in threading.enumerate() if thread.name.startswith("millstream")]

        if __name__ == "__main__":
            ray.init(num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
            with RayExecutor() as executor, Flow(executor) as flow:
                flow.add_task("add", tasks.add)
                print(flow.run("add", {"a": 1}))
            print(ray.is_initialized(), ours())
            executor = RayExecutor()
            flow = Flow(executor)
            flow.add_task("add", tasks.add)
            flow.add_task("sleep", tasks.sleep_forever)
            flow_run = flow.start("sleep")
            while "pid" not in flow_run.context:
                time.sleep(0.01)
            ray.shutdown()
            for each in (flow_run, None):
                each = each or flow.start("add", {"a": 1})
                try:
                    print(each.result(10))
                except FlowError as error:
                    print("FlowError")
            flow.close()
            executor.shutdown()
            print(ray.is_initialized(), ours())
        """,
        limit=45.0,
    )
    assert out.splitlines() == ["{'add': 11}", "True []", "FlowError", "FlowError", "False []"]
    assert err == ""
