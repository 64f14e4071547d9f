"""The same flow in threads, in worker processes, on Ray or on Dask: only the executor differs.

It counts the primes below a number. ``plan`` cuts the numbers into ranges of about equal work, ``sift`` counts
those of one range and tells the context of the widest gap it has met, ``total`` adds up.

    python examples/anywhere.py
    python examples/anywhere.py --on thread --below 200000
    python examples/anywhere.py --on ray        # needs millstream[ray]
    python examples/anywhere.py --on dask       # needs millstream[dask]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from math import isqrt

from millstream import Context, DaskExecutor, Executor, Flow, NextTask, ProcessExecutor, RayExecutor, ThreadExecutor

Gap = tuple[int, int]  #: how wide it is, and the prime that it follows


def plan(below: int, parts: int) -> list[NextTask]:
    """Ask for the sifting of each part, and for the total when all are done."""
    # Testing n takes about sqrt(n) steps, so the work up to n grows with n ** 1.5.
    cuts = [round(below * (part / parts) ** (2 / 3)) for part in range(parts + 1)]
    ranges = [NextTask("sift", {"start": a, "stop": b}, spawn_another=True) for a, b in pairwise(cuts)]
    return [*ranges, NextTask("total", join=True)]


def sift(ctx: Context, start: int, stop: int) -> int:
    """Count the primes from ``start`` to below ``stop``; keep the widest gap of all ranges in the context."""
    count, last, widest = 0, 0, (0, 0)
    for number in range(max(start, 2), stop):
        if is_prime(number):
            if last:
                widest = max(widest, (number - last, -last))
            count, last = count + 1, number

    def wider(known: Gap) -> Gap:
        return max(known, widest)

    ctx.update("widest", wider, default=(0, 0))
    return count


def is_prime(number: int) -> bool:
    """Whether no smaller number from 2 on divides it."""
    return all(number % divisor for divisor in range(2, isqrt(number) + 1))


def total(upstream: list[int]) -> int:
    """Add up the counts."""
    return sum(upstream)


def executor(name: str) -> Executor:
    """Return what the flow is to run on; whoever makes it closes it."""
    if name == "ray":
        return RayExecutor(num_cpus=2, include_dashboard=False)
    if name == "dask":
        return DaskExecutor()  # a cluster on this machine
    return ProcessExecutor() if name == "process" else ThreadExecutor()


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, count, print."""
    parser = argparse.ArgumentParser(description="Count primes on an executor of your choice.")
    parser.add_argument("--on", choices=["thread", "process", "ray", "dask"], default="process")
    parser.add_argument("--below", type=int, default=300_000, help="count the primes below this number")
    asked = parser.parse_args(arguments)
    with executor(asked.on) as workers, Flow(workers, name="primes") as flow:
        for task in (plan, sift, total):
            flow.add_task(task.__name__, task)
        began = time.monotonic()
        found = flow.run("plan", {"below": asked.below, "parts": 40})["total"]
        width, after = flow.context.get("widest")
    print(f"{found:,} primes below {asked.below:,}; the widest gap in a range is {width}, after {-after:,}")
    print(f"on {asked.on}: {time.monotonic() - began:.2f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
