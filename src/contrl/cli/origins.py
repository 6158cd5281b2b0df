"""Entry points of other projects, by their names: their defaults and spellings, forwarded to contrl's commands.

Each file under recipes/ calls ``main`` with its own name. Defaults hold where neither a file nor the command line
says otherwise; what an origin got wrong (docs/commands.md lists it) is not repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from contrl.cli.evaluate_checkpoints import run as evaluate_checkpoints
from contrl.cli.flags import Flag
from contrl.cli.main import COMMANDS, guarded
from contrl.cli.main import main as contrl
from contrl.cli.training.command import run
from contrl.cli.training.table import flags_of
from contrl.errors import UserError


@dataclass(frozen=True)
class Origin:
    """An entry point.

    Attributes:
        command: the command of contrl that does its work.
        defaults: its defaults, as flags of that command.
        spelled: its own name of a flag -> contrl's.
        flags: flags of its own.
        notes: said at the start; a flag's name in braces stands for its value.
        reward_first: where no reward is named, a reward model is trained before.
        ignored: flags of its commands that have no effect -> why.
    """

    command: str
    defaults: str = ""
    spelled: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[Flag, ...] = ()
    notes: tuple[str, ...] = ()
    reward_first: bool = False
    ignored: Mapping[str, str] = field(default_factory=dict)

    def extra(self) -> dict[str, Flag]:
        """Its spellings, for the reader of flags."""
        known = flags_of(self.command)
        without = {
            name: Flag(f"{name} of the origin", note=f"--{name} has no effect: {why}")
            for name, why in self.ignored.items()
        }
        own = {spelled: known[name] for spelled, name in self.spelled.items()}
        return own | {flag.name: flag for flag in self.flags} | without


_LORA = "--use_peft --lora_r 8 --lora_alpha 32 --lora_dropout 0.05 --lora_target_modules all-linear"
_SMALL = f"{_LORA} --per_device_train_batch_size 4 --num_train_epochs 2 --max_length 1024 --seed 42"
_SPELLED_SMALL = {"optimizer_type": "optim"}

_SPELLED_RL = {
    "model_name": "model_name_or_path",
    "sft_model_path": "model_name_or_path",
    "batch_size": "per_device_train_batch_size",
    "num_epochs": "num_train_epochs",
}
_FLAGS_RL = (
    Flag("use_wandb", kind="switch", implies=("training.report_to", "wandb")),
    Flag("detailed_logging", kind="switch", note="--detailed_logging has no effect: everything is in the run's folder"),
)
_RL = (
    "--model_name_or_path Qwen/Qwen2.5-0.5B --per_device_train_batch_size 8 --learning_rate 1e-5 "
    "--num_train_epochs 3 --max_length 512 --weight_decay 0.01"
)

_AIF_DPO = "--reference base --response_length 53 --temperature 0.7"
_AIF_PPO = "--reference base"
_FLAGS_EWC = (
    Flag("ewc_lambda", "strategies.ewc.coef"),
    Flag("ewc_importance_decay", "strategies.ewc.decay", implies=("strategies.ewc.online", "true")),
    Flag("fisher_estimation_samples", "strategies.ewc.num_samples"),
)
_NOTE_EWC = (
    "ewc_lambda multiplies a Fisher information that is scaled to mean 1, of all earlier tasks (docs/strategies)"
)
_FLAGS_COPR = (
    Flag("log_lambda", "strategies.copr.log_lambda"),
    Flag("lambda_lr", "strategies.copr.lambda_lr"),
    Flag("constraint_threshold", "strategies.copr.constraint_threshold"),
    Flag("coef_dpo", "strategies.copr.fit_coef"),
    Flag("memory_buffer_size", "strategies.copr.buffer_size", only=("use_buffer_ratio", False)),
    Flag("buffer_ratio", "strategies.copr.buffer_size", only=("use_buffer_ratio", True)),
    Flag("use_buffer_ratio", kind="switch", implies=("strategies.copr.buffer_size", "0.1")),
)

ORIGINS = {
    "aif_gen/benchmarks/reward_modeling.py": Origin("reward", "--dataset_index 0"),
    "aif_gen/benchmarks/reward_mas/reward_modeling_mas.py": Origin(
        "reward",
        "--strategies mas(coef=1.0,num_samples=500)",
        flags=(Flag("mas_lambda", "strategies.mas.coef"),),
        ignored={"dataset_index": "one reward model goes through all tasks"},
    ),
    "aif_gen/benchmarks/dpo/dpo_continual.py": Origin("dpo", _AIF_DPO),
    "aif_gen/benchmarks/dpo_ewc/dpo_EWC_continual.py": Origin(
        "dpo", f"{_AIF_DPO} --strategies ewc(coef=100,num_samples=120)", flags=_FLAGS_EWC, notes=(_NOTE_EWC,)
    ),
    "aif_gen/benchmarks/copr/copr.py": Origin(
        "dpo",
        f"{_AIF_DPO} --strategies copr(buffer_size=100)",
        flags=_FLAGS_COPR,
    ),
    "aif_gen/benchmarks/ppo/ppo_continual.py": Origin("ppo", _AIF_PPO),
    "aif_gen/benchmarks/ppo_ewc/ppo_EWC_continual.py": Origin(
        "ppo", f"{_AIF_PPO} --strategies ewc(coef=100,num_samples=128)", flags=_FLAGS_EWC, notes=(_NOTE_EWC,)
    ),
    "aif_gen/benchmarks/cppo/cppo.py": Origin(
        "ppo",
        "--reference previous --strategies cppo(reg_coef=0.1,threshold=0.5,upper=2.0,lower=0.2)",
        flags=(Flag("reg_coef", "strategies.cppo.reg_coef"),),
    ),
    "trl/examples/scripts/dpo.py": Origin("dpo", "--max_prompt_length 512"),
    "trl/dpo_llama2.py": Origin(
        "dpo",
        "--dataset_name se-paired --output_dir results --beta 0.1 --learning_rate 5e-4 "
        "--lr_scheduler_type cosine --warmup_steps 100 --weight_decay 0.05 --optim paged_adamw_32bit "
        "--per_device_train_batch_size 4 --gradient_accumulation_steps 4 --max_steps 1000 --max_length 1024 "
        "--max_prompt_length 512 --logging_steps 10 --save_steps 100 --load_in_4bit --use_peft --lora_r 8 "
        "--lora_alpha 16 --lora_dropout 0.05",
    ),
    "small_rlhf/sft_training.py": Origin(
        "sft",
        f"{_SMALL} --learning_rate 2e-5 --warmup_steps 0.1 --gradient_accumulation_steps 32 --packing "
        "--save_steps 8 --save_total_limit 3",
        _SPELLED_SMALL,
    ),
    "small_rlhf/dpo_training.py": Origin(
        "dpo",
        f"{_SMALL} --learning_rate 5e-7 --beta 0.1 --gradient_accumulation_steps 2 --max_prompt_length 512",
        _SPELLED_SMALL,
    ),
    "small_rlhf/reward_modeling.py": Origin(
        "reward",
        f"{_SMALL} --learning_rate 2e-5 --lr_scheduler_type cosine --gradient_accumulation_steps 32",
        _SPELLED_SMALL,
    ),
    "small_rlhf/ppo_training.py": Origin(
        "ppo",
        f"{_LORA} --num_train_epochs 1 --seed 42 --learning_rate 2e-5 --batch_size 128 --mini_batch_size 4 "
        "--gradient_accumulation_steps 8 --init_kl_coef 0.2 --target_kl 6 --temperature 1 --top_p 1 --max_length 1024 "
        "--max_new_tokens 128",
        _SPELLED_SMALL,
    ),
    "small_rlhf/merge_peft_adapter.py": Origin("merge"),
    "rl_llm/train.py --method sft": Origin(
        "sft", f"{_RL} --dataset_name smoltalk --output_dir outputs/sft", _SPELLED_RL, _FLAGS_RL
    ),
    "rl_llm/train.py --method dpo": Origin(
        "dpo", f"{_RL} --dataset_name ultrafeedback --output_dir outputs/dpo --beta 0.1", _SPELLED_RL, _FLAGS_RL
    ),
    "rl_llm/train.py --method rloo": Origin(
        "rloo",
        f"{_RL.replace('per_device_train_batch_size', 'prompts_per_step')} --dataset_name ultrafeedback "
        "--output_dir outputs/rloo --samples_per_prompt 4 --beta 0 --temperature 0.7 --top_p 0.9 --max_new_tokens 128",
        {**_SPELLED_RL, "batch_size": "prompts_per_step"},
        _FLAGS_RL,
        notes=(
            "--batch_size {prompts_per_step} counts prompts",
            "each prompt gets k = {samples_per_prompt} samples, the baseline of one is the mean of the others",
        ),
        reward_first=True,
    ),
}
"""Path of the entry point under recipes/ (and what selects one of several) -> what it does."""

FORWARDED = {
    "aif_gen/benchmarks/continual_eval_checkpoint.py": "evaluate-checkpoints",
    "countdown/data_gen.py": "data countdown",
    "rl_llm/evaluate.py": "evaluate",
    "rl_llm/train.py --method eval": "evaluate",
}
"""Entry points that are a command under another name -> that command, which may come with a later version."""


FORWARDED_DEFAULTS = {"evaluate-checkpoints": "--response_length 53 --temperature 0.7"}
"""What the origin's command takes where nothing is given."""


