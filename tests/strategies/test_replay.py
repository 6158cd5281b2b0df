"""Replay: how many rows, of which tasks, from which memory; the same after a restart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contrl import faults
from contrl.compatibility import check_strategies
from contrl.config import load
from contrl.errors import UserError
from contrl.experiment import build_tasks, find
from contrl.faults import Killed
from contrl.interfaces import Completion, Context, Group, Setting, Stage, Task, TaskSequence
from contrl.methods.rloo import RLOO
from contrl.methods.sft import SFT
from contrl.strategies.replay import Replay
from tests import runs as small
from tests.runs import DIARY, Runs, remains

world, runs = small.world, small.runs

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


def test_a_buffer_below_one_is_a_share_of_each_task(at: At) -> None:
    """A quarter of 40 rows is the same sample as 10 of them; a tiny share still keeps one."""
    assert after_stages(at, 2, buffer_size=0.25).memory == after_stages(at, 2, buffer_size=10).memory
    assert len(after_stages(at, 1, buffer_size=0.001).memory["a"]) == 1
    with pytest.raises(UserError, match="buffer_size"):
        after_stages(at, 1, buffer_size=0)
    with pytest.raises(UserError, match="a reservoir needs"):
        after_stages(at, 1, buffer_size=0.5, buffer="reservoir")


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


@pytest.mark.parametrize(
    "fields", [{"share": -0.1}, {"buffer_size": 0}, {"buffer": "reservoir"}, {"num_answers": 0, "answers": "own"}]
)
def test_impossible_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(fields))):
        Replay(**fields)


# --- reservoir ----------------------------------------------------------------------------------------------------


def kept(replay: Replay) -> dict[str, int]:
    return {name: len(ids) for name, ids in replay.memory.items()}


def test_a_reservoir_holds_its_size_over_all_tasks_seen(at: At) -> None:
    replay = Replay(buffer="reservoir", buffer_size=30)
    seen: set[tuple[str, str]] = set()
    for stage in range(1, 5):
        replay.after_task(at(stage))
        entries = {(name, row_id) for name, ids in replay.memory.items() for row_id in ids}
        assert len(entries) == sum(kept(replay).values()) == 30
        assert all(row_id.startswith("train") for _, row_id in entries)
        # What was pushed out never comes back: only the new task brings rows.
        new = {entry for entry in entries if entry[0] == at(stage).stage.tasks[0]}
        assert entries - new <= seen or stage == 1
        seen = entries


def test_each_row_seen_is_kept_with_probability_size_over_seen(at: At) -> None:
    """12 of 120 rows of three tasks over 400 seeds: each row 40 times, sigma 6; each task 4 of its rows on average."""
    counts: Counter[tuple[str, str]] = Counter()
    for seed in range(400):
        replay = after_stages(at, 3, seed, buffer="reservoir", buffer_size=12)
        counts.update((name, row_id) for name, ids in replay.memory.items() for row_id in ids)
    assert len(counts) == 120
    assert min(counts.values()) > 15
    assert max(counts.values()) < 65
    per_task = Counter({name: sum(n for (task, _), n in counts.items() if task == name) for name in "abc"})
    assert all(abs(number - 1600) < 150 for number in per_task.values())


def test_a_task_that_comes_back_brings_no_new_rows_to_a_reservoir(at: At) -> None:
    first = after_stages(at, 4, buffer="reservoir", buffer_size=20).memory
    assert after_stages(at, 5, buffer="reservoir", buffer_size=20).memory == first


def test_draws_from_a_reservoir_are_uniform_over_it_without_the_stages_own_task(at: At) -> None:
    """Each of about 20 rows is drawn equally often, whatever its task has in the buffer: 8 of n rows in 300 draws."""
    replay = after_stages(at, 3, buffer="reservoir", buffer_size=24)
    counts = Counter(entry for step in range(300) for entry in names(replay.draw(at(5, step), 16)))
    earlier = {(name, row_id) for name in ("b", "c") for row_id in replay.memory[name]}
    assert set(counts) == earlier
    mean = 300 * 8 / len(earlier)
    assert all(abs(count - mean) < 0.4 * mean for count in counts.values())


def test_a_reservoir_survives_json(at: At) -> None:
    replay = after_stages(at, 3, buffer="reservoir", buffer_size=9)
    restored = Replay(buffer="reservoir", buffer_size=9)
    restored.load_state_dict(json.loads(json.dumps(replay.state_dict())))
    for each in (replay, restored):
        each.after_task(at(4))
    assert restored.memory == replay.memory
    assert names(restored.draw(at(5), 16)) == names(replay.draw(at(5), 16))


# --- own answers --------------------------------------------------------------------------------------------------


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The policy answers with the prompt's last letters, every fourth time without an end; what is asked."""
    asked: list[list[str]] = []

    def answered(ctx: Context, rows: Any, key: Any, limit: int | None, temperature: float) -> Any:
        asked.append([f"{task.name}/{row['id']}" for task, row in rows])
        return [
            (
                Group(row["id"], task.name, [1], [Completion([1], ended=i % 4 > 0)]),
                row | {"completion": row["prompt"][1:]},
            )
            for i, (task, row) in enumerate(rows)
        ]

    monkeypatch.setattr("contrl.strategies.replay.answered", answered)
    return asked


