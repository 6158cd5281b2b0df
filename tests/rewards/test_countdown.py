"""The verifier: what is correct, what is merely well-formed, and that nothing a model writes can hurt it."""

from __future__ import annotations

import subprocess
import sys
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrl.errors import UserError
from contrl.rewards.countdown import OPERATORS, compute_score, countdown_reward, extract_answer, is_success, parse

ALL = {"target": 37, "numbers": [3, 14, 5], "template": "compact"}


def score(answer, truth=ALL, **extra):
    return compute_score("countdown", answer, truth, extra)


@pytest.mark.parametrize(
    "answer",
    ["3*14-5", "14*3-5", "(3*14)-5", " 3 *\t14\n-\r\n5 ", "3*(14)-5", "3×14−5", "3*14-5=37"],
)
def test_correct_answers_score_one(answer):
    assert score(answer) == 1.0


def test_the_value_is_exact_and_may_pass_through_fractions_and_negative_numbers():
    """8 / (3 - 8/3) = 8 / (1/3) = 24; in floats it is 23.999999999999989. And 2 - 9 + 10 = 3 by way of -7."""
    assert score("8/(3-8/3)", {"target": 24, "numbers": [3, 3, 8, 8], "template": "compact"}) == 1.0
    assert 8 / (3 - 8 / 3) != 24
    assert score("2-9+10", {"target": 3, "numbers": [2, 9, 10], "template": "compact"}) == 1.0


@pytest.mark.parametrize(
    ("answer", "numbers", "target"),
    [("9-5-3", [9, 5, 3], 1), ("8/4/2", [8, 4, 2], 1), ("2+3*4", [2, 3, 4], 14), ("9-5+3", [9, 5, 3], 7)],
)
def test_precedence_and_left_to_right_order(answer, numbers, target):
    assert score(answer, {"target": target, "numbers": numbers, "template": "compact"}) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "3*14+5",  # another value
        "37",  # no number of the task
        "3*14-5-5",  # a number too often
        "3*14",  # a number missing
        "42-5",  # numbers not given
        "314-5",  # digits glued together
        "3*14-5=38",  # states another result
        "3/(14-14)",  # division by zero
        "5/(3-3)*14",
    ],
)
def test_well_formed_but_wrong_answers_score_a_tenth(answer):
    assert score(answer) == 0.1
    assert not is_success(score(answer))


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " ",
        "9**9**9",
        "14//3",
        "3//4",
        "1.5*4",
        "--3",
        "+3",
        "-3+14",
        "3*-14",
        "(-3)",
        "3*(14-5",
        "3*14)-5",
        "()",
        "3(14)",
        "(3)(14)",
        "3 14 5",
        "3*14-",
        "*3",
        "03*14-5",
        "3*14-5;",
        "3e2",
        "0x3",
        "1_4*3",
        "\uff13+4",  # full-width digit
        "٣*14-5",  # arabic digit
        "3*14\u20135",  # en dash, not minus
        "3\u00a0*14-5",  # no-break space
        "3^14",
        "3%14",
        "3*14-5==37",
        "3*14-5=",
        "=37",
        "37=3*14-5",
        "3*14-5=37=37",
        "3*14-5=+37",
        "3*14-5=74/2",
        "__import__('os').system('true')",
        "().__class__",
        "lambda: 3",
        "3 if 14 else 5",
        "3*14-5 # 37",
        "<answer>3*14-5</answer>",
        "1234567890-1",  # ten digits
        "\x003*14-5",
        "\ud800",
        "\uff13" * 5000,
    ],
)
def test_malformed_answers_score_nothing(answer):
    assert score(answer) == 0.0


def test_duplicates_count_by_multiplicity():
    truth = {"target": 12, "numbers": [3, 3, 3, 3], "template": "compact"}
    assert score("3+3+3+3", truth) == 1.0
    assert score("3*3+3", truth) == 0.1
    assert score("3+3+3+3*3/3", truth) == 0.1


@pytest.mark.parametrize("group", OPERATORS)
def test_the_group_is_enforced_from_each_of_its_three_places(group):
    answers = {"+": "8+4", "-": "8-4", "*": "8*4", "/": "8/4"}
    values = {"+": 12, "-": 4, "*": 32, "/": 2}
    for symbol, answer in answers.items():
        truth = {"target": values[symbol], "numbers": [4, 8], "template": "compact"}
        expected = 1.0 if symbol in OPERATORS[group] else 0.1
        assert compute_score(f"countdown/{group}", answer, truth) == expected
        assert compute_score("other", answer, truth, {"operator_group": group}) == expected
        assert compute_score("other", answer, {**truth, "operators": OPERATORS[group]}) == expected
        assert compute_score("other", answer, {**truth, "operators": np.array(list(OPERATORS[group]))}) == expected


