"""From sampled token ids to rewards: text in, one number per completion out, ``None`` = missing.

The reward belongs to the task, so a batch that mixes tasks (replay) is scored task by task. A task's metric judges
the same completions where that is cheap, so that a reward that rises while the metric falls can be seen.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from contrl.errors import EnvironmentFault, GuardStop, Interrupted, UserError
from contrl.interfaces import Completion, Group, Metric, Reward, Row, Task, TaskSequence
from contrl.rewards.calling import ARGUMENTS, Answer, Question, ScoreSettings, ask
from contrl.rewards.functions import Rewards, as_rewards

_STRICT = ScoreSettings()
_GO_ON = "mend the function, or go on without such scores: --reward_errors missing"


def text_of(group: Group, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The completions of a group as text, special tokens left out."""
    return [str(tokenizer.decode(completion.ids, skip_special_tokens=True)) for completion in group.completions]


def call_reward(
    reward: Reward,
    rows: Sequence[Row],
    completions: Sequence[str],
    where: str,
    *,
    completion_ids: Sequence[Sequence[int]] | None = None,
    settings: ScoreSettings = _STRICT,
    state: Any = None,
) -> list[float | None]:
    """Call a reward with TRL's contract and check its answer.

    Args:
        reward: a function, or several (``Rewards``).
        rows: the source row of each completion; every column of any of them is handed on as a list.
        completions: the texts.
        where: names the task in errors.
        completion_ids: the tokens of each completion, for rewards that read them.
        settings, state: see ``ScoreSettings``; ``trainer_state``.

    Returns:
        One number per completion; None where there is none.

    Raises:
        UserError: as ``contrl.rewards.calling.ask`` does.
    """
    question = ask_about(rows, completions, completion_ids, where, state)
    rewards = as_rewards(reward)
    return rewards.total(ask(rewards, question, settings))


def ask_about(
    rows: Sequence[Row],
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]] | None,
    where: str,
    state: Any = None,
) -> Question:
    """The question to reward functions; raises UserError when a column has the name of an argument of theirs."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in names}
    columns.pop("completion_ids", None)  # of a tokenized data set: the reward reads those that were sampled, as in TRL
    if clash := sorted(set(ARGUMENTS) & columns.keys()):
        raise UserError(
            f"the column {clash[0]} has the name of the reward's own argument", where=where, fix="rename it"
        )
    prompts = columns.pop("prompt", [None] * len(rows))
    answers: list[Any] = [
        [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text
        for prompt, text in zip(prompts, completions, strict=True)
    ]
    columns |= {"prompts": prompts, "completions": answers}
    if completion_ids is not None:
        columns["completion_ids"] = [list(ids) for ids in completion_ids]
    ids = [str(row.get("id", index)) for index, row in enumerate(rows)]
    return Question(columns, ids, where, state)


@dataclass
class ScoreReport:
    """What scoring a batch has to tell besides the rewards.

    Attributes:
        metrics: (sum, count) by name.
        extras: columns for the table of samples, one entry for each completion of the batch, group after group;
            None where a function gave none. ``<reward>_error`` says why a score could not be had.
        notes: lines to print once each.
    """

    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    extras: dict[str, list[Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def score_rollouts(
    groups: Sequence[Group],
    sequence: TaskSequence,
    tokenizer: PreTrainedTokenizerBase,
    *,
    settings: ScoreSettings = _STRICT,
    state: Any = None,
) -> ScoreReport:
    """Set ``scores`` and ``reward`` of every completion, each by its own task's reward functions.

    Args:
        groups: sampled groups; any order and any mix of tasks.
        sequence: the tasks.
        tokenizer: makes text of the completions.
        settings: what to do about rewards that fail.
        state: handed to the functions as ``trainer_state``.

    Raises:
        UserError: for a task without a reward, and as ``contrl.rewards.calling.ask`` does.
    """
    flat = [(group, completion) for group in groups for completion in group.completions]
    book = _Book(len(flat))
    for name in dict.fromkeys(group.task for group, _ in flat):
        places = [place for place, (group, _) in enumerate(flat) if group.task == name]
        task = sequence.task(name)
        rewards = as_rewards(require_reward(task))
        completions = [flat[place][1] for place in places]
        texts = [text for group in groups if group.task == name for text in text_of(group, tokenizer)]
        ids = [completion.ids for completion in completions]
        where = f"task {name}"
        question = ask_about([flat[place][0].row for place in places], texts, ids, where, state)
        answers = ask(rewards, replace(question, fix=_GO_ON), settings)
        _give(completions, rewards, answers)
        for function, answer in zip(rewards, answers, strict=True):
            book.add(function.name, answer, places, where)
            book.take_notes(function.call)
        if any(completion.reward is None for completion in completions):
            book.note(f"{where}: some completions have no reward; they teach nothing and are left out of every mean")
        if task.metric is not None:
            book.judge(task.metric, rewards, answers, question, settings)
    return book.report()


def require_reward(task: Task) -> Reward:
    """The task's reward, or an error that says it needs one."""
    if task.reward is None:
        raise UserError(
            "an online method needs a reward",
            where=f"task {task.name}",
            fix="give the task a reward: NAME or module:fn",
        )
    return task.reward


