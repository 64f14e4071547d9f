"""The state machine of one flow run: what is ready, and what a completion unlocks.

Rule 1: every change of a task run's status happens in this file; but a worker ``begin``s what it took.
Rule 2: no threads, no clock, no executor, no user code. Facts come in by method calls; decisions
        go out as task runs appended to the ready queue of their task, as entries of the ``outbox``,
        and as return values.
Rule 3: a call that is refused raises before it has changed anything.

Theory of operation. A *request* (a start, a ``NextTask``, an edge, a submitted call) becomes a task
run, unless it coalesces. It passes, in this order, whatever may hold it back:

* its dependencies: ``Edges`` for those that the flow declares, ``Call`` for those of submitted calls;
* the gates: ``max_parallel`` of its task, the limits that its task ``uses`` (shared with other runs,
  so the driver grants them), ``max_parallel`` of the run. At each gate a higher priority goes first.

Then it is *dispatched*: it stands in the ready queue of its task, from where a worker takes it, and
counts as under way until its outcome is reported. What waits for others is counted by them:

* a ``Scope`` holds the joins of one list of requests. It counts the task runs of that list and all
  that they schedule in turn; at zero its joins are ready. Scopes nest: what a scope opens inside
  another counts there as well, so one completion costs one decrement, at any depth.
* a ``Watch`` lets a scope wait for task runs that belong elsewhere: those that one of its
  requests coalesced with.
* a ``Spread`` is a task run that is mapped over items, each of which is a task run of its own.

A list of requests is either served at once (``finished``), or grows while it is served
(``open_list``, ``request``, ``close_list``: a generator task, a lazily pulled iterable).

Callers must not enter it from two threads at once. The one exception is taking from a ready queue,
which is safe; whoever got a task run is the only one to call ``begin`` on it.
May import: edges, states, values, errors, diagram.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from millstream.diagram import EdgeKind
from millstream.engine.edges import Edges
from millstream.engine.states import (
    CANCELLED,
    FAILED,
    FAILURES,
    NO_WATCHES,
    PENDING,
    RUNNING,
    SKIPPED,
    SUCCESS,
    Call,
    Coalesced,
    Counts,
    Ends,
    Held,
    Place,
    Scope,
    Settled,
    Spread,
    TaskRun,
    TaskState,
    Watch,
    note,
)
from millstream.errors import (
    BindingError,
    DependencyFailedError,
    StateError,
    TaskNotFoundError,
    TaskRunLimitError,
)
from millstream.values import NextTask, Status

if TYPE_CHECKING:
    from millstream.graph import Graph


class Scheduler:
    """Decides what runs when in one flow run.

    Args:
        find: returns the ``TaskState`` of a name, or None when the flow has no such task. It is given the
            number of the task in the graph, too; None for one without edges.
        known: returns the names that the flow does have, for error messages.
        graph: the edges of the flow, without circles; None when it has none.
        max_task_runs: refuse to schedule more than this in one run.
        max_parallel: task runs dispatched and not blocked at once, over all queues.
        make: the class of the task runs to make.
    """

    def __init__(
        self,
        find: Callable[[str, int | None], TaskState | None],
        *,
        known: Callable[[], Iterable[str]] = tuple,
        graph: Graph | None = None,
        max_task_runs: int | None = None,
        max_parallel: int | None = None,
        make: type[TaskRun] = TaskRun,
    ) -> None:
        # At most 30 attributes: CPython reads those of an object with more of them in a slower way (about 5 % a step).
        self.asked: dict[str, TaskState] = {}  #: the tasks that were asked for by name
        self.called: list[TaskState] = []  #: the tasks of submitted calls
        self._roots: dict[str, TaskState] = {}  #: of those, the first of each name that no task of the flow has
        self.edges = None if graph is None else Edges(graph)
        #: The tasks with edges that it has met, by their number in the graph.
        self._nodes: list[TaskState | None] = [] if graph is None else [None] * len(graph.names)
        #: What stands for each of these in paths; a run that goes on keeps the numbers of its beginning.
        self.keys: Sequence[int] = range(len(self._nodes))
        self.under_way = 0  #: dispatched, and their outcome not reported
        self.pending: set[TaskRun] = set()  #: joins and calls that wait for others, and maps for their items
        self.held: Held = []  #: not allowed to start yet by ``max_parallel``
        self.limited: set[TaskRun] = set()  #: not allowed to start yet by the limits that they use
        self.delayed: set[TaskRun] = set()  #: attempts that wait for their time
        self.feeds = 0  #: lists that still grow
        self.scheduled = 0  #: task runs made so far
        self.stopped = False
        self.recalls = False  #: what a run has done before is put in again: meanwhile all gates are open
        #: What the driver has to see to: task runs that want the limits they use (``granted`` is the
        #: answer), what ended without a worker, what coalesced, and an edge beyond ``max_task_runs``.
        self.outbox: list[TaskRun | Settled | Coalesced | TaskRunLimitError] = []
        self._find, self._known = find, known
        self._max_task_runs = max_task_runs
        self._max_parallel = max_parallel
        self._unbounded = max_parallel is None and max_task_runs is None
        self._make = make
        self._asked_before: dict[TaskRun, int] = {}  # how many requests the attempts before this one have made
        self._blocked = 0
        self._ends = Ends()
        #: What led from one task to another beside the flow's own edges, by name: for the picture of the run.
        self.links: set[tuple[str, str, EdgeKind]] = set()
        self._asker: TaskState | None = None  # who was served last without a join
        self._asked: str | None = None  # and the newest of what it has asked for: that is noted already
        self._agenda: deque[tuple[Callable[..., None], Any]] = deque()  # what an end leads to in turn

    @property
    def tasks(self) -> dict[str, TaskState]:
        """The tasks of the flow that this run has met so far, by name; a new dictionary."""
        return {task.name: task for task in self._nodes if task is not None} | self.asked

    def state(self, name: str) -> TaskState | None:
        """Return one of these tasks, None if it has not met that."""
        task = self.asked.get(name)
        if task is None and self.edges is not None and name in self.edges.graph.number:
            task = self._nodes[self.edges.graph.number[name]]
        return task

    def states(self) -> list[TaskState]:
        """Return all tasks that this run has met so far, also those of submitted calls."""
        tasks = [task for task in self._nodes if task is not None]
        tasks += [task for task in self.asked.values() if task.node is None]
        return tasks + self.called

    @property
    def done(self) -> bool:
        """Nothing is under way, nothing waits, and nothing more can come."""
        return not (self.under_way or self.feeds or self.pending or self.held or self.limited or self.delayed) and (
            self.edges is None or self.edges.done
        )

    def counts(self) -> Counts:
        """Return how many task runs there are. It looks at every task, so it is nothing to be called often."""
        ended = live = 0
        for task in self._states():
            ended += task.runs
            live += task.live
        # What edges lead to is expected. Who has asked for something else may do so again.
        asked = [link for link in self.links if link[2] is EdgeKind.REQUEST and link[1] not in self._linked()]
        growers = [self.state(asker) for asker, _, _ in asked]
        may_grow = bool(self.feeds) or any(task is not None and task.live for task in growers)
        expected = 0 if self.edges is None else len(self.edges.awaited())
        ends = self._ends
        return Counts(ended, ends.in_vain, ends.never, ends.skipped, live, expected, may_grow)

    def _linked(self) -> Collection[str]:
        """Return the names of the tasks that have edges."""
        return () if self.edges is None else self.edges.graph.number

    def structural_waits(self) -> list[tuple[str, str]]:
        """Return who waits for whom by the shape of the run: pairs of id and what it waits for."""
        waits = [(run.id, _what_it_waits_for(run)) for run in self.pending]
        waits += [(run.id, f"a limit ({', '.join(run.task.terms.uses)})") for run in self.limited]
        if self.edges is not None:
            waits += [(run.id, ", ".join(self.edges.waits_for(run.task.node))) for run in self.edges.parked()]
            waits += [(self.edges.graph.names[n], ", ".join(self.edges.waits_for(n))) for n in self.edges.awaited()]
        return waits

    # ---- facts that come in -------------------------------------------------------------------

    def start(self, requests: Sequence[NextTask]) -> None:
        """Schedule the first task runs of this run, in order.

        Raises:
            TaskNotFoundError, BindingError, TaskRunLimitError: and nothing was scheduled.
        """
        self.check(requests)
        if self.edges is not None:
            self.edges.begin([node for node in map(self._node_of, requests) if node is not None])
        for position, request in enumerate(requests):
            self._request(request, hash((0, position)), None, None)
        self._work_off()

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
        met = required = None
        nodes: list[int] = []
        for request in requests:
            if type(request) is not NextTask and not isinstance(request, NextTask):
                raise TypeError(f"next_tasks takes NextTask values, not {request!r}.")
            if request.id is not met:  # a fan-out asks for one task again and again
                met = request.id
                task = self.asked.get(met) or self._meet(met)
                required = task.terms.required
                if task.node is not None and self.edges is not None and not self.edges.met[task.node]:
                    nodes.append(task.node)
            if required:
                self._refuse(task, request, requests)
            if request.join:
                joins = True
        if nodes and self.edges is not None:  # whether what edges lead to can be called must be known now
            self._meet_all(self.edges.graph, self.edges.graph.after(nodes))
        limit = self._max_task_runs
        if limit is not None and self.scheduled + len(requests) > limit:
            self._refuse_beyond(limit, requests, asker, joins and (asker is None or not all(r.join for r in requests)))
        return joins

    def finished(self, run: TaskRun, output: Any, requests: Sequence[NextTask] | None, joins: bool) -> bool:
        """A task run succeeded, and asks for ``requests``; return whether it is terminal.

        None follows the edges that the flow declares. ``joins`` is what ``check(requests, run)``
        returned: calling that first is the driver's duty.
        """
        if run.status is not RUNNING:
            raise StateError(f"{run.id} cannot succeed: it is {run.status}.")
        run.status = SUCCESS
        task = run.task
        task.live -= 1
        task.runs += 1
        self.under_way -= 1
        if task.terms.gated:
            self._passed_on(task)
        scope = run.scope
        if requests is None and scope is None and run.extra is None and not (task.watches or run.requested):
            # The usual case: nothing but the edges that the flow declares can come of it.
            node, edges = task.node, self.edges
            if node is None or edges is None:
                followed = False
            elif edges.plain and not (task.live or self.stopped):
                followed = self._pass_on(edges, node, output)
            else:
                followed = self._edges_follow(run, output, True)
            if self._agenda or self.held:
                self._work_off()
            return not followed
        if scope is not None and run.slot is not None and scope.outputs is not None and run.slot >= 0:
            scope.outputs[run.slot] = output
        earlier = list(task.watches) if task.watches else NO_WATCHES  # its own requests do not wait for it
        if requests and not self.stopped:
            self._serve(run, requests, joins)
        taken = bool(earlier) and self._tell_watches(run, output, earlier)
        if run.extra is not None:
            return self._extra_finished(run, output, requests)
        followed = False
        if task.node is not None:
            followed = self._edges_follow(run, output, requests is None and not run.requested)
        if scope is not None:
            self._leave(scope)
        if self._agenda or self.held:
            self._work_off()
        if requests or followed or taken or run.requested:
            return False
        return run.slot is None or run.slot < 0

    def failed(self, run: TaskRun, status: Status = FAILED) -> None:
        """A task run ended without an output: FAILED, CANCELLED, or ABANDONED (its code goes on)."""
        if run.status is not RUNNING or status not in FAILURES:
            raise StateError(f"{run.id} cannot become {status}: it is {run.status}.")
        self.under_way -= 1
        if run.task.terms.gated:
            self._passed_on(run.task)
        self._ended(run, status)
        self._work_off()

    def retry(self, run: TaskRun, status: Status = FAILED) -> TaskRun:
        """An attempt failed; return the next one, which waits for ``due``."""
        if run.status is not RUNNING or status not in FAILURES:
            raise StateError(f"{run.id} cannot be tried again: it is {run.status}.")
        run.status = status
        self.under_way -= 1
        if run.task.terms.gated:
            self._passed_on(run.task)
        again = self._make(run.task, run.number, run.inputs, run.path, run.order, run.scope, run.slot)
        again.attempt = run.attempt + 1
        asked = run.requested + self._asked_before.pop(run, 0)
        if asked:  # by a generator: what the next attempt asks for is something else, with keys of its own
            self._asked_before[again] = asked
        again.priority, again.upstream, again.needs, again.extra = run.priority, run.upstream, run.needs, run.extra
        if isinstance(run.extra, Call):
            run.extra.run = again
        self.delayed.add(again)
        self._work_off()
        return again

    def due(self, run: TaskRun) -> None:
        """The time of an attempt has come."""
        if run in self.delayed:
            self.delayed.discard(run)
            self._pass(run)
            self._work_off()

    def close_gates(self, ready: Iterable[TaskRun]) -> None:
        """Everything that had been done before is put in: what is ready by then passes the gates."""
        self.recalls = False
        for run in ready:
            self.under_way -= 1
            if run.task.terms.gated:
                run.task.busy -= 1
            self._pass(run)
        self._work_off()

    def granted(self, run: TaskRun) -> bool:
        """A task run has the limits that it uses; False when it was cancelled meanwhile."""
        if run not in self.limited:
            return False
        self.limited.discard(run)
        self._dispatch(run)
        self._work_off()
        return True

    def blocked(self, task: TaskState) -> None:
        """A dispatched run of ``task`` waits for a value: it does not count for ``max_parallel``."""
        self._blocked += 1
        if task.terms.gated:
            task.blocked += 1
            self._admit_of(task)
        self._work_off()

    def unblocked(self, task: TaskState) -> None:
        """It goes on."""
        self._blocked -= 1
        if task.terms.gated:
            task.blocked -= 1

    def stop(self) -> list[TaskRun]:
        """Cancel whatever has not begun, start nothing more; return what was cancelled.

        Lists that still grow must be closed by their driver.
        """
        self.stopped = True
        self._agenda.clear()
        ready = self._drain_queues()
        self.under_way -= len(ready)
        cancelled = [*ready, *self.pending, *self.limited, *self.delayed]
        cancelled += [entry[2] for entry in self.held]
        for task in self._states():
            if task.terms.gated and task.held:
                cancelled += [entry[2] for entry in task.held]
                task.held.clear()
        if self.edges is not None:
            cancelled += self.edges.parked()
            for node in self.edges.stop():
                self._note(self._state_of(node), CANCELLED)
        for waiting in (self.held, self.pending, self.limited, self.delayed):
            waiting.clear()
        for run in cancelled:
            ran = run.status is RUNNING  # a map that waits for its items
            run.task.runs += ran
            run.status = CANCELLED
            run.task.live -= 1
            self._note(run.task, CANCELLED, ran)
        return cancelled

    def cancel(self, run: TaskRun) -> bool:
        """Cancel one task run that has not begun; False when it has, or is in nobody's hands."""
        if run.status is not PENDING:
            return False
        passed = True  # the gate of its task
        if run in self.pending or run in self.delayed:
            self.pending.discard(run)
            self.delayed.discard(run)
            passed = False
        elif run in self.limited:
            self.limited.discard(run)
        elif run.task.terms.gated and take_held(run.task.held, run):
            passed = False
        elif run.task.queue.remove(run):
            self.under_way -= 1
        elif not take_held(self.held, run):
            return False
        if passed and run.task.terms.gated:
            self._passed_on(run.task)
        self._ended(run, CANCELLED)
        self._work_off()
        return True

    def forget(self) -> None:
        """The run has ended: let go of everything, so that nothing refers to it in a circle."""
        self.asked, self.called, self._nodes, self._roots = {}, [], [], {}
        self.edges = self._asker = None
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
        if joins and scope.siblings and scope.outputs is None and self.asked[request.id].terms.collects:
            raise BindingError(request.id, "upstream", ("a join requested before its siblings",))
        if self.stopped:
            return
        if self.edges is not None:
            self._activate((request,))
        path = hash((owner.path, self._place(owner)))
        owner.requested += 1
        if joins:
            if not scope.siblings and scope.outputs is None:
                scope.outputs = []
            self._add_join(scope, request, path)
        else:
            self._add_sibling(scope, request, path)
        self._work_off()

    def close_list(self, scope: Scope) -> None:
        """The list is complete: its joins wait for its members alone now."""
        self.feeds -= 1
        self._leave(scope)
        self._work_off()

    # ---- submitted calls, and maps over items ---------------------------------------------------

    def submit(self, task: TaskState, path: int, call: Call, needs: Iterable[Call], scope: Scope | None) -> TaskRun:
        """Make a task run of a submitted call, which starts when those that it needs have ended.

        Raises:
            TaskRunLimitError: and nothing has changed.
        """
        limit = self._max_task_runs
        if limit is not None and self.scheduled >= limit:
            raise TaskRunLimitError(limit, task.name)
        root = self.asked.get(task.name) or self._roots.get(task.name)
        if root is None:
            try:
                root = self._meet(task.name)
            except TaskNotFoundError:
                root = self._roots[task.name] = task
        number = root.count = root.count + 1  # everything of one name shares its numbers
        run = self._make(task, number, None, path, self.scheduled, scope, None)
        self.scheduled += 1
        task.live += 1
        if scope is not None:
            scope.open += 1
        run.extra, call.run, call.id = call, run, run.id
        if scope is not None:
            self._led(scope.owner.task.name, task.name)
        for need in needs:
            self.links.add((need.id.partition("#")[0], task.name, EdgeKind.DEPENDENCY))
            if need.settled is None:
                need.followers.append(call)
                call.left += 1
            elif need.settled is not SUCCESS:
                call.failed.append(need.id)
                call.because = call.because or need
        if call.left:
            self.pending.add(run)
        else:
            self._call_ready(run)
        self._work_off()
        return run

    def spread(self, run: TaskRun, items: Sequence[Any]) -> bool:
        """A task run is mapped over ``items``; False when there are none, and it is simply finished.

        It is over when every item is: ``mapped`` tells.

        Raises:
            TaskRunLimitError: there are too many; nothing has changed.
        """
        if run.status is not RUNNING:
            raise StateError(f"{run.id} cannot be mapped: it is {run.status}.")
        limit = self._max_task_runs
        if limit is not None and self.scheduled + len(items) > limit:
            raise TaskRunLimitError(limit, run.task.name)
        if not items:
            return False
        each = run.task.each
        self.under_way -= 1
        self.pending.add(run)
        run.extra = Spread(len(items))
        for index, item in enumerate(items):
            part = self._make(each, run.number, run.inputs, hash((run.path, index)), self.scheduled, run.scope, None)
            part.extra, part.priority = Place(run, index, item), run.priority
            part.upstream, part.needs = run.upstream, run.needs
            self.scheduled += 1
            each.live += 1
            self._pass(part)
        self._work_off()
        return True

    def mapped(self, run: TaskRun) -> list[Any] | None:
        """Return the outputs of a map that is complete, which is to be finished now; else None."""
        if run.status is not RUNNING or type(run.extra) is not Spread or run.extra.left:
            return None
        self.pending.discard(run)
        self.under_way += 1
        outputs, run.extra = run.extra.outputs, None
        return outputs

    def unmap(self, run: TaskRun) -> list[TaskRun]:
        """An item of a map failed, so the map is to fail: return the items that have not begun, to be cancelled."""
        if run.status is not RUNNING or type(run.extra) is not Spread:
            return []
        self.pending.discard(run)
        self.under_way += 1
        run.extra = None
        each = run.task.each
        waiting = [  # in the order in which each is taken out in a short step
            *(entry[2] for entry in sorted(each.held if each.terms.gated else ())),
            *self.limited,
            *self.delayed,
            *each.queue,
        ]
        waiting += [entry[2] for entry in sorted(self.held)]
        return [part for part in waiting if type(part.extra) is Place and part.extra.parent is run]

    # ---- inside: making task runs ---------------------------------------------------------------

    def _meet(self, name: str) -> TaskState:
        """A task is asked for by name."""
        node = None if self.edges is None else self.edges.graph.node(name)
        task = None if node is None else self._nodes[node]
        if task is None:
            task = self._find(name, node)
            if task is None:
                raise TaskNotFoundError(name, self._known())
            if node is not None:
                self._nodes[node] = task
        self.asked[name] = task
        return task

    def _meet_all(self, graph: Graph, nodes: Iterable[int]) -> None:
        """Edges may lead to these tasks."""
        known, names, find = self._nodes, graph.names, self._find
        for node in nodes:
            if known[node] is None:
                known[node] = find(names[node], node)

    def _state_of(self, node: int) -> TaskState:
        assert self.edges is not None, "only a graph has nodes"
        return self._nodes[node] or self._meet(self.edges.graph.names[node])

    def _node_of(self, request: NextTask) -> int | None:
        return self.asked[request.id].node

    def _states(self) -> Iterable[TaskState]:
        for task in self.states():
            yield task
            if task.each is not None:
                yield task.each

    def _refuse(self, task: TaskState, request: NextTask, requests: Sequence[NextTask]) -> None:
        """Raise ``BindingError`` for a request that could not be called."""
        lacking = self._lacking(task, request.inputs, request.join)
        if lacking is not None and not self._comes_with(task, lacking, requests):
            raise BindingError(task.name, lacking, request.inputs or ())

    def _lacking(self, task: TaskState, inputs: Mapping[str, Any] | None, join: bool) -> str | None:
        """Return a required parameter that nothing fills, or None."""
        for name in task.terms.required:
            if inputs is not None and (name in inputs or name == "payload"):
                continue
            if (name == "payload" and join) or self._depends_on(task, name):
                continue
            return name
        return None

    def _depends_on(self, task: TaskState, name: str) -> bool:
        """Whether a parameter takes the output of a dependency (of any, for the payload) that is part of this run."""
        if task.node is None or self.edges is None:
            return False
        met, graph = self.edges.met, self.edges.graph
        if name == "payload":
            return any(met[need] for need in graph.declared[task.node])
        return any(met[need] and graph.names[need] == name for need in graph.declared[task.node])

    def _comes_with(self, task: TaskState, name: str, requests: Sequence[NextTask]) -> bool:
        """Whether the dependency that a parameter takes is asked for by the same list, or will follow from it."""
        if task.node is None or self.edges is None:
            return False
        graph = self.edges.graph
        coming = set(graph.after(graph.number[r.id] for r in requests if r.id in graph.number))
        return any(need in coming and name in ("payload", graph.names[need]) for need in graph.declared[task.node])

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

    def _activate(self, requests: Iterable[NextTask]) -> None:
        """What a list asks for is pending before any of it is made: its tasks may depend on each other."""
        assert self.edges is not None, "only a graph has nodes"
        for node in map(self._node_of, requests):
            if node is not None:
                self.edges.activate(node)

    def _serve(self, run: TaskRun, requests: Sequence[NextTask], joins: bool) -> None:
        """Serve a complete list of requests."""
        if self.edges is not None:
            self._activate(requests)
        if joins:
            self._schedule_joined(run, requests)
            return
        path, position, scope, tasks, make = run.path, self._place(run), run.scope, self.asked, self._make
        met: str | None = None
        made = 0
        for request in requests:
            if request.id is not met:  # a fan-out asks for one task again and again
                met = request.id
                task = tasks[met]
                if met is not self._asked or run.task is not self._asker:
                    self._asker, self._asked = run.task, met
                    self._led(run.task.name, met)
                quick = self._unbounded and scope is None and task.node is None and task.terms.plain
            if quick and request.spawn_another and request.priority is None:  # what ``_request`` comes down to then
                number = task.count = task.count + 1
                task.live += 1
                task.inputs = inputs = request.inputs
                order = self.scheduled
                self.scheduled = order + 1
                task.queue.put(make(task, number, inputs, hash((path, position)), order, None, None))
                made += 1
            else:
                self._request(request, hash((path, position)), scope, None, run)
            position += 1
        run.requested += len(requests)
        self.under_way += made

    def _led(self, asker: str, asked: str) -> None:
        """A run of one task has asked for another one."""
        self.links.add((asker, asked, EdgeKind.REQUEST))

    def _request(
        self, request: NextTask, path: int, scope: Scope | None, slot: int | None, asker: TaskRun | None = None
    ) -> bool:
        """Make and dispatch a task run; return False when the request coalesced instead."""
        task = self.asked[request.id]
        if request.spawn_another:
            number = task.count = task.count + 1
        elif task.live:
            if request.inputs is not None or task.inputs is not None:
                self.outbox.append(Coalesced(task, task.inputs, request.inputs))
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
        if request.priority is not None:
            run.priority = request.priority
        if request.join:  # one without siblings
            run.upstream = []
        if task.node is not None:
            self._wait_for_edges(run, asker)
        elif self._max_parallel is None and not (task.terms.gated or run.priority):
            self.under_way += 1
            task.queue.put(run)
        else:
            self._pass(run)
        return True

    def _schedule_joined(self, run: TaskRun, requests: Sequence[NextTask]) -> None:
        """Serve a complete list that has joins. Without siblings a join is a plain request."""
        alone = all(request.join for request in requests)
        scope = None if alone else self._open(run)
        if scope is not None:
            scope.outputs = []
        for request in requests:
            path = hash((run.path, self._place(run)))
            run.requested += 1
            if scope is None:
                self._led(run.task.name, request.id)
                self._request(request, path, run.scope, None, run)
            elif request.join:
                self._add_join(scope, request, path)
            else:
                self._add_sibling(scope, request, path, run)
        if scope is not None:
            self._leave(scope)

    def _place(self, run: TaskRun) -> int:
        """Return the place of the next request among all that a task run makes."""
        before = self._asked_before
        return run.requested + before.get(run, 0) if before else run.requested

    def _open(self, owner: TaskRun) -> Scope:
        parent = owner.scope
        if parent is not None:
            parent.open += 1
        return Scope(owner, parent)

    def _add_join(self, scope: Scope, request: NextTask, path: int) -> None:
        """Make a join. It never coalesces, since its siblings' outputs would be lost."""
        task = self.asked[request.id]
        self._led(scope.owner.task.name, request.id)
        self.links |= {(name, request.id, EdgeKind.JOIN) for name in scope.tasks}
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
        if request.priority is not None:
            run.priority = request.priority
        if task.node is not None and self.edges is not None:
            self.edges.claim(task.node)
        self.scheduled += 1
        scope.joins.append(run)
        self.pending.add(run)

    def _add_sibling(self, scope: Scope, request: NextTask, path: int, asker: TaskRun | None = None) -> None:
        slot = -1
        scope.siblings += 1
        if request.id not in scope.tasks:
            scope.tasks |= {request.id}
            self._led(scope.owner.task.name, request.id)
            self.links |= {(request.id, join.task.name, EdgeKind.JOIN) for join in scope.joins}
        if scope.outputs is not None:
            slot = len(scope.outputs)
            scope.outputs.append(None)
        if not self._request(request, path, scope, slot, asker) and slot >= 0:
            self._watch(scope, slot, self.asked[request.id])

    # ---- inside: what holds a task run back -----------------------------------------------------

    def _wait_for_edges(self, run: TaskRun, asker: TaskRun | None) -> None:
        """A task with edges was asked for by name: it waits for its dependencies, then goes on."""
        edges, node = self.edges, run.task.node
        assert edges is not None, "only a graph has nodes"
        edges.activate(node)
        edges.claim(node)
        # What a router chose waits for the other routers, too: they may choose the same.
        routers = asker is not None and asker.task.node in edges.graph.routers[node]
        if edges.holds(node, routers=routers):
            edges.park(node, run, routers=routers)
        else:
            self._start_parked(run)

    def _start_parked(self, run: TaskRun) -> None:
        """A run that was asked for by name waits for no dependency any more."""
        edges, task = self.edges, run.task
        assert edges is not None, "only a graph has nodes"
        edges.fired[task.node] = 0  # what led to it is served by this run
        failed = edges.failing(task.node)
        if failed and task.terms.on_dep_failure != "run-anyway":
            self._drop(run, [edges.graph.names[node] for node in failed])
            return
        run.needs = edges.upstream(task.node)
        self._pass(run)

    def _pass(self, run: TaskRun) -> None:
        """A task run waits for nothing but the gates: its task's, the limits, the run's."""
        task = run.task
        if self.recalls:
            if task.terms.gated:
                task.busy += 1
            self._stand_in_line(run)
        elif not task.terms.gated:
            self._dispatch(run)
        elif task.terms.max_parallel is None:
            self._let_on(run)
        else:
            heappush(task.held, (-run.priority, run.order, run))
            self._agenda.append((self._admit_of, task))  # when all that this fact leads to is there

    def _let_on(self, run: TaskRun) -> None:
        """A task run passes the gate of its task."""
        run.task.busy += 1
        if run.task.terms.uses:
            self.limited.add(run)
            self.outbox.append(run)
        else:
            self._dispatch(run)

    def _passed_on(self, task: TaskState) -> None:
        """An attempt that had passed the gate of its task is over."""
        task.busy -= 1
        if task.held and not self.stopped:
            self._agenda.append((self._admit_of, task))

    def _admit_of(self, task: TaskState) -> None:
        """Let on what ``max_parallel`` of a task held back, as far as it allows now."""
        limit = task.terms.max_parallel
        while task.held and limit is not None and task.busy - task.blocked < limit:
            self._let_on(heappop(task.held)[2])

    def _dispatch(self, run: TaskRun) -> None:
        if self._max_parallel is None:
            self._stand_in_line(run)
        else:
            heappush(self.held, (-run.priority, run.order, run))  # ``_work_off`` admits

    def _stand_in_line(self, run: TaskRun) -> None:
        self.under_way += 1
        if run.priority:
            run.task.queue.rank(run)
        else:
            run.task.queue.put(run)

    def _admit(self) -> None:
        """Dispatch what ``max_parallel`` held back, as far as it allows now."""
        limit = self._max_parallel
        while self.held and limit is not None and self.under_way - self._blocked < limit:
            self._stand_in_line(heappop(self.held)[2])

    # ---- inside: what an end unlocks ------------------------------------------------------------

    def _work_off(self) -> None:
        """Do what the end of a task run leads to in turn: one after another, however long the chain is."""
        agenda = self._agenda
        while agenda:
            step, subject = agenda.popleft()
            step(subject)
        if self.held:
            self._admit()

    def _ended(self, run: TaskRun, status: Status) -> None:
        """A task run ended without an output, and whoever waits for it is told."""
        task = run.task
        ran = run.status is RUNNING  # one that never began does not count
        task.runs += ran
        run.status = status
        task.live -= 1
        self._note(task, status, ran)
        if task.watches:
            self._tell_watches(run, None, task.watches)
        if isinstance(run.extra, Call):
            self._call_settled(run, status)
        if type(run.extra) is Place:
            return  # its map is told by the driver
        if task.node is not None and self.edges is not None:
            self.edges.fell(task.node)
            self._edges_settle(run)
        if run.scope is not None:
            if run.slot is not None and status is not SKIPPED:
                run.scope.failed.append(run.id)
            self._agenda.append((self._leave, run.scope))

    def _note(self, task: TaskState, status: Status, ran: bool = False) -> None:
        """A run of a task, or the task that was expected, ended without an output."""
        note(task, status)
        if ran:
            self._ends.in_vain += 1
        else:
            self._ends.never += 1
            self._ends.skipped += status is SKIPPED

    def _drop(self, run: TaskRun, failed: list[str]) -> None:
        """A task run does not start, since what it depends on has failed."""
        skip = run.task.terms.on_dep_failure == "skip"
        error = DependencyFailedError(run.id, failed)
        status = SKIPPED if skip else FAILED
        self.outbox.append(Settled(run.task, run, status, error, str(error)))
        self._ended(run, status)

    def _never(self, task: TaskState, status: Status, error: Exception | None, reason: str) -> None:
        """A task that was expected does not run."""
        self._note(task, status)
        self.outbox.append(Settled(task, None, status, error, reason))

    def _pass_on(self, edges: Edges, node: int, output: Any) -> bool:
        """A task succeeded while all edges are plain: make what runs because of that. Return whether it leads on.

        It does in one step what ``_edges_follow`` and all that follows from it come down to then. The one
        place outside of ``Edges`` that changes what is in there.
        """
        edges.outputs[node] = output
        left, expected, followers = edges.open_needs, edges.expected, edges.graph.followers[node]
        for there in followers:
            still = left[there] - 1
            left[there] = still
            if still:
                continue
            expected[there] = edges.fired[there] = 0  # should the run of one before have ended what is plain
            task: Any = self._nodes[there]
            if task.terms.bare and self._unbounded:  # as ``_follow_edge``
                order = self.scheduled
                self.scheduled = order + 1
                task.live = task.count = task.static = 1
                task.queue.put(self._make(task, 1, None, hash((1, self.keys[there], 0)), order, None, None))
                self.under_way += 1
            else:
                self._follow_edge(task, there)
        return bool(followers)

    def _edges_follow(self, run: TaskRun, output: Any, follow: bool) -> bool:
        """A task with edges succeeded; return whether it followed one."""
        edges, node = self.edges, run.task.node
        assert edges is not None, "only a graph has nodes"
        edges.succeeded(node, output, follow=follow)
        followed = follow and bool(edges.graph.followers[node])
        loops = edges.graph.loops.get(node, ()) if follow else ()
        for there in loops:
            name = edges.graph.names[there]
            if not self.stopped:
                self._meet(name)
                self._request(NextTask(name), hash((run.path, 4, self.keys[there])), run.scope, None)
        self._edges_settle(run)
        return followed or bool(loops)

    def _edges_settle(self, run: TaskRun) -> None:
        """A run of a task with edges is over."""
        edges, node = self.edges, run.task.node
        assert edges is not None, "only a graph has nodes"
        if self.stopped:
            return
        edges.reaches(node, run.scope)
        if run.task.live:
            return
        if run.status is SUCCESS:  # right now: what it leads to counts in its scope before it leaves that
            self._edges_over(node)
        else:
            self._agenda.append((self._edges_over, node))

    def _edges_over(self, node: int) -> None:
        """No run of a task is left: decide whatever waited for it, and what that decides in turn."""
        edges = self.edges
        assert edges is not None, "only a graph has nodes"
        todo = deque([node])
        while todo:
            node = todo.popleft()
            if self._state_of(node).live:
                continue
            decide = [node] if edges.expected[node] or edges.over(node) else edges.leave(node)
            todo.extend(there for there in decide if self._decide(there))

    def _decide(self, node: int) -> bool:
        """Run, skip or fail what waits for nothing any more; True when nothing of the task is active after that."""
        edges = self.edges
        assert edges is not None, "only a graph has nodes"
        task = self._state_of(node)
        released = edges.release(node)
        if edges.is_open(node) and not released:
            return False
        failed = edges.failed.get(node, ())
        for run in released:
            self._start_parked(run)
        if edges.is_open(node):
            return False
        expected = edges.expected[node]
        if expected:
            edges.expected[node] = 0
            self._decide_expected(task, node, failed)
        edges.failed.pop(node, None)
        return bool(expected) and not task.live and not edges.expected[node]

    def _decide_expected(self, task: TaskState, node: int, failed: Iterable[int]) -> None:
        edges = self.edges
        assert edges is not None, "only a graph has nodes"
        fired, edges.fired[node] = edges.fired[node], 0
        if edges.unchosen(node):
            self._skip(task, "it was not chosen")
        elif failed and task.terms.on_dep_failure != "run-anyway":
            names = [edges.graph.names[each] for each in failed]
            edges.fell(node)
            error = DependencyFailedError(task.name, names)
            self._never(task, SKIPPED if task.terms.on_dep_failure == "skip" else FAILED, error, str(error))
        elif fired or failed:
            self._follow_edge(task, node)
        elif not task.runs:
            self._skip(task, "nothing that leads to it ran")

    def _skip(self, task: TaskState, reason: str) -> None:
        if not task.runs:
            self._never(task, SKIPPED, None, reason)

    def _follow_edge(self, task: TaskState, node: int) -> None:
        """Make the task run that the edges lead to."""
        edges = self.edges
        assert edges is not None, "only a graph has nodes"
        limit = self._max_task_runs
        if limit is not None and self.scheduled >= limit:
            edges.expected[node] = 1  # nothing is decided by that: the run is about to end
            if not any(isinstance(said, TaskRunLimitError) for said in self.outbox):
                self.outbox.append(TaskRunLimitError(limit, task.name))
            return
        scope = edges.scope_of(node)
        run = self._make(task, 1, None, hash((1, self.keys[node], task.static)), self.scheduled, scope, None)
        task.static += 1
        task.count = task.count or 1
        task.live += 1
        task.inputs = None
        self.scheduled += 1
        if scope is not None:
            scope.open += 1
        if task.terms.reads_upstream:
            run.needs = edges.upstream(node)
        lacking = self._lacking(task, None, False) if task.terms.required else None
        if lacking is not None:
            error = BindingError(task.name, lacking, run.needs or ())
            self.outbox.append(Settled(task, run, FAILED, error, str(error)))
            self._ended(run, FAILED)
        else:
            self._pass(run)

    def _extra_finished(self, run: TaskRun, output: Any, requests: Sequence[NextTask] | None) -> bool:
        """A submitted call, or an item of a map, succeeded; return whether it is terminal."""
        terminal = False
        if type(run.extra) is Place:
            spread = run.extra.parent.extra
            if type(spread) is Spread:  # else the map has failed
                spread.outputs[run.extra.index] = output
                spread.left -= 1
        elif isinstance(run.extra, Call):
            terminal = not requests and not run.requested and not run.extra.followers
            self._call_settled(run, SUCCESS)
            if run.scope is not None:
                self._leave(run.scope)
        self._work_off()
        return terminal

    def _call_ready(self, run: TaskRun) -> None:
        """A submitted call waits for no other one any more."""
        call = run.extra
        if call.failed and run.task.terms.on_dep_failure != "run-anyway":
            self._drop(run, call.failed)
        else:
            self._pass(run)

    def _call_settled(self, run: TaskRun, status: Status) -> None:
        """A submitted call has ended: tell those that wait for it, and those that this ends in turn."""
        run.extra.settled = status
        todo = deque([(run.extra, run)])
        while todo:
            call, ended = todo.popleft()
            followers, call.followers = call.followers, []
            for follower in followers:
                waiting = follower.run
                if waiting is None or waiting not in self.pending:
                    continue
                if call.settled is not SUCCESS:
                    follower.failed.append(ended.id)
                    follower.because = follower.because or call
                follower.left -= 1
                if follower.left:
                    continue
                self.pending.discard(waiting)
                if follower.failed and waiting.task.terms.on_dep_failure != "run-anyway":
                    self._drop_call(waiting, follower)
                    todo.append((follower, waiting))
                else:
                    self._pass(waiting)

    def _drop_call(self, run: TaskRun, call: Call) -> None:
        """As ``_drop``, for one of a chain of calls: a long chain must not recurse."""
        skip = run.task.terms.on_dep_failure == "skip"
        error = DependencyFailedError(run.id, call.failed)
        run.status = call.settled = SKIPPED if skip else FAILED
        run.task.live -= 1
        self._note(run.task, run.status)
        self.outbox.append(Settled(run.task, run, run.status, error, str(error)))
        if run.scope is not None:
            self._agenda.append((self._leave, run.scope))

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
            task.watches = [*task.watches, Watch(scope, slot, self.scheduled, left)]

    def _tell_watches(self, run: TaskRun, output: Any, earlier: list[Watch]) -> bool:
        """``run`` has ended; return whether a join takes its output in place of a sibling's."""
        taken = False
        watches = run.task.watches
        for watch in [watch for watch in earlier if run.order < watch.before]:
            watch.left -= 1
            if not watch.left:
                watches.remove(watch)
                taken = True
                if run.status is not SUCCESS:
                    watch.scope.failed.append(run.id)
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
                if scope.failed and run.task.terms.on_dep_failure != "run-anyway":
                    self._drop(run, scope.failed)
                elif run.task.node is not None:
                    self._wait_for_edges(run, None)
                else:
                    self._pass(run)
            scope = scope.parent

    def _drain_queues(self) -> list[TaskRun]:
        """Take everything that is ready. A worker may be quicker; what it took has begun."""
        drained = []
        for queue in {id(task.queue): task.queue for task in self._states()}.values():
            while True:
                try:
                    drained.append(queue.popleft())
                except IndexError:
                    break
        return drained


def take_held(held: Held, run: TaskRun) -> bool:
    """Take a run out of a gate that holds it back."""
    for place, entry in enumerate(held):
        if entry[2] is run:
            if place == 0:
                heappop(held)
            else:
                del held[place]
                held.sort()  # a sorted list is a heap
            return True
    return False


def _what_it_waits_for(run: TaskRun) -> str:
    if isinstance(run.extra, Call):
        return "the calls that it depends on"
    return "its items" if type(run.extra) is Spread else "the other task runs of its list"


def _no_task(name: str, node: int | None) -> None:
    """The tasks of a run that has ended."""
