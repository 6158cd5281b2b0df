"""Warnings: each rule speaks when it should, names stage and numbers, and is silent for a healthy run."""

import pytest

from contrl.continual.results import read
from contrl.report.curves import Training, read_training
from contrl.report.red_flags import red_flags


def training(**series: list[float]) -> Training:
    """One stage with these logged values."""
    logged = {name: {1: list(enumerate(map(float, values), start=1))} for name, values in series.items()}
    return Training((), {1: 0}, 9, logged=logged)


def test_a_healthy_run_has_none(demo):
    assert red_flags(read(demo), read_training(demo)) == []


FLAT = [0.5, 0.51, 0.49, 0.5, 0.51, 0.49, 0.5, 0.51, 0.49]
RISES = [0.1, 0.12, 0.11, 0.3, 0.3, 0.3, 0.6, 0.62, 0.61]
FALLS = RISES[::-1]
COLLAPSES = [2.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1]


@pytest.mark.parametrize(
    ("series", "words"),
    [
        ({"completions/clipped_ratio": [0.0] * 6 + [0.2] * 3}, "20% of the sampled answers were cut"),
        ({"frac_reward_zero_std": [0.9] * 9}, "90% of the prompts had no signal"),
        ({"entropy": COLLAPSES, "reward": FLAT}, "entropy collapsed from 2 to 0.1"),
        ({"reward": RISES, "verifier/success": FALLS}, "the reward rose by 0.5 while success of the same answers fell"),
        ({"rewards/chosen": [-6.0] * 9}, "the chosen answers lost 6 of implicit reward"),
    ],
)
def test_each_rule_speaks(demo, series, words):
    (flag,) = red_flags(read(demo), training(**series))
    assert flag.startswith("stage 1 (1-plus): ")
    assert words in flag


@pytest.mark.parametrize(
    "series",
    [
        {"completions/clipped_ratio": [0.9] * 6 + [0.0] * 3},
        {"frac_reward_zero_std": [0.7] * 9},
        {"entropy": [0.6, 0.5, 0.5, 0.4, 0.4, 0.3, 0.2, 0.15, 0.15], "reward": FLAT},
        {"entropy": [2.0, 0.1], "reward": FLAT},
        {"entropy": COLLAPSES},  # nothing was sampled
        {"reward": RISES, "verifier/success": FLAT},
        {"reward": FLAT, "verifier/success": FALLS},
        {"reward": RISES[:3], "verifier/success": FALLS[:3]},
        {"rewards/chosen": [-4.0] * 9},
    ],
)
def test_each_rule_is_silent_below_its_limit(demo, series):
    assert red_flags(read(demo), training(**series)) == []


def test_numbers_that_are_none_and_cut_judgements_are_told(demo):
    found = Training((), {}, 0, {"loss": 3}, judged={(1, "plus", "clipped"): 0.5, (2, "plus", "clipped"): 0.06})
    assert red_flags(read(demo), found) == [
        "3 values of loss were not finite numbers",
        "50% of the judged answers to plus after 1-plus, and more than 5% in 1 other cells were cut at the length "
        "limit: their scores may be too low",
    ]
