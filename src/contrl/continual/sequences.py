"""Named sequences of tasks, made from code: a sequence is a dataclass of its settings with a method ``tasks``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from contrl.data import countdown
from contrl.data.continual import ContinualTask, is_continual, pick, read_tasks
from contrl.data.named import read_named
from contrl.data.recipes import RECIPES
from contrl.data.sources import find_splits, hold_out, is_mix, mix, read_rows, short_name
from contrl.errors import UserError
from contrl.interfaces import Metric, Row, Task
from contrl.rewards.countdown import countdown_reward, is_success

TEST_SPLIT, VALIDATION_SPLIT = "test", "validation"


def countdown_success(**columns: Any) -> list[float | None]:
    """1 where the Countdown reward is full, else 0: the share solved, without credit for trying."""
    return [float(is_success(score)) for score in countdown_reward(**columns)]


COUNTDOWN = "countdown"
COUNTDOWN_METRIC = Metric("success", countdown_success)


@dataclass(frozen=True)
class Countdown(countdown.CountdownConfig):
    """Countdown's operator groups one after the other; each task's reward and metric are the verifier."""

    def tasks(self) -> list[Task]:
        """One task per operator group."""
        return [
            Task(name, train, held_out, countdown_reward, COUNTDOWN_METRIC)
            for name, train, held_out in countdown.sequence(self)
        ]


def _about(text: str, default: Any, **bounds: float) -> Any:
    return field(default=default, metadata={"help": text, **bounds})


@dataclass(frozen=True)
class Dataset:
    """A data set by name or path: one task for a plain one, one per task for an AIF-Gen file, in its order.

    ``tasks`` leaves what a person should know in ``notes``: rows that were left out, and what is judged by.
    """

    path: str = field(
        metadata={"help": "a file, a folder, a named data set, a name on the hub, or several with commas between"}
    )
    config_name: str | None = _about("configuration of a folder or hub dataset that has several", None)
    train_split: str = _about("split to train on", "train")
    test_split: str = _about("split to judge by; where there is none of the default name, validation", TEST_SPLIT)
    dataset_index: int | None = _about("of a file of tasks, only this one, counted from 0", None, at_least=0)
    eval_size: int | float | None = _about(
        "rows (or, below 1, the share of rows) held out of the train split to judge by, instead of a test split", None
    )
    subset_size: int | None = _about("only the first so many rows of each split and source", None, at_least=1)
    single_turn: bool = _about("leave out chats of more than one question and one answer", False)
    notes: list[str] = field(init=False, default_factory=list, compare=False, repr=False)

    def tasks(self) -> list[Task]:
        """The tasks with their rows.

        Raises:
            UserError: as ``read_rows`` and ``read_tasks``.
        """
        self.notes.clear()
        if (read := self._read()) is not None:
            self.notes.extend(note for task in read for note in task.notes)
            return [self._task(task.name, task.train, task.test, task.verifier) for task in read]
        if self.dataset_index not in (None, 0):
            raise UserError(
                f"dataset_index {self.dataset_index} of a data set that is one task",
                where=self.path,
                fix="leave it out",
            )
        train = self._rows(self.train_split)
        test_split = self._split_to_judge_by()
        return [
            self._task(
                re.sub(r"[^\w.+-]+", "-", short_name(self.path)), train, self._rows(test_split) if test_split else []
            )
        ]

    def _read(self) -> list[ContinualTask] | None:
        """The tasks of a source that holds a sequence; None for one that is a single task."""
        if not is_continual(self.path):
            return None
        return read_tasks(self.path, self.dataset_index, train_split=self.train_split, test_split=self._test_split)

    @property
    def _test_split(self) -> str | None:
        return None if self.eval_size is not None else self.test_split

    def _split_to_judge_by(self) -> str | None:
        if self.eval_size is not None:
            return None
        splits = find_splits(self.path, self.config_name)
        if self.test_split in splits:
            return self.test_split
        if self.test_split != TEST_SPLIT:
            raise UserError(f"has no split {self.test_split!r}", where=self.path, why=f"it has {', '.join(splits)}")
        if VALIDATION_SPLIT in splits and self.train_split != VALIDATION_SPLIT:
            self.notes.append(f"{self.path} has no split {TEST_SPLIT!r}: judged by {VALIDATION_SPLIT!r}")
            return VALIDATION_SPLIT
        self.notes.append(f"{self.path} has no test split: nothing to judge by (eval_size holds rows out)")
        return None

    def _rows(self, split: str) -> list[Row]:
        if not is_mix(self.path) and self.path not in RECIPES:
            return read_rows(self.path, split, self.config_name)
        rows, notes = mix(self.path, split)
        if not rows:
            raise UserError("there are no rows", where=f"{self.path} ({split})", why="; ".join(notes))
        self.notes.extend(f"{split}: {note}" for note in notes)
        return rows

    def _task(self, name: str, train: Sequence[Row], held_out: Sequence[Row], verifier: str = "") -> Task:
        train, held_out = self._kept(name, train), self._kept(name, held_out)
        if self.eval_size is not None:
            train, held_out = hold_out(train, self.eval_size, seed=0)
        if verifier == COUNTDOWN:
            return Task(name, train, held_out, countdown_reward, COUNTDOWN_METRIC)
        return Task(name, train, held_out)

    def _kept(self, name: str, rows: Sequence[Row]) -> list[Row]:
        kept = [row for row in rows if not self.single_turn or is_single_turn(row)]
        if len(kept) < len(rows):
            self.notes.append(f"{name}: {len(rows) - len(kept)} of {len(rows)} chats left out: more than one turn")
        if rows and not kept:
            raise UserError("no chat has only one question and one answer", where=self.path, fix="single_turn: false")
        return first_of_each(kept, self.subset_size) if is_mix(self.path) else kept[: self.subset_size]


@dataclass(frozen=True)
class Named(Dataset):
    """One of AIF-Gen's own sequences, whatever lies on this machine under its name."""

    path: str = field(init=False, default="")

    def _read(self) -> list[ContinualTask]:
        read = read_named(self.path, train_split=self.train_split, test_split=self._test_split)
        return pick(read, self.dataset_index, f"sequence {self.path}")


