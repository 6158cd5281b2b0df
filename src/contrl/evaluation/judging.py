"""Who says which of two answers is better: something that scores each one, or a judge that sees both.

A score is asked for once. Those of local judges are kept here by content, in portions that do not depend on what is
kept already; a remote judge keeps its own answers. Equal texts get one score, so equal answers are an exact tie.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from contrl.errors import UserError
from contrl.evaluation.answers import Answer, as_plain
from contrl.evaluation.kept import Kept, key_of
from contrl.evaluation.statistics import Verdict, verdict, verdict_of_pair
from contrl.faults import reach
from contrl.interfaces import Reward, Row
from contrl.rollout.score import call_reward

PORTION = 64
"""Answers that are scored, and kept, together."""

Judged = tuple[Verdict, float | None, float | None]
"""The verdict, the model's score and the reference's."""


class WhoJudges(Protocol):
    """A judge of answers to the same prompts.

    Attributes:
        name: what it is, for people and files.
    """

    name: str

    def check(self, rows: Sequence[Row]) -> None:
        """Refuse, before anything is answered, rows that cannot be judged. Raises UserError."""

    def compare(self, rows: Sequence[Row], ours: Sequence[Answer], theirs: Sequence[Answer]) -> list[Judged]:
        """A verdict for each row."""

    def cost(self, rows: Sequence[Row], ours: Sequence[Answer], theirs: Sequence[Answer]) -> tuple[int, int] | None:
        """Requests and tokens still to be paid for; None when it asks nobody."""


@dataclass
class Scorer:
    """Judges by a score of each answer: a reward model, a verifier, any reward function.

    Attributes:
        name: see ``WhoJudges``.
        reward: the function.
        identity: what its scores depend on besides the answer.
        kept: where its scores are kept; None for a judge that keeps its own.
        tie_margin: scores that differ by no more are a tie.
    """

    name: str
    reward: Reward
    identity: str = ""
    kept: Kept | None = None
    tie_margin: float = 0.0

    def check(self, rows: Sequence[Row]) -> None:
        """Tries a function on an empty answer, which shows whether the rows have the columns it needs."""
        if self.kept is None or getattr(self.reward, "is_costly", False):
            return
        try:
            self._ask(rows[:1], [Answer("", [], True)])
        except UserError as error:
            # What the function's own code makes of an empty answer is no fault of the rows.
            if error.__cause__ is None or isinstance(error.__cause__, UserError):
                raise

    def compare(self, rows: Sequence[Row], ours: Sequence[Answer], theirs: Sequence[Answer]) -> list[Judged]:
        """Scores both sides together, so that equal answers have equal scores.

        Raises:
            UserError: the function failed, or needs a column that the rows do not have.
            EnvironmentFault: a remote judge refuses key, address or model.
        """
        scores = self._scores([*rows, *rows], [*ours, *theirs])
        pairs = zip(scores[: len(rows)], scores[len(rows) :], strict=True)
        return [(verdict(a, b, self.tie_margin), a, b) for a, b in pairs]

    def cost(self, rows: Sequence[Row], ours: Sequence[Answer], theirs: Sequence[Answer]) -> tuple[int, int] | None:
        """As ``WhoJudges``."""
        estimate = getattr(self.reward, "estimate", None)
        if not callable(estimate):
            return None
        prompts = [row["prompt"] for row in rows]
        calls, tokens = estimate([*prompts, *prompts], [answer.text for answer in [*ours, *theirs]])
        return calls, tokens

    def _scores(self, rows: Sequence[Row], answers: Sequence[Answer]) -> list[float | None]:
        pairs = zip(rows, answers, strict=True)
        keys = [key_of(self.identity, dict(row), answer.text, len(answer.ids)) for row, answer in pairs]
        asked = {key: place for place, key in reversed(list(enumerate(keys)))}
        places = sorted(asked.values())
        found: dict[str, float | None] = {}
        size = PORTION if self.kept is not None else max(1, len(places))
        for start in range(0, len(places), size):
            portion = places[start : start + size]
            due = [place for place in portion if self.kept is None or keys[place] not in self.kept]
            if due:
                reach("evaluation")
                given = self._ask([rows[place] for place in due], [answers[place] for place in due])
                scored = {keys[place]: score for place, score in zip(due, given, strict=True)}
                reach("saving")
                if self.kept is not None:
                    self.kept.add(scored)
                found |= scored
        return [found[key] if key in found or self.kept is None else self.kept[key] for key in keys]

    def _ask(self, rows: Sequence[Row], answers: Sequence[Answer]) -> list[float | None]:
        texts, ids = [answer.text for answer in answers], [answer.ids for answer in answers]
        return call_reward(self.reward, rows, texts, f"judged by {self.name}", completion_ids=ids)


@dataclass
class InPlainText:
    """A reward that is shown text whatever the data hold: for a classifier that knows no conversation."""

    reward: Reward
    is_costly: ClassVar[bool] = True

    def __call__(self, *, prompts: list, completions: list, **columns: list) -> Sequence[float | None]:
        """Messages become their text, a single one without its role; a blank line stands before the answer."""
        asked = [prompt if isinstance(prompt, str) else f"{as_plain(prompt)}\n\n" for prompt in prompts]
        given = [text if isinstance(text, str) else str(text[-1]["content"]) for text in completions]
        return self.reward(prompts=asked, completions=given, **columns)


class JudgeOfPairs(Protocol):
    """What ``PairJudge`` asks: ``contrl.rewards.remote.PairwiseJudge``."""

    def compare(self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> list[float | None]:
        """1 = the first is better, 0 = the second, 0.5 = neither, None = unknown."""

    def estimate(self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> tuple[int, int]:
        """Requests and tokens."""


@dataclass
class PairJudge:
    """Judges by asking which answer is better, in both orders; it gives no scores."""

    name: str
    judge: JudgeOfPairs

    def check(self, rows: Sequence[Row]) -> None:
        """As ``WhoJudges``: a prompt is all it needs."""

    def compare(self, rows: Sequence[Row], ours: Sequence[Answer], theirs: Sequence[Answer]) -> list[Judged]:
        """As ``WhoJudges``; raises EnvironmentFault when the judge refuses key, address or model."""
        reach("evaluation")
        given = self.judge.compare(*_asked(rows, ours, theirs))
        return [(verdict_of_pair(preference), None, None) for preference in given]

    def cost(self, rows: Sequence[Row], ours: Sequence[Answer], theirs: Sequence[Answer]) -> tuple[int, int] | None:
        """As ``WhoJudges``."""
        return self.judge.estimate(*_asked(rows, ours, theirs))


def _asked(
    rows: Sequence[Row], ours: Sequence[Answer], theirs: Sequence[Answer]
) -> tuple[list[Any], list[str], list[str]]:
    return [row["prompt"] for row in rows], [one.text for one in ours], [one.text for one in theirs]


def identity_of(call: Callable[..., Any], name: str) -> str:
    """A function's name and its source, so that a changed function is not taken for what it was."""
    try:
        source = inspect.getsource(call if inspect.isroutine(call) or inspect.isclass(call) else type(call))
    except (OSError, TypeError):
        source = ""
    plain = (str, int, float, bool, tuple, type(None))
    fields = {field: value for field, value in getattr(call, "__dict__", {}).items() if isinstance(value, plain)}
    return f"{name} {hashlib.sha256(source.encode()).hexdigest()[:16]} {fields}"