def test_every_statement_about_operators_counts():
    truth = {"target": 4, "numbers": [4, 8], "template": "compact", "operators": "+-*/"}
    assert compute_score("countdown/plus", "8-4", truth, {"operator_group": "plus_minus"}) == 0.1
    assert compute_score("countdown/my_own_group", "8-4", truth) == 1.0
    assert compute_score("countdown", "8-4", {**truth, "operators": None}, None) == 1.0
    assert compute_score("countdown", "8-4", {**truth, "operators": "×"}) == 0.1


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>3*14 is 42</think><answer>3*14-5</answer>", 1.0),
        ("<answer>3*14-5</answer>\n", 1.0),
        ("<answer>\n3*14\n-5\n</answer> Done.", 1.0),
        ("<answer>1+1</answer> no: <answer>3*14-5</answer>", 1.0),
        ("<answer>3*14-5</answer> no: <answer>1+1</answer>", 0.1),
        ("<answer>3*14-5</answer> and <answer>unfinished", 1.0),
        ("<answer>3*14-5</answer> stray </answer>", 1.0),
        ("<answer><answer>3*14-5</answer></answer>", 1.0),
        ("<answer>3*14-5 = 37</answer>", 1.0),
        ("<answer>3*14-5", 0.0),
        ("3*14-5</answer>", 0.0),
        ("</answer>3*14-5<answer>", 0.0),
        ("<answer></answer>", 0.0),
        ("<answer>the answer is 3*14-5</answer>", 0.0),
        ("<Answer>3*14-5</Answer>", 0.0),
        ("3*14-5", 0.0),
    ],
)
@pytest.mark.parametrize("template", ["base", "qwen-instruct", "another", None])
def test_long_templates_read_the_last_complete_answer(completion, expected, template):
    assert compute_score("countdown", completion, {**ALL, "template": template}) == expected


def test_the_template_may_come_from_extra_info_and_the_ground_truth_wins():
    truth = {"target": 37, "numbers": [3, 14, 5]}
    assert compute_score("countdown", "3*14-5", truth, {"template": "compact"}) == 1.0
    assert compute_score("countdown", "3*14-5", truth) == 0.0
    assert compute_score("countdown", "3*14-5", {**truth, "template": "base"}, {"template": "compact"}) == 0.0


def test_sizes_are_bounded_on_the_byte():
    """Answers of 4096 bytes and 64 levels are read, one more is malformed; × is two bytes of UTF-8."""
    assert score("1+" * 2047 + "1 ") == 0.1
    assert score("1+" * 2047 + "1  ") == 0.0
    assert score("1×" * 1364 + "1   ") == 0.1
    assert score("1×" * 1365 + "1  ") == 0.0
    assert score("1+1=" + " " * 4091 + "2") == 0.1
    assert score("1+1=" + " " * 4092 + "2") == 0.0
    nested = {"target": 1, "numbers": [1], "template": "compact"}
    assert score("(" * 64 + "1" + ")" * 64, nested) == 1.0
    assert score("(" * 65 + "1" + ")" * 65, nested) == 0.0
    assert score("(1)+" * 200 + "1") == 0.1


def hostile_texts():
    yield "9**9**9"
    yield "(" * 5000 + "1" + ")" * 5000
    yield "1+" * 5000 + "1"
    yield "(" * 2_000_000
    yield "<answer>" * 300_000 + "</answer>"
    yield "</answer>" * 300_000 + "<answer>"
    yield " " * 2_000_000
    yield "*".join(["999999999"] * 400)


@pytest.mark.parametrize("template", ["compact", "base"])
def test_hostile_texts_cost_no_time(template):
    for text in hostile_texts():
        start = time.process_time()
        assert compute_score("countdown", text, {**ALL, "template": template}) in (0.0, 0.1)
        assert time.process_time() - start < 0.5


def test_the_longest_possible_computation_is_short():
    """Evaluation is reached only with the task's own numbers; even 409 of nine digits take milliseconds."""
    numbers = [999_999_999 - i for i in range(409)]
    answer = "/".join(map(str, numbers))
    start = time.process_time()
    assert score(answer, {"target": 1, "numbers": numbers, "template": "compact"}) == 0.1
    assert score(answer.replace("/", "+"), {"target": sum(numbers), "numbers": numbers, "template": "compact"}) == 1.0
    assert time.process_time() - start < 0.5


GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner) | st.sets(st.integers())
    ),
    max_leaves=8,
)
TOKENS = st.lists(
    st.sampled_from(
        ["3", "14", "5", "0", "99", "+", "-", "*", "/", "(", ")", "=", " ", "**", ".", "<answer>", "</answer>"]
    ),
    max_size=40,
).map("".join)


@settings(deadline=500, max_examples=400)
@given(text=TOKENS | st.text() | GARBAGE, source=GARBAGE, extra=GARBAGE)
def test_no_completion_raises(text, source, extra):
    for template in ("compact", "base"):
        assert compute_score(source, text, {**ALL, "template": template}, extra) in (0.0, 0.1, 1.0)


KEYS = st.sampled_from(["target", "numbers", "operators", "template", "operator_group"])


