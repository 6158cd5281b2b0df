"""The method's loss and metrics on held-out rows while a stage trains: what ``eval_strategy`` asks for.

Not the results matrix: that judges all tasks between stages. Nothing here is random or remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from contrl.engine.batching import to_batch
from contrl.engine.meters import Meters
from contrl.interfaces import Group
from contrl.models.modes import evaluating

if TYPE_CHECKING:
    from contrl.engine.trainer import Engine


def held_out(engine: Engine, prefix: str) -> dict[str, float]:
    """Loss and metrics on the stage's evaluation groups; per source too, where the rows have several."""
    groups = engine.work.eval_groups
    metrics = _measured(engine, groups, prefix)
    sources = {str(group.row["source"]) for group in groups if group.row.get("source") is not None}
    for source in sorted(sources) if len(sources) > 1 else ():
        part = [group for group in groups if str(group.row.get("source")) == source]
        metrics |= _measured(engine, part, f"{prefix}_{source}")
    return metrics


def _measured(engine: Engine, groups: list[Group], prefix: str) -> dict[str, float]:
    rank, world_size = engine.args.process_index, engine.args.world_size
    model, method = engine.accelerator.unwrap_model(engine.model), engine.work.method
    mine = groups[rank::world_size]
    meters, memory, loss = Meters(), dict(engine.memory), 0.0
    totals, _ = engine.agree(method.count(mine), 0, stops=False)
    engine.settle_layout(mine)
    with evaluating(model), torch.no_grad():
        statistics = engine.statistics(model, mine, memory)
        for part in engine.plan(mine):
            batch = to_batch(part, engine.args.device)
            batch.statistics = statistics
            output = method.loss(engine.outputs(model, batch), batch)
            loss += sum(float(value) / totals[name] for name, value in output.sums.items() if totals[name] > 0)
            meters.add(output.metrics)
    # The parts of the ranks add up to the loss, so it counts once.
    meters.add({"loss": (loss, float(rank == 0))})
    return {f"{prefix}_{name}": value for name, value in meters.read(world_size).items()}
