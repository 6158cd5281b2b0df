"""Hugging Face's way of writing flags: which there are is a table, what was written becomes nodes with their place.

``--flag value``, ``--flag=value``, bare booleans, ``--no_flag``, lists with spaces or commas, dictionaries as JSON.
Reading never stops at the first mistake, and values stay raw text: the configuration's own types read them.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from contrl.config import tree
from contrl.config.calls import split_words
from contrl.config.tree import COMMAND_LINE, Fields, Items, Node, Place, Scalar
from contrl.config.walk import members, nearest, split_annotated
from contrl.errors import UserError

Kind = Literal["switch", "maybe", "one", "list", "calls"]
"""What follows: nothing or yes/no; nothing or any word; one word; several; several, each NAME or NAME(field=value)."""

_YES, _NO = ("true", "yes", "on", "t", "y", "1"), ("false", "no", "off", "f", "n", "0")
_OVERRIDE = re.compile(r"[a-z_]+(\.\w+)+=.*", re.DOTALL)


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        name: without dashes, with underscores.
        path: the dotted path it sets, or "" when the command itself reads it.
        kind: how many words it takes.
        help, default, metavar: for a reader.
        group: its heading in the help; "" is never listed.
        common: whether the short help shows it.
        note: said when it is used.
        refusal: why it cannot be used, unless its value is one of ``harmless``, which change nothing.
        implies: (path, text) set when it is given and not "no".
        only: (a switch, whether that must be on) for it to have an effect.
        variable: the environment variable that its value becomes.
        secret: the value is kept out of everything that is recorded.
    """

    name: str
    path: str = ""
    kind: Kind = "one"
    help: str = ""
    default: str = ""
    metavar: str = "VALUE"
    group: str = ""
    common: bool = False
    note: str = ""
    refusal: str = ""
    harmless: tuple[str, ...] = ()
    implies: tuple[str, str] | None = None
    only: tuple[str, bool] | None = None
    variable: str = ""
    secret: bool = False


class Given(NamedTuple):
    """A flag that was written, its value and where."""

    flag: Flag
    node: Node
    place: Place

    @property
    def is_no(self) -> bool:
        """Whether a switch was turned off."""
        return isinstance(self.node, Scalar) and self.node.text.lower() in _NO

    @property
    def text(self) -> str:
        """Its value as one word; of a list, the words with commas between."""
        if isinstance(self.node, Items):
            return ",".join(item.text for item in self.node.items if isinstance(item, Scalar))
        return self.node.text if isinstance(self.node, Scalar) else ""


@dataclass
class Found:
    """What was read: the last value of each flag by its name, flags without one, overrides, other words, mistakes."""

    given: dict[str, Given] = field(default_factory=dict)
    valueless: set[str] = field(default_factory=set)
    overrides: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    errors: list[UserError] = field(default_factory=list)

    def update(self, other: Found) -> None:
        """Add what was read later, which wins."""
        self.given |= other.given
        self.valueless |= other.valueless
        self.overrides += other.overrides
        self.words += other.words
        self.errors += other.errors


def kind_of(annotation: Any) -> Kind:
    """How a value of this type is written."""
    options = members(split_annotated(annotation)[0])
    if bool in options:
        return "maybe" if str in options else "switch"
    lists = (list, tuple)
    return "list" if any(typing.get_origin(option) in lists or option in lists for option in options) else "one"


Home = Callable[[str], str]
"""The name of a flag that there is not -> whose flag it is, or ""."""


def read_argv(argv: Sequence[str], flags: Mapping[str, Flag], home: Home = lambda name: "") -> Found:
    """The flags of a command line.

    Args:
        argv: the words after the command.
        flags: every accepted spelling -> its flag; aliases are further keys for the same flag.
        home: asked about a flag that is not among them.
    """
    found, rest = Found(), list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            continue
        if not word.startswith("-") or len(word) == 1:
            (found.overrides if _OVERRIDE.fullmatch(word) else found.words).append(word)
            continue
        spelled, equals, value = word.partition("=")
        name = spelled.lstrip("-").replace("-", "_")
        flag, negated = flags.get(name), False
        if flag is None and name.startswith("no_"):
            candidate = flags.get(name.removeprefix("no_"))
            if candidate is not None and candidate.kind in ("switch", "maybe"):
                flag, negated = candidate, True
        if flag is None or (not spelled.startswith("--")):
            found.errors.append(unknown(spelled, name, flags, str(COMMAND_LINE), home(name)))
            if not equals:
                _take_values(rest)
            continue
        values = [value] if equals else [] if negated else _values(flag, rest)
        node = _negated(values, equals) if negated else _node(flag, values)
        if node is None:
            why = "it takes no value" if negated else "it needs a value"
            found.errors.append(UserError(f"{spelled}: {why}", where=str(COMMAND_LINE)))
            found.valueless.add(flag.name)
        else:
            found.given[flag.name] = Given(flag, node, COMMAND_LINE)
    return found


