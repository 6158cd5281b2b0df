"""DPO against TRL 1.16's own numbers, loss and gradient, on two fixtures; its splits, its rows and its refusals.

Fixture P: log-ratios of chosen .2 and -.1, of rejected -.2 and .25; beta .1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from contrl.errors import UserError
from contrl.interfaces import Completion, Group, Outputs
from contrl.methods.dpo import DPO, LOSS_TYPES
from tests.methods.preferences import Step, batch_of, golden, in_group_order, pair_step, run

RECORD = golden()["dpo"]
CASES = [(fixture, case) for fixture in RECORD for case in RECORD[fixture]["cases"]]


def method_of(fields: dict[str, Any]) -> DPO:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return DPO(**values)


# --- TRL's numbers ------------------------------------------------------------------------------------


def test_every_loss_type_is_recorded() -> None:
    recorded = {name for case in RECORD["uneven"]["cases"].values() for name in case["fields"].get("loss_type", [])}
    assert recorded | {"sigmoid"} == set(LOSS_TYPES)


@pytest.mark.parametrize(("fixture", "case"), CASES)
def test_loss_and_gradient_equal_trl(fixture: str, case: str) -> None:
    """The sft term under WPO is not recorded: there each pair's own weight is applied, see the page."""
    record, mask = RECORD[fixture]["cases"][case], in_group_order(RECORD[fixture]["input"]["mask"])
    loss, gradient, _ = run(method_of(record["fields"]), pair_step(RECORD[fixture]["input"]))
    assert loss == pytest.approx(record["loss"], abs=1e-5, rel=1e-5)
    torch.testing.assert_close(gradient, in_group_order(record["gradient"]) * mask, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fixture", ["fixture_p", "uneven"])
def test_metrics_equal_trl(fixture: str) -> None:
    record = RECORD[fixture]["cases"]["sigmoid"]["metrics"]
    _, _, metrics = run(DPO(), pair_step(RECORD[fixture]["input"]))
    record.pop("num_tokens")  # the engine's
    assert metrics == pytest.approx(record, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "loss"),
    [
        ({}, 0.692074),
        ({"beta": 0.5}, 0.691305),
        ({"loss_type": ("hinge",)}, 0.9975),
        ({"loss_type": ("ipo",)}, 24.856112),
        ({"loss_type": ("sppo_hard",)}, 49.826248),
        ({"loss_type": ("nca_pair",)}, 1.385748),
        ({"loss_type": ("bco_pair",)}, 1.385140),
        ({"loss_type": ("aot",)}, 0.692074),
        ({"loss_type": ("aot",), "label_smoothing": 0.1}, 0.692324),
        ({"loss_type": ("aot_unpaired",)}, 0.691905),
        ({"loss_type": ("apo_zero",)}, 0.999375),
        ({"loss_type": ("apo_down",)}, 1.000625),
        ({"loss_type": ("discopop",)}, 0.845127),
        ({"loss_type": ("sft",)}, 0.5),
        ({"loss_type": ("sigmoid_norm",)}, 0.692342),
        ({"loss_type": ("robust",), "label_smoothing": 0.1}, 0.691761),
        ({"loss_type": ("exo_pair",), "label_smoothing": 1e-3}, 2.757092),
        ({"f_divergence_type": "forward_kl"}, 0.691408),
        ({"f_divergence_type": "js_divergence"}, 0.692401),
        ({"f_divergence_type": "alpha_divergence"}, 0.691741),
        ({"ld_alpha": 0.5}, 0.692210),
        ({"use_weighting": True}, 1.473518),
        ({"loss_type": ("sigmoid", "bco_pair", "sft"), "loss_weights": (0.8, 0.2, 1.0)}, 1.330687),
    ],
)
def test_known_losses_of_fixture_p(fields: dict[str, Any], loss: float) -> None:
    """Independent of the record: mean of -log s(.04) and -log s(-.035) is .692074, and so on."""
    assert run(DPO(**fields), pair_step(RECORD["fixture_p"]["input"]))[0] == pytest.approx(loss, abs=1e-5)


