"""A growing log is read from where it was left: half a line waits, a new file is read anew, damage is named."""

import json
from pathlib import Path

import pytest

from contrl.errors import UserError
from contrl.report.follow import Followed, Tail
from tests.report.conftest import RunWriter, append


def test_half_a_line_waits(tmp_path: Path) -> None:
    path, tail = tmp_path / "log", Tail(tmp_path / "log")
    assert tail.new() == []
    path.write_text('{"a": 1}\n{"a":')
    assert tail.new() == [{"a": 1}]
    assert tail.new() == []
    with open(path, "a") as file:
        file.write(" 2}\n\n")
    assert tail.new() == [{"a": 2}]
    assert not tail.restarted


def test_a_file_begun_anew_is_read_anew(tmp_path: Path) -> None:
    path, tail = tmp_path / "log", Tail(tmp_path / "log")
    path.write_text('{"a": 1}\n{"a": 2}\n')
    tail.new()
    path.write_text('{"b": 1}\n')
    assert (tail.new(), tail.restarted) == ([{"b": 1}], True)
    (tmp_path / "new").write_text('{"c": 1}\n{"c": 2}\n{"c": 3}\n')
    (tmp_path / "new").replace(path)
    assert (len(tail.new()), tail.restarted) == (3, True)
    assert (tail.new(), tail.restarted) == ([], False)


@pytest.mark.parametrize("damage", ["nonsense", "[1]", "\xff"])
def test_damage_is_named_by_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "log"
    path.write_text(f'{{"a": 1}}\n{damage}\n', encoding="latin-1")
    with pytest.raises(UserError, match=r"log:2"):
        Tail(path).new()


def record(stage: int, step: int, value: float | None, name: str = "reward") -> dict:
    return {"stage": stage, "step": step, "task": "a", "name": name, "value": value}


def test_what_is_known_grows(tmp_path: Path) -> None:
    """Stages end to end, the last record of a step counts, what is no number is a gap."""
    run = RunWriter(tmp_path / "run", ["a", "b"], status="running", num_items=10)
    followed = Followed.of(run.folder)
    assert (followed.look(), followed.is_running) == ([], True)
    for line in (record(1, 2, 0.5), record(1, 2, 0.6), record(1, 4, float("nan")), record(2, 3, 0.25)):
        append(run.folder / "metrics.jsonl", line)
    append(run.folder / "metrics.jsonl", {"event": "layout", "stage": 1})
    append(run.folder / "metrics.jsonl", record(1, 0, 0.9, "eval/clipped"))
    found = followed.look()
    assert [line["value"] for line in found] == [0.5, 0.6, None, 0.25, 0.9]
    assert all(line["kind"] == "metric" for line in found)
    assert followed.curve("reward") == [[(2.0, 0.6)], [(7.0, 0.25)]]
    assert followed.last() == {"reward": 0.25}
    run.score(0, "a", 0.5)
    assert [line["metric"] for line in followed.look()] == ["success", "reward"]
    assert set(followed.scores) == {("a", "success"), ("a", "reward")}
    manifest = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps(manifest | {"status": "finished"}))
    assert (followed.look(), followed.is_running) == ([], False)


def test_a_run_begun_anew_forgets(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "run", ["a"]).folder
    followed = Followed.of(run)
    for step in (1, 2, 3):
        append(run / "metrics.jsonl", record(1, step, 0.5))
    followed.look()
    (run / "metrics.jsonl").write_text(json.dumps(record(1, 1, 0.1)) + "\n")
    followed.look()
    assert followed.curve("reward") == [[(1.0, 0.1)]]
