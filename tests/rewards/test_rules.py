"""Exact match: text or messages, spaces aside, and rows it does not apply to."""

from __future__ import annotations

import pytest

from contrl.rewards.rules import exact_match


def message(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_equal_text_scores_one_and_surrounding_spaces_do_not_matter() -> None:
    answers, wanted = ["37", " 37\n", "38", "3 7", ""], ["37", "37", "37", "37", "37"]
    assert exact_match(completions=answers, completion=wanted) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert exact_match(completions=["37"], completion=[" 37 "]) == [1.0]


def test_case_counts() -> None:
    assert exact_match(completions=["Paris"], completion=["paris"]) == [0.0]


def test_messages_are_compared_by_their_last_content() -> None:
    target = [{"role": "assistant", "content": "hm"}, {"role": "assistant", "content": "37"}]
    assert exact_match(completions=[message("37"), message("36")], completion=[target, target]) == [1.0, 0.0]


def test_text_and_messages_compare_with_each_other() -> None:
    assert exact_match(completions=[message("37")], completion=["37"]) == [1.0]


def test_rows_without_a_completion_are_missing_and_not_wrong() -> None:
    assert exact_match(completions=["a", "b"]) == [None, None]
    assert exact_match(completions=["a", "b"], completion=[None, "b"]) == [None, 1.0]


def test_numbers_are_compared_as_they_are_written() -> None:
    assert exact_match(completions=["37", "37.0"], completion=[37, 37]) == [1.0, 0.0]


def test_further_columns_are_ignored_and_lengths_must_agree() -> None:
    assert exact_match(prompts=["p"], completions=["a"], completion=["a"], level=[3]) == [1.0]
    with pytest.raises(ValueError, match="zip"):
        exact_match(completions=["a", "b"], completion=["a"])
