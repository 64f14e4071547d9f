"""What is seen of a run: its events, when its attempts began and ended, its trace.

Called under the monitor of the run, unless a method says otherwise; an event is made only when somebody
wants it. May import: tell, lane, clock, record, events, values, monitor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

from millstream.engine.clock import Clock
from millstream.engine.lane import Item
from millstream.engine.record import Failure, Traced
from millstream.engine.tell import END, Teller
from millstream.events import (
    Event,
    RunEndEvent,
    RunStartEvent,
    TaskCancelEvent,
    TaskCoalescedEvent,
    TaskFailureEvent,
    TaskProgressEvent,
    TaskRetryEvent,
    TaskSkipEvent,
    TaskStartEvent,
    TaskSuccessEvent,
)
from millstream.monitor import Monitor
from millstream.values import Status

SUCCESS = Status.SUCCESS


class Observer:
    """Sees what happens in one run, and tells those who want to know."""

    def __init__(self, run_id: str, flow: str, teller: Teller, clock: Clock, monitor: Monitor, trace: bool) -> None:
        self.began_at = clock.now()
        self.ended_at: float | None = None
        self.trace: list[Traced] | None = [] if trace else None
        self.run_id, self.flow = run_id, flow
        self.epoch = time.time() - self.began_at  #: what turns the clock's time into that of the world
        self._teller, self._clock, self._now, self._monitor = teller, clock, clock.now, monitor
        self._audiences = heard = teller.audiences()
        self._starts, self._successes = heard.get(TaskStartEvent), heard.get(TaskSuccessEvent)
        #: Nobody wants to know when each attempt begins, or how long it took: the log of failures does not tell.
        self.times_unseen = not (
            trace
            or self._starts
            or self._successes
            or TaskFailureEvent in teller.wants
            or TaskCancelEvent in teller.wants
            or teller.entering
        )
        self._starter: Any = None  # the hook in whose thread the run was started
        self._told_start = False

    def wall(self, at: float | None = None) -> float:
        """Return the time of the world for an instant of the clock, by default for now."""
        return self.epoch + (self._clock.now() if at is None else at)

    # ---- the run --------------------------------------------------------------------------------

    def expect(self) -> None:
        """The run is about to begin: the hooks shall be there. No lock held."""
        self._starter = self._teller.run_began()

    def run_began(self) -> None:
        self._told_start = True
        self._tell(RunStartEvent, self.began_at)

    def never_began_run(self) -> None:
        """The run was cancelled before it began, after hooks have heard of it (``enter_run``)."""
        self._tell(RunStartEvent, self.began_at)
        self._tell(RunEndEvent, None, Status.CANCELLED, self._clock.now() - self.began_at, None)

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

    # ---- its task runs: the first two are called for every one ----------------------------------

    def attempt_began(self, item: Item, where: str) -> None:
        """An attempt of a task that is watched begins. Called by its worker, no lock held.

        ``where``: the name of the worker, for people.
        """
        task, number = item.task, item.number
        item.since = now = self._now()
        if task.began is None:
            task.began = now
        task.attempt = item.attempt
        name = task.name
        # As ``item.id``, without a call.
        told = item.id if item.extra is not None else name if number == 1 else f"{name}#{number}"
        item.seen = told, where
        if self._starts is not None:
            self._starts.tell(TaskStartEvent(self.run_id, self.flow, self.epoch + now, name, told, item.attempt), None)

    def attempt_succeeded(self, item: Item, output: Any, now: float) -> None:
        name, (told, where), since = item.task.name, item.seen, item.since
        if self.trace is not None:
            self.trace.append((name, told, item.attempt, SUCCESS, since, now, where, None))
        if self._successes is not None:
            at = self.epoch + now
            event = TaskSuccessEvent(self.run_id, self.flow, at, name, told, item.attempt, now - since, output)
            self._successes.tell(event, self._monitor.later)

    def attempt_failed(
        self, item: Item, error: BaseException, delay: float | None, status: Status, *, silent: bool
    ) -> None:
        """It failed, was cancelled or given up; ``delay`` is the time until the next attempt, if there is one.

        ``silent``: that is no failure to be told of.
        """
        now = self._clock.now()
        since = getattr(item, "since", now)
        if self.trace is not None:
            failure = None if status is Status.CANCELLED else Failure(error)
            told, where = getattr(item, "seen", (item.id, ""))
            self.trace.append((item.task.name, told, item.attempt, status, since, now, where, failure))
            if failure is not None:  # the error itself keeps all its frames alive
                self._monitor.later.append((failure.digest, ()))
        if status is Status.CANCELLED or silent:
            self._tell(TaskCancelEvent, now, item.task.name, item.id, item.attempt, now - since)
        else:
            facts = (item.task.name, item.id, item.attempt, now - since, error, delay is not None, delay)
            self._tell(TaskFailureEvent, now, *facts)

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

    def _tell(self, kind: Callable[..., Event], at: float | None, *facts: Any) -> None:
        """Something happened, now or at ``at``, that somebody may want to know of."""
        audience = self._audiences.get(cast(type, kind))
        if audience is not None:
            audience.tell(kind(self.run_id, self.flow, self.wall(at), *facts), self._monitor.later)
