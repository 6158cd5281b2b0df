"""What ``contrl compare`` shows: arms side by side, paired differences, trade-off curves; numbers only, from folders.

A study says itself which runs belong to which arm. Runs given one by one are the same arm when their configurations
differ in nothing but seed, order and folder. A difference is always between runs of equal seed and order, so what
those do to both arms cancels. Standard library and yaml only: the report draws the page from it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from contrl.continual import results, study_manifest
from contrl.continual.intervals import Estimate, Value, estimate
from contrl.continual.matrix import Z95, Formula, Matrix, Metric, Position, combination, contributions
from contrl.continual.metrics import FORMULAS
from contrl.continual.results import Results
from contrl.continual.study_manifest import Arm
from contrl.errors import UserError

LEARNING, RETENTION = "learning_accuracy", "retention"
"""The two axes of a trade-off curve: how well new tasks are learnt, and what is kept of old ones."""
HEADLINES = ("average", "forgetting", LEARNING, RETENTION)
COMPARED: dict[str, Formula] = {
    **FORMULAS,
    RETENTION: Formula(
        "retention",
        "mean over tasks j trained, but not in the last stage, of R[end, j]",
        True,
        "what is left at the end of the tasks learnt before",
    ),
}
"""Every metric that arms can be compared by."""
_NOT_THE_ARM = ("output_dir", "seed", "order", "order_seed")


@dataclass(frozen=True)
class Dot:
    """One run of an arm: its place among the blocks, and metric -> value (None where it is not defined)."""

    seed: int
    order: str
    folder: Path
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class ArmSummary:
    """One line of the table.

    Attributes:
        arm: name, method, strategies, what sets it apart, why it was refused.
        planned, finished: numbers of runs.
        failed: of each failed run its id and why.
        score: the name of the scores in its runs' matrices, such as ``success``.
        estimates: metric -> mean over runs with its interval, for every metric of ``COMPARED``.
        dots: its finished runs.
        baseline: the arm it is compared with; None for that arm itself, and where none fits.
        differences: metric -> this arm minus the baseline, over runs of equal seed and order; empty without baseline.
    """

    arm: Arm
    planned: int
    finished: int
    failed: Mapping[str, str]
    score: str
    estimates: Mapping[str, Estimate]
    dots: Sequence[Dot]
    baseline: str | None = None
    differences: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class CurvePoint:
    """One coefficient: what was learnt of new tasks and what was kept of old ones, each with its interval."""

    value: float
    arm: str
    learning: Estimate
    retention: Estimate


@dataclass(frozen=True)
class Curve:
    """A trade-off curve: the points of one field, ascending; ``baseline`` is the arm without it, if there is one."""

    name: str
    method: str
    field: str
    points: Sequence[CurvePoint]
    baseline: str | None


@dataclass(frozen=True)
class Comparison:
    """Everything that is told of several runs.

    Attributes:
        metrics: the ones to show, by name; ``COMPARED`` has title and formula of each.
        arms: in the order of the study, or of the runs given.
        curves: one for each swept field and method.
        seeds, orders: of all runs.
        notes: what a reader must know: unfinished runs, tasks that differ, damaged item files.
    """

    title: str
    metrics: Sequence[str]
    arms: Sequence[ArmSummary]
    curves: Sequence[Curve]
    seeds: Sequence[int]
    orders: Sequence[str]
    notes: Sequence[str]

    def summary(self, name: str) -> ArmSummary:
        """The line of an arm."""
        return next(summary for summary in self.arms if summary.arm.name == name)


@dataclass(frozen=True)
class _Run:
    """A run that was read: metric -> Value, or None where the metric is not defined."""

    seed: int
    order: str
    folder: Path
    tasks: frozenset[str]
    score: str
    values: Mapping[str, Value | None]


@dataclass
class _Group:
    """An arm with what was found of it."""

    arm: Arm
    planned: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    runs: list[_Run] = field(default_factory=list)


def compare(folders: Sequence[Path], *, metric: str | None = None, baseline: str | None = None) -> Comparison:
    """Compare studies, runs, or both.

    Args:
        folders: study folders and run folders.
        metric: the only one to show; None shows HEADLINES.
        baseline: the arm that the others are compared with: its name, or a strategy, which then is the baseline of
            every method for itself. None takes naive of the same method, else the first arm.

    Raises:
        UserError: a folder is neither, or there is no such metric or arm.
    """
    if metric is not None and metric not in COMPARED:
        near = difflib.get_close_matches(metric, COMPARED, 1)
        fix = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"there is no metric {metric!r}", fix=f"{fix}known: {', '.join(COMPARED)}")
    notes: list[str] = []
    groups = _groups(folders, notes)
    bases = _baselines(groups, baseline)
    summaries = [_summary(group, bases.get(name), groups, notes) for name, group in groups.items()]
    runs = [run for group in groups.values() for run in group.runs]
    return Comparison(
        title=", ".join(folder.resolve().name for folder in folders),
        metrics=HEADLINES if metric is None else (metric,),
        arms=summaries,
        curves=_curves(summaries, bases),
        seeds=sorted({run.seed for run in runs}),
        orders=list(dict.fromkeys(run.order for run in runs)),
        notes=list(dict.fromkeys(notes)),
    )


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain values, with the formula of every metric; what was not measured is null."""
    formulas = {name: asdict(formula) for name, formula in COMPARED.items()}
    plain: dict[str, Any] = {"schema_version": 1, **asdict(comparison), "formulas": formulas}
    for summary in plain["arms"]:
        for dot in summary["dots"]:
            dot["folder"] = str(dot["folder"])
    return plain


