"""When a completion is over: at an end token, or with the token that completes a stop text.

A text may be cut into tokens in many ways, so stop texts are looked for in decoded text and never in token ids. Only
the last tokens are decoded: as many as the longest stop text may need when each brings one byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from contrl.errors import UserError

_BYTES_PER_CHARACTER = 4
_MARGIN = 4  # tokenizers treat the first token of a text differently


class Ending:
    """Says which rows end. ``window`` is how many of a row's last tokens it looks at.

    Args:
        tokens: ids that end a completion.
        texts: texts that do; they need a tokenizer.
        tokenizer: decodes.

    Raises:
        UserError: for stop texts without a tokenizer.
    """

    def __init__(self, tokens: Sequence[int], texts: Sequence[str], tokenizer: Any, device: torch.device) -> None:
        if texts and tokenizer is None:
            raise UserError(
                f"the stop text {texts[0]!r} cannot be looked for without a tokenizer",
                where="sampling",
                fix="pass the tokenizer, or stop at token ids",
            )
        self.texts, self.tokenizer = tuple(texts), tokenizer
        self._tokens = torch.tensor(sorted(set(tokens)), dtype=torch.long, device=device)
        longest = max((len(text) for text in texts), default=0)
        self.window = longest * _BYTES_PER_CHARACTER + _MARGIN if longest else 1

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """``[B]`` True = the row is over.

        Args:
            tokens: ``[B, T]`` the last tokens of the rows' completions, ``window`` of them or all there are; none of
                the rows was over before its last token.
        """
        over = torch.isin(tokens[:, -1], self._tokens)
        if self.texts:
            over = over | torch.tensor(self._stopped(tokens.tolist()), device=over.device)
        return over

    def _stopped(self, rows: list[list[int]]) -> list[bool]:
        decoded = [str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)) for ids in rows]
        return [any(text in found for text in self.texts) for found in decoded]
