"""The plan of a run: batch arithmetic, lengths, and the demo's cost against its known duration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from contrl.base_stage import base_plan
from contrl.cli.demo import config_file
from contrl.config import load
from contrl.continual.estimate import Judged, Size, seconds
from contrl.continual.processes import Ranks
from contrl.continual.rotation import Rotation
from contrl.errors import ConfigErrors, UserError
from contrl.experiment import build_tasks, find
from contrl.interfaces import Task, TaskSequence
from contrl.models.load import load_tokenizer
from contrl.planning import announce, build_plan, build_sequence, load_of, usable
from tests import runs as small
from tests.runs import Runs

world, runs = small.world, small.runs


def sequence_of(config: Any) -> TaskSequence:
    return TaskSequence.in_order(build_tasks(config), config.rounds)


@pytest.mark.parametrize(
    ("training", "world_size", "prompts", "fix"),
    [
        ({"gradient_accumulation_steps": 3}, 1, 4, "use 6 or 3"),
        ({}, 8, 4, "use 8"),
        ({"gradient_accumulation_steps": 2}, 3, 20, "use 24 or 18"),
    ],
)
def test_prompts_that_do_not_divide_name_the_nearest_that_do(
    runs: Runs, training: dict[str, Any], world_size: int, prompts: int, fix: str
) -> None:
    config = load(runs.config(prompts_per_step=prompts, training=training), resolve=find).config
    with pytest.raises(UserError, match=f"prompts_per_step {prompts} cannot be shared out") as caught:
        build_plan(config, sequence_of(config), world_size)
    assert caught.value.fix == fix


def test_a_task_with_an_accumulation_of_its_own_is_checked_too(runs: Runs) -> None:
    config = runs.config()
    config["tasks"][1]["training"] = {"gradient_accumulation_steps": 3}
    resolved = load(config, resolve=find).config
    with pytest.raises(UserError, match="cannot be shared out"):
        build_plan(resolved, sequence_of(resolved), 1)


def test_without_prompts_per_step_it_follows_from_the_training_arguments(runs: Runs) -> None:
    """2 a device x 3 accumulation steps x 4 processes."""
    training = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    config = load(runs.config(prompts_per_step=None, training=training), resolve=find).config
    assert build_plan(config, sequence_of(config), 4).prompts_per_step == 24


def test_a_task_overrides_method_and_training_of_the_run(runs: Runs) -> None:
    config = runs.config()
    config["tasks"][1] |= {"method": {"max_new_tokens": 3}, "max_steps": 7}
    resolved = load(config, resolve=find).config
    plan = build_plan(resolved, sequence_of(resolved), 1)
    first, second = plan.sequence.stages
    assert [plan.training_for(stage)["max_steps"] for stage in (first, second)] == [4, 7]
    assert [plan.method_for(stage).max_new_tokens for stage in (first, second)] == [6, 3]
    assert load_of(plan, 1.0).steps == [4, 7]


def test_the_load_counts_characters_as_tokens_of_the_tiny_model(runs: Runs) -> None:
    """Prompts s0+0= ... s9+9= and two of 10 and 11, completions 0 ... 22; some rows are held out at random."""
    config = load(runs.config(training={"save_strategy": "no"}), resolve=find).config
    load_ = load_of(build_plan(config, sequence_of(config), 1), 1.0)
    assert load_.rotations == [Rotation(None, None)] * 2
    assert 5 <= load_.prompt_tokens <= 7
    assert 1 <= load_.completion_tokens <= 2
    assert load_.judged == Judged(cells=6, sampled=24, calls=6, forced=0, probed=24, max_new_tokens=6)


@pytest.mark.parametrize(
    ("evaluation", "cells"),
    [({"at_start": False}, 4), ({"tasks": "seen"}, 3), ({"tasks": "seen+next"}, 5), ({"tasks": "none"}, 0)],
)
def test_what_is_judged_is_counted(runs: Runs, evaluation: dict[str, Any], cells: int) -> None:
    """Two tasks of four rows, two stages; seen: sums, then both; seen+next: also sums before and doubles after one."""
    config = load(runs.config(evaluation={"num_samples": 2, "temperature": 1, **evaluation}), resolve=find).config
    judged = load_of(build_plan(config, sequence_of(config), 1), 1.0).judged
    assert (judged.cells, judged.sampled) == (cells, 8 * cells)


def test_messages_are_measured_by_their_content(runs: Runs) -> None:
    config = load(runs.config(), resolve=find).config
    plan = build_plan(config, sequence_of(config), 1)
    messages = [{"role": "user", "content": "x" * 30}, {"role": "user", "content": "y" * 5}]
    task = plan.sequence.tasks[0]
    talk = type(task)(task.name, [{"id": "0", "prompt": messages, "completion": messages[1:]}], task.eval)
    plan.sequence = TaskSequence.in_order([talk])
    assert load_of(plan, 3.5).prompt_tokens == 10
    assert load_of(plan, 1.0).completion_tokens == 5


def test_a_model_of_the_hub_is_announced_without_fetching_it(runs: Runs) -> None:
    config = load(runs.config(model="someone/something"), resolve=find).config
    lines = announce(config, build_plan(config, sequence_of(config), 1), None)
    assert lines[0] == "model    someone/something, to be fetched"
    assert lines[1].startswith("batch ")


DEMO = [
    "base.training.max_steps=500",
    "base.prompts_per_step=128",
    "training.max_steps=80",
    "prompts_per_step=32",
    "method.samples_per_prompt=8",
    "method.max_new_tokens=16",
]


def test_the_demo_takes_about_as_long_as_it_says() -> None:
    """Timed on one core that does 105e9 operations a second in a 512 x 512 product: a base stage of 500 steps of 128
    rows took 130 to 160 s, a stage of 80 steps of 32 prompts x 8 samples 15 to 60 s. Within a factor of two of it."""
    config = load(config_file(), DEMO, resolve=find).config
    sequence = sequence_of(config)
    assert config.base is not None
    base = load_of(base_plan(config, config.base, sequence, Ranks(0, 1)), 1.0)
    main = load_of(build_plan(config, sequence, 1), 1.0)
    tiny = Size(1_062_528, 1_062_528)
    assert 145 / 2 < seconds(tiny, base, 105e9) < 145 * 2
    assert 4 * 37 / 2 < seconds(tiny, main, 105e9) < 4 * 37 * 2


def test_rewards_and_answers_to_judge_reach_the_plan(runs: Runs) -> None:
    changes: dict[str, Any] = {
        "rewards": {"errors": "missing", "seconds": 2},
        "evaluation": {"num_samples": 4, "temperature": 0.7},
    }
    config = load(runs.config(**changes), resolve=find).config
    plan = build_plan(config, sequence_of(config), 1)
    assert (plan.scoring.errors, plan.scoring.seconds) == ("missing", 2.0)
    assert (plan.num_samples, plan.temperature) == (4, 0.7)


def test_prompts_that_are_too_long_are_left_out(runs: Runs) -> None:
    """Of the prompts "s0+0=" ... "s11+11=" those below ten have five characters and an end token or less."""
    config = load(runs.config(max_prompt_tokens=5), resolve=find).config
    sequence = sequence_of(config)
    said: list[str] = []
    plan = build_plan(config, sequence, 1)
    kept = usable(sequence, plan, load_tokenizer(config.model), said.append)
    for task, before in zip(kept.tasks, sequence.tasks, strict=True):
        assert [row["prompt"] for row in task.train] == [r["prompt"] for r in before.train if len(r["prompt"]) <= 5]
        assert all(len(row["prompt"]) <= 5 for row in task.eval)
    assert said[0].startswith("task sums: ")
    assert said[0].endswith("of 8 prompts have more than 5 tokens: left out")
    short = replace(plan, max_prompt_tokens=1)
    with pytest.raises(UserError, match="task sums has no prompt of at most 1 tokens"):
        usable(sequence, short, load_tokenizer(config.model), said.append)
    offline = load(runs.config(max_prompt_tokens=1, method="sft"), resolve=find).config
    whole = sequence_of(offline)
    assert usable(whole, build_plan(offline, whole, 1), load_tokenizer(config.model), said.append) == whole


# --- the stages of a sequence -----------------------------------------------------------------------------

FLIPS = {"name": "opposite_preferences", "train_size": 4, "eval_size": 2}


def flips(runs: Runs, **changes: Any) -> Any:
    return load(runs.config(tasks=FLIPS, method="dpo", **changes), ["order_seed=1"], resolve=find)


def test_a_named_sequence_is_put_in_order_and_told(runs: Runs) -> None:
    """Columns stand in the order of learning; a task of no stage comes last and is judged all the same."""
    said: list[str] = []
    stages = [["shorter", "no_first"], ["longer"]]
    sequence = build_sequence(flips(runs, stages=stages, order="reversed", rounds=2), said.append)
    assert [(stage.tasks, stage.round) for stage in sequence.stages] == [
        (("longer",), 1),
        (("shorter", "no_first"), 1),
        (("longer",), 2),
        (("shorter", "no_first"), 2),
    ]
    assert [task.name for task in sequence.tasks] == ["longer", "shorter", "no_first", "yes_first"]
    assert said == [
        "order    reversed: longer, shorter+no_first",
        "judged   yes_first: in no stage, so never learnt",
    ]


def test_each_round_has_the_same_random_order_which_the_seed_does_not_change(runs: Runs) -> None:
    def order(**changes: Any) -> list[str]:
        return [stage.tasks[0] for stage in build_sequence(flips(runs, order="random", **changes)).stages]

    first = order(rounds=2)
    assert first[:4] == first[4:] == order(seed=5)
    assert sorted(first[:4]) == sorted(["longer", "shorter", "yes_first", "no_first"])


def test_wrong_names_of_a_named_sequence_are_told_together_with_their_place(runs: Runs) -> None:
    resolved = load(runs.config(tasks=FLIPS, method="dpo"), ["stages=[[longr], [shorter, shorter]]"], resolve=find)
    with pytest.raises(ConfigErrors) as caught:
        build_sequence(resolved)
    assert [(error.where, error.what) for error in caught.value.errors] == [
        ("command line", "stages.0: no task is called 'longr'"),
        ("command line", "stages.1: shorter stands there twice"),
    ]


def one_lr_each() -> list[Task]:
    row = {"prompt": "a", "completion": "b"}
    return [Task(name, [row], [row], training={"learning_rate": rate}) for name, rate in (("x", 1e-3), ("y", 1e-4))]


def test_tasks_of_code_that_disagree_share_no_stage(runs: Runs) -> None:
    tasks = {"name": "tests.test_planning:one_lr_each"}
    resolved = load(runs.config(tasks=tasks, method="sft", stages=[["x", "y"]]), resolve=find)
    with pytest.raises(ConfigErrors, match=r"learning_rate: tasks of one stage disagree: 0\.001 for x"):
        build_sequence(resolved)
    apart = load(runs.config(tasks=tasks, method="sft"), resolve=find)
    assert len(build_sequence(apart).stages) == 2
