"""A run killed at any point and started again ends like one that was never interrupted, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contrl import faults
from contrl.continual.run_folder import RunFolder
from contrl.faults import Killed
from tests.runs import AVERAGE, REPLAY, RLOO, Runs, events, lora, remains, sha, weights

# Every stage: 4 steps, checkpoints after 2 and 4; two steps an epoch, so a kill after 3 is in mid-epoch.
CASES: dict[str, dict[str, Any]] = {
    "rloo": {"strategies": [REPLAY, AVERAGE]},
    "rloo-windows": {
        "method": {**RLOO, "num_minibatches": 2, "num_epochs": 2},
        "strategies": [REPLAY],
        "training": {"save_steps": 1, "max_steps": 5},
    },
    "sft": {"method": "sft", "strategies": []},
    "sft-lora": {"method": "sft", "strategies": [REPLAY, AVERAGE], "lora": True},
    "rloo-lora": {"strategies": [], "lora": True},
    # Kept in memory: importance, anchors, targets and a multiplier; and an optimizer that goes on.
    "dpo-penalties": {
        "method": "dpo",
        "pairs": True,
        "strategies": [
            {"name": "ewc", "num_samples": 4},
            {"name": "kl", "on": "old", "max_new_tokens": 4, "num_prompts": 4},
            "copr",
        ],
        "between_tasks": {"optimizer": "keep", "schedule": "continue"},
    },
}


def settings(case: str, world: Path) -> dict[str, Any]:
    """The changes of a case to the standard configuration."""
    changes = dict(CASES[case])
    if changes.pop("pairs", False):
        changes["tasks"] = [
            {"name": name, "data": str(world / f"{name}-pairs.jsonl"), "eval_size": 4} for name in ("sums", "doubles")
        ]
    return {**changes, "model": lora(world)} if changes.pop("lora", False) else changes


@pytest.fixture(scope="module")
def uninterrupted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the uninterrupted run of a case leaves, each run once."""
    found: dict[str, Any] = {}

    def of(case: str) -> dict[str, Any]:
        if case not in found:
            found[case] = remains(Runs(world, tmp_path_factory.mktemp(case))("whole", **settings(case, world)))
            first, second = (set(files.values()) for files in found[case]["weights"].values())
            assert first != second, "this run teaches nothing, so a resumed one could not differ"
        return found[case]

    return of


def killed_and_resumed(runs: Runs, case: str, *points: tuple[str, int]) -> Path:
    """Start a case, kill it at each point in turn, and let it end."""
    changes = settings(case, runs.world)
    for point, visit in points:
        faults.arm(point, visit)
        with pytest.raises(Killed):
            runs("run", **changes)
    return runs("run", **changes)


# Visits of a point count from the start of the run: stage 1 has 4 steps, 3 saves (two checkpoints and the final) and
# stage 0 two evaluations.
POINTS = [
    ("training", 1),
    ("training", 3),
    ("training", 4),
    ("training", 6),
    ("sampling", 3),
    ("saving", 1),
    ("saving", 2),
    ("saving", 3),
    ("evaluation", 2),
    ("evaluation", 3),
    ("evaluation", 6),
    ("after_task", 1),
    ("after_task", 2),
    ("between_stages", 1),
    ("between_stages", 2),
]
FAST = {("training", 3), ("sampling", 3), ("saving", 2), ("evaluation", 3), ("after_task", 2), ("between_stages", 1)}


@pytest.mark.parametrize(
    ("point", "visit"),
    [pytest.param(*p, marks=() if p in FAST else pytest.mark.slow, id=f"{p[0]}-{p[1]}") for p in POINTS],
)
def test_a_killed_run_ends_like_an_uninterrupted_one(runs: Runs, uninterrupted: Any, point: str, visit: int) -> None:
    assert remains(killed_and_resumed(runs, "rloo", (point, visit))) == uninterrupted("rloo")


