"""The typed configuration: a YAML file, overrides and defaults become one checked, printable RunConfig.

Reading order: schema (every key), load (file -> RunConfig), sections and walk (the checks), tree (nodes with
their lines). Nothing here imports torch or transformers, so help and errors come at once.
"""

from contrl.config.explain import Key, explain, keys, plugin_keys
from contrl.config.load import Resolved, load
from contrl.config.schema import (
    BaseStageConfig,
    BetweenTasksConfig,
    EvaluationConfig,
    ModelConfig,
    PluginConfig,
    RewardsConfig,
    RunConfig,
    SequenceConfig,
    TaskConfig,
)
from contrl.config.sections import Resolve
from contrl.config.show import difference, digest, show
from contrl.config.training import training_arguments

__all__ = [
    "BaseStageConfig",
    "BetweenTasksConfig",
    "EvaluationConfig",
    "Key",
    "ModelConfig",
    "PluginConfig",
    "Resolve",
    "Resolved",
    "RewardsConfig",
    "RunConfig",
    "SequenceConfig",
    "TaskConfig",
    "difference",
    "digest",
    "explain",
    "keys",
    "load",
    "plugin_keys",
    "show",
    "training_arguments",
]
