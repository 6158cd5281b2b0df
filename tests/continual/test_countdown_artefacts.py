"""Artefacts of a real run of two rounds: models as links, steps as recorded, nothing invented, nobody's overwritten."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from contrl.continual import countdown_artefacts
from contrl.continual.countdown_artefacts import Places, export, line
from contrl.data.countdown import CountdownConfig, write
from contrl.errors import UserError
from tests import runs as small
from tests.runs import Runs

world = small.world

GROUPS = ("plus", "plus_minus")
PPO = {"name": "ppo", "max_new_tokens": 6, "num_minibatches": 2, "num_epochs": 1}


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two groups, two rounds, PPO; every second step begins a window and has rollouts to tell of. Read only."""
    place = tmp_path_factory.mktemp("countdown")
    data = CountdownConfig(GROUPS, 8, 2, (3,), 20, (5, 50), template="compact")
    write(data, place / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTRL_CACHE", str(place / "cache"))
        runs = Runs(world, place)
        tasks = [{"name": name, "data": str(place / "data" / name), "reward": "countdown"} for name in GROUPS]
        training = {"max_steps": 2, "save_steps": 100}
        return runs("run", tasks=tasks, rounds=2, method=PPO, prompts_per_step=2, training=training)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "metrics", tmp_path / "logs")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def recorded(run: Path) -> dict[tuple[int, int, str], float | None]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for text in lines if "name" in (record := json.loads(text))]
    return {(r["stage"], r["step"], r["name"]): r["value"] for r in records}


