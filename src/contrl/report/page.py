"""report.html: one self-contained page per run, built from the run folder alone.

No script and no request: charts are inline SVG, hover texts are ``<title>``, a content policy in the page forbids the
rest. Every text is escaped by the template, for completions are model output and task names come from files. Any old
run can be redrawn, an unfinished one too.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrl.continual.metrics import FORMULAS
from contrl.continual.results import Results, read, write_atomic
from contrl.report import charts, svg
from contrl.report.curves import Curve, Training, read_training
from contrl.report.heatmap import heat_map
from contrl.report.numbers import interval, number
from contrl.report.samples import forgotten_samples
from contrl.report.verdict import facts, sentence, tiles

MAIN_CURVES = 6
MAX_CURVES = 24
LOSS_NOTE = "A policy loss near zero is normal; judge by the reward and the success."
ONLINE = ("rloo", "grpo", "ppo")


@dataclass(frozen=True)
class Chart:
    """One figure of the page: its caption and the drawn SVG."""

    title: str
    note: str
    svg: str


def build(run_folder: str | Path) -> Path:
    """Write report.html and figures/matrix.{svg,png} into a run folder; returns the path of the page.

    Raises:
        UserError: the folder is no run, or one of its logs is damaged (file and line named).
    """
    results = read(run_folder)
    path = results.folder / "report.html"
    write_figures(results)
    write_atomic(path, html(results).encode(errors="replace"))
    return path


def html(results: Results) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("contrl.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    training = read_training(results.folder)
    curves = _training_charts(results, training)
    return environment.get_template("report.html.j2").render(
        results=results,
        title=results.folder.resolve().name,
        facts=facts(results),
        final_row=results.rows[results.end] if results.end >= 0 else None,
        sentence=sentence(results),
        tiles=tiles(results),
        warnings=_warnings(results, training),
        heat=heat_map(results),
        task_charts=_task_charts(results),
        main_curves=curves[:MAIN_CURVES],
        more_curves=curves[MAIN_CURVES:],
        unshown=[curve.name for curve in training.curves[MAX_CURVES:]],
        samples=forgotten_samples(results),
        glossary=_glossary(results),
        reproduce=_reproduce(results),
    )


def write_figures(results: Results) -> list[Path]:
    """The matrix as figures/matrix.svg and figures/matrix.png, for a paper or a README."""
    folder = results.folder / "figures"
    folder.mkdir(exist_ok=True)
    spec = charts.matrix_figure(results)
    files = {folder / "matrix.svg": svg.figure_svg(spec), folder / "matrix.png": svg.figure_png(spec)}
    for path, data in files.items():
        write_atomic(path, data)
    return list(files)


# --- what the template shows -------------------------------------------------------------------------


def _warnings(results: Results, training: Training) -> list[str]:
    lost = [f"{count} values of {name} were not finite numbers" for name, count in training.not_finite.items()]
    return [*lost, *results.notes]


def _task_charts(results: Results) -> list[Chart]:
    found = []
    for column, task in enumerate(results.tasks):
        visits = [results.rows[row] for row, columns in enumerate(results.trained) if column in columns]
        description = f"Score of {task} after every stage with its 95% interval; trained in {', '.join(visits)}."
        spec = charts.task_curve(results, column)
        drawn = svg.inline_svg(spec, id=f"task-{column}", title=f"{task} over stages", description=description)
        found.append(Chart(task, f"trained in {', '.join(visits)}", drawn))
    return found


def _training_charts(results: Results, training: Training) -> list[Chart]:
    return [
        Chart(
            curve.name,
            LOSS_NOTE if curve.name == "loss" and results.run.get("method") in ONLINE else "",
            svg.inline_svg(
                charts.training_curve(results, training, curve),
                id=f"curve-{index}",
                title=f"{curve.name} over steps",
                description=_curve_words(curve),
            ),
        )
        for index, curve in enumerate(training.curves[:MAX_CURVES])
    ]


def _curve_words(curve: Curve) -> str:
    """First and last value of every stage: the curve for those who do not see it."""
    ends = (
        f"stage {segment.stage} ({segment.task}): {segment.points[0][1]:.3g} to {segment.points[-1][1]:.3g}"
        for segment in curve.segments
    )
    return f"{curve.name}, first to last value of each stage. {'; '.join(ends)}."


def _glossary(results: Results) -> list[dict[str, str]]:
    return [
        {
            "title": FORMULAS[name].title,
            "value": number(metric.value),
            "interval": interval(metric),
            "n": "" if metric.n is None else str(metric.n),
            "formula": metric.formula,
            "better": "higher" if metric.higher_is_better else "lower",
            "basis": metric.basis,
            "source": FORMULAS[name].source,
        }
        for name, metric in results.metrics.items()
    ]


def _reproduce(results: Results) -> dict[str, Any]:
    run, config = results.run, results.folder / "config.yaml"
    command = run.get("command", "")
    return {
        "command": command if isinstance(command, str) else shlex.join(map(str, command)),
        "config": config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        "versions": run.get("versions") or {},
        "manifest": json.dumps(dict(run), ensure_ascii=False, indent=1),
    }
