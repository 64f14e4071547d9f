"""Named limits, shared by all runs of a flow: how many attempts hold one, how many may start in a time.

A task run asks before a worker is taken for it, with all the limits that it uses at once, and holds
them until its attempt is over. Who has to wait is served by priority, then in the order of asking;
nobody overtakes for a limit that somebody before it waits for. A ``Rate`` is kept by when attempts
really begin: a start that was granted counts from then on, and frees its place ``per`` seconds after
its attempt began. May import: clock, policies, values.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any

from millstream.policies import Rate
from millstream.values import Status

if TYPE_CHECKING:
    from millstream.engine.clock import Clock, Timer


class Count:
    """A limit on how many hold it at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.holders: set[Any] = set()

    def free_at(self, now: float) -> float | None:
        """Return when there is a place: now, or None when nobody can know."""
        return now if len(self.holders) < self.most else None

    def take(self, run: Any) -> None:
        self.holders.add(run)

    def began(self, run: Any, now: float) -> None:
        pass

    def give_back(self, run: Any) -> None:
        self.holders.discard(run)


class Starts:
    """A limit on how many begin in any ``per`` seconds."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.granted: set[Any] = set()  #: not begun yet
        self.starts: deque[float] = deque()  #: when the newest ones began

    def free_at(self, now: float) -> float | None:
        while self.starts and self.starts[0] + self.rate.per <= now:
            self.starts.popleft()
        over = len(self.granted) + len(self.starts) - self.rate.count
        if over < 0:
            return now
        # With this start and all before it gone there is a place, if those that have not begun leave one.
        return self.starts[over] + self.rate.per if over < len(self.starts) else None

    def take(self, run: Any) -> None:
        self.granted.add(run)

    def began(self, run: Any, now: float) -> None:
        if run in self.granted:
            self.granted.discard(run)
            self.starts.append(now)

    def give_back(self, run: Any) -> None:
        self.granted.discard(run)  # it ended before it began


class Limits:
    """The limits of one flow."""

    def __init__(self, limits: Mapping[str, int | Rate], clock: Clock) -> None:
        self._clock = clock
        # Guarded by _lock: everything below. It is held for a moment, and nothing is called under it.
        self._lock = threading.Lock()
        self._limits: dict[str, Count | Starts] = {
            name: Starts(limit) if isinstance(limit, Rate) else Count(limit) for name, limit in limits.items()
        }
        self._order = count()
        #: Those that wait, by the limits that they use.
        self._waiting: dict[tuple[str, ...], list[tuple[int, int, Any]]] = {}
        self._asking: set[Any] = set()  #: the same without order; who was cancelled is not in here any more
        self._timer: Timer | None = None

    def ask(self, runs: Sequence[Any]) -> None:
        """Task runs of one flow run ask: each is ``granted``, by a post, as soon as it may start, perhaps at once."""
        with self._lock:
            for run in runs:
                heappush(self._waiting.setdefault(run.task.terms.uses, []), (-run.priority, next(self._order), run))
                self._asking.add(run)
        self._serve()
        runs[0].run.monitor.post(runs[0].run.look)

    def began(self, run: Any, now: float) -> None:
        """The attempt of a task run begins."""
        with self._lock:
            for name in run.task.terms.uses:
                self._limits[name].began(run, now)
            waits = bool(self._waiting)
        if waits:
            self._serve()

    def give_back(self, runs: Iterable[Any]) -> None:
        """These attempts are over, or were cancelled."""
        with self._lock:
            for run in runs:
                self._asking.discard(run)
                for name in run.task.terms.uses:
                    self._limits[name].give_back(run)
            waits = bool(self._waiting)
        if waits:
            self._serve()
            with self._lock:
                heads = [queue[0][2] for queue in self._waiting.values()]
            for run in heads:
                run.run.monitor.post(run.run.look)

    def may_move(self, limited: set[Any], runs: Iterable[Any]) -> bool:
        """Whether any of those that are to have their limits may get them although nothing in ``runs`` moves.

        One may when it has not asked yet, or was just granted them; when they are free, or a rate is among
        them; and when somebody of another run holds one of them, or is ahead.
        """
        inside = set(runs)
        waiting = {holder for each in inside for holder in each.waited_by}  # they wait for us
        with self._lock:
            if not limited <= self._asking:
                return True
            kinds = {run.task.terms.uses for run in limited}
            if any(self._may_be_free(self._limits[name], inside, waiting) for uses in kinds for name in uses):
                return True
            names = {name for uses in kinds for name in uses}
            return any(
                entry[2].run not in inside and entry[2] in self._asking
                for uses, queue in self._waiting.items()
                if not names.isdisjoint(uses)
                for entry in queue
            )

    def _may_be_free(self, limit: Count | Starts, inside: set[Any], waiting: set[Any]) -> bool:
        if isinstance(limit, Starts):
            return True
        for holder in limit.holders:
            if holder in waiting:
                continue
            if holder.run not in inside or holder.status not in (Status.PENDING, Status.RUNNING):
                return True  # of another run; or over, and about to give it back
        return not limit.holders  # given back, and about to be granted

    def _serve(self) -> None:
        """Let on whoever may start now; have the clock call again when a rate allows more."""
        idle = False
        with self._lock:
            granted, again = self._grant(self._clock.now())
            if again is not None and (self._timer is None or self._timer.call is None or self._timer.when > again):
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = self._clock.call_at(again, self._serve)
            elif not self._waiting and self._timer is not None:
                self._timer.cancel()
                self._timer = None
                idle = True
        if idle:
            self._clock.tidy()
        for run in granted:
            run.run.monitor.post(run.run.granted, run)

    def _grant(self, now: float) -> tuple[list[Any], float | None]:
        granted: list[Any] = []
        again: float | None = None
        taken: set[str] = set()  # limits that somebody further ahead waits for
        heads = [(queue[0][0], queue[0][1], uses) for uses, queue in self._waiting.items()]
        heads.sort(reverse=True)
        while heads:
            uses = heads.pop()[2]
            queue = self._waiting[uses]
            run = queue[0][2]
            if run in self._asking:
                times = [None if name in taken else self._limits[name].free_at(now) for name in uses]
                if not all(time is not None and time <= now for time in times):
                    taken.update(uses)
                    if None not in times:
                        soonest = max(time for time in times if time is not None)
                        again = soonest if again is None else min(again, soonest)
                    continue
                for name in uses:
                    self._limits[name].take(run)
                granted.append(run)
            self._asking.discard(run)
            heappop(queue)
            if queue:
                heads.append((queue[0][0], queue[0][1], uses))
                heads.sort(reverse=True)
            else:
                del self._waiting[uses]
        return granted, again
