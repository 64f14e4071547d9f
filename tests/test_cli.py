"""The command ``millstream`` as somebody at a terminal sees it: what is on stdout, what on stderr, the exit code."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from collections import Counter
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest

from millstream import cli
from tests.conftest import WATCHDOG, until
from tests.elsewhere import alive, assert_ends, lines_of

ROOT = Path(__file__).parent.parent
DECLARED = ROOT / "examples" / "declared"
MILLSTREAM = (sys.executable, "-m", "millstream")
SETTINGS = ("PYTHONWARNINGS", "PYTHONUTF8", "PYTHONDEVMODE", "PYTHONTRACEMALLOC", "PYTHONUNBUFFERED", "COLUMNS")
ENV = {name: value for name, value in os.environ.items() if name not in SETTINGS} | {
    "PYTHONIOENCODING": "utf-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class Done(NamedTuple):
    """What is left of a command."""

    code: int
    out: str
    err: str


def forget(known):
    """Forget modules that were imported from a folder of a test or of the examples, as a new process would."""
    for name in set(sys.modules) - known:
        file = str(getattr(sys.modules[name], "__file__", None))
        if not file.startswith((sys.prefix, sys.base_prefix, str(ROOT / "src"), str(ROOT / "tests"))):
            del sys.modules[name]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder that the test stands in; what is imported from it is forgotten at the end."""
    modules = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    forget(modules)


@pytest.fixture
def call(here, capsys):
    """Do what a command line says, in this process."""

    def called(*args):
        importlib.invalidate_caches()
        capsys.readouterr()
        known = set(sys.modules)
        try:
            code = cli.main(list(args))
        except SystemExit as ended:  # argparse
            code = ended.code
        finally:
            forget(known)
        return Done(code, *capsys.readouterr())

    return called


def start(*args, **options):
    """Run the command as a process of its own."""
    options = {"cwd": os.getcwd(), "env": ENV, "encoding": "utf-8", "timeout": 2 * WATCHDOG, **options}
    if "stdout" not in options:
        options["stdout"] = subprocess.PIPE
    done = subprocess.run(
        [*MILLSTREAM, *args], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False, **options
    )
    return Done(done.returncode, done.stdout, done.stderr)


@contextmanager
def begun(*args, line="waiting\n", **options):
    """Start the command, and go on when it has printed its first line; it is killed when something hangs."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with subprocess.Popen([*MILLSTREAM, *args], env=ENV, encoding="utf-8", **pipes, **options) as process:
        watchdog = threading.Timer(2 * WATCHDOG, process.kill)
        watchdog.start()
        try:
            assert process.stdout.readline() == line
            yield process
        finally:
            process.kill()
            watchdog.cancel()
            watchdog.join()


def rest_of(process):
    """Wait for the end of a process."""
    out, err = process.communicate(timeout=WATCHDOG)
    return Done(process.returncode, out, err)


def write(name, text):
    """Write a file into the folder that the test stands in."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text), encoding="utf-8")
    return path


def strict(text):
    """Read JSON as its specification has it, which has no NaN."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def assert_told(done, code, *parts):
    """It ended with this code, one sentence on stderr that says these, and nothing on stdout."""
    assert done.code == code
    assert done.out == ""
    assert done.err.startswith("millstream: ")
    assert done.err.endswith("\n")
    assert "Traceback" not in done.err
    for part in parts:
        assert part in done.err


SHOP = """
    from millstream import Flow

    flow = Flow("inline", name="shop")

    def log(word):
        with open("log", "a") as file:
            file.write(word + "\\n")

    @flow.task(description="Reads the till.")
    def till(start=1):
        log("till")
        return start + 1

    @flow.task
    def books(till):
        log("books")
        return [till, "pages"]

    @flow.task
    def bank(till):
        log("bank")
        return f"{till} €"
"""

STEPS = """
    from pathlib import Path
    from millstream import Flow

    flow = Flow("inline", name="steps")

    def log(word):
        with open("log", "a") as file:
            file.write(word + "\\n")

    @flow.task
    def fetch():
        log("fetch")
        return 20

    @flow.task
    def check(fetch):
        log("check")
        if not Path("allowed").exists():
            raise RuntimeError("not allowed yet")
        return fetch + 1

    @flow.task
    def store(check):
        log("store")
        return check * 2
"""

APPROVAL = """
    from millstream import Flow

    flow = Flow(name="approval")

    def log(word):
        with open("log", "a") as file:
            file.write(word + "\\n")

    @flow.task
    def order():
        log("order")
        return 3

    @flow.task
    def ask(ctx, order):
        log("ask")
        print("waiting", flush=True)
        try:
            return ctx.get("approved", external=True)
        finally:
            log("finally")

    @flow.task
    def ship(ask, order):
        log("ship")
        return f"{order} sent, since somebody said {ask}"
"""


# ---- run --------------------------------------------------------------------------------------------


def test_run_prints_the_outputs_of_the_last_task_runs(here):
    """Each output has a line, in the order of the tasks; nothing is on stderr."""
    write("shop.py", SHOP)
    assert start("run", "shop:flow") == Done(0, 'books: [2, "pages"]\nbank: 2 €\n', "")


def test_run_starts_with_a_task(call):
    """The task behind the target is where the run begins, and what follows it comes after."""
    write("shop.py", SHOP)
    assert call("run", "shop:flow", "till", "-i", "start=41") == Done(0, 'books: [42, "pages"]\nbank: 42 €\n', "")
    assert_told(call("run", "shop:flow", "tlil"), 2, "Task tlil not found. Did you mean till?")


def test_run_only_what_is_asked_for(call):
    """--only runs tasks and what they depend on; it may come again, and names none that are not there."""
    write("shop.py", SHOP)
    assert call("run", "shop:flow", "--only", "bank") == Done(0, "bank: 2 €\n", "")
    assert lines_of(Path("log")) == ["till", "bank"]
    both = call("run", "shop:flow", "--only", "bank", "--only", "books")
    assert both == Done(0, 'books: [2, "pages"]\nbank: 2 €\n', "")
    assert_told(call("run", "shop:flow", "--only", "bnak"), 2, "Task bnak not found. Did you mean bank?")


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("x=1", 1),
        ("x= 1.5 ", 1.5),
        ("x=one", "one"),
        ('x="1"', "1"),
        ("x=a=b", "a=b"),
        ("x==", "="),
        ("x=", ""),
        ("x=true", True),
        ("x=True", "True"),
        ("x=null", None),
        ('x={"a": [1, 2]}', {"a": [1, 2]}),
        ("x=[1, 2", "[1, 2"),
        ("x=2026-11-22", "2026-11-22"),
        ("x=größe", "größe"),
        ("x=" + "[" * 100_000, "[" * 100_000),
        ("x=NaN", "NaN"),
        ("x=Infinity", "Infinity"),
    ],
    ids=lambda value: f"{value!r:.20}",
)
def test_input_is_json_or_text(call, given, value):
    """-i KEY=VALUE gives a JSON value where it is one, else text; the first = is the sign."""
    write("one.py", "from millstream import Flow\nflow = Flow('inline')\nflow.add_task('say', lambda x: repr(x))\n")
    assert call("run", "one.py", "-i", given) == Done(0, f"say: {value!r}\n", "")


@pytest.mark.parametrize("given", ["x", "=1", ""])
def test_input_without_a_key_or_sign_is_refused(call, given):
    """-i without a key or without = is told, and nothing is run."""
    write("shop.py", SHOP)
    assert_told(call("run", "shop:flow", "-i", given), 2, f"-i {given}: write it as KEY=VALUE")
    assert not Path("log").exists()


def test_several_inputs_are_set_in_the_context(call):
    """-i may come again, and every task can read it."""
    write(
        "sum.py",
        """
        from millstream import Flow
        flow = Flow("inline")
        flow.add_task("first", lambda a: a)
        flow.add_task("both", lambda ctx, first: first + ctx.get("b"))
        """,
    )
    assert call("run", "sum.py", "--input", "a=1", "-i", "b=2") == Done(0, "both: 3\n", "")


def test_a_missing_input_is_told(call):
    """A first task whose parameter nothing fills is not begun."""
    write("one.py", "from millstream import Flow\nflow = Flow('inline')\nflow.add_task('say', lambda ctx, x: x)\n")
    assert_told(call("run", "one.py"), 2, "say", "x")


FAILING = """
    from millstream import Flow

    class Broken(Exception):
        pass

    flow = Flow("inline", name="failing")

    @flow.task
    def own():
        raise Broken("the press is broken")

    @flow.task
    def key():
        raise KeyError("colour")

    @flow.task
    def plain():
        raise ValueError("3 is too few")

    @flow.task
    def silent():
        raise ValueError

    @flow.task
    def leaves():
        raise SystemExit(7)

    @flow.task
    def strange():
        raise ValueError("a\\ud800b")
