"""Supervised fine-tuning: maximum likelihood of the trained tokens.

Rows: ``prompt`` + ``completion`` (text or messages), ``messages``, or ``text``; of preference pairs the chosen answer.
Each is a group of one completion; plain text is a completion of its first token. The loss is a mean over the step's
trained tokens, whatever the split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from transformers import PreTrainedTokenizerBase

from contrl.data.formats import encode_row
from contrl.data.recipes import to_supervised
from contrl.errors import UserError
from contrl.interfaces import Batch, Group, LossOutput, Method, Outputs, Row
from contrl.losses.supervised import dynamic_fine_tuning, negative_log_likelihood
from contrl.methods.pairs import Metrics, cut_completion, own_answers

LossType = Literal["nll", "dft"]


@dataclass(frozen=True)
class SFT(Method):
    """Supervised fine-tuning.

    Attributes:
        loss_type: "nll", or "dft" (arXiv:2508.05629).
        max_length: prompt and completion together are cut to this many tokens, from the end; None never cuts.
        completion_only_loss: None trains the completion where there is one and everything otherwise; False trains
            prompts as well; True refuses rows without a completion.
        assistant_only, assistant_only_loss: of messages, train only what assistant turns added; two names of one
            thing, the second is TRL's.
        packing: fill a forward with several rows that do not see each other; a matter of speed, not of the loss.
    """

    dropout: ClassVar[bool] = True
    imitates: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"policy_logps", "entropy", "correct"})
    watched: ClassVar[tuple[str, ...]] = ("loss", "mean_token_accuracy")
    correct_by: ClassVar[str | None] = "exact"

    loss_type: LossType = "nll"
    max_length: int | None = 1024
    completion_only_loss: bool | None = None
    assistant_only: bool = False
    assistant_only_loss: bool = False
    packing: bool = False

    def __post_init__(self) -> None:
        if self.loss_type not in get_args(LossType):
            raise UserError(f"unknown loss_type {self.loss_type!r}", fix=f"use one of {', '.join(get_args(LossType))}")
        if self.max_length is not None and self.max_length < 2:
            raise UserError(f"max_length is {self.max_length}", fix="use at least 2, or null to never cut")

    def rows(self, rows: Sequence[Row], say: Callable[[str], None]) -> list[Row]:
        """Rows to imitate: of pairs the chosen answer; answers labelled bad are left out, and counted in one line."""
        kept = [row for row in to_supervised(rows) if row.get("label") is not False or row.get("completion") is None]
        if len(kept) < len(rows):
            say(f"{len(rows) - len(kept)} of {len(rows)} rows left out: their answers are labelled bad")
        return kept

    def prepare(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> Group:
        """Raises UserError when no known column is there or nothing would be trained."""
        encoded = encode_row(
            row,
            tokenizer,
            assistant_only=self.assistant_only or self.assistant_only_loss,
            completion_only=self.completion_only_loss,
        )
        completion = cut_completion(encoded.prompt_ids, encoded.completion_ids, encoded.trained, self.max_length)
        return Group(str(row["id"]), str(row.get("task", "")), encoded.prompt_ids, [completion], row)

    def count(self, groups: Sequence[Group]) -> dict[str, float]:
        """Trained tokens."""
        return {"nll": float(sum(c.num_trained() for group in groups for c in group.completions))}

    def loss(self, out: Outputs, batch: Batch) -> LossOutput:
        """Sum over trained tokens of the negative log-likelihood, weighted by completion."""
        term = {"nll": negative_log_likelihood, "dft": dynamic_fine_tuning}[self.loss_type]
        total = (term(out.logps, batch.mask) * batch.weights[:, None]).sum()
        tokens = batch.mask.sum()
        metrics: Metrics = {"logps/mean": (out.logps.detach().sum(), tokens)}
        if out.entropy is not None:
            metrics["entropy"] = (out.entropy.sum(), tokens)
        if out.correct is not None:
            metrics["mean_token_accuracy"] = (out.correct.sum(), tokens)
        return LossOutput({"nll": total}, metrics)

    def judge(self, out: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        """How likely the row's own answer is, which of its tokens are the likeliest, and whether all of them are."""
        found = own_answers(out, batch)
        exact = {"exact": (found["token_accuracy"] == 1).float()} if "token_accuracy" in found else {}
        return super().judge(out, batch) | found | exact
