"""An order that a person approves: the program is killed while it waits, and goes on days later.

Every step is kept in ``orders.db``. ``check_stock`` and ``quote`` run side by side; ``decide`` waits for a value that
no task sets, since it comes from a person. The first process waits for it and is killed by ``kill -9``. Later
somebody says yes, in another process: what had finished is not called again, and the rest runs.

    python examples/approval.py                            # all of it, in a folder of its own
    python examples/approval.py start orders.db            # or by hand: start, press Ctrl-C or kill it, ...
    python examples/approval.py resume orders.db yes       # ... and go on with the answer
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from millstream import Context, Flow, SQLiteStore, current_task

RUN = "order-4711"


@dataclass(frozen=True)
class Order:
    """What somebody wants to buy."""

    item: str
    pieces: int
    price: float


def make_flow(path: str) -> Flow:
    """Return the flow, with its runs kept in a SQLite database."""
    flow = Flow(name="orders", store=SQLiteStore(path, types=[Order]))

    @flow.task
    def receive(order: Order) -> Order:
        """Say what was ordered."""
        print(f"received: {order.pieces} × {order.item}")
        return order

    @flow.task
    def check_stock(receive: Order) -> bool:
        """Look whether there are enough."""
        return receive.pieces <= 100

    @flow.task
    def quote(receive: Order) -> float:
        """Compute the price."""
        print("computed a quote")
        return receive.pieces * receive.price

    @flow.task(routes=["ship", "refuse"])
    def decide(ctx: Context[Any], check_stock: bool, quote: float) -> str:
        """Wait for a person, unless there is nothing to decide."""
        if not check_stock:
            return "refuse"
        print(f"waiting for somebody to approve {quote:.2f} EUR", flush=True)
        return "ship" if ctx.get("approved", external=True) else "refuse"

    @flow.task
    def ship() -> str:
        """Send it, once: the carrier knows the key from an attempt that was cut short."""
        return f"shipped with the key {current_task().key}"

    @flow.task
    def refuse() -> str:
        """Say no."""
        return "refused"

    return flow


def start(path: str) -> None:
    """Begin; this waits until somebody decides, or ends the process."""
    with make_flow(path) as flow:
        print(flow.run("receive", {"order": Order("anvil", 3, 49.5)}, run_id=RUN))


def resume(path: str, answer: str) -> None:
    """Go on with the answer."""
    with make_flow(path) as flow:
        print(flow.resume(RUN, inputs={"approved": answer == "yes"}))
        for name, row in flow.report(RUN).tasks.items():
            print(f"  {name:<12} {row.status}")


def show() -> None:
    """Start it in a process of its own, kill that while it waits, and go on here."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "orders.db")
        command = [sys.executable, __file__, "start", path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None, "it is a pipe"
            for line in child.stdout:
                print(f"  | {line}", end="")
                if line.startswith("waiting"):
                    child.send_signal(signal.SIGKILL)
        print("The process was killed. Three days later somebody says yes:")
        resume(path, "yes")


def main() -> None:
    """Do what the command line says."""
    match sys.argv[1:]:
        case []:
            show()
        case ["start", path]:
            start(path)
        case ["resume", path, ("yes" | "no") as answer]:
            resume(path, answer)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
