"""Arguments of TRL and transformers that contrl decides itself: accepted where nothing is lost, else refused.

A program copied from elsewhere should run when what it asks for is already so, and stop, with the right place named,
when it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from contrl.errors import UserError

OWN = frozenset(
    {
        "output_dir", "seed", "data_seed", "resume_from_checkpoint", "restore_callback_states_from_checkpoint",
        "do_train", "do_eval", "do_predict", "report_to", "run_name", "push_to_hub", "hub_model_id", "hub_strategy",
        "hub_token", "hub_private_repo", "hub_always_push", "hub_revision", "remove_unused_columns", "label_names",
        "length_column_name", "include_num_input_tokens_seen", "include_for_metrics", "prediction_loss_only",
        "average_tokens_across_devices", "logging_nan_inf_filter", "disable_tqdm", "metric_for_best_model",
        "greater_is_better", "eval_accumulation_steps", "per_device_eval_batch_size", "save_only_model",
        "eval_do_concat_batches", "eval_use_gather_object", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval",
        "enable_jit_checkpoint", "local_rank", "gradient_checkpointing", "gradient_checkpointing_kwargs",
    }
)  # fmt: skip
"""Arguments of transformers that do not reach the engine: the trainer, or contrl's loop, sees to them."""

_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "load_best_model_at_end": (
        (False,), "the model at the end is the last one; load the checkpoint whose eval_loss in log_history you want"),
    "auto_find_batch_size": ((False,), "give tokens_per_pass: passes are counted in tokens, whatever the batch size"),
    "label_smoothing_factor": ((0, 0.0), "the loss belongs to the method; DPO and CPO have label_smoothing"),
    "dataloader_drop_last": ((False,), "every row is used; an incomplete last step is a smaller step"),
    "ignore_data_skip": ((False,), "a resumed run goes on at the row where it stopped"),
    "parallelism_config": ((None,), "use `accelerate launch` and its options"),
}  # fmt: skip
"""Of transformers: name -> the values that change nothing, and what to do instead."""

Table = Mapping[str, tuple[tuple[Any, ...], str]]
"""Names of fields -> the values that change nothing, and what to do instead or why nothing is lost."""

_REFUSED_FIELDS: dict[str, tuple[tuple[Any, ...], str]] = {
    "truncation_mode": (("keep_start",), "prompts are cut by max_prompt_length from their start, the rest at its end"),
    "packing_strategy": (("bfd",), "rows are packed best-fit, each whole; what is too long is cut by max_length"),
    "router_aux_loss_coef": ((None, 0, 0.0), "there is no auxiliary loss of routers"),
    "reference_free": ((False,), "CPOTrainer and ORPOTrainer need no reference"),
    "rpo_alpha": ((None, 0, 0.0), 'give loss_type=["sigmoid", "sft"], loss_weights=[1.0, rpo_alpha]'),
    "is_encoder_decoder": ((None, False), "contrl trains decoder-only models"),
}

_QUIET: dict[str, tuple[tuple[Any, ...], str]] = {
    "dataset_num_proc": ((None,), "rows are encoded in batches by one process, and cached"),
    "dataset_kwargs": ((None,), "rows that hold token ids are taken as they are"),
    "precompute_ref_log_probs": ((False,), "the reference's log-probabilities are computed once and kept, always"),
    "precompute_ref_batch_size": ((None,), "passes are counted in tokens: tokens_per_pass"),
    "padding_free": ((False,), "contrl lays batches out by itself"),
    "eval_packing": ((None,), "contrl lays batches out by itself"),
    "shuffle_dataset": ((False,), "rows are shuffled in every epoch anyway, by the seed"),
    "activation_offloading": ((False,), "gradient_checkpointing=True saves memory"),
    "max_completion_length": ((None,), "completions are cut by max_length"),
    "max_target_length": ((None,), "completions are cut by max_length"),
    "generate_during_eval": ((False,), "tasks with a reward are judged by generated answers"),
    "save_only_model": ((False,), "checkpoints are always complete"),
    "data_seed": ((None,), "seed also orders the data"),
}
"""Without effect, and why nothing is lost; what concerns padding alone is not even noted."""


def problems_of(config: Any) -> list[str]:
    """What a configuration asks for that contrl does not do and that would change results."""
    found = [
        f"{name}={getattr(config, name)!r} is not supported: {fix}"
        for name, (harmless, fix) in (_REFUSED_FIELDS | config.refused).items()
        if hasattr(config, name) and getattr(config, name) not in harmless
    ]
    if config.method == "kto" and config.sync_ref_model:
        found.append("sync_ref_model=True is not supported with KTO: take reference='ema'")
    return found


def notes_on(config: Any) -> list[str]:
    """What a configuration sets without effect."""
    return [
        f"{name} has no effect: {why}"
        for name, (default, why) in (_QUIET | config.quiet).items()
        if hasattr(config, name) and name not in config.heeded and getattr(config, name) not in default
    ]


def check_training(values: Mapping[str, Any], where: str) -> None:
    """Refuse arguments of transformers that the engine does not follow.

    Raises:
        UserError: with all of them.
    """
    problems = [
        f"{name}={values[name]!r} is not supported: {fix}"
        for name, (harmless, fix) in _REFUSED.items()
        if name in values and values[name] not in harmless
    ]
    if getattr(values.get("save_strategy"), "value", values.get("save_strategy")) == "best":
        problems.append("save_strategy='best' is not supported: use steps or epoch and pick a checkpoint by eval_loss")
    if problems:
        raise UserError(f"{where}: " + "; ".join(problems))
