"""What the executors for clusters have in common: one connection, and places for each demand of resources.

May import: base, places, remote.cluster, task, errors.
"""

from __future__ import annotations

import contextvars
import threading
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from millstream.errors import FlowClosedError
from millstream.executors.base import Executor, Workers
from millstream.executors.places import end_with
from millstream.task import check_count

if TYPE_CHECKING:
    from millstream.executors.remote.cluster import Cluster, ClusterPlaces


class ClusterExecutor(Executor):
    """An executor whose tasks are jobs of a cluster."""

    remote = True

    def __init__(self, max_workers: int | None) -> None:
        self._max_workers = None if max_workers is None else check_count(max_workers, "max_workers")
        self._lock = threading.Lock()
        # Guarded by _lock: everything below.
        self._views: dict[Any, Executor] = {}
        self._places: dict[Any, ClusterPlaces] = {}
        self._cluster: Cluster | None = None
        self._closed = False

    @abstractmethod
    def _connect(self) -> Cluster:
        """Connect to the cluster, or start one."""

    def serve(self, *, is_async: bool, loop: Any = None, driven: bool = False) -> Workers | None:
        return None if is_async else self.places({})

    def requiring(self, resources: Mapping[str, float]) -> Executor:
        key = tuple(sorted(resources.items()))
        with self._lock:
            view = self._views.get(key)
            if view is None:
                view = self._views[key] = Requiring(self, dict(resources))
            return view

    def places(self, resources: dict[str, float]) -> ClusterPlaces:
        """Return the places for jobs that need so much; the first ones connect to the cluster.

        Raises:
            ValueError: the cluster can never run such a job.
        """
        from millstream.executors.remote.cluster import ClusterPlaces

        key = tuple(sorted(resources.items()))
        with self._lock:
            if self._closed:
                raise FlowClosedError(repr(self))
            if self._cluster is None:
                # What a client keeps for its callbacks must not have this flow, and so us, among its variables.
                self._cluster = contextvars.Context().run(self._connect)
                end_with(self, partial(_shut_down, self._places, self._cluster, wait=False))
            places = self._places.get(key)
            if places is None:
                places = self._places[key] = ClusterPlaces(self._cluster, resources, self._max_workers)
            return places

    def shutdown(self, wait: bool = True) -> None:
        """Disconnect, and end what was started here; jobs that still run are cancelled. What was given stays open."""
        with self._lock:
            self._closed = True
            cluster = self._cluster
        if cluster is not None:
            _shut_down(self._places, cluster, wait)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{': closed' if self._closed else ''}>"


def _shut_down(places: dict[Any, ClusterPlaces], cluster: Cluster, wait: bool) -> None:
    for each in list(places.values()):
        each.shutdown(wait)
    cluster.close()


class Requiring(Executor):
    """An executor of a cluster for jobs that need certain resources."""

    remote = True

    def __init__(self, executor: ClusterExecutor, resources: dict[str, float]) -> None:
        self._executor, self._resources = executor, resources

    def serve(self, *, is_async: bool, loop: Any = None, driven: bool = False) -> Workers | None:
        return None if is_async else self._executor.places(self._resources)

    def shutdown(self, wait: bool = True) -> None:
        """End nothing: that is for the executor itself."""

    def __repr__(self) -> str:
        return f"{self._executor!r} with {self._resources}"
