"""The Dask executor: tasks as jobs of a Dask cluster. Needs the extra ``millstream[dask]``.

What it takes is loaded with the first run. May import: base, places, remote.dask, task, errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.executors.clustered import ClusterExecutor

if TYPE_CHECKING:
    from millstream.executors.remote.cluster import Cluster


class DaskExecutor(ClusterExecutor):
    """Calls tasks as jobs of a Dask cluster, small ones several to a job.

    Functions of a program's main module travel as a whole; everything else must be importable by the workers, and
    Millstream by the scheduler, too. What a task needs is said by its option ``resources``, in terms of the
    resources that workers were started with. A task that has to be stopped is stopped with its worker, which the
    worker's nanny replaces; what else that worker was doing is lost with it.

    Args:
        client_or_address: a ``distributed.Client`` of yours, which is not closed; or the address of a
            scheduler. Without it a cluster on this machine, with one worker a core, for as long as the executor.
        max_workers: jobs that the cluster has of us at once; without it twice as many as it can run.

    Raises:
        ImportError: Dask is not installed.
        TypeError: it is no client, or an asynchronous one, and no address.
    """

    def __init__(self, client_or_address: Any = None, *, max_workers: int | None = None) -> None:
        super().__init__(max_workers)
        from importlib.util import find_spec

        if find_spec("distributed") is None:
            raise ImportError('The dask executor needs Dask: pip install "millstream[dask]"')
        given = client_or_address
        if given is not None and not isinstance(given, str):
            if not hasattr(given, "submit") or not hasattr(given, "scheduler"):
                raise TypeError(
                    f"DaskExecutor takes a distributed.Client or the address of a scheduler, not {given!r}."
                )
            if given.asynchronous:
                raise TypeError(
                    "DaskExecutor takes a Client that is not asynchronous: Client(..., asynchronous=False)."
                )
        self._given = given

    def _connect(self) -> Cluster:
        from millstream.executors.remote.dask import DaskCluster

        return DaskCluster(self._given)
