"""From a study's file to its runs: every configuration of every arm, and every mistake, before anything runs.

A run's id is the digest of its resolved configuration, so the same experiment has the same folder however it came into
the study: two arms that turn out equal are one, and a changed setting is another run, not an overwritten one.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from contrl.config import Resolved, load
from contrl.config.load import Override
from contrl.config.show import to_plain
from contrl.config.tree import COMMAND_LINE, Finding, Place, Scalar, write
from contrl.continual import study_manifest
from contrl.continual.estimate import speed
from contrl.continual.processes import Ranks
from contrl.continual.study_manifest import RUNS, Arm, Manifest, PlannedRun
from contrl.errors import ConfigErrors, Refused, UserError
from contrl.experiment import find
from contrl.launch import Options, plan_of
from contrl.planning import rough_seconds
from contrl.study.arms import Draft
from contrl.study.reading import Order, Outline

ID_LENGTH = 12
"""Letters of a digest that name a run: 48 bits, so that two of a million runs meet once in 500 studies."""


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        runs: id -> configuration, each once, in the order they are started.
        seconds: id -> how long it may take on one process; None when its model's size is not known.
    """

    folder: Path
    manifest: Manifest
    runs: Mapping[str, Resolved]
    seconds: Mapping[str, float | None]
    keep_weights: bool


@dataclass
class _Checked:
    """An arm while it is checked."""

    draft: Draft
    name: str
    runs: dict[tuple[int, str], Resolved]
    refused: str = ""
    seconds: float | None = None


@dataclass
class _Errors:
    """Mistakes by their text: each is told once, with the arms it is about unless it is about all."""

    num_arms: int
    found: dict[str, tuple[Finding, list[str]]] = field(default_factory=dict)

    def add(self, error: UserError, arm: str, place: Place) -> None:
        for one in error.errors if isinstance(error, ConfigErrors) else [error]:
            known = self.found.setdefault(str(one), ((_place_of(one, place), one), []))
            if arm not in known[1]:
                known[1].append(arm)

    def told(self) -> Iterator[Finding]:
        for (place, error), arms in self.found.values():
            about = f"in {', '.join(arms)}" if 0 < len(arms) < self.num_arms else ""
            where = error.where or str(place)
            yield (
                place,
                UserError(error.what, where=where, why="\n  ".join(filter(None, (error.why, about))), fix=error.fix),
            )


def check(outline: Outline, say: Callable[[str], None]) -> Study:
    """Check every arm, seed and order.

    Raises:
        ConfigErrors: every mistake at once, in the order of the lines.
    """
    errors = _Errors(len(outline.arms))
    arms = [arm for draft in outline.arms if (arm := _load(outline, draft, errors)) is not None]
    arms = _merged(arms, errors)
    told: set[str] = set()
    rate = speed()

    def once(text: str) -> None:
        if text not in told:
            told.add(text)
            say(text)

    for number, arm in enumerate(arms):
        _examine(arm, outline, errors, rate, once, orders=outline.orders if number == 0 else outline.orders[:1])
    findings = [*outline.errors, *errors.told()]
    if findings:
        findings.sort(key=lambda finding: (finding[0] == COMMAND_LINE, finding[0].line or 0))
        raise ConfigErrors(list({str(error): error for _, error in findings}.values()))
    return _study(outline, arms)


def _load(outline: Outline, draft: Draft, errors: _Errors) -> _Checked | None:
    """The configurations of an arm; None when there are mistakes in them."""
    runs: dict[tuple[int, str], Resolved] = {}
    for order in outline.orders:
        for seed in outline.seeds:
            try:
                runs[seed, order.name] = _resolved(outline, draft, seed, order)
            except UserError as error:
                errors.add(error, draft.called("", ()).removeprefix("/"), draft.place)
                return None
    first = next(iter(runs.values())).config
    name = draft.called(first.method.name, [plugin.name for plugin in first.strategies])
    return _Checked(draft, name, runs)


