"""Where durable runs are kept: SQLite, one JSON file, memory, or a store of your own."""

from millstream.stores.base import Entry, Store, StoredRun
from millstream.stores.jsonfile import JSONFileStore
from millstream.stores.memory import MemoryStore
from millstream.stores.sqlite import SQLiteStore

__all__ = ["Entry", "JSONFileStore", "MemoryStore", "SQLiteStore", "Store", "StoredRun"]
