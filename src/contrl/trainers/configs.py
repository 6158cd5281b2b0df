"""TRL's configuration classes: transformers' arguments and the fields of one method, in one dataclass.

Names are TRL's 1.16, and so are the defaults but two: precision and gradient checkpointing are chosen by device as
everywhere in contrl (bfloat16 on GPUs that have it, no checkpointing), where TRL turns both on for every model.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

import torch
from transformers import TrainingArguments

from contrl.errors import UserError
from contrl.trainers.accepted import OWN, Table, check_training, notes_on, problems_of

HF_FIELDS = {f.name: f for f in dataclasses.fields(TrainingArguments) if f.init}


def note(text: str) -> None:
    """Tell the author of a program something about it, in the way Python tells about deprecations."""
    warnings.warn(text, FutureWarning, stacklevel=4)


@dataclass
class TrainerConfig(TrainingArguments):
    """What every configuration has besides transformers' arguments.

    Attributes:
        max_length: prompt and completion together are cut to this many tokens; None never cuts.
        model_init_kwargs: for a model given by name: dtype, attn_implementation, revision, trust_remote_code,
            quantization_config.
        tokens_per_pass: padded tokens of one forward and backward; None takes 2048 on a CPU, else 16384.
        max_bad_rows: rows that may be unusable and left out before training refuses to start.
        max_new_tokens: length limit of answers that are judged between tasks; None takes that of training.
        reference_cache: keep the reference's log-probabilities on disk between runs.
    """

    method: ClassVar[str] = ""
    renamed: ClassVar[dict[str, str]] = {"max_seq_length": "max_length"}
    refused: ClassVar[Table] = {}
    """Of this class alone, as ``accepted.py`` has them for all: what is refused,"""
    quiet: ClassVar[Table] = {}
    """what has no effect,"""
    heeded: ClassVar[frozenset[str]] = frozenset()
    """and what has an effect here and elsewhere none."""

    logging_steps: float = 10
    bf16: bool = cast(bool, None)
    max_length: int | None = 1024
    tokens_per_pass: int | None = None
    max_bad_rows: int = 0
    max_new_tokens: int | None = 256
    model_init_kwargs: dict[str, Any] | str | None = None
    chat_template_path: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    trust_remote_code: bool = False
    dataset_num_proc: int | None = None
    pad_to_multiple_of: int | str | None = "auto"
    activation_offloading: bool = False
    max_seq_length: int | None = None

    def __post_init__(self) -> None:
        for old, new in self.renamed.items():
            if getattr(self, old, None) is not None:
                note(f"{old} is called {new} now")
                setattr(self, new, getattr(self, old))
                setattr(self, old, None)
        if self.gradient_checkpointing is not None and self.activation_checkpointing is None:
            # transformers renamed it and warns about the name that everybody knows.
            self.activation_checkpointing, self.gradient_checkpointing = self.gradient_checkpointing, None
        if self.gradient_checkpointing_kwargs is not None and self.activation_checkpointing_kwargs is None:
            self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
            self.gradient_checkpointing_kwargs = None
        given = {name: getattr(self, name) for name in HF_FIELDS if not _is_default(name, getattr(self, name))}
        chosen: bool | None = self.bf16
        if chosen is None:
            given.pop("bf16", None)
            self.bf16 = bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported() and not self.fp16)
            self.bf16 = self.bf16 and not self.use_cpu
        super().__post_init__()
        self._given = given
        self._settled = {name: getattr(self, name) for name in HF_FIELDS}
        problems = problems_of(self)
        if problems:
            raise UserError(f"{type(self).__name__}: " + "; ".join(problems))
        for text in notes_on(self):
            note(text)

    def as_given(self) -> dict[str, Any]:
        """What another configuration like this one is made of: all that was given, or set since."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in HF_FIELDS}
        return own | self._arguments()

    def _arguments(self) -> dict[str, Any]:
        changed = {name: value for name in HF_FIELDS if (value := getattr(self, name)) != self._settled[name]}
        return self._given | changed

    def training(self, world_size: int = 1) -> dict[str, Any]:
        """Arguments of transformers for a stage: what was given or set since; not what contrl decides itself."""
        values = {**self._arguments(), "num_train_epochs": self.num_train_epochs}
        check_training(values, type(self).__name__)
        return {name: getattr(value, "value", value) for name, value in values.items() if name not in OWN}

    def method_fields(self, method: Any, world_size: int = 1) -> dict[str, Any]:
        """The method's fields that this configuration has; ``world_size`` ranks may share its batch sizes."""
        names = {f.name for f in dataclasses.fields(method)}
        values = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

    def run_fields(self, world_size: int) -> dict[str, Any]:
        """What of the run's configuration follows from this one's own arithmetic."""
        return {}

    def rows_visited(self, num_steps: int, world_size: int) -> int:
        """Rows that so many optimizer steps take."""
        return num_steps * self.per_device_train_batch_size * self.gradient_accumulation_steps * world_size

    @classmethod
    def of(cls, args: Any, output_dir: str) -> TrainerConfig:
        """A configuration of what a trainer was given: one of these, transformers' arguments, or nothing."""
        if args is None:
            return cls(output_dir=output_dir)
        if isinstance(args, cls):
            return args
        if isinstance(args, TrainerConfig):
            raise UserError(f"args is a {type(args).__name__}", fix=f"give a {cls.__name__}")
        if not isinstance(args, TrainingArguments):
            raise UserError(f"args is a {type(args).__name__}, not a {cls.__name__}")
        plain = TrainingArguments(output_dir=args.output_dir)
        values = {n: getattr(args, n) for n in HF_FIELDS if getattr(args, n) != getattr(plain, n)}
        # The old names mirror the new ones there.
        values = {name: value for name, value in values.items() if not name.startswith("gradient_checkpointing")}
        return cls(output_dir=args.output_dir, **values)


