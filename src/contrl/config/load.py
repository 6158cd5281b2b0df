"""Load a configuration: read, patch in the overrides, check everything, and keep where each value came from.

All mistakes are raised together. Nothing is guessed and nothing unknown is passed on: a key that is not a
field of contrl, of the chosen plugin or of TrainingArguments is an error with the nearest valid name.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrl.config import tree
from contrl.config.calls import read_call, split_words
from contrl.config.schema import RunConfig, TaskConfig
from contrl.config.sections import Resolve, Sections
from contrl.config.show import digest, flatten, to_plain
from contrl.config.training import OWNED, training_arguments
from contrl.config.tree import COMMAND_LINE, Fields, Finding, Items, Node, Place, Scalar
from contrl.errors import ConfigErrors, UserError

Override = tuple[Sequence[str], Node]
"""The path of a value and the node to put there."""


@dataclass(frozen=True)
class Resolved:
    """A checked configuration.

    Attributes:
        config: the typed values.
        origins: dotted path of each value -> "demo.yaml:14", "command line" or "default".
        text: YAML of the whole configuration, defaults included; loading it gives an equal ``config``.
        digest: SHA-256 over everything but ``output_dir``.
        notes: settings that are valid but have no effect, or not the one expected.
    """

    config: RunConfig
    origins: dict[str, str]
    text: str
    digest: str
    notes: tuple[str, ...] = ()


def load(
    given: str | Path | Mapping[str, Any] | Fields,
    overrides: Sequence[str | Override] = (),
    *,
    resolve: Resolve,
    source: str | None = None,
) -> Resolved:
    """The configuration in a YAML file, a YAML text (has a line break) or a mapping, with ``path=value`` overrides.

    Args:
        given: a path, YAML text, plain dictionaries, or the tree of a part of a file.
        overrides: text, or the path with a node of its own place; later ones win; paths reach list items by number
            or by name.
        resolve: finds plugins; raises UserError for a name it does not know.
        source: what errors call the input; the path as given when None.

    Raises:
        ConfigErrors: with every mistake found, in the order of the lines.
    """
    root, errors, folder = _read(given, source)
    _expand(root, errors)
    for override in overrides:
        try:
            names, value = tree.split_override(override) if isinstance(override, str) else copy.deepcopy(override)
            _patch(root, names, value)
        except UserError as error:
            errors.append((COMMAND_LINE if isinstance(override, str) else override[1].place, error))
        _expand(root, errors)
    sections = Sections(resolve, folder)
    config = sections.run(root)
    errors += sections.walker.errors
    if errors:
        raise ConfigErrors([error for _, error in sorted(errors, key=_by_line)])
    plain = to_plain(config)
    origins = {path: str(sections.walker.origins.get(path, "default")) for path in flatten(plain)}
    return Resolved(config, origins, tree.write(plain), digest(config), tuple(_notes(config, origins)))


def _patch(root: Fields, names: Sequence[str], value: Node) -> None:
    # Unlike a plugin's fields, the model's other settings do not belong to its name: a new name keeps them.
    if list(names) == ["model"] and isinstance(value, Scalar) and isinstance(root.entries.get("model"), Fields):
        names = ["model", "name_or_path"]
    tree.patch(root, names, value)


def _by_line(finding: Finding) -> tuple[bool, int]:
    return finding[0] == COMMAND_LINE, finding[0].line or 0


def _read(
    given: str | Path | Mapping[str, Any] | Fields, source: str | None
) -> tuple[Fields, list[Finding], Path | None]:
    """The tree, the mistakes in its form, and the folder that relative paths start from."""
    folder = None
    if isinstance(given, Fields):
        return copy.deepcopy(given), [], Path(given.place.source).parent
    if isinstance(given, Mapping):
        try:
            return _as_fields(tree.from_python(given, Place(source or "configuration"))), [], folder
        except UserError as error:
            raise ConfigErrors([error]) from None
    if isinstance(given, str) and "\n" in given:
        text = given
    else:
        path = Path(given).expanduser()
        source, folder = source or str(given), path.parent
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigErrors([UserError("this file is not UTF-8 text", where=source, why=str(error))]) from None
        except OSError as error:
            what = "there is no such configuration file" if not path.exists() else "this file cannot be read"
            raise ConfigErrors([UserError(what, where=source, why=error.strerror or "")]) from None
    try:
        root, errors = tree.parse(text, source or "configuration")
    except UserError as error:
        raise ConfigErrors([error]) from None
    return _as_fields(root), errors, folder


def _as_fields(root: Node) -> Fields:
    if isinstance(root, Fields):
        return root
    what = f"a configuration is keys and values, not {'a list' if isinstance(root, Items) else 'a single value'}"
    raise ConfigErrors([UserError(what, where=str(root.place), fix="write for example `output_dir: runs/mine`")])


# --- short forms ------------------------------------------------------------------------------------


def _expand(root: Fields, errors: list[Finding]) -> None:
    """Write short forms out in full, so that overrides reach inside them: ``method: rloo`` -> ``{name: rloo}``."""
    _name(root, "model", "name_or_path")
    _name(root, "method", "name")
    _name(root, "tasks", "name")
    _name(root, "base", "method")
    if isinstance(base := root.entries.get("base"), Fields):
        _name(base, "method", "name")
    _calls(root, "strategies", errors)
    if isinstance(rewards := root.entries.get("rewards"), Fields):
        _calls(rewards, "functions", errors)
    tasks = root.entries.get("tasks")
    for index, task in enumerate(tasks.items if isinstance(tasks, Items) else ()):
        if isinstance(task, Fields):
            _lift_training(f"tasks.{index}", task, errors)
            _calls(task, "reward", errors)


def _name(section: Fields, key: str, inner: str) -> None:
    if key in section.entries:
        section.entries[key] = _named(section.entries[key], inner)


def _calls(section: Fields, key: str, errors: list[Finding]) -> None:
    """One plugin, several with commas, or a list of them, as a list of sections: ``replay, ewc(coef=10)``."""
    found = section.entries.get(key)
    if isinstance(found, Scalar) and not found.is_null:
        found = Items(found.place, [Scalar(found.place, word) for word in split_words(found.text)])
    elif isinstance(found, Fields):
        found = Items(found.place, [found])
    if isinstance(found, Items):
        called = [_called(item, errors, key) for item in found.items]
        found.items = [item for item in called if item is not None]
        section.entries[key] = found


def _called(node: Node, errors: list[Finding], key: str) -> Node | None:
    """``replay`` and ``ewc(coef=10)`` as sections; of what cannot be read, which is noted, a stand-in or None."""
    if not isinstance(node, Scalar) or node.is_null:
        return node
    try:
        return read_call(node)
    except UserError as error:
        errors.append((node.place, error))
        # The others keep their numbers, by which the next mistakes are told.
        return Fields(node.place, {"name": Scalar(node.place, "naive")}) if key == "strategies" else None


def _named(node: Node, key: str) -> Node:
    return Fields(node.place, {key: node}) if isinstance(node, Scalar) and not node.is_null else node


def _lift_training(path: str, task: Fields, errors: list[Finding]) -> None:
    """Move training arguments written on the task itself into its ``training`` section."""
    own = {field.name for field in dataclasses.fields(TaskConfig)}
    for key in [key for key in task.entries if key not in own and (key in training_arguments() or key in OWNED)]:
        node, training = task.entries[key], task.entries.get("training")
        if training is None or (isinstance(training, Scalar) and training.is_null):
            training = task.entries["training"] = Fields(node.place)
        if not isinstance(training, Fields):
            return
        del task.entries[key]
        earlier = training.entries.get(key)
        if earlier is not None and node.place != COMMAND_LINE:
            why = f"it also stands in {path}.training, on line {earlier.place.line}"
            errors.append((node.place, UserError(f"{path}.{key}: given twice", where=str(node.place), why=why)))
        training.entries[key] = node


# --- notes ------------------------------------------------------------------------------------------


def _notes(config: RunConfig, origins: Mapping[str, str]) -> Iterator[str]:
    """What is allowed and yet may surprise."""
    tasks = config.tasks if isinstance(config.tasks, tuple) else ()
    for index, task in enumerate(tasks):
        for key, value in task.training.items():
            own, general = origins.get(f"tasks.{index}.training.{key}"), origins.get(f"training.{key}")
            if general == str(COMMAND_LINE) != own:
                instead = f"override tasks.{task.name}.training.{key} to change it"
                yield f"task {task.name} keeps its own {key} = {tree.inline(value)} ({own}); {instead}"
    lora = [key for key in origins if key.startswith("model.lora_") and origins[key] != "default"]
    if lora and not config.model.use_peft:
        yield f"{', '.join(lora)}: no effect, because model.use_peft is false"
