"""Rows from where the user has them, by one name: a file, a folder, a named recipe, a hub dataset, or several.

Every row gets a stable ``id`` (its own, or its position), because replay, resume and per-item scores refer to
rows. A recipe's name comes first, then what lies on this machine, then the hub.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from contrl.data.files import SUFFIXES, read_file, splits_of_file, suffix_of, with_ids
from contrl.data.folders import DATA_FOLDER, copy_of, local, read_folder, splits_of_folder
from contrl.data.hub import is_name, read_hub, splits_of_hub
from contrl.data.recipes import RECIPES, Recipe, convert_all
from contrl.data.verl import lifted
from contrl.errors import EnvironmentFault, UserError
from contrl.interfaces import Row

__all__ = [
    "SUFFIXES",
    "find_splits",
    "fingerprint",
    "hold_out",
    "is_mix",
    "mix",
    "overlap",
    "read_file",
    "read_rows",
    "short_name",
    "with_ids",
]


TRAIN = "train"


def read_rows(source: str, split: str = TRAIN, config_name: str | None = None) -> list[Row]:
    """The rows of one split.

    Args:
        source: a file; a folder with files for its splits, or one that ``datasets`` saved; a recipe's name; a hub
            dataset id; or several of these with commas between.
        split: which split of a folder, recipe or hub dataset; most files have only one.
        config_name: which configuration of a folder or hub dataset that has several.

    Raises:
        UserError: missing file or split, unreadable line, or a row that is not a mapping.
        EnvironmentFault: a hub dataset without a hub.
    """
    path = None if is_mix(source) or source in RECIPES else local(source)
    if is_mix(source) or source in RECIPES:
        rows = mix(source, split)[0]
    elif path is None:
        _require_name(source)
        rows = read_hub(source, split, config_name)
    else:
        rows = read_folder(path, split, config_name) if path.is_dir() else read_file(path, split)
    if not rows:
        raise UserError("there are no rows", where=source if path and path.is_file() else f"{source} ({split})")
    return [lifted(row) for row in rows]


def find_splits(source: str, config_name: str | None = None) -> tuple[str, ...]:
    """The names of a source's splits; none when it has only one, which goes by any name. Raises as ``read_rows``."""
    if is_mix(source):
        splits = [found for name in _names(source) if (found := find_splits(name))]
        return tuple(split for split in (splits[0] if splits else ()) if all(split in found for found in splits))
    if source in RECIPES:
        recipe = RECIPES[source]
        folder = copy_of(source)
        found = splits_of_folder(folder) if folder else tuple(recipe.splits.values())
        return tuple(ours for ours, theirs in recipe.splits.items() if ours in found or theirs in found)
    path = local(source)
    if path is not None:
        return splits_of_folder(path, config_name) if path.is_dir() else splits_of_file(path)
    _require_name(source)
    return splits_of_hub(source, config_name)


def _require_name(source: str) -> None:
    """Refuse what is not on this machine and can be no name on the hub either."""
    if not source.strip():
        raise UserError("the name of the data set is empty", fix=f"a path, a hub id, or one of {', '.join(RECIPES)}")
    if Path(f"{source}.py").is_file():
        raise UserError(f"{source} is no data set, but {source}.py a program", fix="give a file, a folder or a hub id")
    is_path = suffix_of(Path(source)) in SUFFIXES or source.startswith((".", "/", "~")) or Path(source).suffix == ".py"
    if is_path or not is_name(source):
        names = ", ".join(RECIPES)
        raise UserError(f"there is no file or folder {source}", fix=f"a path, a hub id, or one of {names}")


# --- several sources ------------------------------------------------------------------------------------


def is_mix(source: str) -> bool:
    """Whether ``source`` is a list of sources: it has a comma and is no path."""
    return "," in source and local(source) is None


