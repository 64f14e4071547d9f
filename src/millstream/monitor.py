"""One lock that nobody queues for on the hot path.

A plain lock that several threads take for every task run makes a convoy: whoever is interrupted
while holding it puts all the others to sleep, and from then on each release wakes a sleeper, at a
context switch apiece. Here a thread that finds the lock taken leaves its step in ``posted`` and goes
on; whoever holds the lock does that step before letting go. Steps are so done one at a time, each
seeing the state that the one before left, by whichever thread is there.

``post`` never waits, so it is safe in ``__del__`` and on an event loop. Workers that need an answer
``ask`` for it: they wait for their step to be done, not for the lock. Who waits for a lock gets it while
somebody else has the interpreter, and keeps everybody out until it is its turn, 5 ms later. ``with
monitor:`` waits so, for callers outside of the hot path. What must not run under the lock (it may be slow, or be a
user's code) is put in ``later``: it runs right after the lock was let go. Steps must not raise.
May import: the standard library.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")

Step = tuple[Callable[..., object], tuple[Any, ...]]


class Monitor:
    """A lock with a list of steps to do while it is held, and one of what to do after."""

    __slots__ = ("later", "lock", "posted")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.posted: deque[Step] = deque()  #: appended by anybody, taken by the holder of the lock
        self.later: deque[Step] = deque()  #: appended by the holder, taken by anybody

    def post(self, step: Callable[..., object], *args: Any) -> None:
        """Do ``step(*args)`` under the lock: here and now if it is free, else its holder does it."""
        self.posted.append((step, args))
        if self.lock.acquire(False):
            self.leave()

    def ask(self, step: Callable[..., R], *args: Any) -> R:
        """Do ``step(*args)`` under the lock, here or by its holder; wait for that, and return what it returns."""
        if self.lock.acquire(False):
            try:
                return step(*args)
            finally:
                self.leave()
        answers: list[R] = []
        done = threading.Lock()
        done.acquire()
        self.post(_answer, answers, done, step, args)
        done.acquire()
        return answers[0]

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Do what was posted, let go of the lock, then do what was put off."""
        posted, later, lock = self.posted, self.later, self.lock
        while True:
            try:
                while posted:
                    step, args = posted.popleft()
                    step(*args)
            finally:
                lock.release()
            while later:
                try:
                    step, args = later.popleft()
                except IndexError:  # another thread was quicker
                    break
                step(*args)
            # Look again after letting go. Otherwise:
            #   1. we find ``posted`` empty
            #   2. another thread posts, and finds the lock still taken
            #   3. we let go, and nobody does its step
            if not posted or not lock.acquire(False):
                return


def _answer(answers: list[R], done: threading.Lock, step: Callable[..., R], args: tuple[Any, ...]) -> None:
    try:
        answers.append(step(*args))
    finally:
        done.release()
