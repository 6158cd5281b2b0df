"""``contrl export-countdown``: where it writes, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contrl.cli.main import main


def a_run(folder: Path) -> Path:
    """The records of a run of one stage; its weights are gone."""
    folder.mkdir()
    manifest = {"schema_version": 1, "digest": "d", "created": "now", "model": "tiny", "sequence": ["plus"]}
    stage = {"stage": 1, "task": "plus", "tasks": ["plus"], "round": 1, "folder": "stages/1-plus"}
    (folder / "run.json").write_text(json.dumps(manifest | {"stages": [stage]}), encoding="utf-8")
    (folder / "journal.jsonl").write_text('{"stage": 1, "event": "started"}\n', encoding="utf-8")
    record = {"stage": 1, "step": 16, "task": "plus", "name": "verifier/success", "value": 0.25}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return folder


def test_three_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert main(["export-countdown", str(run), "--size", "1.5b", "--plots_dir", "pictures"]) == 0
    assert (tmp_path / "logs" / "ContinualCountdown1.5B_R1_plus.log").read_text() == "step:16 - success_rate:0.25\n"
    step = json.loads((tmp_path / "metrics" / "consolidated_metrics_1.5b.json").read_text(encoding="utf-8"))[0]
    assert step["success_rate"] == 0.25
    assert step["avg_loss"] is step["weight_change"] is None
    assert (tmp_path / "pictures" / "training_metrics_1.5b.png").stat().st_size > 1000
    assert "the final weights are not there (yet)" in capsys.readouterr().out


def test_what_is_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-countdown", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
