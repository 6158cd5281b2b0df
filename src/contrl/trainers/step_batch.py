"""One batch of the step API: lists of tensors, checked, as groups with one answer each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from contrl.engine.encoder_decoder import is_encoder_decoder, start_token
from contrl.engine.lm_head import causal_lm
from contrl.errors import UserError
from contrl.interfaces import Completion, Group, Rollouts
from contrl.models.load import end_tokens


@dataclass(frozen=True)
class StepBatch:
    """What ``step`` was given.

    Attributes:
        queries, responses: lists of token ids ``[T]``; of a batch of one also a table ``[1, T]``.
        scores: tensors of one number.
        masks: of each response, 1 = this token is learnt; None = all are.
    """

    queries: Any
    responses: Any
    scores: Any
    masks: Any = None

    def groups(self, task: str, model: Any, batch_size: int) -> Rollouts:
        """The groups that are trained on.

        Args:
            task: their task's name.
            model: the policy, which knows its end tokens and where its decoder starts.
            batch_size: how many there must be.

        Raises:
            UserError: naming the entry that does not fit.
        """
        asked, answered = (
            [token_ids(tensor, name, row) for row, tensor in enumerate(_rows(given, name, batch_size))]
            for name, given in (("queries", self.queries), ("responses", self.responses))
        )
        rewards = [_score(tensor, row) for row, tensor in enumerate(_rows(self.scores, "scores", batch_size))]
        masks = [None] * batch_size if self.masks is None else _rows(self.masks, "response_masks", batch_size)
        causal = causal_lm(model)
        ends, start = set(end_tokens(model)), start_token(causal) if is_encoder_decoder(causal) else None
        groups = []
        for row, (query, response, reward, mask) in enumerate(zip(asked, answered, rewards, masks, strict=True)):
            trained = None if mask is None else _flags(mask, len(response), row)
            if len(response) > 1 and response[0] == start:
                # transformers' generate returns it; the decoder does not predict it.
                response, trained = response[1:], None if trained is None else trained[1:]
            completion = Completion(response, trained, ended=response[-1] in ends, reward=reward)
            groups.append(Group(str(row), task, query, [completion]))
        return groups


def _rows(given: Any, name: str, expected: int) -> list[Any]:
    """A batch as a list of its rows: a list, or a table of one row."""
    if isinstance(given, torch.Tensor) and given.dim() == 2 and len(given) == 1:
        given = list(given)
    if not isinstance(given, list | tuple):
        raise UserError(f"{name} must be a list of tensors, and is a {type(given).__name__}")
    for row, tensor in enumerate(given):
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"{name}[{row}] must be a tensor, and is a {type(tensor).__name__}")
    if len(given) != expected:
        raise UserError(
            f"{name} has {len(given)} entries, batch_size is {expected}",
            fix="give step a whole batch, or set batch_size in the configuration",
        )
    return list(given)


def token_ids(tensor: Any, name: str, row: int) -> list[int]:
    """The ids in a tensor ``[T]`` or ``[1, T]``. Raises UserError for anything else."""
    if not isinstance(tensor, torch.Tensor) or tensor.is_floating_point():
        raise UserError(f"{name}[{row}] must be a tensor of token ids")
    if tensor.dim() == 2 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.dim() != 1 or tensor.numel() == 0:
        raise UserError(f"{name}[{row}] has the shape {list(tensor.shape)}", fix="give token ids [T], at least one")
    return [int(token) for token in tensor.tolist()]


def _score(tensor: torch.Tensor, row: int) -> float:
    if tensor.numel() != 1 or tensor.dim() > 1:
        raise UserError(f"scores[{row}] has the shape {list(tensor.shape)}", fix="give one number for each response")
    value = float(tensor)
    if not abs(value) < float("inf"):
        raise UserError(f"scores[{row}] is {value}", fix="every response needs a finite score")
    return value


def _flags(mask: torch.Tensor, length: int, row: int) -> list[bool]:
    flags = [bool(value) for value in mask.flatten().tolist()]
    if len(flags) != length:
        raise UserError(f"response_masks[{row}] has {len(flags)} entries, its response {length} tokens")
    return flags
