"""Folders are whole or absent, whatever kills the process; state comes back to the bit and without pickles of ours."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toys import Setup, identical, make_engine, policy, sft_rows, weights, with_lora

from contrl import faults
from contrl.engine import checkpoint
from contrl.engine.checkpoint import (
    STAGING,
    discard_staging,
    load_state,
    newest_checkpoint,
    publish,
    save_state,
    whole_folder,
)
from contrl.methods.rloo import RLOO
from contrl.methods.sft import SFT
from contrl.strategies.replay import Replay

EVERY = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-3}


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm("saving", 0)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- whole_folder and publish ---------------------------------------------------------------------------------


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "final"
    with whole_folder(target) as staging:
        (staging / "a").write_text("1", encoding="utf-8")
        assert not target.exists()
        assert newest_checkpoint(tmp_path) is None
    assert names(tmp_path) == {"final"}
    assert (target / "a").read_text(encoding="utf-8") == "1"


def write(target: Path, name: str, kill: str = "") -> None:
    """Write a folder of one file, and be killed before the end of the block or just after it."""
    faults.arm("saving", 1 if kill == "before the rename" else 0)
    with whole_folder(target) as staging:
        (staging / name).write_text(name, encoding="utf-8")
        if kill == "in the block":
            raise KeyboardInterrupt


@pytest.mark.parametrize("kill", ["in the block", "before the rename"])
def test_a_kill_leaves_the_folder_that_was_there(kill: str, tmp_path: Path) -> None:
    target = tmp_path / "final"
    write(target, "old")
    with pytest.raises((faults.Killed, KeyboardInterrupt)):
        write(target, "new", kill)
    assert names(target) == {"old"}
    write(target, "newer")  # what the crash left is not mixed in
    assert names(target) == {"newer"}
    assert names(tmp_path) == {"final"}


def test_a_kill_between_the_two_renames_loses_no_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replacing a folder takes two renames; whatever stands between them has a name that is never read."""
    for name in ("checkpoint-1", "checkpoint-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name, encoding="utf-8")
    staging = tmp_path / f"{STAGING}checkpoint-2"
    staging.mkdir()
    rename = Path.rename

    def killed_at_the_second(self: Path, target: Path) -> Path:
        if self == staging:
            raise faults.Killed("rename")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed_at_the_second)
    with pytest.raises(faults.Killed):
        publish(staging, tmp_path / "checkpoint-2")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    discard_staging(tmp_path)
    assert names(tmp_path) == {"checkpoint-1"}


def test_everything_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is flushed before the rename, the parent folder after it."""
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noted_rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    with whole_folder(tmp_path / "final") as staging:
        (staging / "deep").mkdir()
        (staging / "deep" / "a").write_text("1", encoding="utf-8")
        (staging / "b").write_text("2", encoding="utf-8")
    before, after = events[: events.index("rename")], events[events.index("rename") :]
    assert {"a", "b", "deep", f"{STAGING}final"} <= set(before)
    assert tmp_path.name in after


def test_the_newest_checkpoint_is_the_highest_number(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-100x", f"{STAGING}checkpoint-11", "final"):
        (tmp_path / name).mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


# --- state ------------------------------------------------------------------------------------------------------


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def states() -> dict[str, dict[str, Any]]:
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    return {
        "empty": {},
        "values": {"a": 1, "b": [1.5, None, "x", True], "c": {"d": {}, "e": []}, "f": math.inf, "g": 1 / 3},
        "tensors": {"w": weight, "deep": {"list": [weight * 2, {"x": torch.tensor(1.0)}]}, "none": torch.empty(0, 3)},
        "types": {
            name: weight.to(dtype)
            for name, dtype in {
                "bf16": torch.bfloat16,
                "f16": torch.float16,
                "f64": torch.float64,
                "i": torch.int64,
            }.items()
        }
        | {"flags": weight > 0},
        "shared": {"w": weight, "same": weight, "view": weight[1:], "transposed": weight.T, "row": weight[:, 0]},
        "slashes": {"a/b": weight, "a": {"b": weight + 1}, "": weight + 2},
    }


@pytest.mark.parametrize("name", sorted(states()))
def test_state_comes_back_to_the_bit(name: str, tmp_path: Path) -> None:
    state = states()[name]
    save_state(tmp_path, "state", state)
    loaded = load_state(tmp_path, "state")
    assert loaded is not None
    assert same(state, loaded)


def test_loaded_tensors_are_independent(tmp_path: Path) -> None:
    """Tensors that shared memory are saved apart: changing one afterwards changes no other."""
    save_state(tmp_path, "state", states()["shared"])
    loaded = load_state(tmp_path, "state")
    assert loaded is not None
    before = loaded["same"].clone()
    loaded["w"].zero_()
    assert torch.equal(loaded["same"], before)


def test_parameters_are_saved_as_plain_tensors(tmp_path: Path) -> None:
    save_state(tmp_path, "state", {"w": torch.nn.Parameter(torch.ones(2))})
    loaded = load_state(tmp_path, "state")
    assert loaded is not None
    assert not loaded["w"].requires_grad


def test_no_state_is_none_and_an_empty_one_is_empty(tmp_path: Path) -> None:
    assert load_state(tmp_path, "state") is None
    save_state(tmp_path, "state", {})
    assert load_state(tmp_path, "state") == {}
    assert names(tmp_path) == {"state.json"}


def test_what_json_cannot_hold_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    """Not hours later, when it would come back as something else."""
    with pytest.raises(TypeError):
        save_state(tmp_path, "state", {"a": object()})
    with pytest.raises(TypeError, match="string"):
        save_state(tmp_path, "state", {"a": {1: 2.0}})


# --- the engine's checkpoints -------------------------------------------------------------------------------------


def trained(folder: Path, model: Any, method: Any = None, **training: Any) -> Any:
    setup = Setup(method or SFT(), sft_rows(12), prompts_per_step=4, num_steps=3, training=EVERY | training)
    engine = make_engine(model, folder, setup)
    engine.fit()
    return engine


def test_a_checkpoint_is_whole_and_holds_no_pickle_of_ours(tmp_path: Path) -> None:
    """Weights and our state in safetensors and JSON; Trainer's own files load as weights only."""
    method = RLOO(samples_per_prompt=2, max_new_tokens=3, num_epochs=2)
    model = policy()
    trained(tmp_path, model, method)
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}
    folder = tmp_path / "checkpoint-3"
    assert "training_args.bin" not in names(folder)
    assert {"model.safetensors", "contrl_state.json", "window-0.json", "config.json", "tokenizer.json"} <= names(folder)
    pickled = {name for name in names(folder) if name.endswith((".bin", ".pt", ".pth", ".pkl"))}
    assert pickled == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    assert torch.load(folder / "scheduler.pt", weights_only=True)["last_epoch"] == 3
    saved = load_file(folder / "model.safetensors")
    assert identical({name: saved[name] for name in weights(model)}, weights(model))
    again = type(model).from_pretrained(folder)
    assert identical(weights(again), weights(model))


