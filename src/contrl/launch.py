"""Start, continue and finish a run: from a resolved configuration to a folder with results and a report.

The same call serves all three. A folder that holds the same configuration is continued, a finished one is left
alone, a different one is refused; so repeating a command is always safe. Nothing is written, and nothing deleted,
before the configuration has passed every check that needs no model.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from safetensors import SafetensorError

from contrl.base_stage import base_model, base_plan, is_trained, save_policy
from contrl.compatibility import check_pairs
from contrl.config import Resolved, RunConfig, difference, load, show
from contrl.continual.manifest import describe_data, describe_run
from contrl.continual.plan import Plan, Progress
from contrl.continual.processes import Ranks, StopSignal
from contrl.continual.records import EVALUATION, write_atomic
from contrl.continual.run_folder import TEMPORARY, RunFolder
from contrl.continual.runner import Runner
from contrl.continual.trackers import Trackers
from contrl.errors import EnvironmentFault, Interrupted, UserError
from contrl.experiment import build_strategy, find
from contrl.interfaces import Stage, TaskSequence
from contrl.models.folders import is_classifier
from contrl.models.load import Policy, load_policy, load_tokenizer, weights_folder
from contrl.planning import announce, build_plan, build_sequence, describe_model, usable
from contrl.rewards.functions import as_rewards


@dataclass
class Options:
    """How a run is started, besides what it is.

    Attributes:
        command: the command line, for the manifest.
        overwrite: delete a different run in the folder first.
        dry_run: stop after telling what would be done.
        resumes: the configuration is the folder's own, so it is not printed again.
        page: draw the page of a finished run (`contrl report` draws it at any time).
        say: prints a line, on rank 0.
        callbacks: Trainer callbacks that show progress, given (stage, stages, steps, names to watch); a base stage has
            no stages.
    """

    command: Sequence[str] = ()
    overwrite: bool = False
    dry_run: bool = False
    resumes: bool = False
    page: bool = True
    say: Callable[[str], None] = print
    callbacks: Callable[[Stage, int, int, tuple[str, ...]], list[Any]] = lambda stage, stages, steps, watched: []


BEFORE = "reward_model"
"""A reward model's run may lie in the folder of the run that it rewards, and is trained before it."""
Found = Literal["nothing", "this", "finished", "another"]
"""What lies in an output folder: no run, this run, this run finished, another run that may be deleted."""


def start(resolved: Resolved, options: Options) -> Path:
    """Run a configuration, or continue it where it stopped.

    Returns:
        The run folder, finished.

    Raises:
        UserError, Interrupted, and what their docstrings say.
    """
    config, ranks = resolved.config, Ranks()
    ranks.join(config.training)
    say = options.say if ranks.rank == 0 else (lambda text: None)
    folder = RunFolder(Path(config.output_dir), writes=ranks.rank == 0)
    with StopSignal(say) as stop:
        found: Found = "nothing" if options.dry_run else _inspect(folder, resolved, options)
        ranks.barrier()
        if found != "finished":
            facts: dict[str, Any] = {}
            plan = plan_of(resolved, options, ranks, say, facts)
            sequence = plan.sequence
            _announce(resolved, plan, options, ranks, say)
            if options.dry_run:
                return folder.path
            if found == "this":
                _refuse_changed_rows(folder, sequence)
            trackers = _trackers(resolved, folder, say)
            if ranks.rank == 0:
                manifest = describe_run(resolved, sequence, options.command, ranks.world_size)
                watched = plan.method_for(sequence.stages[0]).watched
                more = {"data_facts": facts, "watched": watched, "card": plan.card}
                _open(folder, resolved, manifest | more, found)
            ranks.barrier()
            try:
                _train(config, plan, folder, ranks, _progress(config, plan, options, say, stop, trackers))
            finally:
                trackers.close()
    if ranks.rank == 0:
        if folder.done(0, "finished"):
            say(f"this run is finished: {folder.path}")
        else:
            finish(folder, page=options.page)
    ranks.leave()
    return folder.path


def resume(folder: Path, options: Options) -> Path:
    """Continue the run in a folder with the configuration it was started with.

    Raises:
        UserError: when the folder holds no run.
    """
    if not (folder / "config.yaml").exists():
        # Only the missing manifest is an error worth words; a run killed in its first moment has a configuration.
        RunFolder(folder).manifest()
    resolved = load(folder / "config.yaml", [f"output_dir={folder}"], resolve=find)
    return start(resolved, replace(options, resumes=True))


