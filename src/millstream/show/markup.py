"""What the SVG drawings share: text that is safe in XML, how wide it is, and colours for light and for dark pages.

Every drawing is an ``<svg class="ms-graph">`` without ids and without addresses, and all its rules are for what is
below that: so several may stand in one page, and none needs anything from elsewhere.

Sources: "Extensible Markup Language (XML) 1.0", section 2.2, the characters that a document may have; "Unicode
Standard Annex #11: East Asian Width". May import: nothing of millstream.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from unicodedata import category, east_asian_width

#: What XML 1.0 forbids, even as an entity, and what has no encoding.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"}
_ENTITIES |= {"\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}  # an attribute would have spaces instead
_ENTITY = re.compile("[&<>\"'\t\n\r]")

#: Widths of a character in a sans-serif font, in ems: fonts differ by a tenth.
_NARROW, _USUAL, _BROAD, _FULL = 0.34, 0.6, 0.92, 1.0
_WIDTHS = dict.fromkeys("iljtfrI.,:;!|'`()[]{}/\\ ", _NARROW) | dict.fromkeys("mwM@%", _BROAD)
_WIDTHS |= dict.fromkeys("W–—―…", _FULL)


def exact(text: str) -> str:
    """Return a text as a plain ``str``: names and what a ``repr`` gives may be of a class whose methods do anything."""
    return text if type(text) is str else str.__str__(text)


def escaped(text: str) -> str:
    """Return a text as it may stand in XML, between tags or in an attribute; what may not is U+FFFD."""
    return _ENTITY.sub(lambda found: _ENTITIES[found[0]], _FORBIDDEN.sub("\ufffd", exact(text)))


def text_width(text: str, size: float) -> float:
    """Return about how wide a text is, in a font of ``size`` pixels."""
    return size * sum(map(_width, exact(text)))


def _width(char: str) -> float:
    if char in _WIDTHS:
        return _WIDTHS[char]
    if char < "\x7f":
        return 0.68 if char.isupper() else _USUAL
    if category(char) in ("Mn", "Me", "Cf"):
        return 0.0
    if east_asian_width(char) in "WF":
        return 1.1
    return 0.8 if char.isupper() else _USUAL


def shortened(text: str, size: float, most: float) -> str:
    """Return a text on one line that is at most about ``most`` pixels wide, with an ellipsis where it was cut."""
    text = " ".join(exact(text)[:1000].split())
    if text_width(text, size) <= most:
        return text
    wide = size  # of the ellipsis
    for place, char in enumerate(text):
        wide += size * _width(char)
        if wide > most:
            return text[:place].rstrip() + "…"
    return text + "…"


def opened(kind: str, title: str, width: float, height: float, style: str | None) -> list[str]:
    """Return the begin of a drawing: its size, its title and, unless the page has that, its style and its ground.

    Args:
        kind: the class of drawings of this kind.
        title: what it is of.
        width: in pixels.
        height: the same.
        style: None when the page brings it.
    """
    wide, high = number(width), number(height)
    role = "img" if style is not None else "group"  # a page may make buttons of what is in it
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="ms-graph {kind}" role="{role}" aria-label="{escaped(title)}" '
        f'width="{wide}" height="{high}" viewBox="0 0 {wide} {high}">',
        f"<title>{escaped(title)}</title>",
    ]
    if style is not None:
        lines += [f"<style>{style}</style>", f'<rect class="ms-ground" width="{wide}" height="{high}"/>']
    return lines


def number(value: float) -> str:
    """Return a coordinate, to a tenth of a pixel."""
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")  # + 0.0: there is no -0


def style(kind: str, plain: Mapping[str, str], light: Mapping[str, str], dark: Mapping[str, str]) -> str:
    """Return a style sheet for one kind of drawing: rules by selector, of all pages, of light and of dark ones.

    Dark is what the reader's system says, unless the page's root says otherwise in ``data-theme``. The colours are
    written out instead of named by variables, which programs other than browsers do not know.
    """
    scope = f"svg.ms-graph.{kind}"
    rules = [
        *_rules(scope, plain),
        *_rules(scope, light),
        "@media(prefers-color-scheme:dark){",
        *_rules(f"{scope}:not([data-theme=light] *)", dark),
        "}",
        *_rules(f":root[data-theme=dark] {scope}", dark),
    ]
    return "".join(rules)


def _rules(scope: str, rules: Mapping[str, str]) -> Iterator[str]:
    """Return rules for what is in a scope; the selector "" is the scope itself."""
    for selector, rule in rules.items():
        yield f"{','.join(f'{scope} {part}'.rstrip() for part in selector.split(','))}{{{rule}}}"
