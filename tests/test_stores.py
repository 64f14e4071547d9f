"""Stores: what each of them promises, what comes back of a value, what damage does, and who owns a run."""

from __future__ import annotations

import dataclasses
import enum
import gc
import json
import math
import os
import pathlib
import pickle
import random
import re
import shutil
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from contextlib import closing, contextmanager, suppress
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from datetime import time as time_of_day
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

import millstream
from millstream import CheckpointError, Flow, RunOwnedError, Status, UnknownRunError
from millstream.stores import Entry, JSONFileStore, MemoryStore, SQLiteStore, Store, StoredRun, owner
from millstream.stores import sqlite as sqlite_store
from millstream.stores.serial import READERS, JSONSerializer, PickleSerializer, UnfitError, written
from tests.conftest import WATCHDOG, assert_gone, engine_threads, until

checked = settings(max_examples=100, deadline=None, derandomize=True, database=None)

SCRIPT = Path(__file__).with_name("store_scripts.py")
KINDS = {"memory": MemoryStore, "sqlite": SQLiteStore, "json": JSONFileStore}
FILES = ("sqlite", "json")

#: Ways out that the errors of a file tell of.
MEND = re.compile(
    "bring back a copy|a path (of its own|where)|use that|the right to|another path|make room|when they have ended",
    re.I,
)


