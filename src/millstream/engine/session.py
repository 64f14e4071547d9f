"""Submitted calls: ``TaskHandle``, and ``Session``, the run that they belong to.

A submitted call is a task run that is called with the arguments it was given instead of by name. Its
handle is a ``concurrent.futures.Future``: it stays pending in the Future's sense until the call has
ended, is settled in the same locked step as the task run, and its callbacks are called after the lock.
May import: run, and everything below it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from concurrent.futures import Future
from contextvars import Context as Variables
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar, cast, overload

from millstream.context import Context
from millstream.engine.run import FlowRun
from millstream.engine.states import Call
from millstream.errors import FlowError, TaskCancelledError
from millstream.task import check_wait, current_run
from millstream.values import Status

if TYPE_CHECKING:
    from millstream.engine.lane import Item
    from millstream.engine.states import RunTerms
    from millstream.engine.stream import Chunks

R = TypeVar("R")


class CallShape(NamedTuple):
    """What must be known of a callable to submit calls of it; nothing in it refers to the callable."""

    name: str
    is_async: bool
    context_at: tuple[int | None, str] | None  #: where it takes the context; see ``Binding``
    defaults: Mapping[str, Any]  #: parameters that may be left out
    positional: tuple[str, ...]  #: names of those that are filled by position


FORGOTTEN = CallShape("", False, None, {}, ())


class Submitted(Call):
    """A submitted call as the driver sees it."""

    __slots__ = ("args", "digest", "error", "fn", "handle", "kwargs", "needs", "parent", "path", "shape", "variables")

    def __init__(
        self,
        fn: Callable[..., Any],
        shape: CallShape,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        handle: TaskHandle[Any],
    ) -> None:
        super().__init__()
        self.fn: Callable[..., Any] | None = fn
        self.shape, self.args, self.kwargs = shape, args, kwargs
        self.handle: TaskHandle[Any] | None = handle
        self.error: BaseException | None = None
        self.digest: str | None = None  #: of its arguments, in a durable run
        # In a durable run: the paths of its task run, of the one that has submitted it, and of what it needs.
        self.path = 0
        self.parent: int | None = None
        self.needs: list[int] = []
        self.variables: Variables | None = copy_context()

    @property
    def withdrawn(self) -> bool:  # type: ignore[override]
        """Whether it was cancelled (or has ended)."""
        return self.handle is None

    def arguments(self, context: Any) -> tuple[list[Any], dict[str, Any]]:
        """Return what it is called with: handles replaced by their values, and the context where it is taken."""
        args, kwargs, names = list(self.args), dict(self.kwargs), self.shape.positional
        if self.shape.context_at is not None:
            position, name = self.shape.context_at
            given = name in kwargs or (position is not None and isinstance(_at(args, position), Context))
            if not given:
                if position is None or position > len(args):
                    kwargs[name] = context
                else:
                    args.insert(position, context)
        # A handle that gave nothing leaves its parameter to the default.
        args = [_value(arg, self._default(names[n] if n < len(names) else "")) for n, arg in enumerate(args)]
        for name, arg in kwargs.items():
            kwargs[name] = _value(arg, self._default(name))
        return args, kwargs

    def _default(self, name: str) -> Any:
        return self.shape.defaults.get(name)

    def succeed(self, run: FlowRun, output: Any) -> None:
        """The call gave its output. Under the run's monitor, as ``fail``."""
        self._settle(run, output, None, Status.SUCCESS)

    def fail(self, run: FlowRun, error: BaseException, *, cancelled: bool) -> None:
        """The call has failed, was cancelled, or never starts."""
        status = Status.CANCELLED if cancelled else Status.FAILED
        if not cancelled and self.run is not None and self.run.status in (Status.SKIPPED, Status.ABANDONED):
            status = self.run.status
        self._settle(run, None, error, status)

    def _settle(self, run: FlowRun, output: Any, error: BaseException | None, status: Status) -> None:
        handle, self.handle, self.error = self.handle, None, error
        if handle is None:
            return  # it was cancelled: what comes late is dropped
        if run.blocked.waiting and handle in run.blocked.waiting:
            run.blocked.satisfy(handle, None)
        handle._settle(output, error, status)
        if handle._asking:  # somebody is about to know
            run.unasked.pop(handle, None)
            if run.keeper is not None:
                run.keeper.call_asked_for(handle)
        run.monitor.later.append((handle._tell, (run,)))

    def forget(self) -> None:
        """It has ended for good: let go of what it was called with, and of its task run."""
        self.args, self.kwargs, self.fn, self.variables, self.run = (), {}, None, None, None
        self.shape = FORGOTTEN


