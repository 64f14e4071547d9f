"""What a store of runs is: the protocol between the engine and whatever keeps runs.

A stored run is a head, which says what it is and who has it, and a journal: entries, in the order in which
things happened. The engine makes the entries and alone knows what they mean; a store keeps them. What it
has to promise:

1. What one call of ``append`` (or ``create``, or ``finish``) is given is there as a whole afterwards, or not at all.
2. Entries come out in the order in which they went in, as they were.
3. A run has one owner at a time: the store that has created or claimed it, until ``finish`` or ``release``, or
   until that store's process is dead. Only the owner's calls change a run.
4. Any method may be called from any thread.

May import: serial, errors, values.
"""

from __future__ import annotations

import errno
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self, get_args

from millstream.errors import CheckpointError
from millstream.stores.serial import Serializer, serializer_of
from millstream.values import Status

#: When what has happened is written: within 50 ms, and in order; before anything comes of it; the same, and the
#: disk has said that it has it.
Sync = Literal["group", "each", "full"]


class Entry(NamedTuple):
    """Something that has happened in a run."""

    kind: str  #: what it is: one of the engine's words
    key: int | None  #: the task run that it is about, as a signed number of 64 bits
    text: str  #: the facts, as JSON


class StoredRun(NamedTuple):
    """The head of a run in a store: what ``flow.runs()`` returns."""

    id: str
    flow: str  #: the name of the flow
    status: Status  #: RUNNING until it has ended; so also for one whose process has died
    created_at: float  #: in seconds since the epoch
    finished_at: float | None  #: when it ended, in seconds since the epoch
    owner: str | None  #: the process that goes on with it; None: nobody does
    facts: str  #: what the engine has to know of it, as JSON


class Store(ABC):
    """Keeps runs. Derive from it for a store of your own.

    Args:
        sync: when the engine writes; see ``Sync``.
        serializer: how values become text.
        types: dataclasses, enums and named tuples that values may have, for JSON.

    Raises:
        ValueError: a word that is not one of these.
    """

    def __init__(self, sync: Sync, serializer: Literal["json", "pickle"] = "json", types: Iterable[type] = ()) -> None:
        if sync not in get_args(Sync):
            raise ValueError(f"sync is 'group', 'each' or 'full', not {sync!r}.")
        self.sync: Sync = sync
        self.serializer: Serializer = serializer_of(serializer, tuple(types))
        _stores.add(self)

    def after_fork(self) -> None:  # noqa: B027 - most stores of others need none
        """Be the store of a fork of this process: it has none of the runs, locks and files."""

    @abstractmethod
    def create(self, run_id: str, flow: str, created_at: float, facts: str, entries: Sequence[Entry]) -> None:
        """Begin a run, and own it.

        Raises:
            CheckpointError: it is there already, or cannot be written.
        """

    @abstractmethod
    def claim(self, run_id: str) -> StoredRun:
        """Own a run that is there; its status is RUNNING from now on.

        Raises:
            UnknownRunError: it is not there.
            RunOwnedError: somebody has it.
        """

    @abstractmethod
    def append(self, run_id: str, entries: Sequence[Entry]) -> None:
        """Add to the journal of a run.

        Raises:
            RunOwnedError: it is not ours any more.
            CheckpointError: it cannot be written.
        """

    @abstractmethod
    def finish(self, run_id: str, status: Status, finished_at: float, entries: Sequence[Entry]) -> None:
        """A run has ended: add the last entries, and give it up.

        Raises:
            RunOwnedError, CheckpointError: as ``append``.
        """

    @abstractmethod
    def release(self, run_id: str) -> None:
        """Give up a run that has not ended; one that is not ours is left alone."""

    @abstractmethod
    def entries(self, run_id: str, kinds: Sequence[str] = (), key: int | None = None) -> Iterator[Entry]:
        """Return the journal of a run in order: of these kinds, and about this task run, if that is asked for.

        Raises:
            UnknownRunError: it is not there.
        """

    @abstractmethod
    def runs(self) -> list[StoredRun]:
        """Return the heads of all runs, the oldest first."""

    @abstractmethod
    def run(self, run_id: str) -> StoredRun:
        """Return the head of a run.

        Raises:
            UnknownRunError: it is not there.
        """

    @abstractmethod
    def forget(self, run_id: str) -> None:
        """Remove a run.

        Raises:
            UnknownRunError: it is not there.
            RunOwnedError: somebody has it.
        """

    @abstractmethod
    def close(self) -> None:
        """Give up what it has: runs that have not ended, files, connections. It may be called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ---- files and processes --------------------------------------------------------------------------

_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_stores):
        store.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def unusable(path: Path, error: OSError) -> CheckpointError:
    """Return what to say when the system refuses to use a file: what is wrong, and the mend."""
    if error.errno in FULL:
        mend = "What was committed is safe: make room, and resume the run"
        return CheckpointError(f"{path}: the disk is full, or fails ({error}). {mend}.")
    if error.errno in FORBIDDEN:
        mend = "give the process the right to, or use another path"
    else:
        mend = "give it a path where files can be made"
    return CheckpointError(f"{path} cannot be used as a store ({error}): {mend}.")
