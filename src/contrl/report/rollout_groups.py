"""Groups of rollouts out of samples/*.parquet: one prompt, its sampled answers, their rewards and advantages.

Of every stage the first and the last table are shown, so that one sees what training made of the answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrl.report.samples import cut

PROMPTS, ANSWERS = 2, 8
"""Prompts of a table and answers of a prompt that are shown."""
MAX_GROUPS = 32
NEEDED = ("task", "id", "prompt", "completion", "reward", "advantage")


@dataclass(frozen=True)
class Rollout:
    """One sampled answer; ``scores`` is what each reward function said, in words, when there are several."""

    completion: str
    reward: float | None
    advantage: float | None
    tokens: int | None
    cut: bool | None
    scores: str


@dataclass(frozen=True)
class RolloutGroup:
    """One prompt sampled at a step of a stage; ``hidden`` answers are left out here."""

    stage: int
    step: int
    task: str
    id: str
    prompt: str
    is_replay: bool
    rollouts: tuple[Rollout, ...]
    hidden: int

    @property
    def has_signal(self) -> bool:
        """Whether the answers differ in their reward, and so teach something."""
        return len({rollout.reward for rollout in self.rollouts}) > 1


def read_groups(folder: Path) -> list[RolloutGroup]:
    """A few groups of each stage, in order; files that cannot be read are left out."""
    files: dict[int, dict[int, Path]] = {}
    for path in sorted((folder / "samples").glob("*.parquet")):
        match = re.fullmatch(r"(\d+)-(\d+)", path.stem)
        if match:
            files.setdefault(int(match[1]), {})[int(match[2])] = path
    wanted = [
        (stage, step, steps[step])
        for stage, steps in sorted(files.items())
        for step in sorted({min(steps), max(steps)})
    ]
    prompts = PROMPTS if len(wanted) * PROMPTS <= MAX_GROUPS else 1
    return [group for stage, step, path in wanted[:MAX_GROUPS] for group in _groups(stage, step, _rows(path), prompts)]


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError, LookupError):
        return []
    return rows if rows and all(name in rows[0] for name in NEEDED) else []


def _groups(stage: int, step: int, rows: Iterable[Mapping[str, Any]], prompts: int) -> list[RolloutGroup]:
    """Rows of one prompt stand together; a prompt may come twice, once as replay."""
    by_prompt: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault((row["task"], row["id"], bool(row.get("is_replay"))), []).append(row)
    # Replayed prompts last, but one of them is shown where there are any.
    keys = sorted(by_prompt, key=lambda key: key[2])
    chosen = keys[:prompts] + [key for key in keys[prompts:] if key[2]][:1]
    return [_group(stage, step, key, by_prompt[key]) for key in chosen]


def _group(stage: int, step: int, key: tuple[Any, ...], rows: list[Mapping[str, Any]]) -> RolloutGroup:
    task, row_id, is_replay = key
    return RolloutGroup(
        stage=stage,
        step=step,
        task=str(task),
        id=str(row_id),
        prompt=cut(rows[0]["prompt"]),
        is_replay=is_replay,
        rollouts=tuple(_rollout(row) for row in rows[:ANSWERS]),
        hidden=max(0, len(rows) - ANSWERS),
    )


def _rollout(row: Mapping[str, Any]) -> Rollout:
    ended, tokens = row.get("ended"), row.get("num_tokens")
    return Rollout(
        completion=cut(row["completion"]),
        reward=_number(row["reward"]),
        advantage=_number(row["advantage"]),
        tokens=tokens if isinstance(tokens, int) else None,
        cut=None if ended is None else not ended,
        scores=_scores(row.get("scores")),
    )


def _scores(text: Any) -> str:
    try:
        scores = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return ""
    if not isinstance(scores, Mapping) or len(scores) < 2:
        return ""
    return cut(", ".join(f"{name} {'–' if score is None else score}" for name, score in scores.items()))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and value == value else None
