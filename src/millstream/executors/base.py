"""The protocol between the engine and whatever calls tasks. Executors know no more of the engine.

The engine never hands over single task runs. It has one ``Lane`` for each executor a run uses, and
asks for *workers*: a worker is a thread (or an asyncio task) that comes to the lane and calls its
task runs, one after another, until there are none left or others want its place. So a task run
costs no job, no future and no change of thread.

A worker holds one of the executor's *places*. A task that waits (``ctx.get``, a nested run) gives
the place back for as long as it waits, so that another worker can come.

Where tasks are called in another process, the worker is a ``Caller`` (``remote/calls.py``): a thread of this
process that sends batches of calls there, and does what they ask for. May import: values, errors.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context as Variables
from typing import Any, Protocol, Self


class Lane(Protocol):
    """The work of one run for one group of workers, as an executor sees it."""

    def work(self, worker: Worker) -> None:
        """Call task runs in this thread until there are none left, or ``worker.overstays()``."""

    def work_async(self, worker: Worker) -> Coroutine[Any, Any, None]:
        """The same on an event loop."""

    def variables(self) -> Variables:
        """Return the context variables that task runs see, as a copy to run in."""

    def lost(self, reason: str) -> None:
        """No worker will ever come: the run fails."""


class Worker(Protocol):
    """Who calls task runs: a thread's or an asyncio task's side of a place."""

    #: The task run it is calling, or None; the engine sets it.
    item: Any
    #: True when its place was taken from it, because the task run it calls was given up.
    dismissed: bool
    #: Whether it counts among the active workers of its lane; the engine's.
    counted: bool
    #: Truthy while somebody may want its place: then ``overstays`` is asked between task runs.
    queue: Any

    def overstays(self) -> bool:
        """Whether it should leave its lane now, so that others get their turn."""

    def give_back(self) -> None:
        """Its task waits: let another worker have the place."""

    def take_back(self) -> None:
        """Its task goes on: wait until there is a place."""

    def stall(self) -> None:
        """Its task waits for a reader: a task that goes on (it may be the reader) can have its place."""

    def go_on(self) -> None:
        """The reader has made room."""

    def dismiss(self, item: object) -> None:
        """Its task run ``item`` was given up and may never return: if it is still there, put another in its place."""


class Workers(ABC):
    """A group of workers that serves lanes."""

    #: Whether they are ``Caller``s.
    remote: bool = False
    #: Whether ``dismiss`` ends the code of a task run.
    kills: bool = False

    #: How many workers one lane can have at a time.
    capacity: int
    #: How many workers of one lane may be asked for at a time.
    burst: int
    #: Whether the thread that waits for the run is one of them.
    driven: bool = False

    @abstractmethod
    def request(self, lane: Lane) -> None:
        """Send one worker to ``lane`` as soon as there is a place. Never waits, never raises."""

    def caller_waits(self) -> AbstractContextManager[object]:
        """Enter this while the calling thread, which is no worker, waits for a run served here."""
        return nullcontext()

    # The next three are for a group that is ``driven``.

    def drive(self, until: Callable[[], bool], pause: Callable[[], AbstractContextManager[object]]) -> None:
        """Work in the calling thread until ``until()``.

        ``pause()`` is entered while the thread sleeps because there is nothing for it to do.
        """
        raise NotImplementedError(f"{type(self).__name__} is not driven")

    def driven_here(self) -> bool:
        """Whether the calling thread is in ``drive``."""
        return False

    def nudge(self) -> None:
        """``until()`` of a ``drive`` may be true now."""
        raise NotImplementedError(f"{type(self).__name__} is not driven")


class Executor(ABC):
    """Where tasks are called. One executor may serve many flows and runs."""

    #: Whether it calls in other processes: its workers are ``Caller``s then.
    remote: bool = False

    @abstractmethod
    def serve(self, *, is_async: bool, loop: Any = None, driven: bool = False) -> Workers | None:
        """Return the workers that call plain (or ``async``) tasks of one run.

        Args:
            is_async: for coroutine functions and asynchronous generators.
            loop: the running event loop of the caller, when it must be used.
            driven: the thread that waits for the run is there to work in, if that is this
                executor's way.

        Returns:
            None when this executor has no way to call ``async`` tasks: the flow's event loop does.
        """

    def requiring(self, resources: Mapping[str, float]) -> Executor:
        """Return this executor for calls that need so much of the machines they may run on.

        Raises:
            TypeError: it knows no such thing.
        """
        raise TypeError(
            f"{self!r} cannot give a task resources={dict(resources)}: that is for executors of clusters. Use "
            "max_parallel or uses to limit how many run at once."
        )

    @abstractmethod
    def shutdown(self, wait: bool = True) -> None:
        """End the threads and loops that it owns; idempotent. Tasks under way are not waited for long."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


class _Here(threading.local):
    worker: Worker | None = None


#: Event loops whose threads start, or wait for, runs that block them: no such run may use them.
blocked_loops: list[Any] = []

#: The worker whose thread this is.
here = _Here()
