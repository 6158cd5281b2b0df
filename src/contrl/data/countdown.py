"""Countdown data: arithmetic puzzles for a sequence of operator groups, each a task; the public functions.

An instance (a multiset of numbers and a target) belongs to train or to test by a keyed hash of itself, for
all groups alike. So no instance of any train split is in any test split by construction, whatever the sizes.
``countdown_instances`` holds the arithmetic, ``countdown_templates`` the prompts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from contrl.data.countdown_instances import (
    MAX_SEARCHED_VALUES,
    Keys,
    Pool,
    Space,
    count_sums,
    draw,
    instance_keys,
    join,
    list_space,
    shuffle_operands,
    simplify,
    solutions,
)
from contrl.data.countdown_templates import (
    COMPACT_ALPHABET,
    TEMPLATES,
    Instance,
    Progress,
    task_row,
    verl_row,
    write_parquet,
)
from contrl.errors import ConfigErrors, UserError

__all__ = [
    "COMPACT_ALPHABET",
    "OPERATORS",
    "TEMPLATES",
    "CountdownConfig",
    "Instance",
    "generate",
    "rows",
    "sequence",
    "task_rows",
    "write",
]

# contrl.rewards.countdown holds the same table: data and rewards do not import each other, a test keeps them equal.
OPERATORS: dict[str, str] = {
    "plus": "+",
    "plus_minus": "+-",
    "plus_minus_mul": "+-*",
    "plus_minus_mul_div": "+-*/",
}
"""Operators of each group, the newest last."""

MAX_VALUE = 10_000
"""Highest number and target: keeps every value on the way to a solution within 64 bits and small tables."""

TEST_SHARE = 1 / 16
"""Share of instances on the test side, unless the sizes ask for more. A fixed share keeps sides alike between runs."""


@dataclass(frozen=True)
class CountdownConfig:
    """What to generate. Invalid values are reported together, as ``ConfigErrors``.

    Attributes:
        groups: operator groups, in the order of the sequence.
        train_size, test_size: rows of each group's splits.
        num_operands: how many numbers an instance may have, 2 to 6.
        max_number: numbers are 1..max_number; one may occur twice.
        target_range: lowest and highest target, both included.
        template: how an instance is put to the model, one of ``TEMPLATES``.
        seed: equal seeds give equal bytes.
        allow_fewer: ``train_size`` is a ceiling; a group with fewer instances gives all of its train side.
        parentheses: False keeps to instances that can be solved without brackets.
    """

    groups: tuple[str, ...] = tuple(OPERATORS)
    train_size: int = 100_000
    test_size: int = 1_000
    num_operands: tuple[int, ...] = (3, 4)
    max_number: int = 999
    target_range: tuple[int, int] = (10, 1000)
    template: str = "base"
    seed: int = 42
    allow_fewer: bool = False
    parentheses: bool = True

    def __post_init__(self) -> None:
        for name in ("groups", "num_operands", "target_range"):
            value = getattr(self, name)  # a list or a single value, when it comes from a YAML file or a command line
            object.__setattr__(self, name, tuple(value) if isinstance(value, (list, tuple)) else (value,))
        errors = list(_config_errors(self))
        if errors:
            raise ConfigErrors(errors)

    def space(self, group: str) -> Space:
        """The instances that a group may draw from."""
        counts = tuple(sorted(self.num_operands))
        return Space(OPERATORS[group], counts, self.max_number, self.target_range, self.parentheses)


def _config_errors(config: CountdownConfig) -> Iterator[UserError]:
    """Everything wrong with the values of a configuration."""

    def whole(value: Any, low: int, high: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    def wrong(name: str, why: str) -> UserError:
        return UserError(f"{name} is {getattr(config, name)!r}", where="Countdown data", why=why)

    for group in config.groups:
        if not isinstance(group, str) or group not in OPERATORS:
            near = get_close_matches(str(group), OPERATORS, 1, 0.0)[0]
            yield UserError(
                f"unknown group {group!r}",
                where="Countdown data",
                fix=f"did you mean {near}? Groups: {', '.join(OPERATORS)}",
            )
    if not config.groups or len(set(map(str, config.groups))) < len(config.groups):
        yield wrong("groups", "it needs at least one group, and each only once")
    for name in ("train_size", "test_size"):
        if not whole(getattr(config, name), 1, 10**9):
            yield wrong(name, "it must be a whole number of at least 1")
    counts = config.num_operands
    if not counts or len(set(map(str, counts))) < len(counts) or not all(whole(count, 2, 6) for count in counts):
        yield wrong("num_operands", "it must hold different whole numbers from 2 to 6")
    if not whole(config.max_number, 1, MAX_VALUE):
        yield wrong("max_number", f"it must be a whole number from 1 to {MAX_VALUE}")
    limits = config.target_range
    if len(limits) != 2 or not all(whole(limit, 1, MAX_VALUE) for limit in limits) or limits[0] > limits[1]:
        yield wrong("target_range", f"it must be two whole numbers from 1 to {MAX_VALUE}, the lower first")
    if config.template not in TEMPLATES:
        yield wrong("template", f"the templates are {', '.join(TEMPLATES)}")
    if not whole(config.seed, 0, 2**63 - 1):
        yield wrong("seed", "it must be a whole number of at least 0")


# --- instances ------------------------------------------------------------------------------------


def generate(config: CountdownConfig, group: str) -> tuple[list[Instance], list[Instance]]:
    """Train and test instances of one group, in a random-looking order that depends on the configuration alone.

    Raises:
        UserError: the group is not one of the configuration's, or has fewer instances than are asked for.
    """
    if group not in config.groups:
        raise UserError(f"group {group!r} is not in this configuration", fix=f"it has {', '.join(config.groups)}")
    salt, threshold = _sides(config)
    pool = list_space(config.space(group))
    if pool is None:
        pool = _draw_enough(config, group, salt, threshold)
    keys = instance_keys(pool, config.seed, salt)
    order = np.argsort(keys)
    border = int(np.searchsorted(keys[order], np.uint64(threshold)))
    chosen = order[border : border + config.train_size], order[: min(border, config.test_size)]
    train, test = (_instances(pool.take(rows), keys[rows], OPERATORS[group]) for rows in chosen)
    return train, test


def _instances(pool: Pool, keys: Keys, operators: str) -> list[Instance]:
    """The rows of a pool as objects, with their numbers shuffled for showing."""
    shown = shuffle_operands(pool, keys)
    texts = solutions(simplify(pool, shown, operators), operators)
    numbers = [tuple(number for number in row if number) for row in shown.tolist()]
    columns = zip(numbers, pool.targets.tolist(), texts, strict=True)
    return [Instance(operands, target, solution, operators) for operands, target, solution in columns]


@lru_cache(maxsize=4)
def _sides(config: CountdownConfig) -> tuple[int, int]:
    """(salt, threshold): under the salt, instances with a key below the threshold are test, the others train.

    Where whole spaces are listed the threshold is moved, and the keys are salted anew, until every group has
    enough rows on both sides; so a request that exists is not refused because of an unlucky hash.
    """
    spaces = {group: list_space(config.space(group)) for group in config.groups}
    errors = [error for group, pool in spaces.items() if (error := _shortage(config, group, pool))]
    if errors:
        raise ConfigErrors(errors)
    share = max(TEST_SHARE, config.test_size / (config.train_size + config.test_size))
    for salt in range(16):
        low, high = 0, 2**64 - 1
        for pool in filter(None, spaces.values()):
            keys = np.sort(instance_keys(pool, config.seed, salt))
            low = max(low, int(keys[config.test_size - 1]) + 1)
            high = min(high, int(keys[len(keys) - _least_train(config)]))
        if low <= high:
            return salt, min(max(int(share * 2**64), low), high)
    counts = ", ".join(f"{group} {len(pool.targets):,}" for group, pool in spaces.items() if pool)
    raise UserError(
        f"{config.train_size:,} train and {config.test_size:,} test rows leave no way to divide all groups at once",
        why=f"an instance must be on the same side in every group; instances that exist: {counts}",
        fix="ask for fewer rows, or allow larger numbers",
    )


def _least_train(config: CountdownConfig) -> int:
    """Train rows that a group must have."""
    return 1 if config.allow_fewer else config.train_size


def _shortage(config: CountdownConfig, group: str, pool: Pool | None) -> UserError | None:
    """The error for a group that provably has too few instances."""
    if pool is not None:
        existing = len(pool.targets)
    elif group == "plus":
        existing = count_sums(config.space(group))
    else:
        return None  # too large to list: _draw_enough finds out
    if existing >= _least_train(config) + config.test_size:
        return None
    return _too_few(config, group, f"{existing:,} instances exist")


def _too_few(config: CountdownConfig, group: str, finding: str) -> UserError:
    """The refusal of a request that is larger than its space."""
    low, high = config.target_range
    operands = " or ".join(map(str, sorted(config.num_operands)))
    return UserError(
        f"{_least_train(config):,} train and {config.test_size:,} test rows were asked for, but {finding}",
        where=group,
        why=f"{operands} numbers of 1..{config.max_number}, targets {low}..{high}, no instance twice",
        fix="lower --train_size or --test_size, or raise --max_number, --num_operands or --target_range",
    )


def _draw_enough(config: CountdownConfig, group: str, salt: int, threshold: int) -> Pool:
    """Different instances of a large space, until both sides have enough or hardly any new one turns up.

    In the second case a longer listing decides, if one can be made in some seconds.
    """
    space, rng = config.space(group), np.random.default_rng([config.seed, list(OPERATORS).index(group)])
    share = threshold / 2**64
    pool: Pool | None = None
    train = test = drawn = 0
    while True:
        missing = max((config.train_size - train) / (1 - share), (config.test_size - test) / share)
        num_draws = int(min(max(1.2 * missing, 10_000), 250_000))
        fresh = draw(space, num_draws, rng)
        pool = _distinct(config, salt, [pool, fresh] if pool else [fresh])
        drawn += num_draws
        before = train + test
        train, test = _side_sizes(config, salt, threshold, pool)
        if train + test == config.train_size + config.test_size:
            return pool
        if train + test - before < num_draws / 200:
            break
    listed = list_space(space, MAX_SEARCHED_VALUES)
    train, test = _side_sizes(config, salt, threshold, listed or pool)
    if test == config.test_size and train >= _least_train(config):
        return listed or pool
    if listed:
        raise _too_few(config, group, f"{len(listed.targets):,} instances exist")
    raise _too_few(config, group, f"{drawn:,} tries found no more than {len(pool.targets):,} instances")


def _distinct(config: CountdownConfig, salt: int, pools: list[Pool]) -> Pool:
    """The rows of all pools, each instance once."""
    pool = join(pools)
    return pool.take(np.unique(instance_keys(pool, config.seed, salt), return_index=True)[1])


def _side_sizes(config: CountdownConfig, salt: int, threshold: int, pool: Pool) -> tuple[int, int]:
    """(train, test) rows that a pool can give, at most as many as are wanted."""
    num_test = int((instance_keys(pool, config.seed, salt) < np.uint64(threshold)).sum())
    return min(len(pool.targets) - num_test, config.train_size), min(num_test, config.test_size)


# --- rows -----------------------------------------------------------------------------------------


def rows(instances: Sequence[Instance], group: str, template: str, split: str) -> list[dict[str, Any]]:
    """The instances in veRL's columns; ``extra_info.index`` counts from 0. One schema for every group and template."""
    return [verl_row(item, group, template, split, index) for index, item in enumerate(instances)]


