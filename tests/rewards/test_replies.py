"""What judges' replies mean, and what is said to them."""

from __future__ import annotations

import time

import pytest

from contrl.errors import UserError
from contrl.rewards.replies import (
    GarbledReply,
    as_text,
    check_template,
    conversation,
    fill,
    read_grade,
    read_reward,
    read_verdict,
)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("reward:-14.25", -14.25),
        (" reward : 3 \n", 3.0),
        ("-14.25", -14.25),
        ("reward:1e-2", 0.01),
        ("reward:.5,", 0.5),
    ],
)
def test_a_single_score(text: str, score: float) -> None:
    assert read_reward(text) == score


@pytest.mark.parametrize(
    "text",
    [
        *("", "good", "reward:", "reward:good", "reward:nan", "reward:inf", "reward:1e999", ":3", "reward:1 2"),
        *("helpfulness:1.0,and", "a:1;b:2", "reward:-", "reward:٣", "x" * 5000 + ":1", "a" + " " * 100_000),
    ],
)
def test_what_is_no_score_is_garbled(text: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(GarbledReply):
        read_reward(text)
    assert time.perf_counter() - begin < 1


def test_several_scores_need_a_choice() -> None:
    text = "helpfulness:1.25,correctness:-2,coherence:3.5"
    assert [read_reward(text, name) for name in ("helpfulness", "correctness", "coherence")] == [1.25, -2.0, 3.5]
    with pytest.raises(UserError, match="helpfulness, correctness, coherence"):
        read_reward(text)
    with pytest.raises(UserError, match="no score 'verbosity'"):
        read_reward(text, "verbosity")
    with pytest.raises(GarbledReply):
        read_reward("helpfulness:1e999,correctness:2", "correctness")


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        *(("7", 7.0), ("7.5", 7.5), ("8/10", 8.0), ("10 / 10.", 10.0), ("Score: 3", 3.0), ("**Grade:** 0", 0.0)),
        *(("I like it.\n\nFinal answer: 9", 9.0), ("<think>maybe 3\n</think>\n6", 6.0)),
    ],
)
def test_a_grade(text: str, grade: float) -> None:
    assert read_grade(text) == grade


@pytest.mark.parametrize("text", ["", "11", "-3", "Score: -3", "seven", "7 or 8", "8/100", "3/5", "<think>7", "1,000"])
def test_what_is_no_grade_is_garbled(text: str) -> None:
    with pytest.raises(GarbledReply):
        read_grade(text)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("A", 1.0), ("b", 0.0), ("Tie.", 0.5), ("[[B]]", 0.0), ("**Winner: A**", 1.0), ("Both fine, but\nAnswer: b", 0.0)],
)
def test_a_verdict(text: str, verdict: float) -> None:
    assert read_verdict(text) == verdict


@pytest.mark.parametrize("text", ["", "A or B", "C", "A is better", "AB", "neither"])
def test_what_is_no_verdict_is_garbled(text: str) -> None:
    with pytest.raises(GarbledReply):
        read_verdict(text)


def test_a_conversation_is_made_of_text_or_messages() -> None:
    user, answer = {"role": "user", "content": "P"}, {"role": "assistant", "content": "R"}
    assert conversation("P", "R") == conversation([user], [answer]) == [user, answer]
    begun = {"role": "assistant", "content": "so"}
    assert conversation([user, begun], "R") == [user, {"role": "assistant", "content": "soR"}]
    assert begun["content"] == "so"


def test_messages_as_text() -> None:
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "P"}]
    assert as_text(turns, "user") == "system: S\n\nuser: P"
    assert as_text(turns[1:], "user") == as_text("P", "user") == "P"


def test_a_template_is_filled_in_one_pass() -> None:
    assert fill("{a} {b} {c}", a="{b}", b="2") == [{"role": "user", "content": "{b} 2 {c}"}]
    with pytest.raises(UserError, match=r"no \{b\} and no \{c\}"):
        check_template("{a}", "a", "b", "c")
