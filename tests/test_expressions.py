"""Paths: what they find in a run, what they say when they lead nowhere, and what they never do."""

from __future__ import annotations

import pickle
from collections import ChainMap, OrderedDict, UserDict, defaultdict, deque, namedtuple
from types import MappingProxyType, SimpleNamespace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from millstream.config.expressions import MAX_TEXT, Path, compile_path
from millstream.errors import ConfigError, ContextKeyError

checked = settings(max_examples=200, deadline=None, derandomize=True, database=None)

CONTEXT = {
    "user": {"name": "Ada", "first-name": "Augusta", "0": "zero", "größe": 2, "none": None, "a/b": 3},
    "rows": [{"id": 7}, {"id": 8}, ("x", ["y"])],
    "raw": "text",
    "0": "the key 0",
}


def find(text, inputs=None, context=CONTEXT):
    """Return what a path finds, where a context is a plain mapping."""

    def get(key):
        if key not in context:
            raise ContextKeyError(key)
        return context[key]

    return compile_path(text, "task load").find(get, inputs)


# ---- what is found -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("$ctx.raw", "text"),
        ("$.raw", "text"),
        ("$ctx.user", CONTEXT["user"]),
        ("$ctx.user.name", "Ada"),
        ("$.user.name", "Ada"),
        ("$ctx.user.first-name", "Augusta"),
        ("$ctx.user.größe", 2),
        ("$ctx.user.a/b", 3),
        ("$ctx.user.none", None),
        ("$ctx.user.0", "zero"),
        ("$ctx.0", "the key 0"),
        ("$ctx.rows", CONTEXT["rows"]),
        ("$ctx.rows.0", {"id": 7}),
        ("$ctx.rows.1.id", 8),
        ("$ctx.rows.01.id", 8),
        ("$ctx.rows.2.1.0", "y"),
    ],
)
def test_a_path_goes_through_mappings_and_lists(text, found):
    """The first part is a key of the context; the rest are keys of mappings and indexes of lists and tuples."""
    assert find(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [("$inputs.n", 3), ("$inputs.order.lines.1", "b"), ("$inputs.0", "zero")],
)
def test_inputs_are_what_the_task_was_asked_with(text, found):
    """``$inputs`` begins at the inputs, and does not ask the context."""

    def get(key):
        raise AssertionError("no business of the context")

    inputs = {"n": 3, "order": {"lines": ["a", "b"]}, "0": "zero"}

    assert compile_path(text, "task load").find(get, inputs) == found


@pytest.mark.parametrize(
    "kind", [dict, OrderedDict, UserDict, ChainMap, MappingProxyType, lambda d: defaultdict(int, d)]
)
def test_any_mapping_is_one(kind):
    """Whatever is a Mapping is looked up by key."""
    assert find("$ctx.a.b.c", context={"a": kind({"b": kind({"c": 1})})}) == 1


def test_a_value_comes_as_it_is():
    """What is found is the object itself, not a copy, and only the key is asked for."""
    value, asked = [object()], []

    def get(key):
        asked.append(key)
        return {"deep": value}

    assert compile_path("$ctx.a.deep", "here").find(get, None) is value
    assert asked == ["a"]


def test_a_path_tells_what_it_is():
    """A path has its text, root, key and parts, and can be pickled."""
    path = compile_path("$.rows.0.id", "here")

    assert isinstance(path, Path)
    assert (path.text, path.root, path.key, path.parts) == ("$.rows.0.id", "ctx", "rows", ("0", "id"))
    assert repr(path) == "<Path $.rows.0.id>"
    again = pickle.loads(pickle.dumps(path))
    assert (again.text, again.root, again.key, again.parts) == (path.text, path.root, path.key, path.parts)
    assert compile_path("$inputs.x", "here").root == "inputs"


# ---- what leads nowhere ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "inputs", "sentence"),
    [
        (
            "$ctx.user.nmae.x",
            None,
            "$ctx.user.nmae.x leads nowhere: there is no 'nmae' in $ctx.user, a mapping with the keys "
            "'name', 'first-name', '0', 'größe', 'none', 'a/b'.",
        ),
        ("$.rows.3", None, "$.rows.3 leads nowhere: there is no '3' in $ctx.rows, a list of 3."),
        ("$ctx.rows.-1", None, "$ctx.rows.-1 leads nowhere: there is no '-1' in $ctx.rows, a list of 3."),
        ("$ctx.rows.first", None, "$ctx.rows.first leads nowhere: there is no 'first' in $ctx.rows, a list of 3."),
        ("$ctx.rows.2.2", None, "$ctx.rows.2.2 leads nowhere: there is no '2' in $ctx.rows.2, a tuple of 2."),
        ("$ctx.rows.²", None, "$ctx.rows.² leads nowhere: there is no '²' in $ctx.rows, a list of 3."),
        ("$ctx.raw.0", None, "$ctx.raw.0 leads nowhere: there is no '0' in $ctx.raw, a value of type str."),
        (
            "$ctx.user.none.x",
            None,
            "$ctx.user.none.x leads nowhere: there is no 'x' in $ctx.user.none, a value of type NoneType.",
        ),
        ("$inputs.x", None, "$inputs.x leads nowhere: there is no 'x' in $inputs, an empty mapping."),
        ("$inputs.x", {}, "$inputs.x leads nowhere: there is no 'x' in $inputs, an empty mapping."),
        ("$inputs.x", {"y": 1}, "$inputs.x leads nowhere: there is no 'x' in $inputs, a mapping with the keys 'y'."),
        ("$inputs.y.z", {"y": [1]}, "$inputs.y.z leads nowhere: there is no 'z' in $inputs.y, a list of 1."),
    ],
)
def test_a_path_that_leads_nowhere_says_where_it_broke_off(text, inputs, sentence):
    """The error names the path, the part that is missing, and what was there."""
    with pytest.raises(LookupError) as missing:
        find(text, inputs)

    assert str(missing.value) == sentence


