"""Context and State: reading, writing, waiting, fencing, and which run uses which context."""

# ruff: noqa: PT012 - registering and running are what is said to raise here

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from millstream import (
    BlockingGetError,
    Context,
    ContextKeyError,
    Flow,
    FlowError,
    NextTask,
    RunCancelledError,
    State,
    StreamChunk,
    TaskCancelledError,
    TaskTimeoutError,
    current_task,
)
from tests.conftest import EACH_KIND, WATCHDOG, executors, wait_for

executor = executors(EACH_KIND)


# ---- a mapping ------------------------------------------------------------------------------------


def test_a_context_is_a_mapping_of_names_to_values():
    """get, set, [], in, len, iteration, delete and to_dict agree with each other."""
    ctx = Context({"a": 1})
    ctx.set("b", 2)
    ctx["c"] = 3
    assert (ctx.get("a"), ctx["b"], ctx.get("c")) == (1, 2, 3)
    assert "a" in ctx
    assert "z" not in ctx
    assert (len(ctx), list(ctx)) == (3, ["a", "b", "c"])
    ctx.delete("a")
    del ctx["b"]
    assert ctx.to_dict() == {"c": 3}


def test_none_is_a_value_like_any_other():
    """A key set to None is there: neither a default nor an error comes in its place."""
    ctx = Context({"a": None})
    assert ctx.get("a") is None
    assert ctx.get("a", 5) is None
    assert ctx["a"] is None
    assert "a" in ctx


def test_a_default_may_be_anything():
    """A default is returned as it is, also None and also with a timeout, and is not stored."""
    ctx = Context()
    assert ctx.get("a", None) is None
    assert ctx.get("a", 5) == 5
    assert ctx.get("a", default=[], timeout=0) == []
    assert "a" not in ctx


def test_a_missing_key_outside_a_run_raises_at_once():
    """Nobody could set it: get, [], delete and update raise ContextKeyError, which is a KeyError."""
    ctx = Context()
    for ask in (
        lambda: ctx.get("a"),
        lambda: ctx["a"],
        lambda: ctx.get("a", timeout=30),
        lambda: ctx.get("a", external=True),
        lambda: ctx.delete("a"),
        lambda: ctx.update("a", str),
    ):
        with pytest.raises(KeyError) as caught:
            ask()
        assert isinstance(caught.value, ContextKeyError)
        assert str(caught.value) == "Key a not found in context"


def test_a_context_copies_what_it_is_made_of():
    """Later changes of the mapping do not show, and to_dict is a copy as well."""
    values = {"a": 1}
    ctx = Context(values)
    values["a"] = 2
    ctx.to_dict()["a"] = 3
    assert ctx.get("a") == 1


def test_from_dict_adds_to_what_is_there():
    """Every key of the mapping is set, others stay."""
    ctx = Context({"a": 1, "b": 2})
    ctx.from_dict({"b": 3, "c": 4})
    assert ctx.to_dict() == {"a": 1, "b": 3, "c": 4}


def test_update_replaces_a_value_and_returns_the_new_one():
    """With a default for a key that is not there."""
    ctx = Context({"n": 1})
    assert ctx.update("n", lambda n: n + 1) == 2
    assert ctx.update("m", lambda m: m + 1, 10) == 11
    assert ctx.update("none", lambda value: [value], default=None) == [None]
    assert ctx.to_dict() == {"n": 2, "m": 11, "none": [None]}


def test_an_update_that_raises_changes_nothing():
    """What fn raises reaches the caller, and the value stays."""
    ctx = Context({"n": 1})
    with pytest.raises(ZeroDivisionError):
        ctx.update("n", lambda n: n / 0)
    assert ctx.to_dict() == {"n": 1}


def test_update_calls_again_when_another_came_in_between():
    """No update is lost: fn sees the value that it replaces."""
    ctx = Context({"n": 1})
    seen = []

    def slow(n):
        seen.append(n)
        if len(seen) == 1:
            ctx.set("n", 100)
        return n + 1

    assert ctx.update("n", slow) == 101
    assert seen == [1, 100]


