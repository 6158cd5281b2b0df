"""Sequence classifiers with one label: a language model's trunk with a score head, the shape of a reward model.

A head that is not in the folder is drawn here from the seed, not by the library that loads the rest, so that it
is the same on every rank and leaves the global generator alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from contrl.errors import UserError


def is_classifier_model(model: Any) -> bool:
    """Whether a model (or what its adapter sits on) is a sequence classifier."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return "ForSequenceClassification" in type(inner).__name__


def head_names(model: Any) -> list[str]:
    """The parameters of a classifier outside its trunk: its head."""
    trunk = f"{model.base_model_prefix}."
    return [name for name, _ in model.named_parameters() if not name.startswith(trunk)]


def draw_head(model: Any, names: Iterable[str], seed: int) -> None:
    """Draw these parameters anew: weights normal with the model's own spread, biases 0; a function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    spread = float(getattr(model.config.get_text_config(), "initializer_range", None) or 0.02)
    for name in sorted(names):
        parameter = model.get_parameter(name)
        values = torch.zeros(parameter.shape)
        if parameter.dim() > 1:
            values.normal_(0.0, spread, generator=generator)
        with torch.no_grad():
            parameter.copy_(values)


def on_trunk(causal: Any, seed: int, num_labels: int = 1) -> Any:
    """A classifier on the trunk of a language model already in memory; the trunk is taken over, not copied."""
    config = causal.config
    config.num_labels = num_labels
    with torch.device("meta"):
        model: Any = AutoModelForSequenceClassification.from_config(config)
    setattr(model, model.base_model_prefix, causal.base_model)
    for name in head_names(model):
        owner, _, last = name.rpartition(".")
        empty = torch.empty(model.get_parameter(name).shape, dtype=causal.dtype, device=causal.device)
        setattr(model.get_submodule(owner), last, nn.Parameter(empty))
    draw_head(model, head_names(model), seed)
    return model.eval()


def check_one_label(model: Any, where: str) -> None:
    """Refuse a classifier that does not give one score. Raises UserError."""
    labels = int(getattr(model.config, "num_labels", 1))
    if labels != 1:
        raise UserError(
            f"the classifier has {labels} labels",
            where=where,
            why="a reward model that is trained gives one score",
            fix="start from a language model or a classifier with one label; to score with a label, use it as a reward",
        )
