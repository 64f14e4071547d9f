"""Streams: order, causality, the bounded buffer, errors, leaving early, and the asynchronous twin."""

# ruff: noqa: PT012 - loops and blocks are what is said to raise here

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from millstream import (
    Flow,
    NextTask,
    RunCancelledError,
    RunTimeoutError,
    Status,
    StreamChunk,
    StreamError,
    TaskOutput,
    current_task,
)
from tests.conftest import EACH_KIND, WATCHDOG, engine_threads, executors, run_snippet, until, wait_for

executor = executors(EACH_KIND)

FAR = 20_000  #: chunks after which an endless task gives up, so that memory does not fill


def add_chain(flow, length):
    """Register a chain of tasks that ask for each other."""

    @flow.task
    def step(n):
        return TaskOutput(n, [NextTask("step", {"n": n + 1}, spawn_another=True)] if n < length else [])


def add_endless(flow, name="endless"):
    """Register a task that yields as good as for ever; return the list of what it has yielded, and its end."""
    sent, ended = [], threading.Event()

    @flow.task(name)
    def endless():
        try:
            for n in range(FAR):
                sent.append(n)
                yield n
            raise AssertionError("it ran away from its reader")
        finally:
            ended.set()

    return sent, ended


# ---- what comes, and in which order ---------------------------------------------------------------


def test_a_chunk_for_every_task_run(flow):
    """Each task run that finishes sends its output under its id, terminal or not."""
    add_chain(flow, 4)
    assert list(flow.stream("step", {"n": 1})) == [
        StreamChunk("step", 1),
        StreamChunk("step#2", 2),
        StreamChunk("step#3", 3),
        StreamChunk("step#4", 4),
    ]


def test_a_chunk_is_a_pair_with_names():
    """It unpacks, and has task_id and value."""
    with Flow("inline") as flow:
        flow.add_task("a", lambda: 5)
        (chunk,) = flow.stream()
        task_id, value = chunk
        assert (task_id, value) == (chunk.task_id, chunk.value) == ("a", 5)


def test_interim_values_of_every_kind_of_task(executor):
    """yield, return, emit and put of functions, generators, coroutines and async generators."""
    with Flow(executor) as flow:

        @flow.task
        def plain(ctx):
            ctx.emit(1)
            ctx.get_stream().put(StreamChunk("mine", 2))
            return 3

        @flow.task
        def generator(ctx):
            yield 1
            ctx.emit(2)
            yield StreamChunk("mine", 3)
            yield None
            return 4

        @flow.task
        async def coroutine(ctx):
            ctx.emit(1)
            await asyncio.sleep(0)
            ctx.get_stream().put(StreamChunk("mine", 2))
            return 3

        @flow.task
        async def agenerator(ctx):
            yield 1
            await asyncio.sleep(0)
            ctx.emit(2)
            yield StreamChunk("mine", 3)

        for name, expected in {
            "plain": [("plain", 1), ("mine", 2), ("plain", 3)],
            "generator": [("generator", 1), ("generator", 2), ("mine", 3), ("generator", None), ("generator", 4)],
            "coroutine": [("coroutine", 1), ("mine", 2), ("coroutine", 3)],
            "agenerator": [("agenerator", 1), ("agenerator", 2), ("mine", 3), ("agenerator", None)],
        }.items():
            assert list(flow.stream(name)) == expected
            assert flow.run(name) == {name: expected[-1][1]}


def test_an_interim_value_comes_while_its_task_runs(executor):
    """A yielded value is there at once: the task goes on only when the reader has seen it."""
    if executor == "inline":
        pytest.skip("there the reader's thread is the task's")
    seen = threading.Event()
    with Flow(executor) as flow:

        @flow.task
        def generator():
            yield 1
            wait_for(seen)
            yield 2

        for chunk in flow.stream():
            if chunk.value == 1:
                seen.set()
        assert seen.is_set()


