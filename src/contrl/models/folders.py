"""Which folder holds the weights that a name means, and what lies in it; nothing is loaded here.

Every option that takes a model also takes a run, stage or checkpoint folder, so this is asked before anything
else: by the run, by merge and chat, and by reward models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from contrl.errors import UserError

_CLASSIFIER = "ForSequenceClassification"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return (folder / "adapter_config.json").exists()


def is_classifier(folder: Path) -> bool:
    """Whether a folder holds a sequence classifier (a reward model), whole or as an adapter with its head."""
    if is_adapter(folder):
        return _read(folder / "adapter_config.json").get("task_type") == "SEQ_CLS"
    return any(_CLASSIFIER in name for name in _read(folder / "config.json").get("architectures") or ())


def weights_folder(name: str) -> Path | None:
    """The folder whose weights ``name`` means: a model folder, or the newest weights of a run, stage or checkpoint.

    Returns:
        None when ``name`` is no folder.

    Raises:
        UserError: when it is a folder without weights.
    """
    folder = Path(name)
    if not folder.is_dir():
        return None

    def holds_weights(path: Path) -> bool:
        return (path / "config.json").exists() or is_adapter(path)

    stages = [path for path in folder.glob("stages/*") if path.name.partition("-")[0].isdigit()]
    stages.sort(key=lambda path: int(path.name.partition("-")[0]), reverse=True)
    candidates = [folder]
    for place in (folder, *stages):
        steps = [path for path in place.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
        steps.sort(key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
        candidates += [place / "final", *steps]
    for candidate in candidates:
        if holds_weights(candidate):
            return candidate
    raise UserError(f"the folder {name} holds no model", fix="name a model, run, stage or checkpoint folder")


def base_of(folder: Path) -> str:
    """The base model of the adapter in ``folder``: a folder, or a name on the hub.

    Looked for where the adapter says, and in the ``base`` of the run folder it lies in, which moves with it. A base
    that is itself a run folder means the weights in it, also when these are another adapter.

    Raises:
        UserError: when it is neither a folder on this machine nor a name.
    """
    where = folder / "adapter_config.json"
    named = str(_read(where).get("base_model_name_or_path") or "")
    place = folder.resolve()
    if named and Path(named).is_dir():
        found = weights_folder(named)
        if found is not None and found.resolve() != place:
            return str(found)
    for candidate in (parent / "base" for parent in (place, *place.parents[:3])):
        if (candidate / "config.json").exists() or is_adapter(candidate):
            return str(candidate)
    # A tiny of another seed is another model; the one an adapter was trained on must lie in a folder.
    if named and is_hub_id(named) and named != "tiny":
        return named
    raise UserError(
        f"the adapter's base model {named!r} is no folder on this machine",
        where=str(where),
        fix="put the base model there, or merge the adapter where it was trained",
    )


def is_hub_id(name: str) -> bool:
    """Whether a name can be a model's on a hub (``gpt2``, ``owner/name``) and not only a path."""
    return not name.startswith((".", "/", "~")) and name.count("/") <= 1


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError("the file cannot be read", where=str(path), why=str(error)) from error
    return value if isinstance(value, dict) else {}
