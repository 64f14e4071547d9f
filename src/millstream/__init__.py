"""Millstream: an embeddable task-flow library. These are its public names; nothing else is."""

from typing import TYPE_CHECKING, Any

from millstream.context import Context, State
from millstream.engine.run import FlowRun
from millstream.engine.session import Session, TaskHandle
from millstream.errors import (
    BindingError,
    BlockingGetError,
    CheckpointError,
    CodeChangedError,
    ConfigError,
    ContextKeyError,
    CycleError,
    DeadlockError,
    DependencyFailedError,
    DuplicateTaskWarning,
    ExecutorLostError,
    FlowClosedError,
    FlowError,
    RouteError,
    RunCancelledError,
    RunOwnedError,
    RunTimeoutError,
    StreamError,
    TaskCancelledError,
    TaskFailedError,
    TaskNotFoundError,
    TaskRunLimitError,
    TaskTimeoutError,
    TransferError,
    UnknownRunError,
    WorkerLostError,
)
from millstream.events import (
    Hook,
    RunEndEvent,
    RunStartEvent,
    TaskCancelEvent,
    TaskCoalescedEvent,
    TaskFailureEvent,
    TaskProgressEvent,
    TaskRetryEvent,
    TaskSkipEvent,
    TaskStartEvent,
    TaskSuccessEvent,
    fn_hook,
)
from millstream.executors import (
    AsyncioExecutor,
    DaskExecutor,
    Executor,
    InlineExecutor,
    PoolExecutor,
    ProcessExecutor,
    RayExecutor,
    ThreadExecutor,
)
from millstream.flow import Flow
from millstream.policies import Rate, Retry
from millstream.report import RunReport, TaskReport
from millstream.task import Task, TaskBase, current_task, task
from millstream.values import NextTask, Status, StreamChunk, TaskOutput

if TYPE_CHECKING:
    from millstream.stores import JSONFileStore, MemoryStore, SQLiteStore, Store, StoredRun

__all__ = [
    "AsyncioExecutor",
    "BindingError",
    "BlockingGetError",
    "CheckpointError",
    "CodeChangedError",
    "ConfigError",
    "Context",
    "ContextKeyError",
    "CycleError",
    "DaskExecutor",
    "DeadlockError",
    "DependencyFailedError",
    "DuplicateTaskWarning",
    "Executor",
    "ExecutorLostError",
    "Flow",
    "FlowClosedError",
    "FlowError",
    "FlowRun",
    "Hook",
    "InlineExecutor",
    "JSONFileStore",
    "MemoryStore",
    "NextTask",
    "PoolExecutor",
    "ProcessExecutor",
    "Rate",
    "RayExecutor",
    "Retry",
    "RouteError",
    "RunCancelledError",
    "RunEndEvent",
    "RunOwnedError",
    "RunReport",
    "RunStartEvent",
    "RunTimeoutError",
    "SQLiteStore",
    "Session",
    "State",
    "Status",
    "Store",
    "StoredRun",
    "StreamChunk",
    "StreamError",
    "Task",
    "TaskBase",
    "TaskCancelEvent",
    "TaskCancelledError",
    "TaskCoalescedEvent",
    "TaskFailedError",
    "TaskFailureEvent",
    "TaskHandle",
    "TaskNotFoundError",
    "TaskOutput",
    "TaskProgressEvent",
    "TaskReport",
    "TaskRetryEvent",
    "TaskRunLimitError",
    "TaskSkipEvent",
    "TaskStartEvent",
    "TaskSuccessEvent",
    "TaskTimeoutError",
    "ThreadExecutor",
    "TransferError",
    "UnknownRunError",
    "WorkerLostError",
    "current_task",
    "fn_hook",
    "task",
]


def __getattr__(name: str) -> Any:
    """Load stores, and with them ``sqlite3``, when somebody asks for them."""
    if name in ("JSONFileStore", "MemoryStore", "SQLiteStore", "Store", "StoredRun"):
        from millstream import stores

        return getattr(stores, name)
    raise AttributeError(f"module 'millstream' has no attribute {name!r}")
