"""Rollout windows: K = epochs x minibatches steps on one set of rollouts, exact ratios, exact state."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from toys import Setup, digits, farthest, identical, make_engine, policy, sft_rows, weights

from contrl.engine.arguments import steps_per_epoch
from contrl.engine.online import RolloutWindow, completion_metrics, describe_batch, noise_names
from contrl.interfaces import Batch, Completion, Group, LossOutput, Outputs, Pool, Rollouts
from contrl.methods.rloo import RLOO

MOVING = {"learning_rate": 1e-2, "optim": "adamw_torch", "lr_scheduler_type": "constant"}


def rollouts(names: Sequence[str], start: int = 0) -> Rollouts:
    return [Group(name, "now", [5, 6], [Completion([7, start + i])]) for i, name in enumerate(names)]


class Collecting:
    """Stands for sampling: gives each prompt two completions and remembers which prompts it was given."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, prompts: Sequence[Group]) -> Rollouts:
        self.asked.append([group.row_id for group in prompts])
        return [dataclasses.replace(group, completions=[Completion([1]), Completion([2])]) for group in prompts]


# --- the schedule -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (2, 1), (1, 3), (2, 3), (3, 2)])
def test_a_window_serves_its_steps_and_each_rollout_once_an_epoch(epochs: int, minibatches: int) -> None:
    method = RLOO(num_epochs=epochs, num_minibatches=minibatches)
    collect = Collecting()
    window = RolloutWindow(method, collect, (1, 2))
    assert window.length == epochs * minibatches
    names = [str(i) for i in range(7)]
    for number in range(2):
        seen: list[list[str]] = []
        for position in range(window.length):
            share, moved = window.step(number * window.length + position, lambda: rollouts(names))
            assert moved == (position > 0)
            seen.append([group.row_id for group in share])
        for epoch in range(epochs):
            part = seen[epoch * minibatches : (epoch + 1) * minibatches]
            assert sorted(row for step in part for row in step) == names
            assert max(map(len, part)) - min(map(len, part)) <= 1
    assert collect.asked == [names, names]


def test_minibatches_are_mixed_anew_each_epoch_and_window() -> None:
    window = RolloutWindow(RLOO(num_epochs=2, num_minibatches=2), Collecting(), (1, 2))
    names = [str(i) for i in range(20)]
    firsts = [tuple(g.row_id for g in window.step(step, lambda: rollouts(names))[0]) for step in range(8)][::2]
    assert len({frozenset(first) for first in firsts}) == 4


def test_golden_schedule_of_seventeen_prompts(tmp_path: Path) -> None:
    """TRL: batch 6, 4 batches a generation, 4 samples, 2 iterations, 17 prompts, 3 epochs: 48 micro-steps; the first 8
    share one batch of 24 samples = 6 prompts x 4, in order.

    Here the same in prompts and optimizer steps: a window of 6 prompts x 4 samples (3 minibatches of 2 prompts)
    serves 2 x 3 = 6 steps. TRL drops the last 5 of 17 prompts in every epoch (2 windows of 8 micro-steps, 3 epochs:
    48); none is dropped here: 3 windows an epoch, 3 x 3 x 6 = 54 steps.
    """
    method = RLOO(samples_per_prompt=4, max_new_tokens=1, num_epochs=2, num_minibatches=3)
    assert steps_per_epoch(17, 2, method) == 18
    sampled: list[list[str]] = []
    used: list[list[str]] = []

    class Spy(RLOO):
        def credit(self, groups: Rollouts, pool: Pool) -> dict[str, tuple[float, float]]:
            sampled.append([group.row_id for group in groups])
            assert all(len(group.completions) == 4 for group in groups)
            return super().credit(groups, pool)

        def count(self, groups: Sequence[Group]) -> dict[str, float]:
            used.append([group.row_id for group in groups])
            return super().count(groups)

    spy = Spy(**dataclasses.asdict(method))
    engine = make_engine(policy(), tmp_path, Setup(spy, sft_rows(17), prompts_per_step=2, num_steps=54))
    engine.work.seed = None  # in order
    engine.fit()
    assert engine.state.global_step == len(used) == 54
    order = [str(i) for i in range(17)]
    assert sampled == [order[0:6], order[6:12], order[12:17]] * 3
    assert sorted(row for step in used[:6] for row in step) == sorted(order[:6] * 2)
    assert all(set(step) <= set(order[:6]) for step in used[:6])


def test_batch_arithmetic_in_words() -> None:
    assert describe_batch(RLOO(samples_per_prompt=4), 8) == "8 prompts x 4 samples = 32 completions a step"
    words = describe_batch(RLOO(samples_per_prompt=4, num_epochs=2, num_minibatches=3), 8)
    assert words.endswith("a window samples 24 prompts and serves 6 steps (2 epochs x 3 minibatches)")


