"""Own decode loop: each prompt is prefilled once, its cache repeated, finished rows are dropped.

The noise is one uniform number per token, a function of (seed, stage, step, row, sample, position), turned into
a token by the inverse of the cumulative distribution. So chunking, dropping and the number of ranks change no
token, and a resumed run samples what the interrupted one would have.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from contrl.errors import UserError
from contrl.faults import reach
from contrl.interfaces import Completion
from contrl.models.modes import evaluating


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. ``temperature = 0`` takes the likeliest token."""

    max_new_tokens: int
    samples_per_prompt: int = 1
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Noise:
    """Where the uniform numbers of a rollout come from; ``key`` is (seed, stage, step) or any integers."""

    key: tuple[int, ...]

    def uniforms(self, name: str, sample: int, length: int) -> np.ndarray:
        """``[length]`` numbers in [0, 1) for one completion of the prompt called ``name``."""
        entropy = [*self.key, zlib.crc32(name.encode()), sample]
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))).random(length)


def generate(
    model: nn.Module,
    prompts: Sequence[tuple[str, list[int]]],
    sampling: Sampling,
    noise: Noise,
    eos_ids: Sequence[int],
    tokens_per_chunk: int = 2**15,
) -> list[list[Completion]]:
    """Sample completions.

    Args:
        model: a causal language model, unwrapped. It is sampled in eval mode, without dropout, whatever mode it is in.
        prompts: (stable name, token ids) of each prompt; no ids may be empty.
        sampling: lengths, temperature, number of samples.
        noise: source of randomness; unused when greedy.
        eos_ids: tokens that end a completion (kept as its last token).
        tokens_per_chunk: cache positions that decode side by side.

    Returns:
        For each prompt its completions, with ``sampler_logps`` (of the distribution drawn from) and ``old_logps``
        (temperature only; the same numbers unless ``top_p < 1``). Greedy log-probabilities are at temperature 1.
    """
    if any(not ids for _, ids in prompts):
        raise UserError("a prompt has no tokens", fix="give every prompt at least one token")
    adapters: dict[str, Any] = getattr(model, "peft_config", None) or {}
    if any(adapter.is_prompt_learning for adapter in adapters.values()):
        raise UserError("virtual-token adapters cannot sample with contrl's decode loop", fix="use LoRA")
    results: list[list[Completion]] = [[] for _ in prompts]
    with torch.no_grad(), evaluating(model):
        for chunk in _chunks(prompts, sampling, tokens_per_chunk):
            reach("sampling")
            decoded = _decode(model, [prompts[i] for i in chunk], sampling, noise, eos_ids)
            for position, completions in zip(chunk, decoded, strict=True):
                results[position] = completions
    return results


