"""Several rewards as one: names, weights, and what a sum is where a score is not there."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from contrl.errors import UserError
from contrl.rewards.functions import RewardFunction, Rewards, as_rewards, name_of
from contrl.rewards.rules import Length, exact_match

NAN = float("nan")


def saying(*scores: Any, name: str = "said") -> RewardFunction:
    return RewardFunction(name, lambda **columns: list(scores))


def weighted(*functions: tuple[float, tuple[Any, ...]]) -> Rewards:
    return Rewards(RewardFunction("f", saying(*scores).call, weight) for weight, scores in functions)


def total(rewards: Rewards, count: int) -> list[float | None]:
    return rewards(prompts=["p"] * count, completions=["c"] * count)


def test_the_sum_is_weighted() -> None:
    """1 x 1 + 0.5 x 0 and so on: the sums of TRL's two-reward test."""
    assert total(weighted((1.0, (1, 0, 0, 1)), (0.5, (0, 2, 1, 1))), 4) == [1.0, 1.0, 0.5, 1.5]
    assert total(weighted((0.7, (1,)), (0.3, (0,))), 1) == [0.7]
    assert total(weighted((1.0, (3,)), (-1.0, (5,))), 1) == [-2.0]


def test_none_does_not_apply_and_is_left_out() -> None:
    """Only where every function says None there is no reward."""
    assert total(weighted((1.0, (None, 2, None)), (0.5, (4, None, None))), 3) == [2.0, 2.0, None]


def test_a_score_that_could_not_be_had_leaves_no_reward() -> None:
    """NaN of one function: the other's 4 alone would look like a bad answer beside sums of both."""
    assert total(weighted((1.0, (NAN, 2)), (0.5, (4, 4))), 2) == [None, 4.0]


def test_a_model_or_a_judge_applies_to_every_completion() -> None:
    """So its None is no "not applicable": the other function's 4 is not the whole reward."""

    class Judge:
        is_costly = True

        def __call__(self, **columns: Any) -> list[float | None]:
            return [None, 2.0]

    rewards = Rewards([RewardFunction("judge", Judge()), saying(4, 4)])
    assert total(rewards, 2) == [None, 6.0]
    assert rewards.is_costly
    assert not as_rewards(exact_match).is_costly


def test_a_function_of_weight_zero_is_watched_and_does_not_count() -> None:
    assert total(weighted((1.0, (None, 2)), (0.0, (7, NAN))), 2) == [None, 2.0]
    assert total(weighted((0.0, (7, None))), 2) == [0.0, None]


def test_the_second_of_a_name_gets_a_number() -> None:
    rewards = Rewards.of([exact_match, Length(), exact_match, Length(target=3), exact_match], [1, 2, 3, 4, 5])
    assert [function.name for function in rewards] == [
        "exact_match",
        "length",
        "exact_match_2",
        "length_2",
        "exact_match_3",
    ]
    assert rewards.weights == {"exact_match": 1, "length": 2, "exact_match_2": 3, "length_2": 4, "exact_match_3": 5}
    assert len(rewards) == 5
    assert rewards[1].call == Length()
    assert [function.name for function in rewards[:2]] == ["exact_match", "length"]


def test_a_name_that_is_taken_by_a_numbered_one_is_not_given_twice() -> None:
    rewards = Rewards([saying(name="f"), saying(name="f_2"), saying(name="f")])
    assert [function.name for function in rewards] == ["f", "f_2", "f_3"]


class Named:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, **columns: Any) -> list[float]:
        return []


class Nameless(Named):
    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("reward", "name"),
    [
        (exact_match, "exact_match"),
        (functools.partial(functools.partial(exact_match), completion=["a"]), "exact_match"),
        (Length(target=20), "length"),
        (Named("owner/model"), "model"),
        (Named("runs/helpful/"), "helpful"),
        (Named("runs/helpful/final"), "helpful"),
        (Named("C:\\runs\\helpful"), "helpful"),
        (Nameless(), "Nameless"),
    ],
)
def test_names(reward: Any, name: str) -> None:
    assert name_of(reward) == name


def test_one_function_is_several_of_one() -> None:
    rewards = Rewards.of([exact_match])
    assert as_rewards(rewards) is rewards
    assert list(as_rewards(exact_match)) == [RewardFunction("exact_match", exact_match, 1.0)]


def test_what_cannot_be_a_reward_is_refused() -> None:
    with pytest.raises(UserError, match="3 weights for 2 reward functions"):
        Rewards.of([exact_match, exact_match], [1, 2, 3])
    with pytest.raises(UserError, match="no reward function"):
        Rewards([])
    with pytest.raises(UserError, match="the weight of the reward f is nan"):
        RewardFunction("f", exact_match, NAN)
    not_callable: Any = 3
    with pytest.raises(UserError, match="the reward f is 3"):
        RewardFunction("f", not_callable)


def test_called_it_hands_on_columns_and_what_is_logged() -> None:
    """As a metric, or inside another reward, it is a reward like any other."""
    logged: list[Any] = []

    def reward(*, answer: list, trainer_state: Any, log_extra: Any, log_metric: Any, **columns: Any) -> list[float]:
        log_extra("seen", answer)
        log_metric("state", trainer_state)
        return [float(value) for value in answer]

    rewards = Rewards.of([reward, exact_match])
    got = rewards(
        prompts=["p"] * 2,
        completions=["a", "b"],
        answer=[3, 4],
        completion=["a", None],
        trainer_state=7,
        log_extra=lambda *told: logged.append(told),
        log_metric=lambda *told: logged.append(told),
    )
    assert got == [4.0, 4.0]
    assert logged == [("seen", [3, 4]), ("state", 7.0)]
