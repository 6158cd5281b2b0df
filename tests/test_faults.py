"""Fault points: silent unless armed, exact in their count, and a true SIGKILL when the environment asks for it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import contrl
from contrl.faults import POINTS, Killed, arm, reach

SOURCE = Path(contrl.__file__).parent


@pytest.fixture(autouse=True)
def _disarmed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CONTRL_FAULT", raising=False)
    yield
    for point in POINTS:
        arm(point, 0)


def test_nothing_happens_unless_armed() -> None:
    for point in POINTS:
        reach(point)


def test_the_armed_visit_is_the_one_that_stops_and_then_it_is_disarmed() -> None:
    arm("saving", 3)
    reach("saving")
    reach("training")
    reach("saving")
    with pytest.raises(Killed, match="saving"):
        reach("saving")
    reach("saving")


def test_zero_disarms() -> None:
    arm("sampling", 1)
    arm("sampling", 0)
    reach("sampling")


def test_unknown_points_are_refused() -> None:
    with pytest.raises(ValueError, match="no fault point 'savings'; known: training, sampling"):
        arm("savings", 1)


def test_no_handler_of_exceptions_catches_it() -> None:
    assert not issubclass(Killed, Exception)


def test_every_point_is_reached_somewhere_and_every_reached_point_is_known() -> None:
    texts = [path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py") if path.name != "faults.py"]
    assert {name for text in texts for name in re.findall(r"\breach\(\"(\w+)\"\)", text)} == set(POINTS)


def visits(fault: str) -> subprocess.CompletedProcess[str]:
    """A process that says each visit of two points before it is made."""
    program = (
        "import contrl.faults as f\n"
        "for n in range(3):\n"
        "    print(n, flush=True); f.reach('saving'); f.reach('training')\n"
    )
    environment = {**os.environ, "CONTRL_FAULT": fault, "PYTHONPATH": str(SOURCE.parent)}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(("fault", "printed"), [("saving", "0\n"), ("saving:1", "0\n"), ("training:2", "0\n1\n")])
def test_the_environment_kills_for_real(fault: str, printed: str) -> None:
    ended = visits(fault)
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, printed)


def test_a_visit_that_never_comes_kills_nothing() -> None:
    ended = visits("saving:4")
    assert (ended.returncode, ended.stdout) == (0, "0\n1\n2\n")
