"""The arithmetic behind Countdown data: which instances exist, how to draw one, how to write its solution.

An *instance* is a multiset of operands and a target; a *form* is an expression without its operands. Small
spaces are listed whole, so their counts are exact; in large ones instances are built backwards: the target
first, then each value is split by an operator until only operands are left. Every value on the way to a
solution is a positive integer: no remainder, no zero, no negative number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, permutations, product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
Keys: TypeAlias = NDArray[np.uint64]
Tree: TypeAlias = "int | tuple[Tree, int, Tree]"
"""A leaf's position, or (left, gap, right): the operator in ``gap`` stands between the leaves gap and gap + 1."""

MAX_LISTED_MULTISETS = 1_000_000
MAX_LISTED_VALUES = 40_000_000
"""A space is listed whole when it takes at most so many operand multisets and evaluations: about a second."""
MAX_SEARCHED_VALUES = 400_000_000
"""The same where only a count can tell whether a request is possible: several seconds."""
_VALUES_AT_A_TIME = 10_000_000
MAX_FORMS_DRAWN = 256
"""Forms used in one call of ``draw``; five and six operands have thousands."""

_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


@dataclass(frozen=True)
class Form:
    """An expression without operands; ``text`` is its infix format string with no more parentheses than needed."""

    tree: Tree
    operators: str
    text: str


@dataclass(frozen=True)
class Space:
    """What instances are made of: operators (the newest last, in every solution), operand counts, and ranges.

    Without ``parentheses`` an instance belongs only if it has a solution that needs none.
    """

    operators: str
    num_operands: tuple[int, ...]
    max_number: int
    target_range: tuple[int, int]
    parentheses: bool = True

    def forms(self, num_operands: int) -> int:
        """How many of ``forms_of`` may be used: the first ones, because those without brackets stand in front."""
        forms = forms_of(num_operands, self.operators)
        return len(forms) if self.parentheses else sum("(" not in form.text for form in forms)

    def largest(self, num_operands: int) -> int:
        """The largest operand that can occur: in a sum no number exceeds the target less one for each other."""
        limit = self.target_range[1] - num_operands + 1 if self.operators == "+" else self.max_number
        return max(0, min(self.max_number, limit))


@dataclass(frozen=True)
class Pool:
    """Instances as arrays: ``operands`` [rows, width] in the order of the solution, padded with 0 on the right,
    ``targets`` [rows], and ``forms`` [rows], the index of the solution in ``forms_of`` the row's operand count."""

    operands: Ints
    targets: Ints
    forms: Ints

    def take(self, rows: NDArray) -> Pool:
        """The given rows, in the given order."""
        return Pool(self.operands[rows], self.targets[rows], self.forms[rows])


def join(pools: list[Pool]) -> Pool:
    """All rows of all pools; shorter operand rows are padded."""
    width = max(pool.operands.shape[1] for pool in pools)
    padded = [np.pad(pool.operands, ((0, 0), (0, width - pool.operands.shape[1]))) for pool in pools]
    targets, forms = [pool.targets for pool in pools], [pool.forms for pool in pools]
    return Pool(np.concatenate(padded), np.concatenate(targets), np.concatenate(forms))


# --- forms ----------------------------------------------------------------------------------------


@cache
def _trees(first: int, last: int) -> tuple[Tree, ...]:
    """Every way to bracket the leaves first..last, the left-to-right one first."""
    if first == last:
        return (first,)
    gaps = range(last - 1, first - 1, -1)
    return tuple((a, gap, b) for gap in gaps for a in _trees(first, gap) for b in _trees(gap + 1, last))


def _render(tree: Tree, operators: str) -> str:
    """Infix format string with the parentheses that standard precedence needs and no others."""
    if isinstance(tree, int):
        return f"{{{tree}}}"
    left, gap, right = tree

    def side(child: Tree, binds_equal: bool) -> str:
        text = _render(child, operators)
        tighter = 1 if isinstance(child, int) else _PRECEDENCE[operators[child[1]]] - _PRECEDENCE[operators[gap]]
        return text if tighter > 0 or (tighter == 0 and binds_equal) else f"({text})"

    return side(left, True) + operators[gap] + side(right, operators[gap] in "+*")


