"""Speed and memory, each against the plain standard-library way. ``python -m tests.benchmarks``."""
