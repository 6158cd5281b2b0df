"""What a run will cost, by hand: operations, bytes, and the demo's known duration."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contrl.continual.estimate import (
    CALL,
    EFFICIENCY,
    Judged,
    Load,
    Size,
    describe,
    disk_bytes,
    judging_seconds,
    judging_tokens,
    readable,
    require_disk,
    seconds,
    speed,
)
from contrl.continual.rotation import Rotation
from contrl.errors import EnvironmentFault
from contrl.methods.rloo import RLOO
from contrl.methods.sft import SFT

OFFLINE = Load(SFT(), [10, 10], [Rotation(500, None)] * 2, 8, prompt_tokens=20, completion_tokens=5)
SIZE = Size(1_000_000, 1_000_000)


def test_an_offline_step_costs_six_operations_a_weight_and_token() -> None:
    """8 rows of 25 tokens are 200 tokens; 6 x 200 x 1e6 = 1.2e9 operations a step at half of 2.4e9 a second: 1 s."""
    assert EFFICIENCY == 0.5
    assert seconds(SIZE, OFFLINE, 2.4e9) == pytest.approx(20 * (1 + 3 * CALL))


def test_an_adapter_saves_the_gradient_of_the_frozen_weights() -> None:
    """Forward and the gradient of the activations remain: 4 of 6 operations."""
    assert seconds(Size(1_000_000, 0), OFFLINE, 2.4e9) == pytest.approx(20 * (4 / 6 + 3 * CALL))


def test_an_online_step_samples_what_it_trains_on() -> None:
    """Prompts once, four completions each: 8 x (20 + 4 x 5) = 320 tokens, 6 + 2 operations, and 16 calls."""
    online = replace(OFFLINE, method=RLOO(samples_per_prompt=4, max_new_tokens=16))
    arithmetic = 320 * 8e6 / (0.5 * 2.4e9)
    assert seconds(SIZE, online, 2.4e9) == pytest.approx(20 * (arithmetic + (3 + 16) * CALL))


def test_evaluations_are_counted() -> None:
    """3 x 100 sampled answers of 25 tokens, 2 operations: 3 x 5e9 operations, and 3 x 8 calls; a row with its own
    answer costs the same tokens and no call."""
    work = Judged(cells=3, sampled=300, calls=3, max_new_tokens=8)
    judged = replace(OFFLINE, steps=[], rotations=[], judged=work)
    assert seconds(SIZE, judged, 2.4e9) == pytest.approx(3 * (5e9 / 1.2e9 + 8 * CALL))
    forced = replace(judged, judged=Judged(cells=3, forced=300))
    assert judging_seconds(SIZE, forced, 2.4e9) == pytest.approx(3 * 5e9 / 1.2e9)
    assert judging_tokens(forced) == 300 * 25


def test_evaluations_are_told() -> None:
    lines = describe(None, replace(OFFLINE, judged=Judged(4, 200, 2, 60, max_new_tokens=8)), None)
    assert lines[-1] == (
        "judged   200 sampled answers of at most 8 tokens and 60 rows with their own answers "
        "in 4 evaluations of a task: about 6,500 tokens"
    )
    assert describe(None, OFFLINE, None)[-1].startswith("judged   nothing while training; contrl evaluate-checkpoints")
    (line,) = [
        each for each in describe(SIZE, replace(OFFLINE, judged=Judged(2, forced=10**9)), None) if "judged" in each
    ]
    assert line.endswith("100 % of the time")


def test_the_speed_is_measured_and_leaves_the_threads_alone() -> None:
    threads = torch.get_num_threads()
    assert 1e8 < speed() < 1e16
    assert torch.get_num_threads() == threads


def test_peak_disk() -> None:
    """Float32: base 4 MB, two stages of 4 MB, checkpoints of 12 MB: 5 + 5 stay, one more, one being written."""
    load = replace(OFFLINE, rotations=[Rotation(2, None)] * 2)
    assert disk_bytes(SIZE, load) == (4 + 2 * 4 + (10 + 2) * 12) * 1_000_000
    limited = replace(OFFLINE, rotations=[Rotation(2, 1)] * 2)
    assert disk_bytes(SIZE, limited) == (4 + 2 * 4 + (2 + 2) * 12) * 1_000_000
    none = replace(OFFLINE, rotations=[Rotation(None, None)] * 2)
    assert disk_bytes(SIZE, none) == (4 + 2 * 4 + 2 * 12) * 1_000_000
    # An adapter of a tenth: 0.4 MB of weights a stage, 1.2 MB a checkpoint.
    assert disk_bytes(Size(1_000_000, 100_000), none) == 4_000_000 + 2 * 400_000 + 2 * 1_200_000


def test_a_base_stage_still_to_be_trained_is_part_of_steps_and_time() -> None:
    base = replace(OFFLINE, steps=[10**9], rotations=[Rotation(None, None)])
    without, within = describe(SIZE, OFFLINE, None), describe(SIZE, OFFLINE, base)
    assert "time     about a minute or less (rough)" in without
    assert "steps    20 in 2 stages (10, 10), after 1,000,000,000 of the base" in within
    (minutes,) = [int(line.split()[2]) for line in within if line.startswith("time")]
    assert minutes > 1000


def test_a_model_still_to_be_fetched_has_a_batch_and_no_cost() -> None:
    assert [line.split()[0] for line in describe(None, OFFLINE, None)] == ["batch", "steps", "judged"]


def test_what_is_there_is_not_needed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 bytes needed and 60 free: 40 must lie in the folder, hard links counted once."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=60))
    run = tmp_path / "run"
    run.mkdir()
    (run / "file").write_bytes(b"x" * 39)
    (run / "link").hardlink_to(run / "file")
    with pytest.raises(EnvironmentFault, match="the run needs 61 B of disk and 60 B are free"):
        require_disk(run, 100)
    (run / "other").write_bytes(b"x")
    require_disk(run, 100)


def test_sizes_in_words() -> None:
    assert [readable(size) for size in (0, 999, 1000, 1_500_000, 2e9, 3.25e12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "2 MB",
        "2 GB",
        "3.2 TB",
    ]
