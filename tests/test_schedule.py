"""Runs by the clock: slots, what overlaps, what is missed, and each slot once on one store."""

import asyncio
import logging
import threading
from datetime import UTC, datetime, timedelta
from itertools import count
from zoneinfo import ZoneInfo

import pytest

from millstream import Flow, MemoryStore, SQLiteStore, TaskNotFoundError
from millstream.schedule import Cron, Job, Scheduler
from millstream.schedule import scheduler as module
from tests.conftest import WATCHDOG, engine_threads, until

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds):
    """Return an instant so many seconds after the beginning."""
    return BEGIN + timedelta(seconds=seconds)


@pytest.fixture
def flow():
    """Give a flow whose task ``work`` is done when a tick returns."""
    with Flow("inline") as flow:
        flow.add_task("work", lambda ctx: "done")
        yield flow


def slots(scheduler, *seconds):
    """Tick at these seconds; return what has fired, as seconds."""
    fired = []
    for second in seconds:
        for run in scheduler.tick(at(second)):
            slot = datetime.fromisoformat(run.id.rpartition("@")[2])
            fired.append((slot - BEGIN).total_seconds())
    return fired


# ---- which slots fire --------------------------------------------------------------------------------


def test_r56_each_due_time_fires_once(flow):
    """Ticks at, between and repeatedly at due times start each of them once, the first one interval after the start."""
    scheduler = Scheduler(flow)
    scheduler.every(10).do("work")
    assert slots(scheduler, 0, 0, 5, 10, 10, 11, 20, 25, 30) == [10, 20, 30]


def test_r56_a_task_that_raises_does_not_stop_its_job(flow, caplog):
    """A run that fails is logged with the job's name, and the next slot fires."""
    flow.add_task("broken", lambda ctx: 1 / 0)
    scheduler = Scheduler(flow)
    scheduler.every(10, name="unlucky").do("broken")
    assert slots(scheduler, 0, 10, 20) == [10, 20]
    assert sum(record.message.startswith("Job unlucky: run ") for record in caplog.records) == 2


def test_r56_arithmetic_that_raises_hinders_no_other_job(flow, caplog, monkeypatch):
    """When the next time of one job cannot be computed, that is logged, the others fire, and it fires later."""
    scheduler = Scheduler(flow)
    bad = scheduler.cron("* * * * *", name="bad").do("work")
    scheduler.every(60, name="good").do("work")
    assert slots(scheduler, 0) == []
    with monkeypatch.context() as patch:
        patch.setattr(Cron, "next", lambda self, after: 1 / 0)
        assert slots(scheduler, 60) == [60]
        assert [record.message for record in caplog.records] == ["Job bad could not be started"]
        assert bad in scheduler.jobs
    assert sorted(slots(scheduler, 120)) == [120, 120]


def test_intervals_and_instants(flow):
    """``every`` takes fractions and timedeltas, ``at`` fires once, ``cron`` in its zone."""
    scheduler = Scheduler(flow)
    scheduler.every(0.5, name="half").do("work")
    scheduler.every(timedelta(seconds=2), name="two").do("work")
    scheduler.at(at(1), name="once").do("work")
    scheduler.cron("1 1 * * *", tz="Europe/Berlin", name="berlin").do("work")
    fired = [run.id.partition("@")[0] for n in range(5) for run in scheduler.tick(at(n / 2))]
    assert fired == ["half", "half", "once", "half", "half", "two"]
    assert [run.id for run in scheduler.tick(at(61)) if run.id.startswith("berlin")] == [
        "berlin@2026-01-01T00:01:00+00:00"
    ]


def test_inputs_go_to_the_task(flow):
    """``do`` takes the task itself or its name, and inputs, which are copied."""
    given = {"x": 2}

    @flow.task
    def double(x):
        return 2 * x

    scheduler = Scheduler(flow)
    job = scheduler.every(10).do(double, given)
    given["x"] = 50
    scheduler.tick(at(0))
    (run,) = scheduler.tick(at(10))
    assert run.result() == {"double": 4}
    assert job.run is run
    assert job.next_at == at(20)


def test_a_cancelled_job_fires_no_more(flow):
    """``cancel`` takes a job out of ``jobs``; one that is over goes by itself."""
    scheduler = Scheduler(flow)
    often = scheduler.every(10).do("work")
    scheduler.at(at(5)).do("work")
    assert len(scheduler.jobs) == 2
    assert slots(scheduler, 0, 5) == [5]
    assert scheduler.jobs == (often,)
    often.cancel()
    assert scheduler.jobs == ()
    assert slots(scheduler, 10, 20) == []


