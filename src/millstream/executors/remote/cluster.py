"""What Ray and Dask have in common on our side: a batch of calls is one job of the cluster.

A thread of ours fetches what jobs send to their mailbox (see ``mail``), and gives it to the wires that the jobs
belong to. Outcomes of calls come with the end of the job, or through the mailbox when that takes longer than a
moment. May import: mail, calls, places, wire, errors.
"""

from __future__ import annotations

import pickle
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from itertools import count
from queue import SimpleQueue
from typing import Any

from millstream.executors.places import JOIN
from millstream.executors.remote.calls import Lost
from millstream.executors.remote.mail import NOTES, WELL, Mail
from millstream.executors.remote.places import Channel, Line, Link, RemotePlaces, RemoteWorker
from millstream.executors.remote.wire import Back, Closed, Dumps, To, said

#: How long the calls of a job are expected to take together, in seconds; long against the cost of a job.
JOB_TIME = 0.02

#: A frame that answers one which asks for nothing.
SEEN = pickle.dumps((To.ANSWER, None), 5)

_numbers = count(1)


class Cluster(ABC):
    """The connection to a cluster; one for all places of an executor."""

    #: Whether ``cancel`` ends a job that is under way.
    kills = True
    #: What pickles values, here and over there.
    dumps: Any

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        # Guarded by _lock: everything below.
        self._jobs: dict[int, SimpleQueue[Any]] = {}  # inboxes by the numbers of jobs
        self._lent: dict[int, list[int]] = {}  # numbers of threads that run in the processes of jobs
        self._watched: dict[int, Callable[[], object]] = {}  # who wants to know that a job has ended
        self._fetcher: threading.Thread | None = None
        self.closed = False

    # What each kind of cluster has of its own.

    @abstractmethod
    def slots(self, resources: dict[str, Any]) -> int:
        """Return how many jobs can run at once that need so much each.

        Raises:
            ValueError: not one.
        """

    @abstractmethod
    def submit(self, frame: bytes, number: int, resources: dict[str, Any]) -> Any:
        """Submit a job; its outcome goes to ``ended``."""

    @abstractmethod
    def cancel(self, job: Any) -> None:
        """End a job, whatever it does."""

    @abstractmethod
    def mailbox(self, method: str, *args: Any, wait: bool) -> Any:
        """Call a method of the mailbox, and wait for what it returns if that is asked for."""

    @abstractmethod
    def disconnect(self) -> None:
        """Give back what it has of the cluster."""

    # What they have in common.

    def start(self, frame: bytes, number: int, inbox: SimpleQueue[Any], resources: dict[str, Any]) -> Any:
        """Submit a job whose messages go to ``inbox``.

        Raises:
            Closed: the cluster is not there any more.
        """
        with self._lock:
            if self.closed:
                raise Closed(f"{self.name} is closed")
            self._jobs[number] = inbox
            if self._fetcher is None:
                self._fetcher = threading.Thread(target=self._fetch, name=f"{self.name}-mail", daemon=True)
                self._fetcher.start()
        try:
            return self.submit(frame, number, resources)
        except Exception as error:
            with self._lock:
                self._jobs.pop(number, None)
            raise Lost(f"the cluster refuses its jobs: {said(error)}", final=True, cause=error) from error

    def lend(self, number: int, inbox: SimpleQueue[Any]) -> int:
        """The process of a job does further calls; return the number that these go by."""
        further = next(_numbers)
        with self._lock:
            self._jobs[further] = inbox
            self._lent.setdefault(number, []).append(further)
        return further

    def ended(self, number: int, frame: bytes | None, how: str) -> None:
        """A job has ended: ``WELL``, with what it did not send before, or with a problem. From any thread."""
        with self._lock:
            inbox = self._jobs.pop(number, None)
            when_ended = self._watched.pop(number, None)
            lent = self._lent.pop(number, ())
        if inbox is not None:
            inbox.put((frame, how))
            self.forget(number)
        if when_ended is not None:
            when_ended()
        for further in lent:
            self.ended(further, None, how or "its job has ended")

    def forget(self, number: int) -> None:
        """Nobody asks for this number any more."""
        with self._lock:
            self._jobs.pop(number, None)
        if not self.closed:
            try:
                self.mailbox("forget", number, wait=False)
            except Exception:  # the cluster is gone: who fetches the mail finds out
                pass

    def _fetch(self) -> None:
        """The life of the thread that fetches the mail."""
        while not self.closed:
            try:
                mail: list[Mail] = self.mailbox("take", wait=True)
            except Exception as error:
                self._lose(f"its mailbox in the cluster is gone ({type(error).__name__}: {error})")
                return
            for number, frame, how in mail:
                if how is not None:
                    self.ended(number, frame, how)
                    continue
                with self._lock:
                    inbox = self._jobs.get(number)
                if inbox is not None:
                    inbox.put((frame, None))
                else:  # it was given up, and would wait for an answer
                    self.forget(number)

    def watch(self, number: int, when_ended: Callable[[], object]) -> None:
        """Call this when a job has ended."""
        with self._lock:
            if number in self._jobs:
                self._watched[number] = when_ended
                return
        when_ended()

    def unwatch(self, number: int) -> None:
        """Nobody wants to know any more."""
        with self._lock:
            self._watched.pop(number, None)

    def _lose(self, problem: str) -> None:
        with self._lock:
            self._fetcher = None
        for number in list(self._jobs):
            self.ended(number, None, problem)

    def close(self) -> None:
        """Disconnect; what still runs is lost."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            fetcher = self._fetcher
        if fetcher is not None:
            try:
                self.mailbox("wake", wait=False)
            except Exception:  # the cluster is gone: the thread finds out as well
                pass
            fetcher.join(JOIN)
        self._lose(f"{self.name} was closed")
        self.disconnect()


class JobWire:
    """The wire to jobs of the cluster, one after another: calls become a job, answers go to the mailbox."""

    def __init__(self, cluster: Cluster, resources: dict[str, Any]) -> None:
        self._cluster, self._resources = cluster, resources
        self._inbox: SimpleQueue[tuple[bytes | None, str | None]] = SimpleQueue()
        self._read: deque[Any] = deque()
        self._number = 0
        self.job: Any = None  #: the newest
        self._owes = False  # the job waits for an answer that takes its time
        self.problem = ""  #: how the last job has ended, if not well

    def send(self, message: tuple[Any, ...]) -> None:
        if message[0] == To.CALLS:
            self._give(message)
        elif message[0] == To.STOP:
            self._tell("stop", self._number)
        else:
            self._answer(message)

    def _give(self, calls: tuple[Any, ...]) -> None:
        self._number, self._owes, self._inbox = next(_numbers), False, SimpleQueue()
        self.job = self._cluster.start(pickle.dumps(calls, 5), self._number, self._inbox, self._resources)

    def _answer(self, message: tuple[Any, ...]) -> None:
        self._owes = message[0] in NOTES
        self._tell("answer", self._number, pickle.dumps(message, 5))

    def _tell(self, method: str, *args: Any) -> None:
        try:
            self._cluster.mailbox(method, *args, wait=False)
        except Exception as error:
            raise Closed(str(error)) from error

    def receive(self) -> Any:
        while not self._read:
            self._fetch()
        return self._read.popleft()

    def _fetch(self) -> None:
        """Wait for the next frame, and answer it if it asks for nothing: only one is so seen to at a time."""
        frame, how = self._inbox.get()
        if frame is None:
            self.problem = how or "its job has ended"
            raise Closed(self.problem)
        messages = pickle.loads(frame)
        self._read.extend(messages)
        if how == WELL:
            return
        # A job that was given a note, instead of the answer that it waits for, still asks.
        self._owes = self._owes or not messages or messages[-1][0] == Back.ASKED
        if not self._owes:
            self._tell("answer", self._number, SEEN)

    @property
    def buffered(self) -> bool:
        return bool(self._read)

    def lend(self) -> LentWire:
        """Return a wire to a further thread of the process that the job is in."""
        wire = LentWire(self._cluster, self.job, self.root)
        self._answer((To.LEND, wire._number))
        self._fetch()  # the note has arrived
        return wire

    def will_wait(self) -> None:
        """The job is going to wait, and need not be lent."""
        self._answer((To.LEND, None))
        self._fetch()

    def kill(self) -> None:
        if self.job is not None:
            # In a thread of its own: it may take the cluster a while, and whoever asks for it holds a lock.
            name = f"{self._cluster.name}-cancel"
            cancel = threading.Thread(target=self._cluster.cancel, args=(self.job,), name=name, daemon=True)
            try:
                cancel.start()
            except RuntimeError:  # the interpreter is shutting down, and starts no threads any more
                cancel.run()

    def watch(self, when_ended: Callable[[], object]) -> None:
        self._cluster.watch(self._number, when_ended)

    def unwatch(self) -> None:
        self._cluster.unwatch(self._number)

    @property
    def root(self) -> int:
        """The number of the job itself."""
        return self._number

    def close(self) -> None:
        self.job = None


class LentWire(JobWire):
    """The wire to a thread in the process of a job whose own thread waits. Calls are answers to its questions."""

    def __init__(self, cluster: Cluster, job: Any, root: int) -> None:
        super().__init__(cluster, {})
        self.job, self._root = job, root
        self._number = cluster.lend(root, self._inbox)

    @property
    def root(self) -> int:
        return self._root

    def _give(self, calls: tuple[Any, ...]) -> None:
        while not self._owes:  # it has not asked for the first ones yet
            self._fetch()
        self._answer(calls)

    def close(self) -> None:
        try:
            while not (self._owes or self.problem):
                self._fetch()
        except Closed:
            pass
        self._cluster.forget(self._number)  # which lets it leave
        super().close()


class ClusterLink(Link):
    """A thread of ours that may have one job at a time."""

    tells_at_once = False

    def __init__(self, wire: JobWire, kills: bool) -> None:
        super().__init__(wire)
        self.kills = kills

    def kill(self, channel: Channel | None = None) -> None:
        _wire(channel or self.first).kill()

    def reason(self, channel: Channel) -> str:
        return self.ended or _wire(channel).problem

    def watch(self, channel: Channel, when_ended: Callable[[], object]) -> None:
        _wire(channel).watch(when_ended)

    def unwatch(self, channel: Channel) -> None:
        _wire(channel).unwatch()

    def further(self, channel: Channel) -> Line:
        return _wire(channel).lend()

    def will_wait(self, channel: Channel) -> None:
        _wire(channel).will_wait()


def _wire(channel: Channel) -> JobWire:
    assert isinstance(channel.wire, JobWire), "a cluster has no other wires"
    return channel.wire


class ClusterWorker(RemoteWorker):
    """A thread of ours that has task runs called by jobs of a cluster."""

    batch_time = JOB_TIME
    stands_in_line = True


class ClusterPlaces(RemotePlaces):
    """Places whose task runs are called by jobs that need the same resources."""

    lends_first = True  # a job that waits has a process already; a new one may stand in line for it

    def __init__(self, cluster: Cluster, resources: dict[str, Any], max_workers: int | None) -> None:
        # As many again stand in line in the cluster, so that none of its workers waits for us.
        super().__init__(max_workers or 2 * cluster.slots(resources), cluster.name)
        self.cluster = cluster
        self.resources = resources
        self.dumps = cluster.dumps
        self.kills = cluster.kills

    def new_worker(self) -> RemoteWorker:
        return ClusterWorker(self)

    def start_link(self) -> Link:
        if self.cluster.closed:
            raise Lost(f"{self.name} is closed", final=True)
        return ClusterLink(JobWire(self.cluster, self.resources), self.kills)

    def can_import(self, fn: Any) -> bool:
        # What the main module of a program has is no use to a worker, which has another one.
        return bool(fn.__module__ != "__main__")

    def dumps_for(self, fn: Any) -> Dumps | None:
        dumps: Dumps = self.dumps
        return dumps
