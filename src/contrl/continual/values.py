"""The value function of a stage: made for methods that need one, carried on or begun anew by the method's own word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contrl.config import ModelConfig
from contrl.errors import UserError
from contrl.interfaces import Method
from contrl.models.load import load_policy
from contrl.models.value_head import ensure_value


def prepare_value(model: Any, method: Method, base: Path | None, seed: int, *, begins: bool = False) -> None:
    """Give the policy a value function when the method needs values.

    Args:
        model: the policy, unwrapped.
        method: its ``value`` says "head" or "model", its ``value_model`` what a model starts as, its ``keep_value``
            whether the tasks share one value function.
        base: the run's first weights, from which a value model starts when none is named.
        seed: of a new head.
        begins: whether a task begins here, where a value function that is not kept starts anew.

    Raises:
        UserError: when there is nothing to start a value model from.
    """
    if "values" not in method.needs:
        return
    start = getattr(method, "value_model", None) or base or getattr(model, "name_or_path", "")

    def read() -> Any:
        if not start:
            raise UserError("there is nothing to start the value model from", fix="set value_model to a folder")
        made = load_policy(ModelConfig(str(start)), seed, classifier=True).model
        return made.merge_and_unload() if hasattr(made, "peft_config") else made

    keep = not begins or bool(getattr(method, "keep_value", True))
    ensure_value(model, getattr(method, "value", "head"), read, str(start), keep=keep)
