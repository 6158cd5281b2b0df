"""The configuration as a tree of nodes that remember where they were written.

YAML text, a Python mapping and command-line overrides all become this one tree, and an override replaces
nodes in it; so the checks run once, on the final tree, and each finding names its file and line.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple

import yaml

from contrl.config import scalars
from contrl.errors import UserError

_MAX_NODES = 10_000  # aliases of aliases can expand a short file without end


class Place(NamedTuple):
    """Where a value was written: a file and line, the command line, or nowhere (a default)."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


COMMAND_LINE = Place("command line")


@dataclass
class Scalar:
    """One value as raw text. ``quoted`` text is text, whatever it looks like."""

    place: Place
    text: str
    quoted: bool = False

    @property
    def is_null(self) -> bool:
        """Whether it stands for "no value" (unquoted null, none, ~ or nothing)."""
        return not self.quoted and scalars.is_null(self.text)


@dataclass
class Items:
    """A list."""

    place: Place
    items: list[Node] = field(default_factory=list)


@dataclass
class Fields:
    """A mapping. The place of a value in it is the line of its key."""

    place: Place
    entries: dict[str, Node] = field(default_factory=dict)


Node = Scalar | Items | Fields

Finding = tuple[Place, UserError]
"""A mistake and where it stands, so that many can be put in the order of the lines."""


# --- from YAML text ---------------------------------------------------------------------------------


def parse(text: str, source: str) -> tuple[Node, list[Finding]]:
    """The tree of one YAML document and the mistakes that do not stop it from being read (duplicate keys).

    Raises:
        UserError: the text is not YAML, with the line where reading stopped.
    """
    try:
        document = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(source, mark.line + 1 if mark else None)
        why = f"{error.problem or 'not YAML'}{f', {error.context}' if error.context else ''}"
        raise UserError("this is not valid YAML", where=str(place), why=why) from None
    except yaml.reader.ReaderError as error:
        place = Place(source, text.count("\n", 0, error.position) + 1)
        raise UserError("this is not valid YAML", where=str(place), why="it holds a control character") from None
    except RecursionError:
        raise UserError("this YAML is nested too deeply to be read", where=source) from None
    if document is None:
        return Fields(Place(source)), []
    reader = _Reader(source)
    root = reader.node(document, Place(source, document.start_mark.line + 1))
    if isinstance(root, Fields):
        root.place = Place(source)
    return root, reader.errors


class _Reader:
    """Turns the nodes of PyYAML into ours: aliases are copied, ``<<`` is merged, tags other than YAML's own refused."""

    _TAGS = frozenset(["null", "bool", "int", "float", "str", "seq", "map", "merge", "value", "timestamp", "binary"])

    def __init__(self, source: str) -> None:
        self.source = source
        self.errors: list[Finding] = []
        self._open: list[yaml.Node] = []
        self._num_nodes = 0

    def refuse(self, place: Place, what: str, why: str = "") -> None:
        self.errors.append((place, UserError(what, where=str(place), why=why)))

    def place(self, node: yaml.Node) -> Place:
        return Place(self.source, node.start_mark.line + 1)

    def node(self, node: yaml.Node, place: Place) -> Node:
        self._num_nodes += 1
        if any(node is parent for parent in self._open):
            raise UserError("an alias refers to the section it stands in", where=str(place))
        if self._num_nodes > _MAX_NODES:
            raise UserError(f"aliases expand this file to more than {_MAX_NODES} values", where=str(place))
        if node.tag.removeprefix("tag:yaml.org,2002:") not in self._TAGS:
            self.refuse(place, f"unknown tag {node.tag!r}", "the field's own type decides what a value is")
        if isinstance(node, yaml.ScalarNode):
            return Scalar(place, node.value, quoted=node.style is not None)
        self._open.append(node)
        result: Node
        if isinstance(node, yaml.MappingNode):
            result = self.fields(node, place)
        else:
            result = Items(place, [self.node(item, self.place(item)) for item in node.value])
        self._open.pop()
        return result

    def fields(self, node: yaml.MappingNode, place: Place) -> Fields:
        entries: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in node.value:
            here = self.place(key)
            if not isinstance(key, yaml.ScalarNode):
                self.refuse(here, "a key must be a single word")
            elif key.value == "<<" and key.style is None:
                for name, inherited in self.merged(value, here):
                    merged.setdefault(name, inherited)
            elif key.value in entries:
                first = entries[key.value].place.line
                self.refuse(here, f"{key.value}: this key is given twice", f"first on line {first}")
            else:
                entries[key.value] = self.node(value, here)
        return Fields(place, merged | entries)

    def merged(self, value: yaml.Node, here: Place) -> Iterator[tuple[str, Node]]:
        sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
        for source in sources:
            node = self.node(source, here)
            if isinstance(node, Fields):
                yield from node.entries.items()
            else:
                self.refuse(here, "<< merges mappings, and this is none")


# --- from Python ------------------------------------------------------------------------------------


def from_python(value: Any, place: Place, path: str = "") -> Node:
    """The same tree from dictionaries, lists and plain values; text counts as quoted.

    Raises:
        UserError: a value has a type that no configuration file could hold.
    """
    if value is None or isinstance(value, bool | int | float):
        return Scalar(place, "null" if value is None else scalars.format_number(value))
    if isinstance(value, str | PurePath):
        return Scalar(place, str(value), quoted=True)
    if isinstance(value, Mapping):
        pairs = ((str(key), item) for key, item in value.items())
        return Fields(place, {key: from_python(item, place, f"{path}.{key}" if path else key) for key, item in pairs})
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return Items(place, [from_python(item, place, f"{path}.{index}") for index, item in enumerate(value)])
    what = f"{path}: a {type(value).__name__} cannot stand in a configuration"
    raise UserError(
        what, where=str(place), fix="give text, numbers, lists or dictionaries; a function as module:function"
    )