def task_rows(config: CountdownConfig, group: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train and eval rows of one task for contrl's own engine.

    Columns: ``id`` (of the instance: equal in every configuration), ``prompt`` and ``completion`` (text, for
    ``qwen-instruct`` chat messages; the completion holds the stored solution and earns a reward of 1), and the
    columns that ``contrl.rewards.countdown.countdown_reward`` reads.
    """
    train, test = ([task_row(item, group, config.template) for item in split] for split in generate(config, group))
    return train, test


def sequence(config: CountdownConfig) -> list[tuple[str, list[dict[str, Any]], list[dict[str, Any]]]]:
    """(name, train rows, eval rows) of every group, in order."""
    return [(group, *task_rows(config, group)) for group in config.groups]


# --- files ----------------------------------------------------------------------------------------


def write(
    config: CountdownConfig, output_dir: str | os.PathLike[str], progress: Progress | None = None
) -> list[tuple[Path, int]]:
    """Write ``<group>/train.parquet`` and ``<group>/test.parquet``; returns each file with its number of rows.

    A file appears under its name only once it is complete, and replaces one that was there.

    Raises:
        UserError: a group has too few instances, or a file cannot be written.
    """
    written = []
    for group in config.groups:
        for split, instances in zip(("train", "test"), generate(config, group), strict=True):
            path = Path(output_dir) / group / f"{split}.parquet"
            unfinished = path.with_name(f"{path.name}.unfinished")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_parquet(unfinished, instances, group, config.template, split, progress)
                os.replace(unfinished, path)
            except OSError as error:
                raise UserError(f"cannot write {path}", why=str(error), fix="choose another --output_dir") from error
            written.append((path, len(instances)))
    return written
