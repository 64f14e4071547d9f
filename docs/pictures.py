"""Makes the pictures of README.md and of these pages, with the drawings of Millstream itself.

    python docs/pictures.py [FOLDER]

Those of flows are the same each time; those of runs show how long it took on the machine that made them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from millstream import Flow, NextTask, RunReport, TaskOutput

IMAGES = Path(__file__).parent / "images"


def parse(item: str) -> str:
    """Stand here, since a worker process looks for it by its name."""
    time.sleep(0.03)
    return item.upper()


def orders() -> Flow:
    """Return a flow with everything that can be declared: edges that meet, a choice, a map, several executors."""
    flow = Flow(name="orders", on_error="continue")

    @flow.task
    def read() -> list[str]:
        time.sleep(0.02)
        return ["tea", "milk", "salt"]

    flow.add_task("parse", parse, for_each="read", executor="process")

    @flow.task
    async def prices() -> dict[str, int]:
        time.sleep(0.03)
        return {"TEA": 3, "MILK": 2}

    @flow.task
    def check(parse: list[str], prices: dict[str, int]) -> list[str]:
        time.sleep(0.02)
        return [name for name in parse if name not in prices]

    @flow.task(depends_on=[check], routes=["ship", "ask"])
    def decide(check: list[str]) -> str:
        return "ask" if check else "ship"

    @flow.task
    def ship() -> str:
        return "shipped"

    @flow.task
    def ask() -> str:
        raise LookupError("nobody knows the price of SALT")

    @flow.task(depends_on=[ship, ask], on_dep_failure="skip")
    def bill() -> str:
        return "billed"

    return flow


def census() -> Flow:
    """Return a flow that finds out as it goes what there is to do."""
    flow = Flow(name="census", max_workers=3)

    @flow.task
    def walk() -> TaskOutput[None]:
        time.sleep(0.01)
        surveys = [NextTask("survey", {"size": size}, spawn_another=True) for size in (4, 7, 3, 5, 2, 6, 3, 4, 2)]
        return TaskOutput(None, [*surveys, NextTask("table", join=True)])

    @flow.task
    def survey(size: int) -> int:
        time.sleep(size / 200)
        return size

    @flow.task
    def table(upstream: list[int]) -> int:
        time.sleep(0.01)
        return sum(upstream)

    return flow


def report_of(make: Callable[[], Flow], start: str | None = None) -> RunReport:
    """Run a flow, whatever becomes of it."""
    with make() as flow:
        run = flow.start(start, trace=True)
        run.wait()
        return run.report()


def main(folder: Path) -> None:
    """Write all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with orders() as flow:
        flow.to_svg(folder / "orders.svg")
    report_of(orders).to_svg(folder / "orders-run.svg")
    report = report_of(census, "walk")
    report.to_svg(folder / "census-run.svg")
    report.to_timeline(folder / "census-timeline.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
