"""The wiring: names become methods, strategies and tasks, and what cannot work is refused before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contrl.config import load
from contrl.errors import ConfigErrors, UserError
from contrl.experiment import (
    METHODS,
    METRICS,
    REWARDS,
    SEQUENCES,
    STRATEGIES,
    build_metric,
    build_strategy,
    build_tasks,
    find,
)
from contrl.interfaces import LIKELIHOOD, Method, Metric, Strategy
from contrl.rewards.countdown import countdown_reward
from contrl.rewards.functions import Rewards
from contrl.rewards.rules import Length
from contrl.strategies.composite import Composite
from contrl.strategies.replay import Replay
from tests import runs as small
from tests.plugins import digits
from tests.runs import Runs

world, runs = small.world, small.runs


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind, known in (
            ("method", METHODS),
            ("strategy", STRATEGIES),
            ("sequence", SEQUENCES),
            ("reward", REWARDS),
            ("metric", METRICS),
        )
        for name in known
    ],
)
def test_every_known_name_is_found(kind: str, name: str) -> None:
    found = find(kind, name)
    bases: dict[str, type] = {"method": Method, "strategy": Strategy}
    if kind in bases:
        assert issubclass(found, bases[kind])
    else:
        assert callable(found) or isinstance(found, Metric)


# --- names that are wrong -----------------------------------------------------------------------------


def write(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return name


def refused(kind: str, name: str) -> str:
    with pytest.raises(UserError) as caught:
        find(kind, name)
    return str(caught.value)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    text = refused("strategy", "replai")
    assert "unknown strategy 'replai'" in text
    assert "did you mean replay?" in text
    assert "or an import path module:Name" in text


def test_a_module_that_is_not_there(runs: Runs) -> None:
    assert "there is no module 'not_there'" in refused("reward", "not_there:score")
    assert f"looked in {runs.folder}" in refused("reward", "not_there:score")


def test_a_name_that_the_module_lacks(runs: Runs) -> None:
    module = write(runs.folder, "lacking", "score = None")
    assert f"the module {module} has no 'scores'" in refused("reward", f"{module}:scores")


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("import os\ndef score(:\n", 2, "SyntaxError"),
        ("x = 1\ny = x / 0\n", 2, "ZeroDivisionError: division by zero"),
        ("from os import nothing_like_it\n", 1, "ImportError"),
    ],
)
def test_a_module_that_breaks_names_its_own_line(runs: Runs, text: str, line: int, what: str) -> None:
    module = write(runs.folder, f"broken_{what[:4].lower()}", text)
    said = refused("reward", f"{module}:score")
    assert said.startswith(f"{runs.folder / module}.py:{line}: importing {module} failed: {what}")


def test_a_plugin_of_the_wrong_kind() -> None:
    assert "'contrl.methods.sft:SFT' is no strategy" in refused("strategy", "contrl.methods.sft:SFT")
    assert "derive it from contrl.interfaces.Method" in refused("method", "tests.plugins:Diary")
    assert "is no method" in refused("method", "tests.plugins:digits")


def test_a_module_beside_the_configuration_is_found(runs: Runs) -> None:
    module = write(runs.folder, "beside", "def score(**columns): return [1.0]")
    assert find("reward", f"{module}:score")() == [1.0]


# --- tasks --------------------------------------------------------------------------------------------


def tasks_of(config: dict[str, Any], say: Callable[[str], None] = print) -> Any:
    return build_tasks(load(config, resolve=find).config, say)


def test_tasks_have_their_rows_reward_and_metric(runs: Runs) -> None:
    sums, doubles = tasks_of(runs.config())
    assert (len(sums.train), len(sums.eval), sums.reward) == (8, 4, digits)
    assert sums.metric == Metric("digits", digits)
    assert {row["id"] for row in sums.train} | {row["id"] for row in sums.eval} == {f"sums-{i}" for i in range(12)}
    assert doubles.train[0]["prompt"].startswith("d")


def test_the_held_out_rows_follow_from_the_seed(runs: Runs) -> None:
    def held_out(seed: int) -> list[str]:
        return [row["id"] for row in tasks_of(runs.config(seed=seed))[0].eval]

    assert held_out(0) == held_out(0)
    assert any(held_out(seed) != held_out(0) for seed in (1, 2, 3))


def test_a_folder_gives_train_and_test_rows(runs: Runs) -> None:
    folder = runs.folder / "data"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(f'{{"prompt": "{split}", "completion": "1"}}\n', encoding="utf-8")
    (task,) = tasks_of({**runs.config(method="sft"), "tasks": [{"name": "mine", "data": str(folder)}]})
    assert (task.train[0]["prompt"], task.eval[0]["prompt"]) == ("train", "test")
    assert task.metric is LIKELIHOOD


def test_rows_of_evaluation_that_are_trained_on_are_told(runs: Runs) -> None:
    config = runs.config()
    rows = config["tasks"][0]["data"]
    config["tasks"] = [{"name": "sums", "data": rows, "eval_data": rows, "reward": "tests.plugins:digits"}]
    said: list[str] = []
    tasks_of(config, said.append)
    assert said == ["task sums: 12 of 12 evaluation rows also stand in its training rows"]


def test_num_items_cuts_the_evaluation(runs: Runs) -> None:
    assert [len(task.eval) for task in tasks_of(runs.config(evaluation={"num_items": 3}))] == [3, 3]


SEQUENCE = """
from contrl.interfaces import Metric, Task

