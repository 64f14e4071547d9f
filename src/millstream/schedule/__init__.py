"""Runs by the clock: ``Scheduler``, and ``Cron``, the arithmetic of its expressions."""

from millstream.schedule.cron import Cron
from millstream.schedule.scheduler import Job, Scheduler

__all__ = ["Cron", "Job", "Scheduler"]
