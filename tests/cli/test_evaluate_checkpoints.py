"""The flags of ``contrl evaluate-checkpoints``: a training command's are accepted, and what has no effect is named."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from contrl.cli.checkpoint_flags import METHODS, chosen_method, flags, help_text, read_flags
from contrl.cli.training.table import flags_of
from contrl.errors import ConfigErrors, UserError

PRINTED = (
    "--dataset_name benchmarks/continual_data_debug.json --model_name_or_path Qwen/Qwen2-0.5B-Instruct "
    "--checkpoint_dir Qwen2-0.5B-DPO-test --learning_rate 0 --num_train_epochs 1 --per_device_train_batch_size 2 "
    "--gradient_accumulation_steps 8 --gradient_checkpointing --logging_steps 1000 --eval_strategy steps "
    "--eval_steps 1000 --bf16 --output_dir Qwen2-0.5B-DPO-test-eval --no_remove_unused_columns --use_peft --lora_r 32 "
    "--lora_alpha 16"
)
"""AIF-Gen's command, but for the data set that its README calls by another name."""


def test_the_printed_command_is_read_as_it_stands() -> None:
    """Fourteen of its flags are for training alone; the data and the model are what judges."""
    wanted = read_flags(shlex.split(PRINTED), "dpo")
    assert wanted.checkpoint_dir == Path("Qwen2-0.5B-DPO-test")
    assert wanted.output_dir == Path("Qwen2-0.5B-DPO-test-eval")
    assert set(wanted.idle) == {
        *("learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("gradient_checkpointing", "logging_steps", "eval_strategy", "eval_steps", "bf16", "remove_unused_columns"),
        *("use_peft", "lora_r", "lora_alpha"),
    }
    paths = {text.partition("=")[0] for text in wanted.request.overrides}
    assert paths == {"tasks.path", "model.name_or_path"}
    assert wanted.request.notes == []


@pytest.mark.parametrize("method", METHODS)
def test_every_flag_of_training_is_accepted(method: str) -> None:
    assert flags_of(method).keys() <= flags(method).keys()


def test_what_changes_how_rows_are_judged_is_kept() -> None:
    words = "here --temperature 0.5 --response_length 9 --eval_num_items 3 --max_length 64 --dtype bfloat16 --seed 4 "
    words += "--metric my_module.my_fn --rounds 2 --checkpoints ends --report_to wandb --use_cpu"
    wanted = read_flags(shlex.split(words), "sft")
    assert wanted.checkpoint_dir == Path("here")
    assert (wanted.ends_only, wanted.idle) == (True, ("rounds",))
    found = dict(text.split("=", 1) for text in wanted.request.overrides)
    assert found.pop("rewards.functions") == '["my_module:my_fn"]'
    assert found == {
        "evaluation.temperature": "0.5",
        "evaluation.max_new_tokens": "9",
        "evaluation.num_items": "3",
        "method.max_length": "64",
        "model.dtype": "bfloat16",
        "training.use_cpu": "true",
        "seed": "4",
    }


def test_defaults_of_an_origin_give_way_to_what_is_written() -> None:
    wanted = read_flags(["here", "--temperature", "0"], "dpo", ["--response_length", "53", "--temperature", "0.7"])
    assert {"evaluation.max_new_tokens=53", "evaluation.temperature=0"} == set(wanted.request.overrides)


def test_methods_that_sample_judge_by_a_reward() -> None:
    assert chosen_method(["here", "--method", "kto"]) == "kto"
    assert chosen_method(["here", "--learning_rate", "0"]) is None
    with pytest.raises(UserError, match="--method ppo") as error:
        chosen_method(["--method", "ppo"])
    assert "--reward_funcs" in error.value.why


def test_all_mistakes_at_once() -> None:
    with pytest.raises(ConfigErrors) as error:
        read_flags(["--chekpoint_dir", "here", "--dataset_streaming"], "dpo")
    text = str(error.value)
    assert "did you mean --checkpoint_dir?" in text
    assert "--dataset_streaming true: contrl does not do this" in text


def test_the_help_shows_what_matters_and_lists_the_rest() -> None:
    """Lines fit; a flag of training alone is only in the long one."""
    short, long = help_text(), help_text(everything=True)
    assert "--checkpoint_dir FOLDER" in short
    assert "--reward_model_path" in short
    assert "learning_rate" not in short
    assert "--learning_rate" in long
    assert max(map(len, long.splitlines())) <= 120