def _names(sources: str) -> list[str]:
    names = [name.strip() for name in sources.split(",")]
    if "" in names:
        raise UserError(f"a name is missing in {sources!r}", fix="write names with one comma between: uc,ufb,hh")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name} occurs twice in {sources!r}")
    return names


def short_name(source: str) -> str:
    """What a source is called in tables and ids: the last part of its path, without the suffixes of its format."""
    if is_mix(source):
        return "+".join(short_name(name) for name in _names(source))
    name = Path(source).name or Path(source).absolute().name
    suffix = suffix_of(Path(name))
    return name[: name.lower().rindex(suffix)] if suffix in SUFFIXES else name


def mix(sources: str, split: str = TRAIN) -> tuple[list[Row], list[str]]:
    """The rows of several sources, one after the other in the order of their names.

    Every row carries its ``source``, and its id begins with it ("hh/12").

    Returns:
        The rows, and printable lines: how many rows each recipe left out.

    Raises:
        UserError: as ``read_rows``, or for two sources with one name.
    """
    rows: list[Row] = []
    notes: list[str] = []
    names = _names(sources)
    called = [name if name in RECIPES else short_name(name) for name in names]
    for name, short in zip(names, called, strict=True):
        if called.count(short) > 1:
            raise UserError(f"two sources of {sources!r} are called {short!r}", fix="rename one of the files")
        if name in RECIPES:
            converted, said = convert_all(RECIPES[name], _raw(RECIPES[name], split))
            rows += converted
            notes += said
        elif split != TRAIN and not find_splits(name):
            # Its rows are trained on; as test rows too they would only show how well they were learnt by heart.
            notes.append(f"{short}: has no splits, so none of its rows are {split} rows")
        else:
            rows += [{**row, "id": f"{short}/{row['id']}", "source": short} for row in read_rows(name, split)]
    return rows, notes


def _raw(recipe: Recipe, split: str) -> list[Row]:
    """A recipe's rows in the origin's columns: of the copy in the folder of data sets, else of the hub."""
    if split not in recipe.splits:
        raise UserError(f"{recipe.name} has no split {split!r}", why=f"it has {', '.join(recipe.splits)}")
    theirs = recipe.splits[split]
    folder = copy_of(recipe.name)
    if folder is not None:
        found = splits_of_folder(folder)
        return read_folder(folder, theirs if theirs in found and split not in found else split)
    try:
        if split in recipe.folders:
            return read_hub(recipe.hub, TRAIN, data_dir=recipe.folders[split])
        return read_rows(recipe.hub, theirs)
    except EnvironmentFault as fault:
        raise EnvironmentFault(
            f"{recipe.name} is the hub's {recipe.hub}, which could not be had",
            why=fault.why,
            fix=f"put its rows in ${DATA_FOLDER}/{recipe.name}/ (train.jsonl, test.jsonl, in the origin's columns); or "
            "give a local file or folder; or connect to the network and try again",
        ) from None


# --- sets of rows -----------------------------------------------------------------------------------------


def hold_out(rows: Sequence[Row], size: int | float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows into train and eval: a fraction below 1, or a number of rows; a function of the seed alone."""
    number = round(len(rows) * size) if isinstance(size, float) and size < 1 else int(size)
    if not 0 < number < len(rows):
        raise UserError(f"cannot hold out {size} of {len(rows)} rows")
    chosen = set(np.random.default_rng(seed).permutation(len(rows))[:number].tolist())
    train = [row for index, row in enumerate(rows) if index not in chosen]
    return train, [row for index, row in enumerate(rows) if index in chosen]


def fingerprint(rows: Sequence[Row]) -> str:
    """A hash of the rows' content, for the manifest."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def overlap(train: Sequence[Row], held_out: Sequence[Row]) -> int:
    """How many evaluation rows also stand in the training rows, by content without the id."""

    def content(row: Row) -> str:
        return json.dumps({k: v for k, v in row.items() if k != "id"}, sort_keys=True, default=str)

    known = {content(row) for row in train}
    return sum(content(row) in known for row in held_out)