def test_update_holds_no_lock_while_it_calls():
    """fn may use the context itself."""
    ctx = Context({"n": 1})
    assert ctx.update("n", lambda n: n + ctx.update("m", lambda m: m + 1, 0)) == 2


def test_no_update_and_no_append_is_lost(flow):
    """Many tasks on one counter and one list: all of them count."""

    @flow.task
    def start():
        return [NextTask("count", {"n": n}, spawn_another=True) for n in range(200)]

    @flow.task
    def count(ctx, n):
        ctx.update("sum", lambda total: total + n, 0)
        ctx.append("all", n)

    flow.run("start")
    assert flow.context.get("sum") == sum(range(200))
    assert sorted(flow.context.get("all")) == list(range(200))


def test_append_makes_the_list_and_wakes_who_waits_for_it(flow):
    """The first append sets the key."""
    flow.add_task("reader", lambda ctx: list(ctx.get("items")))
    flow.add_task("writer", lambda ctx: ctx.append("items", 1))
    assert flow.run(["reader", "writer"])["reader"] == [1]


def test_append_to_what_is_no_list_is_refused():
    """The error says what is there."""
    ctx = Context({"a": (1,)})
    with pytest.raises(TypeError, match="tuple"):
        ctx.append("a", 2)
    assert ctx.get("a") == (1,)


def test_repr_names_the_keys():
    """A context tells what it holds."""
    assert repr(Context()) == "<Context: empty>"
    assert repr(Context({"a": 1, "b": 2})) == "<Context: a, b>"


# ---- deps, metadata -------------------------------------------------------------------------------


def test_deps_and_metadata_of_a_context():
    """What the constructor was given; without it None and an empty mapping."""
    deps = object()
    ctx = Context(deps=deps, metadata={"user": "ann"})
    assert ctx.deps is deps
    assert ctx.metadata == {"user": "ann"}
    assert Context().deps is None
    assert Context().metadata == {}
    with pytest.raises(TypeError):
        ctx.metadata["user"] = "bob"


def test_deps_and_metadata_of_a_run(flow):
    """A run's deps and metadata are its own: the next run has none of them."""
    flow.add_task("a", lambda ctx: (ctx.deps, dict(ctx.metadata)))
    assert flow.run(deps="mine", metadata={"n": 1})["a"] == ("mine", {"n": 1})
    assert flow.run()["a"] == (None, {})
    assert flow.run(context=Context({"x": 1}, deps="theirs"))["a"] == ("theirs", {})


def test_metadata_is_copied():
    """Changing the mapping after the start changes nothing."""
    given = {"n": 1}
    ctx = Context(metadata=given)
    given["n"] = 2
    assert ctx.metadata == {"n": 1}


# ---- waiting --------------------------------------------------------------------------------------


def test_get_waits_for_a_task_that_sets_the_key(flow):
    """get, [] and update wait while something could still set the key, even when started first."""
    flow.add_task("get", lambda ctx: ctx.get("value"))
    flow.add_task("item", lambda ctx: ctx["value"])
    flow.add_task("update", lambda ctx: ctx.update("value", lambda value: value + 1))
    flow.add_task("set", lambda ctx: ctx.set("other", 1))
    flow.add_task("output", lambda ctx: ctx.get("value2"))

    @flow.task
    def value(ctx):
        ctx.set("value2", 7)
        return 5

    results = flow.run(["get", "item", "output", "value"])
    assert results == {"get": 5, "item": 5, "output": 7, "value": 5}
    assert flow.run(["update", "value"])["update"] == 6


def test_a_key_that_nothing_can_set_any_more_raises(flow):
    """get raises ContextKeyError as soon as nobody is left who could set the key."""
    flow.add_task("wait", lambda ctx: ctx.get("never"))
    flow.add_task("other", lambda: None)
    with pytest.raises(ContextKeyError, match="Key never not found in context"):
        flow.run(["wait", "other"])


def test_with_a_default_and_no_timeout_get_never_waits(flow):
    """A default comes at once although somebody could still set the key."""
    flow.add_task("a", lambda ctx: ctx.get("b", "default"))
    flow.add_task("b", lambda ctx: ctx.get("a"))
    assert flow.run(["a", "b"]) == {"a": "default", "b": "default"}


