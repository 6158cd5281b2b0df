"""Colours: viridis at its stops, text that can be read on every cell, tasks that differ by more than colour."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contrl.report.colours import (
    CHANGES,
    MARKS,
    VIRIDIS,
    cividis,
    diverging,
    mark_of,
    relative_luminance,
    text_on,
    viridis,
)


def test_viridis_at_its_stops_and_between():
    assert [viridis(stop / 10) for stop in range(11)] == list(VIRIDIS)
    assert viridis(-1) == VIRIDIS[0]
    assert viridis(2) == VIRIDIS[-1]
    assert viridis(0.05) == "#461264"  # halfway from #440154 to #482475: channels 70, 18.5, 100.5, rounded to even


@pytest.mark.parametrize(("colour", "luminance"), [("#ffffff", 1.0), ("#000000", 0.0), ("#ff0000", 0.2126)])
def test_relative_luminance(colour, luminance):
    assert relative_luminance(colour) == pytest.approx(luminance)


def test_changes_are_orange_below_and_blue_above():
    assert [diverging(value) for value in (-2, -1, 0, 1)] == [CHANGES[0], CHANGES[0], CHANGES[4], CHANGES[-1]]


@given(st.floats(-1, 1), st.sampled_from([viridis, cividis, diverging]))
def test_text_on_a_cell_has_a_contrast_of_at_least_4_5(share, colour):
    background = colour(share)
    lights = sorted([relative_luminance(background) + 0.05, relative_luminance(text_on(background)) + 0.05])
    assert lights[1] / lights[0] >= 4.5


def test_tasks_never_differ_by_colour_alone():
    marks = [mark_of(column) for column in range(2 * len(MARKS))]
    assert len({(mark.colour, mark.shape) for mark in marks}) == len(marks)
    for first in marks[: len(MARKS)]:
        assert sum(first.shape == other.shape for other in marks[: len(MARKS)]) == 1
