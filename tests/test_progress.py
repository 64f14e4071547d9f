"""The display of a run: what it says, and that it harms neither the run nor what others print.

Terminals are real ones, with an emulator at the other end. Where something must have been drawn, the tests wait for
the display to look at the run again, or for what arrives at the emulator.
"""

import fcntl
import importlib
import inspect
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time
from contextlib import contextmanager, suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.report import Tally, TaskProgress
from millstream.show.progress import display as progress
from millstream.show.progress import libraries
from millstream.show.progress.display import Log, Progress
from millstream.show.progress.last_rows import Line
from millstream.show.progress.status_line import (
    WINDOW,
    Rate,
    State,
    body,
    cut,
    duration,
    line,
    percent,
    printable,
    share,
    summary,
    tasks,
    width,
)
from millstream.values import Status
from tests.conftest import WATCHDOG, assert_gone, engine_threads, wait_for


def library(name):
    """Import what a test cannot do without; where everything has to be installed, fail without it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"With CI=true {name} has to be installed: {error}")
        return pytest.skip(f"{name} is not installed")


# ---- words ------------------------------------------------------------------------------------------


def tally(done=45, failed=0, skipped=0, running=3, waiting=52, total=100, progress=()):
    return Tally(done, failed, skipped, running, waiting, total, tuple(progress))


def state(name="orders", elapsed=12.0, rate=4.2, **numbers):
    return State(name, tally(**numbers), elapsed, rate)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (4.9, "4 s"),
        (59.99, "59 s"),
        (60, "1:00"),
        (65, "1:05"),
        (3599, "59:59"),
        (7390, "2:03:10"),
        (-3, "0 s"),
        (float("inf"), "277777:46:40"),
    ],
)
def test_durations(seconds, said):
    """Seconds are said as people say them."""
    assert duration(seconds) == said


def test_a_line_says_everything():
    """Numbers, rate and times stand in one line, and behind them what tasks say, the newest first."""
    told = [TaskProgress("count#2", 7, None), TaskProgress("download", 45, 100), TaskProgress("odd", 0.5, 2)]
    assert line(state(failed=2, skipped=1, progress=told), 200, bar=True) == (
        "orders: [####------] 48 %, 3 running, 45 done, 2 failed, 1 skipped, 52 waiting, 4.2/s, 12 s, 12 s left"
        " | odd 0.50/2 (25 %), download 45/100 (45 %), count#2 7"
    )


def test_what_is_not_known_is_not_said():
    """Without a total there are no percent, no bar and no time left; what is zero and bad is not mentioned."""
    assert line(state(total=None, rate=120.4), 200, bar=True) == ("orders: 3 running, 45 done, 52 waiting, 120/s, 12 s")
    assert "left" not in line(state(rate=0.0), 200)
    assert "%" not in line(state(done=0, total=0), 200)
    assert "%" not in line(state(done=9, total=5), 200)


def test_the_last_line_says_how_the_run_ended():
    """The summary has the status, the time, and the numbers that are not zero."""
    assert (
        summary(state(elapsed=65, running=0, waiting=0), Status.SUCCESS, 200) == "orders: SUCCESS after 1:05, 45 done"
    )
    assert summary(state(failed=1), Status.FAILED, 200) == (
        "orders: FAILED after 12 s, 45 done, 1 failed, 3 running, 52 waiting"
    )


def test_as_many_tasks_are_said_as_fit():
    """No task is cut: the one that told last stands first, and those that do not fit are left out."""
    told = [TaskProgress(f"t{number}", number, 10) for number in range(5)]
    assert tasks(told, 0) == ""
    assert tasks(told, len("t4 4/10 (40 %)")) == "t4 4/10 (40 %)"
    assert tasks(told, 35) == "t4 4/10 (40 %), t3 3/10 (30 %)"


@pytest.mark.parametrize("done", [float("nan"), float("inf"), -1, 2.5, 10**30])
@pytest.mark.parametrize("total", [None, 0, 1, float("nan"), float("inf"), -3])
def test_a_task_may_say_anything(done, total):
    """Numbers that make no sense are said, without percent that make none."""
    said = tasks([TaskProgress("t", done, total)], 500)
    assert said.startswith("t ")
    assert share(done, total) is None or 0 <= share(done, total) <= 1


def test_cutting_counts_columns():
    """East Asian signs take two columns, combining ones none; control characters are replaced."""
    assert width("東京") == 4
    assert width("e\u0301") == 1
    assert cut("東京都", 6) == "東京都"
    assert cut("東京都", 5) == "東京…"
    assert cut("東京都", 4) == "東…"
    assert cut("abc", 1) == "…"
    assert cut("abc", 0) == ""
    assert printable("a\x1b[2Jb\nc\td\x9b\u202e\ud800") == "a?[2Jb c d???"


names = st.text(max_size=60) | st.text(st.sampled_from("a東\u0301\x1b\n\x9b\u200d…"), max_size=60)
small = st.integers(0, 10**6)
amounts = st.floats(-10, 1e9) | st.integers(0, 10**9)
told = st.builds(TaskProgress, names, amounts, st.none() | amounts)
tallies = st.builds(Tally, small, small, small, small, small, st.none() | small, st.lists(told, max_size=4).map(tuple))
states = st.builds(State, names, tallies, st.floats(0, 1e6), st.floats(0, 1e6))


@given(states, st.integers(0, 200), st.booleans())
def test_no_line_is_too_wide_or_moves_the_cursor(state, most, bar):
    """Whatever the names are and however narrow the terminal."""
    for said in (line(state, most, bar=bar), summary(state, Status.SUCCESS, most), body(state, most)):
        assert width(said) <= most
        assert said.isprintable()


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 50)), min_size=1, max_size=60))
def test_the_rate_is_that_of_the_last_seconds(steps):
    """It is never below zero, nor above what ended since the window began, and forgets what was before."""
    rate, now, ended, seen = Rate(), 100.0, 0, []
    for step, more in steps:
        now, ended = now + step, ended + more
        seen.append((now, ended))
        given = rate.at(now, ended)
        since = next((n for n in range(len(seen) - 1, -1, -1) if seen[n][0] <= now - WINDOW), 0)
        took = now - seen[since][0]
        assert given == ((ended - seen[since][1]) / took if took >= 0.5 else 0.0)
    assert rate.at(now + 2 * WINDOW, ended) >= 0
    assert rate.at(now + 4 * WINDOW, ended) == 0


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_longer_time_is_said_as_a_longer_one(one, other):
    """Read back, durations are in the order of the seconds that they were made of."""

    def seconds(said):
        parts = [int(part) for part in said.removesuffix(" s").split(":")]
        return sum(part * 60**place for place, part in enumerate(reversed(parts)))

    assert seconds(duration(one)) == int(one)
    assert (seconds(duration(one)) <= seconds(duration(other))) or one > other


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_hundred_percent_is_all(done, total):
    """Percent are rounded down."""
    part = share(done, total)
    assert (part is None) == (done > total)
    assert part is None or (percent(part) == "100 %") == (done == total)


# ---- logs -------------------------------------------------------------------------------------------


class Run:
    """A run that never ends by itself, and knows how often it was looked at."""

    def __init__(self, looked=lambda run: None):
        self.done, self.looks, self._looked = 0, 0, looked
        self._changed = threading.Condition()

    def __call__(self):
        with self._changed:
            self.looks += 1
            self._changed.notify_all()
        self._looked(self)
        return tally(done=self.done)

    def drawn(self, times=1):
        """Wait until it was drawn so many times more."""
        with self._changed:
            goal = self.looks + times + 1
            assert self._changed.wait_for(lambda: self.looks >= goal, WATCHDOG)


class Written(io.StringIO):
    """A log that knows its single writes."""

    def __init__(self):
        super().__init__()
        self.writes = []

    def write(self, text):
        self.writes.append(text)
        return super().write(text)


def test_a_log_has_a_line_a_second_at_most_and_only_news():
    """What is not new is not written; what is new waits for the second to end."""
    log, written = Log(stream := Written()), []
    for elapsed, done in [(0.0, 0), (0.5, 1), (1.0, 1), (2.0, 1), (2.5, 1), (3.0, 2), (3.9, 3), (4.0, 3)]:
        before = len(stream.writes)
        log.draw(state(elapsed=elapsed, done=done))
        written += [elapsed] * (len(stream.writes) - before)
    assert written == [0.0, 1.0, 3.0, 4.0]


def test_the_lines_of_a_log(monkeypatch):
    """A display in a log writes whole lines without any control character, and a last one."""
    monkeypatch.setattr(Log, "beat", 0.0005)
    now = iter(range(10**9))
    run, stream = Run(lambda run: setattr(run, "done", run.done + 1)), Written()
    with shown(run, stream, clock=lambda: next(now) / 4) as display:
        run.drawn(40)
        display.close(Status.FAILED)
    assert len(stream.writes) >= 10
    assert all(text.endswith("\n") and text[:-1].isprintable() for text in stream.writes)
    done = [int(re.search(r"(\d+) done", text)[1]) for text in stream.writes[:-1]]
    assert all(later - earlier >= 4 for earlier, later in pairwise(done))  # a second is four looks
    assert stream.writes[-1].startswith("orders: FAILED after ")


@contextmanager
def shown(run, stream, name="orders", **options):
    """Show a run, and see to it that the display's thread is gone afterwards."""
    display = Progress(name, run, stream=stream, **options)
    display.begin()
    try:
        yield display
    finally:
        display.close(Status.SUCCESS)
        assert_gone(engine_threads("millstream-progress"))


