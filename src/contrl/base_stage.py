"""A stage before the sequence, on all tasks mixed: trained once by the same loop, then found in a cache.

It gives a small model partial competence everywhere, without which reinforcement on one task never starts on the
next. The cache is keyed by everything that went in, so a changed recipe or changed rows train anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from contrl import __version__
from contrl.config import BaseStageConfig, EvaluationConfig, ModelConfig, RunConfig
from contrl.continual.processes import Ranks
from contrl.continual.run_folder import RunFolder
from contrl.continual.runner import Progress, Runner
from contrl.data.sources import fingerprint
from contrl.engine.checkpoint import whole_folder
from contrl.errors import EnvironmentFault
from contrl.experiment import build_strategy
from contrl.faults import reach
from contrl.interfaces import Stage, Task, TaskSequence
from contrl.models.load import Policy, load_policy
from contrl.planning import build_plan


def base_digest(model: ModelConfig, base: BaseStageConfig, sequence: TaskSequence) -> str:
    """A hash of everything that decides the weights of a base stage."""
    parts = {
        "contrl": __version__,
        "model": dataclasses.asdict(model) | {"use_peft": False},
        "base": dataclasses.asdict(base),
        "rows": [fingerprint(task.train) for task in sequence.tasks],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def save_policy(policy: Policy, folder: Path) -> None:
    """Save weights and tokenizer, whole or not at all."""
    with whole_folder(folder) as staging:
        policy.model.save_pretrained(staging)
        policy.tokenizer.save_pretrained(staging)


def cache_folder() -> Path:
    """Where base stages are kept: ``CONTRL_CACHE``, or ``~/.cache/contrl``."""
    return Path(os.environ.get("CONTRL_CACHE") or Path.home() / ".cache" / "contrl")


def base_model(
    config: RunConfig, base: BaseStageConfig, sequence: TaskSequence, ranks: Ranks, progress: Progress
) -> Path:
    """Train the base stage on all tasks mixed, or find it in the cache; the same loop as any run.

    Returns:
        The folder of its weights.

    Raises:
        EnvironmentFault: when the cache cannot be written.
    """
    path = cache_folder() / f"base-{base_digest(config.model, base, sequence)}"
    lock: AbstractContextManager[Any] = nullcontext()
    if ranks.rank == 0:
        from filelock import FileLock

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentFault(
                f"the cache {path.parent} cannot be written: {error}", fix="set CONTRL_CACHE"
            ) from error
        lock = FileLock(f"{path}.lock")
    with lock:
        ranks.barrier()
        folder = RunFolder(path, writes=ranks.rank == 0)
        if not folder.done(1, "saved"):
            _train_base(config, base, sequence, folder, ranks, progress)
        ranks.barrier()
    return folder.stage(Stage(1, ("base",))) / "final"


def _train_base(
    config: RunConfig,
    base: BaseStageConfig,
    sequence: TaskSequence,
    folder: RunFolder,
    ranks: Ranks,
    progress: Progress,
) -> None:
    rows = [{**row, "id": f"{task.name}/{row['id']}"} for task in sequence.tasks for row in task.train]
    mixed = TaskSequence.in_order([Task("base", rows)])
    alone = replace(
        config,
        method=base.method,
        training=base.training,
        prompts_per_step=base.prompts_per_step,
        seed=base.seed,
        evaluation=EvaluationConfig(at_start=False),
    )
    plan = replace(build_plan(alone, mixed, ranks.world_size), evaluates=False)
    policy = load_policy(replace(config.model, use_peft=False), base.seed)
    place = folder.path / "base"
    if ranks.rank == 0:
        save_policy(policy, place)
    ranks.barrier()
    progress.say(f"base stage: {base.method.name} on {len(rows)} rows of all tasks, kept in {folder.path}")
    reach("base")
    Runner(plan, folder, policy, build_strategy(()), place, progress, ranks.rank, ranks.world_size).run()
