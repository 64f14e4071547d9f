"""The side of a worker process: it calls what it is sent, and asks for what only the other side has.

One *home* is the way back to the one task run's worker in the parent. Messages alternate: calls come, and
until the last of them is answered the other side only speaks when it is asked. So nobody ever writes
while the other one writes, and messages of any size get through. Exceptions are the notes ``STOP`` and
``RETURN``, which are short, and are looked for between calls and when a task asks whether it was told to stop.

Every call is an attempt of a task run as it would be in a thread of the parent: it has a ``Context``, a
``current_task()``, context variables of its own. May import: wire, context, task, values, errors.
"""

from __future__ import annotations

import contextvars
import functools
import logging
import os
import pickle
import socket
import sys
import threading
import time
import types
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Mapping
from itertools import islice
from typing import Any, ClassVar, NoReturn

from millstream.context import MISSING, Context, check_key, crossing
from millstream.errors import BlockingGetError, FlowError, TaskCancelledError, TransferError
from millstream.executors.remote.wire import (
    SCALARS,
    Back,
    Closed,
    Dumps,
    To,
    Wire,
    called,
    culprit,
    decode,
    decode_error,
    encode,
    encode_error,
    said,
    travels,
)
from millstream.monitor import Monitor
from millstream.task import check_wait, current_run
from millstream.values import NextTask, StreamChunk, TaskOutput

#: How long one call may take, in seconds, before those behind it are given back for others to do.
PATIENCE = 0.005

#: How often, in seconds, a worker looks between two calls whether it is to stop.
LOOK = 0.0005

#: How many requests of an iterator are sent at once.
PAGE = 256

#: Frames in here are not a task's.
_PACKAGE = os.path.dirname(os.path.dirname(__file__))


# ---- the way home -------------------------------------------------------------------------------


class Home(ABC):
    """The way to the parent, for one thread of the worker process."""

    #: What pickles values, if not the usual; it must be the same on both sides.
    dumps: Dumps | None = None
    #: Whether it keeps messages until there are more, or ``flush`` is called.
    keeps = False
    #: Held by the thread of a task that asks, and while a call ends: nobody asks for one that has ended.
    turn: threading.Lock

    @abstractmethod
    def tell(self, message: tuple[Any, ...]) -> None:
        """Send a message."""

    @abstractmethod
    def ask(self, message: tuple[Any, ...], batch: Batch) -> tuple[Any, ...]:
        """Send a message, wait for the answer to it, and return that. The caller has its turn."""

    @abstractmethod
    def look(self, batch: Batch) -> None:
        """See whether ``batch`` was told to stop; never waits for long. The caller has its turn."""

    def flush(self) -> None:  # noqa: B027 - most have nothing to send
        """Send what was only kept to be sent together with more."""


#: The sockets of this worker process. A process that a task forks must not have them: our parent would not
#: learn of our end before the end of that process.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def close_sockets() -> None:
    """Close our copies of them, after a fork."""
    for sock in list(_sockets):
        sock.close()


class WireHome(Home):
    """A home at the end of a socket."""

    def __init__(self, wire: Wire) -> None:
        if not _sockets and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=close_sockets)
        _sockets.add(wire.sock)
        self._wire = wire
        self.turn = threading.Lock()

    def tell(self, message: tuple[Any, ...]) -> None:
        self._wire.send(message)

    def ask(self, message: tuple[Any, ...], batch: Batch) -> tuple[Any, ...]:
        self._wire.send(message)
        while True:
            answer: tuple[Any, ...] = self._wire.receive()
            if answer[0] in (To.ANSWER, To.REFUSAL):
                return answer
            self._note(answer, batch)

    def look(self, batch: Batch) -> None:
        while self._wire.waiting:
            self._note(self._wire.receive(), batch)

    def _note(self, message: tuple[Any, ...], batch: Batch) -> None:
        kind = message[0]
        if kind == To.RETURN:
            batch.give_back(say=True)
        elif kind == To.LEND:
            serve_in_thread(self._wire.receive_socket())
        elif kind == To.STOP and message[1] == batch.number:
            batch.stop()

    def serve(self) -> None:
        """Do calls until there are none any more."""
        while True:
            message = self._wire.receive()
            if message[0] == To.CALLS:
                Batch(message[1], message[2], self).work()
            elif message[0] == To.LEAVE:
                return
            # Else a note for calls that have ended meanwhile.


