"""The decode loop against ``generate``, teacher forcing and the distribution itself; and that nothing else decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from scipy import stats

from contrl.engine.batching import to_batch
from contrl.engine.forward import Routing, score_batch
from contrl.engine.lm_head import LMHead
from contrl.engine.shared_prompt import Layout
from contrl.errors import UserError
from contrl.interfaces import Completion, Group
from contrl.models.load import end_tokens
from contrl.rollout.choose import choose
from contrl.rollout.sampler import Noise, Sampling, Span, chunks, count_tokens, generate

LAYOUTS: tuple[Layout, ...] = ("plain", "shared")
FAMILIES = ("llama", "qwen2", "gpt2", "gpt_neox", "sliding")
# peft asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

Make = Callable[..., Any]
Prompts = list[tuple[str, list[int]]]


def ragged_prompts(number: int = 7, seed: int = 0) -> Prompts:
    """Prompts of 1 to 9 tokens of the 23-token vocabulary, without the end token 1."""
    generator = np.random.default_rng(seed)
    return [(f"row-{i}", generator.integers(2, 23, size=1 + (3 * i) % 9).tolist()) for i in range(number)]


def ids(sampled: Sequence[Sequence[Completion]]) -> list[list[list[int]]]:
    return [[completion.ids for completion in completions] for completions in sampled]


def teacher_forced(model: Any, prompt: list[int], completion: list[int], temperature: float = 1.0) -> torch.Tensor:
    """``[T, V]`` log-probabilities at each position of the completion, by one plain forward."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0].double() / temperature
    return torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]


# --- greedy -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate_prompt_by_prompt(make_model: Make, family: str) -> None:
    """Token for token, ragged prompts, three end tokens, rows that end early and rows that hit the limit."""
    model, prompts, ends, limit = make_model(family), ragged_prompts(), [1, 5, 11], 12
    sampled = generate(model, prompts, Sampling(limit, temperature=0.0), Noise((0,)), ends)
    wanted = []
    for _, prompt in prompts:
        out = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=limit, eos_token_id=ends, pad_token_id=0
        )
        wanted.append([out[0, len(prompt) :].tolist()])
    assert ids(sampled) == wanted
    for (completion,) in sampled:
        assert completion.ended == (completion.ids[-1] in ends)
        assert completion.ended or len(completion.ids) == limit
    if family == "llama":
        assert {completion.ended for (completion,) in sampled} == {True, False}


def test_a_window_shorter_than_the_prompt_matters(make_model: Make) -> None:
    """The sliding model of the other tests is not the full-attention one in disguise."""
    prompts, greedy = ragged_prompts(), Sampling(8, temperature=0.0)
    sliding = generate(make_model("sliding"), prompts, greedy, Noise((0,)), [])
    full = generate(make_model("sliding", sliding_window=None), prompts, greedy, Noise((0,)), [])
    assert ids(sliding) != ids(full)


def test_without_end_tokens_every_completion_has_the_full_length(make_model: Make) -> None:
    sampled = generate(make_model(), ragged_prompts(), Sampling(5, 3), Noise((0,)), [])
    lengths = {len(c.ids) for completions in sampled for c in completions}
    assert lengths == {5}
    assert not any(c.ended for completions in sampled for c in completions)


def test_an_end_token_at_the_limit_still_ends(make_model: Make) -> None:
    """With a limit of one token and every token an end, the completion is one token and ended by itself."""
    sampled = generate(make_model(), ragged_prompts(3), Sampling(1, 2), Noise((0,)), list(range(23)))
    assert all(len(c.ids) == 1 and c.ended for completions in sampled for c in completions)


def test_end_tokens_of_the_model_are_used_under_an_adapter_too(make_model: Make) -> None:
    model = make_model(eos_token_id=[1, 5])
    assert end_tokens(model) == [1, 5]
    assert end_tokens(get_peft_model(model, LoraConfig(r=2, task_type=TaskType.CAUSAL_LM))) == [1, 5]


