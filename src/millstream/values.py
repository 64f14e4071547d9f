"""What a task returns and what a run emits: plain values, no behaviour.

These are made once or more for every task run, so they are small slotted classes that check
what they are given and do nothing else. May import: the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

if TYPE_CHECKING:
    # Only type checkers know defaults of type variables before Python 3.13: TaskOutput is TaskOutput[Any].
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")


class Status(StrEnum):
    """What became of a task run, or of a whole flow run."""

    PENDING = "PENDING"  #: waits for what it depends on, or for a worker
    RUNNING = "RUNNING"  #: a worker has it
    SUCCESS = "SUCCESS"  #: its output is in the context
    FAILED = "FAILED"  #: it raised, or what it returned could not be used
    SKIPPED = "SKIPPED"  #: it was not chosen, or its policy says so
    CANCELLED = "CANCELLED"  #: its run ended before it began, or it stopped when told to
    ABANDONED = "ABANDONED"  #: it was given up while its code went on; what it does later is ignored


class NextTask:
    """A request that a task makes: run this task next.

    Args:
        id: name of a task of the same flow.
        inputs: values for the parameters of that task, by name; copied.
        spawn_another: start a further task run even while one of that task is pending or running.
            Without it such a request coalesces with the one under way.
        priority: a higher one starts earlier; the task's own when None.
        join: start once, after every other task run scheduled by the same list and all that they
            schedule in turn; its ``upstream`` is the list of its siblings' outputs.

    Raises:
        TypeError: a value of the wrong type.
    """

    __slots__ = ("id", "inputs", "join", "priority", "spawn_another")

    def __init__(
        self,
        id: str,
        inputs: Mapping[str, Any] | None = None,
        spawn_another: bool = False,
        *,
        join: bool = False,
        priority: int | None = None,
    ) -> None:
        if not isinstance(id, str):
            raise TypeError(f"NextTask takes the name of a task, not {id!r}.")
        if inputs is not None:
            inputs = copied_inputs(inputs, f"NextTask({id!r})")
        if spawn_another is not True and spawn_another is not False:
            raise TypeError(f"NextTask({id!r}) takes spawn_another=True or False, not {spawn_another!r}.")
        if join is not False and join is not True:
            raise TypeError(f"NextTask({id!r}) takes join=True or False, not {join!r}.")
        if priority is not None and (priority is True or priority is False or not isinstance(priority, int)):
            raise TypeError(f"NextTask({id!r}) takes priority as a whole number, not {priority!r}.")
        self.id = id
        self.inputs = inputs
        self.spawn_another = spawn_another
        self.join = join
        self.priority = priority

    def __repr__(self) -> str:
        said = [repr(self.id)]
        if self.inputs is not None:
            said.append(f"inputs={self.inputs!r}")
        said += [f"{flag}=True" for flag in ("spawn_another", "join") if getattr(self, flag)]
        if self.priority is not None:
            said.append(f"priority={self.priority}")
        return f"NextTask({', '.join(said)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NextTask):
            return NotImplemented
        return all(getattr(self, slot) == getattr(other, slot) for slot in NextTask.__slots__)

    __hash__ = None  # type: ignore[assignment]  # it holds a mutable mapping


class TaskOutput(Generic[T]):
    """The output of a task, and what it wants to run next.

    Args:
        output: the value; stored in the context under the name of the task.
        next_tasks: ``NextTask`` requests. ``None`` follows the edges that the flow declares; a list
            or tuple, even an empty one, is the task's own choice and is taken at once; any other
            iterable is pulled as workers become free, so it may be endless.
    """

    __slots__ = ("next_tasks", "output")

    output: T
    next_tasks: Iterable[NextTask] | None

    def __init__(
        self,
        output: T = None,  # type: ignore[assignment]  # TaskOutput() is a TaskOutput[Any]
        next_tasks: Iterable[NextTask] | NextTask | None = None,
    ) -> None:
        self.output = output
        self.next_tasks = [next_tasks] if type(next_tasks) is NextTask else next_tasks  # type: ignore[assignment]

    def __repr__(self) -> str:
        if self.next_tasks is None:
            return f"TaskOutput({self.output!r})"
        return f"TaskOutput({self.output!r}, {self.next_tasks!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TaskOutput):
            return NotImplemented
        return bool(self.output == other.output and self.next_tasks == other.next_tasks)

    __hash__ = None  # type: ignore[assignment]  # it holds a mutable list


class StreamChunk(NamedTuple):
    """One value of a stream: an interim value or the output of a task run."""

    task_id: str  #: id of the task run that it comes from, such as ``count#2``
    value: Any


class Items:
    """What a task gives that is to be mapped: the items, each of which becomes a task run."""

    __slots__ = ("items",)

    def __init__(self, items: list[Any]) -> None:
        self.items = items


def copied_inputs(inputs: Any, whose: str) -> dict[str, Any]:
    """Return a copy of an inputs mapping, or refuse what is none.

    Raises:
        TypeError: ``inputs`` is no mapping, or has a key that is no string.
    """
    if type(inputs) is not dict and not isinstance(inputs, Mapping):
        raise TypeError(
            f"{whose} takes inputs as a mapping of names to values, not {type(inputs).__name__}: "
            "for one plain value use inputs={'payload': value}."
        )
    copy = dict(inputs)
    for key in copy:
        if type(key) is not str and not isinstance(key, str):
            raise TypeError(f"{whose} has an input named {key!r}: names of inputs are strings.")
    return copy
