"""Fixtures of the tests of studies."""

from __future__ import annotations

from tests.runs import runs, world

__all__ = ["runs", "world"]
