"""A reward model: one number for an answer, learnt from pairs by the Bradley-Terry likelihood.

arXiv:2203.02155. The score is read at the last token of each answer, so padding plays no part; the tokens that both
answers share run once. Pairs that are too long are cut, and refused when the cut leaves them equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from contrl.data.formats import encode_scored
from contrl.errors import UserError
from contrl.interfaces import Batch, Group, LossOutput, Method, Outputs, Row
from contrl.losses.reward import bradley_terry, centring
from contrl.methods.pairs import (
    Metrics,
    derive,
    length_problems,
    pair_weights,
    ranking,
    refuse,
    sides,
    to_group,
    with_signal,
)


@dataclass(frozen=True)
class RewardModel(Method):
    """Bradley-Terry reward modelling; a row's ``margin`` column, when there, is subtracted from the difference.

    Attributes:
        center_rewards_coefficient: weight of (chosen + rejected)^2, which keeps scores around 0; None is 0.
        max_length: each conversation is cut to this many tokens, from the end.
        disable_dropout: whether the model's dropout is off while training.
    """

    pairs: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"scores"})
    judged_by: ClassVar[str] = "accuracy"
    watched: ClassVar[tuple[str, ...]] = ("accuracy", "margin", "loss")
    correct_by: ClassVar[str | None] = "accuracy"

    center_rewards_coefficient: float | None = None
    max_length: int | None = 1024
    disable_dropout: bool = True

    def __post_init__(self) -> None:
        coefficient = self.center_rewards_coefficient
        problems: list[tuple[object, str]] = [
            *length_problems(self.max_length),
            (coefficient is not None and coefficient < 0, f"center_rewards_coefficient is {coefficient}, it is >= 0"),
        ]
        refuse("reward", problems)
        derive(self, dropout=not self.disable_dropout)

    def rows(self, rows: Sequence[Row], say: Callable[[str], None]) -> list[Row]:
        """All rows but those of sources without preference."""
        return with_signal(rows, say)

    def prepare(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Group:
        """A pair. Raises UserError when the row is none, its margin is no number, or the cut leaves equal sides."""
        group = to_group(row, encode_scored(row, tokenizer), self.max_length)
        margin = row.get("margin")
        if margin is not None:
            if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
                raise UserError(f"margin is {margin!r}, not a finite number")
            group.margin = float(margin)
        return group

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        """Pairs."""
        return {"reward": float(len(groups))}

    def loss(self, out: Outputs, batch: Batch) -> LossOutput:
        """Sum over pairs."""
        scores = _scores(out)
        chosen, rejected = scores[:, 0], scores[:, 1]
        terms = bradley_terry(chosen, rejected, scores.new_tensor([group.margin or 0.0 for group in batch.groups]))
        if self.center_rewards_coefficient is not None:
            terms = terms + self.center_rewards_coefficient * centring(chosen, rejected)
        return LossOutput({"reward": (terms * pair_weights(batch)).sum()}, _metrics(scores.detach()))

    def log_likelihood(self, out: Outputs, batch: Batch) -> torch.Tensor:
        """``[P]`` of the preferences: the logarithm of the probability that the chosen answer is the better one."""
        scores = _scores(out)
        margins = scores.new_tensor([group.margin or 0.0 for group in batch.groups])
        return -bradley_terry(scores[:, 0], scores[:, 1], margins)

    def judge(self, out: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """Whether the chosen answer scores higher, and by how much."""
        return ranking(_scores(out))


def _scores(out: Outputs) -> torch.Tensor:
    """``[P, 2]``"""
    if out.scores is None:
        raise ValueError("the reward method needs scores in its outputs")
    return sides(out.scores)


def _metrics(scores: torch.Tensor) -> Metrics:
    """TRL's metrics; the smallest and the largest score are those of each pass, averaged over passes."""
    pairs, judged = float(len(scores)), ranking(scores)
    return {
        "accuracy": (judged["accuracy"].sum(), pairs),
        "margin": (judged["margin"].sum(), pairs),
        "min_reward": (scores.min(), 1.0),
        "mean_reward": (scores.sum(), 2 * pairs),
        "max_reward": (scores.max(), 1.0),
    }
