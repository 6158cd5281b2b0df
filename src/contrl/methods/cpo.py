"""CPO, SimPO and AlphaPO: preference learning without a reference, with the likelihood of the chosen answer beside it.

CPO, arXiv:2401.08417; SimPO, arXiv:2405.14734; AlphaPO, arXiv:2501.03884. Losses on means over tokens are ipo, simpo
and alphapo; sigmoid and hinge take the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from transformers import PreTrainedTokenizerBase

from contrl.data.formats import encode_preference
from contrl.interfaces import Batch, Group, LossOutput, Method, Outputs, Row
from contrl.losses.reference_free import alpha_reward, contrastive
from contrl.losses.supervised import negative_log_likelihood
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

LossType = Literal["sigmoid", "hinge", "ipo", "simpo", "alphapo"]


@dataclass(frozen=True)
class CPO(Method):
    """Contrastive preference optimisation.

    Attributes:
        beta: scale of the reward difference; ipo's tau.
        loss_type: sigmoid, hinge, ipo, simpo, or alphapo (simpo without the likelihood term).
        label_smoothing: share of labels believed to be wrong, for sigmoid, simpo and alphapo.
        cpo_alpha: weight of the chosen answers' negative log-likelihood; alphapo takes 0 whatever it says.
        simpo_gamma: target margin of simpo and alphapo.
        alpha: shape of AlphaPO's reward, for every loss type; 0 is the log-probability itself.
        max_length: prompt and completion together are cut to this many tokens, from the end.
        max_prompt_length: prompts are first cut to this many tokens, from the start.
        disable_dropout: whether the model's dropout is off while training.
    """

    pairs: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"policy_logps", "mean_logits"})
    judged_by: ClassVar[str] = "accuracy"
    watched: ClassVar[tuple[str, ...]] = ("rewards/margins", "rewards/accuracies", "loss")
    correct_by: ClassVar[str | None] = "accuracy"
    judges_change: ClassVar[bool] = True

    beta: float = 0.1
    loss_type: LossType = "sigmoid"
    label_smoothing: float = 0.0
    cpo_alpha: float = 1.0
    simpo_gamma: float = 0.5
    alpha: float = 0.0
    max_length: int | None = 1024
    max_prompt_length: int | None = None
    disable_dropout: bool = True

    def __post_init__(self) -> None:
        known, smoothing = get_args(LossType), self.label_smoothing
        problems: list[tuple[object, str]] = [
            *length_problems(self.max_length, self.max_prompt_length),
            (self.beta <= 0, f"beta is {self.beta}, it must be above 0"),
            (self.loss_type not in known, f"unknown loss_type {self.loss_type}, use {', '.join(known)}"),
            (not 0 <= smoothing < 1, f"label_smoothing is {smoothing}, it must be in [0, 1)"),
            (
                smoothing > 0 and self.loss_type in ("hinge", "ipo"),
                f"label_smoothing has no effect on {self.loss_type}, use sigmoid or simpo",
            ),
            (self.cpo_alpha < 0, f"cpo_alpha is {self.cpo_alpha}, it must be at least 0"),
        ]
        refuse("cpo", problems)
        derive(self, dropout=not self.disable_dropout)

    @property
    def _nll_weight(self) -> float:
        return 0.0 if self.loss_type == "alphapo" else self.cpo_alpha

    def rows(self, rows: Sequence[Row], say: Callable[[str], None]) -> list[Row]:
        """All rows but those of sources without preference."""
        return with_signal(rows, say)

    def prepare(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Group:
        """A pair. Raises UserError when the row is none, its sides are equal, or the prompt leaves no room."""
        return to_group(row, encode_preference(row, tokenizer), self.max_length, self.max_prompt_length)

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        """Pairs, and trained tokens of chosen completions."""
        nll = {"nll": chosen_tokens(groups)} if self._nll_weight else {}
        return {"preference": float(len(groups)), **nll}

    def loss(self, out: Outputs, batch: Batch) -> LossOutput:
        """Sum over pairs of the preference term, and over chosen tokens of the likelihood term."""
        weights, logps = pair_weights(batch), self._sequence_logps(out, batch)
        rewards = alpha_reward(logps, self.alpha)
        kind = "simpo" if self.loss_type == "alphapo" else self.loss_type
        difference = rewards[:, 0] - rewards[:, 1]
        terms = contrastive(difference, kind, self.beta, self.label_smoothing, self.simpo_gamma)
        sums = {"preference": (terms * weights).sum()}
        metrics = pair_metrics(out, batch, logps, self.beta * rewards)
        if self._nll_weight:
            nll = negative_log_likelihood(sides(out.logps), sides(batch.mask))[:, 0].sum(-1)
            sums["nll"] = self._nll_weight * (nll * weights).sum()
            metrics["nll_loss"] = (nll.detach().sum(), sides(batch.mask)[:, 0].sum())
        return LossOutput(sums, metrics)

    def _sequence_logps(self, out: Outputs, batch: Batch) -> torch.Tensor:
        """``[P, 2]`` log-probability of each completion, its mean over tokens where the loss says so."""
        logps = sides(out.logps).sum(-1)
        return logps / num_tokens(batch) if self.loss_type in ("ipo", "simpo", "alphapo") else logps

    def judge(self, out: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """Whether the chosen answer gained on the rejected one since the run began, and by how much."""
        return learned(out, batch)
