"""Routing leaves a model as it found it; the check at the start sees what would be wrong later."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from toys import CPU, build, ragged_batch, ragged_groups, with_lora

from contrl.engine.batching import to_batch
from contrl.engine.forward import Routing, no_dropout, routed, run, score_batch
from contrl.engine.layout_check import LayoutCheck, choose_layout, probe
from contrl.engine.lm_head import LMHead
from contrl.interfaces import Completion, Group


def shortened(length: int, *, prompt: int | None = None) -> list[Group]:
    """``ragged_groups`` with completions of at most ``length`` tokens and, if given, prompts of equal length."""
    return [
        Group(
            g.row_id,
            g.task,
            g.prompt_ids[:1] * prompt if prompt else g.prompt_ids,
            [Completion(c.ids[:length]) for c in g.completions],
        )
        for g in ragged_groups()
    ]


# --- the routed forward ---------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [False, True])
def test_a_routed_model_answers_batches_and_everything_else_as_before(adapter: bool) -> None:
    model = with_lora(build("llama")) if adapter else build("llama")
    ids, batch = torch.tensor([[5, 6, 7]]), ragged_batch()
    logits, signature = model(input_ids=ids).logits, inspect.signature(model.forward)
    wanted = score_batch(model, LMHead(model), batch, Routing("shared", 0.7))["logps"]
    with routed(model, Routing("shared", 0.7)):
        assert torch.equal(run(model, batch).logps, wanted)
        assert torch.equal(model(input_ids=ids).logits, logits)
        assert inspect.signature(model.forward) == signature  # PEFT detection and generate look at it
        assert model.generate(ids, max_new_tokens=2, do_sample=False).shape == (1, 5)
    assert "forward" not in model.__dict__
    assert inspect.signature(model.forward) == signature


def test_a_forward_of_the_callers_own_comes_back() -> None:
    """A model that already carries an instance-level forward keeps it, the same object."""
    model = build("llama")
    original = model.forward

    def shouting(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    model.forward = shouting
    with routed(model, Routing()):
        assert model.forward is not shouting
    assert model.forward is shouting


def test_routing_ends_with_an_exception_too() -> None:
    model = build("llama")
    with pytest.raises(ZeroDivisionError), routed(model, Routing()):
        raise ZeroDivisionError
    assert "forward" not in model.__dict__


def test_entropy_is_returned_when_asked_for() -> None:
    """Of the distribution at the given temperature; a uniform one has log V."""
    model, batch = build("llama"), ragged_batch()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    with routed(model, Routing("shared", 0.7, needs=frozenset({"entropy"}))):
        out = run(model, batch)
    assert out.entropy is not None
    torch.testing.assert_close(out.entropy, torch.log(torch.tensor(61.0)) * batch.mask)
    torch.testing.assert_close(out.logps, -out.entropy)


# --- dropout ----------------------------------------------------------------------------------------------

RATES = {
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "opt": ("dropout", "attention_dropout"),
    "llama": ("attention_dropout",),
    "gpt-neox": ("attention_dropout", "hidden_dropout"),
    "bloom": ("hidden_dropout", "attention_dropout"),
    "starcoder2": ("attention_dropout", "residual_dropout", "embedding_dropout"),
}


@pytest.mark.parametrize("name", sorted(RATES))
def test_no_dropout_takes_all_chance_out_of_train_mode(name: str) -> None:
    """Families keep the probability in modules, in floats, under several names; afterwards it is back."""
    model = build(name, **dict.fromkeys(RATES[name], 0.5)).train()
    ids = torch.arange(3, 23).reshape(2, 10)

    def logits() -> torch.Tensor:
        return model(input_ids=ids).logits

    with no_dropout(model):
        assert torch.equal(logits(), logits())
        assert torch.equal(logits(), model.eval()(input_ids=ids).logits)
        model.train()
    assert not torch.equal(logits(), logits())


def test_no_dropout_reaches_lora() -> None:
    model = with_lora(build("llama"), lora_dropout=0.5).train()
    ids = torch.arange(3, 13)[None]
    with no_dropout(model):
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


# --- the check at the start ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gemma2"])
def test_both_layouts_are_measured_and_agree(name: str) -> None:
    check = choose_layout(build(name), ragged_batch())
    assert check.layout == "shared"
    assert 0 < max(check.logps, check.gradient) < 1e-5


def test_a_layout_that_differs_is_not_used() -> None:
    """A model that looks at absolute columns, not positions, is right only where nothing is padded."""
    model = build("gpt2")
    stack = model.transformer
    original = stack.forward

    def forgetful(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    stack.forward = forgetful
    check = choose_layout(model, ragged_batch())
    assert check.layout == "plain"
    assert "differ" in check.reason
    assert check.logps > 0.1


def test_the_check_leaves_mode_dropout_and_gradients_alone() -> None:
    model = build("gpt2", resid_pdrop=0.3).eval()
    choose_layout(model, ragged_batch())
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert model.transformer.h[0].mlp.dropout.p == 0.3
    state = torch.get_rng_state()
    choose_layout(model.train(), ragged_batch())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)  # a resumed run does the check again


@pytest.mark.parametrize("name", ["mamba", "lfm2", "falcon-h1", "minimax"])
def test_a_first_step_of_one_token_answers_does_not_hide_a_bad_cache(name: str) -> None:
    """With completions of one token nothing runs on the cache; the probe makes them two."""
    model = build(name)
    assert choose_layout(model, to_batch(shortened(1), CPU)).layout == "shared"  # nothing was tested
    assert choose_layout(model, to_batch(probe(shortened(1)), CPU)).layout == "plain"


def test_prompts_of_equal_length_do_not_hide_wrong_padding() -> None:
    """Without padding a model that ignores positions looks right; the probe makes the prompts ragged."""
    model = build("gpt2")
    original = model.transformer.forward
    model.transformer.forward = lambda *args, position_ids=None, **kwargs: original(*args, **kwargs)
    assert choose_layout(model, to_batch(shortened(4, prompt=5), CPU)).layout == "shared"
    assert choose_layout(model, to_batch(probe(shortened(4, prompt=5)), CPU)).layout == "plain"


def test_the_probe_is_small_and_ragged() -> None:
    """At most 3 groups of 3 completions of 24 tokens, prompts of different lengths; the step's groups unchanged."""
    groups = [Group(str(i), "t", [5, 6, 7], [Completion([8] * 200) for _ in range(9)]) for i in range(7)]
    made = probe(groups)
    assert [len(group.prompt_ids) for group in made] == [3, 4, 5]
    assert [[len(c.ids) for c in group.completions] for group in made] == [[24] * 3] * 3
    assert all(len(group.prompt_ids) == 3 and len(group.completions) == 9 for group in groups)
    alone = [Group("a", "t", [5], [Completion([6]), Completion([7])])]
    assert [(len(g.prompt_ids), [len(c.ids) for c in g.completions]) for g in probe(alone)] == [
        (1, [2, 2]),
        (2, [2, 2]),
        (3, [2, 2]),
    ]
    single = [Group("a", "t", [5], [Completion([6])]), Group("b", "t", [5], [Completion([6])])]
    assert [(len(g.prompt_ids), len(g.completions[0].ids)) for g in probe(single)] == [(1, 2), (2, 2), (8, 2)]


def test_reasons_name_the_obstacle() -> None:
    single = to_batch([Group("a", "t", [5], [Completion([6])])], CPU)
    assert choose_layout(build("llama"), single) == LayoutCheck("plain", "single completions share no prompt")
