"""Charts as SVG for the page and as figure files."""

import dataclasses
import struct
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from contrl.continual.results import Cell, Results, read
from contrl.report import charts, svg
from contrl.report.curves import read_training

NAMESPACE = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def results(demo) -> Results:
    return read(demo)


def inline(results: Results, column: int = 1) -> ET.Element:
    spec = charts.task_curve(results, column)
    return ET.fromstring(svg.inline_svg(spec, id="c", title="a <b>", description="d & e"))


def test_an_inline_chart_names_itself_and_follows_the_page(results):
    root = inline(results)
    assert [child.tag for child in root[:2]] == [f"{NAMESPACE}title", f"{NAMESPACE}desc"]
    assert [child.text for child in root[:2]] == ["a <b>", "d & e"]
    assert root.attrib["aria-labelledby"] == "c-title c-text"
    assert "viewBox" in root.attrib
    assert not {"width", "height"} & set(root.attrib)
    text = ET.tostring(root, encoding="unicode")
    assert svg.INK not in text
    assert "currentColor" in text
    assert "white" not in text


def test_every_point_says_its_number(results):
    titles = [title.text for title in inline(results).iter(f"{NAMESPACE}title")][1:]
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
    root = inline(dataclasses.replace(results, matrix=matrix))
    assert len(points(root)) == 4
    lines = [e for e in root.iter(f"{NAMESPACE}path") if e.get("stroke-width") == "2" and "stroke" in e.attrib]
    assert any(line.attrib["d"].count("M") == 2 for line in lines)  # two pieces: the line does not jump over the gap


def test_the_stage_that_trained_the_task_is_shaded(results):
    """Column 1 was trained by stage 2: shaded from stage 1 to stage 2, and nowhere else."""
    spec = charts.task_curve(results, 1)
    (visit,) = spec["datasets"]["visits"]
    assert (visit["from"], visit["to"]) == (1, 2)


def test_training_curves_draw_every_stage_and_name(results, demo):
    training = read_training(demo)
    assert [curve.name for curve in training.curves] == ["reward", "success", "entropy", "loss", "learning_rate"]
    for curve in training.curves:
        spec = charts.training_curve(results, training, curve)
        root = ET.fromstring(svg.inline_svg(spec, id="c", title=curve.name, description=""))
        assert {"1", "2", "3", "4"} <= {(text.text or "").strip() for text in root.iter(f"{NAMESPACE}text")}


def test_figure_files_hold_the_numbers(results):
    spec = charts.matrix_figure(results)
    root = ET.fromstring(svg.figure_svg(spec))
    texts = [text.text for text in root.iter(f"{NAMESPACE}text")]
    for row in results.matrix:
        for cell in row:
            assert cell is not None
            assert f"{cell.value:.2f}" in texts
    assert set(results.tasks) | set(results.rows) <= set(texts)
    image = svg.figure_png(spec)
    width, height = struct.unpack(">II", image[16:24])
    assert image.startswith(b"\x89PNG\r\n")
    assert width > 800
    assert height > 300
    assert len(image) > 20_000  # a blank picture of this size is far smaller


def test_scores_outside_0_to_1_are_scaled_to_their_range():
    def run(*values: float) -> Results:
        matrix = tuple((Cell(value),) for value in values)
        return Results(Path("x"), {}, "reward", ("a",), ("start", "1-a"), ((), (0,)), matrix, {})

    assert charts.score_range(run(0.2, 0.9)) == (0.0, 1.0)
    assert charts.score_range(run(-3.0, 5.0)) == (-3.0, 5.0)
    assert charts.score_range(run(7.0, 7.0)) == (6.5, 7.5)


@pytest.mark.parametrize("text", ["a\x01b\x1b[2J", "\x00", "\ud800", "\uffff\ufffe", "\u202e\U0001f389漢", "<&>]]>"])
def test_no_text_can_break_a_chart(results, text):
    """vl-convert aborts the process on text that is no XML, so the text must never get there."""
    spec = charts.task_curve(results, 0)
    spec["title"] = f"a{text}z"
    drawn = ET.fromstring(svg.inline_svg(spec, id="c", title=text, description=text))
    found = [element.text or "" for element in drawn.iter(f"{NAMESPACE}text")]
    assert any(line.startswith("a") and line.endswith("z") for line in found)