# --- kept log-probabilities -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_logps_equal_a_teacher_forced_forward(make_model: Make, family: str) -> None:
    """In float32, at temperature 1.7 and 1; ``sampler_logps`` and ``old_logps`` are then the same numbers."""
    model, prompts = make_model(family, dtype=torch.float32), ragged_prompts(5)
    for temperature in (1.0, 1.7):
        sampled = generate(model, prompts, Sampling(8, 3, temperature), Noise((1,)), [1])
        for (_, prompt), completions in zip(prompts, sampled, strict=True):
            for completion in completions:
                table = teacher_forced(model, prompt, completion.ids, temperature)
                wanted = table.gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]
                torch.testing.assert_close(
                    torch.tensor(completion.sampler_logps, dtype=torch.float64), wanted, atol=1e-5, rtol=0
                )
                assert completion.sampler_logps == completion.old_logps


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_logps_equal_those_the_engine_trains_on(make_model: Make, family: str) -> None:
    """Both layouts of the training forward, at the sampler's temperature: the ratio of a reused rollout starts at 1."""
    model, prompts = make_model(family, dtype=torch.float32), ragged_prompts(5)
    sampled = generate(model, prompts, Sampling(8, 3, 1.4), Noise((1,)), [1])
    groups = [Group(name, "t", ids, done) for (name, ids), done in zip(prompts, sampled, strict=True)]
    batch = to_batch(groups, torch.device("cpu"), use_old_logps=True)
    for layout in LAYOUTS:
        with torch.no_grad():
            logps = score_batch(model, LMHead(model), batch, Routing(layout, temperature=1.4))["logps"]
        torch.testing.assert_close(logps, batch.old_logps, atol=1e-5, rtol=0)


def test_greedy_logps_are_at_temperature_one(make_model: Make) -> None:
    model, (name, prompt) = make_model(), ragged_prompts()[3]
    ((completion,),) = generate(model, [(name, prompt)], Sampling(6, temperature=0.0), Noise((0,)), [])
    wanted = teacher_forced(model, prompt, completion.ids).max(-1).values
    torch.testing.assert_close(torch.tensor(completion.old_logps, dtype=torch.float64), wanted, atol=1e-9, rtol=0)


def test_with_a_nucleus_sampler_logps_are_renormalised_and_old_logps_are_not(make_model: Make) -> None:
    """sampler = log p - log(mass of the nucleus); the nucleus is the fewest tokens whose mass reaches top_p."""
    model, prompts, top_p = make_model(), ragged_prompts(4), 0.7
    sampled = generate(model, prompts, Sampling(6, 4, 1.3, top_p), Noise((2,)), [1])
    smaller = 0
    for (_, prompt), completions in zip(prompts, sampled, strict=True):
        for completion in completions:
            table = teacher_forced(model, prompt, completion.ids, 1.3)
            assert completion.sampler_logps is not None
            assert completion.old_logps is not None
            for row, token, sampler_logp, old_logp in zip(
                table, completion.ids, completion.sampler_logps, completion.old_logps, strict=True
            ):
                ordered, order = row.exp().sort(descending=True)
                size = int((ordered.cumsum(-1) < top_p).sum()) + 1
                assert token in order[:size].tolist()
                assert old_logp == pytest.approx(float(row[token]), abs=1e-6)
                assert sampler_logp == pytest.approx(float(row[token] - ordered[:size].sum().log()), abs=1e-6)
                smaller += size < len(row)
    assert smaller > 20


# --- the distribution -----------------------------------------------------------------------------------


def two_token_counts(model: Any, sampling: Sampling) -> np.ndarray:
    """``[V, V]`` how often each pair of tokens followed the prompt [2]."""
    (completions,) = generate(model, [("row", [2])], sampling, Noise((7,)), [])
    counts = np.zeros((5, 5))
    for completion in completions:
        counts[completion.ids[0], completion.ids[1]] += 1
    return counts