def test_a_timeout_in_a_run_raises_timeout_error(executor):
    """get(timeout=) raises TimeoutError while somebody could still set the key, and is no FlowError."""
    over = threading.Event()

    def wait(ctx):
        try:
            with pytest.raises(TimeoutError, match="value") as caught:
                ctx.get("value", timeout=0.02)
            assert not isinstance(caught.value, FlowError)
            return ctx.get("value", "default", timeout=0.02)
        finally:
            over.set()

    with Flow(executor) as flow:
        flow.add_task("wait", wait)
        flow.add_task("value", lambda: over.wait(WATCHDOG))
        if executor != "inline":  # there the one who could set it is what runs meanwhile
            assert flow.run(["wait", "value"]) == {"wait": "default", "value": True}


def test_a_timeout_outside_tasks_while_a_run_is_under_way():
    """The main thread may wait for a key of a run in the background, with a limit or without."""
    go = threading.Event()
    with Flow() as flow:

        @flow.task
        def slow(ctx):
            wait_for(go)
            ctx.set("late", 5)

        run = flow.start()
        with pytest.raises(TimeoutError, match="late"):
            run.context.get("late", timeout=0.01)
        assert run.context.get("late", "default", timeout=0.01) == "default"
        go.set()
        assert run.context.get("late") == 5
        run.wait()
        with pytest.raises(ContextKeyError):
            run.context.get("never")


def test_who_waits_outside_is_told_when_the_run_ends():
    """A wait of the main thread ends with the run that could have set the key."""
    with Flow() as flow:
        flow.add_task("a", lambda ctx: ctx.get("go", external=True))
        run = flow.start()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(run.context.get, "never")
            run.context.set("go", 1)
            with pytest.raises(ContextKeyError, match="never"):
                waiting.result(WATCHDOG)


def test_external_waits_for_a_value_from_outside(executor):
    """get(external=True) waits although nothing in the run could set the key."""
    if executor == "inline":
        pytest.skip("start returns when an inline run has ended, so nobody could set it from outside")
    with Flow(executor) as flow:
        flow.add_task("wait", lambda ctx: ctx.get("answer", external=True) + ctx["answer"])
        run = flow.start()
        run.context.set("answer", 21)
        assert run.result(WATCHDOG) == {"wait": 42}


def test_external_waits_inline_for_another_thread():
    """An inline run waits for a value that another thread sets."""
    with Flow("inline") as flow, ThreadPoolExecutor(1) as pool:
        waits = threading.Event()

        @flow.task
        def wait(ctx):
            waits.set()
            return ctx.get("answer", external=True)

        context = Context({"here": 1})
        running = pool.submit(flow.run, context=context)
        wait_for(waits)
        context.set("answer", 42)
        assert running.result(WATCHDOG) == {"wait": 42}


def test_external_is_left_out_of_the_proof():
    """Somebody who waits for an outside value could still set what others wait for."""
    with Flow("thread", max_workers=1) as flow:

        @flow.task
        def gate(ctx):
            ctx.set("inside", ctx.get("outside", external=True))

        flow.add_task("wait", lambda ctx: ctx.get("inside"))
        run = flow.start(["wait", "gate"])
        run.context.set("outside", 5)
        assert run.result(WATCHDOG)["wait"] == 5


def test_external_with_a_timeout(executor):
    """An outside value that does not come in time is a TimeoutError, or the default."""

    def wait(ctx):
        with pytest.raises(TimeoutError):
            ctx.get("answer", external=True, timeout=0.01)
        return ctx.get("answer", "default", external=True, timeout=0.01)

    with Flow(executor) as flow:
        flow.add_task("wait", wait)
        assert flow.run() == {"wait": "default"}


def test_many_who_wait_need_one_worker(executor):
    """Waiting gives the place back: many consumers and their producer end on one worker."""
    with ThreadPoolExecutor(1) as pool:
        options = {"max_workers": 1} if executor in ("thread", "asyncio") else {}
        with Flow(executor if isinstance(executor, str) else pool, **options) as flow:
            flow.add_task("consumer", lambda ctx: ctx.get("value"))
            flow.add_task("value", lambda: 5)
            results = flow.run(["consumer"] * 30 + ["value"])
            assert len(results) == 31
            assert set(results.values()) == {5}


