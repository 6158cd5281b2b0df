"""Rows that cannot be used are counted and named, before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest

from contrl.engine.rows import prepare_all, prepare_row
from contrl.errors import UserError
from contrl.interfaces import Task
from contrl.methods.sft import SFT
from contrl.models.embedded import character_tokenizer

GOOD = {"prompt": "1+1=", "completion": "2"}


def prepared(rows: list[dict[str, Any]], method: Any = None) -> tuple[list[Any], list[str]]:
    said: list[str] = []
    task = Task("sums", rows)
    groups = prepare_all([(task, row) for row in rows], method or SFT(), character_tokenizer(), said.append)
    return groups, said


def test_good_rows_are_taken_in_silence_and_in_order() -> None:
    groups, said = prepared([{"id": i, **GOOD} for i in range(3)])
    assert [(group.row_id, group.task, group.row["id"]) for group in groups] == [(str(i), "sums", i) for i in range(3)]
    assert said == []


def test_bad_rows_are_left_out_counted_and_named() -> None:
    """4 of 6 are bad; the first three are named with their reasons."""
    rows = [
        {"id": "a", "prompt": "1"},
        {"id": "b", **GOOD},
        *({"id": x, "other": 1} for x in "cde"),
        {"id": "f", **GOOD},
    ]
    groups, said = prepared(rows)
    assert [group.row_id for group in groups] == ["b", "f"]
    assert len(said) == 1
    assert said[0].startswith("4 of 6 rows cannot be used and are left out; the first: task sums, row a: ")
    assert "row c: columns id, other are no supervised row" in said[0]
    assert "row d" in said[0]
    assert "row e" not in said[0]


def test_no_usable_row_is_an_error_with_reasons() -> None:
    with pytest.raises(UserError, match="none of 2 rows can be used") as caught:
        prepared([{"id": 1, "x": 1}, {"id": 2, "y": 1}])
    assert "row 1: columns id, x are no supervised row" in caught.value.why
    assert "row 2" in caught.value.why


def test_rows_that_are_cut_are_told() -> None:
    """max_length 6 = 4 of the prompt and 2 of "23" + end; a row of one character fits with its end."""
    groups, said = prepared([{"id": 1, "prompt": "1+1=", "completion": "23"}, {"id": 2, **GOOD}], SFT(max_length=6))
    assert [len(group.completions[0].ids) for group in groups] == [2, 2]
    assert [group.completions[0].ended for group in groups] == [False, True]
    assert said == ["1 of 2 rows are longer than max_length and were cut at their end (rows 1 ...)"]


def test_one_row_keeps_the_methods_own_error() -> None:
    with pytest.raises(UserError, match="no supervised row"):
        prepare_row(Task("sums", []), {"id": 1, "x": 2}, SFT(), character_tokenizer())
