"""Rows of a step, passes of a step, tensors of a pass."""

from __future__ import annotations

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler
from toys import CPU, ragged_groups

from contrl.engine.batching import PADDING, BlockSampler, num_tokens, plan_passes, to_batch
from contrl.interfaces import Completion, Group


def group(name: str, prompt: int, *lengths: int) -> Group:
    return Group(name, "t", [5] * prompt, [Completion([6] * length) for length in lengths])


# --- BlockSampler -------------------------------------------------------------------------------------------


def test_blocks_repeat_and_nothing_is_dropped() -> None:
    """7 rows in blocks of 3, each block twice (TRL's sampler drops the last row here; ours pads the last block)."""
    rows = list(BlockSampler(7, block=3, num_blocks=3, repeats=2, seed=None))
    assert rows == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5, 6, PADDING, PADDING, 6, PADDING, PADDING]
    assert len(BlockSampler(7, 3, 3, 2)) == len(rows)


def test_every_epoch_has_an_order_of_its_own() -> None:
    sampler = BlockSampler(10, block=5, num_blocks=6, seed=4)
    rows = list(sampler)
    epochs = [rows[i : i + 10] for i in range(0, 30, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert list(sampler) == rows  # a second pass over the sampler repeats the first
    assert list(BlockSampler(10, 5, 6, seed=5)) != rows


def test_a_dataset_smaller_than_a_block_fills_it_once() -> None:
    assert list(BlockSampler(2, block=4, num_blocks=2, seed=None)) == [0, 1, PADDING, PADDING] * 2


def test_padding_keeps_accelerate_from_repeating_rows() -> None:
    """5 rows, 2 ranks, 2 rows a rank and step. A plain sampler repeats 3 rows to even the ranks; ours repeats none."""

    def rank_rows(sampler: object, rank: int) -> list[int]:
        batches = BatchSampler(sampler, batch_size=2, drop_last=False)
        return [row for batch in BatchSamplerShard(batches, 2, rank) for row in batch]

    plain = [rank_rows(range(5), rank) for rank in range(2)]
    assert sorted(plain[0] + plain[1]) != list(range(5))  # the trap: contract with accelerate
    ours = [rank_rows(BlockSampler(5, block=4, num_blocks=2, seed=None), rank) for rank in range(2)]
    assert sorted(row for row in ours[0] + ours[1] if row != PADDING) == list(range(5))
    assert len(ours[0]) == len(ours[1]) == 4


def test_both_ranks_see_the_same_rows_in_every_repeat_of_a_block() -> None:
    """A rank's rollouts serve every step of its window, so each repeat must hand it the same rows."""
    for rank in range(2):
        batches = BatchSampler(BlockSampler(8, 4, 2, repeats=3, seed=1), batch_size=1, drop_last=False)
        rows = [row for batch in BatchSamplerShard(batches, 2, rank) for row in batch]
        assert rows[:6] == rows[:2] * 3
        assert rows[6:] == rows[6:8] * 3


# --- plan_passes --------------------------------------------------------------------------------------------


def test_passes_hold_what_the_budget_says() -> None:
    """Prompt 4 + 2 completions of at most 3 = 10 tokens a group: two fit in 20, in 19 one."""
    groups = [group(str(i), 4, 3, 2) for i in range(5)]
    assert num_tokens(groups[0]) == 10
    assert sorted(len(part) for part in plan_passes(groups, 20, overhead=1)) == [1, 2, 2]
    assert [len(part) for part in plan_passes(groups, 19)] == [1] * 5


def test_without_sharing_each_completion_pays_for_its_prompt() -> None:
    """Prompt 4, 2 completions of 3: 2 x (4 + 3) = 14 tokens a group in the plain layout."""
    groups = [group(str(i), 4, 3, 3) for i in range(4)]
    assert [len(part) for part in plan_passes(groups, 28, layout="plain", overhead=1)] == [2, 2]
    assert [len(part) for part in plan_passes(groups, 27, layout="plain")] == [1] * 4
    assert [len(part) for part in plan_passes(groups, 28, overhead=1)] == [2, 2]


def test_lengths_that_differ_are_kept_apart() -> None:
    """One long group beside short ones would pad them all: it gets a pass of its own."""
    groups = [group("short0", 2, 2, 2), group("long", 2, 40, 40), group("short1", 2, 2, 2)]
    assert [[g.row_id for g in part] for part in plan_passes(groups, 90, overhead=1)] == [
        ["long"],
        ["short1", "short0"],
    ]


def test_single_and_several_completions_never_share_a_pass() -> None:
    groups = [group("one", 3, 4), group("two", 3, 4, 4), group("none", 3), group("uno", 3, 2)]
    assert [[g.row_id for g in part] for part in plan_passes(groups, 10**6, overhead=9)] == [["one", "uno"], ["two"]]


def test_no_groups_make_no_passes() -> None:
    assert plan_passes([], 100) == []
    assert plan_passes([group("none", 3)], 100) == []


# --- to_batch -------------------------------------------------------------------------------------------------


def test_tensors_of_a_pass() -> None:
    first = Completion([7, 8], trained=[False, True], weight=0.5, advantage=1.5, old_logps=[-0.1, -0.2])
    groups = [Group("a", "t", [5], [first]), Group("b", "t", [5, 6], [Completion([9]), Completion([4, 3, 2])])]
    assert to_batch(groups, CPU, use_old_logps=True).old_logps is None
    for completion in groups[1].completions:
        completion.old_logps = [0.0] * len(completion.ids)
    batch = to_batch(groups, CPU, use_old_logps=True)
    assert batch.group_index.tolist() == [0, 1, 1]
    assert batch.ids.tolist() == [[7, 8, 0], [9, 0, 0], [4, 3, 2]]
    assert batch.mask.tolist() == [[False, True, False], [True, False, False], [True] * 3]
    assert batch.weights.tolist() == [0.5, 1.0, 1.0]
    assert batch.advantages.tolist() == [1.5, 0.0, 0.0]
    assert batch.old_logps is not None
    torch.testing.assert_close(batch.old_logps, torch.tensor([[-0.1, -0.2, 0.0], [0.0] * 3, [0.0] * 3]))
    assert to_batch(groups, CPU).old_logps is None


def test_ragged_groups_are_ragged() -> None:
    """The toys' own promise: prompts, lengths, group sizes and masks all differ."""
    groups = ragged_groups()
    assert len({len(g.prompt_ids) for g in groups}) == len({len(g.completions) for g in groups}) == 3
    assert any(c.trained is not None and not all(c.trained) for g in groups for c in g.completions)


@pytest.mark.parametrize("width", [1, 5])
def test_padding_is_never_trained(width: int) -> None:
    batch = to_batch([group("a", 2, width, 1)], CPU)
    assert batch.mask.sum(-1).tolist() == [width, 1]


def test_golden_repeats_without_shuffling() -> None:
    """TRL's repeat sampler: 7 items, each once per step of a window of 2: 0 0 1 1 ... 6 6; and batch 3, 2 samples, 2
    repeats over 7 items: 24 indices, block 1 = block 2, the seventh item dropped.

    Here samples are inside the group (24 / 2 = 12 indices of prompts) and no item is dropped: the seventh comes in a
    block of its own, beside padding that is no row.
    """
    assert list(BlockSampler(7, 1, 7, 2, None)) == [i for i in range(7) for _ in range(2)]
    order = list(BlockSampler(7, 3, 3, 2, None))
    assert order[:12] == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert order[12:] == [6, PADDING, PADDING] * 2
