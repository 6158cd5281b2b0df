"""Several runs in pictures: each seed a dot beside its arm's mean, paired differences, trade-off curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from contrl.continual.comparison import COMPARED, LEARNING, RETENTION, ArmSummary, Comparison
from contrl.continual.intervals import Estimate
from contrl.report.charts.frame import Chart, Table, digits, finish, named, span, tips
from contrl.report.colours import mark_of
from contrl.report.numbers import number, signed
from contrl.report.svg import INK

STEP = 30
"""Height of an arm."""
ESTIMATE = ("value", "low", "high", "n")
TRADED = (
    "arm", "curve", "coefficient", "label",
    "learning", "learning_low", "learning_high", "retention", "retention_low", "retention_high",
)  # fmt: skip


def seeds_and_means(comparison: Comparison, metric: str) -> Chart:
    """Every run of an arm as a dot, the arm's mean as a tick with its interval."""
    arms = [summary for summary in comparison.arms if summary.dots]
    dots = [
        (summary.arm.name, dot.seed, dot.order, value)
        for summary in arms
        for dot in summary.dots
        if (value := dot.values.get(metric)) is not None
    ]
    means = [(summary.arm.name, *_estimate(summary.estimates[metric])) for summary in arms]
    formula = COMPARED[metric]
    words = "; ".join(f"{name} {number(value)}" for name, value, *_ in means)
    return _by_arm(
        Chart(
            id=f"compare-{metric}",
            title=formula.title,
            note=f"{formula.text}; {'higher' if formula.higher_is_better else 'lower'} is better.",
            description=f"Mean over runs of {formula.title} by arm: {words}.",
            spec={},
            data={
                "dots": Table.of(("arm", "seed", "order", "value"), dots),
                "means": Table.of(("arm", *ESTIMATE), means),
            },
            table=Table.of(("arm", *ESTIMATE), means),
        ),
        [summary.arm.name for summary in arms],
        zero=False,
    )


def paired_differences(comparison: Comparison, metric: str) -> Chart | None:
    """Each arm minus its baseline over runs of equal seed and order; None when nothing is paired."""
    arms = [summary for summary in comparison.arms if metric in summary.differences]
    means = [
        (summary.arm.name, summary.baseline, *_estimate(summary.differences[metric]),
         summary.differences[metric].detectable)
        for summary in arms
    ]  # fmt: skip
    if not any(row[2] is not None for row in means):
        return None
    formula = COMPARED[metric]
    words = "; ".join(f"{name} against {base} {signed(value)}" for name, base, value, *_ in means)
    columns = ("arm", "baseline", *ESTIMATE, "detectable")
    return _by_arm(
        Chart(
            id=f"difference-{metric}",
            title=f"{formula.title}: difference from the baseline",
            note="Paired by seed and order, each pair a dot. Grey: smaller than the smallest difference that so many "
            f"runs find with 80% power. {'Right' if formula.higher_is_better else 'Left'} of 0 is better.",
            description=f"Paired differences of {formula.title}: {words}.",
            spec={},
            data={
                "dots": Table.of(("arm", "seed", "order", "value"), _pairs(comparison, arms, metric)),
                "means": Table.of(columns, means),
                "reach": Table.of(("arm", "least", "most"), ((r[0], -r[6], r[6]) for r in means if r[6] is not None)),
                "zero": Table(("at",), ((0.0,),)),
            },
            table=Table.of(columns, means),
        ),
        [summary.arm.name for summary in arms],
        zero=True,
    )


def trade_off(comparison: Comparison) -> Chart | None:
    """What was learnt of new tasks against what was kept of old ones: arms as points, swept fields as curves."""
    import altair as alt

    rows = _trade_offs(comparison)
    if len(rows) < 2:
        return None
    lines = list(dict.fromkeys(row[1] for row in rows))
    marks = [mark_of(index) for index in range(len(lines))]
    across, up = (span(v for row in rows for v in row[i : i + 3]) for i in (4, 7))
    x_scale, y_scale = alt.Scale(domain=across, nice=False), alt.Scale(domain=up, nice=False)
    x = alt.X(
        "learning:Q",
        scale=x_scale,
        axis=alt.Axis(title="learning accuracy: new tasks, just learnt", grid=False, tickCount=6),
    )
    y = alt.Y(
        "retention:Q",
        scale=y_scale,
        axis=alt.Axis(title="retention: old tasks, at the end", grid=False, tickCount=6),
    )
    colour = alt.Color(
        "curve:N", scale=alt.Scale(domain=lines, range=[mark.colour for mark in marks]), legend=alt.Legend(columns=1)
    )
    shape = alt.Shape(
        "curve:N", scale=alt.Scale(domain=lines, range=[mark.shape for mark in marks]), legend=alt.Legend(columns=1)
    )
    base = named("points").encode(x=x, y=y, color=colour)
    layers = [
        base.mark_rule(opacity=0.35).encode(x=alt.X("learning_low:Q", scale=x_scale), x2=alt.X2("learning_high:Q")),
        base.mark_rule(opacity=0.35).encode(y=alt.Y("retention_low:Q", scale=y_scale), y2=alt.Y2("retention_high:Q")),
        base.mark_line(strokeWidth=1.6).encode(order=alt.Order("coefficient:Q"), detail=alt.Detail("curve:N")),
        base.mark_point(filled=True, size=80, opacity=1).encode(
            shape=shape, tooltip=tips("arm:N", "coefficient:Q", *(f"{name}:Q" for name in TRADED[4:]))
        ),
        named("points").transform_filter("isValid(datum.coefficient)")
        .mark_text(color=INK, align="left", baseline="bottom", dx=6, dy=-4, fontSize=11)
        .encode(x=x, y=y, text=alt.Text("label:N")),
    ]  # fmt: skip
    words = "; ".join(f"{row[0]}: learns {row[4]:.2f}, keeps {row[7]:.2f}" for row in rows)
    return Chart(
        id="trade-off",
        title="Trade-off of learning and keeping",
        note="Up and right is better. Points of one swept coefficient are joined in its order and labelled with it.",
        description=f"Learning accuracy against retention by arm. {words}.",
        spec=finish(alt.layer(*layers), height=300),
        data={"points": Table.of(TRADED, rows)},
        table=Table.of(TRADED, rows),
    )


