"""What tasks share: values that others wait for, counters, lists, and an object of yours.

``ctx.get`` waits until the value is there, so a consumer may start before its producer; while it waits,
its worker serves others. ``ctx.update`` and ``ctx.append`` are atomic.
"""

from __future__ import annotations

from dataclasses import dataclass

from millstream import Context, Flow, NextTask


@dataclass(frozen=True)
class Shop:
    """What every task may use; given to the run as ``deps``."""

    currency: str
    prices: dict[str, float]


def opening(ctx: Context[Shop]) -> list[NextTask]:
    """Ask for the customers first, and for the discount that they wait for last."""
    customers = [("ann", "tea"), ("bob", "cake"), ("cyd", "tea")]
    served = [NextTask("serve", {"who": who, "item": item}, spawn_another=True) for who, item in customers]
    return [*served, NextTask("decide_discount"), NextTask("close_till", join=True)]


def serve(ctx: Context[Shop], who: str, item: str) -> float:
    """Sell one item, as soon as somebody has set the discount."""
    price: float = ctx.deps.prices[item] * (1 - ctx.get("discount"))
    ctx.update("takings", lambda sum_so_far: sum_so_far + price, default=0.0)
    ctx.append("customers", who)
    return price


def decide_discount(ctx: Context[Shop]) -> None:
    """Set what the others wait for."""
    ctx.set("discount", 0.5)


def close_till(ctx: Context[Shop]) -> str:
    """Say what the day brought, once everybody is served."""
    return f"{ctx.get('takings'):.2f} {ctx.deps.currency} from {', '.join(sorted(ctx.get('customers')))}"


def main() -> None:
    """Run a shop for one day, with a single worker."""
    with Flow(max_workers=1) as flow:
        for task in (opening, serve, decide_discount, close_till):
            flow.add_task(task.__name__, task)
        print(flow.run("opening", deps=Shop("EUR", {"tea": 2.0, "cake": 5.0}))["close_till"])
        print("in the context:", ", ".join(sorted(flow.context.to_dict())))

    # A context can also outlive its flow: keep it as a dict, and fill the next one from that.
    later: Context[None] = Context({"takings": 4.5})
    with Flow("inline", context=later) as flow:
        flow.add_task("serve", lambda ctx: ctx.update("takings", lambda value: value + 1.5))
        flow.run("serve")
        print("second day:", later.to_dict())


if __name__ == "__main__":
    main()
