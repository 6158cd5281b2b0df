"""How good a policy is at a task: completions judged by the task's metric, or teacher-forced likelihood.

Every item keeps its own score, because intervals, paired differences and "right before, wrong after" need them.
A score that cannot be had is missing: it leaves n and the mean, and is never a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from contrl.data.chat import encode_prompt, is_conversational, template_options
from contrl.data.formats import encode_row
from contrl.data.tokens import prepare_rows
from contrl.engine.batching import overhead, plan_passes, to_batch
from contrl.engine.forward import Routing, head_of, score_batch
from contrl.engine.lm_head import LMHead
from contrl.engine.reference_rows import ReferenceRows
from contrl.errors import UserError
from contrl.faults import reach
from contrl.interfaces import Batch, Completion, Group, Method, Metric, OnlineMethod, Outputs, Row, Task
from contrl.models.load import end_tokens
from contrl.models.modes import evaluating
from contrl.rollout.sampler import Noise, Sampling, generate
from contrl.rollout.score import call_reward


@dataclass(frozen=True)
class Item:
    """One evaluated row. ``score`` None = missing; ``extras`` is what else was measured on it.

    ``correct`` is None where the score is missing and where nothing says what is right (a log-probability).

    Of several samples ``completion`` is the first and ``score`` the mean of those that have one.
    """

    id: str
    prompt: str
    completion: str
    score: float | None
    correct: bool | None
    extras: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskScore:
    """A cell of the results matrix. ``value`` and ``se`` are None when no item has a score.

    ``extras`` are means of what else was measured, ``by_source`` the value of each source, where rows have several.
    """

    task: str
    metric: str
    value: float | None
    n: int
    se: float | None
    items: list[Item]
    extras: dict[str, float] = field(default_factory=dict)
    by_source: dict[str, float] = field(default_factory=dict)

    def beside(self) -> list[dict[str, Any]]:
        """Further metrics with ``metric``, ``value``, ``n`` and ``se``, each over the items that have it."""
        found = []
        for name in self.extras:
            values = [item.extras[name] for item in self.items if name in item.extras]
            mean, se = mean_and_error(values)
            found.append({"metric": name, "value": mean, "n": len(values), "se": se})
        return found


@dataclass(frozen=True)
class Settings:
    """How to evaluate.

    Attributes:
        max_new_tokens: the cap on completions; ``temperature`` 0 takes the likeliest token, ``seed`` is for others.
        num_samples: completions of each row; several need a temperature, and give ``pass@k``.
        tokens_per_chunk: how much is run at once.
        rank, world_size: which share of the items this rank takes.
        method: judges teacher-forced, where a task has neither metric nor reward; None takes the likelihood.
        start: what the run's first weights said of the rows, for methods that judge the change.
    """

    max_new_tokens: int
    tokens_per_chunk: int = 2**15
    rank: int = 0
    world_size: int = 1
    method: Method | None = None
    temperature: float = 0.0
    seed: int = 0
    start: ReferenceRows = field(default_factory=ReferenceRows)
    num_samples: int = 1

    def __post_init__(self) -> None:
        """Refuse several copies of one greedy answer."""
        if self.num_samples > 1 and self.temperature == 0:
            raise UserError(
                f"{self.num_samples} greedy answers to one prompt are all the same",
                where="evaluation.num_samples",
                fix="give evaluation.temperature, or take one sample",
            )


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
    items = in_order(_gather(score_share(model, tokenizer, task, settings), settings), task.eval)
    method = settings.method
    name = method.judged_by if method is not None and _is_judged(task, settings) else task.metric.name
    score = summarise(task.name, name, items)
    sources = [str(row.get("source", "")) for row in task.eval]
    for source in sorted(set(sources)) if len(set(sources)) > 1 else ():
        part = summarise("", "", [item for item, of in zip(items, sources, strict=True) if of == source])
        if part.value is not None:
            score.by_source[source] = part.value
    return score


def _is_judged(task: Task, settings: Settings) -> bool:
    """Whether the method scores this task itself: a task of samples has nothing to be judged by but its likelihood."""
    judges = settings.method is not None and not isinstance(settings.method, OnlineMethod)
    return judges and task.metric is not None and task.metric.score is None


def score_share(model: nn.Module, tokenizer: PreTrainedTokenizerBase, task: Task, settings: Settings) -> list[Item]:
    """The items of this rank's share of the eval rows: every ``world_size``-th, from ``rank`` on."""
    assert task.metric is not None
    rows = list(task.eval)[settings.rank :: settings.world_size]
    if not rows:
        return []
    with evaluating(model):
        if _is_judged(task, settings):
            return _judged(model, tokenizer, rows, settings)
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
    mean, se = mean_and_error(scores)
    names = sorted({name for item in items for name in item.extras})
    extras = {}
    for name in names:
        values = [item.extras[name] for item in items if name in item.extras]
        extras[name] = math.fsum(values) / len(values)
    return TaskScore(task, metric, mean, len(scores), se, items, extras)


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error of at least one value; a single one has no error that could be told."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


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
    prompts = [(str(row["id"]), encode_prompt(row["prompt"], tokenizer, **template_options(row))) for row in rows]
    number = settings.num_samples
    sampling = Sampling(settings.max_new_tokens, number, settings.temperature)
    noise = Noise((settings.seed,))
    sampled = generate(model, prompts, sampling, noise, end_tokens(model), settings.tokens_per_chunk)
    ids = [completion.ids for completions in sampled for completion in completions]
    texts = [str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in ids]
    asked = [row for row in rows for _ in range(number)]
    scores = call_reward(metric.score, asked, texts, f"the metric of task {where}", completion_ids=ids)
    return [
        _sampled_item(row, completions, texts[i * number], scores[i * number : (i + 1) * number], metric.correct_at)
        for i, (row, completions) in enumerate(zip(rows, sampled, strict=True))
    ]


