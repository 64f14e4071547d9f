"""Who owns the runs of a store: a file that its process keeps locked for as long as it lives.

May import: the standard library.
"""

from __future__ import annotations

import glob
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: there, only leases tell
    fcntl = None  # type: ignore[assignment]


class Lock:
    """A file that is locked while it is held, and removed when it is given up."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def release(self) -> None:
        """Give it up."""
        if self._file is not None:
            with suppress(OSError):
                self._path.unlink()
            self.drop()

    def drop(self) -> None:
        """Let go of what is that of the process that this one was forked from: it has the lock, and keeps it."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


class OwnerLock(Lock):
    """A name for this process beside a store, and the proof that it lives.

    Args:
        path: of the store.
    """

    def __init__(self, path: Path) -> None:
        self.token = f"process {os.getpid()} on {socket.gethostname()} ({os.urandom(6).hex()})"
        super().__init__(lock_path(path, self.token))
        if fcntl is not None:
            for left in path.parent.glob(f"{glob.escape(path.name)}-owner-*"):
                if not _is_locked(left):  # of a process that was killed
                    with suppress(OSError):
                        left.unlink()
            while self._file is None or not _same_file(self._file, self._path):  # nobody has removed it meanwhile
                self._file = self._path.open("wb")
                fcntl.flock(self._file, fcntl.LOCK_EX)


class FileLock(Lock):
    """A lock on a file that this process alone writes, while it is held.

    Args:
        path: of the file; the lock is one beside it, since the file itself is replaced.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path.with_name(f"{path.name}-lock"))

    @property
    def held(self) -> bool:
        return self._file is not None

    @property
    def is_taken(self) -> bool:
        """Whether somebody else has it."""
        return self._file is None and fcntl is not None and _is_locked(self._path)

    def acquire(self) -> bool:
        """Take it; False when somebody else has it."""
        file = None
        while file is None or not _same_file(file, self._path):  # who gave it up has removed it
            file = self._path.open("wb")
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                if _is_locked(self._path):
                    return False
                file = None  # somebody has only looked whether it is locked, which takes no time
        self._file = file
        return True


def lock_path(path: Path, token: str) -> Path:
    """Return where the lock of an owner is."""
    return path.with_name(f"{path.name}-owner-{token.rpartition('(')[2].rstrip(')')}")


def is_alive(path: Path, token: str) -> bool | None:
    """Return whether an owner lives; None when that cannot be known from here: it is on another host."""
    if fcntl is None or not token.partition(" on ")[2].startswith(f"{socket.gethostname()} ("):
        return None
    return _is_locked(lock_path(path, token))


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # several may ask at once
            except OSError:
                return True
            return False
    except FileNotFoundError:
        return False


def _same_file(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
