"""Durable runs and schedules: what once went wrong."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import pytest

from millstream import (
    CheckpointError,
    Context,
    Flow,
    MemoryStore,
    NextTask,
    Status,
    StreamChunk,
    TaskOutput,
    current_task,
    task,
)
from millstream.schedule import Scheduler
from tests.conftest import WATCHDOG


class Trouble(Exception):
    """What fails until ``mend`` is called."""


class World:
    """Calls, and whether something fails."""

    def __init__(self):
        self.calls, self.broken = [], True

    def note(self, *call):
        self.calls.append(call[0] if len(call) == 1 else call)

    def strike(self):
        if self.broken:
            raise Trouble("it is broken")

    def mend(self):
        self.broken = False
        self.calls.clear()


@pytest.fixture
def world():
    return World()


@pytest.fixture
def flow():
    with Flow("inline", store=MemoryStore(), name="orders") as flow:
        yield flow


@pytest.fixture
def careful():
    """A flow whose runs go on after a failure."""
    with Flow("inline", store=MemoryStore(), name="orders", on_error="continue") as flow:
        yield flow


# ---- requests and calls ------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 1])
def test_what_is_asked_for_after_a_failure_is_another_task_run(careful, world, retries):
    """A task that had failed, also after retries, and was asked for again keeps what it gave then."""

    def start():
        return [NextTask("flaky", {"who": 1}), NextTask("step", {"n": 5})]

    def flaky(who):
        world.note("flaky", who)
        if who == 1:
            world.strike()
        return TaskOutput(who, [NextTask("child", {"who": who}, spawn_another=True)])

    careful.add_task("start", start)
    careful.add_task("flaky", flaky, retries=retries)
    careful.add_task("child", lambda who: (world.note("child", who), who)[1])
    careful.add_task("step", lambda n: NextTask("step", {"n": n - 1}) if n else NextTask("flaky", {"who": 2}))
    assert careful.run("start", run_id="r") == {"child": 2}
    world.mend()

    assert careful.resume("r") == {"child": 2, "child#2": 1}
    assert world.calls == [("flaky", 1), ("child", 1)]


def test_what_is_asked_for_after_a_join_was_dropped_is_another_task_run(careful, world):
    """A join that was dropped, whose task was asked for again, runs when its siblings have succeeded."""
    careful.add_task("start", lambda: [NextTask("group"), NextTask("step", {"n": 5})])
    careful.add_task("group", lambda: [NextTask("bad"), NextTask("tell", {"who": 1}, join=True)])
    careful.add_task("bad", world.strike)
    careful.add_task("tell", lambda who: (world.note(who), TaskOutput(who, [NextTask("child", {"who": who}, True)]))[1])
    careful.add_task("child", lambda who: who)
    careful.add_task("step", lambda n: NextTask("step", {"n": n - 1}) if n else NextTask("tell", {"who": 2}))
    assert careful.run("start", run_id="r") == {"child": 2}
    world.mend()

    assert careful.resume("r") == {"child": 2, "child#2": 1}
    assert world.calls == [1]


def test_a_task_that_has_cancelled_its_call_has_finished(flow, world):
    """A call that its task has cancelled does not make that run again."""

    @task
    def waits(ctx):
        return ctx.get("never", external=True)

    def parent():
        world.note("parent")
        waits.submit().cancel()
        return "p"

    def last(parent):
        world.strike()
        return parent

    flow.add_task("parent", parent)
    flow.add_task("last", last)
    with pytest.raises(Trouble):
        flow.run(run_id="r")
    world.mend()

    assert flow.resume("r") == flow.resume("r") == {"last": "p"}
    assert not world.calls


@pytest.mark.parametrize("how", ["result", "exception"])
def test_a_task_that_has_handled_the_failure_of_its_call_has_finished(flow, world, how):
    """A failure that a task has asked for does not make it run again."""

    @task
    def bad():
        raise ValueError("no")

    def parent():
        world.note("parent")
        call = bad.submit()
        if how == "exception":
            return str(call.exception())
        with pytest.raises(ValueError, match="no") as caught:
            call.result()
        return str(caught.value)

    def last(parent):
        world.strike()
        return parent

    flow.add_task("parent", parent)
    flow.add_task("last", last)
    with pytest.raises(Trouble):
        flow.run(run_id="r")
    world.mend()

    assert flow.resume("r") == {"last": "no"}
    assert not world.calls


def test_a_chunk_comes_once_also_before_the_calls_have_ended(world):
    """A task whose call has not ended when the process dies is called again, and its chunk was delivered already."""

    class Dying(MemoryStore):
        dead = False

        def append(self, *facts):
            if self.dead:
                raise OSError("dead")
            super().append(*facts)

        def finish(self, *facts):
            if self.dead:
                raise OSError("dead")
            super().finish(*facts)

    store = Dying()

    @task
    def slow():
        store.dead = world.broken
        return 1

    def parent():
        world.note("parent")
        slow.submit()
        return TaskOutput("p", [NextTask("after")])

    def made(store):
        flow = Flow("inline", store=store, name="orders")
        flow.add_task("parent", parent)
        flow.add_task("after", lambda: "a")
        return flow

    chunks = []
    with made(store) as flow, pytest.raises(CheckpointError, match="dead"):
        chunks.extend(flow.stream("parent", run_id="r"))
    assert chunks == [StreamChunk("parent", "p")]
    world.mend()
    copy, head = MemoryStore(), store.run("r")
    copy.create("r", head.flow, head.created_at, head.facts, list(store.entries("r")))
    copy.release("r")

    with made(copy) as flow:
        assert sorted(chunk.task_id for chunk in flow.stream(resume="r")) == ["after", "slow"]
    assert world.calls == ["parent"]


def test_a_call_key_is_a_string(flow):
    """Another call_key is refused where it is given."""
    with flow.session() as session:
        with pytest.raises(TypeError, match="call_key of a call is a string, not 5"):
            session.submit(abs, -1, call_key=5)
        assert session.submit(abs, -1).result() == 1


# ---- the context ---------------------------------------------------------------------------------------


def test_what_is_taken_back_was_never_in_an_output(flow, world):
    """A value appended to the output of another task by an attempt that failed is not there when it is called again."""

    def work(rows, ctx):
        world.note(*rows)
        ctx.append("rows", 3)
        world.strike()

    flow.add_task("rows", lambda: [1, 2])
    flow.add_task("work", work)
    with pytest.raises(Trouble):
        flow.run(run_id="r")
    world.mend()

    flow.resume("r")
    assert world.calls == [(1, 2)]
    assert flow.context["rows"] == [1, 2, 3]


def test_a_shared_context_has_each_append_once(world):
    """A resume in the same process, with a context that all runs share, appends nothing twice."""
    with Flow("inline", Context(), store=MemoryStore(), name="orders") as flow:

        def b(a, ctx):
            world.strike()
            return list(ctx["log"])

        flow.add_task("a", lambda ctx: ctx.append("log", "a"))
        flow.add_task("b", b)
        with pytest.raises(Trouble):
            flow.run(run_id="r")
        world.mend()

        assert flow.resume("r") == {"b": ["a"]}


# ---- from_tasks ------------------------------------------------------------------------------------------


def test_a_join_runs_again_when_what_a_sibling_coalesced_with_does(flow, world):
    """A join has waited for a task run that somebody else had asked for: it runs again with that."""
    factor = [1]

    def join(upstream):
        world.note("join")
        return upstream

    flow.add_task("start", lambda: [NextTask("one"), NextTask("two")])
    flow.add_task("one", lambda: [NextTask("x")])
    flow.add_task("two", lambda: [NextTask("x"), NextTask("join", join=True)])
    flow.add_task("x", lambda: (world.note("x"), factor[0])[1])
    flow.add_task("join", join)
    assert flow.run("start", run_id="r") == {"join": [1]}
    factor[0] = 10
    world.mend()

    assert flow.resume("r", from_tasks=["x"]) == {"join": [10]}
    assert world.calls == ["x", "join"]


def test_a_join_of_an_interrupted_generator_runs_again(flow, world):
    """What a generator had asked for before it was interrupted does not hide what came after its parts."""

    def start():
        yield NextTask("done", join=True)
        for n in range(2):
            yield NextTask("part", {"n": n}, spawn_another=True)
        world.strike()

    flow.add_task("start", start)
    flow.add_task("part", lambda n: (world.note("part"), n)[1])
    flow.add_task("done", lambda: (world.note("done"), "done")[1])
    with pytest.raises(Trouble):
        flow.run("start", run_id="r")
    world.mend()
    flow.resume("r")
    world.mend()

    flow.resume("r", from_tasks=["part"])
    assert world.calls == ["part", "part", "done"]


def test_attempts_of_what_comes_after_begin_anew(flow, world):
    """With from_tasks a task that had failed behind an edge has all its attempts, and none of its appends."""

    def b(a, ctx):
        world.note(current_task().attempt)
        ctx.append("log", "b")
        world.strike()
        return ctx["log"]

    flow.add_task("a", lambda: 1)
    flow.add_task("b", b, retries=1)
    with pytest.raises(Trouble):
        flow.run(run_id="r")
    world.mend()

    assert flow.resume("r", from_tasks=["a"]) == {"b": ["b"]}
    assert world.calls == [1]


# ---- refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["first", "second"])
def test_a_resume_that_is_refused_leaves_the_run_as_it_was(gone):
    """When a task is gone the error names run and task, and a run that has ended well is still such a run."""
    store = MemoryStore()
    with Flow("inline", store=store, name="orders") as flow:
        flow.add_task("first", lambda: NextTask("second"))
        flow.add_task("second", lambda: "done")
        flow.run("first", run_id="r")
    before = store.run("r"), list(store.entries("r"))
    with Flow("inline", store=store, name="orders") as flow:
        flow.add_task({"first": "second", "second": "first"}[gone], lambda: NextTask("second"))

        with pytest.raises(CheckpointError, match=f"Run r cannot go on with the tasks of now: Task {gone} not found"):
            flow.resume("r")
        if gone == "first":
            with pytest.raises(CheckpointError, match="Task first not found"):
                flow.resume("r", from_tasks=["second"])

    assert (store.run("r"), list(store.entries("r"))) == before
    assert [head.id for head in store.runs()] == ["r"]
    assert before[0].status is Status.SUCCESS


def test_options_are_checked_with_resume_too(flow):
    """A misspelt option is refused, whether a run begins or goes on."""
    flow.add_task("a", lambda: 1)
    flow.run("a", run_id="r")

    with pytest.raises(TypeError, match="timout: did you mean timeout"):
        flow.run(resume="r", timout=5)


@pytest.mark.parametrize("where", ["run", "flow"])
def test_half_a_character_is_no_name(where):
    """A run or a flow with a lone surrogate in its name is refused with a sentence about that."""
    with Flow("inline", store=MemoryStore(), name="a\udc80" if where == "flow" else "a") as flow:
        flow.add_task("a", lambda: 1)
        with pytest.raises(CheckpointError, match="half a character"):
            flow.run("a", run_id="r\udc80" if where == "run" else "r")


# ---- schedules -------------------------------------------------------------------------------------------

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_task_may_tick_its_own_scheduler():
    """On the inline executor a task that ticks the scheduler which has started it does not hang."""
    with Flow("inline") as flow:
        scheduler, ticked = Scheduler(flow), threading.Event()

        def work():
            scheduler.tick(BEGIN + timedelta(minutes=1))
            ticked.set()

        flow.add_task("work", work)
        scheduler.every(60).do("work")
        scheduler.tick(BEGIN)
        thread = threading.Thread(target=lambda: [run.wait() for run in scheduler.tick(BEGIN + timedelta(minutes=1))])
        thread.start()

        assert ticked.wait(WATCHDOG)
        thread.join(WATCHDOG)


def test_stop_ends_all_that_run_a_scheduler():
    """``stop`` ends every ``arun``, and one that ended a thread does not end the next ``arun``."""
    with Flow() as flow:
        flow.add_task("work", lambda: None)
        scheduler = Scheduler(flow)
        job = scheduler.at(BEGIN, missed="once").do("work")
        scheduler.every(3600).do("work")

        async def main():
            running = [asyncio.create_task(scheduler.arun()) for _ in range(2)]
            while job.run is None:
                await asyncio.sleep(0)
            scheduler.stop()
            await asyncio.wait_for(asyncio.gather(*running), WATCHDOG)
            scheduler.start()
            scheduler.stop()
            later = scheduler.at(BEGIN, missed="once", name="later").do("work")
            again = asyncio.create_task(scheduler.arun())
            while later.run is None:
                await asyncio.sleep(0)
            scheduler.stop()
            await asyncio.wait_for(again, WATCHDOG)

        asyncio.run(asyncio.wait_for(main(), 2 * WATCHDOG))
