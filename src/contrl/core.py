"""Answers as tensors, for programs that sample themselves: ``trl.core`` under its own names, on contrl's decode loop.

Noise is drawn from torch's own generator, so ``torch.manual_seed`` repeats an answer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import set_seed

from contrl.engine.encoder_decoder import is_encoder_decoder
from contrl.engine.lm_head import causal_lm
from contrl.errors import UserError
from contrl.models.load import end_tokens
from contrl.models.modes import evaluating
from contrl.models.value_models import language_model
from contrl.rollout.sampler import Noise, Sampling, generate

__all__ = ["LengthSampler", "draw", "respond_to_batch", "set_seed"]


class LengthSampler:
    """Draws lengths from ``min_value`` to below ``max_value``, each as likely."""

    def __init__(self, min_value: int, max_value: int) -> None:
        if not max_value > min_value:
            raise UserError(f"no length lies between {min_value} and {max_value}", fix="give max_value above min_value")
        self.values = range(min_value, max_value)

    def __call__(self) -> int:
        return random.choice(self.values)


def respond_to_batch(
    model: Any, queries: torch.Tensor, txt_len: int = 20, top_k: int = 0, top_p: float = 1.0
) -> torch.Tensor:
    """Sample answers of a fixed length, token by token, at temperature 1.

    Args:
        model: a language model, with or without a value head.
        queries: ``[B, T]`` token ids; every one is read, so rows of different length are given one by one.
        txt_len: tokens of each answer; an end token does not end it, and an encoder-decoder draws none.
        top_k: draw from the likeliest so many tokens; 0 = all.
        top_p: draw from the fewest tokens whose probability reaches it; 1 = all.

    Returns:
        ``[B, txt_len]`` the answers alone, without the queries.

    Raises:
        UserError: when the queries are no table of token ids.
    """
    if not isinstance(queries, torch.Tensor) or queries.dim() != 2 or queries.is_floating_point():
        raise UserError("queries must be a tensor of token ids [B, T]", fix="encode with return_tensors='pt'")
    policy, sampling = language_model(model), Sampling(txt_len, top_p=top_p, top_k=top_k)
    rows = queries.tolist()
    if is_encoder_decoder(causal_lm(policy)):
        answers = _generated(policy, rows, sampling, {"min_new_tokens": txt_len})
    else:
        answers = _sampled(policy, rows, sampling, ends=())
    return torch.tensor(answers, dtype=torch.long, device=queries.device)


def draw(
    policy: Any, queries: Sequence[list[int]], lengths: Sequence[int], generation: Mapping[str, Any]
) -> list[list[int]]:
    """An answer to each query, drawn as transformers' arguments of generation say; what is not given is off.

    Args:
        policy: a language model without its value head's wrapper.
        queries: token ids.
        lengths: ``max_new_tokens`` of each query, or nothing for the same one.
        generation: do_sample, max_new_tokens (20), temperature, top_k, top_p, min_p, repetition_penalty, eos_token_id
            (-1: nothing ends an answer). With any other argument transformers' own ``generate`` answers.

    Returns:
        The answers alone, the token that ended one included.
    """
    given = {name: value for name, value in generation.items() if value is not None and name != "pad_token_id"}
    if given.get("min_length", 1) <= 0:
        del given["min_length"]
    longest, ends = int(given.pop("max_new_tokens", 20)), given.pop("eos_token_id", end_tokens(policy))
    ends = [end for end in (ends if isinstance(ends, list | tuple) else [ends]) if end >= 0]
    samples = bool(given.pop("do_sample", False))
    how: dict[str, Any] = {name: given.pop(name) for name in _SAMPLING if name in given}
    how = {**how, "temperature": how.get("temperature", 1.0) if samples else 0.0, "top_k": int(how.get("top_k", 0))}
    settings = [Sampling(length, **how) for length in (lengths or [longest] * len(queries))]
    if given or is_encoder_decoder(causal_lm(policy)):
        return [
            _generated(policy, [query], sampling, _ending(ends, sampling) | given)[0]
            for query, sampling in zip(queries, settings, strict=True)
        ]
    if not lengths:
        return _sampled(policy, queries, settings[0], ends)
    pairs = zip(queries, settings, strict=True)
    return [_sampled(policy, [query], sampling, ends)[0] for query, sampling in pairs]


_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def _ending(ends: Sequence[int], sampling: Sampling) -> dict[str, Any]:
    return {"eos_token_id": list(ends)} if ends else {"min_new_tokens": sampling.max_new_tokens}


def _sampled(policy: Any, queries: Sequence[list[int]], sampling: Sampling, ends: Sequence[int]) -> list[list[int]]:
    """By contrl's decode loop."""
    noise = Noise((int(torch.randint(2**31, ())),))
    found = generate(policy, [(str(row), list(ids)) for row, ids in enumerate(queries)], sampling, noise, ends)
    return [completions[0].ids for completions in found]


def _generated(
    policy: Any, queries: list[list[int]], sampling: Sampling, further: Mapping[str, Any]
) -> list[list[int]]:
    """By transformers' ``generate``: for encoder-decoders, and for what the decode loop has no word for.

    Queries are of one length: padding would be read.
    """
    drawn: dict[str, Any] = {"do_sample": sampling.temperature > 0, "max_new_tokens": sampling.max_new_tokens}
    if sampling.temperature > 0:
        # Said outright: a model's own generation settings would change the distribution.
        drawn |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        drawn |= {"min_p": sampling.min_p} if sampling.min_p else {}
    drawn["repetition_penalty"] = sampling.repetition_penalty
    ids = torch.tensor(queries, device=next(policy.parameters()).device)
    with evaluating(policy), torch.no_grad():
        out = policy.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **{**drawn, **further})
    first = 1 if is_encoder_decoder(causal_lm(policy)) else ids.shape[1]
    return out[:, first:].tolist()
