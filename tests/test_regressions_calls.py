"""Regressions R7, R8, R9, R15, R20, R35, R37 and R40 where they are about submitted calls."""

# ruff: noqa: PT012 - blocks and their ends are what is said to raise here

import asyncio
import contextvars
import gc
import sys
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import pytest

from millstream import (
    DependencyFailedError,
    Flow,
    FlowError,
    RunCancelledError,
    Status,
    TaskCancelledError,
    current_task,
    task,
)
from tests.conftest import WATCHDOG, Log, VirtualClock, on_one_worker, run_snippet, set_clock

KINDS = ("inline", "thread", "asyncio")
BESIDE = ("thread", "asyncio")  #: executors that call beside the caller's thread


class OutOfStockError(Exception):
    """What goes wrong in the shop of these tests."""


@task
def square(x: int) -> int:
    """Return the square of a number."""
    return x * x


@task
async def square_async(x: int) -> int:
    """Return the square of a number, after the loop had its turn."""
    await asyncio.sleep(0)
    return x * x


def sell_out(*_):
    """Fail, as the shop does."""
    raise OutOfStockError("tea")


def until_told(value=None):
    """Work until told to stop, then return as if nothing had been said."""
    begun = Log() if value is None else value
    begun.add(current_task().id)
    while not current_task().cancelled:
        pass
    return "late"


class Gate:
    """A body that says when it has begun, and ends when the test lets it."""

    def __init__(self):
        self.began, self.opened = threading.Event(), threading.Event()

    def __call__(self, value=None):
        self.began.set()
        assert self.opened.wait(WATCHDOG), "nobody opened the gate"
        return value

    def wait_for_call(self):
        """Wait until somebody stands before it."""
        assert self.began.wait(WATCHDOG)


# ---- R7: as many results as calls -------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fn", [square, square_async], ids=["plain", "async"])
@pytest.mark.parametrize("one_by_one", [True, False])
def test_r07_three_calls_of_one_task_are_three_results(kind, fn, one_by_one):
    """Three calls have three results and ids, whether or not one had ended before the next was asked for."""
    with Flow(kind, max_workers=None if kind == "inline" else 2) as flow:
        handles = []
        for n in (2, 3, 3):
            handles.append(fn.submit(n))
            if one_by_one:
                handles[-1].result(WATCHDOG)
        assert [handle.result(WATCHDOG) for handle in handles] == [4, 9, 9]
        assert [handle.id for handle in handles] == [fn.name, f"{fn.name}#2", f"{fn.name}#3"]
        assert flow.report().tasks[fn.name].runs == 3


def test_r07_a_task_that_submits_itself_twice_has_two_results():
    """A flow that has the task, a run of it and calls of it in that run: each has its own result and number."""
    with Flow("thread", max_workers=1) as flow:
        flow.add(square)

        @flow.task
        def shop():
            return [square.submit(n).result() for n in (5, 6)]

        results = flow.run(["square", "shop"], {"x": 4})
    assert (results["square"], results["shop"]) == (16, [25, 36])


# ---- R8: no handle is left pending ------------------------------------------------------------------


@pytest.mark.parametrize("kind", BESIDE)
def test_r08_when_run_has_raised_every_handle_is_final(kind):
    """A run that fails ends all calls of its tasks before it raises; their ``result`` never waits then."""
    handles, begun = [], Log()
    with Flow(kind, max_workers=2) as flow:

        @flow.task
        def shop():
            handles.append(square.submit(2))
            handles[0].result()
            running, coroutine = flow.submit(until_told, begun), flow.submit(asyncio.sleep, WATCHDOG)
            tea = flow.submit(sell_out)
            handles.extend([running, coroutine, tea, flow.submit(square, tea), flow.submit(square, running)])
            begun.wait_for(1)
            raise OutOfStockError("the shop is closed")

        with pytest.raises((OutOfStockError, ExceptionGroup)):
            flow.run("shop")
        assert [handle.done() for handle in handles] == [True] * 6
        assert {handle.status for handle in handles} <= set(Status) - {Status.PENDING, Status.RUNNING}
        assert handles[0].result(0) == 4
        for handle in handles[1:]:
            if handle.status is not Status.SUCCESS:
                with pytest.raises((OutOfStockError, FlowError)):
                    handle.result(0)
            else:
                handle.result(0)


