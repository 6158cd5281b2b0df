"""Programs written for TRL: the snippets of its README, every trainer by name, and a list of data sets."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import contrl
from contrl import (
    CPOConfig,
    CPOTrainer,
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    ORPOConfig,
    ORPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
    create_reference_model,
)

Rows = list[dict[str, Any]]
QUICK: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "disable_tqdm": True,
}
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


# --- the snippets of TRL's README of 2024 -------------------------------------------------------------


def test_the_readme_trains_a_named_model_on_text(model_folder: str, tmp_path: Path) -> None:
    dataset = Dataset.from_list([{"review": f"{i}+{i}={2 * i}", "label": 0} for i in range(10)])
    with pytest.warns(FutureWarning, match=r"SFTConfig\(dataset_text_field=..., max_length=...\)"):
        trainer = SFTTrainer(
            model_folder,
            train_dataset=dataset,
            dataset_text_field="review",
            max_seq_length=512,
        )
    assert (trainer.args.max_length, trainer.args.learning_rate) == (512, 2e-5)
    assert Path(trainer.args.output_dir) == Path("llama-SFT")
    trainer.train()
    # 10 rows in steps of 8, three epochs.
    assert trainer.state.global_step == 6
    assert (tmp_path / "llama-SFT" / "checkpoint-6" / "trainer_state.json").exists()


def test_the_readme_trains_a_reward_model(model_folder: str, pairs: Rows) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    with pytest.warns(FutureWarning, match="processing_class"):
        trainer = RewardTrainer(
            model=model,
            tokenizer=tokenizer,
            train_dataset=Dataset.from_list(pairs),
        )
    trainer.train()
    assert trainer.model is model
    assert trainer.state.global_step == 6


def test_the_readme_trains_by_preference(model_folder: str, pairs: Rows) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    with pytest.warns(FutureWarning, match="processing_class"):
        trainer = DPOTrainer(
            model=model,
            tokenizer=tokenizer,
            train_dataset=Dataset.from_list(pairs),
        )
    trainer.train()
    assert trainer.state.global_step == 6
    assert math.isclose(trainer.state.log_history[-1]["train_loss"], math.log(2), abs_tol=0.05)


def test_a_trainer_of_2024_takes_the_methods_fields_itself(
    make_model: Callable[..., Any], tokenizer: Any, pairs: Rows
) -> None:
    """DPOTrainer(model, ref_model, args=TrainingArguments(...), beta=..., max_prompt_length=...)."""
    from transformers import TrainingArguments

    model = make_model()
    arguments = TrainingArguments(output_dir="old", max_steps=1, learning_rate=5e-5, seed=3, report_to="none")
    with pytest.warns(FutureWarning):
        trainer = DPOTrainer(
            model,
            create_reference_model(model),
            args=arguments,
            beta=0.3,
            train_dataset=pairs,
            tokenizer=tokenizer,
            max_length=32,
            max_prompt_length=16,
        )
    args = trainer.args
    assert isinstance(args, DPOConfig)
    assert (args.beta, args.max_prompt_length, args.max_steps, args.seed) == (0.3, 16, 1, 3)
    assert args.output_dir == "old"
    trainer.train()
    assert trainer.state.global_step == 1


# --- every trainer -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "keys"),
    [
        (SFTTrainer, SFTConfig, {"entropy", "mean_token_accuracy"}),
        (DPOTrainer, DPOConfig, {"rewards/chosen", "rewards/accuracies", "logps/rejected", "logits/chosen"}),
        (KTOTrainer, KTOConfig, {"kl", "rewards/chosen", "logps/rejected", "entropy"}),
        (CPOTrainer, CPOConfig, {"nll_loss", "rewards/margins"}),
        (ORPOTrainer, ORPOConfig, {"nll_loss", "log_odds_ratio", "log_odds_chosen"}),
    ],
)
def test_every_trainer_moves_the_given_model(
    trainer_class: Any,
    config_class: Any,
    keys: set[str],
    make_model: Callable[..., Any],
    tokenizer: Any,
    pairs: Rows,
    tmp_path: Path,
) -> None:
    """From lists of dicts; the object is trained in place, in its own precision, and nothing stays wrapped."""
    model, before = make_model(), weights(make_model())
    args = config_class(output_dir="out", **QUICK)
    trainer = trainer_class(
        model=model, args=args, train_dataset=pairs, eval_dataset=pairs[:3], processing_class=tokenizer
    )
    output = trainer.train()
    assert trainer.model is model
    assert not same(before, weights(model))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert "forward" not in model.__dict__
    (line,) = [line for line in trainer.state.log_history if line.get("step") == 2 and "loss" in line]
    assert {"loss", "grad_norm", "learning_rate", "epoch", "num_tokens", *keys} <= line.keys()
    assert output.global_step == 2
    assert math.isclose(output.training_loss, sum(losses(trainer)) / 2, rel_tol=1e-6)
    held_out = trainer.evaluate()
    assert {"eval_loss"} | {f"eval_{key}" for key in keys} <= held_out.keys()
    trainer.save_model()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert same(weights(again), weights(model))
    assert (tmp_path / "out" / "README.md").exists()
    checkpoint = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint-2")
    assert same(weights(checkpoint), weights(model))


def test_a_reward_model_is_trained_and_saved(
    make_scorer: Callable[..., Any], tokenizer: Any, pairs: Rows, tmp_path: Path
) -> None:
    rows = [{**row, "margin": 0.5} for row in pairs]
    model = make_scorer()
    trainer = RewardTrainer(
        model, RewardConfig(output_dir="out", **QUICK), train_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model("scorer")
    line = next(line for line in trainer.state.log_history if "loss" in line)
    assert {"accuracy", "margin", "min_reward", "mean_reward", "max_reward"} <= line.keys()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scorer")
    assert same(weights(again), weights(model))


def test_steps_are_counted_as_transformers_counts_them(
    make_model: Callable[..., Any], tokenizer: Any, supervised: Rows
) -> None:
    """10 rows in steps of 4 are 3 steps an epoch; with two micro-batches of 2 as well."""
    for sizes in (
        {"per_device_train_batch_size": 4},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ):
        args = SFTConfig(output_dir="out", disable_tqdm=True, **sizes)
        trainer = SFTTrainer(make_model(), args, train_dataset=supervised, processing_class=tokenizer)
        assert trainer.train().global_step == 9
        assert trainer.state.log_history[-1]["epoch"] == 3.0


def test_evaluation_before_training_and_while_training(
    make_model: Callable[..., Any], tokenizer: Any, pairs: Rows
) -> None:
    """Before any step policy and reference are one, so DPO's loss is log 2; named data sets get their own numbers."""
    args = DPOConfig(output_dir="out", eval_strategy="steps", eval_steps=1, **QUICK)
    held_out = {"easy": pairs[:3], "hard": pairs[3:6]}
    trainer = DPOTrainer(
        make_model(), None, args, train_dataset=pairs[6:], eval_dataset=held_out, processing_class=tokenizer
    )
    first = trainer.evaluate()
    assert math.isclose(first["eval_loss"], math.log(2), rel_tol=1e-6)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "eval_loss" in line]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[-1]["eval_loss"] != first["eval_loss"]
    assert {"eval_easy_loss", "eval_hard_loss"} <= lines[-1].keys()
    assert math.isclose(trainer.evaluate()["eval_loss"], lines[-1]["eval_loss"], rel_tol=1e-5)
    with pytest.raises(contrl.UserError, match="reference has not seen these rows"):
        trainer.evaluate([{"prompt": "9-1=", "chosen": "8", "rejected": "9"}])