# --- ratios ---------------------------------------------------------------------------------------------------


class Ratios(RLOO):
    """RLOO that writes down, for each pass, whether old logps were given and the ratio it would take."""

    seen: ClassVar[list[tuple[bool, float]]] = []

    def loss(self, out: Outputs, batch: Batch) -> LossOutput:
        old = out.logps.detach() if batch.old_logps is None else batch.old_logps
        ratio = ((out.logps.detach() - old) * batch.mask).sum(-1).exp()
        self.seen.append((batch.old_logps is not None, float((ratio - 1).abs().max())))
        return super().loss(out, batch)


def ratios(folder: Path, learning_rate: float) -> list[tuple[bool, float]]:
    Ratios.seen = []
    method = Ratios(samples_per_prompt=3, max_new_tokens=6, temperature=0.7, num_epochs=2, num_minibatches=2)
    training = MOVING | {"learning_rate": learning_rate}
    make_engine(policy(), folder, Setup(method, sft_rows(8), prompts_per_step=4, num_steps=8, training=training)).fit()
    return Ratios.seen


def test_the_first_step_of_a_window_has_ratio_exactly_one(tmp_path: Path) -> None:
    """Its old log-probabilities are its own, to the bit; the later three steps compare with the sampling policy."""
    seen = ratios(tmp_path, 1e-2)
    assert [given for given, _ in seen] == [False, True, True, True] * 2
    assert seen[0][1] == seen[4][1] == 0.0
    assert all(distance > 1e-3 for given, distance in seen if given)


def test_kept_logps_are_the_policys_own(tmp_path: Path) -> None:
    """With learning rate 0 the policy never moves, so the ratio stays 1 within rounding on every later step."""
    assert all(distance < 1e-4 for _, distance in ratios(tmp_path, 0.0))


def test_rollouts_are_sampled_by_the_weights_of_their_step(tmp_path: Path) -> None:
    """accelerate reads rows one batch ahead; sampling happens in the step, so nothing is stale.

    After two windows at lr 1e-2 the first step of the third still finds its own log-probabilities in the rollouts.
    """
    distances: list[float] = []

    class Fresh(RLOO):
        def loss(self, out: Outputs, batch: Batch) -> LossOutput:
            kept = [c.old_logps for group in batch.groups for c in group.completions]
            if batch.old_logps is None:
                distances.append(
                    max(
                        float((out.logps[i, : len(k)] - torch.tensor(k)).detach().abs().max())
                        for i, k in enumerate(kept)
                    )
                )
            return super().loss(out, batch)

    method = Fresh(samples_per_prompt=3, max_new_tokens=6, temperature=0.7, num_epochs=2)
    model = policy()
    before = weights(model)
    make_engine(model, tmp_path, Setup(method, sft_rows(12), prompts_per_step=4, num_steps=6, training=MOVING)).fit()
    assert len(distances) == 3
    assert max(distances) < 1e-4
    assert farthest(before, weights(model)) > 0.01


# --- state ------------------------------------------------------------------------------------------------------


def full_group() -> Group:
    completion = Completion(
        [3, 4], [True, False], 0.5, False, [-0.1, -1 / 3], [-0.25, -2 / 3], reward=None, advantage=1e-17
    )
    row = {"id": "r", "prompt": "1+1="}
    return Group("r", "earlier", [5, 6], [completion, Completion([7], reward=0.1)], row, True, False, 0.5)


def test_a_windows_state_survives_json_to_the_bit() -> None:
    """Every field of every rollout; the source row comes back from the task."""
    window = RolloutWindow(RLOO(num_epochs=2), Collecting(), (1, 2))
    window.rollouts = [full_group()]
    state = json.loads(json.dumps(window.state_dict(1)))
    other = RolloutWindow(RLOO(num_epochs=2), Collecting(), (1, 2))
    other.load_state_dict(state, lambda task, row_id: {"id": row_id, "prompt": "1+1=", "task": task} if task else None)
    revived = other.rollouts[0]
    assert dataclasses.asdict(revived) == dataclasses.asdict(full_group()) | {
        "row": {"id": "r", "prompt": "1+1=", "task": "earlier"}
    }
    assert other.state_dict(1) == window.state_dict(1)


def test_a_finished_window_needs_no_rollouts() -> None:
    window = RolloutWindow(RLOO(num_epochs=2, num_minibatches=2), Collecting(), (1, 2))
    window.rollouts = [full_group()]
    assert window.state_dict(8) == {"rollouts": []}
    assert len(window.state_dict(9)["rollouts"]) == 1


