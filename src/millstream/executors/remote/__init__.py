"""Tasks in other processes, and on other machines: what the executors for these have in common."""
