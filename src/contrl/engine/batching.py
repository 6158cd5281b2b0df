"""From groups to passes: which rows make a step, which groups share a forward, and their tensors.

A step is a set of groups; how it is cut into passes is decided here, by length and a token budget, and
never changes the result. The order of the rows is a function of (seed, epoch) alone, so that a resumed run,
or one on more ranks, sees the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Sampler

from contrl.interfaces import Batch, Group

Layout = Literal["shared", "plain", "packed"]
"""How a pass is laid out; see ``engine/shared_prompt.py``."""

PADDING = -1
"""Index that fills the last block of an epoch: no row, so that accelerate never repeats one to even the ranks."""


class BlockSampler(Sampler[int]):
    """Row indices in blocks, epoch after epoch; a block is one rollout window, yielded once per step of the window.

    Args:
        num_rows: rows of the stage.
        block: rows of one block over all ranks and accumulation steps.
        num_blocks: blocks of the whole stage.
        repeats: optimizer steps that reuse a block (1 for offline methods).
        seed: of the shuffling; None keeps the order of the rows.
    """

    def __init__(self, num_rows: int, block: int, num_blocks: int, repeats: int = 1, seed: int | None = 0) -> None:
        self.num_rows, self.block, self.num_blocks = num_rows, block, num_blocks
        self.repeats, self.seed = repeats, seed

    def __iter__(self) -> Iterator[int]:
        per_epoch = -(-self.num_rows // self.block)
        order = np.arange(self.num_rows)
        for number in range(self.num_blocks):
            epoch, position = divmod(number, per_epoch)
            if position == 0 and self.seed is not None:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
            rows = order[position * self.block : (position + 1) * self.block].tolist()
            yield from (rows + [PADDING] * (self.block - len(rows))) * self.repeats

    def __len__(self) -> int:
        return self.num_blocks * self.block * self.repeats


def overhead(device: torch.device) -> int:
    """What one more call of the model costs, in tokens: an accelerator is slow to start kernels."""
    return 128 if device.type == "cpu" else 8192


def buckets(lengths: Sequence[int], cost: int) -> list[list[int]]:
    """Rows cut by length, the longest first, where padding would cost more than one more call.

    Args:
        lengths: tokens of each row.
        cost: of one more call, in tokens.

    Returns:
        Indices of the rows of each bucket; dynamic programming over cuts of the sorted rows.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    sizes = np.array([lengths[row] for row in order], dtype=np.int64)
    best, cuts = np.zeros(len(order) + 1), [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        costs = best[:end] + np.arange(end, 0, -1) * sizes[:end] + cost
        cuts[end] = int(costs.argmin())
        best[end] = costs[cuts[end]]
    found, end = [], len(order)
    while end > 0:
        found.append(sorted(order[cuts[end] : end]))
        end = cuts[end]
    return found[::-1]


def num_tokens(group: Group) -> int:
    """Padded size of the group alone: its prompt once and each completion at the length of the longest."""
    return len(group.prompt_ids) + len(group.completions) * max((len(c.ids) for c in group.completions), default=0)


def plan_passes(
    groups: Sequence[Group], tokens_per_pass: int, *, layout: Layout = "shared", overhead: int = 0
) -> list[list[Group]]:
    """Cut groups into passes, so that the padded tokens are few; the sum over passes does not depend on the cut.

    Groups of one completion and groups of several never share a pass, because their layouts differ. A group that
    exceeds the budget alone gets a pass of its own.

    Args:
        groups: of one step.
        tokens_per_pass: padded tokens that a pass may have.
        layout: the preferred one; in the plain layout each completion repeats its prompt.
        overhead: what one more pass costs, in tokens: high where starting kernels takes longer than running them.
    """
    passes: list[list[Group]] = []
    for several in (False, True):
        kind = [group for group in groups if group.completions and (len(group.completions) > 1) == several]
        size = _SIZES["plain" if layout == "shared" and not several else layout]
        plans = [
            _cheapest_cut(sorted(kind, key=order, reverse=True), tokens_per_pass, size, overhead) for order in _ORDERS
        ]
        passes += min(plans, key=lambda plan: plan[0])[1]
    return passes


_ORDERS: tuple[Callable[[Group], tuple], ...] = (
    lambda g: (max(len(c.ids) for c in g.completions), len(g.prompt_ids), g.row_id),
    lambda g: (len(g.prompt_ids), max(len(c.ids) for c in g.completions), g.row_id),
    lambda g: (len(g.prompt_ids) + max(len(c.ids) for c in g.completions), len(g.prompt_ids), g.row_id),
)


@dataclass
class _Shape:
    """Of some groups: their number, that of their completions, the longest parts and whole, and all tokens."""

    groups: int = 0
    rows: int = 0
    prompt: int = 0
    completion: int = 0
    longest: int = 0
    total: int = 0

    def add(self, group: Group) -> None:
        widest = max(len(c.ids) for c in group.completions)
        self.groups += 1
        self.rows += len(group.completions)
        self.prompt, self.completion = max(self.prompt, len(group.prompt_ids)), max(self.completion, widest)
        self.longest = max(self.longest, len(group.prompt_ids) + widest)
        self.total += sum(len(group.prompt_ids) + len(c.ids) for c in group.completions)


_SIZES: dict[Layout, Callable[[_Shape], int]] = {
    "shared": lambda shape: shape.groups * shape.prompt + shape.rows * shape.completion,
    "plain": lambda shape: shape.rows * shape.longest,
    "packed": lambda shape: shape.total,
}
"""Padded tokens of a pass."""


def _cheapest_cut(
    groups: list[Group], budget: int, size: Callable[[_Shape], int], overhead: int
) -> tuple[int, list[list[Group]]]:
    """The cheapest cut of an ordered list into neighbours, by dynamic programming: its cost and the passes."""
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(groups) + 1):
        shape = _Shape()
        found: tuple[int, int] | None = None
        for start in range(end - 1, max(-1, end - 1 - _WINDOW), -1):
            shape.add(groups[start])
            tokens = size(shape)
            if tokens > budget and start < end - 1:
                break
            cost = best[start][0] + tokens + overhead
            if found is None or cost <= found[0]:
                found = (cost, start)
        assert found is not None
        best.append(found)
    passes, end = [], len(groups)
    while end > 0:
        start = best[end][1]
        passes.append(groups[start:end])
        end = start
    return best[-1][0], passes[::-1]