@settings(deadline=500, max_examples=400)
@given(
    truth=st.dictionaries(KEYS, GARBAGE | st.lists(st.integers(0, 20))) | GARBAGE, extra=st.dictionaries(KEYS, GARBAGE)
)
def test_no_ground_truth_raises(truth, extra):
    for text in ("3*14-5", "<answer>3*14-5</answer>"):
        assert compute_score("countdown/plus", text, truth, extra) in (0.0, 0.1, 1.0)


@pytest.mark.parametrize("completion", [None, b"3*14-5", 37, ["3*14-5"], float("nan")])
def test_a_completion_that_is_no_text_scores_nothing(completion):
    assert score(completion) == 0.0


@pytest.mark.parametrize(
    ("target", "numbers"),
    [
        (np.int64(37), np.array([3, 14, 5])),
        (37.0, [3.0, 14.0, 5.0]),
        (np.float64(37), np.array([3, 14, 5], np.int32)),
        (37, (3, 14, 5)),
        (np.array(37), [np.int8(3), np.uint16(14), 5]),
    ],
)
def test_ground_truth_may_have_the_types_that_parquet_readers_give(target, numbers):
    assert score("3*14-5", {"target": target, "numbers": numbers, "template": "compact"}) == 1.0


@pytest.mark.parametrize(
    "truth",
    [
        None,
        "{}",
        {},
        {"target": 37},
        {"target": 37, "numbers": None},
        {"target": 37, "numbers": []},
        {"target": 37, "numbers": ["3", "14", "5"]},
        {"target": 37.5, "numbers": [3, 14, 5]},
        {"target": np.array([37, 38]), "numbers": [3, 14, 5]},
        {"target": 37, "numbers": np.array([[3, 14, 5]])},
        {"target": 37, "numbers": 3},
        {"target": float("inf"), "numbers": [3, 14, 5]},
    ],
)
def test_an_unusable_ground_truth_scores_nothing(truth):
    assert compute_score("countdown", "3*14-5", truth) == 0.0
    with pytest.raises(UserError, match="ground_truth is"):
        countdown_reward(["p"], ["3*14-5"], [truth])


EXPRESSIONS = st.recursive(
    st.integers(0, 50).map(lambda n: (str(n), Fraction(n), [n])),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: combined(*parts)),
    max_leaves=8,
)


def combined(left, symbol, right):
    """Bracketed text, exact value (None after a division by zero) and numbers of ``left symbol right``."""
    if left[1] is None or right[1] is None or (symbol == "/" and right[1] == 0):
        value = None
    else:
        value = {"+": left[1].__add__, "-": left[1].__sub__, "*": left[1].__mul__, "/": left[1].__truediv__}[symbol](
            right[1]
        )
    return f"({left[0]}{symbol}{right[0]})", value, left[2] + right[2]


@settings(deadline=500)
@given(expression=EXPRESSIONS)
def test_values_agree_with_a_direct_computation(expression):
    text, value, numbers = expression
    whole = value is not None and value.denominator == 1
    truth = {"target": int(value) if whole else 37, "numbers": numbers, "template": "compact"}
    assert score(text, truth) == (1.0 if whole else 0.1)
    assert score(text, {**truth, "target": truth["target"] + 1}) == 0.1


def test_parse_gives_postfix_order():
    assert parse("3*14-(5+1)") == [3, 14, "*", 5, 1, "+", "-"]
    assert parse("8÷4") == [8, 4, "/"]
    assert extract_answer("x <answer> 8/4\n</answer> y") == " 8/4\n"


def test_reward_reads_columns_and_messages():
    """TRL's contract: keyword lists, one entry a completion; other columns are ignored."""
    rewards = countdown_reward(
        prompts=["p"] * 4,
        completions=["8-4", "8-4", [{"role": "assistant", "content": "<answer>8-4</answer>"}], [{"role": "assistant"}]],
        ground_truth=[{"target": 4, "numbers": [4, 8]}] * 4,
        operator_group=["plus", "plus_minus", "plus_minus", "plus_minus"],
        template=["compact", "compact", "base", "base"],
        data_source=["countdown/plus_minus"] * 4,
        task=["a"] * 4,
        trainer_state=None,
    )
    assert rewards == [0.1, 1.0, 1.0, 0.0]
    assert [is_success(reward) for reward in rewards] == [False, True, True, False]
    by_source = countdown_reward(
        ["p"], ["8-4"], [{**ALL, "target": 4, "numbers": [4, 8]}], data_source=["countdown/plus"]
    )
    assert by_source == [0.1]


def test_reward_without_ground_truth_names_the_missing_column():
    with pytest.raises(UserError, match="one ground_truth for each completion"):
        countdown_reward(prompts=["p"], completions=["3"])


def test_importing_the_verifier_loads_neither_torch_nor_numpy():
    code = (
        "import sys, contrl.rewards.countdown as c\n"
        "assert c.compute_score('', '1+2', {'target': 3, 'numbers': [1, 2], 'template': 'compact'}) == 1\n"
        "sys.exit(bool({'torch', 'transformers', 'numpy', 'pyarrow', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