# --- reading ------------------------------------------------------------------------------------------


def _groups(folders: Sequence[Path], notes: list[str]) -> dict[str, _Group]:
    """Arm name -> what belongs to it, over all folders."""
    found: dict[str, _Group] = {}
    single: dict[str, str] = {}
    several = sum(study_manifest.is_study(folder) for folder in folders) > 1
    for folder in folders:
        if study_manifest.is_study(folder):
            for name, group in _study(folder, notes):
                found[f"{folder.resolve().name}: {name}" if several else name] = group
            continue
        run = results.read(folder)
        if not run.finished:
            after = f"its figures are after {run.rows[run.end]}" if run.end >= 0 else "nothing was scored yet"
            notes.append(f"{folder} is not finished: {after}")
        key, seed, order = _identity(folder)
        if key not in single:
            single[key] = _free_name(run, found)
            found[single[key]] = _Group(Arm(single[key], str(run.run.get("method", "?")), _strategies(run)))
        group = found[single[key]]
        group.planned += 1
        group.runs.append(_read(run, seed, order, notes))
    for name, group in found.items():
        if name != group.arm.name:
            group.arm = Arm(**{**vars(group.arm), "name": name})
    return found


def _study(folder: Path, notes: list[str]) -> Iterator[tuple[str, _Group]]:
    """The arms of a study with their finished runs."""
    manifest = study_manifest.read(folder)
    for arm in manifest.arms:
        group = _Group(arm)
        for planned in manifest.runs:
            if planned.arm != arm.name:
                continue
            group.planned += 1
            state = study_manifest.state(folder, planned)
            if state == "failed":
                group.failed[planned.id] = str(study_manifest.failure(folder, planned.id).get("what", "unknown"))
            elif state == "finished":
                run = results.read(folder / planned.folder)
                group.runs.append(_read(run, planned.seed, planned.order, notes))
        yield arm.name, group


def _read(run: Results, seed: int, order: str, notes: list[str]) -> _Run:
    """The metrics of a run with the contributions of its items."""
    notes.extend(f"{run.folder}: {note}" for note in run.notes)
    matrix = run.numbers
    metrics = {**run.metrics, RETENTION: retention(matrix)} if run.end >= 0 else {}
    values = {name: _value(matrix, metrics.get(name), run.tasks) for name in COMPARED}
    return _Run(seed, order, run.folder, frozenset(run.tasks), run.metric, values)


def retention(matrix: Matrix) -> Metric:
    """Mean over tasks trained, but not in the last stage, of R[end, j]; None where there is no such task."""
    lasts = ((column, matrix.last_visit(column, matrix.end)) for column in range(matrix.num_columns))
    left = [column for column, last in lasts if last is not None and last < matrix.end]
    weights: dict[Position, float] = {(matrix.end, column): 1 / len(left) for column in left}
    return combination(matrix, weights, RETENTION, COMPARED[RETENTION])


def _value(matrix: Matrix, metric: Metric | None, tasks: Sequence[str]) -> Value | None:
    if metric is None or metric.value is None:
        return None
    parts = contributions(matrix, metric.weights) if metric.weights is not None else None
    items = {tasks[column]: found for column, found in parts.items()} if parts is not None else None
    se = None if metric.low is None or metric.high is None else (metric.high - metric.low) / 2 / Z95
    return Value(metric.value, items, se)


def _identity(folder: Path) -> tuple[str, int, str]:
    """What makes a run's arm, its seed and its order, from its configuration."""
    try:
        told = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        seed, order = int(told.get("seed", 0)), told.get("order") or "given"
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return str(folder.resolve()), 0, "given"
    if order == "random":
        order = f"random {told.get('order_seed', 0)}"
    return (
        str(sorted((key, str(value)) for key, value in told.items() if key not in _NOT_THE_ARM)),
        seed,
        ",".join(map(str, order)) if isinstance(order, list) else str(order),
    )


