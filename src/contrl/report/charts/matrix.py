"""The results matrix as a picture for a paper or a README: numbers in the cells, trained cells framed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from contrl.continual.results import Results
from contrl.report.charts.frame import Chart, Table, finish, named
from contrl.report.colours import text_on, viridis
from contrl.report.numbers import margin, number
from contrl.report.svg import INK

if TYPE_CHECKING:
    import altair


def score_range(results: Results) -> tuple[float, float]:
    """The scale of all score charts: 0..1 when every score lies there, else from the lowest to the highest."""
    values = [cell.value for row in results.matrix for cell in row if cell is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low >= 0.0 and high <= 1.0:
        return 0.0, 1.0
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def shade(value: float, scale: tuple[float, float]) -> str:
    """Background of a score's cell."""
    return viridis((value - scale[0]) / (scale[1] - scale[0]))


def matrix_figure(results: Results) -> Chart:
    """Every cell with its score and interval; colour repeats what the numbers say."""
    import altair as alt

    table = matrix_table(results)
    base = named("cells").encode(
        x=alt.X("column:N", sort=list(results.tasks), axis=_labels("task evaluated", orient="top")),
        y=alt.Y("row:N", sort=list(results.rows), axis=_labels("after stage")),
    )
    colour = alt.Color("ink:N", scale=None, legend=None)
    frame = base.transform_filter("datum.trained").mark_rect(fill=None, stroke="#d55e00", strokeWidth=3)
    chart = alt.layer(
        base.mark_rect().encode(color=alt.Color("fill:N", scale=None, legend=None)),
        frame,
        base.mark_text(fontSize=14, fontWeight="bold", dy=-5).encode(text=alt.Text("text:N"), color=colour),
        base.mark_text(fontSize=10, dy=10).encode(text=alt.Text("error:N"), color=colour),
    ).properties(
        width={"step": max(76, *(9 * len(task) for task in results.tasks))},
        height={"step": 42},
        title=alt.TitleParams(
            f"{results.metric} of every task after every stage",
            subtitle="framed: trained in this stage; ± 95% confidence interval",
            anchor="start",
        ),
    )
    return Chart(
        id="matrix",
        title="Results matrix",
        note="",
        description=f"{results.metric} of every task after every stage.",
        spec=finish(chart, None, None),
        data={"scores": table, "cells": _cells(results)},
        fluid=False,
    )


def matrix_table(results: Results) -> Table:
    """One line a cell, as the CSV has it: nothing rounded."""
    rows = []
    for row, label in enumerate(results.rows):
        for column, task in enumerate(results.tasks):
            cell = results.matrix[row][column]
            low, high = (cell.interval if cell else None) or (None, None)
            score = (cell.value, cell.se, low, high, cell.n) if cell else (None,) * 5
            rows.append((label, task, column in results.trained[row], *score))
    return Table.of(("row", "task", "trained", "value", "se", "low", "high", "n"), rows)


def _cells(results: Results) -> Table:
    scale, rows = score_range(results), []
    for row, label in enumerate(results.rows):
        for column, task in enumerate(results.tasks):
            cell = results.matrix[row][column]
            fill = "#bbbbbb" if cell is None else shade(cell.value, scale)
            error = margin(cell) if cell else None
            texts = number(cell.value) if cell else "–", f"±{error}" if error else ""
            rows.append((label, task, *texts, fill, text_on(fill), column in results.trained[row]))
    return Table.of(("row", "column", "text", "error", "fill", "ink", "trained"), rows)


def _labels(title: str, **options: Any) -> altair.Axis:
    import altair as alt

    return alt.Axis(
        title=title, labelAngle=0, labelLimit=260, ticks=False, domain=False, labelPadding=6, labelColor=INK, **options
    )
