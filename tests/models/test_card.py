"""The page beside the weights: readable front matter, only facts that were given, no path of one machine in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from contrl import __version__
from contrl.models.card import card, write_card

FACTS: dict[str, Any] = {
    "title": "dpo on two tasks",
    "base": "gpt2-medium",
    "data": ["owner/rows", "./local.jsonl", "mine.jsonl"],
    "method": {"name": "dpo", "beta": 0.1},
    "strategy": "replay, share 0.1",
    "sequence": ["first", "second"],
    "matrix": {"metric": "success", "columns": ["first", "second"], "rows": [["start", 0.1, None], ["1", 0.75, 0.2]]},
    "command": ["contrl", "dpo", "--beta", 0.1],
    "tags": ["continual"],
}


def parts(text: str) -> tuple[dict[str, Any], str]:
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_a_hub_can_read_the_front_matter() -> None:
    front, _ = parts(card(FACTS))
    assert front == {
        "library_name": "transformers",
        "base_model": "gpt2-medium",
        "datasets": ["owner/rows"],
        "tags": ["contrl", "dpo", "continual"],
    }


def test_every_fact_has_its_section() -> None:
    _, body = parts(card(FACTS))
    assert body.startswith("\n# dpo on two tasks\n") or body.lstrip().startswith("# dpo on two tasks\n")
    headings = [line for line in body.splitlines() if line.startswith("## ")]
    assert headings == [
        *(f"## {name}" for name in ("Base", "Data", "Method", "Strategy", "Sequence", "Results", "Command", "Versions"))
    ]
    assert "- beta: 0.1" in body
    assert "1. first\n2. second" in body
    assert "| after | first | second |\n|---|---|---|\n| start | 0.100 | – |\n| 1 | 0.750 | 0.200 |" in body
    assert "```\ncontrl dpo --beta 0.1\n```" in body
    assert f"- contrl: {__version__}" in body


def test_what_is_not_known_is_not_written() -> None:
    front, body = parts(card({"base": "tiny"}))
    assert front == {"library_name": "transformers", "tags": ["contrl"]}
    assert [line for line in body.splitlines() if line.startswith("## ")] == ["## Base", "## Versions"]


def test_an_embedded_models_name_is_its_name_on_the_hub() -> None:
    assert parts(card({"base": "smollm2"}))[0]["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_folder_is_no_name_of_a_hub(tmp_path: Path) -> None:
    assert "base_model" not in parts(card({"base": str(tmp_path)}))[0]


def test_the_card_is_the_readme(tmp_path: Path) -> None:
    path = write_card(tmp_path, FACTS)
    assert path == tmp_path / "README.md"
    assert path.read_text(encoding="utf-8") == card(FACTS)