def test_the_first_loss_by_hand() -> None:
    """Margins .1 (.2 + .2) = .04 and .1 (-.1 - .25) = -.035; gradients -.1 s(-margin) / 2 on every chosen token."""
    step = pair_step(RECORD["fixture_p"]["input"])
    loss, gradient, _ = run(DPO(), step)
    assert loss == pytest.approx((math.log1p(math.exp(-0.04)) + math.log1p(math.exp(0.035))) / 2, abs=1e-6)
    pull = 0.1 / (1 + math.exp(0.04)) / 2
    torch.testing.assert_close(gradient[0], torch.full((3,), -pull))
    torch.testing.assert_close(gradient[1, :2], torch.full((2,), pull))


# --- splits ----------------------------------------------------------------------------------------------


def uneven_step() -> Step:
    """The record's six pairs and two more of which one has the log-ratios of another, so that ranks tie."""
    step = pair_step(RECORD["uneven"]["input"])
    twin = [Completion(list(c.ids)) for c in step.groups[0].completions]
    rows = [0, 1]
    return Step(
        [*step.groups, Group("6", "t", [3], twin)],
        torch.cat([step.policy, step.policy[rows]]).detach().requires_grad_(),
        torch.cat([step.reference, step.reference[rows]]) if step.reference is not None else None,
        {name: torch.cat([table, table[rows]]) for name, table in step.extras.items()},
    )


SPLITS: list[Sequence[Sequence[int]]] = [
    [[0], [1], [2], [3], [4], [5], [6]],
    [[6, 5, 4], [3, 2, 1, 0]],
    [[0, 6], [5, 1, 3], [4, 2]],
]


@pytest.mark.parametrize("passes", SPLITS)
@pytest.mark.parametrize(
    "fields",
    [
        *(
            {"loss_type": (name,), "label_smoothing": 0.1 if name in ("robust", "exo_pair") else 0.0}
            for name in LOSS_TYPES
        ),
        {"loss_type": ("aot", "aot_unpaired", "sft"), "loss_weights": (0.5, 2.0, 0.3), "label_smoothing": 0.2},
        {"loss_type": ("bco_pair",), "bco_shift": True, "beta": 2.0},
        {"use_weighting": True, "ld_alpha": 0.3},
    ],
    ids=str,
)
def test_the_split_into_passes_changes_nothing(fields: dict[str, Any], passes: Sequence[Sequence[int]]) -> None:
    method = DPO(**fields)
    whole, parts = run(method, uneven_step()), run(method, uneven_step(), passes)
    assert parts[0] == pytest.approx(whole[0], abs=1e-6, rel=1e-6)
    torch.testing.assert_close(parts[1], whole[1], atol=1e-6, rtol=1e-6)
    assert parts[2] == pytest.approx(whole[2], abs=1e-6)


def test_only_losses_that_compare_pairs_are_coupled() -> None:
    coupled = {
        name for name in LOSS_TYPES if DPO(loss_type=(name,), label_smoothing=_smoothing(name)).couples == "step"
    }
    assert coupled == {"aot", "aot_unpaired"}
    assert DPO(loss_type=("bco_pair",), bco_shift=True).couples == "step"


def _smoothing(name: str) -> float:
    return 1e-3 if name == "exo_pair" else 0.0


def test_bco_shift_is_the_mean_reward_of_all_steps_so_far() -> None:
    """Rewards .1 (.2, -.2, -.1, .25), mean .00375: the first step's terms are classified around it.

    A second step whose rewards are 0 halves the mean.
    """
    memory: dict[str, float] = {}
    method = DPO(loss_type=("bco_pair",), bco_shift=True)
    loss, _, _ = run(method, pair_step(RECORD["fixture_p"]["input"]), memory=memory)

    def soft(x: float) -> float:
        return math.log1p(math.exp(-x))

    shift = 0.00375
    wanted = soft(0.02 - shift) + soft(shift + 0.02) + soft(-0.01 - shift) + soft(shift - 0.025)
    assert loss == pytest.approx(wanted / 2, abs=1e-6)
    second = pair_step(RECORD["fixture_p"]["input"])
    second.reference = second.policy.detach()
    values = {name: torch.zeros(2) for name in ("policy", "reference", "chosen", "rejected", "reward")}
    assert method.settle(values, memory)["shift"].item() == pytest.approx(shift / 2, abs=1e-7)


