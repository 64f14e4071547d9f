"""Values as text, and back with their types: JSON with tags for what JSON lacks, or pickle by choice.

What JSON has no word for is an object with the key ``$``, which names its kind in a closed table. Kinds are
compared by exact type: a value comes back as what it was, or is refused with the path to the culprit. Nothing
is constructed that the table, or the user's ``types``, does not name. May import: the standard library.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import pathlib
import pickle
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal
from zoneinfo import ZoneInfo

SCALARS = frozenset({type(None), bool, int, float})

#: Integers beyond these have more digits than Python reads.
LEAST, MOST = -(10**4300), 10**4300

#: How deeply lists, mappings and the like may stand in each other: what is written can be read, also by a Python
#: whose reader of JSON takes as many levels as there may be calls in each other.
DEEPEST = 150

TOO_DEEP = "contains itself, or is nested too deeply"

#: The key that marks an object which stands for something else.
TAG = "$"


class UnfitError(ValueError):
    """A value that cannot be written, or text that cannot be read.

    Args:
        path: where in the value, such as ``["rows"][3]``; empty for the value itself.
        problem: what is wrong there, as a sentence without its subject.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem


class JSONSerializer:
    """JSON with tags.

    Args:
        types: dataclasses, enums and named tuples whose values may be written; their names must differ.

    Raises:
        TypeError: one of ``types`` is none of these.
        ValueError: two have the same name.
    """

    name = "json"

    def __init__(self, types: Iterable[type] = ()) -> None:
        self._types: dict[str, type] = {}
        for each in types:
            if not isinstance(each, type) or not (
                dataclasses.is_dataclass(each) or issubclass(each, Enum) or is_named_tuple(each)
            ):
                raise TypeError(f"types takes dataclasses, enums and named tuples, not {each!r}.")
            if self._types.setdefault(each.__name__, each) is not each:
                raise ValueError(f"Two of the types of a store are called {each.__name__}: rename one of them.")

    def plain(self, value: Any) -> Any:
        """Return a value as what JSON has words for.

        Raises:
            UnfitError: something in it has none.
        """
        try:
            return self._plain(value, ())
        except RecursionError:
            raise UnfitError("", TOO_DEEP) from None

    def read(self, text: str) -> tuple[Any, list[Any]]:
        """Return the facts and the values of what ``written`` has written.

        Raises:
            UnfitError: it is none of that.
        """
        facts, values = parsed(text, self._revive)
        return facts, values

    def _plain(self, value: Any, path: tuple[Any, ...]) -> Any:
        """Return a value as what JSON has words for."""
        kind = type(value)
        if kind in SCALARS:
            if kind is int and not LEAST < value < MOST:
                raise UnfitError(shown_path(path), "has too many digits: Python reads 4300 of them")
            return value
        if kind is str and is_text(value):
            return value
        if len(path) > DEEPEST:
            raise UnfitError("", TOO_DEEP)
        if kind is list:
            return [
                each
                if (kind := type(each)) in SCALARS and (kind is not int or LEAST < each < MOST)
                else self._plain(each, (*path, n))
                for n, each in enumerate(value)
            ]
        if kind is dict:
            if all(type(key) is str and is_text(key) for key in value) and TAG not in value:
                return {
                    key: each
                    if (kind := type(each)) in SCALARS and (kind is not int or LEAST < each < MOST)
                    else self._plain(each, (*path, key))
                    for key, each in value.items()
                }
            pairs = [[self._plain(key, (*path, key)), self._plain(each, (*path, key))] for key, each in value.items()]
            return {TAG: "dict", "of": pairs}
        if kind in (tuple, set, frozenset):
            parts = [self._plain(each, (*path, n)) for n, each in enumerate(value)]
            if kind is not tuple:  # in an order that is the same in each process
                parts.sort(key=_encode)
            return {TAG: kind.__name__, "of": parts}
        write = WRITERS.get(kind)
        if write is not None:
            name, parts = write(value, path)
            return {TAG: name, "of": parts}
        return self._plain_object(kind, value, path)

    def _plain_object(self, kind: type, value: Any, path: tuple[Any, ...]) -> Any:
        if self._types.get(kind.__name__) is not kind:
            raise UnfitError(shown_path(path), f"is of type {kind.__name__}, which {self._mend(kind)}")
        if isinstance(value, Enum):
            # A combination of flags is no member; its value says which it has.
            named = value.name in type(value).__members__
            of = value.name if named else [self._plain(value.value, (*path, Attribute("value")))]
            return {TAG: "enum", "type": kind.__name__, "of": of}
        if isinstance(value, tuple):
            parts = [self._plain(each, (*path, n)) for n, each in enumerate(value)]
            return {TAG: "named", "type": kind.__name__, "of": parts}
        fields = {}
        names = {field.name for field in dataclasses.fields(value)}
        for name in getattr(value, "__dict__", ()):
            if name not in names and not isinstance(getattr(kind, name, None), cached_property):
                raise UnfitError(shown_path((*path, Attribute(name))), "is no field, so it would not come back")
        for field in dataclasses.fields(value):
            try:
                fields[field.name] = self._plain(getattr(value, field.name), (*path, Attribute(field.name)))
            except AttributeError:
                raise UnfitError(shown_path((*path, Attribute(field.name))), "is not set") from None
        return {TAG: "object", "type": kind.__name__, "of": fields}

    def _mend(self, kind: type) -> str:
        if dataclasses.is_dataclass(kind) or issubclass(kind, Enum) or is_named_tuple(kind):
            return f"the store was not told of: types=[{kind.__name__}]"
        return 'JSON has no word for: return something plainer, or use serializer="pickle"'

    def _revive(self, found: dict[str, Any]) -> Any:
        kind = found.get(TAG)
        if kind is None:
            return found
        of = found.get("of")
        try:
            if kind in ("enum", "named", "object"):
                return self._revive_object(kind, found["type"], of)
            return READERS[kind](of)
        except UnfitError:
            raise
        except Exception as error:
            raise UnfitError("", f"has a part that cannot be read: {found!r:.100} ({error!r})") from error

    def _revive_object(self, kind: str, name: str, of: Any) -> Any:
        known = self._types.get(name)
        if known is None:
            raise UnfitError("", f"has a {name} in it, which the store was not told of: types=[{name}]")
        fits = issubclass(known, Enum) if kind == "enum" else is_named_tuple(known) if kind == "named" else True
        if not fits or (kind == "object" and not dataclasses.is_dataclass(known)):
            raise UnfitError("", f"has a {name} in it that was written as something else than it is now")
        if kind == "enum":
            return known[of] if isinstance(of, str) else known(parts(of, object)[0])  # type: ignore[index]
        if kind == "named":
            return known._make(listed(of))  # type: ignore[attr-defined]
        if type(of) is not dict:
            raise UnfitError("", f"has a {name} in it that has no fields")
        value: Any = object.__new__(known)
        for field in dataclasses.fields(known):
            if field.name in of:
                object.__setattr__(value, field.name, of[field.name])
            elif field.default is not dataclasses.MISSING:
                object.__setattr__(value, field.name, field.default)
            elif field.default_factory is not dataclasses.MISSING:
                object.__setattr__(value, field.name, field.default_factory())
            else:
                raise UnfitError("", f"was written before {name} had its field {field.name}: give that a default")
        return value


