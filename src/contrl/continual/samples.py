"""Rollouts worth reading: every so many steps the answers to a few prompts, as ``samples/<stage>-<step>.parquet``.

One row an answer: what was asked, what came, what each reward function said of it and the advantage it got; so that
a reward that is earned in the wrong way is seen while the run still trains.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from contrl.continual.records import write_atomic
from contrl.continual.run_folder import RunFolder
from contrl.interfaces import Group, Rollouts

FOLDER = "samples"
PROMPTS = 4
"""Prompts of one file; all their answers."""


class RolloutSamples:
    """Writes the rollouts of one stage.

    Args:
        folder: of the run; only the rank that writes it does anything.
        stage: its number.
        every: optimizer steps from one file to the next at least; 0 writes none.
        tokenizer: makes text.
    """

    def __init__(self, folder: RunFolder, stage: int, every: int, tokenizer: PreTrainedTokenizerBase) -> None:
        self.folder, self.stage, self.every, self.tokenizer = folder, stage, every, tokenizer
        self._next = 0

    def __call__(self, step: int, groups: Rollouts, extras: Mapping[str, Sequence[Any]]) -> None:
        """Credited rollouts sampled at ``step``, and columns that rewards gave, over all their completions."""
        if not self.folder.writes or self.every <= 0 or step < self._next:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._next = step + self.every
        rows = [row for group in groups[:PROMPTS] for row in self._rows(group)]
        if not rows:
            return
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        columns |= {name: [_plain(value) for value in values[: len(rows)]] for name, values in extras.items()}
        table = io.BytesIO()
        pq.write_table(pa.table(columns), table)
        (self.folder.path / FOLDER).mkdir(exist_ok=True)
        write_atomic(self.folder.path / FOLDER / f"{self.stage}-{step}.parquet", table.getvalue())

    def _rows(self, group: Group) -> list[dict[str, Any]]:
        prompt = str(self.tokenizer.decode(group.prompt_ids))
        return [
            {
                "task": group.task,
                "id": group.row_id,
                "is_replay": group.is_replay,
                "prompt": prompt,
                "completion": str(self.tokenizer.decode(completion.ids, skip_special_tokens=True)),
                "num_tokens": len(completion.ids),
                "ended": completion.ended,
                "reward": completion.reward,
                "scores": json.dumps(completion.scores),
                "advantage": _mean(completion.token_advantages)
                if completion.token_advantages
                else completion.advantage,
            }
            for completion in group.completions
        ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _plain(value: Any) -> str | None:
    """Columns of the user's own may hold anything."""
    return None if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
