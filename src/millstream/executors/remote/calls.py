"""The protocol between the engine and workers that have task runs called elsewhere.

A ``Caller`` is given calls, and from then on there are messages: each call is done, has failed or was returned,
and in between it may ask for what only this process has. May import: executors.base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from millstream.executors.base import Worker

#: What ``current_task()`` is to say elsewhere: the id of the run, the name of the task, the id of the task run,
#: the path that its key is made of, the attempt, what hooks want to be called before (pickles), and the seconds until
#: its time is up (or None).
Facts = tuple[str, str, str, int, int, tuple[bytes, ...], float | None]


class Bound(NamedTuple):
    """A function with its arguments, to be called elsewhere."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    enters: tuple[bytes, ...] = ()  #: pickles of what is to be called before


class Done(NamedTuple):
    """The oldest call gave a value."""

    value: Any
    seconds: float  #: that it took


class Failed(NamedTuple):
    """The oldest call raised."""

    error: BaseException
    seconds: float


class Returned(NamedTuple):
    """So many of the newest calls have not begun, and never will there."""

    calls: int
    asked: bool  #: it is what ``ask_back`` was for


class Asked(NamedTuple):
    """The oldest call wants something that only this process has."""

    what: str
    args: tuple[Any, ...]
    waits: bool  #: for ``answer`` or ``refuse``


class Begun(NamedTuple):
    """The calls stand in line no more."""


Message = Done | Failed | Returned | Asked | Begun


class Lost(Exception):  # noqa: N818 - the engine makes an error of it
    """Whoever was given calls has ended, and says nothing any more.

    Args:
        reason: what happened, as the end of a sentence.
        final: it is no use to try again.
        unsure: any of the calls may have begun, not only the oldest.
        withdrawn: the oldest call was given up before it was sent, and none was.
        cause: what was raised over there.
    """

    def __init__(
        self,
        reason: str,
        *,
        final: bool = False,
        unsure: bool = False,
        withdrawn: bool = False,
        cause: BaseException | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.final, self.unsure, self.withdrawn, self.cause = reason, final, unsure, withdrawn, cause


class Caller(Worker, Protocol):
    """A worker that has its task runs called elsewhere: in another process, on another machine.

    It is given calls, and then there are messages until each call is done, has failed or was returned;
    then it can be given calls again. The calls are done one after another, in their order.
    """

    #: How many calls it can be given when it is open.
    room: int
    #: How long the calls of a batch shall take together, in seconds; long against the cost of a message.
    batch_time: float
    #: Whether calls may have to wait for a place over there; ``Begun`` comes then if they have a time limit.
    stands_in_line: bool

    def open(self) -> None:
        """Get ready for calls. Raises ``Lost``."""

    def encode(self, call: Bound, facts: Facts) -> Any:
        """Return a call as it travels.

        Raises:
            TransferError: it cannot.
        """

    def call(self, calls: Sequence[Any]) -> None:
        """Send encoded calls. Raises ``Lost``; then none of them has begun."""

    def receive(self) -> Sequence[Message]:
        """Wait for messages. Raises ``Lost``; then the oldest call may have begun, and none behind it."""

    def answer(self, value: Any) -> None:
        """Give the oldest call what it asked for. Raises what ``encode`` raises, or ``Lost``."""

    def refuse(self, error: BaseException) -> None:
        """The same with an error, which is raised there."""

    def ask_back(self) -> None:
        """The oldest call, which has asked, is going to wait: let what is behind it be returned, if only nothing."""

    def lend(self, when_lost: Callable[[], object]) -> None:
        """The oldest call waits: let others use what it is in.

        ``when_lost`` is called if that ends; it may be called later as well, and from any thread.
        """

    def stop(self, item: object) -> None:
        """Tell task run ``item``, if it is still that one, to stop, and let what is behind it be returned."""

    def release(self) -> None:
        """It is given no more calls for now."""
