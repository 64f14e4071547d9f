"""Worker processes that are killed all the time: nothing is lost, nothing comes twice, and the report says what was."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

#: Seconds that a program may take whose workers are killed again and again.
LONG = 50.0

#: A program of its own: here a worker would import pytest, and most would be killed before they are ready.
PROGRAM = """
    import multiprocessing
    import os
    import random
    import signal
    import sys
    import threading
    import time
    from collections import Counter
    from contextlib import contextmanager

    from millstream import Flow, NextTask, ProcessExecutor, Status, WorkerLostError, fn_hook
    from tests import process_tasks as tasks

    TASKS = 2000
    LOG = sys.argv[1]


    @contextmanager
    def killer(seed):
        '''Kill a random worker process every 50 ms; give the list of the process ids that were.'''
        chance, end, killed = random.Random(seed), threading.Event(), []

        def kill():
            while not end.wait(0.05):
                workers = multiprocessing.active_children()
                if workers:
                    pid = chance.choice(workers).pid
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                    killed.append(pid)

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            yield killed
        finally:
            end.set()
            thread.join()


    def number_of(task_id):
        '''The number that the task run of this id was given.'''
        return int(task_id.partition("#")[2] or 1) - 1


    def fan_out(flow, **options):
        '''Have the flow ask for all task runs at once; each writes its number into the log.'''
        requests = [NextTask("recorded_square", {"n": n, "log": LOG}, spawn_another=True) for n in range(TASKS)]
        flow.add_task("split", lambda: requests, executor="thread")
        flow.add_task("recorded_square", tasks.recorded_square, **options)


    def with_retries(flow):
        fan_out(flow, retries=10)
        arrived = Counter()
        with killer(1) as killed:
            for chunk in flow.stream("split"):
                if chunk.task_id != "split":
                    arrived[chunk.task_id] += 1
                    assert chunk.value == number_of(chunk.task_id) ** 2
        assert killed
        assert len(arrived) == TASKS, len(arrived)
        assert set(arrived.values()) == {1}
        with open(LOG) as log:
            assert set(map(int, log.read().split())) == set(range(TASKS))
        row = flow.report().tasks["recorded_square"]
        assert (row.status, row.runs) == (Status.SUCCESS, TASKS)


    def without_retries(flow):
        fan_out(flow)
        flow_run = flow.start("split")
        with killer(2) as killed:
            results = flow_run.result()
        limit = time.monotonic() + 5  # the hook has a thread of its own
        while len(FAILED) + len(results) < TASKS and time.monotonic() < limit:
            time.sleep(0.01)

        assert {name: number_of(name) ** 2 for name in results} == results
        assert len(results) + len(FAILED) == TASKS, (len(results), len(FAILED))
        assert not results.keys() & FAILED.keys()
        assert {type(error) for error in FAILED.values()} == {WorkerLostError}
        assert len(FAILED) <= len(killed), (len(FAILED), len(killed))

        # What was begun was not begun again, and what has a result had its body called.
        with open(LOG) as log:
            bodies = Counter(map(int, log.read().split()))
        assert set(bodies.values()) == {1}
        with_result = {number_of(name) for name in results}
        assert with_result <= set(bodies)
        # A worker may be killed when it has written its line and not yet sent the result: that is a failure.
        assert set(bodies) - with_result <= {number_of(name) for name in FAILED}

        report = flow_run.report()
        row = report.tasks["recorded_square"]
        assert (report.status, row.status, row.runs) == (Status.FAILED, Status.FAILED, TASKS)
        assert row.error.type.endswith("WorkerLostError")


    FAILED = {}
    hook = fn_hook(on_task_failure=lambda event: FAILED.update({event.id: event.error}))

    if __name__ == "__main__":
        multiprocessing.set_forkserver_preload(["millstream.executors.process", "tests.process_tasks"])
        open(LOG, "w").close()
        with ProcessExecutor(4) as executor:
            if sys.argv[2] == "with retries":
                with Flow(executor) as flow:
                    with_retries(flow)
            else:
                with Flow(executor, on_error="continue", hooks=[hook]) as flow:
                    without_retries(flow)
        assert not multiprocessing.active_children()
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("millstream")]
        print("all is well")
"""


def run_program(folder, how):
    """Run the program in one of its two ways; its assertions are the test's."""
    path = folder / "chaos.py"
    path.write_text(textwrap.dedent(PROGRAM))
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path), str(folder / "log"), how],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert (done.returncode, done.stdout) == (0, "all is well\n"), done.stderr


def test_r39_with_retries_every_result_arrives_exactly_once(tmp_path):
    """2,000 task runs on 4 workers of which one is killed every 50 ms give 2,000 right results, each of them once."""
    run_program(tmp_path, "with retries")


def test_r39_without_retries_exactly_the_killed_ones_fail(tmp_path):
    """Each kill costs one task run at the most, with ``WorkerLostError``; every other one has its result."""
    run_program(tmp_path, "without retries")
