"""Packed rows, prompt log-probabilities, classifier scores and token extras: each against the plainest computation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from toys import CONFIGS, CPU, build, gradients, ragged_batch, ragged_groups, with_lora

from contrl.engine.batching import plan_passes, to_batch
from contrl.engine.forward import Routing, head_of, score_batch
from contrl.engine.layout_check import check_head, choose_layout, probe
from contrl.engine.lm_head import LMHead
from contrl.engine.shared_prompt import pack
from contrl.interfaces import Batch, Completion, Group

SCORES = frozenset({"scores"})


def singles() -> list[Group]:
    """Every completion of the ragged groups as a group of its own."""
    return [
        Group(f"{group.row_id}{number}", "t", group.prompt_ids, [completion])
        for group in ragged_groups()
        for number, completion in enumerate(group.completions)
    ]


def classifier(name: str, adapter: bool = False, **changes: Any) -> Any:
    config = CONFIGS[name]()
    for key, value in {"num_labels": 1, "pad_token_id": 0, **changes}.items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = tf.AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.25) if parameter.ndim > 1 else parameter.add_(0.1)
    return with_lora(model, task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"]) if adapter else model


# --- packed -------------------------------------------------------------------------------------------------------


def test_packing_is_first_fit_by_length() -> None:
    """Sizes 5 3 4 1 2 in rows of 6: 5+1, 4+2, 3."""
    rows, starts = pack([5, 3, 4, 1, 2], 6)
    assert (rows, starts) == ([0, 2, 1, 0, 1], [0, 0, 0, 5, 4])


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "mistral", "gemma3"])
def test_packed_rows_do_not_see_each_other(name: str) -> None:
    """Within 1e-5 of the plain layout, values and gradients, in fewer rows; sliding windows restart with each row."""
    model, batch = build(name).train(), to_batch(singles(), CPU)
    found = {}
    for layout in ("plain", "packed"):
        logps = score_batch(model, LMHead(model), batch, Routing(layout))["logps"]
        found[layout] = logps.detach(), gradients(model, logps.sum() / batch.mask.sum())
    torch.testing.assert_close(found["packed"][0], found["plain"][0], rtol=0, atol=1e-5)
    for key, value in found["plain"][1].items():
        torch.testing.assert_close(found["packed"][1][key], value, rtol=0, atol=1e-5)
    assert choose_layout(model, to_batch(probe(singles()), CPU), preferred="packed").layout == "packed"


@pytest.mark.parametrize("name", ["bloom", "mamba"])
def test_a_model_that_would_mix_packed_rows_runs_plain(name: str) -> None:
    """ALiBi takes no positions, a state space has no mask: the check at the start finds out."""
    check = choose_layout(build(name), to_batch(probe(singles()), CPU), preferred="packed")
    assert check.layout == "plain"
    assert check.reason


# --- passes -------------------------------------------------------------------------------------------------------


def test_a_pass_is_cut_where_padding_costs_more_than_another_pass() -> None:
    """Rows of 100 and 3 tokens: together 2 x 100, apart 103 and the overhead of one pass."""
    groups = [Group(name, "t", [1], [Completion([2] * n)]) for name, n in (("long", 99), ("short", 2))]
    assert len(plan_passes(groups, 10**6, overhead=96)) == 2
    assert len(plan_passes(groups, 10**6, overhead=98)) == 1


# --- what comes with the log-probabilities -------------------------------------------------------------------------


def test_extras_are_those_of_the_full_logits() -> None:
    """Entropy, hits, log of the sum of squared probabilities and mean logit, from the model's own logits, T = 0.7."""
    model, batch = build("llama"), ragged_batch()
    needs = frozenset({"entropy", "correct", "log_sum_p2", "mean_logits", "prompt_logps"})
    out = score_batch(model, LMHead(model), batch, Routing("shared", 0.7, needs))
    row = 0
    for number, group in enumerate(batch.groups):
        for completion in group.completions:
            ids = torch.tensor([group.prompt_ids + completion.ids])
            logits = model(input_ids=ids).logits[0] / 0.7
            logps = logits.log_softmax(-1)
            at = len(group.prompt_ids) - 1 + torch.arange(len(completion.ids))
            chosen = torch.tensor(completion.ids)
            wanted = {
                "entropy": -(logps.exp() * logps).sum(-1)[at],
                "correct": (logits.argmax(-1)[at] == chosen).float(),
                "log_sum_p2": (2 * logps).logsumexp(-1)[at],
                "mean_logits": logits.mean(-1)[at],
            }
            for name, value in wanted.items():
                mask = batch.mask[row, : len(chosen)]
                torch.testing.assert_close(out[name][row, : len(chosen)], value * mask, rtol=0, atol=1e-5)
            row += 1
        prompt = torch.tensor(group.prompt_ids)
        of_prompt = logps[torch.arange(len(prompt) - 1), prompt[1:]].sum()
        torch.testing.assert_close(out["prompt_logps"][number], of_prompt, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", ["plain", "packed"])
def test_prompt_logps_are_equal_in_every_layout(layout: Any) -> None:
    model, batch, needs = build("llama"), ragged_batch(), frozenset({"prompt_logps"})
    shared = score_batch(model, LMHead(model), batch, Routing("shared", needs=needs))["prompt_logps"]
    other = score_batch(model, LMHead(model), batch, Routing(layout, needs=needs))["prompt_logps"]
    assert shared.requires_grad
    torch.testing.assert_close(other, shared, rtol=0, atol=1e-5)


# --- classifiers ----------------------------------------------------------------------------------------------------


def own_scores(model: Any, batch: Batch, side: str) -> torch.Tensor:
    """The classifier's own logits of each whole sequence in a padded table."""
    rows = [group.prompt_ids + c.ids for group in batch.groups for c in group.completions]
    width = max(len(row) for row in rows)
    pad = [[0] * (width - len(row)) for row in rows]
    ids = [p + row if side == "left" else row + p for row, p in zip(rows, pad, strict=True)]
    mask = [
        [0] * len(p) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * len(p)
        for r, p in zip(rows, pad, strict=True)
    ]
    return model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits[:, 0]


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])
def test_a_score_is_read_at_the_last_real_token(name: str, adapter: bool) -> None:
    """Equal to the model's own answer, left or right padded, in every layout, with equal gradients."""
    model, batch = classifier(name, adapter).eval(), ragged_batch()
    wanted = own_scores(model, batch, "right")
    torch.testing.assert_close(own_scores(model, batch, "left"), wanted, rtol=0, atol=1e-5)
    expected = gradients(model, wanted.sum())
    for layout in ("shared", "plain", "packed"):
        scores = score_batch(model, head_of(model, SCORES), batch, Routing(layout, needs=SCORES))["scores"]
        torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-5)
        got = gradients(model, scores.sum())
        assert max(float((got[key] - value).abs().max()) for key, value in expected.items()) < 1e-4
    check_head(model, batch, needs=SCORES)
    assert choose_layout(model, batch, needs=SCORES).layout == "shared"


def test_a_pair_without_a_common_beginning_is_scored_too() -> None:
    """No shared token at all: such a batch runs plain."""
    model = classifier("llama").eval()
    batch = to_batch([Group("a", "t", [], [Completion([5, 6, 7]), Completion([8, 9])])], CPU)
    scores = score_batch(model, head_of(model, SCORES), batch, Routing("shared", needs=SCORES))["scores"]
    torch.testing.assert_close(scores, own_scores(model, batch, "right"), rtol=0, atol=1e-5)


def test_the_end_token_may_also_be_the_padding() -> None:
    """A row that ends with its pad token: the classifier's own search would stop before it, ours does not."""
    model = classifier("llama", pad_token_id=6).eval()
    batch = to_batch([Group("a", "t", [3, 4], [Completion([5, 6]), Completion([7, 8, 6])])], CPU)
    scores = score_batch(model, head_of(model, SCORES), batch, Routing("shared", needs=SCORES))["scores"]
    hidden = model.model(input_ids=torch.tensor([[3, 4, 5, 6]])).last_hidden_state[0, -1]
    torch.testing.assert_close(scores[0], model.score(hidden)[0], rtol=0, atol=1e-5)
    check_head(model, batch, needs=SCORES)
