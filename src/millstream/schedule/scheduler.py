"""``Scheduler``: starts runs of a flow by the clock.

A *job* is a task of the flow and the instants at which it is due, its *slots*. Which slots are due is decided by the
time that ``tick`` is given, alone; ``start`` and ``arun`` do nothing but call it at the right moments. A run bears
the id of its slot, so on one store each slot fires once, however many processes have the same schedule, and a
schedule that comes back after a while knows what it has missed. May import: cron, flow, and everything below it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from millstream.errors import CheckpointError, FlowClosedError, TaskNotFoundError
from millstream.schedule.cron import Cron
from millstream.values import copied_inputs

if TYPE_CHECKING:
    from millstream.engine.run import FlowRun
    from millstream.flow import Flow
    from millstream.task import TaskName

Overlap = Literal["skip", "queue", "parallel"]
Missed = Literal["skip", "once"]

#: A slot that could not fire for so long is missed.
LATE = timedelta(seconds=60)
#: The clock of the wall may be set at any time, so it is looked at again after so many seconds at the latest.
LOOK = 60.0


class Trigger(ABC):
    """The slots of a job. All instants are in UTC."""

    @abstractmethod
    def newest(self, after: datetime, now: datetime) -> datetime | None:
        """Return the newest slot after ``after`` that is not after ``now``."""

    @abstractmethod
    def next(self, after: datetime) -> datetime | None:
        """Return the first slot after an instant; None when there is none any more."""

    def begin(self, now: datetime) -> datetime:
        """The job is there from now on: return after which instant its slots count."""
        return now


class Every(Trigger):
    """Slots at equal distances from the instant at which the job began."""

    def __init__(self, interval: timedelta) -> None:
        self.interval = interval

    def newest(self, after: datetime, now: datetime) -> datetime | None:
        count = (now - after) // self.interval
        return after + count * self.interval if count > 0 else None

    def next(self, after: datetime) -> datetime | None:
        return after + self.interval

    def __str__(self) -> str:
        return f"every {self.interval.total_seconds():g} s"


class ByCron(Trigger):
    """The slots of a cron expression."""

    def __init__(self, cron: Cron) -> None:
        self.cron = cron

    def newest(self, after: datetime, now: datetime) -> datetime | None:
        span = timedelta(minutes=2)
        while True:  # back from now, in growing steps: there may be many slots, and only the newest is wanted
            begin = max(after, now - span)
            slot = self.next(begin)
            if slot <= now or begin == after:
                break
            span *= 2
        found = None
        while slot <= now:
            found, slot = slot, self.next(slot)
        return found

    def next(self, after: datetime) -> datetime:
        return self.cron.next(after).astimezone(UTC)  # two times of one zone are compared by what the clock shows

    def __str__(self) -> str:
        return f"cron {self.cron.expression} {self.cron.tz}"


class At(Trigger):
    """One slot."""

    def __init__(self, when: datetime) -> None:
        self.when = when.astimezone(UTC)

    def newest(self, after: datetime, now: datetime) -> datetime | None:
        return self.when if after < self.when <= now else None

    def next(self, after: datetime) -> datetime | None:
        return self.when if self.when > after else None

    def begin(self, now: datetime) -> datetime:
        return self.when - timedelta(microseconds=1)  # one in the past is a slot that was missed

    def __str__(self) -> str:
        return f"at {self.when.isoformat()}"


class Rule:
    """When, and how; ``do`` says what."""

    def __init__(self, add: Callable[[Job], Job], flow: Flow, trigger: Trigger, options: dict[str, Any]) -> None:
        self._add, self._flow, self._trigger, self._options = add, flow, trigger, options

    def do(self, task: TaskName, inputs: Mapping[str, Any] | None = None) -> Job:
        """Start a run of a task in each slot.

        Args:
            task: its name, or the task itself.
            inputs: as for ``flow.run``; copied.

        Returns:
            The job, which can be cancelled.

        Raises:
            TaskNotFoundError: the flow has no such task.
            ValueError: there is a job of that name already.
        """
        (name,) = self._flow._target_names([task])
        if name not in self._flow.tasks:
            raise TaskNotFoundError(name, self._flow.tasks)
        values = None if inputs is None else copied_inputs(inputs, f"A job of {name}")
        return self._add(Job(self._trigger, name, values, **self._options))


class Job:
    """A task that is run by the clock. Made by ``Scheduler.every``, ``cron`` and ``at``.

    Attributes:
        name: of the job; a run's id is that, ``@``, and the instant of its slot in UTC.
        task: the name of the task.
        run: the newest run that it has started, or None.
    """

    def __init__(
        self,
        trigger: Trigger,
        task: str,
        inputs: Mapping[str, Any] | None,
        *,
        overlap: Overlap,
        missed: Missed,
        name: str | None,
    ) -> None:
        self.trigger, self.task, self.inputs = trigger, task, inputs
        self.overlap, self.missed = overlap, missed
        self.name = name or f"{task} {trigger}"
        self.run: FlowRun | None = None
        self.cancelled = False
        self.after: datetime | None = None  #: its slots up to here are over; None before it has begun
        self.queued: datetime | None = None  #: a slot that waits for the end of the run of the one before

    @property
    def next_at(self) -> datetime | None:
        """The next slot; None when there is none any more, or the job has not begun."""
        return None if self.cancelled or self.after is None else self.trigger.next(self.after)

    def cancel(self) -> None:
        """Start nothing further; a run that is under way goes on."""
        self.cancelled = True

    def due(self, now: datetime) -> datetime | None:
        """Return the slot that is to fire now; all others up to now are over after that."""
        if self.after is None:
            self.after = self.trigger.begin(now)
        slot = self.trigger.newest(self.after, now)
        if slot is None:
            return None
        self.after = slot
        return None if now - slot > LATE and self.missed == "skip" else slot

    def __repr__(self) -> str:
        return f"<Job {self.name}: {'cancelled' if self.cancelled else f'next at {self.next_at}'}>"


class Scheduler:
    """Starts runs of a flow by the clock: in a thread, on an event loop, or when it is asked to.

    Nothing fires before ``start``, ``arun`` or ``tick``. A slot is missed when a later one of its job is due, or when
    it is more than 60 s late: the process was busy, or down. If the flow has a store, slots that went by while no
    scheduler ran are known as missed, and each slot fires once, also with several processes.

    Args:
        flow: whose tasks are run; it must stay open.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._logger = flow._logger
        self._ticking = threading.RLock()  # one tick at a time; a task may be inside of it, on the inline executor
        self._changed = threading.Condition()
        # Guarded by _changed: everything below.
        self._jobs: dict[str, Job] = {}
        self._thread: threading.Thread | None = None
        self._stopped = self._woken = False
        self._wakes: list[Callable[[], object]] = []  # of ``arun``

    @classmethod
    def from_config(
        cls,
        config: str | os.PathLike[str] | Mapping[str, Any],
        *,
        allow: Iterable[str] | None = None,
        callables: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Scheduler:
        """Make a flow that is written down, and a scheduler with the jobs of its ``schedule``.

        The flow is ``scheduler.flow``, which is yours to close. The arguments and errors are those of
        ``Flow.from_config``.
        """
        from millstream.config.loader import load_schedule

        return load_schedule(config, allow, callables)

    @property
    def flow(self) -> Flow:
        """The flow whose tasks are run."""
        return self._flow

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All jobs that were not cancelled and have slots to come."""
        with self._changed:
            return tuple(job for job in self._jobs.values() if not job.cancelled)

    # ---- jobs -----------------------------------------------------------------------------------

    def every(
        self,
        interval: float | timedelta,
        *,
        overlap: Overlap = "skip",
        missed: Missed = "skip",
        name: str | None = None,
    ) -> Rule:
        """Each ``interval`` seconds, the first time one interval after the start.

        Args:
            interval: seconds, or a ``timedelta``.
            overlap: what to do while a run of the job is under way: leave the slot out, ``"queue"`` one for
                after it, or run in ``"parallel"``.
            missed: leave missed slots out, or make up for all of them ``"once"``.
            name: of the job; made of its task and its slots without it.

        Raises:
            TypeError, ValueError: one of them cannot be used.
        """
        if isinstance(interval, bool) or not isinstance(interval, int | float | timedelta):
            raise TypeError(f"every(...) takes seconds or a timedelta, not {interval!r}.")
        if not isinstance(interval, timedelta):
            if not math.isfinite(interval) or interval > timedelta.max.total_seconds():
                raise ValueError(f"every({interval!r}) never comes: give it a number of seconds.")
            interval = timedelta(seconds=interval)
        if interval < timedelta(milliseconds=1):
            raise ValueError(f"every({interval.total_seconds():g}) is too often: at least a millisecond apart.")
        return self._rule(Every(interval), overlap, missed, name)

    def cron(
        self,
        expression: str,
        *,
        tz: str | tzinfo | None = None,
        overlap: Overlap = "skip",
        missed: Missed = "skip",
        name: str | None = None,
    ) -> Rule:
        """At the instants of a cron expression; see ``Cron``.

        Args:
            expression: five fields, such as ``"*/15 9-17 * * MON-FRI"``, or an alias such as ``"@hourly"``.
            tz: the name of a time zone, or a ``tzinfo``; UTC without it.

        The other arguments are those of ``every``.

        Raises:
            TypeError, ValueError: one of them cannot be used.
        """
        return self._rule(ByCron(Cron(expression, tz)), overlap, missed, name)

    def at(
        self, when: datetime, *, overlap: Overlap = "skip", missed: Missed = "skip", name: str | None = None
    ) -> Rule:
        """Once, at an aware ``datetime``; one that is over is a missed slot.

        The other arguments are those of ``every``.

        Raises:
            TypeError, ValueError: one of them cannot be used.
        """
        return self._rule(At(aware(when, "at")), overlap, missed, name)

    def _rule(self, trigger: Trigger, overlap: Overlap, missed: Missed, name: str | None) -> Rule:
        if overlap not in get_args(Overlap):
            raise ValueError(f"overlap is 'skip', 'queue' or 'parallel', not {overlap!r}.")
        if missed not in get_args(Missed):
            raise ValueError(f"missed is 'skip' or 'once', not {missed!r}.")
        if name is not None and (not isinstance(name, str) or not name):
            raise TypeError(f"The name of a job is a string that is not empty, not {name!r}.")
        return Rule(self._add, self._flow, trigger, {"overlap": overlap, "missed": missed, "name": name})

    def _add(self, job: Job) -> Job:
        with self._changed:
            if job.name in self._jobs and not self._jobs[job.name].cancelled:
                raise ValueError(
                    f"There is a job {job.name!r} already: cancel that, or give this one a name= of its own."
                )
            self._jobs[job.name] = job
        self._wake()
        return job

    # ---- the clock ------------------------------------------------------------------------------

    def tick(self, now: datetime | None = None) -> list[FlowRun]:
        """Start what is due, and return the runs that this has started; it does not wait for them.

        Args:
            now: an aware ``datetime`` that alone decides what is due; without it the time of the clock.

        Raises:
            TypeError, ValueError: ``now`` is no aware ``datetime``.
        """
        return self._tick(datetime.now(UTC) if now is None else aware(now, "tick").astimezone(UTC), None)

    def start(self) -> None:
        """Run the jobs in a thread, until ``stop``; again after that, if need be."""
        with self._changed:
            self._stopped = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="millstream-schedule", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Start nothing further, and return within a second; what is under way goes on."""
        with self._changed:
            thread, self._thread = self._thread, None
            loops, self._wakes = self._wakes, []
            self._stopped = thread is None and not loops  # it may come just before ``arun`` has begun
        self._wake()
        for wake in loops:
            wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)

    async def arun(self) -> None:
        """Run the jobs on the running event loop, until ``stop``; ``async`` tasks run on it."""
        import asyncio

        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(changed.set)
            except RuntimeError:  # the loop is closed
                pass

        with self._changed:
            if self._stopped:
                self._stopped = False
                return
            self._wakes.append(wake)
        try:
            while wake in self._wakes:
                changed.clear()
                self._tick(datetime.now(UTC), loop)
                try:
                    await asyncio.wait_for(changed.wait(), self._rest())
                except TimeoutError:
                    pass
        finally:
            with self._changed:
                if wake in self._wakes:
                    self._wakes.remove(wake)

    def _serve(self) -> None:
        """The life of the thread that runs the jobs."""
        me = threading.current_thread()
        while True:
            with self._changed:
                if self._thread is not me:
                    return
            self._tick(datetime.now(UTC), None)
            with self._changed:
                if self._thread is me and not self._woken:
                    self._changed.wait(self._rest())
                self._woken = False

    def _wake(self) -> None:
        """Something has changed: look again."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()
            wakes = self._wakes[:]
        for wake in wakes:
            wake()

    def _rest(self) -> float:
        """Return for how many seconds nothing is due."""
        now, rest = time.time(), LOOK
        for job in self.jobs:
            try:
                at = job.next_at
            except Exception:  # ``tick`` has told of it
                continue
            if at is not None:
                rest = min(rest, at.timestamp() - now)
        return max(0.0, rest)

    # ---- inside ---------------------------------------------------------------------------------

    def _tick(self, now: datetime, loop: Any) -> list[FlowRun]:
        with self._ticking:
            jobs = self.jobs
            if any(job.after is None for job in jobs):
                self._remember([job for job in jobs if job.after is None])
            runs = [run for job in jobs if (run := self._fire(job, now, loop)) is not None]
            with self._changed:
                for job in jobs:  # not those that have come meanwhile
                    if self._is_over(job) and self._jobs.get(job.name) is job:
                        del self._jobs[job.name]
            return runs

    def _is_over(self, job: Job) -> bool:
        """Whether a job that has begun has no slot any more."""
        try:
            return job.cancelled or (job.queued is None and job.next_at is None)
        except Exception:  # ``tick`` has told of it
            return False

    def _remember(self, jobs: list[Job]) -> None:
        """Find out which slots of jobs have fired in an earlier life."""
        if self._flow._durable is None:
            return
        try:
            ids = [head.id for head in self._flow.runs()]
        except CheckpointError:
            self._logger.exception("Jobs do not know what they have missed")
            return
        for job in jobs:
            slots = [slot for run_id in ids if (slot := slot_of(job.name, run_id)) is not None]
            if slots:
                job.after = max(slots)

    def _fire(self, job: Job, now: datetime, loop: Any) -> FlowRun | None:
        """Start a run of a job if it is due; whatever goes wrong is logged, and hinders no other job."""
        try:
            slot = None if job.cancelled else job.due(now)
            busy = job.run is not None and not job.run.finished
            if busy and job.overlap != "parallel":
                if job.overlap == "queue" and slot is not None:
                    job.queued = job.queued or slot
                return None
            if job.queued is not None and not job.cancelled:
                slot, job.queued = job.queued, slot
            return None if slot is None else self._start(job, slot, loop)
        except FlowClosedError:
            job.cancel()
            self._logger.error("Job %s is over: flow %s was closed", job.name, self._flow.name)
        except Exception:
            self._logger.exception("Job %s could not be started", job.name)
        return None

    def _start(self, job: Job, slot: datetime, loop: Any) -> FlowRun | None:
        run_id = f"{job.name}@{slot.astimezone(UTC).isoformat()}"
        durable = self._flow._durable
        try:
            run = self._flow._start_later(job.task, job.inputs, {"run_id": run_id}, loop)
        except CheckpointError:
            if durable is not None and durable.has(run_id):
                return None  # somebody else has fired it
            raise
        job.run = run
        run.add_done_callback(partial(self._ended, job))
        return run

    def _ended(self, job: Job, run: FlowRun) -> None:
        """A run of a job has ended."""
        error = run.take_error(keep=True)
        if error is not None:
            self._logger.error("Job %s: run %s failed", job.name, run.id, exc_info=error)
        if job.queued is not None:
            self._wake()


def slot_of(job: str, run_id: str) -> datetime | None:
    """Return the slot of a job that a run was for; None for other runs."""
    if not run_id.startswith(f"{job}@"):
        return None
    try:
        slot = datetime.fromisoformat(run_id[len(job) + 1 :])
    except ValueError:
        return None
    return slot if slot.tzinfo is not None else None


def aware(when: object, what: str) -> datetime:
    """Return an instant that says where it is meant.

    Raises:
        TypeError, ValueError: it is none.
    """
    if not isinstance(when, datetime):
        raise TypeError(f"{what}(...) takes a datetime, not {when!r}.")
    if when.utcoffset() is None:
        raise ValueError(
            f"{what}({when!r}) has no time zone: add one, such as tzinfo=datetime.UTC or ZoneInfo('Europe/Berlin')."
        )
    return when
