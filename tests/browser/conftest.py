"""A headless Chromium for the tests of pages: one for the whole session, and after each test a look at what it did.

Needs ``selenium``, and ``chromium`` with ``chromedriver`` on the path. Without them the tests are skipped, unless the
environment has ``CI``: then they fail, so that nobody believes that they ran.
"""

import json
import os
import shutil

import pytest

from tests.conftest import WATCHDOG

try:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait
except ImportError:
    webdriver = None

#: Nothing in the background, so that every request that is seen is one of the page.
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


def missing():
    """Return the sentence that says what is missing, None when all is there."""
    if webdriver is None:
        return "needs selenium: pip install selenium"
    programs = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"needs {' and '.join(programs)} on the path" if programs else None


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """One browser for all tests."""
    reason = missing()
    if reason is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver, tmp_path):
    """The browser with a window of its usual size; at the end the console has to be empty, and nothing was loaded."""
    browser = Browser(driver, tmp_path)
    browser.resize(1280)
    browser.prefer("light")
    browser.complaints(), browser.loaded()  # of what was shown before
    yield browser
    assert (browser.complaints(), browser.loaded()) == ([], [])


class Browser:
    """What a reader does with a page."""

    def __init__(self, driver, folder):
        self.driver = driver
        self.path = folder / "run.html"

    def open(self, report):
        """Show a report, and wait until its script has run."""
        report.to_html(self.path)
        return self.show()

    def show(self):
        """The same for a page that is there."""
        self.driver.get(self.path.as_uri())
        self.until(lambda: self.run("return document.documentElement.dataset.ready"))
        self.settle()
        return self

    def resize(self, width, height=900):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, scheme, media=""):
        """Say whether the reader's system is light or dark, and whether the page is shown on a screen or in print."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [feature]})

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def until(self, true):
        """Wait until something is so; return it."""
        return WebDriverWait(self.driver, WATCHDOG, poll_frequency=0.01).until(lambda _: true())

    def settle(self):
        """Wait until what was asked for is drawn: two frames."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        )

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector):
        """Return the texts of elements that are visible."""
        return [each.text for each in self.driver.find_elements(By.CSS_SELECTOR, selector) if each.is_displayed()]

    def click(self, selector):
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", self.one(selector))
        self.one(selector).click()
        self.settle()

    def press(self, *keys):
        """Press keys, wherever the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()
        self.settle()

    def focused(self):
        """Return what has the focus, as a selector of a kind."""
        return self.run(
            "const e = document.activeElement; return e.id || e.dataset.task || e.dataset.kind || e.textContent.trim()"
        )

    # ---- the timeline

    def view(self):
        """Return what the canvas says of its state."""
        self.settle()
        data = self.run("return {...document.getElementById('canvas').dataset}")
        return {name: value if name == "selected" else float(value) for name, value in data.items()}

    def place(self, time, row):
        """Return where an instant of a row is on the canvas, from its upper left corner."""
        view = self.view()
        wide = self.one("#canvas").size["width"] - view["left"]
        x = view["left"] + (time - view["from"]) / (view["to"] - view["from"]) * wide
        return round(x), round(view["top"] + (row + 0.5) * view["row"])

    def at(self, x, y):
        """Return a chain of actions that begins at a place of the canvas."""
        canvas = self.one("#canvas")
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas)
        size = canvas.size
        chain = ActionChains(self.driver, duration=20)
        return chain.move_to_element_with_offset(canvas, x - size["width"] // 2, y - size["height"] // 2)

    def click_bar(self, time, row):
        self.at(*self.place(time, row)).click().perform()
        self.settle()

    def drag(self, begin, end, row=0):
        """Drag over the canvas from one instant to another."""
        (x, y), (x2, _) = self.place(begin, row), self.place(end, row)
        self.at(x, y).click_and_hold().move_by_offset(x2 - x, 0).release().perform()
        self.settle()

    def pixels(self, x, y, width=1):
        """Return the colours of pixels in a row, as red, green, blue and opacity of each.

        They are read from a copy: a canvas that is read again and again is complained of in the console.
        """
        return self.run(
            "const copy = document.createElement('canvas'), [x, y, wide] = arguments;"
            "copy.width = wide; copy.height = 1;"
            "const context = copy.getContext('2d', {willReadFrequently: true});"
            "context.drawImage(document.getElementById('canvas'), -x, -y);"
            "const found = context.getImageData(0, 0, wide, 1).data;"
            "return Array.from({length: wide}, (_, at) => [...found.slice(4 * at, 4 * at + 4)])",
            x, y, width,
        )  # fmt: skip

    # ---- what a page must not do

    def complaints(self):
        """Return what the console was told since the last look."""
        return [each["message"] for each in self.driver.get_log("browser") if each["level"] in ("WARNING", "SEVERE")]

    def loaded(self):
        """Return the addresses that were asked for since the last look, but for files and data."""
        asked = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                params = message["params"]
                asked.append(params.get("url") or params["request"]["url"])
        return [url for url in asked if not url.startswith(("data:", self.path.as_uri()))]

    def wheel(self, x, y, delta, *, ctrl):
        """Turn the wheel over a place of the canvas; return whether the page keeps it from scrolling."""
        return self.run(
            "const c = document.getElementById('canvas'), edge = c.getBoundingClientRect();"
            "return !c.dispatchEvent(new WheelEvent('wheel', {deltaY: arguments[2], ctrlKey: arguments[3],"
            " clientX: edge.left + arguments[0], clientY: edge.top + arguments[1], cancelable: true}))",
            x, y, delta, ctrl,
        )  # fmt: skip