def serve_in_thread(sock: socket.socket) -> None:
    """Serve a further wire: the thread that did calls so far waits for an answer."""

    def serve() -> None:
        wire = Wire(sock, ahead=False)
        try:
            WireHome(wire).serve()
        except Closed:
            pass
        finally:
            wire.close()

    threading.Thread(target=serve, name="millstream-call", daemon=True).start()


# ---- calls --------------------------------------------------------------------------------------


class Batch:
    """Calls that are done one after another; those that have not begun can be given back."""

    def __init__(self, number: int, calls: Iterable[Any], home: Home) -> None:
        self.number = number
        self.home = home
        self.told = False  #: to stop
        self._looked = time.monotonic()
        # Guarded by _lock: everything below.
        self._lock = threading.Lock()
        self.calls = deque(calls)
        self.begun = 0
        self._under_way = False

    def work(self) -> None:
        """Do the calls."""
        if len(self.calls) > 1 or self.home.keeps:
            guard.watch(self)
        while (call := self._next()) is not None:
            target, given, facts = call
            RemoteRun(facts, self).do(target, given)
        guard.forget(self)

    def _next(self) -> Any:
        with self._lock:
            if not self.calls:
                return None
            self.begun += 1
            self._under_way = True
            return self.calls.popleft()

    def done(self, run: RemoteRun, outcome: tuple[Any, ...]) -> None:
        """The call that is under way has ended."""
        with self.home.turn:  # what threads of the task have asked for is answered first
            if self.calls and time.monotonic() - self._looked > LOOK:
                self.home.look(self)
                self._looked = time.monotonic()
            with run.telling:
                run.over = True
                with self._lock:
                    self._under_way = False
                self.home.tell(outcome)

    def give_back(self, say: bool = False) -> None:
        """Give back what has not begun; ``say`` so even if that is nothing.

        Only while a call is under way: the parent hears of it before it hears of the end of that call. From
        then on, it takes the next one for begun.
        """
        with self._lock:
            if self._under_way and (self.calls or say):
                left = len(self.calls)
                self.calls.clear()
                self.home.tell((Back.RETURNED, left, say))

    def stop(self) -> None:
        """Tell the call that is under way to stop; nothing new begins."""
        self.told = True
        self.give_back()


class Guard:
    """Sees to it that no call waits behind one that takes long, when others could do it."""

    def __init__(self) -> None:
        # Guarded by _changed: everything.
        self._changed = threading.Condition()
        self._batches: dict[Batch, int] = {}  # and which of its calls was under way when it was last seen
        self._thread: threading.Thread | None = None
        self._process = 0

    def watch(self, batch: Batch) -> None:
        with self._changed:
            if self._thread is None or self._process != os.getpid():  # threads do not survive a fork
                self._process = os.getpid()
                self._thread = threading.Thread(target=self._serve, name="millstream-guard", daemon=True)
                self._thread.start()
            elif not self._batches:
                self._changed.notify()
            self._batches[batch] = 0

    def forget(self, batch: Batch) -> None:
        self._batches.pop(batch, None)  # one step, so it needs no lock

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._batches)
            time.sleep(PATIENCE)  # the measure itself: has a call been under way for all of this time?
            for batch, seen in self._batches.copy().items():
                if batch.begun == seen:
                    try:
                        batch.give_back()
                        batch.home.flush()
                    except Closed:  # the thread that calls finds out as well
                        pass
                    if not (batch.calls or batch.home.keeps):
                        self.forget(batch)
                elif batch in self._batches:
                    self._batches[batch] = batch.begun


guard = Guard()


class Elsewhere:
    """The run of a task that is called here, as far as flows which that task runs want to know."""

    blocked = None
    stopping = False

    def __init__(self) -> None:
        self.monitor = Monitor()
        self.plan = self  # whose owner nobody here is

    def owner(self) -> None:
        """Nobody."""

    def wait_in(self, item: object) -> None:
        """A thread of the task waits: the parent need not know."""

    go_on_in = wait_in


