"""The figure of a continual Countdown run: success, weight change, loss, gradient norm and response length.

Drawn from the exported steps alone. Groups keep one colour over all rounds; a value that is missing leaves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from contrl.report.colours import mark_of
from contrl.report.curves import MAX_POINTS, thin
from contrl.report.svg import FIGURE_INK, Spec

PANELS = {
    "success_rate": "success rate (share solved)",
    "weight_change": "weight change of a stage",
    "avg_loss": "loss",
    "avg_grad_norm": "gradient norm",
    "avg_response_length": "response length (tokens)",
}
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif"
_WIDTH, _HEIGHT = 380, 170


def figure(steps: Sequence[Mapping[str, Any]], size: str) -> Spec:
    """A Vega-Lite specification with its data.

    Args:
        steps: rows of consolidated_metrics_<size>.json, in order.
        size: of the model, for the title.
    """
    import altair as alt

    stages = _stages(steps)
    groups = list(dict.fromkeys(str(stage[0]["group"]) for stage in stages))
    marks = [mark_of(index) for index in range(len(groups))]
    starts, total = [], 0
    for stage in stages:
        starts.append(total)
        total += int(stage[-1]["step"])
    colour = alt.Color(
        "group:N",
        scale=alt.Scale(domain=groups, range=[mark.colour for mark in marks]),
        legend=alt.Legend(title="operator group", orient="bottom"),
    )
    dash = alt.StrokeDash("group:N", scale=alt.Scale(domain=groups, range=[mark.dash for mark in marks]), legend=None)
    x = alt.X("step:Q", scale=alt.Scale(domain=[0, max(1, total)], nice=False), title="step, all stages")
    data: dict[str, list[dict[str, Any]]] = {}
    charts = []
    for name, title in PANELS.items():
        data[name] = _points(name, stages, starts)
        base = alt.Chart(alt.NamedData(name))
        y = alt.Y(
            "value:Q",
            title=None,
            scale=alt.Scale(domain=[0, 1]) if name == "success_rate" else alt.Scale(zero=name == "weight_change"),
        )
        if name == "weight_change":
            chart: Any = base.mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, color=colour)
        else:
            line = base.mark_line(strokeWidth=1.5, point=len(data[name]) <= 10 * len(stages))
            chart = line.encode(x=x, y=y, color=colour, strokeDash=dash, detail="stage:N")
        charts.append(chart.properties(width=_WIDTH, height=_HEIGHT, title=title))
    rows = [alt.hconcat(*charts[start : start + 2]) for start in range(0, len(charts), 2)]
    heading = alt.TitleParams(f"Continual Countdown, {size}", anchor="start", fontSize=16, color=FIGURE_INK)
    spec: Spec = alt.vconcat(*rows).properties(title=heading, padding=8).configure(font=FONT).to_dict()
    return spec | {"datasets": data}


def _stages(steps: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The steps of each stage, in order."""
    found: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for step in steps:
        found.setdefault((step["round"], step["group"]), []).append(step)
    return list(found.values())


def _points(name: str, stages: Sequence[Sequence[Mapping[str, Any]]], starts: Sequence[int]) -> list[dict[str, Any]]:
    limit = max(2, MAX_POINTS // max(1, len(stages)))
    points = []
    for index, (stage, start) in enumerate(zip(stages, starts, strict=True)):
        known = [(start + int(step["step"]), float(step[name])) for step in stage if step[name] is not None]
        if name == "weight_change":
            known = known[-1:]
        kept = thin(known, limit) if known else ()
        points += [{"step": x, "value": y, "group": stage[0]["group"], "stage": index} for x, y in kept]
    return points
