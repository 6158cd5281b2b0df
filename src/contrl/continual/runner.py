"""The stage loop: for each stage train, let the strategies look back, save, and evaluate every task.

What crosses a task boundary is the weights, the strategies' state and the results matrix; optimizer and schedule
start anew. Every phase is journalled once what it produced is on disk, so a run killed anywhere continues where
it was and ends with the same weights, scores and state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from contrl.continual.logs import MetricsLog
from contrl.continual.rotation import Rotate, Rotation, checkpoints, remove_checkpoints
from contrl.continual.run_folder import RunFolder
from contrl.continual.weights import weight_changes
from contrl.engine.arguments import (
    StageSettings,
    build_arguments,
    count_steps,
    describe_device,
    micro_batch,
    steps_per_epoch,
)
from contrl.engine.checkpoint import load_state, newest_checkpoint, save_state, whole_folder
from contrl.engine.online import Collector, RolloutWindow
from contrl.engine.rows import prepare_all, prepare_row
from contrl.engine.trainer import Engine, Work
from contrl.errors import Interrupted, UserError
from contrl.evaluation.scores import Settings, evaluate_task
from contrl.faults import reach
from contrl.interfaces import Context, Group, Method, OnlineMethod, Stage, Strategy, TaskSequence
from contrl.models.load import Policy, load_weights
from contrl.models.reference import Reference

STRATEGY = "strategy"


@dataclass
class Plan:
    """Everything the loop needs, already resolved.

    Attributes:
        method_for, training_for: of a stage; a task may override fields of the run's.
        prompts_per_step: groups of one optimizer step over all ranks.
        max_new_tokens: length limit in evaluation.
        evaluates: a base stage is not evaluated.
    """

    sequence: TaskSequence
    method_for: Callable[[Stage], Method]
    training_for: Callable[[Stage], Mapping[str, Any]]
    prompts_per_step: int
    seed: int
    tokens_per_pass: int
    tokens_per_chunk: int
    max_new_tokens: int
    evaluates: bool = True
    at_start: bool = True


@dataclass
class Progress:
    """Where the loop tells what it does; the command line overrides what it shows."""

    say: Callable[[str], None] = lambda text: None
    callbacks: Callable[[Stage, int], list[Any]] = lambda stage, steps: []
    stop_signal: Callable[[], int] = lambda: 0


@dataclass
class Runner:
    """Runs a plan in a run folder, from wherever the journal says it is."""

    plan: Plan
    folder: RunFolder
    policy: Policy
    strategy: Strategy
    base: Path
    progress: Progress = field(default_factory=Progress)
    rank: int = 0
    world_size: int = 1
    _told: str = field(default="", init=False)

    # --- the loop -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train and evaluate every stage that is not complete yet.

        Raises:
            Interrupted: after a saved stop on a signal.
        """
        self.folder.tidy()
        self._barrier()
        self._continue_from_last()
        if self.plan.evaluates and self.plan.at_start:
            self._evaluate(Stage(0, ()))
        for stage in self.plan.sequence.stages:
            if not self.folder.done(stage.index, "saved"):
                self._stage(stage)
                reach("between_stages")
        self.folder.publish_model(self.folder.stage(self.plan.sequence.stages[-1]) / "final")
        self._barrier()

    def _continue_from_last(self) -> None:
        """Weights and strategy state of the last stage that has a final folder."""
        for stage in reversed(self.plan.sequence.stages):
            final = self.folder.stage(stage) / "final"
            if self.folder.done(stage.index, "after_task"):
                load_weights(self.policy.model, final)
                self.strategy.load_state_dict(load_state(final, STRATEGY) or {})
                return

    def _stage(self, stage: Stage) -> None:
        folder = self.folder.stage(stage)
        context = self._context(stage)
        if not self.folder.done(stage.index, "after_task"):
            self.strategy.before_task(context)
            self._train(stage, folder, context)
            reach("after_task")
            self.strategy.after_task(context)
            self._save_final(folder)
            self.folder.mark(stage.index, "after_task")
            self._barrier()
        if self.plan.evaluates:
            self._evaluate(stage)
        self._weigh(stage)
        self._prune(stage, folder)
        self.folder.mark(stage.index, "saved")
        self._barrier()

    def _context(self, stage: Stage) -> Context:
        return Context(
            model=self.policy.model,
            tokenizer=self.policy.tokenizer,
            method=self.plan.method_for(stage),
            sequence=self.plan.sequence,
            stage=stage,
            seed=self.plan.seed,
            rank=self.rank,
            world_size=self.world_size,
        )

    # --- training -------------------------------------------------------------------------------------

    def _train(self, stage: Stage, folder: Path, context: Context) -> None:
        method = context.method
        tasks = [self.plan.sequence.task(name) for name in stage.tasks]
        rows = self.strategy.rows(context, [(task, row) for task in tasks for row in task.train])
        groups = prepare_all(rows, method, self.policy.tokenizer, self.progress.say)
        training = dict(self.plan.training_for(stage))
        num_steps = count_steps(training, len(groups), self.plan.prompts_per_step, method)
        settings = StageSettings(
            folder=folder,
            seed=self.plan.seed * 1000 + stage.index,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch(len(groups), self.plan.prompts_per_step, method),
            rows=micro_batch(self.plan.prompts_per_step, training, self.world_size),
        )
        arguments = build_arguments(training, settings)
        if arguments.world_size != self.world_size:
            raise RuntimeError(f"the trainer sees {arguments.world_size} processes and there are {self.world_size}")
        rotation = Rotation.of(training, num_steps, settings.steps_per_epoch)
        engine = self._engine(context, groups, arguments, num_steps)
        engine.add_callback(Rotate(folder, rotation))
        self._tell_device(arguments)
        checkpoint = newest_checkpoint(folder)
        if checkpoint is None:
            self.folder.mark(stage.index, "started")
        else:
            self._check_window(checkpoint)
            self.folder.mark(stage.index, "resumed_from", checkpoint=checkpoint.name)
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
        self.folder.mark(stage.index, "trained", keeps=rotation.kept(list(checkpoints(folder))))

    def _tell_device(self, arguments: TrainingArguments) -> None:
        """Where and how is trained, once; a base stage leaves it to the run."""
        checkpointing = bool(getattr(arguments, "activation_checkpointing", False))
        text = f"device   {describe_device(arguments, checkpointing=checkpointing)}"
        if self.plan.evaluates and text != self._told:
            self._told = text
            self.progress.say(text)

    def _check_window(self, checkpoint: Path) -> None:
        """Rollouts of an open window belong to the process that sampled them, so its number cannot change there."""
        windows = [load_state(checkpoint, path.stem) or {} for path in checkpoint.glob("window-*.json")]
        if any(window.get("rollouts") for window in windows) and len(windows) != self.world_size:
            raise UserError(
                f"{checkpoint.name} was saved by {len(windows)} processes, and there are {self.world_size} now",
                where=str(checkpoint),
                why="each holds its share of rollouts that are still in use",
                fix=f"resume with {len(windows)} processes, as in torchrun --nproc_per_node {len(windows)}",
            )

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
        )
        if "reference_logps" in method.needs:
            work.reference = Reference(self.policy.model, "previous")
        engine = Engine(self.policy.model, arguments, work, self.policy.tokenizer)
        if isinstance(method, OnlineMethod):
            collector = Collector(
                model=self.policy.model,
                tokenizer=self.policy.tokenizer,
                method=method,
                sequence=self.plan.sequence,
                context=context,
                noise_key=(self.plan.seed, stage.index),
                record=engine.record,
                autocast=engine.accelerator.autocast,
                tokens_per_chunk=self.plan.tokens_per_chunk,
            )
            work.window = RolloutWindow(method, collector, (self.plan.seed, stage.index))
        for callback in (MetricsLog(self.folder, stage), *self.progress.callbacks(stage, num_steps)):
            engine.add_callback(callback)
        return engine

    # --- saving -----------------------------------------------------------------------------------------

    def _save_final(self, folder: Path) -> None:
        if self.rank == 0:
            with whole_folder(folder / "final") as staging:
                self.policy.model.save_pretrained(staging)
                self.policy.tokenizer.save_pretrained(staging)
                save_state(staging, STRATEGY, self.strategy.state_dict())

    def _weigh(self, stage: Stage) -> None:
        """How far the stage moved each tensor, from its start and from the base."""
        if self.rank != 0:
            return
        final = self.folder.stage(stage) / "final"
        before = (
            self.folder.stage(self.plan.sequence.stages[stage.index - 2]) / "final" if stage.index > 1 else self.base
        )
        records = ({"stage": stage.index, **change} for change in weight_changes(before, self.base, final))
        self.folder.append("weights.jsonl", *records)

    def _prune(self, stage: Stage, folder: Path) -> None:
        """The stage is complete: only the checkpoints that the user asked for stay."""
        if self.rank != 0:
            return
        trained = self.folder.noted(stage.index, "trained") or {}
        remove_checkpoints(folder, trained.get("keeps", ()))

    # --- evaluation ---------------------------------------------------------------------------------------

    def _evaluate(self, stage: Stage) -> None:
        if self.folder.done(stage.index, "evaluated"):
            return
        scored = self.folder.scored(stage.index)
        self._barrier()
        settings = Settings(self.plan.max_new_tokens, self.plan.tokens_per_chunk, self.rank, self.world_size)
        with self.strategy.eval_weights(self._context(stage)) if stage.index else contextlib.nullcontext():
            for task in self.plan.sequence.tasks:
                if task.name not in scored:
                    score = evaluate_task(self.policy.model, self.policy.tokenizer, task, settings)
                    self.folder.write_score(stage.index, score)
                    if self._stop_agreed():
                        self._stop()
        self.folder.mark(stage.index, "evaluated")
        self._barrier()
        self._tell_scores(stage)

    def _tell_scores(self, stage: Stage) -> None:
        scores = self.folder.scored(stage.index)
        shown = "  ".join(f"{name} {'–' if value is None else f'{value:.2f}'}" for name, value in scores.items())
        self.progress.say(f"{f'after stage {stage.index}' if stage.index else 'at the start'}: {shown}")

    # --- stopping, ranks ------------------------------------------------------------------------------------

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
