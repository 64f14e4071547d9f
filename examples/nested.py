"""A run inside a task: the inner flow's results are just values to the outer one.

A task that waits for an inner run gives its worker back meanwhile. So flows can be nested to any
depth, here with one executor of a single thread for all of them.
"""

from __future__ import annotations

from typing import Any

from millstream import Executor, Flow, NextTask, ThreadExecutor

#: A file is its size, a folder a mapping of what is in it.
Folder = dict[str, Any]


def folder_size(tree: Folder, executor: Executor) -> int:
    """Return the size of a folder by a run of its own, which runs once more for each folder in it."""
    flow = Flow(executor, name="folder")

    @flow.task
    def look() -> list[NextTask]:
        sizes = [NextTask("size_of", {"entry": entry}, spawn_another=True) for entry in tree.values()]
        return [*sizes, NextTask("total", join=True)]

    @flow.task
    def size_of(entry: int | Folder) -> int:
        return folder_size(entry, executor) if isinstance(entry, dict) else entry

    @flow.task
    def total(upstream: list[int]) -> int:
        return sum(upstream)

    size: int = flow.run("look")["total"]
    return size


def main() -> None:
    """Measure a small tree of folders."""
    tree: Folder = {"a.txt": 10, "b": {"c.txt": 20, "d": {"e.txt": 30, "f.txt": 40}}}
    with ThreadExecutor(max_workers=1) as executor:
        print(f"{folder_size(tree, executor)} bytes in all, added up by nested runs with one worker")


if __name__ == "__main__":
    main()
