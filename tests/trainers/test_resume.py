"""An output folder as transformers leaves it: checkpoints to resume from, an earlier run replaced, files left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback

from contrl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer, UserError

Rows = list[dict[str, Any]]
QUICK: dict[str, Any] = {
    "output_dir": "out",
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_steps": 2,
    "disable_tqdm": True,
}


class _Crash(TrainerCallback):
    """A power cut right after the checkpoint of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def make_trainer(make_model: Callable[..., Any], tokenizer: Any, pairs: Rows) -> Callable[..., DPOTrainer]:
    """A trainer of the same start; ``changes`` are of its configuration or its constructor."""

    def make(changes: dict[str, Any] | None = None, **further: Any) -> DPOTrainer:
        config = DPOConfig(**QUICK | (changes or {}))
        given = {"train_dataset": pairs, "processing_class": tokenizer} | further
        return DPOTrainer(make_model(), None, config, **given)

    return make


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(make_trainer: Callable[..., DPOTrainer]) -> None:
    """Weights bit for bit, and the loss of every step; with an adapter that has dropout too."""
    adapter = LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj"], task_type="CAUSAL_LM")
    for number, peft_config in enumerate((None, adapter)):
        whole = make_trainer({"output_dir": f"whole{number}"}, peft_config=peft_config)
        whole.train()
        place = {"output_dir": f"out{number}"}
        broken = make_trainer(place, peft_config=peft_config, callbacks=[_Crash(2)])
        with pytest.raises(KeyboardInterrupt):
            broken.train()
        resumed = make_trainer(place, peft_config=peft_config)
        output = resumed.train(resume_from_checkpoint=True)
        assert same(weights(whole.model), weights(resumed.model))
        assert output.global_step == 4
        logged = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (whole, resumed)]
        assert logged[0] == logged[1]
        assert len(logged[0]) == 4


def test_a_named_checkpoint_and_one_that_is_the_end(make_trainer: Callable[..., DPOTrainer]) -> None:
    whole = make_trainer()
    whole.train()
    for step in (2, 4):
        resumed = make_trainer({"output_dir": "other"})
        output = resumed.train(resume_from_checkpoint=f"out/checkpoint-{step}")
        assert same(weights(whole.model), weights(resumed.model))
        assert output.global_step == 4


def test_a_finished_training_goes_on_for_more_steps(make_trainer: Callable[..., DPOTrainer]) -> None:
    make_trainer({"lr_scheduler_type": "constant"}).train()
    longer = make_trainer({"max_steps": 6, "lr_scheduler_type": "constant"})
    assert longer.train(resume_from_checkpoint=True).global_step == 6
    whole = make_trainer({"max_steps": 6, "lr_scheduler_type": "constant", "output_dir": "whole"})
    whole.train()
    assert same(weights(whole.model), weights(longer.model))


def test_there_is_nothing_to_resume(make_trainer: Callable[..., DPOTrainer], pairs: Rows) -> None:
    with pytest.raises(UserError, match="no checkpoint in out"):
        make_trainer().train(resume_from_checkpoint=True)
    with pytest.raises(UserError, match="nowhere is no checkpoint"):
        make_trainer().train(resume_from_checkpoint="nowhere")
    with pytest.raises(UserError, match="no run in out"):
        make_trainer(train_dataset=[pairs]).train(resume_from_checkpoint=True)


def test_an_output_folder_in_use_is_written_into(make_trainer: Callable[..., DPOTrainer], tmp_path: Path) -> None:
    """Other files stay; the records of a second training replace the first's, which it repeats."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    found = []
    for _ in range(2):
        trainer = make_trainer()
        trainer.train()
        lines = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        found.append([record["value"] for record in records if record.get("name") == "loss"])
    assert found[0] == found[1]
    assert len(found[0]) == 4
    assert (tmp_path / "out" / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert not (tmp_path / "out" / "stages").exists()


def test_which_checkpoints_stay(make_trainer: Callable[..., DPOTrainer], tmp_path: Path) -> None:
    """As many as save_total_limit says, the newest; none with save_strategy no."""
    make_trainer({"save_steps": 1, "save_total_limit": 2}).train()
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    make_trainer({"save_strategy": "no", "output_dir": "none"}).train()
    assert not list((tmp_path / "none").glob("checkpoint-*"))


def test_a_run_of_the_command_line_is_not_overwritten(make_trainer: Callable[..., DPOTrainer], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text('{"command": ["contrl", "dpo"]}', encoding="utf-8")
    with pytest.raises(UserError, match="holds a run of the command line"):
        make_trainer().train()


def test_a_sequence_resumes_in_the_middle(
    make_model: Callable[..., Any], tokenizer: Any, supervised: Rows, tmp_path: Path
) -> None:
    """Killed in the second task: the same weights and the same results as without."""

    def make(place: str, callbacks: list[Any], low: Rows = supervised[:5]) -> SFTTrainer:
        return SFTTrainer(
            make_model(),
            SFTConfig(**QUICK | {"output_dir": place}),
            train_dataset={"low": low, "high": supervised[5:]},
            eval_dataset={"low": supervised[:2], "high": supervised[8:]},
            processing_class=tokenizer,
            callbacks=callbacks,
        )

    class CrashInSecond(TrainerCallback):
        stage = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.stage += 1

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.stage == 2 and state.global_step == 3:
                raise KeyboardInterrupt

    whole = make("whole", [])
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        make("out", [CrashInSecond()]).train()
    resumed = make("out", [])
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(whole.model), weights(resumed.model))
    assert whole.results is not None
    assert resumed.results is not None
    assert resumed.results.matrix == whole.results.matrix
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "final")
    assert same(weights(saved), weights(whole.model))
    # The folder's model is a hard link to the last stage's: saving another one there leaves that alone.
    with torch.no_grad():
        resumed.model.get_input_embeddings().weight.zero_()
    resumed.save_model()
    again = [AutoModelForCausalLM.from_pretrained(tmp_path / "out" / name) for name in (".", "stages/2-high/final")]
    assert not again[0].get_input_embeddings().weight.any()
    assert same(weights(again[1]), weights(whole.model))
    changed = make("out", [], supervised[:4])
    with pytest.raises(UserError, match="the rows of low are not those"):
        changed.train(resume_from_checkpoint=True)
