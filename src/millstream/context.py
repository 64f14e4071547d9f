"""``Context`` and ``State``: what the task runs of a run share.

A context is a mapping under one monitor, which is also the lock of every run that uses the context:
what a task run sets, who waits for it and what may start are then one locked step. Blocking itself
is the engine's business: while a run uses the context it attaches a ``Waits``; without one a missing
key raises at once. May import: values, errors, monitor, task.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Protocol, cast

from millstream.errors import ContextKeyError
from millstream.monitor import Monitor
from millstream.task import check_wait, current_run
from millstream.values import StreamChunk

if TYPE_CHECKING:
    # Only type checkers know defaults of type variables before Python 3.13: Context is Context[Any].
    from typing_extensions import TypeVar

    DepsT = TypeVar("DepsT", default=Any)
else:
    from typing import TypeVar

    DepsT = TypeVar("DepsT")


class _Missing:
    """The one value that no caller can pass by accident."""

    def __repr__(self) -> str:
        return "<required>"


MISSING = _Missing()


#: The context that is meant where one travels to another process, or has come from there.
crossing: ContextVar[Any] = ContextVar("millstream.crossing", default=None)


def arrived() -> Any:
    """Return the context that stands here for one that came from another process.

    Raises:
        TypeError: it did not come with a call of a task.
    """
    context = crossing.get()
    if context is None:
        raise TypeError("A context was pickled for a task in another process, and has arrived somewhere else.")
    return context


class Waits(Protocol):
    """What the engine attaches to a context while runs use it (``engine/waits.py``)."""

    waiting: dict[str, Any]

    def satisfy(self, key: str, value: Any) -> None:
        """Called under the monitor when ``key``, for which somebody waits, is set."""

    def wait(self, key: str, default: Any, timeout: float | None, external: bool) -> Any:
        """Block until ``key`` is set, give its value; or raise when nothing can set it."""

    async def await_(self, key: str, default: Any, timeout: float | None, external: bool) -> Any:
        """The same, without blocking the event loop."""


class Keeper(Protocol):
    """What keeps the changes of a context (``engine/journal.py``). Called under the monitor, before each change.

    All raise ``CheckpointError`` when the change cannot be kept; then it must not happen.
    """

    def set(self, key: str, value: Any) -> None:
        """A key is about to be set."""

    def append(self, key: str, value: Any) -> None:
        """A value is about to be appended to the list of a key."""

    def delete(self, key: str) -> None:
        """A key is about to be removed."""


class Context(Generic[DepsT]):
    """The key → value store that the task runs of one run share. Safe from any thread.

    Args:
        values: what it holds at first; copied. Keys are strings.
        deps: an object of yours that every task can reach as ``ctx.deps``; typed by
            ``Context[Deps]``.
        metadata: facts about the run for its report; read-only as ``ctx.metadata``.
    """

    def __init__(
        self,
        values: Mapping[str, Any] | None = None,
        *,
        deps: DepsT = None,  # type: ignore[assignment]  # Context() is a Context[Any]
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._monitor = Monitor()
        self._values: dict[str, Any] = {}
        self._waits: Waits | None = None  # guarded by the monitor
        self._journals: tuple[Keeper, ...] = ()  # of the durable runs that have this context; guarded by the monitor
        self._deps = deps
        if metadata is not None and not isinstance(metadata, Mapping):
            raise TypeError(f"Context(metadata=...) takes a mapping, not {type(metadata).__name__}.")
        self._metadata: Mapping[str, Any] = MappingProxyType(dict(metadata or {}))
        if values is not None:
            self.from_dict(values)

    @property
    def deps(self) -> DepsT:
        """The object given as ``deps=`` to this context or to the run."""
        return self._deps

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What was given as ``metadata=`` to this context or to the run; read-only."""
        return self._metadata

    # ---- reading --------------------------------------------------------------------------------

    def get(self, key: str, default: Any = MISSING, *, timeout: float | None = None, external: bool = False) -> Any:
        """Return the value of ``key``, waiting for it inside a run.

        With a ``default`` and no ``timeout`` it never waits. Otherwise it waits for as long as
        something that runs or is pending could still set the key; a task run that waits gives its
        place in the executor back.

        Args:
            key: the name of a value; a task's output is stored under the task's name.
            default: returned when the key is not there (and, with a timeout, does not come).
            timeout: wait for this many seconds at the longest.
            external: the value comes from outside the run (``run.context.set``), so wait even when
                nothing in the run could set it.

        Raises:
            ContextKeyError: the key is not there, and nothing can set it.
            DeadlockError: task runs wait for each other.
            TimeoutError: ``timeout`` seconds went by, and there is no default.
            BlockingGetError: waiting would block an event loop; use ``aget``.
            TaskCancelledError: the task run was told to stop while it waited.
        """
        try:
            return self._values[key]
        except (KeyError, TypeError):
            value = self._without_waiting(key, default, timeout)
        if value is not MISSING or self._waits is None:
            return value
        return self._waits.wait(key, default, timeout, external)

    async def aget(
        self, key: str, default: Any = MISSING, *, timeout: float | None = None, external: bool = False
    ) -> Any:
        """Return the value of ``key`` as ``get`` does, without blocking the event loop."""
        try:
            return self._values[key]
        except (KeyError, TypeError):
            value = self._without_waiting(key, default, timeout)
        if value is not MISSING or self._waits is None:
            return value
        return await self._waits.await_(key, default, timeout, external)

    def __getitem__(self, key: str) -> Any:
        """``ctx[key]`` is ``ctx.get(key)``: it waits inside a run."""
        return self.get(key)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(self._values)

    def to_dict(self) -> dict[str, Any]:
        """Return a copy of all keys that are set, with their values."""
        with self._monitor:
            return dict(self._values)

    # ---- writing --------------------------------------------------------------------------------

    def set(self, key: str, value: Any) -> None:
        """Set ``key`` and wake whoever waits for it.

        An attempt that was given up (timeout, cancel, a run that has ended) changes nothing.

        Raises:
            TypeError: ``key`` is no string.
        """
        check_key(key)
        with self._monitor:
            if not _given_up():
                for journal in self._journals:
                    journal.set(key, value)
                self._put(key, value)

    def __setitem__(self, key: str, value: Any) -> None:
        """``ctx[key] = value`` is ``ctx.set(key, value)``."""
        self.set(key, value)

    def update(self, key: str, fn: Callable[[Any], Any], default: Any = MISSING) -> Any:
        """Replace the value of ``key`` by ``fn(value)`` in one atomic step; return the new value.

        ``fn`` is called with no lock held, and again when another update came in between, so it
        should only compute. Without a ``default`` a missing key is waited for, as by ``get``.

        Raises:
            ContextKeyError: the key is not there, nothing can set it, and there is no default.
        """
        check_key(key)
        if not callable(fn):
            raise TypeError(f"Context.update({key!r}, fn) takes a callable, not {fn!r}.")
        while True:
            old = self._values.get(key, MISSING)
            if old is MISSING:
                old = default if default is not MISSING else self.get(key)
            new = fn(old)
            if self._swap(key, old, new, default):
                return new

    def _swap(self, key: str, old: Any, new: Any, default: Any) -> bool:
        """Put ``new`` in the place of ``old`` (``default``, where there is none); False: that has changed."""
        with self._monitor:
            if self._values.get(key, default) is not old:
                return False
            if not _given_up():
                for journal in self._journals:
                    journal.set(key, new)
                self._put(key, new)
            return True

    def append(self, key: str, value: Any) -> None:
        """Append to the list under ``key`` in one atomic step; the first one makes the list.

        Raises:
            TypeError: what is there is no list.
        """
        check_key(key)
        with self._monitor:
            items: Any = self._values.get(key)
            if _given_up():
                return
            if key in self._values and not isinstance(items, list):
                raise TypeError(f"Context.append({key!r}) needs a list there, and finds {type(items).__name__}.")
            for journal in self._journals:
                journal.append(key, value)
            if key not in self._values:
                self._put(key, [value])
            else:
                items.append(value)

    def delete(self, key: str) -> None:
        """Remove ``key``.

        Raises:
            ContextKeyError: it is not there.
        """
        check_key(key)
        with self._monitor:
            if _given_up():
                return
            if key not in self._values:
                raise ContextKeyError(key)
            for journal in self._journals:
                journal.delete(key)
            del self._values[key]

    def __delitem__(self, key: str) -> None:
        """``del ctx[key]`` is ``ctx.delete(key)``."""
        self.delete(key)

    def from_dict(self, values: Mapping[str, Any]) -> None:
        """Set every key of ``values``, one by one.

        Raises:
            TypeError: ``values`` is no mapping, or has a key that is no string.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"A context is filled from a mapping, not from {type(values).__name__}.")
        for key in values:  # all or nothing
            check_key(key)
        for key, value in values.items():
            self.set(key, value)

    def set_state(self, key: str, state: State) -> None:
        """Put a ``State`` in the context: from now on cell and key are the same value.

        Raises:
            TypeError: ``state`` is no ``State``.
        """
        check_key(key)
        if not isinstance(state, State):
            raise TypeError(f"Context.set_state({key!r}) takes a State, not {type(state).__name__}.")
        if not _given_up():
            state._move(self, key)

    # ---- streaming ------------------------------------------------------------------------------

    def emit(self, value: Any) -> None:
        """Send an interim value of the current task run to whoever streams the run.

        It waits while the stream's buffer is full. Nobody streams: the value is dropped.

        Raises:
            RuntimeError: called outside a task run.
        """
        run = current_run.get()
        if run is None:
            raise RuntimeError("ctx.emit(value) belongs in a task: outside a run there is no stream to send to.")
        run.emit(StreamChunk(run.id, value))

    def get_stream(self) -> Emitter:
        """Return the stream of the current run: ``put(StreamChunk(task_id, value))`` sends."""
        return Emitter()

    # ---- inside ---------------------------------------------------------------------------------

    def _without_waiting(self, key: str, default: Any, timeout: float | None) -> Any:
        """Return what a get of a missing key gives at once, or MISSING when it must wait."""
        check_key(key)
        if timeout is not None:
            check_wait(timeout, f"get({key!r})")
        if default is not MISSING and (timeout is None or self._waits is None):
            return default
        if self._waits is None:
            raise ContextKeyError(key)
        return MISSING

    def _describe(self, deps: Any, metadata: Mapping[str, Any] | None) -> None:
        """A run that begins says what its tasks reach as ``deps`` and ``metadata``."""
        if deps is not None:
            self._deps = deps
        if metadata is not None:
            self._metadata = MappingProxyType(dict(metadata))

    def _put(self, key: str, value: Any) -> None:
        """Store and wake, under the monitor."""
        self._values[key] = value
        waits = self._waits
        if waits is not None and key in waits.waiting:
            waits.satisfy(key, value)

    def __reduce__(self) -> Any:
        """Travel to a task of the run in another process, as the way to get here from there."""
        if crossing.get() is not self:
            raise TypeError("A context cannot be pickled, except for a task of its own run: pickle its to_dict().")
        return arrived, ()

    def __repr__(self) -> str:
        return f"<Context: {', '.join(self.to_dict()) or 'empty'}>"


class Emitter:
    """The sending end of a run's stream, as a task sees it."""

    def put(self, chunk: StreamChunk) -> None:
        """Send ``chunk``; waits while the buffer is full.

        Raises:
            TypeError: it is no ``StreamChunk``.
            RuntimeError: called outside a task run.
        """
        if not isinstance(chunk, StreamChunk):
            raise TypeError(f"A stream takes StreamChunk(task_id, value), not {chunk!r}.")
        run = current_run.get()
        if run is None:
            raise RuntimeError("stream.put(chunk) belongs in a task: outside a run there is no stream to send to.")
        run.emit(chunk)


