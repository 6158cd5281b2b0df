"""Named sequences: Countdown's groups, and any data set as one task or as the tasks of its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contrl.config import load
from contrl.continual.sequences import COUNTDOWN_METRIC, Countdown, Dataset, countdown_success
from contrl.data.recipes import RECIPES
from contrl.data.sources import overlap
from contrl.errors import UserError
from contrl.experiment import build_tasks, find
from contrl.interfaces import Task
from contrl.rewards.countdown import countdown_reward

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHIFT = str(FIXTURES / "aif_gen_shift.json")

SMALL: dict[str, Any] = {"num_operands": [3], "max_number": 20, "target_range": [1, 1000], "template": "compact"}


def test_success_is_a_full_reward_and_nothing_less() -> None:
    """3 + 4 + 5 = 12 earns 1; a well-formed wrong answer earns 0.1, which is no success."""
    (task,) = Countdown(groups=("plus",), train_size=4, test_size=4, **SMALL).tasks()
    row = task.train[0]
    columns = {name: [value, value, value] for name, value in row.items() if name not in ("prompt", "completion")}
    numbers = row["ground_truth"]["numbers"]
    wrong = "+".join(map(str, [*numbers, numbers[0]]))
    answers = {"prompts": [row["prompt"]] * 3, "completions": [row["completion"], wrong, "no"], **columns}
    assert countdown_reward(**answers) == [1.0, 0.1, 0.0]
    assert countdown_success(**answers) == [1.0, 0.0, 0.0]


def test_one_task_a_group_judged_by_success_on_rows_never_trained() -> None:
    tasks = Countdown(groups=("plus", "plus_minus"), train_size=50, test_size=20, **SMALL).tasks()
    assert [task.name for task in tasks] == ["plus", "plus_minus"]
    for task in tasks:
        assert (len(task.train), len(task.eval)) == (50, 20)
        assert task.metric is COUNTDOWN_METRIC
        assert task.reward is countdown_reward

    def instances(rows: list) -> set[tuple[tuple[int, ...], int]]:
        return {(tuple(sorted(r["ground_truth"]["numbers"])), r["ground_truth"]["target"]) for r in rows}

    trained = set().union(*(instances(list(task.train)) for task in tasks))
    judged = set().union(*(instances(list(task.eval)) for task in tasks))
    assert not trained & judged


# --- a data set by name or path -----------------------------------------------------------------------------


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named data sets come from the fixtures."""
    monkeypatch.setenv("CONTRL_DATA_DIR", str(FIXTURES / "data"))


def only(sequence: Dataset) -> Task:
    (task,) = sequence.tasks()
    return task


def write(path: Path, rows: int, prefix: str = "x") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": f"{prefix}{n}", "completion": str(n)}) for n in range(rows)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_a_file_of_tasks_is_a_sequence_in_its_order() -> None:
    first, second = Dataset(SHIFT).tasks()
    assert (first.name, second.name) == ("0-cooking", "1-cooking")
    assert (len(first.train), len(first.eval)) == (24, 8)
    assert (first.reward, first.metric) == (None, None)


def test_dataset_index_picks_one_task() -> None:
    assert only(Dataset(SHIFT, dataset_index=1)) == Dataset(SHIFT).tasks()[1]
    with pytest.raises(UserError, match="there is no task 2: dataset_index must be 0 to 1"):
        Dataset(SHIFT, dataset_index=2).tasks()


