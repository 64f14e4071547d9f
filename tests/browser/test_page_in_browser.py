"""The page of a run in Chromium: what it shows, what it does when somebody clicks and types, and what it never does.

After every test the console has to be empty, and nothing but the page itself was loaded; see ``browser``.
"""

import importlib
from pathlib import Path

import pytest

from millstream import Flow
from millstream.diagram import Diagram, EdgeKind, TaskEdge, TaskNode
from millstream.values import Status
from tests.browser.conftest import missing
from tests.page_reports import NASTY, attempt, error, everywhere, many, row, run

pytestmark = pytest.mark.browser

if missing() is None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys


def small():
    """Return a run of three tasks in two workers; ``clean#2`` fails, and succeeds when it is tried again."""
    why = error("no paper", traceback="Traceback:\n  in clean\nValueError: no paper\n")
    trace = (
        attempt("load", 0.0, 2.0, worker="w-1"),
        attempt("clean", 2.0, 4.0, worker="w-1", id="clean#1"),
        attempt("clean", 2.0, 3.0, worker="w-2", id="clean#2", status=Status.FAILED, why=why),
        attempt("clean", 4.0, 6.0, worker="w-2", id="clean#2", number=2),
        attempt("save", 6.0, 7.0, worker="w-1"),
        attempt("save", 7.0, 9.0, worker="w-1", id="save#2", status=Status.CANCELLED),
    )
    rows = {
        "load": row(result=[1]),
        "clean": row(runs=2, attempt=2),
        "save": row(Status.CANCELLED),
        "later": row(Status.SKIPPED, runs=0, started_at=None, finished_at=None),
    }
    nodes = [TaskNode(name, status=each.status, runs=each.runs) for name, each in rows.items()]
    edges = [TaskEdge("load", "clean"), TaskEdge("clean", "save"), TaskEdge("save", "later", EdgeKind.ROUTE)]
    return run(rows, finished_at=1700000010.0, trace=trace, diagram=Diagram("orders", nodes, edges))


def names(browser):
    """Return the tasks of the table, in its order, as far as they are shown."""
    return browser.texts("#rows tbody th")


# ---- opening -------------------------------------------------------------------------------------------


def test_the_page_of_the_census(browser, monkeypatch):
    """The census of a folder, as its example writes it: all surveys are there; filter, zoom and graph work."""
    examples = Path(__file__).parents[2] / "examples"
    monkeypatch.syspath_prepend(str(examples))
    census = importlib.import_module("census")
    census.census(str(examples.parent / "src"), 20, processes=1, say=False, report=str(browser.path))
    browser.show()
    assert browser.one("h1").text == "census"
    assert names(browser) == ["walk", "survey", "table"]
    assert browser.view()["shown"] == 22
    drawn = browser.run("return [...document.querySelectorAll('.ms-task')].map(each => each.dataset.task)")
    assert sorted(drawn) == ["survey", "table", "walk"]
    browser.press("/", "survey#2")
    assert browser.view()["shown"] == 2  # and survey#20
    browser.press(Keys.ESCAPE)
    browser.click('.ms-task[data-task="table"]')
    assert (names(browser), browser.view()["shown"]) == (["table"], 1)
    browser.click("#one")
    whole = browser.view()
    browser.run("document.getElementById('canvas').focus()")
    browser.press("+")
    view = browser.view()
    assert view["to"] - view["from"] == pytest.approx((whole["to"] - whole["from"]) / 2)
    browser.press("0")
    assert browser.view()["shown"] == 22


