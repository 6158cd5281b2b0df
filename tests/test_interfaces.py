"""The contracts' small pieces of behaviour: sequences, stages, counts, defaults of the hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from contrl.interfaces import (
    LIKELIHOOD,
    Batch,
    Completion,
    Context,
    Group,
    LossOutput,
    Method,
    OnlineMethod,
    Outputs,
    Pool,
    Stage,
    Strategy,
    Task,
    TaskSequence,
)

TASKS = [Task("a", []), Task("b", [])]


def context(model: nn.Module) -> Context:
    sequence = TaskSequence.in_order(TASKS)
    tokenizer: Any = None
    return Context(model, tokenizer, Method(), sequence, sequence.stages[0], seed=0)


def test_a_sequence_holds_tasks_and_its_stages_visit_them() -> None:
    """Two rounds of two tasks: stages 1 to 4, rounds 1, 1, 2, 2; ``sequence[i]`` is a task, not a row or stage."""
    sequence = TaskSequence.in_order(TASKS, rounds=2)
    assert len(sequence) == 2
    assert sequence[1] is TASKS[1]
    assert sequence.stages == (
        Stage(1, ("a",), 1),
        Stage(2, ("b",), 1),
        Stage(3, ("a",), 2),
        Stage(4, ("b",), 2),
    )


def test_stages_may_hold_several_tasks_and_leave_some_out() -> None:
    """Tasks stand in the order in which they are first learnt, those that are only judged last."""
    tasks = [Task(name, []) for name in "abcd"]
    sequence = TaskSequence.staged(tasks, [("d", "b"), ("a",)], rounds=2)
    assert [task.name for task in sequence.tasks] == ["d", "b", "a", "c"]
    assert sequence.stages == (
        Stage(1, ("d", "b"), 1),
        Stage(2, ("a",), 1),
        Stage(3, ("d", "b"), 2),
        Stage(4, ("a",), 2),
    )


def test_tasks_are_found_by_name() -> None:
    sequence = TaskSequence.in_order(TASKS)
    assert sequence.task("b") is TASKS[1]
    with pytest.raises(KeyError, match="c"):
        sequence.task("c")


def test_stage_folders_are_named_by_number_and_tasks() -> None:
    assert Stage(3, ("plus",)).folder == "3-plus"
    assert Stage(1, ("plus", "minus")).folder == "1-plus+minus"
    assert len(Stage(1, tuple(f"task-{i}" for i in range(99))).folder) < 200, "a file system takes 255 bytes"


def test_trained_tokens_are_all_unless_flagged() -> None:
    assert Completion([4, 5, 6]).num_trained() == 3
    assert Completion([4, 5, 6], trained=[True, False, True]).num_trained() == 2
    assert Completion([]).num_trained() == 0


def test_the_default_metric_is_the_likelihood() -> None:
    assert (LIKELIHOOD.name, LIKELIHOOD.score) == ("logp", None)


def test_an_online_method_teaches_groups_with_an_advantage() -> None:
    silent = Group("0", "a", [1], [Completion([2]), Completion([3])])
    taught = Group("1", "a", [1], [Completion([2], advantage=-0.5), Completion([3])])
    assert not OnlineMethod().teaches(silent)
    assert OnlineMethod().teaches(taught)
    assert not OnlineMethod().teaches(Group("2", "a", [1], []))


def test_params_are_the_trained_ones_under_their_own_names() -> None:
    """Wrappers of DDP (``module.``) and FSDP (``_fsdp_wrapped_module.``) leave no trace in the names."""
    inner = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    inner[0].weight.requires_grad_(False)
    plain = [name for name, _ in context(inner).params()]
    assert plain == ["0.bias", "1.weight", "1.bias"]
    wrapped = nn.ModuleDict({"module": inner})
    assert [name for name, _ in context(wrapped).params()] == plain
    sharded = nn.Sequential(nn.ModuleDict({"_fsdp_wrapped_module": nn.Linear(2, 1)}))
    assert [name for name, _ in context(sharded).params()] == ["0.weight", "0.bias"]
    assert next(p for _, p in context(inner).params()) is inner[0].bias


def test_a_strategy_without_hooks_changes_nothing() -> None:
    strategy, ctx = Strategy(), context(nn.Linear(1, 1))
    rows: list[Any] = [(TASKS[0], {"id": "0"})]
    batch = Batch([], *(torch.zeros(0) for _ in range(5)))
    out = Outputs(torch.zeros(0))
    assert strategy.rows(ctx, rows) is rows
    assert strategy.draw(ctx, 8) == []
    assert strategy.weights(ctx, batch) is None
    assert strategy.count(ctx, []) == {}
    assert strategy.loss(ctx, batch, out) is None
    assert strategy.state_dict() == {}
    with strategy.eval_weights(ctx, ctx.sequence[0]):
        pass


def test_adding_a_loss_is_seen_from_the_class() -> None:
    """Groups without advantage are skipped only when no strategy learns from them."""

    class Adds(Strategy):
        def loss(self, ctx: Context, batch: Batch, out: Outputs) -> LossOutput | None:
            return None

    assert not Strategy().adds_loss
    assert Adds().adds_loss


def test_what_a_method_must_define_says_so() -> None:
    tokenizer: Any = None
    with pytest.raises(NotImplementedError):
        Method().prepare({}, tokenizer)
    with pytest.raises(NotImplementedError):
        Method().count([])
    with pytest.raises(NotImplementedError):
        OnlineMethod().credit([], Pool())
