"""The sampler as another program: what it is asked, what it answers, and the answer as completions, checked.

Token ids go in; ids, log-probabilities, the reason of the end and the version of the weights come out. That is what
vLLM and its kin can say, so an adapter is one short class. Another program rounds differently, so its log-probabilities
are kept as ``sampler_logps`` only; the engine computes ``old_logps`` itself and weighs the difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from contrl.errors import UserError
from contrl.interfaces import Completion
from contrl.rollout.choose import Sampling

Finish = Literal["eos", "stop", "length"]
FINISHES = ("eos", "stop", "length")
_WHERE = "the answer of the sampler"
_ROUNDING = 1e-3  # a log-probability of a program that rounds may lie this much above 0


@dataclass(frozen=True)
class Sampled:
    """One completion as a sampler answers it.

    Attributes:
        ids: tokens, the end token or the tokens of the stop text included.
        logps: log-probability of each under the distribution it was drawn from: after temperature and processors.
        finish: "eos" = an end token of the model, "stop" = a stop text or stop token, "length" = cut at the limit.
        version: of the weights that drew it, as ``update`` was told.
    """

    ids: list[int]
    logps: list[float]
    finish: Finish
    version: int


class Sampler(Protocol):
    """A program that samples with a copy of the policy's weights."""

    def update(self, model: Any, version: int) -> None:
        """Take over the weights of ``model`` (unwrapped; under LoRA a PEFT model), called before each window."""

    def sample(
        self, prompts: Sequence[list[int]], sampling: Sampling, eos_ids: Sequence[int], seed: int
    ) -> Sequence[Sequence[Sampled]]:
        """``sampling.samples_per_prompt`` answers for each prompt, in order. Equal seeds should repeat the answers."""


def from_sampled(
    answers: Sequence[Sequence[Sampled]], num_prompts: int, sampling: Sampling, vocabulary: int
) -> list[list[Completion]]:
    """A sampler's answers as completions, like those of ``generate``; ``old_logps`` are None.

    Args:
        answers: for each prompt its answers.
        num_prompts: how many were asked.
        sampling: what was asked.
        vocabulary: number of tokens of the policy.

    Raises:
        UserError: when the number of answers, their lengths, ids, log-probabilities or reasons cannot be right.
    """
    if len(answers) != num_prompts:
        raise UserError(f"there are {len(answers)} answers to {num_prompts} prompts", where=_WHERE)
    results = []
    for number, group in enumerate(answers):
        where = f"{_WHERE} to prompt {number}"
        if len(group) != sampling.samples_per_prompt:
            raise UserError(f"{len(group)} samples came and {sampling.samples_per_prompt} were asked for", where=where)
        for answer in group:
            _check(answer, sampling.max_new_tokens, vocabulary, where)
        results.append(
            [
                Completion(list(a.ids), ended=a.finish != "length", sampler_logps=[min(x, 0.0) for x in a.logps])
                for a in group
            ]
        )
    return results


def _check(answer: Sampled, limit: int, vocabulary: int, where: str) -> None:
    if not 1 <= len(answer.ids) <= limit:
        raise UserError(f"a completion has {len(answer.ids)} tokens, not 1 to {limit}", where=where)
    if len(answer.logps) != len(answer.ids):
        raise UserError(f"there are {len(answer.logps)} log-probabilities for {len(answer.ids)} tokens", where=where)
    if strange := [token for token in answer.ids if not 0 <= token < vocabulary]:
        raise UserError(
            f"token {strange[0]} is none of the policy's {vocabulary}",
            where=where,
            why="sampler and trainer have different models or tokenizers",
        )
    if wrong := [logp for logp in answer.logps if not math.isfinite(logp) or logp > _ROUNDING]:
        raise UserError(f"{wrong[0]} is no log-probability", where=where)
    if answer.finish not in FINISHES:
        raise UserError(f"the reason {answer.finish!r} is unknown", where=where, fix=f"give {', '.join(FINISHES)}")


def finish_of(completion: Completion, eos_ids: Sequence[int]) -> Finish:
    """Why a completion of ``generate`` ended."""
    if not completion.ended:
        return "length"
    return "eos" if completion.ids[-1] in eos_ids else "stop"
