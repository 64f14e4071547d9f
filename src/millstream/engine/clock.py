"""The clock of the engine: now, and calls at a later time. Tests put a clock of their own in its place.

One daemon thread serves all timers of one clock; it is started with the first timer, sleeps until the
next one is due, and ends when there is none left. May import: the standard library.
"""

from __future__ import annotations

import heapq
import logging
import sys
import threading
import time
from collections.abc import Callable
from itertools import count

logger = logging.getLogger("millstream.clock")


class Timer:
    """A call that was put off; ``cancel()`` calls it off."""

    __slots__ = ("call", "clock", "when")

    def __init__(self, clock: Clock, when: float, call: Callable[[], object]) -> None:
        self.clock = clock
        self.when = when
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        """Call it off: it lets go of what it would have called. Idempotent, and never waits."""
        if self.call is not None:
            self.call = None
            self.clock.dead += 1


class Clock:
    """Monotonic time, and timers."""

    #: Returns the seconds since some fixed instant. Read twice for each task run, so it is no method of ours.
    now: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self) -> None:
        # Guarded by _changed: _timers, _thread, _closed.
        self._changed = threading.Condition()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = count()
        self.dead = 0  #: timers called off since the last tidying; a hint, so not guarded
        self._thread: threading.Thread | None = None
        self._closed = False

    def call_at(self, when: float, call: Callable[[], object]) -> Timer:
        """Call ``call()`` in the clock's thread at ``when`` (or soon after); it must not block."""
        timer = Timer(self, when, call)
        with self._changed:
            if self.dead > 64 and self.dead > len(self._timers) // 2:
                self._tidy()
            heapq.heappush(self._timers, (when, next(self._order), timer))
            if self._thread is None and not self._closed:
                self._start()
            elif self._timers[0][2] is timer:
                self._changed.notify()
        return timer

    def _start(self) -> None:
        if sys.is_finalizing():  # a thread started now would never run
            return
        self._thread = threading.Thread(target=self._serve, name="millstream-clock", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is shutting down: nothing is timed any more
            self._thread = None

    @property
    def closed(self) -> bool:
        """Whether nothing is timed any more."""
        return self._closed

    def tidy(self) -> None:
        """Forget what was called off; without any timer left the thread ends."""
        with self._changed:
            self._tidy()
            self._changed.notify()

    def _tidy(self) -> None:
        self._timers = [entry for entry in self._timers if entry[2].call is not None]
        heapq.heapify(self._timers)
        self.dead = 0

    def close(self, wait: bool = True) -> None:
        """Call off every timer and end the thread; waits for that at most a second."""
        with self._changed:
            self._closed = True
            self._timers.clear()
            self._changed.notify()
            thread = self._thread
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join(1.0)

    def _serve(self) -> None:
        while (timer := self._next()) is not None:
            call, timer.call = timer.call, None
            if call is not None:
                try:
                    call()
                except Exception:  # one bad timer must not end all the others
                    logger.exception("A timer failed")

    def _next(self) -> Timer | None:
        """Wait for the timer that is due next; None when the thread is not needed any more."""
        with self._changed:
            while True:
                while self._timers and self._timers[0][2].call is None:
                    heapq.heappop(self._timers)
                if not self._timers:
                    self._thread = None
                    return None
                wait = self._timers[0][0] - self.now()
                if wait <= 0:
                    return heapq.heappop(self._timers)[2]
                self._changed.wait(min(wait, threading.TIMEOUT_MAX))
