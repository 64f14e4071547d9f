"""What travels between processes: values and errors as bytes, and messages through a socket.

A value is encoded by itself, so one that cannot travel spoils nothing else. Exact scalars go as they are.
Everything else becomes a list: the pickle, then the buffers that were too large to be copied into it
(pickle protocol 5). Where the standard ``pickle`` gives up, ``cloudpickle`` is tried if it is installed.

A *wire* is a stream socket with frames on it. What is read from one was written by a process of the same
user: nothing else is ever unpickled. May import: errors.
"""

from __future__ import annotations

import operator
import pickle
import select
import socket
import struct
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from millstream.errors import TransferError

#: Buffers from this size on are sent by themselves, in bytes.
LARGE = 1 << 16

#: Types that mean the same everywhere, and are sent as they are.
SCALARS = frozenset({type(None), bool, int, float, str, bytes})

#: What pickles a value: ``pickle.dumps``, or something like it.
Dumps = Callable[..., bytes]

Encoded = Any
"""A scalar; a list of a pickle and its buffers; a tuple of one buffer, for large ``bytes``."""


class To:
    """First in a message to a worker: what it says. The rest of the message follows; an enum would be slow."""

    CALLS = 0  #: a number, and calls to be done in their order
    ANSWER = 1  #: to what the worker asked: a value
    REFUSAL = 2  #: the same: an error
    RETURN = 3  #: give back what has not begun, and say so even if that is nothing
    LEND = 4  #: the next thing is a socket: serve it in a further thread
    STOP = 5  #: the calls of this number are told to stop, and those that have not begun are given back
    LEAVE = 6  #: there is nothing more to do


class Back:
    """First in a message of a worker."""

    READY = 0  #: it can be given calls
    BROKEN = 1  #: it cannot: an error
    DONE = 2  #: the oldest call gave a value; it took these seconds
    FAILED = 3  #: it raised an error; it took these seconds
    RETURNED = 4  #: so many of the newest calls were given back
    ASKED = 5  #: the oldest call wants something, and waits for the answer: what, and arguments
    SENT = 6  #: the same, without waiting
    BEGUN = 7  #: the job that the calls are in stands in line no more


# ---- values -------------------------------------------------------------------------------------


def encode(value: Any, dumps: Dumps | None = None) -> Encoded:
    """Return ``value`` as it travels.

    Args:
        dumps: what pickles instead of ``pickle.dumps``, with the same arguments.

    Raises:
        Exception: it cannot be pickled; whatever its ``__reduce__`` raises.
    """
    kind = type(value)
    if kind in SCALARS:
        return (pickle.PickleBuffer(value),) if kind is bytes and len(value) >= LARGE else value
    buffers: list[pickle.PickleBuffer] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < LARGE:
            return True  # goes into the pickle
        buffers.append(buffer)
        return False

    if dumps is not None:
        return [_apart(dumps(value, protocol=5, buffer_callback=keep)), *buffers]
    try:
        return [_apart(pickle.dumps(value, 5, buffer_callback=keep)), *buffers]
    except Exception:
        cloudpickle = _cloudpickle()
        if cloudpickle is None:
            raise
        buffers.clear()
        return [_apart(cloudpickle.dumps(value, protocol=5, buffer_callback=keep)), *buffers]


def _apart(pickled: bytes) -> Any:
    return pickled if len(pickled) < LARGE else pickle.PickleBuffer(pickled)


def decode(encoded: Encoded) -> Any:
    """Return the value; raises whatever unpickling raises."""
    if type(encoded) is list:
        return pickle.loads(encoded[0], buffers=encoded[1:])
    return bytes(encoded[0]) if type(encoded) is tuple else encoded


def _cloudpickle() -> Any:
    try:
        import cloudpickle
    except ImportError:
        return None
    return cloudpickle


def travels(value: Any) -> bool:
    """Whether a value can be encoded."""
    try:
        encode(value)
    except Exception:
        return False
    return True


#: What a task asks for or sends, for an error.
CALLED = {
    "request": "a request",
    "emit": "what it emits as",
    "yield": "what it yields",
    "append": "what is appended to",
    "to_dict": "the context",
    "deps": "deps",
    "metadata": "metadata",
    "log": "a log record",
}


def called(what: str, key: str | None) -> str:
    """Return what is to be said of something that a task asks for or sends."""
    said = CALLED.get(what, "the value of")
    return said if key is None else f"{said} {key!r}"


