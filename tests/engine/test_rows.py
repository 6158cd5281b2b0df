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


def prepared(
    rows: list[dict[str, Any]], method: Any = None, tokenizer: Any = None, **options: Any
) -> tuple[list[Any], list[str]]:
    said: list[str] = []
    task = Task("sums", rows)
    tokenizer = tokenizer or character_tokenizer()
    groups = prepare_all([(task, row) for row in rows], method or SFT(), tokenizer, said.append, **options)
    return groups, said


def test_good_rows_are_taken_in_silence_and_in_order() -> None:
    groups, said = prepared([{"id": i, **GOOD} for i in range(3)])
    assert [(group.row_id, group.task, group.row["id"]) for group in groups] == [(str(i), "sums", i) for i in range(3)]
    assert said == []


ROWS = [
    {"id": "a", "prompt": "1"},
    {"id": "b", **GOOD},
    *({"id": x, "other": 1} for x in "cde"),
    {"id": "f", **GOOD},
]
"""Four of six cannot be used."""


def test_bad_rows_stop_the_run_and_are_counted_and_named() -> None:
    """The first three are named with their reasons; the way out names the number."""
    for allowed in (0, 3):
        with pytest.raises(UserError, match="4 of 6 rows cannot be used") as caught:
            prepared(ROWS, max_bad_rows=allowed)
        assert caught.value.why.startswith("the first: task sums, row a: columns id, prompt are no supervised row")
        assert "row d" in caught.value.why
        assert "row e" not in caught.value.why
        assert caught.value.fix == "mend them, or --max_bad_rows 4 to leave them out"


def test_as_many_bad_rows_as_allowed_are_left_out_counted_and_named() -> None:
    groups, said = prepared(ROWS, max_bad_rows=4)
    assert [group.row_id for group in groups] == ["b", "f"]
    assert len(said) == 1
    assert said[0].startswith("4 of 6 rows cannot be used and are left out; the first: task sums, row a: ")
    assert "row c: columns id, other are no supervised row" in said[0]
    assert "row d" in said[0]
    assert "row e" not in said[0]


def test_an_empty_data_set_is_an_error() -> None:
    with pytest.raises(UserError, match="no rows to train on"):
        prepared([])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "1234567890", "completion": "1"}, "no trained token is left of 10 prompt and 2 completion tokens"),
        ({"prompt": "1", "completion": 7}, "completion holds a int"),
        ({"prompt": "1", "completion": None}, "null: completion"),
        ({"prompt": "1", "completion": "\ud83d"}, "broken UTF-8"),
        ({"messages": [{"role": "robot", "content": "1"}]}, "the role 'robot'"),
    ],
)
def test_each_kind_of_bad_row_has_its_reason(row: dict[str, Any], said: str) -> None:
    groups, told = prepared([{"id": "0", **row}, {"id": "1", **GOOD}], SFT(max_length=8), max_bad_rows=1)
    assert [group.row_id for group in groups] == ["1"]
    assert said in told[0]


def test_messages_without_a_chat_template_are_an_error() -> None:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="none of 1 rows can be used") as caught:
        prepared([{"id": "0", "messages": [{"role": "user", "content": "1"}]}], None, tokenizer)
    assert "no chat template" in caught.value.why


TURNS = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]


def test_a_template_that_never_ends_an_answer_is_an_error() -> None:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="never learn to stop"):
        prepared([{"id": "0", "messages": TURNS}], None, tokenizer)


def test_rows_that_do_not_end_with_an_answer_are_told() -> None:
    rows = [{"id": "a", "messages": TURNS}, {"id": "b", "messages": [*TURNS, TURNS[0]]}]
    groups, said = prepared(rows, SFT(assistant_only=True))
    assert len(groups) == 2
    assert said == [
        "1 of 2 answers do not end with a trained end token, so the model does not learn to stop after them "
        "(rows b ...)"
    ]


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
