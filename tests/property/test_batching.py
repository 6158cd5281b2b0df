"""Rows and passes, whatever the sizes: nothing lost, nothing twice, no budget broken."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from contrl.engine.batching import PADDING, BlockSampler, num_tokens, plan_passes, to_batch
from contrl.interfaces import Completion, Group

sizes = st.integers(1, 40)


@given(
    num_rows=sizes,
    block=st.integers(1, 12),
    repeats=st.integers(1, 4),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_every_row_comes_once_an_epoch_in_every_repeat(
    num_rows: int, block: int, repeats: int, epochs: int, seed: int
) -> None:
    per_epoch = -(-num_rows // block)
    sampler = BlockSampler(num_rows, block, per_epoch * epochs, repeats, seed)
    indices = list(sampler)
    assert len(indices) == len(sampler) == per_epoch * epochs * block * repeats
    windows = [indices[i : i + block * repeats] for i in range(0, len(indices), block * repeats)]
    for window in windows:
        assert window == window[:block] * repeats
    for epoch in range(epochs):
        rows = [i for window in windows[epoch * per_epoch : (epoch + 1) * per_epoch] for i in window[:block]]
        assert sorted(i for i in rows if i != PADDING) == list(range(num_rows))
        assert rows.count(PADDING) == per_epoch * block - num_rows


@given(num_rows=sizes, blocks=st.tuples(sizes, sizes), seed=st.integers(0, 9))
def test_the_order_depends_on_seed_and_epoch_alone(num_rows: int, blocks: tuple[int, int], seed: int) -> None:
    """Another block size, number of repeats or of ranks leaves the order of an epoch's rows as it is."""

    def first_two_epochs(block: int, repeats: int) -> list[int]:
        per_epoch = -(-num_rows // block)
        indices = list(BlockSampler(num_rows, block, 2 * per_epoch, repeats, seed))
        windows = range(0, len(indices), block * repeats)
        return [i for start in windows for i in indices[start : start + block] if i != PADDING]

    assert first_two_epochs(blocks[0], 1) == first_two_epochs(blocks[1], 3)


@given(
    num_rows=sizes,
    block=st.integers(1, 12),
    shorter=st.integers(0, 9),
    more=st.integers(0, 9),
    seed=st.none() | st.integers(0, 9),
)
def test_a_longer_stage_begins_like_a_shorter_one(
    num_rows: int, block: int, shorter: int, more: int, seed: int | None
) -> None:
    """So a stage whose number of steps is raised on resume repeats no row and skips none."""
    short = list(BlockSampler(num_rows, block, shorter, 2, seed))
    assert list(BlockSampler(num_rows, block, shorter + more, 2, seed))[: len(short)] == short


@st.composite
def some_groups(draw: st.DrawFn) -> list[Group]:
    shapes = draw(st.lists(st.tuples(st.integers(1, 20), st.lists(st.integers(1, 20), max_size=4)), max_size=8))
    return [
        Group(str(name), "t", [5] * prompt, [Completion([6] * length) for length in lengths])
        for name, (prompt, lengths) in enumerate(shapes)
    ]


@given(groups=some_groups(), budget=st.integers(1, 200), shared=st.booleans())
def test_passes_are_a_partition_within_the_budget(groups: list[Group], budget: int, shared: bool) -> None:
    passes = plan_passes(groups, budget, layout="shared" if shared else "plain")
    assert sorted(g.row_id for part in passes for g in part) == sorted(g.row_id for g in groups if g.completions)
    for part in passes:
        rows = sum(len(g.completions) for g in part)
        prompts = len(part) if shared else rows
        width = max(len(c.ids) for g in part for c in g.completions)
        assert len(part) == 1 or prompts * max(len(g.prompt_ids) for g in part) + rows * width <= budget
        assert len({len(g.completions) > 1 for g in part}) == 1
    assert all(num_tokens(part[0]) > 0 for part in passes)


@given(groups=some_groups())
def test_the_order_of_groups_changes_no_pass(groups: list[Group]) -> None:
    assert plan_passes(groups, 60) == plan_passes(groups[::-1], 60)


@given(groups=some_groups().filter(lambda groups: any(g.completions for g in groups)))
def test_tensors_hold_every_token_and_nothing_else(groups: list[Group]) -> None:
    batch = to_batch(groups, torch.device("cpu"))
    completions = [c for g in groups for c in g.completions]
    assert batch.mask.sum(-1).tolist() == [len(c.ids) for c in completions]
    assert (batch.ids == 6).equal(batch.mask)
    assert [groups[i].row_id for i in batch.group_index.tolist()] == [g.row_id for g in groups for _ in g.completions]
