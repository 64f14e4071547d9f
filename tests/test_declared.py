"""Inputs and outputs that a task declares: what its parameters are filled with, and where its output goes."""

from __future__ import annotations

import asyncio
import copy
import os
import threading
from collections import defaultdict
from types import MappingProxyType

import pytest

from millstream import (
    BindingError,
    ConfigError,
    ContextKeyError,
    DeadlockError,
    Flow,
    MemoryStore,
    NextTask,
    Retry,
    Status,
    Task,
    TaskNotFoundError,
    current_task,
)
from millstream.config.expressions import MAX_DEPTH, MAX_TEXT, Outputs, Target, compile_text, compile_value
from tests import process_tasks
from tests.conftest import WATCHDOG, executors

executor = executors(("inline", "thread", "asyncio"))
on_inline = pytest.mark.parametrize("executor", ["inline"], indirect=True)
on_threads = pytest.mark.parametrize("executor", ["thread"], indirect=True)

CONTEXT = {"user": {"name": "Ada", "tags": ["x", ("y", "z")]}, "raw": "text", "none": None, "zero": 0, "7": "seven"}


def plain(v):
    return v


async def coroutine(v):
    await asyncio.sleep(0)
    return v


async def steps(v):
    yield "begun"
    yield v


@pytest.fixture(params=[plain, coroutine], ids=["plain", "coroutine"])
def take(request):
    """A task that returns what its parameter ``v`` was filled with."""
    return request.param


def look_up(flow, value, take=plain, inputs=None, context=CONTEXT, **options):
    """Return what a parameter is filled with by one declared input."""
    flow.add_task("take", take, inputs={"v": value}, **options)
    return flow.run("take", inputs, context=context, timeout=WATCHDOG)["take"]


def failure(flow, *args, **options):
    """Return the error with which a run ends."""
    with pytest.raises(Exception) as failed:  # noqa: PT011 - the test looks at it
        flow.run(*args, timeout=WATCHDOG, **options)
    return failed.value


# ---- what the roots are ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("$ctx.raw", "text"),
        ("$.raw", "text"),
        ("  $ctx.raw\n", "text"),
        ("$ctx.user.name", "Ada"),
        ("$.user.tags.1.0", "y"),
        ("$ctx.7", "seven"),
        ("$ctx.none", None),
        ("$ctx.zero", 0),
        ("$inputs.n", 5),
        ("$inputs.order.lines.1", "b"),
        ("$env.MILLSTREAM_TEST", "from outside"),
        ("$env.MILLSTREAM_EMPTY", ""),
    ],
)
def test_a_lone_path_gives_what_it_leads_to(flow, take, text, found, monkeypatch):
    """``$ctx``, ``$inputs`` and ``$env`` are looked up when the task is called, and the value keeps its type."""
    monkeypatch.setenv("MILLSTREAM_TEST", "from outside")
    monkeypatch.setenv("MILLSTREAM_EMPTY", "")

    value = look_up(flow, text, take, {"n": 5, "order": {"lines": ["a", "b"]}})

    assert value == found
    assert type(value) is type(found)


def test_payload_is_the_newest_output_of_a_task(flow, take):
    """``$payload.task`` is what that task gave last, and a path goes on into it."""
    flow.add_task("rows", lambda: {"list": [1, {"id": 7}]})
    flow.add_task("whole", take, inputs={"v": "$payload.rows"}, depends_on=["rows"])
    flow.add_task("part", take, inputs={"v": "$payload.rows.list.1.id"}, depends_on=["rows"])

    assert flow.run(timeout=WATCHDOG) == {"whole": {"list": [1, {"id": 7}]}, "part": 7}


def test_payload_of_a_loop_is_of_its_last_round(flow, take):
    """A task that has run several times has the newest output alone."""
    flow.add_task(
        "count", lambda payload: {"count": payload + 1} if payload < 3 else {"end": None}, routes=["count", "end"]
    )
    flow.add_task("end", take, inputs={"v": "$payload.count"})

    assert flow.run("count", {"payload": 0}, timeout=WATCHDOG) == {"end": {"end": None}}


def test_joins_of_a_task_with_dependencies_have_their_names(flow, take):
    """``$joins.task.parent`` is what that task waited for: in the task itself, and in whatever comes after it."""
    flow.add_task("left", lambda: {"x": 1})
    flow.add_task("right", lambda: None)
    flow.add_task("join", take, inputs={"v": ["$joins.join.left.x", "$joins.join.right"]}, depends_on=["left", "right"])
    flow.add_task("after", take, inputs={"v": "$joins.join.left"}, depends_on=["join"])

    assert flow.run(timeout=WATCHDOG) == {"after": {"x": 1}}
    assert flow.context["join"] == [1, None]


def test_joins_of_a_dynamic_join_have_indexes(flow, take):
    """A join of requests has the outputs of its siblings, in the order of their list."""

    def split():
        parts = [NextTask("part", {"n": n}, spawn_another=True) for n in (1, 2, 3)]
        return [*parts, NextTask("join", join=True)]

    flow.add_task("split", split)
    flow.add_task("part", lambda n: {"square": n * n})
    flow.add_task("join", take, inputs={"v": ["$joins.join.0", "$joins.join.2.square", "$joins.join.3 ?? 'none'"]})

    assert flow.run("split", timeout=WATCHDOG)["join"] == [{"square": 1}, 9, "none"]


def test_inputs_are_those_of_this_task_run(flow, take):
    """Each of several task runs of one task sees what it was asked with itself."""
    flow.add_task("begin", lambda: [NextTask("take", {"n": n}, spawn_another=True) for n in range(5)])
    flow.add_task("take", take, inputs={"v": "number {{ inputs.n }}"})

    assert sorted(flow.run("begin", timeout=WATCHDOG).values()) == [f"number {n}" for n in range(5)]


def test_a_declared_input_goes_before_one_that_was_asked_with(flow, take):
    """What a task declares fills the parameter; the rest is filled as ever."""
    flow.add_task("take", lambda v, other, ctx: (v, other, ctx["raw"]), inputs={"v": "$ctx.raw"})

    assert flow.run("take", {"v": "asked", "other": 1}, context=CONTEXT) == {"take": ("text", 1, "text")}


def test_one_text_is_the_payload(flow):
    """``inputs="$ctx.user"`` fills the parameter ``payload``, dependencies or not."""
    flow.add_task("first", lambda: "output of first")
    flow.add_task("take", lambda payload: payload, inputs="$ctx.user.name", depends_on=["first"])
    flow.add_task("said", lambda payload: payload, inputs="no path", depends_on=["first"])

    assert flow.run(context=CONTEXT) == {"take": "Ada", "said": "no path"}


def test_rest_and_inputs_get_what_is_declared(flow):
    """``**rest`` and ``inputs`` have the declared values, beside those that were asked with."""
    flow.add_task("rest", lambda **rest: rest, inputs={"v": "$ctx.zero"})
    flow.add_task("inputs", lambda inputs: inputs, inputs={"v": "$ctx.zero"})

    results = flow.run(["rest", "inputs"], {"n": 1}, context={"zero": 0})

    assert results == {"rest": {"n": 1, "v": 0}, "inputs": {"n": 1, "v": 0}}


