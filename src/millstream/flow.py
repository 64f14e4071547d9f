"""``Flow``: the registry of tasks and the front door. It holds no scheduling logic.

A flow checks what it is given, makes a ``FlowRun`` for each run with a view of the registry as of its
start, and closes what it created. May import: everything below it; the engine never imports it.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextvars import Token
from functools import partial
from itertools import count
from types import CodeType, MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, ParamSpec, Self, TypedDict, TypeVar, Unpack, overload

from millstream.context import Context
from millstream.engine.clock import Clock
from millstream.engine.limits import Limits
from millstream.engine.run import FlowRun, OnError
from millstream.engine.session import CallShape, Session, TaskHandle, call_invoke, submit_call
from millstream.engine.states import RunTerms
from millstream.engine.stream import AsyncChunks, Chunks, Stream
from millstream.engine.tell import Teller
from millstream.errors import (
    BindingError,
    CheckpointError,
    DuplicateTaskWarning,
    FlowClosedError,
    FlowError,
    TaskCancelledError,
    TaskNotFoundError,
    UnknownRunError,
)
from millstream.events import Hook, check_hooks
from millstream.executors.asyncio import AsyncioExecutor
from millstream.executors.base import Executor, Workers, blocked_loops
from millstream.executors.owned import AnyExecutor, Executors, name_of_class
from millstream.interrupts import shield, struck
from millstream.policies import Rate, check_limits
from millstream.registry import Registry, bound, is_elsewhere, terms_of_calls
from millstream.task import (
    CONSTANT,
    Task,
    TaskOptions,
    check_count,
    check_limit,
    check_task,
    current_flow,
    current_run,
    name_of,
    only_names,
    refuse_option,
    task_names,
)
from millstream.values import NextTask, copied_inputs

if TYPE_CHECKING:
    from millstream.config.edges import Edge
    from millstream.diagram import Diagram
    from millstream.durable import Durable, OnCodeChange
    from millstream.engine.record import RunRecord
    from millstream.graph import Graph
    from millstream.report import RunReport
    from millstream.show.progress.display import Progress
    from millstream.stores.base import Store, StoredRun
    from millstream.task import TaskName

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")
Start = str | Iterable[str] | None

#: Chunks that wait for the reader of a stream before tasks have to.
BUFFER = 1024


class RunOptions(TypedDict, total=False):
    """The options that every way to run a flow takes."""

    context: Context[Any] | Mapping[str, Any] | None  #: a context to use, or a mapping that is copied into one
    deps: Any  #: an object that tasks reach as ``ctx.deps``
    metadata: Mapping[str, Any] | None  #: facts about the run, ``ctx.metadata``
    targets: Iterable[str] | None  #: run these tasks, and what they depend on, alone
    trace: bool  #: keep every task run for the report
    progress: bool  #: show how far the run is, on standard error
    timeout: float | None  #: seconds for the whole run
    run_id: str | None  #: the id of the run; made up without it
    resume: str | None  #: the id of a run in the flow's store that is to go on, instead of a new one


class FlowTask(Task[P, R]):
    """A task as part of one flow: ``flow[name]``. ``>>``, ``&`` and ``|`` add edges to that flow."""

    def __init__(self, flow: Flow, task: Task[P, R]) -> None:
        self.__dict__.update(task.__dict__)
        self._origin = task
        self.flow = flow

    @property
    def origin(self) -> Task[..., Any]:
        return self._origin

    def submit(
        self,
        /,
        *args: Any,
        depends_on: Iterable[TaskHandle[Any]] = (),
        call_key: str | None = None,
        **kwargs: Any,
    ) -> TaskHandle[Any]:
        """Submit a call to this flow; see ``Flow.submit``."""
        return self.flow.submit(self, *args, depends_on=depends_on, call_key=call_key, **kwargs)

    def __rshift__(self, other: TaskGroup | FlowTask[..., Any]) -> TaskGroup:
        """``a >> b``: b depends on a; ``a >> (b | c)``: a may choose b or c. Returns the chain."""
        return TaskGroup.of(self) >> other

    def __and__(self, other: TaskGroup | FlowTask[..., Any]) -> TaskGroup:
        """``a & b``: both."""
        return TaskGroup.of(self) & other

    def __or__(self, other: TaskGroup | FlowTask[..., Any]) -> TaskGroup:
        """``a | b``: one of them, as what comes before chooses."""
        return TaskGroup.of(self) | other


class TaskGroup:
    """Tasks of one flow at an end of an edge: ``a & b``, ``a | b`` for a choice, or a chain such as ``a >> b``.

    As in the text form (``config/edges.py``): an edge into it reaches its heads, one out of it leaves from its tails.

    Args:
        flow: that they belong to.
        heads: by name; whether each is a route of what comes before.
        tails: by name.
    """

    def __init__(self, flow: Flow, heads: Mapping[str, bool], tails: Iterable[str]) -> None:
        self.flow, self._heads, self._tails = flow, dict(heads), dict.fromkeys(tails)

    @classmethod
    def of(cls, task: FlowTask[..., Any]) -> TaskGroup:
        """Return a task as a group."""
        return cls(task.flow, {task.name: False}, (task.name,))

    def _checked(self, other: object) -> TaskGroup:
        if not isinstance(other, TaskGroup | FlowTask):
            raise TypeError(f"An edge is between tasks of a flow, flow[name], not with {other!r}.")
        if other.flow is not self.flow:
            raise ValueError("An edge is between tasks of one flow: both sides must be flow[name] of the same flow.")
        return other if isinstance(other, TaskGroup) else TaskGroup.of(other)

    def __and__(self, other: TaskGroup | FlowTask[..., Any]) -> TaskGroup:
        right = self._checked(other)
        return TaskGroup(self.flow, {**self._heads, **right._heads}, (*self._tails, *right._tails))

    def __or__(self, other: TaskGroup | FlowTask[..., Any]) -> TaskGroup:
        right = self._checked(other)
        return TaskGroup(self.flow, dict.fromkeys((*self._heads, *right._heads), True), (*self._tails, *right._tails))

    def __rshift__(self, other: TaskGroup | FlowTask[..., Any]) -> TaskGroup:
        from millstream.config.edges import Edge

        right = self._checked(other)
        self.flow._connect(Edge(tail, head, route) for tail in self._tails for head, route in right._heads.items())
        return TaskGroup(self.flow, self._heads, right._tails)

    def __repr__(self) -> str:
        return f"<{', '.join(self._heads)} .. {', '.join(self._tails)}>"


class Flow:
    """Tasks by name, and a place to run them.

    Args:
        executor: where tasks are called: ``"thread"`` (the default), ``"asyncio"`` or ``"inline"``, an
            executor of ``millstream.executors``, or any ``concurrent.futures.Executor``. The flow
            closes what it creates, never what it is given.
        context: a context that all runs share; without it each run gets a fresh one.
        name: what the flow is called in messages and logs.
        max_workers: number of workers, for an executor that the flow creates.
        max_parallel: task runs of one run that are under way at once, over all its executors.
        limits: names, and how many attempts may hold each at once or a ``Rate`` of starts, over all
            runs of the flow; tasks name what they hold in ``uses``.
        on_error: what a failed task means. ``"raise"``: the run ends, and raises it. ``"continue"``:
            what does not depend on it goes on, the results of what succeeded come back, and the
            report tells the rest. ``"log"``: the same, and failures are logged.
        max_task_runs: end a run that schedules more task runs with ``TaskRunLimitError``.
        hooks: instances of ``Hook``, which are told of everything that happens in runs.
        entry: name of the task that a run starts with when none is named.
        logger: where the flow logs; ``millstream`` by default.
        store: keeps runs, so that they can go on after the end of the process: the path of a SQLite
            database, which is made, or a ``Store``, which is not closed with the flow.

    Raises:
        TypeError, ValueError: a bad value; an unknown option is refused with the nearest of ours.
    """

    _numbers: ClassVar[count[int]] = count(1)
    _OPTIONS: ClassVar[tuple[str, ...]] = (
        "executor", "context", "name", "max_workers", "max_parallel", "limits", "on_error", "max_task_runs", "hooks",
        "entry", "logger", "store",
    )  # fmt: skip
    _ALIASES: ClassVar[Mapping[str, str]] = {"backend": "executor", "max_steps": "max_task_runs"}

    def __init__(
        self,
        executor: AnyExecutor = None,
        context: Context[Any] | None = None,
        *,
        name: str | None = None,
        max_workers: int | None = None,
        max_parallel: int | None = None,
        limits: Mapping[str, int | Rate] | None = None,
        on_error: OnError = "raise",
        max_task_runs: int | None = None,
        hooks: Iterable[Hook] = (),
        entry: str | None = None,
        logger: logging.Logger | None = None,
        store: Store | str | os.PathLike[str] | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            refuse_option("Flow", next(iter(unknown)), self._OPTIONS, self._ALIASES)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"The name of a flow is a string, not {name!r}.")
        if context is not None and not isinstance(context, Context):
            raise TypeError(f"Flow(context=...) takes a Context, not {type(context).__name__}: use Context(values).")
        if entry is not None and not isinstance(entry, str):
            raise TypeError(f"Flow(entry=...) takes the name of a task, not {entry!r}.")
        if logger is not None and not isinstance(logger, logging.Logger | logging.LoggerAdapter):
            raise TypeError(f"Flow(logger=...) takes a logging.Logger, not {logger!r}.")
        if on_error not in ("raise", "continue", "log"):
            raise ValueError(f"Flow(on_error=...) is 'raise', 'continue' or 'log', not {on_error!r}.")
        self._name = name or f"flow-{next(self._numbers)}"
        self._executors = Executors(executor, max_workers)
        self._shared_context = context
        self._max_parallel = None if max_parallel is None else check_count(max_parallel, "max_parallel")
        self._max_task_runs = None if max_task_runs is None else check_count(max_task_runs, "max_task_runs")
        self._entry = entry
        self._logger = logger or logging.getLogger("millstream")
        self._on_error: OnError = on_error
        self._hooks = check_hooks(hooks)
        self._limits_given = check_limits(limits)
        self._settings: dict[str, Any] = {
            "executor": executor, "max_workers": max_workers, "max_parallel": max_parallel, "on_error": on_error,
            "max_task_runs": max_task_runs, "entry": entry, "logger": logger, "context": context,
            "hooks": self._hooks, "limits": self._limits_given, "store": store,
        }  # fmt: skip
        self._durable = None if store is None else durable_of(store)
        self._clock = Clock()
        weakref.finalize(self, self._clock.close, False)
        self._limits = Limits(self._limits_given, self._clock)
        self._teller = Teller(self._hooks, self._logger)
        self._opening = threading.Lock()  # one thread at a time opens the session of a ``with`` block
        # Guarded by _lock: everything below.
        self._lock = threading.Lock()
        self._registry = Registry(self._name)
        self._runs: set[FlowRun] = set()
        self._newest: weakref.ref[FlowRun] | None = None  # the run that was started last
        self._record: RunRecord | None = None  # what became of it, once it has ended
        self._callables: weakref.WeakKeyDictionary[Any, tuple[RunTerms, CallShape]] = weakref.WeakKeyDictionary()
        self._called: dict[tuple[str, bool], RunTerms] = {}  # how functions of one name are called
        self._session: Session | None = None  # the one that a ``with`` block has opened
        self._entered: list[Token[Any]] = []
        self._context: Context[Any] | None = context
        self._context_used = False  # the newest run has it
        self._closed = False

    @classmethod
    def from_config(
        cls,
        config: str | os.PathLike[str] | Mapping[str, Any],
        *,
        allow: Iterable[str] | None = None,
        callables: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Self:
        """Make a flow that is written down.

        Args:
            config: the path of a file in YAML, TOML or JSON, or what would be in it: ``{"flow": {...}}``.
            allow: names of modules that may be imported, with what is below them; ``[]``: none. Without it the file
                is trusted, as code is.
            callables: functions that tasks may call by these names; nothing is imported for them.

        Raises:
            ConfigError: the file cannot be read, or something in it cannot be used: every problem, with its path.
            TypeError: one of the arguments cannot be used.
        """
        from millstream.config.loader import load

        return load(cls, config, allow, callables)

    @classmethod
    def from_dsl(
        cls,
        tasks: Mapping[str, Callable[..., Any] | Task[..., Any]],
        *,
        entry: str | None = None,
        edges: str | Iterable[str | tuple[str, str]] = (),
        **settings: Any,
    ) -> Self:
        """Make a flow of tasks and of edges between them.

        Args:
            tasks: callables, or ``Task`` objects with their options, by the names that they get here.
            entry: name of the task that a run starts with.
            edges: as for ``connect``: ``["extract >> transform", "(a & b) >> c", ("c", "d")]``.
            settings: further options of ``Flow``.

        Raises:
            ConfigError: an edge is none, or names no task; so does the entry.
            TypeError, ValueError: a bad task or setting.
            ExceptionGroup: as ``validate``.
        """
        from millstream.config.loader import built

        return built(cls, tasks, entry, edges, settings)

    # ---- the registry -----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What the flow is called."""
        return self._name

    @property
    def entry(self) -> str | None:
        """The task that a run starts with when none is named."""
        return self._entry

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]:
        """The tasks by name, in the order of their registration; a read-only copy."""
        with self._lock:
            return MappingProxyType(dict(self._registry.tasks))

    @property
    def dependencies(self) -> Mapping[str, tuple[str, ...]]:
        """What each task depends on, by name: declared, connected and inferred; a read-only copy."""
        with self._lock:
            return MappingProxyType(dict(self._registry.dependencies))

    @property
    def routes(self) -> Mapping[str, tuple[str, ...]]:
        """What the tasks that choose may choose, by name; a read-only copy."""
        with self._lock:
            return MappingProxyType(dict(self._registry.routes))

    def __getitem__(self, name: str) -> FlowTask[..., Any]:
        """``flow[name]`` is the task of that name, as part of this flow.

        Raises:
            TaskNotFoundError: there is none.
        """
        tasks = self._registry.tasks
        if name not in tasks:
            raise TaskNotFoundError(name, tuple(tasks.number))
        return FlowTask(self, tasks[name])

    @overload
    def task(self, name: F, /) -> F: ...
    @overload
    def task(
        self, name: str | None = None, *, replace: bool = False, **options: Unpack[TaskOptions]
    ) -> Callable[[F], F]: ...
    def task(self, name: Any = None, *, replace: bool = False, **options: Any) -> Any:
        """Register a function as a task; it is returned unchanged.

        Bare (``@flow.task``), with a name (``@flow.task("split")``), or with options
        (``@flow.task(timeout=5.0)``); see ``add_task``.
        """
        if callable(name):
            self.add_task(name_of(name), name)
            return name

        def register(fn: F) -> F:
            self.add_task(name_of(fn) if name is None else name, fn, replace=replace, **options)
            return fn

        return register

    def add_task(
        self, name: str, action: Callable[..., Any], *, replace: bool = False, **options: Unpack[TaskOptions]
    ) -> None:
        """Register ``action`` under ``name``.

        A name that is registered again is replaced, with a ``DuplicateTaskWarning`` unless it is the
        same function defined anew.

        Args:
            name: any text without ``#``.
            action: a function, coroutine function, generator function or other callable.
            replace: replace an older task of the name without a warning.
            options: as ``Options`` says: ``depends_on``, ``routes``, ``timeout``, ``retries``, ``executor`` …

        Raises:
            TypeError, ValueError: a bad name, action or option.
            FlowClosedError: the flow is closed.
        """
        given = options.get("depends_on") if len(options) == 1 else None
        needs = None if given is None else only_names(given)
        if options and needs is None:
            self._register_task(Task(name, action, **options), replace)
        else:  # a large graph is made of these
            check_task(name, action)
            self._register(name, action, needs, None, replace)

    def add(self, task: Task[..., Any], *, replace: bool = False) -> None:
        """Register a module-level ``@task`` or an instance of a ``TaskBase``.

        Raises:
            TypeError: it is neither.
        """
        if not isinstance(task, Task):
            raise TypeError(f"flow.add takes a Task made by @task or TaskBase, not {task!r}: use flow.add_task.")
        self._register_task(task.origin, replace)

    def connect(self, *edges: str | Iterable[Any]) -> None:
        """Add edges: as text, or as pairs of names.

        ``flow.connect("extract >> (clean & enrich) >> load")``: ``>>`` is a dependency, ``&`` is both, and
        ``a >> (b | c)`` makes b and c routes of a. Names that are not registered yet are looked up when the
        flow first runs.

        Raises:
            ConfigError: the text is no edges; it says where.
        """
        from millstream.config.edges import edges_of

        for each in edges:
            pair = isinstance(each, tuple) and len(each) == 2 and all(isinstance(name, str) for name in each)
            self._connect(edges_of([each] if pair else each))  # type: ignore[list-item]

    def _connect(self, edges: Iterable[Edge]) -> None:
        edges = list(edges)
        with self._lock:
            self._refuse_closed()
            self._writable().connect(edges)

    def _writable(self) -> Registry:
        """Return the registry to change: a copy if runs read the one there is. Under the lock."""
        if self._registry.in_use:
            self._registry = self._registry.copy()
        return self._registry

    def validate(self) -> None:
        """Check the edges, and what parameters are filled with; runs check the edges by themselves.

        Raises:
            ExceptionGroup: every problem: no tasks, names of no task, functions of another flow, circles
                of dependencies (``CycleError`` has the path), parameters of dependants that nothing fills,
                ``inputs`` that read the output of no task.
        """
        with self._lock:
            registry = self._registry
            found: list[Exception] = [FlowError(self._no_tasks())]
            if registry.tasks:
                found = [*registry.problems(), *registry.unfilled(), *registry.astray()]
        if found:
            problems = "1 problem" if len(found) == 1 else f"{len(found)} problems"
            raise ExceptionGroup(f"Flow {self._name} has {problems}", found)

    def _no_tasks(self) -> str:
        return f"Flow {self._name} has no tasks: register one with @flow.task."

    def to_text(self) -> str:
        """Return a drawing of the flow for people: a line a task, in an order in which they could run.

        Each line has the task, what it depends on, what it may choose, and its description.
        """
        from millstream.show.text import drawn

        with self._lock:
            registry = self._registry
            return drawn(self._name, registry.tasks, registry.dependencies, registry.routes)

    def to_mermaid(self) -> str:
        """Return a drawing of the flow as a Mermaid flowchart: executors are shapes, and routes are dotted."""
        from millstream.show.mermaid import drawn

        return drawn(self._diagram())

    def to_dot(self) -> str:
        """Return a drawing of the flow in the language of Graphviz: executors are shapes, and routes are dashed."""
        from millstream.show.dot import drawn

        return drawn(self._diagram())

    def to_svg(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return a drawing of the flow as SVG, which needs no other program; write it to ``path`` too if given.

        Raises:
            OSError: ``path`` cannot be written.
        """
        from millstream.report import written
        from millstream.show.svg import drawn

        return written(drawn(self._diagram()), path)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """What a notebook shows: the drawing."""
        return {"text/plain": repr(self), "image/svg+xml": self.to_svg()}

    def _diagram(self) -> Diagram:
        with self._lock:
            return self._registry.diagram(self._executors)

    def subgraph(self, targets: Iterable[TaskName]) -> Flow:
        """Return a new flow of ``targets`` and all that they depend on, with the settings of this one.

        Raises:
            TaskNotFoundError: a target is no task of this flow.
        """
        names = self._target_names(targets)
        with self._lock:
            _, inside = self._registry.part(names)
            kept = {name: self._registry.resolved_task(name) for name in self._registry.tasks if name in inside}
            outside = frozenset(self._registry.tasks) - inside
        return self._with_tasks(kept, outside)

    def override(self, tasks: Mapping[str, Any] | None = None, /, **more: Any) -> Flow:
        """Return a new flow with other functions in place of some tasks; edges and options stay.

        Args:
            tasks: what replaces a task, by name: a callable, or a constant that is its output.
            more: the same for names that are identifiers.

        Raises:
            TaskNotFoundError: a name is no task of this flow.
            FlowError, CycleError, ExceptionGroup: the edges of this flow are wrong.
        """
        given = {**(tasks or {}), **more}
        with self._lock:
            registry = self._registry
            registry.graph()  # what is wrong with the edges would be lost
            for name in given:
                if name not in registry.tasks:
                    raise TaskNotFoundError(name, registry.tasks)
            kept = {
                name: registry.resolved_task(name, stand_in(given[name]) if name in given else None)
                for name in registry.tasks
            }
        return self._with_tasks(kept, frozenset())

    def _with_tasks(self, tasks: Mapping[str, Task[..., Any]], outside: frozenset[str]) -> Flow:
        entry = self._entry if self._entry in tasks else None
        flow = Flow(name=self._name, **(self._settings | {"entry": entry}))
        flow._registry = Registry(self._name, tasks, (), outside | self._registry.outside)
        return flow

    def _target_names(self, targets: Iterable[TaskName]) -> list[str]:
        names = []
        for each in task_names(targets, f"targets of {self._name}"):
            if isinstance(each, str):
                names.append(each)
            else:
                found = self._registry.names_of(each)
                if not found:
                    raise TaskNotFoundError(name_of(each), self._registry.tasks)
                names += found
        if not names:
            raise ValueError(f"targets of {self._name} is empty: name at least one task, or leave it out.")
        return names

    def _register_task(self, task: Task[..., Any], replace: bool) -> None:
        self._check_for_flow(task)
        self._register(task.name, task.fn, task.needs, task, replace)

    def _register(
        self,
        name: str,
        fn: Callable[..., Any],
        needs: tuple[str, ...] | None,
        task: Task[..., Any] | None,
        replace: bool,
    ) -> None:
        lock = self._lock
        lock.acquire()  # which takes half the time of ``with``
        try:
            if self._closed:
                self._refuse_closed()
            old = (self._writable() if self._registry.in_use else self._registry).add(name, fn, needs, task)
        finally:
            lock.release()
        if old is not None and not replace and not same_function(old, fn):
            warnings.warn(
                f"Task {name} of {self._name} was registered before: the new function replaces the old "
                "one (replace=True says that this is meant).",
                DuplicateTaskWarning,
                stacklevel=_outside(),
            )

    def _check_for_flow(self, task: Task[..., Any]) -> None:
        """Refuse options that this flow cannot serve."""
        self._executors.check(task.executor)
        for name in task.uses:
            if name not in self._limits_given:
                given = ", ".join(self._limits_given) or "none"
                raise ValueError(
                    f"Task {task.name} uses the limit {name}, which {self._name} does not have: it has {given}; "
                    f"write Flow(limits={{{name!r}: 2}})."
                )

    # ---- running ------------------------------------------------------------------------------------

    def run(
        self, start_task_id: Start = None, inputs: Mapping[str, Any] | None = None, **options: Unpack[RunOptions]
    ) -> dict[str, Any]:
        """Run the flow and wait for it.

        Args:
            start_task_id: the task to start with, or several. Without it the flow's entry; else, when
                there are edges, every task that depends on nothing and is nobody's route; else the
                only task.
            inputs: set in the context one by one, and given to the first task (to each of several).
            context: a ``Context`` to use, or a mapping that is copied into a fresh one.
            deps: an object that tasks reach as ``ctx.deps``.
            metadata: facts about the run; ``ctx.metadata``.
            targets: run these tasks and what they depend on, and no others.
            trace: keep every attempt of every task run for ``report.trace``.
            progress: show how far the run is, on standard error: a line that changes on a terminal (drawn by
                ``rich`` or ``tqdm`` where that is installed), a line a second at most anywhere else.
            timeout: seconds for the whole run.
            run_id: the id of the run; made up without it.
            resume: the id of a run in the flow's store that goes on; see ``resume``. Then ``inputs`` are values
                for its context, and what else says how a run is started is left out.

        Returns:
            The outputs of the terminal task runs, by their id: those that asked for nothing further.

        Raises:
            TaskNotFoundError, BindingError: the start names no task, or lacks an input.
            RunTimeoutError: ``timeout`` seconds went by.
            Exception: the first failure, as the task raised it; further ones that were already
                running come with it in an ``ExceptionGroup``.
        """
        return self._start(start_task_id, inputs, options, driven=True).wait_for_result()

    def stream(
        self,
        start_task_id: Start = None,
        inputs: Mapping[str, Any] | None = None,
        *,
        buffer: int = BUFFER,
        **options: Unpack[RunOptions],
    ) -> Chunks:
        """Run the flow and return an iterator of ``StreamChunk(task_id, value)``.

        A chunk comes for every task run the moment it finishes, and for every interim value. What
        failed is raised from the loop after the chunks that came before it. Leaving the loop early
        cancels the run.

        Args:
            buffer: chunks that may wait for the reader before tasks have to.

        The other arguments, and what is raised, are those of ``run``.
        """
        stream = Stream(check_count(buffer, "buffer"), attached=True)
        run = self._start(start_task_id, inputs, options, stream=stream, driven=True)
        return Chunks(run, owns=True)

    def start(
        self, start_task_id: Start = None, inputs: Mapping[str, Any] | None = None, **options: Unpack[RunOptions]
    ) -> FlowRun:
        """Run the flow in the background; the arguments are those of ``run``.

        On the inline executor the run has ended when this returns; its errors wait for ``result()``.
        """
        stream = Stream(BUFFER, attached=False)
        run = self._start(start_task_id, inputs, options, stream=stream, keep=True, driven=True)
        run.drive(lambda: run.finished, run.idle_waiters)
        return run

    def _start_later(self, start: Start, inputs: Mapping[str, Any] | None, options: RunOptions, loop: Any) -> FlowRun:
        """``start``, also for a caller on an event loop, which coroutines then run on."""
        if loop is None:
            return self.start(start, inputs, **options)
        return self._start(start, inputs, options, stream=Stream(BUFFER, attached=False), keep=True, loop=loop)

    async def arun(
        self, start_task_id: Start = None, inputs: Mapping[str, Any] | None = None, **options: Unpack[RunOptions]
    ) -> dict[str, Any]:
        """Run the flow as ``run`` does, without blocking the event loop; ``async`` tasks run on it.

        Cancelling the awaiter cancels the run and waits until it has ended.
        """
        run = self._start(start_task_id, inputs, options, loop=running_loop())
        try:
            await run.ended()
        finally:
            if not run.finished:
                run.cancel()
                await run.ended()
        return run.take_result()

    def astream(
        self,
        start_task_id: Start = None,
        inputs: Mapping[str, Any] | None = None,
        *,
        buffer: int = BUFFER,
        **options: Unpack[RunOptions],
    ) -> AsyncChunks:
        """Run the flow as ``stream`` does, for ``async for``, without blocking the event loop."""
        stream = Stream(check_count(buffer, "buffer"), attached=True)
        return AsyncChunks(self._start(start_task_id, inputs, options, stream=stream, loop=running_loop()), owns=True)

    # ---- submitted calls ----------------------------------------------------------------------------

    def session(
        self,
        run_id: str | None = None,
        *,
        context: Context[Any] | Mapping[str, Any] | None = None,
        deps: Any = None,
        metadata: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        trace: bool = False,
        progress: bool = False,
    ) -> Session:
        """Open a run to which calls are submitted, for a ``with`` block; see ``Session``.

        The arguments are those of ``run``.
        """
        options: RunOptions = {
            "run_id": run_id, "context": context, "deps": deps, "metadata": metadata, "timeout": timeout,
            "trace": trace, "progress": progress,
        }  # fmt: skip
        return self._open_session(options, keep=True)

    def _open_session(self, options: RunOptions, *, keep: bool) -> Session:
        with self._lock:
            registry = self._registry
            graph = registry.graph()
            registry.in_use = True
        graph = None if graph is None else graph.rooted(())
        stream = Stream(BUFFER, attached=False) if keep else None  # of a block's own session nobody can read
        durable, run_id, kept = self._durable, options.get("run_id"), None
        if durable is not None and run_id is not None and durable.has(run_id):
            kept = durable.kept(run_id)
            if not kept.beginning.session:
                raise CheckpointError(f"Run {run_id} is no session: go on with it by flow.resume({run_id!r}).")
            kept.check_code(registry.tasks, "warn", self._logger)
            options = {**options, "metadata": options.get("metadata") or kept.metadata or None}
        run = self._new_run((), options, registry, graph, stream=stream, keep=keep, kind=Session)
        assert isinstance(run, Session), "that kind was asked for"
        self._under_way(run)
        try:
            if durable is not None and kept is not None:
                durable.go_on(run, kept, () if graph is None else graph.names, registry.tasks, None)
            elif durable is not None:
                durable.begin(run, registry.tasks, (), None, None, session=True)
            run.begin_session(self._submit_to, options.get("timeout"))
        except BaseException:
            run.cancel()
            raise
        return run

    @overload
    def submit(
        self,
        fn: Callable[..., Coroutine[Any, Any, R]],
        /,
        *args: Any,
        depends_on: Iterable[TaskHandle[Any]] = (),
        call_key: str | None = None,
        **kwargs: Any,
    ) -> TaskHandle[R]: ...
    @overload
    def submit(
        self,
        fn: Callable[..., R],
        /,
        *args: Any,
        depends_on: Iterable[TaskHandle[Any]] = (),
        call_key: str | None = None,
        **kwargs: Any,
    ) -> TaskHandle[R]: ...
    def submit(
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,
        depends_on: Iterable[TaskHandle[Any]] = (),
        call_key: str | None = None,
        **kwargs: Any,
    ) -> TaskHandle[Any]:
        """Submit a call of ``fn``: to the run whose task this is called in, or to that of the ``with`` block.

        Args:
            fn: a ``Task`` or any callable. A parameter ``ctx`` (or one annotated ``Context``) that is given
                no argument takes the context.
            args: what it is called with. A handle, also in a list, tuple or dict, is replaced by the value of
                its call, which is waited for.
            depends_on: further calls that must have ended before.
            call_key: names the call for a resume; needs a store.
            kwargs: as ``args``.

        Returns:
            A ``TaskHandle``, which is a ``concurrent.futures.Future`` and can be awaited.

        Raises:
            FlowError: there is no open run, or a handle belongs to another one.
        """
        item: Any = current_run.get()
        ours = item is not None and item.run.plan.owner() is self
        if ours:
            run: FlowRun = item.run
            return self._submit_to(run, fn, args, kwargs, depends_on, call_key)
        with self._lock:
            self._refuse_closed()
            session = self._session
            opens = session is None and bool(self._entered)
        if opens:
            with self._opening:
                if self._session is None:
                    self._session = self._open_session({}, keep=False)  # nobody will ask for all the outputs
                session = self._session
        if session is None:
            raise FlowError(
                f"Calls of {self._name} are submitted inside 'with flow:', 'with flow.session() as session:' or a task."
            )
        return self._submit_to(session, fn, args, kwargs, depends_on, call_key)

    def _submit_to(
        self,
        run: FlowRun,
        fn: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        depends_on: Iterable[TaskHandle[Any]],
        call_key: str | None,
    ) -> TaskHandle[Any]:
        if call_key is not None and self._durable is None:
            raise ValueError(
                f"Flow {self._name} has no store, so call_key={call_key!r} would do nothing: leave it out."
            )
        terms, shape = self._callable(fn)
        function = fn.fn if isinstance(fn, Task) else fn
        if terms.executor.remote and not terms.is_async:
            function = bound(function)
        return submit_call(run, terms, shape, function, args, kwargs, depends_on, call_key)

    def _callable(self, fn: Any) -> tuple[RunTerms, CallShape]:
        """Return how a submitted callable is called; found out once for each function and task."""
        if isinstance(fn, Task):
            fn = fn.origin
        elif not callable(fn):
            raise TypeError(f"Flow {self._name} can be given a Task or a callable to submit, not {fn!r}.")
        try:
            known = self._callables.get(fn)
        except TypeError:  # it cannot be hashed
            known = None
        if known is None:
            known = self._new_callable(fn)
            try:
                self._callables[fn] = known
            except TypeError:  # it cannot be referred to weakly, such as a builtin
                pass
        return known

    def _new_callable(self, fn: Any) -> tuple[RunTerms, CallShape]:
        from millstream.binding import Binding

        task = fn if isinstance(fn, Task) else Task(name_of(fn), fn)
        self._check_for_flow(task)
        shape = CallShape(task.name, *Binding(task.fn).call_shape())
        key = (task.name, shape.is_async)
        known = None if task is fn else self._called.get(key)
        if known is None:
            executor = self._executors.of(task)
            is_async = shape.is_async and not is_elsewhere(task, executor, shape.is_async)
            known = terms_of_calls(task, executor, call_invoke, is_async=is_async)
            if task is not fn:
                self._called[key] = known
        return known, shape

    # ---- many runs ----------------------------------------------------------------------------------

    def run_many(
        self,
        items: Iterable[Mapping[str, Any] | Context[Any] | None],
        start_task_id: Start = None,
        *,
        max_concurrent: int = 1,
        **options: Unpack[RunOptions],
    ) -> Iterator[FlowRun]:
        """Run the flow once for each item; yield the runs in order, as they have ended.

        The items are pulled as the runs are taken, so there may be endlessly many. Leaving the loop cancels
        what is under way. What failed is raised by ``result()`` of its run.

        Args:
            items: the inputs of each run, or a ``Context`` for it.
            start_task_id: as ``run``.
            max_concurrent: runs that are under way at once.
            options: as ``run``.
        """
        self._check_many(options, max_concurrent)
        return self._many(items, start_task_id, max_concurrent, options)

    def _many(self, items: Any, start_task_id: Start, max_concurrent: int, options: RunOptions) -> Iterator[FlowRun]:
        under_way: deque[FlowRun] = deque()
        try:
            for item in items:
                under_way.append(self._one_of_many(item, start_task_id, options, loop=None))
                if len(under_way) >= max_concurrent:
                    under_way[0].wait()
                    yield under_way.popleft()
            while under_way:
                under_way[0].wait()
                yield under_way.popleft()
        finally:
            for run in under_way:
                run.cancel()
            for run in under_way:
                run.abandon()

    def arun_many(
        self,
        items: Iterable[Mapping[str, Any] | Context[Any] | None]
        | AsyncIterable[Mapping[str, Any] | Context[Any] | None],
        start_task_id: Start = None,
        *,
        max_concurrent: int = 1,
        **options: Unpack[RunOptions],
    ) -> AsyncIterator[FlowRun]:
        """Run the flow as ``run_many`` does, for ``async for``, from an (asynchronous) iterable of items."""
        self._check_many(options, max_concurrent)
        return self._amany(items, start_task_id, max_concurrent, options)

    async def _amany(
        self, items: Any, start_task_id: Start, max_concurrent: int, options: RunOptions
    ) -> AsyncIterator[FlowRun]:
        loop = running_loop()
        under_way: deque[FlowRun] = deque()
        try:
            async for item in _each(items):
                under_way.append(self._one_of_many(item, start_task_id, options, loop=loop))
                if len(under_way) >= max_concurrent:
                    await under_way[0].ended()
                    yield under_way.popleft()
            while under_way:
                await under_way[0].ended()
                yield under_way.popleft()
        finally:
            for run in under_way:
                run.cancel()
            for run in under_way:
                await run.ended()

    def _check_many(self, options: RunOptions, max_concurrent: int) -> None:
        check_count(max_concurrent, "max_concurrent")
        self._check_options(options)
        if options.get("run_id") is not None:
            raise ValueError(f"run_id names one run, and run_many of {self._name} makes many: leave it out.")

    def _one_of_many(self, item: Any, start: Start, options: RunOptions, loop: Any) -> FlowRun:
        inputs = None
        if isinstance(item, Context):
            options = {**options, "context": item}
        elif item is None or isinstance(item, Mapping):
            inputs = item
        else:
            raise TypeError(f"run_many of {self._name} takes mappings of inputs, or contexts, not {item!r}.")
        return self._start(start, inputs, options, keep=True, loop=loop, driven=loop is None)

    # ---- reports ------------------------------------------------------------------------------------

    def report(self, run_id: str | None = None) -> RunReport:
        """Return the report of a run: of the newest one, or of the one with that id.

        Raises:
            UnknownRunError: it is neither under way, nor the newest, nor in the flow's store.
            CheckpointError: it cannot be read there.
        """
        with self._lock:
            run = next((run for run in self._runs if run.id == run_id), None)
            newest = None if self._newest is None else self._newest()
            record = self._record
        if run is None and newest is not None and run_id in (None, newest.id):
            run = newest
        if run is not None:
            return run.report()
        if record is not None and run_id in (None, record.id):
            return record.report()
        if self._durable is not None and run_id is not None:
            return self._durable.report(run_id, self._diagram())
        raise UnknownRunError(run_id, self._name)

    # ---- runs in the store --------------------------------------------------------------------------

    def resume(
        self,
        run_id: str,
        *,
        from_tasks: Iterable[TaskName] | None = None,
        inputs: Mapping[str, Any] | None = None,
        deps: Any = None,
        timeout: float | None = None,
        on_code_change: OnCodeChange = "warn",
        trace: bool = False,
        progress: bool = False,
    ) -> dict[str, Any]:
        """Go on with a run of the flow's store, and wait for it. What has finished is not called again.

        A run that has ended well just gives its results again. One that has failed, was cancelled, or whose
        process has died runs what had not finished. ``run``, ``stream`` and ``start`` do the same with ``resume=``.

        Args:
            run_id: of a run that was started by a flow with the same tasks.
            from_tasks: make a new run of it, in which these tasks and all that came after them run again.
            inputs: values for its context: what tasks wait for with ``get(key, external=True)``.
            deps: the object that tasks reach as ``ctx.deps``; it is not stored.
            timeout: seconds for the rest of the run.
            on_code_change: what to do when the code of a task is not what it was.
            trace: keep every attempt from now on for ``report.trace``.
            progress: show how far the run is, as ``run`` does.

        Returns:
            The outputs of the terminal task runs, by their id, also of those that had finished before.

        Raises:
            UnknownRunError: the store has no such run.
            RunOwnedError: another process has it.
            CodeChangedError: with ``on_code_change="raise"``.
            CheckpointError: the flow has no store, or the run cannot go on; the sentence says why.
            Exception: as ``run``.
        """
        options: RunOptions = {
            "resume": run_id, "deps": deps, "timeout": timeout, "trace": trace, "progress": progress,
        }  # fmt: skip
        run = self._start(None, inputs, options, driven=True, again=from_tasks, on_code_change=on_code_change)
        return run.wait_for_result()

    def runs(self) -> list[StoredRun]:
        """Return the heads of all runs in the flow's store, the oldest first.

        Raises:
            CheckpointError: the flow has no store, or it cannot be read.
        """
        return self._kept().store.runs()

    def forget(self, run_id: str) -> None:
        """Remove a run from the flow's store.

        Raises:
            UnknownRunError: it is not there.
            RunOwnedError: it is under way.
            CheckpointError: the flow has no store, or it cannot be written.
        """
        self._kept().store.forget(run_id)

    def _keep_in(self, store: Store) -> None:
        """Take a store that was opened for this flow, and is closed with it."""
        if self._durable is not None:
            raise CheckpointError(f"Flow {self._name} has a store of its own already: leave the other one out.")
        self._durable = durable_of(store)
        self._durable.owns = True
        self._settings["store"] = store

    def _kept(self) -> Durable:
        if self._durable is None:
            raise CheckpointError(f"Flow {self._name} has no store: write Flow(store='runs.db').")
        return self._durable

    def cancel_all(self) -> None:
        """Cancel every run of this flow that is under way; returns at once."""
        with self._lock:
            runs = list(self._runs)
        for run in runs:
            run.cancel()

    # ---- contexts -----------------------------------------------------------------------------------

    @property
    def context(self) -> Context[Any]:
        """The context of the newest run; before the first one, that of the run to come."""
        with self._lock:
            if self._context is None:
                self._context = Context()
            return self._context

    def get_context(self) -> Context[Any]:
        """Return ``flow.context``."""
        return self.context

    def reset(self, *, keep_tasks: bool = True) -> None:
        """Forget the newest run's context. Never needed between two runs.

        Args:
            keep_tasks: False forgets the tasks as well.
        """
        with self._lock:
            self._context = self._shared_context
            self._context_used = False
            if not keep_tasks:
                self._registry = Registry(self._name)

    # ---- closing ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Cancel what runs, and end what the flow created. Idempotent; never waits long for a task."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            runs = list(self._runs)
        self.cancel_all()
        for run in runs:
            run.abandon()
            run.give_up()
        self._clock.close()
        self._executors.close()
        if self._durable is not None:
            self._durable.close()

    def __enter__(self) -> Self:
        with self._lock:
            self._refuse_closed()
            self._entered.append(current_flow.set((self, current_run.get())))
        return self

    def _leave(self) -> Session | None:
        """The ``with`` block is over: return the session that it has opened, if any."""
        with self._lock:
            token = self._entered.pop() if self._entered else None
            session, self._session = self._session, None
        if token is not None:
            try:
                current_flow.reset(token)
            except ValueError:  # it was entered in another context (an asynchronous fixture)
                current_flow.set(None)
        return session

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Wait for calls and background runs after a normal end, cancel them after an exception; then close."""
        session = self._leave()
        try:
            if session is not None:
                session.__exit__(kind, *error)
            if kind is None:
                with self._lock:
                    runs = list(self._runs)
                for run in runs:
                    if isinstance(run, Session):  # nobody else will
                        run.shut()
                    if run.has_reader:  # and the block in which it was read is over
                        run.cancel()
                    run.wait()
        finally:
            self.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, *error: object) -> None:
        session = self._leave()
        try:
            if session is not None:
                await session.__aexit__(kind, *error)
            with self._lock:
                runs = list(self._runs)
            for run in runs:
                if isinstance(run, Session):
                    run.shut()
                if kind is not None or run.has_reader:
                    run.cancel()
                await run.ended()
        finally:
            self.close()

    def __repr__(self) -> str:
        return f"<Flow {self._name}: {len(self._registry.tasks)} tasks{', closed' if self._closed else ''}>"

    # ---- inside ---------------------------------------------------------------------------------------

    def _forget(self, run: FlowRun) -> None:
        """``run`` has ended."""
        with self._lock:
            self._runs.discard(run)
            if self._newest is not None and self._newest() is run:
                self._record = run.record

    def _refuse_closed(self) -> None:
        if self._closed:
            raise FlowClosedError(f"Flow {self._name}")

    def _start(
        self,
        start: Start,
        inputs: Mapping[str, Any] | None,
        options: RunOptions,
        *,
        stream: Stream | None = None,
        keep: bool | None = None,
        loop: Any = None,
        driven: bool = False,
        again: Iterable[TaskName] | None = None,
        on_code_change: OnCodeChange = "warn",
    ) -> FlowRun:
        """Check everything, then make a run and begin it; Ctrl-C meanwhile cancels it."""
        with shield():
            run = self._started(
                start, inputs, options, stream, {"keep": keep, "loop": loop, "driven": driven}, again, on_code_change
            )
            if struck():
                run.interrupt()
                raise KeyboardInterrupt
            return run

    def _started(
        self,
        start: Start,
        inputs: Mapping[str, Any] | None,
        options: RunOptions,
        stream: Stream | None,
        how: dict[str, Any],
        again: Iterable[TaskName] | None,
        on_code_change: OnCodeChange,
    ) -> FlowRun:
        values = None if inputs is None else copied_inputs(inputs, f"A run of {self._name}")
        if options.get("resume") is not None:
            return self._go_on(start, values, options, again, on_code_change, {"stream": stream, **how})
        registry, graph, inside = self._of_now(options.get("targets"))
        starts = self._starts(start, registry, graph, inside)
        requests, graph = self._first(starts, values, registry, graph)
        run = self._new_run(
            requests,
            options,
            registry,
            graph,
            inside=inside,
            stream=stream,
            values=values,
            **how,
        )
        self._under_way(run)
        try:
            if self._durable is not None:
                self._durable.begin(run, registry.tasks, starts, options.get("targets"), values)
            run.begin(requests, options.get("timeout"))
        except BaseException:  # Ctrl-C can strike while threads are started
            run.cancel()
            raise
        return run

    def _of_now(self, targets: Iterable[TaskName] | None) -> tuple[Registry, Graph | None, frozenset[str] | None]:
        """Return the tasks as they are now, for a run: their graph, and those that it is limited to."""
        names = None if targets is None else self._target_names(targets)
        with self._lock:
            self._refuse_closed()
            registry = self._registry
            graph, inside = (registry.graph(), None) if names is None else registry.part(names)
            registry.in_use = True
        return registry, graph, inside

    def _first(
        self, starts: list[str], values: Mapping[str, Any] | None, registry: Registry, graph: Graph | None
    ) -> tuple[list[NextTask], Graph | None]:
        """Return the requests that a run starts with, and the graph as seen from there."""
        if graph is not None:
            numbers = [graph.number[name] for name in starts if name in graph.number]
            registry.plan(graph.after(numbers), self._executors)
            graph = graph.rooted(numbers)
        return [NextTask(name, values, spawn_another=True) for name in starts], graph

    def _go_on(
        self,
        start: Start,
        inputs: Mapping[str, Any] | None,
        options: RunOptions,
        again: Iterable[TaskName] | None,
        on_code_change: OnCodeChange,
        how: dict[str, Any],
    ) -> FlowRun:
        """Claim a run of the store, or make one from it, and begin it where it was."""
        durable, run_id = self._kept(), options.get("resume")
        self._check_options(options)
        for name in ("targets", "context", "metadata", "run_id"):
            if start is not None or options.get(name) is not None:
                what = "the task to start with" if start is not None else name
                raise ValueError(f"Run {run_id} goes on as it was started: leave {what} out.")
        if not isinstance(run_id, str):
            raise TypeError(f"resume takes the id of a run, not {run_id!r}.")
        names = None if again is None else self._names_again(again)
        durable.check_values(run_id, inputs)
        kept = durable.kept(run_id)
        if kept.beginning.session:
            raise CheckpointError(f"Run {run_id} is a session: open it again by flow.session(run_id={run_id!r}).")
        kept.check_code(self.tasks, on_code_change, self._logger)
        chosen: RunOptions = {
            "deps": options.get("deps"), "timeout": options.get("timeout"),
            "trace": options.get("trace", False), "progress": options.get("progress", False),
            "metadata": None if self._shared_context is not None else kept.metadata or None,
            "run_id": run_id if names is None else None,
        }  # fmt: skip
        try:
            registry, graph, inside = self._of_now(kept.beginning.targets)
            requests, graph = self._first(kept.beginning.starts, kept.inputs, registry, graph)
            run = self._new_run(requests, chosen, registry, graph, inside=inside, values=kept.inputs, **how)
        except (TaskNotFoundError, BindingError) as error:
            raise CheckpointError(f"Run {run_id} cannot go on with the tasks of now: {error}") from error
        self._under_way(run)
        try:
            durable.go_on(run, kept, () if graph is None else graph.names, registry.tasks, names)
            run.begin(requests, options.get("timeout"), inputs)
        except BaseException:
            run.cancel()
            raise
        return run

    def _names_again(self, tasks: Iterable[TaskName]) -> frozenset[str]:
        """Return the names of tasks that are to run again."""
        if isinstance(tasks, str) or not isinstance(tasks, Iterable):
            raise TypeError(f"from_tasks takes a list of tasks, or of their names, not {tasks!r}.")
        listed = list(tasks)
        if not listed:
            raise ValueError("from_tasks names no task: leave it out to go on where the run was.")
        names = frozenset(self._target_names(listed))
        for name in names:
            if name not in self.tasks:
                raise TaskNotFoundError(name, self.tasks)
        return names

    def _new_run(
        self,
        requests: Iterable[NextTask],
        options: RunOptions,
        registry: Registry,
        graph: Graph | None,
        *,
        inside: frozenset[str] | None = None,
        stream: Stream | None = None,
        keep: bool | None = None,
        loop: Any = None,
        driven: bool = True,
        values: Mapping[str, Any] | None = None,
        kind: type[FlowRun] = FlowRun,
    ) -> FlowRun:
        """Check the options, and make a run that has not begun, with a registry and its graph of one moment."""
        caller = current_run.get()
        if caller is not None and caller.given_up:
            raise TaskCancelledError(caller.id)
        self._check_options(options)
        run_id, trace, progress = options.get("run_id"), options.get("trace", False), options.get("progress", False)
        check_limit(options.get("timeout"), f"a run of {self._name}")
        if run_id is not None and not isinstance(run_id, str):
            raise TypeError(f"The id of a run is a string, not {run_id!r}.")
        if run_id == "":
            raise ValueError("The id of a run is empty: give it one, or leave run_id out.")
        for name, value in (("trace", trace), ("progress", progress)):
            if value is not True and value is not False:
                raise TypeError(f"A run takes {name}=True or False, not {value!r}.")
        with self._lock:
            self._refuse_closed()
            plan = Plan(self, registry, graph, inside)
        plan.check(requests)
        context = self._context_for_run(options)
        if values:
            context.from_dict(values)
        run = kind(
            run_id or f"{self._name}-{os.urandom(6).hex()}",
            plan,
            context,
            stream=stream,
            keep_results=stream is None if keep is None else keep,
            trace=trace,
            progress=progress,
            loop=loop,
        )
        plan.begin(driven)
        return run

    def _check_options(self, options: RunOptions) -> None:
        for option in options.keys() - RunOptions.__annotations__.keys():
            refuse_option(f"A run of {self._name}", option, tuple(RunOptions.__annotations__), {"input": "inputs"})

    def _under_way(self, run: FlowRun) -> None:
        with self._lock:
            self._runs.add(run)
            self._newest, self._record = weakref.ref(run), None
        if self._executors.uses_pool:
            _cancel_at_exit(self)

    def _starts(
        self, start: Start, registry: Registry, graph: Graph | None, inside: frozenset[str] | None
    ) -> list[str]:
        """Return the names of the tasks to start with."""
        if isinstance(start, Mapping):
            raise TypeError("The first argument of a run is the name of a task; pass a mapping as inputs= or context=.")
        if start is None and inside is not None:
            assert graph is not None, "targets make a graph"
            return [graph.names[root] for root in graph.roots]
        if start is None:
            start = self._entry
        if start is None and graph is not None:
            roots = [graph.names[root] for root in graph.roots]
            if roots:
                return roots
        if start is None:
            return list(registry.tasks) if len(registry.tasks) == 1 else self._no_start(registry)
        if isinstance(start, bytes) or not isinstance(start, str | Iterable):
            raise TypeError(f"A run starts with the name of a task, or several, not with {start!r}.")
        names = [start] if isinstance(start, str) else list(start)
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"A run starts with the name of a task, not with {name!r}.")
            if inside is not None and name in registry.tasks and name not in inside:
                raise ValueError(
                    f"A run of {self._name} cannot start with {name}: none of its targets depends on that."
                )
        if not names:
            raise ValueError(f"A run of {self._name} needs at least one task to start with.")
        return names

    def _no_start(self, registry: Registry) -> NoReturn:
        if not registry.tasks:
            raise FlowError(self._no_tasks())
        raise FlowError(
            f"Say which task of {self._name} a run starts with, or set entry=: {', '.join(registry.tasks)}."
        )

    def _context_for_run(self, options: RunOptions) -> Context[Any]:
        """Return the context that a run uses, which is from now on the flow's newest."""
        given, deps, metadata = options.get("context"), options.get("deps"), options.get("metadata")
        if given is not None and not isinstance(given, Mapping | Context):
            raise TypeError(f"context= takes a Context or a mapping, not {type(given).__name__}.")
        if metadata is not None and not isinstance(metadata, Mapping):
            raise TypeError(f"metadata= takes a mapping, not {type(metadata).__name__}.")
        with self._lock:
            if isinstance(given, Mapping):
                context: Context[Any] = Context(given)
            elif given is not None or self._shared_context is not None:
                context = given if given is not None else self._shared_context  # type: ignore[assignment]
                if deps is not None or metadata is not None:
                    raise ValueError(
                        "deps and metadata belong to the context that is given: Context(deps=, metadata=)."
                    )
            elif self._context is not None and not self._context_used:
                context = self._context
            else:
                context = Context()
            if deps is not None or metadata is not None:
                context._describe(deps, metadata)
            self._context, self._context_used = context, True
        return context


