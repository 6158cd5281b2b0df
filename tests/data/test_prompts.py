"""Rows of every format as prompts: the question stays, with every column that a verifier may read."""

from __future__ import annotations

from typing import Any

import pytest

from contrl.data.prompts import to_prompts

USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "2+2?"), ("assistant", "4"), ("assistant", "5"))
)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "2+2=", "chosen": "4", "rejected": "5", "margin": 1.0}, "2+2="),
        ({"prompt": "2+2=", "chosen": "4", "rejected": "4"}, "2+2="),
        ({"chosen": "Q: 2+2? A: 4", "rejected": "Q: 2+2? A: 5"}, "Q: 2+2? A:"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, [USER]),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER]),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, [USER]),
        ({"prompt": "a label", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER]),
        ({"messages": [USER, GOOD]}, [USER]),
    ],
)
def test_the_question_is_kept(row: dict[str, Any], prompt: Any) -> None:
    (made,), notes = to_prompts([{**row, "id": "7", "target": 4}])
    assert (made["prompt"], made["id"], made["target"], notes) == (prompt, "7", 4, [])
    assert not {"chosen", "rejected", "margin", "messages"} & set(made)
    if "messages" in row:
        assert made["completion"] == [GOOD]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2=", "target": 4},
        {"prompt": "2+2=", "completion": "4"},
        {"prompt": "2+2=", "completion": "4", "label": True},
        {"text": "no question"},
        {"messages": [USER]},
        {"chosen": "same", "rejected": "same"},
    ],
)
def test_other_rows_stay(row: dict[str, Any]) -> None:
    assert to_prompts([row]) == ([row], [])


def test_a_question_of_several_pairs_is_asked_once() -> None:
    """Prompts that are prompts already may repeat: whoever wrote them meant it."""
    pairs = [{"id": str(i), "prompt": f"{i // 2}=", "chosen": "a", "rejected": "b"} for i in range(4)]
    rows, notes = to_prompts([*pairs, {"id": "x", "prompt": "0="}, {"id": "y", "prompt": "0="}])
    assert [row["id"] for row in rows] == ["0", "2", "x", "y"]
    assert notes == ["4 pairs ask 2 different questions; each is a prompt once"]