def test_a_get_that_would_block_the_loop_raises_and_says_what_to_write(flow):
    """In a coroutine get works for what is there; else BlockingGetError names aget."""

    @flow.task
    async def ask(ctx):
        assert ctx.get("there") == 1
        assert ctx.get("missing", "default") == "default"
        with pytest.raises(BlockingGetError, match=r"await ctx.aget\('value'\)"):
            ctx.get("value")
        with pytest.raises(BlockingGetError):
            ctx["value"]
        with pytest.raises(BlockingGetError):
            ctx.get("value", external=True, timeout=5)
        ctx.set("asked", True)
        return await ctx.aget("value")

    flow.add_task("value", lambda ctx: ctx.get("asked") and 5)
    assert flow.run(["ask", "value"], {"there": 1}) == {"ask": 5, "value": 5}


def test_aget_waits_without_blocking_the_loop(flow):
    """Many coroutines wait for one another's values on one loop."""

    @flow.task
    async def chain(ctx, n):
        if n == 0:
            return 0
        value = await ctx.aget(f"value{n - 1}")
        ctx.set(f"value{n}", value + 1)
        return value + 1

    @flow.task
    def start(ctx):
        return [NextTask("chain", {"n": n}, spawn_another=True) for n in range(20, 0, -1)] + [NextTask("first")]

    flow.add_task("first", lambda ctx: ctx.set("value0", 0))
    flow.run("start")
    assert flow.context.get("value20") == 20


def test_aget_has_what_get_has():
    """Default, timeout, external, and the errors, in a task and outside."""

    async def main():
        ctx = Context({"a": 1})
        assert await ctx.aget("a") == 1
        assert await ctx.aget("b", 2) == 2
        assert await ctx.aget("b", 2, timeout=1) == 2
        with pytest.raises(ContextKeyError):
            await ctx.aget("b")

    asyncio.run(main())
    with Flow() as flow:

        @flow.task
        async def ask(ctx):
            with pytest.raises(TimeoutError, match="answer"):
                await ctx.aget("answer", external=True, timeout=0.01)
            assert await ctx.aget("answer", 7, external=True, timeout=0.01) == 7
            with pytest.raises(ContextKeyError):
                await ctx.aget("never")
            ctx.set("asked", True)
            return await ctx.aget("answer", external=True)

        run = flow.start()
        assert run.context.get("asked") is True
        run.context.set("answer", 42)
        assert run.result(WATCHDOG) == {"ask": 42}


def test_aget_in_arun_waits_on_the_callers_loop():
    """Tasks of arun await each other's values on the loop of the caller."""

    async def main():
        async with Flow() as flow:

            @flow.task
            async def wait(ctx):
                return await ctx.aget("value"), asyncio.get_running_loop() is loop

            @flow.task
            async def value(ctx):
                await asyncio.sleep(0)
                return 5

            return await flow.arun(["wait", "value"])

    loop = asyncio.new_event_loop()
    try:
        assert loop.run_until_complete(main()) == {"wait": (5, True), "value": 5}
    finally:
        loop.close()


def test_two_agets_of_one_task_are_one_who_waits():
    """A coroutine that gathers two values counts once: another task may still set them."""
    release = threading.Event()
    waits = threading.Event()
    with Flow() as flow:

        @flow.task
        async def wait(ctx):
            both = asyncio.gather(ctx.aget("a", timeout=WATCHDOG), ctx.aget("b", timeout=WATCHDOG))
            await asyncio.sleep(0)
            waits.set()
            return await both

        @flow.task
        def other(ctx):
            wait_for(release)
            ctx.set("a", 1)
            ctx.set("b", 2)

        run = flow.start(["wait", "other"])
        wait_for(waits)
        release.set()
        assert run.result(WATCHDOG)["wait"] == [1, 2]