def test_a_task_that_returns_a_script_shows_text(browser):
    """What a real run returns, raises and is called is text in its page."""
    script = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"

    def work():
        raise ValueError(script)

    with Flow("thread", name=script, on_error="continue") as flow:
        flow.add_task("gives", lambda: script)
        flow.add_task(script, work)
        flow.run(["gives", script], trace=True, metadata={script: script})
        browser.open(flow.report())
    assert browser.run("return window.pwned") is None
    assert browser.one("h1").text == script
    assert script in browser.one("#rows").get_attribute("textContent")
    assert any(script in text for text in browser.texts(".failure"))
    assert script in browser.run("return [...document.querySelectorAll('.ms-task')].map(each => each.dataset.task)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 800, 2000])
def test_the_page_is_never_wider_than_its_window(browser, width, scheme):
    """From a phone to a wall, nothing is cut off at the right."""
    browser.resize(width)
    browser.prefer(scheme)
    browser.open(many(300))
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return document.getElementById('canvas').getBoundingClientRect().width") > width / 2


def test_ten_thousand_attempts_open_soon(browser):
    """The script of a page with ten thousand attempts is done in far less than anybody would wait."""
    browser.open(many())
    assert browser.view()["shown"] == 10_000
    assert float(browser.run("return document.documentElement.dataset.ready")) < 3000


def test_the_colours_change_by_button_and_with_the_system(browser):
    """The page is as dark as the system, until its button says otherwise."""
    ground = "return getComputedStyle(document.body).backgroundColor"
    browser.prefer("dark")
    browser.open(small())
    dark = browser.run(ground)
    canvas = browser.pixels(200, 20)
    browser.click("#theme")
    assert browser.run("return document.documentElement.dataset.theme") == "light"
    light = browser.run(ground)
    assert light != dark
    browser.settle()
    assert browser.pixels(200, 20) != canvas
    browser.click("#theme")
    assert browser.run(ground) == dark
    browser.prefer("light")
    browser.open(small())
    assert browser.run(ground) == light


def test_all_is_there_without_scripts(browser):
    """Without scripts the page has its figures, graph, tasks and failures, and says what is missing."""
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        small().to_html(browser.path)
        browser.driver.get(browser.path.as_uri())
        assert "has not run here" in browser.one("noscript").text
        assert names(browser) == ["load", "clean", "save", "later"]
        assert browser.one("svg.ms-graph").is_displayed()
        assert browser.texts(".failure pre") != []
        assert not browser.one("#filter").is_displayed()
        assert not browser.one("#canvas").is_displayed()
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


# ---- what others wrote -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", NASTY[:7] + NASTY[12:13], ids=ascii)
def test_what_others_wrote_never_runs(browser, text):
    """Markup in names, errors, results, metadata and workers is text, also where the script shows it."""
    browser.open(everywhere(text))
    browser.one("#canvas").click()
    browser.run("document.getElementById('canvas').focus({preventScroll: true})")
    browser.press("n")
    assert text in browser.one("#detail").get_attribute("textContent")
    browser.at(*browser.place(0.25, 0)).perform()
    browser.until(lambda: browser.one("#tip").is_displayed())
    assert text in browser.one("#tip").get_attribute("textContent")
    browser.click(".only")
    assert browser.one("#one span").get_attribute("textContent") == text
    assert browser.run("return window.pwned") is None
    assert browser.run("return document.querySelectorAll('script').length") == 2
    assert browser.run("return document.querySelectorAll('img, [onfocus], [onload], [onerror]').length") == 0
    assert browser.one("h1").get_attribute("textContent") == text


def test_the_policy_stops_what_would_get_in(browser):
    """Even a script that somehow got into the page does not run: the policy knows ours alone."""
    browser.open(small())
    browser.run(
        "const s = document.createElement('script'); s.textContent = 'window.pwned = 1'; document.body.append(s);"
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned=1\">')"
    )
    browser.settle()
    assert browser.run("return window.pwned") is None
    assert len(browser.complaints()) >= 2  # it says so, as it should
    browser.loaded()


# ---- the filter ----------------------------------------------------------------------------------------


def test_the_filter_holds_for_everything(browser):
    """A text chooses tasks in the table, bars in the timeline, tasks of the graph, and failures."""
    browser.open(small())
    assert browser.view()["shown"] == 6
    browser.press("/", "CLEAN")
    assert browser.focused() == "filter"
    assert names(browser) == ["clean"]
    assert browser.view()["shown"] == 3
    assert len(browser.texts(".failure")) == 1
    assert browser.run("return document.querySelectorAll('.ms-task.dimmed').length") == 3
    assert browser.one("#found").text == "1 of 4 tasks · 3 of 6 attempts"
    browser.one("#filter").clear()
    browser.one("#filter").send_keys("save#2")
    assert names(browser) == ["save"]
    assert browser.view()["shown"] == 1
    assert browser.texts(".failure") == []
    browser.press(Keys.ESCAPE)
    assert len(names(browser)) == 4
    assert browser.view()["shown"] == 6
    assert browser.one("#filter").get_attribute("value") == ""


@pytest.mark.parametrize(
    ("kind", "shown", "tasks"),
    [("succeeded", 4, ["load", "clean", "save"]), ("failed", 1, ["clean"]), ("cancelled", 1, ["save"]),
     ("retried", 2, ["clean"]), ("skipped", 0, ["later"])],
)  # fmt: skip
def test_buttons_choose_by_status(browser, kind, shown, tasks):
    """Each button chooses the attempts that ended so, and the tasks that have some or ended so."""
    browser.open(small())
    browser.click(f'[data-kind="{kind}"]')
    assert browser.view()["shown"] == shown
    assert names(browser) == tasks
    assert browser.one(f'[data-kind="{kind}"]').get_attribute("aria-pressed") == "true"
    browser.click('[data-kind=""]')
    assert browser.view()["shown"] == 6


def test_a_task_of_the_graph_chooses_that_task(browser):
    """A click on a task, or Enter, shows that task alone; the same again shows all."""
    browser.open(small())
    browser.click('.ms-task[data-task="clean"]')
    assert names(browser) == ["clean"]
    assert browser.view()["shown"] == 3
    assert browser.one('.ms-task[data-task="clean"]').get_attribute("aria-pressed") == "true"
    assert browser.one("#one").is_displayed()
    browser.run("document.querySelector('.ms-task[data-task=load]').focus()")
    browser.press(Keys.ENTER)
    assert names(browser) == ["load"]
    browser.press(Keys.ENTER)
    assert len(names(browser)) == 4
    browser.click("#rows tbody tr:nth-child(3) .only")
    assert names(browser) == ["save"]
    browser.click("#one")
    assert len(names(browser)) == 4


# ---- the timeline ----------------------------------------------------------------------------------------


def test_zoom_by_key(browser):
    """Plus, minus, arrows and 0 zoom, unzoom, move and reset the timeline that has the focus."""
    browser.open(small())
    browser.run("document.getElementById('canvas').focus()")
    browser.press("+")
    view = browser.view()
    assert (view["from"], view["to"]) == (2.5, 7.5)
    browser.press(Keys.ARROW_LEFT)
    assert browser.view()["from"] == 1.5
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert browser.view()["to"] == 8.5
    browser.press("-")
    assert (browser.view()["from"], browser.view()["to"]) == (0, 10)
    browser.press("+", "+", "0")
    assert (browser.view()["from"], browser.view()["to"]) == (0, 10)


def test_zoom_stops_at_both_ends(browser):
    """However often somebody zooms, there is something to see, and never more than the run."""
    browser.open(small())
    browser.run("document.getElementById('canvas').focus()")
    browser.press("+" * 40)
    view = browser.view()
    assert 0 < view["to"] - view["from"] < 0.001
    browser.press("-" * 60)
    assert (browser.view()["from"], browser.view()["to"]) == (0, 10)


def test_zoom_by_drag(browser):
    """A drag over the timeline zooms into that range, and only bars in it are counted; a double click resets."""
    browser.open(small())
    browser.drag(4.5, 5.5)
    view = browser.view()
    assert (view["from"], view["to"]) == (pytest.approx(4.5, abs=0.05), pytest.approx(5.5, abs=0.05))
    assert view["shown"] == 1
    browser.at(*browser.place(5, 0)).double_click().perform()
    assert browser.view()["shown"] == 6


def test_a_drag_that_comes_back_does_nothing(browser):
    """A drag that ends where it began neither zooms nor chooses, and Esc gives a drag up."""
    browser.open(small())
    x, y = browser.place(4.5, 0)
    browser.at(x, y).click_and_hold().move_by_offset(200, 0).move_by_offset(-199, 0).release().perform()
    view = browser.view()
    assert (view["from"], view["to"], view["selected"]) == (0, 10, "")
    browser.press("/", "clean")
    browser.at(x, y).click_and_hold().move_by_offset(200, 0).send_keys(Keys.ESCAPE).release().perform()
    view = browser.view()
    assert (view["from"], view["to"], view["shown"]) == (0, 10, 3)  # the filter stays: Esc was for the drag


def test_escape_shows_everything_again(browser):
    """Esc takes back filter, zoom and choice; when it hides what has the focus, the filter gets that."""
    browser.open(small())
    browser.click_bar(2.5, 1)
    browser.click('[data-view="in"]')
    browser.click('.ms-task[data-task="clean"]')
    browser.run("document.getElementById('one').focus()")
    browser.press(Keys.ESCAPE)
    view = browser.view()
    assert (view["from"], view["to"], view["selected"], view["shown"]) == (0, 10, "", 6)
    assert browser.focused() == "filter"
    assert not browser.one("#one").is_displayed()


def test_the_rows_go_to_the_first_hit(browser):
    """Where a filter leaves all rows empty that are seen, the first that is not comes into view; Page Down scrolls."""
    trace = tuple(attempt("a", 0, 9.0, worker=f"w-{number}", id=f"a#{number + 1}") for number in range(90))
    browser.open(run({"a": row(runs=90)}, trace=trace))
    browser.press("/", "a#88")
    browser.click_bar(5, 28)
    assert browser.view()["selected"] == "a#88"
    browser.press(Keys.ESCAPE)
    browser.run("document.getElementById('canvas').focus()")
    browser.press(Keys.PAGE_UP, Keys.PAGE_UP, Keys.PAGE_UP)
    browser.click_bar(5, 0)
    assert browser.view()["selected"] == "a#1"
    browser.press(Keys.PAGE_DOWN)
    browser.click_bar(5, 0)
    assert browser.view()["selected"] == "a#32"


def test_zoom_by_button_and_wheel(browser):
    """The buttons zoom; the wheel does with Ctrl, at the pointer, and without it is left to the page."""
    browser.open(small())
    browser.click('[data-view="in"]')
    assert (browser.view()["from"], browser.view()["to"]) == (2.5, 7.5)
    browser.click('[data-view="out"]')
    browser.click('[data-view="in"]')
    browser.click('[data-view="reset"]')
    assert (browser.view()["from"], browser.view()["to"]) == (0, 10)
    x, y = browser.place(8, 0)
    assert not browser.wheel(x, y, -300, ctrl=False)
    assert browser.view()["to"] == 10
    assert browser.wheel(x, y, -300, ctrl=True)
    view = browser.view()
    assert view["to"] - view["from"] < 8
    assert (8 - view["from"]) / (view["to"] - view["from"]) == pytest.approx(0.8, abs=0.01)


def test_the_strip_moves_the_view(browser):
    """A click into the strip above moves what is seen there; a drag in it zooms."""
    browser.open(small())
    browser.click('[data-view="in"]')
    x, _ = browser.place(7.4, 0)
    browser.at(x, 12).click().perform()
    assert browser.view()["to"] == 10
    view = browser.view()
    wide = browser.one("#canvas").size["width"] - view["left"]
    browser.at(round(view["left"] + wide * 0.2), 12).click_and_hold().move_by_offset(
        round(wide * 0.2), 0
    ).release().perform()
    assert browser.view()["from"] == pytest.approx(2, abs=0.05)
    assert browser.view()["to"] == pytest.approx(4, abs=0.05)


def test_a_click_on_a_bar_shows_what_it_was(browser):
    """A bar that is clicked tells its task run, worker, times and error; a click beside it takes that back."""
    browser.open(small())
    browser.click_bar(2.5, 1)
    assert browser.view()["selected"] == "clean#2"
    said = browser.one("#detail").text
    for part in ("clean#2", "failed", "w-2", "+2.00 s", "1.00 s", "ValueError no paper", "in clean"):
        assert part in said
    told = browser.run("return document.querySelector('[aria-live]').textContent")
    assert "clean#2" in told
    assert "ValueError: no paper" in told
    assert "in clean" not in told  # nobody listens to a whole traceback
    browser.click_bar(8.0, 0)
    assert "cancelled" in browser.one("#detail").text
    browser.click_bar(1.0, 1)
    assert browser.view()["selected"] == ""


def test_bars_are_found_where_they_are_drawn(browser):
    """Where a bar is drawn has the colour of its task; one that failed is red; where there is none is none."""
    browser.open(small())

    def pixel(time, row):
        x, y = browser.place(time, row)
        return browser.pixels(x, y + 6)[0]

    assert pixel(1.8, 0) == [0x3F, 0x70, 0xC8, 255]
    assert pixel(3.8, 0) == pixel(5.8, 1) == [0x13, 0x82, 0x6F, 255]
    assert pixel(2.9, 1) == [0xD0, 0x34, 0x3C, 255]
    assert pixel(0.8, 1)[3] == 0


def test_no_bar_is_too_short_to_be_seen(browser):
    """A bar of no length at all is drawn, and a failure among thousands lies on top."""
    trace = [attempt("a", 0.001 * number, 0.001 * number + 0.0009, id=f"a#{number + 1}") for number in range(9000)]
    trace[4500] = attempt("a", 4.5, 4.5, id="a#4501", status=Status.FAILED, why=error())
    browser.open(run({"a": row(runs=9000)}, finished_at=1700000020.0, trace=(*trace, attempt("b", 15.0, 15.0))))

    def around(time):
        x, y = browser.place(time, 0)
        return browser.pixels(x - 2, y + 6, 5)

    assert [0xD0, 0x34, 0x3C, 255] in around(4.5)
    assert any(opacity for *_, opacity in around(15.0))
    assert not any(opacity for *_, opacity in around(17.0))
    browser.click_bar(4.5, 0)
    assert browser.view()["selected"] == "a#4501"


def test_n_and_p_walk_through_the_attempts(browser):
    """``n`` and ``p`` go from attempt to attempt of the filter, and bring each into view."""
    browser.open(small())
    browser.click('[data-kind="retried"]')
    browser.run("document.getElementById('canvas').focus()")
    walked = []
    for key in "nnnp":
        browser.press(key)
        walked.append((browser.view()["selected"], browser.texts("#detail dd")[2]))
    assert walked == [("clean#2", "1"), ("clean#2", "2"), ("clean#2", "2"), ("clean#2", "1")]
    browser.press("+" * 8)
    browser.press("n")
    view = browser.view()
    assert view["from"] <= 5 <= view["to"]


def test_rows_scroll_when_there_are_many(browser):
    """Arrows and buttons scroll the rows; the row of what is chosen comes into view."""
    trace = tuple(attempt("a", number / 10, 9.0, worker=f"w-{number}", id=f"a#{number + 1}") for number in range(90))
    browser.open(run({"a": row(runs=90)}, trace=trace))
    assert browser.one('[data-view="down"]').is_displayed()
    browser.run("document.getElementById('canvas').focus()")
    browser.press("p")
    assert browser.view()["selected"] == "a#90"
    browser.click_bar(8.95, 0)
    first = browser.view()["selected"]
    assert first not in ("", "a#1")
    browser.press(*[Keys.ARROW_UP] * 90)
    browser.click_bar(8.95, 0)
    assert browser.view()["selected"] == "a#1"
    browser.click('[data-view="down"]')
    browser.click_bar(8.95, 0)
    assert browser.view()["selected"] == "a#2"


def test_the_pointer_shows_a_tip(browser):
    """Over a bar there is a tip with what it is; beside it there is none."""
    browser.open(small())
    browser.at(*browser.place(2.5, 1)).perform()
    browser.until(lambda: browser.one("#tip").is_displayed())
    assert "clean#2" in browser.one("#tip").text
    assert "no paper" in browser.one("#tip").text
    browser.at(*browser.place(9.5, 1)).perform()
    browser.until(lambda: not browser.one("#tip").is_displayed())


def test_a_run_without_a_trace_has_a_bar_for_each_task(browser):
    """Without a trace the timeline has tasks as rows."""
    report = small()
    report.trace = None
    browser.open(report)
    assert browser.view()["shown"] == 3
    assert browser.view()["row"] == 24
    browser.click_bar(0.1, 1)
    assert browser.view()["selected"] == "clean"


# ---- table, graph, keys ------------------------------------------------------------------------------------


def test_the_table_is_sorted_by_its_heads(browser):
    """A click on a head sorts by it, another one the other way round; what has no number stays last."""
    browser.open(small())

    def head(number):
        return f"#rows thead th:nth-child({number}) button"

    browser.click(head(1))
    assert names(browser) == ["clean", "later", "load", "save"]
    assert browser.one("#rows thead th:nth-child(1)").get_attribute("aria-sort") == "ascending"
    browser.click(head(1))
    assert names(browser) == ["save", "load", "later", "clean"]
    browser.click(head(9))
    assert names(browser)[:3] == ["clean", "save", "load"]
    browser.run("document.querySelector(arguments[0]).focus()", head(10))
    browser.press(Keys.ENTER)
    browser.press(Keys.SPACE)
    assert browser.one("#rows thead th:nth-child(10)").get_attribute("aria-sort") == "ascending"
    assert names(browser)[-1] == "later"
    assert browser.run("return document.querySelectorAll('[aria-sort]').length") == 1


def test_the_graph_is_moved_and_sized(browser):
    """Buttons, keys and the pointer move and size the graph; a drag chooses no task."""
    browser.open(small())

    def box():
        return [
            float(part)
            for part in browser.run("return document.querySelector('#pane svg').getAttribute('viewBox')").split()
        ]

    whole = box()
    browser.click('[data-graph="in"]')
    assert box()[2] < whole[2]
    browser.click('[data-graph="fit"]')
    assert box() == whole
    browser.run("document.getElementById('pane').focus()")
    browser.press("+", Keys.ARROW_RIGHT)
    assert box()[2] < whole[2]
    browser.press("0")
    assert box() == whole
    browser.press("1")
    assert box()[2] == pytest.approx(browser.one("#pane").get_property("clientWidth"), abs=1)
    browser.press("0")
    node = browser.one('.ms-task[data-task="clean"]')
    ActionChains(browser.driver, duration=20).move_to_element(node).click_and_hold().move_by_offset(
        60, 20
    ).release().perform()
    assert box()[0] == pytest.approx(whole[0] - 60, abs=4)
    assert len(names(browser)) == 4


def test_a_large_graph_opens_in_a_size_that_can_be_read(browser):
    """A graph of two hundred tasks is larger than its pane: what gets the focus is moved into it, Fit shows all."""
    nodes = [TaskNode(f"task {number}") for number in range(200)]
    edges = [TaskEdge(f"task {number // 3}", f"task {number}") for number in range(1, 200)]
    browser.open(run({"task 0": row()}, diagram=Diagram("large", nodes, edges)))
    hidden = (
        "const box = document.getElementById('pane').getBoundingClientRect();"
        "return [...document.querySelectorAll('.ms-task')].filter((node) => {"
        " const own = node.getBoundingClientRect();"
        " return own.left < box.left || own.right > box.right || own.top < box.top || own.bottom > box.bottom;"
        "}).map((node) => node.dataset.task)"
    )
    height = "return document.querySelector('.ms-task').getBoundingClientRect().height"
    out = browser.run(hidden)
    assert out
    assert browser.run(height) > 20
    browser.run(
        "[...document.querySelectorAll('.ms-task')].find((e) => e.dataset.task == arguments[0]).focus()", out[-1]
    )
    assert out[-1] not in browser.run(hidden)
    browser.click('[data-graph="fit"]')
    assert browser.run(hidden) == []
    browser.resize(700)
    browser.settle()
    assert browser.run(hidden) == []


def test_tasks_are_counted_that_the_table_has_no_room_for(browser):
    """The filter says of how many tasks it shows some: of those of the run, not of the rows."""
    names = [f"t{number}" for number in range(1200)]
    browser.open(run({name: row(Status.FAILED if name == "t1199" else Status.SUCCESS) for name in names}))
    browser.press("/", "t")
    assert browser.one("#found").text == "1,200 of 1,200 tasks"
    browser.press("1199")
    assert browser.one("#found").text == "1 of 1,200 tasks"
    browser.press(Keys.ESCAPE)
    browser.click('[data-kind="succeeded"]')
    assert browser.one("#found").text == "1,199 of 1,200 tasks"


@pytest.mark.parametrize("width", [641, 760, 900, 1280])
def test_what_has_the_focus_is_not_covered(browser, width):
    """Whatever the Tab key reaches, either way, and every heading that is gone to, is clear of the bar."""
    browser.resize(width, 500)
    browser.open(many(300))
    covered = (
        "const bar = document.getElementById('bar').getBoundingClientRect();"
        "const e = arguments[0] || document.activeElement;"
        "const own = e.getBoundingClientRect();"
        "return !document.getElementById('bar').contains(e) && own.top < bar.bottom - 1 && own.bottom > bar.top"
    )
    for section in ("graph", "timeline", "tasks", "failures"):
        browser.run("location.hash = arguments[0]", section)
        browser.until(lambda name=section: not browser.run(covered, browser.one(f"#h-{name}")))
    browser.run("document.querySelector('#rows tbody tr:last-child .only').focus()")
    for _ in range(12):
        browser.driver.switch_to.active_element.send_keys(Keys.SHIFT, Keys.TAB)
        browser.until(lambda: not browser.run(covered))


def test_everything_is_reached_by_key(browser):
    """The Tab key reaches every control in its order; / and ? work from anywhere, Esc closes and clears."""
    browser.open(small())
    seen = []
    for _ in range(60):
        browser.press(Keys.TAB)
        here = browser.focused()
        if seen and here == seen[0]:
            break
        seen.append(here)
    places = [seen.index(each) for each in ("theme", "help", "filter", "failed", "pane", "load", "canvas")]
    assert places == sorted(places)
    browser.press("?")
    browser.until(lambda: browser.one("#keys").is_displayed())
    browser.press(Keys.ESCAPE)
    browser.until(lambda: not browser.one("#keys").is_displayed())
    browser.press("/", "load", "?")
    assert browser.one("#filter").get_attribute("value") == "load?"
    assert not browser.one("#keys").is_displayed()
    browser.press(Keys.ESCAPE)
    assert len(names(browser)) == 4


def test_the_focus_can_be_seen(browser):
    """Whatever the Tab key reaches has an outline."""
    browser.open(small())
    for _ in range(12):
        browser.press(Keys.TAB)
        style = browser.run(
            "const s = getComputedStyle(document.activeElement); return s.outlineStyle + ' ' + s.outlineWidth"
        )
        assert style == "solid 2px", browser.focused()


def test_all_of_it_is_printed(browser):
    """On paper there is the whole graph, every row of the timeline, and what the filter was."""
    nodes = [TaskNode("hub"), *[TaskNode(f"leaf {number}") for number in range(100)]]
    edges = [TaskEdge("hub", f"leaf {number}") for number in range(100)]
    trace = tuple(attempt("hub", 0, 9.0, worker=f"w-{number}", id=f"hub#{number + 1}") for number in range(50))
    browser.open(run({"hub": row(runs=50)}, trace=trace, diagram=Diagram("star", nodes, edges)))
    box = "return document.querySelector('#pane svg').getAttribute('viewBox')"
    on_screen = browser.run(box)
    browser.press("/", "hub")
    rows = "return canvas.offsetHeight / canvas.dataset.row"
    assert browser.run(rows) < 50
    assert not browser.one("#printed").is_displayed()
    browser.prefer("light", "print")
    browser.settle()
    hidden = (
        "const box = document.getElementById('pane').getBoundingClientRect();"
        "return [...document.querySelectorAll('.ms-task')].filter((node) => {"
        " const own = node.getBoundingClientRect();"
        " return own.left < box.left || own.right > box.right || own.top < box.top || own.bottom > box.bottom;"
        "}).length"
    )
    assert browser.run(hidden) == 0
    assert browser.run(rows) > 50
    assert browser.one("#printed").text == "Filtered by “hub”: 1 of 1 tasks · 50 of 50 attempts."
    browser.prefer("light")
    browser.settle()
    assert browser.run(rows) < 50
    assert browser.run(box) == on_screen


def test_a_star_opens_with_its_hub(browser):
    """A graph that is much higher than its pane opens where it begins, not at its upper left corner."""
    nodes = [TaskNode("hub"), *[TaskNode(f"leaf {number}") for number in range(100)]]
    edges = [TaskEdge("hub", f"leaf {number}") for number in range(100)]
    browser.open(run({"hub": row()}, diagram=Diagram("star", nodes, edges)))
    box, hub = (browser.one(selector).rect for selector in ("#pane", '.ms-task[data-task="hub"]'))
    assert hub["height"] > 20
    assert hub["y"] + hub["height"] / 2 == pytest.approx(box["y"] + box["height"] / 2, abs=30)


def test_it_can_be_printed(browser):
    """On paper there are no controls, the traceback of every failure, and dark letters even of a dark page."""
    browser.prefer("dark")
    browser.open(many(300))
    ground = browser.pixels(300, 4)
    browser.prefer("dark", "print")
    browser.settle()
    assert not browser.one("#filter").is_displayed()
    assert browser.one("#canvas").is_displayed()
    unseen = "return [...document.querySelectorAll('.failure pre')].filter((e) => !e.checkVisibility()).length"
    assert browser.run(unseen) == 0
    assert browser.pixels(300, 4) == [[255, 255, 255, 255]]
    browser.prefer("dark")
    browser.settle()
    assert browser.pixels(300, 4) == ground
