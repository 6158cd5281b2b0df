"""Supervised fine-tuning: maximum likelihood of the trained tokens.

Rows: ``prompt`` + ``completion`` (text or messages), ``messages``, or ``text``. Each is a group of one completion;
plain text is a completion of its first token. The loss is a mean over the step's trained tokens, whatever the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from transformers import PreTrainedTokenizerBase

from contrl.data.formats import encode_row
from contrl.errors import UserError
from contrl.interfaces import Batch, Completion, Group, LossOutput, Method, Outputs, Row
from contrl.losses.supervised import dynamic_fine_tuning, negative_log_likelihood

LossType = Literal["nll", "dft"]


@dataclass(frozen=True)
class SFT(Method):
    """Supervised fine-tuning.

    Attributes:
        loss_type: "nll", or "dft" (arXiv:2508.05629).
        max_length: prompt and completion together are cut to this many tokens, from the end; None never cuts.
        assistant_only: of ``messages``, train only what assistant turns added.
    """

    dropout: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"policy_logps", "entropy"})

    loss_type: LossType = "nll"
    max_length: int | None = 1024
    assistant_only: bool = False

    def __post_init__(self) -> None:
        if self.loss_type not in get_args(LossType):
            raise UserError(f"unknown loss_type {self.loss_type!r}", fix=f"use one of {', '.join(get_args(LossType))}")
        if self.max_length is not None and self.max_length < 2:
            raise UserError(f"max_length is {self.max_length}", fix="use at least 2, or null to never cut")

    def prepare(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Group:
        """Raises UserError when no known column is there or nothing would be trained."""
        encoded = encode_row(row, tokenizer, assistant_only=self.assistant_only)
        room = len(encoded.completion_ids)
        if self.max_length is not None:
            room = self.max_length - len(encoded.prompt_ids)
        ids, trained = encoded.completion_ids[: max(room, 0)], encoded.trained[: max(room, 0)]
        if not any(trained):
            raise UserError(
                f"no trained token is left of {len(encoded.prompt_ids)} prompt and {len(encoded.completion_ids)} "
                f"completion tokens at max_length {self.max_length}"
            )
        completion = Completion(ids, trained, ended=len(ids) == len(encoded.completion_ids))
        return Group(str(row["id"]), str(row.get("task", "")), encoded.prompt_ids, [completion], row)

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        """Trained tokens."""
        return {"nll": float(sum(c.num_trained() for group in groups for c in group.completions))}

    def loss(self, out: Outputs, batch: Batch) -> LossOutput:
        """Sum over trained tokens of the negative log-likelihood, weighted by completion."""
        term = {"nll": negative_log_likelihood, "dft": dynamic_fine_tuning}[self.loss_type]
        total = (term(out.logps, batch.mask) * batch.weights[:, None]).sum()
        tokens = batch.mask.sum()
        metrics = {"entropy": (out.entropy.sum(), tokens)} if out.entropy is not None else {}
        return LossOutput({"nll": total}, {**metrics, "logps/mean": (out.logps.detach().sum(), tokens)})
