"""How much each trained weight matters to a task: exact per-sample gradients of the method's own log-likelihood.

One backward per sample: squares of *batch* gradients depend on the batch size and lose what cancels in the sum. The
result is scaled to mean 1 over all weights, so a coefficient means the same in every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from contrl.engine.batching import to_batch
from contrl.engine.forward import Routing, head_of, score_batch
from contrl.engine.lm_head import LMHead
from contrl.engine.reference_scores import PassSettings
from contrl.engine.shared_prompt import hidden_states, layout_for
from contrl.faults import reach
from contrl.interfaces import Group, Method, Outputs
from contrl.interfaces.strategies import Importance, Space
from contrl.models.lowrank import adapted_layers
from contrl.models.modes import evaluating, unchanged_training
from contrl.models.value_head import NAME as VALUE


def importance(
    kind: Importance, groups: Sequence[Group], method: Method, settings: PassSettings, space: Space = "weights"
) -> dict[str, torch.Tensor]:
    """Name -> importance of each entry of a weight, float32, mean 1 over all entries.

    Args:
        kind: "fisher": mean squared gradient of ``Method.log_likelihood``; "sensitivity": mean absolute gradient of the
            squared length of the output (scores, or logits where tokens are trained), which needs no labels.
        groups: the samples, the same on every rank; each rank takes its share.
        method: of the stage.
        settings: model, device, ranks.
        space: "delta_w": of the frozen weights below LoRA layers, as if they were trained.
    """
    model, (rank, world_size) = settings.model, settings.share
    with evaluating(model), unchanged_training(model):
        named = _weights(model, space)
        if any(hasattr(p, "placements") for p in named.values()):
            # Sharded weights: gradients are averaged over ranks, so all of them must run the same sample.
            rank, world_size = 0, 1
        before = {name: parameter.grad for name, parameter in model.named_parameters()}
        sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in named.items()}
        for group in groups[rank::world_size]:
            reach("importance")
            model.zero_grad(set_to_none=True)
            _value(kind, group, method, settings).backward()
            for name, parameter in named.items():
                if parameter.grad is not None:
                    gradient = parameter.grad.detach().float()
                    sums[name] += gradient.square() if kind == "fisher" else gradient.abs()
        for name, parameter in model.named_parameters():
            parameter.grad = before[name]
    if world_size > 1:
        for total in sums.values():
            torch.distributed.all_reduce(total)
    return _scaled(sums)


def _weights(model: nn.Module, space: Space) -> dict[str, nn.Parameter]:
    """The weights whose importance is asked for, trained while the block of the caller runs."""
    if space == "weights":
        return {name: p for name, p in model.named_parameters() if p.requires_grad and not name.startswith(f"{VALUE}.")}
    found = {}
    layers = {id(factors.frozen): factors.name for factors in adapted_layers(model)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in layers)
        if id(parameter) in layers:
            found[layers[id(parameter)]] = parameter
    return found


def _value(kind: Importance, group: Group, method: Method, settings: PassSettings) -> torch.Tensor:
    """What is differentiated for one sample."""
    model, needs = settings.model, frozenset(method.needs) & {"scores"}
    batch = to_batch([group], settings.device)
    routing = Routing("plain", method.temperature, needs)
    with settings.autocast():
        if kind == "fisher" or needs:
            out = Outputs(**score_batch(model, head_of(model, needs), batch, routing))
            if kind == "fisher":
                return method.log_likelihood(out, batch).sum()
            assert out.scores is not None
            return out.scores.square().sum()
        hidden = hidden_states(model, batch, layout_for(model, batch, "plain"))
        return LMHead(model).logits(hidden.trained).square().sum()


def _scaled(sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Divided by the mean over all entries; all zero stays zero."""
    total = sum(float(_whole(value).double().sum()) for value in sums.values())
    count = sum(value.numel() for value in sums.values())
    return {name: value * (count / total) for name, value in sums.items()} if total > 0 else sums


def _whole(value: torch.Tensor) -> torch.Tensor:
    gather = getattr(value, "full_tensor", None)
    return value if gather is None else gather()
