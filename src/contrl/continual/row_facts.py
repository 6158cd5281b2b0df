"""What is worth knowing of a task's rows before anything is trained on them: lengths, cuts, repeats, overlap.

Counted where the rows are prepared anyway, kept in run.json (``data_facts``) and shown by the report. Prompts are
compared by their content, so a row that was given another id is still found.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from contrl.interfaces import Group, Row

QUANTILES = {"least": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "most": 1.0}


def describe_rows(groups: Sequence[Group], train: Sequence[Row], held_out: Sequence[Row]) -> dict[str, Any]:
    """Facts of one task.

    Args:
        groups: the usable train rows, prepared.
        train: all train rows, as they were given.
        held_out: rows to judge by.

    Returns:
        ``tokens``: "prompt" and "completion" -> quantiles of their lengths; ``cut``: rows whose answer does not end
        by itself; ``left_out``: rows that cannot be used; ``repeated``: rows whose tokens are those of an earlier one;
        ``shared``: held-out rows that ask what a train row asks, None where rows have no prompt.
    """
    prompts = [len(group.prompt_ids) for group in groups]
    completions = [len(completion.ids) for group in groups for completion in group.completions]
    lengths = {"prompt": prompts, "completion": completions}
    asked = {key for row in train if (key := _asked(row)) is not None}
    asks = [key for row in held_out if (key := _asked(row)) is not None]
    return {
        "tokens": {side: _quantiles(found) for side, found in lengths.items() if found},
        "cut": sum(any(not completion.ended for completion in group.completions) for group in groups),
        "left_out": len(train) - len(groups),
        "repeated": len(groups) - len({_content(group) for group in groups}),
        "shared": sum(key in asked for key in asks) if asked and asks else None,
    }


def _quantiles(lengths: Sequence[int]) -> dict[str, int]:
    ordered = sorted(lengths)
    return {name: ordered[round(share * (len(ordered) - 1))] for name, share in QUANTILES.items()}


def _content(group: Group) -> int:
    return hash((tuple(group.prompt_ids), *(tuple(completion.ids) for completion in group.completions)))


def _asked(row: Row) -> int | None:
    """What a row asks, as a number; None for a row without a prompt of its own."""
    prompt = row.get("prompt")
    return None if prompt is None else hash(json.dumps(prompt, sort_keys=True, default=str))
