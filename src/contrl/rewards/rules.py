"""Rule rewards that need no model: agreement with the data, format, length, repetition.

Rules with parameters are frozen dataclasses whose instances are the reward, so ``length(target=20)`` can be written
in a configuration. Agreement is exact: nothing that a model wrote is ever evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from contrl.errors import UserError


def text_in(value: Any) -> str:
    """A completion as text: it is that, or messages, of which the last is taken."""
    return str(value[-1]["content"]) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def exact_match(*, completions: list, completion: list | None = None, **columns: Any) -> list[float | None]:
    """1 where the sampled completion equals the row's ``completion`` column, surrounding spaces aside; else 0.

    None (not applicable) for rows without that column. The column may hold text or messages.
    """
    return _agreement(completions, completion, "")


def think_format(*, completions: list, **columns: Any) -> list[float]:
    """1 where the completion opens with one ``<think>``, closes it, and never opens another; else 0.

    Reasoning and answer may be empty. Equal to TRL's ``think_format_reward``.
    """
    texts = [text_in(completion) for completion in completions]
    return [float(t.startswith("<think>") and t.count("<think>") == 1 and "</think>" in t) for t in texts]


@dataclass(frozen=True)
class Accuracy:
    """1 where the completion equals the row's column, surrounding spaces aside; else 0. None without the column.

    Attributes:
        column: holds the right answer, as text or messages.
        after: only what follows the last of this is compared, ``</think>`` for example; without it the answer is wrong.
    """

    name: ClassVar[str] = "accuracy"
    column: str = "solution"
    after: str = ""

    def __call__(self, *, completions: list, **columns: Any) -> list[float | None]:
        return _agreement(completions, columns.get(self.column), self.after)


@dataclass(frozen=True)
class Length:
    """Between 0 and 1, for longer completions, or for completions near a length.

    With n the length: n / (n + half) without a target; target / (target + |n - target|) with one, which is 1 at the
    target and 1/2 at twice of it. Both change with every unit, however long. Weight -1 rewards the opposite.

    Attributes:
        target: the wished length; None = the longer the better.
        unit: what is counted; tokens include the end-of-sequence token.
        half: without a target, the length that gets 1/2.
    """

    name: ClassVar[str] = "length"
    target: int | None = None
    unit: Literal["tokens", "characters", "words"] = "tokens"
    half: int = 100

    def __post_init__(self) -> None:
        if self.unit not in ("tokens", "characters", "words"):
            raise UserError(f"length counts {self.unit!r}", fix="unit is tokens, characters or words")
        _at_least(1, "length", target=self.target, half=self.half)

    def __call__(self, *, completions: list, completion_ids: list | None = None, **columns: Any) -> list[float]:
        if self.unit == "tokens":
            lengths = [len(ids) for ids in _tokens(self.name, completion_ids)]
        else:
            texts = [text_in(completion) for completion in completions]
            lengths = [len(text.split() if self.unit == "words" else text) for text in texts]
        if self.target is None:
            return [n / (n + self.half) for n in lengths]
        return [self.target / (self.target + abs(n - self.target)) for n in lengths]


@dataclass(frozen=True)
class Overlong:
    """0 up to ``max_length - cache`` tokens, from there falling to -1 at ``max_length``, and -1 beyond.

    DAPO's soft overlong punishment, arXiv:2503.14476, equation 13.

    Attributes:
        max_length: tokens.
        cache: tokens over which the punishment grows; 0 = it comes at once.
    """

    name: ClassVar[str] = "overlong"
    max_length: int
    cache: int

    def __post_init__(self) -> None:
        _at_least(1, "overlong", max_length=self.max_length)
        _at_least(0, "overlong", cache=self.cache)
        if self.cache > self.max_length:
            raise UserError(f"overlong: cache is {self.cache}", fix=f"it is at most max_length, {self.max_length}")

    def __call__(self, *, completion_ids: list | None = None, **columns: Any) -> list[float]:
        free = self.max_length - self.cache
        over = [len(ids) - free for ids in _tokens(self.name, completion_ids)]
        return [0.0 if n <= 0 else -1.0 if n >= self.cache else -n / self.cache for n in over]


@dataclass(frozen=True)
class Repetition:
    """``penalty`` times the share of n-grams of tokens that are repeats: 1 - different / all.

    A completion of fewer than n tokens gets 0. arXiv:2502.03373, appendix C.2.

    Attributes:
        ngram: tokens of an n-gram.
        penalty: of a completion that is all repeats; not positive.
    """

    name: ClassVar[str] = "repetition"
    ngram: int = 3
    penalty: float = -1.0

    def __post_init__(self) -> None:
        _at_least(1, "repetition", ngram=self.ngram)
        if not -math.inf < self.penalty <= 0:
            raise UserError(f"repetition: penalty is {self.penalty}", fix="it is 0 or below")

    def __call__(self, *, completion_ids: list | None = None, **columns: Any) -> list[float]:
        scores = []
        for ids in _tokens(self.name, completion_ids):
            grams = [tuple(ids[start : start + self.ngram]) for start in range(len(ids) - self.ngram + 1)]
            repeated = len(grams) - len(set(grams))
            scores.append(self.penalty * repeated / len(grams) if repeated else 0.0)
        return scores


@dataclass(frozen=True)
class Cosine:
    """Right answers are worth more when short, wrong ones cost less when long, along half a cosine wave.

    With p = tokens / max_length, at most 1, a right answer gets low + (high - low) (1 + cos(pi p)) / 2 between
    ``max_value_correct`` (empty) and ``min_value_correct`` (at max_length); a wrong one goes from ``min_value_wrong``
    to ``max_value_wrong``. None without a right answer to compare with. arXiv:2502.03373, appendix C.1. TRL's judges
    by symbolic mathematics, this one by ``Accuracy``.

    Attributes:
        max_length: tokens.
        column, after: as in ``Accuracy``.
    """

    name: ClassVar[str] = "cosine"
    max_length: int
    min_value_wrong: float = -1.0
    max_value_wrong: float = -0.5
    min_value_correct: float = 0.5
    max_value_correct: float = 1.0
    column: str = "solution"
    after: str = ""

    def __post_init__(self) -> None:
        _at_least(1, "cosine", max_length=self.max_length)

    def __call__(self, *, completions: list, completion_ids: list | None = None, **columns: Any) -> list[float | None]:
        right = _agreement(completions, columns.get(self.column), self.after)
        scores: list[float | None] = []
        for correct, ids in zip(right, _tokens(self.name, completion_ids), strict=True):
            begin, end = (
                (self.max_value_correct, self.min_value_correct)
                if correct
                else (self.min_value_wrong, self.max_value_wrong)
            )
            wave = (1 + math.cos(math.pi * min(len(ids) / self.max_length, 1.0))) / 2
            scores.append(None if correct is None else end + (begin - end) * wave)
        return scores


def _agreement(completions: list, wanted: list | None, after: str) -> list[float | None]:
    targets = wanted if wanted is not None else [None] * len(completions)
    scores: list[float | None] = []
    for completion, target in zip(completions, targets, strict=True):
        _, found, answer = text_in(completion).rpartition(after) if after else ("", "all", text_in(completion))
        scores.append(None if target is None else float(bool(found) and answer.strip() == text_in(target).strip()))
    return scores


def _tokens(name: str, completion_ids: list | None) -> list:
    if completion_ids is None:
        raise UserError(f"the reward {name} counts tokens and was given none", fix="pass completion_ids")
    return completion_ids


def _at_least(least: int, rule: str, **numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < least:
            raise UserError(f"{rule}: {name} is {number}", fix=f"it is at least {least}")
