"""Ctrl-C in the main thread, while that is inside of the engine: it strikes where nothing can break.

Python raises ``KeyboardInterrupt`` between any two steps of the main thread. In the midst of the engine that would
leave a lock taken, or a task run half told. So, for as long as the main thread is in a ``shield``, Ctrl-C is raised at
once only in code that is not ours, or in ``rest``, where the engine waits. Anywhere else it is kept until the next
``rest``, or the end of the shield. A second Ctrl-C is never kept.

Nothing is changed if the program handles SIGINT itself, as event loops do. May import: the standard library.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

#: A Ctrl-C that Python has kept for itself is found after so many seconds.
LOOK = 1.0

_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_PYTHON = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_OTHERS = ("site-packages", "dist-packages")  # below that

# Only the main thread changes these, and signal handlers run there.
_depth = 0
_struck = False


@contextmanager
def shield() -> Generator[None, None, None]:
    """Keep Ctrl-C from striking in the midst of the engine, if this is the main thread.

    Raises:
        KeyboardInterrupt: at the end, if Ctrl-C came meanwhile and was not told yet.
    """
    global _depth, _struck
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    installed = _depth == 0 and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if _depth == 0 and not installed:
        yield
        return
    if installed:
        signal.signal(signal.SIGINT, _strike)
    _depth += 1
    kept = False
    try:
        yield
    finally:
        _depth -= 1
        if installed:
            if signal.getsignal(signal.SIGINT) is _strike:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            kept, _struck = _struck, False
    if kept:
        raise KeyboardInterrupt


def struck() -> bool:
    """Whether Ctrl-C came, in the thread that it is for, and was not dealt with yet."""
    return _struck and threading.current_thread() is threading.main_thread()


def dealt_with() -> None:
    """Whoever has got the ``KeyboardInterrupt`` sees to it: the next Ctrl-C is another one."""
    global _struck
    if threading.current_thread() is threading.main_thread():
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
    while _depth and left > LOOK and threading.current_thread() is threading.main_thread():
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
