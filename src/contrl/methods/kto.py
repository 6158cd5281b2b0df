"""KTO: single answers labelled desirable or not, weighed against how far the policy has moved from its reference.

arXiv:2402.01306. The reference point is a KL estimate on answers put under other prompts. It is taken over the whole
optimizer step, and which answer stands under which prompt is fixed by the seed, so that neither depends on the batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from transformers import PreTrainedTokenizerBase

from contrl.data.conversion import unpair
from contrl.data.formats import encode_unpaired, label_of
from contrl.interfaces import Batch, Completion, Group, LossOutput, Method, Outputs, Row
from contrl.losses.unpaired import apo_zero_unpaired, kto
from contrl.methods.pairs import (
    Metrics,
    cut_completion,
    cut_prompt,
    derive,
    length_problems,
    own_answers,
    refuse,
    with_signal,
)

LossType = Literal["kto", "apo_zero_unpaired"]


@dataclass(frozen=True)
class KTO(Method):
    """Kahneman-Tversky optimisation.

    Attributes:
        beta: strength of the pull towards the reference.
        loss_type: "kto", or "apo_zero_unpaired", whose reference point is 0.
        desirable_weight, undesirable_weight: factors of the two kinds of rows.
        reference: origin of the reference.
        max_length: prompt and completion together are cut to this many tokens, from the end.
        max_prompt_length: prompts are first cut to this many tokens, from the start.
        disable_dropout: whether the model's dropout is off while training.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy_logps", "reference_logps", "entropy", "mean_logits"})
    judged_by: ClassVar[str] = "accuracy"
    watched: ClassVar[tuple[str, ...]] = ("rewards/chosen", "rewards/rejected", "kl")
    correct_by: ClassVar[str | None] = "accuracy"
    judges_change: ClassVar[bool] = True

    beta: float = 0.1
    loss_type: LossType = "kto"
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    reference: Literal["base", "previous", "ema"] = "previous"
    max_length: int | None = 1024
    max_prompt_length: int | None = None
    disable_dropout: bool = True

    def __post_init__(self) -> None:
        known = get_args(LossType)
        problems: list[tuple[object, str]] = [
            *length_problems(self.max_length, self.max_prompt_length),
            (self.beta <= 0, f"beta is {self.beta}, it must be above 0"),
            (self.loss_type not in known, f"unknown loss_type {self.loss_type}, use {' or '.join(known)}"),
            (
                min(self.desirable_weight, self.undesirable_weight) < 0,
                "desirable_weight and undesirable_weight are >= 0",
            ),
        ]
        refuse("kto", problems)
        derive(self, couples="step" if self.loss_type == "kto" else "group", dropout=not self.disable_dropout)

    # --- rows ---

    def rows(self, rows: Sequence[Row], say: Callable[[str], None]) -> list[Row]:
        """Labelled rows; pairs become one desirable and one undesirable row each."""
        return list(unpair(with_signal(rows, say)))

    def prepare(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Group:
        """One labelled completion. Raises UserError when the row has none or the prompt leaves no room."""
        encoded = encode_unpaired(row, tokenizer)
        prompt = cut_prompt(encoded.prompt_ids, self.max_prompt_length)
        completion = cut_completion(prompt, encoded.completion_ids, encoded.trained, self.max_length)
        group = Group(str(row["id"]), str(row.get("task", "")), prompt, [completion], row)
        group.label = label_of(row)
        return group

    def pair(self, groups: Sequence[Group], seed: int) -> None:
        """Give each row the answer of another row: one permutation of all rows of the stage, drawn from the seed.

        Rows of one prompt stand together in a shuffled order, and every row takes the answer that stands as many places
        further on as the most frequent prompt has rows: that is an answer to another prompt, unless one prompt has
        more than half of the rows. A single row has no contrast.
        """
        if self.loss_type != "kto" or len(groups) < 2:
            return
        by_prompt: dict[tuple[int, ...], list[Group]] = {}
        for group in sorted(groups, key=lambda group: group.row_id):
            by_prompt.setdefault(tuple(group.prompt_ids), []).append(group)
        blocks = list(by_prompt.values())
        random.Random(seed).shuffle(blocks)
        order = [group for block in blocks for group in block]
        step = min(max(map(len, blocks)), len(order) - 1)
        for position, group in enumerate(order):
            other = order[(position + step) % len(order)].completions[0]
            room = len(other.ids) if self.max_length is None else self.max_length - len(group.prompt_ids)
            trained = None if other.trained is None else other.trained[:room]
            group.contrast = Completion(other.ids[:room], trained)

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        """Completions."""
        return {"kto": float(len(groups))}

    # --- the step's statistics ---

    def observed(self, groups: Sequence[Group]) -> list[Group]:
        """The prompts with an answer to another prompt each."""
        return [replace(g, completions=[g.contrast], contrast=None) for g in groups if g.contrast is not None]

    def observe(self, out: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """How much likelier the policy finds each mismatched answer than the reference does."""
        return {"kl": _log_ratio(out, batch).detach()}

    def settle(self, values: Mapping[str, torch.Tensor], memory: dict[str, float]) -> dict[str, torch.Tensor]:
        """The mean over the step, at least 0: an estimate of KL(policy || reference)."""
        ratios = values.get("kl", torch.zeros(0))
        return {"kl": ratios.mean().clamp(min=0) if ratios.numel() else ratios.new_zeros(())}

    # --- the loss ---

    def loss(self, out: Outputs, batch: Batch) -> LossOutput:
        """Sum over completions, each with the factor of its label."""
        ratio = _log_ratio(out, batch)
        desirable = torch.tensor([bool(group.label) for group in batch.groups], device=ratio.device)
        kl = batch.statistics.get("kl", ratio.new_zeros(()))
        if self.loss_type == "kto":
            terms = kto(ratio, desirable, self.beta, kl)
        else:
            terms = apo_zero_unpaired(ratio, desirable, self.beta)
        factors = torch.where(desirable, self.desirable_weight, self.undesirable_weight) * batch.weights
        metrics = self._metrics(out, batch, ratio.detach(), desirable)
        if self.loss_type == "kto":
            metrics["kl"] = (kl * len(ratio), float(len(ratio)))
        return LossOutput({"kto": (terms * factors).sum()}, metrics)

    def _metrics(self, out: Outputs, batch: Batch, ratio: torch.Tensor, desirable: torch.Tensor) -> Metrics:
        """TRL's metrics, by label; means over completions, but over trained tokens for logits and entropy."""
        rewards, logps, tokens = self.beta * ratio, out.logps.detach().sum(-1), batch.mask.sum(-1)
        metrics: Metrics = {}
        for name, rows in (("chosen", desirable), ("rejected", ~desirable)):
            metrics[f"rewards/{name}"] = (rewards[rows].sum(), rows.sum())
            metrics[f"logps/{name}"] = (logps[rows].sum(), rows.sum())
            if out.mean_logits is not None:
                metrics[f"logits/{name}"] = (out.mean_logits[rows].sum(), tokens[rows].sum())
        if out.entropy is not None:
            metrics["entropy"] = (out.entropy.sum(), tokens.sum())
        # A difference of two means is no mean of anything: it is taken in each pass that has both labels.
        chosen, rejected = desirable.sum(), (~desirable).sum()
        margin = rewards[desirable].sum() / chosen.clamp(min=1) - rewards[~desirable].sum() / rejected.clamp(min=1)
        size = torch.where((chosen > 0) & (rejected > 0), chosen + rejected, 0)
        return {**metrics, "rewards/margins": (margin * size, size)}

    def judge(self, out: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """Whether a good answer became likelier since the run began, a bad one less likely, and by how much."""
        change = _log_ratio(out, batch)
        signs = torch.tensor([1.0 if group.label else -1.0 for group in batch.groups], device=change.device)
        judged = {"accuracy": ((signs * change).sign() + 1) / 2, "margin": signs * change}
        return judged | own_answers(out, batch)


def _log_ratio(out: Outputs, batch: Batch) -> torch.Tensor:
    """``[N]`` log-ratio of policy to reference, summed over trained tokens."""
    if batch.reference_logps is None:
        raise ValueError("kto needs reference_logps in its batch")
    return (out.logps - batch.reference_logps).sum(-1)
