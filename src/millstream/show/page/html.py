"""A run as a page: one HTML file that needs nothing else, neither a server nor a request.

What is drawn on a canvas, the timeline, is handed to the script of the page as numbers; all else is HTML already,
so that it can be read, searched and printed without a script.

Rule 1: whatever comes from others (names, errors, results, metadata) passes ``said`` or ``_json`` on its way.
Rule 2: the page forbids all but its own script and style, by their hashes, should rule 1 fail one day.
Rule 3: no value makes the page large. What is long is cut, what is much is counted, and the page says so.

May import: report, diagram, events, values, figures, svg, timeline, markup.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from itertools import islice
from string import Template
from typing import Any, cast

from millstream.diagram import Diagram, TaskEdge, TaskNode
from millstream.events import shown
from millstream.report import ErrorReport, RunReport, TaskReport
from millstream.show.markup import exact
from millstream.show.page.figures import (
    KINDS,
    MOST_FAILURES,
    Failure,
    Figures,
    TaskFigures,
    kind_of,
    peak,
    percentile,
)
from millstream.show.svg import STYLE, drawn
from millstream.values import Status

LONGEST_NAME = 200  #: characters of a name, an id or a worker
LONGEST_RESULT = 300  #: characters of a result, or of a value of the metadata
LONGEST_TRACEBACK = 20_000  #: characters; more is what endless recursion or a huge message makes
MOST_FACTS = 100  #: entries of the metadata
MOST_ROWS = 1000  #: tasks in the table
MOST_DRAWN = 500  #: tasks in the graph: more of them nobody can read

#: So deep a value is looked into: what is deeper is nearly always small.
_DEEPEST = 20

#: A result up to so many characters stands in its cell as it is; a longer one is folded.
_BRIEF = 28

#: What has no sign of its own, turns round what stands beside it, or cannot be written as UTF-8.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def page(report: RunReport) -> str:
    """Return a run as a page; see ``RunReport.to_html``."""
    figures = Figures(report)
    names = {name: number for number, name in enumerate(_names(report, figures))}
    style, script = f"{STYLE}\n{_part('page.css')}", _part("page.js")
    return Template(_part("page.html")).substitute(
        policy=_policy(style, script),
        style=style,
        script=script,
        data=_json(_data(report, figures, names)),
        flow=said(report.flow),
        run=said(report.run_id),
        badge=_badge(report.status),
        links=_links(report, figures),
        tiles=_tiles(report, figures),
        notes=_notes(report),
        chips=_chips(report, figures),
        graph=_graph(report.diagram, names),
        legend=_legend(figures, names),
        hint="" if figures.traced else _UNTRACED,
        tasks=_tasks(report, figures, names),
        failures=_failures(figures, names),
    )


_UNTRACED = (
    '<p class="note">This run kept no trace, so there is one bar for each task, from its first beginning to its last '
    "end. Run it with <code>trace=True</code> (or with <code>--report</code>) to see every attempt in its worker.</p>"
)


# ---- texts -----------------------------------------------------------------------------------------


def said(text: object, longest: int = LONGEST_NAME) -> str:
    """Return what is not ours as HTML that shows it."""
    return escape(plain(text, longest))


def plain(text: object, longest: int = LONGEST_NAME) -> str:
    """Return a text that is not ours: cut, and with a visible sign for each character that has none."""
    given = exact(cast(str, text) if issubclass(type(text), str) else shown(text, str))
    if len(given) > longest:
        given = f"{given[: longest - 1]}…"
    return given if given.isprintable() else _UNSEEN.sub(_sign, given)


def _sign(found: re.Match[str]) -> str:
    """Return the picture of a control character, or the sign for what cannot be shown."""
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "�"


def outline(value: object) -> str:
    """Return the ``repr`` of a value, cut. Of what is long only the beginning is looked at, also deep inside."""
    return plain(shown(value, lambda whole: repr(_beginning(whole, _DEEPEST, [LONGEST_RESULT]))), LONGEST_RESULT)


def _beginning(value: Any, depth: int, left: list[int]) -> Any:
    """Return a value without what would not be shown of it.

    Args:
        value: what is deeper in it than ``depth``, or of a class of its own, is left as it is.
        depth: how deep it is looked into.
        left: one number, of the values that there is room for, since each takes a character at least.
    """
    kind = type(value)
    if kind in (str, bytes, bytearray):
        return value[:LONGEST_RESULT]
    if kind not in (list, tuple, set, frozenset, dict) or not depth:
        return value
    first = []
    for each in islice(value, max(0, left[0])):
        if left[0] <= 0:
            break
        left[0] -= 1
        is_set = kind in (set, frozenset)
        inner = each if is_set else _beginning(value[each] if kind is dict else each, depth - 1, left)
        first.append((each, inner) if kind is dict else inner)
    return kind(first)


def lasted(seconds: float | None) -> str:
    """Return a time as people say it, in the unit that fits; a dash for one that is not known."""
    if seconds is None:
        return "–"
    if seconds >= 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"
    if seconds >= 60:
        return f"{seconds // 60:.0f} min {seconds % 60 // 1:02.0f} s"
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if seconds * factor >= 0.9995:
            return f"{_rounded(seconds * factor)} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def _rounded(number: float) -> str:
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _instant(at: float) -> tuple[str, str]:
    """Return the time of day of an instant, and its day: in the zone of this machine, with UTC as its title."""
    try:
        utc = datetime.fromtimestamp(at, UTC)
        local = utc.astimezone()
    except (OverflowError, ValueError, OSError):  # far beyond any calendar
        return said(at), ""
    exact, title = local.isoformat(timespec="milliseconds"), utc.isoformat(timespec="milliseconds")
    time = f'<time datetime="{exact}" title="{title} (UTC)">{exact[11:19]}</time>'
    return time, f"{exact[:10]}, UTC{exact[23:]}"


def _badge(status: Status) -> str:
    return f'<span class="badge {status.lower()}">{status.lower()}</span>'


def _part(name: str) -> str:
    """Return a file that lies beside this module."""
    return (files("millstream.show.page") / name).read_text(encoding="utf-8")


# ---- what keeps the page to itself ------------------------------------------------------------------


def _policy(style: str, script: str) -> str:
    """Return the content security policy: this style, this script, images from within, and nothing else."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    """Return what the policy knows an inline script or style by."""
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# ---- what the script is given -----------------------------------------------------------------------


def _json(data: object) -> str:
    """Return JSON in which nothing can end the element that it stands in."""
    text = json.dumps(data, separators=(",", ":"))  # ASCII, so U+2028 and lone surrogates are escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _names(report: RunReport, figures: Figures) -> Iterable[str]:
    """Return every name of a task once: what has a row, what has a bar, what is in the graph."""
    nodes: Iterable[str] = () if report.diagram is None else report.diagram.nodes
    return dict.fromkeys([*figures.tasks, *nodes])


def _data(report: RunReport, figures: Figures, names: Mapping[str, int]) -> dict[str, Any]:
    """Return the bars as columns of small numbers: microseconds, and places in lists of texts.

    ``begin`` has the distance of each bar from the one before. An error is the number of its text.
    """
    bars = figures.timeline.bars
    ends = [(str(bar.attempt.status), kind) for bar, kind in zip(bars, figures.kinds, strict=True)]
    states = {end: number for number, end in enumerate(dict.fromkeys(ends))}
    begins = [bar.begin // 1000 for bar in bars]
    order = _order(figures)
    place = {row: number for number, row in enumerate(order)}
    errors: dict[tuple[str, str, int], int] = {}
    failed: list[tuple[int, int]] = []
    for number, group in figures.group.items():
        error = bars[number].attempt.error
        if error is not None:
            key = (plain(error.type), plain(error.first_line()), group if group < MOST_FAILURES else -1)
            failed.append((number, errors.setdefault(key, len(errors))))
    return {
        "traced": figures.traced,
        "total": max(1, round(figures.length * 1e6)),
        "peak": peak(figures.attempts),
        "tasks": [plain(name) for name in names],
        "known": len(figures.tasks),
        "left": _left(report, figures, names),
        "states": [status for status, _ in states],
        "kinds": [kind for _, kind in states],
        "aside": [number for number, bar in enumerate(bars) if not bar.counts],
        "rows": [plain(figures.timeline.rows[row]) for row in order],
        "errors": list(errors),
        "failed": failed,
        "task": [names[bar.attempt.task] for bar in bars],
        "id": [_short_id(bar.attempt.task, bar.attempt.id) for bar in bars],
        "attempt": [bar.attempt.attempt for bar in bars],
        "state": [states[end] for end in ends],
        "row": [place[bar.row] for bar in bars],
        "begin": [begin - before for begin, before in zip(begins, [0, *begins], strict=False)],
        "lasts": [max(0, bar.end // 1000 - begin) for bar, begin in zip(bars, begins, strict=True)],
    }


def _order(figures: Figures) -> list[int]:
    """Return the rows by name, ``worker-2`` before ``worker-10``, maps last; without a trace by their beginning."""
    rows = figures.timeline.rows
    if not figures.traced:
        return list(range(len(rows)))
    parts = [re.split(r"([0-9]{1,9})", name) for name in rows]  # words and numbers by turns
    keys = [tuple(int(part) if at % 2 else part for at, part in enumerate(each)) for each in parts]
    aside = {bar.row for bar in figures.timeline.bars if not bar.counts}
    return sorted(range(len(rows)), key=lambda row: (row in aside, keys[row]))


def _short_id(task: str, id: str) -> int | str:
    """Return n for the id ``task#n``, 0 for ``task``, and any other id as it is."""
    if id == task:
        return 0
    number = id.removeprefix(f"{task}#")
    if len(number) < min(len(id), 10) and number.isascii() and number.isdigit() and number[0] != "0":
        return int(number)
    return plain(id)


