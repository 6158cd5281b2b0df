"""The reference: numbers that stand still while the policy trains, and a policy that does not notice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from contrl.config import ModelConfig
from contrl.engine.checkpoint import load_state, save_state
from contrl.engine.forward import Routing, routed
from contrl.errors import UserError
from contrl.models.adapters import add_lora
from contrl.models.reference import Origin, Reference

Make = Callable[..., Any]
LORA = ModelConfig("tiny", use_peft=True, lora_r=4, lora_target_modules=("q_proj", "v_proj"))


def train_a_step(model: nn.Module, seed: int = 0) -> None:
    """Every trained weight moves by something visible."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(params=["full", "lora"])
def policy(request: pytest.FixtureRequest, make_llama: Make) -> Any:
    """A policy that has learnt something already; under LoRA, B is not zero any more."""
    model = make_llama()
    model = add_lora(model, LORA) if request.param == "lora" else model
    train_a_step(model, 7)
    return model.train()


def numbers(reference: Reference, logits_of: Make) -> torch.Tensor:
    with reference.model() as model:
        logits: torch.Tensor = logits_of(model)
    return logits


# --- frozen -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["previous", "ema"])
def test_it_starts_as_the_policy_and_stands_still(origin: Origin, policy: Any, logits_of: Make) -> None:
    reference = Reference(policy, origin)
    start = logits_of(policy.eval())
    policy.train()
    torch.testing.assert_close(numbers(reference, logits_of), start, atol=1e-6, rtol=0)
    frozen = numbers(reference, logits_of)
    train_a_step(policy)
    assert torch.equal(numbers(reference, logits_of), frozen)
    assert (logits_of(policy.eval()) - start).abs().max() > 0.1


def test_base_of_full_training_is_the_weights_at_creation(make_llama: Make, logits_of: Make) -> None:
    policy = make_llama()
    start = logits_of(policy)
    reference = Reference(policy, "base")
    train_a_step(policy)
    assert torch.equal(numbers(reference, logits_of), start)


def test_base_under_lora_is_the_model_without_its_adapter(make_llama: Make, logits_of: Make) -> None:
    """Whenever it is taken, also after training; ``previous`` is then something else."""
    original = logits_of(make_llama())
    policy = add_lora(make_llama(), LORA)
    train_a_step(policy)
    base, previous = Reference(policy, "base"), Reference(policy, "previous")
    torch.testing.assert_close(numbers(base, logits_of), original, atol=1e-6, rtol=0)
    assert (numbers(previous, logits_of) - original).abs().max() > 0.1
    train_a_step(policy, 1)
    torch.testing.assert_close(numbers(base, logits_of), original, atol=1e-6, rtol=0)


def test_ema_moves_by_its_decay(policy: Any, logits_of: Make) -> None:
    """r <- .75 r + .25 p, twice, weight by weight."""
    reference = Reference(policy, "ema", decay=0.75)
    wanted = {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}
    for seed in (1, 2):
        train_a_step(policy, seed)
        reference.update()
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                wanted[name] = 0.75 * wanted[name] + 0.25 * parameter.detach()
    with reference.model() as model:
        for name, parameter in model.named_parameters():
            if name in wanted:
                torch.testing.assert_close(parameter.detach(), wanted[name])


@pytest.mark.parametrize("origin", ["base", "previous"])
def test_only_an_average_moves(origin: Origin, policy: Any) -> None:
    with pytest.raises(UserError, match=f"a '{origin}' reference does not move"):
        Reference(policy, origin).update()


def test_unknown_origins_are_refused(make_llama: Make) -> None:
    origin: Any = "start"
    with pytest.raises(UserError, match="unknown reference 'start'\n  use one of base, previous, ema"):
        Reference(make_llama(), origin)