class Elsewhere:
    """A process with a store of its own, which does what it is told: see ``store_scripts``."""

    def __init__(self, kind, path, **options):
        program = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(SCRIPT)]  # it forks
        self._process = subprocess.Popen(
            [*program, kind, str(path), json.dumps(options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __getattr__(self, name):
        return partial(self.ask, name)

    def ask(self, name, *args):
        self.tell(name, *args)
        return self.answer()

    def tell(self, name, *args):
        pickle.dump((name, args), self._process.stdin)
        self._process.stdin.flush()

    def answer(self):
        well, answer = pickle.load(self._process.stdout)
        if not well:
            raise answer
        return answer

    @property
    def pid(self):
        return self._process.pid

    def kill(self):
        """End it by SIGKILL."""
        self._process.kill()
        self._process.communicate(timeout=WATCHDOG)


class Place:
    """Where runs are kept, and the stores that were opened there, in this process and in others."""

    def __init__(self, kind, path):
        self.kind, self.path, self._opened = kind, path, []

    def open(self, **options):
        store = MemoryStore(**options) if self.kind == "memory" else KINDS[self.kind](self.path, **options)
        self._opened.append(store.close)
        return store

    def elsewhere(self, **options):
        process = Elsewhere(self.kind, self.path, **options)
        self._opened.append(process.kill)
        return process

    def close(self):
        while self._opened:
            self._opened.pop()()

    @property
    def files(self):
        """The names of all files there."""
        return sorted(path.name for path in self.path.parent.iterdir())


@contextmanager
def placed(kind, path):
    place = Place(kind, path / f"runs.{kind}")
    try:
        yield place
    finally:
        place.close()
        assert_gone(engine_threads("millstream-lease"))


@pytest.fixture(params=FILES)
def place(request, tmp_path):
    """A file that is not there yet, for each kind of store that has one."""
    with placed(request.param, tmp_path) as place:
        yield place


@pytest.fixture
def sqlite_place(tmp_path):
    with placed("sqlite", tmp_path) as place:
        yield place


@pytest.fixture
def json_place(tmp_path):
    with placed("json", tmp_path) as place:
        yield place


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    """An empty store of each kind."""
    with placed(request.param, tmp_path) as place:
        yield place.open()


@pytest.fixture
def public_path():
    """A directory that everybody may read."""
    path = Path(tempfile.mkdtemp(prefix="millstream-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def entry(fact, kind="step", key=None):
    return Entry(kind, key, json.dumps(fact))


def begin(store, run_id, *facts):
    store.create(run_id, "flow", 1.0, "{}", [entry(fact) for fact in facts])


def end(store, run_id, finished_at=2.0):
    store.finish(run_id, Status.SUCCESS, finished_at, [])


def facts_of(store, run_id):
    return [json.loads(each.text) for each in store.entries(run_id)]


def ids_of(store):
    return [run.id for run in store.runs()]


# ---- the protocol ------------------------------------------------------------------------------------


def test_a_run_is_there_as_it_was_begun(store):
    """A run has the head and the entries that it was made with, and an owner; what has none is ended."""
    entries = [Entry("start", None, "[]"), Entry("step", -5, '{"a": 1}')]

    store.create("r-1", "orders", 17.25, '{"starts": []}', entries)

    head = store.run("r-1")
    assert head == StoredRun("r-1", "orders", Status.RUNNING, 17.25, None, head.owner, '{"starts": []}')
    assert head.owner
    assert isinstance(head.status, Status)
    assert list(store.entries("r-1")) == entries
    assert all(type(each) is Entry for each in store.entries("r-1"))

    store.finish("r-1", Status.FAILED, 20.5, [entry("last")])

    assert store.run("r-1") == StoredRun("r-1", "orders", Status.FAILED, 17.25, 20.5, None, '{"starts": []}')
    assert [each.text for each in store.entries("r-1")] == ["[]", '{"a": 1}', '"last"']


def test_runs_are_told_the_oldest_first(store):
    """Runs come in the order in which they were begun, whatever their ids and times are."""
    assert store.runs() == []
    for run_id, at in (("b", 3.0), ("c", 1.0), ("a", 2.0)):
        store.create(run_id, "flow", at, "{}", [])
    end(store, "c")

    assert ids_of(store) == ["b", "c", "a"]
    assert store.runs() == [store.run(run_id) for run_id in ("b", "c", "a")]


def test_entries_come_in_their_order(store):
    """Entries come out as they went in, also when there are more than are read at once, with runs side by side."""
    begin(store, "a")
    begin(store, "b")
    for n in range(6):
        store.append("a", [entry([n, part]) for part in range(201)])
        store.append("b", [entry(n)])
        store.append("a", [])

    assert facts_of(store, "a") == [[n, part] for n in range(6) for part in range(201)]
    assert facts_of(store, "b") == list(range(6))


def test_entries_of_a_kind_and_about_a_task_run(store):
    """Entries can be asked for by kinds, by the task run that they are about, and by both."""
    keys = (None, 0, -1, 2**63 - 1, -(2**63))
    entries = [Entry(kind, key, f"{n}") for n in range(300) for kind in ("a", "b", "c") for key in keys]
    store.create("r", "flow", 1.0, "{}", entries)

    for kinds in ((), ("a",), ["c", "a"], ("a", "a"), ("x",)):
        for key in (*keys, 7):
            found = [e for e in entries if (not kinds or e.kind in kinds) and (key is None or e.key == key)]
            assert list(store.entries("r", kinds, key)) == found
            assert list(store.entries("r", kinds=kinds, key=key)) == found


@pytest.mark.parametrize("text", ["", "ü€😀", "a\0b", "'; DROP TABLE runs; --", '\n\r\t\\"', "x" * 1_000_000])
def test_any_text_is_kept(store, text):
    """Whatever is in an id, a name, facts and entries comes back."""
    store.create(text, text, 1.0, text, [Entry(text, 1, text)])

    assert store.run(text)[:2] == (text, text)
    assert store.run(text).facts == text
    assert list(store.entries(text, [text])) == [Entry(text, 1, text)]
    store.release(text)
    assert store.claim(text).id == text


def test_a_run_that_was_given_up_goes_on(store):
    """A run that was released, or that has ended, is claimed again and goes on at its end."""
    begin(store, "r", 1)
    store.release("r")
    assert store.run("r")[2:] == (Status.RUNNING, 1.0, None, None, "{}")

    head = store.claim("r")

    assert head == store.run("r")
    assert head.owner
    store.append("r", [entry(2)])
    end(store, "r")
    head = store.claim("r")
    assert (head.status, head.finished_at) == (Status.RUNNING, None)
    assert head == store.run("r")
    store.append("r", [entry(3), entry(4)])
    assert facts_of(store, "r") == [1, 2, 3, 4]


def test_a_run_is_forgotten(store):
    """A forgotten run is gone, with its entries; others stay, and its id may be used again."""
    for run_id in ("a", "b", "c"):
        begin(store, run_id, run_id)
    end(store, "b")
    store.release("a")

    store.forget("b")
    store.forget("a")

    assert ids_of(store) == ["c"]
    begin(store, "a", "new")
    assert facts_of(store, "a") == ["new"]
    assert facts_of(store, "c") == ["c"]


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.claim("nine"),
        lambda store: store.run("nine"),
        lambda store: list(store.entries("nine")),
        lambda store: list(store.entries("nine", ["a"], 1)),
        lambda store: store.forget("nine"),
    ],
    ids=["claim", "run", "entries", "some", "forget"],
)
def test_a_run_that_is_not_there(store, ask):
    """Asking for a run that is not there says so, and where it was looked for; an empty store answers the same."""
    for another in ("a", "b"):
        with pytest.raises(UnknownRunError, match=r"^Run nine is not in .+: see runs\(\) for those that are\.$"):
            ask(store)
        begin(store, another)  # next time the store is not empty
    store.release("nine")


def test_an_id_is_used_once(store):
    """A run with the id of another one is refused, whether that has ended or not, and nothing changes."""
    begin(store, "r", 1)
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"^Run r is in .+ already: resume it, or choose another run_id\."
        ) as caught:
            store.create("r", "flow", 2.0, "[]", [entry(2)])
        assert type(caught.value) is CheckpointError
        assert (store.run("r").created_at, facts_of(store, "r")) == (1.0, [1])
        store.release("r")


def test_only_the_owner_changes_a_run(store):
    """What has been given up, or never was there, is not written to; what is owned is not claimed nor forgotten."""
    begin(store, "mine", 1)
    begin(store, "released", 1)
    store.release("released")
    begin(store, "ended", 1)
    end(store, "ended")
    begin(store, "gone")
    store.release("gone")
    store.forget("gone")
    before = store.runs()

    for run_id in ("released", "ended", "gone", "never"):
        for write in (
            lambda run_id=run_id: store.append(run_id, [entry(2)]),
            lambda run_id=run_id: store.append(run_id, [entry(2), entry(3)]),
            lambda run_id=run_id: store.finish(run_id, Status.FAILED, 3.0, [entry(2)]),
        ):
            with pytest.raises(RunOwnedError, match=f"^Run {run_id} belongs to .+: wait until"):
                write()
        store.release(run_id)
    for call in (store.claim, store.forget):
        with pytest.raises(RunOwnedError, match=r"^Run mine belongs to .*process") as caught:
            call("mine")
        assert caught.value.owner == store.run("mine").owner

    assert store.runs() == before
    assert [facts_of(store, run_id) for run_id in ("mine", "released", "ended")] == [[1], [1], [1]]
    store.append("mine", [entry(2)])


def test_a_close_gives_up_what_has_not_ended(place):
    """After close runs are anybody's, and it may be called again; a with-statement closes, too."""
    store = place.open()
    begin(store, "a", 1)
    begin(store, "b", 1)
    end(store, "b")
    store.close()
    store.close()

    with place.open() as another:
        assert [(run.id, run.status, run.owner) for run in another.runs()] == [
            ("a", Status.RUNNING, None),
            ("b", Status.SUCCESS, None),
        ]
        another.claim("a")
    with place.open() as third:
        assert third.claim("a").owner


def test_a_store_in_memory_gives_up_its_runs(store):
    """Close leaves no owner of any run; before anything was done it does nothing, twice."""
    type(store).close(store)
    if isinstance(store, MemoryStore):
        begin(store, "r")
        store.close()
        store.close()
        assert store.run("r").owner is None


def test_a_closed_database_says_so(sqlite_place):
    """What is done with a store after close is refused in words, and does not open the file again."""
    for store in (sqlite_place.open(), sqlite_place.open()):
        begin(store, f"r-{id(store)}")
        store.close()
        for call in calls_of(store):
            with pytest.raises(CheckpointError, match=rf"^The store {re.escape(str(store.path))} is closed\."):
                call()
        store.release("r")
    assert sqlite_place.files == ["runs.sqlite"]


def calls_of(store, run_id="r"):
    """Return what needs the file, as calls."""
    return [
        lambda: store.runs(),
        lambda: store.run(run_id),
        lambda: list(store.entries(run_id)),
        lambda: store.claim(run_id),
        lambda: begin(store, "new", 1),
        lambda: store.forget(run_id),
    ]


def test_many_threads_use_one_store(store):
    """Threads that append to one run and to runs of their own, while others read, lose nothing and keep their order."""
    begin(store, "shared")
    threads, appends, start = 6, 25, threading.Barrier(7)
    failures = []

    def work(number):
        start.wait()
        try:
            begin(store, f"own-{number}")
            for n in range(appends):
                store.append("shared", [entry([number, n])])
                store.append(f"own-{number}", [entry(n), entry(n)])
            end(store, f"own-{number}")
        except BaseException as error:
            failures.append(error)

    def read():
        start.wait()
        while any(thread.is_alive() for thread in workers):
            for run in store.runs():
                found = facts_of(store, run.id)
                assert run.id == "shared" or len(found) % 2 == 0
            time.sleep(0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for thread in workers:
            thread.start()
        read()
        for thread in workers:
            thread.join()
    finally:
        sys.setswitchinterval(interval)

    assert not failures
    found = facts_of(store, "shared")
    assert len(found) == threads * appends
    for number in range(threads):
        assert [n for who, n in found if who == number] == list(range(appends))
        assert facts_of(store, f"own-{number}") == [n for n in range(appends) for _ in range(2)]
        assert store.run(f"own-{number}").status is Status.SUCCESS


def test_entries_are_read_while_others_are_written(store):
    """Who has begun to read a journal gets all that was there, each entry once, whatever is written meanwhile."""
    begin(store, "r", *range(1200))

    entries = store.entries("r")
    first = [next(entries) for _ in range(10)]
    store.append("r", [entry(1200)])
    rest = list(entries)

    assert [json.loads(each.text) for each in first + rest][:1200] == list(range(1200))
    assert len(first + rest) in (1200, 1201)


def test_what_is_added_as_one_is_all_there_or_not_at_all(place):
    """A process that is killed while it appends leaves nothing in part, and nothing that it was told of is lost."""
    process = place.elsewhere()
    process.begun("r")
    process.tell("append_threes", "r")
    for _ in range(20):
        last = process.answer()
    process.kill()

    store = place.open()
    found = [int(each.text) for each in store.entries("r", ["three"])]
    assert found == [0, 1, 2] * (len(found) // 3)
    assert len(found) >= 3 * (last + 1)
    store.claim("r")
    store.append("r", [entry("on")])


def test_a_part_that_cannot_be_written_takes_the_rest_with_it(sqlite_place):
    """Of an append, a create and a finish with something in it that the database refuses nothing is left."""
    store, bad = sqlite_place.open(), Entry("bad", None, None)
    begin(store, "r", 1)
    with closing(sqlite3.connect(sqlite_place.path)) as db:
        before = list(db.iterdump())

    for call in (
        lambda: store.append("r", [entry(2), bad, entry(3)]),
        lambda: store.append("r", [bad]),
        lambda: store.create("new", "flow", 1.0, "{}", [entry(2), bad]),
        lambda: store.finish("r", Status.SUCCESS, 2.0, [entry(2), bad]),
    ):
        with pytest.raises(CheckpointError, match=re.escape(str(store.path))):
            call()

    with closing(sqlite3.connect(sqlite_place.path)) as db:
        assert list(db.iterdump()) == before
    store.append("r", [entry(2)])
    assert facts_of(store, "r") == [1, 2]


def test_a_file_that_cannot_be_replaced_changes_nothing(json_place, monkeypatch):
    """When the new file cannot be put in its place, the store and the file are as before, and the next write does."""
    store = json_place.open()
    begin(store, "r", 1)
    begin(store, "ended", 1)
    end(store, "ended")
    before, heads = json_place.path.read_bytes(), store.runs()

    def refuse(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        for call in (
            lambda: store.append("r", [entry(2)]),
            lambda: store.finish("r", Status.SUCCESS, 2.0, [entry(2)]),
            lambda: store.release("r"),
            lambda: store.claim("ended"),
            lambda: begin(store, "new", 1),
        ):
            with pytest.raises(CheckpointError, match="No space left"):
                call()
            assert store.runs() == heads
    assert json_place.path.read_bytes() == before
    assert json_place.files == ["runs.json", "runs.json-lock"]
    assert facts_of(store, "r") == [1]

    store.append("r", [entry(2)])
    assert facts_of(json_place.open(), "r") == [1, 2]


def test_a_run_that_cannot_be_forgotten_keeps_its_journal(json_place, monkeypatch):
    """When a forget cannot be written, the run stays as it was, also after the next write."""
    store = json_place.open()
    begin(store, "ended", 1)
    end(store, "ended")
    begin(store, "r", 1)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(CheckpointError):
            store.forget("ended")
    store.append("r", [entry(2)])
    store.close()

    assert facts_of(json_place.open(), "ended") == [1]


def test_the_end_of_a_run_is_written_at_once(json_place, monkeypatch):
    """The last entries of a run and its status come into the file together."""
    store, real = json_place.open(), os.replace
    begin(store, "r", 1)
    seen = []

    def replace(*args):
        real(*args)
        (run,) = json.loads(json_place.path.read_bytes())["runs"].values()
        seen.append((run["status"], len(run["journal"])))

    monkeypatch.setattr(os, "replace", replace)
    store.finish("r", Status.SUCCESS, 2.0, [entry(2)])

    assert seen == [("SUCCESS", 2)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_that_no_file_can_hold(kind, tmp_path):
    """An id with half a surrogate pair is kept, or refused in words."""
    with placed(kind, tmp_path) as place:
        store = place.open()
        try:
            begin(store, "\ud800")
        except CheckpointError:
            return
        assert ids_of(store) == ["\ud800"]


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: SQLiteStore(""), ValueError, "A SQLiteStore needs a file, not ''"),
        (lambda: SQLiteStore(":memory:"), ValueError, "needs a file, not ':memory:': for memory there is MemoryStore"),
        (lambda: SQLiteStore(None), TypeError, "The path of a store is a string or a path, not None"),
        (lambda: SQLiteStore(b"runs.db"), TypeError, "The path of a store is a string or a path"),
        (lambda: JSONFileStore(3), TypeError, "The path of a store is a string or a path, not 3"),
        (lambda: SQLiteStore("x", sync="never"), ValueError, "sync is 'group', 'each' or 'full', not 'never'"),
        (lambda: JSONFileStore("x", sync=None), ValueError, "sync is 'group', 'each' or 'full', not None"),
        (lambda: MemoryStore(serializer="yaml"), ValueError, "serializer is 'json' or 'pickle', not 'yaml'"),
        (lambda: MemoryStore(serializer="pickle", types=[Order]), ValueError, "types is for serializer='json'"),
        (
            lambda: SQLiteStore("x", types=[int]),
            TypeError,
            "types takes dataclasses, enums and named tuples, not <class",
        ),
        (lambda: SQLiteStore("x", types=[Order(1)]), TypeError, "types takes dataclasses, enums and named tuples"),
        (lambda: MemoryStore(types=[Order, other_order()]), ValueError, "Two of the types of a store are called Order"),
        (lambda: SQLiteStore("x", lease=0), ValueError, "lease is more than 0 seconds, not 0"),
        (lambda: SQLiteStore("x", lease=math.nan), ValueError, "lease is more than 0 seconds, not nan"),
        (lambda: SQLiteStore("x", lease="30"), TypeError, "lease is a number of seconds, not '30'"),
        (lambda: SQLiteStore("x", retention=-1), ValueError, "retention is more than 0 seconds, not -1"),
        (lambda: SQLiteStore("x", retention=True), TypeError, "retention is a number of seconds, not True"),
    ],
)
def test_a_store_that_cannot_be(make, error, sentence, tmp_path, monkeypatch):
    """Arguments that no store can have are refused when it is made, by name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=f"^{sentence}|{sentence}"):
        make()
    assert os.listdir() == []


def test_a_store_tells_what_it_is(tmp_path, monkeypatch):
    """A store says where it is; a relative path is meant from where it was made, and no file is made for asking."""
    monkeypatch.chdir(tmp_path)
    stores = SQLiteStore("runs.db"), JSONFileStore(Path("runs.json")), MemoryStore()
    monkeypatch.chdir("/")

    assert repr(stores[0]) == f"<SQLiteStore: {tmp_path}/runs.db>"
    assert repr(stores[1]) == f"<JSONFileStore: {tmp_path}/runs.json>"
    assert repr(stores[2]) == "<MemoryStore: 0 runs>"
    assert [store.sync for store in stores] == ["each", "group", "each"]
    assert all(isinstance(store, Store) and store.serializer.name == "json" for store in stores)
    assert [store.runs() for store in stores] == [[], [], []]
    assert not list(tmp_path.iterdir())


def test_public_names():
    """What is public is what the package says, from both places."""
    from millstream import stores

    assert set(stores.__all__) == {"Entry", "JSONFileStore", "MemoryStore", "SQLiteStore", "Store", "StoredRun"}
    for name in set(stores.__all__) - {"Entry"}:
        assert getattr(millstream, name) is getattr(stores, name)


# ---- values and texts --------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "r"
    GREEN = ("g", 1)
    ROUGE = "r"  # noqa: PIE796 - an alias


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mood(enum.StrEnum):
    GOOD = "good"


class Right(enum.Flag):
    READ = 1
    WRITE = 2


Point = namedtuple("Point", "x y")


class Pair(NamedTuple):
    left: Any
    right: Any = None


@dataclasses.dataclass
class Order:
    id: Any
    lines: Any = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    name: Any
    more: Any = ()


TYPES = (Colour, Level, Mood, Right, Point, Pair, Order, Key)
JSON = JSONSerializer(TYPES)


def other_order():
    return dataclasses.make_dataclass("Order", ["id"])


def text_of(value, serializer=JSON):
    """Return a value as the text that a store keeps."""
    return written([], [serializer.plain(value)])


def value_of(text, serializer=JSON):
    """Return what a store reads from that."""
    return serializer.read(text)[1][0]


def of(text):
    """Return the text of a value whose own text is this one."""
    return f"[[],[{text}]]"


def shape(value):
    """Return a value as what compares with all that it is: types, signs of zeros, folds, order of keys, NaN."""
    kind = type(value)
    if kind in (list, tuple, Point, Pair):
        return kind, [shape(each) for each in value]
    if kind in (set, frozenset):
        return kind, sorted(map(shape, value), key=repr)
    if kind is dict:
        return kind, [(shape(key), shape(each)) for key, each in value.items()]
    if dataclasses.is_dataclass(kind):
        return kind, [(field.name, shape(getattr(value, field.name))) for field in dataclasses.fields(kind)]
    return kind, repr(value)


def texts():
    """Return texts with surrogates in them, also such as JSON takes for one character."""
    return st.text(st.characters() | st.sampled_from("\ud83d\ude00"))


def zones():
    day = timedelta(days=1) - timedelta(microseconds=1)
    return st.none() | st.timezones() | st.timedeltas(-day, day).map(timezone)


def folded(moments):
    return st.builds(lambda moment, fold: moment.replace(fold=fold), moments, st.sampled_from([0, 1]))


def numbers():
    return st.one_of(
        st.integers(),
        st.integers(-(10**300), 10**300),
        st.floats(),
        st.decimals(allow_nan=False),
        st.fractions(),
        st.complex_numbers(),
    )


def moments():
    return st.one_of(
        folded(st.datetimes(timezones=zones())),
        folded(st.times(timezones=zones().filter(lambda zone: not isinstance(zone, ZoneInfo)))),
        st.dates(),
        st.timedeltas(),
    )


def atoms():
    ends = st.integers(-50, 50)
    return st.one_of(
        st.none(),
        st.booleans(),
        numbers(),
        texts(),
        st.binary(),
        moments(),
        st.builds(range, ends, ends, ends.filter(bool)),
        st.uuids(),
        texts().map(Path),
        st.sampled_from([*Colour, *Level, *Mood, *Right]),
    )


keys = st.recursive(
    atoms(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(inner, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(Key, inner, inner),
    ),
    max_leaves=5,
)

values = st.recursive(
    keys | st.binary().map(bytearray) | st.sampled_from([Decimal("NaN"), Decimal("-sNaN12")]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(texts() | st.just("$"), inner, max_size=4),
        st.dictionaries(keys, inner, max_size=3),
        st.sets(keys, max_size=4),
        st.builds(Order, inner, inner),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=15,
)


@checked
@given(values)
@example({"$": None})
@example({"$": "tuple", "of": [1]})
@example({1: "int", "1": "str", 1.5: "float", (1,): "tuple", b"1": "bytes", None: "None"})
@example([0.0, -0.0, math.nan, math.inf, -math.inf, complex(-0.0, math.nan), 5e-324])
@example({frozenset({(1, frozenset({Key("k")}))}), ("t", (Level.LOW, Mood.GOOD)), True})
@example([True, 1, 1.0, Level.LOW, "good", Mood.GOOD, b"", bytearray()])
@example(datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1))
@example([range(0), range(5, 5), range(9, 0, -3), datetime.min, datetime.max, date.min, timedelta.min, timedelta.max])
@example([Path(), Path("/"), Path("a/../b"), datetime(1, 1, 1, tzinfo=UTC)])
@example("\ud800 \udfff \0")
def test_a_value_comes_back_as_it_was(value):
    """Each kind in the table comes back with its type, however it is nested, and its text is ASCII."""
    text = text_of(value)

    assert text.isascii()
    assert shape(value_of(text)) == shape(value)
    assert text_of(value_of(text)) == text or "set" in text  # in which order a set comes is its own affair


@settings(checked, max_examples=30)
@given(values)
def test_a_pickled_value_comes_back_as_it_was(value):
    """With pickle, too, a value comes back; its text is ASCII."""
    serializer = PickleSerializer()
    text = text_of(value, serializer)

    assert text.isascii()
    assert shape(value_of(text, serializer)) == shape(value)


def test_a_text_of_two_surrogates_comes_back_as_it_was():
    """Two halves of a pair are two characters of a Python string, and come back as two, or are refused."""
    assert value_of(text_of("\ud83d\ude00")) == "\ud83d\ude00"


def test_a_named_offset_keeps_its_name():
    """A datetime.timezone that was given a name has it when it comes back, or is refused."""
    moment = datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), "CET"))

    assert value_of(text_of(moment)).tzname() == "CET"


@pytest.mark.parametrize("flags", [Right.READ | Right.WRITE, Right(0), ~Right.READ & Right.READ])
def test_a_combination_of_flags_comes_back_or_is_refused(flags):
    """Flags that have no name of their own are read as they were, if they are written at all."""
    try:
        text = text_of(flags)
    except UnfitError:
        return
    assert value_of(text) == flags


def test_a_named_tuple_with_its_own_constructor_comes_back():
    """A named tuple is put together from its parts, whatever its class asks to be called with."""

    class Square(namedtuple("Square", "width height")):
        __slots__ = ()

        def __new__(cls, size):
            return super().__new__(cls, size, size)

    serializer = JSONSerializer([Square])

    assert value_of(text_of(Square(3), serializer), serializer) == Square(3)


@pytest.mark.parametrize("kind", ["enum", "named"])
def test_a_type_is_made_as_it_is_written(kind):
    """A text that has a dataclass as an enum or as a named tuple is refused, so that no constructor is called."""

    @dataclasses.dataclass
    class Box:
        content: Any

        def __class_getitem__(cls, item):
            return item

    with pytest.raises(UnfitError):
        value_of(of(f'{{"$":"{kind}","type":"Box","of":"x"}}'), JSONSerializer([Box]))


@pytest.mark.parametrize(
    "text",
    [
        '{"$":"tuple","of":{"$":"range","of":[3]}}',
        '{"$":"set","of":"abc"}',
        '{"$":"frozenset","of":{"a":1}}',
        '{"$":"Fraction","of":["1e5"]}',
    ],
)
def test_what_nobody_has_written_is_not_read(text):
    """A tag with a part of another kind than is ever written is refused: a large range would be a huge tuple."""
    with pytest.raises(UnfitError):
        value_of(of(text))


def test_a_dataclass_is_put_together_and_not_called():
    """A dataclass comes back by its fields: neither __init__ nor __post_init__ is called, init=False is kept."""
    calls = []

    @dataclasses.dataclass
    class Parsed:
        text: str
        size: int = dataclasses.field(init=False)
        start: dataclasses.InitVar[int] = 0

        def __post_init__(self, start):
            calls.append(start)
            self.size = len(self.text) + start

    serializer = JSONSerializer([Parsed])
    value = Parsed("abc", start=4)

    back = value_of(text_of(value, serializer), serializer)

    assert (back, back.size, calls) == (value, 7, [4])


def test_a_dataclass_may_have_changed_meanwhile():
    """A field that was added later has its default, one that was removed is left out; without a default it is told."""
    make = partial(dataclasses.make_dataclass, "Item")
    old = make(["a", "b"])
    text = text_of(old(1, 2), JSONSerializer([old]))

    for fields, back in (
        (["b"], {"b": 2}),
        (["a", "b", ("c", int, 3)], {"a": 1, "b": 2, "c": 3}),
        (["a", "b", ("c", list, dataclasses.field(default_factory=list))], {"a": 1, "b": 2, "c": []}),
        (["a", "b", ("c", int, dataclasses.field(default=3, kw_only=True))], {"a": 1, "b": 2, "c": 3}),
    ):
        for options in ({}, {"frozen": True}, {"slots": True, "frozen": True}):
            new = make(fields, **options)
            value = value_of(text, JSONSerializer([new]))
            assert type(value) is new
            assert dataclasses.asdict(value) == back
    with pytest.raises(UnfitError, match="was written before Item had its field c: give that a default"):
        value_of(text, JSONSerializer([make(["a", "b", "c"])]))


def test_a_member_of_an_enum_may_have_gone():
    """A member is read by its name: an alias gives its member, another value is that one's, and a name gone is told."""
    text = text_of([Colour.ROUGE, Colour.GREEN])

    assert value_of(text) == [Colour.RED, Colour.GREEN]
    later = enum.Enum("Colour", {"RED": 5, "GREEN": 6})
    assert value_of(text, JSONSerializer([later])) == [later.RED, later.GREEN]
    with pytest.raises(UnfitError, match="GREEN"):
        value_of(text, JSONSerializer([enum.Enum("Colour", {"RED": 5})]))


class Culprit:
    """What no store can write."""


class Text(str):
    __slots__ = ()


class Moment(datetime):
    pass


class Nowhere(tzinfo):
    def utcoffset(self, _):
        return timedelta(0)


@dataclasses.dataclass(slots=True)
class Half:
    there: int
    missing: int = dataclasses.field(init=False)


WRAPS = {
    "list": lambda value: [0, value],
    "tuple": lambda value: ((), value, 2),
    "dict": lambda value: {"a": 1, "b c": value},
    "odd keys": lambda value: {"a": 1, ("k", 2): value, None: 3},
    "float keys": lambda value: {1.5: value},
    "bytes keys": lambda value: {b"\0": value},
    "marked": lambda value: {"$": value},
    "dataclass": lambda value: Order(5, value),
    "slots": lambda value: Key("k", value),
    "named tuple": lambda value: Pair(1, value),
    "deep": lambda value: Order([{"x": Pair((value,))}]),
}


@checked
@given(st.lists(st.sampled_from(sorted(WRAPS)), max_size=6))
@example(sorted(WRAPS))
def test_the_path_leads_to_the_culprit(wraps):
    """What cannot be written is refused with a path that leads to it, when it is followed as Python."""
    culprit = value = Culprit()
    for name in wraps:
        value = WRAPS[name](value)

    with pytest.raises(
        UnfitError, match="is of type Culprit, which JSON has no word for: return something plainer"
    ) as caught:
        text_of(value)

    assert eval(f"value{caught.value.path}", {"value": value}) is culprit


@pytest.mark.parametrize(
    ("value", "path", "problem"),
    [
        (Culprit(), "", "is of type Culprit, which JSON has no word for"),
        ({"a": {Culprit}}, "['a'][0]", "is of type type, which"),
        ({"a": {("k", Culprit): 1}}, "['a'][", "is of type type, which"),
        ([deque([1])], "[0]", "is of type deque, which JSON has no word for"),
        ([OrderedDict(a=1)], "[0]", "is of type OrderedDict"),
        ([defaultdict(int)], "[0]", "is of type defaultdict"),
        ([Counter("a")], "[0]", "is of type Counter"),
        ([types.MappingProxyType({})], "[0]", "is of type mappingproxy"),
        ([Text("a")], "[0]", "is of type Text"),
        ({Text("a"): 1}, "['a']", "is of type Text"),
        ([Moment(2024, 1, 1)], "[0]", "is of type Moment"),
        ([print, 1], "[0]", "is of type builtin_function_or_method"),
        ([1, lambda: 1], "[1]", "is of type function"),
        ([(n for n in ())], "[0]", "is of type generator"),
        ([...], "[0]", "is of type ellipsis"),
        ([NotImplemented], "[0]", "is of type NotImplementedType"),
        ([memoryview(b"a")], "[0]", "is of type memoryview"),
        ([pathlib.PureWindowsPath("a")], "[0]", "is of type PureWindowsPath"),
        ([ValueError("a")], "[0]", "is of type ValueError"),
        ([re.compile("a")], "[0]", "is of type Pattern"),
        ([other_order()(1)], "[0]", r"is of type Order, which the store was not told of: types=\[Order\]"),
        ([enum.Enum("Shape", "ROUND").ROUND], "[0]", r"the store was not told of: types=\[Shape\]"),
        ([namedtuple("Triple", "a b c")(1, 2, 3)], "[0]", r"the store was not told of: types=\[Triple\]"),
        ([datetime(2024, 1, 1, tzinfo=Nowhere())], "[0]", "has the time zone .*Nowhere.*: use zoneinfo.ZoneInfo or"),
        ([time_of_day(1, tzinfo=Nowhere())], "[0]", "has the time zone .*Nowhere"),
        ([Half(1)], "[0].missing", "is not set"),
    ],
)
def test_what_has_no_word_is_refused(value, path, problem):
    """What is of none of the kinds, exactly, is refused with its type and the mend; a type of the same name, too."""
    with pytest.raises(UnfitError, match=problem) as caught:
        text_of(value, JSONSerializer([*TYPES, Half]))
    assert caught.value.path.startswith(path)


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_what_has_no_end_is_refused(kind):
    """A value that contains itself, or is nested far too deeply, is refused, and so is a text that is."""
    loop: list[Any] = []
    loop.append({"a": loop})
    deep: Any = 1
    for _ in range(100_000):
        deep = {"a": deep} if kind is dict else kind((deep,))

    for value in (loop, deep):
        with pytest.raises(UnfitError, match="contains itself, or is nested too deeply"):
            text_of(value)
    while type(deep) is kind:  # one at a time: the interpreter may not survive it at once
        (deep,) = deep.values() if kind is dict else deep
    for text in ("[" * 100_000, '{"a":' * 100_000, '{"$":"tuple","of":[' * 100_000):
        with pytest.raises(UnfitError, match="is no entry of a journal"):
            value_of(text)


def test_what_is_written_can_be_read():
    """Whatever is nested so deeply that it can just be written can be read in the same place."""
    for wrap in (lambda value: (value,), lambda value: {1: value}):
        text, value = "", 1
        for depth in range(2000):
            try:
                text = text_of(value) if depth > 100 else ""
            except UnfitError:
                break
            value = wrap(value)
        assert text_of(value_of(text)) == text


def test_the_path_leads_to_a_number_that_is_too_long():
    """An integer of more digits than Python writes is refused with the path to it."""
    with pytest.raises(UnfitError) as caught:
        text_of({"a": [1, 10**5000]})
    assert caught.value.path == "['a'][1]"


TAGS = [*READERS, "object", "enum", "named", "os.system", "$", "", "UnfitError"]
NAMES = [each.__name__ for each in TYPES] + ["Culprit", "Popen", "type", "str", "UnfitError", "Decimal"]

parts = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-50, 50), st.floats(), st.text(), st.sampled_from(NAMES + TAGS)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text() | st.sampled_from(["$", "of", "type"]), inner, max_size=3),
        st.fixed_dictionaries(
            {"$": st.sampled_from(TAGS) | inner, "of": inner}, optional={"type": st.sampled_from(NAMES) | inner}
        ),
    ),
    max_leaves=12,
)

