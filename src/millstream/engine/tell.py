"""Telling: events go to hooks, each of which has a thread of its own, and to the log.

A hook is a user's code: it may be slow, block or raise. So it is never called by who does the work.
The engine appends an event to the hook's queue, before anything that comes of it can happen, and a
thread that belongs to the hook calls it, one event after another. The end of a run waits a moment for its
events to be delivered (``END``), so that usually all hooks were called when ``run`` returns; a hook that
takes longer gets the rest later. What a hook that is stuck has not taken is bounded: beyond ``MOST``
events are dropped, and a log line says so. May import: events.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from millstream.events import (
    HOOK_METHODS,
    Event,
    Hook,
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
    enters,
    listened,
    shown,
)
from millstream.report import ErrorReport

#: How long the end of a run waits for its hooks, in seconds. A guess: long for a hook, short for a person.
END = 0.5

#: Events that may wait for one hook.
MOST = 100_000


class Log:
    """The logger of a flow. Whatever a handler does, no run is harmed.

    Args:
        logger: a ``logging.Logger``, or a ``LoggerAdapter``, whose own facts are kept.
    """

    def __init__(self, logger: Any) -> None:
        adapter = isinstance(logger, logging.LoggerAdapter)
        self._logger: logging.Logger = logger.logger if adapter else logger
        self._facts: dict[str, Any] = dict(logger.extra or {}) if adapter else {}
        self._events: deque[Any] = deque()  # appended under some run's monitor
        self._writing = threading.Lock()  # held by the one thread that takes from it
        self._writer: int | None = None  # which that is

    def hears(self, level: int) -> bool:
        """Whether anything of that level is wanted."""
        return self._logger.isEnabledFor(level)

    def __call__(
        self,
        level: int,
        message: str,
        *args: Any,
        run_id: str | None = None,
        task: str | None = None,
        attempt: int | None = None,
    ) -> None:
        """Write one record, which has ``run_id``, ``task`` and ``attempt`` as attributes."""
        facts = {**self._facts, "run_id": run_id, "task": task, "attempt": attempt}
        try:
            self._logger.log(level, message, *args, extra=facts)
        except Exception:  # a handler's or a filter's own failure: there is nowhere else to tell of it
            pass

    def put(self, event: Any) -> None:
        """Queue an event; ``write`` must be called after the run's lock was let go."""
        self._events.append(event)

    def write(self, wait: float = 0.0) -> None:
        """Write what is queued, in its order: here, or by the thread that is at it. Waits ``wait`` seconds for that."""
        look = wait > 0 and self._writer != threading.get_ident()  # also for the last one, which is taken already
        while (look or self._events) and self._writing.acquire(timeout=wait):
            look, self._writer = False, threading.get_ident()
            try:
                while self._events:
                    self._write(self._events.popleft())
            finally:
                self._writer = None
                self._writing.release()

    def _write(self, event: Any) -> None:
        level = LEVELS[type(event)]
        if self.hears(level):
            task, attempt = getattr(event, "id", None), getattr(event, "attempt", None)
            self(level, *_said(event), run_id=event.run_id, task=task, attempt=attempt)


class Listener:
    """One hook, its queue and its thread; the thread lives while a run is under way or events wait."""

    def __init__(self, hook: Hook, log: Log) -> None:
        self.wants = listened(hook) | {RunEndEvent}
        self._hook, self._log = hook, log
        #: Appended to by anybody, taken from by the thread: events, and what to call when those before were told.
        self.queue: deque[Any] = deque()
        self._methods = {kind: getattr(hook, HOOK_METHODS[kind]) for kind in self.wants}
        self._signal = threading.Semaphore(0)
        #: Nobody serves the queue: ``wake`` must be called after something was put in it.
        self.sleeps = True
        # Guarded by _lock: everything below, and changes of ``sleeps``.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._runs = 0
        self._dropped = 0

    def overflow(self, event: Event) -> None:
        """An event came when the queue was full."""
        if type(event) is RunEndEvent:
            self.queue.append(event)
        else:
            with self._lock:
                self._dropped += 1

    def run_began(self) -> None:
        with self._lock:
            self._runs += 1

    def run_ended(self, told: Callable[[], object]) -> None:
        """Call ``told()`` when everything before it was delivered."""
        self.queue.append(told)
        with self._lock:
            self._runs -= 1
        self.wake()

    def wake(self) -> None:
        """See to it that the queue is served."""
        with self._lock:
            if self._thread is None:
                if self.queue:
                    self._start()
            elif self.sleeps:
                self.sleeps = False
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
            self.sleeps = False
        except RuntimeError:  # no more threads: nobody can be told any more
            self._thread = None
            self.queue.clear()

    def _serve(self) -> None:
        take, methods = self.queue.popleft, self._methods
        while True:
            try:
                event = take()
            except IndexError:
                if self._rest():
                    continue
                return
            method = methods.get(type(event))
            if method is None:
                event()
            else:
                try:
                    method(event)
                except BaseException as error:  # also SystemExit: it would end the thread, and tell nobody
                    self._failed(event, error)
            event = None  # a thread that sleeps keeps no output alive

    def _rest(self) -> bool:
        """Nothing waits: sleep until something does; False when the thread is not needed any more."""
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            self._log(logging.WARNING, "%s was too slow: %d events were dropped.", shown(self._hook), dropped)
        with self._lock:
            self.sleeps = True
            # Look again after saying so, since those who put something in take no lock. Otherwise:
            #   1. we find the queue empty
            #   2. somebody puts something in, and finds us awake
            #   3. we sleep, on a queue that is not empty
            if self.queue:
                self.sleeps = False
                return True
            if not self._runs:
                self._thread = None
                return False
        self._signal.acquire()
        return True

    def _failed(self, event: Any, error: BaseException) -> None:
        text = ErrorReport.of(error).traceback.rstrip()  # made here: its own code may be broken as well
        method = HOOK_METHODS[type(event)]
        self._log(logging.ERROR, FAILED, method, event.run_id, text, run_id=event.run_id)