def _sampled_item(
    row: Row, completions: Sequence[Completion], text: str, scores: Sequence[float | None], correct_at: float
) -> Item:
    """One row from the scores of its samples; those that are missing count in none of its numbers."""
    known = [score for score in scores if score is not None]
    mean = math.fsum(known) / len(known) if known else None
    extras = {"clipped": sum(not completion.ended for completion in completions) / len(completions)}
    if len(scores) > 1:
        extras |= pass_at_k(len(known), sum(score >= correct_at for score in known))
    correct = mean >= correct_at if mean is not None and math.isfinite(correct_at) else None
    return Item(str(row["id"]), _shown(row["prompt"]), text, mean, correct, extras)


def pass_at_k(num_samples: int, num_correct: int) -> dict[str, float]:
    """The chance that at least one of k answers is correct, for k = 1, 2, 4, ... up to the number of samples.

    Unbiased: of all choices of k of the n samples, the share that holds one of the c correct ones,
    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, Evaluating Large Language Models Trained on Code).
    """
    powers = [2**i for i in range(num_samples.bit_length())]
    wrong = num_samples - num_correct
    return {f"pass@{k}": 1 - math.comb(wrong, k) / math.comb(num_samples, k) for k in powers}


def _judged(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], settings: Settings
) -> list[Item]:
    """Teacher-forced: the rows' own completions, scored as the method says."""
    method = settings.method
    assert method is not None
    groups = _prepared(rows, method, tokenizer)
    found: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        for part, batch, out in _passes(model, groups, method, settings):
            if method.judges_change:
                batch.reference_logps = settings.start.find(batch)
            values = {name: value.tolist() for name, value in method.judge(out, batch).items()}
            for position, group in enumerate(part):
                found[group.row_id] = {name: float(value[position]) for name, value in values.items()}
    items = []
    for group in groups:
        # Not a number is a score that cannot be had.
        values_of = {name: value for name, value in found[group.row_id].items() if math.isfinite(value)}
        right = values_of.get(method.correct_by or "")
        score = values_of.pop(method.judged_by, None)
        correct = None if right is None or score is None else right == 1
        items.append(Item(group.row_id, _shown(_asked(group.row)), "", score, correct, values_of))
    return items


def _prepared(rows: Sequence[Row], method: Method, tokenizer: PreTrainedTokenizerBase) -> list[Group]:
    """Every row as a group, from the cache after the first stage; raises the UserError of one that cannot be used."""
    groups = []
    for made in prepare_rows(rows, method, tokenizer):
        if isinstance(made, UserError):
            raise made
        groups.append(made)
    return groups


def _passes(
    model: nn.Module, groups: list[Group], method: Method, settings: Settings
) -> Iterator[tuple[list[Group], Batch, Outputs]]:
    needs, device = frozenset(method.needs), next(model.parameters()).device
    head, routing = head_of(model, needs), Routing("plain", method.temperature, needs)
    for part in plan_passes(groups, settings.tokens_per_chunk, layout="plain", overhead=overhead(device)):
        batch = to_batch(part, device)
        yield part, batch, Outputs(**score_batch(model, head, batch, routing))


def remember_start(model: nn.Module, tokenizer: PreTrainedTokenizerBase, task: Task, settings: Settings) -> None:
    """Put into ``settings.start`` what ``model``, with the run's first weights, says of the task's eval rows.

    Only this rank's share, and only for a method that judges the change; rows that are known already are left.
    """
    method = settings.method
    if method is None or not method.judges_change or not _is_judged(task, settings):
        return
    rows = list(task.eval)[settings.rank :: settings.world_size]
    unknown = settings.start.missing(_prepared(rows, method, tokenizer))
    with evaluating(model), torch.no_grad():
        for _, batch, out in _passes(model, unknown, method, settings):
            settings.start.add(batch, out.logps)


def _likelihood(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], settings: Settings
) -> list[Item]:
    groups = []
    for row in rows:
        encoded = encode_row(row, tokenizer)
        completion = Completion(encoded.completion_ids, encoded.trained)
        groups.append(Group(str(row["id"]), "", encoded.prompt_ids, [completion], row))
    head, device = LMHead(model), next(model.parameters()).device
    items: dict[str, Item] = {}
    with torch.no_grad():
        for part in plan_passes(groups, settings.tokens_per_chunk):
            batch = to_batch(part, device)
            outputs = score_batch(model, head, batch, Routing("plain", needs=frozenset({"policy_logps", "correct"})))
            sums, tokens = outputs["logps"].sum(-1).tolist(), batch.mask.sum(-1).tolist()
            for group, total, right, n in zip(part, sums, outputs["correct"].sum(-1).tolist(), tokens, strict=True):
                # A row of one token has nothing to predict and so no score.
                extras = {"loss": -total / n, "token_accuracy": right / n, "exact": float(right == n)} if n else {}
                score, correct = (total / n, right == n) if n else (None, None)
                items[group.row_id] = Item(group.row_id, _shown(_asked(group.row)), "", score, correct, extras)
    return [items[group.row_id] for group in groups]


def _asked(row: Row) -> Any:
    return next((row[name] for name in ("prompt", "messages", "text", "chosen") if row.get(name) is not None), "")


def _shown(prompt: Any) -> str:
    if not is_conversational(prompt):
        return str(prompt)
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
