"""``contrl show``, ``ls`` and ``watch``: for people and programs, mistakes in words and as JSON, quick to start."""

from __future__ import annotations

import json
import os
import pty
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from contrl.cli import watch
from contrl.cli.main import main
from tests.report.conftest import RunWriter, append
from tests.runs import environment


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of two tasks, ``runs/demo``, in the working directory."""
    monkeypatch.chdir(tmp_path)
    writer = RunWriter(Path("runs") / "demo", ["a", "b"], num_items=20)
    for stage in range(3):
        if stage:
            writer.train(stage)
        for task in ("a", "b"):
            writer.score(stage, task, 0.5)
    return writer.folder


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_show_prints_matrix_metrics_and_places(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "show", str(run))
    for words in ("after stage", "forgetting (max)", "finished, 2 of 2 stages done", "a > b", "runs/demo/config.yaml"):
        assert words in text
    assert "score 1.00  right  0*2-2" in said(capsys, "show", str(run), "--samples", "1")


def test_show_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capsys, "show", str(run), "--json", "--samples", "2"))
    assert found["results"]["tasks"] == ["a", "b"]
    assert found["results"]["metrics"]["average"]["low"] is not None
    assert [len(found["samples"]["answers"]), found["samples"]["total"]] == [2, 20]


def test_show_of_a_study(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = {"runs": [{"id": "one", "arm": "naive", "seed": 0, "folder": "demo"}, {"id": "two", "folder": "none"}]}
    Path("runs/study.json").write_text(json.dumps(study))
    assert "runs: 1 of 2 runs finished" in said(capsys, "show", "runs")
    assert json.loads(said(capsys, "show", "runs", "--json"))["runs"][1]["status"] == "planned"


def test_ls(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "demo  rloo    naive       finished  2/2 " in said(capsys, "ls")
    (entry,) = json.loads(said(capsys, "ls", "runs", "--json"))
    assert (entry["folder"], entry["num_done"]) == ("runs/demo", 2)
    Path("empty").mkdir()
    assert said(capsys, "ls", "empty") == "there is no run below empty\n"
    assert json.loads(said(capsys, "ls", "empty", "--json")) == []


@pytest.mark.parametrize("arguments", [["show", "none"], ["watch", "none"], ["ls", "none"], ["show", "runs"]])
def test_mistakes_are_told_in_words_and_as_json(
    arguments: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    words = capsys.readouterr()
    assert words.out == ""
    error = json.loads(said(capsys, *arguments, "--json", code=2))["error"]
    assert sorted(error) == ["code", "fix", "what", "where", "why"]
    assert error["code"] == 2
    assert words.err.startswith(f"error: {error['what']}")
    assert error["fix"] in words.err


# --- watching -------------------------------------------------------------------------------------------


def test_watch_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "watch", str(run), "--once", "--ascii", "--metrics", "reward")
    assert text.isascii()
    assert "scores after each stage" in text
    assert "*" in text
    assert "\r" not in text + said(capsys, "watch", str(run))


def test_watch_streams_every_record(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [json.loads(line) for line in said(capsys, "watch", str(run), "--json").splitlines()]
    written = [(run / name).read_text().count("\n") for name in ("metrics.jsonl", "scores.jsonl")]
    assert [sum(r["kind"] == kind for r in records) for kind in ("metric", "score")] == written
    assert records[-1] == {"run": "runs/demo", "kind": "status", "status": "finished"}


def go_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is running again; with every look it trains a step, and with the third it ends."""
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(manifest | {"status": "running"}))
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        record = {"stage": 2, "step": 100 + len(looks), "task": "b", "name": "reward", "value": 0.125 * len(looks)}
        append(run / "metrics.jsonl", record)
        if len(looks) == 3:
            (run / "run.json").write_text(json.dumps(manifest))

    monkeypatch.setattr(time, "sleep", sleep)


def test_watch_follows_a_run_without_a_terminal(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on(run, monkeypatch)
    monkeypatch.setattr(watch, "LINES_EVERY", 0.0)
    lines = said(capsys, "watch", str(run)).splitlines()
    assert [line.split("  ")[1] for line in lines[:4]] == ["running", "running", "running", "finished"]
    assert "reward 0.375" in lines[3]
    assert lines[5].startswith("runs/demo | rloo | naive | finished")


def test_watch_streams_what_comes(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on(run, monkeypatch)
    records = [json.loads(line) for line in said(capsys, "watch", str(run), "--json").splitlines()]
    assert [r["step"] for r in records if r["kind"] == "metric" and r["step"] > 100] == [101, 102, 103]
    assert [r["status"] for r in records if r["kind"] == "status"] == ["running", "finished"]


def test_stopping_to_watch_is_no_error(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on(run, monkeypatch)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    assert "running" in said(capsys, "watch", str(run))


def on_a_terminal(command: list[str], cwd: Path) -> tuple[int, str]:
    """What a command writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    env = environment(cwd, TERM="xterm", COLUMNS="80", LINES="40")
    process = subprocess.Popen([sys.executable, "-m", "contrl", *command], stdout=theirs, env=env, cwd=cwd)
    os.close(theirs)
    written: list[bytes] = []

    def read() -> None:
        while True:
            try:
                written.append(os.read(ours, 65536))
            except OSError:  # the other end is closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    code = process.wait(60)
    reader.join(10)
    os.close(ours)
    return code, b"".join(written).decode()


def test_watch_draws_over_the_old_frame_on_a_terminal(run: Path, tmp_path: Path) -> None:
    """On a screen of its own, which is left at the end; the last frame stays."""
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(manifest | {"status": "running"}))
    ending = threading.Timer(1.0, lambda: (run / "run.json").write_text(json.dumps(manifest)))
    ending.start()
    code, text = on_a_terminal(["watch", str(run), "--interval", "0.1"], tmp_path)
    ending.join()
    assert code == 0
    opened, _, rest = text.partition("\x1b[?1049h")
    frames, _, last = rest.partition("\x1b[?1049l")
    assert opened == ""
    assert frames.count("\x1b[H") >= 2
    assert "running" in frames
    assert "runs/demo | rloo | naive | finished" in last
    assert "\x1b" not in last


@pytest.mark.parametrize("arguments", [["watch", "runs/demo", "--once"], ["watch", "runs/demo", "--json"]])
def test_watch_starts_quickly_and_without_torch(arguments: list[str], run: Path, tmp_path: Path) -> None:
    """Processor time of the whole command, the best of three."""
    times: list[float] = []
    command, env = [sys.executable, "-m", "contrl", *arguments], environment(tmp_path)
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=env, cwd=tmp_path, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5
    script = f"import sys; from contrl.cli.main import main; main({arguments!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], env=env, cwd=tmp_path, check=True)


def test_show_and_ls_load_no_torch(run: Path, tmp_path: Path) -> None:
    for arguments in (["show", "runs/demo"], ["ls"]):
        script = f"import sys; from contrl.cli.main import main; main({arguments!r}); assert 'torch' not in sys.modules"
        outcome: Any = subprocess.run([sys.executable, "-c", script], env=environment(tmp_path), cwd=tmp_path)
        assert outcome.returncode == 0
