"""Where hooks set up what task code finds: the context variables that it is called in.

All other methods of a hook are told what has happened, in a thread of their own. ``enter_run`` and ``enter_task``
are called by who does the work, before it is done, and what they return is called where the task is: in another
thread, in a coroutine, in another process. Only runs of flows with such a hook pay for that. A hook that raises is
logged, and harms nothing. May import: lane, states, tell, events, report, interrupts.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context as Variables
from contextvars import copy_context
from copy import copy
from typing import TYPE_CHECKING, Any

from millstream.engine.lane import ASYNC_GENERATOR
from millstream.engine.states import Call
from millstream.engine.tell import FAILED, Log
from millstream.events import Hook, RunStartEvent, TaskStartEvent
from millstream.interrupts import struck
from millstream.report import ErrorReport

if TYPE_CHECKING:
    from millstream.engine.lane import Item, Lane, RunTask
    from millstream.engine.observe import Observer

Enter = Callable[[], object]
Invoke = Callable[[Any, Any], Any]


class Entrance:
    """The hooks of one run that set up context variables."""

    def __init__(self, hooks: tuple[Hook, ...], observer: Observer, log: Log) -> None:
        self._hooks, self._observer, self._log = hooks, observer, log

    def run(self) -> None:
        """The run is about to begin. Called in its context variables."""
        observer = self._observer
        event = RunStartEvent(observer.run_id, observer.flow, observer.wall(observer.began_at))
        asked = [self._asked("enter_run", hook.enter_run, event) for hook in self._hooks]
        self._enter([enter for enter in asked if enter is not None])

    def stand_at(self, task: RunTask) -> None:
        """See to it that a task of this run, and its items if it is mapped, are called by way of the hooks."""
        each: Any
        for each in (task, task.each):
            if each is not None:
                terms = each.terms = copy(each.terms)
                terms.invoke = self._around(terms, task.lane)

    # ---- inside ---------------------------------------------------------------------------------

    def _around(self, terms: Any, lane: Lane) -> Invoke:
        """Return what calls a task in the context variables that the hooks set up."""
        invoke = terms.invoke
        if lane.workers.remote and terms.each is None:
            return lambda item, context: self._sent(item, invoke(item, context))

        def call(item: Item, context: Any) -> Any:
            variables = variables_for(item)
            enters = variables.run(self._enters, item)
            if terms.is_async:  # this is the loop's own thread: the coroutine alone shall enter
                return self._awaited(enters, invoke(item, context))
            if not isinstance(item.extra, Call):
                self._enter(enters)
                item.variables = copy_context()  # what a generator, or an iterable of next tasks, goes on in
                return self._awaited(enters, invoke(item, context))
            submitted: Any = item.extra
            before = submitted.variables
            variables.run(self._enter, enters)
            submitted.variables = variables  # what the call is made in
            try:
                return self._awaited(enters, invoke(item, context))
            finally:
                if submitted.variables is variables:
                    submitted.variables = before  # for the next attempt

        return call

    def _enters(self, item: Item) -> list[Enter]:
        """Ask the hooks what is to be called before a task is."""
        observer = self._observer
        at = observer.wall(getattr(item, "since", None))
        event = TaskStartEvent(observer.run_id, observer.flow, at, item.task.name, item.id, item.attempt)
        asked = [self._asked("enter_task", hook.enter_task, event) for hook in self._hooks]
        return [enter for enter in asked if enter is not None]

    def _sent(self, item: Item, bound: Any) -> Any:
        """Return a call that is made elsewhere, with what is to be called before it."""
        sent = []
        for enter in variables_for(item).run(self._enters, item):
            try:
                sent.append(pickle.dumps(enter))
            except BaseException as error:  # what foreign code raises
                self._failed("what enter_task returned", error)
        return bound._replace(enters=tuple(sent))

    def _awaited(self, enters: list[Enter], result: Any) -> Any:
        """Return what a task gave; a coroutine or an asynchronous generator enters when it begins."""
        if type(result) is ASYNC_GENERATOR:
            return self._iterated(enters, result)
        return self._coroutine(enters, result) if isinstance(result, Coroutine) else result

    async def _coroutine(self, enters: list[Enter], coroutine: Coroutine[Any, Any, Any]) -> Any:
        self._enter(enters)
        return await coroutine

    async def _iterated(self, enters: list[Enter], generator: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        self._enter(enters)
        try:
            async for value in generator:
                yield value
        finally:
            await generator.aclose()

    def _asked(self, name: str, method: Callable[[Any], Enter | None], event: Any) -> Enter | None:
        try:
            return method(event)
        except BaseException as error:  # also SystemExit: it is not the task that asks for that
            self._failed(name, error)
            return None

    def _enter(self, enters: list[Enter]) -> None:
        for enter in enters:
            try:
                enter()
            except BaseException as error:
                self._failed("what enter_run or enter_task returned", error)

    def _failed(self, what: str, error: BaseException) -> None:
        """Log that a hook failed; but Ctrl-C is Ctrl-C here as well."""
        if isinstance(error, KeyboardInterrupt) and struck():
            raise error
        run_id = self._observer.run_id
        text = ErrorReport.of(error).traceback.rstrip()
        self._log(logging.ERROR, FAILED, what, run_id, text, run_id=run_id)


def variables_for(item: Item) -> Variables:
    """Return a copy of the context variables that a task run is called in: of the worker, or of who submitted it."""
    submitted: Variables | None = getattr(item.extra, "variables", None)
    return copy_context() if submitted is None else submitted.copy()
