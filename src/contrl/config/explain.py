"""What one key of a configuration means: type, default and a sentence, for help and for the documentation."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from contrl.config import tree
from contrl.config.schema import (
    BaseStageConfig,
    BetweenTasksConfig,
    EvaluationConfig,
    ModelConfig,
    RewardsConfig,
    RunConfig,
    TaskConfig,
)
from contrl.config.training import OWNED, training_arguments
from contrl.config.walk import Parameter, describe, nearest, parameters
from contrl.errors import UserError

_SECTIONS: dict[str, type] = {
    "": RunConfig,
    "model": ModelConfig,
    "tasks.N": TaskConfig,
    "base": BaseStageConfig,
    "rewards": RewardsConfig,
    "evaluation": EvaluationConfig,
    "between_tasks": BetweenTasksConfig,
}
_PLUGINS = {"method": "method", "base.method": "method", "strategies.N": "strategy", "tasks": "sequence"}
_PLUGINS |= {"tasks.N.reward.N": "reward", "rewards.functions.N": "reward"}


class Key(NamedTuple):
    """One key: ``path`` with N for a number in a list, its type and default in words, and its meaning."""

    path: str
    type: str
    default: str
    help: str

    def __str__(self) -> str:
        return f"{self.path} ({self.type}; {self.default})\n  {self.help}"


def keys() -> Iterator[Key]:
    """Every key of contrl's own, in the order of the file; training arguments are not among them."""
    for section, target in _SECTIONS.items():
        for parameter in parameters(target)[0].values():
            yield _key(f"{section}.{parameter.name}" if section else parameter.name, parameter)


def plugin_keys(path: str, target: Any) -> Iterator[Key]:
    """The fields of a plugin (the dataclass or function that its name stands for) as keys under ``path``."""
    for parameter in parameters(target)[0].values():
        yield _key(f"{path}.{parameter.name}", parameter)


def explain(path: str) -> str:
    """Type, default and meaning of a key such as ``rounds``, ``tasks.1.data`` or ``training.learning_rate``.

    Raises:
        UserError: there is no such key; names the nearest one.
    """
    # Any item of a list, by number or by name, has the same keys.
    general = re.sub(r"^(tasks|strategies|rewards\.functions)\.[^.]+", r"\1.N", path)
    general = re.sub(r"^(tasks\.N\.reward)\.[^.]+", r"\1.N", general)
    section, _, name = general.rpartition(".")
    arguments, known = training_arguments(), {key.path: key for key in keys()}
    if section in ("training", "tasks.N.training", "base.training"):
        if name in OWNED:
            return f"{path}: not set here; {OWNED[name]}"
        known = {f"{section}.{key}": _key(f"{section}.{key}", parameter) for key, parameter in arguments.items()}
    elif section in _PLUGINS and general not in known:
        return f"{path}: a field of the {_PLUGINS[section]}; which there are depends on the name chosen"
    if general in known:
        return str(known[general]._replace(path=path))
    meant = f"training.{path}" if path in arguments else nearest(general, known)
    raise UserError(f"there is no key {path!r}", fix=f"did you mean {meant}?" if meant else "")


def _key(path: str, parameter: Parameter) -> Key:
    default = "required" if parameter.required else "default: its keys' defaults"
    if not parameter.required and not dataclasses.is_dataclass(parameter.default):
        default = f"default {tree.inline(parameter.default)}"
    bounds = [f"at least {parameter.at_least:g}"] if parameter.at_least is not None else []
    bounds += [f"below {parameter.below:g}"] if parameter.below is not None else []
    return Key(path, ", ".join([describe(parameter.annotation), *bounds]), default, parameter.help)
