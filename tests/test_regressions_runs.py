"""Regressions R10 to R14: runs do not see each other, and names have no hidden meaning."""

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from millstream import (
    Context,
    Flow,
    NextTask,
    RunCancelledError,
    RunTimeoutError,
    State,
    StreamChunk,
    TaskOutput,
    TaskTimeoutError,
)
from tests.conftest import WATCHDOG, assert_gone

# ---- R10 --------------------------------------------------------------------------------------------


def test_r10_a_second_run_sees_nothing_of_the_first(flow):
    """A second run of one flow sees no output, value, chunk or result of the first."""

    @flow.task
    def first(ctx: Context) -> NextTask:
        ctx.set("left", "behind")
        ctx.emit("interim")
        return NextTask("last")

    @flow.task
    def second(ctx: Context, user: str = "nobody") -> list:
        return [user, sorted(ctx), ctx.get("left", None), ctx.get("first", None)]

    flow.add_task("last", lambda ctx: "last")

    before = flow.run("first", {"user": "Alice"})
    assert flow.run("second") == {"second": ["nobody", [], None, None]}
    assert list(flow.stream("second")) == [StreamChunk("second", ["nobody", [], None, None])]
    assert before == {"last": "last"}  # nor does it change what the first one gave
    assert flow.context.to_dict() == {"second": ["nobody", [], None, None]}


def test_r10_ids_begin_anew_with_each_run(flow):
    """Task runs are numbered within their run."""
    flow.add_task("split", lambda ctx: [NextTask("worker", spawn_another=True)] * 2)
    flow.add_task("worker", lambda ctx: "done")

    for _ in range(20):
        assert flow.run("split") == {"worker": "done", "worker#2": "done"}


def test_r10_new_inputs_win_on_a_context_that_was_given(executor):
    """On a context that all runs share, the inputs of a new run replace the values of the one before."""
    context = Context({"user": "nobody", "kept": 1})
    with Flow(executor, context=context) as flow:
        flow.add_task("greet", lambda ctx: f"Hello {ctx.get('user')}")

        assert flow.run("greet", {"user": "Alice"}) == {"greet": "Hello Alice"}
        assert flow.run("greet", {"user": "Bob"}) == {"greet": "Hello Bob"}
        assert flow.run("greet") == {"greet": "Hello Bob"}
        assert context.to_dict() == {"user": "Bob", "kept": 1, "greet": "Hello Bob"}


def test_r10_a_mapping_given_as_context_is_copied(flow):
    """``context={...}`` is where a run starts from; the mapping itself does not change."""
    values = {"user": "Alice"}

    @flow.task
    def greet(ctx: Context) -> str:
        ctx.set("user", "changed")
        return "done"

    flow.run("greet", context=values)

    assert values == {"user": "Alice"}
    assert flow.context["user"] == "changed"


def test_r10_receivers_do_not_share_one_inputs_mapping(flow):
    """What one task does to its inputs is seen by no other, nor by the caller."""
    given = {"n": 1}

    @flow.task
    def spoil(inputs) -> int:
        inputs["n"] += 1
        inputs["new"] = True
        return inputs["n"]

    flow.add_task("split", lambda ctx, inputs: [NextTask("spoil", inputs, spawn_another=True)] * 3)

    assert flow.run(["spoil", "split"], given) == dict.fromkeys(["spoil", "spoil#2", "spoil#3", "spoil#4"], 2)
    assert given == {"n": 1}
    assert flow.context["n"] == 1


# ---- R11 --------------------------------------------------------------------------------------------


