"""The studies that are shipped: every arm is valid, what is refused is what must be, and each strategy has an arm."""

from __future__ import annotations

from pathlib import Path

import pytest

from contrl.experiment import STRATEGIES
from contrl.study import reading
from contrl.study.checking import check
from tests.study.studies import is_strategy

STUDIES = Path(__file__).parents[2] / "recipes" / "studies"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "refused"),
    [("forgetting.yaml", ["cppo", "copr"]), ("forgetting_dpo.yaml", ["replay", "cppo"])],
)
def test_a_shipped_study_is_whole(file: str, refused: list[str]) -> None:
    outline = reading.read(STUDIES / file, [], is_strategy)
    assert len(outline.seeds) >= 3
    assert len(outline.orders) >= 2
    found = check(reading.read(STUDIES / file, ["seeds=[0]", "orders=[given]"], is_strategy), lambda text: None)
    arms = found.manifest.arms
    assert [arm.strategies[0] for arm in arms if arm.refused] == refused
    assert {name for arm in arms for name in arm.strategies} == set(STRATEGIES)
    assert len(found.runs) == len(arms) - len(refused)
