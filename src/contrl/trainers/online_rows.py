"""Rows of a trainer that samples, as prompts: of pairs and chats the question, of token ids the text they came from.

A reward reads text, so a tokenised prompt is turned back; a row whose text does not give the same ids again is refused,
because the policy would be asked something else than the data say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from contrl.data.prompts import to_prompts
from contrl.errors import UserError
from contrl.interfaces import Row, Task


def as_prompts(task: Task, tokenizer: Any, options: Any, say: Callable[[str], None]) -> Task:
    """The task with a ``prompt`` in every row that has something of the kind.

    Args:
        options: what every row hands to the chat template, besides its own ``chat_template_kwargs``.
        say: told what was left out of the training rows.

    Raises:
        UserError: for token ids without a text of their own.
    """
    (train, notes), (held_out, _) = (
        to_prompts(_as_text(task.train, tokenizer)),
        to_prompts(_as_text(task.eval, tokenizer)),
    )
    for line in notes:
        say(line)
    return replace(task, train=_with_options(train, options), eval=_with_options(held_out, options))


def _with_options(rows: Sequence[Row], options: Any) -> Sequence[Row]:
    if not isinstance(options, Mapping):
        return rows
    return [{**row, "chat_template_kwargs": {**options, **(row.get("chat_template_kwargs") or {})}} for row in rows]


def _as_text(rows: Sequence[Row], tokenizer: Any) -> list[Row]:
    if not any(row.get("prompt") is None and row.get("input_ids") is not None for row in rows):
        return list(rows)
    return [_decoded(row, tokenizer) for row in rows]


def _decoded(row: Row, tokenizer: Any) -> Row:
    """A row of ``input_ids``, and perhaps ``attention_mask``, with the text of its ids as ``prompt``."""
    if row.get("prompt") is not None or row.get("input_ids") is None:
        return row
    ids = [int(token) for token in row["input_ids"]]
    mask = row.get("attention_mask")
    if mask is not None:
        ids = [token for token, kept in zip(ids, mask, strict=True) if kept]
    elif tokenizer.pad_token_id is not None:
        while ids and ids[0] == tokenizer.pad_token_id:
            ids = ids[1:]
    # A tokenizer that begins with a token of its own adds it again.
    for without in (True, False):
        text = str(tokenizer.decode(ids, skip_special_tokens=without, clean_up_tokenization_spaces=False))
        if list(tokenizer(text)["input_ids"]) == ids:
            rest = {name: value for name, value in row.items() if name not in ("input_ids", "attention_mask")}
            return {**rest, "prompt": text}
    raise UserError(
        f"the input_ids of row {row['id']} are not what the tokenizer makes of their text",
        why="a prompt is kept as text, which rewards read",
        fix="give the text, as a column `prompt`",
    )
