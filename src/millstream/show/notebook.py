"""What a notebook shows of a run: its drawing, its timeline, its table. May import: report, svg, gantt."""

from __future__ import annotations

import html

from millstream.report import RunReport
from millstream.show.gantt import timeline_drawn
from millstream.show.svg import drawn


def shown(report: RunReport) -> str:
    """Return a piece of HTML."""
    parts = [] if report.diagram is None else [drawn(report.diagram)]
    if report.trace:
        parts.append(timeline_drawn(report))
    parts.append(f"<pre>{html.escape(report.to_text())}</pre>")
    return "\n".join(parts)
