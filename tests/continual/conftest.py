"""Fixtures of the tests that run whole experiments."""

from __future__ import annotations

from tests.runs import no_page, runs, world

__all__ = ["no_page", "runs", "world"]
