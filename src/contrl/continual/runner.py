"""The stage loop: for each stage train, let the strategies look back, save, and evaluate every task.

What crosses a task boundary is the weights, the strategies' state and the results matrix; optimizer and schedule
start anew. Every phase is journalled once what it produced is on disk, so a run killed anywhere continues where
it was and ends with the same weights, scores and state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from contrl.continual.cards import with_results
from contrl.continual.carried import carried_into, keep_optimizer, reset_adapter
from contrl.continual.context import Contexts
from contrl.continual.drift import Drift
from contrl.continual.judging import Judging
from contrl.continual.logs import MetricsLog
from contrl.continual.plan import Plan, Progress
from contrl.continual.rotation import Rotate, Rotation, checkpoints, remove_checkpoints
from contrl.continual.run_folder import RunFolder
from contrl.continual.values import prepare_value
from contrl.continual.weights import weight_changes
from contrl.continual.windows import check_window, open_window
from contrl.engine.arguments import (
    StageSettings,
    build_arguments,
    count_steps,
    describe_device,
    micro_batch,
    steps_per_epoch,
)
from contrl.engine.checkpoint import load_state, newest_checkpoint, save_state, whole_folder
from contrl.engine.rows import prepare_all, prepare_row
from contrl.engine.trainer import Engine
from contrl.engine.work import Work
from contrl.errors import Interrupted
from contrl.evaluation.scores import TaskScore
from contrl.faults import reach
from contrl.interfaces import Context, Group, Method, OnlineMethod, Row, Stage, Strategy, Task
from contrl.models.card import write_card
from contrl.models.load import Policy, load_weights
from contrl.models.value_head import load_value, save_value, without_value
from contrl.rollout.external import Sampler

STRATEGY = "strategy"


@dataclass
class Runner:
    """Runs a plan in a run folder, from wherever the journal says it is.

    Attributes:
        base: folder of the untouched weights; None where nobody will compare with them.
        optimizers: an optimizer and a schedule of the caller's own, for a sequence of one stage.
        reference: a frozen model of the caller's own, the reference of every stage.
        checkpoint_of: which checkpoint of a stage's folder to continue from, if any.
        holds_out: prepare held-out rows even where nothing asks for them while training, to be evaluated afterwards.
        sampler: another program that samples in the policy's place.
        engine: of the stage that was begun last.
        contexts: makes what strategies see.
    """

    plan: Plan
    folder: RunFolder
    policy: Policy
    strategy: Strategy
    base: Path | None
    progress: Progress = field(default_factory=Progress)
    rank: int = 0
    world_size: int = 1
    optimizers: tuple[Any, Any] = (None, None)
    reference: Any = None
    checkpoint_of: Callable[[Path], Path | None] = newest_checkpoint
    holds_out: bool = False
    sampler: Sampler | None = None
    engine: Engine | None = field(default=None, init=False)
    _told: str = field(default="", init=False)
    contexts: Contexts = field(init=False)
    _judging: Judging = field(init=False)
    _drift: Drift = field(init=False)

    def __post_init__(self) -> None:
        self.contexts = Contexts(self.plan, self.policy, self.base, self.rank, self.world_size, self.reference)
        self._judging = Judging(self.plan, self.folder, self.policy, self.rank, self.world_size)
        self._drift = Drift(self.plan, self.folder, self.policy, self.rank, self.world_size)

    # --- the loop -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train and evaluate every stage that is not complete yet.

        Raises:
            Interrupted: after a saved stop on a signal.
        """
        self.folder.tidy()
        self._barrier()
        self.remember_start(judges=self.plan.eval_tasks != "none")
        self._continue_from_last()
        self.evaluate(Stage(0, ()))
        for stage in self.plan.sequence.stages:
            if not self.folder.done(stage.index, "saved"):
                self._stage(stage)
                reach("between_stages")
        if not self.folder.is_flat:
            self.folder.publish_model(self.folder.stage(self.plan.sequence.stages[-1]) / "final")
        self._barrier()

    def _continue_from_last(self) -> None:
        """Weights and strategy state of the last stage that has a final folder."""
        for stage in reversed(self.plan.sequence.stages):
            if self.folder.done(stage.index, "after_task"):
                self.restore(stage)
                return

    def restore(self, stage: Stage) -> None:
        """Put policy and strategies into the state in which a trained stage left them."""
        final = self.folder.stage(stage) / "final"
        load_weights(self.policy.model, final)
        prepare_value(self.policy.model, self.plan.method_for(stage), self.base, self.plan.seed)
        load_value(self.policy.model, final)
        self.strategy.load_state_dict(load_state(final, STRATEGY) or {})

    def _stage(self, stage: Stage) -> None:
        folder = self.folder.stage(stage)
        context = self.contexts.make(stage)
        if not self.folder.done(stage.index, "after_task"):
            if self.plan.between_tasks.adapter == "reset" and self.contexts.start is not None:
                reset_adapter(self.policy.model, self.contexts.start)
            self.strategy.before_task(context)
            self._train(stage, folder, context)
            reach("after_task")
            self._look_back(context)
            reach("looked_back")
            self._save_final(folder)
            self.folder.mark(stage.index, "after_task")
            self._barrier()
        self.evaluate(stage)
        self._weigh(stage)
        self._prune(stage, folder)
        self.folder.mark(stage.index, "saved")
        self._barrier()

    def _look_back(self, context: Context) -> None:
        """The strategies measure, store and merge; what they report is logged with the stage's last step."""
        told: dict[str, tuple[Any, Any]] = {}
        context.report = told.update
        self.strategy.after_task(context)
        step = int((self.folder.noted(context.stage.index, "trained") or {}).get("steps", 0))
        values = {name: float(total) / float(count) for name, (total, count) in told.items()}
        MetricsLog(self.folder, context.stage).write(step, values)

    # --- training -------------------------------------------------------------------------------------

    def begin(self, stage: Stage, context: Context | None = None) -> tuple[Engine, int, Rotation]:
        """The engine of a stage with its rows, how many steps it trains and which checkpoints it keeps."""
        context = context or self.contexts.make(stage)
        folder, method = self.folder.stage(stage), context.method
        tasks = [self.plan.sequence.task(name) for name in stage.tasks]
        rows = self.strategy.rows(context, [(task, row) for task in tasks for row in task.train])
        # Trackers outlive a stage, so its trainer has none of its own.
        training = {**self.plan.training_for(stage), "report_to": "none"}
        seed = self.plan.seed * 1000 + stage.index
        groups = self._prepared(rows, method, seed)
        held_out = [(task, row) for task in tasks for row in task.eval]
        evaluates = bool(held_out) and training.get("eval_strategy", "no") != "no"
        num_steps = count_steps(training, len(groups), self.plan.prompts_per_step, method)
        settings = StageSettings(
            folder=folder,
            seed=seed,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch(len(groups), self.plan.prompts_per_step, method),
            rows=micro_batch(self.plan.prompts_per_step, training, self.world_size),
            evaluates=evaluates,
        )
        arguments = build_arguments(training, settings)
        if arguments.world_size != self.world_size:
            raise RuntimeError(f"the trainer sees {arguments.world_size} processes and there are {self.world_size}")
        rotation = Rotation.of(training, num_steps, settings.steps_per_epoch)
        prepare_value(self.policy.model, method, self.base, self.plan.seed, begins=True)
        engine = self._engine(context, groups, arguments, num_steps)
        if training.get("train_sampling_strategy") == "sequential":
            engine.work.seed = None
        if evaluates or (held_out and self.holds_out):
            engine.work.eval_groups += self._prepared(held_out, method, seed)
        if len(self.plan.sequence.stages) > 1:
            engine.carried = carried_into(stage, num_steps, self.plan, self.folder, self.strategy)
        self.engine = engine
        return engine, num_steps, rotation

    def _train(self, stage: Stage, folder: Path, context: Context) -> None:
        engine, num_steps, rotation = self.begin(stage, context)
        method = context.method
        if not self.folder.is_flat:
            engine.add_callback(Rotate(folder, rotation))
        self._tell_device(engine.args)
        checkpoint = self.checkpoint_of(folder)
        if checkpoint is None:
            self.folder.mark(stage.index, "started", steps=num_steps)
        else:
            check_window(checkpoint, self.world_size)
            self.folder.mark(stage.index, "resumed_from", checkpoint=checkpoint.name, steps=num_steps)
            self.progress.say(f"stage {stage.index}: continuing from {checkpoint.name}")
        if checkpoint is not None and int(checkpoint.name.rpartition("-")[2]) >= num_steps:
            # Trained to the end, killed before after_task: nothing is left to train.
            engine.restore(checkpoint)
            load_weights(self.policy.model, checkpoint)
        else:
            engine.fit(checkpoint)
        if engine.layout_reason:
            self.folder.append(
                "metrics.jsonl", {"event": "layout", "stage": stage.index, "reason": engine.layout_reason}
            )
            if isinstance(method, OnlineMethod) and engine.routing.layout == "plain":
                self.progress.say(f"layout   a prompt is run once for each completion: {engine.layout_reason}")
        if engine.stopping and engine.state.global_step < num_steps:
            self._stop()
        self.folder.mark(stage.index, "trained", steps=num_steps, keeps=rotation.kept(list(checkpoints(folder))))

    def _prepared(self, rows: list[tuple[Task, Row]], method: Method, seed: int) -> list[Group]:
        # What there is to say about the rows was said before the model was loaded.
        limit = self.plan.max_bad_rows
        groups = prepare_all(rows, method, self.policy.tokenizer, lambda text: None, max_bad_rows=limit)
        method.pair(groups, seed)
        return groups

    def _tell_device(self, arguments: TrainingArguments) -> None:
        """Where and how is trained, once; a base stage leaves it to the run."""
        checkpointing = bool(getattr(arguments, "activation_checkpointing", False))
        text = f"device   {describe_device(arguments, checkpointing=checkpointing)}"
        if self.plan.evaluates and text != self._told:
            self._told = text
            self.progress.say(text)

    def _engine(self, context: Context, groups: list[Group], arguments: TrainingArguments, num_steps: int) -> Engine:
        method, stage = context.method, context.stage
        by_id = {task.name: {str(row["id"]): row for row in task.train} for task in self.plan.sequence.tasks}
        work = Work(
            method=method,
            strategy=self.strategy,
            context=context,
            groups=groups,
            prompts_per_step=self.plan.prompts_per_step,
            num_steps=num_steps,
            tokens_per_pass=self.plan.tokens_per_pass,
            seed=arguments.seed,
            prepare=lambda task, row: prepare_row(task, row, method, self.policy.tokenizer),
            find_row=lambda task, row_id: by_id[task][row_id],
            should_stop=lambda: self.progress.stop_signal() != 0,
            say=self.progress.say,
            packed=method.packing,
            optimizers=self.optimizers,
        )
        measures = method.measures if isinstance(method, OnlineMethod) else frozenset()
        if "reference_logps" in method.needs | measures:
            work.reference = self.contexts.reference_scores(context)
        engine = Engine(self.policy.model, arguments, work, self.policy.tokenizer)
        context.services.groups, context.services.settings = groups, engine.pass_settings
        if isinstance(method, OnlineMethod):
            open_window(engine, self.plan, self.policy, self.folder, self.sampler)
        for callback in (MetricsLog(self.folder, stage), *self.progress.callbacks(stage, num_steps)):
            engine.add_callback(callback)
        return engine

    # --- saving -----------------------------------------------------------------------------------------

    def _save_final(self, folder: Path) -> None:
        if self.rank == 0 and not self.folder.is_flat:
            with whole_folder(folder / "final") as staging:
                with without_value(self.policy.model):
                    self.policy.model.save_pretrained(staging)
                save_value(self.policy.model, staging)
                self.policy.tokenizer.save_pretrained(staging)
                write_card(staging, with_results(self.folder.path, self.plan.card))
                save_state(staging, STRATEGY, self.strategy.state_dict())
                if self.plan.between_tasks.optimizer == "keep":
                    keep_optimizer(folder, staging)

    def _weigh(self, stage: Stage) -> None:
        """How far the stage moved each tensor, from its start and from the base."""
        if self.rank != 0 or self.base is None:
            return
        final = self.folder.stage(stage) / "final"
        before = (
            self.folder.stage(self.plan.sequence.stages[stage.index - 2]) / "final" if stage.index > 1 else self.base
        )
        records = ({"stage": stage.index, **change} for change in weight_changes(before, self.base, final))
        self.folder.append("weights.jsonl", *records)

    def _prune(self, stage: Stage, folder: Path) -> None:
        """The stage is complete: only the checkpoints that the user asked for stay."""
        if self.rank != 0 or self.folder.is_flat:
            return
        trained = self.folder.noted(stage.index, "trained") or {}
        remove_checkpoints(folder, trained.get("keeps", ()))

    # --- evaluation ---------------------------------------------------------------------------------------

    def evaluate(self, stage: Stage, which: str | None = None, *, again: bool = False) -> None:
        """Judge the policy as it is now as the matrix' row ``stage.index``; ``Stage(0, ())`` is before training.

        Args:
            which: the tasks, by default those that the plan asks for; see ``judging.tasks_after``.
            again: judge also what has a score.
        """
        tasks = self._judging.row(stage.index, which)
        if not tasks or (which is None and self.folder.done(stage.index, "evaluated")):
            return
        scored = {} if again else self.folder.scored(stage.index)
        self._barrier()
        context = self.contexts.make(stage) if stage.index else None
        for task in tasks:
            if task.name not in scored:
                with self.strategy.eval_weights(context, task) if context else contextlib.nullcontext():
                    score = self.score(task)
                    drift = self._drift.measure(stage, task) if stage.index else None
                self.folder.append("drift.jsonl", *([drift] if drift else []))
                self.folder.write_score(stage.index, score)
                if score.by_source:
                    parts = "  ".join(f"{name} {value:.2f}" for name, value in score.by_source.items())
                    self.progress.say(f"{task.name}, {score.metric} by source: {parts}")
                self.stop_if_asked()
        self.folder.mark(stage.index, "evaluated")
        self._barrier()
        self._tell_scores(stage)

    def score(self, task: Task) -> TaskScore:
        """The policy as it is now on a task's held-out rows."""
        if not self._judging.start.values:
            self._judging.remember_start()
        return self._judging.score(task)

    def remember_start(self, *, judges: bool = True) -> None:
        """What is asked of the first weights later: now, while the policy still has them."""
        if judges:
            self._judging.remember_start()
            self._drift.sample()
        if self.strategy.needs_start or self.plan.between_tasks.adapter == "reset":
            self.contexts.remember_start()

    def _tell_scores(self, stage: Stage) -> None:
        scores = self.folder.scored(stage.index)
        shown = "  ".join(f"{name} {'–' if value is None else f'{value:.2f}'}" for name, value in scores.items())
        self.progress.say(f"{f'after stage {stage.index}' if stage.index else 'at the start'}: {shown}")
        self.progress.scores(stage)

    # --- stopping, ranks ------------------------------------------------------------------------------------

    def stop_if_asked(self) -> None:
        """Raise Interrupted where any rank was asked to stop; everything computed so far is on disk."""
        if self._stop_agreed():
            self._stop()

    def _stop_agreed(self) -> bool:
        device = next(self.policy.model.parameters()).device
        flag = torch.tensor(float(self.progress.stop_signal() != 0), device=device)
        if self.world_size > 1:
            torch.distributed.all_reduce(flag)
        return bool(flag > 0)

    def _stop(self) -> None:
        signum = self.progress.stop_signal() or 15
        raise Interrupted("stopped on request; everything computed so far is saved", signum=signum)

    def _barrier(self) -> None:
        if self.world_size > 1:
            torch.distributed.barrier()