"""


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("own", "Broken: the press is broken"),
        ("key", "KeyError: 'colour'"),
        ("plain", "3 is too few"),
        ("silent", "ValueError: "),
        ("leaves", "Task run leaves raised SystemExit(7)."),
    ],
)
def test_a_failure_is_one_sentence_and_where_it_was(call, task, told):
    """What a task raised is told in one sentence, its note below it, without a traceback; the exit code is 1."""
    write("failing.py", FAILING)
    done = call("run", "failing.py", task, "--run-id", "r")
    assert done == Done(1, "", f"millstream: {told}\n  In task run {task} of flow run r (failing).\n")


def test_a_failure_as_a_process(here):
    """The same as a process of its own; --debug shows the traceback instead."""
    write("failing.py", FAILING)
    assert_told(start("run", "failing.py", "own"), 1, "millstream: Broken: the press is broken\n")
    done = start("run", "failing.py", "own", "--debug")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Traceback (most recent call last):\n")
    assert 'failing.py", line 11, in own' in done.err
    assert "Broken: the press is broken" in done.err
    assert_told(start("run", "failing.py", "strange"), 1, r"a\ud800b")


def test_several_failures_are_all_told(call):
    """When several tasks have failed on their own, each is named."""
    write(
        "pair.py",
        """
        from threading import Barrier
        from millstream import Flow
        both = Barrier(2)

        def fails(error):
            both.wait(10)
            raise error

        flow = Flow(name="pair", max_workers=2)
        flow.add_task("left", lambda: fails(KeyError("colour")))
        flow.add_task("right", lambda: fails(ValueError("3 is too few")))
        """,
    )
    done = call("run", "pair.py", "--only", "left", "--only", "right")
    assert_told(done, 1, "  KeyError: 'colour'\n", "  ValueError: 3 is too few\n")


ALL_THE_SAME = """
    from millstream import Flow

    flow = Flow("inline", name="night", on_error="continue")
    flow.add_task("bad", lambda: 1 / 0)
    flow.add_task("good", lambda: 1)
    flow.add_task("after", lambda bad: bad, depends_on=["bad"])
"""


@pytest.mark.parametrize("args", [[], ["--json"]], ids=["text", "json"])
def test_a_flow_that_goes_on_after_a_failure(call, args):
    """With on_error="continue" the outputs are printed, and the failure is told: the run has FAILED."""
    write("night.py", ALL_THE_SAME)
    done = call("run", "night.py", *args)
    if args:
        assert (strict(done.out)["status"], strict(done.out)["results"]) == ("FAILED", {"good": 1})
    else:
        assert done.out == "good: 1\n"
    assert done.code == 1
    assert done.err.startswith("millstream: ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("command", ["run", "check", "graph"])
def test_debug_shows_where_a_refusal_comes_from(call, command):
    """--debug gives a traceback for what was not begun, too."""
    done = call(command, "nowhere:flow", "--debug")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Traceback (most recent call last):\n")
    assert "There is no module nowhere" in done.err


def test_timeout_ends_the_run(call):
    """--timeout ends a run that would wait for ever, with exit code 1."""
    write("approval.py", APPROVAL)
    done = call("run", "approval.py", "--timeout", "0.05", "--run-id", "slow")
    assert done == Done(1, "waiting\n", "millstream: Run slow took longer than its timeout of 0.05 s.\n")
    assert lines_of(Path("log")) == ["order", "ask", "finally"]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_a_timeout_that_is_none_is_refused(call, seconds):
    """A timeout is a positive number of seconds."""
    write("shop.py", SHOP)
    assert_told(call("run", "shop:flow", "--timeout", seconds), 2, "timeout")


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["rnu", "shop:flow"],
        ["run"],
        ["run", "shop:flow", "--tmeout", "3"],
        ["run", "shop:flow", "--timeout", "soon"],
        ["run", "shop:flow", "till", "bank"],
        ["graph", "shop:flow", "--format", "png"],
        ["runs"],
        ["show", "r"],
        ["resume", "shop:flow"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_told(call, args):
    """What cannot be read as a command line ends with exit code 2, its usage on stderr, and nothing on stdout."""
    write("shop.py", SHOP)
    done = call(*args)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("usage: millstream")
    assert re.search(r"^millstream[a-z ]*: error: .+", done.err.splitlines()[-1])


def test_help_is_what_was_asked_for(call):
    """--help goes to stdout, and tells every command and every exit code."""
    done = call("--help")
    assert (done.code, done.err) == (0, "")
    for word in ("run", "graph", "check", "runs", "show", "resume", *map(str, (0, 1, 2, 3, 130, 141))):
        assert re.search(rf"^ +{word}  ", done.out, re.MULTILINE), word
    for command in ("run", "graph", "check", "runs", "show", "resume"):
        assert call(command, "--help").out.startswith(f"usage: millstream {command} ")


def test_the_command_is_installed():
    """The package has the command as a script."""
    (script,) = entry_points(group="console_scripts", name="millstream")
    assert script.load() is cli.main


def test_r28_a_run_prints_only_what_was_asked_for(here):
    """A run of 1,000 tasks prints its one result and nothing else, on either stream."""
    write(
        "many.py",
        """
        from millstream import Flow, NextTask
        flow = Flow(name="many", entry="split", max_workers=2)
        flow.add_task("split", lambda: [NextTask("part", {"n": n}, spawn_another=True) for n in range(998)]
                                       + [NextTask("total", join=True)])
        flow.add_task("part", lambda n: n)
        flow.add_task("total", lambda upstream: sum(upstream))
        """,
    )
    done = start("run", "many.py")
    assert done == Done(0, f"total: {sum(range(998))}\n", "")


def test_r28_only_the_join_is_printed_when_it_alone_is_last(here):
    """A fan-out by edges has one last task: one line on stdout, none on stderr."""
    write(
        "wide.py",
        """
        from millstream import Flow
        flow = Flow(name="wide", max_workers=2)
        names = [f"part{n}" for n in range(998)]
        flow.add_task("split", lambda: 1)
        for name in names:
            flow.add_task(name, lambda split: split, depends_on=["split"])
        flow.add_task("total", lambda upstream: sum(upstream.values()), depends_on=names)
        """,
    )
    assert start("run", "wide.py") == Done(0, "total: 998\n", "")


def test_what_tasks_print_comes_first_and_in_order(here):
    """Tasks print to stdout as they do without the command; the outputs follow."""
    write(
        "talk.py",
        """
        from millstream import Flow
        flow = Flow(name="talk")
        flow.add_task("first", lambda: print("one"))
        flow.add_task("second", lambda: print("two") or "three", depends_on=["first"])
        """,
    )
    assert start("run", "talk.py") == Done(0, "one\ntwo\nsecond: three\n", "")


def test_tasks_in_processes(here):
    """A file whose flow calls its functions in processes can be run: they are importable over there."""
    text = """
        import os
        from millstream import Flow

        def numbers():
            return [1, 2, 3]

        def square(item):
            return item * item, os.getpid()

        def total(square):
            return [sum(number for number, _ in square), os.getpid() in {pid for _, pid in square}]

        flow = Flow("process", name="work", max_workers=2)
        flow.add_task("numbers", numbers)
        flow.add_task("square", square, for_each="numbers")
        flow.add_task("total", total, depends_on=["square"], executor="thread")
    """
    write("work.py", text)
    write("below/my-work.py", text)
    assert start("run", "work.py:flow") == Done(0, "total: [14, false]\n", "")
    assert start("run", "below/my-work.py") == Done(0, "total: [14, false]\n", "")


def test_a_config_file_with_processes(here):
    """A config file may have its functions called in processes, too."""
    write("work.py", "def numbers():\n    return [1, 2, 3]\n\ndef square(item):\n    return item * item\n")
    write(
        "work.json",
        """
        {"flow": {"executor": "process", "max_workers": 1, "edges": ["numbers >> square"], "tasks": {
            "numbers": "work.numbers", "square": {"callable": "work.square", "for_each": "numbers"}}}}
        """,
    )
    assert start("run", "work.json") == Done(0, "square: [1, 4, 9]\n", "")


# ---- JSON -------------------------------------------------------------------------------------------


def test_json_is_the_report_with_results_and_error(here):
    """--json prints one document: the report of the run, its results, and no error."""
    write("shop.py", SHOP)
    done = start("run", "shop:flow", "--json", "--run-id", "r1")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    said = strict(done.out)
    assert [said["run_id"], said["flow"], said["status"], said["error"]] == ["r1", "shop", "SUCCESS", None]
    assert said["results"] == {"books": [2, "pages"], "bank": "2 €"}
    assert {name: row["status"] for name, row in said["tasks"].items()} == dict.fromkeys(
        ("till", "books", "bank"), "SUCCESS"
    )
    assert said["tasks"]["till"]["result"] == 2
    assert said["created_at"] <= said["finished_at"]


def test_json_of_a_run_that_failed(here):
    """A failed run is one JSON document as well; the sentence is on stderr, the exit code 1."""
    write("failing.py", FAILING)
    done = start("run", "failing.py", "own", "--json")
    assert done.code == 1
    assert done.err.startswith("millstream: Broken: the press is broken\n")
    said = strict(done.out)
    assert (said["status"], said["results"]) == ("FAILED", None)
    assert said["error"]["message"] == "the press is broken"
    assert said["error"]["type"].endswith("Broken")
    assert said["error"]["traceback"].startswith("Traceback")
    assert said["tasks"]["own"]["status"] == "FAILED"


def test_json_is_the_last_line_when_tasks_print(call):
    """What tasks print stands before the document."""
    write("talk.py", "from millstream import Flow\nflow = Flow('inline')\nflow.add_task('a', lambda: print('one'))\n")
    first, document = call("run", "talk.py", "--json").out.splitlines()
    assert first == "one"
    assert strict(document)["results"] == {"a": None}


def test_json_of_what_was_not_begun_is_nothing(call):
    """What was not begun has no report."""
    assert_told(call("run", "nowhere:flow", "--json"), 2, "There is no module nowhere")


# ---- values -----------------------------------------------------------------------------------------

VALUES = """
    from dataclasses import dataclass
    from millstream import Flow

    @dataclass
    class Point:
        x: int

    class Secret:
        def __repr__(self):
            raise RuntimeError("nobody may see this")

    def circle(times):
        made = [1]
        made += [made] * times
        return made

    def nested(depth):
        made = []
        for _ in range(depth):
            made = [made]
        return made

    flow = Flow("inline", name="values")
    flow.add_task("value", lambda code: eval(str(code)))
