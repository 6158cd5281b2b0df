"""Rollout windows: one set of rollouts serves K = num_epochs x num_minibatches optimizer steps.

The first step of a window samples, scores and credits every prompt of the window's block; each step then takes
its share, every rollout once per epoch. The window is part of the checkpoint, so a resumed run trains on the
rollouts it had. On the first step the policy has not moved, so its ratio to the sampler is exactly 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from contrl.interfaces import Completion, Context, Group, OnlineMethod, Rollouts, TaskSequence
from contrl.models.load import end_tokens
from contrl.rollout.sampler import Noise, Sampling, generate
from contrl.rollout.score import score_rollouts


@dataclasses.dataclass
class Collector:
    """Prompts in, credited rollouts out.

    Attributes:
        model: the unwrapped policy; sampled in eval mode (dropout off, as in training), under ``autocast``.
        noise_key: (seed, stage); the optimizer step joins it, so every rollout has noise of its own.
        record: receives metrics as (sum, count).
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    method: OnlineMethod
    sequence: TaskSequence
    context: Context
    noise_key: tuple[int, ...]
    record: Callable[[dict[str, tuple[float, float]]], None]
    autocast: Any = contextlib.nullcontext
    tokens_per_chunk: int = 2**15

    def __call__(self, prompts: Sequence[Group]) -> Rollouts:
        """Sample, score and credit; the groups given are not changed."""
        groups = [dataclasses.replace(group, completions=[]) for group in prompts]
        method = self.method
        sampling = Sampling(method.max_new_tokens, method.samples_per_prompt, method.temperature, method.top_p)
        noise = Noise((*self.noise_key, self.context.step))
        named = [(name, group.prompt_ids) for name, group in zip(noise_names(groups), groups, strict=True)]
        with self.autocast():
            sampled = generate(self.model, named, sampling, noise, end_tokens(self.model), self.tokens_per_chunk)
        for group, completions in zip(groups, sampled, strict=True):
            group.completions = completions
        score_rollouts(groups, self.sequence, self.tokenizer)
        self.record(method.credit(groups) | completion_metrics(groups))
        return groups


def noise_names(groups: Sequence[Group]) -> list[str]:
    """What each prompt's noise is drawn by: task and row, and a number for a row that occurs again (replay)."""
    seen: Counter[str] = Counter()
    names = []
    for group in groups:
        name = f"{group.task}/{group.row_id}"
        names.append(f"{name}#{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def completion_metrics(groups: Rollouts) -> dict[str, tuple[float, float]]:
    """Lengths and truncation of the completions, as (sum, count), under TRL's names."""
    lengths = [len(completion.ids) for group in groups for completion in group.completions]
    cut = sum(not completion.ended for group in groups for completion in group.completions)
    ended = [len(c.ids) for group in groups for c in group.completions if c.ended]
    return {
        "completions/mean_length": (float(sum(lengths)), float(len(lengths))),
        "completions/clipped_ratio": (float(cut), float(len(lengths))),
        "completions/mean_terminated_length": (float(sum(ended)), float(len(ended))),
    }


Collect = Callable[[Sequence[Group]], Rollouts]
"""Samples, scores and credits prompts; returns groups with completions."""


class RolloutWindow:
    """The current rollouts of this rank and the share of each step."""

    def __init__(self, method: OnlineMethod, collect: Collect, seed: tuple[int, ...]) -> None:
        self.method, self.collect, self.seed = method, collect, seed
        self.length = method.num_epochs * method.num_minibatches
        self.rollouts: Rollouts = []

    def step(self, step: int, prompts: Callable[[], Sequence[Group]]) -> tuple[Rollouts, bool]:
        """The rollouts of optimizer step ``step`` (from 0) and whether the policy has moved since they were sampled.

        Args:
            step: counts within the stage.
            prompts: gives the prompts of the window's block; called only when a window starts.
        """
        position = step % self.length
        if position == 0:
            self.rollouts = self.collect(prompts())
        epoch, part = divmod(position, self.method.num_minibatches)
        if self.method.num_minibatches == 1:
            return self.rollouts, position > 0
        order = np.random.default_rng([*self.seed, step // self.length, epoch]).permutation(len(self.rollouts))
        return [self.rollouts[i] for i in order[part :: self.method.num_minibatches]], position > 0

    def state_dict(self, step: int) -> dict[str, Any]:
        """The rollouts, when optimizer step ``step`` (the next one) still needs them."""
        if step % self.length == 0:
            return {"rollouts": []}
        return {"rollouts": [_plain(group) for group in self.rollouts]}

    def load_state_dict(self, state: dict[str, Any], rows: Callable[[str, str], Any]) -> None:
        """Inverse of ``state_dict``; ``rows(task, row_id)`` gives back the source row."""
        self.rollouts = [_revive(value, rows) for value in state["rollouts"]]


def _plain(group: Group) -> dict[str, Any]:
    value = {field.name: getattr(group, field.name) for field in dataclasses.fields(group) if field.name != "row"}
    return value | {"completions": [dataclasses.asdict(completion) for completion in group.completions]}


def _revive(value: dict[str, Any], rows: Callable[[str, str], Any]) -> Group:
    completions = [Completion(**completion) for completion in value["completions"]]
    return Group(**{**value, "completions": completions, "row": rows(value["task"], value["row_id"])})


def describe_batch(method: OnlineMethod, prompts_per_step: int) -> str:
    """The batch arithmetic in prompts and samples, as it is printed at the start."""
    text = f"{prompts_per_step} prompts x {method.samples_per_prompt} samples = "
    text += f"{prompts_per_step * method.samples_per_prompt} completions a step"
    length = method.num_epochs * method.num_minibatches
    if length > 1:
        text += (
            f"; a window samples {prompts_per_step * method.num_minibatches} prompts and serves {length} steps "
            f"({method.num_epochs} epochs x {method.num_minibatches} minibatches)"
        )
    return text