# ---- summary ----------------------------------------------------------------------------------------


def _links(report: RunReport, figures: Figures) -> str:
    """Return the links to the sections that there are."""
    there = {
        "graph": report.diagram is not None,
        "timeline": True,
        "tasks": True,
        "failures": bool(figures.failures),
    }
    return "".join(f'<a href="#{name}">{name.capitalize()}</a>' for name, is_there in there.items() if is_there)


def _tiles(report: RunReport, figures: Figures) -> str:
    """Return the figures of the whole run."""
    ended = report.finished_at
    tiles = [
        ("Began", *_instant(report.created_at)),
        ("Duration", lasted(None if ended is None else max(0.0, ended - report.created_at)), _still(report)),
        ("Tasks", f"{len(report.tasks):,}", ""),
        ("Task runs", f"{sum(row.runs for row in report.tasks.values()):,}", _items_of_all(figures)),
    ]
    tiles += _traced_tiles(figures) if figures.traced else _row_tiles(report)
    if report.resumed_from is not None:
        tiles.append(("Resumed from", f"<code>{said(report.resumed_from)}</code>", ""))
    return "".join(
        f"<div><dt>{what}</dt><dd>{value}{f'<small>{more}</small>' if more else ''}</dd></div>"
        for what, value, more in tiles
    )