def test_the_night_of_the_change(flow):
    """A fixed time that the clock repeats fires once, and one that it jumps over right after the jump."""
    scheduler = Scheduler(flow)
    scheduler.cron("30 2 * * *", tz="Europe/Berlin", name="backup").do("work")
    for day in (datetime(2026, 3, 28, 23, tzinfo=UTC), datetime(2026, 10, 24, 23, tzinfo=UTC)):
        job_runs = [run.id for minute in range(0, 300, 10) for run in scheduler.tick(day + timedelta(minutes=minute))]
        assert len(job_runs) == 1
    assert datetime.fromisoformat(job_runs[0].rpartition("@")[2]).astimezone(ZoneInfo("Europe/Berlin")).fold == 0


# ---- what is missed, what overlaps -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missed", "fired"),
    [("skip", [10, 120, 1000]), ("once", [10, 120, 300, 1000])],
)
def test_missed_slots(flow, missed, fired):
    """Of several due slots the newest fires; when it is over 60 s late, only under ``once``."""
    scheduler = Scheduler(flow)
    job = scheduler.every(10, missed=missed).do("work")
    assert isinstance(job, Job)
    got = slots(scheduler, 0, 10, 125)
    job.trigger = module.At(at(300))  # from here on one slot, for which the process comes too late
    got += slots(scheduler, 361)
    late = Scheduler(flow)
    late.at(at(1000)).do("work")
    got += slots(late, 1060)
    assert got == fired


def test_an_instant_in_the_past_was_missed(flow):
    """``at`` a time that is over fires only under ``once``, unless it is not yet late."""
    for missed, ago, fired in (("skip", 30, [-30]), ("skip", 61, []), ("once", 9999, [-9999])):
        scheduler = Scheduler(flow)
        scheduler.at(at(-ago), missed=missed).do("work")
        assert slots(scheduler, 0, 1) == fired


@pytest.mark.parametrize(
    ("overlap", "fired"), [("skip", [10, 50]), ("queue", [10, 20, 50]), ("parallel", [10, 20, 30, 40, 50])]
)
def test_r54_what_overlaps(overlap, fired):
    """While a run is under way a slot is left out, one is queued, or it runs beside it."""
    gate, most, now = threading.Event(), [0], [0]
    lock = threading.Lock()

    def work():
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        assert gate.wait(WATCHDOG)
        with lock:
            now[0] -= 1

    with Flow(max_workers=8) as flow:
        flow.add_task("work", work)
        scheduler = Scheduler(flow)
        job = scheduler.every(10, overlap=overlap).do("work")
        runs = [run for second in (0, 10, 20, 30, 40) for run in scheduler.tick(at(second))]
        until(lambda: now[0] == len(runs))
        gate.set()
        for run in runs:
            run.result(WATCHDOG)
        runs += scheduler.tick(at(45))  # what was queued
        for run in runs:
            run.result(WATCHDOG)
        runs += scheduler.tick(at(50))
        assert job.run is runs[-1]
        assert [(datetime.fromisoformat(run.id.rpartition("@")[2]) - BEGIN).total_seconds() for run in runs] == fired
        assert most[0] == (4 if overlap == "parallel" else 1)


def test_r54_a_queued_slot_starts_when_the_one_before_ends():
    """The thread of ``start`` needs no further tick for a slot that waits."""
    begun, gate = [], threading.Event()

    def work():
        begun.append(threading.get_ident())
        assert gate.wait(WATCHDOG)

    with Flow(max_workers=2) as flow:
        flow.add_task("work", work)
        scheduler = Scheduler(flow)
        job = scheduler.every(0.01, overlap="queue").do("work")
        scheduler.start()
        until(lambda: job.queued is not None)
        assert len(begun) == 1
        job.trigger = module.At(BEGIN)  # no slot comes any more
        gate.set()
        until(lambda: len(begun) == 2)
        scheduler.stop()


# ---- running by itself -------------------------------------------------------------------------------


