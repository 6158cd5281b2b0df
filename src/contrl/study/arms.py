"""From what a study's file says of arms to a flat list of them: grids are multiplied out, sweeps join every method.

An arm is a name and changes to the base configuration. Nodes keep their lines, so a mistake in an arm is told where
the arm is written.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from contrl.config.calls import split_words
from contrl.config.load import Override
from contrl.config.scalars import parse_float
from contrl.config.tree import Fields, Finding, Items, Node, Place, Scalar
from contrl.continual.study_manifest import Point
from contrl.errors import UserError

_MERGED = ("training", "evaluation", "rewards", "model", "tasks")
"""Sections whose keys are changed one by one; any other section replaces the whole value."""


@dataclass
class Draft:
    """An arm as it is written.

    Attributes:
        name: given, or "" when it follows from method and strategies.
        changes: to the base configuration: dotted path -> node.
        axes: the changes that its grid or sweep varies, besides method and strategies.
        point: its place on a trade-off curve; the curve's name lacks the method until that is known.
    """

    place: Place
    name: str = ""
    changes: dict[str, Node] = field(default_factory=dict)
    axes: tuple[str, ...] = ()
    point: Point | None = None

    @property
    def overrides(self) -> list[Override]:
        """The changes as the loader takes them, the broad ones first."""
        ranked = sorted(self.changes.items(), key=lambda item: _RANK.get(item[0], len(_RANK)))
        return [(path.split("."), node) for path, node in ranked]

    @property
    def words(self) -> dict[str, str]:
        """The changes as text."""
        return {path: inline(node) for path, node in self.changes.items()}

    def called(self, method: str, strategies: Sequence[str]) -> str:
        """Its name, or ``dpo/ewc(coef=10)`` with the axes that vary besides.

        Args:
            method, strategies: of its configuration, where the arm itself says nothing of them.
        """
        if self.name:
            return self.name
        words = self.words
        strategy = words.get("strategies", "+".join(strategies)) or "naive"
        for path in (path for path in words if path.startswith("strategies.")):
            strategy = _with_field(strategy, path.rpartition(".")[2], words[path])
        varied = [f"{path}={words[path]}" for path in self.axes]
        return " ".join([f"{words.get('method', method)}/{strategy}", *varied])


_IN_THE_NAME = ("method", "strategies")
_RANK = {"model": 0, "method": 1, "tasks": 2, "strategies": 3}


class ArmReader:
    """Reads the sections ``arms`` and ``sweep``; mistakes are noted in ``errors``.

    Args:
        is_strategy: whether a word names a strategy.
    """

    def __init__(self, errors: list[Finding], is_strategy: Callable[[str], bool]) -> None:
        self.errors, self.is_strategy = errors, is_strategy

    def refuse(self, place: Place, what: str, *, why: str = "", fix: str = "") -> None:
        self.errors.append((place, UserError(what, where=str(place), why=why, fix=fix)))

    def read(self, arms: Node | None, sweep: Node | None, place: Place) -> list[Draft]:
        """Every arm, in the order of the file."""
        drafts: list[Draft] = []
        items = arms.items if isinstance(arms, Items) else [arms] if arms is not None else []
        for number, item in enumerate(items):
            if not isinstance(item, Fields):
                fix = "arms: {method: [...], strategies: [...]}, or a list of such grids and of arms with a name"
                self.refuse(item.place, f"arms.{number}: expected a section", fix=fix)
            elif "name" in item.entries:
                drafts += self._named(number, item)
            else:
                drafts += self._grid(item)
        if sweep is not None:
            drafts = [*drafts, *self._sweeps(sweep, drafts)]
        if not drafts and not self.errors:
            drafts = [Draft(place)]
        return drafts

    def _named(self, number: int, item: Fields) -> Iterator[Draft]:
        """One arm with a name, whose lists are values."""
        name = item.entries["name"]
        if not isinstance(name, Scalar) or name.is_null:
            self.refuse(name.place, f"arms.{number}.name: expected a name")
            return
        yield Draft(name.place, name.text, dict(_flat({k: v for k, v in item.entries.items() if k != "name"})))

    def _grid(self, item: Fields) -> Iterator[Draft]:
        """The product of the lists of a grid; a single value holds for all of it."""
        axes = dict(_flat(item.entries))
        for path, node in axes.items():
            if isinstance(node, Items) and not node.items:
                self.refuse(node.place, f"arms: {path} is an empty list")
        varied = tuple(path for path, node in axes.items() if isinstance(node, Items) and path not in _IN_THE_NAME)
        choices = [node.items if isinstance(node, Items) else [node] for node in axes.values()]
        for chosen in itertools.product(*choices):
            place = chosen[-1].place if chosen else item.place
            yield Draft(place, "", dict(zip(axes, chosen, strict=True)), varied)

    # --- sweeps ---

    def _sweeps(self, sweep: Node, drafts: Sequence[Draft]) -> Iterator[Draft]:
        if not isinstance(sweep, Fields):
            self.refuse(sweep.place, "sweep: expected fields with values", fix="for example sweep: {ewc.coef: [1, 10]}")
            return
        for path, node in _flat(sweep.entries):
            values = node.items if isinstance(node, Items) else [node]
            numbers = [parse_float(value.text) if isinstance(value, Scalar) else None for value in values]
            if None in numbers or not numbers:
                self.refuse(node.place, f"sweep.{path}: expected a list of numbers", fix="for example [1, 10, 100]")
                continue
            for base in _grids_of(drafts):
                for value, number in zip(values, numbers, strict=True):
                    yield self._swept(path, value, number or 0.0, base, drafts)

    def _swept(self, path: str, value: Node, number: float, base: Draft, drafts: Sequence[Draft]) -> Draft:
        """One point: of a strategy's field (then the arm is that strategy) or of any other."""
        strategy, _, key = path.rpartition(".")
        if not strategy or not self.is_strategy(strategy):
            return Draft(value.place, "", {**base.changes, path: value}, (*base.axes, path), Point(path, path, number))
        form = next((found for draft in drafts if (found := _form(draft, strategy)) is not None), None)
        changes = {**base.changes, "strategies": form or Scalar(value.place, strategy), f"strategies.0.{key}": value}
        return Draft(value.place, "", changes, base.axes, Point(path, key, number))


