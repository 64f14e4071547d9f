"""What happens in a run, as values, and ``Hook``: the methods that are given them.

Every event starts with the same three fields: ``run_id`` and ``flow``, the names of the run and of
its flow, and ``at``, the instant of it in seconds since the epoch. Durations and delays are seconds.

Rule 1: an event is a fact of the past. It holds values, and nothing through which a run could be changed.
Rule 2: nothing is called here but what says whether a hook is one. Who calls hooks, in which thread and
in which order, is the engine's to decide; ``listened`` tells it which events nobody would read.

May import: values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from typing import TypedDict, Unpack

    from millstream.values import Status


class Record:
    """A value whose fields are the parameters of its constructor: equal by them, and shown by them.

    A plain class, since it is cheap: ``dataclasses`` takes as long to import as half of this library, and
    a NamedTuple takes twenty times as long to define.
    """

    __slots__ = ()

    def _fields(self) -> dict[str, Any]:
        code = type(self).__init__.__code__
        return {name: getattr(self, name) for name in code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]}

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._fields() == other._fields()

    __hash__ = None  # type: ignore[assignment]  # it may hold anything

    def __repr__(self) -> str:
        said = (f"{name}={shown(value)}" for name, value in self._fields().items())
        return f"{type(self).__name__}({', '.join(said)})"


class _RunEvent(Record):
    """The fields of every event."""

    __slots__ = ("at", "flow", "run_id")

    def __init__(self, run_id: str, flow: str, at: float) -> None:
        self.run_id = run_id
        self.flow = flow  #: name of the flow
        self.at = at  #: when it happened, in seconds since the epoch


class _TaskEvent(_RunEvent):
    """The fields of every event of a task run.

    Two of them are made for every task run that a hook hears of, so those below call no ``super().__init__``.
    """

    __slots__ = ("id", "task")

    def __init__(self, run_id: str, flow: str, at: float, task: str, id: str) -> None:
        self.run_id, self.flow, self.at = run_id, flow, at
        self.task = task  #: name of the task
        self.id = id  #: id of the task run, such as ``count#2``


class RunStartEvent(_RunEvent):
    """A run has started."""

    __slots__ = ()


class RunEndEvent(_RunEvent):
    """A run has ended; no event of it comes later."""

    __slots__ = ("duration", "error", "status")

    def __init__(
        self, run_id: str, flow: str, at: float, status: Status, duration: float, error: BaseException | None
    ) -> None:
        self.run_id, self.flow, self.at = run_id, flow, at
        self.status = status  #: ``SUCCESS``, ``FAILED`` or ``CANCELLED``
        self.duration = duration  #: seconds since the start of the run
        self.error = error  #: why it ended, None when it succeeded


class TaskStartEvent(_TaskEvent):
    """An attempt of a task run begins."""

    __slots__ = ("attempt",)

    def __init__(self, run_id: str, flow: str, at: float, task: str, id: str, attempt: int) -> None:
        self.run_id = run_id
        self.flow = flow
        self.at = at
        self.task = task
        self.id = id
        self.attempt = attempt  #: 1 for the first


class TaskSuccessEvent(_TaskEvent):
    """A task run has succeeded."""

    __slots__ = ("attempt", "duration", "output")

    def __init__(
        self, run_id: str, flow: str, at: float, task: str, id: str, attempt: int, duration: float, output: Any
    ) -> None:
        self.run_id = run_id
        self.flow = flow
        self.at = at
        self.task = task
        self.id = id
        self.attempt = attempt  #: the one that succeeded, 1 for the first
        self.duration = duration  #: seconds that this attempt took
        self.output = output  #: what the task returned, the object itself


class TaskFailureEvent(_TaskEvent):
    """An attempt of a task run has failed. There is one for each such attempt, the last or not."""

    __slots__ = ("attempt", "delay", "duration", "error", "will_retry")

    def __init__(
        self,
        run_id: str,
        flow: str,
        at: float,
        task: str,
        id: str,
        attempt: int,
        duration: float,
        error: BaseException,
        will_retry: bool,
        delay: float | None,
    ) -> None:
        self.run_id = run_id
        self.flow = flow
        self.at = at
        self.task = task
        self.id = id
        self.attempt = attempt  #: the one that failed, 1 for the first
        self.duration = duration  #: seconds that this attempt took
        self.error = error  #: what it raised
        self.will_retry = will_retry  #: whether another attempt follows
        self.delay = delay  #: seconds until that one, None when there is none


class TaskRetryEvent(_TaskEvent):
    """A task run is to be tried again; it follows the ``TaskFailureEvent`` of the attempt before."""

    __slots__ = ("attempt", "delay", "error")

    def __init__(
        self, run_id: str, flow: str, at: float, task: str, id: str, attempt: int, delay: float, error: BaseException
    ) -> None:
        self.run_id = run_id
        self.flow = flow
        self.at = at
        self.task = task
        self.id = id
        self.attempt = attempt  #: the one to come, 2 or more
        self.delay = delay  #: seconds until it begins
        self.error = error  #: what the attempt before raised


class TaskSkipEvent(_TaskEvent):
    """A task run will not start, and has not failed."""

    __slots__ = ("reason",)

    def __init__(self, run_id: str, flow: str, at: float, task: str, id: str, reason: str) -> None:
        self.run_id = run_id
        self.flow = flow
        self.at = at
        self.task = task
        self.id = id
        self.reason = reason  #: why, as a sentence for people


class TaskCancelEvent(_TaskEvent):
    """An attempt of a task run was cancelled while it was under way, or given up at the end of its run."""

    __slots__ = ("attempt", "duration")

    def __init__(self, run_id: str, flow: str, at: float, task: str, id: str, attempt: int, duration: float) -> None:
        self.run_id = run_id
        self.flow = flow
        self.at = at
        self.task = task
        self.id = id
        self.attempt = attempt  #: 1 for the first
        self.duration = duration  #: seconds that this attempt took


class TaskCoalescedEvent(_TaskEvent):
    """A request was dropped for a task run that is under way, although its inputs were others."""

    __slots__ = ("dropped", "kept")

    def __init__(
        self,
        run_id: str,
        flow: str,
        at: float,
        task: str,
        id: str,
        kept: Mapping[str, Any],
        dropped: Mapping[str, Any],
    ) -> None:
        self.run_id = run_id
        self.flow = flow
        self.at = at
        self.task = task
        self.id = id
        self.kept = kept  #: the inputs of the task run that is under way
        self.dropped = dropped  #: the inputs of the request, which nobody will see


class TaskProgressEvent(_TaskEvent):
    """A task run says how far it has got."""

    __slots__ = ("attempt", "done", "total")

    def __init__(
        self, run_id: str, flow: str, at: float, task: str, id: str, attempt: int, done: float, total: float | None
    ) -> None:
        self.run_id = run_id
        self.flow = flow
        self.at = at
        self.task = task
        self.id = id
        self.attempt = attempt
        self.done = done  #: how much is done, in units of the task's choice
        self.total = total  #: how much there is, if the task knows


Event: TypeAlias = (
    RunStartEvent
    | RunEndEvent
    | TaskStartEvent
    | TaskSuccessEvent
    | TaskFailureEvent
    | TaskRetryEvent
    | TaskSkipEvent
    | TaskCancelEvent
    | TaskCoalescedEvent
    | TaskProgressEvent
)

#: The method of a hook that is given the events of a class.
HOOK_METHODS: Mapping[type[Event], str] = {
    RunStartEvent: "on_run_start",
    RunEndEvent: "on_run_end",
    TaskStartEvent: "on_task_start",
    TaskSuccessEvent: "on_task_success",
    TaskFailureEvent: "on_task_failure",
    TaskRetryEvent: "on_task_retry",
    TaskSkipEvent: "on_task_skip",
    TaskCancelEvent: "on_task_cancel",
    TaskCoalescedEvent: "on_task_coalesced",
    TaskProgressEvent: "on_task_progress",
}

#: The methods that are called by who does the work.
ENTER_METHODS = ("enter_run", "enter_task")

#: CO_GENERATOR, CO_COROUTINE and CO_ASYNC_GENERATOR: flags of code that a mere call does not run.
#: They are those of ``inspect``, which is too slow to import for three numbers.
_NOT_RUN_BY_A_CALL = 0x20 | 0x80 | 0x200


def shown(value: object, how: Callable[[Any], str] = repr) -> str:
    """Return the text of a value that is not ours, also of one that cannot give it."""
    try:
        text = how(value)
        return text if type(text) is str else str.__str__(text)  # a subclass may have methods of its own
    except BaseException:  # whatever foreign code raises, SystemExit too: a report is not worth a run
        return f"<a {type(value).__name__} that cannot be shown>"


def check_method(whose: str, name: str, method: object) -> None:
    """Refuse what cannot be the method ``name`` of a hook.

    Raises:
        TypeError: hooks have no such method, or ``method`` cannot be called as a plain function.
    """
    known = (*HOOK_METHODS.values(), *ENTER_METHODS)
    if name not in known:
        from difflib import get_close_matches  # only for an error's text

        near = get_close_matches(name, known, n=1)
        mend = f"did you mean {near[0]}? There are" if near else "there are"
        raise TypeError(f"{whose} has {name}, which is no method of a hook: {mend} {', '.join(known)}.")
    if not callable(method):
        raise TypeError(f"{whose} takes a callable as {name}, not {shown(method)}.")
    if _flags(method) & _NOT_RUN_BY_A_CALL:
        raise TypeError(
            f"{whose} has an async def or a generator as {name}, which a call would not run: make it a plain def."
        )


def _flags(function: Any) -> int:
    """Return the code flags of what a call of ``function`` runs, 0 where that is not Python code."""
    while isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    flags = getattr(code, "co_flags", 0)
    return flags if isinstance(flags, int) else 0


class Hook:
    """What wants to know how runs go: make a subclass, with the methods that you need.

    ::

        class Failures(Hook):
            def on_task_failure(self, event):
                print(f"{event.id} failed: {event.error}")

        flow = Flow(hooks=[Failures()])

    Each hook is called in a thread of its own, never in that of a task, and is given the events of a run
    in their order; ``enter_run`` and ``enter_task`` are the exception. One that raises is logged and harms
    nothing. Events for which a hook has no method of its own cost nothing.

    Raises:
        TypeError: a method is ``async def`` or a generator (a call would not run it), or an attribute
            starts with ``on_`` or ``enter_`` and is none of ours (when the class is made).
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in dir(cls):
            if name.startswith(("on_", "enter_")):
                check_method(cls.__name__, name, getattr(cls, name))

    def on_run_start(self, event: RunStartEvent) -> None:
        """Called when a run has started."""

    def on_run_end(self, event: RunEndEvent) -> None:
        """Called when a run has ended, however it did."""

    def on_task_start(self, event: TaskStartEvent) -> None:
        """Called when an attempt of a task run begins."""

    def on_task_success(self, event: TaskSuccessEvent) -> None:
        """Called when a task run has succeeded."""

    def on_task_failure(self, event: TaskFailureEvent) -> None:
        """Called when an attempt of a task run has failed, each time."""

    def on_task_retry(self, event: TaskRetryEvent) -> None:
        """Called when a task run is to be tried again, before it waits for that."""

    def on_task_skip(self, event: TaskSkipEvent) -> None:
        """Called when it is settled that a task run is skipped."""

    def on_task_cancel(self, event: TaskCancelEvent) -> None:
        """Called when an attempt was cancelled while it was under way, or given up at the end of its run."""

    def on_task_coalesced(self, event: TaskCoalescedEvent) -> None:
        """Called when a request was dropped although its inputs were others than those of the task run under way."""

    def on_task_progress(self, event: TaskProgressEvent) -> None:
        """Called when a task run has said how far it has got (``current_task().progress``)."""

    def enter_run(self, event: RunStartEvent) -> Callable[[], object] | None:
        """Called before a run begins, by who starts it, in the context variables that its tasks will have.

        This is for tracers and the like: see ``millstream.telemetry``. It holds up the run.

        Returns:
            What is to be called in these context variables, which it may set; None: nothing.
        """

    def enter_task(self, event: TaskStartEvent) -> Callable[[], object] | None:
        """Called before each attempt of a task, by the worker. It holds up the task.

        Returns:
            What is to be called right before the task, where that is called and in the context variables that it is
            called in: in another thread or coroutine, or in another process, where it comes as a pickle. None:
            nothing.
        """


