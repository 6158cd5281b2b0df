"""What a reader sees of a configuration: its lines with their origins, and what changed since."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from contrl.config import Resolved, difference, show
from contrl.config.show import flatten, to_plain
from contrl.errors import UserError

Load = Callable[..., Resolved]


def test_every_value_is_shown_with_its_origin(resolved: Load) -> None:
    """One line a value, aligned: the origins begin in one column."""
    found = resolved(overrides=["seed=7", "model.lora_target_modules=q_proj,v_proj", "model.use_peft=yes"])
    lines = show(found).splitlines()
    assert len(lines) == len(found.origins)
    assert "output_dir                     = runs/mine         demo.yaml:1" in lines
    assert "model.lora_target_modules      = [q_proj, v_proj]  command line" in lines
    assert "tasks.0.training.learning_rate = 2e-05             demo.yaml:8" in lines
    assert "seed                           = 7                 command line" in lines
    assert "rounds                         = 1                 default" in lines


def test_notes_come_last(resolved: Load) -> None:
    assert show(resolved(overrides=["model.lora_r=8"])).splitlines()[-1].startswith("note: model.lora_r: no effect")


def test_origins_cover_exactly_what_is_shown(resolved: Load) -> None:
    found = resolved(overrides=["training.lr_scheduler_kwargs={a: {b: 1}, c: [1, [2]]}"])
    assert found.origins.keys() == flatten(to_plain(found.config)).keys()
    assert found.origins["training.lr_scheduler_kwargs.a.b"] == "command line"
    assert found.origins["training.lr_scheduler_kwargs.c.1"] == "command line"


def test_a_long_list_does_not_push_the_origins_away(resolved: Load) -> None:
    names = ",".join(f"module_{number}" for number in range(20))
    lines = show(resolved(overrides=["model.use_peft=yes", f"model.lora_target_modules=[{names}]"])).splitlines()
    assert sorted(map(len, lines))[-2] < 100


def test_difference_names_what_changed(resolved: Load) -> None:
    before = resolved(overrides=["training.learning_rate=1e-4"])
    after = resolved(overrides=["training.learning_rate=1e-3", "output_dir=other", "training.warmup_steps=5"])
    expected = ["training.learning_rate: 0.0001 -> 0.001", "training.warmup_steps: (not set) -> 5.0"]
    assert difference(before.config, after.config) == expected
    assert difference(before.text, after.config) == expected
    assert difference(after.text, before.text) == [
        "training.learning_rate: 0.001 -> 0.0001",
        "training.warmup_steps: 5.0 -> (not set)",
    ]


def test_a_removed_task_and_a_changed_list_are_differences(resolved: Load) -> None:
    before = resolved(overrides=["method.loss_type=a,b"])
    after = resolved(overrides=["tasks=[{name: plus, data: hub/plus, learning_rate: 2e-5}]"])
    found = difference(before.config, after.config)
    assert "method.loss_type: [a, b] -> [sigmoid]" in found
    assert "tasks.1.name: minus -> (not set)" in found
    assert not [line for line in found if line.startswith("tasks.0")]


def test_text_that_looks_like_nothing_differs_from_nothing(resolved: Load) -> None:
    before = resolved(overrides=["model.revision=null"])
    after = resolved(overrides=["model.revision='null'"])
    assert difference(before.config, after.config) == ['model.revision: null -> "null"']


@pytest.mark.parametrize(
    "overrides", [[], ["output_dir=x"], ["seed=1"], ["method.beta=1e-9"], ["evaluation.at_start=no"]]
)
def test_digests_are_equal_exactly_when_nothing_differs(resolved: Load, overrides: list[str]) -> None:
    before, after = resolved(), resolved(overrides=overrides)
    assert (before.digest == after.digest) == (difference(before.config, after.config) == [])
    assert (before.digest == after.digest) == (not overrides or overrides == ["output_dir=x"])


def test_a_broken_text_cannot_be_compared(resolved: Load) -> None:
    with pytest.raises(UserError, match=r"^config\.yaml:2: this is not a resolved configuration"):
        difference("a: 1\na: 2\n", resolved().config)
