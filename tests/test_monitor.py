"""The lock that nobody queues for: who finds it taken leaves a step, and its holder does it."""

from __future__ import annotations

import threading
from collections import deque

import pytest

from millstream.monitor import Monitor
from tests.conftest import WATCHDOG


def in_thread(call):
    """Call in a thread of its own; return the thread, and the list that its result comes into."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    return thread, results


def test_a_step_is_done_by_whoever_holds_the_lock():
    """Posting never waits; the step runs in the holder's thread, before it lets go."""
    monitor, seen = Monitor(), []
    with monitor:
        thread, _ = in_thread(lambda: monitor.post(lambda: seen.append(threading.current_thread())))
        thread.join(WATCHDOG)
        assert not thread.is_alive()
        assert not seen
    assert seen == [threading.current_thread()]


def test_who_asks_does_not_wait_for_the_lock():
    """An answer comes from the holder: a thread that waits for the interpreter never owns the lock meanwhile."""
    monitor, posted = Monitor(), threading.Event()

    class Steps(deque):
        """The steps of a monitor, which tell when one comes."""

        def append(self, step):
            super().append(step)
            posted.set()

    monitor.posted = Steps()
    with monitor:
        thread, answers = in_thread(lambda: monitor.ask(lambda given: (given, threading.current_thread()), 7))
        assert posted.wait(WATCHDOG)
        assert not answers
    thread.join(WATCHDOG)
    assert answers == [(7, threading.current_thread())]


def test_who_asks_a_free_monitor_does_the_step_itself():
    """Nobody is there to do it: the step runs here, and what was posted before it has run."""
    monitor, seen = Monitor(), []
    monitor.later.append((seen.append, ("later",)))

    assert monitor.ask(lambda: (seen.append("step"), threading.current_thread())[1]) is threading.current_thread()
    assert seen == ["step", "later"]
    assert not monitor.lock.locked()


def test_an_error_of_a_step_that_is_asked_for_leaves_the_lock_free():
    """It is raised to who asked."""
    monitor = Monitor()
    with pytest.raises(ZeroDivisionError):
        monitor.ask(lambda: 1 / 0)
    assert not monitor.lock.locked()


@pytest.mark.parametrize("threads", [2, 8])
def test_every_answer_reaches_the_one_who_asked(threads):
    """Many ask at once: each gets the answer to its own question."""
    monitor, start = Monitor(), threading.Barrier(threads, timeout=WATCHDOG)

    def ask_often(mine):
        start.wait()
        return all(monitor.ask(lambda given: given, (mine, number)) == (mine, number) for number in range(2000))

    asking = [in_thread(lambda mine=mine: ask_often(mine)) for mine in range(threads)]
    for thread, _ in asking:
        thread.join(WATCHDOG)
        assert not thread.is_alive()
    assert [answers for _, answers in asking] == [[True]] * threads