def _items_of_all(figures: Figures) -> str:
    """Return how many items the maps had."""
    items = sum(len(task.items) for task in figures.tasks.values())
    return f"and {_counted(items, 'item')} of maps" if items else ""


def _still(report: RunReport) -> str:
    return "it has not ended" if report.finished_at is None else ""


def _row_tiles(report: RunReport) -> list[tuple[str, str, str]]:
    """Return what is known of attempts without a trace."""
    failed = sum(kind_of(row.status, row.error) == "failed" for row in report.tasks.values())
    return [("Attempts", "–", "no trace"), ("Failed", _alarming(failed), _plural(failed, "task")), ("Retries", "–", "")]


def _traced_tiles(figures: Figures) -> list[tuple[str, str, str]]:
    """Return what only a trace knows."""
    tasks, bars = figures.tasks.values(), figures.attempts
    failed, mean, busiest = sum(task.failures for task in tasks), figures.mean_parallelism(), figures.busiest()
    tiles = [
        ("Attempts", f"{len(bars):,}", ""),
        ("Failed", _alarming(failed), _plural(failed, "attempt")),
        ("Retries", f"{sum(task.retries for task in tasks):,}", ""),
        ("At a time", "–" if mean is None else f"{mean:.1f}", f"mean, {peak(bars):,} at most"),
    ]
    if busiest is not None and figures.known:
        share = f"{busiest[1] / figures.known:.0%}"  # more than 100 % where its attempts overlap, as coroutines do
        name = f'<span title="{said(busiest[0])}">busiest {share}: {said(busiest[0] or "–", 40)}</span>'
        tiles.append(("Workers", f"{len(figures.workers):,}", name))
    return tiles


