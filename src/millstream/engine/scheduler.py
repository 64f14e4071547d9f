"""The state machine of one flow run: what is ready, and what a completion unlocks.

Rule 1: every change of a task run's status happens in this file.
Rule 2: no threads, no clock, no executor, no user code. Facts come in by method calls; decisions
        go out as task runs appended to the ready queue of their task, and as return values.
Rule 3: a call that is refused raises before it has changed anything.

Theory of operation. A *request* (a start, a ``NextTask``) becomes a task run, unless it coalesces.
A task run that waits for nothing is *dispatched*: it stands in the ready queue of its task, from
where a worker takes it, and counts as under way until its outcome is reported. One that waits is
*pending*, and is counted by what it waits for:

* a ``Scope`` holds the joins of one list of requests. It counts the task runs of that list and all
  that they schedule in turn; at zero its joins are dispatched. Scopes nest: what a scope opens
  inside another counts there as well, so one completion costs one decrement, at any depth.
* a ``Watch`` lets a scope wait for task runs that belong elsewhere: those that one of its
  requests coalesced with.
* ``held`` are task runs that ``max_parallel`` does not allow yet.

A list of requests is either served at once (``finished``), or grows while it is served
(``open_list``, ``request``, ``close_list``: a generator task, a lazily pulled iterable).

Callers must not enter it from two threads at once. The one exception is taking from a ready queue:
``deque.popleft`` is atomic, and whoever got the task run is the only one to call ``begin`` on it.
May import: values, errors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from millstream.errors import BindingError, StateError, TaskNotFoundError, TaskRunLimitError
from millstream.values import NextTask, Status

PENDING, RUNNING, SUCCESS = Status.PENDING, Status.RUNNING, Status.SUCCESS
FAILED, CANCELLED, ABANDONED = Status.FAILED, Status.CANCELLED, Status.ABANDONED

#: How a task run ends without an output.
FAILURES = frozenset({FAILED, CANCELLED, ABANDONED})

#: The moves that a task run can make; everything else raises ``StateError``.
MOVES: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({RUNNING, CANCELLED, Status.SKIPPED}),
    Status.RUNNING: frozenset({SUCCESS, *FAILURES}),
    **{final: frozenset() for final in (SUCCESS, FAILED, Status.SKIPPED, CANCELLED, ABANDONED)},
}


class TaskState:
    """What one run knows of one task. The driver's subclass adds how it is called."""

    __slots__ = ("collects", "count", "inputs", "live", "name", "queue", "refuse", "watches")

    def __init__(
        self,
        name: str,
        queue: deque[TaskRun],
        *,
        refuse: Callable[[NextTask], None] | None = None,
        collects: bool = False,
    ) -> None:
        self.name = name
        self.queue = queue  #: the ready queue that its task runs go to
        self.refuse = refuse  #: raises BindingError for a request that could not be called
        self.collects = collects  #: as a join, it reads the outputs of its siblings
        self.live = 0  #: task runs pending or under way
        self.count = 0  #: highest number given to one of its task runs
        self.inputs: Mapping[str, Any] | None = None  #: inputs of its newest task run
        self.watches: list[Watch] = []  #: scopes that wait for some of its task runs


class TaskRun:
    """One execution of a task; one object for each attempt, so that a late attempt is recognised."""

    __slots__ = (
        "handle",
        "inputs",
        "number",
        "order",
        "path",
        "requested",
        "scope",
        "slot",
        "status",
        "task",
        "upstream",
    )

    def __init__(
        self,
        task: Any,
        number: int,
        inputs: Mapping[str, Any] | None,
        path: int,
        order: int,
        scope: Scope | None,
        slot: int | None,
    ) -> None:
        self.task = task  #: the ``TaskState``; typed Any since the driver's subclass has more
        self.number = number
        self.inputs = inputs
        self.path = path  #: derived from the parent's path and the position among its requests
        self.order = order  #: how many were scheduled before it
        self.scope = scope  #: the innermost scope that counts it
        self.slot = slot  #: its place among the outputs that a join collects
        self.status = PENDING
        self.requested = 0  #: how many requests it has made
        self.upstream: list[Any] | None = None  #: for a join, the outputs of its siblings
        self.handle: Any = None  #: the driver's, while it runs

    @property
    def id(self) -> str:
        """``worker``, or ``worker#2`` from the second spawned one on."""
        return self.task.name if self.number == 1 else f"{self.task.name}#{self.number}"

    def begin(self) -> None:
        """A worker has taken it from its ready queue and is about to call it."""
        if self.status is not PENDING:
            raise StateError(f"{self.id} cannot begin: it is {self.status}.")
        self.status = RUNNING

    def __repr__(self) -> str:
        return f"<TaskRun {self.id}: {self.status}>"


