"""What a person sees while a run goes on."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from contrl.cli import console
from contrl.cli.console import ProgressLine
from contrl.interfaces import Stage
from contrl.methods.rloo import RLOO
from contrl.methods.sft import SFT

ONLINE = {
    "loss": 1e-9,
    "reward": 0.32456,
    "frac_reward_zero_std": 0.08,
    "entropy": 2.5,
    "completions/mean_length": 6.5,
    "grad_norm": 1.0,
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its only item."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def steps(line: ProgressLine, folder: Path, first: int, last: int, clock: list[float]) -> None:
    """A trainer's calls from step ``first`` to ``last``, ten seconds each."""
    args, control = TrainingArguments(str(folder)), TrainerControl()
    state = TrainerState(global_step=first, is_world_process_zero=True)
    line.on_train_begin(args, state, control)
    for step in range(first + 1, last + 1):
        state.global_step = step
        clock[0] += 10
        line.on_log(args, state, control, logs=ONLINE | {"num_tokens": 4500.0 * step})
        line.on_step_end(args, state, control)
    line.on_train_end(args, state, control)


def test_without_a_terminal_there_is_a_line_now_and_then(tmp_path: Path, clock: list[float]) -> None:
    """A resumed stage from step 10 on: a line every 30 s with the time left (7 steps of 10 s), and one at the end."""
    written: list[str] = []
    line = ProgressLine(Stage(2, ("sums",)), 4, 20, RLOO.watched, written.append)
    clock[0] = 500
    steps(line, tmp_path, 10, 20, clock)
    numbers = "reward 0.325  no signal 8%  entropy 2.5  450 tokens/s"
    assert written == [
        f"stage 2/4 sums  step 13/20  {numbers}  eta 1:10",
        f"stage 2/4 sums  step 16/20  {numbers}  eta 0:40",
        f"stage 2/4 sums  step 19/20  {numbers}  eta 0:10",
        f"stage 2/4 sums  step 20/20  {numbers}  in 1:40",
    ]


def test_a_base_stage_is_called_so(tmp_path: Path, clock: list[float]) -> None:
    written: list[str] = []
    steps(ProgressLine(Stage(1, ("base",)), 0, 3, SFT.watched, written.append), tmp_path, 0, 3, clock)
    assert written[-1].startswith("base stage  step 3/3  ")


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    written: list[str] = []
    line = ProgressLine(Stage(1, ("sums",)), 1, 3, RLOO.watched, written.append)
    state = TrainerState(global_step=3, is_world_process_zero=False)
    line.on_train_begin(TrainingArguments(str(tmp_path)), state, TrainerControl())
    line.last -= 1000
    line.on_step_end(TrainingArguments(str(tmp_path)), state, TrainerControl())
    line.on_train_end(TrainingArguments(str(tmp_path)), state, TrainerControl())
    assert written == []


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("NO_COLOR", "1"), ("CI", "1")])
def test_who_wants_plain_lines_gets_no_bar(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for variable, usual in (("TERM", "xterm"), ("NO_COLOR", ""), ("CI", "")):
        monkeypatch.setenv(variable, usual)
    assert console.is_terminal()
    monkeypatch.setenv(name, value)
    assert not console.is_terminal()


def test_a_terminal_gets_a_bar_with_everything_in_80_columns(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage of 20 steps, drawn at step 19: stage, step, time left, and the numbers on a line of their own."""
    shown: list[str] = []
    written: list[str] = []
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    line = ProgressLine(Stage(2, ("sums",)), 4, 20, RLOO.watched, written.append)
    ends = line.on_train_end

    def look(*given: object, **more: object) -> None:
        screen = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
        screen.print(line.bar.get_renderable())
        shown.extend(screen.file.getvalue().splitlines())  # type: ignore[attr-defined]
        ends(*given, **more)

    monkeypatch.setattr(line, "on_train_end", look)
    steps(line, tmp_path, 0, 19, clock)
    assert re.fullmatch(r"stage 2/4 sums [━╸╺ ]{25}19/20 eta .*", shown[0].rstrip())
    assert shown[1].rstrip() == "  reward 0.325 · no signal 8% · entropy 2.5 · 450 tokens/s"
    assert written == ["stage 2/4 sums  step 19/20  reward 0.325  no signal 8%  entropy 2.5  450 tokens/s  in 3:10"]
