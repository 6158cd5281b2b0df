"""Every flag of a training command: its name, where its value goes, and what it says to a reader.

Most come from tables that exist already: the method's fields, ModelConfig, TrainingArguments. Written by hand here
are those whose name on the command line is not their name in a configuration, and those that can have no effect.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from contrl.cli.flags import Flag, kind_of, readable
from contrl.cli.training import online
from contrl.cli.training.declared import fields_of, known
from contrl.cli.training.refused import NO_EFFECT, REFUSED
from contrl.config import ModelConfig, tree
from contrl.config.training import training_arguments
from contrl.config.walk import Parameter, describe, parameters


class Command(NamedTuple):
    """A training command.

    Attributes:
        title: what it does.
        learning_rate: when none is given; TRL's.
        dataset: a name for the examples.
    """

    title: str
    learning_rate: str
    dataset: str


COMMANDS = {
    "sft": Command("supervised fine-tuning: prompts with completions, chats or plain text", "2e-5", "smoltalk"),
    "reward": Command("a reward model from pairs of a chosen and a rejected answer", "1e-4", "ultrafeedback"),
    "dpo": Command("direct preference optimisation, from pairs", "1e-6", "ultrafeedback"),
    "kto": Command("Kahneman-Tversky optimisation, from single answers marked good or bad", "1e-6", "labelled.jsonl"),
    "cpo": Command("contrastive preference optimisation, from pairs, without a reference", "1e-6", "ultrafeedback"),
    "orpo": Command("odds-ratio preference optimisation, from pairs, without a reference", "1e-6", "ultrafeedback"),
    "ppo": Command(
        "proximal policy optimisation: any reward, with a value estimate per token", "3e-6", "prompts.jsonl"
    ),
    "rloo": Command("REINFORCE leave-one-out: any reward, each sample against its siblings", "1e-6", "prompts.jsonl"),
    "grpo": Command("group-relative policy optimisation (GRPO, DAPO, Dr. GRPO, GSPO)", "1e-6", "prompts.jsonl"),
}
NUM_EPOCHS = "3"

MODEL, DATA, METHOD, TRAINING, SEQUENCE, OUTPUT = "model", "data", "method", "training", "strategies", "output"
GROUPS = {
    MODEL: "model",
    DATA: "data",
    online.REWARD: "reward",
    METHOD: "{command}",
    TRAINING: "training (transformers.TrainingArguments)",
    SEQUENCE: "tasks in order, and evaluation",
    OUTPUT: "output",
}

_COMMON_MODEL = ["name_or_path", "dtype", "use_peft", "lora_r", "lora_alpha", "lora_target_modules", "load_in_4bit"]
_COMMON_TRAINING = [
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "warmup_steps",
    "bf16",
    "gradient_checkpointing",
    "logging_steps",
]
_COMMON_OUTPUT = ("save_steps", "report_to")

_DEFAULTS = {
    "num_train_epochs": NUM_EPOCHS,
    "logging_steps": "10",
    "report_to": "none",
    "bf16": "what the device has",
    "gradient_checkpointing": "no",
}
_MEANING = {
    "gradient_checkpointing": "Compute activations again in the backward: less memory, more time.",
    "max_steps": "Optimizer steps of each task; instead of epochs.",
    "warmup_steps": "Steps of a linear warmup; below 1, a share of all steps.",
    "report_to": "Trackers: wandb, tensorboard, trackio, or none.",
    "lr_scheduler_type": "The learning rate's schedule: linear, cosine, constant ...",
    "num_train_epochs": "Epochs over the rows of each task.",
    "per_device_train_batch_size": "Rows of a step on each device, times --gradient_accumulation_steps.",
}
_COMPLETIONS = "Completions of a step on each device, times --gradient_accumulation_steps."
"""Where contrl's default, or the matter itself, is another than the text of transformers says."""

