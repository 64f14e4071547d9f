"""What the tests share: flows on every executor, snippets in a process of their own, threads of the engine, clocks."""

import heapq
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest

from millstream import AsyncioExecutor, Flow, ThreadExecutor
from millstream.engine.clock import Clock, Timer

# A shell starts its background jobs with Ctrl-C ignored, which the tests of Ctrl-C and their children would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

#: Seconds after which whatever waits gives up: far beyond what anything here takes.
WATCHDOG = 10.0

EACH_KIND = ("inline", "thread", "asyncio", "pool")  #: the usual ones
EVERY = ("inline", "thread", "thread-1", "asyncio", "pool", "pool-1")
ONE_WORKER = ("inline", "thread-1", "asyncio-1", "pool-1")
SEVERAL = ("thread", "asyncio", "pool")  #: two workers and more, all beside the caller's thread

#: Decorators that run a test on other executors than on every one.
on_one_worker = pytest.mark.parametrize("executor", ONE_WORKER, indirect=True)
on_several_workers = pytest.mark.parametrize("executor", SEVERAL, indirect=True)


def needs(module: str, package: str) -> None:
    """Skip the test, or the module, that needs a library which is not installed; where CI runs, fail.

    Args:
        module: what is imported of it.
        package: what is to be installed.
    """
    if "CI" in os.environ:
        import_module(module)
    pytest.importorskip(module, reason=f"{package} is not installed: pip install {package}")


def named(value: object) -> str:
    """Return the ``repr`` of a test's parameter as an id that is the same in each process."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))


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


def executors(kinds: Sequence[str]) -> Any:
    """Make a fixture of these kinds of executor in turn, each as a user would pass it to a flow."""

    @pytest.fixture(params=kinds)
    def executor(request: pytest.FixtureRequest) -> Iterator[Any]:
        before = engine_threads()
        with opened(request.param) as executor:
            yield executor
        assert_gone(engine_threads() - before)

    return executor


executor = executors(EVERY)  #: what a module has that does not make one of its own


@pytest.fixture
def flow(executor: Any) -> Iterator[Flow]:
    """A flow on each executor in turn, closed at the end."""
    flow = Flow(executor)
    yield flow
    flow.close()


@pytest.fixture
def often(request: pytest.FixtureRequest) -> int:
    """How often a test repeats what chance could break: 200 times in threads and on a pool, 20 times elsewhere."""
    return 200 if request.node.callspec.params["executor"] in ("thread", "pool") else 20


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give tasks that do not stop up after a twentieth of a second in place of half a second."""
    monkeypatch.setattr("millstream.engine.run.GRACE", 0.05)


def engine_threads(name: str = "millstream") -> set[threading.Thread]:
    """Return the live threads that the library has started, or those of them whose names begin so."""
    return {thread for thread in threading.enumerate() if thread.name.startswith(name)}


def assert_gone(threads: set[threading.Thread]) -> None:
    """Wait for threads that were told to end."""
    for thread in threads:
        until(lambda thread=thread: thread.ident is not None)  # one that ends others may not have started yet
        thread.join(WATCHDOG)
    assert not [thread.name for thread in threads if thread.is_alive()]


def wait_for(event: threading.Event) -> None:
    """Wait for an event that is sure to come."""
    assert event.wait(WATCHDOG), "the event did not come"


def until(true: Callable[[], object], limit: float = WATCHDOG) -> None:
    """Wait until something is so that no event tells."""
    end = time.monotonic() + limit
    while not true():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.001)


def run_snippet(source: str, limit: float = WATCHDOG, *, quiet: bool = True, **env: str) -> str:
    """Run a program in a fresh interpreter; return what it printed.

    It has to end by itself within ``limit`` seconds, with exit code 0 and, when ``quiet``, nothing on stderr.
    """
    program = [sys.executable, "-W", "error", "-c", textwrap.dedent(source)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=limit, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert not quiet or done.stderr == ""
    return done.stdout


class Log(list[Any]):
    """A list that several threads add to, and a test waits for."""

    def __init__(self) -> None:
        super().__init__()
        self._added = threading.Condition()

    def add(self, entry: Any) -> None:
        with self._added:
            self.append(entry)
            self._added.notify_all()

    def wait_for(self, count: int) -> None:
        """Wait until it has so many entries."""
        with self._added:
            assert self._added.wait_for(lambda: len(self) >= count, WATCHDOG), f"{len(self)} of {count}: {self}"


# ---- clocks -----------------------------------------------------------------------------------------


class VirtualClock(Clock):
    """A clock that stands still until the test sets it forward; what is due then is called by the test's thread."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def call_at(self, when: float, call: Callable[[], object]) -> Timer:
        timer = super().call_at(when, call)
        with self._changed:
            self._changed.notify_all()
        return timer

    def _start(self) -> None:
        """No thread: ``advance`` does its work."""

    @property
    def waiting(self) -> list[float]:
        """In how many seconds each timer that was not called off is due."""
        with self._changed:
            return self._due_in()

    def _due_in(self) -> list[float]:
        return sorted(when - self.time for when, _, timer in self._timers if timer.call is not None)

    def wait_for(self, *due_in: float) -> None:
        """Wait until there are timers that are due in so many seconds, among others."""
        with self._changed:
            there = self._changed.wait_for(lambda: Counter(due_in) <= Counter(self._due_in()), WATCHDOG)
            assert there, f"no timer for {due_in}, but for {self._due_in()}"

    def advance(self, seconds: float) -> None:
        """Set the clock forward; call what is due on the way, in its order."""
        end = self.time + seconds
        while (timer := self._take(end)) is not None:
            call, timer.call = timer.call, None
            if call is not None:
                self.time = max(self.time, timer.when)
                call()
        self.time = end

    def _take(self, end: float) -> Timer | None:
        with self._changed:
            due = self._timers and self._timers[0][0] <= end
            return heapq.heappop(self._timers)[2] if due else None


class JumpingClock(VirtualClock):
    """A clock that stands still while a task runs, and jumps to the next timer as soon as there is one.

    For runs that do one thing after another: it does not wait for a timer that would be due before.
    """

    _start = Clock._start

    def _next(self) -> Timer | None:
        with self._changed:
            while not self._closed:
                while self._timers:
                    _, _, timer = heapq.heappop(self._timers)
                    if timer.call is not None:
                        self.time = max(self.time, timer.when)
                        return timer
                self._changed.wait()
            return None


def set_clock(flow: Flow, clock: Clock) -> Flow:
    """Put a clock of the test's in the place of a flow's, before its first run."""
    flow._clock = flow._limits._clock = clock
    return flow


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    """A clock that is set forward by the test alone."""
    clock = VirtualClock()
    yield clock
    clock.close()