# ---- defaults, templates and literals ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("$ctx.nope ?? $ctx.raw", "text"),
        ("$ctx.raw ?? $ctx.user", "text"),
        ("$ctx.user.nope ?? $ctx.raw.x ?? $inputs.nope ?? $env.MILLSTREAM_UNSET ?? 5", 5),
        ("$ctx.none ?? 5", None),
        ("$ctx.zero ?? 5", 0),
        ("$ctx.nope??'EUR'", "EUR"),
        ('$ctx.nope ?? "a ?? b"', "a ?? b"),
        ("$ctx.nope ?? 'it\\'s \\\\ 5 $$'", "it's \\ 5 $"),
        ("$ctx.nope ?? -1.5e3", -1500.0),
        ("$ctx.nope ?? true", True),
        ("$ctx.nope ?? null", None),
        ("$ctx.nope ?? []", []),
        ("$ctx.nope ?? { }", {}),
    ],
)
def test_the_first_that_leads_somewhere_is_taken(flow, take, text, found, monkeypatch):
    """``??`` goes on when a path leads nowhere; None, 0 and the like are values, so it stays with them."""
    monkeypatch.delenv("MILLSTREAM_UNSET", raising=False)
    if take is coroutine and text == "$ctx.raw ?? $ctx.user":
        text = "$ctx.raw ?? $ctx.user.name"  # both are there

    value = look_up(flow, text, take)

    assert value == found
    assert type(value) is type(found)


def test_a_coroutine_does_not_wait_for_what_it_does_not_need(flow):
    """When an earlier operand leads somewhere, the last one may be missing: in coroutines as in plain functions."""
    assert look_up(flow, "$ctx.raw ?? $ctx.never", coroutine) == "text"


def test_a_plain_function_does_not_wait_for_what_it_does_not_need(flow):
    """When an earlier operand leads somewhere, the last one may be missing."""
    assert look_up(flow, "$ctx.raw ?? $ctx.never") == "text"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Hello {{ $ctx.user.name }}!", "Hello Ada!"),
        ("Hello {{ctx.user.name}}{{ ctx.user.name }}", "Hello AdaAda"),
        ("{{ $.raw }} {{ inputs.n }} {{ env.MILLSTREAM_TEST }}", "text 5 set"),
        ("{{ ctx.nope ?? 'nobody' }} has {{ ctx.zero }} and {{ ctx.none }}", "nobody has 0 and None"),
        ("{{ ctx.user.tags }}", ["x", ("y", "z")]),
        (" {{ $ctx.user.tags }} ", ["x", ("y", "z")]),
        ("{{ 'a' }}", "a"),
        ("{{ 5 }}", 5),
        ("{{ '}}' }}", "}}"),
        ("{{ ctx.nope ?? '}}{{' }}.", "}}{{."),
        ("}} is {no} end }", "}} is {no} end }"),
    ],
)
def test_braces_stand_for_what_is_found(flow, take, text, found, monkeypatch):
    """``{{ .. }}`` is replaced in a text, with or without the dollar sign; one alone keeps its type."""
    monkeypatch.setenv("MILLSTREAM_TEST", "set")

    value = look_up(flow, text, take, {"n": 5})

    assert value == found
    assert type(value) is type(found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("$$", "$"),
        ("$$5.00", "$5.00"),
        ("costs $$5.00", "costs $5.00"),
        ("costs $5.00", "costs $5.00"),
        ("$$ctx.raw", "$ctx.raw"),
        ("a $$ctx.raw b", "a $ctx.raw b"),
        ("$$$$", "$$"),
        ("{{ ctx.raw }} $$ctx.raw", "text $ctx.raw"),
        ("{{ '$$ctx.raw' }}", "$ctx.raw"),
    ],
)
def test_two_dollar_signs_are_one(flow, text, found):
    """``$$`` is a dollar sign anywhere."""
    assert look_up(flow, text) == found


@pytest.mark.parametrize(
    "value", [0, -1.5, True, None, "", [], {}, [1, [2, {"a": None}]], {"a": {"b": [1.5]}, 7: "x"}, b"\0"]
)
def test_r59_literals_stay_what_they_are(flow, take, value):
    """Numbers, lists and mappings pass through."""
    found = look_up(flow, value, take)

    assert found == value
    assert type(found) is type(value)


def test_expressions_stand_anywhere_in_lists_and_mappings(flow, take):
    """The values of mappings and lists are looked through, at any depth; the keys are left alone."""
    given = {"$ctx.raw": ["$ctx.raw", {"deep": ["{{ ctx.zero }}", "n = {{ inputs.n }}"]}, 3], "x": ("$.none",)}

    assert look_up(flow, given, take, {"n": 5}) == {"$ctx.raw": ["text", {"deep": [0, "n = 5"]}, 3], "x": [None]}


def test_a_literal_is_a_fresh_copy_for_each_call(flow):
    """What one call makes of a literal, a default, or a list with expressions is not seen by the next."""
    given = {"a": [], "b": {"rows": [{}]}, "c": "$ctx.nope ?? []", "d": [[], "$ctx.zero"]}
    before = copy.deepcopy(given)

    def spoil(a, b, c, d):
        seen = copy.deepcopy((a, b, c, d))
        a.append(1), b["rows"][0].update(x=1), c.append(1), d[0].append(1)
        return seen

    flow.add_task("spoil", spoil, inputs=given)

    for _ in range(3):
        assert flow.run(context={"zero": 0}) == {"spoil": ([], {"rows": [{}]}, [], [[], 0])}
    assert given == before


@on_inline
def test_a_literal_that_cannot_be_copied_is_told_early_or_passed(flow):
    """An object such as a lock is refused when the task is registered, or arrives as it is."""
    lock = threading.Lock()
    try:
        flow.add_task("take", plain, inputs={"v": lock})
    except (ConfigError, TypeError):
        return
    assert flow.run() == {"take": lock}


def test_what_a_path_finds_is_no_copy(flow):
    """A value of the context comes as it is."""
    value = [object()]

    assert look_up(flow, "$ctx.deep.value", context={"deep": {"value": value}}) is value


@pytest.mark.parametrize(
    "text", ["payload", "env.HOME", "ctx.raw", "inputs", "null", "5", " ", "ctx.raw ?? 5", "a.b.c", "a?"]
)
def test_r59_a_text_without_a_dollar_sign_is_text(flow, text):
    """Nothing is looked up that does not begin with ``$`` or stand in braces."""
    assert look_up(flow, text) == text