def test_splits_give_train_and_test(make_model: Callable[..., Any], tokenizer: Any, supervised: Rows) -> None:
    splits = DatasetDict(train=Dataset.from_list(supervised[:8]), test=Dataset.from_list(supervised[8:]))
    trainer = SFTTrainer(
        make_model(), SFTConfig(output_dir="out", **QUICK), train_dataset=splits, processing_class=tokenizer
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


def test_a_stream_is_read_as_far_as_the_steps_go(make_model: Callable[..., Any], tokenizer: Any) -> None:
    from datasets import IterableDataset

    read: list[int] = []

    def endless() -> Any:
        number = 0
        while True:
            read.append(number)
            yield {"text": f"{number}+{number}"}
            number += 1

    stream = IterableDataset.from_generator(endless)
    trainer = SFTTrainer(
        make_model(), SFTConfig(output_dir="out", **QUICK), train_dataset=stream, processing_class=tokenizer
    )
    trainer.train()
    assert len(read) <= 2 * 4 + 1


def test_formatting_func_makes_the_text(make_model: Callable[..., Any], tokenizer: Any) -> None:
    """The same loss as the text itself."""
    found = []
    for rows, formatting in (
        ([{"a": i, "b": i + 1} for i in range(4)], lambda row: f"{row['a']}+{row['b']}"),
        ([{"text": f"{i}+{i + 1}"} for i in range(4)], None),
    ):
        trainer = SFTTrainer(
            make_model(),
            SFTConfig(output_dir="out", **QUICK),
            train_dataset=rows,
            processing_class=tokenizer,
            formatting_func=formatting,
        )
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == found[1]


def test_a_given_optimizer_and_schedule_are_used(
    make_model: Callable[..., Any], tokenizer: Any, supervised: Rows
) -> None:
    """Plain SGD of one step: theta moves by -lr times the gradient, so twice the rate moves it twice as far."""
    moved = []
    for rate in (0.1, 0.2):
        model, before = make_model(), weights(make_model())
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        args = SFTConfig(output_dir="out", **QUICK | {"max_steps": 1, "max_grad_norm": 1e9})
        trainer = SFTTrainer(
            model, args, train_dataset=supervised, processing_class=tokenizer, optimizers=(optimizer, schedule)
        )
        trainer.train()
        after = weights(model)
        moved.append(torch.cat([(after[name] - before[name]).flatten() for name in after]))
    torch.testing.assert_close(moved[1], 2 * moved[0], rtol=1e-3, atol=1e-6)
    model = make_model()
    trainer = SFTTrainer(
        model,
        args,
        train_dataset=supervised,
        processing_class=tokenizer,
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.2}),
    )
    trainer.train()
    line = next(line for line in trainer.state.log_history if "loss" in line)
    assert line["learning_rate"] == 0.2


