"""The forward of a batch through the *wrapped* model.

accelerate's autocast and DDP's hooks wrap ``model.forward``, so the outermost model gets an instance-level
forward that routes ``contrl_batch=`` to the layouts and the head and leaves every other call alone.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from contrl.engine.batching import Layout
from contrl.engine.lm_head import Contrast, LMHead, ScoreHead
from contrl.engine.shared_prompt import Wanted, hidden_states, layout_for
from contrl.interfaces import Batch, Outputs, Teacher
from contrl.models.value_head import ValueModel, value_of


@dataclass
class Routing:
    """What the routed forward does with a batch.

    Attributes:
        layout: the preferred one.
        temperature: divides the logits.
        needs: as in ``Method.needs``; log-probabilities come anyhow, unless "scores" are wanted instead.
        shift: as in ``hidden_states``.
        teachers: frozen policies whose distributions the policy's are compared with, by name.
    """

    layout: Layout = "shared"
    temperature: float = 1.0
    needs: frozenset[str] = frozenset()
    shift: int = 0
    teachers: Mapping[str, Teacher] = field(default_factory=dict)


Head = LMHead | ScoreHead


def head_of(model: nn.Module, needs: Collection[str] = ()) -> Head:
    """The head that gives what a method needs."""
    return ScoreHead(model) if "scores" in needs else LMHead(model)


@contextlib.contextmanager
def routed(model: nn.Module, routing: Routing) -> Iterator[None]:
    """Give ``model`` the routed forward while open; afterwards its forward is the one it had, nothing nests."""
    own = model.__dict__.get("forward")
    original = model.forward
    head = head_of(model, routing.needs)

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


def score_batch(model: nn.Module, head: Head, batch: Batch, routing: Routing) -> dict[str, Any]:
    """What the routing needs of a batch, under the names and shapes of ``Outputs``."""
    wanted = Wanted(prompts="prompt_logps" in routing.needs, last=isinstance(head, ScoreHead))
    taught = {} if isinstance(head, ScoreHead) else _taught(batch, routing)
    hidden = hidden_states(model, batch, layout_for(model, batch, routing.layout), routing.shift, wanted)
    if isinstance(head, ScoreHead):
        assert hidden.last is not None
        scores = head.score(hidden.last)
        return {"scores": scores, "logps": torch.zeros(batch.mask.shape, dtype=scores.dtype, device=scores.device)}
    ids = batch.ids[batch.mask]
    logps, extras = head.score(hidden.trained, ids, routing.temperature, extras=routing.needs)
    out: dict[str, Any] = {"logps": _table(batch, logps)}
    out |= {name: _table(batch, values) for name, values in extras.items()}
    if taught:
        out["divergence"] = {
            name: _table(batch, Contrast(head, theirs, kind)(hidden.trained, states, routing.temperature))
            for name, (theirs, states, kind) in taught.items()
        }
    if hidden.prompts is not None:
        out["prompt_logps"] = _prompt_logps(head, hidden.prompts, batch, routing.temperature)
    if "values" in routing.needs:
        out["values"] = _values(model, batch, routing, hidden.trained)
    return out


def _taught(batch: Batch, routing: Routing) -> dict[str, tuple[LMHead, torch.Tensor, str]]:
    """Of each teacher of this batch: its head, its hidden states ``[M, H]``, the direction."""
    anchors = any(group.is_anchor for group in batch.groups)
    found: dict[str, tuple[LMHead, torch.Tensor, str]] = {}
    for name, teacher in routing.teachers.items():
        if teacher.on not in ("both", "anchors" if anchors else "groups"):
            continue
        with teacher.reference.model() as model, torch.no_grad():
            states = hidden_states(model, batch, layout_for(model, batch, routing.layout), routing.shift).trained
            head = LMHead(model)
            if teacher.reference.frozen is None and any(p.requires_grad for p in head.head.parameters()):
                # The weights are the policy's own, swapped while this block runs; the head is used after it.
                head.head = copy.deepcopy(head.head).requires_grad_(False)
        found[name] = (head, states, teacher.direction)
    return found


def values_of(model: nn.Module, batch: Batch, routing: Routing) -> torch.Tensor:
    """``[N, T]`` the value of what stands before each token, without projecting anything to the vocabulary."""
    if isinstance(value_of(model), ValueModel):
        return _values(model, batch, routing, None)
    hidden = hidden_states(model, batch, layout_for(model, batch, routing.layout), routing.shift)
    return _values(model, batch, routing, hidden.trained)


def _values(model: nn.Module, batch: Batch, routing: Routing, hidden: torch.Tensor | None) -> torch.Tensor:
    """A head reads the policy's hidden states ``[M, H]``; a value model makes its own."""
    value = value_of(model)
    if value is None:
        raise RuntimeError("the method needs values and the policy has no value function")
    if isinstance(value, ValueModel):
        layout = layout_for(value.classifier, batch, routing.layout)
        hidden = hidden_states(value.classifier, batch, layout, routing.shift).trained
    assert hidden is not None
    return _table(batch, value(hidden))


def _table(batch: Batch, values: torch.Tensor) -> torch.Tensor:
    return torch.zeros(batch.mask.shape, dtype=values.dtype, device=values.device).masked_scatter(batch.mask, values)


def _prompt_logps(head: LMHead, hidden: torch.Tensor, batch: Batch, temperature: float) -> torch.Tensor:
    """``[G]`` log-probability of each prompt, its first token not counted."""
    ids = [token for group in batch.groups for token in group.prompt_ids[1:]]
    owner = [index for index, group in enumerate(batch.groups) for _ in group.prompt_ids[1:]]
    logps, _ = head.score(hidden, torch.tensor(ids, dtype=torch.long, device=hidden.device), temperature)
    places = torch.tensor(owner, dtype=torch.long, device=hidden.device)
    return torch.zeros(len(batch.groups), dtype=logps.dtype, device=logps.device).index_add(0, places, logps)


def run(model: nn.Module, batch: Batch) -> Outputs:
    """Forward of a batch through a model (or its DDP wrapper) whose forward is routed."""
    return Outputs(**model(contrl_batch=batch))


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
