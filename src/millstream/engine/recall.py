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
from typing import TYPE_CHECKING, Any, NamedTuple

from millstream.engine.journal import Journal, Reader, call_paths
from millstream.engine.lane import Feed
from millstream.engine.ready import Ready
from millstream.engine.states import SKIPPED, Call, Coalesced, Place, Scope, Settled
from millstream.errors import CheckpointError, FlowError
from millstream.stores.base import Entry, StoredRun
from millstream.values import NextTask

if TYPE_CHECKING:
    from millstream.engine.run import FlowRun


class Finished:
    """A task run that had finished, as its entry says."""

    __slots__ = (
        "asked", "attempt", "began", "calls", "digest", "ended", "name", "needs", "number", "place", "values",
    )  # fmt: skip

    def __init__(self, facts: Sequence[Any], values: Sequence[Any]) -> None:
        self.name, self.number, self.place, self.attempt, *more = facts
        self.began, self.ended, self.asked, self.calls, self.digest, self.needs = more
        self.values = values  #: its output, then the inputs of its requests


class Tried(NamedTuple):
    """An attempt that has failed, as its entry says."""

    attempt: int
    due: float  #: the time of the next one
    asked: Sequence[NextTask]  #: by a generator task
    calls: Sequence[Any]  #: as of ``Finished``


class Appended(NamedTuple):
    """A list in the context that was appended to."""

    owners: list[list[int | None]]  #: who has appended what: the path of a task run, or None for good
    made: bool  #: there was none before


