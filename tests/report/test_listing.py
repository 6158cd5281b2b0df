"""Many runs: found where they lie, listed whatever state they are in; a study's planned runs too."""

import json
from pathlib import Path

import pytest

from contrl.errors import UserError
from contrl.report.listing import find_runs, is_study, list_runs, read_study, run_table, study_table
from tests.report.conftest import RunWriter


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A finished run with a reward model's run inside, one of nothing yet, one that cannot be read, and decoys."""
    place = tmp_path / "runs"
    done = RunWriter(place / "a" / "done", ["x", "y"], num_items=20)
    for stage in range(3):
        done.score(stage, "x", 0.5)
        done.score(stage, "y", 0.5)
    RunWriter(done.folder / "reward_model", ["pairs"])
    for decoy in ("stages/1-x/final", "eval"):
        (done.folder / decoy).mkdir(parents=True, exist_ok=True)
        (done.folder / decoy / "run.json").write_text("{}")
    RunWriter(place / "new", ["x"], status="running")
    (place / "broken").mkdir()
    (place / "broken" / "run.json").write_text("{")
    (place / ".hidden").mkdir()
    (place / ".hidden" / "run.json").write_text("{}")
    return place


def test_runs_are_found_where_they_lie(runs: Path) -> None:
    found = [path.relative_to(runs).as_posix() for path in find_runs(runs)]
    assert found == ["a/done", "a/done/reward_model", "broken", "new"]
    assert [path.name for path in find_runs(runs / "new")] == ["new"]


def test_one_that_cannot_be_read_is_a_line(runs: Path) -> None:
    listed = {Path(entry["folder"]).relative_to(runs).as_posix(): entry for entry in list_runs(runs)}
    assert listed["broken"]["status"] == "unreadable"
    assert "run.json cannot be read" in listed["broken"]["error"]
    assert listed["new"]["average"]["value"] is None
    assert listed["a/done"]["average"]["value"] == pytest.approx(0.5, abs=0.25)
    lines = run_table(list(listed.values()), runs).splitlines()
    assert lines[0].split() == ["run", "method", "strategies", "status", "stages", "average", "forgetting", "age"]
    assert lines[1].split()[:5] == ["a/done", "rloo", "naive", "finished", "2/2"]
    assert lines[3].split()[:6] == ["broken", "-", "-", "unreadable", "-", "-"]
    assert lines[4].split()[:7] == ["new", "rloo", "naive", "running", "0/1", "-", "-"]
    assert lines[6].startswith("broken: ")


def test_no_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        list_runs(tmp_path / "none")


def study_of(runs: Path) -> Path:
    entries = [
        {"id": "replay-0", "arm": "replay", "seed": 0, "order": ["x", "y"], "folder": "a/done"},
        {"id": "naive-0", "arm": "naive", "seed": 0, "order": None, "folder": "runs/naive-0"},
        {"id": "bare"},
    ]
    (runs / "study.json").write_text(json.dumps({"name": "mine", "runs": entries}))
    return runs


def test_a_study_lists_its_planned_runs_too(runs: Path) -> None:
    assert not is_study(runs)
    study = read_study(study_of(runs))
    assert is_study(runs)
    assert [run["status"] for run in study["runs"]] == ["finished", "planned", "planned"]
    assert study["name"] == "mine"
    assert study["runs"][1]["folder"] == str(runs / "runs" / "naive-0")
    lines = study_table(study, runs).splitlines()
    assert lines[0] == "runs: 1 of 3 runs finished"
    assert lines[3].split()[:6] == ["replay-0", "replay", "0", "x,y", "finished", "2/2"]
    assert lines[5].split() == ["bare", "-", "-", "-", "planned", "-", "-", "-", "-"]


@pytest.mark.parametrize("damage", ["{", "[]", '{"runs": 3}', '{"runs": [3]}'])
def test_a_damaged_study_is_told(tmp_path: Path, damage: str) -> None:
    (tmp_path / "study.json").write_text(damage)
    with pytest.raises(UserError, match=r"study.json cannot be read"):
        read_study(tmp_path)


def test_names_cannot_steer_the_terminal(runs: Path) -> None:
    entry = {"folder": str(runs / "x\x1b[31m"), "status": "finished", "method": "m\nn"}
    assert "\x1b" not in run_table([entry], runs)
    assert len(run_table([entry], runs).splitlines()) == 2
