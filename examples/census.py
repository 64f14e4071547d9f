"""A census of the Python standard library: its files, functions and imports, counted side by side.

``walk`` looks for source files and asks for one ``survey`` of each as it finds them; the ``table`` is
a join, so it starts when the last file is counted. Parsing keeps a core busy, so surveys are made in worker
processes, beside the threads of the other two. The program reads the stream of the run, and so can report
notable findings long before the end.

    python examples/census.py
    python examples/census.py --root src --limit 20
    python examples/census.py --processes 8
    python examples/census.py --processes 0     # all in threads, to compare
    python examples/census.py --progress --report census.html
"""

from __future__ import annotations

import argparse
import ast
import sys
import sysconfig
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from io import TextIOWrapper
from itertools import islice
from pathlib import Path

from millstream import Context, Flow, NextTask, ProcessExecutor, TaskOutput

#: Folders that hold no sources of the library itself.
LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


@dataclass(frozen=True, order=True)
class Function:
    """One function, and where it stands. They sort by length."""

    lines: int
    name: str
    file: str


@dataclass(frozen=True)
class Survey:
    """What was counted in one file."""

    file: str
    lines: int = 0
    functions: int = 0
    longest: Function | None = None
    imports: frozenset[str] = frozenset()
    error: str | None = None  #: why it could not be read


@dataclass
class Table:
    """What was counted in all of them."""

    files: int = 0
    lines: int = 0
    functions: int = 0
    longest: list[Function] = field(default_factory=list)  #: of each file, the longest first
    imports: Counter[str] = field(default_factory=Counter)  #: module -> number of files that import it
    errors: list[str] = field(default_factory=list)


# ---- the tasks: plain functions, without a flow in sight ---------------------------------------


def sources(root: str) -> Iterator[str]:
    """Yield the source files below ``root``, folder by folder, in the order of their names."""
    for path in sorted(Path(root).iterdir()):
        if path.is_dir() and not path.is_symlink():
            if path.name not in LEFT_OUT and not path.name.startswith("."):
                yield from sources(str(path))
        elif path.suffix == ".py":
            yield str(path)


def walk(root: str, limit: int | None = None) -> TaskOutput[str]:
    """Ask for a survey of every file, and for the table when all are done.

    The requests are a generator: files are counted while it still looks for more. The join comes
    first, so that the outputs which it collects are kept from the first file on.
    """

    def requests() -> Iterator[NextTask]:
        yield NextTask("table", join=True)
        for path in islice(sources(root), limit):
            yield NextTask("survey", {"path": path, "file": str(Path(path).relative_to(root))}, spawn_another=True)

    return TaskOutput(root, requests())


# CPython 3.11 counts the depth of its parser once for all threads, and raises SystemError when two
# parse at the same time (gh-106905). Parsing holds the interpreter anyway, so this costs nothing.
one_parser = threading.Lock()


def survey(path: str, file: str) -> Survey:
    """Count one file."""
    try:
        text = Path(path).read_bytes()
        with one_parser:
            tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError) as error:
        return Survey(file, error=f"{type(error).__name__}: {error}")
    functions: list[Function] = []
    imports: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.append(Function((node.end_lineno or node.lineno) - node.lineno + 1, node.name, file))
        elif isinstance(node, ast.Import):
            imports.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports.add(node.module.partition(".")[0])
    return Survey(file, len(text.splitlines()), len(functions), max(functions, default=None), frozenset(imports))


def table(upstream: list[Survey]) -> Table:
    """Add up the surveys."""
    found = Table()
    for each in upstream:
        if each.error is not None:
            found.errors.append(f"{each.file}: {each.error}")
            continue
        found.files += 1
        found.lines += each.lines
        found.functions += each.functions
        found.imports.update(each.imports)
        if each.longest is not None:
            found.longest.append(each.longest)
    found.longest.sort(key=lambda function: (-function.lines, function.file))
    return found


# ---- the flow -----------------------------------------------------------------------------------


def be_quiet() -> None:
    """What the parser says about the style of others is not our matter."""
    warnings.simplefilter("ignore")


