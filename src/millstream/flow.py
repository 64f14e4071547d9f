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
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from types import CodeType, MappingProxyType
from typing import Any, ClassVar, Self, TypedDict, TypeVar, Unpack, overload

from millstream.context import Context
from millstream.engine.clock import Clock
from millstream.engine.run import FlowRun
from millstream.engine.stream import AsyncChunks, Chunks, Stream
from millstream.errors import (
    DuplicateTaskWarning,
    FlowClosedError,
    FlowError,
    TaskCancelledError,
    TaskNotFoundError,
)
from millstream.executors.asyncio import AsyncioExecutor
from millstream.executors.base import Executor, Workers, blocked_loops
from millstream.executors.owned import AnyExecutor, Executors
from millstream.executors.thread import check_count
from millstream.task import Task, check_limit, current_run, name_of, refuse_option
from millstream.values import NextTask, copied_inputs

F = TypeVar("F", bound=Callable[..., Any])
Start = str | Iterable[str] | None

#: Chunks that wait for the reader of a stream before tasks have to.
BUFFER = 1024


class RunOptions(TypedDict, total=False):
    """The options that every way to run a flow takes."""

    context: Context[Any] | Mapping[str, Any] | None  #: a context to use, or a mapping that is copied into one
    deps: Any  #: an object that tasks reach as ``ctx.deps``
    metadata: Mapping[str, Any] | None  #: facts about the run, ``ctx.metadata``
    timeout: float | None  #: seconds for the whole run
    run_id: str | None  #: the id of the run; made up without it


class Registered:
    """A task of a flow, with its parameters compiled."""

    __slots__ = ("_planned", "binding", "task")

    def __init__(self, task: Task[..., Any]) -> None:
        # Reading signatures takes a large module, which is loaded with the first task.
        from millstream.binding import Binding

        self.task = task
        self.binding = Binding(task.name, task.fn)
        self._planned: Planned | None = None

    def planned(self, executors: Executors) -> Planned:
        """Return how runs call it; found out once."""
        if self._planned is None:
            self._planned = Planned(self, executors.get(self.task.options.executor))
        return self._planned