# --- the policy does not notice -------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["base", "previous", "ema"])
def test_weights_modes_and_what_is_trained_come_back(origin: Origin, policy: Any, logits_of: Make) -> None:
    """Also a part that was frozen or in eval mode on purpose, and also after an exception inside."""
    first = next(p for p in policy.parameters() if p.requires_grad)
    first.requires_grad = False
    next(m for m in policy.modules() if isinstance(m, nn.Linear)).eval()
    reference = Reference(policy, origin)
    train_a_step(policy)
    weights = copy.deepcopy(policy.state_dict())
    flags = [p.requires_grad for p in policy.parameters()]
    modes = [module.training for module in policy.modules()]
    storages = [p.data_ptr() for p in policy.parameters()]

    def unchanged() -> bool:
        now = policy.state_dict()
        return (
            all(torch.equal(now[name], weights[name]) for name in weights)
            and [p.requires_grad for p in policy.parameters()] == flags
            and [module.training for module in policy.modules()] == modes
            and [p.data_ptr() for p in policy.parameters()] == storages
        )

    numbers(reference, logits_of)
    assert unchanged()
    with pytest.raises(ZeroDivisionError), reference.model():
        raise ZeroDivisionError
    assert unchanged()


def test_the_reference_is_never_trained(make_llama: Make) -> None:
    reference = Reference(make_llama().train(), "previous")
    with reference.model() as model:
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_dropout_is_off_in_the_reference_of_a_policy_in_train_mode(
    kind: str, make_llama: Make, logits_of: Make
) -> None:
    model = make_llama(attention_dropout=0.5)
    if kind == "lora":
        model = add_lora(model, replace(LORA, lora_dropout=0.5))
        train_a_step(model)
    policy = model.train()
    reference = Reference(policy, "previous")
    assert torch.equal(numbers(reference, logits_of), numbers(reference, logits_of))
    assert not torch.equal(logits_of(policy), logits_of(policy))


def test_gradients_of_the_policy_survive_a_look_at_the_reference(make_llama: Make, logits_of: Make) -> None:
    """Under LoRA the same parameters hold other numbers for a moment; what waits in .grad stays."""
    policy = add_lora(make_llama(), LORA)
    train_a_step(policy)
    policy(input_ids=torch.tensor([[2, 3, 4]])).logits.sum().backward()
    before = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    numbers(Reference(policy, "previous"), logits_of)
    assert before
    assert all(torch.equal(p.grad, before[n]) for n, p in policy.named_parameters() if p.grad is not None)


# --- copies and states ----------------------------------------------------------------------------------------------


def test_a_copy_of_a_routed_policy_runs_its_own_weights(make_llama: Make, logits_of: Make) -> None:
    """The engine's forward is a closure over the policy on its instance; a copied closure would score the policy."""
    policy = make_llama()
    start = logits_of(policy)
    with routed(policy, Routing()):
        reference = Reference(policy, "previous")
        train_a_step(policy)
        torch.testing.assert_close(numbers(reference, logits_of), start, atol=1e-6, rtol=0)
        assert (logits_of(policy) - start).abs().max() > 0.1
        with reference.model() as model:
            assert "forward" not in vars(model)
        assert "forward" in vars(policy)


@pytest.mark.parametrize("origin", ["previous", "ema"])
def test_states_round_trip_through_a_file(origin: Origin, policy: Any, logits_of: Make, tmp_path: Path) -> None:
    reference = Reference(policy, origin)
    wanted = numbers(reference, logits_of)
    save_state(tmp_path, "reference", reference.state_dict())
    train_a_step(policy)
    later = Reference(policy, origin)
    assert not torch.equal(numbers(later, logits_of), wanted)
    later.load_state_dict(load_state(tmp_path, "reference") or {})
    assert torch.equal(numbers(later, logits_of), wanted)


def test_the_base_of_an_adapter_has_nothing_to_save(make_llama: Make) -> None:
    reference = Reference(add_lora(make_llama(), LORA), "base")
    assert reference.state_dict() == {"weights": {}}
    reference.load_state_dict({"weights": {}})


def test_a_loaded_state_is_a_copy(policy: Any, logits_of: Make) -> None:
    """Two averages that came from one state move apart."""
    one, other = Reference(policy, "ema", decay=0.5), Reference(policy, "ema", decay=0.5)
    other.load_state_dict(one.state_dict())
    before = numbers(one, logits_of)
    train_a_step(policy)
    other.update()
    assert torch.equal(numbers(one, logits_of), before)
    assert not torch.equal(numbers(other, logits_of), before)
