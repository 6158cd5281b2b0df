"""Adapters: one LoRA adapter per task, and the task's own is put in when the task is known (oracle id).

Nothing is forgotten by construction, and nothing is transferred: the arm that shows what shared weights gain and lose.
Where tasks must be told apart from the prompt alone, the error of telling them apart comes on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from contrl.interfaces import Context, Refusal, Setting, Strategy, Task
from contrl.models.trained import copied, exchanged, put, trained

_SEPARATE = "no two tasks share an adapter, so one says nothing about where the weights of another should be"


@dataclass
class Adapters(Strategy):
    """A stage trains the adapter of its tasks: a new one, or the one it left there when the task comes back.

    A stage of several tasks has one adapter for all of them; a task is evaluated with the adapter it was trained in
    last, a task that was not trained yet with the run's first adapter.
    """

    name = "adapters"
    needs_start = True
    conflicts: ClassVar[dict[str, str]] = dict.fromkeys(("averaging", "ewc", "l2", "mas"), _SEPARATE)

    stored: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict, init=False, repr=False)
    used_by: dict[str, str] = field(default_factory=dict, init=False)

    def refuses(self, setting: Setting) -> Refusal | None:
        if not setting.adapter:
            return Refusal(
                "it keeps one LoRA adapter per task and the whole model is trained",
                "train with use_peft: true, or use averaging or kl",
            )
        return super().refuses(setting)

    def before_task(self, ctx: Context) -> None:
        """Put in the adapter that this stage trains."""
        known = self.stored.get(_key(ctx))
        put(trained(ctx.params()), ctx.services.start_weights() if known is None else known)

    def after_task(self, ctx: Context) -> None:
        """Keep the adapter."""
        self.stored[_key(ctx)] = copied(trained(ctx.params()), "cpu")
        self.used_by |= dict.fromkeys(ctx.stage.tasks, _key(ctx))

    @contextmanager
    def eval_weights(self, ctx: Context, task: Task) -> Iterator[None]:
        """The task's own adapter."""
        key = self.used_by.get(task.name)
        with exchanged(trained(ctx.params()), ctx.services.start_weights() if key is None else self.stored[key]):
            yield

    def state_dict(self) -> dict[str, Any]:
        """All adapters, and which task uses which."""
        return {"stored": {key: dict(tensors) for key, tensors in self.stored.items()}, "used_by": dict(self.used_by)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stored = {key: dict(tensors) for key, tensors in state.get("stored", {}).items()}
        self.used_by = dict(state.get("used_by", {}))


def _key(ctx: Context) -> str:
    """The adapter of a stage is that of its tasks, whatever the round."""
    return "+".join(ctx.stage.tasks)
