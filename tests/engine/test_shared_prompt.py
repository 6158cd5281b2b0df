"""Shared layout = plain layout: log-probabilities and every gradient, for every architecture, adapter and raggedness.

The reference of both is the plainest thing there is: each prompt and completion alone in a row, unpadded, through
the model's own logits and a dense log-softmax.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from toys import CPU, build, gradients, ragged_batch, ragged_groups, with_lora

from contrl.engine import shared_prompt
from contrl.engine.batching import buckets, to_batch
from contrl.engine.forward import Routing, score_batch
from contrl.engine.layout_check import choose_layout
from contrl.engine.lm_head import LMHead
from contrl.engine.shared_prompt import hidden_states, layout_for, obstacle
from contrl.interfaces import Batch, Completion, Group

ARCHITECTURES = ["llama", "llama-tied", "qwen2", "gpt2", "gpt-neox", "opt", "mistral", "gemma2", "gemma3", "bloom"]
Gradients = dict[str, torch.Tensor]


def run(
    model: Any, batch: Batch, layout: Any, autocast: Any = contextlib.nullcontext
) -> tuple[torch.Tensor, Gradients]:
    """Log-probabilities and the gradient of their mean over trained tokens."""
    with autocast():
        logps = score_batch(model, LMHead(model), batch, Routing(layout))["logps"]
    return logps.detach(), gradients(model, logps.sum() / batch.mask.sum())


def dense(model: Any, batch: Batch) -> torch.Tensor:
    """``[N, T]`` log-probabilities of trained tokens, row by row through the model's own logits."""
    table = torch.zeros(batch.mask.shape)
    row = 0
    for group in batch.groups:
        for completion in group.completions:
            ids = torch.tensor([group.prompt_ids + completion.ids])
            with torch.no_grad():
                logps = model(input_ids=ids).logits[0].float().log_softmax(-1)
            for token, chosen in enumerate(completion.ids):
                table[row, token] = logps[len(group.prompt_ids) - 1 + token, chosen]
            row += 1
    return table * batch.mask


def largest(a: Gradients, b: Gradients) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_both_layouts_give_the_same_numbers(name: str, adapter: str) -> None:
    """Within 1e-5 in float32, in train mode; the sliding windows (4) are shorter than the longest prompt (9)."""
    lora = {"fan_in_fan_out": True} if name == "gpt2" else {}
    model = build(name) if adapter == "full" else with_lora(build(name), **lora)
    model.train()
    batch = ragged_batch()
    assert layout_for(model, batch, "shared") == "shared"
    plain, plain_gradient = run(model, batch, "plain")
    shared, shared_gradient = run(model, batch, "shared")
    assert float(plain[batch.mask].std()) > 0.1  # the weights matter
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(plain, dense(model, batch), rtol=0, atol=1e-5)
    assert largest(plain_gradient, shared_gradient) < 1e-5
    silent = [key for key, value in plain_gradient.items() if not value.any() and "k_proj.bias" not in key]
    assert not silent, f"no gradient reached {silent}"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_completions_in_buckets_give_the_same_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bucket runs on a cache of its own; with a cost of one token a call, nine completions make five or more."""
    model, batch = build(name).train(), ragged_batch()
    together, gradient = run(model, batch, "shared")
    monkeypatch.setattr(shared_prompt, "overhead", lambda device: 1)
    lengths = [len(c.ids) for group in batch.groups for c in group.completions]
    assert len(buckets(lengths, 1)) >= 5
    apart, gradient_apart = run(model, batch, "shared")
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-5)
    assert largest(gradient_apart, gradient) < 1e-5


def test_buckets_are_the_cheapest_cut() -> None:
    """Lengths 8, 8, 2, 1: together 4 x 8 + 3 = 35, cut once 16 + 2 x 2 + 6 = 26, cut twice 16 + 2 + 1 + 9 = 28."""
    assert buckets([2, 8, 1, 8], 3) == [[1, 3], [0, 2]]
    assert buckets([2, 8, 1, 8], 13) == [[0, 1, 2, 3]]
    assert buckets([], 3) == []


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gemma3"])
def test_bf16_autocast_differs_no_more_than_padding_does(name: str) -> None:
    """Neither layout is the true one in bf16: shared may be at most half as far again from float32 as plain is."""
    model, batch = build(name).train(), ragged_batch()
    true, true_gradient = run(model, batch, "plain")
    plain, plain_gradient = run(model, batch, "plain", bf16)
    shared, shared_gradient = run(model, batch, "shared", bf16)
    assert float((plain - true).abs().max()) > 1e-3  # autocast was on
    assert float((shared - true).abs().max()) < 1.5 * float((plain - true).abs().max())
    assert largest(shared_gradient, true_gradient) < 1.5 * largest(plain_gradient, true_gradient)
    assert choose_layout(model, batch, bf16).layout == "shared"


def bf16() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_masked_positions_before_a_row_change_nothing() -> None:
    """``shift`` is what rounding is measured with; in float32 it must not matter."""
    for name in ("llama", "gpt2", "mistral", "opt"):
        model, batch = build(name), ragged_batch()
        alone = hidden_states(model, batch, "plain").trained
        torch.testing.assert_close(hidden_states(model, batch, "plain", shift=5).trained, alone, rtol=1e-5, atol=1e-5)


def test_position_ids_are_what_makes_learned_positions_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contract with transformers: gpt2 does not derive positions from the mask; when it does, drop ours."""
    model, batch = build("gpt2"), ragged_batch()
    right = dense(model, batch)
    monkeypatch.setattr(shared_prompt, "_positions", lambda stack, positions: {})
    assert float((run(model, batch, "shared")[0] - right).abs().max()) > 0.1