def test_a_yielded_request_is_served_at_once(executor):
    """The task that a generator asks for may finish before the generator does."""
    if executor == "inline":
        pytest.skip("one thing at a time")
    done = threading.Event()
    with Flow(executor) as flow:

        @flow.task
        def generator():
            yield NextTask("other")
            wait_for(done)
            return "end"

        flow.add_task("other", lambda: done.set() or "other")
        assert [chunk.value for chunk in flow.stream("generator")] == ["other", "end"]


def test_a_chunk_comes_after_everything_that_caused_it(flow):
    """Parents before children, siblings before their join, and the chunks of one task in order."""

    @flow.task
    def split(ctx, depth):
        ctx.emit("before")
        if depth == 0:
            return "leaf"
        parts = [NextTask("split", {"depth": depth - 1}, spawn_another=True) for _ in range(3)]
        return TaskOutput(("node", depth), [*parts, NextTask("join", {"depth": depth}, True, join=True)])

    @flow.task
    def join(ctx, depth, upstream):
        ctx.emit(("siblings", current_task().id))
        return ("joined", len(upstream))

    places = {}
    chunks = list(flow.stream("split", {"depth": 3}))
    for place, chunk in enumerate(chunks):
        places.setdefault(chunk.task_id, []).append(place)
    assert len(places) == 40 + 13
    assert all(sorted(at) == at and len(at) == 2 for at in places.values())
    assert places["split"][1] < min(at[1] for name, at in places.items() if name != "split")
    assert chunks[-1].value == ("joined", 3)


def test_a_value_that_caused_another_comes_first(executor):
    """A chunk emitted before a set comes before what the waiting task emits afterwards."""
    with Flow(executor) as flow:

        @flow.task
        def first(ctx):
            ctx.emit("cause")
            ctx.set("key", 1)

        @flow.task
        def second(ctx):
            ctx.get("key")
            ctx.emit("effect")

        for _ in range(20):
            values = [chunk.value for chunk in flow.stream(["second", "first"])]
            assert values.index("cause") < values.index("effect")


def test_the_next_task_may_start_before_its_parent_was_read(executor):
    """The reader does not hold up the run while there is room in the buffer."""
    if executor == "inline":
        pytest.skip("there the run goes on only while the reader waits")
    ended = threading.Event()
    with Flow(executor) as flow:
        add_chain(flow, 20)
        flow.add_task("end", ended.set)
        stream = flow.stream(["step", "end"], {"n": 1})
        wait_for(ended)
        assert stream.run.wait(WATCHDOG)
        assert len(list(stream)) == 21


def test_inline_streams_are_as_lazy_as_a_generator():
    """On the inline executor a task runs when the reader asks for its chunk."""
    ran = []
    with Flow("inline") as flow:

        @flow.task
        def step(n):
            ran.append(n)
            return TaskOutput(n, [NextTask("step", {"n": n + 1}, True)])

        for chunk in flow.stream("step", {"n": 0}):
            assert ran == list(range(chunk.value + 1))
            if chunk.value == 5:
                break
        assert ran == [0, 1, 2, 3, 4, 5]


def test_a_run_without_a_reader_drops_interim_values(flow):
    """run gives results alone."""
    add_chain(flow, 3)
    assert flow.run("step", {"n": 1}) == {"step#3": 3}


# ---- the bounded buffer ---------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [1, 2, 3])
def test_a_slow_reader_slows_a_generator(executor, buffer):
    """Not more than the buffer and one chunk are made ahead of the reader."""
    with Flow(executor) as flow:
        sent, ended = add_endless(flow)
        ahead = []
        stream = flow.stream(buffer=buffer)
        for read, _chunk in enumerate(stream, 1):
            if executor != "inline":
                until(lambda: len(sent) >= read + buffer)
            ahead.append(len(sent) - read)
            if read == 20:
                break
        assert max(ahead) <= buffer + 1
        stream.close()
        wait_for(ended)


