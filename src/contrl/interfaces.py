"""READ FIRST: the nouns of contrl and the contracts between them; types only, no behaviour to speak of.

A *method* says how to learn, a *strategy* how not to forget; neither knows the other. Everything that is
trained is a *group* (one prompt with its 0..G completions), so one forward serves every method. Losses
return sums, never means: the engine alone divides, by counts taken over the whole optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Row = Mapping[str, Any]
"""One example as it was read: column name -> value. Rows carry a stable ``id``."""


# --- tasks ------------------------------------------------------------------------------------------


class Reward(Protocol):
    """Scores completions. TRL's contract: keyword call with lists of equal length, one entry a completion.

    Dataset columns arrive as keyword lists. ``None`` in the answer means "not applicable".
    """

    def __call__(self, *, prompts: list, completions: list, **columns: list) -> Sequence[float | None]: ...


@dataclass(frozen=True)
class Metric:
    """How a task is judged, kept separate from the reward it is trained by; higher is better.

    ``score`` has the reward's contract and sees the policy's completions; None instead of a function means
    teacher-forced scoring by ``Method.judge``. An item counts as correct when its score reaches ``correct_at``.
    """

    name: str
    score: Reward | None = None
    correct_at: float = 1.0


LIKELIHOOD = Metric("logp")
"""Teacher-forced: the metric of a task that names neither metric nor reward."""


@dataclass(frozen=True)
class Task:
    """What is learnt in a stage: rows to train on, rows to judge by, the reward and the metric.

    ``method`` and ``training`` override fields of the run's method and training arguments for this task.
    """

    name: str
    train: Sequence[Row]
    eval: Sequence[Row] = ()
    reward: Reward | None = None
    metric: Metric | None = None
    method: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One visit to one or more tasks. ``index`` counts from 1; 0 is the start, before any training."""

    index: int
    tasks: tuple[str, ...]
    round: int = 1

    @property
    def folder(self) -> str:
        """Name of the stage's folder inside ``stages/``."""
        return f"{self.index}-{'+'.join(self.tasks)}"


@dataclass(frozen=True)
class TaskSequence:
    """Ordered tasks and the stages that visit them; ``sequence[i]`` is a Task, never a row."""

    tasks: tuple[Task, ...]
    stages: tuple[Stage, ...]

    @classmethod
    def in_order(cls, tasks: Sequence[Task], rounds: int = 1) -> TaskSequence:
        """Each task once per round, in the order given."""
        names = [task.name for task in tasks]
        stages = [Stage(r * len(names) + i + 1, (name,), r + 1) for r in range(rounds) for i, name in enumerate(names)]
        return cls(tuple(tasks), tuple(stages))

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]

    def __len__(self) -> int:
        return len(self.tasks)

    def task(self, name: str) -> Task:
        """The task called ``name``. Raises KeyError when there is none."""
        return {task.name: task for task in self.tasks}[name]


# --- what is trained --------------------------------------------------------------------------------


@dataclass
class Completion:
    """One answer to a prompt.

    Attributes:
        ids: token ids, the end-of-sequence token included where the answer ended by itself.
        trained: one flag per token, True = this token is learnt; None = all are.
        weight: multiplies this completion's terms of the loss.
        ended: whether it ended by itself (False: cut at the length limit).
        sampler_logps: log-probability of each token under the distribution it was drawn from.
        old_logps: the policy's own log-probabilities (temperature applied) when it was sampled.
        reward, advantage: set by scoring and by ``OnlineMethod.credit``; a reward of None is missing.
    """

    ids: list[int]
    trained: list[bool] | None = None
    weight: float = 1.0
    ended: bool = True
    sampler_logps: list[float] | None = None
    old_logps: list[float] | None = None
    reward: float | None = None
    advantage: float = 0.0

    def num_trained(self) -> int:
        """Number of tokens that are learnt."""
        return len(self.ids) if self.trained is None else sum(self.trained)


@dataclass
class Group:
    """One prompt with its completions: the unit of every batch. ``row`` is the source, for rewards.

    Pairs hold the chosen completion first. ``contrast`` answers *another* prompt (for KTO's KL); it is never trained.
    """

    row_id: str
    task: str
    prompt_ids: list[int]
    completions: list[Completion]
    row: Row = field(default_factory=dict)
    is_replay: bool = False
    label: bool | None = None
    margin: float | None = None
    contrast: Completion | None = None


Rollouts = list[Group]
"""Groups whose completions were sampled and, once scored, have rewards."""


