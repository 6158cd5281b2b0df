"""Stages, costs, drift, data and rollouts as the run folder tells them."""

import json

import pyarrow.parquet as pq
import pytest

from contrl.continual.results import read
from contrl.report.changes import balances, since_start
from contrl.report.cost import cost_facts, duration, stage_costs
from contrl.report.curves import read_training
from contrl.report.data_facts import data_flags, read_data
from contrl.report.drift import layer_of, read_divergence, read_weight_changes
from contrl.report.rollout_groups import read_groups
from contrl.report.settings import read_settings
from contrl.report.stages import read_stages


def log(folder, name, *records):
    with open(folder / name, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def test_stages_and_their_time(demo, run_folder):
    """Two windows of two steps each: the second logged mean counts twice, as both its windows were in it."""
    for step, value in ((2, 1.0), (6, 2.0)):
        log(run_folder, "metrics.jsonl",
            {"stage": 1, "step": step, "task": "plus", "name": "seconds/sampling", "value": value},
            {"stage": 1, "step": step, "task": "plus", "name": "num_tokens", "value": 100.0 * step})  # fmt: skip
    results, training = read(run_folder), read_training(run_folder)
    stages = read_stages(results, training, steps_per_window=2)
    assert [(stage.stage, stage.name, stage.round, stage.steps, stage.rows) for stage in stages[:2]] == [
        (1, "plus", 1, 40, 1000),
        (2, "plus_minus", 1, 40, 1001),
    ]
    assert stages[0].tokens == 600
    assert stages[0].window == {"sampling": 1.0 + 2 * 2.0}
    assert stages[0].seconds == {"train": 10.0, "look back": 1.0, "evaluate": 2.0, "save": 0.5}
    first, second, *_ = stage_costs(stages)
    assert first.seconds == {"sampling": 5.0, "update": 5.0, "look back": 1.0, "evaluate": 2.0, "save": 0.5}
    assert second.seconds["train"] == 10.0
    facts = dict(cost_facts(results, training, stages))
    assert facts["wall time of the stages"] == "54 s"
    assert facts["trained tokens per second of training"] == "15"


def test_what_was_logged_longer_than_the_stage_ran_is_shrunk(demo):
    """A resumed stage: its log covers every start, its journal the last one."""
    stage = read_stages(read(demo), read_training(demo))[0]
    longer = type(stage)(**{**vars(stage), "window": {"sampling": 15.0, "reward": 5.0}})
    assert stage_costs([longer])[0].seconds["sampling"] == 7.5
    assert stage_costs([longer])[0].seconds["update"] == 0.0


@pytest.mark.parametrize(("seconds", "text"), [(12.345, "12.3 s"), (75, "1 min 15 s"), (7260, "2 h 1 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_weight_changes_are_summed_over_a_group_and_relative(tmp_path):
    """Tensors of norm 3 and 4 that moved by 0.6 and 0.8: sqrt(0.36 + 0.64) / sqrt(9 + 16) = 0.2."""
    tensors = (("model.layers.10.a", 3.0, 0.6), ("model.layers.10.b", 4.0, 0.8), ("lm_head.weight", 1.0, None))
    for name, norm, moved in tensors:
        change = {"from_start": moved, "from_base": moved}
        log(tmp_path, "weights.jsonl", {"stage": 1, "tensor": name, "norm": norm, **change})
    adapter = {"stage": 1, "tensor": "model.layers.10.q.lora_A", "norm": 1.0, "from_start": 9.0, "kind": "adapter"}
    log(tmp_path, "weights.jsonl", adapter)
    layer, head = read_weight_changes(tmp_path)
    assert (layer.group, layer.from_start, layer.from_base) == ("layer 10", pytest.approx(0.2), pytest.approx(0.2))
    assert (head.group, head.from_start) == ("head", None)


def test_weight_changes_are_relative_to_where_they_began(tmp_path):
    change = {"from_start": 1.0, "start_norm": 2.0, "from_base": 1.0, "base_norm": 4.0}
    log(tmp_path, "weights.jsonl", {"stage": 1, "tensor": "h.0.w", "norm": 9.0, **change})
    (layer,) = read_weight_changes(tmp_path)
    assert (layer.from_start, layer.from_base) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("tensor", "group"),
    [
        ("transformer.h.3.attn.c_attn.weight", "layer 3"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "layer 0"),
        ("model.embed_tokens.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("model.norm.weight", "other"),
        ("score.weight", "head"),
    ],
)
def test_tensors_are_known_by_their_names(tensor, group):
    assert layer_of(tensor) == group


def test_divergence_skips_what_is_no_number(tmp_path):
    assert read_divergence(tmp_path) == []
    log(tmp_path, "drift.jsonl", {"stage": 2, "task": "a", "kl": 0.5, "se": 0.1, "n": 8},
        {"stage": 1, "task": "a", "kl": None}, {"stage": 1, "task": "b", "kl": 0.25})  # fmt: skip
    first, second = read_divergence(tmp_path)
    assert (first.stage, first.task, first.kl, first.se, first.n) == (1, "b", 0.25, None, None)
    assert (second.kl, second.se, second.n) == (0.5, 0.1, 8)


def test_groups_come_from_the_first_and_the_last_table_of_a_stage(demo, tmp_path, writer):
    run = writer(tmp_path / "r", ["a"], num_items=2)
    for step in (0, 5, 10):
        run.rollouts(1, step, "a")
    (run.folder / "samples" / "2-0.parquet").write_bytes(b"PAR1")
    groups = read_groups(run.folder)
    assert [(group.step, group.id, group.has_signal) for group in groups] == [
        (0, "a/0", True), (0, "a/1", False), (10, "a/0", True), (10, "a/1", False),
    ]  # fmt: skip
    rows = pq.read_table(run.folder / "samples" / "1-0.parquet").to_pylist()
    for rollout, row in zip(groups[0].rollouts, rows, strict=False):
        assert (rollout.reward, rollout.advantage, rollout.tokens) == (
            row["reward"],
            row["advantage"],
            row["num_tokens"],
        )
        assert rollout.cut is not row["ended"]


def test_data_facts_with_and_without_details(demo, run_folder):
    assert next((rows.task, rows.train, rows.eval, rows.cut) for rows in read_data(read(demo))) == (
        "plus",
        1000,
        200,
        None,
    )
    run = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))
    tokens = {"least": 1, "p10": 2, "median": 3, "p90": 4, "most": 5}
    run["data_facts"] = {"plus": {"tokens": {"prompt": tokens}, "cut": 100, "left_out": 0, "repeated": 2, "shared": 3}}
    (run_folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    plus, *_ = data = read_data(read(run_folder))
    assert plus.lengths == {"prompt": (1.0, 2.0, 3.0, 4.0, 5.0)}
    assert (plus.cut, plus.left_out, plus.repeated, plus.shared) == (100, 0, 2, 3)
    assert data_flags(data) == [
        "plus: 100 of 1000 train rows were cut at the length limit",
        "plus: 3 of 200 eval rows ask what a train row asks",
    ]


def test_settings_give_window_and_limits(tmp_path):
    assert read_settings(tmp_path).steps_per_window == 1
    (tmp_path / "config.yaml").write_text("method: {num_epochs: 4, num_minibatches: 2, max_new_tokens: 16}")
    settings = read_settings(tmp_path)
    assert (settings.steps_per_window, settings.limits) == (8, {"length": 16.0})
    (tmp_path / "config.yaml").write_text("method: [")
    assert read_settings(tmp_path).method == {}


def test_balances_are_gain_and_what_earlier_tasks_kept(demo):
    """Stage 3 trains column 2: its gain is R[3,2] - R[2,2]; kept is the mean of R[3,0] - R[1,0] and R[3,1] - R[2,1]."""
    results = read(demo)
    scores = results.numbers.scores
    found = balances(results)
    assert [point.stage for point in found] == [2, 3, 4]

    def change(row, column, before):
        return (scores[row][column] or 0.0) - (scores[before][column] or 0.0)

    assert found[1].gain.value == pytest.approx(change(3, 2, 2))
    assert found[1].retained.value == pytest.approx((change(3, 0, 1) + change(3, 1, 2)) / 2)
    assert found[1].gain.low is not None
    start = since_start(results, 2, 1)
    assert start is not None
    assert start.value == pytest.approx(change(2, 1, 0))
    assert since_start(results, 0, 1) is None
