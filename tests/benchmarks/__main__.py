"""Print the table. Exits with 1 when a row is beyond its limit."""

from __future__ import annotations

import os
import platform
import sys
import time
from itertools import chain

from tests.benchmarks import declared, durable, memory, processes, speed


def main() -> int:
    """Measure everything and print a Markdown table."""
    machine = (
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    print(f"{machine}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n")
    print("| work | against | ours | theirs | result | goal | fail above | |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |")
    failed = 0
    for row in chain(speed.rows(), declared.rows(), processes.rows(), durable.rows(), memory.rows()):
        failed += not row.met
        print(
            f"| {row.work} | {row.against} | {row.ours} | {row.theirs} | {row.value} | {row.goal} | {row.limit} "
            f"| {'ok' if row.met else 'TOO MUCH'} |",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
