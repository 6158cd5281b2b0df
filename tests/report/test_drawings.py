"""Charts as SVG for the page and as figure files; their data as CSV."""

import csv
import dataclasses
import io
import xml.etree.ElementTree as ET

import pytest

from contrl.continual.results import Cell, Results, read
from contrl.report import svg
from contrl.report.charts.drift import divergence, weight_map
from contrl.report.charts.frame import HOVER, Chart, Table
from contrl.report.charts.matrix import matrix_figure
from contrl.report.charts.sequence import WIDTH, sequence_strip
from contrl.report.charts.tasks import task_curve
from contrl.report.charts.training import training_panel
from contrl.report.curves import read_training
from contrl.report.drift import Divergence, WeightChange
from contrl.report.panels import panels
from contrl.report.stages import StageFacts

NAMESPACE = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def results(demo) -> Results:
    return read(demo)


def drawn(chart: Chart) -> ET.Element:
    return ET.fromstring(svg.inline_svg(svg.draw(chart.with_data()), id="c", title="a <b>", description="d & e"))


def test_an_inline_chart_names_itself_and_follows_the_page(results):
    root = drawn(task_curve(results, 1))
    assert [child.tag for child in root[:2]] == [f"{NAMESPACE}title", f"{NAMESPACE}desc"]
    assert [child.text for child in root[:2]] == ["a <b>", "d & e"]
    assert root.attrib["aria-labelledby"] == "c-title c-text"
    assert "viewBox" in root.attrib
    assert not {"width", "height"} & set(root.attrib)
    text = ET.tostring(root, encoding="unicode")
    assert svg.INK not in text
    assert "currentColor" in text
    assert "white" not in text


def test_clip_paths_are_the_drawings_own(results, demo):
    """In the browser Vega numbers its clip paths from 0 again, and the first of a name in the page would win."""
    panel = panels(read_training(demo), results.run, {})[0]
    root = drawn(training_panel(read_training(demo), panel))
    paths = {element.attrib["id"] for element in root.iter(f"{NAMESPACE}clipPath")}
    assert paths
    assert all(path.startswith("c-clip") for path in paths)
    assert {element.get("clip-path") for element in root.iter()} - {None} == {f"url(#{path})" for path in paths}


def test_every_point_says_its_number(results):
    titles = [title.text for title in drawn(task_curve(results, 1)).iter(f"{NAMESPACE}title")][1:]
    assert len(titles) == 5
    for row, title in enumerate(titles):
        cell = results.matrix[row][1]
        assert cell is not None
        assert cell.interval is not None
        low, high = cell.interval
        assert title == f"{results.rows[row]}: {cell.value:.2f} [{low:.2f}, {high:.2f}]"


def points(root: ET.Element) -> list[ET.Element]:
    return [e for e in root.iter(f"{NAMESPACE}path") if e.find(f"{NAMESPACE}title") is not None]


def test_a_missing_score_leaves_a_gap(results):
    matrix = tuple(tuple(None if r == 2 else cell for cell in row) for r, row in enumerate(results.matrix))
    root = drawn(task_curve(dataclasses.replace(results, matrix=matrix), 1))
    assert len(points(root)) == 4
    lines = [e for e in root.iter(f"{NAMESPACE}path") if e.get("stroke-width") == "2" and "stroke" in e.attrib]
    assert any(line.attrib["d"].count("M") == 2 for line in lines)  # two pieces: the line does not jump over the gap


def test_the_stage_that_trained_the_task_is_shaded_and_borders_part_the_stages(results):
    """Column 1 was trained by stage 2: shaded from stage 1 to stage 2, and nowhere else."""
    chart = task_curve(results, 1)
    assert chart.data["visits"].rows == ((1, 2),)
    assert chart.data["borders"].rows == ((1,), (2,), (3,))