class PickleSerializer:
    """Pickle, in base 64. Who can write to such a store can run code in whoever reads it."""

    name = "pickle"

    def plain(self, value: Any) -> str:
        """Return a value as text.

        Raises:
            UnfitError: it cannot be pickled.
        """
        try:
            return base64.b64encode(pickle.dumps(value, 5)).decode("ascii")
        except Exception as error:  # a class may raise whatever it likes
            raise UnfitError("", f"cannot be pickled: {error}") from error

    def read(self, text: str) -> tuple[Any, list[Any]]:
        """Return the facts and the values of what ``written`` has written.

        Raises:
            UnfitError: it is none of that.
        """
        facts, values = parsed(text, None)
        return facts, [self._loads(value) for value in values]

    def _loads(self, text: str) -> Any:
        try:
            return pickle.loads(base64.b64decode(text, validate=True))
        except Exception as error:
            raise UnfitError("", f"cannot be unpickled: {error}") from error


Serializer = JSONSerializer | PickleSerializer


def serializer_of(name: Literal["json", "pickle"], types: Iterable[type]) -> Serializer:
    """Return the serializer of a store.

    Raises:
        ValueError: there is none of that name, or ``types`` that it has no use for.
    """
    if name == "json":
        return JSONSerializer(types)
    if name != "pickle":
        raise ValueError(f"serializer is 'json' or 'pickle', not {name!r}.")
    if tuple(types):
        raise ValueError("types is for serializer='json': pickle needs none.")
    return PickleSerializer()


_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def written(facts: Any, values: Sequence[Any] = ()) -> str:
    """Return facts, which JSON has words for, and plain values as one text.

    Raises:
        UnfitError: it cannot be written, as an integer with more digits than Python writes.
    """
    try:
        return _encode((facts, values))
    except (ValueError, RecursionError) as error:
        raise UnfitError("", f"cannot be written: {error}") from error


def parsed(text: str, revive: Callable[[dict[str, Any]], Any] | None) -> tuple[Any, list[Any]]:
    """Return the two parts of a text that ``written`` has written."""
    try:
        facts, values = json.loads(text, object_hook=revive)
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, UnfitError):
            raise
        raise UnfitError("", f"is no entry of a journal ({error})") from error
    if not isinstance(values, list):
        raise UnfitError("", "is no entry of a journal")
    return facts, values


class Attribute(str):
    """A step of a path that is an attribute."""

    __slots__ = ()