def test_a_short_run_has_its_last_line():
    """A run that ends before anything is drawn says how it ended, once; after that the display does nothing more."""
    stream = Written()
    with shown(Run(), stream) as display:
        display.close(Status.SUCCESS)
        display.close(Status.FAILED)
        display.begin()
    assert stream.writes == ["orders: SUCCESS after 0 s, 3 running, 52 waiting\n".replace("s, 3", "s, 0 done, 3")]
    assert not progress._open


def test_another_process_closes_nothing():
    """A forked child has the display of its parent, whose locks may be taken for ever: it leaves them alone."""
    with shown(Run(), stream := Written()) as display:
        display._pid += 1
        display.close(Status.FAILED)
        assert not display._closing.is_set()
        display._pid -= 1
    assert stream.writes[-1].startswith("orders: SUCCESS")


def test_a_display_that_never_began_closes():
    """Closing comes first: nothing is shown, then or later."""
    display = Progress("orders", Run(), stream=(stream := Written()))
    display.close(Status.SUCCESS)
    display.begin()
    display.close(Status.SUCCESS)
    assert stream.writes == []
    assert not engine_threads("millstream-progress")


def test_an_encoding_that_lacks_signs():
    """A name that the stream cannot write is written as far as it can."""
    stream = io.TextIOWrapper(file := io.BytesIO(), encoding="ascii")
    with shown(Run(), stream, name="東京") as display:
        display.close(Status.SUCCESS)
        assert file.getvalue().startswith(b"??: SUCCESS")


