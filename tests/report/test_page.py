"""report.html: complete, self-contained, true to results.json, and inert whatever a run holds."""

import json
import subprocess
import sys
from pathlib import Path

import altair
import pytest

from contrl.continual import results
from contrl.errors import UserError
from contrl.report import page
from contrl.report.charts.frame import without_hover
from contrl.report.numbers import number
from contrl.report.panels import LOSS_NOTE
from contrl.report.svg import draw
from tests.report.pages import HOSTILE, Page, assert_self_contained


@pytest.fixture(scope="module")
def built(demo) -> tuple[Path, Page]:
    path = page.build(demo)
    return path, Page(path.read_text(encoding="utf-8"))


def test_the_page_loads_nothing_and_is_small(built):
    path, _ = built
    assert_self_contained(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 2_000_000


def test_heat_map_numbers_equal_results_json(built):
    path, parsed = built
    document = json.loads(results.write(path.parent).read_text(encoding="utf-8"))
    table = parsed.tables["matrix-table"]
    assert [text.strip() for text in table[0][1:]] == document["tasks"]
    assert [row[0].strip() for row in table[1:-1]] == document["rows"]
    values = {
        (int(a["data-row"] or 0), int(a["data-column"] or 0)): float(a["data-value"] or "nan")
        for tag, a in parsed.tags
        if tag == "td" and "data-row" in a
    }
    for row, cells in enumerate(document["matrix"]):
        for column, cell in enumerate(cells):
            assert values[row, column] == cell["value"]
            shown = parsed.cells[row, column, "absolute"].split()
            assert shown[0] == number(cell["value"])
            assert shown[-1] == f"n={cell['n']}"
            change = cell["value"] - document["matrix"][0][column]["value"]
            assert row == 0 or float(parsed.cells[row, column, "start"].split()[0]) == pytest.approx(change, abs=0.006)


def test_toggles_name_the_layers_of_the_cells(built):
    _, parsed = built
    views = [a["data-view"] for tag, a in parsed.tags if tag == "button" and "data-view" in a]
    assert views == ["absolute", "just-learned", "start"]
    assert {layer for _, _, layer in parsed.cells} == set(views)
    assert dict(parsed.tags)["table"] is not None
    assert ".controls { display: none;" in parsed.style  # until the script says that it is there
    assert next(a["data-shows"] for _, a in parsed.tags if a.get("id") == "matrix-table") == "absolute"


def test_tiles_and_glossary_equal_results_json(built):
    path, parsed = built
    document = json.loads(results.write(path.parent).read_text(encoding="utf-8"))
    exact = {a["data-metric"]: a["data-value"] for tag, a in parsed.tags if tag == "tr" and "data-metric" in a}
    for name, metric in results.read(path.parent).metrics.items():
        assert float(exact[name] or "nan") == document["metrics"][name]["value"]
        assert metric.formula in parsed.text
    assert [a["data-metric"] for tag, a in parsed.tags if tag == "div" and "data-metric" in a] == [
        "average", "forgetting", "fwt", "own_stage_gain",
    ]  # fmt: skip


def test_sections_samples_and_reproduction(built):
    _, parsed = built
    headings = (
        "Verdict", "Sequence", "Results matrix", "Each task over the stages", "Stability and plasticity", "Training",
        "Drift", "Samples", "Data", "Cost", "Reproduce", "All metrics and their formulas",
    )  # fmt: skip
    places = [parsed.text.index(f"\n{heading}\n") for heading in headings]
    assert places == sorted(places)
    assert "contrl demo --output_dir 'runs/my demo'" in parsed.text
    assert "num_generations: 8" in parsed.text
    assert "torch 2.13.0" in parsed.text
    assert "✗ wrong" in parsed.text
    assert LOSS_NOTE in parsed.text
    assert "right after stage 1, wrong after stage" in parsed.text
    assert {"drift-kl", "drift-weights", "time", "stability-plasticity"} <= set(parsed.attributes("data-chart"))


def test_every_chart_has_a_drawing_data_and_files(built):
    path, parsed = built
    names = parsed.attributes("data-chart")
    assert sum(tag == "svg" for tag, _ in parsed.tags) == len(names) == len(parsed.charts())
    folder = path.parent / "figures"
    for name in ["matrix", *names]:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{name}.svg").read_bytes().startswith(b"<svg")
        assert len((folder / f"{name}.csv").read_text(encoding="utf-8").splitlines()) > 1
    links = [link for link in parsed.attributes("href") if link.startswith("figures/")]
    assert all((path.parent / link).is_file() for link in links)
    assert not list(path.parent.glob(".*.tmp"))


def test_every_specification_is_valid_and_renders(built):
    """As the browser gets it: with the tooltips' layers, the data put in."""
    _, parsed = built
    for chart in parsed.charts():
        spec = chart["spec"] | {"datasets": {name: rows_of(table) for name, table in chart["data"].items()}}
        altair.LayerChart.from_dict({**spec, "background": "white"}).to_dict()
        assert draw(spec).startswith("<svg")
        assert without_hover(spec) == spec or chart["data"]["points"]["rows"]


def rows_of(table: dict) -> list[dict]:
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def test_a_changed_score_shows_up(run_folder):
    record = {"stage": 4, "task": "plus", "metric": "success", "value": 0.4321, "n": 77, "se": 0.05}
    with open(run_folder / "scores.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")
    parsed = Page(page.build(run_folder, with_figures=False).read_text(encoding="utf-8"))
    assert parsed.cells[4, 0, "absolute"].startswith("0.43 ")
    assert "n=77" in parsed.cells[4, 0, "absolute"]
    assert "4-plus.parquet" in parsed.text  # its items no longer average to the score: a note says so
    assert not [link for link in parsed.attributes("href") if link.startswith("figures/") and "matrix" not in link]


def test_hostile_run_data_is_inert(tmp_path, writer):
    """Markup in task names, answers, prompts, metric names, configuration and manifest is shown, not obeyed."""
    name = "<script>alert(0)<\x1b\u2028'\\"
    run = writer(tmp_path / "run <b>", [name.replace("/", ""), "b"], num_items=6)
    run.score(0, run.tasks[0], 1.0)
    run.score(1, run.tasks[0], 1.0, completion=lambda item, right: HOSTILE)
    run.score(2, run.tasks[0], 0.0, completion=lambda item, right: HOSTILE + "\x00 \u202e \u2028 é漢🎉")
    for stage in range(3):
        run.score(stage, "b", 0.5)
    run.train(1, 4)
    run.rollouts(1, 0, run.tasks[0], prompt=HOSTILE, completion=HOSTILE)
    for value in (float("nan"), 1.0):
        line = {"stage": 1, "step": int(value == 1.0), "task": "</svg>" + HOSTILE, "name": HOSTILE, "value": value}
        with open(run.folder / "metrics.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
    (run.folder / "config.yaml").write_text(f"name: {HOSTILE}</pre>", encoding="utf-8")
    shown = assert_self_contained(page.build(run.folder).read_text(encoding="utf-8")).text
    assert shown.count(HOSTILE) > 4
    assert "é漢🎉" in shown
    assert f"1 values of {HOSTILE} were not finite numbers" in shown


def test_a_huge_answer_does_not_make_a_huge_page(tmp_path, writer, built):
    run = writer(tmp_path / "run", ["a", "b"], num_items=4)
    for stage, success in enumerate([1.0, 1.0, 0.0]):
        run.score(stage, "a", success, completion=lambda item, right: "y" * 1_000_000)
        run.score(stage, "b", success)
    run.rollouts(1, 0, "a", prompt="x" * 1_000_000, completion="z" * 1_000_000)
    text = page.build(run.folder, with_figures=False).read_text(encoding="utf-8")
    assert len(text) < 1_200_000
    assert "(999600 more)" in text


@pytest.mark.parametrize("scored_stages", [0, 1, 3])
def test_an_unfinished_run(tmp_path, writer, scored_stages):
    run = writer(tmp_path / "run", ["a", "b", "c"], status="running", num_items=20)
    for stage in range(scored_stages):
        run.score(stage, "a", 0.9)
        run.score(stage, "b", 0.5)
        run.score(stage, "c", 0.2)
    parsed = Page(page.build(run.folder, with_figures=False).read_text(encoding="utf-8"))
    assert "running" in parsed.text
    missing = [key for key, text in parsed.cells.items() if key[2] == "absolute" and text == "–"]
    assert len(missing) == 3 * (4 - scored_stages)
    judged = "The run is not finished: all figures are after" in parsed.text
    assert judged == (scored_stages > 0)
    assert ("after 2-b." in parsed.text) == (scored_stages == 3)


def test_many_rounds_stay_small(tmp_path, writer):
    """Six tasks, two rounds: 13 rows, 78 cells, 12 stages of training curves. The aim for any run is 2 MB."""
    run = writer(tmp_path / "run", [f"task_{i:02d}" for i in range(6)] * 2, num_items=4)
    for stage in range(13):
        for task in run.tasks:
            run.score(stage, task, 0.6)
        if stage:
            run.train(stage, 60)
    path = page.build(run.folder, with_figures=False)
    assert path.stat().st_size < 1_700_000
    assert "round 2" in path.read_text(encoding="utf-8")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        page.build(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_training_log_names_file_and_line(run_folder):
    lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (run_folder / "metrics.jsonl").write_text("\n".join([lines[0], "{oops", *lines[1:]]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2"):
        page.build(run_folder)


def test_the_report_never_loads_torch_and_loads_its_tools_late(tmp_path, writer):
    run = writer(tmp_path / "run", ["a"], num_items=4)
    run.score(0, "a", 0.5)
    run.score(1, "a", 0.5)
    code = (
        "import sys; from contrl.report import page, table; heavy = {'torch', 'transformers', 'contrl.engine'};"
        "late = {'altair', 'vl_convert', 'jinja2', 'rich', 'pyarrow', 'yaml'};"
        "assert not (heavy | late) & set(sys.modules), (heavy | late) & set(sys.modules);"
        "page.build(sys.argv[1]); assert not heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
