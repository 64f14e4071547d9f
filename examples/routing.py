"""Routing at run time: a task looks at its value and chooses which of its routes comes next.

``routes=`` says what may be chosen, so that it is checked and can be drawn. The choice is a name, several,
or a mapping of names to what is sent along, which arrives as ``payload``. An empty one ends the branch.
"""

from __future__ import annotations

from millstream import Flow, NextTask, TaskOutput

flow = Flow("inline", name="support")

#: Which words of a message lead where.
DESKS = {"invoice": "billing", "refund": "billing", "crash": "engineering", "slow": "engineering"}


@flow.task(routes=["billing", "engineering", "reception"])
def triage(message: str) -> dict[str, str] | TaskOutput[str]:
    """Choose a desk by the first word that is known; spam goes nowhere."""
    if "winner" in message:
        return TaskOutput("spam", [])
    desk = next((DESKS[word] for word in message.lower().split() if word in DESKS), "reception")
    return {desk: message}


@flow.task
def billing(payload: str) -> str:
    """Answer about money."""
    return f"an accountant reads {payload!r}"


@flow.task(routes=["on_call"])
def engineering(payload: str) -> TaskOutput[str]:
    """Take a look; whatever is on fire also goes to whoever is on call."""
    urgent = [NextTask("on_call", {"message": payload})] if "fire" in payload else []
    return TaskOutput(f"an engineer reads {payload!r}", urgent)


@flow.task
def on_call(message: str) -> str:
    """Wake somebody."""
    return f"a phone rings for {message!r}"


@flow.task
def reception(payload: str) -> str:
    """Answer whatever nobody else does."""
    return f"reception reads {payload!r}"


def main() -> None:
    """Draw the flow, then route a few messages."""
    print(flow.to_text())
    for message in ("refund please", "crash and fire", "where are you", "you are the winner"):
        for task, outcome in flow.run("triage", {"message": message}).items():
            print(f"{task:12} {outcome}")


if __name__ == "__main__":
    main()
