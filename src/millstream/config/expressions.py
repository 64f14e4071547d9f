"""Expressions: what a text such as ``$ctx.rows.0.name`` finds in a run.

::

    expression = operand { "??" operand }        the first one that leads somewhere
    operand    = path | literal
    path       = "$" root "." part { "." part }  root: ctx (or nothing), payload, joins, inputs, env
    literal    = text in quotes | number | true | false | null | [] | {}

A text that begins with ``$`` is one expression, and its value keeps its type. In any other text ``{{ expression }}``
stands for what it finds, where the ``$`` may be left out; a text that is nothing but one ``{{ .. }}`` keeps the type,
too. ``$$`` is a dollar sign. Whatever is no text stands for itself.

Rule 1: an expression is looked up, never evaluated. There is no ``eval`` and no attribute is read:
a path goes through mappings by key and through lists and tuples by index, and nowhere else.
Rule 2: a lookup changes nothing, not even a mapping that makes what it does not have.
Rule 3: what can be refused is refused when the text is compiled; it is then read by any number of runs.
Rule 4: linear in the characters read.

May import: errors.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple

from millstream.errors import ConfigError

MAX_TEXT = 10_000  #: characters of one expression
MAX_DEPTH = 50  #: lists and mappings in each other
MAX_KEYS = 20  #: keys that an error lists

#: What a path may begin with, in the words of an error.
_ROOTS = "$ctx (or $ alone), $payload, $joins, $inputs and $env"
#: What no part has: the signs of templates, defaults and subscripts, and whitespace.
_NOT_IN_A_PART = re.compile(r"""[\s$?{}()\[\]"']""")
#: Digits of the longest index; no list is longer, and Python refuses to read very long numbers.
_INDEX_DIGITS = 18
#: One word of an expression. What is in quotes has a backslash before a quote or a backslash.
_WORD = re.compile(
    r"""\s*(?:
        (?P<quoted>"[^"\\]*(?:\\.[^"\\]*)*"|'[^'\\]*(?:\\.[^'\\]*)*')
      | (?P<sign>\?\?|\[\s*\]|\{\s*\})
      | (?P<word>[^\s"'?]+)
      | (?P<other>\S)
    )""",
    re.VERBOSE | re.DOTALL,
)
#: The end of a ``{{ .. }}``, or something in quotes before it.
_IN_BRACES = re.compile(r"""\}\}|"[^"\\]*(?:\\.[^"\\]*)*"|'[^'\\]*(?:\\.[^'\\]*)*'|["']""", re.DOTALL)
#: A path in the midst of a text: somebody forgot the braces.
_BARE = re.compile(r"(?<!\$)(?:\$\$)*\$(?:ctx|payload|joins|inputs|env)?\.\w")

_MISSING: Final = object()


ContextGet = Callable[..., Any]  #: as ``Context.get``
Inputs = Mapping[str, Any] | None  #: what a task was asked with
Joined = Callable[[str], Any] | None  #: gives what a task has waited for