class RemoteRun:
    """One attempt of a task run, in a worker process: what ``current_task()`` reads here."""

    #: For the engine of a flow that the task runs here, in this process: it is the task of some other run.
    run: ClassVar[Elsewhere] = Elsewhere()
    handle = None

    def __init__(self, facts: tuple[Any, ...], batch: Batch) -> None:
        remaining: float | None
        self.run_id, self.name, self.id, self.path, self.attempt, self._enters, remaining = facts
        self.deadline = None if remaining is None else time.monotonic() + remaining
        self.over = False  #: the call has ended, and what its code still does changes nothing
        self.telling = threading.Lock()  #: held while something is told, and when the end is
        self._batch = batch

    # What ``current_task()`` asks for.

    @property
    def key(self) -> str:
        return f"{self.run_id}:{self.path & 0xFFFFFFFFFFFFFFFF:016x}"

    @property
    def given_up(self) -> bool:
        return self.over

    @property
    def cancelled(self) -> bool:
        home = self._batch.home
        if not self._batch.told and home.turn.acquire(False):  # else a thread of this very task waits for an answer
            try:
                if not self.over:
                    home.look(self._batch)
            finally:
                home.turn.release()
        return self._batch.told

    def now(self) -> float:
        return time.monotonic()

    def emit(self, chunk: StreamChunk) -> None:
        self.send("emit", *chunk)

    def progress(self, done: float, total: float | None) -> None:
        self.send("progress", done, total)

    def submit(self, fn: Any, *_: Any) -> NoReturn:
        raise FlowError(
            f"Task {self.name} runs in another process, where calls cannot be submitted: return a NextTask, or give "
            "the task executor='thread'."
        )

    # The way home.

    def ask(self, what: str, *args: Any) -> Any:
        """Have something done by the parent, and return what it gives; raises what it raises."""
        message = (Back.ASKED, what, *self._encoded(what, args))
        with self._batch.home.turn:
            if self.over:
                raise TaskCancelledError(self.id)
            kind, answer = self._batch.home.ask(message, self._batch)
        if kind == To.REFUSAL:
            raise decode_error(answer, self.id)
        return decode(answer)

    def send(self, what: str, *args: Any) -> None:
        """Have something done by the parent, without waiting for it."""
        message = (Back.SENT, what, *self._encoded(what, args))
        with self.telling:
            if not self.over:
                self._batch.home.tell(message)

    def _encoded(self, what: str, args: tuple[Any, ...]) -> tuple[str | None, Any]:
        """Return the key that it is about, if any, and the arguments as they travel."""
        key = args[0] if args and isinstance(args[0], str) else None
        try:
            return key, encode(args, self._batch.home.dumps)
        except Exception as error:
            part = next((arg for arg in args if not travels(arg)), args)
            raise TransferError(self.id, culprit(part, called(what, key)), said(error)) from error

    # The call.

    def do(self, target: Any, given: Any) -> None:
        """Call, and tell the outcome."""
        began = time.monotonic()
        try:
            outcome: tuple[Any, ...] = Back.DONE, contextvars.copy_context().run(self._result, target, given)
        except Closed:
            raise
        except BaseException as error:  # whatever a task raises is an outcome of it
            outcome = Back.FAILED, encode_error(error, self.id, _PACKAGE, self._batch.home.dumps)
        self._batch.done(self, (*outcome, time.monotonic() - began))

    def _result(self, target: Any, given: Any) -> Any:
        """Call, and return what that gave as it travels. In context variables of its own."""
        current_run.set(self)
        crossing.set(RemoteContext(self))
        for enter in self._enters:
            self._enter(enter)
        fn, args, kwargs = self._decoded(target, given)
        result = fn(*args, **kwargs)
        kind = type(result)
        if kind in SCALARS:
            return encode(result)
        if kind is types.GeneratorType:
            result = self._iterate(result)
        elif kind is types.AsyncGeneratorType:
            result = run_coroutine(self._iterate_async(result))
        elif isinstance(result, Coroutine):
            result = run_coroutine(result)
        if isinstance(result, TaskOutput) and not isinstance(result.next_tasks, list | tuple | None):
            result = self._drain(result)
        try:
            return encode(result, self._batch.home.dumps)
        except Exception as error:
            raise TransferError(self.id, culprit(result, "its result"), said(error)) from error

    def _enter(self, enter: bytes) -> None:
        """Call what a hook wants to be called before the task; it may be broken."""
        try:
            pickle.loads(enter)()
        except BaseException:  # as where hooks are called
            logging.getLogger("millstream").exception("What a hook has sent along with task %s failed", self.id)

    def _decoded(self, target: Any, given: Any) -> tuple[Any, Iterable[Any], Mapping[str, Any]]:
        try:
            fn = imported(target) if type(target) is bytes else decode(target)
        except Exception as error:
            raise TransferError(self.id, "its function", f"{said(error)} in the worker process") from error
        if type(given) is tuple:
            return fn, given, {}
        try:
            args, kwargs = decode(given)
        except Exception as error:
            raise TransferError(self.id, "one of its arguments", f"{said(error)} in the worker process") from error
        return fn, args, kwargs

    def _iterate(self, generator: Generator[Any, None, Any]) -> Any:
        """Run a generator task to its end; return its return value."""
        try:
            while True:
                try:
                    value = next(generator)
                except StopIteration as end:
                    return end.value
                self._yielded(value)
                if self.cancelled:
                    raise TaskCancelledError(self.id)
        finally:
            generator.close()

    async def _iterate_async(self, generator: AsyncGenerator[Any, None]) -> None:
        try:
            async for value in generator:
                self._yielded(value)
        finally:
            await generator.aclose()

    def _yielded(self, value: Any) -> None:
        if isinstance(value, NextTask):
            self.ask("request", [value])
        elif isinstance(value, TaskOutput):
            raise TypeError(f"A generator task yields values and NextTask requests; return {value!r} instead.")
        elif isinstance(value, StreamChunk):
            self.emit(value)
        else:
            self.send("yield", value)

    def _drain(self, result: TaskOutput[Any]) -> TaskOutput[Any]:
        """Ask for the next tasks of an iterator, which cannot travel, page by page."""
        requests = result.next_tasks
        if isinstance(requests, str | bytes | dict) or not isinstance(requests, Iterable):
            raise TypeError(f"next_tasks takes a list or another iterable of NextTask, not {requests!r}.")
        iterator, any_yet = iter(requests), False
        try:
            while page := list(islice(iterator, PAGE)):
                self.ask("request", page)
                any_yet = True
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
        return TaskOutput(result.output, None if any_yet else [])