# ---- what is missing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("$ctx.user.nmae", "there is no 'nmae' in $ctx.user, a mapping with the keys 'name', 'tags'."),
        ("Hello {{ ctx.user.nmae }}", "there is no 'nmae' in $ctx.user"),
        ("$ctx.user.tags.2", "there is no '2' in $ctx.user.tags, a list of 2."),
        ("$ctx.raw.x", "there is no 'x' in $ctx.raw, a value of type str."),
        ("$inputs.x", "there is no 'x' in $inputs, a mapping with the keys 'n'."),
        ("$env.MILLSTREAM_UNSET", "the environment has no MILLSTREAM_UNSET. Set it, or give a default by ??."),
        ("$joins.take.other", "there is no 'other' in $joins.take, an empty mapping."),
        ("$ctx.user.x ?? $inputs.y", "there is no 'y' in $inputs"),
    ],
)
def test_r59_a_path_that_leads_nowhere_fails_the_task(flow, take, text, sentence, monkeypatch):
    """The error names the task, the parameter, and what was missing where."""
    monkeypatch.delenv("MILLSTREAM_UNSET", raising=False)
    flow.add_task("take", take, inputs={"v": text})

    error = failure(flow, "take", {"n": 5}, context=CONTEXT)

    assert isinstance(error, BindingError)
    assert (error.task, error.parameter) == ("take", "v")
    assert str(error).startswith("Task take has no value for v: ")
    assert sentence in str(error)


@pytest.mark.parametrize("text", ["$ctx.typo", "$payload.typo.x", "Hello {{ ctx.typo }}", ["$ctx.typo"]])
def test_r59_a_key_that_nobody_sets_fails_the_task(flow, take, text):
    """A first key that is not there, and cannot come any more, is an error and no None."""
    flow.add_task("take", take, inputs={"v": text})

    error = failure(flow, "take")

    assert isinstance(error, BindingError)
    assert error.task == "take"
    assert isinstance(error.__cause__, ContextKeyError)
    assert "not found in context" in str(error)


def test_what_is_missing_is_a_failure_as_any_other():
    """``on_error="continue"`` goes on beside it, and what depends on it fails."""
    with Flow("inline", on_error="continue") as flow:
        flow.add_task("take", plain, inputs={"v": "$ctx.user.nope"})
        flow.add_task("after", plain, inputs={"v": "$payload.take"}, depends_on=["take"])
        flow.add_task("beside", plain, inputs={"v": "$ctx.raw"})

        assert flow.run(context=CONTEXT) == {"beside": "text"}
        assert flow.report().tasks["take"].status is Status.FAILED
        assert flow.report().tasks["after"].status is Status.FAILED


@pytest.mark.parametrize(
    ("given", "where", "problem"),
    [
        ("$5.00", ".v", "'$5.00' is no path: write '$$' for a dollar sign."),
        ("$5", ".v", "write '$$'"),
        ("$", ".v", "'$' names nothing"),
        (
            "$foo.x",
            ".v",
            "begins with '$foo', which is unknown: there are $ctx (or $ alone), $payload, $joins, $inputs",
        ),
        ("$ctx", ".v", "'$ctx' names nothing: write what to look up"),
        ("$ctx.", ".v", "has an empty part"),
        ("$ctx.rows[0]", ".v", "an index is written '.0'"),
        ("$ctx.x.__class__", ".v", "attributes of Python are out of reach"),
        ("see $ctx.raw", ".v", "'see $ctx.raw' has a path without braces"),
        ("see $.raw", ".v", "path without braces"),
        ("{{ ctx.a }} and $env.HOME", ".v", "path without braces"),
        ("{{ ctx.a", ".v", "is never closed"),
        ("{{ }}", ".v", "ends where a path or a value is due"),
        ("{{ raw }}", ".v", "'raw', which is no value"),
        ("{{ rows.0 }}", ".v", "begin a path with one of $ctx"),
        ("$ctx.a ??", ".v", "ends where a path or a value is due"),
        ("$ctx.a $ctx.b", ".v", "put '??' between them"),
        ("$ctx.a ?? ?? 5", ".v", "put a path or a value before it"),
        ("$ctx.a ?? EUR", ".v", "put a text in quotes"),
        ("$ctx.a ?? 'EUR", ".v", "where it means nothing"),
        ("$ctx.a ?? 5 ?? $ctx.b", ".v", "never gets to $ctx.b"),
        ("$ctx.a ?? [1]", ".v", "'[1]', which is no value"),
        ("$env.A.b", ".v", "goes on behind the name of a variable"),
        ("$joins.a", ".v", "names no parent"),
        ({"deep": [1, "$5.00"]}, ".v.deep[1]", "is no path"),
        ("$ctx." + "x" * MAX_TEXT, ".v", "10,000 is the most"),
    ],
)
def test_what_can_be_refused_is_refused_when_the_task_is_registered(given, where, problem):
    """A text that is none of the grammar is a ``ConfigError`` that says where; the task is not registered."""
    flow = Flow("inline")

    with pytest.raises(ConfigError) as refused:
        flow.add_task("take", plain, inputs={"v": given})

    assert refused.value.where == f"inputs of task take{where}"
    assert problem in refused.value.problem
    assert "take" not in flow.tasks


def test_r59_a_price_says_how_to_write_it():
    """``$5.00`` is no path, and the error tells the mend."""
    with pytest.raises(ConfigError, match=r"write '\$\$' for a dollar sign"):
        Flow().add_task("take", plain, inputs="$5.00")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (5, "The inputs of task take are a mapping of names to values, or one text"),
        (["$ctx.raw"], "are a mapping of names to values"),
        ({5: "$ctx.raw"}, "have names that are strings, and 5 is none"),
    ],
)
def test_inputs_that_are_neither_text_nor_mapping_are_refused(given, sentence):
    """Whatever else is given as ``inputs`` is a ``TypeError``."""
    with pytest.raises(TypeError, match=sentence):
        Flow().add_task("take", plain, inputs=given)


def test_no_inputs_are_none():
    """``inputs=None`` and ``outputs=None`` are the same as to leave them out."""
    with Flow("inline") as flow:
        flow.add_task("take", lambda v=3: v, inputs=None, outputs=None)
        assert flow.run() == {"take": 3}


# ---- waiting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["$ctx.late.x", "$payload.late.x", "see {{ ctx.late.x }}", ["$ctx.late.x"], "$ctx.no ?? $ctx.late.x"]
)
def test_a_path_waits_for_its_first_key(flow, take, text):
    """While something may still set the key, the task waits, and gives its place to what sets it."""
    flow.add_task("take", take, inputs={"v": text})
    flow.add_task("late", lambda: {"x": 5})

    value = flow.run(["take", "late"], timeout=WATCHDOG)["take"]

    assert value in (5, "see 5", [5])


def test_a_path_with_a_default_does_not_wait(flow, take):
    """A default is taken at once, even when the key comes a moment later."""

    def late(ctx):
        return ctx.get("take")  # which waits for the other one: each would wait for ever

    flow.add_task("take", take, inputs={"v": "$ctx.late ?? 'early'"})
    flow.add_task("late", late)

    assert flow.run(["take", "late"], timeout=WATCHDOG) == {"take": "early", "late": "early"}


def test_only_the_first_key_is_waited_for(flow, take):
    """A key that is there without what the path wants is an error at once, though it might still change."""

    def late(ctx):
        with pytest.raises(LookupError):
            ctx.get("take")

    flow.add_task("take", take, inputs={"v": "$ctx.data.x"})
    flow.add_task("late", late)

    error = failure(flow, ["take", "late"], context={"data": {}})

    assert "there is no 'x' in $ctx.data, an empty mapping" in str(error)


