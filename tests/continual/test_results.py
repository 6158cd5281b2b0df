"""Reading and writing the results matrix: logs as the runner leaves them, whole, torn, damaged and unfinished."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contrl.continual import results
from contrl.continual.matrix import INDEPENDENT, PAIRED
from contrl.continual.results import Cell
from contrl.errors import UserError

SEQUENCE = ["plus", "minus"]
SUCCESS = {"plus": [0.5, 0.75, 0.25], "minus": [0.25, 0.25, 1.0]}  # start, after plus, after minus


def make_run(folder: Path, **manifest: object) -> Path:
    folder.mkdir()
    stages = [
        {"stage": k, "task": task, "round": 1, "folder": f"stages/{k}-{task}"} for k, task in enumerate(SEQUENCE, 1)
    ]
    run = {"schema_version": 1, "status": "finished", "sequence": SEQUENCE, "stages": stages} | manifest
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return folder


def add_score(
    folder: Path, stage: int, task: str, value: float | None, metric: str = "success", **more: object
) -> None:
    with open(folder / "scores.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps({"stage": stage, "task": task, "metric": metric, "value": value} | more) + "\n")


def add_items(folder: Path, stage: int, task: str, correct: list[bool], ids: list[str] | None = None) -> None:
    (folder / "eval").mkdir(exist_ok=True)
    names = ids or [f"{task}-{i}" for i in range(len(correct))]
    columns = {"id": names, "score": [1.0 if c else 0.1 for c in correct], "correct": correct}
    pq.write_table(pa.table(columns), folder / "eval" / f"{stage}-{task}.parquet")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two tasks, four items each, all scored after every stage."""
    folder = make_run(tmp_path / "run")
    for stage in range(3):
        for task, values in SUCCESS.items():
            right = round(4 * values[stage])
            se = math.sqrt(values[stage] * (1 - values[stage]) / 4)
            add_score(folder, stage, task, values[stage], n=4, se=se)
            add_items(folder, stage, task, [i < right for i in range(4)])
    return folder


def test_reads_the_matrix(run):
    found = results.read(run)
    assert (found.tasks, found.rows) == (("plus", "minus"), ("start", "1-plus", "2-minus"))
    assert found.trained == ((), (0,), (1,))
    assert [[cell and cell.value for cell in row] for row in found.matrix] == [[0.5, 0.25], [0.75, 0.25], [0.25, 1.0]]
    assert found.matrix[1][0] == Cell(0.75, math.sqrt(0.75 * 0.25 / 4), 4)
    assert (found.metric, found.notes, found.finished, found.end) == ("success", (), True, 2)


def test_metrics_use_the_items_of_the_eval_files(run):
    """plus: items 0..2 right after its stage, item 0 at the end: differences [0, 1, 1, 0]. Of four draws all are 1, or
    all are 0, with probability 1/16 each, more than 2.5 %."""
    found = results.read(run).metrics
    assert (found["forgetting"].value, found["forgetting"].n, found["forgetting"].basis) == (0.5, 4, PAIRED)
    assert (found["forgetting"].low, found["forgetting"].high) == (0.0, 1.0)
    assert (found["lost"].value, found["gained"].value) == (0.5, 0.0)


def test_a_metric_beside_the_score_has_a_matrix_of_its_own_and_loss_has_none(run):
    for stage, value in enumerate((0.5, 1.5, 2.5)):
        add_score(run, stage, "plus", value, metric="margin", beside="success")
        add_score(run, stage, "plus", value, metric="loss", beside="success")
    assert results.read(run).metric == "success"
    margins = results.read(run, "margin")
    assert [row[0].value for row in margins.matrix] == [0.5, 1.5, 2.5]
    assert all(row[1] is None for row in margins.matrix)
    with pytest.raises(UserError, match="every gain a loss"):
        results.read(run, "loss")


def test_change_compares_with_the_last_visit(run):
    found = results.read(run)
    change = found.change(2, 0)
    assert change is not None
    assert change.value == -0.5
    assert found.change(1, 0) is None  # trained in this very stage
    assert found.change(1, 1) is None  # not trained yet


def test_the_last_record_of_a_key_counts_and_a_torn_line_is_ignored(run):
    add_score(run, 2, "plus", 0.5, n=4, se=0.25)
    with open(run / "scores.jsonl", "a", encoding="utf-8") as log:
        log.write('{"stage": 2, "task": "plus", "metric": "succ')
    found = results.read(run)
    assert found.matrix[2][0] == Cell(0.5, 0.25, 4)
    assert found.metrics["forgetting"].value == 0.25


def test_a_line_torn_inside_a_character_is_ignored(run):
    with open(run / "scores.jsonl", "ab") as log:
        log.write('{"stage": 2, "task": "é'.encode()[:-1])
    assert results.read(run).matrix[2][0] == Cell(0.25, math.sqrt(0.25 * 0.75 / 4), 4)


@pytest.mark.parametrize("line", ['{"stage": 1,', "[1, 2]", "7"])
def test_a_damaged_line_in_the_middle_names_file_and_line(run, line):
    path = run / "scores.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"scores\.jsonl:3"):
        results.read(run)


