"""A small world of plugins for `load` to look up, and what every test here does with it: load, or be refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest

from contrl.config import Resolved, load
from contrl.errors import ConfigErrors, UserError

if TYPE_CHECKING:
    import torch

BASIC = """\
output_dir: runs/mine
model: tiny
method: rloo
strategies: [naive, {name: replay, share: 0.25}]
tasks:
  - name: plus
    data: hub/plus
    training: {learning_rate: 2e-5}
  - name: minus
    data: hub/minus
training:
  learning_rate: 1e-5
  max_steps: 40
"""
"""A valid file; ``learning_rate`` of the run stands on line 12."""


@dataclass(frozen=True)
class Schedule:
    start: float = 1.0
    kind: Literal["flat", "linear"] = "flat"


@dataclass(frozen=True)
class RLOO:
    """Like a method of contrl: text annotations, a type only checkers know, and a rule of its own."""

    needs: ClassVar[frozenset[str]] = frozenset()
    samples_per_prompt: int = 8
    beta: float = 0
    loss_type: tuple[str, ...] = ("sigmoid",)
    schedule: Schedule = field(default_factory=Schedule)
    weights: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.samples_per_prompt < 2:
            raise ValueError(f"samples_per_prompt must be at least 2, found {self.samples_per_prompt}")


@dataclass(frozen=True)
class SFT:
    pass


class Replay:
    """A strategy that is a plain class."""

    def __init__(self, share: float = 0.5, folder: Path | None = None) -> None:
        self.share, self.folder = share, folder


def countdown(max_number: int = 9, groups: tuple[str, ...] = ("plus",), *, shuffle=False):
    """A named sequence; ``shuffle`` has no annotation."""


@dataclass(frozen=True)
class Strict:
    """A strategy with a field that has no default."""

    coef: float


KNOWN: dict[tuple[str, str], Any] = {
    ("method", "rloo"): RLOO,
    ("method", "sft"): SFT,
    ("strategy", "naive"): SFT,
    ("strategy", "replay"): Replay,
    ("strategy", "strict"): Strict,
    ("strategy", "odd"): 3,
    ("sequence", "countdown"): countdown,
    ("reward", "exact"): len,
    ("reward", "exact_match"): len,
    ("reward", "my_rewards:score"): len,
    ("metric", "success"): len,
}


def find(kind: str, name: str) -> Any:
    if (kind, name) not in KNOWN:
        raise UserError(f"unknown {kind} {name!r}", fix="known: " + ", ".join(n for k, n in KNOWN if k == kind))
    return KNOWN[kind, name]


Load = Callable[..., Resolved]
Refused = Callable[..., list[str]]


@pytest.fixture(scope="session")
def resolved() -> Load:
    """Load text, a path or a mapping; text is called demo.yaml."""

    def run(given: str | Path | Mapping[str, Any] = BASIC, overrides: Sequence[str] = ()) -> Resolved:
        is_text = isinstance(given, str) and "\n" in given
        return load(given, overrides, resolve=find, source="demo.yaml" if is_text else None)

    return run


@pytest.fixture(scope="session")
def refused(resolved: Load) -> Refused:
    """The mistakes of a configuration, each as one line "where: what"."""

    def run(given: str | Path | Mapping[str, Any] = BASIC, overrides: Sequence[str] = ()) -> list[str]:
        with pytest.raises(ConfigErrors) as caught:
            resolved(given, overrides)
        return [f"{error.where}: {error.what}" for error in caught.value.errors]

    return run


@pytest.fixture(scope="session")
def basic() -> str:
    return BASIC
