"""What the stage loop is given: a plan, already resolved, and whom to tell about its progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contrl.config import BetweenTasksConfig
from contrl.interfaces import Context, Method, Stage, Strategy, Task, TaskSequence
from contrl.rollout.score import ScoreSettings


@dataclass
class Plan:
    """Everything the loop needs, already resolved.

    Attributes:
        method_for, training_for: of a stage; a task may override fields of the run's.
        prompts_per_step: groups of one optimizer step over all ranks.
        max_new_tokens: length limit in evaluation.
        evaluates: a base stage is not evaluated.
        eval_tasks: which tasks are judged after a stage: all, seen, seen+next or none.
        temperature, num_samples: of completions that are judged; several also give pass@k.
        drift_prompts: prompts of each task on which the drift from the first weights is measured; 0 measures none.
        max_bad_rows: unusable rows that may be left out of a stage.
        max_prompt_tokens: longer prompts are left out, of methods that sample.
        cache: folder of the reference's log-probabilities, kept between runs.
        card: facts for the page beside saved weights.
        log_samples_every: steps between tables of sampled answers; 0 writes none.
        scoring: what happens when a reward fails.
        between_tasks: what a stage takes over from the one before.
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
    eval_tasks: str = "all"
    at_start: bool = True
    temperature: float = 0.0
    num_samples: int = 1
    drift_prompts: int = 0
    max_bad_rows: int = 0
    max_prompt_tokens: int | None = None
    cache: Path | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    log_samples_every: int = 0
    scoring: ScoreSettings = field(default_factory=ScoreSettings)
    between_tasks: BetweenTasksConfig = field(default_factory=BetweenTasksConfig)

    def num_rows(self, stage: Stage, strategy: Strategy) -> int:
        """Rows that a stage trains on, before there is a model."""
        nothing: Any = None
        context = Context(nothing, nothing, self.method_for(stage), self.sequence, stage, self.seed)
        tasks = [self.sequence.task(name) for name in stage.tasks]
        return len(strategy.rows(context, [(task, row) for task in tasks for row in task.train]))

    def judge_for(self, task: Task) -> Method:
        """The method that judges a task teacher-forced: that of the first stage it is learnt in, if it is."""
        visits = (stage for stage in self.sequence.stages if task.name in stage.tasks)
        return self.method_for(next(visits, Stage(0, (task.name,))))


@dataclass
class Progress:
    """Where the loop tells what it does; the command line overrides what it shows."""

    say: Callable[[str], None] = lambda text: None
    callbacks: Callable[[Stage, int], list[Any]] = lambda stage, steps: []
    stop_signal: Callable[[], int] = lambda: 0
    scores: Callable[[Stage], None] = lambda stage: None