class Scope:
    """One list of requests, with all that they schedule in turn: what its joins wait for."""

    __slots__ = ("joins", "open", "outputs", "owner", "parent", "siblings")

    def __init__(self, owner: TaskRun, parent: Scope | None) -> None:
        self.owner = owner  #: the task run that made the list
        self.parent = parent  #: where this scope, and each of its joins, counts
        self.open = 1  #: members not settled yet, and one for the list itself until it is complete
        self.joins: list[TaskRun] = []
        self.siblings = 0  #: requests of the list that are no joins
        self.outputs: list[Any] | None = None  #: one place a sibling; None: no join collects them


class Watch:
    """A scope waits for the task runs that one of its requests coalesced with."""

    __slots__ = ("before", "left", "scope", "slot")

    def __init__(self, scope: Scope, slot: int, before: int, left: int) -> None:
        self.scope = scope
        self.slot = slot  #: where the output of the last one goes
        self.before = before  #: it waits for those scheduled before this order
        self.left = left  #: how many of them have not ended


NO_WATCHES: list[Watch] = []  # never added to


class Scheduler:
    """Decides what runs when in one flow run.

    Args:
        find: returns the ``TaskState`` of a name, or None when the flow has no such task.
        known: returns the names that the flow does have, for error messages.
        max_task_runs: refuse to schedule more than this in one run.
        max_parallel: task runs dispatched and not blocked at once, over all queues.
        make: the class of the task runs to make.
    """

    def __init__(
        self,
        find: Callable[[str], TaskState | None],
        *,
        known: Callable[[], Iterable[str]] = tuple,
        max_task_runs: int | None = None,
        max_parallel: int | None = None,
        make: type[TaskRun] = TaskRun,
    ) -> None:
        self.tasks: dict[str, TaskState] = {}  #: the tasks that this run has met so far
        self.under_way = 0  #: dispatched, and their outcome not reported
        self.pending: set[TaskRun] = set()  #: joins that wait for their scope
        self.held: deque[TaskRun] = deque()  #: not allowed to start yet by ``max_parallel``
        self.feeds = 0  #: lists that still grow
        self.scheduled = 0  #: task runs made so far
        self.stopped = False
        #: Requests that coalesced and brought inputs: the task, the inputs it has, those dropped.
        self.coalesced: list[tuple[str, Mapping[str, Any] | None, Mapping[str, Any] | None]] = []
        self._find, self._known = find, known
        self._max_task_runs = max_task_runs
        self._max_parallel = max_parallel
        self._make = make
        self._blocked = 0

    @property
    def done(self) -> bool:
        """Nothing is under way, nothing waits, and nothing more can come."""
        return not (self.under_way or self.feeds or self.pending or self.held)

    def structural_waits(self) -> list[tuple[str, str]]:
        """Return who waits for whom by the shape of the run: pairs of id and what it waits for."""
        return [(run.id, "the other task runs of its list") for run in self.pending]

    # ---- facts that come in -------------------------------------------------------------------

    def start(self, requests: Sequence[NextTask]) -> None:
        """Schedule the first task runs of this run, in order.

        Raises:
            TaskNotFoundError, BindingError, TaskRunLimitError: and nothing was scheduled.
        """
        self.check(requests)
        for position, request in enumerate(requests):
            self._request(request, hash((0, position)), None, None)

    def check(self, requests: Sequence[NextTask], asker: TaskRun | None = None) -> bool:
        """Refuse a list of requests that cannot be served; return whether it has a join.

        Args:
            requests: what is asked for.
            asker: the task run that asks with its last breath (it no longer counts as live).

        Raises:
            TypeError: something in it is no ``NextTask``.
            TaskNotFoundError, BindingError, TaskRunLimitError: as they say.
        """
        joins = False
        met = refuse = None
        for request in requests:
            if type(request) is not NextTask and not isinstance(request, NextTask):
                raise TypeError(f"next_tasks takes NextTask values, not {request!r}.")
            if request.id is not met:  # a fan-out asks for one task again and again
                met = request.id
                refuse = (self.tasks.get(met) or self._meet(met)).refuse
            if refuse is not None:
                refuse(request)
            if request.join:
                joins = True
        limit = self._max_task_runs
        if limit is not None and self.scheduled + len(requests) > limit:
            self._refuse_beyond(limit, requests, asker, joins and (asker is None or not all(r.join for r in requests)))
        return joins

    def finished(self, run: TaskRun, output: Any, requests: Sequence[NextTask] | None, joins: bool) -> bool:
        """A task run succeeded, and asks for ``requests``; return whether it is terminal.

        ``joins`` is what ``check(requests, run)`` returned: calling that first is the driver's duty.
        """
        if run.status is not RUNNING:
            raise StateError(f"{run.id} cannot succeed: it is {run.status}.")
        run.status = SUCCESS
        task = run.task
        task.live -= 1
        self.under_way -= 1
        scope = run.scope
        if scope is not None and run.slot is not None and scope.outputs is not None:
            scope.outputs[run.slot] = output
        earlier = list(task.watches) if task.watches else NO_WATCHES  # its own requests do not wait for it
        if requests and not self.stopped:
            if joins:
                self._schedule_joined(run, requests)
            else:
                path, position = run.path, run.requested
                for request in requests:
                    self._request(request, hash((path, position)), scope, None)
                    position += 1
                run.requested = position
        taken = bool(earlier) and self._tell_watches(run, output, earlier)
        if scope is not None:
            self._leave(scope)
        if self.held:
            self._admit()
        return run.slot is None and not requests and not run.requested and not taken

    def failed(self, run: TaskRun, status: Status = FAILED) -> None:
        """A task run ended without an output: FAILED, CANCELLED, or ABANDONED (its code goes on)."""
        if run.status is not RUNNING or status not in FAILURES:
            raise StateError(f"{run.id} cannot become {status}: it is {run.status}.")
        run.status = status
        run.task.live -= 1
        self.under_way -= 1
        if run.task.watches:
            self._tell_watches(run, None, run.task.watches)
        if run.scope is not None:
            self._leave(run.scope)
        if self.held:
            self._admit()

    def blocked(self) -> None:
        """A dispatched task run waits for a value: it does not count for ``max_parallel``."""
        self._blocked += 1
        self._admit()

    def unblocked(self) -> None:
        """It goes on."""
        self._blocked -= 1

    def stop(self) -> list[TaskRun]:
        """Cancel whatever has not begun, start nothing more; return what was cancelled.

        Lists that still grow must be closed by their driver.
        """
        self.stopped = True
        ready = self._drain_queues()
        self.under_way -= len(ready)
        cancelled = [*ready, *self.held, *self.pending]
        self.held.clear()
        self.pending.clear()
        for run in cancelled:
            run.status = CANCELLED
            run.task.live -= 1
        return cancelled

    def forget(self) -> None:
        """The run has ended: let go of everything, so that nothing refers to it in a circle."""
        self.tasks.clear()
        self._find, self._known = _no_task, tuple

    # ---- lists that grow while they are served ------------------------------------------------

    def open_list(self, owner: TaskRun) -> Scope:
        """A task makes requests one by one: return the scope that counts them."""
        self.feeds += 1
        return self._open(owner)

    def request(self, scope: Scope, request: NextTask) -> None:
        """Serve one more request of a list that grows.

        A join that collects outputs must come before its siblings: nothing is kept otherwise, so
        that an endless list costs constant memory.

        Raises:
            TypeError, TaskNotFoundError, BindingError, TaskRunLimitError: and nothing has changed.
        """
        joins = self.check((request,))
        owner = scope.owner
        if joins and scope.siblings and scope.outputs is None and self.tasks[request.id].collects:
            raise BindingError(request.id, "upstream", ("a join requested before its siblings",))
        if self.stopped:
            return
        path = hash((owner.path, owner.requested))
        owner.requested += 1
        if joins:
            if not scope.siblings and scope.outputs is None:
                scope.outputs = []
            self._add_join(scope, request, path)
        else:
            self._add_sibling(scope, request, path)

    def close_list(self, scope: Scope) -> None:
        """The list is complete: its joins wait for its members alone now."""
        self.feeds -= 1
        self._leave(scope)

    # ---- inside -------------------------------------------------------------------------------

    def _meet(self, name: str) -> TaskState:
        task = self._find(name)
        if task is None:
            raise TaskNotFoundError(name, self._known())
        self.tasks[name] = task
        return task

    def _refuse_beyond(self, limit: int, requests: Sequence[NextTask], asker: TaskRun | None, joined: bool) -> None:
        """Raise when ``requests`` exceed the limit, not counting those that will coalesce."""
        room = limit - self.scheduled
        live = {name for name, task in self.tasks.items() if task.live}
        if asker is not None and asker.task.live == 1:
            live.discard(asker.task.name)
        for request in requests:
            if request.spawn_another or (joined and request.join) or request.id not in live:
                room -= 1
            if room < 0:
                raise TaskRunLimitError(limit, request.id)
            live.add(request.id)

    def _request(self, request: NextTask, path: int, scope: Scope | None, slot: int | None) -> bool:
        """Make and dispatch a task run; return False when the request coalesced instead."""
        task = self.tasks[request.id]
        if request.spawn_another:
            number = task.count = task.count + 1
        elif task.live:
            if request.inputs is not None or task.inputs is not None:
                self.coalesced.append((task.name, task.inputs, request.inputs))
            return False
        else:
            number = 1
            task.count = task.count or 1
        task.live += 1
        task.inputs = request.inputs
        order = self.scheduled
        self.scheduled = order + 1
        if scope is not None:
            scope.open += 1
        run = self._make(task, number, request.inputs, path, order, scope, slot)
        if request.join:  # one without siblings
            run.upstream = []
        if self._max_parallel is None:
            self.under_way += 1
            task.queue.append(run)
        else:
            self._dispatch(run)
        return True

    def _dispatch(self, run: TaskRun) -> None:
        limit = self._max_parallel
        if limit is not None and (self.held or self.under_way - self._blocked >= limit):
            self.held.append(run)
        else:
            self.under_way += 1
            run.task.queue.append(run)

    def _admit(self) -> None:
        """Dispatch what ``max_parallel`` held back, as far as it allows now."""
        limit = self._max_parallel
        while self.held and limit is not None and self.under_way - self._blocked < limit:
            run = self.held.popleft()
            self.under_way += 1
            run.task.queue.append(run)

    def _schedule_joined(self, run: TaskRun, requests: Sequence[NextTask]) -> None:
        """Serve a complete list that has joins. Without siblings a join is a plain request."""
        alone = all(request.join for request in requests)
        scope = None if alone else self._open(run)
        if scope is not None:
            scope.outputs = []
        for request in requests:
            path = hash((run.path, run.requested))
            run.requested += 1
            if scope is None:
                self._request(request, path, run.scope, None)
            elif request.join:
                self._add_join(scope, request, path)
            else:
                self._add_sibling(scope, request, path)
        if scope is not None:
            self._leave(scope)

    def _open(self, owner: TaskRun) -> Scope:
        parent = owner.scope
        if parent is not None:
            parent.open += 1
        return Scope(owner, parent)

    def _add_join(self, scope: Scope, request: NextTask, path: int) -> None:
        """Make a join. It never coalesces, since its siblings' outputs would be lost."""
        task = self.tasks[request.id]
        if request.spawn_another or task.live:
            number = task.count = task.count + 1
        else:
            number = 1
            task.count = task.count or 1
        task.live += 1
        task.inputs = request.inputs
        parent = scope.parent
        if parent is not None:
            parent.open += 1
        run = self._make(task, number, request.inputs, path, self.scheduled, parent, None)
        self.scheduled += 1
        scope.joins.append(run)
        self.pending.add(run)

    def _add_sibling(self, scope: Scope, request: NextTask, path: int) -> None:
        slot = None
        scope.siblings += 1
        if scope.outputs is not None:
            slot = len(scope.outputs)
            scope.outputs.append(None)
        if not self._request(request, path, scope, slot) and slot is not None:
            self._watch(scope, slot, self.tasks[request.id])

    def _watch(self, scope: Scope, slot: int, task: TaskState) -> None:
        """A sibling coalesced: the joins wait for what is under way of its task, and take its output.

        They do not wait for joins around this very list: each would wait for the other.
        """
        left = task.live
        around: Scope | None = scope
        while around is not None:
            left -= sum(join.task is task for join in around.joins)
            around = around.parent
        if left:
            scope.open += 1
            task.watches.append(Watch(scope, slot, self.scheduled, left))

    def _tell_watches(self, run: TaskRun, output: Any, earlier: list[Watch]) -> bool:
        """``run`` has ended; return whether a join takes its output in place of a sibling's."""
        taken = False
        watches = run.task.watches
        for watch in [watch for watch in earlier if run.order < watch.before]:
            watch.left -= 1
            if not watch.left:
                watches.remove(watch)
                taken = True
                if watch.scope.outputs is not None:
                    watch.scope.outputs[watch.slot] = output
                self._leave(watch.scope)
        return taken

    def _leave(self, scope: Scope | None) -> None:
        """One member of ``scope`` has settled; at zero its joins are ready, and it leaves its parent."""
        while scope is not None:
            scope.open -= 1
            if scope.open or self.stopped:
                return
            for run in scope.joins:
                self.pending.discard(run)
                run.upstream = scope.outputs
                self._dispatch(run)
            scope = scope.parent

    def _drain_queues(self) -> list[TaskRun]:
        """Take everything that is ready. A worker may be quicker; what it took has begun."""
        drained = []
        for queue in {id(task.queue): task.queue for task in self.tasks.values()}.values():
            while queue:
                try:
                    drained.append(queue.popleft())
                except IndexError:
                    break
        return drained


def _no_task(name: str) -> None:
    """The tasks of a run that has ended."""
