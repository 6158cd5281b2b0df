"""The cards beside saved weights: results so far in a stage's, all of them in those of the run; links stay apart."""

import os
from pathlib import Path

import pytest
import yaml

from tests.runs import Runs, runs, world

__all__ = ["runs", "world"]


@pytest.fixture
def run(runs: Runs) -> Path:
    return runs(method={"name": "sft"}, training={"max_steps": 1})


def rows(card: Path) -> list[str]:
    """The first words of the rows of a card's matrix; its front matter must be YAML."""
    text = card.read_text(encoding="utf-8")
    front, body = text.split("---\n", 2)[1:]
    assert yaml.safe_load(front)["library_name"] == "transformers"
    return [line.split("|")[1].strip() for line in body.splitlines() if line.startswith("| ")]


def test_every_card_has_the_results_known_when_it_was_written(run: Path) -> None:
    stages = sorted((run / "stages").iterdir())
    assert rows(stages[0] / "final" / "README.md") == ["after", "start"]
    assert rows(stages[1] / "final" / "README.md") == ["after", "start", "1-sums"]
    for place in (run, run / "final"):
        assert rows(place / "README.md") == ["after", "start", "1-sums", "2-doubles"]
        assert "average " in (place / "README.md").read_text(encoding="utf-8")
        assert not os.path.samefile(place / "README.md", stages[1] / "final" / "README.md")
