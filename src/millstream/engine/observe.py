"""What is seen of a run: its events, when its attempts began and ended, its trace.

Called under the monitor of the run, unless a method says otherwise; an event is made only when somebody
wants it. May import: tell, lane, clock, events, report, values, monitor.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from millstream.engine.clock import Clock
from millstream.engine.lane import Item
from millstream.engine.tell import END, Teller
from millstream.events import (
    RunEndEvent,
    RunStartEvent,
    TaskCoalescedEvent,
    TaskFailureEvent,
    TaskProgressEvent,
    TaskRetryEvent,
    TaskSkipEvent,
    TaskStartEvent,
    TaskSuccessEvent,
)
from millstream.monitor import Monitor
from millstream.report import TaskTrace
from millstream.values import Status


class Observer:
    """Sees what happens in one run, and tells those who want to know."""

    def __init__(self, run_id: str, flow: str, teller: Teller, clock: Clock, monitor: Monitor, trace: bool) -> None:
        self.began_at = clock.now()
        self.ended_at: float | None = None
        self.trace: list[TaskTrace] | None = [] if trace else None
        self._ids = run_id, flow
        self._teller, self._clock, self._monitor = teller, clock, monitor
        self._wall = time.time() - self.began_at  # what turns the clock's time into that of the world
        self._wants = wants = teller.wanted()
        #: Nobody wants to know when each attempt begins, or how long it took: the log of failures does not tell.
        self.times_unseen = not (
            trace or TaskStartEvent in wants or TaskSuccessEvent in wants or TaskFailureEvent in teller.wants
        )
        self._starter: Any = None  # the hook in whose thread the run was started
        self._told_start = False

    def wall(self, at: float | None = None) -> float:
        """Return the time of the world for an instant of the clock, by default for now."""
        return self._wall + (self._clock.now() if at is None else at)

    # ---- the run --------------------------------------------------------------------------------

    def expect(self) -> None:
        """The run is about to begin: the hooks shall be there. No lock held."""
        self._starter = self._teller.run_began()

    def run_began(self) -> None:
        self._told_start = True
        self._tell(RunStartEvent, self.began_at)

    def run_ended(self, status: Status, why: BaseException | None) -> None:
        self.ended_at = self._clock.now()
        if self._told_start:  # else it was cancelled before it began
            self._tell(RunEndEvent, None, status, self.ended_at - self.began_at, why)

    def deliver(self, then: Callable[[], object]) -> None:
        """Call ``then`` when the hooks have had all events, or have taken too long; no lock held."""
        teller, clock = self._teller, self._clock
        teller.log.write(END)  # what other threads are about to write belongs to the run
        if teller.listeners:
            timer = clock.call_at(clock.now() + END, then)

            def told() -> None:
                timer.cancel()
                clock.tidy()
                then()

            teller.run_ended(told, self._starter)
        if not teller.listeners or clock.closed:
            then()

    # ---- its task runs --------------------------------------------------------------------------

    def attempt_began(self, item: Item) -> None:
        """No lock held."""
        if TaskStartEvent in self._wants:
            self._monitor.post(self._tell, TaskStartEvent, item.since, item.task.name, item.id, item.attempt)
        if self.trace is not None:
            item.where = where(item)

    def attempt_succeeded(self, item: Item, output: Any) -> None:
        if self.trace is not None:
            self._trace(item, Status.SUCCESS)
        if TaskSuccessEvent in self._wants:
            self._tell(TaskSuccessEvent, None, item.task.name, item.id, item.attempt, self._lasted(item), output)

    def attempt_failed(
        self, item: Item, error: BaseException, delay: float | None, status: Status, *, silent: bool
    ) -> None:
        """It failed, was cancelled or given up; ``delay`` is the time until the next attempt, if there is one.

        ``silent``: that is no failure to be told of.
        """
        if self.trace is not None:
            self._trace(item, status)
        if TaskFailureEvent in self._wants and status is not Status.CANCELLED and not silent:
            facts = (item.task.name, item.id, item.attempt, self._lasted(item), error, delay is not None, delay)
            self._tell(TaskFailureEvent, None, *facts)

    def retried(self, again: Item, delay: float, error: BaseException) -> None:
        self._tell(TaskRetryEvent, None, again.task.name, again.id, again.attempt, delay, error)

    def skipped(self, task: str, task_id: str, reason: str) -> None:
        self._tell(TaskSkipEvent, None, task, task_id, reason)

    def never_began(self, task: str, task_id: str, error: BaseException) -> None:
        """It failed without an attempt."""
        self._tell(TaskFailureEvent, None, task, task_id, 0, 0.0, error, False, None)

    def coalesced(self, task: str, kept: dict[str, Any], dropped: dict[str, Any]) -> None:
        self._tell(TaskCoalescedEvent, None, task, task, kept, dropped)

    def progressed(self, item: Item, done: float, total: float | None) -> None:
        self._tell(TaskProgressEvent, None, item.task.name, item.id, item.attempt, done, total)

    # ---- inside ---------------------------------------------------------------------------------

    def _tell(self, kind: Callable[..., Any], at: float | None, *facts: Any) -> None:
        """Something happened, now or at ``at``, that somebody may want to know of."""
        if kind in self._wants:
            self._teller.tell(kind(*self._ids, self.wall(at), *facts), self._monitor.later)

    def _trace(self, item: Item, status: Status) -> None:
        assert self.trace is not None, "only a run with a trace keeps attempts"
        now = self._clock.now()
        began = self.wall(getattr(item, "since", now))
        facts = (item.task.name, item.id, item.attempt, status, began, self.wall(now))
        self.trace.append(TaskTrace(*facts, getattr(item, "where", "")))

    def _lasted(self, item: Item) -> float:
        now = self._clock.now()
        return now - getattr(item, "since", now)


def where(item: Item) -> str:
    """Return the name of the thread, and of the coroutine's place on its loop, that calls a task run."""
    thread = threading.current_thread().name
    pump = getattr(item.handle, "number", None)
    return thread if pump is None else f"{thread} {pump}"
