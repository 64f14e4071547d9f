"""Submitted calls: no graph, no names, only functions and handles to what they will give.

A handle among the arguments becomes a dependency. A handle is a ``concurrent.futures.Future``, and can be
awaited, too. What nobody asked for and failed is raised when the block ends.
"""

from __future__ import annotations

from concurrent.futures import Future, as_completed

from millstream import Context, DependencyFailedError, Flow, TaskHandle, task


@task
def measure(text: str) -> int:
    """Return how many letters a text has."""
    return len(text.replace(" ", ""))


@task(retries=1)
def ratio(part: int, whole: int) -> float:
    """Return a share."""
    return round(part / whole, 2)


@task
def halves(text: str, ctx: Context[None]) -> int:
    """Submit calls from inside a task: they belong to its run, and waiting for them holds no worker."""
    middle = len(text) // 2
    parts = [measure.submit(text[:middle]), measure.submit(text[middle:])]
    return sum(part.result() for part in parts)


def main() -> None:
    """Submit, wait, and see what a failure does."""
    lines = ["to be or not to be", "that is", "the question"]
    with Flow(max_workers=2) as flow:
        sizes = [measure.submit(line) for line in lines]
        total: TaskHandle[int] = flow.submit(sum, sizes)  # handles inside a list are waited for, too
        shares: dict[Future[float], str] = {}
        for size, line in zip(sizes, lines, strict=True):
            shares[ratio.submit(size, total)] = line
        for handle in sorted(as_completed(shares), key=lambda each: shares[each]):
            print(f"{handle.result():.2f} {shares[handle]}")
        print(f"{total.result()} letters, and by halves {halves.submit(lines[0]).result()} in the first line")

    with Flow() as flow, flow.session("audit") as session:
        broken = session.submit(ratio, 1, 0)
        behind = session.submit(ratio, broken, 2)
        print(f"{broken.exception()!r} and {behind.status}")
        try:
            behind.result()
        except DependencyFailedError as error:
            print(error)
    print(session)


if __name__ == "__main__":
    main()
