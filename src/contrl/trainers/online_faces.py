"""RLOOTrainer, GRPOTrainer and PPOTrainer with TRL's order of arguments, over the same engine as all trainers.

Besides the named arguments all take those of ``given.Arguments``, contrl's ``strategies``, and ``sampler``: a program
that samples in the policy's place. ``train_dataset`` may be a list of data sets, a sequence of tasks, and
``reward_funcs`` then a dict from their names.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from contrl.continual.plan import Plan
from contrl.engine.online import describe_batch
from contrl.errors import UserError
from contrl.interfaces import Stage, Task
from contrl.models.classifier import is_classifier_model
from contrl.models.value_head import attach_model
from contrl.models.value_models import language_model
from contrl.trainers.base import Face
from contrl.trainers.configs import TrainerConfig
from contrl.trainers.online_callbacks import EvaluateWhileTraining, KeepCompletions
from contrl.trainers.online_configs import GRPOConfig, OnlineConfig, RLOOConfig
from contrl.trainers.online_rewards import RewardMaker, rewarded
from contrl.trainers.online_rows import as_prompts
from contrl.trainers.ppo_config import PPOConfig
from contrl.trainers.tasks import held_rows


class OnlineFace(Face):
    """What trainers do that sample: rewards, prompts, and evaluation by sampled answers.

    Attributes:
        reward_funcs: as given.
        sampler: a program that samples in the policy's place, or None.
    """

    args: OnlineConfig

    def __init__(self, model: Any, rewards: Any, data: tuple[Any, Any], further: dict[str, Any]) -> None:
        self.sampler = further.pop("sampler", None)
        self.reward_funcs = rewards
        self._reward_tokenizers = further.pop("reward_processing_classes", None)
        args = further.pop("args", None)
        super().__init__(model, args, *data, further)

    # --- what was given becomes a plan ------------------------------------------------------------------

    def _tasks(self) -> list[Task]:
        maker = RewardMaker(
            self._reward_tokenizers, self.args.reward_weights, lambda: self.processing_class, self._reward_device()
        )
        tasks = [rewarded(task, self.reward_funcs, maker) for task in super()._tasks()]
        options = self.args.chat_template_kwargs
        return [as_prompts(task, self.processing_class, options, self.say) for task in tasks]

    def _reward_device(self) -> torch.device | None:
        if self.args.use_cpu or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    def _make_plan(self, method: Any, training: dict[str, Any]) -> Plan:
        plan = super()._make_plan(method, training)
        moves, given = self.args.moves_of_reference(), plan.method_for
        if moves is not None:
            plan = replace(plan, method_for=lambda stage: _synchronised(given(stage), *moves))
        first: Any = given(plan.sequence.stages[0])
        self.say(f"batch    {describe_batch(first, plan.prompts_per_step)}")
        return plan

    def _callbacks_of(self, stage: Stage, steps: int) -> list[Any]:
        found = super()._callbacks_of(stage, steps)
        if getattr(self.args.eval_strategy, "value", self.args.eval_strategy) != "no":
            found.insert(0, EvaluateWhileTraining(self.args, lambda: self._evaluate_stage(stage), self._engine))
        if self.args.log_completions:
            place = Path(str(self.args.output_dir)) / "completions"
            folder = place / stage.folder if self.is_sequence else place
            found.append(KeepCompletions(self.args, folder, self._ranks.rank, self._engine, self.say))
        return found

    def _engine(self) -> Any:
        assert self._last is not None
        return self._last.engine

    # --- evaluation --------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Held-out prompts, each answered by the likeliest tokens: the mean reward as ``eval_reward``.

        Of a list of data sets the score of every task, ``eval_<task>_<metric>``.

        Raises:
            UserError: when there are no rows.
        """
        if self.is_sequence:
            return self._evaluate_tasks(metric_key_prefix)
        task = self._plan.sequence[0]
        if eval_dataset is not None:
            rows = held_rows(eval_dataset, self._reader)
            options = self.args.chat_template_kwargs
            task = as_prompts(replace(task, train=(), eval=rows), self.processing_class, options, self.say)
        return self._evaluate_task(task, f"{metric_key_prefix}_")

    def _evaluate_task(self, task: Task, prefix: str) -> dict[str, float]:
        if not task.eval:
            raise UserError("there are no rows to evaluate on", fix="give eval_dataset")
        runner = self._last or self._runner(lambda folder: None)
        score = runner.score(task)
        values = {"reward": score.value, **{f"{source}_reward": v for source, v in score.by_source.items()}}
        return {f"{prefix}{name}": value for name, value in values.items() if value is not None}

    def _evaluate_stage(self, stage: Stage) -> dict[str, float]:
        """While training: the tasks of the stage."""
        found: dict[str, float] = {}
        for name in stage.tasks:
            task = self._plan.sequence.task(name)
            prefix = f"eval_{name}_" if self.is_sequence else "eval_"
            found |= self._evaluate_task(task, prefix) if task.eval else {}
        return found


