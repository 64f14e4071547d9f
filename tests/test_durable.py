"""Durable runs: they go on where they were, after any interruption, and call nothing again that had finished."""

# ruff: noqa: PT012 - blocks and their ends are what is said to raise here

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, NamedTuple

import pytest

from millstream import (
    CheckpointError,
    CodeChangedError,
    Context,
    Flow,
    FlowClosedError,
    MemoryStore,
    NextTask,
    ProcessExecutor,
    Rate,
    Retry,
    RunCancelledError,
    RunOwnedError,
    RunTimeoutError,
    SQLiteStore,
    State,
    Status,
    Store,
    StoredRun,
    TaskNotFoundError,
    TaskOutput,
    TaskRunLimitError,
    TaskTimeoutError,
    UnknownRunError,
    current_task,
    fn_hook,
    task,
)
from millstream.stores.base import Entry
from tests.conftest import WATCHDOG, VirtualClock, engine_threads, executors, set_clock, until, wait_for
from tests.durable_tasks import CALLING, CALLS, SHAPES, any_shape, begin, flow_of, load, open_store

executor = executors(("inline", "thread", "asyncio"))
on_inline = pytest.mark.parametrize("executor", ["inline"], indirect=True)
ANY_FLOWS = int(os.environ.get("MILLSTREAM_FLOWS", "40"))  #: how many random flows are tried
each_shape = pytest.mark.parametrize("name", SHAPES)


class Tape(MemoryStore):
    """A store that knows where each transaction has ended, and can be cut off there, as by the end of the process."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.marks: dict[str, list[int]] = defaultdict(list)

    def create(self, run_id: str, *facts: Any) -> None:
        super().create(run_id, *facts)
        self.marks[run_id].append(self.length(run_id))

    def append(self, run_id: str, entries: Any) -> None:
        super().append(run_id, entries)
        self.marks[run_id].append(self.length(run_id))

    def length(self, run_id: str = "r") -> int:
        return sum(1 for _ in self.entries(run_id))

    def cut(self, at: int, into: Any = None, run_id: str = "r") -> Any:
        """Return a store that has the first entries, of a run whose process is dead."""
        store = Tape(sync=self.sync) if into is None else into
        head = self.run(run_id)
        store.create(run_id, head.flow, head.created_at, head.facts, list(self.entries(run_id))[:at])
        store.release(run_id)
        return store

    def cuts(self, run_id: str = "r") -> list[Tape]:
        """Return a store for each transaction but the last, after which the process may have died."""
        return [self.cut(at, run_id=run_id) for at in self.marks[run_id][:-1]]


def finished(store: Store, run_id: str = "r") -> list[str]:
    """Return the ends of the keys of the task runs that have finished, as often as the store says so."""
    return [f"{entry.key & 0xFFFFFFFFFFFFFFFF:016x}" for entry in store.entries(run_id, ("finished",))]


def kinds(store: Store, run_id: str = "r") -> Counter[str]:
    """Return how many entries of each kind the store has."""
    return Counter(entry.kind for entry in store.entries(run_id))


def normal(results: dict[str, Any]) -> dict[str, list[str]]:
    """Return results without the numbers of task runs, which depend on who was quicker."""
    by_task = defaultdict(list)
    for name, value in results.items():
        by_task[name.partition("#")[0]].append(repr(value))
    return {name: sorted(values) for name, values in by_task.items()}


def values_of(context: Context, flow: Flow) -> dict[str, Any]:
    """Return what was set in a context; lists in no order."""
    values = {key: value for key, value in context.to_dict().items() if key not in flow.tasks}
    return {key: sorted(value, key=repr) if type(value) is list else value for key, value in values.items()}


class Played(NamedTuple):
    """What came of a run."""

    results: dict[str, list[str]]
    values: dict[str, Any]
    status: str
    paths: set[str]  #: of what has finished


def play(name: str, executor: Any, store: Any, **options: Any) -> Played:
    """Run a shape undisturbed."""
    CALLS.clear()
    with flow_of(name, executor, store, **options) as flow:
        results = begin(flow, name)
        report = flow.report("r")
        return Played(normal(results), values_of(flow.context, flow), str(report.status), set(finished(store)))


def go_on(name: str, executor: Any, store: Any, **options: Any) -> Played:
    """Resume a run of a shape; nothing that had finished may be called, and attempts go on."""
    had, tries = finished(store), Counter(entry.key for entry in store.entries("r", ("retry",)))
    tried = {f"{key & 0xFFFFFFFFFFFFFFFF:016x}": count for key, count in tries.items()}
    CALLS.clear()
    with flow_of(name, executor, store, **options) as flow:
        results = flow.resume("r")
        values, status = values_of(flow.context, flow), str(flow.report("r").status)
    begun: dict[str, int] = {}
    for call in CALLS:
        _, path, attempt = call.split()
        begun.setdefault(path, int(attempt))
    assert not begun.keys() & set(had), "what had finished was called again"
    assert all(attempt == tried.get(path, 0) + 1 for path, attempt in begun.items()), "attempts do not go on"
    now = finished(store)
    assert len(now) == len(set(now)), "something has finished twice"
    return Played(normal(results), values, status, set(now))


# ---- whatever the flow is like, and wherever it stopped -------------------------------------------


@each_shape
def test_a_run_goes_on_after_any_of_its_transactions(name):
    """Wherever the process dies between two transactions, the rest gives what an undisturbed run gives."""
    tape = Tape()
    whole = play(name, "inline", tape)
    for store in tape.cuts():
        assert go_on(name, "inline", store) == whole


@each_shape
def test_a_run_goes_on_after_any_of_its_entries(name):
    """With sync="group" it may stop between any two things that happened; and then once more."""
    tape, random_ = Tape(sync="group"), random.Random(name)
    whole = play(name, "inline", tape)
    for at in range(1, tape.length()):
        store = tape.cut(at)
        assert go_on(name, "inline", store)[:3] == whole[:3]
        if store.length() > at + 1:
            again = store.cut(random_.randrange(at, store.length()))
            assert go_on(name, "inline", again)[:3] == whole[:3]


@each_shape
def test_a_run_goes_on_however_often_it_stops(name):
    """A process that dies after each completion and each failed attempt gets there in the end."""
    tape = Tape()
    whole = play(name, "inline", tape)
    store = tape.cut(tape.marks["r"][0])
    for _ in range(100):
        had = store.length()
        assert go_on(name, "inline", store) == whole
        new = [entry.kind for entry in store.entries("r")][had:]
        counts = [had + n for n, kind in enumerate(new, 1) if kind in ("finished", "retry")]
        further = [mark for mark in store.marks["r"][:-1] if counts and mark >= counts[0]]
        if not further:
            break
        store = store.cut(further[0])
    else:
        pytest.fail("it does not get on")


@each_shape
@pytest.mark.parametrize("kind", ["thread", "asyncio"])
def test_a_run_goes_on_in_threads_and_on_loops(name, kind):
    """What several workers have done, others go on with."""
    tape, random_ = Tape(), random.Random(name)
    whole = play(name, kind, tape, max_workers=2)
    for store in random_.choices(tape.cuts(), k=4):
        assert go_on(name, kind, store, max_workers=2).results == whole.results


#: Flows in which a generator asks for a join, fails, and asks again: its attempts are told apart only when it is
#: there in time, so a resume may miss one of the joins.


@pytest.mark.parametrize("seed", range(ANY_FLOWS))
def test_any_flow_goes_on(seed, monkeypatch):
    """Random flows that stop at random moments, several times, give what they give undisturbed."""
    random_ = random.Random(seed)
    monkeypatch.setitem(SHAPES, "any", any_shape(random_))
    tape = Tape(sync="group")
    whole = play("any", "inline", tape)
    for kind in ("inline", "inline", "thread"):
        store, stop = tape, 1
        for _ in range(4):
            if store.length() <= stop:
                break
            stop = random_.randrange(stop, store.length())
            store = store.cut(stop)
            rest = store.cut(stop)
            played = go_on("any", kind, rest)
            assert (played.results, played.values, played.paths) == (whole.results, whole.values, whole.paths)
            store = rest


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessExecutor]:
    """Two worker processes for all tests of this module."""
    with ProcessExecutor(2) as executor:
        yield executor


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in CALLING])  # those are for threads and loops
def test_a_run_goes_on_in_worker_processes(name, processes, tmp_path, monkeypatch):
    """What worker processes have done is not called again."""
    log = tmp_path / "log"
    monkeypatch.setenv("DURABLE_LOG", str(log))
    tape = Tape()
    whole = play(name, processes, tape)
    store = tape.cut(random.Random(name).choice(tape.marks["r"][:-1]))
    assert go_on(name, processes, store).results == whole.results


STORES = ("sqlite-each", "sqlite-group", "sqlite-full", "json-each", "json-group")


def stored(kind: str, folder: Any) -> Any:
    """Return a store of a kind; the same one when called again."""
    form, _, sync = kind.partition("-")
    return open_store(str(folder / f"runs.{form}"), sync)


@each_shape
@pytest.mark.parametrize("kind", STORES)
def test_a_run_goes_on_from_any_store(name, kind, tmp_path):
    """Each store gives what was put there to the next process."""
    tape = Tape()
    whole = play(name, "inline", tape)
    at = random.Random(name + kind).choice(tape.marks["r"][:-1])
    with closing(stored(kind, tmp_path)) as store:
        tape.cut(at, into=store)
    with closing(stored(kind, tmp_path)) as store:
        assert go_on(name, "inline", store) == whole
    with closing(stored(kind, tmp_path)) as store:
        assert go_on(name, "inline", store) == whole
        assert not [call for call in CALLS if not call.startswith("hopeless")]


def program(*arguments: str, **env: Any) -> subprocess.Popen[str]:
    """Start ``tests.durable_tasks`` in a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "tests.durable_tasks", *arguments]
    variables = {**os.environ, **{key: str(value) for key, value in env.items()}}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)


@pytest.mark.parametrize(
    "name", ["chain", "joins", "graph", "router", "loop", "mapped", "pulled", "generator", "retries", "values"]
)
def test_a_run_goes_on_in_another_process(name, tmp_path):
    """A process is killed when a body begins, and this one goes on with its run."""
    random_ = random.Random(name)
    kind = random_.choice(STORES)
    whole = play(name, "thread", Tape(), max_workers=2)
    path, _, sync = str(tmp_path / f"runs.{kind.partition('-')[0]}"), *kind.partition("-")[1:]
    with program(name, path, sync, DURABLE_LOG=tmp_path / "log", DURABLE_DIE=random_.randint(2, len(CALLS))) as killed:
        said = killed.communicate(timeout=WATCHDOG)
    assert killed.returncode == -signal.SIGKILL, said
    with closing(open_store(path, sync)) as store:
        assert go_on(name, "thread", store, max_workers=2).results == whole.results


@pytest.mark.parametrize("kind", ["sqlite-each", "json-group"])
def test_another_process_goes_on_with_a_run_of_this_one(kind, tmp_path):
    """What this process has left behind is finished by the next one, and read by this one."""
    tape = Tape()
    whole = play("joins", "inline", tape)
    with closing(stored(kind, tmp_path)) as store:
        tape.cut(tape.marks["r"][4], into=store)
        had = finished(store)
    path = next(str(path) for path in tmp_path.iterdir() if path.name == f"runs.{kind.partition('-')[0]}")
    with program("joins", path, kind.partition("-")[2], DURABLE_LOG=tmp_path / "log") as other:
        said, complaint = other.communicate(timeout=WATCHDOG)
    assert (other.returncode, complaint) == (0, "")
    assert normal(json.loads(said)) == whole.results
    begun = {line.split()[1] for line in (tmp_path / "log").read_text().splitlines()}
    assert not begun & set(had)
    with closing(stored(kind, tmp_path)) as store, flow_of("joins", "inline", store) as flow:
        assert normal(flow.resume("r")) == whole.results
        assert flow.report("r").status is Status.SUCCESS


# ---- what a test needs more ---------------------------------------------------------------------


class Broken(Exception):
    """What fails on purpose."""


@pytest.fixture(params=["memory", *STORES])
def reopen(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Callable[[], Any]]:
    """Give the same store again and again, each time as the next process would open it."""
    stores: list[Any] = []

    def opened() -> Any:
        if request.param == "memory":
            stores.append(stores[0] if stores else MemoryStore())
        else:
            if stores:
                stores[-1].close()
            stores.append(stored(request.param, tmp_path))
        return stores[-1]

    yield opened
    stores[-1].close()


def flow_with(store: Any, *functions: Any, executor: Any = "inline", **options: Any) -> Flow:
    """Return a flow of functions, each under its name."""
    flow = Flow(executor, store=store, **{"name": "test", **options})
    for function in functions:
        flow.add_task(function.__name__, function)
    return flow


class Trouble(set[str]):
    """Names of what fails, until it is taken out."""

    def strikes(self, name: str) -> None:
        if name in self:
            raise Broken(name)


def told(report: Any) -> Any:
    """Return what a report says, without times and tracebacks."""
    rows = {}
    for name, row in report.tasks.items():
        error = row.error and (row.error.type, row.error.message)
        rows[name] = (str(row.status), row.runs, row.attempt, error, row.result)
    error = report.error and (report.error.type, report.error.message)
    return report.run_id, report.flow, str(report.status), dict(report.metadata), report.resumed_from, error, rows


# ---- attempts, limits, priorities ------------------------------------------------------------------