@pytest.mark.parametrize("buffer", [1, 2, 3])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_slow_reader_slows_emit(executor, buffer, is_async):
    """The same for ctx.emit in a loop: a slow reader slows the task instead of filling memory."""
    if executor == "inline" and not is_async:
        pytest.skip("there the emitting thread is the reader's, and cannot wait for itself")
    sent = []
    with Flow(executor) as flow:

        def emits(ctx):
            for n in range(500):
                sent.append(n)
                ctx.emit(n)

        async def emits_async(ctx):
            for n in range(500):
                sent.append(n)
                ctx.emit(n)
                await asyncio.sleep(0)

        flow.add_task("emits", emits_async if is_async else emits)
        stream = flow.stream(buffer=buffer)
        for read in range(1, 10):
            next(stream)
            until(lambda: len(sent) >= read + buffer)
            time.sleep(0.001)  # it may get further now, if it does not wait
            assert len(sent) <= read + buffer + 1
        stream.close()


@pytest.mark.parametrize("buffer", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_slow_reader_slows_a_fan_out(buffer, workers):
    """Task runs that finish wait for room: each worker has one chunk too many there and one at hand."""
    ran = []
    with Flow(max_workers=workers) as flow:
        flow.add_task("split", lambda: [NextTask("part", {"n": n}, True) for n in range(50)])
        flow.add_task("part", lambda n: ran.append(n))
        stream = flow.stream("split", buffer=buffer)
        next(stream)
        for read in range(1, 40):
            until(lambda: len(ran) >= min(50, read - 1 + buffer))
            assert len(ran) <= read - 1 + buffer + 2 * workers
            next(stream)
        assert len(list(stream)) == 11


def test_a_slow_reader_slows_an_async_generator():
    """An async generator waits for room without blocking its loop."""
    sent = []
    ticks = threading.Event()
    with Flow("asyncio") as flow:

        @flow.task
        async def endless():
            for _ in range(FAR):
                sent.append(1)
                yield 1

        @flow.task
        async def other(ctx):
            await ctx.aget("go", external=True)
            ticks.set()
            return "other"

        stream = flow.stream(["endless", "other"], buffer=2)
        for read in range(1, 10):
            next(stream)
            until(lambda: len(sent) >= read + 2)
            assert len(sent) <= read + 3
        stream.run.context.set("go", 1)
        wait_for(ticks)  # the loop is alive while the generator waits for room
        stream.close()


def test_a_slow_reader_slows_many_coroutines():
    """Coroutines that finish wait for room; those that do not are not held up."""
    with Flow("asyncio") as flow:
        flow.add_task("split", lambda: [NextTask("part", {"n": n}, True) for n in range(100)])

        @flow.task
        async def part(n):
            await asyncio.sleep(0)
            return n

        chunks = []
        for chunk in flow.stream("split", buffer=1):
            chunks.append(chunk.value)
        assert sorted(chunks[1:]) == list(range(100))


def test_one_worker_and_a_buffer_of_one(executor):
    """The tightest case ends on every executor, nested lists and joins included."""
    with ThreadPoolExecutor(1) as pool:
        one = {"thread": {"max_workers": 1}, "asyncio": {"max_workers": 1}}
        where = executor if isinstance(executor, str) else pool
        with Flow(where, **one.get(where if isinstance(where, str) else "", {})) as flow:

            @flow.task
            def split(n):
                yield "start"
                for _ in range(n):
                    yield NextTask("split", {"n": n - 1}, spawn_another=True)
                return n

            assert len(list(flow.stream("split", {"n": 4}, buffer=1))) == 2 * 65


def test_a_reader_that_sets_what_a_task_waits_for():
    """While a task waits for an outside value, the reader gets what is there and may set it."""
    with Flow(max_workers=1) as flow:

        @flow.task
        def ask(ctx):
            yield "question"
            return ctx.get("answer", external=True)

        values = []
        stream = flow.stream(buffer=1)
        for chunk in stream:
            values.append(chunk.value)
            if chunk.value == "question":
                stream.run.context.set("answer", 42)
        assert values == ["question", 42]


def test_a_stream_read_inside_a_task(executor):
    """A nested stream ends on one worker: the reading task lends its place while it waits."""
    with ThreadPoolExecutor(1) as pool:
        where = executor if isinstance(executor, str) else pool
        options = {"max_workers": 1} if where in ("thread", "asyncio") else {}
        with Flow(where, **options) as flow:
            add_chain(flow, 10)
            flow.add_task("outer", lambda: sum(c.value for c in flow.stream("step", {"n": 1}, buffer=1)))
            run = flow.start("outer")
            assert run.result(timeout=5) == {"outer": 55}


# ---- errors ---------------------------------------------------------------------------------------


def test_an_error_comes_after_the_chunks_before_it(flow):
    """What was emitted before the failure is read first; then the task's own exception is raised."""
    mine = ZeroDivisionError("mine")

    @flow.task
    def fails(ctx):
        ctx.emit(1)
        ctx.emit(2)
        raise mine

    values = []
    with pytest.raises(ZeroDivisionError) as caught:
        for chunk in flow.stream():
            values.append(chunk.value)
    assert values == [1, 2]
    assert caught.value is mine


class Late:
    """A ``Stream.take`` that lies once: it finds nothing, and says so when the run has ended."""

    def __init__(self, monkeypatch, go):
        from millstream.engine.stream import Stream

        self.go, self.lied = go, False
        take = Stream.take

        def late(stream):
            chunk = take(stream)
            if chunk is None and not self.lied:
                self.lied = True
                go.set()
                until(lambda: stream.closed)
            return chunk

        monkeypatch.setattr(Stream, "take", late)


def test_no_chunk_is_lost_when_the_run_ends_while_the_reader_looks(monkeypatch):
    """A chunk that comes between the look into the buffer and the look whether all is over is read."""
    go = threading.Event()
    with Flow() as flow:
        flow.add_task("a", lambda: go.wait(WATCHDOG))
        late = Late(monkeypatch, go)
        assert list(flow.stream()) == [("a", True)]
        assert late.lied


def test_no_chunk_is_lost_when_the_run_ends_while_the_asynchronous_reader_looks(monkeypatch):
    """The same for astream."""
    go = threading.Event()

    async def main():
        async with Flow() as flow:
            flow.add_task("a", lambda: go.wait(WATCHDOG))
            return [chunk async for chunk in flow.astream()]

    late = Late(monkeypatch, go)
    assert asyncio.run(main()) == [("a", True)]
    assert late.lied


def test_an_error_is_raised_once(flow):
    """After it the stream is at its end, as any iterator of Python's."""

    @flow.task
    def fails():
        raise ZeroDivisionError

    stream = flow.stream()
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert list(stream) == []


def test_a_stream_at_its_end_stays_there(flow):
    """next raises StopIteration again and again."""
    flow.add_task("a", lambda: 1)
    stream = flow.stream()
    assert list(stream) == [("a", 1)]
    assert list(stream) == []
    stream.close()
    assert list(stream) == []


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, GeneratorExit])
def test_an_error_that_ends_loops_is_not_swallowed(flow, kind):
    """A task that raises StopIteration (next on something empty) fails loudly in a stream too."""

    @flow.task
    def fails():
        raise kind("mine")

    with pytest.raises(BaseException, match="mine"):
        flow.run()

    def loop():
        for _ in flow.stream():
            pass
        return "the loop ended as if all were well"

    with pytest.raises(BaseException, match="mine"):
        pytest.fail(loop())

    async def aloop():
        async for _ in flow.astream():
            pass
        return "the loop ended as if all were well"

    with pytest.raises(BaseException, match="mine"):
        pytest.fail(asyncio.run(aloop()))


