"""What a stage's strategies see, and the frozen policies that its method and strategies compare with.

The policy has the weights of the end of the stage before when a context is made; a frozen copy of them is taken once
and shared by all who want the same one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from contrl.continual.plan import Plan
from contrl.engine.forward import Routing
from contrl.engine.reference_scores import PassSettings, ReferenceScores
from contrl.engine.services import EngineServices
from contrl.errors import UserError
from contrl.interfaces import Context, Method, Origin, Stage
from contrl.models.load import Policy, load_weights
from contrl.models.reference import Reference


@dataclass
class Contexts:
    """Makes the contexts of a run's stages.

    Attributes:
        base: folder of the untouched weights, or None.
        given: a frozen model of the caller's own, the reference of every stage.
        start: the trained parameters as the run began, once ``remember`` was called.
    """

    plan: Plan
    policy: Policy
    base: Path | None
    rank: int = 0
    world_size: int = 1
    given: Any = None
    start: Mapping[str, torch.Tensor] | None = field(default=None, init=False)

    def remember_start(self) -> None:
        """Keep a copy of the trained parameters; called while the policy has the run's first weights."""
        named = self.policy.model.named_parameters()
        self.start = {name: p.detach().to("cpu", copy=True) for name, p in named if p.requires_grad}

    def make(self, stage: Stage) -> Context:
        """The context of a stage, with services that work before there is an engine."""
        context = Context(
            model=self.policy.model,
            tokenizer=self.policy.tokenizer,
            method=self.plan.method_for(stage),
            sequence=self.plan.sequence,
            stage=stage,
            seed=self.plan.seed,
            rank=self.rank,
            world_size=self.world_size,
        )
        context.services = EngineServices(
            context, lambda origin: self._frozen(origin, stage), lambda: self._settings(context), self.start
        )
        return context

    def _settings(self, context: Context) -> PassSettings:
        method, device = context.method, next(self.policy.model.parameters()).device
        routing = Routing("plain", method.temperature, method.needs)
        share = (self.rank, self.world_size)
        tokens = self.plan.tokens_per_pass
        return PassSettings(self.policy.model, routing, tokens, device, contextlib.nullcontext, share)

    def _frozen(self, origin: Origin, stage: Stage) -> Reference:
        """A copy of the policy as it is; of ``base`` after the first stage with the run's first weights put in."""
        reference = Reference(self.policy.model, origin)
        if origin == "base" and stage.index > 1 and reference.frozen is not None:
            if self.base is None:
                raise UserError(
                    "the run's first weights are gone", why="nobody kept a copy of them", fix="use previous"
                )
            load_weights(reference.frozen, self.base)
        return reference

    def reference_scores(self, context: Context) -> ReferenceScores:
        """The reference of the stage's method; the policy still has the weights that the stage begins with."""
        method, stage = context.method, context.stage
        if self.given is not None:
            given = self.given
            return ReferenceScores(
                lambda: Reference.of(given, self.policy.model), is_policy=False, cache=self.plan.cache
            )
        changed = method.reference == "base" and stage.index > 1
        adapter = hasattr(self.policy.model, "peft_config")
        is_policy = not changed and not (adapter and method.reference == "base")

        def make() -> Reference:
            # One that moves cannot be shared.
            return self._frozen(method.reference, stage) if moves(method) else shared(method.reference)

        shared = context.services.reference
        return ReferenceScores(make, is_policy=is_policy, cache=self.plan.cache)


def moves(method: Method) -> bool:
    """Whether the method's reference follows the policy."""
    return method.reference == "ema" or method.sync_every > 0