def test_models_pass_from_stage_to_stage(run: Path, places: Places) -> None:
    export(run, places)
    order = [f"{r}_{g}" for r in (1, 2) for g in GROUPS]
    assert sorted(p.name for p in places.metrics.iterdir() if p.is_dir()) == sorted(
        f"{state}_{name}" for state in ("initial", "final") for name in order
    )
    before = run.parents[0]
    for index, name in enumerate(order):
        initial, final = (places.metrics / f"{state}_{name}" for state in ("initial", "final"))
        a, b = weights(initial), weights(final)
        assert any(not torch.equal(a[tensor], b[tensor]) for tensor in a)
        if index:
            assert os.path.samefile(initial / "model.safetensors", before / "model.safetensors")
        before = final
        assert os.path.samefile(
            final / "model.safetensors", run / "stages" / f"{index + 1}-{name[2:]}" / "final" / "model.safetensors"
        )
    first = json.loads((run / "run.json").read_text(encoding="utf-8"))["model"]
    assert os.path.samefile(places.metrics / "initial_1_plus" / "model.safetensors", Path(first) / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(places.metrics / "final_2_plus_minus")
    torch.testing.assert_close(dict(model.named_parameters())["model.norm.weight"], b["model.norm.weight"])


def test_steps_are_those_of_the_records(run: Path, places: Places) -> None:
    """A window's rollouts are recorded on its first step; the second one has none, and says null."""
    steps = export(run, places)
    known = recorded(run)
    assert json.loads(places.consolidated.read_text(encoding="utf-8")) == steps
    assert [(s["round"], s["group"], s["step"]) for s in steps] == [
        (r, g, step) for r in (1, 2) for g in GROUPS for step in (1, 2)
    ]
    names = {
        "success_rate": "verifier/success",
        "avg_loss": "loss/policy_avg",
        "avg_grad_norm": "grad_norm",
        "avg_response_length": "completions/mean_length",
    }
    for step in steps:
        stage = 2 * (step["round"] - 1) + GROUPS.index(step["group"]) + 1
        assert {key: step[key] for key in names} == {
            key: known.get((stage, step["step"], name)) for key, name in names.items()
        }
        assert (step["success_rate"] is None) == (step["step"] % 2 == 0)
        assert isinstance(step["avg_grad_norm"], float)
    one = json.loads((places.metrics / "metrics_2_plus_0.5b.json").read_text(encoding="utf-8"))
    assert one == [step for step in steps if (step["round"], step["group"]) == (2, "plus")]


def test_weight_change_is_that_of_the_two_states(run: Path, places: Places) -> None:
    steps = export(run, places)
    for name in ("1_plus", "2_plus_minus"):
        a, b = (weights(places.metrics / f"{state}_{name}") for state in ("initial", "final"))
        by_hand = sum(float((b[t] - a[t]).norm()) for t in a) / sum(float(a[t].norm()) for t in a)
        found = [s["weight_change"] for s in steps if f"{s['round']}_{s['group']}" == name]
        assert found == [pytest.approx(by_hand, rel=1e-5)] * 2
        assert by_hand > 0
    assert "initial and final of this stage" in steps[0]["weight_change_definition"]


def test_log_lines_leave_out_what_is_missing(run: Path, places: Places) -> None:
    steps = export(run, places)
    lines = (places.logs / "ContinualCountdown_R1_plus.log").read_text(encoding="utf-8").splitlines()
    assert lines == [line(step) for step in steps[:2]]
    assert [text.split(":")[0] for text in lines[0].split(" - ")] == [
        "step",
        "success_rate",
        "loss",
        "grad_norm",
        "response_length",
    ]
    assert lines[0].startswith("step:1 - success_rate:")
    assert "success_rate" not in lines[1]
    assert "nan" not in "".join(lines).lower()


def test_sizes_share_no_name(run: Path, places: Places) -> None:
    export(run, places)
    small_ones = {path for path in places.metrics.parent.rglob("*") if path.is_file()}
    before = {path: path.read_bytes() for path in small_ones if path.suffix in (".json", ".log")}
    larger = Places(places.metrics, places.logs, "1.5b")
    export(run, larger)
    assert {path: path.read_bytes() for path in before} == before
    assert (places.logs / "ContinualCountdown1.5B_R2_plus_minus.log").exists()
    assert (places.metrics / "consolidated_metrics_1.5b.json").exists()
    assert (places.metrics / "final_2_plus_1.5b" / "config.json").exists()
    with pytest.raises(UserError, match="cannot be part of a file name"):
        Places(places.metrics, places.logs, "../0.5b")


def test_another_runs_artefacts_stay_until_asked_to_go(run: Path, places: Places, tmp_path: Path) -> None:
    export(run, places)
    export(run, places)  # the same run: renewed
    other = Path(shutil.copytree(run, tmp_path / "other"))
    manifest = json.loads((other / "run.json").read_text(encoding="utf-8"))
    manifest |= {"created": "later", "stages": manifest["stages"][:2]}
    (other / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match=r"another run of size 0\.5b"):
        export(other, places)
    assert (places.metrics / "final_2_plus").exists()
    export(other, places, overwrite=True)
    assert not [path.name for path in places.metrics.parent.rglob("*") if "_2_" in path.name or "R2" in path.name]


def test_an_unfinished_run_is_exported_as_far_as_it_is(run: Path, places: Places, tmp_path: Path) -> None:
    part = Path(shutil.copytree(run, tmp_path / "part"))
    shutil.rmtree(part / "stages" / "2-plus_minus")
    for name, last in (("journal.jsonl", 2), ("weights.jsonl", 1), ("metrics.jsonl", 2)):
        records = [json.loads(text) for text in (part / name).read_text(encoding="utf-8").splitlines()]
        kept = [json.dumps(record) + "\n" for record in records if record["stage"] <= last]
        (part / name).write_text("".join(kept), encoding="utf-8")
    said: list[str] = []
    steps = export(part, places, say=said.append)
    assert said == ["round 1, plus_minus: the final weights are not there (yet)"]
    assert {s["weight_change"] for s in steps if s["group"] == "plus_minus"} == {None}
    assert (places.metrics / "initial_1_plus_minus" / "config.json").exists()
    assert not list(places.metrics.glob("*_2_*"))
    (part / "journal.jsonl").unlink()
    with pytest.raises(UserError, match="has begun no stage"):
        export(part, places)
    with pytest.raises(UserError, match="not a run folder"):
        export(tmp_path, places)


def test_where_no_hard_link_reaches_a_relative_one_does(
    run: Path, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As between two mounts of a container: models load, and the links hold when both folders are moved together."""

    def refused(*names: Any) -> None:
        raise OSError(errno.EXDEV, "another file system")

    copied = Path(shutil.copytree(run, tmp_path / "models" / "run"))
    monkeypatch.setattr(countdown_artefacts.os, "link", refused)
    export(copied, places)
    shutil.move(tmp_path / "models", tmp_path / "moved" / "models")
    shutil.move(places.metrics, tmp_path / "moved" / "metrics")
    final = tmp_path / "moved" / "metrics" / "final_1_plus"
    assert (final / "model.safetensors").is_symlink()
    assert AutoModelForCausalLM.from_pretrained(final).config.hidden_size == 32
