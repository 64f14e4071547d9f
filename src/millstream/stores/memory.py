"""Runs in memory: for tests, and for a resume after a failure in the same process.

May import: base, errors, values.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from millstream.errors import CheckpointError, RunOwnedError, UnknownRunError
from millstream.stores.base import Entry, Store, StoredRun, Sync
from millstream.values import Status

#: Who has a run, in a store that nobody else can see.
OURS = "this process"


class MemoryStore(Store):
    """Keeps runs in memory, for as long as it lives; values are written and read as in any other store.

    Args:
        serializer: ``"json"``, with the types of values kept, or ``"pickle"``.
        types: dataclasses, enums and named tuples that values may have.
        sync: as for ``SQLiteStore``; it only matters when what is written shows.
    """

    def __init__(
        self, *, serializer: Literal["json", "pickle"] = "json", types: Iterable[type] = (), sync: Sync = "each"
    ) -> None:
        super().__init__(sync, serializer, types)
        self.after_fork()
        # Guarded by _lock:
        self._heads: dict[str, StoredRun] = {}
        self._journals: dict[str, list[Entry]] = {}

    def after_fork(self) -> None:
        self._lock = threading.RLock()

    def create(self, run_id: str, flow: str, created_at: float, facts: str, entries: Sequence[Entry]) -> None:
        with self._lock:
            if run_id in self._heads:
                raise CheckpointError(f"Run {run_id} is in {self!r} already: resume it, or choose another run_id.")
            self._heads[run_id] = StoredRun(run_id, flow, Status.RUNNING, created_at, None, OURS, facts)
            self._journals[run_id] = list(entries)

    def claim(self, run_id: str) -> StoredRun:
        with self._lock:
            head = self.run(run_id)
            if head.owner is not None:
                raise RunOwnedError(run_id, head.owner)
            head = self._heads[run_id] = head._replace(status=Status.RUNNING, finished_at=None, owner=OURS)
            return head

    def append(self, run_id: str, entries: Sequence[Entry]) -> None:
        with self._lock:
            head = self._heads.get(run_id)
            if head is None or head.owner != OURS:
                raise RunOwnedError(run_id, "nobody: it was removed" if head is None else str(head.owner))
            self._journals[run_id].extend(entries)

    def finish(self, run_id: str, status: Status, finished_at: float, entries: Sequence[Entry]) -> None:
        with self._lock:
            MemoryStore.append(self, run_id, entries)
            self._heads[run_id] = self._heads[run_id]._replace(status=status, finished_at=finished_at, owner=None)

    def release(self, run_id: str) -> None:
        with self._lock:
            if run_id in self._heads and self._heads[run_id].owner == OURS:
                self._heads[run_id] = self._heads[run_id]._replace(owner=None)

    def entries(self, run_id: str, kinds: Sequence[str] = (), key: int | None = None) -> Iterator[Entry]:
        with self._lock:
            self.run(run_id)
            journal = self._journals[run_id][:]
        return (e for e in journal if (not kinds or e.kind in kinds) and (key is None or e.key == key))

    def runs(self) -> list[StoredRun]:
        with self._lock:
            return list(self._heads.values())

    def run(self, run_id: str) -> StoredRun:
        with self._lock:
            if run_id not in self._heads:
                raise UnknownRunError(run_id, "", repr(self))
            return self._heads[run_id]

    def forget(self, run_id: str) -> None:
        with self._lock:
            head = self.run(run_id)
            if head.owner is not None:
                raise RunOwnedError(run_id, head.owner)
            del self._heads[run_id], self._journals[run_id]

    def close(self) -> None:
        with self._lock:
            for run_id in list(self._heads):
                self.release(run_id)

    def __repr__(self) -> str:
        return f"<MemoryStore: {len(self._heads)} runs>"
