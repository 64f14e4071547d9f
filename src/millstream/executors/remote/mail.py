"""What is in the cluster: the mailbox, and the side of a job, which does calls as a worker process of ours does.

A job runs in some process, on some machine, that the parent cannot reach. So whatever a task asks for goes to the
*mailbox*, from where a thread of the parent fetches it; the answer goes the same way. Every message to the mailbox
is answered, so a job never ends before what it sent has been seen to. May import: wire, worker.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from millstream.executors.remote.wire import Back, Closed, Dumps, To
from millstream.executors.remote.worker import Batch, Home

#: How often a task that asks whether it was told to stop has that looked up, in seconds.
LOOK = 0.2

#: How many messages a job keeps, to send them together.
KEPT = 64

#: A frame that says that there is nothing more to do.
LEAVE = pickle.dumps((To.LEAVE,), 5)
#: Notes that can come instead of an answer.
NOTES = frozenset({To.RETURN, To.LEND})

#: The number of a job; a frame that it has sent, which is None if it has ended badly; and how it has ended:
#: not at all, if that is None.
Mail = tuple[int, bytes | None, str | None]
#: It has ended well, and this was its last frame.
WELL = ""


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
        self.post((job, frame, None))
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
                if self._outcomes:  # else somebody has flushed them: an empty frame would be a question
                    self._exchange()

    def ask(self, message: tuple[Any, ...], batch: Batch) -> tuple[Any, ...]:
        waits = False
        self._mailing.acquire()
        try:
            self._outcomes.append(message)
            while (answer := self._exchange())[0] in NOTES:
                if answer[0] == To.RETURN:
                    batch.give_back(say=True)
                    continue
                if answer[1] is not None:
                    self._lend(answer[1])
                if not waits:
                    waits = True
                    self._waits(True)
        finally:
            self._mailing.release()
            if waits:
                self._waits(False)
        if answer[0] == To.LEAVE:
            raise Closed("nobody waits for this job any more")
        return answer

    def _lend(self, number: int) -> None:
        """The thread of this home waits: another one does calls, under a number of its own."""
        home = MailHome(number, self._deliver, self._told, self.dumps)
        thread = threading.Thread(target=home.serve, name="millstream-call", daemon=True)
        self._lent.append(thread)
        thread.start()

    def serve(self) -> None:
        """Do calls, which come as answers, until there are none any more."""
        try:
            while True:
                with self._mailing:
                    answer = self._exchange()
                if answer[0] == To.CALLS:
                    self.work(answer[1], answer[2])
                elif answer[0] == To.LEAVE:
                    break
        except Closed:
            pass
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
