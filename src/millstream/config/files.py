"""Files of a flow: YAML, TOML and JSON as plain data.

What is read is data and nothing else: no tag makes an object, a key that comes twice is refused, and so are aliases
that stand for more than they are worth. May import: errors.
"""

from __future__ import annotations

import json
import re
import reprlib
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from millstream.errors import ConfigError

MAX_BYTES = 10_000_000  #: of one file
MAX_ALIASED = 1_000  #: values of a YAML file that aliases stand for
MAX_PARTS = 100  #: names in one dotted key of a TOML file
MAX_DEPTH = 100  #: lists and mappings of a YAML file in each other

_DOTTED = re.compile(rf"(?:\.[^.\n]{{0,80}}){{{MAX_PARTS}}}")


def read(path: Path) -> Any:
    """Return what a file holds.

    Raises:
        ConfigError: it cannot be read, or is not what its suffix says; the sentence says where.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(str(path), f"a flow is in a file that ends in {', '.join(READERS)}: rename it.")
    try:
        with path.open("rb") as file:
            content = bytearray()
            while len(content) <= MAX_BYTES and (chunk := file.read(1 << 16)):
                content += chunk
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise ConfigError(
            str(path) if str(path).isprintable() else reprlib.repr(str(path)),
            f"it cannot be read ({said}): check the path.",
        ) from error
    if len(content) > MAX_BYTES:
        raise ConfigError(str(path), f"it has more than {MAX_BYTES:,} bytes: a flow is smaller than that.")
    try:
        return reader(content.decode("utf-8-sig"), str(path))
    except ConfigError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"it is no text in UTF-8 ({error}): save it as such.") from error
    except RecursionError as error:
        raise ConfigError(str(path), "lists and mappings stand in each other too deeply.") from error
    except (ValueError, OverflowError, TypeError) as error:  # with line and column, where there are such
        raise ConfigError(str(path), f"it cannot be read: {error}.") from error


def _json(text: str, where: str) -> Any:
    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ConfigError(where, f"the key {key!r} comes twice in one mapping: take one of the two out.")
            found[key] = value
        return found

    return json.loads(text, object_pairs_hook=made)


def _toml(text: str, where: str) -> Any:
    dotted = _DOTTED.search(text)
    if dotted is not None:  # each part of such a key is read again for each of the others
        line = text.count("\n", 0, dotted.start()) + 1
        raise ConfigError(where, f"line {line} has a key of more than {MAX_PARTS} parts: write tables in each other.")
    return tomllib.loads(text)


def _yaml(text: str, where: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise ConfigError(
            where, "YAML needs a library that is not installed: pip install 'millstream[yaml]', or write TOML or JSON."
        ) from None

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # it has no types
        """Takes yes, no, on and off for texts, as YAML 1.2 does: ``on`` is a key of ours."""

        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
            first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith(":bool") or first in "tTfF"]
            for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    try:
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_nodes(node, where)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(where, f"it is no YAML: {' '.join(str(error).split())}.") from error
    except (LookupError, AttributeError) as error:  # a tag that does not fit what it stands before
        raise ConfigError(where, f"it has a tag before something else than that ({error!r}): take it out.") from error


def _check_nodes(root: Any, where: str) -> None:
    """Refuse keys that come twice, and aliases that go in a circle or stand for too much.

    A node that has an alias is the same object in several places, so it is counted once, and its count is taken
    for each of these.
    """
    counts: dict[int, int] = {}
    under_way: set[int] = set()
    todo: list[tuple[Any, bool]] = [(root, False)]
    while todo:
        node, done = todo.pop()
        children = _children(node)
        if done:
            under_way.discard(id(node))
            counts[id(node)] = count = 1 + sum(counts[id(child)] for child in children)
            if count > len(counts) + MAX_ALIASED:
                raise ConfigError(where, f"its aliases stand for more than {MAX_ALIASED:,} values: write them out.")
        elif id(node) not in counts:
            if id(node) in under_way:
                raise ConfigError(where, f"line {node.start_mark.line + 1} has itself in it, by an alias.")
            under_way.add(id(node))
            if len(under_way) > MAX_DEPTH:
                raise ConfigError(where, f"lists and mappings stand in each other more than {MAX_DEPTH} deep.")
            todo.append((node, True))
            todo.extend((child, False) for child in children if id(child) not in counts)
            _check_keys(node, where)


def _children(node: Any) -> list[Any]:
    if node.id == "mapping":
        return [part for pair in node.value for part in pair]
    return list(node.value) if node.id == "sequence" else []


def _check_keys(node: Any, where: str) -> None:
    seen = set()
    for key, _ in node.value if node.id == "mapping" else ():
        if key.id == "scalar" and key.value in seen and key.value != "<<":
            line = key.start_mark.line + 1
            raise ConfigError(where, f"line {line} has the key {key.value!r} again: take one of the two out.")
        seen.add(key.value if key.id == "scalar" else id(key))


READERS: dict[str, Callable[[str, str], Any]] = {".yaml": _yaml, ".yml": _yaml, ".toml": _toml, ".json": _json}
