"""A frozen policy with a stated origin, for methods and strategies that compare with one.

The origin is explicit: ``base`` (the weights the run started from), ``previous`` (the weights at the start of
the stage) or ``ema`` (a moving average of the policy). One reference serves everything that needs it. Under LoRA
``base`` is the policy with its adapters off; ``previous`` and ``ema`` keep a frozen copy of the adapter's weights.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import nn

from contrl.errors import UserError
from contrl.models.modes import evaluating, unchanged_training
from contrl.models.trained import copied, exchanged, trained
from contrl.models.value_head import without_value

Origin = Literal["base", "previous", "ema"]


class Reference:
    """Frozen weights to score with.

    Args:
        policy: the model being trained (unwrapped); never changed, only borrowed under LoRA.
        origin: where the frozen weights come from. ``base`` on full fine-tuning must be taken before training.
        decay: of the moving average, for ``ema``.
    """

    def __init__(self, policy: nn.Module, origin: Origin, decay: float = 0.999) -> None:
        if origin not in get_args(Origin):
            raise UserError(f"unknown reference {origin!r}", fix=f"use one of {', '.join(get_args(Origin))}")
        self.policy, self.origin, self.decay = policy, origin, decay
        self.is_adapter = hasattr(policy, "peft_config")
        self.frozen: nn.Module | None = None
        self.adapter: dict[str, torch.Tensor] = {}
        if self.is_adapter:
            if origin != "base":
                self.adapter = copied(self._trainable())
        else:
            with without_value(policy):
                self.frozen = copy.deepcopy(policy).requires_grad_(False).eval()
            for name in ("forward", "_original_forward"):
                # An instance-level forward is a closure over the policy; the copy must run its own weights.
                self.frozen.__dict__.pop(name, None)

    @classmethod
    def of(cls, frozen: nn.Module, policy: nn.Module) -> Reference:
        """A model of the caller's own as the reference of ``policy``; it is neither copied nor trained."""
        reference = cls.__new__(cls)
        reference.policy, reference.origin, reference.decay = policy, "previous", 0.999
        reference.is_adapter, reference.adapter = False, {}
        reference.frozen = frozen.requires_grad_(False).eval()
        return reference

    def _trainable(self) -> dict[str, nn.Parameter]:
        return trained(self.policy.named_parameters())

    def update(self) -> None:
        """Move an ``ema`` reference towards the policy: ``r <- decay r + (1 - decay) p``."""
        if self.origin != "ema":
            raise UserError(f"a {self.origin!r} reference does not move", fix="use origin 'ema'")
        self.move(1 - self.decay)

    def move(self, share: float) -> None:
        """Take a share of the policy's weights: ``r <- (1 - share) r + share p`` (TR-DPO, arXiv:2404.09656, eq. 5)."""
        if self.is_adapter and self.origin == "base":
            raise UserError(
                "a base reference under LoRA cannot follow the policy", fix="use origin 'previous' or 'ema'"
            )
        with torch.no_grad(), without_value(self.policy):
            if self.frozen is not None:
                for mine, theirs in zip(self.frozen.parameters(), self.policy.parameters(), strict=True):
                    mine.lerp_(theirs.detach(), share)
            for name, parameter in self._trainable().items() if self.is_adapter else ():
                self.adapter[name].lerp_(parameter.detach(), share)

    @contextlib.contextmanager
    def model(self) -> Iterator[nn.Module]:
        """The reference as a model in eval mode; under LoRA the policy itself with other adapter weights."""
        if self.frozen is not None:
            yield self.frozen
            return
        policy: Any = self.policy
        adapter_off = self.origin == "base"
        other_weights = policy.disable_adapter() if adapter_off else exchanged(self._trainable(), self.adapter)
        with evaluating(policy), unchanged_training(policy), other_weights:
            yield policy

    def state_dict(self) -> dict[str, Any]:
        """The frozen weights; empty for an adapter-off ``base``, which is the policy's own frozen part."""
        if self.frozen is not None:
            return {"weights": dict(self.frozen.state_dict())}
        return {"weights": dict(self.adapter)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        if self.frozen is not None:
            self.frozen.load_state_dict(state["weights"])
        else:
            # Copies on the policy's device: the state may be another reference's, or fresh from a file.
            places = {name: parameter.device for name, parameter in self._trainable().items()}
            self.adapter = {name: tensor.to(places[name], copy=True) for name, tensor in state["weights"].items()}
