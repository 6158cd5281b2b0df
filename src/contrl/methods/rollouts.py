"""What RLOO, GRPO and PPO share: how they sample, how long rollouts serve, and what is reported about rewards.

A method is one of these and its own ``credit`` and ``loss``; nothing here knows which. What needs the whole window of
all ranks (a standard deviation) goes through ``Pool.gather``, equally often on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from transformers import PreTrainedTokenizerBase

from contrl.data.chat import encode_prompt, template_options
from contrl.errors import UserError
from contrl.interfaces import Batch, Completion, Group, OnlineMethod, Outputs, Pool, Rollouts, Row
from contrl.losses.advantages import has_contrast, spread
from contrl.losses.kl import KLEstimator, kl_estimate
from contrl.losses.policy import Surrogate, sequence_correction
from contrl.methods.pairs import refuse

Metrics = dict[str, tuple[torch.Tensor | float, torch.Tensor | float]]
Problems = list[tuple[object, str]]


@dataclass(frozen=True)
class SampledMethod(OnlineMethod):
    """Fields that every method has that samples its own completions.

    Attributes:
        samples_per_prompt: completions of each prompt.
        max_new_tokens: length limit of a completion.
        temperature: of the sampler; the policy's log-probabilities use the same, so that ratio 1 means "as sampled".
        top_p: draw from the fewest tokens that have this much probability together; 1 = off.
        top_k: draw from so many of the likeliest tokens; 0 = off.
        min_p: leave out tokens with less than this share of the likeliest one's probability; 0 = off.
        repetition_penalty: makes tokens that occurred less likely, above 1; 1 = off.
        stop: texts that end a completion.
        num_epochs: how often each rollout is trained on.
        num_minibatches: optimizer steps of an epoch; num_minibatches x prompts_per_step prompts are sampled at once.
        clip: half-width of the ratio's interval, after the first step of a window.
        clip_high: its half-width above 1; None = ``clip``.
        mask_truncated: a completion cut at ``max_new_tokens`` keeps its reward in the others' baseline and is not
            learnt itself.
        max_kl: the run stops when the mean KL of a completion exceeds this many nats; None never. Without a reference
            nothing is measured.
        reference: origin of the reference.
        correction_cap: largest importance weight where another program sampled.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy_logps", "entropy"})
    watched: ClassVar[tuple[str, ...]] = (
        "reward",
        "verifier/",
        "kl",
        "kl_per_token",
        "frac_reward_zero_std",
        "entropy",
    )
    fewest_samples: ClassVar[int] = 2
    why_fewest: ClassVar[str] = ""

    samples_per_prompt: int = 4
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    num_epochs: int = 1
    num_minibatches: int = 1
    clip: float = 0.2
    clip_high: float | None = None
    mask_truncated: bool = False
    max_kl: float | None = 500.0
    reference: Literal["base", "previous", "ema"] = "previous"
    correction_cap: float = 2.0

    def __post_init__(self) -> None:
        refuse(type(self).__name__.lower(), [*self._shared_problems(), *self.problems()])

    def problems(self) -> Problems:
        """What is wrong with the method's own fields: pairs of a condition and its text."""
        return []

    def _shared_problems(self) -> Problems:
        counts = {name: getattr(self, name) for name in ("max_new_tokens", "num_epochs", "num_minibatches")}
        return [
            (
                self.samples_per_prompt < self.fewest_samples,
                f"samples_per_prompt is {self.samples_per_prompt}, use at least {self.fewest_samples}{self.why_fewest}",
            ),
            *((count < 1, f"{name} is {count}, use at least 1") for name, count in counts.items()),
            (self.temperature <= 0, f"temperature is {self.temperature}, use more than 0"),
            (not 0 < self.top_p <= 1, f"top_p is {self.top_p}, use more than 0 and at most 1 (1 = off)"),
            (self.top_k < 0, f"top_k is {self.top_k}, use 0 (off) or more"),
            (not 0 <= self.min_p <= 1, f"min_p is {self.min_p}, use 0 (off) to 1"),
            (
                self.repetition_penalty <= 0,
                f"repetition_penalty is {self.repetition_penalty}, use more than 0 (1 = off)",
            ),
            (not all(self.stop), "stop holds an empty string, which every completion contains"),
            (self.clip <= 0, f"clip is {self.clip}, use more than 0"),
            (
                self.clip_high is not None and self.clip_high <= 0,
                f"clip_high is {self.clip_high}, use more than 0 or null",
            ),
            (self.max_kl is not None and self.max_kl <= 0, f"max_kl is {self.max_kl}, use more than 0 or null"),
            (self.correction_cap <= 0, f"correction_cap is {self.correction_cap}, use more than 0"),
        ]

    def prepare(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Group:
        """The prompt, without completions. Raises UserError when there is none."""
        if row.get("prompt") is None:
            raise UserError(f"columns {', '.join(sorted(row))} hold no prompt", fix="give every row a `prompt`")
        ids = encode_prompt(row["prompt"], tokenizer, **template_options(row))
        if not ids:
            raise UserError("the prompt is empty")
        return Group(str(row["id"]), str(row.get("task", "")), ids, [], row)

    def teaches(self, group: Group) -> bool:
        """Whether any completion of the group has a gradient."""
        return any(c.advantage != 0 and c.num_trained() > 0 for c in group.completions)

    def leave_out_truncated(self, groups: Rollouts) -> None:
        """With ``mask_truncated``: no token of a completion that was cut is learnt."""
        for completion in (c for group in groups for c in group.completions):
            if self.mask_truncated and not completion.ended:
                completion.trained = [False] * len(completion.ids)

    def sequence_weights(self, batch: Batch) -> torch.Tensor:
        """``[N]`` weights of completions whose ratio is their own, importance correction included."""
        trained = batch.mask.any(-1)
        if batch.correction is None:
            return batch.weights * trained
        return batch.weights * trained * sequence_correction(batch.correction, batch.mask, self.correction_cap)


# --- rewards ----------------------------------------------------------------------------------------------


def reward_clip_problem(bounds: tuple[float, float] | None) -> tuple[object, str]:
    """What is wrong with the bounds of a reward."""
    return bounds is not None and bounds[0] >= bounds[1], f"reward_clip is {bounds}, use [lower, upper]"


def rewards_of(group: Group) -> torch.Tensor:
    """``[K]`` rewards of a group in float64, NaN = missing."""
    rewards = [float("nan") if c.reward is None else float(c.reward) for c in group.completions]
    return torch.tensor(rewards, dtype=torch.float64)


def moments(values: torch.Tensor, pool: Pool) -> tuple[float, float]:
    """Mean and unbiased variance of the values of all ranks; in two rounds, so that nothing cancels.

    Args:
        values: ``[R]`` of this rank, possibly none.
    """

    def total(number: torch.Tensor) -> float:
        return float(pool.gather(number.double().reshape(1)).sum())

    count = total(torch.tensor(float(values.numel())))
    mean = total(values.double().sum()) / max(count, 1.0)
    squares = total((values.double() - mean).square().sum())
    return mean, squares / max(count - 1.0, 1.0)


def reward_metrics(groups: Rollouts) -> dict[str, tuple[float, float]]:
    """reward, reward_std and frac_reward_zero_std under TRL's names, as (sum, count).

    Spread is that within a prompt's samples. Where prompts have one sample each it is that of this rank's window, and
    there is no share of prompts without contrast.
    """
    tables = [rewards_of(group) for group in groups]
    everything = torch.cat([torch.zeros(0, dtype=torch.float64), *tables])
    known = everything[~everything.isnan()]
    metrics = {"reward": (float(known.sum()), float(known.numel()))}
    if all(table.numel() < 2 for table in tables):
        return metrics | ({"reward_std": (spread(known), 1.0)} if known.numel() else {})
    silent = sum(not has_contrast(table) for table in tables)
    return metrics | {
        "reward_std": (sum(spread(table) for table in tables), float(len(tables))),
        "frac_reward_zero_std": (float(silent), float(len(tables))),
    }


# --- what was measured when the completions were sampled --------------------------------------------------


def measured(completion: Completion, name: str) -> torch.Tensor:
    """``[T]`` float64 of "old_logps", "reference_logps" or "values", which the engine has filled in."""
    values = getattr(completion, name)
    if values is None:
        raise RuntimeError(f"a completion reached credit without {name}")
    return torch.tensor(values, dtype=torch.float64)


def reference_kl(completion: Completion, estimator: KLEstimator) -> torch.Tensor:
    """``[T]`` KL of the policy that sampled to the reference, at each token (temperature applied in both)."""
    return kl_estimate(measured(completion, "old_logps"), measured(completion, "reference_logps"), estimator)


def kl_metrics(groups: Rollouts, estimator: KLEstimator) -> dict[str, tuple[float, float]]:
    """kl: nats per completion, which ``max_kl`` guards; kl_per_token: the same per token, TRL's ``kl``."""
    tables = [reference_kl(c, estimator) for group in groups for c in group.completions]
    total = float(sum(float(table.sum()) for table in tables))
    tokens = float(sum(table.numel() for table in tables))
    return {"kl": (total, float(len(tables))), "kl_per_token": (total, tokens)}


# --- metrics of a pass ------------------------------------------------------------------------------------


def clip_metrics(surrogate: Surrogate, mask: torch.Tensor) -> Metrics:
    """clip_ratio/* under TRL's names: the share of elements whose gradient a bound stopped.

    Args:
        surrogate: of tokens ``[N, T]`` or of completions ``[N]`` or ``[N, 1]``.
        mask: ``[N, T]``; completions without a trained token take no part.

    low_min and high_max are (extreme over completions, above 0 if there is any): the meters keep extremes.
    """
    rows = mask.any(-1)
    of_tokens = surrogate.is_low.dim() == 2 and surrogate.is_low.shape[1] == mask.shape[1] > 1
    counted = mask if of_tokens else rows[:, None]
    metrics: Metrics = {}
    is_low, is_high = (flag.reshape(len(rows), -1) & counted for flag in (surrogate.is_low, surrogate.is_high))
    for name, flag in (("low", is_low), ("high", is_high), ("region", is_low | is_high)):
        metrics[f"clip_ratio/{name}_mean"] = (flag.sum().float(), counted.sum())
    shares = [flag.sum(-1) / counted.sum(-1).clamp(min=1) for flag in (is_low, is_high)]
    any_row = rows.any().float()
    metrics["clip_ratio/low_min"] = (torch.where(rows, shares[0], torch.inf).amin().nan_to_num(posinf=0.0), any_row)
    metrics["clip_ratio/high_max"] = (shares[1].amax(), any_row)
    return metrics


def entropy_metric(out: Outputs, batch: Batch, name: str = "entropy") -> Metrics:
    """Mean entropy in nats at trained tokens."""
    return {} if out.entropy is None else {name: ((out.entropy * batch.mask).sum(), batch.mask.sum())}


def num_tokens(groups: Sequence[Group]) -> float:
    """Trained tokens."""
    return float(sum(c.num_trained() for group in groups for c in group.completions))


def num_completions(groups: Sequence[Group]) -> float:
    """Completions, learnt or not."""
    return float(sum(len(group.completions) for group in groups))
