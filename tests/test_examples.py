"""The examples run as a user runs them and print what they should; the census counts right."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import subprocess
import sys
import tokenize
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest

from millstream import NextTask, TaskOutput

EXAMPLES = Path(__file__).parent.parent / "examples"

#: What each example prints; ``...`` stands for any text inside a line.
EXPECTED = {
    "approval": """
          | received: 3 × anvil
          | computed a quote
          | waiting for somebody to approve 148.50 EUR
        The process was killed. Three days later somebody says yes:
        waiting for somebody to approve 148.50 EUR
        {'ship': 'shipped with the key order-4711:...'}
          receive      SUCCESS
          check_stock  SUCCESS
          quote        SUCCESS
          decide       SUCCESS
          ship         SUCCESS
          refuse       SKIPPED
    """,
    "etl": """
        etl: 4 tasks
          orders
          rates
            convert << orders, rates
              store << orders, convert
        {'store': '3 stored'}
        ('EUR', 10.0) -> 10.0
        ('USD', 20.0) -> 10.0
        ('EUR', 5.0) -> 5.0
        orders   SUCCESS in attempt 1
        rates    SUCCESS in attempt 1
        convert  SUCCESS in attempt 1
        store    SUCCESS in attempt 1
    """,
    "fetch": """
        5 pages
          / 8a5edab2
          /about ...
          /news ...
          /news/1 ...
          /news/2 ...
    """,
    "hooks": """
        {'bake': 3}
        RunStartEvent    mill
        TaskSuccessEvent grind  {'attempt': 1, 'output': 3}
        TaskFailureEvent bake   {'attempt': 1, 'error': ZeroDivisionError(...)}
        TaskRetryEvent   bake   {'attempt': 2, 'error': ZeroDivisionError(...)}
        TaskSuccessEvent bake   {'attempt': 2, 'output': 3}
        RunEndEvent      mill   {'status': <Status.SUCCESS: 'SUCCESS'>, 'error': None}
        bars: grind (attempt 1), bake (attempt 1), bake (attempt 2)
    """,
    "limits": """
        task timeout: Task run stubborn took longer than its timeout of 0.1 s.
        run timeout: Run polite-1 took longer than its timeout of 0.1 s.
        cancelled: Run polite-2 was cancelled. It is CANCELLED.
        failed: row 7 is no number
          In task run broken of flow run broken-1 (limits).
    """,
    "loop": """
        from 6: 8 steps
        from 27: 111 steps
        from 97: 118 steps
        stopped: The run may have 1000 task runs (max_task_runs), and for_ever would be one more: ...
    """,
    "map_reduce": """
        21 words, 18 different
          on     3
          and    2
          the    1
    """,
    "micro_batches": """
        batch 1: 2 loaded
        batch 2: 1 loaded, 1 in quarantine
        batch 3: 1 in quarantine
        total 45, set aside 2
    """,
    "nested": """
        100 bytes in all, added up by nested runs with one worker
    """,
    "nightly": """
        -- up at Sat 24 18:00 UTC
        Sun 25 02:00 CEST  all is well
        Sun 25 02:30 CEST  backed up
        Sun 25 07:00 CET  all is well
        Sun 25 13:00 CET  all is well
        -- up at Mon 26 06:00 UTC
        Mon 26 07:00 CET  backed up
        Mon 26 07:00 CET  all is well
        Mon 26 13:00 CET  all is well
    """,
    "policies": """
        {'plan': 'hello, weather unknown'}
        Run monday of morning: FAILED after -.--- s
        ValueError: no forecast today

        task      status   runs  attempt  seconds  error
        dial      SUCCESS     1        3    -.---
        weather   FAILED      1        2    -.---  no forecast today
        clothes   FAILED      0        0        -  Task run clothes did not start, since weather failed...
        umbrella  SKIPPED     0        0        -  ...
        plan      SUCCESS     1        1    -.---
    """,
    "routing": """
        support: 5 tasks
          triage ? billing | engineering | reception
            billing
            engineering ? on_call
            reception
              on_call
        billing      an accountant reads 'refund please'
        on_call      a phone rings for 'crash and fire'
        reception    reception reads 'where are you'
        triage       spam
    """,
    "shared_state": """
        4.50 EUR from ann, bob, cyd
        in the context: close_till, customers, decide_discount, discount, opening, serve, takings
        second day: {'takings': 6.0, 'serve': 6.0}
    """,
    "submitted": """
        0.20 that is
        0.37 the question
        0.43 to be or not to be
        30 letters, and by halves 13 in the first line
        ZeroDivisionError('division by zero') and FAILED
        Task run ratio#2 did not start, since ratio failed...
        <FlowRun audit: failed>
    """,
}


def run(name, *arguments):
    """Run an example as a program, warnings being errors; return its lines."""
    return run_program(EXAMPLES / f"{name}.py", *arguments)


def run_program(*arguments, errors=""):
    """Run a program; return its lines. Its errors, if any, begin with ``errors``."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=50,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        cwd=EXAMPLES.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(errors)
    assert errors or not done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", EXPECTED)