@pytest.mark.parametrize("kind", KINDS)
def test_r08_when_a_block_has_raised_every_handle_is_final(kind):
    """A block that ends by a failure or an exception leaves no handle pending."""
    for error in (OutOfStockError, KeyError):
        with pytest.raises(error), Flow(kind) as flow:
            tea, fine = flow.submit(sell_out), flow.submit(square, 3)
            after = flow.submit(square, tea)
            if error is KeyError:
                tea.exception(WATCHDOG)
                raise KeyError
        assert all(handle.done() for handle in (tea, fine, after))
        with pytest.raises(OutOfStockError):
            tea.result(0)
        with pytest.raises(DependencyFailedError):
            after.result(0)


@pytest.mark.parametrize("kind", BESIDE)
def test_r08_dependants_of_a_failure_end_as_soon_as_it_is_known(kind):
    """A chain behind a failure has failed while another call of the flow still runs."""
    gate = Gate()
    with Flow(kind, max_workers=2, on_error="continue") as flow:
        held = flow.submit(gate, "held")
        gate.wait_for_call()
        tea = flow.submit(sell_out)
        chain = [tea]
        for _ in range(5):
            chain.append(flow.submit(square, chain[-1]))
        both = flow.submit(lambda *given: given, held, chain[-1])
        for handle in chain[1:]:
            assert isinstance(handle.exception(WATCHDOG), DependencyFailedError)
        assert (held.done(), both.done()) == (False, False)  # it waits for all before it decides
        gate.opened.set()
        assert isinstance(both.exception(WATCHDOG), DependencyFailedError)


# ---- R9: one call of the body for each attempt ------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arguments", [(), (1,), (1, 2)])
def test_r09_a_type_error_is_no_reason_to_call_again(kind, arguments):
    """A TypeError in a body, or from wrong arguments, is the failure of the call: nothing is tried another way."""
    calls = []

    def weigh(ctx, *given):
        calls.append(given)
        raise TypeError("missing 1 required positional argument")

    with Flow(kind, on_error="continue") as flow:
        handle = flow.submit(weigh, *arguments)
        with pytest.raises(TypeError, match="missing 1 required"):
            handle.result(WATCHDOG)
        wrong = flow.submit(square, 1, 2, 3)
        with pytest.raises(TypeError, match="takes 1 positional argument"):
            wrong.result(WATCHDOG)
    assert calls == [arguments]


@pytest.mark.parametrize("kind", KINDS)
def test_r09_who_waits_for_a_call_does_not_call_it(kind):
    """Threads and coroutines that wait for one handle, from outside and inside, all get the result of one call."""
    calls, gate = Log(), Gate()

    def price():
        calls.append(1)
        return gate(5) if kind != "inline" else 5

    with Flow(kind) as flow, ThreadPoolExecutor(4) as others:
        handle = flow.submit(price)
        asked = [others.submit(handle.result, WATCHDOG) for _ in range(4)]
        inside = [flow.submit(lambda: handle.result(WATCHDOG)) for _ in range(3)]
        after = [flow.submit(lambda value: value, handle) for _ in range(3)]
        gate.opened.set()
        assert {each.result(WATCHDOG) for each in (*asked, *inside, *after)} == {5}

        async def ask():
            return await asyncio.gather(*(handle for _ in range(3)))

        assert asyncio.run(ask()) == [5, 5, 5]
    assert calls == [1]


# ---- R15: who waits for a call gives its place away -------------------------------------------------


@on_one_worker
def test_r15_calls_that_wait_for_calls_finish_on_one_worker(executor):
    """Each call submits another one and waits for it, a hundred deep, on a single worker."""

    def count(depth):
        return depth if depth == 0 else 1 + flow.submit(count, depth - 1).result()

    async def count_async(depth):
        return depth if depth == 0 else 1 + await flow.submit(count_async, depth - 1)

    with Flow(executor) as flow:
        assert flow.submit(count, 100).result(WATCHDOG) == 100
        assert flow.submit(count_async, 100).result(WATCHDOG) == 100