@cache
def forms_of(num_operands: int, operators: str) -> tuple[Form, ...]:
    """Every form of that many operands that uses the newest operator, one for each text, fewest brackets first."""
    forms: dict[str, Form] = {}
    for tree in _trees(0, num_operands - 1):  # a text is kept with its first tree: the one a reader evaluates
        for letters in product(operators, repeat=num_operands - 1):
            chosen = "".join(letters)
            if operators[-1] in chosen:
                text = _render(tree, chosen)
                forms.setdefault(text, Form(tree, chosen, text))
    return tuple(sorted(forms.values(), key=lambda form: form.text.count("(")))


@cache
def _arrangements(num_operands: int, operators: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    """(order, form index): leaf i takes operand order[i]. Fewest brackets first, then nearest to the given order."""
    orders: list[tuple[int, ...]] = list(permutations(range(num_operands)))
    if operators == "+":
        orders = orders[:1]
    forms = forms_of(num_operands, operators)
    swaps = {order: sum(a > b for a, b in combinations(order, 2)) for order in orders}
    pairs = [(order, index) for order in orders for index in range(len(forms))]
    return tuple(sorted(pairs, key=lambda pair: (forms[pair[1]].text.count("("), swaps[pair[0]])))


def evaluate(form: Form, operands: Ints) -> Ints:
    """Values [rows] of a form on operands [rows, n]; 0 where some value on the way is not a positive integer."""

    def value(tree: Tree) -> Ints:
        if isinstance(tree, int):
            return operands[:, tree]
        left, right = value(tree[0]), value(tree[2])
        symbol = form.operators[tree[1]]
        if symbol == "/":
            quotient, remainder = np.divmod(left, np.maximum(right, 1))
            result = np.where(remainder == 0, quotient, 0)
        else:
            result = left + right if symbol == "+" else left - right if symbol == "-" else left * right
        return np.where((left > 0) & (right > 0) & (result > 0), result, 0)

    return value(form.tree)


def instance_keys(pool: Pool, seed: int, salt: int) -> Keys:
    """64 random-looking bits [rows] for each instance: a function of seed, salt, multiset and target alone."""
    keys = _mix(np.full(len(pool.targets), seed % 2**64, np.uint64))
    for column in (np.full(len(keys), salt), *np.sort(pool.operands, axis=1).T, pool.targets):
        keys = _mix(keys ^ column.astype(np.uint64))
    return keys


def shuffle_operands(pool: Pool, keys: Keys) -> Ints:
    """Operands [rows, width] in the order they are shown: an order drawn by the instance's key, not by its solution."""
    operands = -np.sort(-pool.operands, axis=1)
    ranks = _mix(keys[:, None] + np.arange(1, operands.shape[1] + 1, dtype=np.uint64))
    ranks[operands == 0] = np.iinfo(np.uint64).max  # padding stays behind
    return np.take_along_axis(operands, np.argsort(ranks, axis=1, kind="stable"), axis=1)


def _mix(keys: Keys) -> Keys:
    """A bijection of 64-bit words that scatters them (Steele et al. 2014, the finaliser of SplitMix64)."""
    keys = keys + np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


# --- solutions ------------------------------------------------------------------------------------


def simplify(pool: Pool, shown: Ints, operators: str) -> Pool:
    """Solutions with the fewest brackets, then nearest to the order shown, where that is cheap to find.

    Cheap is up to three operands, and ``+`` alone: there the search is complete. Longer solutions stay as built.
    """
    operands, forms = pool.operands.copy(), pool.forms.copy()
    counts = (pool.operands > 0).sum(1)
    for count in {int(n) for n in np.unique(counts) if n <= 3 or operators == "+"}:
        unsolved = np.flatnonzero(counts == count)
        for order, index in _arrangements(count, operators):
            tried = shown[unsolved][:, order]
            solved = evaluate(forms_of(count, operators)[index], tried) == pool.targets[unsolved]
            operands[unsolved[solved], :count] = tried[solved]
            forms[unsolved[solved]] = index
            unsolved = unsolved[~solved]
            if not len(unsolved):
                break
    return Pool(operands, pool.targets, forms)


def solutions(pool: Pool, operators: str) -> list[str]:
    """The solution of every row as text, such as ``3*14-5``."""
    counts = (pool.operands > 0).sum(1)
    texts = {int(n): [form.text for form in forms_of(int(n), operators)] for n in np.unique(counts)}
    columns = zip(pool.operands.tolist(), counts.tolist(), pool.forms.tolist(), strict=True)
    return [texts[count][form].format(*operands) for operands, count, form in columns]


# --- listing a small space ------------------------------------------------------------------------


@lru_cache(maxsize=8)
def list_space(space: Space, max_values: int = MAX_LISTED_VALUES) -> Pool | None:
    """Every instance of the space once, each with its simplest solution; None when that takes too many evaluations."""
    multisets = {n: math.comb(space.largest(n) + n - 1, n) for n in space.num_operands}
    if sum(multisets.values()) > MAX_LISTED_MULTISETS:
        return None
    values = sum(count * _max_arrangements(n, space.operators) for n, count in multisets.items())
    if values > max_values:
        return None
    # Blocks bound the memory; two blocks share no multiset, hence no instance.
    tables = [_multisets(space.largest(n), n) for n in space.num_operands]
    num_blocks = values // _VALUES_AT_A_TIME + 1
    return join([_list_block(space, block) for table in tables for block in np.array_split(table, num_blocks)])


def count_sums(space: Space) -> int:
    """How many instances a space with ``+`` alone has, by counting partitions: exact up to 2**53."""
    low, high = space.target_range
    most = max(space.num_operands)
    ways = np.zeros((most + 1, high + 1))
    ways[0, 0] = 1
    for number in range(1, min(space.max_number, high) + 1):
        for count in range(1, most + 1):  # upwards, so that a number may be taken more than once
            ways[count, number:] += ways[count - 1, : high + 1 - number]
    return int(ways[list(space.num_operands), low:].sum())


def _max_arrangements(num_operands: int, operators: str) -> int:
    """Upper bound of the number of arrangements, without building them."""
    gaps, kinds = num_operands - 1, len(operators)
    trees = math.comb(2 * gaps, gaps) // num_operands
    return 1 if kinds == 1 else math.factorial(num_operands) * trees * (kinds**gaps - (kinds - 1) ** gaps)


def _list_block(space: Space, multisets: Ints) -> Pool:
    """Every instance with those operands [rows, n]."""
    num_operands = multisets.shape[1]
    allowed = space.forms(num_operands)
    arrangements = [pair for pair in _arrangements(num_operands, space.operators) if pair[1] < allowed]
    forms = forms_of(num_operands, space.operators)
    low, high = space.target_range
    codes, found_by = [], []
    for index, (order, form) in enumerate(arrangements):
        values = evaluate(forms[form], multisets[:, order])
        rows = np.flatnonzero((values >= low) & (values <= high))
        codes.append(rows * (high + 1) + values[rows])
        found_by.append(np.full(len(rows), index, np.int16))
    # The first of equal codes is the simplest solution: np.unique keeps the first occurrence.
    unique, first = np.unique(np.concatenate(codes), return_index=True)
    arrangement = np.concatenate(found_by)[first]
    orders = np.array([order for order, _ in arrangements])[arrangement]
    operands = np.take_along_axis(multisets[unique // (high + 1)], orders, axis=1)
    return Pool(operands, unique % (high + 1), np.array([form for _, form in arrangements])[arrangement])


def _multisets(largest: int, size: int) -> Ints:
    """[rows, size]: every non-decreasing row of numbers 1..largest."""
    table = np.arange(1, largest + 1, dtype=np.int64)[:, None]
    for _ in range(size - 1):
        repeats = largest + 1 - table[:, -1]
        starts = np.repeat(np.cumsum(repeats) - repeats, repeats)
        table = np.repeat(table, repeats, axis=0)
        table = np.column_stack([table, table[:, -1] + np.arange(len(table)) - starts])
    return table


# --- building instances of a large space ----------------------------------------------------------


def draw(space: Space, rows: int, rng: np.random.Generator) -> Pool:
    """About ``rows`` instances (some may repeat), spread evenly over operand counts and forms."""
    parts = []
    for num_operands in space.num_operands:
        num_forms = space.forms(num_operands)
        chosen = rng.permutation(num_forms)[:MAX_FORMS_DRAWN]
        share = math.ceil(rows / len(chosen) / len(space.num_operands))
        parts += [_draw_form(space, num_operands, int(index), share, rng) for index in chosen]
    return join(parts)


def _draw_form(space: Space, num_operands: int, index: int, rows: int, rng: np.random.Generator) -> Pool:
    """Instances solved by one form; the few splits that led nowhere are left out."""
    form = forms_of(num_operands, space.operators)[index]
    splitter = _Splitter(form, space.largest(num_operands), 2 * max(space.max_number, space.target_range[1]), rng)
    lowest, highest = splitter.bounds(form.tree)
    low, high = max(space.target_range[0], lowest), min(space.target_range[1], highest)
    if low > high:
        rows = 0
    targets = splitter.uniform(np.full(rows, low), np.full(rows, high))
    operands = np.zeros((rows, num_operands), np.int64)
    splitter.split(form.tree, targets, operands)
    good = (operands >= 1).all(1) & (operands <= splitter.largest).all(1) & (evaluate(form, operands) == targets)
    return Pool(operands[good], targets[good], np.full(int(good.sum()), index))


@dataclass(frozen=True)
class _Splitter:
    """Splits values along one form, from the root to the operands. No value on the way exceeds ``ceiling``."""

    form: Form
    largest: int
    ceiling: int
    rng: np.random.Generator

    def uniform(self, low: Ints, high: Ints) -> Ints:
        """Uniform integers in [low, high], row by row."""
        return low + (self.rng.random(len(low)) * (high - low + 1)).astype(np.int64)

    def bounds(self, tree: Tree) -> tuple[int, int]:
        """Least and greatest value of a subtree. Factors and divisors of 1 are left out: they pose no problem."""
        if isinstance(tree, int):
            return 1, self.largest
        (a_low, a_high), (b_low, b_high) = self.bounds(tree[0]), self.bounds(tree[2])
        symbol = self.form.operators[tree[1]]
        if symbol == "+":
            low, high = a_low + b_low, a_high + b_high
        elif symbol == "-":
            low, high = max(1, a_low - b_high), a_high - b_low
        elif symbol == "*":
            low, high = max(a_low, 2) * max(b_low, 2), a_high * b_high
        else:
            low, high = max(1, math.ceil(a_low / b_high)) if b_high > 0 else 1, a_high // max(b_low, 2)
        return low, min(high, self.ceiling)

    def split(self, tree: Tree, values: Ints, operands: Ints) -> None:
        """Write operands [rows, n] such that the subtree's value is ``values`` [rows]; rows that fail hold garbage."""
        if isinstance(tree, int):
            operands[:, tree] = values
            return
        (a_low, a_high), (b_low, b_high) = self.bounds(tree[0]), self.bounds(tree[2])
        symbol = self.form.operators[tree[1]]
        if symbol == "+":
            low, high = np.maximum(a_low, values - b_high), np.minimum(a_high, values - b_low)
            # Beta by leaf counts makes the parts of a pure sum uniform over all compositions.
            part = self.rng.beta(_leaves(tree[0]), _leaves(tree[2]), len(values))
            left = low + np.minimum((part * (high - low + 1)).astype(np.int64), high - low)
            right = values - left
        elif symbol == "-":
            right = self.uniform(np.maximum(b_low, a_low - values), np.minimum(b_high, a_high - values))
            left = values + right
        elif symbol == "*":
            left = self._divisor(values)
            right = values // np.maximum(left, 1)
        else:
            at_least = np.maximum(max(b_low, 2), -(-a_low // np.maximum(values, 1)))
            right = self.uniform(at_least, np.minimum(b_high, a_high // np.maximum(values, 1)))
            left = values * right
        self.split(tree[0], left, operands)
        self.split(tree[2], right, operands)

    def _divisor(self, values: Ints) -> Ints:
        """A random divisor of each value other than 1 and itself; 0 where there is none."""
        divisors, starts = _divisors(self.ceiling)
        values = np.clip(values, 0, self.ceiling)
        counts = starts[values + 1] - starts[values]
        picks = starts[values] + (self.rng.random(len(values)) * counts).astype(np.int64)
        return np.where(counts > 0, divisors[np.minimum(picks, len(divisors) - 1)], 0)


def _leaves(tree: Tree) -> int:
    """Number of operands of a subtree."""
    return 1 if isinstance(tree, int) else _leaves(tree[0]) + _leaves(tree[2])


@lru_cache(maxsize=2)
def _divisors(ceiling: int) -> tuple[Ints, Ints]:
    """Divisors of every value up to ``ceiling`` in one array, without 1 and the value; where each value's begin."""
    factors = np.arange(2, max(ceiling // 2, 2) + 1, dtype=np.int64)
    counts = np.maximum(ceiling // factors - 1, 0)  # 2f, 3f, ... up to the ceiling
    divisors = np.repeat(factors, counts)
    multiples = divisors * (np.arange(len(divisors)) - np.repeat(np.cumsum(counts) - counts, counts) + 2)
    order = np.argsort(multiples, kind="stable")
    return divisors[order], np.searchsorted(multiples[order], np.arange(ceiling + 2))
