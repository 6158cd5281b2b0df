"""Step arithmetic and what becomes of the user's training arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from contrl.engine.arguments import (
    StageSettings,
    build_arguments,
    count_steps,
    describe_device,
    micro_batch,
    precision,
    steps_per_epoch,
)
from contrl.errors import UserError
from contrl.methods.rloo import RLOO
from contrl.methods.sft import SFT


def build(folder: Path, **training: Any) -> Any:
    return build_arguments({"use_cpu": True, **training}, StageSettings(folder, 5, 40, 12, 3))


@pytest.mark.parametrize(
    ("rows", "prompts", "method", "steps"),
    [
        (16, 8, SFT(), 2),
        (17, 8, SFT(), 3),
        (3, 8, SFT(), 1),
        (16, 8, RLOO(), 2),
        (17, 8, RLOO(num_epochs=2), 6),  # 3 blocks of 8, each trained twice
        (17, 8, RLOO(num_minibatches=2), 4),  # 2 blocks of 16, 2 steps each
        (17, 8, RLOO(num_epochs=3, num_minibatches=2), 12),
    ],
)
def test_steps_of_an_epoch(rows: int, prompts: int, method: Any, steps: int) -> None:
    assert steps_per_epoch(rows, prompts, method) == steps


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({}, 3),
        ({"num_train_epochs": 2}, 6),
        ({"num_train_epochs": 0.5}, 2),  # 1.5 steps begin 2
        ({"num_train_epochs": 0.01}, 1),
        ({"max_steps": 7}, 7),
        ({"max_steps": 7, "num_train_epochs": 100}, 7),
        ({"max_steps": -1, "num_train_epochs": 3}, 9),
    ],
)
def test_steps_of_a_stage(training: dict[str, Any], steps: int) -> None:
    assert count_steps(training, 17, 8, SFT()) == steps


def test_prompts_are_shared_out_over_ranks_and_accumulation() -> None:
    assert micro_batch(32, {"gradient_accumulation_steps": 4}, 2) == 4
    assert micro_batch(32, {}, 1) == 32


@pytest.mark.parametrize(
    ("prompts", "fix"), [(30, "use 32 or 24"), (9, "use 16 or 8"), (33, "use 40 or 32"), (7, "use 8"), (1, "use 8")]
)
def test_a_remainder_is_refused_with_the_nearest_numbers(prompts: int, fix: str) -> None:
    """2 processes x 4 accumulation steps make 8 equal parts."""
    with pytest.raises(UserError, match="cannot be shared out") as caught:
        micro_batch(prompts, {"gradient_accumulation_steps": 4}, 2)
    assert caught.value.fix == fix
    assert caught.value.why == "2 processes x 4 accumulation steps make 8 equal parts"


def test_what_contrl_decides(tmp_path: Path) -> None:
    """Also against the user's word: these are computed, or would break the loop."""
    arguments = build(
        tmp_path, max_steps=9, num_train_epochs=7, per_device_train_batch_size=99, seed=1, remove_unused_columns=True,
        logging_nan_inf_filter=True, save_total_limit=1, output_dir="elsewhere",
    )  # fmt: skip
    assert arguments.output_dir == str(tmp_path)
    assert (arguments.seed, arguments.max_steps, arguments.num_train_epochs) == (5, 40, 1)
    assert arguments.per_device_train_batch_size == 3
    assert arguments.remove_unused_columns is False
    assert arguments.logging_nan_inf_filter is False
    assert arguments.average_tokens_across_devices is False
    assert arguments.save_total_limit is None
    assert arguments.eval_strategy == "no"


def test_what_the_user_decides(tmp_path: Path) -> None:
    arguments = build(
        tmp_path, learning_rate=3e-5, logging_steps=4, weight_decay=0.2, report_to="tensorboard", save_steps=7
    )
    assert arguments.learning_rate == 3e-5
    assert (arguments.logging_steps, arguments.save_steps) == (4, 7)
    assert arguments.weight_decay == 0.2
    assert arguments.report_to == ["tensorboard"]


def test_what_is_left_open(tmp_path: Path) -> None:
    arguments = build(tmp_path)
    assert arguments.report_to == []
    assert (arguments.logging_steps, arguments.save_steps, arguments.weight_decay) == (10, 500, 0.0)
    assert not arguments.bf16
    assert not arguments.fp16


@pytest.mark.parametrize("event", ["save", "logging"])
def test_an_epoch_is_counted_in_steps(event: str, tmp_path: Path) -> None:
    """A stage is one long epoch to Trainer; ours has 12 steps, and a number given beside "epoch" means nothing."""
    arguments = build(tmp_path, **{f"{event}_strategy": "epoch", f"{event}_steps": 3})
    assert getattr(arguments, f"{event}_strategy") == "steps"
    assert getattr(arguments, f"{event}_steps") == 12


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_has_both_names_and_no_warning(name: str, tmp_path: Path) -> None:
    """transformers renamed it; warnings are errors here, so the old name must be translated."""
    arguments = build(tmp_path, **{name: True, f"{name}_kwargs": {"use_reentrant": False}})
    assert arguments.activation_checkpointing is True
    assert arguments.activation_checkpointing_kwargs == {"use_reentrant": False}


@pytest.mark.parametrize("training", [{"learning_rat": 1.0}, {"fp16": True, "bf16": True}, {"optim": "nope"}])
def test_a_combination_transformers_refuses_is_a_users_error(training: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="transformers refuses"):
        build(tmp_path, **training)


def test_the_device_in_words(tmp_path: Path) -> None:
    assert describe_device(build(tmp_path), checkpointing=False) == "cpu, float32, gradient checkpointing off"
    assert describe_device(build(tmp_path, bf16=True), checkpointing=True).startswith("cpu, bf16 autocast, ")


def test_the_precision_of_the_device_gives_way_to_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 where nobody chose; ``accelerate launch`` writes what it was told, or "no", into the environment."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    for launched, chosen in (("no", {"bf16": True}), ("bf16", {"bf16": True}), ("fp16", {"fp16": True})):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
        assert precision({}) == chosen
        assert precision({"bf16": True}) == precision({"use_cpu": True}) == {}
