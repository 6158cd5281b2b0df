"""Training curves: stages end to end, the last record of a key, thinning, and what is no number."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from contrl.report.curves import read_training, thin


def log(folder: Path, *records: tuple[object, object, str, str, object]) -> Path:
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        for stage, step, task, name, value in records:
            line = {"stage": stage, "step": step, "task": task, "name": name, "value": value}
            file.write(json.dumps(line) + "\n")
    return folder


def test_stages_follow_each_other_on_one_axis(tmp_path):
    log(
        tmp_path,
        (2, 5, "b", "loss", 4.0),
        (1, 10, "a", "loss", 2.0),
        (1, 20, "a", "loss", 1.0),
        (2, 10, "b", "loss", 3.0),
    )
    training = read_training(tmp_path)
    assert (training.starts, training.total) == ({1: 0, 2: 20}, 30)
    assert training.values("loss", 1) == [2.0, 1.0]
    (curve,) = training.curves
    assert [(s.stage, s.task, s.points) for s in curve.segments] == [
        (1, "a", ((10, 2.0), (20, 1.0))),
        (2, "b", ((25, 4.0), (30, 3.0))),
    ]


def test_a_resumed_run_counts_the_last_record_and_skips_events(tmp_path):
    log(tmp_path, (1, 10, "a", "reward", 0.1))
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"event": "resumed_from", "checkpoint": "checkpoint-5"}\n')
    log(tmp_path, (1, 10, "a", "reward", 0.2), ("base", 10, "a", "reward", 9.0))
    (curve,) = read_training(tmp_path).curves
    assert curve.segments[0].points == ((10, 0.2),)


def test_what_is_not_finite_is_counted_and_left_out(tmp_path):
    log(tmp_path, (1, 1, "a", "loss", float("nan")), (1, 2, "a", "loss", 1.0), (1, 3, "a", "loss", float("inf")))
    log(tmp_path, (1, 1, "a", "note", "text"), (1, 1, "a", "kl", None))
    training = read_training(tmp_path)
    assert training.not_finite == {"loss": 2, "kl": 1}  # the log writes null for what is no number
    assert [(c.name, c.segments[0].points) for c in training.curves] == [("loss", ((2, 1.0),))]


def test_what_is_judged_between_stages_is_no_training_curve(tmp_path):
    log(tmp_path, (0, 0, "a", "eval/margin", 0.1), (1, 0, "a", "eval/margin", 0.2), (1, 1, "a", "eval_loss", 0.3))
    training = read_training(tmp_path)
    assert [curve.name for curve in training.curves] == ["eval_loss"]
    assert training.starts == {1: 0}
    assert training.judged == {(0, "a", "margin"): 0.1, (1, "a", "margin"): 0.2}


def test_a_run_without_a_log_has_no_curves(tmp_path):
    assert read_training(tmp_path).curves == ()


def test_thinning_averages_neighbours():
    points = [(float(i), float(i % 2)) for i in range(10)]
    assert thin(points, 5) == ((0.5, 0.5), (2.5, 0.5), (4.5, 0.5), (6.5, 0.5), (8.5, 0.5))
    assert thin(points, 10) == tuple(points)
    assert thin([], 5) == ()


@given(st.lists(st.tuples(st.integers(0, 99), st.floats(-1, 1)), max_size=60), st.integers(2, 20))
def test_thinning_stays_within_the_limit_and_within_the_values(points, limit):
    thinned = thin(points, limit)
    assert len(thinned) <= limit
    assert bool(thinned) == bool(points)
    values = [value for _, value in points]
    assert all(min(values) - 1e-9 <= value <= max(values) + 1e-9 for _, value in thinned)
