"""How good a policy is at a task: greedy completions judged by the task's metric, or teacher-forced likelihood.

Every item keeps its own score, because intervals, paired differences and "right before, wrong after" need them.
A score that cannot be had is missing: it leaves n and the mean, and is never a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from contrl.data.chat import encode_prompt, is_conversational
from contrl.data.formats import encode_row
from contrl.engine.batching import plan_passes, to_batch
from contrl.engine.forward import Routing, score_batch
from contrl.engine.lm_head import LMHead
from contrl.errors import UserError
from contrl.faults import reach
from contrl.interfaces import Completion, Group, Metric, Row, Task
from contrl.models.load import end_tokens
from contrl.models.modes import evaluating
from contrl.rollout.sampler import Noise, Sampling, generate
from contrl.rollout.score import call_reward


@dataclass(frozen=True)
class Item:
    """One evaluated row. ``score`` None = missing."""

    id: str
    prompt: str
    completion: str
    score: float | None
    correct: bool


@dataclass(frozen=True)
class TaskScore:
    """A cell of the results matrix. ``value`` and ``se`` are None when no item has a score."""

    task: str
    metric: str
    value: float | None
    n: int
    se: float | None
    items: list[Item]


@dataclass(frozen=True)
class Settings:
    """How to evaluate: the cap on completions, rows side by side, and which share of the items this rank takes."""

    max_new_tokens: int
    tokens_per_chunk: int = 2**15
    rank: int = 0
    world_size: int = 1


def evaluate_task(model: nn.Module, tokenizer: PreTrainedTokenizerBase, task: Task, settings: Settings) -> TaskScore:
    """Score ``model`` on the task's eval rows.

    Raises:
        UserError: when the task has no eval rows or no metric.
    """
    if not task.eval:
        raise UserError("there are no evaluation rows", where=f"task {task.name}", fix="give eval_data or eval_size")
    if task.metric is None:
        raise UserError("there is no metric", where=f"task {task.name}", fix="give the task a metric or a reward")
    reach("evaluation")
    items = score_share(model, tokenizer, task, settings)
    return summarise(task.name, task.metric.name, in_order(_gather(items, settings), task.eval))


def score_share(model: nn.Module, tokenizer: PreTrainedTokenizerBase, task: Task, settings: Settings) -> list[Item]:
    """The items of this rank's share of the eval rows: every ``world_size``-th, from ``rank`` on."""
    assert task.metric is not None
    rows = list(task.eval)[settings.rank :: settings.world_size]
    if not rows:
        return []
    with evaluating(model):
        if task.metric.score is None:
            return _likelihood(model, tokenizer, rows, settings)
        return _generation(model, tokenizer, task.metric, rows, settings, task.name)


def in_order(shares: Sequence[list[Item]], rows: Sequence[Row]) -> list[Item]:
    """The items of all ranks, one for each row, in the order of the rows."""
    by_id = {item.id: item for share in shares for item in share}
    return [by_id[str(row["id"])] for row in rows]


def summarise(task: str, metric: str, items: list[Item]) -> TaskScore:
    """Mean and standard error over the items that have a score."""
    scores = [item.score for item in items if item.score is not None]
    if not scores:
        return TaskScore(task, metric, None, 0, None, items)
    mean = math.fsum(scores) / len(scores)
    se = None
    if len(scores) > 1:
        se = math.sqrt(math.fsum((s - mean) ** 2 for s in scores) / (len(scores) - 1) / len(scores))
    return TaskScore(task, metric, mean, len(scores), se, items)


def _gather(items: list[Item], settings: Settings) -> list[list[Item]]:
    if settings.world_size == 1:
        return [items]
    everyone: list[list[Item]] = [[] for _ in range(settings.world_size)]
    torch.distributed.all_gather_object(everyone, items)
    return everyone


def _generation(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    metric: Metric,
    rows: Sequence[Row],
    settings: Settings,
    where: str,
) -> list[Item]:
    assert metric.score is not None
    unasked = [str(row["id"]) for row in rows if row.get("prompt") is None]
    if unasked:
        raise UserError(
            f"row {unasked[0]} has no prompt to complete",
            where=f"task {where}",
            fix=f"give every row a `prompt`, or judge the task by logp instead of {metric.name}",
        )
    prompts = [(str(row["id"]), encode_prompt(row["prompt"], tokenizer)) for row in rows]
    sampling = Sampling(settings.max_new_tokens, temperature=0.0)
    sampled = generate(model, prompts, sampling, Noise((0,)), end_tokens(model), settings.tokens_per_chunk)
    texts = [str(tokenizer.decode(completions[0].ids, skip_special_tokens=True)) for completions in sampled]
    scores = call_reward(metric.score, rows, texts, f"the metric of task {where}")
    return [
        Item(str(row["id"]), _shown(row["prompt"]), text, score, score is not None and score >= metric.correct_at)
        for row, text, score in zip(rows, texts, scores, strict=True)
    ]


def _likelihood(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], settings: Settings
) -> list[Item]:
    groups = []
    for row in rows:
        encoded = encode_row(row, tokenizer)
        completion = Completion(encoded.completion_ids, encoded.trained)
        groups.append(Group(str(row["id"]), "", encoded.prompt_ids, [completion], row))
    head, device = LMHead(model), next(model.parameters()).device
    values: dict[str, float | None] = {}
    with torch.no_grad():
        for part in plan_passes(groups, settings.tokens_per_chunk):
            batch = to_batch(part, device)
            logps = score_batch(model, head, batch, Routing("plain"))["logps"]
            sums, tokens = logps.sum(-1).tolist(), batch.mask.sum(-1).tolist()
            # A row of one token has nothing to predict and so no score.
            values |= {g.row_id: total / n if n else None for g, total, n in zip(part, sums, tokens, strict=True)}
    return [Item(g.row_id, _shown(_asked(g.row)), "", values[g.row_id], False) for g in groups]


def _asked(row: Row) -> Any:
    return next((row[name] for name in ("prompt", "messages", "text") if row.get(name) is not None), "")


def _shown(prompt: Any) -> str:
    if not is_conversational(prompt):
        return str(prompt)
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
