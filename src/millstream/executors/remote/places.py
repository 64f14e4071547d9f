"""Our side of worker processes: links to them, and the threads that have task runs called there.

A ``Link`` is a worker process. A ``Channel`` is a thread of it, with a wire to one thread of ours. Most links
have one channel. When a task waits for a value, its process is *lent*: it gets a further channel, and so
calls something else in the meantime. May import: base, places, wire, context, errors.
"""

from __future__ import annotations

import logging
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from millstream.errors import TransferError
from millstream.executors.places import JOIN, Places, ThreadWorker
from millstream.executors.remote.calls import Asked, Begun, Bound, Done, Facts, Failed, Lost, Message, Returned
from millstream.executors.remote.wire import (
    SCALARS,
    Back,
    Closed,
    Dumps,
    To,
    Wire,
    by_name,
    called,
    culprit,
    decode,
    decode_error,
    encode,
    encode_error,
    main_is_lost,
    said,
    told_of,
)

#: How long a task that waits has to end when it was given up and others are in its process, in seconds.
PATIENCE = 0.5

#: Functions of these types are pickled by their names, which never changes.
NAMED = (types.FunctionType, types.BuiltinFunctionType, type)


class Line(Protocol):
    """What messages go through: a ``Wire``, or something like it."""

    def send(self, message: tuple[Any, ...]) -> None:
        """Send a message. Raises ``Closed``."""

    def receive(self) -> Any:
        """Wait for a message, and return it. Raises ``Closed``."""

    @property
    def buffered(self) -> bool:
        """Whether a further message is there already."""

    def close(self) -> None:
        """Nobody uses it any more."""


