"""The command ``millstream``: run, check and draw flows, and look at the runs of a store.

What was asked for goes to standard output, everything else to standard error. An error is one sentence; ``--debug``
shows where it comes from. May import: everything else.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from millstream.config.files import READERS
from millstream.errors import ConfigError, FlowError
from millstream.flow import Flow, RunOptions
from millstream.task import nearest
from millstream.values import Status

if TYPE_CHECKING:
    from millstream.engine.run import FlowRun

WELL, FAILED, REFUSED, CANCELLED, CUT_OFF = 0, 1, 2, 130, 141

HELP = """Run, check and draw flows, and look at the runs of a store.

TARGET is a flow: 'module:name', 'file.py:name' (the name may be left out when there is one flow), or a file
in YAML, TOML or JSON. The name may also be that of a function without parameters that returns a flow.
"""
CODES = """exit codes:
  0    all is well
  1    it was done and went wrong: the run failed, or check found something
  2    it was not begun: a wrong argument, target, file, task or store
  130  it was cancelled by Ctrl-C
  141  whoever read the output has gone away

examples:
  millstream run shop/orders.yaml -i day=2026-11-22
  millstream run shop.flows:orders load --store runs.db --run-id monday
  millstream resume shop.flows:orders monday --store runs.db --from load
  millstream graph orders.py --format mermaid
"""


class Refused(Exception):  # noqa: N818 - it is what the user is told, and never leaves this module
    """Something is not begun: an argument that is none."""


def main(args: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Args:
        args: the arguments, without the name of the command; those of the process without them.

    Returns:
        The exit code; see ``CODES``.
    """
    chosen = parser().parse_args(args)
    try:
        code: int = chosen.do(chosen)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Python would complain of the same again when it closes the output at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CUT_OFF
    except KeyboardInterrupt:
        say("cancelled")
        return CANCELLED
    except (Refused, FlowError, TypeError, ValueError, ExceptionGroup) as error:
        tell(error, chosen.debug)
        return REFUSED


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    made = argparse.ArgumentParser(
        "millstream", description=HELP, epilog=CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = made.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, do: Callable[[argparse.Namespace], int], said: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=said, description=f"{said[0].upper()}{said[1:]}.")
        command.set_defaults(do=do)
        command.add_argument("--debug", action="store_true", help="show where an error comes from")
        return command

    def takes_target(command: argparse.ArgumentParser) -> None:
        command.add_argument("target", metavar="TARGET", help="a flow: module:name, file.py:name, or a config file")
        command.add_argument(
            "--allow", action="append", metavar="MODULE",
            help="of a config file: a module that it may import from, with what is below it; may come again",
        )  # fmt: skip

    def takes_inputs(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "-i", "--input", action="append", default=[], metavar="KEY=VALUE",
            help="a value for the context; JSON if it can be read as such, else text; may come again",
        )  # fmt: skip
        command.add_argument("--timeout", type=float, metavar="SECONDS", help="end the run after that")

    def takes_json(command: argparse.ArgumentParser) -> None:
        command.add_argument("--json", action="store_true", help="print JSON, for other programs")

    def takes_store(command: argparse.ArgumentParser, *, required: bool) -> None:
        command.add_argument(
            "--store", metavar="PATH", required=required,
            help="where runs are kept: a SQLite database, or a file that ends in .json",
        )  # fmt: skip

    run = add("run", run_flow, "run a flow, and print the outputs of its last task runs")
    takes_target(run)
    run.add_argument("task", nargs="?", metavar="TASK", help="the task to start with; else the flow's entry")
    takes_inputs(run)
    run.add_argument("--only", action="append", metavar="TASK", help="run this and what it depends on; may come again")
    takes_store(run, required=False)
    run.add_argument("--run-id", metavar="ID", help="what the run is called; made up without it")
    takes_json(run)

    graph = add("graph", draw, "draw a flow")
    takes_target(graph)
    graph.add_argument("--format", choices=["text", "mermaid", "dot"], default="text", help="text without it")

    check = add("check", check_flow, "say everything that is wrong with a flow, without running it")
    takes_target(check)
    takes_json(check)

    runs = add("runs", list_runs, "list the runs of a store, the oldest first")
    takes_store(runs, required=True)
    takes_json(runs)

    show = add("show", show_run, "show what became of a run of a store, and of its tasks")
    show.add_argument("run", metavar="RUN", help="the id of the run")
    takes_store(show, required=True)
    takes_json(show)

    resume = add("resume", resume_run, "go on with a run of a store: what has finished is not called again")
    takes_target(resume)
    resume.add_argument("run", metavar="RUN", help="the id of the run")
    takes_inputs(resume)
    resume.add_argument(
        "--from", action="append", dest="again", metavar="TASK",
        help="make a new run of it, in which this and all that came after it run again; may come again",
    )  # fmt: skip
    takes_store(resume, required=False)
    takes_json(resume)
    return made