# --- overrides --------------------------------------------------------------------------------------


def split_override(text: str) -> tuple[list[str], Node]:
    """``a.b=value`` as the path and its new node. ``[..]``, ``{..}`` and quoted values are read as YAML.

    Raises:
        UserError: there is no ``=``, no path, or the value opens a bracket that it does not close properly.
    """
    path, equals, value = text.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        fix = "write path=value, for example training.learning_rate=1e-5"
        raise UserError(f"{text!r} is not an override", where=str(COMMAND_LINE), fix=fix)
    value = value.strip()
    if value[:1] not in ("[", "{", '"', "'"):
        return names, Scalar(COMMAND_LINE, value)
    try:
        node, errors = parse(value, COMMAND_LINE.source)
    except UserError as error:
        errors = [(COMMAND_LINE, error)]
    if errors:
        first, what = errors[0][1], f"{text!r}: the value is not valid YAML"
        raise UserError(what, where=str(COMMAND_LINE), why=first.why or first.what, fix="quote it for the shell")
    return names, relocate(node, COMMAND_LINE)


def relocate(node: Node, place: Place) -> Node:
    """A copy of the node with every place set to ``place``."""
    node = copy.copy(node)
    node.place = place
    if isinstance(node, Items):
        node.items = [relocate(item, place) for item in node.items]
    elif isinstance(node, Fields):
        node.entries = {key: relocate(value, place) for key, value in node.entries.items()}
    return node


def patch(root: Fields, names: Sequence[str], value: Node) -> None:
    """Put ``value`` at the path; mappings on the way are made, list items found by index or by their ``name``.

    A path that no field answers to is not refused here: the checks of the final tree report it.

    Raises:
        UserError: the path leads into a single value, or names a list item that there is not.
    """
    node: Node = root
    for depth, name in enumerate(names):
        last, here = depth == len(names) - 1, ".".join(names[:depth])
        if isinstance(node, Scalar) and node.is_null:
            raise UserError(f"{here} has no value, so it has no {name!r}", where=str(value.place))
        if isinstance(node, Scalar):
            what = f"{here} is the single value {node.text!r}, so it has no {name!r}"
            raise UserError(what, where=str(value.place))
        if isinstance(node, Items):
            index = _index(node, name, here, value.place)
            node.items[index] = value if last else node.items[index]
            node = node.items[index]
            continue
        missing = name not in node.entries or _is_empty(node.entries[name])
        if last or missing:
            node.entries[name] = value if last else Fields(value.place)
        node = node.entries[name]


def _is_empty(node: Node) -> bool:
    return isinstance(node, Scalar) and node.is_null


def _index(node: Items, name: str, here: str, place: Place) -> int:
    """Position of the list item that ``name`` means."""
    names = [item.entries.get("name") if isinstance(item, Fields) else item for item in node.items]
    texts = [item.text if isinstance(item, Scalar) else "" for item in names]
    if name.isdecimal() and int(name) < len(texts):
        return int(name)
    if texts.count(name) == 1:
        return texts.index(name)
    known = f"{here} has {len(texts)} items, 0 to {len(texts) - 1}" if texts else f"{here} is an empty list"
    if any(texts):
        known += f": {', '.join(text or '?' for text in texts)}"
    found = "more than one item" if name in texts else "no item"
    what = f"{here}.{name}: {found} {'has the number' if name.isdecimal() else 'is called'} {name}"
    raise UserError(what, where=str(place), why=known, fix="name an item by its number or its name")


# --- back to text -----------------------------------------------------------------------------------


def write(plain: Mapping[str, Any]) -> str:
    """YAML text of plain values that ``parse`` and the field types turn back into the same values."""
    return _serialize(_to_yaml(plain))


def inline(value: Any) -> str:
    """One plain value on one line, as ``write`` would put it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(inline(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{inline(key)}: {inline(item)}" for key, item in value.items()) + "}"
    return _serialize(_to_yaml(value)).removesuffix("...\n").rstrip("\n")


def _serialize(node: yaml.Node) -> str:
    text: str = yaml.serialize(node, Dumper=yaml.SafeDumper, allow_unicode=True, width=sys.maxsize)
    return text


def _to_yaml(value: Any) -> yaml.Node:
    if isinstance(value, Mapping):
        pairs = [(_to_yaml(str(key)), _to_yaml(item)) for key, item in value.items()]
        return yaml.MappingNode("tag:yaml.org,2002:map", pairs, flow_style=not pairs)
    if isinstance(value, list | tuple):
        items = [_to_yaml(item) for item in value]
        return yaml.SequenceNode("tag:yaml.org,2002:seq", items, flow_style=not any(map(_is_nested, value)))
    if isinstance(value, str | PurePath):
        return _text_to_yaml(str(value))
    text = "null" if value is None else scalars.format_number(value)
    return yaml.ScalarNode(_tag(text), text)


def _text_to_yaml(text: str) -> yaml.Node:
    """Text in quotes wherever YAML or our own reading of words could take it for something else."""
    quoted = scalars.is_ambiguous(text) or not text.isprintable() or _tag(text) != _TEXT
    return yaml.ScalarNode(_TEXT, text, style='"' if quoted else None)


def _tag(text: str) -> str:
    """The tag YAML itself gives to the bare text; a node that has it is written without one."""
    tag: str = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))
    return tag


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


_RESOLVER = yaml.resolver.Resolver()
_TEXT = "tag:yaml.org,2002:str"
