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
from contrl.rollout.cache import drop_rows, repeat_rows
from contrl.rollout.choose import Sampling, choose
from contrl.rollout.stopping import Ending

__all__ = ["Noise", "Sampling", "Span", "chunks", "count_tokens", "generate"]

Prompts = Sequence[tuple[str, list[int]]]
"""(stable name, token ids) of each prompt."""


@dataclass(frozen=True)
class Noise:
    """Where the uniform numbers of a rollout come from; ``key`` is (seed, stage, step) or any integers."""

    key: tuple[int, ...]

    def uniforms(self, name: str, sample: int, length: int) -> np.ndarray:
        """``[length]`` numbers in [0, 1) for one completion of the prompt called ``name``."""
        entropy = [*self.key, zlib.crc32(name.encode()), sample]
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))).random(length)


@dataclass(frozen=True)
class Span:
    """Samples ``start`` to ``stop`` of one prompt: its rows in a chunk."""

    prompt: int
    start: int
    stop: int


def generate(
    model: nn.Module,
    prompts: Prompts,
    sampling: Sampling,
    noise: Noise,
    eos_ids: Sequence[int],
    tokens_per_chunk: int = 2**15,
    *,
    tokenizer: Any = None,
) -> list[list[Completion]]:
    """Sample completions.

    Args:
        model: a causal language model, unwrapped. It is sampled in eval mode, without dropout, whatever mode it is in.
        prompts: (stable name, token ids) of each prompt; no ids may be empty.
        sampling: lengths, temperature, number of samples, processors, stops.
        noise: source of randomness; unused when greedy.
        eos_ids: tokens that end a completion (kept as its last token).
        tokens_per_chunk: cache positions that decode side by side, prompt and longest completion of every row; a row
            that is longer decodes alone.
        tokenizer: decodes, where the sampling has stop texts.

    Returns:
        For each prompt its completions, with ``sampler_logps`` (of the distribution drawn from) and ``old_logps``
        (temperature only; the same numbers unless a processor is on). Greedy log-probabilities are at temperature 1.
    """
    if any(not ids for _, ids in prompts):
        raise UserError("a prompt has no tokens", fix="give every prompt at least one token")
    adapters: dict[str, Any] = getattr(model, "peft_config", None) or {}
    if any(adapter.is_prompt_learning for adapter in adapters.values()):
        raise UserError("virtual-token adapters cannot sample with contrl's decode loop", fix="use LoRA")
    device = next(model.parameters()).device
    ending = Ending([*eos_ids, *sampling.stop_tokens], sampling.stop, tokenizer, device)
    results: list[list[Completion]] = [[] for _ in prompts]
    with torch.no_grad(), evaluating(model):
        for chunk in chunks([len(ids) for _, ids in prompts], sampling, tokens_per_chunk):
            reach("sampling")
            decoded = iter(_decode(model, prompts, chunk, sampling, noise, ending))
            for span in chunk:
                # A prompt's samples may be spread over chunks; they come in order.
                results[span.prompt].extend(next(decoded) for _ in range(span.start, span.stop))
    return results


def count_tokens(sampled: Sequence[Sequence[Completion]]) -> int:
    """Tokens of all completions, end tokens included."""
    return sum(len(completion.ids) for completions in sampled for completion in completions)


