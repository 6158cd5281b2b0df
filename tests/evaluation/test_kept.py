"""What is kept between evaluations: whole portions, whatever a kill leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from contrl.errors import UserError
from contrl.evaluation.kept import Kept, key_of


def test_portions_are_found_again_and_a_torn_one_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "kept.jsonl"
    kept = Kept(path)
    kept.add({"a": 1.5, "b": None})
    kept.add({"c": {"text": "ü\ud800\u2028"}})
    assert ("a" in kept, kept["b"], "d" in kept) == (True, None, False)
    whole = path.read_bytes()
    for size in range(len(whole.splitlines()[0]) + 1, len(whole)):
        path.write_bytes(whole[:size])
        torn = Kept(path)
        assert (torn["a"], "c" in torn) == (1.5, False)
    torn.add({"d": 4})
    again = Kept(path)
    assert (again["b"], again["d"], "c" in again) == (None, 4, False)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    path.write_text('{"a": 1}\nnonsense\n{"b": 2}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"kept.jsonl:2"):
        Kept(path)


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    first, second = Kept(tmp_path / "kept.jsonl"), Kept(tmp_path / "kept.jsonl")
    first.add({"a": 1})
    second.add({"b": 2})
    first.add({"c": 3})
    assert all(name in Kept(tmp_path / "kept.jsonl") for name in "abc")


def test_keys_are_of_content() -> None:
    assert key_of("m", {"b": 1, "a": [2]}) == key_of("m", {"a": [2], "b": 1})
    assert len({key_of("m", 1), key_of("m", "1"), key_of("m1"), key_of("m", [1]), key_of("m", None)}) == 5