class _FunctionHook(Hook):
    """A hook whose methods are the callables that it was given."""

    def __init__(self, callables: Mapping[str, object]) -> None:
        self.__dict__.update(callables)

    def __repr__(self) -> str:
        return f"<Hook of {', '.join(vars(self))}>"


if TYPE_CHECKING:

    class HookFunctions(TypedDict, total=False):
        """What ``fn_hook`` takes."""

        on_run_start: Callable[[RunStartEvent], object]
        on_run_end: Callable[[RunEndEvent], object]
        on_task_start: Callable[[TaskStartEvent], object]
        on_task_success: Callable[[TaskSuccessEvent], object]
        on_task_failure: Callable[[TaskFailureEvent], object]
        on_task_retry: Callable[[TaskRetryEvent], object]
        on_task_skip: Callable[[TaskSkipEvent], object]
        on_task_cancel: Callable[[TaskCancelEvent], object]
        on_task_coalesced: Callable[[TaskCoalescedEvent], object]
        on_task_progress: Callable[[TaskProgressEvent], object]
        enter_run: Callable[[RunStartEvent], Callable[[], object] | None]
        enter_task: Callable[[TaskStartEvent], Callable[[], object] | None]


def fn_hook(**callables: Unpack[HookFunctions]) -> Hook:
    """Make a hook of callables, each given under the name of the method that it stands for.

    ``fn_hook(on_task_success=lambda event: print(event.output))``. What they return is ignored.

    Raises:
        TypeError: nothing is given, a name is no method of ``Hook``, or a value cannot be called as a
            plain function.
    """
    if not callables:
        raise TypeError("fn_hook takes at least one callable, such as fn_hook(on_task_success=print).")
    for name, function in callables.items():
        check_method("fn_hook", name, function)
    return _FunctionHook(callables)


