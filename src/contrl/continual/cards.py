"""Model cards of a run: what the run says of itself, with the results matrix as far as it is known.

A stage's card shows the rows that were scored when its weights were saved. ``final/`` and the run folder are hard links
of the last stage's files; their cards are replaced when the run is finished, each as a new file, so the stage's stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contrl.continual.metrics import FORMULAS
from contrl.continual.records import read_manifest, write_atomic
from contrl.continual.results import Cell, Results, read
from contrl.models.card import card

HEADLINES = ("average", "forgetting", "bwt")


def with_results(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts with ``matrix``: the rows scored so far, headline metrics once the run is finished.

    Args:
        folder: of the run; one without run.json (a base stage) has no matrix.
    """
    if not (folder / "run.json").exists():
        return dict(facts)
    results = read(folder)
    rows = [
        [name, *(_cell(cell) for cell in cells)]
        for name, cells in zip(results.rows, results.matrix, strict=True)
        if any(cells)
    ]
    if not rows:
        return dict(facts)
    return {**facts, "matrix": {"columns": list(results.tasks), "rows": rows, "metric": _caption(results)}}


def write_final_cards(folder: Path) -> None:
    """Replace the cards of ``final/`` and of the run folder itself; those with a model in them."""
    facts = read_manifest(folder).get("card")
    if not facts:
        return
    text = card(with_results(folder, facts)).encode("utf-8")
    for place in (folder / "final", folder):
        if (place / "README.md").exists():
            write_atomic(place / "README.md", text)


def _cell(cell: Cell | None) -> str | None:
    """``0.98 ±0.01``, with the longer side of its interval."""
    if cell is None:
        return None
    if cell.interval is None:
        return f"{cell.value:.2f}"
    low, high = cell.interval
    return f"{cell.value:.2f} ±{max(high - cell.value, cell.value - low):.2f}"


def _caption(results: Results) -> str:
    """The metric, and of a finished run its headline numbers with their intervals."""
    if not results.finished:
        return f"{results.metric} ± 95% CI, so far"
    parts = [f"{results.metric} ± 95% CI"]
    for name in HEADLINES:
        metric = results.metrics[name]
        if metric.value is not None:
            span = "" if metric.low is None or metric.high is None else f" [{metric.low:.2f}, {metric.high:.2f}]"
            parts.append(f"{FORMULAS[name].title} {metric.value:.2f}{span}")
    return "; ".join(parts)
