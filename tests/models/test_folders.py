"""Which folder a name means, and which base an adapter sits on; nothing is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contrl.errors import UserError
from contrl.models.folders import base_of, is_classifier, is_hub_id, weights_folder


def model_folder(path: Path, **config: Any) -> Path:
    """A folder that counts as holding a model."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def adapter_folder(path: Path, base: str = "", **config: Any) -> Path:
    path.mkdir(parents=True)
    described = {"base_model_name_or_path": base, **config} if base else config
    (path / "adapter_config.json").write_text(json.dumps(described), encoding="utf-8")
    return path


# --- which folder -------------------------------------------------------------------------------------------


def test_a_model_or_adapter_folder_is_itself(tmp_path: Path) -> None:
    assert weights_folder(str(model_folder(tmp_path / "m"))) == tmp_path / "m"
    assert weights_folder(str(adapter_folder(tmp_path / "a"))) == tmp_path / "a"


def test_a_finished_run_is_itself_or_its_final(tmp_path: Path) -> None:
    run = tmp_path / "run"
    model_folder(run / "stages" / "1-a" / "final")
    final = model_folder(run / "final")
    assert weights_folder(str(run)) == final
    (run / "config.json").write_text("{}", encoding="utf-8")
    assert weights_folder(str(run)) == run


def test_stages_and_checkpoints_are_ordered_by_number_and_not_by_text(tmp_path: Path) -> None:
    """10 comes after 9."""
    run = tmp_path / "run"
    for stage in (1, 2, 9, 10):
        model_folder(run / "stages" / f"{stage}-a" / "final")
    assert weights_folder(str(run)) == run / "stages" / "10-a" / "final"
    stage = tmp_path / "stage"
    for step in (5, 90, 100):
        model_folder(stage / f"checkpoint-{step}")
    assert weights_folder(str(stage)) == stage / "checkpoint-100"


def test_an_interrupted_run_is_its_newest_checkpoint(tmp_path: Path) -> None:
    """Stage 2 was under way: its checkpoint is newer than the end of stage 1, and adapters count as weights."""
    run = tmp_path / "run"
    model_folder(run / "base")
    model_folder(run / "stages" / "1-a" / "final")
    model_folder(run / "stages" / "1-a" / "checkpoint-80")
    newest = adapter_folder(run / "stages" / "2-b" / "checkpoint-20")
    assert weights_folder(str(run)) == newest
    assert weights_folder(str(run / "stages" / "1-a")) == run / "stages" / "1-a" / "final"


def test_half_written_and_foreign_folders_are_not_weights(tmp_path: Path) -> None:
    run = tmp_path / "run"
    model_folder(run / "stages" / "1-a" / "final")
    model_folder(run / "stages" / "1-a" / ".saving-checkpoint-9")
    model_folder(run / "stages" / "1-a" / "checkpoint-best")
    (run / "stages" / ".DS_Store").write_text("", encoding="utf-8")
    (run / "stages" / "notes").mkdir()
    assert weights_folder(str(run)) == run / "stages" / "1-a" / "final"


def test_a_folder_without_weights_says_what_to_name(tmp_path: Path) -> None:
    model_folder(tmp_path / "run" / "base")
    with pytest.raises(UserError, match="holds no model\n  name a model, run, stage or checkpoint folder"):
        weights_folder(str(tmp_path / "run"))


def test_what_is_no_folder_is_left_to_others(tmp_path: Path) -> None:
    assert weights_folder(str(tmp_path / "missing")) is None
    assert weights_folder("tiny") is None


# --- what an adapter sits on ----------------------------------------------------------------------------------


def test_the_base_is_where_the_adapter_says_or_beside_it(tmp_path: Path) -> None:
    """A run folder that was moved takes its ``base`` along."""
    base = model_folder(tmp_path / "run" / "base")
    stage = adapter_folder(tmp_path / "run" / "stages" / "1-a" / "final", str(base))
    assert base_of(stage) == str(base)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert base_of(moved / "stages" / "1-a" / "final") == str(moved / "base")


def test_a_base_that_is_a_run_means_the_weights_in_it(tmp_path: Path) -> None:
    final = adapter_folder(tmp_path / "sft" / "final", "gpt2")
    dpo = adapter_folder(tmp_path / "dpo", str(tmp_path / "sft"))
    assert base_of(dpo) == str(final)
    assert base_of(final) == "gpt2"


def test_a_base_can_be_a_name_on_the_hub(tmp_path: Path) -> None:
    assert base_of(adapter_folder(tmp_path / "a", "owner/model")) == "owner/model"
    assert (is_hub_id("gpt2"), is_hub_id("./gpt2"), is_hub_id("a/b/c")) == (True, False, False)


def test_an_adapter_is_never_its_own_base(tmp_path: Path) -> None:
    adapter = adapter_folder(tmp_path / "a", str(tmp_path / "a"))
    with pytest.raises(UserError, match="is no folder on this machine"):
        base_of(adapter)


def test_the_freshly_made_model_cannot_be_found_again(tmp_path: Path) -> None:
    """Another seed makes another tiny: an adapter on it needs the saved one."""
    with pytest.raises(UserError, match="is no folder on this machine"):
        base_of(adapter_folder(tmp_path / "a", "tiny"))


def test_classifiers_are_told_from_language_models(tmp_path: Path) -> None:
    assert is_classifier(model_folder(tmp_path / "a", architectures=["LlamaForSequenceClassification"]))
    assert not is_classifier(model_folder(tmp_path / "b", architectures=["LlamaForCausalLM"]))
    assert is_classifier(adapter_folder(tmp_path / "c", task_type="SEQ_CLS"))
    assert not is_classifier(adapter_folder(tmp_path / "d", task_type="CAUSAL_LM"))


def test_a_config_that_is_no_json_is_named(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a")
    (folder / "adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"adapter_config\.json: the file cannot be read"):
        base_of(folder)
