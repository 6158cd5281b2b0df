"""What a run's logs say of how far the model moved: in its answers (drift.jsonl) and in its weights (weights.jsonl).

Sums over tasks, tensors and layers for results.json; the logs keep the parts. A part that is missing makes the sum that
needs it null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import fsum, sqrt
from statistics import fmean
from typing import TYPE_CHECKING, Any

from contrl.continual.matrix import Z95
from contrl.continual.records import read_records

if TYPE_CHECKING:
    from contrl.continual.results import Results

DRIFT = {
    "kl": "sum over probe answers y ~ p0 and their tokens t of (log p0(y_t) - log p(y_t)) / number of tokens: "
    "KL(p0 || p) in nats per token; p0 the weights the run started with, p those after the stage",
    "kl_sequence": "the same sum, per answer",
    "new": "mean over tasks j trained in stage k of kl on their prompts",
    "old": "mean over tasks j trained in stages before k, and not in k, of kl on their prompts",
}
WEIGHT_CHANGE = {
    "sum_of_norms": "sum over tensors of ||W - W0|| / sum over tensors of ||W0||",
    "mean_of_ratios": "mean over tensors with ||W0|| > 0 of ||W - W0|| / ||W0||",
    "start": "W0: the weights at the start of the stage",
    "base": "W0: the weights the run started with",
}
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")

Record = Mapping[str, Any]


# --- drift --------------------------------------------------------------------------------------------


def drift(results: Results) -> dict[str, Any]:
    """KL to the first weights on new and on old prompts after every stage, and task by task; null where unknown."""
    records = {(r["stage"], r["task"]): r for r in read_records(results.folder / "drift.jsonl", ("stage", "task"))}
    stages = []
    for row, trained in enumerate(results.trained):
        if row == 0:
            continue
        before = {column for columns in results.trained[:row] for column in columns} - set(trained)
        parts = {"new": trained, "old": sorted(before)}
        told = {name: _mean_kl([records.get((row, results.tasks[j])) for j in js]) for name, js in parts.items()}
        stages.append({"stage": row, "row": results.rows[row], **told})
    return {"formula": DRIFT, "stages": stages, "tasks": list(records.values())}


def _mean_kl(records: Sequence[Record | None]) -> dict[str, Any]:
    """Mean over tasks, with the interval over probe prompts; all null when a task's is missing or there is no task."""
    known = [r for r in records if r is not None and r.get("kl") is not None]
    if not known or len(known) < len(records):
        return dict.fromkeys(("kl", "low", "high", "kl_sequence", "n"))
    value, errors = fmean(r["kl"] for r in known), [r.get("se") for r in known]
    low = high = None
    if all(error is not None for error in errors):
        half = Z95 * sqrt(fsum(float(error) ** 2 for error in errors if error is not None)) / len(known)
        low, high = value - half, value + half
    sequence = fmean(r["kl_sequence"] for r in known)
    return {"kl": value, "low": low, "high": high, "kl_sequence": sequence, "n": sum(r["n"] for r in known)}


# --- weights ------------------------------------------------------------------------------------------


def weight_change(results: Results) -> dict[str, Any]:
    """How far the weights moved in each stage, by both formulas: all tensors, each layer, each tensor."""
    records = read_records(results.folder / "weights.jsonl", ("stage", "tensor"))
    effective = any(record.get("kind") == "effective" for record in records)
    # An adapter's factors are no weights: their product may stand still while they turn.
    counted = [r for r in records if (r.get("kind") != "adapter") or not effective]
    stages = []
    for row in sorted({record["stage"] for record in counted}):
        of_stage = [record for record in counted if record["stage"] == row]
        layers: dict[str, list[Record]] = {}
        for record in of_stage:
            layers.setdefault(layer_of(record["tensor"]), []).append(record)
        stages.append(
            {
                "stage": row,
                "row": results.rows[row] if row < len(results.rows) else None,
                **_both(of_stage),
                "layers": {name: _both(parts) for name, parts in layers.items()},
                "tensors": {r["tensor"]: {since: _ratio(r, since) for since in ("start", "base")} for r in of_stage},
            }
        )
    measured = "all saved tensors"
    if effective:
        measured = "the weights under the adapter, changed by s B A"
    elif any(record.get("kind") == "adapter" for record in records):
        measured = "the adapter's own tensors: what it does to the weights is no plain product"
    return {"formula": WEIGHT_CHANGE, "measured": measured, "stages": stages}


def layer_of(tensor: str) -> str:
    """The layer a tensor belongs to, ``layer 3``; outside of layers the name of its module."""
    match = _LAYER.search(tensor)
    if match:
        return f"layer {match.group(1)}"
    return tensor.removeprefix("base_model.model.").removeprefix("model.").rpartition(".")[0] or tensor


def _both(records: Sequence[Record]) -> dict[str, dict[str, float | int | None]]:
    return {since: _change(records, since) for since in ("start", "base")}


def _change(records: Sequence[Record], since: str) -> dict[str, float | int | None]:
    changes, norms = [r.get(f"from_{since}") for r in records], [r.get(f"{since}_norm") for r in records]
    pairs = [(c, n) for c, n in zip(changes, norms, strict=True) if c is not None and n is not None]
    if not pairs or len(pairs) < len(records):
        return {"sum_of_norms": None, "mean_of_ratios": None, "n": len(pairs)}
    below, ratios = fsum(n for _, n in pairs), [c / n for c, n in pairs if n > 0]
    return {
        "sum_of_norms": fsum(c for c, _ in pairs) / below if below > 0 else None,
        "mean_of_ratios": fmean(ratios) if ratios else None,
        "n": len(pairs),
    }


def _ratio(record: Record, since: str) -> float | None:
    change, norm = record.get(f"from_{since}"), record.get(f"{since}_norm")
    return change / norm if change is not None and norm else None
