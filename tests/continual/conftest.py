"""Fixtures of the tests that run whole experiments."""

from __future__ import annotations

from tests.runs import runs, world

__all__ = ["runs", "world"]