def _synchronised(method: Any, every: int, share: float) -> Any:
    """The method with a reference that moves towards the policy, as TRL's sync_ref_model."""
    for name, value in (("sync_every", every), ("sync_share", share)):
        # The methods are frozen, and these are no fields of theirs.
        object.__setattr__(method, name, value)
    return method


_ORDER = (
    "processing_class", "reward_processing_classes", "callbacks", "optimizers", "quantization_config", "peft_config"
)  # fmt: skip
"""TRL's order of the arguments after the data sets."""


class RLOOTrainer(OnlineFace):
    """REINFORCE leave-one-out: a completion's baseline is the mean reward of the others of its prompt."""

    config_class: ClassVar[type[TrainerConfig]] = RLOOConfig
    suffix: ClassVar[str] = "RLOO"

    def __init__(
        self,
        model: Any = None,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *rest: Any,
        **further: Any,
    ) -> None:
        further |= _named(_ORDER, rest, further) | {"args": args}
        super().__init__(model, reward_funcs, (train_dataset, eval_dataset), _given(further))


class GRPOTrainer(OnlineFace):
    """Group-relative policy optimisation and its relatives."""

    config_class: ClassVar[type[TrainerConfig]] = GRPOConfig
    suffix: ClassVar[str] = "GRPO"

    def __init__(
        self,
        model: Any = None,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *rest: Any,
        **further: Any,
    ) -> None:
        further |= _named((*_ORDER, *_REFUSED), rest, further) | {"args": args}
        for name, (why, fix) in _REFUSED.items():
            if further.pop(name, None) is not None:
                raise UserError(f"{name} is not used by contrl", why=why, fix=fix)
        super().__init__(model, reward_funcs, (train_dataset, eval_dataset), _given(further))


_REFUSED = {
    "tools": ("a completion is one answer; nothing a model writes is run", "score the answer by a reward function"),
    "rollout_func": ("contrl samples by itself", "give sampler=: an object with update and sample"),
    "environment_factory": ("a completion is one answer to one prompt", "score the answer by a reward function"),
}


class PPOTrainer:
    """Proximal policy optimisation: both of TRL's trainers of this name, told apart by what they are given.

    ``PPOTrainer(config, model, ref_model, tokenizer)`` is the step API (``StepTrainer``), which trains on what the
    caller samples; ``PPOTrainer(args, processing_class, model, ref_model, reward_model, train_dataset, ...)`` samples
    by itself (``PPOFace``). What is made is a PPOTrainer and the one of them.
    """

    def __new__(cls, *args: Any, **given: Any) -> Any:
        from contrl.trainers.step import StepTrainer

        kind: type = StepTrainer if is_step_call(args, given) else PPOFace
        made = cls if issubclass(cls, kind) else type(cls.__name__, (cls, kind), {"__module__": cls.__module__})
        return object.__new__(made)