def test_a_run_timeout_comes_out_of_the_loop(executor):
    """A stream's own timeout raises RunTimeoutError after the chunks."""
    with Flow(executor) as flow:

        @flow.task
        def slow():
            yield 1
            while not current_task().cancelled:
                time.sleep(0.001)
            yield 2

        values = []
        with pytest.raises(RunTimeoutError):
            for chunk in flow.stream(timeout=0.1):
                values.append(chunk.value)
        assert values == [1]


def test_a_run_cancelled_by_somebody_else(executor):
    """The reader gets the chunks from before, then RunCancelledError."""
    with Flow(executor) as flow:

        @flow.task
        def a(ctx):
            ctx.emit(1)
            flow.cancel_all()
            ctx.emit(2)

        values = []
        with pytest.raises(RunCancelledError):
            for chunk in flow.stream():
                values.append(chunk.value)
        assert values == [1]


# ---- leaving early --------------------------------------------------------------------------------


def leave_by_break(flow):
    for _chunk in flow.stream("endless", buffer=2):
        break


def leave_by_exception(flow):
    with pytest.raises(ZeroDivisionError):
        for _chunk in flow.stream("endless", buffer=2):
            raise ZeroDivisionError


def leave_by_close(flow):
    stream = flow.stream("endless", buffer=2)
    next(stream)
    stream.close()
    stream.close()
    assert stream.run.status is Status.CANCELLED