class Path:
    """A compiled path: where it begins, and the way from there. Made by ``compile_path``.

    Attributes:
        text: as it was written.
        root: ``"ctx"``, ``"payload"``, ``"joins"``, ``"inputs"`` or ``"env"``.
        key: the key in the context, the task, the name of the input or of the variable.
        parts: the way on from there.
    """

    __slots__ = ("key", "parts", "root", "text")

    def __init__(self, text: str, root: str, key: str, parts: tuple[str, ...]) -> None:
        self.text = text
        self.root = root
        self.key = key
        self.parts = parts

    def find(
        self,
        context_get: Callable[..., Any],
        inputs: Mapping[str, Any] | None,
        joined: Callable[[str], Any] | None = None,
    ) -> Any:
        """Return the value that the path leads to.

        Args:
            context_get: gives the value of a key of the context. What it raises, such as for a key
                that is not there, is raised as it is.
            inputs: what the task was asked with; None is the same as nothing.
            joined: gives what a task has waited for: a mapping by the names of tasks, or a list.

        Raises:
            LookupError: the path leads nowhere; it says which part is missing, and what was there.
        """
        value: Any
        if self.root in ("ctx", "payload"):
            value, steps = context_get(self.key), self.parts
            if not steps:
                return value
        elif self.root == "env":
            value, steps = os.environ.get(self.key, _MISSING), ()
            if value is _MISSING:
                raise LookupError(
                    f"{_short(self.text)} leads nowhere: the environment has no {_short(self.key)}. Set it, or give a "
                    "default by ??."
                )
        elif self.root == "joins":
            value, steps = {} if joined is None else joined(self.key), self.parts
        else:
            value, steps = {} if inputs is None else inputs, (self.key, *self.parts)
        for place, part in enumerate(steps):
            found = value.get(part, _MISSING) if type(value) is dict else _step(value, part)
            if found is _MISSING:
                raise LookupError(self._nowhere(value, steps, place))
            value = found
        return value

    def paths(self) -> Iterator[Path]:
        """Return all paths in an expression: this one."""
        return iter((self,))

    def awaited(self, context_get: ContextGet, inputs: Inputs, joined: Joined = None) -> Iterator[str]:
        """Return the keys of the context that an expression waits for: those that it finds nothing without."""
        return iter((self.key,) if self.root in ("ctx", "payload") else ())

    def _nowhere(self, value: Any, steps: tuple[str, ...], place: int) -> str:
        begin = "$inputs" if self.root == "inputs" else f"${self.root}.{self.key}"
        here = _short(".".join((begin, *steps[:place])))
        return f"{_short(self.text)} leads nowhere: there is no {_short(steps[place])!r} in {here}, {_what(value)}."

    def __repr__(self) -> str:
        return f"<Path {_short(self.text)}>"


def compile_path(text: str, where: str) -> Path:
    """Return the path that a text says: ``$ctx.a.b``, ``$.a.b`` (the same), ``$inputs.x.y`` and so on.

    A part is the key of a mapping; one of digits is the index of a list or tuple, too.

    Args:
        text: the path, with nothing around it.
        where: what it is part of, for the error.

    Raises:
        ConfigError: it is no path, it begins with something else, it has an empty part, a part such
            as ``__class__`` or one with a sign of the grammar, or it is longer than ``MAX_TEXT``.
    """
    if len(text) > MAX_TEXT:
        raise ConfigError(where, f"{_short(text)!r} has {len(text):,} characters: {MAX_TEXT:,} is the most.")
    if not text.startswith("$"):
        raise ConfigError(where, f"{_short(text)!r} is no path: begin it with one of {_ROOTS}.")
    root, *parts = text[1:].split(".")
    if root not in ("", "ctx", "payload", "joins", "inputs", "env"):
        raise ConfigError(
            where, f"{_short(text)!r} begins with {_short('$' + root)!r}, which is unknown: there are {_ROOTS}."
        )
    if not parts:
        raise ConfigError(where, f"{text!r} names nothing: write what to look up, as in {text + '.name'!r}.")
    for part in parts:
        _check_part(part, text, where)
    if root == "env" and len(parts) > 1:
        raise ConfigError(where, f"{_short(text)!r} goes on behind the name of a variable: its value is a text.")
    if root == "joins" and len(parts) == 1:
        raise ConfigError(where, f"{_short(text)!r} names no parent: write '$joins.task.parent'.")
    return Path(text, root or "ctx", parts[0], tuple(parts[1:]))


def _check_part(part: str, text: str, where: str) -> None:
    if not part:
        raise ConfigError(where, f"{_short(text)!r} has an empty part: write something between the dots.")
    if part.startswith("__") and part.endswith("__"):
        raise ConfigError(
            where, f"{_short(text)!r} has the part {_short(part)!r}: attributes of Python are out of reach."
        )
    sign = _NOT_IN_A_PART.search(part)
    if sign is not None:
        mend = "an index is written '.0'" if sign[0] in "[]" else "leave it out"
        raise ConfigError(where, f"{_short(text)!r} has {sign[0]!r} in its part {_short(part)!r}: {mend}.")


def _step(value: Any, part: str) -> Any:
    """Return what ``value`` has under ``part``, or ``_MISSING``."""
    if isinstance(value, Mapping):
        return value.get(part, _MISSING)  # not value[part]: a defaultdict would make what is missing
    if isinstance(value, list | tuple) and part.isascii() and part.isdigit() and len(part) <= _INDEX_DIGITS:
        index = int(part)
        return value[index] if index < len(value) else _MISSING
    return _MISSING