def _at(args: list[Any], position: int) -> Any:
    return args[position] if position < len(args) else None


class TaskHandle(Future[R], Generic[R]):
    """A submitted call: a ``concurrent.futures.Future``, which can be awaited as well.

    Attributes:
        name: the name of the task.
        id: the id of the task run, such as ``square#2``.
    """

    def __init__(self, run: FlowRun, name: str) -> None:
        super().__init__()
        self._run = run
        self.name = name
        self.id = name
        self.path = 0  #: of the task run
        self._call: Submitted | None = None
        self._ended: Status | None = None
        self._asking = 0  # how many wait for its outcome

    @property
    def status(self) -> Status:
        """PENDING, RUNNING, and then SUCCESS, FAILED, SKIPPED, CANCELLED or ABANDONED."""
        if self._ended is not None:
            return self._ended
        item = None if self._call is None else self._call.run
        return Status.PENDING if item is None or item.status is not Status.RUNNING else Status.RUNNING

    def result(self, timeout: float | None = None) -> R:
        """Wait for the end of the call; return its output.

        A task that waits here gives its place in the executor back.

        Args:
            timeout: wait for this many seconds at the longest; the call goes on.

        Raises:
            TimeoutError: it has not ended in time.
            TaskCancelledError: it was cancelled.
            DependencyFailedError: something that it depends on has failed.
            DeadlockError: it can never end, since it waits for the one who asks.
            Exception: what failed, as the function raised it.
        """
        error = self.exception(timeout)
        if error is not None:
            try:
                raise error
            finally:
                del self, error  # no circle between the error and the frame that raises it
        return cast(R, self._result)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end of the call; return what it raised, or None.

        Raises:
            TimeoutError, TaskCancelledError, DeadlockError: as ``result``.
        """
        self._ask(1)
        try:
            if not self.wait(timeout):
                raise TimeoutError(f"Call {self.id} has not ended within {timeout:g} s.")
        finally:
            self._ask(-1)
        self._run.asked_for(self)
        if self.cancelled():
            raise TaskCancelledError(self.id)
        return super().exception(0)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the call, without raising what failed; return whether it has ended.

        Args:
            timeout: seconds; None waits without limit.
        """
        check_wait(timeout, f"call {self.id}")
        if not self.done():
            self._run.wait_for(self, timeout)
        return self.done()

    def cancel(self) -> bool:
        """Cancel the call: one that waits never starts, one that runs is told. It has ended when this returns.

        Returns:
            False when it had ended in another way before.
        """
        if self.done():
            return self.cancelled()
        with self._run.monitor:
            if self._call is not None and not self.done():
                self._run.cancel_call(self._call)
        return self.cancelled()

    def __await__(self) -> Generator[Any, None, R]:
        return self._await().__await__()

    async def _await(self) -> R:
        self._ask(1)
        try:
            if not self.done():
                await self._run.wait_for_async(self)
        finally:
            self._ask(-1)
        return self.result(0)

    def __repr__(self) -> str:
        return f"<TaskHandle {self.id}: {self.status}>"

    def _ask(self, more: int) -> None:
        """Somebody begins, or stops, to wait for the outcome."""
        with self._condition:
            self._asking += more

    def _output(self, default: Any) -> Any:
        """Return what it gave, ``default`` if it did not succeed. It has ended."""
        return self._result if self._ended is Status.SUCCESS else default

    # ---- the engine's side ----------------------------------------------------------------------

    def _settle(self, output: Any, error: BaseException | None, status: Status) -> None:
        """End the future, without calling anybody. As ``set_result`` does, which would call callbacks at once."""
        from concurrent.futures import _base

        with self._condition:
            self._ended = status
            if error is None:
                self._result, self._state = output, _base.FINISHED
            elif status is Status.CANCELLED:
                self._state = _base.CANCELLED_AND_NOTIFIED
            else:
                self._exception, self._state = error, _base.FINISHED
            for waiter in self._waiters:
                if error is None:
                    waiter.add_result(self)
                elif status is Status.CANCELLED:
                    waiter.add_cancelled(self)
                else:
                    waiter.add_exception(self)
            self._condition.notify_all()

    def _tell(self, run: FlowRun) -> None:
        """Call the callbacks; no lock held."""
        run.nudge()
        for callback in self._done_callbacks:  # type: ignore[attr-defined]  # of Future, which would stop at SystemExit
            try:
                callback(self)
            except BaseException as error:
                run.plan.teller.log_failure(run.id, f"{self.id} (a callback)", error)