# --- the reference -------------------------------------------------------------------------------------


def test_a_given_reference_is_the_one_compared_with(
    make_model: Callable[..., Any], tokenizer: Any, pairs: Rows
) -> None:
    """Against itself the first loss is log 2; against other weights it is not; and the reference never moves."""
    first = []
    for seed in (0, 1):
        reference = make_model(seed)
        before = weights(reference)
        trainer = DPOTrainer(
            make_model(0),
            reference,
            DPOConfig(output_dir="out", beta=5.0, **QUICK),
            train_dataset=pairs,
            processing_class=tokenizer,
        )
        trainer.train()
        first.append(losses(trainer)[0])
        assert same(before, weights(reference))
        assert trainer.ref_model is reference
    assert math.isclose(first[0], math.log(2), rel_tol=1e-6)
    assert abs(first[1] - math.log(2)) > 1e-3


@pytest.mark.filterwarnings("ignore:precompute_ref_log_probs has no effect")
@pytest.mark.parametrize("adapter", [False, True])
def test_the_reference_is_the_model_in_memory_and_not_its_file(
    adapter: bool, model_folder: str, tokenizer: Any, pairs: Rows
) -> None:
    """Two trainers in a row on one model that came from a folder: each starts at log 2, though the folder has other
    weights by then; with the table precomputed or not. TRL reads the reference from the folder again, and of an
    adapter fails at the second trainer."""
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder)
    model = get_peft_model(model, copy.deepcopy(LORA)) if adapter else model
    first = []
    for number, precompute in enumerate((False, True, False)):
        settings = {**QUICK, "precompute_ref_log_probs": precompute}
        # Three steps of four rows see all of them, one does not: the reference is then a copy and not a table.
        settings["max_steps"] = 1 if number == 2 else 3
        trainer = DPOTrainer(
            model, None, DPOConfig(output_dir=f"{number}", **settings), train_dataset=pairs, processing_class=tokenizer
        )
        trainer.train()
        first.append(losses(trainer)[0])
        assert trainer.model is model
        assert not {"forward", "_original_forward"} & model.__dict__.keys()
    assert first == pytest.approx([math.log(2)] * 3, abs=1e-6)
    assert not adapter or list(model.peft_config) == ["default"]