def _what(value: Any) -> str:
    """Return what ``value`` is, for an error: its shape and its keys, never what it holds."""
    if isinstance(value, list | tuple):
        return f"a {'list' if isinstance(value, list) else 'tuple'} of {len(value)}"
    if not isinstance(value, Mapping):
        return f"a value of type {type(value).__name__}"
    if not value:
        return "an empty mapping"
    keys = ", ".join(reprlib.repr(key) for key in islice(value, MAX_KEYS))
    more = f" and {len(value) - MAX_KEYS:,} more" if len(value) > MAX_KEYS else ""
    return f"a mapping with the keys {keys}{more}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---- expressions, texts and whole values --------------------------------------------------------------


class Literal(NamedTuple):
    """A value that is written down."""

    value: Any

    def find(self, context_get: ContextGet, inputs: Inputs, joined: Joined = None) -> Any:
        return copy.deepcopy(self.value)  # one run must not see what another has made of it

    def paths(self) -> Iterator[Path]:
        return iter(())

    def awaited(self, context_get: ContextGet, inputs: Inputs, joined: Joined = None) -> Iterator[str]:
        return iter(())


class Choice(NamedTuple):
    """Paths and defaults: the first that leads somewhere."""

    operands: tuple[Path | Literal, ...]

    def find(self, context_get: ContextGet, inputs: Inputs, joined: Joined = None) -> Any:
        """Return its value.

        Raises:
            LookupError: none of its paths leads anywhere, and there is no default.
        """
        *firsts, last = self.operands
        at_once = _at_once(context_get)
        for operand in firsts:
            try:
                return operand.find(at_once, inputs, joined)
            except LookupError:
                pass
        return last.find(context_get, inputs, joined)

    def paths(self) -> Iterator[Path]:
        return (operand for operand in self.operands if isinstance(operand, Path))

    def awaited(self, context_get: ContextGet, inputs: Inputs, joined: Joined = None) -> Iterator[str]:
        at_once = _at_once(context_get)
        for operand in self.operands[:-1]:
            try:
                operand.find(at_once, inputs, joined)
            except LookupError:
                continue
            return iter(())
        return self.operands[-1].awaited(context_get, inputs, joined)


class Text(NamedTuple):
    """A text with expressions in it."""

    pieces: tuple[str | Single, ...]

    def find(self, context_get: ContextGet, inputs: Inputs, joined: Joined = None) -> str:
        return "".join(
            piece if isinstance(piece, str) else str(piece.find(context_get, inputs, joined)) for piece in self.pieces
        )

    def paths(self) -> Iterator[Path]:
        return (path for piece in self.pieces if not isinstance(piece, str) for path in piece.paths())

    def awaited(self, context_get: ContextGet, inputs: Inputs, joined: Joined = None) -> Iterator[str]:
        expressions = [piece for piece in self.pieces if not isinstance(piece, str)]
        return (key for each in expressions for key in each.awaited(context_get, inputs, joined))


class Many(NamedTuple):
    """A list or a mapping with expressions in it."""

    keys: tuple[Any, ...] | None  #: None for a list
    values: tuple[Expression, ...]

    def find(self, context_get: ContextGet, inputs: Inputs, joined: Joined = None) -> Any:
        values = [value.find(context_get, inputs, joined) for value in self.values]
        return values if self.keys is None else dict(zip(self.keys, values, strict=True))

    def paths(self) -> Iterator[Path]:
        return (path for value in self.values for path in value.paths())

    def awaited(self, context_get: ContextGet, inputs: Inputs, joined: Joined = None) -> Iterator[str]:
        return (key for value in self.values for key in value.awaited(context_get, inputs, joined))


Single = Path | Literal | Choice
Expression = Single | Text | Many


def compile_value(value: Any, where: str) -> Expression:
    """Return what gives a value, in which each text may be, or have in it, expressions.

    Args:
        value: a text, or any value; lists and mappings are looked through.
        where: what it is part of, for the error.

    Raises:
        ConfigError: a text in it is none of the grammar, or it is nested too deep (``MAX_DEPTH``).
    """
    return _compiled(value, where, 0)