@on_one_worker
def test_r15_many_wait_for_one_on_one_worker(executor):
    """A hundred calls wait, by ``result`` and by ``await``, for one that is submitted after them."""
    handles, ready = [], threading.Event()

    def ask(ctx):
        ctx.get("asked")  # waits without a worker, until everybody is there
        return handles[0].result()

    async def ask_async(ctx):
        await ctx.aget("asked")
        return await handles[0]

    with Flow(executor) as flow:

        @flow.task
        def shop():
            asking = [flow.submit(ask if n % 2 else ask_async) for n in range(100)]
            handles.append(flow.submit(lambda: 7))
            flow.context.set("asked", True)
            ready.set()
            return sum(handle.result() for handle in asking)

        assert flow.run("shop", timeout=WATCHDOG)["shop"] == 700
    assert ready.is_set()


# ---- R20: no hidden pool ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BESIDE)
def test_r20_twelve_coroutines_await_one_thread_call(kind):
    """Coroutines that wait for a call in a thread take nothing from it, whatever the number of cores."""
    gate, asking = Gate(), Log()
    with Flow(kind, max_workers=1) as flow:
        price = flow.submit(gate, 5)

        async def ask(n):
            asking.add(n)
            return n * await price

        handles = [flow.submit(ask, n) for n in range(12)]
        asking.wait_for(12)  # all twelve have begun, and wait
        gate.opened.set()
        assert [handle.result(WATCHDOG) for handle in handles] == [n * 5 for n in range(12)]


@pytest.mark.parametrize("kind", BESIDE)
def test_r20_32_workers_run_32_bodies_at_once(kind):
    """A flow of 32 workers calls 32 bodies at once, also where they are submitted by a call."""
    barrier = threading.Barrier(32)

    def meet():
        barrier.wait(WATCHDOG)
        return 1

    with Flow(kind, max_workers=32) as flow:
        assert sum(handle.result(WATCHDOG) for handle in [flow.submit(meet) for _ in range(32)]) == 32

        def hold():
            return sum(handle.result() for handle in [flow.submit(meet) for _ in range(32)])

        assert flow.submit(hold).result(WATCHDOG) == 32


CUSTOMER = contextvars.ContextVar("customer", default="nobody")


def serve():
    """Return whom it is called for."""
    return CUSTOMER.get()


async def serve_async():
    """Return whom it is called for, after the loop had its turn."""
    await asyncio.sleep(0)
    return CUSTOMER.get()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fn", [serve, serve_async])
def test_r20_a_call_sees_the_context_variables_of_who_submits_it(kind, fn):
    """From a block, a task, a coroutine and a worker thread alike; what a call sets, no other one sees."""

    def shop(name):
        CUSTOMER.set(name)
        return flow.submit(fn).result()

    async def shop_async(name):
        CUSTOMER.set(name)
        return await flow.submit(fn)

    token = CUSTOMER.set("ann")
    try:
        with Flow(kind, max_workers=None if kind == "inline" else 1) as flow:
            assert flow.submit(fn).result(WATCHDOG) == "ann"
            assert flow.submit(shop, "bob").result(WATCHDOG) == "bob"
            assert flow.submit(shop_async, "cyd").result(WATCHDOG) == "cyd"
            flow.add_task("shop", shop)
            assert flow.run("shop", {"name": "dan"})["shop"] == "dan"
            CUSTOMER.set("eve")  # after the flow has begun its session
            assert flow.submit(fn).result(WATCHDOG) == "eve"
            with ThreadPoolExecutor(1) as other:
                assert other.submit(shop, "fay").result(WATCHDOG) == "fay"
            assert flow.submit(fn).result(WATCHDOG) == "eve"
    finally:
        CUSTOMER.reset(token)


@pytest.mark.parametrize("kind", BESIDE)
def test_r20_worker_threads_of_others_submit_too(kind):
    """Threads of one's own submit to a flow all at once: every call is called, once."""
    with Flow(kind, max_workers=2) as flow, ThreadPoolExecutor(8) as others:
        flow.submit(square, 0).result(WATCHDOG)
        jobs = [others.submit(lambda n=n: flow.submit(square, n).result(WATCHDOG)) for n in range(100)]
        assert [job.result(WATCHDOG) for job in jobs] == [n * n for n in range(100)]
        assert flow.report().tasks["square"].runs == 101