"""


@pytest.mark.parametrize(
    ("code", "text", "as_json"),
    [
        ("None", "null", None),
        ("True", "true", True),
        ("3", "3", 3),
        ("0.1", "0.1", 0.1),
        ("''", "", ""),
        ("'größe → 東京'", "größe → 東京", "größe → 東京"),
        ("['größe']", '["größe"]', ["größe"]),
        ("'two\\nlines'", "two\nlines", "two\nlines"),
        ("(1, 2)", "[1, 2]", [1, 2]),
        ("b'\\xff'", r"b'\xff'", r"b'\xff'"),
        ("{1}", "{1}", "{1}"),
        ("[b'x', None]", "[b'x', None]", ["b'x'", None]),
        ("Point(1)", "Point(x=1)", "Point(x=1)"),
        ("{1: 2}", '{"1": 2}', {"1": 2}),
        ("{(1, 2): {3: b'x'}}", "{(1, 2): {3: b'x'}}", {"(1, 2)": {"3": "b'x'"}}),
    ],
    ids=lambda value: f"{value!r:.16}",
)
def test_outputs_of_any_kind_are_printed(call, code, text, as_json):
    """A text is printed as it is, other values as JSON, and what JSON has no word for as Python shows it."""
    write("values.py", VALUES)
    assert call("run", "values.py", "-i", f"code={code}") == Done(0, f"value: {text}\n", "")
    done = call("run", "values.py", "-i", f"code={code}", "--json")
    assert (done.code, done.err, strict(done.out)["results"]) == (0, "", {"value": as_json})


def test_a_list_in_itself_is_printed(call):
    """A list that is in itself has an end, as text and as JSON."""
    write("values.py", VALUES)
    assert call("run", "values.py", "-i", "code=circle(1)") == Done(0, "value: [1, [...]]\n", "")
    done = call("run", "values.py", "-i", "code=circle(1)", "--json")
    assert strict(done.out)["results"]["value"][:1] == [1]
    assert len(done.out) < 5000


def test_a_list_in_itself_twice_is_printed(call):
    """A list that is in itself twice does not grow with each level."""
    write("values.py", VALUES)
    done = call("run", "values.py", "-i", "code=circle(2)", "--json")
    assert len(done.out) < 100_000


UNPRINTABLE = {
    "lone_surrogate": "'a\\ud800b'",
    "lone_surrogate_in_a_list": "['a\\ud800b']",
    "long_number": "10 ** 5000",
    "without_a_repr": "Secret()",
    "too_deep": "nested(100_000)",
}


@pytest.mark.parametrize("json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("name", UNPRINTABLE)
def test_outputs_that_are_hard_to_print(here, name, json):
    """A run that went well ends with exit code 0, whatever its output is: the rest of it can still be read."""
    write("values.py", VALUES)
    done = start("run", "values.py", "-i", f"code={UNPRINTABLE[name]}", *(["--json"] if json else []))
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("\n")
    assert not json or strict(done.out)["status"] == "SUCCESS"


@pytest.mark.parametrize("json", [False, True], ids=["text", "json"])
def test_output_for_a_terminal_without_these_letters(here, json):
    """Where stdout has no such letter, the output is printed with something in its place."""
    write("shop.py", SHOP)
    args = ["--json"] if json else []
    done = start("run", "shop:flow", "--only", "bank", *args, env=ENV | {"PYTHONIOENCODING": "ascii"})
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_numbers_that_json_does_not_have(call, number):
    """--json is JSON also when an output is no number."""
    write("values.py", VALUES)
    done = call("run", "values.py", "-i", f"code=float('{number}')", "--json")
    assert strict(done.out)["status"] == "SUCCESS"


# ---- targets ----------------------------------------------------------------------------------------

TWO = """
    from millstream import Flow
    alpha, beta = Flow("inline", name="alpha"), Flow("inline", name="beta")
    alpha.add_task("a", lambda: "A")
    beta.add_task("b", lambda: "B")

    def make():
        flow = Flow("inline", name="made")
        flow.add_task("m", lambda: "M")
        return flow

    def number():
        return 3

    def needy(x):
        pass

    def broken():
        raise RuntimeError("no flow today")

    def leaves():
        raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("target", "out"),
    [
        ("two:alpha", "a: A\n"),
        ("two:beta", "b: B\n"),
        ("two.py:alpha", "a: A\n"),
        ("./two.py:beta", "b: B\n"),
        ("two:make", "m: M\n"),
        ("two.py:make", "m: M\n"),
        ("one", "only: 1\n"),
        ("one.py", "only: 1\n"),
        ("one:", "only: 1\n"),
        ("inner.deep", "only: 1\n"),
        ("inner.deep:flow", "only: 1\n"),
        ("inner/deep.py", "only: 1\n"),
        ("flow.JSON", "only: 1\n"),
        ("flow.toml", "only: 1\n"),
        ("flow.yml", "only: 1\n"),
        ("my.flow.yaml", "only: 1\n"),
    ],
)
def test_targets(call, target, out):
    """A flow is found by module, file, name, factory or config file; the only one of a module without its name."""
    if target.endswith(("yml", "yaml")):
        pytest.importorskip("yaml")
    one = "from millstream import Flow\nflow = again = Flow('inline')\nflow.add_task('only', lambda: 1)\n"
    write("two.py", TWO)
    write("one.py", one)
    write("inner/__init__.py", "")
    write("inner/deep.py", one)
    write("things.py", "def only():\n    return 1\n")
    write("flow.JSON", '{"flow": {"tasks": {"only": "things.only"}}}')
    write("flow.toml", '[flow.tasks]\nonly = "things.only"\n')
    for name in ("flow.yml", "my.flow.yaml"):
        write(name, "flow:\n  tasks:\n    only: things.only\n")
    assert call("run", target) == Done(0, out, "")
    assert call("run", str(Path.cwd() / target)).out == out if "/" in target else True


