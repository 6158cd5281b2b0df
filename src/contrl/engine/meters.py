"""What a step reports, as (sum, count) pairs: added up without waiting for the device, reduced when it is logged.

A name whose last part has ``min`` or ``max`` as a word is an extreme: of it the smallest or largest value is kept, so
that passes and ranks change no metric.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

_EXTREME = re.compile(r"(?:^|_)(min|max)(?:_|$)")


class Meters:
    """Sums and counts by name, of this rank, since they were last read."""

    def __init__(self) -> None:
        self.values: dict[str, list[Any]] = {}

    def add(self, metrics: Mapping[str, tuple[Any, Any]]) -> None:
        """Add (sum, count) pairs; of an extreme (value, anything above 0 if there is one)."""
        for name, (value, count) in metrics.items():
            value, count = (x.detach() if isinstance(x, torch.Tensor) else x for x in (value, count))
            kind = extreme(name)
            if not kind:
                entry = self.values.setdefault(name, [0.0, 0.0])
                entry[0], entry[1] = entry[0] + value, entry[1] + count
                continue
            worst = math.inf if kind == "min" else -math.inf
            entry = self.values.setdefault(name, [worst, 0.0])
            device = value.device if isinstance(value, torch.Tensor) else None
            found = torch.where(torch.as_tensor(count, device=device) > 0, torch.as_tensor(value), worst)
            both = torch.stack([torch.as_tensor(entry[0], dtype=found.dtype, device=found.device), found])
            entry[0], entry[1] = both.amin() if kind == "min" else both.amax(), entry[1] + count

    def read(self, world_size: int = 1) -> dict[str, float]:
        """The means (or extremes) over all ranks, and start anew; a collective when there are several ranks."""
        mine = {name: (float(total), float(count)) for name, (total, count) in self.values.items()}
        self.values = {}
        everyone: list[dict[str, tuple[float, float]]] = [mine]
        if world_size > 1:
            everyone = [{} for _ in range(world_size)]
            torch.distributed.all_gather_object(everyone, mine)
        reduced = {}
        for name in sorted({name for part in everyone for name in part}):
            pairs = [part[name] for part in everyone if name in part and part[name][1] > 0]
            if not pairs:
                continue
            values, kind = [value for value, _ in pairs], extreme(name)
            if kind:
                reduced[name] = min(values) if kind == "min" else max(values)
            else:
                reduced[name] = sum(values) / sum(count for _, count in pairs)
        return reduced


def extreme(name: str) -> str:
    """ "min" or "max" where the metric is one, else ""."""
    found = _EXTREME.search(name.rpartition("/")[2])
    return found.group(1) if found else ""