@pytest.mark.parametrize("kind", KINDS)
def test_r20_threads_that_submit_the_first_calls_together_share_one_run(kind):
    """The block opens one run for its calls, however many threads ask for it at once."""
    said = run_snippet(
        f"""
        import threading
        from millstream import Flow

        for _ in range(20):
            with Flow({kind!r}) as flow:
                context = flow.context
                barrier, handles = threading.Barrier(6), []

                def first():
                    barrier.wait(5)
                    handles.append(flow.submit(abs, -5))

                threads = [threading.Thread(target=first) for _ in range(6)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert [handle.result(5) for handle in handles] == [5] * 6
                assert flow.report().tasks["abs"].runs == 6
                assert flow.context is context
                assert context["abs"] == 5
        print("fine")
        """
    )
    assert said == "fine\n"


def test_r20_threads_share_an_inline_flow():
    """Inline, a call is made by a thread that waits for it, also when another thread was at work when it came."""
    gate, results = Gate(), Log()
    with Flow("inline") as flow:

        def other():
            gate.wait_for_call()
            threading.Timer(0.01, gate.opened.set).start()
            results.add(flow.submit(square, 4).result(WATCHDOG))

        thread = threading.Thread(target=other)
        thread.start()
        assert flow.submit(gate, "slow").result(WATCHDOG) == "slow"
        results.wait_for(1)
        thread.join(WATCHDOG)
    assert results == [16]


def test_r20_an_inline_flow_does_not_wait_in_submit():
    """Inline, a call that waits for one elsewhere is made while somebody waits for it; ``submit`` comes back."""
    gate = Gate()
    with Flow("inline") as flow:
        held = task("held", executor="thread")(gate).submit(3)
        after = flow.submit(square, held)
        chain = flow.submit(square, after)
        assert (after.done(), chain.done()) == (False, False)
        gate.opened.set()
        assert chain.result(WATCHDOG) == 81
        last = flow.submit(square, held)
    assert last.result(0) == 9


# ---- R35: cancelled is cancelled --------------------------------------------------------------------


class Stand:
    """A flow with one worker that is busy, and what a call of it may wait for."""

    def __init__(self, flow, clock):
        self.flow, self.clock, self.gate, self.calls = flow, clock, Gate(), Log()
        self.busy = flow.submit(self.gate, 3)
        self.gate.wait_for_call()

    def body(self, *_):
        """Note that it was called."""
        self.calls.add("called")
        return "called"

    def for_a_worker(self):
        return self.flow.submit(self.body)

    def for_a_call(self):
        return self.flow.submit(self.body, [self.busy])

    def for_a_retry(self):
        def flaky():
            self.calls.add("flaky")
            raise OutOfStockError("tea")

        handle = task("flaky", retries=3, backoff_base=8.0, executor="asyncio")(flaky).submit()
        self.clock.wait_for(8.0)
        assert list(self.calls) == ["flaky"]
        self.calls.clear()
        return handle

    def for_a_limit(self):
        query = task("query", uses=["db"], executor="asyncio")
        self.flow.submit(query(self.gate))
        return self.flow.submit(query(self.body))

    def for_its_turn(self):
        one = task("one", max_parallel=1, executor="asyncio")(lambda held: self.gate() if held else self.body())
        one.submit(True)
        return one.submit(False)

    def for_the_flow(self):
        return self.flow.submit(task("late", executor="asyncio")(self.body))


@contextmanager
def busy_flow(**options):
    clock = VirtualClock()
    try:
        with set_clock(Flow("thread", max_workers=1, limits={"db": 1}, **options), clock) as flow:
            yield Stand(flow, clock)
    finally:
        clock.close()


@pytest.mark.parametrize(
    "what", ["for_a_worker", "for_a_call", "for_a_retry", "for_a_limit", "for_its_turn", "for_the_flow"]
)
@pytest.mark.parametrize("policy", ["fail", "run-anyway"])
def test_r35_a_call_that_waits_ends_at_once(what, policy):
    """Whatever a call waits for, ``cancel`` ends it, and what depends on it, at once; it is never called again."""
    with busy_flow(max_parallel=1 if what == "for_the_flow" else None) as stand:
        handle = getattr(stand, what)()
        follow = task("follow", on_dep_failure=policy)(lambda value=None: value)
        after = follow.submit(handle)
        assert handle.cancel() is True
        assert (handle.status, handle.done(), handle.cancelled()) == (Status.CANCELLED, True, True)
        if policy == "fail":
            assert after.done()
            assert isinstance(after.exception(0), DependencyFailedError)
        stand.gate.opened.set()
        stand.clock.advance(100.0)
        assert stand.busy.result(WATCHDOG) == 3
        assert stand.flow.submit(square, 2).result(WATCHDOG) == 4
        if policy == "run-anyway":
            assert after.result(WATCHDOG) is None
    assert (handle.status, stand.calls) == (Status.CANCELLED, [])


