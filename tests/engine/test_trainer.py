"""One optimizer step, however it is cut: equal loss and gradient; guards, counts, metrics and hooks of the loop."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from toys import (
    FROZEN,
    Recorder,
    Settled,
    Setup,
    farthest,
    identical,
    make_engine,
    policy,
    sft_rows,
    trace,
    weights,
    with_lora,
)
from transformers import Trainer

from contrl.engine.reference_scores import ReferenceScores
from contrl.engine.trainer import Engine
from contrl.errors import GuardStop
from contrl.interfaces import Batch, Context, Group, LossOutput, Outputs, Strategy
from contrl.methods.rloo import RLOO
from contrl.methods.sft import SFT
from contrl.models.reference import Reference
from contrl.strategies.composite import Composite
from contrl.strategies.naive import Naive
from contrl.strategies.replay import Replay

METHODS = {"sft": SFT(), "rloo": RLOO(samples_per_prompt=3, max_new_tokens=6)}
SPLITS: dict[str, tuple[dict[str, Any], int]] = {
    "8 x 1": ({"gradient_accumulation_steps": 8}, 10**6),
    "2 x 4": ({"gradient_accumulation_steps": 2}, 10**6),
    "token budget": ({}, 40),
    "a pass a group": ({"gradient_accumulation_steps": 4}, 1),
}


def strategy(name: str) -> Strategy:
    """Fresh, with something remembered of the task "earlier" where it replays."""
    replay = Replay(share=0.5)
    replay.memory = {"earlier": [str(i) for i in range(100, 110)]}
    return {"none": Naive(), "settled": Settled(), "both": Composite([Settled(), replay])}[name]


def setup(method: str, strategies: str = "none", **changes: Any) -> Setup:
    """21 rows in steps of 8: the last block is partial."""
    training = FROZEN | changes.pop("training", {})
    return Setup(
        METHODS[method], sft_rows(21), strategy(strategies), earlier=sft_rows(10, 100), training=training, **changes
    )


# --- every split is the same step ---------------------------------------------------------------------------


@pytest.mark.parametrize("strategies", ["none", "settled", "both"])
@pytest.mark.parametrize("method", ["sft", "rloo"])
def test_every_split_of_a_step_has_the_same_loss_and_gradient(method: str, strategies: str, tmp_path: Path) -> None:
    """1e-5 relative, over 3 steps of which the last is partial; the strategy has a loss, weights and a penalty."""
    whole = trace(policy(), tmp_path, setup(method, strategies))
    assert len(whole.losses) == len(whole.gradients) == 3
    for split, (training, tokens) in SPLITS.items():
        part = trace(policy(), tmp_path, setup(method, strategies, training=training, tokens_per_pass=tokens))
        assert part.losses == pytest.approx(whole.losses, rel=1e-5, abs=1e-6), split
        for a, b in zip(whole.gradients, part.gradients, strict=True):
            assert farthest(a, b) < 1e-5, split


def test_a_strategys_terms_are_in_the_gradient(tmp_path: Path) -> None:
    """The splits above would agree on nothing, too: with the strategy the gradient is another one."""
    plain = trace(policy(), tmp_path, setup("sft", num_steps=1))
    settled = trace(policy(), tmp_path, setup("sft", "settled", num_steps=1))
    replayed = trace(policy(), tmp_path, setup("sft", "both", num_steps=1))
    assert farthest(plain.gradients[0], settled.gradients[0]) > 0.01
    assert farthest(settled.gradients[0], replayed.gradients[0]) > 0.01


def test_splits_agree_under_lora(tmp_path: Path) -> None:
    whole = trace(with_lora(policy()), tmp_path, setup("sft", "both"))
    part = trace(with_lora(policy()), tmp_path, setup("sft", "both", tokens_per_pass=30))
    assert part.losses == pytest.approx(whole.losses, rel=1e-5)
    assert max(farthest(a, b) for a, b in zip(whole.gradients, part.gradients, strict=True)) < 1e-5


def test_the_loss_is_the_mean_over_the_steps_tokens(tmp_path: Path) -> None:
    """Against the model's own cross-entropy over all trained tokens of the step, nothing of ours between."""
    model = policy()
    engine = make_engine(model, tmp_path, setup("sft", num_steps=1, prompts_per_step=21))
    groups = engine.work.groups
    total, tokens = 0.0, 0
    for group in groups:
        ids = torch.tensor([group.prompt_ids + group.completions[0].ids])
        labels = ids.clone()
        labels[0, : len(group.prompt_ids)] = -100
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * len(group.completions[0].ids)
        tokens += len(group.completions[0].ids)
    engine.fit()
    log = engine.state.log_history[0]
    assert log["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert log["num_tokens"] == tokens
    assert log["logps/mean"] == pytest.approx(-total / tokens, rel=1e-5)


@pytest.mark.parametrize("split", ["8 x 1", "token budget", "checkpointing"])
def test_the_trajectory_is_the_same_for_every_split(split: str, tmp_path: Path) -> None:
    """12 AdamW steps at lr 1e-3: the splits' rounding does not grow into another training run."""
    training, tokens = SPLITS.get(split, ({"gradient_checkpointing": True}, 10**6))
    moving = {"learning_rate": 1e-3, "optim": "adamw_torch", "max_grad_norm": 1.0}
    whole = trace(policy(), tmp_path, setup("sft", num_steps=12, training=moving))
    part = trace(policy(), tmp_path, setup("sft", num_steps=12, training=moving | training, tokens_per_pass=tokens))
    assert whole.losses[-1] < whole.losses[0] - 0.1
    assert part.losses == pytest.approx(whole.losses, abs=1e-4)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("method", ["sft", "rloo"])
def test_bf16_mixed_precision_trains_the_same_step_roughly(method: str, adapter: bool, tmp_path: Path) -> None:
    """The whole loop under accelerate's autocast, full and LoRA: layout as in float32, gradient within bf16's rounding.

    The settled term keeps RLOO's loss, whose advantages sum to 0, away from 0.
    """

    def model() -> Any:
        return with_lora(policy()) if adapter else policy()

    whole = trace(model(), tmp_path, setup(method, "settled", num_steps=1))
    half = trace(model(), tmp_path, setup(method, "settled", num_steps=1, training={"bf16": True}))
    assert half.engine.routing.layout == whole.engine.routing.layout
    if method == "sft":  # sampling in bf16 draws other tokens
        assert half.losses == pytest.approx(whole.losses, rel=2e-2)
        assert 0 < farthest(whole.gradients[0], half.gradients[0]) < 0.1
    assert {g.dtype for g in half.gradients[0].values()} == {torch.float32}
    assert all(torch.isfinite(g).all() for g in half.gradients[0].values())


def test_gradient_checkpointing_uses_the_plain_layout_with_equal_gradients(tmp_path: Path) -> None:
    shared = trace(policy(), tmp_path, setup("rloo"))
    plain = trace(policy(), tmp_path, setup("rloo", training={"gradient_checkpointing": True}))
    assert shared.engine.routing.layout == "shared"
    assert plain.engine.routing.layout == "plain"
    assert "checkpointing" in plain.engine.layout_reason
    assert max(farthest(a, b) for a, b in zip(shared.gradients, plain.gradients, strict=True)) < 1e-5


def test_a_cache_that_cannot_be_repeated_trains_in_the_plain_layout(tmp_path: Path) -> None:
    """The whole loop on a hybrid of convolutions and attention, whose cache the sampler and the layouts expand."""
    engine = make_engine(policy("starcoder2"), tmp_path, setup("rloo", num_steps=1))
    engine.fit()
    assert engine.routing.layout == "shared"
    model = policy("lfm2")
    offline = make_engine(model, tmp_path, dataclasses.replace(setup("sft", num_steps=1), strategy=Naive()))
    offline.fit()
    assert offline.routing.layout == "plain"


# --- counts, steps, rows --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Diary(Strategy):
    """Writes down which hooks run, in order, and which rows every step trains."""

    name = "diary"
    entries: list[str] = dataclasses.field(default_factory=list)
    rows: list[list[str]] = dataclasses.field(default_factory=list)

    def count(self, ctx: Context, groups: Sequence[Group]) -> dict[str, float]:
        self.entries.append("count")
        self.rows.append(sorted(group.row_id for group in groups))
        return {}

    def loss(self, ctx: Context, batch: Batch, out: Outputs) -> LossOutput | None:
        self.entries.append("loss")
        return None

    def penalty(self, ctx: Context) -> None:
        assert all(p.grad is not None for _, p in ctx.params())
        self.entries.append("penalty")

    def project(self, ctx: Context) -> None:
        self.entries.append("project")

    def after_step(self, ctx: Context) -> None:
        self.entries.append(f"after_step {ctx.step}")


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_hooks_run_once_per_optimizer_step_in_their_order(accumulation: int, tmp_path: Path) -> None:
    """24 rows in steps of 4 are 6 steps, whatever the accumulation; counts come before any forward."""
    diary = Diary()
    training = FROZEN | {"gradient_accumulation_steps": accumulation}
    engine = make_engine(policy(), tmp_path, Setup(SFT(), sft_rows(24), diary, prompts_per_step=4, training=training))
    engine.fit()
    assert engine.state.global_step == 6
    assert diary.entries == [e for i in range(6) for e in ("count", "loss", "penalty", "project", f"after_step {i}")]
    assert sorted(row for rows in diary.rows for row in rows) == sorted(str(i) for i in range(24))


def test_a_pass_in_which_a_parameter_takes_no_part_leaves_it_gradient_zero(tmp_path: Path) -> None:
    """Zero and not none, so that the optimizer treats it like the others: here nothing at all is taught."""

    def constant(*, completions: list[str], **columns: list) -> list[float]:
        return [1.0] * len(completions)

    engine = make_engine(policy(), tmp_path, Setup(METHODS["rloo"], sft_rows(8), training=FROZEN, reward=constant))
    recorder = Recorder()
    engine.add_callback(recorder)
    engine.fit()
    assert all(not gradient.any() for gradient in recorder.gradients[0].values())
    assert recorder.gradients[0].keys() == weights(engine.work.context.model).keys()


def test_replayed_rows_that_cannot_be_used_are_left_out(tmp_path: Path) -> None:
    """A row refused in its own stage (here: without a completion) is in the memory still; drawing it stops nothing."""
    replay = Replay(share=1.0)
    earlier = [*sft_rows(3, 100), {"id": "bad", "prompt": "1+1="}]
    replay.memory = {"earlier": [row["id"] for row in earlier]}
    diary = Diary()
    made = Setup(SFT(), sft_rows(4), Composite([replay, diary]), earlier, prompts_per_step=4, training=FROZEN)
    make_engine(policy(), tmp_path, made).fit()
    assert diary.rows == [sorted([*"0123", "100", "101", "102"])]


def test_drawn_rows_are_marked_as_replayed_and_counted(tmp_path: Path) -> None:
    """Share 0.5 of 8 rows: 4 old ones join, the 8 current ones stay; the totals are over all 12."""
    seen: list[tuple[str, bool]] = []

    class Spy(SFT):
        def count(self, groups: Sequence[Group]) -> dict[str, float]:
            seen.extend((group.task, group.is_replay) for group in groups)
            return super().count(groups)

    made = dataclasses.replace(setup("sft", "both", num_steps=1), method=Spy())
    make_engine(policy(), tmp_path, made).fit()
    assert sorted(seen) == [("earlier", True)] * 4 + [("now", False)] * 8


# --- guards -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Poison(Strategy):
    """Puts a NaN into the gradient of the second step."""

    name = "poison"

    def penalty(self, ctx: Context) -> None:
        if ctx.step == 1:
            next(p for _, p in ctx.params()).grad.view(-1)[0] = math.nan


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_a_number_stops_the_run_before_the_step(clip: float, tmp_path: Path) -> None:
    """transformers would log the last good loss and step into NaN weights (logging_nan_inf_filter)."""
    model = policy()
    training = {"learning_rate": 1e-2, "max_grad_norm": clip}
    engine = make_engine(model, tmp_path, Setup(SFT(), sft_rows(24), Poison(), training=training))
    assert engine.args.logging_nan_inf_filter is False
    with pytest.raises(GuardStop, match="not finite at step 2"):
        engine.fit()
    assert engine.state.global_step == 1
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert "forward" not in model.__dict__


def test_a_stop_request_ends_after_the_step_with_a_checkpoint(tmp_path: Path) -> None:
    made = setup("sft", num_steps=3)
    engine = make_engine(policy(), tmp_path, made)
    engine.work.should_stop = lambda: engine.state.global_step >= 1
    engine.fit()
    assert engine.stopping
    assert engine.state.global_step == 1
    assert (tmp_path / "checkpoint-1" / "model.safetensors").exists()


# --- the reference --------------------------------------------------------------------------------------------------


class Compared(SFT):
    """SFT that asks for the reference and writes down how far the policy is from it."""

    needs: ClassVar[frozenset[str]] = frozenset({"policy_logps", "reference_logps"})
    distances: ClassVar[list[float]] = []

    def loss(self, out: Outputs, batch: Batch) -> LossOutput:
        assert batch.reference_logps is not None
        assert not batch.reference_logps.requires_grad
        self.distances.append(float((out.logps.detach() - batch.reference_logps).abs().max()))
        return super().loss(out, batch)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("live", [False, True])
def test_the_reference_is_the_start_of_the_stage_and_stays_there(adapter: bool, live: bool, tmp_path: Path) -> None:
    """Step 1 compares equal weights; step 3 is away from them by what an engine without reference moves as well.

    From the table filled before the first step or from a frozen copy: the same.
    """
    Compared.distances.clear()
    model = with_lora(policy()) if adapter else policy()
    # Three steps of 4 of the 21 rows are less than an epoch, for which a table is not worth filling.
    training = {"learning_rate": 1e-2, "optim": "adamw_torch"}
    made = setup("sft", num_steps=3, prompts_per_step=4 if live else 8, training=training)
    engine = make_engine(model, tmp_path, dataclasses.replace(made, method=Compared()))
    engine.work.reference = ReferenceScores(lambda: Reference(model, "previous"), is_policy=True)
    engine.fit()
    assert (engine.work.reference.live is None) is not live
    first, _, third = Compared.distances
    assert first < 1e-5
    assert third > 0.05
    other = with_lora(policy()) if adapter else policy()
    trace(other, tmp_path, made)
    assert identical(weights(model), weights(other))


# --- what is logged -----------------------------------------------------------------------------------------------


def test_metrics_are_means_over_all_steps_and_passes_since_the_last_line(tmp_path: Path) -> None:
    """3 steps of 8, 8 and 5 rows with one log line: each metric is its sum over its count, not a mean of means."""
    one = trace(policy(), tmp_path, setup("sft", training={"logging_steps": 1}))
    all_three = trace(policy(), tmp_path, setup("sft", training={"logging_steps": 3}, tokens_per_pass=40))
    assert len(all_three.logs) == 1
    totals = [0, *(log["num_tokens"] for log in one.logs)]
    tokens = [after - before for before, after in itertools.pairwise(totals)]
    wanted = sum(n * log["entropy"] for n, log in zip(tokens, one.logs, strict=True)) / sum(tokens)
    assert all_three.logs[0]["entropy"] == pytest.approx(wanted, rel=1e-5)
    assert all_three.logs[0]["num_tokens"] == sum(tokens)
    assert all_three.logs[0]["seconds"] > 0


def test_silent_groups_are_skipped_with_the_same_gradient_and_the_share_is_logged(tmp_path: Path) -> None:
    """Reward 1 for a prompt's length being even, else the digits: about half of the groups teach nothing."""

    def half(*, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        return [
            1.0 if len(p) % 2 == 0 else float(sum(c.isdigit() for c in t))
            for p, t in zip(prompts, completions, strict=True)
        ]

    ran: dict[str, int] = {"Skipping": 0, "Fixed": 0}

    class Skipping(RLOO):
        def loss(self, out: Outputs, batch: Batch) -> LossOutput:
            ran[type(self).__name__] += len(batch.groups)
            return super().loss(out, batch)

    class Fixed(Skipping):
        def teaches(self, group: Group) -> bool:
            return True

    sampling = {"samples_per_prompt": 3, "max_new_tokens": 6}
    made = dataclasses.replace(setup("rloo"), reward=half)
    skipped = trace(policy(), tmp_path, dataclasses.replace(made, method=Skipping(**sampling)))
    run = trace(policy(), tmp_path, dataclasses.replace(made, method=Fixed(**sampling)))
    assert max(farthest(a, b) for a, b in zip(skipped.gradients, run.gradients, strict=True)) < 1e-5
    share = [log["frac_reward_zero_std"] for log in skipped.logs]
    assert all(0 < value < 1 for value in share)
    silent = sum(value * rows for value, rows in zip(share, (8, 8, 5), strict=True))
    assert ran == {"Skipping": round(21 - silent), "Fixed": 21}
    assert [log["frac_reward_zero_std"] for log in run.logs] == share  # what the rewards say, not what is run


def test_a_constant_reward_leaves_the_weights_bit_unchanged(tmp_path: Path) -> None:
    """4 AdamW steps at lr 0.1: no advantage, no gradient, no movement; 0.7 does not sum exactly, and must not show."""

    def constant(*, completions: list[str], **columns: list) -> list[float]:
        return [0.7] * len(completions)

    model = policy()
    before = weights(model)
    training = {"learning_rate": 0.1, "logging_steps": 1}
    made = Setup(METHODS["rloo"], sft_rows(16), training=training, reward=constant, num_steps=4, prompts_per_step=4)
    engine = make_engine(model, tmp_path, made)
    engine.fit()
    assert identical(before, weights(model))
    assert [log["frac_reward_zero_std"] for log in engine.state.log_history if "loss" in log] == [1.0] * 4
    assert engine.optimizer.param_groups[0]["weight_decay"] == 0.0


def test_learning_rate_zero_changes_no_bit(tmp_path: Path) -> None:
    model = policy()
    before = weights(model)
    trace(model, tmp_path, setup("rloo", training={"learning_rate": 0.0, "optim": "adamw_torch"}))
    assert identical(before, weights(model))


def test_a_null_strategy_is_bit_identical_to_an_empty_composite(tmp_path: Path) -> None:
    moving = {"learning_rate": 1e-2, "optim": "adamw_torch"}
    models = [policy(), policy()]
    for model, chosen in zip(models, (Naive(), Composite([])), strict=True):
        trace(model, tmp_path, dataclasses.replace(setup("sft", training=moving), strategy=chosen))
    assert identical(weights(models[0]), weights(models[1]))
    assert not identical(weights(models[0]), weights(policy()))


def test_the_engine_names_no_method_and_no_strategy() -> None:
    """The loop is blind to both: its module refers to interfaces only."""
    import contrl.engine.trainer as module

    names = {getattr(value, "__module__", "") for value in vars(module).values()}
    assert not {name for name in names if str(name).startswith(("contrl.methods", "contrl.strategies"))}
    assert issubclass(Engine, Trainer)
