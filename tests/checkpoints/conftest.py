"""Whole runs on the tiny world, and the command line in this process."""

from tests.runs import no_page, runs, world

__all__ = ["no_page", "runs", "world"]