def test_a_missing_key_of_the_context_is_the_error_of_the_context():
    """What the context raises for a key comes through as it is, and it is a ``LookupError``."""
    with pytest.raises(ContextKeyError, match="Key nope not found in context") as missing:
        find("$ctx.nope.x")

    assert isinstance(missing.value, LookupError)


def test_an_error_lists_20_keys_and_no_value():
    """A wide mapping is listed in part; no value is shown, since it may be a secret."""
    wide = {f"k{number}": "secret" for number in range(1234)}

    with pytest.raises(LookupError) as missing:
        find("$ctx.wide.x", context={"wide": wide})

    assert "'k0', 'k1'," in str(missing.value)
    assert str(missing.value).endswith("'k18', 'k19' and 1,214 more.")
    assert "secret" not in str(missing.value)


def test_an_error_of_a_long_path_is_short():
    """However long a path, its parts and the keys are, the error can be read."""
    with pytest.raises(LookupError) as missing:
        find("$ctx.a." + "x" * 5000, context={"a": {"y" * 5000: 1, 7: 2, (1, 2): 3}})

    assert len(str(missing.value)) < 400
    assert "7, (1, 2)" in str(missing.value)


# ---- what never happens ------------------------------------------------------------------------------


class Loud:
    """An object each of whose attributes, items and calls is an error."""

    def __getattr__(self, name):
        raise AssertionError(f"{name} was asked for")

    def __getitem__(self, key):
        raise AssertionError(f"[{key}] was asked for")

    def __call__(self):
        raise AssertionError("it was called")


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "value",
    [pytest.param(Loud(), id="loud"), SimpleNamespace(x=1), Point(1, 2), str, "x", b"x", deque([1]), range(3), {1}],
)
def test_no_attribute_is_read(value):
    """Only mappings, lists and tuples are entered, and no part of a path is an attribute."""
    for part in ("x", "format", "items"):
        with pytest.raises(LookupError, match="leads nowhere"):
            find(f"$ctx.value.{part}", context={"value": value})


@pytest.mark.parametrize("value", [pytest.param(Loud(), id="loud"), "xyz", b"xyz", deque([1, 2]), range(3)])
def test_only_lists_and_tuples_have_indexes(value):
    """Text and other sequences are values, not ways on."""
    with pytest.raises(LookupError, match="there is no '0'"):
        find("$ctx.value.0", context={"value": value})
    assert find("$ctx.value.1", context={"value": Point(1, 2)}) == 2


def test_methods_of_a_mapping_are_out_of_reach():
    """A part is a key of a mapping even where the mapping has a method of that name."""
    assert find("$ctx.a.items", context={"a": {"items": 3}}) == 3
    with pytest.raises(LookupError, match="there is no 'items'"):
        find("$ctx.a.items", context={"a": {}})


def test_a_lookup_makes_nothing():
    """A mapping that makes what it does not have is not made to."""
    made = defaultdict(dict)

    with pytest.raises(LookupError):
        find("$ctx.made.x", context={"made": made})

    assert made == {}


def test_a_number_that_is_too_long_to_be_an_index_is_missing():
    """Digits beyond what Python reads as a number are a part like any other."""
    digits = "9" * 6000

    with pytest.raises(LookupError, match="a list of 3"):
        find(f"$ctx.rows.{digits}")
    assert find(f"$ctx.a.{digits}", context={"a": {digits: 1}}) == 1