def test_a_file_by_its_whole_path(here, call, tmp_path_factory):
    """A file anywhere may be named by its whole path, and imports its neighbours."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "neighbour_of_it.py").write_text("VALUE = 5\n")
    file = elsewhere / "far_away.py"
    file.write_text(
        "from millstream import Flow\nfrom neighbour_of_it import VALUE\n"
        "flow = Flow('inline')\nflow.add_task('v', lambda: VALUE)\n"
    )
    try:
        assert call("run", str(file)) == Done(0, "v: 5\n", "")
        assert call("run", f"{file}:flow") == Done(0, "v: 5\n", "")
    finally:
        for name in ("neighbour_of_it", "far_away"):
            sys.modules.pop(name, None)


#: Of these targets, those that are there and cannot be used; so cannot the modules and files that fail.
UNFIT = ("two:needy", "two:broken", "two:leaves", "folder.toml", "", ":flow", ".two:alpha")


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("two:aplha", "two has no flow aplha: did you mean alpha?"),
        ("two.py:betta", "two.py has no flow betta: did you mean beta?"),
        ("two:zzz", "two has no flow zzz: it has alpha, beta."),
        ("two", "Which flow of two? Write two:name; it has alpha, beta."),
        ("two.py", "Which flow of two.py? Write two.py:name; it has alpha, beta."),
        ("two:number", "two has no flow number: it has alpha, beta."),
        ("two:needy", "needy() missing 1 required positional argument: 'x'"),
        ("none", "Which flow of none? Write none:name; it has none."),
        ("none:x", "none has no flow x: it has no flows."),
        ("nowhere:flow", "There is no module nowhere: name a module, or a file that ends in .py, .yaml, "),
        ("nowhere.at.all:flow", "There is no module nowhere.at.all: "),
        ("nowhere.py", "There is no file nowhere.py: check the path."),
        ("nowhere.py:flow", "There is no file nowhere.py: check the path."),
        ("nowhere.json", "There is no file nowhere.json: check the path."),
        ("folder.py", "There is no file folder.py: check the path."),
        ("folder.toml", "folder.toml: it cannot be read"),
        ("raises", "Importing raises failed: RuntimeError: not now."),
        ("raises.py", "Importing raises.py failed: RuntimeError: not now."),
        ("leaves:flow", "Importing leaves failed: SystemExit: 4."),
        ("leaves.py:flow", "Importing leaves.py failed: SystemExit: 4."),
        ("lacks", "Importing lacks failed: No module named 'nowhere_at_all'."),
        ("lacks.py", "Importing lacks.py failed: No module named 'nowhere_at_all'."),
        ("syntax", "Importing syntax failed: SyntaxError: "),
        ("syntax.py", "(syntax.py, line 2)"),
        ("syntax.json", "syntax.json: it cannot be read: "),
        ("syntax.toml", "syntax.toml: it cannot be read: "),
        ("", "Importing "),
        (":flow", "Importing "),
        (".two:alpha", "Importing .two failed: "),
        ("two:broken", "no flow today"),
        ("two:leaves", "SystemExit"),
    ],
)
@pytest.mark.parametrize("command", ["run", "graph"])
def test_targets_that_are_none(call, command, target, told):
    """A target that names no flow is told in one sentence, with the nearest name where there is one."""
    write("two.py", TWO)
    write("none.py", "number = 1\n")
    write("raises.py", "raise RuntimeError('not now')\n")
    write("leaves.py", "raise SystemExit(4)\n")
    write("lacks.py", "import nowhere_at_all\n")
    write("syntax.py", "\ndef (:\n")
    write("syntax.json", "{")
    write("syntax.toml", "[")
    Path("folder.py").mkdir()
    Path("folder.toml").mkdir()
    done = call(command, target)
    assert_told(done, 3 if target in UNFIT or target.startswith(("raises", "leaves", "lacks", "syntax")) else 2, told)
    assert done.err.count("\n") == 1


def test_a_config_file_with_problems_tells_all_of_them(call):
    """Every problem of a config file has a line, with its path and the nearest name."""
    write("things.py", "def load():\n    pass\n")
    write(
        "flow.json",
        """
        {"flow": {"entry": "lod", "edges": ["load >> sve"], "tasks": {
            "load": {"callable": "things.laod", "retires": 2}, "save": "things.load"}}}
        """,
    )
    done = call("run", "flow.json")
    assert_told(done, 3, "millstream: flow.json: 4 problems\n")
    for line in (
        "  flow.tasks.load.retires: there is no such key: did you mean retries?",
        "  flow.tasks.load.callable: things has no laod: did you mean load?",
        "  flow.edges[0]: Task sve not found. Did you mean save?",
        "  flow.entry: Task lod not found. Did you mean load?",
    ):
        assert line in done.err.splitlines()


def test_a_config_file_that_describes_no_flow(call):
    """A file that holds something else is told."""
    write("list.json", "[]")
    assert_told(call("run", "list.json"), 3, "list.json: ", "  the file: it is a mapping, not a list.\n")
    write("other.toml", "[project]\nname = 'x'\n")
    assert_told(call("run", "other.toml"), 3, "other.toml: ", "  project: there is no such key: ")


def test_allow_says_what_a_config_file_may_import(call):
    """--allow names modules; anything else is refused before it is imported; a flow in Python takes no --allow."""
    write("things/__init__.py", "")
    write("things/good.py", "def only():\n    return 1\n")
    write("other.py", "open('imported', 'w')\ndef only():\n    return 2\n")
    write("good.json", '{"flow": {"tasks": {"only": "things.good.only"}}}')
    write("bad.json", '{"flow": {"tasks": {"only": "other.only"}}}')
    write("shop.py", SHOP)
    for allowed in (["things"], ["things.good"], ["elsewhere", "things"]):
        options = [word for name in allowed for word in ("--allow", name)]
        assert call("run", "good.json", *options) == Done(0, "only: 1\n", "")
    assert_told(call("run", "bad.json", "--allow", "things"), 3, "'other.only' is in other, and may not be imported")
    assert_told(call("run", "good.json", "--allow", "thing"), 3, "may not be imported")
    assert not Path("imported").exists()
    assert_told(call("run", "shop:flow", "--allow", "shop"), 2, "--allow is for config files, and shop:flow is none")


def test_without_the_library_for_yaml(here):
    """A YAML file without the library tells the extra, in one sentence."""
    write("flow.yaml", "flow:\n  tasks:\n    only: things.only\n")
    program = "import sys; sys.modules['yaml'] = None; from millstream.cli import main; sys.exit(main())"
    for command in ("run", "graph"):
        done = subprocess.run(
            [sys.executable, "-c", program, command, "flow.yaml"],
            env=ENV, capture_output=True, text=True, timeout=WATCHDOG, check=False,
        )  # fmt: skip
        assert_told(Done(done.returncode, done.stdout, done.stderr), 3, "flow.yaml: YAML needs a library")
        assert "pip install 'millstream[yaml]', or write TOML or JSON." in done.stderr


# ---- check and graph --------------------------------------------------------------------------------


def test_check_says_that_nothing_is_wrong(here):
    """A flow without a fault is one line, and none of its tasks is called."""
    write("shop.py", SHOP)
    assert start("check", "shop:flow") == Done(0, "shop:flow: 3 tasks, nothing is wrong\n", "")
    assert not Path("log").exists()


BAD = """
    from millstream import Flow
    flow = Flow("inline", name="bad")
    flow.add_task("first", lambda: 1, depends_on=["third"])
    flow.add_task("second", lambda: 1, depends_on=["frist"])
    flow.add_task("third", lambda: 1, depends_on=["first"])
    empty = Flow("inline", name="empty")
    single = Flow("inline", name="single")
    single.add_task("only", lambda: 1)
