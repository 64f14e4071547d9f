"""Dask: the connection, its mailbox in the scheduler, and the jobs.

The mailbox is a plugin of the scheduler: an actor would live in a worker, and end with it. There it also sees
which jobs have begun, and workers that end. So a job never begins twice, though Dask tries those again whose
worker is lost. May import: cluster, mail, worker, errors.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from typing import Any

import cloudpickle
import distributed
from distributed.utils import sync

from millstream.errors import FlowError
from millstream.executors.remote.cluster import Cluster
from millstream.executors.remote.mail import WELL, Mailbox, MailHome, do_job, join_all
from millstream.executors.remote.worker import send_log

#: Names of the connections of this process, whose workers may be threads in it: their log needs no way home.
_connections: set[str] = set()

#: Frames from this size on are scattered, in bytes: the scheduler is not made to carry more.
LARGE = 1 << 20


class MailPlugin(distributed.SchedulerPlugin):  # type: ignore[misc]  # it has no types
    """The mailbox of one executor, in the scheduler.

    Args:
        name: begins the names of its handlers: executors may share a scheduler.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    async def start(self, scheduler: Any) -> None:
        self.box = Mailbox()
        self.where: dict[int, tuple[str, int]] = {}  # jobs under way: the address of the worker, and its process
        self.begun: set[int] = set()
        box = self.box
        self.handlers = {
            "ask": box.ask, "told": box.told, "take": box.take, "answer": box.answer, "stop": box.stop,
            "wake": box.wake, "forget": self.forget, "begin": self.begin, "found": self.found,
        }  # fmt: skip
        self.scheduler = scheduler
        for method, handler in self.handlers.items():
            scheduler.handlers[f"{self.name}-{method}"] = handler
        scheduler.stream_handlers[f"{self.name}-done"] = self.done

    async def begin(self, job: int, address: str, process: int) -> bool:
        """A job begins; False when it has begun before, or nobody wants it any more."""
        if job in self.begun or f"{self.name}-{job}" not in self.scheduler.tasks:
            return False
        self.begun.add(job)
        self.where[job] = address, process
        return True

    async def found(self, job: int) -> list[Any]:
        """Return where a job is under way, if it is."""
        return list(self.where.get(job, ()))

    def done(self, job: int, frame: bytes, **_: Any) -> None:
        """A job has ended, with what it did not send before."""
        self.where.pop(job, None)
        self.box.post((job, frame, WELL))

    async def forget(self, job: int) -> bool:
        self.where.pop(job, None)
        return await self.box.forget(job)

    def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:
        """The scheduler changes the state of a job, or of a task of somebody else."""
        if finish == "forgotten" and str(key).startswith(f"{self.name}-"):
            # Not before: Dask does a job again whose worker has ended, also after it, for as long as it is held.
            self.begun.discard(int(key.rpartition("-")[2]))

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """A worker is gone, and with it what it was doing."""
        for job in [job for job, (address, _) in self.where.items() if address == worker]:
            del self.where[job]
            self.box.post((job, None, f"its worker {worker} has ended"))

    async def close(self) -> None:
        """The scheduler ends, or the executor."""


def remove_handlers(name: str, dask_scheduler: Any = None) -> None:
    """Take the handlers of a mailbox out. In the scheduler."""
    for method in [method for method in dask_scheduler.handlers if method.startswith(f"{name}-")]:
        del dask_scheduler.handlers[method]
    # A job may still send its last message, and the scheduler drops a worker that sends what nobody handles.
    dask_scheduler.stream_handlers[f"{name}-done"] = ignore


def ignore(**_: Any) -> None:
    """Do nothing about a message."""


def job(frame: bytes, number: int, name: str, level: int) -> None:
    """Do the calls of a job. In a worker of Dask, which must survive whatever they raise."""
    worker = distributed.get_worker()

    def call(method: str, number: int, **args: Any) -> Any:
        return sync(worker.loop, getattr(worker.scheduler, f"{name}-{method}"), job=number, **args)

    def ask(number: int, frame: bytes) -> bytes:
        return bytes(call("ask", number, frame=frame))

    def told(number: int) -> bool:
        return bool(call("told", number))

    seceded = False

    def waits(begins: bool) -> None:
        # Never to join again: who has our place may wait for us. Our places keep count of what is under way.
        nonlocal seceded
        if begins and not seceded:
            seceded = True
            distributed.secede()

    def join(threads: list[threading.Thread]) -> None:
        waits(True)
        join_all(threads)

    if not call("begin", number, address=worker.address, process=os.getpid()):
        raise FlowError(f"Job {number} of {name} is not to begin: it has begun before, or was given up.")
    if name not in _connections:
        send_log(level)
    rest = do_job(frame, MailHome(number, ask, told, cloudpickle.dumps, waits, join))
    worker.loop.add_callback(worker.batched_stream.send, {"op": f"{name}-done", "job": number, "frame": rest})


