"""The report's colours: viridis and cividis for amounts, orange to blue for changes, Okabe–Ito for tasks and series.

All of them stay apart for colour-blind readers.
Colour never stands alone: cells carry numbers, tasks carry a marker shape and a dash.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# Eleven stops of matplotlib's viridis (CC0) at 0.0, 0.1 .. 1.0; in between the report interpolates linearly.
VIRIDIS = (
    "#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c",
    "#22a884", "#44bf70", "#7ad151", "#bddf26", "#fde725",
)  # fmt: skip


# Ten stops of viridisLite's cividis (MIT), from 0 to 1.
CIVIDIS = (
    "#00204d", "#00336f", "#39486b", "#575c6d", "#707173", "#8a8779", "#a69d75", "#c4b56c", "#e4cf5b", "#ffea46",
)  # fmt: skip

# Orange for losses, near white for nothing, blue for gains: stays apart in every common colour blindness.
CHANGES = ("#b35806", "#e08214", "#fdb863", "#fee0b6", "#f7f7f7", "#d1e5f0", "#92c5de", "#4393c3", "#2166ac")

PARTS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999", "#f0e442", "#000000")
"""Colours of stacked parts, which lie beside each other in the order of their legend."""


class Mark(NamedTuple):
    """How a task looks in a chart: colour, point shape (Vega's names), dash pattern."""

    colour: str
    shape: str
    dash: list[int]


# Okabe & Ito 2008, without the yellow and the black, which vanish on a light and on a dark page.
MARKS = (
    Mark("#0072b2", "circle", [1, 0]),
    Mark("#d55e00", "square", [6, 2]),
    Mark("#009e73", "triangle-up", [2, 2]),
    Mark("#cc79a7", "diamond", [8, 2, 2, 2]),
    Mark("#e69f00", "cross", [4, 4]),
    Mark("#56b4e9", "triangle-down", [10, 3]),
)


def mark_of(column: int) -> Mark:
    """The look of a task; after six tasks colours repeat with the next shape and dash."""
    shift = column // len(MARKS)
    other = MARKS[(column + shift) % len(MARKS)]
    return Mark(MARKS[column % len(MARKS)].colour, other.shape, other.dash)


def viridis(share: float) -> str:
    """Colour of a share in 0..1 (clipped), as #rrggbb."""
    return _between(VIRIDIS, share)


def cividis(share: float) -> str:
    """Colour of a share in 0..1 (clipped), as #rrggbb."""
    return _between(CIVIDIS, share)


def diverging(share: float) -> str:
    """Colour of a change in -1..1 (clipped): orange below 0, blue above."""
    return _between(CHANGES, (share + 1) / 2)


def _between(stops: Sequence[str], share: float) -> str:
    position = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    left = min(int(position), len(stops) - 2)
    mixed = (
        round(a + (b - a) * (position - left))
        for a, b in zip(_channels(stops[left]), _channels(stops[left + 1]), strict=True)
    )
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def text_on(background: str) -> str:
    """Black or white, whichever has the higher contrast on the background (WCAG 2 relative luminance)."""
    luminance = relative_luminance(background)
    return "#000000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#ffffff"


def relative_luminance(colour: str) -> float:
    """WCAG 2 relative luminance of #rrggbb, 0 (black) to 1 (white)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in _channels(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
