"""How the parameters of a task are filled: every rule of millstream.binding, through runs of a flow."""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import TYPE_CHECKING, Annotated, Any, Optional

import pytest

import millstream
from millstream import BindingError, Context, Flow, NextTask

if TYPE_CHECKING:
    from somewhere import Unknown


@dataclasses.dataclass
class Deps:
    """What tasks of these tests depend on."""

    table: str = "orders"


def call(fn, inputs=None, **options):
    """Return what a one-task flow with ``fn`` gives."""
    with Flow("inline") as flow:
        flow.add_task("subject", fn)
        return flow.run("subject", inputs, **options)["subject"]


def with_annotation(annotation, name="given"):
    """Return a function of one parameter annotated with ``annotation``; it returns what it gets."""

    def subject(given):
        return given

    subject.__annotations__ = {"given": annotation}
    return subject


# ---- the context ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn",
    [lambda ctx: ctx, lambda context: context, lambda a=1, *, ctx: ctx, lambda a=1, context=2: context],
    ids=["ctx", "context", "keyword only", "with a default"],
)
def test_ctx_and_context_are_the_context(fn):
    """A parameter named ctx or context is the context, wherever it stands, default or not."""
    assert isinstance(call(fn), Context)


def test_ctx_is_the_context_even_when_an_input_has_its_name():
    """The first rule comes first: an input named ctx does not replace the context."""
    assert isinstance(call(lambda ctx: ctx, {"ctx": 5}), Context)


@pytest.mark.parametrize(
    "annotation",
    [
        Context,
        Context[Deps],
        Context[Any],
        "Context",
        "Context[Deps]",
        "millstream.Context",
        "millstream.Context[Deps]",
        "HiddenContext.Context",
        "hidden.Context",
        "hidden.Context[Unknown]",
        "Context[Unknown]",
        Optional[Context],  # noqa: UP045 - this spelling is what is tested
        Context | None,
        None | Context[Deps],
        "Context | None",
        "None | Context",
        "Optional[Context[Deps]]",
        Annotated[Context, "a note"],
        "Annotated[Context[Deps], 'a note']",
        Annotated[Context[Deps] | None, 5],
    ],
    ids=str,
)
def test_an_annotation_says_context(annotation):
    """Context in any spelling: class, generic, string, postponed, union, Optional, Annotated."""
    assert isinstance(call(with_annotation(annotation), {"given": "wrong"}), Context)


@pytest.mark.parametrize(
    "annotation",
    [Optional["Context"], Optional["Context[Deps]"], Annotated["Context", "a note"], typing.Union["Context", None]],
    ids=str,
)
def test_an_annotation_with_a_quoted_part_says_context(annotation):
    """Optional["Context"] without postponed annotations holds a ForwardRef, and means the context."""
    assert isinstance(call(with_annotation(annotation), {"given": "wrong"}), Context)


@pytest.mark.parametrize(
    "annotation",
    ["Optional[hidden.Context]", "Unknown | hidden.Context", "Annotated[hidden.Context, 'a note']"],
)
def test_a_type_checking_only_context_inside_a_union_is_the_context(annotation):
    """What exists for the type checker alone is recognised by its text inside Optional and unions too."""
    assert isinstance(call(with_annotation(annotation), {"given": "wrong"}), Context)


@pytest.mark.parametrize(
    "annotation",
    ["ContextManager", "Unknown", "MyContext", "list[Context", int, "int", "typing.Literal['Context']", 5, "1/0", None],
    ids=str,
)
def test_other_annotations_do_not_say_context(annotation):
    """What only looks like Context, or makes no sense, is filled from the inputs."""
    assert call(with_annotation(annotation), {"given": 7}) == 7


def test_the_notes_of_annotated_are_no_types():
    """Text beside a type in Annotated is a remark, which is not taken for Context."""
    assert call(with_annotation(Annotated[int, "Context of the order"]), {"given": 7}) == 7


EVALUATED = []


def test_the_notes_of_annotated_are_never_evaluated():
    """Text beside a type in Annotated is a remark, and no code that runs at registration."""
    EVALUATED.clear()
    assert call(with_annotation(Annotated[int, "EVALUATED.append(1)"]), {"given": 7}) == 7
    assert EVALUATED == []


