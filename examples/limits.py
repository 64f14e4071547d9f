"""Time limits, cancelling and failures: how a run ends when it does not end well.

``timeout`` of a task bounds one attempt, ``timeout`` of a run bounds the run. Code in a thread cannot
be killed: it is told, and what it does afterwards changes nothing. What is raised is the task's own
exception, with a note that names the task run.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from millstream import Context, Flow, RunCancelledError, RunTimeoutError, TaskTimeoutError, current_task

flow = Flow(name="limits")
awake = threading.Event()


@flow.task(timeout=0.1)
def stubborn() -> None:
    """Take longer than it may, and look at nothing."""
    time.sleep(0.3)


@flow.task
def polite(ctx: Context[Any]) -> None:
    """Work in small steps, and stop when told to."""
    awake.set()
    while not current_task().cancelled:
        time.sleep(0.01)
    ctx.set("stopped", "never kept: the run had been given up")


@flow.task
def broken(row: int) -> None:
    """Fail."""
    raise ValueError(f"row {row} is no number")


def main() -> None:
    """End four runs, each in its way."""
    try:
        flow.run("stubborn")
    except TaskTimeoutError as error:
        print(f"task timeout: {error}")

    try:
        flow.run("polite", timeout=0.1, run_id="polite-1")
    except RunTimeoutError as error:
        print(f"run timeout: {error}")

    awake.clear()
    run = flow.start("polite", run_id="polite-2")
    awake.wait()
    run.cancel()
    try:
        run.result()
    except RunCancelledError as error:
        print(f"cancelled: {error} It is {run.status}.")

    try:
        flow.run("broken", {"row": 7}, run_id="broken-1")
    except ValueError as error:
        print(f"failed: {error}")
        print(f"  {error.__notes__[0]}")
    flow.close()


if __name__ == "__main__":
    main()