def test_example_prints_what_it_should(name):
    """An example ends well, and prints exactly what it should."""
    expected = dedent(EXPECTED[name]).strip("\n").splitlines()
    printed = run(name)
    assert len(printed) == len(expected), printed
    for line, pattern in zip(printed, expected, strict=True):
        assert re.fullmatch(".*".join(map(re.escape, pattern.split("..."))), line), (line, pattern)


#: Examples whose tasks can be pickled, and share no object of this process.
IN_PROCESSES = ("fetch", "loop", "map_reduce", "routing", "shared_state")


@pytest.mark.parametrize("name", IN_PROCESSES)
def test_example_prints_the_same_with_its_tasks_in_processes(name):
    """An example whose tasks pickle prints the same when they are called in worker processes."""
    expected = dedent(EXPECTED[name]).strip("\n").splitlines()
    printed = run_program("-m", "tests.examples_in_processes", name)
    for line, pattern in zip(printed, expected, strict=True):
        assert re.fullmatch(".*".join(map(re.escape, pattern.split("..."))), line), (line, pattern)


@pytest.mark.parametrize("executor", ["thread", "process", "ray", "dask"])
def test_anywhere_prints_the_same_on_every_executor(executor):
    """The example that only differs in its executor finds the same primes everywhere."""
    if executor in ("ray", "dask"):
        needs({"ray": "ray", "dask": "distributed"}[executor])
    program = EXAMPLES / "anywhere.py"
    printed = run_program(program, "--on", executor, "--below", "20000", errors=f"on {executor}: ")
    assert printed == ["2,262 primes below 20,000; the widest gap in a range is 52, after 19,609"]


def needs(module):
    """Skip without an extra, but not where everything must be checked."""
    if find_spec(module) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{module} is not installed, and nothing may be skipped here")
        pytest.skip(f"{module} is not installed: it is part of an extra")


def test_streaming_tells_each_step_in_order():
    """The chunks of one task run come in order, and none is missing."""
    printed = [line.split(maxsplit=1) for line in run("streaming")]
    by_task = {task: [said for other, said in printed if other == task] for task, _ in printed}
    assert by_task == {
        "order": ["loaf 1 is ordered", "loaf 2 is ordered", "2 loaves"],
        "bake": ["50 %", "100 %", "loaf 1"],
        "bake#2": ["50 %", "100 %", "loaf 2"],
    }


def test_every_example_is_tested():
    """No example is left out here."""
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*EXPECTED, "anywhere", "streaming", "census"}