def score(**columns):
    return [1.0 for _ in columns["completions"]]

def tasks(number: int = 2, twice: bool = False, wrong: bool = False):
    if wrong:
        return ["task"]
    rows = [{"prompt": f"{i}=", "completion": str(i)} for i in range(4)]
    names = ["same", "same"] if twice else [f"task{i}" for i in range(number)]
    return [Task(name, rows[:3], rows[3:], score, Metric("share", score)) for name in names]
"""


def test_a_sequence_of_the_users_own(runs: Runs) -> None:
    """A function giving Task objects; rows without ids get their position."""
    module = write(runs.folder, "my_sequence", SEQUENCE)
    found = tasks_of({**runs.config(), "tasks": {"name": f"{module}:tasks", "number": 3}})
    assert [task.name for task in found] == ["task0", "task1", "task2"]
    assert [row["id"] for row in found[0].train] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("field", "what"),
    [
        ({"twice": True}, "has two tasks called 'same'"),
        ({"wrong": True}, "gives a str"),
        ({"number": 0}, "gives nothing"),
    ],
)
def test_a_sequence_that_is_none_is_refused(runs: Runs, field: dict[str, Any], what: str) -> None:
    module = write(runs.folder, "my_sequence", SEQUENCE)
    with pytest.raises(UserError, match=what):
        tasks_of({**runs.config(), "tasks": {"name": f"{module}:tasks", **field}})


def test_a_metric_is_found_by_name_by_path_and_by_reward() -> None:
    assert build_metric("logp") is LIKELIHOOD
    assert build_metric("countdown").name == "success", "a reward that gives credit for trying is no success"
    assert build_metric("tests.plugins:digits") == Metric("digits", digits)
    assert build_metric("contrl.rewards.countdown:countdown_reward").score is countdown_reward


# --- rewards ------------------------------------------------------------------------------------------

CLASS = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Near:
    target: int = 3

    def __call__(self, *, completions, **columns):
        return [-abs(len(text) - self.target) for text in completions]

def half(completions, **columns):
    return [0.5 for _ in completions]
"""


def rewarded(runs: Runs, **changes: Any) -> tuple[Any, ...]:
    """The two tasks, their own reward taken away."""
    config = runs.config(**changes)
    for task in config["tasks"]:
        del task["reward"]
    return tuple(tasks_of(config))


def test_several_rewards_with_weights(runs: Runs) -> None:
    """-|2 - 5| x 2 + 0.5 x -1 = -6.5, each under its own name."""
    module = write(runs.folder, "several", CLASS)
    functions = [f"{module}:Near(target=5)", f"{module}:half"]
    sums, doubles = rewarded(runs, rewards={"functions": functions, "weights": [2, -1]})
    assert isinstance(sums.reward, Rewards)
    assert [function.name for function in sums.reward] == ["Near", "half"]
    assert sums.reward(prompts=["?"], completions=["ab"], id=["0"]) == [-6.5]
    assert sums.metric.name == "reward"
    assert sums.reward[0].call is doubles.reward[0].call, "what is shared is made once"


