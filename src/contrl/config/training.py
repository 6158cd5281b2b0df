"""Which arguments of transformers.TrainingArguments a configuration may set, and their types.

Most pass through under their own names. Those that contrl decides itself (it owns the loop over tasks, the
evaluation, the checkpoints and the seeds) are refused with the name of the right place, never ignored.
"""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Mapping
from typing import Any, Literal

from contrl.config.walk import Parameter
from contrl.training_fields import TRAINING_FIELDS

_EVALUATION = "every task is evaluated after every stage; see the section evaluation"
_CHECKPOINTS = "contrl writes its own complete checkpoints, from which a killed run continues bit for bit"
_RESUME = "run `contrl resume RUN`, or repeat the command that started the run"
_LOOP = "contrl's engine decides this: it builds the batches of every step itself"
_RENAMED = "transformers 5 has no such argument"

OWNED: dict[str, str] = {
    "output_dir": "write output_dir at the top level",
    "seed": "write seed at the top level (or in base, for the base stage)",
    "data_seed": "the top-level seed also orders the data",
    "resume_from_checkpoint": _RESUME,
    "ignore_data_skip": _RESUME,
    "restore_callback_states_from_checkpoint": _RESUME,
    "do_train": "a run always trains",
    "do_eval": _EVALUATION,
    "do_predict": _EVALUATION,
    "eval_on_start": "write evaluation.at_start",
    "per_device_eval_batch_size": "write evaluation.batch_tokens: batches of evaluation are counted in tokens",
    "eval_accumulation_steps": _EVALUATION,
    "eval_do_concat_batches": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "batch_eval_metrics": _EVALUATION,
    "prediction_loss_only": _EVALUATION,
    "include_for_metrics": "give the task a metric",
    "bf16_full_eval": "write model.dtype: a model is evaluated in the precision it has",
    "fp16_full_eval": "write model.dtype: a model is evaluated in the precision it has",
    "load_best_model_at_end": "the next stage starts from the end of this one; every stage's weights are kept",
    "metric_for_best_model": "give the task a metric",
    "greater_is_better": "give the task a metric; higher is better",
    "save_only_model": _CHECKPOINTS,
    "enable_jit_checkpoint": "contrl saves on the first SIGTERM by itself",
    "remove_unused_columns": _LOOP,
    "label_names": _LOOP,
    "train_sampling_strategy": _LOOP,
    "length_column_name": _LOOP,
    "dataloader_drop_last": _LOOP,
    "auto_find_batch_size": _LOOP,
    "average_tokens_across_devices": "losses are divided by counts over the whole step and all devices, always",
    "label_smoothing_factor": "the loss belongs to the method; see the fields of method",
    "logging_nan_inf_filter": "NaN is never hidden: it stops the run with the last good checkpoint",
    "local_rank": "torchrun and accelerate set it in the environment",
    "hub_token": "secrets do not belong in files: set HF_TOKEN in the environment",
    "parallelism_config": "it cannot be written in a file: use `accelerate launch` and its options",
    # Names of older versions that many files still carry.
    "warmup_ratio": f"{_RENAMED}; write warmup_steps, which below 1 is a share of all steps",
    "evaluation_strategy": f"{_RENAMED}; write eval_strategy",
    "group_by_length": _LOOP,
    "no_cuda": f"{_RENAMED}; write use_cpu",
    "logging_dir": f"{_RENAMED}; logs lie in output_dir",
    "overwrite_output_dir": "give --overwrite_output_dir on the command line",
}
"""Arguments that a configuration may not set -> where the matter is decided instead."""


@functools.cache
def training_arguments() -> Mapping[str, Parameter]:
    """The arguments that ``training:`` may hold, with types, defaults and help."""
    return {
        name: Parameter(name, _annotation(kind), ast.literal_eval(default), text)
        for name, (kind, default, text) in TRAINING_FIELDS.items()
        if name not in OWNED
    }


def _annotation(text: str) -> Any:
    """The type that the table's text means: alternatives joined by " | "."""
    return functools.reduce(operator.or_, (_atom(option) for option in text.split(" | ")))


def _atom(text: str) -> Any:
    if text.startswith("Literal"):
        return Literal[tuple(ast.literal_eval(text.removeprefix("Literal")))]
    return _ATOMS[text]


_ATOMS: dict[str, Any] = {
    "None": None,
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "list[str]": list[str],
    "dict": dict,
    "dict[str, Any]": dict[str, Any],
    "dict[str, bool]": dict[str, bool],
}
