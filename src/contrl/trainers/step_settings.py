"""What the step API reads of a configuration, under the names and with the defaults of TRL 0.11, as contrl's PPO.

The names are the old ones, so that a configuration of 2024 means what it meant; nothing here knows a trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from contrl.errors import UserError
from contrl.losses.kl import KLEstimator
from contrl.methods.ppo import PPO

ARGUMENTS = (
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "fp16",
    "use_cpu",
)
"""transformers' arguments that mean something here, where the configuration was given them."""
KL_PENALTIES: dict[str, KLEstimator] = {"kl": "k1", "mse": "k2", "k1": "k1", "k2": "k2", "k3": "k3"}

_MAY_BE_NONE = ("cliprange_value", "max_kl")


@dataclass(frozen=True)
class StepSettings:
    """What the step API reads of a configuration, under the names and with the defaults of TRL 0.11.

    A configuration is any object with some of these as attributes; None means the default, but of ``cliprange_value``
    and ``max_kl`` that there is no limit.

    Attributes:
        batch_size: queries of one call of ``step``, per process.
        mini_batch_size, gradient_accumulation_steps: their product is the queries of one optimizer step.
        ppo_epochs: times that each query is trained on.
        init_kl_coef, adap_kl_ctrl, target, horizon: the KL coefficient, and how it adapts.
        kl_penalty: its estimator, "kl" (k1), "mse" (k2), or k1, k2, k3.
        cliprange, cliprange_value, vf_coef, gamma, lam: as in every PPO.
        score_clip: rewards are clipped to plus and minus this.
        max_grad_norm: None never clips.
        max_kl: nats per answer between policy and reference at which training stops.
        value: "head": values come from the model's own head.
        output_dir: where ``log_stats`` writes; None writes nothing.
    """

    batch_size: int = 128
    mini_batch_size: int = 128
    gradient_accumulation_steps: int = 1
    ppo_epochs: int = 4
    learning_rate: float = 1.41e-5
    init_kl_coef: float = 0.2
    adap_kl_ctrl: bool = True
    target: float = 6.0
    horizon: float = 10000.0
    kl_penalty: str = "kl"
    cliprange: float = 0.2
    cliprange_value: float | None = 0.2
    vf_coef: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    score_clip: float | None = None
    max_grad_norm: float | None = None
    max_kl: float | None = 500.0
    tokens_per_pass: int = 0
    seed: int = 0
    early_stopping: bool = False
    use_score_scaling: bool = False
    use_score_norm: bool = False
    value: str = "head"
    output_dir: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Any) -> StepSettings:
        """The settings of a configuration; None stands for every default.

        Raises:
            UserError: for numbers that do not go together, and for what this API does not have.
        """
        names = [f.name for f in fields(cls) if f.name != "training"]
        given = {name: getattr(config, name, None) for name in names}
        values: dict[str, Any] = {name: given[name] for name in names if given.get(name) is not None}
        values |= {name: None for name in _MAY_BE_NONE if getattr(config, name, 0) is None}
        training, as_given = getattr(config, "training", None), getattr(config, "as_given", None)
        if callable(as_given) and "output_dir" not in as_given():
            # transformers makes up a name.
            values.pop("output_dir", None)
        arguments = training() if callable(training) else {}
        settings = cls(**values, training={name: arguments[name] for name in ARGUMENTS if name in arguments})
        for name in ("early_stopping", "use_score_scaling", "use_score_norm"):
            if getattr(settings, name):
                raise UserError(f"{name} is not there", fix="scale the scores before you give them, or leave it out")
        if settings.value != "head":
            raise UserError(
                f"value is {settings.value!r}", fix="leave it out: the model given to the trainer has a head"
            )
        if settings.kl_penalty not in KL_PENALTIES:
            raise UserError(f"kl_penalty is {settings.kl_penalty!r}", fix=f"use one of {', '.join(KL_PENALTIES)}")
        settings.num_minibatches()
        return settings

    def num_minibatches(self) -> int:
        """Optimizer steps of one epoch over a batch. Raises UserError with the nearest numbers that divide."""
        part = self.mini_batch_size * self.gradient_accumulation_steps
        if part < 1 or self.batch_size < 1:
            raise UserError(f"batch_size {self.batch_size} and mini_batch_size {part}", fix="use 1 or more")
        if self.batch_size % part:
            above = -(-self.batch_size // part) * part
            below = f" or {self.batch_size // part * part}" if self.batch_size > part else ""
            raise UserError(
                f"batch_size {self.batch_size} cannot be cut into optimizer steps of {part} queries",
                why="a step takes mini_batch_size x gradient_accumulation_steps",
                fix=f"use batch_size {above}{below}",
            )
        return self.batch_size // part

    def method(self) -> PPO:
        """contrl's PPO with these numbers. Raises UserError for those that have no meaning."""
        return PPO(
            num_epochs=self.ppo_epochs,
            num_minibatches=self.num_minibatches(),
            clip=self.cliprange,
            clip_value=self.cliprange_value,
            value_coef=self.vf_coef,
            kl_coef=self.init_kl_coef,
            kl_estimator=KL_PENALTIES[self.kl_penalty],
            target_kl=self.target if self.adap_kl_ctrl and self.init_kl_coef else None,
            kl_horizon=self.horizon,
            gamma=self.gamma,
            gae_lambda=self.lam,
            whiten_rewards=self.whiten_rewards,
            whiten_advantages=self.whiten_advantages,
            reward_clip=None if self.score_clip is None else (-self.score_clip, self.score_clip),
            max_kl=self.max_kl,
        )
