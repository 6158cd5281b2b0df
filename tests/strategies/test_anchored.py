"""The penalties of EWC, MAS and L2: a gradient in closed form, once per step, whatever the split; and what it does."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from contrl.errors import UserError
from contrl.interfaces import Setting
from contrl.methods.rloo import RLOO
from contrl.methods.sft import SFT
from contrl.models.lowrank import adapted_layers
from contrl.strategies.anchored import Anchored
from contrl.strategies.composite import combine
from contrl.strategies.ewc import EWC
from contrl.strategies.l2 import L2
from contrl.strategies.mas import MAS
from contrl.strategies.naive import Naive
from tests.engine.toys import (
    FROZEN,
    Setup,
    farthest,
    identical,
    make_engine,
    policy,
    sft_rows,
    trace,
    weights,
    with_lora,
)

MOVING = {"learning_rate": 2e-2, "optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
KINDS: dict[str, Callable[..., Anchored]] = {"ewc": EWC, "mas": MAS, "l2": L2}


def model_of(adapter: bool) -> Any:
    return with_lora(policy()) if adapter else policy()


def anchored(make: Callable[..., Anchored], adapter: bool, folder: Path, **fields: Any) -> Anchored:
    """The strategy as it is after a first task that ended at the toy's first weights."""
    strategy = make(**fields)
    engine = make_engine(model_of(adapter), folder, Setup(SFT(), sft_rows(6, 500)))
    if isinstance(strategy, L2):
        strategy.before_task(engine.work.context)
    else:
        strategy.num_samples = 6  # type: ignore[attr-defined]
        strategy.after_task(engine.work.context)
    return strategy


