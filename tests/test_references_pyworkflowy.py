"""What the document of pyWorkflowy promises, in our names and in examples of our own, section by section.

Its persistence, its schedules and its process backend are not here: they are tested where those are.
"""

# ruff: noqa: PT012 - blocks and their ends are what is said to raise here

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import itertools
import logging
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
from typing import Any

import pytest

import millstream
from millstream import (
    CheckpointError,
    ContextKeyError,
    CycleError,
    DeadlockError,
    DependencyFailedError,
    Flow,
    FlowClosedError,
    FlowError,
    Hook,
    Retry,
    RunCancelledError,
    Status,
    Task,
    TaskBase,
    TaskCancelledError,
    TaskHandle,
    TaskRetryEvent,
    TaskTimeoutError,
    ThreadExecutor,
    current_task,
    task,
)
from tests.conftest import WATCHDOG, JumpingClock, Log, VirtualClock, assert_gone, engine_threads, named, set_clock

KINDS = ("inline", "thread", "asyncio")
BESIDE = ("thread", "asyncio")  #: executors that call beside the caller's thread


class OutOfStockError(Exception):
    """What goes wrong in the shop of these examples."""


class Gate:
    """A body that says when it has begun, and ends when the test lets it."""

    def __init__(self) -> None:
        self.began, self.opened = threading.Event(), threading.Event()

    def __call__(self, value: Any = None) -> Any:
        self.began.set()
        assert self.opened.wait(WATCHDOG), "nobody opened the gate"
        return value


@pytest.fixture(params=KINDS)
def flow(request: pytest.FixtureRequest) -> Iterator[Flow]:
    """A flow on each executor, inside its ``with`` block."""
    with Flow(request.param) as flow:
        yield flow


@pytest.fixture(params=KINDS)
def lenient(request: pytest.FixtureRequest) -> Iterator[Flow]:
    """The same with failures left to the handles."""
    with Flow(request.param, on_error="continue") as flow:
        yield flow


@pytest.fixture(params=BESIDE)
def beside(request: pytest.FixtureRequest) -> Iterator[Flow]:
    """A flow that calls beside the caller's thread, with two workers, failures left to the handles."""
    with Flow(request.param, max_workers=2, on_error="continue") as flow:
        yield flow


def begun(event: threading.Event) -> None:
    """Wait for what is sure to come."""
    assert event.wait(WATCHDOG)


def sell_out(*_: Any) -> None:
    """Fail, as the shop does."""
    raise OutOfStockError("tea")


# ---- install ----------------------------------------------------------------------------------------


def test_the_core_has_no_dependencies():
    """Installing the library installs nothing else; what it needs beyond the standard library are extras."""
    assert [need for need in importlib.metadata.requires("millstream") or [] if "extra ==" not in need] == []


# ---- tasks: the decorator ---------------------------------------------------------------------------


@task
def square(x: int) -> int:
    """The square of a number."""
    return x * x


def test_a_bare_decorator_makes_a_task(flow):
    """``@task`` gives a ``Task``; a submitted call of it has its result, with nothing further to be called."""
    assert isinstance(square, Task)
    assert (square.name, square.__name__, square.__doc__) == ("square", "square", "The square of a number.")
    handle = square.submit(5)
    assert handle.result(WATCHDOG) == 25
    assert isinstance(handle, TaskHandle)


def test_a_task_that_is_called_is_a_plain_function():
    """Calling a task calls its function: no flow is needed, and nothing of the engine is in between."""
    assert square(5) == 25
    assert square(x=6) == 36
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        square()


def test_a_task_that_is_called_may_use_current_task():
    """Outside a run ``current_task()`` is there and inert, so that a task can be unit-tested by calling it."""

    @task
    def report() -> tuple[Any, ...]:
        me = current_task()
        me.raise_if_cancelled()
        return me.name, me.attempt, me.cancelled, me.deadline, me.time_remaining()

    assert report() == ("", 1, False, None, None)


@pytest.mark.parametrize("spelling", [("checkout",), {"name": "checkout"}], ids=["first", "name="])
def test_a_decorator_takes_a_name_and_options(spelling):
    """The name comes first or as ``name=``, and options follow; the function stays callable as it is."""
    options: dict[str, Any] = {"retries": 3, "timeout": 10.0, "executor": "thread"}
    decorate = task(*spelling, **options) if isinstance(spelling, tuple) else task(**spelling, **options)

    @decorate
    def pay(cart_id: int) -> dict[str, int]:
        return {"cart": cart_id}

    assert (pay.name, pay(7)) == ("checkout", {"cart": 7})
    with Flow("inline") as flow:
        handle = pay.submit(7)
        assert (handle.name, handle.id, handle.result(WATCHDOG)) == ("checkout", "checkout", {"cart": 7})
        assert flow.report().tasks["checkout"].status is Status.SUCCESS


@pytest.mark.parametrize("kind", BESIDE)
def test_a_submitted_call_starts_by_itself(kind):
    """A call starts when it may: nobody has to ask for its result, or to run anything."""
    gate = Gate()
    with Flow(kind):
        handle = Task("gate", gate).submit("through")
        begun(gate.began)
        assert (handle.status, handle.done()) == (Status.RUNNING, False)
        gate.opened.set()
    assert (handle.status, handle.result(0)) == (Status.SUCCESS, "through")


# ---- tasks: names -----------------------------------------------------------------------------------


def test_the_name_is_that_of_the_function(flow):
    """Without a name a task is called as its function is; a callable object as its class."""

    class Weigh:
        def __call__(self, grams: int) -> int:
            return grams

    def price(grams: int) -> int:
        return grams * 2

    assert task(price).name == "price"
    handles = [flow.submit(price, 1), flow.submit(functools.partial(price, 2)), flow.submit(Weigh(), 3)]
    assert [handle.name for handle in handles] == ["price", "price", "Weigh"]
    assert [handle.result(WATCHDOG) for handle in handles] == [2, 4, 3]


def lambdas(flow: Flow) -> list[tuple[str, Any]]:
    """Submit what has no name of its own."""
    given = [lambda: "tea", functools.partial(lambda x: x, "rum"), lambda: 3]
    calls = [flow.submit(fn) for fn in given]
    return [(call.id, call.result(WATCHDOG)) for call in calls]


def test_lambdas_are_numbered(flow):
    """Functions without a name are numbered as spawned task runs are: lambda, lambda#2, in the order of the calls."""
    assert lambdas(flow) == [("lambda", "tea"), ("lambda#2", "rum"), ("lambda#3", 3)]


def test_the_same_program_gives_the_same_names():
    """A program that runs twice names its calls alike both times: no id of an object is in a name."""
    seen = []
    for _ in range(2):
        with Flow("inline") as flow:
            seen.append(lambdas(flow))
    assert seen[0] == seen[1]