def _give(completions: Sequence[Completion], rewards: Rewards, answers: Sequence[Answer]) -> None:
    names = [function.name for function in rewards]
    for position, (completion, total) in enumerate(zip(completions, rewards.total(answers), strict=True)):
        completion.scores = {name: answer.scores[position] for name, answer in zip(names, answers, strict=True)}
        completion.reward = total


class _Book:
    """Collects what is reported; a reward of two tasks is one entry."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.scores: dict[str, list[float | None]] = defaultdict(list)
        self.metrics: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        self.extras: dict[str, list[Any]] = {}
        self.notes: list[str] = []

    def note(self, line: str) -> None:
        """A line that is the same whenever it is true, so that it is printed once."""
        if line not in self.notes:
            self.notes.append(line)

    def take_notes(self, call: Callable[..., Any]) -> None:
        """What the reward itself has to say (a judge whose budget is spent), which it says once."""
        notes = getattr(call, "notes", None)
        if isinstance(notes, list):
            for line in notes:
                self.note(str(line))
            notes.clear()

    def count(self, name: str, total: float, number: float) -> None:
        """Add to a metric."""
        before = self.metrics[name]
        self.metrics[name] = (before[0] + total, before[1] + number)

    def add(self, name: str, answer: Answer, places: Sequence[int], where: str) -> None:
        """What one function said of the completions at ``places``."""
        self.scores[name].extend(answer.scores)
        for metric, value in answer.metrics:
            self.count(metric, value, 1.0)
        columns: dict[str, list[Any]] = dict(answer.extras)
        if any(answer.errors):
            columns[f"{name}_error"] = [error or None for error in answer.errors]
            kinds = sorted({error.partition(":")[0] for error in answer.errors if error})
            self.note(
                f"{where}: some scores of {name} cannot be had ({', '.join(kinds)}): they are missing, not 0; "
                f"{name}_error in the samples says why"
            )
        for column, values in columns.items():
            kept = self.extras.setdefault(column, [None] * self.size)
            if any(kept[place] is not None for place in places):  # another function's column of this name
                kept = self.extras.setdefault(f"{name}/{column}", [None] * self.size)
            for place, value in zip(places, values, strict=True):
                kept[place] = value

    def judge(
        self, metric: Metric, rewards: Rewards, answers: Sequence[Answer], question: Question, settings: ScoreSettings
    ) -> None:
        """Count how many completions the metric calls correct, unless it is the reward itself, or dear.

        A metric only watches here: when it cannot judge these rows, that is noted and nothing stops.
        """
        score = metric.score
        if score is None or score is rewards or getattr(score, "is_costly", False):
            return
        if len(rewards) == 1 and rewards[0].call is score:
            return
        known = _known(score, rewards, answers)
        if known is None:
            lenient = ScoreSettings("missing", settings.seconds)
            try:
                judges = as_rewards(score)
                known = judges.total(ask(judges, question, lenient))
            except (EnvironmentFault, GuardStop, Interrupted):
                raise
            except UserError as error:
                self.note(f"{question.where}: {metric.name} cannot judge what is sampled in training: {error.what}")
                return
        found = [value for value in known if value is not None]
        correct = sum(value >= metric.correct_at for value in found)
        self.count(f"verifier/{metric.name}", float(correct), float(len(found)))

    def report(self) -> ScoreReport:
        """The metrics of all tasks together."""
        for name, scores in self.scores.items():
            known = [score for score in scores if score is not None]
            self.count(f"rewards/{name}/mean", math.fsum(known), float(len(known)))
            self.count(f"rewards/{name}/missing", float(len(scores) - len(known)), float(len(scores)))
            if len(known) > 1:
                mean = math.fsum(known) / len(known)
                deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in known) / (len(known) - 1))
                self.count(f"rewards/{name}/std", deviation, 1.0)
        return ScoreReport(dict(self.metrics), self.extras, self.notes)


def _known(score: Callable[..., Any], rewards: Rewards, answers: Sequence[Answer]) -> list[float | None] | None:
    """What the function already said, when it is one of the rewards."""
    return next((a.scores for f, a in zip(rewards, answers, strict=True) if f.call is score), None)