def _plural(number: int, what: str) -> str:
    return what if number == 1 else f"{what}s"


def _alarming(number: int) -> str:
    return f'<span class="{"bad" if number else ""}">{number:,}</span>'


def _notes(report: RunReport) -> str:
    """Return why the run ended, and what it was given as metadata."""
    parts = []
    if report.error is not None:
        parts.append(f'<p class="error" role="note"><b>{said(report.error.type)}</b> {_message(report.error)}</p>')
    if report.metadata:
        facts = "".join(
            f'<tr><th scope="row">{said(key)}</th><td><code>{_fact(value)}</code></td></tr>'
            for key, value in islice(report.metadata.items(), MOST_FACTS)
        )
        left = len(report.metadata) - MOST_FACTS
        more = f'<p class="note">{_counted(left, "more entry").replace("entrys", "entries")}</p>' if left > 0 else ""
        parts.append(f'<table class="facts"><caption>Metadata</caption><tbody>{facts}</tbody></table>{more}')
    return "".join(parts)


def _fact(value: object) -> str:
    """Return a value of the metadata: a text as it is, anything else by its ``repr``."""
    return said(value, LONGEST_RESULT) if type(value) is str else escape(outline(value))


def _message(error: ErrorReport) -> str:
    """Return what an error says, unless that is its type again."""
    line = error.first_line()
    return "" if line == error.type else said(line)


def _chips(report: RunReport, figures: Figures) -> str:
    """Return a button for each status that there is."""
    present = {kind_of(row.status, row.error) for row in report.tasks.values()} | set(figures.kinds)
    kinds = [kind for kind in KINDS if kind in present]
    if any(task.retries for task in figures.tasks.values()) or any(row.attempt > 1 for row in report.tasks.values()):
        kinds.append("retried")
    return "".join(
        f'<button type="button" class="chip" data-kind="{kind}" aria-pressed="{str(not kind).lower()}">'
        f"{(kind or 'all').capitalize()}</button>"
        for kind in ["", *kinds]
    )


# ---- graph and timeline -----------------------------------------------------------------------------


def _graph(diagram: Diagram | None, names: Mapping[str, int]) -> str:
    """Return the section with the graph; nothing where nobody knows it."""
    if diagram is None:
        return ""
    if len(diagram.nodes) > MOST_DRAWN:
        inner = f'<p class="note">A graph of {len(diagram.nodes):,} tasks cannot be read, so it is left out.</p>'
        return f'<section id="graph" aria-labelledby="h-graph"><h2 id="h-graph">Graph</h2>{inner}</section>'
    return Template(_part("graph.html")).substitute(svg=drawn(_presentable(diagram, names), embedded=True))


def _presentable(diagram: Diagram, names: Mapping[str, int]) -> Diagram:
    """Return a diagram with the names as they stand on the rest of the page, and the numbers of the tasks as keys."""
    result = Diagram(plain(diagram.flow), (), ())
    for node in diagram.nodes.values():
        result.nodes[str(names[node.name])] = TaskNode(
            plain(node.name),
            plain(node.executor),
            is_router=node.is_router,
            is_mapped=node.is_mapped,
            description=None if node.description is None else plain(node.description, LONGEST_RESULT),
            status=node.status,
            runs=node.runs,
        )
    result.edges = tuple(
        TaskEdge(str(names[edge.source]), str(names[edge.target]), edge.kind) for edge in diagram.edges
    )
    return result


