"""Flows that the tests of durable runs interrupt: ``SHAPES``, and a program that runs one and is killed.

Everything is at the top of the module, so that worker processes and other interpreters find it. Each body notes its
name, its key and its attempt when it begins. ``python -m tests.durable_tasks SHAPE STORE SYNC`` starts the run, or
goes on with it. ``DURABLE_LOG`` is a file to note in, ``DURABLE_DIE`` after how many notes the process is killed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from millstream import Context, Flow, JSONFileStore, NextTask, SQLiteStore, Status, TaskOutput, current_task, task

#: What was called, in this process.
CALLS: list[str] = []


def note() -> None:
    """A body begins."""
    me = current_task()
    call = f"{me.name} {me.key.rpartition(':')[2]} {me.attempt}"
    log = os.environ.get("DURABLE_LOG")
    if log is None:
        CALLS.append(call)
        return
    with open(log, "a") as file:
        file.write(f"{call}\n")
    left = os.environ.get("DURABLE_DIE")
    if left is not None:
        with open(log) as file:
            if len(file.readlines()) >= int(left):
                os.kill(os.getpid(), signal.SIGKILL)


class Shape(NamedTuple):
    """A kind of flow."""

    build: Callable[[Flow], None]
    start: str | None
    inputs: dict[str, Any] | None
    options: dict[str, Any]  #: of the flow
    run: dict[str, Any]  #: of the run


SHAPES: dict[str, Shape] = {}


def shape(start: str | None = None, inputs: Any = None, run: Any = None, **options: Any) -> Any:
    """Register what builds a flow, and how that is run."""

    def register(build: Callable[[Flow], None]) -> Callable[[Flow], None]:
        SHAPES[build.__name__] = Shape(build, start, inputs, options, run or {})
        return build

    return register


def flow_of(name: str, executor: Any, store: Any, **more: Any) -> Flow:
    """Return a flow of a shape."""
    flow = Flow(executor, store=store, name=name, **{**SHAPES[name].options, **more})
    SHAPES[name].build(flow)
    return flow


def begin(flow: Flow, name: str, run_id: str = "r", how: str = "run", **more: Any) -> Any:
    """Start a run of a shape: ``run``, ``stream``, ``start`` and so on."""
    shape = SHAPES[name]
    return getattr(flow, how)(shape.start, shape.inputs, run_id=run_id, **{**shape.run, **more})


# ---- one after another --------------------------------------------------------------------------


def step(n):
    note()
    return TaskOutput(n, [NextTask("step", {"n": n + 1})] if n < 6 else [])


@shape("step", {"n": 0})
def chain(flow):
    flow.add_task("step", step)


# ---- fan-out and join, nested -------------------------------------------------------------------


def split():
    note()
    return [*(NextTask("group", {"g": g}, spawn_another=True) for g in range(2)), NextTask("total", join=True)]


def group(g):
    note()
    parts = [NextTask("part", {"n": 10 * g + n}, spawn_another=True) for n in range(2)]
    return TaskOutput(g, [*parts, NextTask("subtotal", join=True, spawn_another=True)])


def part(n):
    note()
    return n


def subtotal(upstream):
    note()
    return sum(upstream)


def total(upstream, ctx):
    note()
    return [upstream, "group" in ctx]


@shape("split")
def joins(flow):
    for fn in (split, group, part, subtotal, total):
        flow.add_task(fn.__name__, fn)


# ---- graphs -------------------------------------------------------------------------------------


def load():
    note()
    return [1, 2, 3]


def left(load):
    note()
    return sum(load)


def right(load):
    note()
    return max(load)


def merge(left, right):
    note()
    return left, right


def save(merge, load):
    note()
    return {"merge": merge, "load": load}


def build_graph(flow):
    for fn in (load, left, right, merge, save):
        flow.add_task(fn.__name__, fn)


@shape()
def graph(flow):
    build_graph(flow)


@shape(run={"targets": ["merge"]})
def part_of_graph(flow):
    build_graph(flow)


def choose():
    note()
    return {"small": 5}


def small(payload):
    note()
    return payload + 1


def large(payload):
    note()
    return payload - 1


def after(ctx):
    note()
    return [ctx.get("small"), ctx.get("large", None)]


@shape()
def router(flow):
    flow.add_task("choose", choose, routes=["small", "large"])
    flow.add_task("small", small)
    flow.add_task("large", large)
    flow.add_task("after", after, depends_on=["small", "large"])


def check(n):
    note()
    return {"again": n + 1} if n < 3 else {"done": n}


def again(payload):
    note()
    return NextTask("check", {"n": payload})


def done(payload):
    note()
    return payload


@shape("check", {"n": 0})
def loop(flow):
    flow.add_task("check", check, routes=["again", "done"])
    flow.add_task("again", again)
    flow.add_task("done", done)


def check_again(again=0):
    return check(again or 0)


def around(payload):
    note()
    return payload


@shape("check")
def loop_of_edges(flow):
    flow.add_task("check", check_again)
    flow.add_task("again", around)
    flow.add_task("done", done)
    flow.connect("check >> (again | done)", "again >> check")


# ---- maps, lists that are pulled, generators ----------------------------------------------------


def rows():
    note()
    return [3, 1, 2]


def each(item, index, ctx):
    note()
    ctx.append("seen", item)
    return item * 10 + index


def closing(each, ctx):
    note()
    return [each, sorted(ctx.get("seen"))]


@shape()
def mapped(flow):
    flow.add_task("rows", rows)
    flow.add_task("each", each, for_each="rows")
    flow.add_task("closing", closing, depends_on=["each"])


def lazy():
    note()
    return TaskOutput("lazy", (NextTask("part", {"n": n}, spawn_another=True) for n in range(5)))


@shape("lazy")
def pulled(flow):
    flow.add_task("lazy", lazy)
    flow.add_task("part", part)


def lazy_with_join():
    note()
    parts = (NextTask("part", {"n": n}, spawn_another=True) for n in range(4))
    return TaskOutput("lazy", itertools.chain([NextTask("total", join=True)], parts))


@shape("lazy_with_join")
def pulled_with_join(flow):
    flow.add_task("lazy_with_join", lazy_with_join)
    flow.add_task("part", part)
    flow.add_task("total", ended)


def source():
    note()
    for n in range(4):
        yield NextTask("part", {"n": n}, spawn_another=True)
        yield f"made {n}"
    return "source"


def both():
    note()
    return [NextTask("source"), NextTask("subtotal", join=True)]


def ended(upstream):
    note()
    return upstream


@shape("both")
def generator(flow):
    for fn in (both, source, part):
        flow.add_task(fn.__name__, fn)
    flow.add_task("subtotal", ended)


def flaky_source():
    note()
    for n in range(3):
        if n == 2 and current_task().attempt < 3:
            raise ConnectionError("try again")
        yield NextTask("part", {"n": n}, spawn_another=True)
    return "source"


@shape("both")
def retried_generator(flow):
    flow.add_task("both", both)
    flow.add_task("source", flaky_source, retries=2)
    flow.add_task("part", part)
    flow.add_task("subtotal", ended)


async def asource():
    note()
    for n in range(3):
        await asyncio.sleep(0)
        yield NextTask("apart", {"n": n}, spawn_another=True)
        yield f"made {n}"


async def apart(n):
    note()
    await asyncio.sleep(0)
    return n


@shape("both")
def async_generator(flow):
    flow.add_task("both", both)
    flow.add_task("source", asource)
    flow.add_task("apart", apart)
    flow.add_task("subtotal", ended)


# ---- policies -----------------------------------------------------------------------------------


def flaky(n):
    note()
    if current_task().attempt < n:
        raise ConnectionError("try again")
    return n


def flakies():
    note()
    return [*(NextTask("flaky", {"n": n}, spawn_another=True) for n in (1, 2, 3)), NextTask("ended", join=True)]


@shape("flakies")
def retries(flow):
    flow.add_task("flakies", flakies)
    flow.add_task("flaky", flaky, retries=2)
    flow.add_task("ended", ended)


def flaky_item(item):
    return flaky(item)


@shape("flaky_item", {"rows": [1, 2, 3]})
def retried_items(flow):
    flow.add_task("flaky_item", flaky_item, retries=2, for_each="$ctx.rows")


@shape("flakies", limits={"db": 1})
def limited(flow):
    flow.add_task("flakies", flakies)
    flow.add_task("flaky", flaky, retries=2, uses=["db"])
    flow.add_task("ended", ended, uses=["db"])


def gates():
    note()
    parts = [NextTask("part", {"n": n}, spawn_another=True, priority=n % 3) for n in range(5)]
    return [*parts, *(NextTask("narrow", {"n": n}, spawn_another=True) for n in range(3)), NextTask("ended", join=True)]


def narrow(n):
    note()
    return NextTask("part", {"n": 10 + n}, spawn_another=True)


@shape("gates", max_parallel=2)
def parallel(flow):
    flow.add_task("gates", gates)
    flow.add_task("part", part, priority=1)
    flow.add_task("narrow", narrow, max_parallel=1)
    flow.add_task("ended", ended)


def ask_twice():
    note()
    return [NextTask("first"), NextTask("second"), NextTask("ended", join=True)]


def asks():
    note()
    return NextTask("shared")


def shared(ctx):
    note()
    ctx.append("shared_ran", 1)
    return "shared"


@shape("ask_twice")
def coalescing(flow):
    flow.add_task("ask_twice", ask_twice)
    flow.add_task("first", asks)
    flow.add_task("second", asks)
    flow.add_task("shared", shared)
    flow.add_task("ended", ended)


def hopeful():
    note()
    return [NextTask("hopeless"), NextTask("step", {"n": 4}), NextTask("ended", join=True)]


def hopeless():
    note()
    raise ValueError("it never works")


@shape("hopeful", on_error="continue")
def failures(flow):
    flow.add_task("hopeful", hopeful)
    flow.add_task("hopeless", hopeless)
    flow.add_task("step", step)
    flow.add_task("ended", ended, on_dep_failure="run-anyway")


# ---- the context --------------------------------------------------------------------------------


def write(ctx):
    note()
    ctx["kept"] = {"a": (1, 2), 3: {4, 5}, "b": b"\xff"}
    ctx["gone"] = 1
    ctx.append("words", "write")
    return [NextTask("change"), NextTask("more", {"n": 1}, spawn_another=True), NextTask("tell", join=True)]


def change(ctx):
    note()
    if "gone" in ctx:
        ctx.delete("gone")
    ctx.append("words", "change")
    ctx.update("count", at_least_eleven, 10)
    ctx["kept"] = {**ctx.get("kept"), "c": frozenset({6})}


def at_least_eleven(n):
    return max(n, 11)  # what has set something, and not finished, does so again


def more(n, ctx):
    note()
    ctx.append("words", f"more {n}")
    if n < 3:
        return NextTask("more", {"n": n + 1}, spawn_another=True)
    return None


def tell(ctx):
    note()
    ctx.append("words", "tell")
    return [ctx.get("kept"), ctx.get("gone", "gone"), sorted(ctx.get("words")), ctx.get("count"), ctx.get("given")]


@shape("write", {"given": (1, "two")}, run={"context": {"before": {1: 2}}, "metadata": {"who": "me"}})
def values(flow):
    for fn in (write, change, more, tell):
        flow.add_task(fn.__name__, fn)


# ---- calls, flows inside of tasks, coroutines -----------------------------------------------------


@task
def square(x):
    note()
    return x * x


@task
def plus(a, b):
    note()
    return a + b


def callers():
    note()
    one, other = square.submit(3), square.submit(4)
    return plus.submit(one, other).result()


def after_calls(ctx):
    note()
    return ctx.get("callers")


@shape("callers")
def calls(flow):
    flow.add_task("callers", callers)
    flow.add_task("after_calls", after_calls, depends_on=["callers"])


@task
def inner_call(x):
    note()
    return x + 1


@task
def middle_call(x):
    note()
    inner_call.submit(x)
    return x


def outer_caller():
    note()
    middle_call.submit(1)
    return "outer"


@shape("outer_caller")
def nested_calls(flow):
    """Nobody waits for these calls."""
    flow.add_task("outer_caller", outer_caller)
    flow.add_task("after_calls", after_outer, depends_on=["outer_caller"])


def after_outer(outer_caller):
    note()
    return outer_caller * 2


def tries_calls():
    note()
    attempt = current_task().attempt
    found = square.submit(attempt).result()
    if attempt < 3:
        raise OSError("once more")
    return found


@shape("tries_calls")
def retried_calls(flow):
    """Each attempt submits a call of its own."""
    flow.add_task("tries_calls", tries_calls, retries=2)


def keys_calls():
    note()
    one, other = square.submit(5), square.submit(6, call_key="six")
    return [one.result(), other.result()]


@shape("keys_calls")
def keyed_calls(flow):
    flow.add_task("keys_calls", keys_calls)
    flow.add_task("after_calls", after_keys, depends_on=["keys_calls"])


def after_keys(keys_calls):
    note()
    return sum(keys_calls)


#: Shapes that submit calls: for threads and loops.
CALLING = ("calls", "nested_calls", "retried_calls", "keyed_calls")


# ---- maps whose items ask for more, lists that were there before -----------------------------------


def kids_of(item):
    note()
    return TaskOutput(item, [NextTask("kid", {"n": item}, spawn_another=True)])


def kid(n):
    note()
    return n * 10


@shape("load")
def mapped_children(flow):
    flow.add_task("load", load)
    flow.add_task("kids_of", kids_of, for_each="load", max_parallel=2)
    flow.add_task("kid", kid)
    flow.add_task("last", last, depends_on=["kids_of"])


def last(kids_of):
    note()
    return kids_of


def empty(ctx):
    note()
    ctx["log"] = []
    return NextTask("logs")


def logs(ctx):
    note()
    ctx.append("log", current_task().attempt)
    if current_task().attempt < 2:
        raise OSError("once more")
    return ctx["log"][:]


@shape("empty")
def appends_to_empty(flow):
    flow.add_task("empty", empty)
    flow.add_task("logs", logs, retries=1)


def inner(n):
    with Flow("inline", name="inner") as flow:
        flow.add_task("double", lambda n: 2 * n)
        return flow.run("double", {"n": n})["double"]


def outer(n):
    note()
    return TaskOutput(inner(n), [NextTask("outer", {"n": n + 1})] if n < 3 else [])


@shape("outer", {"n": 0})
def nested(flow):
    flow.add_task("outer", outer)


async def agroup():
    note()
    await asyncio.sleep(0)
    return [*(NextTask("apart", {"n": n}, spawn_another=True) for n in range(3)), NextTask("aclose", join=True)]


async def aclose(upstream, ctx: Context):
    note()
    ctx["sum"] = sum(upstream)
    return await ctx.aget("sum")


@shape("agroup")
def coroutines(flow):
    flow.add_task("agroup", agroup)
    flow.add_task("apart", apart)
    flow.add_task("aclose", aclose)


# ---- any flow -------------------------------------------------------------------------------------


def plan_of(random: Random, depth: int = 3) -> dict[str, Any]:
    """Return what a task run of a random flow does: how it asks for which others, and how often it fails before."""
    kids = [plan_of(random, depth - 1) for _ in range(random.randrange(4))] if depth else []
    return {
        "task": random.choice(["lists", "lists", "pulls", "yields", "awaits", "narrows", "uses"]),
        "mark": random.randrange(1000),
        "kids": kids,
        "joins": bool(kids) and random.random() < 0.5,
        "fails": random.choice([0, 0, 0, 1, 2]),
    }


def asked(plan: dict[str, Any]) -> list[NextTask]:
    """Return what a plan asks for; joins first, as a list that is pulled needs it."""
    joins = [NextTask("gathers", {"mark": plan["mark"]}, True, join=True)] if plan["joins"] else []
    return [*joins, *(NextTask(kid["task"], {"plan": kid}, spawn_another=True) for kid in plan["kids"])]


def tries(plan: dict[str, Any], ctx: Context) -> int:
    note()
    ctx.append("begun", (plan["mark"], current_task().attempt))
    if current_task().attempt <= plan["fails"]:
        raise ConnectionError("try again")
    ctx.append("passed", plan["mark"])
    return int(plan["mark"])


def lists(plan, ctx):
    return TaskOutput(tries(plan, ctx), asked(plan))


def pulls(plan, ctx):
    return TaskOutput(tries(plan, ctx), iter(asked(plan)))


def yields(plan, ctx):
    note()
    for place, request in enumerate(asked(plan)):
        if place and current_task().attempt <= plan["fails"]:
            raise ConnectionError("try again")
        yield request
        ctx.append("yielded", (plan["mark"], place))
    return plan["mark"]


async def awaits(plan, ctx):
    return lists(plan, ctx)


def gathers(mark, upstream, ctx):
    note()
    ctx.append("gathered", mark)
    return sum(each for each in upstream if each is not None)


def build_any(flow):
    for fn in (lists, pulls, yields, awaits):
        flow.add_task(fn.__name__, fn, retries=2)
    flow.add_task("narrows", lists, retries=2, max_parallel=1)
    flow.add_task("uses", lists, retries=2, uses=["limit"])
    flow.add_task("gathers", gathers)


def any_shape(random: Random) -> Shape:
    """Return a random flow."""
    return Shape(
        build_any,
        "lists",
        {"plan": plan_of(random)},
        {"limits": {"limit": 1}, "max_parallel": random.choice([None, 1, 3])},
        {},
    )


# ---- the program ----------------------------------------------------------------------------------


def open_store(path: str, sync: Any) -> Any:
    """Return the store that a path is of."""
    return JSONFileStore(path, sync=sync) if path.endswith(".json") else SQLiteStore(path, sync=sync)


def main() -> None:
    name, path, sync = sys.argv[1:]
    store = open_store(path, sync)
    with flow_of(name, "thread", store, max_workers=2) as flow:
        run = next((run for run in flow.runs() if run.id == "r"), None)
        results = flow.resume("r") if run is not None else begin(flow, name)
    assert run is None or run.status is Status.RUNNING
    print(json.dumps(results, default=repr))
    store.close()


if __name__ == "__main__":
    main()