def test_a_subclass_of_context_is_a_context_annotation():
    """A parameter annotated with a subclass of Context is given the run's context."""

    class Mine(Context):
        pass

    assert isinstance(call(with_annotation(Mine), {"given": 1}), Context)


def test_one_annotation_that_cannot_be_resolved_spoils_no_other():
    """A TYPE_CHECKING-only name beside a Context annotation leaves both parameters as they are."""

    def subject(row: Unknown, c: Context[Deps], size: AlsoUnknown.Deeper = 3) -> Missing:  # noqa: F821
        return row, type(c), size

    assert call(subject, {"row": 1}) == (1, Context, 3)


def test_a_local_class_in_a_postponed_annotation():
    """Context[Local] is the context although Local cannot be looked up where the text is evaluated."""

    class Local:
        pass

    def subject(x: int, c: Context[Local]) -> Any:
        return c.deps

    deps = Local()
    assert call(subject, {"x": 1}, deps=deps) is deps


@pytest.mark.parametrize("annotation", [None, Any, object, "Any", "object", "typing.Any"], ids=str)
def test_the_first_positional_parameter_is_the_context_when_nothing_else_fills_it(annotation):
    """``lambda _: …`` gets the context; Any and object are no foreign annotations."""
    subject = with_annotation(annotation)
    if annotation is None:
        subject.__annotations__ = {}
    assert isinstance(call(subject), Context)
    assert call(subject, {"given": 5}) == 5  # an input comes first


def test_a_first_parameter_with_a_foreign_annotation_is_no_context():
    """``def count(path: str)`` asks for a path, and is refused without one."""
    with pytest.raises(BindingError, match="Task subject needs a value for its parameter given"):
        call(with_annotation(str))


def test_only_the_first_parameter_falls_back_to_the_context():
    """A second parameter without annotation is not the context; nor is a first one with a default."""
    with pytest.raises(BindingError, match="parameter b"):
        call(lambda a, b: (a, b))
    assert call(lambda a=1: a) == 1


def test_the_context_is_not_given_twice():
    """With a parameter that is the context already, the first one is asked of the inputs."""
    with pytest.raises(BindingError, match="parameter x"):
        call(lambda x, ctx: x)


def test_a_keyword_only_first_parameter_is_not_the_context():
    """Rule 7 is for positional parameters."""
    with pytest.raises(BindingError, match="parameter x"):
        call(lambda *, x: x)


# ---- inputs ---------------------------------------------------------------------------------------


def test_inputs_is_the_mapping():
    """A parameter named inputs is the whole mapping, None without inputs, its default if it has one."""
    assert call(lambda inputs: inputs, {"a": 1}) == {"a": 1}
    assert call(lambda inputs: inputs) is None
    assert call(lambda inputs=7: inputs) == 7
    assert call(lambda inputs: inputs, {}) == {}


def test_inputs_is_the_mapping_although_it_has_a_key_of_that_name():
    """The rule for the name inputs stands before the rule for keys."""
    assert call(lambda inputs: inputs, {"inputs": 1}) == {"inputs": 1}


def test_receivers_do_not_share_one_mapping():
    """Each task run has a copy of the inputs, and the caller's mapping is never changed."""
    given = {"a": [1]}
    seen = []

    def spoil(inputs):
        seen.append(dict(inputs))
        inputs["spoilt"] = True
        inputs.clear()

    with Flow("inline") as flow:
        flow.add_task("one", spoil)
        flow.add_task("two", spoil)
        flow.run(["one", "two"], given)
        assert seen == [{"a": [1]}, {"a": [1]}]
        assert given == {"a": [1]}
        assert flow.context.to_dict()["a"] == [1]


def test_a_next_task_copies_its_inputs():
    """What is done to a mapping after NextTask was made changes nothing."""
    with Flow("inline") as flow:

        @flow.task
        def first():
            shared = {"n": 1}
            requests = [NextTask("second", shared, True)]
            shared["n"] = 2
            return [*requests, NextTask("second", shared, True)]

        flow.add_task("second", lambda n: n)
        assert flow.run("first") == {"second": 1, "second#2": 2}


