"""AIF-Gen's own sequences from local copies: the exact slices of its programs, and what to put where without any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contrl.data import named
from contrl.data.named import ANTHROPIC, NAMED, SUMMARIES, ULTRAFEEDBACK, read_named
from contrl.errors import EnvironmentFault, UserError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of data sets; no hub."""
    monkeypatch.setenv("CONTRL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def put(home: Path, name: str, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> None:
    folder = home / name
    folder.mkdir(parents=True)
    for split, rows in (("train", train), ("test", test)):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def numbered(number: int, name: str) -> list[dict[str, Any]]:
    return [{"chosen": f"{name} {i} good", "rejected": f"{name} {i} bad"} for i in range(number)]


def test_debug_takes_two_slices_of_one_set_and_one_of_another(home: Path) -> None:
    """Rows 0-99 and 100-199 of UltraFeedback, rows 0-99 of HH-RLHF, of both splits."""
    put(home, ULTRAFEEDBACK, numbered(250, "ufb"), numbered(200, "ufb-test"))
    put(home, ANTHROPIC, numbered(120, "hh"), numbered(101, "hh-test"))
    tasks = read_named("debug")
    assert [task.name for task in tasks] == ["0-ultrafeedback", "1-ultrafeedback", "2-anthropic"]
    ends = [[(rows[0]["chosen"], rows[-1]["chosen"], len(rows)) for rows in (t.train, t.test)] for t in tasks]
    assert ends == [
        [("ufb 0 good", "ufb 99 good", 100), ("ufb-test 0 good", "ufb-test 99 good", 100)],
        [("ufb 100 good", "ufb 199 good", 100), ("ufb-test 100 good", "ufb-test 199 good", 100)],
        [("hh 0 good", "hh 99 good", 100), ("hh-test 0 good", "hh-test 99 good", 100)],
    ]
    assert [len(task.test) for task in read_named("debug", test_split=None)] == [0, 0, 0]


def test_a_split_that_is_too_short_for_a_slice_is_refused(home: Path) -> None:
    put(home, ULTRAFEEDBACK, numbered(150, "ufb"), numbered(200, "ufb-test"))
    put(home, ANTHROPIC, numbered(100, "hh"), numbered(100, "hh-test"))
    with pytest.raises(UserError, match="has 150 rows in train\n  the task 1-ultrafeedback takes rows 100 to 199"):
        read_named("debug")


def test_the_whole_sets_one_after_the_other(home: Path) -> None:
    put(home, ULTRAFEEDBACK, numbered(3, "ufb"), numbered(2, "t"))
    put(home, ANTHROPIC, numbered(4, "hh"), numbered(1, "t"))
    tasks = read_named("ultrafeedback2anthropic")
    assert [(task.name, len(task.train), len(task.test)) for task in tasks] == [
        ("0-ultrafeedback", 3, 2),
        ("1-anthropic", 4, 1),
    ]
    sizes = [part.size for part in NAMED["ultrafeedback2anthropic_reduced"]]
    assert sizes == [(35_200, 1_000)] * 2


def post(topic: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": f"SUBREDDIT: {topic}\nPOST: text", "chosen": chosen, "rejected": rejected}


LONG, OTHER = "one two three four five", "a b c d e"


def test_cppo_divides_posts_by_topic_and_cleans_pairs_for_reward_models(home: Path) -> None:
    """In any case of the letters; a side under five words and equal sides teach no reward model, but are prompts."""
    train = [
        post("r/relationships", LONG, OTHER),
        post("r/dogs", LONG, OTHER),
        post("R/Relationships", LONG, LONG),
        post("r/dogs", "one two three four", LONG),
        post("r/cats", OTHER, LONG),
    ]
    put(home, SUMMARIES, train, train[:2])
    first, second = read_named("cppo-reward")
    assert [row["id"] for row in first.train] == ["0"]
    assert [row["id"] for row in second.train] == ["1", "4"]
    (note,) = first.notes
    assert note.startswith("0-relationships, train: 1 of 2 pairs left out: their sides are equal")
    first, second = read_named("cppo-rl")
    assert [row["id"] for row in first.train] == ["0", "2"]
    assert [row["id"] for row in second.train] == ["1", "3", "4"]
    assert (first.notes, second.notes, len(first.test), len(second.test)) == ((), (), 1, 1)


def test_cppo_keeps_its_validation_rows_out_of_training() -> None:
    """52243 and 40291 train rows, of which reinforcement leaves the last 3462 and 2985."""
    rewards, prompts = NAMED["cppo-reward"], NAMED["cppo-rl"]
    assert [part.size for part in rewards] == [(52_243, 45_148), (40_291, 38_481)]
    assert [part.size for part in prompts] == [(48_781, 45_148), (37_306, 38_481)]


@pytest.mark.parametrize("name", list(NAMED))
def test_without_the_data_it_says_what_to_put_where(name: str) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        read_named(name)
    assert f"the sequence {name} needs the data set" in str(caught.value)
    for source in {part.source for part in NAMED[name]}:
        assert f"$CONTRL_DATA_DIR/{source}/" in caught.value.fix


def test_a_set_is_read_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(home, ULTRAFEEDBACK, numbered(200, "ufb"), numbered(200, "t"))
    put(home, ANTHROPIC, numbered(100, "hh"), numbered(100, "t"))
    read: list[tuple[str, str]] = []
    real = named.read_rows

    def counted(source: str, split: str) -> Any:
        read.append((source, split))
        return real(source, split)

    monkeypatch.setattr(named, "read_rows", counted)
    read_named("debug")
    assert len(read) == len(set(read)) == 4
