"""Regressions R23, R24, R27 and R28: requests, values and order arrive as they were given."""

import asyncio
import logging
import threading

import pytest

from millstream import Context, Flow, NextTask, StreamChunk, TaskOutput
from tests.conftest import WATCHDOG, on_one_worker, run_snippet

# ---- R23 --------------------------------------------------------------------------------------------


def test_r23_a_request_that_coalesces_with_other_inputs_is_told(flow, caplog):
    """A request that is dropped although its inputs differ leaves a warning with the task and what was dropped."""
    flow.add_task("split", lambda ctx: [NextTask("worker", {"n": 1}), NextTask("worker", {"n": 2})])
    flow.add_task("worker", lambda ctx, n: n)

    assert flow.run("split", run_id="orders-7") == {"worker": 1}

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.name == "millstream"
    assert "worker" in record.getMessage()
    assert "{'n': 2}" in record.getMessage()
    assert (record.run_id, record.task) == ("orders-7", "worker")


@pytest.mark.parametrize(
    "requests",
    [
        [NextTask("worker", {"n": 1}), NextTask("worker", {"n": 1})],
        [NextTask("worker"), NextTask("worker")],
        [NextTask("worker", {"n": 1}, spawn_another=True), NextTask("worker", {"n": 2}, spawn_another=True)],
    ],
    ids=["equal", "none", "spawned"],
)
def test_r23_what_loses_nothing_is_not_told(flow, caplog, requests):
    """A request that coalesces with one of equal inputs, or that does not coalesce, warns of nothing."""
    flow.add_task("split", lambda ctx: requests)
    flow.add_task("worker", lambda ctx, n=0: n)

    flow.run("split")

    assert caplog.records == []


def test_r23_a_yielded_request_that_coalesces_is_told(flow, caplog):
    """The same for requests that a generator task yields one by one."""

    @flow.task
    def split(ctx: Context):
        yield NextTask("held", {"n": 1})
        yield NextTask("held", {"n": 2})
        ctx.set("go", 1)

    flow.add_task("held", lambda ctx, n: (ctx.get("go"), n))

    assert flow.run("split") == {"held": (1, 1)}
    assert ["{'n': 2}" in record.getMessage() for record in caplog.records] == [True]


def test_r23_a_pulled_request_that_coalesces_is_told(flow, caplog):
    """The same for requests that are pulled from an iterable."""

    def requests(ctx: Context):
        yield NextTask("held", {"n": 1})
        yield NextTask("held", {"n": 2})
        yield NextTask("go")

    flow.add_task("split", lambda ctx: TaskOutput(None, requests(ctx)))
    flow.add_task("held", lambda ctx, n: (ctx.get("go"), n))
    flow.add_task("go", lambda ctx: 1)

    assert flow.run("split") == {"held": (1, 1), "go": 1}
    assert ["{'n': 2}" in record.getMessage() for record in caplog.records] == [True]


# ---- R24 --------------------------------------------------------------------------------------------


def test_r24_a_task_that_schedules_itself_runs_until_it_stops(flow):
    """A task that asks for itself runs again and again, and its last result stands under the bare name."""

    @flow.task
    def loop(ctx: Context) -> TaskOutput:
        count = ctx.update("count", lambda n: n + 1, default=0)
        return TaskOutput(count, [NextTask("loop")] if count < 500 else None)

    assert flow.run("loop") == {"loop": 500}
    assert flow.run("loop", {"count": 499}) == {"loop": 500}
    assert flow.context["loop"] == 500


def test_r24_a_loop_of_coroutines(flow):
    """The same with a coroutine, and with inputs that count."""

    @flow.task
    async def loop(n: int = 0):
        await asyncio.sleep(0)
        return NextTask("loop", {"n": n + 1}) if n < 100 else n

    assert flow.run("loop") == {"loop": 100}


