"""The results matrix as an HTML table that is also the heat map: numbers in coloured cells, readable aloud.

Three views of one table: the scores, the change since the task was just learnt, the change since the start. What
colour shows is written too: the number, its interval, n, a mark for a significant change; a change within noise is
hatched. The staircase line parts the tasks a stage has seen from those still to come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from contrl.continual.matrix import Metric
from contrl.continual.results import Cell, Results
from contrl.report.changes import since_start
from contrl.report.charts.matrix import score_range, shade
from contrl.report.colours import diverging, text_on, viridis
from contrl.report.numbers import interval, margin, number, signed

LEGEND_STOPS = 11
VIEWS = {
    "absolute": "score",
    "just-learned": "minus just learned",
    "start": "minus start",
}
"""data-view -> the words on its button."""


@dataclass(frozen=True)
class CellView:
    """What a cell shows in one view: ``text`` in bold, ``detail`` below, colours (empty: none), hatched or not."""

    view: str
    text: str
    detail: str
    background: str
    ink: str
    hatched: bool = False


@dataclass(frozen=True)
class HeatCell:
    """One cell: its views, what is read aloud, CSS classes (``trained``, ``unseen``, ``missing``, ``edge-…``)."""

    value: float | None
    views: tuple[CellView, ...]
    spoken: str
    classes: str


@dataclass(frozen=True)
class HeatMap:
    """Rows of cells with their labels, a last row with each task's change since it was last trained, and the scales.

    ``reach`` is the change that the strongest colour stands for.
    """

    tasks: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]
    changes: tuple[str, ...]
    low: str
    high: str
    gradient: str
    reach: str
    change_gradient: str


def heat_map(results: Results) -> HeatMap:
    """The whole matrix, planned stages included."""
    scale, columns = score_range(results), range(len(results.tasks))
    reach = _reach(results)
    rows = tuple(
        (label, tuple(_cell(results, row, column, scale, reach) for column in columns))
        for row, label in enumerate(results.rows)
    )
    changes = tuple(_last_change(results, column) for column in columns)
    stops = [stop / (LEGEND_STOPS - 1) for stop in range(LEGEND_STOPS)]
    return HeatMap(
        results.tasks,
        rows,
        changes,
        number(scale[0]),
        number(scale[1]),
        ", ".join(viridis(stop) for stop in stops),
        number(reach),
        ", ".join(diverging(2 * stop - 1) for stop in stops),
    )


def _cell(results: Results, row: int, column: int, scale: tuple[float, float], reach: float) -> HeatCell:
    cell, classes, spoken = results.matrix[row][column], [], []
    trained = column in results.trained[row]
    if trained:
        classes.append("trained")
        spoken.append("trained in this stage")
    if not _seen(results, row, column):
        classes.append("unseen")
    elif column + 1 < len(results.tasks) and not _seen(results, row, column + 1):
        classes.append("edge-right")
    if not _seen(results, row, column) and row + 1 < len(results.rows) and _seen(results, row + 1, column):
        classes.append("edge-below")
    change, start = results.change(row, column), since_start(results, row, column)
    mark = _mark(change)
    if mark and change is not None:
        direction = "below" if mark == "▼" else "above"
        size = f"{number(change.value)} {interval(change)}"
        spoken.append(f"significantly {direction} its score when last trained: {size}")
    if cell is None:
        missing = CellView("absolute", "–", "", "", ""), *(CellView(view, "–", "", "", "") for view in list(VIEWS)[1:])
        return HeatCell(None, missing, "not measured", " ".join([*classes, "missing"]))
    views = (
        _score_view(cell, mark, scale),
        _change_view("just-learned", change, "just learned" if trained else "not trained yet", reach),
        _change_view("start", start, "the start" if row == 0 else "", reach),
    )
    return HeatCell(cell.value, views, "; ".join(spoken), " ".join(classes))


def _score_view(cell: Cell, mark: str, scale: tuple[float, float]) -> CellView:
    colour, error = shade(cell.value, scale), margin(cell)
    detail = " ".join([*([f"±{error}"] if error else []), *([f"n={cell.n}"] if cell.n else [])])
    return CellView("absolute", f"{number(cell.value)} {mark}".strip(), detail, colour, text_on(colour))


def _change_view(view: str, change: Metric | None, otherwise: str, reach: float) -> CellView:
    """``otherwise`` says why there is no change to show."""
    if change is None or change.value is None:
        return CellView(view, "–", otherwise, "", "")
    colour = diverging(change.value / reach)
    detail = interval(change) or "no interval"
    hatched = not change.outside_noise
    text = f"{signed(change.value)} {_mark(change)}".strip()
    return CellView(view, text, f"{detail} noise" if hatched and change.low is not None else detail, colour,
                    text_on(colour), hatched)  # fmt: skip


def _mark(change: Metric | None) -> str:
    if change is None or change.value is None or not change.outside_noise:
        return ""
    return "▼" if change.value < 0 else "▲"


def _reach(results: Results) -> float:
    """The largest change of any view: what the strongest colour stands for."""
    of: tuple[Callable[[int, int], Metric | None], ...] = (results.change, lambda r, c: since_start(results, r, c))
    sizes = [
        abs(change.value)
        for row in range(len(results.rows))
        for column in range(len(results.tasks))
        for find in of
        if (change := find(row, column)) is not None and change.value is not None
    ]
    return max(sizes, default=0.0) or 1.0


def _last_change(results: Results, column: int) -> str:
    change = results.change(results.end, column)
    if change is None or change.value is None:
        return "–"
    noise = "" if change.outside_noise else " (within noise)"
    return f"{signed(change.value)} {interval(change)}{noise}".replace("  ", " ")


def _seen(results: Results, row: int, column: int) -> bool:
    return any(column in trained for trained in results.trained[: row + 1])