def unknown(spelled: str, name: str, flags: Mapping[str, Flag], where: str, home: str = "") -> UserError:
    """A flag that there is not, with the nearest one that there is, or whose flag it is."""
    if home:
        return UserError(f"{spelled}: there is no such flag here", where=where, why=f"it belongs to {home}")
    meant = nearest(name, flags)
    dashes = "--" if spelled.startswith("-") else ""
    fix = f"did you mean {dashes}{meant}?" if meant else "--help-all lists every flag"
    return UserError(f"{spelled}: there is no such flag", where=where, fix=fix)


def read_section(section: Fields, flags: Mapping[str, Flag], home: Home = lambda name: "") -> Found:
    """The flags of a file whose keys are their names, without dashes."""
    found = Found()
    for key, node in section.entries.items():
        flag = flags.get(key.lstrip("-").replace("-", "_"))
        if flag is None:
            found.errors.append(unknown(key, key, flags, str(node.place), home(key)))
        else:
            found.given[flag.name] = Given(flag, node, node.place)
    return found


def _values(flag: Flag, rest: list[str]) -> list[str]:
    """The words that belong to the flag, taken off the rest."""
    if flag.kind in ("list", "calls"):
        return _take_values(rest)
    if flag.kind == "maybe":
        return [rest.pop(0)] if rest and not _is_flag(rest[0]) else ["true"]
    if flag.kind == "switch":
        is_value = bool(rest) and rest[0].lower() in (*_YES, *_NO, "none")
        return [rest.pop(0)] if is_value else ["true"]
    return [rest.pop(0)] if rest and not _is_flag(rest[0]) else []


def _take_values(rest: list[str]) -> list[str]:
    values = []
    while rest and not _is_flag(rest[0]) and not _OVERRIDE.fullmatch(rest[0]):
        values.append(rest.pop(0))
    return values


def _is_flag(word: str) -> bool:
    """A number below zero starts with a dash, too."""
    return re.match(r"-(-|[A-Za-z])", word) is not None


def _node(flag: Flag, values: Sequence[str]) -> Node | None:
    if not values:
        return None
    if flag.kind == "switch" and values[0].lower() in (*_YES, *_NO):
        return Scalar(COMMAND_LINE, "true" if values[0].lower() in _YES else "false")
    if flag.kind == "calls":
        calls = [word for value in values for word in split_words(value)]
        return Items(COMMAND_LINE, [Scalar(COMMAND_LINE, call) for call in calls])
    if flag.kind == "list" and len(values) > 1:
        words = [word.strip() for value in values for word in value.split(",")]
        return Items(COMMAND_LINE, [Scalar(COMMAND_LINE, word) for word in words if word])
    return Scalar(COMMAND_LINE, values[0])


def _negated(values: Sequence[str], equals: str) -> Node | None:
    return None if equals else Scalar(COMMAND_LINE, "false")


# --- to overrides ---------------------------------------------------------------------------------------


def override(path: str, node: Node) -> str:
    """The value as an override ``path=value`` that reads back as the same node."""
    if isinstance(node, Scalar) and not node.quoted and _is_plain(node.text, outside=True):
        return f"{path}={node.text}"
    return f"{path}={_flow(node)}"


def _flow(node: Node) -> str:
    if isinstance(node, Items):
        return f"[{', '.join(map(_flow, node.items))}]"
    if isinstance(node, Fields):
        return (
            "{"
            + ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {_flow(item)}" for key, item in node.entries.items())
            + "}"
        )
    plain = not node.quoted and _is_plain(node.text, outside=False)
    return node.text if plain else json.dumps(node.text, ensure_ascii=False)


def _is_plain(text: str, *, outside: bool) -> bool:
    """Whether the text can stand without quotes; ``outside`` of brackets nearly all can."""
    if outside:
        return text == text.strip() and text[:1] not in ('"', "'") and (text[:1] not in ("[", "{") or _is_flow(text))
    return re.fullmatch(r"[\w./+-]+", text) is not None


def _is_flow(text: str) -> bool:
    """Whether the text is a list or a section in brackets."""
    try:
        node, errors = tree.parse(text, COMMAND_LINE.source)
    except UserError:
        return False
    return not errors and not isinstance(node, Scalar)


def without_secrets(argv: Sequence[str], flags: Mapping[str, Flag]) -> list[str]:
    """The words without the flags whose values must not be recorded."""
    kept, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        spelled, equals, _ = word.partition("=")
        flag = flags.get(spelled.lstrip("-").replace("-", "_")) if spelled.startswith("--") else None
        if flag is None or not flag.secret:
            kept.append(word)
        elif not equals:
            _values(flag, rest)
    return kept


def readable(names: Iterable[str]) -> str:
    """``a, b and c``."""
    listed = list(names)
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"
