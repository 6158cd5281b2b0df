"""A study's file: the base configuration, arms, sweeps, seeds and orders, with the mistakes in its own form.

What the base configuration may hold is the run's matter and checked with every arm (checking.py). An order is given
by a word of the run's own key ``order``, by the names of the tasks, or by a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from contrl.config import tree
from contrl.config.load import Override
from contrl.config.scalars import parse_bool, parse_int
from contrl.config.tree import COMMAND_LINE, Fields, Finding, Items, Node, Place, Scalar
from contrl.config.walk import nearest
from contrl.errors import ConfigErrors, UserError
from contrl.study.arms import ArmReader, Draft, inline

KIND = "study"
_KEYS = (
    *("kind", "output_dir", "run", "config", "arms", "sweep", "seeds", "orders", "order_seeds"),
    *("skip_refused", "keep_weights"),
)


@dataclass(frozen=True)
class Order:
    """An order of the tasks: its name, and the changes to a configuration that make it."""

    name: str
    overrides: tuple[Override, ...]


@dataclass
class Outline:
    """A whole file, and the mistakes found so far.

    Attributes:
        base: the configuration that every arm changes, and changes of it from the command line.
        skip_refused: leave out, and list, arms whose method and strategy do not go together.
        keep_weights: whether finished runs keep their models.
    """

    output_dir: Path
    base: Fields
    base_overrides: list[str]
    arms: list[Draft]
    seeds: list[int]
    orders: list[Order]
    skip_refused: bool
    keep_weights: bool
    errors: list[Finding]


def read(path: Path, overrides: Sequence[str], is_strategy: Callable[[str], bool]) -> Outline:
    """The outline of a study's file.

    Args:
        path: the file.
        overrides: ``seeds=[0]``, ``run.training.max_steps=10`` ...; later ones win.
        is_strategy: whether a word names a strategy.

    Raises:
        ConfigErrors: the file cannot be read at all; other mistakes are in the outline.
    """
    root, errors = _parsed(path)
    reader = _Reader(path, root, errors)
    own = [text for text in overrides if not text.startswith("run.")]
    for text in own:
        try:
            tree.patch(root, *tree.split_override(text))
        except UserError as error:
            errors.append((COMMAND_LINE, error))
    outline = reader.outline(reader.base(), is_strategy)
    outline.base_overrides = [text.removeprefix("run.") for text in overrides if text not in own]
    return outline


def _parsed(path: Path) -> tuple[Fields, list[Finding]]:
    try:
        root, errors = tree.parse(path.read_text(encoding="utf-8-sig"), str(path))
    except OSError as error:
        raise ConfigErrors([UserError(f"{path} cannot be read", why=error.strerror or "")]) from None
    except UnicodeDecodeError as error:
        raise ConfigErrors([UserError("this file is not UTF-8 text", where=str(path), why=str(error))]) from None
    except UserError as error:
        raise ConfigErrors([error]) from None
    if not isinstance(root, Fields):
        raise ConfigErrors([UserError("expected keys and values", where=str(path))])
    return root, errors


class _Reader:
    """One pass over a file; mistakes are noted in ``errors``."""

    def __init__(self, path: Path, root: Fields, errors: list[Finding]) -> None:
        self.path, self.root, self.errors = path, root, errors

    def refuse(self, place: Place, what: str, *, why: str = "", fix: str = "") -> None:
        self.errors.append((place, UserError(what, where=str(place), why=why, fix=fix)))

    def entry(self, key: str) -> Node | None:
        """What stands under a key; None for nothing and null."""
        node = self.root.entries.get(key)
        return None if isinstance(node, Scalar) and node.is_null else node

    def outline(self, base: Fields, is_strategy: Callable[[str], bool]) -> Outline:
        for key, node in self.root.entries.items():
            if key not in _KEYS:
                meant = nearest(key, _KEYS)
                fix = f"did you mean {meant}?" if meant else f"known here: {', '.join(_KEYS)}"
                self.refuse(node.place, f"{key}: unknown key", fix=fix)
        folder = self.entry("output_dir")
        if not isinstance(folder, Scalar) or not folder.text:
            place = self.root.place if folder is None else folder.place
            self.refuse(place, "output_dir: a study needs a folder", fix="for example output_dir: runs/study")
        for key in ("output_dir", "seed", "order", "order_seed"):
            if key in base.entries and self.entry(_SET_BY[key]) is not None:
                self.refuse(
                    base.entries[key].place, f"run.{key}: the study's {_SET_BY[key]} sets it", fix="leave it out"
                )
        arms = ArmReader(self.errors, is_strategy).read(self.entry("arms"), self.entry("sweep"), self.root.place)
        return Outline(
            Path(folder.text if isinstance(folder, Scalar) else ".").expanduser(),
            base,
            [],
            arms,
            self._seeds(base),
            self._orders(base),
            self._flag("skip_refused", default=False),
            self._flag("keep_weights", default=True),
            self.errors,
        )

    def base(self) -> Fields:
        """The base configuration, inline or from a file of its own."""
        run, file = self.entry("run"), self.entry("config")
        if (run is None) == (file is None):
            what = "run, config: give one of the two" if run is not None else "run: missing"
            why = "the base configuration, inline as run: {...} or in a file of its own as config: base.yaml"
            self.refuse(self.root.place, what, why=why)
        if isinstance(file, Scalar):
            found = self.path.parent / Path(file.text).expanduser()
            try:
                root, errors = _parsed(found)
            except ConfigErrors as error:
                self.errors += [(file.place, one) for one in error.errors]
                return Fields(file.place)
            self.errors += errors
            return root
        if isinstance(run, Fields):
            # Relative paths start from the file's folder, which the loader takes from the place.
            run.place = Place(str(self.path), run.place.line)
            return run
        if run is not None:
            self.refuse(run.place, "run: expected a configuration, a section")
        return Fields(self.root.place)

    # --- seeds, orders ---

    def _seeds(self, base: Fields) -> list[int]:
        node = base.entries.get("seed")
        own = parse_int(node.text) if isinstance(node, Scalar) else None
        return self._numbers("seeds", "for example seeds: [0, 1, 2]") or [own or 0]

    def _orders(self, base: Fields) -> list[Order]:
        node, seeds = self.entry("orders"), self.entry("order_seeds")
        found: dict[str, Order] = {}
        if seeds is not None:
            for seed in self._numbers("order_seeds", "for example order_seeds: [0, 1]"):
                changes = ((["order"], Scalar(seeds.place, "random")), (["order_seed"], Scalar(seeds.place, str(seed))))
                found[f"random {seed}"] = Order(f"random {seed}", changes)
        for item in node.items if isinstance(node, Items) else [node] if node is not None else []:
            if isinstance(item, Fields):
                self.refuse(item.place, "orders: expected given, reversed, or a list of the tasks' names")
                continue
            if isinstance(item, Scalar) and item.text == "random":
                self.refuse(item.place, "orders: random needs a seed", fix="write order_seeds: [0, 1]")
                continue
            name = ",".join(map(inline, item.items)) if isinstance(item, Items) else item.text
            found[name] = Order(name, ((["order"], item),))
        if list(found) in ([], ["given"]) and "order" not in base.entries:
            return [Order("given", ())]
        return list(found.values()) or [Order(inline(base.entries["order"]), ())]

    def _numbers(self, key: str, fix: str) -> list[int]:
        node = self.entry(key)
        items = node.items if isinstance(node, Items) else [node] if node is not None else []
        numbers = [parse_int(item.text) if isinstance(item, Scalar) else None for item in items]
        found = [number for number in numbers if number is not None and number >= 0]
        if node is not None and (len(found) < len(numbers) or len(set(found)) < len(found) or not found):
            self.refuse(node.place, f"{key}: expected different whole numbers of at least 0", fix=fix)
        return list(dict.fromkeys(found))

    def _flag(self, key: str, *, default: bool) -> bool:
        node = self.entry(key)
        if node is None:
            return default
        value = parse_bool(node.text) if isinstance(node, Scalar) else None
        if value is None:
            self.refuse(node.place, f"{key}: expected yes or no")
        return default if value is None else value


_SET_BY = {"output_dir": "output_dir", "seed": "seeds", "order": "orders", "order_seed": "order_seeds"}
"""Key of a run -> the study's key that sets it."""
