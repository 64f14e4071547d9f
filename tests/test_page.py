"""``RunReport.to_html``: one file that loads nothing, in which everything is told and no value does any harm.

The pages are read back by ``html.parser``; what they do in a browser is for ``tests/browser``.
"""

import base64
import contextlib
import hashlib
import json
import re
import time
from collections import Counter
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millstream import Flow, MemoryStore, NextTask
from millstream.diagram import Diagram, TaskEdge, TaskNode
from millstream.show import notebook
from millstream.show.page import html as pages
from millstream.show.page.figures import percentile
from millstream.values import Status
from tests.page_reports import CREATED, NASTY, Shows, attempt, error, everywhere, many, row, run

VOID = {"meta", "link", "input", "br", "img"}


class Element:
    """An element that was read, with its text and that of all within it."""

    def __init__(self, tag, attributes):
        self.tag = tag
        self.attributes = attributes
        self.text = ""
        self.within = []

    def all(self, tag, **attributes):
        """Return the elements within it of one tag with these attributes; a class has to be one of its classes."""
        wanted = {name.strip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [each for each in self.within if each.tag == tag and each.has(wanted)]

    def has(self, wanted):
        own = self.attributes
        return all(value in own.get(name, "").split() if name == "class" else own.get(name) == value
                   for name, value in wanted.items())  # fmt: skip

    def one(self, tag, **attributes):
        (found,) = self.all(tag, **attributes)
        return found


class Reader(HTMLParser):
    """Reads a page as a browser does, but for what it would mend: every element has to be closed in its order."""

    def __init__(self, text):
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert self.open == [self.root], "elements are left open"

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of {tag} comes twice"
        element = Element(tag, {name: value or "" for name, value in attrs})
        for each in self.open:
            each.within.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        for each in self.open:
            each.text += data

    def handle_comment(self, data):
        raise AssertionError(f"there are no comments: {data!r}")


def read(report):
    """Return the page of a report as it was read."""
    return Reader(report.to_html()).root


def outline(page):
    """Return the elements of a page in their order with the names of their attributes: all but the texts."""
    return [(each.tag, *each.attributes) for each in page.within]


def data_of(page):
    return json.loads(page.one("script", id="data").text)


def tiles(page):
    """Return the figures of the summary by their labels."""
    pairs = zip(page.one("dl", _class="tiles").all("dt"), page.one("dl", _class="tiles").all("dd"), strict=True)
    return {what.text: value.text for what, value in pairs}


def table(page):
    """Return the rows of the table: by task, the cells by the head of their column."""
    table = page.one("table", id="rows")
    heads = [each.text for each in table.all("th", scope="col")]
    rows = [each for each in table.all("tr") if "data-t" in each.attributes]
    cells = [[*each.all("th"), *each.all("td")] for each in rows]
    return {each[0].text: dict(zip(heads, each, strict=True)) for each in cells}


def value(cell):
    """Return the number by which a cell is sorted; None where there is none."""
    number = cell.attributes.get("data-v")
    return None if number is None else float(number)


def failures(page):
    """Return the groups of failures: how often, where, what, and the traceback."""
    groups = page.all("details", _class="failure")
    return [(each.one("span", _class="times").text, each.one("b").text, each.one("pre").text) for each in groups]


# ---- one file that keeps to itself ------------------------------------------------------------------


def test_a_page_loads_nothing():
    """No element of a page asks for anything from elsewhere."""
    page = read(many(200))
    for each in page.within:
        for name in ("src", "srcset", "action", "data", "poster", "ping", "xlink:href", "style", "background"):
            assert name not in each.attributes, f"<{each.tag} {name}>"
        assert re.match(r"#|data:,$|$", each.attributes.get("href", ""))
        assert not [name for name in each.attributes if name.startswith("on")]
    assert not {each.tag for each in page.within} & {"iframe", "object", "embed", "img", "base", "form", "use", "image"}
    assert "@import" not in page.one("style").text
    assert "url(" not in page.one("style").text
    assert "://" not in page.one("style").text + page.all("script")[-1].text
    assert not re.search(
        r"\b(fetch|XMLHttpRequest|WebSocket|sendBeacon|import|eval|innerHTML|Function)\b\(?",
        page.all("script")[-1].text,
    )


def test_the_policy_allows_this_script_and_this_style_alone():
    """The policy knows the one script and the one style by their hashes, and forbids all else."""
    page = read(everywhere(NASTY[0]))
    policy = page.one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    _, script = page.all("script")
    assert rules == {
        "default-src": "'none'",
        "style-src": sha256(page.one("style").text),
        "script-src": sha256(script.text),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    before = [each.tag for each in page.one("head").within]
    assert before.index("style") > before.index("meta") + 1  # a policy holds for what comes after it
    assert before.index("link") > before.index("meta") + 1


def sha256(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_parts_can_stand_in_a_page():
    """Neither the script nor the style holds what would end its element."""
    assert not re.search("</script|<!--|<script", pages._part("page.js"), re.IGNORECASE)
    assert "</style" not in pages._part("page.css") + pages.STYLE


def test_it_is_written_to_a_path(tmp_path):
    """The page is written as UTF-8, also when a text in it cannot be, and returned."""
    path = tmp_path / "run.html"
    text = everywhere("größe \udcff").to_html(path)
    assert path.read_text(encoding="utf-8") == text
    assert "größe �" in text


def test_a_reader_without_scripts_is_told():
    """What is drawn by the script alone says so where it is missing."""
    assert "has not run here" in read(run()).one("noscript").text


def test_sections_have_headings_and_controls_have_names():
    """Every section is named by its heading, every control has a label, every id is there once."""
    page = read(many(100))
    ids = Counter(each.attributes["id"] for each in page.within if "id" in each.attributes)
    assert set(ids.values()) == {1}
    assert page.one("html").attributes["lang"] == "en"
    assert len(page.all("h1")) == 1
    for section in page.all("section"):
        assert section.one("h2").attributes["id"] == section.attributes["aria-labelledby"]
    assert page.one("label").attributes["for"] == page.one("input").attributes["id"]
    assert all(button.text.strip() or button.attributes.get("aria-label") for button in page.all("button"))
    assert {link.attributes["href"].removeprefix("#") for link in page.all("a")} <= set(ids)


# ---- values of others --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_no_text_becomes_part_of_the_page(text):
    """Whatever names, errors, results and metadata say, the elements and attributes of the page stay the same."""
    assert outline(read(everywhere(text))) == outline(read(everywhere("word")))


@given(st.text(min_size=1, max_size=60).filter(lambda text: text != "other"))
@settings(max_examples=40, deadline=None)
@example("&")
@example("#2")
def test_no_text_at_all_becomes_part_of_the_page(text):
    """The same with any text; it can be written as UTF-8, and the columns can be read."""
    page = read(everywhere(text))
    assert outline(page) == outline(read(everywhere("word")))
    everywhere(text).to_html().encode()
    assert len(data_of(page)["task"]) == 2


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_texts_are_shown_as_they_are(text):
    """A text is shown where it belongs; a control character by a sign, what has no sign at all by U+FFFD."""
    page = read(everywhere(text))
    seen = pages.plain(text)
    assert page.one("h1").text == seen
    assert page.all("title")[0].text == f"{seen} · {seen}"
    assert page.one("code", _class="run").text == seen
    assert page.one("table", _class="facts").all("th")[0].text == seen
    assert page.one("table", _class="facts").all("code")[0].text == seen
    assert list(table(page)) == [seen, "other"]
    assert failures(page) == [("1×", seen, seen)]
    data = data_of(page)
    assert data["tasks"] == [seen, "other"]
    assert data["rows"] == [seen]
    assert data["errors"][0][0] == seen
    assert [each.attributes["data-task"] for each in page.all("g", _class="ms-task")] == [seen, "other"]


def test_signs_for_what_has_none():
    """Control characters have pictures, what cannot be written is U+FFFD; lines, tabs and letters stay."""
    assert pages.plain("a\x00b\x1b\x7f\x85c\ud800\n\tä東😀") == "a␀b␛␡�c�\n\tä東😀"


def test_what_turns_its_neighbours_round_is_a_sign():
    """Marks that change the direction of what stands beside a name are shown, and change nothing."""
    assert pages.plain("a\u202eb\u2066c\u2069") == "a\ufffdb\ufffdc\ufffd"


def test_nothing_in_the_columns_can_end_them():
    """The columns hold no sign that means something in HTML, and are ASCII."""
    text = everywhere("</script><!--&\u2028\ud800é").to_html()
    columns = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert columns.isascii()
    assert not set("<>&") & set(columns)


class Unshowable:
    def __repr__(self):
        raise SystemExit("no repr")


def test_values_that_cannot_be_shown():
    """A result or a value of the metadata whose repr raises is told by its type."""
    page = read(run({"a": row(result=Unshowable())}, metadata={"x": Unshowable()}))
    assert "<a Unshowable that cannot be shown>" in table(page)["a"]["Newest result"].text
    assert page.one("table", _class="facts").one("code").text == "<a Unshowable that cannot be shown>"


class Counted:
    """A value that counts how often it was asked for its repr."""

    def __init__(self):
        self.asked = 0

    def __repr__(self):
        self.asked += 1
        return "x" * 50


def test_a_value_is_asked_once():
    """A repr may be slow: it is made once."""
    result = Counted()
    run({"a": row(result=result)}).to_html()
    assert result.asked == 1


@pytest.mark.parametrize("kind", [list, tuple, set, dict.fromkeys])
def test_only_the_beginning_of_a_long_list_is_looked_at(kind):
    """Of a list of thousands of values no more are shown than there is room for."""
    values = [Counted() for _ in range(5000)]
    run({"a": row(result=kind(values))}).to_html()
    assert sum(each.asked for each in values) <= pages.LONGEST_RESULT


@pytest.mark.parametrize(
    "huge",
    ["x" * 10_000_000, b"x" * 10_000_000, [0] * 1_000_000, (0,) * 1_000_000, {*range(1_000_000)},
     dict.fromkeys(range(1_000_000)), Shows("<" * 10_000_000)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_huge_values_are_cut(huge):
    """A result of millions of characters takes some hundred in the page."""
    page = read(run({"a": row(result=huge)}, metadata={"huge": huge}))
    shown = table(page)["a"]["Newest result"].one("pre").text
    assert len(shown) == pages.LONGEST_RESULT
    assert len(page.one("table", _class="facts").one("code").text) <= pages.LONGEST_RESULT


def test_huge_texts_are_cut():
    """So do names, ids, messages and tracebacks of that length; of a traceback both ends are kept."""
    report = everywhere("<" * 10_000_000)
    report.trace[0].error.traceback = f"first{'<' * 10_000_000}last"
    text = report.to_html()
    assert len(text) < 400_000
    assert "first&lt;" in text
    assert "&lt;last" in text


def test_huge_values_inside_of_values_are_cut():
    """Of millions of values inside of others no more is looked at than of those outside."""
    inner = [Counted() for _ in range(5000)]
    page = read(run({"a": row(result={"rows": [inner] * 300, "name": "x" * 10_000_000})}))
    assert sum(each.asked for each in inner) <= pages.LONGEST_RESULT
    assert len(table(page)["a"]["Newest result"].one("pre").text) == pages.LONGEST_RESULT


def test_a_brief_result_is_not_folded():
    """A result that fits its cell stands there; None is no result."""
    page = read(run({"a": row(result=[1, 2]), "b": row(result=None), "c": row(result="y" * 50)}))
    results = [cells["Newest result"] for cells in table(page).values()]
    assert [each.text for each in results[:2]] == ["[1, 2]", "–"]
    assert [len(each.all("details")) for each in results] == [0, 0, 1]


def hostile(text):
    """Return a text of a class that does nothing as a text does."""

    def refuse(self, *args):
        raise SystemExit("hostile")

    methods = (
        "replace", "isprintable", "__len__", "__getitem__", "__format__", "__contains__", "__add__", "__str__",
        "removeprefix", "strip", "splitlines", "lower", "isascii", "__lt__", "split", "encode", "__iter__",
    )  # fmt: skip
    return type("Hostile", (str,), dict.fromkeys(methods, refuse))(text)


def test_texts_of_a_class_of_their_own():
    """What values and errors show of themselves may be a text in name alone: none of its methods is called."""
    text = hostile("a<b")

    class OddError(Exception):
        def __str__(self):
            return text

    def fails():
        raise OddError

    with Flow("inline", on_error="continue") as flow:
        flow.add_task("fails", fails)
        flow.add_task("shows", lambda: Shows(hostile("c<d" * 5)))
        flow.add_task("gives", lambda: text)
        flow.run(["fails", "shows", "gives"], trace=True, metadata={text: text, "shows": Shows(text)})
    report = flow.report()
    page = read(report)
    assert data_of(page)["errors"][0][1] == "a<b"
    assert "c<d" in table(page)["shows"]["Newest result"].text
    assert "a<b" in table(page)["gives"]["Newest result"].text
    assert [each.text for each in page.one("table", _class="facts").all("code")] == ["'a<b'", "a<b"]
    for drawing in (report.to_svg(), report.to_timeline(), notebook.shown(report)):
        assert "fails" in drawing


def test_a_notebook_shows_what_cannot_be_written():
    """A notebook is given text that can be sent as UTF-8."""
    report = run({"a": row(Status.FAILED, error=error("lone \ud800"))})
    assert "lone \ufffd" in notebook.shown(report).encode().decode()


def test_tasks_whose_names_are_cut_alike_are_two():
    """Two names that differ beyond what is shown of them are two boxes, each with its own number and edges."""
    names = ["x" * 300 + end for end in "ab"]
    nodes = [TaskNode(name, status=Status.SUCCESS) for name in names]
    page = read(run({name: row() for name in names}, diagram=Diagram("f", nodes, [TaskEdge(*names)])))
    boxes = page.all("g", _class="ms-task")
    assert [each.attributes["data-key"] for each in boxes] == ["0", "1"]
    assert len({each.attributes["data-task"] for each in boxes}) == 1
    assert len(page.all("g", _class="ms-edge")) == 1


# ---- numbers ------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_percentiles(numbers, percent):
    """The percentile is the smallest of the numbers that at least so many percent of them do not exceed."""
    reached = [each for each in numbers if 100 * sum(other <= each for other in numbers) >= percent * len(numbers)]
    assert percentile(sorted(numbers), percent) == min(reached)


def test_percentiles_of_nothing():
    """Without numbers there is none."""
    assert percentile([], 50) is None


attempts = st.lists(
    st.builds(
        lambda task, begin, lasts, status, number, worker: attempt(
            task, begin / 64, (begin + lasts) / 64, status=status, number=number, worker=worker, id=f"{task}#{begin}"
        ),
        st.sampled_from("abc"),
        st.integers(0, 200),
        st.integers(0, 100),
        st.sampled_from([Status.SUCCESS, Status.FAILED, Status.CANCELLED, Status.ABANDONED]),
        st.integers(1, 3),
        st.sampled_from(["w-1", "w-2", "w-10"]),
    ),
    max_size=30,
)


@given(attempts)
@settings(max_examples=40, deadline=None)
def test_the_table_counts_the_attempts(trace):
    """Attempts, retries, failures, percentiles and the total of each task are those of a plain count."""
    began = {each.task for each in trace}  # one that began, and is not in the trace, did so before it was resumed
    page = read(run({n: row() if n in began else row(started_at=None) for n in "abc"}, trace=tuple(trace)))
    for name, cells in table(page).items():
        mine = [each for each in trace if each.task == name]
        times = sorted(each.duration for each in mine)
        assert value(cells["Attempts"]) == len(mine)
        assert value(cells["Retries"]) == sum(each.attempt > 1 for each in mine)
        assert value(cells["Failed"]) == sum(each.status is Status.FAILED for each in mine)
        assert value(cells["Total time"]) == (pytest.approx(sum(times), abs=1e-6) if times else None)
        assert value(cells["p50"]) == (pytest.approx(times[-(-len(times) // 2) - 1], abs=1e-6) if times else None)
        assert value(cells["p95"]) == (pytest.approx(times[-(-19 * len(times) // 20) - 1], abs=1e-6) if times else None)
    seen = tiles(page)
    assert seen["Attempts"] == str(len(trace))
    assert seen["Retries"] == str(sum(each.attempt > 1 for each in trace))
    assert int(re.match(r"\d+", seen["Failed"])[0]) == sum(each.status is Status.FAILED for each in trace)


@given(attempts)
@settings(max_examples=40, deadline=None)
def test_the_columns_are_the_attempts(trace):
    """The script is given every attempt once: what, when, where, how it ended; no two bars of a row overlap."""
    data = data_of(read(run({name: row() for name in "abc"}, trace=tuple(trace))))
    begin, bars = 0, []
    for place in range(len(data["task"])):
        begin += data["begin"][place]
        task = data["tasks"][data["task"][place]]
        number = data["id"][place]
        worker = data["rows"][data["row"][place]].partition(" ")[0]
        state = data["states"][data["state"][place]]
        id_ = number if isinstance(number, str) else f"{task}#{number}" if number else task
        bars.append((task, id_, data["attempt"][place], state, worker, begin, data["lasts"][place]))
    expected = [
        (each.task, each.id, each.attempt, str(each.status), each.worker, int((each.started_at - CREATED) * 1e6 + 1e-3),
         pytest.approx(each.duration * 1e6, abs=1.1))
        for each in sorted(trace, key=lambda each: each.started_at)
    ]  # fmt: skip
    assert bars == expected
    assert data["total"] >= max((bar[-2] + bar[-1] for bar in bars), default=1) - 2


def test_rows_of_workers_are_in_the_order_of_their_names():
    """A worker with a number comes before one with a larger number, and a map after all of them."""
    trace = [attempt("a", begin, begin + 1, worker=name) for begin, name in enumerate(["w-10", "w-2", "x", "", "2"])]
    assert data_of(read(run({"a": row()}, trace=tuple(trace))))["rows"] == ["2", "w-2", "w-10", "x", "a (map)"]


def test_workers_and_how_many_at_a_time():
    """The summary says how many workers there were, which was busiest, and how many attempts ran at a time."""
    trace = (
        attempt("a", 0.0, 1.0, worker="w-1"),
        attempt("b", 0.5, 1.5, worker="w-2"),
        attempt("c", 1.0, 1.5, worker="w-1"),  # begins as the first one ends: these two are no pair
    )
    seen = tiles(read(run({name: row() for name in "abc"}, trace=trace)))
    assert seen["At a time"] == "1.7mean, 2 at most"
    assert seen["Workers"] == "2busiest 100%: w-1"


def test_the_summary():
    """Flow, id, status, begin, length, tasks, runs, and where the run came from."""
    page = read(run({"a": row(runs=3), "b": row(runs=1)}, resumed_from="orders-6", metadata={"by": "cron", "n": 7}))
    assert page.one("h1").text == "orders"
    assert page.all("span", _class="badge")[0].text == "success"
    seen = tiles(page)
    assert (seen["Duration"], seen["Tasks"], seen["Task runs"], seen["Resumed from"]) == (
        "1.50 s",
        "2",
        "4",
        "orders-6",
    )
    began = page.one("time").attributes
    assert began["title"] == "2023-11-14T22:13:20.000+00:00 (UTC)"
    assert re.fullmatch(r"2023-11-1\dT\d\d:\d\d:20\.000[+-]\d\d:\d\d", began["datetime"])
    facts = page.one("table", _class="facts")
    assert [each.text for each in facts.all("td")] == ["cron", "7"]


def test_why_a_run_ended_is_in_the_summary():
    """The first line of the run's error stands in the summary."""
    page = read(run(status=Status.FAILED, error=error("out of\npaper")))
    assert page.one("p", _class="error").text == "ValueError out of"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0, "0 µs"), (0.0000014, "1 µs"), (0.0009994, "999 µs"), (0.0009996, "1.00 ms"), (0.01234, "12.3 ms"),
     (0.9999, "1.00 s"), (9.994, "9.99 s"), (9.996, "10.0 s"), (59.9, "59.9 s"), (60, "1 min 00 s"),
     (119.9, "1 min 59 s"), (3600, "1 h 00 min"), (360000, "100 h 00 min")],
)  # fmt: skip
def test_times_are_said_in_the_unit_that_fits(seconds, text):
    """Three digits, and the unit that needs no more."""
    assert pages.lasted(seconds) == text


# ---- failures -------------------------------------------------------------------------------------------


def failed(task, number, why):
    return attempt(task, number / 100, number / 100 + 0.005, id=f"{task}#{number}", status=Status.FAILED, why=why)


def test_failures_are_grouped():
    """Attempts of one task with the same type and traceback are one group, with the ids of the first few."""
    trace = [failed("a", number, error("boom")) for number in range(1, 9)]
    trace += [
        failed("a", 10, error("bang")),
        failed("b", 11, error("boom")),
        failed("b", 12, error("boom", "TypeError")),
    ]
    page = read(run({"a": row(), "b": row()}, trace=tuple(trace)))
    assert failures(page) == [
        ("8×", "a", "Traceback:\nValueError: boom\n"),
        ("1×", "a", "Traceback:\nValueError: bang\n"),
        ("1×", "b", "Traceback:\nValueError: boom\n"),
        ("1×", "b", "Traceback:\nTypeError: boom\n"),
    ]
    groups = page.all("details", _class="failure")
    assert groups[0].one("p", _class="ids").text == "a#1, a#2, a#3, a#4, a#5, …"
    assert ["open" in each.attributes for each in groups] == [True, False, False, False]


def test_failures_of_two_types_are_two_groups():
    """The type counts even where two tracebacks read the same."""
    trace = tuple(failed("a", number, error("x", kind, "the same")) for number, kind in enumerate(["A", "B", "A"]))
    assert failures(read(run({"a": row()}, trace=trace))) == [("2×", "a", "the same"), ("1×", "a", "the same")]


def test_failures_without_a_trace_are_those_of_the_rows():
    """Without a trace the error of each row is a group."""
    page = read(run({"a": row(Status.FAILED, error=error("boom")), "b": row(error=None)}))
    assert failures(page) == [("1×", "a", "Traceback:\nValueError: boom\n")]


def test_a_failure_without_an_attempt_is_told():
    """A task that failed before it began has no attempt in the trace; its row tells."""
    trace = (failed("a", 1, error("boom")),)
    lost = row(Status.FAILED, error=error("no such input"), started_at=None, finished_at=None, attempt=0)
    page = read(run({"a": row(Status.FAILED, error=error("boom")), "b": lost}, trace=trace))
    assert [group[:2] for group in failures(page)] == [("1×", "a"), ("1×", "b")]


def test_the_error_of_a_run_is_told_where_no_task_failed():
    """A run that ended for another reason has that as its only group."""
    page = read(run({"a": row()}, status=Status.FAILED, error=error("timeout")))
    assert failures(page) == [("1×", "the run", "Traceback:\nValueError: timeout\n")]


def test_a_run_without_failures_has_no_section_for_them():
    """Where nothing failed there is no section, and no link to it."""
    page = read(run({"a": row()}))
    assert [each.attributes["id"] for each in page.all("section")] == ["summary", "timeline", "tasks"]
    assert [each.text for each in page.all("a")] == ["Timeline", "Tasks"]


def test_very_many_failures_are_cut():
    """After two hundred groups the page says how many are left out; their bars still tell what they raised."""
    trace = tuple(failed("a", number, error(f"no. {number}")) for number in range(250))
    page = read(run({"a": row()}, trace=trace))
    assert len(failures(page)) == pages.MOST_FAILURES
    assert "50 more groups of failures left out." in page.one("section", id="failures").text
    data = data_of(page)
    assert data["errors"][199:201] == [["ValueError", "no. 199", 199], ["ValueError", "no. 200", -1]]
    assert len(data["failed"]) == 250


# ---- all sorts of runs -----------------------------------------------------------------------------------


def test_a_run_without_a_trace():
    """Without a trace there is one bar for each task that began, and the page says what would give more."""
    rows = {
        "a": row(started_at=CREATED + 0.125, finished_at=CREATED + 0.25),
        "b": row(Status.PENDING, started_at=None, finished_at=None, attempt=0, runs=0),
        "c": row(Status.RUNNING, started_at=CREATED + 0.5, finished_at=None),
    }
    page = read(run(rows))
    assert "trace=True" in page.one("section", id="timeline").text
    data = data_of(page)
    assert (data["rows"], data["id"], data["begin"], data["lasts"]) == (
        ["a", "c"], [0, 0], [125_000, 375_000], [125_000, 1_000_000],
    )  # fmt: skip
    assert tiles(page)["Attempts"].startswith("–")
    cells = table(page)["a"]
    assert [cells[head].text for head in ("Attempts", "Retries", "Failed", "p50", "p95", "Total time")] == ["–"] * 6


def test_a_run_without_a_diagram():
    """Where nobody knows the graph there is no section for it."""
    assert "graph" not in {each.attributes["id"] for each in read(run({"a": row()})).all("section")}


def test_a_graph_too_large_to_be_read_is_left_out():
    """A graph of thousands of tasks is not drawn; the page says so."""
    diagram = Diagram("big", [TaskNode(f"t{number}") for number in range(pages.MOST_DRAWN + 1)], [])
    section = read(run(diagram=diagram)).one("section", id="graph")
    assert not section.all("svg")
    assert "501 tasks" in section.text


def test_a_run_that_goes_on():
    """A run that has not ended can be shown as it stands."""
    report = run(
        {"a": row(Status.RUNNING, finished_at=None)}, status=Status.RUNNING, finished_at=None,
        trace=(attempt("a", 0.0, 0.5),),
    )  # fmt: skip
    page = read(report)
    assert tiles(page)["Duration"] == "–it has not ended"
    assert data_of(page)["total"] == 500_000


def test_what_goes_on_has_a_bar():
    """A task that runs has a bar to the end of the timeline, also when nothing is known after its begin."""
    rows = {"a": row(), "b": row(Status.RUNNING, started_at=CREATED + 10, finished_at=None)}
    for trace in (None, (attempt("a", 0, 0.25),)):
        page = read(run(rows, status=Status.RUNNING, finished_at=None, trace=trace))
        data = data_of(page)
        assert data["kinds"] == ["succeeded", "unfinished"]
        assert (sum(data["begin"]), data["lasts"][1], data["total"]) == (10_000_000, 500_000, 10_500_000)
        assert "goes on" in page.one("ul", _class="legend").text
        assert value(table(page)["b"]["Total time"]) is None
    assert (data["rows"], data["aside"]) == (["w-1", "b (running)"], [1])
    assert tiles(page)["Attempts"] == "1"
    assert tiles(page)["Workers"] == "1busiest 2%: w-1"  # 0.25 of 10 seconds: of what is known, not of what is drawn


@pytest.mark.parametrize("trace", [None, ()])
def test_an_empty_run(trace):
    """A run without tasks has a page."""
    page = read(run(finished_at=CREATED, trace=trace))
    assert "There are no tasks." in page.text
    assert data_of(page)["total"] == 1


def test_clocks_that_go_back():
    """The timeline begins with what seems to be the first; what ends before it begins takes no time."""
    data = data_of(read(run({"a": row()}, trace=(attempt("a", -5.0, -7.0),), finished_at=CREATED - 3)))
    assert (data["begin"], data["lasts"], data["total"]) == ([0], [0], 2_000_000)


def test_an_instant_beyond_any_calendar():
    """A run whose start is no date has it as a number."""
    assert tiles(read(run(created_at=1e300, finished_at=1e300)))["Began"] == "1e+300"


def test_a_name_that_the_report_has_no_row_for():
    """A task with attempts and without a row is shown all the same."""
    cells = table(read(run({}, trace=(attempt("a", 0, 1),))))["a"]
    assert (cells["Status"].text, cells["Attempts"].text) == ("–", "1")


def test_chips_are_there_for_what_there_is():
    """There is a button for each way in which something ended, and for retries if there were any."""

    def kinds(report):
        return [
            each.attributes["data-kind"]
            for each in read(report).all("button", _class="chip")
            if "data-kind" in each.attributes
        ]

    assert kinds(run({"a": row()})) == ["", "succeeded"]
    assert kinds(many(300)) == ["", "succeeded", "failed", "cancelled", "retried"]
    assert kinds(run({"a": row(Status.SKIPPED)})) == ["", "skipped"]


def test_ten_thousand_attempts_fit():
    """A page of ten thousand attempts is small, and none of them is missing."""
    text = many().to_html()
    assert len(text.encode()) < 600_000
    data = data_of(Reader(text).root)
    lists = [
        value for name, value in data.items() if name in ("task", "id", "attempt", "state", "row", "begin", "lasts")
    ]
    assert [len(each) for each in lists] == [10_000] * 7
    assert all(isinstance(each, int) for column in lists for each in column)


def test_very_many_tasks_are_cut():
    """A table of thousands of tasks keeps those that did not succeed, and says how many it leaves out."""
    rows = {f"t{number}": row(Status.FAILED if number % 1000 == 999 else Status.SUCCESS) for number in range(5000)}
    page = read(run(rows))
    shown = table(page)
    assert len(shown) == pages.MOST_ROWS
    assert {f"t{number}" for number in range(999, 5000, 1000)} <= set(shown)
    assert "4,000 tasks more than this table holds." in page.text


def test_the_page_of_a_real_run():
    """What a run did is on its page."""
    with Flow(name="orders") as flow:
        flow.add_task("load", lambda ctx: [1, 2])
        flow.add_task("save", lambda ctx: "saved", depends_on=["load"])
        flow.run("load", trace=True)
        page = read(flow.report())
    assert list(table(page)) == ["load", "save"]
    assert table(page)["save"]["Newest result"].text == "'saved'"
    assert len(data_of(page)["task"]) == 2


# ---- real runs, beside a plain count ----------------------------------------------------------------------


def traced(flow, start, **inputs):
    """Run a flow to its end, whatever that is; return the report."""
    with flow, contextlib.suppress(Exception):
        flow.run(start, inputs or None, trace=True)
    return flow.report()


def test_equal_failures_of_a_real_run_are_one_group():
    """However the engine notes where a failure comes from, those of one line are a group."""
    flow = Flow("inline", name="orders (new)", on_error="continue")
    names = [*["work"] * 250, "bad", "many", "many"]
    flow.add_task(
        "spread", lambda: [NextTask(name, {"payload": number}, spawn_another=True) for number, name in enumerate(names)]
    )

    def work(payload):
        raise ConnectionError("no line")

    def bad(payload):
        raise KeyError("k")

    def many(payload):
        raise ExceptionGroup("all", [OSError("1"), OSError("2")])

    for action in (work, bad, many):
        flow.add_task(action.__name__, action)
    found = [group[:2] for group in failures(read(traced(flow, "spread")))]
    assert sorted(found, key=lambda group: group[1]) == [("1×", "bad"), ("2×", "many"), ("250×", "work")]


def test_timeouts_of_a_map_are_one_group():
    """Our own errors name the task run in their message: that makes no group of its own."""
    trace = tuple(
        failed("a", number, error(f"Task run a#{number} took", "millstream.errors.TaskTimeoutError"))
        for number in range(1, 4)
    )
    assert [group[:2] for group in failures(read(run({"a": row()}, trace=trace)))] == [("3×", "a")]


def test_of_very_many_failures_each_kind_is_shown():
    """What is left out of a page never is the only failure of its task and type."""
    trace = [failed("a", number, error(f"no. {number}")) for number in range(300)]
    trace.append(failed("b", 400, error("the cause")))
    page = read(run({"a": row(), "b": row()}, trace=tuple(trace)))
    assert len(failures(page)) == pages.MOST_FAILURES
    assert failures(page)[-1][1] == "b"
    assert "101 more groups of failures left out." in page.one("section", id="failures").text
    assert page.all("details", id="failure-199")[0].one("b").text == "b"
    assert data_of(page)["errors"][-1] == ["ValueError", "the cause", 199]


def test_a_map_is_counted_by_its_items():
    """The map itself, which spans its items, is no attempt, has no worker, and a row of its own."""
    flow = Flow("thread", name="sizes", max_workers=2)
    flow.add_task("words", lambda: ["a", "b", "c"])
    tries = []

    def size(item):
        tries.append(item)
        if tries.count("b") == 1 and item == "b":
            raise OSError(item)
        return item

    flow.add_task("size", size, for_each="words", retries=1, backoff_base=0.001)
    report = traced(flow, "words")
    page = read(report)
    calls = [each for each in report.trace if each.task == "size" and each.id != "size"]
    cells, seen, data = table(page)["size"], tiles(page), data_of(page)
    assert len(calls) == 4
    assert cells["Runs"].text == "1 of 3 items"
    assert [value(cells[head]) for head in ("Attempts", "Retries", "Failed")] == [4, 1, 1]
    assert value(cells["Total time"]) == pytest.approx(sum(each.duration for each in calls), abs=1e-6)
    assert value(cells["p95"]) == pytest.approx(max(each.duration for each in calls), abs=1e-6)
    assert (seen["Attempts"], seen["Task runs"]) == ("5", "2and 3 items of maps")
    assert int(re.match(r"\d+", seen["Workers"])[0]) == len({each.worker for each in report.trace} - {""})
    assert data["rows"][-1] == "size (map)"
    assert data["peak"] <= 2
    (aside,) = data["aside"]
    assert (data["rows"][data["row"][aside]], data["id"][aside]) == ("size (map)", 0)


def test_a_map_never_makes_a_second_row_for_a_worker():
    """Nor does it in the other drawings."""
    trace = (
        attempt("size", 0, 4, worker=""),
        attempt("size", 0, 2, id="size[0]"),
        attempt("size", 2, 4, id="size[1]"),
        attempt("none", 4, 4, worker=""),
    )
    report = run({"size": row(), "none": row()}, trace=trace)
    assert data_of(read(report))["rows"] == ["w-1", "none (map)", "size (map)"]
    assert tiles(read(report))["At a time"] == "1.0mean, 1 at most"
    assert value(table(read(report))["none"]["Attempts"]) == 0
    for text in (report.to_chrome_trace(), report.to_timeline()):
        assert "size (map)" in text
        assert "w-1 (2)" not in text


def test_a_timeout_is_a_failure():
    """An attempt that is given up because of its timeout has failed: in figures, columns, buttons and groups."""
    flow = Flow("thread", on_error="continue")
    flow.add_task("slow", lambda: time.sleep(0.1), timeout=0.01)
    page = read(traced(flow, "slow"))
    assert tiles(page)["Failed"].startswith("1")
    assert value(table(page)["slow"]["Failed"]) == 1
    assert [group[:2] for group in failures(page)] == [("1×", "slow")]
    assert data_of(page)["kinds"] == ["failed"]
    chips = [each.attributes.get("data-kind") for each in page.all("button", _class="chip")]
    assert "failed" in chips
    assert "cancelled" not in chips


def test_who_was_told_to_stop_has_not_failed():
    """Neither an attempt nor a run that was cancelled is a failure."""
    stopped = error("told to stop", "millstream.errors.TaskCancelledError")
    report = run(
        {"a": row(Status.ABANDONED, error=stopped)},
        status=Status.CANCELLED,
        error=error("cancelled", "millstream.errors.RunCancelledError"),
        trace=(attempt("a", 0, 1, status=Status.ABANDONED, why=stopped),),
    )
    page = read(report)
    assert not failures(page)
    assert tiles(page)["Failed"].startswith("0")
    assert data_of(page)["kinds"] == ["cancelled"]


def test_a_resumed_run_keeps_the_order_of_what_ran_before():
    """The timeline begins with the first that is known; what has no attempt in the trace has its own times."""
    rows = {
        "first": row(started_at=CREATED - 20, finished_at=CREATED - 19),
        "second": row(started_at=CREATED - 10, finished_at=CREATED + 1),
        "never": row(Status.PENDING, started_at=None, finished_at=None, attempt=0, runs=0),
    }
    page = read(run(rows, trace=(attempt("second", 0.5, 1.0),), finished_at=CREATED + 1))
    first, second, never = table(page).values()
    assert [value(first[head]) for head in ("Began", "Ended", "Attempts", "p50")] == [0, 1, None, None]
    assert [value(second[head]) for head in ("Began", "Ended", "Attempts", "p50")] == [10, 21, 1, 0.5]
    assert (value(never["Attempts"]), never["Total time"].text) == (0, "–")
    assert (data_of(page)["begin"], data_of(page)["total"]) == ([20_500_000], 21_000_000)


def test_a_resumed_run_has_a_page():
    """A run that failed, was left and is resumed: every task is in the table, in the order in which it ran."""
    works = []

    def second(first):
        if not works:
            raise OSError("gone")

    with Flow("thread", store=MemoryStore()) as flow:
        flow.add_task("first", lambda: 1)
        flow.add_task("second", second)
        with pytest.raises(OSError, match="gone"):
            flow.run("first", run_id="r")
        works.append(True)
        flow.resume("r")
        report = flow.report()
    began = {name: value(cells["Began"]) for name, cells in table(read(report)).items()}
    assert 0 <= began["first"] < began["second"]
    assert data_of(read(report))["begin"][0] >= 0
