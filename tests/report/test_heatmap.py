"""The heat map as data: what is framed, marked and parted by the staircase."""

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
            assert cell.score == f"{source.value:.2f}"
            assert cell.n == "n=200"
            assert (cell.background, cell.ink) == (viridis(source.value), text_on(viridis(source.value)))


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
    assert [cell.mark for cell in last] == ["▼", "▼", "▼", ""]
    assert "significantly below its score when last trained" in last[0].spoken
    assert heat.changes[3] == "–"
    change = results.change(4, 0)
    assert change is not None
    assert change.value is not None
    assert heat.changes[0].startswith(f"{change.value:.2f} [")
    assert all(cell.mark == "" for _, cells in heat.rows[:2] for cell in cells)


def test_what_was_not_measured_has_no_number_and_no_colour(tmp_path, writer):
    run = writer(tmp_path / "r", ["a", "b"], status="running", num_items=10)
    run.score(0, "a", 0.5)
    (_, first), (_, second), _ = heat_map(read(run.folder)).rows
    assert first[0].score != "–"
    assert (first[1].score, first[1].background, first[1].spoken) == ("–", "", "not measured")
    assert "missing" in second[0].classes.split()
