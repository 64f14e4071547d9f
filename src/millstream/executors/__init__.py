"""Where tasks are called: in the caller's thread, in threads, on an event loop, on a pool of yours."""

from millstream.executors.asyncio import AsyncioExecutor
from millstream.executors.base import Executor
from millstream.executors.dask import DaskExecutor
from millstream.executors.inline import InlineExecutor
from millstream.executors.pool import PoolExecutor
from millstream.executors.process import ProcessExecutor
from millstream.executors.ray import RayExecutor
from millstream.executors.thread import ThreadExecutor

__all__ = [
    "AsyncioExecutor",
    "DaskExecutor",
    "Executor",
    "InlineExecutor",
    "PoolExecutor",
    "ProcessExecutor",
    "RayExecutor",
    "ThreadExecutor",
]
