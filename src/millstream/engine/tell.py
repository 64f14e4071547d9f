"""Telling: events go to hooks, each of which has a thread of its own, and to the log.

A hook is a user's code: it may be slow, block or raise. So it is never called by who does the work.
The engine appends an event to the hook's queue, in the locked step in which it arises, and a thread
that belongs to the hook calls it, one event after another. The end of a run waits a moment for its
events to be delivered (``END``), so that usually all hooks were called when ``run`` returns; a hook that
takes longer gets the rest later. What a hook that is stuck has not taken is bounded: beyond ``MOST``
events are dropped, and a log line says so. May import: events.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from types import FunctionType, MethodType
from typing import Any

from millstream.events import (
    HOOK_METHODS,
    Event,
    Hook,
    RunEndEvent,
    RunStartEvent,
    TaskCoalescedEvent,
    TaskFailureEvent,
    TaskRetryEvent,
    TaskSkipEvent,
    TaskStartEvent,
    TaskSuccessEvent,
    listened,
    shown,
)

#: How long the end of a run waits for its hooks, in seconds. A guess: long for a hook, short for a person.
END = 0.5

#: Events that may wait for one hook.
MOST = 100_000


class Listener:
    """One hook, its queue and its thread; the thread lives while a run is under way or events wait."""

    def __init__(self, hook: Hook, logger: logging.Logger) -> None:
        self.wants = listened(hook) | {RunEndEvent}
        self._hook, self._logger = hook, logger
        self._events: deque[Event | Callable[[], object]] = deque()  # appended under some run's monitor
        self._signal = threading.Semaphore(0)
        # Guarded by _lock: everything below.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._sleeps = False
        self._runs = 0
        self._dropped = 0

    def put(self, event: Event) -> None:
        """Queue an event; ``wake`` must be called after the lock was let go. Never waits."""
        if len(self._events) < MOST:
            self._events.append(event)
        else:
            self._dropped += 1

    def run_began(self) -> None:
        with self._lock:
            self._runs += 1

    def run_ended(self, told: Callable[[], object]) -> None:
        """Call ``told()`` when everything before it was delivered."""
        self._events.append(told)
        with self._lock:
            self._runs -= 1
        self.wake()

    def wake(self) -> None:
        """See to it that the queue is served."""
        with self._lock:
            if self._thread is None:
                if self._events:
                    self._start()
            elif self._sleeps:
                self._sleeps = False
                self._signal.release()

    @property
    def is_here(self) -> bool:
        """Whether this is the hook's own thread."""
        return threading.current_thread() is self._thread

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._serve, name="millstream-hook", daemon=True)
        try:
            if sys.is_finalizing():  # it would never run
                raise RuntimeError("the interpreter is shutting down")
            self._thread.start()
        except RuntimeError:  # no more threads: nobody can be told any more
            self._thread = None
            self._events.clear()

    def _serve(self) -> None:
        while True:
            try:
                event = self._events.popleft()
            except IndexError:
                if self._rest():
                    continue
                return
            if isinstance(event, FunctionType | MethodType | type):
                event()
            elif type(event) in self.wants:
                self._deliver(event)
            event = None  # type: ignore[assignment]  # a thread that sleeps keeps no output alive

    def _rest(self) -> bool:
        """Nothing waits: sleep until something does; False when the thread is not needed any more."""
        with self._lock:
            dropped, self._dropped = self._dropped, 0
            if self._events:
                return True
            if not self._runs:
                self._thread = None
                return False
            self._sleeps = True
        if dropped:
            self._logger.warning("%r was too slow: %d events were dropped.", self._hook, dropped)
        self._signal.acquire()
        return True

    def _deliver(self, event: Event) -> None:
        method = HOOK_METHODS[type(event)]
        try:
            getattr(self._hook, method)(event)
        except BaseException as error:  # also SystemExit: it would end the thread, and tell nobody
            run_id = event.run_id
            self._logger.error(
                "%s of a hook failed in run %s", method, run_id, exc_info=error, extra={"run_id": run_id}
            )


