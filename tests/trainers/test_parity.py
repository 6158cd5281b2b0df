"""The loss of each of the first ten steps is TRL 1.16's: curves recorded by ``benchmarks/parity.py --record``.

Same rows in the same order, the same weights, float32, TRL's settings; tolerance 1e-4.
"""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from contrl.methods.kto import KTO

ROOT = Path(__file__).parents[2]
PEER = json.loads((ROOT / "tests" / "golden" / "parity-trl-1.16.0.json").read_text(encoding="utf-8"))
FAST = {
    "SFT, messages",
    "Reward",
    "DPO sigmoid",
    "DPO ipo",
    "DPO robust",
    "DPO sigmoid + 0.5 sft",
    "KTO, TRL's mismatched answers",
    "CPO sigmoid",
    "ORPO",
}


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/parity.py: rows, settings and how a curve is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("parity")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in PEER["losses"]]
)
def test_the_first_ten_steps_are_the_peers(name: str, parity: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = [case for case in parity.CASES if case.name == name]
    make, tokenizer = parity.make_model(PEER["model"], case.method == "Reward")
    # Both get the peer's mismatched answers; contrl's own do not depend on the batch.
    monkeypatch.setattr(KTO, "pair", lambda self, groups, seed: parity.neighbours(groups, seed))
    curve = parity.run_contrl(case, make(), copy.deepcopy(tokenizer), parity.make_rows(case.rows))
    assert [line["loss"] for line in curve] == pytest.approx(PEER["losses"][name], abs=1e-4)


def test_every_case_is_recorded(parity: Any) -> None:
    assert {case.name for case in parity.CASES} == PEER["losses"].keys()
    assert PEER["losses"].keys() >= FAST
