"""What the tests have called by jobs of a cluster, beside what worker processes are given, too."""

import contextvars
import os
import signal
import threading
import time
from typing import Any

from millstream import Context, NextTask, current_task


def of_this_cluster() -> tuple[Any, ...]:
    """Return what a task can find out about the cluster that it is called by: that of Dask, which is asked here."""
    import distributed

    worker = distributed.get_worker()
    return worker.scheduler.address, worker.address, os.getpid()


def kept_of_jobs(dask_scheduler: Any) -> list[int]:
    """Return how many jobs the scheduler of Dask, which calls this, knows as begun, and as under way."""
    mailboxes = [plugin for name, plugin in dask_scheduler.plugins.items() if name.startswith("millstream-")]
    return [len(kept) for plugin in mailboxes for kept in (plugin.begun, plugin.where)]


# ---- what is written down -------------------------------------------------------------------------


def write_down(log: str, line: str) -> None:
    """Add a line to a file that others write to as well."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


def recorded(log: str, n: int) -> int:
    """Do nothing but leave a sign of it."""
    write_down(log, str(n))
    return n


def slow_square(log: str, n: int) -> int:
    """Say which process it is in, and take a while."""
    write_down(log, str(os.getpid()))
    time.sleep(0.05)
    return n * n


def forever(log: str) -> None:
    write_down(log, str(os.getpid()))
    time.sleep(60)


def die_at_number(log: str, n: int, deadly: int) -> int:
    """End the process at one number, in the first attempt."""
    write_down(log, str(n))
    if n == deadly and current_task().attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


# ---- what streams ---------------------------------------------------------------------------------


def count_up(size: int) -> Any:
    yield from range(size)
    return "done"


def emit_up(ctx: Context, size: int) -> str:
    for number in range(size):
        ctx.emit(number)
    return "done"


def emit_from_threads(ctx: Context, size: int) -> int:
    """Emit from four threads of the task at once."""

    def emit(first: int) -> None:
        for number in range(size):
            ctx.emit((first, number))

    in_threads(emit)
    return 4 * size


def in_threads(function: Any) -> None:
    """Call a function with the numbers of four threads, as the task."""
    threads = [threading.Thread(target=contextvars.copy_context().run, args=(function, first)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ---- the context ----------------------------------------------------------------------------------


def say_and_get(ctx: Context, says: str, key: str) -> Any:
    """Say that it is about to wait for a key, and do so."""
    ctx[says] = True
    return ctx.get(key)


def get_and_set(ctx: Context, wants: str, gives: str) -> str:
    """Wait for one key, then set another."""
    value = ctx.get(wants)
    ctx[gives] = f"{value}+"
    return value


def ask_and_get(ctx: Context, n: int) -> Any:
    """Ask for the next one of itself while this one is under way, and wait for what that sets."""
    if n:
        yield NextTask("ask_and_get", {"n": n - 1}, spawn_another=True)
        ctx[f"level-{n}"] = ctx.get(f"level-{n - 1}") + 1
    else:
        ctx["level-0"] = 0
    return n


def die_while_others_wait(ctx: Context) -> None:
    """Wait until all others are waiting, then end the process."""
    while len(ctx.get("waiting", [])) < 3:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def wait_beside(ctx: Context) -> Any:
    ctx.append("waiting", os.getpid())
    return ctx.get("outside", external=True)


# ---- processes ------------------------------------------------------------------------------------


def overlap(log: str, n: int) -> tuple[float, float, int]:
    """Say from when to when it was under way, by a clock that all processes of a machine share."""
    began = time.monotonic()
    write_down(log, str(os.getpid()))
    time.sleep(0.05)
    return began, time.monotonic(), os.getpid()


def says() -> None:
    current_task().logger.warning("said")


def until_told_or_stopped(log: str, ctx: Context) -> str:
    """End when it is told to, and say so where it can be read when nobody hears of it any more."""
    ctx["pid"] = os.getpid()
    limit = time.monotonic() + 20
    while not current_task().cancelled and time.monotonic() < limit:
        time.sleep(0.005)
    write_down(log, "told" if current_task().cancelled else "not told")
    return "told"
