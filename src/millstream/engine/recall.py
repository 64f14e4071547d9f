"""A run goes on from its journal: what has happened is put into the state machine again, in order.

A task run that had finished is not called: it gives what it gave. It is found by its path when the one that asked
for it is there. Entries that come too early for that (the task run hangs on one that is to run again: a generator
that had not finished, something that had failed, a map under way) are *known*, and wait: as soon as the scheduler
makes a task run of that path, it has finished. Everything else that the scheduler has made runs.

What a task run that has not finished had appended is left out, since it will be appended again; what it had set
stays, since others may have read it. Called under the monitor of the run, which has not begun or is about to
dispatch. May import: journal, lane, states, ready, values, errors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from millstream.engine.journal import Journal, Reader
from millstream.engine.lane import Feed
from millstream.engine.ready import Ready
from millstream.engine.states import Call, Coalesced, Place, Scope, TaskRun
from millstream.errors import CheckpointError, FlowError
from millstream.stores.base import Entry
from millstream.values import NextTask

if TYPE_CHECKING:
    from millstream.engine.run import FlowRun


class Finished:
    """A task run that had finished, as its entry says."""

    __slots__ = ("asked", "attempt", "began", "digest", "ended", "name", "number", "place", "values")

    def __init__(self, facts: Sequence[Any], values: Sequence[str]) -> None:
        self.name, self.number, self.place, self.attempt, self.began, self.ended, self.asked, self.digest = facts
        self.values = values  #: as text: its output, then the inputs of its requests


class Recall:
    """Puts the journal of a run into that run again.

    Args:
        run: has not begun.
        reader: of the journal.
        entries: of the journal, in order.
        again: names of tasks whose task runs are to run again, with all that came after them: what does not have
            its place right then is no longer true.
    """

    def __init__(
        self, run: FlowRun, reader: Reader, entries: Iterable[Entry], again: frozenset[str] | None = None
    ) -> None:
        self._run, self._reader, self._entries = run, reader, entries
        self._again = again
        self._live: dict[int, Any] = {}  # what the scheduler has made and nobody calls yet, by path
        self._known: dict[int, Finished] = {}
        self._waiting: deque[Any] = deque()  # made, and known
        self._asked: dict[int, list[NextTask]] = {}  # by generator tasks
        self._pulled: dict[int, list[Any]] = {}  # from the lists of task runs that are only known: how many, and if all
        self._feeds: dict[int, Feed] = {}
        self._retries: dict[int, tuple[Any, float]] = {}  # attempts that wait, and until when
        self._finished: set[int] = set()
        self._appended: dict[str, list[int | None]] = {}  # who has appended what, in lists of the context
        self._changes: dict[int, list[tuple[Entry, Any, list[str]]]] = {}  # of the context, that may be taken back
        self._emitted: dict[int, int] = {}
        self._limited: dict[int, Any] = {}  # made, and wait for the limits that they use
        self.replaying = True  #: nothing is called yet

    # ---- the scheduler's side -------------------------------------------------------------------

    def queue(self) -> Ready:
        """Return a ready queue that takes what is to be called, and nothing else."""
        return Sieve(self)

    def takes(self, item: Any) -> bool:
        """Something is ready to be called; return whether it is not to be, for now."""
        if item.path in self._known:
            self._waiting.append(item)
            return True
        if self.replaying:
            self._live[item.path] = item
        return self.replaying

    def serve(self) -> None:
        """Finish what is known."""
        while self._waiting:
            item = self._waiting.popleft()
            self._finish(item, self._known.pop(item.path))

    def check_call(self, name: str, path: int, digest: str | None) -> None:
        """Refuse a submitted call when another one had finished in its place.

        Raises:
            CheckpointError: so it is.
        """
        found = self._known.get(path)
        if found is not None and (found.name != name or found.digest != digest):
            how = "with other arguments" if found.name == name else f"and there was a call of {found.name}"
            raise CheckpointError(
                f"Run {self._run.id} goes on with a call of {name} where it had finished one {how}: submit the same "
                "calls in the same order, or give each a call_key of its own."
            )

    # ---- the journal --------------------------------------------------------------------------------

    def replay(self) -> None:
        """Put all of it in. The first task runs are there already.

        Raises:
            CheckpointError: the flow is not one that this could have happened in.
        """
        entries, self._entries = self._entries, ()
        for entry in entries:
            step = STEPS.get(entry.kind)
            if step is not None:
                try:
                    step(self, entry, *self._reader.facts(entry))
                    self.serve()
                except FlowError as error:
                    if isinstance(error, CheckpointError):
                        raise
                    raise CheckpointError(f"Run {self._run.id} cannot go on with the tasks of now: {error}") from error
                if self._run.scheduler.outbox:
                    self._sort_out()
        self._take_back()
        self._journal.skip = {path: n for path, n in self._emitted.items() if path not in self._finished}
        self._journal.commit()

    @property
    def _journal(self) -> Journal:
        journal = self._run.journal
        assert journal is not None, "only a run with a journal is recalled"
        return journal

    def _sort_out(self) -> None:
        """Look at what the scheduler leaves to the driver: limits are not waited for here, nothing is told twice."""
        scheduler = self._run.scheduler
        said, scheduler.outbox = scheduler.outbox, []
        for entry in said:
            if isinstance(entry, TaskRun):
                self._limited[entry.path] = entry
                if entry.path in self._known:
                    scheduler.granted(self._limited.pop(entry.path))
            elif not isinstance(entry, Coalesced):
                scheduler.outbox.append(entry)

    def set(self, key: str, value: Any) -> None:
        """A value comes from outside, for those that wait for it.

        Raises:
            CheckpointError: it cannot be kept.
        """
        self._journal.set(key, value)
        self._run.context._values[key] = value

    def go_on(self) -> None:
        """Everything that is left is to be called."""
        self.replaying = False
        run, live = self._run, self._live
        self._live = {}
        run.scheduler.outbox.extend(self._limited.values())
        self._limited = {}
        for item in sorted(live.values(), key=lambda item: item.order):
            (item.task.queue.rank if item.priority else item.task.queue.put)(item)
        for path, (item, due) in self._retries.items():
            if path not in self._finished:
                run._delay(item, run.clock.now() + due - run.observer.wall())
        for feed in self._feeds.values():
            run._lane_of(feed).feeds.append(feed)
        self._feeds, self._retries = {}, {}
        self.serve()

    # ---- steps, by the kinds of entries ------------------------------------------------------------

    def _has_finished(self, entry: Entry, facts: Any, values: list[str]) -> None:
        path = entry.key
        assert path is not None, "it is about a task run"
        found = Finished(facts, values)
        delayed = self._retries.pop(path, None)
        if delayed is not None:
            self._run.scheduler.due(delayed[0])
        if path in self._limited:
            self._run.scheduler.granted(self._limited.pop(path))
        item = self._live.pop(path, None)
        if self._again is not None:
            if item is None or found.name in self._again:
                if item is not None:
                    self._live[path] = item
                return
            for change in self._changes.pop(path, ()):
                self._change(*change)
                self._journal.copied(change[0])
            for page in self._reader.page_entries(path) if isinstance(found.asked, str) else ():
                self._journal.copied(page)
            self._journal.copied(entry)
        self._finished.add(path)
        if found.place is None:
            self._run.context._values[found.name] = self._reader.value(values[0])
            self._appended.pop(found.name, None)
        if item is None:
            self._known[path] = found
        else:
            self._finish(item, found)

    def _has_failed_once(self, entry: Entry, facts: Any, _: list[str]) -> None:
        assert entry.key is not None, "it is about a task run"
        _, _, attempt, due, *_ = facts
        waiting = self._retries.pop(entry.key, None)
        if waiting is not None:
            self._run.scheduler.due(waiting[0])
        item = self._live.pop(entry.key, None)
        if item is not None and self._again is None:
            item.begin()
            again = self._run.scheduler.retry(item)
            again.attempt = attempt + 1
            self._retries[entry.key] = again, due
        elif item is not None:
            self._live[entry.key] = item

    def _has_asked(self, entry: Entry, facts: Any, values: list[str]) -> None:
        assert entry.key is not None, "it is about a task run"
        self._asked.setdefault(entry.key, []).extend(self._reader.requests([facts], values))
        self._keep(entry)

    def _was_pulled(self, entry: Entry, facts: Any, _: list[str]) -> None:
        assert entry.key is not None, "it is about a task run"
        feed = self._feeds.get(entry.key)
        if feed is not None:
            self._pull(entry.key, feed, *facts)
            self._keep(entry)
        elif self._again is None:
            count, ended = self._pulled.get(entry.key, (0, False))
            self._pulled[entry.key] = [count + facts[0], ended or facts[1]]

    def _has_emitted(self, entry: Entry, facts: Any, _: list[str]) -> None:
        assert entry.key is not None, "it is about a task run"
        if self._again is None:
            self._emitted[entry.key] = facts[0]

    def _has_changed(self, entry: Entry, facts: Any, values: list[str]) -> None:
        if self._again is not None and entry.key is not None:
            self._changes.setdefault(entry.key, []).append((entry, facts, values))
            return
        self._change(entry, facts, values)
        if entry.key is None:
            self._keep(entry)

    def _keep(self, entry: Entry) -> None:
        if self._again is not None:
            self._journal.copied(entry)

    # ---- the context --------------------------------------------------------------------------------

    def _change(self, entry: Entry, facts: Any, values: list[str]) -> None:
        context = self._run.context._values
        key = facts[0]
        if entry.kind == "delete":
            context.pop(key, None)
            self._appended.pop(key, None)
        elif entry.kind == "set":
            context[key] = self._reader.value(values[0])
            self._appended.pop(key, None)
        else:
            items = context.setdefault(key, [])
            if isinstance(items, list):  # else the append was refused
                owners = self._appended.setdefault(key, [None] * len(items))
                items.append(self._reader.value(values[0]))
                owners.append(entry.key)

    def _take_back(self) -> None:
        """What was appended by those that will run again is appended again then."""
        context, finished = self._run.context._values, self._finished
        for key, owners in self._appended.items():
            kept = [n for n, owner in enumerate(owners) if owner is None or owner in finished]
            if len(kept) < len(owners):
                items = context[key]
                context[key] = [items[n] for n in kept]
                if not kept:
                    del context[key]
        self._appended = {}

    # ---- task runs --------------------------------------------------------------------------------

    def _finish(self, item: Any, found: Finished) -> None:
        """A task run gives what it gave."""
        run, scheduler, task = self._run, self._run.scheduler, item.task
        output = self._reader.value(found.values[0])
        item.begin()
        item.attempt = task.attempt = found.attempt
        clock = run.clock.now() - run.observer.wall()
        if found.began is not None and task.began is None:
            task.began = found.began + clock
        task.output, task.ended = output, found.ended + clock
        for request in self._asked.pop(item.path, ()):
            scope = run._growing.get(item)
            if scope is None:
                scheduler.check((request,))
                scope = run._growing[item] = scheduler.open_list(item)
            scheduler.request(scope, request)
        requests: Any = None
        feed = None
        if isinstance(found.asked, str):
            requests, feed = (), self._feed_of(item, found.asked)
        elif found.asked is not None:
            requests = self._reader.requests(found.asked, found.values[1:])
        joins = bool(requests) and scheduler.check(requests, item)
        if feed is not None:
            feed.scope = scheduler.open_list(item)
        call = item.extra if isinstance(item.extra, Call) else None
        if call is not None:
            call.succeed(run, output)
            item.variables = None
        if scheduler.finished(item, output, requests, joins) and run._results is not None:
            run._results[item.id] = output
        if call is not None:
            call.forget()
        run._close_list(item)
        if feed is not None:
            self._feeds[item.path] = feed
            pulled = self._pulled.pop(item.path, None)
            if pulled is not None:
                self._pull(item.path, feed, *pulled)
            if not self.replaying and item.path in self._feeds:
                run._lane_of(self._feeds.pop(item.path)).feeds.append(feed)
        if type(item.extra) is Place:
            parent: Any = item.extra.parent
            outputs = scheduler.mapped(parent)
            if outputs is not None:
                run.settle(parent, outputs, None, None)

    def _feed_of(self, item: Any, name: str) -> Feed:
        requests = self._reader.pages(item.path, name)
        first = next(requests, None)
        assert first is not None, "a list that is empty is written as such"
        return Feed(item, Scope(item, None), requests, first, name)

    def _pull(self, path: int, feed: Feed, count: int, ended: bool) -> None:
        ahead, feed.ahead = feed.ahead, []
        requests: Iterator[NextTask] = iter((*ahead, *islice(feed.iterator, max(0, count - len(ahead)))))
        for request in islice(requests, count):
            self._run.scheduler.request(feed.scope, request)
        feed.ahead = list(requests)
        if ended:
            del self._feeds[path]
            self._run.scheduler.close_list(feed.scope)


STEPS: dict[str, Any] = {
    "finished": Recall._has_finished,
    "retry": Recall._has_failed_once,
    "asked": Recall._has_asked,
    "pulled": Recall._was_pulled,
    "emitted": Recall._has_emitted,
    "set": Recall._has_changed,
    "append": Recall._has_changed,
    "delete": Recall._has_changed,
}


class Sieve(Ready):
    """A ready queue of a run that goes on from its journal."""

    __slots__ = ("_recall",)

    def __init__(self, recall: Recall) -> None:
        super().__init__()
        self._recall = recall
        self.put = self._put

    def _put(self, run: Any) -> None:
        if not self._recall.takes(run):
            (self.plain.append if self._ranked is None else self._ranked.put)(run)

    def rank(self, run: Any) -> None:
        if not self._recall.takes(run):
            super().rank(run)
            self.put = self._put
