"""A comparison as text: every number with its interval, what is missing as a dash or in words."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from contrl.cli.main import main
from contrl.continual.comparison import compare
from contrl.continual.study_manifest import FAILED, Arm, Point
from contrl.report.comparison_table import plain, print_comparison
from tests.continual.test_comparison import NAIVE, REPLAY, make_study


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """naive and replay done, one point of a sweep failed, one arm refused; a name that would steer a terminal."""
    arms = [
        Arm("dpo/naive", "dpo", ("naive",)),
        Arm("dpo/replay\x1b[31m", "dpo", ("replay",), point=Point("dpo replay.share", "share", 0.5)),
        Arm("dpo/replay(share=1)", "dpo", ("replay",), point=Point("dpo replay.share", "share", 1.0)),
        Arm("dpo/cppo", "dpo", ("cppo",), refused="cppo needs rewards"),
    ]
    made = make_study(tmp_path / "study", {"dpo/naive": NAIVE, "dpo/replay\x1b[31m": REPLAY}, arms)
    (made / FAILED).mkdir()
    (made / FAILED / "dpo-replay(share=1)0.json").write_text(json.dumps({"what": "no memory"}), encoding="utf-8")
    return made


def test_the_tables(folder):
    text = plain(compare([folder]))
    assert "\x1b" not in text
    blocks = [block.splitlines() for block in text.split("\n\n")]
    assert blocks[0] == ["study · 4 arms · seeds 0, 1 · orders given · success"]
    means = {line[: line.index("  ")]: line for line in blocks[1]}
    assert means["dpo/naive"].split("  ")[-1].strip().startswith("0.12 [")
    assert "0/2, 1 failed  failed: no memory" in means["dpo/replay(share=1)"]
    assert "refused: cppo needs rewards" in means["dpo/cppo"]
    (difference,) = (line for line in blocks[2] if line.startswith("dpo/replay"))
    assert "dpo/naive  2  +0.31 [" in difference
    assert blocks[3][0].startswith("smallest detectable difference")
    assert [line.split("  ")[0] for line in blocks[4]] == [
        "trade-off: dpo replay.share",
        "without (dpo/naive)",
        "share = 0.5",
        "share = 1",
    ]
    assert "–" in blocks[4][3]
    assert any("R[end, j]" in line for line in blocks[5])


def test_an_old_console_gets_ascii(folder):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_comparison(compare([folder]), stream)
    stream.seek(0)
    assert "study | 4 arms" in stream.read()


def test_the_command(folder, capsys):
    assert main(["compare", str(folder), "--metric", "forgetting", "--baseline", "naive"]) == 0
    assert "minus the baseline" in capsys.readouterr().out
    assert main(["compare", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["arms"][1]["differences"]["forgetting"]["value"] == -0.75
    assert told["formulas"]["retention"]["text"].startswith("mean over tasks")
    assert main(["compare", str(folder), "--metric", "forgeting"]) == 2
    assert "did you mean forgetting?" in capsys.readouterr().err