@pytest.mark.parametrize(
    ("case", "point", "visit"),
    [
        ("rloo-windows", "training", 2),  # the window has given two of its four steps
        pytest.param("rloo-windows", "training", 7, marks=pytest.mark.slow),
        pytest.param("rloo-windows", "sampling", 4, marks=pytest.mark.slow),
        pytest.param("sft", "training", 3, marks=pytest.mark.slow),
        pytest.param("sft", "saving", 3, marks=pytest.mark.slow),
        ("sft-lora", "training", 7),  # dropout: the random state is needed too
        pytest.param("sft-lora", "saving", 6, marks=pytest.mark.slow),
        pytest.param("sft-lora", "evaluation", 6, marks=pytest.mark.slow),
        pytest.param("rloo-lora", "training", 3, marks=pytest.mark.slow),
        pytest.param("rloo-lora", "after_task", 2, marks=pytest.mark.slow),
        ("dpo-penalties", "importance", 3),  # in the middle of after_task
        pytest.param("dpo-penalties", "training", 7, marks=pytest.mark.slow),
        pytest.param("dpo-penalties", "importance", 6, marks=pytest.mark.slow),
    ],
)
def test_so_does_every_kind_of_run(runs: Runs, uninterrupted: Any, case: str, point: str, visit: int) -> None:
    assert remains(killed_and_resumed(runs, case, (point, visit))) == uninterrupted(case)


def test_a_run_killed_again_and_again_ends_the_same(runs: Runs, uninterrupted: Any) -> None:
    points = [("evaluation", 1), ("training", 3), ("saving", 1), ("evaluation", 2), ("training", 1), ("after_task", 1)]
    run = killed_and_resumed(runs, "rloo", *points)
    assert remains(run) == uninterrupted("rloo")
    # Where it was taken up stands in the journal: after the kill at step 3 of stage 1, and at the end of stage 2.
    taken_up = [(event["stage"], event["checkpoint"]) for event in events(run, "resumed_from")]
    assert taken_up[0] == (1, "checkpoint-2")
    assert taken_up[-1] == (2, "checkpoint-4")


# --- what a kill leaves lying about ----------------------------------------------------------------------


def test_torn_lines_and_half_written_folders_are_tidied(runs: Runs, uninterrupted: Any) -> None:
    """As a power cut would leave them: the last line of every log torn, files and folders half written."""
    config = runs.config("run", **CASES["rloo"])
    faults.arm("evaluation", 4)
    with pytest.raises(Killed):
        runs.start(config)
    run = runs.folder / "run"
    logs = sorted(run.glob("*.jsonl"))
    assert [log.name for log in logs] == ["drift.jsonl", "journal.jsonl", "metrics.jsonl", "scores.jsonl"]
    for log in logs:
        log.write_bytes(log.read_bytes() + b'{"stage": 1, "eve')
    half = run / "stages" / "1-sums" / ".saving-checkpoint-9"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (run / ".run.json.99.tmp").write_bytes(b"{")
    assert remains(runs.start(config)) == uninterrupted("rloo")
    assert [path.name for path in run.rglob(".*")] == []


def test_a_record_without_its_newline_is_not_lost(runs: Runs, uninterrupted: Any) -> None:
    """The record counts for who reads the log, so the next one must not cut it off."""
    config = runs.config("run", **CASES["rloo"])
    faults.arm("evaluation", 4)
    with pytest.raises(Killed):
        runs.start(config)
    for log in (runs.folder / "run").glob("*.jsonl"):
        log.write_bytes(log.read_bytes().removesuffix(b"\n"))
    assert remains(runs.start(config)) == uninterrupted("rloo")


def test_killed_while_the_model_is_published(runs: Runs, uninterrupted: Any) -> None:
    """Some links there, one of them to an older file, the rest not yet."""
    run = killed_and_resumed(runs, "rloo")
    journal = run / "journal.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines()
    journal.write_text("".join(line + "\n" for line in lines if "finished" not in line), encoding="utf-8")
    RunFolder(run).amend_manifest(status="running")
    (run / "results.json").unlink()
    (run / "model.safetensors").unlink()
    (run / "final" / "config.json").unlink()
    (run / "final" / "model.safetensors").unlink()
    (run / "final" / "model.safetensors").write_bytes(b"of an older stage")
    killed_and_resumed(runs, "rloo")
    assert remains(run) == uninterrupted("rloo")
    assert weights(run) == weights(run / "final") == weights(run / "stages" / "2-doubles" / "final")
    assert (run / "final" / "config.json").exists()


def test_killed_between_the_last_stage_and_the_results(runs: Runs, uninterrupted: Any) -> None:
    run = killed_and_resumed(runs, "rloo")
    journal = run / "journal.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines()
    assert "finished" in lines[-1]
    journal.write_text("".join(line + "\n" for line in lines[:-1]), encoding="utf-8")
    (run / "results.json").unlink()
    before = sha(run / "metrics.jsonl"), sha(run / "run.json")
    killed_and_resumed(runs, "rloo")
    assert remains(run) == uninterrupted("rloo")
    assert (run / "results.json").exists()
    assert (sha(run / "metrics.jsonl"), sha(run / "run.json")) == before, "nothing was trained again"
