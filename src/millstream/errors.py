"""Every exception of the library. All are ``FlowError``; all survive pickling.

::

    FlowError
    ├── TaskNotFoundError (LookupError)      a start, an edge or a NextTask names no task of the flow
    ├── BindingError (TypeError)             a parameter of a task that nothing fills
    ├── CycleError (ValueError)              dependencies that wait for each other; has the path
    ├── RouteError (ValueError)              a task chose what is none of its routes
    ├── ConfigError (ValueError)             edges, expressions or a file that cannot be used
    ├── DependencyFailedError                what the task depends on has failed
    ├── ContextKeyError (KeyError)           a key that is not there and that nothing can set any more
    ├── DeadlockError                        task runs that wait for each other
    ├── BlockingGetError                     a ctx.get that would have blocked an event loop
    ├── TaskFailedError                      a task raised SystemExit, StopIteration and the like
    ├── TaskTimeoutError (TimeoutError)      an attempt took longer than its timeout
    ├── RunTimeoutError (TimeoutError)       a run took longer than its timeout
    ├── TaskCancelledError (CancelledError)  raised inside a task run that was told to stop
    ├── RunCancelledError (CancelledError)   the run was cancelled
    ├── TaskRunLimitError                    a run scheduled more task runs than max_task_runs
    ├── ExecutorLostError                    the executor was shut down or broke during a run
    ├── WorkerLostError                      the process that a task run was in has ended
    ├── TransferError (TypeError)            a value that cannot travel to another process, or back
    ├── StreamError                          chunks of a run that can no longer be read
    ├── CheckpointError                      what is kept of runs cannot be read or written
    │   ├── UnknownRunError (LookupError)    a run id that nobody knows
    │   ├── RunOwnedError                    another process goes on with the run
    │   └── CodeChangedError                 the tasks are not what they were when the run was started
    ├── FlowClosedError                      a flow was used after close()
    └── StateError                           a step that the state machine forbids: a bug of ours

An error owns its sentence: callers pass facts. May import: the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import CancelledError
from typing import Any


class FlowError(Exception):
    """The base of every exception that Millstream itself raises."""


class TaskNotFoundError(FlowError, LookupError):
    """A start, an edge or a ``NextTask`` names a task that the flow does not have."""

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        known = tuple(known)
        super().__init__(name, known)
        self.name, self.known = name, known

    def __str__(self) -> str:
        name = self.name if isinstance(self.name, str) else repr(self.name)
        return f"Task {name} not found. {listed('This flow has', self.known, self.name)}"


class BindingError(FlowError, TypeError):
    """A parameter of a task that nothing fills."""

    def __init__(self, task: str, parameter: str, offer: Iterable[str] = (), problem: str | None = None) -> None:
        offer = tuple(offer)
        super().__init__(task, parameter, offer, problem)
        self.task, self.parameter, self.offer, self.problem = task, parameter, offer, problem

    def __str__(self) -> str:
        if self.problem is not None:
            return f"Task {self.task} has no value for {self.parameter}: {self.problem}"
        return (
            f"Task {self.task} needs a value for its parameter {self.parameter}: give it in inputs, "
            f"or give the parameter a default. {listed('On offer were', self.offer, self.parameter)}"
        )


class CycleError(FlowError, ValueError):
    """Dependencies that go in a circle, so that none of these tasks could ever start."""

    def __init__(self, path: Iterable[str]) -> None:
        path = tuple(path)
        super().__init__(path)
        self.path = path  #: the names along the circle; the last is the first again

    def __str__(self) -> str:
        circle = " >> ".join(self.path)
        return f"These tasks depend on each other: {circle}. Take one of the edges out, or make it a route."


class RouteError(FlowError, ValueError):
    """A task chose something that is none of its ``routes``."""

    def __init__(self, task: str, choice: str, routes: Iterable[str]) -> None:
        routes = tuple(routes)
        super().__init__(task, choice, routes)
        self.task, self.choice, self.routes = task, choice, routes

    def __str__(self) -> str:
        mend = listed("It has", self.routes, self.choice)
        return f"Task {self.task} chose {self.choice}, which is none of its routes. {mend}"


class ConfigError(FlowError, ValueError):
    """Something written down (edges, an expression, a file) that cannot be used."""

    def __init__(self, where: str, problem: str, problems: Iterable[ConfigError] = ()) -> None:
        problems = tuple(problems)
        super().__init__(where, problem, problems)
        self.where, self.problem = where, problem
        self.problems = problems  #: each by itself, if there are several

    def __str__(self) -> str:
        return "\n  ".join([f"{self.where}: {self.problem}", *map(str, self.problems)])


class DependencyFailedError(FlowError):
    """A task did not run, since something that it depends on has failed; that failure is the cause."""

    def __init__(self, task_id: str, failed: Iterable[str]) -> None:
        failed = tuple(failed)
        super().__init__(task_id, failed)
        self.task_id, self.failed = task_id, failed  #: what failed, by name or id

    def __str__(self) -> str:
        return (
            f"Task run {self.task_id} did not start, since {listing(self.failed)} failed: mend that, or see its "
            "on_dep_failure."
        )


class ContextKeyError(FlowError, KeyError):
    """A key that is not in the context and that nothing can set any more."""

    def __init__(self, key: str, waiting: str | None = None) -> None:
        super().__init__(key, waiting)
        self.key, self.waiting = key, waiting

    def __str__(self) -> str:
        said = f"Key {self.key} not found in context"
        return said if self.waiting is None else f"{said}: {self.waiting} waited for it, and nothing can set it."


class DeadlockError(FlowError):
    """Task runs wait for each other, so none of them can go on."""

    def __init__(self, waits: Iterable[tuple[str, str]]) -> None:
        waits = tuple(waits)
        super().__init__(waits)
        self.waits = waits  #: pairs: who waits, and for what

    def __str__(self) -> str:
        graph = ", ".join(f"{who} waits for {what}" for who, what in self.waits)
        return f"Deadlock: {graph}. None of them can go on: set a key first, or give its get a default."


class BlockingGetError(FlowError):
    """A ``ctx.get``, or a handle's ``result``, that would have blocked the event loop it was called in."""

    def __init__(self, key: str, of_call: bool = False) -> None:
        super().__init__(key, of_call)
        self.key, self.of_call = key, of_call

    def __str__(self) -> str:
        if self.of_call:
            return f"Waiting for the call {self.key} would block the event loop: await its handle instead."
        return (
            f"ctx.get({self.key!r}) would block the event loop, since the key is not set yet: "
            f"write 'await ctx.aget({self.key!r})', or give it a default."
        )