def _chunks(prompts: Sequence[tuple[str, list[int]]], sampling: Sampling, budget: int) -> Iterator[list[int]]:
    """Indices of prompts of similar length whose caches fit the budget together, longest first."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i][1]))
    chunk: list[int] = []
    width = 0
    for i in order:
        width = width or len(prompts[i][1]) + sampling.max_new_tokens
        if chunk and (len(chunk) + 1) * sampling.samples_per_prompt * width > budget:
            yield chunk
            chunk, width = [], len(prompts[i][1]) + sampling.max_new_tokens
        chunk.append(i)
    if chunk:
        yield chunk


def _prefill(model: Any, prompts: Sequence[tuple[str, list[int]]], device: torch.device) -> tuple[Any, torch.Tensor]:
    width = max(len(ids) for _, ids in prompts)
    tokens = torch.zeros(len(prompts), width, dtype=torch.long)
    seen = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, (_, ids) in enumerate(prompts):
        tokens[row, width - len(ids) :] = torch.tensor(ids)
        seen[row, width - len(ids) :] = 1
    seen = seen.to(device)
    positions = (seen.cumsum(-1) - 1).clamp(min=0)
    arguments = _accepted(model, position_ids=positions, logits_to_keep=1)
    return model(input_ids=tokens.to(device), attention_mask=seen, use_cache=True, **arguments), seen


def _accepted(model: Any, **arguments: Any) -> dict[str, Any]:
    causal = model.get_base_model() if hasattr(model, "peft_config") else model
    known = inspect.signature(type(causal).forward).parameters
    return {name: value for name, value in arguments.items() if name in known}


def _decode(
    model: Any, prompts: Sequence[tuple[str, list[int]]], sampling: Sampling, noise: Noise, eos_ids: Sequence[int]
) -> list[list[Completion]]:
    device = next(model.parameters()).device
    samples, limit = sampling.samples_per_prompt, sampling.max_new_tokens
    num_rows = len(prompts) * samples
    uniforms = np.zeros((num_rows, limit))
    if sampling.temperature > 0:
        for row in range(num_rows):
            uniforms[row] = noise.uniforms(prompts[row // samples][0], row % samples, limit)
    draws = torch.from_numpy(uniforms).to(device)
    ends = torch.tensor(list(eos_ids), dtype=torch.long, device=device)

    out, seen = _prefill(model, prompts, device)
    source = torch.arange(num_rows, device=device) // samples
    cache, logits = out.past_key_values, out.logits[:, -1][source]
    cache.batch_select_indices(source)
    seen, position = seen[source], seen.sum(-1)[source]

    alive = torch.arange(num_rows, device=device)
    tokens = torch.zeros(num_rows, limit, dtype=torch.long, device=device)
    logps = torch.zeros(num_rows, limit, 2, dtype=torch.float64, device=device)
    lengths = torch.full((num_rows,), limit, device=device)
    ended = torch.zeros(num_rows, dtype=torch.bool, device=device)
    for step in range(limit):
        token, scores = choose(logits, draws[alive, step], sampling)
        tokens[alive, step], logps[alive, step] = token, scores
        finished = torch.isin(token, ends)
        ended[alive[finished]], lengths[alive[finished]] = True, step + 1
        if step + 1 == limit or bool(finished.all()):
            break
        if bool(finished.any()):
            keep = (~finished).nonzero()[:, 0]
            cache.batch_select_indices(keep)
            alive, token, seen, position = alive[keep], token[keep], seen[keep], position[keep]
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
        arguments = _accepted(model, position_ids=position[:, None], logits_to_keep=1)
        out = model(input_ids=token[:, None], attention_mask=seen, past_key_values=cache, use_cache=True, **arguments)
        logits, position = out.logits[:, -1], position + 1
    return _collect(tokens.tolist(), logps.tolist(), lengths.tolist(), ended.tolist(), samples)


def _collect(
    tokens: list[list[int]], logps: list[list[list[float]]], lengths: list[int], ended: list[bool], samples: int
) -> list[list[Completion]]:
    rows = [
        Completion(
            ids=ids[:length],
            ended=done,
            sampler_logps=[pair[0] for pair in pairs[:length]],
            old_logps=[pair[1] for pair in pairs[:length]],
        )
        for ids, pairs, length, done in zip(tokens, logps, lengths, ended, strict=True)
    ]
    return [rows[start : start + samples] for start in range(0, len(rows), samples)]


def choose(logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row by the inverse cumulative distribution, and its log-probabilities.

    Args:
        logits: ``[B, V]``.
        uniforms: ``[B]`` in [0, 1).
        sampling: temperature and nucleus.

    Returns:
        Tokens ``[B]`` and ``[B, 2]``: log-probability under the distribution drawn from (nucleus applied), and
        under the policy with temperature alone.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    greedy = sampling.temperature == 0
    logps = torch.log_softmax(logits if greedy else logits / sampling.temperature, -1)
    if greedy:
        token = logits.argmax(-1)
        score = logps.gather(-1, token[:, None])
        return token, torch.cat([score, score], -1).double()
    drawn = logps if sampling.top_p >= 1 else _nucleus(logps, sampling.top_p)
    cumulative = drawn.double().exp().cumsum(-1)
    # Scaling by the last entry keeps a uniform near 1 inside the table in spite of rounding.
    threshold = (uniforms[:, None] * cumulative[:, -1:]).to(cumulative.dtype)
    token = torch.searchsorted(cumulative, threshold, right=True).clamp(max=logits.shape[-1] - 1)
    return token[:, 0], torch.cat([drawn.gather(-1, token), logps.gather(-1, token)], -1).double()


def _nucleus(logps: torch.Tensor, top_p: float) -> torch.Tensor:
    """Log-probabilities renormalised over the smallest set of tokens whose probability reaches ``top_p``."""
    ordered, index = logps.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    kept = torch.zeros_like(logps, dtype=torch.bool).scatter(-1, index, before < top_p)
    return torch.log_softmax(logps.masked_fill(~kept, float("-inf")), -1)
