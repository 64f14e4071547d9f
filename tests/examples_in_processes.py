"""Runs an example with every flow of it on worker processes: ``python -m tests.examples_in_processes NAME``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import millstream

EXAMPLES = Path(__file__).parent.parent / "examples"


class ProcessFlow(millstream.Flow):
    """A flow whose tasks are called in worker processes, whatever it asks for."""

    def __init__(self, executor: Any = None, *args: Any, **options: Any) -> None:
        super().__init__("process", *args, **options)


def main(name: str) -> None:
    """Run the example of that name."""
    sys.path.insert(0, str(EXAMPLES))  # workers have it as well
    millstream.Flow = ProcessFlow  # type: ignore[misc]
    example = importlib.import_module(name)
    example.main()


if __name__ == "__main__":
    main(sys.argv[1])
