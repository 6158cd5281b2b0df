"""How long the rows of each task are: from the tenth to the ninetieth percentile, with median, least and most."""

from __future__ import annotations

from collections.abc import Sequence

from contrl.report.charts.frame import Chart, Table, finish, named, tips
from contrl.report.data_facts import QUANTILES, SIDES, TaskData
from contrl.report.svg import INK

COLOURS = ("#0072b2", "#e69f00")


def row_lengths(data: Sequence[TaskData]) -> Chart:
    """A bar for prompts and one for completions of each task."""
    import altair as alt

    rows = [(task.task, side, *task.lengths[side]) for task in data for side in SIDES if side in task.lengths]
    sides = [side for side in SIDES if any(row[1] == side for row in rows)]
    tasks = list(dict.fromkeys(task.task for task in data if task.lengths))
    base = named("lengths").encode(
        y=alt.Y("task:N", sort=tasks, axis=alt.Axis(title=None, labelLimit=150, ticks=False, domain=False)),
        yOffset=alt.YOffset("side:N", sort=sides),
        color=alt.Color("side:N", scale=alt.Scale(domain=sides, range=list(COLOURS[: len(sides)])), sort=sides),
    )
    x = alt.X("least:Q", axis=alt.Axis(title="tokens", tickCount=6))
    tooltip = tips("task:N", "side:N", *(f"{name}:Q" for name in QUANTILES))
    layers = [
        base.mark_rule(strokeWidth=1.5).encode(x=x, x2=alt.X2("most:Q")),
        base.mark_bar(size=8).encode(x=alt.X("p10:Q"), x2=alt.X2("p90:Q"), tooltip=tooltip),
        base.mark_tick(color=INK, size=14, thickness=2).encode(x=alt.X("median:Q"), color=alt.value(INK)),
    ]
    table = Table.of(("task", "side", *QUANTILES), rows)
    return Chart(
        id="lengths",
        title="Length of the train rows",
        note="Bar: from the tenth to the ninetieth percentile; tick: median; line: shortest to longest. Tokens.",
        description="Tokens of prompts and completions of each task's train rows.",
        spec=finish(alt.layer(*layers), height=max(60, 20 * len(rows) + 10 * len(tasks))),
        data={"lengths": table},
        table=table,
    )