@pytest.mark.parametrize(("later", "left"), [(0, 3600), (3000, 600), (4000, None)])
def test_the_wait_for_the_next_attempt_goes_on(later, left, monkeypatch):
    """An attempt that waits is due when it was due, however long nobody went on with the run."""
    tape, attempts = Tape(), []

    def fails():
        attempts.append(current_task().attempt)
        raise Broken

    def flow_on(clock: VirtualClock, store: Any) -> Flow:
        flow = set_clock(Flow("thread", store=store, name="test"), clock)
        flow.add_task("fails", fails, retry=Retry(attempts=3, backoff="linear", base=3600.0, max_delay=10000.0))
        return flow

    with closing(VirtualClock()) as clock, flow_on(clock, tape) as flow:
        run = flow.start("fails", run_id="r")
        clock.wait_for(3600.0)
        store = tape.cut(tape.length())
        run.cancel()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + later)
    with closing(VirtualClock()) as clock, flow_on(clock, store) as flow:
        run = flow.start(resume="r")
        if left is not None:
            until(lambda: clock.waiting)
            assert left - 60 < clock.waiting[0] <= left
            assert attempts == [1]
            clock.advance(left)
        until(lambda: clock.waiting and clock.waiting[0] > 7000)
        assert attempts == [1, 2]
        clock.advance(7200.0)
        with pytest.raises(Broken):
            run.result(WATCHDOG)
    assert attempts == [1, 2, 3]


def test_what_had_finished_does_not_wait_for_a_rate():
    """A resume of 50 task runs that had finished waits for no Rate, and what is left takes its turn."""
    tape = Tape()
    trouble = Trouble({"49"})

    def begin():
        return [NextTask("call", {"n": n}, spawn_another=True) for n in range(50)]

    def call(n):
        trouble.strikes(str(n))
        return n

    def build(store, limit):
        flow = Flow("inline", store=store, limits={"api": limit}, name="test")
        flow.add_task("begin", begin)
        flow.add_task("call", call, uses=["api"])
        return flow

    with pytest.raises(Broken):
        build(tape, 50).run("begin", run_id="r")
    trouble.clear()
    results = build(tape, Rate(1, per=60.0)).run(resume="r", timeout=WATCHDOG)
    assert sorted(results.values()) == list(range(50))


def test_bounds_hold_for_what_is_left():
    """max_parallel of a flow and of a task, and named limits, hold after a resume as well."""
    tape, lock, now, most = Tape(), threading.Lock(), Counter(), Counter()
    pairs = threading.Barrier(2)

    def begin():
        names = ["free"] * 6 + ["narrow"] * 3 + ["limited"] * 3
        return [NextTask(name, spawn_another=True) for name in names]

    def body(pair=False):
        name = current_task().name
        for key in (name, "all"):
            with lock:
                now[key] += 1
                most[key] = max(most[key], now[key])
        if pair:
            pairs.wait(WATCHDOG)
        with lock:
            now.subtract((name, "all"))

    def build(store):
        flow = Flow("thread", store=store, max_workers=6, max_parallel=2, limits={"db": 1}, name="test")
        flow.add_task("begin", begin)
        flow.add_task("free", lambda: body(pair=True))
        flow.add_task("narrow", body, max_parallel=1)
        flow.add_task("limited", body, uses=["db"])
        return flow

    with build(tape) as flow:
        flow.run("begin", run_id="r")
    most.clear()
    with build(tape.cut(tape.marks["r"][1])) as flow:
        assert len(flow.resume("r")) == 12
    assert most == {"free": 2, "narrow": 1, "limited": 1, "all": 2}


def test_what_is_left_starts_in_the_order_of_its_priority():
    """What was pending starts as it would have started."""
    tape = Tape()
    play("parallel", "inline", tape)
    order = [call.split()[1] for call in CALLS]
    for count, store in enumerate(tape.cuts()):
        go_on("parallel", "inline", store)
        assert [call.split()[1] for call in CALLS] == order[count:]


def test_what_ran_after_a_failure_is_found():
    """Under on_error="continue" a task that had failed, and was asked for again, keeps what it gave then."""
    store, trouble, calls = MemoryStore(), Trouble({"again 1"}), []

    def begin():
        return TaskOutput(1, [NextTask("again", {"n": 1}), NextTask("asks")])

    def again(n):
        calls.append(f"again {n}")
        trouble.strikes(f"again {n}")
        return TaskOutput(n, [NextTask("child", {"n": n}, spawn_another=True)])

    def asks():
        calls.append("asks")
        return NextTask("again", {"n": 2})

    def child(n):
        calls.append(f"child {n}")
        return n

    flow = flow_with(store, begin, again, asks, child, on_error="continue")
    assert flow.run("begin", run_id="r") == {"child": 2}
    assert calls == ["again 1", "asks", "again 2", "child 2"]
    calls.clear()
    trouble.clear()
    assert sorted(flow.resume("r").values()) == [1, 2]
    assert calls == ["again 1", "child 1"]


def test_task_runs_count_over_all_processes():
    """max_task_runs bounds the whole run; with a higher bound it goes on."""
    store = MemoryStore()

    def chain(n=0):
        return TaskOutput(n, [NextTask("chain", {"n": n + 1})] if n < 9 else [])

    with pytest.raises(TaskRunLimitError):
        flow_with(store, chain, max_task_runs=5).run(run_id="r")
    assert len(finished(store)) == 4
    with pytest.raises(TaskRunLimitError):
        flow_with(store, chain, max_task_runs=5).resume("r")
    assert flow_with(store, chain, max_task_runs=10).resume("r") == {"chain": 9}
    assert len(finished(store)) == 10


def test_runs_at_once_share_a_store(reopen):
    """Several runs of several flows, in several threads, are kept in one store, each for itself."""
    store, names, flows = reopen(), ["chain", "joins", "pulled", "generator"], []
    runs = {}
    for turn in range(2):
        for name in names:
            flow = flow_of(name, "thread", store, max_workers=2)
            flows.append(flow)
            runs[f"{name}{turn}"] = name, begin(flow, name, f"{name}{turn}", "start")
    results = {run_id: normal(run.result(WATCHDOG)) for run_id, (_, run) in runs.items()}
    for flow in flows:
        flow.close()
    store = reopen()
    for run_id, (name, _) in runs.items():
        CALLS.clear()
        with flow_of(name, "inline", store) as flow:
            assert normal(flow.resume(run_id)) == results[run_id]
        assert not CALLS


# ---- lists that are pulled, generators ----------------------------------------------------------


def test_a_list_that_was_written_is_not_asked_again(executor):
    """Once the task run that made it has finished, an iterable of next tasks is never iterated again."""
    tape, pulled = Tape(), []

    def begin():
        def requests():
            for n in range(20):
                pulled.append(n)
                yield NextTask("part", {"n": n}, spawn_another=True)

        return TaskOutput(None, requests())

    def part(n):
        return n

    with flow_with(tape, begin, part, executor=executor) as flow:
        flow.run("begin", run_id="r")
    assert pulled == list(range(20))
    for store in tape.cuts():
        pulled.clear()
        over = bool(finished(store))
        with flow_with(store, begin, part, executor=executor) as flow:
            results = flow.resume("r")
        assert sorted(v for name, v in results.items() if name.startswith("part")) == list(range(20))
        assert pulled == ([] if over else list(range(20)))


def test_memory_does_not_grow_with_a_list_that_is_pulled(tmp_path):
    """A fan-out from an iterable costs no memory with a store either, nor does the resume of one."""

    def begin(size):
        return TaskOutput(None, (NextTask("part", {"n": n}, spawn_another=True) for n in range(size)))

    def part(n, size):
        if n == size - 1:
            raise Broken

    def peak(size, how):
        with closing(SQLiteStore(tmp_path / f"{size}.db", sync="each")) as store:
            flow = Flow("inline", store=store, name="test")
            flow.add_task("begin", lambda: begin(size))
            flow.add_task("part", lambda n: part(n, size))
            tracemalloc.start()
            with flow, pytest.raises(Broken):
                for _ in flow.stream("begin", run_id="r") if how == "run" else flow.stream(resume="r"):
                    pass
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return most

    peak(300, "run")
    for how in ("run", "resume"):
        small, large = peak(1000, how), peak(4000, how)
        assert large - small < 3000 * 150  # the requests alone would be 3000 * 500


def test_what_waits_to_be_written_is_bounded():
    """With sync="group" large values are written before the moment is over."""
    written = []

    class Noting(MemoryStore):
        def append(self, run_id, entries):
            written.append(sum(len(entry.text) for entry in entries))
            super().append(run_id, entries)

    def begin():
        return TaskOutput(None, [NextTask("part", {"n": n}, spawn_another=True) for n in range(40)])

    flow = flow_with(Noting(sync="group"), begin)
    flow.add_task("part", lambda n: str(n) * 50_000)
    with flow:
        assert len(flow.run("begin")) == 40
    assert max(written) < 500_000