class State:
    """One thread-safe value cell that may be empty.

    Args:
        value: what it holds; ``State.empty()`` makes one that holds nothing.

    Put in a context by ``ctx.set_state(key, state)`` it is one with that key.
    """

    def __init__(self, value: Any = None) -> None:
        self._changed = threading.Condition()
        self._home: tuple[Context[Any], str] | None = None
        self._value = value

    @classmethod
    def empty(cls) -> State:
        """Return a cell that holds nothing yet."""
        return cls(MISSING)

    @property
    def is_set(self) -> bool:
        """Whether there is a value; never waits."""
        home = self._home
        return self._value is not MISSING if home is None else home[1] in home[0]

    def get_value(self, timeout: float | None = None) -> Any:
        """Return the value, waiting for it: for ever without ``timeout`` (seconds) outside a run.

        Raises:
            TimeoutError: it did not come in time.
            ContextKeyError, DeadlockError: as ``Context.get``, for a cell that is in a context.
        """
        check_wait(timeout, "get_value")
        with self._changed:
            if not self._changed.wait_for(lambda: self._home or self._value is not MISSING, timeout):
                raise TimeoutError(f"The state had no value after {timeout:g} s.")
            home = self._home
            if home is None:
                return self._value
        return home[0].get(home[1], timeout=timeout)

    def set_value(self, value: Any) -> None:
        """Set the value and wake whoever waits for it."""
        with self._changed:
            home = self._home
            if home is None:
                self._value = value
                self._changed.notify_all()
        if home is not None:
            home[0].set(home[1], value)

    def _move(self, context: Context[Any], key: str) -> None:
        with self._changed:
            old, self._home = self._home, (context, key)
            value = self._value if old is None else cast(Any, old[0]._values.get(old[1], MISSING))
            self._value = MISSING
            self._changed.notify_all()
        if value is not MISSING:
            context.set(key, value)


def check_key(key: object) -> None:
    """Refuse a context key that is no string."""
    if not isinstance(key, str):
        raise TypeError(f"Keys of a context are strings, not {key!r}.")


def _given_up() -> bool:
    """Whether the code that calls belongs to an attempt that was given up."""
    run = current_run.get()
    return run is not None and run.given_up
