"""CPO, SimPO and AlphaPO against TRL 1.16's whole loss on logits, and against their closed forms on fixture P."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from contrl.engine.batching import to_batch
from contrl.errors import UserError
from contrl.interfaces import Batch, Completion, Group, Outputs
from contrl.methods.cpo import CPO
from tests.methods.preferences import batch_of, golden, pair_step, run

RECORD = golden()


def forward(logits: torch.Tensor) -> tuple[Outputs, Batch]:
    """The record's pairs with the log-probabilities that its logits ``[4, 7, V]`` give, chosen rows first."""
    fixture = RECORD["logits"]
    groups = [
        Group(str(i), "t", prompt, [Completion(fixture[side][i]) for side in ("chosen", "rejected")])
        for i, prompt in enumerate(fixture["prompts"])
    ]
    batch, logps, mean_logits, prompts = to_batch(groups, torch.device("cpu")), [], [], []
    for i, group in enumerate(groups):
        for side, completion in enumerate(group.completions):
            ids, start = group.prompt_ids + completion.ids, len(group.prompt_ids)
            rows = logits[2 * side + i, : len(ids) - 1].log_softmax(-1)
            tokens = rows.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
            padding = batch.ids.shape[1] - len(completion.ids)
            logps.append(torch.nn.functional.pad(tokens[start - 1 :], (0, padding)))
            means = logits[2 * side + i, start - 1 : len(ids) - 1].mean(-1).detach()
            mean_logits.append(torch.nn.functional.pad(means, (0, padding)))
            prompts += [tokens[: start - 1].sum()] if side == 0 else []
    return Outputs(torch.stack(logps), mean_logits=torch.stack(mean_logits), prompt_logps=torch.stack(prompts)), batch


@pytest.mark.parametrize("case", RECORD["cpo"])
def test_loss_and_gradient_in_the_logits_equal_trl(case: str) -> None:
    """The likelihood term is a mean over all chosen tokens of the batch, the preference term over pairs."""
    record = RECORD["cpo"][case]
    fields = dict(record["fields"])
    if case == "alphapo":
        fields |= {"loss_type": "alphapo", "cpo_alpha": 5.0}  # which alphapo leaves out
    logits = torch.tensor(RECORD["logits"]["logits"], requires_grad=True)
    method, (out, batch) = CPO(**fields), forward(logits)
    output, counts = method.loss(out, batch), method.count(batch.groups)
    assert output.sums.keys() == counts.keys()
    loss = sum((output.sums[name] / counts[name] for name in counts), torch.zeros(()))
    assert loss.item() == pytest.approx(record["loss"], rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.tensor(record["gradient"]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("case", RECORD["cpo"])
def test_metrics_equal_trl(case: str) -> None:
    """But for logits/*, which TRL averages over prompts and padding as well; and nll_loss where it is not computed."""
    record = RECORD["cpo"][case]
    out, batch = forward(torch.tensor(RECORD["logits"]["logits"]))
    logged = {name: float(a) / float(b) for name, (a, b) in CPO(**record["fields"]).loss(out, batch).metrics.items()}
    assert {"logits/chosen", "logits/rejected"} <= logged.keys()
    left_out = {"logits/chosen", "logits/rejected"} | ({"nll_loss"} if "nll_loss" not in logged else set())
    wanted = {name: value for name, value in record["metrics"].items() if name not in left_out}
    assert {name: value for name, value in logged.items() if name not in left_out} == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "loss"),
    [({}, 0.675061), ({"label_smoothing": 0.1}, 0.678811), ({"loss_type": "hinge"}, 0.9625)],
)
def test_known_losses_of_fixture_p(fields: dict[str, Any], loss: float) -> None:
    """Sums -1, -1.5 | -2, -1.25: differences 1 and -.25 at beta .1; without the likelihood term."""
    step = pair_step(RECORD["dpo"]["fixture_p"]["input"])
    assert run(CPO(cpo_alpha=0.0, **fields), step)[0] == pytest.approx(loss, abs=1e-5)


def test_simpo_compares_means_over_tokens_by_hand() -> None:
    """Means -1/3, -.75 | -1, -1.25/3; beta 2 and gamma .5 give 2 (2/3) - .5 and 2 (-1/3) - .5."""
    step = pair_step(RECORD["dpo"]["fixture_p"]["input"])
    loss, _, metrics = run(CPO(loss_type="simpo", beta=2.0, simpo_gamma=0.5, cpo_alpha=0.0), step)
    margins = [2 * (2 / 3) - 0.5, 2 * (-1 / 3) - 0.5]
    assert loss == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 2, abs=1e-6)
    assert metrics["logps/chosen"] == pytest.approx((-1 / 3 - 0.75) / 2)


def test_the_likelihood_term_is_a_mean_over_chosen_tokens() -> None:
    """2.5 nats on 5 chosen tokens: .5, times cpo_alpha; pair 1 weighing (1 + 0) / 2 leaves (1 + .75) / 5."""
    step = pair_step(RECORD["dpo"]["fixture_p"]["input"])
    without = run(CPO(cpo_alpha=0.0), step)[0]
    assert run(CPO(), step)[0] - without == pytest.approx(0.5, abs=1e-6)
    assert run(CPO(cpo_alpha=0.2), step)[0] - without == pytest.approx(0.1, abs=1e-6)
    step.groups[1].completions[0].weight = 0.0
    assert run(CPO(), step)[0] - run(CPO(cpo_alpha=0.0), step)[0] == pytest.approx(0.35, abs=1e-6)


@pytest.mark.parametrize("fields", [{}, {"loss_type": "simpo"}, {"loss_type": "ipo", "alpha": 0.3}])
def test_the_split_into_passes_changes_nothing(fields: dict[str, Any]) -> None:
    fixture = RECORD["dpo"]["uneven"]["input"]
    whole, parts = (
        run(CPO(**fields), pair_step(fixture)),
        run(CPO(**fields), pair_step(fixture), [[0, 5], [3, 1], [4, 2]]),
    )
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    torch.testing.assert_close(parts[1], whole[1], atol=1e-6, rtol=1e-5)
    assert parts[2] == pytest.approx(whole[2], rel=1e-5)


def test_judging_measures_what_the_run_changed() -> None:
    """As DPO does: -1 and -2 began at -1.2 and -1.8, -1.5 and -1.25 at -1.4 and -1.5."""
    out, batch = batch_of(pair_step(RECORD["dpo"]["fixture_p"]["input"]), [0, 1])
    assert CPO.judges_change
    assert CPO().judge(out, batch)["margin"].tolist() == pytest.approx([0.4, -0.35])
    assert CPO(loss_type="simpo").judge(out, batch)[CPO.judged_by].tolist() == [1.0, 0.0]


def test_rows_and_fields_are_as_in_dpo(tokenizer: Any) -> None:
    group = CPO(max_length=5).prepare({"id": 1, "prompt": "1+2=", "chosen": "3", "rejected": "4"}, tokenizer)
    assert [tokenizer.decode(c.ids) for c in group.completions] == ["3", "4"]
    assert CPO.needs == {"policy_logps", "mean_logits"}
    assert (CPO().dropout, CPO(disable_dropout=False).dropout) == (False, True)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "no effect on hinge"),
        ({"loss_type": "dpo"}, "unknown loss_type dpo"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"cpo_alpha": -1.0}, "cpo_alpha is -1.0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
    ],
)
def test_impossible_fields_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        CPO(**fields)
