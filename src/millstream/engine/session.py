"""Submitted calls: ``TaskHandle``, and ``Session``, the run that they belong to.

A submitted call is a task run that is called with the arguments it was given instead of by name. Its
handle is a ``concurrent.futures.Future``: it stays pending in the Future's sense until the call has
ended, is settled in the same locked step as the task run, and its callbacks are called after the lock.
May import: run, and everything below it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future
from contextvars import Context as Variables
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from millstream.engine.run import FlowRun
from millstream.engine.scheduler import Call
from millstream.errors import FlowError, TaskCancelledError
from millstream.task import check_wait, current_run
from millstream.values import Status

if TYPE_CHECKING:
    from millstream.binding import Binding
    from millstream.engine.lane import Item
    from millstream.engine.run import Planned

R = TypeVar("R")


class Submitted(Call):
    """A submitted call as the driver sees it."""

    __slots__ = ("args", "binding", "fn", "handle", "kwargs", "variables")

    def __init__(
        self,
        fn: Callable[..., Any],
        binding: Binding,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        handle: TaskHandle[Any],
    ) -> None:
        super().__init__()
        self.fn, self.binding, self.args, self.kwargs = fn, binding, args, kwargs
        self.handle: TaskHandle[Any] | None = handle
        self.variables: Variables = copy_context()

    @property
    def withdrawn(self) -> bool:
        """Whether it was cancelled (or has ended)."""
        return self.handle is None

    def leaves_out(self, name: str, arg: Any) -> bool:
        """Whether a keyword argument is left to its default: the call that was to give it did not succeed."""
        return isinstance(arg, TaskHandle) and arg.status is not Status.SUCCESS and self.binding.has_default(name)

    def succeed(self, run: FlowRun, output: Any) -> None:
        """The call gave its output. Under the run's monitor, as ``fail``."""
        self._settle(run, output, None)

    def fail(self, run: FlowRun, error: BaseException) -> None:
        """The call has failed, was cancelled, or never starts."""
        self._settle(run, None, error)

    def _settle(self, run: FlowRun, output: Any, error: BaseException | None) -> None:
        handle, self.handle = self.handle, None
        self.args, self.kwargs = (), {}
        if handle is None:
            return  # it was cancelled: what comes late is dropped
        if run.blocked.waiting and handle in run.blocked.waiting:
            run.blocked.satisfy(handle, None)
        handle._settle(output, error)
        run.monitor.later.append((handle._tell, ()))


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
        self._call: Submitted | None = None
        self._ended: Status | None = None

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
        return self._result  # type: ignore[attr-defined,no-any-return]  # of Future

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end of the call; return what it raised, or None.

        Raises:
            TimeoutError, TaskCancelledError, DeadlockError: as ``result``.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"Call {self.id} has not ended within {timeout:g} s.")
        self._asked()
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
            False when it had ended before.
        """
        if self.done():
            return False
        with self._run.monitor:
            if self._call is not None and not self.done():
                self._run.cancel_call(self._call)
        return self.cancelled()

    def __await__(self) -> Generator[Any, None, R]:
        return self._await().__await__()

    async def _await(self) -> R:
        if not self.done():
            await self._run.wait_for_async(self)
        return self.result(0)

    def __repr__(self) -> str:
        return f"<TaskHandle {self.id}: {self.status}>"

    def _output(self) -> R | None:
        """Return what it gave, None if it did not succeed. It has ended."""
        return self._result if self._ended is Status.SUCCESS else None  # type: ignore[attr-defined]

    # ---- the engine's side ----------------------------------------------------------------------

    def _settle(self, output: Any, error: BaseException | None) -> None:
        """End the future, without calling anybody. As ``set_result`` does, which would call callbacks at once."""
        from concurrent.futures import _base

        call = self._call
        cancelled = isinstance(error, TaskCancelledError)
        with self._condition:  # type: ignore[attr-defined]
            if error is None:
                self._ended, self._result, self._state = Status.SUCCESS, output, _base.FINISHED
            elif cancelled:
                self._ended, self._state = Status.CANCELLED, _base.CANCELLED_AND_NOTIFIED
            else:
                self._ended, self._exception, self._state = Status.FAILED, error, _base.FINISHED
            if call is not None and call.run is not None and call.run.status in (Status.SKIPPED, Status.ABANDONED):
                self._ended = call.run.status
            for waiter in self._waiters:  # type: ignore[attr-defined]
                if error is None:
                    waiter.add_result(self)
                elif cancelled:
                    waiter.add_cancelled(self)
                else:
                    waiter.add_exception(self)
            self._condition.notify_all()  # type: ignore[attr-defined]

    def _tell(self) -> None:
        """Call the callbacks; no lock held."""
        self._invoke_callbacks()  # type: ignore[attr-defined]

    def _asked(self) -> None:
        """Somebody knows of the failure, if it is one."""
        self._run.unasked.pop(self, None)


def call_invoke(item: Item, context: Any) -> Any:
    """Call what was submitted: the ``invoke`` of a task of submitted calls."""
    call: Submitted = item.extra
    if call.withdrawn:
        raise TaskCancelledError(item.id)
    args = tuple(map(_value, call.args))
    kwargs = {name: _value(arg) for name, arg in call.kwargs.items() if not call.leaves_out(name, arg)}
    if call.binding.context_at is not None:
        position, name = call.binding.context_at
        if name not in kwargs:
            if position is None or position > len(args):
                kwargs[name] = context
            else:
                args = (*args[:position], context, *args[position:])
    call.variables.run(current_run.set, item)
    return call.variables.run(call.fn, *args, **kwargs)


def submit_call(
    run: FlowRun,
    planned: Planned,
    binding: Binding,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    depends_on: Iterable[TaskHandle[Any]],
) -> TaskHandle[Any]:
    """Submit a call to a run; it starts as soon as it may.

    Raises:
        TypeError: ``depends_on`` has something that is no handle.
        FlowError: the run has ended, or a handle belongs to another one.
    """
    needs = _calls_in(run, (*args, *kwargs.values()))
    if isinstance(depends_on, Future | str) or not isinstance(depends_on, Iterable):
        raise TypeError(f"depends_on of a submitted call is a list of handles, not {depends_on!r}.")
    for handle in depends_on:
        if not isinstance(handle, TaskHandle):
            raise TypeError(f"depends_on of a submitted call takes handles, not {handle!r}.")
        needs[_call_of(run, handle)] = None
    item: Any = current_run.get()
    parent = item if item is not None and item.run is run else None
    handle: TaskHandle[Any] = TaskHandle(run, planned.name)
    call = Submitted(planned.adapted, binding, args, kwargs, handle)
    handle._call = call
    with run.monitor:
        run.submit_call(call, planned, needs, parent, call_invoke)
        assert call.run is not None, "it was submitted"
        handle.id = call.run.id
    run.work_on(handle)
    return handle


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


def _value(arg: Any) -> Any:
    """Return an argument with handles replaced by their values; None for those that did not succeed."""
    if isinstance(arg, TaskHandle):
        return arg._output()
    if type(arg) in (list, tuple) and any(isinstance(part, TaskHandle) for part in arg):
        return type(arg)(map(_value, arg))
    if type(arg) is dict and any(isinstance(part, TaskHandle) for part in arg.values()):
        return {key: _value(part) for key, part in arg.items()}
    return arg


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
        self.fed_from_outside = 1
        self.owner = threading.current_thread()
        self.begin((), timeout)

    def submit(
        self,
        fn: Callable[..., R],
        /,
        *args: Any,
        depends_on: Iterable[TaskHandle[Any]] = (),
        call_key: str | None = None,
        **kwargs: Any,
    ) -> TaskHandle[R]:
        """Submit a call of ``fn``; see ``Flow.submit``."""
        return self.submitter(self, fn, args, kwargs, depends_on, call_key)

    def close(self) -> None:
        """Wait for the calls, and raise the failures that nobody asked for.

        Raises:
            Exception: one failure as itself, several in an ``ExceptionGroup``.
        """
        self.shut()
        self.wait()
        self.take_result()

    def shut(self) -> None:
        """No calls are submitted from outside any more."""
        self.monitor.post(self._shut)

    def _shut(self) -> None:
        if self.open:
            self.open, self.fed_from_outside = False, 0
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
        self.shut() if kind is None else self.cancel()
        await self.ended()
        if kind is None:
            self.take_result()
