"""What a notebook shows of a run: its drawing, its timeline, its table.

May import: report, svg, gantt, page.
"""

from __future__ import annotations

from millstream.report import RunReport
from millstream.show.gantt import timeline_drawn
from millstream.show.page.html import said
from millstream.show.svg import drawn

_LONGEST = 1_000_000  #: characters of the table


def shown(report: RunReport) -> str:
    """Return a piece of HTML."""
    parts = [] if report.diagram is None else [drawn(report.diagram)]
    if report.trace:
        parts.append(timeline_drawn(report))
    parts.append(f"<pre>{said(report.to_text(), _LONGEST)}</pre>")
    return "\n".join(parts)
