"""Strategies as the caller names them: ``"replay"``, ``"replay(share=0.2)"`` or objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from contrl.config import load
from contrl.errors import UserError
from contrl.experiment import build_strategy, find
from contrl.interfaces import Strategy
from contrl.strategies.composite import combine


def make_strategy(given: Sequence[Any], training: Mapping[str, Any]) -> Strategy:
    """All of them as one; none at all is naive.

    Raises:
        UserError: for an unknown name or field, or one that cannot work under these training arguments.
    """
    if isinstance(given, str):
        raise UserError(f"strategies is the text {given!r}", fix=f"give a list: [{given!r}]")
    made: list[Strategy] = []
    for one in given:
        if isinstance(one, Strategy):
            if not one.name:
                type(one).name = type(one).__name__.lower()
            made.append(one)
        elif isinstance(one, str):
            made.append(build_strategy(_plugins(one)))
        else:
            raise UserError(f"strategies holds a {type(one).__name__}", fix="give names or Strategy objects")
    halved = training.get("fp16") or training.get("deepspeed")
    for strategy in made if halved else ():
        kind = type(strategy)
        if kind.penalty is not Strategy.penalty or kind.project is not Strategy.project:
            raise UserError(
                f"the strategy {strategy.name} changes whole gradients, which fp16 and DeepSpeed do not show",
                fix="use bf16 or float32 with DDP or FSDP2, or a strategy that works on rows (replay)",
            )
    return combine(made) if made else build_strategy(())


def _plugins(text: str) -> Any:
    """The strategy in a text, its fields typed as in a file."""
    rest = {"output_dir": "given", "model": "tiny", "method": "sft", "tasks": [{"name": "given", "data": "given/rows"}]}
    return load({**rest, "strategies": [text]}, resolve=find).config.strategies
