"""Toy tokenizers and chat templates of every habit, for the tests of rows that become token ids."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerFast

from contrl.models.embedded import character_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The same text with the blocks by which transformers marks assistant tokens; ``generation`` renders to nothing.
CHATML_WITH_BLOCKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The same with the newline inside the block, as the training templates that TRL ships for ChatML have it.
CHATML_WITH_WHOLE_BLOCKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Shows a thought only in the last assistant turn, as some reasoning models' templates do.
LAST_THOUGHT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>hm</think>' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Its generation prompt opens a thought that no rendered conversation holds.
OPENS_THOUGHT = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>' }}{% endif %}")

# Writes what the row itself asks for: its tools, and an empty thought unless thinking is on.
ASKS_THE_ROW = (
    "{% if tools %}{{ '<tools>' + (tools | tojson) + '</tools>\n' }}{% endif %}"
    + CHATML.replace("{% if add_generation_prompt %}", "{% if add_generation_prompt and enable_thinking is defined %}")
    + "{% if add_generation_prompt and enable_thinking is false %}{{ '<think></think>' }}{% endif %}"
)

USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}
AGAIN = {"role": "user", "content": "sure?"}
YES = {"role": "assistant", "content": "yes"}


def chat_tokenizer(template: str | None) -> Any:
    """Characters, with the two ChatML marks as one special token each."""
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def merging_tokenizer(**options: Any) -> Any:
    """A tiny BPE that merges "a"+"b" and "ab"+"c" into one token, so a boundary can vanish inside a token."""
    vocabulary = {token: i for i, token in enumerate(["<eos>", "<bos>", "a", "b", "c", "d", "ab", "abc"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("ab", "c")]))
    tokenizer.decoder = decoders.Fuse()
    if options.pop("adds_special", False):
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"eos_token": "<eos>", **options})