def call_invoke(item: Item, context: Any) -> Any:
    """Call what was submitted: the ``invoke`` of a task of submitted calls."""
    call: Submitted = item.extra
    fn, variables = call.fn, call.variables
    if call.withdrawn or fn is None or variables is None:
        raise TaskCancelledError(item.id)
    variables = item.variables = variables.copy()  # of this attempt alone
    args, kwargs = call.arguments(context)
    variables.run(current_run.set, item)
    try:
        return variables.run(fn, *args, **kwargs)
    finally:  # the traceback of an error keeps this frame: no circle with the call, which keeps the error
        del item, call, args, kwargs, variables, context, fn


def submit_call(
    run: FlowRun,
    terms: RunTerms,
    shape: CallShape,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    depends_on: Iterable[TaskHandle[Any]],
    call_key: str | None = None,
) -> TaskHandle[Any]:
    """Submit a call to a run; it starts as soon as it may.

    Raises:
        TypeError: ``depends_on`` has something that is no handle.
        FlowError: the run has ended, or a handle belongs to another one.
        CheckpointError: the run is durable, and the arguments cannot be kept; or it goes on, and in its place
            another call had been submitted.
    """
    if call_key is not None and not isinstance(call_key, str):
        raise TypeError(f"The call_key of a call is a string, not {call_key!r}.")
    needs = _calls_in(run, (*args, *kwargs.values()))
    if isinstance(depends_on, Future | str) or not isinstance(depends_on, Iterable):
        raise TypeError(f"depends_on of a submitted call is a list of handles, not {depends_on!r}.")
    for each in depends_on:
        if not isinstance(each, TaskHandle):
            raise TypeError(f"depends_on of a submitted call takes handles, not {each!r}.")
        needs[_call_of(run, each)] = None
    item: Any = current_run.get()
    parent = item if item is not None and item.run is run else None
    handle: TaskHandle[Any] = TaskHandle(run, shape.name)
    call = Submitted(fn, shape, args, kwargs, handle)
    handle._call = call
    if run.journal is not None:
        call.digest = run.journal.digest(shape.name, as_key(args), as_key(dict(kwargs)), call_key)
    with run.monitor:
        handle.path = run.submit_call(shape.name, call, terms, needs, parent, call_key)
        handle.id = call.id
    run.work_on(handle)
    return handle


def as_key(value: Any) -> Any:
    """Return arguments with what stands for a handle in its place, and for the context."""
    if isinstance(value, TaskHandle):
        return ("handle", value.path)
    if isinstance(value, Context):
        return "context"
    if type(value) in (list, tuple):
        return type(value)(map(as_key, value))
    if type(value) is dict:
        return {key: as_key(each) for key, each in value.items()}
    return value


def _calls_in(run: FlowRun, values: Iterable[Any]) -> dict[Call, None]:
    """Return the calls whose handles are among some arguments, or in a list, tuple or dict there."""
    calls: dict[Call, None] = {}
    for value in values:
        for part in _parts(value):
            if isinstance(part, TaskHandle):
                calls[_call_of(run, part)] = None
    return calls


def _parts(value: Any) -> Iterable[Any]:
    if type(value) in (list, tuple):
        return value  # type: ignore[no-any-return]
    return value.values() if type(value) is dict else (value,)


def _call_of(run: FlowRun, handle: TaskHandle[Any]) -> Call:
    if handle._run is not run or handle._call is None:
        raise FlowError(
            f"The handle of {handle.id} belongs to run {handle._run.id}, not to {run.id}: pass its result() instead."
        )
    return handle._call


