"""The reward model against TRL 1.16's numbers and by hand: scores 1, .5 of chosen and .2, .8 of rejected answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from contrl.engine.batching import to_batch
from contrl.errors import UserError
from contrl.interfaces import Batch, Completion, Group, Outputs
from contrl.methods.reward_model import RewardModel
from tests.methods.preferences import golden, in_group_order

RECORD = golden()["reward"]
SCORES = in_group_order(RECORD["scores"]["chosen"] + RECORD["scores"]["rejected"])


def scored(index: Sequence[int] = (0, 1), margins: Sequence[float | None] = (None, None)) -> tuple[Outputs, Batch]:
    """A pass over these two pairs; logps is zero, as for every classifier."""
    groups = [Group(str(i), "t", [3], [Completion([4]), Completion([5])], margin=margins[i]) for i in index]
    scores = SCORES.view(2, 2)[list(index)].flatten().requires_grad_()
    return Outputs(torch.zeros(len(scores), 1), scores=scores), to_batch(groups, torch.device("cpu"))


def test_fixture_is_in_group_order() -> None:
    assert SCORES.tolist() == pytest.approx([1.0, 0.2, 0.5, 0.8])


@pytest.mark.parametrize("case", RECORD["cases"])
def test_loss_gradient_and_metrics_equal_trl(case: str) -> None:
    record = RECORD["cases"][case]
    fields = dict(record["fields"])
    out, batch = scored(margins=fields.pop("margin", (None, None)))
    method = RewardModel(**fields)
    output = method.loss(out, batch)
    assert method.count(batch.groups) == {"reward": 2.0}
    loss = output.sums["reward"] / 2
    assert loss.item() == pytest.approx(record["loss"], abs=1e-5)
    assert out.scores is not None
    (gradient,) = torch.autograd.grad(loss, out.scores)
    torch.testing.assert_close(gradient, in_group_order(record["gradient"]), atol=1e-6, rtol=1e-5)
    logged = {name: float(value) / float(count) for name, (value, count) in output.metrics.items()}
    wanted = {name: value for name, value in record["metrics"].items() if name != "num_tokens"}
    assert logged == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "margins", "loss"),
    [
        ({}, (None, None), 0.612728),
        ({}, (0.5, 0.0), 0.704355),
        ({"center_rewards_coefficient": 0.01}, (None, None), 0.628378),
    ],
)
def test_known_losses(fields: dict[str, Any], margins: tuple[float | None, ...], loss: float) -> None:
    """-log s(.8) = .371101 and -log s(-.3) = .854355; centred by .01 (1.2^2 + 1.3^2) / 2."""
    out, batch = scored(margins=margins)
    assert RewardModel(**fields).loss(out, batch).sums["reward"].item() / 2 == pytest.approx(loss, abs=1e-5)


def test_the_split_into_passes_changes_nothing() -> None:
    """Sums add up; the extremes alone belong to a pass: (.2 + .5) / 2 and (1 + .8) / 2."""
    method = RewardModel(center_rewards_coefficient=0.1)
    whole = method.loss(*scored())
    parts = [method.loss(*scored([index])) for index in (0, 1)]
    torch.testing.assert_close(sum(part.sums["reward"] for part in parts), whole.sums["reward"])
    for name in ("accuracy", "margin", "mean_reward"):
        for place in (0, 1):
            assert sum(float(p.metrics[name][place]) for p in parts) == pytest.approx(float(whole.metrics[name][place]))
    assert sum(float(p.metrics["min_reward"][0]) for p in parts) / 2 == pytest.approx(0.35)
    assert sum(float(p.metrics["max_reward"][0]) for p in parts) / 2 == pytest.approx(0.9)


def test_a_pair_weighs_the_mean_of_its_completions() -> None:
    """The second pair weighs (0 + .5) / 2."""
    out, batch = scored()
    batch.weights = torch.tensor([1.0, 1.0, 0.0, 0.5])
    wanted = math.log1p(math.exp(-0.8)) + 0.25 * math.log1p(math.exp(0.3))
    assert RewardModel().loss(out, batch).sums["reward"].item() == pytest.approx(wanted, abs=1e-6)


def test_judging() -> None:
    judged = RewardModel().judge(*scored())
    assert list(judged) == ["accuracy", "margin"]
    assert RewardModel.judged_by == "accuracy"
    assert judged["accuracy"].tolist() == [1.0, 0.0]
    assert judged["margin"].tolist() == pytest.approx([0.8, -0.3])


def test_what_the_engine_reads() -> None:
    assert RewardModel.needs == {"scores"}
    assert (RewardModel().dropout, RewardModel(disable_dropout=False).dropout) == (False, True)


# --- rows ---------------------------------------------------------------------------------------------


def test_what_both_answers_share_is_the_prompt(tokenizer: Any) -> None:
    """ "12=3" and "12=45" share "12=", with or without a prompt column; the end token closes each."""
    end = tokenizer.eos_token_id
    for row in ({"prompt": "12", "chosen": "=3", "rejected": "=45"}, {"chosen": "12=3", "rejected": "12=45"}):
        group = RewardModel().prepare({"id": 1, "task": "t", **row, "margin": 2}, tokenizer)
        assert tokenizer.decode(group.prompt_ids) == "12="
        assert [c.ids for c in group.completions] == [[*tokenizer(text)["input_ids"], end] for text in ("3", "45")]
        assert (group.row_id, group.task, group.margin) == ("1", "t", 2.0)


def test_long_pairs_are_cut_and_refused_when_nothing_differs(tokenizer: Any) -> None:
    row = {"id": 1, "prompt": "12", "chosen": "=345", "rejected": "=67"}
    group = RewardModel(max_length=4).prepare(row, tokenizer)
    assert [tokenizer.decode(c.ids) for c in group.completions] == ["3", "6"]
    with pytest.raises(UserError, match="max_length 3"):
        RewardModel(max_length=3).prepare(row, tokenizer)


@pytest.mark.parametrize("margin", ["2", True, float("nan"), float("inf")])
def test_a_margin_that_is_no_number_is_refused(margin: Any, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="margin is"):
        RewardModel().prepare({"id": 1, "chosen": "12", "rejected": "13", "margin": margin}, tokenizer)


def test_no_margin_is_none(tokenizer: Any) -> None:
    assert RewardModel().prepare({"id": 1, "chosen": "12", "rejected": "13", "margin": None}, tokenizer).margin is None


def test_impossible_fields_are_refused() -> None:
    with pytest.raises(UserError, match="center_rewards_coefficient is -1"):
        RewardModel(center_rewards_coefficient=-1.0)
    with pytest.raises(UserError, match="max_length is 0"):
        RewardModel(max_length=0)