def is_step_call(args: tuple[Any, ...], given: dict[str, Any]) -> bool:
    """Whether these are the step API's arguments: its second is a model, the other's a tokenizer."""
    if len(args) > 1:
        return not hasattr(args[1], "convert_tokens_to_ids") and args[1] is not None
    own = {"config", "tokenizer", "dataset", "num_shared_layers", "lr_scheduler"}
    others = {"args", "processing_class", "reward_model", "reward_funcs", "train_dataset", "value_model"}
    return bool(own & given.keys()) and not others & given.keys()


class PPOFace(OnlineFace):
    """The PPOTrainer that samples by itself; ``reward_model`` is a classifier, ``reward_funcs`` as in GRPOTrainer.

    ``value_model`` is a classifier with one label that becomes the value function: a folder, a name, or an object,
    which is trained. None puts a head on the policy.
    """

    config_class: ClassVar[type[TrainerConfig]] = PPOConfig
    suffix: ClassVar[str] = "PPO"

    def __init__(
        self,
        args: Any = None,
        processing_class: Any = None,
        model: Any = None,
        ref_model: Any = None,
        reward_model: Any = None,
        *rest: Any,
        **further: Any,
    ) -> None:
        names = (
            "train_dataset",
            "value_model",
            "data_collator",
            "eval_dataset",
            "optimizers",
            "callbacks",
            "peft_config",
        )
        further |= _named(names, rest, further)
        self._value_model, functions = further.pop("value_model", None), further.pop("reward_funcs", None)
        if reward_model is not None and functions is not None:
            raise UserError("reward_model and reward_funcs are both given", fix="give reward_funcs=[model, function]")
        if reward_model is not None and reward_model is self._value_model and not isinstance(reward_model, str):
            raise UserError(
                "reward_model and value_model are the same object",
                why="the value model is trained, and the reward would change with it",
                fix="load the model twice",
            )
        if isinstance(args, PPOConfig) and args.is_step_api:
            fix = "give PPOConfig(output_dir, per_device_train_batch_size=..., num_mini_batches=..., ...)"
            raise UserError("the PPOConfig is of the step API", why="batch_size is given, or no output_dir", fix=fix)
        rewards = reward_model if functions is None else functions
        data = (further.pop("train_dataset", None), further.pop("eval_dataset", None))
        further |= {"args": args, "processing_class": processing_class, "ref_model": language_model(ref_model)}
        super().__init__(language_model(model), rewards, data, _given(further))
        stop_id = getattr(self.args, "stop_token_id", None)
        if stop_id not in (None, self.processing_class.eos_token_id):
            raise UserError(
                f"stop_token_id is {stop_id}", fix="give stop=[text]; completions end at the end token anyway"
            )
        if self._value_model is not None and not isinstance(self._value_model, str):
            attach_model(self.model, self._value_model, "value_model")

    def _method_fields(self, method: Any) -> dict[str, Any]:
        values = super()._method_fields(method)
        if self._value_model is None:
            return values
        if not isinstance(self._value_model, str) and not is_classifier_model(self._value_model):
            raise UserError(f"value_model is a {type(self._value_model).__name__}", fix="give a sequence classifier")
        named = self._value_model if isinstance(self._value_model, str) else None
        return values | {"value": "model", "value_model": named}


def _named(names: tuple[str, ...], rest: tuple[Any, ...], further: dict[str, Any]) -> dict[str, Any]:
    """Positional arguments by their names."""
    if len(rest) > len(names):
        raise UserError(f"{len(rest) - len(names)} arguments too many", fix="give them by name")
    found = dict(zip(names, rest, strict=False))
    if twice := sorted(found.keys() & further.keys()):
        raise UserError(f"{twice[0]} is given twice", fix="give it by name")
    return found


def _given(further: dict[str, Any]) -> dict[str, Any]:
    """Without what is None: it was not given."""
    return {name: value for name, value in further.items() if value is not None or name == "args"}