# --- adapters ------------------------------------------------------------------------------------------


def test_an_adapter_is_put_on_and_then_continued(
    make_model: Callable[..., Any], tokenizer: Any, supervised: Rows, pairs: Rows, tmp_path: Path
) -> None:
    """SFT makes it, DPO goes on with the same one: its loss starts at log 2, and the base never moves."""
    base, before = make_model(), weights(make_model())
    sft = SFTTrainer(
        base,
        SFTConfig(output_dir="sft", **QUICK),
        train_dataset=supervised,
        processing_class=tokenizer,
        peft_config=LORA,
    )
    sft.train()
    assert sft.is_peft
    learnt = weights(sft.model)
    dpo = DPOTrainer(
        sft.model, None, DPOConfig(output_dir="dpo", **QUICK), train_dataset=pairs, processing_class=tokenizer
    )
    assert dpo.model is sft.model
    assert same(learnt, weights(dpo.model))
    dpo.train()
    assert math.isclose(losses(dpo)[0], math.log(2), rel_tol=1e-6)
    after = weights(dpo.model)
    assert not same(learnt, after)
    frozen = {n: t for n, t in after.items() if "lora_" not in n}
    assert len(frozen) == len(before)
    assert all(any(torch.equal(t, b) for b in before.values()) for t in frozen.values())
    assert list(dpo.model.peft_config) == ["default"]
    dpo.save_model()
    assert (tmp_path / "dpo" / "adapter_model.safetensors").exists()
    with pytest.raises(contrl.UserError, match="continue this adapter"):
        DPOTrainer(sft.model, None, None, train_dataset=pairs, processing_class=tokenizer, peft_config=LORA)


# --- a list of data sets ---------------------------------------------------------------------------------


def test_a_list_of_data_sets_is_a_sequence_of_tasks(
    make_model: Callable[..., Any], tokenizer: Any, pairs: Rows, tmp_path: Path
) -> None:
    """A results matrix of 3 rows x 2 tasks; each task's DPO starts at log 2, as its reference is its own start."""
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs]
    trainer = DPOTrainer(
        make_model(),
        None,
        DPOConfig(output_dir="out", beta=1.0, **QUICK),
        train_dataset=[pairs[:7], swapped[:7]],
        eval_dataset=[pairs[7:], swapped[7:]],
        processing_class=tokenizer,
        strategies=["replay(share=0.5)"],
    )
    output = trainer.train()
    assert output.global_step == 4
    first = {line["stage"]: line["loss"] for line in reversed(trainer.state.log_history) if "loss" in line}
    assert math.isclose(first[1], math.log(2), rel_tol=1e-6)
    assert math.isclose(first[2], math.log(2), rel_tol=1e-6)
    written = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert trainer.results is not None
    assert trainer.results.tasks == ("task0", "task1")
    assert trainer.results.rows == ("start", "1-task0", "2-task1")
    assert all(cell is not None for row in trainer.results.matrix for cell in row)
    assert "matrix" in written
    assert (tmp_path / "out" / "stages" / "2-task1" / "final" / "model.safetensors").exists()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert same(weights(saved), weights(trainer.model))
    assert trainer.evaluate().keys() >= {"eval_task0_accuracy", "eval_task1_accuracy"}


def test_tasks_by_name_without_evaluation_rows(
    make_model: Callable[..., Any], tokenizer: Any, supervised: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing can be measured, which is said; the second adapter stage continues the first."""
    trainer = SFTTrainer(
        make_model(),
        SFTConfig(output_dir="out", **QUICK),
        train_dataset={"low": supervised[:5], "high": supervised[5:]},
        processing_class=tokenizer,
        peft_config=LORA,
    )
    trainer.train()
    assert "will not be measured" in capsys.readouterr().out
    for name in ("1-low", "2-high"):
        assert (tmp_path / "out" / "stages" / name / "final" / "adapter_model.safetensors").exists()
    # A second train() is a new run: its records replace those of the first.
    trainer.train()
    journal = (tmp_path / "out" / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum('"started"' in line for line in journal) == 2
