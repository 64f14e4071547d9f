"""What the tests share: flows on every executor, snippets in a process of their own, threads of the engine."""

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from millstream import AsyncioExecutor, Flow, ThreadExecutor

#: Seconds after which whatever waits gives up: far beyond what anything here takes.
WATCHDOG = 10.0

EVERY = ("inline", "thread", "thread-1", "asyncio", "pool", "pool-1")
ONE_WORKER = ("inline", "thread-1", "asyncio-1", "pool-1")
SEVERAL = ("thread", "asyncio", "pool")  #: two workers and more, all beside the caller's thread

#: Decorators that run a test on other executors than on every one.
on_one_worker = pytest.mark.parametrize("executor", ONE_WORKER, indirect=True)
on_several_workers = pytest.mark.parametrize("executor", SEVERAL, indirect=True)


@contextmanager
def opened(kind: str) -> Iterator[Any]:
    """Give what a user passes to ``Flow`` for one kind of executor, and shut down what that opened."""
    if kind in ("inline", "thread", "asyncio"):
        yield kind
    elif kind.startswith("pool"):
        with ThreadPoolExecutor(1 if kind == "pool-1" else 2) as pool:
            yield pool
    else:
        with {"thread-1": ThreadExecutor, "asyncio-1": AsyncioExecutor}[kind](1) as executor:
            yield executor


@pytest.fixture(params=EVERY)
def executor(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each executor of the library in turn, as a user would pass it to a flow."""
    before = engine_threads()
    with opened(request.param) as executor:
        yield executor
    assert_gone(engine_threads() - before)


@pytest.fixture
def flow(executor: Any) -> Iterator[Flow]:
    """A flow on each executor in turn, closed at the end."""
    flow = Flow(executor)
    yield flow
    flow.close()


def engine_threads() -> set[threading.Thread]:
    """Return the live threads that the library has started."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("millstream")}


def assert_gone(threads: set[threading.Thread]) -> None:
    """Wait for threads that were told to end."""
    for thread in threads:
        thread.join(WATCHDOG)
    assert not [thread.name for thread in threads if thread.is_alive()]


def run_snippet(source: str, limit: float = WATCHDOG, **env: str) -> str:
    """Run a program in a fresh interpreter; return what it printed.

    It has to end by itself within ``limit`` seconds, with exit code 0 and nothing on stderr.
    """
    program = [sys.executable, "-W", "error", "-c", textwrap.dedent(source)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=limit, env=env, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
