"""What a person sees while a run goes on: a bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from contrl.interfaces import Stage
from contrl.launch import Options

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""

ONLINE = {"reward": "reward", "frac_reward_zero_std": "no signal", "completions/mean_length": "length"}
OFFLINE = {
    "loss": "loss",
    "mean_token_accuracy": "token accuracy",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "accuracy": "accuracy",
    "margin": "margin",
    "eval_loss": "eval loss",
}
"""Logged name -> how it is called here. The loss of an online method is near zero by construction and says nothing."""


def is_terminal() -> bool:
    """Whether bars and carriage returns make sense."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


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
        callbacks=lambda stage, stages, steps: [ProgressLine(stage, stages, steps)],
    )


class ProgressLine(TrainerCallback):
    """Stage, step, the numbers that matter and the time left."""

    def __init__(self, stage: Stage, stages: int, steps: int, write: Callable[[str], None] = say) -> None:
        self.stage, self.stages, self.steps, self.write = stage, stages, steps, write
        self.started = self.last = time.monotonic()
        self.first_step = 0
        self.numbers: dict[str, float] = {}
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = self.last = time.monotonic()
        self.first_step = state.global_step
        if is_terminal() and state.is_world_process_zero:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.completed}/{task.total}"))
            self.bar = Progress(*columns, TextColumn("{task.fields[numbers]}"), TimeRemainingColumn(), transient=True)
            self.bar.start()
            self.bar.add_task(self._head(), total=self.steps, completed=state.global_step, numbers="")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.numbers |= logs or {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        if self.bar is not None:
            self.bar.update(self.bar.tasks[0].id, completed=state.global_step, numbers=self._numbers())
        elif time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            done = max(1, state.global_step - self.first_step)
            left = (self.last - self.started) / done * (self.steps - state.global_step)
            self.write(f"{self._head()}  step {state.global_step}/{self.steps}  {self._numbers()}  eta {_clock(left)}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.stop()
        if state.is_world_process_zero:
            taken = _clock(time.monotonic() - self.started)
            self.write(f"{self._head()}  step {state.global_step}/{self.steps}  {self._numbers()}  in {taken}")

    def _head(self) -> str:
        if self.stages == 0:
            return "base stage"
        return f"stage {self.stage.index}/{self.stages} {'+'.join(self.stage.tasks)}"

    def _numbers(self) -> str:
        return shown(self.numbers)


def shown(numbers: Mapping[str, float]) -> str:
    """The few logged numbers that a person follows; ``no signal`` is the share of groups with equal rewards."""
    names = {**(ONLINE if "reward" in numbers else OFFLINE), "entropy": "entropy"}
    if "rewards/margins" in numbers:
        names = {name: short for name, short in names.items() if name not in ("mean_token_accuracy", "entropy")}
    parts = [(short, numbers[name]) for name, short in names.items() if name in numbers]
    return "  ".join(f"{short} {f'{value:.0%}' if short == 'no signal' else f'{value:.3g}'}" for short, value in parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
