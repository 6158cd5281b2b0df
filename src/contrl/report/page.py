"""report.html: one self-contained page per run, built from the run folder alone.

Sections in the order of the questions one asks: what was learnt and forgotten, is anything wrong, where exactly, how
did training go, what do answers look like, what did it cost, how is it repeated. Any old run can be redrawn, an
unfinished one too.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contrl.continual.metrics import FORMULAS
from contrl.continual.results import Results, read
from contrl.report.changes import balances
from contrl.report.charts.cost import time_split
from contrl.report.charts.drift import divergence, weight_map
from contrl.report.charts.frame import Chart, unchecked
from contrl.report.charts.lengths import row_lengths
from contrl.report.charts.matrix import matrix_figure
from contrl.report.charts.plasticity import stability_plasticity
from contrl.report.charts.sequence import sequence_strip
from contrl.report.charts.tasks import task_curve
from contrl.report.charts.training import training_panel
from contrl.report.cost import cost_facts, duration, stage_costs
from contrl.report.curves import Training, read_training
from contrl.report.data_facts import data_flags, read_data
from contrl.report.document import Page
from contrl.report.drift import read_divergence, read_weight_changes
from contrl.report.heatmap import VIEWS, heat_map
from contrl.report.numbers import interval, number, signed
from contrl.report.panels import panels
from contrl.report.red_flags import red_flags
from contrl.report.rollout_groups import read_groups
from contrl.report.samples import KINDS, item_samples
from contrl.report.settings import Settings, read_settings
from contrl.report.stages import StageFacts, read_stages
from contrl.report.verdict import facts, sentence, tiles

TEMPLATE = "report.html.j2"


def build(run_folder: str | Path, *, with_figures: bool = True) -> Path:
    """Write report.html into a run folder, and every chart into figures/; returns the path of the page.

    Args:
        run_folder: any run, finished or not.
        with_figures: False writes the matrix alone as files, and links no others: a run that ends need not wait.

    Raises:
        UserError: the folder is no run, or one of its logs is damaged (file and line named).
    """
    results = read(run_folder)
    page = Page(results.folder, with_figures=with_figures)
    with unchecked():
        return page.write("report.html", TEMPLATE, content(results, page))


def content(results: Results, page: Page) -> dict[str, Any]:
    """What the template shows; its charts are drawn on the way."""
    training, settings = read_training(results.folder), read_settings(results.folder)
    stages = read_stages(results, training, steps_per_window=settings.steps_per_window)
    data = read_data(results)
    page.figure(matrix_figure(results), shown=False)
    return {
        "results": results,
        "title": results.folder.resolve().name,
        "facts": _facts(results, stages),
        "final_row": results.rows[results.end] if results.end >= 0 else None,
        "sentence": sentence(results),
        "tiles": tiles(results),
        "warnings": [*red_flags(results, training), *data_flags(data)],
        "sequence": page.figure(sequence_strip(stages, results.tasks)),
        "views": VIEWS,
        "heat": heat_map(results),
        "task_charts": page.figures(task_curve(results, column) for column in range(len(results.tasks))),
        "balance": page.figures(_balance(results)),
        **_training(training, results, settings, page),
        "drift": page.figures(_drift(results)),
        "samples": item_samples(results),
        "kinds": KINDS,
        "groups": read_groups(results.folder),
        "data": data,
        "lengths": page.figures([row_lengths(data)] if any(rows.lengths for rows in data) else []),
        "time": page.figures([time_split(costs)] if (costs := stage_costs(stages)) else []),
        "costs": cost_facts(results, training, stages),
        "glossary": _glossary(results),
        "reproduce": _reproduce(results, settings),
        "number": number,
        "signed": signed,
    }


# --- sections ----------------------------------------------------------------------------------------


def _facts(results: Results, stages: Sequence[StageFacts]) -> list[str]:
    seconds = sum(sum(stage.seconds.values()) for stage in stages)
    return [*facts(results)[1:], *([duration(seconds)] if seconds else [])]


def _balance(results: Results) -> list[Chart]:
    points = balances(results)
    return [stability_plasticity(points)] if points else []


def _drift(results: Results) -> list[Chart]:
    points, changes = read_divergence(results.folder), read_weight_changes(results.folder)
    return [*([divergence(points, results.tasks)] if points else []), *([weight_map(changes)] if changes else [])]


def _training(training: Training, results: Results, settings: Settings, page: Page) -> dict[str, Any]:
    found = panels(training, results.run, settings.limits)
    drawn = {panel.id: page.figures([training_panel(training, panel)]) for panel in found}
    shown = {series.curve.name for panel in found for series in panel.series}
    return {
        "main_curves": [figure for panel in found if not panel.folded for figure in drawn[panel.id]],
        "more_curves": [figure for panel in found if panel.folded for figure in drawn[panel.id]],
        "unshown": [curve.name for curve in training.curves if curve.name not in shown],
    }


def _glossary(results: Results) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "title": FORMULAS[name].title,
            "value": number(metric.value),
            "exact": "" if metric.value is None else repr(metric.value),
            "interval": interval(metric),
            "n": "" if metric.n is None else str(metric.n),
            "formula": metric.formula,
            "better": "higher" if metric.higher_is_better else "lower",
            "basis": metric.basis,
            "source": FORMULAS[name].source,
        }
        for name, metric in results.metrics.items()
        if name in FORMULAS
    ]


def _reproduce(results: Results, settings: Settings) -> dict[str, Any]:
    run = results.run
    command = run.get("command", "")
    hardware = run.get("hardware")
    return {
        "command": command if isinstance(command, str) else shlex.join(map(str, command)),
        "config": settings.text,
        "versions": run.get("versions") or {},
        "hardware": hardware if isinstance(hardware, dict) else {},
        "commit": run.get("git_commit"),
        "manifest": json.dumps(dict(run), ensure_ascii=False, indent=1),
    }
