"""One training stage in contrl's engine and in TRL's trainers, on the same rows, weights and settings.

Both are ``transformers.Trainer`` with AdamW, constant learning rate, float32 and no gradient checkpointing. What is
timed is a step, from its begin to its end, without the first one (buffers, and contrl's check of its layouts).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from side_by_side import Run
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from contrl.continual.values import prepare_value
from contrl.engine.arguments import StageSettings, build_arguments
from contrl.engine.batching import BlockSampler
from contrl.engine.online import Collector, RolloutWindow
from contrl.engine.reference_scores import ReferenceScores
from contrl.engine.rows import prepare_all, prepare_row
from contrl.engine.trainer import Engine
from contrl.engine.work import Work
from contrl.experiment import find
from contrl.interfaces import Completion, Context, Group, Method, OnlineMethod, Stage, Task, TaskSequence
from contrl.methods.rloo import RLOO
from contrl.methods.sft import SFT
from contrl.models.reference import Reference
from contrl.strategies.naive import Naive

SEED = 0
TRAINING: dict[str, Any] = {
    "learning_rate": 2e-5,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
}
"""Training arguments of both sides."""


class Clock(TrainerCallback):
    """Seconds of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[Run] = []
        self._start = (0.0, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = (_now(), time.process_time())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        clock, cpu = self._start
        self.steps.append(Run(None, _now() - clock, time.process_time() - cpu))


def _now() -> float:
    """Seconds, once an accelerator has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclasses.dataclass
class Trained:
    """What a stage did: its timed steps, what it logged at each step, and seconds by part: of all steps, of each."""

    steps: list[Run]
    logs: list[dict[str, float]]
    parts: dict[str, float] = dataclasses.field(default_factory=dict)
    phases: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def curve(self, name: str) -> list[float]:
        """The values logged under ``name``, step after step."""
        return [float(record[name]) for record in self.logs if name in record]


def _train(trainer: Any, start: Callable[[], object], *, untimed: int = 1) -> Trained:
    """Train; the first ``untimed`` steps are not told."""
    clock = Clock()
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)
    with contextlib.redirect_stdout(None):
        start()
    return Trained(clock.steps[untimed:], [log for log in trainer.state.log_history if "loss" in log])


# --- contrl ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Job:
    """A stage: the model it starts from (copied, never changed), rows, and rows (prompts) of one step.

    ``training`` stands over ``TRAINING`` on both sides, ``reward`` is of stages that sample, the last is contrl's.
    """

    model: Any
    tokenizer: Any
    rows: list[dict[str, Any]]
    rows_per_step: int
    num_steps: int
    folder: Path
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    reward: Any = None
    tokens_per_pass: int = 2**14

    def in_order(self) -> list[dict[str, Any]]:
        """The rows in the order in which contrl visits them, so that TRL can be given the same."""
        order = BlockSampler(len(self.rows), self.rows_per_step, self.num_steps, 1, SEED)
        return [self.rows[index] for index in order]


def _engine(job: Job, method: Method, *, bf16: bool = False, copied: bool = True) -> Engine:
    model = copy.deepcopy(job.model) if copied else job.model
    task, stage = Task("text", job.rows, reward=job.reward), Stage(1, ("text",))
    context = Context(model, job.tokenizer, method, TaskSequence((task,), (stage,)), stage, SEED)
    settings = StageSettings(job.folder, SEED, job.num_steps, job.num_steps, job.rows_per_step)
    by_id = {row["id"]: row for row in job.rows}
    work = Work(
        method=method,
        strategy=Naive(),
        context=context,
        groups=prepare_all([(task, row) for row in job.rows], method, job.tokenizer, lambda text: None),
        prompts_per_step=job.rows_per_step,
        num_steps=job.num_steps,
        tokens_per_pass=job.tokens_per_pass,
        seed=SEED,
        prepare=lambda task, row: prepare_row(task, row, method, job.tokenizer),
        find_row=lambda task, row_id: by_id[row_id],
    )
    method.pair(work.groups, SEED)
    prepare_value(model, method, None, SEED)
    if "reference_logps" in method.needs | (method.measures if isinstance(method, OnlineMethod) else frozenset()):
        work.reference = ReferenceScores(lambda: Reference(model, "previous"), is_policy=True)
    return Engine(model, build_arguments(TRAINING | {"bf16": bf16} | job.training, settings), work, job.tokenizer)


def contrl_offline(job: Job, name: str, *, bf16: bool, cached: bool) -> Trained:
    """An offline method in contrl; where the time of the timed steps goes is in ``parts``.

    The reference's table is always filled before the first step; with one epoch its cost belongs to the steps.
    """
    if name == "reward":
        from contrl.models.classifier import on_trunk

        job.model = on_trunk(job.model, SEED)
    engine = _engine(job, find("method", name)(), bf16=bf16, copied=False)
    parts = {"reference": 0.0, "forward and loss": 0.0, "backward": 0.0}
    _timed(engine, "_prepare_reference", parts, "reference")
    _timed(engine, "_loss_of", parts, "forward and loss")
    _timed(engine.accelerator, "backward", parts, "backward")
    engine.add_callback(_AfterFirst(parts))
    trained = _train(engine, engine.fit)
    # One epoch: what filling the table took is shared out over the steps, as TRL pays for it in each.
    each = 0.0 if cached else parts["reference"] / job.num_steps
    trained.steps = [Run(None, run.seconds + each, run.cpu_seconds + each) for run in trained.steps]
    return dataclasses.replace(trained, parts=parts | {"reference": each * len(trained.steps)})


class _AfterFirst(TrainerCallback):
    """Forgets the parts of the first step, which is not timed; the table is filled before it."""

    def __init__(self, parts: dict[str, float]) -> None:
        self.parts = parts

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.parts |= {part: 0.0 for part in self.parts if part != "reference"}


def _timed(owner: Any, name: str, parts: dict[str, float], part: str, *, without_gradient: bool = False) -> None:
    call = getattr(owner, name)

    def timed_call(*arguments: Any, **options: Any) -> Any:
        if without_gradient and torch.is_grad_enabled():
            return call(*arguments, **options)
        start = _now()
        try:
            return call(*arguments, **options)
        finally:
            parts[part] = parts.get(part, 0.0) + _now() - start

    setattr(owner, name, timed_call)


def contrl_sft(job: Job) -> Trained:
    """Supervised fine-tuning in contrl."""
    engine = _engine(job, SFT())
    return _train(engine, engine.fit)


def contrl_rloo(job: Job) -> Trained:
    """RLOO in contrl on the completions and rewards that the rows bring along."""
    return contrl_given(job, RLOO(samples_per_prompt=len(job.rows[0]["completions"])))


def contrl_given(job: Job, method: OnlineMethod, *, untimed: int = 1, copied: bool = True) -> Trained:
    """An online method in contrl on the completions and rewards of its rows; "given" in ``phases`` is their making."""
    engine = _engine(job, method, copied=copied)
    links = engine.links()
    # What sampling would have left behind: here it costs a pass of its own, outside the update.
    names = method.measures | ({"policy_logps"} if method.num_epochs > 1 or method.measures else set())

    def collect(prompts: Sequence[Group]) -> list[Group]:
        groups = [
            dataclasses.replace(
                group,
                completions=[
                    Completion(ids=ids, reward=reward)
                    for ids, reward in zip(group.row["completions"], group.row["rewards"], strict=True)
                ],
            )
            for group in prompts
        ]
        if names:
            links.measure(groups, names)
        links.record(method.credit(groups, links.pool()))
        return groups

    engine.work.window = RolloutWindow(method, collect, (SEED, 1))
    phases = _Phases()
    _timed(engine.work.window, "collect", phases.now, "given")
    engine.add_callback(phases)
    return dataclasses.replace(_train(engine, engine.fit, untimed=untimed), phases=phases.steps)


def contrl_online(job: Job, method: OnlineMethod) -> Trained:
    """An online method in contrl as a run has it; every step is told, its phases as the engine logs them."""
    engine = _engine(job, method, copied=False)
    context, key = engine.work.context, (SEED, 1)
    collector = Collector(job.model, job.tokenizer, method, context.sequence, context, key, engine.links())
    engine.work.window = RolloutWindow(method, collector, key)
    trained = _train(engine, engine.fit, untimed=0)
    names = {"generate": "seconds/sampling", "reward": "seconds/reward", "log-probs": "seconds/measure"}
    phases = [{name: log.get(key, 0.0) for name, key in names.items()} for log in trained.logs]
    return dataclasses.replace(trained, phases=phases)


class _Phases(TrainerCallback):
    """Seconds by phase of every step: ``_timed`` fills in ``now``."""

    def __init__(self) -> None:
        self.now: dict[str, float] = {}
        self.steps: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(dict(self.now))
        self.now.clear()


# --- TRL ------------------------------------------------------------------------------------------------

PEER_ONLY: dict[str, Any] = {
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "report_to": [],
    "seed": SEED,
    "remove_unused_columns": False,
}


def peer_sft(job: Job) -> Trained:
    """Supervised fine-tuning in TRL."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=str(job.folder),
        per_device_train_batch_size=job.rows_per_step,
        max_steps=job.num_steps,
        train_sampling_strategy="sequential",
        **(TRAINING | PEER_ONLY),
    )
    with contextlib.redirect_stdout(None):
        trainer = SFTTrainer(
            model=copy.deepcopy(job.model),
            args=config,
            train_dataset=Dataset.from_list([{k: row[k] for k in ("prompt", "completion")} for row in job.in_order()]),
            processing_class=job.tokenizer,
        )
        return _train(trainer, trainer.train)