def culprit(value: Any, where: str, depth: int = 6) -> str:
    """Return which part of a value cannot be pickled, as ``rows[3].lock (lock)``."""
    if depth:
        for name, part in _parts(value):
            try:
                encode(part)
            except Exception:
                return culprit(part, f"{where}{name}", depth - 1)
    return f"{where} ({getattr(value, '__qualname__', type(value).__name__)})"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield f"[{key!r}]", part
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield f"[{place}]", part
    elif isinstance(value, set | frozenset):
        for part in value:
            yield " has an element", part
    else:
        own = getattr(value, "__self__", None)
        if own is not None and not isinstance(own, type | types.ModuleType):
            yield ".__self__", own
        for kind in type(value).__mro__:
            for name in getattr(kind, "__slots__", ()):
                if hasattr(value, name):
                    yield f".{name}", getattr(value, name)
        for name, part in getattr(value, "__dict__", {}).items():
            if not callable(value) or isinstance(value, types.MethodType):
                yield f".{name}", part


# ---- errors -------------------------------------------------------------------------------------

#: How many errors travel with one: causes, what they were raised in the middle of, members of groups.
CHAIN = 50


def encode_error(error: BaseException, task_id: str, hide: str = "", dumps: Dumps | None = None) -> Any:
    """Return an error as it travels: itself, its traceback, and what it comes from. Never raises.

    Each error that is linked to it is in there once; they name each other by their places.

    Args:
        task_id: whose error it is, for one that cannot travel.
        hide: leave out the first frames, as long as their files begin with this.
        dumps: as for ``encode``.
    """
    errors, places = [error], {id(error): 0}

    def place_of(linked: BaseException | None) -> int | None:
        if linked is not None and id(linked) not in places and len(errors) < CHAIN:
            places[id(linked)] = len(errors)
            errors.append(linked)
        return places.get(id(linked))

    encoded = []
    for each in errors:  # which grows meanwhile
        cause, context = place_of(each.__cause__), place_of(each.__context__)
        members = [place_of(member) for member in each.exceptions] if isinstance(each, BaseExceptionGroup) else []
        inner = [place for place in members if place is not None]
        itself = _error_itself(each, task_id, bool(inner), dumps)
        encoded.append((itself, _frames(each.__traceback__, hide), cause, context, each.__suppress_context__, inner))
    return encoded


def _error_itself(error: BaseException, task_id: str, group: bool, dumps: Dumps | None) -> tuple[str, Any]:
    """Return how an error can be made again: the first way after which it says the same, or else is of its class.

    Many can be pickled and not be made again, and others only without what they say: packages register ways of
    their own for all exceptions.
    """
    if group:
        message = getattr(error, "message", "")
        try:
            return "group", (encode(type(error), dumps), str(message), _picklable(vars(error), dumps))
        except BaseException:
            return "group", (encode(BaseExceptionGroup), str(message), {})
    found: tuple[str, Any] | None = None
    problem: BaseException | None = None
    for how, parts_of in _WAYS.items():
        try:
            parts = parts_of(error, dumps)
            again = _made_again(how, parts)
            if type(again) is type(error):
                if said(again) == said(error):
                    return how, parts
                found = found or (how, parts)
        except BaseException as raised:
            problem = raised
    if found is not None:
        return found
    what = f"the {type(error).__qualname__} that it raised ({said(error)})"
    return "whole", encode(TransferError(task_id, what, said(problem) if problem else "it comes out as something else"))


def _error_parts(error: BaseException, dumps: Dumps | None) -> tuple[Encoded, Encoded, dict[str, Encoded]]:
    return encode(type(error), dumps), encode(error.args, dumps), _picklable(vars(error), dumps)


#: Ways for an error to travel: by its pickle; by a call of its class; by what it holds, without its constructor.
_WAYS: dict[str, Callable[[BaseException, Dumps | None], Any]] = {
    "whole": encode,
    "called": _error_parts,
    "held": _error_parts,
}


def _made_again(how: str, parts: Any) -> BaseException:
    if how == "whole":
        error: BaseException = decode(parts)
        return error
    kind, args, attributes = parts
    error_type, given = decode(kind), decode(args)
    error = error_type(*given) if how == "called" else error_type.__new__(error_type, *given)
    error.args = given
    error.__dict__.update({name: decode(value) for name, value in attributes.items()})
    return error


def said(error: BaseException) -> str:
    """Return the text of an error, also of one that cannot give it."""
    try:
        return str(error)
    except BaseException:
        return type(error).__name__


def told_of(error: BaseException) -> str:
    """Return the kind of an error and what it says."""
    return f"{type(error).__name__}: {said(error)}"


