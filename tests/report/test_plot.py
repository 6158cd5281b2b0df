"""Curves in characters: known pictures, a mean of many values, a line between few, nothing from stage to stage."""

from hypothesis import given
from hypothesis import strategies as st

from contrl.report.plot import bounds, draw


def test_known_pictures() -> None:
    """A rising line over two characters is ⡠⠊; in ASCII every value has its cell."""
    rising = [[(float(x), float(x)) for x in range(4)]]
    assert draw(rising, 2, 1, 4, 0, 3) == ["⡠⠊"]
    assert draw(rising, 4, 4, 4, 0, 3, ascii=True) == ["   *", "  * ", " *  ", "*   "]
    assert draw([[(0.0, 1.0), (3.0, 1.0)]], 4, 3, 4, 1, 1, ascii=True) == ["    ", "****", "    "]


def test_many_values_are_averaged_and_few_are_joined() -> None:
    many = [[(x / 100, 0.0 if x % 2 else 1.0) for x in range(400)]]
    assert draw(many, 4, 3, 4, 0, 1, ascii=True) == ["    ", "****", "    "]
    assert draw([[(0.0, 0.0), (3.0, 3.0)]], 4, 4, 4, 0, 3, ascii=True) == ["   *", "  * ", " *  ", "*   "]


def test_a_steep_line_has_no_holes_and_stages_are_not_joined() -> None:
    assert draw([[(0.0, 0.0), (1.0, 3.0)]], 2, 4, 2, 0, 3, ascii=True) == [" *", " *", " *", "* "]
    apart = [[(0.0, 0.0)], [(3.0, 3.0)]]
    assert draw(apart, 4, 4, 4, 0, 3, ascii=True) == ["   *", "    ", "    ", "*   "]


def test_bounds() -> None:
    assert bounds([[(0, 2.0)], [(1, -1.0), (2, 5.0)]]) == (-1.0, 5.0)
    assert bounds([]) is None


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.floats(-1e300, 1e300)), min_size=1, max_size=50),
    st.integers(1, 30),
    st.integers(1, 6),
    st.booleans(),
)
def test_any_curve_fits_its_box(points: list[tuple[int, float]], width: int, height: int, ascii: bool) -> None:
    curve = [sorted({float(x): y for x, y in points}.items())]
    scale = bounds(curve)
    assert scale is not None
    lines = draw(curve, width, height, 1000, *scale, ascii=ascii)
    assert [len(line) for line in lines] == [width] * height
    assert any(line.strip() for line in lines)
