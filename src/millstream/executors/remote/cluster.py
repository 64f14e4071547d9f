"""What Ray and Dask have in common: a batch of calls is one job of the cluster, and a mailbox is the way back.

A job runs in some process, on some machine, that this one cannot reach. So whatever a task asks for goes to the
*mailbox*, an actor in the cluster, from where a thread of ours fetches it; the answer goes the same way. Outcomes
of calls come with the end of the job, or through the mailbox when that takes longer than a moment. Every message
to the mailbox is answered, so a job never ends before what it sent has been seen to.
May import: calls, places, wire, worker, errors.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from itertools import count
from queue import SimpleQueue
from typing import Any

from millstream.errors import TransferError
from millstream.executors.places import JOIN
from millstream.executors.remote.calls import Call, Lost
from millstream.executors.remote.places import NAMED, Link, RemotePlaces, RemoteWorker
from millstream.executors.remote.wire import Back, Closed, To, by_name, culprit, encode
from millstream.executors.remote.worker import Batch, Home

#: How long the calls of a job are expected to take together, in seconds; long against the cost of a job.
JOB_TIME = 0.02
#: How often a task that asks whether it was told to stop has that looked up, in seconds.
LOOK = 0.2

#: A message that asks for nothing is answered by this.
SEEN = (To.ANSWER, None)

_numbers = count(1)


# ---- in the cluster -----------------------------------------------------------------------------


class Mailbox:
    """The actor between jobs and the process that they belong to. Frames are pickled messages."""

    def __init__(self) -> None:
        self._mail: list[tuple[int, bytes]] = []  # what jobs have sent: the number of the job, and messages
        self._arrived = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}  # jobs that wait for an answer
        self._told: set[int] = set()  # jobs that are to stop

    async def ask(self, job: int, frame: bytes) -> bytes:
        """Deliver a frame of a job, and return the answer. Called by the job."""
        future = self._waiting[job] = asyncio.get_running_loop().create_future()
        self._mail.append((job, frame))
        self._arrived.set()
        answer: bytes = await future
        return answer

    async def told(self, job: int) -> bool:
        """Whether a job is to stop."""
        return job in self._told

    async def take(self) -> list[tuple[int, bytes]]:
        """Wait for mail, and return it. Called by the parent, as the methods below."""
        await self._arrived.wait()
        mail, self._mail = self._mail, []
        self._arrived.clear()
        return mail

    async def answer(self, job: int, frame: bytes) -> None:
        """Answer the frame that a job has sent."""
        future = self._waiting.pop(job, None)
        if future is not None and not future.done():
            future.set_result(frame)

    async def stop(self, job: int) -> None:
        """Tell a job to stop."""
        self._told.add(job)

    async def forget(self, job: int) -> None:
        """A job has ended."""
        self._told.discard(job)
        self._waiting.pop(job, None)

    async def wake(self) -> None:
        """Let ``take`` return."""
        self._arrived.set()


class MailHome(Home):
    """The way home from a job.

    Args:
        ask: delivers a frame and returns the answer.
        told: whether the job is to stop.
        lent: called before and after a long wait, with True and False.
    """

    def __init__(
        self, ask: Callable[[bytes], bytes], told: Callable[[], bool], lent: Callable[[bool], None] = lambda _: None
    ) -> None:
        self._deliver, self._told, self._lent = ask, told, lent
        self._mailing = threading.Lock()  # one exchange at a time
        self._outcomes: deque[tuple[Any, ...]] = deque()  # not sent yet; appended by anybody, without the lock
        self._looked = time.monotonic()

    def tell(self, message: tuple[Any, ...]) -> None:
        self._outcomes.append(message)
        if message[0] == Back.SENT:
            with self._mailing:
                self._exchange()

    def ask(self, message: tuple[Any, ...], batch: Batch) -> tuple[Any, ...]:
        with self._mailing:
            self._outcomes.append(message)
            lent = False
            try:
                while True:
                    answer = self._exchange()
                    if answer[0] in (To.ANSWER, To.REFUSAL):
                        return answer
                    if answer[0] == To.RETURN:
                        batch.give_back(say=True)
                    elif answer[0] == To.LEND:
                        lent = True
                        self._lent(True)
            finally:
                if lent:
                    self._lent(False)

    def look(self, batch: Batch) -> None:
        if time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            if self._told():
                batch.stop()

    def flush(self) -> None:
        if self._mailing.acquire(False):  # else whoever has it sends everything
            try:
                if self._outcomes:
                    self._exchange()
            finally:
                self._mailing.release()

    def rest(self) -> bytes:
        """Return what was not sent."""
        with self._mailing:
            return self._frame()

    def _exchange(self) -> tuple[Any, ...]:
        """Send everything, and return the answer."""
        answer: tuple[Any, ...] = pickle.loads(self._deliver(self._frame()))
        return answer

    def _frame(self) -> bytes:
        return pickle.dumps([self._outcomes.popleft() for _ in range(len(self._outcomes))], 5)


def do_job(frame: bytes, home: MailHome) -> bytes:
    """Do the calls of a job; return what of their outcomes was not sent."""
    _, number, calls = pickle.loads(frame)
    Batch(number, calls, home).work()
    return home.rest()


# ---- on our side --------------------------------------------------------------------------------


class Cluster(ABC):
    """The connection to a cluster; one for all places of an executor."""

    #: Whether a job that waits must say so, for others to have its place.
    lends = False

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        # Guarded by _lock: everything below.
        self._jobs: dict[int, SimpleQueue[Any]] = {}  # inboxes by the numbers of jobs
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
            raise Closed(str(error)) from error

    def ended(self, number: int, frame: bytes | None, problem: str | None) -> None:
        """A job has ended: with what it did not send before, or with a problem. From any thread."""
        with self._lock:
            inbox = self._jobs.pop(number, None)
            when_ended = self._watched.pop(number, None)
        if inbox is not None:
            inbox.put((frame, problem))
        if when_ended is not None:
            when_ended()

    def _fetch(self) -> None:
        """The life of the thread that fetches the mail."""
        while not self.closed:
            try:
                mail = self.mailbox("take", wait=True)
            except Exception as error:
                self._lose(f"its mailbox in the cluster is gone ({type(error).__name__}: {error})")
                return
            for number, frame in mail:
                with self._lock:
                    inbox = self._jobs.get(number)
                if inbox is not None:
                    inbox.put((frame, None))

    def watch(self, number: int, when_ended: Callable[[], object]) -> None:
        """Call this when a job has ended."""
        with self._lock:
            if number in self._jobs:
                self._watched[number] = when_ended
                return
        when_ended()

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
        self._job: Any = None
        self._owes = False  # the job waits for an answer
        self.problem = ""  #: how the last job has ended, if not well

    def send(self, message: tuple[Any, ...]) -> None:
        if message[0] == To.CALLS:
            self._number, self._owes, self._inbox = next(_numbers), False, SimpleQueue()
            frame = pickle.dumps(message, 5)
            self._job = self._cluster.start(frame, self._number, self._inbox, self._resources)
        elif message[0] == To.STOP:
            self._tell("stop", self._number)
        elif message[0] != To.LEAVE:
            self._owes = False
            self._tell("answer", self._number, pickle.dumps(message, 5))

    def _tell(self, method: str, *args: Any) -> None:
        try:
            self._cluster.mailbox(method, *args, wait=False)
        except Exception as error:
            raise Closed(str(error)) from error

    def receive(self) -> Any:
        while not self._read:
            if self._owes:
                self.send(SEEN)
            self.fetch()
        return self._read.popleft()

    def fetch(self) -> None:
        """Wait for the next frame."""
        frame, problem = self._inbox.get()
        if frame is None:
            self.problem = problem or "it has ended"
            raise Closed(self.problem)
        self._read.extend(pickle.loads(frame))
        self._owes = True  # after the end of the job nobody reads what it is answered

    @property
    def buffered(self) -> bool:
        return bool(self._read)

    def kill(self) -> None:
        if self._job is not None:
            self._cluster.cancel(self._job)

    def watch(self, when_ended: Callable[[], object]) -> None:
        self._cluster.watch(self._number, when_ended)

    def close(self) -> None:
        self._job = None


class ClusterLink(Link):
    """A thread of ours that may have one job at a time."""

    tells_at_once = False

    def __init__(self, wire: JobWire) -> None:
        super().__init__(wire)
        self._wire = wire

    def kill(self) -> None:
        self._wire.kill()

    def reason(self) -> str:
        return self.ended or self._wire.problem

    def watch(self, when_ended: Callable[[], object]) -> None:
        self._wire.watch(when_ended)


class ClusterWorker(RemoteWorker):
    """A thread of ours that has task runs called by jobs of a cluster."""

    batch_time = JOB_TIME


class ClusterPlaces(RemotePlaces):
    """Places whose task runs are called by jobs that need the same resources."""

    imports_main = False  # functions of the main module travel as a whole

    def __init__(self, cluster: Cluster, capacity: int, resources: dict[str, Any], dumps: Any) -> None:
        super().__init__(capacity, cluster.name)
        self.cluster = cluster
        self.resources = resources
        self.dumps = dumps

    def new_worker(self) -> RemoteWorker:
        return ClusterWorker(self)

    def start_link(self) -> Link:
        if self.cluster.closed:
            raise Lost(f"{self.name} is closed", final=True)
        return ClusterLink(JobWire(self.cluster, self.resources))

    def encode_function(self, call: Call) -> Any:
        fn = call.fn
        try:
            # What the main module of a program has is no use to a worker, which has another one.
            if type(fn) in NAMED and fn.__module__ != "__main__":
                try:
                    return by_name(fn)
                except Exception:  # it may be defined inside another one
                    pass
            return encode(fn, self.dumps)
        except Exception as error:
            raise TransferError(call.id, culprit(fn, "its function"), str(error)) from error

    def lent(self, channel: Any, lent: bool) -> None:
        """The cluster gives the place of a job that waits to others, by itself or when it is told."""
        with self._lock:
            channel.lent = lent
            channel.link.waiting += 1 if lent else -1
        if lent and self.cluster.lends:
            channel.wire.send((To.LEND,))
            channel.wire.fetch()  # the note has arrived
