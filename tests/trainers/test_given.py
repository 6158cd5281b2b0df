"""What a constructor refuses, and what to do instead; what two trainers on one model leave of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset

from contrl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    ORPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
    UserError,
)

Rows = list[dict[str, Any]]


@pytest.fixture
def sft(make_model: Callable[..., Any], tokenizer: Any, supervised: Rows) -> Callable[..., SFTTrainer]:
    """``sft(**changes)``: a trainer that works, but for the changes."""

    def make(**changes: Any) -> SFTTrainer:
        given = {"model": make_model(), "train_dataset": supervised, "processing_class": tokenizer}
        given["args"] = SFTConfig(output_dir="out", max_steps=2, disable_tqdm=True)
        return SFTTrainer(**given | changes)

    return make


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "there is no model"),
        ({"train_dataset": None}, "there is no train_dataset"),
        ({"train_dataset": []}, "train_dataset has no rows"),
        ({"train_dataset": 3}, "train_dataset is a int, no data set"),
        ({"train_dataset": DatasetDict(test=Dataset.from_list([{"text": "a"}]))}, "and no train"),
        ({"train_dataset": [{"question": "a"}]}, "question"),
        ({"data_collator": list}, "data_collator is not used by contrl\n  the engine builds"),
        ({"compute_metrics": len}, "compute_metrics is not used by contrl\n  logits never exist"),
        ({"preprocess_logits_for_metrics": len}, "preprocess_logits_for_metrics is not used"),
        ({"ref_model": "tiny"}, "SFTTrainer has no reference"),
        ({"callback": []}, "has no argument 'callback'\n  did you mean callbacks?"),
        ({"args": DPOConfig(output_dir="x")}, "args is a DPOConfig\n  give a SFTConfig"),
        ({"args": "out"}, "args is a str"),
        ({"processing_class": "gpt2"}, "processing_class is a str, not a tokenizer"),
        ({"processing_class": None}, "the model has no tokenizer"),
        ({"formatting_func": lambda row: [row["prompt"]]}, "formatting_func gives a list, not text"),
        ({"quantization_config": object()}, "quantization_config goes with a model given by name"),
        ({"strategies": "replay"}, "strategies is the text 'replay'"),
        ({"strategies": ["replai"]}, "did you mean replay"),
        ({"strategies": [3]}, "strategies holds a int"),
        ({"model": "no/such/folder"}, "there is no model folder"),
        ({"eval_dataset": [{"question": "a"}]}, "none of 1 rows can be used"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_mistake_is_named(sft: Callable[..., SFTTrainer], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        sft(**changes).train()


def test_a_stream_without_steps_has_no_end(sft: Callable[..., SFTTrainer]) -> None:
    stream = IterableDataset.from_generator(lambda: iter([{"text": "1+1"}]))
    with pytest.raises(UserError, match="max_steps is not set"):
        sft(train_dataset=stream, args=SFTConfig(output_dir="out"))


def test_models_of_the_wrong_kind(
    make_model: Callable[..., Any], make_scorer: Callable[..., Any], tokenizer: Any, pairs: Rows
) -> None:
    with pytest.raises(UserError, match="takes a sequence classifier"):
        RewardTrainer(make_model(), RewardConfig("out"), train_dataset=pairs, processing_class=tokenizer)
    with pytest.raises(UserError, match="takes a language model"):
        ORPOTrainer(make_scorer(), None, train_dataset=pairs, processing_class=tokenizer)
    model = make_model()
    with pytest.raises(UserError, match="same object"):
        DPOTrainer(model, model, DPOConfig("out"), train_dataset=pairs, processing_class=tokenizer)
    other = torch.optim.SGD(make_model().parameters(), lr=0.1)
    given = {"train_dataset": pairs, "processing_class": tokenizer, "optimizers": (other, None)}
    with pytest.raises(UserError, match="no parameter of the model"):
        DPOTrainer(model, None, DPOConfig("out"), **given)
    with pytest.raises(UserError, match="every task starts with a new one"):
        DPOTrainer(model, None, DPOConfig("out"), **given | {"train_dataset": [pairs, pairs]})
    given = {"processing_class": tokenizer, "train_dataset": [pairs, pairs], "eval_dataset": pairs}
    with pytest.raises(UserError, match="eval_dataset is not 2 data sets"):
        DPOTrainer(model, None, DPOConfig("out"), **given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPOConfig("x", rpo_alpha=1.0).training(), "loss_weights=[1.0, rpo_alpha]"),
        (lambda: DPOConfig("x", reference_free=True).training(), "CPOTrainer and ORPOTrainer"),
        (lambda: DPOConfig("x", truncation_mode="keep_end").training(), "max_prompt_length"),
        (lambda: SFTConfig("x", packing_strategy="wrapped").training(), "best-fit"),
        (lambda: KTOConfig("x", sync_ref_model=True).training(), "reference='ema'"),
        (lambda: SFTConfig("x", auto_find_batch_size=True).training(), "tokens_per_pass"),
        (lambda: SFTConfig("x", save_strategy="best", metric_for_best_model="loss").training(), "steps or epoch"),
        (lambda: SFTConfig("x", label_smoothing_factor=0.1).training(), "belongs to the method"),
    ],
)
def test_settings_that_would_change_results_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make()


def test_settings_without_effect_are_noted() -> None:
    with pytest.warns(FutureWarning, match="precompute_ref_log_probs has no effect: .* computed once and kept"):
        DPOConfig("x", precompute_ref_log_probs=True)
    with pytest.warns(FutureWarning, match="dataset_num_proc has no effect"):
        SFTConfig("x", dataset_num_proc=4)
    with pytest.warns(FutureWarning, match="max_seq_length is called max_length now"):
        assert SFTConfig("x", max_seq_length=99).max_length == 99


def test_bad_rows_stop_it_unless_allowed(sft: Callable[..., SFTTrainer], supervised: Rows) -> None:
    rows = [*supervised, {"prompt": "1+1=", "completion": None}]
    with pytest.raises(UserError, match="1 of 11 rows cannot be used"):
        sft(train_dataset=rows)
    trainer = sft(train_dataset=rows, args=SFTConfig("out", max_steps=1, max_bad_rows=1, disable_tqdm=True))
    assert trainer.train().global_step == 1


def test_two_trainers_on_one_model_leave_it_as_it_was(
    make_model: Callable[..., Any], tokenizer: Any, supervised: Rows, pairs: Rows
) -> None:
    """The same object, its own forward and precision; under bfloat16 autocast nothing stays wrapped."""
    model = make_model().train()
    kind, forward = type(model), type(model).forward
    settings = {"max_steps": 1, "bf16": True, "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 2}
    SFTTrainer(
        model, SFTConfig(output_dir="a", **settings), train_dataset=supervised, processing_class=tokenizer
    ).train()
    trainer = DPOTrainer(
        model, None, DPOConfig(output_dir="b", **settings), train_dataset=pairs, processing_class=tokenizer
    )
    trainer.train()
    assert trainer.model is model
    assert type(model) is kind
    assert not {"forward", "_original_forward"} & model.__dict__.keys()
    assert type(model).forward is forward
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in model.parameters())


def test_precision_and_checkpointing_follow_the_device() -> None:
    """TRL turns both on everywhere; contrl on a CPU neither, unless asked."""
    config = SFTConfig("x")
    assert config.bf16 is torch.cuda.is_available()
    assert not config.gradient_checkpointing
    assert SFTConfig("x", gradient_checkpointing=True).training()["activation_checkpointing"] is True
    assert SFTConfig("x", bf16=True, use_cpu=True).training()["bf16"] is True


def test_what_is_set_after_the_configuration_was_made_counts() -> None:
    config = DPOConfig("x", learning_rate=5e-5)
    config.max_steps, config.beta = 7, 0.5
    assert config.training() | {"max_steps": 7} == config.training()
    assert "learning_rate" not in config.training(), "5e-5 is transformers' own"
    from contrl.methods.dpo import DPO

    assert config.method_fields(DPO)["beta"] == 0.5
