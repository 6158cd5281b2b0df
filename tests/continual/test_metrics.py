"""Metrics against matrices worked out by hand, and the identities between them."""

import math
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrl.continual import metrics
from contrl.continual.flips import flips_of
from contrl.continual.matrix import INDEPENDENT, MIXED, PAIRED, UNKNOWN, Z95
from contrl.continual.metrics import FORMULAS, Matrix, compute, contributions, paired_difference

THREE = Matrix(
    scores=[
        [0.1, 0.2, 0.3],  # before training
        [0.9, 0.3, 0.2],  # after task 0
        [0.5, 0.8, 0.4],  # after task 1
        [0.4, 0.6, 0.7],  # after task 2
    ],
    trained=[(), 0, 1, 2],
)
ROUNDS = Matrix(  # tasks A and B, two rounds: A, B, A, B
    scores=[[0.0, 0.1], [0.6, 0.2], [0.3, 0.7], [0.8, 0.5], [0.4, 0.9]],
    trained=[(), 0, 1, 0, 1],
)


def values(matrix: Matrix) -> dict[str, float | None]:
    return {name: metric.value for name, metric in compute(matrix).items()}


def test_three_tasks_by_hand():
    """average (0.4+0.6+0.7)/3 · forgetting ((0.9-0.4)+(0.8-0.6))/2 · BWT its negative · FWT ((0.3-0.2)+(0.4-0.3))/2
    gain ((0.9-0.1)+(0.8-0.3)+(0.7-0.4))/3 · LA (0.9+0.8+0.7)/3 · over time (0.9 + (0.5+0.8)/2 + 1.7/3)/3
    max ((max(0.9, 0.5)-0.4)+(max(0.3, 0.8)-0.6))/2 · lowest afterwards (min(0.5, 0.4)+0.6)/2; no items, so no flips."""
    assert values(THREE) == pytest.approx(
        {
            "average": 1.7 / 3,
            "forgetting": 0.35,
            "bwt": -0.35,
            "own_stage_gain": 1.6 / 3,
            "learning_accuracy": 0.8,
            "fwt": 0.1,
            "average_over_time": (0.9 + 0.65 + 1.7 / 3) / 3,
            "forgetting_max": 0.35,
            "min_after_learned": 0.5,
            "lost": None,
            "gained": None,
        }
    )


def test_two_rounds_by_hand():
    """forgetting counts from the last visit, only A was left: 0.8-0.4. BWT counts from the first visit:
    A 0.4-0.6, B 0.9-0.7, mean 0. max of A over stages 1..3 is 0.8. FWT of B: 0.2-0.1.
    gain (0.6 + 0.5 + 0.5 + 0.4)/4 · LA (0.6+0.7+0.8+0.9)/4 · over time (0.6 + 0.5 + 0.65 + 0.65)/4.
    Lowest after the first visit: A 0.3 of stages 2..4, B 0.5 of 3..4."""
    assert values(ROUNDS) == pytest.approx(
        {
            "average": 0.65,
            "forgetting": 0.4,
            "bwt": 0.0,
            "own_stage_gain": 0.5,
            "learning_accuracy": 0.75,
            "fwt": 0.1,
            "average_over_time": 0.6,
            "forgetting_max": 0.4,
            "min_after_learned": 0.4,
            "lost": None,
            "gained": None,
        }
    )


def test_maximum_differs_from_just_learnt():
    """Task 0 rises after its own stage: just learnt 0.5, best 0.8, final 0.6: forgetting -0.1, maximum-based 0.2."""
    matrix = Matrix([[0.1, 0.1, 0.1], [0.5, 0.1, 0.1], [0.8, 0.4, 0.1], [0.6, 0.4, 0.9]], [(), 0, 1, 2])
    assert metrics.forgetting(matrix).value == pytest.approx((-0.1 + 0.0) / 2)
    assert metrics.forgetting_max(matrix).value == pytest.approx((0.2 + 0.0) / 2)


def test_a_stage_that_trains_several_tasks():
    """Stage 1 trains tasks 0 and 1 together, stage 2 task 2. forgetting ((0.6-0.5)+(0.8-0.4))/2; task 2 was first
    trained in stage 2, so FWT is R[1, 2] - R[0, 2] = 0.2; LA (0.6+0.8+0.9)/3; over time ((0.6+0.8)/2 + 1.8/3)/2."""
    matrix = Matrix([[0.1, 0.2, 0.1], [0.6, 0.8, 0.3], [0.5, 0.4, 0.9]], [(), (0, 1), 2])
    found = values(matrix)
    assert found["forgetting"] == pytest.approx(0.25)
    assert found["fwt"] == pytest.approx(0.2)
    assert found["learning_accuracy"] == pytest.approx(2.3 / 3)
    assert found["average_over_time"] == pytest.approx((0.7 + 0.6) / 2)


