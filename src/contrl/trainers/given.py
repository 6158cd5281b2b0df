"""The arguments of a trainer's constructor: today's, those of 2024, and those that cannot mean anything here."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from contrl.errors import UserError
from contrl.trainers.configs import TrainerConfig, note

_LOGITS = "logits never exist as a whole here, so there is nothing to hand to a function"
_REFUSED = {
    "data_collator": ("the engine builds the batches of every step itself", "leave it out"),
    "compute_loss_func": ("the loss belongs to the method", "write a method: see docs/architecture.md"),
    "compute_metrics": (_LOGITS, "read the eval_ metrics of the method, or give a Task with a metric"),
    "preprocess_logits_for_metrics": (_LOGITS, "leave it out"),
    "model_init": ("the model is given", "give the model, or its name"),
}


@dataclass
class Arguments:
    """What a constructor was given besides model, configuration and data.

    Attributes:
        processing_class: the tokenizer, or None for the model's.
        callbacks: transformers' callbacks, objects or classes.
        optimizers: an optimizer and a schedule, or None for each.
        optimizer_cls_and_kwargs: or what to make the optimizer of.
        peft_config: an adapter to train.
        quantization_config: of a model given by name.
        formatting_func: makes the text of a row.
        ref_model: the reference, or None for the weights at the start.
        strategies: names, ``name(field=value)``, or Strategy objects.
    """

    processing_class: Any = None
    callbacks: list[Any] = field(default_factory=list)
    optimizers: tuple[Any, Any] = (None, None)
    optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None
    peft_config: Any = None
    quantization_config: Any = None
    formatting_func: Any = None
    ref_model: Any = None
    strategies: list[Any] = field(default_factory=list)


def sort_out(given: Mapping[str, Any], args: Any, config_class: type[TrainerConfig], output_dir: str) -> Any:
    """The configuration and the arguments of keyword arguments.

    Args:
        given: everything but model and data sets.
        args: what was given as ``args``.
        config_class: the trainer's.
        output_dir: where to write when nothing says so.

    Returns:
        (configuration, Arguments).

    Raises:
        UserError: for an argument that is unknown, or refused with its reason.
    """
    left = dict(given)
    for name, (why, fix) in _REFUSED.items():
        if left.pop(name, None) is not None:
            raise UserError(f"{name} is not used by contrl", why=why, fix=fix)
    if "tokenizer" in left:
        note("tokenizer= is called processing_class= now")
        left["processing_class"] = left.pop("tokenizer")
    known = {f.name for f in dataclasses.fields(Arguments)}
    fields = {f.name for f in dataclasses.fields(config_class) if f.init}
    old = {name: left.pop(name) for name in list(left) if name in fields - known}
    for name in left:
        if name not in known:
            near = difflib.get_close_matches(name, known | fields, 1)
            fix = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            raise UserError(f"the trainer has no argument {name!r}", fix=fix)
    values = {name: value for name, value in left.items() if value is not None}
    config = _configured(config_class.of(args, output_dir), old)
    return config, Arguments(**values)


def _configured(config: TrainerConfig, old: Mapping[str, Any]) -> TrainerConfig:
    """The configuration with what was given to the trainer itself, as it was until 2024."""
    if not old:
        return config
    old = {config.renamed.get(name, name): value for name, value in old.items()}
    note(f"{', '.join(old)}: give {type(config).__name__}({', '.join(f'{name}=...' for name in old)}) as args")
    return type(config)(**{**config.as_given(), **old})
