"""How things are measured: interleaved rounds and their median ratio; memory in a subprocess."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    work: str
    against: str
    ours: str
    theirs: str
    value: str  #: the ratio, or what else is compared with the goal
    goal: str
    limit: str
    met: bool


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that ``work()`` takes; a work that returns a float has timed itself."""
    gc.collect()
    began = time.perf_counter()
    told = work()
    return told if isinstance(told, float) else time.perf_counter() - began


def compare(
    work: str,
    against: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    per: int,
    goal: float,
    limit: float,
    rounds: int = 7,
) -> Row:
    """Run both sides in turn and compare: the median of the ratios of each round."""
    ours(), theirs()  # warm: threads are there, code is specialised
    pairs = [(timed(ours), timed(theirs)) for _ in range(rounds)]
    ratio = median(a / b for a, b in pairs)
    mine, other = (median(side) / per * 1e6 for side in zip(*pairs, strict=True))
    return Row(
        work,
        against,
        f"{mine:.2f} µs",
        f"{other:.2f} µs",
        f"{ratio:.2f}",
        f"{goal:.2f}",
        f"{limit:.2f}",
        ratio <= limit,
    )


def in_subprocess(code: str) -> float:
    """Run ``code``, which prints one number last, in a fresh interpreter."""
    # Compiled modules are kept, as on a user's machine.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=environment,
    )
    return float(done.stdout.split()[-1])