def test_one_task_has_nothing_to_forget():
    found = values(Matrix([[0.2], [0.7]], [(), 0]))
    undefined = {"forgetting", "bwt", "fwt", "forgetting_max", "min_after_learned", "lost", "gained"}
    assert {name for name, value in found.items() if value is None} == undefined
    assert (found["average"], found["own_stage_gain"]) == (0.7, pytest.approx(0.5))


def test_a_task_that_comes_back_at_once_has_backward_transfer_but_no_forgetting():
    found = values(Matrix([[0.2], [0.7], [0.8]], [(), 0, 0]))
    assert found["forgetting"] is None
    assert found["bwt"] == pytest.approx(0.1)


def test_nothing_trained_yet():
    found = values(Matrix([[0.2, 0.4]], [()]))
    assert found.pop("average") == pytest.approx(0.3)
    assert set(found.values()) == {None}


def test_no_scores_at_all():
    assert set(values(Matrix([], [])).values()) == {None}


@pytest.mark.parametrize(
    ("missing", "lost"),
    [
        ((3, 0), {"average", "forgetting", "bwt", "average_over_time", "forgetting_max", "min_after_learned"}),
        ((1, 0), {"forgetting", "bwt", "own_stage_gain", "learning_accuracy", "average_over_time", "forgetting_max"}),
        ((1, 1), {"fwt", "own_stage_gain", "forgetting_max"}),
        ((0, 2), {"fwt"}),
        ((1, 2), set()),
    ],
)
def test_a_missing_cell_takes_exactly_the_metrics_that_need_it(missing, lost):
    scores = [list(row) for row in THREE.scores]
    scores[missing[0]][missing[1]] = None
    whole, found = values(THREE), values(Matrix(scores, THREE.trained))
    assert {name for name, value in found.items() if value is None} == lost | {"lost", "gained"}
    assert all(found[name] == whole[name] for name in found if name not in lost)


# --- intervals ---------------------------------------------------------------------------------------


def test_paired_interval_by_hand():
    """Of 400 items 200 were right before and are wrong now, 100 right in both, 100 in neither: differences of mean 0.5
    and standard deviation 0.5, so the mean of 400 drawn ones has 0.025, and its 2.5 % quantiles lie at 0.5 ± 0.049.
    As independent cells the error would be sqrt(0.75·0.25/400 + 0.25·0.75/400) = 0.0306."""
    before = {f"{i}": float(i < 300) for i in range(400)}
    after = {f"{i}": float(i < 100) for i in range(400)}
    matrix = Matrix([[0.0, 0.0], [0.75, 0.0], [0.25, 1.0]], [(), 0, 1], items={(1, 0): before, (2, 0): after})
    found = metrics.forgetting(matrix)
    assert (found.value, found.n, found.basis) == (0.5, 400, PAIRED)
    assert (found.low, found.high) == pytest.approx((0.5 - Z95 * 0.025, 0.5 + Z95 * 0.025), abs=0.005)
    assert found == metrics.forgetting(matrix), "the draws are a function of the items"


def test_the_intervals_of_a_maximum_and_a_minimum_have_their_bias_taken_off():
    """Nothing is forgotten: after each of five stages the same 200 items are right with 0.5, at random. The highest of
    four such scores is 0.036 (1.03 sd of 0.0354) too high; the interval, reflected, still holds the true 0."""
    draw, held, biases, values_ = random.Random(3), 0, [], []
    for _ in range(30):
        items = {(k, 0): {f"{i}": float(draw.random() < 0.5) for i in range(200)} for k in range(6)}
        scores = [[sum(items[k, 0].values()) / 200, 0.0] for k in range(6)]
        found = metrics.forgetting_max(Matrix(scores, [(), 0, 1, 1, 1, 1], items=items))
        held += found.low <= 0.0 <= found.high
        biases.append(found.bias)
        values_.append(found.value)
    assert 0.02 < sum(values_) / 30 < 0.06
    assert 0.01 < sum(biases) / 30 < 0.04
    assert held >= 26


