"""The command ``millstream``: run, check and draw flows, and look at the runs of a store.

What was asked for goes to standard output, everything else to standard error. An error is one sentence; ``--debug``
shows where it comes from. May import: everything else.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from millstream.config.files import READERS
from millstream.errors import (
    BindingError,
    CodeChangedError,
    ConfigError,
    FlowError,
    RunOwnedError,
    TaskNotFoundError,
    UnknownRunError,
)
from millstream.flow import Flow, RunOptions
from millstream.task import nearest
from millstream.values import Status

if TYPE_CHECKING:
    from millstream.engine.run import FlowRun
    from millstream.report import RunReport

WELL, FAILED, REFUSED, UNFIT, CANCELLED, CUT_OFF = 0, 1, 2, 3, 130, 141

DEEPEST = 50  #: lists and mappings in each other that are printed as JSON

HELP = """Run, check and draw flows, and look at the runs of a store.

TARGET is a flow: 'module:name', 'file.py:name' (the name may be left out when there is one flow), or a file
in YAML, TOML or JSON. The name may also be that of a function without parameters that returns a flow.
"""
CODES = """exit codes:
  0    all is well
  1    the run failed
  2    what was asked for is not there: a wrong argument, or a target, task, store or run that does not exist
  3    the flow, its file or the store cannot be used, the report could not be written, or check has found something
  130  it was cancelled by Ctrl-C
  141  whoever read the output has gone away

examples:
  millstream run shop/orders.yaml -i day=2026-11-22
  millstream run shop.flows:orders load --store runs.db --run-id monday
  millstream resume shop.flows:orders monday --store runs.db --from load
  millstream graph orders.py --format mermaid
"""


class Refused(Exception):  # noqa: N818 - it is what the user is told, and never leaves this module
    """What was asked for is not there."""


class Unfit(Exception):  # noqa: N818 - as ``Refused``
    """What was asked for is there, and cannot be used."""


def main(args: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Args:
        args: the arguments, without the name of the command; those of the process without them.

    Returns:
        The exit code; see ``CODES``.
    """
    chosen = parser().parse_args(args)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what a terminal has no signs for is shown all the same
    try:
        try:
            code: int = chosen.do(chosen)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
        return code
    except BrokenPipeError:
        mute()
        return CUT_OFF
    except KeyboardInterrupt:
        say("cancelled")
        return CANCELLED
    except (Refused, Unfit, FlowError, TypeError, ValueError, ExceptionGroup) as error:
        tell(error, chosen.debug)
        asked = isinstance(error, (Refused, TaskNotFoundError, BindingError, UnknownRunError, RunOwnedError))
        fits = isinstance(error, (Unfit, FlowError, ExceptionGroup))
        return UNFIT if fits and not asked else REFUSED
    except OSError as error:  # the disk is full, say
        mute()
        tell(error, chosen.debug)
        return UNFIT


def nobody_reads() -> bool:
    """Whether whoever read the output has gone."""
    try:
        import select

        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # there is no such call here, or no output
        return False


