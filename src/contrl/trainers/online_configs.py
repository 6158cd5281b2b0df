"""RLOOConfig and GRPOConfig: TRL 1.16's fields and defaults by name, and what each means to contrl's methods.

Batch sizes count completions, as there; ``batches.py`` turns them into prompts. PPO's configuration stands in
``ppo_config.py``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from contrl.config import RewardsConfig
from contrl.errors import UserError
from contrl.trainers.accepted import Table
from contrl.trainers.batches import Batches, Counts, of_generations
from contrl.trainers.configs import TrainerConfig

_GENERATION = {
    "max_new_tokens": "max_completion_length",
    "stop_strings": "stop",
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")},
}
"""Of transformers' generation arguments those that the sampler has -> the configuration's field."""

_OWN_LOOP = "contrl samples with its own loop"


@dataclass
class OnlineConfig(TrainerConfig):
    """What RLOO, GRPO and PPO share.

    Attributes:
        reference: previous (the weights that a stage starts from, TRL's reference on one data set), base or ema.
        stop: texts that end a completion.
        max_kl: the run stops when the policy is so many nats per completion from its reference; None never.
        correction_cap: largest importance weight where a ``sampler`` of the caller's samples.
        reward_errors: whether a reward function that fails stops the run ("raise") or leaves its score "missing".
        reward_seconds: how long a reward function may take for a batch.
        max_prompt_length: longer prompts are left out.
        max_new_tokens: length limit of answers that are judged; None takes that of training.
    """

    spelled: ClassVar[dict[str, str]] = {}
    """Fields of the method -> what they are called here, where that differs."""
    heeded: ClassVar[frozenset[str]] = frozenset({"shuffle_dataset", "max_completion_length"})
    quiet: ClassVar[Table] = {
        "log_multimodal": ((True,), "contrl trains on text"),
        "num_generations_eval": ((None,), "held-out prompts are answered once, by the likeliest tokens"),
    }

    learning_rate: float = 1e-6
    max_new_tokens: int | None = None
    max_prompt_length: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: list[str] = field(default_factory=list)
    chat_template_kwargs: dict[str, Any] | str | None = None
    shuffle_dataset: bool | None = True
    reward_weights: list[float] | None = None
    reward_errors: Literal["raise", "missing"] = "raise"
    reward_seconds: float | None = None
    reference: Literal["base", "previous", "ema"] = "previous"
    max_kl: float | None = 500.0
    correction_cap: float = 2.0
    disable_dropout: bool = False
    log_completions: bool = False
    num_completions_to_print: int | None = None
    log_unique_prompts: bool = False
    log_multimodal: bool = True
    ds3_gather_for_generation: bool = True

    def __post_init__(self) -> None:
        for name in ("generation_kwargs", "chat_template_kwargs"):
            if isinstance(value := getattr(self, name, None), str):
                setattr(self, name, json.loads(value))
        super().__post_init__()

    def batches(self, world_size: int) -> Batches:
        """The batch sizes in prompts. Raises UserError with the nearest valid numbers."""
        raise NotImplementedError

    def moves_of_reference(self) -> tuple[int, float] | None:
        """Every so many steps the reference moves by this share towards the policy; None: it stays."""
        return None

    def sampled(self) -> dict[str, Any]:
        """The sampler's fields."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": max(self.top_k or 0, 0),
            "min_p": self.min_p or 0.0,
            "repetition_penalty": self.repetition_penalty,
            "stop": tuple(self.stop),
        }

    def method_fields(self, method: Any, world_size: int = 1) -> dict[str, Any]:
        """The method's fields, from those here."""
        batches = self.batches(world_size)
        values = super().method_fields(method) | {mine: getattr(self, theirs) for mine, theirs in self.spelled.items()}
        values |= {"num_epochs": batches.num_epochs, "num_minibatches": batches.num_minibatches}
        values.pop("reward_weights", None)
        known = {f.name for f in fields(method)}
        return {name: value for name, value in (values | self.sampled()).items() if name in known}

    def training(self, world_size: int = 1) -> dict[str, Any]:
        """As everywhere, without what counts completions and what evaluates, which the trainer sees to."""
        dropped = ("per_device_train_batch_size", "gradient_accumulation_steps")
        values = {
            name: value
            for name, value in super().training(world_size).items()
            if name not in dropped and not name.startswith("eval_")
        }
        return values if self.shuffle_dataset else {**values, "train_sampling_strategy": "sequential"}

    def run_fields(self, world_size: int) -> dict[str, Any]:
        return {
            "prompts_per_step": self.batches(world_size).prompts_per_step,
            "max_prompt_tokens": self.max_prompt_length,
            "rewards": RewardsConfig(errors=self.reward_errors, seconds=self.reward_seconds),
        }

    def rows_visited(self, num_steps: int, world_size: int) -> int:
        return self.batches(world_size).rows(num_steps)


