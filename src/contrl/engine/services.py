"""What the engine does for strategies: importance of weights, frozen policies, their outputs, values of all ranks.

One object a stage. A frozen policy is made once and shared by the method and every strategy that wants it, so two
strategies and a KL term cost one copy of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from contrl.engine.batching import to_batch
from contrl.engine.coupling import gather
from contrl.engine.forward import Routing, head_of, score_batch
from contrl.engine.importance import importance
from contrl.engine.reference_scores import PassSettings
from contrl.interfaces import Batch, Context, Group, OnlineMethod, Origin, Outputs
from contrl.interfaces.strategies import Importance, Space
from contrl.models.load import end_tokens
from contrl.models.reference import Reference
from contrl.rollout.sampler import Noise, Sampling, generate

_TAG = 0x1F15


@dataclass
class EngineServices:
    """``interfaces.strategies.Services`` of one stage.

    Attributes:
        context: of the stage.
        make_reference: takes a frozen policy of an origin.
        settings: how passes are run; before there is an engine a plain guess, afterwards the engine's.
        start: the trained parameters as the run began, or None when no strategy asked for them.
        groups: the stage's prepared rows, set once there is an engine.
    """

    context: Context
    make_reference: Callable[[Origin], Reference]
    settings: Callable[[], PassSettings]
    start: Mapping[str, torch.Tensor] | None = None
    groups: list[Group] = field(default_factory=list)
    _frozen: dict[Origin, Reference] = field(default_factory=dict, init=False)

    def importance(self, kind: Importance, num_samples: int, space: Space = "weights") -> dict[str, torch.Tensor]:
        """See ``Services``."""
        context, method = self.context, self.context.method
        order = np.random.default_rng([context.seed, _TAG, context.stage.index]).permutation(len(self.groups))
        groups = [self.groups[i] for i in order[:num_samples]]
        if isinstance(method, OnlineMethod):
            groups = self._answered(groups, method)
        return importance(kind, groups, method, self.settings(), space)

    def _answered(self, groups: list[Group], method: OnlineMethod) -> list[Group]:
        """The prompts with one answer each of the current policy; the same on every rank."""
        context, settings = self.context, self.settings()
        sampling = Sampling(method.max_new_tokens, 1, method.temperature)
        prompts = [(f"{group.task}/{group.row_id}", group.prompt_ids) for group in groups]
        noise = Noise((context.seed, _TAG, context.stage.index))
        with settings.autocast():
            sampled = generate(context.model, prompts, sampling, noise, end_tokens(context.model), settings.tokens)
        answered = [
            Group(group.row_id, group.task, group.prompt_ids, completions, group.row)
            for group, completions in zip(groups, sampled, strict=True)
        ]
        return [group for group in answered if group.completions[0].ids]

    def reference(self, origin: Origin) -> Reference:
        """See ``Services``."""
        if origin not in self._frozen:
            self._frozen[origin] = self.make_reference(origin)
        return self._frozen[origin]

    def read(self, reference: Reference, batch: Batch) -> Outputs:
        """See ``Services``."""
        settings, method = self.settings(), self.context.method
        needs = frozenset(method.needs) & {"scores"}
        with reference.model() as model, torch.no_grad(), settings.autocast():
            routing = Routing(settings.routing.layout, method.temperature, needs)
            return Outputs(**score_batch(model, head_of(model, needs), batch, routing))

    def batch(self, groups: Sequence[Group]) -> Batch:
        """See ``Services``."""
        return to_batch(groups, self.settings().device)

    def start_weights(self) -> Mapping[str, torch.Tensor]:
        """See ``Services``."""
        if self.start is None:
            raise RuntimeError("nobody said before the run that its first weights would be asked for")
        return self.start

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """See ``Services``."""
        settings = self.settings()
        return gather({"": [values]}, settings.share[1], settings.device)[""].cpu()
