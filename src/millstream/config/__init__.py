"""Flows that are written down: the grammar of edges, expressions, and the files that hold them."""
