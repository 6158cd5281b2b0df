"""Rows made by code: right answers are right, wrong ones wrong and as long, and eval rows new where they should be."""

from __future__ import annotations

from typing import Any

import pytest

from contrl.data.synthetic import (
    OPPOSITES,
    PROBES,
    RULES,
    TABLES,
    OppositePreferencesConfig,
    TablesAndRulesConfig,
    apply_rule,
    preference_rows,
    rule_rows,
    table_rows,
)
from contrl.errors import ConfigErrors

SMALL: dict[str, Any] = {"train_size": 60, "eval_size": 20}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("reverse", "acb"),
        ("shift", "ead"),
        ("sort", "abc"),
        ("copy", "bca"),
        ("upper", "BCA"),
        ("last", "a"),
    ],
)
def test_rules_by_hand(name: str, expected: str) -> None:
    """Of five letters a..e, shifted by three: b -> e, c -> a, a -> d."""
    assert apply_rule(name, "bca", 5) == expected


def test_two_tables_give_other_values_to_the_same_keys() -> None:
    """64 keys; two letters out of ten by chance agree in one of a hundred."""
    config = TablesAndRulesConfig()
    first, second = (table_rows(config, name) for name in TABLES)
    assert len(first) == len({row["prompt"] for row in first}) == 64
    assert [row["prompt"][2:] for row in first] == [row["prompt"][2:] for row in second]
    assert (first[0]["prompt"][0], second[0]["prompt"][0]) == ("A", "B")
    agree = sum(a["completion"] == b["completion"] for a, b in zip(first, second, strict=True))
    assert agree <= 5
    assert {len(row["completion"]) for row in first} == {2}


@pytest.mark.parametrize("name", [*RULES, *PROBES])
def test_eval_strings_are_in_no_train_row_of_any_rule(name: str) -> None:
    config = TablesAndRulesConfig(**SMALL)
    train, held_out = rule_rows(config, name)
    assert (len(train), len(held_out)) == (60, 20)
    asked = [row["prompt"][2:] for row in [*train, *held_out]]
    assert len(set(asked)) == 80
    assert [row["prompt"][2:] for row in rule_rows(config, "sort")[1]] == asked[60:]
    row = train[0]
    assert row["completion"] == apply_rule(name, row["prompt"][2:-1], config.num_letters)


@pytest.mark.parametrize("name", [*TABLES, *RULES, *PROBES])
def test_pairs_have_a_wrong_answer_of_the_same_length(name: str) -> None:
    """Also where every letter is the same, so that no other order is wrong: two letters, two symbols."""
    for settings in (SMALL, {"num_letters": 2, "num_symbols": 2, "train_size": 3, "eval_size": 1, "value_length": 1}):
        answers = TablesAndRulesConfig(**settings)
        pairs = TablesAndRulesConfig(**settings, pairs=True)
        made, paired = (
            table_rows(config, name) if name in TABLES else [row for rows in rule_rows(config, name) for row in rows]
            for config in (answers, pairs)
        )
        for row, pair in zip(made, paired, strict=True):
            assert pair["chosen"] == row["completion"] != pair["rejected"]
            assert len(pair["chosen"]) == len(pair["rejected"])
            assert (pair["id"], pair["prompt"]) == (row["id"], row["prompt"])


def test_equal_seeds_give_equal_rows_and_others_do_not() -> None:
    for made in (
        lambda seed: [table_rows(TablesAndRulesConfig(seed=seed), name) for name in TABLES],
        lambda seed: rule_rows(TablesAndRulesConfig(**SMALL, pairs=True, seed=seed), "sort"),
        lambda seed: preference_rows(OppositePreferencesConfig(**SMALL, seed=seed), "longer"),
    ):
        assert made(3) == made(3) != made(4)


@pytest.mark.parametrize("name", list(OPPOSITES))
def test_the_opposite_task_prefers_the_other_side_of_the_same_pairs(name: str) -> None:
    config = OppositePreferencesConfig(**SMALL)
    for rows, flipped in zip(preference_rows(config, name), preference_rows(config, OPPOSITES[name]), strict=True):
        for row, other in zip(rows, flipped, strict=True):
            assert (row["chosen"], row["rejected"]) == (other["rejected"], other["chosen"])
            assert row["prompt"].partition(": ")[2] == other["prompt"].partition(": ")[2]
            assert row["prompt"] != other["prompt"]


def test_what_is_preferred_is_what_the_task_is_called() -> None:
    config = OppositePreferencesConfig(**SMALL)
    train = {name: preference_rows(config, name)[0] for name in OPPOSITES}
    assert all(len(row["chosen"]) > len(row["rejected"]) + 8 for row in train["longer"])
    assert all(row["chosen"].startswith("yes") and row["rejected"].startswith("no") for row in train["yes_first"])
    assert {len(row["chosen"]) - len(row["rejected"]) for row in train["no_first"]} == {0}
    # A long answer says yes as often as no, and the short one beside it says the same.
    words = [row["chosen"].partition(",")[0] for row in train["longer"]]
    assert 15 < words.count("yes") < 45
    assert words == [row["rejected"] for row in train["longer"]]


def test_questions_that_are_judged_are_in_no_train_row_of_any_task() -> None:
    """And untold, the prompts of opposite tasks are the same."""
    config = OppositePreferencesConfig(**SMALL, told=False)
    made = [preference_rows(config, name) for name in OPPOSITES]
    assert len({row["prompt"] for train, _ in made for row in train}) == 60
    assert not {r["prompt"] for train, _ in made for r in train} & {r["prompt"] for _, rows in made for r in rows}


@pytest.mark.parametrize(
    ("config", "values", "told"),
    [
        (TablesAndRulesConfig, {"names": ["table_c", "sort", "sort"]}, ["no task table_c", "each only once"]),
        (TablesAndRulesConfig, {"num_letters": 2}, ["ask for 2,200 strings, but 32 exist"]),
        (TablesAndRulesConfig, {"num_letters": 27, "table_size": 677}, ["num_letters is 27", "table_size is 677"]),
        (OppositePreferencesConfig, {"names": [], "train_size": 2000}, ["at least one task", "2,200 questions"]),
    ],
)
def test_mistakes_are_told_together(config: Any, values: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(ConfigErrors) as caught:
        config(**values)
    assert len(caught.value.errors) == len(told)
    assert all(part in str(caught.value) for part in told)