def test_a_generator_task_runs_again_and_its_children_do_not(executor):
    """A generator that had not finished asks again; what it had asked for and had finished is not called."""
    tape, trouble, calls = Tape(), Trouble({"source"}), []

    def source(ctx):
        calls.append("source")
        for n in range(3):
            yield NextTask("child", {"n": n}, spawn_another=True)
        if current_task().name in trouble and executor != "inline":
            ctx.get("all")
        trouble.strikes("source")
        return "source"

    def child(ctx, n):
        calls.append(n)
        ctx.append("done", n)
        if sorted(ctx.get("done")) == [0, 1, 2]:
            ctx["all"] = True
        return n

    with flow_with(tape, source, child, executor=executor) as flow, pytest.raises(Broken):
        flow.run("source", run_id="r")
    trouble.clear()
    before = Counter(calls)
    with flow_with(tape, source, child, executor=executor) as flow:
        results = flow.resume("r")
    assert sorted(results.values()) == [0, 1, 2]
    assert Counter(calls) == {"source": 2, 0: 1, 1: 1, 2: 1}
    assert executor == "inline" or before == {"source": 1, 0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("kind", ["inline", "thread"])
def test_a_generator_that_ran_twice_has_asked_once(kind):
    """What a generator asked for in a try that was interrupted does not count when it has asked again."""
    tape, trouble, calls = Tape(), Trouble({"source"}), Counter()

    def begin():
        return [NextTask("source"), NextTask("last", join=True)]

    def source():
        for n in range(3):
            if n == 2:
                trouble.strikes("source")
            yield NextTask("child", {"n": n}, spawn_another=True)

    def child(n):
        calls[n] += 1
        return n

    def last():
        trouble.strikes("last")
        return "last"

    functions = begin, source, child, last
    with flow_with(tape, *functions, executor=kind) as flow, pytest.raises(Broken):
        flow.run("begin", run_id="r")
    trouble.add("last")
    trouble.discard("source")
    with flow_with(tape, *functions, executor=kind) as flow, pytest.raises(Broken, match="last"):
        flow.resume("r")
    trouble.clear()
    with flow_with(tape, *functions, executor=kind) as flow:
        results = flow.resume("r")
    assert normal(results) == {"child": ["0", "1", "2"], "last": ["'last'"]}
    assert calls == {0: 1, 1: 1, 2: 1}


def test_a_generator_that_was_tried_again_is_known_with_all_its_children():
    """Children of each attempt of a generator that has retries are task runs of their own, and known as such."""
    tape, trouble, calls = Tape(), Trouble({"last"}), []

    def begin():
        return [NextTask("source"), NextTask("last", join=True)]

    def source():
        for n in range(3):
            if n == 2 and current_task().attempt == 1:
                raise Broken
            yield NextTask("child", {"n": n}, spawn_another=True)

    def child(n):
        calls.append(current_task().key)
        return n

    def last():
        trouble.strikes("last")
        return "last"

    def build(store):
        flow = flow_with(store, begin, child, last)
        flow.add_task("source", source, retries=1)
        return flow

    with pytest.raises(Broken, match="last"):
        build(tape).run("begin", run_id="r")
    assert len(calls) == len(set(calls)) == 5
    assert len(set(finished(tape))) == len(finished(tape)) == 7
    trouble.clear()
    results = build(tape).resume("r")
    assert normal(results) == {"child": ["0", "0", "1", "1", "2"], "last": ["'last'"]}
    assert len(calls) == 5


# ---- submitted calls ----------------------------------------------------------------------------


class Calls:
    """Functions that count how often they are called."""

    def __init__(self) -> None:
        self.count: Counter[Any] = Counter()

    def double(self, x):
        self.count["double", x] += 1
        return 2 * x

    def total(self, numbers, more=0):
        self.count["total"] += 1
        return sum(numbers) + more


@contextmanager
def session_of(store: Any, executor: Any = "inline") -> Iterator[Any]:
    """Open the session of a new flow."""
    with Flow(executor, store=store, name="test") as flow, flow.session("r") as session:
        yield session


def test_calls_are_matched_by_their_position(reopen):
    """A session that is opened again calls what had finished no more, and goes on with the rest."""
    calls = Calls()
    with pytest.raises(Broken), session_of(reopen()) as session:
        assert [session.submit(calls.double, n).result() for n in range(3)] == [0, 2, 4]
        raise Broken
    with session_of(reopen()) as session:
        assert [session.submit(calls.double, n).result() for n in range(5)] == [0, 2, 4, 6, 8]
    with session_of(reopen()) as session:
        handles = [session.submit(calls.double, n) for n in range(5)]
    assert [handle.result() for handle in handles] == [0, 2, 4, 6, 8]
    assert calls.count == {("double", n): 1 for n in range(5)}


def test_handles_are_matched_by_what_they_stand_for(executor):
    """Handles among arguments, also in a list, match those of the session before."""
    tape, calls = Tape(), Calls()

    def use(session, **more):
        handles = [session.submit(calls.double, n) for n in range(3)]
        return session.submit(calls.total, handles, more=session.submit(calls.total, [1]), **more).result()

    with session_of(tape, executor) as session:
        assert use(session) == 7
    assert calls.count["total"] == 2
    for at in range(1, tape.length()):
        calls.count.clear()
        store = tape.cut(at)
        had = len(finished(store))
        with session_of(store, executor) as session:
            assert use(session) == 7
        assert calls.count.total() == 5 - had
        assert len(finished(store)) == len(set(finished(store))) == 5


@pytest.mark.parametrize(
    ("other", "says"),
    [("arguments", "with other arguments"), ("task", "a call of double"), ("keyword", "with other arg")],
)
def test_another_call_in_the_place_of_one_that_had_finished_is_refused(other, says):
    """Other arguments, or another task, are a CheckpointError that says what to do; the right calls go on after it."""
    store, calls = MemoryStore(), Calls()
    with pytest.raises(Broken), session_of(store) as session:
        session.submit(calls.double, 1).result()
        raise Broken
    with pytest.raises(CheckpointError, match=rf"{says}.*call_key"), session_of(store) as session:
        if other == "arguments":
            session.submit(calls.double, 2)
        elif other == "keyword":
            session.submit(calls.double, x=1)
        else:
            session.submit(calls.total, [1])
    with session_of(store) as session:
        assert session.submit(calls.double, 1).result() == 2
        assert session.submit(calls.double, 2).result() == 4
    assert calls.count == {("double", 1): 1, ("double", 2): 1}


def test_a_call_that_had_not_finished_may_be_another_one_now():
    """Only what had finished binds."""
    store, calls = MemoryStore(), Calls()

    def fails():
        raise Broken

    with pytest.raises(Broken), session_of(store) as session:
        session.submit(fails).result()
    with session_of(store) as session:
        assert session.submit(calls.double, 1).result() == 2


def test_calls_are_matched_by_their_keys(reopen):
    """With call_key the order does not matter, nor do the arguments."""
    calls = Calls()
    with pytest.raises(Broken), session_of(reopen()) as session:
        for n in range(3):
            session.submit(calls.double, n, call_key=f"n{n}").result()
        raise Broken
    with session_of(reopen()) as session:
        more = session.submit(calls.double, 7)
        assert [session.submit(calls.double, n, call_key=f"n{n}").result() for n in (2, 3, 0, 1)] == [4, 6, 0, 2]
        assert more.result() == 14
    assert calls.count == {("double", n): 1 for n in (0, 1, 2, 3, 7)}


def test_a_call_key_is_for_a_flow_with_a_store():
    """Without a store a call_key would do nothing, so it is refused."""
    with Flow("inline") as flow, pytest.raises(ValueError, match="no store"):
        flow.submit(abs, 1, call_key="one")


def test_attempts_of_calls_go_on():
    """A call that waited for its next attempt goes on with that."""
    tape, attempts = Tape(), []

    @task(retries=2)
    def flaky():
        attempts.append(current_task().attempt)
        if current_task().attempt < 3:
            raise Broken
        return "done"

    with session_of(tape) as session:
        session.submit(flaky)
    for store in tape.cuts():
        tried, over = kinds(store)["retry"], bool(finished(store))
        attempts.clear()
        with session_of(store) as session:
            assert session.submit(flaky).result() == "done"
        assert attempts == ([] if over else list(range(tried + 1, 4)))


def test_calls_inside_of_tasks_are_matched(executor):
    """A task that had not finished runs again; the calls that it had submitted and that had finished do not."""
    tape, calls, trouble, runs = Tape(), Calls(), Trouble({"outer"}), []

    def outer():
        runs.append(1)
        handles = [flow.submit(calls.double, n) for n in range(3)]
        results = [handle.result() for handle in handles]
        trouble.strikes("outer")
        return sum(results)

    with flow_with(tape, outer, executor=executor) as flow, pytest.raises(Broken):
        flow.run("outer", run_id="r")
    trouble.clear()
    with flow_with(tape, outer, executor=executor) as flow:
        assert flow.resume("r")["outer"] == 6
    assert calls.count == {("double", n): 1 for n in range(3)}
    assert len(runs) == 2


def test_a_call_that_nobody_waited_for_is_not_lost(executor):
    """A call that a task has submitted and left alone runs after a resume, if it had not finished."""
    tape, calls, trouble = Tape(), Counter(), Trouble({"later"})

    def later():
        calls["later"] += 1
        trouble.strikes("later")
        return "later"

    def outer():
        calls["outer"] += 1
        flow.submit(later)
        return "outer"

    with flow_with(tape, outer, executor=executor) as flow, pytest.raises(Broken):
        flow.run("outer", run_id="r")
    trouble.clear()
    with flow_with(tape, outer, executor=executor) as flow:
        assert normal(flow.resume("r")) == {"outer": ["'outer'"], "later": ["'later'"]}
    assert calls["later"] == 2


def test_who_has_submitted_a_call_that_failed_runs_again(executor):
    """It has not finished, since its call has to be submitted once more; the report says that it had succeeded."""
    tape, calls, trouble = Tape(), Counter(), Trouble({"later"})

    def later():
        calls["later"] += 1
        trouble.strikes("later")

    def outer():
        calls["outer"] += 1
        flow.submit(later)
        return "outer"

    def after(outer):
        calls["after"] += 1

    for _ in range(2):
        with flow_with(tape, outer, executor=executor, on_error="continue") as flow:
            flow.add_task("after", after, depends_on=["outer"])
            flow.run("outer", run_id="r") if not calls else flow.resume("r")
            live, stored = flow.report(), Flow(store=tape).report("r")
        for report in (live, stored):
            assert [(report.tasks["outer"].status, report.tasks["outer"].runs)] == [(Status.SUCCESS, 1)]
            assert report.tasks["outer"].result == "outer"
            assert report.tasks["later"].status is (Status.SUCCESS if len(trouble) == 0 else Status.FAILED)
        trouble.clear()
    assert calls == {"outer": 2, "later": 2, "after": 1}


def in_process(source: str, *, returns: int = 0, **env: str) -> str:
    """Run a program in a fresh interpreter; return what it printed."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(source)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=WATCHDOG, env={**os.environ, **env}, check=False
    )
    assert done.returncode == returns, done.stderr
    return done.stdout


def test_calls_are_matched_in_another_process(tmp_path):
    """What a process had called, also with sets and keywords, the next one does not call."""
    source = f"""
        from millstream import Flow

        def first(names, **more):
            print("called")
            return sorted(names)

        with Flow("inline", store={str(tmp_path / "runs.db")!r}, name="test").session("r") as session:
            one = session.submit(first, {{"alpha", "beta", "gamma", "delta"}}, of={{1: (2, frozenset("abcdef"))}})
            print(one.result(), session.submit(first, one).result())
    """
    expected = "['alpha', 'beta', 'delta', 'gamma'] ['alpha', 'beta', 'delta', 'gamma']"
    assert in_process(source, PYTHONHASHSEED="1").split("\n")[:-1] == ["called", "called", expected]
    assert in_process(source, PYTHONHASHSEED="2").split("\n")[:-1] == [expected]


def test_a_session_and_a_run_are_not_taken_for_each_other():
    """A session is opened again, and a run is resumed; the error says which."""
    store, calls = MemoryStore(), Calls()
    with session_of(store) as session:
        session.submit(calls.double, 1)
    flow = flow_with(store, calls.double)
    with pytest.raises(CheckpointError, match=r"is a session: open it again by flow.session\(run_id='r'\)"):
        flow.resume("r")
    flow.run("double", {"x": 1}, run_id="run")
    with pytest.raises(CheckpointError, match=r"no session: go on with it by flow.resume\('run'\)"):
        flow.session("run")
    assert [(run.owner, run.status) for run in flow.runs()] == [(None, Status.SUCCESS)] * 2
    assert len(flow.resume("run")) == 1


@pytest.mark.parametrize("where", ["args", "kwargs"])
def test_arguments_that_cannot_be_kept_are_refused(where):
    """A call with arguments that have no text is refused where it is submitted, with the path to the culprit."""
    store = MemoryStore()
    bad = {"rows": [1, object()]}
    with session_of(store) as session:
        with pytest.raises(
            CheckpointError, match=r"arguments of a call of lambda in run r.*\['rows'\]\[1\] is of type object"
        ):
            session.submit(lambda x=0: x, bad) if where == "args" else session.submit(lambda x=0: x, x=bad)
        assert session.submit(abs, -1).result() == 1


# ---- asynchronous runs ----------------------------------------------------------------------------


def test_arun_goes_on():
    """A run goes on in the running loop."""
    tape = Tape()
    whole = play("async_generator", "asyncio", tape)

    async def rest(store):
        with flow_of("async_generator", "thread", store) as flow:
            return await flow.arun(resume="r")

    for store in tape.cuts()[::2]:
        assert normal(asyncio.run(rest(store))) == whole.results


def test_astream_goes_on():
    """An asynchronous stream of the rest has the rest alone."""
    tape = Tape()
    play("chain", "inline", tape)

    async def rest(store):
        with flow_of("chain", "thread", store) as flow:
            return [chunk.value async for chunk in flow.astream(resume="r")]

    for had, store in enumerate(tape.cuts()):
        assert asyncio.run(rest(store)) == list(range(had, 7))


# ---- what may be resumed, and how -----------------------------------------------------------------


def test_a_run_that_has_ended_gives_its_results_again(reopen, executor):
    """A resume of a run that has ended well calls nothing, as often as it is asked for."""
    calls: list[int] = []

    def begin():
        return [*(NextTask("part", {"n": n}, spawn_another=True) for n in range(3)), NextTask("end", join=True)]

    def part(n):
        calls.append(n)
        return (n, {n})

    def end(upstream):
        calls.append(-1)
        return upstream

    with flow_with(reopen(), begin, part, end, executor=executor) as flow:
        results = flow.run("begin", run_id="r")
    calls.clear()
    for _ in range(3):
        with flow_with(reopen(), begin, part, end, executor=executor) as flow:
            assert flow.resume("r") == results == {"end": [(n, {n}) for n in range(3)]}
            assert flow.report("r").status is Status.SUCCESS
            assert flow.runs()[0].owner is None
    assert not calls


def test_a_failed_run_goes_on(reopen, executor):
    """What had failed runs again, with what came after it."""
    trouble, calls = Trouble({"second"}), []

    def first():
        calls.append("first")
        return NextTask("second")

    def second():
        calls.append("second")
        trouble.strikes("second")
        return NextTask("third")

    def third():
        calls.append("third")
        return "done"

    for _ in range(2):
        with flow_with(reopen(), first, second, third, executor=executor) as flow, pytest.raises(Broken):
            flow.run("first", run_id="r") if not calls else flow.resume("r")
        with flow_with(reopen(), first, second, third) as flow:
            assert flow.runs()[0].status is Status.FAILED
    trouble.clear()
    with flow_with(reopen(), first, second, third, executor=executor) as flow:
        assert flow.resume("r") == {"third": "done"}
        assert flow.runs()[0].status is Status.SUCCESS
    assert calls == ["first", "second", "second", "second", "third"]


def test_cancelled_and_timed_out_runs_go_on(reopen):
    """A run that was cancelled, or whose time was up, or whose task's time was up, can be resumed."""
    ended: list[Any] = []

    def first():
        ended.append("first")
        return NextTask("second")

    def second(ctx):
        return ctx.get("go", external=True)

    def flow_on(**options):
        flow = flow_with(reopen(), first, executor="thread")
        flow.add_task("second", second, **options)
        return flow

    with flow_on() as flow:
        run = flow.start("first", run_id="cancelled")
        until(lambda: ended)
        run.cancel()
        with pytest.raises(RunCancelledError):
            run.result(WATCHDOG)
        with pytest.raises(RunTimeoutError):
            flow.run("first", run_id="late", timeout=0.05)
    with flow_on(timeout=0.05) as flow, pytest.raises(TaskTimeoutError):
        flow.run("first", run_id="task")
    with flow_on() as flow:
        assert [str(run.status) for run in flow.runs()] == ["CANCELLED", "FAILED", "FAILED"]
        for run in flow.runs():
            assert flow.resume(run.id, inputs={"go": run.id}, timeout=WATCHDOG) == {"second": run.id}
        assert [str(run.status) for run in flow.runs()] == ["SUCCESS"] * 3
    assert len(ended) == 3


@pytest.mark.parametrize("how", ["run", "stream"])
@pytest.mark.parametrize("kind", ["thread", "asyncio"])
def test_a_run_that_ctrl_c_has_ended_goes_on(how, kind, tmp_path):
    """Ctrl-C ends the run in good order, and the next process goes on with it."""
    path = str(tmp_path / "runs.db")
    source = f"""
        import sys, threading, time
        from millstream import Flow, NextTask

        def main_thread_rests():  # Ctrl-C is for the wait, not for the start
            main, last, same = threading.main_thread().ident, None, 0
            while same < 5:
                frame = sys._current_frames()[main]
                last, same = (id(frame), frame.f_lasti), same + 1 if last == (id(frame), frame.f_lasti) else 0
                time.sleep(0.01)

        with Flow({kind!r}, store={path!r}, name="test") as flow:

            @flow.task
            def first():
                return NextTask("second")

            @flow.task
            def second(ctx):
                main_thread_rests()
                print("waiting", flush=True)
                return ctx.get("go", external=True) + 1

            try:
                if {how!r} == "run":
                    flow.run("first", run_id="r")
                else:
                    for chunk in flow.stream("first", run_id="r"):
                        print(chunk.task_id, flush=True)
            except KeyboardInterrupt:
                print(flow.runs()[0].status, flow.runs()[0].owner)
    """
    if kind == "asyncio":
        source = source.replace("def second", "async def second").replace("ctx.get(", "await ctx.aget(")
    command = [sys.executable, "-c", textwrap.dedent(source)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "waiting" not in (line := process.stdout.readline()):
            assert line, "it has ended"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=WATCHDOG)[0].splitlines()[-1] == "CANCELLED None"
    assert process.returncode == 0

    def first():
        raise AssertionError("it had finished")

    def second(ctx):
        return ctx.get("go") + 1

    with flow_with(path, first, second) as flow:
        assert flow.resume("r", inputs={"go": 1}, on_code_change="ignore") == {"second": 2}


def test_what_is_not_there_cannot_go_on(reopen):
    """An unknown id is an UnknownRunError, which names the store and is a CheckpointError."""
    store = reopen()
    flow = flow_with(store, load)
    for call in (flow.resume, flow.report, flow.forget, lambda run_id: flow.resume(run_id, from_tasks=["load"])):
        with pytest.raises(UnknownRunError, match="Run nope is not in") as raised:
            call("nope")
        assert isinstance(raised.value, CheckpointError | LookupError)
    with pytest.raises(UnknownRunError):
        flow.run(resume="nope")
    assert flow.runs() == []


def test_without_a_store_there_is_nothing_to_go_on_with():
    """The error says how to get a store."""
    flow = Flow("inline", name="test")
    flow.add_task("load", load)
    flow.run()
    for call in (
        lambda: flow.resume("r"),
        lambda: flow.run(resume="r"),
        lambda: flow.stream(resume="r"),
        lambda: flow.start(resume="r"),
        lambda: flow.resume("r", from_tasks=["load"]),
        flow.runs,
        lambda: flow.forget("r"),
    ):
        with pytest.raises(CheckpointError, match=r"Flow test has no store: write Flow\(store='runs.db'\)"):
            call()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"start_task_id": "load"}, "the task to start with"),
        ({"targets": ["load"]}, "targets"),
        ({"context": {"a": 1}}, "context"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"run_id": "other"}, "run_id"),
    ],
)
def test_how_a_run_was_started_cannot_be_said_again(options, named):
    """A resume takes no start, targets, context, metadata or run_id: the run has them."""
    flow = flow_with(MemoryStore(), load)
    flow.run(run_id="r")
    for how in (flow.run, flow.stream, flow.start):
        with pytest.raises(ValueError, match=f"goes on as it was started: leave {named} out"):
            how(resume="r", **options)
    assert flow.runs()[0].owner is None
    assert flow.resume("r") == {"load": [1, 2, 3]}


