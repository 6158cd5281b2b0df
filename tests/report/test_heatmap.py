"""The heat map as data: what is framed, marked, hatched and parted by the staircase, in each of its views."""

import pytest

from contrl.continual.results import read
from contrl.report.colours import text_on, viridis
from contrl.report.heatmap import heat_map


def test_cells_say_what_the_matrix_says(demo):
    results = read(demo)
    heat = heat_map(results)
    assert [label for label, _ in heat.rows] == list(results.rows)
    for (_, shown), row in zip(heat.rows, results.matrix, strict=True):
        for cell, source in zip(shown, row, strict=True):
            assert source is not None
            view = cell.views[0]
            assert cell.value == source.value
            assert view.text.split()[0] == f"{source.value:.2f}"
            assert view.detail.endswith("n=200")
            assert (view.background, view.ink) == (viridis(source.value), text_on(viridis(source.value)))


def test_changes_are_told_since_just_learned_and_since_the_start(demo):
    results = read(demo)
    heat = heat_map(results)
    for row, (_, cells) in enumerate(heat.rows):
        for column, cell in enumerate(cells):
            _, learned, start = cell.views
            before, now = results.matrix[0][column], results.matrix[row][column]
            assert before is not None
            assert now is not None
            if row:
                assert float(start.text.split()[0]) == pytest.approx(now.value - before.value, abs=0.006)
                assert start.hatched == (start.text[-1] not in "▲▼")
            last = results.numbers.last_visit(column, row)
            if last is None or last == row:
                assert (learned.text, learned.background) == ("–", "")
                assert learned.detail == ("just learned" if last == row else "not trained yet")
    largest = max(abs(float(v.text.split()[0])) for _, cells in heat.rows for c in cells for v in c.views[1:] if v.ink)
    assert float(heat.reach) == largest


def test_trained_cells_and_the_staircase(demo):
    """Four tasks one after another: stage k trains column k-1, everything to the right of it is unseen."""
    classes = [[set(cell.classes.split()) for cell in cells] for _, cells in heat_map(read(demo)).rows]
    for row in range(5):
        for column in range(4):
            assert ("trained" in classes[row][column]) == (column == row - 1)
            assert ("unseen" in classes[row][column]) == (column >= row)
            assert ("edge-right" in classes[row][column]) == (column == row - 1 and column < 3)
            assert ("edge-below" in classes[row][column]) == (column == row and row < 4)


def test_marks_and_changes_only_outside_noise(demo):
    results = read(demo)
    heat = heat_map(results)
    _, last = heat.rows[4]
    assert [cell.views[0].text[-1] for cell in last[:3]] == ["▼"] * 3
    assert "significantly below its score when last trained" in last[0].spoken
    assert heat.changes[3] == "–"
    change = results.change(4, 0)
    assert change is not None
    assert change.value is not None
    assert heat.changes[0].startswith(f"{change.value:.2f} [")
    assert last[0].views[1].text == f"{change.value:.2f} ▼"
    assert not [c for _, cells in heat.rows[:2] for c in cells if c.views[0].text[-1] in "▲▼"]


def test_what_was_not_measured_has_no_number_and_no_colour(tmp_path, writer):
    run = writer(tmp_path / "r", ["a", "b"], status="running", num_items=10)
    run.score(0, "a", 0.5)
    (_, first), (_, second), _ = heat_map(read(run.folder)).rows
    assert first[0].views[0].text != "–"
    assert [(view.text, view.background) for view in first[1].views] == [("–", "")] * 3
    assert (first[1].value, first[1].spoken) == (None, "not measured")
    assert "missing" in second[0].classes.split()
