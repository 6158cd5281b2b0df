"""run.json: what somebody needs to know to believe a run or to repeat it."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from contrl import __version__
from contrl.config import Resolved
from contrl.continual.records import SCHEMA_VERSION
from contrl.data.sources import fingerprint
from contrl.interfaces import TaskSequence

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "tokenizers", "numpy")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit the code was run from, with ``+dirty`` if it was changed; None outside a checkout."""
    try:
        folder = Path(__file__).parent
        run = ["git", "-C", str(folder)]
        head = subprocess.run([*run, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        changed = subprocess.run(
            [*run, "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+dirty" if changed.stdout.strip() else "")


def _hardware() -> dict[str, Any]:
    facts: dict[str, Any] = {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()}
    facts["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts


def describe_data(sequence: TaskSequence) -> dict[str, dict[str, Any]]:
    """For each task how many rows it has and a hash of them."""
    return {
        task.name: {
            "train": len(task.train),
            "eval": len(task.eval),
            "train_hash": fingerprint(task.train),
            "eval_hash": fingerprint(task.eval),
        }
        for task in sequence.tasks
    }


def describe_run(resolved: Resolved, sequence: TaskSequence, command: Sequence[str], world_size: int) -> dict[str, Any]:
    """The manifest of a run that starts now.

    Args:
        resolved: its configuration.
        sequence: tasks and stages; the order is data.
        command: the command line.
        world_size: processes.
    """
    config = resolved.config
    return {
        "schema_version": SCHEMA_VERSION,
        "contrl": __version__,
        "command": list(command),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "status": "running",
        "digest": resolved.digest,
        "seed": config.seed,
        "method": config.method.name,
        "strategies": [plugin.name for plugin in config.strategies] or ["naive"],
        "model": config.model.name_or_path,
        "sequence": [task.name for task in sequence.tasks],
        "order": config.order if isinstance(config.order, str) else list(config.order),
        "order_seed": config.order_seed,
        "stages": [
            {
                "stage": stage.index,
                "task": "+".join(stage.tasks),
                "tasks": list(stage.tasks),
                "round": stage.round,
                "folder": f"stages/{stage.folder}",
            }
            for stage in sequence.stages
        ],
        "data": describe_data(sequence),
        "processes": world_size,
        "versions": _versions(),
        "hardware": _hardware(),
        "git_commit": _commit(),
    }
