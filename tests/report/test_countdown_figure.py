"""The figure of a Countdown run: five panels, one colour for a group in all rounds, gaps where nothing was recorded."""

from __future__ import annotations

from typing import Any

from contrl.report.countdown_figure import PANELS, figure
from contrl.report.svg import draw, figure_png


def steps(**changes: Any) -> list[dict[str, Any]]:
    rows = []
    for r in (1, 2):
        for group in ("plus", "plus_minus"):
            for step in (1, 2, 3):
                values = dict.fromkeys(PANELS, 0.1 * step) | {"weight_change": 0.01 * r}
                rows.append({"step": step, "round": r, "group": group, **values, **changes})
    return rows


def test_every_panel_has_the_points_that_were_recorded() -> None:
    rows = steps()
    rows[1]["success_rate"] = None
    spec = figure(rows, "0.5b")
    data = spec["datasets"]
    assert set(data) == set(PANELS)
    assert [point["step"] for point in data["success_rate"]] == [1, *range(3, 13)]
    assert [point["step"] for point in data["avg_loss"]] == list(range(1, 13))
    assert [(p["step"], p["value"]) for p in data["weight_change"]] == [(3, 0.01), (6, 0.01), (9, 0.02), (12, 0.02)]
    assert {point["group"] for point in data["avg_loss"]} == {"plus", "plus_minus"}
    assert "0.5b" in str(spec["title"])


def test_it_is_drawn_also_when_nothing_is_known_yet() -> None:
    for rows in (steps(), steps(success_rate=None, weight_change=None), []):
        assert figure_png(draw(figure(rows, "1.5b")))[:8] == b"\x89PNG\r\n\x1a\n"


def test_long_runs_are_thinned() -> None:
    rows = [dict(row, step=i + 1) for i, row in enumerate(steps()[:1] * 5000)]
    points = figure(rows, "0.5b")["datasets"]["avg_loss"]
    assert len(points) <= 600
    assert points[-1]["step"] > 4900
