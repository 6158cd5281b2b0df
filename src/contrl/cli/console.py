"""What a person sees while a run goes on: a bar on a terminal, a plain line now and then anywhere else.

A log file, a pipe, a CI job, a dumb terminal and NO_COLOR get lines without carriage returns. Rank 0 alone writes.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from contrl.interfaces import Stage
from contrl.launch import Options
from contrl.report.watched import clock, rate, told

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""
SPAN = 60.0
"""Seconds over which tokens/s are counted."""


def is_terminal() -> bool:
    """Whether bars and carriage returns make sense."""
    plain = os.environ.get("TERM") == "dumb" or os.environ.get("NO_COLOR") or os.environ.get("CI")
    return sys.stdout.isatty() and not plain


def quiet_libraries() -> None:
    """The bars and chatter of the libraries below; warnings of contrl itself are printed by ``say``."""
    # bitsandbytes tells at import which of its kernels it cannot find, wanted or not.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for library in ("torch", "transformers", "accelerate", "peft", "datasets"):
        # Announcements to developers of these libraries; a user of contrl can do nothing about them.
        for kind in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=kind, module=rf"{library}(\..*)?$")


def say(text: str) -> None:
    """One line to standard output, at once."""
    print(text, flush=True)


def run_options(*, overwrite: bool = False, dry_run: bool = False) -> Options:
    """How a command starts a run: its own command line for the manifest, a line or a bar for progress."""
    return Options(
        command=["contrl", *sys.argv[1:]],
        overwrite=overwrite,
        dry_run=dry_run,
        say=say,
        callbacks=lambda stage, stages, steps, watched: [ProgressLine(stage, stages, steps, watched)],
    )


class ProgressLine(TrainerCallback):
    """Stage, step, the numbers that matter, tokens/s and the time left.

    Args:
        stage, stages: which of how many; 0 for a base stage.
        steps: of the stage.
        watched: the method's numbers, see ``Method.watched``.
        write: takes a line.
    """

    def __init__(
        self, stage: Stage, stages: int, steps: int, watched: Sequence[str], write: Callable[[str], None] = say
    ) -> None:
        self.stage, self.stages, self.steps, self.watched, self.write = stage, stages, steps, watched, write
        self.started = self.last = time.monotonic()
        self.first_step = 0
        self.numbers: dict[str, float] = {}
        self.bar: Any = None
        self._marks: deque[tuple[float, float]] = deque()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = self.last = time.monotonic()
        self.first_step = state.global_step
        if self.first_step == 0:
            self._marks.append((self.started, 0.0))
        if is_terminal() and state.is_world_process_zero:
            self.bar = make_bar()
            self.bar.start()
            self.bar.add_task(self._head(), total=self.steps, completed=state.global_step, numbers="")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.numbers |= {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        if "num_tokens" in (logs or {}):
            now = time.monotonic()
            self._marks.append((now, float(logs["num_tokens"])))
            while len(self._marks) > 2 and now - self._marks[1][0] > SPAN:
                self._marks.popleft()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        if self.bar is not None:
            self.bar.update(self.bar.tasks[0].id, completed=state.global_step, numbers=" · ".join(self._numbers()))
        elif time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            done = max(1, state.global_step - self.first_step)
            left = (self.last - self.started) / done * (self.steps - state.global_step)
            self.write(self._line(state.global_step, f"eta {clock(left)}"))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.stop()
        if state.is_world_process_zero:
            self.write(self._line(state.global_step, f"in {clock(time.monotonic() - self.started)}"))

    def _head(self) -> str:
        if self.stages == 0:
            return "base stage"
        return f"stage {self.stage.index}/{self.stages} {'+'.join(self.stage.tasks)}"

    def _line(self, step: int, end: str) -> str:
        return "  ".join([self._head(), f"step {step}/{self.steps}", *self._numbers(), end])

    def _numbers(self) -> list[str]:
        first, last = (self._marks[0], self._marks[-1]) if self._marks else ((0.0, 0.0), (0.0, 0.0))
        speed = rate(last[1] - first[1], last[0] - first[0])
        return told(self.numbers, self.watched) + ([speed] if speed else [])


def make_bar() -> Any:
    """A bar with the numbers on a line of their own, so that 80 columns are enough; gone when the stage ends."""
    from rich.console import Group
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Bar(Progress):
        def get_renderable(self) -> Any:
            lines = [Text(f"  {task.fields['numbers']}", style="dim") for task in self.tasks]
            return Group(self.make_tasks_table(self.tasks), *lines)

    columns = (TextColumn("{task.description}", markup=False), BarColumn(24), MofNCompleteColumn())
    return Bar(*columns, TextColumn("eta"), TimeRemainingColumn(), transient=True)