class Teller:
    """Everybody who is told of the events of one flow."""

    def __init__(self, hooks: Iterable[Hook], logger: logging.Logger) -> None:
        self.listeners = [Listener(hook, logger) for hook in hooks]
        self.logger = logger
        self.wants: frozenset[type] = frozenset().union(*(listener.wants for listener in self.listeners))

    def wanted(self) -> frozenset[type]:
        """Return the kinds of events that somebody will read, as things stand."""
        levels = {LEVELS[kind] for kind in LEVELS}
        heard = {level for level in levels if self.logger.isEnabledFor(level)}
        return self.wants | {kind for kind, level in LEVELS.items() if level in heard}

    def tell(self, event: Event, later: deque[Any]) -> None:
        """Hand an event to everybody; what takes time is appended to ``later``. Under a run's monitor."""
        kind = type(event)
        for listener in self.listeners:
            if kind in listener.wants:
                listener.put(event)
                later.append((listener.wake, ()))
        if kind in LEVELS:
            later.append((log, (self.logger, event)))

    def run_began(self) -> None:
        for listener in self.listeners:
            listener.run_began()

    def run_ended(self, told: Callable[[], object]) -> None:
        """Call ``told()`` when every hook has had all events so far. Hooks whose thread this is do not count."""
        waiting = [listener for listener in self.listeners if not listener.is_here]
        left = len(waiting)
        lock = threading.Lock()

        def one() -> None:
            nonlocal left
            with lock:
                left -= 1
                last = not left
            if last:
                told()

        for listener in self.listeners:
            listener.run_ended(one if listener in waiting else bool)
        if not waiting:
            told()


#: At which level the log tells of what.
LEVELS: dict[type, int] = {
    RunStartEvent: logging.INFO,
    RunEndEvent: logging.INFO,
    TaskStartEvent: logging.DEBUG,
    TaskSuccessEvent: logging.INFO,
    TaskRetryEvent: logging.INFO,
    TaskSkipEvent: logging.INFO,
    TaskFailureEvent: logging.WARNING,
    TaskCoalescedEvent: logging.WARNING,
}


def log(logger: logging.Logger, event: Any) -> None:
    """Write one record, with ``run_id``, ``task`` and ``attempt`` as its attributes."""
    level = LEVELS[type(event)]
    if not logger.isEnabledFor(level):
        return
    facts = {"run_id": event.run_id, "task": getattr(event, "id", None), "attempt": getattr(event, "attempt", None)}
    try:
        logger.log(level, *_said(event), extra=facts)
    except Exception:  # a handler that raises, or a value that cannot be shown
        logger.log(level, "%s in run %s cannot be shown", type(event).__name__, event.run_id, extra=facts)


def _said(event: Any) -> tuple[Any, ...]:
    if isinstance(event, RunStartEvent):
        return ("Run %s of %s starts", event.run_id, event.flow)
    if isinstance(event, RunEndEvent):
        return ("Run %s of %s ended: %s after %.3f s", event.run_id, event.flow, event.status, event.duration)
    if isinstance(event, TaskStartEvent):
        return ("Task %s starts, attempt %d", event.id, event.attempt)
    if isinstance(event, TaskSuccessEvent):
        return ("Task %s succeeded after %.3f s", event.id, event.duration)
    if isinstance(event, TaskRetryEvent):
        return ("Task %s is tried again, attempt %d in %.3f s", event.id, event.attempt, event.delay)
    if isinstance(event, TaskSkipEvent):
        return ("Task %s was skipped: %s", event.id, event.reason)
    if isinstance(event, TaskCoalescedEvent):
        return (
            "A request for task %s was dropped, since one with other inputs is pending or running; "
            "use spawn_another=True to run both. Dropped inputs: %s",
            event.task,
            shown(event.dropped),
        )
    return ("Task %s failed in attempt %d: %s", event.id, event.attempt, shown(event.error))
