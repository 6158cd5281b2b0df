"""Training curves: one panel of related names over all steps, stages end to end, the healthy range shaded."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from contrl.report.charts.frame import HOVER, Chart, Table, digits, finish, named, span, tips
from contrl.report.colours import mark_of
from contrl.report.curves import Training
from contrl.report.panels import Panel, Series
from contrl.report.svg import INK

FEW_POINTS = 40
"""Up to so many points of a training curve are marked one by one."""
COLUMNS = ("stage", "task", "step", "series", "value")


def training_panel(training: Training, panel: Panel) -> Chart:
    """All series of a panel on one axis; a dashed line starts each stage and carries its number."""
    import altair as alt

    points = [
        (segment.stage, segment.task, digits(step), series.label, digits(value))
        for series in panel.series
        for segment in series.curve.segments
        for step, value in segment.points
    ]
    domain = span([*(row[4] for row in points), *panel.lines.values()])
    labels = [series.label for series in panel.series]
    marks = [mark_of(index) for index in range(len(labels))]
    legend = alt.Legend(columns=2 if len(labels) > 3 else 0) if len(labels) > 1 else None
    end = max(1, training.total)
    x = alt.X("step:Q", scale=alt.Scale(domain=[0, end], nice=False), axis=alt.Axis(title="step", grid=False))
    y = alt.Y(
        "value:Q", scale=alt.Scale(domain=domain, nice=False), title=None, axis=alt.Axis(tickCount=4, format="~g")
    )
    colour = alt.Color("series:N", scale=alt.Scale(domain=labels, range=[mark.colour for mark in marks]), legend=legend)
    dash = alt.StrokeDash(
        "series:N", scale=alt.Scale(domain=labels, range=[mark.dash for mark in marks]), legend=legend
    )
    base = named("points").encode(x=x, y=y)
    # A stage that logged once has no line to draw, only a point.
    line = base.mark_line(strokeWidth=1.6, point=len(points) <= FEW_POINTS, clip=True).encode(
        detail=alt.Detail("stage:N"), color=colour, strokeDash=dash
    )
    layers = [*_guides(panel, domain, x), line, *_borders(x), _hover(base)]
    return Chart(
        id=panel.id,
        title=panel.title,
        note=panel.note,
        description=" ".join(_in_words(series) for series in panel.series),
        spec=finish(alt.layer(*layers)),
        data={
            "points": Table.of(COLUMNS, points),
            "starts": Table(("step", "label"), tuple((at, str(stage)) for stage, at in training.starts.items())),
            "healthy": Table(("low", "high"), _clipped(panel, domain)),
            "lines": Table(("value", "label"), tuple((value, label) for label, value in panel.lines.items())),
        },
        table=_summary(panel),
    )


def _guides(panel: Panel, domain: list[float], x: Any) -> list[Any]:
    """The healthy range as a band, named limits as lines."""
    import altair as alt

    scale = alt.Scale(domain=domain, nice=False)
    y = alt.Y("value:Q", scale=scale, title=None)
    low = alt.Y("low:Q", scale=scale, title=None)
    band = named("healthy").mark_rect(color="#009e73", opacity=0.14).encode(y=low, y2=alt.Y2("high:Q"))
    rule = named("lines").mark_rule(color=INK, opacity=0.7, strokeDash=[6, 3]).encode(y=y)
    label = named("lines").mark_text(color=INK, align="right", baseline="bottom", fontSize=10, dx=-2, dy=-2)
    label = label.encode(y=y, text=alt.Text("label:N"), x=alt.value("width"))
    return ([band] if _clipped(panel, domain) else []) + ([rule, label] if panel.lines else [])


def _borders(x: Any) -> list[Any]:
    import altair as alt

    starts = named("starts").encode(x=x)
    rules = starts.mark_rule(color=INK, opacity=0.5, strokeDash=[2, 3])
    label = starts.mark_text(color=INK, align="left", baseline="top", fontSize=10, dx=3).encode(
        text=alt.Text("label:N"), y=alt.value(1)
    )
    return [rules, label]


def _hover(base: Any) -> Any:
    tooltip = tips("series:N", "stage:O", "task:N", "step:Q", "value:Q")
    return base.mark_point(size=90, opacity=0, filled=True, clip=True).encode(tooltip=tooltip).properties(name=HOVER)


def _clipped(panel: Panel, domain: list[float]) -> tuple[tuple[float, float], ...]:
    """The part of the healthy range that the axis shows."""
    if panel.healthy is None:
        return ()
    low, high = (domain[side] if bound is None else bound for side, bound in enumerate(panel.healthy))
    low, high = max(low, domain[0]), min(high, domain[1])
    return ((digits(low), digits(high)),) if low < high else ()


def _in_words(series: Series) -> str:
    """First and last value of every stage: the curve for those who do not see it."""
    ends = (
        f"stage {segment.stage} ({segment.task}): {segment.points[0][1]:.3g} to {segment.points[-1][1]:.3g}"
        for segment in series.curve.segments
    )
    return f"{series.label}, first to last value of each stage. {'; '.join(ends)}."


def _summary(panel: Panel) -> Table:
    rows = [
        (series.label, segment.stage, segment.task, *(digits(value, 4) for value in _extremes(segment.points)))
        for series in panel.series
        for segment in series.curve.segments
    ]
    return Table.of(("series", "stage", "task", "first", "last", "mean", "lowest", "highest"), rows)


def _extremes(points: tuple[tuple[float, float], ...]) -> tuple[float, ...]:
    values = [value for _, value in points]
    return values[0], values[-1], fmean(values), min(values), max(values)