class TaskFailedError(FlowError):
    """A task raised what cannot be raised as it is; that one is the cause.

    Such is a ``BaseException`` that is no ``Exception`` (it would end more than the run), and a
    ``StopIteration`` (it would end a loop without a word).
    """

    def __init__(self, task_id: str, raised: str) -> None:
        super().__init__(task_id, raised)
        self.task_id, self.raised = task_id, raised

    def __str__(self) -> str:
        return f"Task run {self.task_id} raised {self.raised}."


class TaskTimeoutError(FlowError, TimeoutError):
    """An attempt of a task took longer than its ``timeout``."""

    def __init__(self, task_id: str, seconds: float) -> None:
        super().__init__(task_id, seconds)
        self.task_id, self.seconds = task_id, seconds

    def __str__(self) -> str:
        return f"Task run {self.task_id} took longer than its timeout of {self.seconds:g} s."


class RunTimeoutError(FlowError, TimeoutError):
    """A run took longer than the ``timeout`` it was started with."""

    def __init__(self, run_id: str, seconds: float) -> None:
        super().__init__(run_id, seconds)
        self.run_id, self.seconds = run_id, seconds

    def __str__(self) -> str:
        return f"Run {self.run_id} took longer than its timeout of {self.seconds:g} s."


class TaskCancelledError(FlowError, CancelledError):
    """Raised inside a task run that was told to stop."""

    def __init__(self, task_id: str) -> None:
        super().__init__(task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return f"Task run {self.task_id} was told to stop."


class RunCancelledError(FlowError, CancelledError):
    """The run was cancelled before it ended."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return f"Run {self.run_id} was cancelled."


class TaskRunLimitError(FlowError):
    """A run scheduled more task runs than ``max_task_runs`` allows."""

    def __init__(self, limit: int, task: str) -> None:
        super().__init__(limit, task)
        self.limit, self.task = limit, task

    def __str__(self) -> str:
        return (
            f"The run may have {self.limit} task runs (max_task_runs), and {self.task} would be one "
            "more: does it schedule itself for ever?"
        )


class ExecutorLostError(FlowError):
    """The executor of a run was shut down or broke, so its tasks cannot be called."""

    def __init__(self, run_id: str, reason: str) -> None:
        super().__init__(run_id, reason)
        self.run_id, self.reason = run_id, reason

    def __str__(self) -> str:
        reason = self.reason.rstrip(".")
        return f"Run {self.run_id} has lost its executor ({reason}): give the flow one that is open."


class WorkerLostError(FlowError):
    """The worker process that a task run was in has ended. What it was doing is lost; it can be tried again."""

    def __init__(self, task_id: str, reason: str) -> None:
        super().__init__(task_id, reason)
        self.task_id, self.reason = task_id, reason

    def __str__(self) -> str:
        reason = self.reason.rstrip(".")
        return f"Task run {self.task_id} was lost: {reason}. Give the task retries if it may be run again."


class TransferError(FlowError, TypeError):
    """Something that cannot travel to the process that a task run is called in, or back from it."""

    def __init__(self, task_id: str, what: str, problem: str) -> None:
        super().__init__(task_id, what, problem)
        self.task_id, self.what, self.problem = task_id, what, problem

    def __str__(self) -> str:
        return (
            f"Task run {self.task_id} is called in another process, and {self.what} cannot travel there or back: "
            f"{self.problem.rstrip('.')}. Use something that can be pickled, or give the task executor='thread'."
        )


class StreamError(FlowError):
    """Chunks of a run that can no longer be read."""

    def __init__(self, run_id: str, reason: str) -> None:
        super().__init__(run_id, reason)
        self.run_id, self.reason = run_id, reason

    def __str__(self) -> str:
        return f"Run {self.run_id} cannot be streamed: {self.reason}."


class CheckpointError(FlowError):
    """What is kept of runs cannot be read or written."""


class RunOwnedError(CheckpointError):
    """A run that somebody else goes on with: one process at a time owns a run."""

    def __init__(self, run_id: str, owner: str, file: str = "") -> None:
        super().__init__(run_id, owner, file)
        self.run_id, self.owner = run_id, owner
        self.file = file  #: instead of a run: somebody has all that is in it

    def __str__(self) -> str:
        what = f"What is in {self.file}" if self.file else f"Run {self.run_id}"
        return f"{what} belongs to {self.owner}: wait until that has ended, or end it."


class CodeChangedError(CheckpointError):
    """The tasks of a stored run are not what they were when it was started."""

    def __init__(self, run_id: str, changes: Iterable[str]) -> None:
        self.run_id, self.changes = run_id, tuple(changes)
        super().__init__(run_id, self.changes)

    def __str__(self) -> str:
        return (
            f"Run {self.run_id} was started with other code: {', '.join(self.changes)}. If it may go on with this one, "
            "resume it with on_code_change='ignore'."
        )


class UnknownRunError(CheckpointError, LookupError):
    """A run id that nobody knows (any more)."""

    def __init__(self, run_id: str | None, flow: str, store: str | None = None) -> None:
        super().__init__(run_id, flow, store)
        self.run_id, self.flow, self.store = run_id, flow, store

    def __str__(self) -> str:
        if self.store is not None:
            return f"Run {self.run_id} is not in {self.store}: see runs() for those that are."
        if self.run_id is None:
            return f"Flow {self.flow} has not been run yet, so there is no report."
        return (
            f"Run {self.run_id} of {self.flow} is not known: without a store a flow remembers what is under way and "
            "the newest run; keep the FlowRun and ask its report()."
        )


class FlowClosedError(FlowError):
    """A flow, or an executor of ours, was used after it was closed."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"{self.what} is closed: make a new one, or close it later."


class StateError(FlowError):
    """A step that the state machine forbids; it changed nothing. A bug of ours, please report it."""


class DuplicateTaskWarning(UserWarning):
    """A name was registered again on a flow for another function."""


def listing(names: tuple[str, ...]) -> str:
    """Return some names for a sentence; of very many, the first."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(map(str, names[:20])) + more


def listed(label: str, names: Iterable[Any], wanted: str = "") -> str:
    """Return ``names`` as the end of a sentence, the one nearest to ``wanted`` first."""
    from difflib import get_close_matches  # only for an error's text

    known = [str(name) for name in names]
    near = get_close_matches(str(wanted), known, n=1)
    if near:
        return f"Did you mean {near[0]}?"
    if not known:
        return f"{label}: nothing."
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    return f"{label}: {', '.join(known[:20])}{more}."
