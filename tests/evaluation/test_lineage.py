"""Which weights a name means, which model a run started from, and what a model is called; nothing is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from contrl.errors import UserError
from contrl.evaluation.lineage import short_name, started_from, weights_digest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return folder


def test_a_digest_is_of_what_answers(model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    (copy / "README.md").write_text("a card", encoding="utf-8")
    (copy / "optimizer.bin").write_bytes(b"moments")
    (copy / "strategy.safetensors").write_bytes(b"anchors")
    assert weights_digest(str(copy)) == weights_digest(str(model))
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        changed = Path(shutil.copytree(model, tmp_path / name))
        (changed / name).write_text('{"other": 1}', encoding="utf-8")
        assert weights_digest(str(changed)) != weights_digest(str(model)), name


def test_an_adapter_is_its_base_too(model: Path, tmp_path: Path) -> None:
    def adapter(name: str, base: Path) -> str:
        folder = tmp_path / name
        folder.mkdir()
        described = {"peft_type": "LORA", "base_model_name_or_path": str(base)}
        (folder / "adapter_config.json").write_text(json.dumps(described), encoding="utf-8")
        (folder / "adapter_model.safetensors").write_bytes(b"low rank")
        return str(folder)

    moved = Path(shutil.copytree(model, tmp_path / "moved"))
    other = Path(shutil.copytree(model, tmp_path / "other"))
    (other / "model.safetensors").write_bytes(b"other weights")
    first, second, third = (weights_digest(adapter(f"a{i}", base)) for i, base in enumerate((model, moved, other)))
    assert first == second != third


def test_names_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert weights_digest("tiny") == weights_digest("tiny") != weights_digest("smollm2")
    assert weights_digest("owner/never-downloaded") is None
    with pytest.raises(UserError, match="there is no model folder"):
        weights_digest("./nowhere")


def test_where_a_run_started_and_what_it_is_called(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "outputs" / "dpo"
    for place in ("final", "stages/1-pairs/final", "stages/1-pairs/checkpoint-9"):
        shutil.copytree(model, run / place)
    assert started_from(str(run / "final")) is None
    assert short_name(str(run / "final")) == "dpo"
    (run / "run.json").write_text('{"model": "gpt2"}', encoding="utf-8")
    for place in ("final", "stages/1-pairs/final", "stages/1-pairs/checkpoint-9"):
        assert (started_from(str(run / place)), short_name(str(run / place))) == ("gpt2", "dpo")
    assert (started_from("gpt2"), short_name("owner/gpt2")) == (None, "gpt2")
    shutil.copytree(model, run / "base")
    assert started_from(str(run / "final")) == str(run / "base")
    assert started_from(str(run / "base")) == "gpt2"
    (run / "run.json").write_text("{", encoding="utf-8")
    shutil.rmtree(run / "base")
    with pytest.raises(UserError, match=r"run\.json"):
        started_from(str(run / "final"))