def test_a_plain_data_set_has_only_the_index_0(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", 4)
    assert len(only(Dataset(path, dataset_index=0)).train) == 4
    with pytest.raises(UserError, match="dataset_index 1 of a data set that is one task"):
        Dataset(path, dataset_index=1).tasks()


def test_a_folder_is_judged_by_its_test_split_else_by_validation(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", 5)
    write(tmp_path / "set" / "validation.jsonl", 3, "v")
    sequence = Dataset(str(tmp_path / "set"))
    task = only(sequence)
    assert (task.name, len(task.train), [row["prompt"] for row in task.eval]) == ("set", 5, ["v0", "v1", "v2"])
    assert len(sequence.notes) == 1
    assert "judged by 'validation'" in sequence.notes[0]
    write(tmp_path / "set" / "test.jsonl", 2, "t")
    task = only(sequence)
    assert [row["prompt"] for row in task.eval] == ["t0", "t1"]
    assert sequence.notes == []


def test_a_test_split_that_was_named_must_be_there(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", 5)
    with pytest.raises(UserError, match="has no split 'tset'\n  it has train"):
        Dataset(str(tmp_path / "set"), test_split="tset").tasks()
    with pytest.raises(UserError, match="has no split 'trian'\n  it has train"):
        Dataset(str(tmp_path / "set"), train_split="trian").tasks()


def test_a_single_file_is_never_both_trained_on_and_judged_by(tmp_path: Path) -> None:
    sequence = Dataset(write(tmp_path / "my rows.jsonl.gz.jsonl", 20))
    task = only(sequence)
    assert (task.name, len(task.train), len(task.eval)) == ("my-rows.jsonl.gz", 20, 0)
    assert "nothing to judge by" in sequence.notes[0]


@pytest.mark.parametrize(("size", "number"), [(4, 4), (0.25, 5)])
def test_eval_size_holds_rows_out(tmp_path: Path, size: float, number: int) -> None:
    sequence = Dataset(write(tmp_path / "rows.jsonl", 20), eval_size=size)
    task = only(sequence)
    assert (len(task.train), len(task.eval)) == (20 - number, number)
    assert overlap(task.train, task.eval) == 0
    assert only(sequence) == task
    assert sequence.notes == []


def test_eval_size_wins_over_a_test_split() -> None:
    for task in Dataset(SHIFT, eval_size=6).tasks():
        assert (len(task.train), len(task.eval)) == (18, 6)


@pytest.mark.usefixtures("named")
def test_named_data_sets_are_one_task_with_notes() -> None:
    sequence = Dataset("uc,ufb,hh,shp")
    task = only(sequence)
    assert (task.name, len(task.train), len(task.eval)) == ("uc+ufb+hh+shp", 29, 21)
    assert [note.partition(" rows")[0] for note in sequence.notes] == [
        "train: uc: 1 of 8",
        "train: ufb: 1 of 8",
        "train: hh: 1 of 9",
        "train: shp: 2 of 9",
        "test: uc: 1 of 6",
        "test: ufb: 1 of 6",
        "test: shp: 1 of 6",
    ]
    sequence.tasks()
    assert len(sequence.notes) == 7


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("name", RECIPES)
def test_every_named_data_set_has_rows_to_train_on_and_others_to_judge_by(name: str) -> None:
    task = only(Dataset(name))
    assert task.name == name
    assert task.train
    assert task.eval
    assert overlap(task.train, task.eval) == 0


@pytest.mark.usefixtures("named")
def test_a_subset_takes_the_first_rows_of_every_source() -> None:
    """Of the concatenation's first rows alone, all would be uc's, which prefer nothing."""
    task = only(Dataset("uc,hh", subset_size=2))
    assert [row["id"] for row in task.train] == ["uc/0", "uc/1", "hh/0", "hh/1"]
    assert [row["id"] for row in task.eval] == ["uc/0", "uc/1", "hh/0", "hh/1"]
    assert [len(known.train) for known in Dataset(SHIFT, subset_size=3).tasks()] == [3, 3]


@pytest.mark.usefixtures("named")
def test_single_turn_leaves_longer_chats_out() -> None:
    """Of smoltalk's 7 train chats one has a system message and one two turns; of its 6 test chats one and one."""
    sequence = Dataset("smoltalk", single_turn=True)
    task = only(sequence)
    assert (len(task.train), len(task.eval)) == (5, 4)
    assert sequence.notes[1:] == [
        "smoltalk: 2 of 7 chats left out: more than one turn",
        "smoltalk: 2 of 6 chats left out: more than one turn",
    ]
    assert len(only(Dataset("ultrafeedback", single_turn=True)).train) == 6
    assert len(only(Dataset("hh", single_turn=True)).train) == 8


def test_a_configuration_names_the_sequence_with_its_fields() -> None:
    """As in a YAML file: the fields stand beside the name, and are typed."""
    given: dict[str, Any] = {"name": "dataset", "path": SHIFT, "dataset_index": "1", "subset_size": "4"}
    values = {"output_dir": "o", "model": "tiny", "method": "sft", "tasks": given}
    (task,) = build_tasks(load(values, resolve=find).config)
    assert (task.name, len(task.train), len(task.eval)) == ("1-cooking", 4, 4)
    with pytest.raises(UserError, match="at least 0"):
        load({**values, "tasks": {**given, "dataset_index": -1}}, resolve=find)
