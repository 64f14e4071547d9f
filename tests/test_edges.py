"""The grammar of edges: what every form of text means, and what is said of a text that means nothing."""

from __future__ import annotations

import itertools
import pickle
import random
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from millstream.config import edges as grammar
from millstream.config.edges import Edge, edges_of, names, parse
from millstream.errors import ConfigError, FlowError

checked = settings(max_examples=300, deadline=None, derandomize=True, database=None)


def said(edges: list[Edge]) -> str:
    """Return edges in short: ``A>B`` for a dependency, ``A?B`` for a route."""
    return " ".join(f"{edge.source}{'?' if edge.route else '>'}{edge.target}" for edge in edges)


# ---- what a text means ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("A", ""),
        ("A & B", ""),
        ("((A))", ""),
        ("A >> B", "A>B"),
        ("A>>B", "A>B"),
        (" \tA\n>>\n  B ", "A>B"),
        ("A >> A", "A>A"),
        ("A >> B >> C", "A>B B>C"),
        ("(A & B) >> C", "A>C B>C"),
        ("A & B >> C", "A>C B>C"),
        ("A >> (B & C)", "A>B A>C"),
        ("A >> B & C", "A>B A>C"),
        ("A >> B & C >> D", "A>B A>C B>D C>D"),
        ("(A & B) >> (C & D)", "A>C A>D B>C B>D"),
        ("A & B & C >> D", "A>D B>D C>D"),
    ],
)
def test_dependencies(text, meant):
    """``>>`` makes an edge from every tail before it to every head behind it, and binds weakest."""
    assert said(parse(text)) == meant


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("A >> (B | C)", "A?B A?C"),
        ("A >> B | C", "A?B A?C"),
        ("A >> B | C | D", "A?B A?C A?D"),
        ("A >> (B | C) >> D", "A?B A?C B>D C>D"),
        ("(A & B) >> (C | D)", "A?C A?D B?C B?D"),
        ("A >> (B | C) >> (D | E)", "A?B A?C B?D B?E C?D C?E"),
        ("A >> ((B & C) | D)", "A?B A?C A?D"),
        ("A >> ((B | C) & D)", "A?B A?C A>D"),
        ("A >> (D & (B | C))", "A>D A?B A?C"),
        ("A >> ((B >> C) | D) >> E", "B>C A?B A?D C>E D>E"),
        ("A >> ((B | C) >> D)", "B>D C>D A?B A?C"),
        ("X >> (A >> (B | C))", "A?B A?C X>A"),
        ("A >> A | B", "A?A A?B"),
    ],
)
def test_routes(text, meant):
    """The heads of a group with ``|`` are routes of what stands before it, and only its heads."""
    assert said(parse(text)) == meant


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("A >> (B >> C) >> D", "B>C A>B C>D"),
        ("(A >> B) >> C", "A>B B>C"),
        ("((A) >> (((B))))", "A>B"),
        ("A >> ((B >> C) & D) >> E", "B>C A>B A>D C>E D>E"),
        ("A >> (B >> C & D) >> E", "B>C B>D A>B C>E D>E"),
        ("((A >> B) & C) >> D", "A>B B>D C>D"),
        ("(A & (B & (C & D))) >> E", "A>E B>E C>E D>E"),
    ],
)
def test_a_chain_in_brackets_is_entered_at_its_heads_and_left_at_its_tails(text, meant):
    """A bracketed chain has heads and tails of its own; its inner edges come first."""
    assert said(parse(text)) == meant


def test_an_edge_is_a_plain_value():
    """An edge can be compared, taken apart and pickled."""
    (edge,) = parse("A >> B")

    assert edge == Edge("A", "B", False) == ("A", "B", False)
    assert Edge(source="A", target="B", route=True).route is True
    assert pickle.loads(pickle.dumps(edge)) == edge


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("A & A >> B", "A>B"),
        ("A >> B >> (A >> B)", "A>B B>A"),
        ("A >> (B & B)", "A>B"),
        ("A >> (B | B)", "A?B"),
        ("A >> (B | C) >> A >> (C | B)", "A?B A?C B>A C>A"),
    ],
)
def test_an_edge_said_twice_is_one_edge(text, meant):
    """Identical edges come out once, at the place of the first."""
    assert said(parse(text)) == meant


