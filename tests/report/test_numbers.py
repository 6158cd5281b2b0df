"""Digits of the report."""

import pytest

from contrl.continual.results import Cell
from contrl.report.numbers import item_counts, margin, number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.974, "0.97"),
        (-0.214, "-0.21"),
        (-0.001, "0.00"),
        (0.0, "0.00"),
        (-3.2, "-3.20"),
        (1234.5, "1234"),
        (None, "–"),
    ],
)
def test_number(value, text):
    assert number(value) == text


def test_margin_is_the_longer_side():
    """Wilson at 1.0 of 500 reaches from 0.9924 to 1: 0.0076 below, nothing above."""
    assert margin(Cell(1.0, 0.0, 500)) == "0.01"
    assert margin(Cell(0.5, 0.1, 500)) == "0.20"
    assert margin(Cell(0.5)) is None


def test_item_counts():
    assert item_counts([Cell(0.5, 0.1, 500), Cell(0.4, 0.1, 500)]) == "500"
    assert item_counts([Cell(0.5, 0.1, 500), Cell(0.4, 0.1, 480), Cell(0.1)]) == "480–500"
    assert item_counts([Cell(0.5)]) == ""