def test_r11_two_hundred_runs_at_once_return_their_own_results(flow):
    """200 runs of one flow at once from 8 threads: each returns its own result."""

    @flow.task
    def start(ctx: Context, n: int) -> TaskOutput:
        ctx.set("mine", n)
        return TaskOutput(n, [NextTask("double", {"n": n}, spawn_another=True), NextTask("read")])

    flow.add_task("double", lambda ctx, n: 2 * n)
    flow.add_task("read", lambda ctx: (ctx.get("mine"), ctx.get("start"), ctx.get("double")))
    together = threading.Barrier(8)

    def client(first: int) -> list[dict]:
        together.wait(WATCHDOG)
        return [flow.run("start", {"n": n}) for n in range(first, 200, 8)]

    with ThreadPoolExecutor(8) as clients:
        results = [result for some in clients.map(client, range(8)) for result in some]

    expected = [{"double": 2 * n, "read": (n, n, 2 * n)} for first in range(8) for n in range(first, 200, 8)]
    assert results == expected


def test_r11_two_hundred_runs_on_one_event_loop_return_their_own_results(flow):
    """200 runs of one flow awaited at once on one loop: each returns its own result."""

    @flow.task
    async def start(ctx: Context, n: int) -> TaskOutput:
        ctx.set("mine", n)
        await asyncio.sleep(0)
        return TaskOutput(n, [NextTask("read")])

    flow.add_task("read", lambda ctx: (ctx.get("mine"), ctx.get("start")))

    async def main() -> list[dict]:
        return await asyncio.gather(*[flow.arun("start", {"n": n}) for n in range(200)])

    assert asyncio.run(main()) == [{"read": (n, n)} for n in range(200)]


# ---- R12 --------------------------------------------------------------------------------------------


