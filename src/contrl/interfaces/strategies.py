"""How not to forget: the hooks of a strategy and what it may see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from contrl.interfaces.batches import Batch, Group, LossOutput, Outputs
from contrl.interfaces.methods import Method
from contrl.interfaces.tasks import Row, Stage, Task, TaskSequence

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass
class Context:
    """What a strategy may see and use. One object per stage, given to every hook.

    Attributes:
        model: the unwrapped policy; its weights are the current ones.
        sequence, stage: where in the sequence the run is.
        seed: the run's seed; ``step`` the number of optimizer steps done in this stage.
    """

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    method: Method
    sequence: TaskSequence
    stage: Stage
    seed: int
    step: int = 0
    rank: int = 0
    world_size: int = 1

    def params(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Trainable parameters under their canonical names (no wrapper prefixes)."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name.removeprefix("module.").replace("_fsdp_wrapped_module.", ""), parameter


class Strategy:
    """How not to forget: every hook is optional, several strategies combine (``strategies/composite.py``).

    A dataclass: fields are hyperparameters, whatever else it learns about a run goes through ``state_dict``. Random
    choices come from a generator seeded by (run seed, strategy name, stage, step), so a resumed run repeats them.
    """

    name: ClassVar[str] = ""

    def before_task(self, ctx: Context) -> None:
        """The stage's weights are loaded, the optimizer is not built yet."""

    def rows(self, ctx: Context, rows: list[tuple[Task, Row]]) -> list[tuple[Task, Row]]:
        """The rows of the stage; may replace them (joint training)."""
        return rows

    def draw(self, ctx: Context, num_rows: int) -> list[tuple[Task, Row]]:
        """Rows to train on *besides* the ``num_rows`` current ones of this rollout or step (replay)."""
        return []

    def weights(self, ctx: Context, batch: Batch) -> torch.Tensor | None:
        """Factors ``[N]`` on the completions' weights."""
        return None

    def count(self, ctx: Context, groups: Sequence[Group]) -> dict[str, float]:
        """Counts of this strategy's own loss terms."""
        return {}

    def loss(self, ctx: Context, batch: Batch, out: Outputs) -> LossOutput | None:
        """Further loss terms, with their own names in ``count``."""
        return None

    @property
    def adds_loss(self) -> bool:
        """Whether ``loss`` is used, so that groups the method learns nothing from must be run as well."""
        return type(self).loss is not Strategy.loss

    @property
    def adds_rows(self) -> bool:
        """Whether ``draw`` is used, so that rows of other stages may be trained."""
        return type(self).draw is not Strategy.draw

    def penalty(self, ctx: Context) -> None:
        """Add closed-form gradients to ``.grad``: once per optimizer step, all reduced, before clipping."""

    def project(self, ctx: Context) -> None:
        """Change the whole gradient, after every penalty."""

    def after_step(self, ctx: Context) -> None:
        """The optimizer has stepped."""

    def after_task(self, ctx: Context) -> None:
        """The model still has the weights of the end of the task: measure, store, merge."""

    def eval_weights(self, ctx: Context) -> AbstractContextManager[None]:
        """Other weights for evaluation (averages, routed adapters) while the context is open."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values, nested in dictionaries with string keys."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of ``state_dict``."""