def test_who_waits_for_each_other_is_told(flow, take):
    """Two tasks that declare each other's outputs end with an error, and do not hang."""
    flow.add_task("one", take, inputs={"v": "$payload.two"})
    flow.add_task("two", take, inputs={"v": "$payload.one"})

    error = failure(flow, ["one", "two"])

    assert "one waits for 'two', two waits for 'one'" in str(error) or "two waits for 'one'" in str(error)
    assert isinstance(error, DeadlockError)
    assert flow.report().status is Status.FAILED


# ---- kinds of tasks ----------------------------------------------------------------------------------


def test_a_generator_gets_what_it_declares(flow):
    """A generator, plain or asynchronous, is filled before its first step."""

    def walk(v):
        yield from v
        return "end"

    flow.add_task("walk", walk, inputs={"v": "$ctx.user.tags"})
    flow.add_task("steps", steps, inputs={"v": "$ctx.raw"})

    chunks = [(chunk.task_id, chunk.value) for chunk in flow.stream("walk", context=CONTEXT)]
    assert chunks == [("walk", "x"), ("walk", ("y", "z")), ("walk", "end")]
    assert [chunk.value for chunk in flow.stream("steps", context=CONTEXT)][:2] == ["begun", "text"]


def test_an_async_generator_waits_and_is_closed(flow):
    """An asynchronous generator waits for its first key, and runs its end when the stream is left."""
    closed = threading.Event()

    async def walk(v):
        try:
            for _ in range(1000):
                yield v
        finally:
            closed.set()

    flow.add_task("walk", walk, inputs={"v": "$payload.late"})
    flow.add_task("late", lambda: 5)

    for chunk in flow.stream(["walk", "late"], buffer=1, timeout=WATCHDOG):
        if chunk.task_id == "walk":
            assert chunk.value == 5
            break
    assert closed.wait(WATCHDOG)


def test_a_retry_sees_the_original_inputs(flow):
    """Each attempt is filled anew, from what the task was asked with."""
    seen = []

    def take(n, rows):
        seen.append((n, list(rows)))
        rows.append("spoilt")
        if len(seen) < 3:
            raise OSError("again")
        return n

    flow.add_task("take", take, inputs={"n": "{{ inputs.n }}!", "rows": [1]}, retry=Retry(3, "none"))

    assert flow.run("take", {"n": "x"}) == {"take": "x!"}
    assert seen == [("x!", [1])] * 3


def test_a_retry_finds_what_is_there_by_then(flow):
    """An expression is looked up for each attempt."""

    def take(ctx, v):
        ctx["count"] = v + 1
        if v < 2:
            raise OSError("again")
        return v

    flow.add_task("take", take, inputs={"v": "$ctx.count ?? 0"}, retries=5)

    assert flow.run() == {"take": 2}


def test_inputs_of_a_task_for_each_item(flow):
    """Each item is called with the declared inputs beside itself and its place."""
    flow.add_task(
        "take",
        lambda item, index, factor, n: (index, item * factor, n),
        for_each="$ctx.rows",
        inputs={"factor": "$ctx.factor", "n": "$inputs.n"},
    )

    results = flow.run("take", {"n": 5}, context={"rows": [1, 2, 3], "factor": 10})

    assert results == {"take": [(0, 10, 5), (1, 20, 5), (2, 30, 5)]}


def test_inputs_of_a_coroutine_for_each_item(flow):
    """The same for coroutines, and for the output of a dependency."""

    async def take(payload, v):
        return payload, v

    flow.add_task("rows", lambda: ["a", "b"])
    flow.add_task("take", take, for_each="rows", inputs={"v": "$payload.rows.1"})

    assert flow.run(timeout=WATCHDOG) == {"take": [("a", "b"), ("b", "b")]}


@pytest.mark.parametrize("given", ["$ctx.raw", {"payload": 1}])
def test_the_payload_of_an_item_is_not_to_be_declared(given):
    """With for_each the payload is the item, so another one is refused."""
    with pytest.raises(ValueError, match="with for_each that is the item"):
        Flow().add_task("take", lambda payload: payload, for_each="$ctx.rows", inputs=given)


@pytest.mark.parametrize("executor", ["asyncio"], indirect=True)
def test_a_coroutine_that_is_mapped_waits_for_the_output_of_a_task(flow):
    """``for_each="$payload.task.rows"`` waits for its first key as ``$ctx.task.rows`` does."""

    async def take(item):
        return item

    async def late():
        return {"rows": [1, 2]}

    flow.add_task("take", take, for_each="$payload.late.rows")
    flow.add_task("late", late)

    assert flow.run(["take", "late"], timeout=WATCHDOG)["take"] == [1, 2]


@pytest.mark.parametrize("path", ["$nope.x", "$ctx", "$ctx.rows ?? []", "$5.00"])
def test_a_for_each_that_is_no_path_is_refused_when_the_task_is_registered(path):
    """What can be refused is refused early, as with inputs."""
    with pytest.raises(ConfigError, match="for_each of task take"):
        Flow().add_task("take", lambda item: item, for_each=path)


def test_in_a_worker_process(monkeypatch):
    """Declared inputs are looked up here, and travel to the process; outputs are written here."""
    monkeypatch.setenv("MILLSTREAM_TEST", "env of the parent")
    with Flow("process", max_workers=1) as flow:
        flow.add_task("square", process_tasks.square, inputs={"n": "$ctx.data.n"}, outputs="$ctx.data.square")
        flow.add_task(
            "listed", process_tasks.identity, inputs={"value": ["$joins.listed.square", "$env.MILLSTREAM_TEST"]}
        )
        flow.add_task("each", process_tasks.square_item, for_each="$ctx.data.rows", outputs="$ctx.data.squares")
        flow.add_task("fresh", process_tasks.spoil, inputs={"rows": ["$payload.square"]})
        flow.connect("square >> (listed & each & fresh)")

        results = flow.run(context={"data": {"n": 4, "rows": [1, 2]}}, timeout=60)

        assert results == {"listed": [16, "env of the parent"], "each": [1, 4], "fresh": [16, "spoilt"]}
        assert flow.context["data"] == {"n": 4, "rows": [1, 2], "square": 16, "squares": [1, 4]}


# ---- dependencies and checks -------------------------------------------------------------------------


def test_a_declared_input_is_no_dependency(flow):
    """A parameter that is declared is not inferred as a dependency, though it bears the name of a task."""
    flow.add_task("rows", lambda: "output")
    flow.add_task("other", lambda: "other")
    flow.add_task("take", lambda rows, other: (rows, other), inputs={"rows": "$ctx.raw"})

    assert flow.dependencies["take"] == ("other",)
    assert flow.run("take", {"other": 1}, context={"raw": "text"}) == {"take": ("text", 1)}


def test_a_path_makes_no_dependency(flow):
    """An expression says nothing about order: edges do."""
    flow.add_task("rows", lambda: 1)
    flow.add_task("take", plain, inputs={"v": "$payload.rows"})

    assert flow.dependencies == {"rows": (), "take": ()}