def test_a_key_of_the_inputs_fills_the_parameter_of_its_name():
    """By name, in any order, before the default; what nobody asks for is left out."""
    assert call(lambda b, a: (b, a), {"a": 1, "b": 2, "c": 3}) == (2, 1)
    assert call(lambda a=5: a, {"a": None}) is None
    assert call(lambda a=5: a, {"b": 1}) == 5
    assert call(lambda item, index: (item, index), {"item": 1, "index": 2}) == (1, 2)


def test_keyword_only_parameters():
    """Parameters after * are filled by the same rules."""

    def subject(a, *, ctx, b, c=3, inputs, payload):
        return a, type(ctx), b, c, inputs == payload

    assert call(subject, {"a": 1, "b": 2}) == (1, Context, 2, 3, True)


def test_positional_only_parameters():
    """Parameters before / are filled by the same rules, and passed by position."""

    def subject(a, ctx, b=2, /, c=3):
        return a, type(ctx), b, c

    assert call(subject, {"a": 1}) == (1, Context, 2, 3)
    assert call(subject, {"a": 1, "b": 5, "c": 6}) == (1, Context, 5, 6)


def test_more_parameters_than_there_is_a_short_form_for():
    """Three positional parameters and more."""
    assert call(lambda a, b, c, d=4, e=5: (a, b, c, d, e), {"c": 3, "b": 2, "a": 1, "e": 6}) == (1, 2, 3, 4, 6)


# ---- *args and **kwargs ---------------------------------------------------------------------------


def test_star_args_takes_nothing_beside_others():
    """``*args`` stays empty when there are other parameters."""
    assert call(lambda a, *args: (a, args), {"a": 1, "args": 2}) == (1, ())


def test_star_args_alone_gets_the_context():
    """``*args`` as all there is gets the context."""
    (only,) = call(lambda *args: args)
    assert isinstance(only, Context)


def test_star_star_takes_what_no_other_parameter_took():
    """``**rest`` gets the inputs that are left."""
    assert call(lambda a, **rest: (a, rest), {"a": 1, "b": 2, "c": 3}) == (1, {"b": 2, "c": 3})
    assert call(lambda a=0, **rest: (a, rest)) == (0, {})
    assert call(lambda *, a, **rest: (a, rest), {"a": 1, "b": 2}) == (1, {"b": 2})


def test_star_star_never_gets_what_would_be_given_twice():
    """An input named as a parameter that is filled otherwise is not passed once more."""
    subject = lambda ctx, inputs, **rest: (type(ctx), rest)  # noqa: E731
    assert call(subject, {"ctx": 1, "inputs": 2, "b": 3}) == (Context, {"b": 3})


def test_star_star_does_not_get_what_a_positional_only_parameter_took():
    """``def f(a, /, **rest)``: the input a was taken by a."""

    def subject(a, /, **rest):
        return a, rest

    assert call(subject, {"a": 1, "b": 2}) == (1, {"b": 2})


def test_star_star_takes_inputs_named_like_the_stars_themselves():
    """No parameter took an input that happens to be called rest or args."""

    def subject(a=0, *args, **rest):
        return rest

    assert call(subject, {"rest": 1, "args": 2}) == {"rest": 1, "args": 2}


# ---- upstream and payload -------------------------------------------------------------------------


def test_upstream_of_a_join_is_the_list_of_its_siblings_outputs():
    """In list order, None for a sibling without output; an input of that name comes first."""
    with Flow("inline") as flow:

        @flow.task
        def split():
            parts = [NextTask("part", {"n": n}, spawn_another=True) for n in (3, 1, 2)]
            return [
                parts[0],
                NextTask("merge", join=True),
                NextTask("named", {"upstream": "mine"}, join=True),
                *parts[1:],
            ]

        flow.add_task("part", lambda n: None if n == 1 else n * 10)
        flow.add_task("merge", lambda upstream, payload: (upstream, payload))
        flow.add_task("named", lambda upstream: upstream)
        assert flow.run("split") == {"merge": ([30, None, 20], [30, None, 20]), "named": "mine"}


