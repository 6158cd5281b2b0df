"""Fault points: off unless armed, and exact about the visit."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import contrl
from contrl import faults

SOURCE = Path(contrl.__file__).parent


def test_an_armed_point_raises_at_its_visit_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_armed", {})
    faults.reach("training")
    faults.arm("training", 2)
    faults.reach("saving")
    faults.reach("training")
    with pytest.raises(faults.Killed):
        faults.reach("training")
    faults.reach("training")


def test_nothing_catches_it_by_accident() -> None:
    assert not issubclass(faults.Killed, Exception)


def test_unknown_points_are_refused() -> None:
    with pytest.raises(ValueError, match="no fault point 'sleeping'; known: training, sampling"):
        faults.arm("sleeping", 1)


def test_the_environment_kills_for_real() -> None:
    script = "from contrl.faults import reach\nfor visit in (1, 2, 3): reach('saving'); print(visit, flush=True)"
    environment = {"CONTRL_FAULT": "saving:3", "PYTHONPATH": str(SOURCE.parent)}
    outcome = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == -signal.SIGKILL
    assert outcome.stdout.split() == ["1", "2"]


def test_every_point_is_somewhere_in_the_code_and_known() -> None:
    texts = [path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py") if path.name != "faults.py"]
    assert {name for text in texts for name in re.findall(r'reach\("(\w+)"\)', text)} == set(faults.POINTS)
