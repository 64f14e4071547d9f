"""Millstream: an embeddable task-flow library. These are its public names; nothing else is."""

from millstream.context import Context, State
from millstream.engine.run import FlowRun
from millstream.errors import (
    BindingError,
    BlockingGetError,
    ContextKeyError,
    DeadlockError,
    DuplicateTaskWarning,
    ExecutorLostError,
    FlowClosedError,
    FlowError,
    RunCancelledError,
    RunTimeoutError,
    StreamError,
    TaskCancelledError,
    TaskFailedError,
    TaskNotFoundError,
    TaskRunLimitError,
    TaskTimeoutError,
)
from millstream.executors import AsyncioExecutor, Executor, InlineExecutor, PoolExecutor, ThreadExecutor
from millstream.flow import Flow
from millstream.task import Task, TaskBase, current_task, task
from millstream.values import NextTask, Status, StreamChunk, TaskOutput

__all__ = [
    "AsyncioExecutor",
    "BindingError",
    "BlockingGetError",
    "Context",
    "ContextKeyError",
    "DeadlockError",
    "DuplicateTaskWarning",
    "Executor",
    "ExecutorLostError",
    "Flow",
    "FlowClosedError",
    "FlowError",
    "FlowRun",
    "InlineExecutor",
    "NextTask",
    "PoolExecutor",
    "RunCancelledError",
    "RunTimeoutError",
    "State",
    "Status",
    "StreamChunk",
    "StreamError",
    "Task",
    "TaskBase",
    "TaskCancelledError",
    "TaskFailedError",
    "TaskNotFoundError",
    "TaskOutput",
    "TaskRunLimitError",
    "TaskTimeoutError",
    "ThreadExecutor",
    "current_task",
    "task",
]