#: All that reading may ever make.
MADE = {
    *(
        type(None),
        bool,
        int,
        float,
        str,
        list,
        dict,
        tuple,
        set,
        frozenset,
        bytes,
        bytearray,
        datetime,
        date,
        time_of_day,
    ),
    *(timedelta, Decimal, Fraction, complex, range, uuid.UUID, type(Path()), *TYPES),
}


def kinds_in(value):
    """Yield the types of all that is in a value."""
    yield type(value)
    if isinstance(value, dict):
        value = [*value, *value.values()]
    elif dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from kinds_in(each)


def read_or_refused(text):
    """Read a text, which may be refused with one error, and makes nothing but what the store was told of."""
    try:
        facts, values = JSON.read(text)
    except UnfitError:
        return
    assert set(kinds_in([facts, values])) <= MADE


@settings(checked, max_examples=300)
@given(parts)
def test_a_text_of_strange_tags_is_refused(value):
    """A text with any tags and parts is read or refused, and nothing that is not in the table is made."""
    read_or_refused(of(json.dumps(value)))


@checked
@given(values, st.data())
def test_a_text_with_damage_is_refused(value, data):
    """A text in which something was cut, replaced or doubled is read or refused."""
    text = text_of(value)
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(start + 5, len(text))))
    read_or_refused(text[:start] + data.draw(st.text(max_size=3) | st.just(text[start:])) + text[stop:])


