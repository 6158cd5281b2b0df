"""The arithmetic of win rates: what counts where, what is missing, and intervals that can be checked by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrl.evaluation.statistics import Comparison, Verdict, summarise, verdict, verdict_of_pair
from contrl.evaluation.win_rate import conclusion

RATES = ("win_rate", "tie_rate", "loss_rate")
SCORES = st.none() | st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0])


def scored(a: float | None, b: float | None, words: int = 3, reference_words: int = 4) -> Comparison:
    return Comparison(verdict(a, b), a, b, words, reference_words, 2 * words, 2 * reference_words)


@pytest.mark.parametrize(
    ("score", "reference", "margin", "expected"),
    [
        (1.0, 0.0, 0.0, "win"),
        (0.0, 1.0, 0.0, "loss"),
        (-14.25, -14.25, 0.0, "tie"),
        (0.05, 0.0, 0.1, "tie"),
        (0.25, 0.0, 0.25, "tie"),
        (0.5, 0.0, 0.25, "win"),
        (None, -3.0, 0.0, "missing"),
        (-3.0, None, 9.0, "missing"),
        (math.nan, 0.0, 0.0, "missing"),
        (math.inf, math.inf, 0.0, "missing"),
    ],
)
def test_verdicts(score: float | None, reference: float | None, margin: float, expected: str) -> None:
    assert verdict(score, reference, margin) == expected


def test_verdicts_of_pairs() -> None:
    assert [verdict_of_pair(p) for p in (1.0, 0.5, 0.0, None)] == ["win", "tie", "loss", "missing"]


def test_every_number_by_hand() -> None:
    """Two wins, a tie, a loss, one missing on the reference's side: rates over 4, lengths over all 5.

    Rewards: (1 + 2 + 0 + 0) / 4 = 0.75 against (0 + 1 + 0 + 3) / 4 = 1; words 15 / 20; wins + half the ties 2.5 / 4.
    """
    found = summarise([scored(*pair) for pair in [(1, 0), (2, 1), (0, 0), (0, 3), (9, None)]])
    assert [found[f"num_{kind}"] for kind in ("wins", "ties", "losses", "prompts", "scored")] == [2, 1, 1, 5, 4]
    assert [found[name] for name in RATES] == [0.5, 0.25, 0.25]
    assert (found["missing"], found["win_rate_ties_half"]) == (1, 0.625)
    assert (found["avg_reward"], found["avg_reference_reward"], found["reward_improvement"]) == (0.75, 1.0, -0.25)
    assert (found["avg_model_length"], found["avg_ref_length"], found["length_ratio"]) == (3.0, 4.0, 0.75)
    assert (found["avg_model_tokens"], found["avg_ref_tokens"], found["length_ratio_tokens"]) == (6.0, 8.0, 0.75)


@settings(max_examples=30, deadline=None)
@given(pairs=st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=12))
def test_all_prompts_are_counted_once_and_intervals_hold_their_value(pairs: list[tuple]) -> None:
    found = summarise([scored(a, b) for a, b in pairs], resamples=200)
    assert found["num_wins"] + found["num_ties"] + found["num_losses"] + found["missing"] == len(pairs)
    if found["num_scored"]:
        assert sum(found[name] for name in RATES) == pytest.approx(1.0)
        assert found["reward_improvement"] == found["avg_reward"] - found["avg_reference_reward"]
    else:
        assert all(found[name] is None for name in (*RATES, "avg_reward", "reward_improvement"))
    for name in RATES:
        interval = found[f"{name}_ci"]
        assert interval is None or 0.0 <= interval[0] <= interval[1] <= 1.0


def test_the_interval_of_a_rate_is_the_binomial_one() -> None:
    """30 wins of 100: standard error sqrt(0.3 * 0.7 / 100) = 0.0458, so 0.3 -+ 0.09."""
    found = summarise([scored(1, 0)] * 30 + [scored(0, 1)] * 70)
    assert found["win_rate_ci"] == pytest.approx([0.21, 0.39], abs=0.011)


def test_scores_are_paired() -> None:
    """Scores vary by tens between prompts, the difference is always 1: its interval has no width."""
    found = summarise([scored(10.0 * i + 1, 10.0 * i) for i in range(20)])
    assert found["reward_improvement_ci"] == [1.0, 1.0]
    assert found["avg_reward_ci"][1] - found["avg_reward_ci"][0] > 40


def test_missing_scores_bias_nothing() -> None:
    """Without 30 of 100 prompts, whichever verdict they would have had, the rate of the others is what it was."""
    answered = [scored(1, 0)] * 42 + [scored(0, 1)] * 28
    found = summarise(answered + [scored(None, 5)] * 15 + [scored(5, None)] * 15)
    assert (found["win_rate"], found["num_scored"], found["missing"]) == (0.6, 70, 30)
    assert found["avg_reward"] == summarise(answered)["avg_reward"]


def test_equal_answers_are_exactly_equal() -> None:
    found = summarise([scored(s, s, 7, 7) for s in (0.1, -14.3, 1 / 3)])
    assert [found[name] for name in (*RATES, "win_rate_ties_half")] == [0.0, 1.0, 0.0, 0.5]
    assert (found["reward_improvement"], found["reward_improvement_ci"]) == (0.0, [0.0, 0.0])
    assert found["length_ratio"] == 1.0


def test_a_seed_gives_equal_intervals_and_another_one_others() -> None:
    compared = [scored(i % 3, i % 2, i, 5) for i in range(30)]
    assert summarise(compared, seed=1) == summarise(compared, seed=1) != summarise(compared, seed=2)


def test_a_judge_of_pairs_gives_no_rewards() -> None:
    verdicts: list[Verdict] = ["win", "win", "tie", "missing"]
    found = summarise([Comparison(v, None, None, 1, 1, 1, 1) for v in verdicts])
    assert (found["win_rate"], found["avg_reward"], found["reward_improvement"]) == (2 / 3, None, None)
    assert (found["avg_reward_ci"], found["missing"]) == (None, 1)


def test_empty_references_have_no_length_ratio() -> None:
    assert summarise([scored(1, 0, 3, 0)] * 3)["length_ratio"] is None


@pytest.mark.parametrize(
    ("wins", "losses", "words"), [(40, 10, "is better"), (10, 40, "is worse"), (26, 24, "no difference"), (1, 0, "few")]
)
def test_the_conclusion_is_the_intervals(wins: int, losses: int, words: str) -> None:
    assert words in conclusion(summarise([scored(1, 0)] * wins + [scored(0, 1)] * losses))