# ---- names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("load-it.v2 >> _x1", ["load-it.v2", "_x1"]),
        ("7 >> 007", ["7", "007"]),
        ("größe >> 数据 >> Ω", ["größe", "数据", "Ω"]),
        ("a- >> -b >> - >> ..", ["a-", "-b", "-", ".."]),
        ("a--b>>c", ["a--b", "c"]),
        ("\"send mail\" >> 'it is'", ["send mail", "it is"]),
        (r"""'it\'s' >> "say \"hi\"" """, ["it's", 'say "hi"']),
        (r"""'a "b" c' >> "it's" """, ['a "b" c', "it's"]),
        (r"""'C:\\' >> "\'" """, ["C:\\", "'"]),
        ('"A >> (B & C)" >> "|"', ["A >> (B & C)", "|"]),
        ('">>" >> "("', [">>", "("]),
        ('"a\nb" >> c', ["a\nb", "c"]),
        ('"A">>A', ["A"]),
        ("'->' >> a", ["->", "a"]),
    ],
)
def test_names(text, expected):
    """A name is letters, digits, ``_ - .``, or anything in quotes; quoted and bare it is the same name."""
    assert names(text) == expected
    assert [edge[:2] for edge in parse(text)] == list(itertools.pairwise(expected)) or [("A", "A")]


def test_names_come_in_the_order_of_their_first_appearance():
    """Every name in a text is listed once, in the order of reading, with or without edges."""
    assert names("A") == ["A"]
    assert names("C & A") == ["C", "A"]
    assert names("C >> (B | A) >> C >> D") == ["C", "B", "A", "D"]


# ---- what is refused ---------------------------------------------------------------------------------

REFUSED = [
    ("", "the text is empty: name tasks"),
    (" \n\t ", "the text is empty: name tasks"),
    # other ways to write an edge
    ("A->B", "'->' at column 2 means nothing in edges: write '>>'"),
    ("A -> B", "'->' at column 3 means nothing in edges: write '>>'"),
    ("A --> B", "'-->' at column 3 means nothing in edges: write '>>'"),
    ("A-->B", "'-->' at column 2 means nothing in edges: write '>>'"),
    ("A => B", "'=>' at column 3 means nothing in edges: write '>>'"),
    ("A > B", "'>' at column 3 means nothing in edges: write '>>'"),
    ("A >>> B", "'>>>' at column 3 means nothing in edges: write '>>'"),
    ("A->>B", "'->>' at column 2 means nothing in edges: write '>>'"),
    ("A → B", "'→' at column 3 means nothing in edges: write '>>'"),
    ("A << B", "'<<' at column 3 means nothing in edges: turn the edge round"),
    ("A <- B", "'<-' at column 3 means nothing in edges: turn the edge round"),
    ("A && B", "'&&' at column 3 means nothing in edges: write '&'"),
    ("A >> B || C", "'||' at column 8 means nothing in edges: write '|'"),
    ("A >> B, C", "',' at column 7 means nothing in edges: write '&', or '|'"),
    ("A >> [B, C]", "'[' at column 6 means nothing in edges: write '('"),
    ("A >> B; C >> D", "';' at column 7 means nothing in edges: give a list of texts"),
    # names
    ("A >> b!", "'!' at column 7 means nothing in edges: put names with other signs"),
    ("A >> b/c", "'/' at column 7 means nothing in edges: put names with other signs"),
    ("A >> b\u200bc", "'\\u200b' at column 7 means nothing in edges: put names"),
    ("A >> \\'b", "'\\\\' at column 6 means nothing in edges: put names"),
    ("A >> 'b", '"\'" at column 6 opens a quoted name that never ends'),
    ("A >> \"b' >> C", "'\"' at column 6 opens a quoted name that never ends"),
    ("A >> 'b\\'", '"\'" at column 6 opens a quoted name that never ends'),
    ("A >> ''", "\"''\" at column 6 is an empty name"),
    (r'A >> "b\n"', "at column 6 has a backslash before 'n': write two"),
    (r'A >> "b\\\c"', "at column 6 has a backslash before 'c': write two"),
    # places
    ("A B", "'B' at column 3 follows 'A': put '>>', '&' or '|' between them"),
    ("A >> B\nC >> D", "'C' at column 8 follows 'B': put '>>', '&' or '|' between them, or give a list of texts"),
    ("'A''B'", "at column 4 follows \"'A'\": put"),
    ("A (B)", "'(' at column 3 follows 'A': put"),
    ("(A) B", "'B' at column 5 follows ')': put"),
    ("(A)(B)", "'(' at column 4 follows ')': put"),
    (">> A", "'>>' at column 1 stands where a name is due"),
    ("A >> >> B", "'>>' at column 6 stands where a name is due"),
    ("A & | B", "'|' at column 5 stands where a name is due"),
    ("& A", "'&' at column 1 stands where a name is due"),
    ("()", "')' at column 2 stands where a name is due"),
    ("A >> (B &)", "')' at column 10 stands where a name is due"),
    ("A >>", "'>>' at column 3 is the end, and a name is due"),
    ("A & ", "'&' at column 3 is the end, and a name is due"),
    ("A >> (", "'(' at column 6 is the end, and a name is due"),
    ("A >> (B", "'(' at column 6 is never closed"),
    ("(A >> (B)", "'(' at column 1 is never closed"),
    ("A)", "')' at column 2 closes no bracket"),
    (")", "')' at column 1 stands where a name is due"),
    ("(A >> B)) >> C", "')' at column 9 closes no bracket"),
    # groups
    ("X >> A & B | C", "'|' at column 12 is mixed with '&': put brackets"),
    ("X >> A | B & C", "'&' at column 12 is mixed with '|': put brackets"),
    ("A & B | C", "'|' at column 7 is mixed with '&': put brackets"),
    ("A | B", "'|' at column 3 is a choice, and nobody chooses"),
    ("(A | B) >> C", "'|' at column 4 is a choice, and nobody chooses"),
    ("((A | B) >> C) >> D", "'|' at column 5 is a choice, and nobody chooses"),
    ("(X & (A | B)) >> C", "'|' at column 9 is a choice, and nobody chooses"),
    # both kinds of one edge
    ("A >> (B & (B | C))", "')' at column 17 makes 'B' both a dependency and a route"),
    ("A >> ((B | C) & B)", "'B' at column 17 makes 'B' both a dependency and a route"),
    (
        "A >> B >> A >> (B | C)",
        "'>>' at column 13 cannot be kept, since the edge from 'A' to 'B' is both a dependency and a route",
    ),
    (
        "A >> (B | C) >> A >> B",
        "'>>' at column 19 cannot be kept, since the edge from 'A' to 'B' is both a dependency and a route",
    ),
]


