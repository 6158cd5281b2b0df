"""The page for many runs: its numbers are those of the comparison, seeds are dots, differences are paired."""

from pathlib import Path

import altair
import pytest

from contrl.continual.comparison import compare as numbers
from contrl.continual.study_manifest import Arm, Point
from contrl.report import compare
from contrl.report.charts.compare import paired_differences, seeds_and_means, trade_off
from contrl.report.svg import draw
from tests.continual.test_comparison import NAIVE, REPLAY, make_study
from tests.report.pages import HOSTILE, assert_self_contained


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms of two seeds, one point of a sweep with a single seed, one arm that is refused."""
    arms = [
        Arm("dpo/naive", "dpo", ("naive",)),
        Arm("dpo/replay", "dpo", ("replay",), point=Point("dpo/replay.share", "share", 0.5)),
        Arm("dpo/replay(share=0.1)", "dpo", ("replay",), point=Point("dpo/replay.share", "share", 0.1)),
        Arm("dpo/cppo", "dpo", ("cppo",), refused=f"cppo needs rewards {HOSTILE}"),
    ]
    runs = {"dpo/naive": NAIVE, "dpo/replay": REPLAY, "dpo/replay(share=0.1)": {0: NAIVE[0]}}
    return make_study(tmp_path_factory.mktemp("studies") / "a study", runs, arms)


def test_the_page_says_the_numbers_of_the_comparison(study):
    path = compare.build([study])
    assert path == study / "report.html"
    parsed = assert_self_contained(path.read_text(encoding="utf-8"))
    found = numbers([study])
    shown = iter([(a["data-metric"], a["data-value"], a["data-difference"]) for tag, a in parsed.tags
                  if tag == "td" and "data-difference" in a])  # fmt: skip
    assert any(summary.arm.refused for summary in found.arms)
    for summary in (summary for summary in found.arms if not summary.arm.refused):
        for name in found.metrics:
            metric, value, difference = next(shown)
            mean, paired = summary.estimates[name].value, summary.differences.get(name)
            assert metric == name
            assert (float(value) if value else None) == mean
            assert (float(difference) if difference else None) == (paired.value if paired else None)
    assert next(shown, None) is None
    assert HOSTILE in parsed.text
    assert "dpo/replay against dpo/naive:" in parsed.text
    for name in parsed.attributes("data-chart"):
        assert (study / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for chart in parsed.charts():
        altair.LayerChart.from_dict({**chart["spec"], "background": "white"}).to_dict()


def test_every_run_is_a_dot_and_every_pair_a_difference(study):
    found = numbers([study])
    dots = seeds_and_means(found, "forgetting").data["dots"].rows
    assert [(row[0], row[1], row[3]) for row in dots] == [
        ("dpo/naive", 0, 1.0), ("dpo/naive", 1, 0.75), ("dpo/replay", 0, 0.25), ("dpo/replay", 1, 0.0),
        ("dpo/replay(share=0.1)", 0, 1.0),
    ]  # fmt: skip
    chart = paired_differences(found, "forgetting")
    assert chart is not None
    assert [row[3] for row in chart.data["dots"].rows] == [-0.75, -0.75, 0.0]
    assert chart.table.rows[0][:3] == ("dpo/replay", "dpo/naive", -0.75)
    assert draw(chart.with_data()).count("<path") > 3


def test_points_of_a_sweep_are_one_curve(study):
    chart = trade_off(numbers([study]))
    assert chart is not None
    assert [(row[0], row[1], row[2]) for row in chart.table.rows] == [
        ("dpo/naive", "dpo/naive", None),
        ("dpo/replay", "dpo/replay.share", 0.5),
        ("dpo/replay(share=0.1)", "dpo/replay.share", 0.1),
    ]


def test_runs_are_compared_beside_each_other_and_linked(study, tmp_path):
    """Runs given one by one: the page lies in compare/ next to them and links their own pages."""
    runs = [study / "runs" / "dpo-naive0", study / "runs" / "dpo-replay0"]
    (runs[0] / "report.html").write_text("", encoding="utf-8")
    assert compare.place_for(runs) == (study / "runs" / "compare").resolve()
    path = compare.build(runs, tmp_path / "here")
    assert path == tmp_path / "here" / "report.html"
    parsed = assert_self_contained(path.read_text(encoding="utf-8"))
    (link,) = [link for link in parsed.attributes("href") if link.endswith("report.html")]
    assert (tmp_path / "here" / link.replace("%20", " ")).resolve() == (runs[0] / "report.html").resolve()
