"""What the scheduler keeps of a run: tasks, task runs, and what waits for them. Plain state, no decisions.

Rule: only the scheduler changes anything in here, save what is marked as the driver's.
May import: ready, values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from millstream.engine.ready import Ready
from millstream.errors import StateError
from millstream.values import Status

if TYPE_CHECKING:
    from millstream.policies import Retry

PENDING, RUNNING, SUCCESS = Status.PENDING, Status.RUNNING, Status.SUCCESS
FAILED, CANCELLED, ABANDONED, SKIPPED = Status.FAILED, Status.CANCELLED, Status.ABANDONED, Status.SKIPPED

#: How a task run ends without an output.
FAILURES = frozenset({FAILED, CANCELLED, ABANDONED})

OnDepFailure = Literal["fail", "skip", "run-anyway"]
#: Held back at a gate: the negative priority, the order, and the task run.
Held = list[tuple[int, int, "TaskRun"]]


#: Never added to: a list of its own is for a task that needs one.
NO_WATCHES: list[Watch] = []

#: Of a list of requests that has none yet.
NO_NAMES: frozenset[str] = frozenset()


class Terms:
    """How the runs of a task are to be treated; tasks that are alike share one."""

    __slots__ = (
        "bare", "collects", "gated", "max_parallel", "on_dep_failure", "plain", "priority", "reads_upstream",
        "required", "uses",
    )  # fmt: skip

    def __init__(
        self,
        *,
        collects: bool = False,
        required: tuple[str, ...] = (),
        reads_upstream: bool = True,
        on_dep_failure: OnDepFailure = "fail",
        max_parallel: int | None = None,
        uses: tuple[str, ...] = (),
        priority: int = 0,
    ) -> None:
        self.collects = collects  #: as a join, it reads the outputs of its siblings
        self.required = required  #: parameters that inputs or dependencies must fill
        self.reads_upstream = reads_upstream  #: it takes what its dependencies gave
        self.on_dep_failure = on_dep_failure
        self.max_parallel = max_parallel  #: task runs of it dispatched and not blocked at once
        self.uses = uses  #: names of limits that each of its attempts holds
        self.priority = priority
        self.gated = max_parallel is not None or bool(uses)
        #: All that a run of it takes is a worker.
        self.plain = not (self.gated or priority)
        #: The same when edges lead to it: it needs nothing that they bring.
        self.bare = self.plain and not (required or reads_upstream)


class RunTerms(Terms):
    """The same for the driver: how its runs are called."""

    __slots__ = (
        "each", "executor", "invoke", "is_async", "outputs", "retry", "routes", "says_more", "timeout", "unseen",
    )  # fmt: skip

    def __init__(
        self,
        executor: Any,
        invoke: Callable[[Any, Any], Any],
        *,
        is_async: bool,
        timeout: float | None = None,
        retry: Retry | None = None,
        routes: tuple[str, ...] | None = None,
        outputs: Any = None,
        each: RunTerms | None = None,
        **terms: Any,
    ) -> None:
        super().__init__(**terms)
        self.executor = executor  #: one of ``executors.base``
        self.invoke = invoke  #: calls it for a task run and a context
        self.is_async = is_async
        self.timeout, self.retry = timeout, retry
        self.routes = routes  #: what it may choose; None for a task that is no router
        self.outputs = outputs  #: tells where its output goes besides its name; None: nowhere
        self.says_more = routes is not None or outputs is not None  #: its output does more than to be there
        self.each = each  #: for a task that is mapped: the terms of its items, which ``invoke`` gives
        self.unseen = not (self.uses or retry or timeout)  #: its attempts by themselves need no watching


class TaskState:
    """What one run knows of one task. The driver's subclass adds how it is called."""

    __slots__ = (
        "blocked", "busy", "count", "each", "held", "inputs", "live", "name", "node", "queue", "runs",
        "static", "terms", "watches", "worst",
    )  # fmt: skip

    def __init__(self, name: str, queue: Ready, terms: Terms, node: int | None = None) -> None:
        self.name = name
        self.queue = queue  #: the ready queue that its task runs go to
        self.terms = terms
        self.node = node  #: its number in the graph; None without edges
        self.each: TaskState | None = None  #: for a task that is mapped over items: those
        self.live = 0  #: task runs pending or under way
        self.runs = 0  #: task runs that have ended
        self.count = 0  #: highest number given to one of its task runs
        self.static = 0  #: how many of its task runs came along edges
        self.worst: Status | None = None  #: how the worst of its task runs ended, of those that did not succeed
        self.inputs: Mapping[str, Any] | None = None  #: inputs of its newest task run
        self.watches: list[Watch] = NO_WATCHES  #: scopes that wait for some of its task runs
        if terms.gated:  # else nobody looks at these
            self.held: Held = []  #: not allowed to start yet by its own ``max_parallel``
            self.busy = 0  #: let through by that gate, and not over
            self.blocked = 0  #: of these, how many wait for a value


