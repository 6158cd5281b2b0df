"""What a step reports, as (sum, count) pairs: added up without waiting for the device, reduced when it is logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


class Meters:
    """Sums and counts by name, of this rank, since they were last read."""

    def __init__(self) -> None:
        self.values: dict[str, list[Any]] = {}

    def add(self, metrics: Mapping[str, tuple[Any, Any]]) -> None:
        """Add (sum, count) pairs."""
        for name, pair in metrics.items():
            entry = self.values.setdefault(name, [0.0, 0.0])
            for place, value in enumerate(pair):
                entry[place] = entry[place] + (value.detach() if isinstance(value, torch.Tensor) else value)

    def read(self, world_size: int = 1) -> dict[str, float]:
        """The means over all ranks, and start anew; a collective when there are several ranks."""
        mine = {name: (float(total), float(count)) for name, (total, count) in self.values.items()}
        self.values = {}
        everyone: list[dict[str, tuple[float, float]]] = [mine]
        if world_size > 1:
            everyone = [{} for _ in range(world_size)]
            torch.distributed.all_gather_object(everyone, mine)
        reduced = {}
        for name in sorted({name for part in everyone for name in part}):
            total, count = (sum(part.get(name, (0.0, 0.0))[i] for part in everyone) for i in (0, 1))
            if count > 0:
                reduced[name] = total / count
        return reduced
