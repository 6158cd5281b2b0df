"""The reference's log-probabilities of a stage's rows: computed once, before the first step, and then looked up.

A frozen reference gives the same numbers in every epoch, so it is run once per row; on disk they are found by the
content of weights and rows, so that a resumed run, or one with another beta, computes nothing. When every row a
stage can visit is known, no copy of the weights is needed at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from contrl.interfaces import Batch, Completion, Group


def key_of(prompt_ids: Sequence[int], completion: Completion) -> bytes:
    """What the log-probabilities of a completion depend on, as 16 bytes."""
    digest = hashlib.blake2b(np.asarray([len(prompt_ids), *prompt_ids], dtype=np.int64).tobytes(), digest_size=16)
    digest.update(np.asarray(completion.ids, dtype=np.int64).tobytes())
    if completion.trained is not None:
        digest.update(np.asarray(completion.trained, dtype=np.int8).tobytes())
    return digest.digest()


def digest_of(model: nn.Module, *settings: object) -> str:
    """A hash of all weights of a model and of what else its numbers depend on."""
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            plain = tensor.detach().cpu().contiguous()
            digest.update(f"{name}{tuple(plain.shape)}{plain.dtype}".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class ReferenceRows:
    """Log-probabilities by the content of their row; empty until filled."""

    def __init__(self) -> None:
        self.values: dict[bytes, torch.Tensor] = {}

    def add(self, batch: Batch, logps: torch.Tensor) -> None:
        """Remember ``[N, T]`` of a batch."""
        table, row = logps.detach().float().cpu(), 0
        for group in batch.groups:
            for completion in group.completions:
                self.values[key_of(group.prompt_ids, completion)] = table[row, : len(completion.ids)].clone()
                row += 1

    def find(self, batch: Batch) -> torch.Tensor | None:
        """``[N, T]`` of a batch, or None when one of its rows is not known."""
        rows = [self.values.get(key_of(g.prompt_ids, c)) for g in batch.groups for c in g.completions]
        table = torch.zeros(batch.ids.shape)
        for number, row in enumerate(rows):
            if row is None:
                return None
            table[number, : len(row)] = row
        return table.to(batch.ids.device)

    def missing(self, groups: Sequence[Group]) -> list[Group]:
        """The groups of which a completion is not known."""
        return [g for g in groups if any(key_of(g.prompt_ids, c) not in self.values for c in g.completions)]

    def load(self, path: Path) -> None:
        """Add what a file holds; one that is not there, or broken, holds nothing."""
        try:
            tensors = load_file(path)
            keys, lengths, flat = tensors["keys"], tensors["lengths"], tensors["logps"]
        except (OSError, SafetensorError, KeyError):
            return
        for key, row in zip(keys, flat.split(lengths.tolist()), strict=True):
            self.values[key.numpy().tobytes()] = row.clone()

    def save(self, path: Path) -> None:
        """Write all rows, whole or not at all; a cache that cannot be written is no reason to stop."""
        if not self.values:
            return
        keys = torch.stack([torch.frombuffer(bytearray(key), dtype=torch.uint8) for key in self.values])
        lengths = torch.tensor([len(row) for row in self.values.values()])
        staging = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"keys": keys, "lengths": lengths, "logps": torch.cat(list(self.values.values()))}, staging)
            staging.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                staging.unlink()


def fill(
    rows: ReferenceRows,
    groups: Sequence[Group],
    score: Callable[[Sequence[Group]], None],
    share: tuple[int, int] = (0, 1),
) -> None:
    """Score the groups whose rows are not known yet, each rank its share, and give every rank all of them.

    Args:
        rows: is filled.
        groups: whose completions to know.
        score: runs groups and adds them to ``rows``.
        share: (rank, number of ranks).
    """
    rank, world_size = share
    unknown = rows.missing(groups)
    score(unknown[rank::world_size])
    if world_size > 1:
        everyone: list[dict[bytes, torch.Tensor]] = [{} for _ in range(world_size)]
        torch.distributed.all_gather_object(everyone, rows.values)
        for part in everyone:
            rows.values |= part
