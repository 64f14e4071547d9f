"""``progress=True``: what a display is told of a run, counted while tasks stand still, on every executor."""

import asyncio
import contextlib
import re
import threading

import pytest

from millstream import Context, Flow, NextTask, RunCancelledError, TaskOutput, current_task
from millstream.show.progress import display
from millstream.show.timeline import Timeline
from tests import process_tasks
from tests.conftest import WATCHDOG, Log, assert_gone, engine_threads, until

COUNTS = ("done", "failed", "skipped", "running", "waiting", "total")


def counted(run):
    """Return how far a run is, as numbers."""
    tally = run.tally()
    return tuple(getattr(tally, name) for name in COUNTS)


@pytest.fixture
def gate():
    """Tasks that say that they have begun, and wait until they may go on."""

    class Gate:
        def __init__(self):
            self.begun, self.free = Log(), threading.Semaphore(0)

        def work(self):
            self.begun.add(current_task().id)
            assert self.free.acquire(timeout=WATCHDOG)
            return "done"

        def open(self, count):
            self.free.release(count)

    return Gate()


def fan(count, make=list):
    def fan():
        return TaskOutput(None, make(NextTask("work", spawn_another=True) for _ in range(count)))

    return fan


def test_a_fan_out_is_counted(gate):
    """What runs, what waits for a worker and what has ended; the total is that of a list that was taken at once."""
    with Flow(max_workers=2) as flow:
        flow.add_task("fan", fan(5))
        flow.add_task("work", gate.work)
        run = flow.start("fan", progress=True)
        gate.begun.wait_for(2)
        assert counted(run) == (1, 0, 0, 2, 3, 6)
        gate.open(1)
        gate.begun.wait_for(3)
        assert counted(run) == (2, 0, 0, 2, 2, 6)
        gate.open(4)
        run.wait(WATCHDOG)
        assert counted(run) == (6, 0, 0, 0, 0, 6)


def test_a_list_that_grows_has_no_total(gate):
    """How many there will be is not known while an iterable is pulled, or while a task that asks again goes on."""
    more = threading.Event()

    def requests():
        yield NextTask("work", spawn_another=True)
        yield NextTask("work", spawn_another=True)
        assert more.wait(WATCHDOG)

    with Flow(max_workers=3) as flow:
        flow.add_task("fan", lambda: TaskOutput(None, requests()))
        flow.add_task("work", gate.work)
        run = flow.start("fan", progress=True)
        gate.begun.wait_for(1)
        assert run.tally().total is None
        more.set()
        gate.open(2)
        run.wait(WATCHDOG)
        assert counted(run) == (3, 0, 0, 0, 0, 3)


def test_a_chain_has_no_total(gate):
    """A task that has asked for something before may ask again."""

    def step(n):
        gate.work()
        return TaskOutput(n, [NextTask("step", {"n": n - 1})] if n else None)

    with Flow(max_workers=1) as flow:
        flow.add_task("step", step)
        run = flow.start("step", {"n": 2}, progress=True)
        gate.open(1)
        gate.begun.wait_for(2)
        assert counted(run) == (1, 0, 0, 1, 0, None)
        gate.open(2)
        run.wait(WATCHDOG)
        assert counted(run) == (3, 0, 0, 0, 0, 3)


def test_what_edges_lead_to_is_in_the_total(gate):
    """A graph is known from the start; what is skipped or fails without an attempt has ended, too."""
    with Flow(max_workers=2, on_error="continue") as flow:
        flow.add_task("a", gate.work)
        flow.add_task("b", lambda a: 1 / 0)
        flow.add_task("c", lambda b: 1, on_dep_failure="skip")
        flow.add_task("d", lambda b: 1)
        flow.add_task("e", lambda a: 1)
        run = flow.start(progress=True)
        gate.begun.wait_for(1)
        assert counted(run) == (0, 0, 0, 1, 0, 5)
        gate.open(1)
        run.wait(WATCHDOG)
        assert counted(run) == (2, 2, 1, 0, 0, 5)


def test_routes_that_are_not_chosen_are_skipped():
    """A router's other routes count as skipped, so that done, failed and skipped are the total."""
    with Flow() as flow:
        flow.add_task("choose", lambda: "left", routes=["left", "right"])
        flow.add_task("left", lambda: 1)
        flow.add_task("right", lambda: 1)
        run = flow.start(progress=True)
        run.wait(WATCHDOG)
        assert counted(run) == (2, 0, 1, 0, 0, 3)