# --- weights ----------------------------------------------------------------------------------------------


def test_a_pair_weighs_the_mean_of_its_completions() -> None:
    """Pair 0 weighs (1 + 0) / 2, pair 1 counts fully; the count stays 2. The sft term follows: (.5 * 1 + 1.5) / 5."""
    step = pair_step(RECORD["fixture_p"]["input"])
    step.groups[0].completions[1].weight = 0.0
    loss, _, _ = run(DPO(), step)
    assert loss == pytest.approx((0.5 * math.log1p(math.exp(-0.04)) + math.log1p(math.exp(0.035))) / 2, abs=1e-6)
    assert run(DPO(loss_type=("sft",)), step)[0] == pytest.approx(0.4, abs=1e-6)


def test_under_wpo_each_pair_weighs_its_own_sft_term() -> None:
    """Weights exp(1 - 1/3) exp(1 - 1) and exp(1 - .75) exp(1 - 1.25 / 3) on 1 and 1.5 nats of 5 tokens."""
    loss, _, _ = run(DPO(loss_type=("sft",), use_weighting=True), pair_step(RECORD["fixture_p"]["input"]))
    first, second = math.exp(2 / 3 + 0), math.exp(0.25 + 1 - 1.25 / 3)
    assert loss == pytest.approx((first * 1.0 + second * 1.5) / 5, rel=1e-5)


def test_wpo_multiplies_the_weights_a_pair_has() -> None:
    """Halving both completions' weights halves the loss."""
    method, step = DPO(use_weighting=True), pair_step(RECORD["fixture_p"]["input"])
    for group in step.groups:
        for completion in group.completions:
            completion.weight = 0.5
    assert run(method, step)[0] == pytest.approx(1.473518 / 2, abs=1e-5)


def test_counts_are_pairs_and_chosen_tokens() -> None:
    groups = pair_step(RECORD["fixture_p"]["input"]).groups
    assert DPO().count(groups) == {"preference": 2.0}
    assert DPO(loss_type=("sft",)).count(groups) == {"sft": 5.0}
    assert DPO(loss_type=("sigmoid", "sft")).count(groups) == {"preference": 2.0, "sft": 5.0}


def test_judging_measures_what_the_run_changed() -> None:
    """Sums -1 and -2 began at -1.2 and -1.8: the margin grew by .2 + .2. The second: -.1 - .25. No change is a tie."""
    out, batch = batch_of(pair_step(RECORD["fixture_p"]["input"]), [0, 1])
    judged = DPO().judge(Outputs(out.logps), batch)
    assert DPO.judged_by == "accuracy"
    assert judged["accuracy"].tolist() == [1.0, 0.0]
    assert judged["margin"].tolist() == pytest.approx([0.4, -0.35])
    assert judged["likelier"].tolist() == [1.0, 0.0]
    # Of the chosen answers alone: the sums over their 3 and 2 tokens.
    assert judged["loss"].tolist() == pytest.approx([1 / 3, 0.75])
    right = torch.ones_like(out.logps) * batch.mask
    assert DPO().judge(Outputs(out.logps, correct=right), batch)["token_accuracy"].tolist() == [1.0, 1.0]
    batch.reference_logps = out.logps.clone()
    assert DPO().judge(Outputs(out.logps), batch)["accuracy"].tolist() == [0.5, 0.5]


# --- what the engine reads ------------------------------------------------------------------------------------


