"""Countdown's verifier: reads an arithmetic answer written by a model and scores it, exactly and within bounds.

Model text is never executed. One pass over bounded text turns the answer into postfix order, the numbers
and operators are compared with the task first, and only then is anything computed, in exact fractions. The
file needs the standard library alone, so a veRL worker or a judge without torch can import it.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from contrl.errors import UserError

# contrl.data.countdown holds the same table: data and rewards do not import each other, a test keeps them equal.
OPERATORS: dict[str, str] = {
    "plus": "+",
    "plus_minus": "+-",
    "plus_minus_mul": "+-*",
    "plus_minus_mul_div": "+-*/",
}
"""Operators of each group, the newest last."""

CORRECT, WRONG, MALFORMED = 1.0, 0.1, 0.0

MAX_ANSWER_BYTES = 4096
"""Longer answers are malformed. Together with nine digits a number this bounds the time of a score."""
MAX_DEPTH = 64
"""Deeper nested parentheses are malformed."""

_SPACE = " \t\r\n"
_NUMBER = "0|[1-9][0-9]{0,8}"  # as written by hand: no sign, no leading zero, at most nine ASCII digits
_TOKEN = re.compile(rf"[{_SPACE}]*(?:({_NUMBER})|([-+*/()]))")
_RESULT = re.compile(rf"[{_SPACE}]*({_NUMBER})")
_SYNONYMS = str.maketrans({"×": "*", "÷": "/", "−": "-"})
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


def compute_score(
    data_source: Any, solution_str: Any, ground_truth: Any, extra_info: Mapping[str, Any] | None = None
) -> float:
    """Score one completion: 1.0 correct, 0.1 a well-formed answer that is wrong, 0.0 otherwise. Never raises.

    The signature is veRL's (``custom_reward_function``). Correct means: every number of the task is used
    exactly once, no operator outside the group, and the exact value is the target.

    Args:
        data_source: ``countdown/<group>`` names the operator group; anything else is ignored.
        solution_str: the completion alone, decoded, without special tokens.
        ground_truth: ``target`` (int), ``numbers`` (ints), and optionally ``operators`` (``"+-"``) and
            ``template``. With the template ``compact`` the whole completion is the answer, with every other
            or none it is the last ``<answer>...</answer>``. Without target or numbers every score is 0.
        extra_info: may hold ``operator_group`` and, when ``ground_truth`` has none, ``template``.

    Every statement about operators counts: an operator must be allowed by the group of ``extra_info``, by
    the group of ``data_source`` and by ``operators``, as far as each is given.
    """
    problem = _read_problem(ground_truth)
    extra = extra_info if isinstance(extra_info, Mapping) else {}
    if problem is None or not isinstance(solution_str, str):
        return MALFORMED
    target, numbers = problem
    compact = "compact" in _strings(ground_truth.get("template"), extra.get("template"))[:1]
    answer = extract_answer(solution_str, compact=compact)
    if answer is None or len(answer) > MAX_ANSWER_BYTES or len(answer.encode("utf-8", "replace")) > MAX_ANSWER_BYTES:
        return MALFORMED
    expression, stated_result = _split_equation(answer)
    postfix = parse(expression)
    if postfix is None or stated_result == "":
        return MALFORMED
    groups = _strings(extra.get("operator_group"), str(data_source).removeprefix("countdown/"))
    allowed = _allowed_operators(groups, ground_truth.get("operators"))
    if (
        Counter(token for token in postfix if isinstance(token, int)) != numbers
        or not {token for token in postfix if isinstance(token, str)} <= allowed
        or (stated_result is not None and int(stated_result) != target)
    ):
        return WRONG
    return CORRECT if _evaluate(postfix) == target else WRONG


def countdown_reward(
    prompts: Sequence[Any], completions: Sequence[Any], ground_truth: Sequence[Any] | None = None, **columns: Any
) -> list[float]:
    """``compute_score`` for a list of completions, under TRL's contract for rewards.

    Args:
        prompts: not read.
        completions: strings, or message lists whose last message holds the answer.
        ground_truth: one mapping a completion, see ``compute_score``.
        **columns: the lists ``operator_group``, ``template`` and ``data_source`` are used when present.

    Raises:
        UserError: the data hold no usable ``ground_truth``; scores of 0 would hide that.
    """
    if ground_truth is None or len(ground_truth) != len(completions):
        raise UserError(
            "the countdown reward needs one ground_truth for each completion",
            why="every row must have a column ground_truth with its target and numbers",
            fix="write the rows with `contrl data countdown`, or add the column",
        )
    rewards = []
    for row, (completion, truth) in enumerate(zip(completions, ground_truth, strict=True)):
        if _read_problem(truth) is None:
            raise UserError(
                f"ground_truth is {truth!r}"[:200],
                where=f"completion {row} of the batch",
                why="it needs an integer target and a list of integer numbers",
                fix='write it like {"target": 22, "numbers": [3, 14, 5]}',
            )
        extra = {name: columns[name][row] for name in ("operator_group", "template") if columns.get(name) is not None}
        source = columns["data_source"][row] if columns.get("data_source") is not None else ""
        rewards.append(compute_score(source, _text(completion), truth, extra))
    return rewards


def is_success(score: float) -> bool:
    """Whether a score counts as solved: only 1.0 does, the partial 0.1 never."""
    return score == CORRECT


def extract_answer(completion: str, *, compact: bool = False) -> str | None:
    """The text of the last complete ``<answer>...</answer>``, None without one; ``compact``: the whole completion."""
    if compact:
        return completion
    start = completion.rfind("<answer>", 0, max(completion.rfind("</answer>"), 0))
    if start < 0:
        return None
    start += len("<answer>")
    return completion[start : completion.index("</answer>", start)]


def parse(text: str) -> list[int | str] | None:
    """Postfix order of an expression of integers, + - * / (or × ÷ −) and parentheses; None if malformed.

    Iterative (Dijkstra's shunting yard), so no nesting can exhaust the interpreter's stack. Signs before a
    number, decimals, ``**``, ``//``, other digits than 0-9 and numbers over nine digits are malformed.
    """
    text = text.translate(_SYNONYMS).strip(_SPACE)
    output: list[int | str] = []
    waiting: list[str] = []
    position = depth = 0
    operand_next = True
    while position < len(text):
        token = _TOKEN.match(text, position)
        # A number or "(" may stand only where an operand is due, an operator or ")" only where none is.
        if token is None or operand_next is not bool(token[1] or token[2] == "("):
            return None
        position = token.end()
        if token[1]:
            output.append(int(token[1]))
            operand_next = False
        elif token[2] == "(":
            waiting.append("(")
            depth += 1
            if depth > MAX_DEPTH:
                return None
        elif token[2] == ")":
            _release(waiting, output, 0)
            if not waiting:
                return None
            waiting.pop()
            depth -= 1
        else:
            _release(waiting, output, _PRECEDENCE[token[2]])
            waiting.append(token[2])
            operand_next = True
    _release(waiting, output, 0)
    return None if operand_next or waiting else output


def _release(waiting: list[str], output: list[int | str], precedence: int) -> None:
    """Move operators that bind at least as tightly to the output, back to the nearest open parenthesis."""
    while waiting and waiting[-1] != "(" and _PRECEDENCE[waiting[-1]] >= precedence:
        output.append(waiting.pop())


def _split_equation(answer: str) -> tuple[str, str | None]:
    """The expression, and the digits after one ``=``: None when there is no ``=``, "" when they are no number."""
    expression, equals, result = answer.partition("=")
    if not equals:
        return expression, None
    match = _RESULT.fullmatch(result.rstrip(_SPACE))
    return expression, match[1] if match else ""


def _evaluate(postfix: Sequence[int | str]) -> Fraction | None:
    """The exact value of a well-formed postfix expression; None for a division by zero."""
    stack: list[Fraction] = []
    for token in postfix:
        if isinstance(token, int):
            stack.append(Fraction(token))
            continue
        right, left = stack.pop(), stack.pop()
        if token == "/" and right == 0:
            return None
        operation = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}[token]
        stack.append(operation(left, right))
    return stack[0]


def _allowed_operators(groups: Sequence[str], operators: Any) -> set[str]:
    """The operators that every given statement allows; all four where nothing is stated."""
    allowed = set(_PRECEDENCE)
    for group in groups:
        allowed &= set(OPERATORS.get(group, allowed))
    if operators is not None:
        try:
            stated = set("".join(map(str, operators)).translate(_SYNONYMS)) & set(_PRECEDENCE)
        except TypeError:  # not a collection: it states nothing
            stated = set()
        allowed &= stated or allowed
    return allowed


def _read_problem(ground_truth: Any) -> tuple[int, Counter[int]] | None:
    """Target and numbers (with multiplicity) of a ground truth; numpy's forms, as parquet gives them, included."""
    if not isinstance(ground_truth, Mapping):
        return None
    target = _integer(ground_truth.get("target"))
    try:
        numbers = [_integer(number) for number in ground_truth.get("numbers", ())]
    except TypeError:
        return None
    integers = [number for number in numbers if number is not None]
    if target is None or not numbers or len(integers) < len(numbers):
        return None
    return target, Counter(integers)


def _integer(value: Any) -> int | None:
    """The value as int if it is one; pandas turns a column with a missing entry into floats, so 37.0 counts too."""
    try:
        return operator.index(value)
    except TypeError:
        return int(value) if isinstance(value, float) and value.is_integer() else None


def _strings(*values: Any) -> list[str]:
    """Those of the values that are non-empty strings."""
    return [value for value in values if isinstance(value, str) and value]


def _text(completion: Any) -> Any:
    """The text of a completion that may be a list of messages."""
    if isinstance(completion, str) or not isinstance(completion, Sequence) or not completion:
        return completion
    last = completion[-1]
    return last.get("content") if isinstance(last, Mapping) else None