def test_a_damaged_complete_last_line_is_an_error(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"a": 1}\n{"a": 2\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"log\.jsonl:2"):
        results.read_records(tmp_path / "log.jsonl", key=("a",))


def test_records_without_the_key_are_events_and_are_left_out(tmp_path):
    text = '{"stage": 1, "v": 1}\n{"event": "resumed_from", "v": 2}\n\n{"stage": 1, "v": 3}\n{"stage": 2, "v": 4}'
    (tmp_path / "log.jsonl").write_text(text, encoding="utf-8")
    found = results.read_records(tmp_path / "log.jsonl", key=("stage",))
    assert [record["v"] for record in found] == [3, 4]
    assert results.read_records(tmp_path / "none.jsonl", key=("stage",)) == []


# --- missing and unfinished --------------------------------------------------------------------------


def test_a_missing_score_is_null_and_takes_the_metrics_that_need_it(tmp_path):
    run = make_run(tmp_path / "run")
    for stage, task, value in [(0, "plus", 0.5), (0, "minus", 0.0), (1, "plus", 0.75), (2, "minus", 1.0)]:
        add_score(run, stage, task, value)
    add_score(run, 2, "plus", None)
    document = json.loads(results.write(run).read_text(encoding="utf-8"))
    assert [[cell and cell["value"] for cell in row] for row in document["matrix"]] == [
        [0.5, 0.0],
        [0.75, None],
        [None, 1.0],
    ]
    assert document["metrics"]["average"]["value"] is None
    assert document["metrics"]["forgetting"]["value"] is None
    assert document["metrics"]["learning_accuracy"]["value"] == 0.875


def test_a_running_run_is_judged_by_its_last_complete_row(run):
    log = run / "scores.jsonl"
    kept = [line for line in log.read_text(encoding="utf-8").splitlines() if '"stage": 2, "task": "minus"' not in line]
    log.write_text("\n".join(kept) + "\n", encoding="utf-8")
    assert results.read(run).metrics["average"].value is None  # called finished: the score is missing
    (run / "run.json").write_text(
        json.dumps({"schema_version": 1, "status": "running", "sequence": SEQUENCE}), encoding="utf-8"
    )
    found = results.read(run)
    assert (found.end, found.finished) == (1, False)
    assert found.metrics["average"].value == 0.5
    assert found.metrics["forgetting"].value is None  # nothing was trained before the last stage yet
    assert found.change(2, 0) is None
    assert results.as_json(found)["final_row"] == "1-plus"


def test_an_evaluation_that_skips_tasks_not_seen_yet_still_shows_figures(tmp_path):
    run = make_run(tmp_path / "run", status="running", sequence=["plus", "minus", "times"], stages=None)
    for stage, task, value in [(1, "plus", 0.75), (2, "plus", 0.5), (2, "minus", 1.0)]:
        add_score(run, stage, task, value)
    found = results.read(run)
    assert found.end == 2
    assert found.metrics["forgetting"].value == 0.25
    assert found.metrics["average"].value is None


def test_a_run_without_scores_yet(tmp_path):
    found = results.read(make_run(tmp_path / "run", status="running"))
    assert found.end == -1
    assert {cell for row in found.matrix for cell in row} == {None}
    assert {metric.value for metric in found.metrics.values()} == {None}
    assert results.as_json(found)["final_row"] is None


def test_nan_is_not_a_score(run):
    add_score(run, 2, "plus", math.nan)
    found = results.read(run)
    assert found.matrix[2][0] is None
    assert "nan" in found.notes[0]
    assert "NaN" not in results.write(run).read_text(encoding="utf-8")


# --- shapes of sequences -----------------------------------------------------------------------------


def test_rounds_give_rows_not_columns(tmp_path):
    found = results.read(make_run(tmp_path / "run", sequence=SEQUENCE * 2, stages=[]))
    assert found.tasks == ("plus", "minus")
    assert found.rows == ("start", "1-plus", "2-minus", "3-plus", "4-minus")
    assert found.trained == ((), (0,), (1,), (0,), (1,))


@pytest.mark.parametrize("stage", [{"stage": 1, "tasks": ["plus", "minus"]}, {"stage": 1, "task": "plus+minus"}])
def test_a_joint_stage_trains_several_columns(tmp_path, stage):
    found = results.read(make_run(tmp_path / "run", stages=[stage]))
    assert found.rows == ("start", "1-plus+minus")
    assert found.trained == ((), (0, 1))


def test_a_stage_outside_the_sequence_is_refused(tmp_path):
    run = make_run(tmp_path / "run", stages=[{"stage": 1, "task": "times"}])
    with pytest.raises(UserError, match="does not fit the sequence"):
        results.read(run)


def test_which_metric_fills_the_matrix(run):
    for stage in range(3):
        add_score(run, stage, "plus", 0.125, metric="reward")
    assert results.read(run).metric == "success"
    by_reward = results.read(run, metric="reward")
    assert [cell and cell.value for cell in by_reward.matrix[2]] == [0.125, None]
    with pytest.raises(UserError, match="recorded: reward, success"):
        results.read(run, metric="f1")


