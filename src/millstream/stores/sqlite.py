"""Runs in a SQLite database: for one host, on a local file system.

The database is in WAL mode. Nothing in a file is trusted before its head, our ``application_id`` and the version of
the schema have been looked at, without writing. A connection is never used after a fork. Who owns a run holds a lock
of the operating system for as long as its process lives, so the owner of a run that was killed is known to be
dead at once; on another host it loses the run when it has not renewed its lease.
May import: base, owner, errors, values.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from millstream.errors import CheckpointError, RunOwnedError, UnknownRunError
from millstream.stores.base import Entry, Store, StoredRun, Sync, unusable
from millstream.stores.owner import OwnerLock, is_alive
from millstream.values import Status

#: Marks a database as ours: "MSTR".
APPLICATION_ID = 0x4D535452
#: Of the schema; see ``MIGRATIONS``.
VERSION = 1

SCHEMA = (
    """
    CREATE TABLE runs (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, flow TEXT NOT NULL, status TEXT NOT NULL,
        created_at REAL NOT NULL, finished_at REAL, facts TEXT NOT NULL,
        owner TEXT, seen_at REAL  -- who has the run, and when that was last heard of
    )
    """,
    """
    CREATE TABLE journal (
        run INTEGER NOT NULL, number INTEGER NOT NULL, kind TEXT NOT NULL, key INTEGER, text TEXT NOT NULL,
        PRIMARY KEY (run, number)
    ) WITHOUT ROWID
    """,
    # A list of requests is read page by page, among all that has happened.
    "CREATE INDEX pages ON journal (run, key, number) WHERE kind = 'page'",
)

#: What makes a database of one version one of the next: statements by the version that they start from.
MIGRATIONS: dict[int, tuple[str, ...]] = {}

#: How long to wait for others who write, in seconds.
PATIENCE = 10.0
#: How many entries are read at once.
PAGE = 500

#: Adds an entry to the journal of a run, if that is ours.
ADD = """
    INSERT INTO journal (run, number, kind, key, text)
    SELECT ?, ?, ?, ?, ? WHERE EXISTS (SELECT 1 FROM runs WHERE number = ? AND owner = ?)
