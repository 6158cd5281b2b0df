"""A stage before the sequence, on all tasks mixed: trained once by the same loop, then found in a cache.

It gives a small model partial competence everywhere, without which reinforcement on one task never starts on the
next. The cache is keyed by everything that went in, so a changed recipe, other weights or changed rows train anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from contrl import __version__
from contrl.config import BaseStageConfig, EvaluationConfig, ModelConfig, RunConfig
from contrl.continual.plan import Plan, Progress
from contrl.continual.processes import Ranks
from contrl.continual.run_folder import RunFolder
from contrl.continual.runner import Runner
from contrl.data.sources import fingerprint
from contrl.data.token_cache import cache_folder
from contrl.engine.checkpoint import whole_folder
from contrl.errors import EnvironmentFault
from contrl.experiment import build_strategy, find
from contrl.faults import reach
from contrl.interfaces import Stage, Task, TaskSequence
from contrl.models.load import Policy, load_policy, weights_folder
from contrl.models.value_head import without_value
from contrl.planning import build_plan

STAGE = Stage(1, ("base",))
"""The only stage of the run folder in the cache."""


def base_digest(model: ModelConfig, base: BaseStageConfig, sequence: TaskSequence, world_size: int = 1) -> str:
    """A hash of everything that decides the weights of a base stage."""
    parts = {
        "contrl": __version__,
        "model": {name: value for name, value in dataclasses.asdict(model).items() if not _is_of_adapter(name)},
        "weights": _content(model.name_or_path),
        "base": dataclasses.asdict(base),
        "rows": [fingerprint(task.train) for task in _by_name(sequence)],
        # Without prompts_per_step the size of a step follows from the number of processes.
        "processes": world_size if base.prompts_per_step is None else None,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _by_name(sequence: TaskSequence) -> list[Task]:
    """The tasks in an order that is not the sequence's, so that runs that differ in the order share a base."""
    return sorted(sequence.tasks, key=lambda task: task.name)


def _is_of_adapter(name: str) -> bool:
    return name in ("use_peft", "use_rslora", "use_dora") or name.startswith(("lora_", "load_in_", "bnb_", "use_bnb_"))


def _content(name: str) -> str | None:
    """A hash of the weights in a folder, which may change under the same name; None for anything else."""
    folder = weights_folder(name)
    if folder is None:
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin"):
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def save_policy(policy: Policy, folder: Path) -> None:
    """Save weights and tokenizer, whole or not at all."""
    with whole_folder(folder) as staging:
        with without_value(policy.model):
            policy.model.save_pretrained(staging)
        policy.tokenizer.save_pretrained(staging)


def _place(config: RunConfig, base: BaseStageConfig, sequence: TaskSequence, ranks: Ranks) -> RunFolder:
    digest = base_digest(config.model, base, sequence, ranks.world_size)
    return RunFolder(cache_folder() / f"base-{digest}", writes=ranks.rank == 0)


def is_trained(config: RunConfig, base: BaseStageConfig, sequence: TaskSequence, ranks: Ranks) -> bool:
    """Whether the cache already holds this base stage."""
    return _place(config, base, sequence, ranks).done(STAGE.index, "saved")


def base_plan(config: RunConfig, base: BaseStageConfig, sequence: TaskSequence, ranks: Ranks) -> Plan:
    """The base stage as a sequence of one task that holds the train rows of all."""
    mixed = [{**row, "id": f"{task.name}/{row['id']}"} for task in _by_name(sequence) for row in task.train]
    rows = find("method", base.method.name)(**base.method.fields).rows(mixed, lambda text: None)
    alone = replace(
        config,
        method=base.method,
        training=base.training,
        prompts_per_step=base.prompts_per_step,
        seed=base.seed,
        evaluation=EvaluationConfig(at_start=False),
    )
    plan = build_plan(alone, TaskSequence((Task("base", rows),), (STAGE,)), ranks.world_size)
    return replace(plan, evaluates=False)


def base_model(
    config: RunConfig, base: BaseStageConfig, sequence: TaskSequence, ranks: Ranks, progress: Progress
) -> Path:
    """Train the base stage on all tasks mixed, or find it in the cache; the same loop as any run.

    Returns:
        The folder of its weights.

    Raises:
        EnvironmentFault: when the cache cannot be written.
    """
    folder = _place(config, base, sequence, ranks)
    lock: AbstractContextManager[Any] = nullcontext()
    if ranks.rank == 0:
        from filelock import FileLock

        try:
            folder.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentFault(
                f"the cache {folder.path.parent} cannot be written: {error.strerror}", fix="set CONTRL_CACHE"
            ) from error
        # Two runs that want the same base train it once; the second waits.
        lock = FileLock(f"{folder.path}.lock")
    with lock:
        ranks.barrier()
        if not folder.done(STAGE.index, "saved"):
            _train_base(config, base, sequence, folder, ranks, progress)
        ranks.barrier()
    return folder.stage(STAGE) / "final"


def _train_base(
    config: RunConfig,
    base: BaseStageConfig,
    sequence: TaskSequence,
    folder: RunFolder,
    ranks: Ranks,
    progress: Progress,
) -> None:
    plan = base_plan(config, base, sequence, ranks)
    policy = load_policy(config.model.bare(), base.seed, device=ranks.device(base.training))
    place = folder.path / "base"
    if ranks.rank == 0 and not place.exists():
        save_policy(policy, place)
    ranks.barrier()
    num_rows = len(plan.sequence[0].train)
    progress.say(f"base stage: {base.method.name} on {num_rows} rows of all tasks, kept in {folder.path}")
    reach("base")
    Runner(plan, folder, policy, build_strategy(()), place, progress, ranks.rank, ranks.world_size).run()
