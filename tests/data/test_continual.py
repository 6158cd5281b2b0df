"""What is a sequence of tasks and what a single one: files, folders of folders, names, and which comes first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest

from contrl.continual.sequences import COUNTDOWN_METRIC, Dataset, Debug
from contrl.data.continual import is_continual, read_tasks
from contrl.data.countdown import CountdownConfig, write
from contrl.data.named import ANTHROPIC, ULTRAFEEDBACK
from contrl.errors import UserError
from contrl.rewards.countdown import countdown_reward

FIXTURES = Path(__file__).parents[1] / "fixtures"
SMALL: dict[str, Any] = {"train_size": 30, "test_size": 5, "num_operands": (3,), "max_number": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``contrl data countdown`` writes."""
    place = tmp_path_factory.mktemp("data") / "continual"
    write(CountdownConfig(**SMALL, target_range=(1, 60), template="compact"), place)
    return place


def test_countdowns_folder_is_a_sequence_with_its_verifier(folder: Path) -> None:
    assert is_continual(str(folder))
    tasks = Dataset(str(folder)).tasks()
    assert [task.name for task in tasks] == ["plus", "plus_minus", "plus_minus_mul", "plus_minus_mul_div"]
    assert {(len(task.train), len(task.eval)) for task in tasks} == {(30, 5)}
    assert {(task.reward, task.metric) for task in tasks} == {(countdown_reward, COUNTDOWN_METRIC)}
    row = tasks[1].train[0]
    answers = {name: [row[name]] for name in ("ground_truth", "operator_group", "data_source")}
    solution = row["ground_truth"]["solution"]
    assert countdown_reward(prompts=[row["prompt"]], completions=[solution], **answers) == [1.0]


def test_one_task_of_the_folder(folder: Path) -> None:
    (task,) = read_tasks(str(folder), 2)
    assert task.name == "plus_minus_mul"
    with pytest.raises(UserError, match="there is no task 4: dataset_index must be 0 to 3"):
        read_tasks(str(folder), 4)
    (alone,) = Dataset(str(folder / "plus")).tasks()
    assert (alone.name, len(alone.train)) == ("plus", 30), "a folder of one task is a data set"


def rows(source: str) -> list[dict[str, Any]]:
    asked = [{"role": "user", "content": "1+1"}]
    return [
        {"data_source": source, "prompt": asked, "reward_model": {"ground_truth": {"target": 2, "numbers": [1, 1]}}}
    ]


def put(folder: Path, name: str, source: str, splits: tuple[str, ...] = ("train", "test")) -> None:
    (folder / name).mkdir(parents=True)
    for split in splits:
        parquet.write_table(pyarrow.Table.from_pylist(rows(source)), folder / name / f"{split}.parquet")


def test_groups_called_by_numbers_are_in_their_order(tmp_path: Path) -> None:
    """As the later files of the origin: "0" to "3"; and 10 comes after 2. A task without test rows is told."""
    for name in ("10", "2", "0"):
        put(tmp_path, name, "countdown_continual", ("train",) if name == "2" else ("train", "test"))
    (tmp_path / "notes").mkdir()
    sequence = Dataset(str(tmp_path))
    assert [task.name for task in sequence.tasks()] == ["0", "2", "10"]
    assert sequence.notes == ["2 has no test split: nothing to judge by"]
    assert {task.reward for task in sequence.tasks()} == {countdown_reward}


def test_other_sources_bring_no_reward(tmp_path: Path) -> None:
    put(tmp_path, "gsm", "openai/gsm8k")
    (task,) = Dataset(str(tmp_path)).tasks()
    assert (task.reward, task.metric) == (None, None)


def test_folders_of_other_columns_are_configurations_of_one_data_set(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    parquet.write_table(
        pyarrow.Table.from_pylist([{"prompt": "a", "completion": "b"}]), tmp_path / "en" / "train.parquet"
    )
    assert not is_continual(str(tmp_path))
    with pytest.raises(UserError, match="has several configurations"):
        Dataset(str(tmp_path)).tasks()


# --- names --------------------------------------------------------------------------------------------------


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local copies of the sets that debug takes its rows from."""
    monkeypatch.setenv("CONTRL_DATA_DIR", str(tmp_path / "sets"))
    monkeypatch.chdir(tmp_path)
    for name in (ULTRAFEEDBACK, ANTHROPIC):
        place = tmp_path / "sets" / name
        place.mkdir(parents=True)
        for split in ("train", "test"):
            made = [{"prompt": f"{name} {split} {i}", "chosen": "a", "rejected": "b"} for i in range(200)]
            (place / f"{split}.jsonl").write_text("\n".join(map(json.dumps, made)), encoding="utf-8")


def test_a_name_is_a_sequence_like_a_file(sets: None) -> None:
    assert is_continual("debug")
    by_path, by_name = Dataset("debug", subset_size=7).tasks(), Debug(subset_size=7).tasks()
    assert by_path == by_name
    assert [(len(task.train), len(task.eval)) for task in by_name] == [(7, 7)] * 3
    (second,) = Debug(dataset_index=1).tasks()
    assert second.train[0]["prompt"] == f"{ULTRAFEEDBACK} train 100"
    assert {len(task.eval) for task in Debug(eval_size=10).tasks()} == {10}


def test_what_lies_here_under_the_name_comes_first_unless_the_sequence_is_named(sets: None, tmp_path: Path) -> None:
    (tmp_path / "debug").mkdir()
    lines = [json.dumps({"prompt": f"mine {i}", "chosen": "a", "rejected": "b"}) for i in range(3)]
    (tmp_path / "debug" / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert not is_continual("debug")
    assert [task.name for task in Dataset("debug").tasks()] == ["debug"]
    assert [task.name for task in Debug().tasks()] == ["0-ultrafeedback", "1-ultrafeedback", "2-anthropic"]