"""

_HEAD = b"SQLite format 3\x00"


class Files:
    """What a store has open."""

    def __init__(self) -> None:
        self.connection: sqlite3.Connection | None = None
        self.nothing: sqlite3.Connection | None = None  #: an empty store, for one that is not there yet
        self.owner: OwnerLock | None = None

    def close(self) -> None:
        """Close it."""
        self.disconnect()
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.release()

    def disconnect(self) -> None:
        """Close the connections."""
        connections, self.connection, self.nothing = (self.connection, self.nothing), None, None
        for connection in connections:
            if connection is not None:
                connection.close()

    def drop(self) -> None:
        """Let go of what is that of the process that this one was forked from, and close none of it."""
        if self.connection is not None:
            _inherited.append(self.connection)
            self.connection = None
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.drop()


#: Connections that were made before a fork: to close one may write to the file.
_inherited: list[sqlite3.Connection] = []


class SQLiteStore(Store):
    """Keeps runs in a SQLite database, which is made when the first run begins.

    Args:
        path: of the file. Beside it SQLite keeps two more, and each process that owns runs a lock.
        sync: ``"each"``: what has happened is written before anything comes of it, and survives the end of the
            process. ``"full"``: it survives a loss of power, too. ``"group"``: it is written within 50 ms.
        serializer: ``"json"``, with the types of values kept, or ``"pickle"``.
        types: dataclasses, enums and named tuples that values may have.
        lease: after how many seconds without news the owner of a run is taken for dead, on another host. On this
            one the end of a process is known at once.
        retention: forget runs that ended more than so many seconds ago, when another one begins; None: never.

    Raises:
        TypeError, ValueError: one of them cannot be used. The file is looked at when it is needed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sync: Sync = "each",
        serializer: Literal["json", "pickle"] = "json",
        types: Iterable[type] = (),
        lease: float = 30.0,
        retention: float | None = None,
    ) -> None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"The path of a store is a string or a path, not {path!r}.")
        if os.fspath(path) in ("", ":memory:"):
            raise ValueError(f"A SQLiteStore needs a file, not {os.fspath(path)!r}: for memory there is MemoryStore().")
        self.path = Path(os.path.realpath(path))
        self._lease, self._retention = _seconds("lease", lease), retention
        if retention is not None:
            self._retention = _seconds("retention", retention)
        self._files = Files()
        weakref.finalize(self, self._files.close)
        self._closed = False
        self.after_fork()
        super().__init__(sync, serializer, types)

    def after_fork(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        # Guarded by _lock: everything below, _files and _closed.
        self._files.drop()
        self._owned: dict[str, int] = {}  # the numbers of our runs, by their ids
        self._last: dict[int, int] = {}  # the number of the last entry of each
        self._keeper: threading.Thread | None = None  # renews our leases

    # ---- the protocol ---------------------------------------------------------------------------

    def create(self, run_id: str, flow: str, created_at: float, facts: str, entries: Sequence[Entry]) -> None:
        with self._writing() as db:
            self._sweep(db)
            owner = self._own()
            found = db.execute("SELECT id FROM runs WHERE id = ?", (run_id,)).fetchone()
            if found is not None:
                raise CheckpointError(f"Run {run_id} is in {self.path} already: resume it, or choose another run_id.")
            number = db.execute(
                "INSERT INTO runs (id, flow, status, created_at, facts, owner, seen_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (run_id, flow, str(Status.RUNNING), created_at, facts, owner, time.time()),
            ).lastrowid
            assert number is not None, "a row was added"
            self._add(db, number, 0, entries)
        self._has(run_id, number, len(entries))

    def claim(self, run_id: str) -> StoredRun:
        self.run(run_id)  # no file is made for one that is not there
        with self._writing() as db:
            row = self._row(db, run_id)
            number, had = row[0], row[7]
            if had is not None and self._is_alive(had, row[8]):
                raise RunOwnedError(run_id, had)
            owner = self._own()
            db.execute(
                "UPDATE runs SET status = ?, finished_at = NULL, owner = ?, seen_at = ? WHERE number = ?",
                (str(Status.RUNNING), owner, time.time(), number),
            )
            (last,) = db.execute("SELECT max(number) FROM journal WHERE run = ?", (number,)).fetchone()
        self._has(run_id, number, last or 0)
        return StoredRun(run_id, row[2], Status.RUNNING, row[4], None, owner, row[6])

    def append(self, run_id: str, entries: Sequence[Entry]) -> None:
        with self._lock:  # the way that each commit takes: shorter than ``_writing``, and the same
            db: sqlite3.Connection | None = None
            try:
                db = self._open(make=True)
                number = self._number(run_id)
                if len(entries) == 1:  # one statement is a transaction of its own
                    self._add_ours(db, run_id, number, entries)
                else:
                    db.execute("BEGIN IMMEDIATE")
                    self._add_ours(db, run_id, number, entries)
                    db.execute("COMMIT")
            except BaseException as error:
                if db is not None and db.in_transaction:
                    db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error | OSError | ValueError | TypeError | AttributeError):
                    with self._told():
                        raise
                raise
            self._last[number] += len(entries)

    def finish(self, run_id: str, status: Status, finished_at: float, entries: Sequence[Entry]) -> None:
        with self._writing() as db:
            number = self._number(run_id)
            self._add_ours(db, run_id, number, entries)
            db.execute(
                "UPDATE runs SET status = ?, finished_at = ?, owner = NULL WHERE number = ? AND owner = ?",
                (str(status), finished_at, number, self._own()),
            )
        self._gave_up(run_id)

    def release(self, run_id: str) -> None:
        with self._lock:
            if run_id not in self._owned:
                return
            number = self._owned[run_id]
            try:
                with self._writing() as db:
                    db.execute("UPDATE runs SET owner = NULL WHERE number = ? AND owner = ?", (number, self._own()))
            finally:
                self._gave_up(run_id)

    def entries(self, run_id: str, kinds: Sequence[str] = (), key: int | None = None) -> Iterator[Entry]:
        wanted, by = "" if not kinds else f" AND kind IN ({', '.join('?' * len(kinds))})", ""
        more: tuple[Any, ...] = tuple(kinds)
        if more == ("page",) and key is not None:
            wanted, by, more = " AND kind = 'page'", " INDEXED BY pages", ()
        if key is not None:
            wanted, more = f"{wanted} AND key = ?", (*more, key)
        with self._reading() as db:
            number, last = self._row(db, run_id)[0], 0
        while True:
            with self._reading() as db:
                page = db.execute(
                    f"SELECT number, kind, key, text FROM journal{by} WHERE run = ? AND number > ?"
                    f"{wanted} ORDER BY number LIMIT {PAGE}",
                    (number, last, *more),
                ).fetchall()
            for _, *entry in page:
                yield Entry(*entry)
            if len(page) < PAGE:
                return
            last = page[-1][0]

    def runs(self) -> list[StoredRun]:
        with self._reading() as db:
            return [self._head(row) for row in db.execute("SELECT * FROM runs ORDER BY number").fetchall()]

    def run(self, run_id: str) -> StoredRun:
        with self._reading() as db:
            return self._head(self._row(db, run_id))

    def forget(self, run_id: str) -> None:
        self.run(run_id)
        with self._writing() as db:
            row = self._row(db, run_id)
            if row[7] is not None and self._is_alive(row[7], row[8]):
                raise RunOwnedError(run_id, row[7])
            _remove(db, row[0])

    def close(self) -> None:
        for run_id in list(self._owned):
            with suppress(CheckpointError):  # it cannot be written: with our lock, the run is anybody's
                self.release(run_id)
        with self._lock:
            self._closed = True
            self._changed.notify_all()
            keeper, self._keeper = self._keeper, None
            self._files.close()
        if keeper is not None and keeper is not threading.current_thread():
            keeper.join(1.0)

    def __repr__(self) -> str:
        return f"<SQLiteStore: {self.path}>"

    # ---- rows -----------------------------------------------------------------------------------

    def _row(self, db: sqlite3.Connection, run_id: str) -> Any:
        row = db.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
        if row is None:
            raise UnknownRunError(run_id, "", str(self.path))
        return row

    def _head(self, row: Any) -> StoredRun:
        _, run_id, flow, status, created_at, finished_at, facts, owner, seen_at = row
        has = owner if owner is not None and self._is_alive(owner, seen_at) else None
        return StoredRun(run_id, flow, Status(status), created_at, finished_at, has, facts)

    def _add(self, db: sqlite3.Connection, number: int, last: int, entries: Sequence[Entry]) -> bool:
        """Add to the journal of a run; False when the run is not ours."""
        rows = [(number, last + place, *entry, number, self._own()) for place, entry in enumerate(entries, 1)]
        if len(rows) == 1:
            return db.execute(ADD, rows[0]).rowcount == 1
        if not rows:
            ours = db.execute("SELECT 1 FROM runs WHERE number = ? AND owner = ?", (number, self._own()))
            return ours.fetchone() is not None
        return db.executemany(ADD, rows).rowcount == len(rows)

    def _add_ours(self, db: sqlite3.Connection, run_id: str, number: int, entries: Sequence[Entry]) -> None:
        if not self._add(db, number, self._last[number], entries):
            self._gave_up(run_id)
            owner = db.execute("SELECT owner FROM runs WHERE number = ?", (number,)).fetchone()
            raise RunOwnedError(run_id, "nobody: it was removed" if owner is None else str(owner[0] or "nobody"))

    def _number(self, run_id: str) -> int:
        number = self._owned.get(run_id)
        if number is None:
            raise RunOwnedError(run_id, "another process, or nobody any more")
        return number

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Forget runs that ended long ago."""
        if self._retention is not None:
            before = time.time() - self._retention
            old = db.execute("SELECT number FROM runs WHERE finished_at < ? AND owner IS NULL", (before,)).fetchall()
            for (number,) in old:
                _remove(db, number)

    # ---- owners ---------------------------------------------------------------------------------

    def _own(self) -> str:
        """Return who we are, as an owner of runs."""
        if self._files.owner is None:
            self._files.owner = OwnerLock(self.path)
        return self._files.owner.token

    def _is_alive(self, owner: str, seen_at: float) -> bool:
        if self._files.owner is not None and owner == self._files.owner.token:
            return True
        alive = is_alive(self.path, owner)
        return time.time() - seen_at < self._lease if alive is None else alive

    def _has(self, run_id: str, number: int, last: int) -> None:
        with self._lock:
            self._owned[run_id], self._last[number] = number, last
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name="millstream-lease", daemon=True)
                self._keeper.start()

    def _gave_up(self, run_id: str) -> None:
        with self._lock:
            self._last.pop(self._owned.pop(run_id, 0), None)
            if not self._owned:
                self._changed.notify_all()

    def _keep(self) -> None:
        """The life of the thread that renews our leases, for as long as we have any."""
        with self._changed:
            while self._owned and not self._closed:
                self._changed.wait(self._lease / 3)
                if self._owned and not self._closed:
                    try:
                        with self._writing() as db:
                            db.execute("UPDATE runs SET seen_at = ? WHERE owner = ?", (time.time(), self._own()))
                    except CheckpointError:  # whoever writes next is told
                        pass
            if self._keeper is threading.current_thread():
                self._keeper = None

    # ---- the file -------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction."""
        with self._lock, self._told():
            db = self._open(make=True)
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._told():
            yield self._open(make=False)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say what is wrong with the file."""
        try:
            yield
        except sqlite3.Error as error:
            raise CheckpointError(f"{self.path}: {_told_of(error)}") from error
        except OSError as error:
            raise unusable(self.path, error) from error
        except (ValueError, TypeError, AttributeError) as error:  # what SQLite itself does not notice
            raise CheckpointError(f"{self.path} is damaged ({error}): bring back a copy of it.") from error

    def _open(self, *, make: bool) -> sqlite3.Connection:
        if self._files.connection is not None and self._writes:
            return self._files.connection
        if self._closed:
            raise CheckpointError(f"The store {self.path} is closed.")
        if self._files.connection is not None:  # it can only be read
            if make:
                raise CheckpointError(f"{self.path} cannot be written: it is read-only.")
            if self._seen == self._look():
                return self._files.connection
            self._files.disconnect()
        empty = not self.path.exists() or self.path.stat().st_size == 0
        if empty and not make:
            if self._files.nothing is None:
                self._files.nothing = _nothing()
            return self._files.nothing
        version = 0
        if not empty:
            version = self._checked()
        self._writes = empty or (os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK))
        if not self._writes:
            self._seen = self._look()
            self._files.connection = self._connect("mode=ro" if _has(self.path, "-wal") else "immutable=1")
            if make:
                raise CheckpointError(f"{self.path} cannot be written: it is read-only.")
            return self._files.connection
        connection = self._connect("mode=rwc")
        try:
            if version < VERSION:
                self._make(connection, version)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if self.sync == 'full' else 'NORMAL'}")
        except BaseException:
            connection.close()
            raise
        self._files.connection = connection
        return connection

    _writes = True
    _seen: Any = None  # what a file that can only be read was like when it was opened

    def _look(self) -> Any:
        """Return what changes when others write to the file: one that is opened as immutable does not notice."""
        facts = self.path.stat()
        return facts.st_ino, facts.st_mtime_ns, facts.st_size, _has(self.path, "-wal")

    def _connect(self, how: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"file:{quote(str(self.path))}?{how}",
            timeout=PATIENCE,
            uri=True,
            check_same_thread=False,
            isolation_level=None,
        )

    def _checked(self) -> int:
        """Look at a file, without writing; return the version of its schema, 0 if there is none yet.

        Raises:
            CheckpointError: it is none of ours, too new, or damaged.
        """
        with self.path.open("rb") as file:
            head = file.read(100)
        if len(head) < 100 or not head.startswith(_HEAD):
            raise CheckpointError(f"{self.path} is no SQLite database: give the store a path of its own.")
        size = int.from_bytes(head[16:18], "big")
        pages = int.from_bytes(head[28:32], "big") * (65536 if size == 1 else size)
        wal, journal = _has(self.path, "-wal"), _has(self.path, "-journal")
        if self.path.stat().st_size < pages and not (wal or journal):
            raise CheckpointError(
                f"{self.path} is damaged: it has {self.path.stat().st_size} of {pages} bytes. Bring back a copy of it."
            )
        # A process was killed while it made the file: SQLite undoes that first.
        connection = self._connect("mode=rw" if journal else "mode=ro" if wal else "mode=ro&immutable=1")
        try:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            connection.close()
        if application != APPLICATION_ID and (application or tables):
            raise CheckpointError(f"{self.path} is a database of another program: give the store a path of its own.")
        if version > VERSION:
            raise CheckpointError(
                f"{self.path} was written by a newer Millstream (schema {version}, this one knows {VERSION}): use that."
            )
        return int(version)

    def _make(self, db: sqlite3.Connection, version: int) -> None:
        """Bring the schema to the newest version, in one transaction."""
        db.execute("BEGIN EXCLUSIVE")
        try:
            (version,) = db.execute("PRAGMA user_version").fetchone()  # somebody else may have been quicker
            if not version:
                for statement in SCHEMA:
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            else:
                for step in range(version, VERSION):
                    for statement in MIGRATIONS[step]:
                        db.execute(statement)
            db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def _remove(db: sqlite3.Connection, number: int) -> None:
    db.execute("DELETE FROM journal WHERE run = ?", (number,))
    db.execute("DELETE FROM runs WHERE number = ?", (number,))


def _nothing() -> sqlite3.Connection:
    """Return an empty store: reading makes no file."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    for statement in SCHEMA:
        connection.execute(statement)
    return connection


def _has(path: Path, suffix: str) -> bool:
    """Whether SQLite has something beside the file: a log of commits that are not in it yet, or what undoes one."""
    try:
        return os.stat(f"{path}{suffix}").st_size > 0
    except FileNotFoundError:
        return False


def _told_of(error: sqlite3.Error) -> str:
    """Return what is wrong, and the mend."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR:
        return f"the disk is full, or fails ({error}). What was committed is safe: make room, and resume the run."
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"others have kept it locked for {PATIENCE:g} s ({error}). Resume the run when they have ended."
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"it cannot be written ({error}). Give the process the right to, or use another path."
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return f"it is damaged ({error}). Bring back a copy of it."
    return f"SQLite refuses: {error}."


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds, not {value!r}.")
    if not value > 0:
        raise ValueError(f"{name} is more than 0 seconds, not {value!r}.")
    return float(value)
