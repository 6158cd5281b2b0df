"""Help for a key, and the page that documents the keys, which must say the same and whose examples must load."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contrl.config import Resolved, explain, keys, plugin_keys
from contrl.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("rounds", "rounds (a whole number, at least 1; default 1)\n  how often the sequence is gone through"),
        (
            "training.learning_rate",
            "training.learning_rate (a number; default 5e-05)\n  The initial learning rate for the optimizer.",
        ),
        ("training.seed", "training.seed: not set here; write seed at the top level (or in base, for the base stage)"),
        ("method.beta", "method.beta: a field of the method; which there are depends on the name chosen"),
        ("tasks.max_number", "tasks.max_number: a field of the sequence; which there are depends on the name chosen"),
    ],
)
def test_explain(path: str, text: str) -> None:
    assert explain(path) == text


@pytest.mark.parametrize("item", ["0", "plus", "N"])
def test_a_key_of_a_list_item_by_number_or_name(item: str) -> None:
    assert explain(f"tasks.{item}.eval_split") == (
        f"tasks.{item}.eval_split (text; default test)\n  split of data to judge by, where data has splits"
    )
    assert explain(f"tasks.{item}.training.max_steps").startswith(
        f"tasks.{item}.training.max_steps (a whole number; default"
    )


@pytest.mark.parametrize(
    ("path", "meant"),
    [("learning_rate", "training.learning_rate"), ("rouns", "rounds"), ("training.max_stps", "training.max_steps")],
)
def test_an_unknown_key_has_a_nearest_one(path: str, meant: str) -> None:
    with pytest.raises(UserError) as caught:
        explain(path)
    assert caught.value.fix == f"did you mean {meant}?"


def test_every_key_has_a_meaning() -> None:
    """The number is a budget: a new key of contrl's own is a decision, not an accident."""
    described = list(keys())
    assert len(described) == 69
    assert [key.path for key in described if not key.help or key.help.endswith(".")] == []


def test_the_fields_of_a_plugin() -> None:
    def plugin(share: float = 0.5, *, kind: str, **others: Any) -> None: ...

    assert [key[:3] for key in plugin_keys("strategies.N", plugin)] == [
        ("strategies.N.share", "a number", "default 0.5"),
        ("strategies.N.kind", "text", "required"),
    ]


def test_the_documentation_lists_every_key_as_it_is() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = [f"| `{key.path}` | {key.type} | {key.default.removeprefix('default ')} | {key.help} |" for key in keys()]
    assert [row for row in rows if row not in page] == []


def test_the_examples_of_the_documentation_load(
    resolved: Callable[..., Resolved], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The YAML and the overrides that fit it, with the files they name."""
    page = PAGE.read_text(encoding="utf-8")
    mine, puzzles, orders = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name in ("sums", "words", "words-test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{name}.jsonl").write_text("", encoding="utf-8")
    lines = [shlex.split(line) for line in re.findall(r"^contrl run mine.yaml (.*)$", page, flags=re.MULTILINE)]
    assert len(lines) == 3
    num_overridden = [[*resolved(mine, line).origins.values()].count("command line") for line in lines]
    # The third line gives a list of two strategies: two names and a share, which its last override changes.
    assert num_overridden == [2, 2, 3]
    assert resolved(puzzles).config.base is not None
    assert resolved(mine.replace("tasks:", f"{orders}tasks:")).config.order_seed == 3