@dataclass(frozen=True)
class Debug(Named):
    """Three tasks of 100 train and 100 test pairs: UltraFeedback twice, Anthropic's HH-RLHF once."""

    path: str = field(init=False, default="debug")


@dataclass(frozen=True)
class UltrafeedbackToAnthropic(Named):
    """UltraFeedback, then HH-RLHF."""

    path: str = field(init=False, default="ultrafeedback2anthropic")


@dataclass(frozen=True)
class UltrafeedbackToAnthropicReduced(Named):
    """The first 35,200 train and 1,000 test pairs of both."""

    path: str = field(init=False, default="ultrafeedback2anthropic_reduced")


@dataclass(frozen=True)
class CPPOReward(Named):
    """CPPO's pairs for reward models: summaries of posts about relationships, then of all others."""

    path: str = field(init=False, default="cppo-reward")


@dataclass(frozen=True)
class CPPORL(Named):
    """CPPO's prompts for reinforcement: the same posts, without its validation rows."""

    path: str = field(init=False, default="cppo-rl")


def is_single_turn(row: Row) -> bool:
    """Whether a chat is one question and one answer; text counts as such, since it has no turns to tell."""
    messages, prompt = row.get("messages"), row.get("prompt")
    if isinstance(messages, list):
        return len(messages) == 2
    return not isinstance(prompt, list) or len(prompt) == 1


def first_of_each(rows: Sequence[Row], number: int | None) -> list[Row]:
    """The first so many rows of every source, in their order; all of them for None."""
    if number is None:
        return list(rows)
    taken: dict[Any, int] = {}
    kept = []
    for row in rows:
        source = row.get("source")
        taken[source] = taken.get(source, 0) + 1
        if taken[source] <= number:
            kept.append(row)
    return kept
