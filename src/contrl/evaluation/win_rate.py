"""Is the new model better? Its answers against a reference's, prompt by prompt, judged and counted.

The counted numbers are a function of prompts, answers, scores and a seed; nothing of when or in how many attempts they
came about is in them, so an evaluation that was killed and repeated writes the same bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contrl.evaluation.answers import Answer, shown
from contrl.evaluation.judging import WhoJudges
from contrl.evaluation.statistics import Comparison, summarise
from contrl.faults import reach
from contrl.interfaces import Row

SCHEMA_VERSION = 1

_COLUMNS = (
    ("id", "string"),
    ("prompt", "string"),
    ("model_response", "string"),
    ("reference_response", "string"),
    ("model_reward", "double"),
    ("reference_reward", "double"),
    ("verdict", "string"),
    ("model_words", "int64"),
    ("reference_words", "int64"),
    ("model_tokens", "int64"),
    ("reference_tokens", "int64"),
    ("model_ended", "bool"),
    ("reference_ended", "bool"),
)
"""Of detailed_results.parquet, one row for each prompt."""


@dataclass(frozen=True)
class WinRate:
    """A model against a reference.

    Attributes:
        metrics: see ``summarise``.
        rows: one for each prompt, by the names of detailed_results.parquet.
    """

    metrics: dict[str, Any]
    rows: list[dict[str, Any]]

    def as_json(self, choices: Mapping[str, Any]) -> bytes:
        """evaluation_metrics.json: one flat object, the metrics first, then how they came about."""
        whole = {**self.metrics, **choices, "schema_version": SCHEMA_VERSION}
        return f"{json.dumps(whole, ensure_ascii=False, allow_nan=False, indent=1)}\n".encode()

    def as_parquet(self) -> bytes:
        """detailed_results.parquet."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        types = {"string": pa.string(), "double": pa.float64(), "int64": pa.int64(), "bool": pa.bool_()}
        columns = [pa.array([row[name] for row in self.rows], types[kind]) for name, kind in _COLUMNS]
        file = io.BytesIO()
        parquet.write_table(pa.table(columns, names=[name for name, _ in _COLUMNS]), file)
        return file.getvalue()


def compare(
    rows: Sequence[Row], ours: Sequence[Answer], theirs: Sequence[Answer], judge: WhoJudges, seed: int = 0
) -> WinRate:
    """Judge a model's answers against the reference's.

    Args:
        rows: the prompts, with every column that the judge reads.
        ours, theirs: the model's and the reference's answer to each.
        judge: who judges them.
        seed: of the bootstrap.

    Raises:
        UserError, EnvironmentFault: of the judge.
    """
    judged = judge.compare(rows, ours, theirs)
    compared = [
        Comparison(kind, score, reference, a.words, b.words, len(a.ids), len(b.ids))
        for (kind, score, reference), a, b in zip(judged, ours, theirs, strict=True)
    ]
    table = [
        {
            "id": str(row["id"]),
            "prompt": shown(row["prompt"]),
            "model_response": a.text,
            "reference_response": b.text,
            "model_reward": one.score,
            "reference_reward": one.reference_score,
            "verdict": one.verdict,
            "model_words": one.words,
            "reference_words": one.reference_words,
            "model_tokens": one.tokens,
            "reference_tokens": one.reference_tokens,
            "model_ended": a.ended,
            "reference_ended": b.ended,
        }
        for row, a, b, one in zip(rows, ours, theirs, compared, strict=True)
    ]
    reach("evaluation")
    return WinRate(summarise(compared, seed), table)


def conclusion(metrics: Mapping[str, Any]) -> str:
    """What the interval of the win rate says, in words: wins plus half the ties against one half."""
    interval = metrics["win_rate_ties_half_ci"]
    if interval is None:
        return "too few prompts were judged to say which is better"
    low, high = interval
    if low > 0.5:
        return "the model is better than the reference: the interval lies above one half"
    if high < 0.5:
        return "the model is worse than the reference: the interval lies below one half"
    return "no difference is shown: the interval holds one half"
