"""A nightly job on a schedule, over the night in which the clocks go back, with a clock that jumps.

``Scheduler.start()`` would run the jobs by itself. Here ``tick(now)`` is called instead, which decides by the time that
it is given, alone: so three days pass in a moment, and a test can ask what happens in the night of the change. The
program is down for a while, too: with a store, the schedule knows afterwards what it has missed.

    python examples/nightly.py
"""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from millstream import Context, Flow
from millstream.schedule import Scheduler

BERLIN = ZoneInfo("Europe/Berlin")


def make_schedule(path: str) -> tuple[Flow, Scheduler]:
    """Return a flow, and what it does by the clock."""
    flow = Flow("inline", name="night", store=path)

    @flow.task
    def backup(ctx: Context[Any]) -> str:
        """Copy everything, or so."""
        return "backed up"

    @flow.task
    def look(ctx: Context[Any]) -> str:
        """See whether all is well."""
        return "all is well"

    scheduler = Scheduler(flow)
    scheduler.cron("30 2 * * *", tz="Europe/Berlin", missed="once", name="backup").do(backup)
    scheduler.every(timedelta(hours=6), name="look").do(look)
    return flow, scheduler


def live(path: str, begin: datetime, end: datetime) -> None:
    """Let the schedule run from one instant to another, in steps of ten minutes."""
    flow, scheduler = make_schedule(path)
    print(f"-- up at {begin:%a %d %H:%M} UTC")
    now = begin
    while now < end:
        for run in scheduler.tick(now):
            (text,) = run.result().values()
            print(f"{now.astimezone(BERLIN):%a %d %H:%M %Z}  {text}")
        now += timedelta(minutes=10)
    flow.close()


def main() -> None:
    """Run for a day, be down over the next night, and come back."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "night.db")
        saturday = datetime(2026, 10, 24, 18, tzinfo=UTC)
        live(path, saturday, saturday + timedelta(hours=24))
        live(path, saturday + timedelta(hours=36), saturday + timedelta(hours=44))


if __name__ == "__main__":
    main()