def _picklable(attributes: Mapping[str, Any], dumps: Dumps | None) -> dict[str, Encoded]:
    kept = {}
    for name, value in attributes.items():
        try:
            kept[name] = encode(value, dumps)
        except BaseException:  # an error without one of its attributes says more than none
            pass
    return kept


def decode_error(encoded: Any, task_id: str) -> BaseException:
    """Return an error that travelled, with its traceback and what it comes from. Never raises."""
    errors: list[BaseException | None] = [None] * len(encoded)
    for place in reversed(range(len(encoded))):  # members of a group come behind it
        itself, frames, _, _, _, inner = encoded[place]
        members = [error for error in (errors[member] for member in inner) if error is not None]
        error = errors[place] = _decoded(itself, members, task_id)
        error.__traceback__ = rebuilt(frames)
    for made, (_, _, cause, context, suppressed, _) in zip(errors, encoded, strict=True):
        assert made is not None, "all were made"
        made.__cause__ = None if cause is None else errors[cause]
        made.__context__ = None if context is None else errors[context]
        made.__suppress_context__ = suppressed
    assert errors[0] is not None, "all were made"
    return errors[0]


def _decoded(itself: Any, members: list[BaseException], task_id: str) -> BaseException:
    how, parts = itself
    try:
        if how == "group":
            kind, message, attributes = parts
            error: BaseException = decode(kind)(message, members)
            error.__dict__.update({name: decode(value) for name, value in attributes.items()})
        else:
            error = _made_again(how, parts)
    except BaseException as unknown:  # its class cannot be imported here, or raises whatever it likes
        error = TransferError(task_id, "the exception that it raised", told_of(unknown))
    return error


def _frames(traceback: types.TracebackType | None, hide: str) -> list[tuple[str, str, int]]:
    """Return file, function and line of each frame."""
    frames: list[tuple[str, str, int]] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if frames or not hide or not code.co_filename.startswith(hide):
            frames.append((code.co_filename, code.co_name, traceback.tb_lineno))
        traceback = traceback.tb_next
    return frames


_RAISES = compile("raise error", "", "exec")
_UNITS = len(_RAISES.co_code) // 2
#: A line table that says "on the first line" for every instruction, and nothing of columns: an entry of
#: kind 13 for up to eight code units each (Objects/locations.md of CPython 3.11 and later).
_LINES = b"".join(bytes((0x80 | 13 << 3 | min(8, _UNITS - at) - 1, 0)) for at in range(0, _UNITS, 8))


def rebuilt(frames: Sequence[tuple[str, str, int]]) -> types.TracebackType | None:
    """Return a traceback that shows these frames: file, function and line, without their variables.

    Frames cannot be made; so each is left behind by a line of code that claims to be there.
    """
    traceback = None
    for filename, name, line in reversed(frames):
        code = _RAISES.replace(
            co_filename=filename, co_name=name, co_qualname=name, co_firstlineno=max(line, 1), co_linetable=_LINES
        )
        try:
            exec(code, {"error": _LeftError, "__name__": "?", "__file__": filename})
        except _LeftError as left:
            frame = left.__traceback__.tb_next  # type: ignore[union-attr]  # ours, then the one it left
            assert frame is not None, "the code has raised"
            traceback = types.TracebackType(traceback, frame.tb_frame, frame.tb_lasti, max(line, 1))
    return traceback


class _LeftError(Exception):
    """Raised to leave a frame behind."""


# ---- wires --------------------------------------------------------------------------------------

_HEAD = struct.Struct("!QI")  #: bytes of the message, number of buffers
_SIZE = struct.Struct("!Q")


class Closed(Exception):  # noqa: N818 - an end, not an error
    """The other side is gone."""


