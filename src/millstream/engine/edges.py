"""What the static edges of a flow mean while it runs: who may still come, who may be decided.

Every task is *active* while a run of it is pending or under way, or while one may still come along
the edges: then it is *expected*. Each task counts its active dependencies and routers. At zero it is
decided: it runs when a dependency that succeeded leads to it, it is skipped when none does, and a
dependency that failed is a matter of its ``on_dep_failure``. A task that was asked for by name waits
for its active dependencies as well, and is *parked* until then.

A finish follows the edges anew: what it leads to is expected again, with all that comes after. So a
task runs once for each wave that reaches it, with the newest outputs. Edges that lead back (``loops``)
are not waited for.

Most graphs are *plain* while they run: nothing but dependencies, each task runs once, and nothing has
failed. Then the scheduler's ``_pass_on`` does in one step all that the end of a task means.

Pure, as the scheduler that owns it: tasks are numbers of the ``Graph``, and nothing is called.
May import: graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from millstream.engine.states import Scope, TaskRun
    from millstream.graph import Graph


#: In the place of the output of a task whose newest run has not succeeded.
NOTHING = object()


class Edges:
    """The state of a flow's edges in one run."""

    __slots__ = (
        "_active", "_bad", "_open_routers", "_parked", "_scoped", "_scopes", "expected", "failed", "fired", "graph",
        "met", "open_needs", "outputs", "plain",
    )  # fmt: skip

    def __init__(self, graph: Graph) -> None:
        tasks = len(graph.names)
        self.graph = graph
        self.expected = bytearray(tasks)  #: nothing asked for it by name, but edges may lead to it
        self.met = bytearray(tasks)  #: it was part of this run at some time
        self.fired = bytearray(tasks)  #: a dependency that succeeded has led to it
        self.outputs: list[Any] = [NOTHING] * tasks  #: what its newest run gave, if that has succeeded
        #: The end of a task means no more than ``_pass_on`` does; never again, once it is not. What that leaves
        #: out is in _active and fired after ``in_general``.
        self.plain = False
        self.failed: dict[int, dict[int, None]] = {}  #: what has failed of that which a task follows
        self._active = bytearray(tasks)
        self._bad = bytearray(tasks)  # one of its runs has failed in this wave
        self.open_needs = [0] * tasks  #: how many dependencies are active
        self._open_routers = [0] * tasks
        self._parked: dict[int, list[tuple[TaskRun, bool]]] = {}
        self._scoped = False  # only then is there anything in _scopes
        self._scopes: dict[int, Scope | None] = {}

    def begin(self, starts: Sequence[int]) -> None:
        """The run begins with these tasks: all that edges lead to from them is expected."""
        graph = self.graph
        if not graph.special and starts == graph.entries():  # all of it, which needs no walk
            linked = graph.linked()
            self._active, self.met, self.expected = bytearray(linked), bytearray(linked), bytearray(linked)
            self.open_needs = graph.count_needs()
            for task in starts:
                self.expected[task] = 0
        for task in starts:
            self.activate(task)
        self.plain = not graph.special

    def activate(self, task: int) -> None:
        """A task is asked for: it is pending, and whatever edges lead to from it is expected."""
        if self._is_active(task):
            return
        self.in_general()
        active, met, expected = self._active, self.met, self.expected
        active[task] = met[task] = 1
        outputs, bad = self.outputs, self._bad  # what comes now is a new wave
        outputs[task], bad[task] = NOTHING, 0
        counts = ((self.graph.followers, self.open_needs), (self.graph.routes, self._open_routers))
        ways = [task]
        while ways:
            here = ways.pop()
            for edges, open_ends in counts:
                for there in edges[here]:
                    open_ends[there] += 1
                    if not active[there]:
                        active[there] = met[there] = expected[there] = 1
                        outputs[there], bad[there] = NOTHING, 0
                        ways.append(there)

    def in_general(self) -> None:
        """Not all is plain any more: catch up with what ``_pass_on`` left out."""
        if not self.plain:
            return
        self.plain = False
        for task, output in enumerate(self.outputs):
            if output is not NOTHING:
                self._active[task] = 0
                for there in self.graph.followers[task]:
                    self.fired[there] = self.expected[there]

    def holds(self, task: int, *, routers: bool) -> bool:
        """Whether a run of a task has to wait for a dependency, or for what may choose the task, too."""
        return bool(self.open_needs[task] or (routers and self._open_routers[task]))

    def park(self, task: int, run: TaskRun, *, routers: bool) -> None:
        """A run of a task waits for what ``holds`` it; it is not merely expected any more."""
        self.in_general()
        self._parked.setdefault(task, []).append((run, routers))

    @property
    def done(self) -> bool:
        """Nothing waits for an edge."""
        return not (self._parked or 1 in self.expected)

    def parked(self) -> list[TaskRun]:
        """Return all runs that wait."""
        return [run for runs in self._parked.values() for run, _ in runs]

    def claim(self, task: int) -> None:
        """A task is asked for by name: it is not merely expected any more."""
        if self.expected[task]:
            self.in_general()
            self.expected[task] = 0

    def succeeded(self, task: int, output: Any, *, follow: bool) -> None:
        """A run of a task gave its output; ``follow`` unless it has chosen for itself what comes next."""
        self.in_general()
        self.outputs[task] = output
        if follow:
            fired = self.fired
            for there in self.graph.followers[task]:
                fired[there] = 1

    def fell(self, task: int) -> None:
        """A run of a task failed, or was skipped since something before it failed."""
        self.in_general()
        self.outputs[task] = NOTHING
        self._bad[task] = 1
        for there in self._leads_to(task):
            self.failed.setdefault(there, {})[task] = None

    def failing(self, task: int) -> list[int]:
        """Return those dependencies and routers of a task that have failed in their newest wave."""
        bad, graph = self._bad, self.graph
        if 1 not in bad:
            return []
        return [each for each in (*graph.needs[task], *graph.routers[task]) if bad[each]]

    def reaches(self, task: int, scope: Scope | None) -> None:
        """A task that counts in ``scope`` is over: what it leads to counts there too, as far as all of it does."""
        if not self._scoped:
            if scope is None:
                return
            self._begin_scopes(task)
        for there in self._leads_to(task):
            self._scopes[there] = common(self._scopes.get(there, scope), scope)

    def _begin_scopes(self, task: int) -> None:
        """The first scope: what has ended before counts in none, and so does what it leads to."""
        self._scoped = True
        for each, met in enumerate(self.met):
            if met and not self._active[each] and each != task:
                for there in self._leads_to(each):
                    if self.expected[there]:
                        self._scopes[there] = None

    def _leads_to(self, task: int) -> Iterable[int]:
        """Return what follows a task, and what it may choose."""
        return chain(self.graph.followers[task], self.graph.routes[task])

    def scope_of(self, task: int) -> Scope | None:
        """Return the scope in which the next run of a task counts: the innermost that is not over."""
        scope = self._scopes.pop(task, None) if self._scoped else None
        while scope is not None and not scope.open:
            scope = scope.parent
        return scope

    def over(self, task: int) -> bool:
        """No run of a task is left; return whether it may come again, and is expected therefore."""
        if not self._active[task]:
            return False
        if self.fired[task] or task in self.failed or self.open_needs[task] or self._open_routers[task]:
            self.expected[task] = 1
            return True
        return False

    def leave(self, task: int) -> list[int]:
        """A task is not active any more; return those that this lets decide, in the order of registration."""
        decide: list[int] = []
        if not self._active[task]:
            return decide
        self._active[task] = 0
        if self._scoped:
            self._scopes.pop(task, None)  # of a wave that is over
        needs, routers, expected, parked = self.open_needs, self._open_routers, self.expected, self._parked
        for there in self.graph.followers[task]:
            needs[there] -= 1
            if not needs[there] and ((expected[there] and not routers[there]) or there in parked):
                decide.append(there)
        for there in self.graph.routes[task]:
            routers[there] -= 1
            if not routers[there] and not needs[there] and (expected[there] or there in parked):
                decide.append(there)
        return decide

    def is_open(self, task: int) -> bool:
        """Whether something active can still lead to a task."""
        return bool(self.open_needs[task] or self._open_routers[task])

    def release(self, task: int) -> list[TaskRun]:
        """Return the runs of a task that were parked and need not wait any longer."""
        parked = self._parked.pop(task, None)
        if parked is None:
            return []
        kept, released = [], []
        for run, routers in parked:
            if self.holds(task, routers=routers):
                kept.append((run, routers))
            else:
                released.append(run)
        if kept:
            self._parked[task] = kept
        return released

    def unchosen(self, task: int) -> bool:
        """Whether a task that nobody asked for by name is one that has to be chosen, and could have been."""
        routers = self.graph.routers[task]
        if not routers or not any(self.met[router] for router in routers):
            return False
        return not any(router in self.failed.get(task, ()) for router in routers)

    def upstream(self, task: int) -> dict[str, Any] | None:
        """Return the outputs of the dependencies that ran, by name; None when none is part of this run."""
        if not self.graph.depends(task):
            return None
        needs = self.graph.declared[task]
        if not any(self.met[need] for need in needs):
            return None
        names, outputs = self.graph.names, self.outputs
        return {names[need]: outputs[need] for need in needs if outputs[need] is not NOTHING}

    def waits_for(self, task: int) -> list[str]:
        """Return the names of what a task waits for."""
        graph = self.graph
        return [graph.names[need] for need in (*graph.needs[task], *graph.routers[task]) if self._is_active(need)]

    def _is_active(self, task: int) -> bool:
        return bool(self._active[task]) and not (self.plain and self.outputs[task] is not NOTHING)

    def awaited(self) -> list[int]:
        """Return what is expected."""
        return [task for task, expected in enumerate(self.expected) if expected] if 1 in self.expected else []

    def stop(self) -> list[int]:
        """Nothing comes any more: return what was expected."""
        left = self.awaited()
        self.expected = bytearray(len(self.expected))
        self._parked = {}
        return left


def common(one: Scope | None, other: Scope | None) -> Scope | None:
    """Return the innermost scope that is around both."""
    around = set()
    while one is not None:
        around.add(one)
        one = one.parent
    while other is not None and other not in around:
        other = other.parent
    return other
