"""KTO against TRL 1.16's numbers given the same KL pairs; how contrasts are chosen; splits; rows.

Fixture P's rows: log-ratios .2, -.1, -.2, .25 with labels T, F, F, T; KL pairs .2, .2, .4, 0 with mean .2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from contrl.errors import UserError
from contrl.interfaces import Completion, Group, Outputs
from contrl.methods.kto import KTO
from tests.methods.preferences import Step, batch_of, golden, run

RECORD = golden()


def method_of(fields: dict[str, Any]) -> KTO:
    return KTO(**{name: value for name, value in fields.items() if name not in ("labels", "kl_policy", "kl_reference")})


def labelled_step(case: dict[str, Any]) -> Step:
    """The record's rows, each with the contrast whose log-probabilities the case gives."""
    fixture = RECORD["dpo"]["fixture_p"]["input"]
    groups = [
        Group(
            str(number),
            "t",
            [3, 4],
            [Completion([5] * sum(mask))],
            label=label,
            contrast=Completion([6]),
        )
        for number, (mask, label) in enumerate(zip(fixture["mask"], case["labels"], strict=True))
    ]
    mask = torch.tensor(fixture["mask"])
    return Step(
        groups,
        torch.tensor(fixture["policy"], requires_grad=True),
        torch.tensor(fixture["reference"]),
        {name: torch.tensor(fixture[name]) * mask for name in ("entropy", "mean_logits")},
        observed_policy=torch.tensor(case["kl_policy"])[:, None],
        observed_reference=torch.tensor(case["kl_reference"])[:, None],
    )


# --- TRL's numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", RECORD["kto"])
def test_loss_and_gradient_equal_trl(case: str) -> None:
    record = RECORD["kto"][case]
    mask = torch.tensor(RECORD["dpo"]["fixture_p"]["input"]["mask"])
    loss, gradient, _ = run(method_of(record["fields"]), labelled_step(record["case"]))
    assert loss == pytest.approx(record["loss"], abs=1e-5)
    torch.testing.assert_close(gradient, torch.tensor(record["gradient"]) * mask, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("case", RECORD["kto"])
def test_metrics_equal_trl(case: str) -> None:
    record = RECORD["kto"][case]
    _, _, metrics = run(method_of(record["fields"]), labelled_step(record["case"]))
    wanted = {name: value for name, value in record["metrics"].items() if name != "num_tokens"}
    if case == "apo_zero_unpaired":
        wanted.pop("kl")  # TRL logs 0; there is none
    assert metrics == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "loss"),
    [
        ({}, 0.495313),
        ({"desirable_weight": 1.5, "undesirable_weight": 0.5}, 0.497344),
        ({"loss_type": "apo_zero_unpaired"}, 0.4953127),
    ],
)
def test_known_losses(fields: dict[str, Any], loss: float) -> None:
    """Independent of the record: terms 1 - s(.1 (r - .2)) for T and 1 - s(.1 (.2 - r)) for F."""
    step = labelled_step(RECORD["kto"]["kto"]["case"])
    assert run(KTO(**fields), step)[0] == pytest.approx(loss, abs=1e-5)


def test_a_negative_mean_is_clamped() -> None:
    """Differences -.8, -.2, 0, 0: the reference point is 0, as when there is no KL at all."""
    step = labelled_step(RECORD["kto"]["negative kl"]["case"])
    loss, _, metrics = run(KTO(), step)
    assert metrics["kl"] == 0.0
    assert loss == run(KTO(loss_type="apo_zero_unpaired"), step)[0]


# --- splits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [[[0], [1], [2], [3]], [[3, 1], [2, 0]], [[2], [0, 1, 3]]])
@pytest.mark.parametrize("fields", [{}, {"beta": 2.0, "desirable_weight": 1.5}, {"loss_type": "apo_zero_unpaired"}])
def test_the_split_into_passes_changes_nothing(fields: dict[str, Any], passes: Sequence[Sequence[int]]) -> None:
    case = RECORD["kto"]["kto"]["case"]
    whole, parts = run(KTO(**fields), labelled_step(case)), run(KTO(**fields), labelled_step(case), passes)
    assert parts[0] == pytest.approx(whole[0], abs=1e-6)
    torch.testing.assert_close(parts[1], whole[1], atol=1e-7, rtol=1e-6)
    # The margin alone is taken pass by pass: it needs both labels in one.
    assert {**parts[2], "rewards/margins": 0} == pytest.approx({**whole[2], "rewards/margins": 0}, abs=1e-6)


def test_without_contrasts_the_reference_point_is_zero() -> None:
    method = KTO()
    settled = method.settle({}, {})
    assert settled["kl"].item() == 0.0
    assert method.settle({"kl": torch.zeros(0)}, {})["kl"].item() == 0.0
    lonely = Group("0", "t", [1], [Completion([2])], label=True)
    assert method.observed([lonely]) == []


def test_a_completions_weight_multiplies_its_term() -> None:
    """Row 0 alone, 1 - s(.1 (.2 - .2)) = .5, at weight .25, over a count of four."""
    step = labelled_step(RECORD["kto"]["kto"]["case"])
    for group, weight in zip(step.groups, (0.25, 0.0, 0.0, 0.0), strict=True):
        group.completions[0].weight = weight
    assert run(KTO(), step)[0] == pytest.approx(0.125 / 4, abs=1e-7)


# --- contrasts -------------------------------------------------------------------------------------------


def rows_of(prompts: Sequence[int]) -> list[Group]:
    """Row i answers its prompt with token 100 + i."""
    return [Group(f"r{i:02}", "t", [prompt], [Completion([100 + i])], label=True) for i, prompt in enumerate(prompts)]


