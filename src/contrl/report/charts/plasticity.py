"""Stability against plasticity: what each stage won on its own task, and what the earlier tasks kept after it."""

from __future__ import annotations

from collections.abc import Sequence

from contrl.report.changes import GAIN, RETAINED, Balance
from contrl.report.charts.frame import Chart, Table, finish, named, span, tips
from contrl.report.svg import INK

COLUMNS = ("order", "stage", "gain", "gain_low", "gain_high", "retained", "retained_low", "retained_high", "label")


def stability_plasticity(balances: Sequence[Balance]) -> Chart:
    """One point a stage, joined in their order; up and right is better, the dotted lines are "no change"."""
    import altair as alt

    rows = [
        (index, point.label, point.gain.value, point.gain.low, point.gain.high,
         point.retained.value, point.retained.low, point.retained.high, str(point.stage))
        for index, point in enumerate(balances)
    ]  # fmt: skip
    table = Table.of(COLUMNS, rows)
    gains = span([value for row in rows for value in (*row[2:5], 0.0)])
    kept = span([value for row in rows for value in (*row[5:8], 0.0)])
    x = alt.X(
        "gain:Q",
        scale=alt.Scale(domain=gains, nice=False),
        axis=alt.Axis(title="gain on the stage's own task", grid=False, tickCount=6),
    )
    y = alt.Y(
        "retained:Q",
        scale=alt.Scale(domain=kept, nice=False),
        axis=alt.Axis(title="change of earlier tasks", grid=False, tickCount=6),
    )
    base = named("points").encode(x=x, y=y)
    zero = named("zero")
    tooltip = tips("stage:N", *(f"{name}:Q" for name in COLUMNS[2:8]))
    layers = [
        zero.mark_rule(color=INK, opacity=0.5, strokeDash=[2, 3]).encode(
            x=alt.X("at:Q", scale=alt.Scale(domain=gains))
        ),
        zero.mark_rule(color=INK, opacity=0.5, strokeDash=[2, 3]).encode(y=alt.Y("at:Q", scale=alt.Scale(domain=kept))),
        base.mark_rule(color=INK, opacity=0.35).encode(x=alt.X("gain_low:Q"), x2=alt.X2("gain_high:Q")),
        base.mark_rule(color=INK, opacity=0.35).encode(y=alt.Y("retained_low:Q"), y2=alt.Y2("retained_high:Q")),
        base.mark_line(color="#0072b2", strokeWidth=1.5, opacity=0.7).encode(order=alt.Order("order:Q")),
        base.mark_point(color="#0072b2", filled=True, size=90, opacity=1).encode(tooltip=tooltip),
        base.mark_text(color=INK, align="left", baseline="bottom", dx=7, dy=-5, fontSize=12, fontWeight="bold").encode(
            text=alt.Text("label:N")
        ),
    ]
    words = "; ".join(f"{row[1]}: gain {row[2]:.2f}, earlier tasks {row[5]:+.2f}" for row in rows)
    return Chart(
        id="stability-plasticity",
        title="Gain against loss, stage by stage",
        note=f"One point a stage, numbered and joined in order, with 95% intervals. gain = {GAIN.text}; "
        f"change of earlier tasks = {RETAINED.text}.",
        description=f"Each stage's gain on its own task and what earlier tasks kept. {words}.",
        spec=finish(alt.layer(*layers), height=260),
        data={"points": table, "zero": Table(("at",), ((0.0,),))},
        table=Table.of(COLUMNS[1:8], (row[1:8] for row in rows)),
    )  # fmt: skip
