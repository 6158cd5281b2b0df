"""One saved model judged on every task: a row of the matrix, or, from within a stage, a line beside it.

What is judged, and how, is the stage loop's own ``Runner.evaluate``, so that the numbers are those of training.
"""

from __future__ import annotations

from typing import Any

from contrl.continual.records import read_records
from contrl.continual.run_folder import RunFolder
from contrl.continual.runner import Runner
from contrl.interfaces import Stage

WITHIN = "checkpoints.jsonl"
"""Scores of checkpoints from within a stage."""


def judged(folder: RunFolder, stage: int, step: int | None) -> dict[str, float | None]:
    """The tasks that a saved model was judged on, with their scores."""
    if step is None:
        return folder.scored(stage)
    records = read_records(folder.path / WITHIN, ("stage", "step", "task", "metric"))
    return {r["task"]: r["value"] for r in records if (r["stage"], r["step"]) == (stage, step)}


def judge_row(runner: Runner, stage: Stage, step: int | None = None) -> None:
    """Judge the policy as it is on the tasks that are missing in its row; each is on disk before the next is begun.

    Args:
        runner: its policy and its strategies have the state that was saved.
        stage: ``Stage(0, ())`` is before training.
        step: of a checkpoint from within the stage.

    Raises:
        Interrupted: on a signal, with everything kept that was judged.
    """
    if step is None:
        runner.evaluate(stage, "all")
        return
    folder, known = runner.folder, judged(runner.folder, stage.index, step)
    context = runner.contexts.make(stage)
    for task in runner.plan.sequence.tasks:
        if task.name in known:
            continue
        with runner.strategy.eval_weights(context, task):
            score = runner.score(task)
        place = {"stage": stage.index, "step": step, "task": task.name}
        record: dict[str, Any] = place | {"metric": score.metric, "value": score.value}
        folder.append(WITHIN, record | {"n": score.n, "se": score.se})
        runner.stop_if_asked()
    found = judged(folder, stage.index, step) if folder.writes else {}
    shown = "  ".join(f"{name} {'–' if value is None else f'{value:.2f}'}" for name, value in found.items())
    runner.progress.say(f"stage {stage.index}, checkpoint-{step}: {shown}")
