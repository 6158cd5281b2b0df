"""Replay: how many rows, of which tasks, from which memory; the same after a restart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from contrl.errors import UserError
from contrl.interfaces import Context, Stage, Task
from contrl.methods.sft import SFT
from contrl.strategies.replay import Replay

At = Callable[..., Context]


def after_stages(at: At, last: int, seed: int = 0, **fields: Any) -> Replay:
    """A replay that has seen the stages up to ``last`` end."""
    replay = Replay(**fields)
    for stage in range(1, last + 1):
        replay.after_task(at(stage, seed=seed))
    return replay


def names(drawn: list[tuple[Task, Any]]) -> list[tuple[str, str]]:
    return [(task.name, row["id"]) for task, row in drawn]


def per_task(drawn: list[tuple[Task, Any]]) -> Counter[str]:
    return Counter(task.name for task, _ in drawn)


# --- how many ---------------------------------------------------------------------------------------------


def test_the_first_stage_has_nothing_to_replay(at: At) -> None:
    assert Replay().draw(at(1), 32) == []


@pytest.mark.parametrize(
    ("share", "current", "drawn"), [(0.5, 32, 16), (1.0, 7, 7), (2.0, 3, 6), (0.25, 8, 2), (0, 32, 0)]
)
def test_a_draw_is_share_times_the_current_rows(share: float, current: int, drawn: int, at: At) -> None:
    replay = after_stages(at, 2, share=share)
    for step in range(5):
        assert len(replay.draw(at(3, step), current)) == drawn


def test_a_share_of_a_row_is_a_row_now_and_then(at: At) -> None:
    """0.25 x 2 = half a row a step: 0 or 1, half of the time; rounding to 0 would replay nothing, in silence."""
    replay = after_stages(at, 1, share=0.25)
    sizes = [len(replay.draw(at(2, step), 2)) for step in range(400)]
    assert set(sizes) == {0, 1}
    assert 150 < sum(sizes) < 250
    replay = after_stages(at, 1, share=0.45)
    assert {len(replay.draw(at(2, step), 4)) for step in range(50)} == {1, 2}


# --- of what ------------------------------------------------------------------------------------------------


def test_every_draw_is_balanced_over_the_earlier_tasks_and_the_odd_rows_wander(at: At) -> None:
    """16 rows of 3 tasks: 5, 5 and 6 in every draw; over 300 draws each task gets 1600, within 4 sigma."""
    replay = after_stages(at, 3)
    total: Counter[str] = Counter()
    for step in range(300):
        counts = per_task(replay.draw(at(4, step), 32))
        assert sorted(counts.values()) == [5, 5, 6]
        total += counts
    assert sum(total.values()) == 4800
    # The odd row is one trial in three: sigma = sqrt(300 * 1/3 * 2/3) = 8.2.
    assert all(abs(count - 1600) < 33 for count in total.values())


def test_fewer_rows_than_tasks_still_reach_every_task(at: At) -> None:
    replay = after_stages(at, 3)
    seen: Counter[str] = Counter()
    for step in range(60):
        counts = per_task(replay.draw(at(4, step), 4))
        assert sorted(counts.values()) == [1, 1]
        seen += counts
    assert set(seen) == {"a", "b", "c"}


def test_the_current_stage_is_never_replayed(at: At, sequence: Any) -> None:
    """Neither when its task comes back in round 2, nor in a joint stage of several tasks."""
    replay = after_stages(at, 4)
    for step in range(20):
        assert set(per_task(replay.draw(at(5, step), 32))) == {"b", "c", "d"}
    joint = at(6)
    joint.stage = Stage(6, ("a", "b"), 2)
    assert set(per_task(replay.draw(joint, 32))) == {"c", "d"}


def test_a_task_comes_back_into_memory_after_its_second_visit(at: At) -> None:
    replay = after_stages(at, 5)
    assert set(per_task(replay.draw(at(6), 32))) == {"a", "c", "d"}


def test_no_evaluation_row_and_no_row_twice(at: At) -> None:
    """Within a draw rows of a task repeat only when it has fewer than are asked for."""
    replay = after_stages(at, 3)
    for step in range(30):
        drawn = names(replay.draw(at(4, step), 64))
        assert all(row_id.startswith("train") for _, row_id in drawn)
        assert len(set(drawn)) == len(drawn) == 32
    assert len(after_stages(at, 1, buffer_size=3).draw(at(2), 16)) == 8


def test_rows_are_drawn_evenly_from_a_task(at: At) -> None:
    """400 draws of 8 of 40 rows: each 80 times on average, sigma 8; none is left out or favoured."""
    replay = after_stages(at, 1, share=1.0)
    counts = Counter(row["id"] for step in range(400) for _, row in replay.draw(at(2, step), 8))
    assert len(counts) == 40
    assert min(counts.values()) > 45
    assert max(counts.values()) < 115


def test_the_rows_are_those_of_the_task(at: At, sequence: Any) -> None:
    replay = after_stages(at, 2)
    for task, row in replay.draw(at(3), 32):
        assert row in task.train
        assert task is sequence.task(task.name)


def test_rows_the_method_cannot_use_are_left_out(at: At) -> None:
    """They were left out of their own stage too; drawing one must not stop the run. SFT needs a completion."""
    replay = after_stages(at, 2)
    assert len(replay.draw(at(3), 8)) == 4
    assert replay.draw(at(3, method=SFT()), 8) == []


# --- when and with which seed ---------------------------------------------------------------------------------


def test_draws_are_a_function_of_seed_stage_and_step(at: At) -> None:
    replay = after_stages(at, 2)
    first = names(replay.draw(at(3, 5), 32))
    assert names(replay.draw(at(3, 5), 32)) == first
    assert names(after_stages(at, 2).draw(at(3, 5), 32)) == first
    replay.after_task(at(3))
    others = [at(3, 6), at(3, 5, seed=1)]
    assert all(names(replay.draw(ctx, 32)) != first for ctx in others)
    assert names(replay.draw(at(4, 5), 32))[:5] != first[:5]


# --- memory -----------------------------------------------------------------------------------------------------


def test_the_whole_task_is_kept_by_default_and_only_as_ids(at: At) -> None:
    memory = after_stages(at, 2).memory
    assert memory == {name: [f"train{i}" for i in range(40)] for name in ("a", "b")}


def test_a_buffer_is_a_uniform_sample_of_the_tasks_rows(at: At) -> None:
    """10 of 40, other rows with another seed, stage or visit; over 200 seeds each row 50 times, sigma 6.1."""
    first = after_stages(at, 2, buffer_size=10).memory
    assert {name: len(set(ids)) for name, ids in first.items()} == {"a": 10, "b": 10}
    assert after_stages(at, 2, buffer_size=10).memory == first
    assert first["a"] != first["b"]
    assert after_stages(at, 5, buffer_size=10).memory["a"] != first["a"]
    counts: Counter[str] = Counter()
    for seed in range(200):
        counts.update(after_stages(at, 1, seed, buffer_size=10).memory["a"])
    assert len(counts) == 40
    assert min(counts.values()) > 25
    assert max(counts.values()) < 75


def test_a_draw_comes_from_the_buffer_alone(at: At) -> None:
    replay = after_stages(at, 2, buffer_size=5)
    drawn = {entry for step in range(50) for entry in names(replay.draw(at(3, step), 8))}
    assert drawn == {(name, row_id) for name in ("a", "b") for row_id in replay.memory[name]}


def test_a_second_visit_replaces_the_buffer_and_what_is_drawn(at: At) -> None:
    """Also when rows of the first buffer were drawn in between."""
    replay = after_stages(at, 2, buffer_size=5)
    first = set(replay.memory["a"])
    replay.draw(at(3), 32)
    for stage in (3, 4, 5):
        replay.after_task(at(stage))
    drawn = {row["id"] for step in range(50) for task, row in replay.draw(at(6, step), 32) if task.name == "a"}
    assert drawn == set(replay.memory["a"]) != first


def test_a_buffer_larger_than_the_task_keeps_it_all(at: At) -> None:
    assert len(after_stages(at, 1, buffer_size=99).memory["a"]) == 40


def test_state_survives_json_and_a_restored_replay_draws_the_same(at: At) -> None:
    replay = after_stages(at, 3, buffer_size=7)
    restored = Replay(buffer_size=7)
    restored.load_state_dict(json.loads(json.dumps(replay.state_dict())))
    assert restored.memory == replay.memory
    for step in range(3):
        assert names(restored.draw(at(4, step), 32)) == names(replay.draw(at(4, step), 32))


def test_state_is_a_copy_and_loading_replaces_what_was_cached(at: At) -> None:
    replay = after_stages(at, 2, buffer_size=7)
    state = replay.state_dict()
    before = names(replay.draw(at(3), 8))
    state["memory"]["a"].clear()
    assert names(replay.draw(at(3), 8)) == before
    replay.load_state_dict({"memory": {"b": ["train0"]}})
    assert {*names(replay.draw(at(3), 8))} == {("b", "train0")}


def test_an_empty_state_is_an_empty_memory(at: At) -> None:
    replay = after_stages(at, 2)
    replay.load_state_dict({})
    assert replay.draw(at(3), 32) == []


@pytest.mark.parametrize("fields", [{"share": -0.1}, {"buffer_size": 0}])
def test_impossible_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(fields))):
        Replay(**fields)