"""


def test_check_finds_everything(call):
    """Each problem is a line on stdout, for that was asked for; the exit code is 1."""
    write("bad.py", BAD)
    done = call("check", "bad.py:flow")
    assert (done.code, done.err) == (3, "")
    assert sorted(done.out.splitlines()) == [
        "Task frist not found. Did you mean first?",
        "These tasks depend on each other: first >> third >> first. Take one of the edges out, or make it a route.",
    ]
    assert call("check", "bad.py:empty") == Done(3, "Flow empty has no tasks: register one with @flow.task.\n", "")
    assert call("check", "bad.py:single") == Done(0, "bad.py:single: 1 task, nothing is wrong\n", "")


def test_check_of_a_config_file(call):
    """Problems of a config file are findings of the check: one a line, on stdout."""
    write("things.py", "def load():\n    pass\n")
    write("flow.json", '{"flow": {"entry": "lod", "tasks": {"load": {"callable": "things.load", "retires": 2}}}}')
    assert call("check", "flow.json") == Done(
        3,
        "flow.tasks.load.retires: there is no such key: did you mean retries?\n"
        "flow.entry: Task lod not found. Did you mean load?\n",
        "",
    )


def test_check_as_json(call):
    """--json gives the target, the number of tasks and the problems as one document."""
    write("bad.py", BAD)
    done = call("check", "bad.py:flow", "--json")
    said = strict(done.out)
    assert (done.code, done.err, said["target"], said["tasks"], len(said["problems"])) == (3, "", "bad.py:flow", 3, 2)
    fine = call("check", "bad.py:single", "--json")
    assert fine.code == 0
    assert strict(fine.out) == {"target": "bad.py:single", "tasks": 1, "problems": []}


def test_check_of_what_is_not_there(call):
    """What cannot be imported was not checked: exit code 2, and the sentence on stderr."""
    assert_told(call("check", "nowhere.py"), 2, "There is no file nowhere.py")
    assert_told(call("check", "nowhere:flow"), 2, "There is no module nowhere")


def test_check_of_a_config_file_that_is_not_there(call):
    """A config file that is not there was not checked either."""
    assert_told(call("check", "nowhere.json"), 2, "There is no file nowhere.json")


def test_graph_draws_a_flow(here):
    """Without a format it is text; the tasks are not called."""
    write("shop.py", SHOP)
    expected = "shop: 3 tasks\n  till  (Reads the till.)\n    books << till\n    bank << till\n"
    assert start("graph", "shop:flow") == Done(0, expected, "")
    assert not Path("log").exists()


def test_graph_in_other_formats(call):
    """Mermaid and Graphviz are printed as ``flow.to_mermaid`` and ``flow.to_dot`` give them."""
    write("shop.py", SHOP)
    assert call("graph", "shop:flow", "--format", "text") == call("graph", "shop:flow")
    assert call("graph", "shop:flow", "--format", "mermaid").out.splitlines() == [
        "flowchart LR",
        '    t0["till"]',
        '    t1["books"]',
        '    t2["bank"]',
        "    t0 --> t1",
        "    t0 --> t2",
    ]
    space = {}
    exec(dedent(SHOP), space)
    assert call("graph", "shop:flow", "--format", "dot") == Done(0, f"{space['flow'].to_dot()}\n", "")
    assert call("graph", "shop:flow", "--format", "mermaid") == Done(0, f"{space['flow'].to_mermaid()}\n", "")


def test_graph_of_a_flow_with_problems(call):
    """Also a flow that could not run is drawn, so that one sees what is wrong with it."""
    write("bad.py", BAD)
    for form in ("text", "mermaid", "dot"):
        done = call("graph", "bad.py:flow", "--format", form)
        assert (done.code, done.err) == (0, "")
        assert all(name in done.out for name in ("first", "second", "third"))


# ---- stores -----------------------------------------------------------------------------------------

STORES = ["runs.db", "runs.json"]
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"


@pytest.mark.parametrize("store", STORES)
def test_resume_calls_only_what_had_not_finished(call, store):
    """A run that failed goes on: what had finished is not called again, and the outputs are those of the whole."""
    write("steps.py", STEPS)
    failed = call("run", "steps.py", "--store", store, "--run-id", "monday")
    assert_told(failed, 1, "millstream: RuntimeError: not allowed yet\n  In task run check of flow run monday (steps)")
    Path("allowed").touch()
    assert call("resume", "steps.py", "monday", "--store", store) == Done(0, "store: 42\n", "")
    assert lines_of(Path("log")) == ["fetch", "check", "check", "store"]
    assert call("resume", "steps.py", "monday", "--store", store) == Done(0, "store: 42\n", "")
    assert len(lines_of(Path("log"))) == 4


@pytest.mark.parametrize("store", STORES)
def test_resume_from_a_task_makes_a_new_run(call, store):
    """--from calls a task and all that came after it again, in a new run; the old one stays."""
    write("steps.py", STEPS)
    Path("allowed").touch()
    call("run", "steps.py", "--store", store, "--run-id", "monday")
    done = call("resume", "steps.py", "monday", "--store", store, "--from", "check", "--json")
    said = strict(done.out)
    assert (done.code, done.err, said["results"], said["error"]) == (0, "", {"store": 42}, None)
    assert lines_of(Path("log")) == ["fetch", "check", "store", "check", "store"]
    heads = strict(call("runs", "--store", store, "--json").out)
    assert [head["id"] for head in heads] == ["monday", said["run_id"]]
    assert call("resume", "steps.py", "monday", "--store", store, "--from", "check", "--from", "fetch").code == 0
    assert lines_of(Path("log"))[5:] == ["fetch", "check", "store"]
    assert_told(call("resume", "steps.py", "monday", "--store", store, "--from", "chekc"), 2, "Did you mean check?")


@pytest.mark.parametrize("store", STORES)
def test_runs_and_show(call, store):
    """``runs`` lists the runs of a store, ``show`` tells what became of one and of its tasks."""
    write("steps.py", STEPS)
    call("run", "steps.py", "--store", store, "--run-id", "monday")
    Path("allowed").touch()
    call("run", "steps.py", "--store", store, "--run-id", "a-longer-name")
    listed = call("runs", "--store", store)
    assert (listed.code, listed.err) == (0, "")
    head, *rows = listed.out.splitlines()
    assert head.split() == ["run", "flow", "status", "began", "ended"]
    assert re.fullmatch(rf"monday         steps  FAILED   {TIME}  {TIME}", rows[0])
    assert re.fullmatch(rf"a-longer-name  steps  SUCCESS  {TIME}  {TIME}", rows[1])
    shown = call("show", "monday", "--store", store)
    assert (shown.code, shown.err) == (0, "")
    first, second, _, *table = shown.out.splitlines()
    assert re.fullmatch(r"Run monday of steps: FAILED after \d\.\d{3} s", first)
    assert second == "RuntimeError: not allowed yet"
    assert [line.split()[:3] for line in table] == [
        ["task", "status", "runs"], ["fetch", "SUCCESS", "1"], ["check", "FAILED", "1"], ["store", "CANCELLED", "0"],
    ]  # fmt: skip


def test_runs_and_show_as_json(call):
    """Both give one JSON document."""
    write("steps.py", STEPS)
    call("run", "steps.py", "--store", "runs.db", "--run-id", "monday")
    (head,) = strict(call("runs", "--store", "runs.db", "--json").out)
    assert (head["id"], head["flow"], head["status"], head["owner"]) == ("monday", "steps", "FAILED", None)
    assert head["created_at"] <= head["finished_at"]
    shown = strict(call("show", "monday", "--store", "runs.db", "--json").out)
    assert (shown["run_id"], shown["status"]) == ("monday", "FAILED")
    assert shown["tasks"]["fetch"]["result"] == 20
    assert shown["tasks"]["check"]["error"]["message"] == "not allowed yet"


def test_a_store_without_runs(call):
    """An empty file is a store without runs: the heading alone, or an empty list."""
    Path("runs.db").touch()
    assert call("runs", "--store", "runs.db") == Done(0, "run  flow  status  began  ended\n", "")
    assert call("runs", "--store", "runs.db", "--json") == Done(0, "[]\n", "")


@pytest.mark.parametrize("store", STORES)
def test_a_run_that_is_not_there(call, store):
    """An unknown run is told, by ``show`` and by ``resume``; a known one is not started a second time."""
    write("steps.py", STEPS)
    call("run", "steps.py", "--store", store, "--run-id", "monday")
    assert_told(call("show", "tuesday", "--store", store), 2, "Run tuesday is not in ", store)
    assert_told(call("resume", "steps.py", "tuesday", "--store", store), 2, "Run tuesday is not in ", store)
    assert_told(
        call("run", "steps.py", "--store", store, "--run-id", "monday"), 3, "Run monday is in ", "already: resume it"
    )
    assert lines_of(Path("log")) == ["fetch", "check"]


def test_a_store_that_is_not_there(call):
    """To look at a store makes none; to resume without one is refused."""
    write("steps.py", STEPS)
    for store in STORES:
        assert_told(call("runs", "--store", store), 2, f"There is no store at {store}: check the path.")
        assert_told(call("show", "monday", "--store", store), 2, f"There is no store at {store}: check the path.")
        assert not Path(store).exists()
    assert_told(call("resume", "steps.py", "monday"), 3, "Flow steps has no store")
    for store in ("no/folder/runs.db", "no/folder/runs.json"):
        assert_told(call("run", "steps.py", "--store", store), 3, store)
    assert not Path("log").exists()


@pytest.mark.parametrize("store", STORES)
def test_a_damaged_store(call, store):
    """What is no store is told, and stays as it is."""
    write("steps.py", STEPS)
    write(store, "this is no store, and never was one\n")
    for command in (["runs"], ["show", "monday"], ["run", "steps.py"], ["resume", "steps.py", "monday"]):
        assert_told(call(*command, "--store", store), 3, store)
    assert Path(store).read_text() == "this is no store, and never was one\n"
    assert not Path("log").exists()


def test_a_store_that_was_cut_off(call):
    """A database whose end is missing is told as damaged, and not as an empty one."""
    write("steps.py", STEPS)
    Path("allowed").touch()
    call("run", "steps.py", "--store", "runs.db", "--run-id", "monday")
    content = Path("runs.db").read_bytes()
    Path("runs.db").write_bytes(content[: len(content) // 2])
    assert_told(call("show", "monday", "--store", "runs.db"), 3, "runs.db")


def test_a_flow_with_a_store_of_its_own(call):
    """A flow that names its store is resumed without --store, and refuses another one."""
    write("steps.py", STEPS.replace('name="steps"', 'name="steps", store="own.db"'))
    assert call("run", "steps.py", "--run-id", "monday").code == 1
    Path("allowed").touch()
    assert call("resume", "steps.py", "monday") == Done(0, "store: 42\n", "")
    assert_told(call("run", "steps.py", "--store", "runs.db"), 3, "has a store of its own already")


def test_resume_with_other_code_says_so(here):
    """A run that goes on with other code than it was started with says so on stderr."""
    write("steps.py", STEPS)
    assert start("run", "steps.py", "--store", "runs.db", "--run-id", "monday").code == 1
    write("steps.py", STEPS.replace("check * 2", "check * 3"))
    Path("allowed").touch()
    done = start("resume", "steps.py", "monday", "--store", "runs.db")
    assert (done.code, done.out) == (0, "store: 63\n")
    assert done.err.count("task store has changed") == 1
    assert done.err.startswith("millstream: ")


# ---- Ctrl-C, and runs that were left ----------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
def test_approval_after_ctrl_c(call, store):
    """Ctrl-C ends a run that waits for somebody; it goes on with what that one says, by -i."""
    write("approval.py", APPROVAL)
    with begun("run", "approval.py", "--store", store, "--run-id", "r") as process:
        process.send_signal(signal.SIGINT)
        assert rest_of(process) == Done(130, "", "millstream: cancelled\n")
    assert lines_of(Path("log")) == ["order", "ask", "finally"]
    (head,) = strict(call("runs", "--store", store, "--json").out)
    assert (head["status"], head["owner"]) == ("CANCELLED", None)
    assert call("show", "r", "--store", store).out.startswith("Run r of approval: CANCELLED after ")
    done = call("resume", "approval.py", "r", "--store", store, "-i", "approved=yes")
    assert done == Done(0, "waiting\nship: 3 sent, since somebody said yes\n", "")
    assert lines_of(Path("log")) == ["order", "ask", "finally", "ask", "finally", "ship"]


@pytest.mark.parametrize("args", [[], ["--json"], ["--debug"]], ids=" ".join)
def test_ctrl_c(here, args):
    """Ctrl-C cancels the run: its tasks end in good order, one line on stderr, exit code 130."""
    write("approval.py", APPROVAL)
    with begun("run", "approval.py", *args) as process:
        process.send_signal(signal.SIGINT)
        assert rest_of(process) == Done(130, "", "millstream: cancelled\n")
    assert lines_of(Path("log")) == ["order", "ask", "finally"]


@pytest.mark.parametrize("executor", ["thread", "inline", "asyncio"])
def test_ctrl_c_in_the_midst_of_a_task(here, executor):
    """Ctrl-C ends the command also while a task calculates, wherever that is called, and what follows does not run."""
    write(
        "busy.py",
        f"""
        import time
        from millstream import Flow

        flow = Flow({executor!r}, name="busy")

        @flow.task
        def busy():
            print("waiting", flush=True)
            end = time.monotonic() + {WATCHDOG}
            while time.monotonic() < end:
                pass

        @flow.task
        def after(busy):
            open("log", "w").write("after")
        """,
    )
    with begun("run", "busy.py") as process:
        process.send_signal(signal.SIGINT)
        assert rest_of(process) == Done(130, "", "millstream: cancelled\n")
    assert not Path("log").exists()


def test_ctrl_c_while_resuming(call):
    """Ctrl-C while a run goes on is the same, and it can go on again."""
    write("approval.py", APPROVAL)
    assert call("run", "approval.py", "--store", "runs.db", "--run-id", "r", "--timeout", "0.05").code == 1
    with begun("resume", "approval.py", "r", "--store", "runs.db") as process:
        process.send_signal(signal.SIGINT)
        assert rest_of(process) == Done(130, "", "millstream: cancelled\n")
    done = call("resume", "approval.py", "r", "--store", "runs.db", "-i", 'approved={"by": "ada"}')
    assert done.out == "waiting\nship: 3 sent, since somebody said {'by': 'ada'}\n"
    assert lines_of(Path("log")).count("order") == 1


def test_ctrl_c_while_the_target_is_imported(here):
    """Ctrl-C is told in the same way when nothing has begun."""
    write("slow.py", "import threading\nprint('waiting', flush=True)\nthreading.Event().wait()\n")
    with begun("run", "slow.py") as process:
        process.send_signal(signal.SIGINT)
        assert rest_of(process) == Done(130, "", "millstream: cancelled\n")


def test_ctrl_c_with_tasks_in_processes(here):
    """A terminal sends Ctrl-C to all: the workers leave it to the command, and are gone when it has ended."""
    write(
        "work.py",
        """
        import os, threading
        from millstream import Flow

        def work():
            with open("pid.part", "w") as file:
                file.write(str(os.getpid()))
            os.rename("pid.part", "pid")
            threading.Event().wait()

        flow = Flow("process", name="work", max_workers=1)
        flow.add_task("say", lambda: print("waiting", flush=True), executor="thread")
        flow.add_task("work", work, depends_on=["say"])
        """,
    )
    with begun("run", "work.py", start_new_session=True) as process:
        until(Path("pid").exists)
        worker = int(Path("pid").read_text())
        assert alive(worker)
        os.killpg(process.pid, signal.SIGINT)
        assert rest_of(process) == Done(130, "", "millstream: cancelled\n")
    assert_ends(worker)


@pytest.mark.parametrize("store", STORES)
def test_a_run_that_is_under_way_and_then_left(call, store):
    """Nobody else may go on with a run under way; when its process was killed it is LEFT, and goes on."""
    write("approval.py", APPROVAL)
    with begun("run", "approval.py", "--store", store, "--run-id", "r") as process:
        assert re.search(rf"^r    approval  RUNNING  {TIME}  -$", call("runs", "--store", store).out, re.MULTILINE)
        refused = call("resume", "approval.py", "r", "--store", store, "-i", "approved=no")
        assert_told(refused, 2, " belongs to ", "wait until that has ended, or end it.")
        # a JSON file has what has happened within 50 ms
        until(lambda: "order" in strict(call("show", "r", "--store", store, "--json").out)["tasks"])
        process.kill()
        process.wait(WATCHDOG)
    assert re.search(rf"^r    approval  LEFT    {TIME}  -$", call("runs", "--store", store).out, re.MULTILINE)
    (head,) = strict(call("runs", "--store", store, "--json").out)
    assert (head["status"], head["owner"], head["finished_at"]) == ("RUNNING", None, None)
    assert call("show", "r", "--store", store).out.startswith("Run r of approval: ")
    done = call("resume", "approval.py", "r", "--store", store, "-i", "approved=yes")
    assert done == Done(0, "waiting\nship: 3 sent, since somebody said yes\n", "")
    assert lines_of(Path("log")) == ["order", "ask", "ask", "finally", "ship"]


def test_a_store_in_one_file_that_is_in_use(call):
    """While a JSON file belongs to another process, the sentence says so of the file, and of no run."""
    write("approval.py", APPROVAL)
    with begun("run", "approval.py", "--store", "runs.json", "--run-id", "r"):
        refused = call("resume", "approval.py", "r", "--store", "runs.json", "-i", "approved=no")
    assert_told(refused, 2, "runs.json belongs to ")
    assert not re.search(r"Run \S*runs\.json", refused.err)


def test_show_of_a_run_that_was_left(call):
    """``show`` says of a run what ``runs`` says of it."""
    write("approval.py", APPROVAL)
    with begun("run", "approval.py", "--store", "runs.db", "--run-id", "r") as process:
        process.kill()
        process.wait(WATCHDOG)
    assert call("show", "r", "--store", "runs.db").out.splitlines()[0] == "Run r of approval: LEFT"
    shown = strict(call("show", "r", "--store", "runs.db", "--json").out)
    assert (shown["status"], shown["owner"]) == ("RUNNING", None)


# ---- where the output goes --------------------------------------------------------------------------

LOUD = """
    from millstream import Flow

    flow = Flow("inline", name="loud")
    flow.add_task("shout", lambda: "line\\n" * 100_000)

    talk = Flow("inline", name="talk")

    @talk.task
    def speak():
        for number in range(100_000):
            print(number)

    wide = Flow("inline", name="wide")
    for number in range(10_000):
        wide.add_task(f"task-{number}", lambda: 1)
