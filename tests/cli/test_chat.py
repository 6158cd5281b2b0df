"""``contrl chat``: from a pipe it answers each line and ends; commands work; what is saved can be trained on."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from contrl.cli.chat import COMMANDS
from contrl.cli.main import main
from contrl.config import ModelConfig
from contrl.data.chat import encode_messages
from contrl.errors import OK, USAGE
from contrl.models.embedded import character_tokenizer
from contrl.models.load import load_policy

FLAGS = ["--do_sample", "False", "--max_new_tokens", "6", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a stage's adapter on a saved tiny with larger random weights, so that it says something."""
    run = tmp_path_factory.mktemp("run")
    base = load_policy(ModelConfig("tiny"), seed=0)
    for parameter in base.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    base.model.save_pretrained(run / "base")
    base.tokenizer.save_pretrained(run / "base")
    adapted = load_policy(ModelConfig(str(run / "base"), use_peft=True, lora_target_modules=("q_proj",)), seed=0)
    adapted.model.save_pretrained(run / "stages" / "1-a" / "final")
    adapted.tokenizer.save_pretrained(run / "stages" / "1-a" / "final")
    return run


def chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path | str, text: str, *flags: str
) -> list[str]:
    """The lines that chat prints when ``text`` is piped into it."""
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["chat", "--model_name_or_path", str(model), *FLAGS, *flags]) == OK
    return capsys.readouterr().out.splitlines()


def test_each_line_is_answered_and_the_end_of_input_is_the_end(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run folder with an adapter; the same question twice gives two answers, because the history differs."""
    lines = chat(monkeypatch, capsys, model, "1+1\n\n1+1\n")
    assert lines[0].startswith(f"model: {model / 'stages' / '1-a' / 'final'}, its adapter continued")
    answers = "\n".join(lines[1:])
    again = "\n".join(chat(monkeypatch, capsys, model, "1+1\n/clear\n1+1\n")[1:])
    first, _, second = again.partition("\nforgotten\n")
    assert first == second
    assert answers.startswith(first)
    assert answers != f"{first}\n{first}"


def test_a_base_model_without_a_template_continues_text(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer: PreTrainedTokenizerBase = character_tokenizer()
    tokenizer.chat_template = None
    load_policy(ModelConfig(str(model / "base")), seed=0).model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lines = chat(monkeypatch, capsys, tmp_path, "abc\nabc\n")
    assert sum("has no chat template" in line for line in lines) == 1
    said = "\n".join(lines[2:])
    assert said == "\n".join([said[: len(said) // 2]] * 2)


def test_what_is_saved_is_a_row_to_train_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "mine.jsonl", tmp_path / "history"
    text = f"/save\n/system be brief\n1+1\n/save {file}\n2+2\n/save {file}\n/save\n"
    lines = chat(monkeypatch, capsys, model, text, "--save_folder", str(folder))
    assert "nothing was said yet" in lines[1]
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [[turn["role"] for turn in row["messages"]] for row in rows] == [
        ["system", "user", "assistant"],
        ["system", "user", "assistant", "user", "assistant"],
    ]
    assert rows[0]["messages"][0]["content"] == "be brief"
    assert any(encode_messages(rows[0]["messages"], character_tokenizer(), assistant_only=True).trained)
    assert (folder / f"{model.name}.jsonl").read_text(encoding="utf-8").count("\n") == 1


def test_commands_change_what_they_say(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "/set temperature=0.5 top_k=3\n/set\n/set temprature=1\n/set top_p=2\n/sett\n/again\n/help\n/exit\n1+1\n"
    lines = chat(monkeypatch, capsys, model, text)[1:]
    assert "temperature=0.5  top_k=3" in lines[0]
    assert lines[1] == lines[0]
    told = "\n".join(lines)
    assert "cannot set 'temprature=1'" in told
    assert "top_p must be above 0" in told
    assert "did you mean /set?" in told
    assert "nothing was said yet" in told
    assert all(f"\n{name} " in told for name in COMMANDS)
    assert told.rstrip().endswith(COMMANDS["/exit"])


def test_a_system_prompt_from_the_command_line_changes_the_answer(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = chat(monkeypatch, capsys, model, "1+1\n")
    told = chat(monkeypatch, capsys, model, "1+1\n", "--system_prompt", "xyz")
    assert plain[0] == told[0]
    assert plain[1:] != told[1:]


def test_settings_out_of_bounds_stop_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--model_name_or_path", "nowhere/else/entirely", "--top_p", "7"]) == USAGE
    assert "top_p must be" in capsys.readouterr().err