def test_two_functions_of_one_name_do_not_clash(flow):
    """Two different functions of one name are both called, and their calls have ids of their own."""

    def make(word: str) -> Any:
        def say(times: int) -> str:
            return word * times

        return say

    one, other = task(make("ha")), task(make("hu"))
    handles = [one.submit(1), other.submit(2), flow.submit(make("he"), 3)]
    assert [handle.result(WATCHDOG) for handle in handles] == ["ha", "huhu", "hehehe"]
    assert [handle.id for handle in handles] == ["say", "say#2", "say#3"]


def logged(fn: Any) -> Any:
    """A decorator as users write it."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


def test_functions_of_one_decorator_are_different_functions(flow):
    """Functions that share the code of a decorator keep their own names and parameters."""

    @logged
    def put(ctx: millstream.Context, amount: int) -> int:
        ctx.set("amount", amount)
        return amount

    @logged
    def double(amount: int) -> int:
        return 2 * amount

    @logged
    async def half(amount: int) -> float:
        return amount / 2

    handles = [flow.submit(fn, 4) for fn in (put, double, half)]
    assert [(handle.name, handle.result(WATCHDOG)) for handle in handles] == [("put", 4), ("double", 8), ("half", 2.0)]


# ---- tasks: the class -------------------------------------------------------------------------------

USERS = {42: {"name": "cyd"}}


class FetchUser(TaskBase):
    """Fetch one user."""

    name = "fetch-user"
    executor = "thread"
    retries = 2
    timeout = 5.0

    def run(self, user_id: int) -> dict[str, str]:
        """Return the user."""
        if current_task().attempt == 1 and current_task().name:
            raise ConnectionError("try again")
        return USERS[user_id]


def test_a_class_is_a_task(flow):
    """Making an instance gives a ``Task``: attributes are its options, ``run`` what is called, now or submitted."""
    fetch_user = FetchUser()
    assert isinstance(fetch_user, Task)
    assert fetch_user.name == "fetch-user"
    assert fetch_user(42) == {"name": "cyd"}
    handle = fetch_user.submit(42)
    assert handle.result(WATCHDOG) == {"name": "cyd"}
    assert (handle.name, flow.report().tasks["fetch-user"].attempt) == ("fetch-user", 2)


def test_a_class_may_have_an_async_run(flow):
    """Whether ``run`` is ``def`` or ``async def`` is found out."""

    class Greet(TaskBase):
        async def run(self, name: str) -> str:
            await asyncio.sleep(0)
            return f"hello {name}"

    greet = Greet()
    assert greet.name == "Greet"
    assert greet.submit("cyd").result(WATCHDOG) == "hello cyd"


def test_attributes_are_inherited(lenient):
    """A base class of one's own gives its options to every task below it."""
    calls = []

    class Careful(TaskBase):
        max_attempts = 3
        retry_on = (OutOfStockError,)

    class Order(Careful):
        name = "order"

        def run(self) -> None:
            calls.append(current_task().attempt)
            sell_out()

    assert isinstance(Order().submit().exception(WATCHDOG), OutOfStockError)
    assert calls == [1, 2, 3]


def test_a_class_takes_no_arguments():
    """The constructor takes nothing: what varies is given to ``submit``."""
    with pytest.raises(TypeError, match="takes no arguments"):
        FetchUser(42)
    with pytest.raises(TypeError, match="takes no arguments"):
        FetchUser(user_id=42)


@pytest.mark.parametrize(
    ("attribute", "value", "ours"),
    [
        ("backend", "thread", "executor"),
        ("retires", 2, "retries"),
        ("time_out", 5.0, "timeout"),
        ("Timeout", 1, "timeout"),
    ],
)
def test_a_misspelt_attribute_is_refused_when_the_class_is_made(attribute, value, ours):
    """An attribute that looks like an option is a mistake, told when the class is made, with the right name."""
    with pytest.raises(TypeError, match=ours):
        type("Fetch", (TaskBase,), {attribute: value, "run": lambda self: None})


def test_a_class_needs_run():
    """A class without ``run`` cannot be made a task."""

    class Empty(TaskBase):
        name = "empty"

    with pytest.raises(TypeError, match="run"):
        Empty()


# ---- max_attempts and retries -----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"max_attempts": 3}, {"retries": 2}, {"retry": Retry(3, "none")}], ids=str)
def test_attempts_are_counted_with_the_first_and_retries_without(lenient, options):
    """max_attempts=3 is three attempts with the first, and so is retries=2."""
    attempts = []

    @task("order", **options)
    def order() -> None:
        attempts.append(current_task().attempt)
        sell_out()

    assert isinstance(order.submit().exception(WATCHDOG), OutOfStockError)
    assert attempts == [1, 2, 3]


def by_decorator() -> None:
    task("order", max_attempts=3, retries=2)(sell_out)


def by_flow() -> None:
    Flow("inline").task(max_attempts=3, retries=2)(sell_out)


def by_class() -> None:
    type("Order", (TaskBase,), {"max_attempts": 3, "retries": 2, "run": sell_out})()


@pytest.mark.parametrize("make", [by_decorator, by_flow, by_class])
def test_both_framings_at_once_are_refused(make):
    """Passing max_attempts and retries is a ValueError, wherever a task is made."""
    with pytest.raises(ValueError, match="max_attempts"):
        make()


# ---- backends ---------------------------------------------------------------------------------------


def where() -> str:
    """Return the name of the thread that this is called in."""
    return threading.current_thread().name


async def where_async() -> str:
    """Return the name of the thread whose event loop awaits this."""
    asyncio.get_running_loop()
    return threading.current_thread().name


