"""Policies of a few weights, with and without LoRA, and the services that hooks ask for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from contrl.interfaces import Context


class Policy(nn.Module):
    """Two layers, the second to be trained whole under LoRA, and a value function as actor-critic methods attach it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner = nn.Linear(6, 5, bias=False)
            self.head = nn.Linear(5, 3)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(values))


def full(seed: int = 0) -> Policy:
    """All weights trained."""
    return Policy(seed)


def llama(seed: int = 0) -> Any:
    """A whole model of transformers, as runs train it."""
    shape = {"vocab_size": 7, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1}
    config = LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def lora(rank: int = 2, seed: int = 0) -> Any:
    """LoRA on the inner layer, a copy of the head trained whole."""
    config = LoraConfig(r=rank, lora_alpha=6, target_modules=["inner"], modules_to_save=["head"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(Policy(seed), config)  # type: ignore[arg-type]


def add_value(model: nn.Module) -> nn.Parameter:
    """A value function of one weight, trained; the parameter."""
    model.value_head = nn.Linear(1, 1, bias=False)
    return model.value_head.weight


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of what is trained."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def train(model: nn.Module, amount: float = 1.0, seed: int = 0) -> None:
    """Move every trained weight by noise: what a stage does, as far as strategies are concerned."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=amount)


def served(ctx: Context, start: dict[str, torch.Tensor] | None = None) -> Context:
    """The context with services that know the run's first weights, and a list ``ctx.reported`` of what is reported."""
    ctx.services = SimpleNamespace(start_weights=lambda: start)
    reported: list[dict[str, Any]] = []
    ctx.report = lambda metrics: reported.append(dict(metrics))
    ctx.services.reported = reported
    return ctx


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