@pytest.mark.parametrize("layout", ["shared", "plain"])
def test_gradient_enters_at_trained_tokens_only(layout: Any) -> None:
    """Of the last hidden states, those that predict a trained token get a gradient; prompts and padding get none."""
    model, batch = build("llama"), ragged_batch()
    states: list[torch.Tensor] = []

    def keep(module: Any, args: Any, out: Any) -> None:
        out.last_hidden_state.retain_grad()
        states.append(out.last_hidden_state)

    model.model.register_forward_hook(keep)
    score_batch(model, LMHead(model), batch, Routing(layout))["logps"].sum().backward()
    touched = [(state.grad != 0).any(-1) for state in states]
    firsts = batch.mask[:, 0]
    if layout == "shared":
        prompts, completions = touched
        assert not prompts[:, :-1].any()
        assert prompts[:, -1].tolist() == [bool(firsts[batch.group_index == g].any()) for g in range(3)]
        assert torch.equal(completions, batch.mask[:, 1:])
    else:
        for row, (group, completion) in enumerate((g, c) for g in batch.groups for c in g.completions):
            start = len(group.prompt_ids) - 1
            wanted = torch.zeros_like(touched[0][row])
            wanted[start : start + len(completion.ids)] = batch.mask[row, : len(completion.ids)]
            assert torch.equal(touched[0][row], wanted)


