"""The folder of the results: what it must not be mixed with, and its manifest, in which every row names its weights.

A run of ours is its own folder and only gets rows. Of anything else the manifest says ``kind: evaluation``, so that no
command takes it for a run to go on with.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from contrl.checkpoints.asked import Asked
from contrl.checkpoints.saved import step_of
from contrl.config import difference
from contrl.continual.manifest import describe_data, describe_run
from contrl.continual.plan import Plan
from contrl.continual.processes import Ranks
from contrl.continual.records import EVALUATION, write_atomic
from contrl.continual.run_folder import RunFolder
from contrl.errors import EnvironmentFault, UserError

_HEAD = 2**20


def inspect(asked: Asked, plan: Plan, folder: RunFolder) -> None:
    """Refuse what this evaluation must not be mixed with; only reads."""
    path = folder.path
    if asked.fills:
        before, now = folder.manifest().get("data") or {}, describe_data(plan.sequence)
        changed = [name for name in now if name in before and before[name]["eval_hash"] != now[name]["eval_hash"]]
        if changed:
            raise UserError(
                f"the rows to judge {', '.join(changed)} by are not those this run began with",
                where=str(path),
                fix="put the data back, or give another --output_dir",
            )
        return
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file", fix="give another --output_dir")
    if not folder.exists:
        if path.exists() and any(path.iterdir()):
            raise UserError(f"{path} is not empty and holds no evaluation", fix="give another --output_dir")
        return
    manifest = folder.manifest()
    if manifest.get("kind") != EVALUATION:
        raise UserError(f"{path} holds a run, no evaluation of checkpoints", fix="give another --output_dir")
    if asked.overwrite:
        return
    fix = "give another --output_dir, or --overwrite_output_dir to judge anew"
    if manifest.get("digest") != asked.resolved.digest:
        text = (path / "config.yaml").read_text(encoding="utf-8")
        why = "\n  ".join(difference(text, asked.resolved.config))
        raise UserError(f"{path} holds an evaluation that judged otherwise", why=why, fix=fix)
    for old, row in zip(manifest["stages"], _described(asked, plan), strict=False):
        if (old["folder"], old["task"]) != (row["folder"], row["task"]):
            what = f"{path} holds an evaluation of other checkpoints"
            raise UserError(what, why=f"row {row['stage']} was {old['folder']} and is {row['folder']}", fix=fix)
        if old.get("weights") not in (None, row["weights"]) and folder.scored(row["stage"]):
            raise UserError(
                f"the weights in {row['folder']} have changed since they were judged", where=str(path), fix=fix
            )


def open_results(asked: Asked, plan: Plan, folder: RunFolder, ranks: Ranks) -> None:
    """Make the folder of the results, or continue it; a run's own is there already."""
    if asked.fills or ranks.rank != 0:
        ranks.barrier()
        return
    manifest = describe_run(asked.resolved, plan.sequence, asked.command, ranks.world_size)
    manifest |= {"kind": EVALUATION, "evaluates": str(asked.saved.folder.absolute()), "stages": _described(asked, plan)}
    if not asked.is_run:
        manifest["strategies"] = []  # of models from elsewhere nobody knows
    try:
        if folder.exists and asked.overwrite and folder.manifest().get("digest") != asked.resolved.digest:
            shutil.rmtree(folder.path)
        folder.path.mkdir(parents=True, exist_ok=True)
        write_atomic(folder.path / "config.yaml", asked.resolved.text.encode())
        folder.write_manifest(manifest)
        folder.tidy()
        _note_steps(asked, folder)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write to {folder.path}: {error.strerror}", fix="another --output_dir"
        ) from error
    ranks.barrier()


def _described(asked: Asked, plan: Plan) -> list[dict[str, Any]]:
    """The rows for the manifest."""
    stages = {stage.index: stage for stage in plan.sequence.stages}
    return [
        {
            "stage": row.index,
            "task": "+".join(stages[row.index].tasks) or row.name,
            "tasks": list(stages[row.index].tasks),
            "round": row.round,
            "folder": str((row.end or row.folders[-1]).relative_to(asked.saved.folder)) if row.folders else row.name,
            "weights": _mark(row.end) if row.end is not None else None,
        }
        for row in asked.saved.rows
    ]


def _mark(folder: Path) -> str:
    """Tells other weights under the same name apart: sizes and the beginning and end of every file of them."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with open(path, "rb") as file:
            digest.update(file.read(_HEAD))
            file.seek(max(0, size - _HEAD))
            digest.update(file.read(_HEAD))
    return digest.hexdigest()[:16]


def _note_steps(asked: Asked, folder: RunFolder) -> None:
    """How many steps each row trained, where folders are named by them: the axis of trackers."""
    before = 0
    for row in asked.saved.rows:
        steps = [step for path in row.folders if (step := step_of(path)) is not None]
        if steps and not folder.done(row.index, "trained"):
            plain = asked.saved.kind == "checkpoints"
            folder.mark(row.index, "trained", steps=max(steps) - (before if plain else 0))
        before = max(steps, default=before)