def stubborn_thread(begun, gate):
    """Hear of it, and return a value all the same."""
    begun.set()
    gate("ignored")
    return "late"


async def stubborn_coroutine(begun, gate):
    """Swallow the cancellation, and return a value all the same."""
    begun.set()
    try:
        await asyncio.sleep(WATCHDOG)
    except asyncio.CancelledError:
        gate.began.set()
    return "late"


def stubborn_generator(begun, gate):
    """Yield on, and return a value all the same."""
    begun.set()
    gate()
    yield "more"
    return "late"


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("body", [stubborn_thread, stubborn_coroutine, stubborn_generator])
def test_r35_what_was_cancelled_never_ends_as_a_success(kind, body):
    """A body that goes on after ``cancel`` and returns changes nothing: handle, callbacks and report say CANCELLED."""
    begun, gate, told = threading.Event(), Gate(), Log()
    with Flow(kind, max_workers=1) as flow:
        handle = flow.submit(body, begun, gate)
        handle.add_done_callback(lambda handle: told.add(handle.status))
        assert begun.wait(WATCHDOG)
        assert handle.cancel()
        assert handle.status is Status.CANCELLED
        gate.opened.set()
        assert flow.submit(square, 2).result(WATCHDOG) == 4
        gate.wait_for_call()
        session = handle._run
    assert (handle.status, list(told)) == (Status.CANCELLED, [Status.CANCELLED])
    with pytest.raises(TaskCancelledError):
        handle.result(0)
    assert session.report().tasks[body.__name__].status is Status.CANCELLED
    assert body.__name__ not in session.context.to_dict()
    assert session.status is Status.SUCCESS  # whoever cancels a call knows of it: the run has not failed


@pytest.mark.parametrize("kind", BESIDE)
def test_r35_the_end_of_a_run_ends_what_waits_at_once(kind):
    """When a block is left by an exception, calls that wait are over before the time of grace of those that run."""
    calls, told = [], Log()
    with pytest.raises(KeyError), Flow(kind, max_workers=1) as flow:
        running = flow.submit(until_told, told)
        waiting = [flow.submit(calls.append, running), flow.submit(calls.append, 1)]
        for handle in waiting:
            handle.add_done_callback(lambda handle: told.add(handle.status))
        told.wait_for(1)
        raise KeyError
    assert (calls, told[1:]) == ([], [Status.CANCELLED] * 2)
    assert [handle.status for handle in waiting] == [Status.CANCELLED] * 2
    assert running.done()


def by_its_session(flow, session):
    """Cancel the one run."""
    session.cancel()


def by_cancel_all(flow, session):
    """Cancel every run of the flow."""
    flow.cancel_all()


def by_close(flow, session):
    """Close the flow."""
    flow.close()


@pytest.mark.parametrize("cancel", [by_its_session, by_cancel_all, by_close])
def test_r35_a_cancelled_session_is_cancelled(cancel):
    """Its pending calls are cancelled, those that had ended keep their result, and its end raises RunCancelledError."""
    told = Log()
    with Flow("thread", max_workers=1) as flow:
        with pytest.raises(RunCancelledError), flow.session() as session:
            done = session.submit(square, 3)
            done.result(WATCHDOG)
            session.submit(until_told, told)
            queued = session.submit(square, 4)
            told.wait_for(1)
            cancel(flow, session)
            with pytest.raises(TaskCancelledError):
                queued.result(WATCHDOG)
        assert (session.status, done.result()) == (Status.CANCELLED, 9)


@pytest.mark.parametrize("cancel", [by_its_session, by_cancel_all, by_close])
def test_r35_a_call_whose_run_was_cancelled_is_no_success(cancel):
    """A call that ran when its run was cancelled, and then returned, is CANCELLED as after ``handle.cancel()``."""
    told = Log()
    with Flow("thread", max_workers=1) as flow:
        with pytest.raises(RunCancelledError), flow.session() as session:
            running = session.submit(until_told, told)
            told.wait_for(1)
            cancel(flow, session)
        with pytest.raises(TaskCancelledError):
            running.result(WATCHDOG)
        assert running.status is Status.CANCELLED


