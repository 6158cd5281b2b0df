"""Texts tokenised part by part have the ids of whole texts, and parts are only made where that can hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from contrl.data import segments
from tests.data.toys import CHATML, chat_tokenizer, merging_tokenizer

OPTIONS = {"add_special_tokens": False}


def one_by_one(texts: list[str], tokenizer: Any) -> list[list[int]]:
    return [tokenizer(text, **OPTIONS)["input_ids"] for text in texts]


def byte_tokenizer(prefix_space: bool) -> Any:
    """Bytes, as in GPT-2, with two special tokens; with or without a space before each text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({byte: index for index, byte in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|im"]})
    return tokenizer


def first_word_tokenizer() -> Any:
    """Marks the first word of a text, as some sentence-piece tokenizers do."""
    backend = Tokenizer(models.BPE({"▁": 0, "a": 1, "b": 2}, []))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    return tokenizer


TOKENIZERS = {
    "characters": chat_tokenizer(CHATML),
    "merging": merging_tokenizer(),
    "bytes": byte_tokenizer(prefix_space=False),
    "bytes with a space": byte_tokenizer(prefix_space=True),
    "first word": first_word_tokenizer(),
}
turns = some.lists(
    some.sampled_from(["<|im_start|>", "<|im_end|>", "<|im", "<eos>", "|>", "\n", " ", "a", "ab", "abc", "é"]),
    max_size=8,
).map("".join)


@given(some.lists(turns, max_size=12), some.sampled_from(sorted(TOKENIZERS)))
@settings(deadline=None, max_examples=150)
def test_parts_put_together_are_the_whole(texts: list[str], name: str) -> None:
    repeated = texts + texts[:4] + ["".join(texts)]
    assert segments.tokenize(repeated, TOKENIZERS[name], OPTIONS) == one_by_one(repeated, TOKENIZERS[name])


class Recording:
    """A tokenizer that keeps what it was asked."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.asked: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, texts: list[str], **options: Any) -> Any:
        self.asked.append(texts)
        return self.tokenizer(texts, **options)


TEXTS = [f"<|im_start|>the same long question<|im_end|>{answer}<|im_end|>" for answer in "abcdefghijklmnopqrst"]


def test_what_texts_share_is_tokenised_once() -> None:
    """20 texts: their parts once, then a few of them whole for the check."""
    recording: Any = Recording(TOKENIZERS["bytes"])
    assert segments.tokenize(TEXTS, recording, OPTIONS) == one_by_one(TEXTS, TOKENIZERS["bytes"])
    parts, check = recording.asked
    assert parts == ["<|im_start|>", "the same long question", "<|im_end|>", *"abcdefghijklmnopqrst"]
    assert len(check) <= 2 * segments.CHECKED
    assert set(check) <= set(TEXTS)


@pytest.mark.parametrize("kind", ["strips", "first word", "adds its own", "nothing shared"])
def test_texts_are_tokenised_whole_where_parts_would_not_do(kind: str) -> None:
    options, texts = OPTIONS, TEXTS
    tokenizer = TOKENIZERS["first word"] if kind == "first word" else byte_tokenizer(prefix_space=False)
    if kind == "strips":
        tokenizer.add_tokens(AddedToken("<tool>", lstrip=True, normalized=False))
    if kind == "adds its own":
        options = {}
    if kind == "nothing shared":
        texts = ["one text", "and another"]
    recording: Any = Recording(tokenizer)
    assert segments.tokenize(texts, recording, options) == [tokenizer(text, **options)["input_ids"] for text in texts]
    assert recording.asked == [texts]


def test_a_tokenizer_that_is_not_what_it_says_is_found_out() -> None:
    """Its answers depend on the whole text; the check on whole texts notices."""

    class Odd(Recording):
        def __call__(self, texts: list[str], **options: Any) -> Any:
            self.asked.append(texts)
            return {"input_ids": [[len(text)] for text in texts]}

    odd: Any = Odd(TOKENIZERS["bytes"])
    assert segments.tokenize(TEXTS, odd, OPTIONS) == [[len(text)] for text in TEXTS]
    assert odd.asked[-1] == TEXTS
