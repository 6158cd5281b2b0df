"""Folders that are either whole or absent, and the state of strategies and rollouts inside them.

Everything is written under a temporary name, fsynced and renamed, so a crash leaves no half checkpoint.
Tensors go to safetensors, the rest to JSON; nothing is pickled by contrl.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from contrl.faults import reach

STAGING = ".saving-"


def sync_folder(folder: Path) -> None:
    """Flush every file below ``folder``, and the folders themselves, to disk."""
    for path in [*folder.rglob("*"), folder, folder.parent]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A staging folder that becomes ``target`` (replacing it) when the block ends without an exception."""
    staging = target.with_name(f"{STAGING}{target.name}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    yield staging
    reach("saving")
    publish(staging, target)


def publish(staging: Path, target: Path) -> None:
    """Make a finished staging folder visible under its real name."""
    sync_folder(staging)
    if target.exists():
        # A folder cannot be replaced in one step; the old one steps aside under a name that is never read.
        aside = target.with_name(f"{STAGING}old-{target.name}")
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
        staging.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        staging.rename(target)
    sync_folder(target.parent / target.name)


def discard_staging(folder: Path) -> None:
    """Remove what a crash left half written below ``folder``."""
    for path in folder.glob(f"{STAGING}*"):
        shutil.rmtree(path, ignore_errors=True)


def newest_checkpoint(stage_folder: Path) -> Path | None:
    """The complete checkpoint of the highest step, by number (not by text)."""
    found = [path for path in stage_folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def save_state(folder: Path, name: str, state: dict[str, Any]) -> None:
    """Write nested dictionaries of tensors and JSON values as ``name.safetensors`` and ``name.json``."""
    tensors: dict[str, torch.Tensor] = {}
    values = _split(state, "", tensors)
    if tensors:
        save_file(tensors, folder / f"{name}.safetensors")
    with open(folder / f"{name}.json", "w", encoding="utf-8") as file:
        json.dump(values, file)


def load_state(folder: Path, name: str) -> dict[str, Any] | None:
    """Inverse of ``save_state``; None when there is none."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    with open(path, encoding="utf-8") as file:
        values = json.load(file)
    tensors = folder / f"{name}.safetensors"
    return _join(values, load_file(tensors) if tensors.exists() else {})


_TENSOR = "__tensor__"


def _split(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        while path in tensors:
            # Keys may hold slashes themselves: {"a/b": x, "a": {"b": y}} are two tensors.
            path += "'"
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: path}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"the keys of {path or 'a state'} are not all strings: JSON would change them")
        return {key: _split(item, f"{path}/{key}" if path else str(key), tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_split(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
    return value


def _join(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {key: _join(item, tensors) for key, item in value.items()}
    return [_join(item, tensors) for item in value] if isinstance(value, list) else value
