"""The proof, before the first step, that the forward is right for the actual model.

The layout that saves work is run against the plain one on a few rows of the stage, and kept only if values and a
gradient agree; the head is compared with the model's own output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from contrl.engine.batching import Layout, to_batch
from contrl.engine.encoder_decoder import is_encoder_decoder, own_logits
from contrl.engine.forward import Head, Routing, head_of, no_dropout, score_batch
from contrl.engine.lm_head import LMHead, ScoreHead, causal_lm
from contrl.engine.shared_prompt import decoder, obstacle, virtual_tokens
from contrl.errors import UserError
from contrl.interfaces import Batch, Group
from contrl.models.modes import evaluating

PROBED_TOKENS = 24
"""Tokens of a completion that the check runs at most."""


def probe(groups: Sequence[Group]) -> list[Group]:
    """A small sample of a step's groups on which a wrong layout shows.

    At most 3 groups of 3 completions of 24 tokens, so that the check fits wherever a pass does. Prompts are made to
    differ in length and completions to have two tokens at least: otherwise no prompt is padded or no token runs on
    the cache, and every layout would look right.
    """
    chosen = [g for g in groups if len(g.completions) > 1 and g.prompt_ids]
    chosen = chosen or [g for g in groups if g.completions][:3]
    sample = sorted((chosen * 3)[:3], key=lambda group: len(group.prompt_ids))
    made = []
    for number, group in enumerate(sample):
        longer = (group.prompt_ids * (number + 1))[: len(group.prompt_ids) + number]
        completions = [
            replace(c, ids=(c.ids * 2)[: max(2, min(PROBED_TOKENS, len(c.ids)))], trained=None)
            for c in group.completions[:3]
        ]
        made.append(replace(group, prompt_ids=longer, completions=completions))
    if all(len(group.completions) == 1 for group in made):
        # One long row, so that the others stand behind each other where rows are packed.
        others = sum(len(group.prompt_ids) + len(group.completions[0].ids) for group in made[:-1])
        tokens = made[-1].prompt_ids or made[-1].completions[0].ids
        made[-1].prompt_ids = (tokens * (others + 1))[: others + 1]
    return made


@dataclass(frozen=True)
class LayoutCheck:
    """Outcome of the check at the start: the layout to use and why, with the largest differences found."""

    layout: Layout
    reason: str
    logps: float = 0.0
    gradient: float = 0.0


def choose_layout(
    model: nn.Module,
    batch: Batch,
    autocast: Any = contextlib.nullcontext,
    preferred: Layout = "shared",
    needs: Collection[str] = (),
) -> LayoutCheck:
    """Run both layouts on ``batch`` in train mode without dropout and keep the preferred one only if they agree.

    Agreement: 1e-4 in float32 (relative for the gradient, largest entry). In half precision the difference may
    be at most four times the plain layout's own change when the same rows are padded differently, or four times
    the spacing of the numbers where that change happens to round to nothing.
    """
    was_training = model.training
    model.train()
    try:
        ruled_out = _ruled_out(model, batch, preferred)
        if ruled_out:
            return LayoutCheck("plain", ruled_out)
        head = head_of(model, needs)
        with no_dropout(model):
            plain = _measure(model, head, batch, Routing("plain"), autocast)
            try:
                other = _measure(model, head, batch, Routing(preferred), autocast)
            except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
                cannot = "run on an expanded cache" if preferred == "shared" else "run packed rows"
                return LayoutCheck("plain", f"the model cannot {cannot} ({type(error).__name__})")
            values, gradient = _distance(plain, other)
            allowed = 1e-4
            spacing = _spacing(model, autocast)
            if max(values, gradient) > allowed and spacing > allowed:
                allowed = 4 * max(spacing, *_distance(plain, _one_by_one(model, head, batch, autocast)))
    finally:
        model.train(was_training)
    if max(values, gradient) <= allowed:
        return LayoutCheck(preferred, "both layouts agree", values, gradient)
    return LayoutCheck("plain", f"the layouts differ by {max(values, gradient):.1e}", values, gradient)


def _ruled_out(model: nn.Module, batch: Batch, preferred: Layout) -> str:
    if preferred == "plain":
        return "asked for"
    if preferred == "packed":
        return "virtual tokens stand before the prompt" if virtual_tokens(model) else ""
    return obstacle(model, batch)


Measured = tuple[torch.Tensor, list[torch.Tensor]]
"""Log-probabilities ``[N, T]``, or scores ``[N, 1]``, and the gradient of their sum by each parameter."""


def _measure(model: nn.Module, head: Head, batch: Batch, routing: Routing, autocast: Any) -> Measured:
    parameters = [p for p in model.parameters() if p.requires_grad]
    with autocast(), torch.enable_grad():
        out = score_batch(model, head, batch, routing)
    values = out["scores"][:, None] if "scores" in out else out["logps"]
    gradients = torch.autograd.grad(values.sum(), parameters, allow_unused=True)
    return values.detach().double(), [
        torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)
    ]


def _one_by_one(model: nn.Module, head: Head, batch: Batch, autocast: Any) -> Measured:
    """The plain layout with every group padded by itself, on both sides: what re-padding alone changes."""
    rows, total = [], [torch.zeros_like(p) for p in model.parameters() if p.requires_grad]
    for number, group in enumerate(batch.groups, start=1):
        part = to_batch([group], batch.ids.device)
        values, gradients = _measure(model, head, part, Routing("plain", shift=number), autocast)
        width = 1 if isinstance(head, ScoreHead) else batch.ids.shape[1]
        rows.append(nn.functional.pad(values, (0, width - values.shape[1])))
        total = [a + b for a, b in zip(total, gradients, strict=True)]
    return torch.cat(rows), total


def _distance(a: Measured, b: Measured) -> tuple[float, float]:
    scale = max([float(g.abs().max()) for g in a[1]], default=0.0) or 1.0
    pairs = [(x - y).abs().max() for x, y in zip(a[1], b[1], strict=True)]
    gradient = torch.stack(pairs).max() / scale if pairs else torch.tensor(0.0)
    values = torch.stack([(a[0] - b[0]).abs().max(), gradient.to(a[0])]).nan_to_num(nan=float("inf"))
    return float(values[0]), float(values[1])


def _spacing(model: nn.Module, autocast: Any) -> float:
    """The relative distance of neighbouring numbers in the precision that the model computes in."""
    first = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    with autocast():
        half = torch.is_autocast_enabled(first.device.type)
        dtype = torch.get_autocast_dtype(first.device.type) if half else first.dtype
    return torch.finfo(dtype).eps


def check_head(
    model: nn.Module, batch: Batch, autocast: Any = contextlib.nullcontext, needs: Collection[str] = ()
) -> None:
    """Compare the head's output with the model's own on one short row, both in the precision of training.

    Raises:
        UserError: when they differ by more than 1e-3, or 5e-2 in half precision (a head this engine does not know).
    """
    group = batch.groups[0]
    device = batch.ids.device
    causal, head = causal_lm(model), head_of(model, needs)
    # A classifier looks for its last token by the pad id, which may be the end token of this very row.
    pad = getattr(causal.config.get_text_config(), "pad_token_id", None)
    ids = [token for token in group.prompt_ids + group.completions[0].ids if token != pad][:32] or [0]
    tokens = torch.tensor([ids], device=device)
    with evaluating(model), torch.no_grad(), autocast():
        if isinstance(head, LMHead) and is_encoder_decoder(causal):
            wanted, hidden = own_logits(causal, group, device)
            got = head.logits(hidden)
        elif isinstance(head, LMHead):
            hidden = decoder(model)(input_ids=tokens, use_cache=False).last_hidden_state[0]
            wanted, got = causal(input_ids=tokens, use_cache=False).logits[0], head.logits(hidden)
        else:
            hidden = decoder(model)(input_ids=tokens, use_cache=False).last_hidden_state[0]
            whole = torch.ones_like(tokens)
            wanted = causal(input_ids=tokens, attention_mask=whole, use_cache=False).logits[0]
            got = head.score(hidden[-1:])
    scale = max(1.0, float(wanted.abs().max()))
    difference = float((wanted.double() - got.double()).abs().max()) / scale
    # In half precision the model rounds after each of scale and soft-cap, the head once.
    if not difference < (5e-2 if _spacing(model, autocast) > 1e-4 else 1e-3):
        raise UserError(
            f"the output of {type(causal).__name__} is not its head's of the last hidden state "
            f"(difference {difference:.1e})",
            fix="this model family needs a line in contrl/engine/lm_head.py",
        )
