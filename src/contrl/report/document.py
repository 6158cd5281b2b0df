"""A page as one file: template, style, scripts and charts put together, with a policy that lets nothing else run.

Every text is escaped by the template, for completions are model output and task names come from files. Data for the
charts stands in script elements as JSON in which no character can end the element. The content policy allows the two
scripts of this page by their hash, no address at all, and no code made from text: charts run on an interpreter.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from contrl.continual.results import write_atomic
from contrl.report import svg
from contrl.report.charts.frame import Chart
from contrl.report.figures import FOLDER, write_figures

EXPORTED = "window.vegaEmbed = vegaEmbed;"
"""What of the bundle the page's own script calls."""
MAX_TABLE_ROWS = 120
"""A longer table stays in the CSV."""


@dataclass(frozen=True)
class Figure:
    """A chart as the template shows it: its drawing, its table, and its data for the browser."""

    chart: Chart
    svg: str
    json: str
    table: Sequence[Sequence[str]]
    left_out: int


class Page:
    """Collects the charts of a page while its sections are made, then renders it.

    Args:
        folder: where the page and ``figures/`` will lie.
        with_figures: write every chart to files, and link them; False writes those alone that are only files.
    """

    def __init__(self, folder: Path, *, with_figures: bool = True) -> None:
        self.folder, self.with_figures = folder, with_figures
        self._charts: list[Chart] = []
        self._drawings: list[str] = []

    def figure(self, chart: Chart, *, shown: bool = True) -> Figure | None:
        """Draw a chart. One that is not shown only becomes files, always; the answer is then None."""
        drawing = svg.draw(chart.with_data())
        if self.with_figures or not shown:
            self._charts.append(chart)
            self._drawings.append(drawing)
        if not shown:
            return None
        inline = svg.inline_svg(drawing, id=f"chart-{chart.id}", title=chart.title, description=chart.description)
        table = [chart.table.columns, *chart.table.rows[:MAX_TABLE_ROWS]] if chart.table.rows else []
        rows = [[_shown(value) for value in row] for row in table]
        return Figure(chart, inline, _payload(chart), rows, max(0, len(chart.table.rows) - MAX_TABLE_ROWS))

    def figures(self, charts: Iterable[Chart]) -> list[Figure]:
        """Several charts, all shown."""
        return [figure for chart in charts if (figure := self.figure(chart)) is not None]

    def write(self, name: str, template: str, content: Mapping[str, Any]) -> Path:
        """Render the page and write it with its figures; returns its path."""
        text = self.render(template, content)
        write_figures(self.folder, self._charts, self._drawings)
        path = self.folder / name
        write_atomic(path, text.encode(errors="replace"))
        return path

    def render(self, template: str, content: Mapping[str, Any]) -> str:
        """The page as text."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("contrl.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        # Options of a select: (value, words).
        environment.filters["twice"] = lambda names: [(name, name) for name in names]
        environment.filters["numbered"] = lambda names: [(str(number), name) for number, name in enumerate(names)]
        scripts = [bundle(), own_script()]
        return environment.get_template(template).render(
            **content,
            scripts=scripts,
            policy=policy(scripts),
            figures_folder=FOLDER if self.with_figures else None,
        )


def policy(scripts: Iterable[str]) -> str:
    """The content policy of a page with these inline scripts."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; form-action 'none'"


def inert_json(value: Any) -> str:
    """JSON for a script element: no character in it can end the element or a line of script."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def own_script() -> str:
    """The page's own script: toggles, filters, live charts."""
    return (files("contrl.report") / "templates" / "report.js").read_text(encoding="utf-8")


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script out of vl-convert, safe inside a script element.

    Bundling takes two seconds, so the result is kept in contrl's cache folder, under vl-convert's version and checked
    by its hash; a folder that cannot be written only costs that time.
    """
    import vl_convert

    folder = Path(os.environ.get("CONTRL_CACHE") or Path.home() / ".cache" / "contrl")
    path = folder / f"vega-{version('vl-convert-python')}.js"
    try:
        digest, _, text = path.read_text(encoding="utf-8").partition("\n")
        if digest == _digest(text):
            return text
    except (OSError, ValueError):
        pass
    text = vl_convert.javascript_bundle(EXPORTED).replace("</script", "<\\/script")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, f"{_digest(text)}\n{text}".encode())
    except OSError:
        pass
    return text


def _digest(text: str) -> str:
    return f"// {hashlib.sha256(text.encode()).hexdigest()}"


def _payload(chart: Chart) -> str:
    """What the browser needs to draw the chart alive: data by columns, which is a third of the size."""
    tables = {name: {"columns": table.columns, "rows": table.rows} for name, table in chart.data.items()}
    spec = json.loads(json.dumps(chart.spec).replace(svg.INK, "currentColor"))
    return inert_json(svg.drawable({"fluid": chart.fluid, "spec": spec, "data": tables}))


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
