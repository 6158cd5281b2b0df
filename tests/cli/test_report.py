"""``contrl report``: a page of each run, of several also the one that compares them, of a study its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from contrl.cli.main import main
from contrl.continual.study_manifest import Arm
from tests.continual.test_comparison import NAIVE, REPLAY, make_study


@pytest.mark.slow
def test_runs_get_their_pages_and_one_together_a_study_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = [Arm("dpo/naive", "dpo", ("naive",)), Arm("dpo/replay", "dpo", ("replay",))]
    study = make_study(tmp_path / "study", {"dpo/naive": NAIVE, "dpo/replay": REPLAY}, arms)
    runs = [study / "runs" / "dpo-naive0", study / "runs" / "dpo-replay0"]
    assert main(["report", *map(str, runs)]) == 0
    said = capsys.readouterr().out
    assert said.count("forgetting") > 1
    together = study / "runs" / "compare" / "report.html"
    assert f"comparison: {together}" in said
    pages = [*(run / "report.html" for run in runs), together]
    assert all(page.stat().st_size > 500_000 for page in pages)
    assert all((page.parent / "figures").is_dir() for page in pages)
    assert main(["report", str(study)]) == 0
    assert capsys.readouterr().out == f"report: {study / 'report.html'}\n"
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
