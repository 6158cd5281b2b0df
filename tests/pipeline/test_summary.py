"""The table of a pipeline: numbers from what a run or an evaluation left, and their columns."""

from __future__ import annotations

import json
from pathlib import Path

from contrl.continual import results
from contrl.pipeline.steps import Step, Work
from contrl.pipeline.summary import Row, clock, numbers, table


def step(folder: Path) -> Step:
    work = Work("", "base", "final", lambda model_of: None, lambda model_of: None)
    return Step("a", "teach", folder, (), "", work)


def write_run(folder: Path, scores: list[dict[str, object]], metrics: list[dict[str, object]]) -> None:
    run = {"schema_version": 1, "status": "finished", "sequence": ["x", "y"]}
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    for name, records in (("scores", scores), ("metrics", metrics)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    results.write(folder)


def score(stage: int, task: str, value: float) -> dict[str, object]:
    return {"stage": stage, "task": task, "metric": "accuracy", "value": value, "n": 4, "se": 0.1}


def logged(stage: int, name: str, value: float, at: int = 1) -> dict[str, object]:
    return {"stage": stage, "step": at, "task": "x", "name": name, "value": value}


def test_a_run_has_its_score_before_and_after_over_its_tasks_and_its_last_margin(tmp_path: Path) -> None:
    """Before (0.25 + 0.75) / 2 = 0.5, after the last stage (0.5 + 1) / 2 = 0.75."""
    scores = [score(0, "x", 0.25), score(0, "y", 0.75)]
    scores += [score(1, "x", 1.0), score(1, "y", 0.0), score(2, "x", 0.5), score(2, "y", 1.0)]
    metrics = [logged(1, "rewards/margins", 9.0), logged(2, "rewards/margins", 2.0), logged(2, "loss", 0.5)]
    write_run(tmp_path, scores, metrics)
    assert numbers(step(tmp_path)) == {"accuracy before": 0.5, "accuracy": 0.75, "margin": 2.0, "loss": 0.5}


def test_of_a_method_that_samples_the_reward_is_told_and_not_the_loss(tmp_path: Path) -> None:
    write_run(tmp_path, [score(2, "x", 0.5), score(2, "y", 0.5)], [logged(1, "reward", 0.1), logged(1, "loss", 0.0)])
    assert numbers(step(tmp_path)) == {"accuracy": 0.5, "reward": 0.1}


def test_an_evaluation_has_its_rates_and_what_is_missing_stays_missing(tmp_path: Path) -> None:
    given = {"win_rate": 0.5, "win_rate_ci": [0.4, 0.6], "avg_reward": None, "tie_rate": 0, "model": "m", "missing": 3}
    (tmp_path / "evaluation_metrics.json").write_text(json.dumps(given), encoding="utf-8")
    assert numbers(step(tmp_path)) == {"win_rate": 0.5, "tie_rate": 0, "missing": 3}


def test_a_folder_without_scores_has_no_numbers(tmp_path: Path) -> None:
    assert numbers(step(tmp_path)) == {}


def test_the_table_is_aligned() -> None:
    rows = [Row("sft", "sft", "base", 61, {"loss": 0.12345}), Row("merged", "merge", "", 3700, {"loss": None})]
    assert table(rows) == (
        "step    method  model  time     numbers\n"
        "sft     sft     base   1:01     loss 0.123\n"
        "merged  merge   -      1:01:40"
    )
    assert clock(0.4) == "0:00"