def _legend(figures: Figures, names: Mapping[str, int]) -> str:
    """Return the colours of the first tasks that have bars (the table has those of all), and of what went wrong."""
    timed = [name for name, task in figures.tasks.items() if task.was_seen]
    keys = [f"{_swatch(names[name])}{said(name, 40)}" for name in timed[:10]]
    keys += [f"and {len(timed) - 10:,} more"] if len(timed) > 10 else []
    keys += ['<i class="swatch red"></i>failed'] if "failed" in figures.kinds else []
    keys += ['<i class="swatch hatched"></i>cancelled or abandoned'] if "cancelled" in figures.kinds else []
    keys += ['<i class="swatch running"></i>goes on'] if "unfinished" in figures.kinds else []
    return "".join(f"<li>{key}</li>" for key in keys)


def _swatch(number: int) -> str:
    """Return the colour of a task; the script counts them in the same way."""
    return f'<i class="swatch c{number % 10}"></i>'


# ---- tasks ------------------------------------------------------------------------------------------


_COLUMNS = (
    "Task", "Status", "Runs", "Attempts", "Retries", "Failed", "p50", "p95", "Total time", "Began", "Ended", "Executor",
    "Newest result",
)  # fmt: skip


def _tasks(report: RunReport, figures: Figures, names: Mapping[str, int]) -> str:
    """Return the table of the tasks."""
    whole = max((sum(task.durations) for task in figures.tasks.values()), default=0.0)
    rows = [_row(report, figures, name, names[name], whole) for name in _chosen(report, figures)]
    head = "".join(
        f'<th scope="col"{_numeric(column)}><button type="button">{column}</button></th>' for column in _COLUMNS
    )
    left = len(figures.tasks) - len(rows)
    more = f'<p class="note">{_counted(left, "task")} more than this table holds.</p>' if left else ""
    return (
        f'<table id="rows"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>{more}'
        if rows
        else '<p class="note">There are no tasks.</p>'
    )


def _numeric(column: str) -> str:
    return ' class="n"' if column not in ("Task", "Status", "Executor", "Newest result") else ""


def _chosen(report: RunReport, figures: Figures) -> dict[str, TaskFigures]:
    """Return the tasks of the table: all, or of very many those that have not succeeded before the others."""
    if len(figures.tasks) <= MOST_ROWS:
        return figures.tasks

    def went_well(name: str) -> bool:
        return name in report.tasks and report.tasks[name].status is Status.SUCCESS

    chosen = set(sorted(figures.tasks, key=went_well)[:MOST_ROWS])
    return {name: task for name, task in figures.tasks.items() if name in chosen}


def _left(report: RunReport, figures: Figures, names: Mapping[str, int]) -> list[tuple[int, str]]:
    """Return the tasks that the table has no room for, and what chooses them."""
    chosen = _chosen(report, figures)
    return [
        (names[name], " ".join(_kinds(report.tasks.get(name), task)))
        for name, task in figures.tasks.items()
        if name not in chosen
    ]


def _row(report: RunReport, figures: Figures, name: str, number: int, whole: float) -> str:
    """Return one task as a row of the table.

    A task that ran before the run was resumed has no attempts in the trace: how many they were is not known.
    """
    row, task = report.tasks.get(name), figures.tasks[name]
    times = sorted(task.durations)
    ran_before = not task.was_seen and row is not None and row.started_at is not None
    known = figures.traced and not ran_before
    node = None if report.diagram is None else report.diagram.nodes.get(name)
    cells = [
        f"<td>{'–' if row is None else _badge(row.status)}</td>",
        _runs(row, task),
        *(_number(figure if known else None) for figure in (len(times), task.retries, task.failures)),
        *(_time(percentile(times, percent) if known else None) for percent in (50, 95)),
        _total(sum(times) if known and times else None, whole),
        _time(figures.offset(None if row is None else row.started_at)),
        _time(figures.offset(None if row is None else row.finished_at)),
        f"<td>{'–' if node is None else said(node.executor)}</td>",
        f"<td>{_result(row)}</td>",
    ]
    kinds = " ".join(_kinds(row, task))
    head = f'<th scope="row">{_swatch(number)}<button type="button" class="only">{said(name)}</button></th>'
    return f'<tr data-t="{number}" data-kinds="{kinds}">{head}{"".join(cells)}</tr>'


