"""Runs that are killed again and again, at moments spread evenly over them, and go on until they end.

``tests/crash_flow.py`` is run in a process of its own, which is killed by SIGKILL when its log has reached some
length. ``MILLSTREAM_KILLS`` says how many kills each level gets; the suite makes a dozen.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import crash_flow
from tests.conftest import WATCHDOG

KILLS = int(os.environ.get("MILLSTREAM_KILLS", "12"))

#: How many kills a run sees before it is left to end, so that runs of several kills are among them.
MOST = 4


class Victim:
    """A run of the flow in a folder, over all its processes."""

    def __init__(self, folder: Path, sync: str) -> None:
        folder.mkdir()
        self.store, self.log, self.sync = folder / "runs.db", folder / "log", sync
        self.log.touch()
        self.lines_seen = 0

    def start(self) -> subprocess.Popen[str]:
        """Start the run, or go on with it."""
        command = [sys.executable, "-W", "error", crash_flow.__file__, str(self.store), str(self.log), self.sync]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self) -> str:
        """Let it end; return what it printed."""
        with self.start() as process:
            said, complaint = process.communicate(timeout=6 * WATCHDOG)
        assert (process.returncode, complaint) == (0, "")
        return said

    def kill_at(self, length: int) -> bool:
        """Kill it when its log has so many lines; False when it has ended before."""
        lines = 0
        with self.start() as process, self.log.open() as log:
            while lines < length and process.poll() is None:
                more = log.read()
                lines += more.count("\n")
                if not more:
                    time.sleep(0.0002)
            process.kill()
            said, complaint = process.communicate(timeout=WATCHDOG)
        if process.returncode == 0:
            return False
        assert process.returncode == -signal.SIGKILL, said + complaint
        return True

    def news(self) -> list[list[str]]:
        """Return what has been logged since this was asked last, as words."""
        lines = self.log.read_text().splitlines()
        new, self.lines_seen = lines[self.lines_seen :], len(lines)
        return [line.split(" ", 2) for line in new]

    def finished(self) -> list[str]:
        """Return the ends of the keys of what has finished, as committed."""
        if not self.store.exists():
            return []
        with closing(sqlite3.connect(self.store)) as db:
            try:
                rows = db.execute("SELECT key FROM journal WHERE kind = 'finished'").fetchall()
            except sqlite3.OperationalError:  # it was killed before there was a schema
                return []
        return [f"{key & 0xFFFFFFFFFFFFFFFF:016x}" for (key,) in rows]


class Undisturbed(NamedTuple):
    """What a run gives that nobody disturbs."""

    results: dict[str, Any]
    length: int  #: of its log
    begun: int  #: attempts
    finished: set[str]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A run that nobody kills."""
    victim = Victim(tmp_path_factory.mktemp("undisturbed") / "run", "each")
    said, lines = victim.run(), victim.news()
    begun = sum(line[0] == "begun" for line in lines)
    return Undisturbed(json.loads(said), len(lines), begun, set(victim.finished()))


def normal(results: dict[str, Any]) -> Counter[tuple[str, str]]:
    """Return results without the numbers of task runs, which depend on who was quicker."""
    return Counter((name.partition("#")[0], json.dumps(value)) for name, value in results.items())


def moments(length: int, seed: str) -> Iterator[float]:
    """Return lengths of the log at which to kill: one at random in each of as many equal parts, in any order."""
    random_ = random.Random(seed)
    places = [(part + random_.random()) / KILLS for part in range(KILLS)]
    random_.shuffle(places)
    return (place * length for place in places)


@pytest.mark.parametrize("sync", ["each", "group", "full"])
def test_a_run_survives_kills(sync, undisturbed, tmp_path):
    """The results are those of an undisturbed run; what was committed is never called again, no chunk comes twice."""
    want, length, _, everything = undisturbed
    kills = runs = 0
    places = moments(length, sync)
    again = 0
    while kills < KILLS:
        runs += 1
        victim = Victim(tmp_path / str(runs), sync)
        done: list[str] = []
        # Each of the kills of one run is further on than the one before.
        at = sorted(islice(places, MOST)) or [runs * 37 % length]
        begun: Counter[str] = Counter()
        chunks: Counter[tuple[str, str]] = Counter()
        for place in [*at, None]:
            if place is None:
                said = victim.run()
            elif victim.kill_at(round(place)):
                kills += 1
            for what, name, rest in victim.news():
                if what == "begun":
                    path = rest.partition(" ")[0]
                    assert path not in done, f"{name} was called again"
                    begun[path] += 1
                else:
                    chunks[name.partition("#")[0], rest] += 1
            before, done = done, victim.finished()
            assert set(before) <= set(done), "something that had finished is gone"
            assert len(done) == len(set(done)), "something has finished twice"
        assert normal(json.loads(said)) == normal(want)
        assert set(done) == everything
        if sync != "group":
            assert not [chunk for chunk, count in chunks.items() if count > 1], "a chunk came twice"
        again += begun.total() - undisturbed.begun
    print(f"sync={sync!r}: {kills} kills of {runs} runs with {len(everything)} task runs; {again} bodies began again")
