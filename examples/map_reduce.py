"""Map and reduce: one task run for each piece of work, and a join that starts when all are done.

The join is part of the list that fans out. Its ``upstream`` is the list of what its siblings gave, in
the order of the list, whatever the order in which they finished. Nothing is shared, so nothing can be
lost.
"""

from __future__ import annotations

import random
import time
from collections import Counter

from millstream import Flow, NextTask

POEM = """the fog comes on little cat feet
it sits looking over harbor and city
on silent haunches and then moves on"""


def split(text: str) -> list[NextTask]:
    """Ask for one count a line, and for the total when all of them are there."""
    counts = [NextTask("count", {"line": line}, spawn_another=True) for line in text.splitlines()]
    return [*counts, NextTask("total", join=True)]


def count(line: str) -> Counter[str]:
    """Count the words of one line."""
    time.sleep(random.random() / 50)  # as if it were hard work, done in no certain order
    return Counter(line.split())


def total(upstream: list[Counter[str]]) -> Counter[str]:
    """Add the counts up."""
    return sum(upstream, Counter())


def main() -> None:
    """Count the words of a poem."""
    with Flow(max_workers=4) as flow:
        for task in (split, count, total):
            flow.add_task(task.__name__, task)
        words = flow.run("split", {"text": POEM})["total"]
    print(f"{words.total()} words, {len(words)} different")
    for word, number in words.most_common(3):
        print(f"  {word:6} {number}")


if __name__ == "__main__":
    main()