def _flat(entries: Mapping[str, Node], path: str = "") -> Iterator[tuple[str, Node]]:
    """Dotted path -> node; the keys of sections that are merged one by one."""
    for key, node in entries.items():
        here = f"{path}.{key}" if path else key
        if isinstance(node, Fields) and here.partition(".")[0] in _MERGED and "name" not in node.entries:
            yield from _flat(node.entries, here)
        else:
            yield here, node


def _grids_of(drafts: Sequence[Draft]) -> list[Draft]:
    """What a sweep is repeated for: the arms of the grids without their strategies, each once."""
    found: dict[str, Draft] = {}
    for draft in drafts:
        if not draft.name:
            changes = {path: node for path, node in draft.changes.items() if not path.startswith("strategies")}
            bare = Draft(draft.place, "", changes, draft.axes)
            found.setdefault(str(bare.words), bare)
    return list(found.values()) or [Draft(Place(""))]


def _with_field(called: str, key: str, value: str) -> str:
    """``ewc`` or ``ewc(coef=1, online=true)`` with a field set."""
    name, _, rest = called.partition("(")
    fields = [part.strip() for part in rest.removesuffix(")").split(",") if part.strip()]
    others = [part for part in fields if part.partition("=")[0].strip() != key]
    return f"{name}({', '.join([f'{key}={value}', *others])})"


def _form(draft: Draft, strategy: str) -> Node | None:
    """How the file writes this strategy alone, with its other fields."""
    node = draft.changes.get("strategies")
    if isinstance(node, Scalar) and len(split_words(node.text)) == 1 and node.text.partition("(")[0] == strategy:
        return node
    return None


def inline(node: Node) -> str:
    """A node on one line: ``replay``, ``replay+ewc(coef=10)``, ``dpo(beta=0.1)``."""
    if isinstance(node, Scalar):
        return "+".join(split_words(node.text)) if not node.quoted and "," in node.text else node.text
    if isinstance(node, Items):
        return "+".join(inline(item) for item in node.items)
    named = node.entries.get("name")
    inner = ", ".join(f"{key}={inline(item)}" for key, item in node.entries.items() if key != "name")
    return f"{inline(named) if named else ''}({inner})" if inner or not named else inline(named)