def _kinds(row: TaskReport | None, task: TaskFigures) -> list[str]:
    """Return the buttons above the timeline that choose a task."""
    kinds = [] if row is None else [kind_of(row.status, row.error)]
    if task.failures and "failed" not in kinds:
        kinds.append("failed")
    return [*kinds, "retried"] if task.retries or (row is not None and row.attempt > 1) else kinds


def _runs(row: TaskReport | None, task: TaskFigures) -> str:
    """Return how many task runs have ended, and of a map also how many items that were."""
    if row is None or not task.items:
        return _number(None if row is None else row.runs)
    items = _counted(len(task.items), "item")
    return f'<td class="n" data-v="{row.runs}">{row.runs:,} <small>of {items}</small></td>'


def _number(number: int | None) -> str:
    if number is None:
        return '<td class="n">–</td>'
    return f'<td class="n" data-v="{number}">{number:,}</td>'


def _time(seconds: float | None) -> str:
    return '<td class="n">–</td>' if seconds is None else f'<td class="n" data-v="{seconds:.6f}">{lasted(seconds)}</td>'


def _total(seconds: float | None, whole: float) -> str:
    """Return a time with a bar that shows its share of the longest one."""
    if seconds is None:
        return '<td class="n">–</td>'
    share = round(100 * seconds / whole, 1) if whole else 0
    bar = f'<svg class="share" viewBox="0 0 100 1" preserveAspectRatio="none"><rect width="{share}" height="1"/></svg>'
    return f'<td class="n timed" data-v="{seconds:.6f}">{lasted(seconds)}{bar}</td>'


def _result(row: TaskReport | None) -> str:
    """Return the newest result; a long one is folded."""
    if row is None or row.result is None:
        return "–"
    text = outline(row.result)
    if len(text) <= _BRIEF:
        return f"<code>{escape(text)}</code>"
    first = f"<summary><code>{escape(text[: _BRIEF - 1])}…</code></summary>"
    return f'<details class="long">{first}<pre>{escape(text)}</pre></details>'


# ---- failures ---------------------------------------------------------------------------------------


def _failures(figures: Figures, names: Mapping[str, int]) -> str:
    """Return the section of what failed; nothing where nothing did."""
    if not figures.failures:
        return ""
    groups = [_failure(number, group, names) for number, group in enumerate(figures.failures[:MOST_FAILURES])]
    left = len(figures.failures) - len(groups)
    more = f'<p class="note">{_counted(left, "more group")} of failures left out.</p>' if left else ""
    count = f'<span class="count">{_counted(len(figures.failures), "group")}</span>'
    return (
        f'<section id="failures" aria-labelledby="h-failures"><h2 id="h-failures">Failures {count}</h2>'
        f"{''.join(groups)}{more}</section>"
    )


def _failure(number: int, group: Failure, names: Mapping[str, int]) -> str:
    """Return one group: what, how often, where, and the traceback."""
    task = names.get(group.task, -1)
    ids = ", ".join(f"<code>{said(each)}</code>" for each in group.ids)
    where = f'<p class="ids">{ids}{", …" if group.count > len(group.ids) and ids else ""}</p>' if ids else ""
    return (
        f'<details class="failure" id="failure-{number}" data-t="{task}"{"" if number else " open"}><summary>'
        f'<span class="times">{group.count:,}×</span><b>{said(group.task or "the run")}</b> '
        f"<code>{said(group.error.type)}</code> <span>{_message(group.error)}</span></summary>{where}"
        f"<pre>{said(_shortened(group.error.traceback), LONGEST_TRACEBACK + 100)}</pre></details>"
    )


def _shortened(traceback: str) -> str:
    """Return a traceback without its middle when it is very long: what raised stands at its end."""
    if len(traceback) <= LONGEST_TRACEBACK:
        return traceback
    half = LONGEST_TRACEBACK // 2
    return f"{traceback[:half]}\n… {len(traceback) - 2 * half:,} characters left out …\n{traceback[-half:]}"