def test_a_task_that_waits_in_one_coroutine_and_works_in_another_can_still_move():
    """While one child of a coroutine task awaits a key, the other one may set it."""
    with Flow() as flow:

        @flow.task
        async def both(ctx):
            async def set_it():
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                ctx.set("value", 5)

            value, _ = await asyncio.gather(ctx.aget("value"), set_it())
            return value

        assert flow.run() == {"both": 5}


def test_a_thread_of_a_task_that_waits_does_not_stop_the_task():
    """A helper thread with the task's context variables waits for a key that the task itself sets."""
    with Flow() as flow, ThreadPoolExecutor(1) as pool:

        @flow.task
        def both(ctx):
            entered = threading.Event()
            variables = contextvars.copy_context()

            def wait():
                entered.set()
                return ctx.get("value")

            waiting = pool.submit(variables.run, wait)
            wait_for(entered)
            while not ctx._waits.waiting and not waiting.done():  # until the helper is inside get
                pass
            ctx.set("value", 5)
            return waiting.result(WATCHDOG)

        assert flow.run() == {"both": 5}


# ---- emit, get_stream -----------------------------------------------------------------------------


def test_emit_and_get_stream_belong_in_a_task():
    """Outside a run both say so."""
    with pytest.raises(RuntimeError, match="outside a run"):
        Context().emit(1)
    with pytest.raises(RuntimeError, match="outside a run"):
        Context().get_stream().put(StreamChunk("a", 1))


def test_emit_names_the_task_run_and_put_what_it_is_told(flow):
    """emit sends under the id of the task run; a StreamChunk says its own id."""

    @flow.task
    def a(ctx):
        ctx.emit(1)
        ctx.get_stream().put(StreamChunk("elsewhere", 2))
        return 3

    assert list(flow.stream()) == [("a", 1), ("elsewhere", 2), ("a", 3)]
    assert flow.run() == {"a": 3}  # nobody streams: interim values are dropped


# ---- State ----------------------------------------------------------------------------------------


def test_a_state_holds_a_value():
    """State(5).get_value() is 5; None is a value; the default value is None."""
    assert State(5).get_value() == 5
    assert State(None).get_value() is None
    assert State().get_value() is None
    state = State(1)
    state.set_value(2)
    assert state.get_value() == 2
    assert state.is_set


def test_an_empty_state_waits():
    """State.empty() holds nothing: get_value waits, with a limit raises TimeoutError."""
    state = State.empty()
    assert not state.is_set
    with pytest.raises(TimeoutError):
        state.get_value(timeout=0.01)
    with pytest.raises(TimeoutError):
        state.get_value(timeout=0)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(state.get_value) for _ in range(3)]
        state.set_value(None)
        assert [each.result(WATCHDOG) for each in waiting] == [None] * 3
    assert state.is_set


def test_a_state_in_a_context_is_one_with_its_key():
    """Setting either side shows on the other."""
    ctx, state = Context(), State(1)
    ctx.set_state("cell", state)
    assert ctx.get("cell") == 1
    state.set_value(2)
    assert ctx["cell"] == 2
    ctx.set("cell", 3)
    assert state.get_value() == 3
    ctx.delete("cell")
    assert not state.is_set
    assert "cell" not in ctx


def test_an_empty_state_in_a_context_sets_no_key():
    """The key is there when either side sets it."""
    ctx, state = Context(), State.empty()
    ctx.set_state("cell", state)
    assert "cell" not in ctx
    with pytest.raises(ContextKeyError, match="cell"):
        state.get_value()
    ctx["cell"] = 5
    assert state.get_value() == 5
    other = State.empty()
    ctx.set_state("other", other)
    other.set_value(6)
    assert ctx["other"] == 6


def test_an_empty_state_put_on_a_key_that_is_set_has_its_value():
    """set_state with an empty cell takes the value that the key has."""
    ctx, state = Context({"cell": 1}), State.empty()
    ctx.set_state("cell", state)
    assert state.get_value() == 1


def test_who_waits_for_a_state_sees_it_move_into_a_context():
    """A thread in get_value goes on when the cell is put in a context and its key is set."""
    state = State.empty()
    with Flow() as flow, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(state.get_value, WATCHDOG)

        @flow.task
        def a(ctx):
            ctx.set_state("cell", state)
            ctx.set("cell", 5)

        flow.run()
        assert waiting.result(WATCHDOG) == 5