def test_without_any_stream_nothing_is_shown(monkeypatch):
    """A program without a console has no display."""
    monkeypatch.setattr(sys, "stderr", None)
    display = Progress("orders", Run())
    display.begin()
    assert not engine_threads("millstream-progress")
    display.close(Status.SUCCESS)


def test_stderr_is_the_stream_unless_told(capsys):
    """The one that is there when the display begins."""
    with shown(Run(), None) as display:
        display.close(Status.SUCCESS)
    assert capsys.readouterr().err.startswith("orders: SUCCESS")


def test_a_tally_that_fails_ends_the_display(monkeypatch):
    """The thread ends, nothing is raised, and nothing more is said."""
    monkeypatch.setattr(Log, "beat", 0.001)

    def fails():
        raise SystemExit("no")

    with shown(fails, stream := Written()):
        assert_gone(engine_threads("millstream-progress"))
    assert stream.writes == []


def test_a_reader_that_is_gone_ends_the_display(monkeypatch):
    """A broken pipe, and a file that somebody closed, end the display alone."""
    monkeypatch.setattr(Log, "beat", 0.001)
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w", buffering=1)
    run = Run(lambda run: setattr(run, "done", run.done + 1))
    ticks = iter(range(10**9))
    with shown(run, stream, clock=lambda: float(next(ticks))):
        os.read(reader, 1)
        os.close(reader)
        assert_gone(engine_threads("millstream-progress"))
    with pytest.raises(BrokenPipeError):  # what is left in its buffer
        stream.close()
    with shown(run, stream):
        assert_gone(engine_threads("millstream-progress"))


