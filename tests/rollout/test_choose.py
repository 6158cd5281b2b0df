"""From logits to tokens: the kept sets of transformers' own processors, and the inverse of the cumulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from contrl.errors import UserError
from contrl.rollout.choose import BLOCK, CANDIDATES, Sampling, choose, filtered, invert


def logits_of(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return 2.5 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def every_token(rows: torch.Tensor, sampling: Sampling, used: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """``[B, V]`` the distribution drawn from (zero where no uniform finds a token) and the policy's own log-probs."""
    drawn, policy = torch.zeros_like(rows), torch.full_like(rows, torch.nan)
    uniforms = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    for row, logits in enumerate(rows):
        seen = None if used is None else used[row].expand(4000, -1)
        token, logps = choose(logits.expand(4000, -1), uniforms, sampling, seen)
        drawn[row, token], policy[row, token] = logps[:, 0].exp(), logps[:, 1]
    return drawn, policy


@pytest.mark.parametrize(
    ("penalty", "temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0.8, 5, 1.0, 0.0),
        (1.0, 1.3, 0, 1.0, 0.2),
        (1.7, 1.0, 0, 1.0, 0.0),
        (1.0, 1.0, 6, 0.8, 0.0),
        (0.6, 1.5, 8, 0.9, 0.1),
        (1.7, 0.6, 9, 0.95, 0.05),
        (1.7, 2.0, 0, 0.7, 0.3),
    ],
)
def test_the_distribution_is_that_of_transformers_own_processors(
    penalty: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Penalty, temperature, top-k, top-p, min-p in this order: the same tokens are left and as likely.

    A grid of 4,000 uniforms finds every token more likely than 1/4000; the policy's own log-probability is that of the
    raw logits at the temperature, whatever was left out.
    """
    rows, tokens = logits_of(6, 14), torch.randint(0, 14, (6, 5), generator=torch.Generator().manual_seed(1))
    processors = LogitsProcessorList()
    if penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(penalty))
    processors.append(TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(TopPLogitsWarper(top_p))
    if min_p:
        processors.append(MinPLogitsWarper(min_p))
    wanted = torch.softmax(processors(tokens, rows.clone()), -1)
    used = torch.zeros(6, 14, dtype=torch.bool).scatter(-1, tokens, True)
    sampling = Sampling(1, 1, temperature, top_p, top_k, min_p, penalty)
    drawn, policy = every_token(rows, sampling, used)
    likely = wanted > 1 / 4000
    torch.testing.assert_close(drawn[likely], wanted[likely], atol=1e-9, rtol=0)
    assert not (drawn[wanted == 0] > 0).any(), "a token was drawn that transformers leaves out"
    own = torch.log_softmax(rows / temperature, -1)
    found = ~policy.isnan()
    torch.testing.assert_close(policy[found], own[found], atol=1e-9, rtol=0)
    if top_k or top_p < 1 or min_p:
        assert (wanted == 0).any()


def test_the_order_of_the_processors_matters_here() -> None:
    """At temperature 2 after top-p .7 fewer tokens are left than before: the test above can tell."""
    rows = logits_of(6, 14)
    after = filtered(rows / 2, Sampling(1, top_p=0.7)).isfinite().sum()
    before = filtered(rows, Sampling(1, top_p=0.7)).isfinite().sum()
    assert after > before


def test_top_k_and_min_p_by_hand() -> None:
    """p = .5, .3, .1, .06, .04. Top 2: .625, .375. Min-p .15 leaves what reaches .075: .5/.9, .3/.9, .1/.9."""
    logits = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04]], dtype=torch.float64).log()
    two = torch.softmax(filtered(logits, Sampling(1, top_k=2)), -1)[0]
    assert two.tolist() == pytest.approx([0.625, 0.375, 0, 0, 0])
    three = torch.softmax(filtered(logits, Sampling(1, min_p=0.15)), -1)[0]
    assert three.tolist() == pytest.approx([5 / 9, 3 / 9, 1 / 9, 0, 0])


def test_the_penalty_divides_positive_logits_and_multiplies_negative_ones() -> None:
    """Logits 2 and -1 in the prompt, 1 elsewhere, penalty 2: greedy sees 1, -2 and 1.5 and takes the third."""
    logits, used = torch.tensor([[2.0, -1.0, 1.5]]), torch.tensor([[True, True, False]])
    sampling = Sampling(1, temperature=0.0, repetition_penalty=2.0)
    token, logps = choose(logits, torch.zeros(1), sampling, used)
    assert token.tolist() == [2]
    assert logps[0, 0] == pytest.approx(float(torch.tensor([1.0, -2.0, 1.5]).log_softmax(-1)[2]))
    assert logps[0, 1] == pytest.approx(float(logits.log_softmax(-1)[0, 2]))
    assert choose(logits, torch.zeros(1), Sampling(1, temperature=0.0))[0].tolist() == [0]


@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_a_nucleus_of_a_large_vocabulary(scale: float) -> None:
    """Nearly flat over 3,000 tokens, so that the candidates do not reach it, and sharp, so that they do."""
    logits = scale * logits_of(3, 3 * CANDIDATES)
    kept = filtered(logits, Sampling(1, top_p=0.9)).isfinite()
    wanted = TopPLogitsWarper(0.9)(torch.zeros(3, 1, dtype=torch.long), logits).isfinite()
    assert torch.equal(kept, wanted)
    assert bool((kept.sum(-1) > CANDIDATES).all()) == (scale < 1)


# --- the inverse ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [5, BLOCK, 2 * BLOCK, 2 * BLOCK + 1, 5 * BLOCK - 3, 4 * BLOCK * BLOCK + 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_find_what_one_cumulation_finds(vocabulary: int, dtype: torch.dtype) -> None:
    """Also where two levels of blocks are needed, and where the last block is not full."""
    rows = 200 if vocabulary < 10**5 else 5
    weights = torch.softmax(logits_of(1, vocabulary), -1).to(dtype).expand(rows, -1).clone()
    weights[:, 1::3] = 0
    uniforms = torch.from_numpy(np.random.default_rng(0).random(rows))
    index, rest = invert(weights, uniforms)
    cumulative = weights.double().cumsum(-1)
    wanted = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)[:, 0]
    assert (index != wanted).sum() <= (0 if dtype == torch.float64 else 1)
    assert (weights.gather(-1, index[:, None]) > 0).all()
    assert ((rest >= 0) & (rest <= 1)).all()


def test_the_rest_says_where_in_the_weight_the_uniform_lies() -> None:
    """Weights 2, 6 of 8: .25 starts the second, .625 is half way through it, .125 half way through the first."""
    weights = torch.tensor([[2.0, 6.0]]).expand(3, 2)
    index, rest = invert(weights, torch.tensor([0.25, 0.625, 0.125], dtype=torch.float64))
    assert index.tolist() == [1, 1, 0]
    assert rest.tolist() == pytest.approx([0.0, 0.5, 0.5])


@pytest.mark.parametrize("vocabulary", [5, 3 * BLOCK])
def test_the_smallest_and_largest_uniform_never_draw_an_impossible_token(vocabulary: int) -> None:
    """The first and the last token have probability 0; the table's ends must not fall on them."""
    logits = torch.zeros(1, vocabulary)
    logits[0, 0] = logits[0, -1] = -torch.inf
    uniforms = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    token, logps = choose(logits.expand(2, -1), uniforms, Sampling(1))
    assert token.tolist() == [1, vocabulary - 2]
    assert torch.isfinite(logps).all()


def test_float32_frequencies_over_many_blocks() -> None:
    """Chi-square over the blocks' sums and inside the likeliest block, 20,000 draws of 1,000 tokens."""
    probabilities = torch.softmax(0.4 * logits_of(1, 1000).float(), -1)
    uniforms = torch.from_numpy(np.random.default_rng(3).random(20000))
    index, _ = invert(probabilities.expand(20000, -1), uniforms)
    counts = np.bincount(index.numpy(), minlength=1000)
    expected = probabilities[0].double().numpy() / float(probabilities.double().sum()) * 20000
    assert expected.min() > 0.3
    tens, wanted = counts.reshape(100, 10).sum(1), expected.reshape(100, 10).sum(1)
    assert stats.chisquare(tens, wanted).pvalue > 0.001
    assert stats.chisquare(tens, np.roll(wanted, 1)).pvalue < 1e-6


def test_logits_that_are_no_numbers_give_a_token_and_no_crash() -> None:
    """A broken model is reported where its loss is; here its tokens only have to exist."""
    for vocabulary in (5, 3 * BLOCK - 1):
        logits = torch.full((2, vocabulary), torch.nan)
        token, logps = choose(logits, torch.tensor([0.1, 0.9], dtype=torch.float64), Sampling(1))
        assert ((token >= 0) & (token < vocabulary)).all()
        assert logps.isnan().all()


# --- refusals ---------------------------------------------------------------------------------------------


def test_settings_without_meaning_are_refused() -> None:
    bad = {
        "max_new_tokens": 0,
        "samples_per_prompt": 0,
        "temperature": -1.0,
        "top_p": 0.0,
        "top_k": -1,
        "min_p": 1.5,
        "repetition_penalty": 0.0,
        "stop": ("",),
    }
    for name, value in itertools.chain(bad.items(), [("stop", "END"), ("top_p", 1.1)]):
        with pytest.raises(UserError, match=name):
            Sampling(**({"max_new_tokens": 4} | {name: value}))
