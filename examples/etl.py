"""A graph: two sources, one map with retries, and a report of what became of each task.

What must finish before a task is what its parameters are called, or what ``depends_on`` says. The context
is typed by what all tasks need, so a type checker knows ``ctx.deps``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from millstream import Context, Flow, current_task

flow = Flow(name="etl", max_workers=4)


@dataclass
class Deps:
    """What the tasks use."""

    rates: dict[str, float]
    shelf: list[str] = field(default_factory=list)


@flow.task
def orders(ctx: Context[Deps]) -> list[tuple[str, float]]:
    """Read what was ordered, in which currency and for how much."""
    return [("EUR", 10.0), ("USD", 20.0), ("EUR", 5.0)]


@flow.task
def rates(ctx: Context[Deps]) -> dict[str, float]:
    """Read what a currency is worth."""
    return ctx.deps.rates


@flow.task(for_each="orders", max_parallel=2, retries=2, retry_on=ConnectionError)
def convert(item: tuple[str, float], rates: dict[str, float], index: int) -> float:
    """Convert one order; the service is down when it is first asked about the second."""
    if index == 1 and current_task().attempt == 1:
        raise ConnectionError("the service is down")
    currency, amount = item
    return amount * rates[currency]


@flow.task(depends_on=[orders, convert])
def store(ctx: Context[Deps], upstream: dict[str, list[object]]) -> str:
    """Store the amounts, with the orders that they come from."""
    ctx.deps.shelf.extend(f"{order} -> {amount}" for order, amount in zip(*upstream.values(), strict=True))
    return f"{len(ctx.deps.shelf)} stored"


if __name__ == "__main__":
    with flow:
        print(flow.to_text())
        deps = Deps({"EUR": 1.0, "USD": 0.5})
        print(flow.run(deps=deps), *deps.shelf, sep="\n")
        for name, row in flow.report().tasks.items():
            print(f"{name:8} {row.status} in attempt {row.attempt}")
