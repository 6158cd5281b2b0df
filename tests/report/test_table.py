"""The terminal table: the exact text, and what each kind of terminal gets."""

import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from contrl.continual.results import Cell, Results, read
from contrl.report import table

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def cell(value: float, se: float = 0.05) -> Cell:
    return Cell(value, se, 50)


@pytest.fixture
def small() -> Results:
    """Two tasks, se 0.05 everywhere (half-width 0.098); plus falls by 0.5 after its stage, se of the fall 0.0707."""
    return Results(
        folder=Path("runs/small"),
        run={"status": "finished", "model": "tiny", "method": "rloo", "strategies": ["naive"], "seed": 3},
        metric="success",
        tasks=("plus", "minus"),
        rows=("start", "1-plus", "2-minus"),
        trained=((), (0,), (1,)),
        matrix=((cell(0.25), None), (cell(0.75), cell(0.25)), (cell(0.25), cell(1.0))),
        items={},
    )


TEXT = """\
small · tiny · rloo · naive · seed 3
success, ± 95% CI, n=50

after stage         plus          minus
start         0.25 ±0.10              –
1 plus       [0.75 ±0.10]    0.25 ±0.10
2 minus       0.25 ±0.10 ▼  [1.00 ±0.10]

average 0.62 [0.56, 0.69] · forgetting 0.50 [0.36, 0.64] · BWT -0.50 [-0.64, -0.36]
  average    = mean over tasks j of R[end, j]
  forgetting = mean over tasks j not trained in the last stage of (R[last(j), j] - R[end, j])
  BWT        = mean over tasks j first trained before the last stage of (R[end, j] - R[first(j), j])
  R[k, j]: score on task j after stage k; end: last stage; first(j), last(j): stages that trained j
  [low, high]: 95% CI over evaluation items, cells taken as independent
  [ ] trained in this stage, ▼ ▲ significantly below / above its score when it was last trained, – not measured or not \
defined
"""


def test_the_whole_text(small):
    assert table.render(small) == TEXT


def test_flips_and_drift_have_a_line_where_they_are_known(small, tmp_path):
    """Of four items three were right when just learnt: two of them are wrong now. Drift: minus is new, plus is old."""
    correct = {(1, 0): dict(zip("abcd", (True, True, True, False), strict=True)), (2, 0): dict.fromkeys("abcd", False)}
    correct[2, 0]["a"] = True
    records = [
        {"stage": 2, "task": task, "kl": kl, "kl_sequence": kl, "n": 4} for task, kl in (("plus", 0.25), ("minus", 0.5))
    ]
    (tmp_path / "drift.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    told = table.render(dataclasses.replace(small, folder=tmp_path, correct=correct))
    (line,) = [line for line in told.splitlines() if line.startswith("lost ")]
    assert re.fullmatch(
        r"lost \(1->0\) 0\.50 \[0\.00, 1\.00\] · gained \(0->1\) 0\.00 \[0\.00, 0\.00\] · "
        r"KL from the start 0\.500 on new prompts, 0\.250 on old prompts \(nats per token\)",
        line,
    )


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")


def test_a_pipe_gets_plain_text(small):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    table.print_results(small, stream)
    stream.seek(0)
    written = stream.read()
    assert written == TEXT
    assert "\r" not in written


def test_a_terminal_gets_the_same_text_in_colour(small):
    stream = Terminal()
    table.print_results(small, stream)
    written = stream.getvalue()
    assert "\x1b[31m" in written  # the drop is red
    assert [line.rstrip() for line in ANSI.sub("", written).splitlines()] == TEXT.splitlines()


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_escape_codes_where_they_are_not_wanted(small, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    stream = Terminal()
    table.print_results(small, stream)
    assert stream.getvalue() == TEXT


def test_no_color_set_but_empty_counts_for_nothing(small, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "")
    stream = Terminal()
    table.print_results(small, stream)
    assert "\x1b[" in stream.getvalue()


def test_force_color_colours_a_pipe(small, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    table.print_results(small, stream)
    stream.seek(0)
    assert "\x1b[31m" in stream.read()


def test_an_ascii_console_gets_ascii_marks(small):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    table.print_results(small, stream)
    stream.seek(0)
    written = stream.read()
    assert "0.25 +/-0.10 v" in written
    assert "[1.00 +/-0.10]" in written
    assert "forgetting 0.50 [0.36, 0.64] | BWT" in written


def test_a_rich_console_that_is_no_terminal_gets_plain_text(small):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert table.render(small, Console(file=stream)) is None
    stream.flush()
    stream.seek(0)
    assert stream.read() == TEXT


def test_columns_that_do_not_fit_go_below(small):
    text = table.plain(small, width=32)
    blocks = text.split("\n\n")[1:3]
    assert "plus" in blocks[0].splitlines()[0]
    assert "minus" not in blocks[0].splitlines()[0]
    assert blocks[1].splitlines()[0].split() == ["after", "stage", "minus"]
    assert all(len(line) <= 32 for block in blocks for line in block.splitlines())


def test_a_column_wider_than_the_terminal_still_prints(small):
    assert "[1.00 ±0.10]" in table.plain(small, width=5)


def test_a_name_cannot_steer_the_terminal(small):
    hostile = dataclasses.replace(small, tasks=("\x1b[2Jplus", "mi\rnus"), folder=Path("a\x1b]0;x\x07b"))
    text = table.plain(hostile)
    assert "\x1b" not in text
    assert "\r" not in text
    assert "?[2Jplus" in text


def test_a_rise_is_marked_and_noise_is_not(small):
    """plus was 0.30 when last trained: 0.35 is within noise (se of the difference 0.0707), 0.90 is not."""
    changed = dataclasses.replace(
        small,
        matrix=((cell(0.2), cell(0.2)), (cell(0.3), cell(0.2)), (cell(0.35), cell(0.9)), (cell(0.9), cell(0.9))),
        rows=("start", "1-plus", "2-minus", "3-minus"),
        trained=((), (0,), (1,), (1,)),
    )
    lines = table.plain(changed).splitlines()
    assert "0.35 ±0.10  " in lines[6]
    assert "0.90 ±0.10 ▲" in lines[7]
    assert not any("▼" in line for line in lines[:8])


def test_an_unfinished_run_says_so(demo, small):
    running = dataclasses.replace(small, run={"status": "running"}, matrix=(*small.matrix[:2], (None, None)))
    text = table.plain(running)
    assert "running, not finished: the figures below are after 1-plus" in text
    assert "forgetting – · BWT –" in text
    nothing = dataclasses.replace(small, run={"status": "running"}, matrix=((None, None),) * 3)
    assert "nothing was scored yet" in table.plain(nothing)
    assert "not finished" not in table.plain(read(demo))


def test_notes_of_the_results_are_printed(small):
    noted = dataclasses.replace(small, notes=("2-plus.parquet cannot be read",))
    assert "note: 2-plus.parquet cannot be read" in table.plain(noted)
