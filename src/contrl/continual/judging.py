"""What a row of the results matrix holds: which tasks are judged after a stage, and how each of them is.

Training and judging a saved model afterwards go through the same code with the same plan, so a score is the same number
whenever it is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from contrl.continual.estimate import Judged
from contrl.continual.plan import Plan
from contrl.continual.run_folder import RunFolder
from contrl.engine.reference_rows import ReferenceRows
from contrl.evaluation.scores import Settings, TaskScore, evaluate_task, remember_start
from contrl.interfaces import Task, TaskSequence
from contrl.models.load import Policy


def tasks_after(sequence: TaskSequence, row: int, which: str) -> list[Task]:
    """The tasks of a row, those without rows to judge by left out; row 0 comes before any training.

    Args:
        which: all tasks; those ``seen``: trained in the stages up to this row; ``seen+next``: also those of the stage
            after it; or none.
    """
    if which == "all":
        return [task for task in sequence.tasks if task.eval]
    last = {"none": 0, "seen": row, "seen+next": row + 1}[which]
    names = {name for stage in sequence.stages if stage.index <= last for name in stage.tasks}
    return [task for task in sequence.tasks if task.eval and task.name in names]


def count_judged(plan: Plan) -> Judged:
    """What all rows of a plan come to."""
    if not plan.evaluates:
        return Judged()
    rows = range(0 if plan.at_start else 1, len(plan.sequence.stages) + 1)
    tasks = [task for row in rows for task in tasks_after(plan.sequence, row, plan.eval_tasks)]
    sampled = [task for task in tasks if task.metric is not None and task.metric.score is not None]
    num_items, num_sampled = sum(len(task.eval) for task in tasks), sum(len(task.eval) for task in sampled)
    return Judged(
        cells=len(tasks),
        sampled=num_sampled * plan.num_samples,
        calls=len(sampled),
        forced=num_items - num_sampled,
        probed=_count_probed(plan) if tasks else 0,
        max_new_tokens=plan.max_new_tokens,
    )


def _count_probed(plan: Plan) -> int:
    """Every probe answer is sampled and run once at the start, and run after the stages whose row has its task."""
    if "scores" in plan.method_for(plan.sequence.stages[0]).needs:
        return 0
    rows = range(1, len(plan.sequence.stages) + 1)
    judged = [task for row in rows for task in tasks_after(plan.sequence, row, plan.eval_tasks)]
    return sum(min(plan.drift_prompts, len(task.eval)) for task in [*plan.sequence.tasks, *judged])


@dataclass
class Judging:
    """Judges a policy, as it is at the moment of asking, on the tasks of a plan.

    Attributes:
        start: what the run's first weights said of the rows, for methods that judge the change.
    """

    plan: Plan
    folder: RunFolder
    policy: Policy
    rank: int = 0
    world_size: int = 1
    start: ReferenceRows = field(default_factory=ReferenceRows)

    def row(self, row: int, which: str | None = None) -> list[Task]:
        """The tasks of a row, by default those that the plan asks for; none of a run that does not judge at all."""
        if not self.plan.evaluates or (row == 0 and which is None and not self.plan.at_start):
            return []
        return tasks_after(self.plan.sequence, row, which or self.plan.eval_tasks)

    def settings(self, task: Task) -> Settings:
        """How a task is judged."""
        plan = self.plan
        return Settings(
            plan.max_new_tokens,
            plan.tokens_per_chunk,
            self.rank,
            self.world_size,
            method=plan.judge_for(task),
            temperature=plan.temperature,
            num_samples=plan.num_samples,
            seed=plan.seed,
            start=self.start,
        )

    def score(self, task: Task) -> TaskScore:
        """The policy as it is now on a task's held-out rows."""
        return evaluate_task(self.policy.model, self.policy.tokenizer, task, self.settings(task))

    def remember_start(self) -> None:
        """What the first weights say of the rows to judge by: to be called while the policy still has them."""
        path = self.folder.path / "eval" / f"start-{self.rank}.safetensors"
        self.start.load(path)
        known = len(self.start.values)
        for task in self.plan.sequence.tasks if self.plan.evaluates else ():
            remember_start(self.policy.model, self.policy.tokenizer, task, self.settings(task))
        if len(self.start.values) > known:
            self.start.save(path)
