"""Naive changes nothing: it has no hook of its own to change anything with."""

from __future__ import annotations

from contrl.interfaces import Strategy
from contrl.strategies.naive import Naive


def test_every_hook_is_the_empty_default() -> None:
    """What makes a run with it equal, bit for bit, to a run without any strategy."""
    hooks = [name for name in vars(Strategy) if not name.startswith("_") and name != "name"]
    assert {"draw", "rows", "weights", "loss", "count", "penalty", "project", "after_step", "after_task"} <= {*hooks}
    assert [name for name in hooks if getattr(Naive, name) is not getattr(Strategy, name)] == []
    assert not Naive().adds_loss
    assert Naive().state_dict() == {}


def test_it_has_a_name_and_no_knobs() -> None:
    assert Naive.name == "naive"
    assert Naive() == Naive()