def test_tasks_wait_for_a_state(flow):
    """get_value of a cell in the context waits as ctx.get does, and is part of the same proof."""

    @flow.task
    def start(ctx):
        state = State.empty()
        ctx.set_state("cell", state)
        return [NextTask("wait", {"state": state}), NextTask("fill", {"state": state})]

    flow.add_task("wait", lambda ctx, state: state.get_value())
    flow.add_task("fill", lambda ctx, state: state.set_value(5))
    assert flow.run("start")["wait"] == 5
    with pytest.raises(ContextKeyError, match="cell"):
        flow.add_task("fill", lambda ctx, state: None, replace=True)
        flow.run("start")


def test_a_state_can_move_to_another_key():
    """The newest home counts."""
    ctx, state = Context(), State(1)
    ctx.set_state("a", state)
    ctx.set_state("b", state)
    state.set_value(2)
    assert ctx.to_dict() == {"a": 1, "b": 2}


# ---- fencing --------------------------------------------------------------------------------------


def late_changes(ctx):
    """Do everything that changes a context; a fence makes all of it void."""
    ctx.set("set", 1)
    ctx["item"] = 1
    ctx.append("appended", 1)
    ctx.append("list", 2)
    ctx.update("updated", lambda value: value + 1, 0)
    ctx.delete("kept")
    ctx.from_dict({"from_dict": 1})
    ctx.emit("late")
    ctx.get_stream().put(StreamChunk("late", 1))


@pytest.mark.parametrize("how", ["timeout", "cancel", "run timeout", "failure of another", "close"])
def test_an_attempt_that_was_given_up_changes_nothing(how, short_grace):
    """After a timeout, a cancel or the end of its run, what a task does to the context is void."""
    go, done, started = threading.Event(), threading.Event(), threading.Event()
    context = Context({"kept": 1, "list": [1]})
    seen = []

    def stuck(ctx):
        started.set()
        wait_for(go)
        seen.append(current_task().cancelled)
        try:
            late_changes(ctx)
            seen.append("all done")
        finally:
            done.set()
        return "output"

    def fail():
        wait_for(started)
        raise ZeroDivisionError

    flow = Flow()
    flow.add_task("stuck", stuck, timeout=0.05 if how == "timeout" else None)
    flow.add_task("fail", fail)
    expected = {
        "timeout": TaskTimeoutError,
        "run timeout": TimeoutError,
        "failure of another": ZeroDivisionError,
    }.get(how, RunCancelledError)
    run = flow.start(
        ["stuck", "fail"] if how == "failure of another" else "stuck",
        context=context,
        timeout=0.05 if how == "run timeout" else None,
    )
    wait_for(started)
    if how == "cancel":
        run.cancel()
    if how == "close":
        flow.close()
    with pytest.raises(expected):
        run.result(WATCHDOG)
    before = context.to_dict()
    go.set()
    wait_for(done)
    assert seen == [True, "all done"]
    assert context.to_dict() == before == {"kept": 1, "list": [1]}
    assert [chunk for chunk in chunks_of(run) if chunk.task_id == "late" or chunk.value == "late"] == []
    flow.close()


def chunks_of(run):
    """Return the chunks of a run that has failed."""
    chunks = []
    try:
        chunks.extend(run.stream())
    except Exception:
        pass
    return chunks


@pytest.mark.parametrize("change", ["set", "append", "delete"])
def test_the_fence_has_no_gap(change, monkeypatch, short_grace):
    """An attempt that is given up between the check and the lock changes nothing either.

    A monitor that lies makes the gap: its first ``with`` by the task waits until the run has ended.
    """
    context = Context({"kept": 1, "list": [1]})
    monitor = type(context._monitor)
    enter, left = monitor.__enter__, threading.Event()
    lies, done = threading.local(), threading.Event()

    def late(self):
        if getattr(lies, "armed", False):
            lies.armed = False
            run.cancel()
            wait_for(left)
        return enter(self)

    monkeypatch.setattr(monitor, "__enter__", late)

    def stuck(ctx):
        ready.wait(WATCHDOG)
        lies.armed = True
        try:
            if change == "set":
                ctx.set("late", 1)
            elif change == "append":
                ctx.append("list", 2)
            else:
                ctx.delete("kept")
        finally:
            lies.armed = False
            done.set()

    ready = threading.Event()
    with Flow() as flow:
        flow.add_task("stuck", stuck)
        run = flow.start(context=context)
        ready.set()
        run.wait(WATCHDOG)
        left.set()
        wait_for(done)
        assert context.to_dict() == {"kept": 1, "list": [1]}