def leave_by_del(flow):
    stream = flow.stream("endless", buffer=2)
    next(stream)
    del stream
    gc.collect()


def leave_by_with(flow):
    with flow.stream("endless", buffer=2) as stream:
        next(stream)
    assert stream.run.status is Status.CANCELLED


def leave_unread(flow):
    flow.stream("endless", buffer=2).close()


def leave_by_flow_close(flow):
    stream = flow.stream("endless", buffer=2)
    next(stream)
    flow.close()
    assert stream.run.status is Status.CANCELLED


LEAVE = [
    leave_by_break,
    leave_by_exception,
    leave_by_close,
    leave_by_del,
    leave_by_with,
    leave_unread,
    leave_by_flow_close,
]


@pytest.mark.parametrize("leave", LEAVE, ids=lambda leave: leave.__name__)
def test_leaving_early_cancels_the_run(executor, leave):
    """However the loop is left: the task's finally runs, nothing follows, and no thread stays behind."""
    before = engine_threads()
    with Flow(executor) as flow:
        sent, ended = add_endless(flow)
        leave(flow)
        if sent:
            wait_for(ended)
        count = len(sent)
        flow.close()
        assert len(sent) == count
    until(lambda: not engine_threads() - before)


def test_the_flow_is_usable_after_a_stream_was_left(flow):
    """All workers are back: the same flow streams and runs again."""
    add_endless(flow)
    add_chain(flow, 3)
    for _ in range(5):
        leave_by_break(flow)
    assert [chunk.value for chunk in flow.stream("step", {"n": 1})] == [1, 2, 3]
    assert flow.run("step", {"n": 1}) == {"step#3": 3}


def test_what_waits_never_starts_after_the_stream_was_left(executor):
    """Pending task runs of a run that was left do not begin."""
    ran = []
    with Flow(executor, max_parallel=1) as flow:
        flow.add_task("split", lambda: [NextTask("part", {"n": n}, True) for n in range(100)])
        flow.add_task("part", lambda n: ran.append(n))
        for chunk in flow.stream("split", buffer=1):
            if chunk.task_id != "split":
                break
        count = len(ran)
        assert count < 10
        flow.run("part", {"n": "again"})
        assert len(ran) == count + 1


def test_leaving_with_a_task_that_does_not_stop(short_grace):
    """A stuck task is given up after a short while; the loop is left all the same."""
    go, done = threading.Event(), threading.Event()
    with Flow(max_workers=1) as flow:

        @flow.task
        def stuck(ctx):
            yield 1
            wait_for(go)
            done.set()

        flow.add_task("next", lambda: 2)
        for _chunk in flow.stream("stuck"):
            break
        assert flow.run("next") == {"next": 2}  # its worker was replaced
        go.set()
        wait_for(done)


def test_leaving_a_flow_block_with_a_stream_that_is_held():
    """`with Flow()` ends although somebody still holds a stream that nobody will read on."""
    code = """
from millstream import Flow

with Flow() as flow:
    @flow.task
    def endless():
        while True:
            yield 1

    stream = flow.stream(buffer=1)
    next(stream)
print("left")
"""
    assert run_snippet(code) == "left\n"


