"""How not to forget: the hooks of a strategy, what it may see, and what the engine does for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from contrl.interfaces.batches import Batch, Group, LossOutput, Outputs
from contrl.interfaces.methods import Method
from contrl.interfaces.tasks import Row, Stage, Task, TaskSequence

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Origin = Literal["base", "previous", "ema"]
"""Of a reference: the run's first weights, those the stage began with, a moving average of the policy."""
Importance = Literal["fisher", "sensitivity"]
"""The mean over samples of the squared gradient of the log-likelihood (EWC), or of the absolute gradient of the squared
length of the model's output (MAS)."""
Space = Literal["weights", "delta_w"]
"""The trained weights themselves, or, of LoRA layers, the product that is added to the frozen weight."""


class Services(Protocol):
    """What the engine does for strategies. Every rank must call each of them equally often."""

    def importance(self, kind: Importance, num_samples: int, space: Space) -> dict[str, torch.Tensor]:
        """How much each weight matters to the stage's task: name -> a tensor of the weight's shape, mean 1 over all.

        Exact: one backward per sample, without dropout or penalties, over rows of the stage (of methods that sample,
        over completions of the current policy). It does not depend on batches or ranks and leaves ``.grad`` empty.
        """

    def reference(self, origin: Origin) -> Any:
        """A frozen policy (``models.reference.Reference``), shared by all who ask in this stage.

        "previous" must be asked for in ``before_task``, while the policy still has those weights.
        """

    def read(self, reference: Any, batch: Batch) -> Outputs:
        """What a frozen policy says of a batch, without gradient: ``logps``, or ``scores`` of classifiers."""

    def batch(self, groups: Sequence[Group]) -> Batch:
        """Groups as the tensors of one pass."""

    def start_weights(self) -> Mapping[str, torch.Tensor]:
        """The trained parameters as the run began, by canonical name; of a strategy with ``needs_start`` only."""

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Values ``[R]`` of this rank -> those of all ranks, in the same order everywhere."""


@dataclass
class Context:
    """What a strategy may see and use. One object per stage, given to every hook.

    Attributes:
        model: the unwrapped policy; its weights are the current ones.
        sequence, stage: where in the sequence the run is.
        seed: the run's seed; ``step`` the number of optimizer steps done in this stage.
        learning_rate: of the optimizer step just done, in ``after_step``.
        services: of the engine.
        report: takes (sum, count) of what the next log line shows.
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
    learning_rate: float = 0.0
    services: Any = None
    report: Callable[[Mapping[str, tuple[Any, Any]]], None] = field(default=lambda metrics: None)

    def params(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Trainable parameters under their canonical names (no wrapper prefixes)."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name.removeprefix("module.").replace("_fsdp_wrapped_module.", ""), parameter

    def earlier_tasks(self) -> list[Task]:
        """The tasks that earlier stages trained and this one does not, in order of their first stage."""
        seen = [name for stage in self.sequence.stages if stage.index < self.stage.index for name in stage.tasks]
        return [self.sequence.task(name) for name in dict.fromkeys(seen) if name not in self.stage.tasks]


@dataclass(frozen=True)
class Setting:
    """What a run is, as far as a strategy may refuse it before a model is loaded.

    Attributes:
        method: of the first stage.
        adapter: whether a LoRA adapter is trained.
        partial_gradients: why whole gradients are not to be had ("" when they are): the engine steps inside backward
            (DeepSpeed), or scales the loss (fp16).
    """

    method: Method
    adapter: bool = False
    partial_gradients: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why a strategy cannot work in a setting, and what can."""

    why: str
    fix: str


@dataclass(frozen=True)
class Teacher:
    """A frozen policy whose whole next-token distribution a strategy compares with the policy's.

    Attributes:
        reference: as ``Services.reference`` gives it.
        direction: "forward" is KL(teacher || policy), which spreads over all that the teacher would say, "reverse"
            KL(policy || teacher).
        on: the step's own groups, the strategy's anchors, or both.
    """

    reference: Any
    direction: Literal["forward", "reverse"] = "forward"
    on: Literal["groups", "anchors", "both"] = "both"


class Strategy:
    """How not to forget: every hook is optional, several strategies combine (``strategies/composite.py``).

    A dataclass: fields are hyperparameters, whatever else it learns about a run goes through ``state_dict``. Random
    choices come from a generator seeded by (run seed, strategy name, stage, step), so a resumed run repeats them.

    Attributes:
        needs_start: whether ``Services.start_weights`` will be asked for.
        conflicts: names of strategies it cannot be combined with, each with the reason.
    """

    name: ClassVar[str] = ""
    needs_start: bool = False
    conflicts: ClassVar[Mapping[str, str]] = {}

    def refuses(self, setting: Setting) -> Refusal | None:
        """Why it cannot work there; asked before a model is loaded. Overrides call this one first."""
        kind = type(self)
        changes_gradient = kind.penalty is not Strategy.penalty or kind.project is not Strategy.project
        if changes_gradient and setting.partial_gradients:
            return Refusal(
                f"it changes whole gradients, and {setting.partial_gradients}",
                "use replay, kl or averaging, or train with DDP or FSDP2 in float32 or bf16",
            )
        return None

    def before_task(self, ctx: Context) -> None:
        """The stage's weights are loaded, the optimizer is not built yet."""

    def rows(self, ctx: Context, rows: list[tuple[Task, Row]]) -> list[tuple[Task, Row]]:
        """The rows of the stage; may replace them (joint training).

        Asked in planning too, before there is a model: it may use the sequence, the stage and the seed.
        """
        return rows

    def draw(self, ctx: Context, num_rows: int) -> list[tuple[Task, Row]]:
        """Rows to train on *besides* the ``num_rows`` current ones of this rollout or step (replay)."""
        return []

    def anchors(self, ctx: Context, num_rows: int) -> list[Group]:
        """Groups with completions that only ``loss`` sees, not the method; ``num_rows`` as in ``draw``."""
        return []

    def prepare_step(self, ctx: Context, groups: Sequence[Group]) -> None:
        """The groups of this optimizer step on this rank, rewards included, before anything is counted or run."""

    def weights(self, ctx: Context, batch: Batch) -> torch.Tensor | None:
        """Factors ``[N]`` on the completions' weights."""
        return None

    def teachers(self, ctx: Context) -> Mapping[str, Teacher]:
        """Policies to compare whole distributions with; ``loss`` finds ``out.divergence[name]``."""
        return {}

    def count(self, ctx: Context, groups: Sequence[Group]) -> dict[str, float]:
        """Counts of this strategy's own loss terms, over the step's groups and anchors."""
        return {}

    def loss(self, ctx: Context, batch: Batch, out: Outputs) -> LossOutput | None:
        """Further loss terms, with their own names in ``count``. A batch holds anchors only, or none."""
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

    def eval_weights(self, ctx: Context, task: Task) -> AbstractContextManager[None]:
        """Other weights while ``task`` is evaluated (averages, routed adapters)."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and JSON values, nested in dictionaries with string keys."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of ``state_dict``."""
