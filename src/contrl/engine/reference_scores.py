"""Reference log-probabilities for a stage: from a table where the reference stands still, else from the live model.

At the start of a stage the policy itself often *is* the reference, so filling the table needs no copy of it; a copy
is made only for a reference that moves (EMA, TR-DPO) and for rows that strategies add from outside the stage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from contrl.engine.batching import overhead, plan_passes, to_batch
from contrl.engine.forward import Routing, score_batch
from contrl.engine.lm_head import LMHead
from contrl.engine.reference_rows import ReferenceRows, digest_of, fill
from contrl.interfaces import Batch, Group, Method
from contrl.models.modes import evaluating
from contrl.models.reference import Reference


@dataclass(frozen=True)
class PassSettings:
    """How passes without gradient are run: on which model, in which layout, of how many tokens, by which ranks.

    ``share`` is (rank, number of ranks).
    """

    model: nn.Module
    routing: Routing
    tokens: int
    device: torch.device
    autocast: Any
    share: tuple[int, int] = (0, 1)


class ReferenceScores:
    """What a stage's reference says of completions.

    Args:
        make: takes a frozen copy; called before the first step, while the policy has the stage's first weights.
        is_policy: whether the policy's weights at that moment are the reference's.
        cache: folder of tables kept between runs; None keeps none.
    """

    def __init__(self, make: Callable[[], Reference], *, is_policy: bool, cache: Path | None = None) -> None:
        self.make, self.is_policy, self.cache = make, is_policy, cache
        self.rows = ReferenceRows()
        self.live: Reference | None = None

    @property
    def is_ready(self) -> bool:
        """Whether ``prepare`` has been called."""
        return self.live is not None or bool(self.rows.values)

    def prepare(
        self, method: Method, steps: Sequence[Sequence[Group]], pass_settings: PassSettings, *, outside: bool
    ) -> None:
        """Fill the table with the groups of a stage, and keep a live reference where a table is not enough.

        Args:
            method: says whether the reference moves.
            steps: the groups to look up later, as the optimizer steps take them: run in the same passes, they are
                rounded as the policy is, which in half precision shows. Empty when too few groups will be visited.
            pass_settings: how passes are run.
            outside: whether other rows may be asked for.
        """
        moves = method.reference == "ema" or method.sync_every > 0
        wanted = [] if moves else [part for step in steps for part in (list(step), contrasts(step)) if part]
        if outside or not wanted:
            self.live = self.make()
        if wanted:
            with self._first(pass_settings.model) as model:
                path = self._path(model, pass_settings, wanted)
                if path is not None:
                    self.rows.load(path)
                known = len(self.rows.values)
                for part in wanted:
                    fill(self.rows, part, lambda rows: self._score(model, rows, pass_settings), pass_settings.share)
                if path is not None and len(self.rows.values) > known and pass_settings.share[0] == 0:
                    self.rows.save(path)

    @contextlib.contextmanager
    def _first(self, policy: nn.Module) -> Iterator[nn.Module]:
        if self.live is None and self.is_policy:
            with evaluating(policy):
                yield policy
        else:
            with (self.live or self.make()).model() as model:
                yield model

    def _path(self, model: nn.Module, settings: PassSettings, steps: Sequence[Sequence[Group]]) -> Path | None:
        if self.cache is None:
            return None
        with settings.autocast():
            half = torch.is_autocast_enabled(settings.device.type)
        half = half or next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
        # What half precision rounds depends on which rows share a pass.
        passes = [[group.row_id for group in step] for step in steps] if half else None
        return self.cache / f"{digest_of(model, passes, settings.routing.temperature)}.safetensors"

    def _score(self, model: nn.Module, groups: Sequence[Group], settings: PassSettings) -> None:
        for part in plan_passes(
            groups, settings.tokens, layout=settings.routing.layout, overhead=overhead(settings.device)
        ):
            batch = to_batch(part, settings.device)
            self.rows.add(batch, _logps(model, batch, settings))

    def logps(self, batch: Batch, settings: PassSettings) -> torch.Tensor:
        """``[N, T]`` of a batch, without gradient."""
        found = None if self.live is not None and not self.rows.values else self.rows.find(batch)
        if found is not None:
            return found
        if self.live is None:
            raise RuntimeError("a row has no reference log-probabilities and there is no reference to ask")
        with self.live.model() as model:
            return _logps(model, batch, settings)


def _logps(model: nn.Module, batch: Batch, settings: PassSettings) -> torch.Tensor:
    with torch.no_grad(), settings.autocast():
        routing = Routing(settings.routing.layout, settings.routing.temperature)
        return score_batch(model, LMHead(model), batch, routing)["logps"]


def contrasts(groups: Sequence[Group]) -> list[Group]:
    """The groups' contrasts as groups of their own."""
    return [Group(g.row_id, g.task, g.prompt_ids, [g.contrast], g.row) for g in groups if g.contrast is not None]
