"""Ray: the connection, its mailbox, and the jobs.

May import: cluster, mail, worker, errors.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import Any

import ray
import ray.cloudpickle
import ray.exceptions

from millstream.errors import FlowError
from millstream.executors.remote.cluster import Cluster
from millstream.executors.remote.mail import WELL, Mailbox, MailHome, do_job, join_all
from millstream.executors.remote.worker import send_log

#: Resources that Ray takes as options of their own, and what its nodes call them.
OPTIONS = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}

_boxes: dict[str, Any] = {}


def job(frame: bytes, number: int, box_name: str, level: int) -> bytes:
    """Do the calls of a job. In a worker process of Ray."""
    send_log(level)
    box = _boxes.get(box_name)
    if box is None:
        box = _boxes[box_name] = ray.get_actor(box_name)

    waiting = False

    def waits(begins: bool) -> None:
        nonlocal waiting
        waiting = begins

    def ask(asking: int, frame: bytes) -> bytes:
        reference = box.ask.remote(asking, frame)
        # ``ray.get`` gives our place to another job, for which Ray has to start a process.
        answer: bytes = ray.get(reference) if waiting and asking == number else reference.future().result()
        return answer

    def told(asking: int) -> bool:
        return bool(box.told.remote(asking).future().result())

    def join(threads: list[threading.Thread]) -> None:
        def tell() -> None:
            join_all(threads)
            box.left.remote(number).future().result()

        threading.Thread(target=tell, name="millstream-left", daemon=True).start()
        ray.get(box.until_left.remote(number))

    return do_job(frame, MailHome(number, ask, told, ray.cloudpickle.dumps, waits, join))


class RayCluster(Cluster):
    """The connection to Ray.

    ``ray.init`` is called in a thread that lives until the end: what it starts ends with the thread that
    started it, and the main thread would lose its signal handlers.
    """

    dumps = staticmethod(ray.cloudpickle.dumps)

    def __init__(self, address: str | None, init: dict[str, Any]) -> None:
        super().__init__("millstream-ray")
        self._end: threading.Event | None = None
        self._owner: threading.Thread | None = None
        if not ray.is_initialized():
            self._start(address, init)
        elif address is not None or init:
            raise FlowError("Ray runs in this process already: leave address and options out, or shut it down before.")
        self._name = f"millstream-{os.getpid()}-{os.urandom(6).hex()}"
        box = ray.remote(Mailbox).options(num_cpus=0, max_concurrency=10_000, max_restarts=0, name=self._name)
        self._box = box.remote()
        self._job = ray.remote(max_retries=0)(job)
        self._level = logging.getLogger("millstream").level
        self._owned = self._end is not None and address is None

    def _start(self, address: str | None, init: dict[str, Any]) -> None:
        if address is not None and ":" in address:
            host, _, port = address.rpartition(":")
            try:  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), 5).close()
            except (OSError, ValueError) as error:
                raise FlowError(f"There is no Ray cluster at {address}: {error}.") from error
        started, end = threading.Event(), threading.Event()
        problem: list[BaseException] = []
        options = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False} | init
        if address is not None:
            options.pop("include_dashboard")
            options |= init

        def live() -> None:
            try:
                ray.init(address=address or "local", **options)
            except BaseException as error:
                problem.append(error)
                started.set()
                return
            started.set()
            end.wait()
            ray.shutdown()

        self._owner = threading.Thread(target=live, name=f"{self.name}-owner", daemon=True)
        self._owner.start()
        started.wait()
        if problem:
            raise problem[0]
        self._end = end

    def slots(self, resources: dict[str, Any]) -> int:
        need = {OPTIONS.get(name, name): amount for name, amount in resources.items()}
        need.setdefault("CPU", 1)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        fits = sum(min(int(node.get(name, 0) // amount) for name, amount in need.items() if amount) for node in nodes)
        if not fits and self._owned:
            has = ", ".join(f"{name} {amount:g}" for name, amount in sorted(nodes[0].items()) if ":" not in name)
            raise ValueError(f"No machine of the Ray cluster can ever give {dict(resources)}: it has {has}.")
        return max(1, fits)  # a cluster of somebody else's may grow

    def _check(self) -> None:
        """Raise when its owner has shut Ray down: whatever it is asked for then, it would start by itself again."""
        if not ray.is_initialized():
            raise ConnectionError("Ray was shut down")

    def submit(self, frame: bytes, number: int, resources: dict[str, Any]) -> Any:
        self._check()
        options = {name: amount for name, amount in resources.items() if name in OPTIONS}
        own = {name: amount for name, amount in resources.items() if name not in OPTIONS}
        if own:
            options["resources"] = own
        remote = self._job.options(**options) if options else self._job
        reference = remote.remote(frame, number, self._name, self._level)

        def ended(future: Any) -> None:
            error = future.exception()
            if error is None:
                self.ended(number, future.result(), WELL)
            else:
                self.ended(number, None, said_of(error))

        reference.future().add_done_callback(ended)
        return reference

    def cancel(self, job: Any) -> None:
        if ray.is_initialized():  # else it has ended
            ray.cancel(job, force=True)

    def mailbox(self, method: str, *args: Any, wait: bool) -> Any:
        self._check()
        reference = getattr(self._box, method).remote(*args)
        try:
            if not wait:
                return None
            future = reference.future()
            while True:  # nothing tells who waits that Ray was shut down in this process, so that is asked
                try:
                    return future.result(1.0)
                except TimeoutError:
                    self._check()
        except SystemExit as error:  # of Ray, in a thread that waits while it is shut down
            raise ConnectionError("Ray was shut down") from error

    def disconnect(self) -> None:
        if not ray.is_initialized():  # somebody else has shut it down
            return
        if self._end is not None and self._owner is not None:
            self._end.set()
            self._owner.join()
        else:
            ray.kill(self._box)


def said_of(error: BaseException) -> str:
    """Return why a job has ended, as the end of a sentence."""
    if isinstance(error, ray.exceptions.TaskCancelledError):
        return "its job was cancelled"
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"its job failed: {error.cause!r}"
    return f"its worker process has ended ({type(error).__name__})"
