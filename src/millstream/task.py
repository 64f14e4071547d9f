"""``Task``, ``TaskBase``, ``@task`` and ``current_task``: what a task is, and what it may know of itself.

A task is a callable with options; a flow holds tasks by name, and a run makes task runs of them.
Nothing here knows how a task is run. May import: values, errors.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import ContextVar
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    NoReturn,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from millstream.errors import FlowError, TaskCancelledError

if TYPE_CHECKING:
    from concurrent.futures import Executor as FuturesExecutor

    from millstream.engine.session import TaskHandle
    from millstream.executors.base import Executor
    from millstream.policies import Backoff, Retry, RetryOn
    from millstream.values import StreamChunk

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

OnDepFailure: TypeAlias = Literal["fail", "skip", "run-anyway"]
#: How one task names another: by its name, as the function that was registered, or as a ``Task``.
TaskName: TypeAlias = "str | Callable[..., Any]"

#: Set on a function that stands for a plain value (``flow.override``).
CONSTANT = "__millstream_constant__"

#: Names that mean something to binding, so that no task may be inferred from a parameter of them.
RESERVED_PARAMETERS = frozenset({"ctx", "context", "inputs", "payload", "upstream", "item", "index"})


class CurrentRun(Protocol):
    """What the engine puts into ``current_run`` while it calls a task."""

    @property
    def id(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def given_up(self) -> bool: ...
    @property
    def cancelled(self) -> bool: ...
    @property
    def deadline(self) -> float | None: ...
    def now(self) -> float: ...
    def emit(self, chunk: StreamChunk) -> None: ...
    def progress(self, done: float, total: float | None) -> None: ...
    def submit(
        self, fn: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], depends_on: Any, call_key: str | None
    ) -> TaskHandle[Any]: ...


#: The task run whose code is executing; None outside of task code.
current_run: ContextVar[CurrentRun | None] = ContextVar("millstream.current_run", default=None)

#: What ``task.submit`` outside of task code submits to: the flow of the innermost ``with flow:``.
current_flow: ContextVar[Any] = ContextVar("millstream.current_flow", default=None)


class CurrentTask:
    """What a task may know of its own task run; see ``current_task``."""

    __slots__ = ("_run",)

    def __init__(self, run: CurrentRun | None) -> None:
        self._run = run

    @property
    def name(self) -> str:
        """The name of the task; empty outside a run."""
        return "" if self._run is None else self._run.name

    @property
    def id(self) -> str:
        """The id of the task run, such as ``count#2``; empty outside a run."""
        return "" if self._run is None else self._run.id

    @property
    def key(self) -> str:
        """An idempotency key: run id and the path of requests that led here.

        It does not depend on timing: the same run of the same code gives a task run the same key.
        """
        return "" if self._run is None else self._run.key

    @property
    def run_id(self) -> str:
        """The id of the flow run; empty outside a run."""
        return "" if self._run is None else self._run.run_id

    @property
    def attempt(self) -> int:
        """The number of this attempt, 1 for the first."""
        return 1 if self._run is None else self._run.attempt

    @property
    def deadline(self) -> float | None:
        """The instant on the run's clock at which time is up, or None without a limit."""
        return None if self._run is None else self._run.deadline

    def time_remaining(self) -> float | None:
        """Return the seconds left for this attempt, at least 0.0; None without a limit."""
        if self._run is None or self._run.deadline is None:
            return None
        return max(0.0, self._run.deadline - self._run.now())

    @property
    def cancelled(self) -> bool:
        """Whether the task was told to stop: cancelled, timed out, or its run is ending."""
        return self._run is not None and self._run.cancelled

    def raise_if_cancelled(self) -> None:
        """Raise ``TaskCancelledError`` when the task was told to stop."""
        if self._run is not None and self._run.cancelled:
            raise TaskCancelledError(self._run.id)

    def progress(self, done: float, total: float | None = None) -> None:
        """Say how far the task has got: hooks are told by a ``TaskProgressEvent``. Outside a run, nobody is.

        Args:
            done: how much is done, in units of your choice.
            total: how much there is; None when that is not known.

        Raises:
            TypeError: no number.
            ValueError: a negative one, or one that is none (NaN).
        """
        for amount in (done,) if total is None else (done, total):
            if isinstance(amount, bool) or not isinstance(amount, int | float):
                raise TypeError(f"progress(done, total) takes numbers, not {amount!r}.")
            if not amount >= 0:
                raise ValueError(f"progress(done, total) takes numbers from 0 on, not {amount!r}.")
        if self._run is not None:
            self._run.progress(done, total)

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry ``run_id``, ``task`` and ``attempt``."""
        facts = {"run_id": self.run_id, "task": self.id, "attempt": self.attempt}
        return logging.LoggerAdapter(logging.getLogger("millstream.task"), facts)

    def __repr__(self) -> str:
        return f"<CurrentTask {self.id or 'outside a run'}>"


def current_task() -> CurrentTask:
    """Return the task run that this code belongs to.

    It works in threads and coroutines, and in whatever they start with a copy of their context
    variables. Outside a run it is inert: empty names, no limits, never cancelled.
    """
    return CurrentTask(current_run.get())


class TaskOptions(TypedDict, total=False):
    """The options of a task, for type checkers; ``Options`` says what they mean."""

    executor: str | Executor | FuturesExecutor | None
    timeout: float | None
    description: str | None
    depends_on: Iterable[TaskName] | None
    routes: Iterable[TaskName] | None
    on_dep_failure: OnDepFailure
    for_each: str | None
    inputs: str | Mapping[str, Any] | None
    outputs: str | Mapping[str, str] | None
    retry: Retry | None
    retries: int | None
    max_attempts: int | None
    backoff: Backoff | None
    backoff_base: float | None
    backoff_max: float | None
    retry_on: RetryOn | None
    max_parallel: int | None
    resources: Mapping[str, float] | None
    uses: Iterable[str]
    priority: int
    version: str | None


class Options:
    """The options of a task, checked where they enter; those that are not given have the values below."""

    #: Where this task is called: ``"thread"``, ``"process"``, ``"asyncio"``, ``"inline"`` or an executor
    #: object. None: where the flow calls its tasks.
    executor: str | Executor | FuturesExecutor | None = None
    #: Seconds that one attempt may take.
    timeout: float | None = None
    #: One sentence for people.
    description: str | None = None
    #: Tasks that must finish before it starts, as names or functions. None: those whose names its
    #: required parameters bear; ``[]``: none.
    depends_on: tuple[TaskName, ...] | None = None
    #: Tasks that it may choose to run next, as names or functions.
    routes: tuple[TaskName, ...] | None = None
    #: What happens to it when something that it depends on has failed.
    on_dep_failure: OnDepFailure = "fail"
    #: The name of a dependency, or a path such as ``"$ctx.rows"``: it is called for each item of that,
    #: and its output is the list of what it returned.
    for_each: str | None = None
    #: What its parameters are filled with, by their names: any values, in which texts such as ``"$ctx.rows.0"`` or
    #: ``"Hello {{ ctx.name }}"`` stand for what they find when it is called. One such text alone is its ``payload``.
    inputs: str | Mapping[str, Any] | None = None
    #: Where in the context its output is put, too: a path such as ``"$ctx.data.rows"``, or a path for each of
    #: several keys of its output.
    outputs: str | Mapping[str, str] | None = None
    #: How often it is tried, and how long it waits in between. In short: ``retries`` (attempts after the
    #: first) or ``max_attempts``, ``backoff``, ``backoff_base`` and ``backoff_max`` (seconds), ``retry_on``.
    retry: Retry | None = None
    #: Task runs of it that are under way at once, in one run of the flow; with ``for_each``, items.
    max_parallel: int | None = None
    #: Names of limits of the flow that each attempt holds.
    uses: tuple[str, ...] = ()
    #: What each of its calls needs of the machines that it may run on, for executors of clusters: of Ray
    #: ``num_cpus``, ``num_gpus``, ``memory`` (bytes) and resources of yours; of Dask resources of its workers.
    resources: Mapping[str, float] | None = None
    #: A higher one starts earlier.
    priority: int = 0
    #: What a durable run compares when it goes on, instead of the code of the task.
    version: str | None = None

    #: Nothing was given but ``depends_on``, ``description`` and ``version``: its runs are treated as any task's.
    plain: bool
    #: ``depends_on``, if it has nothing but names and is all that the task depends on.
    needs: tuple[str, ...] | None = None

    KEPT: ClassVar[tuple[str, ...]] = (
        "executor", "timeout", "description", "depends_on", "routes", "on_dep_failure", "for_each", "inputs",
        "outputs", "retry", "max_parallel", "uses", "resources", "priority", "version",
    )  # fmt: skip
    #: Options that are short for a ``Retry``.
    SHORT: ClassVar[tuple[str, ...]] = (
        "retries", "max_attempts", "backoff", "backoff_base", "backoff_max", "retry_on",
    )  # fmt: skip
    NAMES: ClassVar[tuple[str, ...]] = (*KEPT, *SHORT)
    #: Options of other libraries, and ours for them.
    ALIASES: ClassVar[Mapping[str, str]] = {
        "backend": "executor", "timeout_s": "timeout", "deps": "depends_on", "limits": "uses",
    }  # fmt: skip

    def _take(self, task: str, option: str, value: Any, short: dict[str, Any]) -> None:
        """Check and keep one option of the task of that name. None is the same as to leave it out."""
        if option in self.SHORT or option == "retry":
            short[option] = value
        elif option in CHECKS:
            if value is not None:
                setattr(self, option, CHECKS[option](value, f"{option} of task {task}"))
        elif option != "executor":
            refuse_option(f"Task {task}", option, self.NAMES, self.ALIASES)
        elif value is not None:
            self.executor = value  # the flow knows which there are
        if option not in PLAIN and value is not None:
            self.plain = False

    def given(self) -> dict[str, Any]:
        """Return the options as keyword arguments, those of retrying as one ``retry``."""
        return {name: getattr(self, name) for name in self.KEPT}


#: Options that say nothing of how a task's runs are treated.
PLAIN = frozenset({"depends_on", "description", "version"})


def _check_timeout(value: Any, what: str) -> Any:
    check_limit(value, what.removeprefix("timeout of "))
    return value


def _check_text(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        raise TypeError(f"The {what} is a string, not {value!r}.")
    return value


def _check_policy(value: Any, what: str) -> Any:
    if value not in ("fail", "skip", "run-anyway"):
        raise ValueError(f"The {what} is 'fail', 'skip' or 'run-anyway', not {value!r}.")
    return value


def _check_for_each(value: Any, what: str) -> Any:
    if not isinstance(value, str) or not value:
        raise TypeError(f"The {what} is a path such as '$ctx.rows' or the name of a dependency, not {value!r}.")
    if value.startswith("$"):
        from millstream.config.expressions import compile_path  # only for tasks that have some

        compile_path(value, what)
    return value


def _check_inputs(value: Any, what: str) -> Any:
    if not isinstance(value, str | Mapping):
        raise TypeError(f"The {what} are a mapping of names to values, or one text such as '$ctx.rows', not {value!r}.")
    from millstream.config.expressions import compile_value  # only for tasks that have some

    for name in value if isinstance(value, Mapping) else ():
        if not isinstance(name, str):
            raise TypeError(f"The {what} have names that are strings, and {name!r} is none.")
    compile_value(value, what)
    return value


def _check_outputs(value: Any, what: str) -> Any:
    from millstream.config.expressions import Outputs

    Outputs(value, what)
    return value


class Task(Options, Generic[P, R]):
    """A named callable with its options. Calling it calls the function, without any engine.

    Attributes:
        name: what it is called in a flow.
        fn: the callable.

    Its options are attributes as well; ``Options`` says what they mean.

    Raises:
        TypeError, ValueError: a bad name, callable or value; an unknown option is refused with the nearest of ours.
    """

    def __init__(self, name: str, fn: Callable[P, R], **options: Unpack[TaskOptions]) -> None:
        check_task(name, fn)
        self.name = name
        self.fn = fn
        self.plain = True
        short: dict[str, Any] = {}
        for option, value in options.items():
            self._take(name, option, value, short)
        if self.depends_on is not None:
            self.needs = only_names(self.depends_on)
        if short or not self.plain:
            self._complete(short)

    def _complete(self, short: dict[str, Any]) -> None:
        """All options are there, but for those that are short for a ``Retry``."""
        if short:
            from millstream.policies import Retry

            self.retry = Retry.of(self.name, **short)
        if self.for_each is not None:
            self.needs = None  # that may be one, too
            if isinstance(self.inputs, str) or (self.inputs is not None and "payload" in self.inputs):
                raise ValueError(f"Task {self.name} has a payload in its inputs, and with for_each that is the item.")
        if self.executor == "thread":
            from millstream.binding import is_async  # only then, for it is large

            if is_async(self.fn):
                raise TypeError(
                    f"Task {self.name} is async, and executor={self.executor!r} cannot await it: "
                    "leave executor out, and an event loop does."
                )

    @property
    def origin(self) -> Task[..., Any]:
        """The task that this is a view of (see ``flow[name]``); in general, itself."""
        return self

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function as it is."""
        return self.fn(*args, **kwargs)

    @overload
    def submit(
        self: Task[..., Coroutine[Any, Any, T]],
        /,
        *args: Any,
        depends_on: Iterable[TaskHandle[Any]] = (),
        call_key: str | None = None,
        **kwargs: Any,
    ) -> TaskHandle[T]: ...
    @overload
    def submit(
        self,
        /,
        *args: Any,
        depends_on: Iterable[TaskHandle[Any]] = (),
        call_key: str | None = None,
        **kwargs: Any,
    ) -> TaskHandle[R]: ...
    def submit(
        self,
        /,
        *args: Any,
        depends_on: Iterable[TaskHandle[Any]] = (),
        call_key: str | None = None,
        **kwargs: Any,
    ) -> TaskHandle[Any]:
        """Submit a call: to the run whose task this is called in, or to the flow of the ``with`` block around.

        Args:
            args: what the function is called with; a handle is replaced by the value of its call.
            depends_on: further calls that must have ended before.
            call_key: names the call for a resume; needs a store.
            kwargs: as ``args``.

        Raises:
            FlowError: there is no run to submit to, or a handle belongs to another one.
        """
        run = current_run.get()
        flow, entered_in = current_flow.get() or (None, None)
        if run is not None and (flow is None or entered_in is not run):  # no block is further inside than the task
            return run.submit(self, args, kwargs, depends_on, call_key)
        if flow is None:
            raise FlowError(
                f"Task {self.name} can be submitted inside 'with Flow() as flow:' or inside a task; elsewhere use "
                "session.submit(task, ...)."
            )
        return flow.submit(self, *args, depends_on=depends_on, call_key=call_key, **kwargs)  # type: ignore[no-any-return]

    def __reduce__(self) -> Any:
        """A task that was made by ``@task`` travels by the name of its function."""
        return getattr(self, "__qualname__", None) or super().__reduce__()

    def __repr__(self) -> str:
        return f"<Task {self.name}>"


