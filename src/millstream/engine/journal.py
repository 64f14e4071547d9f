"""The journal of a durable run: what has happened in it, as entries of a store.

The scheduler is a pure state machine, so a run is what went into it, in order. That is what the journal holds: which
task runs gave what and asked for what, attempts that failed, what was set in the context. ``recall`` puts it in again.
An entry is about a task run by its *path*, which is derived from who asked for it and in which place, so it is the
same when a crash makes it run again.

Entries are written in the order in which things happened, under the monitor of the run. A completion is committed
before anything comes of it, with all that was written before it; with ``sync="group"`` a thread of ours commits
within ``GROUP_TIME``, or when it is ``GROUP_SIZE`` long. May import: lane, states, stores.base, stores.serial,
task, report, values, errors.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from millstream.errors import CheckpointError, FlowError
from millstream.report import ErrorReport
from millstream.stores.base import Entry, Store, StoredRun
from millstream.stores.serial import UnfitError, written
from millstream.task import current_run
from millstream.values import NextTask, Status

if TYPE_CHECKING:
    from millstream.engine.lane import Item
    from millstream.engine.states import Settled

#: With ``sync="group"`` what has happened is committed after so many seconds.
GROUP_TIME = 0.05

#: Or before that, when it is this long, in characters: what waits to be written is bounded.
GROUP_SIZE = 1 << 18

#: How many requests of an iterable are one entry.
PAGE = 256


class Journal:
    """Writes what happens in one run.

    Args:
        store: has created, or claimed, the run.
        run_id: of the run.
        wall: returns the time of the world for an instant of the run's clock, or for now.
        broken: is told when something could not be written, in any thread.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        wall: Callable[[float | None], float],
        broken: Callable[[CheckpointError], object],
    ) -> None:
        self.store, self.run_id = store, run_id
        self.skip: dict[int, int] = {}  #: chunks that were delivered before, by the paths of those that emit them again
        self._wall, self._broken = wall, broken
        self._at_once = store.sync != "group"
        self._emitted: dict[int, int] = {}
        self._committing = threading.Lock()  # one commit at a time, in order
        self._changed = threading.Condition()
        # Guarded by _changed: everything below.
        self._entries: list[Entry] = []  # not committed yet
        self._size = 0  # of their texts
        self._writer: threading.Thread | None = None
        self._closed = self._refused = False
        self._was: StoredRun | None = None
        self.failure: CheckpointError | None = None  #: why nothing is written any more

    # ---- what happens -----------------------------------------------------------------------------

    def finishing(self, item: Item, output: Any, asked: Sequence[NextTask] | None, pages: str | None) -> Entry:
        """A task run is about to succeed; return what says so, to be ``put``. ``commit_now`` comes next.

        Args:
            asked: the list of its next tasks; None: it leaves that to the edges.
            pages: instead of that, the name of the list that ``drained`` has written.

        Raises:
            CheckpointError: something in it cannot be written; nothing was.
        """
        place = item.extra.index if hasattr(item.extra, "index") else None
        task = item.task
        facts: list[Any] = [
            task.name, item.number, place, item.attempt, self._at(task.began), self._wall(None),
            pages if pages is not None else None if asked is None else [shape_of(request) for request in asked],
            calls_of(item), getattr(item.extra, "digest", None), getattr(item.extra, "needs", None),
        ]  # fmt: skip
        values = [self._plain(output, item, "its output")]
        if asked is not None:
            values += [self._inputs(request, item) for request in asked if request.inputs is not None]
        return Entry("finished", item.path, self._written(facts, values))

    def retried(self, item: Item, due: float, error: BaseException) -> None:
        """An attempt has failed, and the next one comes at ``due``."""
        self._emitted.pop(item.path, None)  # the next attempt emits all of it again
        self.skip.pop(item.path, None)
        facts = [item.task.name, item.id, item.attempt, self._wall(due), *said_of(error), calls_of(item)]
        self._add(("retry", item.path, facts, ()), commit=True)

    def failed(self, item: Any, status: Status, error: ErrorReport) -> None:
        """A task run has failed for good."""
        facts = [item.task.name, item.id, item.attempt, str(status), self._at(item.task.began), self._wall(None)]
        self._add(("failed", item.path, [*facts, error.type, error.message, error.traceback], ()))

    def settled(self, entry: Settled, error: ErrorReport | None) -> None:
        """A task run, or a task, has ended without being called."""
        said = None if error is None else [error.type, error.message, error.traceback]
        name, run = entry.task.name, entry.run
        facts = [name, name if run is None else run.id, str(entry.status), self._wall(None), said]
        self._add(("settled", None if run is None else run.path, facts, ()))

    def asking(self, item: Item, request: NextTask) -> Callable[[], None]:
        """A generator task is about to make a request, while it goes on; return what notes that it has.

        Raises:
            CheckpointError: its inputs cannot be written.
        """
        values = () if request.inputs is None else (self._inputs(request, item),)
        return partial(self._add, ("asked", item.path, shape_of(request), values))

    def drained(self, item: Item, requests: Iterable[Any]) -> str:
        """Write an iterable of requests, page by page; return the name of the list. No lock held.

        Raises:
            CheckpointError: the inputs of one cannot be written.
            TypeError: something in it is no request.
        """
        name, iterator = os.urandom(6).hex(), iter(requests)
        while page := list(islice(iterator, PAGE)):
            for request in page:
                if not isinstance(request, NextTask):
                    raise TypeError(f"next_tasks takes NextTask values, not {request!r}.")
            values = [self._inputs(request, item) for request in page if request.inputs is not None]
            self._add(("page", item.path, [name, [shape_of(request) for request in page]], values))
            self.commit()  # it is read from the store, and not kept in memory
        return name

    def pulled(self, item: Item, count: int, ended: bool) -> None:
        """So many more requests of the list that a task run has given were made."""
        self._add(("pulled", item.path, [count, ended], ()))

    def emitted(self, item: Item) -> bool:
        """A task run emits one more chunk; False when it was delivered before the run was resumed."""
        path = item.path
        count = self._emitted[path] = self._emitted.get(path, 0) + 1
        if count <= self.skip.get(path, 0):
            return False
        self._add(("emitted", path, [count], ()), commit=self._at_once)
        return True

    def resumed(self) -> None:
        """The run goes on here: what had not finished begins anew."""
        self._add(("resumed", None, [self._wall(None)], ()))

    # What ``Context`` calls, before it changes anything.

    def set(self, key: str, value: Any) -> None:
        """A key of the context is about to be set.

        Raises:
            CheckpointError: the value cannot be written.
        """
        self._change("set", key, self._value_of(key, value))

    def append(self, key: str, value: Any) -> None:
        """A value is about to be appended to the list of a key.

        Raises:
            CheckpointError: it cannot be written.
        """
        self._change("append", key, self._value_of(key, value))

    def delete(self, key: str) -> None:
        """A key is about to be removed."""
        self._change("delete", key)

    def _change(self, kind: str, key: str, *values: Any) -> None:
        who: Any = current_run.get()
        inside = who is not None and who.run_id == self.run_id
        # What comes from outside is there for good when ``set`` returns.
        self._add((kind, who.path if inside else None, [key], values), commit=not inside)

    def reader(self) -> Reader:
        """Return what reads this journal."""
        return Reader(self.store, self.run_id)

    def digest(self, name: str, args: Any, kwargs: Any, call_key: str | None) -> str:
        """Return what tells a submitted call from another one.

        Raises:
            CheckpointError: its arguments cannot be kept.
        """
        try:
            text = written(self.store.serializer.plain((args, kwargs)))
        except UnfitError as error:
            what = f"The arguments of a call of {name} in run {self.run_id} cannot be kept"
            raise CheckpointError(f"{what}: (args, kwargs){error.path} {error.problem}.") from error
        if call_key is not None:
            return f"key {call_key}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    # ---- committing -----------------------------------------------------------------------------

    def _add(self, entry: tuple[str, int | None, Any, Sequence[Any]], *, commit: bool = False) -> None:
        kind, path, facts, values = entry
        self.put(Entry(kind, path, self._written(facts, values)), commit=commit)

    def _written(self, facts: Any, values: Sequence[Any]) -> str:
        try:
            return written(facts, values)
        except UnfitError as error:
            raise CheckpointError(f"Something of run {self.run_id} cannot be kept: it {error.problem}.") from error

    def put(self, entry: Entry, *, commit: bool = False) -> None:
        """Something has happened; ``commit``: it is to be written at once, unless it may wait a little."""
        with self._changed:
            if self.failure is not None:
                if commit:
                    raise self.failure
                return  # the run is about to end because of it
            self._entries.append(entry)
            self._size += len(entry.text)
            if not self._at_once:
                if self._writer is None:
                    self._writer = threading.Thread(target=self._serve, name="millstream-journal", daemon=True)
                    self._writer.start()
                self._changed.notify_all()
        if commit and (self._at_once or entry.key is None):
            self.commit()

    def commit_now(self) -> None:
        """Write what was not written yet, unless it may wait a little.

        Raises:
            CheckpointError: as ``commit``.
        """
        if self._at_once or self.failure is not None or self._size >= GROUP_SIZE:
            self.commit()

    def commit(self) -> None:
        """Write what was not written yet.

        Raises:
            CheckpointError: it cannot be written; from now on nothing is.
        """
        with self._committing:
            with self._changed:
                entries, self._entries, self._size = self._entries, [], 0
                if self.failure is not None:
                    raise self.failure
            if entries:
                try:
                    self.store.append(self.run_id, entries)
                except Exception as error:
                    raise self._fails(error) from error

    def finish(self, status: Status, error: ErrorReport | None, others: Sequence[tuple[str, str, int, int]]) -> None:
        """The run has ended. No lock held.

        Args:
            status: of the run.
            error: why it has ended, if not well.
            others: tasks that have not succeeded: what has become of them, how many runs of them have ended, and
                the newest attempt.

        Raises:
            CheckpointError: that cannot be written.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            writer = self._writer
        if writer is not None and writer is not threading.current_thread():  # it may be who ends the run
            writer.join()
        if self.failure is not None:
            self.store.release(self.run_id)
            raise self.failure
        if self._refused:
            self._give_back()
            return
        said = None if error is None else [error.type, error.message, error.traceback]
        end = Entry("end", None, written([str(status), self._wall(None), said, others]))
        try:
            self.store.finish(self.run_id, status, self._wall(None), [*self._entries, end])
        except Exception as error:
            self.store.release(self.run_id)
            raise self._fails(error) from error

    def refused(self, was: StoredRun | None) -> None:
        """The run does not go on after all: it is to be what it was; None: it was made just now."""
        with self._changed:
            self._refused, self._was, self._entries = True, was, []

    def _give_back(self) -> None:
        was = self._was
        if was is not None and was.finished_at is not None:
            self.store.finish(self.run_id, was.status, was.finished_at, [])
        else:
            self.store.release(self.run_id)
            if was is None:
                self.store.forget(self.run_id)

    def _serve(self) -> None:
        """The life of the thread that commits groups."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._entries or self._closed)
                if not self._closed:
                    self._changed.wait_for(lambda: self._closed, GROUP_TIME)
                if self._closed:
                    return  # ``finish`` writes the rest
            try:
                self.commit()
            except CheckpointError as error:
                self._broken(error)
                return

    def _fails(self, error: Exception) -> CheckpointError:
        """The store has failed: nothing is written any more. Return what to raise."""
        # The store may be somebody's own, and raise anything.
        failure = error if isinstance(error, CheckpointError) else CheckpointError(f"{self.store!r} failed: {error!r}.")
        with self._changed:
            self.failure = failure
        return failure

    # ---- values -----------------------------------------------------------------------------------

    def _at(self, instant: float | None) -> float | None:
        return None if instant is None else self._wall(instant)

    def _plain(self, value: Any, item: Any, what: str) -> Any:
        try:
            return self.store.serializer.plain(value)
        except UnfitError as error:
            raise CheckpointError(
                f"Task run {item.id} of run {self.run_id} cannot be kept: {what}{error.path} {error.problem}."
            ) from error

    def _inputs(self, request: NextTask, item: Any) -> Any:
        return self._plain(request.inputs, item, f"what it asks {request.id} with, ")

    def _value_of(self, key: str, value: Any) -> Any:
        try:
            return self.store.serializer.plain(value)
        except UnfitError as error:
            raise CheckpointError(
                f"The value of {key!r} in run {self.run_id} cannot be kept: it{error.path} {error.problem}."
            ) from error