class Plan:
    """A flow as of the start of one run: what ``engine.run.Plan`` asks for."""

    def __init__(self, flow: Flow, registry: Registry, graph: Graph | None, inside: frozenset[str] | None) -> None:
        self.flow = flow._name
        self.owner = weakref.ref(flow)
        self.clock = flow._clock
        self.logger = flow._logger
        self.max_task_runs = flow._max_task_runs
        self.max_parallel = flow._max_parallel
        self.on_error = flow._on_error
        self.limits = flow._limits
        self.teller = flow._teller
        self.submit = flow._submit_to
        #: Kept by the record of the run, so it must not lead back to the flow.
        self.diagram: Callable[[], Diagram] = partial(registry.diagram, flow._executors)
        self.graph = graph
        self._inside = inside
        self._registry = registry
        self._executors = flow._executors
        self._driven = False
        self._blocks: Any = None  #: the loop that this run blocks
        self._own: list[Executor] = []  #: executors for this run alone
        self._forget = flow._forget
        self._display: Progress | None = None

    def begin(self, driven: bool) -> None:
        """The run begins: ``driven`` means that the calling thread waits for it."""
        self._driven = driven
        self._blocks = running_loop(required=False) if driven else None
        if self._blocks is not None:
            blocked_loops.append(self._blocks)

    def executor_of(self, terms: RunTerms) -> str:
        """Return what the executor is called that calls tasks of a kind."""
        return "asyncio" if terms.is_async else name_of_class(type(terms.executor))

    def show(self, run: FlowRun) -> None:
        """Show how far a run is, until it has ended."""
        from millstream.show.progress.display import Progress

        self._display = Progress(run.id, run.tally)
        self._display.begin()

    def hide(self, run: FlowRun) -> None:
        """The run has ended: show how, for the last time."""
        if self._display is not None:
            self._display.close(run.status)

    @property
    def known_terms(self) -> Sequence[RunTerms | None]:
        """What is known already of how tasks are called, by their numbers in the graph."""
        return self._registry.known_terms

    def terms(self, name: str) -> RunTerms | None:
        return self._registry.terms(name, self._executors)

    def payload(self, run: Any) -> Any:
        """Return the payload of a task run, which a router that chooses a bare name sends along."""
        from millstream.binding import payload_of

        return payload_of(self._needs(run.name), run)

    def known(self) -> Iterable[str]:
        return self._registry.tasks

    def has(self, name: str) -> bool:
        """Whether an edge may lead to a task in this run."""
        return name in (self._registry.tasks if self._inside is None else self._inside)

    def check(self, requests: Iterable[NextTask]) -> None:
        """Refuse starts that name no task, or lack an input that nothing could fill."""
        starts = {request.id for request in requests}
        for request in requests:
            terms = self.terms(request.id)
            if terms is None:
                raise TaskNotFoundError(request.id, self._registry.tasks)
            for name in terms.required:
                if (
                    name != "payload"
                    and not (request.inputs and name in request.inputs)
                    and not self._comes(name, starts)
                ):
                    raise BindingError(request.id, name, request.inputs or ())
                if name == "payload" and request.inputs is None and not self._needs(request.id):
                    raise BindingError(request.id, name, ())

    def _needs(self, name: str) -> tuple[str, ...]:
        return self._registry.dependencies[name]

    def _comes(self, name: str, starts: set[str]) -> bool:
        """Whether a task is part of a run with these starts."""
        graph = self.graph
        if graph is None or name not in graph.number:
            return False
        return graph.number[name] in graph.after(graph.number[start] for start in starts if start in graph.number)

    def workers(self, executor: Executor | None, is_async: bool, loop: Any) -> Workers:
        """Return the workers of ``executor``, or of an event loop when it cannot await."""
        default = self._executors.get()
        if executor is not None:
            workers = executor.serve(is_async=is_async, loop=loop, driven=self._driven and executor is default)
            if workers is not None and not (is_async and self._is_blocked(executor, loop)):
                return workers
        chosen = default if isinstance(default, AsyncioExecutor) else self._executors.get("asyncio")
        if self._is_blocked(chosen, loop):
            chosen = AsyncioExecutor()
            self._own.append(chosen)
        workers = chosen.serve(is_async=True, loop=loop)
        assert workers is not None, "an asyncio executor serves async tasks"
        return workers

    def _is_blocked(self, executor: Executor, loop: Any) -> bool:
        """Whether a coroutine waits, blocking, on the executor's loop: that takes another loop."""
        return loop is None and isinstance(executor, AsyncioExecutor) and executor.is_blocked

    def ended(self, run: FlowRun) -> None:
        self._forget(run)
        if self._blocks is not None:
            blocked_loops.remove(self._blocks)
        for executor in self._own:
            executor.shutdown(wait=False)