def _is_default(name: str, value: Any) -> bool:
    of = HF_FIELDS[name]
    default = of.default if of.default_factory is dataclasses.MISSING else of.default_factory()
    return bool(value == default)


@dataclass
class SFTConfig(TrainerConfig):
    """Configuration of ``SFTTrainer``; what the fields mean stands in docs/methods/sft.md."""

    method: ClassVar[str] = "sft"

    learning_rate: float = 2e-5
    dataset_text_field: str = "text"
    dataset_kwargs: dict[str, Any] | str | None = None
    truncation_mode: str = "keep_start"
    shuffle_dataset: bool = False
    packing: bool = False
    packing_strategy: str = "bfd"
    padding_free: bool = False
    eval_packing: bool | None = None
    completion_only_loss: bool | None = None
    assistant_only_loss: bool = False
    loss_type: str = "nll"
    router_aux_loss_coef: float | None = None

    def __post_init__(self) -> None:
        if self.loss_type == "chunked_nll":
            self.loss_type = "nll"  # the same loss, TRL's name of an implementation
        super().__post_init__()


@dataclass
class RewardConfig(TrainerConfig):
    """Configuration of ``RewardTrainer``; see docs/methods/reward.md."""

    method: ClassVar[str] = "reward"

    learning_rate: float = 1e-4
    disable_dropout: bool = True
    center_rewards_coefficient: float | None = None


@dataclass
class PreferenceConfig(TrainerConfig):
    """What DPO, KTO, CPO and ORPO share."""

    learning_rate: float = 1e-6
    beta: float = 0.1
    disable_dropout: bool = True
    max_prompt_length: int | None = None
    max_completion_length: int | None = None
    max_target_length: int | None = None
    generate_during_eval: bool = False
    is_encoder_decoder: bool | None = None
    padding_value: int | None = None
    label_pad_token_id: int | None = None


@dataclass
class ReferenceConfig(PreferenceConfig):
    """What DPO and KTO share.

    Attributes:
        reference: previous (the weights that a stage starts from, TRL's reference on one data set), base or ema.
    """

    reference: Literal["base", "previous", "ema"] = "previous"
    precompute_ref_log_probs: bool = False
    precompute_ref_batch_size: int | None = None
    sync_ref_model: bool = False
    ref_model_mixup_alpha: float = 0.6
    ref_model_sync_steps: int = 512
    router_aux_loss_coef: float | None = None


@dataclass
class DPOConfig(ReferenceConfig):
    """Configuration of ``DPOTrainer``; see docs/methods/dpo.md."""

    method: ClassVar[str] = "dpo"

    loss_type: list[str] | str = field(default_factory=lambda: ["sigmoid"])
    loss_weights: list[float] | None = None
    label_smoothing: float = 0.0
    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    ld_alpha: float | None = None
    use_weighting: bool = False
    discopop_tau: float = 0.05
    bco_shift: bool = False
    truncation_mode: str = "keep_start"
    padding_free: bool = False
    reference_free: bool = False
    rpo_alpha: float | None = None


@dataclass
class KTOConfig(ReferenceConfig):
    """Configuration of ``KTOTrainer``; see docs/methods/kto.md. Rows are shuffled, so that steps mix both labels."""

    method: ClassVar[str] = "kto"

    loss_type: str = "kto"
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


@dataclass
class CPOConfig(PreferenceConfig):
    """Configuration of ``CPOTrainer``; see docs/methods/cpo.md."""

    method: ClassVar[str] = "cpo"

    loss_type: str = "sigmoid"
    label_smoothing: float = 0.0
    cpo_alpha: float = 1.0
    simpo_gamma: float = 0.5
    alpha: float = 0.0


@dataclass
class ORPOConfig(PreferenceConfig):
    """Configuration of ``ORPOTrainer``; see docs/methods/orpo.md."""

    method: ClassVar[str] = "orpo"
