r"""The grammar of edges as text: ``A >> (B & C) >> D`` and what it says.

::

    chain    = group { ">>" group }
    group    = operand { "&" operand } | operand { "|" operand }
    operand  = name | "(" chain ")"
    name     = letters, digits, "_", "-" and "."; or anything in single or double quotes, where a
               backslash stands before a quote or a backslash

``>>`` binds weakest: ``A & B >> C`` is ``(A & B) >> C``. Every operand has heads, which an edge into
it reaches, and tails, which an edge out of it leaves from. A name is both; a group has those of all
its operands; a chain has the heads of its first group and the tails of its last. ``X >> Y`` makes an
edge from every tail of X to every head of Y.

The heads of a group with ``|`` are routes: whatever stands before it chooses among them. So such a
group cannot come first, where nobody chooses.

Rule 1: text in, edges out. Whether the tasks exist, and whether the edges go in a circle, is decided elsewhere.
Rule 2: linear in the characters read and the edges made, within the limits below; open brackets are
kept on a list, so no text can exhaust the stack. May import: errors.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, NoReturn

from millstream.errors import ConfigError

MAX_TEXT = 1_000_000  #: characters of one text
MAX_DEPTH = 100  #: brackets that are open at the same place
MAX_EDGES = 1_000_000  #: edges that the texts of one call make, those counted that were there already

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<name>(?:[\w.]+|-++(?!>))+)
      | (?P<sign>>>(?!>)|&(?!&)|\|(?!\|)|[()])
      | (?P<quoted>"[^"\\]*(?:\\.[^"\\]*)*"|'[^'\\]*(?:\\.[^'\\]*)*')
      | (?P<other>[-=~]*>+|<[<=~-]*|&+|\|+|\S)
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)

#: What stands before the place of an operand; the empty word is the beginning of the text.
_BEFORE_OPERAND = frozenset({"", "(", ">>", "&", "|"})

#: How edges are written elsewhere, and what is meant by it here.
_MENDS = {
    "→": "write '>>'",
    "⇒": "write '>>'",
    ",": "write '&', or '|' for routes",
    "+": "write '&'",
    "[": "write '('",
    "]": "write ')'",
    ";": "give a list of texts",
}


class Edge(NamedTuple):
    """One edge from a task to another, by their names."""

    source: str
    target: str
    route: bool  #: False: the target depends on the source; True: the source may choose the target


def parse(text: str) -> list[Edge]:
    """Return the edges of one text, each once, in the order in which they come about.

    A text of names alone, such as ``"A"``, has no edges.

    Raises:
        ConfigError: the text is none of the grammar, is too long, nests too deep or makes too many
            edges (``MAX_TEXT``, ``MAX_DEPTH``, ``MAX_EDGES``), or says of one edge that it is both
            a dependency and a route. It names the column.
    """
    made = _Edges()
    _Reader(text, made).read()
    return made.listed()


def names(text: str) -> list[str]:
    """Return the names in a text, each once, in the order in which they first appear.

    Raises:
        ConfigError: as ``parse`` does.
    """
    reader = _Reader(text, _Edges())
    reader.read()
    return list(reader.names)


def edges_of(edges: str | Iterable[str | tuple[str, str] | Sequence[str]]) -> list[Edge]:
    """Return the edges of a text, or of a list of texts and (source, target) pairs, each once and in order.

    The names in a pair are taken as they are: they need no quotes, and the pair is a dependency.

    Raises:
        ConfigError: as ``parse`` does, where ``MAX_EDGES`` holds for all texts together; or an item
            is neither a text nor a pair.
    """
    if isinstance(edges, str):
        return parse(edges)
    if isinstance(edges, Mapping) or not isinstance(edges, Iterable):
        kind = type(edges).__name__
        raise ConfigError("edges", f"a {kind} holds no edges: give a text, or a list of texts and pairs of names.")
    made = _Edges()
    for place, item in enumerate(edges):
        if isinstance(item, str):
            _Reader(item, made).read()
        else:
            _add_pair(made, item, f"edges[{place}]")
    return made.listed()


def _add_pair(made: _Edges, pair: Any, where: str) -> None:
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise ConfigError(where, f"{reprlib.repr(pair)} is no edge: give a text such as 'A >> B', or a pair of names.")
    source, target = pair
    for name in (source, target):
        if not isinstance(name, str) or not name:
            raise ConfigError(where, f"{reprlib.repr(name)} is no name of a task: give a string that is not empty.")
    clash = made.add((source,), {target: False})
    if clash is not None:
        raise ConfigError(where, _clash(*clash))


def _clash(source: str, target: str) -> str:
    edge = f"the edge from {reprlib.repr(source)} to {reprlib.repr(target)}"
    return f"{edge} is both a dependency and a route: take one of the two out."


def _where(text: str) -> str:
    """Return how an error calls a text, in at most 60 characters."""
    where = f"edges {text[:60]!r}"
    return where if len(where) <= 60 else f"{where[:56]}...{where[6]}"


class _Edges:
    """The edges made so far: whether each is a route, by source and target."""

    def __init__(self) -> None:
        self._routes: dict[tuple[str, str], bool] = {}
        self._made = 0

    def room_for(self, count: int) -> bool:
        """Count so many edges more, and say whether that is still within the limit."""
        self._made += count
        return self._made <= MAX_EDGES

    def add(self, sources: Iterable[str], heads: Mapping[str, bool]) -> tuple[str, str] | None:
        """Add the edges from all sources to all heads; return the first that was there as the other kind."""
        routes = self._routes
        for source in sources:
            for target, route in heads.items():
                if routes.setdefault((source, target), route) != route:
                    return source, target
        return None

    def listed(self) -> list[Edge]:
        return [Edge(source, target, route) for (source, target), route in self._routes.items()]


class _Level:
    """What is known between an open bracket (or the beginning) and the place that is being read."""

    __slots__ = ("arrow", "before", "chain_heads", "heads", "led", "opened", "sign", "tails")

    def __init__(self, opened: int, led: bool) -> None:
        self.opened = opened  #: column of the bracket
        self.led = led  #: whether anything stands before the group being read, here or outside
        self.arrow = 0  #: column of the last '>>' here
        self.before: dict[str, None] | None = None  #: tails of the group before that '>>'
        self.chain_heads: dict[str, bool] = {}  #: heads of the first group, once that has ended
        self.start_group()

    def start_group(self) -> None:
        self.sign = ""  #: '&' or '|', once the group being read has shown which
        self.heads: dict[str, bool] = {}  #: its heads, and whether they are routes
        self.tails: dict[str, None] = {}

    def add(self, heads: dict[str, bool], tails: dict[str, None]) -> str | None:
        """Add an operand to the group; return a head that is now both a dependency and a route."""
        if not self.heads:
            self.heads, self.tails = heads, tails  # nobody else has them: an operand is added once
            return None
        chosen = self.sign == "|"
        for name, route in heads.items():
            if self.heads.setdefault(name, route or chosen) != (route or chosen):
                return name
        self.tails.update(tails)
        return None

    def make_routes(self) -> None:
        """Make routes of the heads that the group has so far."""
        self.heads = dict.fromkeys(self.heads, True)


class _Reader:
    """Reads one text from left to right. ``level`` is what is being read, ``outer`` what is open around it."""

    def __init__(self, text: str, edges: _Edges) -> None:
        if not isinstance(text, str):
            raise ConfigError("edges", f"{reprlib.repr(text)} is no text: write it as in 'A >> B'.")
        self.text = text
        self.edges = edges
        self.names: dict[str, None] = {}
        self.level = _Level(opened=0, led=False)
        self.outer: list[_Level] = []
        self.last = ""  #: the word before the one being read
        self.word = ""
        self.column = 1  #: of that word

    def read(self) -> None:
        text = self.text.rstrip()
        if len(self.text) > MAX_TEXT:
            self.refuse(
                f"the text has {len(self.text):,} characters, and {MAX_TEXT:,} is the most: give a list of texts"
            )
        if not text:
            self.refuse("the text is empty: name tasks, as in 'A >> B'")
        for match in _TOKEN.finditer(text):
            kind = match.lastgroup or "other"  # one of the groups matches: the last of them takes anything
            self.word = match[kind]
            self.column = match.start(kind) + 1
            self._READ[kind](self)
            self.last = self.word
        self._end()

    def refuse(self, problem: str) -> NoReturn:
        raise ConfigError(_where(self.text), f"{problem}.")

    def refuse_word(self, problem: str) -> NoReturn:
        self.refuse(f"{reprlib.repr(self.word)} at column {self.column} {problem}")

    # ---- words ---------------------------------------------------------------------------------------

    def _name(self) -> None:
        self._operand(self.word)

    def _quoted(self) -> None:
        name = _ESCAPE.sub(self._unescaped, self.word[1:-1])
        if not name:
            self.refuse_word("is an empty name: write one between the quotes")
        self._operand(name)

    def _unescaped(self, escape: re.Match[str]) -> str:
        if escape[1] not in "\"'\\":
            self.refuse_word(f"has a backslash before {escape[1]!r}: write two where one is part of the name")
        return escape[1]

    def _sign(self) -> None:
        if self.word == "(":
            self._open()
        elif self.last in _BEFORE_OPERAND:
            self.refuse_word("stands where a name is due: put one before it, or take it out")
        elif self.word == ")":
            self._close()
        elif self.word == ">>":
            self._arrow()
        else:
            self._group_sign()

    def _other(self) -> None:
        word = self.word
        if word in ("'", '"'):
            self.refuse_word("opens a quoted name that never ends: put another one behind it")
        mend = "put names with other signs than letters, digits, '_', '-' and '.' in quotes"
        if word in _MENDS:
            mend = _MENDS[word]
        elif word[0] in "&|":
            mend = f"write {word[0]!r}"
        elif ">" in word:
            mend = "write '>>'"
        elif "<" in word:
            mend = "turn the edge round, and write '>>'"
        self.refuse_word(f"means nothing in edges: {mend}")

    _READ: ClassVar[Mapping[str, Callable[[_Reader], None]]] = {
        "name": _name,
        "quoted": _quoted,
        "sign": _sign,
        "other": _other,
    }

    # ---- the grammar ---------------------------------------------------------------------------------

    def _operand(self, name: str) -> None:
        self._expect_operand()
        self.names[name] = None
        self._add({name: False}, {name: None})

    def _expect_operand(self) -> None:
        if self.last not in _BEFORE_OPERAND:
            mend = "put '>>', '&' or '|' between them, or give a list of texts"
            self.refuse_word(f"follows {reprlib.repr(self.last)}: {mend}")

    def _add(self, heads: dict[str, bool], tails: dict[str, None]) -> None:
        clash = self.level.add(heads, tails)
        if clash is not None:
            self.refuse_word(f"makes {reprlib.repr(clash)} both a dependency and a route: take one of the two out")

    def _open(self) -> None:
        self._expect_operand()
        if len(self.outer) == MAX_DEPTH:
            self.refuse_word(f"is one bracket too deep, since {MAX_DEPTH} is the most: split the text into a list")
        self.outer.append(self.level)
        self.level = _Level(opened=self.column, led=self.level.led)

    def _close(self) -> None:
        if not self.outer:
            self.refuse_word("closes no bracket: take it out, or put a '(' before")
        self._end_group()
        inner, self.level = self.level, self.outer.pop()
        self._add(inner.chain_heads, inner.tails)

    def _arrow(self) -> None:
        self._end_group()
        level = self.level
        level.before, level.arrow, level.led = level.tails, self.column, True
        level.start_group()

    def _group_sign(self) -> None:
        level = self.level
        if level.sign == self.word:
            return
        if level.sign:
            self.refuse_word(f"is mixed with {level.sign!r}: put brackets, as in 'X >> ((A & B) | C)'")
        if self.word == "|":
            if not level.led:
                self.refuse_word("is a choice, and nobody chooses: put a task before it, as in 'X >> (A | B)'")
            level.make_routes()
        level.sign = self.word

    def _end_group(self) -> None:
        """Connect the group that ends here with the one before it."""
        level = self.level
        if level.before is None:
            level.chain_heads = level.heads
            return
        if not self.edges.room_for(len(level.before) * len(level.heads)):
            self._refuse_arrow(f"makes more than {MAX_EDGES:,} edges: put a task between the two groups")
        clash = self.edges.add(level.before, level.heads)
        if clash is not None:
            self._refuse_arrow(f"cannot be kept, since {_clash(*clash)[:-1]}")

    def _refuse_arrow(self, problem: str) -> NoReturn:
        self.refuse(f"'>>' at column {self.level.arrow} {problem}")

    def _end(self) -> None:
        if self.last in _BEFORE_OPERAND:
            self.refuse_word("is the end, and a name is due: put one after it, or take it out")
        if self.outer:
            self.refuse(f"'(' at column {self.level.opened} is never closed: put a ')'")
        self._end_group()