@dataclass
class GenerationConfig(OnlineConfig):
    """What TRL's RLOO and GRPO share."""

    spelled: ClassVar[dict[str, str]] = {
        "samples_per_prompt": "num_generations",
        "max_new_tokens": "max_completion_length",
        "clip": "epsilon",
        "clip_high": "epsilon_high",
        "mask_truncated": "mask_truncated_completions",
    }
    refused: ClassVar[Table] = {
        "use_vllm": ((False,), "contrl samples with its own loop; give the trainer a sampler= that asks vLLM"),
    }
    quiet: ClassVar[Table] = {
        **OnlineConfig.quiet,
        "cache_implementation": ((None,), _OWN_LOOP),
        "use_transformers_continuous_batching": ((False,), _OWN_LOOP),
        "transformers_continuous_batching_config": ((None,), _OWN_LOOP),
        "use_transformers_paged": ((False,), _OWN_LOOP),
    }

    num_generations: int = 8
    num_generations_eval: int | None = None
    max_completion_length: int | None = 512
    generation_batch_size: int | None = None
    steps_per_generation: int | None = None
    generation_kwargs: dict[str, Any] | str | None = None
    cache_implementation: str | None = None
    beta: float = 0.0
    num_iterations: int = 1
    epsilon: float = 0.2
    epsilon_high: float | None = None
    mask_truncated_completions: bool = False
    sync_ref_model: bool = False
    ref_model_mixup_alpha: float = 0.6
    ref_model_sync_steps: int = 512
    router_aux_loss_coef: float | None = None
    use_transformers_continuous_batching: bool = False
    transformers_continuous_batching_config: dict[str, Any] | str | None = None
    use_transformers_paged: bool = False
    # Without use_vllm, which is refused, these have no effect in TRL either.
    use_vllm: bool = False
    vllm_mode: str = "colocate"
    vllm_model_impl: str = "vllm"
    vllm_enable_sleep_mode: bool = False
    vllm_structured_outputs_regex: str | None = None
    vllm_server_base_url: str | None = None
    vllm_server_host: str = "0.0.0.0"
    vllm_server_port: int = 8000
    vllm_server_timeout: float = 240.0
    vllm_group_port: int = 51216
    vllm_gpu_memory_utilization: float = 0.3
    vllm_max_model_length: int | None = None
    vllm_tensor_parallel_size: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._take_generation_kwargs()
        if self.max_completion_length is None:
            raise UserError("max_completion_length is None", fix="give a number: a completion must end")
        if self.num_generations < 2:
            raise UserError(
                f"num_generations is {self.num_generations}",
                why="an advantage compares a completion with the others of its prompt",
                fix="use 2 or more",
            )
        if self.sync_ref_model and self.reference != "previous":
            raise UserError(f"sync_ref_model moves the reference, and it is {self.reference!r}", fix="give one of them")
        if self.generation_batch_size is None or self.steps_per_generation is not None:
            # What the number of ranks decides is checked by the trainer, which knows it.
            self.batches(1)

    def _take_generation_kwargs(self) -> None:
        """Their values win over the fields', as in TRL."""
        given = dict(self.generation_kwargs) if isinstance(self.generation_kwargs, dict) else {}
        if not given.pop("do_sample", True):
            raise UserError("generation_kwargs has do_sample=False", why="completions of a prompt would all be equal")
        unknown = sorted(set(given) - set(_GENERATION))
        if unknown:
            known = ", ".join(sorted(_GENERATION))
            raise UserError(f"generation_kwargs has {', '.join(unknown)}", why=f"contrl's sampler knows {known}")
        for name, value in given.items():
            setattr(self, _GENERATION[name], [value] if name == "stop_strings" and isinstance(value, str) else value)

    def moves_of_reference(self) -> tuple[int, float] | None:
        return (self.ref_model_sync_steps, self.ref_model_mixup_alpha) if self.sync_ref_model else None

    def batches(self, world_size: int) -> Batches:
        """The batch sizes in prompts. Raises UserError with the nearest valid numbers."""
        counts = Counts(
            self.per_device_train_batch_size,
            self.gradient_accumulation_steps,
            self.num_generations,
            world_size,
            self.num_iterations,
        )
        return of_generations(counts, self.steps_per_generation, self.generation_batch_size)


