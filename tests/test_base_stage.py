"""The stage before the sequence: trained once, kept by content, resumed like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from contrl import faults
from contrl.base_stage import base_digest, cache_folder
from contrl.config import load
from contrl.errors import EnvironmentFault
from contrl.experiment import build_tasks, find
from contrl.interfaces import Task, TaskSequence
from tests import runs as small
from tests.runs import LORA, Runs, events, metric, remains, scores, weights

world, runs = small.world, small.runs

BASE: Mapping[str, Any] = {
    "method": "sft",
    "prompts_per_step": 4,
    "training": {"max_steps": 4, "learning_rate": 3e-3, "save_steps": 2, "logging_steps": 1},
}
QUICK: Mapping[str, Any] = {"method": "sft", "training": {"max_steps": 1}, "evaluation": {"num_items": 2}}


def cached(folder: Path) -> Path:
    """The only base stage in the cache."""
    (found,) = (folder / "cache").glob("base-*/stages/1-base/final")
    return found


def test_it_is_trained_once_and_then_found(runs: Runs) -> None:
    first = runs("first", **QUICK, base=BASE)
    base = cached(runs.folder)
    assert weights(first / "base") == weights(base), "the run keeps its own copy"
    assert f"base stage: sft on 16 rows of all tasks, kept in {base.parents[2]}" in runs.said
    assert "steps    2 in 2 stages (1, 1), after 4 of the base" in runs.said
    runs.said.clear()
    second = runs("second", **QUICK, base=BASE, strategies=["replay"])
    assert weights(second / "base") == weights(base)
    assert not [line for line in runs.said if line.startswith("base stage")]
    assert "steps    2 in 2 stages (1, 1)" in runs.said, "what is in the cache takes no time"
    assert f"weights  {base}" in runs.said
    assert len(events(base.parents[2], "started")) == 1


def test_it_learns_from_every_task_and_is_not_in_the_matrix(runs: Runs) -> None:
    run = runs(**QUICK, base={**BASE, "training": {**BASE["training"], "max_steps": 40}})
    losses = metric(cached(runs.folder).parents[2], "loss")
    assert losses[1, 40] < 0.8 * losses[1, 1]
    assert {stage for stage, _, _ in scores(run)} == {0, 1, 2}
    assert json.loads((run / "results.json").read_text(encoding="utf-8"))["rows"] == ["start", "1-sums", "2-doubles"]
    assert [event["stage"] for event in events(run, "started")] == [1, 2]


@pytest.mark.parametrize(
    ("point", "visit"),
    [
        ("base", 1),
        pytest.param("training", 3, marks=pytest.mark.slow),
        pytest.param("saving", 4, marks=pytest.mark.slow),
    ],
)
def test_killed_within_it_the_run_ends_the_same(
    runs: Runs, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, point: str, visit: int
) -> None:
    """Saves of the base stage: its start, two checkpoints, the end."""
    faults.arm(point, visit)
    with pytest.raises(faults.Killed):
        runs(**QUICK, base=BASE)
    resumed = remains(runs(**QUICK, base=BASE))
    base = weights(cached(runs.folder))
    other = Runs(runs.world, tmp_path_factory.mktemp("whole"))
    monkeypatch.setenv("CONTRL_CACHE", str(other.folder / "cache"))
    assert remains(other(**QUICK, base=BASE)) == resumed
    assert weights(cached(other.folder)) == base


def test_what_went_in_decides_which_one_it_is(runs: Runs) -> None:
    def digest(config: Mapping[str, Any], **rows: list[dict[str, str]]) -> str:
        resolved = load(config, resolve=find).config
        assert resolved.base is not None
        tasks = [Task(t.name, rows.get(t.name, t.train), t.eval) for t in build_tasks(resolved)]
        return base_digest(resolved.model, resolved.base, TaskSequence.in_order(tasks))

    config = runs.config(base=BASE)
    model = {"name_or_path": config["model"]}
    same = [
        {**config, "seed": 0, "output_dir": "elsewhere"},
        {**config, "method": "sft", "strategies": ["replay"], "training": {"max_steps": 9}},
        {**config, "model": {**model, **LORA}},  # the base stage trains the whole model
        {**config, "tasks": config["tasks"][::-1]},  # runs in several orders share a base
    ]
    other = [
        {**config, "base": {**BASE, "seed": 1}},
        {**config, "base": {**BASE, "prompts_per_step": 8}},
        {**config, "base": {**BASE, "training": {**BASE["training"], "learning_rate": 1e-3}}},
        {**config, "model": "tiny"},
        {**config, "model": {**model, "dtype": "bfloat16"}},
        {**config, "tasks": config["tasks"][:1]},
    ]
    assert {digest(changed) for changed in same} == {digest(config)}
    found = [digest(changed) for changed in other]
    assert len({*found, digest(config)}) == 1 + len(other)
    assert digest(config, sums=[{"id": "0", "prompt": "a", "completion": "b"}]) != digest(config)


def test_other_weights_under_the_same_name_are_another_base(runs: Runs, world: Path) -> None:
    copy = shutil.copytree(world / "model", runs.folder / "copy")
    resolved = load(runs.config(base=BASE, model=str(copy)), resolve=find).config
    assert resolved.base is not None
    sequence = TaskSequence.in_order(build_tasks(resolved))
    before = base_digest(resolved.model, resolved.base, sequence)
    changed = bytearray((copy / "model.safetensors").read_bytes())
    changed[-1] ^= 1
    (copy / "model.safetensors").write_bytes(changed)
    assert base_digest(resolved.model, resolved.base, sequence) != before


def test_the_cache_is_where_the_environment_says(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == runs.folder / "cache"
    monkeypatch.delenv("CONTRL_CACHE")
    monkeypatch.setenv("HOME", str(runs.folder / "home"))
    assert cache_folder() == runs.folder / "home" / ".cache" / "contrl"


def test_a_cache_that_cannot_be_written_is_told(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs.folder / "file").touch()
    monkeypatch.setenv("CONTRL_CACHE", str(runs.folder / "file" / "cache"))
    with pytest.raises(EnvironmentFault, match="cannot be written") as caught:
        runs(**QUICK, base=BASE)
    assert caught.value.fix == "set CONTRL_CACHE"