def test_upstream_without_a_join_is_an_empty_mapping():
    """A task that waited for nobody has nothing upstream."""
    assert call(lambda upstream: upstream) == {}
    assert call(lambda upstream: upstream, {"upstream": 4}) == 4


def test_payload_is_the_inputs_or_the_input_of_that_name():
    """inputs["payload"] when there is one, else the mapping, else the default."""
    assert call(lambda payload: payload, {"payload": 5, "a": 1}) == 5
    assert call(lambda payload: payload, {"a": 1}) == {"a": 1}
    assert call(lambda payload=9: payload) == 9
    assert call(lambda payload=9: payload, {"a": 1}) == {"a": 1}


def test_payload_is_a_copy():
    """A task that changes its payload changes nobody else's inputs."""
    with Flow("inline") as flow:
        flow.add_task("one", lambda payload: payload.clear())
        flow.add_task("two", lambda payload: payload)
        assert flow.run(["one", "two"], {"a": 1}) == {"one": None, "two": {"a": 1}}


def test_payload_without_anything_is_refused():
    """Nothing was sent and there is no default: the error names the parameter."""
    with pytest.raises(BindingError, match="Task subject needs a value for its parameter payload"):
        call(lambda a=1, *, payload: payload)


def test_a_join_with_siblings_and_inputs():
    """Inputs of a join fill its parameters beside upstream; payload is then what upstream is."""
    with Flow("inline") as flow:
        flow.add_task("split", lambda: [NextTask("part"), NextTask("merge", {"n": 5}, join=True)])
        flow.add_task("part", lambda: 1)
        flow.add_task("merge", lambda n, upstream, payload: (n, upstream, payload))
        assert flow.run("split") == {"merge": (5, [1], [1])}


# ---- every kind of callable -----------------------------------------------------------------------


class Adder:
    """A callable object, with methods of every kind."""

    def __init__(self, base: int = 10) -> None:
        self.base = base

    def __call__(self, a: int, c: Context) -> Any:
        return self.base + a, type(c)

    def method(self, a: int, c: Context) -> Any:
        return self.base + a, type(c)

    @classmethod
    def on_class(cls, a: int, c: Context) -> Any:
        return 10 + a, type(c)

    @staticmethod
    def static(a: int, c: Context) -> Any:
        return 10 + a, type(c)

    async def later(self, a: int, c: Context) -> Any:
        return 10 + a, type(c)


class AsyncAdder:
    """A callable object whose call is a coroutine."""

    async def __call__(self, a: int, c: Context) -> Any:
        return 10 + a, type(c)


def plain(a: int, c: Context) -> Any:
    """A function to decorate and to make partials of."""
    return 10 + a, type(c)


def decorated(fn):
    """A decorator as most are written."""

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


async def coroutine(a: int, c: Context) -> Any:
    """A coroutine function."""
    return 10 + a, type(c)