def test_a_given_up_attempt_cannot_move_a_state_away():
    """set_state of an attempt that was given up leaves the cell, which others use, as it is."""
    go, done = threading.Event(), threading.Event()
    state = State("before")
    with Flow() as flow:

        @flow.task(timeout=0.05)
        def stuck(ctx):
            wait_for(go)
            ctx.set_state("moved", state)
            done.set()

        with pytest.raises(TaskTimeoutError):
            flow.run()
        go.set()
        wait_for(done)
        assert state.is_set
        assert state.get_value(timeout=0) == "before"


def test_the_output_of_an_attempt_that_was_given_up_is_void():
    """Neither its value nor its next tasks count, in the context or anywhere."""
    go, done, ran = threading.Event(), threading.Event(), []
    with Flow() as flow:

        @flow.task(timeout=0.05)
        def stuck(ctx):
            wait_for(go)
            done.set()
            return NextTask("after")

        flow.add_task("after", lambda: ran.append(1))
        run = flow.start("stuck")
        with pytest.raises(TaskTimeoutError):
            run.result(WATCHDOG)
        go.set()
        wait_for(done)
        assert flow.run("after") == {"after": None}  # the same workers, so the late report is in
        assert ran == [1]
        assert "stuck" not in run.context


def test_a_given_up_attempt_that_asks_is_told():
    """get of a key that is not there raises TaskCancelledError in an attempt that was given up."""
    go, told = threading.Event(), []
    done = threading.Event()
    with Flow() as flow:

        @flow.task(timeout=0.05)
        def stuck(ctx):
            wait_for(go)
            try:
                ctx.get("missing")
            except BaseException as error:
                told.append(type(error))
            done.set()

        with pytest.raises(TaskTimeoutError):
            flow.run()
        go.set()
        wait_for(done)
        assert told[0] in (TaskCancelledError, ContextKeyError)


def test_the_fence_is_the_attempts_not_the_contexts():
    """A context whose run has ended can be used by everybody else, and by the next run."""
    with Flow() as flow:
        flow.add_task("a", lambda ctx: ctx.set("n", ctx.get("n", 0) + 1))
        context = Context({"m": 1})
        flow.run(context=context)
        context.set("m", 2)
        flow.run(context=context)
        assert context.to_dict() == {"m": 2, "n": 2, "a": None}


# ---- which run uses which context -----------------------------------------------------------------


def test_each_run_has_a_context_of_its_own(flow):
    """Runs of one flow share nothing, one after another or at once."""
    flow.add_task("a", lambda ctx, n: ctx.set("n", n))
    first, second = flow.start(inputs={"n": 1}), flow.start(inputs={"n": 2})
    assert first.wait(WATCHDOG)
    assert second.wait(WATCHDOG)
    assert first.context is not second.context
    assert (first.context["n"], second.context["n"]) == (1, 2)
    assert flow.context is second.context


def test_inputs_are_set_in_the_context(flow):
    """One by one, for every task to read."""
    flow.add_task("a", lambda ctx: NextTask("b"))
    flow.add_task("b", lambda ctx: ctx["x"])
    assert flow.run("a", {"x": 5}) == {"b": 5}


def test_outputs_are_stored_under_the_name_of_the_task(flow):
    """The newest wins, whatever its number."""

    @flow.task
    def start():
        return NextTask("step", {"n": 1}, spawn_another=True)

    @flow.task
    def step(ctx, n):
        if n < 3:
            return [NextTask("step", {"n": n + 1}, spawn_another=True)]
        return n

    assert flow.run("start") == {"step#3": 3}
    assert flow.context["step"] == 3
    assert "step#3" not in flow.context


