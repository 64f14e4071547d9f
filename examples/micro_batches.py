"""Extract, transform, check, store: small batches through one flow, bad rows into quarantine.

The business is in plain functions. The flow gives each run a fresh context, what all tasks need
(``deps``) and facts about the batch (``metadata``), so batches cannot see each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from millstream import Context, Flow, NextTask, TaskOutput

Row = dict[str, str]


@dataclass
class Warehouse:
    """Where rows end."""

    amounts: list[int] = field(default_factory=list)
    quarantine: list[Row] = field(default_factory=list)


def batches() -> Iterator[list[Row]]:
    """Yield what some source would send."""
    yield [{"id": "1", "amount": "10"}, {"id": "2", "amount": "15"}]
    yield [{"id": "3", "amount": "ten"}, {"id": "4", "amount": "20"}]
    yield [{"id": "", "amount": "5"}]


def is_sound(row: Row) -> bool:
    """Whether a row has an id and a number."""
    return bool(row["id"]) and row["amount"].isdigit()


def extract(rows: list[Row]) -> TaskOutput[int]:
    """Part the rows, and ask for whatever has rows to work on; the report comes last."""
    good = [row for row in rows if is_sound(row)]
    bad = [row for row in rows if not is_sound(row)]
    following = [NextTask("load", {"rows": good})] if good else []
    following += [NextTask("set_aside", {"rows": bad})] if bad else []
    return TaskOutput(len(rows), [*following, NextTask("report", join=True)])


def load(rows: list[Row], ctx: Context[Warehouse]) -> str:
    """Store the good rows."""
    ctx.deps.amounts.extend(int(row["amount"]) for row in rows)
    return f"{len(rows)} loaded"


def set_aside(rows: list[Row], ctx: Context[Warehouse]) -> str:
    """Store the bad rows."""
    ctx.deps.quarantine.extend(rows)
    return f"{len(rows)} in quarantine"


def report(upstream: list[str], ctx: Context[Warehouse]) -> str:
    """Say what became of the batch."""
    return f"batch {ctx.metadata['batch']}: {', '.join(upstream)}"


def main() -> None:
    """Send every batch through, one after another."""
    warehouse = Warehouse()
    with Flow(name="orders", entry="extract") as flow:
        for task in (extract, load, set_aside, report):
            flow.add_task(task.__name__, task)
        for number, rows in enumerate(batches(), start=1):
            results: dict[str, Any] = flow.run(inputs={"rows": rows}, deps=warehouse, metadata={"batch": number})
            print(results["report"])
    print(f"total {sum(warehouse.amounts)}, set aside {len(warehouse.quarantine)}")


if __name__ == "__main__":
    main()
