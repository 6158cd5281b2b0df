"""The table of sampled answers: a few prompts, every so many steps, with what the rewards said."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from contrl.continual.run_folder import RunFolder
from contrl.continual.samples import PROMPTS, RolloutSamples
from contrl.interfaces import Completion, Group
from contrl.models.embedded import character_tokenizer


def rollouts(number: int) -> list[Group]:
    ids = character_tokenizer()("ab")["input_ids"]
    made = [
        Completion(ids, reward=1.0, advantage=0.5, scores={"digits": 2.0}),
        Completion(ids, reward=None, token_advantages=[1.0, 2.0], ended=False),
    ]
    return [Group(str(i), "t", ids, made) for i in range(number)]


def test_answers_of_a_few_prompts_with_their_rewards(tmp_path: Path) -> None:
    """6 prompts x 2 answers: the first 4 prompts, 8 rows; columns of the rewards' own stand beside them."""
    log = RolloutSamples(RunFolder(tmp_path), 2, 10, character_tokenizer())
    log(0, rollouts(6), {"digits_error": [None, "ValueError: x"] * 6, "seen": [{"a": 1}] * 12})
    rows = pq.read_table(tmp_path / "samples" / "2-0.parquet").to_pylist()
    assert len(rows) == 2 * PROMPTS
    first, second = rows[:2]
    assert (first["prompt"], first["completion"], first["reward"], first["advantage"]) == ("ab", "ab", 1.0, 0.5)
    assert json.loads(first["scores"]) == {"digits": 2.0}
    assert (second["reward"], second["advantage"], second["ended"]) == (None, 1.5, False)
    assert (first["digits_error"], second["digits_error"], first["seen"]) == (None, "ValueError: x", '{"a": 1}')


def test_files_are_so_many_steps_apart(tmp_path: Path) -> None:
    log = RolloutSamples(RunFolder(tmp_path), 1, 10, character_tokenizer())
    for step in range(0, 31, 4):
        log(step, rollouts(1), {})
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "1-0.parquet",
        "1-12.parquet",
        "1-24.parquet",
    ]


def test_nothing_is_written_by_other_ranks_or_when_switched_off(tmp_path: Path) -> None:
    RolloutSamples(RunFolder(tmp_path, writes=False), 1, 10, character_tokenizer())(0, rollouts(1), {})
    RolloutSamples(RunFolder(tmp_path), 1, 0, character_tokenizer())(0, rollouts(1), {})
    RolloutSamples(RunFolder(tmp_path), 1, 5, character_tokenizer())(0, [], {})
    assert not (tmp_path / "samples").exists()