def _trade_offs(comparison: Comparison) -> list[tuple[Any, ...]]:
    """Rows of ``TRADED``; an arm that lies on no curve is one of its own, without a coefficient."""
    curve_of = {point.arm: curve for curve in comparison.curves for point in curve.points}
    value_of = {point.arm: point.value for curve in comparison.curves for point in curve.points}
    rows: list[tuple[Any, ...]] = []
    for summary in comparison.arms:
        learning, kept = summary.estimates[LEARNING], summary.estimates[RETENTION]
        if learning.value is None or kept.value is None:
            continue
        name, curve = summary.arm.name, curve_of.get(summary.arm.name)
        label = f"{value_of[name]:g}" if curve else name
        rows.append(
            (name, curve.name if curve else name, value_of.get(name), label,
             learning.value, learning.low, learning.high, kept.value, kept.low, kept.high)
        )  # fmt: skip
    return rows


def _by_arm(chart: Chart, arms: Sequence[str], *, zero: bool) -> Chart:
    """The chart with its specification: arms above each other, dots, mean and interval."""
    import altair as alt

    numbers = [row[index] for table in chart.data.values() for row in table.rows for index in _numbers(table)]
    domain = span([*numbers, *([0.0] if zero else [])])
    scale = alt.Scale(domain=domain, nice=False)
    x = alt.X("value:Q", scale=scale, axis=alt.Axis(title=None, tickCount=6))
    y = alt.Y("arm:N", sort=list(arms), axis=alt.Axis(title=None, labelLimit=190, ticks=False, domain=False))
    shape = alt.Shape("order:N", legend=None)
    mean = named("means").encode(x=x, y=y)
    interval = mean.mark_rule(color="#0072b2", strokeWidth=3).encode(x=alt.X("low:Q", scale=scale), x2=alt.X2("high:Q"))
    tick = mean.mark_tick(color="#0072b2", thickness=3, size=18).encode(
        tooltip=tips("arm:N", *(f"{name}:Q" for name in ESTIMATE))
    )
    dots = named("dots").mark_point(color="#d55e00", size=46, strokeWidth=1.6, opacity=0.9)
    dots = dots.encode(x=x, y=y, shape=shape, tooltip=tips("arm:N", "seed:N", "order:N", "value:Q"))
    layers: list[Any] = [interval, tick, dots]
    if zero:
        reach = named("reach").mark_bar(color=INK, opacity=0.14, size=22, clip=True)
        line = named("zero").mark_rule(color=INK, strokeDash=[4, 3]).encode(x=alt.X("at:Q", scale=scale))
        layers = [
            reach.encode(x=alt.X("least:Q", scale=scale), x2=alt.X2("most:Q"), y=y),
            line,
            *layers,
        ]
    height = STEP * max(1, len(arms))
    return Chart(**{**vars(chart), "spec": finish(alt.layer(*layers), height=height)})


def _numbers(table: Table) -> list[int]:
    """The columns that decide the width of the axis."""
    return [index for index, name in enumerate(table.columns) if name in ("value", "low", "high")]


def _pairs(comparison: Comparison, arms: Sequence[ArmSummary], metric: str) -> list[tuple[Any, ...]]:
    """(arm, seed, order, difference) of every pair of runs."""
    rows = []
    for summary in arms:
        base = comparison.summary(summary.baseline or "")
        there = {(dot.seed, dot.order): dot.values.get(metric) for dot in base.dots}
        for dot in summary.dots:
            here, other = dot.values.get(metric), there.get((dot.seed, dot.order))
            if here is not None and other is not None:
                rows.append((summary.arm.name, dot.seed, dot.order, digits(here - other)))
    return rows


def _estimate(estimate: Estimate) -> tuple[Any, ...]:
    return estimate.value, estimate.low, estimate.high, estimate.n
