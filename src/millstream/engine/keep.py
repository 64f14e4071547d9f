"""What a durable run keeps: between the driver, which says what happens, and the journal, which writes it.

A task run counts as finished when what it gave is written *and* the calls that it has submitted have ended well: a
call that nobody waits for would be lost with the process otherwise. Until then it has *returned*: what it asked for
starts, and its chunk is delivered once, but a resume calls it again. A call does not count when the task has
cancelled it, or has asked for its failure, or when it belongs to an attempt that has failed.

All methods are called under the monitor of the run, unless they say otherwise.
May import: journal, lane, states, report, stores.base, values, errors.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from millstream.engine.journal import Journal
from millstream.engine.lane import Feed, Item, Lane
from millstream.engine.states import Call, Settled
from millstream.errors import CheckpointError, TaskCancelledError
from millstream.report import ErrorReport
from millstream.stores.base import Entry
from millstream.values import Status

if TYPE_CHECKING:
    from millstream.engine.run import FlowRun

#: A task run, its output, what it asks for, the lane of the worker that reports it, and when it ended.
Report = tuple[Item, Any, Any, Lane | None, float]


class Keeper:
    """Keeps what happens in one run.

    Args:
        run: has not begun.
        journal: of it.
        settle: the driver's own ``settle``.
    """

    def __init__(self, run: FlowRun, journal: Journal, settle: Callable[..., None]) -> None:
        self.journal = journal
        self.delivered: set[int] = set()  #: paths of what has returned before the run was resumed
        self._run, self._settle = run, settle
        self._reports: list[Report] = []  # outputs that are to be committed
        # Failures to be written: of a task run that was called; or of one that was not.
        self._failures: deque[tuple[Item, Status, BaseException] | Settled] = deque()
        self._writing = threading.Lock()  # held while they are
        self._open_calls: dict[int, set[Call]] = {}  # by the paths of the task runs that have submitted them
        self._returned: dict[int, tuple[Entry, Call | None]] = {}  # what is written when their calls have ended well
        self._unasked: dict[Any, Call] = {}  # calls that have failed, by their handles

    # ---- task runs that succeed -----------------------------------------------------------------

    def settle(self, item: Item, output: Any, requests: Any, lane: Lane | None, at: float | None = None) -> None:
        """A task run gave its output, which is written before anything comes of it.

        What others report while something is being committed is committed together.
        """
        self._reports.append((item, output, requests, lane, self._run.clock.now() if at is None else at))
        if len(self._reports) == 1:
            self._run.monitor.posted.append((self._commit_reports, ()))

    def _commit_reports(self) -> None:
        reports, self._reports = self._reports, []
        # What one asks for, or writes, decides what the next one may ask for, or write.
        if self._run.plan.max_task_runs is not None or any(report[0].task.terms.outputs for report in reports):
            for report in reports:
                self._commit([report])
        else:
            self._commit(reports)

    def _commit(self, reports: list[Report]) -> None:
        run = self._run
        kept = [report for report in reports if self._is_written(*report)]
        try:
            self.journal.commit_now()
        except CheckpointError as error:
            run._end_early(Status.FAILED, error)
            for item, *_ in kept:
                if item.status is Status.RUNNING:
                    run._fail(item, TaskCancelledError(item.id), Status.CANCELLED)
            return
        for report in kept:
            call, path = report[0].extra, report[0].path
            self._settle(*report)
            if isinstance(call, Call) and report[0].status is Status.SUCCESS and path not in self._returned:
                self.call_ended(call)

    def _is_written(self, item: Item, output: Any, requests: Any, *_: Any) -> bool:
        """Write that a task run succeeds, unless it does not; if that cannot be written, it fails."""
        run, pages = self._run, None
        if item.status is Status.RUNNING:
            try:
                if item.task.terms.outputs is not None:
                    run._changed_by(item.task, output)
                if item.task.terms.routes is not None:
                    requests = run._routed(item, output, requests)
                if isinstance(requests, Feed):
                    requests, pages = None, requests.pages
                elif requests:
                    run.scheduler.check(requests, item)
                entry = self.journal.finishing(item, output, requests, pages)
                if item.path in self._open_calls:
                    self._returned[item.path] = entry, item.extra if isinstance(item.extra, Call) else None
                    entry = entry._replace(kind="returned")
                self.journal.put(entry)
            except CheckpointError as error:
                run._explain(item, error)
                run._fail(item, error, Status.FAILED)
                return False
            except Exception:  # what cannot be served: ``settle`` finds that out as well
                pass
        return True

    def emits(self, item: Item) -> bool:
        """A task run emits a chunk; return whether it is to be delivered."""
        try:
            return self.journal.emitted(item)
        except CheckpointError as error:
            self._run._end_early(Status.FAILED, error)
            return False

    # ---- calls that task runs submit ------------------------------------------------------------

    def submitted(self, call: Any, path: int, needs: list[Any], parent: Item | None) -> None:
        """A call was submitted, by a task run or from outside."""
        call.path, call.needs = path, [need.path for need in needs]
        if parent is not None:
            self._open_calls.setdefault(parent.path, set()).add(call)
            call.parent = parent.path

    def call_ended(self, call: Call | None) -> None:
        """A call has ended well, or does not count any more; so may who has submitted it."""
        while call is not None:
            parent = getattr(call, "parent", None)
            calls = self._open_calls.get(parent) if parent is not None else None
            if calls is None or call not in calls:
                return
            calls.discard(call)
            if calls:
                return
            del self._open_calls[parent]  # type: ignore[arg-type]  # it has calls
            entry, call = self._returned.pop(parent, (None, None))  # type: ignore[arg-type]
            if entry is not None:
                self.journal.put(entry)
                self.try_to(self.journal.commit_now)

    def call_failed(self, call: Any) -> None:
        """A call has failed for good; nobody has asked for that yet."""
        if call.handle is not None and hasattr(call, "parent"):
            self._unasked[call.handle] = call

    def call_asked_for(self, handle: Any) -> None:
        """Somebody knows of the failure of a call."""
        self.call_ended(self._unasked.pop(handle, None))

    # ---- task runs that do not succeed ----------------------------------------------------------

    def retried(self, item: Item, due: float, error: BaseException) -> None:
        """An attempt has failed, and the next one comes at ``due``."""
        self._open_calls.pop(item.path, None)  # they belong to that attempt
        self.try_to(lambda: self.journal.retried(item, due, error))

    def failed(self, item: Item, status: Status, error: BaseException) -> None:
        """A task run has failed for good."""
        self._open_calls.pop(item.path, None)
        self._failures.append((item, status, error))
        self._run.monitor.later.append((self._write_failures, ()))

    def settled(self, entry: Settled) -> None:
        """A task run, or a task that was expected, has ended without being called."""
        self._failures.append(entry)
        self._run.monitor.later.append((self._write_failures, ()))

    def _write_failures(self) -> None:
        """Write what has failed. No lock held: making text of an error is a user's code."""
        with self._writing:
            while self._failures:
                failure = self._failures.popleft()
                if isinstance(failure, Settled):
                    report = None if failure.error is None else ErrorReport.of(failure.error)
                    self.journal.settled(failure, report)
                else:
                    item, status, error = failure
                    self.journal.failed(item, status, ErrorReport.of(error))

    def try_to(self, write: Callable[[], object]) -> None:
        """Write something; if the store fails, the run ends."""
        try:
            write()
        except CheckpointError as error:
            self._run._end_early(Status.FAILED, error)

    # ---- the end --------------------------------------------------------------------------------

    def end(self, why: BaseException | None) -> CheckpointError | None:
        """The run has ended; return why that could not be written. No lock held; nobody was told yet."""
        run = self._run
        self._write_failures()
        rows = () if run.record is None or run.status is Status.SUCCESS else run.record.report().tasks.items()
        others = [
            (name, str(row.status), row.runs, row.attempt) for name, row in rows if row.status is not Status.SUCCESS
        ]
        try:
            self.journal.finish(run.status, None if why is None else ErrorReport.of(why), others)
        except CheckpointError as error:
            return error
        return None
