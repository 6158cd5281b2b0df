"""ORPO: supervised fine-tuning on the chosen answer and an odds ratio that pushes the rejected one down.

arXiv:2403.07691; no reference. The likelihood term runs over prompt *and* chosen answer, as in TRL 1.16; the odds are
those of the answers' mean log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from contrl.data.formats import encode_preference
from contrl.interfaces import Batch, Group, LossOutput, Method, Outputs, Row
from contrl.losses.reference_free import log_odds_ratio, odds_ratio_loss
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


@dataclass(frozen=True)
class ORPO(Method):
    """Odds-ratio preference optimisation.

    Attributes:
        beta: weight of the odds-ratio term, the paper's lambda.
        max_length: prompt and completion together are cut to this many tokens, from the end.
        max_prompt_length: prompts are first cut to this many tokens, from the start.
        disable_dropout: whether the model's dropout is off while training.
    """

    pairs: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"policy_logps", "prompt_logps", "mean_logits"})
    judged_by: ClassVar[str] = "accuracy"
    watched: ClassVar[tuple[str, ...]] = ("rewards/margins", "rewards/accuracies", "loss")
    correct_by: ClassVar[str | None] = "accuracy"
    judges_change: ClassVar[bool] = True

    beta: float = 0.1
    max_length: int | None = 1024
    max_prompt_length: int | None = None
    disable_dropout: bool = True

    def __post_init__(self) -> None:
        problems: list[tuple[object, str]] = [
            *length_problems(self.max_length, self.max_prompt_length),
            (self.beta <= 0, f"beta is {self.beta}, it must be above 0"),
        ]
        refuse("orpo", problems)
        derive(self, dropout=not self.disable_dropout)

    def rows(self, rows: Sequence[Row], say: Callable[[str], None]) -> list[Row]:
        """All rows but those of sources without preference."""
        return with_signal(rows, say)

    def prepare(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Group:
        """A pair. Raises UserError when the row is none, its sides are equal, or the prompt leaves no room."""
        return to_group(row, encode_preference(row, tokenizer), self.max_length, self.max_prompt_length)

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        """Pairs; and the tokens of prompts and chosen answers, the first of each prompt left out."""
        return {"preference": float(len(groups)), "nll": _num_prompt_tokens(groups) + chosen_tokens(groups)}

    def loss(self, out: Outputs, batch: Batch) -> LossOutput:
        """Sum over tokens of the likelihood term, over pairs of the odds-ratio term."""
        if out.prompt_logps is None:
            raise ValueError("orpo needs prompt_logps in its outputs")
        weights, logps = pair_weights(batch), sides(out.logps).sum(-1)
        means = logps / num_tokens(batch)
        nll = -(out.prompt_logps + logps[:, 0])
        odds = log_odds_ratio(means[:, 0], means[:, 1])
        terms = odds_ratio_loss(odds)
        tokens = _num_prompt_tokens(batch.groups) + sides(batch.mask)[:, 0].sum()
        metrics = pair_metrics(out, batch, means, self.beta * means)
        metrics["nll_loss"] = (nll.detach().sum(), tokens)
        metrics["log_odds_ratio"] = (-terms.detach().sum(), float(len(terms)))
        metrics["log_odds_chosen"] = (odds.detach().sum(), float(len(odds)))
        return LossOutput({"preference": self.beta * (terms * weights).sum(), "nll": (nll * weights).sum()}, metrics)

    def judge(self, out: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """Whether the chosen answer gained on the rejected one since the run began, and by how much."""
        return learned(out, batch)


def _num_prompt_tokens(groups: Sequence[Group]) -> float:
    """Prompt tokens that are predicted: all but the first of each."""
    return float(sum(max(len(group.prompt_ids) - 1, 0) for group in groups))