def test_what_follows_from_the_fields() -> None:
    plain = DPO()
    assert (plain.dropout, plain.couples, plain.sync_every, plain.reference) == (False, "group", 0, "previous")
    assert plain.needs == {"policy_logps", "reference_logps", "entropy", "correct", "mean_logits"}
    moving = DPO(sync_ref_model=True, ref_model_sync_steps=7, ref_model_mixup_alpha=0.3, disable_dropout=False)
    assert (moving.sync_every, moving.sync_share, moving.dropout) == (7, 0.3, True)
    assert DPO(use_weighting=True).needs - plain.needs == {"log_sum_p2"}
    single: Any = "ipo"
    assert DPO(loss_type=single).loss_type == ("ipo",)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"loss_type": ("exo_pair",)}, "label_smoothing, so it must be above 0"),
        ({"loss_type": ("robust",), "label_smoothing": 0.5}, "below 0.5"),
        ({"label_smoothing": 0.1}, "label_smoothing has no effect on sigmoid"),
        ({"loss_type": ("nca_pair",), "f_divergence_type": "forward_kl"}, "does not go with nca_pair"),
        ({"f_divergence_type": "chi2"}, "unknown f_divergence_type chi2"),
        ({"loss_type": ("aot",), "use_weighting": True}, "compares ranks and not pairs"),
        ({"loss_type": ("dpo",)}, "unknown loss_type dpo"),
        ({"loss_type": ()}, "names no loss"),
        ({"loss_type": ("sigmoid", "sft"), "loss_weights": (1.0,)}, "1 numbers for 2 loss types"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"ld_alpha": 1.5}, "ld_alpha is 1.5"),
        ({"bco_shift": True}, "bco_shift needs the loss_type bco_pair"),
        ({"discopop_tau": 0.0}, "discopop_tau is 0.0"),
        ({"sync_ref_model": True, "reference": "base"}, "sync_ref_model moves the reference"),
        ({"ref_model_mixup_alpha": 0.0}, "ref_model_mixup_alpha"),
        ({"ref_model_sync_steps": 0}, "ref_model_sync_steps"),
        ({"max_length": 1}, "max_length is 1"),
        ({"max_prompt_length": 0}, "max_prompt_length is 0"),
    ],
    ids=str,
)
def test_impossible_fields_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        DPO(**fields)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        DPO(beta=-1.0, ld_alpha=2.0, max_length=0)
    assert all(word in caught.value.what for word in ("beta", "ld_alpha", "max_length"))


# --- rows -----------------------------------------------------------------------------------------------------


def test_a_pair_becomes_a_group_with_the_chosen_answer_first(tokenizer: Any) -> None:
    row = {"id": 4, "task": "sums", "prompt": "1+2=", "chosen": "3", "rejected": "12"}
    group = DPO().prepare(row, tokenizer)
    end = tokenizer.eos_token_id
    assert (group.row_id, group.task, tokenizer.decode(group.prompt_ids)) == ("4", "sums", "1+2=")
    assert [c.ids for c in group.completions] == [[*tokenizer(text)["input_ids"], end] for text in ("3", "12")]
    assert [c.num_trained() for c in group.completions] == [2, 3]


def test_pairs_are_cut_at_their_end_and_prompts_at_their_start(tokenizer: Any) -> None:
    """Prompt "1+2=" keeps "2=" of 2 tokens, which leaves 2 of max_length 4 for each answer."""
    row = {"id": 0, "prompt": "1+2=", "chosen": "345", "rejected": "67"}
    group = DPO(max_length=4, max_prompt_length=2).prepare(row, tokenizer)
    assert tokenizer.decode(group.prompt_ids) == "2="
    assert [tokenizer.decode(c.ids) for c in group.completions] == ["34", "67"]
    assert [c.ended for c in group.completions] == [False, False]


def test_a_prompt_that_fills_the_limit_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no trained token is left of 4 prompt and 2 completion tokens at max_length 4"):
        DPO(max_length=4).prepare({"id": 0, "prompt": "1+2=", "chosen": "3", "rejected": "4"}, tokenizer)


def test_a_cut_that_leaves_equal_sides_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="chosen and rejected are equal in their first 6 tokens"):
        DPO(max_length=6).prepare({"id": 0, "prompt": "1+2=", "chosen": "334", "rejected": "335"}, tokenizer)


def test_sources_without_preference_are_left_out_and_said() -> None:
    """uc has one answer only, so chosen equals rejected in all of its rows."""
    good = {"id": "a", "source": "hh", "prompt": "p", "chosen": "c", "rejected": "r"}
    silent = {"id": "b", "source": "uc", "prompt": "p", "chosen": "c", "rejected": "c"}
    said: list[str] = []
    assert DPO().rows([good, silent], said.append) == [good]
    assert len(said) == 1
    assert "uc" in said[0]
