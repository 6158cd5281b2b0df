"""The reserved cache holds what the stock one would, in its rows' new order, and copies none of what stays."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicLayer

from contrl.rollout.cache import ReservedLayer, drop_rows, repeat_rows

SHAPE: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 5}


def states(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values, each number occurring once."""
    numbers = torch.arange(2 * rows * 2 * length * 4, dtype=torch.float64).reshape(2, rows, 2, length, 4)
    return numbers[0], numbers[1] + 0.5


def caches(config: Any, rows: int, length: int) -> tuple[DynamicCache, DynamicCache]:
    """Two caches of the model, with the same prompts."""
    both = (DynamicCache(config=config), DynamicCache(config=config))
    for cache in both:
        for layer in range(2):
            cache.update(*states(rows, length), layer)
    return both


@settings(max_examples=40)
@given(samples=st.integers(1, 4), data=st.data())
def test_any_course_of_steps_and_drops_equals_the_stock_cache(samples: int, data: Any) -> None:
    """Both layers, keys and values, after every step; the stock cache follows the order that is returned."""
    reserved, stock = caches(LlamaConfig(**SHAPE), 3, 4)
    source = torch.arange(3 * samples) // samples
    repeat_rows(reserved, source, 5)
    stock.batch_select_indices(source)
    assert all(isinstance(layer, ReservedLayer) for layer in reserved.layers)
    left = list(range(3 * samples))
    for _ in range(5):
        finished = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(left), max_size=len(left))))
        if finished.any() and not finished.all():
            order = drop_rows(reserved, finished)
            stock.batch_select_indices(order)
            survivors = [row for row, over in zip(left, finished.tolist(), strict=True) if not over]
            left = [left[index] for index in order.tolist()]
            assert sorted(left) == sorted(survivors)
        new = states(len(left), 1)
        for layer in range(2):
            found, wanted = reserved.update(*new, layer), stock.update(*new, layer)
            assert torch.equal(found[0], wanted[0])
            assert torch.equal(found[1], wanted[1])
        assert reserved.get_seq_length() == stock.get_seq_length()


def test_only_the_rows_that_fill_holes_move() -> None:
    """Rows 0 and 2 of five leave: 3 and 4 take their places, 1 stays where it is in memory."""
    cache, _ = caches(LlamaConfig(**SHAPE), 5, 3)
    repeat_rows(cache, torch.arange(5), 4)
    before = [layer.keys.data_ptr() for layer in cache.layers]
    order = drop_rows(cache, torch.tensor([True, False, True, False, False]))
    assert order.tolist() == [3, 1, 4]
    for layer in range(2):
        cache.update(*states(3, 1), layer)
    assert [layer.keys.data_ptr() for layer in cache.layers] == before


def test_layers_of_other_kinds_are_left_to_themselves() -> None:
    """A sliding window forgets what leaves it, so its cache is no table to reserve."""
    cache, stock = caches(MistralConfig(**SHAPE, sliding_window=3), 2, 4)
    source, finished = torch.tensor([0, 0, 1, 1]), torch.tensor([True, False, False, False])
    repeat_rows(cache, source, 4)
    stock.batch_select_indices(source)
    assert not any(isinstance(layer, ReservedLayer) or type(layer) is DynamicLayer for layer in cache.layers)
    stock.batch_select_indices(drop_rows(cache, finished))
    for found, wanted in zip(cache.layers, stock.layers, strict=True):
        assert torch.equal(found.keys, wanted.keys)
        assert torch.equal(found.values, wanted.values)
