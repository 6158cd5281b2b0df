"""Whatever a strategy keeps comes back as it was: nested dictionaries of tensors and JSON values."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from contrl.engine.checkpoint import load_state, save_state
from contrl.engine.online import RolloutWindow
from contrl.interfaces import Completion, Group
from contrl.methods.rloo import RLOO

keys = st.text("ab/'.é", max_size=3)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
tensors = st.builds(
    lambda shape, dtype, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    dtypes,
    st.integers(0, 99),
)
values = st.recursive(
    scalars | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(state=st.dictionaries(keys, values, max_size=4))
def test_any_state_comes_back(state: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder), "state", state)
        loaded = load_state(Path(folder), "state")
    assert loaded is not None
    assert same(state, loaded)


floats = st.floats(allow_nan=False, allow_infinity=False)
completions = st.builds(
    Completion,
    ids=st.lists(st.integers(0, 9), max_size=4),
    trained=st.none() | st.lists(st.booleans(), max_size=4),
    weight=floats,
    ended=st.booleans(),
    sampler_logps=st.none() | st.lists(floats, max_size=4),
    old_logps=st.none() | st.lists(floats, max_size=4),
    reward=st.none() | floats,
    advantage=floats,
)
groups = st.builds(
    Group,
    row_id=st.text(max_size=3),
    task=st.text(max_size=3),
    prompt_ids=st.lists(st.integers(0, 9), max_size=4),
    completions=st.lists(completions, max_size=3),
    is_replay=st.booleans(),
    label=st.none() | st.booleans(),
    margin=st.none() | floats,
)


@given(rollouts=st.lists(groups, max_size=3))
def test_any_rollouts_come_back(rollouts: list[Group]) -> None:
    """Through the file, as a checkpoint does it."""
    first, second = (RolloutWindow(RLOO(num_epochs=2), lambda prompts: [], (1,)) for _ in range(2))
    first.rollouts = rollouts
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder), "window-0", first.state_dict(1))
        second.load_state_dict(load_state(Path(folder), "window-0") or {}, lambda task, row_id: {})
    assert second.rollouts == rollouts