_WRITTEN = (
    Flag(
        "dataset_name",
        "tasks.path",
        "list",
        "a file, folder, name of `contrl datasets`, hub id, several with commas; a file of tasks, a sequence's name",
        "required",
        "DATA",
        DATA,
        common=True,
    ),
    Flag(
        "mock",
        "",
        "switch",
        "the name is one of AIF-Gen's own sequences (debug, cppo-rl ...), whatever lies here under it",
        "no",
        "",
        DATA,
    ),
    Flag("dataset_config", "tasks.config_name", help="configuration of a dataset that has several", group=DATA),
    Flag(
        "dataset_train_split", "tasks.train_split", help="split to train on", default="train", group=DATA, common=True
    ),
    Flag("dataset_test_split", "tasks.test_split", help="split to judge by", default="test", group=DATA, common=True),
    Flag(
        "dataset_index",
        "tasks.dataset_index",
        help="of a file of tasks only this one, from 0",
        metavar="I",
        group=DATA,
        common=True,
    ),
    Flag(
        "eval_size",
        "tasks.eval_size",
        help="rows (below 1: share of rows) held out to judge by",
        metavar="N",
        group=DATA,
        common=True,
    ),
    Flag(
        "subset_size",
        "tasks.subset_size",
        help="only the first so many rows of each split and source",
        metavar="N",
        group=DATA,
    ),
    Flag("single_turn", "tasks.single_turn", "switch", "leave out chats of more than one question", "no", "", DATA),
    Flag(
        "max_bad_rows",
        "max_bad_rows",
        help="unusable rows that may be left out before the run refuses to start",
        default="0",
        metavar="N",
        group=DATA,
        common=True,
    ),
    Flag(
        "sanity_check",
        kind="switch",
        help="only the first 50 rows of each split",
        default="no",
        group=DATA,
        implies=("tasks.subset_size", "50"),
    ),
    Flag(
        "dataset_text_field",
        help='of plain text the column is "text"',
        refusal='plain text is read from the column "text"; rename the column in the file',
        harmless=("text",),
        group=DATA,
    ),
    Flag(
        "strategies",
        "strategies",
        "calls",
        'how not to forget: naive, replay ... each a NAME or "NAME(field=value)"',
        "naive",
        "NAME",
        SEQUENCE,
        common=True,
    ),
    Flag("rounds", "rounds", help="how often the tasks are gone through", default="1", metavar="N", group=SEQUENCE),
    Flag(
        "order",
        "order",
        "list",
        "of the tasks: given, reversed, random, or all their names",
        "given",
        "ORDER",
        SEQUENCE,
    ),
    Flag("order_seed", "order_seed", help="of --order random, apart from --seed", default="0", group=SEQUENCE),
    Flag(
        "stages",
        "stages",
        help="tasks that are learnt together: '[[a, b], [c]]'; those left out are only judged",
        metavar="LISTS",
        group=SEQUENCE,
    ),
    Flag(
        "eval_tasks",
        "evaluation.tasks",
        help="judged after a stage: all, seen (trained so far), seen+next, or none",
        default="all",
        group=SEQUENCE,
    ),
    Flag("eval_num_items", "evaluation.num_items", help="rows judged per task", metavar="N", group=SEQUENCE),
    Flag(
        "reward_model_path",
        "evaluation.reward_model",
        help="also judge sampled answers by this reward model: PATH/<i>, PATH_<i> of task i, or PATH",
        metavar="PATH",
        group=SEQUENCE,
    ),
    Flag(
        "response_length",
        "evaluation.max_new_tokens",
        help="length limit of answers that are judged",
        metavar="N",
        group=SEQUENCE,
    ),
    Flag(
        "temperature",
        "evaluation.temperature",
        help="of answers that are judged; 0 takes the likeliest token",
        default="0",
        group=SEQUENCE,
    ),
    Flag(
        "eval_greedy_policy",
        kind="switch",
        help="judge the likeliest answers: --temperature 0",
        group=SEQUENCE,
        implies=("evaluation.temperature", "0"),
    ),
    Flag(
        "eval_on_start",
        "evaluation.at_start",
        "switch",
        "judge the untrained model too: row 0 of the results",
        "yes",
        "",
        SEQUENCE,
    ),
    Flag(
        "prompts_per_step",
        "prompts_per_step",
        help="rows per optimizer step over all devices, instead of batch size x accumulation",
        metavar="N",
        group=TRAINING,
    ),
    Flag(
        "tokens_per_pass",
        "tokens_per_pass",
        help="padded tokens of one forward and backward; only speed and memory",
        default="2048 on a CPU, else 16384",
        metavar="N",
        group=TRAINING,
    ),
    Flag("seed", "seed", help="everything random follows from it", default="0", metavar="N", group=OUTPUT, common=True),
    Flag(
        "output_dir",
        "output_dir",
        help="the run's folder",
        default="runs/COMMAND-MODEL-DATA",
        metavar="FOLDER",
        group=OUTPUT,
        common=True,
    ),
    Flag(
        "config",
        help="a YAML file of flags, without dashes; flags on the command line win",
        metavar="FILE.yaml",
        group=OUTPUT,
        common=True,
    ),
    Flag("dry_run", "", "switch", "tell configuration, steps, time and disk; then stop", "no", "", OUTPUT, common=True),
    Flag(
        "overwrite_output_dir",
        "",
        "switch",
        "delete a different run in output_dir first",
        "no",
        "",
        OUTPUT,
        common=True,
    ),
    Flag("debug", "", "switch", "show the traceback of an error", "no", "", OUTPUT),
    Flag("wandb_project", help="the same as the variable WANDB_PROJECT", variable="WANDB_PROJECT", group=OUTPUT),
    Flag("wandb_entity", help="the same as the variable WANDB_ENTITY", variable="WANDB_ENTITY", group=OUTPUT),
    Flag(
        "log_model",
        help="W&B artifacts: end (the final model) or checkpoint (each one, too)",
        metavar="WHEN",
        variable="WANDB_LOG_MODEL",
        group=OUTPUT,
    ),
)
_REWARD_ONLY = Flag(
    "all_datasets",
    "",
    "switch",
    "a model for each task of the file, at output_dir/0, output_dir/1 ...",
    "no",
    "",
    DATA,
    common=True,
)