@dataclass
class Batch:
    """The groups of one pass as tensors. N completions, T the longest of them.

    Attributes:
        groups: the groups, in order; completions are laid out group after group.
        group_index: ``[N]`` the group of each completion.
        ids: ``[N, T]`` completion tokens, right padded with 0.
        mask: ``[N, T]`` True = trained token. Padding is False.
        weights, advantages: ``[N]``.
        old_logps: ``[N, T]`` or None when the policy has not moved since it sampled (the ratio is exactly 1).
        reference_logps: ``[N, T]`` when the method needs it.
        statistics: what ``Method.settle`` made of the whole step, for methods that couple rows.
    """

    groups: list[Group]
    group_index: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor
    advantages: torch.Tensor
    old_logps: torch.Tensor | None = None
    reference_logps: torch.Tensor | None = None
    statistics: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class Outputs:
    """What a forward returns for a batch; what the method does not ``need`` is None.

    Attributes:
        logps: ``[N, T]`` log-probabilities of the tokens, zero where ``mask`` is False, like all ``[N, T]`` here.
        entropy, correct, log_sum_p2, mean_logits: ``[N, T]``, without gradient; correct is 1 for the likeliest token.
        prompt_logps: ``[G]`` log-probability of each prompt, its first token not counted.
        scores: ``[N]`` a classifier's output at the last token of each completion (then logps is zero).
    """

    logps: torch.Tensor
    entropy: torch.Tensor | None = None
    correct: torch.Tensor | None = None
    log_sum_p2: torch.Tensor | None = None
    mean_logits: torch.Tensor | None = None
    prompt_logps: torch.Tensor | None = None
    scores: torch.Tensor | None = None


@dataclass
class LossOutput:
    """Sums, never means: the engine divides ``sums[term]`` by the step's ``count()[term]``, and, when it logs, the
    ``metrics[name] = (sum, count)`` of all passes, steps and ranks.
    """

    sums: dict[str, torch.Tensor]
    metrics: dict[str, tuple[torch.Tensor | float, torch.Tensor | float]] = field(default_factory=dict)


# --- methods ----------------------------------------------------------------------------------------


class Method:
    """How to learn. A frozen dataclass: its fields are the hyperparameters, its verbs are below.

    Attributes:
        needs: of "policy_logps", "reference_logps", "prompt_logps", "scores", "entropy", "correct", "log_sum_p2" and
            "mean_logits": what the forward must return. "scores" makes the policy a classifier with one label.
        dropout: whether the model's dropout stays on while training.
        couples: "step" when a step's rows depend on each other: then ``observe`` and ``settle`` are called before any
            pass, so that the split into passes changes nothing; else "group".
        packing: whether several prompts may stand in one row, where the model allows it.
        judged_by: the name in ``judge``'s answer by which tasks without metric or reward are judged.
        judges_change: ``judge`` finds the log-probabilities that the run started with as ``batch.reference_logps``.
        temperature: the logits are divided by it before the log-softmax.
        reference: origin of the reference, for methods that need one: base, previous or ema.
        sync_every, sync_share: every so many optimizer steps the reference moves by this share towards the policy; 0
            steps never.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy_logps"})
    dropout: ClassVar[bool] = False
    couples: ClassVar[Literal["group", "step"]] = "group"
    judged_by: ClassVar[str] = "logp"
    judges_change: ClassVar[bool] = False
    packing: bool = False
    temperature: float = 1.0
    reference: Literal["base", "previous", "ema"] = "previous"
    sync_every: int = 0
    sync_share: float = 0.6

    def rows(self, rows: Sequence[Row], say: Callable[[str], None]) -> list[Row]:
        """A data set's rows as this method's rows, before anything is encoded: pairs taken apart, sources left out."""
        return list(rows)

    def prepare(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Group:
        """One row as a group of token ids. Raises UserError for a row that cannot be used."""
        raise NotImplementedError

    def pair(self, groups: Sequence[Group], seed: int) -> None:
        """Set what a group takes from others (``contrast``), once all rows of a stage are prepared."""

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        """What each loss term is divided by, over these groups; computable before any forward."""
        raise NotImplementedError

    def observed(self, groups: Sequence[Group]) -> list[Group]:
        """Of methods that couple rows: the groups whose outputs ``observe`` sees, by default the step's own."""
        return list(groups)

    def observe(self, out: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """Of methods that couple rows: values ``[R]`` of these groups, detached, gathered over the whole step."""
        raise NotImplementedError

    def settle(self, values: Mapping[str, torch.Tensor], memory: dict[str, float]) -> dict[str, torch.Tensor]:
        """The step's statistics, from the values of all its groups in no particular order.

        ``memory`` keeps numbers from step to step (a running mean); it may be changed, and is saved in checkpoints.
        """
        return dict(values)

    def loss(self, out: Outputs, batch: Batch) -> LossOutput:
        """Sums of each term over the batch, with the same names as ``count``."""
        raise NotImplementedError

    def judge(self, out: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """Teacher-forced scores of evaluation rows: name -> ``[G]``; the item's own is that of ``judged_by``."""
        tokens = batch.mask.sum(-1).clamp(min=1)
        return {"logp": out.logps.sum(-1) / tokens}


class OnlineMethod(Method):
    """A method that learns from completions it samples itself."""

    samples_per_prompt: int
    max_new_tokens: int
    top_p: float
    num_epochs: int
    num_minibatches: int

    def credit(self, groups: Rollouts) -> dict[str, tuple[float, float]]:
        """Set ``advantage`` of every completion from the rewards; returns metrics as (sum, count)."""
        raise NotImplementedError

    def teaches(self, group: Group) -> bool:
        """Whether the group has any gradient; groups without are counted but not run."""
        return any(completion.advantage != 0 for completion in group.completions)


# --- strategies -------------------------------------------------------------------------------------


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
