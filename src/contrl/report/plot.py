"""A curve in characters: braille dots, two by four in a character, or plain ASCII for old consoles and screen readers.

Neighbouring values are averaged where there are more than dots, joined by a line where there are fewer; stages are not
joined, for between them the task changes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from statistics import fmean

Points = Sequence[tuple[float, float]]

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of each dot of a braille character, by row and column (Unicode 10.0, block U+2800)."""


def bounds(parts: Sequence[Points]) -> tuple[float, float] | None:
    """Lowest and highest value; None when there is none."""
    values = [y for points in parts for _, y in points]
    return (min(values), max(values)) if values else None


def draw(
    parts: Sequence[Points], width: int, height: int, end: float, low: float, high: float, *, ascii: bool = False
) -> list[str]:
    """The curve as ``height`` lines of ``width`` characters, highest values first.

    Args:
        parts: of one curve, (x, y) with x ascending from 0 to ``end``; a gap between two parts stays open.
        low, high: the values of the lowest and the highest dot.
    """
    across, down = (1, 1) if ascii else (2, 4)
    dots_wide, dots_high = width * across, height * down
    lit = [[False] * dots_wide for _ in range(dots_high)]
    for points in parts:
        before: int | None = None
        for column, value in _columns(points, dots_wide, end):
            share = 0.5 if high <= low else (value - low) / (high - low)
            row = round((1 - min(1.0, max(0.0, share))) * (dots_high - 1))
            for between in _rise(before, row):
                lit[between][column] = True
            before = row
    if ascii:
        return ["".join("*" if dot else " " for dot in row) for row in lit]
    return ["".join(_braille(lit, line * down, column * across) for column in range(width)) for line in range(height)]


def _rise(before: int | None, row: int) -> range:
    """The rows from just beyond the last dot to this one, so that a steep line has no holes."""
    if before is None or before == row:
        return range(row, row + 1)
    return range(before + 1, row + 1) if row > before else range(row, before)


def _columns(points: Points, count: int, end: float) -> list[tuple[int, float]]:
    """(column of dots, value) from a part's first to its last column: a mean, or a point of the line between two."""
    places = [min(count - 1, int(x / end * count)) if end > 0 else 0 for x, _ in points]
    values: dict[int, list[float]] = {}
    for place, (_, y) in zip(places, points, strict=True):
        values.setdefault(place, []).append(y)
    known = sorted((place, fmean(found)) for place, found in values.items())
    at = [place for place, _ in known]
    line = []
    for column in range(at[0], at[-1] + 1):
        right = bisect_left(at, column)
        (x1, y1), (x0, y0) = known[right], known[max(0, right - 1)]
        line.append((column, y1 if x1 in (column, x0) else y0 + (y1 - y0) * (column - x0) / (x1 - x0)))
    return line


def _braille(lit: Sequence[Sequence[bool]], top: int, left: int) -> str:
    bits = sum(_DOTS[row][column] for row in range(4) for column in range(2) if lit[top + row][left + column])
    return chr(0x2800 + bits) if bits else " "