def test_what_is_cancelled_counts_as_failed(gate):
    """After a cancel nothing is left that runs or waits."""
    with Flow(max_workers=1) as flow:
        flow.add_task("fan", fan(5))
        flow.add_task("work", gate.work)
        run = flow.start("fan", progress=True)
        gate.begun.wait_for(1)
        run.cancel()
        gate.open(1)
        run.wait(WATCHDOG)
        with pytest.raises(RunCancelledError):
            run.result()
        tally = run.tally()
        assert (tally.running, tally.waiting, tally.ended) == (0, 0, 6)
        assert tally.done in (1, 2)


def test_maps_limits_retries_and_joins_are_counted(gate):
    """Items of a map, what limits hold back, attempts that wait and joins are all somewhere in the numbers."""
    with Flow(max_workers=4, limits={"one": 1}) as flow:
        flow.add_task("items", lambda: [1, 2, 3])
        flow.add_task("each", lambda item: gate.work(), for_each="items", uses=["one"])
        flow.add_task("last", lambda each: len(each))
        run = flow.start(progress=True)
        gate.begun.wait_for(1)
        assert counted(run) == (1, 0, 0, 1, 3, 6)  # the map itself waits for its items
        gate.open(3)
        run.wait(WATCHDOG)
        assert counted(run) == (6, 0, 0, 0, 0, 6)


def test_a_session_has_no_total_while_it_is_open():
    """Calls may come until the session is shut."""
    with Flow() as flow:
        with flow.session(progress=True) as session:
            assert session.submit(len, "abc").result(WATCHDOG) == 3
            until(lambda: session.tally().ended == 1)
            assert session.tally().total is None
        assert counted(session) == (1, 0, 0, 0, 0, 1)


# ---- what tasks say of themselves -------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["inline", "thread", "asyncio"])
def test_what_a_task_says_is_there_until_it_ends(executor):
    """The newest words of each task run that is under way, the newest speaker last; nothing after the end."""
    seen = []

    def work(run_of):
        current_task().progress(1, 4)
        current_task().progress(2, 4)
        seen.append(run_of()[0].tally().progress)
        return "done"

    async def work_async(run_of):
        await asyncio.sleep(0)
        return work(run_of)

    with Flow(executor) as flow:
        flow.add_task("work", work_async if executor == "asyncio" else work)
        run = flow.start("work", {"run_of": lambda: list(flow._runs)}, progress=True)
        assert run.result(WATCHDOG) == {"work": "done"}
        ((said,),) = seen
        assert (said.id, said.done, said.total) == ("work", 2, 4)
        assert run.tally().progress == ()


def test_what_a_task_says_in_another_process():
    """It comes home while the task goes on."""
    heard = threading.Event()
    seen = []

    class Heard(Log):
        def __call__(self, event):
            seen.append(run_of().tally().progress)
            heard.set()

    from millstream import fn_hook

    def run_of():
        (run,) = flow._runs
        return run

    with Flow("process", max_workers=1, hooks=[fn_hook(on_task_progress=Heard())]) as flow:
        flow.add_task("tells", process_tasks.tells_and_waits)
        run = flow.start("tells", progress=True)
        assert heard.wait(WATCHDOG)
        run.context.set("go", True)
        assert run.result(WATCHDOG) == {"tells": True}
    ((said,),) = seen
    assert (said.id, said.done, said.total) == ("tells", 3, 10)


# ---- the option -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["run", "stream", "start", "arun", "astream", "run_many", "session", "resume"])
def test_every_way_to_run_shows_it(way, capsys, tmp_path):
    """The last line is there when the call has returned, and no thread of a display is left."""

    async def aread(flow):
        return [chunk async for chunk in flow.astream("work", progress=True)]

    with Flow("thread", name="shop", store=tmp_path / "runs.db") as flow:
        flow.add_task("work", lambda: "done")
        if way == "run":
            flow.run("work", progress=True)
        elif way == "stream":
            assert len(list(flow.stream("work", progress=True))) == 1
        elif way == "start":
            flow.start("work", progress=True).result(WATCHDOG)
        elif way == "arun":
            asyncio.run(flow.arun("work", progress=True))
        elif way == "astream":
            assert len(asyncio.run(aread(flow))) == 1
        elif way == "run_many":
            assert len(list(flow.run_many([None], "work", progress=True))) == 1
        elif way == "session":
            with flow.session(progress=True) as session:
                session.submit(len, "a")
        else:
            flow.run("work", run_id="monday")
            flow.resume("monday", progress=True)
        said = capsys.readouterr().err
        assert re.fullmatch(r"\S+: SUCCESS after .*1 done", said.splitlines()[-1]), said
        assert_gone(engine_threads("millstream-progress"))