def test_r53_start_runs_the_jobs(flow):
    """``start`` alone is enough, from a plain thread, and ``stop`` ends its thread."""
    fired = threading.Semaphore(0)
    flow.add_task("tell", lambda ctx: fired.release())
    scheduler = Scheduler(flow)
    scheduler.every(0.005).do("tell")
    scheduler.start()
    scheduler.start()  # it runs already
    assert len(engine_threads("millstream-schedule")) == 1
    for _ in range(3):
        assert fired.acquire(timeout=WATCHDOG)
    scheduler.stop()
    assert not engine_threads("millstream-schedule")


def test_r55_nothing_fires_before_start(flow):
    """A job that is due at once waits for ``start``; after ``stop`` nothing fires, and ``start`` goes on."""
    fired = threading.Semaphore(0)
    flow.add_task("tell", lambda ctx: fired.release())
    scheduler = Scheduler(flow)
    scheduler.at(BEGIN, missed="once", name="first").do("tell")
    assert not fired.acquire(blocking=False)
    scheduler.start()
    assert fired.acquire(timeout=WATCHDOG)
    scheduler.stop()
    scheduler.at(BEGIN, missed="once", name="second").do("tell")
    assert not engine_threads("millstream-schedule")
    assert not fired.acquire(blocking=False)
    scheduler.start()
    assert fired.acquire(timeout=WATCHDOG)
    scheduler.stop()


def test_a_job_that_is_added_wakes_the_thread(flow):
    """With nothing due for long, a new job fires at once."""
    fired = threading.Event()
    flow.add_task("tell", lambda ctx: fired.set())
    scheduler = Scheduler(flow)
    scheduler.every(3600).do("work")
    scheduler.start()
    scheduler.at(BEGIN, missed="once").do("tell")
    assert fired.wait(WATCHDOG)
    scheduler.stop()


def test_arun_runs_coroutines_on_its_loop():
    """Under ``arun`` async tasks run on the loop that awaits it, until ``stop``, from any thread."""
    loops = []

    async def main():
        async with Flow() as flow:
            enough = asyncio.Event()

            async def note():
                loops.append(asyncio.get_running_loop())
                if len(loops) == 3:
                    enough.set()

            flow.add_task("note", note)
            scheduler = Scheduler(flow)
            scheduler.every(0.005).do("note")
            running = asyncio.create_task(scheduler.arun())
            await asyncio.wait_for(enough.wait(), WATCHDOG)
            await asyncio.to_thread(scheduler.stop)
            await asyncio.wait_for(running, WATCHDOG)
            return asyncio.get_running_loop()

    assert set(loops) <= {asyncio.run(main())}
    assert len(loops) >= 3


def test_r55_stop_before_arun_ends_it_at_once(flow):
    """``arun`` after ``stop`` returns without starting anything, and the next one runs."""
    scheduler = Scheduler(flow)
    job = scheduler.at(BEGIN, missed="once").do("work")

    async def main():
        scheduler.stop()
        await asyncio.wait_for(scheduler.arun(), WATCHDOG)
        assert job.run is None
        running = asyncio.create_task(scheduler.arun())
        while job.run is None:
            await asyncio.sleep(0)
        scheduler.stop()
        await asyncio.wait_for(running, WATCHDOG)

    asyncio.run(main())


def test_stop_does_not_wait_for_runs():
    """What is under way when ``stop`` is called goes on."""
    gate, begun = threading.Event(), threading.Event()

    def work():
        begun.set()
        assert gate.wait(WATCHDOG)
        return "done"

    with Flow() as flow:
        flow.add_task("work", work)
        scheduler = Scheduler(flow)
        job = scheduler.at(BEGIN, missed="once").do("work")
        scheduler.start()
        assert begun.wait(WATCHDOG)
        scheduler.stop()
        gate.set()
        assert job.run.result(WATCHDOG) == {"work": "done"}


def test_a_closed_flow_ends_its_jobs(caplog):
    """When the flow was closed a job is over, and that is logged once."""
    flow = Flow("inline")
    flow.add_task("work", lambda ctx: None)
    scheduler = Scheduler(flow)
    scheduler.every(10).do("work")
    scheduler.tick(at(0))
    flow.close()
    assert slots(scheduler, 10, 20) == []
    assert scheduler.jobs == ()
    assert len(caplog.records) == 1


# ---- with a store ------------------------------------------------------------------------------------


