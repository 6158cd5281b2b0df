"""The same command under torchrun and accelerate launch: two processes on gloo do what one does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.runs import AVERAGE, REPLAY, RLOO, Runs, environment, metric, remains, scores, sha, write_config

pytestmark = pytest.mark.slow

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = (
    "accelerate.commands.launch",
    "--cpu",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
)


def launched(launcher: Sequence[str], file: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``torchrun ... -m contrl run FILE``, with the launcher run as a module of this interpreter."""
    command = [sys.executable, "-m", *launcher, "-m", "contrl", "run", str(file), *more]
    return subprocess.run(
        command,
        cwd=file.parent,
        env=environment(file.parent / "cache", **variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def largest_difference(one: Path, other: Path) -> float:
    """Between the weights of two model folders, over all entries."""
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def close(one: Path, other: Path) -> None:
    """Two runs that differ in the number of processes alone: losses within 1e-5, weights within 1e-6, equal scores."""
    for name in ("loss", "grad_norm", "entropy"):
        mine, theirs = metric(one, name), metric(other, name)
        assert mine.keys() == theirs.keys()
        assert all(abs(mine[step] - theirs[step]) < 1e-5 for step in mine), name
    assert scores(one) == scores(other)
    assert largest_difference(one, other) < 1e-6


def no_line_twice(run: Path) -> None:
    """Only one process wrote the logs."""
    journal, metrics = (
        [json.loads(line) for line in (run / name).read_text(encoding="utf-8").splitlines()]
        for name in ("journal.jsonl", "metrics.jsonl")
    )
    events = [(record["stage"], record["event"]) for record in journal]
    losses = [(record["stage"], record["step"]) for record in metrics if record.get("name") == "loss"]
    assert len(events) == len(set(events))
    assert len(losses) == len(set(losses))


@pytest.mark.parametrize("method", ["rloo", "sft"])
def test_two_processes_do_what_one_does(runs: Runs, method: str) -> None:
    """With SGD, because Adam makes a step of a whole learning rate out of a gradient that is rounding alone."""
    changes: dict[str, Any] = {
        "method": "sft" if method == "sft" else dict(RLOO),
        "strategies": [REPLAY],
        "training": {"optim": "sgd", "learning_rate": 0.1},
    }
    file = write_config(runs.folder / "my.yaml", runs.config("two", **changes))
    outcome = launched(TORCHRUN, file)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.count("report: ") == 1, "one process speaks"
    two = runs.folder / "two"
    close(runs("one", **changes), two)
    assert largest_difference(two, runs.world / "model") > 1e-4, "the weights have moved"
    no_line_twice(two)
    assert json.loads((two / "run.json").read_text(encoding="utf-8"))["processes"] == 2


def test_two_killed_processes_resume(runs: Runs) -> None:
    """Windows of two minibatches: each process finds its own rollouts again."""
    changes: dict[str, Any] = {
        "method": {**RLOO, "num_minibatches": 2},
        "strategies": [REPLAY, AVERAGE],
        "training": {"save_steps": 1},
    }
    whole = write_config(runs.folder / "whole.yaml", runs.config("whole", **changes))
    broken = write_config(runs.folder / "broken.yaml", runs.config("broken", **changes))
    outcome = launched(TORCHRUN, whole)
    assert outcome.returncode == 0, outcome.stderr
    killed = launched(TORCHRUN, broken, CONTRL_FAULT="training:3")
    assert killed.returncode != 0
    assert sorted(path.name for path in (runs.folder / "broken").glob("stages/*/checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-2",
    ]
    again = launched(TORCHRUN, broken)
    assert again.returncode == 0, again.stderr
    assert remains(runs.folder / "broken") == remains(runs.folder / "whole")


def test_two_processes_overwrite_and_refuse(runs: Runs) -> None:
    """What is decided about the folder is decided by all processes alike: none hangs, none meets half a folder."""
    changes: dict[str, Any] = {"method": "sft", "training": {"max_steps": 1}}
    run = runs("two", **changes)
    before = sha(run / "run.json")
    file = write_config(runs.folder / "my.yaml", runs.config("two", **changes))
    refused = launched(TORCHRUN, file, "seed=1")
    assert refused.returncode != 0
    assert refused.stderr.count("holds a run with another configuration") == 1
    assert sha(run / "run.json") == before
    outcome = launched(TORCHRUN, file, "seed=1", "--overwrite_output_dir")
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["seed"] == 1
    no_line_twice(run)


def test_accelerate_launch_with_one_process(runs: Runs) -> None:
    changes: dict[str, Any] = {"method": "sft", "training": {"max_steps": 2}}
    file = write_config(runs.folder / "my.yaml", runs.config("launched", **changes))
    outcome = launched((*ACCELERATE, "--num_processes", "1"), file)
    assert outcome.returncode == 0, outcome.stderr
    assert remains(runs.folder / "launched") == remains(runs("direct", **changes))