# ---- commands -------------------------------------------------------------------------------------


def run_flow(chosen: argparse.Namespace) -> int:
    """``millstream run``."""
    with loaded(chosen) as flow:
        options: RunOptions = {"targets": chosen.only, "timeout": chosen.timeout, "run_id": chosen.run_id}
        run = flow._start(chosen.task, inputs_of(chosen.input) or None, options, driven=True)
        return ended(run, chosen)


def resume_run(chosen: argparse.Namespace) -> int:
    """``millstream resume``."""
    with loaded(chosen) as flow:
        options: RunOptions = {"resume": chosen.run, "timeout": chosen.timeout}
        run = flow._start(None, inputs_of(chosen.input) or None, options, driven=True, again=chosen.again)
        return ended(run, chosen)


def ended(run: FlowRun, chosen: argparse.Namespace) -> int:
    """Wait for a run, and print what came of it; return the exit code."""
    error: BaseException | None = None
    results: dict[str, Any] | None = None
    try:
        results = run.wait_for_result()
    except Exception as raised:
        error = raised
    if chosen.json:
        report = run.report()
        said = report.to_dict() | {"results": results}
        said["error"] = None if report.error is None else report.error.to_dict()
        print(as_json(said))
    else:
        for name, value in (results or {}).items():
            print(f"{name}: {as_text(value)}")
    if error is None:
        return WELL
    tell(error, chosen.debug)
    return FAILED


def draw(chosen: argparse.Namespace) -> int:
    """``millstream graph``."""
    with loaded(chosen) as flow:
        drawings = {"text": flow.to_text, "mermaid": flow.to_mermaid, "dot": flow.to_dot}
        print(drawings[chosen.format]())
    return WELL


def check_flow(chosen: argparse.Namespace) -> int:
    """``millstream check``."""
    problems: list[BaseException] = []
    count = 0
    try:
        with loaded(chosen) as flow:
            count = len(flow.tasks)
            flow.validate()
    except ConfigError as error:
        problems += error.problems or [error]
    except ExceptionGroup as group:
        problems += group.exceptions
    if chosen.json:
        print(as_json({"target": chosen.target, "tasks": count, "problems": [str(problem) for problem in problems]}))
    elif problems:
        print("\n".join(str(problem) for problem in problems))
    else:
        print(f"{chosen.target}: {count} task{'' if count == 1 else 's'}, nothing is wrong")
    return FAILED if problems else WELL


def list_runs(chosen: argparse.Namespace) -> int:
    """``millstream runs``."""
    with opened(chosen.store) as flow:
        heads = flow.runs()
    if chosen.json:
        keys = ("id", "flow", "status", "created_at", "finished_at", "owner")
        print(as_json([{key: getattr(head, key) for key in keys} for head in heads]))
        return WELL
    rows = [("run", "flow", "status", "began", "ended")]
    rows += [(head.id, head.flow, state_of(head), when(head.created_at), when(head.finished_at)) for head in heads]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return WELL


def show_run(chosen: argparse.Namespace) -> int:
    """``millstream show``."""
    with opened(chosen.store) as flow:
        report = flow.report(chosen.run)
    print(as_json(report.to_dict()) if chosen.json else report.to_text())
    return WELL


def state_of(head: Any) -> str:
    """Return the status of a run, and whether anybody goes on with it."""
    return "LEFT" if head.status is Status.RUNNING and head.owner is None else str(head.status)


def when(at: float | None) -> str:
    """Return an instant for people, in their time zone."""
    from datetime import datetime

    return "-" if at is None else datetime.fromtimestamp(at).astimezone().isoformat(" ", "seconds")


# ---- what is asked for ----------------------------------------------------------------------------


def inputs_of(pairs: Iterable[str]) -> dict[str, Any]:
    """Return what ``-i`` gives.

    Raises:
        Refused: one has no ``=``.
    """
    inputs: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key:
            raise Refused(f"-i {pair}: write it as KEY=VALUE, such as -i day=2026-11-22.")
        try:
            inputs[key] = json.loads(text)
        except (ValueError, RecursionError):
            inputs[key] = text
    return inputs


def opened(store: str) -> Flow:
    """Return a flow without tasks, with a store that is there.

    Raises:
        Refused: there is none at the path.
    """
    if not Path(store).exists():
        raise Refused(f"There is no store at {store}: check the path.")
    flow = Flow("inline")
    flow._keep_in(store_of(store))
    return flow


