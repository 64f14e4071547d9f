"""How what became of a task looks: a sign and colours, the same in every drawing. May import: values."""

from __future__ import annotations

from typing import NamedTuple

from millstream.values import Status

#: A sign for each, so that nobody depends on colours.
GLYPHS = {
    Status.PENDING: "○",
    Status.RUNNING: "…",
    Status.SUCCESS: "✓",
    Status.FAILED: "✗",
    Status.SKIPPED: "–",
    Status.CANCELLED: "■",
    Status.ABANDONED: "!",
}


class Look(NamedTuple):
    """The colours of a box."""

    fill: str
    stroke: str
    text: str


#: Dark text on a light box, which can be read on a light page and on a dark one.
LOOKS = {
    Status.PENDING: Look("#eef2f7", "#7b8ba3", "#33415c"),
    Status.RUNNING: Look("#dbeafe", "#2563eb", "#1e3a8a"),
    Status.SUCCESS: Look("#dcfce7", "#16a34a", "#14532d"),
    Status.FAILED: Look("#fee2e2", "#dc2626", "#7f1d1d"),
    Status.SKIPPED: Look("#f4f4f5", "#a1a1aa", "#52525b"),
    Status.CANCELLED: Look("#ffedd5", "#ea580c", "#7c2d12"),
    Status.ABANDONED: Look("#ffedd5", "#ea580c", "#7c2d12"),
}
