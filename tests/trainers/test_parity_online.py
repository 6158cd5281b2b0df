"""Six steps of RLOO and GRPO are TRL 1.16's on the same rollouts: ``benchmarks/parity_online.py --record``.

Loss, norm of the gradient and reward of every step, through both trainers' own configurations; tolerance 1e-4.
"""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PEER = json.loads((ROOT / "tests" / "golden" / "parity-online-trl-1.16.0.json").read_text(encoding="utf-8"))


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/parity_online.py: rollouts, settings and how contrl's steps are run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("parity_online")


@pytest.mark.parametrize("name", PEER["steps"])
def test_the_first_six_steps_are_the_peers(name: str, parity: Any) -> None:
    (case,) = [case for case in parity.CASES if case.name == name]
    make, tokenizer = parity.make_model("tiny", classifier=False)
    ours = parity.run_contrl(case, make(), copy.deepcopy(tokenizer))
    theirs = PEER["steps"][name]
    assert len(ours) == len(theirs) == 6
    assert parity.differences(ours, theirs) == pytest.approx(dict.fromkeys(parity.SHOWN, 0.0), abs=1e-4)


def test_every_case_is_recorded(parity: Any) -> None:
    assert [case.name for case in parity.CASES] == list(PEER["steps"])
