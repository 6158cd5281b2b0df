"""Two gloo processes under torchrun make the same steps as one: loss, gradient, metrics; each row once.

The passes are uneven on purpose: rank 1 has fewer groups, fewer passes, and in the last step none at all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toys import farthest
from two_ranks import run, scenarios

from contrl.engine import lm_head

pytestmark = pytest.mark.slow

Told = tuple[dict[str, Any], dict[str, torch.Tensor]]
LIKE_ONE = [
    "sft",
    "sft settled",
    "rloo",
    "rloo settled",
    "accumulated",
    "silent",
    "two stages",
    "dpo",
    "kto",
    "ppo",
    "grpo",
    "penalty",
    "kl",
    "cppo",
]
"""Of dpo and kto the loss couples the rows of a step: aot sorts them, KTO's KL is a mean over them.

PPO and GRPO scale by the window of all ranks."""
PER_PASS = {"rewards/margins"}
"""KTO's difference of two means is taken per pass."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both ranks wrote, from one launch."""
    path = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("two_ranks.py")
    source = Path(lm_head.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(source), "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run([*launch, str(path)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return path


@pytest.fixture(autouse=True)
def whole_head() -> Iterator[None]:
    """The scenarios make the head's chunks small; give the budget back afterwards."""
    before = lm_head.CHUNK_BYTES
    yield
    lm_head.CHUNK_BYTES = before


def told(folder: Path, name: str, rank: int) -> Told:
    with open(folder / f"{name}-{rank}.json", encoding="utf-8") as file:
        return json.load(file), load_file(folder / f"{name}-{rank}.safetensors")


@pytest.mark.parametrize("name", LIKE_ONE)
def test_two_ranks_make_the_steps_of_one(name: str, folder: Path, tmp_path: Path) -> None:
    """Gradient within 1e-5 relative and loss within 1e-5, step by step; both ranks hold the same gradient."""
    alone, tensors = run(name, scenarios()[name], tmp_path)
    (first, mine), (second, theirs) = (told(folder, name, rank) for rank in (0, 1))
    assert {key for key in mine if key.endswith("lm_head.weight")} == {
        *(f"{step}/lm_head.weight" for step in range(len(alone["logs"]))),
        "weights/lm_head.weight",
    }
    for step, log in enumerate(alone["logs"]):
        wanted = {key: value for key, value in tensors.items() if key.startswith(f"{step}/")}
        assert farthest(wanted, {key: mine[key] for key in wanted}) < 1e-5
        assert all(torch.equal(mine[key], theirs[key]) for key in wanted)
        assert first["logs"][step]["loss"] == pytest.approx(log["loss"], rel=1e-5, abs=1e-6)
    assert len(first["logs"]) == len(second["logs"]) == len(alone["logs"])


@pytest.mark.parametrize("name", LIKE_ONE)
def test_metrics_are_those_of_one_process(name: str, folder: Path, tmp_path: Path) -> None:
    """Every logged mean and count, time apart: what a rank runs only to keep the others company is not counted.

    Before the first step the policy is its reference, and whether a margin of rounding is above zero is chance.
    """
    alone, _ = run(name, scenarios()[name], tmp_path)
    first, _ = told(folder, name, 0)
    for step, (mine, wanted) in enumerate(zip(first["logs"], alone["logs"], strict=True)):
        apart = (
            {key for key in wanted if key.startswith(("seconds", "memory")) or key == "tokens_per_second"}
            | (PER_PASS if name == "kto" else set())
            | (set() if step else {"rewards/accuracies"})
        )
        apart |= {"val/num_eos_tokens"}  # of a rank's window
        # A reward's spread is told of each rank's own window.
        apart |= {key for key in wanted if key.startswith("rewards/") and key.endswith("/std")}
        for key in sorted(wanted.keys() - apart):
            assert mine[key] == pytest.approx(wanted[key], rel=2e-5, abs=1e-6), key


@pytest.mark.parametrize("name", ["sft", "rloo"])
def test_every_row_is_trained_once_and_none_is_repeated(name: str, folder: Path) -> None:
    """19 rows on 2 ranks: accelerate would repeat 5 of them to even the ranks."""
    ranks = [told(folder, name, rank)[0]["rows"] for rank in (0, 1)]
    trained = [row for rows in ranks for step in rows for row in step]
    assert sorted(trained) == sorted(str(i) for i in range(19))
    assert ranks[1][-1] == []  # the rank that ran along without rows


def test_a_window_on_two_ranks_trains_each_rollout_once_an_epoch(folder: Path) -> None:
    """Block of 8 prompts, 2 minibatches x 2 epochs: a rank's 4 prompts come up twice in the window's 4 steps."""
    ranks = [told(folder, "window", rank)[0]["rows"] for rank in (0, 1)]
    for rows in ranks:
        epochs = [sorted(row for step in rows[i : i + 2] for row in step) for i in (0, 2)]
        assert epochs[0] == epochs[1]
        assert len(epochs[0]) == len(set(epochs[0])) == 4
    assert not set(ranks[0][0]) & set(ranks[1][0])


def test_moving_weights_stay_equal_on_both_ranks(folder: Path) -> None:
    (first, mine), (_, theirs) = (told(folder, "window", rank) for rank in (0, 1))
    assert len(first["logs"]) == 12
    moved = {key for key in mine if key.startswith("weights/")}
    assert all(torch.equal(mine[key], theirs[key]) for key in moved)
    assert farthest({key: mine[key] for key in moved}, initial(moved)) > 1e-4


def initial(names: set[str]) -> dict[str, torch.Tensor]:
    from toys import policy

    parameters = dict(policy().named_parameters())
    return {name: parameters[name.removeprefix("weights/")].detach() for name in names}


def test_a_checkpoint_holds_every_ranks_rollouts(folder: Path) -> None:
    """Each rank writes its own share; rank 0 alone writes the rest."""
    checkpoints = sorted(path for path in (folder / "window").iterdir())
    assert [path.name for path in checkpoints] == ["checkpoint-12"]
    names = {path.name for path in checkpoints[0].iterdir()}
    assert {"window-0.json", "window-1.json", "model.safetensors", "rng_state_0.pth", "rng_state_1.pth"} <= names