def test_leaving_an_async_flow_block_with_a_stream_that_is_held():
    """The same for `async with Flow()`."""
    code = """
import asyncio
from millstream import Flow

async def main():
    async with Flow() as flow:
        @flow.task
        async def endless():
            while True:
                yield 1

        stream = flow.astream(buffer=1)
        await anext(stream)
    print("left")

asyncio.run(main())
"""
    assert run_snippet(code) == "left\n"


# ---- FlowRun.stream -------------------------------------------------------------------------------


def test_the_stream_of_a_started_run_has_it_all(flow):
    """Chunks from before the call are kept, and the result is there as well."""
    add_chain(flow, 5)
    run = flow.start("step", {"n": 1})
    assert [chunk.value for chunk in run.stream()] == [1, 2, 3, 4, 5]
    assert run.result() == {"step#5": 5}
    assert run.status is Status.SUCCESS


def test_the_stream_of_a_run_that_has_ended(flow):
    """A run can be read after its end, errors included."""

    @flow.task
    def fails(ctx):
        ctx.emit(1)
        raise ZeroDivisionError

    run = flow.start()
    assert run.wait(WATCHDOG)
    stream = run.stream()
    assert next(stream) == ("fails", 1)
    with pytest.raises(ZeroDivisionError):
        next(stream)
    with pytest.raises(ZeroDivisionError):
        run.result()


def test_a_run_without_reader_is_not_slowed_and_says_what_was_missed(flow):
    """More chunks than are kept: the run goes on, and stream() is a StreamError afterwards."""

    @flow.task
    def many():
        yield from range(5000)
        return "done"

    run = flow.start()
    assert run.result(WATCHDOG) == {"many": "done"}
    with pytest.raises(StreamError, match=f"{run.id} cannot be streamed: more chunks"):
        run.stream()
    assert run.result() == {"many": "done"}


def test_a_run_has_one_reader(flow):
    """A second stream() of the same run is refused; the first goes on."""
    add_chain(flow, 3)
    run = flow.start("step", {"n": 1})
    stream = run.stream()
    with pytest.raises(StreamError, match="has a reader"):
        run.stream()
    assert len(list(stream)) == 3
    with pytest.raises(StreamError, match="has a reader"):
        run.stream()
    with pytest.raises(StreamError, match="has a reader"):
        flow.stream("step", {"n": 3}).run.stream()


def test_leaving_the_stream_of_a_started_run_cancels_it():
    """As the docstring says; result raises RunCancelledError then."""
    with Flow() as flow:

        @flow.task
        def slow():
            yield 1
            while True:
                current_task().raise_if_cancelled()
                time.sleep(0.001)

        run = flow.start()
        for _chunk in run.stream():
            break
        with pytest.raises(RunCancelledError):
            run.result(WATCHDOG)


def test_two_streams_at_once(flow):
    """Two runs of one flow are read in turn, each with its own chunks."""
    add_chain(flow, 6)
    pairs = list(zip(flow.stream("step", {"n": 1}, buffer=1), flow.stream("step", {"n": 2}, buffer=1), strict=False))
    assert [(one.value, two.value) for one, two in pairs] == [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]


def test_streaming_keeps_no_results():
    """Outputs that were read are not also kept for a result."""

    class Big:
        def __init__(self):
            alive.add(self)

    alive, most = weakref.WeakSet(), 0
    with Flow(max_workers=1) as flow:

        @flow.task
        def many():
            return [NextTask("part", spawn_another=True) for _ in range(20)]

        flow.add_task("part", Big)
        for chunk in flow.stream("many", buffer=1):
            del chunk
            most = max(most, len(alive))
        assert 0 < most <= 6


# ---- astream --------------------------------------------------------------------------------------


async def collect(flow, *arguments, **options):
    """Return all chunks of an astream."""
    return [chunk async for chunk in flow.astream(*arguments, **options)]


