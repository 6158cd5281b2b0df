"""What a stage takes over from the one before: the weights alone, or also the optimizer, or one schedule, or less."""

from __future__ import annotations

import json
from typing import Any

import pytest

from contrl.engine.checkpoint import load_state
from contrl.errors import UserError
from tests import runs as small
from tests.runs import Runs, lora, metric, weights

world, runs = small.world, small.runs
SFT: dict[str, Any] = {"method": "sft", "evaluation": {"num_items": 1}}


def test_the_schedule_goes_on_over_the_sequence(runs: Runs) -> None:
    """Linear from 3e-3 to 0: over 4 steps in each stage, or once over the 8 steps of both."""
    restarted = metric(runs("restarted", **SFT), "learning_rate")
    continued = metric(runs("continued", **SFT, between_tasks={"schedule": "continue"}), "learning_rate")
    each = [3e-3 * (1 - step / 4) for step in range(4)]
    assert list(restarted.values()) == pytest.approx(each * 2)
    assert list(continued.values()) == pytest.approx([3e-3 * (1 - step / 8) for step in range(8)])


def test_the_optimizers_moments_go_on(runs: Runs) -> None:
    """They lie beside the stage's weights, and the second stage ends elsewhere; the first one does not."""
    reset, kept = runs("reset", **SFT), runs("kept", **SFT, between_tasks={"optimizer": "keep"})
    one, two = reset / "stages", kept / "stages"
    assert weights(one / "1-sums" / "final") == weights(two / "1-sums" / "final")
    assert weights(one / "2-doubles" / "final") != weights(two / "2-doubles" / "final")
    state = load_state(two / "1-sums" / "final", "optimizer")
    assert state is not None
    assert float(state["0"]["step"]) == 4
    assert load_state(one / "1-sums" / "final", "optimizer") is None
    assert not list(kept.glob("optimizer.*"))


def test_an_adapter_begins_anew(runs: Runs) -> None:
    """The second stage starts where the run did, and not where the first stage ended."""
    model = lora(runs.world) | {"lora_dropout": 0.0}
    diary = {"name": "tests.plugins:Diary", "file": "diary.jsonl"}
    starts = {}
    for adapter in ("reset", "keep"):
        (runs.folder / "diary.jsonl").unlink(missing_ok=True)
        runs(adapter, **SFT, model=model, strategies=[diary], between_tasks={"adapter": adapter})
        notes = [json.loads(line) for line in (runs.folder / "diary.jsonl").read_text(encoding="utf-8").splitlines()]
        starts[adapter] = [note["weights"] for note in notes if note["event"] == "start"]
    assert starts["reset"][0] == starts["reset"][1] == starts["keep"][0]
    assert starts["keep"][1] != starts["keep"][0]


def test_it_is_told_before_the_start(runs: Runs) -> None:
    runs.start(runs.config("told", **SFT, between_tasks={"schedule": "continue"}), dry_run=True)
    assert "between  tasks: optimizer reset, schedule continue, adapter keep" in runs.text


def test_what_cannot_be(runs: Runs) -> None:
    with pytest.raises(UserError, match="keep needs the whole optimizer"):
        runs("a", **SFT, between_tasks={"optimizer": "keep"}, training={"deepspeed": "zero2.json"})
    with pytest.raises(UserError, match="no adapter is trained"):
        runs("b", **SFT, between_tasks={"adapter": "reset"})
