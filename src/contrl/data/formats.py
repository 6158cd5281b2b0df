"""Which columns make an example: TRL's supervised formats, found by the names of the columns."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from contrl.data.chat import Encoded, encode_messages, encode_pair, encode_text
from contrl.errors import UserError
from contrl.interfaces import Row


def encode_row(row: Row, tokenizer: PreTrainedTokenizerBase, *, assistant_only: bool = False) -> Encoded:
    """A supervised row as token ids: ``prompt`` + ``completion``, ``messages``, or ``text``.

    A column that holds None is absent: files with several formats fill up with it.

    Raises:
        UserError: naming the columns found and the formats accepted.
    """
    row = {name: value for name, value in row.items() if value is not None}
    if "completion" in row and "prompt" in row:
        return encode_pair(row["prompt"], row["completion"], tokenizer)
    if "messages" in row:
        return encode_messages(row["messages"], tokenizer, assistant_only=assistant_only)
    if "text" in row:
        return encode_text(str(row["text"]), tokenizer)
    raise UserError(
        f"columns {', '.join(sorted(row))} are no supervised row",
        fix="give prompt and completion, or messages, or text",
    )