ALIASES = {
    "dataset_names": "dataset_name",
    "torch_dtype": "dtype",
    "model_name": "model_name_or_path",
    "max_new_tokens": "response_length",
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "wandb_run_name": "run_name",
    "no_cuda": "use_cpu",
    "reward_model_name_or_path": "reward_model_path",
}
"""Other spellings that mean the same."""

_JUDGED = ("evaluation.reward_model", "evaluation.max_new_tokens", "evaluation.temperature")
"""Of methods that sample, these flags are about training; answers to judge have flags of their own."""
_OLD_LENGTH = "max_seq_length is the old name of max_length"


@functools.cache
def flags_of(command: str) -> dict[str, Flag]:
    """Every accepted spelling -> its flag, in the order of the help; aliases come last."""
    flags: dict[str, Flag] = {}
    sampled = online.is_online(command)
    own = (*online.flags(command), *online.WITHOUT_EFFECT) if sampled else ()
    written = [flag for flag in _WRITTEN if not (sampled and flag.path in _JUDGED)]
    for flag in (*_model(), *own, *_method(command), *written, *_training(command), *NO_EFFECT, *REFUSED):
        flags.setdefault(flag.name, flag)
    if command == "reward":
        flags["all_datasets"] = _REWARD_ONLY
    if sampled:
        flags |= {alias: flags[name] for alias, name in online.spellings(command).items()}
    flags |= {alias: flags[name] for alias, name in ALIASES.items() if name in flags and alias not in flags}
    if "max_length" in flags and not sampled:
        flags["max_seq_length"] = replace(flags["max_length"], note=_OLD_LENGTH)
    return flags


def home_of(name: str) -> str:
    """The commands whose flag ``name`` is, in words; "" when it is nobody's."""
    owners = [f"contrl {command}" for command in COMMANDS if name in fields_of(known("METHODS")[command])]
    owners += ["contrl reward"] if name == _REWARD_ONLY.name else []
    if not owners:
        owners = [f"contrl {c}" for c in COMMANDS if online.is_online(c) and name in flags_of(c)]
    return readable(owners) if owners else ""


def _model() -> Iterator[Flag]:
    for name, parameter in parameters(ModelConfig)[0].items():
        spelled = {"name_or_path": "model_name_or_path", "revision": "model_revision"}.get(name, name)
        flag = _flag(spelled, f"model.{name}", MODEL, parameter, common=name in _COMMON_MODEL)
        yield replace(flag, metavar="MODEL", default="required") if name == "name_or_path" else flag


def _method(command: str) -> Iterator[Flag]:
    defaults = online.METHOD_DEFAULTS.get(command, {})
    for name, parameter in fields_of(known("METHODS")[command]).items():
        common = name in online.COMMON or not online.is_online(command)
        flag = _flag(name, f"method.{name}", METHOD, parameter, common=common)
        flag = replace(flag, default=defaults.get(name, flag.default))
        yield replace(flag, implies=("method.value", "model")) if name == "value_model" else flag


def _training(command: str) -> Iterator[Flag]:
    arguments, defaults = training_arguments(), _DEFAULTS | {"learning_rate": COMMANDS[command].learning_rate}
    counts = {"per_device_train_batch_size": _COMPLETIONS} if online.is_online(command) else {}
    for name in dict.fromkeys([*_COMMON_TRAINING, *arguments]):
        is_common = name in _COMMON_TRAINING or name in _COMMON_OUTPUT
        group = OUTPUT if name in _COMMON_OUTPUT else TRAINING
        flag = _flag(name, f"training.{name}", group, arguments[name], common=is_common)
        yield replace(flag, default=defaults.get(name, flag.default), help=(_MEANING | counts).get(name, flag.help))


def _flag(name: str, path: str, group: str, parameter: Parameter, *, common: bool) -> Flag:
    kind = kind_of(parameter.annotation)
    plain = "" if parameter.required or parameter.default is None else tree.inline(parameter.default)
    default = {"true": "yes", "false": "no"}.get(plain, plain) if kind == "switch" else plain
    words = describe(parameter.annotation, 6)
    text = parameter.help.rstrip(".") or words
    if words.startswith("one of") and words not in text and "words" not in words and len(words) < 90:
        text = f"{text} ({words})" if parameter.help else words
    metavar = {"switch": "", "list": "A B ..."}.get(kind, _METAVARS.get(words.partition(" or ")[0], "VALUE"))
    return Flag(name, path, kind, text, default, metavar, group, common)


_METAVARS = {"a whole number": "N", "a number": "X", "text": "TEXT", "a section": "JSON"}
