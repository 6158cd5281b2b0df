"""The one training loop, inside ``transformers.Trainer``; it names no method and no strategy.

One optimizer step, in ``training_step`` of its last micro-batch (the others only hand over their rows):

    groups  = the step's rows, and what the strategies draw besides (replay)
    groups  = sampled, scored, credited completions of them            (online methods: a rollout window)
    anchors = groups that only the strategies' losses see
    totals  = method.count + strategy.count, summed over ranks          before any forward
    statistics = method.settle(method.observe(...))                     methods that couple the rows of a step
    for each pass (by length, under a token budget; all but the last without gradient sync):
        out  = routed forward of the wrapped model                      shared prompt, chunked LM head
        loss = sum over terms of (sum of the term) / totals[term]       method and strategy alike
        backward
    strategy.penalty, strategy.project                                  whole gradients, before clipping
    -> clip, optimizer step, schedule, log, save: transformers.Trainer's
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from contrl.engine.arguments import steps_per_epoch
from contrl.engine.batching import BlockSampler, overhead, plan_passes, to_batch
from contrl.engine.coupling import gather
from contrl.engine.evaluation import held_out
from contrl.engine.forward import Routing, no_dropout, routed, run
from contrl.engine.layout_check import check_head, choose_layout, probe
from contrl.engine.measure import measure
from contrl.engine.memory import peak_bytes
from contrl.engine.meters import Meters
from contrl.engine.online import Links
from contrl.engine.reference_scores import PassSettings
from contrl.engine.saving import SavingTrainer
from contrl.engine.work import Rows, Work
from contrl.errors import GuardStop
from contrl.faults import reach
from contrl.interfaces import Batch, Completion, Group, OnlineMethod, Outputs, Pool

PROBED = 64
"""Rows of an offline stage among which the layouts are compared."""


class _StepHooks(TrainerCallback):
    """Calls the strategy after the optimizer's step and turns an agreed stop into a saved one."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        context, optimizer = self.engine.work.context, kwargs["optimizer"]
        context.learning_rate = float(optimizer.param_groups[0]["lr"])
        self.engine.work.strategy.after_step(context)
        self.engine.move_reference(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        reach("training")
        alone = args.world_size == 1 and self.engine.work.should_stop()
        self.engine.stopping = self.engine.stopping or alone
        if state.global_step >= args.max_steps or self.engine.stopping:
            control.should_save, control.should_training_stop = True, True
            control.should_log = True


class Engine(SavingTrainer):
    """Trains one stage. See the module's text for the loop."""

    def __init__(self, model: nn.Module, args: TrainingArguments, work: Work, tokenizer: Any) -> None:
        self.work, self.memory, self.num_tokens = work, {}, 0.0
        self.routing = Routing("packed" if work.packed else "shared", work.method.temperature, work.method.needs)
        self.layout_reason = ""
        self.stopping = self._is_ready = False
        self._pending: list[Group] = []
        self.meters = Meters()
        self._step_started = 0.0
        settings: dict[str, Any] = {"train_dataset": Rows(work.groups), "data_collator": list}
        settings |= {"eval_dataset": Rows(work.eval_groups), "optimizers": work.optimizers}
        super().__init__(model, args, processing_class=tokenizer, **settings)
        work.context.report = self.record
        self.remove_callback(PrinterCallback)
        self.add_callback(_StepHooks(self))
        # Normalisation is ours alone; Trainer must not divide by its own guess.
        self.loss_is_scaled_for_ga = True

    # --- rows -------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """One long epoch of blocks; see ``BlockSampler``."""
        repeats = self.work.window.length if self.work.window else 1
        minibatches = self.work.window.method.num_minibatches if self.work.window else 1
        block = self.work.prompts_per_step * minibatches
        sampler = BlockSampler(
            len(self.work.groups), block, -(-self.work.num_steps // repeats), repeats, self.work.seed
        )
        rows = block // (self.args.world_size * self.args.gradient_accumulation_steps)
        dataset: Any = self.train_dataset
        return self.accelerator.prepare(DataLoader(dataset, batch_size=rows, sampler=sampler, collate_fn=list))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, None]:
        """Keep the number of micro-batches and only remember their rows."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        self._pending = [group for batch in batches for group in batch if group is not None]
        return batches, None

    def _drawn(self) -> list[Group]:
        """What the strategies add to this rollout or step: the same on every rank, each takes its share."""
        context = self.work.context
        minibatches = self.work.window.method.num_minibatches if self.work.window else 1
        drawn = self.work.strategy.draw(context, self.work.prompts_per_step * minibatches)
        mine = drawn[context.rank :: context.world_size]
        groups = [self.work.prepare(task, row) for task, row in mine]
        for group in groups:
            group.is_replay = True
        return groups

    def _anchors(self) -> list[Group]:
        """This rank's share of what only strategies look at."""
        context = self.work.context
        return self.work.strategy.anchors(context, self.work.prompts_per_step)[context.rank :: context.world_size]

    def _groups_of_step(self) -> tuple[list[Group], bool]:
        if self.work.window is None:
            return self._pending + self._drawn(), False
        return self.work.window.step(self.state.global_step, lambda: self._pending + self._drawn())

    # --- one optimizer step -------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """0 until the last micro-batch of the step, then the whole step; returns the step's loss."""
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        self._step_started = self._step_started or time.perf_counter()
        self.work.context.step = self.state.global_step
        return self.train_on(model, *self._groups_of_step())

    def train_on(self, model: nn.Module, groups: list[Group], moved: bool) -> torch.Tensor:
        """The gradient of one optimizer step, whole and with the strategies' penalties; nothing is stepped yet.

        Args:
            model: the policy, wrapped.
            groups: of the step, on this rank.
            moved: whether the policy has moved since their completions were sampled.

        Returns:
            The loss, over all ranks.
        """
        model.train()
        loss = self._passes(model, groups, moved)
        self._fill_gradients(model)
        self.work.strategy.penalty(self.work.context)
        self.work.strategy.project(self.work.context)
        return loss

    def _passes(self, model: nn.Module, groups: list[Group], moved: bool) -> torch.Tensor:
        method, strategy, context = self.work.method, self.work.strategy, self.work.context
        taught = groups
        if isinstance(method, OnlineMethod) and not strategy.adds_loss:
            # Groups without advantage have no gradient; they still count in the totals below.
            taught = [group for group in groups if method.teaches(group)]
        self.settle_layout(taught)
        strategy.prepare_step(context, groups)
        anchors = self._anchors()
        passes = [*self.plan(taught), *self.plan(anchors)]
        counts = method.count(groups) | strategy.count(context, [*groups, *anchors])
        counts |= {"tokens": float(sum(c.num_trained() for group in groups for c in group.completions))}
        totals, num_passes = self.agree(counts, len(passes))
        self.num_tokens += totals["tokens"]
        statistics = self.statistics(model, groups, self.memory)
        self.routing.teachers = strategy.teachers(context)
        loss = torch.zeros((), device=self.args.device)
        for number in range(num_passes):
            last = number == num_passes - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model=model):
                if number < len(passes):
                    batch = to_batch(passes[number], self.args.device, use_old_logps=moved)
                    batch.statistics |= statistics
                    term = self._loss_of(model, batch, totals)
                else:
                    term = self._run_along(model)
                self.accelerator.backward(term)
            loss += term.detach()
        self.routing.teachers = {}
        return loss

    def plan(self, groups: Sequence[Group]) -> list[list[Group]]:
        layout, cost = self.routing.layout, overhead(self.args.device)
        return plan_passes(groups, self.work.tokens_per_pass, layout=layout, overhead=cost)

    def _run_along(self, model: nn.Module) -> torch.Tensor:
        """A pass of no weight for a rank that has fewer: the others' gradients wait for its share of the reduction."""
        batch = to_batch([Group("", "", [0], [Completion([0])])], self.args.device)
        with self.accelerator.autocast():
            return attached(run(model, batch))

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        known = batch.reference_logps is not None
        wanted = "reference_logps" in self.work.method.needs and not batch.groups[0].is_anchor
        if self.work.reference is not None and wanted and not known:
            batch.reference_logps = self.work.reference.logps(batch, self.pass_settings())
        with self.accelerator.autocast():
            return run(model, batch)

    def statistics(self, model: nn.Module, groups: Sequence[Group], memory: dict[str, float]) -> dict[str, Any]:
        """What couples the rows of a step, from all its groups on all ranks, before any of them is trained."""
        method = self.work.method
        if method.couples != "step":
            return {}
        values: dict[str, list[torch.Tensor]] = {}
        with torch.no_grad():
            for part in self.plan(method.observed(groups)):
                batch = to_batch(part, self.args.device)
                # Through the unwrapped model: ranks may have different numbers of these passes.
                out = self.outputs(self.accelerator.unwrap_model(model), batch)
                for name, value in method.observe(out, batch).items():
                    values.setdefault(name, []).append(value.detach().cpu().double())
        return method.settle(gather(values, self.args.world_size, self.args.device), memory)

    def _loss_of(self, model: nn.Module, batch: Batch, totals: dict[str, float]) -> torch.Tensor:
        strategy, context = self.work.strategy, self.work.context
        out = self.outputs(model, batch)
        factors = strategy.weights(context, batch)
        if factors is not None:
            batch.weights = batch.weights * factors
        loss = attached(out)
        of_method = None if batch.groups[0].is_anchor else self.work.method.loss(out, batch)
        for output in (of_method, strategy.loss(context, batch, out)):
            for name, value in output.sums.items() if output else ():
                if totals[name] > 0:
                    loss = loss + value / totals[name] * self.args.world_size
            if output:
                self.record(output.metrics)
        return loss

    def pass_settings(self) -> PassSettings:
        """How passes without gradient are run."""
        model = self.accelerator.unwrap_model(self.model)
        autocast, tokens = self.accelerator.autocast, self.work.tokens_per_pass
        share = (self.args.process_index, self.args.world_size)
        return PassSettings(model, self.routing, tokens, self.args.device, autocast, share)

    def _prepare_reference(self) -> None:
        """Before the first step, while the policy has the weights that the stage starts with."""
        work = self.work
        if work.reference is None:
            return
        if work.window is not None:
            # What will be asked about does not exist yet.
            work.reference.prepare(work.method, [], self.pass_settings(), outside=True)
            return
        visits_all = work.num_steps * work.prompts_per_step >= len(work.groups)
        steps = [*work.first_epoch(self.args.world_size), work.eval_groups] if visits_all else []
        outside = work.strategy.adds_rows or not visits_all
        work.reference.prepare(work.method, steps, self.pass_settings(), outside=outside)

    def move_reference(self, step: int) -> None:
        """After optimizer step ``step``: a reference that follows the policy takes its share of it."""
        method, live = self.work.method, self.work.reference.live if self.work.reference else None
        if live is None:
            return
        if method.reference == "ema":
            live.update()
        elif method.sync_every and step % method.sync_every == 0:
            live.move(method.sync_share)

    def _fill_gradients(self, model: nn.Module) -> None:
        """A parameter that no pass reached has gradient zero, not none: the optimizer must treat it like the others."""
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def agree(self, counts: dict[str, float], num_passes: int, *, stops: bool = True) -> tuple[dict[str, float], int]:
        """Sum the counts over ranks, take the most passes of any rank, and agree on stopping; one collective."""
        names = sorted(counts)
        mine = [*(counts[name] for name in names), float(self.work.should_stop()), float(num_passes)]
        vector = torch.tensor([mine], dtype=torch.float64)
        if self.args.world_size > 1:
            vector = self.accelerator.gather(vector.to(self.args.device)).cpu()
        total = vector.sum(0).tolist()
        self.stopping = total[-2] > 0 if stops else self.stopping
        return dict(zip(names, total[:-2], strict=True)), int(vector[:, -1].max())

    def settle_layout(self, groups: Sequence[Group]) -> None:
        if self.layout_reason or not groups:
            return
        model = self.accelerator.unwrap_model(self.model)
        batch = to_batch(probe(groups), self.args.device)
        needs = self.work.method.needs
        check_head(model, batch, self.accelerator.autocast, needs)
        check = choose_layout(model, batch, self.accelerator.autocast, self.routing.layout, needs)
        self.routing.layout, self.layout_reason = check.layout, check.reason

    # --- guards, logs ---------------------------------------------------------------------------------

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and self.accelerator.scaler is None and not torch.isfinite(torch.as_tensor(norm)):
            raise GuardStop(
                f"the gradient is not finite at step {self.state.global_step + 1}",
                where=str(self.args.output_dir),
                fix="the last checkpoint is good; lower the learning rate, then resume from it",
            )
        return norm

    def links(self) -> Links:
        """What collecting rollouts needs of this engine."""
        return Links(
            record=self.record,
            measure=self._measure,
            pool=lambda: Pool(self._gather, self.memory),
            state=lambda: self.state,
            autocast=self.accelerator.autocast,
        )

    def _measure(self, groups: Sequence[Group], names: Collection[str]) -> None:
        self.settle_layout(groups)
        measure(groups, names, self.pass_settings(), self.work.reference)

    def _gather(self, values: torch.Tensor) -> torch.Tensor:
        return gather({"": [values]}, self.args.world_size, self.args.device)[""].cpu()

    def record(self, metrics: Mapping[str, tuple[Any, Any]]) -> None:
        """Add (sum, count) pairs to what the next log line reports."""
        self.meters.add(metrics)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the methods' and strategies' metrics, reduced over ranks here and not at every step."""
        if "loss" in logs:
            logs |= self._reduced_metrics()
        # To Trainer the stage is one long epoch.
        per_epoch = steps_per_epoch(len(self.work.groups), self.work.prompts_per_step, self.work.method)
        self.state.epoch = self.state.global_step / per_epoch
        super().log(logs, start_time)

    def _reduced_metrics(self) -> dict[str, float]:
        reduced = {"num_tokens": self.num_tokens, **self.meters.read(self.args.world_size)}
        seconds = time.perf_counter() - self._step_started if self._step_started else 0.0
        self._step_started = 0.0
        peak = peak_bytes(self.args.device)
        return reduced | {"seconds": seconds} | ({"memory/peak_gib": peak / 2**30} if peak is not None else {})

    # --- evaluation on held-out rows ------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The method's loss and metrics on the stage's evaluation groups; per source too, where rows have several."""
        with self.ready():
            if self.work.reference is not None and not self.work.reference.is_ready:
                self.settle_layout(self.work.eval_groups[:PROBED])
                self._prepare_reference()
            metrics = held_out(self, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: the rows of a step are not one padded batch."""
        return 0

    # --- a stage ---------------------------------------------------------------------------------------

    def fit(self, checkpoint: Path | None = None) -> None:
        """Train the stage, from ``checkpoint`` if one is given; afterwards the model's forward is its own again."""
        with self.ready():
            if not isinstance(self.work.method, OnlineMethod):
                self.settle_layout(self.work.groups[:PROBED])
            self._prepare_reference()
            if checkpoint is not None:
                self.restore(checkpoint)
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """The routed forward is on, dropout as the method wants it; entering twice changes nothing."""
        model = self.accelerator.unwrap_model(self.model)
        if self._is_ready:
            yield
            return
        quiet = contextlib.nullcontext() if self.work.method.dropout else no_dropout(model)
        with quiet, routed(model, self.routing):
            self._is_ready = True
            try:
                yield
            finally:
                self._is_ready = False


def attached(out: Outputs) -> torch.Tensor:
    """Nothing, but connected to what was computed, so that backward runs."""
    return (out.logps if out.scores is None else out.scores).sum() * 0.0
