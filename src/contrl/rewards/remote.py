"""Rewards from elsewhere: a reward model or any judge behind an OpenAI-style endpoint, and judges of pairs.

A score that cannot be had is missing (None): not 0, not a win, not a tie. How a judge is asked is ``Judge``'s affair;
here stands only what it is asked and what its answer means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from contrl.errors import UserError
from contrl.rewards.judge import Conversation, Judge, JudgeStats
from contrl.rewards.judge_address import NEMOTRON, NVIDIA_URL, judge_key
from contrl.rewards.replies import (
    GRADE_TEMPLATE,
    PAIR_TEMPLATE,
    as_text,
    check_template,
    conversation,
    fill,
    read_grade,
    read_reward,
    read_verdict,
)

__all__ = ["NEMOTRON", "NVIDIA_URL", "JudgeStats", "PairwiseJudge", "RemoteReward", "judge_key"]

KINDS = ("reward", "grade")


@dataclass(kw_only=True, eq=False)
class RemoteReward(Judge):
    """A reward that asks a remote model for each completion's score. ``Judge`` has the other fields.

    Args:
        kind: ``reward``: a reward model, which sees prompt and completion as a conversation and answers
            ``name:value``; ``grade``: any chat model, asked by the template for a grade from 0 to 10.
        attribute: which score of a reward model that answers with several.
        template: of ``grade``, with the places ``{prompt}`` and ``{completion}``.
        temperature: of ``grade``; None leaves it to the server, which some reasoning models insist on.
    """

    kind: str = "reward"
    attribute: str | None = None
    template: str = GRADE_TEMPLATE
    temperature: float | None = 0.0

    is_costly: ClassVar[bool] = True

    def __post_init__(self, api_key: str | None) -> None:
        if self.kind not in KINDS:
            raise UserError(f"a judge's kind is {self.kind!r}", fix=f"write one of {', '.join(KINDS)}")
        if self.kind == "grade":
            check_template(self.template, "prompt", "completion")
        super().__post_init__(api_key)

    def __call__(self, *, prompts: list, completions: list, **columns: list) -> list[float | None]:
        """One score per completion, None where none could be had.

        Prompts and completions are text or messages. Blocks until all are here; works inside an event loop as well.

        Raises:
            EnvironmentFault: no openai package, or the server refuses key, address or model.
            UserError: a prompt is missing, or the reply holds several scores and ``attribute`` chooses none.
        """
        read = partial(read_reward, attribute=self.attribute) if self.kind == "reward" else read_grade
        scores = self._ask_all(self._conversations(prompts, completions), read, self.kind, **self._options())
        log: Any = columns.get("log_metric")
        if scores and callable(log):
            log(f"{self.name}/missing", scores.count(None) / len(scores))
        return scores

    def estimate(self, prompts: Sequence[Any], completions: Sequence[Any]) -> tuple[int, int]:
        """Requests that these would need if none failed, and their tokens, estimated as a quarter of the characters.

        Equal texts count once, cached answers not at all; nothing is asked.
        """
        return self._cost(self._conversations(prompts, completions), self.kind, **self._options())

    def _conversations(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[Conversation]:
        pairs = zip(prompts, completions, strict=True)
        if self.kind == "reward":
            return [conversation(prompt, completion) for prompt, completion in pairs]
        return [
            fill(self.template, prompt=as_text(prompt, "user"), completion=as_text(completion, "assistant"))
            for prompt, completion in pairs
        ]

    def _options(self) -> dict[str, Any]:
        return {} if self.kind == "reward" or self.temperature is None else {"temperature": self.temperature}


@dataclass(kw_only=True, eq=False)
class PairwiseJudge(Judge):
    """Asks a chat model which of two completions is better, in both orders. ``Judge`` has the other fields.

    Args:
        template: with the places ``{prompt}``, ``{first}`` and ``{second}``; the reply is A, B or tie.
        temperature: None leaves it to the server.
    """

    template: str = PAIR_TEMPLATE
    temperature: float | None = 0.0

    def __post_init__(self, api_key: str | None) -> None:
        check_template(self.template, "prompt", "first", "second")
        super().__post_init__(api_key)

    def compare(self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> list[float | None]:
        """For each prompt 1 when the first completion is better, 0 when the second is, 0.5 for a tie, None if unknown.

        A judge that changes its mind with the order sees no difference: a tie. Equal completions are a tie without
        being asked. With only one of the two orders answered there is no verdict.
        """
        differ = [a != b for a, b in zip(first, second, strict=True)]
        verdicts = self._ask_all(self._conversations(prompts, first, second), read_verdict, "pair", **self._options())
        forth, back = iter(verdicts[::2]), iter(verdicts[1::2])
        return [_settled(next(forth), next(back)) if asked else 0.5 for asked in differ]

    def estimate(self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> tuple[int, int]:
        """As ``RemoteReward.estimate``: requests and tokens, without asking."""
        return self._cost(self._conversations(prompts, first, second), "pair", **self._options())

    def _conversations(self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> list[Conversation]:
        """Two questions for each pair that differs: as given, and turned round."""
        talks = []
        for prompt, *pair in zip(prompts, first, second, strict=True):
            if pair[0] != pair[1]:
                text, (a, b) = as_text(prompt, "user"), (as_text(each, "assistant") for each in pair)
                talks += [fill(self.template, prompt=text, first=a, second=b)]
                talks += [fill(self.template, prompt=text, first=b, second=a)]
        return talks

    def _options(self) -> dict[str, Any]:
        return {} if self.temperature is None else {"temperature": self.temperature}


def _settled(forth: float | None, back: float | None) -> float | None:
    if forth is None or back is None:
        return None
    return forth if forth == 1 - back else 0.5
