"""The forward of a batch through the *wrapped* model, and the proof at the start that it is right.

accelerate's autocast and DDP's hooks wrap ``model.forward``, so the outermost model gets an instance-level
forward that routes ``contrl_batch=`` to the layouts and the LM head and leaves every other call alone. Before
training, both layouts are run against each other on a batch of the actual model, and the faster is kept only
if logps and a gradient agree.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from contrl.engine.batching import to_batch
from contrl.engine.lm_head import LMHead, causal_lm
from contrl.engine.shared_prompt import Layout, completion_hidden, decoder, layout_for, obstacle
from contrl.errors import UserError
from contrl.interfaces import Batch, Group, Outputs
from contrl.models.modes import evaluating


@dataclass
class Routing:
    """What the routed forward does with a batch; ``layout`` is the preferred one, ``shift`` as in completion_hidden."""

    layout: Layout = "shared"
    temperature: float = 1.0
    entropy: bool = False
    shift: int = 0


@contextlib.contextmanager
def routed(model: nn.Module, routing: Routing) -> Iterator[None]:
    """Give ``model`` the routed forward while open; afterwards its forward is the one it had, nothing nests."""
    own = model.__dict__.get("forward")
    original = model.forward
    head = LMHead(model)

    @functools.wraps(original)
    def forward(*args: Any, contrl_batch: Batch | None = None, **kwargs: Any) -> Any:
        if contrl_batch is None:
            return original(*args, **kwargs)
        return score_batch(model, head, contrl_batch, routing)

    model.forward = forward
    try:
        yield
    finally:
        # accelerate leaves its autocast wrapper, the memory of what it wrapped and a mark on the instance; with the
        # mark it would not prepare the model for the next stage.
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
            model.__dict__.pop(name, None)
        if own is not None:
            model.forward = own


def score_batch(model: nn.Module, head: LMHead, batch: Batch, routing: Routing) -> dict[str, torch.Tensor]:
    """Log-probabilities (and entropy) of the batch's trained tokens, as ``[N, T]`` tables."""
    hidden = completion_hidden(model, batch, layout_for(model, batch, routing.layout), routing.shift)
    logps, entropy = head.score(hidden, batch.ids[batch.mask], routing.temperature, entropy=routing.entropy)
    out = {"logps": _table(batch, logps)}
    if entropy is not None:
        out["entropy"] = _table(batch, entropy)
    return out


def _table(batch: Batch, values: torch.Tensor) -> torch.Tensor:
    return torch.zeros(batch.mask.shape, dtype=values.dtype, device=values.device).masked_scatter(batch.mask, values)


def run(model: nn.Module, batch: Batch) -> Outputs:
    """Forward of a batch through a model (or its DDP wrapper) whose forward is routed."""
    out = model(contrl_batch=batch)
    return Outputs(out["logps"], out.get("entropy"))


@contextlib.contextmanager
def no_dropout(model: nn.Module) -> Iterator[None]:
    """Train mode without chance: every dropout probability is 0 while open, also those kept as plain floats."""
    saved: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        for name, value in vars(module).items():
            # attention_dropout, hidden_dropout, residual_dropout, layerdrop ... of the model families.
            probability = "drop" in name or (name == "p" and isinstance(module, nn.Dropout))
            if probability and isinstance(value, float) and value > 0:
                saved.append((module, name, value))
    for module, name, _ in saved:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in saved:
            setattr(module, name, value)


def probe(groups: Sequence[Group]) -> list[Group]:
    """A small sample of a step's groups on which a wrong layout shows.

    At most 3 groups of 3 completions of 64 tokens, so that the check fits wherever a pass does. Prompts are made to
    differ in length and completions to have two tokens at least: otherwise no prompt is padded or no token runs on
    the cache, and every layout would look right.
    """
    several = [group for group in groups if len(group.completions) > 1]
    if not several:
        return list(groups[:1])
    sample = sorted((several * 2)[:3] if len(several) < 3 else several[:3], key=lambda group: len(group.prompt_ids))
    made = []
    for number, group in enumerate(sample):
        longer = (group.prompt_ids * (number + 1))[: len(group.prompt_ids) + number]
        completions = [
            replace(c, ids=(c.ids * 2)[: max(2, min(64, len(c.ids)))], trained=None) for c in group.completions[:3]
        ]
        made.append(replace(group, prompt_ids=longer, completions=completions))
    return made


