"""The pages of methods and strategies name every field with its default and every metric that is logged."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from contrl.interfaces import Batch, Method, Outputs
from contrl.methods.cpo import CPO
from contrl.methods.dpo import DPO, LOSS_TYPES
from contrl.methods.kto import KTO
from contrl.methods.orpo import ORPO
from contrl.methods.reward_model import RewardModel
from contrl.methods.rloo import RLOO
from contrl.methods.sft import SFT
from contrl.strategies.naive import Naive
from contrl.strategies.replay import Replay

DOCS = Path(__file__).parents[2] / "docs"
METHODS: dict[str, Method] = {
    "sft": SFT(),
    "reward": RewardModel(),
    "dpo": DPO(),
    "kto": KTO(),
    "cpo": CPO(),
    "orpo": ORPO(),
    "rloo": RLOO(),
}
PAIRS = [("dpo", 10), ("cpo", 9), ("orpo", 11), ("reward", 5)]
"""The methods on pairs with the number of metrics each logs."""


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
    [(f"methods/{name}.md", method) for name, method in METHODS.items()],
)
def test_every_field_stands_on_its_page_with_its_default(page: str, plugin: Any) -> None:
    written = defaults(page)
    words: dict[Any, str] = {None: "null", False: "false", True: "true"}
    for field in dataclasses.fields(plugin):
        if field.init:
            value = getattr(plugin, field.name)
            if isinstance(value, tuple):
                wanted = ", ".join(value)
            elif isinstance(value, int | float | str) and not isinstance(value, bool):
                wanted = str(value)
            else:
                wanted = words[value]
            assert written[field.name] == wanted


@pytest.mark.parametrize(
    ("name", "completions", "number"), [("sft", 1, 3), ("kto", 1, 9), *((n, 2, m) for n, m in PAIRS)]
)
def test_every_metric_is_explained(name: str, completions: int, number: int, make_batch: Callable[..., Batch]) -> None:
    """With everything a forward may return, so that nothing that is logged goes missing."""
    batch, zeros = make_batch([[1]] * completions), torch.zeros(completions, 1)
    batch.reference_logps = zeros
    out = Outputs(zeros, zeros, zeros, zeros, zeros, torch.zeros(1), torch.zeros(completions))
    for needed, table in (("entropy", "entropy"), ("correct", "correct"), ("mean_logits", "mean_logits")):
        if needed not in METHODS[name].needs:
            setattr(out, table, None)
    logged = METHODS[name].loss(out, batch).metrics
    assert len(logged) == number
    assert set(logged) <= tabled(f"methods/{name}.md")


def test_every_loss_type_of_dpo_is_explained() -> None:
    assert set(LOSS_TYPES) <= tabled("methods/dpo.md")


@pytest.mark.parametrize("name", METHODS)
def test_what_the_engine_adds_is_explained(name: str) -> None:
    logged = {"loss", "grad_norm", "learning_rate", "epoch", "num_tokens", "seconds", "memory/peak_gib"}
    assert logged <= tabled(f"methods/{name}.md")


@pytest.mark.parametrize("name", [Naive.name, Replay.name])
def test_every_strategy_gives_its_command(name: str) -> None:
    text = (DOCS / "strategies" / f"{name}.md").read_text(encoding="utf-8")
    assert f"contrl demo --strategies {name}" in text
