"""The cache of a chunk while it decodes: reserved once, written in place, rows dropped without moving the others.

Stock layers copy the whole cache for every token (they concatenate) and again whenever a row is dropped. Layers of
other kinds (sliding windows, recurrent states) stay as the model made them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer


class ReservedLayer(DynamicLayer):
    """Keys and values ``[B, heads, T, size]`` as views of tensors with room for ``room`` more positions.

    Args:
        layer: the prompts' layer, one row a prompt.
        source: ``[B]`` the prompt of each row.
        room: positions that will be added.
    """

    def __init__(self, layer: DynamicLayer, source: torch.Tensor, room: int) -> None:
        super().__init__()
        keys, values = layer.keys, layer.values
        assert keys is not None
        assert values is not None
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._whole = _roomy(keys, source, room), _roomy(values, source, room)
        self._rows, self._length = len(source), keys.shape[-2]
        self._show()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new positions behind the others."""
        start = self._length
        self._length += key_states.shape[-2]
        keys, values = self._show()
        keys[:, :, start:] = key_states
        values[:, :, start:] = value_states
        return keys, values

    def fill(self, holes: torch.Tensor, movers: torch.Tensor, rows: int) -> None:
        """Put the rows ``movers`` in the places ``holes`` and keep the first ``rows``."""
        for states in self._show():
            states[holes] = states[movers]
        self._rows = rows
        self._show()

    def _show(self) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (whole[: self._rows, :, : self._length] for whole in self._whole)
        self.keys, self.values = keys, values
        return keys, values


def _roomy(states: torch.Tensor, source: torch.Tensor, room: int) -> torch.Tensor:
    length = states.shape[-2]
    whole = states.new_empty(len(source), states.shape[1], length + room, states.shape[3])
    whole[:, :, :length] = states[source]
    return whole


def repeat_rows(cache: Any, source: torch.Tensor, room: int) -> None:
    """Give every row of ``source`` ``[B]`` the cache of its prompt, with room for more positions."""
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.get_seq_length() > 0:
            cache.layers[index] = ReservedLayer(layer, source, room)
        else:
            layer.batch_select_indices(source)


def drop_rows(cache: Any, finished: torch.Tensor) -> torch.Tensor:
    """Take finished rows out: the last rows that go on move into their places.

    Args:
        cache: of ``[B]`` rows.
        finished: ``[B]`` True = leaves; not all of them.

    Returns:
        The old index of each row that is left, in its new order.
    """
    keep = (~finished).nonzero()[:, 0]
    order = torch.arange(len(keep), device=keep.device)
    holes, movers = finished[: len(keep)].nonzero()[:, 0], keep[keep >= len(keep)]
    order[holes] = movers
    for layer in cache.layers:
        if isinstance(layer, ReservedLayer):
            layer.fill(holes, movers, len(keep))
        else:
            layer.batch_select_indices(order)
    return order
