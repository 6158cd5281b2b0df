"""What a trainer leaves in ``output_dir`` besides the weights, and what it reads there to resume."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput

from contrl.config import EvaluationConfig, ModelConfig, PluginConfig, Resolved, RunConfig, TaskConfig, digest
from contrl.config.show import to_plain
from contrl.config.tree import write
from contrl.continual.manifest import describe_data, describe_run
from contrl.continual.records import read_manifest, write_atomic
from contrl.continual.run_folder import RunFolder
from contrl.engine.checkpoint import newest_checkpoint
from contrl.errors import UserError
from contrl.interfaces import TaskSequence
from contrl.trainers.configs import TrainerConfig

_MADE_BY = "contrl.trainers"
_JOURNAL = "journal.jsonl"
_FILES = (
    "run.json",
    "config.yaml",
    _JOURNAL,
    "metrics.jsonl",
    "scores.jsonl",
    "weights.jsonl",
    "drift.jsonl",
    "results.json",
)
_FOLDERS = ("stages", "eval", "base", "final")


def run_config(
    args: TrainerConfig,
    fields: dict[str, Any],
    sequence: TaskSequence,
    training: Mapping[str, Any],
    strategies: Any,
    world_size: int,
) -> RunConfig:
    """The configuration that a run like this would have in a file, but for rows and models that are in memory."""
    names = [given if isinstance(given, str) else type(given).__name__ for given in strategies]
    return RunConfig(
        output_dir=str(args.output_dir),
        model=ModelConfig("given"),
        method=PluginConfig(args.method, fields),
        tasks=tuple(TaskConfig(task.name, "given") for task in sequence.tasks),
        strategies=tuple(PluginConfig(name) for name in names),
        tokens_per_pass=args.tokens_per_pass,
        log_samples_every=0,  # a trainer has log_completions
        max_bad_rows=args.max_bad_rows,
        training=dict(training),
        evaluation=EvaluationConfig(max_new_tokens=args.max_new_tokens),
        seed=args.seed,
        **args.run_fields(world_size),
    )


def checkpoint_to_resume(place: Path, resume: str | bool | None, *, is_sequence: bool) -> Path | None:
    """The checkpoint that ``resume_from_checkpoint`` means; None to start anew, or for a run folder, which knows.

    Raises:
        UserError: when there is none.
    """
    if not resume:
        return None
    if is_sequence:
        if resume is not True and Path(str(resume)).resolve() != place.resolve():
            raise UserError(
                f"cannot resume a sequence of tasks from {resume}", fix="give True: output_dir knows where it stopped"
            )
        if not RunFolder(place).exists:
            raise UserError(f"there is no run in {place} to resume", fix="leave resume_from_checkpoint out")
        return None
    found = newest_checkpoint(place) if resume is True else Path(str(resume))
    if found is None or not (found / "trainer_state.json").exists():
        what = f"there is no checkpoint in {place}" if found is None else f"{found} is no checkpoint"
        raise UserError(what, fix="leave resume_from_checkpoint out to start anew")
    return found


def prepare(
    place: Path, config: RunConfig, sequence: TaskSequence, *, resumed: bool, is_sequence: bool, world_size: int
) -> None:
    """Make ``output_dir`` ready. Records of a trainer's earlier run are replaced; checkpoints and other files stay.

    Raises:
        UserError: when a run lies there that a trainer did not make, or one to resume has other rows or settings.
    """
    place.mkdir(parents=True, exist_ok=True)
    is_run = RunFolder(place).exists
    if is_run and _command(place)[:1] != [_MADE_BY]:
        raise UserError(f"{place} holds a run of the command line", fix="give another output_dir")
    if not resumed:
        for name in _FILES:
            (place / name).unlink(missing_ok=True)
        for name in _FOLDERS if is_run else ():
            shutil.rmtree(place / name, ignore_errors=True)
        for path in (place / "eval").glob("start-*.safetensors"):
            path.unlink()  # of other weights, for all that is known
    elif is_sequence:
        _refuse_another(place, config, sequence)
    else:
        # Which phases are done is said anew: the steps asked for may be others.
        (place / _JOURNAL).unlink(missing_ok=True)
    if is_sequence and not resumed:
        resolved = Resolved(config, {}, write(to_plain(config)), digest(config))
        write_atomic(place / "config.yaml", resolved.text.encode())
        RunFolder(place).write_manifest(describe_run(resolved, sequence, [_MADE_BY, *sys.argv], world_size))


def _refuse_another(place: Path, config: RunConfig, sequence: TaskSequence) -> None:
    """A sequence goes on with the rows and settings that it began with, or not at all."""
    manifest, now = read_manifest(place), describe_data(sequence)
    before = manifest.get("data") or now
    changed = [name for name in now if before.get(name) != now[name]]
    if changed or manifest.get("digest") != digest(config):
        what = f"the rows of {', '.join(changed)} are" if changed else "the settings are"
        raise UserError(f"{what} not those this run began with", where=str(place), fix="start anew: train()")


def _command(place: Path) -> list[str]:
    """The command of the run in a folder; none where its manifest cannot be read."""
    try:
        return list(read_manifest(place).get("command") or ())
    except UserError:
        return []


class History(TrainerCallback):
    """The states of the stages that a call of ``train`` goes through."""

    def __init__(self) -> None:
        self.states: list[TrainerState] = []

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.states.append(state)

    def state(self, checkpoint: Path | None, *, in_sequence: bool) -> TrainerState:
        """The state at the end: of the one stage; of several the last, with the log lines of all of them."""
        if not self.states:
            # Nothing was left to train.
            saved = checkpoint / "trainer_state.json" if checkpoint is not None else None
            return TrainerState.load_from_json(str(saved)) if saved is not None else TrainerState()
        if not in_sequence:
            return self.states[-1]
        joined = copy.copy(self.states[-1])
        joined.global_step = sum(state.global_step for state in self.states)
        joined.log_history = [
            {**line, "stage": number} for number, state in enumerate(self.states, 1) for line in state.log_history
        ]
        return joined

    def output(self, state: TrainerState) -> TrainOutput:
        """What transformers' ``train`` returns; times and losses are summed and averaged over stages."""
        ends = [line for line in state.log_history if "train_runtime" in line] if self.states else []
        metrics = {name: value for name, value in (ends[-1] if ends else {}).items() if name not in ("step", "stage")}
        if ends:
            metrics["train_runtime"] = sum(line["train_runtime"] for line in ends)
            metrics["train_loss"] = _mean([(line["train_loss"], line["step"]) for line in ends])
        return TrainOutput(state.global_step, metrics.get("train_loss", 0.0), metrics)


def _mean(pairs: Sequence[tuple[float, float]]) -> float:
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else 0.0