class Straggler:
    """A task that goes on after its run has ended, and then does all that it must not be able to do."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.release = threading.Event()
        self.tried: list[str] = []
        self.thread: threading.Thread | None = None

    def plain(self, ctx: Context) -> TaskOutput:
        self.thread = threading.current_thread()
        self.started.set()
        assert self.release.wait(WATCHDOG)
        return self.harm(ctx)

    async def coroutine(self, ctx: Context) -> TaskOutput:
        self.thread = threading.current_thread()
        self.started.set()
        while not self.release.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:  # it will not be told
                pass
        return self.harm(ctx)

    def harm(self, ctx: Context) -> TaskOutput:
        ctx.set("late", 1)
        ctx["kept"] = 2
        ctx.append("list", "late")
        ctx.update("count", lambda n: n + 1)
        ctx.delete("kept")
        ctx.from_dict({"late": 2})
        ctx.set_state("cell", State("late"))
        ctx.emit("late")
        ctx.get_stream().put(StreamChunk("straggler", "late"))
        self.tried.append("everything")
        return TaskOutput("late", [NextTask("after")])

    def gone(self, flow: Flow, executor: object) -> None:
        """Let it do what it wants to do, and wait until its thread has ended."""
        self.release.set()
        flow.close()
        if isinstance(executor, ThreadPoolExecutor):
            executor.shutdown()
        assert_gone({self.thread})
        assert self.tried == ["everything"]


@pytest.mark.parametrize(
    ("executor", "body"), [("thread", "plain"), ("pool", "plain"), ("asyncio", "coroutine")], indirect=["executor"]
)
@pytest.mark.parametrize("end", ["failed", "cancelled", "task timed out", "run timed out"])
def test_r12_a_straggler_changes_nothing(executor, body, end, short_grace):
    """What goes on after its run failed, was cancelled or timed out changes no context and starts no task."""
    straggler = Straggler()
    after = []
    context = Context({"kept": 1, "list": [], "count": 0})
    with Flow(executor, context=context) as flow:
        action = getattr(straggler, body)
        flow.add_task("straggler", action, timeout=0.1 if end == "task timed out" else None)
        flow.add_task("after", lambda ctx: after.append("ran"))
        flow.add_task("probe", lambda ctx: dict(ctx.to_dict()))

        @flow.task
        def broken() -> None:
            assert straggler.started.wait(WATCHDOG)
            raise LookupError("broken")

        starts = ["straggler", "broken"] if end == "failed" else ["straggler"]
        run = flow.start(starts, timeout=0.1 if end == "run timed out" else None)
        assert straggler.started.wait(WATCHDOG)
        if end == "cancelled":
            run.cancel()
        errors = {
            "failed": LookupError,
            "cancelled": RunCancelledError,
            "task timed out": TaskTimeoutError,
            "run timed out": RunTimeoutError,
        }
        with pytest.raises(errors[end]):
            run.result(WATCHDOG)

        untouched = {"kept": 1, "list": [], "count": 0}
        assert context.to_dict() == untouched
        later = flow.start("probe")
        assert later.result(WATCHDOG) == {"probe": untouched}
        straggler.gone(flow, executor)
        assert context.to_dict() == {**untouched, "probe": untouched}
        assert [chunk.value for chunk in later.stream()] == [untouched]
        assert after == []


def test_r12_one_function_in_two_flows_and_under_two_names_shares_nothing(executor):
    """A function registered in two flows, and under two names in one, is as many tasks."""

    def work(ctx: Context, n: int = 0) -> tuple:
        return n, ctx.get("first", None)

    with Flow(executor, name="one") as one, Flow(executor, name="two") as two:
        for flow in (one, two):
            flow.add_task("first", work)
            flow.add_task("second", work, timeout=WATCHDOG)
            flow.add_task("both", lambda ctx: [NextTask("first", {"n": 1}), NextTask("second", {"n": 2})])
            flow.add_task("in turn", lambda ctx: NextTask("second", {"n": 3}))
        assert one["first"].timeout is None

        results = one.run("both")
        assert results["first"] == (1, None)
        assert results["second"] in [(2, None), (2, (1, None))]  # side by side
        assert two.run("in turn") == {"second": (3, None)}
        assert one.run("in turn") == {"second": (3, None)}


# ---- R13 --------------------------------------------------------------------------------------------


def test_r13_a_task_registered_later_keeps_the_restored_value(executor):
    """``from_dict`` and then ``add_task`` of that name keeps the value that was restored."""
    context = Context()
    context.from_dict({"load": "restored", "none": None})
    with Flow(executor, context=context) as flow:
        flow.add_task("load", lambda ctx: "new")
        flow.add_task("read", lambda ctx: ctx.get("load"))

        assert context.get("load") == "restored"
        assert flow.run("read") == {"read": "restored"}
        assert context.to_dict() == {"load": "restored", "none": None, "read": "restored"}


def test_r13_what_was_never_set_stays_unset(flow):
    """``to_dict`` has no keys of the engine and none for tasks that did not run, and a round trip adds none."""
    flow.add_task("never run", lambda ctx: "never")
    flow.add_task("probe", lambda ctx: (sorted(ctx), ctx.get("never run", "unset"), "never run" in ctx))

    assert flow.run("probe") == {"probe": ([], "unset", False)}
    saved = flow.context.to_dict()
    assert saved == {"probe": ([], "unset", False)}

    restored = Context()
    restored.from_dict(saved)
    assert restored.to_dict() == saved
    assert "never run" not in restored
    assert restored.get("never run", "unset") == "unset"


# ---- R14 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["load____x", "load____1a2b3c4d", "__init__", "ctx", "a b", "größe", "a.b", "a >> b"])
def test_r14_a_name_has_no_hidden_meaning(flow, name):
    """A task of whatever name runs like any other, spawned or not."""
    flow.add_task("load", lambda ctx: "load")
    flow.add_task(name, lambda: name.upper())
    flow.add_task("split", lambda: [NextTask("load"), *[NextTask(name, spawn_another=True)] * 2])

    assert flow.run(name) == {name: name.upper()}
    assert flow.run("split") == {"load": "load", name: name.upper(), f"{name}#2": name.upper()}
    assert flow.context.get(name) == name.upper()


@pytest.mark.parametrize("name", ["load#2", "#", "a#", ""])
def test_r14_a_name_that_the_library_keeps_is_refused(name):
    """A name with the sign that numbers task runs, or none at all, is refused at registration."""
    flow = Flow()

    with pytest.raises(ValueError, match="name"):
        flow.add_task(name, lambda ctx: None)

    assert Counter(flow.tasks) == {}
