"""Tasks of ``test_regressions_processes``: worker processes import them from here."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from millstream import Context, NextTask, current_task


def fan(task: str, inputs_of: list[dict]) -> list[NextTask]:
    """Ask for a run of a task with each of these inputs."""
    return [NextTask(task, inputs, spawn_another=True) for inputs in inputs_of]


def number(i: int) -> int:
    return i


def update_or_set(ctx: Context, i: int) -> int:
    """One updates what nobody has set yet, one behind it sets that."""
    if i == 100:
        return ctx.update("key", lambda value: value + 1)
    if i == 150:
        ctx.set("key", 1)
    return i


def get_or_set(ctx: Context, i: int) -> int:
    """Some wait, after a while, for what the last one sets."""
    if i % 100 == 50:
        time.sleep(0.004)
        return ctx.get("key", timeout=5)
    if i == 299:
        ctx.set("key", 1)
    return i


def leave_a_thread(ctx: Context, mode: str) -> str:
    """Return while a thread of the task goes on with the context."""
    busy = threading.Event()

    def goes_on() -> None:
        try:
            while mode == "set":
                ctx.set("x", 1)
                busy.set()
            busy.set()
            ctx.get("key")
        except BaseException:  # it is refused, once the task has ended
            pass

    threading.Thread(target=goes_on, daemon=True).start()
    busy.wait(5)
    return mode


def number_and_set(ctx: Context, i: int) -> int:
    """Return the number; the first one sets what a thread may wait for."""
    if i == 0:
        ctx.set("key", 1)
    return i


def update_in_threads(ctx: Context, keys: int) -> None:
    """Count 200 times, in four threads of one task."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: ctx.update(f"k{i % keys}", lambda value: value + 1, 0), range(200)))


def say_bad_record(i: int) -> int:
    current_task().logger.warning("a record that nobody can handle")
    return i


def slow_start() -> None:
    """An initializer that takes its time."""
    time.sleep(0.5)


def own_pid() -> int:
    return os.getpid()


def tell_and_go_on(path: str) -> None:
    """Note that it has begun, and never end."""
    with open(path, "a") as file:
        file.write("begun\n")
    while True:
        time.sleep(0.05)


def wait_for(ctx: Context, key: str) -> object:
    return ctx.get(key, external=True)


def take_a_while(i: int) -> int:
    time.sleep(0.15)
    return i


class UnspeakableError(Exception):
    """An error that cannot be made here, nor looked at."""

    def __init__(self, home: int) -> None:
        super().__init__(home)
        if os.getpid() != home:
            raise SystemExit("not here")

    def __str__(self) -> str:
        raise RuntimeError("no text")


def raise_unspeakable() -> None:
    raise UnspeakableError(os.getpid())


class ExitsHere:
    """A value whose arrival in another process raises ``SystemExit``."""

    def __reduce__(self) -> object:
        return arrive, (os.getpid(),)


def arrive(home: int) -> object:
    if os.getpid() != home:
        raise SystemExit("not here")
    return ExitsHere()


def give_what_exits() -> object:
    return ExitsHere()