@functools.lru_cache(maxsize=1024)
def imported(target: bytes) -> Any:
    """Return a function that is pickled by its name; most calls are of one that was called before."""
    return pickle.loads(target)


_runners = threading.local()


def run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on the event loop of this thread, which is made when it is first needed."""
    import asyncio

    runner: asyncio.Runner | None = getattr(_runners, "runner", None)
    if runner is None:
        runner = _runners.runner = asyncio.Runner()
    return runner.run(coroutine, context=contextvars.copy_context())


# ---- the context --------------------------------------------------------------------------------


class RemoteContext(Context[Any]):
    """The context of a run, in a worker process: every read and every write is done by the parent.

    What ``get`` returns is a copy. ``update`` computes here, and again when another update came in between.
    """

    def __init__(self, run: RemoteRun) -> None:
        self._run = run  # all that it has: there is one for each call

    def get(self, key: str, default: Any = MISSING, *, timeout: float | None = None, external: bool = False) -> Any:
        found, value = self._find(key, default, timeout)
        if found:
            return value
        asyncio = sys.modules.get("asyncio")
        if asyncio is not None and asyncio._get_running_loop() is not None:
            raise BlockingGetError(key)
        return self._wait(key, default, timeout, external)

    async def aget(
        self, key: str, default: Any = MISSING, *, timeout: float | None = None, external: bool = False
    ) -> Any:
        import asyncio

        found, value = self._find(key, default, timeout)
        return value if found else await asyncio.to_thread(self._wait, key, default, timeout, external)

    def _find(self, key: str, default: Any, timeout: float | None) -> tuple[bool, Any]:
        """Return whether ``get`` can give a value at once, and the value."""
        check_key(key)
        if timeout is not None:
            check_wait(timeout, f"get({key!r})")
        found, value = self._run.ask("find", key)
        if found or default is MISSING or timeout is not None:
            return found, value
        return True, default

    def _wait(self, key: str, default: Any, timeout: float | None, external: bool) -> Any:
        found, value = self._run.ask("get", key, timeout, external, default is not MISSING)
        return value if found else default

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and bool(self._run.ask("find", key)[0])

    def __len__(self) -> int:
        return len(self._run.ask("keys"))

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = self._run.ask("to_dict")
        return values

    def set(self, key: str, value: Any) -> None:
        check_key(key)
        if not self._run.over:
            self._run.ask("set", key, value)

    def update(self, key: str, fn: Callable[[Any], Any], default: Any = MISSING) -> Any:
        check_key(key)
        if not callable(fn):
            raise TypeError(f"Context.update({key!r}, fn) takes a callable, not {fn!r}.")
        while True:
            found, old, place = self._run.ask("read", key, default is not MISSING)
            new = fn(old if found else default)
            if self._run.ask("swap", key, new, place):
                return new

    def append(self, key: str, value: Any) -> None:
        check_key(key)
        if not self._run.over:
            self._run.ask("append", key, value)

    def delete(self, key: str) -> None:
        check_key(key)
        if not self._run.over:
            self._run.ask("delete", key)

    @property
    def deps(self) -> Any:
        return self._run.ask("deps")

    @property
    def metadata(self) -> Mapping[str, Any]:
        return types.MappingProxyType(self._run.ask("metadata"))

    def __repr__(self) -> str:
        return f"<Context of {self._run.run_id}, in a worker process>"


# ---- logging ------------------------------------------------------------------------------------


class LogHome(logging.Handler):
    """Sends log records of tasks to the parent, where they are handled as if they were made there.

    Args:
        otherwise: what handles the records of other code, or ``None``.
    """

    def __init__(self, otherwise: logging.Handler | None = None) -> None:
        super().__init__()
        self._otherwise = otherwise

    def emit(self, record: logging.LogRecord) -> None:
        run = current_run.get()
        if not isinstance(run, RemoteRun) or run.over:
            if self._otherwise is not None and record.levelno >= self._otherwise.level:
                self._otherwise.handle(record)
            return
        try:
            run.send("log", record.levelno, portable(record))
        except Closed:
            pass
        except Exception:
            self.handleError(record)


def portable(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a log record says, as values that can travel."""
    facts = dict(record.__dict__, msg=record.getMessage(), args=None)
    if record.exc_info:
        facts |= {"exc_info": None, "exc_text": record.exc_text or logging.Formatter().formatException(record.exc_info)}
    return {name: fact if travels(fact) else repr(fact) for name, fact in facts.items()}