def test_a_pipe_that_nobody_reads_does_not_hold_up_the_end():
    """The last line is given up: the thread is gone, and nobody holds the stream's lock."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    fill(writer)
    os.set_blocking(writer, True)
    with os.fdopen(writer, "w") as stream, shown(Run(), stream) as display:
        began = time.monotonic()
        display.close(Status.SUCCESS)
        assert time.monotonic() - began < 2
    os.close(reader)


def fill(fd):
    """Write until a file that does not block takes no more."""
    for size in (4096, 1):
        try:
            while True:
                os.write(fd, b"x" * size)
        except BlockingIOError:
            pass


# ---- the last rows of a terminal ------------------------------------------------------------------------

#: What every program on a terminal begins with.
PRELUDE = """
import logging, os, subprocess, sys, threading, time, warnings
for name in {hidden!r}:
    sys.modules[name] = None
from millstream.show.progress.last_rows import Line
from millstream.show.progress.display import Progress
from millstream.report import Tally, TaskProgress
from millstream.values import Status

WATCHDOG = {watchdog}
{classes}
Line.beat = 0.01

def shown(run, name="orders"):
    display = Progress(name, run)
    display.begin()
    run.drawn()
    return display

def asleep(display):
    # let it draw no more before it is closed
    wait, still = display._closing.wait, threading.Event()
    display._closing.wait = lambda beat: (beat > 1 and still.set(), wait(beat))[1]
    Line.beat = 1000
    assert still.wait(WATCHDOG)

def told():
    assert sys.stdin.readline()

def no_threads():
    return [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]

