"""Runs in one JSON file that people can read: for small runs, and one process at a time.

Whatever is written writes the whole file anew, beside it, and puts that in its place: at each moment the file is
whole. May import: memory, owner, base, errors, values.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from millstream.errors import CheckpointError, RunOwnedError
from millstream.stores.base import Entry, StoredRun, Sync, unusable
from millstream.stores.memory import OURS, MemoryStore
from millstream.stores.owner import FileLock
from millstream.values import Status

#: Who has the file, when it is not this process.
ANOTHER = "another process"

#: Of the file's layout.
VERSION = 1


class JSONFileStore(MemoryStore):
    """Keeps runs in a JSON file.

    What it holds is in memory as well, and each write costs as much as the whole file is long: for many or large
    runs take a ``SQLiteStore``. While it has runs that have not ended, no other process can write the file.

    Args:
        path: of the file.
        sync: as for ``SQLiteStore``.
        serializer: ``"json"``, with the types of values kept, or ``"pickle"``.
        types: dataclasses, enums and named tuples that values may have.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sync: Sync = "group",
        serializer: Literal["json", "pickle"] = "json",
        types: Iterable[type] = (),
    ) -> None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"The path of a store is a string or a path, not {path!r}.")
        self.path = Path(os.path.realpath(path))
        # Guarded by _lock: everything below.
        self._file_lock = FileLock(self.path)
        weakref.finalize(self, self._file_lock.release)
        self._seen: Any = None  # what the file was like when it was read
        super().__init__(serializer=serializer, types=types, sync=sync)

    def after_fork(self) -> None:
        super().after_fork()
        self._file_lock.drop()
        self._seen = None

    def create(self, run_id: str, flow: str, created_at: float, facts: str, entries: Sequence[Entry]) -> None:
        with self._writing():
            super().create(run_id, flow, created_at, facts, entries)

    def claim(self, run_id: str) -> StoredRun:
        self.run(run_id)  # no file is made for one that is not there
        with self._writing():
            return super().claim(run_id)

    def append(self, run_id: str, entries: Sequence[Entry]) -> None:
        with self._writing():
            super().append(run_id, entries)

    def finish(self, run_id: str, status: Status, finished_at: float, entries: Sequence[Entry]) -> None:
        with self._writing():
            super().finish(run_id, status, finished_at, entries)

    def release(self, run_id: str) -> None:
        if self._file_lock.held:
            with self._writing():
                super().release(run_id)

    def entries(self, run_id: str, kinds: Sequence[str] = (), key: int | None = None) -> Iterator[Entry]:
        with self._lock:
            self._read()
            return super().entries(run_id, kinds, key)

    def runs(self) -> list[StoredRun]:
        with self._lock:
            self._read()
            return super().runs()

    def run(self, run_id: str) -> StoredRun:
        with self._lock:
            self._read()
            return super().run(run_id)

    def forget(self, run_id: str) -> None:
        self.run(run_id)
        with self._writing():
            super().forget(run_id)

    def close(self) -> None:
        with self._lock:
            if self._file_lock.held:
                with suppress(CheckpointError), self._writing():  # without our lock the runs are anybody's as well
                    super().close()
                self._file_lock.release()
                self._seen = None

    def __repr__(self) -> str:
        return f"<JSONFileStore: {self.path}>"

    # ---- the file -------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Change something, and write the file; without it, nothing has changed."""
        with self._lock:
            if not self._file_lock.held:
                with self._told():
                    if not self._file_lock.acquire():
                        raise RunOwnedError("", ANOTHER, str(self.path))
                self._seen = None
            try:
                self._read()
                kept = (
                    self._heads.copy(),
                    {run_id: (journal, len(journal)) for run_id, journal in self._journals.items()},
                )
                try:
                    yield
                    with self._told():
                        self._write()
                except BaseException:
                    self._restore(*kept)
                    raise
            finally:
                if not any(head.owner == OURS for head in self._heads.values()):
                    self._file_lock.release()

    def _restore(self, heads: dict[str, StoredRun], journals: dict[str, tuple[list[Entry], int]]) -> None:
        self._heads = heads
        self._journals = {run_id: journal[:length] for run_id, (journal, length) in journals.items()}
        self._seen = None if not self._file_lock.held else self._seen

    def _read(self) -> None:
        """Read the file, if somebody else may have changed it."""
        if self._file_lock.held and self._seen is not None:
            return
        with self._told():
            try:
                facts = self.path.stat()
            except FileNotFoundError:
                self._heads, self._journals, self._seen = {}, {}, ()
                return
            seen = facts.st_ino, facts.st_mtime_ns, facts.st_size, self._file_lock.is_taken
            if seen != self._seen:
                text = self.path.read_text("ascii") if facts.st_size else ""
                self._heads, self._journals = self._parsed(text) if text else ({}, {})
                self._seen = seen

    def _parsed(self, text: str) -> tuple[dict[str, StoredRun], dict[str, list[Entry]]]:
        heads, journals = {}, {}
        try:
            content = json.loads(text)
            version, runs = content["millstream"], content["runs"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CheckpointError(
                f"{self.path} is no store of Millstream, or is damaged ({error!r}): bring back a copy of it, or give "
                "the store a path of its own."
            ) from error
        if version != VERSION:
            raise CheckpointError(
                f"{self.path} was written by a newer Millstream (layout {version}, this one knows {VERSION}): use that."
            )
        other = None if self._file_lock.held or not self._file_lock.is_taken else ANOTHER
        try:
            for run_id, run in runs.items():
                facts = run["flow"], Status(run["status"]), run["created_at"], run["finished_at"]
                heads[run_id] = StoredRun(run_id, *facts, other if run["owned"] else None, run["facts"])
                journals[run_id] = [Entry(*entry) for entry in run["journal"]]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{self.path} is damaged ({error!r}): bring back a copy of it.") from error
        return heads, journals

    def _write(self) -> None:
        runs = {
            head.id: {
                "flow": head.flow,
                "status": str(head.status),
                "created_at": head.created_at,
                "finished_at": head.finished_at,
                "owned": head.owner is not None,
                "facts": head.facts,
                "journal": self._journals[head.id],
            }
            for head in self._heads.values()
        }
        new = self.path.with_name(f"{self.path.name}-new")
        try:
            old = self.path.stat() if self.path.exists() else None
            if old is not None and not os.access(self.path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            with new.open("w", encoding="ascii") as file:
                if old is not None:  # who may read it is not ours to change
                    os.chmod(new, stat.S_IMODE(old.st_mode))
                    if (old.st_uid, old.st_gid) != ((made := os.fstat(file.fileno())).st_uid, made.st_gid):
                        with suppress(PermissionError):
                            os.chown(new, old.st_uid, old.st_gid)
                json.dump({"millstream": VERSION, "runs": runs}, file, indent=1)
                file.flush()
                if self.sync == "full":
                    os.fsync(file.fileno())
            os.replace(new, self.path)
            if self.sync == "full":
                _sync_directory(self.path.parent)
        except BaseException:
            with suppress(OSError):
                new.unlink()
            raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unusable(self.path, error) from error
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path} is damaged ({error}): bring back a copy of it.") from error


def _sync_directory(path: Path) -> None:
    """Have the disk keep the names of the files in a directory."""
    if os.name == "posix":
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
