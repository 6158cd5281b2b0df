"""From logits to tokens: what the distribution drawn from is, and one token of it by the inverse of its cumulation.

Processors run in the order of transformers (repetition penalty, temperature, top-k, top-p, min-p), so the same settings
mean the same distribution there and here. The log-probabilities that are kept cost no pass of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from contrl.errors import UserError

BLOCK = 256
"""Tokens whose probabilities are summed before the search looks inside."""
CANDIDATES = 1024
"""Likeliest tokens that are sorted to find a nucleus; the whole vocabulary only where they do not reach it."""


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        max_new_tokens: length limit of a completion.
        samples_per_prompt: completions of each prompt.
        temperature: the logits are divided by it; 0 takes the likeliest token.
        top_p: keeps the fewest tokens whose probability reaches it; 1 = off.
        top_k: keeps the likeliest tokens; 0 = off.
        min_p: keeps tokens at least this share as likely as the likeliest; 0 = off.
        repetition_penalty: logits of tokens in the prompt or the completion are divided by it where positive, and
            multiplied where negative; 1 = off.
        stop: texts that end a completion; the token that completes one is its last.
        stop_tokens: tokens that end a completion, beside the model's own end tokens.
    """

    max_new_tokens: int
    samples_per_prompt: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        bounds = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "samples_per_prompt": (self.samples_per_prompt >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "min_p": (0 <= self.min_p <= 1, "between 0 (off) and 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0; 1 is off"),
            "stop": (isinstance(self.stop, tuple) and all(self.stop), "a tuple of texts, none of them empty"),
        }
        for name, (fits, wanted) in bounds.items():
            if not fits:
                raise UserError(f"{name} is {getattr(self, name)!r}", where="sampling", fix=f"give {wanted}")

    @property
    def penalises(self) -> bool:
        """Whether the logits depend on the tokens so far."""
        return self.repetition_penalty != 1

    @property
    def filters(self) -> bool:
        """Whether some tokens may be left out."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)


def choose(
    logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling, used: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row by the inverse cumulative distribution, and its log-probabilities.

    Args:
        logits: ``[B, V]``.
        uniforms: ``[B]`` in [0, 1), float64; unused when greedy.
        sampling: temperature and processors.
        used: ``[B, V]`` True = the token stands in the prompt or the completion; needed with a repetition penalty.

    Returns:
        Tokens ``[B]`` and ``[B, 2]``: log-probability under the distribution drawn from, and under the policy with the
        temperature alone; both at temperature 1 when greedy.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    shaped = logits if used is None or not sampling.penalises else _penalised(logits, used, sampling.repetition_penalty)
    if sampling.temperature == 0:
        token = shaped.argmax(-1, keepdim=True)
        drawn = torch.log_softmax(shaped, -1).gather(-1, token)
        policy = drawn if shaped is logits else torch.log_softmax(logits, -1).gather(-1, token)
    else:
        probabilities = torch.softmax(filtered(_scaled(shaped, sampling), sampling), -1)
        token = invert(probabilities, uniforms)[0][:, None]
        drawn = policy = probabilities.gather(-1, token).log()
        if sampling.filters or shaped is not logits:
            policy = torch.log_softmax(_scaled(logits, sampling), -1).gather(-1, token)
    return token[:, 0], torch.cat([drawn, policy], -1).double()


def invert(weights: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The index at which the cumulated weights pass each uniform's share of their sum; never one of weight 0.

    Blocks first, then inside the block: sums of float32 weights are cumulated in float64, without a float64 copy of the
    whole table.

    Args:
        weights: ``[B, V]``, not negative, with a positive sum.
        uniforms: ``[B]`` in [0, 1), float64.

    Returns:
        Indices ``[B]``, and where in the weight of its index each uniform lies, ``[B]`` in [0, 1).
    """
    size = weights.shape[-1]
    if size > 2 * BLOCK:
        whole = size // BLOCK * BLOCK
        sums = weights[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
        if whole < size:
            sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], -1)
        block, uniforms = invert(sums, uniforms)
        index = block[:, None] * BLOCK + torch.arange(BLOCK, device=weights.device)
        inside = weights.gather(-1, index.clamp(max=size - 1)).masked_fill(index >= size, 0)
        position, rest = invert(inside, uniforms)
        return (block * BLOCK + position).clamp(max=size - 1), rest
    cumulative = weights.double().cumsum(-1)
    total = cumulative[:, -1:]
    # Rounding may put a uniform near 1 on the sum itself, past every token.
    threshold = torch.minimum(uniforms[:, None] * total, total.nextafter(torch.zeros_like(total)))
    # Past the end only for weights that are not numbers; those are reported where the loss is.
    index = torch.searchsorted(cumulative, threshold, right=True).clamp(max=size - 1)
    weight = weights.double().gather(-1, index)
    rest = (threshold - (cumulative.gather(-1, index) - weight)) / weight
    return index[:, 0], rest[:, 0].clamp(0, 1)


def filtered(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """``[B, V]`` logits, at the temperature already, with -inf for every token that is left out."""
    if not sampling.filters:
        return logits
    out = float("-inf")
    if sampling.top_k:
        weakest = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < weakest, out)
    if sampling.top_p < 1:
        logits = logits.masked_fill(~_nucleus(torch.softmax(logits, -1), sampling.top_p), out)
    if sampling.min_p > 0:
        least = torch.softmax(logits, -1).amax(-1, keepdim=True) * sampling.min_p
        logits = logits.masked_fill(torch.softmax(logits, -1) < least, out)
    return logits


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """``[B, V]`` True = among the fewest tokens whose probability reaches ``top_p``."""
    ordered, index = probabilities.topk(min(CANDIDATES, probabilities.shape[-1]))
    if ordered.shape[-1] < probabilities.shape[-1] and bool((ordered.sum(-1) < top_p).any()):
        ordered, index = probabilities.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(probabilities, dtype=torch.bool).scatter(-1, index, before < top_p)


def _scaled(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    return logits if sampling.temperature == 1 else logits / sampling.temperature


def _penalised(logits: torch.Tensor, used: torch.Tensor, penalty: float) -> torch.Tensor:
    return torch.where(used, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
