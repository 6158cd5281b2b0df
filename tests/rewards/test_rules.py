"""Rule rewards: agreement with the data, and format, length and repetition against TRL 1.16's own numbers."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from contrl.errors import UserError
from contrl.rewards.functions import name_of
from contrl.rewards.rules import Accuracy, Cosine, Length, Overlong, Repetition, exact_match, think_format


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


# --- agreement with a column --------------------------------------------------------------------------------


def test_accuracy_takes_its_column_and_what_follows_a_mark() -> None:
    """Without the mark there is no answer; without the column the rule does not apply."""
    answers = ["4", "2+2</think> 4", "4</think>5", "a</think>b</think>4"]
    assert Accuracy()(completions=answers, solution=["4"] * 4) == [1.0, 0.0, 0.0, 0.0]
    assert Accuracy("answer", "</think>")(completions=answers, answer=["4"] * 4) == [0.0, 1.0, 0.0, 1.0]
    assert Accuracy()(completions=answers, answer=["4"] * 4) == [None] * 4
    assert Accuracy()(completions=[message("4"), message("5")], solution=[" 4", None]) == [1.0, None]


# --- format -------------------------------------------------------------------------------------------------

VALID = [
    "<think>a</think>b",
    "<think></think>b",
    "<think>\na\n</think>\nb",
    "<think>a</think>",
    "<think>a</think>b</think>c",
]
INVALID = [
    "a<think>b</think>c",
    "\n<think>a</think>b",
    "<think>a<think>b</think>c",
    "<think>a",
    "a</think>b",
    "a",
    "",
    "<think>a</think>b<think>c",
    "<THINK>a</THINK>",
]


def test_think_format() -> None:
    """Each string as TRL's think_format_reward judges it."""
    assert think_format(completions=[*VALID, *INVALID]) == [1.0] * 5 + [0.0] * 9
    assert think_format(completions=[message(text) for text in (VALID[0], INVALID[0])]) == [1.0, 0.0]


# --- length -------------------------------------------------------------------------------------------------


def test_longer_is_better_without_a_target() -> None:
    """n / (n + 100): 0, 1/5, 1/2, 4/5."""
    assert Length()(completions=[""] * 4, completion_ids=tokens(0, 25, 100, 400)) == [0.0, 0.2, 0.5, 0.8]
    assert Length(half=10)(completions=[""], completion_ids=tokens(10)) == [0.5]


def test_nearer_is_better_with_a_target() -> None:
    """20 / (20 + |n - 20|): 1/2 at 0 and at 40, 2/3 at 10 and 30, 1 at 20."""
    got = Length(target=20)(completions=[""] * 6, completion_ids=tokens(0, 10, 20, 30, 40, 1000))
    assert got == pytest.approx([1 / 2, 2 / 3, 1.0, 2 / 3, 1 / 2, 0.02])


def test_characters_and_words_are_counted_without_tokens() -> None:
    texts = ["ab cd", message(" a  b\nc ")]
    assert Length(unit="characters", half=5)(completions=texts) == pytest.approx([1 / 2, 8 / 13])
    assert Length(unit="words", half=2)(completions=texts) == pytest.approx([1 / 2, 3 / 5])


def tokens(*lengths: int) -> list[list[int]]:
    return [[7] * length for length in lengths]


def test_overlong_falls_over_the_cache() -> None:
    """TRL's get_soft_overlong_punishment(100, 20); at 90 it is (80 - 90) / 20."""
    got = Overlong(max_length=100, cache=20)(completion_ids=tokens(50, 80, 81, 90, 100, 101, 110))
    assert got == [0.0, 0.0, -0.05, -0.5, -1.0, -1.0, -1.0]
    assert Overlong(100, 0)(completion_ids=tokens(100, 101)) == [0.0, -1.0]


def test_repetition_is_the_share_of_repeated_ngrams() -> None:
    """Bigrams, TRL's get_repetition_penalty_reward(2): [5]*5 has 4, of which 1 different; [1,2]*3 has 5 and 2."""
    ids = [[5] * 5, [1, 2] * 3, [1], [1, 2], [1, 2, 3, 4], []]
    assert Repetition(2)(completion_ids=ids) == pytest.approx([-0.75, -0.6, 0.0, 0.0, 0.0, 0.0])
    assert Repetition()(completion_ids=[[1, 2] * 3]) == [-0.5]
    assert Repetition(2, penalty=-3.0)(completion_ids=ids[:1]) == [-2.25]


def test_cosine_wants_right_answers_short_and_forgives_long_wrong_ones() -> None:
    """TRL's get_cosine_scaled_reward(100); beyond max_length the wave does not come back."""
    got = Cosine(max_length=100)(
        completions=["a"] * 6,
        solution=["a", "a", "a", "b", "b", None],
        completion_ids=tokens(25, 75, 300, 50, 10, 5),
    )
    assert got[:5] == pytest.approx([0.9267767, 0.5732233, 0.5, -0.75, -0.9877641], abs=1e-7)
    assert got[5] is None
    other = Cosine(80, -2.0, -1.0, 0.25, 3.0, column="answer")
    got = other(completions=["a", "a"], answer=["a", "b"], completion_ids=tokens(30, 30))
    assert got == pytest.approx([2.1511897, -1.6913417], abs=1e-7)


# --- all of them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Length(), Overlong(10, 2), Repetition(), Cosine(10)])
def test_rules_that_count_tokens_say_when_they_get_none(rule: Any) -> None:
    with pytest.raises(UserError, match=f"the reward {name_of(rule)} counts tokens and was given none"):
        rule(completions=["a"], solution=["a"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Length(target=0), "length: target is 0"),
        (lambda: Length(half=0), "length: half is 0"),
        (lambda: Length(unit="lines"), "length counts 'lines'"),
        (lambda: Overlong(0, 0), "overlong: max_length is 0"),
        (lambda: Overlong(10, -1), "overlong: cache is -1"),
        (lambda: Overlong(10, 11), "overlong: cache is 11"),
        (lambda: Repetition(0), "repetition: ngram is 0"),
        (lambda: Repetition(penalty=0.5), "repetition: penalty is 0.5"),
        (lambda: Cosine(0), "cosine: max_length is 0"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_rules_have_short_names_and_travel_to_other_processes() -> None:
    rules = [Accuracy(), Length(), Overlong(10, 2), Repetition(), Cosine(10)]
    assert [name_of(rule) for rule in rules] == ["accuracy", "length", "overlong", "repetition", "cosine"]
    assert pickle.loads(pickle.dumps(rules)) == rules
