"""From groups to passes: which rows make a step, which groups share a forward, and their tensors.

A step is a set of groups; how it is cut into passes is decided here, by length and a token budget, and
never changes the result. The order of the rows is a function of (seed, epoch) alone, so that a resumed run,
or one on more ranks, sees the same steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from contrl.interfaces import Batch, Group

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


def num_tokens(group: Group) -> int:
    """Padded size of the group alone: its prompt once and each completion at the length of the longest."""
    return len(group.prompt_ids) + len(group.completions) * max((len(c.ids) for c in group.completions), default=0)


def plan_passes(groups: Sequence[Group], tokens_per_pass: int, *, shared: bool = True) -> list[list[Group]]:
    """Cut groups into passes of similar lengths, each of at most ``tokens_per_pass`` padded tokens.

    Groups of one completion and groups of several never share a pass, because their layouts differ. A group
    that exceeds the budget alone gets a pass of its own. Where prompts are not ``shared``, each completion
    repeats its own.
    """
    passes: list[list[Group]] = []
    for several in (False, True):
        kind = [group for group in groups if group.completions and (len(group.completions) > 1) == several]
        kind.sort(key=lambda g: (max(len(c.ids) for c in g.completions), len(g.prompt_ids), g.row_id), reverse=True)
        current: list[Group] = []
        rows = longest = prompt = 0
        for group in kind:
            wider = max(longest, *(len(c.ids) for c in group.completions))
            longer = max(prompt, len(group.prompt_ids))
            num_rows = rows + len(group.completions)
            size = (len(current) + 1 if shared else num_rows) * longer + num_rows * wider
            if current and size > tokens_per_pass:
                passes.append(current)
                current, num_rows = [], len(group.completions)
                wider, longer = max(len(c.ids) for c in group.completions), len(group.prompt_ids)
            current.append(group)
            rows, longest, prompt = num_rows, wider, longer
        if current:
            passes.append(current)
    return passes


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
    old = [c.old_logps or [] for c in completions]
    return Batch(
        groups=list(groups),
        group_index=torch.tensor(index, dtype=torch.long, device=device),
        ids=_pad([c.ids for c in completions], width, torch.long).to(device),
        mask=_pad(trained, width, torch.bool).to(device),
        weights=torch.tensor([c.weight for c in completions], dtype=torch.float32, device=device),
        advantages=torch.tensor([c.advantage for c in completions], dtype=torch.float32, device=device),
        old_logps=_pad(old, width, torch.float32).to(device) if use_old_logps else None,
    )