def peer_rloo(job: Job) -> Trained:
    """RLOO in TRL on the completions and rewards that the rows bring along, as ``peer_given``."""
    samples = len(job.rows[0]["completions"])
    return peer_given(job, Peer("rloo", samples, job.rows_per_step * samples))


@dataclasses.dataclass(frozen=True)
class Peer:
    """An online method of TRL: its name, samples of a prompt, completions of one forward, and its own settings."""

    name: str
    samples: int
    rows_per_pass: int
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def peer_given(job: Job, peer: Peer, *, untimed: int = 1, copied: bool = True) -> Trained:
    """An online method of TRL, its generation replaced by given completions; every row is in every step."""

    rewards = [reward for row in job.rows for reward in row["rewards"]]
    ids = [ids for row in job.rows for ids in row["completions"]]
    rewarded = dataclasses.replace(job, reward=lambda prompts, **columns: rewards)
    trainer = _peer_online(rewarded, peer, job.rows, copied=copied)
    trainer._generate_single_turn = lambda *arguments: ids if peer.name == "rloo" else (ids, None)
    phases = _Phases()
    _timed(trainer, "_generate_and_score_completions", phases.now, "given")
    trainer.add_callback(phases)
    return dataclasses.replace(_train(trainer, trainer.train, untimed=untimed), phases=phases.steps)


