"""Where the time went: one bar a stage, in the parts of its training and the phases around it."""

from __future__ import annotations

from collections.abc import Sequence

from contrl.report.charts.frame import Chart, Table, digits, finish, named, tips
from contrl.report.colours import PARTS
from contrl.report.cost import StageCost


def time_split(costs: Sequence[StageCost]) -> Chart:
    """Seconds by stage and part; the parts stand in the table, in their order, with their share."""
    import altair as alt

    parts = list(dict.fromkeys(part for cost in costs for part in cost.seconds))
    whole = sum(sum(cost.seconds.values()) for cost in costs) or 1.0
    rows = [
        (f"{cost.stage} {cost.name}", part, index, digits(seconds, 4))
        for cost in costs
        for index, (part, seconds) in enumerate((p, cost.seconds[p]) for p in parts if p in cost.seconds)
    ]
    totals = [(part, digits(seconds, 4), f"{seconds / whole:.0%}")
              for part in parts if (seconds := sum(cost.seconds.get(part, 0.0) for cost in costs)) >= 0]  # fmt: skip
    labels = list(dict.fromkeys(row[0] for row in rows))
    colour = alt.Color("part:N", scale=alt.Scale(domain=parts, range=list(PARTS[: len(parts)])), sort=parts)
    bars = (
        named("parts")
        .mark_bar(stroke="white", strokeWidth=0.7)
        .encode(
            y=alt.Y("stage:N", sort=labels, axis=alt.Axis(title=None, labelLimit=150, ticks=False, domain=False)),
            x=alt.X("seconds:Q", axis=alt.Axis(title="seconds", grid=True, tickCount=6)),
            color=colour,
            order=alt.Order("order:Q"),
            tooltip=tips("stage:N", "part:N", "seconds:Q"),
        )
    )
    words = ", ".join(f"{part} {share}" for part, _, share in totals)
    return Chart(
        id="time",
        title="Time by stage",
        note="Left to right in the order of the legend.",
        description=f"Time split over the whole run: {words}.",
        spec=finish(alt.layer(bars), height=max(70, 26 * len(labels))),
        data={"parts": Table.of(("stage", "part", "order", "seconds"), rows)},
        table=Table.of(("part", "seconds", "share"), totals),
    )
