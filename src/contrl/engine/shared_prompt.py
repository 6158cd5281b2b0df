"""One forward for every group: the prompt runs once, its completions run on the expanded cache.

Three layouts give the same numbers. *shared*: prompts (left padded) fill a KV cache, the cache is expanded to
the completions (right padded), which run on it; gradients flow through both calls. *plain*: prompt and
completion in one right-padded row each. *packed*: the same rows one behind the other, their positions starting anew,
which models take as a mark that they do not see each other. Plain serves what the others cannot: gradient
checkpointing (it drops the passed cache in silence), caches that cannot be repeated, virtual-token adapters.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from contrl.engine import encoder_decoder
from contrl.engine.batching import Layout, buckets, overhead
from contrl.engine.lm_head import causal_lm
from contrl.interfaces import Batch


@dataclass
class Hidden:
    """Hidden states of a batch, each where it predicts.

    Attributes:
        trained: ``[M, H]`` states that predict the trained tokens, in the order of ``batch.mask.nonzero()``.
        prompts: ``[K, H]`` states that predict the prompts' tokens but the first, group after group.
        last: ``[N, H]`` state of the last token of each completion.
    """

    trained: torch.Tensor
    prompts: torch.Tensor | None = None
    last: torch.Tensor | None = None


def decoder(model: nn.Module) -> Any:
    """The stack below the LM head. Calling it skips no hook: the engine only does so inside the model's forward."""
    causal = causal_lm(model)
    stack = causal.base_model
    # Some text models (llama4) carry the prefix of their multimodal parent, which names nothing in them.
    return causal.model if stack is causal else stack


def virtual_tokens(model: nn.Module) -> bool:
    """Whether an adapter puts virtual tokens before the prompt (prompt or prefix tuning)."""
    configs = getattr(model, "peft_config", None) or {}
    return any(getattr(config, "is_prompt_learning", False) for config in configs.values())


def obstacle(model: nn.Module, batch: Batch) -> str:
    """Why this batch cannot run in the shared layout, in words; empty when nothing rules it out beforehand."""
    if encoder_decoder.is_encoder_decoder(causal_lm(model)):
        return "the encoder reads each prompt once"
    if len(batch.groups) == len(batch.group_index):
        return "single completions share no prompt"
    if any(not group.prompt_ids for group in batch.groups):
        return "a group has no common prompt"
    if virtual_tokens(model):
        return "virtual tokens stand before the prompt"
    if model.training and bool(getattr(causal_lm(model), "is_activation_checkpointing", False)):
        return "gradient checkpointing drops the cache"
    return ""


def layout_for(model: nn.Module, batch: Batch, preferred: Layout) -> Layout:
    """The layout this batch runs in: ``preferred`` unless the model or the batch rules it out."""
    if preferred == "packed":
        return "plain" if virtual_tokens(model) else "packed"
    return "plain" if preferred == "plain" or obstacle(model, batch) else "shared"


@dataclass(frozen=True)
class Wanted:
    """Which hidden states beside those of the trained tokens; see ``Hidden``."""

    prompts: bool = False
    last: bool = False


def hidden_states(
    model: nn.Module, batch: Batch, layout: Layout, shift: int = 0, wanted: Wanted | None = None
) -> Hidden:
    """The hidden states of a batch.

    Args:
        model: the (unwrapped) model.
        batch: N completions of G groups.
        layout: see the module's text.
        shift: masked positions before each row of the plain layout: changes rounding, nothing else.
        wanted: what else; the last token of a completion predicts nothing and is run only if a classifier reads it.
    """
    wanted = wanted or Wanted()
    causal = causal_lm(model)
    if encoder_decoder.is_encoder_decoder(causal):
        return Hidden(encoder_decoder.states(causal, batch))
    if layout == "shared":
        return _shared(model, batch, wanted)
    return _rows(model, batch, _place(batch, packed=layout == "packed", shift=shift), wanted)


def _positions(stack: Any, positions: torch.Tensor) -> dict[str, torch.Tensor]:
    # Learned positions (gpt2) are wrong without explicit ids; ALiBi models do not take them.
    return {"position_ids": positions} if "position_ids" in inspect.signature(stack.forward).parameters else {}


def _lengths(batch: Batch) -> list[int]:
    return [len(completion.ids) for group in batch.groups for completion in group.completions]


def _shared(model: nn.Module, batch: Batch, wanted: Wanted) -> Hidden:
    stack, device = decoder(model), batch.ids.device
    prompt_lengths = [len(group.prompt_ids) for group in batch.groups]
    width = max(prompt_lengths)
    prompts = torch.zeros(len(prompt_lengths), width, dtype=torch.long)
    seen = torch.zeros(len(prompt_lengths), width, dtype=torch.long)
    for row, group in enumerate(batch.groups):
        # Left padding keeps prompt and completion contiguous, which sliding windows measure.
        prompts[row, width - prompt_lengths[row] :] = torch.tensor(group.prompt_ids)
        seen[row, width - prompt_lengths[row] :] = 1
    prompts, seen = prompts.to(device), seen.to(device)
    positions = (seen.cumsum(-1) - 1).clamp(min=0)
    out = stack(input_ids=prompts, attention_mask=seen, use_cache=True, **_positions(stack, positions))
    of_prompts = out.last_hidden_state
    hidden = of_prompts[:, -1][batch.group_index][:, None]
    # The last token of a completion predicts nothing, so it is not run unless its own state is wanted.
    tokens = batch.ids if wanted.last else batch.ids[:, :-1]
    lengths = torch.tensor(_lengths(batch), device=device)
    if tokens.shape[1] > 0:
        starts = torch.tensor(prompt_lengths, device=device)[batch.group_index]
        states = hidden.new_zeros(len(tokens), tokens.shape[1], hidden.shape[-1])
        for rows, cache in _copies(out.past_key_values, _cut(batch, device)):
            longest = min(int(lengths[rows].max()), tokens.shape[1])
            if longest == 0:
                continue
            cache.batch_select_indices(batch.group_index[rows])
            column = torch.arange(longest, device=device)
            mask = torch.cat([seen[batch.group_index[rows]], (column < lengths[rows, None]).long()], dim=1)
            part = stack(
                input_ids=tokens[rows, :longest],
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **_positions(stack, starts[rows, None] + column),
            )
            states[rows, :longest] = part.last_hidden_state
        hidden = torch.cat([hidden, states], dim=1)
    predicting = seen.clone()
    predicting[:, -1] = 0
    return Hidden(
        hidden[:, : batch.mask.shape[1]][batch.mask],
        of_prompts[predicting.bool()] if wanted.prompts else None,
        hidden[torch.arange(len(lengths), device=device), lengths] if wanted.last else None,
    )