def pair_probabilities(model: Any, temperature: float) -> np.ndarray:
    """``[V, V]`` p(a) p(b | a), enumerated."""
    first = teacher_forced(model, [2], [0], temperature)[0]
    second = torch.stack([teacher_forced(model, [2], [token, 0], temperature)[1] for token in range(5)])
    return (first[:, None] + second).exp().numpy()


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_sampling_frequencies_follow_the_distribution(make_model: Make, temperature: float) -> None:
    """Chi-square over all 25 two-token completions of a 5-token vocabulary, 6,000 samples.

    The second token tests that the noise of a position does not depend on that of the one before.
    """
    model, number = make_model(vocab_size=5, eos_token_id=4, initializer_range=0.15), 6000
    expected = pair_probabilities(model, temperature) * number
    assert expected.min() > 5
    assert expected.max() > 3 * number / 25
    counts = two_token_counts(model, Sampling(2, number, temperature))
    assert stats.chisquare(counts.ravel(), expected.ravel()).pvalue > 0.001
    wrong = pair_probabilities(model, 2.2) * number
    assert stats.chisquare(counts.ravel(), wrong.ravel()).pvalue < 1e-6


def test_nucleus_frequencies_follow_the_renormalised_distribution() -> None:
    """p = .5, .3, .1, .06, .04 at top_p .75: tokens 0 and 1 alone, with .5/.8 and .3/.8."""
    logits = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04]).log()
    uniforms = torch.from_numpy(np.random.default_rng(0).random(4000))
    token, logps = choose(logits.expand(4000, 5), uniforms, Sampling(1, top_p=0.75))
    counts = np.bincount(token.numpy(), minlength=5)
    assert counts[2:].sum() == 0
    assert stats.chisquare(counts[:2], [2500, 1500]).pvalue > 0.01
    assert logps[token == 1][0].tolist() == pytest.approx([np.log(0.3 / 0.8), np.log(0.3)], abs=1e-6)


@pytest.mark.parametrize(("top_p", "kept"), [(0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.999, 5), (1.0, 5)])
def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p(top_p: float, kept: int) -> None:
    """Cumulative .5, .8, .9, .96, 1: a grid of uniforms finds exactly the tokens that can be drawn."""
    logits = torch.tensor([[0.06, 0.5, 0.1, 0.3, 0.04]]).log()
    uniforms = torch.linspace(0, 0.9999, 400, dtype=torch.float64)
    token, _ = choose(logits.expand(400, 5), uniforms, Sampling(1, top_p=top_p))
    assert set(token.tolist()) == set([1, 3, 2, 0, 4][:kept])


