"""How far weights moved, by hand: Frobenius norms of differences of small tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
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
        {"tensor": "a", "norm": 3.0, "from_start": 4.0, "start_norm": 5.0, "from_base": 3.0, "base_norm": 0.0},
        {"tensor": "b", "norm": 1.0, "from_start": 0.0, "start_norm": 1.0, "from_base": 0.0, "base_norm": 1.0},
    ]


def test_a_tensor_that_was_not_there_before_has_no_change(tmp_path: Path) -> None:
    """A fresh adapter beside the base: null, not zero."""
    base = model(tmp_path / "base", a=[1.0])
    after = tmp_path / "after"
    after.mkdir()
    save_file({"lora_A": torch.tensor([2.0])}, after / "adapter_model.safetensors")
    save_file({"moves": torch.tensor([5.0])}, after / "strategy.safetensors")
    nothing = dict.fromkeys(("from_start", "start_norm", "from_base", "base_norm"))
    assert list(weight_changes(base, base, after)) == [{"tensor": "lora_A", "norm": 2.0, **nothing}]


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


# --- adapters -----------------------------------------------------------------------------------------


def adapter(folder: Path, a: torch.Tensor, b: torch.Tensor, under: Path, **config: object) -> Path:
    folder.mkdir()
    name = "base_model.model.model.layers.0.q_proj"
    save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "lora_alpha": 8, "r": 2, "base_model_name_or_path": str(under), **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("config", "scale"),
    [({}, 4.0), ({"use_rslora": True}, 8 / 2**0.5), ({"alpha_pattern": {"layers.0.q_proj": 6}}, 3.0)],
)
def test_the_weights_under_an_adapter_move_by_the_product(tmp_path: Path, config: dict, scale: float) -> None:
    """The norms of s B A - s B0 A0 and of s B A, as if the 5 x 7 products had been formed."""
    draw = torch.Generator().manual_seed(0)
    (a, a0), (b, b0) = torch.randn(2, 2, 7, generator=draw), torch.randn(2, 5, 2, generator=draw)
    weight = torch.randn(5, 7, generator=draw)
    base = tmp_path / "base"
    base.mkdir()
    save_file({"model.layers.0.q_proj.weight": weight}, base / "model.safetensors")
    before = adapter(tmp_path / "before", a0, b0, base, **config)
    after = adapter(tmp_path / "after", a, b, base, **config)
    *factors, effective = weight_changes(before, base, after)
    assert [record["kind"] for record in factors] == ["adapter", "adapter"]
    assert factors[0]["from_start"] == pytest.approx(float((a - a0).norm()))
    assert factors[0]["from_base"] is None
    assert effective == {
        "tensor": "model.layers.0.q_proj.weight",
        "norm": pytest.approx(scale * float((b @ a).norm())),
        "from_start": pytest.approx(scale * float((b @ a - b0 @ a0).norm())),
        "from_base": pytest.approx(scale * float((b @ a).norm())),
        "start_norm": pytest.approx(float(weight.norm())),
        "base_norm": pytest.approx(float(weight.norm())),
        "kind": "effective",
    }
    # In the first stage the base stands where the stage began, and adds nothing; what did not move has moved by 0.
    (*_, first) = weight_changes(base, base, after)
    assert first["from_start"] == effective["from_base"]
    (*_, still) = weight_changes(after, base, after)
    assert still["from_start"] == pytest.approx(0.0, abs=1e-6)
    # A run that began with an adapter: the change is from that.
    (*_, continued) = weight_changes(before, before, after)
    assert (continued["from_base"], continued["base_norm"]) == (effective["from_start"], effective["base_norm"])


def test_of_dora_only_its_own_tensors_are_told(tmp_path: Path) -> None:
    base = model(tmp_path / "base", a=[1.0])
    after = adapter(tmp_path / "after", torch.ones(1, 2), torch.ones(2, 1), base, use_dora=True)
    assert {record["kind"] for record in weight_changes(base, base, after)} == {"adapter"}


def test_a_layer_trained_whole_beside_an_adapter_is_compared_with_the_base(tmp_path: Path) -> None:
    base = model(tmp_path / "base", **{"lm_head.weight": [3.0, 4.0]})
    after = adapter(tmp_path / "after", torch.ones(1, 2), torch.ones(2, 1), base)
    whole = {"base_model.model.lm_head.weight": torch.tensor([3.0, 0.0])}
    save_file(whole, after / "adapter_model-2.safetensors")
    (record,) = [each for each in weight_changes(base, base, after) if "lm_head" in each["tensor"]]
    assert (record["from_base"], record["base_norm"], record.get("kind")) == (4.0, 5.0, None)