@checked
@given(
    st.text() | st.sampled_from(["", "null", "[]", "[[]]", "[[],{}]", "[[],null]", "[1,2,3]", "[[],[1]", "NaN", "0"])
)
def test_any_text_is_read_or_refused(text):
    """Whatever a text is, a reader of JSON or of pickles raises one kind of error at most."""
    read_or_refused(text)
    with pytest.raises(UnfitError):
        PickleSerializer().read(of(json.dumps(text)))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '{"$":"object","type":"Culprit","of":{}}',
            r"has a Culprit in it, which the store was not told of: types=\[Culprit\]",
        ),
        ('{"$":"enum","type":"Shape","of":"A"}', r"has a Shape in it, which the store was not told of"),
        ('{"$":"Popen","of":["true"]}', "has a part that cannot be read"),
        ('{"$":"named","type":"Attribute","of":["x"]}', "has a Attribute in it, which the store was not told of"),
        ('{"$":"named","type":"str","of":["x"]}', "has a str in it, which the store was not told of"),
        ('{"$":"object","type":"Order","of":{"lines":[]}}', "was written before Order had its field id"),
        ('{"$":"bytes","of":"*"}', "has a part that cannot be read"),
        ('{"$":"datetime","of":["2024-01-01",null]}', "has a part that cannot be read"),
        ('{"$":"datetime","of":["2024-01-01","Europe/Nowhere",0]}', "has a part that cannot be read"),
        ('{"$":"datetime","of":["2024-01-01","../../etc/passwd",0]}', "has a part that cannot be read"),
        ('{"$":["tuple"],"of":[]}', "has a part that cannot be read"),
    ],
)
def test_a_text_that_stands_for_nothing(text, problem):
    """A tag or a type that is not known, and a part that cannot be, is refused in words."""
    with pytest.raises(UnfitError, match=problem):
        value_of(of(text))


@pytest.mark.parametrize("value", [Culprit, lambda: 1, threading.Lock(), (n for n in ())])
def test_what_cannot_be_pickled_is_refused(value):
    """With pickle, too, what cannot be written is refused with one kind of error."""
    if value is Culprit:
        value = type("Local", (), {})()
    with pytest.raises(UnfitError, match="cannot be pickled: "):
        text_of(value, PickleSerializer())


# ---- pickle, only by choice --------------------------------------------------------------------------