def test_training_panels_draw_every_stage_and_hide_what_is_only_for_pointing(results, demo):
    training = read_training(demo)
    found = panels(training, results.run, {})
    assert [panel.id for panel in found] == ["reward", "entropy", "learning_rate", "policy_loss"]
    for panel in found:
        chart = training_panel(training, panel)
        texts = {(text.text or "").strip() for text in drawn(chart).iter(f"{NAMESPACE}text")}
        assert {"1", "2", "3", "4"} <= texts
        assert HOVER in [layer.get("name") for layer in chart.with_data(hover=True)["layer"]]
        assert HOVER not in [layer.get("name") for layer in chart.with_data()["layer"]]
    assert [series.label for series in found[0].series] == ["reward", "verifier/success"]


def test_the_strip_is_in_proportion_and_shows_rounds(results):
    stages = [StageFacts(k, (t,), 1 + (k > 2), 5, tokens, None) for k, t, tokens in
              ((1, "plus", 100), (2, "b", 300), (3, "plus", 400), (4, "b", None))]  # fmt: skip
    chart = sequence_strip(stages, ["plus", "b"])
    assert [(row[6], row[7]) for row in chart.data["stages"].rows] == [(0, 100), (100, 400), (400, 800), (800, 800)]
    assert chart.data["rounds"].rows == ((0, 400, "round 1"), (400, 800, "round 2"))
    widths = [float(part.partition("h")[2].partition("v")[0]) for part in
              (e.attrib["d"] for e in drawn(chart).iter(f"{NAMESPACE}path") if e.get("stroke") == "white")]  # fmt: skip
    assert widths[:3] == pytest.approx([WIDTH / 8, WIDTH * 3 / 8, WIDTH / 2])
    assert sequence_strip([StageFacts(1, ("b",), 1, None, None, None)], ["b"]).note.startswith("Nothing was trained")


def test_drift_charts_say_their_numbers():
    chart = divergence([Divergence(1, "a", 0.5, 0.1, 20), Divergence(2, "a", 1.0, None, None)], ["a", "b"])
    assert chart.table.rows[0][:3] == (1, "a", 0.5)
    assert chart.table.rows[0][3:] == (pytest.approx(0.304, abs=1e-3), pytest.approx(0.696, abs=1e-3), 20)
    assert chart.table.rows[1] == (2, "a", 1.0, None, None, None)
    changes = [WeightChange(1, "embedding", 0.1, 0.1), WeightChange(1, "layer 0", 0.2, 0.25)]
    texts = {text.text for text in drawn(weight_map(changes)).iter(f"{NAMESPACE}text")}
    assert {"embedding", "layer 0", "0.1", "0.25"} <= texts


def test_figure_files_hold_the_numbers(results):
    chart = matrix_figure(results)
    root = ET.fromstring(svg.figure_svg(svg.draw(chart.with_data())))
    texts = [text.text for text in root.iter(f"{NAMESPACE}text")]
    lines = list(csv.DictReader(io.StringIO(chart.main.csv())))
    for row, cells in enumerate(results.matrix):
        for column, cell in enumerate(cells):
            assert cell is not None
            assert f"{cell.value:.2f}" in texts
            line = next(x for x in lines if (x["row"], x["task"]) == (results.rows[row], results.tasks[column]))
            assert (float(line["value"]), int(line["n"])) == (cell.value, cell.n)
    assert set(results.tasks) | set(results.rows) <= set(texts)
    assert root[0].attrib["fill"] == "white"


def test_a_score_outside_0_and_1_and_a_missing_one_are_drawn(results):
    cells = ((Cell(-3.0, 0.1, 5), None), (Cell(-1.0, 0.1, 5), Cell(-2.0)))
    odd = dataclasses.replace(results, tasks=("a", "b"), rows=("start", "1-a"), trained=((), (0,)), matrix=cells)
    texts = {text.text for text in drawn(matrix_figure(odd)).iter(f"{NAMESPACE}text")}
    assert {"-3.00", "-1.00", "-2.00", "–"} <= texts


def test_tables_hold_no_number_that_is_none():
    table = Table.of(("a", "b"), [(float("nan"), float("inf")), (1.5, 'x,"y"')])
    assert table.records == [{"a": None, "b": None}, {"a": 1.5, "b": 'x,"y"'}]
    assert table.csv() == 'a,b\n,\n1.5,"x,""y"""\n'
