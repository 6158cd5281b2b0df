"""A folder to the rows of one of its splits: a file per split, numbered shards, or what ``datasets`` saved.

The layouts are those of repositories on the hub, so a copy of one is read as the hub would read it; a set of
shards with a missing one is refused, since training on a part in silence would be worse.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contrl.data.files import GZIP, SUFFIXES, missing_split, read_json, read_raw, suffix_of, with_ids, with_unique_ids
from contrl.errors import UserError
from contrl.interfaces import Row

DATA_FOLDER = "CONTRL_DATA_DIR"
"""Environment variable: a folder that holds copies of data sets, each in a folder of its name."""

SHARD = re.compile(r"^(?P<split>.+?)(?:-(?P<number>\d+)(?:-of-(?P<total>\d+))?(?:-[0-9a-f]+)?)?$")
ANY = ""
"""The split of a folder that was saved as a single data set: it goes by any name."""

CONTINUAL_FILES = ("dataset.json", "data.json")
"""How AIF-Gen calls its file of tasks in a repository."""


def local(source: str) -> Path | None:
    """Where ``source`` lies on this machine: a path, or a copy in the folder of data sets; None if it does not."""
    if not source.strip():
        return None  # Path("") would be the working directory
    path = Path(source).expanduser()
    try:
        if path.exists():
            return path
    except OSError:  # a name too long to be a path
        return None
    return copy_of(source)


def copy_of(name: str) -> Path | None:
    """The folder ``$CONTRL_DATA_DIR/<name>``, if there is one."""
    home = os.environ.get(DATA_FOLDER)
    if not home or not name.strip() or Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    folder = Path(home).expanduser() / name
    return folder if folder.is_dir() else None


def splits_of_folder(folder: Path, config_name: str | None = None) -> tuple[str, ...]:
    """The names of a folder's splits; none when it is a single saved data set, which goes by any name."""
    return tuple(split for split in _layout(folder, config_name) if split != ANY)


def read_folder(folder: Path, split: str, config_name: str | None = None) -> list[Row]:
    """The rows of one split, with ids.

    Raises:
        UserError: no data in the folder, no such split, a missing shard, or what a file's reader refuses.
    """
    found = _layout(folder, config_name)
    files = found.get(split) or found.get(ANY)
    if not files:
        raise missing_split(split, tuple(found), str(folder))
    _require_all_shards(files)
    raw = [read_raw(path, split) for path in files]
    rows: list[Any] = [row for part in raw for row in part]
    where = str(files[0]) if len(files) == 1 else f"{folder} ({split})"
    return with_ids(rows, where) if len(files) == 1 else with_unique_ids(rows, where)


def _layout(folder: Path, config_name: str | None) -> dict[str, list[Path]]:
    """Split -> its files in order.

    Raises:
        UserError: naming what the folder is instead, when it holds no data.
    """
    root = folder
    if config_name is not None:
        roots = [path for path in (folder / config_name, folder / "data" / config_name) if path.is_dir()]
        if not roots:
            raise UserError(f"has no configuration {config_name!r}", where=str(folder), why=_subfolders(folder))
        root = roots[0]
    for layout in (_saved, _by_name):
        found = layout(root)
        if found:
            return found
    raise _no_data(folder, root)


def _saved(folder: Path) -> dict[str, list[Path]]:
    """What ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote."""
    if (folder / "dataset_dict.json").is_file():
        return {split: _saved_files(folder / split) for split in _entry(folder / "dataset_dict.json", "splits")}
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return {ANY: _saved_files(folder)}
    return {}


def _saved_files(folder: Path) -> list[Path]:
    state = folder / "state.json"
    if not state.is_file():
        raise UserError("the saved data set is not whole: it has no state.json", where=str(folder), fix="save it anew")
    return [folder / str(file["filename"]) for file in _entry(state, "_data_files")]


def _entry(path: Path, key: str) -> list[Any]:
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get(key), list):
        raise UserError(f"has no list {key!r}", where=str(path), fix="save the data set anew")
    return value[key]


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """Files called after their split, here, in ``data/``, or in a folder of the split's name."""
    for place in (folder, folder / "data"):
        splits: dict[str, dict[int, list[tuple[int, Path]]]] = {}
        for path in _data_files(place):
            parts = SHARD.match(_stem(path))
            if parts is not None and path.name not in CONTINUAL_FILES:
                order = splits.setdefault(parts["split"], {}).setdefault(_preference(path), [])
                order.append((int(parts["number"] or 0), path))
        if splits:
            # The same split in several formats is the same data: the first format is taken.
            return {split: [path for _, path in sorted(kinds[min(kinds)])] for split, kinds in splits.items()}
        inner = {sub.name: list(_data_files(sub)) for sub in _folders(place) if sub.name in SPLIT_FOLDERS}
        if any(inner.values()):
            return {split: files for split, files in inner.items() if files}
    return {}


SPLIT_FOLDERS = ("train", "validation", "test")


def _data_files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (
            p for p in sorted(folder.iterdir()) if p.is_file() and suffix_of(p) in SUFFIXES and not _is_about(p)
        )


def _is_about(path: Path) -> bool:
    """Files that repositories hold beside their data: hidden ones, a saved data set's own, a model's."""
    return path.name.startswith(".") or path.name in _ABOUT


_ABOUT = {
    *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"),
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "adapter_config.json"),
    *("special_tokens_map.json", "vocab.json", "added_tokens.json", "trainer_state.json"),
    *("model.safetensors.index.json", "pytorch_model.bin.index.json"),
}


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def _stem(path: Path) -> str:
    name = path.name[: -len(GZIP)] if path.name.lower().endswith(GZIP) else path.name
    return name[: -len(suffix_of(path))]


def _preference(path: Path) -> int:
    return 2 * SUFFIXES.index(suffix_of(path)) + path.name.lower().endswith(GZIP)


def _require_all_shards(files: list[Path]) -> None:
    """Refuse a set of numbered shards that is not whole."""
    totals = {int(parts["total"]) for path in files if (parts := SHARD.match(_stem(path))) and parts["total"]}
    if totals and len(files) != max(totals):
        raise UserError(
            f"{len(files)} of {max(totals)} shards are there",
            where=str(files[0].parent),
            why=f"found {', '.join(path.name for path in files[:4])}",
            fix="fetch the missing ones",
        )


def _subfolders(folder: Path) -> str:
    names = [sub.name for sub in (*_folders(folder), *_folders(folder / "data")) if any(_data_files(sub))]
    return f"configurations found: {', '.join(names)}" if names else "it has no folder with data in it"


def _no_data(folder: Path, root: Path) -> UserError:
    if (root / "config.json").exists() or (root / "adapter_config.json").exists():
        return UserError("is the folder of a model, not a data set", where=str(folder), fix="give it as the model")
    if any((root / name).exists() for name in CONTINUAL_FILES):
        return UserError(
            "holds a sequence of tasks or an unnamed file, not splits",
            where=str(folder),
            fix="name the file itself, or call it train.json",
        )
    names = [sub.name for sub in (*_folders(root), *_folders(root / "data")) if any(_by_name(sub))]
    if names:
        return UserError(
            "has several configurations",
            where=str(folder),
            why=f"found {', '.join(names)}",
            fix="name one: config_name",
        )
    return UserError(
        "is no data set: no data file is in the folder",
        where=str(folder),
        fix="put train.jsonl (or .json, .csv, .parquet, .arrow) and test.jsonl in it",
    )