def moved(model: Any, share: float = 0.05) -> Any:
    """The model with every trained weight moved a little."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(share * torch.randn(parameter.shape, generator=generator))
    return model


def added(strategy: Anchored, model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """What the penalty alone adds to gradients that were zero."""
    context = make_engine(model, folder, Setup(SFT(), sft_rows(6))).work.context
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    strategy.penalty(context)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def penalty_of(strategy: Anchored, model: Any) -> torch.Tensor:
    """The same penalty by autograd: coef / 2 sum F (w - a)^2."""
    total = torch.zeros(())
    if strategy.space == "delta_w":
        for layer in adapted_layers(model):
            delta = layer.scale * (layer.up @ layer.down)
            total = total + (strategy.strength[layer.name] * (delta - strategy.anchor[layer.name]).square()).sum()
    else:
        for name, parameter in model.named_parameters():
            if name in strategy.strength:
                total = total + (strategy.strength[name] * (parameter - strategy.anchor[name]).square()).sum()
    return 0.5 * strategy.coef * total


@pytest.mark.parametrize(("adapter", "space"), [(False, "weights"), (True, "weights"), (True, "delta_w")])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_gradient_of_the_penalty(tmp_path: Path, kind: str, adapter: bool, space: str) -> None:
    """Zero at the anchor; once weights moved, what autograd says; what is frozen stays frozen."""
    strategy = anchored(KINDS[kind], adapter, tmp_path / "first", coef=3.0, space=space)
    still = added(strategy, model_of(adapter), tmp_path / "still")
    assert max(float(g.abs().max()) for g in still.values()) < 1e-6
    model = moved(model_of(adapter))
    trained = [p.requires_grad for p in model.parameters()]
    found = added(strategy, model, tmp_path / "moved")
    assert [p.requires_grad for p in model.parameters()] == trained
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wanted = torch.autograd.grad(penalty_of(strategy, model), list(named.values()), allow_unused=True)
    for (name, parameter), gradient in zip(named.items(), wanted, strict=True):
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert max(float(g.abs().max()) for g in found.values()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_coefficient_zero_is_naive_to_the_bit(tmp_path: Path, kind: str) -> None:
    model, alone = policy(), policy()
    strategy = anchored(KINDS[kind], False, tmp_path / "first", coef=0.0)
    trace(model, tmp_path / "zero", Setup(SFT(), sft_rows(12), strategy, training=MOVING))
    trace(alone, tmp_path / "naive", Setup(SFT(), sft_rows(12), Naive(), training=MOVING))
    assert identical(weights(model), weights(alone))


def test_neither_accumulation_nor_the_token_budget_changes_it(tmp_path: Path) -> None:
    """The whole gradient of a step, penalty included, however the step is split."""
    found = []
    splits: list[dict[str, Any]] = [
        {},
        {"tokens_per_pass": 40},
        {"training": FROZEN | {"gradient_accumulation_steps": 4}},
    ]
    for number, split in enumerate(splits):
        strategy = anchored(EWC, False, tmp_path / f"first{number}", coef=5.0)
        setup = Setup(SFT(), sft_rows(8), strategy, **{"training": FROZEN, **split})
        found.append(trace(moved(policy()), tmp_path / str(number), setup).gradients[0])
    assert all(farthest(found[0], other) < 1e-5 for other in found[1:])
    without = trace(moved(policy()), tmp_path / "none", Setup(SFT(), sft_rows(8), training=FROZEN)).gradients[0]
    assert farthest(found[0], without) > 1e-2


@pytest.mark.parametrize("adapter", [False, True])
def test_a_larger_coefficient_stays_nearer(tmp_path: Path, adapter: bool) -> None:
    """With SGD, clipping off and coef max(F) lr < 1: the Fisher-weighted distance falls strictly, at five values."""
    limit = float(max(f.max() for f in anchored(EWC, adapter, tmp_path / "limit").strength.values()))
    distances = []
    for number, share in enumerate((0.0, 0.1, 0.3, 0.6, 0.95)):
        strategy = anchored(EWC, adapter, tmp_path / f"first{number}", coef=share / (limit * MOVING["learning_rate"]))
        model = model_of(adapter)
        setup = Setup(SFT(), sft_rows(12), strategy, num_steps=8, training=MOVING)
        trace(model, tmp_path / str(number), setup)
        named = dict(model.named_parameters())
        far = [(named[n].detach() - strategy.anchor[n]).square() * f for n, f in strategy.strength.items()]
        distances.append(sum(float(x.sum()) for x in far))
    assert all(after < before for before, after in pairwise(distances)), distances


@pytest.mark.parametrize("adapter", [False, True])
def test_the_proximal_form_freezes_under_adam(tmp_path: Path, adapter: bool) -> None:
    """A gradient of any size moves Adam by about the learning rate a step; the proximal step does not."""
    adam = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    moves = {}
    for form in ("gradient", "proximal"):
        strategy = anchored(L2, adapter, tmp_path / f"first{form}", coef=1e7, form=form)
        model = model_of(adapter)
        trace(model, tmp_path / form, Setup(SFT(), sft_rows(12), strategy, num_steps=6, training=adam))
        named = dict(model.named_parameters())
        moves[form] = max(float((named[name].detach() - a).abs().max()) for name, a in strategy.anchor.items())
    assert moves["proximal"] < 1e-5
    assert moves["gradient"] > 1e-3


def test_the_order_of_two_strategies_does_not_matter(tmp_path: Path) -> None:
    """Equal sets are equal to the bit, because a composite sorts them."""
    found = []
    for number, order in enumerate((1, -1)):
        parts = [anchored(EWC, False, tmp_path / f"e{number}", coef=2.0), anchored(L2, False, tmp_path / f"l{number}")]
        model = moved(policy())
        trace(model, tmp_path / str(number), Setup(SFT(), sft_rows(12), combine(parts[::order]), training=MOVING))
        found.append(weights(model))
    assert identical(*found)


# --- what is kept from task to task -----------------------------------------------------------------------


def test_several_tasks_are_one_penalty() -> None:
    """F1 (w - a1)^2 + F2 (w - a2)^2 has the gradient of (F1 + F2) (w - a)^2, a their weighted mean."""
    strategy = EWC(coef=1.0)
    one, two = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([3.0, 0.0, 0.0])
    first, second = torch.tensor([0.0, 5.0, 1.0]), torch.tensor([4.0, 7.0, 9.0])
    strategy.add({"w": one}, {"w": first})
    strategy.add({"w": two}, {"w": second})
    here = torch.tensor([1.0, 1.0, 1.0])
    wanted = one * (here - first) + two * (here - second)
    torch.testing.assert_close(strategy.strength["w"] * (here - strategy.anchor["w"]), wanted)
    assert strategy.anchor["w"].tolist() == [3.0, 7.0, 1.0]


def test_online_ewc_fades_and_moves_its_anchor(tmp_path: Path) -> None:
    strategy = EWC(num_samples=4, online=True, decay=0.5)
    model = policy()
    context = make_engine(model, tmp_path, Setup(SFT(), sft_rows(6))).work.context
    strategy.after_task(context)
    first = {name: tensor.clone() for name, tensor in strategy.strength.items()}
    moved(model)
    strategy.after_task(context)
    name = "lm_head.weight"
    fresh = context.services.importance("fisher", 4, "weights")[name]
    torch.testing.assert_close(strategy.strength[name], 0.5 * first[name] + fresh, rtol=1e-4, atol=1e-6)
    assert torch.equal(strategy.anchor[name], model.get_parameter(name).detach())


def test_state_comes_back(tmp_path: Path) -> None:
    strategy, other = anchored(EWC, False, tmp_path, coef=1.0), EWC(coef=1.0)
    other.load_state_dict(strategy.state_dict())
    assert identical(other.strength, strategy.strength)
    assert identical(other.anchor, strategy.anchor)


def test_l2_to_the_start_pulls_in_the_first_stage(at: Any, tmp_path: Path) -> None:
    model = policy()
    engine = make_engine(model, tmp_path, Setup(SFT(), sft_rows(6), L2(to="start")))
    strategy = L2(coef=1.0, to="start")
    moved(model)
    strategy.before_task(engine.work.context)
    assert max(float(g.abs().max()) for g in added(strategy, model, tmp_path / "x").values()) > 1e-3
    free = L2(coef=1.0)
    free.before_task(at(1, model=model))
    assert free.strength == {}


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EWC(coef=-1), "coef is -1"),
        (lambda: EWC(num_samples=0), "num_samples is 0"),
        (lambda: EWC(decay=0.5), "online"),
        (lambda: EWC(online=True, decay=2), "decay is 2"),
        (lambda: MAS(num_samples=0), "num_samples is 0"),
        (lambda: L2(form="proximal", space="delta_w"), "form proximal needs space weights"),
    ],
)
def test_fields_that_cannot_work(make: Callable[[], Anchored], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


def test_where_it_is_refused() -> None:
    whole = EWC().refuses(Setting(SFT(), partial_gradients="DeepSpeed steps inside"))
    assert whole is not None
    assert "DeepSpeed steps inside" in whole.why
    assert "replay, kl or averaging" in whole.fix
    assert "FSDP2" in whole.fix
    no_adapter = EWC(space="delta_w").refuses(Setting(RLOO()))
    assert no_adapter is not None
    assert "LoRA" in no_adapter.why
    assert EWC(space="delta_w").refuses(Setting(RLOO(), adapter=True)) is None