class Teller:
    """Everybody who is told of the events of one flow."""

    def __init__(self, hooks: Sequence[Hook], logger: Any) -> None:
        self.log = Log(logger)
        self.entering = tuple(hook for hook in hooks if enters(hook))  #: those that set up what tasks find
        self.listeners = [Listener(hook, self.log) for hook in hooks]
        self.wants: frozenset[type] = frozenset().union(*(listener.wants for listener in self.listeners))

    def audiences(self) -> dict[type, Audience]:
        """Return who wants to know of what, as things stand; without what nobody wants to know."""
        found = {}
        for kind, level in LEVELS.items():
            listeners = tuple(listener for listener in self.listeners if kind in listener.wants)
            log = self.log if self.log.hears(level) else None
            if listeners or log is not None:
                found[kind] = Audience(listeners, log)
        return found

    def run_began(self) -> Listener | None:
        """A run begins; return the hook in whose thread it was started, which cannot be waited for."""
        starter = next((listener for listener in self.listeners if listener.is_here), None)
        for listener in self.listeners:
            listener.run_began()
        return starter

    def run_ended(self, told: Callable[[], object], starter: Listener | None) -> None:
        """Call ``told()`` when every hook but ``starter`` has had all events so far."""
        waiting = [listener for listener in self.listeners if listener is not starter]
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

    def log_failure(self, run_id: str, task: str | None, error: BaseException) -> None:
        """Log a failure that goes nowhere else."""
        text = ErrorReport.of(error).traceback.rstrip()
        self.log(logging.ERROR, "Task %s failed in run %s\n%s", task, run_id, text, run_id=run_id, task=task)


class Audience:
    """Those who want to know of one kind of events."""

    __slots__ = ("_listeners", "_log")

    def __init__(self, listeners: tuple[Listener, ...], log: Log | None) -> None:
        self._listeners, self._log = listeners, log

    def tell(self, event: Event, later: deque[Any] | None) -> None:
        """Tell them.

        Args:
            event: what has happened.
            later: what takes time is appended to it; None: no lock is held, and it is done at once.
        """
        for listener in self._listeners:
            if len(listener.queue) < MOST:
                listener.queue.append(event)
            else:
                listener.overflow(event)
            if listener.sleeps:
                if later is None:
                    listener.wake()
                else:
                    later.append((listener.wake, ()))
        log = self._log
        if log is not None:
            log.put(event)
            if later is None:
                log.write()
            else:
                later.append((log.write, ()))


#: What the log says of a hook that raises.
FAILED = "%s of a hook failed in run %s\n%s"

#: At which level the log tells of what.
LEVELS: dict[type, int] = {
    RunStartEvent: logging.INFO,
    RunEndEvent: logging.INFO,
    TaskStartEvent: logging.DEBUG,
    TaskSuccessEvent: logging.INFO,
    TaskRetryEvent: logging.INFO,
    TaskSkipEvent: logging.INFO,
    TaskCancelEvent: logging.INFO,
    TaskFailureEvent: logging.WARNING,
    TaskCoalescedEvent: logging.WARNING,
    TaskProgressEvent: logging.DEBUG,
}


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
    if isinstance(event, TaskCancelEvent):
        return ("Task %s was cancelled after %.3f s", event.id, event.duration)
    if isinstance(event, TaskCoalescedEvent):
        return (
            "A request for task %s was dropped, since one with other inputs is pending or running; "
            "use spawn_another=True to run both. Dropped inputs: %s",
            event.task,
            shown(event.dropped),
        )
    if isinstance(event, TaskProgressEvent):
        return ("Task %s has done %s of %s", event.id, event.done, "?" if event.total is None else event.total)
    error = event.error
    return ("Task %s failed in attempt %d: %s: %s", event.id, event.attempt, type(error).__name__, shown(error, str))
