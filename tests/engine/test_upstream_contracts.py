"""The traps of transformers, accelerate and peft that the engine is built around: each test fails when one moves.

Where a test shows upstream doing the surprising thing, its failure is good news: the code around it can go. The
traps of the cache (checkpointing, positions, virtual tokens) are in test_shared_prompt.py, that of the random state
in test_resume.py, that of repeated rows in test_batching.py.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import FROZEN, Recorder, Settled, Setup, build, make_engine, policy, sft_rows, weights
from transformers import Trainer, TrainingArguments

from contrl.engine.trainer import Engine
from contrl.interfaces import Context, Strategy
from contrl.methods.rloo import RLOO
from contrl.methods.sft import SFT


def sft(**changes: Any) -> Setup:
    return Setup(**{"method": SFT(), "rows": sft_rows(24), "prompts_per_step": 4, "training": dict(FROZEN)} | changes)


# --- steps ----------------------------------------------------------------------------------------------------


class Merging(Engine):
    """What one would write first: all micro-batches of a step handed over as one."""

    def get_batch_samples(self, *args: Any) -> Any:
        batches, count = super().get_batch_samples(*args)
        return [[row for batch in batches for row in batch]], count


def test_merging_the_micro_batches_of_a_step_loses_steps(tmp_path: Path) -> None:
    """Trainer counts micro-batches, not calls: 6 steps of 4 micro-batches become 1 (and the training ends early)."""
    setup = sft(training=FROZEN | {"gradient_accumulation_steps": 4})
    right, wrong = make_engine(policy(), tmp_path, setup), make_engine(policy(), tmp_path, setup, Merging)
    steps = {}
    for name, engine in (("right", right), ("wrong", wrong)):
        recorder = Recorder()
        engine.add_callback(recorder)
        engine.fit()
        steps[name] = len(recorder.gradients)
    assert steps["right"] == right.state.global_step == 6
    assert steps["wrong"] < 6


def test_no_loss_is_divided_by_a_count_of_transformers(tmp_path: Path) -> None:
    """Trainer's token count never reaches us, its own division is off, and accelerate divides by one."""
    seen: list[Any] = []

    class Watched(Engine):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            seen.append(num_items_in_batch)
            return super().training_step(model, inputs, num_items_in_batch)

    training = FROZEN | {"gradient_accumulation_steps": 4, "average_tokens_across_devices": True}
    engine = make_engine(policy(), tmp_path, sft(training=training), Watched)
    engine.fit()
    assert seen == [None] * 24
    assert engine.loss_is_scaled_for_ga is True
    assert engine.args.average_tokens_across_devices is False
    assert engine.accelerator.gradient_accumulation_steps == 1