def _strategies(run: Results) -> tuple[str, ...]:
    given = run.run.get("strategies") or ["naive"]
    return tuple(str(item.get("name", "?")) if isinstance(item, dict) else str(item) for item in given)


def _free_name(run: Results, taken: Iterable[str]) -> str:
    """``dpo/replay``; with the folder's name where that is taken."""
    name = f"{run.run.get('method', '?')}/{'+'.join(_strategies(run))}"
    return f"{name} ({run.folder.resolve().name})" if name in taken else name


# --- comparing ----------------------------------------------------------------------------------------


def _baselines(groups: Mapping[str, _Group], wanted: str | None) -> dict[str, str]:
    """Arm -> the arm it is compared with."""
    if wanted is not None and wanted in groups:
        return {name: wanted for name in groups if name != wanted}
    strategy = (wanted or "naive",)
    if wanted is not None and not any(group.arm.strategies == strategy for group in groups.values()):
        near = difflib.get_close_matches(wanted, groups, 1)
        fix = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"there is no arm {wanted!r}", fix=f"{fix}arms: {', '.join(groups)}")
    found: dict[str, str] = {}
    for name, group in groups.items():
        same = [other for other, g in groups.items() if g.arm.strategies == strategy and _alike(g.arm, group.arm)]
        # Of several, the one whose other fields are the arm's own.
        same.sort(key=lambda other: len(_apart(groups[other].arm, group.arm)))
        if not same and wanted is None:
            same = list(groups)[:1]
        if same and same[0] != name:
            found[name] = same[0]
    return found


def _alike(one: Arm, other: Arm) -> bool:
    return one.method == other.method


def _apart(one: Arm, other: Arm) -> set[tuple[str, str]]:
    """The fields, besides the strategies, in which two arms differ."""
    ours, theirs = ({(k, v) for k, v in arm.fields.items() if not k.startswith("strategies")} for arm in (one, other))
    return ours ^ theirs


def _summary(group: _Group, baseline: str | None, groups: Mapping[str, _Group], notes: list[str]) -> ArmSummary:
    estimates = {name: estimate(_defined(group.runs, name)) for name in COMPARED}
    dots = [
        Dot(run.seed, run.order, run.folder, {name: v.value if v else None for name, v in run.values.items()})
        for run in group.runs
    ]
    differences: dict[str, Estimate] = {}
    if baseline is not None and group.runs and groups[baseline].runs:
        pairs = _pairs(group, groups[baseline], notes)
        differences = {name: estimate(list(_minus(pairs, name))) for name in COMPARED} if pairs else {}
    score = " / ".join(dict.fromkeys(run.score for run in group.runs))
    finished = len(group.runs)
    return ArmSummary(group.arm, group.planned, finished, group.failed, score, estimates, dots, baseline, differences)


def _pairs(group: _Group, base: _Group, notes: list[str]) -> list[tuple[_Run, _Run]]:
    """Runs of equal seed and order; none where the tasks differ."""
    by_block = {(run.seed, run.order): run for run in base.runs}
    pairs = [(run, other) for run in group.runs if (other := by_block.get((run.seed, run.order))) is not None]
    ours, theirs = group.arm.name, base.arm.name
    if not pairs:
        notes.append(f"{ours} and {theirs} share no seed and order: no difference is told")
    elif any(run.tasks != other.tasks or run.score != other.score for run, other in pairs):
        notes.append(f"{ours} and {theirs} have different tasks or scores: no difference is told")
        return []
    return pairs


def _defined(runs: Sequence[_Run], name: str) -> list[Value]:
    return [value for run in runs if (value := run.values[name]) is not None]


def _minus(pairs: Sequence[tuple[_Run, _Run]], name: str) -> Iterator[Value]:
    for run, other in pairs:
        here, there = run.values[name], other.values[name]
        if here is not None and there is not None:
            yield here.minus(there)


def _curves(summaries: Sequence[ArmSummary], bases: Mapping[str, str]) -> list[Curve]:
    """The trade-off curves, points ascending."""
    found: dict[str, list[ArmSummary]] = {}
    for summary in summaries:
        if summary.arm.point is not None:
            found.setdefault(summary.arm.point.curve, []).append(summary)
    curves = []
    for name, members in found.items():
        points = [
            CurvePoint(s.arm.point.value, s.arm.name, s.estimates[LEARNING], s.estimates[RETENTION])
            for s in members
            if s.arm.point is not None
        ]
        first = members[0].arm
        assert first.point is not None
        points.sort(key=lambda point: point.value)
        curves.append(Curve(name, first.method, first.point.field, points, bases.get(first.name)))
    return curves