@pytest.mark.parametrize("run_id", [1, b"r", ["r"]])
def test_a_run_is_named_by_a_string(run_id):
    """Anything else is a TypeError."""
    with pytest.raises(TypeError, match="takes the id of a run"):
        flow_with(MemoryStore(), load).resume(run_id)


def test_the_id_of_a_run_that_is_there_is_refused(reopen):
    """``run(run_id=...)`` that the store holds says to resume it, and changes nothing."""
    with flow_with(reopen(), load) as flow:
        flow.run(run_id="r")
    with flow_with(reopen(), load) as flow:
        with pytest.raises(CheckpointError, match=r"Run r is in .* already: resume it"):
            flow.run(run_id="r")
        assert [(run.id, run.status) for run in flow.runs()] == [("r", Status.SUCCESS)]
        flow.run(run_id="s")
        assert len(flow.runs()) == 2


def test_a_run_under_way_has_an_owner(reopen):
    """Neither resume nor forget touch a run that is under way; from_tasks may read it."""
    store = reopen()

    def waits(ctx):
        return ctx.get("go", external=True)

    with flow_with(store, waits, executor="thread") as flow:
        run = flow.start(run_id="r")
        until(lambda: "waiting for" in repr(run))
        assert flow.runs()[0].owner is not None
        for call in (flow.resume, flow.forget):
            with pytest.raises(RunOwnedError, match=r"Run r belongs to .*process"):
                call("r")
        run.context.set("go", 5)
        assert run.result(WATCHDOG) == {"waits": 5}
        assert flow.runs()[0].owner is None
        flow.forget("r")
        assert flow.runs() == []


HOLDER = """
    import sys
    from millstream import Flow, JSONFileStore, SQLiteStore

    path, how = {path!r}, {how!r}
    store = JSONFileStore(path) if path.endswith("json") else SQLiteStore(path)

    def waits(ctx):
        print("waiting", flush=True)
        return ctx.get("go", external=True)

    flow = Flow("thread", store=store, name="test")
    flow.add_task("waits", waits)
    flow.run(run_id="r") if how == "run" else flow.resume("r")
"""


