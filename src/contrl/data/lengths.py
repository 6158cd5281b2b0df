"""How long prepared rows are, how many a limit cuts, and how many it leaves with nothing to train on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from contrl.data.tokens import prepare_many
from contrl.errors import UserError
from contrl.interfaces import Group, Method, Row

_LIMITS = ("max_length", "max_prompt_length")


@dataclass(frozen=True)
class Lengths:
    """Tokens of one part of the rows."""

    part: str
    smallest: int
    median: float
    most: float
    """95 of 100 are at most this long."""
    largest: int


@dataclass(frozen=True)
class Survey:
    """A data set as a method sees it.

    Attributes:
        num_rows: rows given.
        groups: the usable rows as the method trains on them, cut where it cuts.
        unusable: (row id, reason) of rows that cannot be used at any length.
        num_cut: usable rows that the method's limits cut.
        nothing_left: (row id, reason) of those that the cut leaves with nothing to train on.
        lengths: of prompts, completions and both together, before any cut.
        share_trained: of the tokens that are left, those that are trained.
    """

    num_rows: int
    groups: list[Group]
    unusable: list[tuple[str, str]]
    num_cut: int
    nothing_left: list[tuple[str, str]]
    lengths: list[Lengths]
    share_trained: float


def survey(rows: Sequence[Row], method: Method, tokenizer: PreTrainedTokenizerBase) -> Survey:
    """Prepare all rows without the method's limits and, where those bite, with them."""
    whole = prepare_many(rows, _unlimited(method).prepare, tokenizer)
    longer = [i for i, made in enumerate(whole) if isinstance(made, Group) and _exceeds(made, method)]
    cut = dict(zip(longer, prepare_many([rows[i] for i in longer], method.prepare, tokenizer), strict=True))
    final = [cut.get(i, made) for i, made in enumerate(whole)]
    usable = [made for made in whole if isinstance(made, Group)]
    groups = [made for made in final if isinstance(made, Group)]
    return Survey(
        num_rows=len(rows),
        groups=groups,
        unusable=_reasons(rows, whole),
        num_cut=len(longer),
        nothing_left=_reasons([rows[i] for i in longer], list(cut.values())),
        lengths=_table(usable),
        share_trained=_share_trained(groups),
    )


def _unlimited(method: Method) -> Method:
    given: Any = method
    limits = [field.name for field in dataclasses.fields(given) if field.name in _LIMITS]
    return dataclasses.replace(given, **dict.fromkeys(limits))


def _exceeds(group: Group, method: Method) -> bool:
    total, prompt = (getattr(method, name, None) for name in _LIMITS)
    longest = len(group.prompt_ids) + max([len(completion.ids) for completion in group.completions], default=0)
    return (total is not None and longest > total) or (prompt is not None and len(group.prompt_ids) > prompt)


def _reasons(rows: Sequence[Row], made: Sequence[Group | UserError]) -> list[tuple[str, str]]:
    return [(str(row["id"]), item.what) for row, item in zip(rows, made, strict=True) if isinstance(item, UserError)]


def _table(groups: Sequence[Group]) -> list[Lengths]:
    completions = [(group, len(completion.ids)) for group in groups for completion in group.completions]
    parts = {
        "prompt": [len(group.prompt_ids) for group in groups],
        "completion": [length for _, length in completions],
        "total": [len(group.prompt_ids) + length for group, length in completions],
    }
    if completions and max(parts["prompt"]) <= 1:
        # Text and conversations: their first token stands where a prompt would.
        parts = {"total": parts["total"]}
    return [
        Lengths(part, min(values), float(np.median(values)), float(np.percentile(values, 95)), max(values))
        for part, values in parts.items()
        if values
    ]


def _share_trained(groups: Sequence[Group]) -> float:
    """A shared prompt counts once, as it is computed once."""
    answers = [completion for group in groups for completion in group.completions]
    tokens = sum(len(group.prompt_ids) for group in groups) + sum(len(completion.ids) for completion in answers)
    return sum(completion.num_trained() for completion in answers) / tokens if tokens else 0.0
