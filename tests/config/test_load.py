"""Loading: values, short forms, overrides, origins, paths and notes of a valid configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from contrl.config import (
    BaseStageConfig,
    EvaluationConfig,
    ModelConfig,
    PluginConfig,
    Resolved,
    RunConfig,
    SequenceConfig,
    TaskConfig,
    load,
)
from contrl.errors import ConfigErrors

Load = Callable[..., Resolved]


def test_a_file_becomes_typed_values(resolved: Load) -> None:
    config = resolved().config
    schedule = config.method.fields.pop("schedule")
    assert (schedule.start, schedule.kind) == (1.0, "flat")
    assert config == RunConfig(
        output_dir="runs/mine",
        model=ModelConfig("tiny"),
        # The field `weights` has a type that no file can hold, so it is left to the class.
        method=PluginConfig("rloo", {"samples_per_prompt": 8, "beta": 0.0, "loss_type": ("sigmoid",)}),
        tasks=(TaskConfig("plus", "hub/plus", training={"learning_rate": 2e-5}), TaskConfig("minus", "hub/minus")),
        strategies=(PluginConfig("naive"), PluginConfig("replay", {"share": 0.25, "folder": None})),
        training={"learning_rate": 1e-5, "max_steps": 40},
    )
    assert type(config.training["learning_rate"]) is float
    assert type(config.method.fields["beta"]) is float
    assert config.evaluation == EvaluationConfig("all", None, None, 16_384, at_start=True)


def test_a_mapping_and_a_text_give_the_same(resolved: Load, basic: str) -> None:
    mapping = {
        "output_dir": Path("runs/mine"),
        "model": "tiny",
        "method": {"name": "rloo"},
        "strategies": ["naive", {"name": "replay", "share": 0.25}],
        "tasks": [{"name": "plus", "data": "hub/plus", "learning_rate": 2e-5}, {"name": "minus", "data": "hub/minus"}],
        "training": {"learning_rate": "1e-5", "max_steps": 40},
    }
    assert resolved(mapping).config == resolved(basic).config
    assert resolved(mapping).origins["training.max_steps"] == "configuration"


# --- short forms ----------------------------------------------------------------------------------------

SHORT = "output_dir: o\nmodel: tiny\nmethod: sft\ntasks: countdown\n"


@pytest.mark.parametrize(
    "strategies",
    ["naive,replay", "[naive, replay]", "[{name: naive}, replay]", "naive, replay"],
)
def test_strategies_are_a_list_however_written(resolved: Load, strategies: str) -> None:
    found = resolved(f"{SHORT}strategies: {strategies}\n").config.strategies
    assert [plugin.name for plugin in found] == ["naive", "replay"]


@pytest.mark.parametrize(("text", "names"), [("replay", ["replay"]), ("{name: replay}", ["replay"]), ("none", [])])
def test_one_strategy_or_none(resolved: Load, text: str, names: list[str]) -> None:
    assert [plugin.name for plugin in resolved(f"{SHORT}strategies: {text}\n").config.strategies] == names


def test_a_named_sequence(resolved: Load) -> None:
    long = SHORT.replace("countdown", "{name: countdown, max_number: 20, groups: 'plus', shuffle: yes}")
    assert resolved(SHORT).config.tasks == SequenceConfig(
        "countdown", {"max_number": 9, "groups": ("plus",), "shuffle": False}
    )
    assert resolved(long).config.tasks == SequenceConfig(
        "countdown", {"max_number": 20, "groups": ("plus",), "shuffle": True}
    )


@pytest.mark.parametrize("base", ["sft", "{method: sft}", "{method: {name: sft}}"])
def test_a_base_stage(resolved: Load, base: str) -> None:
    assert resolved(f"{SHORT}base: {base}\n").config.base == BaseStageConfig(PluginConfig("sft"))


def test_a_training_argument_may_stand_on_the_task(resolved: Load) -> None:
    text = SHORT.replace("countdown", "[{name: a, data: hub/a, learning_rate: 1e-3, training: {max_steps: 4}}]")
    config = resolved(text).config
    assert isinstance(config.tasks, tuple)
    assert config.tasks[0].training == {"learning_rate": 1e-3, "max_steps": 4}


def test_sections_may_be_left_empty(resolved: Load) -> None:
    config = resolved(f"{SHORT}training:\nevaluation:\nstrategies:\nbase:\n").config
    assert (config.training, config.evaluation, config.strategies, config.base) == ({}, EvaluationConfig(), (), None)


def test_a_stage_takes_the_tasks_own_settings_over_the_runs(resolved: Load) -> None:
    config = resolved(overrides=["tasks.plus.method={samples_per_prompt: 4}"]).config
    assert isinstance(config.tasks, tuple)
    plus, minus = config.tasks
    assert config.training_for(plus) == {"learning_rate": 2e-5, "max_steps": 40}
    assert config.training_for(minus) == config.training
    assert [config.method_for(task).fields["samples_per_prompt"] for task in (plus, minus)] == [4, 8]
    assert config.method_for(plus).fields.keys() == config.method.fields.keys()


# --- overrides and origins ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("tasks.1.learning_rate=1e-4", "tasks.1.training.learning_rate"),
        ("tasks.minus.learning_rate=1e-4", "tasks.1.training.learning_rate"),
        ("tasks.minus.training.learning_rate=1e-4", "tasks.1.training.learning_rate"),
        ("tasks.0.learning_rate=1e-4", "tasks.0.training.learning_rate"),
        ("training.learning_rate=1e-4", "training.learning_rate"),
        ("base.training.learning_rate=1e-4", "base.training.learning_rate"),
        ("method.samples_per_prompt=4", "method.samples_per_prompt"),
        ("method.schedule.kind=linear", "method.schedule.kind"),
        ("strategies.replay.share=1e-1", "strategies.1.share"),
        ("strategies.0=replay", "strategies.0.name"),
        ("strategies=[naive,replay]", "strategies.1.name"),
        ("model.lora_target_modules=[q_proj,v_proj]", "model.lora_target_modules"),
        ("model=smollm2", "model.name_or_path"),
        ("evaluation.num_items=100", "evaluation.num_items"),
        ("training.lr_scheduler_kwargs={min_lr: 1e-6}", "training.lr_scheduler_kwargs.min_lr"),
    ],
)
def test_an_override_wins_and_says_so(resolved: Load, override: str, path: str) -> None:
    after = resolved(overrides=["base.method=sft", override])
    assert after.origins[path] == "command line"
    written = override.partition("=")[2]
    values = {"1e-4": 1e-4, "4": 4, "1e-1": 0.1, "100": 100}
    if written in values:
        assert _at(after.config, path) == values[written]


def _at(value: object, path: str) -> object:
    for name in path.split("."):
        value = getattr(value, "fields", None) or value if name != "name" else value
        if isinstance(value, tuple):
            value = value[int(name)]
        else:
            value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


def test_the_last_override_of_a_value_wins(resolved: Load) -> None:
    for first, last in [("learning_rate", "training.learning_rate"), ("training.learning_rate", "learning_rate")]:
        config = resolved(overrides=[f"tasks.0.{first}=1e-4", f"tasks.0.{last}=1e-3"]).config
        assert isinstance(config.tasks, tuple)
        assert config.tasks[0].training["learning_rate"] == 1e-3


def test_a_new_method_drops_the_fields_of_the_old_one_and_a_new_model_keeps_the_rest(resolved: Load) -> None:
    text = SHORT.replace("model: tiny", "model: {name_or_path: tiny, use_peft: yes}")
    text = text.replace("method: sft", "method: {name: rloo, samples_per_prompt: 4}")
    config = resolved(text, ["method=sft", "model=smollm2"]).config
    assert config.method == PluginConfig("sft")
    assert config.model == ModelConfig("smollm2", use_peft=True)


def test_origins_name_the_line_the_command_line_or_the_default(resolved: Load) -> None:
    origins = resolved(overrides=["seed=7"]).origins
    expected = {
        "output_dir": "demo.yaml:1",
        "model.name_or_path": "demo.yaml:2",
        "method.name": "demo.yaml:3",
        "method.beta": "default",
        "strategies.1.share": "demo.yaml:4",
        "tasks.0.name": "demo.yaml:6",
        "tasks.0.training.learning_rate": "demo.yaml:8",
        "tasks.1.data": "demo.yaml:10",
        "tasks.1.reward": "default",
        "training.learning_rate": "demo.yaml:12",
        "training.max_steps": "demo.yaml:13",
        "seed": "command line",
        "evaluation.batch_tokens": "default",
    }
    assert {path: origins[path] for path in expected} == expected


def test_the_digest_covers_all_but_the_output_folder(resolved: Load) -> None:
    digest = resolved().digest
    assert len(digest) == 64
    assert resolved(overrides=["output_dir=elsewhere"]).digest == digest
    assert resolved(overrides=["rounds=1", "training.max_steps=4e1"]).digest == digest
    assert resolved(overrides=["training.learning_rate=1.1e-5"]).digest != digest


# --- paths ----------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """here/ (the working directory) and there/ (where the file lies), both with rows.jsonl, and here/only.jsonl."""
    for name in ("here/rows.jsonl", "there/rows.jsonl", "here/only.jsonl", "there/model/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def data_of(folders: Path, resolved: Load, data: str, *overrides: str) -> str:
    """What becomes of ``data`` in there/demo.yaml, relative to the test's folder."""
    file = folders / "there" / "demo.yaml"
    file.write_text(SHORT.replace("countdown", f"[{{name: a, data: {data!r}}}]"), encoding="utf-8")
    config = resolved(file, overrides).config
    assert isinstance(config.tasks, tuple)
    return config.tasks[0].data.removeprefix(f"{folders.as_posix()}/")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ("rows.jsonl", "there/rows.jsonl"),
        ("./rows.jsonl", "there/rows.jsonl"),
        ("only.jsonl", "here/only.jsonl"),
        ("model", "there/model"),
        ("org/name", "org/name"),
        ("gsm8k", "gsm8k"),
        ("my_rows:load", "my_rows:load"),
    ],
)
def test_data_is_looked_for_beside_the_file_then_here(folders: Path, resolved: Load, data: str, found: str) -> None:
    assert data_of(folders, resolved, data) == found


