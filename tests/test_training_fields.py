"""The generated table of training arguments against the transformers that is installed."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest

from contrl.config.training import OWNED, training_arguments
from contrl.training_fields import TRAINING_FIELDS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """scripts/generate_training_fields.py as a module."""
    spec = importlib.util.spec_from_file_location("generator", ROOT / "scripts" / "generate_training_fields.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_that_of_the_installed_transformers(generator: ModuleType) -> None:
    """Fails after an upgrade that changed a field; then run `python scripts/generate_training_fields.py`."""
    assert generator.table() == TRAINING_FIELDS


def test_the_file_is_what_the_script_writes(generator: ModuleType) -> None:
    """No hand has changed it: rendering its own table gives the file, whatever version its first lines name."""
    text = (ROOT / "src" / "contrl" / "training_fields.py").read_text(encoding="utf-8")
    version = re.search(r"from transformers (\S+)", text)
    assert version is not None
    assert generator.render(TRAINING_FIELDS, version[1]) == text


def test_every_type_and_default_can_be_read() -> None:
    for name, (_, default, _) in TRAINING_FIELDS.items():
        parameter = training_arguments().get(name)
        assert (parameter is None) == (name in OWNED), name
        if parameter is not None:
            assert parameter.default == ast.literal_eval(default)


def test_arguments_decided_elsewhere_exist_or_are_old_names() -> None:
    """A name that transformers dropped or brought back must be noticed here."""
    assert {name for name in OWNED if name not in TRAINING_FIELDS} == {
        "warmup_ratio",
        "evaluation_strategy",
        "group_by_length",
        "no_cuda",
        "logging_dir",
        "overwrite_output_dir",
    }


@pytest.mark.parametrize(
    ("name", "annotation"),
    [
        ("learning_rate", float),
        ("max_steps", int),
        ("bf16", bool),
        ("run_name", str | None),
        ("logging_strategy", Literal["no", "steps", "epoch"]),
        ("report_to", str | list[str]),
        ("lr_scheduler_kwargs", dict | str | None),
        ("fsdp", bool | str | None),
        ("trackio_static_space_id", str | None | Literal[False]),
    ],
)
def test_types(name: str, annotation: object) -> None:
    assert training_arguments()[name].annotation == annotation


def test_the_first_sentence(generator: ModuleType) -> None:
    assert generator.first_sentence("Cuts 20%% of\nmemory. More text.") == "Cuts 20% of memory."
    assert generator.first_sentence("No stop") == "No stop"


def test_typed_values_build_the_training_arguments(tmp_path: Path) -> None:
    """What the table lets through, transformers takes: one value of each type, as the configuration types it."""
    from transformers import TrainingArguments

    from contrl.config import load

    text = (
        "output_dir: o\nmodel: tiny\nmethod: m\ntasks: t\n"
        "training: {learning_rate: 1e-5, max_steps: 1e1, lr_scheduler_type: cosine_with_min_lr, report_to: none,\n"
        "  lr_scheduler_kwargs: {min_lr: 1e-6}, warmup_steps: 0.1, use_cpu: yes, logging_steps: 5, save_strategy: no,\n"
        "  include_num_input_tokens_seen: no, optim: adamw_torch}\n"
    )
    training = load(text, resolve=lambda kind, name: lambda: None).config.training
    arguments = TrainingArguments(output_dir=str(tmp_path), **training)
    assert (arguments.learning_rate, arguments.max_steps, arguments.logging_steps) == (1e-5, 10, 5)
    assert arguments.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert (arguments.report_to, arguments.include_num_input_tokens_seen) == ([], "no")
    assert arguments.get_warmup_steps(10) == 1