def check_hooks(hooks: Iterable[Hook]) -> tuple[Hook, ...]:
    """Return the hooks of a flow, or refuse what are none.

    Raises:
        TypeError: ``hooks`` is no iterable, has something that is no ``Hook`` instance, or a hook with
            a method that was set later and that ``Hook`` refuses.
    """
    if isinstance(hooks, Hook) or not hasattr(type(hooks), "__iter__"):
        raise TypeError(_no_hook(hooks))
    checked = tuple(hooks)
    for hook in checked:
        if not isinstance(hook, Hook):
            raise TypeError(_no_hook(hook))
        for name in (*HOOK_METHODS.values(), *ENTER_METHODS):
            check_method(type(hook).__name__, name, getattr(hook, name))
    return checked


def listened(hook: Hook) -> frozenset[type[Event]]:
    """Return the classes of events for which a hook has a method of its own."""
    return frozenset(
        event
        for event, name in HOOK_METHODS.items()
        if getattr(getattr(hook, name), "__func__", None) is not getattr(Hook, name)
    )


def enters(hook: Hook) -> bool:
    """Whether a hook sets up the context variables of tasks."""
    methods = ((hook.enter_run, Hook.enter_run), (hook.enter_task, Hook.enter_task))
    return any(getattr(method, "__func__", None) is not plain for method, plain in methods)


def _no_hook(value: object) -> str:
    """Return the sentence for what was given as hooks, or as one of them, and is none."""
    if isinstance(value, Hook):
        mend = f"put {shown(value)} in a list."
    elif isinstance(value, type):
        mend = f"{value.__name__} is a class, make one of it with {value.__name__}()."
    elif callable(value):
        name = getattr(value, "__name__", None) or shown(value)
        mend = f"use fn_hook(on_task_success=...) to make one of {name}."
    else:
        mend = f"{shown(value)} is none; make a subclass of Hook, or use fn_hook(on_task_success=...)."
    return f"Flow(hooks=[...]) takes Hook instances: {mend}"
