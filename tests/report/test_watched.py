"""Which numbers are followed: those a method names, the first that there are, under short names."""

import pytest

from contrl.experiment import METHODS, find
from contrl.report.watched import chosen, clock, label, rate, told

ONLINE = {"loss": 1e-9, "reward": 0.32456, "kl": 0.0213, "frac_reward_zero_std": 0.08, "verifier/success": 0.5}


def test_what_is_not_logged_is_passed_over() -> None:
    watched = find("method", "rloo").watched
    assert told(ONLINE, watched) == ["reward 0.325", "verifier 0.5", "kl 0.0213"]
    without = {name: value for name, value in ONLINE.items() if name != "kl"}
    assert told(without, watched) == ["reward 0.325", "verifier 0.5", "no signal 8%"]
    assert told({"loss": 1.23456}, watched) == []


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("sft", ["loss 1.23", "token accuracy 75%"]),
        ("dpo", ["margin 0.4", "accuracy 60%", "loss 1.23"]),
        ("reward", ["accuracy 80%", "margin 0.3", "loss 1.23"]),
        ("kto", ["chosen 0.2", "rejected -0.1", "kl 0"]),
    ],
)
def test_each_method_has_its_own(method: str, expected: list[str]) -> None:
    logged = {
        "loss": 1.23456,
        "mean_token_accuracy": 0.75,
        "rewards/margins": 0.4,
        "rewards/accuracies": 0.6,
        "rewards/chosen": 0.2,
        "rewards/rejected": -0.1,
        "accuracy": 0.8,
        "margin": 0.3,
        "kl": 0.0,
    }
    assert told(logged, find("method", method).watched) == expected


def test_every_method_names_two_or_more() -> None:
    assert all(len(find("method", name).watched) >= 2 for name in METHODS)


def test_a_name_that_ends_in_a_slash_stands_for_one_that_begins_so() -> None:
    assert chosen(["verifier/b", "verifier/a", "x"], ("verifier/", "x", "y")) == ["verifier/b", "x"]
    assert label("verifier/b") == "verifier"


def test_times_and_rates() -> None:
    assert [clock(seconds) for seconds in (-1, 42, 725, 10812)] == ["0:00", "0:42", "12:05", "3:00:12"]
    assert [rate(*pair) for pair in ((850, 1), (24600, 2), (0, 1), (5, 0))] == [
        "850 tokens/s",
        "12.3k tokens/s",
        "",
        "",
    ]