def test_a_declared_input_needs_nothing_else(flow):
    """What is declared is filled, as far as ``validate`` and a start are concerned; the rest is not."""
    flow.add_task("begin", lambda: None)
    flow.add_task("take", lambda v, w: (v, w), inputs={"v": 1}, depends_on=["begin"])

    with pytest.raises(ExceptionGroup) as found:
        flow.validate()

    assert [(error.task, error.parameter) for error in found.value.exceptions] == [("take", "w")]
    flow.add_task("take", lambda v, w: (v, w), inputs={"v": 1, "w": 2}, depends_on=["begin"], replace=True)
    flow.validate()


@pytest.mark.parametrize(
    "text", ["$payload.nope.x", "$joins.nope.x", "{{ payload.nope }}", ["$ctx.a ?? $payload.nope"]]
)
def test_validate_refuses_the_output_of_no_task(text):
    """``$payload`` and ``$joins`` of a task that the flow has not is told with what there is."""
    flow = Flow("inline")
    flow.add_task("take", plain, inputs={"v": text})

    with pytest.raises(ExceptionGroup) as found:
        flow.validate()

    (error,) = found.value.exceptions
    assert isinstance(error, TaskNotFoundError)
    assert str(error).startswith("Task nope not found.")


def test_validate_refuses_a_join_with_no_parent_of_that_name():
    """``$joins.task.parent`` needs an edge between the two; an index may be of a dynamic join."""
    flow = Flow("inline")
    flow.add_task("one", lambda: 1)
    flow.add_task(
        "take", plain, inputs={"v": ["$joins.take.one", "$joins.take.two", "$joins.take.0"]}, depends_on=["one"]
    )

    with pytest.raises(ExceptionGroup) as found:
        flow.validate()

    assert [str(error) for error in found.value.exceptions] == [
        "Task take has no value for its inputs: $joins.take.two: take depends on no two."
    ]


def test_a_task_may_read_one_that_is_registered_later():
    """Names are looked up by ``validate`` and by runs, so the order of registration does not matter."""
    with Flow("inline") as flow:
        flow.add_task("take", plain, inputs={"v": "$payload.later"}, depends_on=["later"])
        flow.add_task("later", lambda: 5)
        flow.validate()
        assert flow.run() == {"take": 5}


# ---- where outputs go --------------------------------------------------------------------------------


def put(flow, output, outputs, context=None, **options):
    """Run a task with outputs; return the context after that, without the task's own key."""
    flow.add_task("put", lambda: output, outputs=outputs, **options)
    assert flow.run("put", context=context, timeout=WATCHDOG) == {"put": output}
    values = flow.context.to_dict()
    assert values.pop("put") == output, "an output is stored under the name of its task, too"
    return values


@pytest.mark.parametrize(
    ("outputs", "before", "after"),
    [
        ("$ctx.rows", {}, {"rows": {"x": 5}}),
        ("$.rows", {"rows": "anything"}, {"rows": {"x": 5}}),
        ("$ctx.data.a.b", {"data": {"a": {"c": 1}, "d": 2}}, {"data": {"a": {"c": 1, "b": {"x": 5}}, "d": 2}}),
        ("$ctx.data.a", {"data": {"a": {"c": 1}}}, {"data": {"a": {"x": 5}}}),
        ("$ctx.0.1", {}, {"0": {"1": {"x": 5}}}),
        ({"x": "$ctx.data.x"}, {"data": {"y": 1}}, {"data": {"x": 5, "y": 1}}),
        ({"x": "$ctx.x"}, {"x": 1}, {"x": 5}),
    ],
)
def test_an_output_is_put_in_its_place(flow, outputs, before, after):
    """A write makes the mappings on the way, keeps what stands beside them, and replaces what stands there."""
    assert put(flow, {"x": 5}, outputs, before) == after


@on_inline
def test_a_place_may_have_spaces_around_it(flow):
    """As an expression in the inputs, and as the schema of the files says."""
    assert put(flow, 5, " $ctx.data.rows\n") == {"data": {"rows": 5}}


def test_an_output_of_several_parts(flow):
    """A mapping of keys to places takes the output apart; lists and tuples by index."""
    output = {"totals": {"Ada": 1}, "refused": [], "none": None}
    outputs = {"totals": "$ctx.data.totals", "refused": "$ctx.data.refused", "none": "$ctx.none"}
    assert put(flow, output, outputs) == {"data": {"totals": {"Ada": 1}, "refused": []}, "none": None}

    flow.add_task("pair", lambda: ("first", ["second"]), outputs={"0": "$ctx.a", "1": "$ctx.b"})
    flow.run("pair")
    assert (flow.context["a"], flow.context["b"]) == ("first", ["second"])


def test_a_place_may_be_inside_another(flow):
    """The parts are put one after the other, in the order in which they are given."""
    values = put(flow, {"x": {"old": 1}, "y": 2}, {"x": "$ctx.data", "y": "$ctx.data.new"})

    assert values == {"data": {"old": 1, "new": 2}}


def test_what_stood_there_is_not_changed_by_a_short_path(flow):
    """The same for a mapping that is written to directly."""
    old = {"c": 1}

    assert put(flow, 5, "$ctx.data.d", {"data": old}) == {"data": {"c": 1, "d": 5}}
    assert old == {"c": 1}


def test_what_stood_there_is_not_changed(flow):
    """A write makes new mappings on its way: whoever has got an old one keeps it as it was, and siblings are kept."""
    sibling = [object()]
    old = {"a": {"b": {"c": 1}}, "sibling": sibling}
    before = copy.deepcopy({"a": old["a"]})

    values = put(flow, 5, "$ctx.data.a.b.d", {"data": old})

    assert values["data"] == {"a": {"b": {"c": 1, "d": 5}}, "sibling": sibling}
    assert values["data"]["sibling"] is sibling
    assert {"a": old["a"]} == before
    assert values["data"] is not old


@pytest.mark.parametrize("kind", [MappingProxyType, lambda d: defaultdict(list, d)], ids=["proxy", "defaultdict"])
def test_any_mapping_may_stand_there(flow, kind):
    """Whatever is a Mapping is written into by making a new one, and a defaultdict makes nothing."""
    old = kind({"a": kind({})})

    assert put(flow, 5, "$ctx.data.a.b", {"data": old}) == {"data": {"a": {"b": 5}}}
    assert dict(old) == {"a": {}}


@pytest.mark.parametrize("there", [5, "text", None, [1], ("a",), object()])
@pytest.mark.parametrize("outputs", ["$ctx.data.x", {"ok": "$ctx.first", "x": "$ctx.data.x"}])
def test_r60_no_output_is_written_over_another_value(executor, there, outputs):
    """A place inside something that is no mapping fails the task, and nothing at all is written."""
    with Flow(executor, on_error="continue") as flow:
        flow.add_task("put", lambda: {"ok": 1, "x": 2}, outputs=outputs)

        assert flow.run("put", context={"data": there}, timeout=WATCHDOG) == {}

        assert flow.context.to_dict() == {"data": there}
        row = flow.report().tasks["put"]
        assert row.status is Status.FAILED
        assert row.error.type.endswith("ConfigError")
        assert "outputs of task put: $ctx.data.x cannot be written: $ctx.data is" in row.error.message
        assert row.error.message.endswith("and not a mapping.")