def test_an_asyncio_flow_takes_both_kinds_of_functions():
    """On asyncio plain functions and coroutines run, the former in threads beside the loop."""
    with Flow("asyncio") as flow:
        plain, awaited = flow.submit(where).result(WATCHDOG), flow.submit(where_async).result(WATCHDOG)
    assert len({plain, awaited, threading.current_thread().name}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_coroutine_function_runs_on_a_loop_whatever_the_flow_is(kind):
    """A flow's executor is for plain functions: coroutine functions need a loop, and get one."""
    with Flow(kind) as flow:
        here = flow.submit(where_async).result(WATCHDOG)
    assert here != threading.current_thread().name


def test_the_flow_has_the_default_and_a_task_its_own(flow):
    """``Flow(executor)`` is for tasks and plain callables that do not say otherwise."""
    here = threading.current_thread().name
    own, default = task("own", executor="inline")(where), task("default")(where)
    names = [default.submit().result(WATCHDOG), flow.submit(where).result(WATCHDOG)]
    beside = task("beside", executor="thread")(where).submit().result(WATCHDOG)
    inline = own.submit().result(WATCHDOG)
    assert beside.startswith("millstream-thread")
    assert inline == here or inline.startswith("millstream-inline")
    assert all((name == here) == (inline == here and flow.submit(where).result(WATCHDOG) == here) for name in names)


def by_task_decorator(executor: str) -> None:
    @task(executor=executor)
    async def fetch() -> None: ...


def by_flow_decorator(executor: str) -> None:
    with Flow("inline") as flow:

        @flow.task(executor=executor)
        async def fetch() -> None: ...


def by_task_class(executor: str) -> None:
    class Fetch(TaskBase):
        async def run(self) -> None: ...

    Fetch.executor = executor  # type: ignore[attr-defined]
    Fetch()


@pytest.mark.parametrize("make", [by_task_decorator, by_flow_decorator, by_task_class])
def test_an_async_task_for_the_thread_executor_is_refused(make):
    """Threads cannot await: a coroutine function with ``executor="thread"`` is a TypeError where it is made."""
    with pytest.raises(TypeError, match="async"):
        make("thread")


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda: Flow(backend="thread"), TypeError, "executor"),
        (lambda: Flow(on_task_error="log"), TypeError, "on_error"),
        (lambda: Flow("threads"), ValueError, "thread"),
        (lambda: Flow(max_workers=0), ValueError, "max_workers"),
        (lambda: Flow(ThreadExecutor(1), max_workers=8), ValueError, "max_workers"),
        (lambda: Flow(on_error="ignore"), ValueError, "on_error"),
        (lambda: task(backend="thread")(where), TypeError, "executor"),
        (lambda: task(on_dep_failure="ignore")(where), ValueError, "on_dep_failure"),
        (lambda: task(retries=1, backoff="quadratic")(where), ValueError, "backoff"),
        (lambda: task(timeout=0)(where), ValueError, "timeout"),
        (lambda: task(max_attempts=0)(where), ValueError, "max_attempts"),
    ],
)
def test_options_are_checked_where_they_enter(make, kind, says):
    """Options under their old names, and values that cannot be, are refused by a sentence that names ours."""
    with pytest.raises(kind, match=says):
        make()


# ---- dependencies -----------------------------------------------------------------------------------


def test_a_call_waits_for_those_it_depends_on(flow):
    """``depends_on=[handle]`` orders calls, without their values being passed on."""
    log: list[str] = []
    load = flow.submit(lambda path: log.append(f"load {path}"), "data.csv")
    clean = flow.submit(lambda: log.append("clean"), depends_on=[load])
    write = flow.submit(lambda: log.append("write"), depends_on=[clean])
    write.result(WATCHDOG)
    assert log == ["load data.csv", "clean", "write"]


def test_a_diamond_runs_in_the_order_of_its_edges(beside):
    """With several dependencies a call starts after the last of them; independent ones need not wait for each other."""
    log, gate = Log(), Gate()

    def note(name: str) -> None:
        log.add(name)

    top = beside.submit(note, "top")
    slow = beside.submit(gate, depends_on=[top])
    quick = beside.submit(note, "quick", depends_on=[top])
    last = beside.submit(note, "last", depends_on=(handle for handle in (slow, quick)))
    quick.result(WATCHDOG)
    begun(gate.began)
    assert (last.status, list(log)) == (Status.PENDING, ["top", "quick"])
    gate.opened.set()
    last.result(WATCHDOG)
    assert list(log) == ["top", "quick", "last"]


def test_a_dependency_does_not_pass_its_value(flow):
    """What a call depends on without taking it, it can look up by its handle, without waiting."""
    rows = flow.submit(lambda: ["tea", "rum"])
    count = flow.submit(lambda: len(rows.result(0)), depends_on=[rows])
    assert count.result(WATCHDOG) == 2


