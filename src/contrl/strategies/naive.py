"""Naive sequential training: nothing against forgetting, the line every other strategy is measured against."""

from __future__ import annotations

from dataclasses import dataclass

from contrl.interfaces import Strategy


@dataclass
class Naive(Strategy):
    """Train each task as it comes. Every hook keeps its default, so a run with it equals a run without, bit for bit."""

    name = "naive"