def _value(arg: Any, default: Any) -> Any:
    """Return an argument with handles replaced by their values, also in a list, tuple or dict."""
    if isinstance(arg, TaskHandle):
        return arg._output(default)
    if type(arg) not in (list, tuple, dict) or not any(isinstance(part, TaskHandle) for part in _parts(arg)):
        return arg  # the very object that was given
    if type(arg) is dict:
        return {key: part._output(None) if isinstance(part, TaskHandle) else part for key, part in arg.items()}
    return type(arg)(part._output(None) if isinstance(part, TaskHandle) else part for part in arg)


class Session(FlowRun):
    """A run to which calls are submitted; made by ``flow.session()``, and used in a ``with`` block.

    Leaving the block waits for the calls. An exception in the block cancels them. A failure that nobody
    asked for (by ``result``, ``exception`` or ``await``) is raised at its end, unless the flow's ``on_error``
    is ``"continue"`` or ``"log"``.
    """

    submitter: Callable[..., TaskHandle[Any]]

    def begin_session(self, submitter: Callable[..., TaskHandle[Any]], timeout: float | None) -> None:
        """Open it. ``submitter`` takes the session, the callable, its arguments and what it depends on."""
        self.submitter = submitter
        self.is_session = self.open = True
        self.owner = threading.current_thread()
        self.begin((), timeout)

    @overload
    def submit(
        self,
        fn: Callable[..., Coroutine[Any, Any, R]],
        /,
        *args: Any,
        depends_on: Iterable[TaskHandle[Any]] = (),
        call_key: str | None = None,
        **kwargs: Any,
    ) -> TaskHandle[R]: ...
    @overload
    def submit(
        self,
        fn: Callable[..., R],
        /,
        *args: Any,
        depends_on: Iterable[TaskHandle[Any]] = (),
        call_key: str | None = None,
        **kwargs: Any,
    ) -> TaskHandle[R]: ...
    def submit(
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,
        depends_on: Iterable[TaskHandle[Any]] = (),
        call_key: str | None = None,
        **kwargs: Any,
    ) -> TaskHandle[Any]:
        """Submit a call of ``fn``; see ``Flow.submit``."""
        return self.submitter(self, fn, args, kwargs, depends_on, call_key)

    def close(self) -> None:
        """Wait for the calls, and raise the failures that nobody asked for.

        Raises:
            Exception: one failure as itself, several in an ``ExceptionGroup``.
        """
        self.shut()
        try:
            self.wait()
        except BaseException:  # Ctrl-C
            self.interrupt()
            raise
        self._raise_unasked()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; see ``FlowRun.wait``.

        Raises:
            FlowError: the session is open, and this is the thread that has opened it.
        """
        self._refuse_open("wait for")
        return super().wait(timeout)

    def stream(self) -> Chunks:
        """Return an iterator of chunks; see ``FlowRun.stream``.

        Raises:
            FlowError: the session is open, and this is the thread that has opened it.
        """
        self._refuse_open("stream")
        return super().stream()

    def _refuse_open(self, what: str) -> None:
        if self.open and threading.current_thread() is self.owner:
            raise FlowError(
                f"Session {self.id} ends with its with block, so who has opened it cannot {what} it before: leave the "
                "block, or wait for single calls."
            )

    def _raise_unasked(self) -> None:
        """Raise what ended the session, or the failures that nobody asked for."""
        error = self.take_error()
        unasked = list({id(each): each for each in self.unasked.values()}.values())  # several may pass on one
        self.unasked = {}
        if error is None and len(unasked) == 1:
            error = unasked[0]
        elif error is None and unasked:
            failures = [each for each in unasked if isinstance(each, Exception)]
            error = ExceptionGroup(f"{len(failures)} calls failed in run {self.id}", failures)
        self._error = error  # for whoever asks the session for its result
        try:
            if error is not None:
                raise error
        finally:
            del self, unasked, error  # no circle between the error and the frame that raises it

    def shut(self) -> None:
        """No calls are submitted from outside any more."""
        with self.monitor:
            if self.open:
                self.open = False
                self._after()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.cancel()
            self.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.shut()
        else:
            self.cancel()
        try:
            await self.ended()
        except BaseException:  # the awaiter was cancelled
            self.cancel()
            raise
        if kind is None:
            self._raise_unasked()
