"""A verifier for the tests of evaluations: it likes digits, in text and in messages."""

from __future__ import annotations

from typing import Any


def digits(*, completions: list[Any], **columns: list[Any]) -> list[float]:
    """Share of digits, and a little for length."""
    texts = [given if isinstance(given, str) else given[-1]["content"] for given in completions]
    return [sum(letter.isdigit() for letter in text) / 6 + len(text) / 100 for text in texts]
