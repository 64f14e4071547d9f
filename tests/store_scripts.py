"""A process with a store that does what it is told: what ``test_stores`` kills, limits and forks.

``python store_scripts.py KIND PATH OPTIONS`` reads pairs ``(name, arguments)`` from its standard input, pickled, and
answers each with ``(True, what the store gave)`` or ``(False, the error)``. A name is a method of the store, or a
function from here.
"""

import codecs
import json
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import time
from itertools import count

from millstream.stores import Entry, JSONFileStore, SQLiteStore, sqlite
from millstream.values import Status

KINDS = {"sqlite": SQLiteStore, "json": JSONFileStore}


def main():
    kind, path, options = sys.argv[1:]
    store = KINDS[kind](path, **json.loads(options))
    while True:
        try:
            name, args = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer(outcome(store, name, args))


def outcome(store, name, args):
    try:
        value = TRICKS[name](store, *args) if name in TRICKS else getattr(store, name)(*args)
        return True, list(value) if name == "entries" else value
    except Exception as error:
        return False, error


def answer(what):
    pickle.dump(what, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def drop_rights(_):
    """Be nobody, whom permissions hold for, and who may not be able to read modules any more."""
    codecs.lookup("ascii")
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def limit_files(_, size):
    """Make the disk look full for files that are longer; None: no limit."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def move_to(_, host):
    """Be on another host."""
    socket.gethostname = lambda: host


def be_patient(_, seconds):
    """Do not wait for longer, when others write."""
    sqlite.PATIENCE = seconds


def fill(store, run_id):
    """Append until it fails; return how often it did not, and why it failed."""
    for n in count():
        try:
            store.append(run_id, [Entry("fill", n, "x" * 1000)])
        except Exception as error:
            return n, error
    return None


def append_threes(store, run_id):
    """Append three entries at once, again and again, and say so each time; whoever wants an end kills this."""
    for n in count():
        store.append(run_id, [Entry("three", n, str(part)) for part in range(3)])
        answer((True, n))


def fork(store, calls):
    """Make these calls in a fork of this process; return what came of them, or "hung"."""
    store._lock.acquire()  # so that nobody else has it at that moment, not even a thread of the store's
    return forked(store, calls, store._lock.release)


def forked(store, calls, in_both=lambda: None):
    reads, writes = os.pipe()
    pid = os.fork()
    in_both()
    if not pid:
        os.close(reads)
        signal.alarm(1)
        with open(writes, "wb") as answers:
            pickle.dump([outcome(store, name, args) for name, args in calls], answers)
        os._exit(0)
    os.close(writes)
    said = all_of(reads)
    os.waitpid(pid, 0)
    return pickle.loads(said) if said else "hung"


def all_of(end):
    with open(end, "rb") as file:
        return file.read()


def fork_while_writing(store, run_id, calls):
    """Do so while a thread of this process waits until it may write; who calls this sees to it that it has to."""
    entries = [Entry("late", None, "1"), Entry("late", None, "2")]
    thread = threading.Thread(target=outcome, args=(store, "append", (run_id, entries)), daemon=True)
    thread.start()
    held_since = time.monotonic()
    while time.monotonic() - held_since < 0.05:
        if store._lock.acquire(blocking=False):
            store._lock.release()
            held_since = time.monotonic()
        time.sleep(0.001)
    return forked(store, calls)


def leave_a_child(store):
    """Leave a fork of this process behind that does nothing with the store; return its process id."""
    with store._lock:
        pid = os.fork()
    if not pid:
        os.close(0)
        os.close(1)
        time.sleep(60)
        os._exit(0)
    return pid


def race(store, count, name, *args):
    """Make the same call at once in so many processes, each with a store of its own; return what came of each.

    In the arguments, {} is the number of the process. They live until all have made their call.
    """
    start, go = os.pipe()
    stay, leave = os.pipe()
    ends, pids = [], []
    for number in range(count):
        reads, writes = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(go)
            os.close(leave)
            mine = type(store)(store.path)
            os.read(start, 1)  # until nobody can write any more
            with open(writes, "wb") as answers:
                pickle.dump(outcome(mine, name, [arg.format(number) for arg in args]), answers)
            os.read(stay, 1)
            os._exit(0)
        os.close(writes)
        ends.append(reads)
        pids.append(pid)
    os.close(go)
    came = [pickle.loads(all_of(end)) for end in ends]
    os.close(leave)
    for pid in pids:
        os.waitpid(pid, 0)
    for end in (start, stay):
        os.close(end)
    return came


def begun(store, run_id):
    """Begin a run of one entry."""
    store.create(run_id, "flow", 1.0, "{}", [Entry("start", None, "[]")])


def ended(store, run_id):
    """End a run, well."""
    store.finish(run_id, Status.SUCCESS, 2.0, [])


TRICKS = {
    each.__name__: each
    for each in (
        drop_rights,
        limit_files,
        be_patient,
        move_to,
        fill,
        append_threes,
        fork,
        fork_while_writing,
        leave_a_child,
        race,
        begun,
        ended,
    )
}


if __name__ == "__main__":
    main()
