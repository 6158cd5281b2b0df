"""Methods that couple the rows of a step: no split into passes or accumulation steps changes what they learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from toys import Setup, build, make_engine, sft_rows

from contrl.engine.coupling import gather
from contrl.interfaces import Batch, LossOutput, Outputs
from contrl.methods.sft import SFT


@dataclasses.dataclass(frozen=True)
class Centred(SFT):
    """Each completion's likelihood, weighted by its distance from the step's mean; a running mean is remembered."""

    couples: ClassVar[Literal["group", "step"]] = "step"
    seen: ClassVar[list[dict[str, float]]] = []

    def observe(self, out: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
        assert not out.logps.requires_grad
        return {"logps": out.logps.sum(-1)}

    def settle(self, values: Mapping[str, torch.Tensor], memory: dict[str, float]) -> dict[str, torch.Tensor]:
        mean = values["logps"].mean()
        memory["mean"] = 0.5 * memory.get("mean", 0.0) + 0.5 * float(mean)
        self.seen.append({"rows": float(len(values["logps"])), "memory": memory["mean"]})
        return {"mean": mean}

    def loss(self, out: Outputs, batch: Batch) -> LossOutput:
        away = out.logps.sum(-1).detach().double() - batch.statistics["mean"]
        return LossOutput({"nll": -(out.logps.sum(-1) * away.to(out.logps)).sum()})


def weights(folder: Path, tokens: int = 10**6, accumulation: int = 1, evaluates: bool = False) -> dict[str, Any]:
    model = build("llama", vocab_size=103)
    training = {"gradient_accumulation_steps": accumulation, "learning_rate": 1e-3, "optim": "sgd"}
    setup = Setup(Centred(), sft_rows(21), tokens_per_pass=tokens, training=training)
    engine = make_engine(model, folder, setup)
    if evaluates:
        engine.work.eval_groups = engine.work.groups[:5]
        engine.evaluate()
    engine.fit()
    return {name: value.clone() for name, value in model.state_dict().items()} | {"memory": engine.memory["mean"]}


def test_the_statistics_are_of_the_whole_step(tmp_path: Path) -> None:
    """21 rows in steps of 8: 8, 8 and 5 values, whatever the passes; weights equal within 1e-6."""
    Centred.seen.clear()
    whole = weights(tmp_path / "whole")
    assert [entry["rows"] for entry in Centred.seen] == [8, 8, 5]
    for other in (weights(tmp_path / "cut", tokens=30), weights(tmp_path / "accumulated", accumulation=4)):
        for name, value in whole.items():
            torch.testing.assert_close(torch.as_tensor(other[name]), torch.as_tensor(value), rtol=1e-5, atol=1e-6)


def test_evaluation_changes_no_memory(tmp_path: Path) -> None:
    plain, judged = weights(tmp_path / "plain"), weights(tmp_path / "judged", evaluates=True)
    assert plain["memory"] == judged["memory"]


def test_gathering_alone_is_joining() -> None:
    joined = gather({"a": [torch.tensor([1.0]), torch.tensor([2.0, 3.0])]}, 1, torch.device("cpu"))
    assert joined["a"].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("tokens", [10**6, 25])
def test_the_evaluation_loss_is_that_of_training(tokens: int, tmp_path: Path) -> None:
    """On the rows of the only step: eval_loss before it equals the logged training loss; sources get their own."""
    model = build("llama", vocab_size=103)
    rows = [{**row, "source": "ab"[number % 2]} for number, row in enumerate(sft_rows(8))]
    setup = Setup(SFT(), rows, tokens_per_pass=tokens, training={"optim": "sgd"})
    engine = make_engine(model, tmp_path, setup)
    engine.work.eval_groups = list(engine.work.groups)
    metrics = engine.evaluate()
    engine.fit()
    (logged,) = [entry["loss"] for entry in engine.state.log_history if "loss" in entry]
    assert metrics["eval_loss"] == pytest.approx(logged, rel=1e-5)
    count = {s: sum(g.completions[0].num_trained() for g in engine.work.groups if g.row["source"] == s) for s in "ab"}
    mixed = sum(metrics[f"eval_{s}_loss"] * count[s] for s in "ab") / sum(count.values())
    assert mixed == pytest.approx(metrics["eval_loss"], rel=1e-5)
    assert "forward" not in model.__dict__
