"""Extract, transform, check, store: small batches through one flow, bad rows into quarantine.

The business is in plain functions. The flow gives each run a fresh context, what all tasks need
(``deps``) and facts about the batch (``metadata``), so batches cannot see each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from millstream import Context, Flow

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


flow = Flow(name="orders")


@flow.task(routes=["load", "set_aside"])
def extract(rows: list[Row]) -> dict[str, list[Row]]:
    """Part the rows, and choose whatever has rows to work on."""
    parts = {
        "load": [row for row in rows if is_sound(row)],
        "set_aside": [row for row in rows if not is_sound(row)],
    }
    return {name: part for name, part in parts.items() if part}


@flow.task
def load(payload: list[Row], ctx: Context[Warehouse]) -> str:
    """Store the good rows."""
    ctx.deps.amounts.extend(int(row["amount"]) for row in payload)
    return f"{len(payload)} loaded"


@flow.task
def set_aside(payload: list[Row], ctx: Context[Warehouse]) -> str:
    """Store the bad rows."""
    ctx.deps.quarantine.extend(payload)
    return f"{len(payload)} in quarantine"


@flow.task(depends_on=[load, set_aside])
def report(upstream: dict[str, str], ctx: Context[Warehouse]) -> str:
    """Say what became of the batch, once all that was chosen is done."""
    return f"batch {ctx.metadata['batch']}: {', '.join(upstream.values())}"


def main() -> None:
    """Send every batch through, one after another."""
    warehouse = Warehouse()
    with flow:
        for number, rows in enumerate(batches(), start=1):
            results: dict[str, Any] = flow.run(inputs={"rows": rows}, deps=warehouse, metadata={"batch": number})
            print(results["report"])
    print(f"total {sum(warehouse.amounts)}, set aside {len(warehouse.quarantine)}")


if __name__ == "__main__":
    main()