def contrasts(groups: Sequence[Group]) -> dict[str, int]:
    return {group.row_id: group.contrast.ids[0] for group in groups if group.contrast is not None}


@pytest.mark.parametrize(
    "prompts", [[1, 2], [1, 1, 2, 2], [1, 1, 1, 2, 3, 4], list(range(11)), [1, 1, 2, 3, 3, 3, 4, 5]]
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_row_takes_the_answer_to_another_prompt(prompts: list[int], seed: int) -> None:
    """A permutation: every answer serves once; no row sees its own prompt's."""
    groups = rows_of(prompts)
    KTO().pair(groups, seed)
    found = contrasts(groups)
    assert sorted(found.values()) == [100 + i for i in range(len(prompts))]
    assert all(prompts[token - 100] != group.prompt_ids[0] for group, token in zip(groups, found.values(), strict=True))


@pytest.mark.parametrize("number", [2, 3, 4])
def test_a_single_prompt_still_never_takes_its_own_answer(number: int) -> None:
    groups = rows_of([1] * number)
    KTO().pair(groups, 0)
    assert all(groups[i].contrast != groups[i].completions[0] for i in range(number))
    assert len(contrasts(groups)) == number


def test_contrasts_depend_on_the_seed_and_not_on_the_order_of_the_rows() -> None:
    first, again, other = rows_of(range(12)), rows_of(range(12)), rows_of(range(12))
    KTO().pair(first, 3)
    KTO().pair(again[::-1], 3)
    KTO().pair(other, 4)
    assert contrasts(first) == contrasts(again)
    assert contrasts(first) != contrasts(other)


def test_one_row_alone_has_no_contrast_and_apo_takes_none() -> None:
    single, several = rows_of([1]), rows_of([1, 2])
    KTO().pair(single, 0)
    KTO(loss_type="apo_zero_unpaired").pair(several, 0)
    assert contrasts(single) == contrasts(several) == {}


def test_contrasts_keep_to_the_limit() -> None:
    """Prompts of 4 and 1 tokens, answers of 1 and 5: under the first, max_length 6 leaves two."""
    long, short = Group("a", "t", [1] * 4, [Completion([7])]), Group("b", "t", [2], [Completion([8] * 5, [True] * 5)])
    KTO(max_length=6).pair([long, short], 0)
    assert long.contrast == Completion([8, 8], [True, True])
    assert short.contrast == Completion([7])


def test_what_is_observed_is_the_prompt_with_the_contrast() -> None:
    group = Group("a", "t", [1, 2], [Completion([3])], label=False, contrast=Completion([4, 5]))
    (seen,) = KTO().observed([group])
    assert (seen.prompt_ids, [c.ids for c in seen.completions], seen.contrast) == ([1, 2], [[4, 5]], None)
    assert group.completions[0].ids == [3]


# --- rows, judging, fields ---------------------------------------------------------------------------------


def test_a_labelled_row_becomes_one_completion(tokenizer: Any) -> None:
    row = {"id": 2, "task": "t", "prompt": "1+2=", "completion": "3", "label": False}
    group = KTO().prepare(row, tokenizer)
    assert (group.row_id, group.task, group.label) == ("2", "t", False)
    assert tokenizer.decode(group.prompt_ids) == "1+2="
    assert group.completions[0].ids == [*tokenizer("3")["input_ids"], tokenizer.eos_token_id]


def test_rows_are_cut_and_refused_as_in_dpo(tokenizer: Any) -> None:
    row = {"id": 2, "prompt": "1+2=", "completion": "345", "label": True}
    group = KTO(max_length=4, max_prompt_length=3).prepare(row, tokenizer)
    assert (tokenizer.decode(group.prompt_ids), tokenizer.decode(group.completions[0].ids)) == ("+2=", "3")
    with pytest.raises(UserError, match="no trained token is left"):
        KTO(max_length=4).prepare(row, tokenizer)


def test_judging_likes_good_answers_to_gain_and_bad_ones_to_lose() -> None:
    """Sums -1 (good) and -1.5 (bad) began at -1.2 and -1.4: up by .2, down by .1, both as they should."""
    step = labelled_step(RECORD["kto"]["kto"]["case"])
    out, batch = batch_of(step, [0, 1])
    judged = KTO().judge(Outputs(out.logps), batch)
    assert judged[KTO.judged_by].tolist() == [1.0, 1.0]
    assert judged["margin"].tolist() == pytest.approx([0.2, 0.1])


def test_what_follows_from_the_fields() -> None:
    assert (KTO().couples, KTO(loss_type="apo_zero_unpaired").couples) == ("step", "group")
    assert (KTO().dropout, KTO(disable_dropout=False).dropout) == (False, True)
    assert KTO().count(rows_of([1, 2, 3])) == {"kto": 3.0}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"beta": 0.0}, "beta is 0.0"),
        ({"loss_type": "bco"}, "unknown loss_type bco"),
        ({"undesirable_weight": -1.0}, "undesirable_weight"),
        ({"max_length": 1}, "max_length is 1"),
    ],
)
def test_impossible_fields_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        KTO(**fields)


def test_pairs_become_a_good_and_a_bad_row() -> None:
    rows = [{"id": str(i), "prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(3)]
    unpaired = KTO().rows(rows, lambda text: None)
    assert sorted((row["prompt"], row["completion"], row["label"]) for row in unpaired) == sorted(
        (f"p{i}", f"{letter}{i}", letter == "c") for i in range(3) for letter in "cr"
    )
    assert len({row["id"] for row in unpaired}) == 6
    labels = [row["label"] for row in unpaired]
    assert max(sum(labels[:k]) - k / 2 for k in range(7)) <= 1, "labels alternate"
    assert math.isclose(sum(labels), 3)