def _cut(batch: Batch, device: torch.device) -> list[torch.Tensor]:
    """The completions' rows by length: each bucket runs at its own width."""
    found = buckets(_lengths(batch), overhead(device))
    return [torch.tensor(rows, dtype=torch.long, device=device) for rows in found]


def _copies(cache: Any, parts: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, Any]]:
    """A cache of the prompts for each part; they share the prompts' keys and values, which nothing writes into."""
    for number, rows in enumerate(parts):
        if number == len(parts) - 1:
            yield rows, cache
            return
        twin = copy.copy(cache)
        twin.layers = [copy.copy(layer) for layer in cache.layers]
        yield rows, twin


@dataclass
class _Place:
    """Where each completion with its prompt stands: its row and its first column."""

    rows: list[int]
    starts: list[int]
    num_rows: int
    packed: bool


def _place(batch: Batch, *, packed: bool, shift: int) -> _Place:
    prompts = [len(group.prompt_ids) for group in batch.groups for _ in group.completions]
    sizes = [prompt + length for prompt, length in zip(prompts, _lengths(batch), strict=True)]
    if not packed:
        return _Place(list(range(len(sizes))), [shift] * len(sizes), len(sizes), packed=False)
    rows, starts = pack(sizes, max(sizes))
    return _Place(rows, starts, max(rows) + 1, packed=True)


def pack(sizes: Sequence[int], capacity: int) -> tuple[list[int], list[int]]:
    """Row and start of each sequence in rows of at most ``capacity`` tokens: the longest first, into the first gap."""
    filled: list[int] = []
    rows, starts = [0] * len(sizes), [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = next((r for r, used in enumerate(filled) if used + sizes[index] <= capacity), len(filled))
        if row == len(filled):
            filled.append(0)
        rows[index], starts[index] = row, filled[row]
        filled[row] += sizes[index]
    return rows, starts


def _rows(model: nn.Module, batch: Batch, place: _Place, wanted: Wanted) -> Hidden:
    device, stack = batch.ids.device, decoder(model)
    tokens = [group.prompt_ids + c.ids for group in batch.groups for c in group.completions]
    ends = [start + len(row) for start, row in zip(place.starts, tokens, strict=True)]
    # The last token of the longest row predicts nothing, so that column is not run unless its state is wanted.
    width = max(1, max(ends) - (not wanted.last))
    ids = torch.zeros(place.num_rows, width, dtype=torch.long)
    seen = torch.zeros(place.num_rows, width, dtype=torch.long)
    # What no sequence covers counts on from 0: a sequence of its own, that nothing reads.
    positions = torch.arange(width).expand(place.num_rows, width).clone() if place.packed else torch.zeros_like(ids)
    for row, start, end, values in zip(place.rows, place.starts, ends, tokens, strict=True):
        covered = min(end, width) - start
        ids[row, start : start + covered] = torch.tensor(values[:covered], dtype=torch.long)
        seen[row, start : start + covered] = 1
        positions[row, start : start + covered] = torch.arange(covered)
        if place.packed and end < width:
            positions[row, end:] = torch.arange(width - end)
    ids, seen, positions = ids.to(device), seen.to(device), positions.to(device)
    mask = {} if place.packed else {"attention_mask": seen}
    if virtual_tokens(model):
        # Only the adapter's own forward knows how to insert them; they stand before the row.
        out = model(input_ids=ids, **mask, output_hidden_states=True, use_cache=False, logits_to_keep=1)
        hidden = out.hidden_states[-1][:, -width:]
    else:
        hidden = stack(input_ids=ids, **mask, use_cache=False, **_positions(stack, positions)).last_hidden_state
    rows = torch.tensor(place.rows, device=device)
    starts = torch.tensor(place.starts, device=device)
    lengths = torch.tensor([len(group.prompt_ids) for group in batch.groups], device=device)[batch.group_index]
    completion, token = batch.mask.nonzero(as_tuple=True)
    trained = hidden[rows[completion], starts[completion] + lengths[completion] - 1 + token]
    return Hidden(
        trained,
        hidden[_prompt_states(batch, place, device)] if wanted.prompts else None,
        hidden[rows, torch.tensor(ends, device=device) - 1] if wanted.last else None,
    )


def _prompt_states(batch: Batch, place: _Place, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the states that predict prompt tokens, each prompt in the row of its first completion."""
    rows: list[int] = []
    columns: list[int] = []
    completion = 0
    for group in batch.groups:
        count = max(0, len(group.prompt_ids) - 1) if group.completions else 0
        rows += [place.rows[completion]] * count if count else []
        columns += range(place.starts[completion], place.starts[completion] + count) if count else []
        completion += len(group.completions)
    return torch.tensor(rows, dtype=torch.long, device=device), torch.tensor(columns, dtype=torch.long, device=device)