@overload
def task(fn: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(name: str | None = None, **options: Unpack[TaskOptions]) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def task(name: Any = None, **options: Any) -> Any:
    """Make a ``Task`` of a function, at module level, for ``flow.add`` and ``task.submit``.

    Bare (``@task``), with a name (``@task("load")``) or with options (``@task(timeout=5)``); see
    ``Options`` for these. The name is the function's unless one is given.

    Raises:
        TypeError, ValueError: as ``Task``.
    """
    if name is not None and not isinstance(name, str):
        return _wrapping(Task(name_of(name), name, **options))

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        return _wrapping(Task(name_of(function) if name is None else name, function, **options))

    return decorate


def _wrapping(made: Task[P, R]) -> Task[P, R]:
    """Give a task the name, the docstring and the signature of its function."""
    functools.update_wrapper(made, made.fn, updated=())
    return made


class TaskBase:
    """A task written as a class: options are class attributes, ``run`` is the callable.

    Making an instance gives a ``Task``::

        class FetchUser(TaskBase):
            name = "fetch-user"
            timeout = 5.0

            def run(self, user_id: int) -> dict: ...

        fetch_user = FetchUser()

    Raises:
        TypeError: ``run`` is missing, the constructor is given arguments, or an attribute looks like
            a misspelt option (when the class is made).
    """

    name: ClassVar[str | None] = None
    run: Callable[..., Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for attribute in vars(cls):
            ours = Options.ALIASES.get(attribute) or nearest(attribute, ("name", *Options.NAMES), 0.8) or attribute
            if not attribute.startswith("_") and attribute != "run" and ours != attribute:
                raise TypeError(
                    f"{cls.__name__}.{attribute} looks like the option {ours}: rename it to one or the other."
                )

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            raise TypeError(f"{cls.__name__}() takes no arguments: what varies is given to the task as inputs.")
        self = super().__new__(cls)
        if not callable(getattr(self, "run", None)):
            raise TypeError(f"{cls.__name__} needs a method run.")
        options = {name: _as_given(getattr(cls, name)) for name in Options.NAMES if hasattr(cls, name)}
        made: Task[..., Any] = Task(cls.name or cls.__name__, self.run, **options)
        return _wrapping(made)

    def __reduce__(self) -> Any:
        return object.__new__, (type(self),), self.__dict__ or None


def _as_given(value: Any) -> Any:
    """Undo what attribute access makes of an option: ``retry_on = (A, B)`` is a tuple, a function is a function."""
    return getattr(value, "__func__", value)


def task_names(names: Any, what: str) -> tuple[TaskName, ...]:
    """Return a checked list of names and functions.

    Raises:
        TypeError: it is no list, or has something else in it.
    """
    if type(names) not in (list, tuple) and (
        isinstance(names, str | bytes | Mapping) or callable(names) or not isinstance(names, Iterable)
    ):
        raise TypeError(f"{what} is a list of names or functions, not {names!r}.")
    found = tuple(names)
    for name in found:
        if type(name) is not str and not isinstance(name, str) and not callable(name):
            raise TypeError(f"{what} is a list of names or functions, and has {name!r}.")
    return found


def limit_names(names: Any, what: str) -> tuple[str, ...]:
    """Return a checked list of names of limits.

    Raises:
        TypeError: it is no list of strings.
    """
    if isinstance(names, str | bytes | Mapping) or not isinstance(names, Iterable):
        raise TypeError(f"{what} is a list of names of limits, not {names!r}.")
    found = tuple(names)
    for name in found:
        if not isinstance(name, str):
            raise TypeError(f"{what} is a list of names of limits, and has {name!r}.")
    return tuple(dict.fromkeys(found))


def check_resources(resources: Any, what: str) -> dict[str, float]:
    """Return checked amounts of resources by name.

    Raises:
        TypeError: it is no mapping of names to numbers.
        ValueError: an amount is not more than 0.
    """
    if not isinstance(resources, Mapping):
        raise TypeError(f"The {what} are a mapping of names to amounts, not {resources!r}.")
    for name, amount in resources.items():
        if not isinstance(name, str) or isinstance(amount, bool) or not isinstance(amount, int | float):
            raise TypeError(f"The {what} are a mapping of names to amounts, and have {name!r}: {amount!r}.")
        if not amount > 0:
            raise ValueError(f"The {what} are amounts above 0, and have {name!r}: {amount!r}.")
    return dict(resources)


def check_priority(priority: Any, what: str) -> int:
    """Refuse a priority that is no whole number.

    Raises:
        TypeError: it is none.
    """
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise TypeError(f"The {what} is a whole number, not {priority!r}.")
    return priority


def check_count(value: object, what: str) -> int:
    """Refuse a limit that is no whole number from 1 on.

    Raises:
        TypeError: it is no int.
        ValueError: it is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} is a whole number, not {value!r}.")
    if value < 1:
        raise ValueError(f"{what} is at least 1, not {value}.")
    return value


#: How the value of each option is checked; it is given the value, and what to call it in an error.
CHECKS: Mapping[str, Callable[[Any, str], Any]] = {
    "timeout": _check_timeout,
    "description": _check_text,
    "depends_on": task_names,
    "routes": task_names,
    "on_dep_failure": _check_policy,
    "for_each": _check_for_each,
    "inputs": _check_inputs,
    "outputs": _check_outputs,
    "max_parallel": check_count,
    "uses": limit_names,
    "resources": check_resources,
    "priority": check_priority,
    "version": _check_text,
}


def only_names(names: Any) -> tuple[str, ...] | None:
    """Return a list of names, each once; None if it is no list, or has something else in it."""
    if type(names) is not list and type(names) is not tuple:
        return None
    for name in names:
        if type(name) is not str:
            return None
    return tuple(names) if len(set(names)) == len(names) else tuple(dict.fromkeys(names))


def check_task(name: object, fn: object) -> None:
    """Refuse what cannot be the name of a task, or its callable.

    Raises:
        TypeError, ValueError: as ``check_name``; it cannot be called.
    """
    if type(name) is not str or not name or "#" in name:
        check_name(name)
    if not callable(fn):
        raise TypeError(f"Task {name} needs a callable, not {fn!r}.")


def name_of(fn: Any) -> str:
    """Return the name that a callable gives its task: its own, or its class's."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__name__", None) or type(fn).__name__
    return cast(str, name).strip("<>")


def check_name(name: object) -> None:
    """Refuse what cannot be the name of a task.

    Raises:
        TypeError: it is no string.
        ValueError: it is empty, or has a ``#`` (which numbers task runs).
    """
    if not isinstance(name, str):
        raise TypeError(f"The name of a task is a string, not {name!r}.")
    if not name:
        raise ValueError("The name of a task is empty: give it one.")
    if "#" in name:
        raise ValueError(f"Task name {name!r} has a '#', which numbers the runs of a task: leave it out.")


def check_limit(timeout: object, what: str) -> None:
    """Refuse a time limit that is no positive number of seconds (None is no limit).

    Raises:
        TypeError: it is no number.
        ValueError: it is 0, negative, not a number, or beyond what a thread can wait.
    """
    check_wait(timeout, what)
    if timeout == 0:
        raise ValueError(f"The timeout of {what} is more than 0 seconds, not {timeout!r}.")


def check_wait(timeout: object, what: str) -> None:
    """Refuse a time to wait that is no number of seconds from 0 on (None waits without limit).

    Raises:
        TypeError: it is no number.
        ValueError: it is negative, not a number, or beyond what a thread can wait.
    """
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"The timeout of {what} is a number of seconds, not {timeout!r}.")
    if not 0 <= timeout <= threading.TIMEOUT_MAX:
        raise ValueError(f"The timeout of {what} is a positive number of seconds, not {timeout!r}.")


def nearest(word: str, known: tuple[str, ...], likeness: float) -> str | None:
    """Return the one of ``known`` that is most like ``word``, from a likeness (0 to 1) on."""
    from difflib import get_close_matches  # only for classes and errors, and not small

    near = get_close_matches(word, known, n=1, cutoff=likeness)
    return near[0] if near else None


def refuse_option(whose: str, option: str, known: tuple[str, ...], aliases: Mapping[str, str]) -> NoReturn:
    """Raise the ``TypeError`` for an unknown option, with the nearest of ours."""
    ours = aliases.get(option) or nearest(option, known, 0.5)
    mend = f"did you mean {ours}?" if ours else f"there are {', '.join(known)}."
    raise TypeError(f"{whose} has no option {option}: {mend}")
