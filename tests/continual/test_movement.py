"""Drift and weight change as results.json tells them: by hand, and null where a part is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contrl.continual import results
from contrl.continual.movement import drift, layer_of, weight_change


def make_run(folder: Path, stages: list[str], **logs: list[dict[str, Any]]) -> results.Results:
    tasks = sorted({name for stage in stages for name in stage.split("+")})
    planned = [{"stage": k, "task": stage, "tasks": stage.split("+")} for k, stage in enumerate(stages, 1)]
    run = {"schema_version": 1, "status": "finished", "sequence": tasks, "stages": planned}
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    for name, records in logs.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return results.read(folder)


def kl(stage: int, task: str, value: float | None, se: float | None = 0.03) -> dict[str, Any]:
    return {"stage": stage, "task": task, "kl": value, "kl_sequence": value and 10 * value, "n": 4, "se": se}


def test_new_and_old_prompts_by_hand(tmp_path: Path) -> None:
    """Stage 2 trains b and c: new is their mean 0.5 with half an interval of 1.96 sqrt(2 · 0.03²) / 2, old is a's.
    Stage 3 trains a again: what was trained before and not now is old."""
    records = [kl(2, "a", 0.1), kl(2, "b", 0.4), kl(2, "c", 0.6), kl(3, "a", 0.2), kl(3, "b", 0.7), kl(3, "c", 0.9)]
    run = make_run(tmp_path, ["a", "b+c", "a"], drift=[kl(1, "a", 0.3), kl(1, "b", 0.2), *records])
    first, second, third = drift(run)["stages"]
    assert (first["new"]["kl"], first["old"]["kl"]) == (0.3, None)
    assert (second["new"]["kl"], second["old"]["kl"]) == (0.5, 0.1)
    assert second["new"]["kl_sequence"] == 5.0
    assert second["new"]["high"] - 0.5 == pytest.approx(1.959964 * 0.03 / 2**0.5)
    assert (third["new"]["kl"], third["old"]["kl"], third["old"]["n"]) == (0.2, pytest.approx(0.8), 8)


def test_a_missing_drift_is_null(tmp_path: Path) -> None:
    """b was not measured after stage 2, a has no error after it; a run before there was drift has no file at all."""
    run = make_run(tmp_path, ["a", "b"], drift=[kl(1, "a", None), kl(2, "a", 0.2, None)])
    first, second = drift(run)["stages"]
    assert first["new"] == second["new"] == dict.fromkeys(("kl", "low", "high", "kl_sequence", "n"))
    assert (second["old"]["kl"], second["old"]["low"]) == (0.2, None)
    (tmp_path / "drift.jsonl").unlink()
    assert all(stage["old"]["kl"] is None for stage in drift(results.read(tmp_path))["stages"])


def weight(tensor: str, from_start: float | None, norm: float | None, **more: Any) -> dict[str, Any]:
    changes = {"from_start": from_start, "start_norm": norm, "from_base": from_start, "base_norm": norm}
    return {"stage": 1, "tensor": tensor, "norm": 1.0, **changes, **more}


def test_both_formulas_by_hand(tmp_path: Path) -> None:
    """Changes 1, 2, 3 of norms 2, 8, 0: sums 6/10, ratios 1/2 and 1/4; the tensor that was 0 has no ratio."""
    records = [
        weight("model.layers.0.q.weight", 1.0, 2.0),
        weight("model.layers.0.q.bias", 3.0, 0.0),
        weight("model.embed_tokens.weight", 2.0, 8.0),
    ]
    told = weight_change(make_run(tmp_path, ["a"], weights=records))
    (stage,) = told["stages"]
    assert stage["start"] == stage["base"] == {"sum_of_norms": 0.6, "mean_of_ratios": 0.375, "n": 3}
    assert stage["layers"]["layer 0"]["start"] == {"sum_of_norms": 2.0, "mean_of_ratios": 0.5, "n": 2}
    assert stage["layers"]["embed_tokens"]["base"]["sum_of_norms"] == 0.25
    assert stage["tensors"]["model.layers.0.q.bias"] == {"start": None, "base": None}
    assert stage["tensors"]["model.layers.0.q.weight"]["start"] == 0.5
    assert told["measured"] == "all saved tensors"
    assert json.loads(results.write(tmp_path).read_text(encoding="utf-8"))["weight_change"] == told


def test_a_missing_tensor_makes_the_sums_null(tmp_path: Path) -> None:
    """As logs written before the norms were recorded: nothing is guessed."""
    run = make_run(tmp_path, ["a"], weights=[weight("a", 1.0, 2.0), weight("b", 1.0, None)])
    assert weight_change(run)["stages"][0]["start"] == {"sum_of_norms": None, "mean_of_ratios": None, "n": 1}
    old = [{"stage": 1, "tensor": "a", "norm": 1.0, "from_start": 1.0, "from_base": 1.0}]
    (tmp_path / "weights.jsonl").write_text(json.dumps(old[0]) + "\n", encoding="utf-8")
    assert weight_change(results.read(tmp_path))["stages"][0]["base"]["sum_of_norms"] is None


def test_of_an_adapter_the_weights_under_it_count(tmp_path: Path) -> None:
    factors = [weight(f"x.lora_{side}.weight", 5.0, 1.0, kind="adapter") for side in "AB"]
    told = weight_change(make_run(tmp_path, ["a"], weights=[*factors, weight("x.weight", 1.0, 4.0, kind="effective")]))
    assert told["measured"] == "the weights under the adapter, changed by s B A"
    assert told["stages"][0]["start"] == {"sum_of_norms": 0.25, "mean_of_ratios": 0.25, "n": 1}
    dora = weight_change(make_run(tmp_path, ["a"], weights=factors))
    assert dora["measured"].startswith("the adapter's own tensors")
    assert dora["stages"][0]["start"]["sum_of_norms"] == 5.0


def test_layers_by_the_names_that_models_use() -> None:
    names = {
        "model.layers.11.mlp.up_proj.weight": "layer 11",
        "transformer.h.3.attn.c_attn.weight": "layer 3",
        "gpt_neox.layers.0.attention.dense.bias": "layer 0",
        "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight": "layer 2",
        "lm_head.weight": "lm_head",
        "model.norm.weight": "norm",
        "score": "score",
    }
    assert {name: layer_of(name) for name in names} == names
