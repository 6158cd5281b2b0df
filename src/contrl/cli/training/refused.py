"""Flags of TRL and transformers that contrl accepts without effect, or refuses because they would change results.

A command copied from elsewhere should run when what it asks for is already so, and stop, with the right place named,
when it is not.
"""

from __future__ import annotations

from contrl.cli.flags import Flag
from contrl.config.training import OWNED
from contrl.training_fields import TRAINING_FIELDS

_QUIET = {
    "do_train": "a run always trains",
    "do_eval": "every task is judged after every stage",
    "do_predict": "every task is judged after every stage",
    "per_device_eval_batch_size": "batches of evaluation are counted in tokens",
    "eval_accumulation_steps": "batches of evaluation are counted in tokens",
    "eval_do_concat_batches": "contrl has an evaluation of its own",
    "eval_use_gather_object": "contrl has an evaluation of its own",
    "batch_eval_metrics": "contrl has an evaluation of its own",
    "prediction_loss_only": "contrl has an evaluation of its own",
    "save_only_model": "checkpoints are always complete, so that a killed run continues bit for bit",
    "enable_jit_checkpoint": "contrl saves on the first SIGTERM by itself",
    "remove_unused_columns": "columns are kept, and those a method does not know are never in the way",
    "label_names": "the method knows its columns",
    "length_column_name": "contrl builds the batches of every step itself, by length",
    "group_by_length": "contrl builds the batches of every step itself, by length",
    "dataloader_drop_last": "contrl builds the batches of every step itself; every row is used",
    "average_tokens_across_devices": "losses are divided by counts over all devices, always",
    "logging_nan_inf_filter": "NaN is never hidden: it stops the run with the last good checkpoint",
    "logging_dir": "logs lie in output_dir",
    "local_rank": "torchrun and accelerate set it in the environment",
    "ignore_bias_buffers": "contrl has nothing to ignore: buffers are never averaged over devices",
    "gradient_checkpointing_use_reentrant": "gradient checkpointing is never re-entrant here",
    "dataset_num_proc": "rows are encoded in batches by one process, and cached",
    "precompute_ref_log_probs": "the reference's log-probabilities are computed once per stage and kept, always",
    "precompute_ref_batch_size": "passes are counted in tokens: --tokens_per_pass",
    "padding_free": "contrl lays batches out by itself: --packing",
    "packing_strategy": "contrl lays batches out by itself",
    "eval_packing": "contrl lays batches out by itself",
    "pad_to_multiple_of": "contrl lays batches out by itself",
    "use_logits_to_keep": "only labelled positions are projected, always",
    "max_completion_length": "completions are cut by --max_length",
    "log_samples_every": "nothing is sampled while it trains; the answers of each evaluation are in eval/*.parquet",
    "generate_during_eval": "answers are sampled where a task is judged by a reward: --reward_model_path",
    "slurm_partition": "tasks run one after the other in this process",
    "slurm_timeout_min": "tasks run one after the other in this process",
    "slurm_gpus": "tasks run one after the other in this process",
    "slurm_cpus_per_task": "tasks run one after the other in this process",
    "slurm_mem_gb": "tasks run one after the other in this process",
    "slurm_constraint": "tasks run one after the other in this process",
    "shuffle_dataset": "rows are shuffled in every epoch, by the seed",
}
"""Without effect, and why nothing is lost."""

_LAUNCH = "start it with `accelerate launch -m contrl` or `torchrun -m contrl` and their options"
_STOPPED = {
    **{name: OWNED[name] for name in OWNED if name not in _QUIET},
    "resume_from_checkpoint": "repeating the command continues its run by itself; `contrl resume RUN` does, too",
    "data_seed": "--seed also orders the data",
    "bf16_full_eval": "a model is judged in the precision it has: --dtype",
    "fp16_full_eval": "a model is judged in the precision it has: --dtype",
    "label_smoothing_factor": "the loss belongs to the method: dpo and cpo have --label_smoothing",
    "accelerate_config": _LAUNCH,
    "num_processes": _LAUNCH,
    "dataset_streaming": "rows are read whole: a step's batches need all lengths, and a resumed run the same rows",
    "reference_free": "contrl cpo and contrl orpo need no reference",
    "rpo_alpha": "give --loss_type sigmoid sft --loss_weights 1 ALPHA",
    "truncation_mode": "prompts are cut from the start (--max_prompt_length), completions from the end",
    "chat_template_path": "a model's chat template lies in its tokenizer",
    "eos_token": "a model's end token lies in its tokenizer",
    "pad_token": "a model's pad token lies in its tokenizer",
    "activation_offloading": "use --gradient_checkpointing",
    "ref_model_init_kwargs": "the reference is the model itself: --reference base or previous",
    "model_init_kwargs": "every option of a model is a flag: --dtype, --attn_implementation, ...",
    "router_aux_loss_coef": "there is no auxiliary loss of routers",
}
_HARMLESS = {
    "resume_from_checkpoint": ("true", "false"),
    "truncation_mode": ("keep_end", "keep_start"),
    "train_sampling_strategy": ("random",),
    "router_aux_loss_coef": ("0", "0.0"),
}
_ACCEPTED_ELSEWHERE = {
    "output_dir",
    "seed",
    "eval_on_start",
    "overwrite_output_dir",
    "evaluation_strategy",
    "warmup_ratio",
    "no_cuda",
}


def _switch(name: str) -> bool:
    return name in _SWITCHES or "bool" in TRAINING_FIELDS.get(name, ("",))[0].split(" | ")


_SWITCHES = {
    "group_by_length",
    "ignore_bias_buffers",
    "gradient_checkpointing_use_reentrant",
    "precompute_ref_log_probs",
    "padding_free",
    "eval_packing",
    "use_logits_to_keep",
    "generate_during_eval",
    "shuffle_dataset",
    "dataset_streaming",
    "reference_free",
    "activation_offloading",
}

NO_EFFECT = tuple(
    Flag(name, kind="switch" if _switch(name) else "one", note=f"--{name} has no effect: {why}")
    for name, why in _QUIET.items()
)
"""Flags that are accepted and noted."""


def _harmless(name: str) -> tuple[str, ...]:
    default = TRAINING_FIELDS[name][1].strip("'\"").lower() if name in TRAINING_FIELDS else "false"
    return (default, *_HARMLESS.get(name, ()))


REFUSED = tuple(
    Flag(
        name,
        kind="maybe" if name == "resume_from_checkpoint" else "switch" if _switch(name) else "one",
        refusal=why,
        harmless=_harmless(name),
    )
    for name, why in _STOPPED.items()
    if name not in _ACCEPTED_ELSEWHERE
)
"""Flags that would change results and cannot, unless their value is the one that holds anyway."""
