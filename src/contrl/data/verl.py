"""Rows in veRL's columns, as verifiers and methods here read them.

veRL keeps the truth one level deeper (``reward_model.ground_truth``) and a raw text in a list of one message. Such
rows are lifted when they are read, so a parquet folder for veRL, or of ``contrl data countdown``, is a task like any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from contrl.interfaces import Row

PREFILL = "<think>"
"""A prompt that ends with it has opened the answer itself: a chat template would close it again."""


def lifted(row: Row) -> Row:
    """The row with ``ground_truth`` and ``operator_group`` as columns of their own; another row stays as it is."""
    judged, extra = row.get("reward_model"), row.get("extra_info")
    truth = judged.get("ground_truth") if isinstance(judged, Mapping) else None
    if row.get("ground_truth") is not None or truth is None:
        return row
    columns: dict[str, Any] = {"ground_truth": truth}
    if isinstance(extra, Mapping) and "operator_group" in extra:
        columns["operator_group"] = extra["operator_group"]
    text = _raw(row.get("prompt"), truth)
    return {**row, **columns} if text is None else {**row, **columns, "prompt": text}


def _raw(prompt: Any, truth: Any) -> str | None:
    """The text of a prompt that veRL hands to the model as it stands; None for a conversation."""
    if not isinstance(prompt, list) or len(prompt) != 1 or not isinstance(prompt[0], Mapping):
        return None
    text = str(prompt[0].get("content"))
    compact = isinstance(truth, Mapping) and truth.get("template") == "compact"
    return text if compact or text.endswith(PREFILL) else None
