"""Fixtures of the tests of the command line."""

from __future__ import annotations

from tests.runs import runs, world

__all__ = ["runs", "world"]
