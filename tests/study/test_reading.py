"""A study's file: grids, named arms, sweeps, seeds and orders, and every mistake in its own form."""

from __future__ import annotations

from pathlib import Path

import pytest

from contrl.errors import ConfigErrors
from contrl.study import reading
from contrl.study.reading import Outline

BASE = "kind: study\noutput_dir: out\nrun: {model: tiny, method: sft, tasks: countdown}\n"


def outline(folder: Path, text: str, *overrides: str) -> Outline:
    (folder / "s.yaml").write_text(BASE + text, encoding="utf-8")
    return reading.read(folder / "s.yaml", overrides, lambda word: word in ("naive", "replay", "ewc", "a.b:Own"))


def arms(folder: Path, text: str) -> list[tuple[str, dict[str, str]]]:
    found = outline(folder, text)
    assert [str(error) for _, error in found.errors] == []
    return [(draft.called("sft", ()), draft.words) for draft in found.arms]


def test_a_grid_is_multiplied_out(tmp_path):
    text = (
        'arms: {method: [sft, dpo], strategies: [naive, "ewc(coef=100)", [replay, ewc]], training: {max_steps: [5, 9]}}'
    )
    found = arms(tmp_path, text)
    assert len(found) == 12
    assert found[0] == (
        "sft/naive training.max_steps=5",
        {"method": "sft", "strategies": "naive", "training.max_steps": "5"},
    )
    assert [name for name, _ in found[6:]] == [
        f"dpo/{strategies} training.max_steps={steps}"
        for strategies in ("naive", "ewc(coef=100)", "replay+ewc")
        for steps in (5, 9)
    ]


def test_a_list_holds_grids_and_arms_with_names(tmp_path):
    """In a grid a list is several arms, in an arm with a name it is a value; single values hold for a whole grid."""
    text = """arms:
  - {method: dpo, tasks: {pairs: true}, strategies: [naive, replay]}
  - {name: both, strategies: [replay, ewc], model.use_peft: true}
"""
    assert arms(tmp_path, text) == [
        ("dpo/naive", {"method": "dpo", "tasks.pairs": "true", "strategies": "naive"}),
        ("dpo/replay", {"method": "dpo", "tasks.pairs": "true", "strategies": "replay"}),
        ("both", {"strategies": "replay+ewc", "model.use_peft": "true"}),
    ]


def test_a_sweep_joins_every_method_and_keeps_a_strategys_other_fields(tmp_path):
    text = 'arms: {method: [sft, dpo], strategies: [naive, "ewc(num_samples=8, coef=1)"]}\nsweep: {ewc.coef: [10, 1e2]}'
    found = arms(tmp_path, text)
    assert [name for name, _ in found[4:]] == [
        f"{method}/ewc(coef={coef}, num_samples=8)" for method in ("sft", "dpo") for coef in ("10", "1e2")
    ]
    assert found[4][1] == {"method": "sft", "strategies": "ewc(num_samples=8, coef=1)", "strategies.0.coef": "10"}
    points = [draft.point for draft in outline(tmp_path, text).arms[4:6]]
    assert [(point.curve, point.field, point.value) for point in points if point] == [
        ("ewc.coef", "coef", 10.0),
        ("ewc.coef", "coef", 100.0),
    ]


def test_a_sweep_may_be_of_any_field_and_of_a_strategy_of_ones_own(tmp_path):
    assert arms(tmp_path, "sweep: {training.learning_rate: [0.1], a.b:Own.share: [0.5]}") == [
        ("sft/naive training.learning_rate=0.1", {"training.learning_rate": "0.1"}),
        ("sft/a.b:Own(share=0.5)", {"strategies": "a.b:Own", "strategies.0.share": "0.5"}),
    ]


def test_seeds_and_orders(tmp_path):
    found = outline(tmp_path, "seeds: [3, 4]\norders: [given, reversed, [b, a]]\norder_seeds: [7]")
    assert found.seeds == [3, 4]
    assert [order.name for order in found.orders] == ["random 7", "given", "reversed", "b,a"]
    assert [(path, node.text) for path, node in found.orders[0].overrides] == [
        (["order"], "random"),
        (["order_seed"], "7"),
    ]
    plain = outline(tmp_path, "")
    assert (plain.seeds, [(order.name, order.overrides) for order in plain.orders]) == ([0], [("given", ())])


def test_the_command_line_changes_study_and_base(tmp_path):
    found = outline(tmp_path, "seeds: [0, 1]", "seeds=[5]", "output_dir=there", "run.training.max_steps=3")
    assert (found.seeds, found.output_dir, found.base_overrides) == ([5], Path("there"), ["training.max_steps=3"])


def test_the_base_may_be_a_file(tmp_path):
    (tmp_path / "base.yaml").write_text("model: tiny\nmethod: dpo\n", encoding="utf-8")
    (tmp_path / "s.yaml").write_text("kind: study\noutput_dir: out\nconfig: base.yaml\n", encoding="utf-8")
    found = reading.read(tmp_path / "s.yaml", [], lambda word: False)
    assert (list(found.base.entries), found.base.place.source) == (["model", "method"], str(tmp_path / "base.yaml"))


def test_every_mistake_is_told_with_its_line(tmp_path):
    text = """seed: [0]
seeds: [0, 0]
orders: [random, {a: b}]
skip_refused: perhaps
arms: [7, {name: [x]}, {strategies: []}]
sweep: {ewc.coef: [1, much]}
"""
    found = [str(error) for _, error in outline(tmp_path, text).errors]
    where = str(tmp_path / "s.yaml")
    assert [line.splitlines()[0].removeprefix(where) for line in found] == [
        ":4: seed: unknown key",
        ":8: arms.0: expected a section",
        ":8: arms.1.name: expected a name",
        ":8: arms: strategies is an empty list",
        ":9: sweep.ewc.coef: expected a list of numbers",
        ":5: seeds: expected different whole numbers of at least 0",
        ":6: orders: random needs a seed",
        ":6: orders: expected given, reversed, or a list of the tasks' names",
        ":7: skip_refused: expected yes or no",
    ]


def test_what_the_study_sets_is_refused_in_its_base(tmp_path):
    (tmp_path / "s.yaml").write_text("kind: study\nrun: {output_dir: x, seed: 1}\nseeds: [0]\n", encoding="utf-8")
    found = [error.what for _, error in reading.read(tmp_path / "s.yaml", [], lambda word: False).errors]
    assert found == ["output_dir: a study needs a folder", "run.seed: the study's seeds sets it"]


@pytest.mark.parametrize("text", ["- a\n", "a: [\n"])
def test_what_is_no_study_is_told(tmp_path, text):
    (tmp_path / "s.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigErrors, match=r"s\.yaml"):
        reading.read(tmp_path / "s.yaml", [], lambda word: False)


def test_a_study_without_a_base_is_told(tmp_path):
    (tmp_path / "s.yaml").write_text("output_dir: out\n", encoding="utf-8")
    found = reading.read(tmp_path / "s.yaml", [], lambda word: False)
    assert [error.what for _, error in found.errors] == ["run: missing"]