def _compiled(value: Any, where: str, depth: int) -> Expression:
    if depth > MAX_DEPTH:
        raise ConfigError(where, f"lists and mappings stand in each other more than {MAX_DEPTH} deep.")
    if isinstance(value, str):
        return compile_text(value, where)
    if isinstance(value, Mapping):
        values = tuple(_compiled(each, f"{where}.{_short(str(key))}", depth + 1) for key, each in value.items())
        return Many(tuple(value), values)
    if isinstance(value, list | tuple):
        values = tuple(_compiled(each, f"{where}[{place}]", depth + 1) for place, each in enumerate(value))
        return Many(None, values)
    try:
        copy.deepcopy(value)
    except Exception as error:  # a class may raise whatever it likes
        raise ConfigError(where, f"a {type(value).__name__} cannot be copied for each call ({error}).") from error
    return Literal(value)


def compile_text(text: str, where: str) -> Expression:
    """Return what gives the value of a text: as it is, one expression, or a text with expressions in it.

    Raises:
        ConfigError: it is none of the grammar.
    """
    stripped = text.strip()
    if stripped.startswith("$") and not stripped.startswith("$$"):
        return _expression(stripped, where, bare=False)
    pieces: list[str | Single] = []
    place = 0
    while (begin := text.find("{{", place)) >= 0:
        pieces.append(_plain(text[place:begin], where))
        end = _end_of_braces(text, begin + 2, where)
        pieces.append(_expression(text[begin + 2 : end].strip(), where, bare=True))
        place = end + 2
    pieces.append(_plain(text[place:], where))
    found = [piece for piece in pieces if not isinstance(piece, str)]
    if len(found) == 1 and stripped.startswith("{{") and not any(isinstance(p, str) and p.strip() for p in pieces):
        return found[0]
    if not found:
        return Literal("".join(piece for piece in pieces if isinstance(piece, str)))
    return Text(tuple(piece for piece in pieces if piece != ""))


def _end_of_braces(text: str, place: int, where: str) -> int:
    begin = place
    while True:
        match = _IN_BRACES.search(text, place, begin + MAX_TEXT)
        unclosed = match is None or match[0] in ("'", '"')
        if unclosed and len(text) > begin + MAX_TEXT:
            problem = f"has no '}}}}' in {MAX_TEXT:,} characters behind a '{{{{', and {MAX_TEXT:,} is the most."
            raise ConfigError(where, f"{_short(text)!r} {problem}")
        if match is None or unclosed:
            raise ConfigError(where, f"{_short(text)!r} has a '{{{{' that is never closed: put a '}}}}'.")
        if match[0] == "}}":
            return match.start()
        place = match.end()


def _plain(text: str, where: str) -> str:
    """Return a text that stands for itself."""
    bare = _BARE.search(text)
    if bare is not None:
        raise ConfigError(
            where,
            f"{_short(text)!r} has a path without braces: write '{{{{ ${bare[0].lstrip('$')}... }}}}', or '$$' for a "
            "dollar sign.",
        )
    return text.replace("$$", "$")


def _expression(text: str, where: str, *, bare: bool) -> Single:
    """Return the expression that a text is; ``bare``: the ``$`` of its paths may be left out."""
    if len(text) > MAX_TEXT:
        raise ConfigError(where, f"{_short(text)!r} has {len(text):,} characters: {MAX_TEXT:,} is the most.")
    operands: list[Path | Literal] = []
    due = True  # an operand, and not a sign
    for match in _WORD.finditer(text):
        kind, word = match.lastgroup, match[match.lastgroup or 0].strip()
        if word == "??" if not due else kind != "sign" or word[0] in "[{":
            if due:
                operands.append(_operand(kind, word, text, where, bare))
            due = not due
        else:
            mend = "put '??' between them" if not due else "put a path or a value before it"
            raise ConfigError(where, f"{_short(text)!r} has {_short(word)!r} where it means nothing: {mend}.")
    if due:
        raise ConfigError(where, f"{_short(text)!r} ends where a path or a value is due: put one there.")
    for place, operand in enumerate(operands[:-1]):
        if isinstance(operand, Literal):
            after = operands[place + 1]
            shown = after.text if isinstance(after, Path) else repr(after.value)
            raise ConfigError(where, f"{_short(text)!r} never gets to {_short(shown)}: what stands before is a value.")
    return operands[0] if len(operands) == 1 else Choice(tuple(operands))


