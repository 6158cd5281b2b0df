"""Frames: the method's numbers, one scale for several runs, stages under the curve; nothing can steer the terminal."""

import json
from pathlib import Path
from typing import Any

import pytest

from contrl.report.follow import Followed
from contrl.report.watch import Screen, default_names, frame, head, line
from tests.report.conftest import RunWriter, append


def run_of(folder: Path, values: dict[str, list[float | None]], **facts: Any) -> Followed:
    """Two stages, ``a`` and ``b``, with the same values in both; ``facts`` go into run.json."""
    run = RunWriter(folder, ["a", "b"], num_items=10)
    path = run.folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    for stage, task in ((1, "a"), (2, "b")):
        for name, series in values.items():
            for step, value in enumerate(series, start=1):
                record = {"stage": stage, "step": step, "task": task, "name": name, "value": value}
                append(run.folder / "metrics.jsonl", record)
        run.score(stage, "a", 0.5)
    followed = Followed.of(run.folder)
    followed.look()
    return followed


VALUES: dict[str, list[float | None]] = {
    "loss": [9.0, 8.0],
    "reward": [0.0, 1.0],
    "verifier/x": [0.5, 0.75],
    "kl": [1, 2],
}


def test_the_method_says_what_is_drawn(tmp_path: Path) -> None:
    followed = run_of(tmp_path / "run", VALUES, watched=["reward", "verifier/", "kl", "loss"])
    assert default_names([followed]) == ["reward", "verifier/x", "kl"]
    assert default_names([run_of(tmp_path / "old", VALUES)]) == ["reward", "kl", "loss"]


def test_a_frame_of_one_run(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", {"reward": [0.0, 1.0]}, watched=["reward"])
    lines = frame([run], [], Screen(50, ascii=True)).splitlines()
    assert "".join(lines[: lines.index("")]).replace(" ", "").endswith("run|rloo|naive|finished|2/2stagesdone")
    top = lines.index("reward  1")
    assert lines[top + 1].startswith("        1 ")
    assert lines[top + 5].startswith("        0 ")
    assert lines[top + 6].split() == ["|1", "a", "|2", "b"]
    assert lines[top + 6].index("|2") == 10 + 20
    assert "scores after each stage" in lines
    assert all(len(text) <= 50 for text in lines)


def test_several_runs_share_a_scale(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / "x", {"reward": [0.0, 1.0]}), run_of(tmp_path / "y", {"reward": [4.0, 5.0]})]
    text = frame(runs, ["reward"], Screen(200, ascii=True))
    lines = text.splitlines()
    marks = [entry.split()[0] for entry in lines if entry.startswith("        ") and entry.split()[0] in "05"]
    assert marks == ["5", "0", "5", "0"]
    assert text.count(str(tmp_path / "y")) >= 3


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", {"reward": [None, 1.0], "kl": [None, None]}, watched=["reward", "kl"])
    text = frame([run], [], Screen(80))
    assert "reward  1, 2 of 4 values are no finite numbers" in text
    assert "kl: no finite value" in text
    assert "no run has logged x?" in frame([run], ["x\x1b"], Screen(80))
    empty = Followed.of(RunWriter(tmp_path / "empty", ["a"], status="running").folder)
    assert "nothing was logged yet" in frame([empty], [], Screen(80))


def test_where_a_run_is(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", {"reward": [0.0, 1.0]}, status="running", watched=["reward"])
    journal = run.folder / "journal.jsonl"
    for event in ("started", "trained", "after_task", "evaluated", "saved"):
        append(journal, {"stage": 1, "event": event, "time": 1767323050, "steps": 4})
    append(journal, {"stage": 2, "event": "started", "time": 1767323060, "steps": 4})
    run.look()
    assert "running | stage 2/2 b, step 2/4 | last written" in head(run)
    assert line(run) == f"{run.folder}  running  stage 2/2 b, step 2/4  reward 1"
    append(journal, {"stage": 2, "event": "trained", "time": 1767323070, "steps": 4})
    run.look()
    assert "step 2/4, trained, being judged" in head(run)


@pytest.mark.parametrize("ascii", [True, False])
def test_names_cannot_steer_the_terminal(tmp_path: Path, ascii: bool) -> None:
    run = run_of(tmp_path / "run", {"reward\x1b[2J": [0.0, 1.0]}, method="m\x1bm")
    text = frame([run], [], Screen(80, ascii=ascii))
    assert "\x1b" not in text
    assert text.isascii() == ascii
