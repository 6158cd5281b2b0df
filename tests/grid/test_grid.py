"""A covering sample of method x strategy x whole weights or adapter, and every pair that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from contrl.experiment import METHODS, STRATEGIES
from contrl.models import load as loading
from tests import runs as small
from tests.grid.pairs import PAGE, VARIANTS, Pair, every_pair, sample
from tests.runs import Runs

world, runs = small.world, small.runs


def test_every_strategy_has_a_column_and_a_page() -> None:
    assert STRATEGIES.keys() <= VARIANTS.keys()
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in VARIANTS if f"| {name} |" not in text] == []


def test_refused_pairs_are_those_of_the_page(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is refused without loading a model, and says what works instead."""

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loading, "read_model", never)
    rows = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and (cells := line.strip("| ").split(" | "))
    }
    for pair in every_pair():
        sign = rows[pair.strategy][list(METHODS).index(pair.method)]
        refusal = pair.refusal(runs.world)
        assert bool(refusal) == (sign == "–" or (sign == "LoRA" and not pair.adapter)), (pair, refusal)
        if refusal:
            why, _, fix = refusal.partition("; instead: ")
            assert why
            assert any(name in fix for name in (*STRATEGIES, *METHODS, "use_peft", "space")), refusal


@pytest.mark.slow
def test_a_covering_sample_runs(runs: Runs, tmp_path: Path) -> None:
    allowed = [pair for pair in every_pair() if not pair.refusal(runs.world)]
    chosen = sample(allowed)
    for name in (*METHODS, *VARIANTS):
        assert sum(name in (pair.method, pair.strategy) for pair in chosen) >= 2, name
    assert {pair.adapter for pair in chosen} == {False, True}
    for number, pair in enumerate(chosen):
        pair.run(runs.world, tmp_path / str(number))


def test_a_run_that_diverges_is_noticed(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the losses can fail."""
    monkeypatch.setattr("tests.grid.pairs.metric", lambda run, name: {(1, 1): float("nan")})
    with pytest.raises(AssertionError, match="losses"):
        Pair("sft", "naive", False).run(runs.world, tmp_path / "run")
