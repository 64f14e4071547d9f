"""Routing at run time: a task looks at its value and names the task that comes next.

A returned list of ``NextTask`` is the task's choice. An empty one ends the branch there.
"""

from __future__ import annotations

from millstream import Flow, NextTask, TaskOutput

flow = Flow("inline", name="support")

#: Which words of a message lead where.
DESKS = {"invoice": "billing", "refund": "billing", "crash": "engineering", "slow": "engineering"}


@flow.task
def triage(message: str) -> TaskOutput[str]:
    """Choose a desk by the first word that is known; spam goes nowhere."""
    if "winner" in message:
        return TaskOutput("spam", [])
    words = message.lower().split()
    desk = next((DESKS[word] for word in words if word in DESKS), "reception")
    return TaskOutput(desk, [NextTask(desk, {"message": message})])


@flow.task
def billing(message: str) -> str:
    """Answer about money."""
    return f"an accountant reads {message!r}"


@flow.task
def engineering(message: str) -> TaskOutput[str]:
    """Take a look; whatever is on fire also goes to whoever is on call."""
    urgent = [NextTask("on_call", {"message": message})] if "fire" in message else []
    return TaskOutput(f"an engineer reads {message!r}", urgent)


@flow.task
def on_call(message: str) -> str:
    """Wake somebody."""
    return f"a phone rings for {message!r}"


@flow.task
def reception(message: str) -> str:
    """Answer whatever nobody else does."""
    return f"reception reads {message!r}"


def main() -> None:
    """Route a few messages."""
    messages = ["refund please", "crash and fire", "where are you", "you are the winner"]
    for message in messages:
        for task, outcome in flow.run("triage", {"message": message}).items():
            print(f"{task:12} {outcome}")


if __name__ == "__main__":
    main()