# ---- the census -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def census():
    spec = importlib.util.spec_from_file_location("census", EXAMPLES / "census.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["census"] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules["census"]


@pytest.fixture
def tree(tmp_path):
    """A small tree of sources, with a folder that is left out and a file that is broken."""
    files = {
        "a.py": "import os, os.path\n\ndef one():\n    return 1\n",
        "c.py": "from os import path\nfrom .a import x\nimport sys\nclass C:\n    async def f(self):\n\n        pass\n",
        "b/broken.py": "def (:\n",
        "b/data.txt": "no source\n",
        "test/d.py": "def left_out(): pass\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_sources_are_found_in_order_without_tests(census, tree):
    """Source files come in the order of their names; test folders and other files are left out."""
    found = [str(Path(path).relative_to(tree)) for path in census.sources(str(tree))]
    assert found == ["a.py", str(Path("b", "broken.py")), "c.py"]


def test_walk_asks_for_the_table_first_and_for_each_file(census, tree):
    """The requests are the join, then one survey a file, at most as many as the limit."""
    asked = census.walk(str(tree), limit=1)
    assert isinstance(asked, TaskOutput)
    assert asked.output == str(tree)
    assert list(asked.next_tasks) == [
        NextTask("table", join=True),
        NextTask("survey", {"path": str(tree / "a.py"), "file": "a.py"}, spawn_another=True),
    ]


def test_survey_counts_one_file(census, tree):
    """Lines, functions with their lengths, and imports are counted; relative imports are not."""
    assert census.survey(str(tree / "c.py"), "c.py") == census.Survey(
        "c.py", lines=7, functions=1, longest=census.Function(3, "f", "c.py"), imports=frozenset({"os", "sys"})
    )


def test_survey_tells_what_it_cannot_read(census, tree):
    """A file that is no Python, or is not there, is a finding and no failure."""
    assert census.survey(str(tree / "b/broken.py"), "broken.py").error.startswith("SyntaxError")
    assert census.survey(str(tree / "nowhere.py"), "nowhere.py").error.startswith("FileNotFoundError")


def test_table_adds_up(census):
    """The table has the sums, the longest functions first, and each import once a file."""
    long, short = census.Function(9, "long", "b.py"), census.Function(2, "short", "a.py")
    table = census.table(
        [
            census.Survey("a.py", 10, 2, short, frozenset({"os"})),
            census.Survey("b.py", 20, 1, long, frozenset({"os", "re"})),
            census.Survey("c.py", error="SyntaxError: no"),
        ]
    )
    assert (table.files, table.lines, table.functions) == (2, 30, 3)
    assert table.longest == [long, short]
    assert table.imports == Counter(os=2, re=1)
    assert table.errors == ["c.py: SyntaxError: no"]


def test_paper_has_every_number(census, tree):
    """What is printed has the totals, the longest function, the imports and the unreadable files."""
    paper = "\n".join(census.lines_of(census.census(str(tree), say=False), "here"))
    assert re.search(r"files +2\n.*lines +11\n.*functions +2\n.*unreadable +1\n", paper, re.DOTALL)
    assert "3 lines  f" in paper
    assert re.search(r"os +2  █{40}\n", paper)
    assert re.search(r"sys +1  █{20}\n", paper)


def test_census_of_the_library_agrees_with_a_plain_count(census):
    """The totals over this library's own sources are those of a count by lines and tokens."""
    root = Path(__file__).parent.parent / "src"
    table = census.census(str(root), say=False)
    texts = [path.read_text("utf-8") for path in root.rglob("*.py")]
    assert table.files == len(texts)
    assert table.lines == sum(len(text.splitlines()) for text in texts)
    assert table.functions == sum(
        token.string == "def" for text in texts for token in tokenize.generate_tokens(io.StringIO(text).readline)
    )
    asyncio_files = [text for text in texts if re.search(r"^ *(import asyncio\b|from asyncio\b)", text, re.MULTILINE)]
    assert table.imports["asyncio"] == len(asyncio_files)


def test_census_as_a_program():
    """Counting 40 files of the standard library: findings on the way, then the table."""
    printed = run("census", "--limit", "40")
    heading = next(number for number, line in enumerate(printed) if line.startswith("Census of "))
    assert any("longest so far: " in line for line in printed[:heading])
    assert [re.sub(" +", " ", line) for line in printed if line.startswith("  files")] == [" files 40"]
    assert any(line.startswith("  Most used imports") for line in printed)


def test_census_in_processes_counts_the_same(census, tree):
    """Parsing in processes gives the same table."""
    printed = run("census", "--root", str(tree), "--processes", "2")
    expected = census.lines_of(census.census(str(tree), say=False), str(tree))
    assert "\n".join(printed).count("\n".join(expected)) == 1


def test_census_of_no_folder_is_a_mistake_of_the_caller(census, capsys):
    """A root that is not there is told as such."""
    with pytest.raises(SystemExit) as ended:
        census.main(["--root", "no such folder"])
    assert ended.value.code == 2
    assert "there is no folder no such folder" in capsys.readouterr().err
