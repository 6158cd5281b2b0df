"""The programs in docs/trainers.md run as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import contrl
from tests.runs import ROOT, environment

TEXT = (ROOT / "docs" / "trainers.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
NAMES = ("one data set", "a sequence", "GRPO", "PPO")
CASES = [
    pytest.param(program, id=name, marks=[pytest.mark.slow] if name in NAMES[2:] else [])
    for name, program in zip(NAMES, PROGRAMS, strict=True)
]


@pytest.mark.parametrize("program", CASES)
def test_a_program_of_the_page_runs(program: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning:contrl", "-c", program],
        cwd=tmp_path,
        env=environment(tmp_path / "cache"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    folder = re.search(r'output_dir="([\w/-]+)"', program)
    assert folder is not None
    assert (tmp_path / folder[1] / "model.safetensors").exists()


def test_every_name_of_the_page_can_be_imported() -> None:
    names = re.findall(r"`(\w+)`", TEXT[TEXT.index("Also importable") :])
    assert len(names) == 16, "contrl itself and fifteen more"
    assert not [name for name in names[1:] if not hasattr(contrl, name)]
    trainers = re.findall(r"`(\w+Trainer)`", TEXT)
    assert len(set(trainers)) == 9
    for name in trainers:
        assert hasattr(contrl, name)
        assert hasattr(contrl, name.replace("Trainer", "Config"))
