"""Raw words to values: each trap of YAML's own guessing, and words that must stay words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contrl.config import scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5e5", 5e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1_000", 1000.0),
        ("-inf", -math.inf),
        (".inf", math.inf),
        ("+2E+3", 2000.0),
    ],
)
def test_numbers(text: str, value: float) -> None:
    assert scalars.parse_float(text) == value


@pytest.mark.parametrize("text", ["", "nan", ".nan", "1e", "1__0", "_1", "0x10", "1 2", "٣", "1e5e5", "--1", "."])
def test_not_numbers(text: str) -> None:
    assert scalars.parse_float(text) is None


@pytest.mark.parametrize(("text", "value"), [("012", 12), ("1_000", 1000), ("1e3", 1000), ("2.0", 2), ("-7", -7)])
def test_whole_numbers(text: str, value: int) -> None:
    assert scalars.parse_int(text) == value


@pytest.mark.parametrize("text", ["1.5", "1e-3", "inf", "1e300", "yes", "", "²"])
def test_not_whole_numbers(text: str) -> None:
    """1e300 is whole, but as a float it stands for no single integer."""
    assert scalars.parse_int(text) is None


@pytest.mark.parametrize("text", ["yes", "True", "ON"])
def test_yes(text: str) -> None:
    assert scalars.parse_bool(text) is True


@pytest.mark.parametrize("text", ["no", "False", "off"])
def test_no(text: str) -> None:
    assert scalars.parse_bool(text) is False


@pytest.mark.parametrize("text", ["1", "0", "y", "maybe", ""])
def test_neither_yes_nor_no(text: str) -> None:
    assert scalars.parse_bool(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("null", None),
        ("none", "none"),
        ("true", True),
        ("no", "no"),
        ("3", 3),
        ("1e-3", 0.001),
        ("inf", "inf"),
    ],
)
def test_a_guess_follows_the_core_rules_of_yaml(text: str, value: object) -> None:
    guessed = scalars.guess(text)
    assert guessed == value
    assert type(guessed) is type(value)


@given(st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False)))
def test_a_number_written_is_the_number_read(value: bool | int | float) -> None:
    text = scalars.format_number(value)
    guessed = scalars.guess(text)
    assert guessed == value
    assert type(guessed) is type(value)


@given(st.text())
def test_what_needs_no_quotes_is_read_as_text(text: str) -> None:
    if not scalars.is_ambiguous(text):
        assert scalars.guess(text) == text
        assert scalars.parse_bool(text) is scalars.parse_int(text) is scalars.parse_float(text) is None
        assert not scalars.is_null(text)