def test_astream_gives_what_stream_gives(flow):
    """The twin has the same chunks, order and errors."""
    add_chain(flow, 5)

    @flow.task
    def fails(ctx):
        ctx.emit(1)
        raise ZeroDivisionError

    async def main():
        values = []
        with pytest.raises(ZeroDivisionError):
            async for chunk in flow.astream("fails"):
                values.append(chunk.value)
        return await collect(flow, "step", {"n": 1}, buffer=1), values

    chunks, before = asyncio.run(main())
    assert [chunk.value for chunk in chunks] == [1, 2, 3, 4, 5]
    assert before == [1]


def test_astream_does_not_block_the_loop():
    """While the reader waits for a thread's chunk, the loop does other things."""

    async def main():
        go = threading.Event()
        async with Flow() as flow:
            flow.add_task("slow", lambda: go.wait(WATCHDOG))
            reading = asyncio.create_task(collect(flow))
            await asyncio.sleep(0)
            go.set()
            return await asyncio.wait_for(reading, WATCHDOG)

    assert asyncio.run(main()) == [("slow", True)]


def test_a_slow_reader_slows_the_tasks_of_its_own_loop():
    """Reader and async generator share one loop: the buffer bounds how far it gets ahead."""
    sent = []

    async def main():
        async with Flow() as flow:

            @flow.task
            async def endless():
                for _ in range(FAR):
                    sent.append(1)
                    yield 1

            read = 0
            stream = flow.astream(buffer=2)
            async for _chunk in stream:
                read += 1
                for _ in range(10):
                    await asyncio.sleep(0)
                assert len(sent) <= read + 3
                if read == 10:
                    break
            await stream.aclose()

    asyncio.run(main())


def test_leaving_astream_early_cancels_the_run():
    """break, an exception, aclose and async with: the task's finally runs."""
    before = engine_threads()

    async def leave(flow, how):
        if how == "break":
            async for _chunk in flow.astream():
                break
        elif how == "exception":
            with pytest.raises(ZeroDivisionError):
                async for _chunk in flow.astream():
                    raise ZeroDivisionError
        elif how == "aclose":
            stream = flow.astream()
            await anext(stream)
            await stream.aclose()
            await stream.aclose()
            assert stream.run.status is Status.CANCELLED
        else:
            async with flow.astream() as stream:
                await anext(stream)
            assert stream.run.status is Status.CANCELLED

    async def main(how):
        ended = asyncio.Event()
        async with Flow() as flow:

            @flow.task
            async def endless():
                try:
                    while True:
                        yield 1
                finally:
                    ended.set()

            await leave(flow, how)
            await asyncio.wait_for(ended.wait(), WATCHDOG)

    for how in ("break", "exception", "aclose", "with"):
        asyncio.run(main(how))
    until(lambda: not engine_threads() - before)


def test_a_cancelled_awaiter_of_astream_cancels_the_run():
    """Cancelling who reads stops the tasks before the cancel is through."""

    async def main():
        started, cancelled = asyncio.Event(), []
        async with Flow() as flow:

            @flow.task
            async def slow():
                started.set()
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    cancelled.append(1)
                    raise

            reading = asyncio.create_task(collect(flow))
            await started.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert cancelled == [1]

    asyncio.run(main())


def test_an_awaiter_with_a_timeout():
    """asyncio.timeout around a loop over a stuck run raises TimeoutError and leaves nothing behind."""

    async def main():
        async with Flow() as flow:

            @flow.task
            async def slow():
                yield 1
                await asyncio.sleep(60)

            values = []
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    async for chunk in flow.astream():
                        values.append(chunk.value)
            assert values == [1]

    asyncio.run(main())


def test_astream_of_plain_tasks_left_early(executor):
    """Plain tasks on their executor are told to stop too."""

    async def main():
        async with Flow(executor) as flow:
            sent, ended = add_endless(flow)
            async for _chunk in flow.astream(buffer=2):
                break
            if sent:
                assert await asyncio.to_thread(ended.wait, WATCHDOG)

    asyncio.run(main())