def test_a_task_keeps_its_own_reward_and_a_sequence_takes_the_files(runs: Runs) -> None:
    config = runs.config(rewards={"functions": "length(target=3)"})
    assert [task.reward for task in tasks_of(config)] == [digits, digits]
    sequence = {"name": "countdown", "groups": ["plus"], "train_size": 20, "test_size": 4, "num_operands": [3]}
    (task,) = tasks_of({**config, "tasks": {**sequence, "max_number": 20, "allow_fewer": True}})
    assert task.reward == Length(target=3)
    assert task.metric.name == "success", "how it is judged stays"


@pytest.mark.parametrize(
    ("functions", "metric"),
    [
        (["length(target=3)", "countdown"], "success"),
        (["exact_match", "length"], "exact_match"),
        (["length"], "length"),
        (["length", "think_format"], "reward"),
        (["classifier(model={model})"], "eval_score"),
    ],
)
def test_a_task_is_judged_by_a_verifier_or_by_what_it_is_rewarded_for(
    runs: Runs, functions: list[str], metric: str
) -> None:
    named = [text.format(model=runs.world / "model") for text in functions]
    assert [task.metric.name for task in rewarded(runs, rewards={"functions": named})] == [metric, metric]


def test_pairs_give_their_prompts_to_methods_that_sample(runs: Runs) -> None:
    rows = [{"prompt": f"{i // 2}=", "chosen": "1", "rejected": "2", "target": i} for i in range(6)]
    (runs.folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = runs.config(tasks=[{"name": "pairs", "data": "pairs.jsonl", "reward": "length"}])
    said: list[str] = []
    (task,) = tasks_of(config, said.append)
    assert [dict(row) for row in task.train] == [
        {"prompt": f"{i}=", "target": 2 * i, "id": str(2 * i)} for i in range(3)
    ]
    assert said == ["task pairs: 6 pairs ask 3 different questions; each is a prompt once"]
    (task,) = tasks_of({**config, "method": "dpo"})
    assert len(task.train) == 6


def test_rows_to_judge_by_may_be_made_by_a_function(runs: Runs) -> None:
    module = write(runs.folder, "made", "def rows():\n    return [{'prompt': 'a='}]\n")
    config = runs.config(
        tasks=[{"name": "a", "data": f"{module}:rows", "eval_data": f"{module}:rows", "reward": "length"}]
    )
    (task,) = tasks_of(config)
    assert task.train == task.eval == [{"prompt": "a=", "id": "0"}]


def test_a_judge_keeps_its_answers_where_other_runs_find_them(runs: Runs) -> None:
    """On disk in the cache, so a restart asks nothing twice; the key is in no field."""
    pytest.importorskip("openai")
    functions = "judge(url='http://127.0.0.1:9/v1', model=m, max_calls=3)"
    sums, _ = rewarded(runs, rewards={"functions": functions})
    assert (sums.reward.max_calls, sums.reward.cache) == (3, str(runs.folder / "cache" / "judge"))
    config = load(runs.config(rewards={"functions": functions}), resolve=find)
    assert "api_key" not in config.text
    assert load(config.text, resolve=find).config == config.config


# --- strategies ---------------------------------------------------------------------------------------


def test_no_strategy_one_and_several(runs: Runs) -> None:
    def built(strategies: list[Any]) -> Strategy:
        return build_strategy(load(runs.config(strategies=strategies), resolve=find).config.strategies)

    assert built([]).name == "naive"
    assert built([{"name": "replay", "share": 0.25}]) == Replay(share=0.25)
    several = built(["replay", "tests.plugins:Diary", "naive"])
    assert isinstance(several, Composite)
    assert [strategy.name for strategy in several.strategies] == ["diary", "naive", "replay"]


def test_several_mistakes_are_told_at_once(runs: Runs) -> None:
    config = runs.config(strategies=["replai"], training={"learning_rat": 1})
    config["tasks"][0]["data"] = "./missing.jsonl"
    with pytest.raises(ConfigErrors) as caught:
        load(config, resolve=find)
    text = str(caught.value)
    for fragment in ("replai", "learning_rat", "missing.jsonl"):
        assert fragment in text