def durable_of(store: Store | str | os.PathLike[str]) -> Durable:
    """Return what a flow does with a store; loaded only for one."""
    from millstream.durable import Durable

    return Durable(store)


async def _each(items: Any) -> AsyncIterator[Any]:
    """Iterate over an asynchronous or a plain iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def stand_in(value: Any) -> Callable[..., Any]:
    """Return what replaces a task: a callable as it is, anything else as the function that gives it."""
    if callable(value):
        return value.fn if isinstance(value, Task) else value

    def constant() -> Any:
        return value

    setattr(constant, CONSTANT, True)
    return constant


def same_function(old: Any, new: Any) -> bool:
    """Whether one function is the other defined anew: same name, same place in the source."""
    from millstream.binding import unwrapped

    if old is new:
        return True
    if getattr(old, "__self__", None) is not getattr(new, "__self__", None):
        return False  # methods of two objects
    before, after = unwrapped(old), unwrapped(new)
    code, other = getattr(before, "__code__", None), getattr(after, "__code__", None)
    if not isinstance(code, CodeType) or not isinstance(other, CodeType):
        return False
    if code.co_name == "<lambda>" and (code.co_firstlineno, code.co_code) != (other.co_firstlineno, other.co_code):
        return False  # all of a scope have one name
    return (before.__module__, code.co_qualname, code.co_filename) == (
        after.__module__,
        other.co_qualname,
        other.co_filename,
    )


def running_loop(*, required: bool = True) -> Any:
    """Return the event loop that runs in this thread; imports nothing where there is none.

    Raises:
        RuntimeError: there is none, and one is required.
    """
    asyncio = sys.modules.get("asyncio")
    loop = None if asyncio is None else asyncio._get_running_loop()
    if loop is None and required:
        raise RuntimeError("arun and astream need a running event loop: outside of one use run and stream.")
    return loop


# Who wants the log says so: without this, Python itself would print warnings of a logger without handlers.
logging.getLogger("millstream").addHandler(logging.NullHandler())

_at_exit: weakref.WeakSet[Flow] = weakref.WeakSet()
_registered: list[bool] = []


def _cancel_at_exit(flow: Flow) -> None:
    """See to it that what runs on a pool of the user's is cancelled when the interpreter exits.

    The interpreter joins the pool's threads first of all, so ``atexit`` would come too late. Handlers
    of ``threading._register_atexit`` run in reverse order, and the pool's was registered before.
    """
    _at_exit.add(flow)
    if not _registered:
        _registered.append(True)
        register = getattr(threading, "_register_atexit", atexit.register)
        register(_cancel_all)


def _cancel_all() -> None:
    for flow in list(_at_exit):
        flow.cancel_all()


def _outside() -> int:
    """Return the stack level of the first caller outside of this package, for warnings."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("millstream"):
        level, frame = level + 1, frame.f_back
    return level
