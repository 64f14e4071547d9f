"""Which executor a name or an object stands for. What is created here is closed here.

May import: everything in executors.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from millstream.errors import listed
from millstream.executors.asyncio import AsyncioExecutor
from millstream.executors.base import Executor
from millstream.executors.inline import InlineExecutor
from millstream.executors.pool import PoolExecutor, is_process_pool
from millstream.executors.process import ProcessExecutor
from millstream.executors.thread import ThreadExecutor
from millstream.task import Task, check_count

AnyExecutor = str | Executor | concurrent.futures.Executor | None


class Executors:
    """The executors of one flow: a default, those that tasks name, and a loop for ``async`` tasks.

    Args:
        default: where tasks are called that name no executor; None is ``"thread"``.
        max_workers: number of workers of what is created.

    Raises:
        TypeError, ValueError: no such executor, or a number of workers beside one that is given.
    """

    MAKERS: ClassVar[dict[str, Callable[[int | None], Executor]]] = {
        "thread": ThreadExecutor,
        "process": ProcessExecutor,
        "asyncio": AsyncioExecutor,
        "inline": lambda max_workers: InlineExecutor(),
    }

    def __init__(self, default: AnyExecutor, max_workers: int | None) -> None:
        self.uses_pool = False  #: whether tasks may be called in threads that the interpreter joins at exit
        self.check(default)
        if max_workers is not None:
            check_count(max_workers, "max_workers")
            if not (default is None or isinstance(default, str)):
                raise ValueError(f"max_workers is for an executor that the flow makes, and it was given {default!r}.")
            if default == "inline":
                raise ValueError("max_workers means nothing to the inline executor, which has one worker.")
        self._default = "thread" if default is None else default
        self._max_workers = max_workers
        self._lock = threading.Lock()
        self._made: dict[Any, Executor] = {}  #: by name, or by id of the pool that they wrap

    def check(self, executor: AnyExecutor) -> None:
        """Refuse what is no executor; note whether it is a pool of the user's.

        Raises:
            TypeError, ValueError: as it says.
        """
        self.uses_pool |= isinstance(executor, concurrent.futures.Executor | PoolExecutor)
        if isinstance(executor, str):
            if executor not in self.MAKERS:
                raise ValueError(f"There is no executor {executor!r}. {listed('There are', self.MAKERS, executor)}")
        elif executor is not None and not isinstance(executor, Executor | concurrent.futures.Executor):
            raise TypeError(
                f"An executor is one of {', '.join(map(repr, self.MAKERS))}, an executor of "
                f"millstream.executors or of concurrent.futures, not {executor!r}."
            )

    def get(self, executor: AnyExecutor = None) -> Executor:
        """Return the executor for the option of a task; None is the flow's default."""
        spec = self._default if executor is None else executor
        if isinstance(spec, Executor):
            return spec
        key = spec if isinstance(spec, str) else id(spec)
        with self._lock:
            made = self._made.get(key)
            if made is None:
                made = self.MAKERS[spec](self._max_workers) if isinstance(spec, str) else PoolExecutor(spec)
                self._made[key] = made
            return made

    def of(self, task: Task[..., Any]) -> Executor:
        """Return the executor that calls a task.

        Raises:
            TypeError: it cannot give the task the resources that this needs.
        """
        executor = self.get(task.executor)
        return executor if task.resources is None else executor.requiring(task.resources)

    def name_for(self, task: Task[..., Any], is_async: bool) -> str:
        """Return what the executor that calls a task is called, such as ``thread`` or ``process``; make none."""
        spec = self._default if task.executor is None else task.executor
        if isinstance(spec, str):
            name, remote = spec, spec == "process"
        else:
            name = name_of_class(type(spec))
            remote = spec.remote if isinstance(spec, Executor) else is_process_pool(spec)
        # As ``registry.is_elsewhere``: coroutines are awaited here, unless an executor of processes is named for them.
        return "asyncio" if is_async and not (remote and task.executor is not None) else name

    def close(self) -> None:
        """Shut down what was created here."""
        with self._lock:
            made, self._made = list(self._made.values()), {}
        for executor in made:
            executor.shutdown()


def name_of_class(executor: type) -> str:
    """Return what the executors of a class are called: ``thread pool`` for ``ThreadPoolExecutor``."""
    import re  # only for pictures, and not small

    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", executor.__name__)
    return " ".join(words).lower().removesuffix(" executor")
