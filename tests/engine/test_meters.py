"""Means of sums and counts, and extremes, whatever the number of passes."""

from __future__ import annotations

import pytest
import torch

from contrl.engine.memory import peak_bytes
from contrl.engine.meters import Meters, extreme


def test_means_are_of_all_that_was_added_and_extremes_are_extremes() -> None:
    """Sums 3 and 5 of counts 2 and 2: mean 2. Of -1, 4, 2 the smallest is -1; one of count 0 is none."""
    meters = Meters()
    meters.add({"reward": (3.0, 2.0), "completions/min_length": (4.0, 1.0), "max_reward": (torch.tensor(4.0), 1.0)})
    meters.add({"reward": (torch.tensor(5.0), torch.tensor(2.0)), "completions/min_length": (-1.0, 1.0)})
    meters.add({"completions/min_length": (-9.0, 0.0), "max_reward": (torch.tensor(2.0), torch.tensor(3))})
    assert meters.read() == {"reward": 2.0, "completions/min_length": -1.0, "max_reward": 4.0}
    assert meters.read() == {}


def test_what_was_never_counted_is_not_reported() -> None:
    meters = Meters()
    meters.add({"kl": (0.0, 0.0), "sampling/sampling_logp_difference/max": (1.0, 0.0)})
    assert meters.read() == {}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("clip_ratio/low_min", "min"),
        ("a/max", "max"),
        ("max_reward", "max"),
        ("margin", ""),
        ("a/maximum", ""),
        ("rewards/max_words/mean", ""),
    ],
)
def test_extremes_are_known_by_a_whole_word(name: str, kind: str) -> None:
    assert extreme(name) == kind


def test_peak_memory_grows_with_what_is_held() -> None:
    """Of this process, on the machine: 64 MiB more are seen."""
    before = peak_bytes(torch.device("cpu"))
    assert before is not None
    assert before > 2**26
    held = torch.ones(2**26 // 4)
    after = peak_bytes(torch.device("cpu"))
    assert after is not None
    assert before <= after < 2**40
    assert held.numel()
