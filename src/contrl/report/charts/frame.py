"""What all charts share: the ``Chart`` itself, its tables of data, and the look of axes and text.

Data stays outside the specification, as columns and rows: so it is written once for the browser, as CSV, and into
the drawing. Text, axes and grid use one placeholder colour (``INK``), so that the page can recolour them for light
and dark.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

from contrl.report.svg import INK, Spec

if TYPE_CHECKING:
    import altair

FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif"
WIDTH, HEIGHT = 420, 160
HOVER = "hover"
"""Name of layers that only carry tooltips: invisible, and left out where nothing can be pointed at."""


@dataclass(frozen=True)
class Table:
    """Named columns and rows of plain values; None is a value that was not measured."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
        """Anything row-like as a table; numbers that are not finite become None."""
        return cls(tuple(columns), tuple(tuple(_plain(value) for value in row) for row in rows))

    @property
    def records(self) -> list[dict[str, Any]]:
        """One object a row, as Vega-Lite takes it."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def csv(self) -> str:
        """The table as CSV; a missing value is an empty field."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()


@dataclass(frozen=True)
class Chart:
    """One figure of the page.

    Attributes:
        id: unique in the page, stable between builds; names its files in ``figures/``.
        title, note: caption and what to know, in words.
        description: what the chart shows, for those who do not see it.
        spec: Vega-Lite without data.
        data: the named tables that the specification asks for; the first is what the CSV holds.
        table: what is shown as a table beside the picture.
        fluid: whether its width may follow the page.
    """

    id: str
    title: str
    note: str
    description: str
    spec: Spec
    data: Mapping[str, Table]
    table: Table = field(default_factory=lambda: Table((), ()))
    fluid: bool = True

    @property
    def main(self) -> Table:
        """The table of its CSV."""
        return next(iter(self.data.values()))

    def with_data(self, *, hover: bool = False) -> Spec:
        """The specification with its data inside, as Vega-Lite wants it."""
        spec = self.spec if hover else without_hover(self.spec)
        return spec | {"datasets": {name: table.records for name, table in self.data.items()}}


def without_hover(spec: Spec) -> Spec:
    """The specification without the layers that only carry tooltips."""
    layers = [without_hover(layer) for layer in spec.get("layer", []) if layer.get("name") != HOVER]
    return spec | ({"layer": layers} if "layer" in spec else {})


def finish(chart: Any, width: int | None = WIDTH, height: int | None = HEIGHT) -> Spec:
    """The specification of an Altair chart in the report's look; None leaves a size as the chart has it."""
    sizes = {name: size for name, size in (("width", width), ("height", height)) if size is not None}
    spec: Spec = (
        chart.properties(padding=4, **sizes)
        .configure(font=FONT)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=INK, titleColor=INK, tickColor=INK, domainColor=INK, gridColor=INK, gridOpacity=0.13,
            labelFontSize=11, titleFontSize=11, titleFontWeight="normal",
        )
        .configure_legend(
            labelColor=INK, titleColor=INK, labelFontSize=11, orient="top", title=None, labelLimit=240,
            symbolStrokeWidth=2, symbolOpacity=1, offset=4,
        )
        .configure_title(color=INK, subtitleColor=INK, fontSize=14, subtitleFontSize=11)
        .to_dict()
    )  # fmt: skip
    spec.pop("$schema", None)  # an address, which nothing needs
    # Vega-Lite paints a white background unless told null, which Altair cannot say.
    return spec | {"background": None}


@contextmanager
def unchecked() -> Iterator[None]:
    """Make charts without Altair's own validation, which takes longer than drawing; the tests validate every one."""
    from altair.utils.schemapi import debug_mode

    with debug_mode(False):
        yield


def named(data: str) -> altair.Chart:
    """A chart of one of its ``data`` tables."""
    import altair as alt

    return alt.Chart(alt.NamedData(data))


def tips(*fields: str) -> list[Any]:
    """The fields of a tooltip, each as ``name:Q`` (a number, four digits), ``name:O`` or ``name:N``."""
    import altair as alt

    return [alt.Tooltip(name, format=".4~g") if name.endswith(":Q") else alt.Tooltip(name) for name in fields]


def span(values: Iterable[float | None], *, pad: float = 0.05) -> list[float]:
    """Domain of an axis around the values; never empty."""
    known = [value for value in values if value is not None and isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    room = (high - low) * pad or max(abs(high), 1.0) * pad
    return [low - room, high + room]


def digits(value: float, count: int = 6) -> float:
    """A number with so many significant digits: pages stay small."""
    return float(f"{value:.{count}g}")


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not isfinite(value) else value