def _resolved(outline: Outline, draft: Draft, seed: int, order: Order) -> Resolved:
    """One run's configuration, its folder named by its digest."""
    own: list[Override] = [
        (["output_dir"], Scalar(draft.place, str(outline.output_dir), quoted=True)),
        (["seed"], Scalar(draft.place, str(seed))),
    ]
    changes: list[str | Override] = [*outline.base_overrides, *draft.overrides, *order.overrides, *own]
    resolved = load(outline.base, changes, resolve=find)
    config = replace(resolved.config, output_dir=(outline.output_dir / RUNS / resolved.digest[:ID_LENGTH]).as_posix())
    return replace(resolved, config=config, text=write(to_plain(config)))


def _merged(arms: list[_Checked], errors: _Errors) -> list[_Checked]:
    """Arms of equal configurations as one, which keeps the first name and any place on a curve."""
    kept: dict[str, _Checked] = {}
    for arm in arms:
        digest = next(iter(arm.runs.values())).digest
        twin = next((other for other in kept.values() if other.name == arm.name), None)
        if digest in kept:
            same = kept[digest]
            if same.draft.point is None and arm.draft.point is not None:
                same.draft = replace(same.draft, point=arm.draft.point)
        elif twin is not None:
            why = f"the other one is at {twin.draft.place}"
            errors.add(
                UserError(f"two arms are called {arm.name!r}", why=why, fix="give it a name"), "", arm.draft.place
            )
        else:
            kept[digest] = arm
    return list(kept.values())


def _examine(
    arm: _Checked, outline: Outline, errors: _Errors, rate: float, say: Callable[[str], None], *, orders: list[Order]
) -> None:
    """What needs the rows: whether method and strategy go together, batch arithmetic, the time it takes."""
    ranks = Ranks(0, 1)
    for order in orders:
        resolved = arm.runs[outline.seeds[0], order.name]
        try:
            plan = plan_of(resolved, Options(), ranks, say)
            arm.seconds = rough_seconds(resolved.config, plan, rate)
        except Refused as error:
            arm.refused = " ".join(filter(None, (error.what, error.why and f"({error.why})")))
            if not outline.skip_refused:
                fix = "; ".join(filter(None, (error.fix, "or skip_refused: true leaves such arms out")))
                errors.add(UserError(error.what, why=error.why, fix=fix), arm.name, arm.draft.place)
        except UserError as error:
            errors.add(error, arm.name, arm.draft.place)


def _study(outline: Outline, arms: list[_Checked]) -> Study:
    """Runs block by block, so that all arms of the first seed can be compared before the second seed is begun."""
    runs: dict[str, Resolved] = {}
    seconds: dict[str, float | None] = {}
    planned: list[PlannedRun] = []
    for seed in outline.seeds:
        for order in outline.orders:
            for arm in (arm for arm in arms if not arm.refused):
                resolved = arm.runs[seed, order.name]
                name = resolved.digest[:ID_LENGTH]
                runs[name], seconds[name] = resolved, arm.seconds
                planned.append(PlannedRun(name, arm.name, seed, order.name, f"{RUNS}/{name}"))
    manifest = Manifest(
        outline.output_dir.resolve().name,
        tuple(_arm(arm) for arm in arms),
        tuple(outline.seeds),
        tuple(order.name for order in outline.orders),
        tuple(planned),
        shlex.join(["contrl", *sys.argv[1:]]),
    )
    return Study(outline.output_dir, manifest, runs, seconds, outline.keep_weights)


def _arm(arm: _Checked) -> Arm:
    config, point = next(iter(arm.runs.values())).config, arm.draft.point
    if point is not None:
        point = study_manifest.Point(f"{config.method.name} {point.curve}", point.field, point.value)
    strategies = tuple(plugin.name for plugin in config.strategies) or ("naive",)
    return Arm(arm.name, config.method.name, strategies, arm.draft.words, point, arm.refused)


def _place_of(error: UserError, default: Place) -> Place:
    """Where an error says it is, as far as that is a line of a file."""
    source, _, line = error.where.rpartition(":")
    if source and line.isdecimal():
        return Place(source, int(line))
    return COMMAND_LINE if error.where == str(COMMAND_LINE) else default
