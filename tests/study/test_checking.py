"""Every configuration of every arm before anything runs: ids, equal arms, refusals, and all mistakes at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from contrl.config import load
from contrl.continual.study_manifest import Point
from contrl.errors import ConfigErrors
from contrl.experiment import find
from contrl.study.checking import check
from tests.runs import Runs
from tests.study.studies import outline_of, study


def quiet(text: str) -> None:
    """Rows have nothing to say here."""


def test_runs_are_named_by_their_configuration(runs: Runs):
    found = check(outline_of(runs.folder, study(runs)), quiet)
    assert [(run.arm, run.seed, run.order) for run in found.manifest.runs] == [
        ("sft/naive", 0, "given"),
        ("sft/replay", 0, "given"),
        ("sft/naive", 1, "given"),
        ("sft/replay", 1, "given"),
    ]
    for run in found.manifest.runs:
        resolved = found.runs[run.id]
        assert resolved.digest.startswith(run.id)
        assert resolved.config.output_dir == str(runs.folder / "out" / run.folder)
        assert load(resolved.text, resolve=find).config == resolved.config
    elsewhere = check(outline_of(runs.folder, study(runs, output_dir=str(runs.folder / "there"))), quiet)
    assert list(elsewhere.runs) == list(found.runs)
    changed = check(outline_of(runs.folder, study(runs), "run.training.max_steps=5"), quiet)
    assert not set(changed.runs) & set(found.runs)
    assert all(seconds is not None and seconds > 0 for seconds in found.seconds.values())


def test_equal_arms_are_one_and_keep_their_place_on_the_curve(runs: Runs):
    given = study(
        runs, arms={"strategies": ["naive", "replay(share=0.25)"]}, sweep={"replay.share": [0.25, 1]}, seeds=[0]
    )
    found = check(outline_of(runs.folder, given), quiet)
    assert [(arm.name, arm.point) for arm in found.manifest.arms] == [
        ("sft/naive", None),
        ("sft/replay(share=0.25)", Point("sft replay.share", "share", 0.25)),
        ("sft/replay(share=1)", Point("sft replay.share", "share", 1.0)),
    ]
    assert len(found.runs) == 3


def test_a_refused_pair_is_a_mistake_or_listed(runs: Runs):
    arms = {"method": "sft", "strategies": ["naive", "tests.study.arms:Refusing"]}
    with pytest.raises(
        ConfigErrors,
        match=r"yaml:\d+: .*refusing does not go with this run \(sft\)\n  .*: it never does\n(.*\n)*.*skip_refused",
    ):
        check(outline_of(runs.folder, study(runs, arms=arms)), quiet)
    found = check(outline_of(runs.folder, study(runs, arms=arms, skip_refused=True)), quiet)
    refused = found.manifest.arms[1]
    assert "it never does" in refused.refused
    assert {run.arm for run in found.manifest.runs} == {"sft/naive"}


def test_all_mistakes_of_all_arms_are_told_at_once(runs: Runs):
    given = study(
        runs,
        arms=[
            {"method": ["sft", "dpo"], "strategies": ["naive", "replay(shares=1)"]},
            {"name": "slow", "training.learning_rat": 1},
            {"name": "slow", "training.max_steps": 7},
        ],
        seedz=[1],
    )
    with pytest.raises(ConfigErrors) as error:
        check(outline_of(runs.folder, given), quiet)
    told = str(error.value)
    assert "seedz: unknown key\n  did you mean seeds?" in told
    assert "strategies.0.shares: unknown key" in told
    assert "in sft/replay(shares=1), dpo/replay(shares=1)" in told
    assert "training.learning_rat: unknown key\n  did you mean learning_rate?\n  in slow" in told or (
        "training.learning_rat: unknown key" in told and "in slow" in told
    )
    # Of sft's rows dpo can use none, which shows only when they are read.
    assert "dpo/naive" in told


def test_two_arms_of_one_name_are_a_mistake(runs: Runs):
    arms = [{"name": "one", "training.max_steps": 1}, {"name": "one", "training.max_steps": 2}]
    with pytest.raises(ConfigErrors, match="two arms are called 'one'"):
        check(outline_of(runs.folder, study(runs, arms=arms)), quiet)


def test_relative_data_of_the_base_is_found_from_its_file(runs: Runs, tmp_path: Path):
    given = study(runs)
    for task in given["run"]["tasks"]:
        task["data"] = str(Path(task["data"]).name)
    (tmp_path / "elsewhere").mkdir()
    for name in ("sums", "doubles"):
        (tmp_path / "elsewhere" / f"{name}.jsonl").write_bytes((runs.world / f"{name}.jsonl").read_bytes())
    assert len(check(outline_of(tmp_path / "elsewhere", given), quiet).runs) == 4
