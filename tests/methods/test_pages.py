"""The pages of methods and strategies name every field with its default and every metric that is logged."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from contrl.engine.online import completion_metrics
from contrl.interfaces import Batch, Completion, Group, Outputs
from contrl.methods.rloo import RLOO
from contrl.methods.sft import SFT
from contrl.strategies.naive import Naive
from contrl.strategies.replay import Replay

DOCS = Path(__file__).parents[2] / "docs"


def tabled(page: str) -> set[str]:
    """The code words in the first column of the page's tables."""
    rows = [line.split("|") for line in (DOCS / page).read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return {word for row in rows for word in re.findall(r"`([^`]+)`", row[1])}


def defaults(page: str) -> dict[str, str]:
    """Field -> default as the page gives them, from rows like ``| `clip` | 0.2 | why |``."""
    found: dict[str, str] = {}
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 3:
            names, values = re.findall(r"`(\w+)`", cells[0]), [v.strip(" `") for v in cells[1].split(",")]
            if len(names) == len(values):
                found |= dict(zip(names, values, strict=True))
    return found


@pytest.mark.parametrize(
    ("page", "plugin"),
    [("methods/sft.md", SFT()), ("methods/rloo.md", RLOO()), ("strategies/replay.md", Replay())],
)
def test_every_field_stands_on_its_page_with_its_default(page: str, plugin: Any) -> None:
    written = defaults(page)
    words = {None: "all", False: "false", True: "true"}
    for field in dataclasses.fields(plugin):
        if field.init:
            value = getattr(plugin, field.name)
            wanted = (
                str(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else words[value]
            )
            assert written[field.name] == wanted


def test_every_metric_of_sft_is_explained(make_batch: Callable[..., Batch]) -> None:
    out = SFT().loss(Outputs(torch.zeros(1, 1), torch.zeros(1, 1)), make_batch([[1]]))
    assert set(out.metrics) <= tabled("methods/sft.md")


def test_every_metric_of_rloo_is_explained(make_batch: Callable[..., Batch]) -> None:
    group = Group("0", "a", [1], [Completion([2], reward=1.0), Completion([3], reward=0.0)])
    out = RLOO().loss(Outputs(torch.zeros(1, 1), torch.zeros(1, 1)), make_batch([[1]]))
    logged = {*out.metrics, *RLOO().credit([group]), *completion_metrics([group])}
    assert len(logged) == 8
    assert logged <= tabled("methods/rloo.md")


@pytest.mark.parametrize("page", ["methods/sft.md", "methods/rloo.md"])
def test_what_the_engine_adds_is_explained(page: str) -> None:
    assert {"loss", "grad_norm", "learning_rate", "epoch", "num_tokens", "seconds"} <= tabled(page)


@pytest.mark.parametrize("name", [Naive.name, Replay.name])
def test_every_strategy_gives_its_command(name: str) -> None:
    text = (DOCS / "strategies" / f"{name}.md").read_text(encoding="utf-8")
    assert f"contrl demo --strategies {name}" in text