def test_data_on_the_command_line_is_looked_for_here_first(folders: Path, resolved: Load) -> None:
    assert data_of(folders, resolved, "gsm8k", "tasks.a.data=rows.jsonl") == "here/rows.jsonl"


def test_a_resolved_configuration_means_the_same_from_anywhere(
    folders: Path, resolved: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folders / "there" / "demo.yaml"
    file.write_text(SHORT.replace("countdown", "[{name: a, data: rows.jsonl}]"), encoding="utf-8")
    before = resolved(file)
    monkeypatch.chdir(folders)
    (folders / "config.yaml").write_text(before.text, encoding="utf-8")
    assert resolved(folders / "config.yaml").config == before.config


def test_a_model_of_one_word_is_a_name_even_beside_such_a_folder(folders: Path, resolved: Load) -> None:
    file = folders / "there" / "demo.yaml"
    for given, expected in [("model", "model"), ("./model", (folders / "there" / "model").as_posix())]:
        file.write_text(SHORT.replace("tiny", given), encoding="utf-8")
        assert resolved(file).config.model.name_or_path == expected


def test_errors_of_a_file_name_it_as_given(folders: Path, resolved: Load) -> None:
    Path("bad.yaml").write_text(SHORT + "sed: 3\n", encoding="utf-8")
    with pytest.raises(ConfigErrors, match=r"^bad\.yaml:5: sed: unknown key"):
        resolved("bad.yaml")


@pytest.mark.parametrize(
    ("content", "what"), [(None, "there is no such configuration file"), (b"\xff\xfe", "this file is not UTF-8 text")]
)
def test_a_file_that_cannot_be_read(tmp_path: Path, resolved: Load, content: bytes | None, what: str) -> None:
    file = tmp_path / "demo.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigErrors) as caught:
        resolved(file)
    assert [(error.where, error.what) for error in caught.value.errors] == [(str(file), what)]


def test_a_home_folder_is_spelled_out(resolved: Load) -> None:
    assert resolved(overrides=["output_dir=~/runs"]).config.output_dir == (Path.home() / "runs").as_posix()


# --- notes ----------------------------------------------------------------------------------------------


def test_a_task_that_keeps_its_own_value_against_the_command_line_is_noted(resolved: Load) -> None:
    assert resolved().notes == ()
    (note,) = resolved(overrides=["training.learning_rate=1e-3"]).notes
    assert note == (
        "task plus keeps its own learning_rate = 2e-05 (demo.yaml:8); "
        "override tasks.plus.training.learning_rate to change it"
    )
    assert resolved(overrides=["training.learning_rate=1e-3", "tasks.plus.learning_rate=1e-3"]).notes == ()


def test_settings_of_an_adapter_that_is_not_used_are_noted(resolved: Load) -> None:
    (note,) = resolved(overrides=["model.lora_r=8"]).notes
    assert note == "model.lora_r: no effect, because model.use_peft is false"
    assert resolved(overrides=["model.lora_r=8", "model.use_peft=yes"]).notes == ()


def test_a_plugin_of_your_own_needs_no_registration() -> None:
    """``resolve`` alone decides what a name is; the fields are read from what it returns."""

    class Mine:
        def __init__(self, strength: float = 2.0) -> None:
            self.strength = strength

    text = SHORT + "strategies: [{name: 'my_module:Mine', strength: 1e-1}]\n"
    config = load(text, resolve=lambda kind, name: Mine if name == "my_module:Mine" else lambda: None).config
    assert config.strategies == (PluginConfig("my_module:Mine", {"strength": 0.1}),)
