"""A flow that is written down, as a file or a mapping, becomes a ``Flow``.

Everything that is wrong is collected, each with its path, and told at once. What a task calls is found when the flow
is loaded, by its name in ``callables`` or by an import that ``allow`` permits; nothing in the data of a run can choose
it. The keys are those of ``config/schema.json``, and what they may hold is checked by the parts that they are for.
May import: files, expressions, edges, flow, schedule, task, policies, errors.
"""

from __future__ import annotations

import builtins
import importlib
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import millstream.errors
from millstream.config.edges import Edge, edges_of
from millstream.config.edges import names as names_in
from millstream.errors import ConfigError, TaskNotFoundError
from millstream.flow import Flow
from millstream.policies import Rate, Retry
from millstream.task import Options, Task, TaskBase, check_name, nearest

if TYPE_CHECKING:
    from millstream.schedule import Scheduler

F = TypeVar("F", bound=Flow)

#: What a flow may say in a file, besides its tasks, edges and schedule: options of ``Flow`` that are data.
SETTINGS = ("name", "executor", "max_workers", "max_parallel", "limits", "on_error", "max_task_runs", "entry", "store")
FLOW = (*SETTINGS, "tasks", "edges", "schedule")
TASK = ("callable", *Options.NAMES)
JOB = ("task", "inputs", "cron", "every", "at", "tz", "overlap", "missed", "name")
STORE = ("path", "kind", "sync", "lease", "retention")
RATE = ("count", "per")
NEAREST = 30  #: problems after which the nearest name is not looked for any more: that takes its time
EXECUTORS = ("thread", "process", "asyncio", "inline")

#: Keys of other libraries, and ours for them.
ALIASES = {"nodes": "tasks", "steps": "tasks", "type": "callable", "function": "callable", "backend": "executor"}

#: How a callable is named: a module and a name in it, by dots, or with a colon between the two.
_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*(?::[^\W\d]\w*(?:\.[^\W\d]\w*)*)?")


def load(
    cls: type[F],
    config: str | os.PathLike[str] | Mapping[str, Any],
    allow: Iterable[str] | None,
    callables: Mapping[str, Callable[..., Any]] | None,
) -> F:
    """Return the flow that a file or a mapping describes; see ``Flow.from_config``."""
    reader = Reader(config, allow, callables)
    return reader.flow(cls)


def load_schedule(
    config: str | os.PathLike[str] | Mapping[str, Any],
    allow: Iterable[str] | None,
    callables: Mapping[str, Callable[..., Any]] | None,
) -> Scheduler:
    """Return the scheduler that a file or a mapping describes; see ``Scheduler.from_config``."""
    reader = Reader(config, allow, callables)
    flow = reader.flow(Flow)
    with reader.closing_on_error(flow):
        scheduler = reader.jobs(flow)
        if not scheduler.jobs:
            reader.wrong("flow.schedule", "it has no jobs: give it a list of them.")
        reader.end()
    return scheduler


def built(
    cls: type[F],
    tasks: Mapping[str, Callable[..., Any] | Task[..., Any]],
    entry: str | None,
    edges: Any,
    settings: Mapping[str, Any],
) -> F:
    """Return a flow of tasks that are there; see ``Flow.from_dsl``."""
    if not isinstance(tasks, Mapping) or not tasks:
        raise TypeError(f"from_dsl(tasks=...) takes a mapping of names to callables or tasks, not {tasks!r:.60}.")
    flow = cls(entry=entry, **settings)
    for name, made in tasks.items():
        if isinstance(made, Task):
            flow.add_task(name, made.fn, **made.origin.given())
        else:
            flow.add_task(name, made)
    if isinstance(edges, Iterator):
        edges = list(edges)
    flow._connect(edges_of(edges))
    unknown = list(unknown_names(flow.tasks, edges))
    if entry is not None and entry not in flow.tasks:
        unknown.append(("entry", entry))
    problems = [ConfigError(where, not_found(name, flow.tasks, n)) for n, (where, name) in enumerate(unknown)]
    if problems:
        raise _together("from_dsl", problems)
    flow.validate()
    return flow