class DaskCluster(Cluster):
    """The connection to Dask."""

    dumps = staticmethod(cloudpickle.dumps)

    def __init__(self, given: Any) -> None:
        super().__init__("millstream-dask")
        self._cluster: Any = None
        self._owns_client = given is None or isinstance(given, str)
        if given is None:
            self._cluster = given = LocalCluster(
                threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
            )
        try:
            if self._owns_client:
                given = distributed.Client(given, set_as_default=False, timeout=5)
                given.scheduler_comm.interval = 0.001  # seconds between messages to the scheduler
        except OSError as error:
            raise FlowError(f"There is no Dask scheduler at {given}: {error}.") from error
        self._client = given
        self._name = f"millstream-{os.getpid()}-{os.urandom(6).hex()}"
        _connections.add(self._name)
        self._level = logging.getLogger("millstream").level
        self._client.register_plugin(MailPlugin(self._name))
        self._client.wait_for_workers(1, timeout=30)
        workers = self._workers().values()
        ours = os.getpid(), self._client.run(os.getpid, on_error="ignore")
        self.kills = all(worker["nanny"] for worker in workers) and ours[0] not in ours[1].values()

    def _workers(self) -> dict[str, Any]:
        info: dict[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        return info

    def slots(self, resources: dict[str, Any]) -> int:
        workers = self._workers().values()
        fits = 0
        for worker in workers:
            has = worker["resources"]
            times = [int(has.get(name, 0) // amount) for name, amount in resources.items()]
            fits += min([worker["nthreads"], *times])
        if not fits:
            has = [worker["resources"] for worker in workers]
            raise ValueError(f"No worker of the Dask cluster has {dict(resources)}: they have {has}.")
        return fits

    def submit(self, frame: bytes, number: int, resources: dict[str, Any]) -> Any:
        key = f"{self._name}-{number}"
        sent: Any = frame
        if len(frame) > LARGE:
            sent = self._client.scatter(frame, hash=False)
        future = self._client.submit(
            job, sent, number, self._name, self._level, key=key, pure=False, resources=resources or None
        )

        def ended(future: Any) -> None:
            if future.status == "error":  # of ours; what tasks raise comes as an outcome
                self.ended(number, None, f"its job failed: {future.exception()!r}")

        future.add_done_callback(ended)
        return number, future

    def cancel(self, job: Any) -> None:
        number, future = job
        try:
            found = self.mailbox("found", number, wait=True)
            future.cancel()  # else Dask would try it again
            if found and self.kills:
                address, process = found
                self._client.run(os.kill, process, signal.SIGKILL, workers=[address], nanny=True, on_error="ignore")
        except Exception as error:  # the scheduler is gone
            logging.getLogger("millstream").debug("Job %s could not be cancelled: %r", number, error)
        self.ended(number, None, "its job was cancelled")

    #: Names of the arguments of the mailbox's methods.
    ARGUMENTS = ("job", "frame")

    def mailbox(self, method: str, *args: Any, wait: bool) -> Any:
        call = getattr(self._client.scheduler, f"{self._name}-{method}")
        named = dict(zip(self.ARGUMENTS, args, strict=False))
        if not wait:
            self._client.loop.add_callback(_quietly, call, named)
            return None
        answer = self._client.sync(call, **named)
        if answer is None:
            raise ConnectionError("the scheduler does not know the mailbox any more")
        return answer

    def disconnect(self) -> None:
        _connections.discard(self._name)
        try:
            self._client.unregister_scheduler_plugin(self._name)
            self._client.run_on_scheduler(remove_handlers, self._name)
        except Exception:  # the scheduler is gone
            pass
        if self._owns_client:
            self._client.close(timeout=2)
        if self._cluster is not None:
            self._cluster.close(timeout=5)


class LocalCluster(distributed.LocalCluster):  # type: ignore[misc]  # it has no types
    """A cluster on this machine that gives up none of its workers.

    Dask's own gives one up for good that is missing 15 seconds after it was lost: by then it may long be back, and
    be lost again. The nanny of a worker starts it again each time, so nothing is to be done about it.
    """

    def _update_worker_status(self, op: str, msg: Any) -> None:
        distributed.deploy.Cluster._update_worker_status(self, op, msg)


async def _quietly(call: Any, args: dict[str, Any]) -> None:
    """Call a method of the mailbox; when the scheduler is gone, who waits for mail finds out."""
    try:
        await call(**args)
    except (OSError, asyncio.CancelledError):
        pass
