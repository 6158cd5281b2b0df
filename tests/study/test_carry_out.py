"""A miniature study end to end: refused and failing arms, two commands on one folder, stops, kills, repeats."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from contrl.cli.console import quiet_libraries
from contrl.cli.main import main
from contrl.continual import study_manifest
from contrl.errors import Interrupted, PartlyFailed
from contrl.study.carry_out import carry_out
from contrl.study.checking import Study, check
from contrl.study.claims import Claims
from tests.runs import Runs, environment, events, remains, write_config
from tests.study.studies import outline_of, study

pytestmark = pytest.mark.slow

SLOW = {"strategies": ["tests.study.arms:Slow", "tests.study.arms:Slow(seconds=0.31)"]}


def checked(runs: Runs, given: dict[str, Any]) -> Study:
    return check(outline_of(runs.folder, given), lambda text: None)


def carried_out(found: Study, num_workers: int = 2) -> list[str]:
    """The lines that were said."""
    said: list[str] = []
    carry_out(found, num_workers, said.append, prepare=quiet_libraries)
    return said


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for something that will happen."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def states(found: Study) -> list[str]:
    return [study_manifest.state(found.folder, run) for run in found.manifest.runs]


def claims(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".json") for path in (folder / "claims").glob("*.json"))


def begun(folder: Path) -> bool:
    """Whether two runs have saved a checkpoint."""
    return len({path.parents[2] for path in folder.glob("runs/*/stages/*/checkpoint-1")}) == 2


def test_refused_and_failing_arms_do_not_stop_the_others(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["naive", "tests.study.arms:Refusing", "tests.study.arms:Failing", "replay"]
    given = study(runs, arms={"strategies": names}, skip_refused=True, keep_weights=False, seeds=[0])
    file = str(write_config(runs.folder / "s.yaml", given))
    assert main(["run", file, "--num_workers", "2"]) == 3
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert "3 runs (3 arms x 1 seeds x 1 orders), 2 at once" in said
    assert "refused  sft/tests.study.arms:Refusing: the strategy refusing does not go with this run" in said
    assert "1 of 3 runs failed" in said
    assert "RuntimeError: this arm is broken" in captured.err
    lines = [line.split("  ") for line in said.splitlines() if line.startswith(("1/3", "2/3"))]
    assert {line[1] for line in lines} == {"sft/naive", "sft/replay"}
    assert all(line[2:4] == ["seed 0", "given"] and line[4].startswith("average -") for line in lines)
    out = runs.folder / "out"
    (broken,) = (out / "failed").glob("*.json")
    assert "RuntimeError: this arm is broken" in (out / "logs" / f"{broken.stem}.log").read_text(encoding="utf-8")
    assert not list(out.glob("runs/*/final")) or set(out.glob("runs/*/final")) == {out / "runs" / broken.stem / "final"}
    # The same command skips what is finished and tries the broken one again.
    assert main(["run", file, "--num_workers", "2"]) == 3
    assert "2 of 3 runs are finished" in capsys.readouterr().out
    assert sorted(int(name.rpartition(".")[2]) for name in claims(out)) == [1, 1, 1, 2]
    assert main(["compare", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(arm["arm"]["name"], arm["finished"]) for arm in told["arms"]] == [
        ("sft/naive", 1),
        ("sft/tests.study.arms:Refusing", 0),
        ("sft/tests.study.arms:Failing", 0),
        ("sft/replay", 1),
    ]


def test_two_commands_on_one_folder_run_nothing_twice(runs: Runs) -> None:
    found = checked(runs, study(runs, seeds=[0, 1]))
    with ThreadPoolExecutor(2) as commands:
        first, second = commands.map(lambda _: carried_out(found), range(2))
    assert states(found) == ["finished"] * 4
    # A process that was slower takes nothing: every run has one claim and was begun once.
    assert claims(found.folder) == sorted(f"{run.id}.1" for run in found.manifest.runs)
    assert all(len(events(found.folder / run.folder, "started")) == 2 for run in found.manifest.runs)
    told = [line for line in (*first, *second) if "/4" in line]
    assert len([line for line in told if "elsewhere" not in line]) == 4
    assert carried_out(found) == ["4 of 4 runs are finished"]


def test_ctrl_c_saves_and_the_same_command_continues(runs: Runs) -> None:
    found = checked(runs, study(runs, arms=SLOW, seeds=[0]))

    def interrupt() -> None:
        until(lambda: begun(found.folder))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted, match=r"2 of 2 runs are left(.|\n)*same command") as stopped:
        carried_out(found)
    thread.join()
    assert stopped.value.exit_code == 130
    assert states(found) == ["interrupted"] * 2
    assert not (found.folder / "failed").exists()
    carried_out(found)
    assert states(found) == ["finished"] * 2
    run = found.folder / found.manifest.runs[0].folder
    assert events(run, "resumed_from")
    # As if nothing had happened: the other arm differs in the length of a pause only.
    other = found.folder / found.manifest.runs[1].folder
    assert remains(run) == remains(other)


def test_a_run_that_is_killed_is_named_and_continued(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = checked(runs, study(runs, output_dir=str(runs.folder / "whole"), seeds=[0], arms={"strategies": ["naive"]}))
    carried_out(whole)
    found = checked(runs, study(runs, seeds=[0], arms={"strategies": ["naive"]}))
    monkeypatch.setenv("CONTRL_FAULT", "after_task:2")
    with pytest.raises(PartlyFailed, match=r"1 of 1 runs failed\n  sft/naive  seed 0  given .*: killed by SIGKILL"):
        carried_out(found)
    assert states(found) == ["failed"]
    monkeypatch.delenv("CONTRL_FAULT")
    carried_out(found)
    assert states(found) == ["finished"]
    (run,), (uninterrupted,) = found.manifest.runs, whole.manifest.runs
    assert remains(found.folder / run.folder) == remains(whole.folder / uninterrupted.folder)


def test_runs_stop_when_their_command_is_killed(runs: Runs) -> None:
    """The runs notice, save and let go; another command goes on from there."""
    given = study(runs, arms=SLOW, seeds=[0])
    found = checked(runs, given)
    file = write_config(runs.folder / "s.yaml", given)
    command = [sys.executable, "-m", "contrl", "run", str(file), "--num_workers", "2"]
    with subprocess.Popen(
        command, cwd=runs.folder, env=environment(runs.folder / "cache"), stdout=subprocess.DEVNULL
    ) as process:
        until(lambda: begun(found.folder))
        process.kill()
    held = Claims(found.folder)
    until(lambda: all(held.holder(run.id) is None for run in found.manifest.runs), 30)
    assert states(found) == ["interrupted"] * 2
    carried_out(found)
    assert states(found) == ["finished"] * 2
    assert all(events(found.folder / run.folder, "resumed_from") for run in found.manifest.runs)
