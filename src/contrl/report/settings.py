"""The resolved configuration of a run as the report needs it: its text, and the few numbers that charts show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Settings:
    """config.yaml of a run; empty where there is none, or where it cannot be read."""

    text: str
    values: Mapping[str, Any]

    @property
    def method(self) -> Mapping[str, Any]:
        """The method's fields."""
        found = self.values.get("method")
        return found if isinstance(found, Mapping) else {}

    @property
    def steps_per_window(self) -> int:
        """Optimizer steps that reuse one set of rollouts."""
        factors = (self.method.get("num_epochs", 1), self.method.get("num_minibatches", 1))
        first, second = (factor if isinstance(factor, int) and factor > 0 else 1 for factor in factors)
        return first * second

    @property
    def limits(self) -> dict[str, float]:
        """Levels drawn in training panels."""
        limit = self.method.get("max_new_tokens")
        return {"length": float(limit)} if isinstance(limit, int) else {}


def read_settings(folder: Path) -> Settings:
    """The configuration in a run folder."""
    import yaml

    path = folder / "config.yaml"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        values = None
    return Settings(text, values if isinstance(values, Mapping) else {})
