"""How far weights moved between two saved models, tensor by tensor, streamed from safetensors files.

Of an adapter two things are told: its own tensors, and what it adds to the weights under it. That sum, s B A, is never
formed: its norm and the norm of a difference of two follow from r x r products.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

ADAPTER, EFFECTIVE = "adapter", "effective"
_PREFIX = "base_model.model."
_FACTORS = ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B"))


def weight_changes(before: Path, base: Path, after: Path) -> Iterator[dict[str, Any]]:
    """For each tensor of ``after`` its norm, the norm of its change, and of what it changed from.

    Args:
        before, base: model folders; a tensor one of them lacks (a fresh adapter) gives null there.
        after: the model folder at the end of the stage.

    Yields:
        ``{"tensor", "norm", "from_start", "from_base", "start_norm", "base_norm"}``; Frobenius norms. An adapter's own
        tensors carry ``"kind": "adapter"``, then follow the weights it changes, ``"kind": "effective"``: changes are of
        s B A, both norms those of the weight under the adapter, ``norm`` that of s B A alone.
    """
    starts, bases, is_adapter = _tensors(before), _tensors(base), _is_adapter(after)
    for name, path in _tensors(after).items():
        tensor = _read(name, path)
        record: dict[str, Any] = {"tensor": name, "norm": float(tensor.norm())}
        for key, norm, places in (("from_start", "start_norm", starts), ("from_base", "base_norm", bases)):
            known = name if name in places else name.removeprefix(_PREFIX)
            other = _read(known, places[known]) if known in places else None
            record[key] = None if other is None else float((tensor - other).norm())
            record[norm] = None if other is None else float(other.norm())
        yield record | ({"kind": ADAPTER} if is_adapter and _is_factor(name) else {})
    if is_adapter:
        yield from _effective(before, base, after)


def _effective(before: Path, base: Path, after: Path) -> Iterator[dict[str, Any]]:
    """The weights under an adapter; none of one that does more than add a product (DoRA)."""
    under = _tensors(_under(base))
    now = _products(after)
    if now is None:
        return
    others = {"from_start": _products(before) or {}, "from_base": _products(base) or {}}
    for module, product in now.items():
        name = f"{module}.weight"
        norm = float(_read(name, under[name]).norm()) if name in under else None
        changes = {key: product.distance(products.get(module)) for key, products in others.items()}
        norms = {"start_norm": norm, "base_norm": norm}
        yield {"tensor": name, "norm": product.distance(None), **changes, **norms, "kind": EFFECTIVE}


@dataclass(frozen=True)
class Product:
    """``scale * B @ A`` with factors ``[out, r]`` and ``[r, in]`` in double precision."""

    scale: float
    b: torch.Tensor
    a: torch.Tensor

    def inner(self, other: Product) -> float:
        """Sum over the entries of both products: tr(A1' B1' B2 A2) = sum of (B1' B2) * (A1 A2')."""
        return self.scale * other.scale * float(((self.b.T @ other.b) * (self.a @ other.a.T)).sum())

    def distance(self, other: Product | None) -> float:
        """Frobenius norm of the difference; None is the product 0."""
        square = self.inner(self)
        if other is not None:
            square += other.inner(other) - 2 * self.inner(other)
        return math.sqrt(max(square, 0.0))


def _products(folder: Path) -> dict[str, Product] | None:
    """Module under the adapter -> what is added to its weight; None of an adapter that is no plain LoRA.

    A folder of whole weights adds nothing.
    """
    if not _is_adapter(folder):
        return {}
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        return None
    tensors, found = _tensors(folder), {}
    for name, path in tensors.items():
        for of_a, of_b in _FACTORS:
            other = name.removesuffix(of_a) + of_b
            if name.endswith(of_a) and other in tensors:
                module = name.removesuffix(of_a).removeprefix(_PREFIX)
                a, b = _read(name, path).double(), _read(other, tensors[other]).double()
                found[module] = Product(_scale(config, module, a.shape[0]), b, a)
    return found


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) of rsLoRA; a module may have an alpha of its own."""
    patterns: Mapping[str, Any] = config.get("alpha_pattern") or {}
    own = next((alpha for key, alpha in patterns.items() if module == key or module.endswith(f".{key}")), None)
    alpha = float(config.get("lora_alpha", rank) if own is None else own)
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _under(folder: Path) -> Path:
    """The folder of the weights under an adapter; a folder of whole weights is that itself."""
    if not _is_adapter(folder):
        return folder
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return Path(config.get("base_model_name_or_path") or folder)


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _is_factor(name: str) -> bool:
    return ".lora_" in name


def _read(name: str, path: Path) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor.float()


def _tensors(folder: Path) -> dict[str, Path]:
    """Name of every saved tensor -> the file that holds it."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.startswith(("model", "adapter_model")):
            with safe_open(path, framework="pt") as file:
                found |= dict.fromkeys(file.keys(), path)
    return found