def scheduled(store, ran, missed="skip"):
    """Return a flow on a store, and a scheduler that runs its task every ten seconds."""
    flow = Flow("inline", store=store)
    flow.add_task("work", lambda ctx: ran.append(1))
    scheduler = Scheduler(flow)
    scheduler.every(10, missed=missed, name="job").do("work")
    return flow, scheduler


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_on_one_store_each_slot_fires_once(tmp_path, kind):
    """Two schedulers with the same jobs share the slots, whoever is quicker."""
    ran = []
    stores = [MemoryStore()] * 2 if kind == "memory" else [SQLiteStore(tmp_path / "runs.db") for _ in range(2)]
    (one, first), (other, second) = (scheduled(store, ran) for store in stores)
    with one, other:
        assert slots(first, 0, 10) + slots(second, 0, 10) == [10]
        assert slots(second, 20) + slots(first, 20, 30) + slots(second, 30) == [20, 30]
        assert len(ran) == 3
    for store in stores:
        store.close()


@pytest.mark.parametrize(("missed", "fired"), [("skip", [230]), ("once", [220, 230])])
def test_a_schedule_knows_what_it_has_missed(tmp_path, missed, fired):
    """After a stop the slots of that time are missed: all are left out, or made up for by one run."""
    path, ran = tmp_path / "runs.db", []
    flow, scheduler = scheduled(str(path), ran, missed)
    assert slots(scheduler, 0, 10, 20) == [10, 20]
    flow.close()
    flow, scheduler = scheduled(str(path), ran, missed)
    scheduler.tick(at(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LATE", timedelta(seconds=5))
        assert slots(scheduler, 229)[-1:] + slots(scheduler, 230) == fired
    flow.close()


def test_a_store_that_fails_hinders_no_later_slot(caplog):
    """A slot whose run cannot be written is logged, and the next one fires."""
    from millstream import CheckpointError

    store, ran = MemoryStore(), []
    flow, scheduler = scheduled(store, ran)
    create, calls = store.create, count()

    def failing(*args):
        if next(calls) == 0:
            raise CheckpointError("the disk is full")
        create(*args)

    store.create = failing
    with flow:
        assert slots(scheduler, 0, 10, 20) == [20]
    assert [record.message for record in caplog.records] == ["Job job could not be started"]


# ---- bad input ---------------------------------------------------------------------------------------


def test_bad_input_is_refused(flow):
    """Intervals, instants, zones, words and names that cannot be used are refused where they enter."""
    scheduler = Scheduler(flow)
    for interval in (0, -1, float("nan"), float("inf"), timedelta(0)):
        with pytest.raises(ValueError, match="every"):
            scheduler.every(interval)
    for interval in ("60", True, None):
        with pytest.raises(TypeError):
            scheduler.every(interval)
    with pytest.raises(ValueError, match="no time zone"):
        scheduler.at(datetime(2026, 1, 1))
    with pytest.raises(TypeError):
        scheduler.at("2026-01-01")
    with pytest.raises(ValueError, match="no time zone"):
        scheduler.tick(datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="Nowhere"):
        scheduler.cron("* * * * *", tz="Nowhere/Land")
    with pytest.raises(ValueError, match="hour"):
        scheduler.cron("* 24 * * *")
    with pytest.raises(ValueError, match="overlap"):
        scheduler.every(1, overlap="never")
    with pytest.raises(ValueError, match="missed"):
        scheduler.every(1, missed="twice")
    with pytest.raises(TypeError, match="name"):
        scheduler.every(1, name="")
    with pytest.raises(TaskNotFoundError, match="nope"):
        scheduler.every(1).do("nope")
    scheduler.every(1).do("work")
    with pytest.raises(ValueError, match="name="):
        scheduler.every(1).do("work")


def test_a_done_callback_is_called_once(flow, caplog):
    """``run.add_done_callback`` is told of the end, also after it, and what it raises is logged."""
    told = []
    run = flow.start("work")
    run.add_done_callback(told.append)
    run.add_done_callback(lambda run: 1 / 0)
    assert told == [run]
    assert caplog.records[-1].levelno == logging.ERROR
    with Flow() as other:
        gate = threading.Event()
        other.add_task("wait", lambda ctx: gate.wait(WATCHDOG))
        run = other.start("wait")
        ended = threading.Event()
        run.add_done_callback(lambda run: ended.set())
        assert not ended.is_set()
        gate.set()
        assert ended.wait(WATCHDOG)
