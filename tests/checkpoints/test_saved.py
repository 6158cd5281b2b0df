"""Which weights a folder holds: three layouts, steps as numbers, and mistakes in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contrl.checkpoints.saved import find_saved
from contrl.errors import UserError


def weights(folder: Path, *names: str, adapter: bool = False) -> None:
    """Folders that look as if they held weights."""
    for name in names:
        place = folder / name
        place.mkdir(parents=True)
        (place / ("adapter_config.json" if adapter else "config.json")).write_text("{}", encoding="utf-8")
        (place / ("adapter_model.safetensors" if adapter else "model.safetensors")).write_bytes(b"")


def shown(folder: Path) -> list[tuple[str, str | None, list[str]]]:
    """(name, end, between) of each row."""
    return [
        (row.name, row.end.name if row.end else None, [path.name for path in row.between])
        for row in find_saved(folder).rows
    ]


def test_plain_checkpoints_are_rows_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    weights(tmp_path, "checkpoint-1000", "checkpoint-50", "checkpoint-200", "final")
    (tmp_path / "logs").mkdir()
    names = ["checkpoint-50", "checkpoint-200", "checkpoint-1000", "final"]
    assert shown(tmp_path) == [(name, name, []) for name in names]
    assert [row.tasks for row in find_saved(tmp_path).rows] == [None] * 4


def test_a_model_folder_is_one_row(tmp_path: Path) -> None:
    weights(tmp_path, "mine")
    assert shown(tmp_path / "mine") == [("mine", "mine", [])]


def test_the_row_of_a_dataset_is_its_last_or_highest_checkpoint(tmp_path: Path) -> None:
    weights(tmp_path, "dataset-10/checkpoint-7", "dataset-2/checkpoint-1000", "dataset-2/checkpoint-50")
    weights(tmp_path, "dataset-0/checkpoint-300", "dataset-0/last")
    assert shown(tmp_path) == [
        ("dataset-0", "last", ["checkpoint-300"]),
        ("dataset-2", "checkpoint-1000", ["checkpoint-50"]),
        ("dataset-10", "checkpoint-7", []),
    ]
    assert [row.dataset for row in find_saved(tmp_path).rows] == [0, 2, 10]


def test_the_stages_of_a_run_are_those_of_its_manifest(tmp_path: Path) -> None:
    """The second one is still being trained."""
    stages = [
        {"stage": k, "task": task, "tasks": [task], "round": 1, "folder": f"stages/{k}-{task}"}
        for k, task in ((1, "a"), (2, "b"))
    ]
    manifest = {"schema_version": 1, "sequence": ["a", "b"], "stages": stages}
    (tmp_path / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    (tmp_path / "config.yaml").write_text("", encoding="utf-8")
    weights(tmp_path, "stages/1-a/checkpoint-20", "stages/1-a/checkpoint-3", "stages/1-a/final")
    weights(tmp_path, "stages/2-b/checkpoint-3", "final")
    assert shown(tmp_path) == [("a", "final", ["checkpoint-3", "checkpoint-20"]), ("b", None, ["checkpoint-3"])]
    assert [row.tasks for row in find_saved(tmp_path).rows] == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("names", "adapters", "message"),
    [
        ((), (), "no checkpoints found"),
        (("dataset-0/last", "checkpoint-5"), (), "holds dataset-0 and checkpoint-5"),
        (("checkpoint-5",), ("checkpoint-6",), "checkpoint-6 holds an adapter, checkpoint-5 a whole model"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(
    names: tuple[str, ...], adapters: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    weights(tmp_path, *names)
    weights(tmp_path, *adapters, adapter=True)
    with pytest.raises(UserError, match=message):
        find_saved(tmp_path)


def test_a_checkpoint_without_weights_is_named_with_what_lies_there(tmp_path: Path) -> None:
    weights(tmp_path, "checkpoint-1")
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(UserError) as error:
        find_saved(tmp_path)
    assert "pytorch_model.bin is not safetensors" in str(error.value)
    assert "checkpoint-3 holds no weights" in str(error.value)
    with pytest.raises(UserError, match="there is no folder"):
        find_saved(tmp_path / "nowhere")
