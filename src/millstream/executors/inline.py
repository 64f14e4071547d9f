"""The inline executor: tasks run in the thread that waits for the run, one at a time, in a fixed order.

Each run has one place of its own, and the thread that called ``run``, ``start`` or ``stream`` works
in it. While a task waits for a value, a helper thread takes the place, so that what it waits for can
come; still only one of them runs at a time. May import: base, places, interrupts, errors.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

from millstream.errors import FlowClosedError
from millstream.executors.base import Executor, Lane, Workers, here
from millstream.executors.places import Places, ThreadWorker
from millstream.interrupts import rest


class InlineExecutor(Executor):
    """Calls tasks in the caller's thread, in the order they were asked for: for debugging and tests."""

    def __init__(self) -> None:
        self._closed = False

    def serve(self, *, is_async: bool, loop: Any = None, driven: bool = False) -> Workers | None:
        if self._closed:
            raise FlowClosedError("The inline executor")
        return None if is_async else InlinePlace(driven=driven)

    def shutdown(self, wait: bool = True) -> None:
        """Refuse further runs; there is nothing to end."""
        self._closed = True

    def __repr__(self) -> str:
        return "<InlineExecutor>"


class Driver(ThreadWorker):
    """The side of the place that belongs to the thread which waits for the run."""

    def __init__(self, places: InlinePlace) -> None:
        super().__init__(weakref.proxy(places))  # which has this driver: no circle
        self.queue = (True,)  # ask ``overstays`` after every task run
        self.wake = threading.Semaphore(0)  # type: ignore[assignment]  # woken for more than one reason
        self.until: Callable[[], bool] = bool
        self.pause: Callable[[], AbstractContextManager[object]] = nullcontext
        self._lent = ExitStack()

    def overstays(self) -> bool:
        return bool(self.places.returning) or self.until()

    def give_back(self) -> None:
        super().give_back()
        self._lent.enter_context(self.pause())  # the task below in this thread waits as well

    def take_back(self) -> None:
        self._lent.close()
        super().take_back()

    def dismiss(self, item: object) -> None:
        """Nobody can take the caller's own thread from the task: it goes on when the task returns."""


class InlinePlace(Places):
    """The one place of one run."""

    def __init__(self, *, driven: bool) -> None:
        super().__init__(1, "millstream-inline")
        self.sleepers = 0  # a helper that is not needed any more ends
        self.driven = driven
        self.driver = Driver(self) if driven else None
        # Guarded by _turn: _driving, whether some thread drives.
        self._turn = threading.Condition()
        self._driving = False

    def driven_here(self) -> bool:
        return self.driver is not None and here.worker is self.driver

    def drive(self, until: Callable[[], bool], pause: Callable[[], AbstractContextManager[object]]) -> None:
        driver = self.driver
        if driver is None or not self._take_turn(until, pause):
            return
        before, here.worker = here.worker, driver
        driver.until, driver.pause = until, pause
        try:
            while not until():
                if not driver.wake.acquire(False):
                    with pause():
                        rest(driver.wake.acquire)
                lane, driver.mail = driver.mail, None
                if lane is not None:
                    driver.since = time.monotonic()
                    try:
                        lane.work(driver)
                    finally:
                        self.free_place()
        finally:
            here.worker = before
            driver.until, driver.pause = bool, nullcontext
            with self._turn:
                self._driving = False
                self._turn.notify_all()

    def _take_turn(self, until: Callable[[], bool], pause: Callable[[], AbstractContextManager[object]]) -> bool:
        """Wait while another thread drives; return whether this one is to drive: False when ``until()`` is true."""
        with self._turn:
            if not self._driving:
                self._driving = True
                return True
        with pause(), self._turn:
            rest(partial(self._turn.wait_for, lambda: not self._driving or until()))
            if until():
                return False
            self._driving = True
        return True

    def nudge(self) -> None:
        if self.driver is not None:
            self.driver.wake.release()
            with self._turn:
                self._turn.notify_all()

    def _grant(self) -> list[tuple[ThreadWorker | None, Lane | None]]:
        """Who takes a lane is decided in the locked step: the driver may come back before it is sent."""
        granted, driver = super()._grant(), self.driver
        if driver is None or driver.away:
            return granted
        return [(worker if lane is None else driver, lane) for worker, lane in granted]
