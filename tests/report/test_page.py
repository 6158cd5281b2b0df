"""report.html: complete, self-contained, true to results.json, and inert whatever a run holds."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from contrl.continual import results
from contrl.errors import UserError
from contrl.report import page
from contrl.report.numbers import number

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Collects tags with attributes, ids and the texts of table cells; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.cells and "table" in self.open:
            self.cells[-1][-1:] = [*(cell + data for cell in self.cells[-1][-1:])]

    def attributes(self, name: str) -> list[str]:
        return [value or "" for _, attributes in self.tags for key, value in attributes.items() if key == name]


@pytest.fixture(scope="module")
def built(demo) -> tuple[Path, Page]:
    path = page.build(demo)
    return path, Page(path.read_text(encoding="utf-8"))


def assert_self_contained(text: str) -> None:
    parsed = Page(text)
    assert not {"script", "iframe", "object", "embed", "link", "img", "base", "form"} & {tag for tag, _ in parsed.tags}
    assert not {key for _, attributes in parsed.tags for key in attributes if key.startswith("on")}
    assert not parsed.attributes("src")
    assert not parsed.attributes("href")
    assert not parsed.attributes("xlink:href")
    # Only the namespace is an address; a request could also come out of CSS.
    assert set(parsed.attributes("xmlns")) <= {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"@import|url\(", "".join(parsed.attributes("style")) + text.partition("</style>")[0])
    ids = parsed.attributes("id")
    assert len(ids) == len(set(ids))


def test_the_page_loads_nothing_and_is_small(built):
    path, parsed = built
    text = path.read_text(encoding="utf-8")
    assert_self_contained(text)
    assert "https://" not in text
    policy = next(attributes for tag, attributes in parsed.tags if attributes.get("http-equiv"))
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert path.stat().st_size < 500_000


def test_heat_map_numbers_equal_results_json(built):
    path, parsed = built
    document = json.loads(results.write(path.parent).read_text(encoding="utf-8"))
    cells = parsed.cells[0]
    width = len(document["tasks"]) + 1
    rows = [cells[start : start + width] for start in range(0, len(cells), width)]
    assert [text.strip() for text in rows[0][1:]] == document["tasks"]
    for shown, label, row in zip(rows[1:], document["rows"], document["matrix"], strict=False):
        assert shown[0].strip() == label
        assert [text.split()[0] for text in shown[1:]] == [number(cell["value"]) for cell in row]
    assert len(rows) == len(document["rows"]) + 2  # header and the row of changes


def test_all_metrics_stand_beside_their_formulas(built):
    path, parsed = built
    for metric in results.read(path.parent).metrics.values():
        assert metric.formula in parsed.text
        assert metric.value is not None
        assert f"{metric.value:.2f}" in parsed.text


def test_sections_samples_and_reproduction(built):
    _, parsed = built
    for heading in ("Verdict", "Results matrix", "Each task over the stages", "Training", "Reproduce"):
        assert heading in parsed.text
    assert "contrl demo --output_dir 'runs/my demo'" in parsed.text
    assert "num_generations: 8" in parsed.text
    assert "torch 2.13.0" in parsed.text
    assert "✗ wrong" in parsed.text
    assert page.LOSS_NOTE in parsed.text
    assert sum(tag == "svg" for tag, _ in parsed.tags) == 4 + 5


def test_figures_are_written(built):
    folder = built[0].parent / "figures"
    assert (folder / "matrix.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "matrix.svg").read_bytes().startswith(b"<svg")
    assert not list(built[0].parent.glob(".*.tmp"))


def test_a_changed_score_shows_up(run_folder):
    record = {"stage": 4, "task": "plus", "metric": "success", "value": 0.4321, "n": 77, "se": 0.05}
    with open(run_folder / "scores.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")
    text = page.build(run_folder).read_text(encoding="utf-8")
    assert "<b>0.43 " in text
    assert "n=77" in text
    assert "4-plus.parquet" in text  # its items no longer average to the score: a note says so


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def test_hostile_run_data_is_inert(tmp_path, writer):
    """Markup in task names, answers, prompts, metric names, configuration and manifest is shown, not obeyed."""
    name = "<script>alert(0)<" + "\x1b"
    run = writer(tmp_path / "run <b>", [name.replace("/", ""), "b"], num_items=6)
    run.score(0, run.tasks[0], 1.0)
    run.score(1, run.tasks[0], 1.0, completion=lambda item, right: HOSTILE)
    run.score(2, run.tasks[0], 0.0, completion=lambda item, right: HOSTILE + "\x00 \u202e é漢🎉")
    for stage in range(3):
        run.score(stage, "b", 0.5)
    run.train(1, 4)
    for value in (float("nan"), 1.0):
        line = {"stage": 1, "step": int(value == 1.0), "task": "</svg>" + HOSTILE, "name": HOSTILE, "value": value}
        with open(run.folder / "metrics.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
    (run.folder / "config.yaml").write_text(f"name: {HOSTILE}</pre>", encoding="utf-8")
    text = page.build(run.folder).read_text(encoding="utf-8")
    assert_self_contained(text)
    shown = Page(text).text
    assert HOSTILE in shown
    assert "é漢🎉" in shown
    assert f"1 values of {HOSTILE} were not finite numbers" in shown


def test_a_huge_answer_does_not_make_a_huge_page(tmp_path, writer):
    run = writer(tmp_path / "run", ["a", "b"], num_items=4)
    for stage, success in enumerate([1.0, 1.0, 0.0]):
        run.score(stage, "a", success, completion=lambda item, right: "y" * 1_000_000)
        run.score(stage, "b", success)
    assert page.build(run.folder).stat().st_size < 200_000


@pytest.mark.parametrize("scored_stages", [0, 1, 3])
def test_an_unfinished_run(tmp_path, writer, scored_stages):
    run = writer(tmp_path / "run", ["a", "b", "c"], status="running", num_items=20)
    for stage in range(scored_stages):
        run.score(stage, "a", 0.9)
        run.score(stage, "b", 0.5)
        run.score(stage, "c", 0.2)
    parsed = Page(page.build(run.folder).read_text(encoding="utf-8"))
    assert "running" in parsed.text
    assert sum(text.split()[:1] == ["–"] for text in parsed.cells[0][4:-4]) == 3 * (4 - scored_stages)
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
    assert page.build(run.folder).stat().st_size < 500_000


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
        "late = {'altair', 'vl_convert', 'jinja2', 'rich', 'pyarrow'};"
        "assert not (heavy | late) & set(sys.modules), (heavy | late) & set(sys.modules);"
        "page.build(sys.argv[1]); assert not heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
