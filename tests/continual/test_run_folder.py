"""The run folder: logs that survive a torn line, the journal, links to the published model."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from contrl.continual.records import read_records
from contrl.continual.run_folder import RunFolder
from contrl.evaluation.scores import Item, TaskScore
from contrl.interfaces import Stage


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- logs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [b"{", b'{"a": 1', b'{"a": "\xc3', b'"text', b"17", b" "])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    folder, log = RunFolder(tmp_path), tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"a": 0}\n' + torn)
    folder.append("metrics.jsonl", {"a": 2}, {"a": 3})
    assert lines(log) == [{"a": 0}, {"a": 2}, {"a": 3}]


def test_a_whole_last_line_without_newline_is_kept(tmp_path: Path) -> None:
    folder, log = RunFolder(tmp_path), tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"a": 0}\n{"a": 1}')
    assert [record["a"] for record in read_records(log, ("a",))] == [0, 1]
    folder.append("metrics.jsonl", {"a": 2})
    assert lines(log) == [{"a": 0}, {"a": 1}, {"a": 2}]


def test_a_log_that_is_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").write_bytes(b'{"sta')
    RunFolder(tmp_path).tidy()
    assert (tmp_path / "scores.jsonl").read_bytes() == b""


def test_tidy_removes_what_was_half_written_and_nothing_else(tmp_path: Path) -> None:
    stage = tmp_path / "stages" / "1-sums"
    half, whole = stage / ".saving-checkpoint-4", stage / "checkpoint-2"
    for folder in (half, whole, tmp_path / "eval"):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    for name in (".run.json.1.tmp", "eval/.0-sums.parquet.1.tmp", "notes.tmp", ".hidden"):
        (tmp_path / name).touch()
    RunFolder(tmp_path, writes=False).tidy()
    assert half.exists(), "only the process that writes may delete"
    RunFolder(tmp_path).tidy()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".hidden", "eval/file", "notes.tmp", "stages/1-sums/checkpoint-2/file"]
    assert not half.exists()


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").touch()
    folder = RunFolder(tmp_path / "run", writes=False)
    folder.write_manifest({"sequence": ["sums"], "schema_version": 1})
    folder.append("metrics.jsonl", {"a": 1})
    folder.mark(1, "started")
    folder.write_score(1, TaskScore("sums", "success", 1.0, 1, None, []))
    folder.publish_model(tmp_path / "source")
    assert not (tmp_path / "run").exists()


# --- journal and scores -------------------------------------------------------------------------------


def test_the_journal_knows_what_is_done(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert not folder.done(1, "trained")
    folder.mark(1, "trained", keeps=[2])
    folder.mark(1, "trained", keeps=[4])
    assert folder.done(1, "trained")
    assert not folder.done(1, "saved")
    assert not folder.done(2, "trained")
    noted = folder.noted(1, "trained")
    assert noted is not None
    assert noted["keeps"] == [4], "the last line counts"


def test_a_score_and_its_items_can_be_read_back(tmp_path: Path) -> None:
    """A missing score is null in the items; the mean over the others is in the record."""
    folder = RunFolder(tmp_path)
    items = [Item("a", "1+1=", "2", 1.0, True), Item("b", "1+2=", "", None, False)]
    folder.write_score(2, TaskScore("sums", "success", 1.0, 1, None, items))
    (record,) = lines(tmp_path / "scores.jsonl")
    assert record == {"stage": 2, "task": "sums", "metric": "success", "value": 1.0, "n": 1, "se": None}
    rows = parquet.read_table(tmp_path / "eval" / "2-sums.parquet").to_pylist()
    assert rows == [
        {"id": "a", "prompt": "1+1=", "completion": "2", "score": 1.0, "correct": True},
        {"id": "b", "prompt": "1+2=", "completion": "", "score": None, "correct": False},
    ]
    folder.write_score(2, TaskScore("sums", "success", 0.5, 2, 0.5, items))
    folder.write_score(2, TaskScore("words", "success", None, 0, None, items))
    folder.write_score(3, TaskScore("words", "success", 0.0, 2, 0.0, items))
    assert folder.scored(2) == {"sums": 0.5, "words": None}


def test_what_was_measured_beside_a_score_has_its_mean_error_and_column(tmp_path: Path) -> None:
    """Margins 1 and 3 of two items: mean 2, standard error sqrt(2 / 2) = 1; the third has none, and that is no 0."""
    margins: list[dict[str, float]] = [{"margin": 1.0}, {"margin": 3.0}, {}]
    items = [Item(name, "p", "", 1.0, True, extra) for name, extra in zip("abc", margins, strict=True)]
    folder = RunFolder(tmp_path)
    folder.write_score(1, TaskScore("sums", "accuracy", 1.0, 3, 0.0, items, {"margin": 2.0}))
    score, beside = lines(tmp_path / "scores.jsonl")
    assert "beside" not in score
    place = {"stage": 1, "task": "sums"}
    assert beside == {**place, "metric": "margin", "value": 2.0, "n": 2, "se": 1.0, "beside": "accuracy"}
    rows = parquet.read_table(tmp_path / "eval" / "1-sums.parquet").to_pylist()
    assert [row["margin"] for row in rows] == [1.0, 3.0, None]
    assert folder.scored(1) == {"sums": 1.0}, "the score of the task stays its own"


def test_the_manifest_is_amended_and_not_replaced(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new")
    assert not folder.exists
    folder.write_manifest({"sequence": ["sums"], "schema_version": 1, "status": "running"})
    folder.amend_manifest(status="finished", weights="tiny")
    assert folder.exists
    assert folder.manifest() == {"sequence": ["sums"], "schema_version": 1, "status": "finished", "weights": "tiny"}


# --- models -------------------------------------------------------------------------------------------


def test_the_published_model_is_links_and_replaces_an_older_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    old, new = tmp_path / "old", tmp_path / "new"
    for place in (old, new):
        place.mkdir()
        for name in ("config.json", "model.safetensors", "strategy.json", "strategy.safetensors"):
            (place / name).write_text(place.name, encoding="utf-8")
    folder.path.mkdir()
    folder.publish_model(old)
    folder.publish_model(new)
    folder.publish_model(new)
    for place in (folder.path, folder.path / "final"):
        assert sorted(path.name for path in place.iterdir() if path.is_file()) == ["config.json", "model.safetensors"]
        assert (place / "model.safetensors").samefile(new / "model.safetensors")
    assert (old / "model.safetensors").read_text(encoding="utf-8") == "old", "the older stage is untouched"


def test_the_folder_of_a_stage_is_named_by_its_number_and_tasks(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).stage(Stage(3, ("a", "b"), 2)) == tmp_path / "stages" / "3-a+b"