def test_an_adapters_checkpoint_is_safetensors_too(tmp_path: Path) -> None:
    trained(tmp_path, with_lora(policy()))
    found = names(tmp_path / "checkpoint-3")
    assert {"adapter_model.safetensors", "adapter_config.json"} <= found
    assert not {name for name in found if name.endswith(".bin")}


@pytest.mark.parametrize("visit", [1, 2, 3])
def test_a_kill_while_saving_leaves_only_whole_checkpoints(visit: int, tmp_path: Path) -> None:
    """Killed in the visit-th save: the older ones are intact, the new one is absent, the next run continues."""
    model = policy()
    faults.arm("saving", visit)
    with pytest.raises(faults.Killed):
        trained(tmp_path, model)
    whole = {f"checkpoint-{i}" for i in range(1, visit)}
    assert {name for name in names(tmp_path) if not name.startswith(STAGING)} == whole
    newest = newest_checkpoint(tmp_path)
    assert (newest.name if newest else None) == (f"checkpoint-{visit - 1}" if visit > 1 else None)
    for name in whole:
        assert load_state(tmp_path / name, "contrl_state") is not None
        assert (tmp_path / name / "trainer_state.json").stat().st_size > 0
    discard_staging(tmp_path)
    assert names(tmp_path) == whole
    assert "forward" not in model.__dict__


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    engine = trained(tmp_path, policy())
    (tmp_path / "checkpoint-3" / "stray").write_text("x", encoding="utf-8")
    engine._save_checkpoint(engine.model, None)
    assert "stray" not in names(tmp_path / "checkpoint-3")
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}


def test_strategy_state_and_token_count_are_restored(tmp_path: Path) -> None:
    replay = Replay()
    replay.memory = {"earlier": ["3", "1"]}
    setup = Setup(SFT(), sft_rows(8), replay, sft_rows(4), prompts_per_step=4, training=EVERY)
    engine = make_engine(policy(), tmp_path, setup)
    engine.fit()
    fresh = make_engine(
        policy(seed=1), tmp_path, Setup(SFT(), sft_rows(8), Replay(), prompts_per_step=4, training=EVERY)
    )
    fresh.restore(tmp_path / "checkpoint-2")
    assert fresh.work.strategy.state_dict() == replay.state_dict()
    assert fresh.num_tokens == engine.num_tokens > 0


def test_the_module_pickles_nothing() -> None:
    used: set[Callable[..., Any]] = {value for value in vars(checkpoint).values() if callable(value)}
    assert torch.save not in used
    assert not hasattr(checkpoint, "pickle")