def test_r60_a_place_that_cannot_be_written_names_where_it_ends(flow):
    """The error names what stands in the way, and not what it holds."""
    flow.add_task("put", lambda: 1, outputs="$ctx.data.a.b.c")

    error = failure(flow, "put", context={"data": {"a": {"b": "secret"}}})

    assert isinstance(error, ConfigError)
    assert str(error) == (
        "outputs of task put: $ctx.data.a.b.c cannot be written: "
        "$ctx.data.a.b is a value of type str, and not a mapping."
    )


@pytest.mark.parametrize("output", [None, 5, "abc", {}, {"y": 1}, [1]])
def test_a_part_that_the_output_lacks_fails_the_task(flow, output):
    """A mapping of outputs wants each of its keys."""
    flow.add_task(
        "put", lambda: output, outputs={"y": "$ctx.y", "x": "$ctx.x"} if output == {"y": 1} else {"x": "$ctx.x"}
    )

    error = failure(flow, "put")

    assert isinstance(error, ConfigError)
    assert "outputs of task put: there is no 'x' in its output, " in str(error)
    assert "y" not in flow.context
    assert "x" not in flow.context


@pytest.mark.parametrize(
    ("outputs", "problem"),
    [
        ("data", "'data' is no path"),
        ("ctx.data", "is no path"),
        ("$data", "begins with '$data', which is unknown"),
        ("$ctx", "names nothing"),
        ("$ctx.a.", "empty part"),
        ("$ctx.a.__class__", "attributes of Python are out of reach"),
        ("$ctx.a ?? $ctx.b", "leave it out"),
        ("{{ $ctx.a }}", "is no path"),
        ("$inputs.a", "cannot be written to: begin it with $ctx"),
        ({}, "it is empty"),
        ({"a": 5}, "5 is no place to write to"),
        ({5: "$ctx.a"}, "5 is no key of an output"),
        (["$ctx.a"], "is no place to write to"),
        (5, "5 is no place to write to"),
    ],
)
def test_a_place_that_is_none_is_refused_when_the_task_is_registered(outputs, problem):
    """Outputs are paths of the context and nothing else."""
    with pytest.raises(ConfigError) as refused:
        Flow().add_task("put", lambda: 1, outputs=outputs)

    assert refused.value.where.startswith("outputs of task put")
    assert problem in refused.value.problem


@pytest.mark.parametrize("root", ["payload", "joins", "inputs", "env"])
def test_r60_no_output_writes_the_records_of_the_engine(root):
    """Only the context is written to; the other roots are refused."""
    with pytest.raises(ConfigError, match=r"cannot be written to: begin it with \$ctx"):
        Flow().add_task("put", lambda: 1, outputs=f"${root}.task" + (".parent" if root == "joins" else ""))


def test_r60_names_of_the_engine_are_names_like_any_other(flow):
    """A key that sounds like a record of the engine is a key of the context: the report is not touched."""
    values = put(flow, {"x": 5, "y": 0}, {"x": "$ctx.report.tasks.put.status", "y": "$ctx.joins.put"})

    assert values == {"report": {"tasks": {"put": {"status": 5}}}, "joins": {"put": 0}}
    assert flow.report().tasks["put"].status is Status.SUCCESS


@on_threads
def test_r60_concurrent_writers_to_one_mapping_lose_nothing(flow):
    """Each write is one step: a hundred tasks that write beside each other all find their place."""
    names = [f"put-{n}" for n in range(100)]
    for n, name in enumerate(names):
        flow.add_task(name, lambda n=n: n, outputs=f"$ctx.data.part{n % 3}.k{n}")
    flow.add_task(
        "beside", lambda ctx: [ctx.update("data", lambda d, i=i: {**d, f"b{i}": i}, default={}) for i in range(100)]
    )

    flow.run([*names, "beside"], timeout=WATCHDOG)

    data = flow.context["data"]
    found = {key: value for part in range(3) for key, value in data.pop(f"part{part}").items()}
    assert found == {f"k{n}": n for n in range(100)}
    assert data == {f"b{i}": i for i in range(100)}


def test_a_get_that_waits_is_woken(flow, take):
    """What waits for a key, by ``ctx.get`` or by a path, goes on when an output is put there."""
    flow.add_task("get", lambda ctx: ctx.get("data")["x"])
    flow.add_task("take", take, inputs={"v": "$ctx.data.x"})
    flow.add_task("put", lambda: 5, outputs="$ctx.data.x")

    results = flow.run(["get", "take", "put"], timeout=WATCHDOG)

    assert results == {"get": 5, "take": 5, "put": 5}


def test_the_output_is_there_for_what_comes_next(flow, take):
    """What depends on a task finds its outputs in their places."""
    flow.add_task("extract", lambda: [1, 2], outputs="$ctx.data.rows")
    flow.add_task("load", take, inputs={"v": "$ctx.data.rows"}, depends_on=["extract"])

    for _ in range(20):
        assert flow.run(timeout=WATCHDOG) == {"load": [1, 2]}


def test_the_output_of_a_task_for_each_item_is_the_whole_list(flow):
    """The list goes to its place once it is complete, also an empty one."""
    flow.add_task("each", lambda item: item * 2, for_each="$ctx.rows", outputs="$ctx.data.doubled")

    for rows in ([1, 2, 3], []):
        flow.run("each", context={"rows": rows}, timeout=WATCHDOG)
        assert flow.context["data"] == {"doubled": [2 * row for row in rows]}


@pytest.mark.parametrize("fail", [False, True])
def test_the_output_of_a_generator_is_what_it_returns(flow, fail):
    """What a generator yields goes to the stream, and what it returns to its place; nothing when it fails."""

    def walk():
        yield "step"
        if fail:
            raise OSError("no more")
        return {"end": 1}

    flow.add_task("walk", walk, outputs="$ctx.data.walk")

    if fail:
        assert isinstance(failure(flow, "walk"), OSError)
        assert "data" not in flow.context
    else:
        assert [chunk.value for chunk in flow.stream("walk")] == ["step", {"end": 1}]
        assert flow.context["data"] == {"walk": {"end": 1}}


def test_a_coroutine_and_a_router_have_outputs(flow):
    """The output of a router is what it returned, and it is written before what it chose begins."""

    async def choose():
        return {"b": {"x": 1}}

    flow.add_task("choose", choose, routes=["a", "b"], outputs={"b": "$ctx.data.choice"})
    flow.add_task("a", lambda: "a")
    flow.add_task("b", lambda payload, seen: (payload, seen), inputs={"seen": "$ctx.data.choice"})

    assert flow.run("choose", timeout=WATCHDOG) == {"b": ({"x": 1}, {"x": 1})}