# ---- the process --------------------------------------------------------------------------------


def send_log(level: int) -> None:
    """Send log records of tasks, below the logger ``millstream``, from a process that is not ours to the parent."""
    logger = logging.getLogger("millstream")
    logger.setLevel(level)
    if not any(isinstance(handler, LogHome) for handler in logger.handlers):
        logger.addHandler(LogHome())


def attend(path: str, level: int) -> None:
    """Do calls in a process that is not ours, until there are none any more.

    Args:
        path: of a socket of the parent's.
        level: that of the parent's logger.
    """
    send_log(level)
    sock = socket.socket(socket.AF_UNIX)
    wire = Wire(sock, ahead=False)
    try:
        sock.connect(path)
        wire.send((Back.READY,))
        WireHome(wire).serve()
    except (Closed, OSError):
        pass  # nobody waits for us any more
    finally:
        wire.close()


def main(sock: socket.socket, initializer: Callable[..., object] | None, initargs: Any, levels: Any) -> None:
    """The life of a worker process of ours. ``levels`` are those of the parent's loggers, by name."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which tells us
    end_with_parent()
    root = logging.getLogger()
    if not root.handlers:  # else the program has set up its logging here as well
        root.addHandler(LogHome(otherwise=logging.lastResort))  # as without this handler
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    wire = Wire(sock, ahead=False)
    try:
        if initializer is not None:
            try:
                initializer(*initargs)
            except BaseException as error:
                wire.send((Back.BROKEN, encode_error(error, "initializer", _PACKAGE)))
                return
        wire.send((Back.READY,))
        WireHome(wire).serve()
    except Closed:
        pass  # the parent has closed us
    finally:
        wire.close()


def end_with_parent() -> None:
    """End this process when its parent does: whatever it is doing then is for nobody."""
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="millstream-parent", daemon=True).start()