def finish(folder: RunFolder, *, page: bool = True) -> None:
    """Write results and report of a complete run."""
    from contrl.continual import results
    from contrl.continual.cards import write_final_cards

    folder.amend_manifest(status="finished")
    results.write(folder.path)
    write_final_cards(folder.path)
    if page:
        from contrl.report.page import build

        build(folder.path, with_figures=False)
    folder.mark(0, "finished")


# --- the folder ---------------------------------------------------------------------------------------


def _inspect(folder: RunFolder, resolved: Resolved, options: Options) -> Found:
    """What the folder holds; only reads. Refuses what this run must not touch."""
    path, wanted = folder.path, resolved.config
    if folder.exists:
        manifest = folder.manifest()
        if manifest.get("kind") == EVALUATION:
            raise UserError(
                f"{path} holds an evaluation of checkpoints and no run",
                fix="to go on with it repeat its command; to train give another output_dir",
            )
        if manifest.get("digest") == resolved.digest:
            return "finished" if manifest.get("status") == "finished" else "this"
        if options.overwrite:
            return "another"
        raise UserError(
            f"{path} holds a run with another configuration",
            why="\n  ".join(difference((path / "config.yaml").read_text(encoding="utf-8"), wanted)),
            fix="give another output_dir, or --overwrite_output_dir to delete that run",
        )
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file", fix="give another output_dir")
    unfinished = {item.name for item in path.glob(TEMPORARY)}
    lies_there = {item.name for item in path.iterdir()} - unfinished - {BEFORE} if path.exists() else set()
    if lies_there == {"config.yaml"} and (path / "config.yaml").read_text(encoding="utf-8") == resolved.text:
        return "nothing"  # killed in the first moment of its life
    if lies_there:
        raise UserError(f"{path} is not empty and holds no run", fix="give another output_dir")
    return "nothing"


def _open(folder: RunFolder, resolved: Resolved, manifest: dict[str, Any], found: Found) -> None:
    """Make the folder a run of this configuration."""
    try:
        if found == "another":
            shutil.rmtree(folder.path)
        folder.path.mkdir(parents=True, exist_ok=True)
        write_atomic(folder.path / "config.yaml", resolved.text.encode())
        if not folder.exists:
            folder.write_manifest(manifest)
    except OSError as error:
        raise EnvironmentFault(f"cannot write to {folder.path}: {error.strerror}", fix="another output_dir") from error


def _refuse_changed_rows(folder: RunFolder, sequence: TaskSequence) -> None:
    """A run continues with the rows it began with, or not at all."""
    before, now = folder.manifest().get("data"), describe_data(sequence)
    changed = [name for name in now if before is not None and before.get(name) != now[name]]
    if changed:
        raise UserError(
            f"the rows of {', '.join(changed)} are not those this run began with",
            where=str(folder.path),
            fix="put the data back, or start anew with another output_dir",
        )


# --- the run ------------------------------------------------------------------------------------------


def plan_of(
    resolved: Resolved,
    options: Options,
    ranks: Ranks,
    say: Callable[[str], None],
    facts: dict[str, Any] | None = None,
) -> Plan:
    """The plan of a configuration, its rows read and everything checked that needs no model.

    Args:
        facts: takes what is found out of the rows, for the run's manifest.

    Raises:
        UserError: with what is wrong; ``Refused`` for a method and a strategy that do not go together.
    """
    config, sequence = resolved.config, build_sequence(resolved, say)
    check_pairs(config, sequence.tasks)
    plan = build_plan(config, sequence, ranks.world_size)
    sequence = usable(sequence, plan, load_tokenizer(config.model), say, facts)
    return replace(plan, sequence=sequence, card=describe_model(config, sequence, options.command))


def _announce(resolved: Resolved, plan: Plan, options: Options, ranks: Ranks, say: Callable[[str], None]) -> None:
    """The first lines of a run: what is set, and what it will cost."""
    config = resolved.config
    say(f"config   {Path(config.output_dir) / 'config.yaml'}" if options.resumes else show(resolved))
    base = None
    if config.base is not None and not is_trained(config, config.base, plan.sequence, ranks):
        base = base_plan(config, config.base, plan.sequence, ranks)
    for line in announce(config, plan, base):
        say(line)