def test_flips_by_hand():
    """Right before [1, 1, 1, 0, 0], right now [0, 1, 1, 1, 0]: one of five lost, one gained; forgetting is 0."""
    bits = {1: [1, 1, 1, 0, 0], 2: [0, 1, 1, 1, 0]}
    correct = {(k, 0): {f"{i}": bool(bit) for i, bit in enumerate(row)} for k, row in bits.items()}
    items = {place: {key: float(bit) for key, bit in row.items()} for place, row in correct.items()}
    matrix = Matrix([[0.0, 0.0], [0.6, 0.0], [0.6, 1.0]], [(), 0, 1], items=items, correct=correct)
    assert (metrics.lost(matrix).value, metrics.gained(matrix).value) == (0.2, 0.2)
    assert metrics.forgetting(matrix).value == 0
    flips = flips_of(matrix, 0, 1, 2)
    assert (flips.lost, flips.gained, flips.kept, flips.never, flips.n) == (0.2, 0.2, 0.4, 0.2, 5)
    assert flips_of(matrix, 1, 1, 2) is None


def test_interval_from_cell_errors_by_hand():
    """se 0.03 and 0.04 of two independent cells: the difference has sqrt(0.0009 + 0.0016) = 0.05."""
    se = [[None, None], [0.03, None], [0.04, None]]
    matrix = Matrix([[0.0, 0.0], [0.75, 0.0], [0.25, 1.0]], [(), 0, 1], se=se, counts=[[50, 50], [60, 50], [50, 50]])
    found = metrics.forgetting(matrix)
    assert (found.low, found.high) == pytest.approx((0.5 - Z95 * 0.05, 0.5 + Z95 * 0.05))
    assert (found.basis, found.n, found.outside_noise) == (INDEPENDENT, 50, True)


def test_unknown_errors_give_a_value_without_interval():
    found = metrics.average(Matrix([[0.2], [0.7]], [(), 0]))
    assert (found.value, found.low, found.high, found.n, found.basis) == (0.7, None, None, None, UNKNOWN)
    assert not found.outside_noise


def test_items_of_one_task_and_cell_errors_of_another():
    """Task 0 has items (one sum per item: 0 and 1, variance 0.5, /2), task 1 only a cell error 0.2; weights 1/2 each:
    se² = 0.25·0.25 + 0.25·0.04."""
    matrix = Matrix([[0.5, 0.3]], [()], se=[[0.35, 0.2]], items={(0, 0): {"a": 0.0, "b": 1.0}})
    found = metrics.average(matrix)
    assert found.basis == MIXED
    assert found.high is not None
    assert found.high - 0.4 == pytest.approx(Z95 * math.sqrt(0.25 * 0.25 + 0.25 * 0.04))


def test_other_items_in_another_row_are_not_paired():
    items = {(1, 0): {"a": 1.0, "b": 0.0}, (2, 0): {"a": 1.0, "c": 0.0}}
    matrix = Matrix([[0.0, 0.0], [0.5, 0.0], [0.5, 1.0]], [(), 0, 1], se=[[0.1] * 2] * 3, items=items)
    assert metrics.forgetting(matrix).basis == INDEPENDENT


def test_paired_interval_covers_the_truth_at_its_rate():
    """200 simulated runs of 150 items, right before with 0.8 and after with 0.5, answers carried over between the rows.
    The interval must hold the true forgetting 0.3 in about 95 % (binomial sd 1.5 %), and be narrower than unpaired."""
    rng, held, widths = random.Random(7), 0, [0.0, 0.0]
    for _ in range(200):
        before, after = {}, {}
        for item in map(str, range(150)):
            before[item], after[item] = 0.0, 0.0
            if rng.random() < 0.8:  # after is right only where before was: P = 0.8 · 0.625 = 0.5
                before[item], after[item] = 1.0, float(rng.random() < 0.625)
        means = [sum(row.values()) / 150 for row in (before, after)]
        se = [math.sqrt(p * (1 - p) / 150) for p in means]
        scores = [[0.0, 0.0], [means[0], 0.0], [means[1], 0.0]]
        errors = [[0.0, 0.0], [se[0], 0.0], [se[1], 0.0]]
        paired = metrics.forgetting(Matrix(scores, [(), 0, 1], se=errors, items={(1, 0): before, (2, 0): after}))
        unpaired = metrics.forgetting(Matrix(scores, [(), 0, 1], se=errors))
        held += paired.low <= 0.3 + 1e-9 and paired.high >= 0.3 - 1e-9
        widths = [widths[0] + paired.high - paired.low, widths[1] + unpaired.high - unpaired.low]
    assert 0.91 <= held / 200 <= 0.98
    assert widths[0] < 0.85 * widths[1]