def test_handles_as_arguments_become_their_values(flow):
    """A handle given as an argument, alone or in a list, tuple or dict, is waited for and replaced by its value."""

    def show(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    @task
    async def show_async(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    five, six = flow.submit(lambda: 5), flow.submit(lambda: 6)
    for submit in (functools.partial(flow.submit, show), show_async.submit):
        handle = submit(five, [1, six], (five, six), mapping={"a": six, "b": 2}, plain=[3], key=six)
        assert handle.result(WATCHDOG) == (
            (5, [1, 6], (5, 6)),
            {"mapping": {"a": 6, "b": 2}, "plain": [3], "key": 6},
        )


def test_arguments_that_have_no_handles_arrive_as_they_are(flow):
    """A list without a handle in it is the list that was given, and keywords named as options reach the function."""
    basket: list[str] = []

    def fill(into: list[str], *, name: str, timeout: float, executor: str, fn: Any, self: int) -> Any:
        into.append(name)
        return timeout, executor, fn, self

    call = {"name": "tea", "timeout": 1.5, "executor": "none", "fn": None, "self": 3}
    for submit in (functools.partial(flow.submit, fill), task(fill).submit):
        assert submit(basket, **call).result(WATCHDOG) == (1.5, "none", None, 3)
    assert basket == ["tea", "tea"]


@pytest.mark.parametrize("given", ["square", 5, [5], ["square"], [square], [Future()]], ids=named)
def test_depends_on_takes_handles(given):
    """Anything but a list of handles is refused, and nothing is called."""
    calls: list[int] = []
    with Flow("inline") as flow:
        with pytest.raises(TypeError, match="depends_on"):
            flow.submit(calls.append, 1, depends_on=given)
        with pytest.raises(TypeError, match="depends_on"):
            flow.submit(calls.append, 1, depends_on=square.submit(1))
    assert calls == []


def test_a_handle_of_another_run_is_refused(flow):
    """A handle belongs to its run: elsewhere its result is to be passed, and the error says so."""
    with Flow("inline") as other, flow.session() as session:
        foreign = other.submit(lambda: 5)
        for call in (
            lambda: flow.submit(square, foreign),
            lambda: flow.submit(square, x=[foreign]),
            lambda: flow.submit(square, 1, depends_on=[foreign]),
            lambda: session.submit(square, flow.submit(square, 2)),
        ):
            with pytest.raises(FlowError, match=r"pass its result\(\) instead"):
                call()
        assert flow.submit(square, foreign.result()).result(WATCHDOG) == 25


@pytest.mark.parametrize(
    ("fn", "args", "gives"),
    [
        (abs, (-5,), 5),
        (max, (3, 5), 5),
        (int, ("5",), 5),
        (dict, ([("a", 5)],), {"a": 5}),
        (str, (5,), "5"),
        ("-".join, (["a", "b"],), "a-b"),
        (sorted, ([3, 1],), [1, 3]),
    ],
)
def test_any_callable_can_be_submitted(fn, args, gives):
    """Builtins, classes and bound methods are called with what they are given, and nothing else."""
    with Flow("inline") as flow:
        assert flow.submit(fn, *args).result() == gives
        assert flow.submit(fn, *(flow.submit(lambda arg=arg: arg) for arg in args)).result() == gives


def test_a_call_that_waits_holds_no_worker():
    """A hundred calls that wait for one elsewhere leave the only worker to others."""
    gate = Gate()
    with Flow("thread", max_workers=1) as flow:
        hold = task("hold", executor=ThreadExecutor(1))(gate)
        held = hold.submit(1)
        waiting = [flow.submit(lambda x, y: x + y, held, n) for n in range(100)]
        assert flow.submit(square, 3).result(WATCHDOG) == 9
        assert {handle.status for handle in waiting} == {Status.PENDING}
        gate.opened.set()
        assert [handle.result(WATCHDOG) for handle in waiting] == [n + 1 for n in range(100)]


def test_handles_form_no_circle():
    """A call names only calls that were submitted before it; those that ask for each other's result are told so."""
    handles: dict[str, TaskHandle[Any]] = {}
    ready = threading.Event()

    def ask(other: str) -> Any:
        begun(ready)
        return handles[other].result()

    with Flow("thread", on_error="continue"):
        handles["hen"] = task("hen")(ask).submit("egg")
        handles["egg"] = task("egg")(ask).submit("hen")
        ready.set()
        errors = [handle.exception(WATCHDOG) for handle in handles.values()]
        assert all(isinstance(error, DeadlockError) for error in errors)
        assert "hen" in str(errors[0])
        assert "egg" in str(errors[0])

        handles["self"] = task("self")(ask).submit("self")
        assert isinstance(handles["self"].exception(WATCHDOG), DeadlockError)
    assert issubclass(CycleError, FlowError)  # edges by name can form one, which a run refuses


# ---- policies when a dependency fails ---------------------------------------------------------------


def test_fail_is_the_default(lenient):
    """A call whose dependency failed is FAILED with an error that names it, and has its exception as the cause."""
    calls: list[int] = []
    tea = lenient.submit(sell_out)
    ship = lenient.submit(calls.append, 1, depends_on=[tea])
    bill = lenient.submit(calls.append, ship)
    fine = lenient.submit(square, 2)

    assert fine.result(WATCHDOG) == 4
    error = ship.exception(WATCHDOG)
    assert isinstance(error, DependencyFailedError)
    assert error.failed == ("sell_out",)
    assert error.__cause__ is tea.exception()
    with pytest.raises(DependencyFailedError, match="append did not start, since sell_out failed"):
        ship.result()
    then = bill.exception(WATCHDOG)
    assert isinstance(then, DependencyFailedError)
    assert then.failed == (ship.id,)
    assert [handle.status for handle in (tea, ship, bill, fine)] == [Status.FAILED] * 3 + [Status.SUCCESS]
    assert calls == []


def test_skip_is_passed_on(lenient):
    """``on_dep_failure="skip"`` is SKIPPED; what depends on that sees it as a failure, by its own policy."""
    tea = lenient.submit(sell_out)
    skip = task("ship", on_dep_failure="skip")(square)
    ship = skip.submit(tea)
    again = skip.submit(ship)
    bill = task("bill")(square).submit(again)
    note = task("note", on_dep_failure="run-anyway")(lambda: "noted").submit(depends_on=[ship])

    assert note.result(WATCHDOG) == "noted"
    for handle, status in ((ship, Status.SKIPPED), (again, Status.SKIPPED), (bill, Status.FAILED)):
        assert isinstance(handle.exception(WATCHDOG), DependencyFailedError)
        assert (handle.status, handle.cancelled()) == (status, False)
    rows = lenient.report().tasks
    assert [rows[name].status for name in ("ship", "bill", "note")] == [Status.SKIPPED, Status.FAILED, Status.SUCCESS]


def test_run_anyway_uses_the_arguments_as_they_are(lenient):
    """``run-anyway`` runs with what it was given; a handle that failed gives the default, else None."""
    tea, rum = lenient.submit(sell_out), lenient.submit(lambda: "rum")

    @task(on_dep_failure="run-anyway")
    def pack(first: Any, second: Any = "paper", *rest: Any, third: Any = "string") -> tuple[Any, ...]:
        return first, second, *rest, third

    for handle, packed in (
        (pack.submit("box", "label", depends_on=[tea]), ("box", "label", "string")),
        (pack.submit(tea), (None, "paper", "string")),
        (pack.submit(rum, tea, third=tea), ("rum", "paper", "string")),
        (pack.submit(first=tea, second=rum), (None, "rum", "string")),
        (pack.submit([tea, rum], {"a": tea}, tea), ([None, "rum"], {"a": None}, None, "string")),
    ):
        assert handle.result(WATCHDOG) == packed


@pytest.mark.parametrize("policy", ["fail", "skip", "run-anyway"])
def test_a_cancelled_dependency_counts_as_a_failed_one(beside, policy):
    """What did not succeed has failed, for those that depend on it: a call that was cancelled, too."""
    gate = Gate()
    held = beside.submit(gate)
    after = task(on_dep_failure=policy)(square).submit(3, depends_on=[held])
    begun(gate.began)
    assert held.cancel()
    wait([after], WATCHDOG)
    gate.opened.set()
    if policy == "run-anyway":
        assert after.result(WATCHDOG) == 9
    else:
        error = after.exception(WATCHDOG)
        assert isinstance(error, DependencyFailedError)
        assert isinstance(error.__cause__, TaskCancelledError)
        assert after.status is (Status.FAILED if policy == "fail" else Status.SKIPPED)


def test_a_policy_that_lets_a_call_run_waits_for_all_it_depends_on(beside):
    """A failed dependency does not start a ``run-anyway`` call before the others have ended."""
    gate = Gate()
    tea, held = beside.submit(sell_out), beside.submit(gate, "held")
    both = task(on_dep_failure="run-anyway")(lambda *given: given).submit(tea, held)
    assert isinstance(tea.exception(WATCHDOG), OutOfStockError)
    begun(gate.began)
    assert both.status is Status.PENDING
    gate.opened.set()
    assert both.result(WATCHDOG) == (None, "held")


# ---- retries ----------------------------------------------------------------------------------------


class Flaky:
    """A service that fails some times before it answers, and notes when it was asked."""

    def __init__(self, failures: int, error: BaseException, now: Any = None) -> None:
        self.left, self.error, self.now = failures, error, now or (lambda: 0.0)
        self.asked: list[float] = []

    def __call__(self) -> str:
        self.asked.append(self.now())
        if self.left:
            self.left -= 1
            raise self.error
        return f"answered call {len(self.asked)}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "waits"),
    [
        ({"backoff": "none"}, [0, 0, 0, 0]),
        ({}, [0, 0, 0, 0]),
        ({"backoff": "linear", "backoff_base": 2.0}, [2, 4, 6, 8]),
        ({"backoff": "linear", "backoff_base": 2.0, "backoff_max": 5.0}, [2, 4, 5, 5]),
        ({"backoff": "exponential", "backoff_base": 1.0}, [1, 2, 4, 8]),
        ({"backoff_base": 3.0, "backoff_max": 10.0}, [3, 6, 10, 10]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_call_waits_its_back_off(kind, options, waits):
    """base * n or base * 2 ** (n - 1) seconds after the n-th failure, at most backoff_max; hooks are told the wait."""
    clock, told = JumpingClock(), Log()

    class Tell(Hook):
        def on_task_retry(self, event: TaskRetryEvent) -> None:
            told.add((event.attempt, event.delay, type(event.error)))

    service = Flaky(4, OutOfStockError("tea"), clock.now)
    with set_clock(Flow(kind, hooks=[Tell()]), clock):
        handle = task("fetch", retries=4, retry_on=OutOfStockError, **options)(lambda: service()).submit()
        assert handle.result() == "answered call 5"  # by this clock a time limit would be over
    told.wait_for(4)
    asked = service.asked
    assert [later - earlier for earlier, later in itertools.pairwise(asked)] == waits
    assert told == [(n + 2, float(seconds), OutOfStockError) for n, seconds in enumerate(waits)]


def test_a_whole_policy_has_the_same_formulas():
    """``Retry`` is the policy as a value: exponential unless it says otherwise, and capped at 30 seconds."""
    assert [Retry(9).delay(n) for n in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert [Retry(9, "linear", base=0.5).delay(n) for n in (1, 2, 3)] == [0.5, 1, 1.5]
    assert Retry(2000, "none").delay(1999) == 0
    assert Retry(2000, max_delay=60.0).delay(1999) == 60


@pytest.mark.parametrize(
    ("on", "error", "calls"),
    [
        (None, OutOfStockError("tea"), 3),
        ((OutOfStockError, KeyError), OutOfStockError("tea"), 3),
        ((OutOfStockError, KeyError), KeyError("tea"), 3),
        (LookupError, KeyError("tea"), 3),
        (OutOfStockError, ValueError("tea"), 1),
        (None, TimeoutError("of the shop's own"), 3),
        (TimeoutError, TimeoutError("of the shop's own"), 3),
    ],
)
def test_only_what_retry_on_names_is_tried_again(lenient, on, error, calls):
    """retry_on is a class or a tuple, by default Exception; anything else fails at once, as itself."""
    service = Flaky(9, error)
    options = {} if on is None else {"retry_on": on}
    handle = task("fetch", retries=2, **options)(lambda: service()).submit()
    assert handle.exception(WATCHDOG) is error
    assert len(service.asked) == calls


def test_the_last_failure_is_the_functions_own(lenient):
    """One ``except`` serves for one attempt and for ten: what is raised is the function's exception, with notes."""
    for attempts in (1, 3):
        handle = task("order", max_attempts=attempts)(sell_out).submit()
        with pytest.raises(OutOfStockError, match="tea") as caught:
            handle.result(WATCHDOG)
        notes = " ".join(caught.value.__notes__)
        assert handle.id in notes
        assert f"attempt {attempts}" in notes or attempts == 1
        assert handle._run.id in notes
        assert handle.status is Status.FAILED
    assert not hasattr(millstream, "RetryExhaustedError")


@pytest.mark.parametrize("kind", BESIDE)
def test_a_call_that_waits_for_its_next_attempt_holds_no_worker(kind):
    """While a call waits for its back-off its worker serves others; cancelled then, it ends at once."""
    clock, service = VirtualClock(), Flaky(9, OutOfStockError("tea"))
    with set_clock(Flow(kind, max_workers=1), clock) as flow:
        handle = task("fetch", retries=5, backoff_base=30.0)(service).submit()
        clock.wait_for(30.0)
        assert flow.submit(square, 3).result(WATCHDOG) == 9
        assert (handle.status, handle.done()) == (Status.PENDING, False)
        assert handle.cancel()
        assert handle.status is Status.CANCELLED
    assert len(service.asked) == 1


# ---- timeouts ---------------------------------------------------------------------------------------


def test_a_timeout_is_final(beside):
    """An attempt that takes too long raises TaskTimeoutError and is not tried again, however many retries there are."""
    attempts, told = [], threading.Event()

    @task(timeout=0.05, retries=3)
    def patient() -> str:
        attempts.append(current_task().attempt)
        while not current_task().cancelled:
            pass
        told.set()
        return "late"

    handle = patient.submit()
    with pytest.raises(TaskTimeoutError, match=r"patient took longer than its timeout of 0\.05 s"):
        handle.result(WATCHDOG)
    begun(told)
    assert (attempts, handle.status) == ([1], Status.ABANDONED)
    assert isinstance(handle.exception(), TimeoutError)


def test_an_async_timeout_cancels(beside):
    """A coroutine that takes too long is cancelled where it awaits, and has failed."""
    attempts, told = [], threading.Event()

    @task(timeout=0.05, retries=3)
    async def patient() -> None:
        attempts.append(current_task().attempt)
        try:
            await asyncio.sleep(WATCHDOG)
        except asyncio.CancelledError:
            told.set()
            raise

    assert isinstance(patient.submit().exception(WATCHDOG), TaskTimeoutError)
    begun(told)
    assert attempts == [1]


@pytest.mark.parametrize("kind", BESIDE)
def test_a_timeout_that_is_named_is_tried_again(kind):
    """Who names TaskTimeoutError in ``Retry.on`` wants another attempt, each with all of its time."""
    attempts = []

    @task(timeout=0.05, retry=Retry(3, "none", on=(OutOfStockError, TaskTimeoutError)))
    async def hesitant() -> str:
        attempts.append(current_task().attempt)
        if len(attempts) < 3:
            await asyncio.sleep(WATCHDOG)
        return "at last"

    with Flow(kind):
        assert hesitant.submit().result(WATCHDOG) == "at last"
    assert attempts == [1, 2, 3]


def test_a_call_that_overstays_does_not_keep_its_worker():
    """The worker of a timed-out call is replaced, and what queued behind it has its own time from its own start."""
    gate = Gate()
    with Flow("thread", max_workers=1, on_error="continue") as flow:
        stuck = task("stuck", timeout=0.1)(gate).submit()
        behind = [task("quick", timeout=WATCHDOG)(square).submit(n) for n in range(3)]
        assert isinstance(stuck.exception(WATCHDOG), TaskTimeoutError)
        assert [handle.result(WATCHDOG) for handle in behind] == [0, 1, 4]
        gate.opened.set()
        assert flow.submit(square, 4).result(WATCHDOG) == 16
    assert isinstance(stuck.exception(0), TaskTimeoutError)  # what came late changes nothing


# ---- cancelling -------------------------------------------------------------------------------------


def test_a_pending_call_that_is_cancelled_ends_at_once():
    """A call that waits (for a worker, for another call) has ended when ``cancel`` returns, and is never called."""
    gate, calls = Gate(), []
    with Flow("thread", max_workers=1) as flow:
        held = flow.submit(gate, "held")
        begun(gate.began)
        queued = flow.submit(calls.append, "queued")
        waiting = flow.submit(calls.append, held)
        for handle in (queued, waiting):
            assert handle.cancel() is True
            assert (handle.done(), handle.cancelled(), handle.status) == (True, True, Status.CANCELLED)
            with pytest.raises(TaskCancelledError, match="append"):
                handle.result(0)
        gate.opened.set()
        assert held.result(WATCHDOG) == "held"
    assert calls == []


@pytest.mark.parametrize("kind", BESIDE)
def test_a_running_thread_call_is_told(kind):
    """A thread cannot be stopped: its body asks ``current_task().cancelled`` and leaves; its result is dropped."""
    said, chunks, began = Log(), [], threading.Event()

    @task
    def long_loop(n: int) -> str:
        for chunk in range(n):
            if current_task().cancelled:
                said.add("stopped early")
                return "stopped early"
            chunks.append(chunk)
            began.set()
        return "done"

    with Flow(kind, max_workers=1) as flow:
        handle = long_loop.submit(10**9)
        begun(began)
        assert handle.cancel()
        assert handle.status is Status.CANCELLED  # at once, before the body has seen it
        said.wait_for(1)
        assert flow.submit(square, 2).result(WATCHDOG) == 4
        with pytest.raises(TaskCancelledError):
            handle.result()
    assert chunks


def test_raise_if_cancelled_ends_the_body():
    """``raise_if_cancelled()`` is the short way to leave."""
    began, ended = threading.Event(), threading.Event()

    def polite() -> None:
        try:
            while True:
                began.set()
                current_task().raise_if_cancelled()
        except TaskCancelledError:
            ended.set()
            raise

    with Flow("thread") as flow:
        handle = flow.submit(polite)
        begun(began)
        handle.cancel()
        begun(ended)
    assert handle.cancelled()


def test_a_running_coroutine_is_cancelled_at_its_next_await(beside):
    """In a coroutine ``CancelledError`` is raised where it awaits."""
    log, began = Log(), threading.Event()

    @task
    async def fetch() -> None:
        began.set()
        try:
            await asyncio.sleep(WATCHDOG)
        except asyncio.CancelledError:
            log.add("cancelled")
            raise

    handle = fetch.submit()
    begun(began)
    assert handle.cancel()
    log.wait_for(1)
    assert (handle.status, handle.cancelled()) == (Status.CANCELLED, True)


def test_what_has_ended_cannot_be_cancelled(lenient):
    """``cancel`` of a call that has ended returns False and changes nothing; of a cancelled one True, as a Future's."""
    done, failed = lenient.submit(square, 3), lenient.submit(sell_out)
    wait([done, failed], WATCHDOG)
    assert (done.cancel(), failed.cancel()) == (False, False)
    assert (done.result(), done.status, failed.status) == (9, Status.SUCCESS, Status.FAILED)


def test_a_cancelled_call_raises_what_futures_raise(beside):
    """TaskCancelledError is a ``concurrent.futures.CancelledError``, and a second ``cancel`` is True as a Future's."""
    gate = Gate()
    handle = beside.submit(gate)
    begun(gate.began)
    assert (handle.cancel(), handle.cancel()) == (True, True)
    gate.opened.set()
    for ask in (handle.result, handle.exception):
        with pytest.raises(CancelledError) as caught:
            ask(WATCHDOG)
        assert isinstance(caught.value, TaskCancelledError)


@pytest.mark.parametrize("kind", BESIDE)
def test_cancel_all_cancels_every_call_that_has_not_ended(kind):
    """``flow.cancel_all()`` reaches every open handle: what waits never starts, what runs is told, what is done is."""
    gate, told, calls, began = Gate(), Log(), [], threading.Event()

    @task
    async def fetch() -> None:
        began.set()
        try:
            await asyncio.sleep(WATCHDOG)
        except asyncio.CancelledError:
            told.add("coroutine")
            raise

    def body() -> None:
        gate()
        told.add("thread" if current_task().cancelled else "nobody")
        current_task().raise_if_cancelled()

    with pytest.raises(RunCancelledError), Flow(kind, max_workers=1) as flow:
        done = flow.submit(square, 2)
        assert done.result(WATCHDOG) == 4
        handles = [flow.submit(body), fetch.submit(), flow.submit(calls.append, "queued")]
        handles.append(flow.submit(calls.append, handles[0]))
        begun(gate.began)
        begun(began)
        flow.cancel_all()
        gate.opened.set()
        told.wait_for(2)
        for handle in handles:
            with pytest.raises(TaskCancelledError):
                handle.result(WATCHDOG)
        assert done.result() == 4
    assert calls == []
    assert set(told) == {"coroutine", "thread"}


# ---- the runner -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_on_error_raise_raises_at_the_end_of_the_block(kind):
    """A failure that nobody asked for is raised when the block ends, as itself; other calls were not disturbed."""
    done = []
    with pytest.raises(OutOfStockError, match="tea"), Flow(kind) as flow:
        flow.submit(sell_out)
        flow.submit(done.append, 1)
    assert done == [1]


def test_a_failure_that_was_asked_for_is_not_raised_again(flow):
    """Who asks by ``result`` or ``exception`` has the failure; the end of the block says nothing of it again."""
    one, other = flow.submit(sell_out), flow.submit(sell_out)
    with pytest.raises(OutOfStockError):
        one.result(WATCHDOG)
    assert isinstance(other.exception(WATCHDOG), OutOfStockError)


def test_several_failures_come_in_one_group():
    """Several failures that nobody asked for are one ExceptionGroup, and what depended on them is not in it."""
    with pytest.raises(ExceptionGroup) as caught, Flow("thread") as flow:
        tea = flow.submit(sell_out)
        flow.submit(square, tea)
        flow.submit(int, "rum")
    assert sorted(type(error).__name__ for error in caught.value.exceptions) == ["OutOfStockError", "ValueError"]


@pytest.mark.parametrize("kind", KINDS)
def test_on_error_log_logs_and_goes_on(kind, caplog):
    """With ``on_error="log"`` the logger millstream has the failure with its traceback, and nothing is raised."""
    with caplog.at_level(logging.ERROR, "millstream"), Flow(kind, on_error="log") as flow:
        tea, fine = flow.submit(sell_out), flow.submit(square, 3)
    assert (fine.result(0), tea.status) == (9, Status.FAILED)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.name == "millstream"
    assert "sell_out" in record.getMessage()
    assert "OutOfStockError: tea" in caplog.text
    assert "in sell_out" in caplog.text  # the traceback
    assert record.run_id == tea._run.id


@pytest.mark.parametrize("kind", KINDS)
def test_on_error_continue_leaves_it_to_the_handles(kind, caplog):
    """With ``on_error="continue"`` a failure is on its handle alone: nothing is raised, and no error is logged."""
    with caplog.at_level(logging.ERROR, "millstream"), Flow(kind, on_error="continue") as flow:
        tea, fine = flow.submit(sell_out), flow.submit(square, 3)
        flow.submit(square, tea)
    assert (fine.result(0), tea.status) == (9, Status.FAILED)
    with pytest.raises(OutOfStockError, match="tea"):
        tea.result(0)
    assert caplog.records == []


@pytest.mark.parametrize("kind", KINDS)
def test_with_closes_what_the_flow_made(kind):
    """Threads and loops are made when they are first needed, and gone after the block; the flow is closed then."""
    before = engine_threads()
    with Flow(kind) as flow:
        assert engine_threads() == before
        handles = [flow.submit(square, 3), flow.submit(where_async)]
    assert_gone(engine_threads() - before)
    assert [handle.done() for handle in handles] == [True, True]
    assert handles[0].result() == 9
    for use in (lambda: flow.submit(square, 1), flow.__enter__, lambda: flow.session(), lambda: flow.run("square")):
        with pytest.raises(FlowClosedError, match=r"is closed: make a new one, or close it later\."):
            use()
    flow.close()  # idempotent


def test_a_flow_can_be_closed_without_a_block():
    """``flow.close()`` and ``flow.session()`` do by hand what ``with`` does."""
    before = engine_threads()
    flow = Flow("thread")
    session = flow.session()
    handle = session.submit(square, 5)
    assert handle.result(WATCHDOG) == 25
    session.close()
    flow.close()
    assert_gone(engine_threads() - before)
    with pytest.raises(FlowClosedError):
        session.submit(square, 5)


def test_with_is_where_task_submit_looks():
    """``task.submit`` takes the innermost block around it, and again the outer one when the inner has ended."""
    with Flow("inline", name="outer") as outer:
        first = square.submit(1)
        with Flow("inline", name="inner"):
            second = square.submit(2)
        third, fourth = square.submit(3), outer.submit(square, 4)
        assert [handle.result(0) for handle in (first, second, third, fourth)] == [1, 4, 9, 16]
        assert [handle._run.id.split("-")[0] for handle in (first, second, third)] == ["outer", "inner", "outer"]
        assert outer.report().tasks["square"].runs == 3


def test_without_a_flow_there_is_one_clear_error():
    """Outside of blocks and tasks ``submit`` says where it can be used; so does a flow that is not entered."""
    with pytest.raises(FlowError, match=r"square can be submitted inside 'with Flow\(\) as flow:' or inside a task"):
        square.submit(5)
    flow = Flow("inline")
    with pytest.raises(FlowError, match="inside 'with flow:'"):
        flow.submit(square, 5)
    with pytest.raises(TypeError, match="callable"), flow:
        flow.submit(5)


def test_an_exception_in_the_block_cancels_the_calls():
    """What the block raises is raised as it is; calls that wait never start, running ones are told."""
    gate, calls = Gate(), []
    with pytest.raises(KeyError, match="mine"), Flow("thread", max_workers=1) as flow:
        running, queued = flow.submit(gate), flow.submit(calls.append, 1)
        begun(gate.began)
        raise KeyError("mine")
    gate.opened.set()
    for handle in (running, queued):
        with pytest.raises(TaskCancelledError):
            handle.result(WATCHDOG)
    assert calls == []


@pytest.mark.parametrize("kind", BESIDE)
def test_as_many_calls_run_at_once_as_max_workers_says(kind):
    """``max_workers=8`` calls eight plain functions at once."""
    barrier = threading.Barrier(8)
    with Flow(kind, max_workers=8) as flow:
        handles = [flow.submit(barrier.wait, WATCHDOG) for _ in range(8)]
        assert sorted(handle.result(WATCHDOG) for handle in handles) == list(range(8))


def test_a_session_is_a_run(flow):
    """Calls belong to an open run: it has an id, a context, metadata and a report, as any other one."""
    with flow.session("orders-7", context={"rate": 2}, metadata={"batch": 4}) as session:
        handle = session.submit(lambda ctx, n: n * ctx.get("rate"), 21)
        assert handle.result(WATCHDOG) == 42
        assert session.status is Status.RUNNING
    report = session.report().to_dict()
    assert (session.id, session.status, report["status"]) == ("orders-7", Status.SUCCESS, "SUCCESS")
    assert report["metadata"] == {"batch": 4}
    assert report["tasks"]["lambda"]["status"] == "SUCCESS"
    with pytest.raises(FlowClosedError):
        session.submit(square, 1)


def test_a_call_inside_a_task_belongs_to_its_run(flow):
    """A task submits calls, too, by ``submit`` of a task or of its flow; its run does not end before they have."""
    seen = []

    def remember(n: int) -> None:
        seen.append(n)

    @flow.task
    def shop() -> int:
        total = sum(handle.result() for handle in [square.submit(n) for n in range(4)])
        flow.submit(remember, total)
        return total

    assert flow.run("shop")["shop"] == 14
    assert seen == [14]


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_call_inside_a_task_that_nobody_asked_for_fails_the_run(kind):
    """The run of the task raises the failure at its end, as the block does; asked for, it is the task's to handle."""
    with Flow(kind) as flow:

        @flow.task
        def careless() -> str:
            flow.submit(sell_out)
            return "fine"

        @flow.task
        def careful() -> str:
            error = flow.submit(sell_out).exception()
            return f"sold out of {error}"

        with pytest.raises(OutOfStockError):
            flow.run("careless")
        assert flow.run("careful")["careful"] == "sold out of tea"


# ---- async ------------------------------------------------------------------------------------------


@task
async def fetch(url: str) -> str:
    """Fetch a page, the asynchronous way."""
    await asyncio.sleep(0)
    return f"page of {url}"


def in_loop(main: Any) -> Any:
    """Run a coroutine function to its end."""
    return asyncio.run(asyncio.wait_for(main(), WATCHDOG))


@pytest.mark.parametrize("kind", BESIDE)
def test_handles_are_awaitable(kind):
    """``await handle`` gives the value, of plain functions as well, or raises the failure."""

    async def main() -> Any:
        async with Flow(kind) as flow:
            page, number = fetch.submit("example.com"), square.submit(4)
            tea = flow.submit(sell_out)
            with pytest.raises(OutOfStockError):
                await tea
            return await page, await number, await page

    assert in_loop(main) == ("page of example.com", 16, "page of example.com")


@pytest.mark.parametrize("kind", BESIDE)
def test_asyncio_takes_handles(kind):
    """gather, wrap_future, as_completed and wait_for work with handles; the loop goes on meanwhile."""

    async def main() -> Any:
        gate, ticks = Gate(), []
        async with Flow(kind, max_workers=2) as flow:
            held = flow.submit(gate, "held")
            gathered = await asyncio.gather(*(square.submit(n) for n in range(4)), fetch.submit("a"))
            wrapped = await asyncio.wrap_future(fetch.submit("b"))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(held, 0.01)
            assert not held.done()  # only the waiting was given up

            async def tick() -> None:
                ticks.append(await asyncio.sleep(0, len(ticks)))
                gate.opened.set()

            held_value, _ = await asyncio.gather(held, tick())
            return gathered, wrapped, held_value, ticks

    assert in_loop(main) == ([0, 1, 4, 9, "page of a"], "page of b", "held", [0])


def test_cancelling_a_wrapped_handle_cancels_the_call():
    """``asyncio.wrap_future(handle).cancel()`` reaches the call, as it does with any Future."""

    async def main() -> Any:
        began, told = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        @task
        async def forever() -> None:
            loop.call_soon_threadsafe(began.set)
            try:
                await asyncio.sleep(WATCHDOG)
            finally:
                loop.call_soon_threadsafe(told.set)

        async with Flow() as flow:
            handle = flow.submit(forever)
            wrapped = asyncio.wrap_future(handle)
            await began.wait()
            wrapped.cancel()
            await told.wait()
            return handle.cancelled()

    assert in_loop(main) is True


@pytest.mark.parametrize("kind", BESIDE)
def test_an_async_block_waits_and_raises(kind):
    """Leaving ``async with`` waits for the calls without blocking the loop, and raises what nobody asked for."""
    ticks = []

    async def main() -> None:
        gate = Gate()

        async def tick() -> None:
            for _ in range(3):
                await asyncio.sleep(0)
                ticks.append(1)
            gate.opened.set()

        ticking = asyncio.create_task(tick())
        async with Flow(kind) as flow:
            flow.submit(gate)
            flow.submit(sell_out)
        assert ticking.done()

    with pytest.raises(OutOfStockError):
        in_loop(main)
    assert len(ticks) == 3


def test_a_blocking_result_in_a_coroutine_of_a_flow_is_refused():
    """A call that is a coroutine must await a handle that has not ended: ``result`` would block its loop."""
    gate = Gate()
    with Flow("asyncio") as flow:
        held = flow.submit(gate, 3)

        @task
        async def asks() -> Any:
            with pytest.raises(millstream.BlockingGetError, match="await"):
                held.result()
            gate.opened.set()
            return await held

        assert asks.submit().result(WATCHDOG) == 3


def test_result_waits_as_long_as_it_is_told(beside):
    """``handle.result(timeout=)`` raises TimeoutError when the call has not ended, which goes on undisturbed."""
    gate = Gate()
    handle = beside.submit(gate, "late")
    for ask in (handle.result, handle.exception):
        for timeout in (0, 0.01):
            with pytest.raises(TimeoutError, match="Gate has not ended within"):
                ask(timeout)
    assert handle.wait(0.01) is False
    gate.opened.set()
    assert handle.wait(WATCHDOG) is True
    assert (handle.result(), handle.result(timeout=0), handle.exception(0)) == ("late", "late", None)
    with pytest.raises(ValueError, match="-1"):
        handle.result(-1)


def test_handles_are_futures(beside):
    """wait and as_completed of ``concurrent.futures`` take handles, callbacks are called once with the handle."""
    gate, called = Gate(), Log()
    held, quick = beside.submit(gate, "held"), beside.submit(square, 3)
    held.add_done_callback(called.add)
    done, not_done = wait([held, quick], WATCHDOG, return_when="FIRST_COMPLETED")
    assert (done, not_done) == ({quick}, {held})
    assert isinstance(held, Future)
    assert (held.running(), held.done(), held.cancelled()) == (False, False, False)  # pending, in a Future's sense
    gate.opened.set()
    assert set(as_completed([held, quick], WATCHDOG)) == {held, quick}
    called.wait_for(1)
    quick.add_done_callback(called.add)
    assert list(called) == [held, quick]
    tea = beside.submit(sell_out)
    assert wait([tea, quick], WATCHDOG, return_when="FIRST_EXCEPTION").done >= {tea}


def test_a_callback_may_submit(beside):
    """A done-callback runs with no lock held: it can submit a further call, and one that raises harms nobody."""
    further = Log()
    first = beside.submit(square, 2)
    first.add_done_callback(lambda handle: further.add(beside.submit(square, handle.result())))
    further.wait_for(1)
    assert further[0].result(WATCHDOG) == 16


# ---- errors -----------------------------------------------------------------------------------------

ERRORS = [
    (TaskTimeoutError("slow", 2.0), TimeoutError),
    (TaskCancelledError("slow#2"), CancelledError),
    (CycleError(["a", "b", "a"]), ValueError),
    (DependencyFailedError("ship", ["tea"]), FlowError),
    (CheckpointError("nothing can be written"), FlowError),
    (ContextKeyError("rate", "ship"), KeyError),
    (DeadlockError([("hen", "egg"), ("egg", "hen")]), FlowError),
    (FlowClosedError("Flow shop"), FlowError),
]


@pytest.mark.parametrize(("error", "kind"), ERRORS, ids=lambda value: type(value).__name__)
def test_errors_have_one_base_and_survive_pickling(error, kind):
    """Everything that the library raises of its own is a FlowError, fits the standard library's, and pickles."""
    assert isinstance(error, FlowError)
    assert isinstance(error, kind)
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))


def test_current_task_tells_name_and_attempt(flow):
    """In a body ``current_task()`` has the name, id, run and attempt, in threads, coroutines and inline."""

    @task("ask", retries=1)
    def ask() -> Any:
        me = current_task()
        if me.attempt == 1:
            raise OutOfStockError("not yet")
        return me.name, me.id, me.attempt, me.run_id, me.cancelled

    @task("ask_async", retries=1)
    async def ask_async() -> Any:
        await asyncio.sleep(0)
        return ask()

    with flow.session("r1") as session:
        ask_twice = [session.submit(ask), session.submit(ask)]
        assert [handle.result(WATCHDOG) for handle in ask_twice] == [
            ("ask", "ask", 2, "r1", False),
            ("ask", "ask#2", 2, "r1", False),
        ]
        assert session.submit(ask_async).result(WATCHDOG) == ("ask_async", "ask_async", 2, "r1", False)
    assert current_task().name == ""