def test_a_failed_attempt_writes_nothing(flow):
    """Only the attempt that succeeds has an output."""
    tries = []

    def flaky(ctx):
        tries.append(ctx.get("data", None))
        if len(tries) < 3:
            raise OSError("again")
        return len(tries)

    flow.add_task("flaky", flaky, outputs="$ctx.data.n", retries=3)
    flow.run("flaky")

    assert tries == [None, None, None]
    assert flow.context["data"] == {"n": 3}


# ---- durable runs ------------------------------------------------------------------------------------


def durable_flow(store, broken):
    """A flow with all that outputs can do; the task that ``broken`` names fails."""

    def check():
        if current_task().name in broken:
            raise OSError(f"{current_task().name} is broken")

    def extract():
        check()
        return {"rows": [1, 2, 3], "n": 3}

    def double(item):
        check()
        return item * 2

    def small():
        check()
        return "small"

    def large():
        check()
        return "large"

    def load(v):
        check()
        return v

    flow = Flow("inline", name="durable", store=store)
    flow.add_task("extract", extract, outputs={"rows": "$ctx.data.rows", "n": "$ctx.n"})
    flow.add_task("double", double, for_each="$ctx.data.rows", outputs="$ctx.data.doubled")
    flow.add_task("over", small, outputs="$ctx.data.size")
    flow.add_task("again", large, outputs="$ctx.data.size")
    flow.add_task("load", load, inputs={"v": ["$ctx.data.doubled", "$ctx.data.size", "$inputs.x ?? 0"]})
    flow.connect("extract >> double >> over >> again >> load")
    return flow


@pytest.mark.parametrize("broken", ["extract", "double", "over", "again", "load"])
def test_a_durable_run_goes_on_with_its_outputs(broken):
    """A run that was interrupted anywhere ends with the context and the results of one that was not."""
    with durable_flow(MemoryStore(), ()) as flow:
        whole = flow.run("extract", run_id="r"), flow.context.to_dict()
    assert whole[0] == {"load": [[2, 4, 6], "large", 0]}
    store, names = MemoryStore(), [broken]
    with durable_flow(store, names) as flow:
        assert isinstance(failure(flow, "extract", run_id="r"), OSError)
        names.clear()

        assert (flow.resume("r"), flow.context.to_dict()) == whole
    with durable_flow(store, ["extract", "double", "over", "again", "load"]) as flow:
        assert flow.resume("r") == whole[0], "nothing is called again"


def test_a_durable_failure_to_write_is_a_failure():
    """An output that cannot be written fails its task in a durable run, too, and nothing is written."""
    with Flow("inline", store=MemoryStore()) as flow:
        flow.add_task("put", lambda: 1, outputs="$ctx.data.x")

        assert isinstance(failure(flow, "put", context={"data": 5}, run_id="r"), ConfigError)
        assert flow.context.to_dict() == {"data": 5}


# ---- flows made of another one -----------------------------------------------------------------------


def declared_flow():
    flow = Flow("inline")
    flow.add_task("extract", lambda: [1], outputs="$ctx.data.rows")
    flow.add_task(
        "load", lambda payload: payload, inputs="$ctx.data.rows", depends_on=["extract"], outputs="$ctx.data.loaded"
    )
    flow.add_task("other", lambda: None)
    return flow


def test_override_keeps_inputs_and_outputs():
    """A task with another function, or a constant in its place, is filled from and written to the same places."""
    with declared_flow() as flow, flow.override(extract=[7, 8]) as other:
        assert other.run("extract") == {"load": [7, 8]}
        assert other.context["data"] == {"rows": [7, 8], "loaded": [7, 8]}
    with declared_flow() as flow, flow.override(load=lambda payload: sum(payload)) as other:
        assert other.run("extract") == {"load": 1}
        assert other.context["data"]["loaded"] == 1


def test_a_subgraph_keeps_inputs_and_outputs():
    """A part of a flow is filled and written as the whole was."""
    with declared_flow() as flow, flow.subgraph(["load"]) as part:
        assert set(part.tasks) == {"extract", "load"}
        assert (part.tasks["load"].inputs, part.tasks["load"].outputs) == ("$ctx.data.rows", "$ctx.data.loaded")
        assert part.run() == {"load": [1]}
        assert part.context["data"] == {"rows": [1], "loaded": [1]}


def test_a_task_object_has_inputs_and_outputs():
    """The options are attributes of a task, and go into any flow with it."""
    made = Task("take", plain, inputs={"v": "$ctx.raw"}, outputs="$ctx.taken")
    for _ in range(2):
        with Flow("inline") as flow:
            flow.add(made)
            assert flow.run(context=CONTEXT) == {"take": "text"}
            assert flow.context["taken"] == "text"


# ---- data is data ------------------------------------------------------------------------------------


NASTY = {
    "callable": "os.system",
    "fn": "eval",
    "type": "builtins.eval",
    "routes": ["other"],
    "routing_rule": "other",
    "next_tasks": ["other"],
    "depends_on": ["other"],
    "executor": "process",
    "for_each": "$ctx.secret",
    "retry": {"attempts": 9},
    "__class__": "Other",
    "__init__": {"__globals__": 1},
    "$ctx.secret": "$ctx.secret",
    "text": "{{ $env.HOME }} $$ $5.00 {{ ctx.secret",
}


@pytest.mark.parametrize("way", ["inputs", "payload", "context", "output", "router", "request"])
def test_r57_what_flows_through_is_only_data(flow, take, way):
    """Keys and texts that mean something in a declaration mean nothing in a value, whichever way it comes."""
    called = []
    flow.add_task("other", lambda: called.append("other"))
    flow.add_task(
        "take", take, inputs={"v": {"payload": "$payload.give", "router": "$inputs.payload"}.get(way, "$ctx.value")}
    )
    given = copy.deepcopy(NASTY)
    context = {"secret": "secret"}
    if way == "inputs":
        results = flow.run("take", {"value": given}, context=context)
    elif way == "context":
        results = flow.run("take", context={**context, "value": given})
    elif way == "payload":
        flow.add_task("give", lambda: given)
        flow.connect("give >> take")
        results = flow.run("give", context=context)
    elif way == "output":
        flow.add_task("give", lambda: given, outputs="$ctx.value")
        flow.connect("give >> take")
        results = flow.run("give", context=context)
    elif way == "router":
        flow.add_task("give", lambda: {"take": given}, routes=["take", "other"])
        results = flow.run("give", context=context)
    else:
        flow.add_task("give", lambda: NextTask("take", {"value": given}))
        flow.add_task("take", take, inputs={"v": "$inputs.value"}, replace=True)
        results = flow.run("give", context=context)

    assert results == {"take": NASTY}
    assert called == []
    assert given == NASTY


def test_r57_a_value_with_names_of_options_fills_parameters_of_these_names(flow):
    """Inputs called callable, routes or executor are parameters like any other."""

    def take(callable, routes, executor):
        return callable, routes, executor

    flow.add_task("take", take, inputs={"routes": "$inputs.routes"})

    results = flow.run("take", {"callable": "os.system", "routes": ["x"], "executor": "process"})

    assert results == {"take": ("os.system", ["x"], "process")}


