"""In which order tasks are learnt and which share a stage: from names to stages, and everything wrong with the names.

The order has a seed of its own, so that repeating an experiment with other seeds does not shuffle its tasks, and the
other way round. Each round goes through the same order. A configuration's own list of tasks is checked while it is
read; the tasks of a named sequence, whose names only its code knows, by the same functions before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from contrl.config.walk import nearest

if TYPE_CHECKING:
    from contrl.config.schema import RunConfig

ORDERS = ("given", "reversed", "random")
Groups = Sequence[Sequence[str]]
"""The tasks of each stage of a round."""


class Problem(NamedTuple):
    """A mistake: the path of the value, what is wrong, why, and how to mend it."""

    path: str
    what: str
    why: str = ""
    fix: str = ""


def arrange(
    names: Sequence[str], order: str | Sequence[str], order_seed: int, stages: Groups | None
) -> list[tuple[str, ...]]:
    """The tasks of each stage of one round.

    Args:
        names: of the tasks, as given.
        order: one of ``ORDERS``, which moves whole stages, or all names in the order wanted.
        order_seed: of the order ``random``.
        stages: which tasks share a stage; None gives each its own.
    """
    groups: list[tuple[str, ...]] = [tuple(stage) for stage in stages or [(name,) for name in names]]
    if not isinstance(order, str):
        groups = [(name,) for name in order]
    if order == "reversed":
        return groups[::-1]
    if order == "random":
        import numpy as np  # here, because reading a configuration must cost nothing

        return [groups[index] for index in np.random.default_rng(order_seed).permutation(len(groups)).tolist()]
    return groups


def problems(names: Sequence[str], order: str | Sequence[str], stages: Groups | None) -> Iterator[Problem]:
    """What is wrong with ``order`` and ``stages`` for tasks of these names."""
    if not isinstance(order, str):
        yield from _unknown(names, "order", order)
        yield from _repeated("order", order)
        missing = [name for name in names if name not in order]
        if missing:
            yield Problem("order", f"order: {', '.join(missing)} missing", "an order names every task once")
        if stages is not None:
            why = "both say which task is learnt when"
            yield Problem("order", "order: a list of tasks beside stages", why, "write the stages in the order wanted")
    if stages is None:
        return
    if not stages:
        yield Problem("stages", "stages: expected at least one stage")
    for index, stage in enumerate(stages):
        path = f"stages.{index}"
        if not stage:
            yield Problem(path, f"{path}: expected at least one task")
        yield from _unknown(names, path, stage)
        yield from _repeated(path, stage)


def _unknown(names: Sequence[str], path: str, given: Sequence[str]) -> Iterator[Problem]:
    for index, name in enumerate(given):
        if name not in names:
            meant = nearest(name, names)
            fix = f"did you mean {meant}?" if meant else ""
            yield Problem(f"{path}.{index}", f"{path}: no task is called {name!r}", f"tasks: {', '.join(names)}", fix)


def _repeated(path: str, given: Sequence[str]) -> Iterator[Problem]:
    for index, name in enumerate(given):
        if name in given[:index]:
            yield Problem(f"{path}.{index}", f"{path}: {name} stands there twice")


class Settings(NamedTuple):
    """What a run says of its method and training, or a task of them; keyed by the name of the field."""

    method: Mapping[str, Any]
    training: Mapping[str, Any]


def conflicts(stages: Groups, run: Settings, tasks: Mapping[str, Settings]) -> Iterator[Problem]:
    """Tasks that share a stage and want different settings, of which a stage has only one.

    Args:
        stages: the tasks of each stage.
        run: what holds where a task says nothing.
        tasks: by name, in the order they were given, what each says differently.
    """
    places = list(tasks)
    for stage in dict.fromkeys(tuple(stage) for stage in stages if len(stage) > 1):
        for section in Settings._fields:
            general = getattr(run, section)
            own = {name: getattr(tasks[name], section) for name in stage}
            for key in dict.fromkeys(key for fields in own.values() for key in fields):
                values = {name: own[name].get(key, general.get(key, "the default")) for name in stage}
                first = values[stage[0]]
                if any(value != first for value in values.values()):
                    told = ", ".join(f"{value} for {name}" for name, value in values.items())
                    speaker = next(name for name in stage if key in own[name])
                    yield Problem(
                        f"tasks.{places.index(speaker)}.{section}.{key}",
                        f"{section}.{key}: tasks of one stage disagree: {told}",
                        f"{' and '.join(stage)} are learnt together, by one method and one schedule",
                        "give them one value, or a stage each",
                    )


def of_tasks(config: RunConfig) -> Iterator[Problem]:
    """What is wrong with order and stages of a configuration that lists its tasks; their settings only if names are."""
    if not isinstance(config.tasks, tuple):
        return
    found = list(problems([task.name for task in config.tasks], config.order, config.stages))
    if not found:
        general = Settings(config.method.fields, config.training)
        own = {task.name: Settings(task.method, task.training) for task in config.tasks}
        found = list(conflicts(config.stages or (), general, own))
    yield from found