def test_a_resumed_window_continues_the_uninterrupted_one() -> None:
    """The shares of every step after a resume at step 5 of windows of 4 are those of the run that never stopped."""
    method = RLOO(num_epochs=2, num_minibatches=2)
    names = [str(i) for i in range(9)]

    def shares(window: RolloutWindow, steps: range) -> list[list[str]]:
        return [[g.row_id for g in window.step(step, lambda: rollouts(names))[0]] for step in steps]

    whole = RolloutWindow(method, Collecting(), (1, 2))
    wanted = shares(whole, range(12))
    first = RolloutWindow(method, Collecting(), (1, 2))
    shares(first, range(5))
    collect = Collecting()
    second = RolloutWindow(method, collect, (1, 2))
    second.load_state_dict(first.state_dict(5), lambda task, row_id: {})
    assert shares(second, range(5, 12)) == wanted[5:]
    assert collect.asked == [names]  # only the next window was sampled


# --- collecting ---------------------------------------------------------------------------------------------------


def test_collecting_samples_scores_and_credits_without_touching_its_prompts(tmp_path: Path) -> None:
    model = policy()
    method = RLOO(samples_per_prompt=3, max_new_tokens=5)
    engine = make_engine(model, tmp_path, Setup(method, sft_rows(4), prompts_per_step=4))
    prompts = engine.work.groups
    model.train()
    before = weights(model)
    state = torch.get_rng_state()
    made = engine.work.window.collect(prompts)
    assert model.training
    assert identical(before, weights(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(group.completions == [] for group in prompts)
    assert [group.row_id for group in made] == [group.row_id for group in prompts]
    for group in made:
        texts = [engine.processing_class.decode(c.ids, skip_special_tokens=True) for c in group.completions]
        assert [c.reward for c in group.completions] == digits(completions=texts)
        assert sum(c.advantage for c in group.completions) == pytest.approx(0, abs=1e-6)
        assert all(len(c.ids) == len(c.sampler_logps) == len(c.old_logps) <= 5 for c in group.completions)
    again = engine.work.window.collect(prompts)
    assert [[c.ids for c in g.completions] for g in again] == [[c.ids for c in g.completions] for g in made]
    engine.work.context.step = 1
    later = engine.work.window.collect(prompts)
    assert [[c.ids for c in g.completions] for g in later] != [[c.ids for c in g.completions] for g in made]


def test_sampling_takes_dropout_out_of_a_model_in_train_mode(tmp_path: Path) -> None:
    model = policy("gpt2", resid_pdrop=0.5)
    engine = make_engine(model, tmp_path, Setup(RLOO(max_new_tokens=5), sft_rows(4), prompts_per_step=4))
    drawn = []
    for training in (True, False):
        model.train(training)
        made = engine.work.window.collect(engine.work.groups)
        drawn.append([(c.ids, c.old_logps) for group in made for c in group.completions])
    assert drawn[0] == drawn[1]


def test_completion_lengths_are_told_as_sums_and_counts() -> None:
    """Lengths 2 (ended) and 4 (cut), 3 (ended): 9 of 3, one cut, 5 of 2 that ended."""
    groups = [
        Group("a", "t", [1], [Completion([1, 2]), Completion([1, 2, 3, 4], ended=False)]),
        Group("b", "t", [1], [Completion([1, 2, 3])]),
    ]
    assert completion_metrics(groups) == {
        "completions/mean_length": (9.0, 3.0),
        "completions/clipped_ratio": (1.0, 3.0),
        "completions/mean_terminated_length": (5.0, 2.0),
        "completions/min_length": (2.0, 1.0),
        "completions/max_length": (4.0, 1.0),
        "completions/min_terminated_length": (2.0, 1.0),
        "completions/max_terminated_length": (3.0, 1.0),
    }
    assert "completions/max_terminated_length" not in completion_metrics(
        [Group("a", "t", [1], [Completion([1], ended=False)])]
    )


def test_sampling_runs_without_dropout_and_training_too(tmp_path: Path) -> None:
    """Online methods train without dropout, or the ratio of the first step would not be 1."""
    Ratios.seen = []
    model = policy("gpt2", resid_pdrop=0.3, attn_pdrop=0.3, embd_pdrop=0.3)
    method = Ratios(samples_per_prompt=3, max_new_tokens=5, num_epochs=2)
    training: dict[str, Any] = MOVING | {"learning_rate": 0.0}
    make_engine(model, tmp_path, Setup(method, sft_rows(4), prompts_per_step=4, training=training)).fit()
    assert [given for given, _ in Ratios.seen] == [False, True]
    assert all(distance < 1e-4 for _, distance in Ratios.seen)
    assert model.transformer.drop.p == 0.3


def test_a_row_that_occurs_twice_in_a_rollout_is_drawn_by_other_noise():
    """Replay may draw one row twice; equal noise would give equal completions and teach nothing."""
    groups = [Group(row, task, [1], []) for task, row in (("a", "7"), ("b", "7"), ("a", "7"), ("a", "8"), ("a", "7"))]
    assert noise_names(groups) == ["a/7", "b/7", "a/7#1", "a/8", "a/7#2"]