CALLABLES = {
    "function": plain,
    "callable object": Adder(),
    "bound method": Adder().method,
    "class method": Adder.on_class,
    "static method": Adder.static,
    "static method object": vars(Adder)["static"],
    "decorated": decorated(decorated(plain)),
    "decorated coroutine": decorated(coroutine),
    "partial": functools.partial(plain),
    "partial of a partial": functools.partial(functools.partial(Adder().method)),
    "partial of an object": functools.partial(Adder()),
    "cached": functools.lru_cache(plain),
    "coroutine function": coroutine,
    "async method": Adder().later,
    "async object": AsyncAdder(),
    "partial of a coroutine function": functools.partial(coroutine),
    "partial of an async object": functools.partial(AsyncAdder()),
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_every_kind_of_callable_is_bound_alike(kind):
    """Functions, methods, objects, partials, decorated ones and coroutine functions."""
    assert call(CALLABLES[kind], {"a": 5}) == (15, Context)


def test_what_a_partial_holds_is_not_asked_for():
    """By position it is gone; by keyword it is a default that an input replaces."""
    assert call(functools.partial(plain, 1)) == (11, Context)
    assert call(functools.partial(plain, a=1)) == (11, Context)
    assert call(functools.partial(plain, a=1), {"a": 2}) == (12, Context)
    assert call(functools.partial(lambda a, b: (a, b), 1), {"b": 2}) == (1, 2)


def test_a_class_is_called_like_a_function():
    """The parameters of its constructor are filled; the output is the instance."""
    assert call(Deps, {"table": "lines"}) == Deps("lines")
    assert call(Deps) == Deps("orders")

    class Report:
        def __init__(self, c: Context, title: str):
            self.title, self.context = title, c

    report = call(Report, {"title": "sales"})
    assert report.title == "sales"
    assert isinstance(report.context, Context)


def test_builtins():
    """Builtins with a signature are filled by it, those without get the context."""
    assert call(len, {"obj": [1, 2]}) == 2
    assert call(len) == 0  # the context itself, which is empty
    assert call(sorted, {"iterable": [2, 1], "reverse": True}) == [2, 1]
    assert list(call(iter, context={"key": 1})) == ["key"]  # it tells no signature


def test_a_function_without_parameters():
    """Nothing is passed, whatever the inputs are."""
    assert call(lambda: 5, {"a": 1}) == 5


def test_generators_and_async_generators_are_bound_alike():
    """Functions that yield are filled by the same rules."""

    def sync(a: int, c: Context):
        yield a
        return a, type(c)

    async def later(a: int, c: Context):
        yield a, type(c)

    assert call(sync, {"a": 5}) == (5, Context)
    with Flow("inline") as flow:
        flow.add_task("subject", later)
        assert [chunk.value for chunk in flow.stream("subject", {"a": 5})] == [(5, Context), None]


def test_calling_a_registered_function_by_hand_is_calling_the_function():
    """Registration leaves a function as it is: plain and unit-testable."""
    with Flow("inline") as flow:
        registered = flow.task("subject")(plain)
        assert registered is plain
        assert flow["subject"](1, None) == (11, type(None))


# ---- refusals -------------------------------------------------------------------------------------


def test_a_binding_error_names_task_parameter_and_what_was_on_offer():
    """The message has all three, as has the error."""
    with pytest.raises(BindingError) as caught:
        call(lambda ctx, path: path, {"size": 1, "mode": 2})
    error = caught.value
    assert (error.task, error.parameter, tuple(error.offer)) == ("subject", "path", ("size", "mode"))
    for name in ("subject", "path", "size", "mode"):
        assert name in str(error)


def test_a_binding_error_guesses_a_misspelt_input():
    """An input that is nearly right is proposed."""
    with pytest.raises(BindingError, match=r"Did you mean pathh\?"):
        call(lambda ctx, path: path, {"pathh": 1, "size": 2})


def test_a_request_that_cannot_be_bound_fails_the_task_that_made_it():
    """BindingError comes when the task run is asked for, and nothing of the list is scheduled."""
    ran = []
    with Flow("inline") as flow:
        flow.add_task("first", lambda: [NextTask("good"), NextTask("bad", {"wrong": 1})])
        flow.add_task("good", lambda: ran.append(1))
        flow.add_task("bad", lambda ctx, right: right)
        with pytest.raises(BindingError, match="Task bad needs a value for its parameter right") as caught:
            flow.run("first")
        assert ran == []
        assert any("first" in note for note in caught.value.__notes__)


def test_the_start_is_refused_before_anything_runs():
    """run raises BindingError for a start that lacks an input, and nothing has run."""
    ran = []
    with Flow("inline") as flow:
        flow.add_task("good", lambda: ran.append(1))
        flow.add_task("bad", lambda ctx, right: right)
        with pytest.raises(BindingError):
            flow.run(["good", "bad"])
        assert ran == []
        assert flow.run("good") == {"good": None}


def test_a_value_in_the_context_does_not_fill_a_parameter():
    """Parameters come from inputs; what is in the context is asked of the context."""
    with pytest.raises(BindingError):
        call(lambda ctx, right: right, context={"right": 1})


def test_the_module_of_these_tests_postpones_annotations():
    """These tests mean what they say only while annotations in this file are text."""
    assert plain.__annotations__["c"] == "Context"
    assert millstream.Context is Context
