"""How the report writes numbers: one place, so that terminal and page show the same digits.

Two decimals for scores (at 500 items a third one is noise), four significant digits for large values.
"""

from __future__ import annotations

from contrl.continual.matrix import Metric
from contrl.continual.results import Cell


def number(value: float | None, missing: str = "–") -> str:
    """0.97, -0.21, 1234; ``missing`` for None; never a negative zero."""
    if value is None:
        return missing
    text = f"{value:.2f}" if abs(value) < 100 else f"{value:.4g}"
    return text.removeprefix("-") if not text.strip("-0.") else text


def margin(cell: Cell) -> str | None:
    """Half-width of the cell's 95 % interval (the longer side of an asymmetric one); None when it is not known."""
    if cell.interval is None:
        return None
    low, high = cell.interval
    return number(max(high - cell.value, cell.value - low))


def interval(metric: Metric) -> str:
    """``[0.75, 0.79]``, or an empty string when there is no interval."""
    return "" if metric.low is None or metric.high is None else f"[{number(metric.low)}, {number(metric.high)}]"


def item_counts(cells: list[Cell]) -> str:
    """``500`` or ``480–500``: the evaluation items per cell; empty when no cell records them."""
    counts = sorted({cell.n for cell in cells if cell.n is not None})
    return "–".join(str(count) for count in dict.fromkeys([counts[0], counts[-1]])) if counts else ""


def signed(value: float | None, missing: str = "–") -> str:
    """``+0.10`` or ``-0.21``; a change that rounds to nothing has no sign."""
    text = number(value, missing)
    return f"+{text}" if value is not None and value > 0 and text.strip("0.") else text
