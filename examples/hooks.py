"""Seeing a run: a hook that hears of every step, and a trace of where the time went.

Hooks are called in a thread of their own, with the events of a run in their order. A run with
``trace=True`` keeps every attempt; ``to_chrome_trace`` writes them for ``chrome://tracing`` and Perfetto.
"""

from __future__ import annotations

import json
import sys

from millstream import (
    Flow,
    RunEndEvent,
    RunStartEvent,
    TaskFailureEvent,
    TaskRetryEvent,
    TaskSuccessEvent,
    current_task,
    fn_hook,
)

said: list[str] = []


def hear(event: RunStartEvent | RunEndEvent | TaskSuccessEvent | TaskFailureEvent | TaskRetryEvent) -> None:
    """Note an event."""
    task = getattr(event, "id", event.flow)
    facts = {name: getattr(event, name) for name in ("attempt", "output", "status", "error") if hasattr(event, name)}
    said.append(f"{type(event).__name__:16} {task:6} {facts or ''}".rstrip())


listener = fn_hook(on_run_start=hear, on_task_success=hear, on_task_failure=hear, on_task_retry=hear, on_run_end=hear)
flow = Flow("inline", name="mill", hooks=[listener])


@flow.task
def grind() -> int:
    """Give something to work on."""
    return 3


@flow.task(retries=1)
def bake(grind: int) -> int:
    """Fail once."""
    return grind // (current_task().attempt - 1)


if __name__ == "__main__":
    with flow:
        run = flow.start(trace=True)
        print(run.result(), *said, sep="\n")
        text = run.report().to_chrome_trace(*sys.argv[1:2])  # a path, if one is given
        bars = [bar for bar in json.loads(text)["traceEvents"] if bar["ph"] == "X"]
        print("bars:", ", ".join(f"{bar['name']} (attempt {bar['args']['attempt']})" for bar in bars))
