"""AIF-Gen's continual files: the tasks in their order, and what is wrong with a file named by task and row."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from contrl.data.aif_gen import is_continual, read_tasks
from contrl.data.sources import overlap, read_rows
from contrl.errors import UserError

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHIFT = FIXTURES / "aif_gen_shift.json"
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}


def task(**parts: Any) -> dict[str, Any]:
    about = {"domain": {"cooking": {"name": "cooking"}}, "objective": "Ask.", "preference": "Be brief."}
    return {"task": about, "train": [PAIR], "test": [PAIR], **parts}


def write(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


def refusal(source: str, index: int | None = None) -> str:
    with pytest.raises(UserError) as error:
        read_tasks(source, index)
    return str(error.value)


# --- reading ----------------------------------------------------------------------------------------------


def test_the_tasks_are_in_the_order_of_the_file() -> None:
    first, second = read_tasks(str(SHIFT))
    assert (first.name, second.name) == ("0-cooking", "1-cooking")
    assert [len(rows) for rows in (first.train, first.test, second.train, second.test)] == [24, 8, 24, 8]
    assert first.description.endswith("preferred: Answer with the number of minutes alone.")
    assert [row["id"] for row in first.train] == [str(index) for index in range(24)]


def test_one_task_by_its_number() -> None:
    every = read_tasks(str(SHIFT))
    assert read_tasks(str(SHIFT), 1) == every[1:]
    assert read_tasks(str(SHIFT), 0) == every[:1]
    for wrong in (2, -1):
        assert "dataset_index must be 0 to 1\n  it holds 2 tasks" in refusal(str(SHIFT), wrong)


def test_compressed_and_in_a_folder(tmp_path: Path) -> None:
    expected = read_tasks(str(SHIFT))
    (tmp_path / "tasks.json.gz").write_bytes(gzip.compress(SHIFT.read_bytes()))
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "dataset.json").write_bytes(SHIFT.read_bytes())
    for source in (tmp_path / "tasks.json.gz", tmp_path / "repo"):
        assert is_continual(str(source))
        assert read_tasks(str(source)) == expected


def test_a_copy_of_a_repository_in_the_folder_of_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "data.json").write_bytes(SHIFT.read_bytes())
    monkeypatch.setenv("CONTRL_DATA_DIR", str(tmp_path))
    assert is_continual("org/name")
    assert len(read_tasks("org/name")) == 2


def test_the_keys_of_the_splits_can_be_named(tmp_path: Path) -> None:
    source = write(tmp_path / "tasks.json", {"datasets": [{**task(), "dev": [PAIR, {**PAIR, "prompt": "q"}]}]})
    (only,) = read_tasks(source, train_split="dev", test_split="train")
    assert (len(only.train), len(only.test)) == (2, 1)
    (only,) = read_tasks(source, test_split=None)
    assert only.test == []


@pytest.mark.parametrize(
    ("about", "name"),
    [
        ({"domain": {"cooking": {}, "Home & Garden": {}}}, "0-cooking-home-garden"),
        ({"domain": "politics"}, "0-politics"),
        ({"domain": {"a domain with a name that is far too long": {}}}, "0-a-domain-with-a-name-tha"),
        ({"domain": {"日本": {}}}, "0"),
        ({}, "0"),
        (None, "0"),
        ("a sentence", "0"),
    ],
)
def test_names_are_short_and_fit_a_folder(tmp_path: Path, about: Any, name: str) -> None:
    (only,) = read_tasks(write(tmp_path / "tasks.json", {"datasets": [task(task=about)]}))
    assert only.name == name


# --- what is a continual file -----------------------------------------------------------------------------------


def test_other_sources_are_told_apart(tmp_path: Path) -> None:
    """Whatever is asked, the answer is yes or no, never an exception and never a wait."""
    (tmp_path / "rows.jsonl").write_text('{"datasets": [1]}\n', encoding="utf-8")
    (tmp_path / "broken.json").write_text('{"datasets" [', encoding="utf-8")
    (tmp_path / "broken.json.gz").write_bytes(b"no gzip")
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(SHIFT.read_bytes())[:60])
    (tmp_path / "noise.json").write_bytes(bytes(range(256)))
    (tmp_path / "empty.json").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    plain = [
        write(tmp_path / "list.json", [PAIR]),
        write(tmp_path / "splits.json", {"train": [PAIR], "test": [PAIR]}),
        write(tmp_path / "column.json", [{"datasets": []}]),
        write(tmp_path / "word.json", {"datasets": "none"}),
        *(str(path) for path in tmp_path.iterdir()),
        *("hh", "uc,hh", "nobody/nothing", "", " ", "missing.json", "./x", "a b", "\0", "x" * 5000, "~nobody/x"),
    ]
    assert [source for source in plain if is_continual(source)] == []
    with pytest.raises(UserError, match="holds no sequence of tasks"):
        read_tasks(plain[0])


def test_other_keys_may_come_first(tmp_path: Path) -> None:
    assert is_continual(write(tmp_path / "tasks.json", {"note": "n" * 9000, "datasets": [task()]}))
    assert is_continual(write(tmp_path / "mark.json", {"version": 1, "datasets": [task()]}))
    (tmp_path / "mark.json").write_bytes(b"\xef\xbb\xbf" + SHIFT.read_bytes())
    assert is_continual(str(tmp_path / "mark.json"))


def test_as_a_plain_data_set_it_is_refused() -> None:
    with pytest.raises(UserError, match="holds a sequence of 2 tasks, not one data set"):
        read_rows(str(SHIFT))


# --- what is wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("datasets", "said"),
    [
        ([], ": the list of tasks is empty"),
        ([task(), 3], ", task 1: a int, not an object"),
        ([task(train=[])], ", task 0: train is empty"),
        ([task(), task(test=[])], ", task 1: test is empty"),
        ([{"task": {}, "test": [PAIR]}], ", task 0: has no list 'train'\n  lists found: test"),
        ([{"task": {}, "train": [PAIR]}], ", task 0: has no list 'test'\n  lists found: train"),
        ([{}], ", task 0: has no list 'train'\n  lists found: none"),
        ([task(train={"prompt": ["p"]})], ", task 0: has no list 'train'\n  lists found: test"),
        ([task(train=[PAIR, "text"])], ", task 0, train row 1: a str, not an object"),
        (
            [task(test=[{"prompt": "p", "chosen": "c"}])],
            ", task 0, test row 0: has no 'rejected'\n  it has chosen, prompt",
        ),
        ([task(train=[{"id": 1, **PAIR}, {"id": 1, **PAIR}])], ", task 0, train: rows 0 and 1 have the same id '1'"),
    ],
)
def test_mistakes_are_named_by_file_task_and_row(tmp_path: Path, datasets: list, said: str) -> None:
    path = tmp_path / "tasks.json"
    assert refusal(write(path, {"datasets": datasets})).startswith(f"{path}{said}")


# --- the fixture -------------------------------------------------------------------------------------------------


def test_the_fixture_is_what_its_script_writes() -> None:
    script = FIXTURES.parents[1] / "scripts" / "generate_fixtures.py"
    spec = importlib.util.spec_from_file_location("generate_fixtures", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert SHIFT.read_text(encoding="utf-8") == module.content()


def test_the_fixture_can_show_forgetting() -> None:
    """Distinct rows, no test row trained on, and tasks that prefer opposite lengths."""
    first, second = read_tasks(str(SHIFT))
    every = [*first.train, *first.test, *second.train, *second.test]
    assert len({row["prompt"] for row in every}) == len(every) == 64
    assert overlap([*first.train, *second.train], [*first.test, *second.test]) == 0
    assert all(len(row["chosen"]) < len(row["rejected"]) for row in [*first.train, *first.test])
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in [*second.train, *second.test])


def test_the_origins_own_file() -> None:
    """2 tasks of 95 + 95 rows, of which 2 are distinct: good for the format, useless for anything else."""
    home = os.environ.get("CONTRL_REAL_DATA")
    if not home:
        pytest.skip("CONTRL_REAL_DATA is not set: no real rows to read")
    source = str(Path(home) / "continual_data_debug.json")
    assert is_continual(source)
    tasks = read_tasks(source)
    assert [(known.name, len(known.train), len(known.test)) for known in tasks] == [
        ("0-education", 95, 95),
        ("1-education", 95, 95),
    ]
    assert len({row["prompt"] for known in tasks for row in known.train}) == 2
