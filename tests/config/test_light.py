"""Configuration is what every command needs before it answers, so importing it must cost next to nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate", "numpy", "pyarrow", "rich", "contrl.interfaces")
MEASURE = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"


def python(script: str) -> str:
    """What a fresh interpreter prints."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def seconds(modules: str) -> float:
    """Processor time of an import: the least of five, since other processes can only add to it."""
    return min(float(python(MEASURE.format(modules))) for _ in range(5))


def test_loading_and_explaining_a_configuration_loads_nothing_heavy() -> None:
    script = (
        "import sys, contrl.config as c\n"
        "text = 'output_dir: o\\nmodel: tiny\\nmethod: m\\ntasks: [{name: a, data: hub/a, learning_rate: 1e-5}]\\n'\n"
        "c.show(c.load(text, resolve=lambda kind, name: lambda: None)); c.explain('training.optim')\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert python(script).strip() == "[]"


def test_the_import_costs_little_more_than_yaml_and_the_standard_library() -> None:
    """Measured here: 53 ms of which 31 ms are the modules below; twice their time leaves room for noise only."""
    ground = seconds("yaml, dataclasses, typing, inspect, pathlib, hashlib, json, difflib, ast")
    assert seconds("contrl.config") < 2.2 * ground