def test_wilson_interval_has_a_width_at_the_ends():
    """At p = 1, n = 500 the lower end is n/(n + z²) = 0.992376; at p = 0.5, n = 100 the known values 0.4038, 0.5962."""
    assert metrics.proportion_interval(1.0, 500) == pytest.approx((500 / (500 + Z95**2), 1.0))
    assert metrics.proportion_interval(0.0, 500) == pytest.approx((0.0, Z95**2 / (500 + Z95**2)))
    assert metrics.proportion_interval(0.5, 100) == pytest.approx((0.4038315, 0.5961685), abs=1e-6)


# --- two runs ----------------------------------------------------------------------------------------


def test_paired_difference_by_hand():
    """a - b per item: 1, 0, 1, 0 (mean 0.5, variance 1/3, /4) on task x; 0.25 and 0.25 on task y: no variance."""
    a = {"x": {"1": 1.0, "2": 1.0, "3": 1.0, "4": 0.0}, "y": {"1": 0.5, "2": 0.25}}
    b = {"x": {"1": 0.0, "2": 1.0, "3": 0.0, "4": 0.0}, "y": {"1": 0.25, "2": 0.0}}
    found = paired_difference(a, b)
    assert (found.value, found.n) == (0.75, 6)
    assert found.low == pytest.approx(0.75 - Z95 * math.sqrt(1 / 12))
    assert found.basis == "items paired between runs"


def test_difference_of_runs_with_other_items_adds_both_variances():
    """Means 0.5 and 0.25; variances 1/3 of 4 items and 1/4 of 4: se² = 1/12 + 1/16."""
    a = {"x": {"1": 1.0, "2": 1.0, "3": 0.0, "4": 0.0}}
    b = {"x": {"5": 1.0, "6": 0.0, "7": 0.0, "8": 0.0}}
    found = paired_difference(a, b)
    assert found.value == 0.25
    assert found.high == pytest.approx(0.25 + Z95 * math.sqrt(1 / 12 + 1 / 16))
    assert found.basis == "tasks with different items taken as independent"


def test_difference_needs_the_same_tasks_and_items():
    with pytest.raises(ValueError, match="different tasks"):
        paired_difference({"x": {"1": 1.0}}, {"y": {"1": 1.0}})
    with pytest.raises(ValueError, match="without items"):
        paired_difference({"x": {}}, {"x": {}})


def test_contributions_sum_to_the_metric_and_compare_two_runs():
    """A run against itself differs by 0 with no width; the contributions' means add up to the metric."""
    items = {(r, c): {"p": float(r == 1), "q": float(r + c > 1)} for r in range(3) for c in range(2)}
    scores = [[sum(items[r, c].values()) / 2 for c in range(2)] for r in range(3)]
    matrix = Matrix(scores, [(), 0, 1], items=items)
    for name in ("average", "forgetting", "own_stage_gain"):
        metric = compute(matrix)[name]
        assert metric.weights is not None
        parts = contributions(matrix, metric.weights)
        assert parts is not None
        assert sum(sum(part.values()) / len(part) for part in parts.values()) == pytest.approx(metric.value)
        same = paired_difference(parts, parts)
        assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert contributions(Matrix(scores, [(), 0, 1]), {(2, 0): 1.0}) is None


# --- properties --------------------------------------------------------------------------------------

scores_of = st.floats(0, 1, allow_nan=False, width=32)


@st.composite
def sequences(draw, repeats: bool = True) -> Matrix:
    tasks = draw(st.integers(1, 4))
    order = draw(st.lists(st.integers(0, tasks - 1), max_size=5) if repeats else st.permutations(range(tasks)))
    rows = draw(st.lists(st.lists(scores_of, min_size=tasks, max_size=tasks), min_size=len(order) + 1,
                         max_size=len(order) + 1))  # fmt: skip
    return Matrix(rows, [(), *order])


@given(sequences(repeats=False))
def test_forgetting_is_minus_bwt_without_repeats(matrix):
    forgetting, bwt = metrics.forgetting(matrix).value, metrics.backward_transfer(matrix).value
    assert (forgetting is None) == (bwt is None) == (matrix.num_columns == 1)
    if forgetting is not None and bwt is not None:
        assert forgetting == -bwt


@st.composite
def with_items(draw) -> tuple[Matrix, list[list[float | None]]]:
    """Sequences with repeats whose cells are shares of right items, some of them missing."""
    shape = draw(sequences())
    number = draw(st.integers(2, 4))
    bits = {
        (k, j): draw(st.lists(st.booleans(), min_size=number, max_size=number))
        for k in range(len(shape.scores))
        for j in range(shape.num_columns)
        if draw(st.integers(0, 5)) > 0
    }
    scores = [
        [sum(bits[k, j]) / number if (k, j) in bits else None for j in range(shape.num_columns)]
        for k in range(len(shape.scores))
    ]
    correct = {place: {f"{i}": bit for i, bit in enumerate(row)} for place, row in bits.items()}
    items = {place: {key: float(bit) for key, bit in row.items()} for place, row in correct.items()}
    return Matrix(scores, shape.trained, items=items, correct=correct), scores


