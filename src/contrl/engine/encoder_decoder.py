"""The forward of encoder-decoder models (T5, Bart): the encoder reads each prompt once, the decoder its completions.

There is no layout to choose: the encoder's states are what a shared prompt is elsewhere, repeated for the group's
completions, and gradients flow back through them. The decoder starts from the model's own start token.
"""

from __future__ import annotations

from typing import Any

import torch

from contrl.errors import UserError
from contrl.interfaces import Batch, Group

_SCALED_WHERE_TIED = ("umt5", "switch_transformers")
"""Families that scale before a tied head, and whose configuration has no word of its own for it."""


def is_encoder_decoder(causal: Any) -> bool:
    """Whether the model (without its adapter's wrapper) has an encoder of its own for the prompt."""
    return bool(getattr(causal.config, "is_encoder_decoder", False))


def output_terms(causal: Any) -> tuple[float, torch.Tensor | None]:
    """What such a model does to its logits beside the head: a factor, and a bias ``[1, V]`` or None.

    T5 scales the states before a tied head, which is the same as scaling the logits of a head without bias.
    """
    if not is_encoder_decoder(causal):
        return 1.0, None
    config = causal.config
    scales = getattr(config, "scale_decoder_outputs", None)
    if scales is None:
        scales = config.model_type in _SCALED_WHERE_TIED and config.tie_word_embeddings
    return (float(config.d_model) ** -0.5 if scales else 1.0), getattr(causal, "final_logits_bias", None)


def start_token(causal: Any) -> int:
    """The token that the decoder starts from.

    Raises:
        UserError: when the model names none.
    """
    for config in (causal.config, getattr(causal, "generation_config", None)):
        for name in ("decoder_start_token_id", "bos_token_id"):
            token = getattr(config, name, None)
            if token is not None:
                return int(token)
    raise UserError(
        f"{type(causal).__name__} names no token that its decoder starts from", fix="set config.decoder_start_token_id"
    )


def states(causal: Any, batch: Batch) -> torch.Tensor:
    """``[M, H]`` hidden states of the decoder that predict the trained tokens, as ``batch.mask.nonzero()`` orders them.

    Raises:
        UserError: for a prompt without tokens.
    """
    device = batch.ids.device
    lengths = [len(group.prompt_ids) for group in batch.groups]
    if 0 in lengths:
        raise UserError("a prompt has no tokens", why="the encoder has nothing to read")
    prompts = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, group in enumerate(batch.groups):
        # Right padding: learned positions then count from the first token, as in the model's own tokenizer.
        prompts[row, : lengths[row]] = torch.tensor(group.prompt_ids)
    seen = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long().to(device)
    read = causal.get_encoder()(input_ids=prompts.to(device), attention_mask=seen).last_hidden_state
    # What stands before each completion token; right padding is seen by nothing before it.
    first = torch.full_like(batch.ids[:, :1], start_token(causal))
    written = causal.get_decoder()(
        input_ids=torch.cat([first, batch.ids[:, :-1]], dim=1),
        encoder_hidden_states=read[batch.group_index],
        encoder_attention_mask=seen[batch.group_index],
        use_cache=False,
    )
    return written.last_hidden_state[batch.mask]


def own_logits(causal: Any, group: Group, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """For the check at the start: the model's own logits of one short row, and the decoder's states below them.

    Returns:
        ``[T, V]`` and ``[T, H]``.
    """
    tokens = torch.tensor([group.prompt_ids[:32] or [0]], device=device)
    written = torch.tensor([[start_token(causal), *group.completions[0].ids[:31]]], device=device)
    out = causal(input_ids=tokens, decoder_input_ids=written, use_cache=False)
    read = causal.get_encoder()(input_ids=tokens).last_hidden_state
    below = causal.get_decoder()(input_ids=written, encoder_hidden_states=read, use_cache=False)
    return out.logits[0], below.last_hidden_state[0]
