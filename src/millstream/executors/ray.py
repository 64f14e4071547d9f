"""The Ray executor: tasks as jobs of a Ray cluster. Needs the extra ``millstream[ray]``.

What it takes is loaded with the first run. May import: base, places, remote.ray, task, errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.executors.clustered import ClusterExecutor

if TYPE_CHECKING:
    from millstream.executors.remote.cluster import Cluster


class RayExecutor(ClusterExecutor):
    """Calls tasks as jobs of a Ray cluster, small ones several to a job.

    With Ray running in this process already, it is used, and left as it is. Otherwise it is started, or
    connected to, with the first run, and shut down with the executor. Functions of a program's main module travel
    as a whole; everything else must be importable by the cluster's workers, Millstream included. What a task needs
    is said by its option ``resources``: ``num_cpus``, ``num_gpus``, ``memory`` (bytes), or names of your own.

    Args:
        address: ``host:port`` of a cluster, or ``"auto"``; without it a cluster on this machine.
        max_workers: jobs that the cluster has of us at once; without it twice as many as it can run.
        init: further arguments of ``ray.init``, such as ``num_cpus``.

    Raises:
        ImportError: Ray is not installed.
        ValueError: an address of Ray Client (``ray://``), which is not supported.
    """

    def __init__(self, address: str | None = None, *, max_workers: int | None = None, **init: Any) -> None:
        super().__init__(max_workers)
        from importlib.util import find_spec

        if find_spec("ray") is None:
            raise ImportError('The ray executor needs Ray: pip install "millstream[ray]"')
        if address is not None and not isinstance(address, str):
            raise TypeError(f"The address of a Ray cluster is a string such as 'host:port', not {address!r}.")
        if address is not None and address.startswith("ray://"):
            raise ValueError(f"Ray Client ({address}) is not supported: run the program on a machine of the cluster.")
        self._given = address, init

    def _connect(self) -> Cluster:
        from millstream.executors.remote.ray import RayCluster

        return RayCluster(*self._given)
