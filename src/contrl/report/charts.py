"""The report's charts as Vega-Lite specifications, made with Altair; ``svg`` draws them.

Each function takes plain report data and returns a specification with its data inside. Text, axes and grid use one
placeholder colour (``INK``), so that the page can recolour them for light and dark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from contrl.continual.results import Results
from contrl.report.colours import mark_of, text_on, viridis
from contrl.report.curves import Curve, Training
from contrl.report.numbers import margin, number
from contrl.report.svg import INK, Spec

if TYPE_CHECKING:
    import altair

FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif"

FEW_POINTS = 40
"""Up to so many points of a training curve are marked one by one."""


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


def matrix_figure(results: Results) -> Spec:
    """The results matrix as a picture for a paper or a README: numbers in the cells, trained cells framed."""
    import altair as alt

    scale = score_range(results)
    cells = [
        {
            "row": label,
            "task": task,
            "text": "–" if cell is None else number(cell.value),
            "error": "" if cell is None or margin(cell) is None else f"±{margin(cell)}",
            "fill": "#bbbbbb" if cell is None else shade(cell.value, scale),
            "ink": "#000000" if cell is None else text_on(shade(cell.value, scale)),
            "trained": column in results.trained[row],
        }
        for row, label in enumerate(results.rows)
        for column, (task, cell) in enumerate(zip(results.tasks, results.matrix[row], strict=True))
    ]
    base = alt.Chart(alt.NamedData("cells")).encode(
        x=alt.X("task:N", sort=list(results.tasks), axis=_labels("task evaluated", orient="top")),
        y=alt.Y("row:N", sort=list(results.rows), axis=_labels("after stage")),
    )
    colour = alt.Color("ink:N", scale=None, legend=None)
    frame = base.transform_filter("datum.trained").mark_rect(fill=None, stroke="#d55e00", strokeWidth=3)
    chart = alt.layer(
        base.mark_rect().encode(color=alt.Color("fill:N", scale=None, legend=None)),
        frame,
        base.mark_text(fontSize=14, fontWeight="bold", dy=-5).encode(text="text:N", color=colour),
        base.mark_text(fontSize=10, dy=10).encode(text="error:N", color=colour),
    ).properties(
        width={"step": max(76, *(9 * len(task) for task in results.tasks))},
        height={"step": 42},
        title=alt.TitleParams(
            f"{results.metric} of every task after every stage",
            subtitle="framed: trained in this stage; ± 95% confidence interval",
            anchor="start",
        ),
    )
    return _finish(chart, cells=cells)


def task_curve(results: Results, column: int) -> Spec:
    """Score of one task over stages, with its 95 % band; the stages that trained it are shaded."""
    import altair as alt

    mark, points = mark_of(column), []
    for row, label in enumerate(results.rows):
        cell = results.matrix[row][column]
        low, high = (cell and cell.interval) or (None, None)
        value = None if cell is None else cell.value
        text = f"{label}: {number(value)}" + ("" if low is None else f" [{number(low)}, {number(high)}]")
        points.append({"row": row, "value": value, "low": low, "high": high, "text": text})
    visits = [{"from": row - 1, "to": row} for row, columns in enumerate(results.trained) if column in columns]
    last = len(results.rows) - 1
    x = alt.X(
        "row:Q",
        scale=alt.Scale(domain=[0, max(1, last)], nice=False),
        axis=alt.Axis(
            title="after stage",
            values=list(range(0, last + 1, max(1, -(-last // 10)))),
            labelExpr="datum.value == 0 ? 'start' : format(datum.value, 'd')",
            grid=False,
        ),
    )
    scale = alt.Scale(domain=list(score_range(results)), nice=False)
    base = alt.Chart(alt.NamedData("points")).encode(x=x)
    y = alt.Y("value:Q", scale=scale, title=None, axis=alt.Axis(tickCount=5))
    shaded = alt.Chart(alt.NamedData("visits")).mark_rect(color=INK, opacity=0.12).encode(x="from:Q", x2="to:Q")
    band = base.mark_area(color=mark.colour, opacity=0.25).encode(
        y=alt.Y("low:Q", scale=scale, title=None), y2="high:Q"
    )
    line = base.mark_line(color=mark.colour, strokeWidth=2).encode(y=y)
    dots = (
        base.transform_filter("isValid(datum.value)")
        .mark_point(color=mark.colour, shape=mark.shape, filled=True, size=55, opacity=1)
        .encode(y=y, description="text:N")
    )
    layers = [shaded, band, line, dots] if visits else [band, line, dots]
    return _finish(alt.layer(*layers).properties(width=270, height=150), points=points, visits=visits)


def training_curve(results: Results, training: Training, curve: Curve) -> Spec:
    """One recorded name over all steps; a dashed line starts each stage and each task keeps its colour and dash."""
    import altair as alt

    end = max(1, training.total)
    x = alt.X("step:Q", scale=alt.Scale(domain=[0, end], nice=False), axis=alt.Axis(title="step", grid=False))
    y = alt.Y("value:Q", scale=alt.Scale(zero=False), title=None, axis=alt.Axis(tickCount=4, format="~g"))
    tasks = list(dict.fromkeys(segment.task for segment in curve.segments))
    marks = [mark_of(results.tasks.index(task) if task in results.tasks else 0) for task in tasks]
    colours, dashes = [mark.colour for mark in marks], [mark.dash for mark in marks]
    points = [
        {"step": step, "value": value, "task": segment.task, "stage": segment.stage}
        for segment in curve.segments
        for step, value in segment.points
    ]
    # A stage that logged once has no line to draw, only a point.
    line = alt.Chart(alt.NamedData("points")).mark_line(strokeWidth=1.5, point=len(points) <= FEW_POINTS)
    line = line.encode(
        x=x,
        y=y,
        detail="stage:N",
        color=alt.Color("task:N", scale=alt.Scale(domain=tasks, range=colours), legend=None),
        strokeDash=alt.StrokeDash("task:N", scale=alt.Scale(domain=tasks, range=dashes), legend=None),
    )
    starts = [{"step": step, "label": f" {stage}"} for stage, step in training.starts.items()]
    boundaries = alt.Chart(alt.NamedData("starts")).encode(x=x)
    rules = boundaries.mark_rule(color=INK, opacity=0.5, strokeDash=[2, 3])
    label = boundaries.mark_text(color=INK, align="left", baseline="top", fontSize=10)
    label = label.encode(text="label:N", y=alt.value(1))
    return _finish(alt.layer(line, rules, label).properties(width=420, height=150), points=points, starts=starts)


def _labels(title: str, **options: Any) -> altair.Axis:
    import altair as alt

    return alt.Axis(title=title, labelAngle=0, labelLimit=260, ticks=False, domain=False, labelPadding=6, **options)


def _finish(chart: altair.LayerChart | altair.FacetChart, **datasets: list[dict[str, Any]]) -> Spec:
    """The specification with its data by name: put in at the end, because Altair copies and checks every value."""
    spec: Spec = (
        chart.properties(padding=4)
        .configure(font=FONT)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=INK, titleColor=INK, tickColor=INK, domainColor=INK, gridColor=INK, gridOpacity=0.13,
            labelFontSize=11, titleFontSize=11, titleFontWeight="normal",
        )
        .configure_title(color=INK, subtitleColor=INK, fontSize=14, subtitleFontSize=11)
        .to_dict()
    )  # fmt: skip
    # Vega-Lite paints a white background unless told null, which Altair cannot say.
    return spec | {"background": None, "datasets": datasets}