def test_r24_a_loop_of_two_tasks(flow):
    """Two tasks that ask for each other keep their bare names, and every round is in the stream."""
    flow.add_task("ping", lambda ctx, n=0: TaskOutput(n, [NextTask("pong", {"n": n})]))
    flow.add_task("pong", lambda ctx, n: TaskOutput(n, [NextTask("ping", {"n": n + 1})] if n < 20 else []))

    assert flow.run("ping") == {"pong": 20}
    expected = [StreamChunk(name, n) for n in range(21) for name in ("ping", "pong")]
    assert list(flow.stream("ping")) == expected


# ---- R27 --------------------------------------------------------------------------------------------

VALUES = [None, 0, "", False, 0.0, b"", (), [], {}, ("a", "b"), ("x", []), (None, None), [1, 2], {"next_tasks": []}]
HOW = ["bare", "output", "output and list", "generator", "async", "async output"]


def returning(value: object, how: str):
    """A task that gives ``value`` in one of the ways there are."""

    def generator(ctx):
        return value
        yield

    async def coroutine(ctx):
        await asyncio.sleep(0)
        return value if how == "async" else TaskOutput(value)

    return {
        "bare": lambda ctx: value,
        "output": lambda ctx: TaskOutput(value),
        "output and list": lambda ctx: TaskOutput(value, []),
        "generator": generator,
    }.get(how, coroutine)


@pytest.mark.parametrize("how", HOW)
def test_r27_outputs_arrive_as_they_were_returned(flow, how):
    """None, falsy values, tuples and pairs are outputs like any other: nothing replaces or splits them."""
    for value in VALUES:
        flow.add_task("give", returning(value, how), replace=True)

        assert flow.run("give", {"payload": "input"}) == {"give": value}
        assert flow.context.get("give", "default") is value
        assert list(flow.stream("give")) == [StreamChunk("give", value)]


def test_r27_inputs_arrive_as_they_were_given(flow):
    """The same values as inputs and as payload reach their task unchanged."""
    flow.add_task("take", lambda ctx, payload, n="default": (payload, n))

    for value in VALUES:
        flow.add_task("give", lambda ctx, value=value: NextTask("take", {"payload": value, "n": value}), replace=True)
        assert flow.run("give") == {"take": (value, value)}
        assert flow.run("take", {"payload": value, "n": value}) == {"take": (value, value)}


def test_r27_outputs_reach_a_join_as_they_were_returned(flow):
    """A join gets each of its siblings' outputs unchanged, in the order of the list."""
    flow.add_task("give", lambda ctx, n: VALUES[n])
    flow.add_task("collect", lambda upstream: upstream)

    @flow.task
    def split() -> list[NextTask]:
        gives = [NextTask("give", {"n": n}, spawn_another=True) for n in range(len(VALUES))]
        return [*gives, NextTask("collect", join=True)]

    assert flow.run("split") == {"collect": VALUES}


def test_r27_yielded_values_arrive_as_they_were_yielded(flow):
    """The same for interim values."""

    @flow.task
    def give():
        yield from VALUES

    assert [chunk.value for chunk in flow.stream("give")] == [*VALUES, None]


def test_r27_an_output_beside_a_choice_is_kept(flow):
    """The output of a task that chooses a successor is in the context, and its inputs reach the successor."""
    flow.add_task("choose", lambda ctx: TaskOutput(("left", "right"), [NextTask("left", {"payload": ("a", "b")})]))
    flow.add_task("left", lambda ctx, payload: [ctx.get("choose"), payload])
    flow.add_task("right", lambda ctx: "right")

    assert flow.run("choose") == {"left": [("left", "right"), ("a", "b")]}


# ---- R28 --------------------------------------------------------------------------------------------