@pytest.mark.parametrize("kind", ["sqlite-each", "json-group"])
def test_a_run_of_another_process_is_its_own(kind, tmp_path):
    """A run under way in another process is refused, and says who has it; a dead owner is none."""

    def waits(ctx):
        return ctx.get("go", external=True)

    def holder(how):
        path = str(tmp_path / f"runs.{kind.partition('-')[0]}")
        command = [sys.executable, "-c", textwrap.dedent(HOLDER.format(path=path, how=how))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n", process.communicate()[1]
        return process

    for how in ("run", "resume"):
        with closing(stored(kind, tmp_path)) as store, flow_with(store, waits) as flow, holder(how) as process:
            owner = f"process {process.pid} on " if kind.startswith("sqlite") else "another process"
            for call in (flow.resume, flow.forget):
                with pytest.raises(RunOwnedError, match=owner):
                    call("r")
            head = flow.runs()[0]
            assert (head.status, str(head.owner)[: len(owner)]) == (Status.RUNNING, owner)
            process.kill()
            process.communicate(timeout=WATCHDOG)
            assert flow.runs()[0].owner is None
    with closing(stored(kind, tmp_path)) as store, flow_with(store, waits) as flow:
        assert flow.resume("r", inputs={"go": 1}, on_code_change="ignore") == {"waits": 1}


def test_the_second_to_resume_a_run_is_told_who_was_first(tmp_path):
    """Of two processes that resume one run, the second is told which process has it."""
    path = str(tmp_path / "runs.db")
    tape = Tape()

    def waits(ctx):
        return ctx.get("go", external=True)

    with flow_with(tape, waits, executor="thread") as flow:
        run = flow.start(run_id="r")
        until(lambda: "waiting for" in repr(run))
        with closing(SQLiteStore(path)) as store:
            tape.cut(1, into=store)
        run.cancel()
    with flow_with(path, waits, executor="thread") as flow:
        run = flow.start(resume="r")
        source = f"""
            from millstream import Flow, RunOwnedError

            flow = Flow("inline", store={path!r})
            flow.add_task("waits", lambda ctx: 1)
            try:
                flow.resume("r", on_code_change="ignore")
            except RunOwnedError as error:
                print(error.run_id, error.owner)
        """
        assert in_process(source).startswith(f"r process {os.getpid()} on ")
        run.context.set("go", 2)
        assert run.result(WATCHDOG) == {"waits": 2}


# ---- the context ----------------------------------------------------------------------------------


def test_the_context_comes_back(reopen, executor):
    """What was set, updated, appended and deleted is there again, and what the run was given."""
    trouble, seen = Trouble({"last"}), []

    def first(ctx):
        ctx["set"] = {"tuple": (1, 2), 3: {4}, "bytes": b"\x00\xff"}
        ctx["gone"] = 1
        ctx.append("list", (1,))
        ctx.update("count", lambda n: n + 1, 41)
        return [NextTask("last")]

    def last(ctx):
        if "gone" in ctx:
            del ctx["gone"]
        seen.append(ctx.to_dict())
        trouble.strikes("last")
        return dict(ctx.metadata), ctx.deps

    options = {"context": {"given": {1: "one"}}, "metadata": {"who": ("me", 1)}}
    with flow_with(reopen(), first, last, executor=executor) as flow, pytest.raises(Broken):
        flow.run("first", {"number": 5}, run_id="r", deps="old", **options)
    trouble.clear()
    with flow_with(reopen(), first, last, executor=executor) as flow:
        assert flow.resume("r", deps="new") == {"last": ({"who": ("me", 1)}, "new")}
        assert flow.report("r").metadata == {"who": ("me", 1)}
    assert seen[0] == seen[1]
    assert seen[0] == {
        "set": {"tuple": (1, 2), 3: {4}, "bytes": b"\x00\xff"},
        "list": [(1,)],
        "count": 42,
        "given": {1: "one"},
        "number": 5,
        "first": None,
    }


def test_deps_are_not_stored():
    """A run that is resumed without deps has none."""
    trouble, store = Trouble({"first"}), MemoryStore()

    def first(ctx):
        trouble.strikes("first")
        return ctx.deps

    flow = flow_with(store, first)
    with pytest.raises(Broken):
        flow.run(run_id="r", deps=object())
    trouble.clear()
    assert flow.resume("r") == {"first": None}


def test_inputs_of_a_resume_are_values_for_the_context():
    """They are set before anything runs, and are there at the next resume, too."""
    trouble, store = Trouble({"first", "second"}), MemoryStore()

    def first(ctx):
        trouble.strikes("first")
        return [NextTask("second")]

    def second(ctx):
        trouble.strikes("second")
        return ctx.get("number"), ctx.get("more", None)

    flow = flow_with(store, first, second)
    with pytest.raises(Broken):
        flow.run("first", {"number": 1}, run_id="r")
    trouble.discard("first")
    with pytest.raises(Broken):
        flow.resume("r", inputs={"number": 2, "more": (3,)})
    trouble.clear()
    assert flow.resume("r") == {"second": (2, (3,))}
    with pytest.raises(CheckpointError, match=r"Run r cannot be kept: its inputs\['bad'\]\[0\] is of type object"):
        flow.resume("r", inputs={"bad": [object()]})
    assert flow.runs()[0].owner is None
    assert flow.resume("r") == {"second": (2, (3,))}


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("sync", ["each", "group"])
def test_appends_are_exact(read, sync, executor):
    """What was appended by a task run that had not finished is not there twice, also when others have read it."""
    tape = Tape(sync=sync)
    both = threading.Event() if executor != "inline" else None
    workers = {"executor": executor, "max_workers": None if executor == "inline" else 2}

    def begin():
        return [NextTask("one"), NextTask("other"), NextTask("end", join=True)]

    def one(ctx):
        ctx.append("list", "one")
        ctx["there"] = True
        if both is not None:
            wait_for(both)
        ctx.append("list", "one again")

    def other(ctx):
        if read:
            ctx["saw"] = ctx.get("there") and list(ctx.get("list"))
        ctx.append("list", "other")
        if both is not None:
            both.set()

    def end(ctx):
        ctx.append("list", "end")
        return sorted(ctx.get("list"))

    functions = begin, one, other, end
    with flow_with(tape, *functions, **workers) as flow:
        want = flow.run("begin", run_id="r")
    assert want == {"end": ["end", "one", "one again", "other"]}
    for at in range(1, tape.length()):
        store = tape.cut(at)
        with flow_with(store, *functions, **workers) as flow:
            assert flow.resume("r") == want
        for further in range(at + 1, store.length(), 2):
            with flow_with(store.cut(further), *functions, **workers) as flow:
                assert flow.resume("r") == want


def test_appends_of_an_attempt_that_failed_are_there():
    """An attempt that had failed is not made again, so what it had appended stays, as in an undisturbed run."""
    tape = Tape()

    def flaky(ctx):
        attempt = current_task().attempt
        ctx.append("list", attempt)
        if attempt < 3:
            raise Broken
        return list(ctx.get("list"))

    def build(store):
        flow = Flow("inline", store=store, name="test")
        flow.add_task("flaky", flaky, retries=2)
        return flow

    assert build(tape).run("flaky", run_id="r") == {"flaky": [1, 2, 3]}
    for at in range(1, tape.length()):
        store = tape.cut(at)
        assert build(store).resume("r") == {"flaky": [1, 2, 3]}
        for further in range(at + 1, store.length()):
            assert build(store.cut(further)).resume("r") == {"flaky": [1, 2, 3]}


def test_a_list_that_was_set_anew_is_not_touched():
    """Only what was appended is taken back: not what a task had set in place of the list."""
    tape, trouble = Tape(), Trouble({"one"})

    def one(ctx):
        ctx.append("list", "first")
        ctx["list"] = ["new"]
        ctx.append("list", "second")
        trouble.strikes("one")
        return ctx.get("list")

    flow = flow_with(tape, one)
    with pytest.raises(Broken):
        flow.run(run_id="r")
    trouble.clear()
    assert flow.resume("r") == {"one": ["new", "second"]}


def test_what_a_completion_has_read_is_there_after_it():
    """With a completion everything is committed that it may have read, also from a task run that goes on."""
    tape, hold = Tape(), threading.Event()

    def begin():
        return [NextTask("writer"), NextTask("reader")]

    def writer(ctx):
        ctx["value"] = (1, 2)
        wait_for(hold)

    def reader(ctx):
        return ctx.get("value")

    with flow_with(tape, begin, writer, reader, executor="thread", max_workers=2) as flow:
        run = flow.start("begin", run_id="r")
        until(lambda: len(finished(tape)) == 2)
        store = tape.cut(tape.length())
        hold.set()
        run.result(WATCHDOG)
    flow = flow_with(store, begin, lambda ctx: None)
    flow = Flow("inline", store=store, name="test")
    flow.add_task("begin", begin)
    flow.add_task("writer", lambda ctx: ctx.get("value", "lost"))
    flow.add_task("reader", reader)
    assert flow.resume("r", on_code_change="ignore") == {"reader": (1, 2), "writer": (1, 2)}


@pytest.mark.parametrize("kind", STORES)
def test_what_is_set_from_outside_is_there_at_once(kind, tmp_path):
    """A value that ``run.context.set`` has set is there after a kill -9 right after it has returned."""
    path = str(tmp_path / f"runs.{kind.partition('-')[0]}")
    source = f"""
        import os, signal
        from millstream import Flow
        from tests.durable_tasks import open_store

        def waits(ctx):
            return ctx.get("go", external=True), ctx.get("never", external=True)

        flow = Flow("thread", store=open_store({path!r}, {kind.partition("-")[2]!r}), name="test")
        flow.add_task("waits", waits)
        run = flow.start(run_id="r")
        run.context.set("go", ("here", 1))
        run.context.append("list", b"too")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    in_process(source, returns=-signal.SIGKILL)

    def waits(ctx):
        return ctx.get("go"), ctx.get("never"), ctx.get("list")

    with closing(stored(kind, tmp_path)) as store, flow_with(store, waits) as flow:
        results = flow.resume("r", inputs={"never": None}, on_code_change="ignore")
    assert results == {"waits": (("here", 1), None, [b"too"])}


@pytest.mark.parametrize("kind", ["thread", "asyncio"])
def test_a_run_that_waits_for_a_person_is_left_and_resumed(kind, reopen):
    """A task waits for a value from outside; the flow is closed; the run goes on with it as an input."""
    asked: list[str] = []

    def ask():
        asked.append("ask")
        return NextTask("decide")

    def decide(ctx):
        asked.append("decide")
        return ctx.get("approved", external=True)

    async def adecide(ctx: Context):
        asked.append("decide")
        return await ctx.aget("approved", external=True)

    def build():
        flow = flow_with(reopen(), ask, executor=kind)
        flow.add_task("decide", adecide if kind == "asyncio" else decide)
        return flow

    flow = build()
    run = flow.start("ask", run_id="r")
    until(lambda: "decide" in asked)
    flow.close()
    assert run.wait(WATCHDOG)
    with build() as flow:
        assert flow.runs()[0].status is Status.CANCELLED
        assert flow.resume("r", inputs={"approved": {"by": ("me",)}}) == {"decide": {"by": ("me",)}}
    assert asked == ["ask", "decide", "decide"]


def test_states_come_back():
    """A State that was put in the context holds its value again."""
    trouble, store = Trouble({"use"}), MemoryStore()

    def begin(ctx):
        state = State.empty()
        ctx.set_state("state", state)
        state.set_value((1, 2))
        return NextTask("use")

    def use(ctx):
        trouble.strikes("use")
        state = State.empty()
        ctx.set_state("state", state)
        return state.get_value()

    flow = flow_with(store, begin, use)
    with pytest.raises(Broken):
        flow.run("begin", run_id="r")
    trouble.clear()
    assert flow.resume("r") == {"use": (1, 2)}


@pytest.mark.parametrize("how", ["set", "item", "append", "update", "state"])
def test_a_value_that_cannot_be_kept_is_refused_in_the_task(how, executor):
    """It raises at the very line that sets it, naming the key and the path, and the context stays as it was."""
    bad = {"rows": [1, {"x": object()}]}
    ways = {
        "set": lambda ctx: ctx.set("key", bad),
        "item": lambda ctx: ctx.__setitem__("key", bad),
        "append": lambda ctx: ctx.append("key", bad),
        "update": lambda ctx: ctx.update("key", lambda old: bad, 0),
        "state": lambda ctx: ctx.set_state("key", State(bad)),
    }

    def sets(ctx):
        with pytest.raises(CheckpointError) as raised:
            ways[how](ctx)
        return str(raised.value), "key" in ctx

    store = MemoryStore()
    with flow_with(store, sets, executor=executor) as flow:
        said, there = flow.run(run_id="r")["sets"]
        assert flow.resume("r") == {"sets": (said, there)}
    assert said.startswith("The value of 'key' in run r cannot be kept: it['rows'][1]['x'] is of type object, which ")
    assert not there


def sets_in_a_worker(ctx):
    ctx["good"] = (1,)
    ctx["key"] = {"rows": [1, {2}, sets_in_a_worker]}


def test_a_value_that_cannot_be_kept_is_refused_in_a_worker_process(processes):
    """The error is raised there as well, and fails the task."""
    store = MemoryStore()
    with flow_with(store, sets_in_a_worker, executor=processes) as flow:
        with pytest.raises(CheckpointError, match=r"The value of 'key' in run r cannot be kept: it\['rows'\]\[2\]"):
            flow.run(run_id="r")
        assert kinds(store)["set"] == 1


@pytest.mark.parametrize("what", ["inputs", "context", "metadata"])
def test_a_run_that_cannot_be_kept_does_not_begin(what):
    """Inputs, a context or metadata without a text are refused before anything runs; no run is left behind."""
    flow = flow_with(MemoryStore(), load)
    with pytest.raises(CheckpointError, match=rf"Run r cannot be kept: its {what}\['a'\]\[0\] is of type object"):
        flow.run("load", run_id="r", **{what: {"a": [object()]}})
    assert flow.runs() == []
    assert not engine_threads("millstream-journal")
    flow.run(run_id="r")


def test_a_context_that_runs_share_is_kept_for_each():
    """A context that is given, or that a flow shares among its runs, is there when one goes on elsewhere."""
    trouble, store = Trouble({"reads"}), MemoryStore()

    def reads(ctx):
        ctx.append("list", ctx.get("mark"))
        trouble.strikes("reads")
        return sorted(ctx.get("list"))

    shared = Context({"mark": "shared", "list": [(0,)]})
    with pytest.raises(Broken):
        flow_with(store, reads, context=shared).run(run_id="r")
    given = Context({"mark": "given", "list": []}, metadata={"of": "given"})
    with pytest.raises(Broken):
        flow_with(store, reads).run(run_id="s", context=given)
    trouble.clear()
    flow = flow_with(store, reads)
    assert flow.resume("s") == {"reads": ["given"]}
    assert flow.report("s").metadata == {"of": "given"}
    with pytest.raises(TypeError):
        flow.resume("r")  # a tuple and a string have no order
    assert Counter(map(str, flow.context.get("list"))) == {"(0,)": 1, "shared": 1}


# ---- R45 to R49 -------------------------------------------------------------------------------------


def test_r45_nothing_that_had_finished_is_called_again(tmp_path):
    """After a kill -9 between two tasks, and after a clean end; one entry says that a task run has finished."""
    path, log = tmp_path / "runs.db", tmp_path / "log"
    with program("joins", str(path), "each", DURABLE_LOG=log, DURABLE_DIE=6) as killed:
        killed.communicate(timeout=WATCHDOG)
    for _ in range(2):
        with closing(SQLiteStore(path)) as store:
            had = finished(store)
            go_on("joins", "inline", store)
            assert not set(had) & {call.split()[1] for call in CALLS}
            assert len(CALLS) == 10 - len(had)
            assert Counter(finished(store)) == dict.fromkeys(finished(store), 1)
            assert len(finished(store)) == 10
            assert store.run("r").status is Status.SUCCESS
            with flow_of("joins", "inline", store) as flow:
                assert {row.status for row in flow.report("r").tasks.values()} == {Status.SUCCESS}
    assert not CALLS


@pytest.mark.parametrize("bad", ["output", "inputs", "yielded", "pulled", "returned by a worker"])
def test_r46_what_cannot_be_kept_fails_its_task_run(bad, reopen, processes):
    """The error names task and path; store, report and handle agree, and no row stays RUNNING."""
    store = reopen()
    executor: Any = processes if bad == "returned by a worker" else "thread"
    with Flow(executor, store=store, name="test", on_error="continue") as flow:
        flow.add_task("good", good)
        flow.add_task("bad", BAD[bad])
        flow.add_task("after", after_bad, depends_on=["bad"])
        flow.run(run_id="r")
        live = flow.report("r")
    with flow_with(reopen(), good) as flow:
        kept = flow.report("r")
        assert flow.runs()[0].status is Status.FAILED
    for report in (live, kept):
        row = report.tasks["bad"]
        assert (row.status, row.runs, row.error.type) == (Status.FAILED, 1, "millstream.errors.CheckpointError")
        assert re.match(r"Task run bad of run r cannot be kept: .*\['rows'\]\[1\] is of type ", row.error.message)
        assert report.tasks["good"].status is Status.SUCCESS
        assert report.tasks["after"].status is Status.FAILED
    assert told(kept)[2:] == told(live)[2:]


def good():
    return "good"


def after_bad(bad):
    return bad


def bad_output():
    return {"rows": [1, good]}


def bad_inputs():
    return NextTask("good", {"rows": [1, object()]})


def bad_yielded():
    yield NextTask("good", {"rows": [1, object()]})


def bad_pulled():
    return TaskOutput(1, iter([NextTask("good", {"rows": [1, object()]})]))


BAD = {
    "output": bad_output,
    "inputs": bad_inputs,
    "yielded": bad_yielded,
    "pulled": bad_pulled,
    "returned by a worker": bad_output,
}


def test_r46_a_handle_says_so_too(executor):
    """The handle of a submitted call whose result cannot be kept raises the CheckpointError."""
    store = MemoryStore()
    with Flow(executor, store=store, name="test") as flow, flow.session("r") as session:
        handle = session.submit(bad_output)
        with pytest.raises(CheckpointError, match=r"Task run bad_output of run r .*: its output\['rows'\]\[1\]"):
            handle.result()
        assert handle.status is Status.FAILED
    report = Flow(store=store, name="test").report("r")
    assert report.tasks["bad_output"].status is Status.FAILED
    assert store.run("r").status is Status.FAILED


def test_r47_values_come_back_as_they_went(reopen):
    """Tuples, sets, bytes and integer keys, as outputs, in requests and in the context; None was None."""
    value = {1: (1, (2, [3])), "s": {4, frozenset({5})}, "b": b"\x00", None: True, 2.5: None, (1, 2): range(3)}
    trouble = Trouble({"last"})

    def first(ctx):
        ctx["kept"] = value
        return TaskOutput(value, [NextTask("second", {"given": value})])

    def second(given):
        return TaskOutput(None, [NextTask("last")])

    def last(ctx):
        trouble.strikes("last")
        return [ctx.get("kept"), ctx.get("first"), ctx.get("given"), ctx.get("second")]

    with flow_with(reopen(), first, second, last) as flow, pytest.raises(Broken):
        flow.run("first", {"given": value}, run_id="r")
    trouble.clear()
    with flow_with(reopen(), first, second, last) as flow:
        assert flow.resume("r") == {"last": [value, value, value, None]}
        (kept, *_) = flow.resume("r")["last"]
        assert [type(key) for key in kept] == [type(key) for key in value]
        assert {key: type(each) for key, each in kept.items()} == {key: type(each) for key, each in value.items()}


def test_r48_a_run_of_targets_stays_partial(reopen):
    """A resume runs what the run was limited to, and nothing else."""
    trouble, calls = Trouble({"b"}), []

    def body():
        name = current_task().name
        calls.append(name)
        trouble.strikes(name)
        return name

    def build():
        flow = Flow("inline", store=reopen(), name="test")
        for name, needs in (("a", []), ("b", ["a"]), ("c", ["b"]), ("d", ["c"]), ("other", [])):
            flow.add_task(name, body, depends_on=needs)
        return flow

    with build() as flow, pytest.raises(Broken):
        flow.run(run_id="r", targets=["c"])
    trouble.clear()
    with build() as flow:
        assert flow.resume("r") == {"c": "c"}
        assert flow.resume("r", from_tasks=["c"]) == {"c": "c"}
    assert calls == ["a", "b", "b", "c", "c"]


def test_r48_unknown_names_are_errors():
    """Names in from_tasks that the flow does not have are refused, and no run is made."""
    flow = flow_with(MemoryStore(), load)
    flow.run(run_id="r")
    with pytest.raises(TaskNotFoundError, match="nope"):
        flow.resume("r", from_tasks=["load", "nope"])
    with pytest.raises(ValueError, match="from_tasks names no task"):
        flow.resume("r", from_tasks=[])
    assert len(flow.runs()) == 1


class Counting(MemoryStore):
    """A store that counts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.count: Counter[str] = Counter()

    def append(self, run_id: str, entries: Any) -> None:
        self.count.update(commits=1, entries=len(entries), characters=sum(len(entry.text) for entry in entries))
        super().append(run_id, entries)


@pytest.mark.parametrize("sync", ["each", "group"])
@pytest.mark.parametrize("name", ["chain", "fan-out", "lazy", "appends"])
def test_r49_journalling_grows_with_what_is_done(name, sync):
    """400 task runs cost twice as much as 200, not four times: in commits, in entries and in characters."""

    def counted(size):
        def chain(n=0):
            return TaskOutput("x" * 20, [NextTask("chain", {"n": n + 1})] if n < size else [])

        def requests():
            return (NextTask("part", {"n": n}, spawn_another=True) for n in range(size))

        def part(ctx, n):
            if name == "appends":
                ctx.append("list", "x" * 20)
                ctx["last"] = n
            return "x" * 20

        store = Counting(sync=sync)
        flow = flow_with(store, chain, part)
        flow.add_task("split", lambda: list(requests()))
        flow.add_task("lazily", lambda: TaskOutput(None, requests()))
        flow.run({"chain": "chain", "lazy": "lazily"}.get(name, "split"), run_id="r")
        return store.count

    small, large = counted(200), counted(400)
    for what in ("commits", "entries", "characters"):
        assert large[what] <= 2.3 * small[what] + 10, what
    assert sync == "group" or small["commits"] <= 2 * 200 + 10


# ---- from_tasks -------------------------------------------------------------------------------------


def again(name: str, tasks: list[str], executor: Any = "inline") -> tuple[Any, list[str], Any]:
    """Make a run of a shape, and one of that in which these tasks run again; return all that there is to know."""
    tape = Tape()
    whole = play(name, executor, tape)
    CALLS.clear()
    with flow_of(name, executor, tape) as flow:
        results = flow.resume("r", from_tasks=tasks)
        report = flow.report()
        assert report.run_id != "r"
        assert (report.resumed_from, str(report.status)) == ("r", whole.status)
        stored_report = Flow(store=tape, name=name).report(report.run_id)
        assert told(stored_report)[1:6] == told(report)[1:6]
        assert [run.id for run in flow.runs()] == ["r", report.run_id]
        assert flow.report("r").resumed_from is None
    called = sorted(call.split()[0] for call in CALLS)
    assert normal(results) == whole.results
    assert len(finished(tape, report.run_id)) == len(whole.paths)
    # The new run is a run like any other: it can go on, and gives its results again.
    for at in tape.marks[report.run_id][1:-1]:
        CALLS.clear()
        store = tape.cut(at, run_id=report.run_id)
        had = finished(store, report.run_id)
        with flow_of(name, executor, store) as flow:
            assert normal(flow.resume(report.run_id)) == whole.results
            assert flow.report().resumed_from == "r"
        assert not {call.split()[1] for call in CALLS} & set(had)
    return results, called, report


@pytest.mark.parametrize(
    ("name", "tasks", "called"),
    [
        ("chain", ["step"], ["step"] * 7),
        ("joins", ["total"], ["total"]),
        ("joins", ["subtotal"], ["subtotal", "subtotal", "total"]),
        ("joins", ["part"], ["part"] * 4 + ["subtotal", "subtotal", "total"]),
        ("joins", ["group"], ["group"] * 2 + ["part"] * 4 + ["subtotal"] * 2 + ["total"]),
        ("joins", ["split"], ["group"] * 2 + ["part"] * 4 + ["split"] + ["subtotal"] * 2 + ["total"]),
        ("graph", ["save"], ["save"]),
        ("graph", ["merge"], ["merge", "save"]),
        ("graph", ["left"], ["left", "merge", "save"]),
        ("graph", ["left", "right"], ["left", "merge", "right", "save"]),
        ("graph", ["load"], ["left", "load", "merge", "right", "save"]),
        ("part_of_graph", ["right"], ["merge", "right"]),
        ("router", ["after"], ["after"]),
        ("router", ["small"], ["after", "small"]),
        ("router", ["choose"], ["after", "choose", "small"]),
        ("loop", ["done"], ["done"]),
        ("loop", ["again"], ["again"] * 3 + ["check"] * 3 + ["done"]),
        ("mapped", ["closing"], ["closing"]),
        ("mapped", ["each"], ["closing"] + ["each"] * 3),
        ("mapped", ["rows"], ["closing"] + ["each"] * 3 + ["rows"]),
        ("pulled", ["part"], ["part"] * 5),
        ("pulled", ["lazy"], ["lazy"] + ["part"] * 5),
        ("pulled_with_join", ["total"], ["total"]),
        ("generator", ["subtotal"], ["subtotal"]),
        ("generator", ["part"], ["part"] * 4 + ["subtotal"]),
        ("generator", ["source"], ["part"] * 4 + ["source", "subtotal"]),
        ("retries", ["ended"], ["ended"]),
        ("retries", ["flaky"], ["ended"] + ["flaky"] * 6),
        ("limited", ["flaky"], ["ended"] + ["flaky"] * 6),
        ("parallel", ["narrow"], ["ended"] + ["narrow"] * 3 + ["part"] * 3),
        ("coalescing", ["shared"], ["ended", "shared"]),
        ("values", ["tell"], ["tell"]),
        ("values", ["change"], ["change", "tell"]),
        ("calls", ["after_calls"], ["after_calls"]),
        ("coroutines", ["aclose"], ["aclose"]),
    ],
)
@pytest.mark.parametrize("kind", ["inline", "thread"])
def test_what_came_after_runs_again(name, tasks, called, kind):
    """With from_tasks these tasks and all that came after them run again, in a new run, and nothing else does."""
    assert again(name, tasks, kind)[1] == called


def test_from_tasks_gives_what_the_new_code_gives(reopen):
    """A task that was mended runs again with what came before it as it was, and the old run stays as it was."""
    factor, calls = [1], []

    def numbers():
        calls.append("numbers")
        return [1, 2, 3]

    def total(numbers, ctx):
        calls.append("total")
        ctx["seen"] = factor[0]
        return factor[0] * sum(numbers)

    def build():
        flow = flow_with(reopen(), numbers)
        flow.add_task("total", total, depends_on=["numbers"])
        return flow

    with build() as flow:
        assert flow.run(run_id="r") == {"total": 6}
    factor[0] = 10
    with build() as flow:
        assert flow.resume("r", from_tasks=["total"]) == {"total": 60}
        new = flow.report().run_id
    with build() as flow:
        assert flow.resume("r") == {"total": 6}
        assert flow.resume(new) == {"total": 60}
        assert flow.context.get("seen") == 10
        assert flow.report("r").tasks["total"].result == 6
    assert calls == ["numbers", "total", "total"]


def test_a_new_run_that_fails_can_go_on(reopen):
    """What from_tasks has made fails, goes on, and is told as the run that it is."""
    trouble, calls = Trouble(), Counter()

    def body():
        name = current_task().name
        calls[name] += 1
        trouble.strikes(name)
        return name

    def build():
        flow = Flow("inline", store=reopen(), name="test")
        for name, needs in (("a", []), ("b", ["a"]), ("c", ["b"]), ("d", ["c"])):
            flow.add_task(name, body, depends_on=needs)
        return flow

    with build() as flow:
        flow.run(run_id="r", metadata={"who": "me"})
    trouble.add("c")
    with build() as flow:
        with pytest.raises(Broken):
            flow.resume("r", from_tasks=["b"])
        new = flow.report().run_id
    trouble.clear()
    with build() as flow:
        assert flow.resume(new) == {"d": "d"}
        report = flow.report(new)
        assert (report.resumed_from, report.metadata) == ("r", {"who": "me"})
    with build() as flow:
        assert flow.resume(new, from_tasks=["d"]) == {"d": "d"}
        assert flow.report().resumed_from == new
        assert len(flow.runs()) == 3
    assert calls == {"a": 1, "b": 2, "c": 3, "d": 3}


def test_from_tasks_of_a_failed_run(reopen):
    """A run that has failed can be begun again at a task that had finished."""
    trouble, calls = Trouble({"b"}), []

    def body():
        name = current_task().name
        calls.append(name)
        trouble.strikes(name)
        return name

    def build():
        flow = Flow("inline", store=reopen(), name="test")
        for name, needs in (("a", []), ("b", ["a"]), ("c", ["b"]), ("other", [])):
            flow.add_task(name, body, depends_on=needs)
        return flow

    with build() as flow, pytest.raises(Broken):
        flow.run(["other", "a"], run_id="r")
    trouble.clear()
    with build() as flow:
        assert flow.resume("r", from_tasks=["a"]) == {"c": "c", "other": "other"}
    assert calls == ["other", "a", "b", "a", "b", "c"]


def test_inputs_for_a_run_made_from_another_one():
    """Values for the context reach what runs again."""

    def first(ctx):
        return ctx.get("number")

    def second(first, ctx):
        return first, ctx.get("number")

    flow = flow_with(MemoryStore(), first, second)
    assert flow.run("first", {"number": 1}, run_id="r") == {"second": (1, 1)}
    assert flow.resume("r", from_tasks=["second"], inputs={"number": 2}) == {"second": (1, 2)}
    assert flow.resume("r", from_tasks=[flow["first"]], inputs={"number": 3}) == {"second": (3, 3)}
    assert flow.resume("r") == {"second": (1, 1)}


def test_changes_of_the_context_belong_to_who_made_them():
    """What runs again has not set anything yet; what its predecessors, items of maps and generators had, is there."""
    calls = []

    def rows(ctx):
        ctx["rows_set"] = 1
        return [1, 2]

    def each(item, ctx):
        calls.append(item)
        ctx.append("each", item)
        return item

    def last(each, ctx):
        calls.append("last")
        seen = sorted(ctx.get("each")), ctx.get("rows_set"), list(ctx.get("last_set", []))
        ctx.append("last_set", len(seen))
        return seen

    flow = flow_with(MemoryStore(), rows)
    flow.add_task("each", each, for_each="rows")
    flow.add_task("last", last, depends_on=["each"])
    want = {"last": ([1, 2], 1, [])}
    assert flow.run(run_id="r") == want
    assert flow.resume("r", from_tasks=["last"]) == want
    assert calls == [1, 2, "last", "last"]
    assert flow.resume(flow.report().run_id, from_tasks=["each"]) == want
    assert calls == [1, 2, "last", "last", 1, 2, "last"]


def test_children_that_finished_before_their_generator_are_not_called_again(executor):
    """A generator that had waited for its child is over, and so is the child."""
    if executor == "inline":
        executor = "thread"
    calls = []

    def begin():
        return [NextTask("source"), NextTask("last", join=True)]

    def source(ctx):
        yield NextTask("child", {"n": 1}, spawn_another=True)
        ctx.get("child")

    async def asource(ctx: Context):
        yield NextTask("child", {"n": 1}, spawn_another=True)
        await ctx.aget("child")

    def child(ctx, n):
        calls.append("child")
        ctx.append("children", n)
        return n

    def last(ctx):
        calls.append("last")
        return ctx.get("children")

    with flow_with(MemoryStore(), begin, child, last, executor=executor) as flow:
        flow.add_task("source", asource if executor == "asyncio" else source)
        want = flow.run("begin", run_id="r")
        assert flow.resume("r", from_tasks=["last"]) == want == {"child": 1, "last": [1]}
    assert calls == ["child", "last", "last"]


def test_limits_hold_for_what_runs_again():
    """Task runs that run again take the limits that they use."""
    lock, now, most = threading.Lock(), Counter(), Counter()

    def begin():
        return [NextTask("part", {"n": n}, spawn_another=True) for n in range(8)]

    def part(n):
        with lock:
            now["db"] += 1
            most["db"] = max(most["db"], now["db"])
        time.sleep(0.002)
        with lock:
            now["db"] -= 1
        return n

    with Flow("thread", store=MemoryStore(), name="test", max_workers=4, limits={"db": 1}) as flow:
        flow.add_task("begin", begin)
        flow.add_task("part", part, uses=["db"])
        flow.run("begin", run_id="r")
        assert len(flow.resume("r", from_tasks=["part"])) == 8
        assert most == {"db": 1}
        assert len(flow.run("begin")) == 8, "the limits were given back"
    assert most == {"db": 1}


@pytest.mark.parametrize("seed", range(ANY_FLOWS // 2))
def test_any_flow_begins_again_anywhere(seed, monkeypatch):
    """Whichever task of a random flow runs again, with all that came after it the run gives the same once more."""
    shape = any_shape(random.Random(1000 + seed))
    monkeypatch.setitem(SHAPES, "any", shape._replace(options={"limits": {"limit": 1}}))
    tape = Tape()
    whole = play("any", "inline", tape)
    keys = defaultdict(set)
    for call in CALLS:
        keys[call.split()[0]].add(call.split()[1])
    for name in keys:
        CALLS.clear()
        with flow_of("any", "inline", tape) as flow:
            assert normal(flow.resume("r", from_tasks=[name], timeout=WATCHDOG)) == whole.results
            assert values_of(flow.context, flow) == whole.values
            done = finished(tape, flow.report().run_id)
        assert sorted(done) == sorted(whole.paths)
        assert keys[name] <= {call.split()[1] for call in CALLS}


def test_what_had_waited_for_a_limit_and_a_worker_holds_up_nothing():
    """With max_parallel and a limit, a run that is begun again somewhere goes on to its end."""

    def begin():
        return [NextTask("limited", {"n": 1}, spawn_another=True), NextTask("free")]

    def limited(n):
        return TaskOutput(n, [NextTask("limited", {"n": 2}, spawn_another=True)] if n == 1 else [])

    def free():
        return "free"

    flow = flow_with(MemoryStore(), begin, free, max_parallel=1, limits={"db": 1})
    flow.add_task("limited", limited, uses=["db"])
    want = flow.run("begin", run_id="r")
    assert flow.resume("r", from_tasks=["free"], timeout=WATCHDOG) == want


def test_from_tasks_of_what_cannot_run_again():
    """A task that has not finished in the run, and a session, are refused."""
    store, trouble = MemoryStore(), Trouble({"last"})

    def last(load):
        trouble.strikes("last")

    flow = flow_with(store, load, last)
    with pytest.raises(Broken):
        flow.run(run_id="r")
    with pytest.raises(ValueError, match="Task last has not finished"):
        flow.resume("r", from_tasks=["last"])
    with flow.session("s") as session:
        session.submit(abs, -1)
    with pytest.raises(CheckpointError, match="is a session"):
        flow.resume("s", from_tasks=["load"])
    assert [run.owner for run in flow.runs()] == [None, None]


# ---- streaming --------------------------------------------------------------------------------------


def test_a_stream_of_the_rest_has_the_rest_alone(executor):
    """A chunk that was committed is not delivered again; all others are."""
    tape = Tape()

    def begin():
        yield "begun"
        yield NextTask("talks", {"n": 1})
        return "begin"

    def talks(ctx, n):
        for part in range(2):
            ctx.emit((n, part))
        return TaskOutput(n, [NextTask("talks", {"n": n + 1})] if n < 3 else [])

    with flow_with(tape, begin, talks, executor=executor) as flow:
        want = Counter(repr(chunk.value) for chunk in flow.stream("begin", run_id="r"))
    assert want.total() == 1 + 1 + 3 * 3
    for at in tape.marks["r"][:-1]:
        store = tape.cut(at)
        had = kinds(store)["emitted"] + kinds(store)["finished"]
        with flow_with(store, begin, talks, executor=executor) as flow:
            got = Counter(repr(chunk.value) for chunk in flow.stream(resume="r"))
        assert got.total() == want.total() - had
        assert got <= want


@pytest.mark.parametrize("sync", ["each", "full"])
def test_nothing_is_delivered_before_it_is_committed(sync, executor):
    """Whatever the reader of a stream has got is in the store by then."""
    store, seen = MemoryStore(sync=sync), 0

    def talks(ctx):
        for n in range(5):
            ctx.emit(n)
        return TaskOutput(5, [NextTask("more", spawn_another=True) for _ in range(5)])

    def more():
        yield 1
        return 2

    with flow_with(store, talks, more, executor=executor) as flow:
        for _ in flow.stream("talks", run_id="r"):
            seen += 1
            count = kinds(store)
            assert count["emitted"] + count["finished"] >= seen
    assert seen == 6 + 10


def test_chunks_of_a_retried_attempt_are_all_delivered():
    """The chunks of each attempt count for themselves: none is lost, none that was delivered comes again."""
    tape = Tape()

    def flaky(ctx):
        for letter in "abc":
            ctx.emit((current_task().attempt, letter))
            if letter == "b" and current_task().attempt == 1:
                raise Broken
        return "end"

    def build(store):
        flow = Flow("inline", store=store, name="test")
        flow.add_task("flaky", flaky, retries=1)
        return flow

    want = [chunk.value for chunk in build(tape).stream("flaky", run_id="r")]
    assert want == [(1, "a"), (1, "b"), (2, "a"), (2, "b"), (2, "c"), "end"]
    for at in tape.marks["r"][:-1]:
        store = tape.cut(at)
        had = kinds(store)["emitted"] + kinds(store)["finished"]
        got = [chunk.value for chunk in build(store).stream(resume="r")]
        assert got == want[had:]


def test_chunks_over_several_interruptions():
    """A task that talks, and is interrupted again and again, delivers each chunk once."""

    def talks(ctx):
        for n in range(6):
            ctx.emit(n)
        return "end"

    flow = flow_with(Tape(), talks)
    list(flow.stream(run_id="r"))
    for first in range(6):
        for second in range(first, 6):
            store = flow_with(Tape(), talks)._durable.store
            list(flow_with(store, talks).stream(run_id="r"))
            once = store.cut(1 + first)
            list(flow_with(once, talks).stream(resume="r"))
            emitted = [n for n, entry in enumerate(once.entries("r"), 1) if entry.kind == "emitted"]
            twice = once.cut(emitted[second - 1] if second else 1)
            got = [chunk.value for chunk in flow_with(twice, talks).stream(resume="r")]
            assert got == [*range(second, 6), "end"]


class Gated(MemoryStore):
    """A store that waits before it writes the end of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.open = threading.Event(), threading.Event()

    def finish(self, *facts: Any) -> None:
        self.reached.set()
        wait_for(self.open)
        super().finish(*facts)


@pytest.mark.parametrize("how", ["stream", "result", "wait"])
def test_the_end_comes_after_the_end_is_written(how):
    """A stream ends, and a result comes, when the end of the run is in the store."""
    store, ended = Gated(), threading.Event()
    with flow_with(store, load, executor="thread") as flow:
        chunks: list[Any] = []

        def read():
            if how == "stream":
                chunks.extend(flow.stream(run_id="r"))
            elif how == "result":
                flow.start(run_id="r").result(WATCHDOG)
            else:
                flow.start(run_id="r").wait()
            assert store.run("r").status is Status.SUCCESS
            ended.set()

        reader = threading.Thread(target=read)
        reader.start()
        wait_for(store.reached)
        assert not ended.wait(0.05)
        store.open.set()
        wait_for(ended)
        reader.join(WATCHDOG)
    assert how != "stream" or [chunk.value for chunk in chunks] == [[1, 2, 3]]


def test_a_stream_that_is_left_can_be_taken_up_again(executor):
    """Leaving the loop cancels the run; a stream of the rest goes on with it."""
    store = MemoryStore()

    def first():
        return TaskOutput(1, [NextTask("second"), NextTask("third")])

    def second():
        return 2

    async def third(ctx: Context):
        return await ctx.aget("go", external=True)

    with flow_with(store, first, second, third, executor=executor) as flow:
        for chunk in flow.stream("first", run_id="r"):
            if chunk.value == 2:
                break
        assert store.run("r").status is Status.CANCELLED
        assert [chunk.value for chunk in flow.stream(resume="r", inputs={"go": 3})] == [3]
        assert store.run("r").status is Status.SUCCESS


# ---- changed code -----------------------------------------------------------------------------------


def function(source: str, name: str = "work") -> Any:
    """Return a function that is compiled from this."""
    namespace: dict[str, Any] = {"NextTask": NextTask}
    exec(compile(textwrap.dedent(source), "<a test>", "exec"), namespace)
    return namespace[name]


BASE = """
    def work(n=1):
        numbers = [n, 2, 3]
        return sum(x * 10 for x in numbers if x in {1, 2})
"""
SAME = {
    "comment": BASE.replace("return", "# why\n        return"),
    "moved": "\n\n\n" + BASE,
    "spaces": BASE.replace("[n, 2, 3]", "[n,  2,\n                3]"),
}
CHANGED = {
    "constant": BASE.replace("2, 3", "2, 4"),
    "inner constant": BASE.replace("x * 10", "x * 11"),
    "set": BASE.replace("{1, 2}", "{1, 3}"),
    "name": BASE.replace("sum(", "max("),
    "operator": BASE.replace("x * 10", "x + 10"),
    "argument": BASE.replace("n=1", "n=1, m=2"),
}


@pytest.mark.parametrize("name", SAME)
def test_code_that_says_the_same_is_no_change(name, caplog):
    """A comment, a line further down or a space are no change."""
    store = MemoryStore()
    flow_with(store, function(BASE)).run(run_id="r")
    flow_with(store, function(SAME[name])).resume("r", on_code_change="raise")
    flow_with(store, function(SAME[name])).resume("r")
    assert not caplog.records


@pytest.mark.parametrize("name", CHANGED)
def test_changed_code_is_told(name, caplog):
    """A resume with changed code warns, or raises and changes nothing, or ignores it, as it is told to."""
    store = MemoryStore()
    flow_with(store, function(BASE), load, executor="inline").run(["work", "load"], run_id="r")
    flow = flow_with(store, function(CHANGED[name]), load)
    with pytest.raises(CodeChangedError, match="task work has changed") as raised:
        flow.resume("r", on_code_change="raise")
    assert raised.value.changes == ("task work has changed",)
    assert raised.value.run_id == "r"
    assert (store.run("r").owner, store.run("r").status) == (None, Status.SUCCESS)
    flow.resume("r", on_code_change="ignore")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert flow.resume("r")["work"] == 30
    (record,) = caplog.records
    assert "Run r was started with other code: task work has changed" in record.getMessage()
    assert record.run_id == "r"


def test_how_changed_code_is_told_is_one_of_three_words():
    """Anything else is refused, and the run stays as it is."""
    flow = flow_with(MemoryStore(), load)
    flow.run(run_id="r")
    with pytest.raises(ValueError, match="'warn', 'raise' or 'ignore', not 'maybe'"):
        flow.resume("r", on_code_change="maybe")
    assert (flow.runs()[0].owner, flow.runs()[0].status) == (None, Status.SUCCESS)


def test_the_version_of_a_task_stands_for_its_code():
    """With version= other code is no change, and another version is."""
    store = MemoryStore()

    def build(source, version):
        flow = Flow("inline", store=store, name="test")
        flow.add_task("work", function(source), version=version)
        return flow

    build(BASE, "1").run(run_id="r")
    build(CHANGED["constant"], "1").resume("r", on_code_change="raise")
    for version in ("2", None):
        with pytest.raises(CodeChangedError):
            build(BASE, version).resume("r", on_code_change="raise")


def test_a_task_that_is_gone_is_told(caplog):
    """It is named; when nothing needs it the run goes on without it, else the error says what is missing."""
    store, trouble = MemoryStore(), Trouble({"last"})

    def first():
        return NextTask("second")

    def second():
        return NextTask("last")

    def last():
        trouble.strikes("last")
        return "last"

    with pytest.raises(Broken):
        flow_with(store, first, second, last, load).run("first", run_id="r")
    trouble.clear()
    with pytest.raises(CodeChangedError, match="task load is gone"):
        flow_with(store, first, second, last).resume("r", on_code_change="raise")
    with pytest.raises(CheckpointError, match="Run r cannot go on with the tasks of now: Task second not found"):
        flow_with(store, first, last).resume("r", on_code_change="ignore")
    assert flow_with(store, first, second, last).resume("r") == {"last": "last"}
    assert ["task load is gone" in record.getMessage() for record in caplog.records][-1]


def test_tasks_that_were_added_do_not_shift_the_others():
    """A graph in which tasks were put before others still finds what had finished."""
    store, trouble, calls = MemoryStore(), Trouble({"save"}), []

    def body():
        name = current_task().name
        calls.append(name)
        trouble.strikes(name)
        return name

    def build(**tasks):
        flow = Flow("inline", store=store, name="test")
        for name, needs in tasks.items():
            flow.add_task(name, body, depends_on=needs)
        return flow

    with pytest.raises(Broken):
        build(load=[], clean=["load"], count=["load"], save=["clean", "count"]).run(run_id="r")
    assert calls == ["load", "clean", "count", "save"]
    calls.clear()
    trouble.clear()
    new = build(
        zero=[], audit=["zero"], count=["load"], save=["clean", "count"], clean=["load"], load=[], more=["load"]
    )
    assert new.resume("r", on_code_change="ignore") == {"save": "save", "more": "more"}
    assert calls == ["more", "save"] or calls == ["save", "more"]
    calls.clear()
    assert new.resume("r") == {"save": "save", "more": "more"}
    assert not calls


# ---- a store that fails -----------------------------------------------------------------------------


class Full(MemoryStore):
    """A store that takes some transactions, and no more until there is room."""

    def __init__(self, room: int, **options: Any) -> None:
        super().__init__(**options)
        self.room: float = room
        self.ends = True

    def append(self, run_id: str, entries: Any) -> None:
        self.room -= 1
        if self.room < 0:
            raise CheckpointError("the disk is full")
        super().append(run_id, entries)

    def finish(self, run_id: str, status: Any, finished_at: float, entries: Any) -> None:
        if not self.ends:
            raise CheckpointError("the disk is full")
        self.room += 1  # ``append`` is how it is written
        super().finish(run_id, status, finished_at, entries)


@pytest.mark.parametrize("room", range(5))
def test_a_store_that_fails_ends_the_run(room, executor):
    """What came of a completion that was not written never starts; the run goes on when there is room again."""
    store, calls = Full(room), []

    def chain(ctx, n=0):
        calls.append(n)
        ctx.append("list", n)
        return TaskOutput(n, [NextTask("chain", {"n": n + 1})] if n < 6 else [])

    with flow_with(store, chain, executor=executor) as flow:
        with pytest.raises(CheckpointError, match="the disk is full"):
            flow.run(run_id="r")
        assert calls == list(range(room + 1))
        assert flow.report("r").status is Status.FAILED
        assert len(finished(store)) == room
        assert store.run("r").owner is None
        store.room = float("inf")
        assert flow.resume("r") == {"chain": 6}
        assert flow.context.get("list") == list(range(7))
    assert calls == [*range(room + 1), *range(room, 7)]


@pytest.mark.parametrize("how", ["run", "stream", "start", "session"])
@pytest.mark.parametrize("sync", ["each", "group"])
@pytest.mark.parametrize("kind", ["inline", "thread", "asyncio", "process"])
def test_a_store_that_fails_hangs_nothing(kind, sync, how, processes):
    """A fan-out whose store fails in the midst ends with that error, and starts nothing more."""
    store = Full(3 if sync == "each" else 0, sync=sync)
    starts = []
    hook = fn_hook(on_task_start=lambda event: starts.append(event.id))
    executor = processes if kind == "process" else kind
    workers = None if kind in ("inline", "process") else 2
    with Flow(executor, store=store, name="test", hooks=[hook], max_workers=workers) as flow:
        flow.add_task("many", many)
        flow.add_task("slowly", slowly)
        with pytest.raises(CheckpointError, match="the disk is full"):
            if how == "run":
                flow.run("many", run_id="r")
            elif how == "stream":
                list(flow.stream("many", run_id="r"))
            elif how == "start":
                flow.start("many", run_id="r").result(WATCHDOG)
            else:
                with flow.session("r") as session, suppress(FlowClosedError):  # it may have ended by then
                    for n in range(200):
                        session.submit(slowly, n)
        count = len(starts)
        assert count < 200
        assert store.run("r").owner is None
        assert len(starts) == count
    assert not engine_threads("millstream-journal")


def many():
    return [NextTask("slowly", {"n": n}, spawn_another=True) for n in range(200)]


def slowly(n):
    time.sleep(0.002)
    return n


@pytest.mark.parametrize("what", ["set from outside", "emit", "retry", "yield", "page"])
def test_a_store_that_fails_elsewhere(what, executor):
    """Whatever cannot be written ends the run: an emitted chunk, an attempt that failed, a page of a list."""

    def talks(ctx):
        ctx.emit(1)
        ctx.emit(2)
        ctx.emit(3)

    def fails():
        raise Broken

    def asks():
        for _ in range(3):
            yield NextTask("talks", spawn_another=True)

    def lists():
        return TaskOutput(1, (NextTask("talks", spawn_another=True) for _ in range(600)))

    async def waits(ctx: Context):
        return await ctx.aget("go", external=True)

    store = Full({"emit": 1, "page": 1}.get(what, 0))
    with flow_with(store, talks, asks, lists, waits, executor=executor) as flow:
        flow.add_task("fails", fails, retries=3)
        if what == "set from outside":
            run = flow.start("waits", run_id="r") if executor != "inline" else None
            if run is None:
                return
            until(lambda: "waiting for" in repr(run))
            with pytest.raises(CheckpointError, match="the disk is full"):
                run.context.set("go", 1)
            assert "go" not in run.context
            run.cancel()
            run.wait(WATCHDOG)
        else:
            name = {"emit": "talks", "retry": "fails", "yield": "asks", "page": "lists"}[what]
            with pytest.raises(CheckpointError, match="the disk is full"):
                list(flow.stream(name, run_id="r"))
        assert store.run("r").owner is None


@pytest.mark.parametrize("how", ["run", "stream", "start", "arun", "session"])
def test_a_run_whose_end_cannot_be_written_raises(how, executor):
    """It says so, gives no results, and can be resumed at once."""
    store = Full(100)
    store.ends = False
    with flow_with(store, load, executor=executor) as flow:
        with pytest.raises(CheckpointError, match="the disk is full"):
            if how == "run":
                flow.run(run_id="r")
            elif how == "stream":
                list(flow.stream(run_id="r"))
            elif how == "start":
                flow.start(run_id="r").result(WATCHDOG)
            elif how == "arun":
                asyncio.run(flow.arun(run_id="r"))
            else:
                with flow.session("r") as session:
                    session.submit(abs, -1)
        store.ends = True
        assert store.run("r").owner is None
        if how == "session":
            with flow.session("r") as session:
                assert session.submit(abs, -1).result() == 1
        else:
            assert flow.resume("r") == {"load": [1, 2, 3]}
        assert store.run("r").status is Status.SUCCESS


def test_a_run_that_cannot_be_created_calls_nothing(executor):
    """When the store refuses the run, no task is called, and nothing is left behind."""

    class Closed(MemoryStore):
        def create(self, *facts):
            raise CheckpointError("the disk is full")

    calls: list[int] = []
    with Flow(executor, store=Closed(), name="test") as flow:
        flow.add_task("work", lambda: calls.append(1))
        for call in (flow.run, flow.stream, flow.start, flow.session):
            with pytest.raises(CheckpointError, match="the disk is full"):
                call()
    assert not calls


@pytest.mark.parametrize("where", ["append", "finish"])
def test_a_store_that_breaks_its_promise_hangs_nothing(where, executor):
    """A store that raises something else than a CheckpointError ends the run as well."""

    class Odd(MemoryStore):
        pass

    def odd(self, *facts):
        raise OSError("something else")

    setattr(Odd, where, odd)
    store = Odd()
    with flow_with(store, load, executor=executor) as flow:
        with pytest.raises((CheckpointError, OSError), match="something else"):
            flow.run(run_id="r")
        assert store.run("r").owner is None


class Plain(Store):
    """A store of one's own, by nothing but the protocol."""

    def __init__(self) -> None:
        super().__init__("each")
        self.kept: dict[str, tuple[StoredRun, list[Entry]]] = {}
        self.lock = threading.RLock()

    def create(self, run_id, flow, created_at, facts, entries):
        with self.lock:
            if run_id in self.kept:
                raise CheckpointError("it is there")
            self.kept[run_id] = StoredRun(run_id, flow, Status.RUNNING, created_at, None, "me", facts), list(entries)

    def claim(self, run_id):
        with self.lock:
            head = self.run(run_id)
            if head.owner is not None:
                raise RunOwnedError(run_id, head.owner)
            head = head._replace(status=Status.RUNNING, finished_at=None, owner="me")
            self.kept[run_id] = head, self.kept[run_id][1]
            return head

    def append(self, run_id, entries):
        with self.lock:
            if self.run(run_id).owner != "me":
                raise RunOwnedError(run_id, "nobody")
            self.kept[run_id][1].extend(Entry(*entry) for entry in entries)

    def finish(self, run_id, status, finished_at, entries):
        with self.lock:
            self.append(run_id, entries)
            head, journal = self.kept[run_id]
            self.kept[run_id] = head._replace(status=status, finished_at=finished_at, owner=None), journal

    def release(self, run_id):
        with self.lock:
            if run_id in self.kept:
                head, journal = self.kept[run_id]
                self.kept[run_id] = head._replace(owner=None), journal

    def entries(self, run_id, kinds=(), key=None):
        with self.lock:
            self.run(run_id)
            journal = list(self.kept[run_id][1])
        return (e for e in journal if (not kinds or e.kind in kinds) and key in (None, e.key))

    def runs(self):
        return [head for head, _ in self.kept.values()]

    def run(self, run_id):
        if run_id not in self.kept:
            raise UnknownRunError(run_id, "", "the plain store")
        return self.kept[run_id][0]

    def forget(self, run_id):
        self.run(run_id)
        del self.kept[run_id]

    def close(self):
        pass


@pytest.mark.parametrize("name", ["joins", "pulled_with_join", "generator", "values"])
def test_a_store_of_ones_own(name):
    """Whatever keeps to the protocol will do."""
    tape = Tape()
    whole = play(name, "inline", tape)
    for at in tape.marks["r"][:-1]:
        store = Plain()
        tape.cut(at, into=store)
        assert go_on(name, "inline", store) == whole
    with flow_of(name, "inline", store) as flow:
        flow.forget("r")
        assert flow.runs() == []


def test_what_is_no_store_is_refused():
    """Flow(store=...) takes a path or a Store."""
    for bad in (object(), 5, MemoryStore):
        with pytest.raises(TypeError, match=r"Flow\(store=...\) takes a path or a Store"):
            Flow(store=bad)


# ---- keys -------------------------------------------------------------------------------------------


@each_shape
def test_keys_are_the_same_after_a_crash(name):
    """A task run that runs again has the key that it had, so whoever it calls knows it again."""
    tape = Tape()
    play(name, "inline", tape)
    keys = {call.rpartition(" ")[0] for call in CALLS}
    for store in tape.cuts()[::2]:
        go_on(name, "inline", store)
        assert {call.rpartition(" ")[0] for call in CALLS} <= keys


def test_a_key_names_its_run():
    """Keys of two runs differ, also those of a run that was made from another one."""
    keys: list[str] = []

    def work():
        keys.append(current_task().key)

    flow = flow_with(MemoryStore(), work)
    flow.run(run_id="r")
    flow.run(run_id="s")
    flow.resume("r", from_tasks=["work"])
    assert len(set(keys)) == 3
    assert [key.partition(":")[0] for key in keys] == ["r", "s", flow.report().run_id]


# ---- what a store says of runs ------------------------------------------------------------------------


@each_shape
def test_the_report_of_a_stored_run_is_that_of_the_live_one(name):
    """Statuses, runs, attempts, errors and results are the same, undisturbed and after a resume."""
    tape = Tape()
    with flow_of(name, "inline", tape) as flow:
        begin(flow, name)
        assert told(Flow(store=tape, name=name).report("r")) == told(flow.report("r"))
    for store in tape.cuts()[::2]:
        with flow_of(name, "inline", store) as flow:
            flow.resume("r")
            assert told(Flow(store=store, name=name).report("r")) == told(flow.report("r"))


@pytest.mark.parametrize("on_error", ["raise", "continue"])
@pytest.mark.parametrize("policy", ["fail", "skip", "run-anyway"])
def test_the_report_of_a_stored_run_that_failed(policy, on_error, reopen):
    """What failed, was skipped, never started or was cancelled is told by both; and again when the run has gone on."""
    trouble = Trouble({"b"})

    def body():
        trouble.strikes(current_task().name)
        return current_task().name

    def build():
        flow = Flow("inline", store=reopen(), name="test", on_error=on_error)
        flow.add_task("a", body)
        flow.add_task("b", body, depends_on=["a"], retries=2)
        flow.add_task("c", body, depends_on=["b"], on_dep_failure=policy)
        flow.add_task("d", body, depends_on=["c"])
        flow.add_task("e", body, depends_on=["a"])
        return flow

    with build() as flow:
        if on_error == "raise":
            with pytest.raises(Broken):
                flow.run(run_id="r")
        else:
            flow.run(run_id="r")
        live = flow.report("r")
    with build() as flow:
        assert told(flow.report("r")) == told(live)
    trouble.clear()
    with build() as flow:
        assert normal(flow.resume("r")) == {"d": ["'d'"], "e": ["'e'"]}
        live = flow.report("r")
        assert {row.status for row in live.tasks.values()} == {Status.SUCCESS}
    with build() as flow:
        assert told(flow.report("r")) == told(live)


def test_the_report_of_a_run_that_was_cancelled(reopen):
    """Both say that what ran and what waited was cancelled."""

    def first():
        return [NextTask("waits"), NextTask("last", join=True)]

    def waits(ctx):
        ctx.get("go", external=True)

    def last():
        pass

    with flow_with(reopen(), first, waits, last, executor="thread") as flow:
        run = flow.start("first", run_id="r")
        until(lambda: "waiting for" in repr(run))
        run.cancel()
        run.wait(WATCHDOG)
        live = run.report()
    with flow_with(reopen(), first, waits, last) as flow:
        assert told(flow.report("r")) == told(live)


def test_runs_are_told_in_their_order(reopen):
    """The heads of all runs, the oldest first, and gone when they are forgotten."""
    now = time.time()
    with flow_with(reopen(), load) as flow:
        for run_id in ("b", "a", "c"):
            flow.run(run_id=run_id)
    with flow_with(reopen(), load) as flow:
        runs = flow.runs()
        assert [run.id for run in runs] == ["b", "a", "c"]
        for run in runs:
            assert (run.flow, run.status, run.owner) == ("test", Status.SUCCESS, None)
            assert now - 1 <= run.created_at <= run.finished_at <= time.time() + 1
        flow.forget("a")
        with pytest.raises(UnknownRunError):
            flow.report("a")
    with flow_with(reopen(), load) as flow:
        assert [run.id for run in flow.runs()] == ["b", "c"]
        flow.run(run_id="a")
        assert [run.id for run in flow.runs()] == ["b", "c", "a"]


def test_runs_of_run_many_are_kept(reopen):
    """Each run of run_many is a run of its own in the store."""
    with flow_with(reopen(), step_once) as flow:
        ids = [run.id for run in flow.run_many([{"n": n} for n in range(3)])]
    with flow_with(reopen(), step_once) as flow:
        assert [run.id for run in flow.runs()] == ids
        assert [flow.resume(run_id) for run_id in ids] == [{"step_once": n} for n in range(3)]


def step_once(n):
    return n


def test_hooks_are_told_of_the_rest_alone():
    """A resume tells nothing a second time of what had finished, or was skipped, before."""
    tape = Tape()
    for name in ("joins", "router", "retries"):
        tape = Tape()
        play(name, "inline", tape)
        for store in tape.cuts():
            had, said = finished(store), Counter()
            skipped = kinds(store)["settled"]
            hook = fn_hook(
                on_task_success=lambda event: said.update(success=1),
                on_task_skip=lambda event: said.update(skip=1),
                on_run_start=lambda event: said.update(start=1),
                on_run_end=lambda event: said.update(end=1),
            )
            with flow_of(name, "inline", store, hooks=[hook]) as flow:
                flow.resume("r")
            total = {"joins": 10, "router": 3, "retries": 5}[name]
            assert said["success"] == total - len(had)
            assert said["skip"] == (name == "router") - skipped
            assert (said["start"], said["end"]) == (1, 1)
