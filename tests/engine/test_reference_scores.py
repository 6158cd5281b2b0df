"""The reference's table: equal to asking the live model, found again on disk, and never a number of other weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import CPU, Setup, build, make_engine, pair_rows, ragged_groups, with_lora

from contrl.engine.batching import to_batch
from contrl.engine.forward import Routing
from contrl.engine.reference_rows import ReferenceRows, digest_of, key_of
from contrl.engine.reference_scores import PassSettings, ReferenceScores, contrasts
from contrl.interfaces import Completion, Method
from contrl.methods.dpo import DPO
from contrl.methods.sft import SFT
from contrl.models.reference import Reference


class Moving(SFT):
    """A method whose reference follows the policy."""

    sync_every = 2


def settings(model: Any, layout: Any = "shared") -> PassSettings:
    return PassSettings(model, Routing(layout), 64, CPU, lambda: torch.autocast("cpu", enabled=False))


def scores_of(model: Any, cache: Path | None = None, **options: Any) -> ReferenceScores:
    return ReferenceScores(lambda: Reference(model, "previous"), is_policy=True, cache=cache, **options)


def move(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)


@pytest.mark.parametrize("adapter", [False, True])
def test_cached_equals_live_while_the_policy_moves(adapter: bool) -> None:
    """Within 1e-6 of their size; the table needs no copy of the weights, rows from outside the stage do."""
    model = with_lora(build("llama")) if adapter else build("llama")
    groups, batch = ragged_groups(), to_batch(ragged_groups(), CPU)
    cached, live = scores_of(model), scores_of(model)
    cached.prepare(SFT(), [groups], settings(model), outside=False)
    live.prepare(SFT(), [], settings(model), outside=True)
    assert cached.live is None
    move(model)
    found, asked = cached.logps(batch, settings(model)), live.logps(batch, settings(model))
    torch.testing.assert_close(found, asked, rtol=1e-6, atol=1e-6)
    outside = ragged_groups(seed=9)
    with pytest.raises(RuntimeError, match="no reference"):
        cached.logps(to_batch(outside, CPU), settings(model))


def test_a_reference_that_moves_is_asked_live() -> None:
    model = build("llama")
    scores = scores_of(model)
    scores.prepare(Moving(), [ragged_groups()], settings(model), outside=False)
    assert not scores.rows.values
    assert scores.live is not None


def test_the_table_is_found_again_by_the_content_of_weights_and_rows(tmp_path: Path) -> None:
    """A second stage with equal weights computes nothing; with other weights it finds nothing to mistake for them."""
    model = build("llama")
    scores_of(model, tmp_path).prepare(SFT(), [ragged_groups()], settings(model), outside=False)
    (file,) = tmp_path.iterdir()
    again = scores_of(model, tmp_path)
    before = file.stat().st_mtime_ns
    again.prepare(SFT(), [ragged_groups()], settings(model), outside=False)
    assert file.stat().st_mtime_ns == before
    move(model)
    scores_of(model, tmp_path).prepare(SFT(), [ragged_groups()], settings(model), outside=False)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_broken_file_is_no_table(tmp_path: Path) -> None:
    model = build("llama")
    path = tmp_path / f"{digest_of(model, None, 1.0)}.safetensors"
    path.write_bytes(b"not tensors")
    scores = scores_of(model, tmp_path)
    scores.prepare(SFT(), [ragged_groups()], settings(model), outside=False)
    assert scores.rows.find(to_batch(ragged_groups(), CPU)) is not None
    loaded = ReferenceRows()
    loaded.load(path)
    assert loaded.values.keys() == scores.rows.values.keys()


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    model = build("llama")
    (tmp_path / "file").write_text("", encoding="utf-8")
    scores_of(model, tmp_path / "file" / "cache").prepare(SFT(), [ragged_groups()], settings(model), outside=False)


def test_contrasts_are_in_the_table() -> None:
    model, groups = build("llama"), ragged_groups()
    groups[0].contrast = Completion([4, 5, 6])
    scores = scores_of(model)
    scores.prepare(SFT(), [groups], settings(model), outside=False)
    (alone,) = contrasts(groups)
    assert alone.prompt_ids == groups[0].prompt_ids
    assert scores.rows.find(to_batch([alone], CPU)) is not None


def test_keys_tell_apart_what_gives_other_numbers() -> None:
    """The cut between prompt and completion, the tokens and the mask; not the weight."""
    keys = {
        key_of([1, 2], Completion([3])),
        key_of([1], Completion([2, 3])),
        key_of([1, 2], Completion([4])),
        key_of([1, 2], Completion([3], trained=[False])),
    }
    assert len(keys) == 4
    assert key_of([1, 2], Completion([3], weight=2.0)) in keys
    assert isinstance(SFT(), Method)


@pytest.mark.parametrize("tokens", [10**6, 60])
def test_in_half_precision_the_first_loss_is_log_2_too(tokens: int, tmp_path: Path) -> None:
    """The table is filled in the passes of the first epoch, so bf16 rounds policy and reference alike."""
    setup = Setup(DPO(), pair_rows(11), tokens_per_pass=tokens, training={"bf16": True, "learning_rate": 0.0})
    engine = make_engine(build("llama", vocab_size=103), tmp_path, setup)
    engine.fit()
    losses = [entry["loss"] for entry in engine.state.log_history if "loss" in entry]
    assert losses == pytest.approx([math.log(2)] * 2, abs=1e-6)
