"""One forward for every group: the prompt runs once, its completions run on the expanded cache.

Two layouts give the same numbers. *shared*: prompts (left padded) fill a KV cache, the cache is expanded to
the completions (right padded), which run on it; gradients flow through both calls. *plain*: prompt and
completion in one right-padded row each. Plain serves what shared cannot: gradient checkpointing (it drops the
passed cache in silence), caches that cannot be repeated, virtual-token adapters, single completions.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import nn

from contrl.engine.lm_head import causal_lm
from contrl.interfaces import Batch

Layout = Literal["shared", "plain"]


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
    if len(batch.groups) == len(batch.group_index):
        return "single completions share no prompt"
    if virtual_tokens(model):
        return "virtual tokens stand before the prompt"
    if model.training and bool(getattr(causal_lm(model), "is_activation_checkpointing", False)):
        return "gradient checkpointing drops the cache"
    return ""


def layout_for(model: nn.Module, batch: Batch, preferred: Layout) -> Layout:
    """The layout this batch runs in: ``preferred`` unless the model or the batch rules shared out."""
    return "plain" if preferred == "plain" or obstacle(model, batch) else "shared"


def completion_hidden(model: nn.Module, batch: Batch, layout: Layout, shift: int = 0) -> torch.Tensor:
    """Hidden states ``[M, H]`` that predict the trained tokens, in the order of ``batch.mask.nonzero()``.

    ``shift`` puts that many masked positions before each row of the plain layout: it changes rounding, nothing else.
    """
    return _shared(model, batch) if layout == "shared" else _plain(model, batch, shift)


def _positions(stack: Any, positions: torch.Tensor) -> dict[str, torch.Tensor]:
    # Learned positions (gpt2) are wrong without explicit ids; ALiBi models do not take them.
    return {"position_ids": positions} if "position_ids" in inspect.signature(stack.forward).parameters else {}


def _shared(model: nn.Module, batch: Batch) -> torch.Tensor:
    stack, device = decoder(model), batch.ids.device
    lengths = [len(group.prompt_ids) for group in batch.groups]
    width = max(lengths)
    prompts = torch.zeros(len(lengths), width, dtype=torch.long)
    seen = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, group in enumerate(batch.groups):
        # Left padding keeps prompt and completion contiguous, which sliding windows measure.
        prompts[row, width - lengths[row] :] = torch.tensor(group.prompt_ids)
        seen[row, width - lengths[row] :] = 1
    prompts, seen = prompts.to(device), seen.to(device)
    positions = (seen.cumsum(-1) - 1).clamp(min=0)
    out = stack(input_ids=prompts, attention_mask=seen, use_cache=True, **_positions(stack, positions))
    hidden = out.last_hidden_state[:, -1][batch.group_index][:, None]
    if batch.ids.shape[1] > 1:
        # The last token of a completion predicts nothing, so it is not run.
        cache = out.past_key_values
        cache.batch_select_indices(batch.group_index)
        tokens = batch.ids[:, :-1]
        start = torch.tensor(lengths, device=device)[batch.group_index][:, None]
        mask = torch.cat([seen[batch.group_index], _present(batch)[:, :-1]], dim=1)
        positions = start + torch.arange(tokens.shape[1], device=device)
        out = stack(
            input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **_positions(stack, positions)
        )
        hidden = torch.cat([hidden, out.last_hidden_state], dim=1)
    return hidden[batch.mask]


def _present(batch: Batch) -> torch.Tensor:
    lengths = torch.tensor([len(c.ids) for group in batch.groups for c in group.completions], device=batch.ids.device)
    return (torch.arange(batch.ids.shape[1], device=batch.ids.device) < lengths[:, None]).long()


def _plain(model: nn.Module, batch: Batch, shift: int) -> torch.Tensor:
    device = batch.ids.device
    rows = [group.prompt_ids + c.ids for group in batch.groups for c in group.completions]
    prompts = torch.tensor([len(group.prompt_ids) for group in batch.groups for _ in group.completions], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    # The last token of the longest row predicts nothing, so that column is not run.
    width = shift + max(len(row) for row in rows) - 1
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, shift : shift + len(tokens)] = torch.tensor(tokens[: width - shift])
    ids = ids.to(device)
    column = torch.arange(width, device=device)
    seen = ((column >= shift) & (column < shift + lengths[:, None])).long()
    if virtual_tokens(model):
        # Only the adapter's own forward knows how to insert them; they stand before the row.
        out = model(input_ids=ids, attention_mask=seen, output_hidden_states=True, use_cache=False, logits_to_keep=1)
        hidden = out.hidden_states[-1][:, -width:]
    else:
        stack = decoder(model)
        positions = (seen.cumsum(-1) - 1).clamp(min=0)
        hidden = stack(
            input_ids=ids, attention_mask=seen, use_cache=False, **_positions(stack, positions)
        ).last_hidden_state
    completion, token = batch.mask.nonzero(as_tuple=True)
    return hidden[completion, shift + prompts[completion] - 1 + token]
