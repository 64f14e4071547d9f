"""Streaming: read results and interim values while the run goes on.

A generator task sends each value that it yields, and schedules each request that it yields, at once.
``ctx.emit(value)`` does the former from any function. The reader's loop is the only place that prints,
so the lines never run into each other.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from millstream import Context, Flow, NextTask

flow = Flow(max_workers=2, name="bakery")


@flow.task
def order(loaves: int) -> Generator[str | NextTask, None, str]:
    """Yield an interim value and a request for each loaf; what is returned is the output."""
    for number in range(1, loaves + 1):
        yield f"loaf {number} is ordered"
        yield NextTask("bake", {"loaf": number}, spawn_another=True)
    return f"{loaves} loaves"


@flow.task
def bake(ctx: Context[Any], loaf: int) -> str:
    """Tell how it goes, then give the loaf."""
    for done in (50, 100):
        time.sleep(0.02)
        ctx.emit(done)
    return f"loaf {loaf}"


def main() -> None:
    """Print every chunk with the id of the task run that it comes from."""
    for chunk in flow.stream("order", {"loaves": 2}):
        said = f"{chunk.value} %" if isinstance(chunk.value, int) else chunk.value
        print(f"{chunk.task_id:8} {said}")
    flow.close()


if __name__ == "__main__":
    main()
