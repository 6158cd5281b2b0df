"""The page for many runs: arms side by side with intervals, paired differences, seeds as dots, trade-off curves.

The numbers are those of ``contrl.continual.comparison``, which ``contrl compare`` prints; here they are drawn.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from contrl.continual import study_manifest
from contrl.continual.comparison import COMPARED, ArmSummary, Comparison, compare
from contrl.continual.intervals import Estimate
from contrl.report.charts.compare import paired_differences, seeds_and_means, trade_off
from contrl.report.charts.frame import unchecked
from contrl.report.document import Page
from contrl.report.numbers import number, signed

TEMPLATE = "compare.html.j2"


def build(
    folders: Sequence[Path], target: Path | None = None, *, metric: str | None = None, baseline: str | None = None
) -> Path:
    """Write report.html and figures/ that compare studies, runs, or both; returns the path of the page.

    Args:
        folders: study folders and run folders.
        target: the folder to write into; None takes ``place_for``.
        metric, baseline: as ``compare`` takes them.

    Raises:
        UserError: as ``compare`` does.
    """
    comparison = compare(folders, metric=metric, baseline=baseline)
    target = target or place_for(folders)
    target.mkdir(parents=True, exist_ok=True)
    page = Page(target)
    with unchecked():
        return page.write("report.html", TEMPLATE, content(comparison, page, folders))


def place_for(folders: Sequence[Path]) -> Path:
    """The study's own folder; of anything else ``compare/`` in the folder that holds them all."""
    if len(folders) == 1 and study_manifest.is_study(folders[0]):
        return folders[0]
    return Path(os.path.commonpath([folder.resolve().parent for folder in folders])) / "compare"


def content(comparison: Comparison, page: Page, folders: Sequence[Path]) -> dict[str, Any]:
    """What the template shows."""
    drawn = [summary for summary in comparison.arms if summary.dots]
    metrics = [name for name in comparison.metrics if any(s.estimates[name].value is not None for s in drawn)]
    curve = trade_off(comparison)
    return {
        "comparison": comparison,
        "title": comparison.title,
        "metrics": {name: COMPARED[name] for name in comparison.metrics},
        "sentences": sentences(comparison),
        "rows": [_row(summary, comparison.metrics) for summary in comparison.arms],
        "means": page.figures(seeds_and_means(comparison, name) for name in metrics),
        "differences": page.figures(
            chart for name in metrics if (chart := paired_differences(comparison, name)) is not None
        ),
        "trade_off": page.figures([curve] if curve else []),
        "runs": [_run(summary, dot, page.folder, comparison.metrics) for summary in drawn for dot in summary.dots],
        "problems": [(s.arm.name, name, why) for s in comparison.arms for name, why in s.failed.items()],
        "formulas": COMPARED,
        "command": "contrl compare " + " ".join(map(str, folders)),
    }


def sentences(comparison: Comparison) -> list[str]:
    """Each arm against its baseline in words, for the first metrics that tell them apart."""
    found = []
    for summary in comparison.arms:
        if not summary.differences:
            continue
        parts = []
        for name in comparison.metrics:
            difference, formula = summary.differences[name], COMPARED[name]
            if difference.value is None or not difference.outside_noise:
                continue
            verdict = "better" if (difference.value > 0) == formula.higher_is_better else "worse"
            parts.append(f"{formula.title} {signed(difference.value)} {_interval(difference)} ({verdict})")
        told = "; ".join(parts) if parts else "no difference outside noise in what is compared"
        found.append(f"{summary.arm.name} against {summary.baseline}: {told}.")
    return found


def _row(summary: ArmSummary, metrics: Sequence[str]) -> dict[str, Any]:
    """One line of the table: an arm with each metric's mean and difference."""
    arm = summary.arm
    return {
        "name": arm.name,
        "fields": ", ".join(f"{path} = {text}" for path, text in arm.fields.items()),
        "runs": f"{summary.finished} of {summary.planned}",
        "note": f"cannot be run: {arm.refused}" if arm.refused else "",
        "baseline": summary.baseline,
        "cells": [_cell(name, summary) for name in metrics],
    }


def _cell(name: str, summary: ArmSummary) -> dict[str, Any]:
    mean, difference = summary.estimates[name], summary.differences.get(name)
    cell = {"name": name, "value": mean.value, "mean": number(mean.value), "interval": _interval(mean), "n": mean.n}
    if difference is None or difference.value is None:
        return {**cell, "difference": "", "detectable": "", "exact": None}
    better = (difference.value > 0) == COMPARED[name].higher_is_better
    mark = ("▲ better" if better else "▼ worse") if difference.outside_noise else "within noise"
    return {
        **cell,
        "exact": difference.value,
        "difference": f"{signed(difference.value)} {_interval(difference)} {mark}".replace("  ", " "),
        "detectable": "" if difference.detectable is None else number(difference.detectable),
    }


def _run(summary: ArmSummary, dot: Any, folder: Path, metrics: Sequence[str]) -> dict[str, Any]:
    page = dot.folder / "report.html"
    link = quote(os.path.relpath(page.resolve(), folder.resolve())) if page.is_file() else ""
    values = [number(dot.values.get(name)) for name in metrics]
    return {"arm": summary.arm.name, "seed": dot.seed, "order": dot.order, "folder": dot.folder.name, "link": link,
            "values": values}  # fmt: skip


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{number(estimate.low)}, {number(estimate.high)}]"