_WINDOW = 512
"""Most groups of one pass: keeps planning a large step fast."""


def _pad(values: Sequence[Sequence[float]], width: int, dtype: torch.dtype) -> torch.Tensor:
    table = torch.zeros(len(values), width, dtype=dtype)
    for row, value in enumerate(values):
        table[row, : len(value)] = torch.as_tensor(value, dtype=dtype)
    return table


def to_batch(groups: Sequence[Group], device: torch.device, *, use_old_logps: bool = False) -> Batch:
    """The tensors of one pass. ``use_old_logps`` when the policy has moved since it sampled the groups."""
    completions = [completion for group in groups for completion in group.completions]
    width = max((len(completion.ids) for completion in completions), default=0)
    index = [position for position, group in enumerate(groups) for _ in group.completions]
    trained = [c.trained if c.trained is not None else [True] * len(c.ids) for c in completions]

    def table(name: str) -> torch.Tensor | None:
        """``[N, T]`` of what the completions carry under a name; None where any of them has none."""
        found = [getattr(completion, name) for completion in completions]
        known = bool(found) and all(value is not None for value in found)
        return _pad(found, width, torch.float32).to(device) if known else None

    return Batch(
        groups=list(groups),
        group_index=torch.tensor(index, dtype=torch.long, device=device),
        ids=_pad([c.ids for c in completions], width, torch.long).to(device),
        mask=_pad(trained, width, torch.bool).to(device),
        weights=torch.tensor([c.weight for c in completions], dtype=torch.float32, device=device),
        advantages=torch.tensor([c.advantage for c in completions], dtype=torch.float32, device=device),
        old_logps=table("old_logps") if use_old_logps else None,
        sampler_logps=table("sampler_logps") if use_old_logps else None,
        reference_logps=table("reference_logps"),
        old_values=table("values"),
        token_advantages=table("token_advantages"),
        returns=table("returns"),
        correction=table("correction"),
    )
