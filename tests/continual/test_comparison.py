"""Arms of a study side by side: pairs of equal seed and order, baselines, curves, and what is missing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from contrl.continual import study_manifest
from contrl.continual.comparison import COMPARED, as_json, compare
from contrl.continual.study_manifest import FAILED, Arm, Manifest, PlannedRun, Point
from contrl.errors import UserError
from tests.continual.test_results import add_items, add_score, make_run

# after stage 1 and 2, of "plus" then "minus"; stage 0 is all zero; four items each
NAIVE = {0: ([1.0, 0.0], [0.0, 1.0]), 1: ([1.0, 0.0], [0.25, 1.0])}
REPLAY = {0: ([1.0, 0.0], [0.75, 1.0]), 1: ([1.0, 0.0], [1.0, 0.75])}


def write_run(folder: Path, rows: tuple[list[float], list[float]], **manifest: object) -> Path:
    """A finished run of two tasks with these scores after its two stages."""
    make_run(folder, **manifest)
    for stage, row in enumerate(([0.0, 0.0], *rows)):
        for task, value in zip(("plus", "minus"), row, strict=True):
            add_score(folder, stage, task, value, n=4, se=math.sqrt(value * (1 - value) / 4))
            add_items(folder, stage, task, [i < round(4 * value) for i in range(4)])
    return folder


def make_study(
    folder: Path, runs: Mapping[str, Mapping[int, tuple[list[float], list[float]]]], arms: list[Arm]
) -> Path:
    """A study of these arms, seeds as given, one order."""
    planned = [PlannedRun(f"{a.name}{s}".replace("/", "-"), a.name, s, "given", "") for a in arms for s in (0, 1)]
    planned = [PlannedRun(run.id, run.arm, run.seed, run.order, f"runs/{run.id}") for run in planned]
    (folder / "runs").mkdir(parents=True)
    study_manifest.write(folder, Manifest("study", tuple(arms), (0, 1), ("given",), tuple(planned)))
    for run in planned:
        if run.seed in runs.get(run.arm, {}):
            write_run(folder / run.folder, runs[run.arm][run.seed])
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """naive and replay complete, a sweep of two points of which one was swept as well, one arm refused."""
    arms = [
        Arm("dpo/naive", "dpo", ("naive",)),
        Arm("dpo/replay", "dpo", ("replay",), point=Point("dpo/replay.share", "share", 0.5)),
        Arm("dpo/replay(share=0.1)", "dpo", ("replay",), point=Point("dpo/replay.share", "share", 0.1)),
        Arm("dpo/cppo", "dpo", ("cppo",), refused="cppo needs rewards"),
    ]
    runs = {"dpo/naive": NAIVE, "dpo/replay": REPLAY, "dpo/replay(share=0.1)": {0: NAIVE[0]}}
    return make_study(tmp_path / "study", runs, arms)


def test_means_over_runs_and_dots(study):
    found = compare([study])
    naive = found.summary("dpo/naive")
    assert (naive.planned, naive.finished, naive.score, naive.baseline) == (2, 2, "success", None)
    assert naive.estimates["average"].value == pytest.approx((0.5 + 0.625) / 2)
    assert naive.estimates["forgetting"].value == pytest.approx((1.0 + 0.75) / 2)
    assert naive.estimates["retention"].value == pytest.approx(0.125)
    assert [(dot.seed, dot.order, dot.values["forgetting"]) for dot in naive.dots] == [
        (0, "given", 1.0),
        (1, "given", 0.75),
    ]
    assert (found.seeds, found.orders, found.metrics) == (
        [0, 1],
        ["given"],
        ("average", "forgetting", "learning_accuracy", "retention"),
    )


def test_differences_are_paired_by_seed_and_order(study):
    """Seed 0: 0.25 - 1; seed 1: 0 - 0.75. Both are -0.75, though each arm varies: no spread between runs is left."""
    replay = compare([study]).summary("dpo/replay")
    assert replay.baseline == "dpo/naive"
    difference = replay.differences["forgetting"]
    assert (difference.value, difference.n) == (-0.75, 2)
    # Items of plus, mean over the runs of the paired contributions: 0.. a: 0 - .5, b, c: -1, d: -.5
    assert difference.low is not None
    assert difference.detectable is not None
    one = compare([study]).summary("dpo/replay(share=0.1)")
    assert (one.finished, one.differences["forgetting"].value, one.differences["forgetting"].n) == (1, 0.0, 1)


def test_another_baseline(study):
    found = compare([study], baseline="dpo/replay")
    assert found.summary("dpo/naive").differences["forgetting"].value == 0.75
    assert found.summary("dpo/replay").baseline is None
    by_strategy = compare([study], baseline="replay")
    assert by_strategy.summary("dpo/naive").baseline in ("dpo/replay", "dpo/replay(share=0.1)")
    with pytest.raises(UserError, match=r"there is no arm 'dpo/naiv'.*\n.*did you mean dpo/naive"):
        compare([study], baseline="dpo/naiv")


def test_curves_ascend_and_name_the_arm_without(study):
    (curve,) = compare([study]).curves
    assert [(point.value, point.arm) for point in curve.points] == [(0.1, "dpo/replay(share=0.1)"), (0.5, "dpo/replay")]
    assert (curve.name, curve.field, curve.baseline) == ("dpo/replay.share", "share", "dpo/naive")
    assert curve.points[1].retention.value == pytest.approx(0.875)
    assert curve.points[1].learning.value == pytest.approx((1.0 + 0.875) / 2)


def test_what_is_missing_is_told(study):
    (study / FAILED).mkdir()
    (study / FAILED / "dpo-replay(share=0.1)1.json").write_text(json.dumps({"what": "no memory"}), encoding="utf-8")
    found = compare([study])
    assert found.summary("dpo/replay(share=0.1)").failed == {"dpo-replay(share=0.1)1": "no memory"}
    refused = found.summary("dpo/cppo")
    assert (refused.arm.refused, refused.finished, refused.estimates["average"].value) == (
        "cppo needs rewards",
        0,
        None,
    )
    json.dumps(as_json(found), allow_nan=False)


def test_runs_given_one_by_one_are_grouped_by_their_configuration(tmp_path):
    for name, seed, rows in (("a", 0, NAIVE[0]), ("b", 1, NAIVE[1])):
        run = write_run(tmp_path / name, rows, method="sft")
        (run / "config.yaml").write_text(f"output_dir: {name}\nseed: {seed}\nmethod: {{name: sft}}\n", encoding="utf-8")
    other = write_run(tmp_path / "c", REPLAY[0], method="sft", strategies=["replay"], status="interrupted")
    (other / "config.yaml").write_text("output_dir: c\nseed: 0\nstrategies: [{name: replay}]\n", encoding="utf-8")
    found = compare([tmp_path / "a", tmp_path / "b", tmp_path / "c"], metric="average")
    assert [(summary.arm.name, summary.finished) for summary in found.arms] == [("sft/naive", 2), ("sft/replay", 1)]
    assert found.summary("sft/replay").differences["average"].value == 0.375
    assert found.metrics == ("average",)
    assert any("c is not finished" in note for note in found.notes)


def test_runs_of_other_tasks_are_not_subtracted(tmp_path):
    one = write_run(tmp_path / "a", NAIVE[0], method="sft")
    other = write_run(tmp_path / "b", NAIVE[0], method="sft", strategies=["replay"])
    text = (other / "run.json").read_text(encoding="utf-8")
    (other / "run.json").write_text(text.replace('"minus"', '"times"').replace("-minus", "-times"), encoding="utf-8")
    found = compare([one, other])
    assert found.summary("sft/replay").differences == {}
    assert "sft/replay and sft/naive have different tasks or scores: no difference is told" in found.notes


def test_mistakes_are_told(tmp_path, study):
    with pytest.raises(UserError, match=r"no metric 'forgeting'\n  did you mean forgetting\?"):
        compare([study], metric="forgeting")
    with pytest.raises(UserError, match="is not a run folder"):
        compare([tmp_path / "nothing"])
    (study / "study.json").write_text('{"schema_version": 99}', encoding="utf-8")
    with pytest.raises(UserError, match="schema_version 99"):
        compare([study])


def test_the_manifest_comes_back_as_it_was_written(study):
    manifest = study_manifest.read(study)
    study_manifest.write(study, manifest)
    assert study_manifest.read(study) == manifest
    entry = json.loads((study / "study.json").read_text(encoding="utf-8"))["runs"][2]
    assert {key: entry[key] for key in ("arm", "method", "strategies", "seed")} == {
        "arm": "dpo/replay",
        "method": "dpo",
        "strategies": ["replay"],
        "seed": 0,
    }


def test_the_report_can_import_it_without_torch():
    code = "import sys, contrl.continual.comparison; print('torch' in sys.modules, 'numpy' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split()[0] == "False"
    assert set(COMPARED) >= {"average", "forgetting", "retention"}
