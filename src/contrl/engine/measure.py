"""What rollouts are given before they are credited: log-probabilities and values of the weights that sampled them.

Each is one pass without gradient over a window's rollouts, run only for methods that ask for it, and kept on the
completions, so that every later step and a resumed run see the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch

from contrl.engine.batching import overhead, plan_passes, to_batch
from contrl.engine.forward import Routing, score_batch, values_of
from contrl.engine.lm_head import LMHead
from contrl.engine.reference_scores import PassSettings, ReferenceScores
from contrl.interfaces import Batch, Completion, Group
from contrl.models.modes import evaluating


def measure(
    groups: Sequence[Group], names: Collection[str], settings: PassSettings, reference: ReferenceScores | None
) -> None:
    """Set ``old_logps`` ("policy_logps"), ``reference_logps`` and ``values`` of every completion, as named."""
    readings: dict[str, Callable[[Batch], torch.Tensor]] = {
        "old_logps": lambda batch: _logps(batch, settings),
        "reference_logps": lambda batch: _reference(batch, settings, reference),
        "values": lambda batch: values_of(settings.model, batch, settings.routing),
    }
    wanted = {"policy_logps": "old_logps"}
    names = [wanted.get(name, name) for name in names]
    whole = [replace(group, completions=[replace(c, trained=None) for c in group.completions]) for group in groups]
    places = {id(mine): theirs for mine, theirs in zip(whole, groups, strict=True)}
    cost = overhead(settings.device)
    with evaluating(settings.model), torch.no_grad(), settings.autocast():
        for part in plan_passes(whole, settings.tokens, layout=settings.routing.layout, overhead=cost):
            batch = to_batch(part, settings.device)
            completions = [c for group in part for c in places[id(group)].completions]
            for name in names:
                _keep(completions, name, readings[name](batch))


def _keep(completions: Sequence[Completion], name: str, table: torch.Tensor) -> None:
    for completion, row in zip(completions, table.float().tolist(), strict=True):
        setattr(completion, name, row[: len(completion.ids)])


def _logps(batch: Batch, settings: PassSettings) -> torch.Tensor:
    routing = Routing(settings.routing.layout, settings.routing.temperature)
    return score_batch(settings.model, LMHead(settings.model), batch, routing)["logps"]


def _reference(batch: Batch, settings: PassSettings, reference: ReferenceScores | None) -> torch.Tensor:
    if reference is None:
        raise RuntimeError("the method measures against a reference and there is none")
    # Whatever a completion already carries is not the answer.
    return reference.logps(replace(batch, reference_logps=None), settings)


def correct(groups: Sequence[Group], cap: float) -> dict[str, tuple[float, float]]:
    """Importance weights ``min(p(token) / q(token), cap)`` of completions that another program sampled from ``q``.

    Truncated importance sampling, as in arXiv:2202.09662 and the discussion of rollout mismatch by Yao et al. 2025.

    Returns:
        Metrics as (sum, count), under TRL's names.
    """
    differences: list[float] = []
    ratios: list[float] = []
    for completion in (c for group in groups for c in group.completions):
        sampled, own = completion.sampler_logps or [], completion.old_logps or []
        gaps = torch.tensor(own, dtype=torch.float64) - torch.tensor(sampled, dtype=torch.float64)
        weights = gaps.exp()
        completion.correction = weights.clamp(max=cap).tolist()
        differences += gaps.abs().tolist()
        ratios += weights.tolist()
    if not ratios:
        return {}
    count = float(len(ratios))
    return {
        "sampling/sampling_logp_difference/mean": (sum(differences), count),
        "sampling/sampling_logp_difference/max": (max(differences), 1.0),
        "sampling/importance_sampling_ratio/mean": (sum(ratios), count),
        "sampling/importance_sampling_ratio/min": (min(ratios), 1.0),
        "sampling/importance_sampling_ratio/max": (max(ratios), 1.0),
    }