# --- what must not decide ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_chunking_and_dropping_change_no_token(make_model: Make, family: str) -> None:
    """One prompt at a time, a few, all together; the rows end at different steps, so every size drops other rows."""
    model, prompts, sampling = make_model(family), ragged_prompts(6), Sampling(10, 3, 1.2)
    runs = [generate(model, prompts, sampling, Noise((3, 1, 4)), [1, 5, 9], budget) for budget in (1, 100, 10**6)]
    lengths = {len(c.ids) for completions in runs[0] for c in completions}
    assert len(lengths) > 3
    assert ids(runs[0]) == ids(runs[1]) == ids(runs[2])
    for one, other in zip(runs[0], runs[2], strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.old_logps == pytest.approx(b.old_logps, abs=1e-6)


def test_order_and_company_of_prompts_change_no_token(make_model: Make) -> None:
    model, prompts, sampling, noise = make_model(), ragged_prompts(), Sampling(8, 2), Noise((5, 1, 9))
    together = dict(
        zip((name for name, _ in prompts), ids(generate(model, prompts, sampling, noise, [1])), strict=True)
    )
    shuffled = [prompts[i] for i in (4, 2, 6, 0)]
    again = ids(generate(model, shuffled, sampling, noise, [1]))
    assert again == [together[name] for name, _ in shuffled]


def test_samples_do_not_depend_on_how_many_are_asked_for(make_model: Make) -> None:
    model, prompts, noise = make_model(), ragged_prompts(3), Noise((0, 1, 2))
    few = generate(model, prompts, Sampling(6, 2), noise, [1])
    many = generate(model, prompts, Sampling(6, 5), noise, [1])
    assert ids(few) == [completions[:2] for completions in ids(many)]


def test_equal_keys_repeat_and_any_part_of_the_key_changes_the_tokens(make_model: Make) -> None:
    """Seed, stage and step are the key; the row's name and the sample's number join it."""
    model, prompt, sampling = make_model(), [3, 7, 2], Sampling(12, 2)

    def draw(name: str, *key: int) -> list[list[list[int]]]:
        return ids(generate(model, [(name, prompt)], sampling, Noise(key), []))

    first = draw("row", 0, 1, 2)
    assert draw("row", 0, 1, 2) == first
    assert first[0][0] != first[0][1]
    others = [draw("row", 9, 1, 2), draw("row", 0, 9, 2), draw("row", 0, 1, 9), draw("other", 0, 1, 2)]
    assert all(other != first for other in others)
    assert len({str(other) for other in others}) == 4


def test_sampling_uses_no_global_randomness(make_model: Make) -> None:
    """Neither reads torch's and numpy's global generators nor moves them: resume depends on it."""
    model, prompts, sampling = make_model(), ragged_prompts(2), Sampling(6, 2)
    torch.manual_seed(1)
    first, before = ids(generate(model, prompts, sampling, Noise((0,)), [1])), torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert ids(generate(model, prompts, sampling, Noise((0,)), [1])) == first


def test_a_model_in_train_mode_is_sampled_without_dropout(make_model: Make) -> None:
    """The sampler's own contract; every module is in its old mode afterwards, also one that was frozen in eval."""
    model = make_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    prompts, sampling = ragged_prompts(4), Sampling(8, 2)
    wanted = ids(generate(model, prompts, sampling, Noise((0,)), [1]))
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    assert ids(generate(model, prompts, sampling, Noise((0,)), [1])) == wanted
    assert [module.training for module in model.modules()] == modes


def test_a_lora_model_in_train_mode_samples_as_its_merged_self(make_model: Make) -> None:
    """Nothing is merged while it samples, and the adapter's dropout is off."""
    model, prompts, sampling = make_model(), ragged_prompts(), Sampling(8, 2)
    plain = ids(generate(model, prompts, sampling, Noise((0,)), [1]))
    config = LoraConfig(r=4, lora_alpha=16, lora_dropout=0.5, init_lora_weights=False, task_type=TaskType.CAUSAL_LM)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = get_peft_model(model, config).double().train()
    weights = {name: value.clone() for name, value in adapted.state_dict().items()}
    sampled = generate(adapted, prompts, sampling, Noise((0,)), [1])
    assert all(torch.equal(value, weights[name]) for name, value in adapted.state_dict().items())
    assert ids(sampled) != plain
    merged = adapted.merge_and_unload()
    again = generate(merged, prompts, sampling, Noise((0,)), [1])
    assert ids(again) == ids(sampled)
    for one, other in zip(again, sampled, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.old_logps == pytest.approx(b.old_logps, abs=1e-9)


# --- how many rows live -----------------------------------------------------------------------------------


def test_chunks_by_hand() -> None:
    """Two new tokens, three samples. Widths 7, 5, 4: 14 positions hold two rows of 7 and, after those, one of 7 and one
    of 5. Then two rows of 5 and no third prompt whole, so its three rows of 4 are a chunk of their own.
    """
    lengths, sampling = [2, 5, 3], Sampling(2, 3)
    found = list(chunks(lengths, sampling, 14))
    assert found == [[Span(1, 0, 2)], [Span(1, 2, 3)], [Span(2, 0, 2)], [Span(2, 2, 3)], [Span(0, 0, 3)]]
    assert list(chunks(lengths, sampling, 63)) == [[Span(1, 0, 3), Span(2, 0, 3), Span(0, 0, 3)]]
    assert list(chunks([], sampling, 14)) == []


@given(
    lengths=st.lists(st.integers(1, 30), max_size=12),
    samples=st.integers(1, 9),
    limit=st.integers(1, 20),
    budget=st.integers(1, 400),
)
def test_chunks_hold_every_sample_once_within_the_budget(
    lengths: list[int], samples: int, limit: int, budget: int
) -> None:
    """Longest prompts first; a chunk over the budget is a single row."""
    found = list(chunks(lengths, Sampling(limit, samples), budget))
    rows = [(span.prompt, sample) for chunk in found for span in chunk for sample in range(span.start, span.stop)]
    assert sorted(rows) == [(prompt, sample) for prompt in range(len(lengths)) for sample in range(samples)]
    firsts = [max(lengths[span.prompt] for span in chunk) for chunk in found]
    assert firsts == sorted(firsts, reverse=True)
    for chunk, longest in zip(found, firsts, strict=True):
        number = sum(span.stop - span.start for span in chunk)
        assert number * (longest + limit) <= budget or number == 1


@pytest.mark.parametrize("family", ["llama", "sliding"])
def test_no_forward_holds_more_than_the_budget_and_nothing_depends_on_it(make_model: Make, family: str) -> None:
    """Counted where the model is called: rows times positions so far. Four samples of 9 + 10 tokens exceed 50."""
    model, prompts, sampling, held = make_model(family), ragged_prompts(6), Sampling(10, 4, 1.2), []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        held.append(kwargs["attention_mask"].numel())

    model.register_forward_pre_hook(count, with_kwargs=True)
    for ends in list[list[int]]([[], [1, 5]]):
        wanted = generate(model, prompts, sampling, Noise((3,)), ends)
        for budget in (50, 90):
            held.clear()
            assert ids(generate(model, prompts, sampling, Noise((3,)), ends, budget)) == ids(wanted)
            assert max(held) <= budget
            assert ends or max(held) > budget / 2, "the budget is not used"


def test_tokens_are_counted(make_model: Make) -> None:
    sampled = generate(make_model(), ragged_prompts(3), Sampling(5, 2), Noise((0,)), [])
    assert count_tokens(sampled) == 3 * 2 * 5
    assert count_tokens([]) == 0


# --- processors in the loop -------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.4, 0.5])
def test_greedy_with_a_repetition_penalty_equals_generate(make_model: Make, penalty: float) -> None:
    """The prompt counts, padding does not, rows that are dropped take their tokens with them."""
    model, prompts, ends = make_model(), ragged_prompts(), [1, 5, 11]
    greedy = Sampling(12, temperature=0.0, repetition_penalty=penalty)
    sampled = generate(model, prompts, greedy, Noise((0,)), ends)
    wanted = []
    for _, prompt in prompts:
        out = model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=ends,
            pad_token_id=0,
            repetition_penalty=penalty,
        )
        wanted.append([out[0, len(prompt) :].tolist()])
    assert ids(sampled) == wanted
    assert ids(generate(model, prompts, Sampling(12, temperature=0.0), Noise((0,)), ends)) != wanted
    assert len({len(completion[0]) for completion in wanted}) > 2


def test_all_processors_together_do_not_depend_on_chunks(make_model: Make) -> None:
    """Kept log-probabilities: of the raw logits at the temperature, and never below those of the distribution drawn."""
    model, prompts = make_model(), ragged_prompts(6)
    sampling = Sampling(10, 3, 1.3, 0.9, 9, 0.02, 1.3, stop_tokens=(7,))
    runs = [generate(model, prompts, sampling, Noise((8,)), [1, 5], budget) for budget in (1, 80, 10**6)]
    assert ids(runs[0]) == ids(runs[1]) == ids(runs[2])
    differ = 0
    for (_, prompt), completions in zip(prompts, runs[2], strict=True):
        for completion in completions:
            table = teacher_forced(model, prompt, completion.ids, 1.3)
            wanted = table.gather(-1, torch.tensor(completion.ids)[:, None])[:, 0].tolist()
            assert completion.old_logps == pytest.approx(wanted, abs=1e-9)
            differ += completion.sampler_logps != completion.old_logps
    assert differ > 10


# --- refusals ---------------------------------------------------------------------------------------------


def test_an_empty_prompt_is_refused(make_model: Make) -> None:
    with pytest.raises(UserError, match="no tokens"):
        generate(make_model(), [("a", [2]), ("b", [])], Sampling(2), Noise((0,)), [1])


def test_prompt_learning_adapters_are_refused(make_model: Make) -> None:
    model = get_peft_model(make_model(), PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2))
    with pytest.raises(UserError, match="virtual-token"):
        generate(model, [("a", [2])], Sampling(2), Noise((0,)), [1])


def test_no_prompts_give_no_completions(make_model: Make) -> None:
    assert generate(make_model(), [], Sampling(4), Noise((0,)), [1]) == []
