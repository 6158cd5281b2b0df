"""PPOConfig, of two APIs under one name: the step API of TRL until 0.11, and the trainer that samples by itself.

Which one is meant shows in what is given: ``batch_size``, ``mini_batch_size``, ``ppo_epochs`` ... are the step API's,
an ``output_dir`` and ``num_ppo_epochs``, ``response_length`` ... the other's. What both have means the same.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from contrl.errors import UserError
from contrl.trainers.accepted import Table
from contrl.trainers.batches import Batches, Counts, of_rollouts
from contrl.trainers.online_configs import OnlineConfig

STEP: dict[str, Any] = {
    "batch_size": 128, "mini_batch_size": None, "ppo_epochs": 4, "init_kl_coef": 0.2, "kl_penalty": "kl",
    "early_stopping": False, "target_kl": 1.0, "ratio_threshold": 10.0, "use_score_scaling": False,
    "use_score_norm": False, "score_clip": None, "steps": 20000, "log_with": None, "forward_batch_size": None,
    "model_name": None, "query_dataset": None, "reward_model": None, "task_name": None, "tracker_kwargs": None,
    "accelerator_kwargs": None, "project_kwargs": None, "tracker_project_name": "contrl",
    "push_to_hub_if_best_kwargs": None, "optimize_cuda_cache": None, "optimize_device_cache": False,
    "compare_steps": 1, "is_peft_model": None, "is_encoder_decoder": None,
}  # fmt: skip
"""Fields that only the step API has -> their defaults there; of the other API they are None."""

_LATER = (
    "response_length", "num_mini_batches", "num_ppo_epochs", "total_episodes", "kl_coef", "missing_eos_penalty",
    "stop_token", "stop_token_id", "kl_estimator", "sft_model_path", "reward_model_path", "num_train_epochs",
)  # fmt: skip
"""Fields that the step API does not have."""

_SHARED = (
    "gradient_accumulation_steps", "learning_rate", "adap_kl_ctrl", "target", "horizon", "cliprange", "cliprange_value",
    "vf_coef", "gamma", "lam", "whiten_rewards", "max_grad_norm", "max_kl", "tokens_per_pass", "seed",
)  # fmt: skip
"""Fields of both that the step API reads."""


@dataclass
class PPOConfig(OnlineConfig):
    """Configuration of ``PPOTrainer``; what the fields mean stands in docs/methods/ppo.md.

    Attributes:
        is_step_api: whether it is of the step API.
        backward_batch_size: of the step API: samples of an optimizer step.
        adap_kl_ctrl: whether the KL coefficient follows ``target`` over ``horizon`` samples.
        num_generations: completions of a prompt, of the trainer that samples; batch sizes count completions.
        value: where values come from: a head on the policy, or a model of its own that ``value_model`` names.
        keep_value: of several tasks: whether they share one value function.
    """

    method: ClassVar[str] = "ppo"
    spelled: ClassVar[dict[str, str]] = {
        "samples_per_prompt": "num_generations",
        "max_new_tokens": "response_length",
        "clip": "cliprange",
        "clip_value": "cliprange_value",
        "value_coef": "vf_coef",
        "gae_lambda": "lam",
        "mask_truncated": "mask_truncated_completions",
        "reward_clip": "reward_clip_range",
    }
    refused: ClassVar[Table] = {
        "stop_token": ((None, "eos"), "completions end at the end token, and at the texts in stop"),
        "model_adapter_name": ((None,), "one adapter is trained"),
        "ref_adapter_name": ((None,), "give ref_model"),
    }
    quiet: ClassVar[Table] = {
        **OnlineConfig.quiet,
        "local_rollout_forward_batch_size": ((64,), "passes are counted in tokens: tokens_per_pass"),
        "num_sample_generations": ((10, 0), "log_completions=True prints what was sampled"),
        "ratio_threshold": ((None, STEP["ratio_threshold"]), "ratios are clipped, and max_kl stops a policy that left"),
        "log_with": ((None,), "step returns its numbers, and log_stats writes them to metrics.jsonl"),
    }

    learning_rate: float = cast(float, None)
    max_grad_norm: float = cast(float, None)
    temperature: float = cast(float, None)
    num_generations: int = 1
    num_ppo_epochs: int = 4
    num_mini_batches: int = 1
    response_length: int = 53
    total_episodes: int | None = None
    kl_coef: float = 0.05
    kl_estimator: str = "k1"
    cliprange: float = 0.2
    cliprange_value: float | None = 0.2
    vf_coef: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False
    missing_eos_penalty: float | None = None
    stop_token: str | None = None
    stop_token_id: int | None = None
    adap_kl_ctrl: bool | None = None
    target: float = 6.0
    horizon: float = 10000.0
    mask_truncated_completions: bool = False
    reward_clip_range: tuple[float, float] | None = None
    value: Literal["head", "model"] = "head"
    value_model: str | None = None
    keep_value: bool = True
    whiten_advantages: bool = True
    exp_name: str | None = None
    sft_model_path: str | None = None
    reward_model_path: str | None = None
    model_adapter_name: str | None = None
    ref_adapter_name: str | None = None
    local_rollout_forward_batch_size: int = 64
    num_sample_generations: int = 10
    # --- of the step API ---
    batch_size: int | None = None
    mini_batch_size: int | None = None
    forward_batch_size: int | None = None
    backward_batch_size: int | None = None
    ppo_epochs: int | None = None
    init_kl_coef: float | None = None
    kl_penalty: str | None = None
    early_stopping: bool | None = None
    target_kl: float | None = None
    ratio_threshold: float | None = None
    use_score_scaling: bool | None = None
    use_score_norm: bool | None = None
    score_clip: float | None = None
    steps: int | None = None
    log_with: str | None = None
    model_name: str | None = None
    query_dataset: str | None = None
    reward_model: str | None = None
    task_name: str | None = None
    tracker_kwargs: dict[str, Any] | None = None
    accelerator_kwargs: dict[str, Any] | None = None
    project_kwargs: dict[str, Any] | None = None
    tracker_project_name: str | None = None
    push_to_hub_if_best_kwargs: dict[str, Any] | None = None
    optimize_cuda_cache: bool | None = None
    optimize_device_cache: bool | None = None
    compare_steps: int | None = None
    is_peft_model: bool | None = None
    is_encoder_decoder: bool | None = None

    def __post_init__(self) -> None:
        given = [name for name in STEP if getattr(self, name) is not None]
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        self._folder = self.output_dir
        later = [name for name in _LATER if getattr(self, name) != defaults[name]]
        self.is_step_api = bool(given) or (self.output_dir is None and not later)
        if given and later:
            raise UserError(
                f"PPOConfig has {', '.join(given)} and {', '.join(later)}",
                why="the first are of the step API, the others of the trainer that samples by itself",
                fix="give one kind",
            )
        chosen = {"learning_rate": (3e-6, 1.41e-5), "temperature": (0.7, 1.0), "max_grad_norm": (1.0, None)}
        for name, defaults_of in chosen.items():
            if getattr(self, name) is None:
                setattr(self, name, defaults_of[self.is_step_api])
        if self.is_step_api:
            self._fill_step()
        super().__post_init__()
        if not self.is_step_api:
            self.batches(1)

    def _fill_step(self) -> None:
        for name, default in STEP.items():
            if getattr(self, name) is None:
                setattr(self, name, default)
        if self.adap_kl_ctrl is None:
            self.adap_kl_ctrl = True
        batch, parts = int(self.batch_size or 0), self.gradient_accumulation_steps
        self.mini_batch_size = self.forward_batch_size or self.mini_batch_size or max(1, batch // parts)
        self.backward_batch_size = self.mini_batch_size * parts
        if batch < 1 or batch % self.backward_batch_size:
            below = batch // self.backward_batch_size * self.backward_batch_size
            raise UserError(
                f"batch_size is {batch}",
                why=f"mini_batch_size {self.mini_batch_size} x gradient_accumulation_steps {parts} samples make an "
                "optimizer step",
                fix=f"use batch_size {f'{below} or ' if below else ''}{below + self.backward_batch_size}",
            )

    def step_values(self) -> dict[str, Any]:
        """What the step API reads. Raises UserError for a configuration of the trainer that samples by itself."""
        if not self.is_step_api:
            fix = "give batch_size and mini_batch_size, or the trainer a train_dataset and rewards"
            raise UserError("the PPOConfig is not of the step API", why="it has no batch_size", fix=fix)
        names = {*STEP, *_SHARED} - {"steps"}
        return {name: getattr(self, name) for name in names} | {"output_dir": self._folder}

    def batches(self, world_size: int) -> Batches:
        """The batch sizes in prompts. Raises UserError with the nearest valid numbers."""
        counts = Counts(
            self.per_device_train_batch_size,
            self.gradient_accumulation_steps,
            self.num_generations,
            world_size,
            self.num_ppo_epochs,
        )
        return of_rollouts(counts, self.num_mini_batches)

    def method_fields(self, method: Any, world_size: int = 1) -> dict[str, Any]:
        values = super().method_fields(method, world_size)
        values["target_kl"] = self.target if self.adap_kl_ctrl else None
        return values | {"kl_horizon": self.horizon}

    def training(self, world_size: int = 1) -> dict[str, Any]:
        """``total_episodes`` completions in whole windows, as steps."""
        values = super().training(world_size)
        if self.total_episodes is None:
            return values
        if self.max_steps > 0:
            raise UserError("total_episodes and max_steps are both given", fix="give one of them")
        batches = self.batches(world_size)
        windows = math.ceil(self.total_episodes / (batches.prompts * self.num_generations))
        return {**values, "max_steps": windows * batches.length}
