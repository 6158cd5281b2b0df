"""A configuration as something to read: plain values, one line per value, the difference of two, a digest.

All four are made from the same flat list of values, so two configurations have the same digest exactly when
`difference` finds nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from contrl.config import tree
from contrl.config.schema import PluginConfig, RunConfig, SequenceConfig
from contrl.errors import UserError

if TYPE_CHECKING:
    from contrl.config.load import Resolved

_NOT_COMPARED = "output_dir"  # where the results lie does not change them
_NOT_SET = "(not set)"


def to_plain(value: Any) -> Any:
    """Dataclasses as dictionaries, tuples as lists, paths as text; a plugin's fields stand beside its name."""
    if isinstance(value, PluginConfig | SequenceConfig):
        return {"name": value.name, **{key: to_plain(item) for key, item in value.fields.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value.as_posix() if isinstance(value, PurePath) else value


def flatten(plain: Any, path: str = "") -> dict[str, Any]:
    """Dotted path -> value. Lists of plain values and empty sections are values themselves."""
    return dict(_leaves(plain, path))


def _leaves(plain: Any, path: str) -> Iterator[tuple[str, Any]]:
    children: list[tuple[str, Any]] = []
    if isinstance(plain, Mapping):
        children = list(plain.items())
    elif isinstance(plain, list) and any(isinstance(item, Mapping | list) for item in plain):
        children = [(str(index), item) for index, item in enumerate(plain)]
    if not children:
        yield path, plain
    for key, item in children:
        yield from _leaves(item, f"{path}.{key}" if path else key)


def show(resolved: Resolved) -> str:
    """Every value with its origin, one aligned line each, then the notes."""
    rows = [(path, tree.inline(value)) for path, value in flatten(to_plain(resolved.config)).items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    # One long list must not push every origin off the screen.
    widths[1] = min(widths[1], 40)
    lines = [f"{path:{widths[0]}} = {value:{widths[1]}}  {resolved.origins[path]}" for path, value in rows]
    return "\n".join([*lines, *(f"note: {note}" for note in resolved.notes)])


def difference(before: RunConfig | str, after: RunConfig | str) -> list[str]:
    """What changed, one line a value: ``training.learning_rate: 0.0001 -> 0.001``. ``output_dir`` is not compared.

    Args:
        before, after: a configuration, or the text of a resolved one (config.yaml of a run folder).

    Raises:
        UserError: a text is not YAML.
    """
    old, new = _texts(before), _texts(after)
    paths = [*old, *(path for path in new if path not in old)]
    changed = (path for path in paths if old.get(path) != new.get(path))
    return [f"{path}: {old.get(path, _NOT_SET)} -> {new.get(path, _NOT_SET)}" for path in changed]


def digest(config: RunConfig) -> str:
    """SHA-256, in hexadecimal, over every value but ``output_dir``; the order of keys does not matter."""
    content = json.dumps(sorted(_texts(config).items()))
    return hashlib.sha256(content.encode()).hexdigest()


def _texts(config: RunConfig | str) -> dict[str, str]:
    """Dotted path -> the value as it is written in the resolved text."""
    root, errors = tree.parse(config if isinstance(config, str) else tree.write(to_plain(config)), "config.yaml")
    if errors:
        raise UserError("this is not a resolved configuration", where=str(errors[0][0]), why=errors[0][1].what)
    leaves = flatten(_written(root))
    texts = {path: f"[{', '.join(value)}]" if isinstance(value, list) else str(value) for path, value in leaves.items()}
    return {path: text for path, text in texts.items() if path != _NOT_COMPARED}


def _written(node: tree.Node) -> Any:
    if isinstance(node, tree.Fields):
        return {key: _written(item) for key, item in node.entries.items()}
    if isinstance(node, tree.Items):
        return [_written(item) for item in node.items]
    return tree.inline(node.text) if node.quoted else node.text
