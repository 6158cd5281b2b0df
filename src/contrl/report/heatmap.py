"""The results matrix as an HTML table that is also the heat map: numbers in coloured cells, readable aloud.

What colour shows is written too: the score, its interval, n, and a mark for a significant change. The staircase line
parts the tasks a stage has seen from those still to come.
"""

from __future__ import annotations

from dataclasses import dataclass

from contrl.continual.results import Results
from contrl.report.charts import score_range, shade
from contrl.report.colours import text_on, viridis
from contrl.report.numbers import interval, margin, number

LEGEND_STOPS = 11


@dataclass(frozen=True)
class HeatCell:
    """One cell: texts, colours, CSS classes (``trained``, ``unseen``, ``missing``, ``edge-right``, ``edge-below``)."""

    score: str
    error: str
    n: str
    mark: str
    spoken: str
    background: str
    ink: str
    classes: str


@dataclass(frozen=True)
class HeatMap:
    """Rows of cells with their labels, a last row with each task's change since it was last trained, and the scale."""

    tasks: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]
    changes: tuple[str, ...]
    low: str
    high: str
    gradient: str


def heat_map(results: Results) -> HeatMap:
    """The whole matrix, planned stages included."""
    scale = score_range(results)
    rows = tuple(
        (label, tuple(_cell(results, row, column, scale) for column in range(len(results.tasks))))
        for row, label in enumerate(results.rows)
    )
    changes = tuple(_change(results, column) for column in range(len(results.tasks)))
    gradient = ", ".join(viridis(stop / (LEGEND_STOPS - 1)) for stop in range(LEGEND_STOPS))
    return HeatMap(results.tasks, rows, changes, number(scale[0]), number(scale[1]), gradient)


def _cell(results: Results, row: int, column: int, scale: tuple[float, float]) -> HeatCell:
    cell, classes, spoken = results.matrix[row][column], [], []
    if column in results.trained[row]:
        classes.append("trained")
        spoken.append("trained in this stage")
    if not _seen(results, row, column):
        classes.append("unseen")
    elif column + 1 < len(results.tasks) and not _seen(results, row, column + 1):
        classes.append("edge-right")
    if not _seen(results, row, column) and row + 1 < len(results.rows) and _seen(results, row + 1, column):
        classes.append("edge-below")
    mark = ""
    change = results.change(row, column)
    if change is not None and change.value is not None and change.outside_noise:
        mark = "▼" if change.value < 0 else "▲"
        direction = "below" if change.value < 0 else "above"
        size = f"{number(change.value)} {interval(change)}"
        spoken.append(f"significantly {direction} its score when last trained: {size}")
    if cell is None:
        return HeatCell("–", "", "", "", "not measured", "", "", " ".join([*classes, "missing"]))
    colour, error = shade(cell.value, scale), margin(cell)
    return HeatCell(
        score=number(cell.value),
        error=f"±{error}" if error else "",
        n=f"n={cell.n}" if cell.n else "",
        mark=mark,
        spoken="; ".join(spoken),
        background=colour,
        ink=text_on(colour),
        classes=" ".join(classes),
    )


def _change(results: Results, column: int) -> str:
    change = results.change(results.end, column)
    if change is None or change.value is None:
        return "–"
    sign = "+" if change.value > 0 else ""
    noise = "" if change.outside_noise else " (within noise)"
    return f"{sign}{number(change.value)} {interval(change)}{noise}".replace("  ", " ")


def _seen(results: Results, row: int, column: int) -> bool:
    return any(column in trained for trained in results.trained[: row + 1])