def store_of(path: str) -> Any:
    """Return the store at a path."""
    from millstream.stores import JSONFileStore, SQLiteStore

    return JSONFileStore(path) if path.endswith(".json") else SQLiteStore(path)


def loaded(chosen: argparse.Namespace) -> Flow:
    """Return the flow that a target names, with the store that is asked for.

    Raises:
        Refused: there is no such flow.
        ConfigError: its file cannot be used.
    """
    flow = flow_at(chosen.target, chosen.allow)
    store = getattr(chosen, "store", None)
    if store is not None:
        flow._keep_in(store_of(store))
    return flow


def flow_at(target: str, allow: list[str] | None) -> Flow:
    """Return the flow that a target names; see ``loaded``."""
    sys.path.insert(0, os.getcwd())  # as for ``python -m``
    if Path(target).suffix.lower() in READERS:
        return Flow.from_config(target, allow=allow)
    if allow is not None:
        raise Refused(f"--allow is for config files, and {target} is none: leave it out.")
    place, name = target, ""
    if not target.endswith(".py"):
        place, _, name = target.rpartition(":") if ":" in target else (target, "", "")
    module = module_at(place)
    return flow_in(module, place, name)


def module_at(place: str) -> ModuleType:
    """Return the module of a file, or of a name.

    Raises:
        Refused: it is not there, or fails.
    """
    file = Path(place)
    try:
        if place.endswith(".py"):
            if not file.is_file():
                raise Refused(f"There is no file {place}: check the path.")
            sys.path.insert(0, str(file.resolve().parent))
            spec = importlib.util.spec_from_file_location(file.stem, file.resolve())
            assert spec is not None, "it ends in .py"
            assert spec.loader is not None, "it is a file"
            module = importlib.util.module_from_spec(spec)
            sys.modules[file.stem] = module  # other processes import it by that name
            spec.loader.exec_module(module)
            return module
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            mend = "name a module, or a file that ends in .py, .yaml, .toml or .json"
            raise Refused(f"There is no module {place}: {mend}.") from error
        raise Refused(f"Importing {place} failed: {error}.") from error
    except (Refused, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:  # what it does when it is imported
        raise Refused(f"Importing {place} failed: {type(error).__name__}: {error}.") from error


def flow_in(module: ModuleType, place: str, name: str) -> Flow:
    """Return a flow of a module: of that name, or the only one.

    Raises:
        Refused: there is none.
    """
    flows = {each: value for each, value in vars(module).items() if isinstance(value, Flow)}
    if not name:
        if len({id(flow) for flow in flows.values()}) == 1:
            return next(iter(flows.values()))
        known = f"it has {', '.join(flows)}" if flows else "it has none"
        raise Refused(f"Which flow of {place}? Write {place}:name; {known}.")
    found = getattr(module, name, None)
    if not isinstance(found, Flow) and callable(found):
        found = found()
    if not isinstance(found, Flow):
        near, known = nearest(name, tuple(flows), 0.5), ", ".join(flows) or "no flows"
        mend = f"did you mean {near}?" if near else f"it has {known}."
        raise Refused(f"{place} has no flow {name}: {mend}")
    return found


# ---- what is told ---------------------------------------------------------------------------------


def say(text: str) -> None:
    """Tell something that was not asked for."""
    print(f"millstream: {text}", file=sys.stderr)


def tell(error: BaseException, debug: bool) -> None:
    """Tell an error: its sentence, or all that there is to know of it."""
    if debug:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
        return
    ours = isinstance(error, FlowError | Refused | ExceptionGroup) or type(error) in (TypeError, ValueError)
    say(f"{error}" if ours and str(error) else f"{type(error).__name__}: {error}")
    for note in getattr(error, "__notes__", ()):
        print(f"  {note}", file=sys.stderr)
    if isinstance(error, ExceptionGroup):
        for each in error.exceptions:
            print(f"  {type(each).__name__}: {each}", file=sys.stderr)


def as_text(value: Any) -> str:
    """Return a value for people: a text as it is, everything else as JSON, or as Python shows it."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return repr(value)


def as_json(value: Any) -> str:
    """Return JSON; what it has no word for is as Python shows it."""
    try:
        return json.dumps(value, default=shown)
    except (TypeError, ValueError, RecursionError):  # a mapping with other keys than texts, or a circle
        return json.dumps(plain(value))


def shown(value: Any) -> Any:
    """Return what JSON has words for."""
    return dict(value) if isinstance(value, Mapping) else repr(value)


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value with keys that are texts, and nothing that JSON has no word for."""
    if depth < 20 and isinstance(value, Mapping):
        return {str(key): plain(each, depth + 1) for key, each in value.items()}
    if depth < 20 and isinstance(value, list | tuple):
        return [plain(each, depth + 1) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