def mute() -> None:
    """Nobody reads the output: Python would complain of that again when it closes it at its end."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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

    def shows(command: argparse.ArgumentParser) -> None:
        command.add_argument("--progress", action="store_true", help="show how far the run is, on standard error")
        takes_report(command)

    def takes_report(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--report", metavar="FILE", help="write an HTML page about the run, also when it has failed"
        )

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
    shows(run)
    takes_json(run)

    graph = add("graph", draw, "draw a flow")
    takes_target(graph)
    graph.add_argument("--format", choices=["text", "mermaid", "dot"], default="text", help="text without it")
    takes_json(graph)

    check = add("check", check_flow, "say everything that is wrong with a flow, without running it")
    takes_target(check)
    takes_json(check)

    runs = add("runs", list_runs, "list the runs of a store, the oldest first")
    takes_store(runs, required=True)
    takes_json(runs)

    show = add("show", show_run, "show what became of a run of a store, and of its tasks")
    show.add_argument("run", metavar="RUN", help="the id of the run")
    takes_store(show, required=True)
    takes_report(show)
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
    shows(resume)
    takes_json(resume)
    return made


# ---- commands -------------------------------------------------------------------------------------


def run_flow(chosen: argparse.Namespace) -> int:
    """``millstream run``."""
    with loaded(chosen) as flow:
        options: RunOptions = {"targets": chosen.only, "timeout": chosen.timeout, "run_id": chosen.run_id}
        options |= shown_by(chosen)
        inputs = inputs_of(chosen.input) or None
        return followed(flow, chosen, lambda: flow._start(chosen.task, inputs, options, driven=True))


def resume_run(chosen: argparse.Namespace) -> int:
    """``millstream resume``."""
    with loaded(chosen) as flow:
        options: RunOptions = {"resume": chosen.run, "timeout": chosen.timeout}
        options |= shown_by(chosen)
        inputs = inputs_of(chosen.input) or None

        def start() -> FlowRun:
            try:
                return flow._start(None, inputs, options, driven=True, again=chosen.again, on_code_change="raise")
            except CodeChangedError as error:  # which is refused before anything has begun
                say(str(error))
                return flow._start(None, inputs, options, driven=True, again=chosen.again, on_code_change="ignore")

        return followed(flow, chosen, start)


def check_report(chosen: argparse.Namespace) -> None:
    """Refuse a report that could not be written at the end.

    Raises:
        Refused: there is no folder for it.
    """
    if chosen.report is not None:
        path = Path(chosen.report)
        fits = path.is_file() if path.exists() else path.parent.is_dir()
        if not (fits and os.access(path if path.exists() else path.parent, os.W_OK)):
            raise Refused(f"--report {path} cannot be written: give a file in a folder that exists.")


def shown_by(chosen: argparse.Namespace) -> RunOptions:
    """Return the options of a run that is to be shown."""
    check_report(chosen)
    return {"trace": chosen.report is not None, "progress": chosen.progress}


def followed(flow: Flow, chosen: argparse.Namespace, start: Callable[[], FlowRun]) -> int:
    """Start a run, and wait for it; return the exit code. Ctrl-C may come while it is still being started."""
    try:
        return ended(start(), chosen)
    except KeyboardInterrupt:
        with suppress(UnknownRunError):
            is_written(flow.report(), chosen)
        raise


def ended(run: FlowRun, chosen: argparse.Namespace) -> int:
    """Wait for a run, and print what came of it; return the exit code."""
    error: BaseException | None = None
    results: dict[str, Any] | None = None
    try:
        results = run.wait_for_result()
    except Exception as raised:
        error = raised
        if isinstance(raised, BrokenPipeError) and nobody_reads():
            raise  # a task has printed: that is no failure of it
    report = run.report()
    if chosen.json:
        said = report.to_dict() | {"results": results}
        said["error"] = None if report.error is None else report.error.to_dict()
        print(as_json(said))
    else:
        for name, value in (results or {}).items():
            print(f"{name}: {as_text(value)}")
    if error is not None:
        tell(error, chosen.debug)
    elif report.status is Status.FAILED:  # and the others went on
        for name, row in report.tasks.items():
            if row.error is not None:
                say(f"{row.error.type}: {row.error.first_line()}")
                print(f"  In task {name} of flow run {run.id} ({report.flow}).", file=sys.stderr)
    written = is_written(report, chosen)
    return FAILED if error is not None or report.status is not Status.SUCCESS else WELL if written else UNFIT


def is_written(report: RunReport, chosen: argparse.Namespace) -> bool:
    """Write what ``--report`` asks for; say why not, if that fails: it is no reason to hide what became of the run."""
    try:
        if chosen.report is not None:
            report.to_html(chosen.report)
    except OSError as error:  # the disk is full, say
        say(f"The page of run {report.run_id} could not be written to {chosen.report}: {error}.")
        return False
    return True


def draw(chosen: argparse.Namespace) -> int:
    """``millstream graph``."""
    with loaded(chosen) as flow:
        if chosen.json:
            tasks = {name: task.description for name, task in flow.tasks.items()}
            edges = {"dependencies": dict(flow.dependencies), "routes": dict(flow.routes)}
            print(as_json({"flow": flow.name, "entry": flow.entry, "tasks": tasks} | edges))
            return WELL
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
    return UNFIT if problems else WELL


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
    check_report(chosen)
    with opened(chosen.store) as flow:
        report = flow.report(chosen.run)
        head = next(head for head in flow.runs() if head.id == chosen.run)
    if chosen.report is not None:
        report.to_html(chosen.report)
    if chosen.json:
        print(as_json(report.to_dict() | {"owner": head.owner}))
    else:
        print(report.to_text(state=state_of(head)))
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
            inputs[key] = json.loads(text, parse_constant=refuse)
        except (ValueError, RecursionError):
            inputs[key] = text
    return inputs


def refuse(word: str) -> None:
    """NaN and its kin are no JSON."""
    raise ValueError(f"{word} is no JSON")


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
        if not Path(target).exists():
            raise Refused(f"There is no file {target}: check the path.")
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
        raise Unfit(f"Importing {place} failed: {error}.") from error
    except (Refused, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:  # what it does when it is imported
        raise Unfit(f"Importing {place} failed: {type(error).__name__}: {error}.") from error


def flow_in(module: ModuleType, place: str, name: str) -> Flow:
    """Return a flow of a module: of that name, or the only one.

    Raises:
        Refused: there is none.
    """
    flows = {each: value for each, value in vars(module).items() if isinstance(value, Flow)}
    if not name:
        different = {id(flow): each for each, flow in flows.items()}
        if len(different) == 1:
            return next(iter(flows.values()))
        known = f"it has {', '.join(different.values())}" if flows else "it has none"
        raise Refused(f"Which flow of {place}? Write {place}:name; {known}.")
    found = getattr(module, name, None)
    if not isinstance(found, Flow) and callable(found):
        try:
            found = found()
        except (Exception, SystemExit) as error:  # whatever it does
            raise Unfit(f"Calling {place}:{name} failed: {type(error).__name__}: {error}.") from error
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
    ours = isinstance(error, FlowError | Refused | Unfit | ExceptionGroup) or type(error) in (TypeError, ValueError)
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
    except Exception:  # what JSON has no word for, or a class that raises whatever it likes
        return shown(value)


def as_json(value: Any) -> str:
    """Return JSON; what it has no word for is as Python shows it."""
    return json.dumps(plain(value, ()), allow_nan=False)


def plain(value: Any, around: tuple[int, ...]) -> Any:
    """Return a value with keys that are texts, and nothing that JSON has no word for.

    Args:
        value: any.
        around: identities of what it stands in.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return value if math.isfinite(value) and abs(value) < 10**4000 else shown(value)
    if id(value) in around or len(around) > DEEPEST:
        return shown(value)
    try:
        if isinstance(value, Mapping):
            return {shown(key): plain(each, (*around, id(value))) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [plain(each, (*around, id(value))) for each in value]
    except Exception:  # a class may raise whatever it likes
        pass
    return shown(value)


def shown(value: Any) -> str:
    """Return a text for any value."""
    try:
        return value if isinstance(value, str) else repr(value)
    except Exception as error:  # a class may raise whatever it likes; an integer may be too long
        return f"<{type(value).__name__}, which cannot be shown: {type(error).__name__}>"