def unknown_names(tasks: Mapping[str, Any], edges: Any) -> Iterator[tuple[str, str]]:
    """Yield each name in edges that is none of a task, and where it is."""
    for place, each in enumerate([edges] if isinstance(edges, str) else edges):
        for name in dict.fromkeys(names_in(each) if isinstance(each, str) else each):
            if name not in tasks:
                yield "edges" if isinstance(edges, str) else f"edges[{place}]", name


def not_found(name: str, tasks: Iterable[str], before: int) -> str:
    """Return what to say of the name of no task, after so many other problems."""
    return _said(TaskNotFoundError(name, tasks)) if before < NEAREST else f"Task {name} not found."


class Reader:
    """Makes the parts of a flow, and collects what is wrong with them.

    Args:
        config: a path, or what would be in such a file.
        allow: modules that may be imported, with what is below them; ``[]``: none. None: the file is trusted.
        callables: what tasks may call by a name of its own.

    Raises:
        ConfigError: the file cannot be read.
        TypeError: one of the others cannot be used.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | Mapping[str, Any],
        allow: Iterable[str] | None,
        callables: Mapping[str, Callable[..., Any]] | None,
    ) -> None:
        if isinstance(allow, str) or not (allow is None or isinstance(allow, Iterable)):
            raise TypeError(f"allow is a list of names of modules, not {allow!r}.")
        self._allow = None if allow is None else tuple(allow)
        for module in self._allow or ():
            if not isinstance(module, str):
                raise TypeError(f"allow is a list of names of modules, and has {module!r}.")
        if not (callables is None or isinstance(callables, Mapping)):
            raise TypeError(f"callables is a mapping of names to functions, not {callables!r}.")
        self._callables = dict(callables or {})
        for name, fn in self._callables.items():
            if not isinstance(name, str) or not callable(fn):
                raise TypeError(f"callables is a mapping of names to functions, and has {name!r}: {fn!r}.")
        self.problems: list[ConfigError] = []
        self.source = ""  #: the file
        self._task_name = ""  # of the task that is being read
        content: Any = config
        if isinstance(config, str | os.PathLike):
            from millstream.config.files import read

            self.source = os.fspath(config)
            content = read(Path(config))
        self._content = self.mapping("", content, ("flow", "$schema"), {})
        self._flow = self.mapping("flow", self._content.get("flow", _NOTHING), FLOW, ALIASES)

    # ---- problems -------------------------------------------------------------------------------

    def wrong(self, path: str, problem: str) -> None:
        """Note something that is wrong."""
        self.problems.append(ConfigError(path, problem))

    def missing(self, path: str, name: str, tasks: Iterable[str]) -> None:
        """Note the name of no task."""
        self.wrong(path, not_found(name, tasks, len(self.problems)))

    @contextmanager
    def noting(self, path: str) -> Iterator[None]:
        """Note what the parts of a flow refuse."""
        try:
            yield
        except ConfigError as error:
            if error.problems:
                raise  # all of ours
            known = re.match(r"(?:inputs|outputs|for_each) of task |edges\[", error.where)
            if known is None:
                self.wrong(path, str(error))
            else:  # the rest says where inside of that
                inside = error.where[known.end() :].removeprefix(self._task_name)
                self.wrong(path if known[0] == "edges[" else f"{path}{inside}", error.problem)
        except (TypeError, ValueError, LookupError, OverflowError, RecursionError) as error:
            self.wrong(path, _said(error))

    def end(self) -> None:
        """Tell everything that is wrong.

        Raises:
            ConfigError: something is.
        """
        if self.problems:
            raise _together(self.source or "config", self.problems)

    @contextmanager
    def closing_on_error(self, flow: Flow) -> Iterator[None]:
        try:
            yield
        except BaseException:
            flow.close()
            raise

    def mapping(self, path: str, value: Any, keys: tuple[str, ...], aliases: Mapping[str, str]) -> dict[str, Any]:
        """Return the known keys of a mapping."""
        if value is _NOTHING:
            self.wrong(path, "it is missing: a flow is described under that key.")
            return {}
        if not isinstance(value, Mapping):
            self.wrong(path or "the file", f"it is a mapping, not {_kind(value)}.")
            return {}
        known = {}
        for key, each in value.items():
            if key in keys:
                known[key] = each
            else:
                ours = aliases.get(key) or nearest(key, keys, 0.5) if isinstance(key, str) else None
                mend = f"did you mean {ours}?" if ours in keys else f"there are {', '.join(keys)}."
                self.wrong(_below(path, key), f"there is no such key: {mend}")
        return known

    # ---- the flow -------------------------------------------------------------------------------

    def flow(self, cls: type[F]) -> F:
        """Return the flow.

        Raises:
            ConfigError: something is wrong; all that is wrong with tasks and edges is told.
        """
        settings = {name: self._flow[name] for name in SETTINGS if self._flow.get(name) is not None}
        if "executor" in settings:
            self._check_executor("flow.executor", settings)
        if "limits" in settings:
            settings["limits"] = self._limits(settings["limits"])
        if "store" in settings:
            settings["store"] = self._store(settings["store"])
        good = {}
        for name, value in settings.items():  # each by itself, so that each tells what is wrong
            if name in ("store", "executor"):
                good[name] = value
                continue
            with self.noting(f"flow.{name}"):
                cls(**{name: value}).close()
                good[name] = value
        tasks = self._tasks()
        edges = self._edges()
        names = self._flow.get("tasks")
        names = names if isinstance(names, Mapping) else {}
        self._check_names(names, good.get("entry"))
        stand_in = Flow("inline")
        for name in names:
            if isinstance(name, str) and name and "#" not in name:
                stand_in.add_task(name, _nothing)
        self.jobs(stand_in)
        self.end()
        flow: F | None = None
        with self.noting("flow"):
            flow = cls(**good)
        if flow is not None:
            if flow._durable is not None:
                flow._durable.owns = True  # it was made here
            with self.closing_on_error(flow):
                with self.noting("flow"):
                    for task in tasks:
                        flow.add_task(task.name, task.fn, **task.given())
                    flow._connect(edges)
                    self._validate(flow)
                self.end()
        self.end()
        assert flow is not None, "what is refused was noted"
        return flow

    def _check_executor(self, path: str, options: dict[str, Any]) -> None:
        if options["executor"] not in EXECUTORS:
            self.wrong(path, f"it is one of {', '.join(EXECUTORS)}, not {reprlib.repr(options.pop('executor'))}.")

    def _limits(self, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        limits = {}
        for name, limit in given.items():
            path = f"flow.limits.{name}"
            if isinstance(limit, Mapping):
                facts = self.mapping(path, limit, RATE, {"rate": "count"})
                if "count" not in facts:
                    self.wrong(path, "it has no count: say how many may start in per seconds.")
                    continue
                with self.noting(path):
                    limits[name] = Rate(**facts)
            else:
                limits[name] = limit
        return limits

    def _store(self, given: Any) -> Any:
        facts = {"path": given} if isinstance(given, str) else self.mapping("flow.store", given, STORE, {})
        path, kind = facts.pop("path", None), facts.pop("kind", None)
        if not isinstance(path, str) or not path or "\0" in path:
            self.wrong("flow.store", f"it has no path: name a file, such as 'runs.db', not {reprlib.repr(path)}.")
            return None
        if ".." in Path(path).parts:
            self.wrong("flow.store", f"{path!r:.60} leaves its directory by '..': write the whole path.")
            return None
        if kind not in (None, "sqlite", "json"):
            self.wrong("flow.store.kind", f"it is sqlite or json, not {reprlib.repr(kind)}.")
            return None
        if kind == "json":
            for option in ("lease", "retention"):
                if facts.pop(option, None) is not None:
                    self.wrong(f"flow.store.{option}", "only kind sqlite has that: take it out.")
        from millstream.stores import JSONFileStore, SQLiteStore

        with self.noting("flow.store"):
            return JSONFileStore(path, **facts) if kind == "json" else SQLiteStore(path, **facts)
        return None

    def _edges(self) -> list[Edge]:
        given = self._flow.get("edges")
        if given is None:
            return []
        edges: list[Edge] = []
        if isinstance(given, str):
            given = [given]
        elif not isinstance(given, list | tuple):
            self.wrong("flow.edges", f"they are a list of texts such as 'a >> b', or of pairs, not {_kind(given)}.")
            return []
        before = len(self.problems)
        for place, each in enumerate(given):
            with self.noting(f"flow.edges[{place}]"):
                edges += edges_of([each])
        if len(self.problems) == before:
            with self.noting("flow.edges"):
                edges_of(given)  # one may contradict another
        return edges

    def _check_names(self, tasks: Mapping[str, Any], entry: Any) -> None:
        """Note names that are none of a task; the edges are looked up by their place."""
        given = self._flow.get("edges")
        edges_given = [given] if isinstance(given, str) else given if isinstance(given, list | tuple) else ()
        for where, name in unknown_names(tasks, self._readable(edges_given)):
            self.missing(f"flow.{where}", name, tasks)
        if isinstance(entry, str) and entry not in tasks:
            self.missing("flow.entry", entry, tasks)
        limits = self._flow.get("limits")
        limits = limits if isinstance(limits, Mapping) else {}
        for name, task in tasks.items():
            for option in ("depends_on", "routes", "uses") if isinstance(task, Mapping) else ():
                ends = task.get(option)
                for place, end in enumerate(ends if isinstance(ends, list | tuple) else ()):
                    if isinstance(end, str) and end not in (limits if option == "uses" else tasks):
                        path = f"flow.tasks.{name}.{option}[{place}]"
                        if option != "uses":
                            self.missing(path, end, tasks)
                        else:
                            known = ", ".join(map(str, limits)) or "none"
                            self.wrong(path, f"the flow has no limit {reprlib.repr(end)}: its limits are {known}.")

    def _readable(self, edges: Iterable[Any]) -> list[Any]:
        """Return edges where those that cannot be read, which was noted, name nothing."""
        found: list[Any] = []
        for each in edges:
            try:
                edges_of([each])
            except ConfigError:
                found.append(())
            else:
                found.append(each)
        return found

    def _validate(self, flow: Flow) -> None:
        try:
            flow.validate()
        except ExceptionGroup as group:
            for error in group.exceptions:
                task = getattr(error, "task", None)
                if isinstance(error, TaskNotFoundError):
                    self.missing("flow", error.name, flow.tasks)
                else:
                    self.wrong("flow" if task is None else f"flow.tasks.{task}", _said(error))

    # ---- tasks ----------------------------------------------------------------------------------

    def _tasks(self) -> list[Task[..., Any]]:
        given = self._flow.get("tasks")
        if not isinstance(given, Mapping) or not given:
            if "flow" in self._content:
                self.wrong("flow.tasks", f"they are a mapping of names to tasks, not {_kind(given)}.")
            return []
        tasks = []
        for name, facts in given.items():
            path = _below("flow.tasks", name)
            self._task_name = str(name)
            with self.noting(path):
                check_name(name)
                task = self._task(path, name, {"callable": facts} if isinstance(facts, str) else facts)
                if task is not None:
                    tasks.append(task)
        return tasks

    def _task(self, path: str, name: str, given: Any) -> Task[..., Any] | None:
        facts = self.mapping(path, given, TASK, {**ALIASES, **Options.ALIASES})
        if "callable" not in facts and isinstance(given, Mapping):
            self.wrong(path, "it has no callable: name the function that it calls.")
        fn = self._callable(f"{path}.callable", facts.pop("callable", None))
        if facts.get("executor") is not None:
            self._check_executor(f"{path}.executor", facts)
        for option in ("depends_on", "routes"):
            ends = facts.get(option)
            if ends is not None and not (isinstance(ends, list) and all(isinstance(end, str) for end in ends)):
                self.wrong(f"{path}.{option}", f"it is a list of names of tasks, not {facts.pop(option)!r:.60}.")
        if isinstance(facts.get("retry"), Mapping):
            facts["retry"] = self._retry(f"{path}.retry", facts["retry"])
        if facts.get("retry_on") is not None:
            facts["retry_on"] = self._errors(f"{path}.retry_on", facts["retry_on"])
        short = {option: facts.pop(option) for option in ("retry", *Options.SHORT) if option in facts}
        good: dict[str, Any] = {}
        for option, value in facts.items():
            with self.noting(f"{path}.{option}"):
                Task(name, _nothing, **{option: value})
                good[option] = value
        with self.noting(path):
            Task(name, _nothing, **short)
            good |= short
        if fn is None:
            return None
        made: Task[..., Any]
        if isinstance(fn, Task):
            own = {option: value for option, value in fn.given().items() if option != "retry" or not short}
            made = Task(name, fn.fn, **{**own, **good})
        else:
            made = Task(name, fn, **good)
        return made

    def _retry(self, path: str, given: Mapping[str, Any]) -> Retry | None:
        facts = self.mapping(path, given, Retry.FIELDS, {"max_attempts": "attempts"})
        if facts.get("on") is not None:
            facts["on"] = self._errors(f"{path}.on", facts["on"])
        with self.noting(path):
            return Retry(**{name: value for name, value in facts.items() if value is not None})
        return None

    def _errors(self, path: str, given: Any) -> Any:
        """Return classes of errors: those of Python and of Millstream by their names, others by where they are."""
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self.wrong(path, f"it is the name of an error, or a list of such names, not {_kind(given)}.")
            return None
        found = []
        for name in names:
            error = getattr(builtins, name, None) or getattr(millstream.errors, name, None)
            if error is None:
                error = self._callable(path, name, "class of errors")
            if isinstance(error, type) and issubclass(error, BaseException):
                found.append(error)
            elif error is not None:
                self.wrong(path, f"{name!r:.60} is no class of errors: name one, such as ConnectionError.")
        if not names:
            self.wrong(path, "it names no error: leave it out for any.")
        return tuple(found) or None

    # ---- what is called -------------------------------------------------------------------------

    def _callable(self, path: str, name: Any, what: str = "function") -> Any:
        """Return what a name stands for; None after noting why it cannot be had."""
        if name is None:
            return None
        if not isinstance(name, str):
            self.wrong(path, f"it is the name of a {what}, such as 'shop.orders.load', not {_kind(name)}.")
            return None
        if name in self._callables:
            return self._callables[name]
        if not _DOTTED.fullmatch(name) or "." not in name.replace(":", "."):
            near = nearest(name, tuple(self._callables), 0.5)
            mend = f"did you mean {near}?" if near else "write 'module.name', or give it in callables=."
            self.wrong(path, f"{name!r:.60} is no name of a {what}: {mend}")
            return None
        if any(part.startswith("__") for part in name.replace(":", ".").split(".")):
            self.wrong(path, f"{name!r:.60} reaches for an attribute of Python's own: name a {what} of a module.")
            return None
        found = self._imported(path, name, what)
        if isinstance(found, type) and issubclass(found, TaskBase):
            try:
                return found()
            except Exception as error:  # whatever it does when it is made
                self.wrong(path, f"making {name} failed: {type(error).__name__}: {error}.")
                return None
        if found is not None and not callable(found):
            self.wrong(path, f"{name!r:.60} is {_kind(found)}, and cannot be called: name a {what}.")
            return None
        return found

    def _imported(self, path: str, name: str, what: str) -> Any:
        modules, colon, rest = name.partition(":")
        parts = modules.split(".")
        for count in range(len(parts) if colon else len(parts) - 1, 0, -1):
            module, attributes = ".".join(parts[:count]), [*parts[count:], *(rest.split(".") if colon else ())]
            if not self._may_import(path, name, module):
                return None
            try:
                found: Any = importlib.import_module(module)
            except ModuleNotFoundError as error:
                if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
                    if count > 1 and not colon:
                        continue
                    self.wrong(path, f"there is no module {error.name}: is it installed, and is its name right?")
                    return None
                self.wrong(path, f"importing {module} failed: {error}.")
                return None
            except (Exception, SystemExit) as error:  # what the module does when it is imported
                self.wrong(path, f"importing {module} failed: {type(error).__name__}: {error}.")
                return None
            return self._attribute(path, name, module, found, attributes, what)
        return None

    def _attribute(self, path: str, name: str, module: str, found: Any, attributes: list[str], what: str) -> Any:
        for attribute in attributes:
            try:
                inner = getattr(found, attribute, _NOTHING)
            except Exception as error:  # a module may have a ``__getattr__``
                self.wrong(path, f"looking for {attribute} in {module} failed: {type(error).__name__}: {error}.")
                return None
            if isinstance(inner, ModuleType):
                self.wrong(path, f"{name!r:.60} leads through {module} to another module: name that one.")
                return None
            if inner is _NOTHING:
                near = nearest(attribute, tuple(each for each in dir(found) if not each.startswith("_")), 0.6)
                mend = f"did you mean {near}?" if near else f"define it, or name another {what}."
                self.wrong(path, f"{module} has no {attribute}: {mend}")
                return None
            found = inner
        home = _home_of(found) if callable(found) else None
        if home is not None and not self._may_import(path, name, home):
            return None
        return found

    def _may_import(self, path: str, name: str, module: str) -> bool:
        if self._allow is None or any(module == each or module.startswith(f"{each}.") for each in self._allow):
            return True
        mend = f"only what is in {', '.join(self._allow) or 'callables='} may be: add it to allow="
        self.wrong(path, f"{name!r:.60} is in {module}, and may not be imported: {mend}.")
        return False

    # ---- the schedule ---------------------------------------------------------------------------

    def jobs(self, flow: Flow) -> Scheduler:
        """Return a scheduler with the jobs of the flow, which does not run."""
        from millstream.schedule import Scheduler

        scheduler = Scheduler(flow)
        given = self._flow.get("schedule")
        if given is not None and not isinstance(given, list):
            self.wrong("flow.schedule", f"it is a list of jobs, not {_kind(given)}.")
            return scheduler
        for place, each in enumerate(given or ()):
            path = f"flow.schedule[{place}]"
            facts = self.mapping(path, each, JOB, {"interval": "every", "expression": "cron", "when": "at"})
            if not facts:
                continue
            kinds = [kind for kind in ("cron", "every", "at") if kind in facts]
            if len(kinds) != 1:
                self.wrong(path, "it has one of cron, every and at: say when it is due.")
                continue
            if "tz" in facts and kinds != ["cron"]:
                self.wrong(f"{path}.tz", "only cron takes a time zone: take it out.")
                continue
            with self.noting(path):
                when, task, inputs = facts.pop(kinds[0]), facts.pop("task", None), facts.pop("inputs", None)
                if kinds == ["at"] and isinstance(when, str):
                    when = datetime.fromisoformat(when)
                if not isinstance(task, str):
                    raise TypeError(f"it has no task: name the one that it starts, not {task!r:.60}.")
                getattr(scheduler, kinds[0])(when, **facts).do(task, inputs)
        return scheduler


_NOTHING: Any = object()


def _nothing() -> None:
    """Stands for a task's function while its options are checked."""


def _home_of(found: Any) -> str | None:
    """Return the module that something comes from."""
    from millstream.binding import unwrapped

    if isinstance(found, Task):
        found = found.fn
    if isinstance(found, type):
        return found.__module__
    inner = unwrapped(found) if callable(found) else found
    home = getattr(inner, "__module__", None) or type(inner).__module__
    return home if isinstance(home, str) else None


def _together(where: str, problems: list[ConfigError]) -> ConfigError:
    if len(problems) == 1:
        (only,) = problems
        return ConfigError(f"{where}: {only.where}" if only.where else where, only.problem)
    return ConfigError(where, f"{len(problems)} problems", problems)


def _below(path: str, key: object) -> str:
    shown = key if isinstance(key, str) else reprlib.repr(key)
    return f"{path}.{shown:.60}" if path else f"{shown:.60}"


def _kind(value: Any) -> str:
    name = type(value).__name__
    return "nothing" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _said(error: BaseException) -> str:
    text = error.args[0] if type(error) is KeyError and error.args else str(error)
    return f"{text}" if str(text).endswith((".", "?")) else f"{text}."
