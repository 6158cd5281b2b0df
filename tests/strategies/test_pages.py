"""Every strategy has a page, and every field of it stands there with its default."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from contrl.experiment import STRATEGIES, find

DOCS = Path(__file__).parents[2] / "docs" / "strategies"


def defaults(name: str) -> dict[str, str]:
    """Field -> default as the page gives them, from rows like ``| `online`, `decay` | false, 1 | why |``."""
    found: dict[str, str] = {}
    for line in (DOCS / f"{name}.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) >= 2:
            names, values = re.findall(r"`(\w+)`", cells[0]), [value.strip(" `") for value in cells[1].split(",")]
            if names and len(names) == len(values):
                found |= dict(zip(names, values, strict=True))
    return found


def same(written: str, value: Any) -> bool:
    """Numbers by value; nothing at all is written as none, null, all or left empty."""
    if isinstance(value, bool):
        return written == str(value).lower()
    if isinstance(value, int | float):
        return float(written) == float(value)
    return written in (("none", "null", "all", "", "method's or 64") if value is None else (str(value),))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_field_stands_on_its_page_with_its_default(name: str) -> None:
    strategy, written = find("strategy", name)(), defaults(name)
    fields = [field.name for field in dataclasses.fields(strategy) if field.init]
    assert {field for field in fields if field not in written} == set()
    wrong = {f: (written[f], getattr(strategy, f)) for f in fields if not same(written[f], getattr(strategy, f))}
    assert wrong == {}