@on_one_worker
def test_r28_on_one_worker_start_order_is_list_order(flow):
    """On one worker task runs start in the order in which they were asked for."""
    started = []

    def starts(name: str, *then: str):
        def action(ctx: Context) -> TaskOutput:
            started.append(name)
            return TaskOutput(name, [NextTask(each, spawn_another=True) for each in then])

        return action

    flow.add_task("split", starts("split", "c", "a", "b", "leaf"))
    for name in "abc":
        flow.add_task(name, starts(name, f"{name}2", f"{name}1", "leaf"))
        for number in "12":
            flow.add_task(name + number, starts(name + number))
    flow.add_task("leaf", starts("leaf"))

    expected = ["split", "c", "a", "b", "leaf", "c2", "c1", "leaf", "a2", "a1", "leaf", "b2", "b1", "leaf"]
    for _ in range(50):
        started.clear()
        flow.run("split")
        assert started == expected
        started.clear()
        flow.run(["b", "leaf", "a"])
        assert started == ["b", "leaf", "a", "b2", "b1", "leaf", "a2", "a1", "leaf"]


def test_r28_coroutines_start_in_list_order(flow):
    """Coroutines start in the order in which they were asked for, whichever of them suspend."""
    started = []
    flow.add_task("split", lambda ctx: [NextTask("worker", {"n": n}, spawn_another=True) for n in range(20)])

    @flow.task
    async def worker(n: int) -> None:
        started.append(n)
        if n % 3:
            await asyncio.sleep(0)

    for _ in range(20):
        started.clear()
        flow.run("split")
        assert started == list(range(20))


def test_r28_the_order_is_the_same_under_every_hash_seed():
    """The order on one worker, ids and idempotency keys do not depend on the hash seed."""
    program = """
        from concurrent.futures import ThreadPoolExecutor
        from millstream import AsyncioExecutor, Flow, NextTask, ThreadExecutor, current_task

        names = ["pear", "apple", "fig", "lime", "date"]
        with ThreadPoolExecutor(1) as pool:
            for executor in ("inline", ThreadExecutor(1), AsyncioExecutor(1), pool):
                started = []

                def work(ctx):
                    started.append((current_task().id, current_task().key))
                    return [NextTask(name, spawn_another=True) for name in names if len(started) < 10]

                with Flow(executor) as flow:
                    for name in names:
                        flow.add_task(name, work)
                    results = flow.run(names, run_id="seeded")
                print(started, list(results))
        """
    first, *others = [run_snippet(program, PYTHONHASHSEED=seed) for seed in ("0", "1", "42")]

    lines = first.splitlines()
    assert len(lines) == 4
    assert len(set(lines)) == 1  # nor on the executor
    assert others == [first, first]


def test_r28_a_thousand_tasks_print_nothing(flow, capfd):
    """1,000 task runs, a failure and a coalesced request leave stdout and stderr empty."""
    flow.add_task("split", lambda ctx: [NextTask("worker", {"n": n}, spawn_another=True) for n in range(1000)])
    flow.add_task("worker", lambda ctx, n: n)
    flow.add_task("twice", lambda ctx: [NextTask("worker", {"n": 1}), NextTask("worker", {"n": 1}), NextTask("nope")])

    assert len(flow.run("split")) == 1000
    with pytest.raises(LookupError):
        flow.run("twice")
    flow.close()

    assert capfd.readouterr() == ("", "")


def test_a_request_whose_inputs_are_still_compared_is_told_before_the_run_returns(caplog):
    """The log of a run is complete when it has ended, also when another thread is about to write the last of it."""
    comparing, ended = threading.Event(), threading.Event()

    class Slow:
        """Inputs whose comparison takes until the run has ended in another thread."""

        def __eq__(self, other):
            comparing.set()
            ended.wait(0.3)
            return False

        __hash__ = None

    with Flow(max_workers=2) as flow:

        @flow.task
        def split(ctx):
            return [NextTask("held", {"n": Slow()}), NextTask("held", {"n": Slow()})]

        flow.add_task("busy", lambda: comparing.wait(WATCHDOG))  # its worker goes on with what is held
        flow.add_task("held", lambda n: None)

        flow.run(["split", "busy"])
        assert [record.getMessage()[:26] for record in caplog.records] == ["A request for task held wa"]
        ended.set()