@given(with_items())
@settings(max_examples=30, deadline=None)
def test_a_missing_cell_is_never_taken_for_zero(made):
    """Whatever stands in for a missing score: a metric either needs it and is null, or does not depend on it at all."""
    matrix, scores = made
    found = values(matrix)
    for guess in (0.0, 1.0):
        filled = [[guess if score is None else score for score in row] for row in scores]
        other = values(Matrix(filled, matrix.trained, correct=matrix.correct))
        assert all(value is None or value == pytest.approx(other[name]) for name, value in found.items())


@given(with_items())
@settings(max_examples=30, deadline=None)
def test_what_was_lost_less_what_was_gained_is_forgetting(made):
    matrix, _ = made
    found = compute(matrix)
    lost, gained, forgetting = (found[name].value for name in ("lost", "gained", "forgetting"))
    assert (lost is None) == (gained is None) == (forgetting is None)
    if lost is not None and gained is not None and forgetting is not None:
        assert lost - gained == pytest.approx(forgetting, abs=1e-9)
        assert 0 <= lost <= 1
    for metric in found.values():
        assert (metric.low is None) == (metric.high is None)
        assert metric.low is None or metric.low <= metric.high


@given(sequences(), st.floats(-1, 1))
def test_adding_a_constant_moves_levels_and_no_difference(matrix, shift):
    before = values(matrix)
    after = values(Matrix([[s + shift for s in row if s is not None] for row in matrix.scores], matrix.trained))
    for name, value in before.items():
        levels = ("average", "learning_accuracy", "average_over_time", "min_after_learned")
        moved = shift if name in levels else 0.0
        assert after[name] == (None if value is None else pytest.approx(value + moved, abs=1e-9))


@given(sequences(), st.randoms(use_true_random=False))
def test_the_order_of_columns_does_not_matter(matrix, rng):
    order = list(range(matrix.num_columns))
    rng.shuffle(order)
    rows = [[row[column] for column in order] for row in matrix.scores]
    trained = [tuple(order.index(column) for column in matrix.columns_of(row)) for row in range(len(rows))]
    shuffled = values(Matrix(rows, trained))
    for name, value in values(matrix).items():
        assert shuffled[name] == (None if value is None else pytest.approx(value, abs=1e-12))


@given(sequences())
def test_the_maximum_never_forgets_less_than_just_learnt(matrix):
    just, most = metrics.forgetting(matrix).value, metrics.forgetting_max(matrix).value
    assert (just is None) == (most is None)
    assert just is None or most is None or most >= just - 1e-12


@given(st.lists(scores_of, min_size=2, max_size=6))
def test_gains_of_a_single_task_telescope(column):
    found = metrics.own_stage_gain(Matrix([[s] for s in column], [(), *[0] * (len(column) - 1)]))
    assert found.value == pytest.approx((column[-1] - column[0]) / (len(column) - 1), abs=1e-9)


@given(sequences())
def test_equal_rows_show_no_change(matrix):
    """Learning rate 0: every row equals row 0."""
    frozen = values(Matrix([matrix.scores[0]] * len(matrix.scores), matrix.trained))
    differences = {"forgetting", "bwt", "own_stage_gain", "fwt", "forgetting_max"}
    assert all(frozen[name] in (None, pytest.approx(0.0, abs=1e-12)) for name in differences)


# --- misuse and documentation ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "trained", "message"),
    [
        ([[0.1], [0.2]], [()], "2 rows of scores"),
        ([[0.1, 0.2], [0.2]], [(), 0], "one entry for each column"),
        ([[math.nan]], [()], "never NaN"),
        ([[0.1]], [0], "row 0"),
        ([[0.1], [0.2]], [(), 1], "outside 0..0"),
    ],
)
def test_a_matrix_that_makes_no_sense_is_refused(scores, trained, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Matrix(scores, trained)


def test_every_formula_is_printable_anywhere_and_stands_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name, formula in FORMULAS.items():
        assert formula.text.isascii()
        assert f"`{name}`" in page
        assert formula.text in page
    assert list(compute(THREE)) == list(FORMULAS) == [metric.name for metric in compute(THREE).values()]
    assert compute(THREE)["forgetting"].higher_is_better is False
