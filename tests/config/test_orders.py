"""Orders and stages: which task is learnt when, and everything wrong with the names, each with its line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from contrl.config import Resolved
from contrl.config.orders import Settings, arrange, conflicts, problems

Load = Callable[..., Resolved]
Refused = Callable[..., list[str]]
NAMES = ["a", "b", "c", "d"]


def test_given_reversed_and_listed() -> None:
    assert arrange(NAMES, "given", 0, None) == [("a",), ("b",), ("c",), ("d",)]
    assert arrange(NAMES, "reversed", 0, None) == [("d",), ("c",), ("b",), ("a",)]
    assert arrange(NAMES, ("b", "d", "a", "c"), 0, None) == [("b",), ("d",), ("a",), ("c",)]


def test_an_order_moves_whole_stages() -> None:
    """Tasks within a stage have no order; a task may come back in a later stage."""
    stages = [["a", "b"], ["c"], ["a"]]
    assert arrange(NAMES, "given", 0, stages) == [("a", "b"), ("c",), ("a",)]
    assert arrange(NAMES, "reversed", 0, stages) == [("a",), ("c",), ("a", "b")]
    assert sorted(arrange(NAMES, "random", 5, stages)) == [("a",), ("a", "b"), ("c",)]


def test_random_follows_from_its_own_seed() -> None:
    """Every task once; equal seeds agree, and of twenty seeds most give different orders of four tasks."""
    orders = [tuple(arrange(NAMES, "random", seed, None)) for seed in range(20)]
    assert all(sorted(order) == [(name,) for name in NAMES] for order in orders)
    assert orders == [tuple(arrange(NAMES, "random", seed, None)) for seed in range(20)]
    assert len(set(orders)) > 8


def test_each_wrong_name_has_its_path() -> None:
    found = list(problems(["plus", "minus"], ("plus", "minsu", "plus"), None))
    assert [problem.path for problem in found] == ["order.1", "order.2", "order"]
    assert found[0].fix == "did you mean minus?"
    assert found[2].what == "order: minus missing"
    assert not list(problems(["plus", "minus"], "reversed", [["plus"]])), "a task of no stage is only judged"


def test_tasks_of_one_stage_must_agree_on_what_a_stage_has_once() -> None:
    run = Settings({"beta": 0.1}, {"learning_rate": 1e-5})
    own = {
        "a": Settings({"beta": 0.1}, {}),
        "b": Settings({}, {"learning_rate": 1e-4}),
        "c": Settings({}, {"max_steps": 3}),
    }
    assert not list(conflicts([["a"], ["b"], ["c"]], run, own)), "each its own stage"
    first, second = conflicts([["a", "b"], ["c", "a"], ["a", "b"]], run, own)
    assert (first.path, first.why) == (
        "tasks.1.training.learning_rate",
        "a and b are learnt together, by one method and one schedule",
    )
    assert first.what == "training.learning_rate: tasks of one stage disagree: 1e-05 for a, 0.0001 for b"
    assert second.what == "training.max_steps: tasks of one stage disagree: 3 for c, the default for a"


# --- in a file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("added", "order", "stages"),
    [
        ("", "given", None),
        ("order: random\norder_seed: 3\n", "random", None),
        ("order: [minus, plus]\n", ("minus", "plus"), None),
        ("order: minus, plus\n", ("minus", "plus"), None),
        ("stages: [[plus, minus]]\n", "given", (("plus", "minus"),)),
        ("stages: [minus, [plus]]\norder: reversed\n", "reversed", (("minus",), ("plus",))),
        ("stages: null\n", "given", None),
    ],
)
def test_ways_to_write_them(resolved: Load, basic: str, added: str, order: Any, stages: Any) -> None:
    """And what is written out of them reads as the same."""
    text = basic.replace("    training: {learning_rate: 2e-5}\n", "") + added
    found = resolved(text)
    assert (found.config.order, found.config.stages) == (order, stages)
    assert resolved(found.text).config == found.config


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        (
            "order: revrsed\n",
            ["order: expected given, reversed, random, or a list of the tasks' names, found 'revrsed'"],
        ),
        ("order: {a: 1}\n", ["order: expected a list (text), found a section"]),
        ("order: [plus, mins]\n", ["order: no task is called 'mins'", "order: minus missing"]),
        ("order: [plus, minus, plus]\n", ["order: plus stands there twice"]),
        ("order: [plus, minus]\nstages: [[plus]]\n", ["order: a list of tasks beside stages"]),
        ("order_seed: -1\n", ["order_seed: must be at least 0, found '-1'"]),
        ("stages: []\n", ["stages: expected at least one stage"]),
        ("stages: [[], [plus]]\n", ["stages.0: expected at least one task"]),
        (
            "stages: [[plus, plus], [mins]]\n",
            ["stages.0: plus stands there twice", "stages.1: no task is called 'mins'"],
        ),
        ("stages: [{a: 1}]\n", ["stages.0: expected a list (text), found a section"]),
    ],
)
def test_every_mistake_has_its_line(refused: Refused, basic: str, added: str, expected: list[str]) -> None:
    assert refused(basic + added) == [f"demo.yaml:14: {what}" for what in expected]


def test_a_conflict_is_told_at_the_line_of_the_override(refused: Refused, basic: str) -> None:
    """Line 8 gives the task plus a learning rate of its own."""
    what = "training.learning_rate: tasks of one stage disagree: 2e-05 for plus, 1e-05 for minus"
    assert refused(basic + "stages: [[plus, minus]]\n") == [f"demo.yaml:8: {what}"]
