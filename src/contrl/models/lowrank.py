"""LoRA layers as what they add to the frozen weights: delta W = s B A, one pair of factors a layer.

Averages and distances between adapters are those of delta W: A and B are defined only up to an invertible matrix
between them, so their own averages mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from contrl.errors import UserError
from contrl.models.trained import Tensors, trained


@dataclass(frozen=True)
class Factors:
    """One adapted layer.

    Attributes:
        name: canonical name of the frozen weight.
        down, up: A ``[r, in]`` and B ``[out, r]``, trained.
        scale: s.
        frozen: the weight that delta W is added to, ``[out, in]`` (quantised ones have another shape).
    """

    name: str
    down: nn.Parameter
    up: nn.Parameter
    scale: float
    frozen: torch.Tensor

    def delta(self) -> torch.Tensor:
        """delta W ``[out, in]``, without gradient."""
        return self.scale * (self.up.detach() @ self.down.detach())


def adapted_layers(model: nn.Module) -> Iterator[Factors]:
    """The adapted linear layers of a PEFT model with their trained factors, in the model's order.

    Raises:
        UserError: for adapted layers that are not linear, or adapters that add something else (DoRA).
    """
    policy: Any = model
    if not hasattr(policy, "peft_config"):
        return  # a plain model also has a method of the name that is read below
    adapters = list(policy.active_adapters)
    for path, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        for adapter in adapters:
            if adapter not in module.lora_A:
                continue
            base: Any = module.get_base_layer()
            if not isinstance(base, nn.Linear) or module.use_dora.get(adapter):
                raise UserError(
                    f"the adapter of {path} is not B A on a linear layer",
                    fix="give lora_target_modules that are linear layers, without use_dora",
                )
            down: Any = module.lora_A[adapter].weight
            up: Any = module.lora_B[adapter].weight
            yield Factors(f"{path}.base_layer.weight", down, up, float(module.scaling[adapter]), base.weight)


def combine(
    pairs: list[tuple[float, torch.Tensor, torch.Tensor]], rank: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The best factors of ``rank`` for a weighted sum of products, and what is lost by that.

    Args:
        pairs: (weight, A ``[r, in]``, B ``[out, r]``) of each product B A.
        rank: of the result.

    Returns:
        A and B, balanced, and the relative error of B A in the Frobenius norm. Eckart-Young, by QR of the stacked
        factors: nothing of size ``[out, in]`` is made.
    """
    dtype = pairs[0][1].dtype
    downs = torch.cat([down for _, down, _ in pairs]).double()
    ups = torch.cat([weight * up for weight, _, up in pairs], dim=1).double()
    left, left_mix = torch.linalg.qr(ups)
    right, right_mix = torch.linalg.qr(downs.T)
    u, sizes, vh = torch.linalg.svd(left_mix @ right_mix.T)
    kept, total = sizes[:rank], float(sizes.square().sum())
    lost = float((sizes[rank:].square().sum() / total).sqrt()) if total > 0 else 0.0
    root = kept.sqrt()
    up = left @ (u[:, : len(kept)] * root)
    down = (root[:, None] * vh[: len(kept)]) @ right.T
    if len(kept) < rank:  # fewer rows than the rank: pad with nothing
        up = nn.functional.pad(up, (0, rank - len(kept)))
        down = nn.functional.pad(down, (0, 0, 0, rank - len(kept)))
    return down.to(dtype), up.to(dtype), lost


def average(
    model: nn.Module, parts: Sequence[tuple[float, Tensors]], ranks: int = 1
) -> tuple[dict[str, torch.Tensor], float]:
    """A weighted sum of trained weights of one model; of LoRA layers the best factors for that of the products.

    Args:
        model: whose trained parameters they are.
        parts: (share, values by the parameters' names); factors may be of another rank than the model's.
        ranks: the sum's factors have so many times the rank of the model's at most.

    Returns:
        Values by name, in float32 at least, on the parameters' devices, and the largest relative error of a product.
    """
    parameters = trained(model.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    values = [
        (share, {name: _precise(tensors[name].to(p.device)) for name, p in parameters.items()})
        for share, tensors in parts
        if share > 0
    ]
    result: dict[str, torch.Tensor] = {}
    error = 0.0
    for layer in adapted_layers(model):
        down, up, rank = names[id(layer.down)], names[id(layer.up)], ranks * len(layer.down)
        pairs = [(share, tensors[down], tensors[up]) for share, tensors in values]
        if len(pairs) == 1 and pairs[0][0] == 1 and len(pairs[0][1]) <= rank:
            result[down], result[up] = pairs[0][1:]
        else:
            result[down], result[up], lost = combine(pairs, rank)
            error = max(error, lost)
    for name in parameters.keys() - result.keys():
        result[name] = torch.stack([share * tensors[name] for share, tensors in values]).sum(0)
    return result, error


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    """At least float32: in half precision a slow moving average would stand still."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
