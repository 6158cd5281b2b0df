"""What TRL calls ``reward_funcs``, as contrl's rewards: functions, classifiers by name or as objects, or several.

A text is a reward of the registry (``length(target=20)``, ``module:function``) when it looks like one, else a
classifier's folder or its name on the hub. What several tasks share is made, and its model loaded, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from contrl.config import ModelConfig, PluginConfig, load
from contrl.errors import UserError
from contrl.experiment import RewardChoice, find
from contrl.interfaces import Metric, Task
from contrl.models.classifier import is_classifier_model
from contrl.models.load import load_scorer, load_tokenizer
from contrl.rewards.functions import RewardFunction, Rewards, name_of
from contrl.rewards.model import ClassifierReward


@dataclass
class RewardMaker:
    """Makes the rewards of a trainer's tasks.

    Attributes:
        tokenizers: of reward models: None, one for all, or one for each reward (None for functions).
        weights: one for each reward; None = all 1.
        own_tokenizer: the policy's, for a reward model object without a name.
        device: where reward models run; None takes a GPU where there is one.
    """

    tokenizers: Any = None
    weights: Sequence[float] | None = None
    own_tokenizer: Callable[[], Any] = lambda: None
    device: torch.device | None = None
    _made: dict[Any, Any] = field(default_factory=dict, init=False)

    def rewards(self, given: Any) -> Rewards:
        """One reward or a list of them. Raises UserError for what is none."""
        if isinstance(given, Rewards):
            return given if self.weights is None else Rewards.of([f.call for f in given], self.weights)
        several = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        tokenizers = self.tokenizers
        if not isinstance(tokenizers, list | tuple):
            tokenizers = [tokenizers] * len(several)
        if len(tokenizers) != len(several):
            raise UserError(
                f"there are {len(tokenizers)} reward_processing_classes for {len(several)} reward functions",
                fix="give one each, None for functions",
            )
        functions = [self._function(one, tokenizer) for one, tokenizer in zip(several, tokenizers, strict=True)]
        if self.weights is None:
            return Rewards(functions)
        if len(self.weights) != len(functions):
            raise UserError(
                f"reward_weights has {len(self.weights)} numbers for {len(functions)} reward functions",
                fix="give one weight for each",
            )
        weighted = zip(functions, self.weights, strict=True)
        return Rewards(replace(function, weight=float(weight)) for function, weight in weighted)

    def _function(self, given: Any, tokenizer: Any) -> RewardFunction:
        if isinstance(given, RewardFunction):
            return given
        key = given if isinstance(given, str) else id(given)
        if key not in self._made:
            self._made[key] = self._call(given, tokenizer)
        return RewardFunction(name_of(self._made[key]), self._made[key])

    def _call(self, given: Any, tokenizer: Any) -> Any:
        if isinstance(given, str):
            plugin = _plugin(given)
            if plugin is not None:
                return RewardChoice().given_to(Task("", ()), [plugin], None, 0).reward
            return ClassifierReward(given, load=lambda name: _named(name, tokenizer), device=self.device)
        if isinstance(given, nn.Module):
            if not is_classifier_model(given):
                fix = "give a sequence classifier, or a function that asks this model"
                raise UserError(f"a {type(given).__name__} gives no score", where="reward_funcs", fix=fix)
            name = str(getattr(given, "name_or_path", "") or "") or type(given).__name__
            return ClassifierReward(
                name, load=lambda name: (given, self._tokenizer_of(given, tokenizer)), device=self.device
            )
        if not callable(given):
            fix = "give functions, classifiers (objects, folders, names), or a list of them"
            raise UserError(f"reward_funcs holds a {type(given).__name__}", fix=fix)
        return given

    def _tokenizer_of(self, model: Any, tokenizer: Any) -> Any:
        if tokenizer is not None:
            return tokenizer
        name = str(getattr(model, "name_or_path", "") or "")
        return load_tokenizer(ModelConfig(name)) if name else self.own_tokenizer()


def rewarded(task: Task, given: Any, maker: RewardMaker) -> Task:
    """The task with its rewards, judged by them where it has no metric; its own rewards come first.

    Args:
        given: for all tasks, or for each by its name.

    Raises:
        UserError: when there are none.
    """
    mine = given.get(task.name) if isinstance(given, Mapping) else given
    if task.reward is not None:
        made = task.reward if isinstance(task.reward, Rewards) else Rewards.of([task.reward])
    elif mine is None:
        where = f"task {task.name}" if isinstance(given, Mapping) else ""
        fix = "give reward_funcs: a function, a classifier, a list of them, or a dict from tasks' names to these"
        raise UserError("there is no reward to learn from", where=where, fix=fix)
    else:
        made = maker.rewards(mine)
    return replace(task, reward=made, metric=task.metric or _metric(made))


def _metric(rewards: Rewards) -> Metric:
    """Scores of models have no mark that means correct."""
    name = rewards[0].name if len(rewards) == 1 else "reward"
    return Metric(name, rewards, float("inf") if rewards.is_costly else 1.0)


def _named(name: str, tokenizer: Any) -> tuple[Any, Any]:
    model, own = load_scorer(name)
    return model, own if tokenizer is None else tokenizer


def _plugin(text: str) -> PluginConfig | None:
    """A reward of the registry or an import path, its fields typed as in a file; None for a model's name."""
    bare = text.partition("(")[0]
    if Path(text).exists() or ("/" in bare and ":" not in bare):
        return None
    rest = {"output_dir": "given", "model": "tiny", "method": "sft", "tasks": [{"name": "given", "data": "given/rows"}]}
    (found,) = load({**rest, "rewards": {"functions": [text]}}, resolve=find).config.rewards.functions
    return found