"""


@pytest.mark.parametrize(
    ("args", "line"),
    [
        pytest.param(["run", "loud.py:flow"], "shout: line\n", id="run"),
        pytest.param(["graph", "loud.py:wide"], "wide: 10000 tasks\n", id="graph"),
        pytest.param(
            ["run", "loud.py:talk"], "0\n", id="task"),
    ],
)  # fmt: skip
def test_a_reader_that_goes_away(here, args, line):
    """``millstream ... | head -1`` ends with exit code 141 and complains of nothing."""
    write("loud.py", LOUD)
    with begun(*args, line=line) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(WATCHDOG) == 141


@pytest.mark.parametrize("args", [["run", "shop:flow"], ["check", "shop:flow"], ["run", "shop:flow", "--json"]])
def test_a_reader_that_was_never_there(here, args):
    """A pipe that is closed from the start is the same."""
    write("shop.py", SHOP)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert start(*args, stdout=writer) == Done(141, None, "")
    finally:
        os.close(writer)
    assert not Path("log").exists() or lines_of(Path("log")) == ["till", "books", "bank"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_disk_that_is_full(here):
    """Output that cannot be written is told in one sentence."""
    write("shop.py", SHOP)
    with open("/dev/full", "w") as full:
        done = start("graph", "shop:flow", stdout=full)
    assert done.code == 3
    assert done.err.startswith("millstream: ")
    assert "No space left on device" in done.err


@pytest.mark.skipif(shutil.which("sh") is None, reason="there is no sh here")
def test_without_a_stdout(here):
    """``millstream run ... >&-`` runs the flow, and says nothing."""
    write("shop.py", SHOP)
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *MILLSTREAM, "run", "shop:flow"]
    done = subprocess.run(command, env=ENV, stderr=subprocess.PIPE, text=True, timeout=WATCHDOG, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert lines_of(Path("log")) == ["till", "books", "bank"]


# ---- the examples -----------------------------------------------------------------------------------


def most_common_words():
    total = Counter()
    for path in sorted((ROOT / "docs").glob("*.md")):
        total.update(re.findall(r"[a-z]+", path.read_text("utf-8").lower()))
    return f"most_common: {json.dumps(dict(total.most_common(3)))}\n"


ORDERS = "load: Orders for everybody, from orders.csv\nAda: 40.30 EUR\nGrace: 17.50 EUR\nrefused: 4\n"
ARTICLE = "publish: the mail that we receive (5 words)\n"
EXAMPLES = {
    "orders.yaml": (["-i", "name=orders.csv"], lambda: ORDERS),
    "article.toml": (["-i", "payload=teh mail that we recieve"], lambda: ARTICLE),
    "words.json": ([], most_common_words),
}

#: orders.yaml once more.
ORDERS_TOML = """
    [flow]
    name = "orders"
    entry = "extract"
    edges = ["extract >> transform >> load"]

    [flow.tasks.extract]
    callable = "shop.extract"
    outputs = "$ctx.data.rows"
    retries = 2
    retry_on = "OSError"

    [flow.tasks.transform]
    callable = "shop.transform"
    inputs = {payload = "$ctx.data.rows", currency = '$ctx.currency ?? "EUR"'}
    outputs = {totals = "$ctx.data.totals", refused = "$ctx.data.refused"}

    [flow.tasks.load]
    callable = "shop.load"

    [flow.tasks.load.inputs]
    payload = "$ctx.data.totals"
    refused = "$ctx.data.refused"
    greeting = "Orders for {{ ctx.reader ?? 'everybody' }}, from {{ ctx.name }}"