@pytest.mark.parametrize(("text", "problem"), REFUSED)
def test_what_means_nothing_is_refused_with_its_place_and_the_mend(text, problem):
    """A text that cannot be used says which word, at which column, and what to write, in one sentence."""
    with pytest.raises(ConfigError) as refused:
        parse(text)

    assert problem in refused.value.problem
    assert str(refused.value) == f"edges {text!r}: {refused.value.problem}"
    assert refused.value.problem.endswith(".")
    assert isinstance(refused.value, FlowError)
    with pytest.raises(ConfigError):
        names(text)


def test_an_error_shows_a_long_text_and_a_long_word_in_short():
    """However long the text is, its error stays short: 60 characters of where, and the ends of the word."""
    with pytest.raises(ConfigError) as refused:
        parse(f"{'load' * 1000} {'save' * 1000}")

    assert refused.value.where.startswith("edges 'loadload")
    assert refused.value.where.endswith("loadl...'")
    assert len(refused.value.where) == 60
    assert "at column 4002 follows" in refused.value.problem
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize("text", ["\n" * 50 + "A >", "'" * 70, '"' * 31, "A > " * 30, "'\\\\' ! " + "b" * 60])
def test_where_has_at_most_60_characters(text):
    """Whatever signs a text has, what names it in an error is no longer than 60 characters."""
    with pytest.raises(ConfigError) as refused:
        parse(text)

    assert len(refused.value.where) <= 60


# ---- lists and pairs ---------------------------------------------------------------------------------


def test_edges_of_a_text_are_those_of_the_text():
    """One text may stand for a list of one."""
    assert edges_of("A >> (B | C)") == parse("A >> (B | C)") == edges_of(["A >> (B | C)"])


@pytest.mark.parametrize(
    ("edges", "meant"),
    [
        ([], ""),
        (["A"], ""),
        (["A >> B", "B >> C", "A >> B"], "A>B B>C"),
        ([("A", "B"), ["B", "C"]], "A>B B>C"),
        (["A >> B", ("A", "B"), ("C", "A")], "A>B C>A"),
        ([("send mail", "it's")], "send mail>it's"),
        ([("A >> B", "(C")], "A >> B>(C"),
        ((("A", "B"), "B >> (C | D)"), "A>B B?C B?D"),
    ],
)
def test_texts_and_pairs(edges, meant):
    """Texts and pairs may be mixed; names in a pair are taken as they are; each edge comes once."""
    assert said(edges_of(edges)) == meant
    assert said(edges_of(iter(edges))) == meant


