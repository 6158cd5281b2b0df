"""The trained parameters of a policy by name: copied, put back, exchanged for a while.

The value function is left out: it estimates returns of whatever policy there is, and what it does from one task to the
next is the method's to say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from contrl.models.value_head import NAME as VALUE

Parameters = Mapping[str, nn.Parameter]
Tensors = Mapping[str, torch.Tensor]


def trained(named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, nn.Parameter]:
    """Those that are trained and belong to the policy."""
    return {name: p for name, p in named if p.requires_grad and not name.startswith(f"{VALUE}.")}


def copied(parameters: Parameters, device: torch.device | str | None = None) -> dict[str, torch.Tensor]:
    """What they are now, as tensors that stay so; on their own device unless another is named."""
    return {name: p.detach().to(device or p.device, copy=True) for name, p in parameters.items()}


def put(parameters: Parameters, tensors: Tensors) -> None:
    """Give the parameters these values, exactly."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


@contextlib.contextmanager
def exchanged(parameters: Parameters, tensors: Tensors) -> Iterator[None]:
    """Other values while open; nothing is copied where they are on the parameters' device already."""
    current = {name: parameter.data for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.data = tensors[name].to(parameter.device, parameter.dtype)
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = current[name]
