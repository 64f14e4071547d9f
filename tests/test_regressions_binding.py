"""Regressions R42 and R43: every kind of callable is a task, and every parameter is filled or refused by name."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Annotated, Any, Optional

import pytest

import millstream
from millstream import BindingError, Context, Flow, NextTask, StreamChunk

if TYPE_CHECKING:
    from somewhere import Unresolvable

#: Binding is the same everywhere, so these do not run on pools and on one worker as well.
on_some = pytest.mark.parametrize("executor", ["inline", "thread", "asyncio"], indirect=True)

# ---- R42 --------------------------------------------------------------------------------------------


async def fetch(n: int, *, by: int = 10) -> int:
    await asyncio.sleep(0)
    return n * by


async def count_up(n: int):
    for value in range(n):
        yield value


class Fetcher:
    """An object whose call is a coroutine."""

    async def __call__(self, n: int) -> int:
        return await fetch(n)

    async def method(self, n: int) -> int:
        return await fetch(n)

    @staticmethod
    async def static(n: int) -> int:
        return await fetch(n)

    @classmethod
    async def of_class(cls, n: int) -> int:
        return await fetch(n)


class Adder:
    """An object that is called as a plain function."""

    def __call__(self, n: int) -> int:
        return n * 10


def logged(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


CALLABLES = {
    "coroutine function": fetch,
    "async __call__": Fetcher(),
    "callable object": Adder(),
    "method": Fetcher().method,
    "static method": Fetcher.static,
    "class method": Fetcher.of_class,
    "partial": functools.partial(fetch, by=10),
    "partial of a partial": functools.partial(functools.partial(fetch, by=3), by=10),
    "partial of an object": functools.partial(Fetcher()),
    "wrapped": logged(fetch),
    "lambda": lambda ctx, n: fetch(n),
    "partial of a wrapped one": functools.partial(logged(fetch), by=10),
}


@on_some
@pytest.mark.parametrize("kind", CALLABLES)
def test_r42_every_kind_of_callable_is_called_and_awaited(flow, kind):
    """A coroutine function in whatever clothing is awaited: no coroutine becomes an output."""
    flow.add_task("work", CALLABLES[kind])
    flow.add_task("split", lambda ctx: [NextTask("work", {"n": n}, spawn_another=True) for n in (1, 2, 3)])

    assert flow.run("work", {"n": 7}) == {"work": 70}
    assert flow.run("split") == {"work": 10, "work#2": 20, "work#3": 30}
    assert asyncio.run(flow.arun("work", {"n": 7})) == {"work": 70}


@pytest.mark.parametrize(
    "action",
    [count_up, functools.partial(count_up), lambda ctx, n: count_up(n), logged(count_up)],
    ids=["function", "partial", "lambda", "wrapped"],
)
def test_r42_an_asynchronous_generator_is_iterated(flow, action):
    """An asynchronous generator in whatever clothing streams: the generator never becomes an output."""
    flow.add_task("count", action)

    assert list(flow.stream("count", {"n": 3})) == [StreamChunk("count", value) for value in (0, 1, 2, None)]
    assert flow.run("count", {"n": 3}) == {"count": None}


def test_r42_callables_have_names():
    """A bare registration takes the name of the function inside partials, and of the class of an object."""
    flow = Flow()
    flow.task(functools.partial(fetch, by=2))
    flow.task(Fetcher())
    flow.task(Adder())
    flow.task(Fetcher().method)
    flow.task(logged(count_up))

    assert list(flow.tasks) == ["fetch", "Fetcher", "Adder", "method", "count_up"]


def test_r42_a_decorated_function_is_returned_unchanged():
    """``flow.task`` gives back the very function, so it stays a plain one."""
    flow = Flow()
    assert flow.task(fetch) is fetch
    assert flow.task("other")(fetch) is fetch
    assert flow.task(timeout=5.0)(count_up) is count_up


# ---- R43 --------------------------------------------------------------------------------------------


class MyContext(Context):
    """A context of the user's."""


def first(ctx, n):
    return ctx["key"], n


def last(n, ctx):
    return ctx["key"], n


def annotated(n: int, shared: Context):
    return shared["key"], n


def keyword_only(n: int, *, shared: Context):
    return shared["key"], n


def positional_only(shared: Context, /, n: int):
    return shared["key"], n


def typed(n: int, shared: Context[dict]):
    return shared["key"], n


def through_the_module(n: int, shared: millstream.Context):
    return shared["key"], n


def optional(n: int, shared: Optional[Context] = None):  # noqa: UP045  # people write it
    return shared["key"], n