class Wire:
    """One end of a stream socket: messages go out whole, and come in whole.

    ``send`` may be called from any thread; only one thread at a time receives.

    Args:
        sock: the socket, which is closed with it.
        ahead: read as much as there is, for an end that gets many small messages. Who may be sent a
            socket must not: a read beyond the byte that a socket comes with would lose it.
    """

    def __init__(self, sock: socket.socket, *, ahead: bool = True) -> None:
        self.sock = sock
        self._ahead = ahead  # it may read more than one message at once
        self._sending = threading.Lock()
        self._read = b""  #: what came in, and belongs to no message that was taken
        self._at = 0  #: how much of that was taken already

    def send(self, message: Any) -> None:
        """Send a message.

        Raises:
            Closed: there is nobody any more.
        """
        buffers: list[pickle.PickleBuffer] = []
        main = pickle.dumps(message, 5, buffer_callback=buffers.append)
        head = _HEAD.pack(len(main), len(buffers))
        try:
            with self._sending:
                if len(main) < LARGE:
                    self.sock.sendall(head + main)
                else:
                    self.sock.sendall(head)
                    self.sock.sendall(main)
                for buffer in buffers:
                    with buffer.raw() as raw:
                        self.sock.sendall(_SIZE.pack(raw.nbytes))
                        self.sock.sendall(raw)
        except OSError as error:
            raise Closed(str(error)) from error

    def receive(self) -> Any:
        """Wait for a message, and return it.

        Raises:
            Closed: there is nobody any more.
        """
        read, at = self._read, self._at + _HEAD.size
        if len(read) > at:  # the usual way: it is small, and there already
            size, count = _HEAD.unpack_from(read, self._at)
            if not count and len(read) >= at + size:
                self._at = at + size
                return pickle.loads(memoryview(read)[at : at + size])
        size, count = _HEAD.unpack(self._take(_HEAD.size))
        main = self._take(size)
        buffers = [self._take(_SIZE.unpack(self._take(_SIZE.size))[0]) for _ in range(count)]
        return pickle.loads(main, buffers=buffers)

    @property
    def waiting(self) -> bool:
        """Whether a message, or the end, is there or on its way; never waits."""
        if len(self._read) > self._at:
            return True
        try:
            return bool(select.select([self.sock], (), (), 0)[0])
        except (OSError, ValueError):  # closed meanwhile; or too many files for select
            return False

    @property
    def buffered(self) -> bool:
        """Whether (the beginning of) a further message was read already."""
        return len(self._read) > self._at

    def _take(self, size: int) -> bytes | bytearray:
        """Return the next ``size`` bytes, waiting for them."""
        read, at = self._read, self._at
        if self._ahead and size < LARGE:
            while len(read) - at < size:
                read, at = read[at:] + self._checked(self.sock.recv, LARGE), 0
            self._read, self._at = read, at + size
            return read[at : at + size]
        taken = bytearray(size)
        there = min(size, len(read) - at)
        taken[:there] = read[at : at + there]
        self._at = at + there
        with memoryview(taken) as into:
            while there < size:  # straight to its place
                there += self._checked(self.sock.recv_into, into[there:])
        return taken

    def _checked(self, receive: Callable[[Any], Any], what: Any) -> Any:
        try:
            got = receive(what)
        except OSError as error:
            raise Closed(str(error)) from error
        if not got:
            raise Closed("it has closed its end")
        return got

    def close(self) -> None:
        """Close this end; the other one is told, whoever else may have it open."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:  # it is closed over there
            pass
        try:
            self.sock.close()
        except OSError:  # a task has closed all files that it found
            pass

    # A socket for a further thread of a worker process travels through the one that is there.

    def send_socket(self, other: socket.socket) -> None:
        """Send a socket to the other side, which expects it as the very next thing."""
        try:
            with self._sending:
                socket.send_fds(self.sock, [b"s"], [other.fileno()])
        except OSError as error:
            raise Closed(str(error)) from error

    def receive_socket(self) -> socket.socket:
        """Wait for a socket that comes as the very next thing."""
        assert not self._ahead, "a socket comes with the next byte that is read"
        try:
            said, files, _, _ = socket.recv_fds(self.sock, 1, 1)
        except OSError as error:
            raise Closed(str(error)) from error
        if not said or not files:
            raise Closed("it has closed its end")
        return socket.socket(fileno=files[0])


# ---- functions ----------------------------------------------------------------------------------


def by_name(fn: Any) -> bytes:
    """Return a function as its name, from which other processes import it.

    Raises:
        Exception: it cannot be had by its name.
    """
    try:
        return pickle.dumps(fn, 5)
    except Exception:
        found = sys.modules.get(fn.__module__)
        for name in fn.__qualname__.split("."):
            found = getattr(found, name, None)
        if getattr(found, "fn", None) is not fn:  # else the name is that of the task which was made of it
            raise
        return pickle.dumps(_FunctionOf(found), 5)


class _FunctionOf:
    """Travels as a task, and arrives as its function."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __reduce__(self) -> Any:
        return operator.attrgetter("fn"), (self._task,)


def main_is_lost(fn: Any) -> bool:
    """Whether no other process can import a function: it was defined at a prompt, in a notebook, by ``-c``."""
    if getattr(fn, "__module__", None) != "__main__":
        return False
    main = sys.modules["__main__"]
    return getattr(main, "__spec__", None) is None and not hasattr(main, "__file__")


def read_from_input() -> bool:
    """Whether the program came from standard input, so that its main module is in no file."""
    return getattr(sys.modules["__main__"], "__file__", None) == "<stdin>"
