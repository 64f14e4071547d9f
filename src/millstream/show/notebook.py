"""What a notebook shows of a run: its drawing, its timeline, its table. May import: report, svg, markup."""

from __future__ import annotations

import html

from millstream.report import RunReport


def shown(report: RunReport) -> str:
    """Return a piece of HTML."""
    from millstream.show.svg import drawn

    parts = [] if report.diagram is None else [drawn(report.diagram)]
    parts.append(f"<pre>{html.escape(report.to_text())}</pre>")
    return "\n".join(parts)