def union(n: int, shared: Context | None):
    return shared["key"], n


def annotated_type(n: int, shared: Annotated[Context, "ours"]):
    return shared["key"], n


def subclass(n: int, shared: MyContext):
    return shared["key"], n


def beside_an_unresolvable(n: Unresolvable, shared: Context, other: Missing[int] = None):  # noqa: F821
    return shared["key"], n


def unresolvable_result(n: int, shared: Context) -> Nowhere:  # noqa: F821
    return shared["key"], n


def with_inputs_anywhere(n, inputs, ctx):
    return ctx["key"], inputs["n"] if n == inputs["n"] else None


def with_keyword_inputs(ctx, *, inputs):
    return ctx["key"], inputs["n"]


def any_name(c, n):
    return c["key"], n


def any_name_and_inputs(c, inputs=None):
    return c["key"], inputs["n"]


def arguments(*args):
    (ctx,) = args
    return ctx["key"], ctx["n"]


def rest(ctx, **values):
    return ctx["key"], values["n"]


async def coroutine(n: int, *, shared: Context):
    return shared["key"], n


INJECTED = [
    first, last, annotated, keyword_only, positional_only, typed, through_the_module, optional, union, annotated_type,
    subclass, beside_an_unresolvable, unresolvable_result, with_inputs_anywhere, with_keyword_inputs, any_name,
    any_name_and_inputs, arguments, rest, coroutine,
]  # fmt: skip


@on_some
@pytest.mark.parametrize("action", INJECTED, ids=lambda action: action.__name__)
def test_r43_the_context_is_found_wherever_it_is_asked_for(flow, action):
    """The context is given in any position, keyword-only, under any annotation that says so; inputs go by name."""
    flow.add_task("work", action)
    flow.add_task("ask", lambda ctx: NextTask("work", {"n": 7, "key": "value"}))

    assert flow.run("work", {"n": 7, "key": "value"}) == {"work": ("value", 7)}


def test_r43_a_closure_with_names_that_only_it_knows(flow):
    """Under postponed annotations a class that only the closure knows spoils nothing, in a union with Context too."""

    class Local:
        pass

    def work(n: Local, shared: Context | Local, other: Local | None = None):
        return shared["n"], n, other

    flow.add_task("work", work)

    assert flow.run("work", {"n": 7}) == {"work": (7, 7, None)}


def item_and_data(item, data):
    return item, data


def test_r43_what_cannot_be_filled_is_refused_by_name(flow):
    """A required parameter that nothing fills is a BindingError with task, parameter and what was on offer."""
    flow.add_task("work", item_and_data)

    with pytest.raises(BindingError) as caught:
        flow.run("work", {"item": 1, "extra": 2})
    assert (caught.value.task, caught.value.parameter) == ("work", "data")
    assert {"item", "extra"} <= set(caught.value.offer)
    assert "work" in str(caught.value)
    assert "data" in str(caught.value)
    assert flow.run("work", {"item": 1, "data": 2}) == {"work": (1, 2)}


def test_r43_a_request_that_cannot_be_filled_fails_who_asked(flow):
    """A NextTask without a required input is refused when it is asked for: nothing of its list is scheduled."""
    called = []
    flow.add_task("ask", lambda ctx: [NextTask("other"), NextTask("work", {"item": 1})])
    flow.add_task("other", lambda ctx: called.append("other"))
    flow.add_task("work", item_and_data)

    with pytest.raises(BindingError, match="data"):
        flow.run("ask")
    assert called == []


def test_r43_a_first_parameter_of_any_name_is_the_context_unless_an_input_has_its_name(flow):
    """``f(item)`` gets the input ``item``; without one, the context, since nothing else is said."""
    flow.add_task("work", lambda item: item)
    flow.add_task("typed", typed_item)

    assert flow.run("work", {"item": 5}) == {"work": 5}
    assert isinstance(flow.run("work")["work"], Context)
    with pytest.raises(BindingError, match="item"):
        flow.run("typed")  # an int is no context


def typed_item(item: int):
    return item


def test_r43_defaults_and_collecting_parameters(flow):
    """Defaults stand when no input replaces them; ``**values`` takes the inputs that nobody else took."""

    def work(n: int, *args: Any, scale: int = 2, **values: Any):
        return n, args, scale, values

    flow.add_task("work", work)

    assert flow.run("work", {"n": 1}) == {"work": (1, (), 2, {})}
    assert flow.run("work", {"n": 1, "scale": 3, "x": 4}) == {"work": (1, (), 3, {"x": 4})}