def shown_path(path: Iterable[Any]) -> str:
    """Return a path into a value as one would write it in Python."""
    return "".join(f".{step}" if isinstance(step, Attribute) else f"[{step!r:.60}]" for step in path)


def is_text(value: str) -> bool:
    """Whether a string has nothing but characters: JSON makes one character of two surrogates."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_named_tuple(kind: type) -> bool:
    """Whether a class was made by ``namedtuple`` or ``NamedTuple``."""
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


# ---- the table ----------------------------------------------------------------------------------


def zone(of: datetime | time, path: tuple[Any, ...]) -> str | float | list[Any] | None:
    """Return a time zone: the name of one, or the seconds of a fixed offset, with its name if it was given one."""
    zone = of.tzinfo
    if zone is None:
        return None
    if isinstance(zone, ZoneInfo) and zone.key is not None:
        return zone.key
    if type(zone) is timezone:
        offset, name = zone.utcoffset(None), zone.tzname(None)
        seconds = offset.total_seconds()
        return seconds if name == timezone(offset).tzname(None) else [seconds, name]
    raise UnfitError(shown_path(path), f"has the time zone {zone!r:.60}: use zoneinfo.ZoneInfo or datetime.timezone")


def in_zone(zone: Any) -> Any:
    if zone is None:
        return None
    if isinstance(zone, str):
        return ZoneInfo(zone)
    if isinstance(zone, list):
        seconds, name = parts(zone, (int, float), str)
        return timezone(timedelta(seconds=seconds), name)
    return timezone(timedelta(seconds=zone))


def listed(of: Any) -> list[Any]:
    """Return what is a list: nothing else that could be iterated over is ever written."""
    if type(of) is not list:
        raise TypeError("it is no list")
    return of


def parts(of: Any, *kinds: Any) -> list[Any]:
    """Return a list of things of these kinds."""
    for part, kind in zip(listed(of), kinds, strict=True):
        if not isinstance(part, kind):
            raise TypeError(f"{part!r:.50} has the wrong type")
    return of  # type: ignore[no-any-return]


def text(of: Any) -> str:
    """Return what is a string."""
    if type(of) is not str:
        raise TypeError("it is no string")
    return of


def moment(of: Any, parse: Callable[[str], Any]) -> Any:
    """Return a time or a datetime."""
    iso, zone, fold = parts(of, str, object, int)
    return parse(iso).replace(tzinfo=in_zone(zone), fold=fold)


def encoded(of: Any) -> bytes:
    """Return the bytes of text in base 64."""
    return base64.b64decode(text(of), validate=True)


Written = tuple[str, Any]
Writer = Callable[[Any, tuple[Any, ...]], Written]

WRITERS: dict[type, Writer] = {
    str: lambda value, _: ("str", base64.b64encode(value.encode("utf-8", "surrogatepass")).decode("ascii")),
    bytes: lambda value, _: ("bytes", base64.b64encode(value).decode("ascii")),
    bytearray: lambda value, _: ("bytearray", base64.b64encode(value).decode("ascii")),
    datetime: lambda value, path: ("datetime", [value.replace(tzinfo=None).isoformat(), zone(value, path), value.fold]),
    date: lambda value, _: ("date", value.isoformat()),
    time: lambda value, path: ("time", [value.replace(tzinfo=None).isoformat(), zone(value, path), value.fold]),
    timedelta: lambda value, _: ("timedelta", [value.days, value.seconds, value.microseconds]),
    Decimal: lambda value, _: ("Decimal", str(value)),
    Fraction: lambda value, _: ("Fraction", [value.numerator, value.denominator]),
    complex: lambda value, _: ("complex", [value.real, value.imag]),
    range: lambda value, _: ("range", [value.start, value.stop, value.step]),
    uuid.UUID: lambda value, _: ("UUID", value.hex),
    type(pathlib.Path()): lambda value, _: ("Path", str(value)),
}

READERS: dict[str, Callable[[Any], Any]] = {
    "dict": lambda of: dict(parts(pair, object, object) for pair in listed(of)),
    "str": lambda of: encoded(of).decode("utf-8", "surrogatepass"),
    "tuple": lambda of: tuple(listed(of)),
    "set": lambda of: set(listed(of)),
    "frozenset": lambda of: frozenset(listed(of)),
    "bytes": encoded,
    "bytearray": lambda of: bytearray(encoded(of)),
    "datetime": lambda of: moment(of, datetime.fromisoformat),
    "date": lambda of: date.fromisoformat(text(of)),
    "time": lambda of: moment(of, time.fromisoformat),
    "timedelta": lambda of: timedelta(*parts(of, int, int, int)),
    "Decimal": lambda of: Decimal(text(of)),
    "Fraction": lambda of: Fraction(*parts(of, int, int)),
    "complex": lambda of: complex(*parts(of, (int, float), (int, float))),
    "range": lambda of: range(*parts(of, int, int, int)),
    "UUID": lambda of: uuid.UUID(hex=text(of)),
    "Path": lambda of: pathlib.Path(text(of)),
}