@pytest.mark.parametrize(
    ("edges", "where", "problem"),
    [
        (None, "edges", "a NoneType holds no edges: give a text"),
        (7, "edges", "a int holds no edges: give a text"),
        ({"A": ["B"]}, "edges", "a dict holds no edges: give a text"),
        ([None], "edges[0]", "None is no edge: give a text such as 'A >> B', or a pair"),
        (["A >> B", ("A",)], "edges[1]", "('A',) is no edge"),
        ([("A", "B", "C")], "edges[0]", "('A', 'B', 'C') is no edge"),
        ([{"A", "B"}], "edges[0]", "is no edge"),
        ([{"A": "B", "C": "D"}], "edges[0]", "is no edge"),
        ([("A", 1)], "edges[0]", "1 is no name of a task: give a string"),
        ([("", "B")], "edges[0]", "'' is no name of a task: give a string"),
        ([b"AB"], "edges[0]", "65 is no name of a task"),
        (["A >> B", "A >"], "edges 'A >'", "'>' at column 3 means nothing"),
        (["A >> (B | C)", ("A", "B")], "edges[1]", "the edge from 'A' to 'B' is both a dependency and a route"),
        (["A >> B", "A >> (B | C)"], "edges 'A >> (B | C)'", "'>>' at column 3 cannot be kept"),
    ],
)
def test_what_is_no_list_of_edges_is_refused(edges, where, problem):
    """An item that is no edge is named by its place, and a clash between two items is found."""
    with pytest.raises(ConfigError) as refused:
        edges_of(edges)

    assert refused.value.where == where
    assert problem in refused.value.problem


@pytest.mark.parametrize("text", [None, 7, b"A >> B"])
def test_what_is_no_text_is_refused(text):
    """``parse`` and ``names`` take text alone."""
    for read in (parse, names):
        with pytest.raises(ConfigError, match="is no text"):
            read(text)


# ---- limits ------------------------------------------------------------------------------------------


def test_a_chain_of_100_000_names():
    """A chain may be long: its edges come out in order."""
    chain = [f"n{number}" for number in range(100_000)]

    edges = parse(" >> ".join(chain))

    assert edges == [(source, target, False) for source, target in itertools.pairwise(chain)]


@pytest.mark.parametrize(("sign", "route"), [(" & ", False), (" | ", True)])
def test_a_group_of_50_000_names(sign, route):
    """A group may be wide, as a target and as a source."""
    group = [f"n{number}" for number in range(50_000)]

    edges = parse(f"A >> ({sign.join(group)}) >> Z")

    assert edges == [("A", name, route) for name in group] + [(name, "Z", False) for name in group]


def test_brackets_nest_100_deep_and_no_deeper():
    """The depth of brackets has a limit of its own, far from the one of the interpreter."""
    assert said(parse("A >> " + "(" * 100 + "B" + ")" * 100)) == "A>B"
    with pytest.raises(ConfigError, match="'\\(' at column 106 is one bracket too deep, since 100 is the most"):
        parse("A >> " + "(" * 101 + "B" + ")" * 101)
    with pytest.raises(ConfigError, match="too deep"):
        parse("(" * 10_000 + "A" + ")" * 10_000)


def test_many_brackets_side_by_side_are_no_depth():
    """Only brackets that are open at the same place count for the depth."""
    assert len(parse(" >> ".join(f"(a{number} & b{number})" for number in range(1000)))) == 4 * 999


def test_a_text_has_a_greatest_length():
    """A text beyond the limit is refused before it is read."""
    longest = "A >> B".ljust(grammar.MAX_TEXT)

    assert said(parse(longest)) == "A>B"
    with pytest.raises(ConfigError, match="the text has 1,000,001 characters, and 1,000,000 is the most"):
        parse(longest + " ")


def test_a_short_text_cannot_make_edges_without_end(monkeypatch):
    """All pairs of two groups are counted before they are made, over all texts of a call."""
    monkeypatch.setattr(grammar, "MAX_EDGES", 12)

    assert len(parse("A & B & C >> D & E & F & G")) == 12
    with pytest.raises(ConfigError, match="'>>' at column 11 makes more than 12 edges: put a task between"):
        parse("A & B & C >> D & E & F & G & H")
    with pytest.raises(ConfigError, match="'>>' at column 3 makes more than 12 edges"):
        edges_of(["A & B & C >> D & E & F & G", "H >> I"])
    assert len(edges_of([(str(number), "Z") for number in range(20)])) == 20  # pairs are no longer than their list


def test_two_wide_groups_are_refused_at_once():
    """A text of two groups of 20,000 names, 400 million edges, is refused without making them."""
    group = " & ".join(f"n{number}" for number in range(20_000))

    with pytest.raises(ConfigError, match="makes more than 1,000,000 edges"):
        parse(f"({group}) >> ({group})")


