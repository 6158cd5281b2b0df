"""Trackers (W&B, TensorBoard, trackio ...): one tracker run per experiment, over all of its stages.

transformers' own callbacks do the logging; here they live as long as the experiment instead of one stage. Their
step is global, every record says stage, round and task, and a resumed experiment continues its tracker run. A
tracker is a guest: it never asks anything, and one that fails is dropped with a line while training goes on.
"""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from contrl.continual.records import read_records
from contrl.continual.run_folder import RunFolder
from contrl.continual.tracker_kinds import Experiment, Tracker, make, prepare_wandb, shown, without_secrets
from contrl.errors import UserError
from contrl.interfaces import Stage


class Trackers:
    """The trackers of an experiment; without any, every verb does nothing.

    Hand ``stage(stage)`` to the trainer of each stage, whose own ``report_to`` is "none"; call ``scores`` after each
    evaluation and ``close`` when the run ends, however it ends. Steps of earlier stages are read from the journal
    (``trained`` with its number of ``steps``), so a resumed run goes on at the right step.
    """

    def __init__(self, experiment: Experiment, trackers: Sequence[Tracker]) -> None:
        self.experiment, self._trackers = experiment, list(trackers)
        self._arguments: TrainingArguments | None = None
        self._waiting: list[tuple[int, dict[str, Any]]] = []
        self._ending: dict[str, Any] = {}

    @classmethod
    def of(
        cls,
        report_to: str | Sequence[str] | None,
        folder: RunFolder,
        run_name: str | None,
        config: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> Trackers:
        """The trackers asked for; those that are not installed are named in a line and left out.

        Args:
            report_to: names as in Hugging Face's ``report_to``: one, several, with commas, "none" or "all".
            folder: the run folder; a rank that does not write tracks nothing.
            run_name: name of the tracker run, by default the last part of the folder.
            config: the resolved configuration, shown by trackers that take one; secrets in it are left out.

        Raises:
            UserError: when there is no tracker of that name.
        """
        names = _names(report_to)
        name = run_name or os.environ.get("WANDB_NAME") or folder.path.resolve().name
        experiment = Experiment(folder, name, without_secrets(config), say)
        found = (make(each, experiment) for each in names if folder.writes)
        return cls(experiment, [tracker for tracker in found if tracker is not None])

    def stage(self, stage: Stage) -> TrainerCallback:
        """The callback for a stage's trainer."""
        return _StageCallback(self, stage, self._steps_before(stage.index))

    def scores(self, stage: Stage) -> None:
        """Log the stage's row of the results matrix as ``eval/<task>/<metric>``, at the last step of the stage."""
        records = read_records(self.experiment.folder.path / "scores.jsonl", ("stage", "task", "metric"))
        row = {
            f"eval_{record['task']}/{record['metric']}": record["value"]
            for record in records
            if record["stage"] == stage.index and record["value"] is not None
        }
        if row and self._trackers:
            self._waiting.append((self._steps_before(stage.index + 1), row | _place(stage)))
            # Before the first stage begins no tracker is set up: what set-up needs, only a trainer has.
            if self._arguments is not None:
                self._catch_up()

    def close(self) -> None:
        """End the tracker run; a second call does nothing."""
        if self._waiting:
            # Nothing was left to train, so nothing of the trainer's device settings can be disturbed any more.
            on_cpu = not torch.accelerator.is_available()
            state = TrainerState(global_step=self._waiting[0][0], is_world_process_zero=True)
            arguments = TrainingArguments(output_dir=str(self.experiment.folder.path), report_to="none", use_cpu=on_cpu)
            self.begin(arguments, state, {})
        if self._arguments is not None:
            self._each("on_train_end", self._last_state, **self._ending)
        for tracker in list(self._trackers):
            self._try(tracker, tracker.close)
        self._trackers, self._ending, self._waiting = [], {}, []

    # --- called by the stages' callbacks ----------------------------------------------------------------

    def begin(self, arguments: TrainingArguments, state: TrainerState, given: Mapping[str, Any]) -> None:
        """Set the trackers up, once; ``state`` has the global step."""
        if self._arguments is not None or not self._trackers:
            return
        # The arguments are the first stage's; what names the run is the experiment's.
        arguments = copy.copy(arguments)
        arguments.output_dir, arguments.run_name = str(self.experiment.folder.path), self.experiment.name
        self._arguments, self._last_state = arguments, state
        self._ending = {name: given[name] for name in ("model", "processing_class") if name in given}
        for tracker in list(self._trackers):
            self._try(tracker, partial(tracker.open, arguments, state.global_step))
        self._each("on_train_begin", state, **self._ending)
        self._catch_up()

    def log(self, state: TrainerState, logs: Mapping[str, Any]) -> None:
        """A record at the state's global step."""
        if self._arguments is not None:
            self._last_state = state
            self._each("on_log", state, logs=logs)

    def saved(self, checkpoint: Path, step: int) -> None:
        """A checkpoint is complete, at this global step."""
        for tracker in list(self._trackers):
            self._try(tracker, partial(tracker.saved, checkpoint, step))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table in the trackers that have such a thing."""
        for tracker in list(self._trackers):
            self._try(tracker, partial(tracker.table, name, columns, rows))

    def _catch_up(self) -> None:
        waiting, self._waiting = self._waiting, []
        for step, row in waiting:
            self.log(TrainerState(global_step=step, is_world_process_zero=True), row)

    # --- guests -------------------------------------------------------------------------------------------

    def _each(self, event: str, state: TrainerState, **given: Any) -> None:
        for tracker in list(self._trackers):
            own = {name: dict(value) if isinstance(value, Mapping) else value for name, value in given.items()}
            # A control of its own: what a tracker sets there must not steer the training.
            verb = getattr(tracker.callback, event)
            self._try(tracker, partial(verb, self._arguments, state, TrainerControl(), **own))

    def _try(self, tracker: Tracker, act: Callable[[], object]) -> None:
        """Do it; a tracker that raises is dropped."""
        try:
            act()
        except Exception as error:
            if tracker in self._trackers:
                self._trackers.remove(tracker)
                self.experiment.say(f"tracker  {tracker.name} failed and is off from here on: {shown(error)}")
                self._try(tracker, tracker.close)

    def _steps_before(self, stage: int) -> int:
        """Optimizer steps of all stages before the one with this index."""
        lines = read_records(self.experiment.folder.path / "journal.jsonl", ("stage", "event"))
        return sum(int(line.get("steps", 0)) for line in lines if line["event"] == "trained" and line["stage"] < stage)


class _StageCallback(TrainerCallback):
    """Passes a stage's events on, its steps counted after those of the stages before."""

    def __init__(self, trackers: Trackers, stage: Stage, first_step: int) -> None:
        self.trackers, self.stage, self.first_step = trackers, stage, first_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trackers.begin(args, self._shifted(state), kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.trackers.log(self._shifted(state), {**(logs or {}), **_place(self.stage)})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero:
            self.trackers.saved(checkpoint, self._shifted(state).global_step)

    def _shifted(self, state: TrainerState) -> TrainerState:
        shifted = copy.copy(state)
        shifted.global_step += self.first_step
        return shifted


def _names(report_to: str | Sequence[str] | None) -> list[str]:
    """The names asked for, each once, "all" and "none" resolved."""
    given = [report_to] if isinstance(report_to, str) else list(report_to or ())
    names = dict.fromkeys(name.strip() for text in given for name in text.split(",") if name.strip())
    if "wandb" in names or "all" in names:
        prepare_wandb()
    if "all" in names:
        return list(get_available_reporting_integrations())
    names.pop("none", None)
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            near = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK, 1)
            known = f"the trackers are {', '.join(sorted(INTEGRATION_TO_CALLBACK))}, and all or none"
            raise UserError(f"report_to: no tracker is called {name!r}", fix=f"{near[0]}?" if near else known)
    return list(names)


def _place(stage: Stage) -> dict[str, Any]:
    """Where in the sequence a record belongs."""
    return {"stage": stage.index, "round": stage.round, "task": "+".join(stage.tasks) or "start"}
