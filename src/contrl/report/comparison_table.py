"""A comparison as text: arms with intervals, differences from the baseline, trade-off curves, and every formula.

Each number stands with its interval and the number of runs behind it; what cannot be told is a dash, never 0.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

from contrl.continual.comparison import COMPARED, LEARNING, RETENTION, ArmSummary, Comparison
from contrl.continual.intervals import Estimate
from contrl.report.numbers import number
from contrl.report.table import UNICODE, Symbols, symbols_for

Row = Sequence[str]


def print_comparison(comparison: Comparison, stream: TextIO | None = None) -> None:
    """Print the tables to ``stream`` (default: standard output)."""
    stream = stream or sys.stdout
    text = plain(comparison, symbols_for(stream.encoding))
    encoding = stream.encoding or "ascii"
    stream.write(text.encode(encoding, errors="replace").decode(encoding))
    stream.flush()


def plain(comparison: Comparison, symbols: Symbols = UNICODE) -> str:
    """The tables as text; ends with a newline."""
    blocks = [
        [_heading(comparison, symbols)],
        _aligned(_means(comparison, symbols)),
        *_differences(comparison, symbols),
        *_curves(comparison, symbols),
        list(_legend(comparison, symbols)),
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines) + "\n"


def _heading(comparison: Comparison, symbols: Symbols) -> str:
    scores = " / ".join(dict.fromkeys(summary.score for summary in comparison.arms if summary.score))
    seeds = f"seeds {', '.join(map(str, comparison.seeds))}" if comparison.seeds else "no finished run"
    orders = f"orders {'; '.join(comparison.orders)}" if comparison.orders else ""
    facts = (comparison.title, f"{len(comparison.arms)} arms", seeds, orders, scores)
    return _clean(f" {symbols.dot} ".join(fact for fact in facts if fact))


def _means(comparison: Comparison, symbols: Symbols) -> Iterator[Row]:
    yield ("arm", "runs", *(COMPARED[name].title for name in comparison.metrics))
    for summary in comparison.arms:
        cells = [_interval(summary.estimates[name], symbols) for name in comparison.metrics]
        if not summary.finished:
            cells = [_why_empty(summary)]
        yield (_clean(summary.arm.name), _runs(summary), *cells)


def _runs(summary: ArmSummary) -> str:
    counts = f"{summary.finished}" if summary.finished == summary.planned else f"{summary.finished}/{summary.planned}"
    return f"{counts}, {len(summary.failed)} failed" if summary.failed else counts


def _why_empty(summary: ArmSummary) -> str:
    if summary.arm.refused:
        return _clean(f"refused: {summary.arm.refused}")
    return _clean(f"failed: {next(iter(summary.failed.values()))}") if summary.failed else "not run yet"


def _differences(comparison: Comparison, symbols: Symbols) -> Iterator[list[str]]:
    """Differences from the baseline, and how large they would have to be to be found."""
    compared = [summary for summary in comparison.arms if summary.differences]
    if not compared:
        return
    rows: list[Row] = [("minus the baseline", "baseline", "n", *_titles(comparison))]
    for summary in compared:
        found = [summary.differences[name] for name in comparison.metrics]
        count = max(difference.n for difference in found)
        cells = [_interval(difference, symbols, sign=True) for difference in found]
        rows.append((_clean(summary.arm.name), _clean(summary.baseline or ""), str(count), *cells))
    yield _aligned(rows)
    rows = [("smallest detectable difference", "n", *_titles(comparison))]
    for summary in compared:
        found = [summary.differences[name] for name in comparison.metrics]
        cells = [number(difference.detectable, symbols.dash) for difference in found]
        rows.append((_clean(summary.arm.name), str(max(difference.n for difference in found)), *cells))
    yield _aligned(rows)


def _curves(comparison: Comparison, symbols: Symbols) -> Iterator[list[str]]:
    for curve in comparison.curves:
        head = (f"trade-off: {_clean(curve.name)}", "runs", COMPARED[LEARNING].title, COMPARED[RETENTION].title)
        rows: list[Row] = [head]
        base = next((summary for summary in comparison.arms if summary.arm.name == curve.baseline), None)
        if base is not None:
            axes = (_interval(base.estimates[name], symbols) for name in (LEARNING, RETENTION))
            rows.append((f"without ({_clean(base.arm.name)})", str(base.finished), *axes))
        for point in curve.points:
            axes = (_interval(estimate, symbols) for estimate in (point.learning, point.retention))
            rows.append((f"{_clean(curve.field)} = {point.value:g}", str(point.learning.n), *axes))
        yield _aligned(rows)


def _legend(comparison: Comparison, symbols: Symbols) -> Iterator[str]:
    names = dict.fromkeys([*comparison.metrics, *((LEARNING, RETENTION) if comparison.curves else ())])
    width = max(len(COMPARED[name].title) for name in names)
    for name in names:
        better = "higher" if COMPARED[name].higher_is_better else "lower"
        yield f"  {COMPARED[name].title.ljust(width)} = {COMPARED[name].text}; {better} is better"
    yield "  [low, high]: 95% interval over runs (seed x order) and evaluation items; * excludes 0"
    yield "  differences: runs of equal seed and order, item by item; detectable: found with 80% power at the 5% level"
    yield from (f"  note: {_clean(note)}" for note in comparison.notes)


def _titles(comparison: Comparison) -> list[str]:
    return [COMPARED[name].title for name in comparison.metrics]


def _interval(estimate: Estimate, symbols: Symbols, *, sign: bool = False) -> str:
    if estimate.value is None:
        return symbols.dash
    value = number(estimate.value)
    value = f"+{value}" if sign and estimate.value > 0 and value.strip("0.") else value
    if estimate.low is None or estimate.high is None:
        return value
    mark = " *" if sign and estimate.outside_noise else ""
    return f"{value} [{number(estimate.low)}, {number(estimate.high)}]{mark}"


def _aligned(rows: Iterator[Row] | Sequence[Row]) -> list[str]:
    """Columns side by side; a row may end early, and its last cell then takes what room it needs."""
    listed = [list(row) for row in rows]
    longest = max(len(row) for row in listed)
    widths = [max((len(row[column]) for row in listed if len(row) == longest), default=0) for column in range(longest)]
    for row in listed:
        widths[0], widths[1] = max(widths[0], len(row[0])), max(widths[1], len(row[1]))
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in listed]


def _clean(text: str) -> str:
    """A name without control characters, on one line: it comes from a file and must not steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
