"""The score of one task over the stages, with its band, the borders between tasks and the stages that trained it."""

from __future__ import annotations

from contrl.continual.results import Results
from contrl.report.charts.frame import Chart, Table, finish, named
from contrl.report.charts.matrix import score_range
from contrl.report.colours import mark_of
from contrl.report.numbers import number
from contrl.report.svg import INK

COLUMNS = ("stage", "row", "value", "low", "high", "n", "text")


def task_curve(results: Results, column: int) -> Chart:
    """Score of one task before training and after every stage; shaded where the task was trained."""
    import altair as alt

    mark, last = mark_of(column), len(results.rows) - 1
    visits = [row for row, columns in enumerate(results.trained) if column in columns]
    x = alt.X(
        "stage:Q",
        scale=alt.Scale(domain=[0, max(1, last)], nice=False),
        axis=alt.Axis(
            title="after stage",
            values=list(range(0, last + 1, max(1, -(-last // 10)))),
            labelExpr="datum.value == 0 ? 'start' : format(datum.value, 'd')",
            grid=False,
        ),
    )
    scale = alt.Scale(domain=list(score_range(results)), nice=False)
    base = named("scores").encode(x=x)
    y = alt.Y("value:Q", scale=scale, title=None, axis=alt.Axis(tickCount=5))
    shaded = named("visits").mark_rect(color=INK, opacity=0.12).encode(x=alt.X("from:Q"), x2=alt.X2("to:Q"))
    borders = named("borders").mark_rule(color=INK, opacity=0.35, strokeDash=[2, 3]).encode(x=alt.X("stage:Q"))
    band = base.mark_area(color=mark.colour, opacity=0.25).encode(
        y=alt.Y("low:Q", scale=scale, title=None), y2=alt.Y2("high:Q")
    )
    line = base.mark_line(color=mark.colour, strokeWidth=2).encode(y=y)
    dots = (
        base.transform_filter("isValid(datum.value)")
        .mark_point(color=mark.colour, shape=mark.shape, filled=True, size=55, opacity=1)
        .encode(y=y, description=alt.Description("text:N"), tooltip=[alt.Tooltip("text:N", title="score")])
    )
    task, names = results.tasks[column], ", ".join(results.rows[row] for row in visits)
    return Chart(
        id=f"task-{column + 1}",
        title=task,
        note=f"trained in {names}" if names else "never trained",
        description=f"Score of {task} after every stage with its 95% interval; trained in {names or 'no stage'}.",
        spec=finish(alt.layer(shaded, borders, band, line, dots), 270, 150),
        data={
            "scores": _scores(results, column),
            "visits": Table(("from", "to"), tuple((row - 1, row) for row in visits)),
            "borders": Table(("stage",), tuple((row,) for row in range(1, last))),
        },
    )


def _scores(results: Results, column: int) -> Table:
    rows = []
    for row, label in enumerate(results.rows):
        cell = results.matrix[row][column]
        low, high = (cell and cell.interval) or (None, None)
        value = None if cell is None else cell.value
        text = f"{label}: {number(value)}" + ("" if low is None else f" [{number(low)}, {number(high)}]")
        rows.append((row, label, value, low, high, cell and cell.n, text))
    return Table.of(COLUMNS, rows)
