"""A study of seconds: the tiny world of tests/runs.py, sft of two tasks, two or three arms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contrl.errors import UserError
from contrl.experiment import find
from contrl.study import reading
from contrl.study.reading import Outline
from tests.runs import Runs, write_config


def study(runs: Runs, **changes: Any) -> dict[str, Any]:
    """A study of naive and replay, two seeds; ``run`` is merged into the base configuration."""
    base = runs.config(method="sft", evaluation={"max_new_tokens": 6}, training={"save_steps": 1})
    del base["output_dir"]
    for task in base["tasks"]:
        del task["reward"]
    base |= changes.pop("run", {})
    arms = {"method": "sft", "strategies": ["naive", "replay"]}
    return {
        "kind": "study",
        "output_dir": str(runs.folder / "out"),
        "run": base,
        "arms": arms,
        "seeds": [0, 1],
    } | changes


def outline_of(folder: Path, given: Mapping[str, Any], *overrides: str) -> Outline:
    """The outline of a study's file."""
    return reading.read(write_config(folder / "study.yaml", given), overrides, is_strategy)


def is_strategy(word: str) -> bool:
    """Whether a word names a strategy."""
    try:
        find("strategy", word)
    except UserError:
        return False
    return True