run = Run()
"""


#: What would change what is printed, and into how many writes a line goes.
NOT_HERE = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PYTHONUNBUFFERED")


class Terminal:
    """A terminal of so many rows and columns, with a program on it, and an emulator that shows it."""

    def __init__(self, source, rows=12, columns=100, hidden=("rich", "tqdm")):
        pyte = library("pyte")
        self.raw = b""
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.ByteStream(self.screen)
        self.master, slave = pty.openpty()
        size(self.master, rows, columns)
        classes = "\n\n".join(map(inspect.getsource, (tally, Run)))  # importing this module takes long
        program = PRELUDE.format(hidden=hidden, watchdog=WATCHDOG, classes=classes) + textwrap.dedent(source)
        environ = {name: value for name, value in os.environ.items() if name not in NOT_HERE}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program],
            stdin=subprocess.PIPE,
            stdout=slave,
            stderr=slave,
            env=environ | {"TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(WATCHDOG)
        self.process.stdin.close()
        os.close(self.master)

    def read(self):
        """Take what has arrived; False when nothing comes any more."""
        ready, _, _ = select.select([self.master], [], [], WATCHDOG)
        assert ready, f"nothing came:\n{self.text()}"
        try:
            data = os.read(self.master, 65536)
        except OSError:  # nobody has it open any more
            return False
        self.raw += data
        self._stream.feed(data)
        return True

    def until(self, true):
        """Read until something is so on the screen."""
        end = time.monotonic() + WATCHDOG
        while not true():
            assert self.read(), f"it ended before:\n{self.text()}"
            assert time.monotonic() < end, f"it did not become so:\n{self.text()}"

    def end(self, code=0):
        """Read all, and wait for the program to end."""
        while self.read():
            pass
        assert self.process.wait(WATCHDOG) == code, self.text()
        return self

    def tell(self):
        """Let the program go on."""
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def resize(self, rows, columns):
        self.screen.resize(rows, columns)
        size(self.master, rows, columns)

    def lines(self):
        """All lines that were ever printed, without those at the end that are empty."""
        return [text.rstrip() for text in "\n".join(self.wrapped()).rstrip().split("\n")]

    def wrapped(self):
        """All rows of the screen and of those that scrolled out of it, with the spaces at their ends."""
        above = ["".join(row[at].data for at in range(self.screen.columns)) for row in self.screen.history.top]
        return [*above, *self.screen.display]

    def rows(self):
        return [text.rstrip() for text in self.screen.display]

    def text(self):
        return "\n".join(self.lines())

    @property
    def region(self):
        """The number of the last row that scrolls; None when all do."""
        return self.screen.margins and self.screen.margins.bottom + 1


def size(fd, rows, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


LINE = re.compile(r"orders: \[-{10}\] 0 %, 3 running, 0 done, 52 waiting, \d+\.\d/s, \d+ s")
SUCCESS = re.compile(r"orders: SUCCESS after \d+ s, 0 done, 3 running, 52 waiting")


def test_a_run_has_the_last_row():
    """It is drawn there, and given back at the end, where one line says how the run ended."""
    source = """
        print("before")
        display = shown(run)
        print("during")
        told()
        display.close(Status.SUCCESS)
        print("after", no_threads())
    """
    with Terminal(source) as terminal:
        terminal.until(lambda: LINE.match(terminal.rows()[-1]) and "during" in terminal.rows())
        assert terminal.region == 11
        assert terminal.rows()[:-1] == ["before", "during", *[""] * 9]
        terminal.tell()
        terminal.end()
        assert terminal.region is None
        before, during, summary, after = terminal.lines()
        assert (before, during, after) == ("before", "during", "after []")
        assert SUCCESS.fullmatch(summary)
        assert (terminal.screen.cursor.y, terminal.screen.cursor.x) == (4, 0)


def test_nothing_that_anybody_prints_is_lost_or_mixed():
    """Hundreds of lines, of four kinds of writers at a time, while the display draws: all whole, each in its order."""
    source = """
        for number in range(20):
            print(f"print {number}.")
        display = shown(run)
        log = logging.getLogger()
        log.addHandler(logging.StreamHandler())
        child = "import sys\\nfor n in range(150): print(f'child {n}.', flush=True)"

        def logs():
            for number in range(150):
                log.warning(f"log {number}.")

        def writes():
            for number in range(150):
                os.write(1, f"write {number}.\\n".encode())

        threads = [threading.Thread(target=of) for of in (logs, writes)]
        process = subprocess.Popen([sys.executable, "-c", child])
        for thread in threads:
            thread.start()
        for number in range(20, 300):
            print(f"print {number}.")
            if number % 40 == 0:
                run.drawn()
        for thread in threads:
            thread.join()
        assert process.wait() == 0
        run.drawn()
        display.close(Status.SUCCESS)
        assert not no_threads()
    """
    with Terminal(source) as terminal:
        lines = terminal.end().lines()
        assert SUCCESS.fullmatch(lines.pop())
        for kind, count in (("print", 300), ("log", 150), ("write", 150), ("child", 150)):
            assert [text for text in lines if text.startswith(kind)] == [f"{kind} {n}." for n in range(count)]
        assert len(lines) == 750
        assert terminal.region is None
        assert terminal.raw.count(b"3 running, 0 done") > 10  # it was drawn meanwhile


def test_a_line_that_is_printed_in_pieces_stays_one():
    """What comes after is printed where the cursor was: also around the begin, and at the bottom of the screen."""
    source = """
        print(*(f"line {number}" for number in range(30)), sep="\\n")
        print("a", end="", flush=True)
        display = shown(run)
        print("b", end="", flush=True)
        run.drawn(3)
        print("c")
        print("d", end="", flush=True)
        display.close(Status.SUCCESS)
        print("e", end="", flush=True)
        display = shown(Run())
        print("f")
        display.close(Status.SUCCESS)
    """
    with Terminal(source) as terminal:
        lines = terminal.end().lines()
        assert lines[:32] == [*[f"line {number}" for number in range(30)], "abc", "d"]
        assert SUCCESS.fullmatch(lines[32])
        assert lines[33] == "ef"
        assert SUCCESS.fullmatch(lines[34])
        assert len(lines) == 35


@pytest.mark.parametrize(("rows", "columns"), [(20, 90), (7, 60), (12, 40)])
def test_a_resize_is_followed(rows, columns):
    """The row is the last one of the new size, as wide as that, and what is printed then is whole."""
    source = """
        print("first")
        display = shown(run)
        told()
        for number in range(50):
            print(f"line {number}.")
        run.drawn()
        told()
        display.close(Status.SUCCESS)
    """
    with Terminal(source) as terminal:
        terminal.until(lambda: terminal.rows()[-1])
        terminal.resize(rows, columns)
        terminal.until(lambda: terminal.region == rows - 1 and terminal.rows()[-1].startswith("orders: "))
        assert width(terminal.rows()[-1]) < columns
        terminal.tell()
        terminal.until(lambda: "line 49." in terminal.rows())
        assert [text for text in terminal.lines() if text and "orders" not in text][-50:] == [
            f"line {number}." for number in range(50)
        ]
        assert sum("orders" in text for text in terminal.lines()) == 1
        terminal.tell()
        terminal.end()
        assert terminal.region is None
        assert [text[:16] for text in terminal.lines() if "orders" in text] == ["orders: SUCCESS "]


@pytest.mark.parametrize(("rows", "columns"), [(20, 90), (12, 40), (13, 120)])
def test_a_resize_just_before_the_end(rows, columns):
    """Also a row that nobody knows the place of any more is taken away, and nothing else."""
    source = """
        print("first")
        display = shown(run)
        asleep(display)
        print("second", end="", flush=True)
        told()
        display.close(Status.SUCCESS)
    """
    with Terminal(source) as terminal:
        terminal.until(lambda: terminal.rows()[-1] and "second" in terminal.rows())
        terminal.resize(rows, columns)
        terminal.tell()
        lines = terminal.end().lines()
        assert terminal.region is None
        assert [text[:16] for text in lines if text][-2:] == ["second", "orders: SUCCESS "]
        assert sum("orders" in text for text in lines) == 1


def test_several_runs_have_a_row_each_up_to_a_third():
    """Each row is given back by itself; a run without a row is not drawn until there is one for it."""
    source = """
        print(*(f"line {number}" for number in range(30)), sep="\\n")
        runs = [Run() for _ in range(4)]
        displays = [shown(each, f"run {number}") for number, each in enumerate(runs)]
        print("all there")
        for display in displays:
            told()
            display.close(Status.SUCCESS)
        assert not no_threads()
    """

    def shows(*numbers):
        said = [text.split(": ")[0] for text in terminal.rows()[-len(numbers) :]]
        return said == [f"run {number}" for number in numbers] and terminal.region == 10 - len(numbers)

    with Terminal(source, rows=10) as terminal:
        terminal.until(lambda: shows(0, 1, 2) and "all there" in terminal.rows())
        assert not any("run 3" in text for text in terminal.lines())
        for left in ((1, 2, 3), (2, 3), (3,)):
            terminal.tell()
            terminal.until(lambda left=left: shows(*left))
        terminal.tell()
        terminal.end()
        assert terminal.region is None
        lines = terminal.lines()
        assert [text for text in lines if text and "run" not in text] == [
            *[f"line {n}" for n in range(30)],
            "all there",
        ]
        assert [text[:14] for text in lines if "run" in text] == [f"run {n}: SUCCESS" for n in range(4)]


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("raise ValueError('so')", 1),
        ("sys.exit(3)", 3),
        ("os.kill(os.getpid(), 2); time.sleep(10)", -signal.SIGINT),
        ("pass", 0),
    ],
)
def test_an_exit_gives_the_terminal_back(end, code):
    """However the interpreter exits, the region is gone, and the run is said to be abandoned."""
    with Terminal(f"display = shown(run)\n{end}") as terminal:
        lines = terminal.end(code).lines()
        assert terminal.region is None
        assert lines[-1].startswith("orders: ABANDONED")
        assert sum("orders: " in text for text in lines) == 1
        assert ("ValueError: so" in lines) == (code == 1)


def test_a_forked_child_has_no_display():
    """It does not draw, and neither its closing nor its exit touches the terminal; it may have one of its own."""
    source = """
        warnings.simplefilter("ignore")  # of a fork beside threads
        display = shown(run)
        asleep(display)
        print("forks")
        if not os.fork():
            display.close(Status.SUCCESS)
            print("child:", no_threads())
            sys.exit(0)
        os.wait()
        print("forks again")
        if not os.fork():
            display = Progress("child", Run())
            display.begin()
            sys.exit(0)  # gives back its own
        os.wait()
        display.close(Status.SUCCESS)
    """
    with Terminal(source) as terminal:
        lines = terminal.end().lines()
        assert lines[0] == "forks"
        assert lines[1:3] == ["child: []", "forks again"]
        assert lines[3].startswith("child: ABANDONED")
        assert SUCCESS.fullmatch(lines[4])
        assert len(lines) == 5
        between = terminal.raw.partition(b"child: []")[2].partition(b"forks again")[0]
        assert b"\x1b[r" not in between
        assert b"SUCCESS" not in between


@pytest.mark.parametrize(("term", "rows"), [("dumb", 12), ("", 12), ("xterm", 2), ("xterm", 0)])
def test_a_terminal_that_has_no_row_to_spare_is_a_log(monkeypatch, term, rows):
    """So is one that knows no escapes, or nobody knows the size of."""
    monkeypatch.setenv("TERM", term)
    with terminal_here(rows) as (_, stream):
        assert type(progress._simple(stream)) is Log
    monkeypatch.setenv("TERM", "xterm")
    with terminal_here(3) as (_, stream):
        assert type(progress._simple(stream)) is Line


@contextmanager
def terminal_here(rows=12):
    """Give the master of a terminal, and a stream to it, in this process."""
    master, slave = pty.openpty()
    size(master, rows, 80)
    stream = os.fdopen(slave, "w", encoding="utf-8")
    try:
        yield master, stream
    finally:
        stream.close()
        with suppress(OSError):  # the test has hung up
            os.close(master)


@pytest.fixture
def plain(monkeypatch):
    """Displays on terminals that need no library, and draw at once."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(Line, "beat", 0.005)
    for name in ("rich", "rich.console", "tqdm"):
        monkeypatch.setitem(sys.modules, name, None)