def _train(config: RunConfig, plan: Plan, folder: RunFolder, ranks: Ranks, progress: Progress) -> None:
    """Load the policy (training the base stage if there is one) and go through the stages."""
    try:
        policy, base = _policy(config, plan.sequence, folder, ranks, progress)
        progress.say(f"weights  {policy.source}")
        folder.amend_manifest(status="running", weights=policy.source)
        strategy = build_strategy(config.strategies)
        Runner(plan, folder, policy, strategy, base, progress, ranks.rank, ranks.world_size).run()
    except Interrupted as stopped:
        folder.amend_manifest(status="interrupted")
        hint = f"continue with: contrl resume {folder.path}"
        raise Interrupted(stopped.what, signum=stopped.exit_code - 128, fix=hint) from None
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_disk_full(error):
            raise
        raise EnvironmentFault(
            "the disk is full",
            where=str(folder.path),
            why="the last complete checkpoint is whole, nothing saved before is lost",
            fix=f"free some space, then: contrl resume {folder.path}",
        ) from error
    finally:
        told = _tell_judges(plan, progress.say)
        if told:
            with contextlib.suppress(OSError):  # a full disk is told as such, and not by this
                folder.amend_manifest(judges=told)
    ranks.barrier()


def _tell_judges(plan: Plan, say: Callable[[str], None]) -> dict[str, str]:
    """What asking others for scores came to: calls, answers from the cache, scores that could not be had.

    Returns:
        The same by the name of the reward, of this start of the run.
    """
    told: dict[int, tuple[str, str]] = {}
    for reward in (task.reward for task in plan.sequence.tasks if task.reward is not None):
        for function in as_rewards(reward):
            stats = getattr(function.call, "stats", None)
            if stats is not None and id(stats) not in told:
                told[id(stats)] = function.name, str(stats)
                say(f"{function.name}: {stats}")
    return dict(told.values())


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether it or what led to it says so; libraries wrap the system's error in their own."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error) or "failed writing file" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _trackers(resolved: Resolved, folder: RunFolder, say: Callable[[str], None]) -> Trackers:
    training, config = resolved.config.training, yaml.safe_load(resolved.text)
    return Trackers.of(training.get("report_to"), folder, training.get("run_name"), config, say)


def _progress(
    config: RunConfig, plan: Plan, options: Options, say: Callable[[str], None], stop: StopSignal, trackers: Trackers
) -> Progress:
    stages = len(plan.sequence.stages)
    before = find("method", config.base.method.name).watched if config.base is not None else ()

    def callbacks(stage: Stage, steps: int) -> list[Any]:
        if stage not in plan.sequence.stages:
            return options.callbacks(stage, 0, steps, before)
        return [*options.callbacks(stage, stages, steps, plan.method_for(stage).watched), trackers.stage(stage)]

    return Progress(say, callbacks, lambda: stop.signum, trackers.scores)


def _policy(
    config: RunConfig, sequence: TaskSequence, folder: RunFolder, ranks: Ranks, progress: Progress
) -> tuple[Policy, Path]:
    """The policy of the first stage, and a folder that keeps its untouched weights."""
    model, device = config.model, ranks.device(config.training)
    classifier = "scores" in find("method", config.method.name).needs
    if config.base is not None:
        model = replace(model, name_or_path=str(base_model(config, config.base, sequence, ranks, progress)))
    place, name = weights_folder(model.name_or_path), model.name_or_path
    new_head = classifier and place is not None and not is_classifier(place)
    if place is None or config.base is not None or new_head:
        # The run keeps its own copy: later stages compare with it, and adapters are saved relative to it.
        place = folder.path / "base"
        if ranks.rank == 0 and not place.exists():
            save_policy(load_policy(model.bare(), config.seed, classifier=classifier), place)
        ranks.barrier()
    else:
        name = str(place)
    # Adapters remember where their base is; a relative path would mean another folder from elsewhere.
    place_of = replace(model, name_or_path=str(place.absolute()))
    policy = load_policy(place_of, config.seed, device=device, classifier=classifier)
    return replace(policy, source=policy.source.replace(str(place.absolute()), name)), place
