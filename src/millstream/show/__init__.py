"""Drawings of flows and runs. Nothing in here is imported before it is asked for."""