def test_clipping_comes_after_penalties(tmp_path: Path) -> None:
    """Trainer clips after ``training_step``, before ``on_pre_optimizer_step``: a penalty in the step is clipped."""
    engine = make_engine(
        policy(), tmp_path, sft(strategy=Settled(coef=10.0), training=FROZEN | {"max_grad_norm": 1e-3})
    )
    recorder = Recorder()
    engine.add_callback(recorder)
    engine.fit()
    for gradient in recorder.gradients:
        assert float(torch.stack([g.norm() for g in gradient.values()]).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_losss_nan_is_hidden_by_default() -> None:
    assert inspect.signature(TrainingArguments).parameters["logging_nan_inf_filter"].default is True


def test_columns_reach_the_reward(tmp_path: Path) -> None:
    """By default Trainer drops every column that the model's forward does not name."""
    assert inspect.signature(TrainingArguments).parameters["remove_unused_columns"].default is True
    got: list[dict[str, list]] = []

    def keep(*, completions: list[str], **columns: list) -> list[float]:
        got.append(columns)
        return [0.0] * len(completions)

    rows = [{**row, "answer": f"a{row['id']}"} for row in sft_rows(4)]
    method = RLOO(samples_per_prompt=2, max_new_tokens=2)
    engine = make_engine(policy(), tmp_path, Setup(method, rows, prompts_per_step=4, training=FROZEN, reward=keep))
    engine.fit()
    assert engine.args.remove_unused_columns is False
    assert sorted(got[0]["answer"]) == sorted(f"a{i}" for i in range(4) for _ in range(2))


# --- precision and wrappers ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class Precision(Strategy):
    """Notes the precision inside the forward and outside of it, and what lies on the model while it trains."""

    name = "precision"
    inside: set[torch.dtype] = dataclasses.field(default_factory=set)
    autocast_in_step: list[bool] = dataclasses.field(default_factory=list)
    attributes: set[str] = dataclasses.field(default_factory=set)

    def before(self, model: Any) -> Any:
        def note(module: Any, args: Any, out: torch.Tensor) -> None:
            self.inside.add(out.dtype)

        return model.model.layers[0].mlp.up_proj.register_forward_hook(note)

    def penalty(self, ctx: Context) -> None:
        self.autocast_in_step.append(torch.is_autocast_enabled("cpu"))
        self.attributes |= set(ctx.model.__dict__)


def test_autocast_is_ours_to_enter(tmp_path: Path) -> None:
    """Contract with transformers: ``training_step`` runs outside autocast. The engine's forwards run inside it."""
    model, notes = policy(), Precision()
    hook = notes.before(model)
    make_engine(model, tmp_path, sft(strategy=notes, training=FROZEN | {"bf16": True})).fit()
    hook.remove()
    assert notes.inside == {torch.bfloat16}
    assert notes.autocast_in_step == [False] * 6
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_calling_the_stack_below_bypasses_autocast(tmp_path: Path) -> None:
    """Contract with accelerate: its autocast wraps the outermost forward only, so ``model.model(...)`` is float32."""
    model = policy()
    seen: list[torch.dtype] = []

    class Probe(Strategy):
        name = "probe"

        def penalty(self, ctx: Context) -> None:
            ids = torch.tensor([[5, 6]])
            layer = ctx.model.model.layers[0].mlp.up_proj
            hook = layer.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
            ctx.model.model(input_ids=ids)
            ctx.model(input_ids=ids)
            hook.remove()

    make_engine(model, tmp_path, sft(strategy=Probe(), num_steps=1, training=FROZEN | {"bf16": True})).fit()
    assert seen == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("precision", [{}, {"bf16": True}])
def test_nothing_nests_over_stages(precision: dict[str, Any], tmp_path: Path) -> None:
    """Four stages on one model: accelerate leaves its wrapper on it each time, and the engine takes it off."""
    model = policy()
    signature, output = inspect.signature(model.forward), model(input_ids=torch.tensor([[5, 6]])).logits
    for number in range(4):
        notes = Precision()
        setup = sft(strategy=notes, num_steps=1, training=FROZEN | precision)
        make_engine(model, tmp_path / str(number), setup).fit()
        assert ("_original_forward" in notes.attributes) == bool(precision)  # contract with accelerate
        assert "forward" in notes.attributes
        assert not {"forward", "_original_forward", "_is_accelerate_prepared"} & set(model.__dict__)
        assert inspect.signature(model.forward) == signature
        assert model.forward.__func__ is type(model).forward
    again = model(input_ids=torch.tensor([[5, 6]])).logits
    assert again.dtype == torch.float32
    assert torch.equal(again, output)


def test_accelerate_leaves_its_wrapper_behind(tmp_path: Path) -> None:
    """The trap itself: a plain Trainer's model keeps the bf16 forward after training, and the next one wraps that."""
    model = build("llama")
    rows = [{"input_ids": torch.tensor([5, 6, 7]), "labels": torch.tensor([5, 6, 7])}] * 2
    arguments = TrainingArguments(
        output_dir=str(tmp_path), bf16=True, use_cpu=True, max_steps=1, report_to="none", disable_tqdm=True,
        save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows).train()
    assert "_original_forward" in model.__dict__
    assert "forward" in model.__dict__


def test_a_stage_starts_from_the_weights_it_was_given(tmp_path: Path) -> None:
    """Two stages in a row: the second begins with the bits the first ended with."""
    model = policy()
    moving = {"learning_rate": 1e-2, "optim": "adamw_torch"}
    make_engine(model, tmp_path / "1", sft(training=moving, num_steps=2)).fit()
    ended = weights(model)
    started: list[dict[str, torch.Tensor]] = []

    class Start(Strategy):
        name = "start"

        def penalty(self, ctx: Context) -> None:
            started.append(weights(ctx.model))

    make_engine(model, tmp_path / "2", sft(strategy=Start(), training=moving, num_steps=1)).fit()
    assert all(torch.equal(started[0][name], value) for name, value in ended.items())
