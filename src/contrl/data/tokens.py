"""Tokenisation of many rows at once, whatever a method's ``prepare`` asks for, and its cache on disk.

``prepare`` is written for one row and one tokenizer call at a time, which is readable and slow. So it runs twice: first
against a stand-in that only collects the texts, then against their ids, which the real tokenizer gave in one batched
call. What the first pass did not foresee is asked of the real tokenizer, so the result is always that of one by one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from contrl.data import segments
from contrl.data.token_cache import TokenCache
from contrl.errors import UserError
from contrl.interfaces import Group, Method, Row

Prepare = Callable[[Row, PreTrainedTokenizerBase], Group]

CHUNK = 1000
"""Rows of one batched call: enough to be fast, few enough that renderings and ids fit in memory twice."""

CACHED_FROM = 1000
"""Fewer rows are tokenised sooner than a cache file is found."""

_PLAIN = frozenset({"add_special_tokens"})
"""Options of a tokenizer call that may be batched; any other call goes to the real tokenizer as it is."""


def prepare_rows(rows: Sequence[Row], method: Method, tokenizer: PreTrainedTokenizerBase) -> list[Group | UserError]:
    """Each row as a group of ``method``, or why it cannot be used; read from the cache where these rows are in it."""
    cache = TokenCache.of(rows, method, tokenizer) if len(rows) >= CACHED_FROM else None
    found = cache.read(rows) if cache else None
    if found is not None:
        return found
    made = prepare_many(rows, method.prepare, tokenizer)
    if cache:
        cache.write(made, rows)
    return made


def prepare_many(rows: Sequence[Row], prepare: Prepare, tokenizer: PreTrainedTokenizerBase) -> list[Group | UserError]:
    """``prepare(row, tokenizer)`` of every row, or the UserError it raised, in order; equal to one by one."""
    result: list[Group | UserError] = []
    for start in range(0, len(rows), CHUNK):
        result += _prepare_chunk(rows[start : start + CHUNK], prepare, tokenizer)
    return result


def _prepare_chunk(
    rows: Sequence[Row], prepare: Prepare, tokenizer: PreTrainedTokenizerBase
) -> list[Group | UserError]:
    stand_in = _StandIn(tokenizer)
    for row in rows:
        # Made-up ids may lead anywhere; the second pass meets the true error.
        with contextlib.suppress(Exception):
            prepare(row, cast(PreTrainedTokenizerBase, stand_in))
    stand_in.tokenize()
    return [_prepared(row, prepare, tokenizer, stand_in) for row in rows]


def _prepared(row: Row, prepare: Prepare, tokenizer: PreTrainedTokenizerBase, stand_in: _StandIn) -> Group | UserError:
    try:
        return prepare(row, cast(PreTrainedTokenizerBase, stand_in))
    except UserError as error:
        return error
    except Exception:  # perhaps it wants more of a tokenizer than the stand-in has
        try:
            return prepare(row, tokenizer)
        except UserError as error:
            return error


class _StandIn:
    """Behaves like the tokenizer in what encoding a row needs; made-up ids first, the real ones after ``tokenize``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[tuple[tuple[str, Any], ...], dict[str, list[int]]] = {}
        self._rendered: dict[str, str | Exception] = {}
        self._collects = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, text: Any = None, **options: Any) -> Mapping[str, Any]:
        if not isinstance(text, str) or not options.keys() <= _PLAIN:
            return self._tokenizer(text, **options) if text is not None else self._tokenizer(**options)
        known = self._ids.setdefault(tuple(options.items()), {})
        if self._collects:
            # Bytes, because a beginning of a text then is a beginning of its ids, as with most real tokenizers.
            made_up = list(text.encode())
            known[text] = []
            return {"input_ids": made_up}
        if text not in known:
            known[text] = self._tokenizer(text, **options)["input_ids"]
        return {"input_ids": list(known[text])}

    def tokenize(self) -> None:
        """Ask the real tokenizer for everything collected, and answer with it from now on."""
        self._collects = False
        for options, texts in self._ids.items():
            batch = list(texts)
            texts.clear()
            # A text that the tokenizer refuses must not take the others with it: then each is asked for alone.
            with contextlib.suppress(Exception):
                texts.update(zip(batch, segments.tokenize(batch, self._tokenizer, dict(options)), strict=True))

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """The real rendering, made once for equal conversations and options."""
        if options.get("tokenize", True):
            return self._tokenizer.apply_chat_template(conversation, **options)
        try:
            key = json.dumps([conversation, options])
        except (TypeError, ValueError):
            return self._tokenizer.apply_chat_template(conversation, **options)
        if key not in self._rendered:
            try:
                self._rendered[key] = cast(str, self._tokenizer.apply_chat_template(conversation, **options))
            except Exception as error:  # whatever the template's author chose, again on the second pass
                self._rendered[key] = error
        rendered = self._rendered[key]
        if isinstance(rendered, Exception):
            raise rendered
        return rendered
