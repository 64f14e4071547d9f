"""Expressions: what a text such as ``$ctx.rows.0.name`` finds in a run.

Rule 1: an expression is looked up, never evaluated. There is no ``eval`` and no attribute is read:
a path goes through mappings by key and through lists and tuples by index, and nowhere else.
Rule 2: a lookup changes nothing, not even a mapping that makes what it does not have.
Rule 3: what can be refused is refused when the text is compiled; a path is then read by any number of runs.

May import: errors.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

from millstream.errors import ConfigError

MAX_TEXT = 10_000  #: characters of one expression
MAX_KEYS = 20  #: keys that an error lists

#: What a path may begin with, in the words of an error.
_ROOTS = "$ctx (or $ alone) and $inputs"
#: What no part has: the signs of templates, defaults and subscripts, and whitespace.
_NOT_IN_A_PART = re.compile(r"""[\s$?{}()\[\]"']""")
#: Digits of the longest index; no list is longer, and Python refuses to read very long numbers.
_INDEX_DIGITS = 18

_MISSING: Final = object()


class Path:
    """A compiled path: where it begins, and the way from there. Made by ``compile_path``.

    Attributes:
        text: as it was written.
        root: ``"ctx"`` or ``"inputs"``.
        key: the key in the context, or the name of the input.
        parts: the way on from there.
    """

    __slots__ = ("key", "parts", "root", "text")

    def __init__(self, text: str, root: str, key: str, parts: tuple[str, ...]) -> None:
        self.text = text
        self.root = root
        self.key = key
        self.parts = parts

    def find(self, context_get: Callable[[str], Any], inputs: Mapping[str, Any] | None) -> Any:
        """Return the value that the path leads to.

        Args:
            context_get: gives the value of a key of the context. What it raises, such as for a key
                that is not there, is raised as it is.
            inputs: what the task was asked with; None is the same as nothing.

        Raises:
            LookupError: the path leads nowhere; it says which part is missing, and what was there.
        """
        if self.root == "ctx":
            value, steps = context_get(self.key), self.parts
        else:
            value, steps = {} if inputs is None else inputs, (self.key, *self.parts)
        for place, part in enumerate(steps):
            found = _step(value, part)
            if found is _MISSING:
                raise LookupError(self._nowhere(value, steps, place))
            value = found
        return value

    def _nowhere(self, value: Any, steps: tuple[str, ...], place: int) -> str:
        begin = f"${self.root}" if self.root == "inputs" else f"$ctx.{self.key}"
        here = _short(".".join((begin, *steps[:place])))
        return f"{_short(self.text)} leads nowhere: there is no {_short(steps[place])!r} in {here}, {_what(value)}."

    def __repr__(self) -> str:
        return f"<Path {_short(self.text)}>"


def compile_path(text: str, where: str) -> Path:
    """Return the path that a text says: ``$ctx.a.b``, ``$.a.b`` (the same) or ``$inputs.x.y``.

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
    if root not in ("", "ctx", "inputs"):
        raise ConfigError(
            where, f"{_short(text)!r} begins with {_short('$' + root)!r}, which is unknown: there are {_ROOTS}."
        )
    if not parts:
        raise ConfigError(where, f"{text!r} names nothing: write what to look up, as in {text + '.name'!r}.")
    for part in parts:
        _check_part(part, text, where)
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
