"""One batched tokenizer call for many renderings that share most of their text.

The renderings of one conversation (its prompt, its prompt with each answer, each turn) repeat each other. A tokenizer
splits a text at its special tokens before it does anything else, so what stands between two of them can be tokenised
once and put together again. That this holds is checked on some texts of every call; where it does not, or cannot be
known, the texts are tokenised whole.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from transformers import PreTrainedTokenizerBase

CHECKED = 8
"""Texts of each call that are also tokenised whole."""


def tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> list[list[int]]:
    """The ids of each text, as ``tokenizer(text, **options)`` gives them."""
    splitter = _splitter(tokenizer) if options.get("add_special_tokens") is False else None
    if splitter is None:
        return _ids(texts, tokenizer, options)
    parts = [[part for part in splitter.split(text) if part] for text in texts]
    distinct = list(dict.fromkeys(itertools.chain.from_iterable(parts)))
    # Where little is shared, putting together costs more than it saves.
    if sum(map(len, distinct)) >= 0.9 * sum(map(len, texts)):
        return _ids(texts, tokenizer, options)
    known = dict(zip(distinct, _ids(distinct, tokenizer, options), strict=True))
    joined = [list(itertools.chain.from_iterable(known[part] for part in each)) for each in parts]
    some = range(0, len(texts), max(1, len(texts) // CHECKED))
    if _ids([texts[i] for i in some], tokenizer, options) != [joined[i] for i in some]:
        return _ids(texts, tokenizer, options)
    return joined


def _ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> list[list[int]]:
    return list(tokenizer(list(texts), **options)["input_ids"]) if texts else []


def _splitter(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """What the tokenizer splits at before it normalises; None where a part's ids depend on what surrounds it."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer) or getattr(tokenizer, "split_special_tokens", False):
        return None
    # Tokens that take the blanks beside them, or look whether a word ends there, are not independent of their
    # neighbours; those matched after normalisation stay inside the parts.
    added = [token for token in backend.get_added_tokens_decoder().values() if not token.normalized]
    if not added or any(token.lstrip or token.rstrip or token.single_word for token in added):
        return None
    try:
        first = b"" if backend.pre_tokenizer is None else backend.pre_tokenizer.__getstate__()
    except Exception:  # a pre-tokenizer written in Python has no description
        return None
    if _depends_on_position(json.loads(first or "null")):
        return None
    # The longest first, because that is the one the tokenizer takes.
    contents = sorted((token.content for token in added), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, contents))})")


def _depends_on_position(described: Any) -> bool:
    """Whether a pre-tokenizer marks the first word of a text and no other."""
    if isinstance(described, Mapping):
        return described.get("prepend_scheme") == "first" or any(map(_depends_on_position, described.values()))
    return isinstance(described, list) and any(map(_depends_on_position, described))