# --- items -------------------------------------------------------------------------------------------


def test_items_that_disagree_with_the_score_are_not_paired(run):
    add_items(run, 2, "plus", [True, True, True, True])
    found = results.read(run)
    assert found.metrics["forgetting"].basis == INDEPENDENT
    assert "2-plus.parquet" in found.notes[0]


def test_an_item_file_that_cannot_be_read_is_a_note(run):
    (run / "eval" / "2-plus.parquet").write_bytes(b"PAR1 cut off")
    found = results.read(run)
    assert found.metrics["forgetting"].basis == INDEPENDENT
    assert "2-plus.parquet cannot be read" in found.notes[0]


def test_items_with_equal_ids_are_not_paired(run):
    add_items(run, 2, "plus", [True, False, False, False], ids=["a", "a", "b", "c"])
    assert results.read(run).metrics["forgetting"].basis == INDEPENDENT


def test_an_item_without_a_score_is_left_out(run):
    """Three of four items are scored, right after stage 1, one of them at the end: forgetting 2/3."""
    for stage, correct in [(1, [True, True, True]), (2, [True, False, False])]:
        add_score(run, stage, "plus", sum(correct) / 3, n=3, se=0.2)
        columns = {
            "id": ["a", "b", "c", "d"],
            "score": [float(c) for c in correct] + [None],
            "correct": [*correct, False],
        }
        pq.write_table(pa.table(columns), run / "eval" / f"{stage}-plus.parquet")
    found = results.read(run).metrics["forgetting"]
    assert (found.value, found.n, found.basis) == (pytest.approx(2 / 3), 3, PAIRED)


def test_other_metrics_pair_by_the_score_column(run):
    """reward per item is 1.0 when right, else 0.1: three of four right average to 0.775."""
    for stage, share in enumerate(SUCCESS["plus"]):
        add_score(run, stage, "plus", share + 0.1 * (1 - share), metric="reward")
    found = results.read(run, metric="reward")
    assert found.items[1, 0]["plus-0"] == 1.0
    assert found.items[1, 0]["plus-3"] == 0.1


# --- cells -------------------------------------------------------------------------------------------


def test_a_share_of_right_answers_has_wilsons_interval():
    """p = 1 of 500: [500/(500 + z²), 1]; the same value with another se is no share and gets ± 1.96 se."""
    assert Cell(1.0, 0.0, 500).interval == pytest.approx((0.9923756, 1.0), abs=1e-6)
    assert Cell(0.5, 0.1, 500).interval == pytest.approx((0.5 - 0.1959964, 0.5 + 0.1959964))
    assert Cell(-3.0, 0.5, 500).interval == pytest.approx((-3.979982, -2.020018))
    assert Cell(0.5).interval is None


def test_an_error_computed_with_n_minus_one_is_still_a_share():
    cell = Cell(0.3, math.sqrt(0.3 * 0.7 / 199), 200)
    assert cell.interval == Cell(0.3, math.sqrt(0.3 * 0.7 / 200), 200).interval


# --- files -------------------------------------------------------------------------------------------


def test_results_json_repeats_what_was_read(run):
    path = results.write(run)
    document = json.loads(path.read_text(encoding="utf-8"))
    found = results.read(run)
    assert path == run / "results.json"
    assert document["schema_version"] == 1
    assert document["trained"] == [[], ["plus"], ["minus"]]
    assert document["matrix"][2] == [
        {"value": 0.25, "se": found.matrix[2][0].se, "n": 4},
        {"value": 1.0, "se": 0.0, "n": 4},
    ]
    assert document["metrics"]["bwt"]["value"] == found.metrics["bwt"].value == -0.5
    assert document["metrics"]["bwt"]["formula"] == found.metrics["bwt"].formula
    assert sorted(file.name for file in run.iterdir()) == ["eval", "results.json", "run.json", "scores.jsonl"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "results.json"
    target.write_text("old", encoding="utf-8")
    with pytest.raises(TypeError):
        results.write_atomic(target, "not bytes")  # a str cannot be written to a binary file
    assert target.read_text(encoding="utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a run folder"),
        ("{", "cannot be read"),
        ("[]", "names no tasks"),
        ('{"schema_version": 1, "sequence": []}', "names no tasks"),
        ('{"schema_version": 2, "sequence": ["a"]}', "schema_version 2"),
    ],
)
def test_a_folder_that_is_no_run(tmp_path, text, message):
    if text is not None:
        (tmp_path / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        results.read(tmp_path)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        results.read(tmp_path / "nowhere")


def test_reading_results_loads_no_heavy_library(run):
    code = (
        "import sys; from contrl.continual import metrics, results; heavy = {'torch', 'transformers', 'contrl.engine'};"
        "assert not (heavy | {'pyarrow', 'pandas', 'scipy'}) & set(sys.modules), sorted(sys.modules);"
        "results.write(sys.argv[1]); assert not heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
