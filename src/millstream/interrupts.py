"""Ctrl-C in the main thread, while that is inside of the engine: it strikes where nothing can break.

Python raises ``KeyboardInterrupt`` between any two steps of the main thread. In the midst of the engine that would
leave a lock taken, or a task run half told. So, for as long as the main thread is in a ``shield``, Ctrl-C is raised at
once only in code that is not ours, or in ``rest``, where the engine waits. Anywhere else it is kept until the next
``rest``, or the end of the shield. A second Ctrl-C is never kept.

Nothing is changed if the program handles SIGINT itself, as event loops do. May import: the standard library.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from signal import SIGINT
from types import CodeType, FrameType
from typing import Any

try:  # what ``signal`` wraps: it makes enums of all that it is given and gives, which takes 20 times as long
    from _signal import default_int_handler, getsignal  # type: ignore[import-not-found]
    from _signal import signal as set_handler
except ImportError:  # another Python
    from signal import default_int_handler, getsignal
    from signal import signal as set_handler

#: A Ctrl-C that Python has kept for itself is found after so many seconds.
LOOK = 1.0

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_PYTHON = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_OTHERS = ("site-packages", "dist-packages")  # below that

_MAIN = threading.main_thread().ident

# Only the main thread changes these, and signal handlers run there.
_depth = 0
_struck = False


class _Shield:
    """What ``shield`` returns: it may be entered again inside of itself."""

    __slots__ = ()

    def __enter__(self) -> None:
        global _depth
        if threading.get_ident() != _MAIN:
            return
        if _depth:
            _depth += 1
        elif getsignal(SIGINT) is default_int_handler:
            set_handler(SIGINT, _strike)
            _depth = 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        global _depth, _struck
        if not _depth or threading.get_ident() != _MAIN:
            return
        _depth -= 1
        if not _depth:
            if getsignal(SIGINT) is _strike:
                set_handler(SIGINT, default_int_handler)
            kept, _struck = _struck, False
            if kept and kind is None:
                raise KeyboardInterrupt


_SHIELD = _Shield()


def shield() -> _Shield:
    """Keep Ctrl-C from striking in the midst of the engine, for a ``with`` block in the main thread.

    Leaving the block raises ``KeyboardInterrupt`` if Ctrl-C came meanwhile and was not told yet.
    """
    return _SHIELD


def struck() -> bool:
    """Whether Ctrl-C came, in the thread that it is for, and was not dealt with yet."""
    return _struck and threading.get_ident() == _MAIN


def dealt_with() -> None:
    """Whoever has got the ``KeyboardInterrupt`` sees to it: the next Ctrl-C is another one."""
    global _struck
    if threading.get_ident() == _MAIN:
        _struck = False


def tell() -> None:
    """Raise what was kept.

    Raises:
        KeyboardInterrupt: Ctrl-C came.
    """
    if struck():
        dealt_with()
        raise KeyboardInterrupt


def rest(wait: Callable[..., Any], timeout: float | None = None) -> bool:
    """Return what ``wait(timeout=...)`` gives; Ctrl-C may strike at any time meanwhile.

    Args:
        wait: waits for so many seconds at the longest, and returns whether what it waits for has come.
        timeout: seconds; None waits without limit.
    """
    if _struck:  # looked at right here: between this and the waiting it strikes
        tell()
    left = threading.TIMEOUT_MAX if timeout is None else timeout
    # Python does not wake a thread for a signal that came just before it has begun to wait for a lock.
    while _depth and left > LOOK and threading.get_ident() == _MAIN:
        if wait(timeout=LOOK):
            return True
        left -= LOOK
    return bool(wait(timeout=left))


def _strike(number: int, frame: FrameType | None) -> None:
    global _struck
    again, _struck = _struck, True
    if again or _may_strike(frame):
        raise KeyboardInterrupt


def _may_strike(frame: FrameType | None) -> bool:
    """Whether what the main thread does is not the engine's, or is only waiting."""
    while frame is not None:
        code: CodeType = frame.f_code
        name = code.co_filename
        if name.startswith(_OURS):
            return code is rest.__code__
        of_python = name.startswith("<frozen ") or (
            name.startswith(_PYTHON) and not name[len(_PYTHON) :].startswith(_OTHERS)
        )
        if not of_python:
            return True  # a user's, or some library's
        frame = frame.f_back
    return True
