"""How far the model moved: KL to the base on each task's prompts, and the change of weights by layer.

Read from drift.jsonl and weights.jsonl, the logs that results.json sums up, so that a run that is not finished is
shown too. A run without them has no drift to show.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from contrl.continual.results import read_records
from contrl.report.curves import finite

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|decoder\.layers)\.(\d+)\.")
OUTSIDE = ("embedding", "head", "other")


@dataclass(frozen=True)
class Divergence:
    """KL(base || policy) on one task's prompts after one stage, nats per token."""

    stage: int
    task: str
    kl: float
    se: float | None
    n: int | None


@dataclass(frozen=True)
class WeightChange:
    """How far a group of tensors moved in a stage, and since the base, as a share of its norm there."""

    stage: int
    group: str
    from_start: float | None
    from_base: float | None


def read_divergence(folder: Path) -> list[Divergence]:
    """Records of drift.jsonl, in order of stage. Raises UserError on a damaged log."""
    found = []
    for record in read_records(folder / "drift.jsonl", key=("stage", "task", "kl")):
        kl, n = finite(record["kl"]), record.get("n")
        if isinstance(record["stage"], int) and kl is not None:
            items = n if isinstance(n, int) else None
            found.append(Divergence(record["stage"], str(record["task"]), kl, finite(record.get("se")), items))
    return sorted(found, key=lambda point: point.stage)


def read_weight_changes(folder: Path) -> list[WeightChange]:
    """Relative change by layer and stage: sqrt(sum of squared changes / sum of squared norms) over a group's tensors.

    The norms are those of the weights it is a change of; of older runs, which lack them, those after the stage.

    Raises:
        UserError: on a damaged log.
    """
    sums: dict[tuple[int, str], dict[str, list[float]]] = {}
    for record in read_records(folder / "weights.jsonl", key=("stage", "tensor", "norm")):
        # Of an adapter what it does to the weights under it counts; its own tensors are told besides.
        if not isinstance(record["stage"], int) or record.get("kind") == "adapter":
            continue
        group = sums.setdefault((record["stage"], layer_of(str(record["tensor"]))), {})
        for name, norm in (("from_start", "start_norm"), ("from_base", "base_norm")):
            change, size = finite(record.get(name)), finite(record.get(norm, record["norm"]))
            if change is not None and size is not None:
                pair = group.setdefault(name, [0.0, 0.0])
                pair[0] += change**2
                pair[1] += size**2
    found = [
        WeightChange(stage, group, _share(parts.get("from_start")), _share(parts.get("from_base")))
        for (stage, group), parts in sums.items()
    ]
    return sorted(found, key=lambda change: (change.stage, _order(change.group)))


def layer_of(tensor: str) -> str:
    """``layer 3``, ``embedding``, ``head`` or ``other``."""
    match = _LAYER.search(tensor)
    if match:
        return f"layer {match[1]}"
    if "embed" in tensor or re.search(r"\bw[tp]e\b", tensor):
        return "embedding"
    return "head" if re.search(r"lm_head|score|embed_out", tensor) else "other"


def groups_of(changes: Iterable[WeightChange]) -> list[str]:
    """Every group once, from the embedding to the head."""
    return sorted({change.group for change in changes}, key=_order)


def _order(group: str) -> tuple[int, int]:
    if group.startswith("layer "):
        return 1, int(group.removeprefix("layer "))
    return {"embedding": (0, 0), "other": (2, 0), "head": (3, 0)}[group]


def _share(pair: list[float] | None) -> float | None:
    return sqrt(pair[0] / pair[1]) if pair and pair[1] > 0 else None
