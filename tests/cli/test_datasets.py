"""``contrl datasets``: every name with where its rows come from, for people, for pipes and for programs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from contrl.cli.main import main
from contrl.data.recipes import RECIPES

NAMES = ["uc", "ufb", "hh", "shp", "smoltalk", "ultrafeedback", "se-paired"]


@pytest.fixture(autouse=True)
def empty_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No copies and no earlier downloads, but for those a test puts there."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.delenv("CONTRL_DATA_DIR", raising=False)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["datasets", *arguments]) == 0
    return capsys.readouterr().out


def test_every_name_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split("\t") for line in printed(capsys).splitlines()]
    assert lines[0] == ["name", "source", "licence", "columns", "rows come from"]
    assert [line[0] for line in lines[1:]] == NAMES == list(RECIPES)
    assert lines[3] == ["hh", "Anthropic/hh-rlhf", "MIT", "chosen,rejected", "hub"]


def test_a_copy_on_disk_is_shown_with_its_path(
    capsys: pytest.CaptureFixture[str], empty_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("data/hh", "data/stanfordnlp/SHP", "hub/datasets/HuggingFaceTB___smol-smoltalk"):
        (empty_disk / folder).mkdir(parents=True)
    monkeypatch.setenv("CONTRL_DATA_DIR", str(empty_disk / "data"))
    known = {entry["name"]: entry for entry in json.loads(printed(capsys, "--json"))}
    assert list(known) == NAMES
    assert {name: entry["path"] for name, entry in known.items() if entry["on_disk"]} == {
        "hh": str(empty_disk / "data/hh"),
        "shp": str(empty_disk / "data/stanfordnlp/SHP"),
        "smoltalk": str(empty_disk / "hub/datasets/HuggingFaceTB___smol-smoltalk"),
    }
    assert known["shp"]["columns"] == ["history", "human_ref_A", "human_ref_B", "labels", "score_A", "score_B"]
    assert known["shp"]["splits"] == ["train", "validation", "test"]
    assert known["uc"] == {
        "name": "uc",
        "source": "HuggingFaceH4/ultrachat_200k",
        "licence": "MIT",
        "kind": "supervised",
        "columns": ["messages"],
        "splits": ["train", "test"],
        "on_disk": False,
        "path": None,
    }


def test_a_terminal_gets_a_table_that_fits_it(empty_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    (empty_disk / "data/uc").mkdir(parents=True)
    monkeypatch.setenv("CONTRL_DATA_DIR", str(empty_disk / "data"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    assert main(["datasets"]) == 0
    text = screen.getvalue()
    table = text.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in table[1:]] == NAMES
    assert max(map(len, table)) <= 80
    assert all(
        RECIPES[name].hub in line and RECIPES[name].licence in line for name, line in zip(NAMES, table[1:], strict=True)
    )
    assert table[1].rstrip().endswith("disk")
    assert table[2].rstrip().endswith("hub")
    assert f"from {empty_disk / 'data/uc'}" in text
