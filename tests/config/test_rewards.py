"""Rewards in a configuration: every spelling, their weights, their fields, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from contrl.config import PluginConfig, Resolved, load
from contrl.errors import ConfigErrors, EnvironmentFault, UserError

HEAD = "output_dir: o\nmodel: tiny\nmethod: rloo\ntasks:\n- {name: a, data: hub/a"


@dataclass(frozen=True)
class Near:
    """A reward with fields; ``name`` is what it is logged as, and no field of a file."""

    target: int
    unit: str = "tokens"
    name: str = "near"

    def __post_init__(self) -> None:
        if self.target < 1:
            raise UserError(f"target is {self.target}", fix="at least 1")


@dataclass(frozen=True)
class Far:
    """A reward that needs something of the machine it runs on."""

    def __post_init__(self) -> None:
        raise EnvironmentFault("there is no key")


@dataclass(frozen=True)
class RLOO:
    """A method without fields."""


KNOWN: dict[str, Any] = {"near": Near, "far": Far, "exact": len, "my_rewards:score": len}


def find(kind: str, name: str) -> Any:
    known = KNOWN if kind == "reward" else {"rloo": RLOO} if kind == "method" else {}
    if name not in known:
        raise UserError(f"unknown {kind} {name!r}")
    return known[name]


def loaded(written: str, overrides: tuple[str, ...] = (), more: str = "") -> Resolved:
    return load(f"{HEAD}{written}}}\n{more}", overrides, resolve=find, source="my.yaml")


def rewards_of(found: Resolved) -> tuple[PluginConfig, ...]:
    """Of the only task."""
    tasks = found.config.tasks
    assert isinstance(tasks, tuple)
    return tasks[0].reward


NEAR = PluginConfig("near", {"unit": "words", "target": 5})
EXACT = PluginConfig("exact")


@pytest.mark.parametrize(
    ("written", "rewards"),
    [
        ("", ()),
        (", reward: null", ()),
        (", reward: exact", (EXACT,)),
        (", reward: my_rewards:score", (PluginConfig("my_rewards:score"),)),
        (", reward: 'near(target=5, unit=words)'", (NEAR,)),
        (", reward: 'exact, near(target=5, unit=words)'", (EXACT, NEAR)),
        (", reward: ['near(target=5, unit=words)', exact]", (NEAR, EXACT)),
        (", reward: [{name: near, target: 5, unit: words}]", (NEAR,)),
        (", reward: {name: near, target: 5, unit: words}", (NEAR,)),
    ],
)
def test_every_way_to_write_rewards(written: str, rewards: tuple[PluginConfig, ...]) -> None:
    """And the resolved text, loaded again, means the same."""
    found = loaded(written)
    assert rewards_of(found) == rewards
    assert load(found.text, resolve=find).config == found.config


def test_rewards_of_all_tasks_and_overrides() -> None:
    more = "rewards: {functions: [exact, near(target=5)], weights: [1, -0.5], errors: missing, seconds: 3}"
    rewards = loaded("", ("rewards.functions.near.target=7",), more).config.rewards
    assert [plugin.name for plugin in rewards.functions] == ["exact", "near"]
    assert rewards.functions[1].fields["target"] == 7
    assert (rewards.weights, rewards.errors, rewards.seconds) == ((1.0, -0.5), "missing", 3.0)
    assert loaded("").config.rewards.functions == ()


@pytest.mark.parametrize(
    ("written", "more", "words"),
    [
        (", reward: 'near(target=x)'", "", "tasks.0.reward.0.target: expected a whole number, found 'x'"),
        (", reward: near", "", "tasks.0.reward.0.target: missing"),
        (", reward: 'near(target=0)'", "", "tasks.0.reward.0: target is 0"),
        (", reward: 'near(targt=3)'", "", "did you mean target?"),
        (", reward: 'exact(a=1)'", "", "tasks.0.reward.0: exact is a function and takes no a"),
        (", reward: 'exact('", "", "its brackets do not match"),
        (", reward: [exact, exact], reward_weights: [1]", "", "tasks.0.reward_weights: 1 weight for 2 rewards"),
        ("", "rewards: {functions: exact, weights: [1, 2]}", "rewards.weights: 2 weights for 1 reward"),
        ("", "rewards: {functions: exct}", "rewards.functions.0: unknown reward 'exct'"),
        ("", "rewards: exact", "of one task: reward: ..."),
    ],
)
def test_mistakes_in_rewards(written: str, more: str, words: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        loaded(written, more=more)
    assert words in str(caught.value)


def test_what_the_machine_lacks_is_told_when_the_run_starts() -> None:
    """A configuration is right or wrong everywhere; a key may be absent here."""
    assert rewards_of(loaded(", reward: far")) == (PluginConfig("far"),)


def test_several_answers_need_a_temperature() -> None:
    assert loaded("", more="evaluation: {num_samples: 4, temperature: 1}").config.evaluation.num_samples == 4
    with pytest.raises(ConfigErrors, match="num_samples is 4 and temperature 0"):
        loaded("", more="evaluation: {num_samples: 4}")