@dataclass
class RLOOConfig(GenerationConfig):
    """Configuration of ``RLOOTrainer``; what the fields mean stands in docs/methods/rloo.md."""

    method: ClassVar[str] = "rloo"
    spelled: ClassVar[dict[str, str]] = {**GenerationConfig.spelled, "reward_clip": "reward_clip_range"}

    num_generations: int = 2
    beta: float = 0.05
    normalize_advantages: bool = False
    reward_clip_range: tuple[float, float] | None = None


@dataclass
class GRPOConfig(GenerationConfig):
    """Configuration of ``GRPOTrainer``; see docs/methods/grpo.md."""

    method: ClassVar[str] = "grpo"
    spelled: ClassVar[dict[str, str]] = {
        **GenerationConfig.spelled,
        "level": "importance_sampling_level",
        "aggregate": "multi_objective_aggregation",
        "unbiased_kl": "use_bias_correction_kl",
    }
    refused: ClassVar[Table] = {
        **GenerationConfig.refused,
        "loss_type": (("grpo", "bnpo", "dapo", "dr_grpo"), "use grpo, bnpo, dapo or dr_grpo"),
        "top_entropy_quantile": ((1.0,), "every token is trained on"),
        "entropy_coef": ((0.0,), "there is no entropy bonus"),
        "use_adaptive_entropy": ((False,), "there is no entropy bonus"),
        "off_policy_mask_threshold": ((None,), "use delta, or correction_cap with a sampler of your own"),
        "log_completions_hub_repo": ((None,), "nothing is uploaded; they lie in output_dir/completions"),
    }
    quiet: ClassVar[Table] = {
        **GenerationConfig.quiet,
        "cast_lm_head_to_fp32": ((False,), "log-probabilities are computed in float32 anyway"),
        "max_tool_calling_iterations": ((None,), "there are no tools"),
    }

    loss_type: str = "dapo"
    importance_sampling_level: str = "token"
    scale_rewards: str | bool = "group"
    multi_objective_aggregation: str = "sum_then_normalize"
    delta: float | None = None
    use_bias_correction_kl: bool = True
    cast_lm_head_to_fp32: bool = False
    top_entropy_quantile: float = 1.0
    entropy_coef: float = 0.0
    use_adaptive_entropy: bool = False
    off_policy_mask_threshold: float | None = None
    max_tool_calling_iterations: int | None = None
    log_completions_hub_repo: str | None = None
    # Of losses and options that are refused, and of vLLM: without effect.
    entropy_coef_min: float = 0.0
    entropy_coef_max: float = 1.0
    entropy_coef_delta: float = 0.005
    entropy_target: float = 0.2
    sapo_temperature_neg: float = 1.05
    sapo_temperature_pos: float = 1.0
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0
    vllm_importance_sampling_correction: bool = True
    vllm_importance_sampling_mode: str = "sequence_mask"
    vllm_importance_sampling_clip_max: float | None = 3.0
    vllm_importance_sampling_clip_min: float | None = None
    vllm_importance_sampling_cap: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scale_rewards, bool):
            self.scale_rewards = "group" if self.scale_rewards else "none"
        super().__post_init__()

    def method_fields(self, method: Any, world_size: int = 1) -> dict[str, Any]:
        values = super().method_fields(method, world_size)
        if self.reward_weights is not None and self.multi_objective_aggregation != "sum_then_normalize":
            # A sum of rewards is weighted where it is made; scores that are normalised first are weighted after.
            values["reward_weights"] = tuple(self.reward_weights)
        return values