def test_a_terminal_that_takes_nothing_does_not_hold_up_the_end(plain):
    """Closing takes half a second. When the terminal takes output again, it is given back, and the thread ends."""
    with terminal_here() as (master, stream), shown(Run(), stream) as display:
        wait_for_bytes(master, b"3 running")
        other = os.open(os.ttyname(stream.fileno()), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        fill(other)
        began = time.monotonic()
        display.close(Status.SUCCESS)
        display.close(Status.SUCCESS)
        assert time.monotonic() - began < 3
        assert engine_threads("millstream-progress")
        assert b"\x1b[r" in wait_for_bytes(master, b"SUCCESS")
        os.close(other)


def wait_for_bytes(master, awaited):
    """Read until something has come; return all."""
    data = b""
    while awaited not in data:
        assert select.select([master], [], [], WATCHDOG)[0], data[-1000:]
        data += os.read(master, 65536)
    return data


def test_a_terminal_that_is_gone_ends_the_display(plain):
    """A terminal that hung up, a stream that was closed and a tally that fails end the display alone."""
    with terminal_here() as (master, stream), shown(Run(), stream):
        wait_for_bytes(master, b"3 running")
        os.close(master)
        assert_gone(engine_threads("millstream-progress"))
    with terminal_here() as (master, stream), shown(Run(), stream):
        wait_for_bytes(master, b"3 running")
        stream.close()
        assert_gone(engine_threads("millstream-progress"))

    def fails(run):
        if run.looks > 5:
            raise KeyError("no")

    with terminal_here() as (master, stream), shown(Run(fails), stream):
        wait_for_bytes(master, b"\x1b[r")  # given back all the same
        assert_gone(engine_threads("millstream-progress"))
    assert not progress._open


def test_nothing_is_remembered_of_displays_that_are_gone(plain):
    """Neither terminals nor displays are kept, and no more is called at exit."""
    from millstream.show.progress import last_rows

    with terminal_here() as (master, stream), shown(Run(), stream):
        wait_for_bytes(master, b"3 running")
        assert last_rows._terminals
        assert progress._open
    assert not last_rows._terminals
    assert not progress._open


# ---- libraries --------------------------------------------------------------------------------------

LIBRARIES = {"rich": (), "tqdm": ("rich",)}  # with what is hidden for it to be chosen


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("total", [100, None])
def test_a_library_draws(name, total):
    """The numbers are there while it runs; printed lines are whole, and a last line says how it ended."""
    library(name)
    source = f"""
        from millstream.show.progress.libraries import Library

        Library.beat = 0.01
        told_of = (TaskProgress("load", 4, 10),)
        run = Run()
        looks = run.__call__
        display = Progress("[b]orders[/b]", lambda: looks() and Tally(45, 1, 0, 3, 51, {total}, told_of))
        display.begin()
        told()
        for number in range(40):
            print(f"line {{number}}.")
            if number % 10 == 0:
                run.drawn()
        second = shown(Run(), "second")
        second.close(Status.SUCCESS)
        run.drawn()
        display.close(Status.SUCCESS)
        print("end", no_threads(), type(sys.stdout).__name__, type(sys.stderr).__name__)
    """
    with Terminal(source, hidden=LIBRARIES[name], columns=140) as terminal:
        terminal.until(lambda: "45 done" in terminal.text())
        said = next(text for text in terminal.rows() if "45 done" in text)
        assert "[b]orders[/b]" in said
        assert "3 running, 45 done, 1 failed, 51 waiting" in said
        assert "load 4/10 (40 %)" in said
        assert re.search(r"46 ?%", said) or total is None
        terminal.tell()
        lines = terminal.end().lines()
        assert any(text.startswith("second: SUCCESS") for text in lines)
        assert b"\x1b[1;11r" in terminal.raw  # the second one had the last row: a library draws one run
        assert lines[-2].startswith("[b]orders[/b]: SUCCESS after ")
        assert lines[-1] == "end [] TextIOWrapper TextIOWrapper"
        assert [text for text in lines if "line" in text] == [f"line {number}." for number in range(40)]
        assert terminal.region is None


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_keeps_what_others_print(name):
    """What was printed without an end stays, the end of another run is a line of its own, and no stream stays taken."""
    library(name)
    source = """
        from millstream.show.progress.libraries import Library

        Library.beat = 0.01
        print("Loading the orders ... ", end="", flush=True)
        display = Progress("orders", run)
        display.begin()
        told()
        second = shown(Run(), "second")
        second.close(Status.SUCCESS)
        kept = sys.stdout
        print("half", end="")
        display.close(Status.SUCCESS)
        print(type(kept).__name__, "and", type(sys.stdout).__name__, file=kept)
    """
    with Terminal(source, hidden=LIBRARIES[name], columns=140) as terminal:
        terminal.until(lambda: "3 running" in terminal.text())
        terminal.tell()
        lines = terminal.end().lines()
        assert lines[0] == "Loading the orders ..."
        assert lines[1].startswith("second: SUCCESS")
        assert lines[2].startswith("half")
        assert lines[-2].startswith("orders: SUCCESS after ")
        assert lines[-1] == "StandIn and TextIOWrapper"


def test_what_goes_elsewhere_is_not_redirected():
    """rich takes only what goes to its terminal: stdout in a file stays there, and a forked child prints by itself."""
    library("rich")
    source = """
        warnings.simplefilter("ignore")
        from millstream.show.progress.libraries import Library

        Library.beat = 0.01
        kept, sys.stdout = sys.stdout, open(os.devnull, "w")
        display = Progress("orders", run)
        display.begin()
        told()
        print("not here")
        if not os.fork():
            print(type(sys.stderr).__name__, file=sys.stderr)
            sys.exit(0)
        os.wait()
        display.close(Status.SUCCESS)
        sys.stdout.close()
        sys.stdout = kept
    """
    with Terminal(source, hidden=()) as terminal:
        terminal.until(lambda: "3 running" in terminal.text())
        terminal.tell()
        terminal.end()
        assert "TextIOWrapper" in terminal.text()
        assert "not here" not in terminal.text()


def test_a_fork_waits_for_the_drawing_to_end():
    """A child is never forked with the lock of a stream taken, which nobody could let go there."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(io.StringIO):
        def flush(self):
            inside.set()
            go_on.wait(WATCHDOG)

    display = Progress("orders", Run(), stream=Slow())
    display.begin()
    closing = threading.Thread(target=display.close, args=(Status.SUCCESS,))
    closing.start()
    wait_for(inside)
    progress._before_fork()  # gives up soon
    assert not progress._held
    go_on.set()
    closing.join(WATCHDOG)
    assert_gone(engine_threads("millstream-progress"))
    with shown(Run(), io.StringIO()) as display:
        progress._before_fork()
        held = display._drawing.locked()
        progress._after_fork_here()
        assert held
        assert not progress._held


@pytest.mark.parametrize("error", [ImportError, RuntimeError, SystemExit])
def test_a_library_that_is_broken_is_as_good_as_none(monkeypatch, plain, error):
    """Whatever importing it raises, the last row of the terminal is taken."""

    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("rich", "tqdm"):
                raise error(name)

    for name in [name for name in sys.modules if name.split(".")[0] in ("rich", "tqdm")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with terminal_here() as (master, stream), shown(Run(), stream):
        assert b"\x1b[1;11r" in wait_for_bytes(master, b"3 running")
    assert libraries._library is None


def test_libraries_are_imported_for_terminals_only():
    """Neither the module nor a display in a log imports them."""
    program = (
        "import io, sys\n"
        "from millstream.show.progress.display import Progress\n"
        "from millstream.report import Tally\n"
        "display = Progress('a', lambda: Tally(1, 0, 0, 0, 0, 1), stream=io.StringIO())\n"
        "display.begin(); display.close('SUCCESS')\n"
        "assert not {'rich', 'tqdm'} & set(sys.modules)\n"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=WATCHDOG, env=environ)
