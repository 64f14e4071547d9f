"""What tests of tasks that are called in other processes share."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from millstream import NextTask
from tests.conftest import WATCHDOG, until

#: A second, and as much again for a busy machine.
SECOND = 2.0

ROOT = str(Path(__file__).parent.parent)
#: What programs that import the tests have in their environment.
IMPORTABLE = {"PYTHONPATH": os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))}

# ---- flows ----------------------------------------------------------------------------------------


def with_tasks(flow, *functions, **options):
    for function in functions:
        flow.add_task(getattr(function, "__name__", "task"), function, **options)
    return flow


def split_into(flow, name, many, **replace):
    """Add a task ``split`` that asks for a task once for each of these inputs, from a thread of this process."""
    requests = [NextTask(name, inputs, spawn_another=True) for inputs in many]
    flow.add_task("split", lambda: requests, executor="thread", **replace)
    return flow


def run(flow, *args, limit=WATCHDOG, **options):
    """Run a flow as ``flow.run`` does, but do not wait for ever, nor leave anything behind."""
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


# ---- processes ------------------------------------------------------------------------------------


def pid_of(flow_run, limit=WATCHDOG):
    """Wait for the process id that a task sets in the context, and return it."""
    until(lambda: "pid" in flow_run.context, limit)
    return flow_run.context["pid"]


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
    limit = time.monotonic() + within
    while alive(pid):
        assert time.monotonic() < limit, f"process {pid} is still there"
        time.sleep(0.005)


def lines_of(path):
    """What tasks have written down."""
    try:
        return path.read_text().split()
    except FileNotFoundError:
        return []


# ---- programs -------------------------------------------------------------------------------------


def run_script(tmp_path, source, limit=20.0, *, code=0, file=True, **env):
    """Run a program as a script; return what it printed on stdout and on stderr."""
    source = textwrap.dedent(source)
    path = tmp_path / "program.py"
    path.write_text(source)
    program = [sys.executable, "-W", "error", *([str(path)] if file else ["-c", source])]
    done = subprocess.run(
        program, capture_output=True, text=True, timeout=limit, check=False, cwd=tmp_path, env={**os.environ, **env}
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr
