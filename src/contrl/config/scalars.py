"""What the raw text of one YAML scalar means, decided by the type of the field it is given to.

YAML's own guesses are not used: to PyYAML ``1e-5`` is text, ``no`` is false and ``012`` is ten. Here the
field decides, so ``learning_rate: 1e-5`` is a number and a task may be called ``no``.
"""

from __future__ import annotations

import math
import re

TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
NULL = ("", "~", "null", "none")

# ASCII on purpose: int() and float() also accept digits of every other script.
_INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_NUMBER = re.compile(r"[+-]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INFINITY = re.compile(r"[+-]?\.?(inf|infinity)", re.IGNORECASE)
_EXACT = 2**53  # up to here every integer is a float of its own, so 1e3 is one integer and no other


def parse_bool(text: str) -> bool | None:
    """``true/yes/on`` and ``false/no/off`` in any case; None for anything else."""
    word = text.lower()
    return True if word in TRUE else False if word in FALSE else None


def parse_int(text: str) -> int | None:
    """Decimal digits (``1_000``, ``012`` is twelve) or a number that is whole (``1e3``); None for anything else."""
    if _INTEGER.fullmatch(text):
        return int(text)
    number = parse_float(text)
    return int(number) if number is not None and abs(number) <= _EXACT and number.is_integer() else None


def parse_float(text: str) -> float | None:
    """``0.1``, ``1e-5``, ``1_000``, ``inf``; None for anything else. NaN is refused: no setting means it."""
    if _NUMBER.fullmatch(text):
        return float(text)
    if _INFINITY.fullmatch(text):
        return -math.inf if text.startswith("-") else math.inf
    return None


def is_null(text: str) -> bool:
    """Whether unquoted text stands for "no value" in a field that may have none."""
    return text.lower() in NULL


def is_whole(text: str) -> bool:
    """Whether the text is written as an integer, not merely equal to one: tells 1 row from the share 1.0."""
    return _INTEGER.fullmatch(text) is not None


def guess(text: str) -> bool | int | float | str | None:
    """The value of unquoted text where no type is known (dictionaries passed through to other libraries)."""
    if text.lower() in ("", "~", "null"):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if is_whole(text):
        return int(text)
    number = parse_float(text)
    # The bare words inf and infinity are text here; only YAML's own .inf is the number.
    return text if number is None or (math.isinf(number) and "." not in text) else number


def format_number(value: bool | int | float) -> str:
    """The text that every reader above turns back into the same value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    return repr(value)


def is_ambiguous(text: str) -> bool:
    """Whether the text needs quotes to stay text: it reads as a number, a yes or no, nothing, or a list."""
    if is_null(text) or parse_bool(text) is not None or parse_float(text) is not None:
        return True
    return "," in text or text == "<<"
