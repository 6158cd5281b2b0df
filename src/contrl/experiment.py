"""The only file that picks concrete classes: names in a configuration become methods, strategies, tasks, a run.

A new method or strategy is one line in a dictionary here. Anything may also be given by import path,
``module:Name``, found from the working directory, without touching the package.
"""

from __future__ import annotations

import difflib
import importlib
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from contrl.config import PluginConfig, RunConfig, SequenceConfig, TaskConfig
from contrl.data.prompts import to_prompts
from contrl.data.sources import find_splits, hold_out, overlap, read_rows, with_ids
from contrl.data.token_cache import cache_folder
from contrl.errors import UserError
from contrl.interfaces import LIKELIHOOD, Method, Metric, OnlineMethod, Reward, Row, Stage, Strategy, Task, TaskSequence
from contrl.models.load import load_scorer
from contrl.rewards.functions import RewardFunction, Rewards, name_of
from contrl.rewards.model import ClassifierReward, resolve_reward_model
from contrl.strategies.composite import combine

METHODS = {
    "cpo": "contrl.methods.cpo:CPO",
    "dpo": "contrl.methods.dpo:DPO",
    "grpo": "contrl.methods.grpo:GRPO",
    "kto": "contrl.methods.kto:KTO",
    "orpo": "contrl.methods.orpo:ORPO",
    "ppo": "contrl.methods.ppo:PPO",
    "reward": "contrl.methods.reward_model:RewardModel",
    "rloo": "contrl.methods.rloo:RLOO",
    "sft": "contrl.methods.sft:SFT",
}
STRATEGIES = {
    "adapters": "contrl.strategies.adapters:Adapters",
    "averaging": "contrl.strategies.averaging:Averaging",
    "copr": "contrl.strategies.copr:COPR",
    "cppo": "contrl.strategies.cppo:CPPO",
    "ewc": "contrl.strategies.ewc:EWC",
    "independent": "contrl.strategies.independent:Independent",
    "joint": "contrl.strategies.joint:Joint",
    "kl": "contrl.strategies.kl:KL",
    "l2": "contrl.strategies.l2:L2",
    "mas": "contrl.strategies.mas:MAS",
    "naive": "contrl.strategies.naive:Naive",
    "replay": "contrl.strategies.replay:Replay",
}
SEQUENCES = {
    "countdown": "contrl.continual.sequences:Countdown",
    "cppo-reward": "contrl.continual.sequences:CPPOReward",
    "cppo-rl": "contrl.continual.sequences:CPPORL",
    "dataset": "contrl.continual.sequences:Dataset",
    "debug": "contrl.continual.sequences:Debug",
    "opposite_preferences": "contrl.continual.synthetic:OppositePreferences",
    "part": "contrl.continual.parts:Part",
    "tables_and_rules": "contrl.continual.synthetic:TablesAndRules",
    "ultrafeedback2anthropic": "contrl.continual.sequences:UltrafeedbackToAnthropic",
    "ultrafeedback2anthropic_reduced": "contrl.continual.sequences:UltrafeedbackToAnthropicReduced",
}
REWARDS = {
    "accuracy": "contrl.rewards.rules:Accuracy",
    "classifier": "contrl.experiment:Classifier",
    "cosine": "contrl.rewards.rules:Cosine",
    "countdown": "contrl.rewards.countdown:countdown_reward",
    "exact_match": "contrl.rewards.rules:exact_match",
    "judge": "contrl.rewards.remote:RemoteReward",
    "length": "contrl.rewards.rules:Length",
    "overlong": "contrl.rewards.rules:Overlong",
    "repetition": "contrl.rewards.rules:Repetition",
    "think_format": "contrl.rewards.rules:think_format",
}
MODELS = ("classifier", "judge")
"""Rewards that are models."""
METRICS = {
    "success": "contrl.continual.sequences:COUNTDOWN_METRIC",
    "exact_match": "contrl.rewards.rules:exact_match",
    "logp": "contrl.interfaces:LIKELIHOOD",
}
JUDGED_BY = {"countdown": "success"}
"""The metric of a task that names only a reward, where the two differ."""
SCORE = "eval_score"
"""The metric of a reward model, whose scores have no mark that means correct."""

_KINDS = {
    "method": METHODS,
    "strategy": STRATEGIES,
    "sequence": SEQUENCES,
    "reward": REWARDS,
    "metric": METRICS,
}


def find(kind: str, name: str) -> Any:
    """The class or function called ``name``.

    Args:
        kind: method, strategy, sequence, reward or metric.
        name: a name of this file's dictionaries, or ``module:Name``.

    Raises:
        UserError: with the nearest known name, or why the import failed.
    """
    known = _KINDS[kind]
    path = known.get(name, name)
    if ":" not in path:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"unknown {kind} {name!r}", fix=f"{hint}known: {', '.join(sorted(known))}; or an import path module:Name"
        )
    module, _, attribute = path.partition(":")
    try:
        found = getattr(_import(module), attribute)
    except ModuleNotFoundError as error:
        raise UserError(
            f"there is no module {error.name!r}", why=f"needed for the {kind} {name!r}", fix=f"looked in {Path.cwd()}"
        ) from error
    except AttributeError:
        raise UserError(f"the module {module} has no {attribute!r}", why=f"named as a {kind}") from None
    bases: Mapping[str, type] = {"method": Method, "strategy": Strategy}
    if kind in bases and not (isinstance(found, type) and issubclass(found, bases[kind])):
        raise UserError(f"{name!r} is no {kind}", fix=f"derive it from contrl.interfaces.{bases[kind].__name__}")
    return found