@pytest.mark.parametrize("way", ["run", "stream", "start"])
def test_the_display_is_closed_before_anybody_goes_on(way, monkeypatch):
    """Who waits for a run, or reads it to its end, finds the last line written."""
    closing, gone_on = threading.Event(), threading.Event()
    too_early = []

    class Slow(display.Progress):
        def close(self, status):
            closing.set()
            too_early.append(gone_on.wait(0.2))  # nobody may go on while it draws
            super().close(status)

    monkeypatch.setattr(display, "Progress", Slow)
    with Flow("thread") as flow:
        flow.add_task("work", lambda: 1)
        if way == "run":
            flow.run("work", progress=True)
        elif way == "stream":
            assert len(list(flow.stream("work", progress=True))) == 1
        else:
            flow.start("work", progress=True).result(WATCHDOG)
        gone_on.set()
        assert closing.is_set()
        assert too_early == [False]


@pytest.mark.parametrize("value", [1, "yes", None, object()])
def test_progress_is_true_or_false(value):
    """Anything else is refused before something starts."""
    with Flow("inline") as flow:
        flow.add_task("work", lambda: 1)
        with pytest.raises(TypeError, match="progress=True or False"):
            flow.run("work", progress=value)


def test_without_it_nothing_is_loaded_or_shown(capsys, monkeypatch):
    """A run without a display makes none."""
    monkeypatch.setattr(display, "Progress", None)
    with Flow("inline") as flow:
        flow.add_task("work", lambda: 1)
        assert flow.run("work") == {"work": 1}
    assert capsys.readouterr() == ("", "")


def test_a_run_that_fails_says_so(capsys):
    """The last line has the status of the run, also when its error is raised."""
    with Flow("thread") as flow:
        flow.add_task("work", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            flow.run("work", progress=True)
    assert re.search(r"FAILED after .*1 failed", capsys.readouterr().err)


# ---- when attempts begin and end ----------------------------------------------------------------------


def rows_of(report):
    """Return the rows of a timeline: one for each worker whose attempts do not overlap."""
    return Timeline(report.created_at, report.trace).rows


def test_attempts_of_one_process_do_not_overlap():
    """An attempt has ended before the next one in its process begins."""
    with Flow("process", max_workers=1) as flow:
        flow.add_task("fan", fan(50), executor="inline")
        flow.add_task("work", process_tasks.nothing)
        flow.run("fan", trace=True)
        assert len(rows_of(flow.report())) == 2


def test_an_attempt_ends_when_its_worker_says_so(gate):
    """Not when the step is done that settles it, which may have to wait for somebody who holds the lock."""
    context, second = Context(), threading.Event()

    def last():
        second.set()

    with Flow(max_workers=1) as flow:
        flow.add_task("first", gate.work)
        flow.add_task("last", last)
        run = flow.start(["first", "last"], trace=True, context=context)
        gate.begun.wait_for(1)
        with context._monitor:
            gate.open(1)
            assert second.wait(WATCHDOG)
        run.result(WATCHDOG)
        first, after = run.report().trace
        assert (first.task, after.task) == ("first", "last")
        assert first.finished_at <= after.started_at
        assert len(rows_of(run.report())) == 1


def test_what_many_tasks_say_is_not_kept(monkeypatch):
    """When nobody looks any more, what task runs have said of themselves goes all the same."""
    monkeypatch.setattr("sys.stderr", None)
    with Flow(max_workers=2) as flow:
        flow.add_task("fan", fan(5000))
        flow.add_task("work", lambda: current_task().progress(1, 2))
        run = flow.start("fan", progress=True)
        run.result(WATCHDOG)
        assert len(run._progress) <= 2000


def test_a_stream_without_a_file_is_a_log():
    """Whatever stands in for standard error and can be written to gets the lines."""

    class Tee:
        said = ""

        def write(self, text):
            self.said += text

        def flush(self):
            pass

    tee = Tee()
    with contextlib.redirect_stderr(tee), Flow("thread") as flow:
        flow.add_task("work", lambda: 1)
        flow.run("work", progress=True, run_id="monday")
    assert tee.said.startswith("monday: SUCCESS after ")


def test_a_map_itself_has_no_worker():
    """Its items have; so nobody is busy with two attempts at once."""
    with Flow(max_workers=1) as flow:
        flow.add_task("items", lambda: [1, 2, 3])
        flow.add_task("each", lambda item: item, for_each="items")
        run = flow.start(trace=True)
        run.result(WATCHDOG)
        workers = {attempt.id: attempt.worker for attempt in run.report().trace}
    assert workers.pop("each") == ""
    assert set(workers) == {"items", "each[0]", "each[1]", "each[2]"}
    assert all(workers.values())
