"""Rollout windows: one set of rollouts serves K = num_epochs x num_minibatches optimizer steps.

The first step of a window samples, scores and credits every prompt of the window's block; each step then takes
its share, every rollout once per epoch. The window is part of the checkpoint, so a resumed run trains on the
rollouts it had. On the first step the policy has not moved, so its ratio to the sampler is exactly 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from contrl.engine.measure import correct
from contrl.errors import GuardStop
from contrl.interfaces import Completion, Context, Group, OnlineMethod, Pool, Rollouts, TaskSequence
from contrl.models.load import end_tokens
from contrl.rollout.external import Sampler, from_sampled
from contrl.rollout.sampler import Noise, Sampling, generate
from contrl.rollout.score import ScoreSettings, score_rollouts

Metrics = dict[str, tuple[float, float]]


@dataclasses.dataclass
class Links:
    """What collecting needs of the engine: it owns model, autocast, meters, memory and ranks.

    Attributes:
        record: receives metrics as (sum, count).
        measure: gives rollouts what the method names, of the current weights.
        pool: makes what ``credit`` may use besides its own rank's rollouts.
        state: the trainer's state, for rewards.
        autocast: around sampling.
    """

    record: Callable[[Metrics], None]
    measure: Callable[[Sequence[Group], Collection[str]], None]
    pool: Callable[[], Pool] = Pool
    state: Callable[[], Any] = lambda: None
    autocast: Any = contextlib.nullcontext


@dataclasses.dataclass
class Collector:
    """Prompts in, credited rollouts out.

    Attributes:
        model: the unwrapped policy; sampled in eval mode (dropout off, as in training), under autocast.
        noise_key: (seed, stage); the optimizer step joins it, so every rollout has noise of its own.
        sampler: another program that samples in the policy's place, or None.
        say: told in one line what a person should know.
        keep: shown the credited rollouts of a step, with the columns that rewards gave.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    method: OnlineMethod
    sequence: TaskSequence
    context: Context
    noise_key: tuple[int, ...]
    links: Links
    tokens_per_chunk: int = 2**15
    scoring: ScoreSettings = dataclasses.field(default_factory=ScoreSettings)
    sampler: Sampler | None = None
    say: Callable[[str], None] = lambda text: None
    keep: Callable[[int, Rollouts, Mapping[str, Sequence[Any]]], None] = lambda step, groups, extras: None
    _told: set[str] = dataclasses.field(default_factory=set, init=False)

    def __call__(self, prompts: Sequence[Group]) -> Rollouts:
        """Sample, score, measure and credit; the groups given are not changed.

        Raises:
            GuardStop: when no completion of any rank has a reward, or the policy is too far from its reference.
        """
        groups = [dataclasses.replace(group, completions=[]) for group in prompts]
        method, links = self.method, self.links
        clock = _Clock()
        self._sample(groups)
        metrics = completion_metrics(groups) | clock.lap("sampling")
        tokens = sum(len(completion.ids) for group in groups for completion in group.completions)
        metrics["tokens_per_second"] = (float(tokens), metrics["seconds/sampling"][0])
        report = score_rollouts(groups, self.sequence, self.tokenizer, settings=self.scoring, state=links.state())
        for note in report.notes:
            self._say_once(note)
        metrics |= report.metrics | clock.lap("reward")
        names = {*method.measures, *(("policy_logps",) if self.sampler is not None else ())}
        if names:
            links.measure(groups, names)
            metrics |= clock.lap("measure")
        if self.sampler is not None:
            metrics |= correct(groups, method.correction_cap)
        pool = links.pool()
        credited = method.credit(groups, pool)
        links.record(metrics | credited)
        self.keep(self.context.step, groups, report.extras)
        check_rollouts(groups, credited.get("kl"), method, pool)
        return groups

    def _sample(self, groups: Rollouts) -> None:
        method = self.method
        sampling = Sampling(
            method.max_new_tokens,
            method.samples_per_prompt,
            method.temperature,
            method.top_p,
            top_k=method.top_k,
            min_p=method.min_p,
            repetition_penalty=method.repetition_penalty,
            stop=method.stop,
        )
        noise = Noise((*self.noise_key, self.context.step))
        named = [(name, group.prompt_ids) for name, group in zip(noise_names(groups), groups, strict=True)]
        ends = end_tokens(self.model)
        if self.sampler is not None:
            seed = int(np.random.SeedSequence([*noise.key, self.context.rank]).generate_state(1)[0])
            self.sampler.update(self.model, self.context.step)
            answers = self.sampler.sample([ids for _, ids in named], sampling, ends, seed)
            policy: Any = self.model
            sampled = from_sampled(answers, len(named), sampling, policy.get_input_embeddings().weight.shape[0])
        else:
            with self.links.autocast():
                sampled = generate(
                    self.model, named, sampling, noise, ends, self.tokens_per_chunk, tokenizer=self.tokenizer
                )
        for group, completions in zip(groups, sampled, strict=True):
            group.completions = completions

    def _say_once(self, note: str) -> None:
        if note not in self._told:
            self._told.add(note)
            self.say(note)


class _Clock:
    """Seconds of each phase, as metrics."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def lap(self, phase: str) -> Metrics:
        now = time.perf_counter()
        seconds, self.start = now - self.start, now
        return {f"seconds/{phase}": (seconds, 1.0)}


def check_rollouts(groups: Rollouts, kl: tuple[float, float] | None, method: OnlineMethod, pool: Pool) -> None:
    """Stop a run that has nothing to learn from, or whose policy has run away; the same decision on every rank.

    Raises:
        GuardStop: naming what to look at.
    """
    rewards = [completion.reward for group in groups for completion in group.completions]
    mine = [float(len(rewards)), float(sum(reward is not None for reward in rewards)), *(kl or (0.0, 0.0))]
    total, known, distance, count = pool.gather(torch.tensor(mine, dtype=torch.float64)).reshape(-1, 4).sum(0).tolist()
    if total and not known:
        raise GuardStop(
            f"none of {total:.0f} completions has a reward",
            why="every reward function failed or said that it does not apply",
            fix="mend the reward or its server; the last checkpoint is good, resume from it",
        )
    limit: float | None = getattr(method, "max_kl", None)
    if limit is not None and count and not distance / count <= limit:
        raise GuardStop(
            f"the policy is {distance / count:.4g} nats per completion from its reference, the limit is {limit:.4g}",
            why="it has left the language it started with, and its rewards mean little",
            fix="lower the learning rate or raise the KL coefficient (beta, kl_coef), then resume from the last "
            "checkpoint; max_kl moves the limit",
        )


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
    metrics = {
        "completions/mean_length": (float(sum(lengths)), float(len(lengths))),
        "completions/clipped_ratio": (float(cut), float(len(lengths))),
        "completions/mean_terminated_length": (float(sum(ended)), float(len(ended))),
    }
    for kind, values in (("", lengths), ("terminated_", ended)):
        for name, value in (("min", min(values, default=0)), ("max", max(values, default=0))) if values else ():
            metrics[f"completions/{name}_{kind}length"] = (float(value), 1.0)
    return metrics


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