@dataclass(frozen=True)
class LayoutCheck:
    """Outcome of the check at the start: the layout to use and why, with the largest differences found."""

    layout: Layout
    reason: str
    logps: float = 0.0
    gradient: float = 0.0


def choose_layout(model: nn.Module, batch: Batch, autocast: Any = contextlib.nullcontext) -> LayoutCheck:
    """Run both layouts on ``batch`` in train mode without dropout and keep *shared* only if they agree.

    Agreement: 1e-4 in float32 (relative for the gradient, largest entry). In half precision the difference may
    be at most four times the plain layout's own change when the same rows are padded differently, or four times
    the spacing of the numbers where that change happens to round to nothing.
    """
    was_training = model.training
    model.train()
    try:
        ruled_out = obstacle(model, batch)
        if ruled_out:
            return LayoutCheck("plain", ruled_out)
        head = LMHead(model)
        with no_dropout(model):
            plain = _measure(model, head, batch, Routing("plain"), autocast)
            try:
                shared = _measure(model, head, batch, Routing("shared"), autocast)
            except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
                return LayoutCheck("plain", f"the model cannot run on an expanded cache ({type(error).__name__})")
            logps, gradient = _distance(plain, shared)
            allowed = 1e-4
            spacing = _spacing(model, autocast)
            if max(logps, gradient) > allowed and spacing > allowed:
                allowed = 4 * max(spacing, *_distance(plain, _one_by_one(model, head, batch, autocast)))
    finally:
        model.train(was_training)
    if max(logps, gradient) <= allowed:
        return LayoutCheck("shared", "both layouts agree", logps, gradient)
    return LayoutCheck("plain", f"the layouts differ by {max(logps, gradient):.1e}", logps, gradient)


Measured = tuple[torch.Tensor, list[torch.Tensor]]
"""Log-probabilities ``[N, T]`` and the gradient of their sum, one tensor a trainable parameter."""


def _measure(model: nn.Module, head: LMHead, batch: Batch, routing: Routing, autocast: Any) -> Measured:
    parameters = [p for p in model.parameters() if p.requires_grad]
    with autocast(), torch.enable_grad():
        logps = score_batch(model, head, batch, routing)["logps"]
    gradients = torch.autograd.grad(logps.sum(), parameters, allow_unused=True)
    return logps.detach().double(), [
        torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)
    ]


def _one_by_one(model: nn.Module, head: LMHead, batch: Batch, autocast: Any) -> Measured:
    """The plain layout with every group padded by itself, on both sides: what re-padding alone changes."""
    rows, total = [], [torch.zeros_like(p) for p in model.parameters() if p.requires_grad]
    for number, group in enumerate(batch.groups, start=1):
        part = to_batch([group], batch.ids.device)
        logps, gradients = _measure(model, head, part, Routing("plain", shift=number), autocast)
        rows.append(nn.functional.pad(logps, (0, batch.ids.shape[1] - logps.shape[1])))
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


def check_head(model: nn.Module, batch: Batch, autocast: Any = contextlib.nullcontext) -> None:
    """Compare the LM head's logits with the model's own on one short row, both in the precision of training.

    Raises:
        UserError: when they differ by more than 1e-3, or 5e-2 in half precision (a head this engine does not know).
    """
    group = batch.groups[0]
    device = batch.ids.device
    ids = (group.prompt_ids + group.completions[0].ids)[:32]
    tokens = torch.tensor([ids], device=device)
    causal = causal_lm(model)
    with evaluating(model), torch.no_grad(), autocast():
        wanted = causal(input_ids=tokens, use_cache=False).logits[0]
        got = LMHead(model).logits(decoder(model)(input_ids=tokens, use_cache=False).last_hidden_state[0])
    scale = max(1.0, float(wanted.abs().max()))
    difference = float((wanted.double() - got.double()).abs().max()) / scale
    # In half precision the model rounds after each of scale and soft-cap, the head once.
    if not difference < (5e-2 if _spacing(model, autocast) > 1e-4 else 1e-3):
        raise UserError(
            f"the logits of {type(causal).__name__} are not its output embedding of the last hidden state "
            f"(difference {difference:.1e})",
            fix="this model family needs a line in contrl/engine/lm_head.py",
        )
