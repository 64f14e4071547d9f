"""The rows about flows that are written down: beside the same flow in Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from millstream import Context, Flow
from tests.benchmarks.measure import Row, compare

N = 1_000


def begin() -> int:
    """Give the first payload."""
    return 0


def step(payload: int) -> int:
    """Return the next payload."""
    return payload + 1


def by_hand(ctx: Context[Any]) -> int:
    """Do what ``inputs`` and ``outputs`` do for ``step``."""
    value: int = ctx.get("data")["last"] + 1
    ctx.update("data", lambda data: {**data, "last": value})
    return value


def in_python(*, by_context: bool) -> Flow:
    """Return a flow of tasks in a row."""
    flow = Flow("inline")
    flow.add_task("s0", (lambda ctx: ctx.set("data", {"last": 0})) if by_context else begin)
    for n in range(1, N):
        flow.add_task(f"s{n}", by_hand if by_context else step, depends_on=[f"s{n - 1}"])
    return flow


def in_a_file(*, by_context: bool) -> Flow:
    """Return the same flow, as a file describes it."""
    first: dict[str, Any] = {"callable": "begin"}
    rest: dict[str, Any] = {"callable": "step"}
    if by_context:
        first["outputs"] = rest["outputs"] = rest["inputs"] = "$ctx.data.last"
    tasks = {"s0": first} | {f"s{n}": rest for n in range(1, N)}
    config = {"flow": {"executor": "inline", "tasks": tasks, "edges": [" >> ".join(tasks)]}}
    return Flow.from_config(config, callables={"begin": begin, "step": step})


def rows() -> Iterator[Row]:
    """Measure and yield every row."""
    for by_context, work in ((False, "a flow from a file"), (True, "the same, with inputs and outputs")):
        with in_a_file(by_context=by_context) as ours, in_python(by_context=by_context) as theirs:
            assert ours.run("s0") == theirs.run("s0") == {f"s{N - 1}": N - 1}
            yield compare(
                f"{work}, {N:,} tasks in a row",
                "the same in Python" if not by_context else "the same by hand, with ctx",
                lambda flow=ours: [flow.run("s0") for _ in range(5)],  # type: ignore[misc]
                lambda flow=theirs: [flow.run("s0") for _ in range(5)],  # type: ignore[misc]
                per=5 * N,
                goal=1.20 if by_context else 1.02,  # no task does less than these
                limit=1.60 if by_context else 1.10,
                rounds=15,
            )


if __name__ == "__main__":
    for row in rows():
        print(row)
