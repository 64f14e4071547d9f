"""The stream of one run: a bounded buffer of chunks between the workers and one reader.

Chunks are appended in the locked step that makes successors ready, so a chunk arrives after
everything that caused it. A worker that finds the buffer full waits for room before it reports, with
no lock held. Room for one wakes all who wait for it, so each worker can exceed the bound by a chunk or
two. May import: values, errors, interrupts, and the run for its types.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

from millstream.errors import StreamError
from millstream.interrupts import dealt_with, shield
from millstream.values import StreamChunk

if TYPE_CHECKING:
    from millstream.engine.run import FlowRun


class Stream:
    """The buffer, guarded by the monitor of its run; taking a chunk out needs no lock.

    Args:
        bound: chunks that may wait for the reader.
        attached: whether a reader is sure to come. If not, the chunks up to the bound are kept for
            one that comes later, and nobody ever waits for room.
    """

    def __init__(self, bound: int, *, attached: bool) -> None:
        self.bound = bound
        self.attached = attached
        self.chunks: deque[StreamChunk] = deque()
        self.missed = False  #: nobody read, and the buffer overflowed
        self.closed = False
        self._reader: Callable[[], object] | None = None  #: wakes the reader that sleeps
        self._writers: list[Callable[[], object]] = []  #: wake those that wait for room

    @property
    def full(self) -> bool:
        return self.attached and not self.closed and len(self.chunks) >= self.bound

    # ---- under the monitor ----------------------------------------------------------------------

    def push(self, chunk: StreamChunk) -> Callable[[], object] | None:
        """Append a chunk; return what wakes the reader, to be called after the lock."""
        if self.closed or self.missed:
            return None
        if not self.attached and len(self.chunks) >= self.bound:
            self.missed = True
            self.chunks.clear()
            return None
        self.chunks.append(chunk)
        wake, self._reader = self._reader, None
        return wake

    def sleep(self, wake: Callable[[], object]) -> bool:
        """The reader is about to sleep; return False when it must look again."""
        if self.chunks or self.closed:
            return False
        self._reader = wake
        return True

    def wait_for_room(self, wake: Callable[[], object]) -> bool:
        """A writer is about to sleep; return False when it must look again."""
        if not self.full:
            return False
        self._writers.append(wake)
        return True

    def make_room(self) -> list[Callable[[], object]]:
        """The reader took chunks: return what wakes the writers."""
        if self.full:
            return []
        writers, self._writers = self._writers, []
        return writers

    def close(self) -> list[Callable[[], object]]:
        """Nothing comes any more: return what wakes everybody."""
        self.closed = True
        wakes, self._writers = self._writers, []
        if self._reader is not None:
            wakes.append(self._reader)
            self._reader = None
        return wakes

    # ---- the reader, no lock held ---------------------------------------------------------------

    def take(self) -> StreamChunk | None:
        """Return the next chunk, or None when there is none now."""
        try:
            return self.chunks.popleft()
        except IndexError:
            return None

    @property
    def waited_for(self) -> bool:
        """Whether writers wait for room, and there is some."""
        return bool(self._writers) and not self.full


class Reading:
    """The reading end of a run's stream, whether the reader blocks or awaits.

    Args:
        run: the run to read.
        owns: nobody else will ask for the result of the run.
    """

    def __init__(self, run: FlowRun, *, owns: bool) -> None:
        self._owns = owns
        self._left = False  #: close was called
        self._told = False  #: the error was raised
        self._stream = attach(run)
        self.run = run

    def _take(self) -> StreamChunk | None:
        """Return the next chunk, or None when the reader must sleep.

        Raises:
            Exception: what ended the run, once.
            EOFError: there is nothing more.
        """
        stream, run = self._stream, self.run
        closed = stream.closed  # looked at first: what came before the end is in the buffer
        chunk = stream.take()
        if chunk is not None:
            if stream.waited_for:
                with shield():
                    run.wake_writers()
        elif closed:
            error = None if self._told else run.take_error(keep=not self._owns)
            self._told = True
            try:
                raise EOFError if error is None else error
            finally:
                del error, self  # no circle between the error and the frame that raises it
        return chunk


class Chunks(Reading, Iterator[StreamChunk]):
    """What ``stream`` returns: an iterator of chunks that owns its run.

    Leaving it early (``break``, an exception in the loop, ``close()``, dropping it) cancels the run.
    """

    def __iter__(self) -> Chunks:
        return self

    def __next__(self) -> StreamChunk:
        try:
            while (chunk := self._take()) is None:
                self._sleep()
        except EOFError:
            raise StopIteration from None
        except KeyboardInterrupt:
            self.close()
            raise
        return chunk

    def _sleep(self) -> None:
        """Wait for the next chunk, working meanwhile if the run is worked on in this thread."""
        run, stream = self.run, self._stream
        try:
            run.drive(lambda: bool(stream.chunks) or stream.closed, run.idle_readers)
            run.sleep(stream.sleep, run.idle_readers)
        except BaseException:  # Ctrl-C
            dealt_with()
            self.close()
            raise

    def close(self) -> None:
        """Cancel the run unless it has ended, and wait until it has."""
        self._left = True
        with shield():
            self.run.abandon()

    def __del__(self) -> None:
        run = getattr(self, "run", None)  # __init__ may have failed
        if run is not None and not self._left:
            if sys.is_finalizing():  # other threads do not run any more: nobody could be waited for
                run.cancel()
            else:
                run.abandon()

    def __enter__(self) -> Chunks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncChunks(Reading, AsyncIterator[StreamChunk]):
    """What ``astream`` returns: an asynchronous iterator of chunks that owns its run."""

    def __aiter__(self) -> AsyncChunks:
        return self

    async def __anext__(self) -> StreamChunk:
        try:
            while (chunk := self._take()) is None:
                await self._sleep()
        except EOFError:
            raise StopAsyncIteration from None
        return chunk

    async def _sleep(self) -> None:
        try:
            await self.run.sleep_async(self._stream.sleep)
        except BaseException:  # the awaiter was cancelled
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Cancel the run unless it has ended, and wait until it has."""
        self.run.cancel()
        await self.run.ended()

    def __del__(self) -> None:
        run = getattr(self, "run", None)
        if run is not None:
            run.cancel()

    async def __aenter__(self) -> AsyncChunks:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def attach(run: FlowRun) -> Stream:
    """Make the caller the reader of a run's stream.

    Raises:
        StreamError: it has a reader, or too much was missed.
    """
    with run.monitor:
        stream = run.stream_buffer
        if stream is None or stream.missed:
            raise StreamError(
                run.id, "more chunks went by than are kept; call flow.stream(...), or run.stream() sooner"
            )
        if run.has_reader:
            raise StreamError(run.id, "it has a reader already")
        run.has_reader = True
        stream.attached = True
    return stream
