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
from millstream.executors.remote.calls import Lost
from millstream.executors.remote.places import NAMED, Channel, Line, Link, RemotePlaces, RemoteWorker
from millstream.executors.remote.wire import Back, Closed, Dumps, To, by_name, culprit, encode, said
from millstream.executors.remote.worker import Batch, Home

#: How long the calls of a job are expected to take together, in seconds; long against the cost of a job.
JOB_TIME = 0.02
#: How often a task that asks whether it was told to stop has that looked up, in seconds.
LOOK = 0.2

#: How many messages a job keeps, to send them together.
KEPT = 64

#: A frame that answers one which asks for nothing.
SEEN = pickle.dumps((To.ANSWER, None), 5)
#: Notes that can come instead of an answer.
NOTES = frozenset({To.RETURN, To.LEND})
#: In place of a problem: this is the last frame of a job, which waits for no answer.
ENDED = ""
#: A frame that says that there is nothing more to do.
LEAVE = pickle.dumps((To.LEAVE,), 5)

#: The number of a job; a frame that it has sent, or None if it has ended badly; and how it has ended, if so.
Mail = tuple[int, bytes | None, str]

_numbers = count(1)


# ---- in the cluster -----------------------------------------------------------------------------


class Mailbox:
    """Between jobs and the process that they belong to. Frames are pickled messages; no method returns None."""

    def __init__(self) -> None:
        self._mail: list[Mail] = []
        self._arrived = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}  # jobs that wait for an answer
        self._told: set[int] = set()  # jobs that are to stop
        self._leaving: dict[int, asyncio.Event] = {}  # jobs that wait for threads that they have lent

    # For jobs:

    async def ask(self, job: int, frame: bytes) -> bytes:
        """Deliver a frame of a job, and return the answer."""
        future = self._waiting[job] = asyncio.get_running_loop().create_future()
        self.post((job, frame, ""))
        answer: bytes = await future
        return answer

    async def told(self, job: int) -> bool:
        """Whether a job is to stop."""
        return job in self._told

    async def left(self, job: int) -> bool:
        """The threads that a job has lent have ended."""
        self._leaving.setdefault(job, asyncio.Event()).set()
        return True

    async def until_left(self, job: int) -> bool:
        """Wait for that."""
        await self._leaving.setdefault(job, asyncio.Event()).wait()
        del self._leaving[job]
        return True

    # For the parent:

    async def take(self) -> list[Mail]:
        """Wait for mail, and return it."""
        await self._arrived.wait()
        mail, self._mail = self._mail, []
        self._arrived.clear()
        return mail

    async def answer(self, job: int, frame: bytes) -> bool:
        """Answer the frame that a job has sent."""
        future = self._waiting.pop(job, None)
        if future is not None and not future.done():
            future.set_result(frame)
        return True

    async def stop(self, job: int) -> bool:
        """Tell a job to stop."""
        self._told.add(job)
        return True

    async def forget(self, job: int) -> bool:
        """Nobody wants anything of a job any more: if it asks, it may leave."""
        self._told.discard(job)
        return await self.answer(job, LEAVE)

    async def wake(self) -> bool:
        """Let ``take`` return."""
        self._arrived.set()
        return True

    def post(self, mail: Mail) -> None:
        """Put something in for the parent."""
        self._mail.append(mail)
        self._arrived.set()