def _operand(kind: str | None, word: str, text: str, where: str, bare: bool) -> Path | Literal:
    if kind == "quoted":
        return Literal(re.sub(r"\\(.)", r"\1", word[1:-1], flags=re.DOTALL).replace("$$", "$"))
    if kind == "sign":
        return Literal([] if word[0] == "[" else {})
    if kind == "word" and not word.startswith("$"):
        try:
            value = json.loads(word, parse_constant=_refuse)
        except (ValueError, RecursionError):
            pass
        else:
            if not isinstance(value, list | dict) and value not in (math.inf, -math.inf):
                return Literal(value)
        if not bare or word.partition(".")[0] not in ("ctx", "payload", "joins", "inputs", "env"):
            mend = "put a text in quotes" if not bare else f"begin a path with one of {_ROOTS}, put a text in quotes"
            raise ConfigError(where, f"{_short(text)!r} has {_short(word)!r}, which is no value: {mend}.")
        word = f"${word}"
    if kind == "word" and word.startswith("$"):
        if re.match(r"\$[\d,]", word):
            raise ConfigError(where, f"{_short(text)!r} is no path: write '$$' for a dollar sign.")
        return compile_path(word, where)
    raise ConfigError(where, f"{_short(text)!r} has {_short(word)!r} where it means nothing: take it out.")


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _at_once(context_get: Callable[..., Any]) -> Callable[[str], Any]:
    """Return what gives the values of a context without waiting for them."""

    def get(key: str) -> Any:
        value = context_get(key, _MISSING)
        if value is _MISSING:
            raise LookupError(key)
        return value

    return get


# ---- where values are written -------------------------------------------------------------------------


class Target:
    """A place in the context that a task's output, or a part of it, is written to: ``$ctx.a.b``."""

    __slots__ = ("key", "parts", "text")

    def __init__(self, text: str, where: str) -> None:
        if not isinstance(text, str):
            raise ConfigError(where, f"{reprlib.repr(text)} is no place to write to: give a path such as '$ctx.a.b'.")
        path = compile_path(text.strip(), where)
        if path.root != "ctx":
            raise ConfigError(where, f"{_short(text)!r} cannot be written to: begin it with $ctx.")
        self.text, self.key, self.parts = path.text, path.key, path.parts

    def put(self, old: Any, value: Any) -> Any:
        """Return what stands under the key when ``value`` was put in its place; ``old``, which stood there, stays.

        Raises:
            LookupError: there is something else than a mapping on the way.
        """
        if len(self.parts) == 1 and type(old) is dict:  # as ``_put``, and short
            return {**old, self.parts[0]: value}
        return self._put(old, value, 0)

    def _put(self, old: Any, value: Any, place: int) -> Any:
        if place == len(self.parts):
            return value
        if old is _MISSING:
            old = {}
        if not isinstance(old, Mapping):
            here = ".".join((f"$ctx.{self.key}", *self.parts[:place]))
            raise LookupError(
                f"{_short(self.text)} cannot be written: {_short(here)} is {_what(old)}, and not a mapping."
            )
        part = self.parts[place]
        return {**old, part: self._put(old.get(part, _MISSING), value, place + 1)}


class Outputs:
    """Where a task's output goes, besides its own name: a place for it, or a place for each of several keys of it.

    Raises:
        ConfigError: it is neither a path of the context nor a mapping of keys to such paths.
    """

    __slots__ = ("_targets", "_whole")

    def __init__(self, given: Any, where: str) -> None:
        if isinstance(given, Mapping):
            if not given:
                raise ConfigError(where, "it is empty: give a path such as '$ctx.a.b', or leave it out.")
            for key in given:
                if not isinstance(key, str):
                    raise ConfigError(where, f"{reprlib.repr(key)} is no key of an output: give a string.")
            self._targets = [(key, Target(path, f"{where}.{_short(key)}")) for key, path in given.items()]
            self._whole: Target | None = None
        else:
            self._targets, self._whole = [], Target(given, where)

    def written(self, values: Mapping[str, Any], output: Any) -> dict[str, Any]:
        """Return the keys of the context that change, and their new values.

        Args:
            values: the context as it is.
            output: of the task.

        Raises:
            LookupError: a place cannot be written to, or the output lacks a key.
        """
        whole = self._whole
        if whole is not None:
            return {whole.key: whole.put(values.get(whole.key, _MISSING), output)}
        changed: dict[str, Any] = {}
        for key, target in self._targets:
            part = _step(output, key)
            if part is _MISSING:
                raise LookupError(f"there is no {_short(key)!r} in its output, {_what(output)}.")
            old = changed.get(target.key, values.get(target.key, _MISSING))
            changed[target.key] = target.put(old, part)
        return changed
