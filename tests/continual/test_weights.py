"""How far weights moved, by hand: Frobenius norms of differences of small tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from contrl.continual.weights import weight_changes


def model(folder: Path, **tensors: list[float]) -> Path:
    folder.mkdir()
    save_file({name: torch.tensor(values) for name, values in tensors.items()}, folder / "model.safetensors")
    return folder


def test_norms_and_changes(tmp_path: Path) -> None:
    """a moves from (0, 0) over (3, 4) to (3, 0): |a| = 3, 4 from the start of the stage, 3 from the base."""
    base = model(tmp_path / "base", a=[0.0, 0.0], b=[1.0])
    before = model(tmp_path / "before", a=[3.0, 4.0], b=[1.0])
    after = model(tmp_path / "after", a=[3.0, 0.0], b=[1.0])
    assert list(weight_changes(before, base, after)) == [
        {"tensor": "a", "norm": 3.0, "from_start": 4.0, "from_base": 3.0},
        {"tensor": "b", "norm": 1.0, "from_start": 0.0, "from_base": 0.0},
    ]


def test_a_tensor_that_was_not_there_before_has_no_change(tmp_path: Path) -> None:
    """A fresh adapter beside the base: null, not zero."""
    base = model(tmp_path / "base", a=[1.0])
    after = tmp_path / "after"
    after.mkdir()
    save_file({"lora_A": torch.tensor([2.0])}, after / "adapter_model.safetensors")
    save_file({"moves": torch.tensor([5.0])}, after / "strategy.safetensors")
    assert list(weight_changes(base, base, after)) == [
        {"tensor": "lora_A", "norm": 2.0, "from_start": None, "from_base": None}
    ]


def test_differences_of_half_precision_are_taken_in_float32(tmp_path: Path) -> None:
    """256 and 257 are the same number in bfloat16, and 2^-8 apart near 1 they are not."""
    folders = []
    for index, value in enumerate((1.0, 1.0 + 2**-7)):
        folder = tmp_path / str(index)
        folder.mkdir()
        save_file({"a": torch.full((4,), value, dtype=torch.bfloat16)}, folder / "model.safetensors")
        folders.append(folder)
    (record,) = weight_changes(folders[0], folders[0], folders[1])
    assert record["from_start"] == 2 * 2**-7
