"""Small rule rewards that need no model: exact match with the row's own completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def _text(value: Any) -> str:
    return str(value[-1]["content"]) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def exact_match(*, completions: list, completion: list | None = None, **columns: Any) -> list[float | None]:
    """1 where the sampled completion equals the row's ``completion`` column, surrounding spaces aside; else 0.

    None (not applicable) for rows without that column. The column may hold text or messages.
    """
    wanted = completion if completion is not None else [None] * len(completions)
    return [
        None if target is None else float(_text(answer).strip() == _text(target).strip())
        for answer, target in zip(completions, wanted, strict=True)
    ]