def _import(module: str) -> Any:
    """A module, found from the working directory too; one that breaks while it is imported is the user's to mend."""
    if str(Path.cwd()) not in sys.path:
        # A console script does not have the working directory on its path; `python -m` has.
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # whatever the module's own code raises
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename}:{last.lineno}"
        if isinstance(error, SyntaxError) and error.filename:
            where = f"{error.filename}:{error.lineno}"
        what = f"importing {module} failed: {type(error).__name__}: {error}"
        raise UserError(what, where=where, fix="--debug shows the whole traceback") from error


# --- tasks --------------------------------------------------------------------------------------------


def build_tasks(config: RunConfig, say: Callable[[str], None] = lambda text: None) -> list[Task]:
    """The tasks of a run with their rows.

    Raises:
        UserError: for rows that cannot be read, or names that occur twice.
    """
    chosen = RewardChoice(say)
    if isinstance(config.tasks, SequenceConfig):
        tasks = _sequence(config.tasks, say)
    else:
        tasks = [_task(task, config.seed, chosen, i) for i, task in enumerate(config.tasks)]
    given = config.rewards
    if given.functions:
        # A sequence's tasks are made by code, so what the file says of all rewards is the only way to change theirs.
        own = set() if isinstance(config.tasks, SequenceConfig) else {task.name for task in config.tasks if task.reward}
        tasks = [
            task if task.name in own else chosen.given_to(task, given.functions, given.weights, i)
            for i, task in enumerate(tasks)
        ]
    tasks = [_as_method_takes(task, config.method, say) for task in tasks]
    if config.evaluation.reward_model is not None:
        tasks = [_judged_by_model(task, config.evaluation.reward_model, i, say) for i, task in enumerate(tasks)]
    limit = config.evaluation.num_items
    if limit is not None:
        tasks = [replace(task, eval=task.eval[:limit]) for task in tasks]
    for task in tasks:
        shared = 0 if task.recalls else overlap(task.train, task.eval)
        if shared:
            say(f"task {task.name}: {shared} of {len(task.eval)} evaluation rows also stand in its training rows")
    return tasks


def _as_method_takes(task: Task, method: PluginConfig, say: Callable[[str], None]) -> Task:
    """The task with its rows as the method wants them, and judged by the method where nothing else judges it."""
    made: Method = find("method", method.name)(**{**method.fields, **task.method})
    train, held_out = list(task.train), list(task.eval)
    if isinstance(made, OnlineMethod):
        (train, notes), (held_out, _) = to_prompts(train), to_prompts(held_out)
        for note in notes:
            say(f"task {task.name}: {note}")
    train, held_out = made.rows(train, say), made.rows(held_out, lambda text: None)
    if task.train and not train:
        raise UserError(f"no row of task {task.name} is left to train {method.name} on", fix="see the lines above")
    return replace(task, train=train, eval=held_out, metric=task.metric or LIKELIHOOD)


def _judged_by_model(task: Task, path: str, index: int, say: Callable[[str], None]) -> Task:
    """The task judged by a reward model: that of the task where each has its own."""
    folder, why = resolve_reward_model(path, index)
    say(f"task {task.name} is judged by {why}")
    return replace(task, metric=Metric(SCORE, Classifier(str(folder)), correct_at=math.inf))


def _sequence(config: SequenceConfig, say: Callable[[str], None]) -> list[Task]:
    """The tasks of a named sequence: of a function's answer, or of a class's method ``tasks``."""
    target = find("sequence", config.name)
    made = target(**config.fields)
    tasks = list(made.tasks()) if isinstance(target, type) else list(made)
    for note in getattr(made, "notes", ()):
        say(str(note))
    wrong = [task for task in tasks if not isinstance(task, Task)]
    if wrong or not tasks:
        found = f"a {type(wrong[0]).__name__}" if wrong else "nothing"
        raise UserError(f"the sequence {config.name!r} gives {found}", fix="give contrl.interfaces.Task objects")
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"the sequence {config.name!r} has two tasks called {twice!r}", fix="name each differently")
    where = f"sequence {config.name}"
    return [
        replace(t, train=with_ids(t.train, f"{where}, {t.name}"), eval=with_ids(t.eval, f"{where}, {t.name}"))
        for t in tasks
    ]