"""


def content_of(example):
    """Read an example with the library for its format."""
    text = (DECLARED / example).read_text("utf-8")
    if example.endswith(".yaml"):
        return pytest.importorskip("yaml").safe_load(text)
    return tomllib.loads(text) if example.endswith(".toml") else json.loads(text)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_run(example):
    """Each example gives what it should, is in order, and can be drawn."""
    if example.endswith(".yaml"):
        pytest.importorskip("yaml")
    args, expected = EXAMPLES[example]
    assert start("run", example, *args, cwd=DECLARED) == Done(0, expected(), "")


def test_every_example_is_run():
    """No config file among the examples is left out here."""
    files = {path.name for path in DECLARED.iterdir() if path.suffix in (".yaml", ".yml", ".toml", ".json")}
    assert files == set(EXAMPLES)


@pytest.mark.parametrize(
    ("example", "form"),
    [
        ("orders.yaml", "json"), ("orders.yaml", "toml"),
        ("article.toml", "json"), ("article.toml", "yaml"),
        ("words.json", "yaml"),
    ],
)  # fmt: skip
def test_the_examples_in_another_format(here, call, monkeypatch, example, form):
    """The same flow in another format gives the same output, and the same drawing."""
    content = content_of(example)
    if form == "json":
        text = json.dumps(content)
    elif form == "yaml":
        text = pytest.importorskip("yaml").safe_dump(content, sort_keys=False)
    else:
        text = dedent(ORDERS_TOML)
        assert tomllib.loads(text) == content
    path = here / f"{Path(example).stem}.{form}"
    path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(DECLARED)
    args, expected = EXAMPLES[example]
    assert call("run", str(path), *args) == Done(0, expected(), "")
    assert call("graph", str(path)) == call("graph", example)
    assert call("check", str(path)).code == 0
    assert call("run", str(path), *args, "--allow", "shop").out == expected()


def test_an_example_that_fails(call, monkeypatch):
    """The example whose table is not there tries as often as it says, and tells the failure of its task."""
    pytest.importorskip("yaml")
    monkeypatch.chdir(DECLARED)
    done = call("run", "orders.yaml", "-i", "name=nowhere.csv", "--run-id", "r")
    assert_told(done, 1, "millstream: FileNotFoundError: ", "In task run extract, attempt 3 of flow run r (orders).")
    assert call("run", "orders.yaml", "-i", "name=orders.csv", "-i", "currency=CHF", "-i", "reader=Ada") == Done(
        0, "load: Orders for Ada, from orders.csv\nAda: 40.30 CHF\nGrace: 17.50 CHF\nrefused: 4\n", ""
    )


def test_graph_as_json(here, call):
    """``graph --json`` gives the tasks with their descriptions, and the edges."""
    write("tasks.py", "def a():\n    return 1\n\ndef b(a):\n    return ['c']\n\ndef c():\n    return 2\n")
    write(
        "flow.toml",
        """
        [flow]
        name = "three"
        entry = "a"
        edges = ["b >> (c | d)"]
        [flow.tasks]
        a = "tasks.a"
        c = "tasks.c"
        d = "tasks.c"
        [flow.tasks.b]
        callable = "tasks.b"
        description = "Chooses."
        """,
    )
    done = call("graph", "flow.toml", "--json")

    assert (done.code, done.err) == (0, "")
    assert strict(done.out) == {
        "flow": "three",
        "entry": "a",
        "tasks": {"a": None, "c": None, "d": None, "b": "Chooses."},
        "dependencies": {"a": [], "c": [], "d": [], "b": ["a"]},
        "routes": {"b": ["c", "d"]},
    }


# ---- pages and progress ---------------------------------------------------------------------------------


def page_of(path):
    """Return the text of a page: what a reader sees without scripts."""
    text = Path(path).read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    return text


def test_report_writes_a_page(call):
    """--report leaves a page about the run; what is printed is the same as without."""
    write("shop.py", SHOP)
    plain, done = call("run", "shop:flow"), call("run", "shop:flow", "--report", "run.html", "--run-id", "monday")
    assert done == plain
    assert done.code == 0
    page = page_of("run.html")
    assert "monday" in page
    assert "data-task" in page  # the drawing


def test_a_run_that_fails_has_a_page(call):
    """The page of a failed run has its traceback; the exit code is 1 all the same."""
    write("steps.py", STEPS)
    done = call("run", "steps.py", "--report", "run.html", "--json")
    assert done.code == 1
    assert strict(done.out)["status"] == "FAILED"
    assert "not allowed yet" in page_of("run.html")
    assert "Traceback" in page_of("run.html")


def test_ctrl_c_leaves_a_page(here):
    """A run that is cancelled by Ctrl-C has a page, too."""
    write("approval.py", APPROVAL)
    with begun("run", "approval.py", "--report", "run.html") as process:
        process.send_signal(signal.SIGINT)
        assert rest_of(process) == Done(130, "", "millstream: cancelled\n")
    assert "CANCELLED" in page_of("run.html").upper()


def test_resume_and_show_write_pages(call):
    """What goes on from a store can be looked at, and so can what is in it."""
    write("steps.py", STEPS)
    call("run", "steps.py", "--store", "runs.db", "--run-id", "monday")
    Path("allowed").touch()
    assert call("resume", "steps.py", "monday", "--store", "runs.db", "--report", "resumed.html").code == 0
    assert "monday" in page_of("resumed.html")
    assert call("show", "monday", "--store", "runs.db", "--report", "stored.html").code == 0
    assert "monday" in page_of("stored.html")
    assert "check" in page_of("stored.html")


@pytest.mark.parametrize("command", ["run", "show"])
@pytest.mark.parametrize("path", ["nowhere/run.html", "folder"])
def test_a_report_that_cannot_be_written_is_refused_first(call, path, command):
    """Nothing runs for a page that could not be written: one sentence, exit code 2."""
    Path("folder").mkdir()
    write("steps.py", STEPS)
    call("run", "steps.py", "--store", "runs.db", "--run-id", "monday")
    log = lines_of(Path("log")) if Path("log").exists() else []
    target = ["run", "steps.py"] if command == "run" else ["show", "monday", "--store", "runs.db"]
    done = call(*target, "--report", path)
    assert_told(done, 2, path)
    assert (lines_of(Path("log")) if Path("log").exists() else []) == log


def test_progress_goes_to_standard_error(here):
    """--progress shows a line a second at most where that is no terminal; the output stays what was asked for."""
    write("shop.py", SHOP)
    plain, done = start("run", "shop:flow"), start("run", "shop:flow", "--progress", "--run-id", "monday")
    assert (done.code, done.out) == (0, plain.out)
    *_, last = done.err.splitlines()
    assert last.startswith("monday: SUCCESS after ")
    assert "\x1b" not in done.err


@pytest.mark.parametrize("path", ["fifo", os.devnull])
def test_a_report_goes_into_a_file(call, path):
    """What is no file, and might never be read, is refused before something runs."""
    os.mkfifo("fifo")
    write("shop.py", SHOP)
    assert_told(call("run", "shop:flow", "--report", path), 2, path)


@pytest.mark.parametrize(("flow", "code"), [("shop.py", 3), ("steps.py", 1)])
def test_a_report_that_could_not_be_written_hides_nothing(call, monkeypatch, flow, code):
    """A full disk is told after what became of the run; a run that has failed keeps its exit code."""

    def full(self, path):
        raise OSError(28, "No space left on device")

    write("shop.py", SHOP)
    write("steps.py", STEPS)
    plain = call("run", flow, "--run-id", "monday")
    monkeypatch.setattr("millstream.report.RunReport.to_html", full)
    done = call("run", flow, "--run-id", "monday", "--report", "run.html")
    assert done.code == code
    assert done.out == plain.out
    told = "millstream: The page of run monday could not be written to run.html: [Errno 28] No space left on device.\n"
    assert done.err == plain.err + told
