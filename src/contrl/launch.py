"""Start, continue and finish a run: from a resolved configuration to a folder with results and a report.

The same call serves all three. A folder that holds the same configuration is continued, a finished one is left
alone, a different one is refused; so repeating a command is always safe.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contrl.base_stage import base_model, save_policy
from contrl.config import Resolved, RunConfig, difference, load, show
from contrl.continual.manifest import describe_run
from contrl.continual.processes import Ranks, StopSignal
from contrl.continual.records import write_atomic
from contrl.continual.run_folder import RunFolder
from contrl.continual.runner import Plan, Progress, Runner
from contrl.errors import Interrupted, UserError
from contrl.experiment import build_strategy, build_tasks, check_pairs, find
from contrl.interfaces import Stage, TaskSequence
from contrl.models.load import Policy, load_policy, weights_folder
from contrl.planning import announce, build_plan


@dataclass
class Options:
    """How a run is started, besides what it is.

    Attributes:
        command: the command line, for the manifest.
        overwrite: delete a different run in the folder first.
        dry_run: stop after telling what would be done.
        say: prints a line, on rank 0.
        callbacks: Trainer callbacks that show progress, given (stage, stages, steps).
    """

    command: Sequence[str] = ()
    overwrite: bool = False
    dry_run: bool = False
    say: Callable[[str], None] = print
    callbacks: Callable[[Stage, int, int], list[Any]] = lambda stage, stages, steps: []


def start(resolved: Resolved, options: Options) -> Path:
    """Run a configuration, or continue it where it stopped.

    Returns:
        The run folder, finished.

    Raises:
        UserError, Interrupted, and what their docstrings say.
    """
    config, ranks = resolved.config, Ranks()
    ranks.join()
    say = options.say if ranks.rank == 0 else (lambda text: None)
    folder = RunFolder(Path(config.output_dir), writes=ranks.rank == 0)
    with StopSignal(say) as stop:
        if not options.dry_run and _settle_folder(folder, resolved, options, ranks):
            say(f"this run is finished: {folder.path}")
            return folder.path
        tasks = build_tasks(config, say)
        check_pairs(config, tasks)
        sequence = TaskSequence.in_order(tasks, config.rounds)
        plan = build_plan(config, sequence, ranks.world_size)
        say(show(resolved))
        for line in announce(config, plan):
            say(line)
        if options.dry_run:
            return folder.path
        if ranks.rank == 0 and not folder.exists:
            folder.path.mkdir(parents=True, exist_ok=True)
            write_atomic(folder.path / "config.yaml", resolved.text.encode())
            folder.write_manifest(describe_run(resolved, sequence, options.command, world_size=ranks.world_size))
        ranks.barrier()
        try:
            _train(config, plan, folder, ranks, _progress(plan, options, say, stop))
        except Interrupted as stopped:
            folder.amend_manifest(status="interrupted")
            hint = f"continue with: contrl resume {folder.path}"
            raise Interrupted(stopped.what, signum=stopped.exit_code - 128, fix=hint) from None
    if ranks.rank == 0:
        finish(folder)
    ranks.barrier()
    return folder.path


def _train(config: RunConfig, plan: Plan, folder: RunFolder, ranks: Ranks, progress: Progress) -> None:
    """Load the policy (training the base stage if there is one) and go through the stages."""
    policy, base = _policy(config, plan.sequence, folder, ranks, progress)
    progress.say(f"weights  {policy.source}")
    folder.amend_manifest(status="running", weights=policy.source)
    strategy = build_strategy(config.strategies)
    Runner(plan, folder, policy, strategy, base, progress, ranks.rank, ranks.world_size).run()
    ranks.barrier()


def finish(folder: RunFolder) -> None:
    """Write results and report of a complete run."""
    from contrl.continual import results
    from contrl.report import page

    folder.amend_manifest(status="finished")
    results.write(folder.path)
    page.build(folder.path)
    folder.mark(0, "finished")


def resume(folder: Path, options: Options) -> Path:
    """Continue the run in a folder with the configuration it was started with."""
    run = RunFolder(folder)
    run.manifest()
    resolved = load(folder / "config.yaml", [f"output_dir={folder}"], resolve=find)
    return start(resolved, options)


def _settle_folder(folder: RunFolder, resolved: Resolved, options: Options, ranks: Ranks) -> bool:
    """Whether the run in the folder is already finished; refuses a folder that is something else."""
    ranks.barrier()
    path = folder.path
    finished = False
    if folder.exists:
        before = folder.manifest()
        if before.get("digest") == resolved.digest:
            finished = before["status"] == "finished"
            if finished and ranks.rank == 0 and not folder.done(0, "finished"):
                finish(folder)
        elif not options.overwrite:
            changes = difference((path / "config.yaml").read_text(encoding="utf-8"), resolved.config)
            raise UserError(
                f"{path} holds a run with another configuration",
                why="\n  ".join(changes),
                fix="give another output_dir, or --overwrite_output_dir to delete that run",
            )
        elif ranks.rank == 0:
            shutil.rmtree(path)
    elif path.exists() and any(path.iterdir()):
        raise UserError(f"{path} is not empty and holds no run", fix="give another output_dir")
    ranks.barrier()
    return finished


def _progress(plan: Plan, options: Options, say: Callable[[str], None], stop: StopSignal) -> Progress:
    stages = len(plan.sequence.stages)

    def callbacks(stage: Stage, steps: int) -> list[Any]:
        return options.callbacks(stage, stages, steps)

    return Progress(say, callbacks, lambda: stop.signum)


def _policy(
    config: RunConfig, sequence: TaskSequence, folder: RunFolder, ranks: Ranks, progress: Progress
) -> tuple[Policy, Path]:
    """The policy of the first stage, and a folder that keeps its untouched weights."""
    model = config.model
    if config.base is not None:
        model = replace(model, name_or_path=str(base_model(config, config.base, sequence, ranks, progress)))
    place = weights_folder(model.name_or_path)
    if place is None or config.base is not None:
        # The run keeps its own copy: later stages compare with it, and adapters are saved relative to it.
        place = (folder.path / "base").absolute()
        if ranks.rank == 0 and not place.exists():
            save_policy(load_policy(replace(model, use_peft=False), config.seed), place)
        ranks.barrier()
    policy = load_policy(replace(model, name_or_path=str(place)), config.seed)
    return replace(policy, source=policy.source.replace(str(place), model.name_or_path)), place