class TaskRun:
    """One execution of a task; one object for each attempt, so that a late attempt is recognised."""

    __slots__ = (
        "attempt",
        "extra",
        "handle",
        "inputs",
        "needs",
        "number",
        "order",
        "path",
        "priority",
        "requested",
        "scope",
        "slot",
        "status",
        "task",
        "upstream",
    )  # fmt: skip

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
        self.slot = slot  #: its place among the outputs that a join collects; -1: a sibling without one
        self.status = PENDING
        self.attempt = 1
        self.priority = task.terms.priority
        self.requested = 0  #: how many requests it has made
        self.upstream: list[Any] | None = None  #: for a join, the outputs of its siblings
        self.needs: dict[str, Any] | None = None  #: the outputs of its dependencies by name
        self.extra: Any = None  #: its ``Call``, its ``Place`` or its ``Spread``
        self.handle: Any = None  #: the driver's, while it runs

    @property
    def id(self) -> str:
        """``worker``, or ``worker#2`` from the second spawned one on; ``worker[0]`` for an item of a map."""
        name: str = self.task.name if self.number == 1 else f"{self.task.name}#{self.number}"
        return f"{name}[{self.extra.index}]" if type(self.extra) is Place else name

    def begin(self) -> None:
        """A worker has taken it from its ready queue and is about to call it."""
        if self.status is not PENDING:
            raise StateError(f"{self.id} cannot begin: it is {self.status}.")
        self.status = RUNNING

    def __repr__(self) -> str:
        return f"<TaskRun {self.id}: {self.status}>"


class Scope:
    """One list of requests, with all that they schedule in turn: what its joins wait for."""

    __slots__ = ("failed", "joins", "open", "outputs", "owner", "parent", "siblings", "tasks")

    def __init__(self, owner: TaskRun, parent: Scope | None) -> None:
        self.owner = owner  #: the task run that made the list
        self.parent = parent  #: where this scope, and each of its joins, counts
        self.open = 1  #: members not settled yet, and one for the list itself until it is complete
        self.tasks = NO_NAMES  #: what its siblings are runs of
        self.joins: list[TaskRun] = []
        self.siblings = 0  #: requests of the list that are no joins
        self.outputs: list[Any] | None = None  #: one place a sibling; None: no join collects them
        self.failed: list[str] = []  #: ids of siblings that failed


class Watch:
    """A scope waits for the task runs that one of its requests coalesced with."""

    __slots__ = ("before", "left", "scope", "slot")

    def __init__(self, scope: Scope, slot: int, before: int, left: int) -> None:
        self.scope = scope
        self.slot = slot  #: where the output of the last one goes
        self.before = before  #: it waits for those scheduled before this order
        self.left = left  #: how many of them have not ended


class Call:
    """A submitted call: what waits for it, and what it waits for. The same object for all its attempts."""

    __slots__ = ("because", "failed", "followers", "id", "left", "run", "settled")

    def __init__(self) -> None:
        self.id = ""  #: that of its task run
        self.because: Call | None = None  #: the first of those that it depends on that failed
        self.left = 0  #: calls that it depends on and that have not ended
        self.failed: list[str] = []  #: ids of those that failed
        self.followers: list[Call] = []  #: calls that wait for it
        self.settled: Status | None = None
        self.run: TaskRun | None = None  #: its newest attempt, until it has ended

    # What the driver's subclass does. ``run`` is its FlowRun.

    error: BaseException | None  #: why it failed
    withdrawn: bool  #: it was cancelled, or has ended

    def succeed(self, run: Any, output: Any) -> None:
        """It gave its output."""
        raise NotImplementedError("the driver's calls have handles")

    def fail(self, run: Any, error: BaseException, *, cancelled: bool) -> None:
        """It has failed, was cancelled, or never starts."""
        raise NotImplementedError("the driver's calls have handles")

    def forget(self) -> None:
        """It has ended for good."""


class Spread:
    """A task run that is mapped over items."""

    __slots__ = ("left", "outputs")

    def __init__(self, items: int) -> None:
        self.left = items
        self.outputs: list[Any] = [None] * items


class Place:
    """Which item of a map a task run is for."""

    __slots__ = ("index", "item", "parent")

    def __init__(self, parent: TaskRun, index: int, item: Any) -> None:
        self.parent, self.index, self.item = parent, index, item


class Ends:
    """How many task runs have ended without an output."""

    __slots__ = ("in_vain", "never", "skipped")

    def __init__(self) -> None:
        self.in_vain = 0  #: that had begun
        self.never = 0  #: that had not
        self.skipped = 0  #: of these


class Counts(NamedTuple):
    """How many task runs there are in a run."""

    ended: int  #: but for those that never began
    in_vain: int  #: of these, without an output
    never: int  #: ended without having begun: skipped, failed or cancelled
    skipped: int  #: of these
    live: int  #: pending or under way
    expected: int  #: still to come, as far as is known
    may_grow: bool  #: further ones may come that nothing is known of


class Settled(NamedTuple):
    """A task, or a run of it, that ended without a worker."""

    task: TaskState
    run: TaskRun | None  #: None: nothing was made of it yet
    status: Status
    error: Exception | None
    reason: str


class Coalesced(NamedTuple):
    """A request that was dropped, since a run of its task is pending or under way."""

    task: TaskState
    kept: Mapping[str, Any] | None  #: the inputs of that one
    dropped: Mapping[str, Any] | None  #: the inputs of the request


def note(task: TaskState, status: Status) -> None:
    """Keep the worst that became of a task's runs."""
    if task.worst is None or WORSE.index(status) < WORSE.index(task.worst):
        task.worst = status


#: From the worst on.
WORSE = (FAILED, ABANDONED, CANCELLED, SKIPPED)