def test_r35_cancelling_takes_the_place_of_the_cancelled_call_alone():
    """A call that is cancelled in the moment in which it ends frees no place of another one: nothing hangs after it."""
    said = run_snippet(
        """
        import random, threading
        from millstream import Flow

        for n in range(100):
            with Flow("inline", on_error="continue") as flow:
                handles = [flow.submit(abs, -1)]

                def ask():
                    return flow.submit(abs, -1).result()

                def feed(chance):
                    for _ in range(10):
                        handles.append(flow.submit(ask))
                        if chance.random() < 0.4:
                            chance.choice(handles).cancel()

                threads = [threading.Thread(target=feed, args=(random.Random(2 * n + i),)) for i in range(2)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            assert all(handle.done() for handle in handles)
        print("fine")
        """
    )
    assert said == "fine\n"


# ---- R37: a hundred thousand submits ----------------------------------------------------------------


def work(body):
    """Return how many calls of functions, ours and the interpreter's, a body costs in this thread."""
    counted = 0

    def count(frame, event, arg):
        nonlocal counted
        counted += 1

    gc.collect()
    gc.disable()  # what earlier tests have left is not its work
    sys.setprofile(count)
    try:
        body()
    finally:
        sys.setprofile(None)
        gc.enable()
    return counted


def plus_one(x):
    """Return the next number."""
    return x + 1


def independent(flow, n):
    """Submit calls, then ask for their results."""
    handles = [flow.submit(plus_one, number) for number in range(n)]
    assert [handle.result() for handle in handles] == list(range(1, n + 1))


def one_after_the_other(flow, n):
    """Submit a chain of calls, each of which takes the value of the one before."""
    handle = flow.submit(plus_one, 0)
    for _ in range(n):
        handle = flow.submit(plus_one, handle)
    assert handle.result() == n + 1


def all_for_one(flow, n):
    """Submit calls that wait for one elsewhere, and cancel that."""
    gate = Gate()
    held = task("held", executor="thread")(gate).submit()
    handles = [flow.submit(plus_one, held) for _ in range(n)]
    held.cancel()
    gate.opened.set()
    assert all(isinstance(handle.exception(0), DependencyFailedError) for handle in handles)


def one_for_all(flow, n):
    """Submit a chain of calls behind one elsewhere, and cancel that."""
    gate = Gate()
    held = handle = task("held", executor="thread")(gate).submit()
    for _ in range(n):
        handle = flow.submit(plus_one, handle)
    held.cancel()
    gate.opened.set()
    assert isinstance(handle.exception(0), DependencyFailedError)


def cancelled_one_by_one(flow, n):
    """Submit calls that wait for one elsewhere, and cancel each of them, the newest first."""
    gate = Gate()
    held = task("held", executor="thread")(gate).submit()
    handles = [flow.submit(plus_one, held) for _ in range(n)]
    assert all(handle.cancel() for handle in reversed(handles))
    gate.opened.set()
    held.result()


def different_functions(flow, n):
    """Submit as many functions as calls."""
    handles = [flow.submit(lambda x, more=number: x + more, 1) for number in range(n)]
    assert [handle.result() for handle in handles] == list(range(1, n + 1))


@pytest.mark.parametrize(
    "body",
    [independent, one_after_the_other, all_for_one, one_for_all, cancelled_one_by_one, different_functions],
)
def test_r37_submits_take_linear_time(body):
    """Four times as many calls are four times the work, whatever they wait for, so 100,000 are no problem."""

    def program(n):
        with Flow("inline", on_error="continue") as flow:
            body(flow, n)

    program(10)  # what is loaded and made once
    few, many = work(lambda: program(60)), work(lambda: program(240))
    assert many < 4.6 * few


