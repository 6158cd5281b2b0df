"""A run at a glance: status, stages, where things are; headline numbers from results.json only while it is current."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from contrl.continual.results import as_json, read, write
from contrl.errors import UserError
from contrl.report.overview import describe, files, headlines, read_overview
from tests.report.conftest import RunWriter, append

CREATED = 1767323045.0
"""2026-01-02T03:04:05 UTC, when RunWriter's runs began."""


def note(run: Path, stage: int, event: str, after: float, **facts: Any) -> None:
    append(run / "journal.jsonl", {"stage": stage, "event": event, "time": CREATED + after, **facts})


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """Two stages of three tasks: the first complete, the second at step 20 of 40, interrupted."""
    run = RunWriter(tmp_path / "half", ["a", "b", "c"], status="interrupted", num_items=20)
    for task in "abc":
        run.score(0, task, 0.2)
        run.score(1, task, 0.5)
    note(run.folder, 1, "started", 10, steps=40)
    for event in ("trained", "after_task", "evaluated", "saved"):
        note(run.folder, 1, event, 60, **({"steps": 40} if event == "trained" else {}))
    note(run.folder, 2, "started", 70, steps=40)
    return run.folder


def test_how_far_a_run_got(half: Path) -> None:
    found = read_overview(half, now=CREATED + 100)
    assert [visit.state for visit in found.stages] == ["done", "training", "planned"]
    assert [visit.steps for visit in found.stages] == [40, 40, None]
    assert (found.status, found.num_done, found.current) == ("interrupted", 1, found.stages[1])
    assert (found.seconds, found.idle) == (70, 30)
    note(half, 2, "trained", 90, steps=40)
    assert read_overview(half).stages[1].state == "trained"


def test_a_running_run_is_as_old_as_its_last_record(half: Path) -> None:
    manifest = json.loads((half / "run.json").read_text())
    (half / "run.json").write_text(json.dumps(manifest | {"status": "running"}))
    append(half / "metrics.jsonl", {"stage": 2, "step": 1, "task": "b", "name": "loss", "value": 1.0})
    os.utime(half / "metrics.jsonl", (CREATED + 95, CREATED + 95))
    assert read_overview(half, now=CREATED + 100).idle == 5


def test_a_run_that_wrote_nothing_yet(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "new", ["a"], status="running").folder
    found = read_overview(run, now=CREATED + 3)
    assert (found.num_done, found.seconds, found.idle) == (0, None, 3)
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**manifest, "created": "yesterday"}))
    assert read_overview(run).idle is None


def test_a_finished_run_without_a_journal_is_done(demo: Path) -> None:
    assert read_overview(demo).num_done == 4


def test_everything_as_one_object(half: Path) -> None:
    found = describe(half)
    assert found["results"] == as_json(read(half))
    assert [stage["state"] for stage in found["stages"]] == ["done", "training", "planned"]
    assert (found["method"], found["strategies"], found["sequence"]) == ("rloo", ["naive"], ["a", "b", "c"])
    assert found["files"] == {"config": str(half / "config.yaml"), "stage_models": [], "samples": 0}
    json.dumps(found, allow_nan=False)


def test_where_things_are(half: Path) -> None:
    for place in ("final", "stages/1-a/final", "samples"):
        (half / place).mkdir(parents=True)
    (half / "samples" / "1-10.parquet").touch()
    (half / "report.html").touch()
    assert "model" not in files(read_overview(half))  # nothing in it yet
    (half / "final" / "config.json").touch()
    found = files(read_overview(half))
    assert (found["model"], found["report"]) == (str(half / "final"), str(half / "report.html"))
    assert (found["stage_models"], found["samples"]) == ([str(half / "stages" / "1-a" / "final")], 1)


def test_headlines_come_from_results_json_while_it_is_current(run_folder: Path) -> None:
    computed = headlines(read_overview(run_folder))
    path = write(run_folder)
    kept = json.loads(path.read_text())
    assert computed["average"] == {key: kept["metrics"]["average"][key] for key in ("value", "low", "high", "n")}
    kept["metrics"]["average"]["value"] = 0.125
    path.write_text(json.dumps(kept))
    assert headlines(read_overview(run_folder))["average"]["value"] == 0.125
    for damage in ("{", "[]", '{"metrics": {"average": 1}}'):
        path.write_text(damage)
        assert headlines(read_overview(run_folder)) == computed
    path.write_text(json.dumps(kept))
    later = path.stat().st_mtime + 10
    os.utime(run_folder / "scores.jsonl", (later, later))
    assert headlines(read_overview(run_folder)) == computed


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        read_overview(tmp_path)
