"""What a reader must not miss: numbers that are none, cut answers, dead prompts, collapse, a gamed reward.

Each rule looks at the last third of a stage, or compares it with the first, and names stage and numbers. A rule that
has too little to look at says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import sqrt
from statistics import fmean, stdev

from contrl.continual.results import Results
from contrl.report.curves import Training

MAX_CUT, MAX_NO_SIGNAL = 0.05, 0.8
COLLAPSE = 0.2
"""Share of its first entropy below which a policy has stopped exploring."""
MIN_CHOSEN = -5.0
FEWEST = 6
"""Logged values a stage needs before its parts are compared."""
CLEAR = 2.0
"""Standard errors that make a difference of two parts a difference."""


def red_flags(results: Results, training: Training) -> list[str]:
    """Warnings in words, the gravest first; empty for a healthy run."""
    flags = [f"{count} values of {name} were not finite numbers" for name, count in training.not_finite.items()]
    for stage in sorted(training.starts):
        where = f"stage {stage}" + (f" ({results.rows[stage]})" if 0 < stage < len(results.rows) else "")
        flags.extend(f"{where}: {words}" for words in _stage_flags(training, stage))
    flags.extend(_cut_in_evaluation(results, training))
    return [*flags, *results.notes]


def _stage_flags(training: Training, stage: int) -> Iterator[str]:
    cut = _end(training.values("completions/clipped_ratio", stage))
    if cut is not None and cut > MAX_CUT:
        yield f"{cut:.0%} of the sampled answers were cut at the length limit"
    dead = _end(training.values("frac_reward_zero_std", stage))
    if dead is not None and dead > MAX_NO_SIGNAL:
        yield f"{dead:.0%} of the prompts had no signal: all their answers earned the same"
    # Only who samples explores; that a supervised model grows sure of its answers is the point of it.
    for name in ("entropy", "policy/entropy_avg") if training.values("reward", stage) else ():
        values = training.values(name, stage)
        if len(values) >= FEWEST and values[0] > 0 and fmean(values[-len(values) // 3 :]) < COLLAPSE * values[0]:
            yield f"entropy collapsed from {values[0]:.3g} to {values[-1]:.3g}: the policy hardly explores any more"
            break
    yield from _gamed(training, stage)
    chosen = _end(training.values("rewards/chosen", stage))
    if chosen is not None and chosen < MIN_CHOSEN:
        yield f"the chosen answers lost {-chosen:.3g} of implicit reward: the policy forgets good answers too"


def _gamed(training: Training, stage: int) -> Iterator[str]:
    rise = _move(training.values("reward", stage))
    for name in sorted(training.logged):
        fall = _move(training.values(name, stage)) if re.fullmatch(r"verifier/.+", name) else None
        if rise and fall and rise[0] > CLEAR * rise[1] and fall[0] < -CLEAR * fall[1]:
            yield (
                f"the reward rose by {rise[0]:.3g} while {name.removeprefix('verifier/')} of the same answers fell by "
                f"{-fall[0]:.3g}: the reward is being gamed"
            )


def _cut_in_evaluation(results: Results, training: Training) -> list[str]:
    """Answers cut while being judged: their score may be too low."""
    found = []
    for (stage, task, name), share in sorted(training.judged.items()):
        if name == "clipped" and share > MAX_CUT and stage < len(results.rows):
            found.append((share, f"{share:.0%} of the judged answers to {task} after {results.rows[stage]}"))
    if not found:
        return []
    worst = max(found)[1]
    more = f", and more than {MAX_CUT:.0%} in {len(found) - 1} other cells" if len(found) > 1 else ""
    return [f"{worst}{more} were cut at the length limit: their scores may be too low"]


def _end(values: list[float]) -> float | None:
    """Mean of the last third."""
    return fmean(values[-max(1, len(values) // 3) :]) if values else None


def _move(values: list[float]) -> tuple[float, float] | None:
    """(last third minus first third, its standard error); None when there is too little to tell."""
    size = len(values) // 3
    if len(values) < FEWEST or size < 2:
        return None
    first, last = values[:size], values[-size:]
    return fmean(last) - fmean(first), sqrt((stdev(first) ** 2 + stdev(last) ** 2) / size)
