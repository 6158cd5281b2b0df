"""Drift: KL to the base on each task's prompts after every stage; the weights' relative change by layer and stage."""

from __future__ import annotations

from collections.abc import Sequence

from contrl.continual.matrix import Z95
from contrl.report.charts.frame import Chart, Table, digits, finish, named, tips
from contrl.report.colours import cividis, mark_of, text_on
from contrl.report.drift import Divergence, WeightChange, groups_of
from contrl.report.svg import INK

MAX_NUMBERS = 160
"""Cells of the weight map that still carry their numbers; a deep model has too many."""


def divergence(points: Sequence[Divergence], tasks: Sequence[str]) -> Chart:
    """One line a task."""
    import altair as alt

    rows = [
        (
            point.stage, point.task, digits(point.kl),
            None if point.se is None else digits(point.kl - Z95 * point.se),
            None if point.se is None else digits(point.kl + Z95 * point.se), point.n,
        )
        for point in points
    ]  # fmt: skip
    known = [task for task in tasks if any(point.task == task for point in points)]
    known += [task for task in dict.fromkeys(point.task for point in points) if task not in known]
    marks = [mark_of(index) for index in range(len(known))]
    stages = sorted({point.stage for point in points})
    x = alt.X("stage:Q", axis=alt.Axis(title="after stage", values=stages, format="d", grid=False))
    y = alt.Y("kl:Q", scale=alt.Scale(zero=True), axis=alt.Axis(title="nats per token", tickCount=5))
    colour = alt.Color("task:N", scale=alt.Scale(domain=known, range=[mark.colour for mark in marks]))
    shape = alt.Shape("task:N", scale=alt.Scale(domain=known, range=[mark.shape for mark in marks]))
    dash = alt.StrokeDash("task:N", scale=alt.Scale(domain=known, range=[mark.dash for mark in marks]))
    base = named("points").encode(x=x, y=y, color=colour)
    tooltip = tips("task:N", "stage:O", "kl:Q", "low:Q", "high:Q", "n:Q")
    layers = [
        base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q", title="nats per token"), y2=alt.Y2("high:Q")),
        base.mark_line(strokeWidth=1.6).encode(strokeDash=dash),
        base.mark_point(filled=True, size=55, opacity=1).encode(shape=shape, tooltip=tooltip),
    ]
    last = "; ".join(f"{point.task}: {point.kl:.3g}" for point in points if point.stage == stages[-1])
    table = Table.of(("stage", "task", "kl", "low", "high", "n"), rows)
    return Chart(
        id="drift-kl",
        title="KL from the base",
        note="KL(base || policy) on the prompts of each task, nats per token, with 95% intervals. Forgetting tends to "
        "grow with it.",
        description=f"KL from the base after the last stage. {last}.",
        spec=finish(alt.layer(*layers), height=200),
        data={"points": table},
        table=table,
    )


def weight_map(changes: Sequence[WeightChange]) -> Chart:
    """Layers over stages, in cividis; the numbers stand in the cells while they fit."""
    import altair as alt

    groups, stages = groups_of(changes), sorted({change.stage for change in changes})
    # What the run as a whole moved, where the base is known; else what each stage moved.
    whole = any(change.from_base is not None for change in changes)
    values = [change.from_base if whole else change.from_start for change in changes]
    top = max((value for value in values if value is not None), default=0.0) or 1.0
    rows = []
    for change, value in zip(changes, values, strict=True):
        fill = "#bbbbbb" if value is None else cividis(value / top)
        text = "" if value is None or len(changes) > MAX_NUMBERS else f"{value:.2g}"
        moved = [None if part is None else digits(part) for part in (change.from_start, change.from_base)]
        rows.append((change.stage, change.group, *moved, text, fill, text_on(fill)))
    base = named("cells").encode(
        x=alt.X("stage:O", axis=alt.Axis(title="stage", labelAngle=0, ticks=False, domain=False)),
        y=alt.Y("group:N", sort=groups, axis=alt.Axis(title=None, ticks=False, domain=False, labelColor=INK)),
        tooltip=tips("group:N", "stage:O", "from_start:Q", "from_base:Q"),
    )
    layers = [
        base.mark_rect().encode(color=alt.Color("fill:N", scale=None, legend=None)),
        base.mark_text(fontSize=11).encode(text=alt.Text("text:N"), color=alt.Color("ink:N", scale=None, legend=None)),
    ]
    since = "since the base" if whole else "within the stage"
    return Chart(
        id="drift-weights",
        title="Change of the weights by layer",
        note=f"Norm of the change {since} as a share of the norm. Yellow moved most, dark blue least.",
        description=f"Relative change of weights {since}, up to {top:.2g}. {len(groups)} groups, {len(stages)} stages.",
        spec=finish(alt.layer(*layers), height=max(80, min(22 * len(groups), 420))),
        data={"cells": Table.of(("stage", "group", "from_start", "from_base", "text", "fill", "ink"), rows)},
        table=Table.of(("stage", "group", "from_start", "from_base"), (row[:4] for row in rows)),
    )
