"""A pipeline's file: named steps in order, defaults, and which step uses what another one makes.

Nodes keep their lines, so every mistake is told with file and line, and all of them at once. What keys a step may
have is its command's matter; here the file's own form is checked, and that steps only use earlier ones.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from contrl.config import tree
from contrl.config.tree import COMMAND_LINE, Fields, Finding, Items, Node, Place, Scalar
from contrl.config.walk import nearest
from contrl.errors import ConfigErrors, UserError

KIND, EXPERIMENT = "pipeline", "run"
_KEYS = ("kind", "output_dir", "launcher", "defaults", "steps")
_KEPT = ("base", "final", "reward_model", "runs", "samples", "stages", "wandb")
_NAME = re.compile(r"(?![0-9]+$)\w[\w-]*(/\w[\w-]*)*", re.ASCII)
_USE = re.compile(r"""(?:^|(?<=[\s,"'=(\[]))step:([\w/-]+)""", re.ASCII)


class Vocabulary(Protocol):
    """What the commands of steps are and take."""

    @property
    def names(self) -> Sequence[str]:
        """Every command; EXPERIMENT is the one of a step that names none."""

    def spelled(self, command: str, key: str) -> str:
        """The command's own name of a key; "" when it has no such key."""

    def makes_model(self, command: str) -> bool:
        """Whether other steps can use what it makes."""


@dataclass
class Draft:
    """A step as it is written.

    Attributes:
        name: its name and folder below the pipeline's.
        place: where it stands.
        command: dpo, merge ...; EXPERIMENT for a step that is a whole configuration.
        fields: the command's keys, defaults included.
        overrides: ``path=value`` of an experiment, from the command line.
        uses: the names of the steps whose models it uses, in the order of the file.
        launcher: what starts the processes of its training; "" trains in this one.
    """

    name: str
    place: Place
    command: str
    fields: Fields
    overrides: list[str] = field(default_factory=list)
    uses: tuple[str, ...] = ()
    launcher: str = ""


@dataclass
class Outline:
    """A whole file: the folder, its steps, and the mistakes found so far."""

    output_dir: Path
    drafts: list[Draft]
    errors: list[Finding]


def kind_of(path: Path) -> str:
    """What a YAML file says it is: the text under ``kind``, "" without one or when it cannot be read here."""
    try:
        root, _ = tree.parse(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, ValueError, UserError):
        return ""
    kind = root.entries.get("kind") if isinstance(root, Fields) else None
    return kind.text if isinstance(kind, Scalar) else ""


def read(path: Path, overrides: Sequence[str], vocabulary: Vocabulary) -> Outline:
    """The outline of a pipeline's file.

    Args:
        path: the file.
        overrides: ``output_dir=...``, ``defaults.key=value``, ``steps.NAME.key=value``; later ones win.
        vocabulary: the commands.

    Raises:
        ConfigErrors: the file cannot be read at all; other mistakes are in the outline.
    """
    try:
        root, errors = tree.parse(path.read_text(encoding="utf-8-sig"), str(path))
    except UserError as error:
        raise ConfigErrors([error]) from None
    if not isinstance(root, Fields):
        raise ConfigErrors([UserError("a pipeline is keys and values", where=str(path))])
    reader = _Reader(vocabulary, errors)
    drafts = reader.steps(root)
    for text in overrides:
        reader.override(root, drafts, text)
    return reader.outline(root, drafts)


class _Reader:
    """One pass over a file; mistakes are noted in ``errors``."""

    def __init__(self, vocabulary: Vocabulary, errors: list[Finding]) -> None:
        self.vocabulary, self.errors = vocabulary, errors

    def refuse(self, place: Place, what: str, *, why: str = "", fix: str = "") -> None:
        self.errors.append((place, UserError(what, where=str(place), why=why, fix=fix)))

    def outline(self, root: Fields, drafts: list[Draft]) -> Outline:
        for key, node in root.entries.items():
            if key not in _KEYS:
                meant = nearest(key, _KEYS)
                fix = f"did you mean {meant}?" if meant else f"known here: {', '.join(_KEYS)}"
                self.refuse(node.place, f"{key}: unknown key", fix=fix)
        folder = root.entries.get("output_dir")
        if not isinstance(folder, Scalar) or folder.is_null:
            place = root.place if folder is None else folder.place
            self.refuse(place, "output_dir: a pipeline needs a folder", fix="for example output_dir: outputs")
        launcher = root.entries.get("launcher")
        if launcher is not None and not isinstance(launcher, Scalar):
            self.refuse(launcher.place, "launcher: expected a command, such as torchrun --nproc_per_node 2")
        self._defaults(root.entries.get("defaults"), drafts)
        for position, draft in enumerate(drafts):
            draft.uses = self._uses(draft, drafts[:position], drafts[position:])
            if isinstance(launcher, Scalar) and not launcher.is_null:
                draft.launcher = launcher.text
        text = folder.text if isinstance(folder, Scalar) else "."
        return Outline(Path(text).expanduser(), drafts, self.errors)

    # --- steps ------------------------------------------------------------------------------------------

    def steps(self, root: Fields) -> list[Draft]:
        """The steps as they are written, in order."""
        listed = root.entries.get("steps")
        if not isinstance(listed, Items) or not listed.items:
            place = root.place if listed is None else listed.place
            fix = "for example\n    steps:\n      - name: sft\n        command: sft"
            self.refuse(place, "steps: a pipeline needs a list of steps", fix=fix)
            return []
        drafts: list[Draft] = []
        for number, node in enumerate(listed.items):
            draft = self._step(number, node)
            if draft is None:
                continue
            twin = next((other for other in drafts if other.name == draft.name), None)
            if twin is not None:
                self.refuse(
                    draft.place, f"two steps are called {draft.name!r}", why=f"the other one is at {twin.place}"
                )
            else:
                drafts.append(draft)
        for position, draft in enumerate(drafts):
            self._nested(draft, drafts[position + 1 :], drafts)
        return drafts

    def _nested(self, draft: Draft, later: list[Draft], drafts: list[Draft]) -> None:
        """A step may lie in the folder of one before it, where that one keeps nothing of its own."""
        for other in drafts:
            if not draft.name.startswith(f"{other.name}/"):
                continue
            inner = draft.name.removeprefix(f"{other.name}/").partition("/")[0]
            if other in later:
                self.refuse(
                    draft.place, f"steps.{draft.name}: it lies in the folder of {other.name}, which stands later"
                )
            elif inner in _KEPT:
                why = "a run keeps files of its own there"
                self.refuse(draft.place, f"steps.{draft.name}: no step can be called {inner} below another", why=why)

    def _step(self, number: int, node: Node) -> Draft | None:
        if not isinstance(node, Fields):
            self.refuse(node.place, f"steps.{number}: expected a step, a section with a name")
            return None
        name, command = node.entries.get("name"), node.entries.get("command")
        place = name.place if name is not None else node.place
        if not isinstance(name, Scalar) or name.is_null:
            self.refuse(place, f"steps.{number}: a step needs a name", fix="for example - name: sft")
            return None
        if not _NAME.fullmatch(name.text):
            why = "it names a folder below output_dir: letters, digits, _ and -, and / between them"
            self.refuse(place, f"steps.{number}: {name.text!r} cannot name a step", why=why)
            return None
        chosen = command.text if isinstance(command, Scalar) else EXPERIMENT
        if command is not None and (chosen not in self.vocabulary.names or chosen == EXPERIMENT):
            known = [word for word in self.vocabulary.names if word != EXPERIMENT]
            meant = nearest(chosen, known)
            fix = f"did you mean {meant}?" if meant else f"use one of {', '.join(known)}, or leave command out"
            self.refuse(command.place, f"steps.{name.text}: no command of a step is called {chosen!r}", fix=fix)
            return None
        entries = {key: item for key, item in node.entries.items() if key not in ("name", "command")}
        draft = Draft(name.text, place, chosen, Fields(place, entries))
        draft.fields.entries = {self._own_name(draft, key): item for key, item in entries.items()}
        return draft

    def _own_name(self, draft: Draft, key: str) -> str:
        return self.vocabulary.spelled(draft.command, key) or key

    def _defaults(self, node: Node | None, drafts: list[Draft]) -> None:
        """Give each step the defaults that its command knows and that it does not set itself."""
        if node is None or (isinstance(node, Scalar) and node.is_null):
            return
        if not isinstance(node, Fields):
            self.refuse(node.place, "defaults: expected a section of keys that steps have")
            return
        for key, item in node.entries.items():
            taking = [draft for draft in drafts if self.vocabulary.spelled(draft.command, key)]
            if drafts and not taking:
                self.refuse(item.place, f"defaults.{key}: no step has such a key")
            for draft in taking:
                own = self._own_name(draft, key)
                draft.fields.entries[own] = _under(draft.fields.entries.get(own), copy.deepcopy(item))

    # --- overrides --------------------------------------------------------------------------------------

    def override(self, root: Fields, drafts: list[Draft], text: str) -> None:
        """Patch one ``path=value`` in; those of steps go to the step of that name or number."""
        try:
            names, value = tree.split_override(text)
            if names[0] != "steps":
                tree.patch(root, names, value)
                return
            draft = _called(drafts, names[1] if len(names) > 1 else "")
            if len(names) < 3 or names[2] in ("name", "command"):
                fix = "write steps.NAME.key=value"
                raise UserError(f"{text!r}: a step's own keys can be overridden", where=str(COMMAND_LINE), fix=fix)
            if draft.command == EXPERIMENT:
                draft.overrides.append(text.strip().split(".", 2)[2])
            else:
                names = [self._own_name(draft, names[2]), *names[3:]]
                tree.patch(draft.fields, names, value)
        except UserError as error:
            self.errors.append((COMMAND_LINE, error))

    # --- what is used -----------------------------------------------------------------------------------

    def _uses(self, draft: Draft, earlier: list[Draft], later: list[Draft]) -> tuple[str, ...]:
        """The steps that a step uses; each must stand before it and make a model."""
        found: dict[str, Place] = {}
        for place, text in _texts(draft.fields):
            found |= {name: place for name in _USE.findall(text) if name not in found}
        for text in draft.overrides:
            found |= dict.fromkeys(_USE.findall(text), COMMAND_LINE)
        before = {other.name: other for other in earlier}
        after = {other.name: other for other in later}
        for name, place in found.items():
            what = f"steps.{draft.name}: it uses step:{name}"
            if name == draft.name:
                self.refuse(place, f"{what}, which is itself")
            elif name in after:
                waits = any(draft.name in _USE.findall(text) for _, text in _texts(after[name].fields))
                why = f"{name} uses {draft.name} in turn: the two wait for each other" if waits else ""
                self.refuse(place, f"{what}, which stands later", why=why, fix="" if waits else f"put {name} before it")
            elif name not in before:
                meant = nearest(name, before)
                fix = f"did you mean step:{meant}?" if meant else f"the steps before it: {', '.join(before) or 'none'}"
                self.refuse(place, f"{what}, and there is no such step", fix=fix)
            elif not self.vocabulary.makes_model(before[name].command):
                self.refuse(place, f"{what}, which makes no model", why=f"its command is {before[name].command}")
        return tuple(found)


def replaced(node: Node, model_of: Callable[[str], str]) -> Node:
    """A copy of the node in which each ``step:NAME`` is what ``model_of(NAME)`` says."""
    if isinstance(node, Scalar):
        text = replaced_text(node.text, model_of)
        return node if text == node.text else Scalar(node.place, text, quoted=True)
    if isinstance(node, Items):
        return Items(node.place, [replaced(item, model_of) for item in node.items])
    return replaced_fields(node, model_of)


def replaced_fields(fields: Fields, model_of: Callable[[str], str]) -> Fields:
    """The same of a section."""
    return Fields(fields.place, {key: replaced(item, model_of) for key, item in fields.entries.items()})


def replaced_text(text: str, model_of: Callable[[str], str]) -> str:
    """The same of one text."""
    return _USE.sub(lambda match: model_of(match[1]), text)


def _texts(node: Node) -> Iterator[tuple[Place, str]]:
    if isinstance(node, Scalar):
        yield node.place, node.text
        return
    for item in node.items if isinstance(node, Items) else node.entries.values():
        yield from _texts(item)


def _under(own: Node | None, default: Node) -> Node:
    """A default below what the step says: sections are joined, anything else of the step's own stays."""
    if own is None:
        return default
    if isinstance(own, Fields) and isinstance(default, Fields):
        for key, item in default.entries.items():
            own.entries[key] = _under(own.entries.get(key), item)
    return own


def _called(drafts: Sequence[Draft], name: str) -> Draft:
    """The step of a name or number. Raises UserError."""
    if name.isdecimal() and int(name) < len(drafts):
        return drafts[int(name)]
    found = next((draft for draft in drafts if draft.name == name), None)
    if found is None:
        names = [draft.name for draft in drafts]
        meant = nearest(name, names)
        fix = f"did you mean steps.{meant}?" if meant else f"the steps: {', '.join(names)}"
        raise UserError(f"steps.{name}: there is no such step", where=str(COMMAND_LINE), fix=fix)
    return found
