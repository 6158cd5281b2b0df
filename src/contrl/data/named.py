"""AIF-Gen's own sequences by name: which rows of which data set each task takes, exactly as its programs did.

``debug`` and ``ultrafeedback2anthropic`` are slices of two preference sets, ``cppo-reward`` and ``cppo-rl`` two halves
of a third (CPPO, openreview.net/forum?id=86zAUE80pP). They are read from the folder of data sets, else from the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from contrl.data.aif_gen import ContinualTask
from contrl.data.folders import DATA_FOLDER, copy_of
from contrl.data.sources import read_rows
from contrl.errors import EnvironmentFault, UserError
from contrl.interfaces import Row

ULTRAFEEDBACK, ANTHROPIC = "trl-lib/ultrafeedback_binarized", "Anthropic/hh-rlhf"
SUMMARIES = "CarperAI/openai_summarize_comparisons"
TOPIC = "r/relationships"
"""What the posts of CPPO's first task contain, in any case."""
SHORTEST_SUMMARY = 5
"""Words; pairs with a shorter summary teach no reward model."""

Chosen = tuple[list[Row], str]
"""The rows of a split that a task takes, and what to say of those that it leaves out."""


@dataclass(frozen=True)
class Part:
    """The rows of one task: those of a data set from ``start`` on, as many as ``size`` says; None takes all.

    Attributes:
        keep: which rows belong to the task at all; slices are counted among them.
        size: by split.
        at_most: fewer rows than ``size`` are no mistake.
        clean: leave out pairs without preference or with a very short side.
    """

    name: str
    source: str
    start: int = 0
    size: tuple[int | None, int | None] = (None, None)
    keep: Callable[[Row], bool] = lambda row: True
    at_most: bool = False
    clean: bool = False

    def of(self, rows: Sequence[Row], split: str, where: str) -> Chosen:
        """The task's rows of a split's. Raises UserError where there are too few."""
        found = [row for row in rows if self.keep(row)]
        size = self.size[split != "train"]
        if size is not None:
            if len(found) < self.start + size and not self.at_most:
                raise UserError(
                    f"{self.source} has {len(found):,} rows in {split}",
                    where=where,
                    why=f"the task {self.name} takes rows {self.start:,} to {self.start + size - 1:,}",
                    fix="put the whole split there",
                )
            found = found[self.start : self.start + size]
        if not found:
            raise UserError(f"{self.source} has no rows for the task {self.name} in {split}", where=where)
        kept = [row for row in found if not self.clean or _teaches(row)]
        left = len(found) - len(kept)
        why = f"their sides are equal, or one has fewer than {SHORTEST_SUMMARY} words"
        return kept, f"{self.name}, {split}: {left} of {len(found)} pairs left out: {why}" if left else ""


def _teaches(row: Row) -> bool:
    chosen, rejected = str(row.get("chosen")), str(row.get("rejected"))
    return chosen != rejected and min(len(chosen.split()), len(rejected.split())) >= SHORTEST_SUMMARY


def _on_topic(row: Row) -> bool:
    return TOPIC in str(row.get("prompt", "")).lower()


def _off_topic(row: Row) -> bool:
    return not _on_topic(row)


NAMED: dict[str, tuple[Part, ...]] = {
    "debug": (
        Part("0-ultrafeedback", ULTRAFEEDBACK, 0, (100, 100)),
        Part("1-ultrafeedback", ULTRAFEEDBACK, 100, (100, 100)),
        Part("2-anthropic", ANTHROPIC, 0, (100, 100)),
    ),
    "ultrafeedback2anthropic": (Part("0-ultrafeedback", ULTRAFEEDBACK), Part("1-anthropic", ANTHROPIC)),
    "ultrafeedback2anthropic_reduced": (
        Part("0-ultrafeedback", ULTRAFEEDBACK, 0, (35_200, 1_000)),
        Part("1-anthropic", ANTHROPIC, 0, (35_200, 1_000)),
    ),
    "cppo-reward": (
        Part("0-relationships", SUMMARIES, 0, (52_243, 45_148), _on_topic, at_most=True, clean=True),
        Part("1-others", SUMMARIES, 0, (40_291, 38_481), _off_topic, at_most=True, clean=True),
    ),
    # The last 3,462 and 2,985 train rows are CPPO's validation rows.
    "cppo-rl": (
        Part("0-relationships", SUMMARIES, 0, (52_243 - 3_462, 45_148), _on_topic, at_most=True),
        Part("1-others", SUMMARIES, 0, (40_291 - 2_985, 38_481), _off_topic, at_most=True),
    ),
}
"""Name -> its tasks in order; sizes are (train, test)."""


def read_named(name: str, *, train_split: str = "train", test_split: str | None = "test") -> list[ContinualTask]:
    """The tasks of one of AIF-Gen's own sequences.

    Args:
        train_split, test_split: which splits of the data sets are read; no ``test_split``, no test rows.

    Raises:
        EnvironmentFault: a data set is neither on this machine nor to be had; says what to put where.
        UserError: a split has too few rows.
    """
    tasks, read = [], {}
    for part in NAMED[name]:
        rows, notes = [], []
        for split in (train_split, test_split):
            if split is not None and (part.source, split) not in read:
                read[part.source, split] = _rows(name, part.source, split)
            where = f"sequence {name}"
            kept, note = part.of(read[part.source, split], split, where) if split is not None else ([], "")
            rows.append(kept)
            notes += [note] if note else []
        tasks.append(ContinualTask(part.name, rows[0], rows[1], f"{part.source}", tuple(notes)))
    return tasks


def _rows(name: str, source: str, split: str) -> list[Row]:
    try:
        return read_rows(source, split)
    except EnvironmentFault as fault:
        places = ", ".join(f"${DATA_FOLDER}/{place}/" for place in dict.fromkeys(p.source for p in NAMED[name]))
        raise EnvironmentFault(
            f"the sequence {name} needs the data set {source}, which is not on this machine and could not be had",
            why=fault.why,
            fix=f"put its train and test rows (.parquet or .jsonl, in the hub's columns) in {places}"
            f"{'' if copy_of(source) is None else ' (what lies there has no data)'}; or connect to the network",
        ) from None
