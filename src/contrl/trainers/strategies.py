"""Strategies as the caller names them: ``"replay"``, ``"replay(share=0.2)"`` or objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from contrl.compatibility import check_strategies
from contrl.config import load
from contrl.errors import UserError
from contrl.experiment import build_strategy, find
from contrl.interfaces import Setting, Strategy
from contrl.strategies.composite import combine


def make_strategy(given: Sequence[Any], setting: Setting) -> Strategy:
    """All of them as one; none at all is naive.

    Raises:
        UserError: for an unknown name or field, or one that cannot work in the setting.
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
    check_strategies(made, setting)
    return combine(made) if made else build_strategy(())


def _plugins(text: str) -> Any:
    """The strategy in a text, its fields typed as in a file."""
    rest = {"output_dir": "given", "model": "tiny", "method": "sft", "tasks": [{"name": "given", "data": "given/rows"}]}
    return load({**rest, "strategies": [text]}, resolve=find).config.strategies