# ---- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' is no path: begin it with one of $ctx (or $ alone), $payload, $joins, $inputs and $env."),
        ("ctx.a", "'ctx.a' is no path: begin it with one of $ctx"),
        (" $ctx.a", "' $ctx.a' is no path"),
        ("$foo.x", "'$foo.x' begins with '$foo', which is unknown: there are $ctx (or $ alone), $payload, $joins,"),
        ("$foo", "begins with '$foo', which is unknown"),
        ("$ctxa.b", "begins with '$ctxa', which is unknown"),
        ("$CTX.b", "begins with '$CTX', which is unknown"),
        ("$$.b", "begins with '$$', which is unknown"),
        ("$ctx[a]", "begins with '$ctx[a]', which is unknown"),
        ("$", "'$' names nothing: write what to look up, as in '$.name'."),
        ("$ctx", "'$ctx' names nothing: write what to look up, as in '$ctx.name'."),
        ("$inputs", "'$inputs' names nothing: write what to look up, as in '$inputs.name'."),
        ("$.", "'$.' has an empty part"),
        ("$ctx.", "'$ctx.' has an empty part"),
        ("$ctx..a", "'$ctx..a' has an empty part: write something between the dots."),
        ("$inputs.a..b", "has an empty part"),
        ("$ctx.a.", "has an empty part"),
        ("$ctx.__class__", "has the part '__class__': attributes of Python are out of reach."),
        ("$ctx.a.__init__.__globals__", "has the part '__init__'"),
        ("$.a.____", "has the part '____'"),
        ("$inputs.__", "has the part '__'"),
        ("$ctx.a[0]", "has '[' in its part 'a[0]': an index is written '.0'."),
        ("$ctx.a b", "has ' ' in its part 'a b': leave it out."),
        ("$ctx.a\n", "has '\\n' in its part 'a\\n': leave it out."),
        ("$ctx.a()", "has '(' in its part 'a()'"),
        ("$ctx.a ?? 1", "has ' ' in its part"),
        ("$ctx.a??1", "has '?' in its part"),
        ("$ctx.a.$b", "has '$' in its part"),
        ("$ctx.a}}", "has '}' in its part"),
        ("$ctx.'a'", 'has "\'" in its part'),
    ],
)
def test_what_is_no_path_is_refused_when_it_is_compiled(text, problem):
    """A text that is no path says so where it is written, with the mend."""
    with pytest.raises(ConfigError) as refused:
        compile_path(text, "flow.yaml: tasks.load.inputs")

    assert problem in refused.value.problem
    assert str(refused.value).startswith("flow.yaml: tasks.load.inputs: ")
    assert str(refused.value).endswith(".")


def test_names_that_only_begin_or_end_like_pythons_own_are_allowed():
    """Only a part with two underscores on both sides is refused."""
    context = {"a": {"__x": 1, "x__": 2, "_": 3}}

    assert [find(f"$ctx.a.{part}", context=context) for part in context["a"]] == [1, 2, 3]


def test_a_path_has_a_greatest_length():
    """A path of the greatest length is followed to its end; a longer one is refused."""
    depth = (MAX_TEXT - len("$ctx")) // 2
    value = "the end"
    for _ in range(depth - 1):
        value = [value]
    text = "$.a" + ".0" * (depth - 1)

    assert find(text, context={"a": value}) == "the end"
    with pytest.raises(ConfigError, match="has 10,001 characters: 10,000 is the most"):
        compile_path("$ctx." + "a" * (MAX_TEXT - 4), "here")
    assert compile_path("$ctx." + "a" * (MAX_TEXT - 5), "here").root == "ctx"


# ---- any data ----------------------------------------------------------------------------------------

keys = st.text("abcé019_-/:@", min_size=1, max_size=4).filter(lambda key: not (key[:2] == "__" == key[-2:]))
data = st.recursive(
    st.integers() | st.none() | st.text(max_size=3),
    lambda inner: (
        st.dictionaries(keys, inner, max_size=4) | st.lists(inner, max_size=4) | st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=20,
)


def places(value, way=()):
    """Yield every value inside a value, with the parts that lead there."""
    yield way, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in items:
        yield from places(inner, (*way, str(key)))


@checked
@given(value=data)
def test_every_place_in_any_data_has_its_path(value):
    """Each value in nested data is found by the path of its keys and indexes, from either root."""
    for way, inner in places(value):
        assert find(".".join(("$ctx.k", *way)), context={"k": value}) is inner
        assert find(".".join(("$inputs.k", *way)), {"k": value}) is inner


@checked
@given(value=data, way=st.lists(keys, max_size=4))
def test_any_way_through_any_data_is_found_or_missing(value, way):
    """A path either finds a value that is there, or raises ``LookupError``, and never changes the data."""
    before = repr(value)
    known = dict(places(value))
    text = ".".join(("$ctx.k", *way))
    try:
        found = find(text, context={"k": value})
    except LookupError:
        assert tuple(way) not in known
    else:
        # An index may have zeros in front; otherwise the way is one of those.
        assert any(found is inner for inner in known.values())
    assert repr(value) == before


@checked
@given(text=st.text("$.ctxinpus_[]{}?0 a\n") | st.text().map(lambda text: f"$ctx.{text}"))
def test_any_text_is_a_path_or_refused(text):
    """No text raises anything but ``ConfigError`` when it is compiled."""
    try:
        path = compile_path(text, "here")
    except ConfigError:
        return
    assert path.text == text
    assert path.root in ("ctx", "inputs")
    assert path.key
