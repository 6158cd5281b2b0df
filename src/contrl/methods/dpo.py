"""DPO and its relatives: a policy that prefers the chosen answer more than a frozen reference does.

arXiv:2305.18290. ``loss_type`` names one loss of TRL 1.16 or a weighted list of them. Losses that compare the pairs
of a step with each other (aot, BCO's running mean) read statistics of the whole optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from transformers import PreTrainedTokenizerBase

from contrl.data.formats import encode_preference
from contrl.interfaces import Batch, Group, LossOutput, Method, Outputs, Row
from contrl.losses.divergence import Divergence, divergence_score
from contrl.losses.preference import PAIRWISE, Pairs, length_desensitised, wpo_weights
from contrl.losses.supervised import negative_log_likelihood
from contrl.losses.transport import aot, aot_unpaired
from contrl.methods.pairs import (
    chosen_tokens,
    derive,
    learned,
    length_problems,
    num_tokens,
    pair_metrics,
    pair_weights,
    refuse,
    sides,
    to_group,
    with_signal,
)

LOSS_TYPES = (*PAIRWISE, "aot", "aot_unpaired", "sft")
OF_DIFFERENCES = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
"""Losses that read the difference of the two scores alone; only they have a form under another divergence."""
SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}
_LOGGED = {"entropy", "correct", "mean_logits"}


@dataclass(frozen=True)
class DPO(Method):
    """Direct preference optimisation.

    Attributes:
        beta: strength of the pull towards the reference; IPO's tau.
        loss_type: one name or several; ``loss_weights`` has one factor for each, 1 by default.
        label_smoothing: share of labels believed to be wrong, for robust, exo_pair, aot and aot_unpaired.
        f_divergence_type, f_alpha_divergence_coef: the divergence that keeps the policy near its reference (f-DPO).
        ld_alpha: weight of the tokens beyond the shorter side's length (LD-DPO); None weighs all equally.
        use_weighting: weigh pairs by how likely the policy itself would write them (WPO).
        discopop_tau: temperature of discopop.
        bco_shift: subtract the running mean of the rewards in bco_pair, as its paper does and TRL 1.16 does not.
        reference: origin of the reference.
        sync_ref_model, ref_model_mixup_alpha, ref_model_sync_steps: every so many steps the reference moves by this
            share towards the policy (TR-DPO, arXiv:2404.09656).
        max_length: prompt and completion together are cut to this many tokens, from the end.
        max_prompt_length: prompts are first cut to this many tokens, from the start.
        disable_dropout: whether the model's dropout is off while training.
    """

    pairs: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"policy_logps", "reference_logps", *_LOGGED})
    judged_by: ClassVar[str] = "accuracy"
    watched: ClassVar[tuple[str, ...]] = ("rewards/margins", "rewards/accuracies", "loss")
    correct_by: ClassVar[str | None] = "accuracy"
    judges_change: ClassVar[bool] = True

    beta: float = 0.1
    loss_type: tuple[str, ...] = ("sigmoid",)
    loss_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    f_divergence_type: Divergence = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    ld_alpha: float | None = None
    use_weighting: bool = False
    discopop_tau: float = 0.05
    bco_shift: bool = False
    reference: Literal["base", "previous", "ema"] = "previous"
    sync_ref_model: bool = False
    ref_model_mixup_alpha: float = 0.6
    ref_model_sync_steps: int = 512
    max_length: int | None = 1024
    max_prompt_length: int | None = None
    disable_dropout: bool = True

    def __post_init__(self) -> None:
        given: object = self.loss_type
        names = (given,) if isinstance(given, str) else tuple(self.loss_type)
        weights = tuple(self.loss_weights or ()) or (1.0,) * len(names)
        derive(self, loss_type=names)
        refuse("dpo", self._problems(names, weights))
        derive(
            self,
            needs=self.needs | ({"log_sum_p2"} if self.use_weighting else set()),
            couples="step" if self.bco_shift or {"aot", "aot_unpaired"} & set(names) else "group",
            dropout=not self.disable_dropout,
            sync_every=self.ref_model_sync_steps if self.sync_ref_model else 0,
            sync_share=self.ref_model_mixup_alpha,
        )

    def _problems(self, names: tuple[str, ...], weights: tuple[float, ...]) -> list[tuple[object, str]]:
        """Every combination of fields that cannot work, with its reason."""
        chosen, unknown = set(names), [name for name in names if name not in LOSS_TYPES]
        no_divergence = sorted(chosen - OF_DIFFERENCES)
        other = self.f_divergence_type != "reverse_kl"
        smoothing = self.label_smoothing
        return [
            *length_problems(self.max_length, self.max_prompt_length),
            (self.beta <= 0, f"beta is {self.beta}, it must be above 0"),
            (not names, "loss_type names no loss"),
            (unknown, f"unknown loss_type {', '.join(unknown)}, use {', '.join(LOSS_TYPES)}"),
            (len(weights) != len(names), f"loss_weights has {len(weights)} numbers for {len(names)} loss types"),
            (
                self.f_divergence_type not in get_args(Divergence),
                f"unknown f_divergence_type {self.f_divergence_type}, use {', '.join(get_args(Divergence))}",
            ),
            (
                other and no_divergence,
                f"f_divergence_type {self.f_divergence_type} does not go with {', '.join(no_divergence)}: they read "
                "one side alone, whose reward is known only up to a constant that cancels in differences",
            ),
            (not 0 <= smoothing < 1, f"label_smoothing is {smoothing}, it must be in [0, 1)"),
            (
                smoothing > 0 and not chosen & SMOOTHED,
                f"label_smoothing has no effect on {', '.join(names)}, use robust for labels that may be flipped",
            ),
            (
                "exo_pair" in chosen and smoothing == 0,
                "exo_pair takes the logarithm of label_smoothing, so it must be above 0 (its paper: 1e-3)",
            ),
            (
                "robust" in chosen and smoothing >= 0.5,
                "robust divides by 1 - 2 label_smoothing, so it must be below 0.5",
            ),
            (
                self.use_weighting and chosen & {"aot", "aot_unpaired"},
                "use_weighting does not go with aot, which compares ranks and not pairs",
            ),
            (self.bco_shift and "bco_pair" not in chosen, "bco_shift needs the loss_type bco_pair"),
            (
                self.ld_alpha is not None and not 0 <= self.ld_alpha <= 1,
                f"ld_alpha is {self.ld_alpha}, it must be in [0, 1]",
            ),
            (self.discopop_tau <= 0, f"discopop_tau is {self.discopop_tau}, it must be above 0"),
            (
                self.sync_ref_model and self.reference != "previous",
                f"sync_ref_model moves the reference, which a {self.reference} reference is not for; use previous",
            ),
            (not 0 < self.ref_model_mixup_alpha <= 1, "ref_model_mixup_alpha must be in (0, 1]"),
            (self.ref_model_sync_steps < 1, "ref_model_sync_steps must be at least 1"),
        ]

    # --- rows ---

    def rows(self, rows: Sequence[Row], say: Callable[[str], None]) -> list[Row]:
        """All rows but those of sources without preference."""
        return with_signal(rows, say)

    def prepare(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Group:
        """A pair. Raises UserError when the row is none, its sides are equal, or the prompt leaves no room."""
        return to_group(row, encode_preference(row, tokenizer), self.max_length, self.max_prompt_length)

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        """Pairs; for the loss type sft the trained tokens of chosen completions."""
        counts = {"preference": float(len(groups)), "sft": chosen_tokens(groups)}
        return {name: counts[name] for name in self._terms()}

    def _terms(self) -> list[str]:
        return [
            name
            for name, kind in (("preference", set(self.loss_type) - {"sft"}), ("sft", "sft" in self.loss_type))
            if kind
        ]

    # --- the step's statistics ---

    def observe(self, out: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """Of each pair: what aot sorts, and the mean reward that BCO averages."""
        policy, reference = self._sequence_logps(out, batch)
        ratios = (policy - reference).detach()
        return {
            "policy": (policy[:, 0] - policy[:, 1]).detach(),
            "reference": reference[:, 0] - reference[:, 1],
            "chosen": ratios[:, 0],
            "rejected": ratios[:, 1],
            "reward": self.beta * ratios.mean(-1),
        }

    def settle(self, values: Mapping[str, torch.Tensor], memory: dict[str, float]) -> dict[str, torch.Tensor]:
        """Sorted values of the whole step; the mean reward of all pairs seen so far, this step's included."""
        statistics = {name: column.sort().values for name, column in values.items() if name != "reward"}
        if self.bco_shift:
            rewards = values["reward"]
            memory["bco_total"] = memory.get("bco_total", 0.0) + float(rewards.sum())
            memory["bco_pairs"] = memory.get("bco_pairs", 0.0) + len(rewards)
            statistics["shift"] = rewards.new_tensor(memory["bco_total"] / memory["bco_pairs"])
        return statistics

    # --- the loss ---

    def loss(self, out: Outputs, batch: Batch) -> LossOutput:
        """Weighted sum over pairs of the named losses, and over tokens of the loss type sft."""
        policy, reference = self._sequence_logps(out, batch)
        ratios, mask = policy - reference, sides(batch.mask)
        weights = pair_weights(batch)
        if self.use_weighting and out.log_sum_p2 is not None:
            weights = weights * wpo_weights(sides(out.logps), sides(out.log_sum_p2), mask)
        sums = {name: policy.new_zeros(()) for name in self._terms()}
        for name, factor in zip(self.loss_type, self.loss_weights or (1.0,) * len(self.loss_type), strict=True):
            if name == "sft":
                terms = negative_log_likelihood(sides(out.logps), mask)[:, 0].sum(-1)
                sums["sft"] = sums["sft"] + factor * (terms * weights).sum()
            else:
                terms = self._terms_of(name, policy, ratios, batch)
                sums["preference"] = sums["preference"] + factor * (terms * weights).sum()
        return LossOutput(sums, pair_metrics(out, batch, policy, self.beta * ratios))

    def _sequence_logps(self, out: Outputs, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of each completion under policy and reference, both ``[P, 2]``."""
        if batch.reference_logps is None:
            raise ValueError("dpo needs reference_logps in its batch")
        policy, reference = (
            length_desensitised(sides(logps), sides(batch.mask), self.ld_alpha)
            for logps in (out.logps, batch.reference_logps)
        )
        return policy, reference

    def _terms_of(self, name: str, policy: torch.Tensor, ratios: torch.Tensor, batch: Batch) -> torch.Tensor:
        """One named loss, a term for each pair ``[P]``."""
        step = {name: column.to(policy) for name, column in batch.statistics.items()}
        if name == "aot":
            difference = policy[:, 0] - policy[:, 1]
            return aot(difference, step["policy"], step["reference"], self.beta, self.label_smoothing)
        chosen, rejected = ratios[:, 0], ratios[:, 1]
        if name == "aot_unpaired":
            return aot_unpaired(chosen, rejected, step["chosen"], step["rejected"], self.beta, self.label_smoothing)
        tokens = num_tokens(batch)
        scores = divergence_score(ratios, self.f_divergence_type, self.f_alpha_divergence_coef)
        pairs = Pairs(
            chosen=chosen,
            rejected=rejected,
            chosen_score=scores[:, 0],
            rejected_score=scores[:, 1],
            chosen_tokens=tokens[:, 0],
            rejected_tokens=tokens[:, 1],
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            discopop_tau=self.discopop_tau,
            reward_shift=step["shift"] if self.bco_shift else 0.0,
        )
        return PAIRWISE[name](pairs)

    def judge(self, out: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """Whether the chosen answer gained on the rejected one since the run began, and by how much."""
        return learned(out, batch)
