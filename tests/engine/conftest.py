"""Makes ``toys`` importable for the tests of this folder and keeps a short stage short."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="session")
def libraries_are_not_garbage() -> Iterator[None]:
    """Every stage ends with a full collection (accelerate); the libraries' million objects need not be looked at."""
    importlib.import_module("toys")
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def one_thread_and_a_fixed_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