def test_own_answers_to_prompts_in_memory_are_replayed_and_only_those(at: At, answers: list[list[str]]) -> None:
    """16 of 2 x 10 prompts in memory are asked; the 12 answers that end are what the stage replays."""
    replay = after_stages(at, 2, buffer_size=10, answers="own", num_answers=16)
    replay.before_task(at(3, method=SFT()))
    assert len(answers[0]) == len(set(answers[0])) == 16
    assert set(answers[0]) <= {f"{name}/{row_id}" for name, ids in replay.memory.items() for row_id in ids}
    told: list[Any] = []
    drawn = []
    for step in range(40):
        ctx = at(3, step, method=SFT())
        ctx.report = told.append
        drawn += replay.draw(ctx, 8)
    assert len(drawn) == 160
    assert all(row["completion"] == row["prompt"][1:] for _, row in drawn)
    ended = [entry for i, entry in enumerate(answers[0]) if i % 4 > 0]
    assert {f"{task.name}/{row['id']}" for task, row in drawn} == set(ended)
    assert told[0] == {"replay/own_answers": (12, 1.0)}


def test_a_restart_in_the_stage_asks_and_draws_the_same(at: At, answers: list[list[str]]) -> None:
    """As the runner does it: state, before_task, then the checkpoint's state."""
    replay = after_stages(at, 2, answers="own", num_answers=16)
    replay.before_task(at(3, method=SFT()))
    restored = Replay(answers="own", num_answers=16)
    restored.load_state_dict(json.loads(json.dumps(replay.state_dict())))
    restored.before_task(at(3, method=SFT()))
    restored.load_state_dict(replay.state_dict())
    assert answers[0] == answers[1]
    ctx = at(3, 7, method=SFT())
    assert restored.draw(ctx, 16) == replay.draw(ctx, 16)


def test_methods_that_sample_roll_old_prompts_out_in_any_case(at: At, answers: list[list[str]]) -> None:
    own, stored = (after_stages(at, 2, answers=answers_) for answers_ in ("own", "stored"))
    own.before_task(at(3))
    assert names(own.draw(at(3, 4), 32)) == names(stored.draw(at(3, 4), 32))
    assert answers == []


def test_nothing_is_asked_where_nothing_is_replayed(at: At, answers: list[list[str]]) -> None:
    Replay(answers="own").before_task(at(1, method=SFT()))
    after_stages(at, 2, answers="own", share=0).before_task(at(3, method=SFT()))
    assert answers == []


def test_rows_that_ask_nothing_are_refused_before_the_first_stage(at: At) -> None:
    ctx = at(1, method=SFT())
    task = Task("texts", [{"id": "7", "text": "once upon a time"}])
    ctx.sequence = TaskSequence.in_order([*ctx.sequence.tasks, task])
    with pytest.raises(UserError, match="row 7 of task texts has no prompt"):
        Replay(answers="own").before_task(ctx)


def test_answers_that_never_end_stop_the_run(at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contrl.strategies.replay.answered", lambda *given: [])
    replay = after_stages(at, 1, answers="own")
    with pytest.raises(UserError, match="none of 40 own answers to prompts of a can be replayed") as caught:
        replay.before_task(at(2, method=SFT()))
    assert "raise max_new_tokens" in str(caught.value.fix)


@pytest.mark.parametrize("name", ["dpo", "cpo", "orpo", "kto", "reward"])
def test_own_answers_are_refused_to_methods_that_learn_from_judged_ones(name: str) -> None:
    method = find("method", name)()
    with pytest.raises(UserError, match="replay does not go with this run") as caught:
        check_strategies([Replay(answers="own")], Setting(method))
    assert "answers: stored, or kl with on: old" in str(caught.value.fix)
    check_strategies([Replay()], Setting(method))


@pytest.mark.parametrize("method", [SFT(), RLOO()])
def test_they_are_not_refused_to_others(method: Any) -> None:
    check_strategies([Replay(answers="own", buffer="reservoir", buffer_size=3)], Setting(method))


@pytest.mark.slow
def test_a_run_with_own_answers_survives_kills_and_trains_all_current_rows(runs: Runs) -> None:
    """Killed in mid-stage and after the strategies looked back; current rows as in naive training, no held-out row."""
    fields = {"share": 0.5, "answers": "own", "num_answers": 6, "buffer": "reservoir", "buffer_size": 7}
    fields |= {"max_new_tokens": 50}
    changes: dict[str, Any] = {
        "method": "sft",
        "training": {"learning_rate": 1e-2},
        "strategies": [{"name": "replay", **fields}, DIARY],
    }
    whole = remains(runs("whole", **changes))
    lines = [json.loads(line) for line in Path("diary.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    assert [len(line["current"]) for line in steps] == [4] * 8
    assert [len(line["replayed"]) for line in steps] == [0] * 4 + [2] * 4
    replayed = {row for line in steps for row in line["replayed"]}
    sums = build_tasks(load(runs.config(), resolve=find).config)[0]
    assert replayed <= {f"sums/{row['id']}" for row in sums.train}
    for point, visit in (("training", 7), ("looked_back", 1)):
        faults.arm(point, visit)
        with pytest.raises(Killed):
            runs("run", **changes)
    assert remains(runs("run", **changes)) == whole
