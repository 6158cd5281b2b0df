"""RLOO: REINFORCE on whole completions, each sample's baseline being the mean of its siblings.

arXiv:2402.14740. The log-probability of a completion is the *sum* over its tokens; prompt tokens take no part.
Later steps of a rollout window clip the ratio to the sampling policy, as TRL 1.16 does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from contrl.data.chat import encode_prompt, template_options
from contrl.errors import UserError
from contrl.interfaces import Batch, Group, LossOutput, OnlineMethod, Outputs, Rollouts, Row
from contrl.losses.advantages import leave_one_out
from contrl.losses.policy import clipped_sequence_surrogate


@dataclass(frozen=True)
class RLOO(OnlineMethod):
    """REINFORCE leave-one-out.

    Attributes:
        samples_per_prompt: completions of each prompt, at least 2.
        max_new_tokens: length limit of a completion.
        temperature, top_p: of the sampler; the policy's log-probabilities use the same temperature.
        num_epochs, num_minibatches: a window of num_minibatches x prompts_per_step prompts serves their product
            of optimizer steps.
        clip: half-width of the ratio's interval after the first step of a window.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy_logps", "entropy"})

    samples_per_prompt: int = 4
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    num_epochs: int = 1
    num_minibatches: int = 1
    clip: float = 0.2

    def __post_init__(self) -> None:
        if self.samples_per_prompt < 2:
            raise UserError(
                f"samples_per_prompt is {self.samples_per_prompt}",
                why="the baseline of a sample is the mean of the others",
                fix="use samples_per_prompt >= 2",
            )
        counts = (self.max_new_tokens, self.num_epochs, self.num_minibatches)
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or min(counts) < 1 or self.clip <= 0:
            raise UserError(
                "rloo needs temperature > 0, 0 < top_p <= 1, max_new_tokens >= 1, num_epochs >= 1, "
                "num_minibatches >= 1 and clip > 0"
            )

    def prepare(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Group:
        """The prompt, without completions. Raises UserError when there is none."""
        if row.get("prompt") is None:
            raise UserError(f"columns {', '.join(sorted(row))} hold no prompt", fix="give every row a `prompt`")
        ids = encode_prompt(row["prompt"], tokenizer, **template_options(row))
        if not ids:
            raise UserError("the prompt is empty")
        return Group(str(row["id"]), str(row.get("task", "")), ids, [], row)

    def credit(self, groups: Rollouts) -> dict[str, tuple[float, float]]:
        """Leave-one-out advantages; metrics under TRL's names."""
        known: list[float] = []
        spread = 0.0
        for group in groups:
            rewards = torch.tensor([float("nan") if c.reward is None else float(c.reward) for c in group.completions])
            for completion, advantage in zip(group.completions, leave_one_out(rewards).tolist(), strict=True):
                completion.advantage = advantage
            given = [float(c.reward) for c in group.completions if c.reward is not None]
            known += given
            spread += float(torch.tensor(given).std()) if len(given) > 1 else 0.0
        silent = sum(not self.teaches(group) for group in groups)
        return {
            "reward": (sum(known), float(len(known))),
            "reward_std": (spread, float(len(groups))),
            "frac_reward_zero_std": (float(silent), float(len(groups))),
        }

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        """Completions."""
        return {"policy": float(sum(len(group.completions) for group in groups))}

    def loss(self, out: Outputs, batch: Batch) -> LossOutput:
        """Sum over completions of the clipped surrogate; on the first step of a window it is REINFORCE."""
        old = out.logps.detach() if batch.old_logps is None else batch.old_logps
        terms, clipped = clipped_sequence_surrogate(out.logps, old, batch.mask, batch.advantages, self.clip)
        tokens = batch.mask.sum()
        metrics = {"clip_ratio": (clipped.float().sum(), torch.tensor(clipped.numel()))}
        if out.entropy is not None:
            metrics["entropy"] = (out.entropy.sum(), tokens)
        return LossOutput({"policy": (terms * batch.weights).sum()}, {**metrics})