# --- when the plain layout is the only one ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["mamba", "lfm2", "falcon-h1", "minimax", "recurrent-gemma"])
def test_a_cache_that_cannot_be_repeated_falls_back(name: str) -> None:
    """State-space, convolution and linear-attention caches; the plain layout is right on each."""
    model, batch = build(name), ragged_batch()
    check = choose_layout(model, batch)
    assert check.layout == "plain"
    assert "expanded cache" in check.reason
    torch.testing.assert_close(run(model, batch, "plain")[0], dense(model, batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_gradient_checkpointing_runs_plain_with_equal_results(name: str) -> None:
    model, batch = build(name).train(), ragged_batch()
    wanted, wanted_gradient = run(model, batch, "shared")
    model.activation_checkpointing_enable()
    assert layout_for(model, batch, "shared") == "plain"
    assert "checkpointing" in choose_layout(model, batch).reason
    logps, gradient = run(model, batch, "shared")
    torch.testing.assert_close(logps, wanted, rtol=0, atol=1e-5)
    assert largest(gradient, wanted_gradient) < 1e-5


def test_checkpointing_is_no_obstacle_where_nothing_is_checkpointed() -> None:
    """In eval mode (reference, evaluation) the layers run as they are, so the shared layout stays right."""
    model, batch = build("llama").eval(), ragged_batch()
    model.activation_checkpointing_enable()
    assert layout_for(model, batch, "shared") == "shared"
    torch.testing.assert_close(run(model, batch, "shared")[0], dense(model, batch), rtol=0, atol=1e-5)


def test_upstream_still_drops_a_passed_cache_under_checkpointing() -> None:
    """Contract with transformers: in train mode the prompt in the cache is ignored.

    A single token is scored as if nothing stood before it, without an exception; several tokens meet a mask that
    was made for the cache, which raises. The day both fail, checkpointing need not mean the plain layout.
    """
    model = build("llama")
    prompt, answer = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[10, 11, 12]])
    right = model(input_ids=torch.cat([prompt, answer], 1)).logits[:, 5:]

    def on_the_cache(tokens: torch.Tensor) -> torch.Tensor:
        cache = model.eval()(input_ids=prompt, use_cache=True).past_key_values
        positions = 5 + torch.arange(tokens.shape[1])[None]
        return model.train()(input_ids=tokens, past_key_values=cache, position_ids=positions, use_cache=True).logits

    torch.testing.assert_close(on_the_cache(answer), right, rtol=0, atol=1e-5)
    model.activation_checkpointing_enable()
    assert (on_the_cache(answer[:, :1]) - right[:, :1]).abs().max().item() > 0.1
    with pytest.raises(RuntimeError, match="size of tensor"):
        on_the_cache(answer)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_virtual_tokens_run_plain_and_equal_the_adapters_own_logits(kind: str) -> None:
    options = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
    config = PromptTuningConfig(**options) if kind == "prompt" else PrefixTuningConfig(**options)
    model = get_peft_model(build("llama"), config)
    batch = ragged_batch()
    assert obstacle(model, batch) == "virtual tokens stand before the prompt"
    assert choose_layout(model, batch).layout == "plain"
    logps, gradient = run(model, batch, "shared")
    for row, (group, completion) in enumerate((g, c) for g in batch.groups for c in g.completions):
        ids = torch.tensor([group.prompt_ids + completion.ids])
        own = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
        # Prompt tuning answers for its virtual tokens as well; they come first.
        own = own[-ids.shape[1] :][len(group.prompt_ids) - 1 : -1]
        wanted = own[range(len(completion.ids)), completion.ids] * batch.mask[row, : len(completion.ids)]
        torch.testing.assert_close(logps[row, : len(completion.ids)], wanted, rtol=0, atol=1e-5)
    assert all(value.any() for value in gradient.values())
    # Contract with peft: the stack below knows nothing of virtual tokens, and would answer as if there were none.
    bare = dense(model.get_base_model(), batch)
    assert float((bare - logps).abs().max()) > 0.05


def test_single_completions_share_nothing() -> None:
    groups = [Group(g.row_id, g.task, g.prompt_ids, g.completions[:1]) for g in ragged_groups()]
    model, batch = build("llama"), to_batch(groups, CPU)
    assert layout_for(model, batch, "shared") == "plain"
    torch.testing.assert_close(run(model, batch, "shared")[0], dense(model, batch), rtol=0, atol=1e-5)


def test_completions_of_one_token_need_no_second_call() -> None:
    """Width 1: the prompt's last hidden state predicts every trained token."""
    groups = [
        Group("a", "t", [5, 6, 7], [Completion([8]), Completion([9])]),
        Group("b", "t", [5], [Completion([4])] * 2),
    ]
    model, batch = build("llama"), to_batch(groups, CPU)
    shared, gradient = run(model, batch, "shared")
    torch.testing.assert_close(shared, dense(model, batch), rtol=0, atol=1e-5)
    assert largest(gradient, run(model, batch, "plain")[1]) < 1e-5


def test_models_with_a_parents_prefix_are_run_at_their_own_stack() -> None:
    """llama4's ``base_model_prefix`` names its multimodal parent, so ``base_model`` is the model itself."""
    model, batch = build("llama4"), ragged_batch()
    torch.testing.assert_close(run(model, batch, "shared")[0], dense(model, batch), rtol=0, atol=1e-5)