def peer_online(job: Job, peer: Peer) -> Trained:
    """An online method of TRL as it is, on the prompts of ``contrl_online``; every step is told, with its phases."""
    trainer = _peer_online(job, peer, job.in_order(), copied=False)
    phases = _Phases()
    _timed(trainer, "_generate", phases.now, "generate")
    _timed(trainer, "_calculate_rewards", phases.now, "reward")
    # With gradient it is the update's own forward.
    _timed(trainer, "_get_per_token_logps_and_entropies", phases.now, "log-probs", without_gradient=True)
    trainer.add_callback(phases)
    return dataclasses.replace(_train(trainer, trainer.train, untimed=0), phases=phases.steps)


def _peer_online(job: Job, peer: Peer, rows: Sequence[dict[str, Any]], *, copied: bool) -> Any:
    import trl
    from datasets import Dataset
    from trl.trainer.utils import add_fused_lm_head

    kind, beta = peer.name.upper(), float(peer.settings.get("beta", 0.0))
    # TRL reads its reference from where the policy was read, and these weights have no such place: it is given a copy,
    # made ready as its constructor does.
    reference = copy.deepcopy(job.model).requires_grad_(False) if beta else None
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(job.folder),
        per_device_train_batch_size=peer.rows_per_pass,
        gradient_accumulation_steps=job.rows_per_step * peer.samples // peer.rows_per_pass,
        num_generations=peer.samples,
        max_steps=job.num_steps,
        shuffle_dataset=False,
        **(TRAINING | PEER_ONLY | job.training | peer.settings | {"beta": 0.0}),
    )
    with contextlib.redirect_stdout(None):
        trainer = getattr(trl, f"{kind}Trainer")(
            model=copy.deepcopy(job.model) if copied else job.model,
            reward_funcs=job.reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
            processing_class=job.tokenizer,
        )
    if reference is not None:
        add_fused_lm_head(reference)
        trainer.ref_model = trainer.accelerator.prepare_model(reference, evaluation_mode=True)
        trainer.beta = beta
    return trainer


def peer_offline(job: Job, name: str, *, bf16: bool, cached: bool) -> Trained:
    """An offline method in TRL; ``cached`` precomputes the reference where TRL can, outside the timed steps."""
    import trl
    from datasets import Dataset

    kind = {"dpo": "DPO", "kto": "KTO", "sft": "SFT", "reward": "Reward"}[name]
    own = {"precompute_ref_log_probs": True} if cached and name in ("dpo", "kto") else {}
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(job.folder),
        per_device_train_batch_size=job.rows_per_step,
        max_steps=job.num_steps,
        train_sampling_strategy="sequential",
        **(TRAINING | PEER_ONLY | {"bf16": bf16} | own),
    )
    model: Any = job.model
    if name == "reward":
        from contrl.models.classifier import on_trunk

        model = on_trunk(model, SEED)
    elif name in ("dpo", "kto"):
        own = {"ref_model": copy.deepcopy(model)}
    columns = [{key: value for key, value in row.items() if key != "id"} for row in job.in_order()]
    with contextlib.redirect_stdout(None):
        trainer = getattr(trl, f"{kind}Trainer")(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(columns),
            processing_class=job.tokenizer,
            **({"ref_model": own["ref_model"]} if "ref_model" in own else {}),
        )
        return _train(trainer, trainer.train)