class Planned:
    """A registered task as one run calls it: what ``engine.run.Planned`` asks for."""

    __slots__ = ("collects", "executor", "invoke", "is_async", "name", "refuse", "timeout")

    def __init__(self, registered: Registered, executor: Executor) -> None:
        binding, task = registered.binding, registered.task
        adapted = executor.adapt(task.name, task.fn, binding.takes_context)
        self.name = task.name
        self.timeout = task.options.timeout
        self.executor = executor
        self.is_async = binding.is_async
        self.refuse = binding.refuse
        self.collects = binding.collects
        self.invoke = binding.invoke if adapted is task.fn else type(binding)(task.name, task.fn, adapted).invoke


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
        max_task_runs: end a run that schedules more task runs with ``TaskRunLimitError``.
        entry: name of the task that a run starts with when none is named.
        logger: where the flow logs; ``millstream`` by default.

    Raises:
        TypeError, ValueError: a bad value; an unknown option is refused with the nearest of ours.
    """

    _numbers: ClassVar[count[int]] = count(1)
    _OPTIONS: ClassVar[tuple[str, ...]] = (
        "executor", "context", "name", "max_workers", "max_parallel", "max_task_runs", "entry", "logger",
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
        max_task_runs: int | None = None,
        entry: str | None = None,
        logger: logging.Logger | None = None,
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
        self._name = name or f"flow-{next(self._numbers)}"
        self._executors = Executors(executor, max_workers)
        self._shared_context = context
        self._max_parallel = None if max_parallel is None else check_count(max_parallel, "max_parallel")
        self._max_task_runs = None if max_task_runs is None else check_count(max_task_runs, "max_task_runs")
        self._entry = entry
        self._logger = logger or logging.getLogger("millstream")
        self._clock = Clock()
        # Guarded by _lock: everything below.
        self._lock = threading.Lock()
        self._tasks: dict[str, Registered] = {}
        self._tasks_in_use = False  # runs read _tasks: the next change makes a copy of it
        self._runs: set[FlowRun] = set()
        self._context: Context[Any] | None = context
        self._context_used = False  # the newest run has it
        self._closed = False

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
        return MappingProxyType({name: registered.task for name, registered in self._tasks.items()})

    def __getitem__(self, name: str) -> Task[..., Any]:
        """``flow[name]`` is the task of that name.

        Raises:
            TaskNotFoundError: there is none.
        """
        if name not in self._tasks:
            raise TaskNotFoundError(name, self._tasks)
        return self._tasks[name].task

    @overload
    def task(self, name: F, /) -> F: ...
    @overload
    def task(self, name: str | None = None, *, replace: bool = False, **options: Any) -> Callable[[F], F]: ...
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

    def add_task(self, name: str, action: Callable[..., Any], *, replace: bool = False, **options: Any) -> None:
        """Register ``action`` under ``name``.

        A name that is registered again is replaced, with a ``DuplicateTaskWarning`` unless it is the
        same function defined anew.

        Args:
            name: any text without ``#``.
            action: a function, coroutine function, generator function or other callable.
            replace: replace an older task of the name without a warning.
            options: ``executor``, ``timeout`` (seconds per attempt), ``description``.

        Raises:
            TypeError, ValueError: a bad name, action or option.
            FlowClosedError: the flow is closed.
        """
        self._register(Task(name, action, **options), replace)

    def add(self, task: Task[..., Any], *, replace: bool = False) -> None:
        """Register a module-level ``@task`` or an instance of a ``TaskBase``.

        Raises:
            TypeError: it is neither.
        """
        if not isinstance(task, Task):
            raise TypeError(f"flow.add takes a Task made by @task or TaskBase, not {task!r}: use flow.add_task.")
        self._register(task, replace)

    def _register(self, task: Task[..., Any], replace: bool) -> None:
        self._executors.check(task.options.executor)
        registered = Registered(task)
        if registered.binding.is_async and task.options.executor in ("thread", "process"):
            raise TypeError(
                f"Task {task.name} is async, and executor={task.options.executor!r} cannot await it: "
                "leave executor out, and an event loop does."
            )
        with self._lock:
            self._refuse_closed()
            old = self._tasks.get(task.name)
            if self._tasks_in_use:
                self._tasks, self._tasks_in_use = dict(self._tasks), False
            self._tasks[task.name] = registered
        if old is not None and not replace and not same_function(old.task.fn, task.fn):
            warnings.warn(
                f"Task {task.name} of {self._name} was registered before: the new function replaces the old "
                "one (replace=True says that this is meant).",
                DuplicateTaskWarning,
                stacklevel=_outside(),
            )

    # ---- running ------------------------------------------------------------------------------------

    def run(
        self, start_task_id: Start = None, inputs: Mapping[str, Any] | None = None, **options: Unpack[RunOptions]
    ) -> dict[str, Any]:
        """Run the flow and wait for it.

        Args:
            start_task_id: the task to start with, or several. Without it the flow's entry, or its
                only task.
            inputs: set in the context one by one, and given to the first task (to each of several).
            context: a ``Context`` to use, or a mapping that is copied into a fresh one.
            deps: an object that tasks reach as ``ctx.deps``.
            metadata: facts about the run; ``ctx.metadata``.
            timeout: seconds for the whole run.
            run_id: the id of the run; made up without it.

        Returns:
            The outputs of the terminal task runs, by their id: those that asked for nothing further.

        Raises:
            TaskNotFoundError, BindingError: the start names no task, or lacks an input.
            RunTimeoutError: ``timeout`` seconds went by.
            Exception: the first failure, as the task raised it; further ones that were already
                running come with it in an ``ExceptionGroup``.
        """
        run = None
        try:
            run = self._start(start_task_id, inputs, options, driven=True)
            run.wait()
        except KeyboardInterrupt:
            if run is not None:
                run.interrupt()
            raise
        return run.take_result()

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
                self._tasks, self._tasks_in_use = {}, False

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
        self._clock.close()
        self._executors.close()

    def __enter__(self) -> Self:
        with self._lock:
            self._refuse_closed()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for background runs after a normal end, cancel them after an exception; then close."""
        try:
            if kind is None:
                with self._lock:
                    runs = list(self._runs)
                for run in runs:
                    if run.has_reader:  # and the block in which it was read is over
                        run.cancel()
                    run.wait()
        finally:
            self.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            runs = list(self._runs)
        try:
            for run in runs:
                if kind is not None or run.has_reader:
                    run.cancel()
                await run.ended()
        finally:
            self.close()

    def __repr__(self) -> str:
        return f"<Flow {self._name}: {len(self._tasks)} tasks{', closed' if self._closed else ''}>"

    # ---- inside ---------------------------------------------------------------------------------------

    def _forget(self, run: FlowRun) -> None:
        """``run`` has ended."""
        with self._lock:
            self._runs.discard(run)

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
    ) -> FlowRun:
        """Check everything, then make a run and begin it."""
        caller = current_run.get()
        if caller is not None and caller.given_up:
            raise TaskCancelledError(caller.id)
        for option in options.keys() - RunOptions.__annotations__.keys():
            refuse_option(f"A run of {self._name}", option, tuple(RunOptions.__annotations__), {"input": "inputs"})
        values = None if inputs is None else copied_inputs(inputs, f"A run of {self._name}")
        timeout, run_id = options.get("timeout"), options.get("run_id")
        check_limit(timeout, f"a run of {self._name}")
        if run_id is not None and not isinstance(run_id, str):
            raise TypeError(f"The id of a run is a string, not {run_id!r}.")
        if run_id == "":
            raise ValueError("The id of a run is empty: give it one, or leave run_id out.")
        with self._lock:
            self._refuse_closed()
            plan = Plan(self)
            self._tasks_in_use = True
        requests = [NextTask(name, values, spawn_another=True) for name in self._starts(start, plan)]
        for request in requests:  # refused before anything has changed
            plan.check(request)
        context = self._context_for_run(options)
        if values:
            context.from_dict(values)
        run = FlowRun(
            run_id or f"{self._name}-{os.urandom(6).hex()}",
            plan,
            context,
            stream=stream,
            keep_results=stream is None if keep is None else keep,
            loop=loop,
        )
        plan.begin(driven)
        with self._lock:
            self._runs.add(run)
        if self._executors.uses_pool:
            _cancel_at_exit(self)
        try:
            run.begin(requests, timeout)
        except BaseException:  # Ctrl-C can strike while threads are started
            run.cancel()
            raise
        return run

    def _starts(self, start: Start, plan: Plan) -> list[str]:
        """Return the names of the tasks to start with."""
        if isinstance(start, Mapping):
            raise TypeError("The first argument of a run is the name of a task; pass a mapping as inputs= or context=.")
        if start is None:
            start = self._entry
        if start is None:
            names = list(plan.known())
            if len(names) == 1:
                return names
            if not names:
                raise FlowError(f"Flow {self._name} has no tasks: register one with @flow.task.")
            raise FlowError(f"Say which task of {self._name} a run starts with, or set entry=: {', '.join(names)}.")
        if isinstance(start, bytes) or not isinstance(start, str | Iterable):
            raise TypeError(f"A run starts with the name of a task, or several, not with {start!r}.")
        names = [start] if isinstance(start, str) else list(start)
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"A run starts with the name of a task, not with {name!r}.")
        if not names:
            raise ValueError(f"A run of {self._name} needs at least one task to start with.")
        return names

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

    def __init__(self, flow: Flow) -> None:
        self.flow = flow._name
        self.clock = flow._clock
        self.logger = flow._logger
        self.max_task_runs = flow._max_task_runs
        self.max_parallel = flow._max_parallel
        self._tasks = flow._tasks
        self._executors = flow._executors
        self._driven = False
        self._blocks: Any = None  #: the loop that this run blocks
        self._own: list[Executor] = []  #: executors for this run alone
        self._forget = flow._forget

    def begin(self, driven: bool) -> None:
        """The run begins: ``driven`` means that the calling thread waits for it."""
        self._driven = driven
        self._blocks = running_loop(required=False) if driven else None
        if self._blocks is not None:
            blocked_loops.append(self._blocks)

    def find(self, name: str) -> Planned | None:
        registered = self._tasks.get(name)
        return None if registered is None else registered.planned(self._executors)

    def known(self) -> Iterable[str]:
        return self._tasks

    def check(self, request: NextTask) -> None:
        """Refuse a start that names no task, or lacks an input."""
        planned = self.find(request.id)
        if planned is None:
            raise TaskNotFoundError(request.id, self._tasks)
        if planned.refuse is not None:
            planned.refuse(request)

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