def census(
    root: str,
    limit: int | None = None,
    *,
    processes: int | None = 0,
    say: bool = True,
    progress: bool = False,
    report: str | None = None,
) -> Table:
    """Run the census and return its table.

    Args:
        root: the folder to count.
        limit: stop after this many files.
        processes: number of worker processes; None for one a core, 0 for threads alone.
        say: print what is found on the way.
        progress: show how far it is.
        report: write a page about the run to this file.
    """
    workers = nullcontext() if processes == 0 else ProcessExecutor(processes, initializer=be_quiet)
    with workers as processors, Flow(name="census") as flow:
        flow.add_task("walk", walk)
        flow.add_task("survey", survey, executor=processors)
        flow.add_task("table", table)
        news = Findings(say)
        inputs = {"root": root, "limit": limit}
        for chunk in flow.stream("walk", inputs, progress=progress, trace=report is not None):
            if isinstance(chunk.value, Survey):
                news.hear(chunk.value)
        if report is not None:
            flow.report().to_html(report)
        return result(flow.context)


def result(context: Context[None]) -> Table:
    """Return the output of the join, which the context keeps under the name of its task."""
    found = context.get("table")
    assert isinstance(found, Table), "the task named table returns one"
    return found


class Findings:
    """Prints what is worth a line while the files come in."""

    def __init__(self, say: bool) -> None:
        self.say = say
        self.began = time.monotonic()
        self.files = 0
        self.longest = 0

    def hear(self, found: Survey) -> None:
        """A file has been counted."""
        self.files += 1
        if found.error is not None:
            self.tell(f"cannot read {found.file}: {found.error}")
        elif found.longest is not None and found.longest.lines > self.longest:
            self.longest = found.longest.lines
            self.tell(f"longest so far: {found.longest.name}, {self.longest} lines ({found.file})")
        if self.files % 200 == 0:
            self.tell("...")

    def tell(self, news: str) -> None:
        if self.say:
            print(f"{time.monotonic() - self.began:5.2f} s {self.files:5} files  {news}", flush=True)


# ---- the table on paper ---------------------------------------------------------------------------


def lines_of(found: Table, root: str) -> list[str]:
    """Return the table as lines of text."""
    facts = [("files", found.files), ("lines", found.lines), ("functions", found.functions)]
    said = ["", f"Census of {root}", "─" * 72]
    said += [f"  {what:12}{number:>12,}" for what, number in facts]
    said += [f"  {'unreadable':12}{len(found.errors):>12,}"] if found.errors else []
    if found.longest:
        said += ["", "  Longest functions, one a file"]
        said += [f"  {each.lines:6,} lines  {each.name:28.28} {each.file}" for each in found.longest[:5]]
    if found.imports:
        ranking = sorted(found.imports.items(), key=lambda pair: (-pair[1], pair[0]))[:10]
        said += ["", "  Most used imports, by number of files"]
        said += [f"  {name:16.16}{count:6}  {'█' * round(40 * count / ranking[0][1])}" for name, count in ranking]
    return [*said, "─" * 72]


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, run the census, print its table."""
    parser = argparse.ArgumentParser(description="Count the files, functions and imports of a tree of Python sources.")
    parser.add_argument("--root", default=sysconfig.get_path("stdlib"), help="folder to count (the standard library)")
    parser.add_argument("--limit", type=int, help="stop after this many files")
    parser.add_argument("--processes", type=int, help="worker processes (one a core); 0 parses in threads")
    parser.add_argument("--progress", action="store_true", help="show how far it is")
    parser.add_argument("--report", metavar="FILE", help="write a page about the run")
    asked = parser.parse_args(arguments)
    if not Path(asked.root).is_dir():
        parser.error(f"there is no folder {asked.root}")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack the rules and bars
    be_quiet()
    began = time.monotonic()
    found = census(asked.root, asked.limit, processes=asked.processes, progress=asked.progress, report=asked.report)
    print("\n".join(lines_of(found, asked.root)))
    print(f"  {found.files:,} task runs of survey in {time.monotonic() - began:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
