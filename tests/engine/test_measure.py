"""What rollouts are given before they are credited equals what the models say of each completion alone."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from toys import CPU, build, ragged_groups, with_lora

from contrl.engine.forward import Routing
from contrl.engine.measure import correct, measure
from contrl.engine.reference_scores import PassSettings, ReferenceScores
from contrl.interfaces import Completion, Group, OnlineMethod
from contrl.models.classifier import on_trunk
from contrl.models.reference import Reference
from contrl.models.value_head import attach_head, attach_model, value_of

NAMES = ("policy_logps", "reference_logps", "values")


def settings(model: Any, layout: Any, tokens: int, temperature: float) -> PassSettings:
    return PassSettings(model, Routing(layout, temperature), tokens, CPU, lambda: torch.autocast("cpu", enabled=False))


def by_hand(model: Any, group: Group, completion: Completion, temperature: float) -> tuple[list[float], torch.Tensor]:
    """Log-probabilities of the tokens and the hidden states before them, one row at a time from the plain model."""
    ids = torch.tensor([group.prompt_ids + completion.ids])
    with torch.no_grad():
        out = model(input_ids=ids, output_hidden_states=True)
    at = torch.arange(len(group.prompt_ids) - 1, ids.shape[1] - 1)
    logps = (out.logits[0, at] / temperature).log_softmax(-1)
    return logps[torch.arange(len(at)), ids[0, at + 1]].tolist(), out.hidden_states[-1][0, at]


@pytest.mark.parametrize(("layout", "tokens"), [("shared", 10**6), ("shared", 25), ("plain", 10**6)])
@pytest.mark.parametrize("adapter", [False, True])
def test_every_completion_gets_its_own_numbers(layout: Any, tokens: int, adapter: bool) -> None:
    """Of masked tokens too: the mask says what is learnt, the credit runs over all of a completion."""
    model = with_lora(build("llama")) if adapter else build("llama")
    scores = ReferenceScores(lambda: Reference(model, "previous"), is_policy=True)
    head = attach_head(model)
    torch.nn.init.normal_(head.summary.weight)
    before = copy.deepcopy(model)
    scores.prepare(OnlineMethod(), [], settings(model, layout, tokens, 0.7), outside=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "value_head" not in name:
                parameter.add_(0.05)
    groups = ragged_groups()
    model.train()
    measure(groups, NAMES, settings(model, layout, tokens, 0.7), scores)
    assert model.training
    for group in groups:
        for completion in group.completions:
            logps, hidden = by_hand(model, group, completion, 0.7)
            reference, _ = by_hand(before, group, completion, 0.7)
            assert completion.old_logps == pytest.approx(logps, abs=1e-4)
            assert completion.reference_logps == pytest.approx(reference, abs=1e-4)
            values = head(hidden).tolist()
            assert completion.values == pytest.approx(values, abs=1e-4, rel=1e-4)
            assert max(abs(a - b) for a, b in zip(logps, reference, strict=True)) > 1e-2


def test_a_value_model_reads_its_own_trunk() -> None:
    model, other = build("llama"), build("llama", seed=5)
    plain = copy.deepcopy(other)
    classifier = on_trunk(other, seed=2)
    value = attach_model(model, classifier, "here")
    groups = ragged_groups()
    measure(groups, ("values",), settings(model, "shared", 10**6, 1.0), None)
    for group in groups:
        for completion in group.completions:
            _, hidden = by_hand(plain, group, completion, 1.0)
            wanted = value.classifier.score(hidden)[:, 0].tolist()
            assert completion.values == pytest.approx(wanted, abs=1e-5)
    assert value_of(model) is value
    assert completion.old_logps is None


def test_importance_weights_are_truncated_ratios() -> None:
    """Trainer says log(.5), log(.9), log(.1), the sampler log(.25), log(.9), log(.2): ratios 2, 1, .5; cap 1.5."""
    completion = Completion(
        [1, 2, 3],
        sampler_logps=[math.log(x) for x in (0.25, 0.9, 0.2)],
        old_logps=[math.log(x) for x in (0.5, 0.9, 0.1)],
    )
    metrics = correct([Group("a", "t", [1], [completion])], cap=1.5)
    assert completion.correction == pytest.approx([1.5, 1.0, 0.5])
    assert metrics["sampling/importance_sampling_ratio/mean"] == pytest.approx((3.5, 3.0))
    assert metrics["sampling/importance_sampling_ratio/min"] == pytest.approx((0.5, 1.0))
    assert metrics["sampling/importance_sampling_ratio/max"] == pytest.approx((2.0, 1.0))
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx((2 * math.log(2), 3.0))
    assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx((math.log(2), 1.0))
    assert correct([], cap=1.5) == {}
