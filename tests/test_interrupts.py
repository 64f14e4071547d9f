"""Ctrl-C, wherever it strikes: the run is cancelled, KeyboardInterrupt comes out, and nothing hangs or is half done."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.conftest import WATCHDOG

BEGIN = '''
import faulthandler, signal, sys, threading, time, millstream
faulthandler.dump_traceback_later(WATCHDOG, exit=True)
from millstream import Flow, NextTask, TaskOutput, current_task
from millstream.engine import scheduler as states, stream as streams
from millstream.monitor import Monitor

def strike():
    signal.raise_signal(signal.SIGINT)

def strikes_in(owner, name, at):
    "Let Ctrl-C come in the midst of a method of the engine, when it is called for the at-th time."
    source = """
def method(*args, **kwargs):
    if next(count) == at and threading.current_thread() is threading.main_thread():
        signal.raise_signal(signal.SIGINT)
    return real(*args, **kwargs)
"""
    names = {"real": getattr(owner, name), "count": iter(range(1, 10**9)), "at": at, "threading": threading}
    code = compile(source, millstream.__file__.replace("__init__", "a_part"), "exec")  # it counts as the engine's
    exec(code, names | {"signal": signal}, names)
    names["method"].__globals__.update(names)
    setattr(owner, name, names["method"])

def fan(flow, body=lambda n: n):
    flow.add_task("fan", lambda: TaskOutput(None, (NextTask("part", {"n": n}, True) for n in range(10**9))))
    flow.add_task("part", body)

def end(flow):
    print(flow.report().status, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    flow.close()
    print(len(threading.enumerate()) <= 2 and "left")
'''


def said(program: str) -> list[str]:
    """Run a program in a fresh interpreter; return the lines that it printed."""
    code = BEGIN.replace("WATCHDOG", str(WATCHDOG)) + textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=2 * WATCHDOG, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize("how", ["run", "stream"])
@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        ("states.Scheduler", "start", 1),
        ("states.Scheduler", "finished", 7),
        ("states.Scheduler", "request", 9),
        ("Monitor", "leave", 5),
        ("Monitor", "__enter__", 2),
    ],
)
def test_it_does_not_strike_in_the_midst_of_the_engine(how, owner, name, at):
    """Ctrl-C inside of a locked step is told when the step is done; the run is cancelled."""
    program = f"""
    flow = Flow("inline")
    fan(flow)
    strikes_in({owner}, {name!r}, {at})
    try:
        if {how!r} == "run":
            flow.run("fan")
        else:
            for chunk in flow.stream("fan"):
                pass
    except KeyboardInterrupt:
        print("struck")
    end(flow)
    """
    assert said(program) == ["struck", "CANCELLED True", "left"]


@pytest.mark.parametrize("where", ["task", "list", "generator"])
def test_it_strikes_at_once_in_the_code_of_a_task(where):
    """On the inline executor Ctrl-C interrupts the task, as in any program, and the run is cancelled."""
    program = f"""
    flow, seen = Flow("inline"), []
    def body(n=0):
        try:
            strike()
            seen.append("not at once")
        finally:
            seen.append("ended")
    def requests():
        yield NextTask("none")
        body()
    def generates():
        yield 1
        body()
    flow.add_task("none", lambda: None)
    flow.add_task("list", lambda: TaskOutput(None, requests()))
    flow.add_task("task", body)
    flow.add_task("generator", generates)
    try:
        flow.run({where!r})
    except KeyboardInterrupt:
        print("struck", seen)
    end(flow)
    """
    assert said(program) == ["struck ['ended']", "CANCELLED True", "left"]


def test_a_second_one_is_never_kept():
    """The first Ctrl-C in the midst of the engine is kept, and the second one strikes there."""
    program = """
    from millstream.interrupts import shield
    seen = []
    class Engine:
        def step(self):
            seen.append("step")
    strikes_in(Engine, "step", 1)
    strikes_in(Engine, "step", 2)
    try:
        with shield():
            Engine().step()  # the first strike
            Engine().step()  # the second
            seen.append("not reached")
    except KeyboardInterrupt:
        print(seen)
    """
    assert said(program) == ["['step']"]


def test_a_handler_of_the_program_is_left_alone():
    """A program that handles SIGINT itself is called as ever, and its handler stays."""
    program = """
    calls = []
    def mine(number, frame):
        calls.append(number)
    signal.signal(signal.SIGINT, mine)
    flow = Flow("inline")
    flow.add_task("work", strike)
    flow.run("work")
    print(flow.report().status, len(calls), signal.getsignal(signal.SIGINT) is mine)
    """
    assert said(program) == ["SUCCESS 1 True"]


def test_what_a_task_raises_itself_is_its_failure():
    """KeyboardInterrupt raised by a task, without Ctrl-C, fails that task."""
    program = """
    from millstream import TaskFailedError
    flow = Flow("inline")
    def body():
        raise KeyboardInterrupt
    flow.add_task("work", body)
    try:
        flow.run("work")
    except TaskFailedError:
        print("failed")
    end(flow)
    """
    assert said(program) == ["failed", "FAILED True", "left"]