class Trap:
    """What makes a directory when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.makedirs, (self.path, 0o777, True)


def trapped(store, path):
    """Run a flow that keeps a trap in a store."""
    with flow_with_trap(store, path) as flow:
        flow.run("make", run_id="r")


def flow_with_trap(store, path):
    flow = Flow(store=store)

    @flow.task
    def make(ctx):
        ctx["trap"] = Trap(path)
        return Trap(path)

    return flow


def test_no_file_is_unpickled_unasked(place, tmp_path):
    """A store of JSON refuses a run that was pickled, by name, and reads none of it; one of pickles reads it."""
    path = str(tmp_path / "trapped")
    trapped(place.open(serializer="pickle"), path)
    place.close()
    assert not os.path.exists(path)

    with flow_with_trap(place.open(), path) as flow:
        assert [(run.id, run.status) for run in flow.runs()] == [("r", Status.SUCCESS)]
        for ask in (
            flow.report,
            flow.resume,
            lambda run: list(flow.stream(resume=run)),
            lambda run: flow.start(resume=run),
        ):
            with pytest.raises(CheckpointError, match=r"written with serializer='pickle'.*if you trust who wrote it"):
                ask("r")
        assert flow.runs()[0].owner is None
    assert not os.path.exists(path)
    place.close()

    with flow_with_trap(place.open(serializer="pickle"), path) as flow:
        flow.resume("r", on_code_change="ignore")
    assert os.path.isdir(path)


def test_a_pickle_that_calls_itself_json_is_read_as_json(sqlite_place, tmp_path):
    """A run whose head was changed to say that it is JSON is still not unpickled."""
    path = str(tmp_path / "trapped")
    trapped(sqlite_place.open(serializer="pickle"), path)
    sqlite_place.close()
    with closing(sqlite3.connect(sqlite_place.path)) as db, db:
        db.execute("""UPDATE runs SET facts = replace(facts, '"pickle"', '"json"')""")

    with flow_with_trap(sqlite_place.open(), path) as flow:
        for ask in (flow.report, flow.resume):
            with suppress(Exception):  # what is said of such a run is the affair of another test
                ask("r")
    assert not os.path.exists(path)


def test_a_pickle_store_refuses_json(place):
    """A store of pickles refuses a run that was written as JSON, by name."""
    flow = Flow(store=place.open())
    flow.add_task("one", lambda: 1)
    with flow:
        flow.run("one", run_id="r")
    place.close()

    flow = Flow(store=place.open(serializer="pickle"))
    flow.add_task("one", lambda: 1)
    with flow, pytest.raises(CheckpointError, match="written with serializer='json'"):
        flow.report("r")


# ---- damage ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """The bytes of a file of each kind with three runs, of which the last has not ended."""
    path, wholes = tmp_path_factory.mktemp("whole"), {}
    for kind in FILES:
        with placed(kind, path) as place:
            with place.open() as store:
                for run_id in ("a", "b", "r"):
                    begin(store, run_id, *range(20))
                    for n in range(20):
                        store.append(run_id, [Entry(f"kind-{n % 3}", n, json.dumps("x" * 50))])
                    if run_id != "r":
                        end(store, run_id)
            wholes[kind] = place.path.read_bytes()
    return wholes


def snapshot(path):
    """Return all files beside a path, with what is in them; of a directory its name."""
    return {each.name: each.read_bytes() if each.is_file() else None for each in path.parent.iterdir()}


def assert_refused(place, sentence, calls=calls_of):
    """Each call, with a store of its own, is refused in one sentence with a mend, and changes no file."""
    before = snapshot(place.path)
    for number in range(len(calls(None))):
        with place.open() as store:
            with pytest.raises(CheckpointError, match=sentence) as caught:
                calls(store)[number]()
            assert type(caught.value) is CheckpointError
            assert str(caught.value).startswith(f"{place.path}")
            assert MEND.search(str(caught.value)), f"{caught.value} - and what to do?"
        assert snapshot(place.path) == before


def test_a_file_that_was_cut_short(place, wholes):
    """A file of which the end is missing is refused, wherever it was cut, and is left as it is."""
    whole = wholes[place.kind]
    lengths = {1, 15, 16, 99, 100, 101, 511, 512, 1000, 4095, 4096, 4097, len(whole) - 4096, len(whole) - 1}
    lengths |= {*random.Random(1).sample(range(1, len(whole)), 10)}

    for length in sorted(lengths):
        place.path.write_bytes(whole[:length])
        assert_refused(place, "is no SQLite database|is damaged: it has|is no store of Millstream, or is damaged")


@pytest.mark.parametrize("what", ["few", "many", "text", "rest"])
def test_a_file_of_anything(place, wholes, what):
    """Random bytes, those of text, and a good beginning with random bytes after it are refused and left as they are."""
    noise, whole = random.Random(1).randbytes, wholes[place.kind]
    rest = whole[:100] + noise(len(whole) - 100)
    place.path.write_bytes({"few": noise(5), "many": noise(10_000), "text": b"a: 1\n[x]\n", "rest": rest}[what])

    assert_refused(place, "is no SQLite database|is damaged|is no store of Millstream, or is damaged|cannot be used")


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "5",
        "[]",
        "{}",
        '"x"',
        '{"millstream": 1}',
        '{"runs": {}}',
        '{"millstream": 1, "runs": []}',
        "{" + " " * 9,
    ]
    + [f'{{"millstream": 1, "runs": {{"r": {run}}}}}' for run in ("1", "[]", "{}", '{"flow": "f", "status": "LOST"}')],
)
def test_json_that_is_no_store(json_place, text):
    """JSON of something else, or with parts missing, is refused and left as it is."""
    json_place.path.write_text(text)

    assert_refused(json_place, "is no store of Millstream, or is damaged|is damaged")


def test_json_that_is_nested_without_end(json_place):
    """A file of nothing but brackets is refused like any other that is no store."""
    json_place.path.write_text("[" * 200_000)

    assert_refused(json_place, "is no store of Millstream, or is damaged")


def test_a_part_of_the_text_is_lost(json_place, wholes):
    """A JSON file in which something was cut out, changed or doubled is read or refused, with one kind of error."""
    whole, chance = wholes["json"], random.Random(3)
    for _ in range(150):
        start = chance.randrange(len(whole))
        stop = start + chance.randrange(40)
        middle = chance.choice([b"", chance.randbytes(3), b'"', b"[", b"null", b"1e999", whole[start:stop] * 2])
        json_place.path.write_bytes(whole[:start] + middle + whole[stop:])
        with json_place.open() as store:
            for call in calls_of(store):
                with suppress(CheckpointError):
                    call()


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE runs (id)",
        "PRAGMA application_id = 77",
        "PRAGMA application_id = 77; PRAGMA journal_mode = WAL; CREATE TABLE notes (text)",
        "PRAGMA user_version = 1; CREATE TABLE journal (text)",
    ],
)
def test_a_database_of_another_program(sqlite_place, script):
    """A database of somebody else is refused, and nothing is written to it."""
    with closing(sqlite3.connect(sqlite_place.path)) as db:
        db.executescript(script)

    assert_refused(sqlite_place, "is a database of another program: give the store a path of its own")


def test_a_file_of_a_newer_version(place, wholes):
    """What a newer Millstream has written is refused with both versions, and nothing is written to it."""
    place.path.write_bytes(wholes[place.kind])
    if place.kind == "sqlite":
        with closing(sqlite3.connect(place.path)) as db:
            db.execute("PRAGMA user_version = 99")
    else:
        place.path.write_text(place.path.read_text().replace('"millstream": 1,', '"millstream": 99,'))

    assert_refused(place, "was written by a newer Millstream .(schema|layout) 99, this one knows 1.: use that")


@pytest.mark.parametrize("new", ["missing", "empty"])
def test_a_file_with_nothing_in_it(place, new):
    """A file of no length, and one that is not there, is an empty store, which the first run is written to."""
    if new == "empty":
        place.path.touch()
    store = place.open()
    assert store.runs() == []
    with pytest.raises(UnknownRunError):
        store.run("r")

    begin(store, "r", 1)

    assert facts_of(place.open(), "r") == [1]


@pytest.mark.parametrize("new", ["missing", "empty"])
@pytest.mark.parametrize("ask", ["runs", "run", "entries", "claim", "forget"])
@pytest.mark.parametrize("kind", FILES)
def test_asking_makes_no_file(kind, ask, new, tmp_path):
    """Asking an empty store for a run, also in order to go on with it, neither makes a file nor writes to one."""
    with placed(kind, tmp_path) as place:
        if new == "empty":
            place.path.touch()
        before = snapshot(place.path)
        with place.open() as store:
            if ask == "runs":
                assert store.runs() == []
            else:
                with pytest.raises(UnknownRunError):
                    list(getattr(store, ask)("r"))

        assert snapshot(place.path) == before


def test_a_directory_in_its_place(place):
    """A directory where the file should be is refused and left as it is."""
    place.path.mkdir()

    assert_refused(place, "cannot be used as a store .*Is a directory")


@pytest.mark.parametrize("kind", FILES)
def test_a_directory_that_is_not_there(kind, tmp_path):
    """No run is begun where there is no directory; asking for one there says that there is none."""
    with placed(kind, tmp_path / "none") as place:
        store = place.open()
        assert store.runs() == []
        with pytest.raises(CheckpointError, match=r"unable to open|No such file") as caught:
            begin(store, "r")
        assert str(place.path) in str(caught.value)
        assert MEND.search(str(caught.value))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("how", "many"),
    [
        ("zeros", 30),
        ("noise", 60),
        ("some", 80),
    ],
)
def test_a_database_with_damage_inside(sqlite_place, wholes, how, many):
    """With a page of zeros, of noise, or with a few wrong bytes, each call works or says that the file is damaged."""
    chance, errors = random.Random(how), []
    for _ in range(many):
        data = bytearray(wholes["sqlite"])
        page = chance.randrange(len(data) // 4096) * 4096
        if how == "some":
            for _ in range(chance.randrange(1, 30)):
                data[page + chance.randrange(4096)] = chance.randrange(256)
        else:
            data[page : page + 4096] = bytes(4096) if how == "zeros" else chance.randbytes(4096)
        for left in sqlite_place.path.parent.iterdir():
            left.unlink()
        sqlite_place.path.write_bytes(data)
        with sqlite_place.open() as store:
            more = [lambda: store.append("r", [entry(1)]), lambda: end(store, "r"), lambda: end(store, "new")]
            for call in [*calls_of(store), *more]:
                try:
                    call()
                except CheckpointError:
                    pass
                except Exception as error:
                    errors.append(error)
    assert not errors


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("UPDATE runs SET status = 'LOST'", id="status"),
        pytest.param("UPDATE runs SET owner = x'00', seen_at = 1", id="owner"),
        pytest.param("UPDATE runs SET owner = 'process 1 on elsewhere (a)', seen_at = NULL", id="seen_at"),
        pytest.param(
            "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = '', name = CAST(x'9b' AS TEXT)",
            id="schema",
        ),
    ],
)
def test_a_row_with_damage(sqlite_place, wholes, change):
    """A row with something in it that nobody has written is told as damage."""
    sqlite_place.path.write_bytes(wholes["sqlite"])
    with closing(sqlite3.connect(sqlite_place.path)) as db:
        db.executescript(change)

    with sqlite_place.open() as store, pytest.raises(CheckpointError, match=re.escape(str(sqlite_place.path))):
        store.runs()


def killed_in_mid_run(place):
    """Leave files of a process that was killed while it had a run, with what it has written not in the file itself."""
    process = place.elsewhere()
    process.begun("r")
    process.tell("append_threes", "r")
    for _ in range(5):
        process.answer()
    process.kill()


@pytest.mark.parametrize("where", [0, 20, 60])
def test_a_database_with_damage_beside_what_was_not_merged_yet(sqlite_place, where):
    """After a kill -9 a database that is damaged is refused, and neither it nor the log beside it is touched."""
    killed_in_mid_run(sqlite_place)
    with sqlite_place.path.open("r+b") as file:
        file.seek(where)
        file.write(b"damage")
    kept = {sqlite_place.path.name, f"{sqlite_place.path.name}-wal"}
    before = {name: content for name, content in snapshot(sqlite_place.path).items() if name in kept}
    assert len(before) == 2

    for number in range(6):
        with sqlite_place.open() as store:
            try:
                calls_of(store)[number]()
            except CheckpointError as error:
                assert str(error).startswith(str(sqlite_place.path))  # noqa: PT017
                assert {n: c for n, c in snapshot(sqlite_place.path).items() if n in kept} == before


def test_what_was_not_merged_yet_is_read(sqlite_place):
    """After a kill -9 everything that was committed is read, by several stores at once."""
    killed_in_mid_run(sqlite_place)

    stores = [sqlite_place.open() for _ in range(3)]
    found = [[each.text for each in store.entries("r", ["three"])] for store in stores]
    assert found[0][:15] == ["0", "1", "2"] * 5
    assert found[0] == found[1] == found[2]


def test_a_process_that_was_killed_while_it_made_the_file(sqlite_place, wholes):
    """A file that was half made when its process was killed is undone by SQLite, and is a new store."""
    sqlite_place.path.write_bytes(wholes["sqlite"][:4096])
    journal = bytes.fromhex("d9d505f920a163d7") + struct.pack(">IIIII", 0, 1, 0, 512, 4096)  # it was empty before
    Path(f"{sqlite_place.path}-journal").write_bytes(journal.ljust(512, b"\0"))

    store = sqlite_place.open()
    begin(store, "r", 1)
    assert facts_of(store, "r") == [1]


def test_a_file_that_may_only_be_read(place_for_all):
    """Who may not write a store can read it, and is told so when it writes; the file stays as it is."""
    place = place_for_all
    with place.open() as store:
        begin(store, "a", 1)
        end(store, "a")
        begin(store, "r", 2)
    before = snapshot(place.path)
    reader = place.elsewhere()
    reader.drop_rights()

    assert [(run.id, run.owner) for run in reader.runs()] == [("a", None), ("r", None)]
    assert reader.run("a").status is Status.SUCCESS
    assert [each.text for each in reader.entries("r")] == ["2"]
    for name, args in (("begun", ["new"]), ("claim", ["r"]), ("forget", ["a"])):
        with pytest.raises(CheckpointError, match=r"read-only|Permission denied") as caught:
            reader.ask(name, *args)
        assert str(caught.value).startswith(str(place.path))
    with pytest.raises(CheckpointError):
        reader.append("r", [entry(1)])
    reader.close()
    assert snapshot(place.path) == before


@pytest.fixture(params=FILES)
def place_for_all(request, public_path):
    """A file in a directory that everybody may read."""
    with placed(request.param, public_path) as place:
        yield place


def test_a_store_that_may_only_be_read_is_followed(place_for_all):
    """Who may only read sees what others write, also when it has looked before they began."""
    place = place_for_all
    with place.open() as store:
        begin(store, "a", 1)
    reader = place.elsewhere()
    reader.drop_rights()
    assert len(reader.runs()) == 1

    with place.open() as store:
        begin(store, "b", 2)
        assert [run.id for run in reader.runs()] == ["a", "b"]
        assert reader.run("b").owner
        end(store, "b")
    assert reader.run("b").status is Status.SUCCESS


def test_a_directory_that_nobody_may_write(place_for_all):
    """No run is begun where no file can be made, and the sentence tells where."""
    writer = place_for_all.elsewhere()
    writer.drop_rights()

    with pytest.raises(
        CheckpointError, match=f"^{re.escape(str(place_for_all.path))}.*(unable to open|Permission denied)"
    ):
        writer.begun("r")
    assert writer.runs() == []
    assert place_for_all.files == []


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_a_file_keeps_its_rights(json_place, mode):
    """A JSON file that others may not read is still so after the next write."""
    with json_place.open() as store:
        begin(store, "r")
    json_place.path.chmod(mode)

    with json_place.open() as store:
        store.claim("r")
        assert stat.S_IMODE(json_place.path.stat().st_mode) == mode


def test_a_full_disk(place):
    """When the disk is full, that is said; what was committed is read, and the run goes on when there is room."""
    process = place.elsewhere()
    process.begun("r")
    process.limit_files(100_000)

    many, error = process.fill("r")

    assert many > 5
    assert process.fill("r")[0] == 0
    assert type(error) is CheckpointError
    assert str(error).startswith(str(place.path))
    assert re.search("disk is full|File too large", str(error))
    assert len(process.entries("r", ["fill"])) == many
    assert len(process.entries("r")) == many + 1
    assert process.run("r").status is Status.RUNNING
    process.limit_files(None)
    process.append("r", [entry("more")])
    process.kill()

    store = place.open()
    assert [each.kind for each in store.entries("r")] == ["start", *["fill"] * many, "step"]
    assert store.claim("r")


@pytest.mark.parametrize("kind", FILES)
def test_a_full_disk_is_told_with_a_mend(kind, tmp_path):
    """The sentence of a full disk says that what was committed is safe, and what to do."""
    with placed(kind, tmp_path) as place:
        process = place.elsewhere()
        process.begun("r")
        process.limit_files(100_000)
        assert re.search("What was committed is safe: make room, and resume the run", str(process.fill("r")[1]))


def test_a_full_disk_before_the_first_run(place):
    """When there is no room for the file itself, that is said, and it can be begun when there is."""
    process = place.elsewhere()
    process.limit_files(100)
    with pytest.raises(CheckpointError, match=r"disk is full|File too large"):
        process.begun("r")
    process.limit_files(None)

    process.begun("r")
    assert len(process.entries("r")) == 1


def test_closing_on_a_full_disk(place):
    """A store that cannot write any more can still be closed; then the run is anybody's, and nothing is left behind."""
    process = place.elsewhere()
    process.begun("r")
    process.limit_files(50)

    process.close()
    process.close()

    assert not [name for name in place.files if re.search("-new|-lock|-owner", name)]
    store = place.open()
    assert store.run("r").owner is None
    assert store.claim("r")
    assert len(list(store.entries("r"))) == 1


