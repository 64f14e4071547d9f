"""A loop whose length nobody knows beforehand: a task that asks for itself until it is done.

The task keeps its one name however often it runs, and only its last output is a result, since every
earlier one asked for something further. ``max_task_runs`` ends a loop that would never end.
"""

from __future__ import annotations

from millstream import Flow, NextTask, TaskOutput, TaskRunLimitError


def collatz(number: int, steps: int = 0) -> TaskOutput[int]:
    """Halve an even number, treble an odd one and add one, until it is 1; the output is the steps."""
    if number == 1:
        return TaskOutput(steps)
    following = number // 2 if number % 2 == 0 else 3 * number + 1
    return TaskOutput(steps, [NextTask("collatz", {"number": following, "steps": steps + 1})])


def for_ever() -> NextTask:
    """Ask for itself, always."""
    return NextTask("for_ever")


def main() -> None:
    """Follow three numbers, then show what stops an endless loop."""
    with Flow(max_task_runs=1000) as flow:
        flow.add_task("collatz", collatz)
        flow.add_task("for_ever", for_ever)
        for number in (6, 27, 97):
            print(f"from {number}: {flow.run('collatz', {'number': number})['collatz']} steps")
        try:
            flow.run("for_ever")
        except TaskRunLimitError as error:
            print(f"stopped: {error}")


if __name__ == "__main__":
    main()
