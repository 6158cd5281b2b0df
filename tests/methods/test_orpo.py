"""ORPO against TRL 1.16's whole loss on logits, and against its closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from contrl.errors import UserError
from contrl.interfaces import Batch, Completion, Group, Outputs
from contrl.methods.orpo import ORPO
from tests.methods.preferences import golden
from tests.methods.test_cpo import forward

RECORD = golden()


@pytest.mark.parametrize("case", RECORD["orpo"])
def test_loss_gradient_and_metrics_equal_trl(case: str) -> None:
    """The likelihood term runs over prompt and chosen answer: 4 + 4 tokens, the first of each prompt left out.

    logits/* are over answers here; TRL averages them over prompts and padding as well.
    """
    record = RECORD["orpo"][case]
    logits = torch.tensor(RECORD["logits"]["logits"], requires_grad=True)
    method, (out, batch) = ORPO(**record["fields"]), forward(logits)
    output, counts = method.loss(out, batch), method.count(batch.groups)
    assert counts == {"preference": 2.0, "nll": 8.0}
    loss = output.sums["preference"] / counts["preference"] + output.sums["nll"] / counts["nll"]
    assert loss.item() == pytest.approx(record["loss"], rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.tensor(record["gradient"]), atol=1e-5, rtol=1e-4)
    logged = {name: float(a) / float(b) for name, (a, b) in output.metrics.items() if not name.startswith("logits")}
    wanted = {name: value for name, value in record["metrics"].items() if not name.startswith("logits")}
    assert logged == pytest.approx(wanted, rel=1e-5)
    assert {"logits/chosen", "logits/rejected"} <= output.metrics.keys()


def by_hand() -> tuple[Outputs, Batch]:
    """Mean log-probabilities chosen -.5, -.7, rejected -1, -.4 of one or two tokens; prompts of 3 and 1 tokens."""
    groups = [
        Group("0", "t", [1, 2, 3], [Completion([4, 5]), Completion([6])]),
        Group("1", "t", [1], [Completion([4]), Completion([5, 6])]),
    ]
    logps = torch.tensor([[-0.25, -0.75], [-1.0, 0.0], [-0.7, 0.0], [-0.6, -0.2]], requires_grad=True)
    mask = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 1]]).bool()
    zeros = torch.zeros(4)
    batch = Batch(groups, torch.tensor([0, 0, 1, 1]), mask.long(), mask, torch.ones(4), zeros)
    return Outputs(logps, prompt_logps=torch.tensor([-3.0, 0.0])), batch


def test_the_closed_form() -> None:
    """Log-odds of p: log p - log(1 - p). Their mean is .125392 and the mean log-sigmoid -.719555.

    The likelihood term: (1 + 3 + .7) nats over 2 + 2 + 1 tokens.
    """

    def log_odds(logp: float) -> float:
        return logp - math.log(1 - math.exp(logp))

    odds = [log_odds(-0.5) - log_odds(-1.0), log_odds(-0.7) - log_odds(-0.4)]
    assert sum(odds) / 2 == pytest.approx(0.125392, abs=1e-6)
    out, batch = by_hand()
    output, counts = ORPO(beta=0.1).loss(out, batch), ORPO().count(batch.groups)
    assert counts == {"preference": 2.0, "nll": 5.0}
    assert output.sums["nll"].item() == pytest.approx(4.7)
    assert output.sums["preference"].item() / 2 == pytest.approx(0.0719555, abs=1e-6)
    logged = {name: float(a) / float(b) for name, (a, b) in output.metrics.items()}
    assert logged["log_odds_chosen"] == pytest.approx(0.125392, abs=1e-6)
    assert logged["log_odds_ratio"] == pytest.approx(-0.719555, abs=1e-6)
    assert logged["nll_loss"] == pytest.approx(0.94)
    assert logged["rewards/margins"] == pytest.approx(0.1 * (0.5 - 0.3) / 2)


def test_a_certain_answer_keeps_finite_odds() -> None:
    """Probability 1 has infinite odds; the gradient must stay finite."""
    out, batch = by_hand()
    logps = torch.zeros(4, 2, requires_grad=True)
    loss = ORPO().loss(Outputs(logps, prompt_logps=out.prompt_logps), batch).sums["preference"]
    (gradient,) = torch.autograd.grad(loss, logps)
    assert loss.item() == pytest.approx(2 * 0.1 * math.log(2), abs=1e-6)
    assert gradient.isfinite().all()


def test_a_pair_weighs_the_mean_of_its_completions() -> None:
    """The first pair at 0, the second at (1 + 0) / 2 of .7 nats."""
    out, batch = by_hand()
    batch.weights = torch.tensor([0.0, 0.0, 1.0, 0.0])
    assert ORPO().loss(out, batch).sums["nll"].item() == pytest.approx(0.35)


def test_judging_measures_what_the_run_changed() -> None:
    """Nothing at the start; the chosen side of the first pair alone gains later."""
    out, batch = by_hand()
    batch.reference_logps = out.logps.clone()
    assert ORPO().judge(out, batch)[ORPO.judged_by].tolist() == [0.5, 0.5]
    batch.reference_logps[0] -= 1.0 * batch.mask[0]
    judged = ORPO().judge(out, batch)
    assert judged["accuracy"].tolist() == [1.0, 0.5]
    assert judged["margin"].tolist() == pytest.approx([float(batch.mask[0].sum()), 0.0])


def test_rows_and_fields(tokenizer: Any) -> None:
    group = ORPO(max_prompt_length=2).prepare({"id": 1, "prompt": "1+2=", "chosen": "3", "rejected": "4"}, tokenizer)
    assert tokenizer.decode(group.prompt_ids) == "2="
    assert ORPO.needs == {"policy_logps", "prompt_logps", "mean_logits"}
    assert (ORPO().dropout, ORPO(disable_dropout=False).dropout) == (False, True)
    with pytest.raises(UserError, match="beta is 0"):
        ORPO(beta=0.0)
