"""From judged prompts to win rate and its companions, each with an interval over prompts.

Every number is a ratio of two sums over prompts, so one bootstrap serves all: whole prompts are drawn again, with both
answers and both scores, and with what is missing. A prompt without a score counts in no rate and in no mean reward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Verdict = Literal["win", "tie", "loss", "missing"]

RESAMPLES = 10_000
"""Bootstrap samples behind an interval."""
LEVEL = 0.95
_NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Comparison:
    """One prompt: how both answers were judged, and their lengths.

    Attributes:
        verdict: of the model against the reference.
        score, reference_score: None where the judge gives none of its own (a judge of pairs), or it could not be had.
        words, reference_words, tokens, reference_tokens: lengths; the end token is not counted.
    """

    verdict: Verdict
    score: float | None
    reference_score: float | None
    words: int
    reference_words: int
    tokens: int
    reference_tokens: int


def verdict(score: float | None, reference_score: float | None, tie_margin: float = 0.0) -> Verdict:
    """A win is strict: better by more than ``tie_margin``; without both scores there is no verdict."""
    if score is None or reference_score is None or not math.isfinite(score - reference_score):
        return "missing"
    difference = score - reference_score
    if abs(difference) <= tie_margin:
        return "tie"
    return "win" if difference > 0 else "loss"


def verdict_of_pair(preference: float | None) -> Verdict:
    """The verdict of a judge of pairs: 1 = the model's answer is better, 0 = the reference's, 0.5 = neither."""
    if preference is None:
        return "missing"
    return "tie" if preference == 0.5 else "win" if preference > 0.5 else "loss"


def summarise(compared: Sequence[Comparison], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Metrics and their 95 % intervals, ``NAME`` and ``NAME_ci: [low, high]``.

    Rates and rewards are over the prompts with a verdict (``num_scored``), lengths over all. A number that does not
    exist is None: a rate when nothing was judged, a reward when the judge gives no scores, an interval of fewer than
    two prompts. ``missing`` counts prompts: num_wins + num_ties + num_losses + missing = num_prompts.
    """
    terms = _terms(compared)
    weights_of_one = np.ones((1, len(compared)))
    values = {name: _ratios(weights_of_one, *term)[0] for name, term in terms.items()}
    intervals = _intervals(terms, len(compared), seed, resamples)
    found: dict[str, Any] = {}
    for name, value in values.items():
        found[name] = None if math.isnan(value) else float(value)
        found[f"{name}_ci"] = intervals[name] if found[name] is not None else None
    # The difference of the two means shown, to the last digit.
    if found["avg_reward"] is not None:
        found["reward_improvement"] = found["avg_reward"] - found["avg_reference_reward"]
    found["missing"] = round(found["missing"] or 0)
    counts = {name: sum(c.verdict == kind for c in compared) for name, kind in _COUNTED.items()}
    num_scored = len(compared) - found["missing"]
    return found | counts | {"num_prompts": len(compared), "num_scored": num_scored}


_COUNTED: dict[str, Verdict] = {"num_wins": "win", "num_ties": "tie", "num_losses": "loss"}


def _terms(compared: Sequence[Comparison]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (numerator, denominator) of each prompt; the metric is the ratio of their sums."""

    def column(values: Any) -> np.ndarray:
        return np.array([float(value) for value in values], dtype=np.float64)

    def is_(kind: Verdict) -> np.ndarray:
        return column(c.verdict == kind for c in compared)

    win, tie, loss, ones = is_("win"), is_("tie"), is_("loss"), np.ones(len(compared))
    judged = win + tie + loss
    rewarded = column(
        c.verdict != "missing" and c.score is not None and c.reference_score is not None for c in compared
    )
    pairs = [((c.score or 0.0), (c.reference_score or 0.0)) for c in compared]
    reward, reference = column(a for a, _ in pairs) * rewarded, column(b for _, b in pairs) * rewarded
    words, reference_words = column(c.words for c in compared), column(c.reference_words for c in compared)
    tokens, reference_tokens = column(c.tokens for c in compared), column(c.reference_tokens for c in compared)
    return {
        "win_rate": (win, judged),
        "tie_rate": (tie, judged),
        "loss_rate": (loss, judged),
        "missing": ((1 - judged) * len(compared), ones),
        "win_rate_ties_half": (win + tie / 2, judged),
        "avg_reward": (reward, rewarded),
        "avg_reference_reward": (reference, rewarded),
        "reward_improvement": (reward - reference, rewarded),
        "avg_model_length": (words, ones),
        "avg_ref_length": (reference_words, ones),
        "length_ratio": (words, reference_words),
        "avg_model_tokens": (tokens, ones),
        "avg_ref_tokens": (reference_tokens, ones),
        "length_ratio_tokens": (tokens, reference_tokens),
    }


def _ratios(weights: np.ndarray, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """``[B]`` ratios of weighted sums from ``[B, N]`` weights; NaN where the denominator is 0."""
    # einsum and not a matrix product: the same sums on any number of threads.
    above, below = (np.einsum("bn,n->b", weights, column) for column in (numerator, denominator))
    return np.divide(above, below, out=np.full(len(weights), np.nan), where=below > 0)


def _intervals(
    terms: dict[str, tuple[np.ndarray, np.ndarray]], number: int, seed: int, resamples: int
) -> dict[str, list[float] | None]:
    """Percentile intervals of a paired bootstrap (Efron & Tibshirani 1993, chapter 13)."""
    if number < 2:
        return dict.fromkeys(terms)
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in terms}
    left = resamples
    while left > 0:
        size = max(1, min(left, _NUMBERS_AT_ONCE // number))
        weights = generator.multinomial(number, np.full(number, 1 / number), size=size).astype(np.float64)
        for name, term in terms.items():
            drawn[name].append(_ratios(weights, *term))
        left -= size
    found: dict[str, list[float] | None] = {}
    for name, parts in drawn.items():
        ratios = np.concatenate(parts)
        known = ratios[~np.isnan(ratios)]  # a sample without any judged prompt says nothing
        bounds = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(known) else None
        judged = len(known) and terms[name][1].astype(bool).sum() > 1
        found[name] = [float(bound) for bound in bounds] if bounds is not None and judged else None
    return found
