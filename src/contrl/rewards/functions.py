"""Several reward functions as one reward: each keeps its name, its weight and its own scores.

The sum is over what applies. A score of ``None`` does not apply to the completion and is left out; a score that
could not be had (an exception, no answer in time, not a number) leaves the completion without a reward, because
counting it as 0 would punish an answer for a fault of the judge.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

from contrl.errors import UserError
from contrl.rewards.calling import Answer, Question, ScoreSettings, ask


@dataclass(frozen=True)
class RewardFunction:
    """A reward function with the name it is logged by and its weight in the sum; negative weights penalise."""

    name: str
    call: Callable[..., Any]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not callable(self.call):
            raise UserError(f"the reward {self.name} is {self.call!r}", fix="give a function, or an object that is one")
        if not math.isfinite(self.weight):
            raise UserError(f"the weight of the reward {self.name} is {self.weight}", fix="give a finite number")


class Rewards(Sequence[RewardFunction]):
    """Reward functions in order, unique by name; called, it is itself a reward, their weighted sum.

    Args:
        functions: at least one. The second of the same name becomes ``name_2``.
    """

    def __init__(self, functions: Iterable[RewardFunction]) -> None:
        self.functions = tuple(_uniquely_named(functions))
        if not self.functions:
            raise UserError("there is no reward function", fix="give at least one")

    @classmethod
    def of(cls, rewards: Sequence[Callable[..., Any]], weights: Sequence[float] | None = None) -> Rewards:
        """Functions with their own names; every weight is 1 unless ``weights`` says otherwise, one for each.

        Raises:
            UserError: when there are more or fewer weights than functions.
        """
        given = [1.0] * len(rewards) if weights is None else [float(weight) for weight in weights]
        if len(given) != len(rewards):
            raise UserError(f"there are {len(given)} weights for {len(rewards)} reward functions", fix="give one each")
        return cls(RewardFunction(name_of(call), call, weight) for call, weight in zip(rewards, given, strict=True))

    @overload
    def __getitem__(self, index: int) -> RewardFunction: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RewardFunction]: ...
    def __getitem__(self, index: int | slice) -> RewardFunction | Sequence[RewardFunction]:
        return self.functions[index]

    def __len__(self) -> int:
        return len(self.functions)

    @property
    def is_costly(self) -> bool:
        """Whether any of them is a model or a remote judge."""
        return any(getattr(function.call, "is_costly", False) for function in self.functions)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each function, by its name."""
        return {function.name: function.weight for function in self.functions}

    def total(self, answers: Sequence[Answer]) -> list[float | None]:
        """The weighted sum of each completion; None = it has no reward.

        That is where a function that counts failed, or where none of those that count applies. Functions of weight
        0 are watched and do not count, unless all have weight 0.
        """
        weighted = list(zip(self.functions, answers, strict=True))
        counted = [(function, answer) for function, answer in weighted if function.weight] or weighted
        totals: list[float | None] = []
        for position in range(len(answers[0].scores)):
            known = [
                (function.weight, score)
                for function, answer in counted
                if (score := answer.scores[position]) is not None
            ]
            failed = any(answer.errors[position] for _, answer in counted)
            totals.append(None if failed or not known else math.fsum(weight * score for weight, score in known))
        return totals

    def __call__(self, *, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """The contract of a reward; what the functions log is handed on. Raises UserError as ``ask`` does."""
        state, extra, metric = (columns.pop(name, None) for name in ("trainer_state", "log_extra", "log_metric"))
        ids = [str(value) for value in columns.get("id") or range(len(completions))]
        question = Question({"prompts": prompts, "completions": completions, **columns}, ids, "", state)
        answers = ask(self.functions, question, ScoreSettings())
        for answer in answers:
            for column, values in answer.extras.items() if extra else ():
                extra(column, values)
            for name, value in answer.metrics if metric else ():
                metric(name, value)
        return self.total(answers)


def as_rewards(reward: Callable[..., Any]) -> Rewards:
    """``reward`` as it is when it is several, else the only one, under its own name, with weight 1."""
    return reward if isinstance(reward, Rewards) else Rewards.of([reward])


def name_of(reward: Callable[..., Any]) -> str:
    """The name a reward is logged by: a function's own; of an object the last part of its ``name``, or its class.

    As in TRL, where a model is named by the last part of its path; a folder ``final`` has the name of its parent,
    since that is where every run leaves its model.
    """
    while isinstance(reward, functools.partial):
        reward = reward.func
    if isinstance(own := getattr(reward, "__name__", None), str):
        return own
    parts = [part for part in str(getattr(reward, "name", "")).replace("\\", "/").split("/") if part]
    if len(parts) > 1 and parts[-1] == "final":
        parts.pop()
    return parts[-1] if parts else type(reward).__name__


def _uniquely_named(functions: Iterable[RewardFunction]) -> list[RewardFunction]:
    taken: set[str] = set()
    unique = []
    for function in functions:
        name, number = function.name, 1
        while name in taken:
            number += 1
            name = f"{function.name}_{number}"
        taken.add(name)
        unique.append(RewardFunction(name, function.call, function.weight))
    return unique
