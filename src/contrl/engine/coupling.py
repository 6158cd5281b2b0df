"""Values of all rows of a step, on every rank: what methods that couple rows are settled by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


def gather(
    values: Mapping[str, Sequence[torch.Tensor]], world_size: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """One tensor ``[R]`` a name, over passes and ranks; a rank without rows still gets every name."""
    mine = {name: torch.cat(list(parts)).cpu() for name, parts in values.items()}
    everyone = [mine]
    if world_size > 1:
        everyone = [{} for _ in range(world_size)]
        torch.distributed.all_gather_object(everyone, mine)
    # Doubles, but not on devices that have none.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    names = sorted({name for part in everyone for name in part})
    return {name: torch.cat([part[name] for part in everyone if name in part]).to(device, dtype) for name in names}