class Link:
    """A worker process, as this one sees it. Its fields are guarded by the lock of its places."""

    #: Whether it can be ended while it works.
    kills = True
    #: Whether it tells the outcome of each call before it begins the next one.
    tells_at_once = True

    def __init__(self, wire: Line) -> None:
        self.first = Channel(self, wire)  #: the one that it has for as long as it lives
        self.free = [self.first]  #: channels that nobody uses
        self.busy = 0  #: channels that somebody uses
        self.waiting = 0  #: of these, how many have a task that waits
        self.calls = 0  #: how many it was given
        self.ended = ""  #: why it was, or will be, ended by us
        self._watching = threading.Lock()
        # Guarded by _watching:
        self._watched: dict[Channel, Callable[[], object]] = {}
        self._gone = False

    def kill(self, channel: Channel | None = None) -> None:
        """End it, whatever it does, for the sake of what ``channel`` does."""

    def close(self) -> None:
        """Let it end: nobody uses it any more."""
        for channel in self.free:
            channel.wire.close()

    def join(self, timeout: float) -> bool:
        """Wait for its end, for these seconds at the longest; return whether it has ended."""
        return True

    def reason(self, channel: Channel) -> str:
        """Return why it has ended, as the end of a sentence."""
        return self.ended or "its worker process has ended"

    def will_wait(self, channel: Channel) -> None:
        """The task of ``channel`` is going to wait; the process is lent already."""

    def watch(self, channel: Channel, when_ended: Callable[[], object]) -> None:
        """Call this when it has ended: nobody may be there who receives. Until ``unwatch``."""
        with self._watching:
            ended = self._gone
            if not ended:
                self._watched[channel] = when_ended
        if ended:
            when_ended()

    def unwatch(self, channel: Channel) -> None:
        """Nobody wants to know any more, for ``channel``."""
        with self._watching:
            self._watched.pop(channel, None)

    def has_ended(self) -> None:
        """It has ended: tell those who watch it."""
        with self._watching:
            self._gone = True
            watched, self._watched = self._watched, {}
        for when_ended in watched.values():
            when_ended()

    def further(self, channel: Channel) -> Line:
        """Return a line to a further thread of the process; the thread of ``channel`` waits.

        Raises:
            Closed: it has ended.
        """
        import socket

        wire = channel.wire
        assert isinstance(wire, Wire), "other lines have their own way"
        ours, theirs = socket.socketpair()
        try:
            wire.send((To.LEND,))
            wire.send_socket(theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return Wire(ours)


class Channel:
    """A thread of a worker process."""

    def __init__(self, link: Link, wire: Line) -> None:
        self.link = link
        self.wire = wire
        self.number = 0  #: of the batch that it has
        self.lent = False  #: its task waits


class RemoteWorker(ThreadWorker):
    """A thread that has task runs called in a worker process."""

    places: RemotePlaces
    batch_time = 0.004
    stands_in_line = False

    def __init__(self, places: RemotePlaces) -> None:
        super().__init__(places)
        self._channel: Channel | None = None
        self._ids: list[str] = []  # of the calls that it was given, the oldest first
        self._asked = ""  # what the oldest asks for
        self._told: object = None  # the newest task run that was told to stop
        self._unwanted: object = None  # the newest one that was given up before it was called

    @property
    def channel(self) -> Channel:
        assert self._channel is not None, "only an open worker is given calls"
        return self._channel

    @property
    def room(self) -> int:
        limit = self.places.max_calls
        return 1_000_000 if limit is None else max(1, limit - self.channel.link.calls)

    def open(self) -> None:
        if self._channel is not None and self.places.is_spent(self._channel.link):
            self.release()
        if self._channel is None:
            self._channel = self.places.take_channel()

    def release(self) -> None:
        self._told = self._unwanted = None  # no run is kept alive
        channel = self._channel
        if channel is not None and self._ids:  # left in the middle: nobody could go on with it
            channel.link.ended = "its worker has failed"
            channel.link.kill(channel)
            self._lost()
        elif channel is not None:
            self._channel = None
            self.places.put_channel(channel)

    def encode(self, call: Bound, facts: Facts) -> Any:
        target = self.places.targets.get(call.fn) if type(call.fn) in NAMED else None
        if target is None:
            target = self.places.encode_function(call.fn, facts[2])
        args = call.args
        if call.kwargs or not SCALARS.issuperset(map(type, args)):
            args = self._encoded_arguments(call, facts[2])
        return target, args, facts

    def _encoded_arguments(self, call: Bound, task_id: str) -> Any:
        args = call.args
        try:
            return encode((args, call.kwargs), self.places.dumps)
        except Exception as error:
            names = getattr(getattr(call.fn, "__code__", None), "co_varnames", ())
            named = [(names[at] if at < len(names) else f"number {at + 1}", arg) for at, arg in enumerate(args)]
            for name, arg in (*named, *call.kwargs.items()):
                try:
                    encode(arg, self.places.dumps)
                except Exception:
                    raise TransferError(task_id, culprit(arg, f"its argument {name}"), said(error)) from error
            raise TransferError(task_id, "one of its arguments", said(error)) from error

    def call(self, calls: Sequence[Any]) -> None:
        channel = self.channel
        with self.places.aiming:  # who kills an older call must have done so
            if self._unwanted is not None and self._unwanted is self.item:
                raise Lost("it was given up before it was called", withdrawn=True)
            if channel.link.ended:
                raise self._lost()
            channel.link.calls += len(calls)
            self._ids = [facts[2] for _, _, facts in calls]
        channel.number += 1
        try:
            channel.wire.send((To.CALLS, channel.number, calls))
            if self._told is not None and self._told is self.item:  # meanwhile: the note may have come too early
                channel.wire.send((To.STOP, channel.number))
        except Closed:
            raise self._lost() from None

    def receive(self) -> Sequence[Message]:
        wire = self.channel.wire
        messages: list[Message] = []
        try:
            while not messages or wire.buffered:
                message = self._read(*wire.receive())
                if message is not None:
                    messages.append(message)
        except Closed:
            if not messages:  # else they come first
                raise self._lost() from None
        return messages

    def _read(self, kind: int, *told: Any) -> Message | None:
        """Return what a message says; None if it was for nobody else."""
        if kind == Back.DONE:
            encoded, seconds = told
            task_id = self._ids.pop(0)
            try:
                return Done(decode(encoded), seconds)
            except BaseException as error:  # of a class that cannot be imported here, or raises whatever it likes
                return Failed(TransferError(task_id, "its result", told_of(error)), seconds)
        if kind == Back.FAILED:
            return Failed(decode_error(told[0], self._ids.pop(0)), told[1])
        if kind == Back.RETURNED:
            if told[0]:
                del self._ids[-told[0] :]
            return Returned(*told)
        if kind == Back.BEGUN:
            return Begun()
        what, key, encoded = told
        waits = kind == Back.ASKED
        self._asked = called(what, key)
        try:
            args = decode(encoded)
        except BaseException as error:
            problem = TransferError(self._ids[0], self._asked, told_of(error))
            return Asked("refuse", (problem,), waits)
        if what == "log":
            try:
                handle_record(*args)
            except Exception:  # a filter, or a handler, of the user's
                logging.getLogger("millstream").exception("A log record of task run %s was lost", self._ids[0])
            return None
        return Asked(what, args, waits)

    def answer(self, value: Any) -> None:
        try:
            encoded = encode(value, self.places.dumps)
        except Exception as error:
            part = value[1] if type(value) is tuple else value  # else whether there is one, and which
            raise TransferError(self._ids[0], culprit(part, self._asked), said(error)) from error
        self._reply(To.ANSWER, encoded)

    def refuse(self, error: BaseException) -> None:
        self._reply(To.REFUSAL, encode_error(error, self._ids[0], dumps=self.places.dumps))

    def _reply(self, kind: int, encoded: Any) -> None:
        channel = self.channel
        if channel.lent:
            self.places.lent(channel, False)
            channel.link.unwatch(channel)
        try:
            channel.wire.send((kind, encoded))
        except Closed:
            raise self._lost() from None

    def ask_back(self) -> None:
        try:
            self.channel.wire.send((To.RETURN,))
        except Closed:
            raise self._lost() from None

    def lend(self, when_lost: Callable[[], object]) -> None:
        try:
            self.places.lent(self.channel, True)
            self.channel.link.watch(self.channel, when_lost)
        except Closed:
            raise self._lost() from None

    def stop(self, item: object) -> None:
        self._told = item
        channel = self._channel
        if channel is not None and self.item is item:
            try:
                channel.wire.send((To.STOP, channel.number))
            except Closed:  # who receives finds out
                pass

    def dismiss(self, item: object, at_once: bool = False) -> None:
        with self.places.aiming:
            channel = self._channel
            if self.item is not item:
                return
            if not self._ids or channel is None:  # it was not called yet
                self._unwanted = item
                return
            if channel.link.kills:
                if channel.lent and not at_once:
                    # What it waits for raises now, in the task. Others are in its process.
                    patience = threading.Timer(PATIENCE, self.dismiss, (item, True))
                    patience.daemon = True
                    patience.start()
                    return
                channel.link.ended = f"its worker process was stopped to stop {getattr(item, 'id', item)}"
                channel.link.kill(channel)
                return
        super().dismiss(item)

    def _lost(self) -> Lost:
        channel, self._channel, self._ids = self.channel, None, []
        channel.link.unwatch(channel)
        return Lost(self.places.drop(channel), unsure=not channel.link.tells_at_once)


class RemotePlaces(Places):
    """Places whose threads have their task runs called in worker processes.

    Args:
        capacity: number of places, and of worker processes.
        max_calls: replace a worker process that was given so many.
    """

    remote = True
    kills = True
    #: Whether a process that is lent is to be preferred to an idle one, or a new one.
    lends_first = False
    #: Whether its processes belong to somebody else, who has them back after each stay.
    borrows = False
    #: What pickles in the place of ``pickle.dumps``; see ``wire.encode``.
    dumps: Any = None

    def __init__(self, capacity: int, name: str, max_calls: int | None = None) -> None:
        super().__init__(capacity, name)
        self.max_calls = max_calls
        #: Held while somebody decides whether a process is to be killed, or gives it something else to do.
        self.aiming = threading.Lock()
        self.targets: dict[Any, bytes] = {}  #: functions that travel by their names, and these
        # Guarded by _lock, too:
        self.links: list[Link] = []
        self._starting = 0
        self._ended: list[Link] = []  # those that were told to end

    def start_link(self) -> Link:
        """Start a worker process, and wait until it can be given calls.

        Raises:
            Lost: it has ended at once.
        """
        raise NotImplementedError("every kind of places starts its own links")

    def encode_function(self, fn: Any, task_id: str) -> Any:
        """Return the function of a call as it travels.

        Raises:
            TransferError: it cannot.
        """
        try:
            if type(fn) in NAMED and self.can_import(fn):
                try:
                    target = self.targets[fn] = by_name(fn)
                    return target
                except Exception:  # it may be defined inside another one
                    pass
            return encode(fn, self.dumps_for(fn))
        except Exception as error:
            raise TransferError(task_id, culprit(fn, "its function"), said(error)) from error

    #: Whether workers import the main module again, instead of having it from a fork.
    imports_main = True

    def can_import(self, fn: Any) -> bool:
        """Whether workers can import the module of a function."""
        return not (self.imports_main and main_is_lost(fn))

    def dumps_for(self, fn: Any) -> Dumps | None:
        """Return what pickles a function that does not travel by its name."""
        if not main_is_lost(fn):
            return None
        try:
            import cloudpickle
        except ImportError:
            raise TypeError("it was defined at a prompt: put it in a module, or install cloudpickle") from None
        dumps: Dumps = cloudpickle.dumps
        return dumps

    # ---- links ----------------------------------------------------------------------------------

    def new_worker(self) -> ThreadWorker:
        return RemoteWorker(self)

    def take_channel(self) -> Channel:
        """Return a channel of an idle process; or of a new one; or of one that is lent."""
        with self._lock:
            channel = self._free_channel()
            if channel is not None:
                return channel
            self._starting += 1
            ended = [link for link in self._ended if not link.join(0)]
            self._ended = ended
        link = None
        try:
            link = self.start_link()
        finally:
            with self._lock:
                self._starting -= 1
                closed = self.closed
                if link is not None and not closed:
                    self.links.append(link)
                    link.busy = 1
                    channel = link.free.pop()
        assert link is not None, "it raises if it cannot start one"
        if closed or channel is None:
            link.close()
            link.join(JOIN)
            raise Lost(f"{self.name} is shut down", final=True)
        return channel

    def _free_channel(self) -> Channel | None:
        usable = [link for link in self.links if link.free and not link.ended]
        idle = [link for link in usable if not link.busy]
        if self.lends_first or (not idle and len(self.links) + self._starting >= self.capacity):
            lent = [link for link in usable if link.busy and link.busy == link.waiting]
            idle = sorted(lent, key=lambda link: link.waiting) or idle
        if not idle:
            return None
        idle[0].busy += 1
        return idle[0].free.pop()

    def put_channel(self, channel: Channel) -> None:
        """Nobody uses ``channel`` for now."""
        link, spare = channel.link, None
        with self._lock:
            link.busy -= 1
            link.free.append(channel)
            if len(link.free) > 1:  # it was lent: one is enough, and without the first the process ends
                spare = link.free.pop(0 if link.free[1] is link.first else 1)
            retires = not link.busy and (self.closed or self.borrows or self.is_spent(link))
            if retires and link in self.links:
                self.links.remove(link)
                self._ended.append(link)
                link.ended = link.ended or "its worker process was replaced"
        if spare is not None:
            spare.wire.close()
        if retires:
            link.close()

    def is_spent(self, link: Link) -> bool:
        """Whether a process was given as many calls as it may have."""
        return self.max_calls is not None and link.calls >= self.max_calls

    def drop(self, channel: Channel) -> str:
        """The process of ``channel`` has ended: forget it, and return why it did."""
        link = channel.link
        channel.wire.close()
        with self._lock:
            link.busy -= 1
            first = link in self.links
            if first:
                self.links.remove(link)
                self._ended.append(link)
        if first:
            link.close()
        return link.reason(channel)

    def lent(self, channel: Channel, lent: bool) -> None:
        """The task of ``channel`` begins, or ends, to wait. Raises ``Closed``."""
        link = channel.link
        with self._lock:
            channel.lent = lent
            link.waiting += 1 if lent else -1
            enough = not lent or bool(link.free)
        if not enough:
            wire = link.further(channel)
            with self._lock:
                enough = bool(link.free)  # meanwhile another one was put back: a second would never be closed
                if not enough:
                    link.free.append(Channel(link, wire))
            if enough:
                wire.close()
        elif lent:
            link.will_wait(channel)

    def shutdown(self, wait: bool = True) -> None:
        """Send every sleeping thread home, and end the processes; those that still work are killed."""
        with self._lock:
            self.closed = True
            working = [link for link in self.links if link.busy]
        for link in working:  # first: their threads are waited for
            link.ended = link.ended or f"{self.name} was shut down"
            link.kill()
        super().shutdown(wait)
        with self._lock:
            links, self.links = self.links, []
            links += self._ended
            self._ended = []
        for link in links:
            link.ended = link.ended or f"{self.name} was shut down"
            link.close()
            if link.busy:
                link.kill()
        if wait:
            for link in links:
                if not link.join(JOIN):
                    link.kill()
                    link.join(JOIN)


def handle_record(level: int, facts: dict[str, Any]) -> None:
    """Handle a log record of a worker as if it was made here."""
    logger = logging.getLogger(facts["name"])
    if logger.isEnabledFor(level):
        logger.handle(logging.makeLogRecord(facts))
