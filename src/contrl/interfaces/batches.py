"""What is trained: completions, groups, the tensors of a pass, and what a forward and a loss return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from contrl.interfaces.tasks import Row

if TYPE_CHECKING:
    import torch


@dataclass
class Completion:
    """One answer to a prompt.

    Attributes:
        ids: token ids, the end-of-sequence token included where the answer ended by itself.
        trained: one flag per token, True = this token is learnt; None = all are.
        weight: multiplies this completion's terms of the loss.
        ended: whether it ended by itself (False: cut at the length limit).
        sampler_logps: log-probability of each token under the distribution it was drawn from.
        old_logps: the policy's own log-probabilities (temperature applied) when it was sampled.
        reward, advantage: set by scoring and by ``OnlineMethod.credit``; a reward of None is missing.
        scores: what each of several reward functions said, by its name; None = not applicable or missing.
        reference_logps, values: ``[T]`` as ``OnlineMethod.measures`` asks for, of the weights that sampled.
        token_advantages, returns: ``[T]`` of methods that credit every token.
        correction: ``[T]`` importance weights, where another program sampled than the one that trains.
    """

    ids: list[int]
    trained: list[bool] | None = None
    weight: float = 1.0
    ended: bool = True
    sampler_logps: list[float] | None = None
    old_logps: list[float] | None = None
    reward: float | None = None
    advantage: float = 0.0
    scores: dict[str, float | None] = field(default_factory=dict)
    reference_logps: list[float] | None = None
    values: list[float] | None = None
    token_advantages: list[float] | None = None
    returns: list[float] | None = None
    correction: list[float] | None = None

    def num_trained(self) -> int:
        """Number of tokens that are learnt."""
        return len(self.ids) if self.trained is None else sum(self.trained)


@dataclass
class Group:
    """One prompt with its completions: the unit of every batch. ``row`` is the source, for rewards.

    Pairs hold the chosen completion first. ``contrast`` answers *another* prompt (for KTO's KL); it is never trained.
    An anchor is seen by strategies only, never by the method.
    """

    row_id: str
    task: str
    prompt_ids: list[int]
    completions: list[Completion]
    row: Row = field(default_factory=dict)
    is_replay: bool = False
    is_anchor: bool = False
    label: bool | None = None
    margin: float | None = None
    contrast: Completion | None = None


Rollouts = list[Group]
"""Groups whose completions were sampled and, once scored, have rewards."""


@dataclass
class Batch:
    """The groups of one pass as tensors. N completions, T the longest of them.

    Attributes:
        groups: the groups, in order; completions are laid out group after group.
        group_index: ``[N]`` the group of each completion.
        ids: ``[N, T]`` completion tokens, right padded with 0.
        mask: ``[N, T]`` True = trained token. Padding is False.
        weights, advantages: ``[N]``.
        old_logps: ``[N, T]`` or None when the policy has not moved since it sampled (the ratio is exactly 1).
        sampler_logps: ``[N, T]``, with ``old_logps``: of the distribution drawn from.
        reference_logps: ``[N, T]`` when the method needs it.
        old_values, token_advantages, returns, correction: ``[N, T]`` where the completions have them.
        statistics: what ``Method.settle`` made of the whole step, for methods that couple rows.
    """

    groups: list[Group]
    group_index: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor
    advantages: torch.Tensor
    old_logps: torch.Tensor | None = None
    sampler_logps: torch.Tensor | None = None
    reference_logps: torch.Tensor | None = None
    old_values: torch.Tensor | None = None
    token_advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None
    correction: torch.Tensor | None = None
    statistics: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class Outputs:
    """What a forward returns for a batch; what the method does not ``need`` is None.

    Attributes:
        logps: ``[N, T]`` log-probabilities of the tokens, zero where ``mask`` is False, like all ``[N, T]`` here.
        entropy, correct, log_sum_p2, mean_logits: ``[N, T]``, without gradient; correct is 1 for the likeliest token.
        prompt_logps: ``[G]`` log-probability of each prompt, its first token not counted.
        scores: ``[N]`` a classifier's output at the last token of each completion (then logps is zero).
        values: ``[N, T]`` the value head's estimate before each token, with gradient.
        divergence: by teacher, ``[N, T]`` the KL divergence of the next-token distributions, with gradient.
    """

    logps: torch.Tensor
    entropy: torch.Tensor | None = None
    correct: torch.Tensor | None = None
    log_sum_p2: torch.Tensor | None = None
    mean_logits: torch.Tensor | None = None
    prompt_logps: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    values: torch.Tensor | None = None
    divergence: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class LossOutput:
    """Sums, never means: the engine divides ``sums[term]`` by the step's ``count()[term]``, and, when it logs, the
    ``metrics[name] = (sum, count)`` of all passes, steps and ranks.
    """

    sums: dict[str, torch.Tensor]
    metrics: dict[str, tuple[torch.Tensor | float, torch.Tensor | float]] = field(default_factory=dict)
