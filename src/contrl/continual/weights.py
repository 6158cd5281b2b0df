"""How far weights moved between two saved models, tensor by tensor, streamed from safetensors files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open


def _tensors(folder: Path) -> dict[str, Path]:
    """Name of every saved tensor -> the file that holds it."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.startswith(("model", "adapter_model")):
            with safe_open(path, framework="pt") as file:
                found |= dict.fromkeys(file.keys(), path)
    return found


def weight_changes(before: Path, base: Path, after: Path) -> Iterator[dict[str, Any]]:
    """For each tensor of ``after`` its norm and the norm of its change.

    Args:
        before, base: model folders; a tensor one of them lacks (a fresh adapter) gives null there.
        after: the model folder at the end of the stage.

    Yields:
        ``{"tensor", "norm", "from_start", "from_base"}``; Frobenius norms, float32 arithmetic.
    """
    starts, bases = _tensors(before), _tensors(base)
    for name, path in _tensors(after).items():
        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(name).float()
        record: dict[str, Any] = {"tensor": name, "norm": float(tensor.norm())}
        for key, places in (("from_start", starts), ("from_base", bases)):
            record[key] = None
            if name in places:
                with safe_open(places[name], framework="pt") as file:
                    record[key] = float((tensor - file.get_tensor(name).float()).norm())
        yield record


def norms(folder: Path) -> dict[str, float]:
    """Frobenius norm of every tensor of a model folder, float32 arithmetic."""
    found = {}
    for name, path in _tensors(folder).items():
        with safe_open(path, framework="pt") as file:
            found[name] = float(file.get_tensor(name).float().norm())
    return found