def test_a_flow_given_a_context_shares_it_between_its_runs(executor):
    """All runs of Flow(context=...) use it, and flow.context is it."""
    context = Context({"n": 0})
    with Flow(executor, context) as flow:
        flow.add_task("a", lambda ctx: ctx.update("n", lambda n: n + 1))
        assert [flow.run()["a"] for _ in range(3)] == [1, 2, 3]
        assert flow.context is flow.get_context() is context
        flow.reset()
        assert flow.context is context
        assert context["n"] == 3


def test_an_empty_context_can_be_shared_too():
    """A context that holds nothing yet is a context like any other."""
    context = Context()
    with Flow("inline", context) as flow:
        flow.add_task("a", lambda ctx: ctx.set("x", 1))
        flow.run()
        assert context["x"] == 1


def test_an_empty_context_can_be_given_to_a_run():
    """run(context=Context()) uses just that one, also where the flow has its own."""
    mine = Context()
    with Flow("inline") as flow:
        flow.add_task("a", lambda ctx: ctx.set("x", 1))
        flow.run(context=mine)
        assert mine.to_dict() == {"x": 1, "a": None}
    own, given = Context({"own": 1}), Context()
    with Flow("inline", own) as flow:
        flow.add_task("a", lambda ctx: ctx.set("x", 1))
        flow.run(context=given)
        assert given.to_dict() == {"x": 1, "a": None}
        assert own.to_dict() == {"own": 1}


def test_runs_at_once_on_one_context_wait_for_each_other():
    """A get in one run is served by a set in another run that shares the context."""
    context = Context({"shared": True})
    with Flow("thread", context, max_workers=2) as one, Flow("thread", context, max_workers=2) as two:
        go = threading.Event()
        one.add_task("wait", lambda ctx: ctx.get("value"))

        @two.task
        def value():
            wait_for(go)
            return 5

        second = two.start()
        first = one.start()
        go.set()
        assert first.result(WATCHDOG) == {"wait": 5}
        assert second.result(WATCHDOG) == {"value": 5}


def test_a_mapping_as_context_is_copied(flow):
    """run(context={...}) starts with its values and leaves it alone."""
    values = {"n": 1}
    flow.add_task("a", lambda ctx: ctx.set("n", ctx["n"] + 1))
    flow.run(context=values)
    assert flow.context["n"] == 2
    assert values == {"n": 1}


def test_before_the_first_run_flow_context_is_that_of_the_run_to_come(flow):
    """What is set there is seen by the first run, and by that run alone."""
    flow.add_task("a", lambda ctx: ctx.get("x", None))
    before = flow.context
    before.set("x", 5)
    run = flow.start()
    assert run.result(WATCHDOG) == {"a": 5}
    assert run.context is before
    assert flow.run() == {"a": None}
    assert flow.context is not before


def test_reset_makes_the_context_of_the_run_to_come(flow):
    """After reset flow.context is fresh; the tasks stay unless told otherwise."""
    flow.add_task("a", lambda ctx: ctx.get("x", None))
    flow.run("a", {"x": 1})
    flow.reset()
    assert "x" not in flow.context
    flow.context.set("x", 2)
    assert flow.run() == {"a": 2}
    flow.reset(keep_tasks=False)
    assert dict(flow.tasks) == {}


def test_a_refused_start_does_not_use_up_the_context_of_the_run_to_come():
    """What was set in flow.context is still there for the run that does start."""
    with Flow("inline") as flow:
        flow.add_task("a", lambda ctx: ctx.get("x", None))
        flow.context.set("x", 5)
        with pytest.raises(FlowError):
            flow.run("nope")
        assert flow.run("a") == {"a": 5}


def test_a_refused_start_leaves_a_shared_context_alone():
    """The inputs of a run that never began are not in the context."""
    context = Context({"own": 1})
    with Flow("inline", context) as flow:
        flow.add_task("a", lambda: None)
        with pytest.raises(FlowError):
            flow.run("nope", {"x": 5})
        assert context.to_dict() == {"own": 1}