class MailHome(Home):
    """The way home from a job, or from a further thread of its process that was lent.

    Args:
        number: of the job.
        ask: delivers a frame of a job and returns the answer.
        told: whether a job is to stop.
        dumps: what pickles values.
        waits: called with True before a long wait, and with False after it, in the thread that waits: jobs that
            the cluster keeps in line may be what is waited for, so they must have our place.
        join: waits for threads, and gives our place to others meanwhile.
    """

    keeps = True

    def __init__(
        self,
        number: int,
        ask: Callable[[int, bytes], bytes],
        told: Callable[[int], bool],
        dumps: Dumps | None,
        waits: Callable[[bool], None] = lambda _: None,
        join: Callable[[list[threading.Thread]], None] | None = None,
    ) -> None:
        self._number, self._deliver, self._told, self.dumps = number, ask, told, dumps
        self._waits, self._join = waits, join or join_all
        self._mailing = threading.Lock()  # one exchange at a time
        self.turn = threading.Lock()
        self._outcomes: deque[tuple[Any, ...]] = deque()  # not sent yet; appended by anybody, without the lock
        self._looked = time.monotonic()
        self._lent: list[threading.Thread] = []

    def tell(self, message: tuple[Any, ...]) -> None:
        self._outcomes.append(message)
        if message[0] == Back.SENT and len(self._outcomes) >= KEPT:
            with self._mailing:  # the answer is long in coming when the reader of the stream is slow
                self._exchange()

    def ask(self, message: tuple[Any, ...], batch: Batch) -> tuple[Any, ...]:
        with self._mailing:
            self._outcomes.append(message)
            waits = False
            try:
                while True:
                    answer = self._exchange()
                    if answer[0] in (To.ANSWER, To.REFUSAL):
                        return answer
                    if answer[0] == To.RETURN:
                        batch.give_back(say=True)
                    elif answer[0] == To.LEND:
                        if answer[1] is not None:
                            self._lend(answer[1])
                        if not waits:
                            self._waits(True)
                            waits = True
            finally:
                if waits:
                    self._waits(False)

    def _lend(self, number: int) -> None:
        """The thread of this home waits: another one does calls, under a number of its own."""
        home = MailHome(number, self._deliver, self._told, self.dumps)
        thread = threading.Thread(target=home.serve, name="millstream-call", daemon=True)
        self._lent.append(thread)
        thread.start()

    def serve(self) -> None:
        """Do calls, which come as answers, until there are none any more."""
        while True:
            with self._mailing:
                answer = self._exchange()
            if answer[0] == To.CALLS:
                self.work(answer[1], answer[2])
            elif answer[0] == To.LEAVE:
                break
        self.wait_for_lent()

    def work(self, number: int, calls: Any) -> None:
        """Do the calls of a batch."""
        if any(facts[-1] is not None for _, _, facts in calls):  # their time begins now
            self.tell((Back.BEGUN,))
            self.flush()
        Batch(number, calls, self).work()

    def look(self, batch: Batch) -> None:
        if time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            if self._told(self._number):
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

    def wait_for_lent(self) -> None:
        """Wait for threads that were lent: a process must not be taken for idle while they work."""
        if any(thread.is_alive() for thread in self._lent):
            self.flush()
            self._join(self._lent)

    def _exchange(self) -> tuple[Any, ...]:
        """Send everything, and return the answer."""
        answer: tuple[Any, ...] = pickle.loads(self._deliver(self._number, self._frame()))
        return answer

    def _frame(self) -> bytes:
        return pickle.dumps([self._outcomes.popleft() for _ in range(len(self._outcomes))], 5)


def join_all(threads: list[threading.Thread]) -> None:
    """Wait until these threads have ended."""
    for thread in threads:
        thread.join()


def do_job(frame: bytes, home: MailHome) -> bytes:
    """Do the calls of a job; return what of their outcomes was not sent."""
    _, number, calls = pickle.loads(frame)
    home.work(number, calls)
    home.wait_for_lent()
    return home.rest()


# ---- on our side --------------------------------------------------------------------------------


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

    def ended(self, number: int, frame: bytes | None, problem: str | None) -> None:
        """A job has ended: with what it did not send before, or with a problem. From any thread."""
        with self._lock:
            inbox = self._jobs.pop(number, None)
            when_ended = self._watched.pop(number, None)
            lent = self._lent.pop(number, ())
        if inbox is not None:
            inbox.put((frame, problem or ENDED))
            self.forget(number)
        if when_ended is not None:
            when_ended()
        for further in lent:
            self.ended(further, None, problem or "its job has ended")

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
                mail = self.mailbox("take", wait=True)
            except Exception as error:
                self._lose(f"its mailbox in the cluster is gone ({type(error).__name__}: {error})")
                return
            for number, frame, problem in mail:
                if problem:
                    self.ended(number, frame, problem)
                    continue
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
        frame, problem = self._inbox.get()
        if frame is None:
            self.problem = problem or "its job has ended"
            raise Closed(self.problem)
        messages = pickle.loads(frame)
        self._read.extend(messages)
        if problem == ENDED:
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
    first: Channel

    def __init__(self, wire: JobWire, kills: bool) -> None:
        super().__init__(wire)
        self.kills = kills

    def kill(self, channel: Channel | None = None) -> None:
        (channel or self.first).wire.kill()  # type: ignore[attr-defined]  # ours can

    def reason(self, channel: Channel) -> str:
        return self.ended or channel.wire.problem  # type: ignore[attr-defined]

    def watch(self, channel: Channel, when_ended: Callable[[], object]) -> None:
        channel.wire.watch(when_ended)  # type: ignore[attr-defined]

    def unwatch(self, channel: Channel) -> None:
        channel.wire.unwatch()  # type: ignore[attr-defined]

    def further(self, channel: Channel) -> Line:
        return channel.wire.lend()  # type: ignore[attr-defined,no-any-return]

    def will_wait(self, channel: Channel) -> None:
        channel.wire.will_wait()  # type: ignore[attr-defined]


class ClusterWorker(RemoteWorker):
    """A thread of ours that has task runs called by jobs of a cluster."""

    batch_time = JOB_TIME
    stands_in_line = True


class ClusterPlaces(RemotePlaces):
    """Places whose task runs are called by jobs that need the same resources."""

    imports_main = False  # functions of the main module travel as a whole
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

    def encode_function(self, fn: Any, task_id: str) -> Any:
        try:
            # What the main module of a program has is no use to a worker, which has another one.
            if type(fn) in NAMED and fn.__module__ != "__main__":
                try:
                    target = self.targets[fn] = by_name(fn)
                    return target
                except Exception:  # it may be defined inside another one
                    pass
            return encode(fn, self.dumps)
        except Exception as error:
            raise TransferError(task_id, culprit(fn, "its function"), said(error)) from error