def test_r57_an_output_may_go_to_a_key_of_any_name(flow):
    """The parts of a place are keys of mappings, whatever they sound like."""
    values = put(flow, {"callable": "os.system"}, {"callable": "$ctx.flow.tasks.put.callable"})

    assert values == {"flow": {"tasks": {"put": {"callable": "os.system"}}}}


FALSY = [None, 0, 0.0, False, "", b"", (), [], {}, set(), (1, 2), ("a", None), (None,), [("k", "v")], ((),)]


@pytest.mark.parametrize("value", FALSY, ids=repr)
def test_r27_values_arrive_as_they_were_returned(flow, take, value):
    """None is not replaced, a pair is not split, and nothing falsy is taken for nothing: along each way."""
    flow.add_task("give", lambda: value, outputs="$ctx.data.value")
    flow.add_task("payload", lambda payload: [payload])
    flow.add_task("declared", take, inputs={"v": ["$payload.give", "$ctx.data.value", "$joins.declared.give ?? 'no'"]})
    flow.add_task("alone", lambda payload: [payload], inputs="$payload.give ?? 'nothing'")
    flow.connect("give >> (payload & declared & alone)")

    results = flow.run("give", timeout=WATCHDOG)

    for arrived in [*results["payload"], *results["declared"], *results["alone"]]:
        assert arrived == value
        assert type(arrived) is type(value)
    assert len(results["declared"]) == 3


@pytest.mark.parametrize("value", FALSY, ids=repr)
def test_r27_a_payload_beside_a_choice_is_kept(flow, value):
    """What a router sends along is the payload of what it chose, also None, and also when inputs are declared."""
    flow.add_task("choose", lambda: {"take": value}, routes=["take"])
    flow.add_task("take", lambda payload, v: (payload, v), inputs={"v": "$inputs.payload"})

    ((payload, declared),) = flow.run("choose", timeout=WATCHDOG).values()

    assert payload == declared == value
    assert type(payload) is type(declared) is type(value)


# ---- expressions by themselves -----------------------------------------------------------------------


def found(value, context=CONTEXT, inputs=None):
    """Return what a value with expressions in it stands for."""

    def get(key, *default):
        if key in context:
            return context[key]
        if default:
            return default[0]
        raise ContextKeyError(key)

    return compile_value(value, "here").find(get, inputs)


def test_a_compiled_value_tells_what_it_reads():
    """All paths are listed; what it waits for are the keys without which it finds nothing."""
    value = compile_value(
        ["$ctx.a ?? $ctx.b", {"x": "{{ payload.c }} {{ ctx.d ?? 1 }} {{ env.HOME }}"}, 5, "$inputs.e"], "here"
    )

    assert [path.text for path in value.paths()] == [
        "$ctx.a",
        "$ctx.b",
        "$payload.c",
        "$ctx.d",
        "$env.HOME",
        "$inputs.e",
    ]
    assert [*value.awaited(lambda key, default: default, None)] == ["b", "c"]
    assert [*value.awaited(lambda key, default: {"a": 1}.get(key, default), None)] == ["c"]


def test_a_chain_asks_from_left_to_right_and_no_further():
    """What stands behind the first that leads somewhere is not even looked at."""
    asked = []

    def get(key, *default):
        asked.append(key)
        if key in CONTEXT:
            return CONTEXT[key]
        return default[0]

    compile_text("$ctx.nope ?? $ctx.raw ?? $ctx.zero", "here").find(get, None)

    assert asked == ["nope", "raw"]


def test_only_a_lookup_that_fails_goes_on():
    """An error that is no ``LookupError`` is no reason to take the default."""

    def get(key, *default):
        raise OSError("the context is on fire")

    with pytest.raises(OSError, match="on fire"):
        compile_text("$ctx.a ?? 5", "here").find(get, None)


def test_nothing_is_evaluated():
    """No text is code: not in braces, not as a format, not by its operators."""
    for text in (
        "{{ 1 + 1 }}",
        "{{ ctx.raw.upper() }}",
        "{{ __import__('os') }}",
        "$ctx.raw.upper()",
        "{{ ctx['raw'] }}",
    ):
        with pytest.raises(ConfigError):
            compile_text(text, "here")
    assert found("{0.__class__} %s %(raw)s ${raw} `id` $(id)") == "{0.__class__} %s %(raw)s ${raw} `id` $(id)"
    assert os.environ.get("MILLSTREAM_UNSET") is None


def test_values_may_be_nested_as_deep_as_it_says():
    """There is a limit to lists and mappings in each other, and a value that has itself in it meets it."""
    deep = "$ctx.raw"
    for _ in range(MAX_DEPTH):
        deep = [deep]
    value = found(deep)
    for _ in range(MAX_DEPTH):
        (value,) = value
    assert value == "text"
    with pytest.raises(ConfigError, match=f"more than {MAX_DEPTH} deep"):
        compile_value([deep], "here")
    circle = {}
    circle["self"] = circle
    with pytest.raises(ConfigError, match="deep"):
        compile_value(circle, "here")


@pytest.mark.parametrize("text", ["01", "True", "None", "1_000", "0x10", "'a' 'b'", "[1, 2]"])
def test_a_value_behind_a_chain_is_one_of_the_grammar(text):
    """Numbers, true, false, null, texts in quotes, [] and {}: whatever Python takes beside that is refused."""
    with pytest.raises(ConfigError):
        compile_text(f"$ctx.a ?? {text}", "here")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_behind_a_chain_is_one(text):
    """``NaN`` and ``Infinity`` are words without a meaning, as ``nan`` is."""
    with pytest.raises(ConfigError):
        compile_text(f"$ctx.a ?? {text}", "here")


def test_an_expression_has_a_limit_and_a_text_has_none():
    """Characters are counted for each expression; a long text with short expressions is fine."""
    long = "x" * 10 * MAX_TEXT
    assert found(f"{long}{{{{ ctx.zero }}}}{long}") == f"{long}0{long}"
    for text in (f"$ctx.a ?? '{long}'", f"{{{{ ctx.a ?? '{long}' }}}}"):
        with pytest.raises(ConfigError, match="10,000 is the most") as refused:
            compile_text(text, "here")
        assert len(str(refused.value)) < 300


def test_a_target_makes_a_new_value():
    """``put`` returns what stands under the key afterwards."""
    target = Target("$ctx.a.b", "here")
    old = {"c": 1}

    assert target.put(old, 5) == {"c": 1, "b": 5}
    assert old == {"c": 1}
    assert Target("$ctx.a", "here").put("anything", 5) == 5
    with pytest.raises(LookupError, match="a list of 0, and not a mapping"):
        target.put([], 5)


def test_outputs_tell_their_keys_and_change_nothing_themselves():
    """``written`` gives the keys that change, with their new values; two places under one key are one change."""
    outputs = Outputs({"x": "$ctx.data.x", "y": "$ctx.data.y", "z": "$ctx.z"}, "here")
    values = {"data": {"old": 0}, "other": 1}

    assert outputs.written(values, {"x": 1, "y": 2, "z": 3}) == {"data": {"old": 0, "x": 1, "y": 2}, "z": 3}
    assert values == {"data": {"old": 0}, "other": 1}
