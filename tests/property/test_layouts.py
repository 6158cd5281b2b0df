"""Neither padding nor the company it keeps changes a completion's log-probability, in both layouts (float64)."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import build

from contrl.engine.batching import to_batch
from contrl.engine.forward import Routing, score_batch
from contrl.engine.lm_head import LMHead
from contrl.interfaces import Completion, Group

CPU = torch.device("cpu")
MODELS = {name: build(name).double().eval() for name in ("llama", "gpt2", "mistral")}


@st.composite
def some_groups(draw: st.DrawFn) -> list[Group]:
    """1 to 4 groups of 1 to 3 completions, with trained masks that leave at least one token."""
    token = st.integers(3, 60)
    groups = []
    for name in range(draw(st.integers(1, 4))):
        completions = []
        for _ in range(draw(st.integers(1, 3))):
            ids = draw(st.lists(token, min_size=1, max_size=7))
            trained = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)).filter(any))
            completions.append(Completion(ids, trained))
        groups.append(Group(str(name), "t", draw(st.lists(token, min_size=1, max_size=9)), completions))
    return groups


def logps(model: Any, groups: list[Group], layout: Any) -> dict[str, list[torch.Tensor]]:
    """Row id -> the log-probabilities of each of its completions, without padding."""
    batch = to_batch(groups, CPU)
    with torch.no_grad():
        table = iter(score_batch(model, LMHead(model), batch, Routing(layout))["logps"])
    return {g.row_id: [next(table)[: len(c.ids)] for c in g.completions] for g in groups}


@pytest.mark.parametrize("layout", ["shared", "plain"])
@pytest.mark.parametrize("name", sorted(MODELS))
@settings(max_examples=25)
@given(groups=some_groups(), order=st.randoms(use_true_random=False))
def test_company_and_order_change_nothing(name: str, layout: Any, groups: list[Group], order: random.Random) -> None:
    """Alone or among others, in any order: equal within 1e-12, whatever padding that makes."""
    shuffled = groups.copy()
    order.shuffle(shuffled)
    together = logps(MODELS[name], shuffled, layout)
    for group in groups:
        for mine, alone in zip(
            together[group.row_id], logps(MODELS[name], [group], "plain")[group.row_id], strict=True
        ):
            torch.testing.assert_close(mine, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(MODELS))
@settings(max_examples=25)
@given(groups=some_groups())
def test_layouts_agree_to_double_precision(name: str, groups: list[Group]) -> None:
    shared, plain = (logps(MODELS[name], groups, layout) for layout in ("shared", "plain"))
    for row in shared:
        for a, b in zip(shared[row], plain[row], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
