"""Failures and limits: what is tried again, what goes on without, and how much at once.

``Retry`` waits 1, 2, 4 … milliseconds here; in earnest these are seconds. With ``on_error="continue"``
whatever does not depend on a failure goes on, and the report tells the rest.
"""

from __future__ import annotations

import re

from millstream import Flow, Rate, Retry, current_task

flow = Flow(name="morning", on_error="continue", limits={"line": 1, "api": Rate(100, per=1.0)})


@flow.task(retry=Retry(4, base=0.001, on=ConnectionError), uses=["line"], priority=5)
def dial() -> str:
    """Get through in the third attempt; one call at a time holds the line."""
    if current_task().attempt < 3:
        raise ConnectionError("engaged")
    return "hello"


@flow.task(max_attempts=2, backoff="linear", backoff_base=0.001, uses=["line", "api"])
def weather() -> dict[str, int]:
    """Fail in both attempts."""
    raise ValueError("no forecast today")


@flow.task
def clothes(weather: dict[str, int]) -> str:
    """Depend on it: fails by the default of ``on_dep_failure``."""
    return "coat" if weather["rain"] else "hat"


@flow.task(on_dep_failure="skip")
def umbrella(weather: dict[str, int]) -> bool:
    """Depend on it: is left out."""
    return weather["rain"] > 0


@flow.task(depends_on=[dial, weather], on_dep_failure="run-anyway")
def plan(dial: str, weather: dict[str, int] | None) -> str:
    """Do with what there is."""
    return f"{dial}, weather {weather or 'unknown'}"


if __name__ == "__main__":
    with flow:
        print(flow.run(run_id="monday"))
        text = flow.report().to_text()
        print(re.sub(r"\d\.\d{3}", "-.---", text))  # times differ
