"""A step of a preference method on given log-probabilities, cut into passes as the engine does; and TRL's record.

No model: what a forward would return stands in tables, one row a completion, group after group.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from contrl.engine.batching import to_batch
from contrl.interfaces import Batch, Completion, Group, Method, Outputs

GOLDEN = Path(__file__).parents[1] / "golden" / "preference-trl-1.16.0.json"


def golden() -> Any:
    """What TRL 1.16.0's own code gave, written by tests/golden/record_preference.py."""
    with open(GOLDEN, encoding="utf-8") as file:
        return json.load(file)


@dataclass
class Step:
    """The groups of a step and what the forwards return for them; tables are ``[N, T]`` with N rows in group order."""

    groups: list[Group]
    policy: torch.Tensor
    reference: torch.Tensor | None = None
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    observed_policy: torch.Tensor | None = None
    observed_reference: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """Completions of a group."""
        return len(self.groups[0].completions)


def in_group_order(table: Any) -> Any:
    """TRL's rows, all chosen and then all rejected, as chosen and rejected of each pair in turn."""
    rows = torch.as_tensor(table)
    return rows.view(2, len(rows) // 2, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)


def pair_step(fixture: dict[str, Any]) -> Step:
    """A fixture of the record as a step of pairs."""
    mask = in_group_order(fixture["mask"]).bool()
    lengths = mask.sum(-1).tolist()
    completions = [Completion([5] * length) for length in lengths]
    groups = [Group(str(g), "t", [3, 4], completions[2 * g : 2 * g + 2]) for g in range(len(lengths) // 2)]
    width = max(lengths)
    tables = {
        name: in_group_order(torch.tensor(fixture[key], dtype=torch.float32))[:, :width] * mask[:, :width]
        for name, key in (
            ("policy", "policy"),
            ("reference", "reference"),
            ("entropy", "entropy"),
            ("mean_logits", "mean_logits"),
            ("correct", "top1"),
            ("log_sum_p2", "log_sum_p2"),
        )
    }
    policy, reference = tables.pop("policy"), tables.pop("reference")
    return Step(groups, policy.requires_grad_(), reference, tables)


def batch_of(step: Step, index: Sequence[int]) -> tuple[Outputs, Batch]:
    """The pass over the groups ``index``."""
    batch = to_batch([step.groups[g] for g in index], torch.device("cpu"))
    rows = [g * step.size + side for g in index for side in range(step.size)]
    width = batch.ids.shape[1]
    if step.reference is not None:
        batch.reference_logps = step.reference[rows][:, :width]
    extras = {name: table[rows][:, :width] for name, table in step.extras.items()}
    return Outputs(step.policy[rows][:, :width], **extras), batch


def statistics_of(
    method: Method, step: Step, passes: Sequence[Sequence[int]], memory: dict[str, float]
) -> dict[str, torch.Tensor]:
    """What ``settle`` makes of the step, observed pass by pass."""
    seen: dict[str, list[torch.Tensor]] = {}
    for index in passes:
        out, batch = batch_of(step, index)
        if step.observed_policy is not None and step.observed_reference is not None:
            batch = to_batch(method.observed([step.groups[g] for g in index]), torch.device("cpu"))
            out = Outputs(step.observed_policy[list(index)])
            batch.reference_logps = step.observed_reference[list(index)]
        for name, values in method.observe(out, batch).items():
            assert not values.requires_grad
            seen.setdefault(name, []).append(values.double())
    return method.settle({name: torch.cat(values) for name, values in seen.items()}, memory)


def run(
    method: Method,
    step: Step,
    passes: Sequence[Sequence[int]] | None = None,
    memory: dict[str, float] | None = None,
) -> tuple[float, torch.Tensor, dict[str, float]]:
    """Loss, its gradient in the policy's log-probabilities, and the metrics, of a step in these passes.

    The gradient is 0 on padding, which has no token: a forward would not hand it on.
    """
    passes = passes or [range(len(step.groups))]
    counts = method.count(step.groups)
    statistics = (
        statistics_of(method, step, passes, {} if memory is None else memory) if method.couples == "step" else {}
    )
    total = torch.zeros(())
    meters: dict[str, tuple[float, float]] = {}
    for index in passes:
        out, batch = batch_of(step, index)
        batch.statistics = statistics
        output = method.loss(out, batch)
        assert output.sums.keys() == counts.keys()
        total = total + sum((output.sums[name] / counts[name] for name in counts), torch.zeros(()))
        for name, (value, count) in output.metrics.items():
            before = meters.get(name, (0.0, 0.0))
            meters[name] = (before[0] + float(value), before[1] + float(count))
    (gradient,) = torch.autograd.grad(total, step.policy)
    gradient = gradient * batch_of(step, range(len(step.groups)))[1].mask
    return total.item(), gradient, {name: value / count for name, (value, count) in meters.items() if count}
