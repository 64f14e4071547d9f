"""What a flow does with its store: it begins runs there, goes on with them, and tells of them.

How a run is journalled and put together again is the engine's (``engine/journal.py``, ``engine/recall.py``); how it is
kept, the store's. Here is what only the flow knows: how a run was started, and with which code. May import: the
engine's journal, history and run, stores, task, report, errors.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import time
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from millstream.engine.journal import Reader
from millstream.errors import CheckpointError, CodeChangedError, UnknownRunError
from millstream.stores.base import Entry, Store, StoredRun
from millstream.stores.serial import UnfitError, is_text, written

if TYPE_CHECKING:
    from millstream.diagram import Diagram
    from millstream.engine.run import FlowRun
    from millstream.report import RunReport
    from millstream.task import Task

OnCodeChange = Literal["warn", "raise", "ignore"]


class Beginning(NamedTuple):
    """How a run was started: what must be the same when it goes on."""

    starts: list[str]  #: names of the first tasks; of a session, none
    targets: list[str] | None
    session: bool
    tasks: list[str]  #: those with edges, by their numbers in the graph
    code: dict[str, str]  #: what each task is made of, by name
    python: str  #: what compiled it
    serializer: str  #: how values were written
    resumed_from: str | None = None  #: the id of the run that this one was made from


class Kept(NamedTuple):
    """A run in the store that is to go on, or to be read."""

    head: StoredRun
    beginning: Beginning
    inputs: Mapping[str, Any] | None
    values: Mapping[str, Any]  #: of the context at the start, beside the inputs
    metadata: Mapping[str, Any]
    reader: Reader
    entries: Iterator[Entry]  #: all that came after the start

    def check_code(self, tasks: Mapping[str, Task[..., Any]], what: OnCodeChange, logger: Any) -> None:
        """See whether the tasks of the run are still what they were.

        Raises:
            CodeChangedError: they are not, and ``what`` is ``"raise"``.
            ValueError: ``what`` is no word for it.
        """
        if what not in ("warn", "raise", "ignore"):
            raise ValueError(f"on_code_change is 'warn', 'raise' or 'ignore', not {what!r}.")
        if what == "ignore":
            return
        same_python = self.beginning.python == sys.implementation.cache_tag
        changes = []
        for name, code in self.beginning.code.items():
            task = tasks.get(name)
            if task is None:
                changes.append(f"task {name} is gone")
            elif code_of(task) != code and (same_python or code.startswith("version ") or task.version is not None):
                changes.append(f"task {name} has changed")
        if changes:
            error = CodeChangedError(self.head.id, changes)
            if what == "raise":
                raise error
            logger.warning("%s", error, extra={"run_id": self.head.id})

    def keys(self, names: Sequence[str]) -> list[int]:
        """Return the numbers that tasks with edges had when the run was started; new ones have new numbers."""
        old = {name: number for number, name in enumerate(self.beginning.tasks)}
        unused = iter(range(len(old), len(old) + len(names)))
        return [old[name] if name in old else next(unused) for name in names]


class Durable:
    """A flow's store.

    Args:
        store: a store, or the path of a SQLite database, which is closed with the flow then.

    Raises:
        TypeError: it is neither.
    """

    def __init__(self, store: Store | str | os.PathLike[str]) -> None:
        self.owns = isinstance(store, str | os.PathLike)  #: it is closed with the flow
        if isinstance(store, str | os.PathLike):
            from millstream.stores.sqlite import SQLiteStore

            store = SQLiteStore(store)
        if not isinstance(store, Store):
            raise TypeError(f"Flow(store=...) takes a path or a Store, not {store!r}.")
        self.store = store

    def close(self) -> None:
        """Close what was opened here."""
        if self.owns:
            self.store.close()

    # ---- beginning and going on -------------------------------------------------------------------

    def begin(
        self,
        run: FlowRun,
        tasks: Mapping[str, Task[..., Any]],
        starts: Sequence[str],
        targets: Iterable[Any] | None,
        inputs: Mapping[str, Any] | None,
        *,
        session: bool = False,
    ) -> None:
        """Make a run in the store; it has not begun.

        Raises:
            CheckpointError: it is there already, cannot be written, or was started with what cannot be kept.
        """
        values = {key: value for key, value in run.context.to_dict().items() if not (inputs and key in inputs)}
        targets = None if targets is None else [name for name in tasks if run.plan.has(name)]
        beginning = self._beginning_of(run, tasks, list(starts), targets, session)
        self._create(run, beginning, inputs, values, run.context.metadata)

    def _beginning_of(
        self,
        run: FlowRun,
        tasks: Mapping[str, Task[..., Any]],
        starts: list[str],
        targets: list[str] | None,
        session: bool,
        resumed_from: str | None = None,
    ) -> Beginning:
        numbered = [] if run.plan.graph is None else list(run.plan.graph.names)
        code = {name: code_of(task) for name, task in tasks.items()}
        python, serializer = str(sys.implementation.cache_tag), self.store.serializer.name
        return Beginning(starts, targets, session, numbered, code, python, serializer, resumed_from)

    def _create(
        self,
        run: FlowRun,
        beginning: Beginning,
        inputs: Mapping[str, Any] | None,
        values: Mapping[str, Any],
        metadata: Mapping[str, Any],
        more: Sequence[Entry] = (),
    ) -> None:
        for what, name in (("The id of run", run.id), ("The name of flow", run.plan.flow)):
            if not is_text(name):
                raise CheckpointError(f"{what} {name!r} has half a character in it, which no store keeps: change it.")
        plain = [
            self._plain(run.id, what, value)
            for what, value in (("inputs", inputs), ("context", dict(values)), ("metadata", dict(metadata)))
        ]
        start = Entry("start", None, written([], plain))
        self.store.create(run.id, run.plan.flow, time.time(), json.dumps(beginning._asdict()), [start, *more])
        run.keep_in(self.store)

    def _plain(self, run_id: str, what: str, value: Any) -> Any:
        try:
            return self.store.serializer.plain(value)
        except UnfitError as error:
            raise CheckpointError(f"Run {run_id} cannot be kept: its {what}{error.path} {error.problem}.") from error

    def has(self, run_id: str) -> bool:
        """Whether the store has a run of that id."""
        try:
            self.store.run(run_id)
        except UnknownRunError:
            return False
        return True

    def kept(self, run_id: str) -> Kept:
        """Return what the store has of a run.

        Raises:
            UnknownRunError: it is not there.
            CheckpointError: it cannot be read.
        """
        return self._opened(self.store.run(run_id))

    def check_values(self, run_id: str, values: Mapping[str, Any] | None) -> None:
        """Refuse values for the context of a run that cannot be kept.

        Raises:
            CheckpointError: one cannot.
        """
        self._plain(run_id, "inputs", values)

    def go_on(
        self,
        run: FlowRun,
        kept: Kept,
        names: Sequence[str],
        tasks: Mapping[str, Task[..., Any]],
        again: frozenset[str] | None,
    ) -> None:
        """Make a run, which has not begun, go on where it was; or be made from another one.

        Args:
            run: the one that goes on.
            kept: what the store has of it.
            names: of the tasks with edges, by their numbers now.
            tasks: of the flow.
            again: what is to run again: then the run is a new one.

        Raises:
            RunOwnedError: another process has it.
            CheckpointError: it cannot be read, or written.
        """
        run.context._values.update(kept.values)
        keys, entries = kept.keys(names), kept.entries
        if again is None:
            self.store.claim(run.id)
            run.resumed_from = kept.beginning.resumed_from
            run.keep_in(self.store)
            entries = self.store.entries(run.id)  # its owner may have gone on until now
        else:
            from millstream.engine.rewind import rewound

            old, graph = kept.beginning, run.plan.graph
            run.resumed_from = kept.head.id
            beginning = self._beginning_of(run, tasks, old.starts, old.targets, False, kept.head.id)
            numbered = [""] * (max(keys, default=-1) + 1)
            for key, name in zip(keys, names, strict=True):
                numbered[key] = name
            holds = rewound(kept.reader, entries, again, graph)
            self._create(run, beginning._replace(tasks=numbered), kept.inputs, kept.values, kept.metadata, holds)
            entries = iter(holds)
        known = {*kept.values, *(kept.inputs or ())}
        run.go_on_from(Reader(self.store, run.id), entries, keys, known, kept.head if again is None else None)

    def _opened(self, head: StoredRun) -> Kept:
        beginning = self._beginning(head)
        reader = Reader(self.store, head.id)
        entries = self.store.entries(head.id)
        start = next(entries, None)
        if start is None or start.kind != "start":
            raise CheckpointError(f"The journal of run {head.id} has no beginning: it is damaged.")
        with reader.reading():
            _, (inputs, values, metadata) = reader.facts(start)
            if not (isinstance(inputs, dict | None) and isinstance(values, dict) and isinstance(metadata, dict)):
                raise TypeError("what it was started with is no mapping")
        return Kept(head, beginning, inputs, values, metadata, reader, entries)

    def _beginning(self, head: StoredRun) -> Beginning:
        try:
            beginning = Beginning(**json.loads(head.facts))
            if not (isinstance(beginning.starts, list) and isinstance(beginning.tasks, list)):
                raise TypeError("its tasks are no lists")
            if not isinstance(beginning.code, dict):
                raise TypeError("its code is no mapping")
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"The head of run {head.id} cannot be read: {error}.") from error
        ours = self.store.serializer.name
        if beginning.serializer != ours:
            raise CheckpointError(
                f"Run {head.id} was written with serializer={beginning.serializer!r}, and the store reads {ours!r}: "
                f"open it with serializer={beginning.serializer!r} if you trust who wrote it."
            )
        return beginning

    # ---- telling ------------------------------------------------------------------------------------

    def report(self, run_id: str, declared: Diagram) -> RunReport:
        """Return the report of a run in the store; ``declared``: the picture of the flow.

        Raises:
            UnknownRunError, CheckpointError: it is not there, or cannot be read.
        """
        from millstream.engine.history import report_of

        kept = self.kept(run_id)
        beginning = kept.beginning
        with kept.reader.reading():
            return report_of(
                kept.head, kept.metadata, beginning.resumed_from, beginning.code, kept.reader, kept.entries, declared
            )


# ---- what a task is made of -----------------------------------------------------------------------

_codes: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def code_of(task: Task[..., Any]) -> str:
    """Return what tells one version of a task from another: its ``version``, or else what it is compiled to."""
    if task.version is not None:
        return f"version {task.version}"
    fn = task.fn
    try:
        known = _codes.get(fn)
        if known is None:
            known = _codes[fn] = _code_of(fn)
        return known
    except TypeError:  # it cannot be hashed, or referred to weakly
        return _code_of(fn)


def _code_of(fn: Callable[..., Any]) -> str:
    while True:
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif isinstance(fn, types.MethodType):
            fn = fn.__func__
        elif hasattr(fn, "__wrapped__"):
            fn = fn.__wrapped__
        elif not hasattr(fn, "__code__") and not isinstance(fn, type | types.BuiltinFunctionType):
            call = type(fn).__call__
            if call is fn or not hasattr(call, "__code__"):
                break
            fn = call
        else:
            break
    code = getattr(fn, "__code__", None)
    if code is None:
        return f"name {getattr(fn, '__module__', '')}.{getattr(fn, '__qualname__', type(fn).__qualname__)}"
    return f"code {hashlib.sha256(repr(_parts_of(code)).encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def _parts_of(code: types.CodeType) -> Any:
    """Return bytecode, names and constants; nothing of where it is, so comments and line numbers may change."""
    constants = [_parts_of(each) if isinstance(each, types.CodeType) else _constant(each) for each in code.co_consts]
    return code.co_code.hex(), code.co_names, code.co_varnames, constants


def _constant(value: Any) -> str:
    """Return a constant as text that is the same in each process."""
    return f"frozenset {sorted(map(repr, value))}" if isinstance(value, frozenset) else repr(value)