# ---- what entries say -----------------------------------------------------------------------------


def shape_of(request: NextTask) -> list[Any]:
    """Return a request without the values of its inputs."""
    return [request.id, request.spawn_another, request.join, request.priority, request.inputs is not None]


class Reader:
    """Reads entries of a journal.

    Args:
        store: that the run is in.
        run_id: of the run.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._run_id = store, run_id

    def facts(self, entry: Entry) -> tuple[Any, list[Any]]:
        """Return the facts of an entry, and its values.

        Raises:
            CheckpointError: it is none of ours, or has a value that cannot be read.
        """
        try:
            return self._store.serializer.read(entry.text)
        except UnfitError as error:
            raise CheckpointError(f"An entry in the journal of run {self._run_id} {error.problem}.") from error

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Tell of facts that are of other kinds than what is written.

        Raises:
            CheckpointError: that has come up.
        """
        try:
            yield
        except FlowError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise CheckpointError(
                f"The journal of run {self._run_id} is damaged ({error!r}): bring back a copy of its store."
            ) from error

    def requests(self, shapes: Iterable[Sequence[Any]], values: Iterable[Any]) -> list[NextTask]:
        """Return requests."""
        given = iter(values)
        requests = []
        for name, spawns, joins, priority, has_inputs in shapes:
            inputs: Mapping[str, Any] | None = next(given) if has_inputs else None
            requests.append(NextTask(name, inputs, spawns, join=joins, priority=priority))
        return requests

    def pages(self, path: int, name: str) -> Iterator[NextTask]:
        """Return the requests of a list that ``drained`` has written, read as they are needed."""
        for entry in self._store.entries(self._run_id, ("page",), path):
            with self.reading():
                (written, shapes), values = self.facts(entry)
                requests = self.requests(shapes, values) if written == name else []
            yield from requests


def calls_of(item: Item) -> list[Any]:
    """Return how many calls a task run has submitted without a key; then the others: keys, and how many came before."""
    keys: dict[int, int] = getattr(item, "call_keys", {})
    return [getattr(item, "calls", 0), *map(list, keys.items())]


def call_paths(path: int, calls: Sequence[Any]) -> Iterator[int]:
    """Return the paths of calls that a task run has submitted, in order; ``calls`` is what ``calls_of`` has said."""
    count, *keys = calls
    place = 0
    for key, before in [*keys, (None, count)]:
        while place < before:
            place += 1
            yield hash((path, 3, place))
        if key is not None:
            yield hash((path, 5, key))


def said_of(error: BaseException) -> tuple[str, str]:
    """Return the class of an error and what it says."""
    try:
        return type(error).__qualname__, str(error)
    except Exception:  # a user's class may raise whatever it likes
        return type(error).__qualname__, ""


def stable(key: str) -> int:
    """Return a number for a text that is the same in each process."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
