"""``contrl merge``: whole or not at all, exactly where asked, with a card; nothing is sent unless asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from contrl.cli.main import main
from contrl.config import ModelConfig
from contrl.errors import ENVIRONMENT, OK, USAGE
from contrl.models.load import load_policy

IDS = torch.tensor([[10, 12, 30, 44]])


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A trained adapter on a saved tiny."""
    base = load_policy(ModelConfig("tiny"), seed=0)
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    policy = load_policy(ModelConfig(str(tmp_path / "base"), use_peft=True, lora_target_modules=("q_proj",)), seed=0)
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    policy.model.save_pretrained(tmp_path / "adapter")
    policy.tokenizer.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_folder_is_a_plain_model_with_a_card(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "deep" / "merged"
    base = str(tmp_path / "base")
    command = ["merge", "--base_model_name", base, "--adapter_model_name", str(adapter), "--output_name", str(out)]
    assert main(command) == OK
    assert str(out) in capsys.readouterr().out
    plain = AutoModelForCausalLM.from_pretrained(out).eval()
    adapted = load_policy(ModelConfig(str(adapter)), seed=0).model.eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS).logits, adapted(IDS).logits, atol=1e-4, rtol=1e-4)
    assert len(AutoTokenizer.from_pretrained(out)) == 100
    _, front, body = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert "merged" in yaml.safe_load(front)["tags"]
    assert "contrl merge --adapter_model_name" in body
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["merged"]


def test_what_lies_there_is_not_overwritten_unasked(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "merged"
    out.mkdir()
    (out / "mine.txt").write_text("keep", encoding="utf-8")
    command = ["merge", "--adapter_model_name", str(adapter), "--output_name", str(out)]
    assert main(command) == USAGE
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert main([*command, "--overwrite", "--dtype", "bfloat16"]) == OK
    assert not (out / "mine.txt").exists()
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_a_failed_merge_leaves_nothing(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "merged"
    base = load_policy(ModelConfig("tiny"), seed=0).model
    base.model.layers = base.model.layers[:2]
    base.config.num_hidden_layers = 2
    base.save_pretrained(tmp_path / "smaller")
    command = ["merge", "--adapter_model_name", str(adapter), "--output_name", str(out)]
    assert main([*command, "--base_model_name", str(tmp_path / "smaller")]) == USAGE
    assert "the adapter does not fit its base model" in capsys.readouterr().err
    assert not out.exists()


def test_nothing_is_sent_unless_asked(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Asked for without a network it fails in words, and what was written stays."""
    out = tmp_path / "merged"
    command = ["merge", "--adapter_model_name", str(adapter), "--output_name", str(out), "--push_to_hub", "me/merged"]
    assert main(command) == ENVIRONMENT
    assert "could not be sent to me/merged" in capsys.readouterr().err
    assert (out / "model.safetensors").exists()