def test_a_database_that_others_keep_locked(sqlite_place, monkeypatch):
    """Who cannot write for long is told so, and can go on afterwards; what is there can be read all the time."""
    monkeypatch.setattr(sqlite_store, "PATIENCE", 0.05)
    store = sqlite_place.open()
    begin(store, "r", 1)
    begin(store, "a")
    end(store, "a")

    with closing(sqlite3.connect(sqlite_place.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for call in (
            lambda: store.append("r", [entry(2)]),
            lambda: store.append("r", [entry(2), entry(3)]),
            lambda: end(store, "r"),
            lambda: begin(store, "new"),
            lambda: store.claim("a"),
            lambda: store.forget("a"),
            lambda: begin(sqlite_place.open(), "new"),
        ):
            with pytest.raises(
                CheckpointError, match=r"others have kept it locked for 0.05 s .+\. Resume the run when"
            ):
                call()
            assert facts_of(store, "r") == [1]
        assert facts_of(sqlite_place.open(), "r") == [1]
        other.execute("ROLLBACK")

    store.append("r", [entry(2)])
    assert facts_of(store, "r") == [1, 2]
    assert ids_of(store) == ["r", "a"]


def test_waiting_for_others_who_write(sqlite_place):
    """Who finds the database locked waits, and writes when it is not any more."""
    store = sqlite_place.open()
    begin(store, "r")
    other = sqlite3.connect(sqlite_place.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.1, other.execute, ["COMMIT"])
    timer.start()

    store.append("r", [entry(1)])

    assert timer.finished.is_set()
    timer.join()
    other.close()
    assert facts_of(store, "r") == [1]


def test_a_report_of_a_run_with_damage(sqlite_place):
    """A journal with parts of other kinds than were written is told as damage by a report, and by a resume."""
    flow, told, others = Flow(store=sqlite_place.open()), [], []
    flow.add_task("one", lambda: 1)
    with flow:
        flow.run("one", run_id="r")
        for text in ("[[],[null,{},5]]", "[5,[]]", "[[null],[null]]"):
            for kind in ("start", "finished", "end"):
                with closing(sqlite3.connect(sqlite_place.path)) as db:
                    (kept,) = db.execute("SELECT text FROM journal WHERE kind = ?", (kind,)).fetchone()
                    db.execute("UPDATE journal SET text = ? WHERE kind = ?", (text, kind))
                    db.commit()
                    with Flow(store=sqlite_place.path) as reader:
                        reader.add_task("one", lambda: 1)
                        for ask in (reader.report, reader.resume, partial(reader.resume, from_tasks=["one"])):
                            try:
                                ask("r")
                            except CheckpointError as error:
                                told.append(error)
                            except Exception as error:
                                others.append((kind, text, error))
                    db.execute("UPDATE journal SET text = ? WHERE kind = ?", (kept, kind))
                    db.commit()
    assert not others
    assert len(told) > 15, told


# ---- owners ------------------------------------------------------------------------------------------


def test_a_run_has_one_owner(place):
    """What one store has no other one gets, in this process or elsewhere; it is told who has it."""
    store = place.open()
    begin(store, "r", 1)
    begin(store, "a")
    end(store, "a")
    before = facts_of(store, "r")

    for other in (place.open(), place.elsewhere()):
        assert [run.id for run in other.runs()] == ["r", "a"]
        owner = other.run("r").owner
        assert owner == (store.run("r").owner if place.kind == "sqlite" else "another process")
        for name in ("claim", "forget"):
            with pytest.raises(RunOwnedError, match=f"belongs to {re.escape(owner)}: wait until that has ended"):
                getattr(other, name)("r")
        with pytest.raises(RunOwnedError):
            other.append("r", [entry(2)])
        with pytest.raises(RunOwnedError):
            other.finish("r", Status.FAILED, 3.0, [entry(2)])
        other.release("r")
        other.close()

    assert facts_of(store, "r") == before
    store.append("r", [entry(2)])
    assert store.run("r").owner
    if place.kind == "sqlite":
        assert store.run("r").owner.startswith(f"process {os.getpid()} on {socket.gethostname()} (")


def test_several_stores_have_runs_side_by_side(sqlite_place):
    """Stores on one database begin and end runs of their own, and see those of the others."""
    here, there, elsewhere = sqlite_place.open(), sqlite_place.open(), sqlite_place.elsewhere()

    begin(here, "a", 1)
    begin(there, "b", 2)
    elsewhere.begun("c")
    here.append("a", [entry(3)])
    elsewhere.ended("c")
    there.append("b", [entry(4)])

    assert [run.owner and run.owner.split(" on ")[0] for run in here.runs()] == [f"process {os.getpid()}"] * 2 + [None]
    assert here.runs() == there.runs() == elsewhere.runs()
    assert here.run("a").owner != here.run("b").owner
    assert (facts_of(there, "a"), facts_of(here, "b")) == ([1, 3], [2, 4])


def test_one_store_at_a_time_writes_a_json_file(json_place):
    """While a store has a run that has not ended, no other one writes its file; then any may."""
    here, there = json_place.open(), json_place.open()
    begin(here, "a")
    with pytest.raises(
        RunOwnedError, match=f"^What is in {re.escape(str(json_place.path))} belongs to another process"
    ):
        begin(there, "b")
    assert ids_of(there) == ["a"]
    end(here, "a")

    begin(there, "b")

    with pytest.raises(RunOwnedError):
        here.claim("a")
    end(there, "b")
    assert here.claim("a")
    assert ids_of(here) == ids_of(there) == ["a", "b"]


def test_the_run_of_a_process_that_was_killed(place):
    """While a process lives its run is refused; as soon as it is killed the run is claimed, with all it has written."""
    process = place.elsewhere()
    process.begun("r")
    process.append("r", [entry(2)])
    store = place.open()
    with pytest.raises(RunOwnedError):
        store.claim("r")
    assert store.run("r").owner

    process.kill()

    assert store.run("r").owner is None
    assert store.claim("r").owner
    store.append("r", [entry(3)])
    assert [each.text for each in store.entries("r")] == ["[]", "2", "3"]


def test_what_a_killed_process_leaves_is_removed(place):
    """The locks of processes that were killed are gone when somebody else has had a run, and so is the log."""
    for run_id in ("a", "b"):
        process = place.elsewhere()
        process.begun(run_id)
        process.kill()
    assert len(place.files) > 1

    with place.open() as store:
        store.claim("a")
        store.forget("b")
        end(store, "a")

    assert place.files == [place.path.name]


def test_what_is_left_beside_a_file_with_brackets_is_removed(tmp_path):
    """Locks of processes that were killed are found beside a file of any name."""
    with placed("sqlite", tmp_path) as place:
        place.path = tmp_path / "runs[1].db"
        process = place.elsewhere()
        process.begun("a")
        process.kill()
        with place.open() as store:
            store.claim("a")
        assert place.files == ["runs[1].db"]


def test_one_of_many_gets_a_run(place):
    """Of eight processes that claim a run at the same moment exactly one has it."""
    with place.open() as store:
        begin(store, "r")

    for _ in range(3):
        came = place.elsewhere().race(8, "claim", "r")
        assert sorted(well for well, _ in came) == [False] * 7 + [True]
        assert {type(error) for well, error in came if not well} == {RunOwnedError}


def test_many_begin_a_file_together(sqlite_place):
    """Eight processes that each begin a run in a file that is not there yet all succeed."""
    came = sqlite_place.elsewhere().race(8, "begun", "run-{}")

    assert [outcome for outcome in came if not outcome[0]] == []
    assert sorted(ids_of(sqlite_place.open())) == [f"run-{number}" for number in range(8)]


def test_many_begin_the_same_run(sqlite_place):
    """Of eight processes that begin a run of the same id exactly one does."""
    came = sqlite_place.elsewhere().race(8, "begun", "r")

    assert sorted(well for well, _ in came) == [False] * 7 + [True]
    assert {type(error) for well, error in came if not well} == {CheckpointError}


@contextmanager
def rows(place):
    with closing(sqlite3.connect(place.path)) as db, db:
        yield db


@pytest.mark.parametrize(("lease", "unseen", "alive"), [(30.0, 28.0, True), (30.0, 31.0, False), (0.3, 1.0, False)])
def test_an_owner_on_another_host_is_alive_until_its_lease_is_over(sqlite_place, lease, unseen, alive):
    """Whether a process on another host lives cannot be seen: it has its run for so long after it was heard of."""
    store, who = sqlite_place.open(lease=lease), "process 7 on elsewhere (0123456789ab)"
    begin(store, "r", 1)
    store.release("r")
    with rows(sqlite_place) as db:
        db.execute("UPDATE runs SET owner = ?, seen_at = ?", (who, time.time() - unseen))

    if alive:
        assert store.run("r").owner == store.runs()[0].owner == who
        for call in (store.claim, store.forget):
            with pytest.raises(RunOwnedError, match=re.escape(f"Run r belongs to {who}")):
                call("r")
    else:
        assert store.run("r").owner is None
        assert store.claim("r").owner != who


def test_a_process_on_another_host_is_waited_for(sqlite_place):
    """A killed process on another host keeps its run until the lease is over, and then it is claimed."""
    process = sqlite_place.elsewhere(lease=0.3)
    process.move_to("elsewhere")
    process.begun("r")
    process.kill()
    patient, hasty = sqlite_place.open(), sqlite_place.open(lease=0.2)

    with pytest.raises(RunOwnedError, match=f"belongs to process {process.pid} on elsewhere"):
        patient.claim("r")
    until(lambda: hasty.run("r").owner is None)
    assert hasty.claim("r")
    with pytest.raises(RunOwnedError):
        patient.claim("r")


def test_a_lease_is_renewed(sqlite_place):
    """As long as a store has a run it says so again and again, of all its runs and of no other."""
    store, other = sqlite_place.open(lease=0.06), sqlite_place.open()
    begin(other, "other")
    begin(store, "a")
    begin(store, "b")

    def seen():
        with rows(sqlite_place) as db:
            return dict(db.execute("SELECT id, seen_at FROM runs"))

    first = seen()
    until(lambda: seen()["a"] > first["a"] and seen()["b"] > first["b"])
    between = seen()
    until(lambda: seen()["a"] > between["a"])
    assert seen()["other"] == first["other"]


def test_a_run_that_was_taken_over(sqlite_place):
    """Who has lost a run is told at its next write, by whom, adds nothing to it, and leaves its owner alone."""
    taker = "process 7 on elsewhere (0123456789ab)"
    for write in (
        lambda store: store.append("r", [entry(2)]),
        lambda store: store.append("r", [entry(2), entry(3)]),
        lambda store: store.finish("r", Status.SUCCESS, 2.0, [entry(2)]),
    ):
        sqlite_place.path.unlink(missing_ok=True)
        store = sqlite_place.open()
        begin(store, "r", 1)
        with rows(sqlite_place) as db:
            db.execute("UPDATE runs SET owner = ?, seen_at = ?", (taker, time.time()))

        with pytest.raises(RunOwnedError, match=re.escape(f"Run r belongs to {taker}")):
            write(store)
        with pytest.raises(RunOwnedError):
            write(store)
        store.release("r")
        store.close()

        with sqlite_place.open() as reader:
            assert (reader.run("r").owner, reader.run("r").status) == (taker, Status.RUNNING)
            assert facts_of(reader, "r") == [1]


def test_a_run_that_was_taken_over_and_ends_with_nothing(sqlite_place):
    """Who has lost a run is told when it ends it without a last entry, too."""
    store = sqlite_place.open()
    begin(store, "r", 1)
    with rows(sqlite_place) as db:
        db.execute("UPDATE runs SET owner = 'process 7 on elsewhere (a)', seen_at = ?", (time.time(),))

    with pytest.raises(RunOwnedError):
        end(store, "r")


def test_a_run_that_was_removed_under_its_owner(sqlite_place):
    """Who has a run that is not there any more is told at its next write; others go on."""
    store = sqlite_place.open()
    begin(store, "r", 1)
    begin(store, "other", 1)
    with rows(sqlite_place) as db:
        db.execute("DELETE FROM runs WHERE id = 'r'")
        db.execute("DELETE FROM journal WHERE run = 1")

    with pytest.raises(RunOwnedError, match=r"^Run r belongs to nobody: it was removed"):
        store.append("r", [entry(2)])
    store.append("other", [entry(2)])
    assert ids_of(store) == ["other"]


@pytest.mark.parametrize("kind", FILES)
def test_a_run_that_is_reached_by_another_path(kind, tmp_path):
    """A store that is opened by a symbolic link has the same owners, and stays behind its link."""
    with placed(kind, tmp_path) as place:
        store = place.open()
        begin(store, "r", 1)
        place.path = tmp_path / "link"
        place.path.symlink_to(tmp_path / f"runs.{kind}")

        with pytest.raises(RunOwnedError):
            place.open().claim("r")
        store.append("r", [entry(2)])
        end(store, "r")
        with place.open() as other:
            other.claim("r")
        assert place.path.is_symlink()


def test_looking_does_not_keep_others_from_writing(json_place, monkeypatch):
    """A store that only reads is in nobody's way, at whatever moment it looks."""
    killed = json_place.elsewhere()
    killed.begun("killed")
    killed.kill()  # it leaves a lock that nobody has
    reader, writer = json_place.open(), json_place.open()
    looking, tried, real = threading.Event(), threading.Event(), owner.fcntl.flock

    def slow(file, how):
        real(file, how)
        if how & owner.fcntl.LOCK_SH:
            looking.set()
            tried.wait(0.3)

    monkeypatch.setattr(owner, "fcntl", types.SimpleNamespace(**{**vars(owner.fcntl), "flock": slow}))
    thread = threading.Thread(target=reader.runs)
    thread.start()
    assert looking.wait(WATCHDOG)
    try:
        begin(writer, "r")
    finally:
        tried.set()
        thread.join()


def test_a_fork_of_an_owner(place):
    """A fork of the process that has a run does not have it, and whatever it does is no harm to who has."""
    process = place.elsewhere()
    process.begun("r")
    process.append("r", [entry(1)])

    came = process.fork(
        [("append", ("r", [entry("child")])), ("claim", ("r",)), ("runs", ()), ("release", ("r",)), ("close", ())]
    )

    assert [type(value) for _, value in came] == [RunOwnedError, RunOwnedError, list, type(None), type(None)]
    process.append("r", [entry(2)])
    with pytest.raises(RunOwnedError):
        place.open().claim("r")
    assert [each.text for each in process.entries("r")] == ["[]", "1", "2"]
    process.ended("r")


def test_a_fork_that_only_closes(place):
    """A fork that closes the store at once leaves the connection, the lock and the runs of its parent alone."""
    process = place.elsewhere()
    process.begun("a")
    process.ended("a")
    assert process.fork([("close", ())]) == [(True, None)]
    process.begun("r")
    assert process.fork([("close", ()), ("close", ())]) == [(True, None)] * 2

    process.append("r", [entry(1)])

    with place.open() as store, pytest.raises(RunOwnedError):
        store.claim("r")
    process.ended("r")
    process.close()
    assert place.files == [place.path.name]


def test_a_fork_has_runs_of_its_own(sqlite_place):
    """A fork can use the store that it has inherited, side by side with its parent, and the file stays whole."""
    process = sqlite_place.elsewhere()
    process.begun("r")

    came = process.fork(
        [("begun", ("child",)), ("append", ("child", [entry(n) for n in range(50)])), ("ended", ("child",))]
    )

    assert came == [(True, None)] * 3
    process.append("r", [entry(1)])
    assert [run.id for run in process.runs()] == ["r", "child"]
    process.close()
    with rows(sqlite_place) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_fork_while_another_thread_writes(sqlite_place):
    """A fork made at the moment when another thread is in the store can use it, or is refused, but does not hang."""
    process = sqlite_place.elsewhere()
    process.be_patient(1.0)
    process.begun("r")
    with rows(sqlite_place) as db:
        db.execute("BEGIN IMMEDIATE")
        came = process.fork_while_writing("r", [("runs", ())])

    assert came != "hung"


def test_a_killed_process_that_has_left_a_fork(place):
    """The run of a process that was killed is claimed at once, also while a fork of it still lives."""
    process = place.elsewhere()
    process.begun("r")
    left = process.leave_a_child()
    process.kill()
    try:
        assert place.open().claim("r")
    finally:
        os.kill(left, 9)


# ---- levels, leases, what is left --------------------------------------------------------------------


@pytest.fixture
def connections(monkeypatch):
    """What was opened by sqlite3.connect, and with what."""
    made, connect = [], sqlite3.connect

    def noting(*args, **options):
        made.append((connect(*args, **options), args))
        return made[-1][0]

    monkeypatch.setattr(sqlite3, "connect", noting)
    yield made
    for connection, _ in made:
        connection.close()


@pytest.mark.parametrize(("sync", "level"), [("group", 1), ("each", 1), ("full", 2)])
def test_how_safe_a_commit_is(sqlite_place, sync, level, connections):
    """The database is in WAL mode; a commit waits for the disk with sync="full" alone."""
    for run_id in ("who makes it", "who finds it"):
        store = sqlite_place.open(sync=sync)
        begin(store, run_id)
        assert store.sync == sync
        assert connections[-1][0].execute("PRAGMA synchronous").fetchone() == (level,)
        assert connections[-1][0].execute("PRAGMA journal_mode").fetchone() == ("wal",)


def is_open(connection):
    try:
        return connection.total_changes >= 0
    except sqlite3.ProgrammingError:
        return False


@pytest.mark.parametrize("there", [False, True])
def test_every_connection_is_closed(sqlite_place, there, connections):
    """After close no connection is open: a Python of 3.13 and later warns of those that are."""
    with sqlite_place.open() as store:
        if there:
            begin(store, "r")
        for _ in range(3):
            store.runs()

    assert connections
    assert not [connection for connection, _ in connections if is_open(connection)]


def test_connections_are_asked_for_as_python_wants_it(sqlite_place, connections):
    """sqlite3.connect gets the file by position, and everything else by name."""
    begin(sqlite_place.open(), "r")

    assert {len(args) for _, args in connections} == {1}


def synced(place, sync, monkeypatch):
    """Return what a JSON store asks the disk to keep when it writes, and the moment when it replaces its file."""
    log, fsync, replace = [], os.fsync, os.replace
    store = place.open(sync=sync)
    begin(store, "r")

    def note_fsync(file):
        log.append("directory" if stat.S_ISDIR(os.fstat(file).st_mode) else "file")
        fsync(file)

    def note_replace(*args):
        log.append("replace")
        replace(*args)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    store.append("r", [entry(1)])
    return log


@pytest.mark.parametrize(
    ("sync", "log"), [("group", ["replace"]), ("each", ["replace"]), ("full", ["file", "replace"])]
)
def test_how_safe_a_json_file_is(json_place, sync, log, monkeypatch):
    """With sync="full" the disk has the new file before that takes the place of the old one."""
    assert synced(json_place, sync, monkeypatch)[:2] == log


def test_a_replaced_file_survives_a_loss_of_power(json_place, monkeypatch):
    """With sync="full" the disk has the new name of the file, too, before the write returns."""
    assert synced(json_place, "full", monkeypatch) == ["file", "replace", "directory"]


def test_runs_that_ended_long_ago_are_forgotten(sqlite_place):
    """With retention, what ended before that is removed when a run begins; what has not ended, or just now, stays."""
    now = time.time()
    with sqlite_place.open() as keeper:
        for run_id, finished_at in (
            ("old", now - 100),
            ("older", now - 1000),
            ("young", now - 10),
            ("again", now - 100),
        ):
            begin(keeper, run_id, run_id)
            end(keeper, run_id, finished_at)
        begin(keeper, "open")
        keeper.claim("again")
        begin(keeper, "one")
        assert len(ids_of(keeper)) == 6  # without retention nothing goes

        store = sqlite_place.open(retention=50.0)
        assert len(ids_of(store)) == 6
        begin(store, "two")

        assert ids_of(store) == ["young", "again", "open", "one", "two"]
        with pytest.raises(UnknownRunError):
            list(store.entries("old"))
    with rows(sqlite_place) as db:
        assert db.execute("SELECT count(*) FROM journal WHERE run NOT IN (SELECT number FROM runs)").fetchone() == (0,)


def test_the_thread_that_renews_leases_ends_with_the_last_run(sqlite_place):
    """There is one such thread for each store that has runs, and none when it has not."""

    def many():
        return len(engine_threads("millstream-lease"))

    store, other = sqlite_place.open(lease=1000.0), sqlite_place.open(lease=1000.0)  # it would sleep for minutes
    assert store.runs() == []
    assert many() == 0
    for run_id in ("a", "b", "c"):
        begin(store, run_id)
    assert many() == 1
    begin(other, "d")
    assert many() == 2
    end(store, "a")
    store.release("b")
    assert many() == 2
    end(store, "c")
    until(lambda: many() == 1)
    store.claim("b")
    assert many() == 2
    store.close()
    assert many() == 1
    other.close()
    assert many() == 0


def test_nothing_is_left_but_the_store(place):
    """After close there is one file; while runs are under way there are others, which nobody has to know."""
    stores = [place.open(), place.open()]
    begin(stores[0], "a", 1)
    stores[0].release("a")
    begin(stores[1], "b", 1)
    assert len(place.files) > 1
    assert stores[0].runs()
    for store in stores:
        store.close()

    assert place.files == [place.path.name]
    assert ids_of(place.open()) == ["a", "b"]


def test_a_store_that_nobody_has_any_more(place):
    """A store that was not closed leaves no file open and no lock when it is gone."""
    store = place.open()
    begin(store, "r")
    store.release("r")
    place._opened.clear()
    until(lambda: not engine_threads("millstream-lease"))
    del store
    gc.collect()

    assert place.files == [place.path.name]


def test_a_process_that_just_ends(place):
    """The run of a process that ends without closing its store is claimed at once."""
    process = place.elsewhere()
    process.begun("r")
    process._process.communicate(timeout=WATCHDOG)
    assert process._process.returncode == 0

    assert place.open().claim("r")


def test_a_store_can_be_made_again_in_the_same_place(place):
    """When its file was removed between two stores, the next one begins anew."""
    for _ in range(2):
        with place.open() as store:
            begin(store, "r", 1)
            assert facts_of(store, "r") == [1]
        place.path.unlink()
