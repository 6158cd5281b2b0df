"""How to learn: the verbs of a method, and of one that learns from completions it samples itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from contrl.interfaces.batches import Batch, Group, LossOutput, Outputs, Rollouts
from contrl.interfaces.tasks import Row

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class Method:
    """How to learn. A frozen dataclass: its fields are the hyperparameters, its verbs are below.

    Attributes:
        needs: of "policy_logps", "reference_logps", "prompt_logps", "scores", "entropy", "correct", "log_sum_p2",
            "mean_logits" and "values": what the forward must return. "scores" makes the policy a classifier with one
            label, "values" gives it a value head.
        dropout: whether the model's dropout stays on while training.
        couples: "step" when a step's rows depend on each other: then ``observe`` and ``settle`` are called before any
            pass, so that the split into passes changes nothing; else "group".
        packing: whether several prompts may stand in one row, where the model allows it.
        judged_by: the name in ``judge``'s answer by which tasks without metric or reward are judged.
        watched: logged names that a person follows while it trains, the most telling first; of those that are logged
            the first few are shown. One that ends in ``/`` stands for any name that begins with it.
        correct_by: the name in ``judge``'s answer that is 1 for an item that is right; None where nothing says so.
        judges_change: ``judge`` finds the log-probabilities that the run started with as ``batch.reference_logps``.
        temperature: the logits are divided by it before the log-softmax.
        imitates: whether a row is an answer to imitate, so that any answer can be trained, the policy's own too.
        pairs: whether a group's two completions are a chosen and a rejected one.
        reference: origin of the reference, for methods that need one: base, previous or ema.
        sync_every, sync_share: every so many optimizer steps the reference moves by this share towards the policy; 0
            steps never.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy_logps"})
    dropout: ClassVar[bool] = False
    couples: ClassVar[Literal["group", "step"]] = "group"
    judged_by: ClassVar[str] = "logp"
    watched: ClassVar[tuple[str, ...]] = ("loss",)
    correct_by: ClassVar[str | None] = None
    judges_change: ClassVar[bool] = False
    imitates: ClassVar[bool] = False
    pairs: ClassVar[bool] = False
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

    def log_likelihood(self, out: Outputs, batch: Batch) -> torch.Tensor:
        """``[G]`` with gradient: the log-probability of what each group teaches, by which weights' importance is told.

        By default that of the group's first completion: of an answer to imitate, of the chosen side of a pair (whose
        preference likelihood has no gradient left once the pair is learnt), of a sampled answer.
        """
        first = [0, *((batch.group_index[1:] != batch.group_index[:-1]).nonzero().flatten() + 1).tolist()]
        return out.logps.sum(-1)[first]

    def judge(self, out: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """Teacher-forced scores of evaluation rows: name -> ``[G]``; the item's own is that of ``judged_by``.

        Higher is better, but for ``loss``.
        """
        tokens = batch.mask.sum(-1).clamp(min=1)
        return {"logp": out.logps.sum(-1) / tokens}


def _alone(values: torch.Tensor) -> torch.Tensor:
    return values


@dataclass
class Pool:
    """What ``credit`` may use besides the rollouts of its own rank.

    Attributes:
        gather: values ``[R]`` of this rank -> those of all ranks, in the same order everywhere. Every rank must call it
            equally often, also one without rollouts.
        memory: numbers kept from window to window (an adaptive coefficient); may be changed, and is in checkpoints.
    """

    gather: Callable[[torch.Tensor], torch.Tensor] = _alone
    memory: dict[str, float] = field(default_factory=dict)


class OnlineMethod(Method):
    """A method that learns from completions it samples itself.

    Attributes:
        samples_per_prompt: completions of each prompt.
        max_new_tokens: length limit of a completion.
        top_p, top_k, min_p, repetition_penalty, stop: of the sampler, beside ``temperature``; see ``Sampling``.
        num_epochs, num_minibatches: num_minibatches x prompts_per_step prompts are sampled at once and serve the
            product of both optimizer steps.
        measures: of "reference_logps" and "values": what every rollout is given, without gradient, before ``credit``.
        correction_cap: cap of the importance weights where sampler and trainer are different programs.
    """

    samples_per_prompt: int
    max_new_tokens: int
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    num_epochs: int
    num_minibatches: int
    measures: frozenset[str] = frozenset()
    correction_cap: float = 2.0

    def credit(self, groups: Rollouts, pool: Pool) -> dict[str, tuple[float, float]]:
        """Set ``advantage`` (or ``token_advantages`` and ``returns``) of every completion from the rewards.

        Returns metrics as (sum, count).
        """
        raise NotImplementedError

    def teaches(self, group: Group) -> bool:
        """Whether the group has any gradient; groups without are counted but not run."""
        return any(completion.advantage != 0 for completion in group.completions)
