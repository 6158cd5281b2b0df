"""Carries an evaluation out: the weights before training, then every saved folder, each judged on every task.

The judging itself is the stage loop's (``Runner.evaluate``), under the strategies' evaluation weights.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from peft import PeftConfig

from contrl.checkpoints.asked import Asked
from contrl.checkpoints.folder import inspect, open_results
from contrl.checkpoints.plan import plan_of
from contrl.checkpoints.rows import judge_row, judged
from contrl.checkpoints.saved import step_of
from contrl.checkpoints.words import describe
from contrl.config import ModelConfig
from contrl.continual.plan import Plan, Progress
from contrl.continual.processes import Ranks, StopSignal
from contrl.continual.run_folder import RunFolder
from contrl.continual.runner import STRATEGY, Runner
from contrl.continual.trackers import Trackers
from contrl.engine.checkpoint import load_state
from contrl.engine.saving import STATE
from contrl.errors import Interrupted, UserError
from contrl.experiment import build_strategy
from contrl.interfaces import Stage
from contrl.models.load import Policy, load_policy, load_tokenizer, load_weights, policy_from, weights_folder
from contrl.models.pretrained import Reading, adapted
from contrl.models.quantisation import quantisation_of


def judge(asked: Asked) -> Path:
    """Judge what is not judged yet.

    Returns:
        The folder of the results.

    Raises:
        UserError, Interrupted, and what their docstrings say.
    """
    config, ranks = asked.resolved.config, Ranks()
    ranks.join(config.training)
    say = asked.say if ranks.rank == 0 else (lambda text: None)
    folder = RunFolder(asked.output, writes=ranks.rank == 0)
    with StopSignal(say) as stop:
        plan = plan_of(asked, ranks, say)
        inspect(asked, plan, folder)
        for line in describe(asked, plan, folder):
            say(line)
        if asked.dry_run:
            return folder.path
        ranks.barrier()
        open_results(asked, plan, folder, ranks)
        trackers = _trackers(asked, folder, say)
        runner = _runner(
            asked, plan, folder, Progress(say, stop_signal=lambda: stop.signum, scores=trackers.scores), ranks
        )
        try:
            _judge_rows(asked, runner)
        except Interrupted as stopped:
            hint = "repeat the command to go on"
            raise Interrupted(stopped.what, signum=stopped.exit_code - 128, fix=hint) from None
        finally:
            trackers.close()
    if ranks.rank == 0:
        _finish(asked, folder)
    ranks.leave()
    return folder.path


def _finish(asked: Asked, folder: RunFolder) -> None:
    from contrl.continual import results
    from contrl.report import page

    if not asked.fills:
        complete = all(row.end is not None for row in asked.rows)
        folder.amend_manifest(status="finished" if complete else "unfinished")
    results.write(folder.path)
    page.build(folder.path, with_figures=False)


def _trackers(asked: Asked, folder: RunFolder, say: Callable[[str], None]) -> Trackers:
    config = yaml.safe_load(asked.resolved.text)
    return Trackers.of("none" if asked.fills else asked.report_to, folder, asked.run_name, config, say)


# --- the weights ---------------------------------------------------------------------------------------------


def _runner(asked: Asked, plan: Plan, folder: RunFolder, progress: Progress, ranks: Ranks) -> Runner:
    """What judges, its policy with the weights before any training; adapters from elsewhere are on it already."""
    config = asked.resolved.config
    model = config.model
    base = asked.saved.folder / "base"
    if asked.is_run and base.is_dir():
        # The run's own copy, which moves with it.
        model = replace(model, name_or_path=str(base.absolute()))
    device = ranks.device(config.training)
    if not asked.is_run and asked.saved.has_adapters:
        policy = _adapted(asked, model, device)
    else:
        policy = load_policy(model, config.seed, device=device, classifier=asked.is_classifier)
    progress.say(f"model    {policy.source}")
    strategy = build_strategy(config.strategies)
    place = weights_folder(model.name_or_path)
    return Runner(plan, folder, policy, strategy, place, progress, ranks.rank, ranks.world_size)


def _adapted(asked: Asked, model: ModelConfig, device: Any) -> Policy:
    """The base with the first adapter of the folder: the same settings serve them all, or they are refused."""
    folders = [path for row in asked.rows for path in row.folders]
    first = _settings(folders[0])
    for path in folders[1:]:
        if different := sorted(name for name, value in _settings(path).items() if value != first[name]):
            raise UserError(
                f"{path.name} holds another kind of adapter than {folders[0].name}",
                where=str(asked.saved.folder),
                why=", ".join(f"{name} {_settings(path)[name]} instead of {first[name]}" for name in different),
                fix="evaluate them apart, each kind in a folder of its own",
            )
    config = asked.resolved.config
    how = Reading(model, config.seed, device, asked.is_classifier, quantisation_of(model, has_adapter=True))
    policy = policy_from(adapted(folders[0], how, model.name_or_path), load_tokenizer(model), device=device)
    return replace(policy, source=f"{model.name_or_path}, under the adapters of {asked.saved.folder}")


def _settings(folder: Path) -> dict[str, Any]:
    """What of an adapter's configuration decides its numbers, beside its weights."""
    found: Any = PeftConfig.from_pretrained(str(folder))
    names = ("r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "modules_to_save")
    listed = {name: getattr(found, name, None) for name in names}
    return {name: sorted(value) if isinstance(value, set | list) else value for name, value in listed.items()}


def _judge_rows(asked: Asked, runner: Runner) -> None:
    """Row 0, then every saved folder in the order it was trained."""
    model: Any = runner.policy.model
    foreign = not asked.is_run and asked.saved.has_adapters
    without: AbstractContextManager[Any] = model.disable_adapter() if foreign else nullcontext()
    runner.folder.tidy()
    with without:
        runner.remember_start()
        judge_row(runner, Stage(0, ()))
    stages = {stage.index: stage for stage in runner.plan.sequence.stages}
    tasks = {task.name for task in runner.plan.sequence.tasks}
    for row in asked.rows:
        for path in row.folders:
            step = None if path == row.end else step_of(path)
            if tasks <= judged(runner.folder, row.index, step).keys():
                continue
            load_weights(model, path)
            if asked.is_run:
                runner.strategy.load_state_dict(_strategy_state(path))
            judge_row(runner, stages[row.index], step)


def _strategy_state(folder: Path) -> dict[str, Any]:
    """What the strategies knew when these weights were saved: of a stage's end, or of a checkpoint within it."""
    final = load_state(folder, STRATEGY)
    return final if final is not None else dict((load_state(folder, STATE) or {}).get("strategy", {}))