def chunks(lengths: Sequence[int], sampling: Sampling, budget: int) -> Iterator[list[Span]]:
    """What decodes together: prompts of similar length, longest first, as many rows as the budget holds.

    Args:
        lengths: tokens of each prompt.
        sampling: rows per prompt and new tokens per row.
        budget: rows times the longest prompt plus its new tokens is at most this, unless the chunk is a single row.
            A prompt whose samples alone exceed it is prefilled in several chunks.
    """
    chunk: list[Span] = []
    rows = room = 0
    for prompt in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        start = 0
        while start < sampling.samples_per_prompt:
            rest = sampling.samples_per_prompt - start
            if chunk and rows + rest > room:
                yield chunk
                chunk, rows = [], 0
            if not chunk:
                room = max(budget // (lengths[prompt] + sampling.max_new_tokens), 1)
            taken = min(rest, room)
            chunk.append(Span(prompt, start, start + taken))
            start, rows = start + taken, rows + taken
    if chunk:
        yield chunk


class _Step:
    """Calls the model for one more token of every row, with the arguments it knows."""

    def __init__(self, model: Any) -> None:
        causal = model.get_base_model() if hasattr(model, "peft_config") else model
        known = inspect.signature(type(causal).forward).parameters
        self.model, self.positions = model, "position_ids" in known
        self.fixed: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in known:
            self.fixed["logits_to_keep"] = 1

    def __call__(self, tokens: torch.Tensor, seen: torch.Tensor, positions: torch.Tensor, cache: Any = None) -> Any:
        """Logits ``[B, V]`` of the next token, and the cache, from ``[B, T]`` tokens and their positions."""
        placed = {"position_ids": positions} if self.positions else {}
        out = self.model(input_ids=tokens, attention_mask=seen, past_key_values=cache, **placed, **self.fixed)
        return out.logits[:, -1], out.past_key_values


def _padded(rows: Sequence[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as a table, padded on the left, and where it holds tokens (1)."""
    width = max(len(ids) for ids in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    seen = torch.zeros(len(rows), width, dtype=torch.long)
    for row, ids in enumerate(rows):
        tokens[row, width - len(ids) :] = torch.tensor(ids)
        seen[row, width - len(ids) :] = 1
    return tokens.to(device), seen.to(device)


def _draws(prompts: Prompts, chunk: Sequence[Span], sampling: Sampling, noise: Noise) -> torch.Tensor:
    """``[rows, max_new_tokens]`` the uniform number of every token."""
    limit, rows = sampling.max_new_tokens, [(span.prompt, i) for span in chunk for i in range(span.start, span.stop)]
    uniforms = np.zeros((len(rows), limit))
    if sampling.temperature > 0:
        for row, (prompt, sample) in enumerate(rows):
            uniforms[row] = noise.uniforms(prompts[prompt][0], sample, limit)
    return torch.from_numpy(uniforms)


def _decode(
    model: Any, prompts: Prompts, chunk: Sequence[Span], sampling: Sampling, noise: Noise, ending: Ending
) -> list[Completion]:
    """The completions of a chunk's rows, in order."""
    device, limit = next(model.parameters()).device, sampling.max_new_tokens
    draws = _draws(prompts, chunk, sampling, noise).to(device)
    num_rows = len(draws)
    source = torch.repeat_interleave(torch.tensor([span.stop - span.start for span in chunk])).to(device)
    run = _Step(model)
    prompt_tokens, seen = _padded([prompts[span.prompt][1] for span in chunk], device)
    logits, cache = run(prompt_tokens, seen, (seen.cumsum(-1) - 1).clamp(min=0))
    repeat_rows(cache, source, limit)
    logits, seen, position = logits[source], seen[source], seen.sum(-1)[source]
    used = _used(prompt_tokens[source], seen, logits.shape[-1]) if sampling.penalises else None

    alive = torch.arange(num_rows, device=device)
    tokens = torch.zeros(num_rows, limit, dtype=torch.long, device=device)
    logps = torch.zeros(num_rows, limit, 2, dtype=torch.float64, device=device)
    lengths = torch.full((num_rows,), limit, device=device)
    ended = torch.zeros(num_rows, dtype=torch.bool, device=device)
    for step in range(limit):
        token, scores = choose(logits, draws[alive, step], sampling, used)
        tokens[alive, step], logps[alive, step] = token, scores
        finished = ending(tokens[alive, max(step + 1 - ending.window, 0) : step + 1])
        if num_finished := int(finished.sum()):
            over = alive[finished]
            ended[over], lengths[over] = True, step + 1
        if step + 1 == limit or num_finished == len(alive):
            break
        if num_finished:
            keep = drop_rows(cache, finished)
            alive, token, seen, position = alive[keep], token[keep], seen[keep], position[keep]
            used = None if used is None else used[keep]
        if used is not None:
            used.scatter_(-1, token[:, None], True)
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
        logits, cache = run(token[:, None], seen, position[:, None], cache)
        position = position + 1
    return _collect(tokens.tolist(), logps.tolist(), lengths.tolist(), ended.tolist())


def _used(tokens: torch.Tensor, seen: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """``[B, V]`` True = the token stands in the row's prompt; padding is none."""
    table = torch.zeros(len(tokens), vocabulary, dtype=torch.long, device=tokens.device)
    return table.scatter_add_(-1, tokens, seen) > 0


def _collect(
    tokens: list[list[int]], logps: list[list[list[float]]], lengths: list[int], ended: list[bool]
) -> list[Completion]:
    return [
        Completion(
            ids=ids[:length],
            ended=done,
            sampler_logps=[pair[0] for pair in pairs[:length]],
            old_logps=[pair[1] for pair in pairs[:length]],
        )
        for ids, pairs, length, done in zip(tokens, logps, lengths, ended, strict=True)
    ]
