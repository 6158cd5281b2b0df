"""Answers to read: the newest rollouts, else an evaluation's; one line each, whatever the model wrote."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contrl.errors import UserError
from contrl.report.sampled import newest, text
from tests.report.conftest import RunWriter


def rollout(prompt: str, completion: str, reward: float | None, *, ended: bool = True) -> dict[str, Any]:
    row = {"task": "plus", "id": prompt, "prompt": prompt, "completion": completion, "ended": ended}
    return row | {"reward": reward, "advantage": None if reward is None else reward - 0.5}


def write(folder: Path, name: str, *rows: dict[str, Any]) -> None:
    (folder / "samples").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "samples" / name)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return RunWriter(tmp_path / "run", ["plus"], num_items=5).folder


def test_the_newest_table_counts_by_number(run: Path) -> None:
    write(run, "1-50.parquet", rollout("old", "x", 0.0))
    write(run, "2-8.parquet", rollout("older", "x", 0.0))
    answers = [rollout("1+1=", "2", 1.0), rollout("1+1=", "3\n4", None, ended=False), rollout("2+2=", "5", 0.0)]
    write(run, "2-10.parquet", *answers)
    found = newest(run, 2)
    assert (found["stage"], found["step"], found["total"]) == (2, 10, 3)
    assert text(found).splitlines() == [
        f"stage 2, step 10: 2 of 3 answers of {run / 'samples' / '2-10.parquet'}",
        "",
        "plus · 1+1=",
        "  reward 1.00  advantage 0.50  2",
        "  reward -  advantage -  cut  3\\n4",
    ]


def test_what_a_model_writes_cannot_steer_the_terminal(run: Path) -> None:
    write(run, "1-1.parquet", rollout("\x1b[2J", "\x1b]0;title\x07" + "é" * 100_000, 1.0))
    shown = text(newest(run, 4))
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "more characters)" in shown
    assert len(shown) < 1000


def test_judged_answers_where_nothing_was_sampled(run: Path) -> None:
    writer = RunWriter(run.parent / "other", ["plus", "minus"], num_items=5)
    for stage in (0, 1):
        writer.score(stage, "plus", 1.0)
    found = newest(writer.folder, 1)
    assert (found["stage"], found["step"], found["total"]) == (1, None, 5)
    assert text(found).splitlines()[3] == "  score 1.00  right  0*2-1"


def test_no_answers_is_told(run: Path) -> None:
    with pytest.raises(UserError, match="holds no sampled answers"):
        newest(run, 3)
    write(run, "1-1.parquet", rollout("a", "b", 1.0))
    (run / "samples" / "1-1.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="the table cannot be read"):
        newest(run, 3)
