"""An evaluation in words before it starts: which weights, rows and tasks, and what judging them costs."""

from __future__ import annotations

from contrl.checkpoints.asked import Asked
from contrl.checkpoints.saved import Saved, step_of
from contrl.continual.estimate import CALL, EFFICIENCY, speed
from contrl.continual.plan import Plan
from contrl.continual.run_folder import RunFolder
from contrl.interfaces import Task
from contrl.models.load import count_parameters
from contrl.planning import SAMPLE, mean_length


def describe(asked: Asked, plan: Plan, folder: RunFolder) -> list[str]:
    """Which weights, which rows, which tasks, and what is still to be done."""
    rows, sequence = asked.rows, plan.sequence
    kind = {"run": "a run of contrl", "datasets": "AIF-Gen's folders", "checkpoints": "checkpoints"}[asked.saved.kind]
    what = "adapters" if asked.saved.has_adapters else "whole models"
    lines = [f"weights  {asked.saved.folder}: {kind}, {what}", f"row 0    {asked.resolved.config.model.name_or_path}"]
    for row in rows:
        stage = next(stage for stage in sequence.stages if stage.index == row.index)
        place = row.end.relative_to(asked.saved.folder) if row.end is not None else "not finished"
        steps = ", ".join(str(step_of(path)) for path in row.between)
        more = f"; besides, from within the stage: checkpoint {steps}" if steps else ""
        lines.append(f"row {row.index:<4} {place} (trained {'+'.join(stage.tasks) or 'nothing of these tasks'}){more}")
    tasks = (f"{task.name} ({len(task.eval)} items, {_judged_by(plan, task)})" for task in sequence.tasks)
    lines.append(f"tasks    {', '.join(tasks)}")
    done = sum(len(folder.scored(row.index)) for row in (Saved(0, "", None), *rows)) if folder.exists else 0
    kept = f"; {done} cells of the matrix are there already" if done else ""
    lines.append(f"cost     {_cost(asked, plan, 1 + sum(len(row.folders) for row in rows))}{kept}")
    return [*lines, f"results  {asked.output}{' (the run itself)' if asked.fills else ''}"]


def _judged_by(plan: Plan, task: Task) -> str:
    if task.metric is not None and task.metric.score is not None:
        return f"answers by {task.metric.name}"
    return f"its own answers by {plan.judge_for(task).judged_by}"


def _cost(asked: Asked, plan: Plan, models: int) -> str:
    """How much is judged, and roughly how long that takes: two operations a weight and token, and the decode loops."""
    sampled, forced, calls = 0, 0, 0
    for task in plan.sequence.tasks:
        is_sampled = task.metric is not None and task.metric.score is not None
        sampled += models * len(task.eval) * plan.num_samples if is_sampled else 0
        calls += models if is_sampled else 0
        forced += 0 if is_sampled else models * len(task.eval)
    parts = [f"{sampled:,} sampled answers of at most {plan.max_new_tokens} tokens"] if sampled else []
    parts += [f"{forced:,} rows with their own answers"] if forced else []
    text = f"{models} models: {' and '.join(parts)}"
    config = asked.resolved.config
    found = count_parameters(config.model, classifier=asked.is_classifier)
    if found is None:
        return text
    characters = 1.0 if config.model.name_or_path == "tiny" else 3.5
    rows = [row for task in plan.sequence.tasks for row in list(task.eval)[:SAMPLE]]
    asks = mean_length(rows, ("prompt", "text", "messages")) / characters
    own = mean_length(rows, ("completion", "chosen", "rejected")) / characters
    new = min(own or plan.max_new_tokens / 2, plan.max_new_tokens)
    operations = 2 * found[0] * (sampled * (asks + new) + forced * (asks + own))
    minutes = (operations / (EFFICIENCY * speed()) + calls * plan.max_new_tokens * CALL) / 60
    return f"{text}; {f'about {minutes:.0f} min' if minutes >= 1.5 else 'about a minute or less'} (rough)"