class Recall:
    """Puts the journal of a run into that run again.

    Args:
        run: has not begun.
        reader: of the journal.
        entries: of the journal, in order.
        known: keys that the context had at the start.
        was: what the run was before it was claimed; None for one that was made just now.
    """

    def __init__(
        self, run: FlowRun, reader: Reader, entries: Iterable[Entry], known: Iterable[str], was: StoredRun | None
    ) -> None:
        self._run, self._reader, self._entries, self._was = run, reader, entries, was
        self._live: dict[int, Any] = {}  # what the scheduler has made and nobody calls yet, by path
        self._known: dict[int, Finished] = {}
        self._tried: dict[int, deque[Tried]] = {}  # attempts that have failed of those that are not made yet
        self._waiting: deque[Any] = deque()  # made, and known or tried
        self._retries: dict[int, tuple[Any, float]] = {}  # attempts that wait, and until when
        self._failed: dict[int, Any] = {}  # had failed, and run again: meanwhile nothing coalesces with them
        self._asked: dict[int, list[NextTask]] = {}  # by generator tasks, in the attempt that is under way
        self._pulled: dict[int, tuple[int, bool]] = {}  # from lists of those that are only known: how many, and if all
        self._feeds: dict[int, Feed] = {}
        self._finished: set[int] = set()
        self._skipped: set[str] = set()  # ids of those of which that was told
        self._ids: dict[int, str] = {}  # of calls that nobody has a handle of
        self._taken: set[int] = set()  # those of them whose output another one takes
        self._maps: dict[int, Finished] = {}  # that finish with the last of their items
        self._returned: set[int] = set()
        self._keys = set(known)  # of the context, that have been set until now
        self._appended: dict[str, Appended] = {}  # lists of the context that were appended to
        self._attempts: dict[int, list[int | None]] = {}  # who appends; what a whole attempt has done is done
        self._emitted: dict[int, int] = {}
        self.replaying = True  #: nothing is called yet

    # ---- the scheduler's side -------------------------------------------------------------------

    def queue(self) -> Ready:
        """Return a ready queue that takes what is to be called, and nothing else."""
        return Sieve(self)

    def takes(self, item: Any) -> bool:
        """Something is ready to be called; return whether it is not to be, for now."""
        if item.path in self._known or item.path in self._tried:
            self._waiting.append(item)
            return True
        if self.replaying:
            self._live[item.path] = item
        return self.replaying

    def serve(self) -> None:
        """Finish what is known."""
        while self._waiting:
            item = self._waiting.popleft()
            tried = self._tried.get(item.path)
            if tried is None:
                self._finish(item, self._known.pop(item.path))
                continue
            again, due = self._next_attempt(item, tried.popleft())
            if not tried:
                del self._tried[item.path]
            if tried or item.path in self._known:
                self._run.scheduler.due(again)
            elif self.replaying:
                self._retries[item.path] = again, due
            else:
                self._run._delay(again, self._instant(due))

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
            CheckpointError: the flow is not one that this could have happened in, or the journal is damaged.
        """
        entries, self._entries = self._entries, ()
        for entry in entries:
            step = STEPS.get(entry.kind)
            if step is not None:
                try:
                    with self._reader.reading():
                        step(self, entry.key, *self._reader.facts(entry))
                        self._sort_out()
                except FlowError as error:
                    if isinstance(error, CheckpointError):
                        raise
                    raise CheckpointError(f"Run {self._run.id} cannot go on with the tasks of now: {error}") from error
        self._take_back()
        keeper = self._run.keeper
        assert keeper is not None, "only a run with a journal is recalled"
        keeper.delivered = self._returned
        self._journal.resumed()
        self._journal.skip = {path: n for path, n in self._emitted.items() if path not in self._finished}
        self._journal.commit()

    @property
    def _journal(self) -> Journal:
        journal = self._run.journal
        assert journal is not None, "only a run with a journal is recalled"
        return journal

    def _sort_out(self) -> None:
        """Finish what is known; what the scheduler leaves to the driver waits until the run goes on, or is over."""
        scheduler = self._run.scheduler
        kept: list[Any] = []
        while True:
            self.serve()
            if not scheduler.outbox:
                break
            said, scheduler.outbox = scheduler.outbox, []
            kept.extend(entry for entry in said if not isinstance(entry, Coalesced))
        scheduler.outbox = kept

    def is_done(self, item: Any) -> bool:
        """Whether this attempt of a task run will not be called: it needs no limits then."""
        return item.path in self._known or item.path in self._tried

    def set(self, key: str, value: Any) -> None:
        """A value comes from outside, for those that wait for it.

        Raises:
            CheckpointError: it cannot be kept.
        """
        self._journal.set(key, value)
        self._run.context._values[key] = value

    def refused(self) -> None:
        """The run does not go on after all."""
        if self.replaying:
            self._journal.refused(self._was)

    def go_on(self) -> None:
        """Everything that is left is to be called."""
        self.replaying = False
        run, live = self._run, self._live
        self._live = {}
        for item in self._failed.values():
            item.task.live += 1
        run.scheduler.outbox = [entry for entry in run.scheduler.outbox if not self._was_told(entry)]
        run.scheduler.close_gates(sorted(live.values(), key=lambda item: item.order))
        for item, due in self._retries.values():
            run._delay(item, self._instant(due))
        for feed in self._feeds.values():
            run._lane_of(feed).feeds.append(feed)
        self._failed, self._retries, self._feeds = {}, {}, {}
        self.serve()

    def _was_told(self, entry: Any) -> bool:
        """Whether the end of a task run was told before: that it was skipped."""
        if not isinstance(entry, Settled) or entry.status is not SKIPPED:
            return False
        entry.task.ended = self._run.clock.now()  # type: ignore[attr-defined]  # it is the driver's
        return (entry.task.name if entry.run is None else entry.run.id) in self._skipped

    def _instant(self, at: float) -> float:
        """Return the instant of the run's clock for a time of the world."""
        return self._run.clock.now() + at - self._run.observer.wall()

    # ---- steps, by the kinds of entries ------------------------------------------------------------

    def _has_finished(self, path: int, facts: Any, values: list[Any]) -> None:
        found = Finished(facts, values)
        self._finished.add(path)
        self._returned.discard(path)
        if found.place is None:
            self._put(found, values[0])
        item = self._take(path)
        if item is None:
            self._known[path] = found
        else:
            self._finish(item, found)

    def _put(self, found: Finished, output: Any) -> None:
        """Store an output in the context."""
        values = self._run.context._values
        changed = {found.name: output}
        terms = None if found.digest is not None else self._run.plan.terms(found.name)
        if terms is not None and terms.outputs is not None:
            try:
                changed |= terms.outputs.written(values, output)
            except LookupError as error:
                raise CheckpointError(
                    f"Run {self._run.id} cannot go on with the outputs of task {found.name} as they are now: {error}"
                ) from error
        for key, value in changed.items():
            values[key] = value
            self._keys.add(key)
            self._appended.pop(key, None)

    def _take(self, path: int) -> Any:
        """Return the task run of a path, ready to be called; None when it is not."""
        scheduler = self._run.scheduler
        waiting = self._retries.pop(path, None)
        if waiting is not None:
            scheduler.due(waiting[0])
            self._sort_out()
        failed = self._failed.pop(path, None)
        if failed is not None:
            failed.task.live += 1
        return self._live.pop(path, None)

    def _had_to_retry(self, path: int, facts: Any, values: list[Any]) -> None:
        _, _, attempt, due, _, _, calls = facts
        # What a whole attempt has done is done, also if it failed.
        self._attempts.pop(path, [None])[0] = None
        self._emitted.pop(path, None)  # they count anew
        tried = Tried(attempt, due, self._asked.pop(path, ()), calls)
        item = self._take(path)
        if item is None:
            self._tried.setdefault(path, deque()).append(tried)
        else:
            self._retries[path] = self._next_attempt(item, tried)

    def _next_attempt(self, item: Any, tried: Tried) -> tuple[Any, float]:
        """Return the one that comes after an attempt that has failed, and its time."""
        item.begin()
        self._ask(item, tried.asked)
        for path in call_paths(item.path, tried.calls):
            self._submit(item, path)
        again: Any = self._run.scheduler.retry(item)
        again.attempt = tried.attempt + 1
        again.calls, again.call_keys = tried.calls[0], dict(tried.calls[1:])
        self._run._close_list(item)
        return again, tried.due

    def _has_failed(self, path: int, facts: Any, values: list[Any]) -> None:
        """It runs again. But who asked for its task after it had failed has asked for another task run."""
        item = self._live.get(path)
        if item is None and path in self._retries:
            item = self._retries[path][0]
        self._is_over(path, item)

    def _is_over(self, path: int, item: Any) -> None:
        if item is not None and item.task.node is None and path not in self._failed:
            item.task.live -= 1
            self._failed[path] = item

    def _was_settled(self, path: int | None, facts: Any, values: list[Any]) -> None:
        _, task_id, status, *_ = facts
        if status == SKIPPED:
            self._skipped.add(task_id)
        if path is not None:  # it will be decided again
            self._is_over(path, next((run for run in self._run.scheduler.pending if run.path == path), None))

    def _has_returned(self, path: int, facts: Any, values: list[Any]) -> None:
        self._returned.add(path)

    def _was_resumed(self, path: int, facts: Any, values: list[Any]) -> None:
        """What had not finished by then has begun anew, so what it had done until then does not count."""
        self._take_back()
        self._asked = {path: asked for path, asked in self._asked.items() if path in self._finished}

    def _has_asked(self, path: int, facts: Any, values: list[Any]) -> None:
        self._asked.setdefault(path, []).extend(self._reader.requests([facts], values))

    def _was_pulled(self, path: int, facts: Any, values: list[Any]) -> None:
        feed = self._feeds.get(path)
        if feed is not None:
            self._pull(path, feed, *facts)
        else:
            count, ended = self._pulled.get(path, (0, False))
            self._pulled[path] = count + facts[0], ended or facts[1]

    def _has_emitted(self, path: int, facts: Any, values: list[Any]) -> None:
        self._emitted[path] = facts[0]

    # ---- the context --------------------------------------------------------------------------------

    def _was_set(self, path: int | None, facts: Any, values: list[Any]) -> None:
        self._run.context._values[facts[0]] = values[0]
        self._keys.add(facts[0])
        self._appended.pop(facts[0], None)

    def _was_deleted(self, path: int | None, facts: Any, values: list[Any]) -> None:
        self._run.context._values.pop(facts[0], None)
        self._keys.discard(facts[0])
        self._appended.pop(facts[0], None)

    def _was_appended(self, path: int | None, facts: Any, values: list[Any]) -> None:
        key, context = facts[0], self._run.context._values
        appended = self._appended.get(key)
        if appended is None:
            # What a shared context has of the last time does not count, and the list may be somebody's output.
            found = context.get(key) if key in self._keys else None
            if found is not None and not isinstance(found, list):
                return
            context[key] = list(found or ())
            appended = self._appended[key] = Appended([[None] for _ in context[key]], key not in self._keys)
            self._keys.add(key)
        context[key].append(values[0])
        appended.owners.append([None] if path is None else self._attempts.setdefault(path, [path]))

    def _take_back(self) -> None:
        """What was appended by those that will run again is appended again then."""
        context, finished = self._run.context._values, self._finished
        for key, (owners, made) in self._appended.items():
            kept = [n for n, (owner,) in enumerate(owners) if owner is None or owner in finished]
            if len(kept) < len(owners):
                items = context[key]
                context[key] = [items[n] for n in kept]
                if made and not kept:
                    del context[key]
                    self._keys.discard(key)
        self._appended, self._attempts = {}, {}

    # ---- task runs --------------------------------------------------------------------------------

    def _finish(self, item: Any, found: Finished) -> None:
        """A task run gives what it gave; a map, when the last of its items has."""
        task, outputs = item.task, found.values[0]
        item.begin()
        item.attempt = task.attempt = found.attempt
        if found.began is not None and task.began is None:
            task.began = self._instant(found.began)
        if task.each is not None and isinstance(outputs, list):
            count = len(outputs)
            if count and all(hash((item.path, index)) in self._known for index in range(count)):
                self._maps[item.path] = found
                self._run.scheduler.spread(item, [None] * count)  # what they were given is not asked for
                return
        self._give(item, found)

    def _give(self, item: Any, found: Finished) -> None:
        run, scheduler, task = self._run, self._run.scheduler, item.task
        output = found.values[0]
        task.output, task.ended = output, self._instant(found.ended)
        self._ask(item, self._asked.pop(item.path, ()))
        requests: Any = None
        feed = None
        for path in call_paths(item.path, found.calls):
            self._submit(item, path)
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
        terminal = scheduler.finished(item, output, requests, joins)
        if terminal and feed is None and run._results is not None and item.path not in self._taken:
            run._results[item.id] = output
        if isinstance(call, Gone) and run._results is not None:
            self._ids[item.path] = item.id
            for need in found.needs or ():  # what another call takes is no result of the run
                self._taken.add(need)
                run._results.pop(self._ids.get(need, ""), None)
        if call is not None:
            call.forget()
            assert run.keeper is not None, "only a run with a journal is recalled"
            run.keeper.call_ended(call)
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
                whole = self._maps.pop(parent.path, None)
                if whole is None:
                    run.settle(parent, outputs, None, None)
                else:
                    self._give(parent, whole)

    def _ask(self, item: Any, requests: Iterable[NextTask]) -> None:
        """A generator task made these requests while it went on."""
        run, scheduler = self._run, self._run.scheduler
        for request in requests:
            scope = run._growing.get(item)
            if scope is None:
                scheduler.check((request,))
                scope = run._growing[item] = scheduler.open_list(item)
            scheduler.request(scope, request)

    def _submit(self, item: Any, path: int) -> None:
        """A task run had submitted a call, which has finished, too."""
        found = self._known.get(path)
        if found is not None:
            self._run.submit_known(found.name, path, Gone(), item.scope)

    def _feed_of(self, item: Any, name: str) -> Feed:
        requests = self._reader.pages(item.path, name)
        first = next(requests, None)
        assert first is not None, "a list that is empty is written as such"
        return Feed(item, Scope(item, None), requests, first, self._run.variables.copy(), name)

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
    "returned": Recall._has_returned,
    "retry": Recall._had_to_retry,
    "failed": Recall._has_failed,
    "asked": Recall._has_asked,
    "pulled": Recall._was_pulled,
    "emitted": Recall._has_emitted,
    "set": Recall._was_set,
    "append": Recall._was_appended,
    "delete": Recall._was_deleted,
    "resumed": Recall._was_resumed,
    "settled": Recall._was_settled,
}


class Gone(Call):
    """A call that a task run had submitted, both of which have finished: nobody has a handle of it."""

    __slots__ = ("error",)
    withdrawn = True

    def __init__(self) -> None:
        super().__init__()
        self.error: BaseException | None = None

    def succeed(self, run: Any, output: Any) -> None:
        pass

    def fail(self, run: Any, error: BaseException, *, cancelled: bool) -> None:
        pass


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
