"""The sequence as a strip: stages one after the other, as wide as the tokens they trained, rounds above them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from contrl.report.charts.frame import Chart, Table, finish, named, tips
from contrl.report.colours import mark_of, text_on
from contrl.report.stages import StageFacts
from contrl.report.svg import INK

WIDTH, BAR, TOP = 860, 34, 18
NOTES = {
    "tokens": "As wide as the tokens each stage trained.",
    "steps": "As wide as the steps of each stage.",
    "": "Nothing was trained yet: all stages are drawn alike.",
}
LETTER = 7.2
"""Pixels of a letter in the strip; ``room`` is how wide the strip must be for a stage to hold its name."""


def sequence_strip(stages: Sequence[StageFacts], tasks: Sequence[str]) -> Chart:
    """One bar a stage, in the colour of its task; a bracket a round where there are several."""
    import altair as alt

    unit = _unit(stages)
    rows, total = _bars(stages, tasks, unit)
    x = alt.X("start:Q", scale=alt.Scale(domain=[0, total], nice=False), axis=alt.Axis(
        title={"tokens": "trained tokens", "steps": "steps"}.get(unit, "stages"), format="~s", grid=False, tickCount=6,
    ))  # fmt: skip
    top, bottom = alt.value(TOP), alt.value(TOP + BAR)
    tooltip = tips("stage:N", "task:N", "round:N", "tokens:Q", "steps:Q", "rows:Q")
    bars = (
        named("stages")
        .mark_rect(stroke="white", strokeWidth=1.5)
        .encode(
            x=x,
            x2=alt.X2("end:Q"),
            y=top,
            y2=bottom,
            color=alt.Color("colour:N", scale=None, legend=None),
            tooltip=tooltip,
        )
    )
    # The strip may be drawn narrower than here: a name that does not fit its stage then gives way to its number.
    texts = named("stages").mark_text(fontSize=12, fontWeight="bold", baseline="middle")
    texts = texts.encode(
        x=alt.X("middle:Q"), y=alt.value(TOP + BAR / 2), color=alt.Color("ink:N", scale=None, legend=None)
    )
    names = texts.encode(text=alt.condition("width >= datum.room", alt.Text("label:N"), alt.value("")))
    numbers = texts.encode(text=alt.condition("width < datum.room", alt.Text("stage:N"), alt.value("")))
    rounds = _rounds(rows)
    brackets = (
        named("rounds")
        .mark_rule(color=INK, strokeWidth=2)
        .encode(x=alt.X("start:Q"), x2=alt.X2("end:Q"), y=alt.value(TOP - 4))
    )
    titles = (
        named("rounds")
        .mark_text(color=INK, fontSize=11, baseline="bottom", align="left")
        .encode(x=alt.X("start:Q"), y=alt.value(TOP - 6), text=alt.Text("label:N"))
    )
    layers = [bars, names, numbers, *([brackets, titles] if rounds.rows else [])]
    words = ", ".join(f"{stage.stage} {stage.name}" for stage in stages)
    columns = ("stage", "task", "round", "tokens", "steps", "rows")
    return Chart(
        id="sequence",
        title="Stages in order",
        note=NOTES[unit],
        description=f"The stages in order: {words}.",
        spec=finish(alt.layer(*layers), WIDTH, TOP + BAR + 2),
        data={
            "stages": Table.of((*columns, "start", "end", "middle", "label", "room", "colour", "ink"), rows),
            "rounds": rounds,
        },
        table=Table.of(columns, (row[:6] for row in rows)),
    )  # fmt: skip


def _bars(stages: Sequence[StageFacts], tasks: Sequence[str], unit: str) -> tuple[list[tuple[Any, ...]], float]:
    """One row a stage, from where to where it reaches; and where the last one ends."""
    sizes = [max(getattr(stage, unit) or 0, 0) if unit else 1 for stage in stages]
    total = max(1, sum(sizes))
    rows: list[tuple[Any, ...]] = []
    for stage, size, (start, end) in zip(stages, sizes, pairwise(accumulate(sizes, initial=0)), strict=True):
        # Of weights from elsewhere nothing may say which task they trained.
        first = next((task for task in stage.tasks if task in tasks), None)
        colour = mark_of(tasks.index(first) if first is not None else 0).colour
        label = f"{stage.stage} {stage.name}"
        room = len(label) * LETTER / (size / total or 1)
        known = (stage.stage, stage.name, stage.round, stage.tokens, stage.steps, stage.rows)
        rows.append((*known, start, end, (start + end) / 2, label, room, colour, text_on(colour)))
    return rows, total


def _unit(stages: Sequence[StageFacts]) -> str:
    """What the widths stand for: tokens where every stage that trained knows them, else steps, else nothing."""
    for unit in ("tokens", "steps"):
        if any(getattr(stage, unit) for stage in stages):
            return unit
    return ""


def _rounds(rows: Sequence[tuple[Any, ...]]) -> Table:
    numbers = list(dict.fromkeys(row[2] for row in rows))
    if len(numbers) < 2:
        return Table(("start", "end", "label"), ())
    spans = [[row for row in rows if row[2] == number] for number in numbers]
    return Table.of(
        ("start", "end", "label"),
        ((part[0][6], part[-1][7], f"round {number}") for number, part in zip(numbers, spans, strict=True)),
    )
