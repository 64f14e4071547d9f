"""The loop of a worker whose task runs are called elsewhere: in another process, on another machine.

It sends batches of calls, reports each outcome as it comes, and does what a task asks for: reads and writes of
the context, chunks, requests. A batch is as long as the calls in it are expected to take a few milliseconds, so
small calls share the cost of a message, and large ones travel alone. While a task waits here for a value, this
thread waits for it in the way that any worker does, with its place given back.
May import: lane, states, executors.remote.calls, context, errors, values, task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextvars import copy_context
from functools import partial
from threading import current_thread
from typing import TYPE_CHECKING, Any

from millstream.context import MISSING, Context, crossing
from millstream.engine.lane import PLAIN, HandedOn
from millstream.engine.states import Call as Submitted
from millstream.errors import TaskCancelledError, WorkerLostError
from millstream.executors.remote.calls import Asked, Begun, Bound, Caller, Done, Failed, Lost, Message, Returned
from millstream.task import current_run
from millstream.values import Status, StreamChunk

if TYPE_CHECKING:
    from millstream.engine.lane import Item, Lane

#: How many calls there are in a batch at most.
BATCH_MOST = 256
#: How many processes may end while they get one and the same call, before that one is blamed.
LOST_MOST = 3


def work_remote(lane: Lane, worker: Caller) -> None:
    """Have task runs called elsewhere until there are none left, or others want the place."""
    crossing.set(lane.run.context)
    try:
        while True:
            batch = Batch(lane, worker)
            if not batch.fill():
                return
            if batch.entries and not batch.work():
                return
            if worker.dismissed or (worker.queue and worker.overstays()):
                lane._go(worker)
                return
    finally:
        worker.item = None
        worker.release()


class Entry:
    """A task run in a batch."""

    __slots__ = ("encoded", "item")

    def __init__(self, item: Item, encoded: Any) -> None:
        self.item, self.encoded = item, encoded


class Batch:
    """Task runs that are called one after another in one process, and what becomes of them."""

    def __init__(self, lane: Lane, worker: Caller) -> None:
        self.lane, self.worker, self.run = lane, worker, lane.run
        self.entries: deque[Entry] = deque()  #: the first is under way, the others have not begun
        self.inbox: deque[Message] = deque()  #: messages that were not seen to yet
        self.reads: list[tuple[str, Any]] = []  #: of updates of the call under way: keys, and the very objects there

    # ---- before they are called -----------------------------------------------------------------

    def fill(self) -> bool:
        """Take what is ready; False when the worker has left its lane."""
        lane, worker, ready = self.lane, self.worker, self.lane.ready
        if not len(ready):
            return lane._pull() or lane._stay(worker)
        try:
            worker.open()  # this may take long: nothing is taken before
        except Lost as lost:
            self.run.monitor.post(self.run.lost, lane, lost.reason, lost.cause)
            lane._go(worker)
            return False
        most = min(worker.room, BATCH_MOST, (len(ready) - 1) // lane.capacity + 1)
        time, seconds = worker.batch_time, 0.0
        while (item := _take(ready)) is not None:
            entry = self._bind(item)
            if entry is not None:
                self.entries.append(entry)
                pace = item.task.pace
                seconds += time if pace is None else pace
                if item.task.terms.timeout is not None or isinstance(item.extra, Submitted):
                    break  # its process may have to be killed for it alone: nothing shall be behind it
                if self.run.enters:
                    break  # what hooks have set up begins with the call: that must not wait in a batch
            if seconds >= time or len(self.entries) >= most:
                break
        return True

    def _bind(self, item: Item) -> Entry | None:
        """Return what is to be called for a task run; None if that is settled already."""
        run, worker = self.run, self.worker
        task = item.task
        if item.status is not Status.PENDING or run.stopping or task.terms.each is not None:
            self._call_here(item)
            return None
        current_run.set(item)
        try:
            bound = task.terms.invoke(item, run.context)
            assert type(bound) is Bound, "tasks of such an executor are bound, not called"
            remaining = self._remaining(item) if run.deadline or task.terms.timeout else None
            facts = (run.id, task.name, item.id, item.path, item.attempt, bound.enters, remaining)
            return Entry(item, worker.encode(bound, facts))
        except BaseException as error:
            self._begin(item)
            run.report_failure(item, error)
            return None

    def _remaining(self, item: Item) -> float:
        """Return the seconds that a task run has if it begins now."""
        timeout: float | None = item.task.terms.timeout
        left = None if self.run.deadline is None else max(0.0, self.run.deadline - self.run.clock.now())
        return min(limit for limit in (timeout, left) if limit is not None)

    def _call_here(self, item: Item) -> None:
        """A task run that needs no other process: it is mapped over items, or has ended already."""
        run, lane = self.run, self.lane
        self.worker.item = item
        current_run.set(item)
        try:
            item.begin()
            if run.stopping:
                raise TaskCancelledError(item.id)
            self._told(item)
            # What is done to context variables must not be seen by the next one.
            output, requests = lane.outcome(item, copy_context().run(item.task.terms.invoke, item, run.context))
        except HandedOn:
            pass
        except BaseException as error:
            run.report_failure(item, error)
        else:
            run.monitor.post(run.settle, item, output, requests, None, run.clock.now())

    def _begin(self, item: Item) -> None:
        """A task run is called from now on."""
        self.worker.item = item
        current_run.set(item)
        if item.status is Status.PENDING:  # else it was cancelled in the moment in which it began
            item.status = Status.RUNNING
            self._told(item)
            if isinstance(item.extra, Submitted) and item.extra.withdrawn:
                self.run.report_failure(item, TaskCancelledError(item.id))
                self.worker.dismiss(item)

    def _told(self, item: Item) -> None:
        if item.task.watched:
            self.run.observer.attempt_began(item, current_thread().name)
            if not item.task.terms.unseen:
                self.run.began(item)
        elif item.task.began is None:
            item.task.began = self.run.clock.now()

    # ---- while they are called ------------------------------------------------------------------

    def work(self) -> bool:
        """Have them called, and report the outcomes; False when the worker has left its lane."""
        entries = self.entries
        self._begin(entries[0].item)
        try:
            if self.worker.stands_in_line and entries[0].item.task.terms.timeout is not None:
                self.run.stop_time(entries[0].item)
            self._send()
            while entries:
                self._handle(self._next())
        except Lost as lost:
            self._lose(lost)
            return False
        return True

    def _send(self) -> None:
        """Send them; to another process if the first has ended before it had them."""
        calls = [entry.encoded for entry in self.entries]
        for left in reversed(range(LOST_MOST)):
            try:
                self.worker.open()
                if self.run.stopping:
                    raise Lost("it was told to stop before it was called", withdrawn=True)
                self.worker.call(calls)
                return
            except Lost as lost:
                if lost.final or lost.withdrawn or not left:
                    raise

    def _next(self) -> Message:
        """Return the next message, waiting for it."""
        while not self.inbox:
            self.inbox.extend(self.worker.receive())
        return self.inbox.popleft()

    def _handle(self, message: Message) -> None:
        kind = type(message)
        if kind is Done or kind is Failed:
            item, at = self.entries.popleft().item, self.run.clock.now()
            self.reads.clear()
            if self.entries:
                self._begin(self.entries[0].item)
            self._report(item, message, at)
        elif kind is Begun:
            item = self.entries[0].item
            if item.task.terms.timeout is not None:
                self.run.monitor.post(self.run.start_time, item)
        elif kind is Asked:
            self._serve(self.entries[0].item, message)  # type: ignore[arg-type]
        else:
            returned = [self.entries.pop() for _ in range(message.calls)]  # type: ignore[union-attr]
            self._put_back([entry.item for entry in returned])

    def _report(self, item: Item, message: Any, at: float) -> None:
        """A call has ended, at ``at``."""
        run, task = self.run, item.task
        if type(message) is Failed:
            run.report_failure(item, message.error)
            return
        # Calls of one task take about the same time; the newest ones say most.
        task.pace = message.seconds if task.pace is None else 0.75 * task.pace + 0.25 * message.seconds
        output, requests = message.value, None
        if type(output) not in PLAIN:
            try:
                output, requests = self.lane.outcome(item, output)
            except BaseException as error:
                run.report_failure(item, error)
                return
        if run.stream_buffer is not None and run.stream_buffer.full:
            run.wait_for_room()
        run.monitor.post(run.settle, item, output, requests, None, at)

    def _put_back(self, items: Iterable[Item]) -> None:
        """Task runs, the newest first, have not begun: others may have them."""
        run, ready = self.run, self.lane.ready
        with run.monitor:
            for item in items:
                if not run.stopping:
                    ready.appendleft(item)
                elif item.status is Status.PENDING:
                    item.begin()
                    run.failed(item, TaskCancelledError(item.id))
            run.dispatch(None)

    def _lose(self, lost: Lost) -> None:
        """Whoever had the calls has ended. The oldest is lost; the others have not begun, unless nobody knows."""
        run, lane = self.run, self.lane
        if lost.final:
            run.monitor.post(run.lost, lane, lost.reason, lost.cause)
        while self.entries:
            item = self.entries.popleft().item
            self._begin(item)
            cancelled = lost.withdrawn or lost.final  # then it is the run that has failed
            run.report_failure(
                item, TaskCancelledError(item.id) if cancelled else WorkerLostError(item.id, lost.reason)
            )
            if not lost.unsure:
                break
        self._put_back([entry.item for entry in reversed(self.entries)])
        lane._go(self.worker)

    # ---- what a task asks for -------------------------------------------------------------------

    def _serve(self, item: Item, asked: Asked) -> None:
        """Do what a task asks for, and answer."""
        worker = self.worker
        try:
            if self._would_wait(asked):
                self._before_waiting(item)
            answer = OFFERED[asked.what](self, item, *asked.args)
            if asked.waits:
                worker.answer(answer)
        except Lost:
            raise
        except BaseException as error:
            if asked.waits:
                worker.refuse(error)
            else:
                self.run.report_failure(item, error)

    def _would_wait(self, asked: Asked) -> bool:
        if not asked.waits or asked.what not in ("get", "read") or asked.args[0] in self.run.context:
            return False
        return asked.what == "get" or not asked.args[1]  # an update with a default does not wait

    def _before_waiting(self, item: Item) -> None:
        """The task under way is going to wait: nothing shall wait with it, and others have its process."""
        self.worker.ask_back()
        while True:
            message = self._next()
            self._handle(message)
            if type(message) is Returned and message.asked:
                break
        self.worker.lend(partial(self.run.monitor.post, self.run.blocked.give_up, item))

    @property
    def context(self) -> Context[Any]:
        return self.run.context

    def _find(self, item: Item, key: str) -> tuple[bool, Any]:
        value = self.context.get(key, MISSING_HERE)
        return (False, None) if value is MISSING_HERE else (True, value)

    def _get(self, item: Item, key: str, timeout: float | None, external: bool, has_default: bool) -> tuple[bool, Any]:
        default = MISSING_HERE if has_default else MISSING
        value = self.context.get(key, default, timeout=timeout, external=external)
        return (False, None) if value is MISSING_HERE else (True, value)

    def _set(self, item: Item, key: str, value: Any) -> None:
        self.context.set(key, value)

    def _append(self, item: Item, key: str, value: Any) -> None:
        self.context.append(key, value)

    def _delete(self, item: Item, key: str) -> None:
        self.context.delete(key)

    def _read(self, item: Item, key: str, has_default: bool) -> tuple[bool, Any, int]:
        """Begin an update: remember the very object that ``swap`` must find again; return where, as well."""
        found, value = self._find(item, key)
        if not found and not has_default:
            found, value = self._get(item, key, None, False, False)
        self.reads.append((key, value if found else MISSING_HERE))
        return found, value, len(self.reads) - 1

    def _swap(self, item: Item, key: str, new: Any, place: int) -> bool:
        """End an update; False when another one came in between."""
        read, old = self.reads[place]
        assert read == key, "an update writes what it has read"
        self.reads[place] = key, None
        return self.context._swap(key, old, new, MISSING_HERE)

    def _keys(self, item: Item) -> list[str]:
        return list(self.context.to_dict())

    def _to_dict(self, item: Item) -> dict[str, Any]:
        return self.context.to_dict()

    def _deps(self, item: Item) -> Any:
        return self.context.deps

    def _metadata(self, item: Item) -> dict[str, Any]:
        return dict(self.context.metadata)

    def _emit(self, item: Item, task_id: str, value: Any) -> None:
        self.run.emit(item, StreamChunk(task_id, value))

    def _progress(self, item: Item, done: float, total: float | None) -> None:
        item.progress(done, total)

    def _yield(self, item: Item, value: Any) -> None:
        self.run.emit(item, StreamChunk(item.id, value))

    def _request(self, item: Item, requests: list[Any]) -> None:
        for request in requests:
            self.run.request(item, request)

    def _refuse(self, item: Item, error: BaseException) -> None:
        raise error


def _take(ready: Any) -> Any:
    try:
        return ready.plain.popleft()
    except IndexError:
        return ready.take()


#: No value that anybody could have set.
MISSING_HERE = object()

#: What a task elsewhere can ask for.
OFFERED: dict[str, Callable[..., Any]] = {
    "find": Batch._find,
    "get": Batch._get,
    "set": Batch._set,
    "append": Batch._append,
    "delete": Batch._delete,
    "read": Batch._read,
    "swap": Batch._swap,
    "keys": Batch._keys,
    "to_dict": Batch._to_dict,
    "deps": Batch._deps,
    "metadata": Batch._metadata,
    "emit": Batch._emit,
    "progress": Batch._progress,
    "yield": Batch._yield,
    "request": Batch._request,
    "refuse": Batch._refuse,
}
