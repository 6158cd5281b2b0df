"""PPO by hand, as TRL's trainer of 2024: the caller samples and rewards, ``step`` trains on that one batch.

Underneath is the one engine: a batch of answers is a rollout window whose rollouts are given instead of sampled. It is
measured, credited and trained on in ``ppo_epochs`` x mini-batches optimizer steps, like those of a run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from contrl.continual.run_folder import RunFolder
from contrl.core import draw
from contrl.engine.arguments import StageSettings, build_arguments, default_pass
from contrl.engine.encoder_decoder import is_encoder_decoder
from contrl.engine.lm_head import causal_lm
from contrl.engine.online import RolloutWindow, check_rollouts, completion_metrics
from contrl.engine.reference_scores import ReferenceScores
from contrl.engine.trainer import Engine
from contrl.engine.work import Work
from contrl.errors import GuardStop, UserError
from contrl.interfaces import Context, Group, Rollouts, Task, TaskSequence
from contrl.methods.ppo import PPO
from contrl.models.load import policy_from
from contrl.models.reference import Reference
from contrl.models.value_models import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    ModelWithValueHead,
    language_model,
)
from contrl.strategies.naive import Naive
from contrl.trainers.step_batch import StepBatch, token_ids
from contrl.trainers.step_settings import StepSettings

TASK = "step"
"""What the only task is called in metrics.jsonl."""


class StepTrainer:
    """TRL's ``PPOTrainer`` of 2024.

    Args:
        config: a PPOConfig, or what ``StepSettings`` reads; None takes the defaults.
        model: a model with a value head; a plain language model is given one.
        ref_model: what the policy is kept near, with or without a value head: it is frozen. None takes the weights as
            they are now, or with an adapter the base below it.
        tokenizer: the model's.
        dataset: rows for ``dataloader``.
        optimizer: of the model's parameters; None makes AdamW with the configuration's learning rate.
        further: ``data_collator``, ``lr_scheduler`` (stepped after every ``step``).

    Attributes:
        model, ref_model, tokenizer, config, optimizer, dataset: as given, or made.
        dataloader: the rows in shuffled batches of ``batch_size``; None without a dataset.
        accelerator: accelerate's object.
    """

    def __init__(
        self,
        config: Any = None,
        model: Any = None,
        ref_model: Any = None,
        tokenizer: Any = None,
        dataset: Any = None,
        optimizer: Any = None,
        **further: Any,
    ) -> None:
        collator, schedule = further.pop("data_collator", None), further.pop("lr_scheduler", None)
        if further.pop("num_shared_layers", None) is not None:
            raise UserError(
                "num_shared_layers is given where there is nothing to share",
                fix="share layers when the reference is made: create_reference_model(model, num_shared_layers=...)",
            )
        if further:
            raise UserError(f"the trainer has no argument {next(iter(further))!r}")
        if optimizer is not None and not isinstance(model, ModelWithValueHead):
            raise UserError(
                "an optimizer is given for a model without value head",
                why="the head would be made now, and the optimizer would not know it",
                fix="make the optimizer of AutoModelForCausalLMWithValueHead.from_pretrained(model)",
            )
        self.config, self.settings = config, StepSettings.of(config)
        self.model, self.tokenizer, self.dataset = _with_head(model), tokenizer, dataset
        self.lr_scheduler, self.num_steps, self._episodes = schedule, 0, 0
        self._engine = self._make_engine(ref_model)
        self.ref_model = ref_model
        engine = self._engine
        with engine.ready():
            engine.optimizer = optimizer
            engine.create_optimizer()
            # Once, for the wrapper of several processes; what it leaves on the model goes with `ready`.
            self._wrapped, self.optimizer = engine.accelerator.prepare(engine.model, engine.optimizer)
        self.dataloader = self._loader(collator) if dataset is not None else None

    def _make_engine(self, ref_model: Any) -> Engine:
        settings, method = self.settings, self.settings.method()
        if self.tokenizer is None:
            raise UserError("there is no tokenizer", fix="give the model's: PPOTrainer(config, model, ref, tokenizer)")
        policy = policy_from(self.model.pretrained_model, self.tokenizer, seed=settings.seed).model
        training: dict[str, Any] = {**settings.training, "learning_rate": settings.learning_rate}
        training |= {"save_strategy": "no", "lr_scheduler_type": "constant"}
        sequence = TaskSequence.in_order([Task(TASK, [])])
        context = Context(policy, self.tokenizer, method, sequence, sequence.stages[0], settings.seed)
        work = Work(
            method=method,
            strategy=Naive(),
            context=context,
            groups=[],
            prompts_per_step=settings.batch_size // settings.num_minibatches(),
            num_steps=1,
            tokens_per_pass=settings.tokens_per_pass or default_pass({}),
            seed=settings.seed,
            prepare=_nothing,
            find_row=_nothing,
        )
        work.window = RolloutWindow(method, self._credited, (settings.seed, 0))
        with tempfile.TemporaryDirectory() as scratch:
            # transformers makes the folder at once; no checkpoint is ever written into it.
            arguments = build_arguments(training, StageSettings(Path(scratch), settings.seed, 1, 1, 1))
            engine = Engine(policy, arguments, work, self.tokenizer)
        context.rank, context.world_size = engine.args.process_index, engine.args.world_size
        if "reference_logps" in method.measures:
            reference = _reference(ref_model, self.model, engine.args.device)
            work.reference = ReferenceScores(lambda: reference, is_policy=False)
            work.reference.live = reference
        return engine

    def _loader(self, collator: Any) -> Any:
        order = torch.Generator().manual_seed(self.settings.seed)
        loader: DataLoader = DataLoader(
            self.dataset,
            batch_size=self.settings.batch_size,
            shuffle=True,
            drop_last=True,
            collate_fn=collator,
            generator=order,
        )
        return self.accelerator.prepare(loader)

    # --- one step -----------------------------------------------------------------------------------------

    def step(
        self,
        queries: Sequence[torch.Tensor],
        responses: Sequence[torch.Tensor],
        scores: Sequence[torch.Tensor],
        response_masks: Sequence[torch.Tensor] | None = None,
    ) -> dict[str, float]:
        """Train on one batch of answers.

        Args:
            queries: ``batch_size`` tensors of token ids ``[T]``.
            responses: what answers each; of an encoder-decoder with or without the token that its decoder starts from.
            scores: a reward of each, tensors of one number.
            response_masks: of each response, 1 = this token is learnt; None = all are.

        Returns:
            Means of this step under the names of TRL's PPO: objective/kl, objective/scores, policy/approxkl_avg,
            loss/value_avg, val/ratio ..., and loss, grad_norm, lr, episode, eps and seconds.

        Raises:
            UserError: when what is given does not fit together.
            GuardStop: for a gradient that is not finite, or a policy far from its reference.
        """
        start = time.perf_counter()
        batch = StepBatch(queries, responses, scores, response_masks)
        groups = batch.groups(TASK, self.model.pretrained_model, self.settings.batch_size)
        engine, window = self._engine, self._engine.work.window
        assert window is not None
        with engine.ready():
            for position in range(window.length):
                self._update(*window.step(position, lambda: groups))
        self.num_steps += 1
        # The next batch is cut into other mini-batches.
        window.seed = (self.settings.seed, self.num_steps)
        self._episodes += len(groups) * engine.args.world_size
        stats = engine.meters.read(engine.args.world_size)
        stats |= {"lr": float(self.optimizer.param_groups[0]["lr"]), "episode": float(self._episodes)}
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        seconds = time.perf_counter() - start
        return stats | {"eps": len(groups) * engine.args.world_size / seconds, "seconds": seconds}

    def _credited(self, groups: Sequence[Group]) -> Rollouts:
        """What a collector does after sampling and scoring: measure, credit, report, guard."""
        engine, method, rollouts = self._engine, self._engine.work.method, list(groups)
        assert isinstance(method, PPO)
        links = engine.links()
        links.measure(rollouts, {"policy_logps", *method.measures})
        pool = links.pool()
        credited = method.credit(rollouts, pool)
        links.record(completion_metrics(rollouts) | credited)
        check_rollouts(rollouts, credited.get("kl"), method, pool)
        return rollouts

    def _update(self, groups: Rollouts, moved: bool) -> None:
        """One optimizer step; the norm that is reported is that before clipping."""
        engine, accelerator = self._engine, self.accelerator
        engine.work.context.step = engine.state.global_step
        self.optimizer.zero_grad()
        loss = float(engine.train_on(self._wrapped, groups, moved))
        limit = self.settings.max_grad_norm
        norm = float(accelerator.clip_grad_norm_(self._wrapped.parameters(), float("inf") if limit is None else limit))
        if accelerator.scaler is None and not norm < float("inf"):
            raise GuardStop(
                f"the gradient is not finite at step {engine.state.global_step + 1}",
                fix="lower the learning rate and begin again from weights that were saved; look at the scores",
            )
        self.optimizer.step()
        engine.work.strategy.after_step(engine.work.context)
        engine.state.global_step += 1
        engine.record({"loss": (loss, 1.0), "grad_norm": (norm, 1.0)})

    # --- sampling -----------------------------------------------------------------------------------------

    def generate(
        self, query_tensor: torch.Tensor | Sequence[torch.Tensor], length_sampler: Any = None, **kwargs: Any
    ) -> Any:
        """Answer one query or several.

        Args:
            query_tensor: token ids ``[T]``, or a list of such tensors.
            length_sampler: called for each query's ``max_new_tokens``.
            kwargs: ``return_prompt`` (True: a decoder's answer comes behind its query), ``generate_ref_response`` (the
                reference answers too), and how answers are drawn: see ``contrl.core.draw``.

        Returns:
            ``[1, T]`` for a tensor, a list of ``[T]`` for a list; with ``generate_ref_response`` a pair of them.
        """
        several = not isinstance(query_tensor, torch.Tensor)
        rows = list(query_tensor) if several else [query_tensor]
        queries = [token_ids(tensor, "query_tensor", row) for row, tensor in enumerate(rows)]
        prompted, compares = kwargs.pop("return_prompt", True), kwargs.pop("generate_ref_response", False)
        kwargs.pop("batch_size", None)
        lengths = [int(length_sampler()) for _ in queries] if length_sampler is not None else []
        policy = self.model.pretrained_model
        found = []
        for model in self._answering(policy, compares):
            sampled = draw(model, queries, lengths, kwargs)
            whole = prompted and not is_encoder_decoder(causal_lm(policy))
            tensors = [
                torch.tensor([*(query if whole else ()), *ids], dtype=torch.long, device=self.current_device)
                for query, ids in zip(queries, sampled, strict=True)
            ]
            found.append(tensors if several else tensors[0][None])
        return (found[0], found[1]) if compares else found[0]

    def _answering(self, policy: Any, compares: bool) -> Iterator[Any]:
        yield policy
        if compares:
            reference = self._engine.work.reference
            if reference is None or reference.live is None:
                raise UserError("there is no reference", why="init_kl_coef is 0", fix="leave generate_ref_response out")
            with reference.live.model() as model:
                yield model

    # --- what programs look at ----------------------------------------------------------------------------

    @property
    def accelerator(self) -> Any:
        """accelerate's object."""
        return self._engine.accelerator

    @property
    def current_device(self) -> torch.device:
        """Where the model is."""
        return self._engine.args.device

    def log_stats(
        self, stats: Mapping[str, float], batch: Any = None, rewards: Sequence[Any] = (), columns_to_log: Any = ()
    ) -> None:
        """Append what ``step`` returned to ``metrics.jsonl`` in ``output_dir``, where the configuration names one.

        Args:
            stats: of the step.
            batch, columns_to_log: not used.
            rewards: their mean and standard deviation are added.
        """
        values = {name: float(value) for name, value in stats.items()}
        if len(rewards):
            table = torch.tensor([float(reward) for reward in rewards], dtype=torch.float64)
            values |= {"env/reward_mean": float(table.mean()), "env/reward_std": float(table.std(correction=0))}
        if self.settings.output_dir is not None:
            folder = Path(self.settings.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            place = {"stage": 1, "step": self.num_steps, "task": TASK}
            records = [place | {"name": name, "value": value} for name, value in values.items()]
            RunFolder(folder, writes=self.accelerator.is_main_process, is_flat=True).append("metrics.jsonl", *records)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the model, its value head and the tokenizer into a folder."""
        if self.accelerator.is_main_process:
            self.model.save_pretrained(save_directory)
            self.tokenizer.save_pretrained(save_directory)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Refused, as the model's own."""
        self.model.push_to_hub()


def _nothing(*args: Any) -> Any:
    raise UserError("the step API has no rows of its own")


def _with_head(model: Any) -> ModelWithValueHead:
    if isinstance(model, ModelWithValueHead):
        return model
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise UserError(
            f"model is a {type(model).__name__}",
            fix="give AutoModelForCausalLMWithValueHead.from_pretrained(...), or the Seq2SeqLM one",
        )
    encodes = is_encoder_decoder(causal_lm(model))
    return (AutoModelForSeq2SeqLMWithValueHead if encodes else AutoModelForCausalLMWithValueHead)(model)


def _reference(given: Any, model: ModelWithValueHead, device: torch.device) -> Reference:
    policy = model.pretrained_model
    if given is None:
        return Reference(policy, "base" if model.is_peft_model else "previous")
    frozen = language_model(given)
    if frozen is policy:
        raise UserError(
            "model and ref_model are the same object",
            why="it would move with the policy and never disagree with it",
            fix="leave ref_model out, or give create_reference_model(model)",
        )
    elsewhere = {parameter.device for parameter in frozen.parameters()} != {device}
    return Reference.of(frozen.to(device) if elsewhere else frozen, policy)