def main(name: str, argv: Sequence[str] | None = None) -> int:
    """Run an entry point; returns the exit code.

    Args:
        name: its path under recipes/.
        argv: the words after it; the process's own when None.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _run(name, words), debug="--debug" in words)


def _run(name: str, argv: list[str]) -> int:
    if name == "rl_llm/train.py":
        method, argv = _take(argv, "--method")
        name = f"{name} --method {method}"
        known = [key.rpartition(" ")[2] for key in (*ORIGINS, *FORWARDED) if key.startswith("rl_llm/train.py")]
        if method not in known:
            raise UserError(f"--method {method or 'is missing'}".strip(), fix=f"use one of {', '.join(known)}")
    command = FORWARDED.get(name)
    if command == "evaluate-checkpoints":
        return evaluate_checkpoints(argv, FORWARDED_DEFAULTS[command].split())
    if command is not None:
        words = command.split()
        if words[0] in COMMANDS:
            return contrl([*words, *argv])
        raise UserError(f"{name}: this version of contrl has no `contrl {command}`, which does its work")
    origin = ORIGINS[name]
    if origin.command == "merge":
        return contrl(["merge", *argv])
    return run(
        origin.command,
        argv,
        defaults=origin.defaults.split(),
        extra=origin.extra(),
        notes=origin.notes,
        reward_first=origin.reward_first,
    )


def _take(argv: Sequence[str], flag: str) -> tuple[str, list[str]]:
    """The value of a flag and the words without it."""
    value, rest = "", list(argv)
    for position, word in enumerate(argv):
        if word == flag:
            value, rest = "".join(argv[position + 1 : position + 2]), [*argv[:position], *argv[position + 2 :]]
        elif word.startswith(f"{flag}="):
            value, rest = word.partition("=")[2], [*argv[:position], *argv[position + 1 :]]
    return value, rest
