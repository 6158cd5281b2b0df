"""The sections that only contrl's own file has: plugins, tasks, training arguments, data and model paths.

One handler per Mark of schema.py. A plugin is looked up and even constructed here, so that a wrong field of a
method or a strategy of the user's own is reported with its line, together with every other mistake.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from contrl.config import orders, tree
from contrl.config.schema import (
    EvaluationConfig,
    ModelConfig,
    PluginConfig,
    RewardsConfig,
    RunConfig,
    SequenceConfig,
    TaskConfig,
)
from contrl.config.show import to_plain
from contrl.config.training import OWNED, training_arguments
from contrl.config.tree import COMMAND_LINE, Fields, Items, Node, Place, Scalar
from contrl.config.walk import BAD, Parameter, Walker, nearest, parameters
from contrl.errors import EnvironmentFault, UserError

Resolve = Callable[[str, str], Any]
"""(kind, name) -> the dataclass or function of that name; kind is method, strategy, sequence, reward or metric."""

_TASK_NAME = re.compile(r"(?![0-9]+$)[A-Za-z0-9_][\w.-]*", re.ASCII)
_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)
_SCOPE = re.compile(r"base|tasks\.[0-9]+")
_DATA_SUFFIXES = frozenset([".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".gz", ".zst"])


class Sections:
    """Turns the tree of a whole file into a RunConfig; mistakes are noted in ``walker.errors``.

    Args:
        resolve: finds plugins; raises UserError for a name it does not know.
        folder: relative paths in the file start here, then in the working directory; None: only there.
    """

    def __init__(self, resolve: Resolve, folder: Path | None) -> None:
        self._resolve, self._folder = resolve, folder
        # Class and fields of the run's method, whose fields tasks may override; None while unknown or invalid.
        self._method_target: Any = None
        self._method_given: dict[str, Any] | None = None
        handlers = {
            "folder": self._output_folder,
            "method": self._method,
            "strategy": self._strategy,
            "rewards": self._rewards,
            "rewards_section": self._rewards_section,
            "metric": self._metric,
            "data": self._data,
            "model": self._model,
            "training": self._training,
            "method_fields": self._method_fields,
            "tasks": self._tasks,
            "task_name": self._task_name,
            "held_out": self._held_out,
            "order": self._order,
            "stages": self._stages,
        }
        self.walker = Walker(handlers, self._home)

    def run(self, root: Fields) -> RunConfig:
        """The configuration; not to be used when the walker has noted mistakes."""
        values = self.walker.section("", RunConfig, root)
        if values is BAD:
            return BAD
        config = RunConfig(**values)
        for problem in orders.of_tasks(config):
            place = self.walker.origins.get(problem.path, root.place)
            self.walker.refuse(place, problem.what, why=problem.why, fix=problem.fix)
        return config

    def _home(self, path: str, key: str) -> str | None:
        """Where a key that the section ``path`` does not know belongs, if another section knows it."""
        match = _SCOPE.match(path)
        scope = match.group() if match else ""
        places: dict[str, Iterable[str]] = {"training": training_arguments()}
        if scope != "base" and self._method_target is not None:
            places["method"] = parameters(self._method_target)[0]
        if not scope:
            own = {"model": ModelConfig, "evaluation": EvaluationConfig, "rewards": RewardsConfig, "": RunConfig}
            places |= {section: _names(target) for section, target in own.items()}
        homes = (".".join(filter(None, (scope, section, key))) for section, known in places.items() if key in known)
        return next(homes, None)

    # --- plugins ---

    def _method(self, walker: Walker, path: str, annotation: Any, node: Node) -> Any:
        return self._plugin("method", path, node)

    def _strategy(self, walker: Walker, path: str, annotation: Any, node: Node) -> Any:
        return self._plugin("strategy", path, node)

    def _plugin(self, kind: str, path: str, node: Node) -> Any:
        """Name and fields of a plugin, its defaults filled in, or BAD."""
        if not isinstance(node, Fields):
            fix = f"write {path}: NAME, or name: NAME with its fields beside it"
            return self.walker.refuse(node.place, f"{path}: expected the name of a {kind}", fix=fix)
        name = node.entries.get("name")
        if not isinstance(name, Scalar) or name.is_null:
            return self._nameless(kind, path, node)
        target = self._found(kind, path, name)
        if target is BAD:
            return BAD
        try:
            known = parameters(target)[0]
        except UserError as error:
            return self.walker.refuse(name.place, f"{path}: {name.text!r} is no {kind}: {error.what}", why=error.why)
        if path == "method":
            self._method_target = target
        own = Fields(node.place, {key: item for key, item in node.entries.items() if key != "name"})
        given = self.walker.section(path, target, own)
        if given is BAD or not self._construct(path, target, given, own):
            return BAD
        if path == "method":
            self._method_given = given
        self.walker.origins[f"{path}.name"] = name.place
        defaults = {key: value for key, value in _defaults(known.values()).items() if key != "name"}
        return PluginConfig(name.text, defaults | given)

    def _nameless(self, kind: str, path: str, node: Fields) -> Any:
        name = node.entries.get("name")
        typo = nearest("name", node.entries) if name is None else None
        if typo:
            self.walker.unknown(path, typo, node.entries[typo].place, ["name"])
            return BAD
        fix = "tasks is a list ('- name: ...') or the name of a sequence" if kind == "sequence" else ""
        place = node.place if name is None else name.place
        return self.walker.refuse(place, f"{path}.name: missing", why=f"the name of a {kind}", fix=fix)

    def _found(self, kind: str, path: str, name: Scalar) -> Any:
        """What ``resolve`` finds, or BAD with its own words at the line of the name."""
        try:
            return self._resolve(kind, name.text)
        except UserError as error:
            return self.walker.refuse(name.place, f"{path}: {error.what}", why=error.why, fix=error.fix)

    def _construct(self, path: str, target: Any, given: Mapping[str, Any], node: Fields) -> bool:
        """Whether a dataclass accepts the values together; what its own checks say is noted at their line."""
        if not (isinstance(target, type) and dataclasses.is_dataclass(target)):
            return True
        try:
            target(**given)
        except EnvironmentFault:
            # A package or a key may be absent here and there when the run starts.
            return True
        except UserError as error:
            what, why, fix = error.what, error.why, error.fix
        except ValueError as error:
            what, why, fix = str(error), "", ""
        else:
            return True
        about = next((key for key in node.entries if re.search(rf"\b{re.escape(key)}\b", what)), None)
        place = node.entries[about].place if about else node.place
        self.walker.refuse(place, f"{path}: {what}", why=why, fix=fix)
        return False

    def _metric(self, walker: Walker, path: str, annotation: Any, node: Node) -> Any:
        """The name of a metric, which must exist; any reward may serve as one."""
        value = walker.value(path, annotation, node)
        if not isinstance(value, str) or not isinstance(node, Scalar):
            return value
        with contextlib.suppress(UserError):
            self._resolve("reward", value)
            return value
        return BAD if self._found("metric", path, node) is BAD else value

    def _rewards(self, walker: Walker, path: str, annotation: Any, node: Node) -> Any:
        """Any number of rewards with their fields."""
        if isinstance(node, Scalar) and node.is_null:
            return ()
        if not isinstance(node, Items):
            return walker.refuse(node.place, f"{path}: expected a reward or a list of them")
        if not node.items:
            walker.origins[path] = node.place
        return tuple(self._reward(f"{path}.{index}", item) for index, item in enumerate(node.items))

    def _reward(self, path: str, node: Node) -> Any:
        """A class is a reward with fields; a function has none."""
        name = node.entries.get("name") if isinstance(node, Fields) else None
        if not isinstance(node, Fields) or not isinstance(name, Scalar) or name.is_null:
            return self._plugin("reward", path, node)
        target = self._found("reward", path, name)
        if target is BAD or isinstance(target, type):
            return target if target is BAD else self._plugin("reward", path, node)
        if fields := [key for key in node.entries if key != "name"]:
            what = f"{path}: {name.text} is a function and takes no {fields[0]}"
            return self.walker.refuse(node.entries[fields[0]].place, what, fix="make it a class with __call__")
        self.walker.origins[f"{path}.name"] = name.place
        return PluginConfig(name.text)

    def _weights_fit(self, path: str, values: Any, node: Fields, keys: tuple[str, str]) -> None:
        """Note weights that are not as many as the rewards."""
        if values is BAD or values.get(keys[1]) is None:
            return
        rewards, weights = len(values.get(keys[0], ())), len(values[keys[1]])
        if rewards != weights:
            what = f"{path}.{keys[1]}: {_count(weights, 'weight')} for {_count(rewards, 'reward')}"
            self.walker.refuse(node.entries[keys[1]].place, what, fix="give one weight for each reward")

    def _rewards_section(self, walker: Walker, path: str, annotation: Any, node: Node) -> Any:
        fields = Fields(node.place) if isinstance(node, Scalar) and node.is_null else node
        if not isinstance(fields, Fields):
            fix = "write rewards: {functions: [...]}; of one task: reward: ..."
            return walker.refuse(node.place, f"{path}: expected a section", fix=fix)
        values = walker.section(path, RewardsConfig, fields)
        self._weights_fit(path, values, fields, ("functions", "weights"))
        return values if values is BAD else RewardsConfig(**values)

    # --- tasks ---

    def _tasks(self, walker: Walker, path: str, annotation: Any, node: Node) -> Any:
        if isinstance(node, Fields):
            for key in [key for key, item in node.entries.items() if isinstance(item, Fields) and key.isdecimal()]:
                fix = "list the tasks one by one to give one of them settings of its own"
                walker.refuse(node.entries.pop(key).place, f"{path}.{key}: {path} is not a list here", fix=fix)
            plugin = self._plugin("sequence", path, node)
            return SequenceConfig(plugin.name, plugin.fields) if isinstance(plugin, PluginConfig) else BAD
        if not isinstance(node, Items) or not node.items:
            what = f"{path}: expected at least one task"
            return walker.refuse(node.place, what, fix="tasks is a list ('- name: ...') or the name of a sequence")
        seen: dict[str, Place] = {}
        for index, item in enumerate(node.items):
            name = item.entries.get("name") if isinstance(item, Fields) else None
            if isinstance(name, Scalar) and name.text in seen:
                what = f"{path}.{index}.name: two tasks are called {name.text!r}"
                walker.refuse(name.place, what, why=f"the other one is at {seen[name.text]}")
            elif isinstance(name, Scalar):
                seen[name.text] = name.place
        return tuple([self._task(f"{path}.{index}", item) for index, item in enumerate(node.items)])

    def _task(self, path: str, node: Node) -> Any:
        if not isinstance(node, Fields):
            return self.walker.refuse(node.place, f"{path}: expected a task, a section with at least name and data")
        values = self.walker.section(path, TaskConfig, node, also=training_arguments())
        if values is not BAD and None not in (values.get("eval_size"), values.get("eval_data")):
            what = f"{path}.eval_size: rows are held out of data only when there is no eval_data"
            return self.walker.refuse(node.entries["eval_size"].place, what, fix="give one of the two")
        if isinstance(node, Fields):
            self._weights_fit(path, values, node, ("reward", "reward_weights"))
        return values if values is BAD else TaskConfig(**values)

    def _task_name(self, walker: Walker, path: str, annotation: Any, node: Node) -> Any:
        name = walker.value(path, annotation, node)
        if isinstance(name, str) and not _TASK_NAME.fullmatch(name):
            why = "it names a folder: letters, digits, _ - and . only, and not digits alone"
            return walker.refuse(node.place, f"{path}: {name!r} cannot name a task", why=why)
        return name

    def _held_out(self, walker: Walker, path: str, annotation: Any, node: Node) -> Any:
        size = walker.value(path, annotation, node)
        if isinstance(size, int | float) and (size <= 0 or (isinstance(size, float) and size >= 1)):
            what = f"{path}: must be a number of rows, or a share between 0 and 1, found {size!r}"
            return walker.refuse(node.place, what)
        return size

    def _order(self, walker: Walker, path: str, annotation: Any, node: Node) -> Any:
        """One of the words, or names of tasks, which are compared with the tasks when all is read."""
        if not isinstance(node, Scalar) or ("," in node.text and not node.quoted):
            return walker.value(path, tuple[str, ...], node)
        word = walker.value(path, str, node)
        if word in orders.ORDERS or word is BAD:
            return word
        meant = nearest(node.text, orders.ORDERS)
        what = f"{path}: expected {', '.join(orders.ORDERS)}, or a list of the tasks' names, found {node.text!r}"
        return walker.refuse(node.place, what, fix=f"did you mean {meant}?" if meant else "")

    def _stages(self, walker: Walker, path: str, annotation: Any, node: Node) -> Any:
        """Lists of names; a task alone may stand without brackets."""
        if isinstance(node, Items):
            items: list[Node] = [Items(item.place, [item]) if isinstance(item, Scalar) else item for item in node.items]
            node = Items(node.place, items)
        return walker.value(path, annotation, node)

    def _method_fields(self, walker: Walker, path: str, annotation: Any, node: Node) -> Any:
        """Fields of the run's method that a task overrides."""
        fields = Fields(node.place) if isinstance(node, Scalar) and node.is_null else node
        if not isinstance(fields, Fields) or "name" in fields.entries:
            fix = "every task is learnt by the run's method; write the fields that differ, as method: {field: value}"
            return walker.refuse(node.place, f"{path}: a task cannot have a method of its own", fix=fix)
        if self._method_target is None:
            return {}
        values = walker.section(path, self._method_target, fields, partial=True)
        if values is not BAD and self._method_given is not None:
            self._construct(path, self._method_target, self._method_given | values, fields)
        return values

    def _training(self, walker: Walker, path: str, annotation: Any, node: Node) -> Any:
        """Arguments of TrainingArguments, typed."""
        fields = Fields(node.place) if isinstance(node, Scalar) and node.is_null else node
        if not isinstance(fields, Fields):
            return walker.refuse(node.place, f"{path}: expected a section of training arguments")
        known, values = training_arguments(), {}
        for key, item in fields.entries.items():
            if key in OWNED:
                walker.refuse(item.place, f"{path}.{key}: this is not set here", fix=OWNED[key])
            elif key in known:
                values[key] = walker.value(f"{path}.{key}", known[key].annotation, item)
            else:
                walker.unknown(path, key, item.place, [*known])
        if not values:
            walker.origins[path] = node.place
        return values

    # --- paths ---

    def _output_folder(self, walker: Walker, path: str, annotation: Any, node: Node) -> Any:
        text = walker.value(path, annotation, node)
        if text == "":
            return walker.refuse(node.place, f"{path}: expected a folder, found nothing")
        return Path(text).expanduser().as_posix() if isinstance(text, str) and text.startswith("~") else text

    def _data(self, walker: Walker, path: str, annotation: Any, node: Node) -> Any:
        """Rows: an existing file or folder becomes an absolute path; import paths and hub names stay as they are."""
        text = walker.value(path, annotation, node)
        if not isinstance(text, str) or _IMPORT_PATH.fullmatch(text):
            return text
        # A name on the hub has at most one slash and no file suffix.
        is_file = _is_explicit(text) or Path(text).suffix.lower() in _DATA_SUFFIXES or text.count("/") > 1
        return self._absolute(path, text, node.place, required=is_file)

    def _model(self, walker: Walker, path: str, annotation: Any, node: Node) -> Any:
        """A model: existing folders become absolute, but one word is a name (a folder may be called tiny, too)."""
        text = walker.value(path, annotation, node)
        if not isinstance(text, str) or not (_is_explicit(text) or "/" in text):
            return text
        return self._absolute(path, text, node.place, required=_is_explicit(text) or text.count("/") > 1)

    def _absolute(self, path: str, text: str, place: Place, *, required: bool) -> Any:
        """The path made absolute, so that the resolved configuration means the same from anywhere."""
        here = Path.cwd()
        folders = [here] if self._folder is None else [self._folder, here]
        # Who types an override means the folder they stand in.
        folders = folders[::-1] if place == COMMAND_LINE else folders
        # Not resolve(): a link to a data folder keeps the name it was given.
        tried = list(dict.fromkeys(Path(os.path.abspath(folder / Path(text).expanduser())) for folder in folders))
        found = next((candidate for candidate in tried if _exists(candidate)), None)
        if found is None and required:
            why = f"looked for {' and '.join(candidate.as_posix() for candidate in tried)}"
            return self.walker.refuse(place, f"{path}: there is no file or folder {text!r}", why=why)
        return text if found is None else found.as_posix()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _names(target: type) -> Iterable[str]:
    return parameters(target)[0]


def _defaults(known: Iterable[Parameter]) -> dict[str, Any]:
    """The defaults that a file could hold, as loading that file would give them."""
    values = {}
    for parameter in known:
        if parameter.required:
            continue
        reader = Walker({}, lambda path, key: None)
        try:
            node = tree.from_python(to_plain(parameter.default), Place("default"))
        except UserError:
            continue
        value = reader.value(parameter.name, parameter.annotation, node)
        if not reader.errors:
            values[parameter.name] = value
    return values


def _is_explicit(text: str) -> bool:
    """Whether the text can only be a path."""
    return text.startswith(("/", "./", "../", "~")) or text in (".", "..") or "\\" in text


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the file system
        return False