# ---- any text ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """What a text may say: a sign, and what it stands between."""

    sign: str  #: ">>", "&" or "|"
    parts: tuple[Tree | str, ...]


class Refused(Exception):
    """The model says that a tree means nothing."""


#: Few names, so that edges meet, and some that need quotes.
NAMES = ["A", "B", "C", "d-1", "e.2", "ü", "a b", "it's", '"', "\\", ">>", "x\\'\"y"]
trees = st.recursive(
    st.sampled_from(NAMES),
    lambda parts: st.builds(
        Tree, st.sampled_from([">>", ">>", "&", "|"]), st.lists(parts, min_size=2, max_size=4).map(tuple)
    ),
    max_leaves=12,
)


def expand(tree: Tree | str, edges: list[Edge]) -> tuple[list[tuple[str, bool]], list[str]]:
    """Add the edges of a tree, plainly; return its heads, each with whether it is a route, and its tails."""
    if isinstance(tree, str):
        return [(tree, False)], [tree]
    if tree.sign == ">>":
        first, before = expand(tree.parts[0], edges)
        for part in tree.parts[1:]:
            heads, tails = expand(part, edges)
            edges += [Edge(source, target, route) for source in before for target, route in heads]
            before = tails
        return first, before
    both = [expand(part, edges) for part in tree.parts]
    heads = [(name, route or tree.sign == "|") for part, _ in both for name, route in part]
    return heads, [name for _, part in both for name in part]


def model(tree: Tree | str) -> list[Edge]:
    """Return the edges that a tree means, each once."""
    edges: list[Edge] = []
    heads, _ = expand(tree, edges)
    if any(route for _, route in heads):
        raise Refused("nobody chooses")
    once = list(dict.fromkeys(edges))
    if len({edge[:2] for edge in once}) < len(once):
        raise Refused("a dependency and a route")
    return once


def written(tree: Tree | str, rng: random.Random) -> str:
    """Return a tree as text, with spaces, quotes and brackets beyond what it needs."""
    text = quoted(tree, rng) if isinstance(tree, str) else joined(tree, rng)
    return f"({text})" if rng.random() < 0.15 else text


def joined(tree: Tree, rng: random.Random) -> str:
    parts = []
    for part in tree.parts:
        text = written(part, rng)
        # Only a group in a chain may go without: ">>" binds weakest, and "&" and "|" are not mixed.
        free = isinstance(part, str) or (tree.sign == ">>" and part.sign != ">>" and rng.random() < 0.5)
        parts.append(text if free else f"({text})")
    return rng.choice(["{}", " {} ", "\n  {} "]).format(tree.sign).join(parts)


def quoted(name: str, rng: random.Random) -> str:
    if name.replace("-", "").replace(".", "").isalnum() and rng.random() < 0.8:
        return name
    quote = rng.choice("'\"")
    return quote + name.replace("\\", "\\\\").replace(quote, f"\\{quote}") + quote


def leaves(tree: Tree | str) -> list[str]:
    return [tree] if isinstance(tree, str) else [name for part in tree.parts for name in leaves(part)]


@checked
@given(tree=trees, seed=st.integers(0, 2**32))
def test_any_tree_comes_back_from_its_text(tree, seed):
    """Whatever is written, with any brackets, spaces and quotes, means what a plain expansion says."""
    text = written(tree, random.Random(seed))
    try:
        expected = model(tree)
    except Refused:
        with pytest.raises(ConfigError):
            parse(text)
    else:
        assert parse(text) == edges_of([text, text]) == expected
        assert names(text) == list(dict.fromkeys(leaves(tree)))


@checked
@given(tree=trees)
def test_the_edges_of_a_text_can_be_given_one_by_one(tree):
    """The dependencies of any text, given as pairs, are the same edges again."""
    try:
        edges = [edge for edge in model(tree) if not edge.route]
    except Refused:
        return
    assert edges_of([(edge.source, edge.target) for edge in edges]) == edges


@checked
@given(text=st.text(st.sampled_from("AB-.>&|()'\"\\ \n<=,é#[→")) | st.text())
@example("A >> B")
@example("(" * 5000)
@example("-" * 5000 + ">")
def test_any_text_is_read_or_refused_as_a_whole(text):
    """No text raises anything but ``ConfigError``, and what is read has only names of the text."""
    try:
        edges = parse(text)
    except ConfigError:
        return
    assert {name for edge in edges for name in edge[:2]} <= set(names(text))
