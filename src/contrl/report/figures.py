"""The charts of a page as files in ``figures/``: each as SVG and PNG for a paper, its data as CSV.

A chart is drawn once; the page takes the same drawing, with its text in the colour of the page. The files are
derived and can be made again at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from contrl.report import svg
from contrl.report.charts.frame import Chart

FOLDER = "figures"


def write_figures(folder: Path, charts: Sequence[Chart], drawings: Sequence[str]) -> None:
    """Write ``figures/<id>.svg``, ``.png`` and ``.csv`` of every chart, over those of an earlier page.

    Args:
        folder: where the page lies.
        charts: with ``drawings``, what ``svg.draw`` made of each.
    """
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    for chart, drawing in zip(charts, drawings, strict=True):
        (target / f"{chart.id}.svg").write_bytes(svg.figure_svg(drawing))
        (target / f"{chart.id}.png").write_bytes(svg.figure_png(drawing))
        (target / f"{chart.id}.csv").write_text(chart.main.csv(), encoding="utf-8", errors="replace")