@pytest.mark.parametrize("kind", ["inline", "thread"])
def test_r37_a_chain_of_calls_needs_no_recursion(kind):
    """A chain far beyond the recursion limit succeeds from end to end, and fails from end to end."""
    deep = 2 * sys.getrecursionlimit()
    with Flow(kind, on_error="continue", max_workers=1 if kind == "thread" else None) as flow:
        gate = Gate()
        first = held = task("held", executor="asyncio")(gate).submit(0)
        for _ in range(deep):
            held = flow.submit(plus_one, held)
        failing = task("failing", executor="asyncio")(lambda: sell_out(gate())).submit()
        after = failing
        for _ in range(deep):
            after = flow.submit(plus_one, after)
        gate.opened.set()
        assert held.result(WATCHDOG) == deep
        assert isinstance(after.exception(WATCHDOG), DependencyFailedError)
        assert isinstance(failing.exception(), OutOfStockError)
        assert first.result() == 0


@pytest.mark.parametrize("kind", ["inline", "thread"])
def test_r37_memory_is_given_back(kind):
    """Calls that have ended and whose handles were let go leave nothing behind while the block goes on."""

    class Weigher:
        def __call__(self, x):
            return x + 1

    weigher = Weigher()

    def submit_some(flow, n):
        for number in range(n):
            fn = (plus_one, weigher, lambda x: x + 1)[number % 3]
            flow.submit(fn, flow.submit(plus_one, number)).result(WATCHDOG)

    with Flow(kind) as flow:
        submit_some(flow, 600)  # what is loaded, made once or kept up to a limit
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            submit_some(flow, 400)  # 800 calls
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert after - before < 32 * 1024


class Parcel:
    """Something that is given to a call, or that a call gives."""


@pytest.mark.parametrize("kind", KINDS)
def test_r37_values_are_let_go(kind):
    """What a call was given, and what its function closes over, is let go when it has ended, though not its handle."""
    with Flow(kind, on_error="continue") as flow:
        argument, closed_over = Parcel(), Parcel()
        alive = [weakref.ref(argument), weakref.ref(closed_over)]
        handles = [flow.submit(lambda parcel, other=closed_over: 5, argument)]
        gate = Gate()
        held = task("held", executor="thread")(gate).submit()
        handles.append(flow.submit(lambda *given, other=closed_over: 5, argument, [held]))
        handles[1].cancel()
        gate.opened.set()
        wait(handles, WATCHDOG)
        flow.submit(int).result(WATCHDOG)  # a worker has gone on to another call
        del argument, closed_over
        gc.collect()
        assert [ref() for ref in alive] == [None] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_r37_outputs_are_let_go(kind):
    """The output of a call lives no longer than its handle, but for the newest of its name, which is in the context."""
    with Flow(kind) as flow:
        alive = [weakref.ref(flow.submit(lambda: Parcel()).result(WATCHDOG)) for _ in range(3)]
        flow.submit(lambda: 0).result(WATCHDOG)
        gc.collect()
        assert [ref() for ref in alive] == [None] * 3


# ---- R40: asyncio and plain functions ---------------------------------------------------------------


def test_r40_plain_functions_overlap_and_the_loop_stays_free():
    """Four plain functions are called at once on an asyncio flow, and a coroutine beside them keeps ticking."""
    met, ticked = threading.Barrier(4), threading.Event()

    def block():
        met.wait(WATCHDOG)  # all four are here, and block their threads
        return ticked.wait(WATCHDOG)

    with Flow("asyncio", max_workers=4) as flow:

        async def tick(ticks):
            for _ in range(ticks):
                await asyncio.sleep(0)
            ticked.set()
            return ticks

        blocking = [flow.submit(block) for _ in range(4)]
        assert flow.submit(tick, 50).result(WATCHDOG) == 50
        assert [handle.result(WATCHDOG) for handle in blocking] == [True] * 4


def test_r40_plain_calls_do_not_block_the_callers_loop():
    """Under ``async with`` the caller's own loop goes on, too, while plain functions are called."""

    async def main():
        met, ticked = threading.Barrier(5), threading.Event()

        def block():
            met.wait(WATCHDOG)
            return ticked.wait(WATCHDOG)

        async with Flow("asyncio", max_workers=4) as flow:
            blocking = [flow.submit(block) for _ in range(4)]
            await asyncio.to_thread(met.wait, WATCHDOG)
            for _ in range(10):
                await asyncio.sleep(0)
            ticked.set()
            return await asyncio.gather(*blocking)

    assert asyncio.run(asyncio.wait_for(main(), WATCHDOG)) == [True] * 4