def _task(config: TaskConfig, seed: int, chosen: RewardChoice, index: int) -> Task:
    rows = _rows(config.data, config.train_split)
    held_out: Sequence[Row] = ()
    if config.eval_data is not None:
        held_out = _rows(config.eval_data, config.eval_split)
    elif config.eval_size is not None:
        rows, held_out = hold_out(rows, config.eval_size, seed)
    elif config.eval_split in _splits(config.data):
        held_out = read_rows(config.data, config.eval_split)
    metric = build_metric(config.metric) if config.metric else None
    task = Task(config.name, rows, held_out, None, metric, config.method, config.training)
    return chosen.given_to(task, config.reward, config.reward_weights, index) if config.reward else task


def _rows(source: str, split: str) -> Sequence[Row]:
    """Rows of a file, a folder or the hub, or made by a function."""
    if ":" in source and not Path(source).exists():
        return with_ids(list(find("reward", source)()), source)
    return read_rows(source, split)


def _splits(source: str) -> tuple[str, ...]:
    """The splits of a source; a single file and rows made by code have none to choose from."""
    return () if ":" in source and not Path(source).exists() else find_splits(source)


def build_metric(name: str) -> Metric:
    """A metric by name; a reward's name means "judged by that reward"."""
    name = JUDGED_BY.get(name, name)
    found = find("metric" if name in METRICS else "reward", name)
    return found if isinstance(found, Metric) else Metric(name.rpartition(":")[2], found)


# --- rewards ------------------------------------------------------------------------------------------


class Classifier(ClassifierReward):
    """Any sequence classifier as a reward; ``model`` is a folder or a name on the hub, ``label`` one of its outputs."""

    def __init__(
        self, model: str, label: str | int | None = None, batch_size: int = 16, max_length: int | None = None
    ) -> None:
        super().__init__(model, label, batch_size, load=load_scorer, max_length=max_length)


class RewardChoice:
    """Makes the rewards of tasks; what several tasks share is made, and its model loaded, once."""

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self.say = say
        self._made: dict[str, Any] = {}

    def given_to(
        self, task: Task, plugins: Sequence[PluginConfig], weights: Sequence[float] | None, index: int
    ) -> Task:
        """The task with these rewards, judged by them where it has no metric.

        Args:
            index: of the task; a reward model may have a folder for each.
        """
        parts = [self._one(plugin, task.name, index) for plugin in plugins]
        reward: Any = parts[0]
        if len(parts) > 1 or weights is not None:
            names = [_reward_name(plugin, part) for plugin, part in zip(plugins, parts, strict=True)]
            reward = Rewards(map(RewardFunction, names, parts, weights or [1.0] * len(parts)))
        return replace(task, reward=reward, metric=task.metric or _metric_of(plugins, reward))

    def _one(self, plugin: PluginConfig, task: str, index: int) -> Any:
        target, fields = find("reward", plugin.name), dict(plugin.fields)
        if not isinstance(target, type):
            return target
        if target is Classifier:
            folder, why = resolve_reward_model(fields["model"], index)
            fields["model"] = str(folder)
            self.say(f"task {task} is rewarded by {why}")
        if plugin.name == "judge" and fields.get("cache") is None:
            # So that a run that was stopped asks, and pays for, nothing twice.
            fields["cache"] = str(cache_folder() / "judge")
        key = f"{plugin.name} {sorted(fields.items(), key=str)}"
        if key not in self._made:
            self._made[key] = target(**fields)
        return self._made[key]


def _reward_name(plugin: PluginConfig, made: Any) -> str:
    """What a reward is called in the log: a model by its own name, the rest as in the configuration."""
    return name_of(made) if plugin.name in MODELS or ":" in plugin.name else plugin.name


def _metric_of(plugins: Sequence[PluginConfig], reward: Reward) -> Metric:
    """How a task that names only rewards is judged: by a verifier among them, else by what it is rewarded for."""
    verifier = next((p.name for p in plugins if p.name in JUDGED_BY or p.name in METRICS), None)
    if verifier is not None:
        return build_metric(verifier)
    if len(plugins) > 1:
        return Metric("reward", reward, correct_at=math.inf)
    is_model = plugins[0].name in MODELS
    return Metric(SCORE, reward, math.inf) if is_model else Metric(_reward_name(plugins[0], reward), reward)


# --- method and strategies ----------------------------------------------------------------------------


def build_method(config: RunConfig, sequence: TaskSequence) -> Callable[[Stage], Method]:
    """The method of each stage: the run's, with the fields its task overrides."""
    target = find("method", config.method.name)

    def method_for(stage: Stage) -> Method:
        overrides: dict[str, Any] = {}
        for name in stage.tasks:
            overrides |= sequence.task(name).method
        return target(**{**config.method.fields, **overrides})

    return method_for


def build_strategy(plugins: Sequence[PluginConfig]) -> Strategy:
    """All strategies of a run as one; none at all is naive."""
    return combine(make_strategies(plugins))


def make_strategies(plugins: Sequence[PluginConfig]) -> list[Strategy]:
    """The strategies of a run one by one; none at all is naive."""
    strategies: list[Strategy] = []
    for plugin in plugins or (PluginConfig("naive"),):
        strategy: Strategy = find("strategy", plugin.name)(**plugin.fields)
        if not strategy.name:
            type(strategy).name = plugin.name.rpartition(":")[2]
        strategies.append(strategy)
    return strategies
