"""``contrl evaluate`` finds what training did: a model taught by a verifier beats the one it started from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contrl.cli.main import main
from contrl.errors import OK
from tests.runs import Runs

VERIFIER = "tests.cli.verifiers:digits"
NUM_TRAINED, NUM_HELD_OUT = 32, 40


def write_prompts(path: Path, numbers: range) -> Path:
    """Sums to be answered."""
    rows = [{"prompt": f"{number}+{number + 1}="} for number in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def judged(folder: Path, model: Path, reference: Path | None, prompts: Path) -> dict[str, Any]:
    """What ``contrl evaluate --metric`` writes; without a reference it finds the model the run started from."""
    words = ["evaluate", "--model_path", model, "--dataset_name", prompts, "--metric", VERIFIER]
    words += ["--max_new_tokens", 6, "--answers_dir", folder.parent / "answers", "--output_dir", folder]
    words += [] if reference is None else ["--reference_model", reference]
    assert main([str(word) for word in words]) == OK
    return json.loads((folder / "evaluation_metrics.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_model_trained_on_the_verifier_wins_significantly(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    """Thirty steps of RLOO by the verifier, then held-out prompts: the interval lies above one half, and swapped below.

    The verifier gives a share of digits; ten of a hundred characters are digits, so there is much to learn.
    """
    taught = write_prompts(runs.folder / "taught.jsonl", range(NUM_TRAINED))
    held_out = write_prompts(runs.folder / "held_out.jsonl", range(NUM_TRAINED, NUM_TRAINED + NUM_HELD_OUT))
    words = ["rloo", "--model_name_or_path", runs.world / "model", "--dataset_name", taught, "--output_dir", "taught"]
    words += ["--reward_funcs", VERIFIER, "--max_steps", 30, "--learning_rate", 5e-3, "--max_new_tokens", 6]
    words += ["--num_generations", 4, "--per_device_train_batch_size", 32, "--save_strategy", "no"]
    assert main([str(word) for word in words]) == OK

    found = judged(runs.folder / "better", runs.folder / "taught", None, held_out)
    assert found["reference_model"] == str(runs.world / "model")
    assert found["num_scored"] == NUM_HELD_OUT
    assert found["win_rate_ci"][0] > 0.5
    assert found["reward_improvement_ci"][0] > 0
    assert "the model is better than the reference" in capsys.readouterr().out

    swapped = judged(runs.folder / "worse", runs.world / "model", runs.folder / "taught", held_out)
    assert swapped["win_rate_ties_half_ci"][1] < 0.5
    assert swapped["reward_improvement"] == pytest.approx(-found["reward_improvement"])
    assert "the model is worse than the reference" in capsys.readouterr().out
