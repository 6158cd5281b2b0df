"""From a configuration to the plan of the stage loop, and what it will cost, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from contrl.config import Resolved, RunConfig, SequenceConfig, orders
from contrl.continual import carried
from contrl.continual.estimate import Load, Size, describe, disk_bytes, require_disk, seconds
from contrl.continual.judging import count_judged
from contrl.continual.plan import Plan
from contrl.continual.rotation import Rotation
from contrl.continual.row_facts import describe_rows
from contrl.data.token_cache import cache_folder
from contrl.data.tokens import prepare_rows
from contrl.engine.arguments import count_steps, default_pass, micro_batch, steps_per_epoch
from contrl.engine.rows import prepare_all
from contrl.errors import ConfigErrors, UserError
from contrl.experiment import build_method, build_strategy, build_tasks, find
from contrl.interfaces import Group, OnlineMethod, Row, Stage, Strategy, Task, TaskSequence
from contrl.models.load import count_parameters
from contrl.rollout.score import ScoreSettings

SAMPLE = 16
"""Rows of each task whose lengths are looked at."""


def build_sequence(resolved: Resolved, say: Callable[[str], None] = lambda text: None) -> TaskSequence:
    """The tasks with their rows, in the stages that the configuration asks for; says what is not the order given.

    Raises:
        ConfigErrors: names that are no tasks of a named sequence, or tasks of one stage that disagree.
        UserError: as ``build_tasks``.
    """
    config = resolved.config
    tasks = build_tasks(config, say)
    names = [task.name for task in tasks]
    found = list(orders.problems(names, config.order, config.stages))
    if not found:
        groups = orders.arrange(names, config.order, config.order_seed, config.stages)
        general = orders.Settings(config.method.fields, config.training)
        own = {task.name: orders.Settings(task.method, task.training) for task in tasks}
        found = list(orders.conflicts(groups, general, own))
    if found:
        name = config.tasks.name if isinstance(config.tasks, SequenceConfig) else "tasks"
        errors = [UserError(p.what, where=_origin(resolved, p.path) or name, why=p.why, fix=p.fix) for p in found]
        raise ConfigErrors(errors)
    sequence = TaskSequence.staged(tasks, groups, config.rounds)
    if config.order != "given" or config.stages is not None:
        seed = f" (order_seed {config.order_seed})" if config.order == "random" else ""
        kind = config.order if isinstance(config.order, str) else "listed"
        say(f"order    {kind}{seed}: {', '.join('+'.join(group) for group in groups)}")
    learnt = {name for group in groups for name in group}
    if judged := [name for name in names if name not in learnt]:
        say(f"judged   {', '.join(judged)}: in no stage, so never learnt")
    return sequence


def _origin(resolved: Resolved, path: str) -> str:
    """Where a value was given; a part of a list where the list was. "" for a default and for what has no origin."""
    while path and path not in resolved.origins:
        path = path.rpartition(".")[0]
    found = resolved.origins.get(path, "")
    return "" if found == "default" else found


def build_plan(config: RunConfig, sequence: TaskSequence, world_size: int) -> Plan:
    """What the stage loop needs to know, and the batch arithmetic checked."""
    training = config.training
    parts = int(training.get("per_device_train_batch_size", 8)) * int(training.get("gradient_accumulation_steps", 1))
    prompts_per_step = config.prompts_per_step or parts * world_size
    method_for = build_method(config, sequence)
    first = method_for(sequence.stages[0])

    def training_for(stage: Stage) -> dict[str, Any]:
        merged = dict(training)
        for name in stage.tasks:
            merged |= sequence.task(name).training
        return merged

    for stage in sequence.stages:
        micro_batch(prompts_per_step, training_for(stage), world_size)
    limit = config.evaluation.max_new_tokens
    if limit is None:
        limit = first.max_new_tokens if isinstance(first, OnlineMethod) else 256
    return Plan(
        sequence=sequence,
        method_for=method_for,
        training_for=training_for,
        prompts_per_step=prompts_per_step,
        seed=config.seed,
        tokens_per_pass=config.tokens_per_pass or default_pass(config.training),
        tokens_per_chunk=config.evaluation.batch_tokens,
        max_new_tokens=limit,
        eval_tasks=config.evaluation.tasks,
        at_start=config.evaluation.at_start,
        temperature=config.evaluation.temperature,
        num_samples=config.evaluation.num_samples,
        drift_prompts=config.evaluation.drift_prompts,
        max_bad_rows=config.max_bad_rows,
        max_prompt_tokens=config.max_prompt_tokens,
        log_samples_every=config.log_samples_every,
        cache=cache_folder() / "reference",
        scoring=ScoreSettings(config.rewards.errors, config.rewards.seconds),
        between_tasks=config.between_tasks,
    )


def describe_model(config: RunConfig, sequence: TaskSequence, command: Sequence[str]) -> dict[str, Any]:
    """What the page beside the trained weights says of them."""
    tasks = config.tasks
    data = [str(tasks.fields.get("path", tasks.name))] if isinstance(tasks, SequenceConfig) else [t.data for t in tasks]
    return {
        "title": Path(config.output_dir).name,
        "base": config.model.name_or_path,
        "data": data,
        "method": {"name": config.method.name, **config.method.fields},
        "strategy": [plugin.name for plugin in config.strategies] or ["naive"],
        "sequence": [stage.folder for stage in sequence.stages],
        "command": list(command),
    }


def usable(
    sequence: TaskSequence,
    plan: Plan,
    tokenizer: Any,
    say: Callable[[str], None],
    facts: dict[str, Any] | None = None,
) -> TaskSequence:
    """The sequence without the rows that cannot be used: found, counted and told before a model is loaded.

    Args:
        sequence, plan, tokenizer: of the run.
        say: told in one line what a person should know.
        facts: gets what ``describe_rows`` tells of each task, by name.

    Raises:
        UserError: when they are more than ``plan.max_bad_rows``, or no prompt is short enough.
    """
    tasks = []
    for task in sequence.tasks:
        method = plan.judge_for(task)
        # Completions are judged on their prompts; teacher-forced scores need the whole row.
        forced = task.metric is not None and task.metric.score is None and not isinstance(method, OnlineMethod)
        train, groups = _kept(task, task.train, plan, tokenizer, say)
        held_out = _kept(task, task.eval, plan, tokenizer, say)[0] if forced else task.eval
        if (limit := plan.max_prompt_tokens) is not None and isinstance(method, OnlineMethod):
            had_rows = bool(train)
            train = _short(task, train, limit, plan, tokenizer, say)
            held_out = _short(task, held_out, limit, plan, tokenizer, lambda text: None)
            if had_rows and not train:
                raise UserError(f"task {task.name} has no prompt of at most {limit} tokens")
        if facts is not None:
            known = {str(row["id"]) for row in train}
            used = [group for group in groups if group.row_id in known]
            facts[task.name] = describe_rows(used, task.train, held_out)
        tasks.append(replace(task, train=train, eval=held_out))
    return replace(sequence, tasks=tuple(tasks))


def _kept(
    task: Task, rows: Sequence[Row], plan: Plan, tokenizer: Any, say: Callable[[str], None]
) -> tuple[Sequence[Row], list[Group]]:
    """The rows that can be used, as they are and prepared."""
    if not rows:
        return rows, []
    method = plan.judge_for(task)
    groups = prepare_all([(task, row) for row in rows], method, tokenizer, say, max_bad_rows=plan.max_bad_rows)
    if len(groups) == len(rows):
        return rows, groups
    known = {group.row_id for group in groups}
    return [row for row in rows if str(row["id"]) in known], groups


def _short(
    task: Task, rows: Sequence[Row], limit: int, plan: Plan, tokenizer: Any, say: Callable[[str], None]
) -> Sequence[Row]:
    """The rows whose prompt has at most so many tokens; a prompt cut short would ask something else."""
    kept = []
    for row, made in zip(rows, prepare_rows(rows, plan.judge_for(task), tokenizer), strict=True):
        if isinstance(made, UserError) or len(made.prompt_ids) <= limit:
            kept.append(row)
    if len(kept) < len(rows):
        say(f"task {task.name}: {len(rows) - len(kept)} of {len(rows)} prompts have more than {limit} tokens: left out")
    return kept


def announce(config: RunConfig, plan: Plan, base: Plan | None) -> list[str]:
    """Batch arithmetic, steps, time, memory, disk; refuses a run whose files cannot fit.

    Args:
        config: the run's.
        plan: of the sequence.
        base: of a base stage that is still to be trained.

    Raises:
        EnvironmentFault: when the disk is too small.
    """
    lines = [carried.describe(plan)] if len(plan.sequence.stages) > 1 else []
    found = count_parameters(config.model, classifier="scores" in find("method", config.method.name).needs)
    load = load_of(plan, _characters(config), build_strategy(config.strategies))
    before = None if base is None else load_of(base, _characters(config))
    if found is None:
        return [f"model    {config.model.name_or_path}, to be fetched", *describe(None, load, before), *lines]
    size = Size(*found)
    require_disk(Path(config.output_dir).absolute(), disk_bytes(size, load))
    return [*describe(size, load, before), *lines]


def rough_seconds(config: RunConfig, plan: Plan, operations_per_second: float) -> float | None:
    """About how long a plan takes on one process of this device; None for a model whose size is not known yet."""
    found = count_parameters(config.model, classifier="scores" in find("method", config.method.name).needs)
    if found is None:
        return None
    strategy = build_strategy(config.strategies)
    return seconds(Size(*found), load_of(plan, _characters(config), strategy), operations_per_second)


def _characters(config: RunConfig) -> float:
    """Of text to a token."""
    return 1.0 if config.model.name_or_path == "tiny" else 3.5


def load_of(plan: Plan, characters: float, strategy: Strategy | None = None) -> Load:
    """The work of a plan; ``characters`` of text make about one token, ``strategy`` may give stages other rows."""
    steps, rotations = [], []
    for stage in plan.sequence.stages:
        rows = plan.num_rows(stage, strategy or Strategy())
        training, method = plan.training_for(stage), plan.method_for(stage)
        steps.append(count_steps(training, rows, plan.prompts_per_step, method))
        per_epoch = steps_per_epoch(rows, plan.prompts_per_step, method)
        rotations.append(Rotation.of(training, steps[-1], per_epoch))
    sample = [row for task in plan.sequence.tasks for row in list(task.train)[:SAMPLE]]
    return Load(
        method=plan.method_for(plan.sequence.stages[0]),
        steps=steps,
        rotations=rotations,
        prompts_per_step=plan.prompts_per_step,
        prompt_tokens=mean_length(sample, ("prompt", "text", "messages")) / characters,
        completion_tokens=mean_length(sample, ("completion",)) / characters,
        judged=count_judged(plan),
    )


def mean_length(rows: Sequence[Row], columns: Sequence[str]) -> float:
    """Characters of the columns, messages without their roles."""
    lengths = [len(_text(row[column])) for row in rows for column in columns if column in row]
    return sum(lengths) / max(len(rows), 1)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "".join(str(item.get("content", "")) if isinstance(item, dict) else str(item) for item in value)
    return str(value)
