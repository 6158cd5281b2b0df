"""Which columns make an example, and what the error says when none do."""

from __future__ import annotations

from typing import Any

import pytest

from contrl.data.formats import encode_row
from contrl.errors import UserError
from contrl.models.embedded import character_tokenizer

PAIR: dict[str, Any] = {"prompt": "1+2=", "completion": "3"}
MESSAGES: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
TEXT: dict[str, Any] = {"text": "abc"}


def decoded(row: dict[str, Any], **options: Any) -> tuple[str, str, int]:
    """Prompt, completion and number of trained tokens."""
    tokenizer = character_tokenizer()
    encoded = encode_row(row, tokenizer, **options)
    prompt, completion = (str(tokenizer.decode(ids)) for ids in (encoded.prompt_ids, encoded.completion_ids))
    return prompt, completion, sum(encoded.trained)


def test_prompt_and_completion() -> None:
    assert decoded({"id": "0", **PAIR}) == ("1+2=", "3<eos>", 2)


def test_messages() -> None:
    assert decoded({"id": "0", **MESSAGES}) == ("u", "ser: hi\nassistant: ho<eos>", 22)
    assert decoded({"id": "0", **MESSAGES}, assistant_only=True)[2] == 3


def test_text() -> None:
    assert decoded({"id": "0", **TEXT}) == ("a", "bc<eos>", 3)


def test_a_prompt_and_completion_go_before_messages_and_text() -> None:
    assert decoded({**PAIR, **MESSAGES, **TEXT}) == decoded(PAIR)
    assert decoded({**MESSAGES, **TEXT}) == decoded(MESSAGES)


def test_a_column_of_none_is_absent() -> None:
    """A file of mixed rows is filled up with None; "None" must never be trained as a word."""
    assert decoded({"prompt": None, "completion": None, **TEXT}) == decoded(TEXT)
    with pytest.raises(UserError, match="columns prompt are no supervised row"):
        decoded({"prompt": "1+2=", "completion": None})


def test_the_error_names_the_columns_found_and_the_formats_accepted() -> None:
    with pytest.raises(UserError) as error:
        decoded({"id": "0", "question": "?", "answer": "!"})
    assert str(error.value) == (
        "columns answer, id, question are no supervised row\n  give prompt and completion, or messages, or text"
    )
